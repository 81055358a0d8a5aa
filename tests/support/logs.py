"""What the code under test logs, kept instead of printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """Every entry since the test began, newest last. A folder's conftest imports it for all of its tests."""
    with capture_logs() as captured:
        yield captured

"""What every unit test leaves as it found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def no_width_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is as wide as the test says, whatever starts the tests believes of a terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that is called here sets up logging for the whole process; what was there before comes back."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)

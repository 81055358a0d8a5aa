"""Clusters that end with their test, and the time that a test of several processes has on a busy machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Lab

WITHIN_S = 300
"""Ends what hangs; it judges no speed. Starting a dozen processes alone may take a minute on a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test here that says nothing else its time."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(WITHIN_S))


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Make clusters, initialised unless ``initialise=False``; what their daemons said is shown when the test fails."""
    labs: list[Lab] = []

    def make(*, initialise: bool = True, **options: Any) -> Lab:
        lab = Lab(tmp_path, **options)
        labs.append(lab)
        if initialise:
            lab.initialise()
        return lab

    yield make
    for lab in labs:
        print(lab.logs())
        lab.close()

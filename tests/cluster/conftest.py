"""Clusters that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Lab


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

"""Stores in the memory of this process."""

from __future__ import annotations

import uuid

from killswitch.stores import Store, open_store


class MemoryRig:
    """Stores of one name."""

    kind = "memory"

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex

    def open(self) -> Store:
        return open_store(f"memory://{self._name}")

    def close(self) -> None:
        return

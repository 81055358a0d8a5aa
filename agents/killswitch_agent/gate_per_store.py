"""One gate for several stores: each store's keeper writes its own, and the page shows the strictest of all.

The page is open only while *every* store has given a permit and *no* store holds a freeze: a freeze in any of them
freezes, a release must be in all, and a store that is down, or empty, opens nothing (``docs/decisions/0017``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from killswitch.core.flag import Freeze, merge
from killswitch.gate import GateWriter
from killswitch.gate.layout import GateState

NO_PERMIT_NS = 1
"""A deadline that has passed on every clock; 0 would withdraw what the page holds."""


class GatePage(Protocol):
    """What a keeper needs of the page; :class:`~killswitch.gate.GateWriter` says what each means."""

    path: Path

    @property
    def state(self) -> GateState:
        """What the page says now."""

    @property
    def is_published(self) -> bool:
        """New readers find this page."""

    def update(self, freezes: Sequence[Freeze], *, epoch: int, permit_deadline_ns: int) -> None:
        """Make the page say what a flag says."""

    def extend(self, permit_deadline_ns: int) -> None:
        """Renew the permit when nothing else has changed."""

    def close_early(self) -> None:
        """Let no order pass until the next change."""

    def close_now(self, freeze: Freeze) -> None:
        """Add a cause that this node found by itself."""

    def lift_local(self, freeze_id: str) -> None:
        """Take back such a cause."""

    def close(self) -> None:
        """Close the gate for good."""


class StoreGate:
    """One store's part of the page. Made by :func:`gates_per_store`; all of them have one lock."""

    def __init__(self, writer: GateWriter, gates: list[StoreGate], lock: threading.Lock) -> None:
        self.path = writer.path
        self._writer = writer
        self._gates = gates
        self._lock = lock
        self._freezes: tuple[Freeze, ...] = ()
        self._local: dict[str, Freeze] = {}
        self._epoch = 0
        self._told = False
        self._permit_deadline_ns = NO_PERMIT_NS

    @property
    def state(self) -> GateState:
        """What the page says now, all stores together."""
        return self._writer.state

    @property
    def is_published(self) -> bool:
        """New readers find the page."""
        return self._writer.is_published

    def update(self, freezes: Sequence[Freeze], *, epoch: int, permit_deadline_ns: int) -> None:
        """Make this part say what its store's flag says. An older epoch adds causes, and extends nothing."""
        with self._lock:
            self._told = True
            if epoch < self._epoch:
                self._freezes = merge(self._freezes, freezes)
            else:
                self._freezes = tuple(freezes)
                self._epoch = epoch
                self._permit_deadline_ns = max(self._permit_deadline_ns, permit_deadline_ns)
            self._show()

    def extend(self, permit_deadline_ns: int) -> None:
        """Renew this store's permit; the page's is that of the store whose permit ends first.

        Of a store that has not told its flag yet nothing is renewed: what it holds is unknown.
        """
        with self._lock:
            if not self._told:
                return
            self._permit_deadline_ns = max(self._permit_deadline_ns, permit_deadline_ns)
            self._writer.extend(self._deadline_ns())

    def close_early(self) -> None:
        """Let no order pass until the next change of any part."""
        self._writer.close_early()

    def close_now(self, freeze: Freeze) -> None:
        """Close for a cause that no store knows of yet."""
        with self._lock:
            self._writer.close_now(freeze)
            self._local[freeze.id] = freeze

    def lift_local(self, freeze_id: str) -> None:
        """Take a cause back as far as this store goes; it stays while another store's keeper holds it."""
        with self._lock:
            self._local.pop(freeze_id, None)
            if not any(freeze_id in gate._local for gate in self._gates):
                self._writer.lift_local(freeze_id)
            self._show()

    def close(self) -> None:
        """Close the gate for good, for all stores."""
        self._writer.close()

    def _show(self) -> None:
        # Causes of a single store are listed with the flags', so that they outlive another store's release of them.
        causes = merge(*(gate._freezes for gate in self._gates), *(gate._local.values() for gate in self._gates))
        self._writer.update(
            causes, epoch=sum(gate._epoch for gate in self._gates), permit_deadline_ns=self._deadline_ns()
        )

    def _deadline_ns(self) -> int:
        return min(gate._permit_deadline_ns for gate in self._gates)


def gates_per_store(writer: GateWriter, count: int) -> list[GatePage]:
    """Split the page among ``count`` stores; a single store has it to itself."""
    if count == 1:
        return [writer]
    gates: list[StoreGate] = []
    lock = threading.Lock()
    gates.extend(StoreGate(writer, gates, lock) for _ in range(count))
    return list(gates)

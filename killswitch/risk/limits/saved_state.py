"""A risk monitor over a restart: its state as JSON values, written and read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from killswitch.risk.events import FreezeEvent
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.limits.process_freeze import ProcessFreeze
from killswitch.risk.limits.worst_case_exposure import WorstCaseExposure
from killswitch.risk.order_inputs import finite_number, text_or_none

PERSIST_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """One consistent moment of a monitor. Names as in the monitor; a position is its exact quantity and its price."""

    frozen: bool
    blocks_total: int
    freezes_total: int
    last_freeze_reason: str | None
    last_freeze_symbol: str | None
    positions: Mapping[str, tuple[Decimal, float]]
    freeze_events: Sequence[FreezeEvent]
    bad_fills: Sequence[Mapping[str, Any]]
    working_orders: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(
        cls,
        freeze: ProcessFreeze,
        book: WorstCaseExposure,
        blocks_total: int,
        bad_fills: Iterable[Mapping[str, Any]],
    ) -> SavedState:
        """Take the state of the parts of a monitor; the lock is held, and the book is booked."""
        return cls(
            frozen=freeze.in_force,
            blocks_total=blocks_total,
            freezes_total=freeze.count,
            last_freeze_reason=freeze.last_reason,
            last_freeze_symbol=freeze.last_symbol,
            positions={symbol: (held.exact_quantity, held.price) for symbol, held in book.held.items()},
            freeze_events=list(freeze.events),
            bad_fills=list(bad_fills),
            working_orders=book.working.to_json(),
        )

    def put_back(self, freeze: ProcessFreeze, book: WorstCaseExposure, bad_fills: deque[Mapping[str, Any]]) -> None:
        """Freeze as it says, never less than now, and hold what it says. The lock is held."""
        freeze.take_over(
            frozen=self.frozen,
            count=self.freezes_total,
            last_reason=self.last_freeze_reason,
            last_symbol=self.last_freeze_symbol,
            events=self.freeze_events,
        )
        bad_fills.clear()
        bad_fills.extend(self.bad_fills)
        book.clear_positions()
        for symbol, (quantity, price) in self.positions.items():
            book.replace_position(symbol, quantity, price)

    def to_json(self, limits: RiskLimits) -> dict[str, Any]:
        """Return it as JSON values. The limits are there to be read by people; they are not read back."""
        return {
            "v": PERSIST_VERSION,
            "limits": limits.model_dump(),
            "state": {
                "frozen": self.frozen,
                "blocks_total": self.blocks_total,
                "freezes_total": self.freezes_total,
                "last_freeze_reason": self.last_freeze_reason,
                "last_freeze_symbol": self.last_freeze_symbol,
            },
            "positions": {
                symbol: {"quantity": str(quantity), "price_usd": price}
                for symbol, (quantity, price) in self.positions.items()
            },
            "freeze_events": [event.to_json() for event in self.freeze_events],
            "bad_fills": [dict(fill) for fill in self.bad_fills],
            "working_orders": {name: dict(order) for name, order in self.working_orders.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SavedState:
        """Read what :meth:`to_json` returned. Anything but a clear ``false`` reads as frozen.

        Raises:
            Exception: whatever Python raises for what is missing or of another kind.
        """
        if data["v"] != PERSIST_VERSION:
            raise ValueError(f"version {data['v']!r} is not {PERSIST_VERSION}")
        state = data["state"]
        return cls(
            positions={str(name): _read_position(raw) for name, raw in data["positions"].items()},
            freeze_events=[FreezeEvent(**raw) for raw in data["freeze_events"]],
            bad_fills=[dict(fill) for fill in data["bad_fills"]],
            # States from before there were reservations have none.
            working_orders={str(name): dict(raw) for name, raw in data.get("working_orders", {}).items()},
            blocks_total=int(state["blocks_total"]),
            freezes_total=int(state["freezes_total"]),
            last_freeze_reason=text_or_none(state["last_freeze_reason"]),
            last_freeze_symbol=text_or_none(state["last_freeze_symbol"]),
            frozen=state["frozen"] is not False,
        )


def _read_position(raw: Mapping[str, Any]) -> tuple[Decimal, float]:
    quantity, price = Decimal(raw["quantity"]), finite_number(raw["price_usd"])
    if not quantity.is_finite() or price is None or price <= 0.0:
        raise ValueError(f"a position is {raw!r}")
    return quantity, price

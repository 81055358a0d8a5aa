"""The exchange of the simulated venue: orders, matching, and the record of every message. It knows no sockets.

:mod:`killswitch.simulation.venue` carries it over connections, and describes the lines.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from killswitch.clock import now_ns, wall_now

OPEN_ORDERS_PER_OWNER_MAX = 1_000
BOOK_SIDE_MAX = 10_000
NAME_MAX_CHARS = 64

Reply = tuple[str, str, dict[str, Any]]
"""Owner that it goes to, type of the line, its body."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a message reached the venue: on the clock of deadlines, and for people."""

    at_ns: int
    at: str

    @classmethod
    def now(cls) -> Arrival:
        """The present instant on both clocks."""
        return cls(now_ns(), wall_now())


@dataclass(frozen=True, slots=True)
class Resting:
    """An order in the book; quantity in units of the symbol, price in USD."""

    owner: str
    client_order_id: str
    sequence: int | None
    symbol: str
    side: str
    qty: float
    price: float

    def to_json(self) -> dict[str, Any]:
        """Return the order as it is told to its owner and written to the record."""
        return {
            "client_order_id": self.client_order_id,
            "sequence": self.sequence,
            "symbol": self.symbol,
            "side": self.side,
            "qty": self.qty,
            "price": self.price,
        }


@dataclass(slots=True)
class OwnerRecord:
    """What the venue knows of one owner, over all its sessions; ``last_sequence`` is of its newest instance."""

    instance: str | None = None
    last_sequence: int | None = None
    last_accepted: Arrival | None = None
    seen_ids: set[str] = field(default_factory=set)
    open: dict[str, Resting] = field(default_factory=dict)


class Record:
    """The venue's own record: one JSON line per message, flushed at once, and what is counted from it."""

    def __init__(self, path: Path) -> None:
        """Open the file; lines are only ever appended."""
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._arrivals: list[tuple[Arrival, str, str]] = []
        self._lines = 0

    def write(self, kind: str, arrival: Arrival, owner: str, body: Mapping[str, Any]) -> None:
        """Append one line. A number that is not finite is written as JSON's readers in Python spell it, ``NaN``."""
        self._lines += 1
        line = {"n": self._lines, "kind": kind, "at_ns": arrival.at_ns, "at": arrival.at, "owner": owner, **body}
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()
        self._arrivals.append((arrival, kind, owner))

    def counts(self, within: Callable[[Arrival], bool]) -> tuple[Counter[str], Counter[str]]:
        """Count the messages that arrived within a window: all by kind, and accepted orders by owner."""
        kinds: Counter[str] = Counter()
        accepted: Counter[str] = Counter()
        for arrival, kind, owner in self._arrivals:
            if within(arrival):
                kinds[kind] += 1
                if kind == "accepted":
                    accepted[owner] += 1
        return kinds, accepted

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Exchange:
    """Orders and matching, without sockets: each call returns what is to be said to whom."""

    def __init__(self, record: Record) -> None:
        """Start with an empty book and no price."""
        self._record = record
        self._owners: dict[str, OwnerRecord] = {}
        self._bids: dict[str, list[tuple[float, int, Resting]]] = {}
        self._asks: dict[str, list[tuple[float, int, Resting]]] = {}
        self._placed = 0
        self.prices_usd: Mapping[str, float] = {}
        self.sequence_faults = 0
        self.duplicates = 0

    @property
    def owners(self) -> Mapping[str, OwnerRecord]:
        """Every owner that ever logged on."""
        return self._owners

    def owner(self, name: str) -> OwnerRecord:
        """The record of an owner, made on first use."""
        return self._owners.setdefault(name, OwnerRecord())

    def log_on(self, name: str, instance: str | None) -> None:
        """Make an owner known; another instance than the one before numbers its orders anew."""
        known = self.owner(name)
        if instance is None or instance != known.instance:
            known.instance, known.last_sequence = instance, None

    def place(self, owner: str, body: Mapping[str, Any], arrival: Arrival) -> list[Reply]:
        """Take an order in, or say why not. An order that crosses the price is filled at the price at once."""
        known = self.owner(owner)
        names = ("client_order_id", "sequence", "symbol", "side", "qty", "price")
        told: dict[str, Any] = {name: body.get(name) for name in names}
        self._record.write("placed", arrival, owner, told)
        reason = self._why_rejected(known, told)
        if reason is not None:
            self._record.write("rejected", arrival, owner, {**told, "reason": reason})
            named = told["client_order_id"] if isinstance(told["client_order_id"], str) else None
            return [(owner, "rejected", {"client_order_id": named, "reason": reason})]
        order = Resting(
            owner,
            str(told["client_order_id"]),
            told["sequence"],
            str(told["symbol"]),
            str(told["side"]),
            float(told["qty"]),
            float(told["price"]),
        )
        known.seen_ids.add(order.client_order_id)
        known.open[order.client_order_id] = order
        known.last_accepted = arrival
        self._record.write("accepted", arrival, owner, order.to_json())
        self._rest(order)
        accepted: Reply = (owner, "accepted", {"client_order_id": order.client_order_id})
        return [accepted, *self._match(order.symbol, arrival)]

    def cancel(self, owner: str, body: Mapping[str, Any], arrival: Arrival) -> list[Reply]:
        """Take an order out of the book, or say that it is not there."""
        client_order_id = str(body.get("client_order_id"))
        order = self.owner(owner).open.pop(client_order_id, None)
        if order is None:
            reason = "there is no such working order"
            self._record.write("cancel_rejected", arrival, owner, {"client_order_id": client_order_id})
            return [(owner, "cancel_rejected", {"client_order_id": client_order_id, "reason": reason})]
        self._record.write("cancelled", arrival, owner, order.to_json())
        return [(owner, "cancelled", {"client_order_id": client_order_id})]

    def cancel_all(self, owner: str, arrival: Arrival) -> list[Reply]:
        """Take every order of an owner out of the book."""
        replies: list[Reply] = []
        for client_order_id in list(self.owner(owner).open):
            replies.extend(self.cancel(owner, {"client_order_id": client_order_id}, arrival))
        return replies

    def trade(self, prices_usd: Mapping[str, float], arrival: Arrival) -> list[Reply]:
        """Move the tape by one tick and fill what it crosses."""
        self.prices_usd = prices_usd
        replies: list[Reply] = []
        for symbol in prices_usd:
            replies.extend(self._match(symbol, arrival))
        return replies

    def _why_rejected(self, known: OwnerRecord, told: Mapping[str, Any]) -> str | None:
        client_order_id, sequence = told["client_order_id"], told["sequence"]
        if not isinstance(client_order_id, str) or not 0 < len(client_order_id) <= NAME_MAX_CHARS:
            return f"client_order_id must be a text of 1 to {NAME_MAX_CHARS} characters"
        if client_order_id in known.seen_ids:
            self.duplicates += 1
            return f"client_order_id {client_order_id!r} was used before"
        if sequence is not None:
            if isinstance(sequence, bool) or not isinstance(sequence, int) or sequence < 0:
                return "sequence must be a whole number of at least 0"
            if known.last_sequence is not None and sequence <= known.last_sequence:
                self.sequence_faults += 1
            known.last_sequence = max(sequence, known.last_sequence or 0)
        if not isinstance(told["symbol"], str) or told["symbol"] not in self.prices_usd:
            return f"{told['symbol']!r} is not traded here, or the tape has not begun"
        if told["side"] not in ("buy", "sell"):
            return f"side is {told['side']!r}; it must be buy or sell"
        for name in ("qty", "price"):
            if not is_positive(told[name]):
                return f"{name} is {told[name]!r}; it must be a finite number greater than 0"
        if len(known.open) >= OPEN_ORDERS_PER_OWNER_MAX:
            return f"{OPEN_ORDERS_PER_OWNER_MAX} orders are working already; cancel some first"
        return None

    def _rest(self, order: Resting) -> None:
        self._placed += 1
        side, key = (self._bids, -order.price) if order.side == "buy" else (self._asks, order.price)
        heap = side.setdefault(order.symbol, [])
        heapq.heappush(heap, (key, self._placed, order))
        if len(heap) > BOOK_SIDE_MAX:
            # Cancelled orders stay in the heap until the price passes them; far from the price that is never.
            heap[:] = [item for item in heap if self._owners[item[2].owner].open.get(item[2].client_order_id)]
            heapq.heapify(heap)

    def _match(self, symbol: str, arrival: Arrival) -> list[Reply]:
        """Fill every order of a symbol that the last price crosses; orders cancelled meanwhile fall out on the way."""
        price = self.prices_usd[symbol]
        replies: list[Reply] = []
        for heap, reach in ((self._bids.get(symbol, []), -price), (self._asks.get(symbol, []), price)):
            while heap and heap[0][0] <= reach:
                order = heapq.heappop(heap)[2]
                if self._owners[order.owner].open.pop(order.client_order_id, None) is None:
                    continue
                body = order.to_json()
                self._record.write("filled", arrival, order.owner, body)
                replies.append((order.owner, "filled", body))
        return replies


def is_positive(value: Any) -> bool:
    """True for a finite number greater than 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value > 0
    except OverflowError:  # a whole number beyond what a float can hold
        return False

"""A simulated venue in a process of its own: it matches orders against a price tape, and it is the judge.

What an order router says that it did proves nothing. This venue keeps its own record of every message with the time at
which it arrived, and answers an operator's questions from that record. It listens on the loopback interface only.

Lines are those of :mod:`killswitch.link.messages` (``{"v": 1, "type": ..., ...}``). From a router::

    logon        owner, instance                            before all else; a newer session replaces an older
    place        client_order_id, sequence, symbol, side, qty, price
    cancel       client_order_id
    cancel_all   request
    open_orders  request

To a router::

    welcome      owner, prices_usd
    ticks        prices_usd                                 newest price of every symbol, at most every 20 ms
    accepted     client_order_id
    rejected     client_order_id, reason
    filled       client_order_id, symbol, side, qty, price  always the whole order
    cancelled    client_order_id
    cancel_rejected  client_order_id, reason
    cancel_all_done  request, cancelled
    open_orders  request, orders
    error        reason                                     the line meant nothing to the venue

From an operator (``operator`` first): ``start`` plays the tape, ``go_on`` lets it leave its calm part, ``summary``
with any of ``since_ns``, ``until_ns``, ``since_wall``, ``until_wall`` asks the record. Each is answered with its
``request``.

Orders do not end with the session that placed them: a router that dies leaves its orders working, as on most venues.
Sequence numbers may begin again with a new ``instance`` of an owner, and must grow within one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import heapq
import json
import math
import selectors
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from agents.scenarios import tape
from killswitch.clock import now_ns, wall_now
from killswitch.link.messages import LINE_MAX_BYTES, BadLine, decode, encode

HOST = "127.0.0.1"
PUSH_EVERY_NS = 20_000_000
TICKS_PER_TURN_MAX = 500
"""Most ticks played in one turn: after a pause of the process the tape goes on, it does not jump."""

OPEN_ORDERS_PER_OWNER_MAX = 1_000
BOOK_SIDE_MAX = 10_000
TICKS_BACKLOG_MAX_BYTES = 64 * 1024
"""A session that reads slower than this gets no more ticks until it has caught up; its orders' events still go out."""

BACKLOG_MAX_BYTES = 4 * 1024 * 1024
NAME_MAX_CHARS = 64
RECEIVE_BYTES = 64 * 1024
REQUEST_TIMEOUT_S = 5.0

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
            if not _is_positive(told[name]):
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


@dataclass(slots=True, eq=False)
class Session:
    """One connection: a router's once it has logged on, or an operator's."""

    connection: socket.socket
    owner: str | None = None
    is_operator: bool = False
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)


class VenueServer:
    """Carries the exchange over sockets, in one thread: :meth:`serve` runs until :meth:`stop`.

    Args:
        ticks: the tape.
        seed: for the noise while the tape holds.
        record_path: where the venue's record goes.
        ticks_per_second: pace of the tape, with the speed-up in it.
        port: 0 picks a free one.
    """

    def __init__(
        self, ticks: Sequence[tape.Tick], *, seed: int, record_path: Path, ticks_per_second: float, port: int = 0
    ) -> None:
        if not _is_positive(ticks_per_second):
            raise ValueError(f"the pace of the tape is {ticks_per_second} ticks a second; it must be greater than 0")
        self._player = tape.TapePlayer(ticks, seed=seed)
        self._ticks_per_second = ticks_per_second
        self._record = Record(record_path)
        self._exchange = Exchange(self._record)
        self._selector = selectors.DefaultSelector()
        self._sessions: set[Session] = set()
        self._by_owner: dict[str, Session] = {}
        self._stopping = threading.Event()
        self._started = False
        self._last_tick: tape.Tick | None = None
        self._credit = 0.0
        self._played_at_ns = now_ns()
        self._listener = socket.create_server((HOST, port), backlog=64)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    def stop(self) -> None:
        """Ask :meth:`serve` to return; from any thread or a signal handler."""
        self._stopping.set()

    def serve(self) -> None:
        """Serve until stopped, then close every connection and the record."""
        try:
            while not self._stopping.is_set():
                wait_ns = self._played_at_ns + PUSH_EVERY_NS - now_ns()
                for key, events in self._selector.select(max(0.0, wait_ns / 1e9)):
                    if key.data is None:
                        self._accept()
                    else:
                        self._attend(key.data, events)
                if now_ns() - self._played_at_ns >= PUSH_EVERY_NS:
                    self._play()
        finally:
            for session in list(self._sessions):
                self._drop(session)
            self._selector.close()
            self._listener.close()
            self._record.close()

    # -- the tape ------------------------------------------------------------------------------------------------

    def _play(self) -> None:
        """Play the ticks that are due and push the newest prices to every router."""
        at_ns = now_ns()
        elapsed_s, self._played_at_ns = (at_ns - self._played_at_ns) / 1e9, at_ns
        if not self._started:
            return
        self._credit = min(self._credit + elapsed_s * self._ticks_per_second, float(TICKS_PER_TURN_MAX))
        # While the tape holds, one tick of noise for each push is enough to quote on.
        due = 1 if self._player.holding else int(self._credit)
        self._credit = 0.0 if self._player.holding else self._credit - due
        arrival = Arrival.now()
        for _ in range(due):
            self._last_tick = self._player.next_tick()
            self._send_all(self._exchange.trade(self._last_tick.prices_usd, arrival))
            if self._player.holding:
                break
        if due:
            line = encode("ticks", prices_usd=dict(self._exchange.prices_usd))
            for session in list(self._by_owner.values()):
                if len(session.outbox) < TICKS_BACKLOG_MAX_BYTES:
                    self._send(session, line)

    # -- sockets -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = Session(connection)
            self._sessions.add(session)
            self._selector.register(connection, selectors.EVENT_READ, session)

    def _attend(self, session: Session, events: int) -> None:
        """Write what waits, then read what came; the arrival time is taken when the bytes are read."""
        if events & selectors.EVENT_WRITE:
            self._flush(session)
        if not events & selectors.EVENT_READ or session not in self._sessions:
            return
        try:
            received = session.connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._drop(session)
            return
        arrival = Arrival.now()
        session.inbox += received
        *lines, rest = session.inbox.split(b"\n")
        session.inbox = rest
        for line in lines:
            if session in self._sessions:
                self._hear(session, bytes(line), arrival)
        if len(session.inbox) > LINE_MAX_BYTES:
            self._drop(session)

    def _send_all(self, replies: Iterable[Reply]) -> None:
        for owner, kind, body in replies:
            session = self._by_owner.get(owner)
            if session is not None:
                self._send(session, encode(kind, **body))

    def _send(self, session: Session, line: bytes) -> None:
        idle = not session.outbox
        session.outbox += line
        if len(session.outbox) > BACKLOG_MAX_BYTES:
            self._drop(session)
        elif idle:
            self._flush(session)

    def _flush(self, session: Session) -> None:
        try:
            sent = session.connection.send(session.outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(session)
            return
        del session.outbox[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if session.outbox else 0)
        self._selector.modify(session.connection, events, session)

    def _drop(self, session: Session) -> None:
        """Close a connection. Its orders stay in the book."""
        if session not in self._sessions:
            return
        self._sessions.discard(session)
        if session.owner is not None and self._by_owner.get(session.owner) is session:
            del self._by_owner[session.owner]
        self._selector.unregister(session.connection)
        session.connection.close()

    # -- what is said --------------------------------------------------------------------------------------------

    def _hear(self, session: Session, line: bytes, arrival: Arrival) -> None:
        try:
            # Numbers that are not finite are let in here, so that the order can be refused by its name.
            body = json.loads(line) if b'"place"' in line else decode(line)[1]
        except (BadLine, ValueError, RecursionError) as error:
            self._send(session, encode("error", reason=str(error)))
            return
        kind = body.get("type") if isinstance(body, dict) else None
        if session.is_operator:
            self._hear_operator(session, kind, body)
        elif session.owner is not None:
            self._hear_router(session, session.owner, kind, body, arrival)
        else:
            self._introduce(session, kind, body)

    def _introduce(self, session: Session, kind: str | None, body: Mapping[str, Any]) -> None:
        owner = body.get("owner") if kind == "logon" else None
        if kind == "operator":
            session.is_operator = True
            self._send(session, encode("welcome", request=body.get("request")))
        elif isinstance(owner, str) and 0 < len(owner) <= NAME_MAX_CHARS:
            older = self._by_owner.get(owner)
            if older is not None:
                self._drop(older)
            session.owner = owner
            self._by_owner[owner] = session
            self._exchange.log_on(owner, body.get("instance"))
            self._send(session, encode("welcome", owner=owner, prices_usd=dict(self._exchange.prices_usd)))
        else:
            self._send(session, encode("error", reason="the first line must be logon with an owner, or operator"))

    def _hear_router(
        self, session: Session, owner: str, kind: str | None, body: Mapping[str, Any], arrival: Arrival
    ) -> None:
        request = body.get("request")
        if kind == "place":
            self._send_all(self._exchange.place(owner, body, arrival))
        elif kind == "cancel":
            self._send_all(self._exchange.cancel(owner, body, arrival))
        elif kind == "cancel_all":
            replies = self._exchange.cancel_all(owner, arrival)
            self._send_all([*replies, (owner, "cancel_all_done", {"request": request, "cancelled": len(replies)})])
        elif kind == "open_orders":
            orders = [order.to_json() for order in self._exchange.owner(owner).open.values()]
            self._send(session, encode("open_orders", request=request, orders=orders))
        else:
            self._send(session, encode("error", reason=f"there is no message {kind!r} for routers"))

    def _hear_operator(self, session: Session, kind: str | None, body: Mapping[str, Any]) -> None:
        answer: dict[str, Any] = {"request": body.get("request")}
        if kind == "start":
            self._started = True
        elif kind == "go_on":
            self._player.go_on()
        elif kind == "summary":
            try:
                answer |= self._summary(body)
            except (TypeError, ValueError) as error:
                answer["reason"] = f"the window cannot be read: {error}"
                kind = "error"
        else:
            answer["reason"] = f"there is no message {kind!r} for operators"
            kind = "error"
        self._send(session, encode(kind, **answer))

    def _summary(self, window: Mapping[str, Any]) -> dict[str, Any]:
        exchange, at = self._exchange, Arrival.now()
        kinds, accepted = self._record.counts(_window(window))
        newest = max(
            (owner.last_accepted for owner in exchange.owners.values() if owner.last_accepted),
            key=lambda arrival: arrival.at_ns,
            default=None,
        )
        return {
            "at": at.at,
            "at_ns": at.at_ns,
            **{kind: kinds[kind] for kind in ("placed", "accepted", "rejected", "filled", "cancelled")},
            "last_accepted_at": newest.at if newest else None,
            "last_accepted_at_ns": newest.at_ns if newest else None,
            "open_orders": sum(len(owner.open) for owner in exchange.owners.values()),
            "sequence_faults": exchange.sequence_faults,
            "duplicates": exchange.duplicates,
            "owners": {
                name: {
                    "accepted": accepted[name],
                    "open": len(owner.open),
                    "last_sequence": owner.last_sequence,
                    "last_accepted_at": owner.last_accepted.at if owner.last_accepted else None,
                    "last_accepted_at_ns": owner.last_accepted.at_ns if owner.last_accepted else None,
                    "connected": name in self._by_owner,
                }
                for name, owner in sorted(exchange.owners.items())
            },
            "tape": {
                "started": self._started,
                "holding": self._player.holding,
                "ended": self._player.ended,
                "played": self._player.played,
                "length": self._player.length,
                "part": self._last_tick.part if self._last_tick else None,
                "label": self._last_tick.label if self._last_tick else None,
                "prices_usd": dict(exchange.prices_usd),
            },
        }


class VenueFault(Exception):  # noqa: N818 - the venue's answer, not a defect of this program
    """The venue did not answer an operator, or refused; the message says what."""


class VenueOperator:
    """An operator's connection: starts the tape and asks the record. One request at a time, from any thread."""

    def __init__(self, host: str, port: int, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Connect and introduce itself.

        Raises:
            VenueFault: nobody answers there.
        """
        self._lock = threading.Lock()
        self._requests = 0
        try:
            self._connection = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            raise VenueFault(f"the venue at {host}:{port} does not answer: {error}") from error
        self._lines = self._connection.makefile("rb")
        self._ask("operator")

    def start(self) -> None:
        """Play the tape; it stays in its calm part until :meth:`go_on`."""
        self._ask("start")

    def go_on(self) -> None:
        """Let the tape leave its calm part."""
        self._ask("go_on")

    def summary(
        self,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        since_wall: str | None = None,
        until_wall: str | None = None,
    ) -> dict[str, Any]:
        """What the record says; counts are of messages that arrived after ``since`` and before ``until``."""
        return self._ask("summary", since_ns=since_ns, until_ns=until_ns, since_wall=since_wall, until_wall=until_wall)

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._connection.close()

    def _ask(self, kind: str, **body: Any) -> dict[str, Any]:
        with self._lock:
            self._requests += 1
            try:
                self._connection.sendall(encode(kind, request=self._requests, **body))
                line = self._lines.readline(LINE_MAX_BYTES + 1)
                answered, answer = decode(line)
            except (OSError, BadLine) as error:
                raise VenueFault(f"the venue did not answer {kind!r}: {error}") from error
        if answered == "error" or answer.get("request") != self._requests:
            raise VenueFault(f"the venue refused {kind!r}: {answer.get('reason', 'it answered another request')}")
        return answer


def _is_positive(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value > 0
    except OverflowError:  # a whole number beyond what a float can hold
        return False


def _instant(text: str) -> dt.datetime:
    instant = dt.datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return instant


def _window(body: Mapping[str, Any]) -> Callable[[Arrival], bool]:
    """Return whether an arrival lies strictly between the bounds that are given."""
    since_ns, until_ns = body.get("since_ns"), body.get("until_ns")
    since, until = (_instant(body[name]) if body.get(name) else None for name in ("since_wall", "until_wall"))

    def within(arrival: Arrival) -> bool:
        if since_ns is not None and arrival.at_ns <= since_ns:
            return False
        if until_ns is not None and arrival.at_ns >= until_ns:
            return False
        if since is None and until is None:
            return True
        at = _instant(arrival.at)
        return (since is None or at > since) and (until is None or at < until)

    return within


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a venue until SIGTERM. The first line on stdout is JSON: the address, once it listens."""
    parser = argparse.ArgumentParser(prog="python -m agents.scenarios.venue", description=main.__doc__)
    parser.add_argument("--record", type=Path, required=True, help="file that the venue's record is appended to")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic tape and of the noise")
    parser.add_argument("--bars", type=Path, help="one-minute bars to play instead of the synthetic tape")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster than normal the tape plays")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free port")
    options = parser.parse_args(arguments)
    try:
        if options.bars is None:
            ticks, pace = tape.synthetic_tape(options.seed), tape.SYNTHETIC_TICKS_PER_SECOND
        else:
            ticks = tape.ticks_from_bars(tape.bars_from_csv(options.bars))
            pace = tape.BARS_PER_SECOND * tape.TICKS_PER_BAR
        server = VenueServer(
            ticks,
            seed=options.seed,
            record_path=options.record,
            ticks_per_second=pace * options.speed,
            port=options.port,
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"venue: {error}\n")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    sys.stdout.write(json.dumps({"host": HOST, "port": server.port, "record": str(options.record)}) + "\n")
    sys.stdout.flush()
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())

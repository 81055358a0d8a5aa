"""A simulated venue in a process of its own: it matches orders against a price tape, and it is the judge.

What an order router says that it did proves nothing. This venue keeps its own record of every message with the time at
which it arrived, and answers an operator's questions from that record. It listens on the loopback interface unless
told otherwise: whoever reaches it may trade and ask.

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
import json
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killswitch.clock import now_ns
from killswitch.link.messages import LINE_MAX_BYTES, BadLine, decode, encode
from killswitch.simulation import tape
from killswitch.simulation.exchange import NAME_MAX_CHARS, Arrival, Exchange, Record, Reply, is_positive

HOST = "127.0.0.1"
PUSH_EVERY_NS = 20_000_000
TICKS_PER_TURN_MAX = 500
"""Most ticks played in one turn: after a pause of the process the tape goes on, it does not jump."""

TICKS_BACKLOG_MAX_BYTES = 64 * 1024
"""A session that reads slower than this gets no more ticks until it has caught up; its orders' events still go out."""

BACKLOG_MAX_BYTES = 4 * 1024 * 1024
RECEIVE_BYTES = 64 * 1024


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
        host: address that it listens on.
    """

    def __init__(
        self,
        ticks: Sequence[tape.Tick],
        *,
        seed: int,
        record_path: Path,
        ticks_per_second: float,
        port: int = 0,
        host: str = HOST,
    ) -> None:
        if not is_positive(ticks_per_second):
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
        self._listener = socket.create_server((host, port), backlog=64)
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
    parser = argparse.ArgumentParser(prog="python -m killswitch.simulation.venue", description=main.__doc__)
    parser.add_argument("--record", type=Path, required=True, help="file that the venue's record is appended to")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic tape and of the noise")
    parser.add_argument("--bars", type=Path, help="one-minute bars to play instead of the synthetic tape")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster than normal the tape plays")
    parser.add_argument("--host", default=HOST, help="address to listen on")
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
            host=options.host,
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"venue: {error}\n")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    sys.stdout.write(json.dumps({"host": options.host, "port": server.port, "record": str(options.record)}) + "\n")
    sys.stdout.flush()
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The clients of the simulated venue (:mod:`killswitch.simulation.venue`), which is where its lines are described.

A router's: one connection, one thread that reads it. Orders and cancels are written by whichever thread asks. What the
venue says of orders goes to the order router, prices go to the trading program. A connection that is lost stays lost:
what happened to the orders meanwhile is then not known, so the program ends, and the next one asks the venue what is
open. An operator's starts the tape and asks the record.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from killswitch.link.messages import LINE_MAX_BYTES, BadLine, decode, encode
from killswitch.routing.order_types import Order, OrderRejected, VenueEvent, VenueEventKind

SEND_TIMEOUT_S = 2
REQUEST_TIMEOUT_S = 5.0
CONNECT_RETRY_S = 0.05

_KINDS: Mapping[str, VenueEventKind] = {
    "accepted": VenueEventKind.ACK,
    "filled": VenueEventKind.FILL,
    "cancelled": VenueEventKind.CANCELED,
    "rejected": VenueEventKind.REJECTED,
    "cancel_rejected": VenueEventKind.CANCEL_REJECTED,
}

_log = structlog.get_logger("killswitch.venue_client")


class VenueDisconnected(ConnectionError):
    """There is no connection to the venue, or it broke; the message says where."""


class SimulatedVenueClient:
    """A session at the simulated venue.

    Args:
        host: where the venue listens.
        port: its TCP port.
        owner: whose orders these are; a newer session of the same owner replaces an older one.
        on_event: told what the venue says of orders, on the reading thread.
        on_prices: told the newest prices in USD by symbol, on the reading thread.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        owner: str,
        on_event: Callable[[VenueEvent], None],
        on_prices: Callable[[Mapping[str, float]], None],
    ) -> None:
        self._address = (host, port)
        self._owner = owner
        self._on_event = on_event
        self._on_prices = on_prices
        self._socket: socket.socket | None = None
        self._write_lock = threading.Lock()
        self._answered = threading.Condition()
        self._answers: dict[int, Mapping[str, Any]] = {}
        self._requests = 0
        self._reader: threading.Thread | None = None
        self._lost = threading.Event()

    @property
    def lost(self) -> bool:
        """True when there was a connection and it is gone."""
        return self._lost.is_set()

    def connect(self, *, within_s: float) -> None:
        """Connect, trying again for ``within_s`` seconds, and log on.

        Raises:
            VenueDisconnected: nobody answered in that time.
        """
        give_up_at_s = time.monotonic() + within_s
        while True:
            try:
                connection = socket.create_connection(self._address, timeout=SEND_TIMEOUT_S)
                break
            except OSError as error:
                if time.monotonic() >= give_up_at_s:
                    raise self._disconnected(f"does not answer: {error}") from error
                time.sleep(CONNECT_RETRY_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        # Reads wait for ever, writes do not: a venue that hangs must not hold up the next cancel for ever.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self._socket = connection
        self._reader = threading.Thread(target=self._read, args=(connection,), name="venue-reader", daemon=True)
        self._reader.start()
        self._write(encode("logon", owner=self._owner, instance=secrets.token_hex(8)))

    def place(self, order: Order) -> None:
        """Hand an order over.

        Raises:
            OrderRejected: there is no connection, so it was not sent.
            VenueDisconnected: the connection broke while it was being sent; it may have arrived.
        """
        line = encode(
            "place",
            client_order_id=order.client_order_id,
            sequence=order.sequence,
            symbol=order.symbol,
            side=order.side,
            qty=order.qty,
            price=order.price,
        )
        if self._socket is None or self.lost:
            raise OrderRejected("there is no connection to the venue")
        self._write(line)

    def cancel(self, client_order_id: str) -> None:
        """Ask for an order to be cancelled.

        Raises:
            VenueDisconnected: the request could not be sent.
        """
        self._write(encode("cancel", client_order_id=client_order_id))

    def cancel_all(self) -> int:
        """Have every order of this owner cancelled, whoever placed it, and return how many were.

        Raises:
            VenueDisconnected: no answer.
        """
        return int(self._ask("cancel_all")["cancelled"])

    def open_orders(self) -> list[dict[str, Any]]:
        """What the venue holds for this owner, whoever placed it.

        Raises:
            VenueDisconnected: no answer.
        """
        return list(self._ask("open_orders")["orders"])

    def close(self) -> None:
        """Close the connection. Orders stay at the venue. Safe to call twice."""
        connection, self._socket = self._socket, None
        if connection is None:
            return
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(SEND_TIMEOUT_S)
        connection.close()

    def _ask(self, kind: str) -> Mapping[str, Any]:
        """Send a request and wait for its answer. Never on the reading thread, which would wait for itself."""
        with self._answered:
            self._requests += 1
            request = self._requests
        self._write(encode(kind, request=request))
        with self._answered:
            self._answered.wait_for(lambda: request in self._answers or self.lost, REQUEST_TIMEOUT_S)
            answer = self._answers.pop(request, None)
        if answer is None:
            raise self._disconnected(f"did not answer {kind!r}")
        return answer

    def _write(self, line: bytes) -> None:
        with self._write_lock:
            connection = self._socket
            if connection is None:
                raise self._disconnected("is not connected")
            try:
                connection.sendall(line)
            except OSError as error:
                # Half a line may have gone: this connection is of no more use.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                raise self._disconnected(f"took no more: {error}") from error

    def _read(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as lines:
                while line := lines.readline(LINE_MAX_BYTES + 1):
                    self._hear(*decode(line))
        except (OSError, BadLine) as error:
            _log.error("the venue cannot be heard any more", error=str(error))
        except Exception:  # one fault of a callback must end the session, not go unnoticed
            _log.exception("what the venue says cannot be taken in")
        finally:
            self._lost.set()
            with self._answered:
                self._answered.notify_all()

    def _hear(self, kind: str, body: Mapping[str, Any]) -> None:
        order_event = _KINDS.get(kind)
        if order_event is not None:
            self._on_event(
                VenueEvent(
                    kind=order_event,
                    client_order_id=str(body.get("client_order_id")),
                    qty=body.get("qty", 0.0),
                    price=body.get("price", 0.0),
                    reason=str(body.get("reason", "")),
                )
            )
        elif kind == "ticks" or (kind == "welcome" and body.get("prices_usd")):
            self._on_prices(body["prices_usd"])
        elif kind in ("open_orders", "cancel_all_done"):
            with self._answered:
                self._answers[int(body["request"])] = body
                self._answered.notify_all()
        elif kind == "error":
            _log.error("the venue did not understand", reason=body.get("reason"))

    def _disconnected(self, what: str) -> VenueDisconnected:
        host, port = self._address
        return VenueDisconnected(f"the venue at {host}:{port} {what}")


class VenueFault(Exception):
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

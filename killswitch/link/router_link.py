"""The router's half of the link: hear a stop, cancel, answer; say what is held. Standard library only.

Two independent paths lead to a stop, and either suffices: the agent pushes it over the socket, and this link looks at
the gate page itself every few milliseconds. The second needs no agent, so a router whose agent was killed still
cancels what it has working when the permit runs out.

Nothing here blocks the trading thread: reports go through a one-place mailbox, stops are handled on a thread of their
own. The link never raises because the agent is absent; it connects again for ever, with bounded backoff.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from killswitch.clock import now_ns
from killswitch.core.scopes import Scope
from killswitch.gate.layout import GateState
from killswitch.gate.reader import Blocked
from killswitch.link.messages import (
    LINE_MAX_BYTES,
    BadLine,
    CancelResult,
    Exposure,
    Stop,
    StopCause,
    decode,
    encode,
    read_count,
)

log = logging.getLogger(__name__)

BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
SEND_TIMEOUT_S = 1
RETRY_OPEN_S = 0.5
CONTROL_QUEUE_MAX = 64


class GateView(Protocol):
    """What the link needs of a :class:`killswitch.Gate`."""

    @property
    def is_open(self) -> bool:
        """The permit is valid and nothing at all is frozen on this node."""

    def snapshot(self) -> GateState:
        """All that the page says at one moment; raises :class:`killswitch.Blocked` when it cannot be read."""


class RouterLink:
    """Keeps one router in touch with its agent.

    Args:
        path: the agent's Unix socket.
        router: name of this router, unique on its node, at most 64 characters.
        gate: the open gate.
        on_stop: cancels every working order that ``stop.covers(attributes)`` and says how it went. Called on a
            thread of the link, never twice at once, and again every half second while orders are left open.
        on_resume: told the epoch when a release arrives.
        reconciled: True when this process has asked the venue for the orders that an earlier process of this name
            left, so that they are no longer unproven.
        gate_poll_ms: how often the gate page is looked at.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        router: str,
        gate: GateView,
        on_stop: Callable[[Stop], CancelResult],
        on_resume: Callable[[int], None] | None = None,
        reconciled: bool = False,
        gate_poll_ms: int = 20,
    ) -> None:
        self._path = os.fspath(path)
        self._router = router
        self._gate = gate
        self._on_stop = on_stop
        self._on_resume = on_resume
        self._reconciled = reconciled
        self._gate_poll_s = gate_poll_ms / 1000
        self._instance = secrets.token_hex(8)
        self._closing = threading.Event()
        self._connected = threading.Event()
        self._outbox: queue.Queue[bytes] = queue.Queue(CONTROL_QUEUE_MAX)
        self._send_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._report_lock = threading.Lock()
        self._report: Exposure | None = None
        self._last_report: Exposure | None = None
        self._send_due = threading.Event()
        self._pushed_stop: Stop | None = None
        self._wake_stopper = threading.Event()
        self._socket: socket.socket | None = None
        self._cancelled_in_episode = 0
        self._threads = [
            threading.Thread(target=target, name=f"link-{name}-{router}", daemon=True)
            for name, target in (("reader", self._read_for_ever), ("sender", self._send), ("stopper", self._stopper))
        ]

    @property
    def connected(self) -> bool:
        """True while the agent has welcomed this router and the connection stands."""
        return self._connected.is_set()

    def start(self) -> None:
        """Start the threads. The first connection is made in the background."""
        for thread in self._threads:
            thread.start()

    def report(self, exposure: Exposure) -> None:
        """Leave what is held now to be sent; the latest wins, and this never waits."""
        with self._report_lock:
            self._report = self._last_report = exposure
        self._send_due.set()

    def request_freeze(
        self, trigger: str, reason: str, *, scope: str = "", metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Ask the agent to freeze the cluster (ONE VOICE FREEZES); an empty scope leaves it to the agent's setting.

        Raises:
            ValueError: the scope does not exist, or a figure is not finite.
            queue.Full: more than 64 messages wait for an agent that does not take them.
        """
        if scope:
            Scope.parse(scope)
        try:
            line = encode("freeze", trigger=trigger, reason=reason, scope=scope, metadata=dict(metadata or {}))
        except BadLine as error:
            raise ValueError(str(error)) from error
        self._outbox.put_nowait(line)
        self._send_due.set()

    def close(self, *, timeout_s: float = 2.0) -> None:
        """Send the last report, say goodbye and end the threads.

        Cancel first: what was reported last is what stays behind, and the agent counts it as unproven.
        """
        if self._connected.is_set():
            self._send_waiting()
            self._write(encode("bye"))
        self._closing.set()
        self._wake_stopper.set()
        self._send_due.set()
        self._drop_connection()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout_s)

    # -- the connection ------------------------------------------------------------------------------------------

    def _read_for_ever(self) -> None:
        backoff_s = BACKOFF_MIN_S
        while not self._closing.is_set():
            try:
                self._converse()
                backoff_s = BACKOFF_MIN_S
            except (OSError, BadLine) as error:
                log.debug("link to %s: %s", self._path, error)
            except Exception:
                # A callback of the trading program failed; the link goes on, for a stop must always get through.
                log.exception("the link of router %s failed and connects again", self._router)
            self._connected.clear()
            self._drop_connection()
            self._closing.wait(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def _converse(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(SEND_TIMEOUT_S)
            connection.connect(self._path)
            hello = encode(
                "hello",
                router=self._router,
                instance=self._instance,
                pid=os.getpid(),
                reconciled=self._reconciled,
            )
            connection.sendall(hello)
            connection.settimeout(None)
            # Reads wait for ever, writes do not: a suspended agent must not hold up the cancelling.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
            self._socket = connection
            with connection.makefile("rb") as lines:
                while line := lines.readline(LINE_MAX_BYTES + 1):
                    self._hear(*decode(line))
        finally:
            self._socket = None
            connection.close()

    def _hear(self, kind: str, body: Mapping[str, Any]) -> None:
        if kind == "welcome":
            with self._report_lock:
                # An agent that has started anew may know nothing: a router that reports changes only would hold 0 USD.
                self._report = self._report or self._last_report
            self._connected.set()
            self._send_due.set()
        elif kind == "refused":
            log.error("the agent at %s refuses router %s: %s", self._path, self._router, body.get("reason"))
        elif kind == "stop":
            self._pushed_stop = self._read_stop(body)
            self._wake_stopper.set()
        elif kind == "resume" and self._on_resume is not None:
            self._on_resume(read_count(body, "epoch"))

    def _read_stop(self, body: Mapping[str, Any]) -> Stop:
        epoch = read_count(body, "epoch")
        try:
            causes = tuple(StopCause.from_wire(cause) for cause in body["causes"])
        except (BadLine, KeyError, TypeError) as error:
            # A stop that cannot be read in full stops everything: UNKNOWN IS FROZEN.
            log.error("a stop from %s is not readable and is taken as a stop of everything: %s", self._path, error)
            return Stop(epoch, (), permit_expired=True)
        return Stop(epoch, causes)

    def _drop_connection(self) -> None:
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _send(self) -> None:
        while not self._closing.is_set():
            self._send_due.wait()
            self._send_due.clear()
            if self._connected.is_set():
                self._send_waiting()

    def _send_waiting(self) -> None:
        """Send the latest report and all that waits; what cannot be sent waits for the next connection.

        When this returns, what was left to be sent before it was called is on its way: the goodbye relies on that.
        """
        with self._send_lock:
            self._send_in_order()

    def _send_in_order(self) -> None:
        with self._report_lock:
            report, self._report = self._report, None
        if report is not None and not self._write_report(report):
            with self._report_lock:
                if self._report is None:
                    self._report = report
            return
        while True:
            try:
                line = self._outbox.get_nowait()
            except queue.Empty:
                return
            if not self._write(line):
                self._keep(line)
                return

    def _keep(self, line: bytes) -> None:
        try:
            self._outbox.put_nowait(line)
        except queue.Full:
            log.error("router %s has %d messages that its agent does not take; one is dropped", self._router,
                      CONTROL_QUEUE_MAX)  # fmt: skip

    def _write_report(self, report: Exposure) -> bool:
        try:
            return self._write(encode("exposure", **report.to_wire()))
        except BadLine as error:
            # The book itself holds a number that is not finite. The agent must know, and it freezes for it.
            log.critical("router %s cannot report its exposure: %s", self._router, error)
            return self._write(encode("freeze", trigger="bad_input", reason=str(error), scope="", metadata={}))

    def _write(self, line: bytes) -> bool:
        with self._write_lock:
            connection = self._socket
            if connection is None:
                return False
            try:
                connection.sendall(line)
            except OSError as error:
                # Half a line may have gone: this connection is of no more use.
                log.debug("link to %s: %s", self._path, error)
                self._drop_connection()
                return False
            return True

    # -- stopping ------------------------------------------------------------------------------------------------

    def _stopper(self) -> None:
        handled: tuple[int, bool, frozenset[str]] | None = None
        open_orders = 0
        retry_at_s = 0.0
        while not self._closing.is_set():
            self._wake_stopper.wait(self._gate_poll_s)
            self._wake_stopper.clear()
            pushed, self._pushed_stop = self._pushed_stop, None
            stop = pushed or self._look_at_the_page()
            if stop is None:
                handled, open_orders, self._cancelled_in_episode = None, 0, 0
                continue
            identity = (stop.epoch, stop.permit_expired, frozenset(cause.id for cause in stop.causes))
            retry = open_orders > 0 and time.monotonic() >= retry_at_s
            # A pushed stop is always answered, even when the page showed it first.
            if pushed is not None or identity != handled or retry:
                open_orders = self._carry_out(stop)
                handled = identity
                retry_at_s = time.monotonic() + RETRY_OPEN_S

    def _look_at_the_page(self) -> Stop | None:
        """As :meth:`_stop_on_the_page`; a page that cannot be looked at for whatever reason stops everything."""
        try:
            return self._stop_on_the_page()
        except Exception:
            # This thread must never end: it is what cancels when the agent is dead.
            log.exception("router %s cannot read its gate and takes that as a stop of everything", self._router)
            return Stop(0, permit_expired=True)

    def _stop_on_the_page(self) -> Stop | None:
        """Return what the gate page itself asks to be stopped, ``None`` while it is open for everything."""
        if self._gate.is_open:
            return None
        try:
            state = self._gate.snapshot()
        except Blocked as blocked:
            return Stop(blocked.epoch, permit_expired=True)
        expired = state.deadline_ns <= now_ns()
        if not state.causes and not expired:
            return None  # it opened between the two looks
        causes = tuple(StopCause(row.id, row.scope, row.mode, row.trigger, row.reason) for row in state.causes)
        return Stop(state.epoch, causes, permit_expired=expired)

    def _carry_out(self, stop: Stop) -> int:
        """Have everything cancelled that the stop covers, tell the agent, and return how many are left open."""
        try:
            result = self._on_stop(stop)
        except Exception:
            # The trading program failed in the one thing it must do; the agent hears that nothing is proven.
            log.exception("router %s could not cancel for the stop of epoch %d", self._router, stop.epoch)
            self._tell("stopped", epoch=stop.epoch, cancelled=0, failed=1, open=1, last_sequence=None, error=True)
            return 1
        # Counted since the gate was last open: the look at the page and the agent's push may both come here for one
        # freeze, and whichever comes second finds nothing left to cancel.
        self._cancelled_in_episode += result.cancelled
        self._tell(
            "stopped",
            epoch=stop.epoch,
            cancelled=self._cancelled_in_episode,
            failed=result.failed,
            open=result.open,
            last_sequence=result.last_sequence,
        )
        return result.open

    def _tell(self, kind: str, **body: Any) -> None:
        line = encode(kind, **body)
        if not (self._connected.is_set() and self._write(line)):
            self._keep(line)

"""The agent's end of the link: accepts routers, hears them, pushes stops to them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from killswitch.link.messages import (
    LINE_MAX_BYTES,
    BadLine,
    Exposure,
    StopCause,
    cancel_result_from_wire,
    decode,
    encode,
    read_count,
    read_name,
)
from killswitch_agent.routers import RouterRefused, RouterRegistry

log = structlog.get_logger(__name__)

HELLO_TIMEOUT_S = 5.0
SOCKET_PATH_MAX_BYTES = 107
"""Longest path of a Unix socket on Linux."""


class LinkUnavailable(Exception):
    """The socket cannot be made; the message says where and why."""


@dataclass(frozen=True, slots=True)
class FreezeRequest:
    """A router's or monitor's wish that trading be frozen."""

    source: str
    trigger: str
    reason: str
    scope: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEvents:
    """What the server tells its agent, on the thread of the router's connection.

    Attributes:
        on_exposure: a router reported; the registry has it.
        on_answer: a router answered a stop, came or went; the registry has it.
        on_freeze: a router wants a freeze.
        current_stop: the epoch and causes to tell a router that has just connected; no causes for none.
    """

    on_exposure: Callable[[str, Exposure], None]
    on_answer: Callable[[str], None]
    on_freeze: Callable[[FreezeRequest], None]
    current_stop: Callable[[], tuple[int, Sequence[StopCause]]]


class _Session:
    """One router's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.router = ""
        self.instance = ""
        self.said_goodbye = False
        self._lock = threading.Lock()

    def push(self, line: bytes) -> None:
        """Send without waiting. A router that does not take its lines is cut off: lost, its orders unproven."""
        with self._lock:
            try:
                self.connection.sendall(line, socket.MSG_DONTWAIT)
            except OSError as error:
                log.warning("router_does_not_listen", router=self.router, error=str(error))
                self.drop()

    def drop(self) -> None:
        """End the connection; its thread notices."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class LinkServer:
    """Listens on a Unix socket for the routers of this node.

    Args:
        path: where.
        node: name of the node, told to routers.
        cluster: name of the cluster, told to routers.
        routers: what is known of the routers.
        events: what the agent wants to hear.

    Raises:
        LinkUnavailable: the socket cannot be made.
    """

    def __init__(self, path: Path, *, node: str, cluster: str, routers: RouterRegistry, events: LinkEvents) -> None:
        self._path = path
        self._node = node
        self._cluster = cluster
        self._routers = routers
        self._events = events
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
            raise LinkUnavailable(
                f"the path of the link socket is longer than {SOCKET_PATH_MAX_BYTES} bytes: {path}; set agent.link"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The gate's lock has shown that no other agent of this node runs: a socket left here is a dead one.
            path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(os.fspath(path))
            path.chmod(0o660)
            self._listener.listen(64)
        except OSError as error:
            raise LinkUnavailable(
                f"the link socket {path} cannot be made ({error.strerror}); set agent.link"
            ) from error
        self._accepting = threading.Thread(target=self._accept, name="link-accept", daemon=True)
        self._accepting.start()

    def push_stop(self, epoch: int, causes: Sequence[StopCause]) -> None:
        """Tell every router to cancel what these causes cover."""
        self._push(encode("stop", epoch=epoch, causes=[cause.to_wire() for cause in causes]))

    def push_resume(self, epoch: int, causes: Sequence[StopCause]) -> None:
        """Tell every router what is in force after a release."""
        self._push(encode("resume", epoch=epoch, causes=[cause.to_wire() for cause in causes]))

    def close(self) -> None:
        """Close every connection and the socket."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.drop()
        self._accepting.join()
        for thread in self._threads:
            thread.join(timeout=HELLO_TIMEOUT_S)
        self._path.unlink(missing_ok=True)

    def _push(self, line: bytes) -> None:
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.push(line)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="link-router", daemon=True)
            self._threads = [*(alive for alive in self._threads if alive.is_alive()), thread]
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        session = _Session(connection)
        try:
            connection.settimeout(HELLO_TIMEOUT_S)
            with connection.makefile("rb") as lines:
                self._register(session, lines.readline(LINE_MAX_BYTES + 1))
                connection.settimeout(None)
                while line := lines.readline(LINE_MAX_BYTES + 1):
                    self._hear(session, line)
        except RouterRefused as error:
            log.warning("router_refused", reason=str(error))
            session.push(encode("refused", reason=str(error)))
        except BadLine as error:
            log.error("router_line_bad", router=session.router, error=str(error))
        except OSError as error:
            log.info("router_connection_ended", router=session.router, error=str(error))
        finally:
            self._unregister(session)
            connection.close()

    def _register(self, session: _Session, line: bytes) -> None:
        kind, body = decode(line)
        if kind != "hello":
            raise BadLine(f"the first line of a router must be hello, and it is {kind!r}")
        router, instance = read_name(body, "router"), read_name(body, "instance")
        self._routers.hello(router, instance, reconciled=body.get("reconciled") is True)
        session.router, session.instance = router, instance
        with self._lock:
            self._sessions[router] = session
        epoch, causes = self._events.current_stop()
        session.push(encode("welcome", node=self._node, cluster=self._cluster, epoch=epoch))
        if causes:
            session.push(encode("stop", epoch=epoch, causes=[cause.to_wire() for cause in causes]))
        self._events.on_answer(router)

    def _unregister(self, session: _Session) -> None:
        if not session.router:
            return
        with self._lock:
            if self._sessions.get(session.router) is not session:
                return
            del self._sessions[session.router]
        self._routers.gone(session.router, session.instance, said_goodbye=session.said_goodbye)
        if not session.said_goodbye and not self._closing.is_set():
            log.error("router_lost", router=session.router)
        self._events.on_answer(session.router)

    def _hear(self, session: _Session, line: bytes) -> None:
        try:
            kind, body = decode(line)
            self._handle(session, kind, body)
        except BadLine as error:
            # A registered router that says what cannot be read or is not finite is a fault of the node's inputs.
            self._events.on_freeze(
                FreezeRequest(
                    source=f"router:{session.router}",
                    trigger="bad_input",
                    reason=f"router {session.router} sent what cannot be used: {error}",
                    scope="",
                    metadata={"router": session.router},
                )
            )

    def _handle(self, session: _Session, kind: str, body: Mapping[str, Any]) -> None:
        if kind == "exposure":
            exposure = Exposure.from_wire(body)
            self._routers.exposure(session.router, session.instance, exposure)
            self._events.on_exposure(session.router, exposure)
        elif kind == "stopped":
            result = cancel_result_from_wire(body)
            self._routers.stopped(session.router, session.instance, read_count(body, "epoch"), result)
            self._events.on_answer(session.router)
        elif kind == "freeze":
            metadata = body.get("metadata")
            self._events.on_freeze(
                FreezeRequest(
                    source=f"router:{session.router}",
                    trigger=read_name(body, "trigger"),
                    reason=str(body.get("reason") or "no reason given"),
                    scope=str(body.get("scope") or ""),
                    metadata=metadata if isinstance(metadata, dict) else {},
                )
            )
        elif kind == "bye":
            session.said_goodbye = True
        else:
            raise BadLine(f"there is no message {kind!r}")

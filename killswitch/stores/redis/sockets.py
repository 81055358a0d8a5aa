"""Sockets that keep to one budget for everything: the name, the connection, TLS, and all that is sent and received.

redis-py's time-outs count anew for each piece that arrives, and for each address of a host. A permit has no such time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from concurrent.futures import Future
from typing import Any

from killswitch.stores.timing import Deadline
from killswitch.stores.tls import client_context
from killswitch.stores.urls import TlsFiles, host_and_port

Addresses = list[tuple[Any, ...]]


class Resolver:
    """Looks up names in time. The system's own look-up cannot be bounded, so it runs on a thread, one for each name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], Future[Addresses]] = {}

    def addresses(self, host: str, port: int, deadline: Deadline) -> Addresses:
        """What ``socket.getaddrinfo`` says.

        Raises:
            OSError: there is no such host, or no answer in time (``TimeoutError``).
        """
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
        with self._lock:
            pending = self._running.get((host, port))
            if pending is None:
                pending = self._running[host, port] = Future()
                threading.Thread(
                    target=self._look_up, args=(host, port, pending), name=f"resolve {host}", daemon=True
                ).start()
        try:
            return pending.result(deadline.required_s())
        except TimeoutError:
            raise TimeoutError(f"the name {host} was not resolved in time") from None

    def _look_up(self, host: str, port: int, pending: Future[Addresses]) -> None:
        try:
            pending.set_result(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            pending.set_exception(OSError(f"the name {host} cannot be resolved ({error})"))
        finally:
            with self._lock:
                del self._running[host, port]


class DeadlineSocket:
    """What redis-py needs of a socket, every wait bounded by one deadline; counts what the kernel took.

    Attributes:
        deadline: of what goes on now; set it before each request.
        sent_bytes: since it was last set to 0.
    """

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket = connected
        self.deadline = deadline
        self.sent_bytes = 0

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._socket.settimeout(self.deadline.required_s())
            sent = self._socket.send(view)
            self.sent_bytes += sent
            view = view[sent:]

    def recv(self, size: int) -> bytes:
        self._socket.settimeout(self.deadline.required_s())
        return self._socket.recv(size)

    def recv_into(self, buffer: Any, size: int = 0) -> int:
        self._socket.settimeout(self.deadline.required_s())
        return self._socket.recv_into(buffer, size)

    def settimeout(self, seconds: float | None) -> None:
        """Of no effect: the deadline counts."""

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()


class Dialler:
    """Makes one connection, which another thread may break off at any time.

    Args:
        server: ``host:port``, IPv6 hosts in brackets.
        tls: files for TLS, ``None`` for a connection in the clear.
    """

    def __init__(self, server: str, resolver: Resolver, tls: TlsFiles | None) -> None:
        self.host, self.port = host_and_port(server)
        self._resolver = resolver
        self._tls = tls
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._broken_off = False

    def dial(self, deadline: Deadline) -> DeadlineSocket:
        """Connect, to whichever of the host's addresses answers; raises ``OSError``."""
        addresses = self._resolver.addresses(self.host, self.port, deadline)
        failure: OSError = OSError(f"the name {self.host} has no address")
        for position, (family, kind, protocol, _, address) in enumerate(addresses):
            share = deadline.share(1 / (len(addresses) - position))
            try:
                return DeadlineSocket(self._connect(socket.socket(family, kind, protocol), address, share), deadline)
            except OSError as error:
                failure = error
        raise failure

    def break_off(self) -> None:
        """Make whoever dials, sends or receives fail at once. From any thread, at any time, more than once."""
        with self._lock:
            self._broken_off = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Not the method of a TLS socket, which would forget its state under the thread that uses it.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """Close it; only the thread that uses the connection may, because its number is free for others afterwards."""
        with self._lock:
            made, self._socket = self._socket, None
        if made is not None:
            made.close()

    def _connect(self, made: socket.socket, address: Any, deadline: Deadline) -> socket.socket:
        try:
            self._own(made)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made.settimeout(deadline.required_s())
            made.connect(address)
            if self._tls is not None:
                # Read anew for each connection, so that renewed certificates are taken up.
                wrapped = client_context(self._tls).wrap_socket(
                    made, server_hostname=self._tls.server_name or self.host, do_handshake_on_connect=False
                )
                made = wrapped
                self._own(wrapped)
                wrapped.settimeout(deadline.required_s())
                wrapped.do_handshake()
        except BaseException:
            with self._lock:
                self._socket = None
            made.close()
            raise
        return made

    def _own(self, made: socket.socket) -> None:
        with self._lock:
            if self._broken_off:
                raise ConnectionAbortedError("the connection was broken off")
            self._socket = made

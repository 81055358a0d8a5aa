"""A network between a client and a server that a test can cut in either direction, without either noticing."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024


class Forwarder:
    """Forwards TCP connections to ``server``, until told to swallow what goes there or what comes back.

    What is swallowed is lost, as it never is on a healthy connection, so a connection that lost something is broken
    for good: heal by making new ones, which is what :meth:`pass_all` with ``drop_old`` makes clients do.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.server = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.swallow_requests = threading.Event()
        self.swallow_replies = threading.Event()
        self.swallowed_bytes = 0
        self.carried_bytes = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def swallow_everything(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self.swallow_requests.set()
        self.swallow_replies.set()

    def close(self) -> None:
        """Close every connection and join the threads."""
        # shutdown() wakes the thread that waits in accept(); close() alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets, threads = list(self._sockets), list(self._threads)
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for connection in sockets:
            connection.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="forwarder", daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets += [client, server]
            self._start(self._pump, client, server, self.swallow_requests)
            self._start(self._pump, server, client, self.swallow_replies)

    def _pump(self, source: socket.socket, sink: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                if swallow.is_set():
                    with self._lock:
                        self.swallowed_bytes += len(chunk)
                    continue
                with self._lock:
                    self.carried_bytes += len(chunk)
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

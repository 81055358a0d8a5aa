"""Ends TLS in front of a server that speaks in the clear, and gathers what the server says into few large records."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK_BYTES = 16 * 1024
GATHER_S = 0.01


class TlsRelay:
    """Relays TLS connections to ``server``.

    Args:
        server: ``host:port`` in the clear.
        papers: directory with ``server.keystore.pem``, key and certificate in one file.
    """

    def __init__(self, server: str, papers: Path) -> None:
        host, _, port = server.rpartition(":")
        self._target = (host, int(port))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(papers / "server.keystore.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.server = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.gathered = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

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
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for connection in sockets:
            connection.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="tls relay", daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
                client = self._context.wrap_socket(plain, server_side=True)
                server = socket.create_connection(self._target)
            except OSError:
                return
            with self._lock:
                self._sockets += [client, server]
            self._start(self._up, client, server)
            self._start(self._down, server, client)

    @staticmethod
    def _up(client: ssl.SSLSocket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := client.recv(CHUNK_BYTES):
                server.sendall(chunk)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, server: socket.socket, client: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            server.settimeout(None)
            while piece := server.recv(CHUNK_BYTES):
                client.sendall(piece + self._more(server))
        with contextlib.suppress(OSError):
            socket.socket.shutdown(client, socket.SHUT_RDWR)

    def _more(self, server: socket.socket) -> bytes:
        """What comes within the next moments."""
        pieces: list[bytes] = []
        server.settimeout(GATHER_S)
        with contextlib.suppress(TimeoutError):
            while sum(map(len, pieces)) < CHUNK_BYTES // 2 and (piece := server.recv(CHUNK_BYTES // 4)):
                pieces.append(piece)
        server.settimeout(None)
        self.gathered += len(pieces)
        return b"".join(pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""A server that speaks as much of Redis's protocol as a test needs, and answers what the test says."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Self

OK = b"*1\r\n:1\r\n"
NOTHING = b""
MASTER = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
PONG = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
REPLICA = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$9\r\nconnected\r\n:0\r\n"

Answer = bytes | Callable[[socket.socket], None]


class ScriptedRedis:
    """Greets as a primary does; what comes then is answered with ``answer``.

    Attributes:
        answer: bytes to send, or a function that does something to the connection.
        role: what it says to ROLE.
        sentinel: what it says to SENTINEL.
        auth: what it says to AUTH.
        ping: what it says to PING on a connection that has subscribed.
        requests: the first word of every command, and of every script after the greeting.
        greetings: how many connections have been greeted.

    Args:
        tls: context for connections over TLS.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.answer: Answer = OK
        self.role = MASTER
        self.sentinel: bytes = b"*-1\r\n"
        self.auth = b"+OK\r\n"
        self.ping = PONG
        self.greets = True
        self.requests: list[bytes] = []
        self.greetings = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.server = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="scripted redis", daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Close every connection and join the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_all()
        for thread in self._threads:
            thread.join()

    def drop_all(self) -> None:
        """Close every connection that there is."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), name="scripted redis", daemon=True)
            with self._lock:
                self._connections.append(connection)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        scripts_of_greeting = 2
        if self._tls is not None:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
            with self._lock:
                self._connections.append(connection)
        with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as stream:
            while command := _command(stream):
                name = command[0]
                if name in (b"EVAL", b"EVALSHA") and scripts_of_greeting:
                    scripts_of_greeting -= 1
                    self.greetings += not scripts_of_greeting
                    self._say(connection, OK if self.greets else NOTHING)
                    continue
                self.requests.append(name)
                said = {
                    b"ROLE": self.role,
                    b"SENTINEL": self.sentinel,
                    b"AUTH": self.auth,
                    b"WAIT": b":0\r\n",
                    b"SUBSCRIBE": SUBSCRIBED,
                    b"PING": self.ping,
                }
                self._say(connection, (said.get(name, self.answer)) if self.greets else NOTHING)

    @staticmethod
    def _say(connection: socket.socket, answer: Answer) -> None:
        if callable(answer):
            answer(connection)
        else:
            connection.sendall(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _command(stream: BinaryIO) -> list[bytes]:
    """The next command; empty at the end."""
    header = stream.readline()
    if not header:
        return []
    words = []
    for _ in range(int(header[1:])):
        size = int(stream.readline()[1:])
        words.append(stream.read(size + 2)[:-2])
    return words

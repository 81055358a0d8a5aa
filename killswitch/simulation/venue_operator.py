"""An operator's connection to the simulated venue (:mod:`killswitch.simulation.venue`, which describes its lines)."""

from __future__ import annotations

import socket
import threading
from typing import Any

from killswitch.link.messages import LINE_MAX_BYTES, BadLine, decode, encode

REQUEST_TIMEOUT_S = 5.0


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

"""Requests to whichever ZooKeeper server answers: budgets, rotation, and what a failure says about a write.

A failed read did not happen. A write that was handed to a standing connection and not answered may have happened; one
that was handed to none did not, and since no connection outlives its first failure, nothing waits to be sent later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from kazoo.exceptions import ZookeeperError

from killswitch.stores.front import closed_sentence, unknown
from killswitch.stores.port import StoreForbidden, StoreUnavailable
from killswitch.stores.timing import Deadline, in_turn
from killswitch.stores.zookeeper.connection import (
    SESSION_TIMEOUT_MS,
    Connection,
    ConnectionSettings,
    Session,
    SessionGone,
    Unanswered,
)

R = TypeVar("R")

# Names, for the classes of some came with kazoo 2.11.
REFUSED_FOR_GOOD = frozenset(
    {
        "AuthFailed",
        "BadArguments",
        "InvalidACL",
        "NoAuth",
        "QuotaExceeded",
        "SessionClosedRequireSasl",
        "Unimplemented",
    }
)
WRONG_USER = frozenset({"NoAuth", "AuthFailed"})


class Channel:
    """One connection at a time, made when it is needed. Thread-safe.

    Args:
        servers: ``host:port`` of each.
        settings: of the store's connections.
        request_timeout_ms: budget of a call, rotation included.
        session_timeout_ms: to ask for.
        keeps_session: whether a connection takes over the session of the one before, and nothing else keeps it alive.
        first: index of the server that is asked first.
    """

    def __init__(
        self,
        servers: Sequence[str],
        settings: ConnectionSettings,
        *,
        request_timeout_ms: int,
        session_timeout_ms: int = SESSION_TIMEOUT_MS,
        keeps_session: bool = False,
        first: int = 0,
    ) -> None:
        self.address = ",".join(servers)
        self.settings = settings
        self._servers = tuple(servers)
        self._request_timeout_ms = request_timeout_ms
        self._session_timeout_ms = session_timeout_ms
        self._keeps_session = keeps_session
        self._session: Session | None = None
        self._connecting = threading.Lock()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._next = first
        self._closed = False

    def deadline(self) -> Deadline:
        """A fresh budget."""
        return Deadline(self._request_timeout_ms, self.settings.now_ns)

    def ask(self, call: Callable[[Connection, Deadline], R], what: str, deadline: Deadline | None = None) -> R:
        """Make a call that may be made twice: through one server, and when that fails through the next.

        Raises:
            StoreUnavailable: no server answered.
            StoreForbidden: one refused for good.
            SessionGone: the session that this channel keeps has ended.
        """
        deadline = deadline or self.deadline()
        why = "no time was left"
        for _, within in in_turn(self._servers, deadline, single_twice=True):
            if self._closed:
                break
            connection = None
            try:
                connection = self._connected(within)
                return call(connection, within)
            except Unanswered as failure:
                why = str(failure)
                self.drop(connection)
            except SessionGone as failure:
                why = str(failure)
                self.drop(connection)
                if self._keeps_session:
                    raise
            except ZookeeperError as error:
                raise self.refusal(error, what) from error
        raise StoreUnavailable(self._sentence(what, why))

    def connected(self, what: str, deadline: Deadline) -> Connection:
        """A connection that stands, for a write.

        Raises:
            StoreUnavailable: none could be made in time.
            StoreForbidden: refused for good.
        """
        return self.ask(lambda connection, _: connection, what, deadline)

    def write(self, connection: Connection, send: Callable[[], R], what: str) -> R:
        """Hand requests over once, with ``send``, and return what was answered.

        Raises:
            OutcomeUnknown: handed over and not answered.
        """
        try:
            return send()
        except (Unanswered, SessionGone) as failure:
            self.drop(connection)
            raise unknown(self._sentence(what, str(failure))) from None

    def drop(self, connection: Connection | None) -> None:
        """Give up a connection that failed. The next goes to another server, if there is one."""
        if connection is None:
            return
        connection.abandon()
        with self._lock:
            if self._connection is connection:
                self._connection = None
                self._next += 1

    def refusal(self, error: Exception, what: str) -> StoreForbidden | StoreUnavailable:
        """The error for a request that was answered, and not done."""
        said = type(error).__name__.removesuffix("Error")
        if said in REFUSED_FOR_GOOD:
            hint = "; the znodes belong to another user, or the password is wrong" if said in WRONG_USER else ""
            return StoreForbidden(f"ZooKeeper at {self.address} refuses {what} for good: {said}{hint}")
        return StoreUnavailable(f"ZooKeeper at {self.address} did not do {what}: {said}")

    @property
    def server_index(self) -> int:
        """Of the server that is asked next: one that answered, if any did."""
        with self._lock:
            return self._next

    def end_soon(self) -> None:
        """Refuse everything from now on, and bound what :meth:`close` may take."""
        with self._lock:
            self._closed = True
            connection = self._connection
        if connection is not None:
            connection.end_soon()

    def close(self, *, end_session: bool = True) -> None:
        """Close the connection; without ``end_session`` the session runs out by itself."""
        self.end_soon()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        if end_session:
            connection.close()
        else:
            connection.abandon()
        connection.join()

    def _connected(self, deadline: Deadline) -> Connection:
        if not self._connecting.acquire(timeout=deadline.remaining_s()):
            raise Unanswered("no connection in time")
        try:
            with self._lock:
                connection = self._connection
                if self._closed:
                    raise Unanswered("closed")
            if connection is not None and connection.connected:
                return connection
            self.drop(connection)
            with self._lock:
                server = self._servers[self._next % len(self._servers)]
            return self._connect(server, deadline)
        finally:
            self._connecting.release()

    def _connect(self, server: str, deadline: Deadline) -> Connection:
        connection = Connection(
            server,
            self.settings,
            timeout_ms=self._session_timeout_ms,
            session=self._session,
            pings=not self._keeps_session,
        )
        try:
            connection.open(deadline)
        except BaseException:
            with self._lock:
                self._next += 1
            raise
        with self._lock:
            if not self._closed:
                self._connection = connection
                if self._keeps_session:
                    self._session = connection.session or self._session
                return connection
        connection.abandon()
        raise Unanswered("closed")

    def _sentence(self, what: str, why: str) -> str:
        if self._closed:
            return closed_sentence(f"zookeeper://{self.address}", what)
        return f"ZooKeeper at {self.address} did not answer {what} within {self._request_timeout_ms} ms: {why}"

"""A lease on ZooKeeper: a session of its own, that nothing keeps alive but :meth:`ZooKeeperLease.keep_alive`.

The server ends the session when nothing has come over it for the time to live, and with it the ephemeral child of the
guard. kazoo would ping as long as the process lives, so its pings are off for these connections. A keep-alive is a
transaction that checks the guard and the child: a majority of the servers has agreed that the lease is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kazoo.exceptions import BadVersionError, NoNodeError

from killswitch.stores.front import LeaseFront
from killswitch.stores.port import StoreForbidden, StoreUnavailable
from killswitch.stores.timing import Deadline
from killswitch.stores.zookeeper.channel import Channel
from killswitch.stores.zookeeper.commit import ANY_VERSION
from killswitch.stores.zookeeper.connection import Connection, SessionGone, first_failure
from killswitch.stores.zookeeper.names import ABSENT, lease_path
from killswitch.stores.zookeeper.read import read_key

# ZooKeeper looks for sessions to end once in a tickTime, rounds up to the next, and a server tells the leader of the
# sessions that it has heard from twice in a tickTime: one and a half of the default of 2,000 ms.
LEASE_SLACK_MS = 3_000
LATE_BY_TICKS = 1.5
# minSessionTimeout, unless it is set.
TICKS_OF_SHORTEST_SESSION = 2


def check_granted(address: str, granted_ms: int, ttl_ms: int) -> None:
    """Refuse a session that could end before the time to live, or later than the declared slack after it.

    Raises:
        StoreForbidden: with what to change.
    """
    if granted_ms < ttl_ms:
        raise StoreForbidden(
            f"ZooKeeper at {address} keeps no session longer than {granted_ms} ms, and {ttl_ms} ms were asked for; "
            "raise its maxSessionTimeout, or ask for less"
        )
    # The length of a tick shows only where the shortest session is longer than what was asked for.
    tick_ms = granted_ms / TICKS_OF_SHORTEST_SESSION if granted_ms > ttl_ms else 0
    if granted_ms + LATE_BY_TICKS * tick_ms > ttl_ms + LEASE_SLACK_MS:
        raise StoreForbidden(
            f"ZooKeeper at {address} keeps no session shorter than {granted_ms} ms, and {ttl_ms} ms were asked for; "
            "lower its tickTime, or ask for more"
        )


class ZooKeeperLease(LeaseFront):
    """A lease of :class:`ZooKeeperStore`.

    Args:
        key: leased.
        path: of its guard.
        version: of the key as it was created.
        data_version: of the guard.
        own: the channel that keeps the lease's session.
        others: the store's channel, for what needs no session.
        on_end: called once when the lease has ended for us.
    """

    def __init__(
        self,
        key: str,
        path: str,
        version: int,
        data_version: int,
        *,
        own: Channel,
        others: Channel,
        on_end: Callable[[ZooKeeperLease], None],
    ) -> None:
        super().__init__(key, version, f"ZooKeeper {own.address}")
        self._path = path
        self._data_version = data_version
        self._own = own
        self._others = others
        self._on_end = on_end
        self._ended = False

    def _keep_alive(self, what: str) -> str:
        deadline = self._own.deadline()
        if not self._ended:
            try:
                failure = self._own.ask(self._check, what, deadline)
            except SessionGone:
                self._confirm_lost(what, deadline)
            else:
                if failure is None:
                    return ""
                if not isinstance(failure, BadVersionError | NoNodeError):
                    raise self._own.refusal(failure, what)
            self._end(end_session=False)
        return "has run out"

    def _release(self, what: str) -> None:
        if self._ended:
            return
        self._others.ask(self._delete, what)
        self._end(end_session=True)

    def end_soon(self) -> None:
        """Refuse everything from now on."""
        self._own.end_soon()

    def drop(self) -> None:
        """Close the connection and let the session run out by itself."""
        self._own.close(end_session=False)

    def _check(self, connection: Connection, deadline: Deadline) -> Exception | None:
        def add(transaction: Any, _: object) -> None:
            transaction.check(self._path, self._data_version)
            transaction.check(lease_path(self._path), ANY_VERSION)

        return first_failure(connection.outcome(connection.transact(add), deadline))

    def _delete(self, connection: Connection, deadline: Deadline) -> None:
        """Any session may end the key; the guard's data version tells whether it is still this lease's."""

        def add(transaction: Any, _: object) -> None:
            transaction.set_data(self._path, ABSENT, self._data_version)
            transaction.delete(lease_path(self._path))

        failure = first_failure(connection.outcome(connection.transact(add), deadline))
        if failure is not None and not isinstance(failure, BadVersionError | NoNodeError):
            raise failure

    def _confirm_lost(self, what: str, deadline: Deadline) -> None:
        """A server that was the leader and slept takes its sessions for ended when it wakes; only the key decides."""
        state = self._others.ask(lambda connection, within: read_key(connection, self._path, within), what, deadline)
        if state.leased and state.version == self._version:
            raise StoreUnavailable(
                f"ZooKeeper at {self._own.address} takes the session of {self._key!r} for ended, but the key is there"
            )

    def _end(self, *, end_session: bool) -> None:
        self._ended = True
        self._own.close(end_session=end_session)
        self._on_end(self)

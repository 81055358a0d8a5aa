"""Reading keys from ZooKeeper: one, several, or all below a prefix as of one instant.

Each read begins with a barrier (see :meth:`Connection.barrier`) on the connection that it then reads over. A server
answers the requests of one connection in their order, so what follows the barrier is as new as the barrier.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kazoo.exceptions import NoNodeError

from killswitch.stores.port import Entry
from killswitch.stores.timing import Deadline
from killswitch.stores.zookeeper.connection import Connection, Reply, Unanswered
from killswitch.stores.zookeeper.names import (
    LEASED,
    NO_NODE,
    KeyState,
    Root,
    child_path,
    lease_path,
    state_of,
    text_of,
)


def answer_or_none(connection: Connection, reply: Reply, deadline: Deadline) -> Any:
    """The reply's value, ``None`` when the znode is not there; raises as :meth:`Connection.outcome`."""
    try:
        return connection.outcome(reply, deadline)
    except NoNodeError:
        return None


def read_states(connection: Connection, paths: Iterable[str], deadline: Deadline) -> dict[str, KeyState]:
    """How the keys at these paths stand, for a transaction that checks it. Values of leases are not read."""
    barrier = connection.barrier()
    asked = [(path, connection.get(path), connection.exists(lease_path(path))) for path in paths]
    connection.outcome(barrier, deadline)
    states: dict[str, KeyState] = {}
    for path, guard_reply, child_reply in asked:
        guard = answer_or_none(connection, guard_reply, deadline)
        child = connection.outcome(child_reply, deadline)
        states[path] = state_of(guard[0], guard[1], child.czxid if child else None) if guard else NO_NODE
    return states


def read_key(connection: Connection, path: str, deadline: Deadline) -> KeyState:
    """One key, at an instant after this was called."""
    barrier, guard_reply = connection.barrier(), connection.get(path)
    connection.outcome(barrier, deadline)
    guard = answer_or_none(connection, guard_reply, deadline)
    while guard is not None and guard[0] == LEASED:
        # The child first: when it is gone although the guard, read later, is older than that, its session has ended.
        child_reply, guard_reply = connection.get(lease_path(path)), connection.get(path)
        child = answer_or_none(connection, child_reply, deadline)
        guard = answer_or_none(connection, guard_reply, deadline)
        if guard is None:
            break
        data, stat = guard
        if child is not None and child[1].czxid == stat.mzxid:
            return state_of(data, stat, child[1].czxid, child[0])
        if stat.mzxid <= child_reply.zxid:
            return state_of(data, stat, None)
        # Held anew between the two.
    return state_of(guard[0], guard[1], None) if guard is not None else NO_NODE


def scan(connection: Connection, roots: Sequence[Root], deadline: Deadline) -> list[Entry]:
    """All entries below the roots, sorted by key, as of one instant.

    Raises:
        Unanswered: no answer, or they changed faster than they could be read.
    """
    reading = _Scan(connection, roots, deadline)
    while deadline.remaining_s():
        entries = reading.attempt()
        if entries is not None:
            return sorted(entries, key=lambda entry: entry.key)
    raise Unanswered("the keys changed faster than they could be read")


class _Scan:
    """Attempts to read a tree as it stood at one instant.

    Guards are never removed, and what comes and goes below a znode shows in its ``pzxid``. So when nothing that was
    read has a zxid newer than the state that the first reply showed, all of it is of that state.

    An attempt asks for all that the attempts before it have found, at once: the less time passes between the first and
    the last reply, the less changes meanwhile.
    """

    def __init__(self, connection: Connection, roots: Sequence[Root], deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline
        self._directories = {root.path: (root.text, root.beginning) for root in roots}
        self._keys: dict[str, str] = {}
        self._leased: set[str] = set()

    def attempt(self) -> list[Entry] | None:
        """The entries; ``None`` when something changed meanwhile."""
        barrier = self._connection.barrier()
        leases: dict[str, Any] = {}
        guards: dict[str, Any] = {}
        listings: dict[str, Any] = {}
        since: int | None = None
        newest = 0
        while True:
            # Leases before guards: a lease that is gone shows in the pzxid of a guard that is read later.
            asked = [
                *((leases, path, self._connection.get(lease_path(path))) for path in self._leased - leases.keys()),
                *((guards, path, self._connection.get(path)) for path in self._keys.keys() - guards.keys()),
                *(
                    (listings, path, self._connection.children(path))
                    for path in self._directories.keys() - listings.keys()
                ),
            ]
            if not asked:
                break
            self._connection.outcome(barrier, self._deadline)
            late = guards.keys() & {path for found, path, _ in asked if found is leases}
            for found, path, reply in asked:
                found[path] = answer = answer_or_none(self._connection, reply, self._deadline)
                since = reply.zxid if since is None else since
                newest = max(newest, _changed_at(answer, listing=found is listings))
            if any(leases[path] is None for path in late):
                return None
            self._learn(guards, listings)
        if since is None or newest > since or None in guards.values():
            self._unlearn(guards)
            return None
        return self._entries(guards, leases)

    def _learn(self, guards: Mapping[str, Any], listings: Mapping[str, Any]) -> None:
        """What there is to be read besides."""
        for path, listing in listings.items():
            text, beginning = self._directories[path]
            for name in listing[0] if listing else ():
                segment = text_of(name)
                if segment is not None and segment.startswith(beginning):
                    self._keys[child_path(path, name)] = text + segment
        for path, guard in guards.items():
            if guard is not None and guard[1].numChildren:
                self._directories.setdefault(path, (f"{self._keys[path]}/", ""))
                if guard[0] == LEASED:
                    self._leased.add(path)

    def _unlearn(self, guards: Mapping[str, Any]) -> None:
        """What somebody else's hand has removed."""
        for path in [path for path, guard in guards.items() if guard is None]:
            del self._keys[path]
            self._directories.pop(path, None)
            self._leased.discard(path)

    def _entries(self, guards: Mapping[str, Any], leases: Mapping[str, Any]) -> list[Entry]:
        entries: list[Entry] = []
        for path, (data, stat) in guards.items():
            lease = leases.get(path)
            state = state_of(data, stat, lease[1].czxid if lease else None, lease[0] if lease else None)
            if state.value is not None:
                entries.append(Entry(self._keys[path], state.value, state.version))
        return entries


def _changed_at(answer: Any, *, listing: bool) -> int:
    """The zxid of the newest change of what was read."""
    if answer is None:
        return 0
    _, stat = answer
    return int(stat.pzxid if listing else max(stat.mzxid, stat.pzxid))

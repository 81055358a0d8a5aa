"""A watch on ZooKeeper: one-shot watches on every znode below the prefix, armed again for ever.

An event says only that a znode has changed; reading it again and arming its watch again are one request, so nothing is
missed for good. What is read at different times has to be told in the order of versions, and ZooKeeper helps: it sends
the event of a change before any reply that shows a later state. So what was read up to some zxid may be told when every
znode with an unread event was last read at that zxid or later (see :class:`WatchedTree`).

One thread of ours reads and calls back; kazoo's only notes events. Our thread asks the server to catch up with its
leader every second: a server that is cut off does not answer that, and a watch on it would be silent. Each subscription
has a connection of its own, thrown away with it.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kazoo.exceptions import ZookeeperError

from killswitch.stores.port import Entry
from killswitch.stores.timing import MILLISECONDS_PER_S, Deadline
from killswitch.stores.watching import ServerWatch, WatchSettings
from killswitch.stores.zookeeper.connection import (
    SESSION_TIMEOUT_MS,
    Connection,
    ConnectionSettings,
    Reply,
    SessionGone,
    Unanswered,
)
from killswitch.stores.zookeeper.names import (
    LEASE_NAME,
    LEASED,
    Root,
    child_path,
    lease_path,
    roots_of,
    state_of,
    text_of,
)
from killswitch.stores.zookeeper.read import answer_or_none

ALIVE_EVERY_MS = 1_000


class Silent(Exception):
    """A server that had answered did not within the limit of silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooKeeperWatchSettings(WatchSettings):
    """How a watch on ZooKeeper connects.

    Attributes:
        connection: settings of every connection of the store.
        base: the chroot, ``""`` for none.
    """

    connection: ConnectionSettings
    base: str


@dataclass(slots=True)
class _Node:
    """A znode that is watched.

    Attributes:
        key: that it guards; ``None`` for the one that a prefix begins below.
        text: what the keys of its children begin with.
        beginning: what the names of its children must begin with.
        as_of: zxid of the state that was last read here; a change that is not read yet is newer.
        version: of the key, as last told or as found at first.
        present: likewise.
    """

    key: str | None
    text: str
    beginning: str = ""
    as_of: int = 0
    version: int = 0
    present: bool = False


class WatchedTree:
    """The znodes below some roots, as one connection sees them.

    Args:
        connection: to read and arm over.
        roots: where the prefix begins.
        limit_s: longest wait for one reply.
    """

    def __init__(self, connection: Connection, roots: Sequence[Root], limit_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s
        self.events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._noters: dict[str, Callable[[Any], None]] = {}
        self._nodes = {root.path: _Node(None, root.text, root.beginning) for root in roots}
        self._unread: dict[str, None] = dict.fromkeys(self._nodes)
        self._read_up_to = 0
        self._untold: dict[str, tuple[str, Entry]] = {}

    def arm(self) -> None:
        """Read and watch everything once; what is found is the beginning, and nothing to tell."""
        self.alive()
        while self._unread:
            self._read_once(telling=False)
        self._untold.clear()

    def take_events(self, first: str | None = None) -> None:
        """Note which znodes have changed, of the events that have come."""
        path = first
        while True:
            if path is not None and path in self._nodes:
                self._unread[path] = None
            try:
                path = self.events.get_nowait()
            except queue.Empty:
                return

    def news(self) -> list[Entry]:
        """Read what has changed once more, and return what may be told now, in the order of versions."""
        self._read_once(telling=True)
        self.take_events()
        told_up_to = min([self._read_up_to, *(self._nodes[path].as_of for path in self._unread)])
        ready = [(path, entry) for path, entry in self._untold.values() if entry.version <= told_up_to]
        for path, entry in ready:
            del self._untold[entry.key]
            if (node := self._nodes.get(path)) is not None:
                node.version, node.present = entry.version, entry.value is not None
        return sorted((entry for _, entry in ready), key=lambda entry: entry.version)

    @property
    def more(self) -> bool:
        """Whether there is something to read."""
        return bool(self._unread)

    def alive(self) -> None:
        """Wait for a sign of life; raises :class:`Silent`."""
        self._wait(self._connection.sync("/"))

    def _read_once(self, *, telling: bool) -> None:
        """Read all that is unread, and what appears below it."""
        paths, self._unread = list(self._unread), {}
        asked = [
            (path, self._connection.get(path, self._noter(path)), self._connection.children(path, self._noter(path)))
            for path in paths
        ]
        found = [
            (path, guard, children, self._answer(guard), self._answer(children)) for path, guard, children in asked
        ]
        leases = {
            path: self._connection.get(lease_path(path))
            for path, _, _, _, listed in found
            if listed and LEASE_NAME in listed[0]
        }
        for path, guard, children, data, listed in found:
            lease = self._answer(leases[path]) if path in leases else None
            node = self._nodes.get(path)
            if node is None:
                continue
            if path in leases and lease is None:
                self._unread[path] = None  # it ended between two of these requests
                continue
            before, node.as_of = node.as_of, guard.zxid
            if data is None or listed is None:
                self._gone(path, node, max(guard.zxid, children.zxid))
                continue
            self._discover(path, node, listed[0], before)
            if node.key is not None:
                state = state_of(data[0], data[1], lease[1].czxid if lease else None, lease[0] if lease else None)
                # What the list of children shows may be newer than what the guard showed.
                version = (
                    max(state.version, listed[1].pzxid) if data[0] == LEASED and not state.present else state.version
                )
                self._compare(path, node, Entry(node.key, state.value, version), data[1].mzxid, telling=telling)

    def _discover(self, path: str, node: _Node, names: Sequence[str], before: int) -> None:
        for name in names:
            segment, below = text_of(name), child_path(path, name)
            if segment is not None and segment.startswith(node.beginning) and below not in self._nodes:
                key = node.text + segment
                # It was not there when its parent was last read, so what it has to tell is newer than that.
                self._nodes[below] = _Node(key, f"{key}/", as_of=before)
                self._unread[below] = None

    def _compare(self, path: str, node: _Node, entry: Entry, written: int, *, telling: bool) -> None:
        """Note what there is to tell of a key, or that there is nothing."""
        self._untold.pop(entry.key, None)
        present = entry.value is not None
        if not telling:
            node.version, node.present = entry.version, present
        elif (present and entry.version != node.version) or (
            not present and entry.version and (node.present or written > node.version)
        ):
            self._untold[entry.key] = (path, entry)

    def _gone(self, path: str, node: _Node, zxid: int) -> None:
        """No guard: never there, or removed by somebody else's hand."""
        if node.key is None:
            # Where a prefix begins; it may appear.
            stat = self._answer(self._connection.exists(path, self._noter(path)))
            if stat is not None:
                self._unread[path] = None
            return
        del self._nodes[path], self._noters[path]
        self._unread.pop(path, None)
        self._untold.pop(node.key, None)
        if node.present:
            self._untold[node.key] = (path, Entry(node.key, None, zxid))

    def _noter(self, path: str) -> Callable[[Any], None]:
        """The same for each path: kazoo keeps a set of callbacks, and a watch may be armed again before it fires."""
        return self._noters.setdefault(path, lambda _: self.events.put(path))

    def _answer(self, reply: Reply) -> Any:
        answer = self._wait(reply)
        self._read_up_to = max(self._read_up_to, reply.zxid)
        return answer

    def _wait(self, reply: Reply) -> Any:
        deadline = Deadline(self._limit_s * MILLISECONDS_PER_S, self._connection.now_ns)
        try:
            return answer_or_none(self._connection, reply, deadline)
        except Unanswered:
            if reply.ready():
                raise
            raise Silent from None


class ZooKeeperWatch(ServerWatch[ZooKeeperWatchSettings]):
    """A running subscription; see the module docstring. Made by :meth:`ZooKeeperStore.watch`."""

    _connection: Connection | None = None
    _tree: WatchedTree | None = None

    def close(self) -> None:
        """End it; when this returns no callback is running or will be called, unless called from a callback."""
        self.end_soon()
        with self._lock:
            connection = self._connection
        if connection is not None:
            connection.close()
            connection.join()
        super().close()

    def _interrupt(self) -> None:
        if self._connection is not None:
            self._connection.end_soon()
        if self._tree is not None:
            self._tree.events.put(None)

    def _subscribe(self, server: str) -> str:
        """Watch through one server until that ends; returns why it did."""
        settings = self._settings
        connection = Connection(server, settings.connection, timeout_ms=SESSION_TIMEOUT_MS)
        silent_ms = settings.silence_limit_ms
        tree = WatchedTree(connection, roots_of(settings.base, self._prefix), silent_ms / MILLISECONDS_PER_S)
        with self._lock:
            self._connection, self._tree = connection, tree
        try:
            # No longer than the limit of silence: what accepts a connection may be only on its way to serving it.
            connecting_ms = min(settings.request_timeout_ms, silent_ms)
            connection.open(Deadline(connecting_ms, settings.now_ns))
            return self._follow(tree)
        except (Unanswered, SessionGone) as failure:
            return str(failure)
        except ZookeeperError as error:
            return f"refused: {type(error).__name__.removesuffix('Error')}"
        except Silent:
            self._say_silent(silent_ms=silent_ms)
            return "the server fell silent"
        finally:
            with self._lock:
                self._connection = self._tree = None
            connection.abandon()

    def _follow(self, tree: WatchedTree) -> str:
        tree.arm()
        self._tell_gap()
        while not self._stop.is_set():
            try:
                tree.take_events(tree.events.get(timeout=self._settings.alive_every_ms / MILLISECONDS_PER_S))
            except queue.Empty:
                tree.alive()
            while tree.more and not self._stop.is_set():
                self._tell(tree.news())
        return "closed"

"""A commit of the port as one transaction of ZooKeeper.

ZooKeeper compares the data version of a znode and not the zxid that the port's version is. So a commit needs to know
each guard's data version beside its zxid. It tries with what this connection has seen, in one round trip; when a check
fails, nothing was written, and it reads and tries again. Only what was read just then makes a conflict.

What is remembered belongs to one connection: a server that lost its data has dropped it first.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError, ZookeeperError

from killswitch.stores.front import conflict
from killswitch.stores.port import StoreForbidden
from killswitch.stores.timing import Deadline
from killswitch.stores.zookeeper.channel import Channel
from killswitch.stores.zookeeper.connection import Connection, first_failure
from killswitch.stores.zookeeper.names import (
    ABSENT,
    LEASED,
    KeyState,
    ancestors,
    data_of,
    lease_path,
)
from killswitch.stores.zookeeper.read import read_states

ANY_VERSION = -1
REMEMBERED_MAX = 4_096
# ZooKeeper's jute.maxbuffer, by default 0xfffff bytes; it drops the connection of who sends more.
TRANSACTION_MAX_BYTES = 1_000_000
OPERATION_BYTES = 128

STALE = (BadVersionError, NoNodeError, NodeExistsError)


@dataclass(frozen=True, slots=True)
class Commit:
    """What shall be written, by the paths of the guards.

    Attributes:
        expect: versions, ``None`` for absent.
        puts: values.
        deletes: no path twice.
        leased: whether the values go into ephemeral children, of the session that the transaction is sent over.
    """

    expect: Mapping[str, int | None]
    puts: Mapping[str, bytes]
    deletes: Sequence[str] = ()
    leased: bool = False

    @property
    def paths(self) -> list[str]:
        """All guards that it has to do with."""
        return list(dict.fromkeys([*self.expect, *self.puts, *self.deletes]))

    def check_size(self, address: str) -> None:
        """Raise :class:`StoreForbidden` when ZooKeeper would drop the connection instead of answering."""
        size = sum(len(path.encode()) + OPERATION_BYTES for path in self.paths) + sum(map(len, self.puts.values()))
        if size > TRANSACTION_MAX_BYTES:
            raise StoreForbidden(
                f"ZooKeeper at {address} takes at most {TRANSACTION_MAX_BYTES} bytes in one commit, and this one has "
                f"{size}; write fewer keys at once"
            )


class Memory:
    """What one connection has seen: never believed, only tried."""

    def __init__(self) -> None:
        self._states: dict[str, KeyState] = {}
        self._nodes: set[str] = set()

    def note(self, path: str, state: KeyState) -> None:
        """A key was read or written."""
        if len(self._states) >= REMEMBERED_MAX:
            self._states.clear()
        self._states[path] = dataclasses.replace(state, value=None)
        if state.data_version is not None:
            self.note_nodes([path, *ancestors(path)])

    def note_nodes(self, paths: Sequence[str]) -> None:
        """These znodes are there."""
        if len(self._nodes) >= REMEMBERED_MAX:
            self._nodes.clear()
        self._nodes.update(paths)

    def forget(self, paths: Sequence[str]) -> None:
        """Something about these was wrong."""
        for path in paths:
            self._states.pop(path, None)
            self._nodes.difference_update([path, *ancestors(path)])

    def recall(self, commit: Commit) -> dict[str, KeyState] | None:
        """What the commit needs to be tried; ``None`` when something of that was not seen, or was seen to differ."""
        states = {path: state for path in commit.paths if (state := self._states.get(path)) is not None}
        if any(path not in states for path in (*commit.expect, *commit.deletes)):
            return None
        if any(states[path].expected != version for path, version in commit.expect.items()):
            return None
        return states

    def missing(self, commit: Commit, states: Mapping[str, KeyState]) -> list[str]:
        """Znodes that have to be created before the transaction, the topmost first, as far as is known."""
        wanted: dict[str, None] = {}
        for path in commit.paths:
            wanted.update(dict.fromkeys(ancestors(path)))
            # Where the state is known to be "no guard", the transaction creates it.
            if path not in states:
                wanted[path] = None
        return [path for path in wanted if path not in self._nodes]


@dataclass(frozen=True, slots=True)
class Written:
    """What a commit has done.

    Attributes:
        version: zxid of all that it wrote.
        data_versions: of the guards that it wrote to, by path.
    """

    version: int
    data_versions: Mapping[str, int]


class Writer:
    """Commits over one channel.

    Args:
        channel: to send over.
        address: of the store, for errors.
    """

    def __init__(self, channel: Channel, address: str) -> None:
        self._channel = channel
        self._address = address
        self._lock = threading.Lock()
        self._seen: tuple[Connection | None, Memory] = (None, Memory())

    def memory_of(self, connection: Connection) -> Memory:
        """What ``connection`` has seen. That of older connections is forgotten."""
        with self._lock:
            owner, memory = self._seen
            if owner is not connection:
                memory = Memory()
                self._seen = (connection, memory)
            return memory

    def commit(
        self, commit: Commit, what: str, deadline: Deadline, keys: Mapping[str, str], *, fresh: bool = False
    ) -> Written:
        """Write all or nothing.

        Args:
            commit: what.
            what: for errors, such as ``a commit to '/k'``.
            deadline: of all of it.
            keys: the key of each path, for errors.
            fresh: read before the first attempt, whatever is remembered.

        Raises:
            Conflict: an expectation does not hold.
            StoreUnavailable: it did not happen.
            OutcomeUnknown: it may have happened.
            StoreForbidden: refused.
            SessionGone: the session that the channel keeps has ended, and it did not happen.
        """
        commit.check_size(self._channel.address)
        while True:
            connection, states = self._states_for(commit, what, deadline, fresh=fresh)
            self._check_expectations(commit, states, keys)
            memory = self.memory_of(connection)
            creations = memory.missing(commit, states)
            transaction = _Transaction(commit, states)
            answer = self._channel.write(
                connection, functools.partial(_send, connection, creations, transaction, deadline), what
            )
            if answer.failure is None:
                memory.note_nodes(creations)
                for path, state in transaction.states_after(answer).items():
                    memory.note(path, state)
                return transaction.written(answer)
            memory.forget(commit.paths)
            self._check_stale(answer, what)
            fresh = True

    def _states_for(
        self, commit: Commit, what: str, deadline: Deadline, *, fresh: bool
    ) -> tuple[Connection, Mapping[str, KeyState]]:
        """The connection to send over, and how the keys stand, as remembered or as read over that connection."""
        if not fresh:
            connection = self._channel.connected(what, deadline)
            remembered = self.memory_of(connection).recall(commit)
            if remembered is not None:
                return connection, remembered
        return self._channel.ask(
            lambda connection, within: (connection, read_states(connection, commit.paths, within)), what, deadline
        )

    def _check_expectations(self, commit: Commit, states: Mapping[str, KeyState], keys: Mapping[str, str]) -> None:
        found = {path: states[path].expected for path in commit.expect}
        if found != commit.expect:
            raise conflict(
                self._address,
                {keys[path]: version for path, version in commit.expect.items()},
                {keys[path]: version for path, version in found.items()},
            )

    def _check_stale(self, answer: _Answer, what: str) -> None:
        """Raise the error of a transaction that reading again and trying again cannot mend."""
        assert answer.failure is not None
        if not isinstance(answer.failure, STALE):
            raise self._channel.refusal(answer.failure, what)
        if isinstance(answer.failure, NoNodeError) and answer.refused is not None:
            raise self._channel.refusal(answer.refused, what)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back.

    Attributes:
        refused: why a znode that the transaction stands on could not be created, other than that it is there.
        failure: what undid the transaction, ``None`` when it was done.
        results: one for each of its operations.
        zxid: of the reply.
    """

    refused: Exception | None
    failure: Exception | None
    results: Sequence[Any]
    zxid: int


def _send(connection: Connection, creations: Sequence[str], transaction: _Transaction, deadline: Deadline) -> _Answer:
    """Send the creations and the transaction without waiting between them, then wait for all."""
    created = [connection.create(path, ABSENT) for path in creations]
    reply = connection.transact(transaction.add_to)
    refused: Exception | None = None
    for creation in created:
        try:
            connection.outcome(creation, deadline)
        except NodeExistsError:
            continue
        except ZookeeperError as error:
            # Who may not create a znode may still write to it, if it is there already.
            refused = refused or error
    try:
        results = connection.outcome(reply, deadline)
    except ZookeeperError as error:
        return _Answer(refused, error, (), reply.zxid)
    return _Answer(refused, first_failure(results), results, reply.zxid)


class _Transaction:
    """The operations of a commit, given how its keys stand.

    Of a key without a state nothing is known: its guard is there by the time, and it is put whatever it was before. An
    ephemeral child that may be left over from a lease then says nothing, because the guard says that it has a value.
    """

    def __init__(self, commit: Commit, states: Mapping[str, KeyState]) -> None:
        self._commit = commit
        self._states = states
        self._set_at: dict[str, int] = {}
        self._operations: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        for path in commit.paths:
            if path in commit.puts:
                self._put(path, commit.puts[path])
            elif path in commit.deletes and self._states[path].present:
                self._write(path, ABSENT, self._states[path])
            else:
                self._check(path, self._states[path])
        if not self._operations:
            self._add("check", "/", ANY_VERSION)

    def add_to(self, kazoo_transaction: Any, acl: list[Any]) -> None:
        """Fill a transaction of kazoo's."""
        for name, arguments, options in self._operations:
            ours = {"acl": acl} if name == "create" else {}
            getattr(kazoo_transaction, name)(*arguments, **options, **ours)

    def written(self, answer: _Answer) -> Written:
        """Versions of what was written; of a commit that wrote nothing, that of the store."""
        stats = {path: answer.results[at] for path, at in self._set_at.items()}
        version = next((int(stat.mzxid) for stat in stats.values()), answer.zxid)
        return Written(version, {path: int(stat.version) for path, stat in stats.items()})

    def states_after(self, answer: _Answer) -> dict[str, KeyState]:
        """How the keys stand now."""
        written = self.written(answer)
        leased = self._commit.leased
        after: dict[str, KeyState] = {}
        for path in self._commit.paths:
            if path in written.data_versions:
                data_version = written.data_versions[path]
                present = path in self._commit.puts
                after[path] = KeyState(None, present, written.version, data_version, leased and present, leased)
            elif self._states[path].data_version is None:
                after[path] = KeyState(None, False, 0, 0)
            else:
                after[path] = self._states[path]
        return after

    def _put(self, path: str, value: bytes) -> None:
        state = self._states.get(path)
        self._write(path, LEASED if self._commit.leased else data_of(value), state)
        if self._commit.leased:
            self._add("create", lease_path(path), value, ephemeral=True)

    def _write(self, path: str, data: bytes, state: KeyState | None) -> None:
        if state is None:
            at_version = ANY_VERSION
        elif state.data_version is None:
            self._add("create", path, ABSENT)
            at_version = 0
        elif path in self._commit.puts and path not in self._commit.expect:
            at_version = ANY_VERSION
        else:
            at_version = state.data_version
        self._set_at[path] = len(self._operations)
        self._add("set_data", path, data, at_version)
        if state is not None and state.child:
            # Of a leased key this is also the check that its lease has not ended.
            self._add("delete", lease_path(path))

    def _check(self, path: str, state: KeyState) -> None:
        if state.data_version is None:
            # There is no check that something is not there.
            self._add("create", path, ABSENT)
            return
        self._add("check", path, state.data_version)
        if state.leased:
            self._add("check", lease_path(path), ANY_VERSION)

    def _add(self, name: str, *arguments: Any, **options: Any) -> None:
        self._operations.append((name, arguments, options))

"""The port on ZooKeeper, 3.5 or newer, over kazoo.

A version is the zxid that a key was last written at, a commit is a transaction, a lease is a session. What needed care
is in the private modules: what keys look like (``_zookeeper_names``), connections that are never mended
(``_zookeeper_connection``, ``_zookeeper_channel``), reads that are not stale (``_zookeeper_read``), commits
(``_zookeeper_commit``), leases (``_zookeeper_lease``) and watches that miss nothing (``_zookeeper_watch``).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from killswitch import clock
from killswitch.stores._requests import check_commit, check_key, check_ttl, check_value, conflict, named
from killswitch.stores._timing import Deadline
from killswitch.stores.port import Entry, Guarantees, OnChange, OnGap, StoreError, StoreUnavailable
from killswitch.stores.urls import StoreUrl
from killswitch.stores.zookeeper import inspect
from killswitch.stores.zookeeper.channel import Channel
from killswitch.stores.zookeeper.commit import Commit, Writer
from killswitch.stores.zookeeper.connection import Connection, ConnectionSettings, SessionGone
from killswitch.stores.zookeeper.dial import tls_context
from killswitch.stores.zookeeper.lease import LEASE_SLACK_MS, ZooKeeperLease, check_granted
from killswitch.stores.zookeeper.names import KeyState, path_of, roots_of
from killswitch.stores.zookeeper.read import read_key, scan
from killswitch.stores.zookeeper.watch import ALIVE_EVERY_MS, WatchSettings, ZooKeeperWatch

GUARANTEES = Guarantees(
    linearizable_reads=True,
    survives_failover=True,
    atomic_multi_key=True,
    lease_slack_ms=LEASE_SLACK_MS,
    note=(
        "Each read is preceded by an empty transaction that a majority agrees on, because ZooKeeper's sync may be "
        "answered by a deposed leader. The slack of leases holds for a tickTime of up to 2,000 ms; after a change of "
        "leader the whole time to live counts anew."
    ),
)


class ZooKeeperStore:
    """The port on a ZooKeeper ensemble. Opening one sends nothing; the first call connects.

    Args:
        url: servers, tried in turn; chroot; login; TLS.
        request_timeout_ms: time that one call may take, rotation to a second server included.
        backoff_cap_ms: longest pause between two attempts to reconnect.
        alive_every_ms: how often a watch asks for a sign of life; after three times that without one it reconnects.
        now_ns: clock of the time-outs.

    Raises:
        ValueError: the chroot, the user name or a TLS file is of no use.
    """

    def __init__(
        self,
        url: StoreUrl,
        *,
        request_timeout_ms: int = 400,
        backoff_cap_ms: int = 1_000,
        alive_every_ms: int = ALIVE_EVERY_MS,
        now_ns: clock.NowNs = clock.now_ns,
    ) -> None:
        _check_url(url)
        self._url = url
        self._base = url.path.rstrip("/")
        self._settings = ConnectionSettings(login=url.login, tls=url.tls, now_ns=now_ns)
        self._request_timeout_ms = request_timeout_ms
        self._channel = Channel(url.servers, self._settings, request_timeout_ms=request_timeout_ms)
        self._writer = Writer(self._channel, self.address)
        self._watch_settings = WatchSettings(
            servers=url.servers,
            connection=self._settings,
            base=self._base,
            request_timeout_ms=request_timeout_ms,
            backoff_cap_ms=backoff_cap_ms,
            alive_every_ms=alive_every_ms,
        )
        self._lock = threading.Lock()
        self._watches: set[ZooKeeperWatch] = set()
        self._leases: set[ZooKeeperLease] = set()
        self._closed = False

    @property
    def guarantees(self) -> Guarantees:
        """Declared facts about this store."""
        return GUARANTEES

    @property
    def address(self) -> str:
        """The URL, without credentials."""
        return self._url.address

    def read(self, key: str) -> Entry | None:
        """The newest value, or ``None``; raises as the port says."""
        check_key(key)
        state = self._read(key, f"reading {key!r}", self._channel.deadline())
        return None if state.value is None else Entry(key, state.value, state.version)

    def scan(self, prefix: str) -> list[Entry]:
        """All entries below ``prefix``, sorted by key; raises as the port says."""
        roots = roots_of(self._base, prefix)
        return self._channel.ask(lambda connection, within: scan(connection, roots, within), f"scanning {prefix!r}")

    def commit(self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> int:
        """Write all or nothing; raises as the port says, and ``ValueError`` for a request that makes no sense."""
        check_commit(expect, puts, deletes, self._channel.address)
        paths = {key: path_of(self._base, key) for key in (*expect, *puts, *deletes)}
        commit = Commit(
            {paths[key]: version for key, version in expect.items()},
            {paths[key]: value for key, value in puts.items()},
            [paths[key] for key in dict.fromkeys(deletes)],
        )
        keys = {path: key for key, path in paths.items()}
        what = f"a commit to {named([*puts, *deletes, *expect])}"
        return self._writer.commit(commit, what, self._channel.deadline(), keys).version

    def hold(self, key: str, value: bytes, ttl_ms: int) -> ZooKeeperLease:
        """Create ``key`` under a lease; raises as the port says."""
        check_key(key)
        check_value(key, value, self._channel.address)
        check_ttl(ttl_ms)
        what, deadline = f"holding {key!r}", self._channel.deadline()
        # Asked before a session is made, for candidates ask again and again.
        found = self._read(key, what, deadline).expected
        if found is not None:
            raise conflict(self.address, {key: None}, {key: found})
        own = Channel(
            self._url.servers,
            self._settings,
            request_timeout_ms=self._request_timeout_ms,
            session_timeout_ms=ttl_ms,
            keeps_session=True,
            first=self._channel.server_index,
        )
        try:
            check_granted(own.address, own.connected(what, deadline).granted_ms, ttl_ms)
            lease = self._hold_over(own, key, value, what, deadline)
        except SessionGone:
            own.close(end_session=False)
            raise StoreUnavailable(f"ZooKeeper at {self._channel.address} ended the session of {key!r}") from None
        except StoreError:
            own.close()
            raise
        with self._lock:
            if not self._closed:
                self._leases.add(lease)
                return lease
        lease.drop()
        raise self._closed_error()

    def watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> ZooKeeperWatch:
        """Subscribe, on a thread of the watch's own; as the port says."""
        watch = ZooKeeperWatch(self._watch_settings, prefix, on_change, on_gap, on_close=self._forget_watch)
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._watches.add(watch)
            watch.start()
        return watch

    def close(self) -> None:
        """End all watches and connections. The sessions of leases run out by themselves."""
        with self._lock:
            self._closed = True
            watches, leases = list(self._watches), list(self._leases)
        self._channel.end_soon()
        for lease in leases:
            lease.end_soon()
        for watch in watches:
            watch.end_soon()
        for watch in watches:
            watch.close()
        for lease in leases:
            lease.drop()
        self._channel.close()

    def server_version(self) -> str:
        """Version of the server that answers, such as ``3.8.0``.

        Raises:
            StoreUnavailable: no answer in time.
            StoreForbidden: the server's ``4lw.commands.whitelist`` does not have ``srvr``.
        """
        return inspect.server_version(self._channel)

    def server_settings(self) -> dict[str, str]:
        """Facts by name; "unknown: ..." where one cannot be had."""
        return inspect.server_settings(self._channel)

    def _read(self, key: str, what: str, deadline: Deadline) -> KeyState:
        path = path_of(self._base, key)

        def read(connection: Connection, within: Deadline) -> KeyState:
            state = read_key(connection, path, within)
            self._writer.memory_of(connection).note(path, state)
            return state

        return self._channel.ask(read, what, deadline)

    def _hold_over(self, own: Channel, key: str, value: bytes, what: str, deadline: Deadline) -> ZooKeeperLease:
        path = path_of(self._base, key)
        commit = Commit({path: None}, {path: value}, leased=True)
        written = Writer(own, self.address).commit(commit, what, deadline, {path: key}, fresh=True)
        return ZooKeeperLease(
            key,
            path,
            written.version,
            written.data_versions[path],
            own=own,
            others=self._channel,
            on_end=self._forget_lease,
        )

    def _closed_error(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store at {self.address} has been closed")

    def _forget_watch(self, watch: ZooKeeperWatch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _forget_lease(self, lease: ZooKeeperLease) -> None:
        with self._lock:
            self._leases.discard(lease)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_url(url: StoreUrl) -> None:
    chroot = url.path.rstrip("/")
    segments = chroot[1:].split("/") if chroot else []
    if any(part in {"", ".", "..", "zookeeper"} or not part.isascii() or not part.isprintable() for part in segments):
        raise ValueError(
            f"{url.path!r} is no path of a ZooKeeper node; write /NAME or /NAME/NAME, in printable ASCII, without "
            "empty names, '.', '..' and 'zookeeper'"
        )
    if url.login is not None and ":" in url.login.username:
        raise ValueError("the user name of a ZooKeeper login has no ':'")
    if url.tls is not None:
        try:
            tls_context(url.tls)
        except OSError as error:
            raise ValueError(f"the TLS files of the ZooKeeper URL are of no use: {error}") from None

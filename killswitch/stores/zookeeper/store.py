"""The port on ZooKeeper, 3.5 or newer, over kazoo.

A version is the zxid that a key was last written at, a commit is a transaction, a lease is a session. What needed care
is in the other modules of this folder: what keys look like (``names``), connections that are never mended
(``connection``, ``channel``), reads that are not stale (``read``), commits (``commit``), leases (``lease``) and watches
that miss nothing (``watch``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from killswitch import clock
from killswitch.stores.front import StoreFront, conflict
from killswitch.stores.port import Entry, Guarantees, OnChange, OnGap, StoreError, StoreForbidden, StoreUnavailable
from killswitch.stores.timing import Deadline
from killswitch.stores.tls import client_context
from killswitch.stores.urls import StoreUrl
from killswitch.stores.zookeeper.channel import Channel
from killswitch.stores.zookeeper.commit import Commit, Writer
from killswitch.stores.zookeeper.connection import Connection, ConnectionSettings, SessionGone, Unanswered
from killswitch.stores.zookeeper.dial import command, reason
from killswitch.stores.zookeeper.lease import LEASE_SLACK_MS, ZooKeeperLease, check_granted
from killswitch.stores.zookeeper.names import KeyState, path_of, roots_of
from killswitch.stores.zookeeper.read import read_key, scan
from killswitch.stores.zookeeper.watch import ALIVE_EVERY_MS, ZooKeeperWatch, ZooKeeperWatchSettings

# What ZooKeeper calls it, and what we call it.
SHOWN = {"Mode": "mode", "Node count": "znodes", "Connections": "connections", "Outstanding": "outstanding_requests"}

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


class ZooKeeperStore(StoreFront):
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
        super().__init__(url.address, GUARANTEES)
        self._url = url
        self._base = url.path.rstrip("/")
        self._settings = ConnectionSettings(login=url.login, tls=url.tls, now_ns=now_ns)
        self._request_timeout_ms = request_timeout_ms
        self._channel = Channel(url.servers, self._settings, request_timeout_ms=request_timeout_ms)
        self._writer = Writer(self._channel, self.address)
        self._watch_settings = ZooKeeperWatchSettings(
            servers=url.servers,
            request_timeout_ms=request_timeout_ms,
            backoff_cap_ms=backoff_cap_ms,
            alive_every_ms=alive_every_ms,
            now_ns=now_ns,
            connection=self._settings,
            base=self._base,
        )
        self._leases: set[ZooKeeperLease] = set()

    def close(self) -> None:
        """End all watches and connections. The sessions of leases run out by themselves."""
        with self._lock:
            self._closed = True
            leases = list(self._leases)
        self._channel.end_soon()
        for lease in leases:
            lease.end_soon()
        super().close()

    def _read(self, key: str, what: str) -> Entry | None:
        state = self._read_state(key, what, self._channel.deadline())
        return None if state.value is None else Entry(key, state.value, state.version)

    def _scan(self, prefix: str, what: str) -> list[Entry]:
        roots = roots_of(self._base, prefix)
        return self._channel.ask(lambda connection, within: scan(connection, roots, within), what)

    def _commit(
        self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str], what: str
    ) -> int:
        paths = {key: path_of(self._base, key) for key in (*expect, *puts, *deletes)}
        commit = Commit(
            {paths[key]: version for key, version in expect.items()},
            {paths[key]: value for key, value in puts.items()},
            [paths[key] for key in deletes],
        )
        keys = {path: key for key, path in paths.items()}
        return self._writer.commit(commit, what, self._channel.deadline(), keys).version

    def _hold(self, key: str, value: bytes, ttl_ms: int, what: str) -> ZooKeeperLease:
        deadline = self._channel.deadline()
        # Asked before a session is made, for candidates ask again and again.
        found = self._read_state(key, what, deadline).expected
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

    def _new_watch(self, prefix: str, on_change: OnChange, on_gap: OnGap) -> ZooKeeperWatch:
        return ZooKeeperWatch(self._watch_settings, prefix, on_change, on_gap, on_close=self._forget)

    def _disconnect(self) -> None:
        with self._lock:
            leases = list(self._leases)
        for lease in leases:
            lease.drop()
        self._channel.close()

    def server_version(self) -> str:
        """Version of the server that answers, such as ``3.8.0``.

        Raises:
            StoreUnavailable: no answer in time.
            StoreForbidden: the server's ``4lw.commands.whitelist`` does not have ``srvr``.
        """
        told = self._channel.ask(_srvr, "its version")
        version = re.match(r"Zookeeper version: ([0-9.]+)", told)
        if version is None:
            raise StoreForbidden(
                f"ZooKeeper at {self._channel.address} does not tell its version; add srvr to its "
                "4lw.commands.whitelist"
            )
        return version[1]

    def server_settings(self) -> dict[str, str]:
        """Facts by name, in the order in which a person reads them; "unknown: ..." where one cannot be had."""
        try:
            server, granted_ms, told = self._channel.ask(
                lambda connection, within: (connection.server, connection.granted_ms, _srvr(connection, within)),
                "its settings",
            )
        except StoreError as error:
            return {"server": f"unknown: {error}"}
        settings = {"server": server, "session_timeout_ms": str(granted_ms)}
        lines = dict(line.split(": ", 1) for line in told.splitlines() if ": " in line)
        if "Mode" not in lines:
            why = "unknown: add srvr to the server's 4lw.commands.whitelist"
            return settings | dict.fromkeys(("read_only", *SHOWN.values()), why)
        settings["read_only"] = "true" if lines["Mode"] == "read-only" else "false"
        return settings | {name: lines[label] for label, name in SHOWN.items() if label in lines}

    def _read_state(self, key: str, what: str, deadline: Deadline) -> KeyState:
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

    def _forget_lease(self, lease: ZooKeeperLease) -> None:
        with self._lock:
            self._leases.discard(lease)


def _srvr(connection: Connection, deadline: Deadline) -> str:
    try:
        return command(connection.server, "srvr", connection.tls, deadline)
    except OSError as error:
        raise Unanswered(reason(error)) from None


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
        client_context(url.tls)

"""Measures a store and reads the cluster in it. Says what was found and holds no opinion."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from killswitch.cluster.cluster import Cluster, NotInitialised
from killswitch.cluster.records import UnreadableRecord
from killswitch.doctor.measurements import Attempt, ClusterSeen, NodeSeen, RoundTrips, StoreExamined, StoreSeen
from killswitch.stores.port import Conflict, Entry, Store, StoreError, StoreForbidden

CALLS = 20
"""Reads, and commits, that are timed."""

SLOTS = 16
"""Names that the doctor's keys have. Few, for some stores keep a trace of each name for ever; several, for two people
may look at once."""

WATCH_WITHIN_TIMEOUTS = 5
"""A watch that shows nothing within so many request time-outs is taken for dead."""

LEASE_TRIES = 3

NOT_SHOWN = ("pass", "secret", "token", "auth", "credential", "key", "user")
"""Parts of names of settings that are not shown: what they hold may be a secret."""
SWITCH = frozenset({"true", "false", "yes", "no", "on", "off"})
"""Values that are no secret under any name."""

NS_PER_MS = 1_000_000


@runtime_checkable
class TellsVersion(Protocol):
    """A store that can ask its server for its version."""

    def server_version(self) -> str: ...


@runtime_checkable
class TellsSettings(Protocol):
    """A store that can ask its server how it is set up."""

    def server_settings(self) -> dict[str, str]: ...


def examine(cluster: Cluster, *, calls: int = CALLS) -> StoreExamined:
    """Measure the store of a cluster, and read the cluster in it; never raises for what a store may do.

    It writes to one key of its own below the cluster's keys, takes one lease there, and deletes both again.
    """
    store = cluster.store
    facts = store.guarantees
    guarantees: dict[str, bool | int] = {
        "linearizable_reads": facts.linearizable_reads,
        "survives_failover": facts.survives_failover,
        "atomic_multi_key": facts.atomic_multi_key,
        "fenced": facts.fenced,
        "lease_slack_ms": facts.lease_slack_ms,
    }
    try:
        store.read(cluster.keys.flag)
    except StoreError as error:
        seen = StoreSeen(
            address=store.address,
            answers=isinstance(error, StoreForbidden),
            error=str(error),
            guarantees=guarantees,
            note=facts.note,
        )
        return StoreExamined(seen, None)
    own_key = cluster.keys.under("doctor", str(secrets.randbelow(SLOTS)))
    reads = _timed(calls, lambda: store.read(cluster.keys.flag))
    writes = _timed(calls, lambda: store.commit({}, {own_key: b"{}"}))
    watch = _watch_shows_a_commit(store, own_key, WATCH_WITHIN_TIMEOUTS * cluster.timing.request_timeout_ms)
    version, settings, not_told = _told(store)
    seen = StoreSeen(
        address=store.address,
        answers=True,
        version=version,
        settings=settings,
        not_told=not_told,
        guarantees=guarantees,
        note=facts.note,
        reads=reads,
        writes=writes,
        watch=watch,
        lease=_lease(cluster),
        left_behind=_error_of(lambda: store.commit({}, {}, [own_key])),
    )
    return StoreExamined(seen, read_cluster(cluster))


def read_cluster(cluster: Cluster) -> ClusterSeen:
    """Read what the store holds of the cluster, part by part: one that fails leaves the others."""
    epoch, mode, freezes, entries = None, "", 0, None
    flag_error = history_error = books_error = leader_error = ""
    faults: tuple[str, ...] = ()
    nodes: tuple[NodeSeen, ...] = ()
    unreadable: tuple[str, ...] = ()
    leader, term = "", None
    try:
        flag = cluster.read_flag().flag
        epoch, mode, freezes = flag.epoch, flag.mode.name, len(flag.freezes)
        entries, faults = len(cluster.history()), tuple(fault.sentence for fault in cluster.verify_history())
    except NotInitialised as error:
        flag_error = str(error)
    except (UnreadableRecord, StoreError) as error:
        flag_error, history_error = (str(error), "") if epoch is None else ("", str(error))
    try:
        membership = cluster.membership()
        nodes = tuple(
            NodeSeen(name, name in membership.live, record.permit_ttl_ms if record else None)
            for name, record in sorted(membership.nodes.items())
        )
        unreadable = membership.unreadable_reports()
    except StoreError as error:
        books_error = str(error)
    try:
        led_by = cluster.leader()
        leader, term = (led_by.id, led_by.term) if led_by else ("", None)
    except (UnreadableRecord, StoreError) as error:
        leader_error = str(error)
    return ClusterSeen(
        cluster=cluster.name,
        flag_error=flag_error,
        epoch=epoch,
        mode=mode,
        freezes=freezes,
        history_error=history_error,
        history_faults=faults,
        history_entries=entries,
        books_error=books_error,
        nodes=nodes,
        unreadable_reports=unreadable,
        leader_error=leader_error,
        leader=leader,
        term=term,
    )


def _timed(calls: int, call: Callable[[], object]) -> RoundTrips:
    """Time a call several times; the first failure ends it, for every further one would take a whole time-out."""
    times_ms: list[float] = []
    for _ in range(calls):
        started_ns = time.monotonic_ns()
        try:
            call()
        except StoreError as error:
            return RoundTrips.of(times_ms, str(error))
        times_ms.append((time.monotonic_ns() - started_ns) / NS_PER_MS)
    return RoundTrips.of(times_ms)


def _watch_shows_a_commit(store: Store, key: str, within_ms: int) -> Attempt:
    """Time from the start of a commit until a watch of the key has shown it."""
    ready, shown = threading.Event(), threading.Event()
    committed: list[int] = []

    def on_change(entry: Entry) -> None:
        # Commits from before may still arrive; the store's version tells which one this is.
        if entry.key == key and committed and entry.version >= committed[0]:
            shown.set()

    def on_gap() -> None:
        ready.set()

    try:
        watch = store.watch(key, on_change, on_gap)
    except StoreError as error:
        return Attempt(error=str(error))
    try:
        if not ready.wait(within_ms / 1000):
            return Attempt(error=f"it did not start within {within_ms} ms")
        entry = store.read(key)
        # Known before the commit is sent: its event may come before its reply.
        committed.append((entry.version if entry else 0) + 1)
        started_ns = time.monotonic_ns()
        store.commit({}, {key: b"{}"})
        if not shown.wait(within_ms / 1000):
            return Attempt(error=f"a commit did not show within {within_ms} ms")
        return Attempt((time.monotonic_ns() - started_ns) / NS_PER_MS)
    except StoreError as error:
        return Attempt(error=str(error))
    finally:
        watch.close()


def _lease(cluster: Cluster) -> Attempt:
    """Take a lease and give it back. A name that is taken is another doctor's; then another name is tried."""
    names = [f"lease-{slot}" for slot in range(SLOTS)]
    secrets.SystemRandom().shuffle(names)
    error = ""
    for name in names[:LEASE_TRIES]:
        started_ns = time.monotonic_ns()
        try:
            lease = cluster.store.hold(cluster.keys.under("doctor", name), b"{}", cluster.timing.lease_ttl_ms)
            took_ms = (time.monotonic_ns() - started_ns) / NS_PER_MS
            lease.release()
        except Conflict as taken:
            error = str(taken)
        except StoreError as problem:
            return Attempt(error=str(problem))
        else:
            return Attempt(took_ms)
    return Attempt(error=error)


def _told(store: Store) -> tuple[str, dict[str, str], str]:
    """Version and settings of the server, as far as it tells, and why it does not tell more."""
    version, settings, error = "", {}, ""
    try:
        if isinstance(store, TellsVersion):
            version = store.server_version()
        if isinstance(store, TellsSettings):
            settings = store.server_settings()
    except Exception as problem:  # whatever a server of another make says, the rest is still measured
        error = str(problem) or repr(problem)
    shown = {
        name: value
        for name, value in sorted(settings.items())
        if value in SWITCH or not any(part in name.lower() for part in NOT_SHOWN)
    }
    return version, shown, error


def _error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except StoreError as error:
        return str(error)
    return ""

"""Redis behind Sentinel: failovers with and without loss, primaries that are cut off, replicas that are away.

What every store has to do is in the other files of this folder, and what only a single Redis does in
``test_redis_faults.py``.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from killswitch.stores import (
    Conflict,
    Entry,
    OutcomeUnknown,
    Store,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
    open_store,
)
from tests.conformance.forwarder import Forwarder
from tests.conformance.rigs.base import BACKOFF_CAP_MS, PATIENT_MS
from tests.conformance.rigs.network import free_port
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.redis import MINIMAL_RIGHTS, image_of_redis, open_impatient_redis
from tests.conformance.rigs.sentinel import SentinelRig
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

# Long, because replicas get half of it, and Redis tells up to 145 ms late that they did not confirm.
TIMEOUT_MS = 2_000
# For the call to be scheduled on a busy machine; less than a second time-out.
NOTICE_S = 1.8
# The Sentinels look at a replica every 10 s, and it may take two looks until it follows the new primary.
FAILOVER_WITHIN_S = 90.0


@pytest.fixture(scope="module")
def rig() -> Iterator[SentinelRig]:
    """One group of servers for the file."""
    made = SentinelRig(image_of_redis())
    yield made
    made.close()


@pytest.fixture
def group(rig: SentinelRig) -> Iterator[SentinelRig]:
    """The servers, to be harmed; whole again afterwards."""
    yield rig
    rig.make_whole()


def directly(port: int, options: str = "") -> Store:
    """A client of one server, whatever the Sentinels say."""
    return open_store(f"redis://127.0.0.1:{port}{options}", request_timeout_ms=1_000, backoff_cap_ms=BACKOFF_CAP_MS)


def succeeds(call: Callable[[], object]) -> Callable[[], bool]:
    """A condition: the call raises no error of the port."""

    def tried() -> bool:
        try:
            call()
        except StoreError:
            return False
        return True

    return tried


def wait_for_failover(group: SentinelRig, old: int) -> int:
    """Wait until all Sentinels name another primary than ``old``; returns its port."""
    return wait_until(
        lambda: (named := group.primary()) != old and named,
        within_s=FAILOVER_WITHIN_S,
        what=f"the Sentinels naming another primary than {old}",
    )


def test_a_failover_is_admitted_in_the_guarantees(store: Store, group: SentinelRig) -> None:
    """Neither linearizable reads nor survival are claimed, and the note says what is fenced and what is not."""
    assert not store.guarantees.linearizable_reads
    assert not store.guarantees.survives_failover
    assert "wait_replicas=1 an old primary that is cut off answers nobody" in store.guarantees.note
    assert store.address == group.address
    with group.open("?wait_replicas=0") as trusting:
        assert "goes on answering" in trusting.guarantees.note


@pytest.mark.parametrize("end", ["KILL", "STOP"])
def test_another_server_takes_over_from_a_killed_or_hanging_primary(
    group: SentinelRig, at: str, observer: Observer, end: str
) -> None:
    """Requests go through again, the watch says gap and goes on, and versions grow."""
    with open_impatient_redis(group.address, request_timeout_ms=2_000) as store:
        before = store.commit({}, {f"{at}k": b"before"})
        store.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        old = group.primary()
        gaps_before = observer.gaps
        group.signal(end, old)
        wait_for_failover(group, old)
        wait_until(
            succeeds(lambda: store.commit({}, {f"{at}k": b"after"})), within_s=FAILOVER_WITHIN_S, what="a commit"
        )
        after = store.read(f"{at}k")
        assert after is not None
        assert after.value == b"after"
        assert after.version > before
        observer.wait_for_gap(after=gaps_before)
        # Not all Sentinels may name the new one yet, and the watch changes over again when it believes one of those.
        observer.hears(store, f"{at}k", b"later", within_s=FAILOVER_WITHIN_S)


def test_a_write_that_no_replica_had_is_lost_at_failover_and_its_version_never_comes_again(
    group: SentinelRig, at: str
) -> None:
    """The honest guarantee: without confirmation by replicas an acknowledged freeze can be forgotten."""
    old = group.primary()
    with group.open() as store, directly(old) as near:
        kept = store.commit({}, {f"{at}k": b"kept"})
        group.cut(old)
        lost = near.commit({f"{at}k": kept}, {f"{at}k": b"lost"})
        assert near.read(f"{at}k") == Entry(f"{at}k", b"lost", lost)
        group.signal("KILL", old)
        wait_for_failover(group, old)
        wait_until(succeeds(lambda: store.read(f"{at}k")), within_s=FAILOVER_WITHIN_S, what="a confirmed read")
        entry = store.read(f"{at}k")
        assert entry == Entry(f"{at}k", b"kept", kept)
        with pytest.raises(Conflict):
            store.commit({f"{at}k": lost}, {f"{at}k": b"stale"})
        assert store.commit({f"{at}k": kept}, {f"{at}k": b"new"}) > lost


def test_a_cut_off_primary_answers_no_fenced_read_once_another_has_taken_over(group: SentinelRig, at: str) -> None:
    """BOUNDED STOP: a node beside the old primary gets no read, so no permit, after the freeze at the new one."""
    old = group.primary()
    with (
        directly(old, "?wait_replicas=1") as fenced,
        directly(old) as unfenced,
        open_impatient_redis(group.address, request_timeout_ms=2_000) as roaming,
    ):
        roaming.commit({}, {f"{at}flag": b"active"})
        assert fenced.read(f"{at}flag") == unfenced.read(f"{at}flag") == roaming.read(f"{at}flag")
        group.cut(old)
        wait_for_failover(group, old)
        with group.open() as store:
            wait_until(
                succeeds(lambda: store.commit({}, {f"{at}flag": b"frozen"})),
                within_s=FAILOVER_WITHIN_S,
                what="the freeze at the new primary",
            )
        roamed: list[Entry | None] = []

        def roaming_client_has_arrived() -> bool:
            # The old primary is there, reachable, and wrong: this is what the fence is for.
            believed = unfenced.read(f"{at}flag")
            assert believed is not None
            assert believed.value == b"active"
            for call in (lambda: fenced.read(f"{at}flag"), lambda: fenced.scan(at)):
                with pytest.raises(StoreUnavailable):
                    call()
            with contextlib.suppress(StoreUnavailable):
                roamed.append(roaming.read(f"{at}flag"))
            return len(roamed) >= 5

        wait_until(roaming_client_has_arrived, within_s=FAILOVER_WITHIN_S, what="five reads at the new primary")
        # It had a connection to the old primary, and never once the old value.
        assert [entry and entry.value for entry in roamed] == [b"frozen"] * 5


def test_with_its_replicas_away_a_primary_confirms_nothing(group: SentinelRig, at: str) -> None:
    """Writes are OutcomeUnknown, reads and keep-alives StoreUnavailable, and all say why; then all is well again."""
    old = group.primary()
    with group.open() as store, group.open(request_timeout_ms=TIMEOUT_MS) as hasty:
        lease = hasty.hold(f"{at}held", b"v", 60_000)
        group.signal("STOP", *(port for port in group.servers if port != old))
        started_s = time.monotonic()
        with pytest.raises(OutcomeUnknown, match=r"0 of the 1 replicas asked for have confirmed.*may have happened"):
            hasty.commit({}, {f"{at}k": b"v"})
        assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S
        with pytest.raises(OutcomeUnknown):
            hasty.hold(f"{at}other", b"v", 60_000)
        with pytest.raises(StoreUnavailable):
            # Nothing was written, whether the conflict is one or not.
            hasty.commit({f"{at}k": 1}, {f"{at}k": b"v"})
        for call in (lambda: hasty.read(f"{at}k"), lambda: hasty.scan(at), lease.keep_alive):
            with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
                call()
        group.signal("CONT", *(port for port in group.servers if port != old))
        wait_until(succeeds(lambda: store.read(f"{at}k")), within_s=FAILOVER_WITHIN_S, what="a read that is confirmed")
        lease.keep_alive()
        entry = store.read(f"{at}k")
        assert entry is not None
        assert entry.value == b"v"


def test_a_watch_leaves_a_primary_that_was_deposed_without_knowing(
    group: SentinelRig, at: str, observer: Observer
) -> None:
    """The old primary answers the watch and its messages still come; only its replicas are silent."""
    old = group.primary()
    with open_impatient_redis(group.address, request_timeout_ms=2_000) as watching:
        watching.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        gaps_before = observer.gaps
        group.cut(old)
        wait_for_failover(group, old)
        observer.wait_for_gap(after=gaps_before)
        with group.open() as store:
            observer.hears(store, f"{at}flag", b"frozen", within_s=FAILOVER_WITHIN_S)


def test_a_replica_answers_nothing(group: SentinelRig, at: str) -> None:
    """A URL that leads to a replica by mistake is refused, reads included."""
    replica = next(port for port in group.servers if port != group.primary())
    with directly(replica) as store:
        for call in (lambda: store.read(f"{at}k"), lambda: store.commit({}, {f"{at}k": b"v"})):
            with pytest.raises(StoreUnavailable, match=r"is a replica|read only replica"):
                call()


def test_a_planned_switch_never_lets_a_refused_write_pass_for_done(group: SentinelRig, at: str) -> None:
    """Once the primary has become a replica under the client, what it calls written is there, and the rest raises.

    What the old primary took before that may be forgotten, also without any error in between: it goes on taking writes
    while its successor is promoted. That is what an asynchronous failover is, and the store's guarantees say so.
    """
    old = group.primary()
    with open_impatient_redis(group.address, request_timeout_ms=2_000) as store:
        store.commit({}, {f"{at}0": b"v"})
        group.switch()
        written: list[tuple[str, int]] = []
        numbers = itertools.count(1)

        def write_and_see(moved: Callable[[], bool]) -> bool:
            key = f"{at}{next(numbers)}"
            try:
                written.append((key, store.commit({key: None}, {key: b"v"})))
            except (StoreUnavailable, OutcomeUnknown):
                written.clear()
            return moved()

        wait_until(
            lambda: write_and_see(lambda: group.is_replica(old)), within_s=FAILOVER_WITHIN_S, what="the planned switch"
        )
        written.clear()
        wait_until(
            lambda: write_and_see(lambda: len(written) >= 50), within_s=FAILOVER_WITHIN_S, what="50 writes in a row"
        )
        found = {entry.key: entry.version for entry in store.scan(at)}
        assert written == [(key, found.get(key)) for key, _ in written]


@pytest.mark.parametrize("first", ["dead", "mute"])
def test_a_second_sentinel_answers_in_place_of_a_dead_or_mute_one(
    rig: SentinelRig, at: str, first: str, observer: Observer
) -> None:
    """Every request succeeds in its time although the first Sentinel is no good, and so does the watch."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        bad = mute.getsockname()[1] if first == "mute" else free_port()
        url = f"redis+sentinel://127.0.0.1:{bad},127.0.0.1:{rig.sentinels[0]}/trading"
        calls: dict[str, Callable[[Store], object]] = {
            "read": lambda store: store.read(f"{at}k"),
            "scan": lambda store: store.scan(at),
            "commit": lambda store: store.commit({}, {f"{at}k": b"v"}),
            "hold": lambda store: store.hold(f"{at}held", b"v", 60_000),
        }
        for call in calls.values():
            with open_impatient_redis(url, request_timeout_ms=4_000) as store:
                call(store)
        with open_impatient_redis(url, request_timeout_ms=4_000, alive_every_ms=500) as store:
            store.watch(at, observer.on_change, observer.on_gap)
            observer.wait_for_gap()
            observer.hears(store, f"{at}seen", b"v")


@pytest.mark.parametrize("count", [1, 3])
def test_sentinels_that_never_answer_are_unavailable_in_time(at: str, rig: SentinelRig, count: int) -> None:
    """All of the looking for a primary is within the time of the one request that needs it."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        server = f"127.0.0.1:{mute.getsockname()[1]}"
        url = f"redis+sentinel://{','.join([server] * count)}/trading"
        with open_impatient_redis(url, request_timeout_ms=TIMEOUT_MS) as store:
            for call in (lambda: store.read(f"{at}k"), lambda: store.commit({}, {f"{at}k": b"v"})):
                started_s = time.monotonic()
                with pytest.raises(StoreUnavailable, match="did not answer"):
                    call()
                assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S


def test_a_name_that_no_sentinel_knows_is_said(rig: SentinelRig) -> None:
    """A misspelt name is not taken for a server that is down."""
    with (
        open_store(rig.address.replace("/trading", "/traiding"), request_timeout_ms=PATIENT_MS) as store,
        pytest.raises(StoreUnavailable, match="knows no primary named 'traiding'"),
    ):
        store.read("k")


def test_a_network_that_swallows_a_sentinel_costs_no_request(rig: SentinelRig, at: str) -> None:
    """The Sentinel that was asked first falls silent; the next is asked within the same request."""
    with Forwarder(f"127.0.0.1:{rig.sentinels[0]}") as network:
        url = f"redis+sentinel://{network.server},127.0.0.1:{rig.sentinels[1]}/trading"
        with open_impatient_redis(url, request_timeout_ms=4_000) as store:
            store.commit({}, {f"{at}k": b"v"})
        network.swallow_everything()
        with open_impatient_redis(url, request_timeout_ms=4_000) as store:
            assert store.read(f"{at}k") is not None
        assert network.swallowed_bytes > 0


def test_sentinels_and_servers_may_ask_for_different_passwords(rig: SentinelRig, at: str, tmp_path: Path) -> None:
    """Each gets its own, and a wrong one of either is StoreForbidden, as is a missing right to wait for replicas."""
    for port in rig.servers:
        rig.ask(port, "ACL", "SETUSER", "agent", "reset", "on", ">of-the-server", *MINIMAL_RIGHTS, "+wait")
        rig.ask(port, "ACL", "SETUSER", "poor", "reset", "on", ">of-the-server", *MINIMAL_RIGHTS)
    for port in rig.sentinels:
        rig.ask(
            port, "ACL", "SETUSER", "seeker", "reset", "on", ">of-the-sentinel", "+sentinel|get-master-addr-by-name"
        )
    for name in ("server", "sentinel"):
        (tmp_path / name).write_text(f"of-the-{name}\n")

    def open_as(user: str, file: str, sentinel_file: str) -> Store:
        return rig.open(
            f"?username={user}&password_file={tmp_path / file}"
            f"&sentinel_username=seeker&sentinel_password_file={tmp_path / sentinel_file}"
        )

    with open_as("agent", "server", "sentinel") as store:
        store.commit({}, {f"{at}k": b"v"})
    with open_as("agent", "sentinel", "sentinel") as store, pytest.raises(StoreForbidden, match="of user 'agent'"):
        store.read(f"{at}k")
    with open_as("agent", "server", "server") as store, pytest.raises(StoreForbidden, match="of user 'seeker'"):
        store.read(f"{at}k")
    with open_as("poor", "server", "sentinel") as store, pytest.raises(StoreForbidden, match=r"NOPERM.*'wait'"):
        store.commit({}, {f"{at}k": b"w"})
    with rig.open() as store:
        entry = store.read(f"{at}k")
        assert entry is not None
        assert entry.value == b"v"

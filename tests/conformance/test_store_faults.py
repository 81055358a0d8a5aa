"""What every store keeps of its contract while servers die, hang, and networks swallow what they should carry."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from killswitch.clock import wall_now
from killswitch.cluster.cluster import Cluster, Committed, new_freeze_id
from killswitch.core.flag import Flag, Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL
from killswitch.stores import Conflict, OutcomeUnknown, Store, StoreUnavailable
from tests.conformance.forwarder import Forwarder
from tests.conformance.rigs.base import ServerRig
from tests.conformance.rigs.network import free_port
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.warm import hold_in_the_end, wait_until_reading
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import wait_until

NO_SERVER = "the store is in this process, so there is no server and no network that could fail"
NOT_OURS = "the server was started by somebody else, and is not ours to pause or kill"
ONE_SERVER = "a redis:// URL names one server; test_redis_faults.py has Sentinel in place of a second one"
SKIPS: dict[str, dict[str, str]] = {
    "memory": {
        "test_a_server_that_is_not_there_is_unavailable_in_time": NO_SERVER,
        "test_a_server_that_never_answers_is_unavailable_in_time": NO_SERVER,
        "test_a_second_server_answers_in_place_of_a_dead_or_mute_one": NO_SERVER,
        "test_a_killed_server_forgets_nothing_and_the_watch_goes_on": NO_SERVER,
        "test_a_watch_opened_while_the_server_is_away_begins_when_it_is_back": NO_SERVER,
        "test_a_hanging_server_makes_a_commit_unknown_and_a_fence_settles_it": NO_SERVER,
        "test_after_an_unknown_outcome_nothing_more_is_sent_blindly": NO_SERVER,
        "test_silence_is_never_taken_for_health": NO_SERVER,
        "test_quiet_is_not_taken_for_silence": NO_SERVER,
        "test_a_watch_moves_to_another_server_when_its_own_falls_silent": NO_SERVER,
        "test_a_commit_whose_reply_the_network_loses_is_unknown_and_has_happened": NO_SERVER,
        "test_a_freeze_whose_reply_the_network_loses_ends_in_force_once": NO_SERVER,
        "test_closing_is_quick_while_the_server_hangs": NO_SERVER,
    },
    "embedded": {},
    "etcd": {},
    "etcd by URL": {
        "test_a_killed_server_forgets_nothing_and_the_watch_goes_on": NOT_OURS,
        "test_a_watch_opened_while_the_server_is_away_begins_when_it_is_back": NOT_OURS,
        "test_a_hanging_server_makes_a_commit_unknown_and_a_fence_settles_it": NOT_OURS,
        "test_after_an_unknown_outcome_nothing_more_is_sent_blindly": NOT_OURS,
        "test_silence_is_never_taken_for_health": NOT_OURS,
        "test_closing_is_quick_while_the_server_hangs": NOT_OURS,
    },
    "redis": {
        "test_a_second_server_answers_in_place_of_a_dead_or_mute_one": ONE_SERVER,
        "test_a_watch_moves_to_another_server_when_its_own_falls_silent": ONE_SERVER,
        "test_a_commit_whose_reply_the_network_loses_is_unknown_and_has_happened": ONE_SERVER,
    },
    "redis by URL": {
        "test_a_second_server_answers_in_place_of_a_dead_or_mute_one": ONE_SERVER,
        "test_a_watch_moves_to_another_server_when_its_own_falls_silent": ONE_SERVER,
        "test_a_commit_whose_reply_the_network_loses_is_unknown_and_has_happened": ONE_SERVER,
        "test_a_killed_server_forgets_nothing_and_the_watch_goes_on": NOT_OURS,
        "test_a_watch_opened_while_the_server_is_away_begins_when_it_is_back": NOT_OURS,
        "test_a_hanging_server_makes_a_commit_unknown_and_a_fence_settles_it": NOT_OURS,
        "test_after_an_unknown_outcome_nothing_more_is_sent_blindly": NOT_OURS,
        "test_silence_is_never_taken_for_health": NOT_OURS,
        "test_closing_is_quick_while_the_server_hangs": NOT_OURS,
    },
    "zookeeper": {},
    "zookeeper by URL": {
        "test_a_killed_server_forgets_nothing_and_the_watch_goes_on": NOT_OURS,
        "test_a_watch_opened_while_the_server_is_away_begins_when_it_is_back": NOT_OURS,
        "test_a_hanging_server_makes_a_commit_unknown_and_a_fence_settles_it": NOT_OURS,
        "test_after_an_unknown_outcome_nothing_more_is_sent_blindly": NOT_OURS,
        "test_silence_is_never_taken_for_health": NOT_OURS,
        "test_closing_is_quick_while_the_server_hangs": NOT_OURS,
    },
}

KEPT_BY_MEMORY = {
    "test_a_lost_reply_is_unknown_and_a_read_settles_it",
    "test_a_freeze_whose_reply_is_lost_ends_in_force_once",
    "test_a_cut_off_client_is_unavailable_and_told_of_the_gap",
}
HARM_A_SERVER = {
    "test_a_killed_server_forgets_nothing_and_the_watch_goes_on",
    "test_a_watch_opened_while_the_server_is_away_begins_when_it_is_back",
    "test_a_hanging_server_makes_a_commit_unknown_and_a_fence_settles_it",
    "test_after_an_unknown_outcome_nothing_more_is_sent_blindly",
    "test_silence_is_never_taken_for_health",
    "test_closing_is_quick_while_the_server_hangs",
}
NEED_TWO_SERVERS = {
    "test_a_second_server_answers_in_place_of_a_dead_or_mute_one",
    "test_a_watch_moves_to_another_server_when_its_own_falls_silent",
    "test_a_commit_whose_reply_the_network_loses_is_unknown_and_has_happened",
}

TIMEOUT_MS = 1_000
# Where silence is not what is tested: three of these without an answer are silence.
ALIVE_EVERY_MS = 500
# For the call to be scheduled on a busy machine; less than a second time-out.
NOTICE_S = 0.9


def all_calls(store: Store, at: str) -> dict[str, Callable[[], object]]:
    """One of each request."""
    return {
        "read": lambda: store.read(f"{at}k"),
        "scan": lambda: store.scan(at),
        "commit": lambda: store.commit({}, {f"{at}k": b"v"}),
        "hold": lambda: store.hold(f"{at}held", b"v", 60_000),
    }


def test_the_skips_are_those_that_need_a_server_of_ours() -> None:
    """Every skip names a test of this file, memory skips just what needs a server, and real servers skip nothing."""
    tests = {name for name in dir(sys.modules[__name__]) if name.startswith("test_")}
    about_the_list = {name for name in tests if name.startswith("test_the_skips_")}
    assert {kind: set(skipped) for kind, skipped in SKIPS.items()} == {
        "memory": tests - KEPT_BY_MEMORY - about_the_list,
        "embedded": set(),
        "etcd": set(),
        "etcd by URL": HARM_A_SERVER,
        "redis": NEED_TWO_SERVERS,
        "redis by URL": HARM_A_SERVER | NEED_TWO_SERVERS,
        "zookeeper": set(),
        "zookeeper by URL": HARM_A_SERVER,
    }
    assert tests >= KEPT_BY_MEMORY | HARM_A_SERVER | NEED_TWO_SERVERS


def test_the_skips_are_in_this_file_alone() -> None:
    """No other file of the suite has a list, so what runs on every store there is never skipped."""
    here = Path(__file__)
    files = [path for path in here.parent.rglob("*.py") if path != here]
    assert len(files) > 1
    with_a_list = [
        path.name for path in files if re.search(r"^SKIPS\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert with_a_list == []


def test_a_lost_reply_is_unknown_and_a_read_settles_it(store: Store, other: Store, at: str) -> None:
    """A commit whose reply is lost raises OutcomeUnknown, and the store has what was written."""
    faulty = FaultyStore(store)
    faulty.lose_next_reply()
    with pytest.raises(OutcomeUnknown):
        faulty.commit({f"{at}k": None}, {f"{at}k": b"v"})
    assert faulty.failed_calls == 1
    entry = other.read(f"{at}k")
    assert entry is not None
    assert faulty.commit({f"{at}k": entry.version}, {f"{at}k": b"w"}) > entry.version


def a_freeze() -> Freeze:
    """A cause that a person made."""
    return Freeze(new_freeze_id(), GLOBAL, Mode.FROZEN, "manual", "a lost reply", "operator:ann", wall_now())


def assert_in_force_once(seen_by_another: Cluster, committed: Committed, freeze: Freeze) -> None:
    """One cause, one epoch, one entry of the history, and whoever froze was told so."""
    flag = seen_by_another.read_flag().flag
    assert [cause.id for cause in flag.freezes] == [freeze.id]
    assert committed.changed
    assert committed.flag.epoch == flag.epoch == 2
    added = [cause["id"] for _, entry in seen_by_another.history() for cause in entry.added]
    assert added == [freeze.id]
    assert seen_by_another.verify_history() == []


def test_a_freeze_whose_reply_is_lost_ends_in_force_once(store: Store, other: Store) -> None:
    """ONE VOICE FREEZES, NOTHING IS LOST: the freeze happened, nobody was told; it is found out, and not repeated."""
    name, faulty, freeze = f"c{uuid.uuid4().hex}", FaultyStore(store), a_freeze()
    cluster = Cluster(faulty, name)
    cluster.initialise(actor="operator:ann", reason="set up")
    faulty.lose_next_reply()
    committed = cluster.freeze(freeze, timeout_ms=20_000)
    assert faulty.failed_calls == 1
    assert_in_force_once(Cluster(other, name), committed, freeze)


def test_a_freeze_whose_reply_the_network_loses_ends_in_force_once(rig: ServerRig, store: Store) -> None:
    """ONE VOICE FREEZES, NOTHING IS LOST: as above, with a real network that carries the commit and not its answer."""
    name, freeze, lost = f"c{uuid.uuid4().hex}", a_freeze(), list[int]()
    other = Cluster(store, name)
    other.initialise(actor="operator:ann", reason="set up")
    with Forwarder(rig.server) as network, rig.open_impatient(network.server, request_timeout_ms=2_000) as hasty:

        def lose_what_follows_the_first_read(_: Flag) -> bool:
            if not lost:
                network.swallow_replies.set()
            return False

        def carry_again() -> bool:
            # An attempt may fail for want of time before anything was lost.
            if network.swallow_replies.is_set() and network.swallowed_bytes:
                lost.append(network.swallowed_bytes)
                network.swallow_replies.clear()
            return False

        committed = Cluster(hasty, name).freeze(
            freeze, timeout_ms=20_000, skip=lose_what_follows_the_first_read, give_up=carry_again
        )
    assert lost, "the network lost nothing"
    assert_in_force_once(other, committed, freeze)


def test_a_cut_off_client_is_unavailable_and_told_of_the_gap(
    store: Store, other: Store, at: str, observer: Observer
) -> None:
    """While cut off every request is StoreUnavailable without effect; healed, the watch says gap, then goes on."""
    faulty = FaultyStore(store)
    control = Observer()
    other.watch(at, control.on_change, control.on_gap)
    watch = faulty.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    control.wait_for_gap()
    faulty.cut()
    for call in all_calls(faulty, at).values():
        with pytest.raises(StoreUnavailable):
            call()
    assert other.scan(at) == []
    other.commit({}, {f"{at}missed": b"v"})
    control.wait_for(f"{at}missed", b"v")
    wait_until(lambda: faulty.swallowed_events > 0, what="an event swallowed")
    faulty.heal()
    observer.wait_for_gap(after=1)
    other.commit({}, {f"{at}seen": b"v"})
    observer.wait_for(f"{at}seen", b"v")
    assert [entry.key for entry in observer.changes] == [f"{at}seen"]
    watch.close()


def test_a_server_that_is_not_there_is_unavailable_in_time(rig: ServerRig, at: str) -> None:
    """Requests to an address where nobody listens raise StoreUnavailable within the time-out, writes included."""
    with rig.open_impatient(f"127.0.0.1:{free_port()}", request_timeout_ms=TIMEOUT_MS) as store:
        for name, call in all_calls(store, at).items():
            started_s = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:\d+ did not answer"):
                call()
            assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S, name


def test_a_server_that_never_answers_is_unavailable_in_time(rig: ServerRig, at: str) -> None:
    """A connection that is accepted and then ignored is given up in time, and a write over it was never sent."""
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        rig.open_impatient(f"127.0.0.1:{mute.getsockname()[1]}", request_timeout_ms=TIMEOUT_MS) as store,
    ):
        for name, call in all_calls(store, at).items():
            started_s = time.monotonic()
            with pytest.raises(StoreUnavailable):
                call()
            assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S, name


@pytest.mark.parametrize("first", ["dead", "mute"])
def test_a_second_server_answers_in_place_of_a_dead_or_mute_one(
    rig: ServerRig, at: str, first: str, observer: Observer
) -> None:
    """Every request succeeds in its time although the first address is no good, and so does the watch."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        bad = f"127.0.0.1:{mute.getsockname()[1]}" if first == "mute" else f"127.0.0.1:{free_port()}"
        for name in ("read", "scan", "commit", "hold"):
            with rig.open_impatient(bad, rig.server, request_timeout_ms=4_000) as store:
                all_calls(store, at + name)[name]()
        with rig.open_impatient(bad, rig.server, request_timeout_ms=4_000, alive_every_ms=ALIVE_EVERY_MS) as store:
            store.watch(at, observer.on_change, observer.on_gap)
            observer.wait_for_gap()
            observer.hears(store, f"{at}seen", b"v")


def test_a_killed_server_forgets_nothing_and_the_watch_goes_on(
    server: ServerRig, store: Store, at: str, observer: Observer
) -> None:
    """kill -9 of the server: what was committed is there again, on_gap is called, and changes arrive afterwards."""
    store.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap()
    versions = [store.commit({}, {f"{at}{number:03}": b"v"}) for number in range(100)]
    observer.wait_for(f"{at}099", b"v")
    server.kill()
    server.revive()
    server.wait_until_serving()
    assert [entry.version for entry in store.scan(at)] == versions
    observer.wait_for_gap(after=1)
    observer.hears(store, f"{at}after", b"v")
    assert observer.changes[-1].version > versions[-1]


def test_a_watch_opened_while_the_server_is_away_begins_when_it_is_back(
    server: ServerRig, at: str, observer: Observer
) -> None:
    """Opening a watch needs no server; on_gap comes when there is one, however many attempts that took."""
    with server.open_impatient(server.server) as store:
        server.pause()
        with capture_logs() as logs:
            store.watch(at, observer.on_change, observer.on_gap)
            wait_until(
                lambda: sum(line["event"] == "watch interrupted" for line in logs) >= 3, what="three failed attempts"
            )
        assert observer.said == []
        server.resume()
        observer.wait_for_gap()


def test_a_hanging_server_makes_a_commit_unknown_and_a_fence_settles_it(
    server: ServerRig, store: Store, at: str
) -> None:
    """A commit sent to a server that stopped is OutcomeUnknown; a commit that expects the old version then decides."""
    before = store.commit({}, {f"{at}k": b"old"})
    with server.open_impatient(server.server, request_timeout_ms=TIMEOUT_MS) as hasty:
        wait_until_reading(hasty, f"{at}k")
        server.pause()
        started_s = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="may have happened"):
            hasty.commit({f"{at}k": before}, {f"{at}k": b"new"})
        assert time.monotonic() - started_s < TIMEOUT_MS / 1_000 + NOTICE_S
        server.resume()
    try:
        store.commit({f"{at}k": before}, {f"{at}k": b"fence"})
        expected = b"fence"
    except Conflict:
        expected = b"new"
    entry = store.read(f"{at}k")
    assert entry is not None
    assert entry.value == expected


def test_after_an_unknown_outcome_nothing_more_is_sent_blindly(server: ServerRig, store: Store, at: str) -> None:
    """While the server still hangs further writes are StoreUnavailable, and truly never arrive."""
    with server.open_impatient(server.server) as hasty:
        lease = hold_in_the_end(hasty, f"{at}held", 60_000)
        wait_until_reading(hasty, lease.key)
        server.pause()
        with pytest.raises(OutcomeUnknown):
            hasty.commit({}, {f"{at}first": b"v"})
        with pytest.raises(StoreUnavailable):
            hasty.commit({}, {f"{at}second": b"v"})
        with pytest.raises(StoreUnavailable):
            hasty.hold(f"{at}third", b"v", 60_000)
        with pytest.raises(StoreUnavailable):
            lease.keep_alive()
        with pytest.raises(StoreUnavailable):
            hasty.read(f"{at}first")
        server.resume()
        server.wait_until_serving()
    # A write that was sent before this one over the same connection would have arrived before it.
    store.commit({}, {f"{at}later": b"v"})
    there = {entry.key for entry in store.scan(at)}
    assert lease.key in there
    assert {key for key in there if not key.startswith(f"{at}held")} - {f"{at}first"} == {f"{at}later"}


def test_silence_is_never_taken_for_health(server: ServerRig, at: str, store: Store, observer: Observer) -> None:
    """A watch on a server that hangs gives its stream up by itself, and says gap when the server is back."""
    with server.open_impatient(server.server, request_timeout_ms=2_000) as hasty:
        with capture_logs() as logs:
            hasty.watch(at, observer.on_change, observer.on_gap)
            observer.wait_for_gap()
            server.pause()
            wait_until(lambda: any(line["event"] == "watch silent" for line in logs), what="the silence being noticed")
        gaps_before = observer.gaps
        server.resume()
        observer.wait_for_gap(after=gaps_before)
        observer.hears(store, f"{at}after", b"v")


def test_quiet_is_not_taken_for_silence(rig: ServerRig, store: Store, at: str, observer: Observer) -> None:
    """A watch below which nothing changes is left alone by a healthy server, far beyond the limit of silence."""
    alive_every_ms = 400
    with rig.open_impatient(rig.server, alive_every_ms=alive_every_ms) as quiet:
        quiet.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap()
        quiet_until_s = time.monotonic() + 6 * alive_every_ms / 1_000
        wait_until(lambda: time.monotonic() > quiet_until_s, what="a quiet time of twice the limit")
        store.commit({}, {f"{at}k": b"v"})
        observer.wait_for(f"{at}k", b"v")
        assert observer.gaps == 1


@contextlib.contextmanager
def client_through(
    network: Forwarder, rig: ServerRig, begin: Callable[[Store], object], use: Callable[[Store], object]
) -> Iterator[Store]:
    """A client of two addresses whose connection goes through the first, which is that of ``network``.

    A client that finds it slow goes on to the second, as it should; another one then tries.

    Args:
        network: leads to the server.
        rig: has the server.
        begin: makes the client connect.
        use: sends something over that connection.
    """
    for _ in range(5):
        with rig.open_impatient(
            network.server, rig.server, request_timeout_ms=4_000, alive_every_ms=ALIVE_EVERY_MS
        ) as client:
            begin(client)
            carried_before_bytes = network.carried_bytes
            use(client)
            if network.carried_bytes > carried_before_bytes:
                yield client
                return
    raise AssertionError("five clients have not used the first of their addresses")


def test_a_watch_moves_to_another_server_when_its_own_falls_silent(
    rig: ServerRig, store: Store, at: str, observer: Observer
) -> None:
    """A network that swallows everything without a word costs the watch a gap, and no change after it."""

    def begin(hasty: Store) -> None:
        gaps_before = observer.gaps
        hasty.watch(at, observer.on_change, observer.on_gap)
        observer.wait_for_gap(after=gaps_before)

    def use(_: Store) -> None:
        observer.hears(store, f"{at}through", b"v")

    with Forwarder(rig.server) as network, client_through(network, rig, begin, use):
        gaps_before = observer.gaps
        network.swallow_everything()
        observer.wait_for_gap(after=gaps_before)
        assert network.swallowed_bytes > 0
        observer.hears(store, f"{at}around", b"v")


def test_a_commit_whose_reply_the_network_loses_is_unknown_and_has_happened(
    rig: ServerRig, store: Store, at: str
) -> None:
    """With the request through and the reply lost the outcome is OutcomeUnknown, and no second server is asked."""

    def read(hasty: Store) -> None:
        hasty.read(f"{at}k")

    with Forwarder(rig.server) as network, client_through(network, rig, read, read) as hasty:
        network.swallow_replies.set()
        with pytest.raises(OutcomeUnknown):
            hasty.commit({}, {f"{at}k": b"once"})
        assert network.swallowed_bytes > 0
        first = wait_until(lambda: store.read(f"{at}k"), what="the commit having happened")
        assert first is not None
        # The next write goes to the second server, and finds the version of the one and only first write.
        assert hasty.commit({f"{at}k": first.version}, {f"{at}k": b"twice"}) > first.version


def test_closing_is_quick_while_the_server_hangs(server: ServerRig, at: str, observer: Observer) -> None:
    """Neither a watch nor a store waits for a server to be closed."""
    before = set(threading.enumerate())
    store = server.open_impatient(server.server)
    watch = store.watch(at, observer.on_change, observer.on_gap)
    store.watch(at, observer.on_change, observer.on_gap)
    observer.wait_for_gap(after=1)
    server.pause()
    started_s = time.monotonic()
    watch.close()
    store.close()
    assert time.monotonic() - started_s < 2.0
    wait_until(lambda: set(threading.enumerate()) <= before, within_s=5.0, what="the end of the store's threads")

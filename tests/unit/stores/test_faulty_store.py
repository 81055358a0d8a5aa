"""The store that misbehaves when told to: each fault is what it says, and ends with heal."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest

from killswitch.stores import Conflict, Entry, OutcomeUnknown, StoreUnavailable
from killswitch.stores.memory import MemoryStore
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import wait_until


@pytest.fixture
def name() -> str:
    """Of the data, for a second look at it past the faults."""
    return uuid.uuid4().hex


@pytest.fixture
def faulty(name: str) -> Iterator[FaultyStore]:
    """Around a memory store."""
    with FaultyStore(MemoryStore(name)) as made:
        yield made


@pytest.fixture
def truth(name: str) -> Iterator[MemoryStore]:
    """The same data without faults."""
    with MemoryStore(name) as made:
        yield made


def test_a_cut_makes_every_call_unavailable_and_without_effect(faulty: FaultyStore, truth: MemoryStore) -> None:
    """Reads, writes and the calls of a lease fail while cut, and work once healed."""
    lease = faulty.hold("held", b"v", 60_000)
    faulty.cut()
    calls = [
        lambda: faulty.read("k"),
        lambda: faulty.scan(""),
        lambda: faulty.commit({}, {"k": b"v"}),
        lambda: faulty.hold("other", b"v", 1_000),
        lease.keep_alive,
        lease.release,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="cut off"):
            call()
    assert faulty.failed_calls == len(calls)
    assert [entry.key for entry in truth.scan("")] == ["held"]
    faulty.heal()
    lease.keep_alive()
    lease.release()
    assert truth.scan("") == []


def test_a_time_out_is_unknown_for_writes_and_unavailable_for_the_rest(faulty: FaultyStore, truth: MemoryStore) -> None:
    """What timed out has not happened here, though the caller cannot know."""
    lease = faulty.hold("held", b"v", 60_000)
    faulty.time_out()
    with pytest.raises(OutcomeUnknown):
        faulty.commit({}, {"k": b"v"})
    with pytest.raises(OutcomeUnknown):
        faulty.hold("other", b"v", 1_000)
    with pytest.raises(StoreUnavailable):
        faulty.read("k")
    with pytest.raises(StoreUnavailable):
        lease.keep_alive()
    assert [entry.key for entry in truth.scan("")] == ["held"]


def test_one_lost_reply_is_of_the_next_write_that_happens(faulty: FaultyStore, truth: MemoryStore) -> None:
    """A conflict and a read pass unharmed; the next commit happens and is unknown; the one after is answered."""
    faulty.lose_next_reply()
    with pytest.raises(Conflict):
        faulty.commit({"k": 7}, {"k": b"v"})
    assert faulty.read("k") is None
    with pytest.raises(OutcomeUnknown, match="lost"):
        faulty.commit({}, {"k": b"v"})
    assert truth.read("k") is not None
    faulty.commit({}, {"k": b"w"})
    faulty.lose_next_reply()
    with pytest.raises(OutcomeUnknown):
        faulty.hold("held", b"v", 60_000)
    assert truth.read("held") is not None


@pytest.mark.parametrize("fault", ["cut", "silence_watches"])
def test_swallowed_events_are_lost_and_heal_says_gap_on_the_watchs_one_thread(
    faulty: FaultyStore, truth: MemoryStore, fault: str
) -> None:
    """While the fault is on nothing arrives; healed, on_gap comes first, then what happens from then on."""
    said: list[Entry | None] = []
    threads: set[int] = set()

    def hear(entry: Entry | None) -> None:
        said.append(entry)
        threads.add(threading.get_ident())

    control: list[Entry] = []
    truth.watch("", control.append, lambda: None)
    faulty.watch("", hear, lambda: hear(None))
    wait_until(lambda: said == [None], what="the first gap")
    getattr(faulty, fault)()
    truth.commit({}, {"missed": b"v"})
    wait_until(lambda: faulty.swallowed_events == 1 and control, what="an event swallowed")
    assert said == [None]
    faulty.heal()
    version = truth.commit({}, {"seen": b"v"})
    wait_until(lambda: said == [None, None, Entry("seen", b"v", version)], what="the gap and the change")
    assert len(threads) == 1


def test_a_watch_made_during_a_cut_begins_when_it_heals(faulty: FaultyStore) -> None:
    """No gap is said while cut off, and it is not forgotten."""
    gaps: list[None] = []
    faulty.cut()
    faulty.watch("", lambda _: None, lambda: gaps.append(None))
    wait_until(lambda: faulty.swallowed_events == 1, what="the first gap being swallowed")
    assert gaps == []
    faulty.heal()
    wait_until(lambda: gaps, what="the gap")


def test_a_delay_is_waited_for_before_the_call(truth: MemoryStore, name: str) -> None:
    """The sleep that was passed in is asked for the delay in seconds, and for nothing once healed."""
    slept: list[float] = []
    with FaultyStore(MemoryStore(name), sleep=slept.append) as faulty:
        faulty.delay(50)
        faulty.read("k")
        faulty.commit({}, {"k": b"v"})
        faulty.heal()
        faulty.read("k")
    assert slept == [0.05, 0.05]

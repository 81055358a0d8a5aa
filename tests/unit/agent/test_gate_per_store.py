"""One page for several stores: open only while each has given a permit and none holds a freeze."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killswitch_agent.agent import journal_paths
from killswitch_agent.gate_per_store import GatePage, gates_per_store
from killswitch_agent.journal import JournalUnwritable

from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL
from killswitch.gate import GateWriter

SECOND_NS = 1_000_000_000
START_NS = 1_000 * SECOND_NS


def cause(name: str) -> Freeze:
    return Freeze(name, GLOBAL, Mode.FROZEN, "manual", "a test", "operator:test", "now")


class Page:
    """A page with the gate of each store, on a clock that stands until it is moved."""

    def __init__(self, folder: Path, count: int) -> None:
        self.time_ns = START_NS
        self.writer = GateWriter(folder / "gate", cluster="c", node="n1", clock=lambda: self.time_ns)
        self.gates: list[GatePage] = gates_per_store(self.writer, count)

    @property
    def is_open(self) -> bool:
        # The word that routers compare with their clock.
        return self.writer.state.open_until_ns > self.time_ns

    def close(self) -> None:
        self.writer.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    made = Page(tmp_path, 2)
    yield made
    made.close()


def test_a_single_store_has_the_page_to_itself(tmp_path: Path) -> None:
    """Nothing stands between one store's keeper and its page."""
    one = Page(tmp_path, 1)
    assert one.gates == [one.writer]
    one.close()


def test_one_stores_permit_opens_nothing(page: Page) -> None:
    """UNKNOWN IS FROZEN: until the other has said yes, too, the gate stays closed."""
    first, second = page.gates
    first.update((), epoch=1, permit_deadline_ns=START_NS + SECOND_NS)
    assert not page.is_open
    second.update((), epoch=4, permit_deadline_ns=START_NS + 2 * SECOND_NS)
    assert page.is_open
    assert page.writer.state.epoch == 5
    page.time_ns += SECOND_NS + 1
    assert not page.is_open, "the permit that ends first is the page's"
    second.extend(START_NS + 9 * SECOND_NS)
    assert not page.is_open
    first.extend(START_NS + 9 * SECOND_NS)
    assert page.is_open


def test_a_permit_without_a_flag_opens_nothing(page: Page) -> None:
    """UNKNOWN IS FROZEN: a store that renews and has never told its flag may hold a freeze."""
    first, second = page.gates
    first.lift_local("never raised")
    for gate in (first, second):
        gate.extend(START_NS + SECOND_NS)
    assert not page.is_open
    second.update((), epoch=1, permit_deadline_ns=START_NS + SECOND_NS)
    assert not page.is_open
    first.update((), epoch=1, permit_deadline_ns=START_NS + SECOND_NS)
    assert page.is_open


def test_a_release_in_one_store_leaves_the_others_freeze(page: Page) -> None:
    """RELEASE IS FENCED: the same cause in both stores goes when both have let it go."""
    first, second = page.gates
    until_ns = START_NS + SECOND_NS
    for gate in (first, second):
        gate.update((cause("x"),), epoch=2, permit_deadline_ns=until_ns)
    first.update((), epoch=3, permit_deadline_ns=until_ns)
    assert not page.is_open
    assert [row.id for row in page.writer.state.causes] == ["x"]
    second.update((), epoch=3, permit_deadline_ns=until_ns)
    assert page.is_open


def test_a_cause_of_the_node_outlives_one_stores_release_of_it(page: Page) -> None:
    """NOTHING IS LOST: what the second store has not been told yet stays on the page though the first released it."""
    first, second = page.gates
    until_ns = START_NS + SECOND_NS
    for gate in (first, second):
        gate.update((), epoch=1, permit_deadline_ns=until_ns)
        gate.close_now(cause("found"))
    first.update((cause("found"),), epoch=2, permit_deadline_ns=until_ns)
    first.lift_local("found")
    first.update((), epoch=3, permit_deadline_ns=until_ns)
    assert not page.is_open
    second.lift_local("found")
    assert page.is_open


def test_an_older_epoch_takes_nothing_away(page: Page) -> None:
    """A slow reading of one store can add causes, and neither lifts one nor extends a permit."""
    first, second = page.gates
    second.update((), epoch=1, permit_deadline_ns=START_NS + 9 * SECOND_NS)
    first.update((cause("new"),), epoch=5, permit_deadline_ns=START_NS + SECOND_NS)
    first.update((cause("old"),), epoch=4, permit_deadline_ns=START_NS + 9 * SECOND_NS)
    state = page.writer.state
    assert {row.id for row in state.causes} == {"new", "old"}
    assert state.permit_deadline_ns == START_NS + SECOND_NS


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["update", "extend", "close_now", "lift_local", "wait"]),
        st.frozensets(st.sampled_from("abc"), max_size=2),
        st.integers(1, 6),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_the_page_is_open_just_when_every_store_allows_it(steps: list[tuple[int, str, frozenset[str], int]]) -> None:
    """The law, over any order of changes: open means that every store has told its flag, each permit runs and nobody,
    store or node, holds a cause. A permit counts from the first flag on: what has not been told is frozen."""
    with tempfile.TemporaryDirectory() as folder:
        page = Page(Path(folder), 3)
        held: list[frozenset[str]] = [frozenset()] * 3
        local: list[set[str]] = [set(), set(), set()]
        until_ns, epochs = [1, 1, 1], [0, 0, 0]  # an epoch of 0: that store has not told its flag
        for number, step, names, ahead_s in steps:
            gate, deadline_ns = page.gates[number], page.time_ns + ahead_s * SECOND_NS
            if step == "update":
                epochs[number] += 1
                held[number] = names
                gate.update([cause(n) for n in names], epoch=epochs[number], permit_deadline_ns=deadline_ns)
            elif step == "extend":
                gate.extend(deadline_ns)
            elif step == "close_now":
                for name in names:
                    gate.close_now(cause(name))
                    local[number].add(name)
            elif step == "lift_local":
                for name in names:
                    gate.lift_local(name)
                    local[number].discard(name)
            else:
                page.time_ns += ahead_s * SECOND_NS
            if step == "update" or (step == "extend" and epochs[number]):
                until_ns[number] = max(until_ns[number], deadline_ns)
            allowed = all(epochs) and all(ns > page.time_ns for ns in until_ns) and not any(held) and not any(local)
            assert page.is_open == allowed
        page.close()


def test_each_store_has_a_journal_of_its_own_and_the_first_keeps_its_memory(tmp_path: Path) -> None:
    """NOTHING IS LOST: a node that gets a second store still knows what it saw in the first."""
    assert journal_paths(tmp_path, "n1", ["etcd://a"]) == [tmp_path / "n1.journal"]
    (tmp_path / "n1.journal").write_bytes(b"what was seen\n")
    first, second = journal_paths(tmp_path, "n1", ["etcd://a", "redis://b"])
    assert first.read_bytes() == b"what was seen\n"
    assert not second.exists()
    first.write_bytes(b"newer\n")
    assert journal_paths(tmp_path, "n1", ["redis://b", "etcd://a"]) == [second, first]
    assert first.read_bytes() == b"newer\n"


def test_a_memory_that_cannot_be_carried_over_keeps_the_agent_from_starting(tmp_path: Path) -> None:
    """UNKNOWN IS FROZEN: rather no agent than one that has forgotten."""
    (tmp_path / "n1.journal").mkdir()
    with pytest.raises(JournalUnwritable, match=r"n1\.journal cannot be copied"):
        journal_paths(tmp_path, "n1", ["etcd://a", "redis://b"])

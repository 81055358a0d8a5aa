"""The paths that lead to a closed gate, one by one, over a store in memory and a real gate page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from killswitch_agent.flag_lineage import Finding, store_fault_cause
from killswitch_agent.freeze_outbox import FreezeOutbox
from killswitch_agent.gatekeeper import (
    FLAG_UNREADABLE,
    JOURNAL_FAULT,
    NOT_INITIALISED,
    STORE_FAULT,
    GateKeeper,
    ReadAgain,
)
from killswitch_agent.journal import Journal, JournalDamaged

from killswitch import Gate, durable_file
from killswitch.clock import now_ns
from killswitch.cluster.cluster import Cluster, StoredFlag, new_freeze_id
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.permit import Timing
from killswitch.core.scopes import Scope
from killswitch.gate import GateWriter
from killswitch.stores import Entry, StoreUnavailable
from killswitch.stores.memory import MemoryStore
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import wait_until

SHORT = Timing(
    request_timeout_ms=20, renew_every_ms=30, permit_ttl_ms=150, lease_ttl_ms=1_000, leader_deadline_ms=500,
    backoff_cap_ms=50,
)  # fmt: skip


def cause(scope: str = "global", mode: Mode = Mode.FROZEN, freeze_id: str | None = None) -> Freeze:
    return Freeze(freeze_id or new_freeze_id(), Scope.parse(scope), mode, "manual", "a test", "operator:test", "now")


class Node:
    """One node's gate, journal and keeper over a store that can fail."""

    def __init__(self, folder: Path, store: FaultyStore, timing: Timing) -> None:
        self.folder = folder
        self.store = store
        self.cluster = Cluster(store, "c", timing=timing)
        self.changes = threading.Event()
        self.start()

    def start(self) -> None:
        self.writer = GateWriter(self.folder / "gate", cluster="c", node="n1")
        self.journal = Journal(self.folder / "n1.journal", cluster="c")
        self.keeper = GateKeeper(self.writer, self.journal, self.cluster, "n1", on_change=self.changes.set)
        self.keeper.set_registered(True)
        self.keeper.lease_confirmed(now_ns())
        self.gate = Gate.open(self.folder / "gate")

    def restart(self) -> None:
        self.keeper.close()
        self.start()

    def freeze(self, freeze: Freeze) -> None:
        self.cluster.freeze(freeze, timeout_ms=1_000)

    def release_all(self) -> None:
        flag = self.cluster.read_flag().flag
        self.cluster.release(epoch=flag.epoch, ids=sorted(flag.freeze_ids()), actor="operator:test", reason="test")

    def flag_entry(self) -> object:
        return self.store.read(self.cluster.keys.flag)

    def cause_ids(self) -> set[str]:
        return {row.id for row in self.gate.snapshot().causes}


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[FaultyStore]:
    """A store of this test alone."""
    with FaultyStore(MemoryStore(request.node.nodeid)) as faulty:
        yield faulty


@pytest.fixture
def make_node(tmp_path: Path, store: FaultyStore) -> Iterator[Callable[..., Node]]:
    """Make nodes and close them at the end."""
    made: list[Node] = []

    def make(*, initialise: bool = True, timing: Timing | None = None) -> Node:
        node = Node(tmp_path, store, timing or Timing())
        made.append(node)
        if initialise:
            node.cluster.initialise(actor="operator:test", reason="test")
        return node

    yield make
    for node in made:
        node.keeper.close()
        node.gate.close()


def test_unknown_is_frozen_before_the_first_read(make_node: Callable[..., Node]) -> None:
    """UNKNOWN IS FROZEN: an agent that has read nothing lets nothing pass."""
    node = make_node()
    assert not node.gate.allows("BTC")
    assert node.cause_ids() == {"agent_start"}


def test_a_read_of_an_active_flag_opens_the_gate_until_the_permit_runs_out(make_node: Callable[..., Node]) -> None:
    """BOUNDED STOP: what a read opens closes by itself, with no code running."""
    node = make_node(timing=SHORT)
    # The permit counts from before the read, and may have run out when the first look at the gate comes.
    wait_until(lambda: node.keeper.renew() and node.gate.allows("BTC"), what="an open gate")
    wait_until(lambda: not node.gate.allows("BTC"), within_s=2, what="the permit to run out")
    assert node.keeper.mode is Mode.FROZEN


def test_a_permit_counts_from_before_the_read_was_sent(make_node: Callable[..., Node], store: FaultyStore) -> None:
    """BOUNDED STOP: a slow answer makes the permit shorter, never later."""
    node = make_node()
    sent: list[int] = []
    inner_read = store.read

    def slow_read(key: str) -> object:
        sent.append(now_ns())
        return inner_read(key)

    store.read = slow_read  # type: ignore[method-assign, assignment]  # the moment of the read is what is tested
    assert node.keeper.renew()
    assert node.keeper.permit_until_ns <= sent[0] + node.cluster.timing.permit_ttl_ms * 1_000_000


@pytest.mark.parametrize(("scope", "early"), [("global", True), ("symbol:BTCUSDT", False)])
def test_a_freeze_of_everything_closes_before_it_is_understood(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, scope: str, early: bool
) -> None:
    """BOUNDED STOP: the word that routers look at falls first; a freeze of one symbol makes no other order wait."""
    node = make_node()
    node.keeper.renew()
    node.freeze(cause(scope))
    understood = node.cluster.parse_flag
    open_while_parsed: list[bool] = []

    def parse(entry: Entry | None) -> StoredFlag:
        open_while_parsed.append(node.gate.is_open)
        return understood(entry)

    monkeypatch.setattr(node.cluster, "parse_flag", parse)
    assert node.gate.is_open
    node.keeper.heard(node.flag_entry())
    assert open_while_parsed == [not early]
    assert not node.gate.allows("BTCUSDT")
    assert node.gate.allows("ETHUSDT") is not early


def test_a_freeze_heard_by_the_watch_closes_at_once_and_a_release_heard_opens_nothing(
    make_node: Callable[..., Node],
) -> None:
    """ONE VOICE FREEZES: the watch can only close; opening takes a linearizable read."""
    node = make_node()
    node.keeper.renew()
    node.freeze(cause())
    assert node.keeper.heard(node.flag_entry()) is ReadAgain.SOON
    assert not node.gate.allows("BTC")
    node.release_all()
    node.keeper.heard(node.flag_entry())
    assert not node.gate.allows("BTC")
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_a_scoped_freeze_closes_for_its_orders_alone(make_node: Callable[..., Node]) -> None:
    """An order falls in a scope when every part matches; a freeze of another node touches nothing here."""
    node = make_node()
    node.freeze(cause("symbol:BTC"))
    node.freeze(cause("node:n2"))
    node.freeze(cause("venue:x,symbol:ETH", Mode.REDUCE_ONLY))
    node.keeper.renew()
    assert not node.gate.allows("BTC", venue="y")
    assert node.gate.allows("SOL", venue="y")
    assert not node.gate.allows("ETH", venue="x")
    assert node.gate.allows("ETH", venue="x", reduces=True)
    assert len(node.keeper.view().flag_causes) == 2


def test_unknown_is_frozen_when_the_cluster_is_not_initialised(make_node: Callable[..., Node]) -> None:
    """UNKNOWN IS FROZEN: no flag means no permit, and `init` is the way out."""
    node = make_node(initialise=False)
    assert not node.keeper.renew()
    assert NOT_INITIALISED in node.cause_ids()
    node.cluster.initialise(actor="operator:test", reason="test")
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_unknown_is_frozen_while_the_flag_cannot_be_read(make_node: Callable[..., Node], store: FaultyStore) -> None:
    """UNKNOWN IS FROZEN: a flag of an unknown version closes, and nobody overwrites it."""
    node = make_node()
    node.keeper.renew()
    good = store.read(node.cluster.keys.flag)
    assert good is not None
    assert good.value is not None
    store.commit({}, {node.cluster.keys.flag: b'{"v":2,"something":"new"}'})
    assert not node.keeper.renew()
    assert not node.gate.allows("BTC")
    assert FLAG_UNREADABLE in node.cause_ids()
    strange = store.read(node.cluster.keys.flag)
    assert strange is not None
    assert strange.value == b'{"v":2,"something":"new"}'
    store.commit({}, {node.cluster.keys.flag: good.value})
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_a_store_that_does_not_answer_changes_nothing_and_the_permit_runs_out(
    make_node: Callable[..., Node], store: FaultyStore
) -> None:
    """BOUNDED STOP: cut off, the node stops by itself; healed, it goes on."""
    node = make_node(timing=SHORT)
    node.keeper.renew()
    store.cut()
    with pytest.raises(StoreUnavailable):
        node.keeper.renew()
    wait_until(lambda: not node.gate.allows("BTC"), within_s=2, what="the permit to run out")
    store.heal()
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_a_store_that_lost_its_data_is_told_again(make_node: Callable[..., Node], store: FaultyStore) -> None:
    """UNKNOWN IS FROZEN: an emptied store is not believed; the agent says the freeze again."""
    node = make_node()
    kept = cause()
    node.freeze(kept)
    node.keeper.renew()
    wipe(store)
    assert not node.keeper.renew()
    assert STORE_FAULT in node.cause_ids()
    assert not FreezeOutbox(node.cluster, node.keeper).flush()
    assert not node.keeper.renew()
    flag = node.cluster.read_flag().flag
    assert kept.id in flag.freeze_ids()
    assert any(freeze.trigger == "store_lost_data" for freeze in flag.freezes)
    assert flag.epoch == 3
    assert not node.gate.allows("BTC")
    node.keeper.set_registered(True)
    node.release_all()
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_a_node_without_a_record_gets_no_permit(make_node: Callable[..., Node], store: FaultyStore) -> None:
    """PROOF, NOT HOPE: a node that no certificate would name does not trade, and a read sent before does not count."""
    node = make_node()
    node.keeper.set_registered(False)
    assert not node.keeper.renew()
    assert not node.gate.allows("BTC")
    inner_read = store.read

    def registered_while_reading(key: str) -> object:
        node.keeper.set_registered(True)
        return inner_read(key)

    store.read = registered_while_reading  # type: ignore[method-assign, assignment]  # the moment is what is tested
    assert not node.keeper.renew()
    assert not node.gate.allows("BTC")
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_a_node_whose_record_may_be_lost_with_the_store_registers_again_first(
    make_node: Callable[..., Node], store: FaultyStore
) -> None:
    """PROOF, NOT HOPE: another agent told the store again; this node's record may be gone, so it gets no permit."""
    node = make_node()
    node.keeper.renew()
    known = node.cluster.read_flag().flag
    wipe(store)
    node.cluster.reassert(known, store_fault_cause(Finding.LOST, known, actor="agent:n2", at="now"))
    before = node.keeper.permit_until_ns
    assert not node.keeper.renew()
    assert not node.keeper.is_registered
    node.release_all()
    assert not node.keeper.renew()
    assert node.keeper.permit_until_ns == before
    node.keeper.set_registered(True)
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_a_store_set_back_is_not_believed(make_node: Callable[..., Node], store: FaultyStore) -> None:
    """UNKNOWN IS FROZEN: an older flag that says ACTIVE opens nothing."""
    node = make_node()
    node.keeper.renew()
    old = store.read(node.cluster.keys.flag)
    assert old is not None
    assert old.value is not None
    node.freeze(cause(freeze_id="must-stay"))
    node.keeper.renew()
    store.commit({}, {node.cluster.keys.flag: old.value})
    assert not node.keeper.renew()
    assert not node.gate.allows("BTC")
    FreezeOutbox(node.cluster, node.keeper).flush()
    assert "must-stay" in node.cluster.read_flag().flag.freeze_ids()


def test_a_freeze_that_only_the_watch_has_shown_is_not_forgotten_when_the_store_is_set_back(
    make_node: Callable[..., Node], store: FaultyStore
) -> None:
    """UNKNOWN IS FROZEN: what was seen once was said once, whatever the store says afterwards."""
    node = make_node()
    node.keeper.renew()
    old = store.read(node.cluster.keys.flag)
    assert old is not None
    assert old.value is not None
    node.freeze(cause(freeze_id="seen-by-watch"))
    node.keeper.heard(node.flag_entry())
    store.commit({}, {node.cluster.keys.flag: old.value}, [node.cluster.keys.history(2)])
    assert not node.keeper.renew()
    FreezeOutbox(node.cluster, node.keeper).flush()
    assert "seen-by-watch" in node.cluster.read_flag().flag.freeze_ids()


@pytest.mark.parametrize("later_changes", [1, 3])
def test_a_rewritten_flag_is_not_believed(
    make_node: Callable[..., Node], store: FaultyStore, later_changes: int
) -> None:
    """UNKNOWN IS FROZEN: a store that was set back and went on shows a higher epoch, but not our history."""
    node = make_node()
    node.freeze(cause(freeze_id="must-stay"))
    node.keeper.renew()
    wipe(store)
    node.cluster.initialise(actor="operator:other", reason="somebody began anew")
    for _ in range(later_changes):
        node.freeze(cause("symbol:XRP"))
    assert not node.keeper.renew()
    assert not node.gate.allows("BTC")
    FreezeOutbox(node.cluster, node.keeper).flush()
    flag = node.cluster.read_flag().flag
    assert "must-stay" in flag.freeze_ids()
    assert len(flag.freezes) >= later_changes + 2


def test_several_changes_missed_while_cut_off_are_followed_by_the_history(make_node: Callable[..., Node]) -> None:
    """A node that was away takes over a flag several epochs later when it grew out of the one that it knows."""
    node = make_node()
    node.keeper.renew()
    for _ in range(3):
        node.freeze(cause("symbol:BTC"))
    assert node.keeper.renew()
    assert not node.gate.allows("BTC")
    assert node.gate.allows("ETH")


def test_an_agent_restarted_while_frozen_stays_frozen_even_if_the_store_forgot(
    make_node: Callable[..., Node], store: FaultyStore
) -> None:
    """UNKNOWN IS FROZEN: the journal outlives the agent and the store's data."""
    node = make_node()
    node.freeze(cause(freeze_id="must-stay"))
    node.keeper.renew()
    node.restart()
    wipe(store)
    node.cluster.initialise(actor="operator:other", reason="somebody began anew")
    assert not node.keeper.renew()
    assert not node.gate.allows("BTC")
    FreezeOutbox(node.cluster, node.keeper).flush()
    node.keeper.renew()
    assert "must-stay" in node.keeper.view().adopted.freeze_ids()  # type: ignore[union-attr]  # adopted just now


def test_a_local_cause_closes_before_the_store_knows_and_stays_until_the_flag_decides(
    make_node: Callable[..., Node], store: FaultyStore
) -> None:
    """ONE VOICE FREEZES: closing needs no store; opening again takes a release of the flag."""
    node = make_node()
    node.keeper.renew()
    outbox = FreezeOutbox(node.cluster, node.keeper)
    store.cut()
    found = cause()
    outbox.raise_freeze(found)
    assert not node.gate.allows("BTC")
    assert not outbox.flush()
    store.heal()
    assert outbox.flush()
    assert node.keeper.renew()
    assert not node.gate.allows("BTC")
    assert node.keeper.view().local_causes == ()
    node.release_all()
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_a_local_cause_released_before_this_node_saw_it_in_the_flag_does_not_stick(
    make_node: Callable[..., Node],
) -> None:
    """A false alarm is cheap to clear, also when freeze and release fall between two reads of the node."""
    node = make_node()
    node.keeper.renew()
    outbox = FreezeOutbox(node.cluster, node.keeper)
    outbox.raise_freeze(cause())
    assert outbox.flush()
    node.release_all()
    assert node.keeper.renew()
    assert node.gate.allows("BTC")


def test_a_lost_reply_leaves_one_freeze_and_the_outbox_falls_silent(
    make_node: Callable[..., Node], store: FaultyStore
) -> None:
    """NOTHING IS LOST, and nothing is said twice: the id of a freeze makes repeating it harmless."""
    node = make_node()
    node.keeper.renew()
    outbox = FreezeOutbox(node.cluster, node.keeper)
    store.lose_next_reply()
    outbox.raise_freeze(cause())
    wait_until(outbox.flush, within_s=5, what="the freeze to be told")
    assert len(node.cluster.read_flag().flag.freezes) == 1
    assert node.cluster.verify_history() == []


def test_a_full_disk_keeps_the_node_frozen_and_says_so(make_node: Callable[..., Node]) -> None:
    """UNKNOWN IS FROZEN: a flag that cannot be remembered opens nothing, until it can."""
    node = make_node()
    node.keeper.renew()
    node.freeze(cause())
    node.keeper.renew()
    with full_disk(node.folder / "n1.journal"):
        node.release_all()
        node.keeper.renew()
        assert not node.gate.allows("BTC")
        assert JOURNAL_FAULT in node.cause_ids()
        reason = next(row.reason for row in node.gate.snapshot().causes if row.id == JOURNAL_FAULT)
        assert "cannot be written" in reason
        node.keeper.renew()
        assert not node.gate.allows("BTC")
    assert node.keeper.renew()
    assert node.gate.allows("BTC")
    assert Journal(node.folder / "n1.journal", cluster="c").last == node.keeper.known


def test_a_damaged_journal_refuses_to_start_and_a_torn_tail_does_not(make_node: Callable[..., Node]) -> None:
    """UNKNOWN IS FROZEN: a memory that cannot be trusted is an error; what a power cut tears off was never acked."""
    node = make_node()
    node.keeper.renew()
    node.freeze(cause(freeze_id="kept"))
    node.keeper.renew()
    path = node.folder / "n1.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"v":1,"cluster":"c","epo')
    torn = Journal(path, cluster="c")
    assert torn.last == node.keeper.known
    assert node.keeper.known is not None
    torn.append(replace(node.keeper.known, epoch=9))
    assert Journal(path, cluster="c").last == replace(node.keeper.known, epoch=9)
    path.write_bytes(b"garbage\n" + whole)
    with pytest.raises(JournalDamaged, match="line 1"):
        Journal(path, cluster="c")
    path.write_bytes(whole)
    with pytest.raises(JournalDamaged, match="of cluster"):
        Journal(path, cluster="other")


def test_the_journal_stays_small_and_keeps_the_newest(tmp_path: Path, make_node: Callable[..., Node]) -> None:
    """A limit on everything: a thousand flags later the journal is a few lines again."""
    node = make_node()
    node.keeper.renew()
    known = node.keeper.known
    assert known is not None
    journal = Journal(tmp_path / "other.journal", cluster="c")
    for epoch in range(2, 1_100):
        journal.append(replace(known, epoch=epoch))
    assert journal.last is not None
    assert journal.last.epoch == 1_099
    reopened = Journal(tmp_path / "other.journal", cluster="c")
    assert reopened.last == journal.last
    assert len((tmp_path / "other.journal").read_bytes().splitlines()) < 200


def wipe(store: FaultyStore) -> None:
    """Delete everything in the store, as FLUSHALL or a lost volume would."""
    entries = store.scan("/")
    store.commit({}, {}, [entry.key for entry in entries])
    assert store.scan("/") == []


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Have every write to a file, and to the one that would replace it, end in the kernel's own ENOSPC."""
    kept = path.with_suffix(".kept")
    path.rename(kept)
    path.symlink_to("/dev/full")

    def fresh(_: Path) -> Path:
        name = path.with_suffix(".new")
        name.symlink_to("/dev/full")
        return name

    # Shown to hold before anything is judged by it.
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.write(b"x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable_file, "_beside", fresh)
        yield
    path.unlink()
    kept.rename(path)


@pytest.mark.parametrize("rewritten_changes", [0, 1, 4])
@pytest.mark.parametrize("history_survives", [True, False])
def test_agents_that_knew_different_epochs_settle_on_one_flag_and_one_release_opens_all(
    tmp_path: Path, store: FaultyStore, rewritten_changes: int, history_survives: bool
) -> None:
    """UNKNOWN IS FROZEN, and the way out: whoever knew what, all causes end in the flag, and nobody stays stuck."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    ahead, behind = (Node(tmp_path / name, store, Timing()) for name in ("a", "b"))
    ahead.cluster.initialise(actor="operator:test", reason="test")
    behind.freeze(cause(freeze_id="both-knew"))
    behind.keeper.renew()
    ahead.freeze(cause(freeze_id="one-knew"))
    ahead.keeper.renew()
    if history_survives:
        store.commit({}, {}, [ahead.cluster.keys.flag])
    else:
        wipe(store)
        if rewritten_changes:
            ahead.cluster.initialise(actor="operator:other", reason="somebody began anew")
        for number in range(rewritten_changes):
            ahead.freeze(cause(f"symbol:S{number}"))
    for _ in range(6):
        for node in (behind, ahead):
            node.keeper.renew()
            FreezeOutbox(node.cluster, node.keeper).flush()
            node.keeper.set_registered(True)
    flag = ahead.cluster.read_flag().flag
    assert {"both-knew", "one-knew"} <= flag.freeze_ids()
    assert ahead.keeper.known == behind.keeper.known == flag
    assert not ahead.gate.allows("BTC")
    ahead.release_all()
    for node in (behind, ahead):
        assert node.keeper.renew()
        assert node.gate.allows("BTC")
        node.keeper.close()
        node.gate.close()


def test_no_permit_outlasts_the_lease_that_the_store_was_last_seen_to_keep(make_node: Callable[..., Node]) -> None:
    """PROOF, NOT HOPE: a node whose lease the store may have let go has no permit, so a person may forget it."""
    node = make_node(timing=SHORT)
    confirmed_by_ns = now_ns()  # at the latest: the node has just been made
    lease_ends_ns = confirmed_by_ns + int(SHORT.lease_ttl_ms / SHORT.clock_rate_ratio * 1_000_000)
    assert node.keeper.renew()

    def is_too_old() -> bool:
        renewed = node.keeper.renew()
        assert node.keeper.permit_until_ns <= lease_ends_ns
        return not renewed

    wait_until(is_too_old, what="the lease to be too old to trade on")
    wait_until(lambda: not node.gate.allows("BTC"), what="the last permit to run out")
    assert node.keeper.last_finding == "adopt"
    node.keeper.lease_confirmed(now_ns())
    assert node.keeper.renew()
    assert node.gate.allows("BTC")

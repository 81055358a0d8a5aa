"""The coordinator on a store: rules that trip once, leave their figures behind, and never act without leading."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from killswitch_coordinator.coordinator import PERSIST_EVERY_MS, Coordinator

from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import CertificateRecord, ClusterViewRecord, LiveRecord
from killswitch.core.flag import MAX_FREEZES, Freeze
from killswitch.core.modes import Mode
from killswitch.settings.config import CoordinatorSettings
from killswitch.stores.memory import MemoryStore
from killswitch.stores.port import StoreUnavailable
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import wait_until
from tests.unit.cluster.test_cluster import MS, HandClock, a_node, a_report, an_ack, put
from tests.unit.core.test_core_flag import AT, a_freeze

RULES = {"gross_notional": {"warning_usd": 800, "hard_usd": 1_000}, "drawdown": {"hard_usd": 100}}
Make = Callable[..., Coordinator]


@pytest.fixture
def clock() -> HandClock:
    """Moved by hand; the store's leases run on it, too."""
    return HandClock()


@pytest.fixture
def cluster(clock: HandClock) -> Iterator[Cluster]:
    """A cluster with one registered node that has not reported yet."""
    with FaultyStore(MemoryStore(uuid.uuid4().hex, now_ns=clock)) as store:
        made = Cluster(store, "c", clock=clock, wall_clock=lambda: AT, sleep=clock.sleep)
        made.initialise(actor="a", reason="r")
        put(made, made.keys.under("nodes", "n1"), a_node("n1"))
        yield made


@pytest.fixture
def make(cluster: Cluster) -> Iterator[Make]:
    """Make a coordinator whose loops the test turns by hand."""
    made: list[Coordinator] = []

    def make_one(candidate: str = "c1", rules: dict[str, Any] | None = None) -> Coordinator:
        settings = CoordinatorSettings.model_validate({"http_port": 0, "rules": RULES if rules is None else rules})
        made.append(Coordinator(cluster, settings, candidate=candidate, instance=f"i-{candidate}"))
        return made[-1]

    yield make_one
    for coordinator in made:
        coordinator._certifier.close()
        coordinator._http.close()


@pytest.fixture
def leader(make: Make) -> Coordinator:
    """A coordinator that leads."""
    made = make()
    made.election.step()
    assert made.election.leads
    return made


def report(cluster: Cluster, node: str = "n1", **figures: Any) -> None:
    """Let a node report."""
    put(cluster, cluster.keys.under("reports", node), a_report(node, **figures))


def causes(cluster: Cluster) -> list[Freeze]:
    """What is in force."""
    return list(cluster.read_flag().flag.freezes)


def the_cause(cluster: Cluster) -> Freeze:
    """The only cause in force."""
    (cause,) = causes(cluster)
    return cause


def counted(coordinator: Coordinator, reason: str) -> float:
    """How many freezes the metric counts."""
    return coordinator.registry.get_sample_value("freeze_triggered_total", {"reason": reason}) or 0.0


def test_below_its_levels_nothing_is_frozen(cluster: Cluster, leader: Coordinator) -> None:
    """A rule below its hard level writes nothing into the flag, also at its warning level."""
    report(cluster, BTC=999.0, pnl_usd=-99.0)
    leader.evaluate()
    assert causes(cluster) == []
    assert leader.registry.get_sample_value("killswitch_rule_level", {"rule": "gross_notional"}) == 1.0


def test_the_gross_rule_trips_exactly_once_and_leaves_its_figures(cluster: Cluster, leader: Coordinator) -> None:
    """NOTHING IS LOST: the freeze holds rule, figure, level, unit and term, and further rounds make no second one."""
    report(cluster, BTC=700.0, ETH=-300.0)
    for _ in range(3):
        leader.evaluate()
    cause = the_cause(cluster)
    assert (cause.trigger, str(cause.scope), cause.mode) == ("gross_notional", "global", Mode.FROZEN)
    assert (cause.actor, cause.at) == ("coordinator:c1", AT)
    assert cause.reason == "gross notional 1,000.00 USD reached 1,000.00 USD (gross_notional)"
    assert dict(cause.metadata) == {
        "rule": "gross_notional", "figure": 1_000.0, "hard": 1_000.0, "unit": "USD", "term": 1, "gross_usd": 1_000.0,
        "net_usd": 400.0, "pnl_usd": 0.0, "counted_lost_nodes": ["n1"],
    }  # fmt: skip
    assert cluster.read_flag().flag.epoch == 2
    assert counted(leader, "gross_notional") == 1.0
    assert cluster.verify_history() == []


def test_the_drawdown_rule_trips_exactly_once_from_the_peak(cluster: Cluster, leader: Coordinator) -> None:
    """NOTHING IS LOST: a drawdown is measured from the peak that this leader has seen, and the freeze names both."""
    for pnl_usd in (50.0, 250.0, 151.0):
        report(cluster, pnl_usd=pnl_usd)
        leader.evaluate()
        assert causes(cluster) == []
    report(cluster, pnl_usd=150.0)
    for _ in range(3):
        leader.evaluate()
    cause = the_cause(cluster)
    assert cause.trigger == "drawdown"
    assert (cause.metadata["figure"], cause.metadata["peak_usd"], cause.metadata["pnl_usd"]) == (100.0, 250.0, 150.0)
    assert counted(leader, "drawdown") == 1.0


def test_two_rules_that_trip_together_make_two_causes(cluster: Cluster, leader: Coordinator) -> None:
    """ONE VOICE FREEZES: each rule is a cause of its own, lifted by itself."""
    report(cluster, BTC=5_000.0, pnl_usd=-500.0)
    leader.evaluate()
    assert sorted(cause.trigger for cause in causes(cluster)) == ["drawdown", "gross_notional"]


def test_an_unreadable_report_freezes_without_any_rule(cluster: Cluster, make: Make) -> None:
    """UNKNOWN IS FROZEN: what a node holds whose report cannot be read is unknown."""
    leader = make(rules={})
    leader.election.step()
    put(cluster, cluster.keys.under("reports", "n1"), b"{}")
    leader.evaluate()
    leader.evaluate()
    assert the_cause(cluster).trigger == "report_unreadable"
    assert the_cause(cluster).metadata["nodes"] == ["n1"]


def test_a_node_without_a_lease_for_an_instant_freezes_nobody(cluster: Cluster, make: Make) -> None:
    """UNKNOWN IS FROZEN, and no more: an agent that starts again has no lease for an instant, and is not lost."""
    leader = make(rules={"lost_nodes": {"hard_nodes": 1}})
    leader.election.step()
    live = cluster.keys.under("live", "n1")
    held = LiveRecord(node="n1", instance="i", pid=7, boot_id="b", gate="/g", started_at=AT).to_bytes()
    put(cluster, live, held)
    leader.evaluate()
    for _ in range(3):
        cluster.store.commit({}, {}, [live])
        leader.evaluate()
        put(cluster, live, held)
        leader.evaluate()
    assert causes(cluster) == []
    cluster.store.commit({}, {}, [live])
    leader.evaluate()
    assert causes(cluster) == []
    leader.evaluate()
    assert the_cause(cluster).metadata["nodes"] == ["n1"]


def test_a_node_that_is_lost_when_a_leader_begins_is_lost_in_its_first_round(cluster: Cluster, make: Make) -> None:
    """UNKNOWN IS FROZEN: a new leader waits for no second look, or what was accepted of the one before would end."""
    leader = make(rules={"lost_nodes": {"hard_nodes": 1}})
    leader.election.step()
    leader.evaluate()
    assert the_cause(cluster).metadata["nodes"] == ["n1"]


def test_a_stale_report_is_timed_by_the_coordinator(cluster: Cluster, clock: HandClock, make: Make) -> None:
    """UNKNOWN IS FROZEN: a live node whose report does not change is found by this clock, not by what it writes."""
    leader = make(rules={"stale_reports": {"hard_ms": 1_000}})
    leader.election.step()
    put(cluster, cluster.keys.under("live", "n1"), b"unreadable, and live all the same")
    report(cluster)
    leader.evaluate()
    clock.time_ns += 999 * MS
    leader.evaluate()
    assert causes(cluster) == []
    report(cluster)
    leader.evaluate()
    clock.time_ns += 999 * MS
    leader.evaluate()
    assert causes(cluster) == []
    clock.time_ns += MS
    leader.evaluate()
    assert the_cause(cluster).trigger == "stale_reports"
    assert the_cause(cluster).metadata["nodes"] == ["n1"]


def test_a_view_that_cannot_be_read_freezes_once(cluster: Cluster, leader: Coordinator) -> None:
    """UNKNOWN IS FROZEN: a leader that cannot know what its rules measure from freezes, says why, and goes on."""
    put(cluster, cluster.keys.view, b"spoilt")
    for _ in range(3):
        leader.evaluate()
    cause = the_cause(cluster)
    assert (cause.trigger, str(cause.scope), cause.mode) == ("monitor_error", "global", Mode.FROZEN)
    assert "key /killswitch/c/view cannot be read" in cause.reason


def test_a_rule_that_trips_on_a_full_flag_freezes_once(cluster: Cluster, leader: Coordinator) -> None:
    """ONE VOICE FREEZES: a rule's cause that was folded into the escalation counts as in force."""
    for number in range(MAX_FREEZES):
        cluster.freeze(a_freeze(f"n{number:02d}", "symbol:X"), timeout_ms=1_000)
    report(cluster, BTC=5_000.0)
    leader.evaluate()
    epoch = cluster.read_flag().flag.epoch
    assert epoch == MAX_FREEZES + 2
    for usd in (5_000.0, 9_000.0, 90_000.0):
        report(cluster, BTC=usd)
        leader.evaluate()
    flag = cluster.read_flag().flag
    assert (flag.epoch, flag.mode_for({"symbol": "BTC"})) == (epoch, Mode.FROZEN)
    assert counted(leader, "gross_notional") == 1.0


# -- who may act -----------------------------------------------------------------------------------------------------


def test_who_does_not_lead_writes_nothing(cluster: Cluster, leader: Coordinator, make: Make) -> None:
    """Never two that may act: a standby writes nothing, and does not even read."""
    standby = make("c2")
    standby.election.step()
    report(cluster, BTC=5_000.0)
    before = cluster.store.scan("")
    standby.evaluate()
    standby._certify()
    assert cluster.store.scan("") == before
    assert not standby.election.leads
    assert leader.election.leads
    store = cluster.store
    assert isinstance(store, FaultyStore)
    store.cut()
    standby.evaluate()
    assert store.failed_calls == 0


def test_a_second_coordinator_does_not_freeze_again(cluster: Cluster, clock: HandClock, make: Make) -> None:
    """A rule freezes once, whoever leads: the next leader finds the freeze in the flag."""
    first, second = make("c1"), make("c2")
    first.election.step()
    report(cluster, BTC=5_000.0, pnl_usd=-500.0)
    first.evaluate()
    epoch = cluster.read_flag().flag.epoch
    clock.time_ns += 6_000 * MS
    second.election.step()
    assert second.election.leads
    for _ in range(3):
        second.evaluate()
    assert cluster.read_flag().flag.epoch == epoch
    assert counted(second, "gross_notional") == 0.0


def test_a_rule_frozen_meanwhile_by_somebody_else_is_not_frozen_again(
    cluster: Cluster, leader: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule freezes once: a freeze of this rule that came between reading and committing counts as this one's."""
    real = cluster.membership

    def frozen_meanwhile() -> Any:
        monkeypatch.setattr(cluster, "membership", real)
        cluster.freeze(a_freeze("theirs", metadata={"rule": "gross_notional"}), timeout_ms=1_000)
        return real()

    monkeypatch.setattr(cluster, "membership", frozen_meanwhile)
    report(cluster, BTC=5_000.0)
    for _ in range(3):
        leader.evaluate()
    assert the_cause(cluster).id == "theirs"
    assert counted(leader, "gross_notional") == 0.0


@pytest.mark.parametrize("moment", ["while reading", "after the fence was read"])
def test_a_leader_lost_between_reading_and_committing_writes_nothing(
    cluster: Cluster, clock: HandClock, make: Make, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Never two that may act: a leader paused in the middle of an evaluation writes nothing when it wakes up."""
    first, second = make("c1"), make("c2")
    first.election.step()
    report(cluster, BTC=5_000.0)
    name = "membership" if moment == "while reading" else "wall_clock"
    real = getattr(cluster, name)
    before: list[Any] = []

    def pause() -> Any:
        monkeypatch.setattr(cluster, name, real)
        clock.time_ns += 6_000 * MS
        second.election.step()
        assert second.election.leads
        before.extend(cluster.store.scan(""))
        return real()

    monkeypatch.setattr(cluster, name, pause)
    first.evaluate()
    assert before
    assert cluster.store.scan("") == before
    assert causes(cluster) == []
    second.evaluate()
    assert the_cause(cluster).actor == "coordinator:c2"


def test_a_store_that_is_cut_while_freezing_is_tried_again(cluster: Cluster, leader: Coordinator) -> None:
    """ONE VOICE FREEZES: a rule that could not freeze freezes in the next round."""
    store = cluster.store
    assert isinstance(store, FaultyStore)
    real = store.commit

    def cut(*args: Any, **named: Any) -> int:
        store.cut()
        return real(*args, **named)

    report(cluster, BTC=5_000.0)
    store.commit = cut  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):  # the loop logs it and comes again
        leader.evaluate()
    store.commit = real  # type: ignore[method-assign]
    assert store.failed_calls > 0
    store.heal()
    assert causes(cluster) == []
    leader.election.step()
    leader.evaluate()
    assert the_cause(cluster).trigger == "gross_notional"


# -- the way out -----------------------------------------------------------------------------------------------------


def release_all(cluster: Cluster) -> None:
    """What an operator does who has looked."""
    flag = cluster.read_flag().flag
    cluster.release(epoch=flag.epoch, ids=sorted(flag.freeze_ids()), actor="operator:ann", reason="looked")


def test_a_released_rule_does_not_trip_again_at_once(cluster: Cluster, leader: Coordinator) -> None:
    """A release is not fought: the same figures do not freeze again; grown past the margin they do."""
    report(cluster, BTC=2_000.0, pnl_usd=-150.0)
    leader.evaluate()
    assert len(causes(cluster)) == 2
    release_all(cluster)
    for _ in range(3):
        leader.evaluate()
    assert causes(cluster) == []
    report(cluster, BTC=2_101.0, pnl_usd=-249.0)
    leader.evaluate()
    assert the_cause(cluster).trigger == "gross_notional"
    report(cluster, BTC=2_101.0, pnl_usd=-250.0)
    leader.evaluate()
    assert sorted(cause.trigger for cause in causes(cluster)) == ["drawdown", "gross_notional"]


def test_what_was_accepted_is_known_to_the_next_leader(cluster: Cluster, clock: HandClock, make: Make) -> None:
    """A release is not fought by the next leader either: accepted figures and the peak are kept in the store."""
    first, second = make("c1"), make("c2")
    first.election.step()
    report(cluster, BTC=2_000.0, pnl_usd=300.0)
    first.evaluate()
    release_all(cluster)
    first.evaluate()
    clock.time_ns += 6_000 * MS
    second.election.step()
    second.evaluate()
    assert causes(cluster) == []
    report(cluster, BTC=2_000.0, pnl_usd=200.0)
    second.evaluate()
    assert the_cause(cluster).trigger == "drawdown"
    assert the_cause(cluster).metadata["peak_usd"] == 300.0
    assert the_cause(cluster).metadata["term"] == 2


def test_the_view_is_kept_for_the_next_leader_once_a_second(
    cluster: Cluster, clock: HandClock, leader: Coordinator
) -> None:
    """NOTHING IS LOST: peak and figures are in the store, written at most once in PERSIST_EVERY_MS."""
    report(cluster, BTC=10.0, pnl_usd=70.0)
    leader.evaluate()

    def view() -> tuple[ClusterViewRecord, int]:
        entry = cluster.store.read(cluster.keys.view)
        assert entry is not None
        return ClusterViewRecord.from_bytes(entry.value, key=entry.key), entry.version

    record, version = view()
    assert (record.term, record.gross_usd, record.pnl_peak_usd, record.lost_nodes) == (1, 10.0, 70.0, ["n1"])
    clock.time_ns += (PERSIST_EVERY_MS - 1) * MS
    leader.evaluate()
    assert view()[1] == version
    clock.time_ns += MS
    leader.evaluate()
    assert view()[1] > version


# -- certificates ----------------------------------------------------------------------------------------------------


def certificate(cluster: Cluster, epoch: int = 2) -> CertificateRecord | None:
    """The certificate of an epoch, if it is written."""
    entry = cluster.store.read(cluster.keys.certificate(epoch))
    return CertificateRecord.from_bytes(entry.value, key=entry.key) if entry else None


def certified(cluster: Cluster, coordinator: Coordinator, state: str, epoch: int = 2) -> CertificateRecord:
    """Turn the certifying loop until the node's line says so."""

    def turned() -> CertificateRecord | None:
        coordinator._certify()
        record = certificate(cluster, epoch)
        return record if record is not None and record.nodes[0]["state"] == state else None

    return wait_until(turned, what=f"a certificate that says {state}")  # type: ignore[return-value]


def test_the_certificate_of_a_rules_freeze_is_written_and_closed(cluster: Cluster, leader: Coordinator) -> None:
    """PROOF, NOT HOPE: the leader collects the acks of its own freeze and keeps the certificate in the store."""
    report(cluster, BTC=5_000.0)
    leader.evaluate()
    cause = the_cause(cluster)
    unproven = certified(cluster, leader, "UNPROVEN")
    assert (unproven.stopped, unproven.final, unproven.freezes) == (False, False, [cause.id])
    put(cluster, cluster.keys.under("acks", "n1"), an_ack("n1", epoch=2, freezes=[cause.id]))
    acked = certified(cluster, leader, "ACKED")
    assert (acked.stopped, acked.flat, acked.final) == (True, True, True)
    assert (acked.collected_by, acked.term, acked.epoch, acked.freeze.id) == ("c1", 1, 2, cause.id)
    assert acked.nodes[0]["orders_cancelled"] == 1


def test_the_certificate_of_a_silent_node_says_when_its_permit_ran_out(
    cluster: Cluster, clock: HandClock, leader: Coordinator
) -> None:
    """BOUNDED STOP: without any ack the certificate closes when the permit bound has passed."""
    report(cluster, BTC=5_000.0)
    leader.evaluate()
    certified(cluster, leader, "UNPROVEN")
    clock.time_ns += 2_100 * MS
    expired = certified(cluster, leader, "PERMIT_EXPIRED")
    assert (expired.stopped, expired.flat, expired.final) == (True, False, True)


def test_the_certificate_of_an_operators_freeze_is_written_as_well(cluster: Cluster, leader: Coordinator) -> None:
    """PROOF, NOT HOPE: a freeze made by anybody while this one leads gets its certificate."""
    leader.evaluate()
    cluster.freeze(a_freeze("by-hand"), timeout_ms=1_000)
    entry = cluster.store.read(cluster.keys.flag)
    assert entry is not None
    leader._flag_changed(entry)
    put(cluster, cluster.keys.under("acks", "n1"), an_ack("n1", epoch=2, freezes=["by-hand"]))
    assert certified(cluster, leader, "ACKED").freeze.id == "by-hand"


def test_a_leader_that_lost_its_key_writes_no_certificate(
    cluster: Cluster, clock: HandClock, leader: Coordinator, make: Make
) -> None:
    """Never two that may act: a certificate is written under the fence as well."""
    report(cluster, BTC=5_000.0)
    leader.evaluate()
    clock.time_ns += 4_000 * MS
    leader._certify()
    leader._certifier.step()
    assert certificate(cluster) is None


def test_a_leader_paused_while_writing_a_certificate_writes_none(
    cluster: Cluster, clock: HandClock, leader: Coordinator, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never two that may act: a certificate that was decided before another led is refused by the store."""
    second = make("c2")
    report(cluster, BTC=5_000.0)
    leader.evaluate()
    real = cluster.wall_clock

    def pause() -> str:
        monkeypatch.setattr(cluster, "wall_clock", real)
        clock.time_ns += 6_000 * MS
        second.election.step()
        assert second.election.leads
        return real()

    monkeypatch.setattr(cluster, "wall_clock", pause)
    leader._certifier.step()
    assert second.election.leads
    assert certificate(cluster) is None

"""Coordinators as real processes: who leads, what a dead leader leaves, and freezing by rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from killswitch.core.permit import worst_case
from killswitch.link import Exposure, Holding
from tests.cluster.lab import FAULT_FACTOR, TIMING, Lab
from tests.cluster.test_node_faults import Router, readable_flag
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

FAILOVER_S = worst_case(TIMING).failover_ms / 1000
RULES = {
    "drawdown": {"warning_usd": 500, "hard_usd": 1_000},
    "gross_notional": {"hard_usd": 1_000_000},
    "symbol_notional": {"hard_usd": 90_000, "mode": "reduce-only"},
}


def leader(lab: Lab) -> str | None:
    record = lab.cluster.leader()
    return record.id if record else None


def term(lab: Lab) -> int:
    record = lab.cluster.leader()
    return record.term if record else 0


def lose(router: Router, pnl_usd: float) -> None:
    holdings = {"BTCUSDT": Holding(1.0, 40_000.0)}
    router.link.report(Exposure(holdings=holdings, working_orders=router.working, pnl_usd=pnl_usd, last_sequence=9))


def test_a_rule_freezes_the_cluster_with_the_figures_that_led_to_it(make_lab: Callable[..., Lab]) -> None:
    """NOTHING IS LOST: the history holds the drawdown, its limit and the sums; the leader's certificate is kept."""
    lab = make_lab(rules=RULES)
    lab.start_coordinator("c1")
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=3)
    wait_until(lambda: leader(lab) == "c1", what="a leader")
    lose(router, -400.0)
    lose(router, -1_250.0)
    wait_until(lambda: not lab.is_open("n1"), what="the gate to close")
    freeze = lab.cluster.read_flag().flag.freezes[0]
    assert freeze.trigger == "drawdown"
    assert freeze.actor == "coordinator:c1"
    assert freeze.metadata["figure"] == 1_250.0
    assert freeze.metadata["hard"] == 1_000.0
    assert freeze.metadata["pnl_usd"] == -1_250.0
    record = wait_until(lambda: final_certificate(lab, 2), what="the certificate")
    assert record["stopped"]
    assert record["flat"]
    assert record["nodes"][0]["orders_cancelled"] == 3
    lab.release()
    wait_until(lambda: lab.is_open("n1"), what="trading to resume, the released loss being the new mark")
    lose(router, -1_300.0)
    wait_until(lambda: lab.cluster.membership().exposure().pnl_usd == -1_300.0, what="the report")
    assert lab.is_open("n1")
    lose(router, -2_300.0)
    wait_until(lambda: not lab.is_open("n1"), what="the rule to trip again by a new fall")
    router.close()


def test_a_rule_can_restrict_to_reduce_only(make_lab: Callable[..., Lab]) -> None:
    """The strictest of the modes in force counts: a symbol over its cap may still be reduced."""
    lab = make_lab(rules=RULES)
    lab.start_coordinator("c1")
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=0)
    router.link.report(Exposure(holdings={"ETHUSDT": Holding(50.0, 2_000.0)}))
    wait_until(lambda: not router.gate.allows("ETHUSDT"), what="the rule to trip")
    assert router.gate.allows("ETHUSDT", reduces=True)
    assert router.gate.allows("BTCUSDT")
    router.close()


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_the_standby_leads_and_freezes_when_the_leader_is_gone(make_lab: Callable[..., Lab], fault: str) -> None:
    """A standby leads within the lease, in a new term, and freezes by rule; a woken leader acts no more."""
    lab = make_lab(rules=RULES)
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=1)
    lab.start_coordinator("c1")
    first = lab.processes["c1"]
    # Its key is there a moment before it leads, and one that is paused in that moment never led.
    wait_until(lambda: '"event": "leads"' in first.log.read_text(), what="the first leader")
    assert leader(lab) == "c1"
    lab.start_coordinator("c2")
    (first.kill if fault == "kill" else first.pause)()
    wait_until(lambda: leader(lab) == "c2", within_s=FAILOVER_S * FAULT_FACTOR, what="the standby to lead")
    assert term(lab) == 2
    lose(router, -5_000.0)
    wait_until(lambda: not lab.is_open("n1"), what="the new leader to freeze")
    assert [freeze.actor for freeze in lab.cluster.read_flag().flag.freezes] == ["coordinator:c2"]
    if fault == "pause":
        first.resume()
        wait_until(lambda: "leadership_lost" in first.log.read_text(), what="the woken leader to see that it is over")
        assert leader(lab) == "c2"
        assert len(lab.cluster.read_flag().flag.freezes) == 1
    assert lab.cluster.verify_history() == []
    router.close()


def test_a_new_leader_measures_from_the_peak_of_the_old_one(make_lab: Callable[..., Lab]) -> None:
    """A change of leader hides no loss: the peak outlives the leader that saw it."""
    lab = make_lab(rules=RULES)
    lab.start_agent("n1")
    router = Router(lab, "n1", "r1", working=0)
    lab.start_coordinator("c1")
    wait_until(lambda: leader(lab) == "c1", what="the first leader")
    lose(router, 5_000.0)
    wait_until(lambda: peak(lab) == 5_000.0, what="the peak to be kept")
    lab.processes["c1"].kill()
    lab.start_coordinator("c2")
    wait_until(lambda: leader(lab) == "c2", within_s=FAILOVER_S * FAULT_FACTOR, what="the new leader")
    lose(router, 3_900.0)
    wait_until(lambda: not lab.is_open("n1"), what="the freeze by a fall of 1,100 from the old leader's peak")
    router.close()


def test_a_lost_node_trips_its_rule_and_its_exposure_still_counts(make_lab: Callable[..., Lab]) -> None:
    """A node that is gone is held as it was last known, the lost-nodes rule freezes, and a release accepts it."""
    lab = make_lab(rules={"lost_nodes": {"hard_nodes": 1}})
    lab.start_coordinator("c1")
    lab.start_agent("n1")
    lab.start_agent("n2")
    router = Router(lab, "n2", "r1", working=0)
    wait_until(lambda: lab.cluster.membership().exposure().gross_usd == 40_000.0, what="the report")
    lab.processes["n2"].kill()
    wait_until(
        lambda: not lab.is_open("n1"),
        within_s=(TIMING.lease_ttl_ms / 1000 + 3) * FAULT_FACTOR,
        what="the lost-nodes rule to freeze",
    )
    freeze = lab.cluster.read_flag().flag.freezes[0]
    assert freeze.trigger == "lost_nodes"
    assert freeze.metadata["nodes"] == ["n2"]
    assert lab.cluster.membership().exposure().gross_usd == 40_000.0
    lab.release()
    wait_until(lambda: lab.is_open("n1"), what="trading to resume with one node accepted as lost")
    router.close()


def test_freeze_and_release_need_no_coordinator_and_status_says_that_nobody_leads(
    make_lab: Callable[..., Lab],
) -> None:
    """ONE VOICE FREEZES: with no coordinator alive the command alone freezes and releases."""
    lab = make_lab()
    lab.start_agent("n1")
    assert lab.run("-o", "json", "status").json["leader"] is None
    lab.freeze()
    lab.release()
    wait_until(lambda: lab.is_open("n1"), what="trading to resume")
    assert readable_flag(lab).epoch == 3


def final_certificate(lab: Lab, epoch: int) -> dict[str, Any] | None:
    entry = lab.store.read(lab.cluster.keys.certificate(epoch))
    if entry is None or entry.value is None:
        return None
    record: dict[str, Any] = json.loads(entry.value)
    return record if record["final"] else None


def peak(lab: Lab) -> float | None:
    entry = lab.store.read(lab.cluster.keys.view)
    return float(json.loads(entry.value)["pnl_peak_usd"]) if entry and entry.value else None

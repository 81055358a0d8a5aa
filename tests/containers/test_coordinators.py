"""The leading coordinator is killed, paused or cut off; the standby leads and freezes by rule, and only one acts."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from killswitch.clock import now_ns
from tests.containers.faults import Faults
from tests.containers.lab import COORDINATORS, GROSS_HARD_USD, Lab
from tests.containers.test_nodes import NS_PER_MS, look_on
from tests.containers.times import BUSY_FACTOR, RULES_FOLLOW
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

OVER_THE_RULE_USD = 1.2 * GROSS_HARD_USD
HOLDER = "n2"


@pytest.mark.parametrize("fault", ["killed", "paused", "cut off"])
def test_the_standby_leads_and_freezes_by_rule_when_the_leader_is(
    lab: Lab, faults: Faults, times: Callable[..., None], fault: str
) -> None:
    """ONE VOICE FREEZES, RELEASE IS FENCED: a standby leads within the lease and its slack, in a new term, and freezes
    by rule. The old leader, woken or healed after the operator has released that freeze, would freeze again by what it
    remembers; it does nothing, and no two ever act in one term.
    """
    first = lab.leader()
    assert first is not None
    standby = next(name for name in COORDINATORS if name != first)
    term = lab.term()
    {"killed": lambda: faults.kill(lab.coordinator(first)), "paused": lambda: faults.pause(lab.coordinator(first)),
     "cut off": lambda: faults.cut(first)}[fault]()  # fmt: skip
    gone_ns = now_ns()
    bound_ms = lab.bounds["failover_ms"]
    wait_until(lambda: lab.leader() == standby, within_s=bound_ms * BUSY_FACTOR / 1000, what="the standby to lead")
    times(f"the standby leads, the leader {fault}", (now_ns() - gone_ns) / NS_PER_MS, bound_ms, BUSY_FACTOR)
    assert lab.term() == term + 1
    held_ns = now_ns()
    lab.hold(HOLDER, OVER_THE_RULE_USD)
    wait_until(lambda: lab.flag().freezes, what="the rule to freeze")
    times("a rule freezes after the position was taken", (now_ns() - held_ns) / NS_PER_MS, no_bound=RULES_FOLLOW)
    cause = lab.flag().freezes[0]
    assert (cause.trigger, cause.actor) == ("gross_notional", f"coordinator:{standby}")
    assert cause.metadata["figure"] >= GROSS_HARD_USD
    wait_until(lambda: lab.judge.working(lab.routers()) == 0, what="all orders to be cancelled")
    wait_until(lambda: lab.certificate(lab.flag().epoch), what="the new leader's certificate")
    lab.release()
    lab.judge.wait_until_trading(lab.routers())
    epoch = lab.flag().epoch
    if fault == "paused":
        faults.resume(lab.coordinator(first))
    elif fault == "cut off":
        faults.heal(first)
    else:
        faults.restart(lab.coordinator(first))
    look_on(lab, now_ns())
    assert lab.flag().epoch == epoch
    assert lab.leader() == standby
    assert_one_leader_a_term(lab)
    assert lab.cluster.verify_history() == []


def assert_one_leader_a_term(lab: Lab) -> None:
    """In the history and in the certificates, each term belongs to one coordinator."""
    acted: dict[int, set[str]] = {}
    for _, entry in lab.cluster.history():
        for cause in entry.added:
            if str(cause["actor"]).startswith("coordinator:"):
                acted.setdefault(cause["metadata"]["term"], set()).add(str(cause["actor"]).partition(":")[2])
    for stored in lab.cluster.store.scan(lab.cluster.keys.under("certificates")):
        record = json.loads(stored.value or b"")
        acted.setdefault(record["term"], set()).add(record["collected_by"])
    assert acted
    assert {term: names for term, names in acted.items() if len(names) > 1} == {}

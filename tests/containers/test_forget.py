"""What a lost node held goes on counting until an operator takes the node out of the books."""

from __future__ import annotations

import pytest

from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.times import BUSY_FACTOR
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

HELD_USD = 500_000.0


@pytest.mark.fresh_after
def test_a_lost_nodes_exposure_counts_until_it_is_forgotten(lab: Lab, faults: Faults) -> None:
    """NOTHING IS LOST, PROOF NOT HOPE: a dead node stays in the cluster's notional and in every certificate, until
    ``killswitch nodes forget``; the history keeps what was known of it.
    """
    lab.hold("n3", HELD_USD)
    for process in lab.processes_of("n3"):
        faults.kill(process)
    refused = lab.killswitch("nodes", "forget", "n2", "--yes", expect=5)
    assert "n2" in refused.err
    lost_within_s = lab.bounds["failover_ms"] * BUSY_FACTOR / 1000
    wait_until(lambda: lab.ask("exposure")["counted_lost"] == ["n3"], within_s=lost_within_s, what="n3 to be lost")
    exposure = lab.ask("exposure")
    assert exposure["by_node"]["n3"] >= HELD_USD
    assert exposure["gross_usd"] >= HELD_USD
    frozen = lab.freeze("with a lost node in the books", expect=3)
    assert frozen.line("n3")["state"] == "PERMIT_EXPIRED"
    lab.release()
    document = lab.ask("nodes", "forget", "n3", "--yes", "--reason", "its machine has burnt")
    assert document["schema"] == "killswitch.forget/1"
    assert "n3" not in lab.ask("exposure")["by_node"]
    assert lab.ask("exposure")["gross_usd"] < HELD_USD
    again = lab.freeze("without it")
    assert "n3" not in again.states()
    assert again.certificate["flat"]
    told = [entry for _, entry in lab.cluster.history() if entry.kind == "forget"]
    (entry,) = told
    assert (entry.reason, entry.actor.partition(":")[0], entry.epoch) == (
        "its machine has burnt", "operator", document["epoch"],
    )  # fmt: skip
    assert entry.forgotten is not None
    assert entry.forgotten["report"]["gross_usd"] >= HELD_USD
    lab.killswitch("history", "--verify")
    lab.release()
    lab.judge.wait_until_trading(lab.routers(*lab.others("n3")))

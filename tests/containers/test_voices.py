"""Many voices at once, and two agents that believe to be the same node."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from killswitch.clock import now_ns
from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.pods import PYTHON, must, run_in
from tests.containers.test_nodes import NS_PER_MS
from tests.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

SPEAKERS, THREADS, ROUNDS = 2, 2, 126
"""1,008 changes of the flag by two processes of two threads."""
REFUSED_WITHIN_S = 30.0
"""The second agent waits until a dead one's lease would have run out, 9.3 s, before it gives up."""


def test_a_thousand_freezes_and_releases_at_once_lose_nothing(lab: Lab, times: Callable[..., None]) -> None:
    """ONE VOICE FREEZES, NOTHING IS LOST, RELEASE IS FENCED: every cause is in the history once, as it came and as it
    went; epochs have no gap; the chain holds.
    """
    first = lab.flag().epoch
    began_ns = now_ns()

    def speak(name: str) -> list[str]:
        words = (PYTHON, "/opt/inside/voices.py", name, str(THREADS), str(ROUNDS))
        said = must(run_in(lab.operator.holder, words, environment=lab.environment()), f"voice {name}")
        return list(json.loads(said))

    with ThreadPoolExecutor(SPEAKERS) as pool:
        said = [freeze_id for ids in pool.map(speak, "ABCD"[:SPEAKERS]) for freeze_id in ids]
    changes = 2 * SPEAKERS * THREADS * ROUNDS
    times(f"{changes} changes by {SPEAKERS * THREADS} voices", (now_ns() - began_ns) / NS_PER_MS)
    assert len(set(said)) == len(said) == changes // 2
    entries = [entry for epoch, entry in lab.cluster.history() if epoch > first]
    assert [entry.epoch for entry in entries] == list(range(first + 1, first + 1 + changes))
    added = [str(cause["id"]) for entry in entries for cause in entry.added]
    assert sorted(added) == sorted(said)
    assert sorted(str(freeze_id) for entry in entries for freeze_id in entry.lifted) == sorted(said)
    assert lab.flag().freezes == ()
    lab.killswitch("history", "--verify")
    lab.judge.wait_until_trading(lab.routers())


def test_a_second_pod_of_a_nodes_name_on_the_same_machine_is_refused(lab: Lab, faults: Faults) -> None:
    """UNKNOWN IS FROZEN, PROOF NOT HOPE: two pods on one machine have the same boot id and the same path of the gate,
    and still are two nodes. The second agent of a name ends with exit code 5, and the first one trades on.
    """
    before = lab.cluster.membership().live["n2"]
    assert before is not None
    with faults.twin_of("n2") as twin:
        wait_until(lambda: twin.exit_code is not None, within_s=REFUSED_WITHIN_S, what="the second agent to end")
        assert twin.exit_code == 5
        assert "another agent runs as node 'n2'" in twin.log()
    after = lab.cluster.membership().live["n2"]
    assert after is not None
    assert after.instance == before.instance
    lab.judge.wait_until_trading(lab.routers("n2"))

"""Many voices at once, and two agents that believe to be the same node."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from killswitch.clock import now_ns
from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.pods import PYTHON, must, run_in
from tests.containers.test_nodes import NS_PER_MS
from tests.containers.times import ALL_AT_ONCE, BUSY_FACTOR
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

SPEAKERS, THREADS, ROUNDS = 2, 2, 250
"""A thousand freezes and as many releases, by two processes of two threads."""


def test_a_thousand_freezes_and_releases_at_once_lose_nothing(lab: Lab, times: Callable[..., None]) -> None:
    """ONE VOICE FREEZES, NOTHING IS LOST, RELEASE IS FENCED: every cause is in the history once, as it came and as it
    went; epochs have no gap; the chain holds.
    """
    first = lab.flag().epoch
    began_ns = now_ns()
    with ThreadPoolExecutor(SPEAKERS) as pool:
        speaking = [pool.submit(speak, lab, name, THREADS, ROUNDS) for name in "ABCD"[:SPEAKERS]]
        said = [freeze_id for spoken in speaking for freeze_id in spoken.result().said]
    assert len(said) == SPEAKERS * THREADS * ROUNDS
    times(
        f"{2 * len(said)} changes by {SPEAKERS * THREADS} voices",
        (now_ns() - began_ns) / NS_PER_MS,
        no_bound=ALL_AT_ONCE,
    )
    assert_nothing_lost(lab, first, said)


@dataclass(frozen=True)
class Spoken:
    """What a process of several voices has done.

    Attributes:
        said: ids of all that it froze and released.
        failed: how many calls of the store failed, by what they were.
    """

    said: list[str]
    failed: dict[str, int]


def speak(lab: Lab, name: str, threads: int, rounds: int) -> Spoken:
    """Freeze and release from a process of its own, without a pause."""
    words = (PYTHON, "/opt/inside/voices.py", name, str(threads), str(rounds))
    printed = must(run_in(lab.operator.holder, words, environment=lab.environment()), f"voice {name}")
    return Spoken(**json.loads(printed))


def assert_nothing_lost(lab: Lab, first: int, said: list[str]) -> None:
    """Each of these freezes has come and gone once since the epoch ``first``, and nothing else has happened."""
    changes = 2 * len(said)
    assert len(set(said)) == len(said)
    entries = [entry for epoch, entry in lab.cluster.history() if epoch > first]
    ours = set(said)
    others = [e for e in entries if not {str(cause["id"]) for cause in e.added} | {str(i) for i in e.lifted} <= ours]
    assert [(e.epoch, e.kind, e.actor, e.reason, e.added, e.lifted) for e in others] == []
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
    # The second agent waits until a dead one's lease would have run out before it gives up.
    refused_within_s = lab.bounds["failover_ms"] * BUSY_FACTOR / 1000
    with faults.twin_of("n2") as twin:
        wait_until(lambda: twin.exit_code is not None, within_s=refused_within_s, what="the second agent to end")
        assert twin.exit_code == 5
        assert "another agent runs as node 'n2'" in twin.log()
    after = lab.cluster.membership().live["n2"]
    assert after is not None
    assert after.instance == before.instance
    lab.judge.wait_until_trading(lab.routers("n2"))

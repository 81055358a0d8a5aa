"""Servers of the store die, hang and come back; what was committed is not forgotten, and nobody trades unknowing."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from killswitch.cli.context import EXIT_STORE_UNAVAILABLE
from killswitch.clock import now_ns
from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.test_nodes import NS_PER_MS, assert_stopped_by_permit, look_on
from tests.containers.test_voices import assert_nothing_lost, speak
from tests.containers.times import STOP_FACTOR, STORE_ELECTS
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

VOICES, ROUNDS, WARM_UP_CHANGES = 12, 30, 20
"""So many that at most instants commits are on their way, and not at all, for each reads more often."""
PATIENT = ("--timeout", "30")
"""A freeze that waits for the store to elect a leader first."""


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_nothing_is_lost_by_a_freeze_while_the_store_has_no_leader(
    lab: Lab, faults: Faults, times: Callable[..., None], fault: str
) -> None:
    """BOUNDED STOP, NOTHING IS LOST: the freeze is made while the store has no leader. It ends in force, once; from
    then on the bound holds, and the old leader's return changes nothing.
    """
    (faults.stop_store_leader if fault == "killed" else faults.pause_store_leader)()
    gone_ns = now_ns()
    frozen = lab.freeze("in the middle of an election", *PATIENT)
    times(
        f"freeze in force, the store's leader {fault}",
        (frozen.in_force_ns - gone_ns) / NS_PER_MS,
        no_bound=STORE_ELECTS,
    )
    last_ms = (lab.judge.last_accepted_ns(lab.routers()) - frozen.in_force_ns) / NS_PER_MS
    times(f"last order after the freeze was in force, {fault}", last_ms, lab.bounds["unreachable_ms"], STOP_FACTOR)
    assert frozen.certificate["stopped"]
    certified_ns = now_ns()
    lab.servers.heal()
    look_on(lab, now_ns())
    assert [cause.id for cause in lab.flag().freezes] == [frozen.id]
    assert set(lab.judge.accepted(lab.routers(), since_ns=certified_ns).values()) == {0}
    assert lab.cluster.verify_history() == []


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_nothing_is_lost_when_the_stores_leader_goes_in_the_middle_of_a_freeze(
    lab: Lab, faults: Faults, times: Callable[..., None], fault: str
) -> None:
    """ONE VOICE FREEZES, NOTHING IS LOST: voices freeze and release without a pause, so the leader goes while calls of
    theirs are on their way, commits among them. Every freeze is in the history once, whatever became of the answers.
    """
    first = lab.flag().epoch
    with ThreadPoolExecutor(1) as pool:
        speaking = pool.submit(speak, lab, "M", VOICES, ROUNDS)
        wait_until(
            lambda: speaking.done() or lab.flag().epoch > first + WARM_UP_CHANGES,
            within_s=30,
            what="the voices to speak",
        )
        assert not speaking.done(), f"the voices have ended: {speaking.exception() or speaking.result()}"
        (faults.stop_store_leader if fault == "killed" else faults.pause_store_leader)()
        gone_ns = now_ns()
        flag = wait_until(lab.find_flag, within_s=30, what="another leader")
        assert flag.epoch < first + 2 * VOICES * ROUNDS, "the voices had said everything before the leader was gone"
        times(f"the store answers again, its leader {fault}", (now_ns() - gone_ns) / NS_PER_MS, no_bound=STORE_ELECTS)
        spoken = speaking.result(timeout=120)
    lab.servers.heal()
    # That a commit whose answer is lost ends right is asserted by the conformance suite; here it mostly happens.
    assert sum(spoken.failed.values()) > 0, "no voice has noticed that the leader was gone"
    print(f"calls that failed, the store's leader {fault}: {spoken.failed}")
    assert len(spoken.said) == VOICES * ROUNDS
    assert_nothing_lost(lab, first, spoken.said)


def test_everybody_is_frozen_while_most_of_the_store_is_gone(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """BOUNDED STOP, UNKNOWN IS FROZEN: without a majority every node stops by its permit, a freeze tells the truth, and
    what holds afterwards is what the store says.
    """
    epoch = lab.flag().epoch
    faults.stop_store_majority()
    gone_ns = now_ns()
    refused = lab.killswitch("freeze", "--reason", "nobody hears this", expect=4)
    assert "is NOT in force" in refused.err or "may or may not be in force" in refused.err
    for node in lab.nodes:
        assert_stopped_by_permit(lab, times, node, gone_ns, f"last order of {node} without the store")
    wait_until(lambda: lab.judge.working(lab.routers()) == 0, what="the routers to cancel")
    lab.servers.heal()
    flag = wait_until(lab.find_flag, within_s=30, what="the store to answer")
    if "is NOT in force" in refused.err:
        assert (flag.epoch, flag.freezes) == (epoch, ())
    if not flag.freezes:
        lab.judge.wait_until_trading(lab.routers())
    assert lab.cluster.verify_history() == []


def test_a_freeze_just_before_the_store_is_gone_stays(lab: Lab, faults: Faults) -> None:
    """NOTHING IS LOST: a freeze is committed, and most of the store dies at once; it is in force afterwards.

    The answer to the command, or the list of the nodes, may die with the store. Then the command may not know, or may
    prove nothing; it never says "not in force", and stopping everybody needs no answer.
    """
    words = ("-o", "json", "freeze", "--reason", "a last word", *PATIENT)
    with ThreadPoolExecutor(1) as pool:
        freezing = pool.submit(lab.killswitch, *words, expect=None)
        wait_until(lambda: freezing.done() or lab.flag().freezes, what="the freeze to be committed")
        (cause,) = lab.flag().freezes
        faults.stop_store_majority()
        ran = freezing.result(timeout=90)
    stopped_ns = now_ns()
    if ran.code == EXIT_STORE_UNAVAILABLE:
        assert "may or may not be in force" in ran.err, ran.err
    else:
        document = json.loads(ran.out)
        assert document["freeze"]["id"] == cause.id
        unread = "the nodes that must be proven stopped could not be read" in ran.err
        assert document["certificate"] is None if unread else document["certificate"]["stopped"], ran.out + ran.err
    lab.servers.heal()
    flag: Any = wait_until(lab.find_flag, within_s=30, what="the store to answer")
    assert [freeze.id for freeze in flag.freezes] == [cause.id]
    look_on(lab, now_ns())
    assert set(lab.judge.accepted(lab.routers(), since_ns=stopped_ns).values()) == {0}

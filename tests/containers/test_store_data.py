"""The store loses its data or is set back; agents stay frozen, and say what they know until the store has it again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from killswitch.clock import now_ns
from killswitch.core.flag import Flag
from tests.containers.faults import Faults
from tests.containers.lab import Frozen, Lab
from tests.containers.test_nodes import LOOK_AFTER_WAKING_MS, NS_PER_MS, look_on
from tests.containers.times import BUSY_FACTOR
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

STARTS_WITHIN_S = 20.0
"""A process of Python starts, and does its first round."""


def assert_said_again(
    lab: Lab, times: Callable[..., None], frozen: Frozen, *, certified_ns: int, serves_since_ns: int
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: the freeze is in the store again, with the cause that says why, as soon as an
    agent would have renewed its permit; and the venue has accepted nothing since the certificate.
    """
    bound_ms = lab.bounds["unreachable_ms"]
    flag = wait_until(
        lambda: (found := lab.find_flag()) and frozen.id in found.freeze_ids() and found,
        within_s=bound_ms * BUSY_FACTOR / 1000, what="the freeze to be said again",
    )  # fmt: skip
    times("the freeze is in the store again", (now_ns() - serves_since_ns) / NS_PER_MS, bound_ms, BUSY_FACTOR)
    assert isinstance(flag, Flag)
    assert any(cause.trigger == "store_lost_data" for cause in flag.freezes)
    assert flag.epoch > frozen.document["epoch"]
    look_on(lab, now_ns())
    assert set(lab.judge.accepted(lab.routers(), since_ns=certified_ns).values()) == {0}


def knows_the_flag(lab: Lab, node: str) -> bool:
    """The node has said that it holds the epoch of the store."""
    ack = lab.cluster.acks().get(node)
    return ack is not None and ack.epoch >= lab.flag().epoch


def trades_again(lab: Lab) -> None:
    """Everybody joins again and a release ends it."""
    for node in lab.nodes:
        wait_until(lambda node=node: lab.is_joined(node), within_s=30, what=f"{node} to join again")
        # One that reads a store that was set back only after the release would freeze once more.
        wait_until(lambda node=node: knows_the_flag(lab, node), within_s=30, what=f"{node} to know the flag")
    lab.release(expect=None)
    lab.judge.wait_until_trading(lab.routers(), within_s=30)


def test_a_store_set_back_to_an_older_snapshot_is_told_the_freeze_again(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: etcd is restored from before the freeze."""
    lab.servers.save_snapshot()
    frozen = lab.freeze("must outlive the restore")
    certified_ns = now_ns()
    faults.restore_store()
    restored_ns = now_ns()
    assert_said_again(lab, times, frozen, certified_ns=certified_ns, serves_since_ns=restored_ns)
    trades_again(lab)


def test_the_only_node_that_knows_a_freeze_says_it_when_it_comes_back(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """ONE VOICE FREEZES, UNKNOWN IS FROZEN: one node has acknowledged a freeze in its journal and dies; the others
    never heard of it, and the store is set back to before. They trade by what the store says, until the one comes back.
    """
    lab.servers.save_snapshot()
    for node in lab.others("n2"):
        faults.cut(node)
    frozen = lab.freeze("only one hears this", expect=3)
    assert frozen.line("n2")["state"] == "ACKED"
    faults.kill(lab.agent("n2"))
    faults.restore_store()
    for node in lab.others("n2"):
        faults.heal(node)
    lab.judge.wait_until_trading(lab.routers(*lab.others("n2")), within_s=30)
    faults.restart(lab.agent("n2"))
    wait_until(
        lambda: (found := lab.find_flag()) and frozen.id in found.freeze_ids(),
        within_s=STARTS_WITHIN_S, what="the journal's freeze to be said",
    )  # fmt: skip
    said_ns = now_ns()
    bound_ms = lab.bounds["reachable_ms"]
    look_on(lab, said_ns, bound_ms * BUSY_FACTOR + LOOK_AFTER_WAKING_MS)
    last_ms = (lab.judge.last_accepted_ns(lab.routers()) - said_ns) / NS_PER_MS
    times("last order after the journal's freeze was seen", last_ms, bound_ms, BUSY_FACTOR)
    wait_until(lambda: lab.judge.working(lab.routers()) == 0, what="everybody to cancel")
    trades_again(lab)


def test_a_node_with_an_old_journal_takes_over_what_it_missed(lab: Lab, faults: Faults) -> None:
    """UNKNOWN IS FROZEN: without power over a freeze, a release and another freeze, a node comes back with the journal
    of before, to the last of them.
    """
    faults.power_off("n3")
    lab.freeze("missed, and lifted again", expect=3)
    lab.release(expect=None)
    frozen = lab.freeze("missed, and in force", expect=3)
    faults.power_on("n3")
    restarted_ns = now_ns()
    wait_until(
        lambda: lab.cluster.acks()["n3"].epoch == frozen.document["epoch"], within_s=STARTS_WITHIN_S, what="n3's ack"
    )
    look_on(lab, restarted_ns)
    assert set(lab.judge.accepted(lab.routers("n3"), since_ns=restarted_ns).values()) == {0}
    lab.release()
    lab.judge.wait_until_trading(lab.routers())


@pytest.mark.fresh_after
def test_a_store_that_lost_everything_is_told_the_freeze_again(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: all members of the store come back on empty disks."""
    frozen = lab.freeze("must outlive the store")
    certified_ns = now_ns()
    faults.lose_store_data()
    lost_ns = now_ns()
    assert_said_again(lab, times, frozen, certified_ns=certified_ns, serves_since_ns=lost_ns)
    trades_again(lab)

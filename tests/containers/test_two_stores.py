"""Two stores at once: a freeze in either freezes, a release must be in both, and one that forgets is told again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from killswitch.clock import now_ns
from killswitch.core.flag import Flag
from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.test_nodes import NS_PER_MS, look_on
from tests.containers.times import BUSY_FACTOR
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900), pytest.mark.store("etcd and redis")]

ETCD, REDIS = 0, 1
either = pytest.mark.parametrize("which", [ETCD, REDIS], ids=["etcd", "redis"])


def assert_nobody_trades(lab: Lab, since_ns: int) -> None:
    """The venue has accepted nothing since then, and accepts nothing while it is looked at."""
    look_on(lab, now_ns())
    assert set(lab.judge.accepted(lab.routers(), since_ns=since_ns).values()) == {0}


@either
def test_one_voice_freezes_everybody_by_either_of_two_stores(lab: Lab, times: Callable[..., None], which: int) -> None:
    """ONE VOICE FREEZES, PROOF NOT HOPE: an operator who knows of one store alone stops everybody, with the proof; the
    other store never hears of it, and the release in the one is enough for what it alone holds.
    """
    url, untouched = lab.urls[which], lab.flag(1 - which).epoch
    frozen = lab.freeze("by one store of two", store=url)
    certified_ns = now_ns()
    assert frozen.certificate["stopped"]
    assert frozen.certificate["flat"]
    assert frozen.states() == dict.fromkeys(lab.nodes, "ACKED")
    last_ms = (lab.judge.last_accepted_ns(lab.routers()) - frozen.said_ns) / NS_PER_MS
    times(f"last order, frozen by {url.partition(':')[0]} of two", last_ms, lab.bounds["reachable_ms"], BUSY_FACTOR)
    assert lab.flag(1 - which).epoch == untouched
    assert_nobody_trades(lab, certified_ns)
    lab.release(stores=[which])
    lab.judge.wait_until_trading(lab.routers())


@either
def test_a_release_must_be_in_both_stores(lab: Lab, which: int) -> None:
    """RELEASE IS FENCED, UNKNOWN IS FROZEN: lifted in one store, the freeze of both holds until the other lifts it."""
    lab.freeze("in both stores")
    certified_ns = now_ns()
    assert lab.flag(ETCD).freezes
    assert lab.flag(REDIS).freezes
    # Nobody can confirm it: the gates stay closed.
    lab.release(stores=[which], expect=None)
    assert lab.flag(which).freezes == ()
    assert_nobody_trades(lab, certified_ns)
    lab.release(stores=[1 - which])
    lab.judge.wait_until_trading(lab.routers())


@pytest.mark.fresh_after
def test_the_one_store_of_two_that_was_wiped_is_told_the_freeze_again(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: Redis is emptied under a freeze of both; etcd keeps it, and Redis is told it
    again. A release in etcd alone opens nothing; one in both does.
    """
    frozen = lab.freeze("must outlive one store's data")
    certified_ns = now_ns()
    faults.lose_store_data()
    lost_ns = now_ns()
    bound_ms = lab.bounds["unreachable_ms"]
    said = wait_until(
        lambda: (found := lab.find_flag(REDIS)) and frozen.id in found.freeze_ids() and found,
        within_s=bound_ms * BUSY_FACTOR / 1000, what="the freeze to be said again in redis",
    )  # fmt: skip
    times("the freeze is in redis again", (now_ns() - lost_ns) / NS_PER_MS, bound_ms, BUSY_FACTOR)
    assert isinstance(said, Flag)
    assert any(cause.trigger == "store_lost_data" for cause in said.freezes)
    assert frozen.id in lab.flag().freeze_ids()
    for node in lab.nodes:
        wait_until(lambda node=node: lab.is_joined(node), within_s=30, what=f"{node} to join both stores again")
    lab.release(stores=[ETCD], expect=None)
    assert_nobody_trades(lab, certified_ns)
    lab.release(stores=[REDIS], expect=None)
    lab.judge.wait_until_trading(lab.routers(), within_s=30)
    assert lab.cluster.verify_history() == []

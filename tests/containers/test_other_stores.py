"""The same promises on Redis and ZooKeeper, and what those stores can forget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from killswitch.cli.context import EXIT_STORE_UNAVAILABLE
from killswitch.clock import now_ns
from tests.containers import redis_servers
from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.pods import Pod, Process
from tests.containers.test_faults import assert_noticed, does_nothing, removes_nothing
from tests.containers.test_freeze import assert_freeze_and_release
from tests.containers.test_nodes import assert_stopped_by_permit, look_on
from tests.containers.test_store_data import assert_said_again, trades_again
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

redis, zookeeper, sentinel = (pytest.mark.store(kind) for kind in ("redis", "zookeeper", "redis-sentinel"))
unfenced_sentinel = pytest.mark.store("redis-sentinel without its fence")
ANSWERS_AGAIN_WITHIN_S = 60.0
"""A failover, and the Sentinels' making a replica of the old primary that has come back."""


def flushes_nothing(patch: pytest.MonkeyPatch) -> None:
    """Redis never hears FLUSHALL, and says OK."""
    real = redis_servers.ask

    def ask(server: Process, *words: str, port: int = redis_servers.PORT) -> str:
        return "OK" if words[0] == "FLUSHALL" else real(server, *words, port=port)

    patch.setattr(redis_servers, "ask", ask)


def assert_lost_data_is_said_again(lab: Lab, faults: Faults, times: Callable[..., None]) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST."""
    frozen = lab.freeze("must outlive the store's data")
    certified_ns = now_ns()
    faults.lose_store_data()
    lost_ns = now_ns()
    assert_said_again(lab, times, frozen, certified_ns=certified_ns, serves_since_ns=lost_ns)
    trades_again(lab)


@redis
def test_one_voice_freezes_a_healthy_cluster_on_redis(lab: Lab, times: Callable[..., None]) -> None:
    """ONE VOICE FREEZES, PROOF NOT HOPE, A CANCEL ALWAYS PASSES, RELEASE IS FENCED: on Redis."""
    assert_freeze_and_release(lab, times)


@redis
def test_a_redis_that_was_not_flushed_is_noticed(lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its OK is not enough for the verb that flushes it."""
    assert_noticed(lab, faults, monkeypatch, flushes_nothing, lambda _, faults: faults.lose_store_data())


@redis
@pytest.mark.fresh_after
def test_a_redis_that_was_flushed_is_told_the_freeze_again(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: FLUSHALL under a frozen cluster."""
    assert_lost_data_is_said_again(lab, faults, times)


@unfenced_sentinel
def test_a_replica_that_was_not_cut_off_is_noticed(lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb that stops replication looks at the primary."""
    act = lambda _, faults: faults.stop_replicating()  # noqa: E731 - the one line that there is
    assert_noticed(lab, faults, monkeypatch, does_nothing(Pod, "unplug"), act)


@unfenced_sentinel
@pytest.mark.fresh_after
def test_a_failover_that_forgets_a_freeze_is_told_it_again(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: the primary is lost with a freeze that no replica has; Sentinel promotes the
    replica that never heard of it. The agents did, stay frozen, and say it again.
    """
    assert_freeze_and_release(lab, times)
    faults.stop_replicating()
    frozen = lab.freeze("no replica hears this")
    certified_ns = now_ns()
    faults.fail_over(forgets=frozen.id)
    failed_over_ns = now_ns()
    assert_said_again(lab, times, frozen, certified_ns=certified_ns, serves_since_ns=failed_over_ns)
    trades_again(lab)


@unfenced_sentinel
@pytest.mark.fresh_after
def test_a_replica_that_has_heard_of_the_freeze_is_noticed(
    lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover that forgets nothing would prove nothing."""
    frozen = lab.freeze("the replica hears this")
    sabotage = does_nothing(Pod, "unplug")
    assert_noticed(lab, faults, monkeypatch, sabotage, lambda _, faults: faults.fail_over(forgets=frozen.id))


@sentinel
def test_one_voice_freezes_a_healthy_cluster_on_sentinel(lab: Lab, times: Callable[..., None]) -> None:
    """ONE VOICE FREEZES, PROOF NOT HOPE, A CANCEL ALWAYS PASSES, RELEASE IS FENCED: on Redis with Sentinel."""
    assert_freeze_and_release(lab, times)


@sentinel
@pytest.mark.fresh_after
def test_a_freeze_that_no_replica_confirms_is_told_as_such_and_everybody_stops_by_permit(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """BOUNDED STOP, PROOF NOT HOPE, UNKNOWN IS FROZEN: with the fence that ships, a primary without its replica renews
    no permit. The freeze says that it is not in force and exits 4, and everybody stops all the same. The replica that
    is made primary opens nothing while it is alone; with a replica again, what it says holds, and the history is whole.
    """
    epoch, reason = lab.flag().epoch, "no replica hears this"
    faults.stop_replicating()
    gone_ns = now_ns()
    refused = lab.killswitch("freeze", "--reason", reason, expect=EXIT_STORE_UNAVAILABLE)
    assert "is NOT in force" in refused.err, refused.err
    for node in lab.nodes:
        assert_stopped_by_permit(lab, times, node, gone_ns, f"last order of {node}, no replica confirms")
    wait_until(lambda: lab.judge.working(lab.routers()) == 0, what="the routers to cancel")
    stopped_ns = now_ns()
    faults.fail_over(forgets=reason)
    look_on(lab, now_ns())
    assert set(lab.judge.accepted(lab.routers(), since_ns=stopped_ns).values()) == {0}
    lab.servers.heal()
    flag = wait_until(lab.find_flag, within_s=ANSWERS_AGAIN_WITHIN_S, what="the store to answer")
    assert (flag.epoch, flag.freezes) == (epoch, ())
    lab.judge.wait_until_trading(lab.routers(), within_s=ANSWERS_AGAIN_WITHIN_S)
    assert lab.cluster.verify_history() == []


@sentinel
@pytest.mark.fresh_after
def test_a_freeze_that_a_replica_has_confirmed_outlives_the_primary(lab: Lab, faults: Faults) -> None:
    """NOTHING IS LOST, UNKNOWN IS FROZEN: with the fence that ships and one replica, what was acknowledged is there
    after the failover, once; nobody trades before a release.
    """
    frozen = lab.freeze("a replica hears this")
    certified_ns = now_ns()
    faults.fail_over(keeps=frozen.id)
    lab.servers.heal()
    flag = wait_until(lab.find_flag, within_s=ANSWERS_AGAIN_WITHIN_S, what="the store to answer")
    assert (flag.epoch, [cause.id for cause in flag.freezes]) == (frozen.document["epoch"], [frozen.id])
    look_on(lab, now_ns())
    assert set(lab.judge.accepted(lab.routers(), since_ns=certified_ns).values()) == {0}
    assert lab.cluster.verify_history() == []
    trades_again(lab)


@zookeeper
def test_one_voice_freezes_a_healthy_cluster_on_zookeeper(lab: Lab, times: Callable[..., None]) -> None:
    """ONE VOICE FREEZES, PROOF NOT HOPE, A CANCEL ALWAYS PASSES, RELEASE IS FENCED: on ZooKeeper."""
    assert_freeze_and_release(lab, times)


@zookeeper
def test_a_zookeeper_that_was_not_wiped_is_noticed(lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb that wipes it looks at its disk."""
    assert_noticed(lab, faults, monkeypatch, removes_nothing, lambda _, faults: faults.lose_store_data())


@zookeeper
@pytest.mark.fresh_after
def test_a_zookeeper_that_was_wiped_is_told_the_freeze_again(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: ZooKeeper comes back on an empty disk."""
    assert_lost_data_is_said_again(lab, faults, times)

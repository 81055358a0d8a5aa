"""The same promises on Redis and ZooKeeper, and what those stores can forget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from killswitch.clock import now_ns
from tests.containers import redis_servers
from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.pods import Pod, Process
from tests.containers.test_faults import assert_noticed, does_nothing, removes_nothing
from tests.containers.test_freeze import assert_freeze_and_release
from tests.containers.test_store_data import assert_said_again, trades_again

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

redis, sentinel, zookeeper = (pytest.mark.store(kind) for kind in ("redis", "redis-sentinel", "zookeeper"))


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


@sentinel
def test_a_replica_that_was_not_cut_off_is_noticed(lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb that stops replication looks at the primary."""
    act = lambda _, faults: faults.stop_replicating()  # noqa: E731 - the one line that there is
    assert_noticed(lab, faults, monkeypatch, does_nothing(Pod, "unplug"), act)


@sentinel
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


@sentinel
@pytest.mark.fresh_after
def test_a_replica_that_has_heard_of_the_freeze_is_noticed(
    lab: Lab, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover that forgets nothing would prove nothing."""
    frozen = lab.freeze("the replica hears this")
    sabotage = does_nothing(Pod, "unplug")
    assert_noticed(lab, faults, monkeypatch, sabotage, lambda _, faults: faults.fail_over(forgets=frozen.id))


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

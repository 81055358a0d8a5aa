"""The same promises on Redis and ZooKeeper, and what those stores can forget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from killswitch.clock import now_ns
from tests.containers.faults import Faults
from tests.containers.lab import Lab
from tests.containers.test_freeze import assert_freeze_and_release
from tests.containers.test_nodes import NS_PER_MS
from tests.containers.test_store_data import assert_said_again, trades_again

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

redis, sentinel, zookeeper = (pytest.mark.store(kind) for kind in ("redis", "redis-sentinel", "zookeeper"))


def assert_lost_data_is_said_again(lab: Lab, faults: Faults, times: Callable[..., None]) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST."""
    frozen = lab.freeze("must outlive the store's data")
    certified_ns = now_ns()
    faults.lose_store_data()
    lost_ns = now_ns()
    assert_said_again(lab, frozen, certified_ns)
    times("the freeze is in the empty store again", (now_ns() - lost_ns) / NS_PER_MS)
    trades_again(lab)


@redis
def test_one_voice_freezes_a_healthy_cluster_on_redis(lab: Lab, times: Callable[..., None]) -> None:
    """ONE VOICE FREEZES, PROOF NOT HOPE, A CANCEL ALWAYS PASSES, RELEASE IS FENCED: on Redis."""
    assert_freeze_and_release(lab, times)


@redis
@pytest.mark.fresh_after
def test_a_redis_that_was_flushed_is_told_the_freeze_again(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: FLUSHALL under a frozen cluster."""
    assert_lost_data_is_said_again(lab, faults, times)


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
    assert_said_again(lab, frozen, certified_ns)
    times("the freeze is at the new primary", (now_ns() - failed_over_ns) / NS_PER_MS)
    trades_again(lab)


@zookeeper
def test_one_voice_freezes_a_healthy_cluster_on_zookeeper(lab: Lab, times: Callable[..., None]) -> None:
    """ONE VOICE FREEZES, PROOF NOT HOPE, A CANCEL ALWAYS PASSES, RELEASE IS FENCED: on ZooKeeper."""
    assert_freeze_and_release(lab, times)


@zookeeper
@pytest.mark.fresh_after
def test_a_zookeeper_that_was_wiped_is_told_the_freeze_again(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """UNKNOWN IS FROZEN, NOTHING IS LOST: ZooKeeper comes back on an empty disk."""
    assert_lost_data_is_said_again(lab, faults, times)

"""A freeze in a healthy cluster, and by every kind of voice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from killswitch.clock import now_ns
from tests.containers.lab import Lab
from tests.containers.times import BUSY_FACTOR, PROOF_WAITS

NS_PER_MS = 1_000_000

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]


def test_one_voice_freezes_a_healthy_cluster_with_proof(lab: Lab, times: Callable[..., None]) -> None:
    """ONE VOICE FREEZES, PROOF NOT HOPE, A CANCEL ALWAYS PASSES, RELEASE IS FENCED: on etcd with three members."""
    assert_freeze_and_release(lab, times)


def assert_freeze_and_release(lab: Lab, times: Callable[..., None]) -> None:
    """The venue accepts nothing between certificate and release and has no working order left, as the certificate says;
    then everybody trades again.
    """
    routers = lab.routers()
    frozen = lab.freeze("a healthy cluster is stopped")
    certified_ns = now_ns()
    assert frozen.certificate["stopped"]
    assert frozen.certificate["flat"]
    assert set(frozen.states().values()) == {"ACKED"}
    assert lab.judge.working(routers) == 0
    last_ms = (lab.judge.last_accepted_ns(routers) - frozen.said_ns) / NS_PER_MS
    bound_ms = lab.bounds["reachable_ms"]
    times("last order after the freeze was said", last_ms, bound_ms, BUSY_FACTOR)
    times("certificate", frozen.certificate["elapsed_ms"], no_bound=PROOF_WAITS)
    released_ns = lab.release()
    lab.judge.wait_until_trading(routers)
    assert set(lab.judge.accepted(routers, since_ns=certified_ns, until_ns=released_ns).values()) == {0}

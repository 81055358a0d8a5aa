"""Time: the defaults are sound, every inequality is told alone, and the bounds are what they say."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from killswitch.core.permit import (
    NANOSECONDS_PER_MS,
    Timing,
    WorstCase,
    expiry_bound_ms,
    permit_deadline_ns,
    timing_faults,
    worst_case,
)

LAW = settings(deadline=None, max_examples=150)
DURATIONS = [field.name for field in dataclasses.fields(Timing) if field.name.endswith("_ms")]


def test_the_defaults_satisfy_every_inequality() -> None:
    """BOUNDED STOP: the timing that ships is sound, and these are its figures."""
    assert timing_faults(Timing()) == []
    assert dataclasses.asdict(Timing()) == {
        "request_timeout_ms": 400,
        "renew_every_ms": 500,
        "permit_ttl_ms": 2_000,
        "lease_ttl_ms": 6_000,
        "leader_deadline_ms": 4_000,
        "backoff_cap_ms": 1_000,
        "clock_rate_ratio": 1.05,
    }


BROKEN = [
    (
        {"request_timeout_ms": 500},
        "request_timeout_ms (500) must be < renew_every_ms (500): a hung call would make the next renewal late",
    ),
    (
        {"permit_ttl_ms": 1_499},
        "3 * renew_every_ms (1500) must be <= permit_ttl_ms (1499): one lost renewal must not stop a healthy node",
    ),
    (
        {"lease_ttl_ms": 4_300, "permit_ttl_ms": 4_100},
        "permit_ttl_ms * clock_rate_ratio (4305) must be < lease_ttl_ms (4300): "
        "a node must have stopped before it counts as lost",
    ),
    (
        {"leader_deadline_ms": 5_720},
        "leader_deadline_ms * clock_rate_ratio (6006) must be < lease_ttl_ms (6000): "
        "a leader must have stopped acting before another can start",
    ),
    (
        {"leader_deadline_ms": 999},
        "2 * renew_every_ms (1000) must be <= leader_deadline_ms (999): "
        "one lost keep-alive must not end a healthy leader's term",
    ),
    (
        {"backoff_cap_ms": 2_000},
        "backoff_cap_ms (2000) must be < permit_ttl_ms (2000): a reconnect must be tried before the permit runs out",
    ),
    ({"clock_rate_ratio": 0.99}, "clock_rate_ratio must be between 1.0 and 2.0, and it is 0.99"),
    (
        {"clock_rate_ratio": 2.01, "lease_ttl_ms": 60_000},
        "clock_rate_ratio must be between 1.0 and 2.0, and it is 2.01",
    ),
    ({"backoff_cap_ms": 0}, "backoff_cap_ms must be greater than 0, and it is 0"),
    ({"request_timeout_ms": -1}, "request_timeout_ms must be greater than 0, and it is -1"),
]


@pytest.mark.parametrize(("changed", "sentence"), BROKEN)
def test_each_broken_inequality_gives_exactly_its_sentence(changed: dict[str, float], sentence: str) -> None:
    """A timing that breaks one promise is refused with the one sentence that says which and why."""
    assert timing_faults(dataclasses.replace(Timing(), **changed)) == [sentence]


@pytest.mark.parametrize(
    "changed",
    [
        {"request_timeout_ms": 499},
        {"permit_ttl_ms": 1_500},
        {"lease_ttl_ms": 4_201},
        {"leader_deadline_ms": 5_714},
        {"leader_deadline_ms": 1_000},
        {"backoff_cap_ms": 1_999},
        {"clock_rate_ratio": 1.0},
        {"clock_rate_ratio": 2.0, "lease_ttl_ms": 8_001},
    ],
)
def test_a_timing_at_the_very_edge_is_sound(changed: dict[str, float]) -> None:
    """An inequality that just holds is not refused."""
    assert timing_faults(dataclasses.replace(Timing(), **changed)) == []


@pytest.mark.parametrize("ratio", [math.nan, math.inf, -math.inf])
def test_a_clock_rate_that_is_no_number_is_refused(ratio: float) -> None:
    """UNKNOWN IS FROZEN: NaN and infinity satisfy no inequality."""
    faults = timing_faults(Timing(clock_rate_ratio=ratio))
    assert f"clock_rate_ratio must be between 1.0 and 2.0, and it is {ratio}" in faults


@pytest.mark.parametrize("name", DURATIONS)
def test_every_duration_must_be_greater_than_zero(name: str) -> None:
    """A duration of nothing is refused by its name."""
    faults = timing_faults(dataclasses.replace(Timing(), **{name: 0}))
    assert f"{name} must be greater than 0, and it is 0" in faults


def test_all_faults_are_told_at_once() -> None:
    """Every broken inequality is told, not only the first."""
    timing = Timing(request_timeout_ms=600, permit_ttl_ms=900, clock_rate_ratio=3)
    assert len(timing_faults(timing)) == 5


@LAW
@given(
    st.builds(
        Timing,
        request_timeout_ms=st.integers(-1, 30),
        renew_every_ms=st.integers(-1, 30),
        permit_ttl_ms=st.integers(-1, 100),
        lease_ttl_ms=st.integers(-1, 200),
        leader_deadline_ms=st.integers(-1, 150),
        backoff_cap_ms=st.integers(-1, 100),
        clock_rate_ratio=st.sampled_from([0.9, 1.0, 1.05, 1.5, 2.0, 2.1]),
    )
)
def test_a_timing_without_faults_keeps_what_the_promises_are_made_of(timing: Timing) -> None:
    """BOUNDED STOP: a timing is accepted exactly when all inequalities of the design hold."""
    sound = (
        min(getattr(timing, name) for name in DURATIONS) > 0
        and 1.0 <= timing.clock_rate_ratio <= 2.0
        and timing.request_timeout_ms < timing.renew_every_ms
        and 3 * timing.renew_every_ms <= timing.permit_ttl_ms
        and timing.permit_ttl_ms * timing.clock_rate_ratio < timing.lease_ttl_ms
        and timing.leader_deadline_ms * timing.clock_rate_ratio < timing.lease_ttl_ms
        and 2 * timing.renew_every_ms <= timing.leader_deadline_ms
        and timing.backoff_cap_ms < timing.permit_ttl_ms
    )
    assert (timing_faults(timing) == []) is sound


@LAW
@given(st.integers(0, 2**62), st.integers(0, 10**10))
def test_a_permit_counts_from_before_its_read_was_sent(read_sent_ns: int, read_took_ns: int) -> None:
    """BOUNDED STOP: how long the read took does not lengthen the permit; it counts from before the read."""
    timing = Timing()
    deadline_ns = permit_deadline_ns(read_sent_ns, timing)
    assert deadline_ns == read_sent_ns + timing.permit_ttl_ms * NANOSECONDS_PER_MS
    answered_ns = read_sent_ns + read_took_ns
    assert deadline_ns - answered_ns <= timing.permit_ttl_ms * NANOSECONDS_PER_MS


@LAW
@given(
    st.integers(1, 10_000),
    st.fractions(min_value=Fraction(1), max_value=Fraction(105, 100), max_denominator=1000),
    st.integers(0, 10**7),
)
def test_every_permit_that_did_not_know_has_run_out_at_the_bound(ttl_ms: int, slower: Fraction, early_ms: int) -> None:
    """BOUNDED STOP: on any clock of tolerated rate, a permit from before the commit returned is over at the bound.

    ``slower`` is how much longer a millisecond of the node's clock is than one of the waiter's.
    """
    ends_ms = -early_ms + ttl_ms * slower  # on the waiter's clock, counted from the commit's return
    assert ends_ms <= expiry_bound_ms(ttl_ms, 1.05) + 1e-6


def test_the_bounds_that_config_check_prints_are_derived_from_the_timing() -> None:
    """BOUNDED STOP: reachable nodes by one renewal and one call, others by their permit, failover by the lease."""
    assert worst_case(Timing()) == WorstCase(reachable_ms=945.0, unreachable_ms=2100.0, failover_ms=7245.0)
    slow = worst_case(Timing(clock_rate_ratio=1.0))
    assert slow == WorstCase(reachable_ms=900.0, unreachable_ms=2000.0, failover_ms=6900.0)
    assert worst_case(Timing(), lease_slack_ms=3000).failover_ms == 10_245.0

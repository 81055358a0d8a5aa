"""The table of times of the scenarios: each has a bound and is judged by it, or says why nothing is promised."""

from __future__ import annotations

import pytest

from tests.containers.times import BUSY_FACTOR, PROOF_WAITS, Times


def test_a_time_over_its_bound_times_the_factor_is_a_failure() -> None:
    """What is printed beside a time is what it was judged by."""
    times = Times()
    times.note("a scenario", "a stop", 1_800.0, 1_000.0, BUSY_FACTOR)
    with pytest.raises(AssertionError, match="a stop: 2100 ms; the bound is 1000 ms, times 2"):
        times.note("a scenario", "a stop", 2_100.0, 1_000.0, BUSY_FACTOR)
    assert [taken.ms for taken in times.all] == [1_800.0, 2_100.0]


def test_a_time_without_a_bound_says_why() -> None:
    """An empty column would hide that nobody has thought of it."""
    times = Times()
    times.note("a scenario", "a proof", 12.0, no_bound=PROOF_WAITS)
    for wrong in ({}, {"bound_ms": 1.0}, {"factor": 1.0}, {"bound_ms": 1.0, "factor": 1.0, "no_bound": "x"}):
        with pytest.raises(ValueError, match="or a reason why there is no bound"):
            times.note("a scenario", "a proof", 12.0, **wrong)  # type: ignore[arg-type]
    assert len(times.all) == 1


def test_the_table_has_bound_and_factor_or_the_reason() -> None:
    """One line for each time, in the order in which they were taken."""
    times = Times()
    times.note("stops", "a stop", 1_234.5, 2_100.0, 1.25)
    times.note("proves", "a proof", 12.0, no_bound=PROOF_WAITS)
    _, stop, proof = times.table()
    assert stop.split() == ["stops", "1234.5", "2100", "1.25", "a", "stop"]
    assert proof.split()[:3] == ["proves", "12.0", "none"]
    assert proof.endswith(f"a proof (no bound: {PROOF_WAITS})")

"""The settings of a circuit breaker change while it runs: they never release, half-open or shorten anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from killswitch.risk.breaker.breaker_file import StateFile
from killswitch.risk.breaker.breaker_machine import (
    Bad,
    BreakerMode,
    BreakerState,
    Event,
    Good,
    NewSettings,
    Probe,
    Release,
    TimePassed,
    step,
)
from killswitch.risk.breaker.breaker_settings import NS_PER_SECOND, BreakerSettings, Confirmations, ReasonClass
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker, ReleaseRefused

SAFE, ENGAGED, HALF_OPEN = BreakerMode.SAFE, BreakerMode.ENGAGED, BreakerMode.HALF_OPEN
NETWORK, DATA, EDGE, DRAWDOWN = ReasonClass.NETWORK, ReasonClass.DATA, ReasonClass.EDGE, ReasonClass.DRAWDOWN
RULES = BreakerSettings()


class Stage:
    """A breaker on a clock that the test moves."""

    def __init__(self, rules: BreakerSettings = RULES) -> None:
        self.ns = 0
        self.told: list[str] = []
        self.breaker = CircuitBreaker(
            rules,
            clock=lambda: self.ns,
            on_transition=lambda one: self.told.append(one.what),
            registry=CollectorRegistry(),
        )

    def at(self, seconds: float) -> CircuitBreaker:
        self.ns = int(seconds * NS_PER_SECOND)
        return self.breaker

    def good(self, kind: ReasonClass, times: int) -> None:
        for _ in range(times):
            self.breaker.good_reading(kind)


def changed(**values: Any) -> BreakerSettings:
    return BreakerSettings(**values)


def test_a_running_cool_down_gets_longer_and_never_shorter() -> None:
    for seconds, opens in ((10.0, 60.0), (60.5, 60.5), (200.0, 200.0)):
        stage = Stage()
        stage.breaker.engage("lost", kind=NETWORK)
        stage.at(1.0).set_settings(changed(recovery_cooldown_seconds=seconds))
        stage.at(opens - 0.001)
        stage.good(NETWORK, 9)
        assert stage.breaker.state is ENGAGED
        stage.at(opens)
        stage.good(NETWORK, 2)
        assert stage.breaker.state is ENGAGED
        stage.good(NETWORK, 1)
        assert stage.breaker.state is HALF_OPEN


def test_fewer_good_readings_half_open_nothing_that_has_had_them_already() -> None:
    stage = Stage()
    stage.breaker.engage("lost", kind=NETWORK)
    stage.at(61.0)
    stage.good(NETWORK, 2)
    stage.breaker.set_settings(changed(recovery_good_readings=2, half_open_good_readings=3))
    assert stage.at(1_000.0).state is ENGAGED
    stage.good(NETWORK, 2)
    assert stage.breaker.state is HALF_OPEN
    stage.good(NETWORK, 2)
    stage.breaker.set_settings(changed(half_open_good_readings=1))
    assert stage.at(2_000.0).state is HALF_OPEN
    stage.good(NETWORK, 1)
    assert stage.breaker.state is SAFE


def test_a_longer_cool_down_takes_back_the_readings_that_were_too_early_for_it() -> None:
    stage = Stage()
    stage.breaker.engage("lost", kind=NETWORK)
    stage.at(61.0)
    stage.good(NETWORK, 2)
    stage.breaker.set_settings(changed(recovery_cooldown_seconds=100.0))
    stage.at(99.0)
    stage.good(NETWORK, 5)
    stage.at(100.0)
    stage.good(NETWORK, 2)
    assert stage.breaker.state is ENGAGED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (changed(kill_switch_mode="manual"), changed()),
        (changed(transient_classes=("data",)), changed(transient_classes=("network", "data"))),
    ],
)
def test_what_only_a_person_could_release_still_waits_for_one(before: BreakerSettings, after: BreakerSettings) -> None:
    stage = Stage(before)
    stage.breaker.engage("lost", kind=NETWORK)
    stage.breaker.set_settings(after)
    assert stage.breaker.snapshot().escalated
    assert stage.told == ["latched", "escalated"]
    stage.at(10_000.0)
    stage.good(NETWORK, 50)
    assert stage.breaker.state is ENGAGED
    stage.breaker.release("ada", "looked at it", engagement=stage.breaker.engagement)
    assert stage.breaker.state is SAFE
    stage.breaker.engage("lost", kind=NETWORK)  # what comes after goes by the new settings
    stage.at(30_000.0)
    stage.good(NETWORK, 8)
    assert stage.breaker.state is SAFE


def test_what_was_recovering_by_itself_and_may_not_is_engaged_again() -> None:
    stage = Stage()
    stage.breaker.engage("lost", kind=NETWORK)
    stage.at(61.0)
    stage.good(NETWORK, 3)
    number = stage.breaker.engagement
    stage.breaker.set_settings(changed(kill_switch_mode="manual"))
    assert (stage.breaker.state, stage.breaker.engagement) == (ENGAGED, number + 1)
    assert stage.told == ["latched", "half_opened", "latched"]
    assert not stage.breaker.allows()
    with pytest.raises(ReleaseRefused, match="look at it again"):
        stage.breaker.release("ada", engagement=number)


def test_a_probation_by_a_person_goes_on_and_probes_become_no_more() -> None:
    stage = Stage()
    stage.breaker.engage("edge", kind=EDGE)
    stage.breaker.release("ada", "watching", engagement=stage.breaker.engagement, probation=True)
    stage.breaker.set_settings(changed(half_open_probes=3))
    assert (stage.breaker.state, stage.breaker.snapshot().probes_left) == (HALF_OPEN, 3)
    stage.breaker.set_settings(changed(half_open_probes=50))
    assert (stage.breaker.state, stage.breaker.snapshot().probes_left) == (HALF_OPEN, 3)


def test_a_pause_keeps_the_longer_hold_and_waits_for_a_new_good_reading() -> None:
    stage = Stage()
    stage.breaker.bad_reading(NETWORK, "slow")
    stage.at(1.0)
    stage.good(NETWORK, 1)
    stage.breaker.set_settings(changed(provisional_hold_seconds=0.1))
    stage.at(4.9)
    stage.good(NETWORK, 1)
    assert stage.at(5.9).state is ENGAGED
    assert stage.at(6.0).state is SAFE


def test_readings_that_are_enough_now_latch_and_engagements_that_are_enough_escalate() -> None:
    stage = Stage()
    stage.breaker.bad_reading(NETWORK, "slow")
    stage.breaker.bad_reading(NETWORK, "slow")
    number = stage.breaker.engagement
    stage.breaker.set_settings(changed(confirmations={"network": 1}))
    cause = stage.breaker.snapshot().cause(NETWORK)
    assert cause is not None
    assert cause.latched
    assert (stage.breaker.engagement, stage.told[-1]) == (number + 1, "latched")
    assert stage.breaker.snapshot().cooldown_until_ns == 60 * NS_PER_SECOND
    stage.breaker.set_settings(changed(escalate_after_engagements=1))
    assert stage.breaker.snapshot().escalated
    stage.breaker.set_settings(changed(escalate_after_engagements=50))
    assert stage.breaker.snapshot().escalated


def test_a_safe_breaker_stays_as_it_is_and_the_same_settings_disturb_nothing(logs: Any) -> None:
    stage = Stage()
    before = stage.breaker.snapshot()
    stage.breaker.set_settings(changed(recovery_good_readings=4))
    assert stage.breaker.snapshot() == before
    stage.breaker.engage("lost", kind=NETWORK)
    stage.at(61.0)
    stage.good(NETWORK, 3)
    stage.breaker.set_settings(changed(recovery_good_readings=4))
    stage.good(NETWORK, 1)
    assert stage.breaker.state is HALF_OPEN
    lines = [line for line in logs if line["event"] == "circuit breaker settings changed"]
    assert [line["changed"] for line in lines] == [[{"name": "recovery_good_readings", "before": 3, "after": 4}]]


# ---- with a file


def test_what_waits_for_a_person_is_in_the_file_and_a_file_that_fails_loosens_nothing(tmp_path: Path) -> None:
    manual = changed(kill_switch_mode="manual", state_file=str(tmp_path / "state"), lock_timeout_seconds=0.05)
    auto = manual.model_copy(update={"kill_switch_mode": "auto"})
    CircuitBreaker.create_state_file(manual)
    stage = Stage(manual)
    other = CircuitBreaker(manual, name="other", clock=lambda: stage.ns, registry=CollectorRegistry())
    stage.breaker.engage("lost", kind=NETWORK)
    with StateFile(manual, clock=lambda: 0, wall_clock=lambda: "").locked():
        stage.breaker.set_settings(auto)  # somebody else has the lock: it holds here all the same
        assert stage.breaker.snapshot().escalated
        assert not other.snapshot().escalated
    assert stage.breaker.snapshot().escalated
    assert other.snapshot().escalated
    assert [cause.kind for cause in other.snapshot().causes] == [NETWORK]  # it was no fault of the file
    assert other.state is ENGAGED
    other.release("ada", engagement=other.engagement)
    assert stage.breaker.state is SAFE
    stage.breaker.set_settings(manual)
    assert (stage.breaker.state, other.state) == (SAFE, SAFE)
    with pytest.raises(ValueError, match=r"^state_file from '.*' to None: cannot change"):
        stage.breaker.set_settings(changed())
    assert stage.breaker.settings == manual
    stage.breaker.close()
    other.close()


# ---- the laws

SETTINGS = st.builds(
    BreakerSettings,
    kill_switch_mode=st.sampled_from(["auto", "manual"]),
    recovery_cooldown_seconds=st.sampled_from([1.0, 10.0, 60.0]),
    max_cooldown_seconds=st.sampled_from([60.0, 3_600.0]),
    transient_classes=st.sampled_from([(), ("network",), ("network", "data", "edge"), ("drawdown",)]),
    recovery_good_readings=st.integers(1, 4),
    half_open_probes=st.integers(1, 6),
    half_open_good_readings=st.integers(1, 4),
    confirmations=st.sampled_from([{"network": 0}, {"network": 1}, {"network": 5, "drawdown": 3}]),
    provisional_hold_seconds=st.sampled_from([0.5, 5.0, 50.0]),
    escalate_after_engagements=st.integers(1, 6),
    escalate_window_seconds=st.sampled_from([1.0, 3_600.0]),
)
KIND = st.sampled_from([NETWORK, DATA, DRAWDOWN])
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Bad, KIND, st.just("bad"), st.booleans()),
    st.builds(Good, KIND),
    st.builds(Good, st.just(NETWORK)),
    st.just(TimePassed()),
    st.just(Probe()),
)
PAST = st.lists(st.tuples(st.sampled_from([0.1, 1.0, 70.0, 4_000.0]), EVENTS), max_size=25)


def played(rules: BreakerSettings, past: list[tuple[float, Event]]) -> tuple[BreakerState, int]:
    state, now = BreakerState(), 0
    for after_s, event in past:
        now += int(after_s * NS_PER_SECOND)
        state, _ = step(state, event, now, rules)
    return state, now


@given(first=SETTINGS, past=PAST, flips=st.lists(SETTINGS, min_size=1, max_size=4))
@runs(max_examples=500, deadline=None)
def test_no_change_of_settings_and_no_time_after_it_makes_anything_looser(
    first: BreakerSettings, past: list[tuple[float, Event]], flips: list[BreakerSettings]
) -> None:
    state, now = played(first, past)
    rules, rank = first, {SAFE: 0, HALF_OPEN: 1, ENGAGED: 2}
    for other in flips:
        after, _ = step(state, NewSettings(rules), now, other)
        assert rank[after.mode] >= rank[state.mode]
        assert after.engagement >= state.engagement
        assert after.escalated >= state.escalated
        assert after.repeats >= state.repeats
        assert after.cooldown_until_ns >= state.cooldown_until_ns
        assert after.probes_left <= state.probes_left
        assert {one.kind for one in after.causes} == {one.kind for one in state.causes}
        for cause in state.causes:
            known = after.cause(cause.kind)
            assert known is not None
            assert known.latched >= cause.latched
            # Of a latched cause the cool-down counts, and no longer the hold.
            assert known.latched or known.last_bad_ns >= cause.last_bad_ns
            assert known.good_readings == 0
        later, _ = step(after, TimePassed(), now + 10**18, other)
        assert rank[later.mode] >= rank[after.mode] if state.mode is not SAFE else later.mode is SAFE
        state, rules = after, other


def test_a_bad_reading_after_the_hold_was_shortened_ends_no_pause_sooner() -> None:
    """5 s of hold run; the settings say 0.5 s after one; one more bad reading: the 5 s from the change stay."""
    long, short = (
        BreakerSettings(confirmations=Confirmations(network=5), provisional_hold_seconds=hold) for hold in (5.0, 0.5)
    )
    state, _ = step(BreakerState(), Bad(NETWORK, "bad"), 0, long)
    state, _ = step(state, NewSettings(long), NS_PER_SECOND, short)
    state, _ = step(state, Bad(NETWORK, "bad again"), 2 * NS_PER_SECOND, short)
    state, _ = step(state, Good(NETWORK), 3 * NS_PER_SECOND, short)
    assert step(state, TimePassed(), 5_900_000_000, short)[0].mode is ENGAGED
    assert step(state, TimePassed(), 6_100_000_000, short)[0].mode is SAFE


@given(first=SETTINGS, other=SETTINGS, past=PAST)
@runs(max_examples=500, deadline=None)
def test_readings_alone_never_release_what_only_a_person_could(
    first: BreakerSettings, other: BreakerSettings, past: list[tuple[float, Event]]
) -> None:
    state, now = played(first, past)
    waits = any(cause.latched and not first.is_transient(cause.kind) for cause in state.causes)
    if state.mode is not ENGAGED or not (waits or state.escalated):
        return
    state, _ = step(state, NewSettings(first), now, other)
    for number in range(40):
        for kind in (NETWORK, DATA, DRAWDOWN):
            state, _ = step(state, Good(kind), now + (number + 1) * 4_000 * NS_PER_SECOND, other)
    assert state.mode is ENGAGED
    released, _ = step(state, Release("ada", "", state.engagement), now, other)
    assert released.mode is SAFE

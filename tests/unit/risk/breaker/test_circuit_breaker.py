"""The circuit breaker: the machine from every prefix and by law, the shell over threads, processes and files."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from killswitch.risk.breaker.breaker_file import StateFile, StateFileFault, StateRecord
from killswitch.risk.breaker.breaker_machine import (
    Bad,
    BreakerMode,
    BreakerState,
    Event,
    Good,
    Probe,
    Release,
    TimePassed,
    rebased,
    step,
)
from killswitch.risk.breaker.breaker_settings import NS_PER_SECOND, BreakerSettings, ReasonClass
from killswitch.risk.breaker.circuit_breaker import BreakerTransition, CircuitBreaker, ReleaseRefused
from tests.support.clock import HandClock
from tests.support.waiting import wait_until

SAFE, ENGAGED, HALF_OPEN = BreakerMode.SAFE, BreakerMode.ENGAGED, BreakerMode.HALF_OPEN
NETWORK, DATA, EDGE = ReasonClass.NETWORK, ReasonClass.DATA, ReasonClass.EDGE
POSITION, DRAWDOWN, MANUAL, UNKNOWN = (
    ReasonClass.POSITION, ReasonClass.DRAWDOWN, ReasonClass.MANUAL, ReasonClass.UNKNOWN,
)  # fmt: skip
RULES = BreakerSettings()
NOW = "2026-01-31T09:30:00.123456Z"


def seconds(value: float) -> int:
    return int(value * NS_PER_SECOND)


def run(
    *events: tuple[float, Event], rules: BreakerSettings = RULES, state: BreakerState | None = None
) -> BreakerState:
    state = state if state is not None else BreakerState()
    for at, event in events:
        state, _ = step(state, event, seconds(at), rules)
    return state


def what(state: BreakerState, event: Event, at: float, rules: BreakerSettings = RULES) -> list[str]:
    return [effect.what for effect in step(state, event, seconds(at), rules)[1]]


LATCH = [(0.0, Bad(NETWORK, "lost")), (0.1, Bad(NETWORK, "lost")), (0.2, Bad(NETWORK, "lost"))]
RECOVER = [(61.0 + i, Good(NETWORK)) for i in range(3)]
CLOSE = [(70.0 + i, Good(NETWORK)) for i in range(5)]


# ---- the machine, told in order


def test_the_first_bad_reading_pauses_at_once_and_confirmations_latch_it() -> None:
    paused = run(LATCH[0])
    assert paused.mode is ENGAGED
    assert [cause.latched for cause in paused.causes] == [False]
    assert [cause.latched for cause in run(*LATCH[:2]).causes] == [False]
    latched = run(*LATCH)
    assert [cause.latched for cause in latched.causes] == [True]
    assert latched.engagement == 2  # the pause, and that it latched
    assert what(run(*LATCH[:2]), LATCH[2][1], 0.2) == ["latched"]


@pytest.mark.parametrize("kind", [POSITION, DRAWDOWN, MANUAL, UNKNOWN])
def test_classes_without_confirmations_latch_with_the_first_reading(kind: ReasonClass) -> None:
    assert [cause.latched for cause in run((0.0, Bad(kind, "x"))).causes] == [True]


def test_a_pause_that_is_not_confirmed_lifts_itself_after_its_hold_once_its_sensor_says_good() -> None:
    paused = run((0.0, Bad(DATA, "gap")))
    assert run((100.0, TimePassed()), state=paused).mode is ENGAGED  # a silent sensor shows nothing
    assert run((100.0, Good(NETWORK)), state=paused).mode is ENGAGED  # nor does another one
    good = run((1.0, Good(DATA)), state=paused)
    assert good.mode is ENGAGED
    assert run((4.9, TimePassed()), state=good).mode is ENGAGED
    assert run((5.0, TimePassed()), state=good).mode is SAFE
    again = run((3.0, Bad(DATA, "gap")), state=good)  # the hold starts over, and the good reading is void
    assert run((8.0, TimePassed()), state=again).mode is ENGAGED
    assert run((8.0, Good(DATA)), state=again).mode is SAFE


def test_a_transient_cause_recovers_after_the_cool_down_and_good_readings_through_half_open() -> None:
    latched = run(*LATCH)
    early = run(*((10.0 + i, Good(NETWORK)) for i in range(50)), state=latched)
    assert early.mode is ENGAGED  # readings during the cool-down do not count
    assert run((1e6, TimePassed()), state=early).mode is ENGAGED  # time alone never loosens what is latched
    assert run(*RECOVER[:2], state=latched).mode is ENGAGED
    half = run(*RECOVER, state=latched)
    assert (half.mode, half.probes_left) == (HALF_OPEN, 5)
    assert run(*CLOSE[:4], state=half).mode is HALF_OPEN
    safe = run(*CLOSE, state=half)
    assert (safe.mode, safe.causes) == (SAFE, ())


def test_half_open_lets_as_many_probes_through_as_the_setting_says() -> None:
    state = run(*LATCH, *RECOVER)
    passed = []
    for _ in range(7):
        state, effects = step(state, Probe(), seconds(64), RULES)
        passed.append(effects[0].what == "probe_passed")
    assert passed == [True] * 5 + [False] * 2
    assert what(run(*LATCH), Probe(), 1) == ["probe_refused"]
    assert what(BreakerState(), Probe(), 1) == ["probe_passed"]


def test_a_bad_reading_while_half_open_latches_at_once_with_a_doubled_cool_down() -> None:
    half = run(*LATCH, *RECOVER)
    again = run((64.0, Bad(DATA, "gap")), state=half)
    assert again.mode is ENGAGED
    assert [(cause.kind, cause.latched) for cause in again.causes] == [(DATA, True), (NETWORK, True)]
    assert again.cooldown_until_ns == seconds(64 + 120)
    assert again.repeats == 2


def test_the_cool_down_doubles_on_repeats_up_to_its_cap_and_starts_over_after_a_quiet_time() -> None:
    rules = BreakerSettings(max_cooldown_seconds=200.0, escalate_after_engagements=100)
    state, at, seen = BreakerState(), 0.0, []
    for _ in range(5):
        state = run((at, Bad(NETWORK, "lost", certain=True)), rules=rules, state=state)
        seen.append(state.cooldown_until_ns / NS_PER_SECOND - at)
        at = state.cooldown_until_ns / NS_PER_SECOND
        state = run(*((at, Good(NETWORK)) for _ in range(8)), rules=rules, state=state)
        assert state.mode is SAFE
    assert seen == [60.0, 120.0, 200.0, 200.0, 200.0]
    state = run((at + 3_600.0, Bad(NETWORK, "lost", certain=True)), rules=rules, state=state)
    assert (state.repeats, state.cooldown_until_ns) == (1, seconds(at + 3_600.0 + 60.0))


@given(repeats=st.integers(1, 10_000), base=st.floats(0.001, 1e4), cap=st.floats(1.0, 3e7))
def test_a_cool_down_never_shrinks_with_repeats_and_never_passes_the_cap(repeats: int, base: float, cap: float) -> None:
    rules = BreakerSettings(recovery_cooldown_seconds=min(base, cap), max_cooldown_seconds=cap)
    assert 0 < rules.cooldown_ns(repeats) <= rules.cooldown_ns(repeats + 1) <= int(cap * NS_PER_SECOND)


def test_a_bad_reading_starts_the_cool_down_again_without_doubling_it() -> None:
    state = run(*LATCH, (50.0, Bad(NETWORK, "lost")))
    assert (state.cooldown_until_ns, state.repeats) == (seconds(110), 1)
    assert run((61.0, Good(NETWORK)), (62.0, Good(NETWORK)), (63.0, Good(NETWORK)), state=state).mode is ENGAGED


@pytest.mark.parametrize("kind", [EDGE, POSITION, DRAWDOWN, MANUAL, UNKNOWN])
def test_a_lasting_cause_is_released_by_a_person_alone(kind: ReasonClass) -> None:
    state = run((0.0, Bad(kind, "x", certain=True)))
    state = run(*((1e5 + i, Good(kind)) for i in range(100)), (1e9, TimePassed()), state=state)
    assert state.mode is ENGAGED
    assert run((1e9, Release("ann", "seen", state.engagement)), state=state).mode is SAFE


def test_manual_and_unknown_cannot_be_made_transient_and_manual_mode_makes_every_class_lasting() -> None:
    for name in ("manual", "unknown"):
        with pytest.raises(ValidationError):
            BreakerSettings(transient_classes=(name,))
    rules = BreakerSettings(kill_switch_mode="manual")
    state = run(*LATCH, *((1e5 + i, Good(NETWORK)) for i in range(100)), rules=rules)
    assert state.mode is ENGAGED


def test_one_lasting_cause_among_transient_ones_waits_for_a_person() -> None:
    state = run(*LATCH, (1.0, Bad(DRAWDOWN, "2 %")), *RECOVER, *CLOSE)
    assert state.mode is ENGAGED
    assert [cause.kind for cause in state.causes] == [DRAWDOWN, NETWORK]


def test_every_cause_must_recover() -> None:
    both = run(*LATCH, (1.0, Bad(DATA, "gap", certain=True)))
    assert run(*((70.0 + i, Good(NETWORK)) for i in range(9)), state=both).mode is ENGAGED
    half = run(*((70.0 + i, Good(NETWORK)) for i in range(9)), *((80.0 + i, Good(DATA)) for i in range(3)), state=both)
    assert half.mode is HALF_OPEN
    assert run(*((90.0 + i, Good(DATA)) for i in range(9)), state=half).mode is HALF_OPEN
    closed = [(90.0 + i, Good(kind)) for i in range(5) for kind in (DATA, NETWORK)]
    assert run(*closed, state=half).mode is SAFE


def test_too_many_engagements_in_the_window_escalate_to_a_person() -> None:
    rules = BreakerSettings(escalate_after_engagements=3, escalate_window_seconds=100.0)
    flap = [(0.0, Bad(DATA, "gap")), (1.0, Good(DATA)), (6.0, TimePassed())]
    state = BreakerState()
    for start in (0.0, 20.0):
        state = run(*((start + at, event) for at, event in flap), rules=rules, state=state)
        assert state.mode is SAFE
    assert what(state, Bad(DATA, "gap"), 40.0, rules) == ["latched", "escalated"]
    state = run((40.0, Bad(DATA, "gap")), rules=rules, state=state)
    assert state.escalated
    state = run(*((1e5 + i, Good(DATA)) for i in range(100)), rules=rules, state=state)
    assert state.mode is ENGAGED
    state = run((2e5, Release("ann", "", state.engagement)), rules=rules, state=state)
    assert (state.mode, state.escalated, state.engagements_ns) == (SAFE, False, ())


def test_engagements_outside_the_window_do_not_escalate() -> None:
    rules = BreakerSettings(escalate_after_engagements=3, escalate_window_seconds=30.0)
    state = BreakerState()
    for start in (0.0, 40.0, 80.0, 120.0):
        state = run((start, Bad(DATA, "gap")), (start + 6, Good(DATA)), rules=rules, state=state)
        assert state.mode is SAFE
    assert len(state.engagements_ns) <= 3


@pytest.mark.parametrize(
    ("release", "says"),
    [
        (Release("", "x", 2), "names the person"),
        (Release("  ", "x", 2), "names the person"),
        (Release(None, "x", 2), "names the person"),  # type: ignore[arg-type]
        (Release("ann", "x", 1), "engagement 1"),
        (Release("ann", "x", 3), "engagement 3"),
        (Release("ann", "x", True), "engagement True"),
    ],
)
def test_release_is_fenced__by_name_and_by_the_engagement_that_was_seen(release: Release, says: str) -> None:
    state = run(*LATCH)
    after, effects = step(state, release, seconds(1), RULES)
    assert after == state
    assert effects[0].what == "release_refused"
    assert says in effects[0].reason
    assert what(BreakerState(), Release("ann", "", 0), 1) == ["release_refused"]


def test_release_is_fenced__a_newer_cause_voids_it() -> None:
    seen = run(*LATCH)
    newer = run((1.0, Bad(DRAWDOWN, "2 %")), state=seen)
    assert run((2.0, Release("ann", "network is back", seen.engagement)), state=newer).mode is ENGAGED
    other_person = run((1.0, Bad(MANUAL, "first")), (2.0, Bad(MANUAL, "second", certain=True)))
    assert other_person.engagement == 2
    assert run((3.0, Release("ann", "", 1)), state=other_person).mode is ENGAGED


def test_a_release_on_probation_half_opens_where_readings_can_show_that_it_is_over() -> None:
    state = run((0.0, Bad(DRAWDOWN, "2 %")), (0.0, Bad(MANUAL, "stop")))
    half = run((1.0, Release("ann", "", state.engagement, probation=True)), state=state)
    assert (half.mode, [cause.kind for cause in half.causes]) == (HALF_OPEN, [DRAWDOWN])
    assert run(*((2.0, Good(DRAWDOWN)) for _ in range(5)), state=half).mode is SAFE
    manual = run((0.0, Bad(MANUAL, "stop")))
    assert what(manual, Release("ann", "", manual.engagement, probation=True), 1.0) == ["release_refused"]


def test_a_clock_that_goes_back_stands_still_and_loosens_nothing() -> None:
    state = run(*LATCH)
    back = run((-1e6, Bad(NETWORK, "lost")), (-1e6, Good(NETWORK)), state=state)
    assert back.last_ns == state.last_ns
    assert back.cooldown_until_ns >= state.cooldown_until_ns
    paused = run((100.0, Bad(DATA, "gap")), (-50.0, Good(DATA)), (-50.0, TimePassed()))
    assert paused.mode is ENGAGED


# ---- the machine by law

KINDS = st.sampled_from(list(ReasonClass))
EVENTS = st.one_of(
    st.builds(Bad, KINDS, st.just("bad"), st.booleans()),
    st.builds(Good, KINDS),
    st.just(TimePassed()),
    st.just(Probe()),
    st.builds(Release, st.sampled_from(["ann", ""]), st.just(""), st.integers(0, 12), st.booleans()),
)
TIMES = st.one_of(st.integers(-seconds(100), seconds(100)), st.integers(0, seconds(10_000)))
TRACES = st.lists(st.tuples(TIMES, EVENTS), max_size=60)
SMALL = BreakerSettings(
    recovery_good_readings=2,
    half_open_good_readings=2,
    half_open_probes=2,
    escalate_after_engagements=4,
    transient_classes=("network", "data", "edge"),
)


def lawful(before: BreakerState, event: Event, now: int, after: BreakerState, effects: list[str]) -> None:
    """Everything that must hold of one step, said without the machine's own words."""
    time = max(now, before.last_ns)
    released = isinstance(event, Release) and "released" in effects
    lasting = [c for c in before.causes if c.latched and not SMALL.is_transient(c.kind)]
    if isinstance(event, Bad):
        assert after.mode is ENGAGED
        assert after.cause(event.kind) is not None
        assert {c.kind for c in before.causes} <= {c.kind for c in after.causes}
        assert all(c.latched <= (after.cause(c.kind) or c).latched for c in before.causes)
    if (lasting or before.escalated) and before.mode is ENGAGED and not released:
        assert after.mode is ENGAGED
        assert {c.kind for c in lasting} <= {c.kind for c in after.causes}
    if isinstance(event, TimePassed | Probe) and any(c.latched for c in before.causes):
        assert after.mode is before.mode
    if before.mode is not SAFE and after.mode is SAFE and not released:
        if before.mode is HALF_OPEN:
            assert isinstance(event, Good)
        else:
            assert not any(c.latched for c in before.causes)
            assert all(time - c.last_bad_ns >= seconds(SMALL.provisional_hold_seconds) for c in before.causes)
            good = [c.kind for c in before.causes if c.good_readings == 0]
            assert good == [] or (isinstance(event, Good) and good == [event.kind])
    if before.mode is ENGAGED and after.mode is HALF_OPEN and not released:
        assert isinstance(event, Good)
        assert time >= before.cooldown_until_ns
    if isinstance(event, Release):
        assert not released or (event.actor == "ann" and event.engagement == before.engagement)
        assert released or after == before
    if "probe_passed" in effects:
        assert before.mode is SAFE or (before.mode is HALF_OPEN and after.probes_left == before.probes_left - 1)
    assert after.engagement >= before.engagement
    assert after.version >= before.version
    assert after.last_ns >= before.last_ns
    assert (after.mode is SAFE) == (not after.causes)
    assert len(after.causes) <= len(ReasonClass)
    assert len(after.engagements_ns) <= SMALL.escalate_after_engagements
    assert 0 <= after.probes_left <= SMALL.half_open_probes


@settings(max_examples=400, deadline=None)
@given(trace=TRACES)
def test_every_step_of_every_trace_is_lawful(trace: list[tuple[int, Event]]) -> None:
    state, at = BreakerState(), 0
    for pause, event in trace:
        at += pause
        after, effects = step(state, event, at, SMALL)
        lawful(state, event, at, after, [effect.what for effect in effects])
        assert StateRecord.model_validate_json(StateRecord.from_core(after).model_dump_json()).to_core() == after
        state = after


STRICTNESS = {SAFE: 0, HALF_OPEN: 1, ENGAGED: 2}


@settings(max_examples=200, deadline=None)
@given(trace=TRACES, rest=TRACES, moved=st.integers(0, seconds(1e6)))
def test_a_restart_on_another_clock_is_never_looser(
    trace: list[tuple[int, Event]], rest: list[tuple[int, Event]], moved: int
) -> None:
    """Whatever came before, a machine that started again recovers no sooner than one that went on."""
    state, at = BreakerState(), 0
    for pause, event in trace:
        at += pause
        state, _ = step(state, event, at, SMALL)
    again, later = rebased(state, moved, SMALL), moved
    at = max(at, state.last_ns)
    for pause, event in rest:
        if isinstance(event, Release | Bad):
            continue
        at, later = at + abs(pause), later + abs(pause)
        state, _ = step(state, event, at, SMALL)
        again, _ = step(again, event, later, SMALL)
        assert STRICTNESS[again.mode] >= STRICTNESS[state.mode]


STORY: list[tuple[float, Event]] = [
    *LATCH, *RECOVER, (64.0, Probe()), (65.0, Bad(NETWORK, "lost again")),
    *((200.0 + i, Good(NETWORK)) for i in range(3)),
    (203.0, Probe()), *((204.0 + i, Good(NETWORK)) for i in range(5)), (220.0, Bad(DRAWDOWN, "2 %")),
    (300.0, Bad(MANUAL, "stop", certain=True)), (400.0, Release("ann", "seen", 5)),
]  # fmt: skip


def modes_of_the_story(folder: Path, cut: int) -> list[BreakerMode]:
    """The mode after each step when the process dies before the step ``cut`` and another one goes on."""
    folder.mkdir()
    rules, clock = shared(folder), HandClock(START_NS)
    breaker, modes = make(rules, clock), []
    for index, (at, event) in enumerate(STORY):
        if index == cut:
            before = breaker.state
            breaker = make(rules, clock)  # the old one is gone, as it is when a process dies
            assert breaker.state is before
        clock.time_ns = START_NS + seconds(at)
        play(breaker, event)
        modes.append(breaker.state)
    assert make(rules, clock).state is modes[-1]
    return modes


@pytest.mark.parametrize("cut", range(len(STORY) + 1))
def test_a_process_that_dies_at_any_step_is_followed_by_one_that_is_no_looser(cut: int, tmp_path: Path) -> None:
    """Every interrupted prefix of the story, with a real file: the rest of it is at least as strict, and ends."""
    whole = modes_of_the_story(tmp_path / "whole", -1)
    assert [mode for mode, _ in itertools.groupby(whole)] == [
        ENGAGED,
        HALF_OPEN,
        ENGAGED,
        HALF_OPEN,
        SAFE,
        ENGAGED,
        SAFE,
    ]
    broken = modes_of_the_story(tmp_path / "broken", cut)
    assert all(STRICTNESS[ours] >= STRICTNESS[theirs] for ours, theirs in zip(broken, whole, strict=True))
    assert broken[-1] is SAFE


# ---- the shell

START_NS = 10**15


def make(rules: BreakerSettings | None = None, clock: Any = None, **changes: Any) -> CircuitBreaker:
    return CircuitBreaker(
        rules,
        clock=clock if clock is not None else HandClock(START_NS),
        **{"wall_clock": lambda: NOW, "registry": CollectorRegistry(), **changes},
    )


def play(breaker: CircuitBreaker, event: Event) -> None:
    match event:
        case Bad(kind, reason, certain):
            if certain:
                breaker.engage(reason, kind=kind)
            else:
                breaker.bad_reading(kind, reason)
        case Good(kind):
            breaker.good_reading(kind)
        case Probe():
            breaker.allows()
        case TimePassed():
            breaker.tick()
        case Release(actor, reason, _, probation):
            breaker.release(actor, reason, engagement=breaker.engagement, probation=probation)


def shared(folder: Path, **changes: Any) -> BreakerSettings:
    rules = BreakerSettings(state_file=str(folder / "breaker.json"), **changes)
    if not (folder / "breaker.json").exists():
        CircuitBreaker.create_state_file(rules)
    return rules


def test_the_bare_breaker__safe_engaged_and_engage_with_reason_and_metadata() -> None:
    told: list[BreakerTransition] = []
    breaker = make(on_transition=told.append)
    assert breaker.state == "SAFE"
    assert breaker.allows()
    assert breaker.engage("stop", {"edge_bps": float("nan"), "n": 3})
    assert breaker.state == "ENGAGED"
    assert breaker.is_engaged()
    assert not breaker.allows()
    assert not breaker.engage("stop")  # idempotent
    assert [(one.what, one.reason, one.timestamp, dict(one.metadata)) for one in told] == [
        ("latched", "stop", NOW, {"edge_bps": "nan", "n": 3})
    ]
    assert json.dumps(told[0].to_json())


def test_a_class_that_does_not_exist_counts_as_unknown_and_waits_for_a_person() -> None:
    clock = HandClock(START_NS)
    breaker = make(clock=clock)
    breaker.engage("what?", kind="weather")
    assert [cause.kind for cause in breaker.snapshot().causes] == [UNKNOWN]
    clock.wait(1e6)
    for _ in range(50):
        breaker.good_reading("weather")
    assert breaker.is_engaged()
    with pytest.raises(ReleaseRefused, match="names the person"):
        breaker.release("", engagement=breaker.engagement)
    with pytest.raises(ReleaseRefused, match="look at it again"):
        breaker.release("ann", engagement=0)
    breaker.release("ann", "seen", engagement=breaker.engagement)
    assert breaker.allows()


def test_time_lifts_a_pause_without_anybody_asking_twice() -> None:
    clock = HandClock(START_NS)
    breaker = make(clock=clock)
    breaker.bad_reading("network", "timeout")
    assert not breaker.allows()
    breaker.good_reading("network")
    clock.wait(5.0)
    assert breaker.state is SAFE
    assert breaker.allows()
    assert [one.what for one in breaker.transitions()] == ["paused", "pause_lifted"]


def test_every_transition_is_counted_and_the_gauges_show_it() -> None:
    registry, clock = CollectorRegistry(), HandClock(START_NS)
    breaker = make(clock=clock, registry=registry, name="b")

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"killswitch_breaker_{name}", {"breaker": "b", **labels})

    assert sample("transitions_total", what="latched", kind="drawdown") == 0
    breaker.engage("x", kind="drawdown")
    assert sample("transitions_total", what="latched", kind="drawdown") == 1
    assert (sample("mode"), sample("cooldown_seconds_left"), sample("repeats")) == (2, 60, 1)
    breaker.release("ann", engagement=breaker.engagement)
    assert (sample("mode"), sample("escalated"), sample("probes_left")) == (0, 0, 0)


def test_a_callback_that_raises_and_clocks_that_raise_do_not_stop_an_engagement(logs: list[dict[str, Any]]) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("broken")

    breaker = make(on_transition=broken)
    breaker._clock = breaker._wall_clock = broken
    assert breaker.engage("stop")
    assert not breaker.allows()
    breaker.good_reading("network")
    assert [one.timestamp for one in breaker.transitions()] == ["unknown"]
    assert any("could not be passed on" in line["event"] for line in logs)


def test_eight_threads_engage_once_and_no_reading_is_lost() -> None:
    breaker = make(BreakerSettings(confirmations={"network": 8_000}))  # type: ignore[arg-type]
    start = threading.Barrier(8)

    def hammer() -> None:
        start.wait()
        for _ in range(1_000):
            breaker.bad_reading("network", "lost")

    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cause = breaker.snapshot().cause(NETWORK)
    assert cause is not None
    assert (cause.bad_readings, cause.latched) == (8_000, False)
    assert [one.what for one in breaker.transitions()] == ["paused"]


# ---- the state file


def test_the_state_survives_a_restart(tmp_path: Path) -> None:
    rules = shared(tmp_path)
    breaker = make(rules)
    breaker.engage("2 %", kind="drawdown")
    again = make(rules)
    assert again.state is ENGAGED
    assert [cause.reason for cause in again.snapshot().causes] == ["2 %"]
    assert not again.allows()
    assert [one.what for one in again.transitions()] == ["taken_from_file"]
    again.release("ann", engagement=again.engagement)
    assert make(rules).allows()


BAD_FILES = [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"v": 1}', b"x" * 70_000, b"[" * 60_000,
]  # fmt: skip


@pytest.mark.parametrize("content", BAD_FILES, ids=range(len(BAD_FILES)))
def test_unknown_is_frozen__an_unreadable_state_file_is_engaged_until_a_person_releases(
    tmp_path: Path, content: bytes
) -> None:
    rules = shared(tmp_path)
    path = tmp_path / "breaker.json"
    path.write_bytes(content)
    breaker = make(rules)
    assert breaker.state is ENGAGED
    assert [cause.kind for cause in breaker.snapshot().causes] == [UNKNOWN]
    assert not breaker.allows()
    assert (tmp_path / "breaker.json.unreadable").read_bytes() == content[:65_536]
    assert make(rules).state is ENGAGED  # also for the next one
    breaker.release("ann", "looked", engagement=breaker.engagement)
    assert make(rules).state is SAFE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "OPEN"), ("mode", "ENGAGED"), ("engagement", -1), ("engagement", 1.5), ("engagement", True),
        ("repeats", "1"), ("escalated", 0), ("causes", {}), ("engagements_ns", [None]), ("last_ns", 2**63),
        ("causes", [{"kind": "weather"}]), ("extra", 1), ("probes_left", None),
    ],
)  # fmt: skip
def test_unknown_is_frozen__a_state_that_cannot_be_is_not_believed(tmp_path: Path, name: str, value: Any) -> None:
    rules = shared(tmp_path)
    path = tmp_path / "breaker.json"
    body = json.loads(path.read_text())
    body["state"][name] = value
    path.write_text(json.dumps(body))
    assert make(rules).state is ENGAGED


# As the first version wrote it; it is never made anew by the code under test.
AS_WRITTEN_BEFORE = """{
 "clock": "e1a874c1-4fd9-4b38-a3ef-b7cd870a3436 time:[4026531834]",
 "state": {
  "causes": [
   {
    "bad_readings": 1,
    "good_readings": 0,
    "kind": "drawdown",
    "last_bad_ns": 5000000000,
    "latched": true,
    "reason": "2 %"
   },
   {
    "bad_readings": 1,
    "good_readings": 0,
    "kind": "network",
    "last_bad_ns": 5000000000,
    "latched": false,
    "reason": "lost"
   }
  ],
  "cooldown_until_ns": 65000000000,
  "engagement": 1733784,
  "engagements_ns": [
   5000000000
  ],
  "escalated": false,
  "last_ns": 5000000000,
  "mode": "ENGAGED",
  "probes_left": 0,
  "repeats": 1,
  "safe_since_ns": 0,
  "version": 2
 },
 "utc": "2026-01-31T09:30:00.123456Z",
 "v": 1
}
"""


def test_a_state_file_of_the_first_version_is_read_and_written_as_before(tmp_path: Path) -> None:
    rules, path = shared(tmp_path), tmp_path / "breaker.json"
    path.write_text(AS_WRITTEN_BEFORE)
    file = StateFile(rules, clock=HandClock(START_NS), wall_clock=lambda: "2026-01-31T09:30:00.123456Z")
    state = file.read()
    assert (state.mode, state.engagement, state.version) == (ENGAGED, 1733784, 2)
    assert [(cause.kind.value, cause.latched) for cause in state.causes] == [("drawdown", True), ("network", False)]
    file.write(StateRecord.model_validate(json.loads(AS_WRITTEN_BEFORE)["state"], strict=False).to_core())
    before, after = (json.loads(text) | {"clock": ""} for text in (AS_WRITTEN_BEFORE, path.read_text()))
    assert after == before
    assert len(path.read_text().splitlines()) == len(AS_WRITTEN_BEFORE.splitlines())


def test_a_clock_for_people_that_fails_keeps_no_engagement_from_the_file(tmp_path: Path) -> None:
    rules = shared(tmp_path)
    breaker = make(rules, wall_clock=lambda: str(1 / 0))
    assert breaker.engage("stop")
    assert make(rules).state is ENGAGED
    assert json.loads((tmp_path / "breaker.json").read_text())["utc"] == "unknown"


def test_a_reason_that_utf_8_cannot_hold_is_written_and_read(tmp_path: Path) -> None:
    rules = shared(tmp_path)
    make(rules).engage("edge \udcff gone", kind="network")
    assert [(cause.kind.value, cause.reason) for cause in make(rules).snapshot().causes] == [("network", "edge ? gone")]


def test_unknown_is_frozen__a_missing_state_file_is_engaged(tmp_path: Path) -> None:
    rules = BreakerSettings(state_file=str(tmp_path / "breaker.json"))
    breaker = make(rules)
    assert breaker.state is ENGAGED
    assert "create_state_file" in breaker.snapshot().causes[0].reason
    with pytest.raises(FileExistsError):
        CircuitBreaker.create_state_file(rules)  # what is engaged is not overwritten
    lost = BreakerSettings(state_file=str(tmp_path / "no" / "such" / "breaker.json"))
    breaker = make(lost)
    assert breaker.state is ENGAGED
    with pytest.raises(ReleaseRefused, match="could not be written"):
        breaker.release("ann", engagement=breaker.engagement)


def test_unknown_is_frozen__a_file_that_vanishes_or_goes_back_while_running_engages(tmp_path: Path) -> None:
    rules = shared(tmp_path)
    path = tmp_path / "breaker.json"
    breaker = make(rules)
    assert breaker.allows()
    path.unlink()
    assert not breaker.allows()
    old = tmp_path / "other"
    old.mkdir()
    rules = shared(old)
    breaker = make(rules)
    kept = (old / "breaker.json").read_bytes()
    breaker.engage("x")
    breaker.release("ann", engagement=breaker.engagement)
    assert breaker.allows()
    (old / "breaker.json").write_bytes(kept)  # a backup is put back
    assert not breaker.allows()
    assert "older than" in breaker.snapshot().causes[0].reason


def test_processes_share_one_breaker(tmp_path: Path) -> None:
    rules = shared(tmp_path)
    one, two = make(rules), make(rules)
    assert one.allows()
    assert two.allows()
    one.engage("stop")
    assert not two.allows()
    with pytest.raises(ReleaseRefused, match="look at it again"):
        two.release("ann", engagement=two.engagement - 1)
    two.release("ann", engagement=two.engagement)
    assert one.allows()
    one.engage("2 %", kind="drawdown")
    two.engage("stop", kind="manual")  # without having looked: nothing of the other is lost
    assert [cause.kind for cause in one.snapshot().causes] == [DRAWDOWN, MANUAL]
    assert one.engagement == two.engagement


def test_half_open_probes_are_shared_between_processes(tmp_path: Path) -> None:
    rules, clock = shared(tmp_path), HandClock(START_NS)
    one, two = make(rules, clock), make(rules, clock)
    one.engage("lost", kind="network")
    clock.wait(61)
    for _ in range(3):
        one.good_reading("network")
    assert one.state is two.state is HALF_OPEN
    assert sum(breaker.allows() for breaker in (one, two) * 10) == 5


def test_an_engagement_holds_while_another_process_has_the_lock_and_is_written_later(tmp_path: Path) -> None:
    rules = shared(tmp_path, lock_timeout_seconds=0.05)
    breaker, other = make(rules), make(rules)
    file = StateFile(rules, clock=HandClock(START_NS), wall_clock=lambda: NOW)
    with file.locked():
        assert breaker.engage("stop")
        assert not breaker.allows()
        assert other.allows()  # it cannot know yet
        with pytest.raises(ReleaseRefused, match="could not be written"):
            breaker.release("ann", engagement=breaker.engagement)
        assert not breaker.allows()
    breaker.tick()
    assert not other.allows()
    assert "file_failed" in [one.what for one in breaker.transitions()]


def test_an_engagement_that_cannot_be_written_holds_and_is_put_on_top_of_what_others_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = shared(tmp_path)
    breaker, other = make(rules), make(rules)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert breaker.engage("2 %", kind="drawdown")
        assert not breaker.allows()
    other.engage("stop")
    other.release("ann", engagement=other.engagement)
    assert other.state is SAFE
    breaker.tick()
    assert other.state is ENGAGED
    assert [cause.kind for cause in other.snapshot().causes] == [DRAWDOWN]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["breaker.json", "breaker.json.lock"]


def test_a_release_that_cannot_be_written_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = shared(tmp_path)
    breaker = make(rules)
    breaker.engage("stop")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ReleaseRefused, match="No space left"):
            breaker.release("ann", engagement=breaker.engagement)
        assert not breaker.allows()
    assert make(rules).state is ENGAGED
    breaker.release("ann", engagement=breaker.engagement)
    assert make(rules).state is SAFE


def test_the_lock_can_be_turned_off(tmp_path: Path) -> None:
    rules = shared(tmp_path, file_lock=False)
    breaker = make(rules)
    breaker.engage("stop")
    assert make(rules).state is ENGAGED
    assert [path.name for path in tmp_path.iterdir()] == ["breaker.json"]


def test_after_a_reboot_a_cool_down_begins_again(tmp_path: Path) -> None:
    rules = shared(tmp_path)
    make(rules).engage("lost", kind="network")
    path = tmp_path / "breaker.json"
    body = json.loads(path.read_text())
    body["clock"] = "another run of the machine"
    path.write_text(json.dumps(body))
    clock = HandClock(seconds(5))  # the deadline clock has started over
    breaker = make(rules, clock)
    assert breaker.snapshot().cooldown_until_ns == seconds(65)
    clock.wait(61)
    for _ in range(3):
        breaker.good_reading("network")
    assert breaker.state is HALF_OPEN


def _engage_many(path: str, name: str, count: int) -> None:
    breaker = CircuitBreaker(BreakerSettings(state_file=path, lock_timeout_seconds=30.0), registry=CollectorRegistry())
    for number in range(count):
        breaker.engage(f"{name} {number}", kind="manual")


def test_real_processes_lose_no_engagement(tmp_path: Path) -> None:
    rules = shared(tmp_path)
    path = tmp_path / "breaker.json"
    before = json.loads(path.read_text())["state"]["engagement"]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_engage_many, args=(str(path), f"p{number}", 10)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(50)
        assert worker.exitcode == 0
    assert json.loads(path.read_text())["state"]["engagement"] == before + 30
    assert make(rules).state is ENGAGED


CHILD = """
import sys, time
import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from prometheus_client import CollectorRegistry
from killswitch.risk.breaker.breaker_settings import BreakerSettings
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
breaker = CircuitBreaker(BreakerSettings(state_file=sys.argv[1]), registry=CollectorRegistry())
print("ready", flush=True)
while breaker.allows():
    time.sleep(0.005)
print("stopped", flush=True)
"""


def test_another_process_stops_when_this_one_engages(tmp_path: Path) -> None:
    rules = shared(tmp_path)
    command = [sys.executable, "-c", CHILD, rules.state_file or ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            make(rules).engage("stop")
            wait_until(lambda: child.poll() is not None, what="the end of the other process")
            assert child.stdout.readline() == "stopped\n"
        finally:
            child.kill()


def test_faults_of_the_file_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no state_file"):
        StateFile(RULES, clock=HandClock(START_NS), wall_clock=lambda: NOW)
    file = StateFile(BreakerSettings(state_file=str(tmp_path)), clock=HandClock(START_NS), wall_clock=lambda: NOW)
    with pytest.raises(StateFileFault, match="cannot be read"):
        file.read()


# ---- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"recovery_cooldown_seconds": 0.0}, {"recovery_cooldown_seconds": float("inf")},
        {"recovery_cooldown_seconds": float("nan")}, {"recovery_cooldown_seconds": "60"},
        {"recovery_cooldown_seconds": True}, {"half_open_probes": 0}, {"half_open_probes": 1.5},
        {"kill_switch_mode": "off"}, {"recovery_cooldown_seconds": 7_200.0}, {"cooldown": 60.0},
        {"transient_classes": ("network", "network")}, {"confirmations": {"manual": 1}}, {"file_lock": "yes"},
        {"state_file": ""},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BreakerSettings.model_validate(wrong)


def test_every_setting_says_what_it_means() -> None:
    for name, field in BreakerSettings.model_fields.items():
        assert field.description, name

"""Limits by symbol, time of day and volatility; the warning ladder; what-if: asked for by those who use the monitor."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from killswitch.risk.limits.create_monitor import create_risk_monitor
from killswitch.risk.limits.limit_schedule import SESSION_LOOK_MS, LimitSchedule, LimitScheduleSettings
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.limits.warning_ladder import STEPS_PCT, LimitWarning, WarningLadder

MS = 1_000_000


def monitor(**changes: Any) -> RuntimeRiskMonitor:
    settings_: dict[str, Any] = {
        "max_inventory_usd_per_symbol": 10_000.0,
        "max_total_notional_usd": 50_000.0,
        "edge_freeze_threshold_bps": 1.5,
        "registry": CollectorRegistry(),
    }
    return RuntimeRiskMonitor(**{**settings_, **changes})


class Clock:
    """Two clocks in one: nanoseconds, and the minute of the day."""

    def __init__(self) -> None:
        self.ns = 10**15
        self.minute: Any = 600.0

    def now(self) -> int:
        return self.ns

    def session(self) -> float:
        if isinstance(self.minute, Exception):
            raise self.minute
        return self.minute  # type: ignore[no-any-return]

    def turn(self, minute: Any) -> None:
        self.minute = minute
        self.ns += SESSION_LOOK_MS * MS


VOLATILITY = [
    {"up_to_ratio": 0.01, "limit_pct": 100},
    {"up_to_ratio": 0.03, "limit_pct": 50},
    {"up_to_ratio": 0.05, "limit_pct": 10},
]


def schedule(clock: Clock, **settings: Any) -> LimitSchedule:
    return LimitSchedule(LimitScheduleSettings.model_validate(settings), session_clock=clock.session, clock=clock.now)


def fits(m: RuntimeRiskMonitor, symbol: str, usd: float) -> bool:
    """Whether exactly this much passes and a little more does not, by every door."""
    more = usd * 1.000001
    exactly = [m.check_before_order(symbol, "buy", usd, 1.0), m.simulate_order(symbol, "buy", usd, 1.0).passes]
    above = [m.check_before_order(symbol, "buy", more, 1.0), m.simulate_order(symbol, "buy", more, 1.0).passes]
    reserved = m.reserve("x", symbol, "buy", usd, 1.0) is None
    m.release("x")
    too_much = m.reserve("x", symbol, "buy", more, 1.0)
    return all(exactly) and reserved and not any(above) and too_much is not None


# ---- by symbol


def test_a_symbol_has_a_limit_of_its_own_that_can_only_be_lower() -> None:
    own = {"BTCUSDT": 2_000.0, "ETHUSDT": 99_000.0}
    m = monitor(schedule=schedule(Clock(), symbol_max_inventory_usd=own))
    assert fits(m, "BTCUSDT", 2_000.0)
    assert fits(m, "ETHUSDT", 10_000.0)
    assert fits(m, "SOLUSDT", 10_000.0)
    refusal = m.explain_order("BTCUSDT", "buy", 2_001.0, 1.0)
    assert refusal is not None
    assert (refusal.kind, refusal.limit, refusal.value) == ("symbol_limit", 2_000.0, 2_001.0)


# ---- by time of day


def test_limits_follow_the_session_clock() -> None:
    clock = Clock()
    steps = [
        {"from_minute": 570, "limit_pct": 100},
        {"from_minute": 960, "limit_pct": 7},
        {"from_minute": 1200, "limit_pct": 0},
    ]
    m = monitor(schedule=schedule(clock, sessions=steps), max_total_notional_usd=12_000.0)
    assert fits(m, "A", 10_000.0)
    clock.turn(959.999)
    assert fits(m, "A", 10_000.0)
    clock.turn(960.0)
    assert fits(m, "A", 700.0)  # and exactly, although 0.07 is no float
    assert m.limits_of("A").total_usd == 840.0  # the total limit too
    for minute in (1200.0, 1439.9, 0.0, 569.9):  # the last step goes on past midnight
        clock.turn(minute)
        assert not m.check_before_order("A", "buy", 0.01, 1.0)
    m.on_fill("A", "buy", 100.0, 1.0)
    assert m.check_before_order("A", "sell", 100.0, 1.0)  # what reduces passes a limit of nothing


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1440.0, None, "600", OSError("no clock")])
def test_unknown_is_frozen__a_session_clock_that_fails_takes_the_tightest_session(bad: Any) -> None:
    clock = Clock()
    steps = [
        {"from_minute": 0, "limit_pct": 100},
        {"from_minute": 720, "limit_pct": 10},
        {"from_minute": 800, "limit_pct": 50},
    ]
    m = monitor(schedule=schedule(clock, sessions=steps))
    assert fits(m, "A", 10_000.0)
    clock.turn(bad)
    assert fits(m, "A", 1_000.0)


def test_sessions_need_a_clock() -> None:
    settings = LimitScheduleSettings.model_validate({"sessions": [{"from_minute": 0, "limit_pct": 1}]})
    with pytest.raises(ValueError, match="session clock"):
        LimitSchedule(settings)


# ---- by volatility


def test_limits_follow_volatility_and_what_is_unknown_or_old_is_the_tightest() -> None:
    clock = Clock()
    limits = schedule(clock, volatility=VOLATILITY, volatility_max_age_ms=1_000)
    m = monitor(schedule=limits)
    assert fits(m, "A", 1_000.0)  # none has come yet
    for ratio, usd in [
        (0.0, 10_000.0),
        (0.01, 10_000.0),
        (0.011, 5_000.0),
        (0.03, 5_000.0),
        (0.05, 1_000.0),
        (9.0, 1_000.0),
    ]:
        limits.on_volatility("A", ratio)
        assert fits(m, "A", usd), ratio
    limits.on_volatility("A", 0.005)
    assert fits(m, "B", 1_000.0)  # of another symbol
    assert m.limits_of("A").total_usd == 50_000.0
    clock.ns += 1_000 * MS
    assert fits(m, "A", 10_000.0)
    clock.ns += 1
    assert fits(m, "A", 1_000.0)
    limits.on_volatility("A", 0.005)
    clock.ns -= 1  # a clock that goes back
    assert fits(m, "A", 1_000.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, None, "0.01", True, 10**400])
def test_unknown_is_frozen__a_volatility_that_is_none_takes_the_tightest_step(bad: Any) -> None:
    limits = schedule(Clock(), volatility=VOLATILITY)
    m = monitor(schedule=limits)
    limits.on_volatility("A", 0.001)
    limits.on_volatility("", 0.001)
    assert fits(m, "A", 10_000.0)
    limits.on_volatility("A", bad)
    assert fits(m, "A", 1_000.0)


def test_unknown_is_frozen__a_clock_that_fails_takes_the_tightest_of_everything() -> None:
    clock = Clock()
    limits = schedule(clock, volatility=VOLATILITY, sessions=[{"from_minute": 0, "limit_pct": 100}])
    m = monitor(schedule=limits)
    limits.on_volatility("A", 0.001)

    def fail() -> int:
        raise OSError("no clock")

    for bad in (fail, lambda: None, lambda: math.nan):
        limits._clock = limits.table._clock = bad  # type: ignore[assignment]
        assert fits(m, "A", 1_000.0)
        limits.on_volatility("A", 0.001)
        limits._clock = limits.table._clock = clock.now
        assert fits(m, "A", 1_000.0)  # when it came is not known
        limits.on_volatility("A", 0.001)
        assert fits(m, "A", 10_000.0)


def test_the_symbols_whose_volatility_is_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("killswitch.risk.limits.limit_schedule.MAX_SYMBOLS", 1)
    limits = schedule(Clock(), volatility=VOLATILITY)
    for symbol in "AB":
        limits.on_volatility(symbol, 0.001)
    assert (limits.percent("A"), limits.percent("B")) == ((100, 100), (10, 100))


@given(
    minute=st.floats(0, 1439), ratio=st.floats(0, 0.1), own=st.floats(1, 20_000), pct=st.integers(0, 100),
)  # fmt: skip
def test_a_schedule_never_loosens(minute: float, ratio: float, own: float, pct: int) -> None:
    clock = Clock()
    clock.minute = minute
    limits = schedule(
        clock,
        volatility=VOLATILITY,
        sessions=[{"from_minute": 300, "limit_pct": pct}],
        symbol_max_inventory_usd={"A": own},
    )
    limits.on_volatility("A", ratio)
    effective = limits.limits("A", 10_000.0, 50_000.0)
    assert effective.symbol_usd <= min(own, 10_000.0)
    assert effective.total_usd == 50_000.0 * pct / 100
    assert effective.exact_symbol_usd <= Decimal(repr(min(own, 10_000.0)))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sessions": [{"from_minute": 5, "limit_pct": 1}, {"from_minute": 5, "limit_pct": 2}]}, "the times must grow"),
        ({"volatility": [VOLATILITY[1], VOLATILITY[0]]}, "the ratios must grow"),
        ({"volatility": [VOLATILITY[2], {"up_to_ratio": 0.9, "limit_pct": 50}]}, "must not loosen"),
        ({"sessions": [{"from_minute": 1440, "limit_pct": 1}]}, "less than 1440"),
        ({"sessions": [{"from_minute": 0, "limit_pct": 101}]}, "less than or equal to 100"),
        ({"volatility_max_age_ms": 0}, "greater than 0"),
        ({"symbol_max_inventory_usd": {"A": math.inf}}, "finite"),
        ({"symbol_max_inventory_usd": {"A": True}}, "valid number"),
        ({"session": []}, "Extra inputs"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        LimitScheduleSettings.model_validate(wrong)


def test_limits_change_at_run_time() -> None:
    m = monitor()
    m.on_fill("A", "buy", 5_000.0, 1.0)
    m.set_limits(RiskLimits(max_inventory_usd=6_000.0, max_total_notional=7_000.0, edge_freeze_threshold_bps=2.0))
    assert m.check_before_order("A", "buy", 1_000.0, 1.0)
    assert not m.check_before_order("A", "buy", 1_000.1, 1.0)
    assert not m.check_before_order("B", "buy", 2_000.1, 1.0)
    assert m.on_edge_update("A", 1.9)


# ---- the warning ladder


def warned(m: RuntimeRiskMonitor, heard: list[LimitWarning]) -> list[tuple[str | None, int]]:
    told = [(warning.symbol, warning.step_pct) for warning in heard]
    heard.clear()
    return told


def test_each_step_is_told_once_on_the_way_up_and_again_after_hysteresis() -> None:
    heard: list[LimitWarning] = []
    registry = CollectorRegistry()
    m = monitor(on_warning=heard.append, registry=registry)
    m.on_fill("A", "buy", 4_999.0, 1.0)
    assert warned(m, heard) == []
    m.on_fill("A", "buy", 1.0, 1.0)
    assert heard[0] == LimitWarning("symbol_limit", "A", 50, 5_000.0, 10_000.0)
    assert "A: position with working orders is 5000.00 USD, at least 50 % of the limit" in heard[0].sentence
    assert warned(m, heard) == [("A", 50)]
    m.on_fill("A", "buy", 100.0, 1.0)
    m.on_fill("A", "sell", 290.0, 1.0)  # to 48.1 %: still on the step
    m.on_fill("A", "buy", 290.0, 1.0)
    assert warned(m, heard) == []
    m.on_fill("A", "sell", 301.0, 1.0)  # to 47.99 %
    m.on_fill("A", "buy", 301.0, 1.0)
    assert warned(m, heard) == [("A", 50)]
    m.on_fill("A", "buy", 4_400.0, 1.0)  # to 95 % at once: each step is told
    assert warned(m, heard) == [("A", 75), ("A", 85), ("A", 90), ("A", 95)]
    value = registry.get_sample_value("killswitch_limit_warnings_total", {"limit": "symbol_limit", "step_pct": "50"})
    assert value == 2
    assert registry.get_sample_value("killswitch_limit_warnings_total", {"limit": "total_limit", "step_pct": "95"}) == 0


def test_working_orders_warn_and_the_total_has_a_ladder_of_its_own() -> None:
    heard: list[LimitWarning] = []
    m = monitor(on_warning=heard.append, max_total_notional_usd=12_000.0)
    assert m.reserve("1", "A", "buy", 6_000.0, 1.0) is None
    assert warned(m, heard) == [("A", 50), (None, 50)]
    assert "the total over all symbols with working orders" in LimitWarning("total_limit", None, 50, 1.0, 2.0).sentence
    m.amend("1", 8_000.0)
    assert warned(m, heard) == [("A", 75)]
    m.settle_amend("1", accepted=False)
    m.release("1")
    assert m.reserve("1", "A", "sell", 6_000.0, 1.0) is None
    assert warned(m, heard) == [("A", 50), (None, 50)]


def test_a_limit_that_tightens_warns_at_the_next_event() -> None:
    heard: list[LimitWarning] = []
    clock = Clock()
    steps = [{"from_minute": 0, "limit_pct": 100}, {"from_minute": 720, "limit_pct": 50}]
    m = monitor(on_warning=heard.append, schedule=schedule(clock, sessions=steps))
    m.on_fill("A", "buy", 4_000.0, 1.0)
    clock.turn(720.0)
    m.update_position("A", 0.0, 1.0)
    assert warned(m, heard) == [("A", 50), ("A", 75)]


def test_a_warning_that_cannot_be_told_stops_nothing(logs: Any) -> None:
    def fail(_warning: LimitWarning) -> None:
        raise ConnectionError("nobody listens")

    m = monitor(on_warning=fail)
    m.on_fill("A", "buy", 6_000.0, 1.0)
    assert m.reserve("1", "A", "buy", 2_000.0, 1.0) is None
    assert sum("nobody listens" in line.get("error", "") for line in logs) == 2


def test_a_warning_is_told_with_no_lock_held() -> None:
    m = monitor(on_warning=lambda warning: seen.append(m.simulate_order("A", "buy", 1.0, 1.0).passes))
    seen: list[bool] = []
    m.on_fill("A", "buy", 6_000.0, 1.0)
    m.reserve("1", "A", "buy", 2_000.0, 1.0)
    assert seen == [True, True]


@given(values=st.lists(st.floats(0, 120), max_size=30))
def test_a_step_is_told_just_when_it_is_reached_from_below_its_hysteresis(values: list[float]) -> None:
    ladder, armed = WarningLadder(), dict.fromkeys(STEPS_PCT, True)
    for value in values:
        told = [warning.step_pct for warning in ladder.see("A", value, 100.0)]
        assert told == [step for step in STEPS_PCT if armed[step] and value >= step]
        for step in STEPS_PCT:
            armed[step] = False if value >= step else armed[step] or value < step - 2.0
    assert ladder.is_warned is (not all(armed.values()))


def test_unknown_is_frozen__a_figure_that_is_no_number_stands_on_the_highest_step() -> None:
    for value, limit in [(math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0)]:
        assert [warning.step_pct for warning in WarningLadder().see("A", value, limit)] == list(STEPS_PCT)
    assert WarningLadder().see("A", 0.0, 0.0) == ()


# ---- what-if


def test_simulating_tells_every_refusal_and_the_figures_and_changes_nothing() -> None:
    heard: list[LimitWarning] = []
    registry = CollectorRegistry()
    m = monitor(max_total_notional_usd=12_000.0, on_warning=heard.append, registry=registry)
    m.on_fill("B", "buy", 4_000.0, 1.0)
    m.reserve("1", "A", "buy", 1_000.0, 1.0)
    before = m.persist_to_dict()
    told = m.simulate_order("A", "buy", 10_000.0, 1.0)
    assert not told.passes
    assert [refusal.kind for refusal in told.refusals] == ["symbol_limit", "total_limit"]
    assert (told.symbol_usd, told.symbol_limit_usd) == (11_000.0, 10_000.0)
    assert (told.total_usd, told.total_limit_usd) == (15_000.0, 12_000.0)
    assert told.warnings == ()
    good = m.simulate_order("A", "buy", 6_500.0, 1.0)
    assert good.passes
    steps = [("A", 50), ("A", 75), (None, 50), (None, 75), (None, 85), (None, 90), (None, 95)]
    assert [(warning.symbol, warning.step_pct) for warning in good.warnings] == steps
    assert m.persist_to_dict() == before
    assert (m.blocks_total, heard, m.working_orders()) == (0, [], 1)


def test_simulating_agrees_with_the_real_door() -> None:
    m = monitor()
    m.on_fill("A", "buy", 20_000.0, 1.0)
    reducing = m.simulate_order("A", "sell", 100.0, 1.0)
    assert (reducing.passes, reducing.reduces, reducing.warnings) == (True, True, ())
    m.freeze("stop")
    told = m.simulate_order("A", "buy", 100.0, 1.0)
    assert [refusal.kind for refusal in told.refusals] == ["frozen", "symbol_limit"]


@pytest.mark.parametrize("bad", [math.nan, 0.0, "1", None])
def test_unknown_is_frozen__simulating_what_makes_no_sense_refuses_it(bad: Any) -> None:
    m = monitor()
    m.freeze("stop")
    assert [refusal.kind for refusal in m.simulate_order("A", "buy", bad, 1.0).refusals] == ["frozen", "bad_input"]
    broken = monitor(get_mark_price=lambda _symbol: math.nan)
    told = broken.simulate_order("A", "buy", 1.0)
    assert ([refusal.kind for refusal in told.refusals], told.symbol_usd) == (["monitor_error"], None)
    assert not broken.is_frozen()


def test_both_doors_of_construction_take_a_schedule_and_a_callback() -> None:
    heard: list[LimitWarning] = []
    m = create_risk_monitor(
        max_inventory_usd=10_000.0,
        max_total_notional=50_000.0,
        edge_freeze_threshold_bps=1.0,
        registry=CollectorRegistry(),
        schedule=schedule(Clock(), symbol_max_inventory_usd={"A": 10.0}),
        on_warning=heard.append,
    )
    m.on_fill("A", "buy", 5.0, 1.0)
    assert warned(m, heard) == [("A", 50)]

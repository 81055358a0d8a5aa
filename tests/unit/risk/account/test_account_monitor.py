"""The account, line by line: drawdown and leverage per tick, with a circuit breaker behind."""

from __future__ import annotations

import datetime as dt
import json
import math
import random
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from killswitch import risk
from killswitch.risk.account.account_book import MARKS_BETWEEN_SUMS
from killswitch.risk.account.account_days import next_day_start
from killswitch.risk.account.account_monitor import RiskMonitor
from killswitch.risk.account.account_rule import drawdown_ratio, findings, true_leverage
from killswitch.risk.account.account_state import AccountState, AccountTick, AlertLevel, Holding, PriceTick, TickStamp
from killswitch.risk.account_limits import OTHER_NAMES, AccountLimits, load_account_limits
from killswitch.risk.breaker.breaker_settings import BreakerSettings
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
from killswitch.risk.events import FreezeEvent
from killswitch.settings.settings_file import RiskFileError
from tests.support.eager import together

START = dt.datetime(2026, 1, 31, 9, 30, tzinfo=dt.UTC)
BTC = "BTCUSDT"
NORMAL, WARNING, CRITICAL = AlertLevel.NORMAL, AlertLevel.WARNING, AlertLevel.CRITICAL
RFC_3339_MICROSECONDS = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")


class Stage:
    """A monitor on clocks that the test moves: the deadline clock, and a wall clock that can step on its own."""

    def __init__(self, *, balance: float = 100_000.0, held: bool = True, **limits: Any) -> None:
        self.ns = 0
        self.wall_step = dt.timedelta()
        self.registry = CollectorRegistry()
        self.freezes: list[FreezeEvent] = []
        self.limits = AccountLimits(**limits)
        self.breaker = CircuitBreaker(
            self.limits.breaker_settings(), clock=lambda: self.ns, wall_clock=self.utc, registry=self.registry
        )
        self.monitor = RiskMonitor(
            self.breaker,
            None,
            balance,
            limits=self.limits,
            clock=lambda: self.ns,
            wall_clock=self.utc,
            on_freeze=self.freezes.append,
            registry=self.registry,
        )
        if held:
            self.monitor.on_fill(BTC, "buy", 2.5, 40_000.0)

    def utc(self) -> str:
        now = START + self.wall_step + dt.timedelta(microseconds=self.ns // 1_000)
        return now.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def wait(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)

    def tick(self, price: Any, symbol: Any = BTC) -> AccountState:
        self.wait(0.001)
        return self.monitor.monitor_tick(PriceTick(symbol, price))

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"killswitch_account_{name}", {"account": "default", **labels})


# ---- AccountState


def test_account_state_has_the_fields_that_its_users_know() -> None:
    assert AccountState._fields == (
        "timestamp", "balance", "open_pnl", "closed_pnl", "total_pnl", "positions", "total_exposure", "leverage",
        "drawdown", "drawdown_pct", "alert_level",
    )  # fmt: skip
    assert [level.value for level in AlertLevel] == ["NORMAL", "WARNING", "CRITICAL"]
    stage = Stage()
    stage.tick(40_000.0)
    stage.monitor.on_fill(BTC, "sell", 0.5, 40_200.0)
    state = stage.tick(40_100.0)
    assert state.balance == 100_100.0
    assert (state.closed_pnl, state.open_pnl, state.total_pnl) == (100.0, 200.0, 300.0)
    assert state.positions == {BTC: 2.0}
    assert state.total_exposure == 80_200.0
    assert state.leverage == 80_200.0 / 100_300.0
    assert (state.drawdown, state.drawdown_pct) == (0.0, 0.0)
    state = stage.tick(39_848.5)
    assert state.equity == 99_797.0
    assert (state.drawdown, state.alert_level) == (503.0, NORMAL)
    assert state.drawdown_pct == pytest.approx(100 * 503 / 100_300)
    assert json.loads(json.dumps(state.to_json()))["positions"] == {BTC: 2.0}


def test_a_state_is_a_snapshot_that_nobody_can_change() -> None:
    stage = Stage()
    before = stage.tick(40_000.0)
    with pytest.raises(TypeError):
        before.positions["X"] = 1.0  # type: ignore[index]
    with pytest.raises(AttributeError):
        before.balance = 1.0  # type: ignore[misc]
    stage.monitor.on_fill("ETHUSDT", "buy", 1.0, 3_000.0)
    assert before.positions == {BTC: 2.5}


def test_timestamps_are_rfc_3339_with_microseconds() -> None:
    monitor = RiskMonitor(None, None, 100_000.0, registry=CollectorRegistry())
    stamp = monitor.monitor_tick(PriceTick(BTC, 1.0)).timestamp
    assert RFC_3339_MICROSECONDS.match(stamp)
    told = dt.datetime.fromisoformat(stamp)
    assert abs(told - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
    clock = TickStamp()
    stamps = [clock() for _ in range(2_000)]
    assert stamps == sorted(stamps)


# ---- the door: breaker, path of the config, initial balance


def test_the_constructor_takes_breaker_config_path_and_initial_balance(tmp_path: Path) -> None:
    path = tmp_path / "risk.yaml"
    path.write_text("max_daily_drawdown: 0.05\ndrawdown_warning: 0.04\n")
    breaker = CircuitBreaker(registry=CollectorRegistry())
    monitor = RiskMonitor(breaker, path, 50_000.0, registry=CollectorRegistry())
    assert monitor.circuit_breaker is breaker
    assert monitor.limits.max_daily_drawdown == 0.05
    assert monitor.state().balance == 50_000.0
    by_name = RiskMonitor(
        circuit_breaker=breaker, config_path=str(path), initial_balance=1.0, registry=CollectorRegistry()
    )
    assert by_name.limits == monitor.limits


SHIPPED = Path(__file__).resolve().parents[4] / "config" / "risk_limits.yaml"


def test_the_constructor_takes_the_file_that_ships_and_holds_its_figures() -> None:
    monitor = RiskMonitor(None, str(SHIPPED), 100_000.0, registry=CollectorRegistry())
    limits = monitor.limits
    assert type(limits) is AccountLimits
    assert limits == AccountLimits()
    assert (limits.max_daily_drawdown, limits.drawdown_warning) == (0.02, 0.01)
    assert (limits.max_account_leverage, limits.leverage_warning) == (5.0, 3.0)
    monitor.on_fill(BTC, "buy", 2.5, 40_000.0)
    levels = [monitor.monitor_tick(PriceTick(BTC, price)).alert_level for price in (40_000.0, 39_600.0, 39_200.0)]
    assert levels == [NORMAL, WARNING, CRITICAL]
    assert monitor.circuit_breaker.state == "ENGAGED"


def test_the_constructor_takes_its_part_of_a_file_for_everybody_and_refuses_one_that_is_wrong_anywhere(
    tmp_path: Path,
) -> None:
    path = tmp_path / "risk.yaml"
    path.write_text("max_daily_drawdown_ratio: 0.05\ninitial_balance_usd: 5.0\norders: {max_inventory_usd: 10.0}\n")
    monitor = RiskMonitor(None, path, 100_000.0, registry=CollectorRegistry())
    assert monitor.limits == AccountLimits(max_daily_drawdown=0.05)
    assert monitor.state().balance == 100_000.0
    path.write_text("max_daily_drawdown: 0.05\norders: {max_inventory_us: 10.0}\n")
    with pytest.raises(RiskFileError, match=r":2: orders\.max_inventory_us: there is no such setting; did you mean"):
        RiskMonitor(None, path, 100_000.0, registry=CollectorRegistry())


@pytest.mark.parametrize("balance", [0.0, -1.0, math.nan, math.inf, "100", None, True])
def test_a_balance_that_makes_no_sense_is_refused(balance: Any) -> None:
    with pytest.raises(ValueError, match="initial_balance"):
        RiskMonitor(None, None, balance, registry=CollectorRegistry())


def test_limits_are_given_once_and_a_wall_clock_must_tell_the_time(tmp_path: Path) -> None:
    path = tmp_path / "risk.yaml"
    path.write_text("")
    with pytest.raises(ValueError, match="once"):
        RiskMonitor(None, path, 1.0, limits=AccountLimits(), registry=CollectorRegistry())
    with pytest.raises(ValueError, match="no time"):
        RiskMonitor(None, None, 1.0, wall_clock=lambda: "noon", registry=CollectorRegistry())


# ---- YAML config


def test_the_names_of_the_limits_and_their_defaults() -> None:
    limits = AccountLimits()
    assert (limits.max_daily_drawdown, limits.drawdown_warning) == (0.02, 0.01)
    assert (limits.max_account_leverage, limits.leverage_warning) == (5.0, 3.0)
    assert (limits.kill_switch_mode, limits.recovery_cooldown_seconds) == ("auto", 60.0)
    for name, field in AccountLimits.model_fields.items():
        assert field.description, name


def faults_of(folder: Path, text: str) -> list[str]:
    path = folder / "risk.yaml"
    path.write_text(text)
    with pytest.raises(RiskFileError) as caught:
        load_account_limits(path)
    return [fault.replace(str(folder), "") for fault in caught.value.faults]


def test_unknown_keys_are_refused_with_what_was_meant(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, "max_daily_drawdon: 0.02\nfoo: 1\n")
    assert faults == [
        "/risk.yaml:1: max_daily_drawdon: there is no such setting; did you mean 'max_daily_drawdown'?",
        "/risk.yaml:2: foo: there is no such setting",
    ]


@pytest.mark.parametrize(("other", "name"), sorted(OTHER_NAMES.items()))
def test_old_and_new_name_of_a_setting_are_each_fine_and_together_refused(
    tmp_path: Path, other: str, name: str
) -> None:
    default = getattr(AccountLimits(), name)
    path = tmp_path / "risk.yaml"
    for one in (other, name):
        path.write_text(f"{one}: {default}\n")
        assert getattr(load_account_limits(path), name) == default
    faults = faults_of(tmp_path, f"{other}: {default}\n{name}: {default}\n")
    assert len(faults) == 1
    assert f"{name} and {other} are two names of one setting; write one of them" in faults[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_daily_drawdown: 0\n", "greater than 0"),
        ("max_daily_drawdown: 1.0\n", "less than 1"),
        ("max_daily_drawdown: .nan\n", "max_daily_drawdown"),
        ("max_account_leverage: .inf\n", "max_account_leverage"),
        ("max_daily_drawdown: '0.02'\n", "max_daily_drawdown"),
        ("leverage_warning: true\n", "leverage_warning"),
        ("drawdown_warning: 0.03\n", "must be at most max_daily_drawdown"),
        ("leverage_warning: 6\n", "must be at most max_account_leverage"),
        ("day_start_utc: '24:00'\n", "day_start_utc"),
        ("kill_switch_mode: off\n", "kill_switch_mode"),
        ("known_symbols: [A, A]\n", "names one symbol twice"),
        ("max_daily_drawdown: 0.02\nmax_daily_drawdown: 0.9\n", "twice"),
        ("- a\n", "settings by name"),
        ("a: [\n", "not YAML"),
    ],
)
def test_settings_that_make_no_sense_are_sentences(tmp_path: Path, text: str, says: str) -> None:
    faults = faults_of(tmp_path, text)
    assert any(says in fault for fault in faults), faults


def test_a_config_that_says_otherwise_than_its_breaker_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "risk.yaml"
    path.write_text("recovery_cooldown_seconds: 30\n")
    breaker = CircuitBreaker(BreakerSettings(recovery_cooldown_seconds=45.0), registry=CollectorRegistry())
    with pytest.raises(RiskFileError, match=r"30\.0 in the limits and 45\.0 in the circuit breaker"):
        RiskMonitor(breaker, path, 1.0, registry=CollectorRegistry())
    made = RiskMonitor(None, path, 1.0, registry=CollectorRegistry())
    assert made.circuit_breaker.settings.recovery_cooldown_seconds == 30.0


# ---- drawdown


def test_drawdown_warns_at_its_warning_level_and_kills_at_its_hard_level() -> None:
    stage = Stage()
    assert stage.tick(39_601.0).alert_level is NORMAL
    assert stage.tick(39_600.0).alert_level is WARNING  # exactly 1 %
    assert stage.breaker.allows()
    assert stage.tick(39_201.0).alert_level is WARNING
    assert stage.breaker.allows()
    state = stage.tick(39_200.0)  # exactly 2 %
    assert (state.alert_level, state.drawdown, state.drawdown_pct) == (CRITICAL, 2_000.0, 2.0)
    assert stage.breaker.state == "ENGAGED"
    assert not stage.breaker.allows()


def test_drawdown_is_measured_from_the_highest_equity_of_the_day_not_from_the_initial_balance() -> None:
    stage = Stage()
    stage.tick(44_000.0)  # 110,000
    state = stage.tick(43_120.0)  # 107,800: 2 % below the peak, and above the initial balance
    assert state.drawdown == 2_200.0
    assert state.alert_level is CRITICAL
    assert stage.breaker.is_engaged()


def test_a_value_at_a_level_counts_however_floats_round() -> None:
    """0.1 + 0.2 is not 0.3 as floats; at the level is at the level, and never a kill well below it."""
    for loss_usd, level in ((2_000.0, CRITICAL), (1_999.99, WARNING), (1_000.0, WARNING), (999.99, NORMAL)):
        stage = Stage(held=False)
        for _ in range(10):
            stage.monitor.on_fill("A", "buy", 0.1, 30_000.1)
            stage.monitor.on_fill("A", "sell", 0.1, round(30_000.1 - loss_usd, 4))
        assert stage.monitor.state().alert_level is level, loss_usd


@pytest.mark.parametrize(
    ("equity", "peak", "exposure", "expected"),
    [
        (98_000.0, 100_000.0, 0.0, {"drawdown": CRITICAL}),
        (98_000.001, 100_000.0, 0.0, {"drawdown": WARNING}),
        (99_000.0, 100_000.0, 0.0, {"drawdown": WARNING}),
        (99_001.0, 100_000.0, 0.0, {}),
        (100_000.0, 100_000.0, 300_000.0, {"leverage": WARNING}),
        (100_000.0, 100_000.0, 299_999.0, {}),
        (100_000.0, 100_000.0, 500_000.0, {"leverage": CRITICAL}),
        (98_000.0, 100_000.0, 490_000.0, {"drawdown": CRITICAL, "leverage": CRITICAL}),
        (0.0, 100_000.0, 0.0, {"drawdown": CRITICAL}),
        (-5.0, 100_000.0, 1.0, {"drawdown": CRITICAL, "leverage": CRITICAL}),
        (-5.0, -5.0, 0.0, {"drawdown": CRITICAL}),
        (math.nan, 100_000.0, 0.0, {"drawdown": CRITICAL}),
        (100_000.0, 100_000.0, math.nan, {"leverage": CRITICAL}),
        (math.nan, math.nan, math.nan, {"drawdown": CRITICAL, "leverage": CRITICAL}),
        (100_000.0, math.inf, 0.0, {"drawdown": CRITICAL}),
    ],
)
def test_the_rule(equity: float, peak: float, exposure: float, expected: dict[str, AlertLevel]) -> None:
    assert {one.measure: one.level for one in findings(equity, peak, exposure, AccountLimits())} == expected


@given(equity=st.floats(-1e6, 1e6), peak=st.floats(1.0, 1e6), exposure=st.floats(0.0, 1e8), more=st.floats(0.0, 1e6))
def test_losing_or_holding_more_never_lowers_the_level(
    equity: float, peak: float, exposure: float, more: float
) -> None:
    rank = {NORMAL: 0, WARNING: 1, CRITICAL: 2}
    limits = AccountLimits()

    def worst(equity_usd: float, exposure_usd: float) -> int:
        found = findings(equity_usd, peak, exposure_usd, limits)
        return max((rank[one.level] for one in found), default=0)

    assert worst(equity - more, exposure) >= worst(equity, exposure)
    assert worst(equity, exposure + more) >= worst(equity, exposure)


def test_a_new_day_counts_the_highest_equity_anew_and_leaves_the_kill_standing() -> None:
    stage = Stage()
    stage.tick(39_200.0)
    assert stage.breaker.is_engaged()
    stage.wait(14.5 * 3_600)  # midnight in UTC
    state = stage.tick(39_200.0)
    assert (state.drawdown, state.alert_level) == (0.0, NORMAL)
    assert stage.breaker.is_engaged()
    days = stage.monitor.get_summary()["days"]
    assert [(day["day"][:10], day["max_drawdown_pct"], day["ticks"]) for day in days] == [
        ("2026-01-31", 2.0, 1), ("2026-02-01", 0.0, 1),
    ]  # fmt: skip
    stage.wait(3 * 86_400)  # days without a tick are not days of their own
    stage.tick(39_200.0)
    assert stage.monitor.get_summary()["days"][-1]["day"][:10] == "2026-02-04"


def test_a_day_begins_where_the_setting_says() -> None:
    assert next_day_start(START, dt.time(10, 0, tzinfo=dt.UTC)) == START.replace(hour=10, minute=0)
    assert next_day_start(START, dt.time(9, 30, tzinfo=dt.UTC)) == START + dt.timedelta(days=1)
    stage = Stage(day_start_utc="09:31")
    stage.tick(39_300.0)
    stage.wait(60)
    assert stage.tick(39_300.0).drawdown == 0.0


@pytest.mark.parametrize("step", [dt.timedelta(days=3), dt.timedelta(days=-3)])
def test_a_wall_clock_that_steps_neither_ends_a_day_nor_lengthens_one(step: dt.timedelta) -> None:
    stage = Stage()
    stage.tick(39_500.0)
    stage.wall_step = step
    assert stage.tick(39_500.0).drawdown == 1_250.0
    stage.wait(14.5 * 3_600)
    assert stage.tick(39_500.0).drawdown == 0.0


def test_a_day_that_begins_with_nothing_left_has_no_new_peak() -> None:
    stage = Stage(balance=1_000.0)
    assert stage.tick(30_000.0).equity < 0
    stage.wait(86_400)
    state = stage.tick(30_000.0)
    assert state.alert_level is CRITICAL
    assert state.drawdown == 1_000.0 - state.equity


def test_a_monitor_that_starts_in_the_middle_of_a_day_can_be_told_its_peak() -> None:
    monitor = RiskMonitor(None, None, 98_000.0, day_peak_usd=100_000.0, registry=CollectorRegistry())
    assert monitor.monitor_tick(PriceTick(BTC, 1.0)).alert_level is CRITICAL


# ---- leverage


def test_leverage_warns_and_kills_and_a_value_at_the_level_counts() -> None:
    stage = Stage()
    assert stage.monitor.on_fill(BTC, "buy", 4.99, 40_000.0).alert_level is NORMAL
    assert stage.monitor.on_fill(BTC, "buy", 0.01, 40_000.0).alert_level is WARNING  # 3.0
    assert stage.breaker.allows()
    assert stage.monitor.on_fill(BTC, "buy", 4.99, 40_000.0).alert_level is WARNING
    assert stage.monitor.on_fill(BTC, "buy", 0.01, 40_000.0).alert_level is CRITICAL  # 5.0
    assert stage.breaker.is_engaged()


def test_reported_leverage_is_capped_at_ten_while_the_true_one_decides() -> None:
    stage = Stage(max_account_leverage=50.0)
    state = stage.monitor.on_fill(BTC, "buy", 47.5, 40_000.0)  # 20 times
    assert (state.leverage, state.alert_level) == (10.0, WARNING)
    assert stage.sample("leverage_ratio") == 20.0
    assert stage.monitor.get_summary()["true_leverage"] == 20.0
    state = stage.monitor.on_fill(BTC, "buy", 75.0, 40_000.0)  # 50 times
    assert (state.leverage, state.alert_level) == (10.0, CRITICAL)
    assert stage.breaker.is_engaged()


def test_a_position_with_no_equity_left_is_infinite_leverage() -> None:
    assert true_leverage(1.0, 0.0) == math.inf
    assert true_leverage(0.0, 0.0) == 0.0
    assert drawdown_ratio(0.0, 0.0) == 1.0
    stage = Stage(balance=1_000.0, held=False)
    stage.monitor.on_fill(BTC, "buy", 0.05, 40_000.0)
    state = stage.tick(20_000.0)
    assert (state.leverage, state.equity) == (10.0, 0.0)
    assert json.loads(json.dumps(stage.monitor.get_summary()))["true_leverage"] == "inf"


def test_shorts_count_as_much_as_longs_and_lose_when_the_price_rises() -> None:
    stage = Stage(held=False)
    stage.monitor.on_fill(BTC, "sell", 2.5, 40_000.0)
    stage.monitor.on_fill("ETHUSDT", "buy", 10.0, 3_000.0)
    state = stage.tick(40_400.0)
    assert state.positions == {BTC: -2.5, "ETHUSDT": 10.0}
    assert (state.open_pnl, state.total_exposure) == (-1_000.0, 131_000.0)
    assert state.alert_level is WARNING


# ---- after the kill


def test_monitoring_goes_on_after_the_kill() -> None:
    stage = Stage()
    prices = (39_000.0, 38_000.0, 37_000.0)
    assert [stage.tick(price).drawdown for price in prices] == [2_500.0, 5_000.0, 7_500.0]
    stage.monitor.on_fill(BTC, "sell", 2.5, 37_000.0)  # a fill is a fact
    assert stage.monitor.state().positions == {}
    assert stage.sample("ticks_total") == 3
    assert len(stage.freezes) == 1


def test_a_drawdown_is_released_by_a_person_alone_and_kills_again_when_it_is_still_there() -> None:
    stage = Stage()
    stage.tick(39_000.0)
    stage.wait(1e6)
    stage.breaker.release("ann", "too early", engagement=stage.breaker.engagement)
    assert stage.breaker.allows()
    stage.wait(60)
    stage.monitor.monitor_tick(PriceTick(BTC, 39_000.0))
    assert stage.breaker.allows()  # a new day had begun
    stage.tick(38_000.0)
    assert stage.breaker.is_engaged()
    stage.breaker.release("ann", "too early again", engagement=stage.breaker.engagement)
    stage.tick(38_000.0)
    assert stage.breaker.is_engaged()
    assert len(stage.freezes) == 3


# ---- forensics


def test_every_engagement_is_kept_and_logged_with_the_account_before_and_after(logs: list[dict[str, Any]]) -> None:
    stage = Stage()
    before = stage.tick(39_300.0)
    after = stage.tick(39_100.0)
    (record,) = stage.monitor.forensics()
    assert (record.before, record.after) == (before, after)
    assert (record.mode, list(record.causes)) == ("ENGAGED", ["drawdown"])
    for state in (record.before, record.after):
        assert RFC_3339_MICROSECONDS.match(state.timestamp)
    (line,) = [line for line in logs if line["event"] == "the account around an engagement"]
    assert line["log_level"] == "critical"
    assert line["before"]["drawdown"] == before.drawdown
    assert line["after"]["drawdown"] == after.drawdown
    assert json.dumps(record.to_json())


def test_an_engagement_by_somebody_else_is_kept_with_the_ticks_around_it() -> None:
    stage = Stage()
    before = stage.tick(40_001.0)
    stage.breaker.engage("stop", kind="manual")
    after = stage.tick(40_002.0)
    (record,) = stage.monitor.forensics()
    assert (record.before, record.after, record.causes) == (before, after, {"manual": "stop"})
    assert stage.freezes == []  # not this monitor's
    stage.breaker.release("ann", engagement=stage.breaker.engagement)
    stage.breaker.engage("again", kind="manual")  # and no tick comes after it
    assert [one.causes for one in stage.monitor.forensics()] == [{"manual": "stop"}, {"manual": "again"}]
    assert stage.monitor.get_summary()["engagements_total"] == 2


def test_forensics_days_and_events_have_a_bound() -> None:
    stage = Stage(forensics_kept=3, days_kept=2)
    for _ in range(6):
        stage.wait(86_400)
        stage.tick(40_000.0)
        stage.breaker.engage("stop", kind="manual")
        stage.tick(40_000.0)
        stage.breaker.release("ann", engagement=stage.breaker.engagement)
    assert len(stage.monitor.forensics()) == 3
    summary = stage.monitor.get_summary()
    assert summary["engagements_total"] == 6
    assert len(summary["days"]) == 3  # and today


# ---- on_freeze, metrics, summary


def test_on_freeze_is_told_each_kill_once_with_its_figures() -> None:
    stage = Stage()
    for price in (39_100.0, 39_000.0, 38_900.0):
        stage.tick(price)
    (event,) = stage.freezes
    assert (event.trigger, event.metadata["cause"]) == ("limit_violation", "drawdown")
    assert event.metadata["value"] == pytest.approx(0.0225)
    assert event.metadata["limit"] == 0.02
    assert event.metadata["equity_usd"] == 97_750.0
    assert "2.2500%" in event.reason
    stage.monitor.on_fill(BTC, "buy", 20.0, 38_900.0)  # a second cause, while killed
    assert [one.metadata["cause"] for one in stage.freezes] == ["drawdown", "leverage"]
    assert stage.registry.get_sample_value("freeze_triggered_total", {"reason": "limit_violation"}) == 2


def test_on_freeze_that_raises_does_not_undo_the_kill(logs: list[dict[str, Any]]) -> None:
    def broken(_event: FreezeEvent) -> None:
        raise RuntimeError("no cluster")

    monitor = RiskMonitor(None, None, 100_000.0, on_freeze=broken, registry=CollectorRegistry())
    monitor.on_fill(BTC, "buy", 16.0, 40_000.0)
    assert monitor.circuit_breaker.is_engaged()
    assert any(line["event"] == "the kill could not be passed on" for line in logs)


def test_there_is_a_metric_for_each_figure() -> None:
    stage = Stage()
    stage.tick(39_400.0)
    assert [stage.sample(name) for name in ("equity_usd", "balance_usd", "peak_equity_usd", "open_pnl_usd")] == [
        98_500.0, 100_000.0, 100_000.0, -1_500.0,
    ]  # fmt: skip
    assert [stage.sample(name) for name in ("exposure_usd", "drawdown_usd", "drawdown_ratio", "alert_level")] == [
        98_500.0, 1_500.0, 0.015, 1,
    ]  # fmt: skip
    assert stage.sample("alerts_total", measure="drawdown", level="WARNING") == 1
    assert stage.sample("alerts_total", measure="leverage", level="CRITICAL") == 0
    stage.tick(math.nan)
    assert (stage.sample("ticks_total"), stage.sample("fills_total"), stage.sample("bad_inputs_total")) == (2, 1, 1)
    assert stage.sample("engagements_total") == 1


def test_levels_are_counted_and_logged_when_they_are_reached_not_on_every_tick(logs: list[dict[str, Any]]) -> None:
    stage = Stage()
    for price in (39_500.0, 39_490.0, 40_000.0, 39_500.0, 39_500.0):
        stage.tick(price)
    assert stage.sample("alerts_total", measure="drawdown", level="WARNING") == 2
    told = [line for line in logs if line["event"] == "account level reached"]
    assert len(told) == 1  # the second came within a second
    stage.tick(40_000.0)
    stage.wait(1.0)
    stage.tick(39_500.0)
    assert len([line for line in logs if line["event"] == "account level reached"]) == 2


def test_the_summary_says_everything_as_json() -> None:
    stage = Stage()
    stage.tick(39_400.0)
    stage.tick(39_000.0)
    summary = json.loads(json.dumps(stage.monitor.get_summary(), allow_nan=False))
    assert summary["warnings_total"] == {"drawdown": 1, "leverage": 0, "marks": 0}
    assert summary["breaches_total"] == {"drawdown": 1, "leverage": 0, "marks": 0}
    assert summary["circuit_breaker"]["state"] == "ENGAGED"
    assert summary["circuit_breaker"]["causes"]["drawdown"].startswith("drawdown 2.5")
    assert summary["last_engagement"]["after"]["drawdown"] == 2_500.0
    assert summary["days"][-1]["first_at"].keys() == {"drawdown WARNING", "drawdown CRITICAL"}
    assert summary["state"]["alert_level"] == "CRITICAL"


# ---- UNKNOWN IS FROZEN

BAD_PRICES = [
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -1.0,
    1.1e15,
    "40000",
    None,
    True,
    [],
    pytest.param(10**400, id="huge"),
]


@pytest.mark.parametrize("price", BAD_PRICES)
def test_unknown_is_frozen__a_price_that_makes_no_sense_pauses_at_once_and_changes_no_figure(price: Any) -> None:
    stage = Stage()
    before = stage.tick(40_010.0)
    state = stage.tick(price)
    assert state.alert_level is CRITICAL
    assert state[1:-1] == before[1:-1]
    assert not stage.breaker.allows()
    assert stage.freezes == []  # a pause is no kill yet
    stage.tick(price)
    stage.tick(price)
    assert [one.metadata["cause"] for one in stage.freezes] == ["monitor_error"]


BAD_NAMES: list[Any] = ["", None, [], "X" * 129]
BAD_CLOSED: list[Any] = ["0", 1e16, None]
NO_MAPPING: Any = None
BAD_HOLDINGS: list[Any] = [
    (1.0, 1.0, 1.0), Holding(math.nan, 1.0, 1.0), Holding(1.0, 0.0, 1.0), Holding(1.0, 1.0, math.inf),
    Holding(2e15, 1.0, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(
    "tick",
    [
        None, 7, {}, "tick", (BTC, 40_000.0), *(PriceTick(name, 1.0) for name in BAD_NAMES),
        AccountTick(math.nan, {}), *(AccountTick(closed, {}) for closed in BAD_CLOSED), AccountTick(0.0, NO_MAPPING),
        *(AccountTick(0.0, {"A": holding}) for holding in BAD_HOLDINGS), AccountTick(0.0, {"": Holding(1.0, 1.0, 1.0)}),
    ],
)  # fmt: skip
def test_unknown_is_frozen__anything_that_is_no_tick_is_a_breach_and_nothing_raises(tick: Any) -> None:
    stage = Stage()
    state = stage.monitor.monitor_tick(tick)
    assert (state.alert_level, state.positions) == (CRITICAL, {BTC: 2.5})
    assert not stage.breaker.allows()
    assert stage.sample("bad_inputs_total") == 1


def test_unknown_is_frozen__a_symbol_that_is_not_known_and_too_many_symbols() -> None:
    stage = Stage(known_symbols=(BTC,))
    assert stage.tick(3_000.0, "ETHUSDT").alert_level is CRITICAL
    assert stage.monitor.on_fill("ETHUSDT", "buy", 1.0, 3_000.0).positions == {BTC: 2.5}
    assert stage.breaker.is_engaged()
    free = Stage()
    assert free.tick(3_000.0, "ETHUSDT").alert_level is NORMAL  # every symbol is known, this one is not held
    few = Stage(max_symbols=1)
    assert few.monitor.on_fill("ETHUSDT", "buy", 1.0, 3_000.0).positions == {BTC: 2.5}
    assert few.breaker.is_engaged()
    assert few.monitor.monitor_tick(
        AccountTick(0.0, {name: Holding(1.0, 1.0, 1.0) for name in "AB"})
    ).alert_level is CRITICAL  # fmt: skip


@pytest.mark.parametrize(
    ("side", "qty", "price"),
    [("hold", 1.0, 1.0), (None, 1.0, 1.0), ("buy", 0.0, 1.0), ("buy", math.nan, 1.0), ("buy", 1.0, 0.0),
     ("buy", 1.1e15, 1.0), ("sell", 1.0, math.inf), ("buy", True, 1.0), ("buy", "1", 1.0)],
)  # fmt: skip
def test_unknown_is_frozen__a_bad_fill_is_not_added_and_engages_until_a_person_has_looked(
    side: Any, qty: Any, price: Any
) -> None:
    stage = Stage()
    state = stage.monitor.on_fill(BTC, side, qty, price)
    assert (state.alert_level, state.positions) == (CRITICAL, {BTC: 2.5})
    stage.wait(1e6)
    for _ in range(50):
        stage.tick(40_000.0)
    assert stage.breaker.is_engaged()
    assert [cause.kind.value for cause in stage.breaker.snapshot().causes] == ["unknown"]
    assert [one.metadata["cause"] for one in stage.freezes] == ["monitor_error"]


def test_a_feed_that_comes_back_recovers_by_itself() -> None:
    stage = Stage()
    for _ in range(3):
        stage.tick(math.nan)
    assert stage.breaker.is_engaged()
    stage.wait(60)
    for _ in range(3):
        stage.tick(40_000.0)
    assert stage.breaker.state == "HALF_OPEN"
    for _ in range(5):
        stage.tick(40_000.0)
    assert stage.breaker.state == "SAFE"
    assert stage.monitor.state().alert_level is NORMAL


@pytest.mark.parametrize("which", ["_clock", "_wall_clock"])
def test_unknown_is_frozen__a_clock_that_raises_is_a_breach_and_nothing_raises(which: str) -> None:
    stage = Stage()

    def broken() -> Any:
        raise OSError("no clock")

    good = getattr(stage.monitor, which)
    setattr(stage.monitor, which, broken)
    state = stage.monitor.monitor_tick(PriceTick(BTC, 40_000.0))
    assert state.alert_level is CRITICAL
    assert not stage.breaker.allows()
    assert [cause.kind.value for cause in stage.breaker.snapshot().causes] == ["data"]
    setattr(stage.monitor, which, good)
    assert stage.monitor.monitor_tick(PriceTick(BTC, 40_000.0)).alert_level is NORMAL


@pytest.mark.parametrize("asked", ["tick", "look"])
def test_unknown_is_frozen__a_hard_level_is_told_though_the_clock_for_people_fails(asked: str) -> None:
    stage = Stage()

    def failing() -> str:
        raise OSError("no time")

    stage.monitor._wall_clock = failing
    state = stage.tick(30_000.0) if asked == "tick" else None
    if asked == "look":
        stage.monitor._book.mark(stage.monitor._book.lines[BTC], 30_000.0, stage.ns)
        state = stage.monitor.look()
    assert state is not None
    assert state.alert_level is CRITICAL
    causes = {cause.kind.value: cause.latched for cause in stage.breaker.snapshot().causes}
    assert causes == {"data": False, "drawdown": True}
    assert [event.metadata["cause"] for event in stage.freezes] == ["drawdown"]


def test_unknown_is_frozen__a_monitor_that_fails_engages(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    monkeypatch.setattr(stage.monitor._actions, "_log", lambda *_: 1 / 0)
    stage.tick(39_500.0)
    assert [cause.kind.value for cause in stage.breaker.snapshot().causes] == ["unknown"]
    assert not stage.breaker.allows()


def test_a_position_is_valued_at_its_last_fill_until_a_price_comes_and_the_summary_says_so() -> None:
    stage = Stage()
    assert stage.monitor.on_fill(BTC, "buy", 0.5, 40_400.0).total_exposure == 3.0 * 40_400.0
    assert stage.monitor.get_summary()["valued_at_last_fill"] == [BTC]
    assert stage.tick(40_100.0).total_exposure == 3.0 * 40_100.0
    assert stage.monitor.on_fill(BTC, "buy", 0.5, 40_400.0).total_exposure == 3.5 * 40_100.0
    assert stage.monitor.get_summary()["valued_at_last_fill"] == []


# ---- the age of marks


def other_ticks(stage: Stage, *, minutes: int) -> AccountState:
    """Only prices of a symbol that is not held, one a second."""
    for _ in range(60 * minutes):
        stage.wait(1.0)
        stage.monitor.monitor_tick(PriceTick("ETHUSDT", 3_000.0))
    return stage.monitor.state()


@pytest.mark.parametrize(("marked", "told"), [(True, "its newest mark is"), (False, "no mark of it has ever come")])
def test_unknown_is_frozen__a_held_symbol_whose_mark_is_too_old_or_never_came(marked: bool, told: str) -> None:
    stage = Stage()
    if marked:
        stage.tick(40_000.0)
    assert other_ticks(stage, minutes=1).alert_level is NORMAL, "exactly the age is allowed"
    assert stage.breaker.allows()
    for seconds in range(1, 4):
        stage.wait(1.0)
        assert stage.monitor.monitor_tick(PriceTick("ETHUSDT", 3_000.0)).alert_level is CRITICAL
        assert not stage.breaker.allows()
        (cause,) = stage.breaker.snapshot().causes
        assert (cause.kind.value, cause.latched) == ("data", seconds == 3)
    assert told in cause.reason
    assert "60000 ms are allowed" in cause.reason
    (freeze,) = stage.freezes
    assert (freeze.metadata["cause"], freeze.metadata["limit"]) == ("marks", 60_000.0)
    assert other_ticks(stage, minutes=100).alert_level is CRITICAL
    assert stage.sample("alerts_total", measure="marks", level="CRITICAL") == 1.0


def test_ticks_of_other_symbols_confirm_an_old_mark_by_the_second_and_not_by_the_tick() -> None:
    stage = Stage()
    stage.wait(61.0)
    for _ in range(100):
        stage.tick(3_000.0, "ETHUSDT")
    (cause,) = stage.breaker.snapshot().causes
    assert not cause.latched
    stage.tick(40_000.0)
    stage.wait(5.0)
    assert stage.tick(40_000.0).alert_level is NORMAL
    assert stage.breaker.allows(), "a pause lifts itself once its own mark has come"
    assert stage.freezes == []


def test_an_old_mark_that_comes_again_recovers_by_itself() -> None:
    stage = Stage()
    other_ticks(stage, minutes=2)
    assert stage.breaker.is_engaged()
    stage.wait(60)
    for _ in range(8):
        assert stage.tick(40_000.0).alert_level is NORMAL
    assert stage.breaker.state == "SAFE"


@pytest.mark.parametrize("marked", [True, False])
def test_an_old_mark_does_what_the_limits_say(marked: bool) -> None:
    mild = {"mark_stale" if marked else "mark_missing": "warning"}
    stage = Stage(mark_max_age_ms=5_000, **mild)
    if marked:
        stage.tick(40_000.0)
    assert other_ticks(stage, minutes=1).alert_level is WARNING
    assert stage.breaker.allows()
    off = Stage(mark_max_age_ms=None)
    assert other_ticks(off, minutes=100).alert_level is NORMAL


def test_a_symbol_that_is_not_held_any_more_has_no_age_and_one_that_is_held_again_has_a_new_one() -> None:
    stage = Stage()
    stage.tick(40_000.0)
    other_ticks(stage, minutes=2)
    assert stage.monitor.on_fill(BTC, "sell", 2.5, 40_000.0).alert_level is NORMAL
    assert stage.monitor.on_fill(BTC, "buy", 1.0, 40_000.0).alert_level is NORMAL
    assert other_ticks(stage, minutes=1).alert_level is NORMAL
    assert other_ticks(stage, minutes=1).alert_level is CRITICAL


def test_unknown_is_frozen__a_feed_that_is_silent_altogether_is_found_by_a_look() -> None:
    stage = Stage()
    stage.tick(40_000.0)
    stage.wait(60.0)
    assert stage.monitor.look().alert_level is NORMAL
    for _ in range(3):
        stage.wait(1.0)
        assert stage.monitor.look().alert_level is CRITICAL
    assert [one.metadata["cause"] for one in stage.freezes] == ["marks"]
    ticks = stage.monitor.get_summary()["ticks_total"]
    stage.monitor._clock = lambda: 1 // 0
    assert stage.monitor.look().alert_level is CRITICAL
    assert stage.monitor.get_summary()["ticks_total"] == ticks


def test_unknown_is_frozen__a_fill_that_no_clock_saw_coming_has_no_age() -> None:
    stage = Stage(held=False)
    good, stage.monitor._clock = stage.monitor._clock, lambda: 1 // 0
    stage.monitor.on_fill(BTC, "buy", 1.0, 40_000.0)
    stage.monitor._clock = good
    state = stage.tick(3_000.0, "ETHUSDT")
    assert (state.positions, state.alert_level) == ({BTC: 1.0}, CRITICAL)
    assert stage.tick(40_000.0).alert_level is NORMAL


def test_unknown_is_frozen__a_clock_that_went_back_leaves_no_age_known() -> None:
    stage = Stage()
    stage.wait(100.0)
    stage.tick(40_000.0)
    stage.ns -= 50 * 10**9
    assert stage.tick(3_000.0, "ETHUSDT").alert_level is CRITICAL


def test_of_ten_thousand_symbols_the_oldest_is_found_and_only_it() -> None:
    stage = Stage(held=False, balance=1e9)
    names = [f"S{number}" for number in range(10_000)]
    stage.monitor.monitor_tick(AccountTick(0.0, {name: Holding(1.0, 1.0, 1.0) for name in names}))
    stage.wait(30.0)
    for name in names[1:]:
        stage.monitor.monitor_tick(PriceTick(name, 1.0))
    stage.wait(29.0)
    assert stage.tick(1.0, "S5").alert_level is NORMAL
    stage.wait(2.0)  # a 64th of the age later at most
    assert stage.tick(1.0, "S5").alert_level is CRITICAL
    (cause,) = stage.breaker.snapshot().causes
    assert cause.reason.startswith("S0: its newest mark is")
    assert "S1" not in cause.reason


def test_a_shorter_age_holds_at_once() -> None:
    stage = Stage()
    stage.tick(40_000.0)
    stage.wait(30.0)
    stage.monitor.set_limits(AccountLimits(mark_max_age_ms=10_000))
    assert stage.monitor.state().alert_level is CRITICAL
    assert not stage.breaker.allows()


# ---- an account as its keeper tells it


def test_an_account_tick_replaces_what_was_known() -> None:
    stage = Stage()
    tick = AccountTick(-500.0, {"ETHUSDT": Holding(-10.0, 3_000.0, 3_050.0), "FLAT": Holding(0.0, 1.0, 1.0)})
    state = stage.monitor.monitor_tick(tick)
    assert (state.closed_pnl, state.open_pnl, state.total_exposure) == (-500.0, -500.0, 30_500.0)
    assert state.positions == {"ETHUSDT": -10.0}
    assert state.alert_level is WARNING  # 1 % is lost
    assert stage.tick(2_950.0, "ETHUSDT").open_pnl == 500.0
    assert stage.tick(1.0).total_exposure == 29_500.0  # the price of what is no longer held


# ---- floating-point honesty

FILLS = st.lists(
    st.tuples(
        st.sampled_from(["A", "B"]),
        st.sampled_from(["buy", "sell"]),
        st.integers(1, 10**6).map(lambda n: n / 1_000),
        st.integers(1, 10**7).map(lambda n: n / 100),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(fills=FILLS, marks=st.tuples(st.integers(1, 10**7), st.integers(1, 10**7)))
def test_total_profit_is_cash_plus_value_whatever_the_fills(
    fills: list[tuple[str, str, float, float]], marks: tuple[int, int]
) -> None:
    """Independently of average costs: what was paid, what was got, and what the rest is worth."""
    monitor = RiskMonitor(None, None, 1e9, registry=CollectorRegistry())
    cash, held = Decimal(0), {"A": Decimal(0), "B": Decimal(0)}
    for symbol, side, qty, price in fills:
        monitor.on_fill(symbol, side, qty, price)
        change = Decimal(str(qty)) if side == "buy" else -Decimal(str(qty))
        cash -= change * Decimal(str(price))
        held[symbol] += change
    for symbol, mark in zip("AB", marks, strict=True):
        monitor.monitor_tick(PriceTick(symbol, mark / 100))
    state = monitor.state()
    worth = sum((held[symbol] * mark / 100 for symbol, mark in zip("AB", marks, strict=True)), Decimal(0))
    assert state.total_pnl == pytest.approx(float(cash + worth), rel=1e-9, abs=1e-3)
    exposure = sum((abs(held[symbol]) * mark / 100 for symbol, mark in zip("AB", marks, strict=True)), Decimal(0))
    # What the rounding between two sums is relative to: the most that can have been held, at the highest price.
    largest = sum(qty for _, _, qty, _ in fills) * max([price for *_, price in fills] + [mark / 100 for mark in marks])
    assert state.total_exposure == pytest.approx(float(exposure), rel=1e-12, abs=largest * 1e-13)
    assert state.positions == {symbol: float(quantity) for symbol, quantity in held.items() if quantity}


def test_ten_thousand_fills_agree_with_decimal_and_leave_nothing_when_flat() -> None:
    rng = random.Random(7)
    monitor = RiskMonitor(None, None, 1e9, registry=CollectorRegistry())
    cash, held = Decimal(0), Decimal(0)
    for _ in range(10_000):
        side, qty, price = rng.choice(("buy", "sell")), rng.randint(1, 999) / 1_000, rng.randint(1, 10**7) / 100
        monitor.on_fill("A", side, qty, price)
        change = Decimal(str(qty)) if side == "buy" else -Decimal(str(qty))
        cash, held = cash - change * Decimal(str(price)), held + change
    closing = "sell" if held > 0 else "buy"
    monitor.on_fill("A", closing, float(abs(held)), 12.34)
    cash += held * Decimal("12.34")
    state = monitor.state()
    assert (state.positions, state.total_exposure, state.open_pnl) == ({}, 0.0, 0.0)
    assert state.balance == float(Decimal(10**9) + cash)


def test_what_rounding_left_is_gone_after_a_few_hundred_marks() -> None:
    """Running totals of floats keep the rounding of the largest figure that was ever in them; these forget it."""
    monitor = RiskMonitor(None, None, 1e9, registry=CollectorRegistry())
    for name in ("A", "B"):
        monitor.on_fill(name, "buy", 0.3, 100.1)
    for price in (1e14 / 3, 0.1):
        monitor.monitor_tick(PriceTick("A", price))
    for number in range(MARKS_BETWEEN_SUMS):
        monitor.monitor_tick(PriceTick("B", 0.1 + number))
    state = monitor.monitor_tick(PriceTick("B", 0.2))
    assert state.total_exposure == pytest.approx(0.3 * 0.1 + 0.3 * 0.2, rel=1e-12)
    assert state.open_pnl == pytest.approx(0.3 * 0.1 + 0.3 * 0.2 - 2 * 0.3 * 100.1, rel=1e-12)


# ---- threads


def test_eight_threads_lose_no_tick_and_no_fill() -> None:
    monitor = RiskMonitor(
        None, None, 1e9, limits=AccountLimits(max_account_leverage=9_000.0), registry=CollectorRegistry()
    )

    def fill() -> None:
        for _ in range(1_000):
            monitor.on_fill("A", "buy", 0.1, 100.0)

    def tick() -> None:
        for _ in range(1_000):
            monitor.monitor_tick(PriceTick("A", 100.0))

    together(*(fill, tick) * 4)
    summary = monitor.get_summary()
    assert (summary["ticks_total"], summary["fills_total"], summary["bad_inputs_total"]) == (4_000, 4_000, 0)
    assert summary["state"]["positions"] == {"A": 400.0}


# ---- the package


def test_the_package_names_what_a_user_of_the_monitor_needs() -> None:
    wanted = {
        "RiskMonitor", "AccountState", "AccountLimits", "AlertLevel", "PriceTick", "AccountTick", "Holding",
        "CircuitBreaker", "BreakerSettings", "BreakerMode", "ReasonClass", "ReleaseRefused",
    }  # fmt: skip
    assert wanted <= set(risk.__all__)
    assert risk.RiskMonitor is RiskMonitor

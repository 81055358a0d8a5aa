"""The limits of an account change while it is watched: judged anew at once, and what is known stays."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest

from killswitch.risk.account.account_monitor import RiskMonitor
from killswitch.risk.account.account_state import AlertLevel, PriceTick
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.breaker.breaker_machine import BreakerMode
from killswitch.risk.breaker.breaker_settings import BreakerSettings, ReasonClass
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
from killswitch.simulation.staged_account import StagedAccount

START = dt.datetime(2026, 1, 31, 9, 30, tzinfo=dt.UTC)
SAFE, ENGAGED = BreakerMode.SAFE, BreakerMode.ENGAGED
LIMITS = AccountLimits(max_daily_drawdown=0.10, drawdown_warning=0.05)


def account(limits: AccountLimits = LIMITS) -> StagedAccount:
    """100,000 USD, one BTC held from 100,000 USD on, so that the leverage is 1."""
    stage = StagedAccount(START, 100_000.0, limits)
    stage.fill("BTC", "buy", 1.0, 100_000.0)
    return stage


def changed(**values: Any) -> AccountLimits:
    return AccountLimits(**{"max_daily_drawdown": 0.10, "drawdown_warning": 0.05, **values})


def test_a_tighter_limit_that_is_breached_already_engages_before_the_call_returns() -> None:
    stage = account()
    stage.price("BTC", 97_000.0)  # 3 % lost
    assert (stage.breaker.state, stage.monitor.state().alert_level) == (SAFE, AlertLevel.NORMAL)
    stage.monitor.set_limits(changed(max_daily_drawdown=0.03, drawdown_warning=0.02))
    assert stage.breaker.state is ENGAGED
    assert stage.monitor.state().alert_level is AlertLevel.CRITICAL
    assert [(one.trigger, one.metadata["cause"]) for one in stage.freezes] == [("limit_violation", "drawdown")]
    record = stage.monitor.forensics()[-1]
    assert (record.before.alert_level, record.after.alert_level) == (AlertLevel.NORMAL, AlertLevel.CRITICAL)
    stage = account()
    stage.monitor.set_limits(changed(max_account_leverage=1.0, leverage_warning=0.5))
    assert stage.breaker.snapshot().cause(ReasonClass.POSITION) is not None


def test_the_next_tick_is_judged_by_the_new_levels() -> None:
    stage = account()
    stage.monitor.set_limits(changed(max_daily_drawdown=0.03, drawdown_warning=0.02))
    assert stage.breaker.state is SAFE
    assert stage.price("BTC", 97_990.0).alert_level is AlertLevel.WARNING
    assert stage.price("BTC", 97_000.0).alert_level is AlertLevel.CRITICAL
    assert stage.breaker.state is ENGAGED


def test_looser_limits_release_nothing_and_are_no_good_reading() -> None:
    transient = {"transient_classes": ("drawdown",), "recovery_good_readings": 1, "recovery_cooldown_seconds": 1.0}
    stage = account(changed(max_daily_drawdown=0.03, drawdown_warning=0.02, **transient))
    stage.price("BTC", 97_000.0)
    assert stage.breaker.state is ENGAGED
    stage.wait(10.0)
    for _ in range(5):
        stage.monitor.set_limits(changed(max_daily_drawdown=0.5, **transient))
        stage.monitor.set_limits(changed(max_daily_drawdown=0.6, **transient))
    assert stage.monitor.state().alert_level is AlertLevel.NORMAL
    assert stage.breaker.state is ENGAGED
    cause = stage.breaker.snapshot().cause(ReasonClass.DRAWDOWN)
    assert cause is not None
    assert cause.good_readings == 0


def test_the_peak_the_days_and_the_forensics_stay() -> None:
    stage = account()
    stage.price("BTC", 110_000.0)
    stage.price("BTC", 98_000.0)  # 10.9 % below the peak: engaged
    before = stage.monitor.get_summary()
    stage.monitor.set_limits(changed(max_daily_drawdown=0.20))
    after = stage.monitor.get_summary()
    assert stage.monitor.state().drawdown == 12_000.0
    for name in ("peak_equity_usd", "ticks_total", "fills_total", "days", "last_engagement", "engagements_total"):
        assert after[name] == before[name], name
    stage.monitor.set_limits(changed(max_daily_drawdown=0.10, forensics_kept=1))
    assert len(stage.monitor.forensics()) == 1


def test_a_bad_tick_stays_critical_under_other_limits() -> None:
    stage = account()
    stage.price("BTC", float("nan"))
    assert stage.monitor.state().alert_level is AlertLevel.CRITICAL
    for _ in range(2):
        stage.monitor.set_limits(changed(max_daily_drawdown=0.9))
        assert stage.monitor.state().alert_level is AlertLevel.CRITICAL
        stage.monitor.set_limits(changed(max_daily_drawdown=0.8))
    assert stage.price("BTC", 100_000.0).alert_level is AlertLevel.NORMAL


def test_another_day_start_never_ends_the_running_day_sooner() -> None:
    stage = account()
    stage.price("BTC", 110_000.0)
    stage.price("BTC", 105_000.0)
    stage.monitor.set_limits(changed(day_start_utc="09:31"))  # in one minute; the day ended at midnight
    stage.advance_to(START + dt.timedelta(hours=23, minutes=59))
    stage.price("BTC", 105_000.0)
    assert stage.monitor.get_summary()["peak_equity_usd"] == 110_000.0
    stage.advance_to(START + dt.timedelta(days=1, minutes=1))
    stage.price("BTC", 105_000.0)
    summary = stage.monitor.get_summary()
    assert summary["peak_equity_usd"] == 105_000.0
    assert [day["day"] for day in summary["days"]] == ["2026-01-31T00:00:00+00:00", "2026-02-01T09:31:00+00:00"]
    stage.advance_to(START + dt.timedelta(days=2, minutes=1))
    stage.price("BTC", 100_000.0)
    assert stage.monitor.get_summary()["days"][-1]["day"] == "2026-02-02T09:31:00+00:00"


def test_a_symbol_that_is_held_stays_known_so_that_one_can_get_out() -> None:
    stage = account(changed(known_symbols=("BTC", "ETH")))
    stage.monitor.set_limits(changed(known_symbols=("SOL",)))
    stage.price("BTC", 100_001.0)
    stage.fill("BTC", "sell", 1.0, 100_001.0)
    assert stage.breaker.state is SAFE
    stage.fill("ETH", "buy", 1.0, 10.0)
    assert stage.breaker.state is ENGAGED


def test_state_file_and_file_lock_are_refused_by_name_and_nothing_changes(logs: Any) -> None:
    for value, name in (({"state_file": "/tmp/other"}, "state_file"), ({"file_lock": False}, "file_lock")):
        stage = account()
        stage.price("BTC", 97_000.0)
        with pytest.raises(ValueError, match=rf"^{name} from .* cannot change while the process runs; start it again"):
            stage.monitor.set_limits(changed(max_daily_drawdown=0.01, drawdown_warning=0.01, **value))
        assert stage.monitor.limits is stage.limits
        assert stage.breaker.state is SAFE
    assert not [line for line in logs if "changed" in line["event"]]


def test_the_breakers_part_goes_to_it_and_its_own_settings_stay() -> None:
    breaker = CircuitBreaker(BreakerSettings(recovery_cooldown_seconds=7.0, half_open_probes=2))
    monitor = RiskMonitor(breaker, None, 1_000.0, limits=AccountLimits(half_open_probes=2))
    monitor.set_limits(AccountLimits(provisional_hold_seconds=9.0))
    # Its own stays, what was written before and is no more goes back to the default.
    assert breaker.settings.recovery_cooldown_seconds == 7.0
    assert (breaker.settings.provisional_hold_seconds, breaker.settings.half_open_probes) == (9.0, 5)
    with pytest.raises(ValueError, match=r"does not fit together: max_cooldown_seconds \(6\)"):
        monitor.set_limits(
            AccountLimits(max_cooldown_seconds=6.0, recovery_cooldown_seconds=6.0, max_daily_drawdown=0.5).model_copy(
                update={"recovery_cooldown_seconds": 60.0}
            )
        )
    assert breaker.settings.provisional_hold_seconds == 9.0
    assert monitor.limits.max_daily_drawdown == 0.02


def test_one_warning_line_names_what_changed(logs: Any) -> None:
    class More(AccountLimits):
        other: int = 1

    stage = account()
    stage.monitor.set_limits(More(max_daily_drawdown=0.2, drawdown_warning=0.05, half_open_probes=7, other=2))
    lines = {line["event"]: line for line in logs if line["event"].endswith("changed")}
    assert {line["log_level"] for line in lines.values()} == {"warning"}
    assert lines["account limits changed"]["changed"] == [
        {"name": "half_open_probes", "before": 5, "after": 7},
        {"name": "max_daily_drawdown", "before": 0.1, "after": 0.2},
    ]
    assert lines["circuit breaker settings changed"]["changed"] == [
        {"name": "half_open_probes", "before": 5, "after": 7}
    ]


def test_four_threads_of_ticks_while_the_limits_flip_lose_no_count() -> None:
    stage = account(changed(max_daily_drawdown=0.9, max_account_leverage=9.0))
    each = 1_500
    faults: list[BaseException] = []

    def tick(thread: int) -> None:
        try:
            for number in range(each):
                stage.monitor.monitor_tick(PriceTick("BTC", 100_000.0 + number % 7))
                stage.monitor.on_fill(f"S{thread}", "buy", 1.0, 1.0)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=tick, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    flips = 0
    while any(thread.is_alive() for thread in threads):
        stage.monitor.set_limits(
            changed(max_daily_drawdown=0.8, max_account_leverage=8.0, forensics_kept=flips % 9 + 1)
        )
        stage.monitor.set_limits(changed(max_daily_drawdown=0.9, half_open_probes=flips % 5 + 1))
        flips += 1
    assert faults == []
    assert flips > 10
    summary = stage.monitor.get_summary()
    assert (summary["ticks_total"], summary["fills_total"], summary["bad_inputs_total"]) == (4 * each, 4 * each + 1, 0)
    assert {name: held for name, held in stage.monitor.state().positions.items() if name != "BTC"} == {
        f"S{thread}": float(each) for thread in range(4)
    }
    assert stage.breaker.state is SAFE

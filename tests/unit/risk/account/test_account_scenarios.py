"""Breaker, the five chaos scenarios with their figures, and what users of the account asked for next."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from killswitch.cluster.cluster import Cluster, new_freeze_id
from killswitch.core.flag import fitting_freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL
from killswitch.risk import (
    AccountLimits,
    BreakerSettings,
    CircuitBreaker,
    ExposureBook,
    OptionGreeks,
    PriceTick,
    RiskMonitor,
)
from killswitch.risk.events import FreezeEvent
from killswitch.simulation.chaos import run_chaos
from killswitch.stores.memory import MemoryStore
from tests.support.eager import together

THREADS = 128


# ---- CircuitBreaker: SAFE / ENGAGED, engage(reason, metadata), a file lock that can be turned off


def test_the_circuit_breaker_is_safe_then_engaged_with_a_reason_and_metadata() -> None:
    breaker = CircuitBreaker(registry=CollectorRegistry())
    assert (breaker.state, breaker.allows()) == ("SAFE", True)
    assert breaker.engage("drawdown", {"drawdown_pct": 2.5}) is True
    assert (breaker.state, breaker.allows()) == ("ENGAGED", False)
    (told,) = [one for one in breaker.transitions() if one.what == "latched"]
    assert (told.reason, dict(told.metadata)) == ("drawdown", {"drawdown_pct": 2.5})
    assert breaker.engage("drawdown") is False  # on top of an engagement nothing counts again


@pytest.mark.parametrize("file_lock", [True, False])
def test_the_lock_between_processes_can_be_turned_off(tmp_path: Path, file_lock: bool) -> None:
    settings = BreakerSettings(state_file=str(tmp_path / "state.json"), file_lock=file_lock)
    CircuitBreaker.create_state_file(settings)
    one, other = (CircuitBreaker(settings, registry=CollectorRegistry()) for _ in range(2))
    assert other.allows()
    one.engage("stop")
    assert not other.allows()
    assert (tmp_path / "state.json.lock").exists() is file_lock


# ---- the five chaos scenarios, each with its figures


def test_normal__ten_ticks_of_10_usd_no_alert_no_kill() -> None:
    (run,) = run_chaos("normal")
    assert run.verdict == "OK"
    assert (run.account.warnings, run.account.kills) == (0, 0)
    assert run.account.state.total_pnl == 100.0


def test_flash_crash__2_5_per_cent_kills_with_a_drawdown_above_2() -> None:
    (run,) = run_chaos("flash_crash")
    assert (run.verdict, run.account.kills) == ("OK", 1)
    assert run.account.state.drawdown_pct == pytest.approx(2.5)
    (record,) = run.account.monitor.forensics()
    assert record.after.drawdown_pct >= 2.0


def test_fat_finger__6_4_times_leverage_kills() -> None:
    (run,) = run_chaos("fat_finger")
    assert (run.verdict, run.account.kills) == ("OK", 1)
    (record,) = run.account.monitor.forensics()
    assert record.after.leverage == pytest.approx(6.4)
    assert run.account.state.leverage == 10.0  # 12.8 times, as it is reported


def test_extreme_volatility__swings_of_1_to_3_per_cent_warn_before_they_kill() -> None:
    (run,) = run_chaos("extreme_volatility")
    assert (run.verdict, run.account.kills) == ("OK", 1)
    levels = [event["alert_level"] for event in run.account.events]
    assert levels.index("WARNING") < levels.index("CRITICAL")
    assert 2.0 <= run.to_json()["max_drawdown_pct"] <= 3.0


def test_recovery__safe_engaged_safe() -> None:
    (run,) = run_chaos("recovery")
    assert run.verdict == "OK"
    breakers = [event["breaker"] for event in run.account.events]
    assert "ENGAGED" in breakers
    assert run.account.breaker.state == "SAFE"


# ---- asked for next


def test_a_kill_becomes_a_freeze_of_the_cluster() -> None:
    """A distributed kill switch: ``on_freeze`` is the door."""
    with MemoryStore(uuid.uuid4().hex) as store:
        cluster = Cluster(store, "c")
        cluster.initialise(actor="operator:ann", reason="set up")

        def freeze_all(event: FreezeEvent) -> None:
            freeze = fitting_freeze(
                id=new_freeze_id(),
                scope=GLOBAL,
                mode=Mode.FROZEN,
                trigger=event.metadata["cause"],
                reason=event.reason,
                actor="agent:n1",
                at=event.timestamp,
                metadata=event.metadata,
            )
            cluster.freeze(freeze, timeout_ms=1_000)

        monitor = RiskMonitor(None, None, 100_000.0, on_freeze=freeze_all, registry=CollectorRegistry())
        monitor.on_fill("BTCUSDT", "buy", 2.5, 40_000.0)
        assert cluster.read_flag().flag.freezes == ()
        monitor.monitor_tick(PriceTick("BTCUSDT", 39_000.0))
        (freeze,) = cluster.read_flag().flag.freezes
        assert (freeze.mode, freeze.trigger, freeze.metadata["drawdown_pct"]) == (Mode.FROZEN, "drawdown", 2.5)


def test_prometheus_sees_every_figure_of_the_account_and_the_breaker() -> None:
    registry = CollectorRegistry()
    monitor = RiskMonitor(None, None, 100_000.0, registry=registry)
    monitor.on_fill("BTCUSDT", "buy", 2.5, 40_000.0)
    monitor.monitor_tick(PriceTick("BTCUSDT", 39_000.0))
    text = generate_latest(registry).decode()
    for line in (
        'killswitch_account_drawdown_ratio{account="default"} 0.025',
        'killswitch_account_alert_level{account="default"} 2.0',
        'killswitch_breaker_mode{breaker="default"} 2.0',
        'freeze_triggered_total{reason="limit_violation"} 1.0',
    ):
        assert line in text


def test_more_than_a_hundred_threads_of_ticks_at_once_lose_none_and_kill_once() -> None:
    told: list[FreezeEvent] = []
    limits = AccountLimits(max_account_leverage=9_000.0, leverage_warning=8_000.0)
    monitor = RiskMonitor(None, None, 100_000.0, limits=limits, on_freeze=told.append, registry=CollectorRegistry())
    for number in range(THREADS):
        monitor.on_fill(f"S{number}", "buy", 1.0, 100.0)

    def feed(number: int) -> None:
        for turn in range(20):
            monitor.monitor_tick(PriceTick(f"S{number}", 100.0 - turn))
            monitor.on_fill("SHARED", "buy", 0.1, 0.01)

    together(*(lambda number=number: feed(number) for number in range(THREADS)))
    summary = monitor.get_summary()
    assert (summary["ticks_total"], summary["bad_inputs_total"]) == (20 * THREADS, 0)
    assert monitor.state().positions["SHARED"] == 2.0 * THREADS
    assert monitor.state().open_pnl == pytest.approx(-19.0 * THREADS)
    assert [event.metadata["cause"] for event in told] == ["drawdown"]


def test_greeks_are_figures_of_the_exposure() -> None:
    book = ExposureBook()
    book.set_equity(1_000_000.0)
    greeks = OptionGreeks(delta=0.5, gamma=0.0001, vega=40.0, underlying_price=50_000.0)
    book.on_greeks("BTC-50000-C", greeks)
    book.on_fill("BTC-50000-C", "buy", 2.0, 2_500.0, bucket="LT")
    figures = book.figures()
    assert figures.long_usd == 50_000.0  # two calls at a delta of a half
    assert (figures.gamma_usd_per_pct, figures.vega_usd_per_point) == (pytest.approx(5_000.0), 80.0)

"""What makes no sense, at every door of every risk monitor: nothing raises, nothing passes, and the fault is told.

The doors are those of RuntimeRiskMonitor, PreTradeControls, RiskMonitor, CircuitBreaker, ExposureBook and
PolicyDecisionTable; ``risk_doors`` has them. Each gets the same list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from killswitch.core.modes import Mode
from killswitch.risk import (
    AccountLimits,
    CircuitBreaker,
    ExposureBook,
    ExposureSettings,
    PriceTick,
    RiskLimits,
    RiskMonitor,
    restriction_of,
)
from killswitch.risk.events import FreezeEvent, json_figures
from killswitch.risk.pretrade import PreTradeControls
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from tests.support.risk_doors import (
    BAD_NAMES,
    BAD_NUMBERS,
    BAD_SIDES,
    NUMBER_DOORS,
    ORDER,
    PRICE,
    TABLE,
    account,
    account_engages_for_a_fill,
    book_distrusts_a_fill,
    book_distrusts_an_order,
    controls,
    controls_freeze_for_a_fill,
    controls_refuse_an_order,
    freezes_for_a_fill,
    is_unknown,
    refuses_an_order,
    runtime_monitor,
    with_bad,
)


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize("door", NUMBER_DOORS, ids=[name for name, _ in NUMBER_DOORS])
def test_unknown_is_frozen__a_number_that_makes_no_sense_is_stopped_at_every_door(
    door: tuple[str, int], bad: str
) -> None:
    found = NUMBER_DOORS[door]
    if bad not in found.sound:
        assert found.stopped(door[1], BAD_NUMBERS[bad])


@pytest.mark.parametrize("bad", [name for name in BAD_NUMBERS if name != "None"])
def test_unknown_is_frozen__a_price_of_an_order_that_makes_no_sense_is_refused(bad: str) -> None:
    assert controls_refuse_an_order(PRICE, BAD_NUMBERS[bad])
    monitor = runtime_monitor()
    assert not monitor.check_before_order(*with_bad(PRICE, BAD_NUMBERS[bad]))
    assert monitor.reserve("1", *with_bad(PRICE, BAD_NUMBERS[bad])) is not None
    assert not monitor.simulate_order(*with_bad(PRICE, BAD_NUMBERS[bad])).passes


@pytest.mark.parametrize(
    ("stopped", "position", "values"),
    [
        (refuses_an_order, 0, BAD_NAMES), (refuses_an_order, 1, BAD_SIDES),
        (freezes_for_a_fill, 0, BAD_NAMES), (freezes_for_a_fill, 1, BAD_SIDES),
        (controls_refuse_an_order, 0, BAD_NAMES), (controls_refuse_an_order, 1, BAD_SIDES),
        (controls_freeze_for_a_fill, 0, BAD_NAMES), (controls_freeze_for_a_fill, 1, BAD_SIDES),
        (account_engages_for_a_fill, 0, BAD_NAMES), (account_engages_for_a_fill, 1, BAD_SIDES),
        (book_distrusts_a_fill, 0, BAD_NAMES), (book_distrusts_a_fill, 1, BAD_SIDES),
        (book_distrusts_an_order, 0, BAD_NAMES), (book_distrusts_an_order, 1, BAD_SIDES),
    ],
)  # fmt: skip
def test_unknown_is_frozen__a_symbol_or_a_side_that_is_none_is_stopped_at_every_door(
    stopped: Callable[[int, Any], bool], position: int, values: dict[str, Any]
) -> None:
    assert [name for name, bad in values.items() if not stopped(position, bad)] == []


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_unknown_is_frozen__a_tick_of_no_symbol_pauses(bad: str) -> None:
    monitor = account()
    monitor.monitor_tick(PriceTick(BAD_NAMES[bad], 1.0))
    assert not monitor.circuit_breaker.allows()


@pytest.mark.parametrize("bad", [*(name for name in BAD_SIDES if name != "None"), "later", "open "])
def test_unknown_is_frozen__a_regime_that_does_not_exist(bad: str) -> None:
    regime = BAD_SIDES.get(bad, bad)
    mode, reason = TABLE.decide(regime, *[20.0] * 6, 200.0)
    if bad == "open ":
        assert reason.kind == "within_limits"  # the name of one, blanks and case aside
    else:
        assert (reason.kind, restriction_of(mode, reason).mode) == ("unknown", Mode.FROZEN)


@pytest.mark.parametrize("bad", [*BAD_NAMES.values(), {}, ["x"], Decimal("sNaN")])
def test_an_id_or_a_strategy_that_is_none_raises_nothing_where_fills_and_cancels_come_in(bad: Any) -> None:
    asked = controls()
    monitor = asked.monitor
    assert asked.admit("1", *ORDER) is None
    assert asked.admit(bad, *ORDER) is not None
    assert asked.admit_amend(bad, 1.0) is not None
    assert not asked.release(bad)
    assert not monitor.settle_amend(bad, accepted=True)
    assert monitor.reserved(bad) is None
    assert monitor.would_reduce("A", "sell", 1.0, client_order_id=None) is False
    asked.on_fill(*ORDER, client_order_id=bad, strategy=bad)
    asked.on_cancel()
    assert monitor.get_positions() == {"A": 1.0}
    assert monitor.working_orders() == 1


# ---- a stop does not fail for its figures


@pytest.mark.parametrize("bad", [*BAD_NUMBERS.values(), object(), float, {1: {2.0}}, {"a": object()}])
def test_a_freeze_is_told_and_counted_whatever_its_figures_are(bad: Any) -> None:
    registry = CollectorRegistry()
    told: list[Any] = []
    monitor = runtime_monitor(registry=registry, on_freeze=told.append)
    assert monitor.freeze("stop", "A", metadata=bad)
    assert [one.metadata["symbol"] for one in told] == ["A"]
    assert registry.get_sample_value("freeze_triggered_total", {"reason": "manual"}) == 1
    json.dumps(monitor.persist_to_dict(), allow_nan=False)
    event = FreezeEvent("2026-01-31T09:30:00Z", "manual", "stop", bad)
    json.dumps(event.to_json(), allow_nan=False)


def test_figures_become_values_that_json_can_hold() -> None:
    figures = {"a": Decimal("1.50"), "b": math.nan, "c": (1, {"d": Decimal(2)}), "e": True, "f": None, 3: "g"}
    assert json_figures(figures) == {
        "a": "1.50", "b": "nan", "c": [1, {"d": "2"}], "e": True, "f": None, "3": "g",
    }  # fmt: skip
    assert json_figures([("a", 1)]) == {"unreadable_metadata": "a list"}


# ---- marks that never came


def test_unknown_is_frozen__marks_that_never_came() -> None:
    monitor = runtime_monitor(get_mark_price={}.__getitem__)
    assert monitor.explain_order("A", "buy", 1.0).kind == "monitor_error"  # type: ignore[union-attr]
    assert not monitor.check_before_order("A", "buy", 1.0)
    assert monitor.is_frozen()
    asked = controls(input_health={})
    refusal = asked.admit("1", *ORDER)
    assert refusal is not None
    assert refusal.kind == "price_missing"
    bare = ExposureBook()
    bare.set_equity(1_000.0)
    bare.on_order("1", "A", "buy", 1.0, None, bucket="LT")  # at any price, of a symbol without one
    assert is_unknown(bare)
    held = account()
    held.on_fill("A", "buy", 1.0, 40_000.0)
    assert held.state().total_exposure == 40_000.0  # at its last fill, and never at nothing


# ---- clocks that step


def test_a_wall_clock_that_steps_changes_no_verdict_of_a_monitor() -> None:
    stamps = iter(["2026-01-31T09:30:00Z", "1999-01-01T00:00:00Z", "2090-01-01T00:00:00Z", "noon", ""])
    monitor = runtime_monitor(wall_clock=lambda: next(stamps))
    for _ in range(5):
        assert monitor.check_before_order(*ORDER)
        assert monitor.freeze("stop")
        assert not monitor.check_before_order(*ORDER)
        monitor.unfreeze("fine")
    assert monitor.freezes_total == 5


def test_unknown_is_frozen__a_deadline_clock_that_steps() -> None:
    """Back: refused, and nothing is lifted. Forward: prices are old, and what waits for readings still waits."""
    now = [10**15]
    monitor = runtime_monitor()
    asked = PreTradeControls(
        PreTradeSettings.model_validate({"input_health": {}, "clock_stepped": "refuse"}),
        monitor=monitor, clock=lambda: now[0], registry=CollectorRegistry(),
    )  # fmt: skip
    asked.on_price("A", 1.0)
    assert asked.admit("1", *ORDER) is None
    now[0] -= 1
    assert asked.admit("2", *ORDER).kind == "clock_stepped"  # type: ignore[union-attr]
    now[0] += 10**13
    assert asked.admit("3", *ORDER).kind == "price_stale"  # type: ignore[union-attr]
    breaker = CircuitBreaker(clock=lambda: now[0], registry=CollectorRegistry())
    breaker.engage("feed", kind="data")
    for step in (-(10**15), 10**18, -(10**18)):
        now[0] += step
        assert not breaker.allows()
    for bad in ("now", None, math.nan):
        now[0] = bad  # type: ignore[call-overload]
        assert not breaker.allows()


# ---- thousands of symbols

MANY = 5_000


def test_thousands_of_symbols_are_added_up_exactly_by_every_monitor() -> None:
    names = [f"S{number:04d}" for number in range(MANY)]
    monitor = runtime_monitor(max_inventory_usd_per_symbol=1e6, max_total_notional_usd=1e9)
    held, exposure = account(), ExposureBook(ExposureSettings())
    exposure.set_equity(1e6)
    total = Decimal(0)
    for number, name in enumerate(names):
        qty, price = (number + 1) / 10, 0.1
        monitor.on_fill(name, "buy", qty, price)
        held.on_fill(name, "buy", qty, price)
        exposure.on_fill(name, "buy", qty, price, bucket="LT")
        total += Decimal(str(qty)) * Decimal("0.1")
    assert monitor._book.exact_total_usd == total
    assert (monitor.get_total_notional(), monitor.get_potential_notional()) == (float(total), float(total))
    assert exposure.figures().gross_usd == float(total)
    assert held.state().total_exposure == pytest.approx(float(total), rel=1e-12)
    assert len(monitor.get_positions()) == len(held.state().positions) == len(exposure.positions()) == MANY
    assert not monitor.is_frozen()
    asked = controls(runtime_monitor(max_total_notional_usd=1e9), throttle=None, daily=None)
    assert [name for number, name in enumerate(names) if asked.admit(f"o{number}", name, "buy", 1.0, 1.0)] == []
    assert asked.monitor.working_orders() == MANY


def test_unknown_is_frozen__one_symbol_more_than_can_be_followed_is_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("killswitch.risk.limits.worst_case_exposure.MAX_SYMBOLS", 3)
    monitor = runtime_monitor()
    held = RiskMonitor(None, None, 1e6, limits=AccountLimits(max_symbols=3), registry=CollectorRegistry())
    exposure = ExposureBook(ExposureSettings(max_symbols=3))
    exposure.set_equity(1e6)
    for number in range(4):
        safe = not monitor.is_frozen() and held.circuit_breaker.allows() and exposure.figures().trusted
        assert safe, number
        monitor.on_fill(f"S{number}", "buy", 1.0, 1.0)
        held.on_fill(f"S{number}", "buy", 1.0, 1.0)
        exposure.on_fill(f"S{number}", "buy", 1.0, 1.0, bucket="LT")
    assert monitor.is_frozen()
    assert held.circuit_breaker.is_engaged()
    assert is_unknown(exposure)
    monitor.on_fill("S0", "sell", 1.0, 1.0)  # one that is followed already still counts
    assert "S0" not in monitor.get_positions()


# ---- old and new names of a setting


def test_two_names_of_one_limit_are_never_taken_together() -> None:
    good = {"max_inventory_usd": 1.0, "max_total_notional": 1.0, "edge_freeze_threshold_bps": 1.0}
    for other in ("max_inventory_usd_per_symbol", "max_total_notional_usd"):
        with pytest.raises(ValidationError, match=other):
            RiskLimits.model_validate({**good, other: 1.0})
        with pytest.raises(TypeError, match=other.removesuffix("_usd").removesuffix("_usd_per_symbol")):
            runtime_monitor(**{other.removesuffix("_usd").removesuffix("_per_symbol"): 1.0})

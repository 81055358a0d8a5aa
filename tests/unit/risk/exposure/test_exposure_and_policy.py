"""Exposure and policy, line by line: the book, the policy decision table, and the scenario runner."""

from __future__ import annotations

import datetime as dt
import math
import zoneinfo
from decimal import Decimal
from typing import Any

import pytest

from killswitch import risk
from killswitch.core.modes import Mode
from killswitch.risk import (
    AlwaysOpen,
    ExposureBook,
    ExposureSettings,
    PolicyDecisionTable,
    PolicyMode,
    PolicyMonitor,
    Quote,
    Regime,
    RiskRules,
    decide_for,
    derisk_plan,
    inventory_rotation,
    load_schedule,
    regime_at,
    restriction_of,
)
from killswitch.routing.order_registry import FILL_RATIOS, MemoryOrderRegistry
from killswitch.routing.order_state import OrderState
from killswitch.simulation import rig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between the calendar library and pandas

TABLE = PolicyDecisionTable()
LONDON = zoneinfo.ZoneInfo("Europe/London")


def mixed_book() -> ExposureBook:
    """Equity 1,000: LT 400 long and 100 short, MM_PURE 50 short, in 22 groups."""
    groups = {f"group{number:02d}": [f"S{number:02d}"] for number in range(22)}
    book = ExposureBook(ExposureSettings(groups=groups))
    book.set_equity(1_000.0)
    for symbol, side, qty, bucket in (
        ("S00", "buy", 4, "LT"),
        ("S01", "sell", 1, "LT"),
        ("S02", "sell", 0.5, "MM_PURE"),
    ):
        book.on_fill(symbol, side, qty, 100.0, bucket=bucket)
    return book


# ---- exposure


def test_gross_exposure_is_long_and_short_over_equity() -> None:
    """`gross_exposure_pct = (|long| + |short|) / equity * 100`, long and short parts."""
    figures = mixed_book().figures()
    assert figures.gross_exposure_pct == 55.0  # (400 + 100 + 50) / 1,000 * 100
    assert (figures.long_exposure_pct, figures.short_exposure_pct, figures.net_exposure_pct) == (40.0, 15.0, 25.0)


def test_buckets_have_current_potential_target_and_max() -> None:
    """`LT` (target 80, max 90), `MM_PURE` (target 20, max 30); potential with all working orders filled, worst case."""
    book = mixed_book()
    book.on_order("o1", "S00", "buy", 1, 100.0, bucket="LT")
    book.on_order("o2", "S01", "buy", 3, 100.0, bucket="LT")
    book.on_order("o3", "S02", "sell", 1, 100.0, bucket="MM_PURE")
    lt, mm = (book.figures().buckets[name] for name in ("LT", "MM_PURE"))
    assert (lt.current_pct, lt.potential_pct, lt.target_pct, lt.max_pct) == (50.0, 70.0, 80.0, 90.0)
    assert (mm.current_pct, mm.potential_pct, mm.target_pct, mm.max_pct) == (5.0, 15.0, 20.0, 30.0)


def test_exposure_per_group() -> None:
    """Exposure per group, 22 groups."""
    groups = mixed_book().groups()
    assert len([name for name in groups if name.startswith("group")]) == 22
    assert (groups["group00"].gross_exposure_pct, groups["group01"].net_exposure_pct) == (40.0, -10.0)
    assert groups["group21"].gross_exposure_pct == 0.0


def test_open_orders_potential() -> None:
    book = mixed_book()
    assert book.figures().open_orders_potential == 0.0
    book.on_order("o1", "S00", "buy", 1, 100.0, bucket="LT")
    assert book.figures().open_orders_potential == 10.0
    assert book.figures().open_orders_potential_usd == 100.0


@pytest.mark.parametrize("regime", list(Regime))
def test_hard_cap_of_130_gross(regime: Regime) -> None:
    assert TABLE.decide(regime, 130.0, 130.0, 90.0, 90.0, 30.0, 30.0, 200.0)[0] is PolicyMode.HARD_DERISK


# ---- the decision table


def test_the_arguments_of_decide_stand_in_the_order_that_callers_use() -> None:
    decided = TABLE.decide(
        regime="LATE",
        gross_exposure_pct=115.0,
        potential_exposure_pct=115.0,
        lt_current_pct=86.0,
        lt_potential_pct=86.0,
        mm_current_pct=29.0,
        mm_potential_pct=29.0,
        minutes_to_close=14.0,
    )
    assert decided == TABLE.decide("LATE", 115.0, 115.0, 86.0, 86.0, 29.0, 29.0, 14.0)
    mode, reason = decided
    assert mode is PolicyMode.SOFT_DERISK
    assert "115 %" in reason.sentence


def test_the_modes_and_regimes_are_those_that_callers_know() -> None:
    assert [mode.name for mode in PolicyMode] == ["NORMAL", "THROTTLE_NEW_ORDERS", "SOFT_DERISK", "HARD_DERISK"]
    assert [regime.name for regime in Regime] == ["OPEN", "EARLY", "MID", "LATE", "CLOSE"]


def test_regimes_and_tolerances() -> None:
    """`OPEN`/`EARLY` 125 (no derisk), `MID` 120, `LATE` 115, `CLOSE` 100."""
    regimes = RiskRules().regimes
    assert {name: getattr(regimes, name).tolerance_pct for name in type(regimes).model_fields} == {
        "OPEN": 125.0,
        "EARLY": 125.0,
        "MID": 120.0,
        "LATE": 115.0,
        "CLOSE": 100.0,
    }
    for name in ("OPEN", "EARLY"):
        mode, _ = TABLE.decide(name, 129.0, 129.0, 85.0, 85.0, 30.0, 30.0, 300.0)
        assert mode < PolicyMode.SOFT_DERISK


@pytest.mark.parametrize(
    ("clock", "regime", "gross", "mode"),
    [
        ("16:14", "MID", 119.0, "NORMAL"),
        ("16:15", "LATE", 115.0, "SOFT_DERISK"),
        ("16:27", "LATE", 110.0, "NORMAL"),
        ("16:28", "CLOSE", 100.0, "HARD_DERISK"),
    ],
)
def test_late_from_16_15_and_hard_at_16_28_by_a_named_calendar(
    clock: str, regime: str, gross: float, mode: str
) -> None:
    """The calendar that ships closes at 16:30."""
    rules = RiskRules()
    schedule = load_schedule(rules.session.calendar, dt.date(2026, 7, 1), dt.date(2026, 7, 31))
    at = dt.datetime.fromisoformat(f"2026-07-15T{clock}").replace(tzinfo=LONDON)
    moment = schedule.at(int(at.timestamp()) * 1_000_000_000)
    found = regime_at(moment, rules.regimes)
    assert found.name == regime
    decided, _ = TABLE.decide(found, gross, gross, 80.0, 80.0, 20.0, 20.0, moment.minutes_to_close)
    assert decided.name == mode


def test_throttle_never_forces_a_sale() -> None:
    """`THROTTLE_NEW_ORDERS`: only the potential would pass a limit."""
    book = mixed_book()
    book.on_order("o1", "S00", "buy", 9, 100.0, bucket="LT")
    mode, reason = decide_for(TABLE, book.figures(), Regime.MID, 200.0)
    assert mode is PolicyMode.THROTTLE_NEW_ORDERS
    assert restriction_of(mode, reason).mode is Mode.ACTIVE
    assert derisk_plan(mode, reason, book.positions(), {}, market_open=True).orders == ()


def test_soft_derisk_is_limit_orders_a_cent_from_the_last_trade() -> None:
    book = mixed_book()
    decided = TABLE.decide("LATE", 115.0, 115.0, 86.0, 86.0, 29.0, 29.0, 14.0)
    quotes = {symbol: Quote(100.0) for symbol in ("S00", "S01", "S02")}
    plan = derisk_plan(*decided, book.positions(), quotes, market_open=True)
    assert {(one.side, one.limit_price) for one in plan.orders} == {
        ("sell", Decimal("99.99")),
        ("buy", Decimal("100.01")),
    }


def test_hard_derisk_crosses_the_spread_ten_per_cent_a_step() -> None:
    book = mixed_book()
    decided = TABLE.decide("MID", 131.0, 131.0, 90.0, 90.0, 30.0, 30.0, 200.0)
    quotes = {symbol: Quote(100.0, 99.0, 101.0) for symbol in ("S00", "S01", "S02")}
    plan = derisk_plan(*decided, book.positions(), quotes, market_open=True)
    found = [(one.symbol, one.side, one.quantity, one.limit_price) for one in plan.orders]
    assert found == [
        ("S00", "sell", Decimal("0.4"), Decimal(99)),
        ("S01", "buy", Decimal("0.1"), Decimal(101)),
        ("S02", "buy", Decimal("0.05"), Decimal(101)),
    ]


def test_ten_to_twenty_per_cent_of_the_lt_inventory_may_be_rotated() -> None:
    found = inventory_rotation(PolicyMode.NORMAL, mixed_book().positions())
    assert [(one.symbol, one.least, one.most) for one in found] == [
        ("S00", Decimal("0.4"), Decimal("0.8")),
        ("S01", Decimal("0.1"), Decimal("0.2")),
    ]


def test_a_mode_becomes_a_freeze_in_the_words_of_the_cluster() -> None:
    book, told = mixed_book(), []
    monitor = PolicyMonitor(book, TABLE, moment=lambda: AlwaysOpen().at(0), on_mode=told.append)
    monitor.evaluate()
    book.set_equity(400.0)
    monitor.evaluate()
    assert [(one.mode.name, one.restriction.mode) for one in told] == [
        ("NORMAL", Mode.ACTIVE),
        ("HARD_DERISK", Mode.REDUCE_ONLY),
    ]


# ---- execution


def test_fills_are_deterministic() -> None:
    """Hard 100 %, soft 90 %, else 50 %."""
    expected = {"cross_spread": Decimal(1), "near_last": Decimal("0.9"), "resting": Decimal("0.5")}
    assert expected == FILL_RATIOS


def test_the_life_of_an_order_and_the_registry() -> None:
    """ACCEPTED -> WORKING -> PARTIAL_FILL -> FILLED / CANCELED / REJECTED; the same intent never makes two orders.

    In Redis by order id, intent id, symbol and side: ``tests/conformance/test_order_registry.py``, for both registries.
    """
    assert [state.word for state in OrderState] == [
        "ACCEPTED",
        "WORKING",
        "PARTIAL_FILL",
        "FILLED",
        "CANCELED",
        "REJECTED",
    ]
    assert [OrderState.of_word(state.word) for state in OrderState] == list(OrderState)
    registry = MemoryOrderRegistry()
    given: dict[str, Any] = {"symbol": "A", "bucket": "LT", "side": "buy", "quantity": Decimal(1), "price": Decimal(1)}
    order, _ = registry.submit("intent", urgency="resting", **given)
    assert registry.submit("intent", urgency="resting", **given) == (order, False)
    assert registry.find(symbol="A", side="buy") == [order]
    assert registry.by_intent("intent") == registry.by_id(order.order_id) == order
    assert registry.find(symbol="A", side="sell") == registry.find(symbol="B") == []


def test_a_cancel_and_a_replace_which_is_cancel_ack_new() -> None:
    registry = MemoryOrderRegistry()
    given: dict[str, Any] = {"symbol": "A", "bucket": "LT", "side": "buy", "quantity": Decimal(1), "price": Decimal(1)}
    first, _ = registry.submit("one", urgency="resting", **given)
    registry.acknowledge(first.order_id)
    second = registry.replace(first.order_id, "two", quantity=Decimal(2), price=Decimal(3))
    replaced = registry.by_id(first.order_id)
    assert replaced is not None
    assert (replaced.state, second.state) == (OrderState.CANCELED, OrderState.WORKING)
    assert (second.quantity, second.price, second.order_id != first.order_id) == (2, 3, True)
    assert registry.cancel(second.order_id)
    assert registry.find(live_only=True) == []


# ---- the scenario runner


@pytest.mark.parametrize(
    ("name", "at", "gross", "mode"),
    [
        ("A", "08:05", 120.0, "NORMAL"),
        ("B", "16:16", 115.0, "SOFT_DERISK"),
        ("C", "16:28", 110.0, "HARD_DERISK"),
        ("D", "08:05", 131.0, "HARD_DERISK"),
        ("E", "12:01", 85.0, "THROTTLE_NEW_ORDERS"),
    ],
)
def test_scenarios_a_to_e(name: str, at: str, gross: float, mode: str) -> None:
    run = rig.play(name)
    step = next(step for step in run.steps if step.get("at") == at)
    assert (step["gross_exposure_pct"], step["mode"]) == (gross, mode)
    assert run.verdict == "OK"


def test_scenario_d_is_hard_at_any_time_of_the_day() -> None:
    steps = [step for step in rig.play("D").steps if step.get("gross_exposure_pct") == 131.0]
    assert {step["mode"] for step in steps} == {"HARD_DERISK"}
    assert {step["regime"] for step in steps} == {"OPEN", "EARLY", "MID", "LATE", "CLOSE"}
    for regime in Regime:
        for minutes in (500.0, 15.0, 2.0, 0.0, math.inf):
            assert TABLE.decide(regime, 131.0, 131.0, 90.0, 90.0, 30.0, 30.0, minutes)[0] is PolicyMode.HARD_DERISK


def test_scenario_e_has_a_potential_of_135() -> None:
    step = next(step for step in rig.play("E").steps if step.get("at") == "12:01")
    assert step["potential_exposure_pct"] == 135.0


def test_the_package_names_what_a_user_of_exposure_and_policy_needs() -> None:
    wanted = {"ExposureBook", "PolicyDecisionTable", "PolicyMode", "Regime", "load_risk_rules", "SessionClock"}
    assert wanted <= set(risk.__all__)
    assert all(hasattr(risk, name) for name in risk.__all__)

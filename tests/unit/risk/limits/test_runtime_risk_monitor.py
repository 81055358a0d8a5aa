"""The runtime monitor, line by line: RuntimeRiskMonitor, pre-trade limits and automatic freeze."""

from __future__ import annotations

import json
import math
import random
import types
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

import killswitch
from killswitch import risk
from killswitch.link.messages import CancelResult
from killswitch.risk.events import FreezeEvent
from killswitch.risk.limits.create_monitor import create_risk_monitor
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.refusal import OrderRefused
from killswitch.simulation import risk_monitor as demo
from tests.support.eager import together
from tests.support.risk_doors import runtime_monitor

NOW = "2026-01-31T09:30:00.123456Z"
BAD_NUMBERS = [math.nan, math.inf, -math.inf, 0.0, -1.0, "1", None, True, pytest.param(10**400, id="huge")]


monitor = partial(runtime_monitor, wall_clock=lambda: NOW)


class Desk:
    """Working orders of a router, as far as a monitor knows of one."""

    def __init__(self, working: int = 0, *, answer: Callable[[int], int | CancelResult] = int) -> None:
        self.working = working
        self.reasons: list[str] = []
        self._answer = answer

    def cancel_all_orders(self, reason: str) -> int | CancelResult:
        self.reasons.append(reason)
        cancelled, self.working = self.working, 0
        return self._answer(cancelled)


def count(registry: CollectorRegistry, trigger: str) -> float | None:
    return registry.get_sample_value("freeze_triggered_total", {"reason": trigger})


# ---- the package


def test_the_package_names_what_a_user_of_the_monitor_needs() -> None:
    assert {"RuntimeRiskMonitor", "create_risk_monitor", "RiskLimits", "OrderRefused", "FreezeEvent"} <= set(
        risk.__all__
    )
    assert all(hasattr(risk, name) for name in risk.__all__)
    assert set(risk._HOME) | {"derisk_plan"} == set(risk.__all__)
    modules = {name for name in risk.__all__ if isinstance(getattr(risk, name), types.ModuleType)}
    assert modules == set()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        risk.Nothing  # noqa: B018 - reading it is the point
    assert risk.RuntimeRiskMonitor is RuntimeRiskMonitor
    assert risk.create_risk_monitor is create_risk_monitor
    assert (risk.RiskLimits, risk.OrderRefused, risk.FreezeEvent) == (RiskLimits, OrderRefused, FreezeEvent)


# ---- construction: two doors, one class


def test_construction_is_keyword_only() -> None:
    with pytest.raises(TypeError):
        RuntimeRiskMonitor(1.0, 2.0, 3.0)  # type: ignore[misc]


def test_default_mark_price_is_one_for_every_symbol() -> None:
    assert monitor().get_mark_price("ANY") == 1.0
    assert monitor().check_before_order("ANY", "buy", 10_000.0)
    assert not monitor().check_before_order("ANY", "buy", 10_000.5)
    assert monitor(get_mark_price={"BTCUSDT": 5e4}.__getitem__).get_mark_price("BTCUSDT") == 5e4


def test_limits_can_be_read_back() -> None:
    m = monitor()
    assert (m.max_inventory_usd_per_symbol, m.max_total_notional_usd, m.edge_freeze_threshold_bps) == (1e4, 5e4, 1.5)


def test_both_doors_make_the_same_class() -> None:
    limits = RiskLimits(max_inventory_usd=5_000.0, max_total_notional=50_000.0, edge_freeze_threshold_bps=200.0)
    by_record = create_risk_monitor(limits, registry=CollectorRegistry())
    by_name = create_risk_monitor(
        max_inventory_usd=5_000.0,
        max_total_notional=50_000.0,
        edge_freeze_threshold_bps=200.0,
        registry=CollectorRegistry(),
    )
    assert type(by_record) is type(by_name) is RuntimeRiskMonitor
    assert by_record.limits == by_name.limits == limits
    with pytest.raises(TypeError, match="once"):
        create_risk_monitor(limits, max_inventory_usd=1.0)
    with pytest.raises(ValueError, match="max_total_notional"):
        create_risk_monitor(max_inventory_usd=1.0, edge_freeze_threshold_bps=1.0)


@pytest.mark.parametrize("name", ["max_inventory_usd", "max_total_notional", "edge_freeze_threshold_bps"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, "5", True, None])
def test_unknown_is_frozen__a_limit_that_would_pass_everything_is_refused(name: str, bad: object) -> None:
    good = {"max_inventory_usd": 1.0, "max_total_notional": 1.0, "edge_freeze_threshold_bps": 1.0}
    with pytest.raises(ValidationError):
        RiskLimits.model_validate({**good, name: bad})


def test_limits_are_positive_frozen_and_know_their_names() -> None:
    good = {"max_inventory_usd": 1.0, "max_total_notional": 1.0, "edge_freeze_threshold_bps": -1.0}
    limits = RiskLimits.model_validate(good)
    with pytest.raises(ValidationError):
        limits.max_inventory_usd = 2.0  # type: ignore[misc]
    for wrong in ({"max_inventory_usd": 0.0}, {"max_total_notional": -1.0}, {"max_inventory": 5.0}):
        with pytest.raises(ValidationError):
            RiskLimits.model_validate({**good, **wrong})
    with pytest.raises(ValueError, match="max_inventory_usd"):
        monitor(max_inventory_usd_per_symbol=0.0)


# ---- check_before_order


def test_resulting_notional_of_the_symbol_is_held_against_its_limit() -> None:
    m = monitor()
    assert m.check_before_order("BTCUSDT", "buy", 0.2, 50_000.0)  # exactly at the limit
    assert not m.check_before_order("BTCUSDT", "buy", 0.21, 50_000.0)
    assert not m.check_before_order("BTCUSDT", "sell", 0.21, 50_000.0)
    m.on_fill("BTCUSDT", "buy", 0.1, 50_000.0)
    assert not m.check_before_order("BTCUSDT", "buy", 0.11, 50_000.0)
    assert m.check_before_order("BTCUSDT", "sell", 0.3, 50_000.0)  # through zero to 0.2 short
    assert not m.check_before_order("BTCUSDT", "sell", 0.31, 50_000.0)
    assert m.blocks_total == 4
    assert not m.is_frozen()  # a breach is soft


def test_limits_are_inclusive_in_decimals_not_in_floats() -> None:
    m = monitor(max_inventory_usd_per_symbol=3_000.0, max_total_notional_usd=3_300.0)
    m.on_fill("A", "buy", 0.1, 10_000.0)
    assert 0.1 + 0.2 > 0.3  # as floats, the next order would be over the limit
    assert m.check_before_order("A", "buy", 0.2, 10_000.0)
    m.on_fill("A", "buy", 0.2, 10_000.0)
    assert m.check_before_order("B", "buy", 0.1, 3_000.0)
    assert not m.check_before_order("B", "buy", 0.1, 3_000.000001)


def test_total_over_symbols_is_held_against_the_total_limit() -> None:
    m = monitor(max_total_notional_usd=15_000.0)
    m.on_fill("BTCUSDT", "buy", 0.1, 50_000.0)
    m.on_fill("ETHUSDT", "sell", 3.0, 3_000.0)
    assert not m.check_before_order("BTCUSDT", "buy", 0.05, 50_000.0)
    refusal = m.explain_order("BTCUSDT", "buy", 0.05, 50_000.0)
    assert refusal == OrderRefused("total_limit", 15_000.0, 16_500.0, "BTCUSDT", refusal.sentence if refusal else "")
    assert m.check_before_order("SOLUSDT", "buy", 10.0, 100.0)  # 14,000 + 1,000: exactly at the limit
    assert not m.check_before_order("SOLUSDT", "buy", 10.1, 100.0)


def test_other_symbols_count_at_their_mark_price_when_there_is_one() -> None:
    marks = {"BTCUSDT": 50_000.0, "ETHUSDT": 3_000.0}
    m = monitor(max_total_notional_usd=15_000.0, get_mark_price=marks.__getitem__)
    m.on_fill("BTCUSDT", "buy", 0.1, 50_000.0)
    assert m.check_before_order("ETHUSDT", "buy", 3.0)
    marks["BTCUSDT"] = 70_000.0
    assert not m.check_before_order("ETHUSDT", "buy", 3.0)
    assert m.check_before_order("ETHUSDT", "buy", 2.0)
    marks["BTCUSDT"] = 60_000.0
    assert m.check_before_order("ETHUSDT", "buy", 3.0)  # 6,000 + 9,000: exactly at the limit
    assert m.get_total_notional() == 6_000.0


def test_an_order_that_only_reduces_passes_above_a_limit_but_not_a_freeze() -> None:
    m = monitor()
    m.on_fill("BTCUSDT", "buy", 1.0, 50_000.0)
    m.on_fill("ETHUSDT", "sell", 100.0, 3_000.0)
    for qty in (0.5, 1.0):
        assert m.check_before_order("BTCUSDT", "sell", qty, 50_000.0)
    assert m.check_before_order("ETHUSDT", "buy", 99.0, 3_000.0)
    assert not m.check_before_order("BTCUSDT", "buy", 0.01, 50_000.0)
    assert not m.check_before_order("BTCUSDT", "sell", 1.01, 50_000.0)  # crosses zero
    m.freeze("stop")
    assert not m.check_before_order("BTCUSDT", "sell", 0.5, 50_000.0)


@pytest.mark.parametrize("side", ["buy", "BUY", "Buy", "sell", "SELL", "Sell"])
def test_sides_in_every_spelling_that_callers_use(side: str) -> None:
    m = monitor()
    assert m.check_before_order("A", side, 1.0, 1.0)
    m.on_fill("A", side, 1.0, 1.0)
    assert m.get_positions()["A"] == (1.0 if side.lower() == "buy" else -1.0)


@pytest.mark.parametrize("bad", BAD_NUMBERS)
def test_unknown_is_frozen__a_bad_number_in_an_order_refuses_that_order(bad: Any) -> None:
    m = monitor()
    m.on_fill("A", "buy", 1.0, 1.0)
    for side in ("buy", "sell"):
        assert not m.check_before_order("A", side, bad, 1.0)
        if bad is not None:  # no price means the mark price
            assert not m.check_before_order("A", side, 0.5, bad)
    assert not m.is_frozen()
    refusal = m.explain_order("A", "buy", bad, 1.0)
    assert refusal is not None
    assert refusal.kind == "bad_input"


@pytest.mark.parametrize(
    ("symbol", "side"), [("A", "hold"), ("A", ""), ("A", None), ("A", []), ("", "buy"), (7, "buy")]
)
def test_unknown_is_frozen__an_unknown_side_or_symbol_refuses(symbol: Any, side: Any) -> None:
    m = monitor()
    assert not m.check_before_order(symbol, side, 1.0, 1.0)
    assert m.blocks_total == 1
    assert not m.is_frozen()


def test_explaining_has_no_side_effects() -> None:
    m = monitor()
    before = m.persist_to_dict()
    for order in (("A", "buy", 1e9, 1.0), ("A", "buy", math.nan, 1.0), ("A", "buy", 1.0, 1.0)):
        m.explain_order(*order)
    broken = monitor(get_mark_price=lambda _symbol: math.nan)
    refusal = broken.explain_order("A", "buy", 1.0)
    assert refusal is not None
    assert refusal.kind == "monitor_error"
    assert not broken.is_frozen()
    assert broken.blocks_total == 0
    assert m.persist_to_dict() == before


ORDERS = st.tuples(
    st.sampled_from(["A", "B", "C"]),
    st.sampled_from(["buy", "sell"]),
    st.integers(1, 60).map(lambda tenths: tenths / 10),
    st.integers(1, 40).map(lambda tenths: tenths / 10),
)


@given(fills=st.lists(ORDERS, max_size=8), order=ORDERS, marks=st.booleans())
@settings(max_examples=400, deadline=None)
def test_the_check_is_the_rule_worked_out_in_decimals(
    fills: list[tuple[str, str, float, float]], order: tuple[str, str, float, float], marks: bool
) -> None:
    mark_prices = {"A": 1.1, "B": 2.3, "C": 0.7}
    m = monitor(
        max_inventory_usd_per_symbol=8.0,
        max_total_notional_usd=13.0,
        get_mark_price=mark_prices.__getitem__ if marks else None,
    )
    held: dict[str, Decimal] = {}
    last: dict[str, Decimal] = {}
    for symbol, side, qty, price in fills:
        m.on_fill(symbol, side, qty, price)
        held[symbol] = held.get(symbol, Decimal(0)) + Decimal(str(qty)) * (1 if side == "buy" else -1)
        last[symbol] = Decimal(str(price))
    symbol, side, qty, price = order
    before = held.get(symbol, Decimal(0))
    after = before + Decimal(str(qty)) * (1 if side == "buy" else -1)
    reduces = abs(after) < abs(before) and after * before >= 0
    known = Decimal(0)
    if marks:
        known = Decimal(str(mark_prices[symbol]))
    elif before:
        known = last[symbol]
    unit = Decimal(str(price)) if side == "buy" else max(Decimal(str(price)), known)  # a sell may fetch more
    in_symbol = abs(after) * unit
    if abs(after) > abs(before) and after * before > 0:  # what is held is not worth less for a low price
        in_symbol = abs(before) * max(unit, known) + Decimal(str(qty)) * unit
    value = {name: Decimal(str(mark_prices[name])) for name in held} if marks else last
    total = in_symbol + sum(abs(held[name]) * value[name] for name in held if name != symbol)
    passes = reduces or (in_symbol <= 8 and total <= 13)
    assert (m.explain_order(*order) is None) is passes
    assert m.check_before_order(*order) is passes
    assert m.blocks_total == (0 if passes else 1)


# ---- positions


def test_buys_add_sells_subtract_symbols_are_independent_and_flat_is_flat() -> None:
    m = monitor()
    m.on_fill("BTCUSDT", "buy", 0.2, 50_000.0)
    m.on_fill("BTCUSDT", "sell", 0.1, 50_000.0)
    m.on_fill("ETHUSDT", "sell", 1.0, 3_000.0)
    assert m.get_positions() == {"BTCUSDT": 0.1, "ETHUSDT": -1.0}
    m.on_fill("BTCUSDT", "sell", 0.1, 51_000.0)
    assert m.get_positions() == {"ETHUSDT": -1.0}
    assert m.get_positions()["BTCUSDT"] == 0.0
    assert m.get_total_notional() == 3_000.0


def test_flat_is_exact_where_floats_would_leave_dust() -> None:
    m = monitor()
    for qty in (0.1, 0.2):
        m.on_fill("A", "buy", qty, 7.7)
    m.on_fill("A", "sell", 0.3, 7.9)
    assert m.get_positions() == {}
    assert m.get_total_notional() == 0.0


def test_update_position_adds_a_signed_quantity() -> None:
    m = monitor()
    m.update_position("BTCUSDT", 0.08, 50_000.0)
    m.update_position("BTCUSDT", -0.03, 50_000.0)
    m.update_position("BTCUSDT", 0.0, 60_000.0)  # only the price
    assert m.get_positions() == {"BTCUSDT": 0.05}
    assert m.get_total_notional() == 3_000.0


def test_positions_are_a_copy() -> None:
    m = monitor()
    m.on_fill("A", "buy", 1.0, 1.0)
    m.get_positions()["A"] = 999.0
    assert m.get_positions() == {"A": 1.0}
    assert m.get_position("A") == 1.0
    assert m.get_position("B") == 0.0


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, "hold"])
def test_unknown_is_frozen__a_fill_that_makes_no_sense_freezes_and_is_kept(bad: Any) -> None:
    for fill in (("A", "buy", bad, 1.0), ("A", "buy", 1.0, bad), ("A", bad, 1.0, 1.0)):
        m = monitor()
        m.on_fill("A", "buy", 2.0, 1.0)
        m.on_fill(*fill)
        assert m.is_frozen()
        assert m.get_positions() == {"A": 2.0}
        (event,) = m.get_freeze_events()
        assert event.trigger == "limit_violation"
        assert event.metadata["cause"] == "monitor_error"
        assert m.get_bad_fills()[0]["qty"] == str(fill[2])
        json.dumps(m.persist_to_dict(), allow_nan=False)


def test_unknown_is_frozen__a_position_that_overflows_freezes() -> None:
    m = monitor()
    for _ in range(2):
        m.update_position("A", 1.7e308, 1.0)
    assert m.is_frozen()


def test_a_bad_fill_while_frozen_is_not_lost() -> None:
    m = monitor()
    m.freeze("stop")
    m.on_fill("A", "buy", math.nan, 1.0)
    assert m.freezes_total == 1
    assert len(m.get_bad_fills()) == 1


def test_fills_count_while_frozen() -> None:
    m = monitor()
    m.freeze("stop")
    m.on_fill("A", "buy", 1.0, 1.0)
    assert m.get_positions() == {"A": 1.0}


def test_ten_thousand_fills_agree_with_decimals() -> None:
    rng = random.Random(7)
    m = monitor(max_inventory_usd_per_symbol=1e15, max_total_notional_usd=1e16)
    symbols = [f"S{number}" for number in range(40)]
    held = dict.fromkeys(symbols, Decimal(0))
    last = dict.fromkeys(symbols, Decimal(0))
    for _ in range(10_000):
        symbol, side = rng.choice(symbols), rng.choice(["buy", "sell"])
        qty, price = round(rng.uniform(1e-6, 10.0 ** rng.randint(-3, 6)) + 1e-6, 6), round(rng.uniform(0.01, 7e4), 2)
        m.on_fill(symbol, side, qty, price)
        held[symbol] += Decimal(str(qty)) * (1 if side == "buy" else -1)
        last[symbol] = Decimal(str(price))
    total = sum(abs(held[symbol]) * last[symbol] for symbol in symbols)
    assert m.get_total_notional() == pytest.approx(float(total), rel=1e-15)
    # The running total that the check uses, not only the sum that the report makes.
    assert m._book.exact_total_usd == total
    assert m._book.total_usd == float(total)
    for symbol in symbols:
        assert m.get_positions()[symbol] == float(held[symbol])
        side = "sell" if held[symbol] > 0 else "buy"
        m.on_fill(symbol, side, float(abs(held[symbol])), 1.0)
    assert m.get_positions() == {}
    assert m._book.total_usd == 0.0


# ---- edge


def test_edge_strictly_below_the_threshold_freezes_and_at_it_does_not() -> None:
    m = monitor()
    assert m.on_edge_update("BTCUSDT", 1.5) is False
    assert not m.is_frozen()
    assert m.on_edge_update("BTCUSDT", 1.2) is True
    assert m.is_frozen()
    assert m.last_freeze_reason == "Edge degradation: 1.20 BPS < 1.50 BPS"
    assert m.last_freeze_symbol == "BTCUSDT"
    assert m.on_edge_update("BTCUSDT", 1.1) is False
    assert m.freezes_total == 1


def test_acceptance__edge_collapse_cancels_all_and_refuses_new_orders(logs: Any) -> None:
    registry = CollectorRegistry()
    m = monitor(edge_freeze_threshold_bps=200.0, registry=registry)
    desk = Desk(working=3)
    assert m.auto_freeze_on_edge_drop(current_edge_bps=150.0, order_router=desk) is True
    assert m.is_frozen()
    assert desk.working == 0
    assert desk.reasons == ["Edge degradation: 150.00 BPS < 200.00 BPS"]
    assert count(registry, "edge_collapse") == 1
    assert not m.check_before_order("BTCUSDT", "buy", 0.01, 50_000.0)
    (event,) = m.get_freeze_events()
    assert event.timestamp == NOW
    assert event.trigger == "edge_collapse"
    assert event.metadata == {"current_edge_bps": 150.0, "threshold_bps": 200.0, "orders_cancelled": 3}
    assert [line["log_level"] for line in logs if line["event"] == "risk monitor froze"] == ["critical"]
    # A second call freezes nothing and cancels nothing twice.
    assert m.auto_freeze_on_edge_drop(150.0, desk) is False
    assert (m.freezes_total, len(desk.reasons), count(registry, "edge_collapse")) == (1, 1, 1)


def test_acceptance__a_breach_of_the_inventory_limit_refuses_and_does_not_freeze() -> None:
    m = monitor(max_inventory_usd_per_symbol=5_000.0)
    m.update_position("BTCUSDT", 0.08, 50_000.0)
    assert not m.check_before_order("BTCUSDT", "Buy", 0.05, 50_000.0)
    assert not m.is_frozen()
    assert m.blocks_total == 1
    refusal = m.explain_order("BTCUSDT", "Buy", 0.05, 50_000.0)
    assert refusal is not None
    assert (refusal.kind, refusal.limit, refusal.value) == ("symbol_limit", 5_000.0, 6_500.0)
    assert "6500.00 USD" in refusal.sentence


def test_acceptance__manual_freeze_cancels_refuses_and_is_released() -> None:
    registry = CollectorRegistry()
    m = monitor(registry=registry)
    desk = Desk(working=2)
    assert m.manual_freeze("Operator emergency stop", desk) is True
    assert desk.reasons == ["Operator emergency stop"]
    (event,) = m.get_freeze_events()
    assert (event.trigger, event.reason) == ("manual", "Operator emergency stop")
    assert event.metadata["orders_cancelled"] == 2
    assert not m.check_before_order("A", "buy", 1.0, 1.0)
    assert count(registry, "manual") == 1
    with pytest.raises(ValueError, match="reason"):
        m.unfreeze("  ")
    assert m.is_frozen()
    assert m.unfreeze("Issue resolved") is True
    assert m.check_before_order("A", "buy", 1.0, 1.0)


def test_orders_that_were_working_before_a_freeze_without_a_router_are_cancelled_by_the_first_call_that_has_one() -> (
    None
):
    m = monitor()
    desk = Desk(working=1)
    m.on_edge_update("A", 1.0)
    assert m.auto_freeze_on_edge_drop(1.0, desk) is False
    assert desk.working == 0
    m.auto_freeze_on_edge_drop(1.0, desk)
    assert len(desk.reasons) == 1
    desk.working = 1
    m.manual_freeze("again", desk)  # a person asks again: cancels again
    assert desk.working == 0
    assert m.get_freeze_events()[0].metadata["orders_cancelled"] == 2


def test_cancelling_is_tried_again_while_orders_are_open() -> None:
    m = monitor()
    desk = Desk(working=2, answer=lambda _cancelled: CancelResult(cancelled=1, failed=1, open=1, last_sequence=9))
    m.auto_freeze_on_edge_drop(1.0, desk)
    m.auto_freeze_on_edge_drop(1.0, desk)
    assert len(desk.reasons) == 2
    notes = m.get_freeze_events()[0].metadata
    assert (notes["orders_cancelled"], notes["orders_open"], notes["cancels_failed"]) == (2, 1, 1)


def test_a_router_that_raises_leaves_the_monitor_frozen_and_is_told(logs: Any) -> None:
    class Broken:
        def cancel_all_orders(self, reason: str) -> int:
            raise ConnectionError("no route")

    for stop in (lambda m: m.auto_freeze_on_edge_drop(1.0, Broken()), lambda m: m.manual_freeze("stop", Broken())):
        m = monitor()
        assert stop(m) is True
        assert m.is_frozen()
        assert "no route" in m.get_freeze_events()[0].metadata["cancel_error"]
        assert any(line["log_level"] == "error" and "no route" in line["error"] for line in logs)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "2"])
def test_unknown_is_frozen__an_edge_that_is_no_number_freezes_and_cancels(bad: Any) -> None:
    m = monitor()
    desk = Desk(working=1)
    assert m.auto_freeze_on_edge_drop(bad, desk) is True
    assert desk.working == 0
    (event,) = m.get_freeze_events()
    assert (event.trigger, event.metadata["cause"]) == ("limit_violation", "monitor_error")
    json.dumps(event.to_json(), allow_nan=False)
    other = monitor()
    assert other.on_edge_update("A", bad) is True


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0, None, KeyError("A")])
@pytest.mark.parametrize("look", ["check", "check_with_price", "total", "utilization"])
def test_unknown_is_frozen__a_mark_price_that_cannot_be_used_freezes(bad: Any, look: str) -> None:
    def mark(symbol: str) -> float:
        if isinstance(bad, Exception):
            raise bad
        return bad  # type: ignore[no-any-return]

    m = monitor(get_mark_price=mark)
    m.on_fill("A", "buy", 1.0, 2.0)
    if look == "check":
        assert not m.check_before_order("B", "buy", 1.0)
    elif look == "check_with_price":
        assert not m.check_before_order("B", "buy", 1.0, 1.0)
    elif look == "total":
        assert m.get_total_notional() == 2.0  # at its last fill
    else:
        assert m.get_utilization()["total_notional_utilization_pct"] == pytest.approx(0.004)
    assert m.is_frozen()
    (event,) = m.get_freeze_events()
    assert (event.trigger, event.metadata["cause"]) == ("limit_violation", "monitor_error")


# ---- freeze, unfreeze, reset


def test_freeze_is_idempotent_and_remembers_the_newest_cause() -> None:
    registry = CollectorRegistry()
    m = monitor(registry=registry)
    assert m.freeze("First", "BTCUSDT") is True
    assert m.freeze("Second", "ETHUSDT") is False
    assert m.freezes_total == 1
    assert (m.last_freeze_reason, m.last_freeze_symbol) == ("Second", "ETHUSDT")
    assert [event.reason for event in m.get_freeze_events()] == ["First"]
    assert count(registry, "manual") == 1


def test_reset_clears_frozen_and_positions_and_keeps_the_counters() -> None:
    m = monitor()
    m.on_fill("A", "buy", 1.0, 1.0)
    m.freeze("stop", "A")
    m.check_before_order("A", "buy", 1.0, 1.0)
    m.reset()
    assert not m.is_frozen()
    assert m.get_positions() == {}
    assert m.get_total_notional() == 0.0
    assert (m.last_freeze_reason, m.last_freeze_symbol) == (None, None)
    assert (m.blocks_total, m.freezes_total, len(m.get_freeze_events())) == (1, 1, 1)
    assert m.check_before_order("A", "buy", 1.0, 1.0)


def test_an_unknown_trigger_freezes_and_says_so() -> None:
    m = monitor()
    with pytest.raises(ValueError, match="trigger"):
        m.freeze("stop", trigger="bad_luck")  # type: ignore[arg-type]
    assert m.is_frozen()
    with pytest.raises(ValueError, match="edge_collapse, manual, limit_violation"):
        FreezeEvent(NOW, "bad_luck", "x")  # type: ignore[arg-type]


def test_on_freeze_hears_every_freeze_once_after_it_took_effect_with_no_lock_held() -> None:
    heard: list[tuple[FreezeEvent, bool, dict[str, Any]]] = []
    m = monitor(on_freeze=lambda event: heard.append((event, m.is_frozen(), m.persist_to_dict())))
    m.freeze("one")
    m.freeze("two")
    m.unfreeze("fine")
    m.on_edge_update("A", 0.0)
    assert [(event.reason, frozen) for event, frozen, _ in heard] == [
        ("one", True),
        ("Edge degradation: 0.00 BPS < 1.50 BPS", True),
    ]


def test_an_exception_in_on_freeze_does_not_undo_the_freeze() -> None:
    def fail(_event: FreezeEvent) -> None:
        raise ConnectionError("the agent is gone")

    registry = CollectorRegistry()
    m = monitor(on_freeze=fail, registry=registry)
    desk = Desk(working=1)
    assert m.manual_freeze("stop", desk) is True
    assert m.is_frozen()
    assert desk.working == 0
    assert "the agent is gone" in m.get_freeze_events()[0].metadata["on_freeze_error"]
    assert count(registry, "manual") == 1


def test_a_clock_or_a_log_that_fails_does_not_stop_a_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_fields: object) -> str:
        raise OSError("disk full")

    m = monitor(wall_clock=fail)
    monkeypatch.setattr("killswitch.safe_log._log", type("Log", (), dict.fromkeys(["critical", "info"], fail))())
    desk = Desk(working=1)
    m.manual_freeze("stop", desk)
    assert m.is_frozen()
    assert desk.working == 0
    assert m.get_freeze_events()[0].timestamp == "unknown"


# ---- metric


def test_metric_has_one_counter_per_registry_and_starts_at_zero() -> None:
    registry = CollectorRegistry()
    first, second = monitor(registry=registry), monitor(registry=registry)
    assert [count(registry, trigger) for trigger in ("edge_collapse", "manual", "limit_violation")] == [0, 0, 0]
    first.freeze("a")
    second.on_fill("A", "buy", math.nan, 1.0)
    second.unfreeze("fine")
    second.on_edge_update("A", 0.0)
    assert [count(registry, trigger) for trigger in ("edge_collapse", "manual", "limit_violation")] == [1, 1, 1]
    for _ in range(2):  # the default registry of the process, twice
        create_risk_monitor(max_inventory_usd=1.0, max_total_notional=1.0, edge_freeze_threshold_bps=1.0)


# ---- reports


def test_utilization_in_per_cent() -> None:
    m = monitor()
    assert m.get_utilization() == {"total_notional_utilization_pct": 0.0, "max_inventory_utilization_pct": 0.0}
    m.on_fill("BTCUSDT", "buy", 0.1, 50_000.0)
    m.on_fill("ETHUSDT", "sell", 0.5, 2_000.0)
    assert m.get_utilization() == {
        "total_notional_utilization_pct": pytest.approx(12.0),
        "max_inventory_utilization_pct": 50.0,
        "inventory_utilization_pct:BTCUSDT": 50.0,
        "inventory_utilization_pct:ETHUSDT": 10.0,
    }


def test_state_survives_a_restart_through_json() -> None:
    m = monitor()
    m.on_fill("A", "buy", 0.1, 3.0)
    m.on_fill("A", "buy", 0.2, 3.0)
    m.on_fill("B", "sell", 1.0, 2.0)
    m.check_before_order("A", "buy", 1e9, 1.0)
    m.manual_freeze("stop", Desk(working=2))
    saved = json.loads(json.dumps(m.persist_to_dict(), allow_nan=False))
    assert saved["state"]["frozen"] is True
    assert saved["freeze_events"][0]["trigger"] == "manual"
    again = monitor()
    again.restore_from_dict(saved)
    assert again.persist_to_dict() == m.persist_to_dict()
    assert again.is_frozen()
    assert again.get_total_notional() == pytest.approx(2.9)
    again.unfreeze("fine")
    assert again.check_before_order("A", "sell", 0.3, 3.0)


def test_a_restart_never_releases() -> None:
    calm = monitor().persist_to_dict()
    m = monitor()
    m.freeze("stop")
    m.restore_from_dict(calm)
    assert m.is_frozen()


@pytest.mark.parametrize(
    "damage",
    [
        {"v": 2},
        {"state": {}},
        {"positions": {"A": {"quantity": "NaN", "price_usd": 1.0}}},
        {"positions": {"A": {"quantity": "1", "price_usd": 0}}},
        {"freeze_events": [{"trigger": "luck"}]},
        {"positions": None},
    ],
)
def test_unknown_is_frozen__saved_state_that_cannot_be_read_freezes(damage: dict[str, Any]) -> None:
    m = monitor()
    m.on_fill("A", "buy", 1.0, 1.0)
    with pytest.raises(ValueError, match="saved state"):
        m.restore_from_dict({**monitor().persist_to_dict(), **damage})
    assert m.is_frozen()
    assert m.get_positions() == {"A": 1.0}


# ---- threads


def test_eight_threads_lose_no_count() -> None:
    rounds, registry = 400, CollectorRegistry()
    m = monitor(registry=registry)
    desk = Desk()
    froze: list[bool] = []

    def hammer(number: int) -> None:
        for _ in range(rounds):
            m.on_fill("SHARED", "buy", 0.1, 1.0)
            m.on_fill(f"OWN{number}", "buy", 0.3, 1.0)
            m.on_fill(f"OWN{number}", "sell", 0.3, 1.0)
            assert not m.check_before_order("SHARED", "buy", 1e9, 1.0)
        froze.append(m.auto_freeze_on_edge_drop(1.0, desk))

    together(*(lambda number=number: hammer(number) for number in range(8)))
    assert m.blocks_total == 8 * rounds
    assert m.get_positions() == {"SHARED": 8 * rounds / 10}
    assert m._book.total_usd == 8 * rounds / 10
    assert froze.count(True) == 1
    assert (m.freezes_total, len(desk.reasons), count(registry, "edge_collapse")) == (1, 1, 1)


# ---- the demonstration

EXPECTED = (
    '{"frozen":true,"metrics":{"blocks_total":2,"freezes_total":1,'
    '"last_freeze_reason":"Edge degradation: 1.20 BPS < 1.50 BPS","last_freeze_symbol":"BTCUSDT"},'
    '"positions":{"BTCUSDT":0.1,"ETHUSDT":1.0},'
    '"runtime":{"utc":"2025-01-01T00:00:00Z","version":"0.1.0"},"status":"OK"}\n'
)


def test_demo_is_exact_to_the_byte() -> None:
    assert demo.run("2025-01-01T00:00:00Z", "0.1.0") == EXPECTED


def test_demo_takes_its_time_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_FREEZE_UTC_ISO", "2025-01-01T00:00:00Z")
    monkeypatch.setattr(demo, "__version__", "0.1.0")
    assert demo.main_text() == EXPECTED
    monkeypatch.delenv("MM_FREEZE_UTC_ISO")
    assert json.loads(demo.main_text())["runtime"]["utc"].endswith("Z")


def test_demo_drives_the_real_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RuntimeRiskMonitor, "on_edge_update", lambda *_args: False)
    report = json.loads(demo.run("x", "y"))
    assert (report["frozen"], report["status"]) == (False, "FAILED")


def test_demo_names_its_own_version_whoever_else_has_installed_a_package_of_our_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``killswitch`` on the public index is somebody else's, and a checkout that is not installed has a version too."""
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "9.9.9")
    assert json.loads(demo.main_text())["runtime"]["version"] == killswitch.__version__

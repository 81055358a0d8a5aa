"""Prices of the runtime monitor: what is held and sold is worth what the market says, where it says so."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.limits.warning_ladder import LimitWarning
from tests.support.eager import together
from tests.support.risk_doors import kind_of
from tests.support.risk_doors import runtime_monitor as monitor

# ---- what is sold is worth what the market says, whatever its limit price is


@pytest.fixture(params=["asked for", "told", "last fill"])
def knowing(request: pytest.FixtureRequest) -> RuntimeRiskMonitor:
    """A monitor that knows in one of three ways that a unit of A is worth 60,000 USD, with a short of 0.01 of it."""
    m = monitor(get_mark_price=lambda _symbol: 60_000.0) if request.param == "asked for" else monitor()
    m.on_fill("A", "sell", 0.01, 60_000.0)
    if request.param == "told":
        m.on_mark("A", 60_000.0)
    return m


def test_a_low_limit_price_does_not_make_the_exposure_of_a_sell_vanish(knowing: RuntimeRiskMonitor) -> None:
    m = knowing
    for price in (1e-9, 1.0, 59_999.0):
        refusal = m.reserve("1", "A", "sell", 10.0, price)
        assert refusal is not None
        assert (refusal.kind, refusal.value) == ("symbol_limit", 600_600.0)
        assert m.explain_order("A", "sell", 10.0, price) == refusal
        assert m.simulate_order("A", "sell", 10.0, price).symbol_usd == 600_600.0
        assert not m.check_before_order("A", "sell", 10.0, price)
    assert m.reserve("1", "A", "sell", 0.1, 1.0) is None
    assert m.get_potential_notional() == 6_600.0  # reserved at what it may fetch
    assert kind_of(m.reserve("2", "A", "sell", 0.1, 1.0)) == "symbol_limit"
    assert kind_of(m.amend("1", 0.2, 1.0)) == "symbol_limit"
    assert m.reserved("1") == ("A", "sell", 1.0)  # its own price is still its own
    m.on_fill("A", "sell", 0.1, 60_000.0, client_order_id="1")
    assert m.get_total_notional() == pytest.approx(6_600.0)


def test_a_sell_above_the_market_and_a_buy_count_at_their_own_price(knowing: RuntimeRiskMonitor) -> None:
    m = knowing
    assert m.simulate_order("A", "sell", 0.09, 70_000.0).symbol_usd == 7_000.0
    assert (
        m.simulate_order("A", "buy", 0.11, 50_000.0).symbol_usd == 5_000.0
    )  # turns it: its price is the most it costs
    m.on_fill("A", "buy", 0.02, 60_000.0)
    assert m.simulate_order("A", "buy", 1.0, 100.0).symbol_usd == 700.0  # what is held stays worth 600 USD
    assert m.simulate_order("A", "buy", 0.01, 70_000.0).symbol_usd == 1_400.0


def test_a_sell_that_only_reduces_passes_at_any_price(knowing: RuntimeRiskMonitor) -> None:
    m = knowing
    m.on_fill("A", "buy", 5.01, 60_000.0)  # far above both limits
    assert m.reserve("1", "A", "sell", 4.0, 1.0) is None
    assert m.reserve("2", "A", "sell", 1.0, 1.0) is None
    assert m.reserve("3", "A", "sell", 0.1, 1.0) is None  # through flat to 0.1 short, which the limit allows
    assert kind_of(m.reserve("4", "A", "sell", 0.1, 1.0)) == "symbol_limit"


@pytest.mark.parametrize("asked_for", [False, True])
def test_what_works_on_the_selling_side_is_worth_more_when_the_market_rises(asked_for: bool) -> None:
    price = [100.0]
    m = monitor(get_mark_price=(lambda _symbol: price[0]) if asked_for else None)
    m.on_mark("A", 100.0)
    assert m.reserve("1", "A", "sell", 90.0, 1.0) is None
    assert m.get_potential_notional() == 9_000.0
    price[0] = 500.0
    m.on_mark("A", 500.0)
    assert (m.get_potential_notional("A") == 45_000.0) is not asked_for  # a source is not asked for it
    refusal = m.explain_order("B", "buy", 5_001.0 / price[0], price[0])  # 45,000 of sells, and this
    assert refusal is not None
    assert (refusal.kind, refusal.value) == ("total_limit", 50_001.0)
    m.release("1")
    assert m.explain_order("B", "buy", 5_001.0 / price[0], price[0]) is None


def test_amending_a_sell_down_in_price_takes_nothing_off_what_it_counts_at() -> None:
    m = monitor()
    m.on_mark("A", 100.0)
    assert m.reserve("1", "A", "sell", 10.0, 100.0) is None
    assert m.amend("1", 10.0, 1.0) is None
    assert m.settle_amend("1", accepted=True)
    assert m.reserved("1") == ("A", "sell", 1.0)
    assert m.get_potential_notional() == 1_000.0
    m.on_mark("A", 50.0)
    assert m.get_potential_notional() == 1_000.0  # as it was promised


def test_what_a_sell_counts_at_survives_a_restart() -> None:
    m = monitor()
    m.on_mark("A", 100.0)
    m.on_mark("B", 100.0)
    m.reserve("1", "A", "sell", 10.0, 1.0)
    m.reserve("2", "B", "sell", 5.0, 1.0)
    m.amend("2", 6.0, 2.0)
    saved = json.loads(json.dumps(m.persist_to_dict(), allow_nan=False))
    again = monitor()
    again.restore_from_dict(saved)
    assert again.persist_to_dict() == m.persist_to_dict()
    assert again.get_potential_notional() == m.get_potential_notional() == 1_600.0
    for order in saved["working_orders"].values():  # as states were before
        del order["counts_at_usd"]
        order["amended"] = order["amended"] and order["amended"][:2]
    older = monitor()
    older.restore_from_dict(saved)
    assert older.get_potential_notional() == 10.0 + 12.0
    older.on_mark("A", 100.0)
    assert older.get_potential_notional() == 1_000.0 + 12.0


def test_the_default_of_one_dollar_is_no_knowledge() -> None:
    m = monitor()
    assert m.simulate_order("A", "sell", 4.0, 0.5).symbol_usd == 2.0
    assert m.simulate_order("A", "buy", 4.0, 0.5).symbol_usd == 2.0


# ---- the market moves


def test_what_is_held_is_worth_the_newest_mark() -> None:
    m = monitor()
    m.on_fill("A", "buy", 900.0, 10.0)
    m.on_mark("A", 100.0)
    assert m.get_total_notional() == m.get_potential_notional() == 90_000.0
    assert m.get_utilization()["max_inventory_utilization_pct"] == 900.0
    assert kind_of(m.explain_order("B", "buy", 1.0, 1.0)) == "total_limit"
    m.on_mark("A", 5.0)
    assert m.get_total_notional() == 4_500.0
    assert m.explain_order("B", "buy", 1.0, 1.0) is None


def test_a_fill_below_the_mark_does_not_make_the_holding_cheaper_and_one_above_it_makes_it_dearer() -> None:
    m = monitor()
    m.on_mark("A", 100.0)
    m.on_fill("A", "buy", 1.0, 1.0)
    assert m.get_total_notional() == 100.0
    m.on_fill("A", "buy", 1.0, 120.0)
    assert m.get_total_notional() == 240.0
    m.on_mark("A", 100.0)  # the market is where it was told to be before
    assert m.get_total_notional() == 200.0


def test_a_mark_warns_as_the_market_moves() -> None:
    heard: list[LimitWarning] = []
    m = monitor(on_warning=heard.append)
    m.on_fill("A", "buy", 100.0, 10.0)
    m.on_mark("A", 60.0)
    assert [(one.symbol, one.step_pct, one.value_usd) for one in heard] == [("A", 50, 6_000.0)]
    m.on_mark("A", 60.0)
    m.on_mark("B", 1e6)  # nothing of it is held
    assert len(heard) == 1


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e16, 1e-19, None, "7", True, pytest.param(10**400, id="huge")]
)
def test_a_mark_that_is_no_price_is_no_knowledge_and_the_last_good_one_stands(bad: Any) -> None:
    m = monitor(price_required=True)
    m.on_mark("A", bad)
    assert not m.knows_price("A")
    assert kind_of(m.reserve("1", "A", "buy", 1.0)) == "price_missing"
    m.on_fill("A", "buy", 2.0, 10.0)
    m.on_mark("A", 50.0)
    m.on_mark("A", bad)
    assert m.get_total_notional() == 100.0
    assert not m.is_frozen()
    for symbol in ("", None, 7, ["A"]):
        m.on_mark(symbol, 1.0)  # type: ignore[arg-type]
        assert not m.knows_price(symbol)  # type: ignore[arg-type]


def at_marks(prices: dict[str, float], heard: list[LimitWarning], **changes: Any) -> RuntimeRiskMonitor:
    return monitor(get_mark_price=prices.__getitem__, on_warning=heard.append, **changes)


@pytest.mark.parametrize("look", ["reserve", "check", "utilization", "limits", "refused"])
def test_the_ladder_warns_at_the_marks_that_the_limits_use(look: str) -> None:
    heard: list[LimitWarning] = []
    prices = {"A": 1.0, "B": 1.0}
    m = at_marks(prices, heard)
    m.on_fill("A", "buy", 1_000.0, 1.0)
    prices["A"] = 9.6
    symbol = "A" if look == "refused" else "B"

    def go() -> None:
        if look in {"reserve", "refused"}:
            m.reserve("1", symbol, "buy", 100.0, 5.0)
            m.release("1")
        elif look == "check":
            m.check_before_order("A", "buy", 1.0, 9.6)
        elif look == "utilization":
            m.get_utilization()
        else:
            m.set_limits(m.limits)

    assert heard == []
    go()
    go()
    if look == "reserve":  # the order is in B: of A nothing was looked at but its part of the total
        assert heard == []
        m.get_utilization()
    assert [(one.symbol, one.step_pct, one.value_usd) for one in heard] == [
        ("A", step, 9_600.0) for step in (50, 75, 85, 90, 95)
    ]
    prices["A"] = 1.0
    go()
    m.get_utilization()
    prices["A"] = 5.5
    m.get_utilization()
    assert (heard[-1].step_pct, heard[-1].value_usd) == (50, 5_500.0)  # it had fallen below its steps


def test_the_ladder_warns_of_the_total_at_marks() -> None:
    heard: list[LimitWarning] = []
    m = at_marks({"A": 30.0, "B": 1.0}, heard, max_inventory_usd_per_symbol=50_000.0)
    m.on_fill("A", "buy", 1_000.0, 1.0)
    assert m.reserve("1", "B", "sell", 20.0, 1.0) is None
    assert [(one.symbol, one.step_pct, one.value_usd) for one in heard] == [(None, 50, 30_020.0)]


def test_an_order_that_is_reserved_at_marks_warns_with_what_it_counts_at() -> None:
    heard: list[LimitWarning] = []
    m = at_marks({"A": 100.0}, heard)
    assert m.reserve("1", "A", "sell", 60.0, 1.0) is None
    assert m.check_before_order("A", "sell", 39.0, 1.0)  # only asked about
    assert [(one.symbol, one.step_pct, one.value_usd) for one in heard] == [("A", 50, 6_000.0)]
    assert m.amend("1", 80.0) is None
    assert [(one.symbol, one.step_pct, one.value_usd) for one in heard[1:]] == [("A", 75, 8_000.0)]
    assert m.explain_order("A", "sell", 20.0, 1.0) is None
    m.simulate_order("A", "sell", 20.0, 1.0)
    assert len(heard) == 2


def test_a_fill_warns_at_its_own_price_without_asking_a_slow_source_and_calls_off_nothing() -> None:
    heard: list[LimitWarning] = []
    asked: list[str] = []

    def mark(symbol: str) -> float:
        asked.append(symbol)
        return 90.0

    m = monitor(get_mark_price=mark, on_warning=heard.append)
    m.on_fill("A", "buy", 60.0, 100.0)
    assert [(one.symbol, one.step_pct) for one in heard] == [("A", 50)]
    assert asked == []
    m.on_fill("A", "buy", 1.0, 1.0)
    m.on_fill("A", "buy", 1.0, 100.0)
    assert len(heard) == 1


def test_a_market_order_is_worth_the_newest_mark_and_not_the_default() -> None:
    m = monitor()
    m.on_mark("A", 6_000.0)
    assert m.explain_order("A", "buy", 1.0) is None
    refusal = m.reserve("1", "A", "sell", 2.0)
    assert refusal is not None
    assert (refusal.kind, refusal.value) == ("symbol_limit", 12_000.0)


def test_unknown_is_frozen__a_market_order_of_a_symbol_without_a_price_is_refused_where_prices_are_required() -> None:
    m = monitor(price_required=True)
    assert not m.knows_price("A")
    for side in ("buy", "sell"):
        refusal = m.reserve("1", "A", side, 1.0)
        assert refusal is not None
        assert kind_of(refusal) == kind_of(m.explain_order("A", side, 1.0)) == "price_missing"
        assert "has no known value" in refusal.sentence
        assert [one.kind for one in m.simulate_order("A", side, 1.0).refusals] == ["price_missing"]
        assert not m.check_before_order("A", side, 1.0)
    assert m.explain_order("A", "buy", 1.0, 5.0) is None  # its own price says what it is worth
    m.on_mark("B", 5.0)
    assert (m.knows_price("A"), m.knows_price("B")) == (False, True)
    assert m.reserve("1", "B", "buy", 1.0) is None
    m.on_fill("A", "buy", 1.0, 5.0)  # a fill is a price
    assert m.knows_price("A")
    assert m.reserve("2", "A", "sell", 1.0) is None  # one must be able to get out
    assert not m.is_frozen()
    assert monitor().explain_order("A", "buy", 1.0) is None  # 1.0 for every symbol, where nobody asked


def test_a_monitor_with_a_source_of_marks_asks_it_and_takes_no_others() -> None:
    m = monitor(get_mark_price={"A": 10.0}.__getitem__)
    assert m.knows_price("A")
    m.on_fill("A", "buy", 1.0, 10.0)
    m.on_mark("A", 99.0)
    assert m.get_total_notional() == m.get_potential_notional() == 10.0


def test_the_number_of_marks_is_bounded_and_one_too_many_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("killswitch.risk.limits.worst_case_exposure.MAX_SYMBOLS", 1)
    m = monitor(price_required=True)
    m.on_mark("A", 1.0)
    m.on_mark("B", 1.0)
    m.on_mark("A", 2.0)
    assert (m.knows_price("A"), m.knows_price("B")) == (True, False)
    assert kind_of(m.explain_order("B", "buy", 1.0)) == "price_missing"


def test_marks_from_one_thread_and_orders_from_others_lose_nothing() -> None:
    rounds = 300
    m = monitor(max_inventory_usd_per_symbol=1e9, max_total_notional_usd=1e9)

    def mark() -> None:
        for turn in range(rounds):
            m.on_mark("A", 1.0 + turn % 7)
        m.on_mark("A", 2.0)

    def trade(number: int) -> None:
        for turn in range(rounds):
            name = f"{number}-{turn}"
            assert m.reserve(name, "A", "buy", 0.1, 1.0) is None
            if turn % 2:
                m.on_fill("A", "buy", 0.1, 1.0, client_order_id=name)
            else:
                m.release(name)

    together(mark, *(lambda number=number: trade(number) for number in range(4)))
    m.on_mark("A", 3.0)
    assert m.get_positions() == {"A": 4 * rounds / 2 / 10}
    assert m.get_potential_notional() == 3.0 * 4 * rounds / 2 / 10
    assert m.working_orders() == 0

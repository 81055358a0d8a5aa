"""Section A of the seed systems, prices: what is held and sold is worth what the market says, where it says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from agents.risk.limits import OrderRefused
from agents.risk.runtime_monitor import RuntimeRiskMonitor
from agents.risk.warning_ladder import LimitWarning
from tests.unit.eager import together


@pytest.fixture(autouse=True)
def logs() -> Iterator[Any]:
    with capture_logs() as captured:
        yield captured


def monitor(**changes: Any) -> RuntimeRiskMonitor:
    given: dict[str, Any] = {
        "max_inventory_usd_per_symbol": 10_000.0,
        "max_total_notional_usd": 50_000.0,
        "edge_freeze_threshold_bps": 1.5,
        "registry": CollectorRegistry(),
    }
    return RuntimeRiskMonitor(**{**given, **changes})


def kind_of(refusal: OrderRefused | None) -> str | None:
    return None if refusal is None else refusal.kind


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


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e16, 1e-19, None, "7", True, 10**400])
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
    assert monitor().explain_order("A", "buy", 1.0) is None  # the seed's 1.0 for every symbol, where nobody asked


def test_a_monitor_with_a_source_of_marks_asks_it_and_takes_no_others() -> None:
    m = monitor(get_mark_price={"A": 10.0}.__getitem__)
    assert m.knows_price("A")
    m.on_fill("A", "buy", 1.0, 10.0)
    m.on_mark("A", 99.0)
    assert m.get_total_notional() == m.get_potential_notional() == 10.0


def test_the_number_of_marks_is_bounded_and_one_too_many_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.risk.potential_book.MAX_SYMBOLS", 1)
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

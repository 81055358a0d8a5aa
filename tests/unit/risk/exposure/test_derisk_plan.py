"""What a mode asks of execution: sizes, prices, and everything for which nothing may be sold."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.core.reduce_only import reduces_only
from killswitch.risk.exposure.derisk_plan import MAX_ORDERS, DeriskPlan, Quote, derisk_plan, inventory_rotation
from killswitch.risk.exposure.exposure_figures import HeldPosition
from killswitch.risk.exposure.policy_settings import DeriskSettings, RotationSettings
from killswitch.risk.exposure.policy_table import PolicyDecisionTable, PolicyMode, PolicyReason

TABLE = PolicyDecisionTable()
QUOTE = Quote(100.0, 99.5, 100.5)


def position(quantity: float, *, symbol: str = "A", bucket: str = "LT", buys: float = 0, sells: float = 0) -> Any:
    return HeldPosition(
        symbol, bucket, Decimal(str(quantity)), Decimal(str(buys)), Decimal(str(sells)), Decimal(str(quantity)) * 100
    )


def decision(regime: str, gross: float, minutes: float = 200.0, lt: float = 50.0) -> tuple[PolicyMode, PolicyReason]:
    return TABLE.decide(regime, gross, gross, lt, lt, 10.0, 10.0, minutes)


def plan(decided: tuple[PolicyMode, PolicyReason], held: list[Any], **changes: Any) -> DeriskPlan:
    given_: dict[str, Any] = {"quotes": {one.symbol: QUOTE for one in held}, "market_open": True, **changes}
    return derisk_plan(*decided, held, **given_)


def test_soft_rests_a_cent_from_the_last_trade_and_aims_below_the_tolerance() -> None:
    found = plan(decision("LATE", 120.0), [position(100), position(-50, symbol="B", bucket="MM_PURE")])
    assert [(one.symbol, one.side, one.limit_price, one.urgency) for one in found.orders] == [
        ("A", "sell", Decimal("99.99"), "near_last"),
        ("B", "buy", Decimal("100.01"), "near_last"),
    ]
    assert [one.quantity for one in found.orders] == [Decimal("5"), Decimal("2.5")]  # from 120 to 114
    assert found.cancel_growing


def test_soft_for_a_bucket_reduces_that_bucket_to_its_most() -> None:
    decided = TABLE.decide("MID", 100.0, 100.0, 100.0, 100.0, 0.0, 0.0, 200.0)
    found = plan(decided, [position(100), position(100, symbol="B", bucket="MM_PURE")])
    assert [(one.symbol, one.quantity) for one in found.orders] == [("A", Decimal("10"))]


def test_hard_crosses_the_spread_a_tenth_at_a_step() -> None:
    found = plan(decision("OPEN", 131.0), [position(100), position(-30, symbol="B")])
    assert [(one.side, one.quantity, one.limit_price, one.urgency) for one in found.orders] == [
        ("sell", Decimal("10"), Decimal("99.5"), "cross_spread"),
        ("buy", Decimal("3"), Decimal("100.5"), "cross_spread"),
    ]


def test_sizes_and_prices_are_settings() -> None:
    how = DeriskSettings(hard_step_ratio=0.5, soft_price_offset_usd=1.0, soft_margin_pct=15.0)
    assert plan(decision("OPEN", 131.0), [position(100)], settings=how).orders[0].quantity == 50
    soft = plan(decision("LATE", 125.0), [position(100)], settings=how).orders[0]
    assert (soft.quantity, soft.limit_price) == (20, 99)


def test_a_lot_rounds_up_but_never_beyond_the_position() -> None:
    decided = decision("OPEN", 131.0)
    whole = {"A": Quote(100.0, 99.5, 100.5, lot=Decimal(1))}
    assert plan(decided, [position(15)], quotes=whole).orders[0].quantity == 2
    assert plan(decided, [position(0.4)], quotes=whole).orders[0].quantity == Decimal("0.4")
    for bad in (Decimal(0), Decimal(-1), Decimal("NaN")):
        found = plan(decided, [position(15)], quotes={"A": Quote(100.0, 99.5, 100.5, lot=bad)})
        assert found.orders == ()
        assert "lot" in found.not_planned[0].sentence


def test_reducing_orders_that_work_already_count() -> None:
    soft, hard = decision("LATE", 120.0), decision("OPEN", 131.0)
    assert plan(soft, [position(100, sells=2)]).orders[0].quantity == 3
    assert plan(soft, [position(100, sells=5)]).orders == ()
    assert plan(hard, [position(100, sells=5)]).orders[0].quantity == 10  # they may wait for a price that never comes
    assert plan(hard, [position(100, sells=95)]).orders[0].quantity == 5
    found = plan(hard, [position(100, sells=100)])
    assert (found.orders, found.not_planned[0].sentence) == ((), "working orders close all of it already")
    assert plan(hard, [position(100, buys=100)]).orders[0].quantity == 10  # growing ones are cancelled


@pytest.mark.parametrize("regime", ["OPEN", "MID"])
def test_normal_and_throttle_sell_nothing(regime: str) -> None:
    calm = plan(decision(regime, 50.0), [position(100)])
    assert (calm.orders, calm.not_planned, calm.cancel_growing) == ((), (), False)
    throttled = plan(TABLE.decide(regime, 85.0, 135.0, 50.0, 50.0, 10.0, 10.0, 200.0), [position(100)])
    assert (throttled.orders, throttled.cancel_growing) == ((), True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_unknown_is_frozen__a_figure_that_is_none_sells_nothing(bad: float) -> None:
    mode, reason = decision("MID", bad)
    found = plan((mode, reason), [position(100)])
    assert mode is PolicyMode.HARD_DERISK
    assert (found.orders, found.cancel_growing) == ((), True)
    assert found.not_planned[0].sentence == "the figures are not known"


def test_nothing_is_sold_while_the_market_is_closed() -> None:
    found = plan(decision("CLOSE", 110.0, 0.0), [position(100)], market_open=False)
    assert (found.orders, found.not_planned[0].sentence) == ((), "the market is closed")


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, 0.0, -1.0, "100", True])
def test_unknown_is_frozen__a_price_that_is_none_sells_nothing(bad: Any) -> None:
    soft, hard = decision("LATE", 120.0), decision("OPEN", 131.0)
    for decided, quote in ((soft, Quote(bad)), (hard, Quote(100.0, bad, 100.5)), (hard, Quote(100.0, 99.5, bad))):
        found = plan(decided, [position(100)], quotes={"A": quote})
        assert found.orders == ()
        assert found.not_planned[0].symbol == "A"
    assert plan(hard, [position(100)], quotes={}).not_planned[0].sentence == "there is no quote"
    crossed = plan(hard, [position(100)], quotes={"A": Quote(100.0, 101.0, 100.0)})
    assert crossed.orders == ()


def test_a_symbol_of_less_than_a_cent_rests_at_its_last_trade() -> None:
    found = plan(decision("LATE", 120.0), [position(100)], quotes={"A": Quote(0.004)})
    assert found.orders[0].limit_price == Decimal("0.004")


def test_more_positions_than_one_plan_may_have_are_told() -> None:
    found = plan(decision("OPEN", 131.0), [position(1)] * (MAX_ORDERS + 1))
    assert found.orders == ()
    assert "more than" in found.sentence


sizes = st.decimals("0.001", "1000", places=3)


@given(
    held=st.tuples(st.sampled_from([1, -1]), sizes), working=st.tuples(sizes, sizes), gross=st.floats(100, 200),
    lot=st.sampled_from(["0.001", "1", "7"]),
)  # fmt: skip
def test_an_order_of_a_plan_only_ever_reduces(
    held: tuple[int, Decimal], working: tuple[Decimal, Decimal], gross: float, lot: str
) -> None:
    """Together with everything that works it never turns a position round."""
    sign, size = held
    one = HeldPosition("A", "LT", size * sign, *working, size)
    found = plan(decision("LATE", gross), [one], quotes={"A": Quote(100.0, 99.5, 100.5, lot=Decimal(lot))})
    for order in found.orders:
        works = [(1, float(working[0])), (-1, float(working[1]))]
        assert reduces_only(float(one.quantity), works, 1 if order.side == "buy" else -1, float(order.quantity))


# ---- rotation


def test_a_tenth_to_a_fifth_of_the_long_term_inventory_may_be_rotated() -> None:
    held = [position(100), position(-50, symbol="B"), position(9, symbol="C", bucket="MM_PURE"), position(0)]
    found = inventory_rotation(PolicyMode.NORMAL, held)
    assert [(one.symbol, one.least, one.most) for one in found] == [("A", 10, 20), ("B", 5, 10)]
    assert inventory_rotation(PolicyMode.NORMAL, held, RotationSettings(min_ratio=0.0, max_ratio=0.5))[0].most == 50
    for mode in (PolicyMode.THROTTLE_NEW_ORDERS, PolicyMode.SOFT_DERISK, PolicyMode.HARD_DERISK):
        assert inventory_rotation(mode, held) == ()

"""The exposure book: exact sums, the worst case over working orders, options, and what it does not know."""

from __future__ import annotations

import itertools
import math
import random
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.exposure_figures import BookHolding, BookOrder
from killswitch.risk.exposure.exposure_numbers import LARGEST, amount, percentage
from killswitch.risk.exposure.exposure_unit import OptionGreeks, option_unit
from killswitch.risk.exposure.policy_settings import UNGROUPED, ExposureSettings

BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1.0, "1", None, True, 2e15, 1e-40, Decimal("NaN"), 10**400]
LT, MM = "LT", "MM_PURE"


def book(equity: float | None = 1_000.0, **settings: Any) -> ExposureBook:
    made = ExposureBook(ExposureSettings(**settings))
    if equity is not None:
        made.set_equity(equity)
    return made


# ---- sums


def test_gross_net_long_and_short_are_added_over_symbols_and_buckets() -> None:
    b = book()
    b.on_fill("A", "buy", 3, 100.0, bucket=LT)
    b.on_fill("B", "sell", 2, 50.0, bucket=MM)
    f = b.figures()
    assert (f.gross_usd, f.long_usd, f.short_usd, f.net_usd) == (400.0, 300.0, 100.0, 200.0)
    assert (f.gross_exposure_pct, f.long_exposure_pct, f.short_exposure_pct, f.net_exposure_pct) == (40, 30, 10, 20)
    assert f.trusted
    assert f.faults == ()


def test_two_buckets_of_one_symbol_are_not_netted() -> None:
    b = book()
    b.on_fill("A", "buy", 1, 100.0, bucket=LT)
    b.on_fill("A", "sell", 1, 100.0, bucket=MM)
    assert b.figures().gross_exposure_pct == 20.0
    assert b.figures().net_exposure_pct == 0.0


def test_a_mark_revalues_every_bucket_of_its_symbol_and_then_fills_do_not() -> None:
    b = book()
    b.on_fill("A", "buy", 1, 100.0, bucket=LT)
    b.on_fill("A", "buy", 1, 110.0, bucket=MM)
    assert b.figures().gross_usd == 220.0  # without marks at the last fill
    b.on_mark("A", 120.0)
    assert b.figures().gross_usd == 240.0
    b.on_fill("A", "buy", 1, 200.0, bucket=LT)
    assert b.figures().gross_usd == 360.0


def test_the_multiplier_of_a_future_counts() -> None:
    b = book()
    b.set_multiplier("ES", 50)
    b.on_fill("ES", "buy", 1, 10.0, bucket=LT)
    b.on_order("o", "ES", "buy", 1, 12.0, bucket=LT)
    assert (b.figures().gross_usd, b.figures().potential_usd) == (500.0, 500.0 + 600.0)
    with pytest.raises(ValueError, match="first"):
        b.set_multiplier("ES", 5)
    for bad in (0, *BAD_NUMBERS):
        with pytest.raises(ValueError, match="multiplier"):
            b.set_multiplier("NQ", bad)  # type: ignore[arg-type]


def test_ten_thousand_fills_agree_with_decimal_and_flat_is_flat() -> None:
    picks = random.Random(7)
    b = book(None)
    b.set_equity(Decimal(10) ** 9)
    held: dict[tuple[str, str], Decimal] = {}
    last: dict[str, Decimal] = {}
    for _ in range(10_000):
        symbol, bucket, side = picks.choice("ABCDEFGH"), picks.choice((LT, MM)), picks.choice(("buy", "sell"))
        qty, price = round(picks.uniform(0.0001, 9), 7), round(picks.uniform(0.01, 70_000), 3)
        b.on_fill(symbol, side, qty, price, bucket=bucket)
        change = Decimal(str(qty)) * (1 if side == "buy" else -1)
        held[symbol, bucket] = held.get((symbol, bucket), Decimal(0)) + change
        last[symbol] = Decimal(str(price))
    values = [quantity * last[symbol] for (symbol, _), quantity in held.items()]
    f = b.figures()
    assert f.long_usd == float(sum(v for v in values if v > 0))
    assert f.short_usd == float(-sum(v for v in values if v < 0))
    for position in b.positions():
        side = "sell" if position.quantity > 0 else "buy"
        b.on_fill(position.symbol, side, abs(position.quantity), 3.3, bucket=position.bucket)
    f = b.figures()
    assert (f.gross_usd, f.net_usd, f.potential_usd, f.gross_exposure_pct) == (0.0, 0.0, 0.0, 0.0)
    assert b.positions() == []
    assert all(one.gross_exposure_pct == 0.0 for one in b.groups().values())


def test_a_tenth_and_two_tenths_sold_as_three_tenths_are_flat() -> None:
    b = book()
    b.on_fill("A", "buy", 0.1, 3.0, bucket=LT)
    b.on_fill("A", "buy", 0.2, 3.0, bucket=LT)
    b.on_fill("A", "sell", 0.3, 3.0, bucket=LT)
    assert b.positions() == []
    assert b.figures().gross_usd == 0.0


# ---- working orders


def test_potential_is_the_worst_of_both_directions() -> None:
    b = book()
    b.on_fill("A", "buy", 3, 100.0, bucket=LT)
    b.on_order("1", "A", "buy", 1, 100.0, bucket=LT)
    b.on_order("2", "A", "sell", 8, 100.0, bucket=LT)
    f = b.figures()
    assert f.gross_exposure_pct == 30.0
    assert f.potential_exposure_pct == 50.0  # all sells and no buy: 5 short; all buys and no sell: 4 long
    assert (f.open_orders_potential, f.open_orders_potential_usd, f.working_orders) == (20.0, 200.0, 2)
    b.on_order_over("2")
    assert b.figures().potential_exposure_pct == 40.0
    b.on_order_over("1")
    b.on_order_over("1")  # over already
    assert b.figures().potential_exposure_pct == 30.0


def test_a_fill_takes_from_its_order_in_the_same_step() -> None:
    b = book()
    b.on_order("1", "A", "buy", 4, 100.0, bucket=LT)
    assert b.figures().potential_exposure_pct == 40.0  # valued at its own price, before anything is known
    b.on_fill("A", "buy", 1, 100.0, bucket=LT, order_id="1")
    f = b.figures()
    assert (f.gross_exposure_pct, f.potential_exposure_pct) == (10.0, 40.0)
    b.on_fill("A", "buy", 5, 100.0, bucket=LT, order_id="1")  # more than was working: it is a fact
    f = b.figures()
    assert (f.gross_exposure_pct, f.potential_exposure_pct, f.working_orders) == (60.0, 60.0, 0)
    assert f.trusted


def test_an_order_that_is_told_again_is_replaced() -> None:
    b = book()
    b.on_order("1", "A", "buy", 4, 100.0, bucket=LT)
    b.on_order("1", "A", "buy", 2, 100.0, bucket=LT)
    assert b.figures().potential_usd == 200.0
    b.on_order("1", "A", "buy", 0, 100.0, bucket=LT)
    assert (b.figures().potential_usd, b.figures().working_orders) == (0.0, 0)


def test_what_an_order_adds_counts_at_the_dearer_of_mark_and_its_price() -> None:
    b = book()
    b.on_mark("A", 100.0)
    b.on_fill("A", "buy", 1, 100.0, bucket=LT)
    b.on_order("buy", "A", "buy", 1, 90.0, bucket=LT)
    assert b.figures().potential_usd == 200.0
    b.on_order("sell", "A", "sell", 3, 150.0, bucket=LT)
    assert b.figures().potential_usd == 300.0  # two of them go beyond flat, and fill only when the market is at 150
    b.on_order_over("sell")
    assert b.figures().potential_usd == 200.0
    b.on_order("market", "A", "buy", 1, None, bucket=LT)
    assert b.figures().potential_usd == 300.0


quantities = st.integers(-40, 40)
orders = st.lists(st.tuples(st.sampled_from([1, -1]), st.integers(1, 30), st.integers(50, 150)), max_size=6)


@given(held=quantities, working=orders, mark=st.integers(60, 140))
def test_potential_covers_every_subset_of_the_working_orders(
    held: int, working: list[tuple[int, int, int]], mark: int
) -> None:
    """No subset, filled wholly or in part, is worth more than the potential; with orders at the mark it is exact."""
    dear, plain = book(), book()
    for b in (dear, plain):
        b.on_mark("A", mark)
        if held:
            b.on_fill("A", "buy" if held > 0 else "sell", abs(held), mark, bucket=LT)
    for number, (sign, quantity, price) in enumerate(working):
        side = "buy" if sign > 0 else "sell"
        dear.on_order(str(number), "A", side, quantity, price, bucket=LT)
        plain.on_order(str(number), "A", side, quantity, None, bucket=LT)
    worst = 0
    for chosen in itertools.product((0, 1, 2), repeat=len(working)):
        after = held + sum(Fraction(part * sign * qty, 2) for part, (sign, qty, _) in zip(chosen, working, strict=True))
        worst = max(worst, abs(after) * mark)
    assert plain.figures().potential_usd == float(worst)
    assert dear.figures().potential_usd >= plain.figures().potential_usd
    assert plain.figures().potential_usd >= plain.figures().gross_usd


events = st.lists(
    st.tuples(
        st.sampled_from(["fill", "order", "over", "mark"]),
        st.sampled_from("AB"),
        st.sampled_from(["buy", "sell"]),
        st.integers(1, 9),
        st.sampled_from([LT, MM]),
        st.sampled_from("1234"),
    ),
    max_size=40,
)


@given(events)
def test_kept_sums_agree_with_a_book_rebuilt_from_what_is_held(
    steps: list[tuple[str, str, str, int, str, str]],
) -> None:
    b = book(1e6, groups={"g": ["A"], "h": ["B"]})
    b.on_mark("A", 7.0)
    b.on_mark("B", 3.0)
    working: dict[str, BookOrder] = {}
    for kind, symbol, side, number, bucket, order_id in steps:
        name = f"{symbol}{bucket}{side}{order_id}"
        if kind == "fill":
            b.on_fill(symbol, side, number, 5.0, bucket=bucket, order_id=name)
            old = working.pop(name, None)
            if old is not None and old.remaining_qty > number:
                working[name] = BookOrder(name, symbol, bucket, side, old.remaining_qty - number)
        elif kind == "order":
            b.on_order(name, symbol, side, number, bucket=bucket)
            working[name] = BookOrder(name, symbol, bucket, side, number)
        elif kind == "over":
            b.on_order_over(name)
            working.pop(name, None)
        else:
            b.on_mark(symbol, float(number))
    before, groups = b.figures(), b.groups()
    holdings = [BookHolding(one.symbol, one.bucket, one.quantity, 1.0) for one in b.positions()]
    b.rebuild(holdings, working.values())
    assert b.figures() == before
    assert b.groups() == groups


# ---- groups


def test_any_number_of_groups_up_to_the_limit() -> None:
    groups = {f"g{number}": [f"S{number}"] for number in range(1_000)}
    b = book(1e6, groups=groups)
    b.on_fill("S999", "sell", 10, 1_000.0, bucket=LT)
    one = b.groups()["g999"]
    assert (one.gross_exposure_pct, one.net_exposure_pct, one.potential_exposure_pct) == (1.0, -1.0, 1.0)
    assert b.groups()["g0"].gross_exposure_pct == 0.0
    with pytest.raises(ValueError, match="1000"):
        ExposureSettings(groups={**groups, "one more": ["X"]})


def test_unknown_is_frozen__a_symbol_that_no_group_names_is_a_breach_while_it_is_held() -> None:
    b = book(groups={"tech": ["A"]})
    b.on_fill("A", "buy", 1, 100.0, bucket=LT)
    b.on_fill("Z", "buy", 1, 100.0, bucket=LT)
    f = b.figures()
    assert math.isnan(f.gross_exposure_pct)
    assert f.faults == ("Z is in no group",)
    assert f.gross_usd == 200.0  # it is counted all the same
    assert math.isnan(b.groups()[UNGROUPED].gross_exposure_pct)
    b.on_fill("Z", "sell", 1, 100.0, bucket=LT)
    assert b.figures().gross_exposure_pct == 10.0


# ---- options


def test_an_option_counts_through_its_delta_with_gamma_and_vega_beside_it() -> None:
    b = book(100_000.0)
    b.on_greeks("CALL", OptionGreeks(0.5, 0.02, 0.3, 100.0), multiplier=100)
    b.on_greeks("PUT", OptionGreeks(-0.25, 0.01, 0.2, 100.0), multiplier=100)
    b.on_fill("CALL", "buy", 10, 4.2, bucket=LT)
    b.on_fill("PUT", "buy", 4, 1.1, bucket=MM)
    f = b.figures()
    assert (f.long_usd, f.short_usd) == (50_000.0, 10_000.0)  # a long put is a short exposure
    assert f.gamma_usd_per_pct == 10 * 100 * 0.02 * 100 * 100 / 100 + 4 * 100 * 0.01 * 100 * 100 / 100
    assert f.vega_usd_per_point == 10 * 100 * 0.3 + 4 * 100 * 0.2
    b.on_order("o", "PUT", "sell", 20, 999.0, bucket=MM)  # a premium says nothing of the exposure
    assert b.figures().potential_usd == 50_000.0 + 16 * 2_500.0
    b.on_mark("CALL", 999.0)
    assert b.figures().long_usd == 50_000.0
    b.on_greeks("CALL", OptionGreeks(0.75, 0.02, 0.3, 200.0), multiplier=100)
    assert b.figures().long_usd == 150_000.0
    b.on_fill("CALL", "sell", 10, 4.2, bucket=LT)
    b.on_order_over("o")
    b.on_fill("PUT", "sell", 4, 1.1, bucket=MM)
    f = b.figures()
    assert (f.gross_usd, f.gamma_usd_per_pct, f.vega_usd_per_point) == (0.0, 0.0, 0.0)


def test_unknown_is_frozen__an_option_without_greeks_cannot_be_valued() -> None:
    b = book()
    b.on_greeks("CALL", None)
    b.on_fill("CALL", "buy", 1, 4.2, bucket=LT)
    assert math.isnan(b.figures().gross_exposure_pct)
    b.on_greeks("CALL", OptionGreeks(0.5, 0.0, 0.0, 100.0))
    assert b.figures().gross_exposure_pct == 5.0
    b.on_greeks("CALL", OptionGreeks(0.5, 0.0, 0.0, 100.0), multiplier=math.nan)
    assert math.isnan(b.figures().gross_exposure_pct)


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["delta", "gamma", "vega", "underlying_price"])
def test_unknown_is_frozen__greeks_that_cannot_be_are_refused(name: str, bad: Any) -> None:
    good = {"delta": 0.5, "gamma": 0.1, "vega": 0.1, "underlying_price": 100.0}
    if name == "delta" and bad == -1.0:
        bad = -1.01
    with pytest.raises(ValueError, match=name):
        OptionGreeks(**{**good, name: bad})


def test_option_units_are_exact() -> None:
    unit = option_unit(OptionGreeks(0.1, 0.3, 0.7, 1.1), 100)
    assert unit.usd == Decimal("11.0")
    assert unit.gamma_usd_per_pct == Decimal("0.3") * 100 * Decimal("1.21") / 100
    assert unit.vega_usd_per_point == Decimal("70")
    with pytest.raises(ValueError, match="multiplier"):
        option_unit(OptionGreeks(0.1, 0.3, 0.7, 1.1), 0)


# ---- what is not known


def test_unknown_is_frozen__without_an_equity_nothing_is_known() -> None:
    b = book(None)
    assert math.isnan(b.figures().gross_exposure_pct)
    b.set_equity(1.0)
    assert b.figures().gross_exposure_pct == 0.0


@pytest.mark.parametrize("equity", [0.0, -1.0, -1e9])
def test_unknown_is_frozen__an_equity_of_nothing_makes_every_percentage_infinite(equity: float) -> None:
    b = book(equity)
    assert b.figures().gross_exposure_pct == math.inf  # even flat
    b.on_fill("A", "buy", 1, 1.0, bucket=LT)
    assert b.figures().gross_exposure_pct == b.figures().buckets[LT].current_pct == math.inf


@pytest.mark.parametrize("equity", [math.nan, math.inf, "1", None, True, 2e18])
def test_unknown_is_frozen__an_equity_that_is_no_number_is_not_known(equity: Any) -> None:
    b = book()
    b.set_equity(equity)
    assert math.isnan(b.figures().gross_exposure_pct)
    assert b.figures().equity_usd is None
    b.set_equity(10.0)
    assert b.figures().gross_exposure_pct == 0.0


@pytest.mark.parametrize("bad", [0.0, *BAD_NUMBERS])
def test_unknown_is_frozen__a_bad_mark_holds_until_a_good_one(bad: Any) -> None:
    b = book()
    b.on_fill("A", "buy", 1, 100.0, bucket=LT)
    b.on_mark("A", bad)
    assert math.isnan(b.figures().gross_exposure_pct)
    assert b.figures().faults == ("A has no price that can be used",)
    b.on_fill("A", "buy", 1, 100.0, bucket=LT)  # once marks come, only marks say what it is worth
    assert math.isnan(b.figures().potential_exposure_pct)
    b.on_mark("A", 50.0)
    assert b.figures().gross_exposure_pct == 10.0


def test_unknown_is_frozen__an_order_at_any_price_of_an_unknown_symbol_cannot_be_valued() -> None:
    b = book()
    b.on_order("1", "A", "buy", 1, None, bucket=LT)
    assert math.isnan(b.figures().potential_exposure_pct)
    b.on_mark("A", 100.0)
    assert b.figures().potential_exposure_pct == 10.0


BAD_FACTS = [
    (what, bad)
    for what in ("fill qty", "fill price", "order qty", "order price")
    for bad in (0.0, *BAD_NUMBERS)
    # An order of 0 is over, and one without a price is at any price.
    if (what, bad) not in (("order qty", 0.0), ("order price", None))
]


@pytest.mark.parametrize(("what", "bad"), BAD_FACTS)
def test_unknown_is_frozen__a_bad_number_of_a_fill_or_an_order_lasts(what: str, bad: Any, logs: Any) -> None:
    b = book()
    b.on_fill("A", "buy", 1, 100.0, bucket=LT)
    qty, price = (bad, 100.0) if "qty" in what else (1.0, bad)
    if "fill" in what:
        b.on_fill("A", "buy", qty, price, bucket=LT)
    else:
        b.on_order("1", "A", "buy", qty, price, bucket=LT)
    f = b.figures()
    assert math.isnan(f.gross_exposure_pct)
    assert math.isnan(f.buckets[LT].potential_pct)
    assert "makes no sense" in f.faults[0]
    assert [line["event"] for line in logs] == ["the exposure is not known any more"]
    assert f.gross_usd == 100.0
    b.rebuild([BookHolding("A", LT, 2.0, 100.0)], [])
    assert b.figures().gross_exposure_pct == 20.0


@pytest.mark.parametrize("side", ["", "hold", None, 1])
@pytest.mark.parametrize("bucket", [LT, "lt", None, 3])
def test_unknown_is_frozen__an_unknown_side_or_bucket_lasts(side: Any, bucket: Any) -> None:
    if side == "":
        side = "buy" if bucket != LT else "?"
    for tell in ("fill", "order"):
        b = book()
        if tell == "fill":
            b.on_fill("A", side, 1.0, 1.0, bucket=bucket)
        else:
            b.on_order("1", "A", side, 1.0, 1.0, bucket=bucket)
        assert not b.figures().trusted


@pytest.mark.parametrize("symbol", ["", None, 5])
def test_unknown_is_frozen__a_symbol_without_a_name(symbol: Any) -> None:
    for call in (
        lambda b: b.on_fill(symbol, "buy", 1.0, 1.0, bucket=LT),
        lambda b: b.on_order("1", symbol, "buy", 1.0, 1.0, bucket=LT),
        lambda b: b.on_mark(symbol, 1.0),
        lambda b: b.on_greeks(symbol, None),
    ):
        b = book()
        call(b)
        assert not b.figures().trusted
    with pytest.raises(ValueError, match="followed"):
        book().set_multiplier(symbol, 2)


def test_unknown_is_frozen__an_order_that_becomes_another_one() -> None:
    b = book()
    b.on_order("1", "A", "buy", 1, 1.0, bucket=LT)
    b.on_order("1", "A", "sell", 1, 1.0, bucket=LT)
    assert "order 1" in b.figures().faults[0]
    b = book()
    b.on_order("1", "A", "buy", 1, 1.0, bucket=LT)
    b.on_fill("B", "buy", 1, 1.0, bucket=LT, order_id="1")
    assert "names order 1" in b.figures().faults[0]
    assert b.figures().gross_usd == 1.0  # the fill counts, the order too


def test_limits_on_symbols_and_orders_are_breaches() -> None:
    b = book(max_symbols=2, max_working_orders=1)
    b.on_fill("A", "buy", 1, 1.0, bucket=LT)
    b.on_mark("B", 1.0)
    b.on_order("1", "A", "buy", 1, 1.0, bucket=LT)
    assert b.figures().trusted
    assert b.forget_symbol("B")
    assert not b.forget_symbol("A")
    b.on_mark("C", 1.0)
    assert b.figures().trusted
    b.on_fill("D", "buy", 1, 1.0, bucket=LT)
    assert "more than 2 symbols" in b.figures().faults[0]
    b.on_order("2", "A", "buy", 1, 1.0, bucket=LT)
    assert "more than 1 orders" in b.figures().faults[1]


def test_a_position_beyond_the_largest_is_a_breach() -> None:
    b = book()
    for _ in range(2):
        b.on_fill("A", "buy", float(LARGEST), 1.0, bucket=LT)
    assert "beyond" in b.figures().faults[0]


def test_a_rebuild_with_a_bad_holding_leaves_an_empty_book_that_is_not_trusted() -> None:
    b = book()
    b.on_fill("A", "buy", 1, 1.0, bucket=LT)
    with pytest.raises(ValueError, match="rebuilt"):
        b.rebuild([BookHolding("A", LT, 1.0, 1.0), BookHolding("B", LT, math.nan, 1.0)], [])
    assert not b.figures().trusted
    assert b.positions() == []
    b.rebuild([BookHolding("A", LT, -2.0, 1.0), BookHolding("B", MM, 0.0, 1.0)], [BookOrder("1", "A", LT, "sell", 1.0)])
    f = b.figures()
    assert (f.trusted, f.short_usd, f.potential_usd, f.working_orders) == (True, 2.0, 3.0, 1)


def test_the_newest_faults_are_kept_and_some_are_shown() -> None:
    b = book()
    for number in range(1_000):
        b.on_fill("A", "?", number, 1.0, bucket=LT)
    assert len(b.figures().faults) == 5
    assert "999" in b.figures().faults[-1]


# ---- the age of marks


class Aged:
    """A book on a clock that the test moves, with a LT position of 400 USD in A that was filled at 0 s."""

    def __init__(self, *, filled: bool = True, **settings: Any) -> None:
        self.seconds = 0.0
        self.book = ExposureBook(ExposureSettings(**settings), clock=lambda: int(self.seconds * 1e9))
        self.book.set_equity(1_000.0)
        if filled:
            self.book.on_fill("A", "buy", 4, 100.0, bucket=LT)

    def go(self, seconds: float) -> ExposureBook:
        """Go on by some seconds, with a mark of B at each."""
        for _ in range(int(seconds)):
            self.seconds += 1.0
            self.book.on_mark("B", 1.0)
        return self.book


@pytest.mark.parametrize(("marked", "told"), [(True, "its newest mark is"), (False, "no mark of it has ever come")])
def test_unknown_is_frozen_for_a_held_symbol_whose_mark_is_too_old_or_never_came(marked: bool, told: str) -> None:
    aged = Aged()
    if marked:
        aged.book.on_mark("A", 101.0)
    assert aged.go(60).figures().trusted, "exactly the age is allowed"
    figures = aged.go(1).figures()
    assert not figures.trusted
    assert math.isnan(figures.gross_exposure_pct)
    assert math.isnan(aged.book.groups()[UNGROUPED].gross_exposure_pct)
    (fault,) = figures.faults
    assert fault.startswith(f"A: {told}")
    assert fault.endswith("61000 ms old, and 60000 ms are allowed")
    aged.go(6_000)
    assert not aged.book.figures().trusted
    aged.book.on_mark("A", 100.0)
    assert aged.book.figures().gross_exposure_pct == 40.0


def test_a_fill_makes_no_old_mark_young_and_a_mark_from_before_the_position_has_its_own_age() -> None:
    aged = Aged(filled=False)
    aged.book.on_mark("A", 100.0)
    aged.book.on_fill("B", "buy", 1, 1.0, bucket=LT)
    assert aged.go(100).figures().trusted, "A is not held"
    aged.book.on_fill("A", "buy", 1, 100.0, bucket=LT)
    assert [one.partition(":")[0] for one in aged.book.figures().faults] == ["A"]
    aged.book.on_fill("A", "sell", 1, 100.0, bucket=LT)
    assert aged.book.figures().trusted
    aged.book.on_order("o", "A", "buy", 1, 100.0, bucket=LT)
    assert not aged.book.figures().trusted, "a working order is valued at the mark as well"


def test_greeks_have_an_age_as_marks_have() -> None:
    aged = Aged(filled=False)
    aged.book.on_greeks("C", OptionGreeks(delta=0.5, gamma=0.0, vega=0.0, underlying_price=100.0))
    aged.book.on_fill("C", "buy", 1, 5.0, bucket=LT)
    assert aged.go(60).figures().trusted
    assert not aged.go(1).figures().trusted


@pytest.mark.parametrize("marked", [True, False])
def test_an_old_mark_does_what_the_settings_say(marked: bool) -> None:
    mild = {"mark_stale" if marked else "mark_missing": "warning"}
    aged = Aged(mark_max_age_ms=5_000, **mild)
    if marked:
        aged.book.on_mark("A", 100.0)
    figures = aged.go(6).figures()
    assert (figures.trusted, figures.gross_exposure_pct, figures.faults) == (True, 40.0, ())
    assert [one.partition(":")[0] for one in figures.warnings] == ["A"]
    off = Aged(mark_max_age_ms=None)
    figures = off.go(6_000).figures()
    assert (figures.trusted, figures.warnings) == (True, ())


def test_while_the_market_is_closed_no_mark_gets_older() -> None:
    aged = Aged()
    aged.book.on_mark("A", 100.0)
    for _ in range(10):
        assert aged.go(600).figures(market_open=False).trusted
    assert aged.go(60).figures().trusted, "the open: the first marks are on their way"
    assert not aged.go(1).figures().trusted


def test_unknown_is_frozen_when_the_clock_of_the_ages_fails_or_goes_back() -> None:
    aged = Aged()
    aged.go(10)
    good, aged.book._clock = aged.book._clock, lambda: 1 // 0
    assert not aged.book.figures().trusted
    aged.book._clock = good
    assert aged.book.figures().trusted
    aged.book._clock = lambda: 1 // 0
    aged.book.on_mark("A", 100.0)
    aged.book._clock = good
    assert not aged.book.figures().trusted
    aged.book.on_mark("A", 100.0)
    assert aged.book.figures().trusted
    aged.seconds -= 5.0
    assert not aged.book.figures().trusted


def test_a_book_that_is_rebuilt_knows_the_age_of_the_marks_that_stay() -> None:
    aged = Aged()
    aged.book.on_mark("A", 100.0)
    assert not aged.go(61).figures().trusted
    aged.book.rebuild([], [])
    assert aged.book.figures().trusted
    aged.book.rebuild([BookHolding("A", LT, 1.0, 100.0)], [])
    assert not aged.book.figures().trusted
    aged.book.set_levels(ExposureSettings(mark_max_age_ms=90_000))
    assert aged.book.figures().trusted


# ---- numbers


@given(st.floats(min_value=1e-13, max_value=1e15))
def test_an_amount_is_what_its_text_says(value: float) -> None:
    assert amount(value) == Decimal(repr(value))
    assert amount(Decimal(repr(value))) == Decimal(repr(value))


def test_amounts_have_bounds() -> None:
    assert amount(Decimal("1e15")) == LARGEST
    assert amount(Decimal("1e15") + Decimal("0.1")) is None
    assert amount(Decimal("1e-30")) == Decimal("1e-30")
    assert amount(Decimal("1e-31")) is None
    assert amount(Decimal("1." + "0" * 40)) == 1
    assert amount(Decimal("0." + "0" * 40)) == 0
    assert amount(Decimal("1" + "0" * 14 + "." + "0" * 200)) is None  # more digits than any amount has
    for bad in BAD_NUMBERS:
        if bad != -1.0:
            assert amount(bad) is None
    assert amount(-0.5) == Decimal("-0.5")
    assert math.isnan(percentage(Decimal(1), None))
    assert percentage(Decimal(115), Decimal(100)) == 115.0


# ---- threads


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns as often as they can, so that a race which can happen does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_eight_threads_lose_no_fill(eager_threads: None) -> None:
    b = book(1e9)
    begin = threading.Barrier(8)

    def work(number: int) -> None:
        begin.wait()
        for step in range(300):
            b.on_order(f"{number}-{step}", "A", "buy", 2, 1.0, bucket=LT)
            b.on_fill("A", "buy", 1, 1.0, bucket=LT, order_id=f"{number}-{step}")
            f = b.figures()
            assert f.potential_usd >= f.gross_usd
            b.on_order_over(f"{number}-{step}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    f = b.figures()
    assert (f.gross_usd, f.potential_usd, f.working_orders, f.trusted) == (2_400.0, 2_400.0, 0, True)

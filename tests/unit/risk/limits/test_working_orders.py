"""Reservation of working orders against its definition: try every subset of what may still fill."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import threading
from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from killswitch.risk.limits import working_orders
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.limits.working_orders import MAX_UNBOOKED, WorkingOrders
from killswitch.risk.refusal import OrderRefused
from tests.support.risk_doors import kind_of, runtime_monitor

SYMBOLS = ("A", "B")
MARKS = {"A": 1.3, "B": 0.7}


monitor = partial(runtime_monitor, max_inventory_usd_per_symbol=8.0, max_total_notional_usd=13.0)


def exact(value: float) -> Decimal:
    return Decimal(repr(float(value)))


class Working:
    """One order of the model: quantity, price and what a unit counts at, before and after an amendment."""

    def __init__(self, symbol: str, sign: int, qty: Decimal, price: Decimal, worth: Decimal) -> None:
        self.symbol, self.sign = symbol, sign
        self.qty, self.price, self.worth, self.filled = qty, price, worth, Decimal(0)
        self.amended: tuple[Decimal, Decimal, Decimal] | None = None

    @property
    def left(self) -> Decimal:
        return max(self.qty - self.filled, Decimal(0))

    def outcomes(self) -> list[tuple[Decimal, Decimal]]:
        """Units and signed USD that it may come to: nothing, or all of what is left, before or after its amendment."""
        sizes = [(self.qty, self.worth)] + ([(self.amended[0], self.amended[2])] if self.amended else [])
        rest = [(max(qty - self.filled, Decimal(0)), worth) for qty, worth in sizes]
        return [(Decimal(0), Decimal(0)), *((self.sign * qty, self.sign * qty * worth) for qty, worth in rest)]


class Model:
    """Everything by brute force, in decimals."""

    def __init__(self) -> None:
        self.position = dict.fromkeys(SYMBOLS, Decimal(0))
        self.last = dict.fromkeys(SYMBOLS, Decimal(0))
        self.marks = dict.fromkeys(SYMBOLS, Decimal(0))
        self.orders: dict[str, Working] = {}

    def known(self, symbol: str) -> Decimal:
        """What a unit is known to be worth without asking for a mark; 0 when it is not."""
        return self.last[symbol] if self.position[symbol] else self.marks[symbol]

    def fill(self, symbol: str, change: Decimal, price: Decimal) -> None:
        self.position[symbol] += change
        self.last[symbol] = max(price, self.marks[symbol])

    def sums(self, symbol: str, value: Decimal, skip: str | None = None) -> Iterable[tuple[Decimal, Decimal]]:
        """Units and signed USD of every subset of the working orders; what is sold is worth at least ``value``."""
        choices = [order.outcomes() for name, order in self.orders.items() if order.symbol == symbol and name != skip]
        for chosen in itertools.product(*choices):
            bought = sum((usd for units, usd in chosen if units > 0), Decimal(0))
            sold = max(
                -sum((pair[at] for pair in chosen if pair[0] < 0), Decimal(0)) * by for at, by in ((1, 1), (0, value))
            )
            yield sum((units for units, _ in chosen), Decimal(0)), bought - sold

    def worst(self, symbol: str, mark: Decimal | None = None) -> Decimal:
        value = self.known(symbol) if mark is None else mark
        return max(abs(self.position[symbol] * value + usd) for _, usd in self.sums(symbol, value))

    def total(self) -> Decimal:
        return sum((self.worst(symbol) for symbol in SYMBOLS), Decimal(0))

    def verdict(
        self, symbol: str, sign: int, qty: Decimal, price: Decimal, *, marks: bool, skip: str | None = None
    ) -> tuple[str | None, Decimal]:
        """What the limits of 8 and 13 USD say of one more order, and what a unit of it counts at."""
        before = self.position[symbol]
        known = exact(MARKS[symbol]) if marks else self.known(symbol)
        unit = price if sign > 0 else max(price, known)  # a sell may fetch more than it asks
        held = max(unit, known) if before * sign > 0 else unit
        reduces = before != 0
        most = Decimal(0)
        for units, usd in self.sums(symbol, Decimal(0), skip):
            if units * sign < 0:
                continue  # what fills on the other side can only stand in this order's way
            after = before + units + sign * qty
            reduces = reduces and abs(after) <= abs(before + units) and after * before >= 0 and abs(after) < abs(before)
            most = max(most, sign * (before * held + usd + sign * qty * unit), sign * after * unit)
        counts_at = unit if sign > 0 else max(price, self.known(symbol), price if reduces else unit)
        if reduces:
            return None, counts_at
        if most > 8:
            return "symbol_limit", counts_at
        others = [name for name in SYMBOLS if name != symbol]
        rest = sum((self.worst(name, exact(MARKS[name]) if marks else None) for name in others), Decimal(0))
        return "total_limit" if rest + most > 13 else None, counts_at

    def amend(self, name: str, qty: Decimal, price: Decimal, *, marks: bool) -> str | None:
        """What is said of an amendment; one after which no more can fill is never held against a limit."""
        order = self.orders[name]
        if order.amended is not None:
            return "bad_input"
        rest = max(qty - order.filled, Decimal(0))
        expected, counts_at = None, price
        if rest > order.left or rest * price > order.left * order.price:
            expected, counts_at = self.verdict(order.symbol, order.sign, rest, price, marks=marks, skip=name)
        if expected is None:
            if order.sign < 0:
                above = order.worth if order.worth > order.price else Decimal(0)
                counts_at = max(counts_at, price, above, self.known(order.symbol))
            order.amended = qty, price, counts_at
        return expected


QUANTITIES = st.integers(1, 40).map(lambda tenths: tenths / 10)
PRICES = st.integers(5, 20).map(lambda tenths: tenths / 10)
STEPS = st.one_of(
    st.tuples(st.just("reserve"), st.sampled_from(SYMBOLS), st.sampled_from([1, -1]), QUANTITIES, PRICES),
    st.tuples(st.just("fill"), st.integers(0, 5), QUANTITIES, PRICES),
    st.tuples(st.just("stray"), st.sampled_from(SYMBOLS), st.sampled_from([1, -1]), QUANTITIES, PRICES),
    st.tuples(st.just("release"), st.integers(0, 5)),
    st.tuples(st.just("amend"), st.integers(0, 5), QUANTITIES, PRICES),
    st.tuples(st.just("settle"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("mark"), st.sampled_from(SYMBOLS), PRICES),
)


def take(m: RuntimeRiskMonitor, model: Model, number: int, step: Any, *, marks: bool) -> None:
    """Do one step to both; where the monitor decides, it must decide as the model does."""
    what, *rest = step
    if what == "mark":
        m.on_mark(*rest)
        if not marks:  # with a source of its own it takes no others
            symbol, price = rest
            model.marks[symbol] = model.last[symbol] = exact(price)
        return
    if what in ("reserve", "stray"):
        symbol, sign, qty, price = rest
        side = "buy" if sign > 0 else "sell"
        if what == "stray":
            m.on_fill(symbol, side, qty, price)
            model.fill(symbol, sign * exact(qty), exact(price))
            return
        expected, worth = model.verdict(symbol, sign, exact(qty), exact(price), marks=marks)
        assert kind_of(m.explain_order(symbol, side, qty, price)) == expected
        assert kind_of(m.reserve(str(number), symbol, side, qty, price)) == expected
        if expected is None:
            model.orders[str(number)] = Working(symbol, sign, exact(qty), exact(price), worth)
        return
    names = sorted(model.orders, key=int)
    if not names:
        return
    name = names[rest[0] % len(names)]
    order = model.orders[name]
    if what == "release":
        assert m.release(name)
        del model.orders[name]
    elif what == "fill":
        _, qty, price = rest
        m.on_fill(order.symbol, "buy" if order.sign > 0 else "sell", qty, price, client_order_id=name)
        model.fill(order.symbol, order.sign * exact(qty), exact(price))
        order.filled += exact(qty)
    elif what == "amend":
        _, qty, price = rest
        assert kind_of(m.amend(name, qty, price)) == model.amend(name, exact(qty), exact(price), marks=marks)
    elif what == "settle":
        assert m.settle_amend(name, accepted=rest[1])
        if rest[1] and order.amended:
            order.qty, order.price, order.worth = order.amended
        order.amended = None
    if name in model.orders and all(units == 0 for units, _ in order.outcomes()):
        del model.orders[name]


@given(steps=st.lists(STEPS, max_size=14), marks=st.booleans())
@settings(max_examples=500, deadline=None)
def test_every_figure_and_every_verdict_is_what_trying_all_subsets_says(steps: list[Any], marks: bool) -> None:
    m, model = monitor(get_mark_price=MARKS.__getitem__ if marks else None), Model()
    for number, step in enumerate(steps):
        take(m, model, number, step, marks=marks)
        assert m.working_orders() == len(model.orders)
        for symbol in SYMBOLS:
            assert m.get_potential_notional(symbol) == float(model.worst(symbol))
        assert m.get_potential_notional() == float(model.total())
    for name in list(model.orders):
        m.release(name)
    held = sum((abs(model.position[name]) * model.last[name] for name in SYMBOLS), Decimal(0))
    assert m.get_potential_notional() == float(held)
    assert m._book.working.by_symbol == {}


@given(steps=st.lists(STEPS, max_size=14))
@settings(max_examples=300, deadline=None)
def test_what_passes_can_never_bring_the_total_above_its_limit_when_fills_come_at_the_orders_prices(
    steps: list[Any],
) -> None:
    """The point of it all: with reservations, no fill that was promised to a venue breaks a limit."""
    m, model = monitor(), Model()
    for number, (what, *rest) in enumerate(steps):
        if what == "reserve":
            take(m, model, number, (what, rest[0], rest[1], rest[2], 1.0), marks=False)
        elif what in ("release", "settle"):
            take(m, model, number, (what, *rest), marks=False)
        elif what == "fill" and model.orders:
            name = sorted(model.orders, key=int)[rest[0] % len(model.orders)]
            left = model.orders[name].qty - model.orders[name].filled
            take(m, model, number, (what, rest[0], float(min(exact(rest[1]), left)), 1.0), marks=False)
        assert m.get_total_notional() <= 13.0
        assert all(abs(m.get_position(symbol)) <= 8.0 for symbol in SYMBOLS)


def test_potential_exposure_is_what_is_limited() -> None:
    m = monitor()
    assert m.reserve("1", "A", "buy", 5.0, 1.0) is None
    assert kind_of(m.reserve("2", "A", "buy", 4.0, 1.0)) == "symbol_limit"
    refusal = m.reserve("2", "A", "buy", 4.0, 1.0)
    assert refusal is not None
    assert (refusal.limit, refusal.value, refusal.symbol) == (8.0, 9.0, "A")
    assert "5.00 USD of it are orders that work on the same side" in refusal.sentence
    assert m.reserve("2", "A", "sell", 8.0, 1.0) is None  # either side may fill, not the sum of both
    assert m.get_potential_notional() == 8.0
    assert kind_of(m.reserve("3", "B", "buy", 5.1, 1.0)) == "total_limit"
    assert m.reserve("3", "B", "buy", 5.0, 1.0) is None  # exactly at the limit
    assert m.blocks_total == 3
    assert m.release("2")
    assert m.get_potential_notional() == 10.0


def test_check_and_fill_mean_what_they_meant_for_whoever_reserves_nothing() -> None:
    m = monitor()
    for _ in range(3):
        assert m.check_before_order("A", "buy", 8.0, 1.0)
    m.on_fill("A", "buy", 8.0, 1.0)
    assert not m.check_before_order("A", "buy", 0.1, 1.0)
    assert m.check_before_order("A", "sell", 16.0, 1.0)
    assert m.working_orders() == 0


def test_inclusive_in_decimals_with_orders_working() -> None:
    m = monitor(max_inventory_usd_per_symbol=0.3)
    assert m.reserve("1", "A", "buy", 0.1, 1.0) is None
    assert m.reserve("2", "A", "buy", 0.2, 1.0) is None  # as floats it would be above
    assert kind_of(m.reserve("3", "A", "buy", 1e-15, 1.0)) == "symbol_limit"


def test_a_fill_with_its_id_moves_from_reserved_to_held_in_one_step() -> None:
    m = monitor()
    m.reserve("1", "A", "buy", 3.0, 2.0)
    m.on_fill("A", "buy", 1.0, 2.0, client_order_id="1")
    assert (m.get_total_notional(), m.get_potential_notional()) == (2.0, 6.0)
    m.on_fill("A", "buy", 2.5, 2.0, client_order_id="1")  # more than was left of it
    assert (m.get_total_notional(), m.get_potential_notional()) == (7.0, 7.0)
    assert not m.release("1")  # its last fill has ended it
    m.on_fill("A", "sell", 3.5, 2.0, client_order_id="1")  # late, and of an order that is over: a fill is a fact
    assert m.get_potential_notional() == 0.0


def test_a_fill_in_another_symbol_than_was_ordered_uses_its_order_up() -> None:
    m = monitor()
    m.reserve("1", "A", "buy", 3.0, 1.0)
    m.on_fill("B", "buy", 3.0, 1.0, client_order_id="1")
    assert m.get_potential_notional("A") == 0.0
    assert m.get_potential_notional() == 3.0


def test_fills_without_an_id_count_beside_the_reservation_until_it_is_released() -> None:
    m = monitor()
    m.reserve("1", "A", "buy", 3.0, 1.0)
    m.on_fill("A", "buy", 3.0, 1.0)
    assert m.get_potential_notional() == 6.0
    m.release("1")
    assert m.get_potential_notional() == 3.0


def test_an_order_that_only_reduces_passes_above_a_limit_as_long_as_all_of_them_together_do() -> None:
    m = monitor()
    m.on_fill("A", "buy", 20.0, 1.0)
    assert m.reserve("1", "A", "sell", 15.0, 1.0) is None
    assert m.reserve("2", "A", "sell", 5.0, 1.0) is None
    assert m.reserve("3", "A", "sell", 8.0, 1.0) is None  # through zero to 8 short: the limit lets it
    assert kind_of(m.reserve("4", "A", "sell", 0.1, 1.0)) == "symbol_limit"
    assert kind_of(m.reserve("5", "A", "buy", 0.1, 1.0)) == "symbol_limit"


def test_amendments_count_at_the_larger_of_before_and_after_until_they_are_settled() -> None:
    m = monitor()
    m.reserve("1", "A", "buy", 4.0, 1.0)
    assert m.amend("1", 6.0) is None
    assert m.get_potential_notional() == 6.0
    refusal = m.amend("1", 5.0)
    assert refusal is not None
    assert "on its way already" in refusal.sentence
    assert m.settle_amend("1", accepted=False)
    assert m.get_potential_notional() == 4.0
    assert kind_of(m.amend("1", 8.1)) == "symbol_limit"
    assert m.amend("1", 2.0, 1.5) is None  # smaller: counts as before until the venue says so
    assert m.get_potential_notional() == 4.0
    m.on_fill("A", "buy", 1.0, 1.0, client_order_id="1")
    assert m.settle_amend("1", accepted=True)
    assert m.get_potential_notional() == 2.5
    assert m.amend("1", 1.0, 1.5) is None  # to what has filled: it is over when the venue takes it
    assert m.settle_amend("1", accepted=True)
    assert m.working_orders() == 0
    assert kind_of(m.amend("1", 1.0)) == "unknown_order"
    assert not m.settle_amend("1", accepted=True)


def test_a_frozen_monitor_takes_no_amendment() -> None:
    m = monitor()
    m.reserve("1", "A", "buy", 4.0, 1.0)
    m.freeze("stop")
    assert kind_of(m.amend("1", 1.0)) == "frozen"
    assert kind_of(m.reserve("2", "A", "buy", 1.0, 1.0)) == "frozen"
    assert m.release("1")  # what is over is over, frozen or not


@pytest.mark.parametrize("marks", [False, True])
def test_ids(marks: bool) -> None:
    m = monitor(get_mark_price=MARKS.__getitem__ if marks else None)
    assert m.reserve("1", "A", "buy", 1.0, 1.0) is None
    assert kind_of(m.reserve("1", "B", "sell", 1.0, 1.0)) == "duplicate_id"
    for bad in ("", None, 7, ["x"]):
        assert kind_of(m.reserve(bad, "A", "buy", 1.0, 1.0)) == "bad_input"  # type: ignore[arg-type]
        assert kind_of(m.amend(bad, 1.0)) == "unknown_order"  # type: ignore[arg-type]
    assert m.working_orders() == m.working_orders("A") == 1
    assert m.reserved("1") == ("A", "buy", 1.0)
    assert m.reserved("2") is None
    assert not m.release("2")


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0, 1.1e15, 1e-19, "1", True, 10**400])
def test_unknown_is_frozen__a_bad_number_reserves_nothing(bad: Any) -> None:
    m = monitor(max_inventory_usd_per_symbol=1e300, max_total_notional_usd=1e300)
    m.reserve("good", "A", "buy", 1.0, 1.0)
    assert kind_of(m.reserve("1", "A", "buy", bad, 1.0)) == "bad_input"
    assert kind_of(m.reserve("1", "A", "buy", 1.0, bad)) == "bad_input"
    assert kind_of(m.reserve("1", "A", bad, 1.0, 1.0)) == "bad_input"
    assert kind_of(m.amend("good", bad)) == "bad_input"
    assert not m.would_reduce("A", "sell", bad)
    assert m.get_potential_notional() == 1.0
    assert not m.is_frozen()


@pytest.mark.parametrize("bad", [math.nan, 0.0, KeyError("A")])
def test_unknown_is_frozen__a_mark_price_that_cannot_be_used_reserves_nothing_and_freezes(bad: Any) -> None:
    def mark(_symbol: str) -> float:
        if isinstance(bad, Exception):
            raise bad
        return bad  # type: ignore[no-any-return]

    m = monitor(get_mark_price=mark)
    m.on_fill("B", "buy", 1.0, 1.0)
    assert kind_of(m.reserve("1", "A", "buy", 1.0, 1.0)) == "monitor_error"
    assert m.is_frozen()
    assert m.working_orders() == 0


def test_a_market_order_counts_at_the_price_that_it_was_judged_at() -> None:
    m = monitor(get_mark_price=MARKS.__getitem__)
    assert m.reserve("1", "A", "buy", 2.0) is None
    assert m.get_potential_notional() == 2.6
    bare = monitor()
    assert bare.reserve("1", "A", "buy", 2.0) is None
    assert bare.get_potential_notional() == 2.0


def test_the_number_of_working_orders_is_bounded() -> None:
    m = monitor(max_working_orders=2)
    for name in "12":
        assert m.reserve(name, "A", "buy", 0.1, 1.0) is None
    refusal = m.reserve("3", "A", "buy", 0.1, 1.0)
    assert refusal is not None
    assert (refusal.kind, refusal.limit, refusal.value, refusal.unit) == ("working_orders", 2.0, 3.0, "orders")


def test_working_orders_survive_a_restart_and_count_until_they_are_released() -> None:
    m = monitor()
    m.on_fill("A", "buy", 1.0, 1.0)
    m.reserve("1", "A", "buy", 4.0, 1.0)
    m.amend("1", 5.0, 1.2)
    m.on_fill("A", "buy", 0.5, 1.0, client_order_id="1")
    m.reserve("2", "B", "sell", 1.0, 2.0)
    saved = json.loads(json.dumps(m.persist_to_dict(), allow_nan=False))
    again = monitor()
    again.restore_from_dict(saved)
    assert again.persist_to_dict() == m.persist_to_dict()
    assert again.get_potential_notional() == m.get_potential_notional() == 1.5 + 5.4 + 2.0
    assert kind_of(again.reserve("1", "A", "buy", 0.1, 1.0)) == "duplicate_id"
    assert again.release("1")
    del saved["working_orders"]  # as states were before there were reservations
    older = monitor()
    older.restore_from_dict(saved)
    assert older.get_potential_notional() == 1.5


GOOD = {"symbol": "A", "sign": 1, "quantity": "1", "price_usd": "1", "filled": "0", "amended": None}


@pytest.mark.parametrize(
    "damage",
    [
        {"sign": 0},
        {"symbol": ""},
        {"quantity": "NaN"},
        {"quantity": "1e16"},
        {"price_usd": "0"},
        {"filled": "-1"},
        {"filled": "Infinity"},
        {"amended": ["1", "x"]},
        {"amended": ["1"]},
    ],
)
def test_unknown_is_frozen__a_saved_working_order_that_cannot_be_read_freezes(damage: dict[str, Any]) -> None:
    m = monitor()
    with pytest.raises(ValueError, match="saved state"):
        m.restore_from_dict({**monitor().persist_to_dict(), "working_orders": {"1": {**GOOD, **damage}}})
    assert m.is_frozen()
    monitor().restore_from_dict({**monitor().persist_to_dict(), "working_orders": {"1": GOOD}})


def test_a_reset_keeps_what_works() -> None:
    m = monitor()
    m.on_fill("A", "buy", 1.0, 1.0)
    m.reserve("1", "A", "buy", 2.0, 1.0)
    m.reserve("2", "B", "sell", 1.0, 1.0)
    m.reset()
    assert (m.get_total_notional(), m.get_potential_notional()) == (0.0, 3.0)
    for name in "12":
        assert m.release(name)
    assert m.get_potential_notional() == 0.0


def test_ten_thousand_orders_agree_with_decimals_and_leave_nothing_behind() -> None:
    rng = random.Random(7)
    m = monitor(max_inventory_usd_per_symbol=1e15, max_total_notional_usd=1e16)
    model = {}
    symbols = [f"S{number}" for number in range(30)]
    position = dict.fromkeys(symbols, Decimal(0))
    last = dict.fromkeys(symbols, Decimal(0))
    for number in range(10_000):
        symbol, sign = rng.choice(symbols), rng.choice([1, -1])
        qty, price = round(rng.uniform(1e-6, 10.0 ** rng.randint(-3, 6)) + 1e-6, 6), round(rng.uniform(0.01, 7e4), 2)
        assert m.reserve(str(number), symbol, "buy" if sign > 0 else "sell", qty, price) is None
        known = last[symbol] if position[symbol] and sign < 0 else Decimal(0)
        model[str(number)] = (symbol, sign, exact(qty), max(exact(price), known))
        if number % 3 == 0:
            name = rng.choice(list(model)) if len(model) < 50 else next(iter(model))
            symbol, sign, amount, at = model.pop(name)
            if number % 2:
                m.release(name)
            else:
                m.on_fill(symbol, "buy" if sign > 0 else "sell", float(amount), float(at), client_order_id=name)
                position[symbol] += sign * amount
                last[symbol] = at
        if number % 500 == 0:
            total = Decimal(0)
            for name in symbols:
                buys = sum((q * p for s, d, q, p in model.values() if s == name and d > 0), Decimal(0))
                sells = sum((q * p for s, d, q, p in model.values() if s == name and d < 0), Decimal(0))
                units = sum((q for s, d, q, p in model.values() if s == name and d < 0), Decimal(0))
                sells = max(sells, units * last[name] if position[name] else Decimal(0))
                signed = position[name] * last[name]
                total += max(signed + buys, sells - signed, abs(signed))
            # The running float that the quick look uses, before anything made it exact again; then the exact one.
            assert m._book.total_usd == pytest.approx(float(total), rel=1e-13)
            assert m.get_potential_notional() == float(total)
    for name in list(model):
        m.release(name)
    held = float(sum((abs(position[name]) * last[name] for name in symbols), Decimal(0)))
    assert m._book.total_usd == pytest.approx(held, rel=1e-13)
    assert m.get_potential_notional() == held
    assert m._book._extra_usd == 0


def test_roundings_of_the_quick_look_cannot_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders come and go for ever and none ever fills: what the floats hold must stay what the decimals say."""
    monkeypatch.setattr("killswitch.risk.limits.worst_case_exposure.MAX_QUICK_EVENTS", 500)
    m = monitor(max_inventory_usd_per_symbol=1e9, max_total_notional_usd=1e9)
    m.reserve("stays", "A", "buy", 1e8 / 3, 0.1)
    furthest = 0.0
    for number in range(3_000):
        m.reserve(str(number), "A", "buy", 1e7 / 7, 1.1)
        if number >= 40:
            m.release(str(number - 40))
        exactly = exact(1e8 / 3) * exact(0.1) + min(number + 1, 40) * exact(1e7 / 7) * exact(1.1)
        furthest = max(furthest, abs(m._book.total_usd / float(exactly) - 1.0))
    assert furthest < 1e-12
    assert m._book._quick_events < 500


def test_no_event_has_more_to_make_exact_than_a_few_orders() -> None:
    m = monitor(max_inventory_usd_per_symbol=1e9, max_total_notional_usd=1e9)
    for number in range(10 * MAX_UNBOOKED):
        m.reserve(str(number), f"S{number % 7}", "buy", 0.1, 1.0)
        assert len(m._book.working.unbooked) <= MAX_UNBOOKED
    assert m.get_potential_notional() == MAX_UNBOOKED


def test_the_cost_of_an_event_does_not_depend_on_how_many_orders_work() -> None:
    """Counted in additions and not in seconds: O(1) shows as the same number of them."""

    def additions(before: int) -> int:
        m = monitor(max_inventory_usd_per_symbol=1e9, max_total_notional_usd=1e9)
        for number in range(before):
            m.reserve(str(number), f"S{number % 50}", "buy", 0.1, 1.0)
        m.get_potential_notional()
        calls = 0
        plain = working_orders.EXACT

        class Counting:
            def __getattr__(self, name: str) -> Any:
                nonlocal calls
                calls += 1
                return getattr(plain, name)

        patched = pytest.MonkeyPatch()
        for module in ("working_orders", "worst_case_exposure"):
            patched.setattr(f"killswitch.risk.limits.{module}.EXACT", Counting())
        m.reserve("x", "S1", "buy", 0.1, 1.0)
        m.on_fill("S1", "buy", 0.05, 1.0, client_order_id="x")
        m.release("x")
        patched.undo()
        return calls

    assert additions(60) == additions(6_000) > 0


def test_eight_threads_lose_no_order() -> None:
    rounds = 300
    m = monitor(max_inventory_usd_per_symbol=1e9, max_total_notional_usd=1e9)
    start = threading.Barrier(8)

    def hammer(number: int) -> None:
        start.wait()
        for turn in range(rounds):
            name = f"{number}-{turn}"
            assert m.reserve(name, "SHARED", "buy", 0.1, 1.0) is None
            if turn % 2:
                m.on_fill("SHARED", "buy", 0.1, 1.0, client_order_id=name)
            elif turn % 4:
                m.release(name)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert m.get_positions() == {"SHARED": 8 * rounds / 2 / 10}
    assert m.working_orders() == 8 * rounds // 4
    assert m.get_potential_notional() == 8 * (rounds / 2 + rounds / 4) / 10


@pytest.mark.parametrize("marks", [False, True])
def test_threads_never_pass_a_limit_together(marks: bool) -> None:
    for _ in range(10):
        m = monitor(get_mark_price={"A": 1.0}.__getitem__ if marks else None)
        start, passed = threading.Barrier(8), []

        def hammer(number: int, m: Any = m, start: Any = start, passed: Any = passed) -> None:
            start.wait()
            passed.extend(m.reserve(f"{number}-{turn}", "A", "buy", 0.5, 1.0) is None for turn in range(8))

        threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sum(passed) == 16
        assert m.blocks_total == 48


def test_a_mark_price_source_that_takes_its_time_lets_no_second_order_be_judged_by_the_same_moment() -> None:
    both_inside = threading.Barrier(2)

    def mark(_symbol: str) -> float:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_inside.wait(0.3)
        return 1.0

    m = monitor(get_mark_price=mark)
    m.on_fill("B", "buy", 1.0, 1.0)
    refusals: list[OrderRefused | None] = []
    threads = [
        threading.Thread(target=lambda name=name: refusals.append(m.reserve(name, "A", "buy", 5.0, 1.0)))
        for name in ("1", "2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(str(kind_of(refusal)) for refusal in refusals) == ["None", "symbol_limit"]


def test_the_table_alone_knows_when_it_is_full_and_drops_what_is_empty() -> None:
    working = WorkingOrders(max_orders=1)
    working.add("1", "A", 1, 1.0, 1.0, 1.0)
    assert working.is_full
    working.book_oldest()
    working.forget_if_empty("A")
    assert set(working.by_symbol) == {"A"}
    working.remove("1")
    working.forget_if_empty("A")
    assert (working.by_symbol, working.is_full, working.orders_of("A")) == ({}, False, 0)

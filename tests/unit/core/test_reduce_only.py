"""The reduce-only rule against its definition: try every subset of what may fill, whatever happened before."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from killswitch.core.reduce_only import reduces_only, stays_within
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor

TICKS = st.integers(min_value=0, max_value=30).map(lambda tenths: tenths / 10)
SIGNS = st.sampled_from([1, -1])
WORKING = st.lists(st.tuples(SIGNS, TICKS), max_size=6)
POSITIONS = st.tuples(SIGNS, TICKS).map(lambda pair: pair[0] * pair[1])


def exact(value: float) -> Decimal:
    return Decimal(repr(float(value)))


def by_definition(position: float, working: list[tuple[int, float]], side_sign: int, qty: float) -> bool:
    """Brute force: whatever subset of the orders on the new order's side fills with it, no growth and no crossing.

    Orders on the other side are left out on purpose: what they can grow, they can grow without the new order.
    """
    start = exact(position)
    same_side = [exact(remaining) for sign, remaining in working if sign == side_sign]
    for count in range(len(same_side) + 1):
        for filled in itertools.combinations(same_side, count):
            after = start + side_sign * (sum(filled, Decimal(0)) + exact(qty))
            grew = abs(after) > abs(start)
            crossed = after * start < 0
            if grew or crossed:
                return False
    return start != 0


@given(position=POSITIONS, working=WORKING, side_sign=SIGNS, qty=TICKS.filter(lambda qty: qty > 0))
@example(position=0.3, working=[(-1, 0.1)], side_sign=-1, qty=0.2)
@example(position=-0.3, working=[(1, 0.1)], side_sign=1, qty=0.2)
@example(position=1.0, working=[(-1, 0.5), (-1, 0.5)], side_sign=-1, qty=0.1)
def test_the_rule_is_what_trying_every_subset_says(
    position: float, working: list[tuple[int, float]], side_sign: int, qty: float
) -> None:
    assert reduces_only(position, working, side_sign, qty) is by_definition(position, working, side_sign, qty)


@given(position=POSITIONS, working=WORKING, side_sign=SIGNS, qty=TICKS.filter(lambda qty: qty > 0))
def test_what_passes_one_by_one_can_never_cross_zero_together(
    position: float, working: list[tuple[int, float]], side_sign: int, qty: float
) -> None:
    book = [order for order in working if order[0] != side_sign]
    while reduces_only(position, book, side_sign, qty):
        book.append((side_sign, qty))
    promised = sum((exact(remaining) for sign, remaining in book if sign == side_sign), Decimal(0))
    assert promised <= abs(exact(position))


@pytest.mark.parametrize(
    ("position", "working", "side_sign", "qty", "passes"),
    [
        (1.0, [], -1, 1.0, True),
        (1.0, [], -1, 1.1, False),
        (1.0, [], 1, 0.1, False),
        (-1.0, [], 1, 1.0, True),
        (-1.0, [], -1, 0.1, False),
        (0.0, [], 1, 0.1, False),
        (0.0, [], -1, 0.1, False),
        (1.0, [(-1, 0.6)], -1, 0.6, False),
        (1.0, [(-1, 0.0)], -1, 1.0, True),
        # A working buy is no room to sell: it may never fill.
        (1.0, [(1, 5.0)], -1, 1.5, False),
        (1.0, [(1, 5.0)], -1, 1.0, True),
    ],
)
def test_cases(position: float, working: list[tuple[int, float]], side_sign: int, qty: float, passes: bool) -> None:
    assert reduces_only(position, working, side_sign, qty) is passes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "1", None, True, pytest.param(10**400, id="huge")])
def test_unknown_is_frozen__a_bad_number_never_passes(bad: float) -> None:
    assert not reduces_only(bad, [], -1, 1.0)
    assert not reduces_only(2.0, [], -1, bad)
    assert not reduces_only(2.0, [(1, bad)], -1, 1.0)


@pytest.mark.parametrize("sign", [0, 2, -2])
def test_unknown_is_frozen__a_bad_sign_or_a_negative_quantity_never_passes(sign: int) -> None:
    assert not reduces_only(2.0, [], sign, 1.0)
    assert not reduces_only(2.0, [(sign, 0.1)], -1, 1.0)
    assert not reduces_only(2.0, [(1, -0.1)], -1, 1.0)
    assert not reduces_only(2.0, [], -1, -1.0)
    assert not reduces_only(2.0, [], -1, 0.0)


# ---- the rule from sums


@given(position=POSITIONS, working=WORKING, side_sign=SIGNS, qty=TICKS.filter(lambda qty: qty > 0))
def test_the_sum_of_what_works_is_enough_to_judge(
    position: float, working: list[tuple[int, float]], side_sign: int, qty: float
) -> None:
    same_side = sum((exact(remaining) for sign, remaining in working if sign == side_sign), Decimal(0))
    by_sums = stays_within(exact(position), same_side, side_sign, exact(qty))
    assert by_sums is reduces_only(position, working, side_sign, qty)


@pytest.mark.parametrize("bad", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_unknown_is_frozen__a_bad_decimal_never_stays_within(bad: str) -> None:
    one, two = Decimal(1), Decimal(2)
    assert stays_within(two, one, -1, one)
    assert not stays_within(Decimal(bad), one, -1, one)
    assert not stays_within(two, Decimal(bad), -1, one)
    assert not stays_within(two, one, -1, Decimal(bad))
    assert not stays_within(two, -one, -1, one)
    assert not stays_within(two, one, -1, Decimal(0))
    assert not stays_within(two, one, 0, one)


# ---- any history: orders, partial fills, cancels in flight, amendments, in any order


class VenueOrder:
    """One order at the venue. Only the venue's own word ends it: a cancel that is on its way does not."""

    def __init__(self, sign: int, qty: Decimal) -> None:
        self.sign, self.left = sign, qty
        self.cancelling = False


class Market:
    """A monitor, and beside it what may truly still happen."""

    def __init__(self) -> None:
        self.monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=1e9,
            max_total_notional_usd=1e9,
            edge_freeze_threshold_bps=0.0,
            registry=CollectorRegistry(),
        )
        self.position = Decimal(0)
        self.orders: dict[str, VenueOrder] = {}

    def reachable(self) -> set[Decimal]:
        """Every position that some subset of the working orders leads to. Fills in part lie between these."""
        positions = {self.position}
        for order in self.orders.values():
            positions |= {at + order.sign * order.left for at in positions}
        return positions

    def send(self, name: str, sign: int, qty: float) -> None:
        side = "buy" if sign > 0 else "sell"
        assert self.monitor.reserve(name, "A", side, qty, 1.0) is None
        self.orders[name] = VenueOrder(sign, exact(qty))

    def fill(self, name: str, qty: Decimal) -> None:
        order = self.orders[name]
        self.monitor.on_fill("A", "buy" if order.sign > 0 else "sell", float(qty), 1.0, client_order_id=name)
        self.position += order.sign * qty
        order.left -= qty
        if order.left == 0:
            del self.orders[name]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["send", "reduce", "reduce", "fill", "fill", "ask_cancel", "cancelled", "reject_cancel"]),
        SIGNS,
        st.integers(1, 20).map(lambda tenths: tenths / 10),
        st.integers(0, 9),
    ),
    max_size=16,
)


@given(events=EVENTS, start=POSITIONS)
@settings(max_examples=600, deadline=None)
@example(events=[("reduce", -1, 1.0, 0), ("ask_cancel", 1, 1.0, 0), ("reduce", -1, 1.0, 0)], start=1.0)
@example(events=[("reduce", -1, 2.0, 0), ("fill", 1, 1.0, 0), ("reduce", -1, 1.0, 0)], start=2.0)
def test_whatever_happened_before_no_order_that_passes_can_grow_the_position_or_cross_zero(
    events: list[tuple[str, int, float, int]], start: float
) -> None:
    market = Market()
    if start:
        market.monitor.update_position("A", start, 1.0)
        market.position = exact(start)
    for number, (what, sign, qty, pick) in enumerate(events):
        names = sorted(market.orders)
        name = names[pick % len(names)] if names else ""
        if what == "send":
            market.send(f"n{number}", sign, qty)
        elif what == "reduce":
            _judge(market, f"n{number}", sign, qty)
        elif name and what == "fill":
            market.fill(name, min(exact(qty), market.orders[name].left))
        elif name and what == "ask_cancel":
            market.orders[name].cancelling = True  # nobody tells the monitor: there is nothing to tell yet
        elif name and what == "cancelled" and market.orders[name].cancelling:
            del market.orders[name]
            market.monitor.release(name)
        elif name and what == "reject_cancel":
            market.orders[name].cancelling = False


def _judge(market: Market, name: str, sign: int, qty: float) -> None:
    """An order that passes must keep every reachable position within what was reachable before, and off zero."""
    before = market.reachable()
    side = "buy" if sign > 0 else "sell"
    passes = market.monitor.would_reduce("A", side, qty)
    after = before | {at + sign * exact(qty) for at in before}
    # Positions to which what works already leads on the growing side are no fault of this order; on its own side it
    # must leave every one of them on the side of zero where the position is.
    own_side = {at for at in after if (at - market.position) * sign >= 0}
    sound = market.position != 0 and all(
        at * market.position >= 0 and abs(at) <= abs(market.position) for at in own_side
    )
    assert passes is sound
    if passes:
        assert max(abs(at) for at in after) == max(abs(at) for at in before)
        market.send(name, sign, qty)
        assert market.monitor.would_reduce("A", side, qty, client_order_id=name)


@given(quantities=st.lists(st.integers(1, 20).map(lambda tenths: tenths / 10), max_size=8), start=POSITIONS)
@settings(max_examples=200, deadline=None)
def test_in_reduce_only_from_the_start_no_subset_ever_grows_or_crosses(quantities: list[float], start: float) -> None:
    market = Market()
    if start:
        market.monitor.update_position("A", start, 1.0)
        market.position = exact(start)
    for number, qty in enumerate(quantities):
        for sign in (1, -1):
            if market.monitor.would_reduce("A", "buy" if sign > 0 else "sell", qty):
                market.send(f"{number}{sign}", sign, qty)
        reachable = market.reachable()
        assert all(at * exact(start) >= 0 and abs(at) <= abs(exact(start)) for at in reachable)


@pytest.mark.parametrize("arguments", [("", "sell", 1.0), ("A", "hold", 1.0), ("B", "sell", 1.0), (None, "sell", 1.0)])
def test_unknown_is_frozen__what_cannot_be_judged_does_not_reduce(arguments: Any) -> None:
    market = Market()
    market.monitor.update_position("A", 2.0, 1.0)
    assert market.monitor.would_reduce("A", "sell", 1.0)
    assert not market.monitor.would_reduce(*arguments)


def test_symbols_do_not_reduce_each_other() -> None:
    market = Market()
    market.monitor.update_position("A", 2.0, 1.0)
    market.monitor.update_position("B", 2.0, 1.0)
    market.send("1", -1, 2.0)
    assert not market.monitor.would_reduce("A", "sell", 0.1)
    assert market.monitor.would_reduce("B", "sell", 2.0)

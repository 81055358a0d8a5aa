"""The reduce-only rule against its definition: try every subset of what may fill."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from killswitch.core.reduce_only import reduces_only

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

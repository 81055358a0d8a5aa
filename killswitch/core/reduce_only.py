"""The reduce-only rule: whether an order can only bring a position nearer to flat, whatever else fills.

The rule, from the words of the mode: *the worst-case signed position over all working orders must not grow or cross
zero*. Any subset of the working orders may fill, each wholly or in part, in any order. For a long position this means:
only a sell passes, and all working sells together with the new one must not exceed the position, for otherwise the
subset "all of them" would turn it short. For a short position the same holds with the sides exchanged. From flat every
fill grows the position, so nothing passes.

Working orders on the *growing* side do not count here, neither against the new order nor for it. Growth through them
is possible already and the new order adds nothing to it; counting them as room to sell would be wrong, since they may
never fill. Whoever enters reduce-only cancels them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Context, Decimal

_BUY, _SELL = 1, -1

# Wide enough that sums of any realistic quantities are exact: 0.1 + 0.2 must fit into a position of 0.3.
_EXACT = Context(prec=80)


def reduces_only(position: float, working: Iterable[tuple[int, float]], side_sign: int, qty: float) -> bool:
    """Tell whether a new order can only reduce the position; quantities are compared as written decimals.

    Args:
        position: signed quantity held, positive for long.
        working: ``(side sign, remaining quantity)`` of every order of this symbol that the venue may still fill, those
            not yet acknowledged included; a remaining quantity of 0 is harmless.
        side_sign: +1 to buy, -1 to sell.
        qty: quantity of the new order, greater than 0.

    Returns:
        False whenever a number is not finite, a quantity is negative, or a sign is neither +1 nor -1: what cannot be
        judged does not pass.
    """
    if not (_finite(position) and _finite(qty)) or qty <= 0 or position == 0:
        return False
    if side_sign != (_SELL if position > 0 else _BUY):
        return False
    promised = _exact(qty)
    for sign, remaining in working:
        if sign not in (_BUY, _SELL) or not _finite(remaining) or remaining < 0:
            return False
        if sign == side_sign:
            promised = _EXACT.add(promised, _exact(remaining))
    return promised <= _exact(position).copy_abs()


def stays_within(position: Decimal, working: Decimal, side_sign: int, qty: Decimal) -> bool:
    """As :func:`reduces_only` in exact decimals, from the sum of what works: the cost does not grow with the orders.

    Args:
        position: signed quantity held.
        working: sum of the remaining quantities of every order of this symbol on the new order's side that the venue
            may still fill: those not acknowledged included, and those whose cancel is not confirmed.
        side_sign: +1 to buy, -1 to sell.
        qty: quantity of the new order, greater than 0.

    Returns:
        False whenever a number is not finite, ``working`` is negative, ``qty`` is not positive, or the sign is neither.
    """
    if not (position.is_finite() and working.is_finite() and qty.is_finite()) or qty <= 0 or working < 0:
        return False
    if position == 0 or side_sign != (_SELL if position > 0 else _BUY):
        return False
    return _EXACT.add(working, qty) <= position.copy_abs()


def _finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of floats
        return False


def _exact(value: float) -> Decimal:
    return Decimal(repr(float(value)))

"""The rule that the limits are, in exact decimals: what an order would bring a position and the total to, at worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from agents.risk.exact import EXACT, ZERO, exact
from agents.risk.limit_schedule import EffectiveLimits
from agents.risk.limits import OrderRefused
from agents.risk.mark_prices import Exposed, MarkPriceSource, mark_price, marked_total
from agents.risk.order_inputs import ReadOrder
from agents.risk.position_book import Held
from killswitch.core.reduce_only import stays_within

DEFAULT_MARK_PRICE_USD = 1.0

FLOAT_MARGIN = 1e-10
"""Floats decide alone only when they are this far inside a limit, as a ratio of it; nearer to it the exact decimals
decide. A float result is a handful of roundings (1.1e-16 each) away from the exact one, and two more for each order
since everything was last made exact, which it is after 50,000 at the latest: so this is several times too wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is held and working when an order is judged.

    Attributes:
        held: the position of the order's symbol, ``None`` when flat.
        known_price: USD that a unit of the symbol is known to be worth without asking a source of mark prices; ``None``
            when nothing is known.
        same_side_quantity: units of working orders of that symbol on the order's own side.
        same_side_usd: the same in USD, each order at its own price.
        others_usd: the worst case of all other symbols together, each position at its last fill.
        others: all other symbols, one by one; they matter with mark prices only.
    """

    held: Held | None
    known_price: float | None
    same_side_quantity: Decimal
    same_side_usd: Decimal
    others_usd: Decimal
    others: Mapping[str, Exposed]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an order would bring the figures to, at worst, and the limits that would refuse it.

    Attributes:
        price: USD that each unit counts at.
        reduces: the order can only bring the position nearer to flat, so no limit is asked.
        symbol_usd: worst case of the symbol on the order's side.
        total_usd: worst case of all symbols.
        refusals: every limit that it would pass, the symbol's first.
    """

    price: Decimal
    reduces: bool
    symbol_usd: Decimal
    total_usd: Decimal
    refusals: tuple[OrderRefused, ...]


def judge(order: ReadOrder, now: Moment, limits: EffectiveLimits, marks: MarkPriceSource | None) -> Verdict:
    """Work out what an order would bring the figures to, and what it breaks.

    The position of the order's own symbol is worth the order's price, as in section A of the seed systems; what works
    is worth its own. Where that nets a position against orders at other prices, the units at the order's price count
    when that is more.

    Args:
        order: the order.
        now: what is held and working.
        limits: both limits as they are now.
        marks: source of mark prices; without one a position counts at its last fill.

    Raises:
        MarkFault: a mark price is not usable.
    """
    held = now.held.exact_quantity if now.held else ZERO
    price = exact(order.price if order.price is not None else _price_of(order.symbol, now.known_price, marks))
    signed = held if order.sign > 0 else held.copy_negate()  # above 0: the order is on the position's side
    units = EXACT.add(EXACT.add(signed, now.same_side_quantity), order.quantity)
    reduces = stays_within(held, now.same_side_quantity, order.sign, order.quantity)
    netted_usd = EXACT.add(EXACT.multiply(EXACT.add(signed, order.quantity), price), now.same_side_usd)
    symbol_usd = max(netted_usd, EXACT.multiply(units, price), ZERO)
    others_usd = now.others_usd
    if marks is not None and not reduces:
        sure_usd = limits.total_usd * (1 - FLOAT_MARGIN)
        others_usd = marked_total(marks, now.others, beside_usd=symbol_usd, sure_usd=sure_usd)
    total_usd = EXACT.add(others_usd, symbol_usd)
    refusals: list[OrderRefused] = []
    if not reduces and symbol_usd > limits.exact_symbol_usd:
        sentence = (
            f"{order.symbol}: the order would bring the position to {symbol_usd:.2f} USD, "
            f"above the limit of {limits.symbol_usd:.2f} USD per symbol"
        )
        refusals.append(
            OrderRefused("symbol_limit", limits.symbol_usd, float(symbol_usd), order.symbol, _working(sentence, now))
        )
    if not reduces and total_usd > limits.exact_total_usd:
        sentence = (
            f"{order.symbol}: the order would bring the total over all symbols to {total_usd:.2f} USD, "
            f"above the limit of {limits.total_usd:.2f} USD"
        )
        refusals.append(
            OrderRefused("total_limit", limits.total_usd, float(total_usd), order.symbol, _working(sentence, now))
        )
    return Verdict(price, reduces, symbol_usd, total_usd, tuple(refusals))


def _price_of(symbol: str, known_price: float | None, marks: MarkPriceSource | None) -> float:
    if marks is not None:
        return mark_price(marks, symbol)
    return DEFAULT_MARK_PRICE_USD if known_price is None else known_price


def _working(sentence: str, now: Moment) -> str:
    """Say how much of the figure is orders that work already, where there are any."""
    if now.same_side_usd == 0:
        return sentence
    return f"{sentence}; {now.same_side_usd:.2f} USD of it are orders that work on the same side"

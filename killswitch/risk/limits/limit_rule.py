"""The rule that the limits are, in exact decimals: what an order would bring a position and the total to, at worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from killswitch.core.reduce_only import stays_within
from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.limits.limit_schedule import EffectiveLimits
from killswitch.risk.limits.mark_prices import Exposed, MarkPriceSource, mark_price, marked_total
from killswitch.risk.limits.position_book import Held
from killswitch.risk.order_inputs import ReadOrder
from killswitch.risk.refusal import OrderRefused

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
        same_side_usd: the same in USD, each order at what it counts at.
        others_usd: the worst case of all other symbols together, at the prices known without a source.
        own: what is held and working of the order's symbol; with a source of mark prices only.
        others: all other symbols, one by one; likewise.
    """

    held: Held | None
    known_price: float | None
    same_side_quantity: Decimal
    same_side_usd: Decimal
    others_usd: Decimal
    own: Exposed | None
    others: Mapping[str, Exposed]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an order would bring the figures to, at worst, and the limits that would refuse it.

    Attributes:
        price: USD that each unit of the order counts at.
        reduces: the order can only bring the position nearer to flat, so no limit is asked.
        standing_usd: worst case of the symbol as it stands, without the order, at mark prices; ``None`` when they were
            not asked for.
        symbol_usd: worst case of the symbol on the order's side.
        total_usd: worst case of all symbols.
        refusals: every limit that it would pass, the symbol's first.
    """

    price: Decimal
    reduces: bool
    standing_usd: Decimal | None
    symbol_usd: Decimal
    total_usd: Decimal
    refusals: tuple[OrderRefused, ...]


def judge(order: ReadOrder, now: Moment, limits: EffectiveLimits, marks: MarkPriceSource | None) -> Verdict:
    """Work out what an order would bring the figures to, and what it breaks.

    A buy is worth its own price, which is the most that it can cost. A sell is worth its own price, or what the symbol
    is known to be worth when that is more: its price is the least that it may fetch, and a low one says nothing of what
    is owed once it has filled. The position of the order's own symbol is worth the order's price, as in section A of
    the seed systems, but never less than is known. Where that nets a position against orders at other prices, the units
    at the order's price count when that is more.

    Args:
        order: the order.
        now: what is held and working.
        limits: both limits as they are now.
        marks: source of mark prices; without one what is known without asking counts.

    Raises:
        MarkFault: a mark price is not usable.
    """
    held = now.held.exact_quantity if now.held else ZERO
    signed = held if order.sign > 0 else held.copy_negate()  # above 0: the order is on the position's side
    units = EXACT.add(EXACT.add(signed, now.same_side_quantity), order.quantity)
    reduces = stays_within(held, now.same_side_quantity, order.sign, order.quantity)
    known = now.known_price
    if marks is not None and (order.price is None or not reduces):
        known = mark_price(marks, order.symbol)
    price = exact(worth_usd(order.sign, order.price, known))
    position_usd = EXACT.multiply(signed, price)
    if known is not None and signed > 0:
        position_usd = max(position_usd, EXACT.multiply(signed, exact(known)))
    netted_usd = EXACT.add(EXACT.add(position_usd, EXACT.multiply(order.quantity, price)), now.same_side_usd)
    symbol_usd = max(netted_usd, EXACT.multiply(units, price), ZERO)
    others_usd, standing_usd = now.others_usd, None
    if marks is not None and not reduces:
        sure_usd = limits.total_usd * (1 - FLOAT_MARGIN)
        others_usd = marked_total(marks, now.others, beside_usd=symbol_usd, sure_usd=sure_usd)
        standing_usd = now.own.exact_usd(known or 0.0) if now.own is not None else None
    total_usd = EXACT.add(others_usd, symbol_usd)
    refusals = () if reduces else _passed(order.symbol, symbol_usd, total_usd, now, limits)
    return Verdict(price, reduces, standing_usd, symbol_usd, total_usd, refusals)


def worth_usd(sign: int, price: float | None, known: float | None) -> float:
    """What each unit of an order counts at, in USD.

    Args:
        sign: +1 for a buy, -1 for a sell.
        price: the order's own, ``None`` for a market order.
        known: what a unit of the symbol is known to be worth, ``None`` when it is not.
    """
    if price is None:
        return DEFAULT_MARK_PRICE_USD if known is None else known
    return known if sign < 0 and known is not None and known > price else price


def _passed(
    symbol: str, symbol_usd: Decimal, total_usd: Decimal, now: Moment, limits: EffectiveLimits
) -> tuple[OrderRefused, ...]:
    """Every limit that the figures are above."""
    refusals: list[OrderRefused] = []
    if symbol_usd > limits.exact_symbol_usd:
        sentence = (
            f"{symbol}: the order would bring the position to {symbol_usd:.2f} USD, "
            f"above the limit of {limits.symbol_usd:.2f} USD per symbol"
        )
        refusals.append(
            OrderRefused("symbol_limit", limits.symbol_usd, float(symbol_usd), symbol, _working(sentence, now))
        )
    if total_usd > limits.exact_total_usd:
        sentence = (
            f"{symbol}: the order would bring the total over all symbols to {total_usd:.2f} USD, "
            f"above the limit of {limits.total_usd:.2f} USD"
        )
        refusals.append(
            OrderRefused("total_limit", limits.total_usd, float(total_usd), symbol, _working(sentence, now))
        )
    return tuple(refusals)


def _working(sentence: str, now: Moment) -> str:
    """Say how much of the figure is orders that work already, where there are any."""
    if now.same_side_usd == 0:
        return sentence
    return f"{sentence}; {now.same_side_usd:.2f} USD of it are orders that work on the same side"

"""The rule that the limits are: what an order would bring a position and the total to, at worst.

In exact decimals, which decide, and in floats, which decide alone where they are far enough from a limit. Mark prices
come from outside and may be anything; no lock is held while they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from killswitch.core.reduce_only import stays_within
from killswitch.risk.exact import EXACT, ZERO, exact
from killswitch.risk.limits.limit_schedule import EffectiveLimits
from killswitch.risk.limits.working_orders import WorkingOrder
from killswitch.risk.limits.worst_case_exposure import Exposed, Held, WorstCaseExposure
from killswitch.risk.order_inputs import ReadOrder, finite_number
from killswitch.risk.refusal import OrderRefused

DEFAULT_MARK_PRICE_USD = 1.0

MarkPriceSource = Callable[[str], float]
"""Price of a symbol in USD; called without any lock held."""

FLOAT_MARGIN = 1e-10
"""Floats decide alone only when they are this far inside a limit, as a ratio of it; nearer to it the exact decimals
decide. A float result is a handful of roundings (1.1e-16 each) away from the exact one, and two more for each order
since everything was last made exact, which it is after 50,000 at the latest: so this is several times too wide."""

_SURE = 1 - FLOAT_MARGIN
_WIDER = 1 + FLOAT_MARGIN
_INFINITY = math.inf


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


def moment_of(book: WorstCaseExposure, order: ReadOrder, own: WorkingOrder | None, *, marked: bool) -> Moment:
    """What is held and working beside an order. The book's lock is held.

    Args:
        book: it.
        order: the order.
        own: the order as it works already; it does not count against itself.
        marked: mark prices will be asked for.
    """
    book.book()
    symbol = order.symbol
    quantity, usd = book.same_side(symbol, order.sign, own)
    return Moment(
        held=book.held.get(symbol),
        known_price=book.known_price(symbol),
        same_side_quantity=quantity,
        same_side_usd=usd,
        others_usd=EXACT.subtract(book.exact_total_usd, book.worst_usd(symbol)),
        own=book.exposed(symbol) if marked else None,
        others={other: book.exposed(other) for other in book.symbols() - {symbol}} if marked else {},
    )


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
    is owed once it has filled. The position of the order's own symbol is worth the order's price, but never less than
    is known. Where that nets a position against orders at other prices, the units at the order's price count when that
    is more.

    Args:
        order: the order.
        now: what is held and working.
        limits: both limits as they are now.
        marks: source of mark prices; without one what is known without asking counts.

    Raises:
        MarkFault: a mark price is not usable.
    """
    held, quantity = now.held.exact_quantity if now.held else ZERO, order.quantity
    signed = held if order.sign > 0 else held.copy_negate()  # above 0: the order is on the position's side
    units = EXACT.add(EXACT.add(signed, now.same_side_quantity), quantity)
    reduces = stays_within(held, now.same_side_quantity, order.sign, quantity)
    known = now.known_price
    if marks is not None and (order.price is None or not reduces):
        known = mark_price(marks, order.symbol)
    price = exact(worth_usd(order.sign, order.price, known))
    position_usd = EXACT.multiply(signed, price)
    if known is not None and signed > 0:
        position_usd = max(position_usd, EXACT.multiply(signed, exact(known)))
    netted_usd = EXACT.add(EXACT.add(position_usd, EXACT.multiply(quantity, price)), now.same_side_usd)
    symbol_usd = max(netted_usd, EXACT.multiply(units, price), ZERO)
    others_usd, standing_usd = now.others_usd, None
    if marks is not None and not reduces:
        sure_usd = limits.total_usd * _SURE
        others_usd = marked_total(marks, now.others, beside_usd=symbol_usd, sure_usd=sure_usd)
        standing_usd = now.own.exact_usd(known or 0.0) if now.own is not None else None
    total_usd = EXACT.add(others_usd, symbol_usd)
    refusals = () if reduces else _passed(order.symbol, symbol_usd, total_usd, now, limits)
    return Verdict(price, reduces, standing_usd, symbol_usd, total_usd, refusals)


def surely_fits(
    book: WorstCaseExposure, symbol: str, sign: int, qty: float, price: float, limits: tuple[float, float]
) -> bool:
    """Decide the common case in floats: True only when :func:`judge` without marks passes the order too.

    The book's lock is held. Arguments as :func:`~killswitch.risk.order_inputs.plain_sign` has read them.
    """
    total_usd = book.total_usd
    held = book.held.get(symbol)
    work = book.working.by_symbol.get(symbol)
    signed = own_usd = position_usd = 0.0
    if held is not None:
        signed, own_usd = held.quantity * sign, held.notional
        if price < held.price:
            if sign < 0:  # the price of a sell is the least that it may fetch
                price = held.price
            else:
                position_usd = own_usd - signed * price  # what is held is not worth less for a low bid
    elif sign < 0:
        known = book.marks.get(symbol)
        if known is not None and known > price:
            price = known
    if work is None:
        if signed < 0.0:
            # Rounding is monotone: strictly less as floats is strictly less as decimals. An order that closes or
            # crosses goes the exact way.
            return qty < -signed
        after_usd = (signed + qty) * price + position_usd
    else:
        sums = work.buys if sign > 0 else work.sells
        if signed < 0.0:
            return (qty + sums.quantity) * _WIDER < -signed
        after_usd = (signed + qty) * price + position_usd + sums.usd
        by_units_usd = (signed + qty + sums.quantity) * price
        after_usd = max(after_usd, by_units_usd)
        own_usd += work.extra
    symbol_limit, total_limit = limits
    return (
        after_usd <= symbol_limit * _SURE
        and total_usd - own_usd + after_usd <= total_limit * _SURE
        # Beyond the limit the difference above may have lost more than the margin.
        and total_usd <= total_limit
    )


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


class MarkFault(Exception):
    """The mark price of a symbol is not usable; the message says what came instead."""


def mark_price(source: MarkPriceSource, symbol: str) -> float:
    """Ask the mark price source.

    Raises:
        MarkFault: it raised, or answered anything but a finite positive number.
    """
    try:
        answer = source(symbol)
        price = answer if answer.__class__ is float and 0.0 < answer < _INFINITY else finite_number(answer)
    except Exception as error:  # whatever a price source raises, the price is unknown
        raise MarkFault(f"the mark price of {symbol} is unknown: its source raised {error!r}") from error
    if price is None or price <= 0.0:
        raise MarkFault(f"the mark price of {symbol} is not a finite number above 0")
    return price


def marked_total(
    source: MarkPriceSource, others: Mapping[str, Exposed], *, beside_usd: Decimal, sure_usd: float
) -> Decimal:
    """Sum of worst cases at mark prices: in floats where that decides, else in exact decimals.

    Args:
        source: of the mark prices; asked for the symbols that are held or that orders sell, and for no other.
        others: what is held and working, by symbol.
        beside_usd: what the sum will be added to.
        sure_usd: up to this, floats decide.

    Raises:
        MarkFault: as :func:`mark_price`.
    """
    marked = [
        (one, mark_price(source, symbol) if one.held or one.sells_quantity else 0.0) for symbol, one in others.items()
    ]
    rough_usd = math.fsum(one.rough_usd(mark) for one, mark in marked)
    if rough_usd + float(beside_usd) <= sure_usd:
        return Decimal(rough_usd)
    total = ZERO
    for one, mark in marked:
        total = EXACT.add(total, one.exact_usd(mark))
    return total

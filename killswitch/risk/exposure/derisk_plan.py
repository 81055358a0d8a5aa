"""What a mode asks of execution, as orders that somebody else sends; pure.

One plan is one step. Whoever carries it out plans again from the positions and working orders that are there then, so
that a step which filled in part, or twice, is seen. Growing orders are cancelled first: the plan says so, and does not
count on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Final, Literal

from killswitch.risk.exact import ZERO, exact
from killswitch.risk.exposure.exposure_figures import HeldPosition
from killswitch.risk.exposure.exposure_numbers import SUMS, amount
from killswitch.risk.exposure.policy_settings import DeriskSettings, RotationSettings
from killswitch.risk.exposure.policy_table import PolicyMode, PolicyReason

MAX_ORDERS: Final = 100_000

_DEFAULT_LOT: Final = Decimal("0.00000001")
_RATIOS: Final = Context(prec=60)
_ONE: Final = Decimal(1)

Urgency = Literal["near_last", "cross_spread"]


@dataclass(frozen=True, slots=True)
class Quote:
    """What the market says of one symbol, USD; ``None`` where it says nothing.

    Attributes:
        last: price of the last trade.
        bid: best bid.
        ask: best ask.
        lot: smallest quantity that trades, and the step of all others.
    """

    last: float | Decimal | None
    bid: float | Decimal | None = None
    ask: float | Decimal | None = None
    lot: Decimal = _DEFAULT_LOT


@dataclass(frozen=True, slots=True)
class DeriskOrder:
    """One order of a plan; it only ever reduces a position.

    Attributes:
        symbol: the instrument.
        bucket: the bucket that it reduces.
        side: ``buy`` or ``sell``.
        quantity: exact.
        limit_price: USD.
        urgency: ``near_last`` rests beside the last trade, ``cross_spread`` takes what is on the other side.
    """

    symbol: str
    bucket: str
    side: Literal["buy", "sell"]
    quantity: Decimal
    limit_price: Decimal
    urgency: Urgency


@dataclass(frozen=True, slots=True)
class NotPlanned:
    """A position that should be reduced and is not, and why; a person looks."""

    symbol: str
    bucket: str
    sentence: str


@dataclass(frozen=True, slots=True)
class DeriskPlan:
    """What a mode asks of execution now.

    Attributes:
        mode: the mode.
        cancel_growing: whether working orders that could grow the exposure are to be cancelled first.
        orders: what to send then, in order.
        not_planned: what could not be planned.
        sentence: the plan for people.
    """

    mode: PolicyMode
    cancel_growing: bool
    orders: tuple[DeriskOrder, ...]
    not_planned: tuple[NotPlanned, ...]
    sentence: str


def derisk_plan(
    mode: PolicyMode,
    reason: PolicyReason,
    positions: Iterable[HeldPosition],
    quotes: Mapping[str, Quote],
    *,
    market_open: bool,
    settings: DeriskSettings | None = None,
) -> DeriskPlan:
    """Plan one step of what a decision asks for.

    ``SOFT_DERISK`` closes the same part of every position, as much as brings the gross exposure ``soft_margin_pct``
    below the tolerance, with limit orders ``soft_price_offset_usd`` from the last trade on the side that fills: a cent
    below it to sell, a cent above it to buy. When a bucket is the reason, only its positions are reduced, to its most.
    Reducing orders that work already count towards it. ``HARD_DERISK`` closes ``hard_step_ratio`` of every position at
    the best bid or ask, whatever works: orders that wait for a price are no help then.

    Nothing is ever planned for a reason of kind ``unknown`` (a figure that is NaN must not sell a book), for a closed
    market, for a position whose price is missing, not a number or crossed, nor beyond what working orders of the
    reducing side leave of a position: all of them together with the plan cannot turn it round.

    Args:
        mode: from the decision table.
        reason: from the decision table.
        positions: what is held, at most :data:`MAX_ORDERS`; :meth:`ExposureBook.positions` gives them.
        quotes: by symbol.
        market_open: whether orders can trade now.
        settings: sizes and prices.
    """
    how = settings if settings is not None else DeriskSettings()
    cancel_growing = mode is not PolicyMode.NORMAL
    if mode < PolicyMode.SOFT_DERISK:
        words = "nothing to do" if mode is PolicyMode.NORMAL else "no order that could grow the exposure; no sale"
        return DeriskPlan(mode, cancel_growing, (), (), words)
    held = [position for position in positions if position.quantity != 0]
    if reason.kind == "unknown":
        words = f"no derisk on unknown figures: {reason.sentence}"
        return DeriskPlan(mode, cancel_growing, (), _none_of(held, "the figures are not known"), words)
    if not market_open:
        words = "no derisk while the market is closed"
        return DeriskPlan(mode, cancel_growing, (), _none_of(held, "the market is closed"), words)
    if len(held) > MAX_ORDERS:
        words = f"{len(held)} positions are more than the {MAX_ORDERS} that one plan may have"
        return DeriskPlan(mode, cancel_growing, (), _none_of(held[:MAX_ORDERS], words), words)
    part = _part(mode, reason, how)
    orders: list[DeriskOrder] = []
    missing: list[NotPlanned] = []
    for position in held:
        if mode is PolicyMode.SOFT_DERISK and reason.bucket not in (None, position.bucket):
            continue
        found = _one_order(mode, position, quotes.get(position.symbol), part, how)
        if isinstance(found, DeriskOrder):
            orders.append(found)
        else:
            missing.append(NotPlanned(position.symbol, position.bucket, found))
    share = f"{float(part) * 100:.2f} % of each position"
    where = "at the best bid or ask" if mode is PolicyMode.HARD_DERISK else "near the last trade"
    words = f"{len(orders)} orders {where}, {share}; {len(missing)} positions could not be planned"
    return DeriskPlan(mode, cancel_growing, tuple(orders), tuple(missing), words)


@dataclass(frozen=True, slots=True)
class Rotation:
    """How much of one long-term position may serve small market-making; absolute quantities."""

    symbol: str
    least: Decimal
    most: Decimal


def inventory_rotation(
    mode: PolicyMode, positions: Iterable[HeldPosition], settings: RotationSettings | None = None
) -> tuple[Rotation, ...]:
    """Return what of the LT inventory may serve small market-making, 10 to 20 % of it; pure.

    Only in ``NORMAL``: in every other mode the answer is empty, since quoting both sides means orders that grow.
    """
    how = settings if settings is not None else RotationSettings()
    if mode is not PolicyMode.NORMAL:
        return ()
    least, most = exact(how.min_ratio), exact(how.max_ratio)
    return tuple(
        Rotation(
            position.symbol,
            SUMS.multiply(position.quantity.copy_abs(), least),
            SUMS.multiply(position.quantity.copy_abs(), most),
        )
        for position in positions
        if position.bucket == "LT" and position.quantity != 0
    )


def _none_of(held: Iterable[HeldPosition], why: str) -> tuple[NotPlanned, ...]:
    return tuple(NotPlanned(position.symbol, position.bucket, why) for position in held)


def _part(mode: PolicyMode, reason: PolicyReason, how: DeriskSettings) -> Decimal:
    """Part of each position that one step closes."""
    if mode is PolicyMode.HARD_DERISK:
        return exact(how.hard_step_ratio)
    if reason.value is None or reason.limit is None or reason.value <= 0.0:
        return ZERO
    # At the tolerance already counts, so a derisk must end below it; at the most of a bucket is allowed.
    aim = exact(reason.limit) if reason.bucket else exact(reason.limit) - exact(how.soft_margin_pct)
    return max(ZERO, min(_ONE, _ONE - _RATIOS.divide(max(aim, ZERO), exact(reason.value))))


def _one_order(
    mode: PolicyMode, position: HeldPosition, quote: Quote | None, part: Decimal, how: DeriskSettings
) -> DeriskOrder | str:
    """Return the order for one position, or the sentence that says why there is none."""
    is_long = position.quantity > 0
    size = position.quantity.copy_abs()
    working = position.working_sells if is_long else position.working_buys
    free = SUMS.subtract(size, working)
    if free <= 0:
        return "working orders close all of it already"
    if quote is None:
        return "there is no quote"
    lot = amount(quote.lot)
    if lot is None or lot <= 0:
        return f"its lot is {quote.lot}"
    # Rounded up, for a step that is rounded down to nothing never ends; but never beyond what is free.
    lots = _RATIOS.divide(SUMS.multiply(size, part), lot).to_integral_value(ROUND_CEILING)
    wanted = SUMS.multiply(lots, lot)
    if mode is PolicyMode.SOFT_DERISK:
        wanted = SUMS.subtract(wanted, working)  # what rests there is a soft derisk already, or as good as one
    quantity = min(wanted, free)
    if quantity <= 0:
        return "working orders close enough of it already"
    price = _soft_price(quote, is_long, how) if mode is PolicyMode.SOFT_DERISK else _hard_price(quote, is_long)
    if isinstance(price, str):
        return price
    urgency: Urgency = "near_last" if mode is PolicyMode.SOFT_DERISK else "cross_spread"
    return DeriskOrder(position.symbol, position.bucket, "sell" if is_long else "buy", quantity, price, urgency)


def _soft_price(quote: Quote, is_long: bool, how: DeriskSettings) -> Decimal | str:
    last = amount(quote.last)
    if last is None or last <= 0:
        return f"the last trade is {quote.last}"
    offset = exact(how.soft_price_offset_usd)
    price = SUMS.subtract(last, offset) if is_long else SUMS.add(last, offset)
    return price if price > 0 else last  # a symbol of less than a cent


def _hard_price(quote: Quote, is_long: bool) -> Decimal | str:
    bid, ask = amount(quote.bid), amount(quote.ask)
    if bid is None or ask is None or not 0 < bid <= ask:
        return f"the quote is {quote.bid} to {quote.ask}"
    return bid if is_long else ask

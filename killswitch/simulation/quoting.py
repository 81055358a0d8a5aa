"""How the trading program makes a market: bids below the price, offers of what it holds above it, and its own books.

Pure: prices, positions and fills come in, wanted quotes and profit come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BPS = 1e-4
PRICE_DECIMALS = 2
QUANTITY_DECIMALS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotingPlan:
    """How the market maker quotes.

    Attributes:
        levels: quotes on each side of each symbol.
        spacing_bps: distance of the first quote from the price, and between quotes.
        tolerance_bps: a working quote this near to where one is wanted stays where it is.
        quote_usd: value of one quote.
        inventory_max_usd: no bid is placed that would bring the value of a position above this.
    """

    levels: int = 3
    spacing_bps: float = 8.0
    tolerance_bps: float = 3.0
    quote_usd: float = 1_500.0
    inventory_max_usd: float = 24_000.0


DEFAULT_PLAN = QuotingPlan()


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote that is wanted: side ``buy`` or ``sell``, quantity in units of the symbol, price in USD."""

    side: str
    qty: float
    price: float


@dataclass(frozen=True, slots=True)
class Working:
    """A quote that is working, as far as the program knows."""

    client_order_id: str
    side: str
    qty: float
    price: float


@dataclass(frozen=True, slots=True)
class Requote:
    """What to do about one symbol: ids to cancel first, then quotes to place."""

    cancel: tuple[str, ...]
    place: tuple[Quote, ...]


def requote(price: float, position: float, working: Sequence[Working], plan: QuotingPlan) -> Requote:
    """Decide how the quotes of one symbol should change.

    Args:
        price: last price in USD.
        position: quantity held, never negative.
        working: quotes that work now or may.
        plan: how to quote.
    """
    wanted = [*_bids(price, position, plan), *_asks(price, position, plan)]
    tolerance = price * plan.tolerance_bps * BPS
    keep: set[str] = set()
    place = []
    for quote in wanted:
        match = next(
            (
                order
                for order in working
                if order.client_order_id not in keep
                and order.side == quote.side
                and abs(order.price - quote.price) <= tolerance
            ),
            None,
        )
        if match is None:
            place.append(quote)
        else:
            keep.add(match.client_order_id)
    stale = tuple(order.client_order_id for order in working if order.client_order_id not in keep)
    return Requote(stale, tuple(place))


def _bids(price: float, position: float, plan: QuotingPlan) -> list[Quote]:
    room_usd = plan.inventory_max_usd - position * price
    levels = min(plan.levels, int(room_usd // plan.quote_usd))
    return [_quote("buy", price * (1 - plan.spacing_bps * BPS * level), plan) for level in range(1, levels + 1)]


def _asks(price: float, position: float, plan: QuotingPlan) -> list[Quote]:
    """Offer what is held, one level further out than the bids: it would rather hold than sell."""
    quotes: list[Quote] = []
    for level in range(2, plan.levels + 2):
        quote = _quote("sell", price * (1 + plan.spacing_bps * BPS * level), plan)
        if sum(before.qty for before in quotes) + quote.qty > position:
            break
        quotes.append(quote)
    return quotes


def _quote(side: str, price: float, plan: QuotingPlan) -> Quote:
    return Quote(side, round(plan.quote_usd / price, QUANTITY_DECIMALS), round(price, PRICE_DECIMALS))


@dataclass(slots=True)
class Ledger:
    """Position and profit in each symbol at average cost, from this program's own fills.

    Attributes:
        quantities: units held.
        costs_usd: what the units held have cost.
        realised_usd: profit of what was sold.
    """

    quantities: dict[str, float]
    costs_usd: dict[str, float]
    realised_usd: float = 0.0

    def fill(self, symbol: str, side: str, qty: float, price: float) -> None:
        """Book a fill; a sale of more than is held closes the position and books the rest as a short one."""
        held = self.quantities.get(symbol, 0.0)
        cost = self.costs_usd.get(symbol, 0.0)
        signed = qty if side == "buy" else -qty
        if held * signed >= 0:
            held, cost = held + signed, cost + signed * price
        else:
            average = cost / held
            closing = min(qty, abs(held)) * (1 if held > 0 else -1)
            self.realised_usd += closing * (price - average)
            rest = signed + closing
            held, cost = (held - closing, cost - closing * average) if rest == 0 else (rest, rest * price)
        if abs(held) < 10**-QUANTITY_DECIMALS / 2:
            held, cost = 0.0, 0.0
        self.quantities[symbol], self.costs_usd[symbol] = held, cost

    def pnl_usd(self, prices_usd: Mapping[str, float]) -> float:
        """Realised and unrealised profit at these prices; a symbol without a price counts at cost."""
        unrealised = sum(
            held * prices_usd[symbol] - self.costs_usd[symbol]
            for symbol, held in self.quantities.items()
            if symbol in prices_usd
        )
        return self.realised_usd + unrealised

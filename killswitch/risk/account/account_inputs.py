"""What comes in as a tick or a fill of an account, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from killswitch.risk.account.account_state import AccountTick, Holding
from killswitch.risk.exact import exact
from killswitch.risk.order_inputs import finite_number, side_sign

LARGEST: Final = 1e15
"""Largest quantity and price that is believed."""

SYMBOL_MAX_CHARACTERS: Final = 128


class BadTick(Exception):
    """A tick or a fill that cannot be used; the message says what of it makes no sense."""


def checked_price(symbol: object, price: object, known: frozenset[str] | None) -> float:
    """Return the price of a tick as a float.

    Raises:
        BadTick: the symbol is not known or no name, or the price is not a finite number above 0 and at most 1e15.
    """
    name = _checked_symbol(symbol, known)
    return _checked_amount(price, f"{name}: price")


def checked_fill(
    symbol: object, side: object, qty: object, price: object, known: frozenset[str] | None
) -> tuple[Decimal, Decimal]:
    """Return the signed quantity and the price of a fill, exact.

    Raises:
        BadTick: as :func:`checked_price`, or the side is neither buy nor sell.
    """
    name = _checked_symbol(symbol, known)
    sign = side_sign(side)
    if sign is None:
        raise BadTick(f"{name}: side {str(side)[:40]!r} is neither buy nor sell")
    quantity = exact(_checked_amount(qty, f"{name}: quantity"))
    return (quantity if sign > 0 else quantity.copy_negate()), exact(_checked_amount(price, f"{name}: price"))


def checked_holdings(
    tick: AccountTick, known: frozenset[str] | None, max_symbols: int
) -> tuple[float, Mapping[str, Holding]]:
    """Return realised profit and the holdings of an account's tick.

    Raises:
        BadTick: any of it makes no sense.
    """
    closed = finite_number(tick.closed_pnl_usd)
    if closed is None or abs(closed) > LARGEST:
        raise BadTick(f"closed_pnl_usd {tick.closed_pnl_usd!r} is not a finite number of at most 1e15")
    if not isinstance(tick.holdings, Mapping):
        raise BadTick(f"holdings are a {type(tick.holdings).__name__}, not a mapping of symbols")
    if len(tick.holdings) > max_symbols:
        raise BadTick(f"{len(tick.holdings)} symbols are held, and the most is {max_symbols}")
    return closed, {_checked_symbol(name, known): _checked_holding(name, raw) for name, raw in tick.holdings.items()}


def _checked_holding(name: str, raw: object) -> Holding:
    if not isinstance(raw, Holding):
        raise BadTick(f"{name}: {str(raw)[:80]!r} is no Holding of quantity, entry price and mark price")
    quantity = finite_number(raw.quantity)
    if quantity is None or abs(quantity) > LARGEST:
        raise BadTick(f"{name}: quantity {raw.quantity!r} is not a finite number of at most 1e15")
    return Holding(
        quantity,
        _checked_amount(raw.entry_price_usd, f"{name}: entry price"),
        _checked_amount(raw.mark_price_usd, f"{name}: mark price"),
    )


def _checked_symbol(symbol: object, known: frozenset[str] | None) -> str:
    if not isinstance(symbol, str) or not 0 < len(symbol) <= SYMBOL_MAX_CHARACTERS:
        raise BadTick(f"{str(symbol)[:40]!r} is not the name of a symbol")
    if known is not None and symbol not in known:
        raise BadTick(f"{symbol} is not among the known symbols")
    return symbol


def _checked_amount(value: object, what: str) -> float:
    number = finite_number(value)
    if number is None or not 0.0 < number <= LARGEST:
        raise BadTick(f"{what} {str(value)[:40]} is not a finite number above 0 and at most 1e15")
    return number

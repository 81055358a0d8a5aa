"""What an account looks like at one tick, and what comes in as a tick or a fill, read and checked."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

from killswitch.risk.exact import exact
from killswitch.risk.order_inputs import finite_number, side_sign

LARGEST: Final = 1e15
"""Largest quantity and price that is believed."""

SYMBOL_MAX_CHARACTERS: Final = 128


class AlertLevel(enum.StrEnum):
    """How an account stands: within its limits, past a warning level, past a hard level or not to be told."""

    NORMAL = "NORMAL"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"


class Holding(NamedTuple):
    """One position as a venue tells it.

    Attributes:
        quantity: signed; above 0 long.
        entry_price_usd: average price that it was entered at.
        mark_price_usd: price that it is valued at.
    """

    quantity: float
    entry_price_usd: float
    mark_price_usd: float


class PriceTick(NamedTuple):
    """A new mark price of one symbol. One that is not held changes nothing, and is checked all the same.

    Attributes:
        symbol: name of the instrument.
        price_usd: greater than 0.
    """

    symbol: str
    price_usd: float


class AccountTick(NamedTuple):
    """The whole account as its keeper tells it; it replaces what was known.

    Attributes:
        closed_pnl_usd: realised profit and loss since the initial balance.
        holdings: every position.
    """

    closed_pnl_usd: float
    holdings: Mapping[str, Holding]


Tick = PriceTick | AccountTick


class AccountState(NamedTuple):
    """An account at one tick. Money is in USD. A named tuple, since one is made on every tick.

    Attributes:
        timestamp: when, for people: RFC 3339 in UTC with microseconds. Nothing is decided from it.
        balance: initial balance and closed profit and loss.
        open_pnl: profit and loss of what is held, at the marks.
        closed_pnl: realised profit and loss.
        total_pnl: both.
        positions: signed quantity of each symbol held.
        total_exposure: sum of absolute positions at the marks.
        leverage: exposure over equity, at most the cap that is reported; the cap also when there is no equity left.
        drawdown: what is lost of the day's highest equity.
        drawdown_pct: the same in per cent of that: 2.5 is two and a half per cent.
        alert_level: how it stands; ``CRITICAL`` also when the tick made no sense and the figures are those before it.
    """

    timestamp: str
    balance: float
    open_pnl: float
    closed_pnl: float
    total_pnl: float
    positions: Mapping[str, float]
    total_exposure: float
    leverage: float
    drawdown: float
    drawdown_pct: float
    alert_level: AlertLevel

    @property
    def equity(self) -> float:
        """Balance and open profit and loss."""
        return self.balance + self.open_pnl

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**self._asdict(), "positions": dict(self.positions), "alert_level": self.alert_level.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngagementRecord:
    """An engagement of the circuit breaker with the account around it.

    Attributes:
        engagement: its number.
        mode: mode of the breaker when it was recorded.
        causes: class and sentence of everything that held the breaker.
        before: the last account before it.
        after: the first account at or after it: that of the tick that engaged, or of the next one when somebody else
            did. Without another tick it is the same as ``before``.
    """

    engagement: int
    mode: str
    causes: Mapping[str, str]
    before: AccountState
    after: AccountState

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "engagement": self.engagement,
            "mode": self.mode,
            "causes": dict(self.causes),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


class TickStamp:
    """The time for people, as ``killswitch.clock.wall_now`` writes it, at a tenth of its cost: seconds are kept."""

    __slots__ = ("_second",)

    def __init__(self) -> None:
        """Start with no second."""
        self._second: tuple[int, str] = (-1, "")

    def __call__(self) -> str:
        """Return now as ``2026-01-31T09:30:00.123456Z``."""
        seconds, rest_ns = divmod(time.time_ns(), 1_000_000_000)
        second, text = self._second
        if second != seconds:
            text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds))
            self._second = (seconds, text)
        return f"{text}{rest_ns // 1000:06d}Z"


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

"""An order as the pre-trade controls see it, what a control is, and how a fault of one is told."""

from __future__ import annotations

from typing import Any, Protocol

from killswitch.risk.order_inputs import ReadOrder, plain_sign, read_order, refused
from killswitch.risk.refusal import OrderRefused, RefusalKind

_NANOSECONDS_PER_MS = 1_000_000


class WatchedPrice:
    """The newest price of one symbol, and the range that its prices have had of late.

    Attributes:
        price: USD; of a quote the middle. The last good one while ``fault`` is set, NaN before the first good one.
        at_ns: when something came last.
        changed_ns: when it last was another price than before.
        fault: what is wrong with the newest one, ``None`` when nothing is.
        low, high: range of the good prices in the running window; NaN before the first.
        past_low, past_high: range in the window before it.
        window_ns: when the running window began.
    """

    __slots__ = ("at_ns", "changed_ns", "fault", "high", "low", "past_high", "past_low", "price", "window_ns")

    def __init__(self, price: float, now_ns: int) -> None:
        self.start(price, now_ns)

    def start(self, price: float, now_ns: int) -> None:
        """Know this price alone, and no range but it."""
        self.price = self.low = self.high = self.past_low = self.past_high = price
        self.at_ns = self.changed_ns = self.window_ns = now_ns
        self.fault: RefusalKind | None = None


class PretradeOrder(ReadOrder):
    """An order as the controls see it, on its way through them.

    Attributes:
        symbol: name of the instrument.
        sign: +1 for a buy, -1 for a sell.
        qty: quantity, greater than 0; of an amendment the whole new quantity.
        price: USD, ``None`` for a market order.
        strategy: whose order it is, ``""`` when nobody said.
        now_ns: when it is judged, on the clock of the controls.
        watched: the newest price of the symbol, ``None`` when none has come.
        amends: True for a change of an order that works already.
        grows: True when it asks for more than works already: a new order, and an amendment to a larger quantity.
        own_id: id of the order that is amended, ``None`` for a new one.
        ended_ns: when the controls had let it pass, on the same clock.
        counted_by: the controls that have counted it; they alone can take it back, whatever the settings are then.
    """

    __slots__ = ("amends", "counted_by", "ended_ns", "grows", "now_ns", "own_id", "strategy", "watched")

    now_ns: int
    ended_ns: int
    watched: WatchedPrice | None
    counted_by: tuple[CountingControl, ...]

    def __init__(
        self, symbol: str, sign: int, qty: float, price: float | None, strategy: str = "", amends: bool = False
    ) -> None:
        # Made for every order: not by way of the class above, which would cost a call.
        self.symbol = symbol
        self.sign = sign
        self.qty = qty
        self.price = price
        self.strategy = strategy
        self.amends = amends
        self.grows = True
        self.own_id: str | None = None


def read_pretrade(symbol: Any, side: Any, qty: Any, price: Any, strategy: Any) -> PretradeOrder | OrderRefused:
    """Return the order, or the refusal (``bad_input``) that says what of it makes no sense."""
    if strategy is None:
        strategy = ""
    sign = plain_sign(symbol, side, qty, 1.0 if price is None else price)
    if sign and strategy.__class__ is str:
        return PretradeOrder(symbol, sign, qty, price, strategy)
    read = read_order(symbol, side, qty, price)
    if isinstance(read, OrderRefused):
        return read
    return of_strategy(PretradeOrder(read.symbol, read.sign, read.qty, read.price), strategy)


def of_strategy(order: PretradeOrder, strategy: object) -> PretradeOrder | OrderRefused:
    """Return the order as one of a strategy, ``""`` for ``None``; the refusal (``bad_input``) when it is no text.

    Numbers are no names: ``7`` and ``"7"`` would be two strategies to one control and one to another.
    """
    if strategy is None:
        return order
    if not isinstance(strategy, str):
        sentence = f"{order.symbol}: the strategy {strategy!r} is no text; name it as text, or leave it out"
        return refused("bad_input", order.symbol, sentence)
    # The text alone, whatever a kind of text of somebody's own makes of it.
    order.strategy = strategy if strategy.__class__ is str else str.__str__(strategy)
    return order


class PretradeRule(Protocol):
    """One control; a team's own rule is one too.

    It is asked on the thread that sends the order. What it raises, an answer that is neither, and an answer that came
    too late count as a breach.
    """

    name: str

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Return why the order must not go, ``None`` when it may. Must change nothing: it is asked for what-ifs too."""


class CountingControl(PretradeRule, Protocol):
    """A control that remembers the orders that went."""

    def count(self, order: PretradeOrder) -> None:
        """The order goes."""

    def take_back(self, order: PretradeOrder) -> None:
        """The order that was counted does not go after all."""


# ---- refusals that say that something is wrong with the controls themselves, or with their clock


def fault(symbol: object, what: str) -> OrderRefused:
    """A control, a rule or a clock that failed: nothing is known of the order."""
    return OrderRefused("control_error", None, None, str(symbol), f"{symbol}: {what}")


def raised(order: PretradeOrder, error: Exception) -> OrderRefused:
    """Name the control that raised: the outermost one that was at work."""
    at = error.__traceback__
    while at is not None:
        name = getattr(at.tb_frame.f_locals.get("self"), "name", None)
        if isinstance(name, str):
            return fault(order.symbol, f"{name} raised {error!r}")
        at = at.tb_next
    return fault(order.symbol, f"the clock raised {error!r}")


def stepped(order: PretradeOrder, last_ns: int) -> OrderRefused:
    """The clock that went back since the newest order."""
    back_ms = (last_ns - order.now_ns) / _NANOSECONDS_PER_MS
    sentence = f"{order.symbol}: the clock went back by {back_ms:.3f} ms, so no age and no rate can be told"
    return OrderRefused("clock_stepped", 0.0, back_ms, order.symbol, sentence, "ms")


def overrun(order: PretradeOrder, what: str, took_ms: float, limit_ms: float) -> OrderRefused:
    """An answer that came too late: what it was worked out from may be true no longer."""
    sentence = f"{order.symbol}: {what} took {took_ms:.3f} ms, and {limit_ms:g} ms are allowed"
    return OrderRefused("control_overrun", limit_ms, took_ms, order.symbol, sentence, "ms")

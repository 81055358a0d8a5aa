"""Message throttle: so many new orders and so many amendments a second, in all and per symbol: RTS 6 Art. 15(1)(d).

Each limit is a token bucket. It is kept as one whole number, the time at which the bucket will be full again (the
generic cell rate algorithm), so it is exact, costs the same always, and takes 32 bytes a symbol. Cancels are not asked.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import ThrottleSettings
from killswitch.risk.refusal import OrderRefused, RefusalKind

MAX_THROTTLED_SYMBOLS = 100_000

_NANOSECONDS_PER_S = 1_000_000_000


class _Rate:
    """One limit: the time that a message takes out of the bucket, and how far ahead of the clock it may run."""

    __slots__ = ("ahead_ns", "capacity", "interval_ns", "per_s")

    def __init__(self, per_s: int, burst_s: float) -> None:
        self.per_s = per_s
        self.interval_ns = -(-_NANOSECONDS_PER_S // per_s)  # rounded up: never more than the limit
        self.capacity = max(1, math.floor(per_s * burst_s))
        self.ahead_ns = (self.capacity - 1) * self.interval_ns

    def carry(self, full_ns: int, before: _Rate, *, now_ns: int, last_ns: int) -> int:
        """Return when a bucket of this rate is full that goes on from one of another rate.

        It holds no more than the other one held, and no more than it would hold itself if it had been in force all
        along; so no change of settings ever gives a message away, and a lower rate refuses at once what it would have
        refused after what was sent. What is not known of the past counts against the bucket.

        Args:
            full_ns: when the other one is full; 0 when nothing was ever taken out of it.
            before: the other one's rate.
            now_ns: now.
            last_ns: no message was taken later than this.
        """
        if full_ns == 0 or (self.interval_ns == before.interval_ns and self.capacity == before.capacity):
            return full_ns
        missing_ns = max(0, full_ns - now_ns)
        # In messages: the smaller bucket less what is out of it. Counted in the time that a message takes here.
        most_ns = min(self.capacity, before.capacity) * before.interval_ns
        left_ns = max(0, most_ns - missing_ns) * self.interval_ns // before.interval_ns
        if self.interval_ns > before.interval_ns:
            # A faster bucket has filled up again after messages that this one would still be missing. All that is known
            # of the past is when the last one can have been sent at the latest: so this one was empty then.
            newest_ns = min(last_ns, full_ns - before.interval_ns)
            left_ns = min(left_ns, max(0, now_ns - newest_ns))
        return now_ns + self.capacity * self.interval_ns - left_ns


class _Bucket(NamedTuple):
    """A limit with what is known, for the time that it is asleep: when the bucket, or each symbol's, is full."""

    rate: _Rate
    full_ns: int
    symbols_full_ns: dict[str, int]


class _Kind:
    """The buckets of one kind of message."""

    __slots__ = (
        "asleep_in_all", "asleep_of_symbol", "full_ns", "in_all", "of_symbol", "symbol_kind", "symbols_full_ns",
        "total_kind", "what",
    )  # fmt: skip

    def __init__(
        self, in_all: _Rate | None, of_symbol: _Rate | None, kinds: tuple[RefusalKind, RefusalKind], what: str
    ) -> None:
        self.in_all, self.of_symbol = in_all, of_symbol
        self.total_kind, self.symbol_kind = kinds
        self.what = what
        self.full_ns = 0
        self.symbols_full_ns: dict[str, int] = {}
        self.asleep_in_all: _Bucket | None = None
        self.asleep_of_symbol: _Bucket | None = None

    def go_on_from(self, before: _Kind, *, now_ns: int, last_ns: int) -> None:
        """Take over what another kind knew; of a limit that is off now it is kept for when it comes back."""
        known = before.asleep_in_all
        if before.in_all is not None:
            known = _Bucket(before.in_all, before.full_ns, {})
        if self.in_all is None:
            self.asleep_in_all = known
        elif known is not None:
            self.full_ns = self.in_all.carry(known.full_ns, known.rate, now_ns=now_ns, last_ns=last_ns)
        known = before.asleep_of_symbol
        if before.of_symbol is not None:
            known = _Bucket(before.of_symbol, 0, before.symbols_full_ns)
        if self.of_symbol is None:
            self.asleep_of_symbol = known
        elif known is not None:
            carry, rate = self.of_symbol.carry, known.rate
            self.symbols_full_ns = {
                symbol: carry(full_ns, rate, now_ns=now_ns, last_ns=last_ns)
                for symbol, full_ns in known.symbols_full_ns.items()
            }


class MessageThrottle:
    """Refuses messages that come too fast."""

    name = "message_throttle"

    def __init__(self, settings: ThrottleSettings) -> None:
        burst_s = settings.burst_s
        self._orders = _Kind(
            _rate(settings.orders_per_s, burst_s),
            _rate(settings.symbol_orders_per_s, burst_s),
            ("order_throttle", "order_throttle_symbol"),
            "orders",
        )
        self._amends = _Kind(
            _rate(settings.amends_per_s, burst_s),
            _rate(settings.symbol_amends_per_s, burst_s),
            ("amend_throttle", "amend_throttle_symbol"),
            "amendments",
        )

    def followed_by(self, settings: ThrottleSettings, *, now_ns: int, last_ns: int) -> MessageThrottle:
        """Return a throttle by other settings that goes on from what this one knows, see :meth:`_Rate.carry`.

        Over any time, changes included, no more messages pass than a full bucket of the largest size in force in that
        time, and as many as the highest rate in force in it lets through.

        Args:
            settings: the other settings.
            now_ns: now.
            last_ns: no message was counted later than this.
        """
        after = MessageThrottle(settings)
        for new, old in ((after._orders, self._orders), (after._amends, self._amends)):
            new.go_on_from(old, now_ns=now_ns, last_ns=last_ns)
        return after

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse a message for which a bucket has no token."""
        kind = self._amends if order.amends else self._orders
        rate = kind.in_all
        if rate is not None and kind.full_ns - order.now_ns > rate.ahead_ns:
            return _too_fast(kind.total_kind, order.symbol, rate.per_s, f"{kind.what} a second over all symbols")
        rate = kind.of_symbol
        if rate is None:
            return None
        full_ns = kind.symbols_full_ns.get(order.symbol)
        if full_ns is None:
            if len(kind.symbols_full_ns) >= MAX_THROTTLED_SYMBOLS:
                sentence = f"{order.symbol}: {MAX_THROTTLED_SYMBOLS} symbols have been traded, and no more are counted"
                most = float(MAX_THROTTLED_SYMBOLS)
                return OrderRefused("table_full", most, most + 1, order.symbol, sentence, "symbols")
        elif full_ns - order.now_ns > rate.ahead_ns:
            return _too_fast(kind.symbol_kind, order.symbol, rate.per_s, f"{kind.what} a second in one symbol")
        return None

    def count(self, order: PretradeOrder) -> None:
        """Take a token from each bucket."""
        kind, now_ns = self._amends if order.amends else self._orders, order.now_ns
        if kind.in_all is not None:
            full_ns = kind.full_ns
            kind.full_ns = (full_ns if full_ns > now_ns else now_ns) + kind.in_all.interval_ns
        if kind.of_symbol is not None:
            full_ns = kind.symbols_full_ns.get(order.symbol, 0)
            kind.symbols_full_ns[order.symbol] = (full_ns if full_ns > now_ns else now_ns) + kind.of_symbol.interval_ns

    def take_back(self, order: PretradeOrder) -> None:
        """Put the tokens back."""
        kind = self._amends if order.amends else self._orders
        if kind.in_all is not None:
            kind.full_ns -= kind.in_all.interval_ns
        if kind.of_symbol is not None and order.symbol in kind.symbols_full_ns:
            kind.symbols_full_ns[order.symbol] -= kind.of_symbol.interval_ns


def most_in_a_second(settings: ThrottleSettings) -> dict[str, int | None]:
    """Return how many messages can pass at most in any one second over all symbols: the rate and a full bucket.

    Returns:
        ``orders`` and ``amendments``; ``None`` where there is no limit.
    """
    of = {"orders": settings.orders_per_s, "amendments": settings.amends_per_s}
    rates = {what: _rate(per_s, settings.burst_s) for what, per_s in of.items()}
    return {what: None if rate is None else rate.per_s + rate.capacity for what, rate in rates.items()}


def _rate(per_s: int | None, burst_s: float) -> _Rate | None:
    return None if per_s is None else _Rate(per_s, burst_s)


def _too_fast(kind: RefusalKind, symbol: str, per_s: int, what: str) -> OrderRefused:
    sentence = f"{symbol}: more than {per_s} {what}"
    return OrderRefused(kind, float(per_s), float(per_s + 1), symbol, sentence, "messages")

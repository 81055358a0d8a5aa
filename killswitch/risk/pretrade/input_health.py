"""Whether the prices that orders are judged by are fit for it: stale, missing, bad, crossed and frozen ones are not.

Health of the inputs is a risk of its own: a limit that is worked out from a wrong price is no limit. So what is not
known to be healthy refuses the order, or freezes, as the settings name it, and is never passed over.
"""

from __future__ import annotations

import math
import threading

from killswitch.clock import NowNs
from killswitch.risk.order_inputs import finite_number, in_range, is_name
from killswitch.risk.pretrade.order import PretradeOrder, WatchedPrice
from killswitch.risk.pretrade.pretrade_settings import InputHealthSettings, Severity
from killswitch.risk.refusal import OrderRefused, RefusalKind

MAX_WATCHED_SYMBOLS = 100_000

_NANOSECONDS_PER_MS = 1_000_000


class InputHealth:
    """The newest price of every symbol, and whether it is fit to trade on. Prices may come from any thread.

    Args:
        settings: what makes a price unfit.
        clock: nanoseconds; ages are measured on it alone, never on a time that somebody else wrote.
        window_ms: how long one window of the price range lasts.
    """

    name = "input_health"

    def __init__(self, settings: InputHealthSettings, *, clock: NowNs, window_ms: int) -> None:
        self._clock = clock
        self._writing = threading.Lock()
        self.prices: dict[str, WatchedPrice] = {}
        self.set_window(window_ms)
        self.set_settings(settings)

    def set_settings(self, settings: InputHealthSettings) -> None:
        """Judge by other ages and severities; the prices known stay. The lock of the controls is held."""
        self._max_age_ns = settings.max_age_ms * _NANOSECONDS_PER_MS
        self._frozen_after_ns = (
            None if settings.frozen_after_ms is None else settings.frozen_after_ms * _NANOSECONDS_PER_MS
        )
        self._severities: dict[str, Severity] = {
            "price_missing": settings.missing,
            "price_stale": settings.stale,
            "price_bad": settings.bad,
            "quote_crossed": settings.crossed,
            "quote_frozen": settings.frozen,
        }

    def set_window(self, window_ms: int) -> None:
        """Let windows of the price range last so long from now on.

        The ranges known stay: after a shorter window they reach back too far for a while, which refuses too much; a
        longer one reaches back only as far as is known.
        """
        self._window_ns = window_ms * _NANOSECONDS_PER_MS

    def severity_of(self, kind: RefusalKind) -> Severity | None:
        """What a fault of this kind does; ``None`` for a kind that is not of the inputs."""
        return self._severities.get(kind)

    def on_price(self, symbol: str, price: float) -> None:
        """Take in a mark or a last trade. A bad one stays bad until a good one comes. Never raises."""
        self._take(symbol, finite_number(price), None)

    def on_quote(self, symbol: str, bid: float, ask: float) -> None:
        """Take in a quote; its price is the middle. A bid above the ask is a fault, one equal to it is not."""
        self._take(symbol, *read_quote(bid, ask))

    def _take(self, symbol: str, price: float | None, fault: RefusalKind | None) -> None:
        if not is_name(symbol):
            return
        if price is None or not in_range(price):
            fault = "price_bad"
        try:
            now_ns = int(self._clock())
        except Exception:  # when it came is not known, so it is not known to be young
            fault, now_ns = "price_bad", 0
        with self._writing:
            watched = self.prices.get(symbol)
            if watched is None:
                if len(self.prices) >= MAX_WATCHED_SYMBOLS:
                    return  # one symbol too many stays without a price, and so is not traded
                watched = WatchedPrice(math.nan, now_ns)
                watched.fault = fault
                if fault is None and price is not None:
                    watched.start(price, now_ns)
                self.prices[symbol] = watched
            elif fault is not None or price is None:
                watched.fault, watched.at_ns = fault, now_ns
            elif math.isnan(watched.price):
                # The range begins here: what came before was no price, and nothing may be held against it.
                watched.start(price, now_ns)
            else:
                self._good(watched, price, now_ns)

    def _good(self, watched: WatchedPrice, price: float, now_ns: int) -> None:
        if now_ns - watched.window_ns >= self._window_ns:
            # The window before the running one; further back nothing is remembered. After a pause of more than a
            # window its range is that of the last price known.
            long_ago = now_ns - watched.window_ns >= 2 * self._window_ns
            watched.past_low = watched.price if long_ago else watched.low
            watched.past_high = watched.price if long_ago else watched.high
            watched.low = watched.high = price
            watched.window_ns = now_ns
        elif price < watched.low:
            watched.low = price
        elif price > watched.high:
            watched.high = price
        if price != watched.price:
            watched.changed_ns = now_ns
        watched.price, watched.at_ns, watched.fault = price, now_ns, None

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse an order whose symbol has no price that is fit to trade on."""
        watched, now_ns, symbol = order.watched, order.now_ns, order.symbol
        if watched is None:
            return OrderRefused("price_missing", None, None, symbol, f"{symbol}: no price of it has come yet")
        if watched.fault is not None:
            return _unfit(watched.fault, symbol)
        age_ns = now_ns - watched.at_ns
        if age_ns > self._max_age_ns:
            return _too_long("price_stale", symbol, "the newest price is", age_ns, self._max_age_ns)
        if self._frozen_after_ns is not None and now_ns - watched.changed_ns > self._frozen_after_ns:
            same_ns = now_ns - watched.changed_ns
            what = "prices come and have been the same for"
            return _too_long("quote_frozen", symbol, what, same_ns, self._frozen_after_ns)
        return None


def read_quote(bid: object, ask: object) -> tuple[float | None, RefusalKind | None]:
    """Return the middle of a quote in USD and what is wrong with it, ``None`` each when there is none."""
    low, high = finite_number(bid), finite_number(ask)
    if low is None or high is None or not (in_range(low) and in_range(high)):
        return None, "price_bad"
    return (low + high) / 2.0, "quote_crossed" if low > high else None


def _unfit(kind: RefusalKind, symbol: str) -> OrderRefused:
    what = (
        "the newest bid is above the ask" if kind == "quote_crossed" else "the newest price is no finite number above 0"
    )
    return OrderRefused(kind, None, None, symbol, f"{symbol}: {what}")


def _too_long(kind: RefusalKind, symbol: str, what: str, took_ns: int, limit_ns: int) -> OrderRefused:
    took_ms, limit_ms = took_ns / _NANOSECONDS_PER_MS, limit_ns / _NANOSECONDS_PER_MS
    old = " old" if kind == "price_stale" else ""
    sentence = f"{symbol}: {what} {took_ms:.0f} ms{old}, and {limit_ms:.0f} ms are allowed"
    return OrderRefused(kind, limit_ms, took_ms, symbol, sentence, "ms")

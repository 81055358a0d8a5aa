"""Price collars, order by order and over time: RTS 6 Art. 15(1)(a).

Order by order, a price may lie only so far from the newest reference. Over time, it may lie only so far from *every*
reference of the last one to two windows: when the market, or whoever feeds the reference, has run that far, orders wait
until the window has passed.
"""

from __future__ import annotations

import math

from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import PriceCollarSettings
from killswitch.risk.refusal import OrderRefused, RefusalKind

_BPS = 1e-4
# A price exactly at the collar passes although its float distance may be a rounding above it.
_ROUNDING = 1e-9


class PriceCollar:
    """Refuses a price that lies too far from the reference. A market order has no price, so it is not asked.

    The reference is what :class:`InputHealth` holds, which also judges whether it is fit.
    """

    name = "price_collar"

    def __init__(self, settings: PriceCollarSettings) -> None:
        self._ratio = _ratio(settings.max_deviation_bps)
        self._symbol_ratios = {symbol: _ratio(bps) for symbol, bps in settings.symbols_max_deviation_bps.items()}
        self._over_time_ratio = None if settings.over_time_bps is None else _ratio(settings.over_time_bps)

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        """Refuse a price outside the collar."""
        price, watched = order.price, order.watched
        if price is None:
            return None
        if watched is None:
            return _no_reference(order, price)
        ratio = self._symbol_ratios.get(order.symbol, self._ratio)
        reference = watched.price
        if not -reference * ratio <= price - reference <= reference * ratio:
            if math.isnan(reference):
                return _no_reference(order, price)
            return _outside("price_collar", order, reference, ratio)
        ratio_over_time = self._over_time_ratio
        if ratio_over_time is None:
            return None
        high = watched.high if watched.high > watched.past_high else watched.past_high
        low = watched.low if watched.low < watched.past_low else watched.past_low
        if high - price > high * ratio_over_time:
            return _outside("price_collar_over_time", order, high, ratio_over_time)
        if price - low > low * ratio_over_time:
            return _outside("price_collar_over_time", order, low, ratio_over_time)
        return None


def _ratio(bps: float) -> float:
    return bps * _BPS + _ROUNDING


def _no_reference(order: PretradeOrder, price: float) -> OrderRefused:
    """Nothing good has come of the symbol yet."""
    sentence = f"{order.symbol}: there is no reference to hold the price {price:g} against"
    return OrderRefused("price_missing", None, None, order.symbol, sentence)


def _outside(kind: RefusalKind, order: PretradeOrder, reference: float, ratio: float) -> OrderRefused:
    price = order.price or 0.0
    distance_bps = abs(price - reference) / reference / _BPS
    limit_bps = round((ratio - _ROUNDING) / _BPS, 6)
    what = "the newest reference" if kind == "price_collar" else "a reference of the window,"
    sentence = (
        f"{order.symbol}: the price {price:g} lies {distance_bps:.1f} basis points from {what} {reference:g}, "
        f"and {limit_bps:g} are allowed"
    )
    return OrderRefused(kind, limit_bps, distance_bps, order.symbol, sentence, "bps")

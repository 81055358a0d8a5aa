"""Refusals that say that something is wrong with the controls themselves, or with their clock."""

from __future__ import annotations

from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.refusal import OrderRefused

_NANOSECONDS_PER_MS = 1_000_000


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

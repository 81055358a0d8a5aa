"""The doors of every risk monitor, each with what makes no sense at one place of it; for the tests of bad input.

A door takes where the bad value stands and the value, and returns whether it was stopped. The values that make sense at
one door are named there.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from killswitch.core.modes import Mode
from killswitch.risk import (
    AccountTick,
    CircuitBreaker,
    ExposureBook,
    Holding,
    PolicyDecisionTable,
    PriceTick,
    Regime,
    RiskMonitor,
    RuntimeRiskMonitor,
    restriction_of,
)
from killswitch.risk.pretrade import PreTradeControls
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.refusal import OrderRefused

TABLE = PolicyDecisionTable()
DAY = dt.date(2026, 1, 31)
ORDER: tuple[Any, ...] = ("A", "buy", 1.0, 1.0)

BAD_NUMBERS: dict[str, Any] = {
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "0.0": 0.0, "0": 0, "-1.0": -1.0, "1.1e15": 1.1e15,
    "10**400": 10**400, "text": "1", "None": None, "True": True, "list": [], "bytes": b"1", "1j": 1j,
    "decimal NaN": Decimal("NaN"), "decimal sNaN": Decimal("sNaN"), "decimal infinity": Decimal("Infinity"),
}  # fmt: skip
BAD_NAMES: dict[str, Any] = {"empty": "", "None": None, "7": 7, "list": [], "bytes": b"A", "nan": math.nan}
BAD_SIDES: dict[str, Any] = {"hold": "hold", "empty": "", "None": None, "1": 1, "list": [], "True": True}


def runtime_monitor(**changes: Any) -> RuntimeRiskMonitor:
    given: dict[str, Any] = {
        "max_inventory_usd_per_symbol": 10_000.0,
        "max_total_notional_usd": 50_000.0,
        "edge_freeze_threshold_bps": 1.5,
        "registry": CollectorRegistry(),
    }
    return RuntimeRiskMonitor(**{**given, **changes})


def kind_of(refusal: OrderRefused | None) -> str | None:
    return None if refusal is None else refusal.kind


def controls(monitor: RuntimeRiskMonitor | None = None, **sections: Any) -> PreTradeControls:
    """Every control that needs no feed of prices, wide open."""
    wide: dict[str, Any] = {
        "order_size": {"max_quantity": 1e15, "max_value_usd": 1e15},
        "duplicates": {"max_same_orders": 1_000},
        "repeated_executions": {"max_executions": 1_000},
        "daily": {"max_orders": 1_000, "max_losses": 1_000, "max_loss_usd": 1e6},
        # Their clock is the machine's own, which may be busy elsewhere.
        "control_budget_ms": 60_000.0,
    }
    return PreTradeControls(
        PreTradeSettings.model_validate({**wide, **sections}),
        monitor=monitor if monitor is not None else runtime_monitor(),
        day=lambda: DAY,
        registry=CollectorRegistry(),
    )


def account() -> RiskMonitor:
    return RiskMonitor(None, None, 100_000.0, registry=CollectorRegistry())


def book() -> ExposureBook:
    made = ExposureBook()
    made.set_equity(100_000.0)
    return made


def with_bad(position: int, bad: Any, whole: tuple[Any, ...] = ORDER) -> tuple[Any, ...]:
    return (*whole[:position], bad, *whole[position + 1 :])


# ---- the doors


def refuses_an_order(position: int, bad: Any) -> bool:
    order = with_bad(position, bad)
    monitor = runtime_monitor()
    refused = [
        not monitor.check_before_order(*order),
        monitor.explain_order(*order) is not None,
        not monitor.simulate_order(*order).passes,
        monitor.reserve("1", *order) is not None,
    ]
    assert (monitor.blocks_total, monitor.working_orders(), monitor.is_frozen()) == (2, 0, False)
    return all(refused) and not monitor.would_reduce(*order[:3])


def refuses_an_amendment(position: int, bad: Any) -> bool:
    monitor = runtime_monitor()
    asked = controls(monitor)
    assert monitor.reserve("1", *ORDER) is None
    qty, price = with_bad(position, bad)[2:]
    refused = monitor.amend("1", qty, price) is not None and asked.admit_amend("1", qty, price) is not None
    return refused and monitor.get_potential_notional() == 1.0


def freezes_for_a_fill(position: int, bad: Any) -> bool:
    monitor = runtime_monitor()
    monitor.on_fill(*with_bad(position, bad))
    (event,) = monitor.get_freeze_events()
    json.dumps(monitor.persist_to_dict(), allow_nan=False)
    return monitor.is_frozen() and event.metadata["cause"] == "monitor_error" and monitor.get_positions() == {}


def freezes_for_an_edge(_position: int, bad: Any) -> bool:
    monitor = runtime_monitor()
    return monitor.on_edge_update("A", bad) and monitor.is_frozen()


def freezes_for_a_mark(_position: int, bad: Any) -> bool:
    monitor = runtime_monitor(get_mark_price=lambda _symbol: bad)
    monitor.on_fill(*ORDER)
    return not monitor.check_before_order("B", "buy", 1.0, 1.0) and monitor.is_frozen()


def controls_refuse_an_order(position: int, bad: Any) -> bool:
    order = with_bad(position, bad)
    asked = controls()
    refused = [
        asked.explain_order(*order) is not None,
        not asked.simulate_order(*order).passes,
        asked.admit("1", *order) is not None,
    ]
    assert set(asked.refused) == {"bad_input"}
    return all(refused) and asked.monitor.working_orders() == 0


def controls_freeze_for_a_fill(position: int, bad: Any) -> bool:
    asked = controls()
    asked.on_fill(*with_bad(position, bad))
    return asked.monitor.is_frozen()


def controls_refuse_after_a_price(_position: int, bad: Any) -> bool:
    refused = []
    for feed in (
        lambda asked: asked.on_price("A", bad),
        lambda asked: asked.on_quote("A", bad, 1.0),
        lambda asked: asked.on_quote("A", 1.0, bad),
    ):
        asked = controls(input_health={"bad": "refuse"}, price_collar={"max_deviation_bps": 100.0})
        asked.on_price("A", 1.0)
        feed(asked)
        refusal = asked.admit("1", *ORDER)
        refused.append(refusal is not None and refusal.kind == "price_bad")
    return all(refused)


def controls_refuse_after_a_result(_position: int, bad: Any) -> bool:
    asked = controls()
    asked.on_result(bad)
    refusal = asked.admit("1", *ORDER)
    return refusal is not None and refusal.kind == "daily_loss"


def account_engages_for_a_fill(position: int, bad: Any) -> bool:
    monitor = account()
    state = monitor.on_fill(*with_bad(position, bad))
    return monitor.circuit_breaker.is_engaged() and state.positions == {}


def account_pauses_for_a_price(_position: int, bad: Any) -> bool:
    monitor = account()
    monitor.on_fill(*ORDER)
    before = monitor.monitor_tick(PriceTick("A", 1.0))
    after = monitor.monitor_tick(PriceTick("A", bad))
    return not monitor.circuit_breaker.allows() and after[1:-1] == before[1:-1]


def account_pauses_for_a_holding(_position: int, bad: Any) -> bool:
    passed = []
    for holding in (Holding(1.0, bad, 1.0), Holding(1.0, 1.0, bad)):
        monitor = account()
        monitor.monitor_tick(AccountTick(0.0, {"A": holding}))
        passed.append(monitor.circuit_breaker.allows())
    return not any(passed)


def account_pauses_for_a_quantity_held(_position: int, bad: Any) -> bool:
    monitor = account()
    monitor.monitor_tick(AccountTick(0.0, {"A": Holding(bad, 1.0, 1.0)}))
    return not monitor.circuit_breaker.allows()


def breaker_engages_and_says_so(_position: int, bad: Any) -> bool:
    """Figures that make no sense are still the figures of an engagement; so is a class that does not exist."""
    engaged = []
    for stop in (
        lambda breaker: breaker.engage("stop", {"figure": bad}),
        lambda breaker: breaker.engage("stop", bad),
        lambda breaker: breaker.engage(bad, kind=bad),
        lambda breaker: breaker.bad_reading("data", "stop", bad),
        lambda breaker: breaker.bad_reading(bad, bad, {"figure": [bad, {"deeper": bad}]}),
    ):
        told: list[Any] = []
        breaker = CircuitBreaker(registry=CollectorRegistry(), on_transition=told.append)
        stop(breaker)
        json.dumps([one.to_json() for one in breaker.transitions()], allow_nan=False)
        engaged.append(not breaker.allows() and len(told) == 1)
    return all(engaged)


def book_distrusts_a_fill(position: int, bad: Any) -> bool:
    made = book()
    made.on_fill(*with_bad(position, bad), bucket="LT")
    return is_unknown(made)


def book_distrusts_an_order(position: int, bad: Any) -> bool:
    made = book()
    made.on_order("1", *with_bad(position, bad), bucket="LT")
    return is_unknown(made)


def book_distrusts_a_mark(_position: int, bad: Any) -> bool:
    made = book()
    made.on_fill(*ORDER, bucket="LT")
    made.on_mark("A", bad)
    return is_unknown(made)


def book_distrusts_an_equity(_position: int, bad: Any) -> bool:
    made = book()
    made.set_equity(bad)
    made.on_fill(*ORDER, bucket="LT")
    return _decided_unknown(made)


def table_freezes_and_sells_nothing(position: int, bad: Any) -> bool:
    figures: list[Any] = [50.0] * 6
    figures[position % 6] = bad
    mode, reason = TABLE.decide(Regime.MID, *figures, 200.0)
    return reason.kind == "unknown" and restriction_of(mode, reason).mode is Mode.FROZEN


def is_unknown(made: ExposureBook) -> bool:
    figures = made.figures()
    return not figures.trusted and math.isnan(figures.gross_exposure_pct) and _decided_unknown(made)


def _decided_unknown(made: ExposureBook) -> bool:
    gross = made.figures().gross_exposure_pct
    return TABLE.decide(Regime.OPEN, gross, gross, 0.0, 0.0, 0.0, 0.0, 300.0)[1].kind == "unknown"


class Door(NamedTuple):
    """One way in, and what is bad nowhere but here."""

    stopped: Callable[[int, Any], bool]
    sound: frozenset[str] = frozenset()
    """Names of values that make sense here."""


QTY, PRICE = 2, 3
SIGNED = frozenset({"0.0", "0", "-1.0"})
NUMBER_DOORS: dict[tuple[str, int], Door] = {
    ("RuntimeRiskMonitor: quantity of an order", QTY): Door(refuses_an_order),
    ("RuntimeRiskMonitor: quantity of an amendment", QTY): Door(refuses_an_amendment),
    ("RuntimeRiskMonitor: price of an amendment", PRICE): Door(refuses_an_amendment, frozenset({"None"})),
    ("RuntimeRiskMonitor: quantity of a fill", QTY): Door(freezes_for_a_fill),
    ("RuntimeRiskMonitor: price of a fill", PRICE): Door(freezes_for_a_fill),
    ("RuntimeRiskMonitor: edge", 0): Door(freezes_for_an_edge, frozenset({"1.1e15"})),
    ("RuntimeRiskMonitor: mark price", 0): Door(freezes_for_a_mark, frozenset({"1.1e15"})),
    ("PreTradeControls: quantity of an order", QTY): Door(controls_refuse_an_order),
    ("PreTradeControls: quantity of a fill", QTY): Door(controls_freeze_for_a_fill),
    ("PreTradeControls: price of a fill", PRICE): Door(controls_freeze_for_a_fill),
    ("PreTradeControls: price or quote", 0): Door(controls_refuse_after_a_price),
    ("PreTradeControls: result of a trade", 0): Door(controls_refuse_after_a_result, SIGNED | {"1.1e15"}),
    ("RiskMonitor: quantity of a fill", QTY): Door(account_engages_for_a_fill),
    ("RiskMonitor: price of a fill", PRICE): Door(account_engages_for_a_fill),
    ("RiskMonitor: price of a tick", 0): Door(account_pauses_for_a_price),
    ("RiskMonitor: prices of a holding", 0): Door(account_pauses_for_a_holding),
    ("RiskMonitor: quantity of a holding", 0): Door(account_pauses_for_a_quantity_held, SIGNED),
    ("CircuitBreaker: figures, reason, class", 0): Door(breaker_engages_and_says_so),
    ("ExposureBook: quantity of a fill", QTY): Door(book_distrusts_a_fill),
    ("ExposureBook: price of a fill", PRICE): Door(book_distrusts_a_fill),
    ("ExposureBook: quantity of an order", QTY): Door(book_distrusts_an_order, frozenset({"0.0", "0"})),
    ("ExposureBook: price of an order", PRICE): Door(book_distrusts_an_order, frozenset({"None"})),
    ("ExposureBook: mark", 0): Door(book_distrusts_a_mark),
    ("ExposureBook: equity", 0): Door(book_distrusts_an_equity, frozenset({"1.1e15"})),
    **{
        (f"PolicyDecisionTable: figure {index}", index): Door(
            table_freezes_and_sells_nothing, frozenset({"0.0", "0", "1.1e15"})
        )
        for index in range(6)
    },
}
"""Name of the door and where in its arguments -> the door. An order without a price has the mark price."""

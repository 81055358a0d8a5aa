"""The risk rig: scenarios A to E through the real exposure book, session hours, decision table and derisk plan.

Orders and fills are the rig's own and the same in every run, so a report is equal to the byte. The trading day is that
of a venue which is open from 08:00 to 16:30.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from prometheus_client import CollectorRegistry

from killswitch.core.modes import Mode
from killswitch.core.reduce_only import reduces_only
from killswitch.risk.exposure.derisk_plan import DeriskPlan, Quote, derisk_plan
from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.policy_monitor import PolicyDecision, PolicyMonitor
from killswitch.risk.exposure.policy_settings import RiskRules
from killswitch.risk.exposure.policy_table import PolicyDecisionTable, PolicyMode
from killswitch.risk.exposure.trading_session import SessionList, TradingSession
from killswitch.routing.order_registry import MemoryOrderRegistry, OrderRegistry, RegisteredOrder, RegistryUnavailable

SCHEMA: Final = "killswitch.scenario/1"
EQUITY_USD: Final = Decimal(1_000_000)
MOST_STEPS: Final = 50
"""Steps of one derisk; one that needs more has failed."""

_DAY = "2026-01-05"
_CENT = Decimal("0.01")
_SIGNS: Final = {"buy": 1, "sell": -1}

# Symbol: bucket, part of its bucket (negative: short), price in USD.
_BOOK: Final = {
    "AAA": ("LT", Decimal("0.5"), Decimal(200)),
    "BBB": ("LT", Decimal("0.3"), Decimal(50)),
    "CCC": ("LT", Decimal("0.2"), Decimal(400)),
    "DDD": ("MM_PURE", Decimal("0.6"), Decimal(100)),
    "EEE": ("MM_PURE", Decimal("-0.4"), Decimal(80)),
}


NewOrders = Callable[[], OrderRegistry]
"""Makes an empty order registry."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be so; it holds when ``actual`` equals ``expected``."""

    what: str
    expected: Any
    actual: Any

    @property
    def holds(self) -> bool:
        """Whether it is so."""
        return bool(self.expected == self.actual)


@dataclass(slots=True)
class RigRun:
    """One scenario's record: what happened step by step, and what was checked.

    ``new_orders`` makes an empty registry for each account that the scenario plays.
    """

    name: str
    title: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    new_orders: NewOrders = MemoryOrderRegistry

    @property
    def verdict(self) -> str:
        """``OK`` when something was checked and all of it holds, else ``FAILED``."""
        return "OK" if self.checks and all(check.holds for check in self.checks) else "FAILED"

    def check(self, what: str, expected: Any, actual: Any) -> None:
        """Note one check."""
        self.checks.append(Check(what, expected, actual))

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        checks = [
            {"what": one.what, "expected": one.expected, "actual": one.actual, "holds": one.holds}
            for one in self.checks
        ]
        return {
            "name": self.name,
            "title": self.title,
            "verdict": self.verdict,
            "checks": checks,
            "steps": self.steps,
        }


class Rig:
    """One account at one venue.

    Args:
        run: where steps are noted.
        lt_pct: what bucket LT holds, per cent of equity.
        mm_pct: what bucket MM_PURE holds.
    """

    def __init__(self, run: RigRun, *, lt_pct: int, mm_pct: int) -> None:
        self.run = run
        self.rules = RiskRules()
        self.book = ExposureBook(self.rules.exposure, clock=lambda: 0)  # the marks of the rig are those of every moment
        self.orders = run.new_orders()
        self.told: list[PolicyDecision] = []
        self._now_ns = 0
        session = TradingSession(_DAY, _at("08:00"), _at("16:30"))
        hours = SessionList("rig", [session], known_from_ns=_at("00:00"), known_until_ns=_at("23:59"))
        self.monitor = PolicyMonitor(
            self.book,
            PolicyDecisionTable(self.rules),
            moment=lambda: hours.at(self._now_ns),
            on_mode=self.told.append,
            registry=CollectorRegistry(),  # a rehearsal must not raise somebody's alert
        )
        self.book.set_equity(EQUITY_USD)
        for symbol, (bucket, part, price) in _BOOK.items():
            self.book.on_mark(symbol, price)
            pct = lt_pct if bucket == "LT" else mm_pct
            quantity = EQUITY_USD * pct / 100 * part / price
            side = "buy" if quantity > 0 else "sell"
            self.book.on_fill(symbol, side, abs(quantity), price, bucket=bucket)

    def at(self, clock: str) -> PolicyDecision:
        """Go to a time of the day, evaluate, and note it."""
        self._now_ns = _at(clock)
        decision = self.monitor.evaluate()
        figures = self.book.figures()
        self.run.steps.append(
            {
                "at": clock,
                "regime": None if decision.reason.regime is None else decision.reason.regime.name,
                "mode": decision.mode.name,
                "reason": decision.reason.sentence,
                "gross_exposure_pct": round(figures.gross_exposure_pct, 6),
                "potential_exposure_pct": round(figures.potential_exposure_pct, 6),
                "working_orders": figures.working_orders,
            }
        )
        return decision

    def send(
        self, intent_id: str, symbol: str, side: str, quantity: Decimal, *, urgency: str = "resting"
    ) -> RegisteredOrder:
        """Send an order as the policy in force lets it pass; a refused one is REJECTED and never works."""
        bucket, _, price = _BOOK[symbol]
        order, is_new = self.orders.submit(
            intent_id,
            symbol=symbol,
            bucket=bucket,
            side=side,
            quantity=quantity,
            price=price,
            urgency=urgency,
            rejected=not self._passes(symbol, side, quantity),
        )
        return self._work(order) if is_new and order.remaining else order

    def carry_out(self, decision: PolicyDecision, intents: str) -> DeriskPlan:
        """Plan one step, cancel what grows, send the plan twice (as after a lost answer), fill it, cancel the rest."""
        quotes = {symbol: Quote(price, price - _CENT, price + _CENT) for symbol, (_, _, price) in _BOOK.items()}
        plan = derisk_plan(
            decision.mode,
            decision.reason,
            self.book.positions(),
            quotes,
            market_open=decision.moment.is_open,
            settings=self.rules.derisk,
        )
        if plan.cancel_growing:
            self.cancel_growing()
        sent = []
        for _ in range(2):
            for number, planned in enumerate(plan.orders):
                order, is_new = self.orders.submit(
                    f"{intents}-{number}",
                    symbol=planned.symbol,
                    bucket=planned.bucket,
                    side=planned.side,
                    quantity=planned.quantity,
                    price=planned.limit_price,
                    urgency=planned.urgency,
                )
                if is_new:
                    sent.append(self._work(order))
        for order in sent:
            self.fill(order)
            self.cancel(order)
        over = [one for order in sent if (one := self.orders.by_id(order.order_id)) is not None]
        self.run.steps.append({"plan": plan.sentence, "orders": [_order_json(order) for order in over]})
        return plan

    def derisk_until_calm(self, clock: str) -> tuple[list[PolicyMode], PolicyDecision]:
        """Evaluate and carry out until nothing has to be sold; return the modes on the way and the last decision."""
        modes: list[PolicyMode] = []
        decision = self.at(clock)
        while decision.mode >= PolicyMode.SOFT_DERISK and len(modes) < MOST_STEPS:
            modes.append(decision.mode)
            self.carry_out(decision, f"{self.run.name}-{clock}-{len(modes)}")
            decision = self.at(clock)
        return modes, decision

    def fill(self, order: RegisteredOrder) -> None:
        """Fill an order as its urgency says."""
        filled = self.orders.fill(order.order_id)
        self.book.on_fill(order.symbol, order.side, filled, order.price, bucket=order.bucket, order_id=order.order_id)

    def cancel(self, order: RegisteredOrder) -> bool:
        """Cancel an order; nothing ever refuses a cancel."""
        cancelled = self.orders.cancel(order.order_id)
        self.book.on_order_over(order.order_id)
        return cancelled

    def cancel_growing(self) -> int:
        """Cancel every working order that could grow a position; return how many."""
        held = {(one.symbol, one.bucket): one.quantity for one in self.book.positions()}
        growing = [
            order
            for order in self.orders.find(live_only=True)
            if held.get((order.symbol, order.bucket), Decimal(0)) * _SIGNS[order.side] >= 0
        ]
        return sum(self.cancel(order) for order in growing)

    def gross_pct(self) -> float:
        """Gross exposure now, per cent of equity."""
        return self.book.figures().gross_exposure_pct

    def _work(self, order: RegisteredOrder) -> RegisteredOrder:
        order = self.orders.acknowledge(order.order_id)
        self.book.on_order(order.order_id, order.symbol, order.side, order.remaining, order.price, bucket=order.bucket)
        return order

    def _passes(self, symbol: str, side: str, quantity: Decimal) -> bool:
        if self.monitor.allows_growing_orders():
            return True
        newest = self.monitor.decision
        if newest is None or newest.restriction.mode is Mode.FROZEN:
            return False
        held = next((one for one in self.book.positions() if one.symbol == symbol), None)
        if held is None:
            return False
        working = [(1, float(held.working_buys)), (-1, float(held.working_sells))]
        return reduces_only(float(held.quantity), working, _SIGNS[side], float(quantity))


def _scenario_a(run: RigRun) -> None:
    rig = Rig(run, lt_pct=90, mm_pct=30)
    decision = rig.at("08:05")
    run.check("gross exposure, %", 120.0, rig.gross_pct())
    run.check("mode at the open", "NORMAL", decision.mode.name)
    plan = rig.carry_out(decision, "A")
    run.check("derisk orders", 0, len(plan.orders))
    sale = rig.send("A-sell", "DDD", "sell", Decimal(100))
    run.check("a market-making sale", "WORKING", sale.state.word)
    rig.fill(sale)
    rig.cancel(sale)
    purchase = rig.send("A-buy", "DDD", "buy", Decimal(50))
    run.check("a market-making purchase", "WORKING", purchase.state.word)
    run.check("mode with it working", "NORMAL", rig.at("08:06").mode.name)
    run.check("freeze asked for", "ACTIVE", decision.restriction.mode.name)


def _scenario_b(run: RigRun) -> None:
    rig = Rig(run, lt_pct=86, mm_pct=29)
    decision = rig.at("16:16")
    run.check("gross exposure, %", 115.0, rig.gross_pct())
    run.check("mode at the tolerance", "SOFT_DERISK", decision.mode.name)
    run.check("freeze asked for", "REDUCE_ONLY", decision.restriction.mode.name)
    plan = rig.carry_out(decision, "B")
    run.check("every position has an order", len(_BOOK), len(plan.orders))
    apart = {str(abs(order.limit_price - _BOOK[order.symbol][2])) for order in plan.orders}
    run.check("USD from the last trade", ["0.01"], sorted(apart))
    run.check("orders after each was sent twice", len(plan.orders), len(rig.orders))
    run.check("part that filled", ["0.9"], sorted({str(one.filled / one.quantity) for one in rig.orders.find()}))
    run.check("gross exposure is below the tolerance", True, rig.gross_pct() < rig.rules.regimes.LATE.tolerance_pct)
    run.check("mode after it", "NORMAL", rig.at("16:17").mode.name)


def _scenario_c(run: RigRun) -> None:
    rig = Rig(run, lt_pct=82, mm_pct=28)
    run.check("mode at 16:27", "NORMAL", rig.at("16:27").mode.name)
    decision = rig.at("16:28")
    run.check("gross exposure, %", 110.0, rig.gross_pct())
    run.check("mode two minutes before the close", "HARD_DERISK", decision.mode.name)
    plan = rig.carry_out(decision, "C")
    run.check("urgency", ["cross_spread"], sorted({order.urgency for order in plan.orders}))
    run.check("all of it filled", ["FILLED"], sorted({one.state.word for one in rig.orders.find()}))
    run.check("gross exposure after one step of 10 %", 99.0, rig.gross_pct())
    run.check("mode after it", "NORMAL", rig.at("16:28").mode.name)


def _scenario_d(run: RigRun) -> None:
    for clock, regime in (
        ("08:05", "OPEN"),
        ("09:00", "EARLY"),
        ("12:00", "MID"),
        ("16:16", "LATE"),
        ("16:29", "CLOSE"),
    ):
        rig = Rig(run, lt_pct=100, mm_pct=31)
        modes, last = rig.derisk_until_calm(clock)
        run.check(f"{regime}: gross exposure at first, %", 131.0, run.steps[-1 - 2 * len(modes)]["gross_exposure_pct"])
        run.check(f"{regime}: first mode", "HARD_DERISK", modes[0].name if modes else None)
        run.check(f"{regime}: regime", regime, last.reason.regime.name if last.reason.regime is not None else None)
        run.check(f"{regime}: ends without a derisk", True, last.mode < PolicyMode.SOFT_DERISK)
        run.check(f"{regime}: nothing is working", 0, rig.book.figures().working_orders)


def _scenario_e(run: RigRun) -> None:
    rig = Rig(run, lt_pct=65, mm_pct=20)
    rig.at("12:00")
    purchases = [
        rig.send("E-lt", "AAA", "buy", EQUITY_USD * 20 / 100 / 200),
        rig.send("E-mm", "DDD", "buy", EQUITY_USD * 30 / 100 / 100),
    ]
    decision = rig.at("12:01")
    figures = rig.book.figures()
    run.check("gross exposure, %", 85.0, figures.gross_exposure_pct)
    run.check("potential exposure, %", 135.0, figures.potential_exposure_pct)
    run.check("open orders' potential, %", 50.0, figures.open_orders_potential)
    run.check("mode", "THROTTLE_NEW_ORDERS", decision.mode.name)
    run.check("freeze asked for", "ACTIVE", decision.restriction.mode.name)
    plan = derisk_plan(decision.mode, decision.reason, rig.book.positions(), {}, market_open=True)
    run.check("derisk orders", 0, len(plan.orders))
    run.check("a growing order", "REJECTED", rig.send("E-grow", "BBB", "buy", Decimal(1)).state.word)
    run.check("a reducing order", "WORKING", rig.send("E-reduce", "BBB", "sell", Decimal(1)).state.word)
    run.check("cancels that pass", [True, True], [rig.cancel(order) for order in purchases])
    run.check("mode without the orders", "NORMAL", rig.at("12:02").mode.name)
    run.check("sold meanwhile, %", 0.0, 85.0 - rig.gross_pct())


_SCENARIOS: Final[dict[str, tuple[str, Callable[[RigRun], None]]]] = {
    "A": ("Open, 120 %: activity is allowed, no derisk", _scenario_a),
    "B": ("16:16, 115 %: soft derisk", _scenario_b),
    "C": ("16:28, 110 %: hard derisk", _scenario_c),
    "D": ("131 % at any time: hard derisk at once", _scenario_d),
    "E": ("Current 85 %, potential 135 %: throttle, no derisk", _scenario_e),
}

NAMES: Final = tuple(_SCENARIOS)
TITLES: Final[dict[str, str]] = {name: title for name, (title, _) in _SCENARIOS.items()}
"""What each stages, by name."""


def play(name: str, new_orders: NewOrders = MemoryOrderRegistry) -> RigRun:
    """Play one scenario; one that breaks off has failed.

    Raises:
        KeyError: there is none of that name.
        RegistryUnavailable: where its orders are kept nobody answers, so it says nothing about the rules.
    """
    title, steps = _SCENARIOS[name]
    run = RigRun(name, title, new_orders=new_orders)
    try:
        steps(run)
    except RegistryUnavailable:
        raise
    except Exception as error:  # a run that breaks off is a verdict too
        run.check("the run", "ends", f"broke off: {error!r}")
    return run


def play_all(name: str = "all", new_orders: NewOrders = MemoryOrderRegistry) -> list[RigRun]:
    """Play one scenario, or all of them for ``all``; a name may be given in lower case.

    Raises:
        ValueError: there is none of that name.
        RegistryUnavailable: where the orders are kept nobody answers.
    """
    if name.lower() == "all":
        return [play(one, new_orders) for one in NAMES]
    if name.upper() not in _SCENARIOS:
        raise ValueError(f"there is no scenario {name!r}; there are {', '.join(NAMES)} and all")
    return [play(name.upper(), new_orders)]


def report(runs: list[RigRun]) -> str:
    """Return the runs as one line of JSON with one trailing newline, equal to the byte in every run."""
    body = {
        "schema": SCHEMA,
        "scenario": "rig",
        "verdict": "OK" if runs and all(run.verdict == "OK" for run in runs) else "FAILED",
        "runs": [run.to_json() for run in runs],
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n"


def _at(clock: str) -> int:
    """Nanoseconds since 1970 of a time of the rig's day."""
    return int(dt.datetime.fromisoformat(f"{_DAY}T{clock}:00+00:00").timestamp()) * 1_000_000_000


def _order_json(order: RegisteredOrder) -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "intent_id": order.intent_id,
        "symbol": order.symbol,
        "side": order.side,
        "quantity": f"{order.quantity.normalize():f}",
        "price": str(order.price),
        "filled": f"{order.filled.normalize():f}",
        "state": order.state.word,
    }

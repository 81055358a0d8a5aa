"""A CANCEL ALWAYS PASSES: with every pre-trade control used up, one after the other, and with all of them at once."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry

from killswitch.clock import now_ns
from killswitch.gate import Gate, GateWriter
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.policy_monitor import PolicyMonitor
from killswitch.risk.exposure.policy_table import PolicyDecisionTable
from killswitch.risk.exposure.trading_session import AlwaysOpen
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.pretrade import PreTradeControls
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.refusal import RefusalKind
from killswitch.routing.order_router import OrderRouter
from killswitch.routing.order_types import Order, Placed, Refused, VenueEvent, VenueEventKind

DAY = dt.date(2026, 1, 31)
AN_HOUR_NS = 3_600_000_000_000


class Venue:
    """A venue that confirms every cancel at once."""

    router: OrderRouter

    def place(self, order: Order) -> None:
        """Taken."""

    def cancel(self, client_order_id: str) -> None:
        self.router.on_venue_event(VenueEvent(kind=VenueEventKind.CANCELED, client_order_id=client_order_id))


class Desk:
    """A router with controls, on a clock and a calendar that the test can break."""

    def __init__(self, path: Path, sections: dict[str, Any]) -> None:
        self.ns: Any = now_ns()
        self.day: Any = DAY
        self.writer = GateWriter(path, cluster="c", node="n1")
        self.gate = Gate.open(path)
        self.writer.update((), epoch=1, permit_deadline_ns=now_ns() + AN_HOUR_NS)
        self.monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=1_000.0,
            max_total_notional_usd=2_000.0,
            edge_freeze_threshold_bps=1.5,
            registry=CollectorRegistry(),
        )
        self.book = ExposureBook()
        self.book.set_equity(1_000.0)
        self.policy = PolicyMonitor(
            self.book, PolicyDecisionTable(), moment=lambda: AlwaysOpen().at(0), registry=CollectorRegistry()
        )
        self.policy.evaluate()
        self.breaker = CircuitBreaker(registry=CollectorRegistry())
        self.controls = PreTradeControls(
            PreTradeSettings.model_validate({"throttle": None, "clock_stepped": "refuse", **sections}),
            monitor=self.monitor,
            day=lambda: self.day,
            policy=self.policy,
            breaker=self.breaker,
            clock=lambda: self.ns,
            registry=CollectorRegistry(),
        )
        venue = Venue()
        self.router = venue.router = OrderRouter(
            gate=self.gate, venue_client=venue, controls=self.controls, venue="v", strategy="mm"
        )

    def place(self, name: str, symbol: str = "A", qty: float = 1.0, price: float = 100.0) -> str | None:
        """Send an order; ``None`` when it went, else the kind of its refusal."""
        outcome = self.router.place_order(name, symbol, "buy", qty, price)
        if isinstance(outcome, Placed):
            return None
        assert isinstance(outcome, Refused)
        return outcome.why.kind if outcome.why is not None else outcome.sentence

    def expose(self) -> None:
        """Bring the account far above what the policy tolerates."""
        self.book.on_fill("A", "buy", 20.0, 100.0, bucket="LT")
        self.policy.evaluate()

    def close(self) -> None:
        self.gate.close()
        self.writer.close()


HEALTH = {"input_health": {"max_age_ms": 1_000, "frozen_after_ms": 2_000, "bad": "refuse"}}
COLLAR = {**HEALTH, "price_collar": {"max_deviation_bps": 1_000.0, "over_time_bps": 2_000.0}}

USED_UP: dict[str, tuple[dict[str, Any], Any]] = {
    "symbol_not_permitted": ({"permitted_symbols": ["A"]}, lambda desk: desk.place("2", "B")),
    "order_quantity": ({"order_size": {"max_quantity": 1.0}}, lambda desk: desk.place("2", qty=1.5)),
    "order_value": ({"order_size": {"max_value_usd": 100.0}}, lambda desk: desk.place("2", price=101.0)),
    "price_collar": (COLLAR, lambda desk: desk.place("2", price=111.0)),
    "price_missing": (HEALTH, lambda desk: desk.place("2", "B")),
    "price_bad": (HEALTH, lambda desk: (desk.controls.on_price("A", math.nan), desk.place("2"))[1]),
    "quote_crossed": (HEALTH, lambda desk: (desk.controls.on_quote("A", 2.0, 1.0), desk.place("2"))[1]),
    "price_stale": (HEALTH, lambda desk: (setattr(desk, "ns", desk.ns + 10**10), desk.place("2"))[1]),
    "clock_stepped": ({}, lambda desk: (setattr(desk, "ns", desk.ns - 1), desk.place("2"))[1]),
    "order_throttle": ({"throttle": {"orders_per_s": 1}}, lambda desk: desk.place("2")),
    "order_throttle_symbol": ({"throttle": {"symbol_orders_per_s": 1}}, lambda desk: desk.place("2")),
    "duplicate_order": ({"duplicates": {"max_same_orders": 1}}, lambda desk: desk.place("2")),
    "repeated_execution": (
        {"repeated_executions": {"max_executions": 1}},
        lambda desk: (desk.controls.on_fill("B", "buy", 0.1, 1.0, strategy="mm"), desk.place("2"))[1],
    ),
    "working_orders": ({"working_orders": {"max_total": 1}}, lambda desk: desk.place("2", "B")),
    "working_orders_symbol": ({"working_orders": {"max_per_symbol": 1}}, lambda desk: desk.place("2")),
    "daily_orders": ({"daily": {"max_orders": 1}}, lambda desk: desk.place("2")),
    "daily_cancels": ({"daily": {"max_cancels": 1}}, lambda desk: (desk.controls.on_cancel(), desk.place("2"))[1]),
    "daily_losses": ({"daily": {"max_losses": 1}}, lambda desk: (desk.controls.on_result(-1.0), desk.place("2"))[1]),
    "daily_loss": ({"daily": {"max_loss_usd": 9.0}}, lambda desk: (desk.controls.on_result(-9.0), desk.place("2"))[1]),
    "control_error": ({"daily": {"max_orders": 9}}, lambda desk: (setattr(desk, "day", None), desk.place("2"))[1]),
    "policy_throttle": ({}, lambda desk: (desk.expose(), desk.place("2"))[1]),
    "breaker": ({}, lambda desk: (desk.breaker.engage("stop"), desk.place("2"))[1]),
    "symbol_limit": ({}, lambda desk: desk.place("2", qty=9.5)),
    "total_limit": ({}, lambda desk: [desk.place(name, name, qty=9.0) for name in "BCD"][-1]),
    "frozen": ({}, lambda desk: (desk.monitor.freeze("stop"), desk.controls.admit("2", "A", "buy", 1.0).kind)[1]),
}
"""Kind of refusal -> the settings that an order passes first, and what is then refused."""


@pytest.mark.parametrize("kind", USED_UP)
def test_a_cancel_always_passes__with_a_control_used_up(kind: str, tmp_path: Path) -> None:
    sections, use_up = USED_UP[kind]
    desk = Desk(tmp_path / "gate", sections)
    try:
        desk.controls.on_quote("A", 99.5, 100.5)
        assert desk.place("1") is None
        assert use_up(desk) == kind
        result = desk.router.cancel_all_orders("stop")
        assert (result.failed, result.open) == (0, 0)
        assert result.cancelled >= 1
        assert desk.monitor.working_orders() == 0
    finally:
        desk.close()


def test_every_kind_of_refusal_of_a_new_order_is_among_them() -> None:
    """A control that is added later is asked about here."""
    others = {
        "bad_input", "duplicate_id", "unknown_order",  # of the order itself, not of a control
        "monitor_error", "control_overrun", "rule", "table_full",  # faults, which the other tests of the router stage
        "amend_throttle", "amend_throttle_symbol", "price_collar_over_time", "quote_frozen",  # as their neighbours
    }  # fmt: skip
    assert set(USED_UP) | others == set(get_args(RefusalKind))
    assert not set(USED_UP) & others

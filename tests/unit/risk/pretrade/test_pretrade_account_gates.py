"""The circuit breaker and the policy hold orders up: every one while engaged, those that grow while it throttles."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from killswitch.risk import CircuitBreaker, ProcessLimits, RiskLimitsFile
from killswitch.risk.breaker.breaker_settings import BreakerSettings
from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.policy_monitor import PolicyMonitor
from killswitch.risk.exposure.policy_table import PolicyDecisionTable
from killswitch.risk.exposure.trading_session import AlwaysOpen

S = 1_000_000_000


class Desk:
    """A trading process with an account of 1,000 USD at a venue that never closes."""

    def __init__(self, limits: dict[str, Any] | None = None, **more: Any) -> None:
        self.ns = 10**15
        self.book = ExposureBook()
        self.book.set_equity(1_000.0)
        self.book.on_mark("A", 100.0)
        self.policy = PolicyMonitor(
            self.book, PolicyDecisionTable(), moment=lambda: AlwaysOpen().at(0), registry=CollectorRegistry()
        )
        self.breaker = CircuitBreaker(BreakerSettings(), clock=lambda: self.ns, registry=CollectorRegistry())
        given: dict[str, Any] = {"policy": self.policy, "breaker": self.breaker, **more}
        self.process = ProcessLimits(
            RiskLimitsFile.model_validate(limits or {}), registry=CollectorRegistry(), clock=lambda: self.ns, **given
        )
        self.controls, self.monitor = self.process.controls, self.process.monitor
        self.orders = 0

    def order(self, side: str = "buy", qty: float = 1.0) -> str | None:
        """Send an order; ``None`` when it passed. A what-if must say the same before, and use nothing up."""
        self.orders += 1
        probes = self.breaker.snapshot().probes_left
        explained = self.controls.explain_order("A", side, qty, 100.0)
        simulated = self.controls.simulate_order("A", side, qty, 100.0).refusals
        assert self.breaker.snapshot().probes_left == probes
        self.refused = self.controls.admit(f"o{self.orders}", "A", side, qty, 100.0)
        kind = None if self.refused is None else self.refused.kind
        assert kind == (None if explained is None else explained.kind)
        assert kind == (simulated[0].kind if simulated else None)
        return kind


def test_unknown_is_frozen__before_the_policy_has_decided_nothing_grows() -> None:
    desk = Desk(breaker=None)
    assert desk.order() == "policy_throttle"
    assert "it has decided nothing yet" in desk.refused.sentence  # type: ignore[union-attr]
    desk.policy.evaluate()
    assert desk.order() is None


def test_while_the_policy_throttles_only_what_reduces_passes() -> None:
    desk = Desk()
    desk.policy.evaluate()
    desk.controls.on_fill("A", "buy", 13.0, 100.0)
    desk.book.on_fill("A", "buy", 13.0, 100.0, bucket="LT")
    assert desk.order() is None, "the policy was not asked anew"
    desk.policy.evaluate()
    assert desk.order() == "policy_throttle"
    assert desk.policy.decision is not None
    assert desk.policy.decision.reason.sentence in desk.refused.sentence  # type: ignore[union-attr]
    assert desk.controls.refused["policy_throttle"] == 1
    assert desk.order("sell", 10.0) is None
    assert desk.order("sell", 4.0) == "policy_throttle", "together with the one before it would cross zero"
    assert not desk.monitor.is_frozen()


def test_while_the_breaker_is_engaged_no_order_passes_and_nothing_counts() -> None:
    desk = Desk({"pretrade": {"daily": {"max_orders": 2}}}, policy=None)
    assert desk.order() is None
    desk.breaker.engage("drawdown 2.1 %", kind="drawdown")
    for side in ("buy", "sell"):
        assert desk.order(side) == "breaker"
    assert "the circuit breaker default is engaged: " in desk.refused.sentence  # type: ignore[union-attr]
    assert "drawdown 2.1 %" in desk.refused.sentence  # type: ignore[union-attr]
    amended = desk.controls.admit_amend("o1", 2.0)
    assert amended is not None
    assert amended.kind == "breaker"
    assert desk.monitor.working_orders() == 1
    desk.breaker.release("ann", "the strategy is off", engagement=desk.breaker.engagement)
    assert [desk.order(), desk.order()] == [None, "daily_orders"]


def test_a_breaker_that_is_half_open_lets_its_probes_pass_and_no_order_more() -> None:
    desk = Desk(policy=None)
    for _ in range(3):
        desk.breaker.bad_reading("data", "no price")
    assert desk.order() == "breaker"
    desk.ns += 61 * S
    for _ in range(3):
        desk.breaker.good_reading("data")
    probes = desk.breaker.snapshot().probes_left
    assert probes > 0
    assert [desk.order() for _ in range(probes + 1)] == [None] * probes + ["breaker"]
    assert "is half-open and its probes are used up" in desk.refused.sentence  # type: ignore[union-attr]
    for _ in range(5):
        desk.breaker.good_reading("data")
    assert desk.order() is None


@pytest.mark.parametrize("which", ["policy", "breaker"])
def test_unknown_is_frozen__what_cannot_be_asked_lets_nothing_pass(which: str) -> None:
    class Broken:
        name = "broken"

        def __getattr__(self, name: str) -> Any:
            raise OSError("gone")

    desk = Desk(**{"policy": None, "breaker": None, which: Broken()})
    refusal = desk.controls.admit("1", "A", "buy", 1.0, 100.0)
    assert refusal is not None
    assert refusal.kind == "control_error"
    assert desk.monitor.is_frozen()
    assert desk.monitor.working_orders() == 0


def test_without_them_nothing_is_asked() -> None:
    desk = Desk(policy=None, breaker=None)
    desk.breaker.engage("stop")
    assert desk.controls.admit("1", "A", "buy", 1.0, 100.0) is None

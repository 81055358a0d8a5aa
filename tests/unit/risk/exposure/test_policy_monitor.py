"""The policy as it goes on: changes told once and in order, and whatever fails on the way is unknown."""

from __future__ import annotations

import math
import threading
from itertools import pairwise
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.core.modes import Mode
from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.policy_monitor import PolicyDecision, PolicyMonitor
from killswitch.risk.exposure.policy_settings import RiskRules
from killswitch.risk.exposure.policy_table import PolicyDecisionTable, PolicyMode
from killswitch.risk.exposure.trading_session import AlwaysOpen, SessionMoment, unknown_moment


class Desk:
    """A book of 1,000 USD of equity at a venue that never closes, and what was told."""

    def __init__(self) -> None:
        self.book = ExposureBook()
        self.book.set_equity(1_000.0)
        self.book.on_mark("A", 100.0)
        self.now: Any = lambda: AlwaysOpen().at(0)
        self.told: list[PolicyDecision] = []
        self.callback: Any = self.told.append
        self.registry = CollectorRegistry()
        self.monitor = PolicyMonitor(
            self.book,
            PolicyDecisionTable(),
            moment=self.moment,
            on_mode=self.tell,
            registry=self.registry,
        )

    def moment(self) -> SessionMoment:
        return self.now()

    def tell(self, decision: PolicyDecision) -> None:
        self.callback(decision)

    def hold(self, units: float) -> None:
        self.book.on_fill("A", "buy" if units > 0 else "sell", abs(units), 100.0, bucket="LT")

    def count(self, mode: str) -> float | None:
        return self.registry.get_sample_value("policy_mode_total", {"mode": mode})


def test_unknown_is_frozen_for_a_mark_that_gets_too_old_while_the_market_is_open(logs: Any) -> None:
    desk = Desk()
    seconds = [0]
    desk.book._clock = lambda: seconds[0] * 10**9
    desk.book.on_mark("A", 100.0)
    desk.hold(8.0)
    closed = SessionMoment(True, False, 0.0, 0.0, "", "closed")
    desk.now = lambda: closed
    for _ in range(3):
        seconds[0] += 3_600
        assert desk.monitor.evaluate().restriction.mode is Mode.ACTIVE
    desk.now = lambda: AlwaysOpen().at(0)
    assert desk.monitor.evaluate().restriction.mode is Mode.ACTIVE
    seconds[0] += 61
    decision = desk.monitor.evaluate()
    assert decision.restriction.mode is Mode.FROZEN
    assert "A: its newest mark is" in decision.reason.sentence
    desk.monitor.set_rules(RiskRules.model_validate({"exposure": {"mark_stale": "warning"}}))
    assert desk.monitor.evaluate().restriction.mode is Mode.ACTIVE
    (line,) = [line for line in logs if line["event"] == "marks of the exposure"]
    assert line["doubtful"][0].startswith("A: its newest mark is")


def test_before_the_first_evaluation_nothing_may_grow() -> None:
    desk = Desk()
    assert desk.monitor.decision is None
    assert not desk.monitor.allows_growing_orders()
    assert desk.monitor.evaluate().mode is PolicyMode.NORMAL
    assert desk.monitor.allows_growing_orders()


def test_a_change_is_told_once_and_counted_once() -> None:
    desk = Desk()
    for units in (1.0, 1.0, 11.5, -1.5):  # 10, 20, 135 and 120 per cent
        desk.hold(units)
        desk.monitor.evaluate()
        desk.monitor.evaluate()
    assert [one.mode.name for one in desk.told] == ["NORMAL", "HARD_DERISK", "SOFT_DERISK"]
    assert [one.restriction.mode for one in desk.told] == [Mode.ACTIVE, Mode.REDUCE_ONLY, Mode.REDUCE_ONLY]
    assert (desk.count("NORMAL"), desk.count("HARD_DERISK"), desk.count("SOFT_DERISK")) == (1.0, 1.0, 1.0)
    assert desk.count("THROTTLE_NEW_ORDERS") == 0.0


def test_the_same_mode_for_an_unknown_figure_is_another_restriction_and_told() -> None:
    desk = Desk()
    desk.hold(13.5)
    desk.monitor.evaluate()
    desk.book.on_mark("A", math.nan)
    desk.monitor.evaluate()
    assert [(one.mode.name, one.restriction.mode.name) for one in desk.told] == [
        ("HARD_DERISK", "REDUCE_ONLY"),
        ("HARD_DERISK", "FROZEN"),
    ]
    assert "A has no price that can be used" in desk.told[1].reason.sentence


def test_a_callback_that_raises_is_told_again_and_the_decision_stands(logs: Any) -> None:
    desk = Desk()

    def fail(_decision: PolicyDecision) -> None:
        raise RuntimeError("the store is away")

    desk.callback = fail
    desk.hold(13.5)
    assert desk.monitor.evaluate().mode is PolicyMode.HARD_DERISK
    assert not desk.monitor.allows_growing_orders()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "the policy mode could not be passed on"
    ]
    desk.callback = desk.told.append
    desk.monitor.evaluate()
    desk.monitor.evaluate()
    assert [one.mode.name for one in desk.told] == ["HARD_DERISK"]
    assert desk.count("HARD_DERISK") == 1.0


def test_unknown_is_frozen__a_clock_or_a_book_that_raises() -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no clock")

    desk = Desk()
    desk.now = broken
    decision = desk.monitor.evaluate()
    assert (decision.mode, decision.restriction.mode) == (PolicyMode.HARD_DERISK, Mode.FROZEN)
    assert "no clock" in decision.reason.sentence
    desk = Desk()
    desk.book.figures = broken  # type: ignore[method-assign]
    decision = desk.monitor.evaluate()
    assert (decision.restriction.mode, decision.figures) == (Mode.FROZEN, None)
    assert "book raised" in decision.reason.sentence


def test_unknown_is_frozen__a_moment_that_is_not_known() -> None:
    desk = Desk()
    desk.now = lambda: unknown_moment("the wall clock was set")
    decision = desk.monitor.evaluate()
    assert decision.restriction.mode is Mode.FROZEN
    assert "the wall clock was set" in decision.reason.sentence


def test_unknown_is_frozen__an_equity_of_nothing_is_frozen_and_sells_nothing() -> None:
    desk = Desk()
    desk.hold(1.0)
    for equity in (0.0, -5.0, math.nan):
        desk.book.set_equity(equity)
        decision = desk.monitor.evaluate()
        assert (decision.mode, decision.reason.kind) == (PolicyMode.HARD_DERISK, "unknown")


def test_a_closed_market_is_the_close() -> None:
    desk = Desk()
    desk.hold(8.9)
    desk.now = lambda: SessionMoment(True, False, 0.0, 0.0, "", "closed")
    assert desk.monitor.evaluate().mode is PolicyMode.NORMAL
    desk.hold(2.0)
    assert desk.monitor.evaluate().mode is PolicyMode.HARD_DERISK


def test_two_monitors_share_one_counter_of_a_registry() -> None:
    desk = Desk()
    again = PolicyMonitor(desk.book, PolicyDecisionTable(), moment=desk.moment, registry=desk.registry)
    again.evaluate()
    desk.monitor.evaluate()
    assert desk.count("NORMAL") == 2.0


def test_threads_that_evaluate_at_once_tell_changes_in_order() -> None:
    desk = Desk()
    stop = threading.Event()

    def evaluate() -> None:
        while not stop.is_set():
            desk.monitor.evaluate()

    threads = [threading.Thread(target=evaluate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        desk.hold(13.5)
        desk.monitor.evaluate()
        desk.hold(-13.5)
        desk.monitor.evaluate()
    stop.set()
    for thread in threads:
        thread.join(30)
    modes = [one.mode.name for one in desk.told]
    assert len(modes) > 50
    assert all(a != b for a, b in pairwise(modes))

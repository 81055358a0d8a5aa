"""The rules of the policy change while it runs: decided anew at once, and what needs a new start is refused."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from killswitch.core.modes import Mode
from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.policy_monitor import PolicyDecision, PolicyMonitor
from killswitch.risk.exposure.policy_settings import ExposureSettings, RiskRules
from killswitch.risk.exposure.policy_table import PolicyDecisionTable, PolicyMode
from killswitch.risk.exposure.trading_session import AlwaysOpen


def rules(**sections: Any) -> RiskRules:
    return RiskRules.model_validate(sections)


def tolerance(percent: float) -> RiskRules:
    names = ("OPEN", "EARLY", "MID", "LATE", "CLOSE")
    return rules(
        regimes={name: {"tolerance_pct": percent} for name in names}, exposure={"gross_hard_cap_pct": percent + 30.0}
    )


class Desk:
    """A book of 1,000 USD of equity at a venue that never closes, 800 of it held."""

    def __init__(self) -> None:
        self.book = ExposureBook()
        self.book.set_equity(1_000.0)
        self.book.on_mark("A", 100.0)
        self.book.on_fill("A", "buy", 8.0, 100.0, bucket="LT")
        self.told: list[PolicyDecision] = []
        self.monitor = PolicyMonitor(
            self.book,
            PolicyDecisionTable(),
            moment=lambda: AlwaysOpen().at(0),
            on_mode=self.told.append,
            registry=CollectorRegistry(),
        )
        self.monitor.evaluate()


def test_tighter_rules_are_told_before_the_call_returns_and_the_book_stays(logs: Any) -> None:
    desk = Desk()
    assert desk.monitor.allows_growing_orders()
    desk.monitor.set_rules(tolerance(70.0))
    assert [one.mode for one in desk.told] == [PolicyMode.NORMAL, PolicyMode.SOFT_DERISK]
    assert desk.told[-1].restriction.mode is Mode.REDUCE_ONLY
    assert not desk.monitor.allows_growing_orders()
    assert desk.monitor.rules == tolerance(70.0)
    assert desk.book.figures().gross_usd == 800.0
    lines = [line for line in logs if line["event"] == "risk rules changed"]
    assert [line["log_level"] for line in lines] == ["warning"]
    assert {"name": "regimes.MID.tolerance_pct", "before": 120.0, "after": 70.0} in lines[0]["changed"]


def test_the_buckets_follow() -> None:
    desk = Desk()
    desk.monitor.set_rules(rules(exposure={"buckets": {"LT": {"target_pct": 40.0, "max_pct": 79.0}}}))
    decision = desk.monitor.decision
    assert decision is not None
    assert (decision.reason.kind, decision.reason.limit) == ("bucket", 79.0)
    bucket = desk.book.figures().buckets["LT"]
    assert (bucket.target_pct, bucket.max_pct, bucket.current_pct) == (40.0, 79.0, 80.0)


def test_unknown_stays_frozen_under_any_rules() -> None:
    desk = Desk()
    desk.book.on_mark("A", float("nan"))
    for one in (tolerance(70.0), tolerance(9_000.0)):
        desk.monitor.set_rules(one)
        decision = desk.monitor.decision
        assert decision is not None
        assert decision.restriction.mode is Mode.FROZEN


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"exposure": {"groups": {"coins": ["A"]}}}, "exposure.groups"),
        ({"exposure": {"max_symbols": 7}}, "exposure.max_symbols"),
        ({"exposure": {"max_working_orders": 7}}, "exposure.max_working_orders"),
        ({"session": {"calendar": "XNYS"}}, "session.calendar"),
        ({"session": {"max_clock_step_ms": 7}}, "session.max_clock_step_ms"),
        (
            {"exposure": {"groups": {"coins": ["A"]}, "max_symbols": 7}},
            "exposure.groups and exposure.max_symbols",
        ),
    ],
)
def test_what_needs_a_new_start_is_refused_with_its_name_and_nothing_changes(
    logs: Any, changed: dict[str, Any], names: str
) -> None:
    desk = Desk()
    before = desk.monitor.rules
    tighter = changed | {"exposure": changed.get("exposure", {}) | {"gross_hard_cap_pct": 125.0}}
    with pytest.raises(ValueError, match=rf"^{names} cannot change while the process runs; start it again"):
        desk.monitor.set_rules(rules(**tighter))
    assert desk.monitor.rules is before
    assert desk.book.settings == ExposureSettings()
    assert len(desk.told) == 1
    assert not [line for line in logs if line["event"] == "risk rules changed"]


def test_threads_that_decide_while_the_rules_flip_see_one_set_of_rules_each() -> None:
    desk = Desk()
    faults: list[BaseException] = []
    wide, narrow = tolerance(120.0), tolerance(70.0)

    def look() -> None:
        try:
            for _ in range(1_000):
                decision = desk.monitor.evaluate()
                assert decision.mode in (PolicyMode.NORMAL, PolicyMode.SOFT_DERISK)
                desk.book.on_fill("A", "buy", 1.0, 100.0, bucket="MM_PURE")
                desk.book.on_fill("A", "sell", 1.0, 100.0, bucket="MM_PURE")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        desk.monitor.set_rules(narrow)
        desk.monitor.set_rules(wide)
    assert faults == []
    desk.monitor.set_rules(narrow)
    assert not desk.monitor.allows_growing_orders()
    modes = [one.mode for one in desk.told]
    assert all(one is not other for one, other in pairwise(modes))
    assert desk.book.figures().gross_usd == 800.0

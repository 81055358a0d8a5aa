"""What follows from what a node's rules find: warnings, pauses that lift themselves, freezes that a person releases.

A rule that raises, answers nonsense, or is late is a breach and never skipped (UNKNOWN IS FROZEN).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from killswitch_agent.routers import NodeExposure, RoutersSeen
from killswitch_agent.rules.node_monitor import ACCEPTED_MARGIN, NodeMonitor
from prometheus_client import CollectorRegistry

from killswitch.core.modes import Mode
from killswitch.link.messages import Holding
from killswitch.risk.node_rule import NodeFinding, NodeLevel, NodeSnapshot
from killswitch.risk.process.risk_limits_file import JudgementSettings
from tests.support.clock import HandClock

EXPOSURE = NodeExposure(
    holdings={"X": Holding(2.0, 100.0)}, gross_usd=200.0, net_usd=200.0, pnl_usd=-5.0, working_orders=3,
    working_notional_usd=30.0, last_sequence=7, edges_bps={"X": 2.0},
)  # fmt: skip
SEEN = RoutersSeen(live=2, lost=1, report_ages_ms={"r1": 5.0})


class Scripted:
    """A rule that finds what it is told to."""

    name = "scripted"

    def __init__(self) -> None:
        self.answer: Any = []
        self.error: Exception | None = None
        self.seen: list[NodeSnapshot] = []
        self.releases = 0

    def judge(self, snapshot: NodeSnapshot) -> Sequence[NodeFinding]:
        self.seen.append(snapshot)
        if self.error is not None:
            raise self.error
        return self.answer

    def released(self) -> None:
        self.releases += 1


class Actions:
    """What an agent does: a freeze stands until it is released, and is asked for once."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.in_force: set[tuple[str, Mode]] = set()

    def freeze(self, source: str, mode: Mode, finding: NodeFinding) -> None:
        if (source, mode) not in self.in_force:
            self.in_force.add((source, mode))
            self.log.append(("freeze", mode.name, finding.reason))

    def pause(self, source: str, finding: NodeFinding) -> None:
        if ("pause", source, finding.reason) not in self.log:
            self.log.append(("pause", source, finding.reason))

    def resume(self, source: str) -> None:
        self.log.append(("resume", source, ""))


class Rig:
    def __init__(self, *rules: Any, on_error: str = "freeze") -> None:
        self.rule = Scripted()
        self.actions = Actions()
        self.clock = HandClock()
        self.registry = CollectorRegistry()
        self.monitor = NodeMonitor(
            [self.rule, *rules],
            node="n1",
            settings=JudgementSettings.model_validate({"budget_ms": 100, "on_error": on_error}),
            actions=self.actions,
            clock=self.clock,
            registry=self.registry,
        )

    def judge(self, *findings: NodeFinding) -> list[tuple[str, str, str]]:
        """Have the rule find this, and return what was done about it."""
        self.rule.answer = list(findings)
        before = len(self.actions.log)
        self.monitor.observe(EXPOSURE, SEEN)
        return self.actions.log[before:]

    def release(self) -> None:
        """A person releases everything."""
        sources = [source for source, _ in self.actions.in_force]
        self.actions.in_force.clear()
        self.monitor.released(sources)


def finding(level: NodeLevel, value: float | None = 1.0, **more: Any) -> NodeFinding:
    return NodeFinding(**{"trigger": "t", "level": level, "reason": f"{level} {value}", "value": value, **more})


def test_a_rule_sees_the_whole_node() -> None:
    rig = Rig()
    rig.judge()
    (seen,) = rig.rule.seen
    assert (seen.node, seen.now_ns) == ("n1", rig.clock.time_ns)
    assert seen.holdings["X"].value_usd == 200.0
    assert (seen.gross_usd, seen.net_usd, seen.pnl_usd) == (200.0, 200.0, -5.0)
    assert (seen.working_orders, seen.working_notional_usd, seen.edges_bps) == (3, 30.0, {"X": 2.0})
    assert (seen.routers_live, seen.routers_lost, seen.report_ages_ms) == (2, 1, {"r1": 5.0})


def test_each_level_does_what_it_says() -> None:
    rig = Rig()
    assert rig.judge(finding("warning")) == []
    assert rig.judge(finding("reduce_only")) == [("freeze", "REDUCE_ONLY", "reduce_only 1.0")]
    assert rig.judge(finding("freeze")) == [("freeze", "FROZEN", "freeze 1.0")]
    assert rig.judge(finding("freeze")) == [], "a freeze that stands is asked for once"
    labels = {"rule": "scripted", "trigger": "t"}
    for level in ("warning", "reduce_only", "freeze"):
        counted = rig.registry.get_sample_value("killswitch_node_findings_total", {**labels, "level": level})
        assert counted == 1.0, level
    assert rig.registry.get_sample_value("killswitch_node_level") == 4.0


def test_a_pause_lifts_itself_when_it_is_not_found_any_more() -> None:
    rig = Rig()
    source = "scripted:t:None"
    assert rig.judge(finding("pause")) == [("pause", source, "pause 1.0")]
    assert rig.judge(finding("pause")) == []
    assert rig.judge() == [("resume", source, "")]
    assert rig.judge() == []


def test_a_pause_that_becomes_a_freeze_is_taken_back_only_after_the_freeze_stands() -> None:
    rig = Rig()
    rig.judge(finding("pause"))
    assert rig.judge(finding("freeze")) == [
        ("freeze", "FROZEN", "freeze 1.0"),
        ("resume", "scripted:t:None", ""),
    ]


def test_of_one_source_the_most_severe_finding_counts_and_symbols_are_told_apart() -> None:
    rig = Rig()
    done = rig.judge(finding("freeze"), finding("warning"), finding("freeze", symbol="X"))
    assert [one[0] for one in done] == ["freeze", "freeze"]
    assert [judged.source for judged in rig.monitor.findings()] == ["scripted:t:None", "scripted:t:X"]


def test_what_a_person_released_is_accepted_until_it_gets_worse() -> None:
    rig = Rig()
    rig.judge(finding("freeze", 100.0))
    rig.release()
    assert rig.judge(finding("freeze", 100.0)) == [], "the figure that was released"
    assert rig.judge(finding("freeze", 100.0 * ACCEPTED_MARGIN)) == [], "and a little more"
    assert rig.rule.releases == 1
    assert rig.judge(finding("freeze", 100.0 * ACCEPTED_MARGIN + 0.01)) == [("freeze", "FROZEN", "freeze 105.01")]


def test_an_accepted_finding_that_went_away_freezes_when_it_comes_back() -> None:
    rig = Rig()
    rig.judge(finding("freeze", 100.0))
    rig.release()
    rig.judge(finding("freeze", 100.0))
    rig.judge()
    assert rig.judge(finding("freeze", 100.0)) == [("freeze", "FROZEN", "freeze 100.0")]


def test_a_finding_that_was_gone_before_its_release_is_new_when_it_comes_back() -> None:
    rig = Rig()
    rig.judge(finding("freeze", 100.0))
    rig.judge()
    rig.release()
    assert rig.judge(finding("freeze", 100.0)) == [("freeze", "FROZEN", "freeze 100.0")]


def test_an_accepted_reduce_only_does_not_accept_a_freeze() -> None:
    rig = Rig()
    rig.judge(finding("reduce_only", 100.0))
    rig.release()
    assert rig.judge(finding("reduce_only", 100.0)) == []
    assert rig.judge(finding("freeze", 100.0)) == [("freeze", "FROZEN", "freeze 100.0")]


def test_releasing_a_reduce_only_accepts_no_freeze_that_comes_in_the_same_moment() -> None:
    rig = Rig()
    rig.judge(finding("reduce_only", 100.0))
    rig.release()
    assert rig.judge(finding("freeze", 100.0)) == [("freeze", "FROZEN", "freeze 100.0")]


def test_what_is_accepted_is_the_figure_at_the_release_and_not_a_worse_one_after_it() -> None:
    rig = Rig()
    rig.judge(finding("freeze", 100.0))
    rig.release()
    assert rig.judge(finding("freeze", 200.0)) == [("freeze", "FROZEN", "freeze 200.0")]


def test_what_has_no_figure_cannot_be_accepted() -> None:
    rig = Rig()
    rig.judge(finding("freeze", None))
    rig.release()
    assert rig.judge(finding("freeze", None)) == [("freeze", "FROZEN", "freeze None")]


BAD_ANSWERS: list[object] = [
    None, 7, "freeze", [None], ["x"],
    [finding("explode")],  # type: ignore[arg-type]
    [finding("freeze", trigger="")],
    [finding("freeze", trigger=5)],
    [finding("freeze", reason=None)],
    [finding("freeze", symbol=7)],
    [finding("freeze", "much")],  # type: ignore[arg-type]
    [finding("freeze", figures=None)],
]  # fmt: skip


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_unknown_is_frozen_when_a_rule_answers_nonsense(answer: object) -> None:
    rig = Rig()
    rig.rule.answer = answer
    rig.monitor.observe(EXPOSURE, SEEN)
    ((what, mode, reason),) = rig.actions.log
    assert (what, mode) == ("freeze", "FROZEN")
    assert reason.startswith("the rule scripted failed: ")


SEVERITIES = [
    ("freeze", ("freeze", "FROZEN")),
    ("reduce_only", ("freeze", "REDUCE_ONLY")),
    ("pause", ("pause", "scripted:monitor_error:None")),
]


@pytest.mark.parametrize(("on_error", "done"), SEVERITIES)
def test_unknown_is_frozen_when_a_rule_raises_at_the_severity_that_the_settings_name(
    on_error: str, done: tuple[str, str]
) -> None:
    other = Scripted()
    other.name = "other"
    rig = Rig(other, on_error=on_error)
    rig.rule.error = ZeroDivisionError("no")
    assert rig.judge()[0][:2] == done
    assert len(other.seen) == 1, "the rules behind it are asked all the same"


def test_a_rule_that_is_late_is_a_breach_though_it_found_nothing() -> None:
    rig = Rig()

    class Slow:
        name = "slow"

        def judge(self, _: NodeSnapshot) -> Sequence[NodeFinding]:
            rig.clock.time_ns += 101_000_000
            return []

    monitor = NodeMonitor(
        [Slow()], node="n1", settings=JudgementSettings(budget_ms=100), actions=rig.actions, clock=rig.clock,
        registry=CollectorRegistry(),
    )  # fmt: skip
    monitor.observe(EXPOSURE, SEEN)
    assert rig.actions.log == [
        ("pause", "slow:monitor_late:None", "the rule slow takes 101 ms, and 100 ms are allowed")
    ]


def test_a_rule_that_never_answers_is_found_by_whoever_watches() -> None:
    rig = Rig()
    asked, answer = threading.Event(), threading.Event()

    class Hanging:
        name = "hanging"

        def judge(self, _: NodeSnapshot) -> Sequence[NodeFinding]:
            asked.set()
            assert answer.wait(30)
            return []

    monitor = NodeMonitor(
        [Hanging()], node="n1", settings=JudgementSettings(budget_ms=100), actions=rig.actions, clock=rig.clock,
        registry=CollectorRegistry(),
    )  # fmt: skip
    judging = threading.Thread(target=lambda: monitor.observe(EXPOSURE, SEEN))
    judging.start()
    try:
        assert asked.wait(30)
        monitor.watch()
        assert rig.actions.log == [], "not late yet"
        rig.clock.time_ns += 101_000_000
        monitor.watch()
        monitor.watch()
        told = "the rule hanging takes 101 ms, and 100 ms are allowed"
        assert rig.actions.log == [("pause", "hanging:monitor_late:None", told)]
    finally:
        answer.set()
        judging.join(30)
    assert not judging.is_alive()
    assert [judged.finding.trigger for judged in monitor.findings()] == ["monitor_late"]


def test_unknown_is_frozen_when_a_person_releases_while_a_rule_still_hangs() -> None:
    """No judgement comes to find it again, so whoever watches must freeze again."""
    actions, clock = Actions(), HandClock()
    asked, answer = threading.Event(), threading.Event()

    class Hanging:
        name = "hanging"

        def judge(self, _: NodeSnapshot) -> Sequence[NodeFinding]:
            asked.set()
            assert answer.wait(30)
            return []

    settings = JudgementSettings(budget_ms=100, on_late="freeze")
    monitor = NodeMonitor(
        [Hanging()], node="n1", settings=settings, actions=actions, clock=clock, registry=CollectorRegistry()
    )
    judging = threading.Thread(target=lambda: monitor.observe(EXPOSURE, SEEN))
    judging.start()
    try:
        assert asked.wait(30)
        clock.time_ns += 101_000_000
        monitor.watch()
        assert [done[:2] for done in actions.log] == [("freeze", "FROZEN")]
        actions.in_force.clear()
        monitor.released(["hanging:monitor_late:None"])
        monitor.watch()
        assert [done[:2] for done in actions.log] == [("freeze", "FROZEN")] * 2
    finally:
        answer.set()
        judging.join(30)


def test_a_rule_that_cannot_take_a_release_judges_on() -> None:
    rig = Rig()
    rig.rule.released = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    rig.judge(finding("freeze", 1.0))
    rig.release()
    assert rig.judge(finding("freeze", 1.0)) == []
    assert rig.judge(finding("freeze", 3.0)) == [("freeze", "FROZEN", "freeze 3.0")]


def test_a_reason_of_any_length_fits_a_report() -> None:
    rig = Rig()
    rig.judge(finding("warning", reason="x" * 10**6))
    assert len(rig.monitor.summary()["findings"][0]["reason"]) == 500


def test_the_summary_is_json_and_holds_the_most_severe_first() -> None:
    rig = Rig()
    rig.judge(finding("warning", float("inf"), symbol="A"), finding("freeze", 2.0, symbol="B"))
    body = rig.monitor.summary()
    assert [one["symbol"] for one in body["findings"]] == ["B", "A"]
    assert body["findings"][1]["value"] == "inf"

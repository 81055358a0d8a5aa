"""The rules that come along and judge a node: limits and edge, account, policy, value at risk, anomaly."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from killswitch_agent.routers import RouterRegistry, RoutersSeen, routers_seen
from killswitch_agent.rules.account_rule import NodeAccountRule
from killswitch_agent.rules.anomaly_rule import OBSERVE_EVERY_MS, NodeAnomalyRule
from killswitch_agent.rules.inputs_rule import NodeInputsRule
from killswitch_agent.rules.limits_rule import NodeLimitsRule
from killswitch_agent.rules.node_rules import NodeLimitsFiles, NodeRules, figure_rules, load_node_limits
from killswitch_agent.rules.policy_rule import NodePolicyRule
from killswitch_agent.rules.value_at_risk_rule import NodeValueAtRiskRule
from prometheus_client import CollectorRegistry

from killswitch.link.messages import Exposure
from killswitch.risk.exposure.policy_settings import RiskRules
from killswitch.risk.exposure.trading_session import SessionMoment, unknown_moment
from killswitch.risk.figures.anomaly_settings import AnomalySettings
from killswitch.risk.figures.value_at_risk_settings import ValueAtRiskSettings
from killswitch.risk.limits.limit_schedule import LimitScheduleSettings, SessionStep
from killswitch.risk.node_rule import NodeFinding, NodeHolding, NodeRule, NodeSnapshot
from killswitch.risk.process.risk_limits_file import NodeInputsSettings, OrderLimitSettings, RiskLimitsFile
from killswitch.risk.process.rule_loading import RuleNotUsable
from killswitch.settings.config import AgentSettings
from tests.support.clock import HandClock

AT = "2026-01-30T12:00:00.000000Z"
SECOND_NS = 1_000_000_000


def snapshot(holdings: Mapping[str, tuple[float, float]] | None = None, **more: Any) -> NodeSnapshot:
    held = {symbol: NodeHolding(*one) for symbol, one in (holdings or {}).items()}
    values = [one.value_usd for one in held.values()]
    given = {
        "node": "n1", "now_ns": 0, "holdings": held, "gross_usd": sum(map(abs, values)), "net_usd": sum(values),
    }  # fmt: skip
    return NodeSnapshot(**{**given, **more})


def told(findings: Sequence[NodeFinding]) -> list[tuple[str, str, str | None]]:
    return [(one.trigger, one.level, one.symbol) for one in findings]


# ---- limits and edge


def limits_rule(**limits: Any) -> NodeLimitsRule:
    return NodeLimitsRule(OrderLimitSettings.model_validate(limits), registry=CollectorRegistry())


def test_an_edge_below_the_threshold_freezes_and_at_it_does_not() -> None:
    rule = limits_rule(edge_freeze_threshold_bps=1.5)
    assert rule.judge(snapshot(edges_bps={"X": 1.5, "Y": 1.6})) == []
    (finding,) = rule.judge(snapshot(edges_bps={"X": 1.2, "Y": 1.6}))
    assert (finding.trigger, finding.level, finding.symbol) == ("edge_collapse", "freeze", "X")
    assert finding.reason == "Edge degradation: 1.20 BPS < 1.50 BPS"
    assert finding.value == pytest.approx(0.3), "how far below it is, so that a person can accept it"


def test_unknown_is_frozen_for_an_edge_that_is_no_number() -> None:
    assert told(limits_rule().judge(snapshot(edges_bps={"X": math.nan}))) == [("monitor_error", "freeze", "X")]


def test_the_use_of_a_limit_warns_from_half_of_it_on_and_never_closes_anything() -> None:
    rule = limits_rule(max_inventory_usd_per_symbol=100.0, max_total_notional_usd=1_000.0)
    assert rule.judge(snapshot({"X": (0.49, 100.0)})) == []
    (finding,) = rule.judge(snapshot({"X": (-0.5, 100.0)}))
    assert (finding.level, finding.symbol, finding.value, finding.limit) == ("warning", "X", 50.0, 100.0)
    assert "is at 50.0 % of 100.00 USD, past 50 %" in finding.reason
    many = {f"S{number}": (1.0, 96.0) for number in range(10)}
    findings = rule.judge(snapshot(many))
    assert {one.level for one in findings} == {"warning"}
    assert findings[0].reason.endswith("is at 96.0 % of 1000.00 USD, past 95 %")


def test_the_node_warns_by_the_limits_of_the_symbol_and_of_this_time_of_day() -> None:
    minute = [600.0]
    orders = OrderLimitSettings.model_validate(
        {
            "max_inventory_usd_per_symbol": 1_000.0,
            "max_total_notional_usd": 10_000.0,
            "schedule": {
                "symbol_max_inventory_usd": {"Y": 100.0},
                "sessions": [{"from_minute": 0, "limit_pct": 100}, {"from_minute": 900, "limit_pct": 10}],
                "volatility": [{"up_to_ratio": 0.01, "limit_pct": 100}, {"up_to_ratio": 0.02, "limit_pct": 1}],
            },
        }
    )
    rule = NodeLimitsRule(orders, registry=CollectorRegistry(), session_clock=lambda: minute[0])
    held = snapshot({"X": (1.0, 90.0), "Y": (1.0, 90.0)})
    assert [(one.symbol, one.limit) for one in rule.judge(held)] == [("Y", 100.0)]
    minute[0] = 1_000.0
    rule.set_limits(orders)
    assert [(one.symbol, one.limit) for one in rule.judge(held)] == [("X", 100.0), ("Y", 10.0)]
    unknown = NodeLimitsRule(orders, registry=CollectorRegistry())
    assert [one.symbol for one in unknown.judge(held)] == ["X", "Y"], "no time zone: the tightest"
    zero = orders.model_copy(
        update={"schedule": LimitScheduleSettings(sessions=(SessionStep(from_minute=0, limit_pct=0),))}
    )
    closed = NodeLimitsRule(zero, registry=CollectorRegistry(), session_clock=lambda: 1.0)
    assert {one.symbol for one in closed.judge(held)} == {None, "X", "Y"}
    assert closed.judge(snapshot()) == []


# ---- inputs


def test_unknown_is_frozen_for_a_router_that_is_connected_and_has_fallen_silent() -> None:
    rule = NodeInputsRule(NodeInputsSettings(router_silent_after_ms=2_000))
    assert rule.judge(snapshot(report_ages_ms={"r1": 2_000.0, "r2": 5.0})) == []
    (finding,) = rule.judge(snapshot(report_ages_ms={"r1": 2_001.0, "r2": 9_000.0}))
    assert (finding.trigger, finding.level, finding.value) == ("router_silent", "freeze", None)
    assert "router r2 is connected and has reported nothing for 9000 ms" in finding.reason
    assert NodeInputsRule(NodeInputsSettings()).judge(snapshot(report_ages_ms={"r1": 1e9})) == [], "off by default"


def test_a_mark_that_does_not_move_pauses_while_the_symbol_is_held() -> None:
    rule = NodeInputsRule(NodeInputsSettings(mark_frozen_after_ms=1_000))

    def at(ms: int, price: float, quantity: float = 1.0) -> list[tuple[str, str, str | None]]:
        return told(rule.judge(snapshot({"X": (quantity, price)}, now_ns=ms * 1_000_000)))

    assert at(0, 100.0) == at(1_000, 100.0) == []
    assert at(1_001, 100.0) == [("mark_frozen", "pause", "X")]
    assert at(1_002, 100.0, quantity=0.0) == []
    assert at(1_003, 100.1) == [], "it moved"
    assert at(2_004, 100.1) == [("mark_frozen", "pause", "X")]
    rule.set_settings(NodeInputsSettings(mark_frozen_after_ms=2_000, frozen="freeze"))
    assert at(2_005, 100.1) == []
    assert at(3_004, 100.1) == [("mark_frozen", "freeze", "X")]


def test_the_age_of_a_report_is_told_on_the_deadline_clock_and_a_hello_counts_as_one() -> None:
    clock = HandClock()
    routers = RouterRegistry(clock)
    for router in ("r1", "r2"):
        routers.hello(router, "i", reconciled=True)
    clock.time_ns += 3 * SECOND_NS
    routers.exposure("r1", "i", Exposure())
    clock.time_ns += SECOND_NS
    seen = routers_seen(routers.states(), clock())
    assert seen == RoutersSeen(live=2, lost=0, report_ages_ms={"r1": 1_000.0, "r2": 4_000.0})
    routers.gone("r2", "i", said_goodbye=False)
    assert routers_seen(routers.states(), clock()) == RoutersSeen(live=1, lost=1, report_ages_ms={"r1": 1_000.0})


# ---- the account


def account_rule(clock: HandClock, **limits: Any) -> NodeAccountRule:
    return NodeAccountRule(
        RiskLimitsFile.model_validate(limits), initial_balance_usd=100_000.0, node="n1", clock=clock,
        wall_clock=lambda: AT, registry=CollectorRegistry(),
    )  # fmt: skip


def test_drawdown_and_leverage_warn_and_freeze_at_their_levels() -> None:
    rule = account_rule(HandClock())
    for pnl_usd, expected in ((-999.0, []), (-1_000.0, ["warning"]), (-2_000.0, ["freeze"])):
        assert [one.level for one in rule.judge(snapshot(pnl_usd=pnl_usd))] == expected
    (finding,) = account_rule(HandClock()).judge(snapshot({"X": (10.0, 50_000.0)}))
    assert (finding.trigger, finding.level, finding.value, finding.limit) == ("leverage", "freeze", 5.0, 5.0)


def test_profit_that_routers_made_raises_what_a_drawdown_is_measured_from() -> None:
    rule = account_rule(HandClock())
    assert rule.judge(snapshot(pnl_usd=50_000.0)) == []
    (finding,) = rule.judge(snapshot(pnl_usd=46_999.0))
    assert (finding.trigger, finding.level) == ("drawdown", "freeze")


def test_a_breach_that_is_not_confirmed_yet_pauses_and_freezes_when_it_latches() -> None:
    rule = account_rule(HandClock(), confirmations={"drawdown": 2})
    levels = [[one.level for one in rule.judge(snapshot(pnl_usd=-3_000.0))] for _ in range(4)]
    assert levels == [["pause"], ["pause"], ["freeze"], ["freeze"]]


def test_unknown_is_frozen_for_an_account_that_cannot_be_told() -> None:
    rule = account_rule(HandClock(), confirmations={"data": 0})
    assert told(rule.judge(snapshot({"X": (1.0, math.nan)}))) == [("monitor_error", "freeze", None)]
    assert "X" in rule.judge(snapshot({"X": (1.0, math.nan)}))[0].reason


def test_a_release_lets_go_of_the_breaker_and_a_breach_that_stays_is_found_again() -> None:
    rule = account_rule(HandClock())
    rule.judge(snapshot(pnl_usd=-3_000.0))
    assert rule.summary()["breaker"] == "ENGAGED"
    rule.released()
    assert rule.summary()["breaker"] == "SAFE"
    assert told(rule.judge(snapshot(pnl_usd=-3_000.0))) == [("drawdown", "freeze", None)]


# ---- the policy


def moment(minutes_to_close: float, minutes_from_open: float = 300.0) -> SessionMoment:
    return SessionMoment(True, True, minutes_from_open, minutes_to_close, "2026-01-30", "at a named minute")


class PolicyRig:
    def __init__(self, **rules: Any) -> None:
        self.now = moment(math.inf, math.inf)
        self.equity_usd = 100.0
        self.accepted: list[str] = []
        self.rule = NodePolicyRule(
            RiskRules.model_validate(rules), moment=lambda: self.now, equity_usd=lambda: self.equity_usd,
            accept_clock=self.accepted.append,
        )  # fmt: skip

    def judge(self, gross_usd: float, working_usd: float = 0.0, symbol: str = "X") -> list[tuple[str, str]]:
        found = self.rule.judge(snapshot({symbol: (gross_usd, 1.0)}, working_notional_usd=working_usd))
        return [(str(one.figures["policy_mode"]), one.level) for one in found]


WIDE = {"exposure": {"buckets": {"MM_PURE": {"max_pct": 500.0}}}}


def test_the_five_policy_scenarios_on_a_node() -> None:
    rig = PolicyRig(**WIDE)
    rig.now = moment(500.0, minutes_from_open=5.0)
    assert rig.judge(120.0) == [], "A: open, 120 %: activity is allowed"
    rig.now = moment(14.0)
    assert rig.judge(115.0) == [("SOFT_DERISK", "reduce_only")], "B: 16:16, 115 %"
    rig.now = moment(2.0)
    assert rig.judge(110.0) == [("HARD_DERISK", "reduce_only")], "C: 16:28, 110 %"
    rig.now = moment(400.0)
    assert rig.judge(131.0) == [("HARD_DERISK", "reduce_only")], "D: 131 % at any time"
    assert rig.judge(85.0, working_usd=50.0) == [("THROTTLE_NEW_ORDERS", "warning")], "E: potential 135 %: no derisk"


def test_unknown_is_frozen_without_an_equity_and_without_a_time_of_day() -> None:
    rig = PolicyRig(**WIDE)
    rig.equity_usd = 0.0
    assert rig.judge(1.0) == [("HARD_DERISK", "freeze")]
    rig.equity_usd = 100.0
    rig.now = unknown_moment("the wall clock was set")
    assert rig.judge(1.0) == [("HARD_DERISK", "freeze")]
    rig.rule.released()
    assert rig.accepted == ["release of the cluster"]


def test_buckets_are_told_apart_by_the_symbols_of_the_long_term_one() -> None:
    rig = PolicyRig(exposure={"long_term_symbols": ["LONG"]})
    assert rig.judge(85.0, symbol="LONG") == []
    assert rig.judge(85.0, symbol="OTHER") != [], "30 % is the most of MM_PURE"


def test_other_rules_hold_at_the_next_judgement() -> None:
    rig = PolicyRig(**WIDE)
    assert rig.judge(110.0) == []
    rig.rule.set_rules(RiskRules.model_validate({**WIDE, "regimes": _all_at(105.0)}))
    assert rig.judge(110.0) == [("SOFT_DERISK", "reduce_only")]


def _all_at(pct: float) -> dict[str, Any]:
    return {name: {"tolerance_pct": pct} for name in ("OPEN", "EARLY", "MID", "LATE")}


# ---- figures


def value_at_risk_rule(clock: HandClock, **more: Any) -> NodeValueAtRiskRule:
    settings = {
        "sample_every_ms": 1_000,
        "max_age_ms": 5_000,
        "min_observations": 100,
        "observations_kept": 200,
        **more,
    }
    return NodeValueAtRiskRule(ValueAtRiskSettings.model_validate(settings), clock=clock, registry=CollectorRegistry())


def play(rule: NodeRule, clock: HandClock, steps: int, quantity: float) -> Sequence[NodeFinding]:
    rng = random.Random(7)
    price, found = 100.0, tuple[NodeFinding, ...]()
    for _ in range(steps):
        clock.time_ns += SECOND_NS
        price *= 1.0 + rng.gauss(0.0, 0.001)
        found = tuple(rule.judge(snapshot({"X": (quantity, price)}, now_ns=clock.time_ns)))
    return found


def test_value_at_risk_warns_and_freezes_at_its_levels_and_is_reported() -> None:
    clock = HandClock()
    rule = value_at_risk_rule(clock, hard_usd=1_000_000.0)
    play(rule, clock, 150, 1_000.0)
    es_usd = rule.summary()["parametric_es_usd"]
    assert 200.0 < es_usd < 400.0, "2.67 standard deviations of 0.1 % of 100,000 USD"
    for levels, expected in (
        ({"warning_usd": es_usd / 2, "hard_usd": es_usd * 2}, ("warning",)),
        ({"hard_usd": es_usd / 2}, ("freeze",)),
        ({"hard_usd": es_usd / 2, "hard": "reduce_only"}, ("reduce_only",)),
        ({"hard_usd": es_usd * 2}, ()),
    ):
        found = play(value_at_risk_rule(clock := HandClock(), **levels), clock, 150, 1_000.0)
        assert tuple(one.level for one in found) == expected, levels


def test_figures_that_cannot_be_trusted_do_what_the_settings_say_and_have_no_value_to_accept() -> None:
    clock = HandClock()
    (finding,) = play(value_at_risk_rule(clock, hard_usd=1.0, unknown="freeze"), clock, 5, 1.0)
    assert (finding.level, finding.value) == ("freeze", None)
    assert "fewer than 100 returns are known of X" in finding.reason


def anomaly_rule(**more: Any) -> NodeAnomalyRule:
    settings = {"window_observations": 50, "warmup_observations": 60, "confirmations": 2, **more}
    return NodeAnomalyRule(AnomalySettings.model_validate(settings), registry=CollectorRegistry())


def calm(rule: NodeAnomalyRule, readings: int, now_ns: int = 0) -> int:
    rng = random.Random(3)
    for _ in range(readings):
        now_ns += OBSERVE_EVERY_MS * 1_000_000
        held = 1_000.0 + rng.gauss(0, 50)
        given = snapshot(
            {"X": (held, 1.0)}, now_ns=now_ns, pnl_usd=rng.gauss(0, 5), working_orders=rng.randint(8, 12),
            working_notional_usd=500.0 + rng.gauss(0, 20),
        )  # fmt: skip
        rule.judge(given)
    return now_ns


@pytest.mark.parametrize(
    ("action", "level"), [("advise", "warning"), ("reduce_only", "reduce_only"), ("freeze", "freeze")]
)
def test_a_confirmed_anomaly_does_what_its_action_says_and_advises_by_default(action: str, level: str) -> None:
    assert AnomalySettings().action == "advise"
    rule = anomaly_rule(action=action)
    now_ns = calm(rule, 70)
    found = []
    for step in (1, 2):
        at_ns = now_ns + step * OBSERVE_EVERY_MS * 1_000_000
        found.append(rule.judge(snapshot({"X": (90_000.0, 1.0)}, now_ns=at_ns, working_orders=400, pnl_usd=-9_000.0)))
    assert [told(one) for one in found] == [[], [("anomaly", level, None)]], "confirmed by the second reading"
    rule.released()
    assert rule.summary() == {"warming_up": True, "score": None}


def test_a_node_that_reports_often_is_read_once_a_second() -> None:
    rule = anomaly_rule()
    for now_ns in range(0, 3 * SECOND_NS, SECOND_NS // 20):
        rule.judge(snapshot({"X": (1.0, 1.0)}, now_ns=now_ns))
    assert len(rule._detector._warmup) == 2


# ---- together


def test_the_rules_of_a_node_are_asked_account_before_policy(tmp_path: Any) -> None:
    files = NodeLimitsFiles(
        limits=RiskLimitsFile.model_validate({"initial_balance_usd": 100.0, "value_at_risk": {}, "anomaly": {}}),
        policy=RiskRules.model_validate({"session": {"calendar": "24/7"}}),
    )
    running = NodeRules(
        files, "n1", state_dir=tmp_path, clock=HandClock(), wall_clock=lambda: AT, registry=CollectorRegistry()
    )
    assert [rule.name for rule in running.rules] == [
        *("inputs", "limits", "account", "policy", "value_at_risk", "anomaly"),
    ]


def test_policy_and_value_at_risk_tighten_at_the_first_look_whatever_is_wrong_beside_them(tmp_path: Path) -> None:
    limits, rules, audit = tmp_path / "limits.yaml", tmp_path / "rules.yaml", tmp_path / "limits-audit-n1.jsonl"
    figures = "value_at_risk: {min_observations: 100, observations_kept: 200, sample_every_ms: 1000, hard_usd: %s}\n"
    limits.write_text("initial_balance_usd: 100000.0\n" + figures % "1000000.0")
    rules.write_text("session: {calendar: 24/7}\n")
    settings = AgentSettings(risk_limits=str(limits), risk_rules=str(rules))
    clock = HandClock()
    running = NodeRules(
        load_node_limits(settings),
        "n1",
        state_dir=tmp_path,
        clock=clock,
        wall_clock=lambda: AT,
        registry=CollectorRegistry(),
    )
    held = snapshot({"X": (1_000.0, 25.0)})  # 25 % of the equity
    by_name = {rule.name: rule for rule in running.rules}
    by_name["account"].judge(held)
    assert by_name["policy"].judge(held) == ()
    audit.unlink()
    audit.mkdir()
    rules.write_text("session: {calendar: 24/7}\nexposure: {buckets: {MM_PURE: {max_pct: 24.0}}}\nno_such: 1\n")
    limits.write_text("initial_balance_usd: 100000.0\nno_such: 1\n" + figures % "0.01")
    for live in running._live:
        live.look()
    (found,) = by_name["policy"].judge(held)
    assert (found.level, found.limit) == ("reduce_only", 24.0)
    found_usd = play(by_name["value_at_risk"], clock, 150, 10.0)
    assert [(one.level, one.limit) for one in found_usd] == [("freeze", 0.01)]
    assert len(running.faults()) == 4


def test_a_section_whose_extra_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    limits = RiskLimitsFile.model_validate({"value_at_risk": {}})
    with pytest.raises(RuleNotUsable, match=r"pip install 'killswitch-cluster\[figures\]'"):
        figure_rules(limits, clock=HandClock(), registry=CollectorRegistry())

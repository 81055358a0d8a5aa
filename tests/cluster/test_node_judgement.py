"""A node's own judgement freezes the cluster: account, policy, rules of one's own, and limits that change meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from killswitch import Gate
from killswitch.core.flag import Freeze
from killswitch.link import Exposure, Holding
from killswitch.risk.process.limits_audit import read_audit
from tests.cluster.lab import Lab, clean_environment
from tests.cluster.router import Router
from tests.support.waiting import wait_until

RULES = """
import os, threading
from killswitch.risk.node_rule import NodeFinding

class FollowsAFile:
    '''Finds what a file says: its level, and its figure.'''
    name = "follows_a_file"
    def __init__(self, path):
        self.path = path
    def judge(self, snapshot):
        try:
            level, value = open(self.path).read().split()
        except (OSError, ValueError):
            return []
        if level == "hang":
            threading.Event().wait()
        if level == "raise":
            raise RuntimeError("a fault of the desk's own")
        return [NodeFinding(trigger="desk", level=level, reason=f"the desk says {level}", value=float(value))]
"""


class NodeLab:
    """Two nodes whose agents follow one file of limits; a router reports on the first."""

    def __init__(self, lab: Lab, limits: dict[str, Any], rules: dict[str, Any] | None = None) -> None:
        self.lab = lab
        self.limits_path = lab.folder / "risk_limits.yaml"
        self.say_path = lab.folder / "says"
        (lab.folder / "desk_rules.py").write_text(RULES)
        self.write_limits(limits)
        if rules is not None:
            (lab.folder / "risk_rules.yaml").write_text(yaml.safe_dump(rules))
        self.agents = {}
        self.router: Router | None = None

    def write_limits(self, limits: dict[str, Any]) -> None:
        scratch = self.limits_path.with_suffix(".new")
        scratch.write_text(yaml.safe_dump(limits))
        scratch.replace(self.limits_path)

    def start(self) -> None:
        for node in ("n1", "n2"):
            path = f"{self.lab.folder}{os.pathsep}{clean_environment().get('PYTHONPATH', '')}"
            self.agents[node] = self.lab.start_agent(node, environment={"PYTHONPATH": path})
        self.router = Router(self.lab, "n1", "r1", working=2)
        wait_until(self.both_open, what="both nodes to trade")

    def report(self, *, pnl_usd: float = 0.0, quantity: float = 0.0, working: int = 0) -> None:
        assert self.router is not None
        holdings = {"BTCUSDT": Holding(quantity, 40_000.0)} if quantity else {}
        self.router.link.report(Exposure(holdings=holdings, working_orders=working, pnl_usd=pnl_usd, last_sequence=9))

    def say(self, level: str, value: float = 1.0) -> None:
        scratch = self.say_path.with_suffix(".new")
        scratch.write_text(f"{level} {value}")
        scratch.replace(self.say_path)

    def be_silent(self) -> None:
        self.say_path.unlink()

    def both_open(self) -> bool:
        return self.lab.is_open("n1") and self.lab.is_open("n2")

    def wait_frozen(self, trigger: str) -> Freeze:
        """Wait until the other node is closed, and return the freeze that did it."""
        wait_until(lambda: not self.lab.is_open("n2"), what=f"the other node to be closed by {trigger}")
        freezes = self.lab.ask(lambda c: c.read_flag()).flag.freezes
        assert [freeze.trigger for freeze in freezes] == [trigger]
        assert freezes[0].actor == "agent:n1"
        return freezes[0]

    def risk(self, node: str = "n1") -> dict[str, Any]:
        """What the node's newest report says of its risk."""
        report = self.lab.ask(lambda c: c.membership()).reports.get(node)
        return dict(report.risk) if report is not None else {}

    def judged(self, pnl_usd: float) -> bool:
        """The node has judged an account of this profit and loss, and said so."""
        account = self.risk().get("account", {})
        return abs(account.get("equity_usd", 0.0) - 100_000.0 - pnl_usd) < 1e-6


@pytest.fixture
def make_node_lab(make_lab: Callable[..., Lab]) -> Iterator[Callable[..., NodeLab]]:
    made: list[NodeLab] = []

    def make(
        limits: dict[str, Any], *, rules: dict[str, Any] | None = None, start: bool = True, **agent: Any
    ) -> NodeLab:
        lab = make_lab()
        settings = dict(agent)
        settings["risk_limits"] = str(lab.folder / "risk_limits.yaml")
        if rules is not None:
            settings["risk_rules"] = str(lab.folder / "risk_rules.yaml")
        lab.set_agent_settings(settings)
        node_lab = NodeLab(lab, limits, rules)
        made.append(node_lab)
        if start:
            node_lab.start()
        return node_lab

    yield make
    for one in made:
        if one.router is not None:
            one.router.close()


ACCOUNT = {"initial_balance_usd": 100_000.0, "judgement": {"every_ms": 100}}


def test_a_drawdown_on_one_node_freezes_the_cluster_and_what_was_released_is_accepted_until_it_is_worse(
    make_node_lab: Callable[..., NodeLab],
) -> None:
    """ONE VOICE FREEZES: 2 % of a node's equity lost; the figures are in the freeze, the account in the report."""
    cluster = make_node_lab(ACCOUNT)
    cluster.report(pnl_usd=-1_500.0)
    wait_until(lambda: cluster.risk().get("account", {}).get("alert_level") == "WARNING", what="the warning")
    assert cluster.both_open()
    cluster.report(pnl_usd=-2_000.0)
    freeze = cluster.wait_frozen("drawdown")
    assert freeze.reason.startswith("drawdown 2.0000% of the day's highest equity 100000.00 USD")
    assert (freeze.metadata["limit"], freeze.metadata["equity_usd"]) == (0.02, 98_000.0)
    shown = cluster.lab.run("nodes").out
    assert "n1 freeze: drawdown 2.0000% of the day's highest equity" in shown
    cluster.lab.release()
    wait_until(cluster.both_open, what="trading to resume with the loss accepted")
    cluster.report(pnl_usd=-2_050.0)
    wait_until(lambda: cluster.judged(-2_050.0), what="a little more to be judged")
    assert cluster.both_open()
    cluster.report(pnl_usd=-2_200.0)
    cluster.wait_frozen("drawdown")


def test_a_leverage_on_one_node_freezes_the_cluster(make_node_lab: Callable[..., NodeLab]) -> None:
    """The fat finger: 6.4 times the equity, and the breaker of the node is engaged in the report."""
    cluster = make_node_lab(ACCOUNT)
    cluster.report(quantity=16.0)
    freeze = cluster.wait_frozen("leverage")
    assert freeze.metadata["value"] == pytest.approx(6.4)
    wait_until(lambda: cluster.risk().get("account", {}).get("breaker") == "ENGAGED", what="the breaker's word")


def test_a_pause_closes_one_node_tells_nobody_and_lifts_itself(make_node_lab: Callable[..., NodeLab]) -> None:
    limits = {**ACCOUNT, "confirmations": {"drawdown": 1_000_000}, "provisional_hold_seconds": 0.2}
    cluster = make_node_lab(limits)
    epoch = cluster.lab.ask(lambda c: c.read_flag()).flag.epoch
    cluster.report(pnl_usd=-2_500.0)
    wait_until(lambda: not cluster.lab.is_open("n1"), what="the node to pause")
    assert cluster.lab.is_open("n2")
    cluster.report(pnl_usd=0.0)
    wait_until(lambda: cluster.lab.is_open("n1"), what="the node to trade again by itself")
    assert cluster.lab.ask(lambda c: c.read_flag()).flag.epoch == epoch


def test_unknown_is_frozen_when_a_router_is_connected_and_says_nothing(make_node_lab: Callable[..., NodeLab]) -> None:
    """A program that hangs keeps its connection: what it holds is not known, and no report of anybody else says so."""
    cluster = make_node_lab(ACCOUNT)
    cluster.write_limits({**ACCOUNT, "inputs": {"router_silent_after_ms": 700}})
    freeze = cluster.wait_frozen("router_silent")
    assert freeze.metadata["router"] == "r1"
    cluster.lab.release(expect=None)
    # It has no figure that a person could accept: while it is silent, it freezes again.
    wait_until(
        lambda: cluster.lab.ask(lambda c: c.read_flag()).flag.epoch >= 4, what="the next freeze of the same silence"
    )


def test_a_derisk_of_the_policy_lets_pass_what_reduces_and_nothing_else(make_node_lab: Callable[..., NodeLab]) -> None:
    """In MID 120 % of equity is a soft derisk; here a freeze in which only what reduces passes."""
    rules = {"session": {"calendar": "24/7"}, "exposure": {"buckets": {"MM_PURE": {"max_pct": 200.0}}}}
    cluster = make_node_lab(ACCOUNT, rules=rules)
    cluster.report(quantity=2.9)  # 116 %
    wait_until(lambda: cluster.risk().get("policy", {}).get("policy_mode") == "NORMAL", what="a judgement")
    assert cluster.both_open()
    cluster.report(quantity=3.0)  # 120 %
    freeze = cluster.wait_frozen("exposure_policy")
    assert freeze.mode.name == "REDUCE_ONLY"
    assert freeze.reason.startswith("SOFT_DERISK: MID: ")
    with Gate.open(cluster.lab.gate_path("n2")) as gate:
        assert not gate.allows("BTCUSDT")
        assert gate.allows("BTCUSDT", reduces=True)


def desk(cluster: Path) -> dict[str, Any]:
    rule = {"rule": "desk_rules:FollowsAFile", "settings": {"path": str(cluster / "says")}}
    return {**ACCOUNT, "judgement": {"every_ms": 50, "budget_ms": 300}, "rules": {"node": [rule]}}


def test_a_rule_of_ones_own_freezes_the_cluster(make_node_lab: Callable[..., NodeLab], tmp_path: Path) -> None:
    cluster = make_node_lab(desk(tmp_path), start=False)
    cluster.start()
    cluster.say("warning")
    wait_until(lambda: [one["level"] for one in cluster.risk()["findings"]] == ["warning"], what="the warning")
    assert cluster.both_open()
    cluster.say("freeze", 7.0)
    wait_until(lambda: not cluster.lab.is_open("n1"), what="the node to be closed")
    wait_until(lambda: not cluster.lab.is_open("n2"), what="the other node to be closed")
    # Both nodes follow the same file, so each has frozen; neither cause is lost.
    wait_until(lambda: len(cluster.lab.ask(lambda c: c.read_flag()).flag.freezes) == 2, what="both causes")
    assert {freeze.trigger for freeze in cluster.lab.ask(lambda c: c.read_flag()).flag.freezes} == {"desk"}


def test_unknown_is_frozen_when_a_rule_of_ones_own_raises(
    make_node_lab: Callable[..., NodeLab], tmp_path: Path
) -> None:
    cluster = make_node_lab(desk(tmp_path))
    cluster.say("raise")
    wait_until(lambda: cluster.lab.ask(lambda c: c.read_flag()).flag.freezes, what="the freeze")
    freeze = cluster.lab.ask(lambda c: c.read_flag()).flag.freezes[0]
    assert freeze.trigger == "monitor_error"
    assert "a fault of the desk's own" in freeze.reason
    certificate = cluster.lab.freeze("is it still answered?").json["certificate"]
    assert {line["node"]: line["state"] for line in certificate["nodes"]} == {"n1": "ACKED", "n2": "ACKED"}


@pytest.mark.parametrize("on_late", ["pause", "freeze"])
def test_unknown_is_frozen_when_a_rule_of_ones_own_never_answers(
    on_late: str, make_node_lab: Callable[..., NodeLab], tmp_path: Path
) -> None:
    """The main thread closes for the thread that hangs; acks and reports go on all the same."""
    limits = desk(tmp_path)
    cluster = make_node_lab({**limits, "judgement": {**limits["judgement"], "on_late": on_late}})
    cluster.say("hang")
    wait_until(lambda: not (cluster.lab.is_open("n1") or cluster.lab.is_open("n2")), what="both nodes to be closed")
    if on_late == "freeze":
        wait_until(lambda: cluster.lab.ask(lambda c: c.read_flag()).flag.freezes, what="the freeze")
        assert cluster.lab.ask(lambda c: c.read_flag()).flag.freezes[0].trigger == "monitor_late"
    else:
        assert cluster.lab.ask(lambda c: c.read_flag()).flag.freezes == ()
    certificate = cluster.lab.freeze("is it still answered?").json["certificate"]
    assert {line["node"]: line["state"] for line in certificate["nodes"]} == {"n1": "ACKED", "n2": "ACKED"}


def test_unknown_is_frozen_until_the_node_was_judged_once(
    make_node_lab: Callable[..., NodeLab], tmp_path: Path
) -> None:
    """UNKNOWN IS FROZEN: a rule that does not answer at the start leaves a gate with a permit that was never open."""
    cluster = make_node_lab(desk(tmp_path), start=False)
    cluster.say("hang")
    seen_open, lab = [], cluster.lab

    def has_permit() -> bool:
        seen_open.append(lab.is_open("n1"))
        return lab.has_permit("n1")

    path = f"{lab.folder}{os.pathsep}{clean_environment().get('PYTHONPATH', '')}"
    lab.start_agent("n1", wait=False, environment={"PYTHONPATH": path})
    wait_until(has_permit, within_s=15, what="a permit")
    wait_until(lambda: has_permit() and cluster.risk().get("findings"), what="the word that the rule is late")
    assert True not in seen_open


def test_a_rule_that_cannot_be_imported_keeps_the_agent_from_starting(make_node_lab: Callable[..., NodeLab]) -> None:
    cluster = make_node_lab({**ACCOUNT, "rules": {"node": [{"rule": "no_such_desk:Rule"}]}}, start=False)
    ran = cluster.lab.run(*cluster.lab.agent_words("n1"), expect=2)
    assert "the rule no_such_desk:Rule cannot be imported" in ran.err
    assert not cluster.lab.gate_path("n1").exists(), "no gate, so no order"


def test_limits_that_are_tightened_while_the_agent_runs_hold_at_once_and_are_written_down(
    make_node_lab: Callable[..., NodeLab],
) -> None:
    """A loss within the limit becomes a breach when that is tightened; the record and the file say what changed."""
    cluster = make_node_lab(ACCOUNT)
    before = cluster.lab.ask(lambda c: c.membership()).nodes["n1"].limits_hash
    cluster.report(pnl_usd=-1_800.0)
    wait_until(lambda: cluster.judged(-1_800.0), what="the loss to be judged")
    cluster.write_limits({**ACCOUNT, "max_daily_drawdown": 0.015, "no_such_limit": 1})
    freeze = cluster.wait_frozen("drawdown")
    assert freeze.metadata["limit"] == 0.015
    nodes = wait_until(
        lambda: (n := cluster.lab.ask(lambda c: c.membership()).nodes) and n["n1"].limits_hash != before and n,
        what="the hash",
    )
    wait_until(
        lambda: len({one.limits_hash for one in cluster.lab.ask(lambda c: c.membership()).nodes.values()}) == 1,
        what="both nodes to have the same limits",
    )
    assert nodes
    audit = cluster.lab.state_dir("n1") / "limits-audit-n1.jsonl"
    # What is tighter holds before it is written down.
    wait_until(lambda: len(read_audit(audit)[0]) == 2, what="the entry of the change")
    entries, faults = read_audit(audit)
    assert faults == []
    assert [entry["outcome"] for entry in entries] == ["started", "tightened"]
    assert entries[1]["changes"] == [
        {"setting": "max_daily_drawdown", "before": 0.02, "after": 0.015, "direction": "tighter"}
    ]
    assert "no_such_limit: there is no such setting" in entries[1]["faults"][0]
    wait_until(lambda: cluster.risk().get("limits_faults"), what="the fault of the file in the report")
    told = "n1 keeps its limits from before: "
    assert [line for line in cluster.lab.run("nodes").out.splitlines() if told in line and ": there is no such" in line]
    shown = cluster.lab.run("config", "limits-history", str(audit))
    assert "max_daily_drawdown  0.02    0.015" in shown.out
    assert "verified: 2 entries" in shown.err


def test_a_signal_has_a_loosened_file_taken_now(make_node_lab: Callable[..., NodeLab]) -> None:
    """The way out: a false alarm by a limit that is too tight is cleared by editing it, SIGHUP, and a release."""
    cluster = make_node_lab({**ACCOUNT, "max_daily_drawdown": 0.011})
    cluster.report(pnl_usd=-1_200.0)
    cluster.wait_frozen("drawdown")
    cluster.write_limits(ACCOUNT)
    for node in ("n1", "n2"):
        os.kill(cluster.agents[node].pid, signal.SIGHUP)
    wait_until(lambda: not [f for f in cluster.risk()["findings"] if f["level"] == "freeze"], what="the file to hold")
    cluster.lab.release()
    wait_until(cluster.both_open, what="trading to resume")
    cluster.report(pnl_usd=-1_900.0)
    wait_until(lambda: cluster.judged(-1_900.0), what="the larger loss to be judged")
    assert cluster.both_open()


def test_a_file_that_is_not_sound_keeps_the_agent_from_starting_with_path_and_line(
    make_node_lab: Callable[..., NodeLab],
) -> None:
    cluster = make_node_lab({"max_daily_drawdown": 3.0}, start=False)
    ran = cluster.lab.run(*cluster.lab.agent_words("n1"), expect=2)
    assert f"{cluster.limits_path}:1: max_daily_drawdown: input should be less than 1" in ran.err
    checked = cluster.lab.run("config", "check", expect=2)
    assert f"{cluster.limits_path}:1: max_daily_drawdown: input should be less than 1" in checked.err

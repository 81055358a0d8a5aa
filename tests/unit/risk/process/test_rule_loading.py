"""Rules of a team's own: by dotted name or entry point; one that cannot be had is a sentence before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from killswitch.risk.node_rule import NodeFinding, NodeSnapshot
from killswitch.risk.process.rule_loading import RuleNotUsable, RuleReference, load_node_rules, load_order_rules

MODULE = """
from killswitch.risk.refusal import OrderRefused
from killswitch.risk.node_rule import NodeFinding

class NoBuying:
    name = "no_buying"
    def __init__(self, symbol="X"):
        self.symbol = symbol
    def refuses(self, order):
        if order.sign > 0 and order.symbol == self.symbol:
            return OrderRefused("rule", None, None, order.symbol, f"{order.symbol}: not on a Friday")
        return None

class TooManyOrders:
    def __init__(self, *, most):
        self.most = most
    def judge(self, snapshot):
        if snapshot.working_orders <= self.most:
            return []
        return [NodeFinding(trigger="orders", level="freeze", reason="too many", value=snapshot.working_orders)]

class Nothing:
    pass

class Nameless:
    name = ""
    def judge(self, snapshot):
        return []

class Outer:
    class Inner:
        name = "inner"
        def judge(self, snapshot):
            return []

def made_by_a_function(most):
    return TooManyOrders(most=most)
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody else's, with entry points, as an installer leaves it."""
    (tmp_path / "mydesk_rules.py").write_text(dedent(MODULE))
    (tmp_path / "mydesk_broken.py").write_text("import a_package_that_is_not_there\n")
    info = tmp_path / "mydesk-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mydesk\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[killswitch.node_rules]\norders = mydesk_rules:TooManyOrders\nbroken = mydesk_broken:X\n"
        "[killswitch.order_rules]\nno_buying = mydesk_rules:NoBuying\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mydesk_rules", "mydesk_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def reference(rule: str, **settings: object) -> RuleReference:
    return RuleReference(rule=rule, settings=settings)


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("named", ["mydesk_rules:TooManyOrders", "orders", "mydesk_rules:made_by_a_function"])
def test_a_rule_of_the_node_is_found_by_dotted_name_and_by_entry_point_and_judges(named: str) -> None:
    (rule,) = load_node_rules([reference(named, most=2)])
    assert rule.name == "TooManyOrders"
    assert rule.judge(NodeSnapshot(node="n", now_ns=0, working_orders=2)) == []
    (finding,) = rule.judge(NodeSnapshot(node="n", now_ns=0, working_orders=3))
    assert isinstance(finding, NodeFinding)
    assert (finding.level, finding.value) == ("freeze", 3)


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("named", ["mydesk_rules:NoBuying", "no_buying"])
def test_a_rule_of_orders_is_found_by_dotted_name_and_by_entry_point(named: str) -> None:
    (rule,) = load_order_rules([reference(named, symbol="ABC")])
    assert rule.name == "no_buying"
    assert callable(rule.refuses)


@pytest.mark.usefixtures("desk")
def test_a_class_inside_a_class_can_be_named() -> None:
    assert [rule.name for rule in load_node_rules([reference("mydesk_rules:Outer.Inner")])] == ["inner"]


FAULTS = [
    (reference("mydesk_missing:X"), "the rule mydesk_missing:X cannot be imported (ModuleNotFoundError: No module"),
    (reference("mydesk_broken:X"), "cannot be imported (ModuleNotFoundError: No module named 'a_package_that_is"),
    (reference("mydesk_rules:Nobody"), "mydesk_rules has no Nobody"),
    (reference("mydesk_rules:TooManyOrders"), "cannot be made with the settings {}: TypeError: "),
    (reference("mydesk_rules:TooManyOrders", few=1), "cannot be made with the settings {'few': 1}: TypeError: "),
    (reference("mydesk_rules:Nothing"), "has no method judge(), which a rule of killswitch.node_rules needs"),
    (reference("mydesk_rules:NoBuying"), "has no method judge()"),
    (reference("mydesk_rules:Nameless"), "has the name ''"),
    (reference("no_such_point"), "is no entry point of killswitch.node_rules (there are: broken, orders) and no"),
    (reference("no_buying"), "is no entry point of killswitch.node_rules"),
    (reference("broken"), "(mydesk_broken:X) cannot be imported"),
]


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(("given", "sentence"), FAULTS)
def test_a_rule_that_cannot_be_had_is_a_sentence(given: RuleReference, sentence: str) -> None:
    with pytest.raises(RuleNotUsable) as caught:
        load_node_rules([given])
    assert sentence in str(caught.value)
    assert given.rule in str(caught.value)


@pytest.mark.usefixtures("desk")
def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(RuleNotUsable, match="two rules of the node are named 'TooManyOrders'"):
        load_node_rules([reference("orders", most=1), reference("orders", most=2)])


@pytest.mark.usefixtures("desk")
def test_a_rule_of_ones_own_cannot_take_the_name_of_a_built_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    load_node_rules([reference("orders", most=1)])
    monkeypatch.setattr(sys.modules["mydesk_rules"].TooManyOrders, "name", "account", raising=False)
    with pytest.raises(RuleNotUsable, match="two rules of the node are named 'account'"):
        load_node_rules([reference("orders", most=1)])

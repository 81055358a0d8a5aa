"""Rules of one's own, by dotted name or by entry point; one that cannot be had keeps the process from starting.

A rule is a small class with one method: ``refuses(order)`` for one that is asked before every order
(:class:`~killswitch.risk.pretrade.order.PretradeRule`), ``judge(snapshot)`` for one that judges the node
(:class:`~killswitch.risk.node_rule.NodeRule`). Its ``settings`` in the file are its keyword arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StrictStr

from killswitch.risk.node_rule import NodeRule
from killswitch.risk.pretrade.order import PretradeRule
from killswitch.settings.section import Section

ORDER_RULES: Final = "killswitch.order_rules"
"""Group of entry points for rules that are asked before every order."""
NODE_RULES: Final = "killswitch.node_rules"
"""Group of entry points for rules that judge the node."""

BUILT_IN_NODE_RULES: Final = frozenset({"inputs", "limits", "account", "policy", "value_at_risk", "anomaly"})
"""Names of the rules that come along; a rule of one's own has another."""

MAX_RULES: Final = 100

_METHODS = {ORDER_RULES: "refuses", NODE_RULES: "judge"}


class RuleNotUsable(ValueError):
    """A rule cannot be loaded or made; the message says which and what to do."""


class RuleReference(Section):
    """A rule of the team's own."""

    rule: Annotated[StrictStr, Field(min_length=1, max_length=256)] = Field(
        ..., description="Dotted name of its class, such as mydesk.rules:NoTradingOnFridays, or the name of its entry "
        "point in the group killswitch.order_rules or killswitch.node_rules.",
    )  # fmt: skip
    settings: dict[StrictStr, Any] = Field(
        default_factory=dict, description="Keyword arguments that the class is made with.", max_length=100
    )


class RuleSettings(Section):
    """Rules of the team's own. They are read when a process starts, and do not change while it runs."""

    orders: tuple[RuleReference, ...] = Field(
        (), description="Asked before every order, after the built-in controls, in this order.", max_length=MAX_RULES
    )
    node: tuple[RuleReference, ...] = Field(
        (), description="Asked by the agent about the node as a whole.", max_length=MAX_RULES
    )


def load_order_rules(references: Sequence[RuleReference]) -> list[PretradeRule]:
    """Load and make the rules that are asked before every order.

    Raises:
        RuleNotUsable: one of them cannot be had.
    """
    return [_made(reference, ORDER_RULES) for reference in references]


def load_node_rules(references: Sequence[RuleReference]) -> list[NodeRule]:
    """Load and make the rules that judge the node.

    Raises:
        RuleNotUsable: one of them cannot be had, or two have one name.
    """
    rules: list[NodeRule] = [_made(reference, NODE_RULES) for reference in references]
    names = [rule.name for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1 or name in BUILT_IN_NODE_RULES})
    if twice:
        raise RuleNotUsable(f"two rules of the node are named {twice[0]!r}: what they find could not be told apart")
    return rules


def _made(reference: RuleReference, group: Literal["killswitch.order_rules", "killswitch.node_rules"]) -> Any:
    """Return the rule that a reference names, made with its settings."""
    found = _found(reference.rule, group)
    try:
        rule = found(**reference.settings)
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else repr(error)
        raise RuleNotUsable(
            f"the rule {reference.rule} cannot be made with the settings {reference.settings}: {said}"
        ) from error
    method = _METHODS[group]
    if not callable(getattr(rule, method, None)):
        raise RuleNotUsable(f"the rule {reference.rule} has no method {method}(), which a rule of {group} needs")
    name = getattr(rule, "name", None)
    if name is None:
        rule.name = type(rule).__name__
    elif not isinstance(name, str) or not name or ":" in name:
        raise RuleNotUsable(f"the rule {reference.rule} has the name {name!r}; a name is a text without a colon")
    return rule


def _found(named: str, group: str) -> Any:
    """Return the class behind a dotted name, or behind an entry point of the group."""
    module_name, colon, attribute = named.partition(":")
    if not colon:
        return _entry_point(named, group)
    try:
        found: Any = import_module(module_name)
    except Exception as error:
        # Whatever the import of somebody else's module raises, the rule cannot be had; what it raised is the reason.
        raise RuleNotUsable(
            f"the rule {named} cannot be imported ({type(error).__name__}: {error}); "
            "is its package installed for this interpreter?"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise RuleNotUsable(f"the rule {named} cannot be had: {module_name} has no {attribute}")
        found = getattr(found, part)
    return found


def _entry_point(named: str, group: str) -> Any:
    points = entry_points(group=group)
    known = sorted({point.name for point in points})
    matching = [point for point in points if point.name == named]
    if not matching:
        raise RuleNotUsable(
            f"the rule {named} is no entry point of {group} (there are: {', '.join(known) or 'none'}) and no dotted "
            "name, which is written package.module:Class"
        )
    if len({point.value for point in matching}) > 1:
        who = ", ".join(sorted(point.value for point in matching))
        raise RuleNotUsable(f"the rule {named} is an entry point of {group} more than once: {who}")
    try:
        return matching[0].load()
    except Exception as error:
        raise RuleNotUsable(
            f"the rule {named} ({matching[0].value}) cannot be imported ({type(error).__name__}: {error})"
        ) from error

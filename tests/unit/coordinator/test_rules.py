"""The coordinator's rules: when they trip, when they do not, and how they get along with an operator."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killswitch_coordinator.rules import (
    ACCEPTED_MARGIN,
    RULE_METADATA,
    Reading,
    RuleState,
    Snapshot,
    drawdown_usd,
    note_tripped,
    observe,
    read_rules,
    recall,
    to_freeze,
)

from killswitch.core.exposure import NodeExposure, add_up
from killswitch.core.flag import Flag, Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL, Scope
from killswitch.settings.config import RuleSettings
from tests.unit.core.test_core_flag import a_freeze

LAW = settings(deadline=None, max_examples=150)

MONEY_RULES = ["gross_notional", "net_notional", "drawdown", "symbol_notional"]
NOTHING = Flag("c", 1)


def a_snapshot(
    *,
    pnl_usd: float = 0.0,
    lost: tuple[str, ...] = (),
    ages: dict[str, float] | None = None,
    unreadable: tuple[str, ...] = (),
    **notional_usd: float,
) -> Snapshot:
    """A view of one live node with these positions, and of lost ones without any."""
    reports = [NodeExposure("n1", live=True, notional_by_symbol=notional_usd, pnl_usd=pnl_usd, working_orders=0)]
    return Snapshot(add_up(reports, ["n1", *lost]), lost, ages or {}, unreadable)


def rules_of(**levels: Any) -> RuleSettings:
    """Rules with these levels: ``drawdown={"hard_usd": 5}``."""
    return RuleSettings.model_validate(levels)


def snapshot_at(rule: str, figure: float) -> Snapshot:
    """A view in which the rule's figure is this."""
    if rule == "drawdown":
        return a_snapshot(pnl_usd=-figure)
    return a_snapshot(BTC=figure)


def the_reading(rules: RuleSettings, snapshot: Snapshot, state: RuleState | None = None) -> Reading:
    """The only reading."""
    (reading,) = read_rules(rules, snapshot, state or RuleState())
    return reading


def tripped_keys(rules: RuleSettings, snapshot: Snapshot, state: RuleState) -> list[str]:
    """Rules that must freeze now."""
    return [reading.key for reading in to_freeze(read_rules(rules, snapshot, state), state)]


# -- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", MONEY_RULES)
@pytest.mark.parametrize(
    ("figure", "warns", "freezes"),
    [(49.99, False, False), (50.0, True, False), (99.99, True, False), (100.0, True, True), (1e9, True, True)],
)
def test_a_money_rule_counts_at_its_level(rule: str, figure: float, *, warns: bool, freezes: bool) -> None:
    """A rule freezes at its hard level and above, warns from its warning level on, and below does nothing."""
    rules = rules_of(**{rule: {"warning_usd": 50, "hard_usd": 100}})
    reading = the_reading(rules, snapshot_at(rule, figure))
    assert (reading.over_warning, reading.over_hard) == (warns, freezes)
    assert bool(tripped_keys(rules, snapshot_at(rule, figure), RuleState())) is freezes


@pytest.mark.parametrize(("lost", "warns", "freezes"), [(0, False, False), (1, True, False), (2, True, True)])
def test_the_rule_on_lost_nodes_counts_at_its_level(lost: int, *, warns: bool, freezes: bool) -> None:
    """Lost nodes are counted against both levels."""
    snapshot = a_snapshot(lost=tuple(f"l{number}" for number in range(lost)))
    reading = the_reading(rules_of(lost_nodes={"warning_nodes": 1, "hard_nodes": 2}), snapshot)
    assert (reading.over_warning, reading.over_hard) == (warns, freezes)
    assert reading.detail["nodes"] == [f"l{number}" for number in range(lost)]


@pytest.mark.parametrize(("age_ms", "warns", "freezes"), [(499.9, 0, 0), (500.0, 1, 0), (999.9, 1, 0), (1_000.0, 1, 1)])
def test_the_rule_on_stale_reports_counts_at_its_level(age_ms: float, warns: int, freezes: int) -> None:
    """UNKNOWN IS FROZEN: a live node whose report has not changed for too long warns, then freezes."""
    snapshot = a_snapshot(ages={"n1": age_ms, "n2": 0.0})
    reading = the_reading(rules_of(stale_reports={"warning_ms": 500, "hard_ms": 1_000}), snapshot)
    assert (reading.over_warning, reading.over_hard) == (bool(warns), bool(freezes))
    assert reading.detail["oldest_ms"] == age_ms


def test_every_rule_is_off_unless_set() -> None:
    """A rule without a level says nothing, whatever the figures."""
    snapshot = a_snapshot(pnl_usd=-1e12, BTC=1e12, lost=("l1", "l2"), ages={"n1": 1e12})
    assert read_rules(RuleSettings(), snapshot, RuleState(pnl_peak_usd=1e12)) == []


@pytest.mark.parametrize("rule", MONEY_RULES)
def test_a_rule_with_a_warning_alone_never_freezes(rule: str) -> None:
    """A rule whose hard level is not set warns and lets trade."""
    rules = rules_of(**{rule: {"warning_usd": 50}})
    assert the_reading(rules, snapshot_at(rule, 1e9)).over_warning
    assert tripped_keys(rules, snapshot_at(rule, 1e9), RuleState()) == []


def test_a_rule_freezes_as_far_as_it_is_set() -> None:
    """A rule's freeze has the mode of its setting, and the sentence says figure and level."""
    rules = rules_of(gross_notional={"hard_usd": 1_000, "mode": "reduce-only"})
    reading = the_reading(rules, a_snapshot(BTC=1_234.5))
    assert (reading.mode, reading.scope, reading.trigger) == (Mode.REDUCE_ONLY, GLOBAL, "gross_notional")
    assert reading.sentence == "gross notional 1,234.50 USD reached 1,000.00 USD (gross_notional)"
    assert the_reading(rules_of(drawdown={"warning_usd": 5}), a_snapshot(pnl_usd=-5)).sentence.startswith(
        "drawdown 5.00 USD reached 5.00 USD"
    )


# -- what is measured ------------------------------------------------------------------------------------------------


def test_gross_adds_up_and_net_nets() -> None:
    """Gross is the sum of absolute positions over all nodes; net is the absolute value of the signed sum."""
    reports = [
        NodeExposure("n1", live=True, notional_by_symbol={"BTC": 60.0, "ETH": -10.0}, pnl_usd=0, working_orders=0),
        NodeExposure("n2", live=True, notional_by_symbol={"BTC": -100.0}, pnl_usd=0, working_orders=0),
    ]
    snapshot = Snapshot(add_up(reports, ["n1", "n2"]), (), {})
    rules = rules_of(gross_notional={"hard_usd": 170}, net_notional={"hard_usd": 50}, symbol_notional={"hard_usd": 40})
    readings = {reading.key: reading for reading in read_rules(rules, snapshot, RuleState())}
    assert {key: reading.figure for key, reading in readings.items()} == {
        "gross_notional": 170.0,
        "net_notional": 50.0,
        "symbol_notional:BTC": 40.0,
        "symbol_notional:ETH": 10.0,
    }
    assert readings["gross_notional"].detail["net_usd"] == -50.0


def test_what_lost_nodes_held_last_counts() -> None:
    """UNKNOWN IS FROZEN: the positions of a node that is gone have not gone with it, and the freeze says so."""
    reports = [
        NodeExposure("n1", live=True, notional_by_symbol={"BTC": 60.0}, pnl_usd=-1.0, working_orders=0),
        NodeExposure("n2", live=False, notional_by_symbol={"BTC": 60.0}, pnl_usd=-9.0, working_orders=3),
    ]
    snapshot = Snapshot(add_up(reports, ["n1", "n2"]), ("n2",), {})
    reading = the_reading(rules_of(gross_notional={"hard_usd": 100}), snapshot)
    assert reading.over_hard
    assert reading.detail["counted_lost_nodes"] == ["n2"]
    assert the_reading(rules_of(drawdown={"hard_usd": 10}), snapshot).over_hard


def test_a_symbol_rule_freezes_its_symbol_alone() -> None:
    """A freeze by the symbol rule covers the symbol, and each symbol trips by itself."""
    rules = rules_of(symbol_notional={"hard_usd": 100})
    readings = to_freeze(read_rules(rules, a_snapshot(BTC=150, ETH=-100, SOL=99), RuleState()), RuleState())
    assert {reading.key: str(reading.scope) for reading in readings} == {
        "symbol_notional:BTC": "symbol:BTC",
        "symbol_notional:ETH": "symbol:ETH",
    }


@pytest.mark.parametrize("symbol", ["BTC,venue:bybit", "BTC,ETH", "BTC USDT", "", " BTC", "x" * 300, "global,x"])
def test_a_symbol_that_no_scope_can_name_freezes_everything(symbol: str) -> None:
    """UNKNOWN IS FROZEN: a symbol's name must never make the freeze cover other orders than those of the symbol."""
    reading = the_reading(rules_of(symbol_notional={"hard_usd": 100}), a_snapshot(**{symbol: 100.0}))
    assert reading.scope == GLOBAL
    assert reading.scope.covers({"symbol": symbol, "venue": "kraken"})


def test_a_symbol_with_colons_and_slashes_is_named() -> None:
    """Symbols of derivatives have a scope of their own."""
    reading = the_reading(rules_of(symbol_notional={"hard_usd": 1}), a_snapshot(**{"BTC/USDT:USDT": 1.0}))
    assert reading.scope == Scope.parse("symbol:BTC/USDT:USDT")


def test_an_unreadable_report_freezes_without_any_rule_set() -> None:
    """UNKNOWN IS FROZEN: a report that cannot be read freezes everything, for what that node holds is unknown."""
    snapshot = a_snapshot(unreadable=("n7", "n9"))
    (reading,) = to_freeze(read_rules(RuleSettings(), snapshot, RuleState()), RuleState())
    assert (reading.trigger, reading.scope, reading.mode) == ("report_unreadable", GLOBAL, Mode.FROZEN)
    assert reading.detail == {"nodes": ["n7", "n9"]}


# -- drawdown --------------------------------------------------------------------------------------------------------


@LAW
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=10))
def test_drawdown_is_the_fall_from_the_highest_profit_so_far(profits: list[float]) -> None:
    """A drawdown is measured from the highest P&L seen, and is never negative."""
    rules = rules_of(drawdown={"warning_usd": 1})
    state = RuleState()
    for position, pnl_usd in enumerate(profits):
        snapshot = a_snapshot(pnl_usd=pnl_usd)
        fall = max(0.0, *profits[: position + 1]) - pnl_usd
        assert drawdown_usd(state, snapshot.exposure) == pytest.approx(fall, abs=1e-6)
        state = observe(state, snapshot, read_rules(rules, snapshot, state), NOTHING)
        assert state.pnl_peak_usd == max(0.0, *profits[: position + 1])


def test_a_released_drawdown_starts_a_new_peak() -> None:
    """RELEASE IS FENCED: after the release the drawdown counts from the P&L at the release on."""
    rules = rules_of(drawdown={"hard_usd": 100})
    state = note_tripped(RuleState(pnl_peak_usd=500.0), "drawdown", "fz-1")
    at_release = a_snapshot(pnl_usd=380)
    state = observe(state, at_release, read_rules(rules, at_release, state), NOTHING)
    assert (state.pnl_peak_usd, state.tripped, state.accepted) == (380.0, {}, {})
    assert tripped_keys(rules, a_snapshot(pnl_usd=281), state) == []
    assert tripped_keys(rules, a_snapshot(pnl_usd=280), state) == ["drawdown"]


def test_a_drawdown_in_force_keeps_its_peak() -> None:
    """While its freeze is in force a drawdown's peak stands."""
    flag = Flag("c", 2, (a_freeze("fz-1"),))
    state = note_tripped(RuleState(pnl_peak_usd=500.0), "drawdown", "fz-1")
    assert observe(state, a_snapshot(pnl_usd=380), [], flag) == state


# -- tripping, releasing, arming again -------------------------------------------------------------------------------

GROSS = rules_of(gross_notional={"hard_usd": 100})


def step(state: RuleState, gross_usd: float, flag: Flag) -> tuple[RuleState, list[str]]:
    """One evaluation, as the coordinator does it."""
    snapshot = a_snapshot(BTC=gross_usd)
    state = observe(state, snapshot, read_rules(GROSS, snapshot, state), flag)
    return state, tripped_keys(GROSS, snapshot, state)


def test_a_rule_in_force_does_not_trip_twice() -> None:
    """A rule freezes once: as long as its freeze is in force it makes no other, however far the figure grows."""
    flag = Flag("c", 2, (a_freeze("fz-1"),))
    state = note_tripped(RuleState(), "gross_notional", "fz-1")
    for gross_usd in (100.0, 200.0, 50.0, 1e9):
        state, trips = step(state, gross_usd, flag)
        assert trips == []


def test_a_released_rule_accepts_the_figure_and_trips_past_its_margin() -> None:
    """A release is not fought: the figure at the release is accepted, and the rule trips again 5 % above it."""
    assert ACCEPTED_MARGIN == 0.05
    state = note_tripped(RuleState(), "gross_notional", "fz-1")
    state, trips = step(state, 200.0, NOTHING)
    assert (trips, dict(state.accepted)) == ([], {"gross_notional": 200.0})
    for gross_usd in (199.0, 205.0, 210.0):
        state, trips = step(state, gross_usd, NOTHING)
        assert trips == [], gross_usd
    state, trips = step(state, 210.01, NOTHING)
    assert trips == ["gross_notional"]
    assert note_tripped(state, "gross_notional", "fz-2").accepted == {}


def test_a_released_rule_is_armed_again_below_its_level() -> None:
    """A rule that came back below its hard level is as new: it trips at the level, not past the accepted figure."""
    state = note_tripped(RuleState(), "gross_notional", "fz-1")
    state, _ = step(state, 200.0, NOTHING)
    state, trips = step(state, 99.0, NOTHING)
    assert (trips, dict(state.accepted)) == ([], {})
    _, trips = step(state, 100.0, NOTHING)
    assert trips == ["gross_notional"]


def test_a_rule_that_is_released_below_its_level_accepts_nothing() -> None:
    """A rule whose figure has recovered before the release is armed at once."""
    state = note_tripped(RuleState(), "gross_notional", "fz-1")
    state, _ = step(state, 50.0, NOTHING)
    assert dict(state.accepted) == {}
    assert step(state, 100.0, NOTHING)[1] == ["gross_notional"]


def test_an_accepted_lost_node_does_not_trip_again_and_one_more_does() -> None:
    """Counting rules accept as well: the same lost node does not freeze again, another one does."""
    rules = rules_of(lost_nodes={"hard_nodes": 1})
    state = note_tripped(RuleState(), "lost_nodes", "fz-1")
    one, two = a_snapshot(lost=("l1",)), a_snapshot(lost=("l1", "l2"))
    state = observe(state, one, read_rules(rules, one, state), NOTHING)
    assert tripped_keys(rules, one, state) == []
    assert tripped_keys(rules, two, state) == ["lost_nodes"]


def test_a_stale_report_that_was_accepted_does_not_trip_by_growing_older() -> None:
    """An accepted stale report is the same stale report an hour later; a second node's is another."""
    rules = rules_of(stale_reports={"hard_ms": 1_000})
    state = note_tripped(RuleState(), "stale_reports", "fz-1")
    first = a_snapshot(ages={"n1": 1_000.0})
    state = observe(state, first, read_rules(rules, first, state), NOTHING)
    assert tripped_keys(rules, a_snapshot(ages={"n1": 3.6e6}), state) == []
    assert tripped_keys(rules, a_snapshot(ages={"n1": 3.6e6, "n2": 1_000.0}), state) == ["stale_reports"]


def test_one_released_rule_leaves_the_others_tripped() -> None:
    """RELEASE IS FENCED: what is released is this rule's freeze, not its neighbour's."""
    state = note_tripped(note_tripped(RuleState(), "gross_notional", "fz-1"), "net_notional", "fz-2")
    state, _ = step(state, 200.0, Flag("c", 3, (a_freeze("fz-2"),)))
    assert dict(state.tripped) == {"net_notional": "fz-2"}


# -- a new leader ----------------------------------------------------------------------------------------------------


def test_a_new_leader_recalls_which_rules_have_tripped_from_the_flag() -> None:
    """NOTHING IS LOST: a rule's freeze in the flag keeps the rule tripped for whoever leads next."""
    by_rule = a_freeze("fz-1", metadata={RULE_METADATA: "gross_notional"})
    by_hand = a_freeze("fz-2", metadata={"figure": 1.0})
    state = recall(Flag("c", 3, (by_rule, by_hand)), 500.0, {"net_notional": 7.0})
    assert state == RuleState(500.0, {"gross_notional": "fz-1"}, {"net_notional": 7.0})
    assert step(state, 1e9, Flag("c", 3, (by_rule, by_hand)))[1] == []


@LAW
@given(st.lists(st.tuples(st.floats(0, 400), st.booleans(), st.booleans()), min_size=1, max_size=15))
def test_a_rule_never_stays_silent_above_what_was_accepted(steps: list[tuple[float, bool, bool]]) -> None:
    """ONE VOICE FREEZES: after each step the figure is below the level, or a freeze is in force, or a person has
    accepted a figure not more than the margin below it, over releases and changes of leader.
    """
    state, in_force, number = RuleState(), tuple[Freeze, ...](), 0
    for gross_usd, release, new_leader in steps:
        if release:
            in_force = ()
        flag = Flag("c", 1, in_force)
        if new_leader and not release:
            state = recall(flag, state.pnl_peak_usd, state.accepted)
        state, trips = step(state, gross_usd, flag)
        if trips:
            number += 1
            cause = a_freeze(f"fz-{number}", metadata={RULE_METADATA: "gross_notional"})
            in_force = (cause,)
            state = note_tripped(state, "gross_notional", cause.id)
        accepted = state.accepted.get("gross_notional")
        assert gross_usd < 100 or in_force or (accepted is not None and gross_usd <= accepted * (1 + ACCEPTED_MARGIN))
        assert len(in_force) <= 1

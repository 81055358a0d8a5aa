"""The laws of the flag: merging, adding, lifting, reasserting, and every place at which a change may be cut short."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from killswitch_agent.flag_lineage import MUST_REASSERT, Finding, judge, store_fault_cause

from killswitch.cluster.cluster import Cluster
from killswitch.cluster.forgetting import forget as forget_node
from killswitch.cluster.forgetting import look
from killswitch.core.canonical import canonical_json
from killswitch.core.flag import (
    ESCALATION_ID,
    FORGOTTEN_MAX_BYTES,
    FREEZE_MAX_BYTES,
    IN_FORCE_MAX_BYTES,
    MAX_FREEZES,
    METADATA_MAX_BYTES,
    Change,
    Flag,
    Freeze,
    StaleEpoch,
    UnknownFreeze,
    add,
    fitting_freeze,
    forget,
    initial,
    lift,
    merge,
    reassert,
)
from killswitch.core.history import verify
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL, Scope
from killswitch.stores.memory import MemoryStore
from killswitch.stores.port import VALUE_MAX_BYTES, OutcomeUnknown, StoreUnavailable
from tests.support.faulty_store import FaultyStore

AT = "2026-01-31T09:30:00.000000Z"
LAW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

# Few values on purpose: equal ids, equal scopes and equal freezes must come up often.
SCOPES = st.sampled_from(
    [
        GLOBAL,
        *map(
            Scope.parse,
            [
                "venue:bybit",
                "venue:binance",
                "symbol:BTC",
                "symbol:ETH",
                "venue:bybit,symbol:BTC",
                "node:n1",
                "node:n1,desk:rates",
            ],
        ),
    ]
)
RESTRICTIONS = st.sampled_from([Mode.REDUCE_ONLY, Mode.FROZEN])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
METADATA = st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=2)


def freezes(ids: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Freeze]:
    """Causes of every kind; their ids, scopes and contents collide often."""
    return st.builds(
        Freeze,
        id=st.sampled_from([f"f{number}" for number in range(6)]) if ids is None else ids,
        scope=SCOPES,
        mode=RESTRICTIONS,
        trigger=st.sampled_from(["manual", "drawdown"]),
        reason=st.sampled_from(["why", "the edge is gone", "größer"]),
        actor=st.sampled_from(["operator:ann", "agent:n1"]),
        at=st.just(AT),
        metadata=METADATA,
    )


FREEZES = freezes()
GROUPS = st.lists(FREEZES, max_size=5)
ORDERS = st.fixed_dictionaries(
    {},
    optional={
        "node": st.sampled_from(["n1", "n2"]),
        "venue": st.sampled_from(["bybit", "binance", "kraken"]),
        "symbol": st.sampled_from(["BTC", "ETH", "SOL"]),
        "desk": st.sampled_from(["rates", "fx"]),
    },
)
EVERY_ORDER: list[dict[str, str | None]] = [
    dict(zip(("node", "venue", "symbol", "desk"), values, strict=True))
    for values in itertools.product(
        ("n1", "n2", None), ("bybit", "binance", None), ("BTC", "ETH", None), ("rates", "fx", None)
    )
]


def a_freeze(freeze_id: str = "f1", scope: str = "global", mode: Mode = Mode.FROZEN, **others: Any) -> Freeze:
    """One cause."""
    named = {"trigger": "manual", "reason": "why", "actor": "operator:ann", "at": AT, **others}
    return Freeze(id=freeze_id, scope=Scope.parse(scope), mode=mode, **named)


def first_flag() -> Flag:
    """Epoch 1, nothing frozen."""
    return initial("c", actor="operator:ann", at=AT, reason="set up").flag


def changed(change: Change | None) -> Flag:
    """The flag after a change that must have been one."""
    assert change is not None
    return change.flag


def flag_of(group: list[Freeze]) -> Flag:
    """A flag that these causes were added to."""
    flag = first_flag()
    for freeze in group:
        change = add(flag, freeze)
        flag = change.flag if change else flag
    return flag


def canonical(group: tuple[Freeze, ...] | list[Freeze]) -> set[str]:
    """Contents of a group of causes."""
    return {freeze.canonical() for freeze in group}


def looser_somewhere(before: Flag, after: Flag) -> list[dict[str, str | None]]:
    """Orders that may do more after than before."""
    return [order for order in EVERY_ORDER if after.mode_for(order) < before.mode_for(order)]


# -- merging ---------------------------------------------------------------------------------------------------------


@LAW
@given(GROUPS, GROUPS)
def test_merging_commutes(one: list[Freeze], other: list[Freeze]) -> None:
    """ONE VOICE FREEZES: which of two readers merges first makes no difference, not even to the order of causes."""
    assert merge(one, other) == merge(other, one)


@LAW
@given(GROUPS, GROUPS, GROUPS)
def test_merging_associates(one: list[Freeze], two: list[Freeze], three: list[Freeze]) -> None:
    """ONE VOICE FREEZES: merging in any grouping gives the same set."""
    assert merge(merge(one, two), three) == merge(one, merge(two, three)) == merge(one, two, three)


@LAW
@given(GROUPS, GROUPS)
def test_merging_again_changes_nothing(one: list[Freeze], other: list[Freeze]) -> None:
    """ONE VOICE FREEZES: merging what is in already changes nothing."""
    merged = merge(one, other)
    assert merge(merged, one) == merge(merged, merged) == merged


@LAW
@given(GROUPS, GROUPS)
def test_merging_never_loses_a_cause(one: list[Freeze], other: list[Freeze]) -> None:
    """ONE VOICE FREEZES: every cause of every group is in the result once, and none that was in no group."""
    merged = merge(one, other)
    assert canonical(merged) == canonical(one) | canonical(other)
    assert len(canonical(merged)) == len(merged)


def test_merging_keeps_two_causes_with_one_id() -> None:
    """ONE VOICE FREEZES: two different causes that were given one id are two causes."""
    merged = merge([a_freeze("same", "venue:bybit")], [a_freeze("same", "venue:kraken")])
    assert [str(freeze.scope) for freeze in merged] == ["venue:bybit", "venue:kraken"]


# -- adding ----------------------------------------------------------------------------------------------------------


@LAW
@given(GROUPS, FREEZES, ORDERS)
def test_a_freeze_only_ever_restricts(group: list[Freeze], freeze: Freeze, order: dict[str, str | None]) -> None:
    """ONE VOICE FREEZES: after adding a cause every order is restricted as before or more, and as this cause asks."""
    before = flag_of(group)
    after = add(before, freeze)
    flag = after.flag if after else before
    asked = freeze.mode if freeze.scope.covers(order) else Mode.ACTIVE
    assert flag.mode_for(order) == max(before.mode_for(order), asked)
    assert not looser_somewhere(before, flag)


@LAW
@given(GROUPS, FREEZES)
def test_the_same_freeze_twice_changes_nothing(group: list[Freeze], freeze: Freeze) -> None:
    """ONE VOICE FREEZES: a freeze that is sent again makes no second cause, no epoch and no entry."""
    once = flag_of([*group, freeze])
    assert add(once, freeze) is None
    assert [cause.canonical() for cause in once.freezes].count(freeze.canonical()) == 1


@LAW
@given(st.lists(FREEZES, min_size=1, max_size=6), st.data())
def test_the_epoch_grows_by_exactly_one_per_change(group: list[Freeze], data: st.DataObject) -> None:
    """RELEASE IS FENCED: every change makes the next epoch, hangs on the head before it, and says so in its entry."""
    flag = first_flag()
    for freeze in group:
        change = add(flag, freeze)
        if change is None:
            continue
        _hangs_on(change, flag)
        flag = change.flag
        if data.draw(st.booleans()):
            lifting = lift(flag, epoch=flag.epoch, ids=[flag.freezes[0].id], actor="a", at=AT, reason="over")
            _hangs_on(lifting, flag)
            flag = lifting.flag


def _hangs_on(change: Change, before: Flag) -> None:
    assert change.flag.epoch == change.entry.epoch == before.epoch + 1
    assert change.flag.parent == change.entry.previous_hash == before.head
    assert change.flag.head == change.entry.hash
    assert list(change.entry.in_force) == [freeze.to_json() for freeze in change.flag.freezes]


@LAW
@given(GROUPS)
def test_every_order_of_arrival_leaves_the_same_causes(group: list[Freeze]) -> None:
    """ONE VOICE FREEZES: the causes in force do not depend on which of them came first."""
    assert flag_of(group).freezes == flag_of(group[::-1]).freezes == merge(group)


def test_the_strictest_mode_wins_where_scopes_overlap() -> None:
    """ONE VOICE FREEZES: an order under two causes has the stricter mode, one under neither is free."""
    flag = flag_of([a_freeze("f1", "venue:bybit", Mode.REDUCE_ONLY), a_freeze("f2", "symbol:BTC", Mode.FROZEN)])
    assert flag.mode_for({"venue": "bybit", "symbol": "BTC"}) is Mode.FROZEN
    assert flag.mode_for({"venue": "bybit", "symbol": "ETH"}) is Mode.REDUCE_ONLY
    assert flag.mode_for({"venue": "kraken", "symbol": "ETH"}) is Mode.ACTIVE
    assert flag.mode is Mode.FROZEN


# -- what a freeze may be made of ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"freeze_id": ""}, "needs a id of 1 to 64 characters; this one has 0"),
        ({"freeze_id": "x" * 65}, "needs a id of 1 to 64 characters; this one has 65"),
        ({"trigger": "x" * 33}, "needs a trigger of 1 to 32 characters; this one has 33"),
        ({"reason": ""}, "needs a reason of 1 to 1000 characters; this one has 0"),
        ({"reason": "x" * 1001}, "needs a reason of 1 to 1000 characters; this one has 1001"),
        ({"mode": Mode.ACTIVE}, "its mode is REDUCE_ONLY or FROZEN, not ACTIVE"),
    ],
)
def test_a_freeze_beyond_its_limits_is_refused_with_a_sentence(named: dict[str, Any], sentence: str) -> None:
    """Every limit is an error that says so: texts too long or empty, and a mode that restricts nothing."""
    with pytest.raises(ValueError, match=sentence):
        a_freeze(**named)


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf, [1.0, {"deep": math.nan}]])
def test_a_figure_that_is_no_number_freezes_all_the_same(figure: Any) -> None:
    """UNKNOWN IS FROZEN: NaN and infinity, the fault itself, reach the history as words and never stop a freeze."""
    change = add(first_flag(), a_freeze(metadata={"figure": figure}))
    assert change is not None
    words = {"nan", "inf", "-inf"}
    found = change.entry.added[0]["metadata"]["figure"]
    assert (found in words) if isinstance(found, str) else found == [1.0, {"deep": "nan"}]


def test_a_reason_that_is_not_utf8_freezes_all_the_same() -> None:
    """ONE VOICE FREEZES: a byte from a terminal of another alphabet is replaced, and never stops a freeze."""
    spelt = "gr\udcfc\udcdf"  # what Python makes of a Latin-1 argument
    change = add(first_flag(), a_freeze(reason=spelt, actor=spelt, metadata={spelt: spelt}))
    assert change is not None
    assert change.flag.freezes[0].reason == "gr??"
    released = lift(change.flag, epoch=2, ids=["f1"], actor=spelt, at=AT, reason=spelt)
    assert released.entry.reason == "gr??"


AUTOMATIC = {"id": "f1", "scope": GLOBAL, "mode": Mode.FROZEN, "at": AT}


@pytest.mark.parametrize(
    "said",
    [
        {"trigger": "", "reason": "", "actor": "agent:n1", "metadata": {}},
        {"trigger": "t" * 99, "reason": "r" * 9_999, "actor": "a" * 9_999, "metadata": {"figure": math.nan}},
        {"trigger": "t", "reason": "gr\udcfc", "actor": "a", "metadata": {"figure": object()}},
        {"trigger": "t", "reason": "r", "actor": "a", "metadata": {"log": "x" * METADATA_MAX_BYTES}},
        {"trigger": "t", "reason": "r", "actor": "a", "metadata": {"log": "x" * FREEZE_MAX_BYTES}},
        {"trigger": "t", "reason": "\x00" * 9_999, "actor": "\x00" * 99, "metadata": {"log": "\x00" * 2_700}},
    ],
)
def test_nothing_that_an_automatic_cause_says_keeps_it_from_freezing(said: dict[str, Any]) -> None:
    """ONE VOICE FREEZES: texts are cut and figures replaced, but a monitor's freeze is always made and fits."""
    freeze = fitting_freeze(**AUTOMATIC, **said)
    change = add(first_flag(), freeze)
    assert change is not None
    assert change.flag.mode is Mode.FROZEN
    assert len(freeze.canonical().encode()) <= FREEZE_MAX_BYTES


def test_a_freeze_that_is_too_large_is_refused_with_a_sentence() -> None:
    """A limit is an error that says so: a freeze by hand that no store could hold is refused where it is made."""
    with pytest.raises(ValueError, match=f"may take {FREEZE_MAX_BYTES} bytes as JSON, and this one takes"):
        a_freeze(metadata={"log": "x" * FREEZE_MAX_BYTES})


@LAW
@given(FREEZES)
def test_every_freeze_that_can_be_made_can_be_added(freeze: Freeze) -> None:
    """ONE VOICE FREEZES: whatever its texts and figures, a cause that exists goes into the flag and its history."""
    change = add(first_flag(), freeze)
    assert change is not None
    assert change.flag.freezes == (freeze,)


# -- lifting ---------------------------------------------------------------------------------------------------------


@LAW
@given(st.lists(FREEZES, min_size=1, max_size=6), st.data())
def test_a_release_lifts_exactly_what_it_names(group: list[Freeze], data: st.DataObject) -> None:
    """RELEASE IS FENCED: named causes go, all others stay as they were, and the history names what went."""
    flag = flag_of(group)
    ids = data.draw(st.lists(st.sampled_from(sorted(flag.freeze_ids())), min_size=1))
    change = lift(flag, epoch=flag.epoch, ids=ids, actor="a", at=AT, reason="over")
    assert change.flag.freezes == tuple(freeze for freeze in flag.freezes if freeze.id not in ids)
    assert change.entry.lifted == tuple(sorted(set(ids)))
    assert change.entry.added == ()
    freed = looser_somewhere(flag, change.flag)
    lifted = [freeze for freeze in flag.freezes if freeze.id in ids]
    assert all(any(freeze.scope.covers(order) for freeze in lifted) for order in freed)


@LAW
@given(GROUPS, FREEZES, st.data())
def test_a_newer_freeze_survives_an_older_release(group: list[Freeze], newer: Freeze, data: st.DataObject) -> None:
    """RELEASE IS FENCED: a release made up before a newer freeze loses with StaleEpoch, and nothing changes."""
    seen = flag_of(group)
    now = add(seen, newer)
    ids = data.draw(st.lists(st.sampled_from(["f0", "f1", "f2", newer.id]), max_size=3))
    if now is None:
        return
    with pytest.raises(StaleEpoch) as refused:
        lift(now.flag, epoch=seen.epoch, ids=ids, actor="a", at=AT, reason="over")
    assert (refused.value.named_epoch, refused.value.current_epoch) == (seen.epoch, seen.epoch + 1)
    assert newer.canonical() in canonical(now.flag.freezes)


@LAW
@given(GROUPS, st.integers(-5, 20))
def test_a_release_of_any_other_epoch_loses(group: list[Freeze], epoch: int) -> None:
    """RELEASE IS FENCED: older or newer, only exactly the current epoch will do."""
    flag = flag_of([*group, a_freeze("here")])
    if epoch == flag.epoch:
        return
    with pytest.raises(StaleEpoch, match=f"names epoch {epoch}, but the current epoch is {flag.epoch}"):
        lift(flag, epoch=epoch, ids=["here"], actor="a", at=AT, reason="over")


def test_a_replayed_release_loses() -> None:
    """RELEASE IS FENCED: the same release sent a second time lifts nothing, even when the cause came back."""
    flag = changed(add(first_flag(), a_freeze("f1")))
    released = lift(flag, epoch=flag.epoch, ids=["f1"], actor="a", at=AT, reason="over").flag
    again = changed(add(released, a_freeze("f1")))
    for replayed_on in (released, again):
        with pytest.raises(StaleEpoch):
            lift(replayed_on, epoch=flag.epoch, ids=["f1"], actor="a", at=AT, reason="over")


@pytest.mark.parametrize("ids", [[], ["gone"], ["f1", "gone"]])
def test_a_release_that_names_nothing_or_something_unknown_lifts_nothing(ids: list[str]) -> None:
    """RELEASE IS FENCED: one unknown name, or none at all, and nothing is lifted."""
    flag = changed(add(first_flag(), a_freeze("f1")))
    with pytest.raises(UnknownFreeze, match=r"nothing was released|none was named"):
        lift(flag, epoch=flag.epoch, ids=ids, actor="a", at=AT, reason="over")


# -- forget ----------------------------------------------------------------------------------------------------------


@LAW
@given(GROUPS)
def test_forgetting_a_node_changes_no_freeze_and_is_a_change_like_any_other(group: list[Freeze]) -> None:
    """RELEASE IS FENCED: the epoch grows and the chain goes on, so that what was decided before it is stale."""
    flag = flag_of(group)
    change = forget(flag, forgotten={"node": "n2"}, actor="operator:ann", at=AT, reason="sold")
    assert change.flag.freezes == flag.freezes
    assert (change.flag.epoch, change.flag.parent) == (flag.epoch + 1, flag.head)
    assert (change.entry.kind, change.entry.added, change.entry.lifted) == ("forget", (), ())
    assert change.entry.forgotten == {"node": "n2"}
    assert judge(flag, change.flag) is Finding.ADOPT
    with pytest.raises(StaleEpoch):
        lift(change.flag, epoch=flag.epoch, ids=["f1"], actor="a", at=AT, reason="over")


def test_a_node_forgotten_under_a_full_flag_still_fits_into_the_store() -> None:
    """NOTHING IS LOST: the largest account and the largest flag make a history entry that a store takes."""
    flag, _ = full_flag()
    account = {"node": "n2", "text": "x" * (FORGOTTEN_MAX_BYTES - 30)}
    change = forget(flag, forgotten=account, actor="a", at=AT, reason="r" * 1000)
    large = dataclasses.replace(change.entry, in_force=({"text": "x" * IN_FORCE_MAX_BYTES},))
    assert len(canonical_json(large.to_json())) < VALUE_MAX_BYTES
    with pytest.raises(ValueError, match=f"may take {FORGOTTEN_MAX_BYTES} bytes as JSON, and this takes"):
        forget(flag, forgotten={"text": "x" * FORGOTTEN_MAX_BYTES}, actor="a", at=AT, reason="r")


def test_figures_of_a_forgotten_node_that_are_not_finite_become_words() -> None:
    """NOTHING IS LOST: what was known reaches the history even when it is no number."""
    change = forget(first_flag(), forgotten={"pnl_usd": math.nan}, actor="a", at=AT, reason="r")
    assert change.entry.forgotten == {"pnl_usd": "nan"}


# -- every interrupted prefix ----------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), FREEZES),
        st.tuples(st.just("lift"), st.integers(0, 5)),
        st.tuples(st.just("reassert"), st.sampled_from(["lost", "regressed", "rewritten"])),
        st.tuples(st.just("forget"), st.sampled_from(["n1", "n2"])),
    ),
    max_size=8,
)


def decide(flag: Flag, before: Flag, kind: str, argument: Any) -> Change | None:
    """The pure decision of one step, on the flag as it is; ``before`` is the flag one step ago."""
    if kind == "add":
        return add(flag, argument)
    if kind == "forget":
        return forget(flag, forgotten={"node": argument}, actor="a", at=AT, reason="gone")
    if kind == "lift":
        if not flag.freezes:
            return None
        named = flag.freezes[argument % len(flag.freezes)].id
        return lift(flag, epoch=flag.epoch, ids=[named], actor="a", at=AT, reason="over")
    found = {"lost": None, "regressed": before, "rewritten": dataclasses.replace(flag, head="0" * 63 + "1")}[argument]
    return reassert(found, flag, a_freeze(f"store-{argument}", "symbol:SOL"))


@LAW
@given(STEPS)
def test_every_interrupted_prefix_leaves_a_state_no_looser_than_before(steps: list[tuple[str, Any]]) -> None:
    """Every interrupted prefix is safe: a crash before the commit leaves the old flag, and only a release can loosen.

    At each step the process dies between the pure decision and the commit (the old flag stands, byte for byte), or
    after the commit; only the commit of a release may let an order pass that was blocked, and only one it named.
    """
    before = flag = first_flag()
    for kind, argument in steps:
        stored = (flag.epoch, flag.head, [freeze.canonical() for freeze in flag.freezes])
        change = decide(flag, before, kind, argument)
        # A crash here: whatever was decided, the flag in the store is the old one, untouched.
        assert (flag.epoch, flag.head, [freeze.canonical() for freeze in flag.freezes]) == stored
        if change is None:
            continue
        before, flag = flag, change.flag
        freed = looser_somewhere(before, flag)
        if kind != "lift":
            assert not freed, f"{kind} let orders pass that were blocked"
        lifted = [freeze for freeze in before.freezes if freeze.id in change.entry.lifted]
        assert all(any(freeze.scope.covers(order) for freeze in lifted) for order in freed)


@LAW
@given(STEPS, st.data())
def test_a_crash_anywhere_in_a_commit_leaves_the_old_flag_or_the_new(
    steps: list[tuple[str, Any]], data: st.DataObject
) -> None:
    """Every interrupted prefix is safe: cut before, or the reply lost after, the store holds the old or the new flag,
    and whoever retries ends up with the cause in force exactly once.
    """
    with FaultyStore(MemoryStore(uuid.uuid4().hex)) as store:
        cluster = Cluster(store, "c", wall_clock=lambda: AT, sleep=lambda _: None)
        flag = cluster.initialise(actor="a", reason="r")
        for kind, argument in steps:
            if kind == "reassert":
                continue
            change = decide(flag, flag, kind, argument)
            if change is None:
                continue
            fault = data.draw(st.sampled_from(["none", "cut", "lost_reply"]), label="fault")
            _commit_under_fault(store, cluster, change, fault)
            if fault == "lost_reply" and kind == "add":
                retried = cluster.freeze(argument, timeout_ms=1000)
                assert retried.flag == change.flag
                assert [cause.canonical() for cause in retried.flag.freezes].count(argument.canonical()) == 1
            before, flag = flag, cluster.read_flag().flag
            assert flag == (before if fault == "cut" else change.flag)
            assert cluster.verify_history() == []


def _commit_under_fault(store: FaultyStore, cluster: Cluster, change: Change, fault: str) -> None:
    version = cluster.read_flag().version
    if fault == "cut":
        store.cut()
        with pytest.raises(StoreUnavailable):
            cluster.commit_change(change, flag_version=version)
        store.heal()
    elif fault == "lost_reply":
        store.lose_next_reply()
        with pytest.raises(OutcomeUnknown):
            cluster.commit_change(change, flag_version=version)
    else:
        cluster.commit_change(change, flag_version=version)


# -- escalation ------------------------------------------------------------------------------------------------------


@functools.cache
def full_flag() -> tuple[Flag, tuple[Change, ...]]:
    """A flag with as many causes as it holds one by one, and all its changes."""
    changes = [initial("c", actor="a", at=AT, reason="r")]
    for number in range(MAX_FREEZES):
        change = add(changes[-1].flag, a_freeze(f"n{number:03d}", f"symbol:S{number}"))
        assert change is not None
        changes.append(change)
    return changes[-1].flag, tuple(changes)


@LAW
@given(st.lists(freezes(st.sampled_from([f"x{number}" for number in range(20)])), min_size=1, max_size=8))
def test_escalation_never_lets_pass_more_than_was_asked(further: list[Freeze]) -> None:
    """A limit reached is on the safe side: beyond MAX_FREEZES every order is as restricted as all causes ask
    or more, and the history holds every cause in full, with its figures.
    """
    flag, before = full_flag()
    changes = list(before)
    asked = list(flag.freezes)
    for freeze in further:
        change = add(flag, freeze)
        if change is not None:
            changes.append(change)
            flag = change.flag
        asked.append(freeze)
    unlimited = Flag("c", 1, merge(asked))
    assert not looser_somewhere(unlimited, flag)
    assert flag.mode_for({"symbol": "anything"}) is Mode.FROZEN
    assert len(flag.freezes) == MAX_FREEZES + 1
    told = {str(sorted(item.items(), key=str)) for change in changes for item in change.entry.added}
    assert {str(sorted(freeze.to_json().items(), key=str)) for freeze in asked} == told
    pairs = [(change.flag.epoch, change.entry) for change in changes]
    in_force = [freeze.to_json() for freeze in flag.freezes]
    assert verify(pairs, flag_epoch=flag.epoch, flag_head=flag.head, flag_freezes=in_force) == []


def test_the_last_cause_that_fits_does_not_escalate() -> None:
    """A limit is reached when it is passed: MAX_FREEZES causes stand one by one, and the next one escalates."""
    flag, _ = full_flag()
    assert ESCALATION_ID not in flag.freeze_ids()
    assert flag.mode_for({"symbol": "elsewhere"}) is Mode.ACTIVE
    more = changed(add(flag, a_freeze("one-more", "symbol:X", Mode.REDUCE_ONLY)))
    assert ESCALATION_ID in more.freeze_ids()
    assert more.mode_for({"symbol": "elsewhere"}) is Mode.FROZEN


def test_a_folded_freeze_that_is_sent_twice_changes_nothing() -> None:
    """ONE VOICE FREEZES: a lost reply beyond MAX_FREEZES leaves one entry when it is sent again, not two."""
    flag, _ = full_flag()
    once = changed(add(flag, a_freeze("late")))
    assert add(once, a_freeze("late")) is None
    other = changed(add(once, a_freeze("late", reason="another cause with the same id")))
    assert other.epoch == once.epoch + 1


def test_the_escalation_counts_what_was_folded_and_needs_no_sound_count() -> None:
    """NOTHING IS LOST: the escalation cause counts; one whose count was spoilt by hand still takes a freeze."""
    flag, _ = full_flag()
    for number in range(3):
        flag = changed(add(flag, a_freeze(f"late{number}")))
    cause = next(freeze for freeze in flag.freezes if freeze.id == ESCALATION_ID)
    assert (cause.metadata["folded"], cause.metadata["last_folded"]) == (3, "late2")
    spoilt = dataclasses.replace(cause, metadata={"folded": "many"})
    flag = dataclasses.replace(flag, freezes=merge([f for f in flag.freezes if f.id != ESCALATION_ID], [spoilt]))
    assert changed(add(flag, a_freeze("after"))).mode is Mode.FROZEN


def test_causes_too_large_for_the_store_escalate_before_it_refuses() -> None:
    """A limit reached is on the safe side: long reasons escalate by their size, so that no freeze is ever refused."""
    long_reason = "\N{SKULL}" * 1000
    with MemoryStore(uuid.uuid4().hex) as store:
        cluster = Cluster(store, "c", wall_clock=lambda: AT, sleep=lambda _: None)
        cluster.initialise(actor="a", reason="r")
        for number in range(MAX_FREEZES + 2):
            cluster.freeze(a_freeze(f"n{number:03d}", f"symbol:S{number}", reason=long_reason), timeout_ms=1000)
        flag = cluster.read_flag().flag
        sizes = [len(entry.value or b"") for entry in store.scan("/")]
        assert cluster.verify_history() == []
    assert ESCALATION_ID in flag.freeze_ids()
    assert flag.mode_for({"symbol": f"S{MAX_FREEZES + 1}"}) is Mode.FROZEN
    assert sum(len(freeze.canonical().encode()) for freeze in flag.freezes) < IN_FORCE_MAX_BYTES + 4096
    assert max(sizes) < VALUE_MAX_BYTES


def test_lifting_the_escalation_keeps_the_causes_that_stand_one_by_one() -> None:
    """RELEASE IS FENCED: lifting the escalation cause lifts it alone."""
    flag, _ = full_flag()
    more = changed(add(flag, a_freeze("late")))
    kept = lift(more, epoch=more.epoch, ids=[ESCALATION_ID], actor="a", at=AT, reason="looked").flag
    assert kept.freezes == flag.freezes


# -- reasserting -----------------------------------------------------------------------------------------------------


@LAW
@given(GROUPS, GROUPS, st.sampled_from(["lost", "regressed", "rewritten", "ahead"]), FREEZES, st.integers(0, 20))
def test_a_reasserted_flag_holds_the_union_above_both(
    known_group: list[Freeze],
    found_group: list[Freeze],
    fault: str,
    cause: Freeze,
    history_epoch: int,
) -> None:
    """UNKNOWN IS FROZEN: after LOST, REGRESSED or REWRITTEN the flag holds all causes of both sides and the new one,
    its epoch is above both and above the history, and it hangs on what the store holds, or else on what is known.
    """
    known = flag_of([a_freeze("known"), *known_group])
    found = {
        "lost": None,
        "regressed": first_flag(),
        "rewritten": dataclasses.replace(flag_of(found_group), epoch=known.epoch, head="f" * 64),
        "ahead": dataclasses.replace(flag_of(found_group), epoch=known.epoch + 7, head="e" * 64),
    }[fault]
    change = reassert(found, known, cause, history_epoch=history_epoch)
    union = canonical(known.freezes) | canonical(found.freezes if found else ()) | {cause.canonical()}
    assert canonical(change.flag.freezes) == union
    assert change.flag.epoch == max(known.epoch, found.epoch if found else 0, history_epoch) + 1
    assert change.flag.parent == change.entry.previous_hash == (found or known).head
    assert change.entry.kind == "reassert"
    told = {a_freeze_json(item) for item in change.entry.added}
    assert told == union - canonical(found.freezes if found else ())
    assert not looser_somewhere(known, change.flag)
    assert found is None or not looser_somewhere(found, change.flag)


def a_freeze_json(item: Any) -> str:
    """Canonical text of a cause in an entry."""
    return canonical_json(item)


@pytest.mark.parametrize(
    ("fault", "finding"),
    [("lost", Finding.LOST), ("regressed", Finding.REGRESSED), ("rewritten", Finding.REWRITTEN)],
)
def test_what_was_reasserted_is_adopted_by_everybody_who_knew(fault: str, finding: Finding) -> None:
    """UNKNOWN IS FROZEN: the fault is found, said again, and accepted by an agent that knew the same flag."""
    known = flag_of([a_freeze("f1"), a_freeze("f2", "venue:bybit")])
    found = {
        "lost": None,
        "regressed": first_flag(),
        "rewritten": dataclasses.replace(known, head="f" * 64, freezes=()),
    }[fault]
    assert judge(known, found) is finding
    assert finding in MUST_REASSERT
    cause = store_fault_cause(finding, known, actor="agent:n1", at=AT)
    again = reassert(found, known, cause, history_epoch=9).flag
    assert judge(known, again) is Finding.ADOPT
    for lifted in ("f1", cause.id):
        less = dataclasses.replace(again, epoch=known.epoch, freezes=tuple(f for f in again.freezes if f.id != lifted))
        assert judge(known, less) in MUST_REASSERT, f"a store that had lost {lifted} was believed"


# -- the cluster as a state machine ----------------------------------------------------------------------------------


class FlagInAStore(RuleBasedStateMachine):
    """Operators, agents and a failing network at one store; after every step the promises are checked."""

    def __init__(self) -> None:
        super().__init__()
        self.store = FaultyStore(MemoryStore(uuid.uuid4().hex))
        self.cluster = Cluster(self.store, "c", wall_clock=lambda: AT, sleep=lambda _: None)
        self.asked: dict[str, Freeze] = {}
        self.epoch = 0

    @initialize()
    def set_up(self) -> None:
        self.epoch = self.cluster.initialise(actor="a", reason="r").epoch

    @rule(freeze=FREEZES)
    def freeze(self, freeze: Freeze) -> None:
        committed = self.cluster.freeze(freeze, timeout_ms=1000)
        self._counts(committed.flag.epoch, 1 if freeze.canonical() not in self.asked else 0)
        self.asked[freeze.canonical()] = freeze

    @rule(freeze=FREEZES)
    def freeze_with_a_lost_reply(self, freeze: Freeze) -> None:
        self.store.lose_next_reply()
        committed = self.cluster.freeze(freeze, timeout_ms=1000)
        self.store.heal()
        self._counts(committed.flag.epoch, 1 if freeze.canonical() not in self.asked else 0)
        self.asked[freeze.canonical()] = freeze

    @precondition(lambda self: self.asked)
    @rule(pick=st.integers(0, 10), lost_reply=st.booleans())
    def release(self, pick: int, *, lost_reply: bool) -> None:
        ids = sorted({freeze.id for freeze in self.asked.values()})
        named = ids[pick % len(ids)]
        if lost_reply:
            self.store.lose_next_reply()
        committed = self.cluster.release(epoch=self.epoch, ids=[named], actor="a", reason="over")
        self.asked = {key: freeze for key, freeze in self.asked.items() if freeze.id != named}
        self._counts(committed.flag.epoch, 1)

    @rule(back=st.integers(1, 3))
    def release_of_an_older_epoch(self, back: int) -> None:
        with pytest.raises(StaleEpoch):
            self.cluster.release(epoch=self.epoch - back, ids=["f1"], actor="a", reason="over")

    @rule(lost_reply=st.booleans())
    def a_node_is_forgotten(self, *, lost_reply: bool) -> None:
        self.store.commit({}, {self.cluster.keys.under("nodes", "n9"): b"unreadable"})
        remains = dataclasses.replace(look(self.cluster, "n9"), wait_ms=0.0)
        if lost_reply:
            self.store.lose_next_reply()
        self._counts(forget_node(self.cluster, remains, actor="a", reason="gone").flag.epoch, 1)

    def _counts(self, epoch: int, by: int) -> None:
        assert epoch == self.epoch + by
        self.epoch = epoch

    @invariant()
    def the_flag_holds_exactly_what_was_asked(self) -> None:
        if self.epoch:
            flag = self.cluster.read_flag().flag
            assert canonical(flag.freezes) == set(self.asked)
            assert flag.epoch == self.epoch

    @invariant()
    def the_history_verifies_and_has_no_gap(self) -> None:
        if self.epoch:
            assert self.cluster.verify_history() == []
            assert [epoch for epoch, _ in self.cluster.history()] == list(range(1, self.epoch + 1))

    def teardown(self) -> None:
        self.store.close()


TestFlagInAStore = pytest.mark.filterwarnings("error")(FlagInAStore.TestCase)
TestFlagInAStore.settings = settings(
    deadline=None, max_examples=25, stateful_step_count=12,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip

"""NOTHING IS LOST: whatever is done to a history by hand, verifying it finds it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from killswitch.core.flag import Flag, Freeze, add, forget, initial, lift
from killswitch.core.history import GENESIS_HASH, HistoryEntry, HistoryFault, entry_hash, seal, verify
from killswitch.core.modes import Mode
from killswitch.core.scopes import Scope

LAW = settings(deadline=None, max_examples=100)
AT = "2026-01-31T09:30:00.000000Z"
FIELDS = [field.name for field in dataclasses.fields(HistoryEntry)]

Chain = list[tuple[int, HistoryEntry]]


def a_chain() -> tuple[Chain, Flag]:
    """Seven changes: set up, three freezes with figures, a release, a node forgotten, a freeze."""
    changes = [initial("c", actor="operator:ann", at=AT, reason="set up")]
    for number, scope in enumerate(("global", "venue:bybit", "symbol:BTC")):
        change = add(changes[-1].flag, _freeze(f"f{number}", scope))
        assert change is not None
        changes.append(change)
    last = changes[-1].flag
    changes.append(lift(last, epoch=last.epoch, ids=["f0", "f2"], actor="operator:bob", at=AT, reason="looked"))
    gone = {"node": "n2", "report": {"gross_usd": 12.5, "holdings": {}}}
    changes.append(forget(changes[-1].flag, forgotten=gone, actor="operator:bob", at=AT, reason="sold"))
    change = add(changes[-1].flag, _freeze("f9", "desk:rates"))
    assert change is not None
    changes.append(change)
    return [(change.flag.epoch, change.entry) for change in changes], changes[-1].flag


def _freeze(freeze_id: str, scope: str) -> Freeze:
    return Freeze(
        id=freeze_id, scope=Scope.parse(scope), mode=Mode.FROZEN, trigger="drawdown", reason="why", actor="agent:n1",
        at=AT, metadata={"figure": 12.5, "nodes": ["n1", "n2"]},
    )  # fmt: skip


CHAIN, FLAG = a_chain()


def faults_of(chain: Chain, **changed: Any) -> list[HistoryFault]:
    """What verifying finds, with the flag as it should be unless told otherwise."""
    named = {
        "flag_epoch": FLAG.epoch,
        "flag_head": FLAG.head,
        "flag_freezes": [freeze.to_json() for freeze in FLAG.freezes],
        "flag_parent": FLAG.parent,
        **changed,
    }
    return verify(chain, **named)


def kinds(faults: list[HistoryFault]) -> set[tuple[int, str]]:
    """Where and what."""
    return {(fault.epoch, fault.kind) for fault in faults}


@pytest.mark.parametrize("length", range(1, len(CHAIN) + 1))
def test_a_clean_history_has_no_fault(length: int) -> None:
    """NOTHING IS LOST: a history that nobody touched verifies, at every length that it has had."""
    chain = CHAIN[:length]
    last = chain[-1][1]
    faults = verify(
        chain, flag_epoch=length, flag_head=last.hash, flag_freezes=last.in_force, flag_parent=last.previous_hash
    )
    assert faults == []


@LAW
@given(st.integers(0, len(CHAIN) - 1), st.sampled_from(FIELDS), st.data())
def test_any_changed_field_of_any_entry_is_found(position: int, name: str, data: st.DataObject) -> None:
    """NOTHING IS LOST: every field of every entry is under the hash, and a change of one is told with its epoch."""
    key_epoch, entry = CHAIN[position]
    chain = list(CHAIN)
    chain[position] = (key_epoch, dataclasses.replace(entry, **{name: _other(getattr(entry, name), data)}))
    faults = faults_of(chain)
    assert (key_epoch, "changed") in kinds(faults)
    assert all(fault.sentence for fault in faults)


def _other(value: Any, data: st.DataObject) -> Any:
    """A value of the same kind that is not the same."""
    if value is None or isinstance(value, dict):
        return {**(value or {}), "report": data.draw(st.none() | st.just({"gross_usd": 0.0}))}
    if isinstance(value, int):
        return data.draw(st.integers(0, 99).filter(lambda number: number != value))
    if isinstance(value, str):
        return data.draw(st.text(max_size=64).filter(lambda text: text != value))
    if value and data.draw(st.booleans(), label="drop one"):
        return value[1:]
    if value and isinstance(value[0], dict):
        field = data.draw(st.sampled_from(sorted(value[0])))
        inside = {"metadata": {"figure": 12.6}}.get(field, "other")
        return ({**value[0], field: inside}, *value[1:])
    return (*value, {"id": "forged"} if not value or isinstance(value[0], dict) else "forged")


@pytest.mark.parametrize("field", ["id", "scope", "mode", "trigger", "reason", "actor", "at", "metadata"])
@pytest.mark.parametrize("where", ["added", "in_force"])
def test_any_changed_field_of_a_freeze_in_an_entry_is_found(where: str, field: str) -> None:
    """NOTHING IS LOST: who, why and the figures of each freeze are under the hash as well."""
    key_epoch, entry = CHAIN[2]
    edited = tuple({**item, field: "other"} for item in getattr(entry, where))
    chain = [*CHAIN[:2], (key_epoch, dataclasses.replace(entry, **{where: edited})), *CHAIN[3:]]
    assert kinds(faults_of(chain)) == {(3, "changed")}


@pytest.mark.parametrize("position", range(len(CHAIN)))
def test_a_changed_entry_with_a_hash_made_to_fit_is_found(position: int) -> None:
    """NOTHING IS LOST: whoever changes an entry and computes its hash anew breaks the chain after it, or the head."""
    key_epoch, entry = CHAIN[position]
    forged = dataclasses.replace(entry, reason="it was nothing")
    forged = dataclasses.replace(forged, hash=entry_hash(forged.to_json()))
    faults = faults_of([*CHAIN[:position], (key_epoch, forged), *CHAIN[position + 1 :]])
    last = position == len(CHAIN) - 1
    assert kinds(faults) == {(key_epoch, "head") if last else (key_epoch + 1, "changed")}


@pytest.mark.parametrize("position", range(len(CHAIN)))
def test_a_missing_entry_is_found(position: int) -> None:
    """NOTHING IS LOST: the first, any in the middle, and the last entry are missed by their epoch."""
    faults = faults_of([*CHAIN[:position], *CHAIN[position + 1 :]])
    assert (position + 1, "missing") in kinds(faults)


def test_several_missing_entries_are_told_as_a_span() -> None:
    """NOTHING IS LOST: a gap is told with its first and last epoch."""
    (fault,) = faults_of([CHAIN[0], *CHAIN[4:]])
    assert (fault.epoch, fault.kind) == (2, "missing")
    assert fault.sentence == "entries 2 to 4 are missing from the history"


def test_an_empty_history_is_found() -> None:
    """NOTHING IS LOST: a flag without any history is told."""
    (fault,) = faults_of([])
    assert (fault.epoch, fault.kind) == (FLAG.epoch, "missing")


@LAW
@given(st.integers(0, len(CHAIN) - 1), st.integers(0, len(CHAIN) - 1))
def test_two_swapped_entries_are_found(one: int, other: int) -> None:
    """NOTHING IS LOST: contents that change places under their keys are found at both places."""
    if one == other:
        return
    chain = list(CHAIN)
    chain[one] = (CHAIN[one][0], CHAIN[other][1])
    chain[other] = (CHAIN[other][0], CHAIN[one][1])
    found = kinds(faults_of(chain))
    assert {(one + 1, "reordered"), (other + 1, "reordered")} <= found


@LAW
@given(st.permutations(CHAIN))
def test_any_other_order_is_found(chain: Chain) -> None:
    """NOTHING IS LOST: entries in any order but their own are a fault."""
    assert (faults_of(chain) == []) is (chain == CHAIN)


@pytest.mark.parametrize("position", range(len(CHAIN)))
@pytest.mark.parametrize("before", [True, False])
def test_an_entry_that_stands_twice_is_found(position: int, *, before: bool) -> None:
    """NOTHING IS LOST: a second entry for an epoch, sound in itself, is a fault before or after the true one."""
    key_epoch, entry = CHAIN[position]
    body = {field: getattr(entry, field) for field in FIELDS if field != "hash"}
    forged = (key_epoch, seal(**{**body, "reason": "it was nothing"}))
    at = position if before else position + 1
    assert faults_of([*CHAIN[:at], forged, *CHAIN[at:]]) != []


def test_a_flag_that_was_set_back_is_found() -> None:
    """NOTHING IS LOST: a flag put back to an older epoch does not fit the history that goes further."""
    old = CHAIN[-2][1]
    faults = faults_of(
        CHAIN, flag_epoch=old.epoch, flag_head=old.hash, flag_freezes=old.in_force, flag_parent=old.previous_hash
    )
    assert kinds(faults) == {(old.epoch, "head")}
    assert "the flag was set back" in faults[0].sentence


def test_a_flag_ahead_of_its_history_is_found() -> None:
    """NOTHING IS LOST: a flag of a later epoch than the history ends with shows that the end is missing."""
    assert kinds(faults_of(CHAIN, flag_epoch=FLAG.epoch + 3)) == {(FLAG.epoch + 1, "missing")}


def test_a_flag_with_another_head_is_found() -> None:
    """NOTHING IS LOST: the flag names the newest entry by its hash."""
    assert kinds(faults_of(CHAIN, flag_head=GENESIS_HASH)) == {(FLAG.epoch, "head")}


def test_a_flag_with_another_parent_is_found() -> None:
    """NOTHING IS LOST: the flag names the entry before the newest as well, for that is what agents go by."""
    assert kinds(faults_of(CHAIN, flag_parent=GENESIS_HASH)) == {(FLAG.epoch, "head")}


@pytest.mark.parametrize("edit", ["one gone", "one more", "another mode", "another scope", "another figure"])
def test_a_flag_with_edited_freezes_is_found(edit: str) -> None:
    """NOTHING IS LOST: a cause taken out of the flag, put in or changed by hand does not fit the newest entry."""
    first, *others = [freeze.to_json() for freeze in FLAG.freezes]
    edited = {
        "one gone": others,
        "one more": [first, *others, {**first, "id": "f99"}],
        "another mode": [{**first, "mode": "REDUCE_ONLY"}, *others],
        "another scope": [{**first, "scope": "venue:kraken"}, *others],
        "another figure": [{**first, "metadata": {**first["metadata"], "figure": 12.6}}, *others],
    }[edit]
    assert kinds(faults_of(CHAIN, flag_freezes=edited)) == {(FLAG.epoch, "head")}


def test_an_entry_of_an_unknown_kind_cannot_be_made() -> None:
    """An error names the kinds that exist."""
    body = {field: getattr(CHAIN[0][1], field) for field in FIELDS if field != "hash"}
    with pytest.raises(ValueError, match=re.escape("the kinds are init, freeze, release, reassert, forget")):
        seal(**{**body, "kind": "edit"})


def test_an_entry_from_before_nodes_could_be_forgotten_keeps_its_hash() -> None:
    """NOTHING IS LOST: histories that exist verify as they did; this hash was made by the version before."""
    entry = seal(
        cluster="c", epoch=1, kind="init", actor="operator:ann", at=AT, reason="set up", added=(), lifted=(),
        in_force=(), previous_hash=GENESIS_HASH,
    )  # fmt: skip
    assert entry.hash == "c0944062198d6adaaac13a7e2fd635f04a584947aa6fe282e91d69dc7ac5b254"
    assert "forgotten" not in entry.to_json()


@pytest.mark.parametrize(("kind", "forgotten"), [("forget", None), ("release", {"node": "n2"}), ("init", {})])
def test_an_entry_says_what_was_forgotten_exactly_when_something_was(kind: str, forgotten: Any) -> None:
    """NOTHING IS LOST: a node cannot be forgotten without saying what is."""
    body = {field: getattr(CHAIN[0][1], field) for field in FIELDS if field != "hash"}
    with pytest.raises(ValueError, match="says what was forgotten exactly when it is a 'forget'"):
        seal(**{**body, "kind": kind, "forgotten": forgotten})

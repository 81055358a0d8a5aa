"""A limit on everything: no freeze, and no flag full of them, is too large for a store."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.cluster.records import FlagRecord, HistoryRecord, read_flag
from killswitch.core.flag import (
    ESCALATION_ID,
    FREEZE_MAX_BYTES,
    MAX_FREEZES,
    Flag,
    Freeze,
    add,
    fitting_freeze,
    initial,
)
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL, Scope
from killswitch.stores import VALUE_MAX_BYTES

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=20), inner, max_size=5),
    max_leaves=40,
)


def made(reason: str = "r", metadata: dict[str, Any] | None = None, trigger: str = "t", number: int = 0) -> Freeze:
    return fitting_freeze(
        id=f"f{number}",
        scope=GLOBAL,
        mode=Mode.FROZEN,
        trigger=trigger,
        reason=reason,
        actor="agent:n1",
        at="now",
        metadata=metadata or {},
    )


@given(st.text(max_size=3_000), st.dictionaries(st.text(max_size=20), JSON_VALUES, max_size=30), st.text(max_size=80))
def test_one_voice_freezes_whatever_it_says(reason: str, metadata: dict[str, Any], trigger: str) -> None:
    """ONE VOICE FREEZES: no reason, figure or size of an automatic cause keeps it from being in force."""
    freeze = made(reason, metadata, trigger)
    assert len(freeze.canonical().encode()) <= FREEZE_MAX_BYTES
    change = add(initial("c", actor="a", at="t", reason="r").flag, freeze)
    assert change is not None
    assert read_flag(FlagRecord.from_core(change.flag).to_bytes(), key="flag", cluster="c") == change.flag


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_nothing_is_lost_of_a_figure_that_is_no_number(figure: float) -> None:
    """NOTHING IS LOST: a NaN that led to a freeze is in its metadata, as a word."""
    assert made(metadata={"edge_bps": figure}).metadata["edge_bps"] == str(figure)


@pytest.mark.parametrize("metadata_bytes", [10, 1_800, 16_000])
def test_a_full_flag_of_large_freezes_fits_a_store(metadata_bytes: int) -> None:
    """A limit on everything: the flag and the history entry of the worst case are below what a store takes."""
    flag = initial("c", actor="a", at="t", reason="r").flag
    reason, metadata = '"' * 1_000, {"figures": "x" * metadata_bytes}
    for number in range(MAX_FREEZES + 3):
        change = add(flag, made(reason, metadata, number=number))
        assert change is not None
        flag = change.flag
        assert len(HistoryRecord.from_core(change.entry).to_bytes()) <= VALUE_MAX_BYTES
    assert len(FlagRecord.from_core(flag).to_bytes()) <= VALUE_MAX_BYTES
    assert flag.standing_for("f0") == "f0"
    assert flag.standing_for(f"f{MAX_FREEZES + 2}") == ESCALATION_ID
    assert flag.mode_for({"symbol": "any"}) is Mode.FROZEN


def test_an_operators_freeze_that_is_too_large_is_refused_with_a_sentence() -> None:
    """Errors are sentences: what a person typed is not cut behind their back."""
    with pytest.raises(ValueError, match="shorten its metadata"):
        Freeze("f", Scope(), Mode.FROZEN, "manual", "r", "a", "t", {"x": "y" * 40_000})


def test_an_empty_flag_has_nothing_in_force() -> None:
    """The escalation stands for what a flag does not hold by its own name."""
    assert Flag("c", 1).standing_for("gone") == ESCALATION_ID

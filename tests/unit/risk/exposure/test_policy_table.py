"""The decision table: its cells, its laws, what is not known, and what a mode means for the cluster."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from killswitch.core.modes import Mode
from killswitch.risk.exposure.policy_settings import RiskRules, load_risk_rules, rules_schema
from killswitch.risk.exposure.policy_table import (
    PERCENTAGES,
    PolicyDecisionTable,
    PolicyMode,
    PolicyReason,
    Regime,
    Restriction,
    restriction_of,
)
from killswitch.settings.settings_file import RiskFileError, read_settings_file

SHIPPED = Path(__file__).parents[4] / "config"
TABLE = PolicyDecisionTable()
CALM: dict[str, Any] = {
    "regime": "MID",
    "gross_exposure_pct": 50.0,
    "potential_exposure_pct": 50.0,
    "lt_current_pct": 40.0,
    "lt_potential_pct": 40.0,
    "mm_current_pct": 10.0,
    "mm_potential_pct": 10.0,
    "minutes_to_close": 200.0,
}


def decide(table: PolicyDecisionTable = TABLE, **changes: Any) -> tuple[PolicyMode, PolicyReason]:
    return table.decide(**{**CALM, **changes})


def at_gross(regime: str, gross: float, minutes: float, **changes: Any) -> tuple[str, str]:
    mode, reason = decide(
        regime=regime, gross_exposure_pct=gross, potential_exposure_pct=gross, minutes_to_close=minutes, **changes
    )
    return mode.name, reason.kind


# ---- the cells


@pytest.mark.parametrize(
    ("regime", "gross", "minutes", "mode", "kind"),
    [
        ("OPEN", 124.99, 500, "NORMAL", "within_limits"),
        ("OPEN", 125.0, 500, "THROTTLE_NEW_ORDERS", "tolerance"),
        ("EARLY", 124.99, 400, "NORMAL", "within_limits"),
        ("EARLY", 129.99, 400, "THROTTLE_NEW_ORDERS", "tolerance"),
        ("MID", 119.99, 200, "NORMAL", "within_limits"),
        ("MID", 120.0, 200, "SOFT_DERISK", "tolerance"),
        ("LATE", 114.99, 14, "NORMAL", "within_limits"),
        ("LATE", 115.0, 14, "SOFT_DERISK", "tolerance"),
        ("LATE", 129.99, 3, "SOFT_DERISK", "tolerance"),
        ("CLOSE", 99.99, 2, "NORMAL", "within_limits"),
        ("CLOSE", 100.0, 2, "HARD_DERISK", "close_tolerance"),
        ("CLOSE", 100.0, 2.01, "SOFT_DERISK", "tolerance"),
        ("CLOSE", 100.0, -5, "HARD_DERISK", "close_tolerance"),
        *((regime.name, 130.0, 500, "HARD_DERISK", "hard_cap") for regime in Regime),
        ("MID", 120.0, math.inf, "SOFT_DERISK", "tolerance"),
    ],
)
def test_every_cell_of_the_table(regime: str, gross: float, minutes: float, mode: str, kind: str) -> None:
    assert at_gross(regime, gross, minutes) == (mode, kind)


@pytest.mark.parametrize(("minutes", "mode"), [(16, "NORMAL"), (15, "SOFT_DERISK"), (2, "HARD_DERISK")])
def test_near_the_close_the_minutes_win_over_a_looser_regime(minutes: float, mode: str) -> None:
    assert at_gross("OPEN", 117.0, minutes)[0] == mode


@pytest.mark.parametrize(("bucket", "current", "potential", "most"), [
    ("LT", "lt_current_pct", "lt_potential_pct", 90.0),
    ("MM_PURE", "mm_current_pct", "mm_potential_pct", 30.0),
])  # fmt: skip
def test_a_bucket_may_hold_its_most_and_no_more(bucket: str, current: str, potential: str, most: float) -> None:
    above = math.nextafter(most, math.inf)
    assert decide(**{current: most, potential: most})[0] is PolicyMode.NORMAL
    mode, reason = decide(**{current: above, potential: above})
    assert (mode, reason.kind, reason.bucket) == (PolicyMode.SOFT_DERISK, "bucket", bucket)
    assert decide(regime="EARLY", **{current: above})[0] is PolicyMode.THROTTLE_NEW_ORDERS
    mode, reason = decide(**{current: most, potential: above})
    assert (mode, reason.kind, reason.bucket) == (PolicyMode.THROTTLE_NEW_ORDERS, "bucket_potential", bucket)


@pytest.mark.parametrize("regime", list(Regime))
def test_only_the_potential_throttles_and_never_forces_a_sale(regime: Regime) -> None:
    tolerance = getattr(TABLE.rules.regimes, regime.name).tolerance_pct
    for potential in (tolerance, 135.0, 1e6):
        mode, reason = decide(regime=regime, potential_exposure_pct=potential)
        assert (mode, reason.kind) == (PolicyMode.THROTTLE_NEW_ORDERS, "potential")
    assert decide(regime=regime, potential_exposure_pct=tolerance - 0.01)[0] is PolicyMode.NORMAL


def test_a_reason_names_figure_value_limit_and_regime_in_a_sentence() -> None:
    mode, reason = decide(regime="late", gross_exposure_pct=115.0)
    assert mode is PolicyMode.SOFT_DERISK
    assert (reason.figure, reason.value, reason.limit) == ("gross_exposure_pct", 115.0, 115.0)
    assert reason.regime is Regime.LATE
    assert reason.bucket is None
    assert reason.sentence == "LATE: gross exposure 115 % is at or above the tolerance of 115 %"
    assert reason.inputs["regime"] == "late"
    assert set(reason.inputs) == {"regime", "minutes_to_close", *PERCENTAGES}
    json.dumps(dict(reason.inputs), allow_nan=False)


# ---- the laws

percent = st.one_of(st.floats(0, 200), st.sampled_from([0.0, 30.0, 90.0, 100.0, 115.0, 120.0, 125.0, 130.0]))
raised = st.one_of(st.floats(0, 100), st.just(math.inf), st.just(math.nan))
minutes_left = st.one_of(st.floats(-10, 600), st.sampled_from([0.0, 2.0, 15.0, math.inf]))


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    names = {name: draw(percent) for name in PERCENTAGES}
    return {"regime": draw(st.sampled_from(list(Regime))), "minutes_to_close": draw(minutes_left), **names}


@given(arguments(), st.sampled_from(PERCENTAGES), raised)
def test_raising_any_exposure_never_loosens_the_mode(given_: dict[str, Any], name: str, more: float) -> None:
    higher = {**given_, name: given_[name] + more}
    assert TABLE.decide(**higher)[0] >= TABLE.decide(**given_)[0]


@given(arguments(), st.dictionaries(st.sampled_from(PERCENTAGES), st.floats(0, 100)))
def test_raising_all_exposures_at_once_never_loosens_the_mode(given_: dict[str, Any], more: dict[str, float]) -> None:
    higher = {**given_, **{name: given_[name] + value for name, value in more.items()}}
    assert TABLE.decide(**higher)[0] >= TABLE.decide(**given_)[0]


@given(arguments(), minutes_left)
def test_fewer_minutes_to_the_close_never_loosen_the_mode(given_: dict[str, Any], fewer: float) -> None:
    nearer = {**given_, "minutes_to_close": min(given_["minutes_to_close"], fewer)}
    assert TABLE.decide(**nearer)[0] >= TABLE.decide(**given_)[0]


@given(arguments(), st.sampled_from(list(Regime)))
def test_a_later_regime_never_loosens_the_mode(given_: dict[str, Any], other: Regime) -> None:
    later = {**given_, "regime": max(given_["regime"], other)}
    assert TABLE.decide(**later)[0] >= TABLE.decide(**given_)[0]


@given(arguments())
def test_the_same_arguments_give_the_same_answer(given_: dict[str, Any]) -> None:
    assert TABLE.decide(**given_) == PolicyDecisionTable().decide(**given_)


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.decimals(), st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.complex_numbers(), st.sampled_from([*Regime, 10**400]),
)  # fmt: skip


@given(st.lists(anything, min_size=8, max_size=8))
def test_the_table_is_total(values: list[Any]) -> None:
    """Whatever is passed in, there is a mode and a reason that JSON can hold."""
    mode, reason = TABLE.decide(*values)
    assert mode in PolicyMode
    assert reason.sentence
    json.dumps(dict(reason.inputs), allow_nan=False)


def rules_with(**changes: float) -> RiskRules:
    names = ("OPEN", "EARLY", "MID", "LATE", "CLOSE")
    return RiskRules.model_validate({"regimes": {name: {"tolerance_pct": changes[name]} for name in names}})


@given(st.lists(st.floats(2, 130), min_size=5, max_size=5), arguments(), arguments())
def test_the_laws_hold_for_every_table_that_the_settings_take(
    tolerances: list[float], one: dict[str, Any], other: dict[str, Any]
) -> None:
    table = PolicyDecisionTable(
        rules_with(**dict(zip([regime.name for regime in Regime], sorted(tolerances, reverse=True), strict=True)))
    )
    stricter = {name: max(one[name], other[name]) for name in (*PERCENTAGES, "regime")}
    stricter["minutes_to_close"] = min(one["minutes_to_close"], other["minutes_to_close"])
    assert table.decide(**stricter)[0] >= max(table.decide(**one)[0], table.decide(**other)[0])


# ---- what is not known


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.001, None, "50", True, 10**400, Decimal("NaN"), 1j])
@pytest.mark.parametrize("name", PERCENTAGES)
def test_unknown_is_frozen__a_figure_that_is_none_is_the_strictest_mode(name: str, bad: Any) -> None:
    mode, reason = decide(**{name: bad})
    assert (mode, reason.kind, reason.figure) == (PolicyMode.HARD_DERISK, "unknown", name)
    assert reason.value is None
    assert restriction_of(mode, reason) == Restriction(Mode.FROZEN, growing_orders=False)


@pytest.mark.parametrize("bad", [math.nan, -math.inf, None, "2", False])
def test_unknown_is_frozen__minutes_that_are_none(bad: Any) -> None:
    mode, reason = decide(minutes_to_close=bad)
    assert (mode, reason.kind, reason.figure) == (PolicyMode.HARD_DERISK, "unknown", "minutes_to_close")


@pytest.mark.parametrize("bad", ["", "NOON", None, 3, 2.0, b"MID"])
def test_unknown_is_frozen__a_regime_that_does_not_exist(bad: Any) -> None:
    mode, reason = decide(regime=bad)
    assert (mode, reason.kind, reason.figure) == (PolicyMode.HARD_DERISK, "unknown", "regime")
    assert reason.regime is None


def test_numbers_of_other_kinds_are_numbers() -> None:
    assert decide(gross_exposure_pct=Decimal(115), regime="LATE")[0] is PolicyMode.SOFT_DERISK
    assert decide(gross_exposure_pct=131)[0] is PolicyMode.HARD_DERISK


# ---- what a mode means for the cluster


def test_modes_map_to_the_clusters_words() -> None:
    def of(**changes: Any) -> Restriction:
        return restriction_of(*decide(**changes))

    assert of() == Restriction(Mode.ACTIVE, growing_orders=True)
    assert of(potential_exposure_pct=135.0) == Restriction(Mode.ACTIVE, growing_orders=False)
    assert of(gross_exposure_pct=120.0) == Restriction(Mode.REDUCE_ONLY, growing_orders=False)
    assert of(gross_exposure_pct=131.0) == Restriction(Mode.REDUCE_ONLY, growing_orders=False)
    assert of(gross_exposure_pct=math.nan) == Restriction(Mode.FROZEN, growing_orders=False)


# ---- the rules file


def test_the_rules_that_ship_are_the_built_in_ones_and_leave_nothing_out() -> None:
    path = SHIPPED / "risk_rules.yaml"
    assert load_risk_rules(path) == load_risk_rules(None) == RiskRules()
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == RiskRules().model_dump(mode="json")


def test_every_rule_that_ships_is_explained_above_it() -> None:
    lines = (SHIPPED / "risk_rules.yaml").read_text(encoding="utf-8").splitlines()
    unexplained = [
        line.strip()
        for before, line in zip(["", *lines], lines, strict=False)
        if ":" in line and not line.lstrip().startswith("#") and not before.lstrip().startswith("#")
    ]
    assert unexplained == []


def test_the_schema_that_ships_is_what_the_code_produces() -> None:
    shipped = (SHIPPED / "risk_rules.schema.json").read_text(encoding="utf-8")
    assert shipped == json.dumps(rules_schema(), indent=2) + "\n"


def test_every_setting_of_the_schema_has_a_meaning_and_a_default() -> None:
    schema = rules_schema()
    for name, section in {"": schema, **schema["$defs"]}.items():
        for setting, field in section["properties"].items():
            section_of = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description") or section_of.get("description"), f"{name}.{setting}"
            made_anew = setting in ("groups", "long_term_symbols")
            assert "default" in field or "$ref" in field or made_anew, f"{name}.{setting}"


FAULTS = [
    ("regimes:\n  LATE:\n    tolerance_pct: 121\n", "regimes.yaml:3: regimes.LATE.tolerance_pct (121) must be at most"),
    ("regimes:\n  MID: {derisk: hard}\n", "regimes.yaml:2: regimes.MID.derisk: input should be 'none' or 'soft'"),
    ("exposure:\n  gross_hard_cap: 1\n", "regimes.yaml:2: exposure.gross_hard_cap: there is no such setting; did you "),
    ("exposure:\n  gross_hard_cap_pct: .nan\n", "regimes.yaml:2: exposure.gross_hard_cap_pct: input should be a fin"),
    ("exposure:\n  gross_hard_cap_pct: .inf\n", "regimes.yaml:2: exposure.gross_hard_cap_pct: input should be"),
    ("exposure:\n  gross_hard_cap_pct: '130'\n", "regimes.yaml:2: exposure.gross_hard_cap_pct: input should be a val"),
    ("exposure:\n  gross_hard_cap_pct: true\n", "regimes.yaml:2: exposure.gross_hard_cap_pct: input should be a val"),
    ("exposure:\n  gross_hard_cap_pct: 0\n", "regimes.yaml:2: exposure.gross_hard_cap_pct: input should be greater"),
    ("exposure:\n  gross_hard_cap_pct: 110\n", "regimes.yaml:2: regimes.OPEN.tolerance_pct (125) must be at most"),
    ("exposure:\n  buckets:\n    LT: {target_pct: 91}\n", "regimes.yaml:3: exposure.buckets.LT.target_pct (91) must"),
    ("exposure:\n  groups:\n    a: [X]\n    b: [X]\n", "regimes.yaml:4: exposure.groups.b: X is in group a already"),
    ("exposure:\n  groups: {UNGROUPED: [X]}\n", "regimes.yaml:2: exposure.groups.UNGROUPED: a group's name is"),
    ("regimes:\n  CLOSE: {hard_from_minutes_to_close: 3}\n", "regimes.yaml:2: regimes.CLOSE.hard_from_minutes_to_cl"),
    ("regimes:\n  CLOSE: {from_minutes_to_close: 20}\n", "regimes.yaml:2: regimes.CLOSE.from_minutes_to_close must"),
    ("regimes:\n  MID: {from_minutes_after_open: 1}\n", "regimes.yaml:2: regimes.MID.from_minutes_after_open must"),
    ("regimes:\n  LATE: {derisk: none}\n", "regimes.yaml:2: regimes.LATE.derisk must not be none when MID"),
    ("rotation: {min_ratio: 0.5}\n", "regimes.yaml:1: rotation.min_ratio (0.5) must be at most max_ratio (0.2)"),
    ("derisk:\n  soft_margin_pct: 100\n", "regimes.yaml:2: derisk.soft_margin_pct (100) must be below regimes.CLOSE"),
    ("derisk:\n  hard_step_ratio: 0.1\n  hard_step_ratio: 0.9\n", "regimes.yaml:3: derisk.hard_step_ratio: is given"),
    ("- a\n", "regimes.yaml: must hold settings by name, not a list"),
    ("a: [\n", "regimes.yaml: is not YAML"),
    ("a: &a [*a]\n", "regimes.yaml: is not YAML (maximum recursion depth"),
    ("a: &a {b: *a}\n", "regimes.yaml: is not YAML (maximum recursion depth"),
    ("".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" if b else f"{c}: &{c} [1]\n"
             for b, c in zip(["", *"abcdefghijk"], "abcdefghijkl", strict=True)),
     "regimes.yaml: is not YAML (it has more than 200000 parts)"),
    ("\xff", "regimes.yaml:"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FAULTS)
def test_a_fault_of_the_rules_is_a_sentence_with_path_and_line(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "regimes.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RiskFileError) as caught:
        load_risk_rules(path)
    assert caught.value.faults[0].removeprefix(f"{tmp_path}/").startswith(expected)


def test_all_faults_are_told_at_once_and_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("exposure: {gross: 1}\nderisk:\n  hard_step_ratio: 2\n")
    with pytest.raises(RiskFileError) as caught:
        load_risk_rules(path)
    assert [fault.split(": ")[0] for fault in caught.value.faults] == [f"{path}:1", f"{path}:3"]
    path.write_text("# nothing\n")
    assert load_risk_rules(path) == RiskRules()
    with pytest.raises(RiskFileError, match="cannot be read"):
        read_settings_file(tmp_path / "missing.yaml", RiskRules)
    path.write_bytes(b"# " + b"x" * (4 * 1024 * 1024))
    with pytest.raises(RiskFileError, match="larger"):
        load_risk_rules(path)

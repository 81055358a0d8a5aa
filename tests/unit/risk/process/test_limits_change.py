"""What becomes of limits when their file changes: tightening at once, loosening only as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from killswitch.risk.exposure.policy_settings import RiskRules
from killswitch.risk.figures.value_at_risk_settings import LEVELS, ValueAtRiskSettings
from killswitch.risk.process.limits_change import decide_change
from killswitch.risk.process.risk_limits_file import RiskLimitsFile
from killswitch.settings.section import Tighter, section_in
from killswitch.settings.settings_diff import way_of
from killswitch.settings.settings_file import SettingsReading, read_settings

ONLY_WITH_THE_WHOLE = frozenset(
    [
        "reported_leverage_cap",
        "day_start_utc",
        "forensics_kept",
        "days_kept",
        "log_interval_seconds",
        "lock_timeout_seconds",
        "orders.schedule.sessions",
        "orders.schedule.time_zone",
        "orders.schedule.volatility",
        "pretrade.repeated_executions.designated_staff",
    ]
)
"""Settings of which a change is neither tighter nor looser, or cannot be told by one number."""


POLICY_ONLY_WITH_THE_WHOLE = frozenset(
    [
        "exposure.long_term_symbols",
        "exposure.groups.*",
        "exposure.max_symbols",
        "exposure.max_working_orders",
        "derisk.soft_price_offset_usd",
        "derisk.soft_margin_pct",
        "derisk.hard_step_ratio",
        "rotation.min_ratio",
        "rotation.max_ratio",
    ]
)


NEW_START = {"state_file", "file_lock", "initial_balance_usd", "orders", "value_at_risk", "anomaly", "rules", "session"}
"""Settings that need a new start, or the sections that they stand in."""

ONE_OF_EACH_WAY = [
    ("max_account_leverage", 5.0, 4.0),
    ("recovery_cooldown_seconds", 60.0, 90.0),
    ("known_symbols", ["A", "B"], ["A"]),
    ("known_symbols", None, ["A"]),
    ("kill_switch_mode", "auto", "manual"),
    ("inputs.silent", "pause", "reduce_only"),
    ("orders.edge_freeze_threshold_bps", None, -2.0),
    ("orders.schedule.symbol_max_inventory_usd.X", 100.0, 90.0),
    ("pretrade.order_size.symbols.X.max_quantity", 100.0, 90.0),
    ("confirmations.data", 2, 0),
]
"""A setting, a mild value and a strict one."""


def reading(values: Mapping[str, Any], tmp_path: Path) -> SettingsReading[RiskLimitsFile]:
    path = tmp_path / "limits.yaml"
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return read_settings(path, RiskLimitsFile)


def limits(**values: Any) -> RiskLimitsFile:
    return RiskLimitsFile.model_validate(values)


# ---- every setting has a place


def settings_of(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of every setting of a model, ``*`` for the names in a mapping."""
    for name, field in model.model_fields.items():
        inner, mapping = section_in(field.annotation), "dict" in str(field.annotation) and name != "settings"
        place = (*above, name, *(("*",) if mapping else ()))
        if inner is not None and "tuple" not in str(field.annotation):
            yield from settings_of(inner, place)
        else:
            yield place


def test_every_setting_declares_which_way_it_gets_tighter_or_that_it_has_none() -> None:
    """A new setting cannot be forgotten: one that declares nothing could neither tighten nor be known to loosen."""
    ways = {
        ".".join(place): way_of(model, place) for model in (RiskLimitsFile, RiskRules) for place in settings_of(model)
    }
    assert len(ways) > 100
    assert [setting for setting, way in ways.items() if way is None] == []
    neither = {setting for setting, way in ways.items() if way is Tighter.NEITHER}
    assert neither == ONLY_WITH_THE_WHOLE | POLICY_ONLY_WITH_THE_WHOLE
    fixed = {setting.split(".")[0] for setting, way in ways.items() if way is Tighter.NEW_START}
    assert fixed == NEW_START


@pytest.mark.parametrize(("setting", "mild", "strict"), ONE_OF_EACH_WAY)
def test_what_a_field_declares_is_the_way_that_it_gets_tighter(
    setting: str, mild: object, strict: object, tmp_path: Path
) -> None:
    *sections, name = setting.split(".")

    def written(value: object) -> dict[str, Any]:
        inner: dict[str, Any] = {name: value}
        for section in reversed(sections):
            inner = {section: inner}
        return inner

    tighter = decide_change(limits(**written(mild)), reading(written(strict), tmp_path))
    assert [(one.setting, one.direction) for one in tighter.changes] == [(setting, "tighter")]
    looser = decide_change(limits(**written(strict)), reading(written(mild), tmp_path))
    assert [(one.setting, one.direction) for one in looser.changes] == [(setting, "looser")]


def test_what_the_figures_cannot_take_while_they_run_is_what_a_file_may_not_change() -> None:
    assert {"warning_usd", "hard_usd", "hard", "unknown"} == LEVELS
    fixed = {name for name in ValueAtRiskSettings.model_fields if way_of(RiskLimitsFile, ("value_at_risk", name)) is
             Tighter.NEW_START}  # fmt: skip
    assert fixed == set(ValueAtRiskSettings.model_fields) - LEVELS


# ---- a file that is sound


def test_a_sound_file_is_taken_as_a_whole_with_every_change_told(tmp_path: Path) -> None:
    before = limits(max_daily_drawdown=0.02, max_account_leverage=5.0)
    change = decide_change(before, reading({"max_daily_drawdown": 0.03, "max_account_leverage": 4.0}, tmp_path))
    assert change.outcome == "applied"
    assert change.loosens
    assert change.limits == limits(max_daily_drawdown=0.03, max_account_leverage=4.0)
    assert [(one.setting, one.before, one.after, one.direction) for one in change.changes] == [
        ("max_daily_drawdown", 0.02, 0.03, "looser"),
        ("max_account_leverage", 5.0, 4.0, "tighter"),
    ]


def test_a_limit_that_goes_away_is_a_loosening_and_one_that_appears_a_tightening(tmp_path: Path) -> None:
    with_limit = limits(orders={"max_inventory_usd_per_symbol": 1_000.0})
    gone = decide_change(with_limit, reading({}, tmp_path))
    assert [(one.setting, one.after, one.direction) for one in gone.changes] == [
        ("orders.max_inventory_usd_per_symbol", None, "looser")
    ]
    come = decide_change(limits(), reading({"orders": {"max_inventory_usd_per_symbol": 1_000.0}}, tmp_path))
    assert not come.loosens


def test_a_limit_of_one_symbol_that_stands_instead_of_a_general_one_is_no_tightening(tmp_path: Path) -> None:
    before = limits(pretrade={"order_size": {"max_quantity": 10.0}})
    after = {"pretrade": {"order_size": {"max_quantity": 10.0, "symbols": {"X": {"max_quantity": 1_000.0}}}}}
    assert decide_change(before, reading(after, tmp_path)).loosens


def test_a_section_that_goes_away_is_told_by_what_was_in_it(tmp_path: Path) -> None:
    before = limits(pretrade={"duplicates": {"max_same_orders": 3}})
    change = decide_change(before, reading({}, tmp_path))
    assert {one.setting for one in change.changes} == {
        "pretrade.duplicates.max_same_orders",
        "pretrade.duplicates.window_ms",
    }
    assert {one.direction for one in change.changes} == {"looser"}


def test_nothing_changed_is_unchanged(tmp_path: Path) -> None:
    change = decide_change(limits(), reading({}, tmp_path))
    assert (change.outcome, change.changes, change.faults) == ("unchanged", (), ())


# ---- a file that is not sound


def test_of_a_file_that_is_not_sound_what_tightens_is_taken_and_what_loosens_is_not(tmp_path: Path) -> None:
    before = limits(max_daily_drawdown=0.02, max_account_leverage=5.0, orders={"max_total_notional_usd": 100.0})
    told = {
        "max_daily_drawdown": 0.5,  # looser
        "max_account_leverage": 4.0,  # tighter
        "orders": {"max_total_notional_usd": 90.0, "max_inventory_usd_per_symbol": "a lot"},  # tighter; a fault
    }
    change = decide_change(before, reading(told, tmp_path))
    assert change.outcome == "tightened"
    assert not change.loosens
    assert change.limits == limits(
        max_daily_drawdown=0.02, max_account_leverage=4.0, orders={"max_total_notional_usd": 90.0}
    )
    (fault,) = change.faults
    assert "limits.yaml:4: orders.max_inventory_usd_per_symbol: " in fault


def test_settings_that_must_fit_each_other_are_tightened_together(tmp_path: Path) -> None:
    before = limits(max_daily_drawdown=0.02, drawdown_warning=0.015)
    # Alone, a hard level below the warning level does not fit; the file names it first.
    change = decide_change(before, reading({"max_daily_drawdown": 0.01, "drawdown_warning": 0.005, "x": 1}, tmp_path))
    assert change.outcome == "tightened"
    assert (change.limits.max_daily_drawdown, change.limits.drawdown_warning) == (0.01, 0.005)


def test_a_setting_under_both_its_names_is_a_fault_and_the_tightest_is_taken(tmp_path: Path) -> None:
    told = {"max_daily_drawdown": 0.019, "max_daily_drawdown_ratio": 0.015}
    change = decide_change(limits(), reading(told, tmp_path))
    assert change.limits.max_daily_drawdown == 0.015
    assert "two names of one setting" in change.faults[0]


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "\x00"])
def test_a_file_that_cannot_be_read_changes_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(text, encoding="utf-8")
    before = limits(max_daily_drawdown=0.015)
    for one in (path, tmp_path / "gone.yaml"):
        change = decide_change(before, read_settings(one, RiskLimitsFile))
        assert (change.outcome, change.limits) == ("refused", before)
        assert len(change.faults) == 1


def test_what_needs_a_new_start_makes_a_file_unsound_and_still_tightens(tmp_path: Path) -> None:
    before = limits(initial_balance_usd=100.0)
    change = decide_change(before, reading({"initial_balance_usd": 200.0, "max_account_leverage": 4.0}, tmp_path))
    assert change.outcome == "tightened"
    assert (change.limits.initial_balance_usd, change.limits.max_account_leverage) == (100.0, 4.0)
    told = "limits.yaml:1: initial_balance_usd: cannot change from 100.0 to 200.0 while this process runs"
    assert told in change.faults[0]


# ---- the law


NUMBERS = {
    "max_daily_drawdown": st.floats(0.001, 0.9),
    "drawdown_warning": st.floats(0.001, 0.9),
    "max_account_leverage": st.floats(0.1, 50),
    "leverage_warning": st.floats(0.1, 50),
    "recovery_cooldown_seconds": st.floats(1, 10_000),
    "max_cooldown_seconds": st.floats(1, 10_000),
    "kill_switch_mode": st.sampled_from(["auto", "manual"]),
}
FILES = st.fixed_dictionaries({}, optional=NUMBERS)


@given(FILES, FILES)
def test_a_file_that_is_not_sound_never_loosens_anything(first: dict[str, Any], second: dict[str, Any]) -> None:
    try:
        before = RiskLimitsFile.model_validate(first)
    except ValueError:
        before = RiskLimitsFile()
    change = decide_change(before, SettingsReading({**second, "no such setting": 1}, None, ("a fault",)))
    assert all(one.direction == "tighter" for one in change.changes)
    assert change.outcome in ("tightened", "refused")
    RiskLimitsFile.model_validate(change.limits.model_dump())  # what is in force is sound as a whole


def policy(text: str, tmp_path: Path) -> SettingsReading[RiskRules]:
    path = tmp_path / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, RiskRules)


POLICY_TIGHTER = [
    ("exposure: {gross_hard_cap_pct: 126.0}", "exposure.gross_hard_cap_pct"),
    ("exposure: {buckets: {LT: {max_pct: 85.0}}}", "exposure.buckets.LT.max_pct"),
    ("exposure: {buckets: {MM_PURE: {max_pct: 25.0}}}", "exposure.buckets.MM_PURE.max_pct"),
    ("regimes: {OPEN: {derisk: soft}, EARLY: {derisk: soft}}", "regimes.OPEN.derisk"),
    ("regimes: {CLOSE: {tolerance_pct: 90.0}}", "regimes.CLOSE.tolerance_pct"),
    ("regimes: {MID: {from_minutes_after_open: 60.0}}", "regimes.MID.from_minutes_after_open"),
    ("regimes: {LATE: {from_minutes_to_close: 30.0}}", "regimes.LATE.from_minutes_to_close"),
    ("regimes: {CLOSE: {from_minutes_to_close: 5.0}}", "regimes.CLOSE.from_minutes_to_close"),
]


@pytest.mark.parametrize(("text", "setting"), POLICY_TIGHTER)
def test_a_rule_of_exposure_that_tightens_is_told_as_such_beside_a_line_that_is_wrong_too(
    text: str, setting: str, tmp_path: Path
) -> None:
    change = decide_change(RiskRules(), policy(text, tmp_path))
    assert (change.outcome, change.loosens) == ("applied", False)
    assert setting in [one.setting for one in change.changes]
    beside = decide_change(RiskRules(), policy(f"{text}\nno_such: 1\n", tmp_path))
    assert (beside.outcome, beside.limits) == ("tightened", change.limits)
    (fault,) = beside.faults
    assert "no_such: there is no such setting" in fault
    back = decide_change(change.limits, policy("", tmp_path))
    assert back.loosens


def test_a_hard_cap_below_the_tolerances_tightens_together_with_them(tmp_path: Path) -> None:
    text = "exposure: {gross_hard_cap_pct: 105.0}\nregimes:\n"
    text += "".join(f"  {name}: {{tolerance_pct: 100.0}}\n" for name in ("OPEN", "EARLY", "MID", "LATE"))
    change = decide_change(RiskRules(), policy(f"{text}no_such: 1\n", tmp_path))
    assert change.limits.exposure.gross_hard_cap_pct == 105.0
    assert change.limits.regimes.OPEN.tolerance_pct == 100.0


# ---- value at risk

FIGURES = {"min_observations": 250, "warning_usd": 2_000.0, "hard_usd": 5_000.0, "hard": "pause"}


@pytest.mark.parametrize("change", [{"hard_usd": 3_000.0}, {"warning_usd": 100.0}, {"hard": "freeze"}])
def test_levels_of_value_at_risk_tighten_while_a_process_runs(change: dict[str, Any], tmp_path: Path) -> None:
    before = limits(value_at_risk=FIGURES)
    after = {"value_at_risk": {**FIGURES, **change}}
    sound = decide_change(before, reading(after, tmp_path))
    assert (sound.outcome, sound.loosens) == ("applied", False)
    beside = decide_change(before, reading({**after, "no_such": 1}, tmp_path))
    assert (beside.outcome, beside.limits) == ("tightened", sound.limits)


@pytest.mark.parametrize("after", [None, {**FIGURES, "confidence": 0.995}, {**FIGURES, "measure": "var"}])
def test_what_value_at_risk_is_made_with_needs_a_new_start(after: dict[str, Any] | None, tmp_path: Path) -> None:
    change = decide_change(limits(value_at_risk=FIGURES), reading({"value_at_risk": after}, tmp_path))
    assert change.outcome == "refused"
    assert all(": cannot change from " in fault for fault in change.faults)
    come = decide_change(limits(), reading({"value_at_risk": FIGURES}, tmp_path))
    assert come.outcome == "refused"


def test_rules_of_exposure_follow_their_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("regimes: {MID: {tolerance_pct: 118.0}}\n")
    change = decide_change(RiskRules(), read_settings(path, RiskRules))
    assert change.outcome == "applied"
    assert [one.setting for one in change.changes] == ["regimes.MID.tolerance_pct"]
    path.write_text("session: {calendar: 24/7}\n")
    refused = decide_change(RiskRules(), read_settings(path, RiskRules))
    assert refused.outcome == "refused"
    told = f"{path}:1: session.calendar: cannot change from 'XLON' to '24/7' while this process runs"
    assert refused.faults[0].startswith(told)

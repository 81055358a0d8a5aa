"""What the command says of files of risk limits and rules: sound or not, path and line, what changed, and schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from killswitch.cli import cli
from killswitch.risk.process.limits_audit import LimitsAudit

SHIPPED = Path(__file__).resolve().parents[3] / "config"


def run(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, words, env=environment)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between the calendar library and pandas
def test_the_files_that_ship_are_sound_and_one_line_says_what_they_switch_on() -> None:
    shown = run(
        *("config", "check", "--risk-limits", str(SHIPPED / "risk_limits.yaml")),
        *("--risk-rules", str(SHIPPED / "risk_rules.yaml")),
    )
    assert shown.exit_code == 0, shown.output
    assert "risk_limits.yaml: sound; no account is watched (initial_balance_usd); inventory in a symbol" in shown.stdout
    assert "; in the worst second at most 200 orders and 200 amendments, the rate and the burst" in shown.stdout
    assert "risk_rules.yaml: sound; calendar XLON; tolerance OPEN 125 %, EARLY 125 %, MID 120 %" in shown.stdout


def notes_of(path: Path, kind: str = "limits") -> list[str]:
    shown = run("-o", "json", "config", "check", f"--risk-{kind}", str(path))
    assert shown.exit_code == 0, shown.output
    notes: list[str] = json.loads(shown.stdout)["risk_files"][f"risk_{kind}"]["notes"]
    return notes


def test_every_input_check_that_is_off_is_said_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    assert [note.split(": ")[1] for note in notes_of(SHIPPED / "risk_limits.yaml")] == [
        "pretrade.input_health", "inputs.router_silent_after_ms", "inputs.mark_frozen_after_ms",
    ]  # fmt: skip
    path.write_text(
        "mark_max_age_ms: null\npretrade: {input_health: {}}\n"
        "inputs: {router_silent_after_ms: 10000, mark_frozen_after_ms: 10000}\n"
    )
    assert notes_of(path) == ["OFF: mark_max_age_ms: an account is valued at marks of any age"]
    shown = run("config", "check", "--risk-limits", str(path))
    assert f"{path}: OFF: mark_max_age_ms: an account is valued at marks of any age\n" in shown.stdout
    path.write_text("session: {calendar: 24/7}\nexposure: {mark_max_age_ms: null}\n")
    assert notes_of(path, "rules") == ["OFF: exposure.mark_max_age_ms: exposure is valued at marks of any age"]


def test_limits_by_time_of_day_that_know_no_time_are_said(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    sessions = "sessions: [{from_minute: 480, limit_pct: 100}, {from_minute: 980, limit_pct: 25}]"
    path.write_text(f"orders: {{schedule: {{{sessions}}}}}\n")
    assert "without time_zone the tightest of them holds all day" in notes_of(path)[-1]
    path.write_text(f"orders: {{schedule: {{time_zone: Europe/London, {sessions}}}}}\n")
    assert not [note for note in notes_of(path) if "time_zone" in note]


def test_all_faults_of_both_files_are_told_by_path_and_line_with_exit_2(tmp_path: Path) -> None:
    limits, rules = tmp_path / "limits.yaml", tmp_path / "rules.yaml"
    limits.write_text("max_daily_drawdown: 2\npretrade:\n  trottle: 1\n")
    rules.write_text("regimes:\n  LATE: {tolerance_pct: 121}\n")
    shown = run("config", "check", "--risk-limits", str(limits), "--risk-rules", str(rules))
    assert shown.exit_code == 2
    for sentence in (
        f"{limits}:1: max_daily_drawdown: input should be less than 1, and it is 2",
        f"{limits}:3: pretrade.trottle: there is no such setting; did you mean 'throttle'?",
        f"{rules}:2: regimes.LATE.tolerance_pct (121) must be at most MID.tolerance_pct (120)",
    ):
        assert sentence in shown.stderr
    assert shown.stdout == ""


FAULTS = [
    (
        "rules: {node: [{rule: 'x.y:Z'}], orders: [{rule: nope}]}",
        ["the rule nope is no entry point", "the rule x.y:Z ca"],
    ),
    ("rules: {node: [{rule: 'json:dumps'}]}", ["the rule json:dumps cannot be made with the settings {}"]),
]


@pytest.mark.parametrize(("text", "sentences"), FAULTS)
def test_rules_that_cannot_be_loaded_are_faults_of_the_file(text: str, sentences: list[str], tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    shown = run("config", "check", "--risk-limits", str(path))
    assert shown.exit_code == 2
    for sentence in sentences:
        assert f"{path}: {sentence}" in shown.stderr


def test_a_calendar_that_does_not_exist_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("session: {calendar: XXXX}\n")
    shown = run("config", "check", "--risk-rules", str(path))
    assert shown.exit_code == 2
    assert f"{path}: session.calendar: the calendar XXXX from " in shown.stderr


def test_the_files_that_the_settings_name_are_checked_without_being_asked_for(tmp_path: Path) -> None:
    limits, rules = tmp_path / "lab" / "limits.yaml", tmp_path / "rules.yaml"
    limits.parent.mkdir()
    limits.write_text("orders: {max_total_notional_usd: 5.0}\n")
    rules.write_text("session: {calendar: 24/7}\n")
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"agent: {{risk_limits: '{tmp_path}/{{cluster}}/limits.yaml', risk_rules: '{rules}'}}\n")
    shown = run("--config", str(settings), "--cluster", "lab", "config", "check")
    assert shown.exit_code == 2
    assert f"{limits}: initial_balance_usd: is needed by {rules}" in shown.stderr
    limits.write_text("initial_balance_usd: 100.0\n")
    shown = run("-o", "json", "--config", str(settings), "--cluster", "lab", "config", "check")
    body: dict[str, Any] = json.loads(shown.stdout)
    assert body["risk_files"]["risk_limits"]["path"] == str(limits)
    assert set(body["risk_files"]) == {"risk_limits", "risk_rules"}


@pytest.mark.parametrize(("which", "file"), [("risk-limits", "risk_limits"), ("risk-rules", "risk_rules")])
def test_the_schema_of_each_file_is_printed(which: str, file: str) -> None:
    shown = run("config", "schema", "--of", which)
    assert shown.stdout == (SHIPPED / f"{file}.schema.json").read_text(encoding="utf-8")


def test_two_places_for_one_limit_and_rules_without_limits_are_refused(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("agent: {risk_limits: /x.yaml, limits: {max_total_notional_usd: 5.0}}\n")
    assert "limits: stand in the file of risk_limits too" in run("--config", str(settings), "config", "check").stderr
    settings.write_text("agent: {risk_rules: /x.yaml}\n")
    assert "risk_rules: needs risk_limits" in run("--config", str(settings), "config", "check").stderr


def test_the_history_of_limits_shows_each_change_and_a_broken_chain_exits_1(tmp_path: Path) -> None:
    path = tmp_path / "limits-audit.jsonl"
    audit = LimitsAudit(path)
    audit.append({"at": "2026-01-30T10:00:00.000000Z", "by": "the start of the agent", "outcome": "started"})
    change = {"setting": "max_daily_drawdown", "before": 0.02, "after": 0.015, "direction": "tighter"}
    audit.append(
        {"at": "2026-01-30T11:00:00.000000Z", "by": "owner:risk", "outcome": "tightened", "changes": [change],
         "faults": ["limits.yaml:3: nonsense: there is no such setting"]}
    )  # fmt: skip
    shown = run("config", "limits-history", str(path))
    assert shown.exit_code == 0, shown.output
    row = "2026-01-30T11:00:00Z  owner:risk              tightened  max_daily_drawdown  0.02    0.015"
    assert row in shown.stdout
    assert "limits.yaml:3: nonsense: there is no such setting" in shown.stdout
    assert "verified: 2 entries" in shown.stderr
    body = json.loads(run("-o", "json", "config", "limits-history", str(path)).stdout)
    assert (body["schema"], len(body["entries"]), body["faults"]) == ("killswitch.limits.history/1", 2, [])
    path.write_text(path.read_text().replace("0.015", "0.016"))
    shown = run("config", "limits-history", str(path))
    assert shown.exit_code == 1
    assert f"{path}:2: was changed" in shown.stderr
    assert run("config", "limits-history", str(tmp_path / "none")).exit_code == 2


def test_replay_takes_the_whole_file_of_limits_and_its_balance(tmp_path: Path) -> None:
    bars = tmp_path / "bars.csv"
    rows = [f"2026-01-30T10:{minute:02}:00Z,{100 - minute},{100 - minute},{100 - minute},{100 - minute},1"
            for minute in range(10)]  # fmt: skip
    bars.write_text("\n".join(["timestamp,open,high,low,close,volume", *rows]) + "\n")
    limits = tmp_path / "limits.yaml"
    limits.write_text("initial_balance_usd: 5000.0\norders: {max_total_notional_usd: 9.0}\n")
    body = json.loads(run("-o", "json", "replay", "--bars", str(bars), "--limits", str(limits)).stdout)
    assert "5,000.00 USD" in run("replay", "--bars", str(bars), "--limits", str(limits)).stdout
    assert body["limits_file"] == str(limits)

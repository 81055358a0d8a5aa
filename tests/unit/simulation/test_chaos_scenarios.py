"""The five chaos scenarios of the account: each a verdict, equal to the byte for one seed, and able to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

import killswitch
from killswitch.cli import cli
from killswitch.risk.account_limits import AccountLimits
from killswitch.simulation import chaos
from killswitch.simulation.chaos import CHAOS, FIXED_START, NoSuchScenario, report, run_chaos, table, verdict

NAMES = ["normal", "flash_crash", "fat_finger", "extreme_volatility", "recovery"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield
    structlog.reset_defaults()


def invoke(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), env={"MM_FREEZE_UTC_ISO": "", **(env or {})})


def text(seed: int, name: str = "all") -> str:
    return report(run_chaos(name, seed=seed), seed=seed, start=FIXED_START, version="1")


def test_the_scenarios_are_five_in_this_order() -> None:
    assert list(CHAOS) == NAMES
    with pytest.raises(NoSuchScenario, match="fat_finger"):
        run_chaos("flood")


@pytest.mark.parametrize("name", NAMES)
def test_each_scenario_holds_and_says_what_it_checked(name: str) -> None:
    (run,) = run_chaos(name, seed=1)
    assert run.verdict == "OK", [what for what, holds, _ in run.checks if not holds]
    assert len(run.checks) >= 4


def test_figures_of_the_five_scenarios() -> None:
    runs = {run.name: run.to_json() for run in run_chaos("all", seed=1)}
    normal = runs["normal"]
    assert (normal["warnings"], normal["kills"], normal["events"]) == (0, 0, [])
    crash = runs["flash_crash"]
    assert crash["kills"] == 1
    assert crash["max_drawdown_pct"] == pytest.approx(2.5)
    assert crash["engagements"][0]["before"]["drawdown_pct"] < 2.0 <= crash["engagements"][0]["after"]["drawdown_pct"]
    assert runs["fat_finger"]["events"][0]["leverage"] == pytest.approx(6.4)
    levels = [event["alert_level"] for event in runs["extreme_volatility"]["events"]]
    assert levels.index("WARNING") < levels.index("CRITICAL")
    modes = [event["breaker"] for event in runs["recovery"]["events"]]
    assert modes[0] == "ENGAGED"
    assert modes[-1] == "SAFE"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(-(2**40), 2**40))
def test_every_seed_holds(seed: int) -> None:
    runs = run_chaos("all", seed=seed)
    assert [(run.name, run.verdict) for run in runs] == [(name, "OK") for name in NAMES]


def test_one_seed_is_equal_to_the_byte_and_another_is_not() -> None:
    assert text(7) == text(7)
    assert text(7) != text(8)


def test_a_scenario_alone_runs_as_it_does_among_all() -> None:
    alone = json.loads(text(3, "flash_crash"))["runs"][0]
    among = next(run for run in json.loads(text(3))["runs"] if run["name"] == "flash_crash")
    assert alone == among


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({"max_daily_drawdown": 0.5}, {"flash_crash", "extreme_volatility", "recovery"}),
        ({"max_account_leverage": 100.0}, {"fat_finger"}),
        ({"max_account_leverage": 0.5, "leverage_warning": 0.1}, set(NAMES)),
        ({"transient_classes": ("network", "data", "drawdown")}, {"recovery"}),
    ],
)
def test_a_monitor_with_other_limits_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], failing: set[str]
) -> None:
    """A verdict that cannot fail is none."""
    monkeypatch.setattr(chaos, "AccountLimits", lambda: AccountLimits(**changed))
    assert {run.name for run in run_chaos("all", seed=1) if run.verdict != "OK"} == failing


def test_the_report_is_canonical_json_with_verdict_seed_and_time() -> None:
    body = json.loads(text(5))
    assert (body["schema"], body["scenario"], body["seed"]) == ("killswitch.scenario/1", "chaos", 5)
    assert body["runtime"] == {"utc": FIXED_START, "version": "1"}
    assert body["verdict"] == "OK"
    assert text(5) == json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n"
    assert verdict([]) == "FAILED"


def test_the_table_fits_into_80_columns_and_shows_what_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = table(run_chaos("all", seed=1)).splitlines()
    assert len(lines) == 1 + len(NAMES)
    assert max(len(line) for line in lines) <= 80
    monkeypatch.setattr(chaos, "AccountLimits", lambda: AccountLimits(max_daily_drawdown=0.5))
    lines = table(run_chaos("flash_crash", seed=1)).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert any(line.startswith("  FAILED: the breaker is engaged once") for line in lines)


# ---- the command


def test_the_command_prints_a_table_or_the_report() -> None:
    shown = invoke("scenario", "chaos")
    assert shown.exit_code == 0, shown.output
    assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [[name, "OK"] for name in NAMES]
    assert shown.stderr == ""  # kills are rehearsed
    one = invoke("-o", "json", "scenario", "chaos", "fat_finger", "--seed", "9")
    assert [run["name"] for run in json.loads(one.stdout)["runs"]] == ["fat_finger"]
    assert one.stdout == invoke("-o", "json", "scenario", "chaos", "fat_finger", "--seed", "9").stdout


def test_the_time_of_the_environment_is_where_it_begins() -> None:
    done = invoke("-o", "json", "scenario", "chaos", "flash_crash", env={"MM_FREEZE_UTC_ISO": "2030-01-02T03:04:05Z"})
    body = json.loads(done.stdout)
    assert body["runtime"]["utc"] == "2030-01-02T03:04:05Z"
    assert body["runs"][0]["events"][0]["at"].startswith("2030-01-02T03:04:0")
    wrong = invoke("scenario", "chaos", env={"MM_FREEZE_UTC_ISO": "noon"})
    assert wrong.exit_code == 2
    assert "noon" in wrong.stderr


def test_the_command_exits_1_when_a_verdict_fails_and_2_for_a_name_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = invoke("scenario", "chaos", "flood")
    assert wrong.exit_code == 2
    assert "there is no chaos scenario 'flood'" in wrong.stderr
    monkeypatch.setattr(chaos, "AccountLimits", lambda: AccountLimits(max_daily_drawdown=0.5))
    failed = invoke("-o", "json", "scenario", "chaos", "flash_crash")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["verdict"] == "FAILED"


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_report_is_equal_to_the_byte_in_every_process(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "MM_FREEZE_UTC_ISO": "", "COLUMNS": "33"}
    ran = subprocess.run(
        [sys.executable, "-c", "from killswitch.cli import main; main()", "-o", "json", "scenario", "chaos", "all"],
        env=environment, capture_output=True, timeout=50, check=True,
    )  # fmt: skip
    runs = run_chaos("all", seed=1)
    assert ran.stdout.decode() == report(runs, seed=1, start=FIXED_START, version=killswitch.__version__)
    assert ran.stderr == b""


# ---- the list of all scenarios


def test_the_list_names_every_run_within_80_columns() -> None:
    listed = invoke("scenario", "list").stdout.splitlines()
    assert max(map(len, listed)) <= 80
    named = [line.split()[0] for line in listed if line[2] != " "]
    assert named == ["risk-monitor", "chaos", *NAMES, "rig", *"ABCDE"]


def test_the_list_is_one_document_as_json() -> None:
    body = json.loads(invoke("-o", "json", "scenario", "list").stdout)
    assert body["schema"] == "killswitch.scenarios/1"
    runs = {one["name"]: [run["name"] for run in one["runs"]] for one in body["scenarios"]}
    assert runs == {"risk-monitor": [], "chaos": NAMES, "rig": list("ABCDE")}
    assert all(run["title"] for one in body["scenarios"] for run in one["runs"])


def test_every_run_that_is_listed_can_be_played() -> None:
    for one in json.loads(invoke("-o", "json", "scenario", "list").stdout)["scenarios"]:
        for arguments in ([], *([run["name"]] for run in one["runs"])):
            assert invoke("scenario", one["name"], *arguments).exit_code == 0, (one["name"], arguments)

"""The rig: scenarios A to E, their report and their command."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from structlog.testing import capture_logs

from killswitch.cli import cli
from killswitch.risk.exposure import policy_table
from killswitch.risk.exposure.policy_table import PolicyDecisionTable, PolicyMode
from killswitch.routing.order_registry import OrderRegistry, RegistryUnavailable
from killswitch.simulation import rig


@pytest.fixture(autouse=True)
def logs() -> Any:
    """The command sets up logging for its whole process; what was there before comes back."""
    before = structlog.get_config()
    with capture_logs() as captured:
        yield captured
    structlog.configure(**before)


@pytest.mark.parametrize("name", rig.NAMES)
def test_every_scenario_passes(name: str) -> None:
    run = rig.play(name)
    assert [check for check in run.checks if not check.holds] == []
    assert run.verdict == "OK"
    assert len(run.checks) >= 7


def test_the_report_is_equal_to_the_byte_and_one_line() -> None:
    first, second = rig.report(rig.play_all()), rig.report(rig.play_all("ALL"))
    assert first == second
    assert first.count("\n") == 1
    body = json.loads(first)
    assert (body["schema"], body["scenario"], body["verdict"]) == ("killswitch.scenario/1", "rig", "OK")
    assert [run["name"] for run in body["runs"]] == list("ABCDE")
    assert first == json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n"


def test_a_scenario_is_played_by_its_name_in_any_case() -> None:
    assert [run.name for run in rig.play_all("b")] == ["B"]
    with pytest.raises(ValueError, match="A, B, C, D, E and all"):
        rig.play_all("F")


@pytest.mark.parametrize(
    ("mode", "failing"), [(PolicyMode.NORMAL, "BCDE"), (PolicyMode.HARD_DERISK, "ABCDE")], ids=["blind", "frantic"]
)
def test_a_table_that_decides_wrongly_fails_the_scenarios(
    mode: PolicyMode, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PolicyDecisionTable.decide
    monkeypatch.setattr(policy_table.PolicyDecisionTable, "decide", lambda self, *a: (mode, real(self, *a)[1]))
    failed = "".join(run.name for run in rig.play_all() if run.verdict != "OK")
    assert failed == failing
    assert json.loads(rig.report(rig.play_all()))["verdict"] == "FAILED"


def test_a_run_without_a_check_has_not_passed() -> None:
    assert rig.RigRun("X", "nothing").verdict == "FAILED"
    assert json.loads(rig.report([]))["verdict"] == "FAILED"


def test_a_run_that_breaks_off_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no plan")

    monkeypatch.setattr(rig, "derisk_plan", broken)
    run = rig.play("B")
    assert (run.verdict, run.checks[-1].actual) == ("FAILED", "broke off: RuntimeError('no plan')")


def test_a_run_whose_orders_cannot_be_kept_has_neither_passed_nor_failed() -> None:
    def away() -> OrderRegistry:
        raise RegistryUnavailable("nobody answers")

    with pytest.raises(RegistryUnavailable, match="nobody answers"):
        rig.play_all("A", away)


# ---- the command


def test_the_command_prints_a_line_for_each_within_80_columns() -> None:
    done = CliRunner().invoke(cli, ["scenario", "rig"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[name, "OK"] for name in "ABCDE"]
    assert max(map(len, lines)) <= 80


def test_the_command_prints_the_report_as_json() -> None:
    done = CliRunner().invoke(cli, ["-o", "json", "scenario", "rig", "all"])
    assert done.stdout == rig.report(rig.play_all())
    assert CliRunner().invoke(cli, ["-o", "json", "scenario", "rig", "c"]).stdout == rig.report(rig.play_all("C"))


def test_the_command_exits_1_on_a_failed_verdict_and_2_on_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(cli, ["scenario", "rig", "F"]).exit_code == 2
    monkeypatch.setattr(rig, "MOST_STEPS", 0)  # no derisk is ever carried out
    for output in ("table", "json"):
        done = CliRunner().invoke(cli, ["-o", output, "scenario", "rig"])
        assert done.exit_code == 1
        assert "FAILED" in done.stdout
    assert "expected 'HARD_DERISK', was None" in CliRunner().invoke(cli, ["scenario", "rig", "D"]).stdout


def test_the_scenario_is_listed() -> None:
    assert "\nrig  " in CliRunner().invoke(cli, ["scenario", "list"]).stdout


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (
            ["--registry", "redis://ann:hunter2@127.0.0.1:1"],
            4,
            "order registry at redis://127.0.0.1:1 was asked",
        ),
        (["--registry", "etcd://127.0.0.1:1"], 2, "kept in one Redis: write redis://HOST:PORT/DB, not etcd://"),
        (["--registry", "redis://127.0.0.1:1/orders"], 2, "'/orders' names no database of Redis"),
        (["--registry", "redis://127.0.0.1:1?wait_replicas=1"], 2, "takes neither wait_replicas nor server_name"),
        (["--registry", "nonsense"], 2, "begins with a scheme"),
        (["--keep-orders"], 2, "name it with --registry redis://HOST:PORT"),
    ],
)
def test_a_registry_that_cannot_be_had_is_a_sentence_and_no_verdict(
    words: list[str], exit_code: int, says: str
) -> None:
    done = CliRunner().invoke(cli, ["scenario", "rig", *words])
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert says in done.stderr
    assert "hunter2" not in done.stderr

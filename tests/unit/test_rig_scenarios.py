"""The rig: scenarios A to E, their report, their command, and the order registry under them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from structlog.testing import capture_logs

from agents.risk import policy_table
from agents.risk.policy_table import PolicyDecisionTable, PolicyMode
from agents.scenarios import rig
from agents.scenarios.rig_orders import OrderError, OrderRegistry, RigOrder, RigOrderState
from killswitch.cli import cli


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


# ---- the registry


def submit(registry: OrderRegistry, intent: str, **changes: Any) -> tuple[RigOrder, bool]:
    given: dict[str, Any] = {
        "symbol": "AAA",
        "bucket": "LT",
        "side": "buy",
        "quantity": Decimal(10),
        "price": Decimal(5),
        "urgency": "resting",
    }
    return registry.submit(intent, **{**given, **changes})


def test_the_same_intent_never_makes_two_orders() -> None:
    registry = OrderRegistry()
    first, is_new = submit(registry, "i")
    again, is_new_again = submit(registry, "i", symbol="BBB")
    assert (is_new, is_new_again, len(registry)) == (True, False, 1)
    assert again is first is registry.by_intent("i")
    registry.cancel(first.order_id)
    assert submit(registry, "i") == (first, False)  # not after it is over either


@pytest.mark.parametrize(
    ("urgency", "filled", "state"),
    [("cross_spread", "10", "FILLED"), ("near_last", "9", "PARTIAL_FILL"), ("resting", "5", "PARTIAL_FILL")],
)
def test_fills_are_the_same_in_every_run(urgency: str, filled: str, state: str) -> None:
    registry = OrderRegistry()
    order, _ = submit(registry, "i", urgency=urgency)
    assert order.state is RigOrderState.ACCEPTED
    registry.acknowledge(order.order_id)
    assert order.state is RigOrderState.WORKING
    assert registry.fill(order.order_id) == Decimal(filled)
    assert (order.state.value, order.remaining) == (state, 10 - Decimal(filled))
    with pytest.raises(OrderError, match="cannot fill"):
        registry.fill(order.order_id)


def test_a_cancel_of_what_is_over_says_so_and_of_what_never_was_is_an_error() -> None:
    registry = OrderRegistry()
    order, _ = submit(registry, "i", rejected=True)
    assert (order.state, order.remaining) == (RigOrderState.REJECTED, 0)
    assert not registry.cancel(order.order_id)
    with pytest.raises(OrderError, match="no order"):
        registry.cancel("O99999")
    with pytest.raises(OrderError, match="cannot be acknowledged"):
        registry.acknowledge(order.order_id)


def test_a_replace_is_cancel_ack_and_a_new_order() -> None:
    registry = OrderRegistry()
    order, _ = submit(registry, "i")
    registry.acknowledge(order.order_id)
    new = registry.replace(order.order_id, "j", quantity=Decimal(4), price=Decimal(6))
    assert (order.state, new.state, new.quantity) == (RigOrderState.CANCELED, RigOrderState.WORKING, 4)
    assert registry.replace(order.order_id, "j", quantity=Decimal(4), price=Decimal(6)) is new
    with pytest.raises(OrderError, match="cannot be replaced"):
        registry.replace(order.order_id, "k", quantity=Decimal(4), price=Decimal(6))
    assert registry.find(symbol="AAA", live_only=True) == [new]
    assert registry.find(side="sell") == []
    assert len(registry.find()) == 2


def test_the_registry_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.scenarios.rig_orders.MAX_ORDERS", 1)
    registry = OrderRegistry()
    submit(registry, "i")
    with pytest.raises(OrderError, match="1 orders"):
        submit(registry, "j")

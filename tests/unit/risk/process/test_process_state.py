"""A restart undoes nothing: no disabled strategy, no count of the day, no freeze; what it cannot read freezes it."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from killswitch.risk import ProcessLimits, load_risk_limits
from killswitch.risk.events import FreezeEvent
from killswitch.risk.process.process_state import StateUnwritable
from tests.support.waiting import wait_until

LIMITS: dict[str, Any] = {
    "pretrade": {
        "throttle": None,
        "repeated_executions": {"max_executions": 2},
        "daily": {"max_orders": 5, "max_loss_usd": 100.0},
    },
}
DAY = dt.date(2026, 1, 30)


class Desk:
    """Processes that follow one another on the same files."""

    def __init__(self, folder: Path) -> None:
        self.limits_path, self.state_path = folder / "limits.yaml", folder / "state" / "state.json"
        self.limits_path.write_text(yaml.safe_dump(LIMITS))
        self.day = DAY
        self.frozen: list[FreezeEvent] = []
        self.started: list[ProcessLimits] = []
        self.orders = 0

    def start(self) -> ProcessLimits:
        """A new process; the one before is left as a crash leaves it, unless it was closed."""
        process = ProcessLimits.of_file(
            self.limits_path, state_path=self.state_path, on_freeze=self.frozen.append, day=lambda: self.day,
            registry=CollectorRegistry(),
        )  # fmt: skip
        self.started.append(process)
        return process

    def order(self, process: ProcessLimits, strategy: str = "maker") -> str | None:
        self.orders += 1
        refusal = process.controls.admit(f"o{self.orders}", "A", "buy", 1.0, 100.0, strategy=strategy)
        return None if refusal is None else refusal.kind

    def disable(self, process: ProcessLimits) -> None:
        for _ in range(2):
            assert self.order(process) is None
            process.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id=f"o{self.orders}")

    def file(self) -> dict[str, Any]:
        return dict(json.loads(self.state_path.read_text()))

    def wait_for(self, *path: str, says: Any) -> None:
        """Wait until the file says something."""

        def found() -> bool:
            value: Any = self.file()
            for name in path:
                value = value[name]
            return bool(value == says)

        wait_until(found, what=f"{'.'.join(path)} to be {says!r} in the state file")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    for process in desk.started:
        process.close()


def test_a_restart_enables_no_strategy(desk: Desk) -> None:
    first = desk.start()
    desk.disable(first)
    desk.wait_for("controls", "disabled", says={"maker": 2})
    second = desk.start()  # the first one has crashed
    assert desk.order(second) == "repeated_execution"
    assert desk.order(second, "taker") is None
    assert second.controls.enable("maker", "ann", "looked at its fills")
    desk.wait_for("controls", "disabled", says={})
    assert desk.order(desk.start()) is None


def test_a_restart_begins_no_day(desk: Desk) -> None:
    first = desk.start()
    assert [desk.order(first) for _ in range(3)] == [None] * 3
    first.controls.on_result(-40.0)
    desk.wait_for("controls", "daily", "result_usd", says="-40.0")
    second = desk.start()
    assert [desk.order(second) for _ in range(3)] == [None, None, "daily_orders"]
    second.controls.on_result(-60.0)
    second.close()
    third = desk.start()
    desk.day += dt.timedelta(days=1)
    assert desk.order(third) is None, "a later day does"
    third.controls.on_result(-99.0)
    third.close()
    fourth = desk.start()
    fourth.controls.on_result(-1.0)
    assert desk.order(fourth) == "daily_loss"


def test_a_restart_releases_nothing_and_tells_no_freeze_anew(desk: Desk) -> None:
    first = desk.start()
    first.monitor.on_edge_update("A", math.nan)
    desk.wait_for("monitor", "state", "frozen", says=True)
    second = desk.start()
    assert desk.order(second) == "frozen"
    assert second.monitor.last_freeze_reason == first.monitor.last_freeze_reason
    assert len(second.monitor.get_freeze_events()) == 1
    assert len(desk.frozen) == 1, "whoever was told then may have released since"
    second.monitor.unfreeze("looked at the edge")
    desk.wait_for("monitor", "state", "frozen", says=False)
    assert desk.order(desk.start()) is None


def test_what_the_process_holds_is_not_taken_from_the_file(desk: Desk) -> None:
    first = desk.start()
    desk.disable(first)
    assert desk.order(first, "taker") is None
    first.close()
    second = desk.start()
    assert (second.monitor.get_position("A"), second.monitor.working_orders()) == (0.0, 0)
    assert desk.file()["monitor"]["working_orders"] == desk.file()["monitor"]["positions"] == {}


DAMAGED: dict[str, bytes] = {
    "half": b'{"v": 1, "monitor"',
    "empty": b"",
    "list": b"[]",
    "nothing": b"null",
    "names": b"{}",
    "bytes": b"\xff\xfe\x00",
    "version": b'{"v": 2, "monitor": {}, "controls": {}}',
    "monitor": b'{"v": 1, "monitor": {}, "controls": {"v": 1, "executions": null, "daily": null}}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_unknown_is_frozen__a_state_that_cannot_be_read_freezes_and_says_what_to_do(desk: Desk, damage: str) -> None:
    first = desk.start()
    desk.disable(first)
    first.close()
    sound = desk.state_path.read_bytes()
    desk.state_path.write_bytes(DAMAGED[damage])
    second = desk.start()
    assert desk.order(second, "taker") == "frozen"
    reason = second.monitor.last_freeze_reason
    assert reason is not None
    assert reason.startswith(f"{desk.state_path}: the state of this process cannot be read (")
    assert "put a good copy in its place and start again" in reason
    second.close()
    assert desk.state_path.read_bytes() == DAMAGED[damage], "whoever repairs it must still find it"
    desk.state_path.write_bytes(sound)
    third = desk.start()
    assert desk.order(third) == "repeated_execution"
    assert desk.order(third, "taker") is None


def test_unknown_is_frozen__controls_that_cannot_be_read_freeze_too(desk: Desk) -> None:
    desk.start().close()
    said = desk.file()
    said["controls"]["daily"] = {"day": "tomorrow"}
    desk.state_path.write_text(json.dumps(said))
    assert desk.order(desk.start()) == "frozen"


def test_a_person_who_releases_a_process_without_its_state_begins_a_new_file(desk: Desk) -> None:
    desk.state_path.parent.mkdir()
    desk.state_path.write_bytes(b"{")
    process = desk.start()
    process.monitor.unfreeze("nothing is disabled; the day has just begun")
    kept = desk.state_path.with_name("state.json.unreadable")
    wait_until(kept.exists, what="the file that could not be read to be kept")
    assert kept.read_bytes() == b"{"
    wait_until(desk.state_path.exists, what="a new file")
    assert desk.order(desk.start()) is None


def test_a_pipe_in_place_of_the_file_holds_nobody_up(desk: Desk) -> None:
    desk.state_path.parent.mkdir()
    os.mkfifo(desk.state_path)
    process = desk.start()
    assert desk.order(process) == "frozen"
    assert "it is no regular file" in str(process.monitor.last_freeze_reason)


def test_a_process_whose_state_cannot_be_written_does_not_start(desk: Desk) -> None:
    desk.state_path.with_name(f"state.json.{os.getpid()}.new").mkdir(parents=True)
    with pytest.raises(StateUnwritable, match=r"state.json: cannot be written \(Is a directory\); a restart would"):
        desk.start()
    assert not desk.started


def test_a_state_that_cannot_be_written_any_more_is_said_and_stops_no_order(desk: Desk, logs: Any) -> None:
    process = desk.start()
    desk.state_path.unlink()
    desk.state_path.mkdir()
    desk.disable(process)
    wait_until(process.faults, what="a fault")
    assert process.faults()[0].startswith(f"{desk.state_path}: cannot be written (")
    assert desk.order(process, "taker") is None
    desk.state_path.rmdir()
    wait_until(lambda: not process.faults(), what="the fault to end")
    assert desk.file()["controls"]["disabled"] == {"maker": 2}
    assert [line["event"] for line in logs].count("state not written") == 1


def test_a_clock_for_people_that_fails_keeps_no_state_from_the_file(desk: Desk) -> None:
    limits = load_risk_limits(desk.limits_path)
    process = ProcessLimits(
        limits, state_path=desk.state_path, wall_clock=lambda: str(1 / 0), registry=CollectorRegistry()
    )
    desk.started.append(process)
    desk.disable(process)
    desk.wait_for("controls", "disabled", says={"maker": 2})
    assert desk.file()["saved_at"] == "unknown"


PROGRAM = """
import sys
from pathlib import Path
from killswitch.risk import ProcessLimits

limits = ProcessLimits.of_file(Path(sys.argv[1]), state_path=Path(sys.argv[2]))
for order in ("o1", "o2"):
    refused = limits.controls.admit(order, "A", "buy", 1.0, 100.0, strategy="maker")
    if refused is None:
        limits.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id=order)
print(refused.kind if refused else "sent", file=sys.stderr, flush=True)
limits.monitor.freeze("stop")
sys.stdin.read()
"""


def test_a_process_that_is_killed_starts_again_with_its_strategy_disabled_and_frozen(desk: Desk) -> None:
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(desk.limits_path), str(desk.state_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        assert program.stderr.readline() == "sent\n"
        desk.wait_for("monitor", "state", "frozen", says=True)
        program.send_signal(signal.SIGKILL)
        assert program.wait(10) == -signal.SIGKILL
    process = desk.start()
    assert desk.order(process) == "repeated_execution"
    assert desk.order(process, "taker") == "frozen"

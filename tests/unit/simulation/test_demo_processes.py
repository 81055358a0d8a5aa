"""The demo's processes: limits that follow the machine, and a failure that says which line of the logs tells why."""

from __future__ import annotations

from pathlib import Path

import pytest

from killswitch.simulation.demo.evidence import refused_attempts, refused_by_gate
from killswitch.simulation.demo.processes import HARD_CAP_S, Children, Pace, ProcessFault
from tests.support.waiting import wait_until

SILENT = "import time\ntime.sleep(60)\n"
COMPLAINS = (
    'import time\nprint(\'{"event": "no store", "level": "error"}\', flush=True)\nprint("fine", flush=True)\n' + SILENT
)
HANGS = 'import sys, time\nprint("waits for the leader", file=sys.stderr, flush=True)\ntime.sleep(60)\n'


def test_a_limit_follows_the_pace_of_the_machine() -> None:
    pace = Pace()
    pace.saw_start(0.2)
    assert pace.stretch(10.0) == 10.0, "a fast machine shortens nothing"
    pace.saw_start(4.0)
    pace.saw_start(1.0)
    assert pace.stretch(10.0) == 40.0, "the slowest start counts"
    pace.saw_start(1_000.0)
    assert pace.stretch(10.0) == HARD_CAP_S


def test_a_command_that_hangs_is_said_with_its_last_words_and_the_line_that_tells_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, code in (("silent", SILENT), ("complains", COMPLAINS), ("hangs", HANGS)):
        (tmp_path / f"{name}_on_purpose.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    children = Children(tmp_path)
    try:
        children.start("agent-n1", "silent_on_purpose", [])
        complains = children.start("c1", "complains_on_purpose", [])
        wait_until(lambda: "fine" in complains.log.read_text(), within_s=30, what="its log")
        children.pace.saw_start(0.0)
        with pytest.raises(ProcessFault) as fault:
            children.run("hangs_on_purpose", [], within_s=3.0)
    finally:
        children.stop(["agent-n1", "c1"])
    said = str(fault.value)
    assert "`hangs_on_purpose ` did not end within 3 s and was killed; it said: waits for the leader" in said
    assert 'last in the logs: c1: {"event": "no store", "level": "error"}; nothing yet from agent-n1' in said
    assert "waits for the leader" in (tmp_path / "logs" / "commands.log").read_text()


def test_a_router_that_its_other_controls_refuse_has_not_looked_at_its_gate() -> None:
    """A busy machine makes prices old, and an order is refused for that: it shows nothing of a freeze."""
    stats = {"refused": {"monitor": 5, "venue": 2, "gate": 3}}
    assert (refused_by_gate(stats), refused_attempts(stats)) == (3, 8)
    assert refused_by_gate({"refused": {"monitor": 5}}) == refused_by_gate({}) == 0

"""Limits that follow their file: what holds when, what is written down before it holds, and what never loosens."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from killswitch.risk.process.limits_audit import LimitsAudit, read_audit
from killswitch.risk.process.risk_limits_file import RiskLimitsFile, load_risk_limits
from killswitch.risk.process.settings_follower import SettingsFollower
from tests.support.waiting import wait_until


class Rig:
    def __init__(self, folder: Path, **values: Any) -> None:
        self.path = folder / "limits.yaml"
        self.audit_path = folder / "audit.jsonl"
        self.writes = 0
        self.write(values)
        self.applied: list[RiskLimitsFile] = []
        self.refuse: str | None = None
        self.refuse_above = 1.0
        self.registry = CollectorRegistry()
        self.live = SettingsFollower(
            self.path,
            load_risk_limits(self.path),
            apply=self._apply,
            audit=LimitsAudit(self.audit_path),
            registry=self.registry,
        )
        self.live.note_start("the start of the test")
        assert self.live.look() is not None

    def _apply(self, limits: RiskLimitsFile) -> None:
        if self.refuse is not None:
            raise ValueError(self.refuse)
        if limits.max_daily_drawdown > self.refuse_above:
            raise ValueError("drawdown: not here")
        self.applied.append(limits)

    def write(self, values: Any) -> None:
        self.text(values if isinstance(values, str) else yaml.safe_dump(values))

    def text(self, text: str) -> None:
        self.path.write_text(text, encoding="utf-8")
        self.writes += 1
        os.utime(self.path, ns=(self.writes, self.writes))  # however coarse the file system's clock

    def entries(self) -> list[dict[str, Any]]:
        entries, faults = read_audit(self.audit_path)
        assert faults == []
        return entries

    def counted(self, outcome: str) -> float | None:
        labels = {"file": "limits.yaml", "outcome": outcome}
        return self.registry.get_sample_value("killswitch_limits_changes_total", labels)


def test_what_tightens_holds_at_the_first_look_that_sees_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.write({"max_daily_drawdown": 0.015})
    change = rig.live.look()
    assert change is not None
    assert change.outcome == "applied"
    assert rig.live.limits.max_daily_drawdown == rig.applied[-1].max_daily_drawdown == 0.015
    assert rig.entries()[-1]["changes"] == [
        {"setting": "max_daily_drawdown", "before": 0.02, "after": 0.015, "direction": "tighter"}
    ]
    assert rig.counted("applied") == 1.0
    assert rig.live.look() is None, "a file that is as it was is not read again"


def test_what_loosens_waits_until_the_file_was_the_same_at_two_looks(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.write({"max_daily_drawdown": 0.03})
    assert rig.live.look() is None
    assert rig.applied == []
    rig.write({"max_daily_drawdown": 0.025})  # somebody is still writing
    assert rig.live.look() is None
    assert rig.applied == []
    change = rig.live.look()
    assert change is not None
    assert rig.applied[-1].max_daily_drawdown == 0.025


def test_of_a_change_both_ways_what_tightens_holds_at_the_first_look_and_the_rest_at_the_second(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.write({"max_daily_drawdown": 0.03, "max_account_leverage": 4.0})
    rig.live.look()
    assert (rig.live.limits.max_daily_drawdown, rig.live.limits.max_account_leverage) == (0.02, 4.0)
    assert rig.live.faults == ()
    rig.live.look()
    assert (rig.live.limits.max_daily_drawdown, rig.live.limits.max_account_leverage) == (0.03, 4.0)
    assert [entry["outcome"] for entry in rig.entries()] == ["started", "tightened", "applied"]


def test_somebody_who_asks_has_a_loosening_taken_now(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.write({"max_daily_drawdown": 0.03})
    rig.live.look_soon()
    assert rig.live.look_when_due() is not None
    assert rig.applied[-1].max_daily_drawdown == 0.03


def test_a_file_that_is_not_sound_tightens_and_says_what_is_wrong_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.text("max_daily_drawdown: 0.5\nmax_account_leverage: 4.0\nmax_leverage: 1\n")
    change = rig.live.look()
    assert change is not None
    assert change.outcome == "tightened"
    assert (rig.live.limits.max_daily_drawdown, rig.live.limits.max_account_leverage) == (0.02, 4.0)
    (fault,) = rig.live.faults
    assert fault.startswith(f"{rig.path}:3: max_leverage: there is no such setting")
    assert (rig.entries()[-1]["outcome"], rig.entries()[-1]["faults"]) == ("tightened", [fault])
    rig.write({"max_account_leverage": 4.0})
    rig.live.look(asked=True)
    assert rig.live.faults == ()


def test_a_file_that_is_gone_changes_nothing_and_is_taken_up_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_daily_drawdown=0.015)
    rig.path.unlink()
    change = rig.live.look()
    assert change is not None
    assert change.outcome == "refused"
    assert rig.live.limits.max_daily_drawdown == 0.015
    assert "cannot be read" in rig.live.faults[0]
    assert rig.counted("refused") == 1.0
    rig.write({"max_daily_drawdown": 0.01})
    rig.live.look()
    assert rig.live.limits.max_daily_drawdown == 0.01


def test_what_is_no_regular_file_is_a_sentence_and_holds_nobody_up(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.path.unlink()
    os.mkfifo(rig.path)
    rig.live.look()
    assert rig.live.faults == (f"{rig.path}: is no regular file",)
    rig.path.unlink()
    rig.path.mkdir()
    rig.live.look()
    assert rig.live.faults == (f"{rig.path}: cannot be read (Is a directory)",)


def test_a_link_that_is_exchanged_as_a_config_map_does_is_seen(tmp_path: Path) -> None:
    for number, drawdown in enumerate((0.02, 0.015)):
        (tmp_path / f"data{number}").mkdir()
        (tmp_path / f"data{number}" / "limits.yaml").write_text(f"max_daily_drawdown: {drawdown}\n")
    (tmp_path / "current").symlink_to("data0")
    path = tmp_path / "current" / "limits.yaml"
    applied: list[RiskLimitsFile] = []
    live = SettingsFollower(path, load_risk_limits(path), apply=applied.append, registry=CollectorRegistry())
    (tmp_path / "next").symlink_to("data1")
    (tmp_path / "next").rename(tmp_path / "current")
    live.look()
    assert [one.max_daily_drawdown for one in applied] == [0.015]


def test_nothing_loosens_that_cannot_be_written_down_and_what_tightens_holds_all_the_same(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.audit_path.unlink()
    rig.audit_path.mkdir()
    rig.write({"max_daily_drawdown": 0.03})
    rig.live.look(asked=True)
    assert rig.applied == []
    assert "could not be written down" in rig.live.faults[-1]
    rig.write({"max_daily_drawdown": 0.015})
    rig.live.look()
    assert rig.live.limits.max_daily_drawdown == 0.015
    assert "could not be written down" in rig.live.faults[-1]


BOTH_WAYS = {"max_daily_drawdown": 0.03, "orders": {"max_total_notional_usd": 100.0}}


def both(rig: Rig) -> tuple[float, float | None]:
    return rig.live.limits.max_daily_drawdown, rig.live.limits.orders.max_total_notional_usd


@pytest.mark.parametrize("asked", [True, False])
def test_what_tightens_holds_though_what_loosens_beside_it_cannot_be_written_down(asked: bool, tmp_path: Path) -> None:
    rig = Rig(tmp_path, orders={"max_total_notional_usd": 1_000.0})
    rig.audit_path.rename(tmp_path / "away")
    rig.audit_path.mkdir()
    rig.write(BOTH_WAYS)
    for _ in range(3):  # the later looks find the same and say nothing more
        rig.live.look(asked=asked)
        assert both(rig) == (0.02, 100.0)
        assert rig.applied[-1].orders.max_total_notional_usd == 100.0
        assert [fault for fault in rig.live.faults if "could not be written down" in fault] == list(rig.live.faults)
    assert (rig.counted("tightened"), rig.counted("applied")) == (1.0, 0.0)

    rig.audit_path.rmdir()
    (tmp_path / "away").rename(rig.audit_path)
    change = rig.live.look()  # nobody has touched the file meanwhile
    assert change is not None
    assert (change.outcome, both(rig), rig.live.faults) == ("applied", (0.03, 100.0), ())
    told = [
        (one["setting"], one["before"], one["after"]) for entry in rig.entries() for one in entry.get("changes", [])
    ]
    assert told == [("orders.max_total_notional_usd", 1_000.0, 100.0), ("max_daily_drawdown", 0.02, 0.03)]
    assert rig.live.look() is None


def test_what_tightens_holds_though_what_loosens_beside_it_cannot_hold_in_this_process(tmp_path: Path) -> None:
    rig = Rig(tmp_path, orders={"max_total_notional_usd": 1_000.0})
    rig.refuse_above = 0.02
    rig.write(BOTH_WAYS)
    rig.live.look(asked=True)
    assert both(rig) == (0.02, 100.0)
    assert rig.live.faults == ("drawdown: not here",)
    entries = len(rig.entries())
    for _ in range(3):
        assert rig.live.look() is None
    assert len(rig.entries()) == entries, "what cannot hold is not written down at every look"


def test_a_line_that_is_taken_out_tightens_beside_a_loosening_that_cannot_be_written_down(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_daily_drawdown=0.05, max_account_leverage=4.0)
    rig.audit_path.unlink()
    rig.audit_path.mkdir()
    rig.write({"max_account_leverage": 4.5})
    for _ in range(2):
        rig.live.look()
    assert (rig.live.limits.max_daily_drawdown, rig.live.limits.max_account_leverage) == (0.02, 4.0)


def test_nothing_is_lost_of_a_tightening_that_held_before_it_could_be_written_down(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.audit_path.rename(tmp_path / "away")
    rig.audit_path.mkdir()
    rig.text("max_daily_drawdown: 0.015\nmax_leverage: 1\n")
    for _ in range(3):
        rig.live.look()
    assert rig.live.limits.max_daily_drawdown == 0.015
    assert len(rig.live.faults) == 2
    rig.audit_path.rmdir()
    (tmp_path / "away").rename(rig.audit_path)
    rig.live.look()
    assert [(entry["outcome"], len(entry.get("changes", []))) for entry in rig.entries()] == [
        ("started", 0),
        ("tightened", 1),
    ]
    (fault,) = rig.live.faults
    assert "max_leverage: there is no such setting" in fault


def test_limits_that_cannot_hold_in_this_process_are_refused_and_the_record_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.refuse = "daily: needs a calendar"
    for values in ({"max_daily_drawdown": 0.015}, {"max_daily_drawdown": 0.03}):
        rig.write(values)
        rig.live.look(asked=True)
        assert rig.live.limits.max_daily_drawdown == 0.02
        assert rig.live.faults == ("daily: needs a calendar",)
        last = rig.entries()[-1]
        assert (last["outcome"], last["changes"], last["faults"]) == ("refused", [], ["daily: needs a calendar"])
    assert rig.counted("applied") == 0.0


def test_every_start_is_written_down_with_all_limits(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_daily_drawdown=0.015)
    (entry,) = rig.entries()
    assert (entry["outcome"], entry["by"]) == ("started", "the start of the test")
    assert entry["limits"]["max_daily_drawdown"] == 0.015


def test_the_thread_that_follows_takes_a_change_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    stopping = threading.Event()
    thread = threading.Thread(target=rig.live.follow, args=(stopping,), kwargs={"every_ms": 10})
    thread.start()
    try:
        rig.write({"max_daily_drawdown": 0.03})
        wait_until(lambda: rig.applied, what="the loosened limit")
    finally:
        stopping.set()
        rig.live.look_soon()
        thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_half_written_file_loosens_nothing(cut: int, tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_daily_drawdown=0.015, orders={"max_total_notional_usd": 1_000.0})
    before = rig.live.limits
    whole = yaml.safe_dump({"max_daily_drawdown": 0.014, "orders": {"max_total_notional_usd": 1_000.0}})
    rig.text(whole[:cut])
    rig.live.look()
    now = rig.live.limits
    assert now.max_daily_drawdown <= before.max_daily_drawdown
    assert now.orders.max_total_notional_usd is not None
    assert now.orders.max_total_notional_usd <= 1_000.0

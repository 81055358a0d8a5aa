"""Limits and schedule of the order monitor change while it runs: positions, working orders and volatilities stay."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from killswitch.risk.limits.limit_schedule import LimitSchedule, LimitScheduleSettings
from killswitch.risk.limits.limits import RiskLimits
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.limits.warning_ladder import LimitWarning

MINUTE_NS = 60_000_000_000


def limits(symbol_usd: float, total_usd: float = 1e9, edge_bps: float = 1.5) -> RiskLimits:
    return RiskLimits(max_inventory_usd=symbol_usd, max_total_notional=total_usd, edge_freeze_threshold_bps=edge_bps)


def steps(**sections: Any) -> LimitScheduleSettings:
    return LimitScheduleSettings.model_validate(sections)


def calm(*pairs: tuple[float, int]) -> list[dict[str, Any]]:
    return [{"up_to_ratio": ratio, "limit_pct": percent} for ratio, percent in pairs]


class Desk:
    """A monitor with a limit of 1,000 USD per symbol, and what it warned of."""

    def __init__(self, schedule: LimitScheduleSettings | None = None, **more: Any) -> None:
        self.ns = MINUTE_NS
        self.minute = 600.0
        self.told: list[LimitWarning] = []
        self.schedule = None
        if schedule is not None:
            self.schedule = LimitSchedule(schedule, session_clock=lambda: self.minute, clock=lambda: self.ns)
        self.monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=1_000.0,
            max_total_notional_usd=1e9,
            edge_freeze_threshold_bps=1.5,
            registry=CollectorRegistry(),
            schedule=self.schedule,
            on_warning=self.told.append,
            **more,
        )

    def most(self, symbol: str = "A") -> float:
        """The limit of a symbol as orders meet it, on the quick way and on the exact one."""
        exact = self.monitor.limits_of(symbol).symbol_usd
        quick = self.monitor._limits.quick(symbol)[0]
        assert exact == quick
        if self.monitor.get_position(symbol) == 0 and exact > 0:
            assert self.monitor.check_before_order(symbol, "buy", exact, 1.0)
            assert not self.monitor.check_before_order(symbol, "buy", exact + 0.01, 1.0)
        return exact


# ---- limits


def test_below_what_is_held_growing_orders_are_refused_and_reducing_ones_pass() -> None:
    desk = Desk()
    desk.monitor.on_fill("A", "buy", 8.0, 100.0)
    assert desk.monitor.reserve("w", "A", "buy", 1.0, 100.0) is None
    desk.monitor.set_limits(limits(500.0, 600.0))
    assert desk.monitor.get_position("A") == 8.0
    assert desk.monitor.working_orders() == 1
    refusal = desk.monitor.explain_order("A", "buy", 0.01, 100.0)
    assert refusal is not None
    assert (refusal.kind, refusal.limit) == ("symbol_limit", 500.0)
    other = desk.monitor.explain_order("B", "buy", 0.01, 100.0)
    assert other is not None
    assert other.kind == "total_limit"
    assert desk.monitor.explain_order("A", "sell", 2.0, 100.0) is None
    assert desk.monitor.reserve("r", "A", "sell", 2.0, 100.0) is None
    assert desk.monitor.explain_order("A", "sell", 20.0, 100.0) is not None  # beyond flat is no reducing
    desk.monitor.set_limits(limits(1_000.0))
    assert desk.monitor.explain_order("B", "buy", 1.0, 100.0) is None


def test_the_edge_is_held_against_the_new_threshold_and_a_freeze_stays() -> None:
    desk = Desk()
    desk.monitor.on_edge_update("A", 2.0)
    desk.monitor.set_limits(limits(1_000.0, edge_bps=3.0))
    desk.monitor.on_edge_update("A", 2.0)
    assert desk.monitor.is_frozen()
    desk.monitor.set_limits(limits(1e9, edge_bps=-9.0))
    assert desk.monitor.is_frozen()
    assert not desk.monitor.check_before_order("A", "buy", 1.0, 1.0)


def test_the_warning_ladder_looks_again_at_once_and_only_then() -> None:
    desk = Desk()
    for symbol in ("A", "B"):
        desk.monitor.on_fill(symbol, "buy", 4.0, 100.0)
    assert desk.told == []
    desk.monitor.set_limits(limits(410.0, 1_500.0))
    said = sorted((one.limit_name, one.symbol or "", one.step_pct) for one in desk.told)
    steps_of_both = [("symbol_limit", symbol, step) for symbol in "AB" for step in (50, 75, 85, 90, 95)]
    assert said == [*steps_of_both, ("total_limit", "", 50)]
    desk.told.clear()
    desk.monitor.set_limits(limits(410.0, 1_500.0))
    assert desk.told == []
    desk.monitor.set_limits(limits(1_000.0, 10_000.0))  # the way down tells nothing, and is taken
    assert desk.told == []
    desk.monitor.set_limits(limits(500.0, 10_000.0))
    assert sorted({one.step_pct for one in desk.told}) == [50, 75]


def test_one_warning_line_each_names_what_changed(logs: Any) -> None:
    desk = Desk()
    desk.monitor.set_limits(limits(500.0))
    desk.monitor.set_limits(limits(500.0))
    desk.monitor.set_schedule(steps(symbol_max_inventory_usd={"A": 10.0}))
    desk.monitor.set_schedule(None)
    said = [(line["event"], line["log_level"], line["changed"]) for line in logs if line["event"].endswith("changed")]
    assert said[0] == (
        "risk limits changed", "warning", [{"name": "max_inventory_usd", "before": 1_000.0, "after": 500.0}],
    )  # fmt: skip
    assert [one[0] for one in said[1:]] == ["limit schedule changed"] * 2
    assert {"name": "symbol_max_inventory_usd.A", "before": None, "after": 10.0} in said[1][2]
    assert {"name": "symbol_max_inventory_usd.A", "before": 10.0, "after": None} in said[2][2]


def test_limits_that_change_while_marks_are_asked_for_are_the_ones_that_hold() -> None:
    desk: Desk

    def mark(_symbol: str) -> float:
        if desk.monitor.limits.max_inventory_usd == 1_000.0:
            desk.monitor.set_limits(limits(50.0))
        return 100.0

    desk = Desk(get_mark_price=mark)
    desk.monitor.on_fill("B", "buy", 0.1, 100.0)
    refusal = desk.monitor.reserve("a", "A", "buy", 1.0, 100.0)
    assert refusal is not None
    assert (refusal.kind, refusal.limit) == ("symbol_limit", 50.0)


# ---- schedule


def test_known_volatilities_are_held_against_the_new_steps() -> None:
    desk = Desk(steps(volatility=calm((0.02, 100), (0.05, 50))))
    assert desk.schedule is not None
    desk.schedule.on_volatility("A", 0.01)
    desk.schedule.on_volatility("B", 0.03)
    assert [desk.most("A"), desk.most("B"), desk.most("C")] == [1_000.0, 500.0, 500.0]
    desk.monitor.set_schedule(steps(volatility=calm((0.005, 100), (0.02, 80), (0.04, 20), (0.1, 10))))
    assert [desk.most("A"), desk.most("B"), desk.most("C")] == [800.0, 200.0, 100.0]
    desk.monitor.set_schedule(steps(volatility=calm((0.02, 90), (0.05, 40)), volatility_max_age_ms=1_000))
    assert [desk.most("A"), desk.most("B")] == [900.0, 400.0]
    desk.ns += MINUTE_NS
    assert desk.most("A") == 400.0  # too old by the new age


def test_a_schedule_that_is_switched_off_and_on_again_still_knows_and_is_the_same_object() -> None:
    desk = Desk(steps(volatility=calm((0.02, 100), (0.05, 50))))
    assert desk.schedule is not None
    desk.schedule.on_volatility("A", 0.01)
    desk.monitor.set_schedule(None)
    assert desk.monitor.schedule is None
    assert desk.most("A") == desk.most("B") == 1_000.0
    desk.schedule.on_volatility("B", 0.01)
    desk.monitor.set_schedule(steps(volatility=calm((0.02, 70), (0.05, 50))))
    assert desk.monitor.schedule is desk.schedule
    assert [desk.most("A"), desk.most("B"), desk.most("C")] == [700.0, 700.0, 500.0]


def test_steps_that_come_later_know_the_ratios_of_before() -> None:
    desk = Desk(steps())
    assert desk.schedule is not None
    desk.schedule.on_volatility("A", 0.01)
    assert desk.most("A") == 1_000.0
    desk.monitor.set_schedule(steps(volatility=calm((0.02, 60), (0.05, 30))))
    assert [desk.most("A"), desk.most("B")] == [600.0, 300.0]


def test_sessions_need_a_clock_that_was_given_now_or_before() -> None:
    desk = Desk()
    night = steps(sessions=[{"from_minute": 0, "limit_pct": 10}])
    with pytest.raises(ValueError, match="need a session clock"):
        desk.monitor.set_schedule(night)
    assert desk.monitor.schedule is None
    with pytest.raises(ValueError, match="need a session clock"):
        desk.monitor.set_limits_and_schedule(limits(5.0), night)
    assert desk.monitor.limits.max_inventory_usd == 1_000.0
    desk.monitor.set_schedule(night, session_clock=lambda: 600.0)
    assert desk.most() == 100.0
    desk.monitor.set_schedule(steps(sessions=[{"from_minute": 0, "limit_pct": 20}]))
    assert desk.most() == 200.0
    other = Desk(steps(symbol_max_inventory_usd={"A": 5.0}))
    assert other.schedule is not None
    other.schedule._session_clock = None
    with pytest.raises(ValueError, match="need a session clock"):
        other.monitor.set_schedule(night)
    assert other.most("A") == 5.0


def test_a_schedule_warns_at_once() -> None:
    desk = Desk(steps())
    desk.monitor.on_fill("A", "buy", 4.9, 100.0)
    desk.monitor.set_schedule(steps(symbol_max_inventory_usd={"A": 500.0}))
    assert [one.step_pct for one in desk.told] == [50, 75, 85, 90, 95]


# ---- threads


def test_four_threads_of_orders_never_meet_a_mixture_that_is_looser_than_both() -> None:
    # 1,000 x 50 % and 500 x 100 %: both let 500 USD pass, a mixture of the two 1,000.
    desk = Desk(steps(sessions=[{"from_minute": 0, "limit_pct": 50}]))
    states = (
        (limits(1_000.0), steps(sessions=[{"from_minute": 0, "limit_pct": 50}])),
        (limits(500.0), steps(sessions=[{"from_minute": 0, "limit_pct": 100}])),
        (limits(1_000.0), steps(symbol_max_inventory_usd={"A": 500.0})),
    )
    done = threading.Event()
    faults: list[BaseException] = []
    each, flips = 2_000, 0

    def send(thread: int) -> None:
        try:
            for number in range(each):
                name = f"{thread}-{number}"
                assert desk.monitor.reserve(name, "A", "buy", 501.0, 1.0) is not None
                assert desk.monitor.explain_order("A", "buy", 501.0, 1.0) is not None
                assert desk.monitor.reserve(name, "A", "buy", 1.0, 1.0) is None
                desk.monitor.on_fill("A", "buy", 1.0, 1.0, client_order_id=name)
                desk.monitor.on_fill("A", "sell", 1.0, 1.0)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for one, schedule in states:
            desk.monitor.set_limits_and_schedule(one, schedule)
            flips += 1
    done.set()
    assert faults == []
    assert flips > 20
    assert desk.monitor.get_position("A") == 0.0
    assert desk.monitor.working_orders() == 0
    assert desk.monitor.blocks_total == 4 * each

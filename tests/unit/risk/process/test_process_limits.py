"""The limits of one trading process, from one file: monitor and controls of it, followed while orders go."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from killswitch.risk import ProcessLimits, RiskLimitsFile, RuleNotUsable
from killswitch.risk.events import FreezeEvent
from killswitch.risk.limits.limit_schedule import minute_in
from killswitch.risk.process.limits_audit import LimitsAudit, read_audit
from killswitch.risk.process.risk_limits_file import load_risk_limits
from killswitch.settings.settings_file import RiskFileError

LIMITS: dict[str, Any] = {
    "orders": {"max_inventory_usd_per_symbol": 10_000.0, "max_total_notional_usd": 50_000.0,
               "edge_freeze_threshold_bps": 1.5},
    "pretrade": {"order_size": {"max_value_usd": 6_000.0}, "permitted_symbols": ["BTCUSDT", "ETHUSDT"]},
}  # fmt: skip


class Rig:
    def __init__(self, folder: Path, limits: dict[str, Any] | None = None, **more: Any) -> None:
        self.path = folder / "limits.yaml"
        self.audit = folder / "audit.jsonl"
        self.frozen: list[FreezeEvent] = []
        self.writes = 0
        self.write(LIMITS if limits is None else limits)
        self.process = ProcessLimits(
            load_risk_limits(self.path), path=self.path, audit=LimitsAudit(self.audit), on_freeze=self.frozen.append,
            registry=CollectorRegistry(), **more,
        )  # fmt: skip

    def write(self, limits: dict[str, Any]) -> None:
        self.path.write_text(yaml.safe_dump(limits))
        self.writes += 1
        os.utime(self.path, ns=(self.writes, self.writes))

    def look(self, *, asked: bool = False) -> None:
        assert self.process._live is not None
        self.process._live.look(asked=asked)

    def admit(self, order: str, qty: float, symbol: str = "BTCUSDT", price: float = 50_000.0) -> str | None:
        refused = self.process.controls.admit(order, symbol, "buy", qty, price)
        return None if refused is None else refused.kind


def changed(**pretrade: Any) -> dict[str, Any]:
    return {**LIMITS, "pretrade": {**LIMITS["pretrade"], **pretrade}}


def test_every_part_of_the_file_holds(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert rig.admit("1", 0.1) is None
    assert rig.admit("2", 0.13) == "order_value"
    assert rig.admit("3", 0.11) == "symbol_limit", "the first order works and counts"
    assert rig.admit("4", 1.0, symbol="DOGEUSDT", price=1.0) == "symbol_not_permitted"
    rig.process.monitor.on_edge_update("BTCUSDT", 1.2)
    assert [event.trigger for event in rig.frozen] == ["edge_collapse"]
    assert rig.admit("5", 0.01) == "frozen"


def test_a_tightened_file_holds_for_the_next_order_and_what_works_goes_on_counting(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert rig.admit("1", 0.1) is None
    rig.write({**LIMITS, "orders": {**LIMITS["orders"], "max_inventory_usd_per_symbol": 6_000.0}})
    rig.look()
    assert rig.admit("2", 0.03) == "symbol_limit"
    assert rig.admit("3", 0.01) is None
    rig.write(changed(order_size={"max_value_usd": 400.0}))
    rig.look()
    assert rig.admit("4", 0.01) == "order_value"


def test_a_loosened_file_holds_at_the_second_look_and_releases_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process.monitor.freeze("by hand")
    rig.write(changed(order_size={"max_value_usd": 9_000.0}))
    rig.look()
    assert rig.process.controls.settings.order_size is not None
    assert rig.process.controls.settings.order_size.max_value_usd == 6_000.0
    rig.look()
    assert rig.process.controls.settings.order_size.max_value_usd == 9_000.0
    assert rig.process.monitor.is_frozen()
    assert [entry["outcome"] for entry in read_audit(rig.audit)[0]] == ["started", "applied"]


def test_a_schedule_and_counts_of_the_day_can_appear_while_it_runs(tmp_path: Path) -> None:
    rig = Rig(tmp_path, day=lambda: dt.date(2026, 1, 30), session_clock=lambda: 600.0)
    schedule = {"sessions": [{"from_minute": 0, "limit_pct": 50}]}
    rig.write({**changed(daily={"max_orders": 1}), "orders": {**LIMITS["orders"], "schedule": schedule}})
    rig.look(asked=True)
    assert rig.process.faults() == ()
    assert rig.admit("1", 0.11) == "symbol_limit", "half of 10,000 USD"
    assert rig.admit("2", 0.1) is None
    assert rig.admit("3", 0.001) == "daily_orders"


def test_limits_by_time_of_day_without_a_clock_are_at_their_tightest(tmp_path: Path) -> None:
    schedule = {"sessions": [{"from_minute": 0, "limit_pct": 100}, {"from_minute": 900, "limit_pct": 10}]}
    rig = Rig(tmp_path, {**LIMITS, "orders": {**LIMITS["orders"], "schedule": schedule}})
    assert rig.admit("1", 0.03) == "symbol_limit"


def zone_where_it_is_noon() -> str:
    hours_west = dt.datetime.now(dt.UTC).hour - 12
    return f"Etc/GMT{hours_west:+d}" if hours_west else "Etc/GMT"


NOON = [
    {"from_minute": 0, "limit_pct": 10},
    {"from_minute": 600, "limit_pct": 100},
    {"from_minute": 900, "limit_pct": 5},
]


def timed(**schedule: Any) -> dict[str, Any]:
    return {**LIMITS, "orders": {**LIMITS["orders"], "schedule": {"sessions": NOON, **schedule}}}


def test_limits_by_time_of_day_follow_the_time_zone_of_the_file_and_change_with_it(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(yaml.safe_dump(timed(time_zone=zone_where_it_is_noon())))
    process = ProcessLimits.of_file(path, registry=CollectorRegistry())
    assert process.monitor.limits_of("BTCUSDT").symbol_usd == 10_000.0
    rig = Rig(tmp_path, timed())
    assert rig.process.monitor.limits_of("BTCUSDT").symbol_usd == 500.0
    rig.write(timed(time_zone=zone_where_it_is_noon()))
    rig.look(asked=True)
    assert rig.process.monitor.limits_of("BTCUSDT").symbol_usd == 10_000.0
    rig.write(timed())
    rig.look(asked=True)
    assert rig.process.monitor.limits_of("BTCUSDT").symbol_usd == 500.0


def test_a_session_clock_that_is_given_stands_above_the_time_zone(tmp_path: Path) -> None:
    rig = Rig(tmp_path, timed(time_zone=zone_where_it_is_noon()), session_clock=lambda: 1_000.0)
    assert rig.process.monitor.limits_of("BTCUSDT").symbol_usd == 500.0


def test_the_time_of_day_in_a_zone_knows_summer_time() -> None:
    def at(month: int) -> float:
        noon = dt.datetime(2026, month, 15, 12, 30, tzinfo=dt.UTC)
        return minute_in("Europe/London", wall_ns=lambda: int(noon.timestamp()) * 10**9)()

    assert (at(1), at(7)) == (750.0, 810.0)


def test_a_file_or_a_rule_that_cannot_be_used_is_a_sentence_before_anything_trades(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("pretrade: {order_size: {max_value_usd: 0}}\n")
    with pytest.raises(RiskFileError, match=r"limits.yaml:1: pretrade.order_size.max_value_usd: input should be great"):
        ProcessLimits.of_file(path)
    path.write_text("rules: {orders: [{rule: 'nowhere:Rule'}]}\n")
    with pytest.raises(RuleNotUsable, match="the rule nowhere:Rule cannot be imported"):
        ProcessLimits.of_file(path, registry=CollectorRegistry())


def test_limits_given_as_objects_follow_nothing() -> None:
    process = ProcessLimits(RiskLimitsFile(), registry=CollectorRegistry())
    process.look_soon()
    assert process.faults() == ()
    assert process.controls.admit("1", "X", "buy", 1.0, 1.0) is None


# ---- a file that is followed without an audit


def test_nothing_is_lost__without_an_audit_the_file_may_tighten_and_never_loosens(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(yaml.safe_dump(LIMITS))
    process = ProcessLimits.of_file(path, registry=CollectorRegistry())
    assert process._live is not None

    def size_after(**pretrade: Any) -> float | None:
        path.write_text(yaml.safe_dump(changed(**pretrade)))
        for asked in (False, False, True):
            process._live.look(asked=asked)  # type: ignore[union-attr]
        size = process.controls.settings.order_size
        return None if size is None else size.max_value_usd

    assert size_after(order_size={"max_value_usd": 9_000.0}) == 6_000.0
    (fault,) = process.faults()
    assert "give this process audit=LimitsAudit(path)" in fault
    assert size_after(order_size=None) == 6_000.0
    assert size_after(order_size={"max_value_usd": 5_000.0}) == 5_000.0
    assert process.faults() == ()
    # Both ways at once: what tightens holds, what loosens does not.
    assert size_after(order_size={"max_value_usd": 4_000.0}, permitted_symbols=None) == 4_000.0
    assert process.controls.settings.permitted_symbols == ("BTCUSDT", "ETHUSDT")
    assert len(process.faults()) == 1


# ---- what a market order is worth


def market(process: ProcessLimits, name: str, qty: float, side: str = "buy", symbol: str = "BTCUSDT") -> Any:
    return process.controls.admit(name, symbol, side, qty)


@pytest.mark.parametrize("told", ["on_price", "on_quote"])
def test_a_market_order_counts_at_the_newest_price_and_without_one_it_is_refused(tmp_path: Path, told: str) -> None:
    process = Rig(tmp_path, {**LIMITS, "pretrade": {}}).process

    def price(usd: float) -> None:
        prices = (usd,) if told == "on_price" else (usd - 1.0, usd + 1.0)
        getattr(process.controls, told)("BTCUSDT", *prices)

    refusal = market(process, "1", 0.0001)
    assert refusal.kind == "price_missing"
    assert refusal.sentence.startswith("BTCUSDT: a market order without a price of the symbol has no known value")
    price(float("nan"))
    process.controls.on_quote("BTCUSDT", 61_000.0, 59_000.0)  # crossed
    assert market(process, "1", 0.0001).kind == "price_missing"
    price(60_000.0)
    refusal = market(process, "1", 9_999.0)
    assert (refusal.kind, refusal.value) == ("symbol_limit", 9_999.0 * 60_000.0)
    assert market(process, "1", 0.1) is None
    assert process.monitor.get_potential_notional("BTCUSDT") == 6_000.0
    assert market(process, "2", 0.0001, symbol="ETHUSDT").kind == "price_missing"


def test_what_is_held_is_worth_what_the_market_says(tmp_path: Path) -> None:
    process = Rig(tmp_path, {**LIMITS, "pretrade": {}}).process
    process.controls.on_fill("BTCUSDT", "buy", 0.1, 60_000.0)
    process.controls.on_price("BTCUSDT", 99_000.0)
    assert process.monitor.get_total_notional() == pytest.approx(9_900.0)
    assert process.controls.admit("1", "BTCUSDT", "buy", 0.002, 99_000.0).kind == "symbol_limit"  # type: ignore[union-attr]
    process.controls.on_price("BTCUSDT", float("inf"))
    process.controls.on_quote("BTCUSDT", 61_000.0, 59_000.0)
    assert process.monitor.get_total_notional() == pytest.approx(9_900.0), "a bad price is worth nothing"
    process.controls.on_price("BTCUSDT", 60_000.0)
    assert process.controls.admit("1", "BTCUSDT", "buy", 0.002, 60_000.0) is None

"""Pre-trade checks: the gate with both limits, and every control at once, beside a bare check of the same process.

Every call is timed on its own, check and baseline in turn, so that both meet the same noise; the cost of reading the
timer is in both. Of several runs the median counts. The figures are for reading, never for passing or failing.
"""

from __future__ import annotations

import datetime as dt
import gc
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.clock import now_ns
from killswitch.gate import Gate, GateWriter
from killswitch.risk.limits.limit_schedule import LimitSchedule, LimitScheduleSettings
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.pretrade import PreTradeControls
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from tests.bench.timed_calls import no_collection, percentile

CALLS = 20_000
WARM_UP = 2_000
ROUNDS = 5
SYMBOL_COUNTS = (10, 100, 10_000)
MIDDLE = 100
MANY_SYMBOLS_RATIO = 1.2
WORKING_AT_ONCE = 8
PERMIT_NS = 3_000_000_000_000  # 50 minutes: longer than any run, within what a gate accepts
AN_HOUR_MS = 3_600_000
MEMORY_SYMBOLS = 10_000
MEMORY_MAX_BYTES = 1_024

BASELINE = "dict lookup and two comparisons"
Check = Callable[[str, str, float, float], object]


class Bare:
    """The baseline: one look into a dict of positions and two comparisons, with no lock, no freeze and no bad input."""

    def __init__(self, positions: dict[str, float], total_usd: float) -> None:
        self._positions = positions
        self._total_usd = total_usd
        self._symbol_limit_usd = 1e9
        self._total_limit_usd = 1e12

    def check(self, symbol: str, _side: str, qty: float, price: float) -> bool:
        after_usd = (self._positions.get(symbol, 0.0) + qty) * price
        return after_usd <= self._symbol_limit_usd and self._total_usd + after_usd <= self._total_limit_usd


def run(calls: int = CALLS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure and return, in microseconds, a row per kind of check; then 10,000 symbols beside 10, then memory."""
    return [*_check_rows(calls, rounds), *_symbol_rows(calls, rounds), *_memory_rows()]


def _check_rows(calls: int, rounds: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gate"
        with GateWriter(path, cluster="bench", node="n1") as writer, Gate.open(path) as gate:
            writer.update((), epoch=1, permit_deadline_ns=now_ns() + PERMIT_NS)
            for symbols in SYMBOL_COUNTS:
                bench = _Bench(symbols)
                kinds: dict[str, tuple[Check, float | None]] = {
                    "RuntimeRiskMonitor alone": (bench.plain.check_before_order, 1.5),
                    "every control": (bench.controls_explain(), 3.0),
                }
                if symbols == MIDDLE:
                    kinds["the same, counted, reserved, released"] = (bench.admit(), None)
                    kinds["limits by time and volatility"] = (bench.monitor.check_before_order, None)
                    kinds["gate and limits"] = (bench.gate_and_limits(gate), 2.0)
                for what, (check, target_us) in kinds.items():
                    yield bench.row(f"{what}, {symbols:,} held", check, target_us, calls=calls, rounds=rounds)
            bench = _Bench(MIDDLE)
            reducing = bench.gate_and_limits(gate)
            what = f"gate and limits, reducing, {MIDDLE} held"
            yield bench.row(what, reducing, 2.0, calls=calls, rounds=rounds, side="sell")


def _symbol_rows(calls: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The same check with many symbols held beside it with few: in the same symbols, and in any that is held.

    In the same symbols the work alone is measured. In any of 10,000 the machine's caches are too small for what is held
    of them, so the bare dict beside it gets slower as well: its row says by how much.
    """
    few, many = _Bench(SYMBOL_COUNTS[0]), _Bench(SYMBOL_COUNTS[-1])
    kinds: dict[str, tuple[Check, Check]] = {
        "RuntimeRiskMonitor alone": (many.plain.check_before_order, few.plain.check_before_order),
        "every control": (many.controls_explain(), few.controls_explain()),
        "a bare dict": (many.bare.check, few.bare.check),
    }
    for where, names in (("in the same 10 symbols", few.names), ("in any symbol", many.names)):
        for what, (with_many, with_few) in kinds.items():
            took: tuple[list[list[int]], list[list[int]]] = ([], [])
            for number in range(rounds):
                pair = _interleaved(with_many, with_few, names, "buy", calls, seed=number, others=few.names)
                took[0].append(pair[0])
                took[1].append(pair[1])
            beside = f"{len(few.names)} symbols held; here {len(many.names):,}"
            yield _row(f"{what}, {where}", beside, *took) | {"target_ratio": MANY_SYMBOLS_RATIO}


class _Bench:
    """A monitor that holds something of every symbol, and controls that have all sections on."""

    def __init__(self, symbols: int) -> None:
        self.names = [f"S{number:05d}USDT" for number in range(symbols)]
        self.plain, self.monitor, self.controls = make(self.names)
        self.bare = Bare(dict(self.monitor.get_positions()), self.monitor.get_total_notional())

    def gate_and_limits(self, gate: Gate) -> Check:
        allows, check_before_order = gate.allows, self.plain.check_before_order

        def full(symbol: str, side: str, qty: float, price: float) -> bool:
            return allows(symbol, venue="bybit") and check_before_order(symbol, side, qty, price)

        return full

    def controls_explain(self) -> Check:
        explain_order = self.controls.explain_order

        def full(symbol: str, side: str, qty: float, price: float) -> bool:
            return explain_order(symbol, side, qty, price, strategy="mm") is None

        return full

    def admit(self) -> Check:
        """Send an order, and end an earlier one: as a market maker does, a few work at any time."""
        admit, release = self.controls.admit, self.controls.release
        working: list[str] = []
        sent = 0

        def full(symbol: str, side: str, qty: float, price: float) -> bool:
            nonlocal sent
            sent += 1
            name = f"o{sent}"
            working.append(name)
            if len(working) > WORKING_AT_ONCE:
                release(working.pop(0))
            return admit(name, symbol, side, qty, price, strategy="mm") is None

        return full

    def row(
        self, what: str, check: Check, target_us: float | None, *, calls: int, rounds: int, side: str = "buy"
    ) -> dict[str, Any]:
        assert check(self.names[0], side, 0.1, 1_000.0), "the bench must measure orders that pass"
        ours, baseline = [], []
        for number in range(rounds):
            pair = _interleaved(check, self.bare.check, self.names, side, calls, seed=number)
            ours.append(pair[0])
            baseline.append(pair[1])
        assert self.monitor.blocks_total == self.plain.blocks_total == 0, "the bench must measure orders that pass"
        assert not self.controls.refused, f"the bench must measure orders that pass: {self.controls.refused}"
        row = _row(what, BASELINE, ours, baseline)
        return row if target_us is None else row | {"target": f"{target_us:g}, p99 10"}


def _row(what: str, beside: str, ours: list[list[int]], baseline: list[list[int]]) -> dict[str, Any]:
    """Of several runs the median counts."""
    row: dict[str, Any] = {"name": what, "unit": "us", "baseline_name": beside}
    for name, per_cent in (("p50", 50), ("p99", 99)):
        own = statistics.median(percentile(one, per_cent) for one in ours)
        other = statistics.median(percentile(one, per_cent) for one in baseline)
        row[name] = round(own / 1_000, 3)
        row[f"baseline_{name}"] = round(other / 1_000, 3)
        row[f"ratio_{name}"] = round(own / other, 2)
    return row


def make(names: list[str]) -> tuple[RuntimeRiskMonitor, RuntimeRiskMonitor, PreTradeControls]:
    """Return a monitor with fixed limits, and one with a schedule under controls that have every section on."""
    registry = CollectorRegistry()
    schedule = LimitSchedule(
        LimitScheduleSettings.model_validate(
            {
                "symbol_max_inventory_usd": {names[0]: 9e8},
                "sessions": [{"from_minute": 0, "limit_pct": 100}, {"from_minute": 960, "limit_pct": 50}],
                "volatility": [{"up_to_ratio": 0.02, "limit_pct": 100}, {"up_to_ratio": 0.05, "limit_pct": 50}],
                "volatility_max_age_ms": AN_HOUR_MS,
            }
        ),
        session_clock=lambda: 600.0,
    )
    wide = {"max_inventory_usd_per_symbol": 1e9, "max_total_notional_usd": 1e12, "edge_freeze_threshold_bps": 1.5}
    plain = RuntimeRiskMonitor(registry=registry, **wide)
    monitor = RuntimeRiskMonitor(registry=registry, schedule=schedule, **wide)
    today = dt.datetime.now(dt.UTC).date()
    controls = PreTradeControls(every_control(names), monitor=monitor, day=lambda: today, registry=registry)
    for name in names:
        for one in (plain, monitor):
            one.on_fill(name, "buy", 0.5, 1_000.0)
        controls.on_quote(name, 999.5, 1_000.5)
        schedule.on_volatility(name, 0.01)
    return plain, monitor, controls


def every_control(names: list[str]) -> PreTradeSettings:
    """All sections on, so wide that every order passes, and in force all the same."""
    many = 10**6
    return PreTradeSettings.model_validate(
        {
            "permitted_symbols": tuple(names),
            "order_size": {"max_quantity": 1e3, "max_value_usd": 1e6, "symbols": {names[0]: {"max_quantity": 1e3}}},
            "price_collar": {
                "max_deviation_bps": 500.0,
                "symbols_max_deviation_bps": {names[0]: 400.0},
                "over_time_bps": 1_000.0,
            },
            "throttle": {"orders_per_s": 10**9, "symbol_orders_per_s": 10**9},
            "duplicates": {"max_same_orders": many, "window_ms": 1_000},
            "repeated_executions": {"max_executions": many},
            "working_orders": {"max_total": many, "max_per_symbol": many},
            "daily": {"max_orders": 10**9, "max_cancels": 10**9, "max_losses": many, "max_loss_usd": 1e6},
            "input_health": {"max_age_ms": AN_HOUR_MS, "frozen_after_ms": AN_HOUR_MS},
            "control_budget_ms": 60_000.0,  # a machine that is busy elsewhere must not end the bench
        }
    )


def _interleaved(
    ours: Check,
    baseline: Check,
    names: list[str],
    side: str,
    calls: int,
    *,
    seed: int,
    others: list[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Time both in turn; the baseline is asked in the same symbols, or in ``others``."""
    picked = random.Random(seed).choices(names, k=calls)
    beside = picked if others is None else random.Random(seed).choices(others, k=calls)
    took: tuple[list[int], list[int]] = ([], [])
    timer = time.perf_counter_ns
    with no_collection():
        for pair in [*zip(picked[:WARM_UP], beside, strict=False), *zip(picked, beside, strict=True)]:
            for index, check in enumerate((ours, baseline)):
                before = timer()
                check(pair[index], side, 0.1, 1_000.0)
                took[index].append(timer() - before)
    warm = len(took[0]) - calls
    return took[0][warm:], took[1][warm:]


def _memory_rows() -> Iterator[dict[str, Any]]:
    """Bytes for each symbol: held in a monitor alone, and with prices, throttles and volatility of every control."""
    names = [f"S{number:05d}USDT" for number in range(MEMORY_SYMBOLS)]
    few = _memory_of(names[:10])
    many = _memory_of(names)
    grown = MEMORY_SYMBOLS - 10
    for index, what in enumerate(
        ("a symbol held, limits alone", "a symbol held, every control on", "the first working order of a symbol")
    ):
        each = round((many[index] - few[index]) / grown)
        yield {
            "name": f"memory: {what}",
            "unit": "B",
            "p50": each,
            "p99": each,
            "baseline_name": "",
            "target": f"< {MEMORY_MAX_BYTES} B" if index < 2 else None,
        }


def _memory_of(names: list[str]) -> tuple[int, int, int]:
    gc.collect()
    tracemalloc.start()
    try:
        settings = PreTradeSettings.model_validate({**every_control(names[:1]).model_dump(), "permitted_symbols": None})
        registry = CollectorRegistry()
        monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=1e9,
            max_total_notional_usd=1e12,
            edge_freeze_threshold_bps=1.5,
            registry=registry,
        )
        controls = PreTradeControls(settings, monitor=monitor, day=lambda: dt.date(2026, 1, 1), registry=registry)
        start = tracemalloc.get_traced_memory()[0]
        for number, name in enumerate(names):
            monitor.on_fill(name, "buy", 0.5 + number, 1_000.0 + number / 7)
        held = tracemalloc.get_traced_memory()[0] - start
        for number, name in enumerate(names):
            controls.on_quote(name, 999.5 + number / 7, 1_000.5 + number / 7)
            controls.admit("x", name, "buy", 0.1, 1_000.0 + number / 7)
            controls.release("x")
        controls._chain._counting[-1]._sent.clear()  # type: ignore[attr-defined] # of the last second's orders, not of symbols
        every = tracemalloc.get_traced_memory()[0] - start
        for number, name in enumerate(names):
            monitor.reserve(f"o{number}", name, "buy", 0.1 + number, 1_000.0 + number / 7)
        monitor.get_potential_notional()
        return held, every, tracemalloc.get_traced_memory()[0] - start - every
    finally:
        tracemalloc.stop()


def main() -> None:
    """Print the rows."""
    for row in run():
        beside = ""
        if row["baseline_name"]:
            beside = (
                f"; {row['baseline_name']}: p50 {row['baseline_p50']}, p99 {row['baseline_p99']}; "
                f"ratio {row['ratio_p50']} / {row['ratio_p99']}"
            )
        aim = row.get("target") or row.get("target_ratio") or "none"
        print(f"{row['name']}: p50 {row['p50']} {row['unit']}, p99 {row['p99']}{beside} (aim {aim})")


if __name__ == "__main__":
    main()

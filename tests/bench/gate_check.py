"""What a gate check costs, beside the least that any check could cost.

The baseline is a class with a method that reads one word of the mapped page and the clock, and compares: the same load,
the same clock, no product. Both run in the same process on the same page. Rounds alternate between them, in an order
that swaps every round, so that a slow phase of a noisy machine falls on both.

``p50``: each sample is the mean of a batch of 1000 calls, so the cost of the two readings of the measuring clock
vanishes; the median is over all batches. ``p99``: each sample is the mean of a batch of 20 calls, short enough that a
hiccup shows instead of being averaged away, and long enough that the measuring clock (some 50 ns) stays a few per cent.
The empty loop is not subtracted: it is in both. Figures are nanoseconds per call; what counts is the ratio.

A figure is only as good as its neighbour: compare rows of one run, never of two.
"""

from __future__ import annotations

import mmap
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from killswitch.clock import CLOCK_ID, now_ns
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import Scope
from killswitch.gate import Gate, GateWriter
from killswitch.gate.layout import OPEN_UNTIL_OFFSET, TOTAL_BYTES

ROUNDS = 300
LONG_BATCH = 1000
SHORT_BATCH = 20
SHORT_BATCHES_PER_ROUND = 50
TARGET_RATIO = 1.3
PERMIT_NS = 60_000_000_000
OPEN_WORD = OPEN_UNTIL_OFFSET // 8


class Baseline:
    """One word of the mapped page, one clock read, one comparison."""

    def __init__(self, words: memoryview) -> None:
        self.words = words

    def allows(self) -> bool:
        """True while the word is ahead of the clock."""
        return time.clock_gettime_ns(CLOCK_ID) < self.words[OPEN_WORD]


Batch = Callable[[int], float]
"""Makes so many calls and returns nanoseconds per call."""


# One loop per caller: sharing one would make its call site see several types and measure the interpreter's misses.
def _baseline_batch(baseline: Baseline) -> Batch:
    def batch(calls: int) -> float:
        begin = perf_counter_ns()
        for _ in range(calls):
            baseline.allows()
        return (perf_counter_ns() - begin) / calls

    return batch


def _bare_batch(gate: Gate) -> Batch:
    def batch(calls: int) -> float:
        begin = perf_counter_ns()
        for _ in range(calls):
            gate.allows()
        return (perf_counter_ns() - begin) / calls

    return batch


def _symbol_batch(gate: Gate) -> Batch:
    def batch(calls: int) -> float:
        begin = perf_counter_ns()
        for _ in range(calls):
            gate.allows("BTCUSDT")
        return (perf_counter_ns() - begin) / calls

    return batch


def _named_batch(gate: Gate) -> Batch:
    def batch(calls: int) -> float:
        begin = perf_counter_ns()
        for _ in range(calls):
            gate.allows("BTCUSDT", venue="bybit", desk="delta1")
        return (perf_counter_ns() - begin) / calls

    return batch


def _measure(batches: dict[str, Batch], rounds: int) -> dict[str, tuple[float, float]]:
    """Return p50 and p99 in nanoseconds per call for each, measured in alternation."""
    long: dict[str, list[float]] = {name: [] for name in batches}
    short: dict[str, list[float]] = {name: [] for name in batches}
    for batch in batches.values():  # warm up: the interpreter specialises a loop after its first runs
        batch(LONG_BATCH)
    for index in range(rounds):
        names = list(batches) if index % 2 else list(reversed(batches))
        for name in names:
            long[name].append(batches[name](LONG_BATCH))
            short[name] += [batches[name](SHORT_BATCH) for _ in range(SHORT_BATCHES_PER_ROUND)]
    return {name: (statistics.median(long[name]), statistics.quantiles(short[name], n=100)[98]) for name in batches}


def _row(name: str, figures: dict[str, tuple[float, float]], target: float | None) -> dict[str, Any]:
    p50, p99 = figures[name]
    base_p50, base_p99 = figures["bare word read and clock read"]
    return {
        "name": name,
        "unit": "ns",
        "p50": round(p50, 1),
        "p99": round(p99, 1),
        "baseline_name": "bare word read and clock read",
        "baseline_p50": round(base_p50, 1),
        "baseline_p99": round(base_p99, 1),
        "ratio_p50": round(p50 / base_p50, 3),
        "ratio_p99": round(p99 / base_p99, 3),
        "target_ratio": target,
    }


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure, and return one row per way of asking. The target is for an open gate; a scoped freeze has none."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "gate"
        with GateWriter(path, cluster="bench", node="n1") as writer, Gate.open(path) as gate, path.open("rb") as file:
            writer.update([], epoch=1, permit_deadline_ns=now_ns() + PERMIT_NS)
            words = memoryview(mmap.mmap(file.fileno(), TOTAL_BYTES, prot=mmap.PROT_READ)).cast("Q")
            batches = {
                "bare word read and clock read": _baseline_batch(Baseline(words)),
                "gate.allows()": _bare_batch(gate),
                "gate.allows(symbol)": _symbol_batch(gate),
                "gate.allows(symbol, venue=, desk=)": _named_batch(gate),
            }
            stop = threading.Event()
            renewer = threading.Thread(target=_renew, args=(writer, stop), daemon=True)
            renewer.start()
            figures = _measure(batches, rounds)
            stop.set()
            renewer.join()
            rows = [_row(name, figures, TARGET_RATIO) for name in list(batches)[1:]]
            rows.append(_scoped_row(writer, gate, figures))
            return rows


def _renew(writer: GateWriter, stop: threading.Event) -> None:
    """Renew the permit as an agent does, so that the word changes under the reader as it does in life."""
    while not stop.wait(0.5):
        writer.extend(now_ns() + PERMIT_NS)


def _scoped_row(writer: GateWriter, gate: Gate, figures: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """The slow path: another symbol is frozen, so the rows are looked at."""
    freeze = Freeze("f-1", Scope.parse("symbol:ETHUSDT"), Mode.FROZEN, "manual", "bench", "bench", "now")
    writer.update([freeze], epoch=2, permit_deadline_ns=now_ns() + PERMIT_NS)
    name = "gate.allows(symbol), another symbol is frozen"
    batch = _symbol_batch(gate)
    long = [batch(LONG_BATCH // 10) for _ in range(50)]
    short = [batch(SHORT_BATCH) for _ in range(250)]
    measured = {**figures, name: (statistics.median(long), statistics.quantiles(short, n=100)[98])}
    return _row(name, measured, None)


def main() -> None:
    """Print the rows as a table."""
    print(f"{'what':52} {'p50':>9} {'p99':>9} {'ratio p50':>10} {'ratio p99':>10} {'target':>7}")
    rows = run()
    base = rows[0]
    print(f"{base['baseline_name']:52} {base['baseline_p50']:9.1f} {base['baseline_p99']:9.1f} {1:10.2f} {1:10.2f}")
    for row in rows:
        target = f"{row['target_ratio']:.2f}" if row["target_ratio"] else "-"
        print(
            f"{row['name']:52} {row['p50']:9.1f} {row['p99']:9.1f} {row['ratio_p50']:10.2f} {row['ratio_p99']:10.2f} "
            f"{target:>7}"
        )


if __name__ == "__main__":
    main()

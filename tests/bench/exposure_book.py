"""The exposure book and the decision table: what one event costs, with 10 symbols held and with 10,000.

The baseline is the least that could be done instead: a dict of positions and one running sum in floats, without working
orders, buckets, groups or bad input. The figures are for reading, never for passing or failing.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.policy_monitor import decide_for
from killswitch.risk.exposure.policy_settings import ExposureSettings
from killswitch.risk.exposure.policy_table import PolicyDecisionTable, Regime
from tests.bench.timed_calls import figures_beside, no_collection, print_rows

CALLS = 20_000
WARM_UP = 2_000
SYMBOL_COUNTS = (10, 100, 10_000)
GROUPS = 22
BASELINE = "dict of positions and one sum in floats"


class Bare:
    """The baseline."""

    def __init__(self) -> None:
        self._positions: dict[str, float] = {}
        self._gross_usd = 0.0

    def fill(self, symbol: str, qty: float, price: float) -> None:
        before = self._positions.get(symbol, 0.0)
        self._positions[symbol] = after = before + qty
        self._gross_usd += (abs(after) - abs(before)) * price


def run(calls: int = CALLS) -> list[dict[str, Any]]:
    """Measure and return one row per event and number of symbols, in microseconds, and one on memory."""
    rows = []
    for symbols in SYMBOL_COUNTS:
        names, book = _book(symbols)
        bare = Bare()
        events: dict[str, Callable[[str], object]] = {
            "fill": lambda name, book=book: book.on_fill(name, "buy", 0.1, 101.5, bucket="LT"),
            "order, and over": lambda name, book=book: _order(book, name),
            "mark": lambda name, book=book: book.on_mark(name, 100.25),
            "all figures": lambda _name, book=book: book.figures(),
        }
        for kind, event in events.items():
            rows.append(_row(f"exposure: {kind}, {symbols} symbols held", event, bare, names, calls))
    table = PolicyDecisionTable()
    figures = book.figures()
    rows.append(_row("policy decision", lambda _: decide_for(table, figures, Regime.MID, 200.0), bare, names, calls))
    rows.append(_memory())
    return rows


def _order(book: ExposureBook, name: str) -> None:
    book.on_order("o", name, "sell", 0.3, 101.5, bucket="LT")
    book.on_order_over("o")


def _book(symbols: int) -> tuple[list[str], ExposureBook]:
    names = [f"S{number:05d}USDT" for number in range(symbols)]
    groups = {f"group{number}": names[number::GROUPS] for number in range(GROUPS)}
    book = ExposureBook(ExposureSettings(groups=groups))
    book.set_equity(1e9)
    for name in names:
        book.on_fill(name, "buy", 0.5, 1_000.0, bucket="LT")
    return names, book


def _memory() -> dict[str, Any]:
    symbols = 10_000
    names = [f"S{number:05d}USDT" for number in range(symbols)]
    tracemalloc.start()
    book = ExposureBook()
    for name in names:
        book.on_fill(name, "buy", 0.5, 1_000.0, bucket="LT")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(book.positions()) == symbols
    per_symbol = round(held / symbols)
    return {
        "name": "exposure: memory per symbol held",
        "unit": "B",
        "baseline_name": None,
        "p50": per_symbol,
        "p99": per_symbol,
        "target": "< 1024 B",
    }


def _row(name: str, event: Callable[[str], object], bare: Bare, names: list[str], calls: int) -> dict[str, Any]:
    picked = random.Random(1).choices(names, k=calls)
    took: tuple[list[int], list[int]] = ([], [])
    timer = time.perf_counter_ns
    with no_collection():
        for symbol in [*picked[:WARM_UP], *picked]:
            before = timer()
            event(symbol)
            between = timer()
            bare.fill(symbol, 0.1, 101.5)
            took[0].append(between - before)
            took[1].append(timer() - between)
    row: dict[str, Any] = {"name": name, "unit": "us", "baseline_name": BASELINE}
    return row | figures_beside(*(one[min(WARM_UP, calls) :] for one in took))


def main() -> None:
    """Print the rows."""
    print_rows(run())


if __name__ == "__main__":
    main()

"""What benches share that time single calls: percentiles beside a baseline, no collection in between, plain rows."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

PERCENTILES = (("p50", 50), ("p99", 99))


def percentile(values: Sequence[int], per_cent: int) -> float:
    """The value below which so many per cent of them are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * per_cent // 100)]


def figures_beside(ours_ns: Sequence[int], baseline_ns: Sequence[int]) -> dict[str, float]:
    """p50 and p99 of both in microseconds, and their ratios."""
    figures = {}
    for name, per_cent in PERCENTILES:
        ours, baseline = percentile(ours_ns, per_cent), percentile(baseline_ns, per_cent)
        figures[name] = round(ours / 1_000, 3)
        figures[f"baseline_{name}"] = round(baseline / 1_000, 3)
        figures[f"ratio_{name}"] = round(ours / baseline, 2)
    return figures


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out: it would be counted on whichever call it falls."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print one line for each row of a bench that is run alone."""
    for row in rows:
        beside = ""
        if row.get("baseline_name"):
            beside = (
                f"; {row['baseline_name']}: p50 {row.get('baseline_p50', '-')}, p99 {row.get('baseline_p99', '-')}, "
                f"ratio {row.get('ratio_p50', '-')}"
            )
        print(f"{row['name']}: p50 {row['p50']} {row['unit']}, p99 {row['p99']} {row['unit']}{beside}")

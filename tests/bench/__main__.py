"""All figures, each beside its baseline in the same run: ``python -m tests.bench`` or ``make bench``.

Nothing here passes or fails. The table says what was measured, what the baseline took, the ratio, and the target where
there is one; the JSON file holds all rows in full and the machine that they were measured on.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench import (
    account_monitor,
    exposure_book,
    figures,
    freeze_fanout,
    gate_check,
    idle_agent,
    pretrade_check,
    risk_peers,
    risk_threads,
)

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100
Row = dict[str, Any]

FULL: dict[str, Callable[[], list[Row]]] = {
    "gate_check": gate_check.run,
    "pretrade_check": pretrade_check.run,
    "freeze_fanout": freeze_fanout.run,
    "idle_agent": idle_agent.run,
    "account_monitor": account_monitor.run,
    "exposure_book": exposure_book.run,
    "figures": figures.run,
    "risk_threads": risk_threads.run,
    "risk_peers": risk_peers.run,
}
QUICK: dict[str, Callable[[], list[Row]]] = {
    "gate_check": lambda: gate_check.run(rounds=50),
    "pretrade_check": lambda: pretrade_check.run(calls=4_000),
    "freeze_fanout": lambda: freeze_fanout.run(gates=8, rounds=5, proof_rounds=3, kinds=("etcd",)),
    "idle_agent": lambda: idle_agent.run(seconds=6),
    "account_monitor": lambda: account_monitor.run(ticks=5_000),
    "exposure_book": lambda: exposure_book.run(calls=4_000),
    "figures": lambda: figures.run(calls=300),
    "risk_threads": lambda: risk_threads.run(calls=8_000),
    "risk_peers": lambda: risk_peers.run(calls=4_000, rounds=3),
}

COLUMNS = (("figure", 0), ("unit", 4), ("p50", 6), ("p99", 6), ("baseline", 8), ("ratio", 11), ("target", 11))
"""Name and width of each; the first takes what is left. Ratios are those of p50 and of p99; the baseline is its p50."""


def machine() -> dict[str, Any]:
    """What a reader has to know to compare these figures with others."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def table(benches: dict[str, list[Row]], facts: dict[str, Any]) -> str:
    """Return everything as one table of at most :data:`WIDTH` columns."""
    lines = [_line([name for name, _ in COLUMNS]), "-" * WIDTH]
    for rows in benches.values():
        baseline = None
        for row in rows:
            if row["baseline_name"] != baseline:
                baseline = row["baseline_name"]
                lines.append(f"  beside: {baseline}"[:WIDTH] if baseline else "  without a baseline")
            lines.append(_line(_cells(row)))
    lines.append("-" * WIDTH)
    lines.append(f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, Linux {facts['kernel']}"[:WIDTH])
    lines.append(f"{facts['date']}, load {facts['load_1min']} at the start; idle agent: p50 is the mean, p99 the most")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    fixed = sum(width + 1 for _, width in COLUMNS[1:])
    first = cells[0][: WIDTH - fixed].ljust(WIDTH - fixed)
    rest = (f" {cell:>{width}}" for cell, (_, width) in zip(cells[1:], COLUMNS[1:], strict=True))
    return (first + "".join(rest)).rstrip()


def _cells(row: Row) -> list[str]:
    figures = [_number(row.get(name)) for name in ("p50", "p99", "baseline_p50")]
    ratios = [_number(row.get(name)) for name in ("ratio_p50", "ratio_p99")]
    return [row["name"], row["unit"], *figures, "/".join(ratios) if ratios != ["-", "-"] else "-", _target(row)]


def _number(value: float | None) -> str:
    """Three digits that count, and no exponent."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _target(row: Row) -> str:
    if row.get("target_ratio"):
        return f"<= {row['target_ratio']} x"
    return str(row.get("target") or "-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table on stdout, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(FULL), help="run this one; may be given several times")
    parser.add_argument("--quick", action="store_true", help="a look: fewer rounds, 8 gates, a few seconds of idling")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json", metavar="FILE")
    given = parser.parse_args(arguments)
    facts = machine()
    runs = QUICK if given.quick else FULL
    benches: dict[str, list[Row]] = {}
    broken: list[str] = []
    for name in given.only or FULL:
        began_s = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            benches[name] = runs[name]()
        except Exception as error:  # the figures of the others are not lost with it
            broken.append(f"{name} broke off: {error!r}")
        print(f"{time.monotonic() - began_s:.0f} s", file=sys.stderr)
    print(table(benches, facts))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "schema": "killswitch.bench/1",
        "quick": given.quick,
        "machine": facts,
        "benches": benches,
        "broken": broken,
    }
    given.json.write_text(json.dumps(body, indent=2) + "\n")
    print(f"all rows: {given.json}", file=sys.stderr)
    for one in broken:
        print(one, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

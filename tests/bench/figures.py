"""Value at risk of 100 symbols beside a bare quantile of numpy, and one reading of the detector beside bare river.

Figure and baseline are timed in turn. The baseline of the figures is the quantile of profits and losses that are there
already: what is on top are the copy of the prices, the returns, the sum over the positions, all four figures and the
checks. The figures are for reading, never for passing or failing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from river.anomaly import HalfSpaceTrees

from killswitch.risk.figures.anomaly import AnomalyDetector
from killswitch.risk.figures.anomaly_settings import AnomalySettings
from killswitch.risk.figures.value_at_risk import ValueAtRiskMonitor
from killswitch.risk.figures.value_at_risk_settings import ValueAtRiskSettings
from tests.bench.timed_calls import figures_beside, no_collection, print_rows

CALLS = 2_000
WARM_UP = 100
OBSERVATIONS = 500
STEP_MS = 1_000
SYMBOL_COUNTS = (1, 100, 5_000)
_NANOSECONDS_PER_MS = 1_000_000


def run(calls: int = CALLS) -> list[dict[str, Any]]:
    """Measure and return the rows, in microseconds."""
    rows = [_value_at_risk(symbols, max(calls // symbols, 20) if symbols > 100 else calls) for symbols in SYMBOL_COUNTS]
    return [*rows, _price(calls), _anomaly(calls)]


def _filled(symbols: int) -> tuple[ValueAtRiskMonitor, list[str], list[int]]:
    """A monitor that has its full history, its symbols, and its clock in milliseconds."""
    clock_ms = [0]
    settings = ValueAtRiskSettings(observations_kept=OBSERVATIONS, sample_every_ms=STEP_MS)
    monitor = ValueAtRiskMonitor(settings, clock=lambda: clock_ms[0] * _NANOSECONDS_PER_MS)
    names = [f"S{number:05d}USDT" for number in range(symbols)]
    rng = np.random.default_rng(1)
    prices = 100.0 * np.cumprod(1.0 + rng.normal(0.0, 0.001, (OBSERVATIONS + 1, symbols)), axis=0)
    monitor.history.preload(dict(zip(names, row.tolist(), strict=True)) for row in prices)
    for name, price in zip(names, prices[-1].tolist(), strict=True):
        monitor.on_price(name, price)
    return monitor, names, clock_ms


def _value_at_risk(symbols: int, calls: int) -> dict[str, Any]:
    monitor, names, _ = _filled(symbols)
    positions_usd = {name: 1_000.0 if number % 2 else -500.0 for number, name in enumerate(names)}
    figures = monitor.figures(positions_usd)
    assert figures.trusted, figures.sentence
    returns = monitor.history.joint_returns(names).returns
    losses = -returns @ np.array(list(positions_usd.values()))
    took = _in_turn((lambda: monitor.figures(positions_usd), lambda: np.quantile(losses, 0.99, method="higher")), calls)
    name = f"VaR and ES, {symbols} symbols x {OBSERVATIONS} returns"
    return _row(name, "numpy.quantile of the profits and losses", took)


def _price(calls: int) -> dict[str, Any]:
    """A price on its way in; the baseline puts it into a dict."""
    monitor, names, _ = _filled(100)
    rng = random.Random(1)
    prices = iter([(rng.choice(names), 100.0 + rng.random()) for _ in range(2 * (calls + WARM_UP))])
    kept: dict[str, float] = {}

    def bare() -> None:
        name, price = next(prices)
        kept[name] = price

    took = _in_turn((lambda: monitor.on_price(*next(prices)), bare), calls)
    return _row("price into the history, 100 symbols", "price into a dict", took)


def _anomaly(calls: int) -> dict[str, Any]:
    settings = AnomalySettings()
    rng = random.Random(1)

    def reading() -> dict[str, float]:
        return {"return_bps": rng.gauss(0, 4), "range_bps": abs(rng.gauss(0, 6)), "log_volume": rng.gauss(14, 0.4)}

    detector = AnomalyDetector(settings)
    warmup = [reading() for _ in range(settings.warmup_observations)]
    limits = {name: (min(x[name] for x in warmup), max(x[name] for x in warmup)) for name in warmup[0]}
    bare = HalfSpaceTrees(
        n_trees=settings.n_trees, height=settings.height, window_size=settings.window_observations, limits=limits,
        seed=settings.seed,
    )  # fmt: skip
    for features in warmup:
        detector.observe(features)
        bare.learn_one(features)
    readings = [reading() for _ in range(calls + WARM_UP)]
    ours, theirs = iter(readings), iter(readings)

    def score_and_learn() -> None:
        features = next(theirs)
        bare.score_one(features)
        bare.learn_one(features)

    took = _in_turn((lambda: detector.observe(next(ours)), score_and_learn), calls)
    return _row("anomaly, one reading of 3 features", "river: score_one and learn_one", took)


def _in_turn(doors: tuple[Callable[[], object], Callable[[], object]], calls: int) -> tuple[list[int], list[int]]:
    took: tuple[list[int], list[int]] = ([], [])
    timer = time.perf_counter_ns
    with no_collection():
        for _ in range(calls + WARM_UP):
            for door, times in zip(doors, took, strict=True):
                before = timer()
                door()
                times.append(timer() - before)
    return took[0][WARM_UP:], took[1][WARM_UP:]


def _row(name: str, baseline_name: str, took: tuple[list[int], list[int]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "unit": "us", "baseline_name": baseline_name, "target": None}
    return row | figures_beside(*took)


def main() -> None:
    """Print the rows."""
    print_rows(run())


if __name__ == "__main__":
    main()

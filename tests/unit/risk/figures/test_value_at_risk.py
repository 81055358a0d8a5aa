"""Value at risk and expected shortfall: formulas beside independent values, laws, and what is not known."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from killswitch.risk import ReturnHistory, ValueAtRiskMonitor, ValueAtRiskSettings
from killswitch.risk.figures.value_at_risk import (
    FiguresUnavailable,
    historical_es_usd,
    historical_var_usd,
    parametric_es_usd,
    parametric_var_usd,
)
from tests.support.clock import HandClock

MS = 1_000_000
STEP_MS = 1_000
SMALL: dict[str, Any] = {
    "confidence": 0.9, "observations_kept": 40, "min_observations": 20, "sample_every_ms": STEP_MS,
    "max_age_ms": STEP_MS,
}  # fmt: skip

ROWS = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=2, max_size=120)
CONFIDENCES = st.sampled_from([0.75, 0.9, 0.95, 0.975, 0.99, 0.999])


def monitor_of(**changes: Any) -> tuple[ValueAtRiskMonitor, HandClock]:
    clock = HandClock(5_000 * MS)
    return ValueAtRiskMonitor(ValueAtRiskSettings(**{**SMALL, **changes}), clock=clock), clock


def play(monitor: ValueAtRiskMonitor, clock: HandClock, tape: Mapping[str, list[float]]) -> None:
    """One price of every symbol, then one step of the clock."""
    for row in zip(*tape.values(), strict=True):
        for symbol, price in zip(tape, row, strict=True):
            monitor.on_price(symbol, price)
        clock.time_ns += STEP_MS * MS


def walk(seed: int, steps: int, start: float = 100.0, deviation: float = 0.01) -> list[float]:
    rng, prices = random.Random(seed), [start]
    for _ in range(steps):
        prices.append(prices[-1] * (1 + rng.gauss(0, deviation)))
    return prices


# ---- formulas


def test_small_sample_by_hand() -> None:
    """Ten figures at 80 %: two in the tail, -9 and -7; VaR is the second worst, ES their mean."""
    pnl = [3.0, -7.0, 1.0, 0.0, 5.0, -9.0, 2.0, -1.0, 4.0, 6.0]
    assert historical_var_usd(pnl, 0.8) == 7.0
    assert historical_es_usd(pnl, 0.8) == 8.0
    # At 85 % one and a half are in the tail: the second worst still, and (9 + 0.5 * 7) / 1.5.
    assert historical_var_usd(pnl, 0.85) == 7.0
    assert historical_es_usd(pnl, 0.85) == pytest.approx(12.5 / 1.5)


def test_fewer_than_one_observation_in_the_tail_is_the_worst_of_all() -> None:
    pnl = [-1.0, -2.0, -3.0, 10.0]
    assert historical_var_usd(pnl, 0.99) == historical_es_usd(pnl, 0.99) == 3.0


@pytest.mark.parametrize(("size", "confidence"), [(500, 0.99), (250, 0.99), (101, 0.95), (333, 0.975), (1_000, 0.999)])
def test_historical_var_against_the_quantiles_of_numpy(size: int, confidence: float) -> None:
    """The upper sample quantile: numpy's inverted_cdf, or the next observation where two are quantiles."""
    losses = np.random.default_rng(size).standard_t(3, size)
    ours = historical_var_usd(-losses, confidence)
    lower = float(np.quantile(losses, confidence, method="inverted_cdf"))
    if round(size * confidence, 9) == round(size * confidence):
        assert ours == float(np.quantile(losses, confidence, method="higher")) > lower
    else:
        assert ours == lower


def test_historical_es_against_the_integral_of_the_quantiles() -> None:
    """ES is the mean of VaR over all higher confidences (Acerbi and Tasche): here summed finely."""
    pnl = np.random.default_rng(3).standard_t(3, 333)
    levels = 0.975 + 0.025 * (np.arange(40_000) + 0.5) / 40_000
    integral = float(np.quantile(-pnl, levels, method="inverted_cdf").mean())
    assert historical_es_usd(pnl, 0.975) == pytest.approx(integral, rel=1e-3)


def test_parametric_figures_against_tables_of_the_normal_distribution() -> None:
    """A sample of mean 0 and deviation 1: 2.3263 and 2.6652 at 99 %, 1.6449 and 2.0627 at 95 %."""
    pnl = [math.sqrt(0.5), -math.sqrt(0.5)]
    assert parametric_var_usd(pnl, 0.99) == pytest.approx(2.3263479)
    assert parametric_es_usd(pnl, 0.99) == pytest.approx(2.6652142)
    assert parametric_var_usd(pnl, 0.95) == pytest.approx(1.6448536)
    assert parametric_es_usd(pnl, 0.95) == pytest.approx(2.0627128)
    assert parametric_var_usd([4.0, 6.0], 0.99) == pytest.approx(2.3263479 * math.sqrt(2) - 5.0)
    assert parametric_var_usd([4.0, 6.0], 0.99, mean_usd=0.0) == pytest.approx(2.3263479 * math.sqrt(2))


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf, 1.0], [[1.0, 2.0]], [1.0]])
def test_formulas_refuse_what_is_no_sample(bad: Any) -> None:
    for formula in (historical_var_usd, historical_es_usd, parametric_var_usd, parametric_es_usd):
        if bad == [1.0] and formula in (historical_var_usd, historical_es_usd):
            continue
        with pytest.raises(ValueError, match="profits and losses"):
            formula(bad, 0.99)
    with pytest.raises(ValueError, match="confidence"):
        historical_var_usd([1.0, 2.0], 1.0)


@given(ROWS, CONFIDENCES, CONFIDENCES)
def test_law_of_order(pnl: list[float], one: float, other: float) -> None:
    """ES >= VaR, and neither falls when the confidence grows."""
    low, high = sorted((one, other))
    slack = 1e-9 * (1 + max(map(abs, pnl)))
    for var, es in ((historical_var_usd, historical_es_usd), (parametric_var_usd, parametric_es_usd)):
        assert es(pnl, high) >= var(pnl, high) - (0 if var is historical_var_usd else slack)
        assert var(pnl, high) >= var(pnl, low) - slack
        assert es(pnl, high) >= es(pnl, low) - slack


@given(ROWS, CONFIDENCES, st.floats(0.001, 1_000), st.floats(-1e6, 1e6))
def test_laws_of_scale_and_translation(pnl: list[float], confidence: float, scale: float, added: float) -> None:
    """Positions twice as large risk twice as much; a sure gain lowers the figure by itself."""
    largest = 1 + max(map(abs, pnl)) * max(1.0, scale) + abs(added)
    for figure in (historical_var_usd, historical_es_usd, parametric_var_usd, parametric_es_usd):
        before = figure(pnl, confidence)
        assert figure([scale * value for value in pnl], confidence) == pytest.approx(scale * before, abs=1e-8 * largest)
        assert figure([value + added for value in pnl], confidence) == pytest.approx(before - added, abs=1e-8 * largest)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=80), CONFIDENCES)
def test_law_of_diversification(pairs: list[tuple[float, float]], confidence: float) -> None:
    """Expected shortfall is subadditive: two books together risk at most the sum."""
    one, other = [left for left, _ in pairs], [right for _, right in pairs]
    for figure in (historical_es_usd, parametric_es_usd):
        together = figure([left + right for left, right in pairs], confidence)
        assert together <= figure(one, confidence) + figure(other, confidence) + 1e-5


# ---- the portfolio


def test_figures_of_a_portfolio_are_those_of_its_own_history() -> None:
    """Against a sum done in plain Python, and against the covariance matrix."""
    monitor, clock = monitor_of(confidence=0.9)
    tape = {"A": walk(1, 30), "B": walk(2, 30, start=7.0, deviation=0.03)}
    play(monitor, clock, tape)
    positions = {"A": 1_000.0, "B": -400.0}
    figures = monitor.figures(positions)
    assert figures.trusted, figures.sentence
    returns = {name: [after / before - 1 for before, after in itertools.pairwise(p)] for name, p in tape.items()}
    pnl = [1_000.0 * a - 400.0 * b for a, b in zip(returns["A"], returns["B"], strict=True)]
    assert figures.observations == 30
    worst = sorted(-value for value in pnl)[::-1][:3]
    assert figures.historical_var_usd == pytest.approx(worst[2])
    assert figures.historical_es_usd == pytest.approx(sum(worst) / 3)
    weights = np.array([1_000.0, -400.0])
    deviation = math.sqrt(weights @ np.cov([returns["A"], returns["B"]]) @ weights)
    mean = min(0.0, sum(pnl) / 30)
    assert figures.parametric_var_usd == pytest.approx(1.2815515655 * deviation - mean)
    assert figures.parametric_es_usd == pytest.approx(1.7549833193 * deviation - mean)
    assert "VaR" in figures.sentence
    assert "30 returns of 2 symbols" in figures.sentence


def test_a_hedge_is_seen() -> None:
    """Long and short of two prices that move together risks nothing, long of both twice as much."""
    monitor, clock = monitor_of()
    prices = walk(1, 30)
    play(monitor, clock, {"A": prices, "B": [2 * price for price in prices]})
    one, both = monitor.figures({"A": 100.0}), monitor.figures({"A": 100.0, "B": 100.0})
    assert both.historical_var_usd == pytest.approx(2 * one.historical_var_usd)
    assert monitor.figures({"A": 100.0, "B": -100.0}).historical_es_usd == pytest.approx(0.0, abs=1e-9)


def test_a_crash_shows_in_the_figures() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 30, deviation=0.001)})
    calm = monitor.figures({"A": 1_000.0})
    play(monitor, clock, {"A": [100.0, 90.0, 81.0, 81.0]})
    crash = monitor.figures({"A": 1_000.0})
    assert calm.historical_es_usd < 5
    assert crash.historical_es_usd > 50
    assert crash.parametric_es_usd > 10 * calm.parametric_es_usd
    short = monitor.figures({"A": -1_000.0})
    assert short.historical_es_usd < crash.historical_es_usd


def test_a_tail_that_gains_counts_as_nothing_and_a_gaining_drift_is_not_relied_on() -> None:
    monitor, clock = monitor_of()
    rng, prices = random.Random(1), [100.0]
    for _ in range(30):
        prices.append(prices[-1] * (1.01 + rng.uniform(0, 0.001)))
    play(monitor, clock, {"A": prices})
    figures = monitor.figures({"A": 1_000.0})
    assert figures.historical_var_usd == figures.historical_es_usd == 0.0
    assert figures.parametric_var_usd > 0.0


# ---- what is unknown is never a small number


def assert_unknown(monitor: ValueAtRiskMonitor, positions: Mapping[str, Any], word: str) -> None:
    figures = monitor.figures(positions)
    assert not figures.trusted
    assert word in figures.sentence
    assert figures.historical_var_usd == figures.historical_es_usd == math.inf
    assert figures.parametric_var_usd == figures.parametric_es_usd == math.inf


def test_too_little_history_is_told_by_symbol() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 30)})
    play(monitor, clock, {"A": walk(1, 18), "B": walk(2, 18)})
    assert monitor.figures({"A": 1.0}).trusted
    figures = monitor.figures({"A": 1.0, "B": 1.0, "C": 1.0})
    assert figures.symbols_without_history == ("B", "C")
    assert figures.symbols_unfit == ("C",)
    assert_unknown(monitor, {"A": 1.0, "B": 1.0}, "fewer than 20 returns are known of B")
    play(monitor, clock, {"A": walk(3, 1), "B": walk(2, 1)})
    assert monitor.figures({"A": 1.0, "B": 1.0}).trusted


def test_exactly_enough_is_enough() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 19)})
    assert_unknown(monitor, {"A": 1.0}, "fewer than 20")
    play(monitor, clock, {"A": [99.0]})
    assert monitor.figures({"A": 1.0}).observations == 20


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -5.0, True, "100", None, 1e300])
def test_a_bad_price_makes_its_symbol_unfit_until_a_good_one_comes(bad: Any) -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 30), "B": walk(2, 30)})
    assert monitor.figures({"A": 1.0}).trusted
    monitor.on_price("A", bad)
    assert_unknown(monitor, {"A": 1.0, "B": 1.0}, "known of A")
    assert monitor.figures({"B": 1.0}).trusted
    monitor.on_price("A", 100.0)
    assert monitor.figures({"A": 1.0}).trusted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, True, "1", None, 1e300])
def test_a_bad_position_is_no_figure(bad: Any) -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 30)})
    assert_unknown(monitor, {"A": 1.0, "B": bad}, "'B'")
    assert_unknown(monitor, {"": 1.0}, "''")


def test_nothing_held_is_nothing_at_risk() -> None:
    monitor, _ = monitor_of()
    for positions in ({}, {"A": 0.0}):
        figures = monitor.figures(positions)
        assert figures.trusted
        assert figures.historical_es_usd == 0.0


def test_a_stale_price_is_not_trusted() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 30)})
    clock.time_ns += 1 * MS
    assert_unknown(monitor, {"A": 1.0}, "known of A")


def test_a_gap_hides_no_move() -> None:
    """The price halves while none comes: the step in which it is back counts the whole move."""
    monitor, clock = monitor_of()
    tape = walk(1, 30, deviation=0.001)
    play(monitor, clock, {"A": tape, "B": walk(2, 30)})
    play(monitor, clock, {"B": walk(3, 4)})
    play(monitor, clock, {"A": [tape[-1] / 2] * 2, "B": walk(4, 1)})
    figures = monitor.figures({"A": 100.0, "B": 1e-9})
    assert figures.trusted, figures.sentence
    assert figures.historical_es_usd > 50.0 / 4
    assert figures.observations == 32


def test_a_feed_that_stands_still_is_not_a_position_without_risk() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": [100.0] * 30})
    assert_unknown(monitor, {"A": 1.0}, "moving")


def test_histories_that_do_not_overlap_are_told() -> None:
    monitor, clock = monitor_of(observations_kept=100)
    for _ in range(2):
        play(monitor, clock, {"A": walk(1, 12)})
        play(monitor, clock, {"B": walk(2, 12)})
    monitor.on_price("A", 100.0)
    monitor.on_price("B", 100.0)
    figures = monitor.figures({"A": 1.0, "B": 1.0})
    assert figures.symbols_without_history == ()
    assert_unknown(monitor, {"A": 1.0, "B": 1.0}, "together")


def test_a_clock_that_fails_or_goes_back_makes_ages_unknown() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 30)})
    assert monitor.figures({"A": 1.0}).trusted
    clock.time_ns -= 100 * MS
    assert_unknown(monitor, {"A": 1.0}, "known of A")
    monitor.on_price("A", 100.0)
    assert monitor.figures({"A": 1.0}).trusted

    def broken() -> int:
        raise OSError("no clock")

    history = ReturnHistory(ValueAtRiskSettings(**SMALL), clock=broken)
    history.on_price("A", 100.0)
    assert history.joint_returns(["A"]).unfit == ("A",)


def test_profits_too_large_for_a_number_are_told() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": [1e-18, 1e15] * 15, "B": walk(1, 29)})
    figures = monitor.figures({"A": 1e15, "B": 1.0})
    assert math.isfinite(figures.historical_es_usd) or not figures.trusted
    assert figures.historical_es_usd > 0


# ---- levels


def test_levels_are_inclusive_and_unknown_does_what_was_set() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 30)})
    positions = {"A": 1_000.0}
    figures = monitor.figures(positions)
    value = max(figures.historical_es_usd, figures.parametric_es_usd)
    assert monitor.judged_usd(figures) == value

    def level(position: Mapping[str, float], **changes: Any) -> str | None:
        other = ValueAtRiskMonitor(ValueAtRiskSettings(**{**SMALL, **changes}), clock=clock, history=monitor.history)
        return other.level(other.figures(position))

    assert level(positions, hard_usd=value) == "freeze"
    assert level(positions, hard_usd=value, hard="reduce_only") == "reduce_only"
    assert level(positions, hard_usd=value * 1.0001, warning_usd=value) == "warning"
    assert level(positions, hard_usd=value * 1.0002, warning_usd=value * 1.0001) is None
    var = max(figures.historical_var_usd, figures.parametric_var_usd)
    assert var < value
    assert level(positions, hard_usd=value, measure="var") is None
    assert level(positions, hard_usd=var, measure="var") == "freeze"
    assert level({"C": 1.0}, hard_usd=1e9) == "pause"
    assert level({"C": 1.0}, hard_usd=1e9, unknown="freeze") == "freeze"
    assert level({"C": 1.0}, warning_usd=1e9, unknown="freeze") == "warning"
    assert level({"C": 1.0}) is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"min_observations": 41}, "at most observations_kept"),
        ({"min_observations": 9}, "at least 10"),
        ({"warning_usd": 2.0, "hard_usd": 1.0}, "must be at most hard_usd"),
        ({"observations_kept": 1_000_000, "max_symbols": 101}, "times max_symbols"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": math.nan}, "confidence"),
        ({"hard_usd": math.inf}, "hard_usd"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_settings_that_do_not_fit_together_are_a_sentence(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        ValueAtRiskSettings(**{**SMALL, **changes})


def test_every_setting_says_what_it_is() -> None:
    ValueAtRiskSettings()
    assert all(field.description for field in ValueAtRiskSettings.model_fields.values())


# ---- memory, threads, numbers of symbols


def test_the_history_is_bounded_and_the_oldest_goes_first() -> None:
    monitor, clock = monitor_of(max_symbols=3)
    play(monitor, clock, {name: walk(seed, 200) for seed, name in enumerate("ABCD")})
    assert monitor.figures({"A": 1.0}).observations == 40
    assert monitor.history._grid.shape[1] == 41
    assert monitor.figures({"D": 1.0}).symbols_without_history == ("D",)
    returns = monitor.history.joint_returns(["B"]).returns[:, 0]
    newest = walk(1, 200)[-41:]
    assert returns == pytest.approx([b / a - 1 for a, b in itertools.pairwise(newest)])


def test_a_time_in_which_nothing_comes_pushes_nothing_out() -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(1, 30)})
    for _ in range(200):
        clock.time_ns += STEP_MS * MS
        monitor.figures({"A": 1.0})
    monitor.on_price("A", 100.0)
    assert monitor.figures({"A": 1.0}).trusted


def test_thousands_of_symbols() -> None:
    count = 5_000
    monitor, clock = monitor_of(observations_kept=21)
    rng = random.Random(1)
    for _ in range(22):
        for number in range(count):
            monitor.on_price(f"S{number}", 100.0 + rng.random())
        clock.time_ns += STEP_MS * MS
    figures = monitor.figures({f"S{number}": 10.0 for number in range(count)})
    assert figures.trusted, figures.sentence
    assert figures.observations == 21
    assert monitor.history._grid.shape[0] < 2 * count
    monitor.on_price("S17", math.nan)
    assert monitor.figures({f"S{number}": 10.0 for number in range(count)}).symbols_unfit == ("S17",)


def test_prices_and_questions_from_many_threads() -> None:
    """Two prices that always move together: a hedge of both never shows risk, whoever reads in between."""
    monitor, clock = monitor_of(max_age_ms=3_600_000)
    stop, wrong = threading.Event(), []
    rng = random.Random(1)

    def ask() -> None:
        while not stop.is_set():
            figures = monitor.figures({"A": 1_000.0})
            if figures.trusted and not 0 < figures.historical_es_usd <= 1_000.0:
                wrong.append(figures)

    def others(name: str) -> None:
        for number in range(2_000):
            monitor.on_price(f"{name}{number % 200}", 1.0 + number)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads += [threading.Thread(target=others, args=(name,)) for name in "XYZ"]
    for thread in threads:
        thread.start()
    for _ in range(300):
        monitor.on_price("A", 100.0 + rng.random())
        clock.time_ns += STEP_MS * MS
    for thread in threads[2:]:
        thread.join()
    stop.set()
    for thread in threads[:2]:
        thread.join()
    assert wrong == []
    assert len(monitor.history._index) == 601
    assert monitor.figures({"A": 1_000.0}).observations == 40


def test_samples_of_before_shorten_the_warm_up() -> None:
    monitor, _ = monitor_of()
    prices = walk(1, 30)
    monitor.history.preload({"A": price, "B": math.nan, f"S{number}": 1.0} for number, price in enumerate(prices))
    assert_unknown(monitor, {"A": 1.0}, "known of A")
    monitor.on_price("A", prices[-1])
    figures = monitor.figures({"A": 1.0})
    assert figures.trusted
    assert figures.observations == 30
    assert monitor.figures({"B": 1.0}).symbols_without_history == ("B",)


# ---- the extra


def test_without_numpy_a_sentence_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from killswitch.risk import FiguresUnavailable, ValueAtRiskMonitor, ValueAtRiskSettings, historical_var_usd\n"
        "for call in (lambda: ValueAtRiskMonitor(ValueAtRiskSettings()), lambda: historical_var_usd([1.0], 0.9)):\n"
        "    try:\n"
        "        call()\n"
        "    except FiguresUnavailable as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.count("pip install 'killswitch-cluster[figures]'") == 2
    assert issubclass(FiguresUnavailable, ImportError)


def test_reading_the_modules_reads_neither_numpy_nor_river() -> None:
    code = (
        "import sys, killswitch.risk, killswitch.risk.figures.value_at_risk, killswitch.risk.figures.anomaly\n"
        "import killswitch.risk.figures.value_at_risk_settings, killswitch.risk.figures.anomaly_settings\n"
        "print(sorted({'numpy', 'river', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.strip() == "[]"


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 1_000), st.integers(0, 2**16))
def test_figures_scale_with_the_positions(scale: float, seed: int) -> None:
    monitor, clock = monitor_of()
    play(monitor, clock, {"A": walk(seed, 30), "B": walk(seed + 1, 30)})
    one = monitor.figures({"A": 100.0, "B": -70.0})
    more = monitor.figures({"A": 100.0 * scale, "B": -70.0 * scale})
    for name in ("historical_var_usd", "historical_es_usd", "parametric_var_usd", "parametric_es_usd"):
        assert getattr(more, name) == pytest.approx(scale * getattr(one, name), rel=1e-9, abs=1e-9)

"""The price tape: repeatable, told in parts, and sentences for files that cannot be played."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from killswitch.simulation.tape import (
    CALM,
    FALL,
    TICKS_PER_BAR,
    BadTape,
    Bar,
    CrashShape,
    TapePlayer,
    bars_from_csv,
    synthetic_tape,
    ticks_from_bars,
)

HEADER = "timestamp,open,high,low,close,volume\n"
GOOD_ROW = "2022-01-20T00:00:00Z,100,101,99,100.5,12\n"


def bars_file(folder: Path, text: str) -> Path:
    path = folder / "bars.csv"
    path.write_text(text, encoding="utf-8")
    return path


def flat_bar(price: float, low: float | None = None) -> Bar:
    return Bar("2022-01-20T00:00:00Z", price, price, price if low is None else low, price, 1.0)


def test_the_same_seed_gives_the_same_tape_and_another_seed_another() -> None:
    assert synthetic_tape(7) == synthetic_tape(7)
    assert synthetic_tape(7) != synthetic_tape(8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_every_seed_is_calm_then_falls_by_about_eight_per_cent_and_recovers_in_part(seed: int) -> None:
    ticks = synthetic_tape(seed)
    prices = [tick.prices_usd["BTCUSDT"] for tick in ticks]
    calm = [price for price, tick in zip(prices, ticks, strict=True) if tick.part == CALM]
    assert min(calm) > prices[0] * 0.99
    assert 0.07 < 1 - min(prices) / prices[0] < 0.09
    assert min(prices) * 1.01 < prices[-1] < prices[0] * 0.98
    assert min(min(tick.prices_usd.values()) for tick in ticks) > 0


def test_the_symbols_fall_together() -> None:
    ticks = synthetic_tape(3)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        prices = [tick.prices_usd[symbol] for tick in ticks]
        assert 0.07 < 1 - min(prices) / prices[0] < 0.09


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        (CrashShape(calm_ticks=0), "calm"),
        (CrashShape(fall=1.0), "fall"),
        (CrashShape(fall=float("nan")), "fall"),
        (CrashShape(noise=0.5), "noise"),
    ],
)
def test_a_shape_that_is_no_crash_is_refused(shape: CrashShape, word: str) -> None:
    with pytest.raises(BadTape, match=word):
        synthetic_tape(1, shape=shape)


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf")])
def test_a_first_price_that_is_no_price_is_refused(price: float) -> None:
    with pytest.raises(BadTape, match="price"):
        synthetic_tape(1, prices_usd={"BTCUSDT": price})


def test_a_bar_becomes_ticks_through_all_its_prices_nearest_extreme_first() -> None:
    ticks = ticks_from_bars([Bar("t", 100.0, 110.0, 99.0, 105.0, 1.0)])
    assert [tick.prices_usd["BTCUSDT"] for tick in ticks] == [100.0, 99.0, 110.0, 105.0]
    ticks = ticks_from_bars([Bar("t", 100.0, 101.0, 90.0, 95.0, 1.0)])
    assert [tick.prices_usd["BTCUSDT"] for tick in ticks] == [100.0, 101.0, 90.0, 95.0]


def test_the_calm_part_of_bars_ends_where_the_price_first_stands_one_per_cent_below_its_peak() -> None:
    bars = [flat_bar(100.0)] * 20 + [flat_bar(100.0, low=98.9)] + [flat_bar(97.0)] * 79
    parts = [tick.part for tick in ticks_from_bars(bars)]
    assert parts == [CALM] * (20 * TICKS_PER_BAR) + [FALL] * (80 * TICKS_PER_BAR)


def test_the_calm_part_of_bars_that_never_fall_ends_after_four_tenths() -> None:
    parts = [tick.part for tick in ticks_from_bars([flat_bar(100.0)] * 100)]
    assert parts.count(CALM) == 40 * TICKS_PER_BAR


def test_bars_are_read_from_a_file(tmp_path: Path) -> None:
    bars = bars_from_csv(bars_file(tmp_path, HEADER + GOOD_ROW + GOOD_ROW))
    assert bars == [Bar("2022-01-20T00:00:00Z", 100.0, 101.0, 99.0, 100.5, 12.0)] * 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "bars.csv: the file is empty"),
        (HEADER, "bars.csv: there is no bar"),
        ("timestamp,open,high,low,volume\n", "bars.csv:1: there is no column close"),
        (HEADER + GOOD_ROW + "t,NaN,101,99,100,1\n", "bars.csv:3: open is NaN; it must be a finite number"),
        (HEADER + "t,100,inf,99,100,1\n", "bars.csv:2: high is inf"),
        (HEADER + "t,100,101,-99,100,1\n", "bars.csv:2: low is -99; a price is greater than 0"),
        (HEADER + "t,100,101,99,0,1\n", "bars.csv:2: close is 0; a price is greater than 0"),
        (HEADER + "t,100,101,99,abc,1\n", "bars.csv:2: close is 'abc', not a number"),
        (HEADER + "t,100,101\n", "bars.csv:2: low is None, not a number"),
        (HEADER + "t,100,101,99,102,1\n", "bars.csv:2: open and close must lie between low and high"),
        (HEADER + "t,100,101,99,100,-1\n", "bars.csv:2: volume is -1"),
        (HEADER + ",100,101,99,100,1\n", "bars.csv:2: the bar has no timestamp"),
    ],
)
def test_a_file_that_cannot_be_played_is_refused_with_the_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(BadTape) as refused:
        bars_from_csv(bars_file(tmp_path, text))
    assert sentence in str(refused.value)


def test_the_player_waits_before_the_fall_until_it_may_go_on() -> None:
    ticks = synthetic_tape(1, shape=CrashShape(calm_ticks=5, fall_ticks=5, recovery_ticks=0, after_ticks=0))
    player = TapePlayer(ticks, seed=1)
    assert [player.next_tick() for _ in range(5)] == ticks[:5]
    assert player.holding
    assert not player.ended
    held = [player.next_tick() for _ in range(50)]
    assert {tick.part for tick in held} == {CALM}
    assert max(abs(tick.prices_usd["BTCUSDT"] / ticks[4].prices_usd["BTCUSDT"] - 1) for tick in held) < 0.001
    player.go_on()
    assert [player.next_tick() for _ in range(5)] == ticks[5:]


def test_the_player_told_early_never_holds_before_the_end_and_then_keeps_the_last_price() -> None:
    ticks = synthetic_tape(1, shape=CrashShape(calm_ticks=3, fall_ticks=3, recovery_ticks=0, after_ticks=0))
    player = TapePlayer(ticks, seed=1)
    player.go_on()
    assert [player.next_tick() for _ in range(6)] == ticks
    assert player.ended
    after = [player.next_tick().prices_usd["ETHUSDT"] for _ in range(50)]
    last = ticks[-1].prices_usd["ETHUSDT"]
    assert all(abs(price / last - 1) < 0.001 for price in after)
    assert len(set(after)) > 1


def test_an_empty_tape_is_refused() -> None:
    with pytest.raises(BadTape):
        TapePlayer([], seed=1)
    with pytest.raises(BadTape):
        ticks_from_bars([])

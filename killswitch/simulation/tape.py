"""The price tape that a simulated venue plays: a seeded flash crash, or real one-minute bars.

Pure, but for reading the file of bars.

A tape has parts. It begins with a ``calm`` part, and :class:`TapePlayer` does not leave that part before it is told to
go on, so that whoever stages a scenario decides when the fall begins. At the end of the tape the last prices stay, with
a little seeded noise, because a market does not stop quoting when a story ends.

Prices are in USD. The same seed gives the same tape on every machine.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CALM = "calm"
FALL = "fall"
RECOVERY = "recovery"
AFTER = "after"

DEFAULT_PRICES_USD: Mapping[str, float] = {"BTCUSDT": 42_000.0, "ETHUSDT": 3_000.0}
"""Where the synthetic tape begins, per symbol."""

BARS_SYMBOL = "BTCUSDT"
"""The symbol that bars from a file are played as."""

SYNTHETIC_TICKS_PER_SECOND = 250.0
BARS_PER_SECOND = 220.0
"""At this pace the 2,880 minutes of two days play in about 13 seconds."""

TICKS_PER_BAR = 4
PRICE_DECIMALS = 2
BAR_COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
BARS_MAX = 1_000_000
_CALM_DRAWDOWN = 0.01
_CALM_SHARE_MAX = 0.4
_HOLD_NOISE = 0.0002
_NOISE_MAX = 0.005


class BadTape(ValueError):
    """The tape cannot be played; the message is a sentence with the file and the line in it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One minute of trading: prices in USD, volume in units of the symbol or in USD as the file has it."""

    timestamp: str
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class Tick:
    """One step of the tape.

    Attributes:
        prices_usd: last traded price of every symbol.
        part: which part of the story it belongs to, ``calm`` first.
        label: where on the tape this is, for people: the bar's time, or the part again.
    """

    prices_usd: Mapping[str, float]
    part: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashShape:
    """What the synthetic tape does, in ticks and as shares of the price.

    Attributes:
        calm_ticks: quiet trading before the fall.
        fall_ticks: how long the fall takes.
        recovery_ticks: how long the rebound takes.
        after_ticks: quiet trading after it.
        fall: share of the price that is lost.
        rebound: share of that loss that comes back.
        noise: standard deviation of one tick, as a share of the price.
    """

    calm_ticks: int = 750
    fall_ticks: int = 500
    recovery_ticks: int = 375
    after_ticks: int = 1_250
    fall: float = 0.08
    rebound: float = 0.4
    noise: float = 0.00015


def synthetic_tape(
    seed: int, *, prices_usd: Mapping[str, float] = DEFAULT_PRICES_USD, shape: CrashShape | None = None
) -> list[Tick]:
    """Return a seeded random walk with a flash crash in it: calm, fall, partial recovery, calm again.

    All symbols follow one market with a little noise of their own, as correlated markets do in a crash. In the quiet
    parts the walk is pulled back to its level, so that no seed drifts into a loss before the fall begins.

    Raises:
        BadTape: there is no symbol, a price is not positive, or the shape has no calm part or no fall.
    """
    shape = shape or CrashShape()
    _check_shape(prices_usd, shape)
    rng = random.Random(seed)
    low = 1.0 - shape.fall
    settled = low + shape.fall * shape.rebound
    parts = (
        (CALM, shape.calm_ticks, 1.0, 1.0),
        (FALL, shape.fall_ticks, 1.0, low),
        (RECOVERY, shape.recovery_ticks, low, settled),
        (AFTER, shape.after_ticks, settled, settled),
    )
    offsets = dict.fromkeys(prices_usd, 0.0)
    ticks: list[Tick] = []
    for part, length, start, end in parts:
        for step in range(length):
            level = start + (end - start) * (step + 1) / length
            shared = rng.gauss(0.0, shape.noise)
            for symbol in offsets:
                offsets[symbol] = 0.98 * offsets[symbol] + shared + rng.gauss(0.0, shape.noise / 3)
            prices = {
                symbol: round(price * level * (1.0 + offsets[symbol]), PRICE_DECIMALS)
                for symbol, price in prices_usd.items()
            }
            ticks.append(Tick(prices, part, part))
    return ticks


def bars_from_csv(path: Path) -> list[Bar]:
    """Read one-minute bars with the columns ``timestamp,open,high,low,close,volume``.

    Raises:
        BadTape: the file is empty, is no CSV, lacks a column, or a row holds no, a non-finite, a negative or a zero
            price.
        OSError: the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return _bars(csv.DictReader(file), path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadTape(f"{path}: is no CSV file in UTF-8 ({error})") from error


def _bars(rows: csv.DictReader[str], path: Path) -> list[Bar]:
    names = rows.fieldnames
    if not names:
        raise BadTape(f"{path}: the file is empty; it needs a first line with {','.join(BAR_COLUMNS)}")
    missing = [name for name in BAR_COLUMNS if name not in names]
    if missing:
        raise BadTape(f"{path}:1: there is no column {', '.join(missing)}; the columns are {','.join(BAR_COLUMNS)}")
    bars: list[Bar] = []
    for row in rows:
        if len(bars) >= BARS_MAX:
            raise BadTape(f"{path}:{rows.line_num}: there are more than {BARS_MAX} bars; play a part of the file")
        bars.append(_bar(row, f"{path}:{rows.line_num}"))
    if not bars:
        raise BadTape(f"{path}: there is no bar below the line of column names")
    return bars


def ticks_from_bars(bars: Sequence[Bar], *, symbol: str = BARS_SYMBOL) -> list[Tick]:
    """Return :data:`TICKS_PER_BAR` ticks for each bar, with the part of the story that each belongs to.

    A bar does not say whether its high or its low came first. The extreme that is nearer to the open is played first,
    which is the shorter way through all four prices. The calm part ends where the price first stands one per cent
    below its highest close so far, and at the latest after four tenths of the tape.

    Raises:
        BadTape: there is no bar.
    """
    if not bars:
        raise BadTape("a tape needs at least one bar")
    fall_begins = _fall_begins(bars)
    ticks: list[Tick] = []
    for index, bar in enumerate(bars):
        low_first = bar.open - bar.low <= bar.high - bar.open
        middle = (bar.low, bar.high) if low_first else (bar.high, bar.low)
        part = CALM if index < fall_begins else FALL
        ticks.extend(Tick({symbol: price}, part, bar.timestamp) for price in (bar.open, *middle, bar.close))
    return ticks


class TapePlayer:
    """Hands out ticks one by one, waits at the end of the calm part, and never runs dry."""

    def __init__(self, ticks: Sequence[Tick], *, seed: int) -> None:
        """Take the tape; ``seed`` is for the noise while it holds."""
        if not ticks:
            raise BadTape("a tape needs at least one tick")
        self._ticks = ticks
        self._index = 0
        self._rng = random.Random(seed)
        self._calm_ends = next((index for index, tick in enumerate(ticks) if tick.part != CALM), len(ticks))
        self._may_fall = False

    def go_on(self) -> None:
        """Let the tape leave its calm part."""
        self._may_fall = True

    @property
    def played(self) -> int:
        """Ticks of the tape played so far, without those made up while it held."""
        return self._index

    @property
    def length(self) -> int:
        """Ticks on the tape."""
        return len(self._ticks)

    @property
    def ended(self) -> bool:
        """The tape is over; only noise around its last prices comes now."""
        return self._index >= len(self._ticks)

    @property
    def holding(self) -> bool:
        """The next tick is noise: the tape is over, or it waits before the fall for :meth:`go_on`."""
        return self.ended or (self._index == self._calm_ends and self._index > 0 and not self._may_fall)

    def next_tick(self) -> Tick:
        """Return the next tick of the tape, or while it holds the last one with a little noise."""
        if not self.holding:
            tick = self._ticks[self._index]
            self._index += 1
            return tick
        last = self._ticks[self._index - 1]
        noise = 1.0 + self._rng.uniform(-_HOLD_NOISE, _HOLD_NOISE)
        prices = {symbol: round(price * noise, PRICE_DECIMALS) for symbol, price in last.prices_usd.items()}
        return Tick(prices, last.part, last.label)


def _check_shape(prices_usd: Mapping[str, float], shape: CrashShape) -> None:
    if not prices_usd:
        raise BadTape("a synthetic tape needs at least one symbol with a price")
    for symbol, price in prices_usd.items():
        if not (math.isfinite(price) and price > 0):
            raise BadTape(f"the first price of {symbol} is {price}; a price is a finite number greater than 0")
    if shape.calm_ticks < 1 or shape.fall_ticks < 1 or shape.recovery_ticks < 0 or shape.after_ticks < 0:
        raise BadTape("a synthetic tape needs at least one calm tick, one falling tick and no negative length")
    if not 0.0 < shape.fall < 1.0:
        raise BadTape(f"the fall is {shape.fall}; it is a share of the price between 0 and 1")
    if not 0.0 <= shape.noise <= _NOISE_MAX:
        raise BadTape(f"the noise of a tick is {shape.noise}; it is a share of the price between 0 and {_NOISE_MAX}")


def _fall_begins(bars: Sequence[Bar]) -> int:
    """Return the index of the first bar after the calm part, at least 1."""
    peak = 0.0
    latest = max(1, int(len(bars) * _CALM_SHARE_MAX))
    for index, bar in enumerate(bars[:latest]):
        peak = max(peak, bar.close)
        if bar.low < peak * (1.0 - _CALM_DRAWDOWN):
            return max(1, index)
    return latest


def _bar(row: Mapping[str, str | None], where: str) -> Bar:
    timestamp = row["timestamp"]
    if not timestamp:
        raise BadTape(f"{where}: the bar has no timestamp")
    prices = {name: _price(row[name], name, where) for name in ("open", "high", "low", "close")}
    if (
        not prices["low"]
        <= min(prices["open"], prices["close"])
        <= max(prices["open"], prices["close"])
        <= prices["high"]
    ):
        raise BadTape(f"{where}: open and close must lie between low and high, and they do not")
    volume = _number(row["volume"], "volume", where)
    if volume < 0:
        raise BadTape(f"{where}: volume is {volume:g}; it is never negative")
    return Bar(timestamp, prices["open"], prices["high"], prices["low"], prices["close"], volume)


def _price(text: str | None, name: str, where: str) -> float:
    price = _number(text, name, where)
    if price <= 0:
        raise BadTape(f"{where}: {name} is {text}; a price is greater than 0")
    return price


def _number(text: str | None, name: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise BadTape(f"{where}: {name} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise BadTape(f"{where}: {name} is {text}; it must be a finite number")
    return value

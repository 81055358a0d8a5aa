"""Readings that are unlike everything seen before, by half-space trees of river; one detector for each symbol.

What it does and does not do:

- It is trained on its warm-up, which is taken for usual: start it on a calm market. Its limits (least and largest value
  of each feature) are those of the warm-up and stay so; no later value can widen them and hide what comes after it.
- It learns readings that are *not* anomalous, and no others. A lasting anomaly therefore never becomes usual, however
  long it lasts. The price: after a lasting change of the market it goes on telling until a person calls ``relearn``.
- It does not learn less and less for that: what is usual stays within a stated share of the warm-up (a test asks).
- Half-space trees average over features, so one feature that goes far astray among several that do not can score low.
  That is what ``max_outside_widths`` is for. One within its limits and unusual only beside the others may be missed.
- A reading that cannot be judged (not a finite number, another set of features) counts as anomalous and is never
  learned: what is not known is not taken for usual.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from killswitch.risk.figures.anomaly_settings import AnomalySettings
from killswitch.risk.order_inputs import LARGEST_NUMBER, finite_number, is_name

MAX_FEATURES: Final = 64

_NO_WIDTH_RATIO = 1e-6  # half the width that a feature gets that was always the same, as part of its value


class AnomalyUnavailable(ImportError):
    """The library of the detector is not installed; the message says what to install."""


@dataclass(frozen=True, slots=True)
class AnomalyReading:
    """What the detector says of one reading.

    Attributes:
        score: 0 to 1, the more unusual the higher; 1 for a value far outside of its limits; ``None`` when the reading
            was not scored: while warming up, and when it cannot be judged.
        threshold: score from which on a reading is anomalous.
        anomalous: the score is at the threshold or above, or the reading cannot be judged.
        confirmed: it is the last of as many anomalous ones in a row as the settings ask for, or more.
        warming_up: nothing is judged yet; whoever acts on readings must take that for unknown, not for calm.
        fault: the reading cannot be judged.
        sentence: the same for people.
    """

    score: float | None
    threshold: float
    anomalous: bool
    confirmed: bool
    warming_up: bool
    fault: bool
    sentence: str


class AnomalyDetector:
    """One stream of readings. Any thread may call; deterministic for one seed and one order of readings.

    The last reading of the warm-up takes longer, since all of them are learned then: some tens of milliseconds.

    Raises:
        AnomalyUnavailable: river is not installed.
    """

    def __init__(self, settings: AnomalySettings) -> None:
        self._settings = settings
        self._new_trees = _half_space_trees()
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._trees: Any = None
        self._limits: dict[str, tuple[float, float]] = {}
        self._names: tuple[str, ...] = ()
        self._warmup: list[tuple[float, ...]] = []
        self._run = 0

    def relearn(self) -> None:
        """Forget everything and warm up again: a person has looked, and what comes now is the new usual."""
        with self._lock:
            self._start()

    def observe(self, features: Mapping[str, float]) -> AnomalyReading:
        """Judge one reading, and learn it unless it is anomalous. Raises for no features, whatever they are."""
        with self._lock:
            values = self._read(features)
            if isinstance(values, str):
                return self._anomalous(None, values)
            if self._trees is None:
                return self._warm(values)
            named = dict(zip(self._names, values, strict=True))
            outside = self._far_outside(named)
            if outside is not None:
                return self._anomalous(1.0, outside)
            score, threshold = float(self._trees.score_one(named)), self._settings.threshold
            if not score < threshold:
                return self._anomalous(score, f"score {score:.3f} reached {threshold:g}")
            self._trees.learn_one(named)
            self._run = 0
            return AnomalyReading(score, threshold, False, False, False, False, f"usual: score {score:.3f}")

    def _read(self, features: object) -> tuple[float, ...] | str:
        """Return the values in the order of their names, or what is wrong with them."""
        if not isinstance(features, Mapping) or not 0 < len(features) <= MAX_FEATURES:
            return f"a reading needs 1 to {MAX_FEATURES} features by name"
        if not all(is_name(name) for name in features):
            return "a feature without a name"
        values = []
        names = tuple(sorted(features))
        for name in names:
            value = finite_number(features[name])
            if value is None or abs(value) > LARGEST_NUMBER:
                return f"{name} is {features[name]!r}, not a finite number of at most {LARGEST_NUMBER:g}"
            values.append(value)
        if self._names and names != self._names:
            return f"the features are {', '.join(names)}, and were {', '.join(self._names)} before"
        self._names = names
        return tuple(values)

    def _warm(self, values: tuple[float, ...]) -> AnomalyReading:
        self._warmup.append(values)
        self._run = 0
        needed = self._settings.warmup_observations
        sentence = f"warming up: {len(self._warmup)} of {needed} readings"
        if len(self._warmup) == needed:
            self._learn_warmup()
        return AnomalyReading(None, self._settings.threshold, False, False, True, False, sentence)

    def _learn_warmup(self) -> None:
        for name, column in zip(self._names, zip(*self._warmup, strict=True), strict=True):
            low, high = min(column), max(column)
            if low == high:  # a range without a width could not be cut in two: any other value would look the same
                half = max(abs(low), 1.0) * _NO_WIDTH_RATIO
                low, high = low - half, high + half
            self._limits[name] = (low, high)
        settings = self._settings
        trees = self._new_trees(
            n_trees=settings.n_trees, height=settings.height, window_size=settings.window_observations,
            limits=self._limits, seed=settings.seed,
        )  # fmt: skip
        for values in self._warmup:
            trees.learn_one(dict(zip(self._names, values, strict=True)))
        self._trees, self._warmup = trees, []

    def _far_outside(self, named: Mapping[str, float]) -> str | None:
        most = self._settings.max_outside_widths
        if most is None:
            return None
        for name, value in named.items():
            low, high = self._limits[name]
            widths = max(low - value, value - high) / (high - low)
            if widths > most:
                return (
                    f"{name} is {value:g}, {widths:.3g} widths outside of {low:g} to {high:g}, the range of the warm-up"
                )
        return None

    def _anomalous(self, score: float | None, what: str) -> AnomalyReading:
        self._run += 1
        needed, fault, warming_up = self._settings.confirmations, score is None, self._trees is None
        confirmed = self._run >= needed
        kind = "cannot be judged" if fault else "anomalous"
        sentence = f"{kind}: {what}; {self._run} in a row, confirmed from {needed} on; not learned"
        return AnomalyReading(score, self._settings.threshold, True, confirmed, warming_up, fault, sentence)


class AnomalyMonitor:
    """A detector for every symbol, all with the same settings. Any thread may call.

    Raises:
        AnomalyUnavailable: river is not installed.
    """

    def __init__(self, settings: AnomalySettings) -> None:
        _half_space_trees()  # now, not at the first reading
        self._settings = settings
        self._lock = threading.Lock()
        self._detectors: dict[str, AnomalyDetector] = {}

    @property
    def settings(self) -> AnomalySettings:
        """What it judges by, and what a confirmed anomaly does."""
        return self._settings

    def symbols(self) -> tuple[str, ...]:
        """Return the symbols that have a detector."""
        with self._lock:
            return tuple(self._detectors)

    def observe(self, symbol: str, features: Mapping[str, float]) -> AnomalyReading:
        """Judge one reading of a symbol. One symbol too many is not followed, and its readings say so."""
        with self._lock:
            detector = self._detectors.get(symbol) if is_name(symbol) else None
            if detector is None and is_name(symbol) and len(self._detectors) < self._settings.max_symbols:
                detector = self._detectors[symbol] = AnomalyDetector(self._settings)
        if detector is None:
            sentence = (
                f"cannot be judged: {symbol!r} is not one of the {len(self.symbols())} symbols that are followed, and "
                f"at most {self._settings.max_symbols} are"
            )
            # Nobody counts the readings of a symbol that is not followed, so the first one is confirmed.
            return AnomalyReading(None, self._settings.threshold, True, True, True, True, sentence)
        return detector.observe(features)

    def relearn(self, symbol: str) -> None:
        """Warm up again with this symbol: what comes now is the new usual. One that is not followed is none."""
        with self._lock:
            detector = self._detectors.get(symbol)
        if detector is not None:
            detector.relearn()

    def forget(self, symbol: str) -> None:
        """Follow this symbol no longer; another may take its place."""
        with self._lock:
            self._detectors.pop(symbol, None)


def _half_space_trees() -> Any:
    try:
        from river.anomaly import HalfSpaceTrees  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise AnomalyUnavailable(
            "the anomaly detector needs the extra 'anomaly': pip install 'killswitch-cluster[anomaly]'"
        ) from error
    return HalfSpaceTrees

"""Value at risk and expected shortfall of the positions of now, from the returns that all of them had together.

Two ways, since each is blind where the other sees. Historical simulation (Jorion, *Value at Risk*, ch. 10) applies
every joint return that was seen to the positions of now. Delta-normal (RiskMetrics 1996; Jorion, ch. 10) takes the same
profits and losses for normal; their variance is that of the positions times the sample covariance matrix, so no matrix
is needed.

Sign: a loss is positive. With ``n`` profits and losses, confidence ``c``, ``a = 1 - c`` and ``L1 >= L2 >= ...``:

- historical VaR is ``L[ceil(n a)]``, an observation and never interpolated. Where two neighbours both are the quantile
  of the sample it is the larger loss (the upper quantile of Acerbi and Tasche 2002). Below ``1 / a`` observations it is
  the worst of all.
- historical ES is the mean of the worst ``n a`` losses, the last one in part (Acerbi and Tasche 2002, section 4):
  coherent, and never below the VaR.
- parametric VaR is ``z s - m`` and parametric ES ``s pdf(z) / a - m``, with the sample's mean ``m`` and standard
  deviation ``s`` (divided by ``n - 1``), and ``z`` the quantile of the normal distribution at ``c``.

What it does not do: tell what has never been seen. Options count with the move of their own price alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from killswitch.clock import NowNs, now_ns
from killswitch.risk.figures.value_at_risk_settings import LEVELS, ValueAtRiskSettings
from killswitch.risk.node_rule import NodeLevel
from killswitch.risk.order_inputs import LARGEST_NUMBER, finite_number, in_range, is_name
from killswitch.settings.settings_diff import needs_new_start

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

_NANOSECONDS_PER_MS = 1_000_000
_FIRST_CAPACITY = 64
_NAMED_IN_A_SENTENCE = 5
_NORMAL = NormalDist()


class FiguresUnavailable(ImportError):
    """The library of the figures is not installed; the message says what to install."""


def historical_var_usd(pnl_usd: Sequence[float] | Array, confidence: float) -> float:
    """Return the historical value at risk of these profits and losses.

    Raises:
        ValueError: there are none, one is not finite, or the confidence is not between 0 and 1.
    """
    losses_usd = _worst_first(pnl_usd)
    return float(losses_usd[math.ceil(_tail_size(len(losses_usd), confidence)) - 1])


def historical_es_usd(pnl_usd: Sequence[float] | Array, confidence: float) -> float:
    """Return the historical expected shortfall of these profits and losses. Raises as :func:`historical_var_usd`."""
    losses_usd = _worst_first(pnl_usd)
    tail = _tail_size(len(losses_usd), confidence)
    last = math.ceil(tail) - 1
    # As the VaR and what the worse ones have on top of it: so rounding cannot put it below the VaR.
    return float(losses_usd[last] + (losses_usd[:last] - losses_usd[last]).sum() / float(tail))


def parametric_var_usd(pnl_usd: Sequence[float] | Array, confidence: float, *, mean_usd: float | None = None) -> float:
    """Return the delta-normal value at risk; ``mean_usd`` instead of the sample's, 0 as RiskMetrics has it.

    Raises:
        ValueError: fewer than two, one is not finite, or the confidence is not between 0 and 1.
    """
    deviation_usd, mean_usd = _spread(pnl_usd, mean_usd)
    return _NORMAL.inv_cdf(1.0 - float(_tail_size(1, confidence))) * deviation_usd - mean_usd


def parametric_es_usd(pnl_usd: Sequence[float] | Array, confidence: float, *, mean_usd: float | None = None) -> float:
    """Return the delta-normal expected shortfall. Arguments and errors as :func:`parametric_var_usd`."""
    deviation_usd, mean_usd = _spread(pnl_usd, mean_usd)
    tail = float(_tail_size(1, confidence))
    return deviation_usd * _NORMAL.pdf(_NORMAL.inv_cdf(1.0 - tail)) / tail - mean_usd


def _numpy() -> Any:
    try:
        import numpy  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise FiguresUnavailable(
            "value at risk needs the extra 'figures': pip install 'killswitch-cluster[figures]'"
        ) from error
    return numpy


def _finite(pnl_usd: Sequence[float] | Array) -> Any:
    np = _numpy()
    values = np.asarray(pnl_usd, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("profits and losses must be a row of at least one number")
    if not np.isfinite(values).all():
        raise ValueError("profits and losses must be finite numbers; an unknown one is not left out")
    return values


def _worst_first(pnl_usd: Sequence[float] | Array) -> Any:
    return -_numpy().sort(_finite(pnl_usd))


def _tail_size(observations: int, confidence: float) -> Decimal:
    """How many observations lie in the tail. As decimals: 500 times 0.01 is 5, in floats a little more."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence lies between 0 and 1, and {confidence!r} does not")
    return observations * (1 - Decimal(repr(float(confidence))))


def _spread(pnl_usd: Sequence[float] | Array, mean_usd: float | None) -> tuple[float, float]:
    values = _finite(pnl_usd)
    if len(values) < 2:  # noqa: PLR2004 - a deviation needs two
        raise ValueError("a standard deviation needs at least two profits and losses")
    return float(values.std(ddof=1)), float(values.mean()) if mean_usd is None else mean_usd


class JointReturns(NamedTuple):
    """What is known of some symbols together.

    Attributes:
        returns: one row for each step over which the prices of all of them are known, one column for each symbol.
        without_history: symbols with too few returns of their own.
        unfit: symbols whose newest price is missing, bad or stale, or whose price has never moved.
    """

    returns: Array
    without_history: tuple[str, ...]
    unfit: tuple[str, ...]


class ReturnHistory:
    """Prices of every symbol, sampled together. Prices may come from any thread; memory is bounded by the settings.

    A sample is taken at the first price, or the first question, that comes ``sample_every_ms`` after the sample before.
    A symbol whose newest price is bad or stale then has no price in it. Its move is not lost: the return over the whole
    gap counts in the step in which the price is back. Only samples in which *all* symbols that are asked for have a
    price count for them together.

    Raises:
        FiguresUnavailable: numpy is not installed.
    """

    def __init__(self, settings: ValueAtRiskSettings, *, clock: NowNs = now_ns) -> None:
        np = self._np = _numpy()
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._index: dict[str, int] = {}
        self._newest = np.full(_FIRST_CAPACITY, np.nan)
        self._at_ns = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        # One price more than returns; a row for each symbol, since it is asked for by symbol.
        self._kept = settings.observations_kept + 1
        self._grid = np.full((_FIRST_CAPACITY, self._kept), np.nan)
        self._samples = 0
        self._seen_ns: int | None = None
        self._sampled_ns = 0

    def on_price(self, symbol: str, price_usd: float) -> None:
        """Take in a price. A bad one makes the symbol unfit until a good one comes. Never raises."""
        if not is_name(symbol):
            return
        price = finite_number(price_usd)
        with self._lock:
            at_ns = self._advance()
            index = self._index_of(symbol)
            if index is None:
                return
            good = at_ns is not None and price is not None and in_range(price)
            self._newest[index] = price if good else math.nan
            self._at_ns[index] = at_ns or 0

    def preload(self, samples: Iterable[Mapping[str, float]]) -> None:
        """Take in samples of before, oldest first and ``sample_every_ms`` apart; bad prices of them are left out.

        Until live prices come their symbols are unfit; the return between the two is one observation.
        """
        with self._lock:
            for sample in samples:
                placed = [(self._index_of(name), finite_number(price)) for name, price in sample.items()]
                row = self._np.full(len(self._newest), math.nan)
                for index, price in placed:
                    if index is not None and price is not None and in_range(price):
                        row[index] = price
                self._keep(row)

    def joint_returns(self, symbols: Sequence[str]) -> JointReturns:
        """Return what is known of these symbols together, sampling first when it is time to. Never raises."""
        np = self._np
        with self._lock, np.errstate(all="ignore"):
            at_ns = self._advance()
            known_names = [name for name in symbols if name in self._index]
            index = np.array([self._index[name] for name in known_names], dtype=np.intp)
            fresh = self._fresh(at_ns)[index]
            rows, samples = self._grid[index], self._samples
        # Outside of the lock, since the copy is ours: oldest first.
        oldest = samples % self._kept if samples > self._kept else 0
        prices = np.concatenate((rows[:, oldest : min(samples, self._kept)], rows[:, :oldest]), axis=1)
        with np.errstate(all="ignore"):
            there = np.isfinite(prices)
            enough = there.sum(axis=1) > self._settings.min_observations
            # A feed that stands still looks like a position without risk, so it must not count as one.
            least = np.where(there, prices, np.inf).min(axis=1, initial=np.inf)
            moved = np.where(there, prices, -np.inf).max(axis=1, initial=-np.inf) > least
            together = prices[:, there.all(axis=0)]
            returns = (together[:, 1:] / together[:, :-1] - 1.0).T
        fit = dict(zip(known_names, (fresh & (moved | ~enough)).tolist(), strict=True))
        sufficient = dict(zip(known_names, enough.tolist(), strict=True))
        return JointReturns(
            returns=returns,
            without_history=tuple(name for name in symbols if not sufficient.get(name, False)),
            unfit=tuple(name for name in symbols if not fit.get(name, False)),
        )

    def _advance(self) -> int | None:
        """Return the time, and take the sample that is due; ``None`` when the clock does not tell."""
        try:
            at_ns = int(self._clock())
        except Exception:  # the age of no price is known then
            return None
        if self._seen_ns is None:
            self._sampled_ns = at_ns
        elif at_ns < self._seen_ns:
            # A clock that went back: how old any price is, is not known any more.
            self._newest[:] = self._np.nan
            self._sampled_ns = at_ns
        self._seen_ns = at_ns
        if at_ns - self._sampled_ns >= self._settings.sample_every_ms * _NANOSECONDS_PER_MS:
            self._sampled_ns = at_ns
            self._keep(self._np.where(self._fresh(at_ns), self._newest, self._np.nan))
        return at_ns

    def _fresh(self, at_ns: int | None) -> Any:
        """Whether the newest price of each symbol is one, and young enough."""
        if at_ns is None:
            return self._np.zeros(len(self._newest), dtype=bool)
        young = at_ns - self._at_ns <= self._settings.max_age_ms * _NANOSECONDS_PER_MS
        return young & self._np.isfinite(self._newest)

    def _keep(self, row: Any) -> None:
        if not self._np.isfinite(row).any():
            return  # a time in which nothing at all came pushes nothing out
        self._grid[:, self._samples % self._kept] = row
        self._samples += 1

    def _index_of(self, symbol: str) -> int | None:
        index = self._index.get(symbol)
        if index is not None:
            return index
        index = len(self._index)
        if index >= self._settings.max_symbols:
            return None  # one symbol too many has no history, which is told when it is held
        if index == len(self._newest):
            np, more = self._np, min(index, self._settings.max_symbols - index)
            self._newest = np.concatenate((self._newest, np.full(more, np.nan)))
            self._at_ns = np.concatenate((self._at_ns, np.zeros(more, dtype=np.int64)))
            self._grid = np.concatenate((self._grid, np.full((more, self._kept), np.nan)))
        self._index[symbol] = index
        return index


@dataclass(frozen=True, slots=True)
class ValueAtRiskFigures:
    """Value at risk and expected shortfall over one sampling step, in USD; a loss is positive.

    Attributes:
        historical_var_usd, historical_es_usd: by historical simulation. A tail that gains counts as 0. Infinite when
            not trusted, as all four: so nothing that compares them takes what is unknown for little.
        parametric_var_usd, parametric_es_usd: delta-normal. A mean that gains counts as 0: no drift is relied on.
        observations: joint returns that they are from.
        symbols_without_history: held, with too few returns.
        symbols_unfit: held, and the newest price is missing, bad or stale, or the price has never moved.
        trusted: they may be judged by.
        sentence: the figures, or why there are none.
    """

    historical_var_usd: float
    historical_es_usd: float
    parametric_var_usd: float
    parametric_es_usd: float
    observations: int
    symbols_without_history: tuple[str, ...]
    symbols_unfit: tuple[str, ...]
    trusted: bool
    sentence: str


class ValueAtRiskMonitor:
    """The figures of whatever is held, from a history of its own. Any thread may call.

    Raises:
        FiguresUnavailable: numpy is not installed.
    """

    def __init__(
        self, settings: ValueAtRiskSettings, *, clock: NowNs = now_ns, history: ReturnHistory | None = None
    ) -> None:
        self.settings = settings
        self.history = ReturnHistory(settings, clock=clock) if history is None else history
        self._np = _numpy()

    def set_settings(self, settings: ValueAtRiskSettings) -> None:
        """Hold the figures against other levels from now on; the history stays.

        Raises:
            ValueError: something differs that the history or the figures are made with, which needs a new start.
                Nothing has changed.
        """
        names = [
            f"value_at_risk.{name}"
            for name in type(settings).model_fields
            if name not in LEVELS and getattr(settings, name) != getattr(self.settings, name)
        ]
        if names:
            raise ValueError(needs_new_start(names))
        self.settings = settings

    def on_price(self, symbol: str, price_usd: float) -> None:
        """Take in a price of a symbol, held or not. Never raises."""
        self.history.on_price(symbol, price_usd)

    def figures(self, positions_usd: Mapping[str, float]) -> ValueAtRiskFigures:
        """Return the figures of positions, each its value in USD, below 0 when short. Never raises for bad numbers."""
        held_usd: dict[str, float] = {}
        for symbol, position_usd in positions_usd.items():
            value = finite_number(position_usd)
            if value is None or abs(value) > LARGEST_NUMBER or not is_name(symbol):
                return _unknown(
                    f"the position in {symbol!r} is {position_usd!r}, not finite or above {LARGEST_NUMBER:g}"
                )
            if value != 0.0:
                held_usd[symbol] = value
        if not held_usd:
            return ValueAtRiskFigures(0.0, 0.0, 0.0, 0.0, 0, (), (), True, "nothing is held, so nothing is at risk")
        joint = self.history.joint_returns(tuple(held_usd))
        observations, least = len(joint.returns), self.settings.min_observations
        if joint.without_history:
            what = f"fewer than {least} returns are known of {_some(joint.without_history)}"
        elif joint.unfit:
            what = f"no price that is good, young and moving is known of {_some(joint.unfit)}"
        elif observations < least:
            what = f"all {len(held_usd)} prices together are known over {observations} steps, and {least} are needed"
        else:
            return self._trusted(joint.returns, held_usd)
        return _unknown(what, observations, joint)

    def _trusted(self, returns: Array, held_usd: Mapping[str, float]) -> ValueAtRiskFigures:
        np, settings, confidence = self._np, self.settings, self.settings.confidence
        with np.errstate(all="ignore"):
            pnl_usd = returns @ np.fromiter(held_usd.values(), dtype=np.float64, count=len(held_usd))
            mean_usd = min(0.0, float(pnl_usd.mean()))
            spread_usd = float(pnl_usd.std(ddof=1))
        if not math.isfinite(spread_usd + mean_usd):
            return _unknown("the profits and losses are too large for a number", len(returns))
        var_usd = max(0.0, historical_var_usd(pnl_usd, confidence))
        es_usd = max(0.0, historical_es_usd(pnl_usd, confidence))
        normal_var_usd = max(0.0, parametric_var_usd(pnl_usd, confidence, mean_usd=mean_usd))
        normal_es_usd = max(0.0, parametric_es_usd(pnl_usd, confidence, mean_usd=mean_usd))
        count = len(returns)
        sentence = (
            f"in {settings.sample_every_ms / 1_000:g} s at {100 * confidence:g} %: VaR {var_usd:,.2f} USD (parametric "
            f"{normal_var_usd:,.2f}), ES {es_usd:,.2f} USD (parametric {normal_es_usd:,.2f}), from {count} returns of "
            f"{len(held_usd)} symbols"
        )
        return ValueAtRiskFigures(var_usd, es_usd, normal_var_usd, normal_es_usd, count, (), (), True, sentence)

    def judged_usd(self, figures: ValueAtRiskFigures) -> float:
        """Return what the levels are held against: the larger of historical and parametric, of the measure set."""
        if self.settings.measure == "var":
            return max(figures.historical_var_usd, figures.parametric_var_usd)
        return max(figures.historical_es_usd, figures.parametric_es_usd)

    def level(self, figures: ValueAtRiskFigures) -> NodeLevel | None:
        """Return how far these figures go; a value at a level counts. Without a level set nothing is judged."""
        settings = self.settings  # one set of levels, whoever changes them meanwhile
        if settings.warning_usd is None and settings.hard_usd is None:
            return None
        if not figures.trusted:
            # What could at most have warned does no more when it is unknown.
            return "warning" if settings.hard_usd is None else settings.unknown
        value_usd = self.judged_usd(figures)
        if settings.hard_usd is not None and not value_usd < settings.hard_usd:
            return settings.hard
        return "warning" if settings.warning_usd is not None and not value_usd < settings.warning_usd else None


def _unknown(what: str, observations: int = 0, joint: JointReturns | None = None) -> ValueAtRiskFigures:
    without, unfit = ((), ()) if joint is None else (joint.without_history, joint.unfit)
    sentence, inf = f"value at risk is unknown: {what}", math.inf
    return ValueAtRiskFigures(inf, inf, inf, inf, observations, without, unfit, False, sentence)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_IN_A_SENTENCE
    return ", ".join(names[:_NAMED_IN_A_SENTENCE]) + (f" and {more} more" if more > 0 else "")

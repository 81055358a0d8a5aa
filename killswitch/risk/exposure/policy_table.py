"""What the exposure asks for at this time of day: a table, deterministic and total.

The law of the table: raising any exposure, moving to a later regime, or coming nearer to the close never makes the mode
looser. Nothing is raised, whatever is passed in.

UNKNOWN IS FROZEN, and what a figure that is not finite must *not* do: sell. A NaN, an infinity, an equity of 0 (which
makes every percentage infinite), a negative percentage or a regime that does not exist gives the strictest mode,
``HARD_DERISK``, with a reason of kind ``unknown``. For such a reason no derisk order is ever planned
(:mod:`derisk_plan`) and the freeze that it maps to is ``FROZEN``: a broken feed stops trading, but does not
sell a book that may be sound. A person looks.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from killswitch.core.modes import Mode
from killswitch.risk.exposure.policy_settings import RiskRules
from killswitch.risk.order_inputs import finite_number


class PolicyMode(enum.IntEnum):
    """What is asked of execution, from loosest to strictest, so that ``max`` picks the strictest.

    ``NORMAL``: nothing. ``THROTTLE_NEW_ORDERS``: no order that could grow the exposure; it never forces a sale.
    ``SOFT_DERISK``: limit orders near the last trade. ``HARD_DERISK``: cross the spread, step by step.
    """

    NORMAL = 0
    THROTTLE_NEW_ORDERS = 1
    SOFT_DERISK = 2
    HARD_DERISK = 3


class Regime(enum.IntEnum):
    """Part of the trading day, from the loosest to the strictest."""

    OPEN = 0
    EARLY = 1
    MID = 2
    LATE = 3
    CLOSE = 4


ReasonKind = Literal[
    "within_limits", "potential", "bucket_potential", "bucket", "tolerance", "close_tolerance", "hard_cap", "unknown"
]
"""Why a mode was chosen. ``unknown`` is the only kind for which nothing may be sold."""


@dataclass(frozen=True, slots=True)
class PolicyReason:
    """Why the mode is what it is.

    Attributes:
        kind: the cause in one word.
        figure: name of the argument that decided, ``None`` when everything is within its limits.
        value: what it was, per cent of equity; ``None`` when it is not a finite number.
        limit: what it was held against, per cent of equity; ``None`` when there is no limit to name.
        regime: the regime that was applied, ``None`` when it is unknown.
        bucket: the bucket that is concerned, ``None`` for the whole book.
        sentence: the reason for people.
        inputs: every argument as it came, as numbers or words.
    """

    kind: ReasonKind
    figure: str | None
    value: float | None
    limit: float | None
    regime: Regime | None
    bucket: str | None
    sentence: str
    inputs: Mapping[str, float | str]


PERCENTAGES: Final = (
    "gross_exposure_pct",
    "potential_exposure_pct",
    "lt_current_pct",
    "lt_potential_pct",
    "mm_current_pct",
    "mm_potential_pct",
)

_BUCKETS: Final = (("LT", "lt_current_pct", "lt_potential_pct"), ("MM_PURE", "mm_current_pct", "mm_potential_pct"))


@dataclass(frozen=True, slots=True)
class _Row:
    """One regime of the table; figures in per cent of equity."""

    tolerance_pct: float
    at_tolerance: PolicyMode


@dataclass(frozen=True, slots=True)
class _Finding:
    mode: PolicyMode
    kind: ReasonKind
    figure: str
    value: float
    limit: float
    bucket: str | None
    words: str


class PolicyDecisionTable:
    """The table. It holds settings only, so it may be shared between threads.

    What counts as reached:

    * a regime's tolerance and the hard cap count *at* their value (115 % in ``LATE`` is a derisk already);
    * the most of a bucket is the most that it *may* hold: exactly 90 % is allowed, above it counts. (90 and 30 are 120,
      which is a normal book at the open.)

    In order of strictness:

    1. an argument that is unknown: ``HARD_DERISK``, and nothing is sold (see the module);
    2. gross exposure at the hard cap, at any time: ``HARD_DERISK``;
    3. gross exposure at the tolerance of ``CLOSE`` in its last minutes: ``HARD_DERISK``;
    4. gross exposure at the tolerance of the regime, or a bucket above its most: ``SOFT_DERISK``; in a regime without
       derisk (``OPEN``, ``EARLY``) ``THROTTLE_NEW_ORDERS``;
    5. only what working orders could make of it would reach one of these: ``THROTTLE_NEW_ORDERS``;
    6. else ``NORMAL``.

    Args:
        rules: the tolerance table, the hard cap and the buckets; the defaults when ``None``.
    """

    def __init__(self, rules: RiskRules | None = None) -> None:
        self.rules = rules if rules is not None else RiskRules()
        regimes = self.rules.regimes
        self._rows: dict[Regime, _Row] = {}
        for regime in Regime:
            row = getattr(regimes, regime.name)
            mode = PolicyMode.SOFT_DERISK if row.derisk == "soft" else PolicyMode.THROTTLE_NEW_ORDERS
            self._rows[regime] = _Row(row.tolerance_pct, mode)
        self._late_from = regimes.LATE.from_minutes_to_close
        self._close_from = regimes.CLOSE.from_minutes_to_close
        self._hard_from = regimes.CLOSE.hard_from_minutes_to_close
        self._cap_pct = self.rules.exposure.gross_hard_cap_pct
        buckets = self.rules.exposure.buckets
        self._bucket_max = {"LT": buckets.LT.max_pct, "MM_PURE": buckets.MM_PURE.max_pct}

    def decide(
        self,
        regime: Regime | str,
        gross_exposure_pct: float,
        potential_exposure_pct: float,
        lt_current_pct: float,
        lt_potential_pct: float,
        mm_current_pct: float,
        mm_potential_pct: float,
        minutes_to_close: float,
    ) -> tuple[PolicyMode, PolicyReason]:
        """Return the mode and why. Never raises.

        Args:
            regime: part of the day. Near the close the stricter of this and what the minutes say is applied.
            gross_exposure_pct: (abs(long) + abs(short)) / equity * 100.
            potential_exposure_pct: the same with the worst of the working orders filled. Below the current figure it
                counts as the current one: no working order takes anything away for certain.
            lt_current_pct: the same as gross, of bucket LT.
            lt_potential_pct: the same as potential, of bucket LT.
            mm_current_pct: of bucket MM_PURE.
            mm_potential_pct: of bucket MM_PURE.
            minutes_to_close: until the close; 0 or less after it; ``math.inf`` at a venue that never closes.
        """
        given = (
            gross_exposure_pct,
            potential_exposure_pct,
            lt_current_pct,
            lt_potential_pct,
            mm_current_pct,
            mm_potential_pct,
        )
        named = _regime(regime)
        minutes = _minutes(minutes_to_close)
        figures: dict[str, float] = {}
        for name, raw in zip(PERCENTAGES, given, strict=True):
            number = raw if raw.__class__ is float and 0.0 <= raw < math.inf else finite_number(raw)
            if number is None or number < 0.0:
                return self._unknown(name, raw, named, _inputs(regime, given, minutes_to_close))
            figures[name] = number
        if named is None:
            return self._unknown("regime", regime, None, _inputs(regime, given, minutes_to_close))
        if minutes is None:
            return self._unknown("minutes_to_close", minutes_to_close, named, _inputs(regime, given, minutes_to_close))
        applied = max(named, self._regime_by_minutes(minutes))
        finding = self._strictest(applied, minutes, figures)
        inputs = _inputs(regime, given, minutes_to_close)
        if finding is None:
            row = self._rows[applied]
            sentence = (
                f"{applied.name}: gross exposure {figures['gross_exposure_pct']:g} % is below the tolerance of "
                f"{row.tolerance_pct:g} %, and so is what working orders could make of it"
            )
            return PolicyMode.NORMAL, PolicyReason("within_limits", None, None, None, applied, None, sentence, inputs)
        sentence = f"{applied.name}: {finding.words}"
        reason = PolicyReason(
            finding.kind, finding.figure, finding.value, finding.limit, applied, finding.bucket, sentence, inputs
        )
        return finding.mode, reason

    def _regime_by_minutes(self, minutes: float) -> Regime:
        if minutes <= self._close_from:
            return Regime.CLOSE
        return Regime.LATE if minutes <= self._late_from else Regime.OPEN

    def _strictest(self, regime: Regime, minutes: float, figures: Mapping[str, float]) -> _Finding | None:
        """Return what decides: the strictest finding, the first of equals."""
        row = self._rows[regime]
        gross = figures["gross_exposure_pct"]
        name = "gross_exposure_pct"
        if gross >= self._cap_pct:
            words = f"gross exposure {gross:g} % is at or above the hard cap of {self._cap_pct:g} %"
            return _Finding(PolicyMode.HARD_DERISK, "hard_cap", name, gross, self._cap_pct, None, words)
        if gross >= row.tolerance_pct:
            words = f"gross exposure {gross:g} % is at or above the tolerance of {row.tolerance_pct:g} %"
            if regime is Regime.CLOSE and minutes <= self._hard_from:
                words += f" with {max(minutes, 0.0):g} minutes to the close"
                limit = row.tolerance_pct
                return _Finding(PolicyMode.HARD_DERISK, "close_tolerance", name, gross, limit, None, words)
            return _Finding(row.at_tolerance, "tolerance", name, gross, row.tolerance_pct, None, words)
        for bucket, current, _ in _BUCKETS:
            value, limit = figures[current], self._bucket_max[bucket]
            if value > limit:
                words = f"bucket {bucket} holds {value:g} %, above its most of {limit:g} %"
                return _Finding(row.at_tolerance, "bucket", current, value, limit, bucket, words)
        potential = figures["potential_exposure_pct"]
        throttle = PolicyMode.THROTTLE_NEW_ORDERS
        if potential >= row.tolerance_pct:
            words = (
                f"working orders could bring the gross exposure from {gross:g} % to {potential:g} %, at or above the "
                f"tolerance of {row.tolerance_pct:g} %"
            )
            limit = row.tolerance_pct
            return _Finding(throttle, "potential", "potential_exposure_pct", potential, limit, None, words)
        for bucket, current, name in _BUCKETS:
            value, limit = figures[name], self._bucket_max[bucket]
            if value > limit:
                words = (
                    f"working orders could bring bucket {bucket} from {figures[current]:g} % to {value:g} %, above its "
                    f"most of {limit:g} %"
                )
                return _Finding(throttle, "bucket_potential", name, value, limit, bucket, words)
        return None

    @staticmethod
    def _unknown(
        figure: str, raw: object, regime: Regime | None, inputs: Mapping[str, float | str]
    ) -> tuple[PolicyMode, PolicyReason]:
        sentence = (
            f"{figure} is {_word(raw)}, which cannot be judged: the strictest mode holds, and nothing is sold for it"
        )
        reason = PolicyReason("unknown", figure, None, None, regime, None, sentence, inputs)
        return PolicyMode.HARD_DERISK, reason


@dataclass(frozen=True, slots=True)
class Restriction:
    """What a mode means for those who send orders, in the words of the cluster.

    Attributes:
        mode: how far to freeze: ``ACTIVE`` is no freeze.
        growing_orders: whether an order that could grow the exposure may be sent. Cancels always may.
    """

    mode: Mode
    growing_orders: bool


def restriction_of(mode: PolicyMode, reason: PolicyReason) -> Restriction:
    """Say what a decision asks of the order path; pure.

    ``NORMAL`` asks nothing; ``THROTTLE_NEW_ORDERS`` refuses growing orders and is no freeze; both derisks are a freeze
    ``REDUCE_ONLY``; a decision on unknown figures is a freeze ``FROZEN``.
    """
    if reason.kind == "unknown":
        return Restriction(Mode.FROZEN, growing_orders=False)
    if mode >= PolicyMode.SOFT_DERISK:
        return Restriction(Mode.REDUCE_ONLY, growing_orders=False)
    return Restriction(Mode.ACTIVE, growing_orders=mode is PolicyMode.NORMAL)


def _regime(given: object) -> Regime | None:
    if isinstance(given, Regime):
        return given
    return Regime.__members__.get(given.strip().upper()) if isinstance(given, str) else None


def _minutes(given: object) -> float | None:
    """Minutes as a number. Infinity is one here (never closes); minus infinity and NaN are not."""
    if isinstance(given, float) and given == math.inf:
        return math.inf
    return finite_number(given)


def _inputs(regime: object, given: tuple[object, ...], minutes: object) -> Mapping[str, float | str]:
    names = ("regime", *PERCENTAGES, "minutes_to_close")
    raw = (regime, *given, minutes)
    return MappingProxyType({name: _word(value) for name, value in zip(names, raw, strict=True)})


def _word(value: object) -> float | str:
    """A finite number as itself, a regime by name, anything else as a word that JSON can hold."""
    if isinstance(value, Regime):
        return value.name
    number = finite_number(value)
    if number is not None:
        return number
    if isinstance(value, float):
        return str(value)
    return value[:64] if isinstance(value, str) else f"a {type(value).__name__}"

"""Limits by symbol, by time of day and by volatility: they only ever tighten the two limits of a monitor.

What is not known is as tight as it can be: a session clock that fails or says nonsense takes the tightest session, a
volatility that never came, is not a number or is too old takes the tightest step.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
import zoneinfo
from bisect import bisect_right
from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, NamedTuple

from pydantic import Field, StrictStr

from killswitch.clock import NowNs, now_ns
from killswitch.risk.exact import EXACT, exact
from killswitch.risk.order_inputs import finite_number, is_name
from killswitch.settings.section import Lower, Ms, Neither, Section, SymbolName, Usd

MINUTES_PER_DAY = 1_440
MAX_SYMBOLS = 10_000
MAX_STEPS = 100

SESSION_LOOK_MS = 50
"""How long one answer of the session clock is taken for the present."""

MinuteOfDay = Callable[[], float]
"""Minutes since midnight in the calendar of the venue, 0 to below 1440."""

_NANOSECONDS_PER_MS = 1_000_000

_Percent = Annotated[int, Field(strict=True, ge=0, le=100)]


class SessionStep(Section):
    """From a time of day on, how much of the limits holds."""

    from_minute: Annotated[int, Field(strict=True, ge=0, lt=MINUTES_PER_DAY)] = Field(
        ..., description="Minutes since midnight on the session clock: 570 is half past nine."
    )
    limit_pct: _Percent = Field(..., description="Per cent of both limits; 0 lets nothing grow.")


class VolatilityStep(Section):
    """Up to a volatility, how much of the symbol's limit holds."""

    up_to_ratio: Annotated[float, Field(strict=True, gt=0)] = Field(
        ..., description="Ratio: 0.02 is two per cent. The step holds up to and with this volatility."
    )
    limit_pct: _Percent = Field(..., description="Per cent of the symbol's limit; 0 lets nothing grow.")


class LimitScheduleSettings(Section):
    """Limits by symbol, by time of day and by volatility. All of them tighten; of several the tightest holds."""

    symbol_max_inventory_usd: Lower[dict[SymbolName, Usd]] = Field(
        default_factory=dict,
        description="USD. Limits of single symbols; where the monitor's own limit is lower, that one holds.",
        max_length=MAX_SYMBOLS,
    )
    sessions: Neither[tuple[SessionStep, ...]] = Field(
        (), description="By time of day, earliest first; the last one goes on past midnight.", max_length=MAX_STEPS
    )
    time_zone: Neither[Annotated[StrictStr, Field(min_length=1, max_length=64)] | None] = Field(
        None,
        description="Name of the time zone whose midnight the sessions count from, such as Europe/London. Absent: the "
        "process gives a session clock of its own; without one the tightest session holds all day.",
    )
    volatility: Neither[tuple[VolatilityStep, ...]] = Field(
        (), description="By volatility of the symbol, calmest first; above the last the last percentage holds.",
        max_length=MAX_STEPS,
    )  # fmt: skip
    volatility_max_age_ms: Lower[Ms] = Field(
        60_000, description="Milliseconds. An older volatility counts as unknown: the tightest step holds."
    )

    def faults(self) -> list[str]:
        """Return one sentence for each list that is not in order."""
        faults = []
        if self.time_zone is not None and not _is_zone(self.time_zone):
            faults.append(
                f"time_zone: {self.time_zone!r} is no time zone that this machine knows; names are those of the IANA "
                "database, which the package tzdata brings where the machine has none"
            )
        if any(later.from_minute <= earlier.from_minute for earlier, later in pairwise(self.sessions)):
            faults.append("sessions: the times must grow from step to step")
        if any(later.up_to_ratio <= earlier.up_to_ratio for earlier, later in pairwise(self.volatility)):
            faults.append("volatility: the ratios must grow from step to step")
        if any(later.limit_pct > earlier.limit_pct for earlier, later in pairwise(self.volatility)):
            faults.append("volatility: a higher volatility must not loosen the limit")
        return faults


def session_clock_of(settings: LimitScheduleSettings | None, given: MinuteOfDay | None) -> MinuteOfDay:
    """Return the time of day of a process: as it was given, else in the time zone of its settings, else unknown."""
    if given is not None:
        return given
    zone = None if settings is None else settings.time_zone
    return _unknown_minute if zone is None else minute_in(zone)


def minute_in(time_zone: str, *, wall_ns: Callable[[], int] = time.time_ns) -> MinuteOfDay:
    """Return the time of day in a time zone, summer time and all.

    Args:
        time_zone: its name in the IANA database.
        wall_ns: nanoseconds since 1970 in UTC; the wall clock of this machine unless told otherwise.

    Raises:
        ZoneInfoNotFoundError, ValueError: there is no such zone here.
    """
    zone = zoneinfo.ZoneInfo(time_zone)

    def minute() -> float:
        now = dt.datetime.fromtimestamp(wall_ns() // 1_000_000_000, zone)
        return 60.0 * now.hour + now.minute + now.second / 60.0

    return minute


def _unknown_minute() -> float:
    """Nobody said which time of day it is: the schedule takes its tightest session."""
    return -1.0


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not there, no name at all, a directory
        return False
    return True


class EffectiveLimits(NamedTuple):
    """The two limits as they are at one moment, in USD; the exact ones decide, the floats are for quick looks."""

    symbol_usd: float
    total_usd: float
    exact_symbol_usd: Decimal
    exact_total_usd: Decimal


class ScheduleTable:
    """The steps of one :class:`LimitScheduleSettings`, and what they make of what is known. Made anew for others.

    So whoever holds one table never mixes the steps of two settings, which could be looser than either.

    Attributes:
        symbol_limits_usd: limits of single symbols, in USD.
        volatility: by symbol: per cent, when it was said, and the ratio that was said.
    """

    __slots__ = (
        "_clock", "_max_age_ns", "_ratios", "_session_clock", "_session_from", "_session_from_ns", "_session_now",
        "_session_pct", "_session_until_ns", "_tightest_session", "_tightest_volatility", "_volatility_pct",
        "symbol_limits_usd", "volatility",
    )  # fmt: skip

    def __init__(
        self,
        settings: LimitScheduleSettings,
        known: Mapping[str, tuple[int, int, float]],
        *,
        session_clock: MinuteOfDay | None,
        clock: NowNs,
    ) -> None:
        if session_clock is None and settings.time_zone is not None:
            session_clock = minute_in(settings.time_zone)
        if settings.sessions and session_clock is None:
            raise ValueError("limits by time of day need a session clock; none was given")
        self.symbol_limits_usd = dict(settings.symbol_max_inventory_usd)
        self._session_clock = session_clock
        self._session_from = tuple(float(step.from_minute) for step in settings.sessions)
        self._session_pct = tuple(step.limit_pct for step in settings.sessions)
        self._tightest_session = min(self._session_pct, default=100)
        self._ratios = tuple(step.up_to_ratio for step in settings.volatility)
        self._volatility_pct = tuple(step.limit_pct for step in settings.volatility)
        self._tightest_volatility = min(self._volatility_pct, default=100)
        self._session_now = self._tightest_session
        self._session_from_ns = self._session_until_ns = 0
        self._max_age_ns = settings.volatility_max_age_ms * _NANOSECONDS_PER_MS
        self._clock = clock
        self.volatility = {
            symbol: (self.percent_at(ratio), at_ns, ratio) for symbol, (_, at_ns, ratio) in known.items()
        }

    def percent_at(self, ratio: float) -> int:
        """Per cent of the symbol's limit at a volatility."""
        step = 0
        while step < len(self._ratios) - 1 and ratio > self._ratios[step]:
            step += 1
        return self._volatility_pct[step] if self._volatility_pct else 100

    def percent(self, symbol: str) -> tuple[int, int]:
        """How much of the symbol's limit and of the total limit holds now, in per cent. Never raises.

        The session clock is asked again after :data:`SESSION_LOOK_MS`, not at every order.
        """
        try:
            now_ns = self._clock()
            if not self._session_from_ns <= now_ns < self._session_until_ns:
                self._session_now = self._session_percent()
                self._session_until_ns = now_ns + SESSION_LOOK_MS * _NANOSECONDS_PER_MS
                self._session_from_ns = now_ns
            session = self._session_now
            if not self._volatility_pct:
                return session, session
            known = self.volatility.get(symbol)
            if known is not None and 0 <= now_ns - known[1] <= self._max_age_ns:
                volatile = known[0]
            else:
                volatile = self._tightest_volatility
        except Exception:  # a clock that fails leaves every age unknown
            return min(self._tightest_session, self._tightest_volatility), self._tightest_session
        return (volatile if volatile < session else session), session

    def _session_percent(self) -> int:
        if not self._session_pct:
            return 100
        try:
            minute = self._session_clock() if self._session_clock is not None else -1.0
            if not 0.0 <= minute < MINUTES_PER_DAY:
                return self._tightest_session
            # Before the first step of the day the last one of the day before goes on: index -1.
            return self._session_pct[bisect_right(self._session_from, minute) - 1]
        except Exception:  # a session clock that fails leaves the time of day unknown
            return self._tightest_session


class LimitSchedule:
    """The limits of each symbol at this moment. Thread-safe.

    Args:
        settings: how the limits tighten.
        session_clock: the time of day; needed when there are sessions and no time zone.
        clock: nanoseconds, for the age of a volatility.

    Raises:
        ValueError: there are sessions and neither session clock nor time zone.

    Attributes:
        settings: the settings in force.
        table: their steps; another object after every change.
    """

    def __init__(
        self, settings: LimitScheduleSettings, *, session_clock: MinuteOfDay | None = None, clock: NowNs = now_ns
    ) -> None:
        self.settings = settings
        self._session_clock = session_clock
        self._clock = clock
        self._lock = threading.Lock()
        self.table = ScheduleTable(settings, {}, session_clock=session_clock, clock=clock)

    def set_settings(self, settings: LimitScheduleSettings, *, session_clock: MinuteOfDay | None = None) -> None:
        """Tighten by other steps from now on, in one step. Volatilities that are known are held against the new ones.

        Args:
            settings: the settings.
            session_clock: the time of day; the one that was given already when ``None``.

        Raises:
            ValueError: there are sessions and neither session clock nor time zone. Nothing has changed.
        """
        with self._lock:
            asked = session_clock if session_clock is not None else self._session_clock
            table = ScheduleTable(settings, self.table.volatility, session_clock=asked, clock=self._clock)
            self.settings, self._session_clock, self.table = settings, asked, table

    def on_volatility(self, symbol: str, ratio: float) -> None:
        """Take in the volatility of a symbol; what cannot be one counts as unknown. Never raises.

        Args:
            symbol: name of the instrument.
            ratio: 0.02 for two per cent; the same measure as in the settings.
        """
        if not is_name(symbol):
            return
        number = finite_number(ratio)
        try:
            at_ns = int(self._clock())
        except Exception:  # a clock that fails leaves its age unknown
            number, at_ns = None, 0
        with self._lock:
            table = self.table
            if number is None or number < 0.0:
                table.volatility.pop(symbol, None)
                return
            if symbol not in table.volatility and len(table.volatility) >= MAX_SYMBOLS:
                return  # one symbol too many stays unknown, and so at its tightest
            # The ratio is kept beside its step, and kept without steps too: steps that come later are for it as well.
            table.volatility[symbol] = (table.percent_at(number), at_ns, number)

    def percent(self, symbol: str) -> tuple[int, int]:
        """How much of the symbol's limit and of the total limit holds now, in per cent. Never raises."""
        return self.table.percent(symbol)

    def limits(self, symbol: str, symbol_usd: float, total_usd: float) -> EffectiveLimits:
        """The two limits of a symbol as they are now, from those of the monitor. Never raises."""
        table = self.table
        symbol_pct, total_pct = table.percent(symbol)
        own = table.symbol_limits_usd.get(symbol)
        base = symbol_usd if own is None or own > symbol_usd else own
        return EffectiveLimits(
            min(base, base * symbol_pct / 100.0),  # rounding must not make a hundred per cent more than the whole
            min(total_usd, total_usd * total_pct / 100.0),
            _part(base, symbol_pct),
            _part(total_usd, total_pct),
        )


def _part(usd: float, percent: int) -> Decimal:
    return EXACT.multiply(exact(usd), Decimal(percent).scaleb(-2))

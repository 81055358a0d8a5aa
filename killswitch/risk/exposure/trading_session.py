"""Where in the trading day a moment lies, by a named calendar: holidays, early closes, breaks, summer time.

The calendar library is asked once, when a schedule is loaded; what is kept is a list of instants in UTC, so a look-up
needs no library, knows no time zones, and takes the same time on any day. A venue that never closes has a calendar of
its own, ``24/7``, which needs no library at all.

Beyond the days that were loaded nothing is known, and the moment says so.
"""

from __future__ import annotations

import bisect
import datetime as dt
import itertools
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from killswitch.clock import NowNs, now_ns
from killswitch.risk.exposure.policy_settings import ALWAYS_OPEN, RegimeSettings, RiskRules
from killswitch.risk.exposure.policy_table import Regime

MAX_SESSIONS: Final = 20_000
"""Most sessions of one schedule: some eighty years of them."""

_MINUTE_NS = 60_000_000_000
_ANCHOR_NS = _MINUTE_NS
_MILLISECOND_NS = 1_000_000
_SLEW_DIVISOR = 2_000  # 500 parts per million: the fastest that a kernel slews its clock


class CalendarError(ValueError):
    """A calendar cannot be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TradingSession:
    """One day of trading; instants are nanoseconds since 1970 in UTC, ``close_ns`` is the first that is closed.

    Raises:
        ValueError: the instants are not in order.
    """

    day: str
    open_ns: int
    close_ns: int
    break_start_ns: int | None = None
    break_end_ns: int | None = None

    def __post_init__(self) -> None:
        instants = [self.open_ns, self.close_ns]
        if self.break_start_ns is not None and self.break_end_ns is not None:
            instants[1:1] = [self.break_start_ns, self.break_end_ns]
        elif self.break_start_ns is not None or self.break_end_ns is not None:
            raise ValueError(f"session {self.day} has one end of a break only")
        if any(later <= earlier for earlier, later in itertools.pairwise(instants)):
            raise ValueError(f"session {self.day} does not open, break and close in order")


@dataclass(frozen=True, slots=True)
class SessionMoment:
    """Where a moment lies.

    Attributes:
        known: False when the calendar or the clock cannot tell; then both minutes are NaN, which the policy table
            answers with its strictest mode.
        is_open: whether orders can trade now; False in a break.
        minutes_from_open: since the open of this session; 0 when closed; ``math.inf`` at a venue that never closes.
        minutes_to_close: until the close of this session, over its break; 0 when closed; ``math.inf`` as above.
        day: the session, ``YYYY-MM-DD``; empty when closed.
        sentence: the moment for people.
    """

    known: bool
    is_open: bool
    minutes_from_open: float
    minutes_to_close: float
    day: str
    sentence: str


class SessionSchedule(Protocol):
    """The hours of one venue."""

    @property
    def name(self) -> str:
        """Name of its calendar."""
        ...

    def at(self, utc_ns: int) -> SessionMoment:
        """Tell where an instant lies, in nanoseconds since 1970 in UTC. Never raises."""
        ...


class AlwaysOpen:
    """The calendar of a venue that never closes."""

    name = ALWAYS_OPEN

    def at(self, utc_ns: int) -> SessionMoment:  # noqa: ARG002 - every moment is the same
        """Every moment is open and infinitely far from open and close."""
        return SessionMoment(True, True, math.inf, math.inf, "", f"{ALWAYS_OPEN}: open, and never closes")


class SessionList:
    """The hours of a venue as a list of sessions.

    Args:
        name: of the calendar.
        sessions: in order of time, not overlapping, at most :data:`MAX_SESSIONS`.
        known_from_ns: before this instant nothing is known; the first open when ``None``.
        known_until_ns: from this instant on nothing is known; the last close when ``None``.

    Raises:
        ValueError: there are none, too many, or they overlap.
    """

    def __init__(
        self,
        name: str,
        sessions: Iterable[TradingSession],
        *,
        known_from_ns: int | None = None,
        known_until_ns: int | None = None,
    ) -> None:
        self.name = name
        self.sessions = tuple(sessions)
        if not self.sessions:
            raise ValueError(f"{name}: no session")
        if len(self.sessions) > MAX_SESSIONS:
            raise ValueError(f"{name}: {len(self.sessions)} sessions are more than {MAX_SESSIONS}")
        for before, after in itertools.pairwise(self.sessions):
            if after.open_ns < before.close_ns:
                raise ValueError(f"{name}: session {after.day} opens before {before.day} has closed")
        self.known_from_ns = self.sessions[0].open_ns if known_from_ns is None else known_from_ns
        self.known_until_ns = self.sessions[-1].close_ns if known_until_ns is None else known_until_ns
        self._opens_ns = [session.open_ns for session in self.sessions]

    def at(self, utc_ns: int) -> SessionMoment:
        """Tell where an instant lies. Never raises."""
        if not self.known_from_ns <= utc_ns < self.known_until_ns:
            return unknown_moment(
                f"{self.name}: {_utc(utc_ns)} is outside the days that were loaded, {_utc(self.known_from_ns)} to "
                f"{_utc(self.known_until_ns)}; load the calendar again"
            )
        index = bisect.bisect_right(self._opens_ns, utc_ns) - 1
        session = self.sessions[index] if index >= 0 else None
        if session is None or utc_ns >= session.close_ns:
            return SessionMoment(True, False, 0.0, 0.0, "", f"{self.name}: closed at {_utc(utc_ns)}")
        in_break = (
            session.break_start_ns is not None
            and session.break_end_ns is not None
            and session.break_start_ns <= utc_ns < session.break_end_ns
        )
        from_open = (utc_ns - session.open_ns) / _MINUTE_NS
        to_close = (session.close_ns - utc_ns) / _MINUTE_NS
        words = "in its break" if in_break else "open"
        sentence = f"{self.name}: {words} on {session.day}, {to_close:.2f} minutes to the close"
        return SessionMoment(True, not in_break, from_open, to_close, session.day, sentence)


def unknown_moment(sentence: str) -> SessionMoment:
    """The moment of which nothing is known."""
    return SessionMoment(False, False, math.nan, math.nan, "", sentence)


def regime_at(moment: SessionMoment, regimes: RegimeSettings) -> Regime:
    """Return the part of the day; pure.

    The strictest of those that apply: on a day that closes early ``LATE`` begins this many minutes before *that*
    close. A closed market is in ``CLOSE``; so is an unknown moment, whose NaN minutes the table refuses besides. A
    venue that never closes is in ``MID`` all day: it has no open to be young from, and no close to be near.
    """
    if not moment.known:
        return Regime.CLOSE
    if moment.minutes_to_close <= regimes.CLOSE.from_minutes_to_close:
        return Regime.CLOSE
    if moment.minutes_to_close <= regimes.LATE.from_minutes_to_close:
        return Regime.LATE
    if moment.minutes_from_open >= regimes.MID.from_minutes_after_open:
        return Regime.MID
    if moment.minutes_from_open >= regimes.EARLY.from_minutes_after_open:
        return Regime.EARLY
    return Regime.OPEN


def load_schedule(name: str, first_day: dt.date, last_day: dt.date) -> SessionSchedule:
    """Load the hours of a calendar, from the start of the first day to the end of the last, both in UTC.

    Args:
        name: ``24/7``, or a name that the library ``exchange_calendars`` knows: XLON, XNYS, NYSE, CMES, ...
        first_day: load a week more than needed, so that a session which began the day before is in.
        last_day: after it nothing is known, so load a year ahead and again before it ends.

    Raises:
        CalendarError: the extra ``calendars`` is not installed, there is no such calendar, or it has no session then.
    """
    if name == ALWAYS_OPEN:
        return AlwaysOpen()
    try:
        import exchange_calendars  # noqa: PLC0415 - an extra, and slow to import
        from exchange_calendars.errors import CalendarError as LibraryError  # noqa: PLC0415 - as above
    except ImportError as error:
        raise CalendarError(
            f"the calendar {name} needs the extra 'calendars': pip install 'killswitch-cluster[calendars]' "
            f"(a venue that never closes is {ALWAYS_OPEN}, which needs nothing)"
        ) from error
    try:
        calendar = exchange_calendars.get_calendar(name, start=first_day, end=last_day)
    except (LibraryError, ValueError) as error:
        said = " ".join(str(error).split())
        raise CalendarError(f"the calendar {name} from {first_day} to {last_day} cannot be had: {said}") from error
    sessions = [_session(row) for row in calendar.schedule.itertuples()]
    try:
        return SessionList(
            name,
            sessions,
            known_from_ns=_midnight_ns(first_day),
            known_until_ns=_midnight_ns(last_day + dt.timedelta(days=1)),
        )
    except ValueError as error:
        raise CalendarError(str(error)) from error


def _session(row: Any) -> TradingSession:
    has_break = row.break_start == row.break_start  # pandas' "not a time" is not equal to itself
    return TradingSession(
        day=str(row.Index.date()),
        open_ns=_instant_ns(row.open),
        close_ns=_instant_ns(row.close),
        break_start_ns=_instant_ns(row.break_start) if has_break else None,
        break_end_ns=_instant_ns(row.break_end) if has_break else None,
    )


def _instant_ns(stamp: Any) -> int:
    """Nanoseconds since 1970 of a pandas timestamp, whatever unit it is kept in."""
    return int(stamp.as_unit("ns").value)


def _midnight_ns(day: dt.date) -> int:
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp()) * 1_000_000_000


def _utc(utc_ns: int) -> str:
    try:
        at = dt.datetime.fromtimestamp(utc_ns // 1_000_000_000, dt.UTC)
    except (OverflowError, OSError, ValueError):
        return f"{utc_ns} ns"
    return at.isoformat().replace("+00:00", "Z")


class SessionClock:
    """The moment now. It distrusts a wall clock that steps: the time of day is then unknown until a person says so.

    The wall clock is held against the monotonic one. When the two move apart by more than ``max_clock_step_ms`` within
    a minute, somebody or something set the clock, and no one here can tell which time is right: every moment is unknown
    from then on, until :meth:`accept_wall_clock`. A slower drift, as time synchronisation makes, is followed and is not
    noticed. Thread-safe.

    Args:
        schedule: the hours of the venue.
        wall_ns: nanoseconds since 1970 in UTC, such as :func:`time.time_ns`.
        clock_ns: nanoseconds on a clock that nobody sets and that goes on while the machine sleeps.
        max_clock_step_ms: how far they may move apart within a minute.
    """

    def __init__(
        self,
        schedule: SessionSchedule,
        *,
        wall_ns: Callable[[], int],
        clock_ns: NowNs = now_ns,
        max_clock_step_ms: int = 2_000,
    ) -> None:
        self.schedule = schedule
        self._wall_ns = wall_ns
        self._clock_ns = clock_ns
        self._most_ns = max_clock_step_ms * _MILLISECOND_NS
        self._lock = threading.Lock()
        self._anchor = (clock_ns(), wall_ns())
        self._stepped_ns: int | None = None

    def moment(self) -> SessionMoment:
        """Tell where now lies. Never raises, as long as the clocks do not."""
        with self._lock:
            clock, wall = self._clock_ns(), self._wall_ns()
            anchor_clock, anchor_wall = self._anchor
            elapsed = clock - anchor_clock
            apart = (wall - anchor_wall) - elapsed
            if self._stepped_ns is None:
                if abs(apart) > self._most_ns + elapsed // _SLEW_DIVISOR or elapsed < 0:
                    self._stepped_ns = apart
                elif elapsed >= _ANCHOR_NS:
                    self._anchor = (clock, wall)
            stepped = self._stepped_ns
        if stepped is not None:
            return unknown_moment(
                f"{self.schedule.name}: the wall clock was set by {stepped / 1e9:.3f} s, so the time of day is unknown "
                f"until a person accepts the clock"
            )
        return self.schedule.at(wall)

    def accept_wall_clock(self, actor: str) -> None:
        """Trust the wall clock as it is now.

        Raises:
            ValueError: nobody is named; it stays untrusted.
        """
        if not actor or not actor.strip():
            raise ValueError("a name is needed of who accepts the clock; it stays untrusted")
        with self._lock:
            self._anchor = (self._clock_ns(), self._wall_ns())
            self._stepped_ns = None


SCHEDULE_DAYS: Final = 730
"""So many days ahead the hours of the venue are known; an agent that runs longer than that freezes and says so."""
_DAYS_BEFORE: Final = 7


def session_clock(rules: RiskRules, *, wall_ns: Callable[[], int], clock: NowNs) -> SessionClock:
    """Return the clock of the venue that the rules name.

    Raises:
        CalendarError: the extra ``calendars`` is not installed, or there is no such calendar.
    """
    today = dt.datetime.fromtimestamp(wall_ns() // 1_000_000_000, dt.UTC).date()
    first, last = today - dt.timedelta(days=_DAYS_BEFORE), today + dt.timedelta(days=SCHEDULE_DAYS)
    schedule = load_schedule(rules.session.calendar, first, last)
    return SessionClock(schedule, wall_ns=wall_ns, clock_ns=clock, max_clock_step_ms=rules.session.max_clock_step_ms)

"""Where in the trading day a moment lies: named calendars with holidays, early closes, breaks and summer time."""

from __future__ import annotations

import builtins
import datetime as dt
import math
import subprocess
import sys
import zoneinfo
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.core.modes import Mode
from killswitch.risk.exposure.policy_settings import RegimeSettings
from killswitch.risk.exposure.policy_table import PolicyDecisionTable, PolicyMode, Regime, restriction_of
from killswitch.risk.exposure.trading_session import (
    AlwaysOpen,
    CalendarError,
    SessionClock,
    SessionList,
    SessionSchedule,
    TradingSession,
    load_schedule,
    regime_at,
)

# The calendar library calls what a newer pandas has announced to change; that is between the two of them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

REGIMES = RegimeSettings()
LONDON, NEW_YORK = zoneinfo.ZoneInfo("Europe/London"), zoneinfo.ZoneInfo("America/New_York")
MINUTE = 60_000_000_000


def ns(text: str, zone: dt.tzinfo = dt.UTC) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * 1_000_000_000


@cache
def calendar(name: str) -> SessionSchedule:
    return load_schedule(name, dt.date(2026, 1, 1), dt.date(2026, 12, 31))


def regime(name: str, text: str, zone: dt.tzinfo) -> str:
    return regime_at(calendar(name).at(ns(text, zone)), REGIMES).name


@pytest.mark.parametrize("day", ["2026-01-05", "2026-03-27", "2026-03-30", "2026-07-01", "2026-10-23", "2026-10-26"])
@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("07:59", "CLOSE"),
        ("08:00", "OPEN"),
        ("08:29", "OPEN"),
        ("08:30", "EARLY"),
        ("09:59", "EARLY"),
        ("10:00", "MID"),
        ("16:14", "MID"),
        ("16:15", "LATE"),
        ("16:27", "LATE"),
        ("16:28", "CLOSE"),
        ("16:29", "CLOSE"),
        ("16:30", "CLOSE"),
        ("23:00", "CLOSE"),
    ],
)
def test_the_clock_of_the_day_holds_in_london_on_both_sides_of_summer_time(day: str, clock: str, expected: str) -> None:
    assert regime("XLON", f"{day}T{clock}", LONDON) == expected


def test_two_minutes_before_the_close() -> None:
    moment = calendar("XLON").at(ns("2026-07-01T16:28", LONDON))
    assert (moment.minutes_to_close, moment.is_open, moment.day) == (2.0, True, "2026-07-01")


def test_an_early_close_is_the_close() -> None:
    """The day after Thanksgiving New York closes at 13:00."""
    assert regime("XNYS", "2026-11-27T12:44", NEW_YORK) == "MID"
    assert regime("XNYS", "2026-11-27T12:45", NEW_YORK) == "LATE"
    assert regime("XNYS", "2026-11-27T12:58", NEW_YORK) == "CLOSE"
    assert not calendar("XNYS").at(ns("2026-11-27T13:00", NEW_YORK)).is_open
    assert regime("XNYS", "2026-11-25T12:58", NEW_YORK) == "MID"


@pytest.mark.parametrize("text", ["2026-11-26T12:00", "2026-12-25T12:00", "2026-11-28T12:00", "2026-11-29T12:00"])
def test_a_holiday_and_a_weekend_are_closed_and_known(text: str) -> None:
    moment = calendar("XNYS").at(ns(text, NEW_YORK))
    assert (moment.known, moment.is_open, moment.minutes_to_close) == (True, False, 0.0)
    assert regime_at(moment, REGIMES) is Regime.CLOSE


def test_a_break_is_not_open_but_of_the_same_session() -> None:
    hong_kong = zoneinfo.ZoneInfo("Asia/Hong_Kong")
    at_noon = calendar("XHKG").at(ns("2026-01-05T12:30", hong_kong))
    assert (at_noon.is_open, at_noon.minutes_to_close, at_noon.minutes_from_open) == (False, 210.0, 180.0)
    assert regime_at(at_noon, REGIMES) is Regime.MID
    assert calendar("XHKG").at(ns("2026-01-05T13:00", hong_kong)).is_open


def test_a_session_that_began_the_day_before_is_found() -> None:
    """Chicago's futures open on Sunday evening."""
    chicago = zoneinfo.ZoneInfo("America/Chicago")
    moment = calendar("CMES").at(ns("2026-01-11T20:00", chicago))
    assert (moment.is_open, moment.day) == (True, "2026-01-12")


def test_a_venue_that_never_closes_is_in_the_middle_of_the_day() -> None:
    schedule = calendar("24/7")
    assert isinstance(schedule, AlwaysOpen)
    moment = schedule.at(ns("2026-12-25T03:00"))
    assert (moment.known, moment.is_open, moment.minutes_to_close) == (True, True, math.inf)
    assert regime_at(moment, REGIMES) is Regime.MID
    mode, _ = PolicyDecisionTable().decide(Regime.MID, 50.0, 50.0, 40.0, 40.0, 10.0, 10.0, moment.minutes_to_close)
    assert mode is PolicyMode.NORMAL


@pytest.mark.parametrize("text", ["2025-12-31T12:00", "2027-01-01T00:00", "1970-01-01T00:00", "2262-01-01T00:00"])
def test_unknown_is_frozen__beyond_the_days_that_were_loaded(text: str) -> None:
    moment = calendar("XLON").at(ns(text))
    assert not moment.known
    assert math.isnan(moment.minutes_to_close)
    assert "load the calendar again" in moment.sentence
    decided = PolicyDecisionTable().decide(
        regime_at(moment, REGIMES), 50.0, 50.0, 40.0, 40.0, 10.0, 10.0, moment.minutes_to_close
    )
    assert restriction_of(*decided).mode is Mode.FROZEN


def test_the_last_loaded_day_is_known_to_its_end() -> None:
    assert calendar("XLON").at(ns("2026-12-31T23:59")).known
    assert calendar("XLON").at(ns("2026-01-01T00:00")).known


def test_a_calendar_that_does_not_exist_or_has_no_day_is_a_sentence() -> None:
    with pytest.raises(CalendarError, match=r"XNOT.*does not exist"):
        load_schedule("XNOT", dt.date(2026, 1, 1), dt.date(2026, 2, 1))
    with pytest.raises(CalendarError, match="XLON"):
        load_schedule("XLON", dt.date(2026, 1, 3), dt.date(2026, 1, 4))  # a weekend
    with pytest.raises(CalendarError, match="XLON"):
        load_schedule("XLON", dt.date(2026, 2, 1), dt.date(2026, 1, 1))


def test_without_the_extra_a_named_calendar_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("exchange_calendars"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CalendarError, match=r"killswitch-cluster\[calendars\]"):
        load_schedule("XLON", dt.date(2026, 1, 1), dt.date(2026, 2, 1))
    assert load_schedule("24/7", dt.date(2026, 1, 1), dt.date(2026, 2, 1)).at(0).is_open


def test_importing_the_risk_package_imports_no_calendar() -> None:
    code = (
        "import sys, killswitch.risk, killswitch.risk.exposure.trading_session\n"
        "import killswitch.risk.exposure.policy_monitor, killswitch.settings.settings_file\n"
        "print(sorted({'exchange_calendars', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.strip() == "[]"


# ---- sessions


def test_sessions_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="in order"):
        TradingSession("d", 5, 5)
    with pytest.raises(ValueError, match="in order"):
        TradingSession("d", 5, 9, 4, 6)
    with pytest.raises(ValueError, match="one end"):
        TradingSession("d", 5, 9, 6)
    with pytest.raises(ValueError, match="before d has closed"):
        SessionList("x", [TradingSession("d", 1, 5), TradingSession("e", 4, 9)])
    with pytest.raises(ValueError, match="no session"):
        SessionList("x", [])
    with pytest.raises(ValueError, match="more than"):
        SessionList("x", (TradingSession("d", 2 * n, 2 * n + 1) for n in range(20_001)))


@given(st.integers(0, 1_000 * MINUTE), st.integers(0, 100 * MINUTE))
def test_within_a_session_time_only_makes_the_regime_stricter(at: int, later: int) -> None:
    one = SessionList("x", [TradingSession("d", 0, 510 * MINUTE)], known_until_ns=2_000 * MINUTE)
    assert regime_at(one.at(at + later), REGIMES) >= regime_at(one.at(at), REGIMES)


# ---- the clock


class Clocks:
    """A wall clock and a monotonic one that a test moves."""

    def __init__(self, wall_ns: int) -> None:
        self.wall_ns, self.clock_ns = wall_ns, 1_000

    def go(self, seconds: float, *, wall: float | None = None) -> None:
        self.clock_ns += int(seconds * 1e9)
        self.wall_ns += int((seconds if wall is None else wall) * 1e9)


def session_clock(clocks: Clocks, **changes: Any) -> SessionClock:
    return SessionClock(calendar("XLON"), wall_ns=lambda: clocks.wall_ns, clock_ns=lambda: clocks.clock_ns, **changes)


@pytest.mark.parametrize("step", [-3_600.0, -2.1, 2.1, 3_600.0, 86_400.0 * 365])
def test_unknown_is_frozen__a_wall_clock_that_steps_is_not_believed_until_a_person_says_so(step: float) -> None:
    """Set back from 16:29 to 15:29 the day would look young again."""
    clocks = Clocks(ns("2026-01-05T16:29", LONDON))
    clock = session_clock(clocks)
    assert clock.moment().minutes_to_close == 1.0
    clocks.go(1.0, wall=1.0 + step)
    assert not clock.moment().known
    clocks.go(1.0, wall=1.0 - step)  # back where it was: still somebody set it
    assert "was set by" in clock.moment().sentence
    for nobody in ("", " "):
        with pytest.raises(ValueError, match="name"):
            clock.accept_wall_clock(nobody)
    assert not clock.moment().known
    clock.accept_wall_clock("operator:ann")
    assert clock.moment().known


def test_a_clock_that_is_slewed_or_read_rarely_is_believed() -> None:
    clocks = Clocks(ns("2026-01-05T08:00", LONDON))
    clock = session_clock(clocks)
    for _ in range(200):
        clocks.go(60.0, wall=60.03)
        assert clock.moment().known
    clocks.go(7_200.0, wall=7_203.0)
    assert clock.moment().known
    clocks.go(1.0, wall=2.5)
    assert clock.moment().known


def test_small_steps_do_not_add_up_unseen_within_a_minute() -> None:
    clocks = Clocks(ns("2026-01-05T12:00", LONDON))
    clock = session_clock(clocks)
    known = []
    for _ in range(5):
        clocks.go(1.0, wall=0.0)
        known.append(clock.moment().known)
    assert known == [True, True, False, False, False]


def test_a_monotonic_clock_that_goes_back_is_not_believed() -> None:
    clocks = Clocks(ns("2026-01-05T12:00", LONDON))
    clock = session_clock(clocks)
    clocks.go(-1.0)
    assert not clock.moment().known


def test_how_far_the_clocks_may_part_is_a_setting() -> None:
    clocks = Clocks(ns("2026-01-05T12:00", LONDON))
    clock = session_clock(clocks, max_clock_step_ms=60_000)
    clocks.go(1.0, wall=59.0)
    assert clock.moment().known

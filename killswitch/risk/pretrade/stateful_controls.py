"""The controls that remember something, over every change of their settings.

What each knows stays when its settings change, and also when its section is taken out of the settings: the control is
then asleep, refuses nothing, and sees nothing. When the section comes back it goes on from what it knew when it went,
so that settings which are taken out and put in again make nothing forgotten: no count of the day, no message of the
last second, no execution of a strategy. A section that is new starts from nothing known.

One thing outlasts its section. A strategy that repeated executions have disabled stays disabled without the section
too: only a named person enables it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from killswitch.clock import NowNs
from killswitch.risk.pretrade.daily_counts import CalendarDay, DailyCounts
from killswitch.risk.pretrade.duplicate_orders import DuplicateOrders
from killswitch.risk.pretrade.input_health import InputHealth
from killswitch.risk.pretrade.message_throttle import MessageThrottle
from killswitch.risk.pretrade.order import CountingControl, PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.pretrade.repeated_executions import RepeatedExecutions

_DEFAULT_WINDOW_MS = 60_000


class StatefulControls:
    """The controls of one :class:`PreTradeControls` that remember. No lock: its owner's.

    Args:
        day: the calendar that counts of the day run by, if there is one.
        reduces: whether an order can only reduce its position.
        clock: nanoseconds.

    Attributes:
        repeated, daily, health, throttle, duplicates: the control in force, ``None`` when it refuses nothing.
    """

    def __init__(self, *, day: CalendarDay | None, reduces: Callable[[PretradeOrder], bool], clock: NowNs) -> None:
        self._day = day
        self._reduces = reduces
        self._clock = clock
        self._ever: dict[str, Any] = {}  # every control that there has been, also those that are asleep
        self.repeated: RepeatedExecutions | None = None
        self.daily: DailyCounts | None = None
        self.health: InputHealth | None = None
        self.throttle: MessageThrottle | None = None
        self.duplicates: DuplicateOrders | None = None

    def require(self, settings: PreTradeSettings) -> None:
        """Refuse settings that cannot hold here.

        Raises:
            ValueError: there are counts of the day and no calendar.
        """
        if settings.daily is not None and self._day is None:
            raise ValueError("counts of the day need a calendar; pass day=, such as datetime.date.today")

    def take(self, settings: PreTradeSettings, *, now_ns: int, last_ns: int) -> None:
        """Put settings in force that :meth:`require` has let pass.

        Args:
            settings: the settings.
            now_ns: now, not before ``last_ns``.
            last_ns: when the newest order that counts was counted, or later.
        """
        collar = settings.price_collar
        window_ms = collar.window_ms if collar is not None else _DEFAULT_WINDOW_MS
        self.daily = self._in_force("daily", settings.daily, self._make_daily)
        self.duplicates = self._in_force("duplicates", settings.duplicates, DuplicateOrders)
        self.health = self._in_force(
            "health",
            settings.input_health,
            lambda section: InputHealth(section, clock=self._clock, window_ms=window_ms),
        )
        if self.health is not None:
            self.health.set_window(window_ms)
        throttle: MessageThrottle | None = self._ever.get("throttle")
        if settings.throttle is not None:
            # Another object: a token that is put back for an order of before must not find its way into the new one.
            throttle = (
                MessageThrottle(settings.throttle)
                if throttle is None
                else throttle.followed_by(settings.throttle, now_ns=now_ns, last_ns=last_ns)
            )
            self._ever["throttle"] = throttle
        self.throttle = None if settings.throttle is None else throttle
        self._take_repeated(settings)

    def hold_strategies(self) -> RepeatedExecutions:
        """Return the control of repeated executions, in force at least for strategies that are disabled."""
        if self.repeated is None:
            self.repeated = self._ever.setdefault("repeated", RepeatedExecutions(None))
        return self.repeated

    @property
    def counting(self) -> tuple[CountingControl, ...]:
        """Those in force that count the orders that go."""
        return tuple(control for control in (self.daily, self.throttle, self.duplicates) if control is not None)

    def _take_repeated(self, settings: PreTradeSettings) -> None:
        repeated: RepeatedExecutions | None = self._ever.get("repeated")
        if repeated is not None:
            repeated.set_settings(settings.repeated_executions)
        elif settings.repeated_executions is not None:
            repeated = self._ever["repeated"] = RepeatedExecutions(settings.repeated_executions)
        holds = repeated is not None and bool(repeated.disabled())
        self.repeated = repeated if settings.repeated_executions is not None or holds else None

    def _in_force(self, name: str, section: Any, make: Callable[[Any], Any]) -> Any:
        if section is None:
            return None
        control = self._ever.get(name)
        if control is None:
            control = self._ever[name] = make(section)
        else:
            control.set_settings(section)
        return control

    def _make_daily(self, section: Any) -> DailyCounts:
        # require() came first.
        assert self._day is not None, "the settings were not asked for"
        return DailyCounts(section, self._day, reduces=self._reduces)

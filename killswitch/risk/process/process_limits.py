"""The limits of one trading process, from ``risk_limits.yaml``: monitor and pre-trade controls, followed as it changes.

.. code-block:: python

    limits = ProcessLimits.of_file(
        Path("risk_limits.yaml"), audit=LimitsAudit(Path("limits-audit.jsonl")), state_path=Path("limits-state.json")
    )
    router = OrderRouter(gate=gate, venue_client=venue, controls=limits.controls)
    threading.Thread(target=limits.follow, args=(stopping,), daemon=True).start()
    ...
    limits.close()
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock, now_ns, wall_now
from killswitch.risk.events import FreezeEvent
from killswitch.risk.limits.limit_schedule import LimitSchedule, MinuteOfDay, session_clock_of
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.limits.warning_ladder import LimitWarning
from killswitch.risk.pretrade.controls import PreTradeControls
from killswitch.risk.pretrade.daily_counts import CalendarDay
from killswitch.risk.process.limits_audit import LimitsAudit
from killswitch.risk.process.process_state import ProcessState
from killswitch.risk.process.risk_limits_file import RiskLimitsFile, load_risk_limits
from killswitch.risk.process.rule_loading import load_order_rules
from killswitch.risk.process.settings_follower import SettingsFollower

if TYPE_CHECKING:
    from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
    from killswitch.risk.exposure.policy_monitor import PolicyMonitor


def utc_day() -> dt.date:
    """The calendar day in UTC."""
    return dt.datetime.now(dt.UTC).date()


class ProcessLimits:
    """Monitor and controls of one trading process.

    Args:
        limits: what to make them of.
        path: the file that is followed; nothing is when ``None``.
        audit: where changes of it are written down; without one the file may only tighten.
        state_path: file that keeps disabled strategies, the counts of the day and the freeze over a restart (see
            :class:`ProcessState`), one for each process; nothing is kept when ``None``.
        on_freeze: told every freeze of the monitor, as :class:`RuntimeRiskMonitor` has it.
        on_warning: told every step of the warning ladder.
        day: the calendar that counts of the day run by.
        session_clock: minutes since midnight, for limits by time of day; without one the ``time_zone`` of the schedule
            is followed, and without that such limits are at their tightest all day.
        registry: where the metrics are.
        policy: of the account that this process trades on, asked before every order; whoever has it feeds it and
            closes it.
        breaker: likewise.
        clock: deadline clock.
        wall_clock: the time for people.

    Raises:
        RuleNotUsable: a rule of the team's own cannot be imported or made.
        AuditUnwritable, StateUnwritable: there is an audit or a state file that cannot be written.

    Attributes:
        monitor: limits, positions, reservations, freeze.
        controls: what every order is asked by.
    """

    def __init__(
        self,
        limits: RiskLimitsFile,
        *,
        path: Path | None = None,
        audit: LimitsAudit | None = None,
        state_path: Path | None = None,
        on_freeze: Callable[[FreezeEvent], None] | None = None,
        on_warning: Callable[[LimitWarning], None] | None = None,
        day: CalendarDay = utc_day,
        session_clock: MinuteOfDay | None = None,
        registry: CollectorRegistry | None = None,
        policy: PolicyMonitor | None = None,
        breaker: CircuitBreaker | None = None,
        clock: NowNs = now_ns,
        wall_clock: WallClock = wall_now,
    ) -> None:
        self._session_clock = session_clock
        self._clock = clock
        changed = threading.Event()
        own, schedule = limits.orders.to_risk_limits(), limits.orders.schedule
        self.monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=own.max_inventory_usd,
            max_total_notional_usd=own.max_total_notional,
            edge_freeze_threshold_bps=own.edge_freeze_threshold_bps,
            wall_clock=wall_clock,
            on_freeze=_waking(changed, on_freeze),
            on_warning=on_warning,
            registry=registry,
            schedule=(
                None
                if schedule is None
                else LimitSchedule(schedule, session_clock=session_clock_of(schedule, session_clock), clock=clock)
            ),
            max_working_orders=limits.orders.max_working_orders,
            price_required=True,
        )
        self.controls = PreTradeControls(
            limits.pretrade,
            monitor=self.monitor,
            day=day,
            rules=load_order_rules(limits.rules.orders),
            policy=policy,
            breaker=breaker,
            clock=clock,
            registry=registry,
            on_lock=changed.set,
        )
        self._state: ProcessState | None = None
        if state_path is not None:
            self._state = ProcessState(
                state_path, monitor=self.monitor, controls=self.controls, changed=changed, wall_clock=wall_clock
            )
            self._state.restore()
        self._live: SettingsFollower[RiskLimitsFile] | None = None
        if path is not None:
            self._live = SettingsFollower(
                path, limits, apply=self._take, audit=audit, wall_clock=wall_clock, registry=registry
            )
            self._live.note_start("the start of the process")
        if self._state is not None:
            self._state.start()

    @classmethod
    def of_file(
        cls,
        path: Path,
        *,
        audit: LimitsAudit | None = None,
        state_path: Path | None = None,
        on_freeze: Callable[[FreezeEvent], None] | None = None,
        on_warning: Callable[[LimitWarning], None] | None = None,
        day: CalendarDay = utc_day,
        session_clock: MinuteOfDay | None = None,
        registry: CollectorRegistry | None = None,
        policy: PolicyMonitor | None = None,
        breaker: CircuitBreaker | None = None,
    ) -> ProcessLimits:
        """Read the file, make monitor and controls of it, and be ready to follow it. Arguments as for the class.

        Raises:
            RiskFileError: the file cannot be used; one sentence for each fault.
            RuleNotUsable: a rule of the team's own cannot be imported or made.
            AuditUnwritable, StateUnwritable: there is an audit or a state file that cannot be written.
        """
        return cls(
            load_risk_limits(path),
            path=path,
            audit=audit,
            state_path=state_path,
            on_freeze=on_freeze,
            on_warning=on_warning,
            day=day,
            session_clock=session_clock,
            registry=registry,
            policy=policy,
            breaker=breaker,
        )

    def follow(self, stopping: threading.Event) -> None:
        """Look at the file until told to stop; the work of a thread. Then write the state."""
        if self._live is not None:
            self._live.follow(stopping)
        if self._state is not None:
            self._state.save()

    def close(self) -> None:
        """Write the state for the last time. Controls and monitor go on working."""
        if self._state is not None:
            self._state.close()

    def look_soon(self) -> None:
        """Have the file looked at now, and taken as it stands."""
        if self._live is not None:
            self._live.look_soon()

    def faults(self) -> tuple[str, ...]:
        """What is wrong with the file as it stands now, where the limits in force are those from before; and with the
        state file, which a restart would read."""
        of_file = () if self._live is None else self._live.faults
        of_state = None if self._state is None else self._state.fault
        return of_file if of_state is None else (*of_file, of_state)

    def _take(self, limits: RiskLimitsFile) -> None:
        # What may refuse comes first, and then nothing has changed.
        self.controls.set_settings(limits.pretrade)
        self.monitor.set_limits_and_schedule(
            limits.orders.to_risk_limits(),
            limits.orders.schedule,
            session_clock=session_clock_of(limits.orders.schedule, self._session_clock),
            clock=self._clock,
        )


def _waking(changed: threading.Event, on_freeze: Callable[[FreezeEvent], None] | None) -> Callable[[FreezeEvent], None]:
    """Tell a freeze on, and have the state written."""

    def told(event: FreezeEvent) -> None:
        changed.set()
        if on_freeze is not None:
            on_freeze(event)

    return told

"""What an account monitor does with what it finds: levels noted, the breaker engaged, forensics kept, kills told.

The part of :class:`~killswitch.risk.account.account_monitor.RiskMonitor` that judges nothing.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock
from killswitch.core.canonical import finite_or_text
from killswitch.risk.account.account_rule import Finding, Measure
from killswitch.risk.account.account_state import AccountState, AlertLevel, DayRecord, EngagementRecord
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.breaker.breaker_settings import NS_PER_SECOND, ReasonClass
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
from killswitch.risk.events import MONITOR_ERROR, FreezeEvent
from killswitch.risk.metrics import freeze_counter
from killswitch.safe_log import say

BREAKER_LOOK_NS: Final = NS_PER_SECOND
"""How often a tick looks at what other processes or the time did to the breaker."""

KINDS: Final[Mapping[Measure, ReasonClass]] = {
    "drawdown": ReasonClass.DRAWDOWN,
    "leverage": ReasonClass.POSITION,
    "marks": ReasonClass.DATA,
}
RANK: Final = {AlertLevel.NORMAL: 0, AlertLevel.WARNING: 1, AlertLevel.CRITICAL: 2}


class AccountActions:
    """What follows from a judgement; called with no lock held. Arguments as the monitor has them."""

    _last: AccountState
    _day: DayRecord

    def __init__(
        self,
        limits: AccountLimits,
        circuit_breaker: CircuitBreaker,
        *,
        account: str,
        clock: NowNs,
        wall_clock: WallClock,
        on_freeze: Callable[[FreezeEvent], None] | None,
        registry: CollectorRegistry | None,
    ) -> None:
        self.limits = limits
        self.account = account
        self.circuit_breaker = circuit_breaker
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_freeze = on_freeze
        self._counter = freeze_counter(registry)
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._levels: dict[Measure, AlertLevel] = {}
        self._logged_ns: dict[str, int] = {}
        self._records: deque[EngagementRecord] = deque(maxlen=limits.forensics_kept)
        self._seen_engagement = circuit_breaker.engagement
        self._engagements = 0
        self._next_look_ns = 0
        self._marks_read_ns = -(2**63)

    def _act(self, before: AccountState, after: AccountState, found: tuple[Finding, ...], bad: str | None) -> None:
        breaker = self.circuit_breaker
        try:
            self._next_look_ns = self._now() + BREAKER_LOOK_NS
            breaker.tick()
            if bad is None:
                self._note_levels(found, after)
            else:
                effects = breaker.bad_reading(ReasonClass.DATA, f"a tick cannot be trusted: {bad}", {"tick": bad})
                self._froze(effects, MONITOR_ERROR, bad, {}, after)
            self._engage(found, after)
            if breaker.restricted and bad is None:
                reached = {finding.measure for finding in found}
                for measure, kind in KINDS.items():
                    if measure not in reached:
                        breaker.good_reading(kind)
            self._note_engagement(before, after)
        except Exception as error:  # a monitor that fails is a breach
            self._engage_unknown(f"the account monitor failed: {error!r}")

    def _act_on_limits(self, before: AccountState, after: AccountState, found: tuple[Finding, ...]) -> None:
        """As :meth:`_act` for an account that other limits judge: what is well is no reading of a sensor here."""
        try:
            self._note_levels(found, after)
            self._engage(found, after)
            self._note_engagement(before, after)
        except Exception as error:  # a monitor that fails is a breach
            self._engage_unknown(f"the account monitor failed: {error!r}")

    def _engage(self, found: tuple[Finding, ...], after: AccountState) -> None:
        """Tell the breaker every hard level that was reached."""
        for finding in found:
            if finding.level is AlertLevel.CRITICAL and (finding.measure != "marks" or self._marks_are_read_anew()):
                figures = {"value": finding.value, "limit": finding.limit, "equity_usd": after.equity}
                effects = self.circuit_breaker.bad_reading(KINDS[finding.measure], finding.sentence, figures)
                self._froze(effects, finding.measure, finding.sentence, figures, after)

    def _marks_are_read_anew(self) -> bool:
        """Old marks are one reading a second: ticks of other symbols must not confirm them within a millisecond."""
        now = self._now()
        if now - self._marks_read_ns < BREAKER_LOOK_NS:
            return False
        self._marks_read_ns = now
        return True

    def _engage_unknown(self, reason: str) -> None:
        if self.circuit_breaker.engage(reason, {"account": self.account}, kind=ReasonClass.UNKNOWN):
            self._pass_on(MONITOR_ERROR, reason, {}, self._last)

    def _froze(
        self, effects: tuple[Any, ...], cause: str, reason: str, figures: Mapping[str, Any], after: AccountState
    ) -> None:
        if any(effect.what == "latched" for effect in effects):
            self._pass_on(cause, reason, figures, after)

    def _pass_on(self, cause: str, reason: str, figures: Mapping[str, Any], after: AccountState) -> None:
        self._counter.labels(reason="limit_violation").inc()
        metadata = {
            "cause": cause,
            "account": self.account,
            **figures,
            "equity_usd": after.equity,
            "exposure_usd": after.total_exposure,
            "drawdown_pct": after.drawdown_pct,
            "alert_level": after.alert_level.value,
        }
        event = FreezeEvent(self._time(), "limit_violation", reason, metadata)
        say("critical", "account monitor engaged the circuit breaker", **event.to_json())
        if self._on_freeze is not None:
            try:
                self._on_freeze(event)
            except Exception as error:  # whatever it raises, the breaker stands
                say("error", "the kill could not be passed on", error=repr(error), reason=reason)

    def _note_levels(self, found: tuple[Finding, ...], after: AccountState) -> None:
        """Count and log every level that has been reached since it was last left."""
        now = self._now()
        interval_ns = self.limits.log_interval_seconds * NS_PER_SECOND
        news: list[Finding] = []
        with self._lock:
            for finding in found:
                if RANK[finding.level] > RANK[self._levels.get(finding.measure, AlertLevel.NORMAL)]:
                    self._counts[(finding.measure, finding.level.value)] += 1
                    name = f"{finding.measure} {finding.level.value}"
                    self._day.first_at.setdefault(name, after.timestamp)
                    if now - self._logged_ns.get(name, -(2**63)) >= interval_ns:
                        self._logged_ns[name] = now
                        news.append(finding)
            self._levels = levels_of(found)
        for finding in news:
            loud = "critical" if finding.level is AlertLevel.CRITICAL else "warning"
            say(loud, "account level reached", account=self.account, reason=finding.sentence, **_account(after))

    def _note_engagement(self, before: AccountState, after: AccountState) -> None:
        breaker = self.circuit_breaker
        if breaker.engagement == self._seen_engagement:
            return
        state = breaker.snapshot()
        record = EngagementRecord(
            engagement=state.engagement,
            mode=state.mode.value,
            causes={cause.kind.value: cause.reason for cause in state.causes},
            before=before,
            after=after,
        )
        with self._lock:
            if state.engagement == self._seen_engagement:
                return
            self._seen_engagement = state.engagement
            self._engagements += 1
            self._records.append(record)
        say("critical", "the account around an engagement", account=self.account, **finite_or_text(record.to_json()))

    def _now(self) -> int:
        """The time for what only spaces things out; a clock that fails stands still."""
        try:
            return self._clock()
        except Exception:  # the tick that met it is a breach already
            return self._next_look_ns

    def _time(self) -> str:
        try:
            return self._wall_clock()
        except Exception:  # a clock for people must not stop a kill
            return "unknown"


def levels_of(found: tuple[Finding, ...]) -> dict[Measure, AlertLevel]:
    """Which level each measure has reached."""
    return {finding.measure: finding.level for finding in found}


def _account(state: AccountState) -> dict[str, Any]:
    return {
        "equity_usd": state.equity,
        "exposure_usd": state.total_exposure,
        "leverage": state.leverage,
        "drawdown_pct": state.drawdown_pct,
    }

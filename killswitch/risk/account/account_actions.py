"""What an account monitor does with what it finds: the breaker engaged, kills told, levels logged, forensics kept.

It judges nothing, and knows of an account what it is handed. What is shown of it on /metrics is written here too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock, time_or_unknown
from killswitch.core.canonical import finite_or_text
from killswitch.risk.account.account_rule import RANK, Finding, Measure, true_leverage
from killswitch.risk.account.account_state import AccountState, AlertLevel, EngagementRecord
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.breaker.breaker_settings import NS_PER_SECOND, ReasonClass
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
from killswitch.risk.events import MONITOR_ERROR, FreezeEvent
from killswitch.risk.metrics import Figure, freeze_counter
from killswitch.safe_log import say

BREAKER_LOOK_NS: Final = NS_PER_SECOND
"""How often a tick looks at what other processes or the time did to the breaker."""

KINDS: Final[Mapping[Measure, ReasonClass]] = {
    "drawdown": ReasonClass.DRAWDOWN,
    "leverage": ReasonClass.POSITION,
    "marks": ReasonClass.DATA,
}
_TOTALS: Final = {
    "ticks": "Ticks taken.",
    "fills": "Fills taken.",
    "bad_inputs": "Ticks and fills that made no sense.",
    "engagements": "Engagements of the circuit breaker seen.",
}


class AccountActions:
    """What follows from a judgement. Thread-safe; to be called with no lock held. Arguments as the monitor has them.

    Attributes:
        next_look_ns: when a tick looks at the breaker next, however well it finds the account.
        seen_engagement: number of the newest engagement that is among the forensics.
        engagements: how many have been.
    """

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
        self.next_look_ns = 0
        self.seen_engagement = circuit_breaker.engagement
        self.engagements = 0
        self._breaker = circuit_breaker
        self._account = account
        self._clock = clock
        self._wall_clock = wall_clock
        self._on_freeze = on_freeze
        self._counter = freeze_counter(registry)
        self._lock = threading.Lock()
        self._log_interval_ns = 0.0
        self._logged_ns: dict[str, int] = {}
        self._records: deque[EngagementRecord] = deque()
        self._marks_read_ns = -(2**63)
        self.set_limits(limits)

    def set_limits(self, limits: AccountLimits) -> None:
        """Log as often and keep as many records as these limits say."""
        with self._lock:
            self._log_interval_ns = limits.log_interval_seconds * NS_PER_SECOND
            self._records = deque(self._records, maxlen=limits.forensics_kept)

    # ---- after a judgement

    def after_tick(
        self, before: AccountState, after: AccountState, found: tuple[Finding, ...], risen: Sequence[Finding]
    ) -> None:
        """A tick or a fill was judged: a hard level is a bad reading, and what is well is a good one.

        Args:
            before: the account before it.
            after: the account after it.
            found: every level that is reached.
            risen: those of them that were not before.
        """
        breaker = self._breaker
        try:
            self._look_at_breaker()
            self._log(risen, after)
            self._engage(found, after)
            if breaker.restricted:
                reached = {finding.measure for finding in found}
                for measure, kind in KINDS.items():
                    if measure not in reached:
                        breaker.good_reading(kind)
            self._note_engagement(before, after)
        except Exception as error:  # a monitor that fails is a breach
            self._engage_unknown(f"the account monitor failed: {error!r}", after)

    def after_bad_tick(self, before: AccountState, after: AccountState, found: tuple[Finding, ...], why: str) -> None:
        """A tick made no sense, or the account could not be judged; a hard level that was found counts all the same."""
        try:
            self._look_at_breaker()
            effects = self._breaker.bad_reading(ReasonClass.DATA, f"a tick cannot be trusted: {why}", {"tick": why})
            self._froze(effects, MONITOR_ERROR, why, {}, after)
            self._engage(found, after)
            self._note_engagement(before, after)
        except Exception as error:  # a monitor that fails is a breach
            self._engage_unknown(f"the account monitor failed: {error!r}", after)

    def after_bad_fill(self, before: AccountState, after: AccountState, why: str) -> None:
        """A fill made no sense: only a person can tell what is held now."""
        self._engage_unknown(f"a fill cannot be trusted, so the position is not known: {why}", after)
        self._note_engagement(before, after)

    def after_look(
        self, before: AccountState, after: AccountState, found: tuple[Finding, ...], risen: Sequence[Finding]
    ) -> None:
        """As :meth:`after_tick` for a judgement without a tick: what is well is no reading of a sensor here."""
        try:
            self._log(risen, after)
            self._engage(found, after)
            self._note_engagement(before, after)
        except Exception as error:  # a monitor that fails is a breach
            self._engage_unknown(f"the account monitor failed: {error!r}", after)

    def forensics(self, last: AccountState) -> tuple[EngagementRecord, ...]:
        """Return the newest engagements, oldest first; ``last`` is the account around one that nobody has seen yet."""
        self._note_engagement(last, last)
        with self._lock:
            return tuple(self._records)

    # ---- inside

    def _look_at_breaker(self) -> None:
        self.next_look_ns = self._now() + BREAKER_LOOK_NS
        self._breaker.tick()

    def _engage(self, found: tuple[Finding, ...], after: AccountState) -> None:
        """Tell the breaker every hard level that was reached."""
        for finding in found:
            if finding.level is AlertLevel.CRITICAL and (finding.measure != "marks" or self._marks_are_read_anew()):
                figures = {"value": finding.value, "limit": finding.limit, "equity_usd": after.equity}
                effects = self._breaker.bad_reading(KINDS[finding.measure], finding.sentence, figures)
                self._froze(effects, finding.measure, finding.sentence, figures, after)

    def _marks_are_read_anew(self) -> bool:
        """Old marks are one reading a second: ticks of other symbols must not confirm them within a millisecond."""
        now = self._now()
        if now - self._marks_read_ns < BREAKER_LOOK_NS:
            return False
        self._marks_read_ns = now
        return True

    def _engage_unknown(self, reason: str, after: AccountState) -> None:
        if self._breaker.engage(reason, {"account": self._account}, kind=ReasonClass.UNKNOWN):
            self._pass_on(MONITOR_ERROR, reason, {}, after)

    def _froze(
        self, effects: tuple[Any, ...], cause: str, reason: str, figures: Mapping[str, Any], after: AccountState
    ) -> None:
        if any(effect.what == "latched" for effect in effects):
            self._pass_on(cause, reason, figures, after)

    def _pass_on(self, cause: str, reason: str, figures: Mapping[str, Any], after: AccountState) -> None:
        self._counter.labels(reason="limit_violation").inc()
        metadata = {
            "cause": cause,
            "account": self._account,
            **figures,
            "equity_usd": after.equity,
            "exposure_usd": after.total_exposure,
            "drawdown_pct": after.drawdown_pct,
            "alert_level": after.alert_level.value,
        }
        event = FreezeEvent(time_or_unknown(self._wall_clock), "limit_violation", reason, metadata)
        say("critical", "account monitor engaged the circuit breaker", **event.to_json())
        if self._on_freeze is not None:
            try:
                self._on_freeze(event)
            except Exception as error:  # whatever it raises, the breaker stands
                say("error", "the kill could not be passed on", error=repr(error), reason=reason)

    def _log(self, risen: Sequence[Finding], after: AccountState) -> None:
        """Log levels that were reached just now, each at most once in an interval."""
        if not risen:
            return
        now, news = self._now(), []
        with self._lock:
            for finding in risen:
                if now - self._logged_ns.get(finding.name, -(2**63)) >= self._log_interval_ns:
                    self._logged_ns[finding.name] = now
                    news.append(finding)
        for finding in news:
            loud = "critical" if finding.level is AlertLevel.CRITICAL else "warning"
            say(loud, "account level reached", account=self._account, reason=finding.sentence, **_figures_of(after))

    def _note_engagement(self, before: AccountState, after: AccountState) -> None:
        breaker = self._breaker
        if breaker.engagement == self.seen_engagement:
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
            if state.engagement == self.seen_engagement:
                return
            self.seen_engagement = state.engagement
            self.engagements += 1
            self._records.append(record)
        say("critical", "the account around an engagement", account=self._account, **finite_or_text(record.to_json()))

    def _now(self) -> int:
        """The time for what only spaces things out; a clock that fails stands still."""
        try:
            return self._clock()
        except Exception:  # the tick that met it is a breach already
            return self.next_look_ns


def _figures_of(state: AccountState) -> dict[str, Any]:
    return {
        "equity_usd": state.equity,
        "exposure_usd": state.total_exposure,
        "leverage": state.leverage,
        "drawdown_pct": state.drawdown_pct,
    }


def account_figures(
    account: str,
    last: AccountState,
    peak_usd: float,
    totals: Mapping[str, int],
    alerts: Mapping[tuple[str, str], int],
) -> list[Figure]:
    """Return every metric of one account.

    Args:
        account: its name, as a label.
        last: the newest state.
        peak_usd: highest equity of the day.
        totals: counts by name.
        alerts: how often each level of each measure was reached.
    """
    labels = {"account": account}
    gauges = (
        ("balance_usd", "Initial balance and closed profit.", last.balance),
        ("equity_usd", "Balance and open profit.", last.equity),
        ("peak_equity_usd", "Highest equity of the day.", peak_usd),
        ("open_pnl_usd", "Open profit and loss.", last.open_pnl),
        ("closed_pnl_usd", "Closed profit and loss.", last.closed_pnl),
        ("exposure_usd", "Sum of absolute positions.", last.total_exposure),
        ("leverage_ratio", "Exposure over equity, true, not capped.", true_leverage(last.total_exposure, last.equity)),
        ("drawdown_usd", "Lost of the day's highest equity.", last.drawdown),
        ("drawdown_ratio", "The same as a share of it.", last.drawdown_pct / 100.0),
        ("alert_level", "0 normal, 1 warning, 2 critical.", RANK[last.alert_level]),
    )
    found = [Figure(f"killswitch_account_{name}", "gauge", text, labels, value) for name, text, value in gauges]
    for name, text in _TOTALS.items():
        found.append(Figure(f"killswitch_account_{name}", "counter", text, labels, totals[name]))
    text = "Times that a level was reached."
    for measure in KINDS:
        for level in (AlertLevel.WARNING, AlertLevel.CRITICAL):
            told = {**labels, "measure": measure, "level": level.value}
            value = alerts.get((measure, level.value), 0)  # from the start at 0, so that an alert sees the first one
            found.append(Figure("killswitch_account_alerts", "counter", text, told, value))
    return found

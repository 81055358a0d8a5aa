"""The policy of one process as it goes on: book, session clock and table asked again and again, changes told once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog
from prometheus_client import CollectorRegistry

from killswitch.risk.exposure.exposure_book import ExposureBook
from killswitch.risk.exposure.exposure_figures import ExposureFigures
from killswitch.risk.exposure.policy_settings import RiskRules
from killswitch.risk.exposure.policy_table import (
    PolicyDecisionTable,
    PolicyMode,
    PolicyReason,
    Regime,
    Restriction,
    restriction_of,
)
from killswitch.risk.exposure.trading_session import SessionMoment, regime_at, unknown_moment
from killswitch.risk.metrics import counter_of
from killswitch.settings.settings_diff import needs_new_start, say_changed

_log = structlog.get_logger("killswitch.risk")

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """One decision, with all that it was made from.

    Attributes:
        mode: what is asked of execution.
        reason: why.
        restriction: what it means for those who send orders; ``restriction.mode`` is what to freeze to.
        moment: where in the trading day it was made.
        figures: the exposure then; ``None`` when it could not be had.
    """

    mode: PolicyMode
    reason: PolicyReason
    restriction: Restriction
    moment: SessionMoment
    figures: ExposureFigures | None


class PolicyMonitor:
    """Evaluates the policy and tells every change. Thread-safe.

    Before the first evaluation nothing is known, so orders that grow are not allowed. Whatever raises on the way (the
    book, the clock) is an unknown figure: the strictest mode, and no sale.

    Args:
        book: the exposure.
        table: the policy.
        moment: where in the trading day now lies, such as :meth:`SessionClock.moment`.
        on_mode: told the first decision and every one that changes the mode or the restriction, in order, one at a
            time. An agent makes a freeze of ``decision.restriction.mode`` there. If it raises, the decision stands,
            and it is told again at the next evaluation. It must not call :meth:`evaluate`.
        registry: where ``policy_mode_total`` is counted; the default registry of the process when ``None``.
    """

    def __init__(
        self,
        book: ExposureBook,
        table: PolicyDecisionTable,
        *,
        moment: Callable[[], SessionMoment],
        on_mode: Callable[[PolicyDecision], None] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._book = book
        self._table = table
        self._moment = moment
        self._on_mode = on_mode
        self._counter = counter_of(
            registry,
            "policy_mode_total",
            "Changes of policy mode, by the new mode",
            ["mode"],
            [(mode.name,) for mode in PolicyMode],
        )
        self._lock = threading.Lock()
        self._counted: tuple[PolicyMode, Restriction] | None = None
        self._told: tuple[PolicyMode, Restriction] | None = None
        self._newest: PolicyDecision | None = None
        self._warned = False

    @property
    def decision(self) -> PolicyDecision | None:
        """The newest decision, ``None`` before the first."""
        return self._newest

    @property
    def rules(self) -> RiskRules:
        """The rules in force."""
        return self._table.rules

    def set_rules(self, rules: RiskRules) -> None:
        """Decide by other rules from now on, and at once; a change of mode is told before this returns.

        The book stays, and follows the new targets and maxima. A decision is no freeze and latches nothing: looser
        rules may allow what was not allowed. A freeze that was made of a decision is lifted by a person alone, and
        figures that are not known stay unknown under any rules. ``on_mode`` must not call this.

        Raises:
            ValueError: something differs that needs a new start: what the book follows, or the session. Nothing has
                changed.
        """
        table = PolicyDecisionTable(rules)
        with self._lock:
            before = self._table.rules
            if rules.session != before.session:
                names = [
                    f"session.{name}"
                    for name in type(rules.session).model_fields
                    if getattr(rules.session, name) != getattr(before.session, name)
                ]
                raise ValueError(needs_new_start(names))
            self._book.set_levels(rules.exposure)
            self._table = table
            self._evaluate()
        say_changed("risk rules changed", before, rules)

    def allows_growing_orders(self) -> bool:
        """Whether an order that could grow the exposure may be sent now. Cancels always may."""
        newest = self._newest
        return newest is not None and newest.restriction.growing_orders

    def evaluate(self) -> PolicyDecision:
        """Decide anew, and tell a change. Never raises."""
        with self._lock:
            return self._evaluate()

    def _evaluate(self) -> PolicyDecision:
        """The lock is held."""
        decision = self._decide()
        self._newest = decision
        now = (decision.mode, decision.restriction)
        if now != self._counted:
            self._counted = now
            self._count(decision)
        if now != self._told and self._pass_on(decision):
            self._told = now
        return decision

    def _decide(self) -> PolicyDecision:
        moment, figures, why = self._look()
        if figures is None:
            regime, minutes = Regime.CLOSE, _NAN
        else:
            regime, minutes = regime_at(moment, self._table.rules.regimes), moment.minutes_to_close
        mode, reason = decide_for(self._table, figures, regime, minutes)
        if why:
            reason = replace(reason, sentence=f"{reason.sentence} ({why})")
        return PolicyDecision(mode, reason, restriction_of(mode, reason), moment, figures)

    def _look(self) -> tuple[SessionMoment, ExposureFigures | None, str]:
        """Return the moment, the figures, and why something of them is not known."""
        try:
            moment = self._moment()
        except Exception as error:  # whatever a clock raises, the time of day is unknown
            moment = unknown_moment(f"the session clock raised {error!r}")
        try:
            figures = self._book.figures(market_open=moment.is_open or not moment.known)
        except Exception as error:  # whatever the book raises, the exposure is unknown
            return moment, None, f"the exposure book raised {error!r}"
        if bool(figures.warnings) != self._warned:
            self._warned = bool(figures.warnings)
            _log.warning("marks of the exposure", doubtful=list(figures.warnings))
        said = list(figures.faults) if not figures.trusted else []
        if not moment.known:
            said.append(moment.sentence)
        return moment, figures, "; ".join(said)

    def _count(self, decision: PolicyDecision) -> None:
        self._counter.labels(mode=decision.mode.name).inc()
        say = _log.info if decision.restriction.growing_orders else _log.warning
        say("policy mode", mode=decision.mode.name, why=decision.reason.sentence, kind=decision.reason.kind)

    def _pass_on(self, decision: PolicyDecision) -> bool:
        """Tell the callback; False when it raised."""
        if self._on_mode is None:
            return True
        try:
            self._on_mode(decision)
        except Exception as error:  # whatever it raises, the decision stands
            _log.error("the policy mode could not be passed on", error=repr(error), mode=decision.mode.name)
            return False
        return True


def decide_for(
    table: PolicyDecisionTable, figures: ExposureFigures | None, regime: Regime, minutes_to_close: float
) -> tuple[PolicyMode, PolicyReason]:
    """Ask the table about the figures of a book; ``None`` is a book of which nothing is known."""
    if figures is None:
        return table.decide(regime, _NAN, _NAN, _NAN, _NAN, _NAN, _NAN, minutes_to_close)
    lt, mm = figures.buckets["LT"], figures.buckets["MM_PURE"]
    return table.decide(
        regime,
        figures.gross_exposure_pct,
        figures.potential_exposure_pct,
        lt.current_pct,
        lt.potential_pct,
        mm.current_pct,
        mm.potential_pct,
        minutes_to_close,
    )

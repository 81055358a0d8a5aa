"""The account on every tick: drawdown and leverage against a warning and a hard level, and a circuit breaker behind.

What is measured from what:

* **Drawdown** is from the day's *highest* equity, not from the initial balance: ``max_daily_drawdown`` is a day's
  figure, and the peak is never the later of the two to stop.
* **Leverage** is exposure (sum of absolute positions) over *equity* (balance and open profit), so that a loss raises
  it. Something held with no equity left is infinite leverage. At most 10 is reported; the true one decides.
* A value at a level counts. Within a billionth below it also counts, so that rounding errs towards stopping.
* A **mark** that is older than ``mark_max_age_ms``, on the deadline clock, is no price any more; until a first one
  comes the last fill stands for it, for as long. What then follows is what the limits say for a stale and a missing
  one.
* A **day** begins at ``day_start_utc``. The time of day is read once, at construction, and then follows the deadline
  clock: a step of the wall clock neither ends a day nor lengthens one.

A hard level is a bad reading of class ``drawdown`` or ``position``, a tick that makes no sense one of class ``data``,
and so are marks that are too old, once a second. Ages are asked at every tick and fill; where ticks may stop altogether
:meth:`RiskMonitor.look` asks without one. Monitoring goes on after the kill: every tick is answered, whatever the
breaker says. This monitor cancels nothing; ``on_freeze`` is where an agent makes a freeze of the cluster out of a kill.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from killswitch.clock import NowNs, WallClock, now_ns, time_or_unknown
from killswitch.core.canonical import finite_or_text
from killswitch.risk.account.account_actions import KINDS, AccountActions, account_figures
from killswitch.risk.account.account_book import AccountBook
from killswitch.risk.account.account_days import AccountDays
from killswitch.risk.account.account_rule import (
    RANK,
    Finding,
    Measure,
    drawdown_ratio,
    findings,
    levels_of,
    mark_finding,
    surely_normal_equity,
    surely_normal_leverage,
    true_leverage,
)
from killswitch.risk.account.account_state import (
    LARGEST,
    AccountState,
    AccountTick,
    AlertLevel,
    BadTick,
    EngagementRecord,
    PriceTick,
    Tick,
    TickStamp,
    checked_fill,
    checked_holdings,
    checked_price,
)
from killswitch.risk.account_limits import (
    AccountLimits,
    day_gets_longer,
    merged_breaker_settings,
)
from killswitch.risk.breaker.circuit_breaker import CircuitBreaker
from killswitch.risk.events import FreezeEvent
from killswitch.risk.exact import EXACT, exact
from killswitch.risk.mark_ages import AT_UNKNOWN_NS, MarkAges
from killswitch.risk.metrics import Figure, SnapshotCollector
from killswitch.risk.order_inputs import finite_number
from killswitch.risk.process.risk_limits_file import load_account_part
from killswitch.safe_log import say
from killswitch.settings.settings_diff import say_changed
from killswitch.settings.settings_file import RiskFileError

_NORMAL = AlertLevel.NORMAL


class RiskMonitor:
    """Holds one account against its limits on every tick. Thread-safe; nothing that comes in makes it raise.

    Args:
        circuit_breaker: what a hard level engages; one made from the limits when ``None``.
        config_path: a file like ``config/risk_limits.yaml``, of which the account's part is taken, or of that part
            alone; the defaults when ``None``.
        initial_balance: balance that profit and loss are counted from, USD, greater than 0.
        limits: the limits as an object, instead of a file.
        account: tells several accounts of a process apart in logs and metrics.
        day_peak_usd: highest equity of the day so far, for a monitor that starts in the middle of a day.
        clock: deadline clock.
        wall_clock: the time that states carry; the default is that of the machine.
        on_freeze: told every kill by this monitor, once, when it latches (a pause is not one yet) and with no lock
            held. Its trigger is ``limit_violation``, and ``metadata["cause"]`` says ``drawdown``, ``leverage``,
            ``marks`` or ``monitor_error``. If it raises, that is logged and the kill stands.
        registry: where the metrics are; the default registry of the process when ``None``.

    Raises:
        RiskFileError: the limits cannot be used, or say otherwise than the circuit breaker.
        ValueError: the initial balance or the day's peak is not a finite number above 0, limits were given twice, or
            the wall clock gives no time.

    Attributes:
        limits: the limits in force.
        circuit_breaker: the breaker.
    """

    def __init__(
        self,
        circuit_breaker: CircuitBreaker | None,
        config_path: Path | str | None,
        initial_balance: float,
        *,
        limits: AccountLimits | None = None,
        account: str = "default",
        day_peak_usd: float | None = None,
        clock: NowNs = now_ns,
        wall_clock: WallClock | None = None,
        on_freeze: Callable[[FreezeEvent], None] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        if limits is not None and config_path is not None:
            raise ValueError("give the limits once: as a file, or as an object")
        limits = limits if limits is not None else load_account_part(config_path)
        stamp: WallClock = wall_clock if wall_clock is not None else TickStamp()
        if circuit_breaker is None:
            circuit_breaker = CircuitBreaker(
                limits.breaker_settings(), name=account, clock=clock, registry=registry, wall_clock=stamp
            )
        differences = limits.breaker_differences(circuit_breaker.settings)
        if differences:
            raise RiskFileError(differences)
        self.limits = limits
        self.account = account
        self.circuit_breaker = circuit_breaker
        self._clock = clock
        self._wall_clock = stamp
        self._actions = AccountActions(
            limits,
            circuit_breaker,
            account=account,
            clock=clock,
            wall_clock=stamp,
            on_freeze=on_freeze,
            registry=registry,
        )
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._levels: dict[Measure, AlertLevel] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._known = None if self.limits.known_symbols is None else frozenset(self.limits.known_symbols)
        self._initial = exact(_above_zero(initial_balance, "initial_balance"))
        self._sure_leverage = surely_normal_leverage(self.limits)
        self._book = AccountBook()
        self._ages = MarkAges(self.limits.mark_max_age_ms)
        self._balance_usd = self._start_balance_usd = float(self._initial)
        self._peak_usd = self._sure_equity_usd = 0.0
        self._raise_peak(max(self._balance_usd, 0.0 if day_peak_usd is None else _above_zero(day_peak_usd, "day_peak")))
        self._ticks = self._fills = self._bad_ticks = 0
        self._days = AccountDays(
            self._wall_clock(),
            self._clock(),
            starts=self.limits.day_starts(),
            kept=self.limits.days_kept,
            peak_usd=self._peak_usd,
            equity_usd=self._balance_usd,
        )
        # The state that a bad tick has left; while it is the newest, the account is not known to be sound.
        self._distrusted: AccountState | None = None
        self._last = self._state(self._wall_clock(), ())
        SnapshotCollector.of(registry).add(self)

    # ---- what comes in

    def monitor_tick(self, tick: Tick) -> AccountState:
        """Take a tick and return the account after it. Never raises.

        A tick that makes no sense (a price that is not a finite number above 0, an unknown symbol, anything that is no
        tick) changes no figure: it is a bad reading of class ``data``, and the state that is returned is CRITICAL.
        """
        bad: str | None = None
        found: tuple[Finding, ...] = ()
        risen: tuple[Finding, ...] = ()
        actions = self._actions
        with self._lock:
            before = self._last
            self._ticks += 1
            try:
                now = self._clock()
                if now >= self._days.ends_ns:
                    self._begin_day(now)
                self._days.today.ticks += 1
                if tick.__class__ is PriceTick:
                    symbol, price = tick
                    line = self._book.lines.get(symbol)
                    if line is None or price.__class__ is not float or not 0.0 < price <= LARGEST:
                        price = checked_price(symbol, price, self._known)
                    if line is not None:
                        self._book.mark(line, price, now)
                        if self._ages.too_old:
                            self._ages.too_old.pop(symbol, None)
                else:
                    self._take_account(tick, now)
                found = self._judge(now)
                after = self._last = self._state(self._wall_clock(), found)
                act = now >= actions.next_look_ns
                if found or self._levels:
                    if levels_of(found) != self._levels:
                        risen, act = self._note_levels(found, after), True
                    act = act or after.alert_level is AlertLevel.CRITICAL
            except Exception as error:  # whatever is wrong with a tick, it is a breach
                bad, after, act = self._distrust(error), self._last, True
        breaker = self.circuit_breaker
        if act or breaker.restricted or breaker.engagement != actions.seen_engagement:
            if bad is None:
                actions.after_tick(before, after, found, risen)
            else:
                actions.after_bad_tick(before, after, found, bad)
        return after

    def on_fill(self, symbol: str, side: str, qty: float, price: float) -> AccountState:
        """Add a fill to the position and return the account after it; a fill is a fact, and counts when killed too.

        Args:
            symbol: name of the instrument.
            side: ``buy`` or ``sell``, in lower, upper or title case.
            qty: quantity, greater than 0 and at most 1e15.
            price: USD, greater than 0 and at most 1e15.

        A fill that makes no sense is not added: from then on the position is not known, and the breaker engages with
        class ``unknown``, which only a person releases. Never raises.
        """
        bad: str | None = None
        found: tuple[Finding, ...] = ()
        risen: tuple[Finding, ...] = ()
        with self._lock:
            before = self._last
            self._fills += 1
            try:
                now = self._time_ns()
                self._take_fill(symbol, side, qty, price, now)
                found = self._judge(now)
                after = self._last = self._state(self._wall_clock(), found)
                risen = self._note_levels(found, after)
            except Exception as error:  # whatever is wrong with a fill, the position is not known
                bad, after = self._distrust(error), self._last
        if bad is None:
            self._actions.after_tick(before, after, found, risen)
        else:
            self._actions.after_bad_fill(before, after, bad)
        return after

    def look(self) -> AccountState:
        """Judge the account without a tick, and return it; call it regularly where a feed may fall silent altogether.

        A hard level that is reached engages the breaker, and so do marks that are too old. What is well is no good
        reading: that takes a tick. Never raises.
        """
        bad: str | None = None
        found: tuple[Finding, ...] = ()
        risen: tuple[Finding, ...] = ()
        with self._lock:
            before = self._last
            try:
                now = self._clock()
                if now >= self._days.ends_ns:
                    self._begin_day(now)
                found = self._judge(now)
                after = self._look_again(self._wall_clock(), found)
                risen = self._note_levels(found, after)
            except Exception as error:  # what cannot be judged is a breach
                bad, after = self._distrust(error), self._last
        if bad is None:
            self._actions.after_look(before, after, found, risen)
        else:
            self._actions.after_bad_tick(before, after, found, bad)
        return after

    # ---- other limits

    def set_limits(self, limits: AccountLimits) -> None:
        """Hold the account against other limits from now on, and judge it by them as it is now.

        What is known stays: positions, profit, the day's highest equity, days and forensics (as many as are kept). A
        hard level that is reached already engages the breaker before this returns. What is well by the new limits is no
        good reading: that takes a tick. The breaker goes by its part of the limits, see
        :meth:`CircuitBreaker.set_settings`; a part that is left out here and was left out before stays as it is there.

        Another ``day_start_utc`` never ends the running day sooner, since a new day forgets the highest equity: the day
        goes on to the first new start that is not before its old end. A symbol that is held stays known until the
        limits change again, for one must be able to get out.

        Raises:
            ValueError: ``state_file`` or ``file_lock`` would change, which needs a new start, or the breaker's part
                does not fit together. Nothing has changed.
        """
        with self._changing:
            before = self.limits
            breaker_settings = merged_breaker_settings(before, limits, self.circuit_breaker.settings)
            self.circuit_breaker.set_settings(breaker_settings)
            state, after, found, risen = self._take_limits(limits)
        say_changed("account limits changed", before, limits, account=self.account, only=AccountLimits)
        self._actions.after_look(state, after, found, risen)

    def _take_limits(
        self, limits: AccountLimits
    ) -> tuple[AccountState, AccountState, tuple[Finding, ...], tuple[Finding, ...]]:
        """Return the account before, and after by the new limits with what was found and what of it is new."""
        with self._lock:
            before, longer = self._last, day_gets_longer(self.limits, limits)
            self.limits = limits
            self._known = (
                None if limits.known_symbols is None else frozenset((*limits.known_symbols, *self._book.lines))
            )
            self._sure_leverage = surely_normal_leverage(limits)
            self._raise_peak(self._peak_usd)
            self._actions.set_limits(limits)
            self._ages.set_max_age(limits.mark_max_age_ms)
            now = self._time_ns()
            if now is not None and now >= self._days.ends_ns:
                self._begin_day(now)
            self._days.change(longer=longer, kept=limits.days_kept)
            found = self._judge(now)
            after = self._look_again(time_or_unknown(self._wall_clock), found)
            return before, after, found, self._note_levels(found, after)

    # ---- what it says

    def state(self) -> AccountState:
        """Return the newest account."""
        return self._last

    def forensics(self) -> tuple[EngagementRecord, ...]:
        """Return the newest engagements of the breaker with the account before and after each, oldest first."""
        return self._actions.forensics(self._last)

    def get_summary(self) -> dict[str, Any]:
        """Return everything worth knowing, as JSON values; figures that are not finite as words."""
        breaker = self.circuit_breaker.snapshot()
        records = self.forensics()
        with self._lock:
            last = self._last
            body = {
                "account": self.account,
                "state": last.to_json(),
                "equity_usd": last.equity,
                "true_leverage": true_leverage(last.total_exposure, last.equity),
                "initial_balance_usd": self._start_balance_usd,
                "peak_equity_usd": self._peak_usd,
                "limits": {
                    name: getattr(self.limits, name)
                    for name in ("drawdown_warning", "max_daily_drawdown", "leverage_warning", "max_account_leverage")
                },
                "ticks_total": self._ticks,
                "fills_total": self._fills,
                "bad_inputs_total": self._bad_ticks,
                "warnings_total": self._count_of(AlertLevel.WARNING),
                "breaches_total": self._count_of(AlertLevel.CRITICAL),
                "engagements_total": self._actions.engagements,
                "last_engagement": records[-1].to_json() if records else None,
                "valued_at_last_fill": [name for name, line in self._book.lines.items() if not line.marked],
                "circuit_breaker": {
                    "state": breaker.mode.value,
                    "engagement": breaker.engagement,
                    "causes": {cause.kind.value: cause.reason for cause in breaker.causes},
                    "escalated": breaker.escalated,
                    "repeats": breaker.repeats,
                },
                "days": self._days.to_json(),
            }
        return dict(finite_or_text(body))

    def figures(self) -> list[Figure]:
        """Return what is shown on /metrics, as of now."""
        with self._lock:
            totals = {"ticks": self._ticks, "fills": self._fills, "bad_inputs": self._bad_ticks}
            totals["engagements"] = self._actions.engagements
            return account_figures(self.account, self._last, self._peak_usd, totals, dict(self._counts))

    # ---- figures; the lock is held

    def _take_fill(self, symbol: str, side: str, qty: float, price: float, now: int | None) -> None:
        change, paid = checked_fill(symbol, side, qty, price, self._known)
        if symbol not in self._book.lines and len(self._book.lines) >= self.limits.max_symbols:
            raise BadTick(f"{symbol}: {self.limits.max_symbols} symbols are held already, which is the most")
        self._book.fill(symbol, change, paid, AT_UNKNOWN_NS if now is None else now)
        if now is None or symbol in self._ages.too_old:
            self._ages.look_again()  # flat, or with another price for want of a mark: rare enough to look through all
        self._settle_balance()

    def _take_account(self, tick: object, now: int) -> None:
        if not isinstance(tick, AccountTick):
            raise BadTick(f"{str(tick)[:200]!r} is no tick; one is a PriceTick or an AccountTick")
        closed_usd, holdings = checked_holdings(tick, self._known, self.limits.max_symbols)
        self._book.replace(closed_usd, holdings, now)
        self._ages.all_came(now)
        self._settle_balance()

    def _settle_balance(self) -> None:
        self._balance_usd = float(EXACT.add(self._initial, self._book.closed))

    def _judge(self, now: int | None) -> tuple[Finding, ...]:
        """Return what has reached a level; of what time it is unknown, the marks that were too old already."""
        equity, ages = self._balance_usd + self._book.open_usd, self._ages
        if equity > self._peak_usd:
            self._raise_peak(equity)
        if now is not None and not ages.looked_ns <= now < ages.due_ns:  # is_due, without the call
            ages.look(now, [(symbol, line.at_ns) for symbol, line in self._book.lines.items()])
        marks: tuple[Finding, ...] = ()
        if ages.too_old:
            marks = mark_finding(ages.too_old, self._book.lines, ages.looked_ns if now is None else now, self.limits)
        if equity > self._sure_equity_usd and self._book.exposure_usd < equity * self._sure_leverage:
            return marks
        return (*findings(equity, self._peak_usd, self._book.exposure_usd, self.limits), *marks)

    def _note_levels(self, found: tuple[Finding, ...], after: AccountState) -> tuple[Finding, ...]:
        """Count every level that is reached and was not; return those."""
        levels, before = levels_of(found), self._levels
        if levels == before:
            return ()
        self._levels = levels
        risen = tuple(one for one in found if RANK[one.level] > RANK[before.get(one.measure, _NORMAL)])
        for finding in risen:
            self._counts[(finding.measure, finding.level.value)] += 1
            self._days.today.first_at.setdefault(finding.name, after.timestamp)
        return risen

    def _look_again(self, timestamp: str, found: tuple[Finding, ...]) -> AccountState:
        """Take the account as it stands for the newest state; one that was not to be trusted stays so."""
        after = self._state(timestamp, found)
        if self._last is self._distrusted:
            after = self._distrusted = after._replace(alert_level=AlertLevel.CRITICAL)
        self._last = after
        return after

    def _time_ns(self) -> int | None:
        """The time on the deadline clock; ``None`` when it fails."""
        try:
            return self._clock()
        except Exception:  # a fill is a fact, whatever the clock says
            return None

    def _raise_peak(self, equity_usd: float) -> None:
        self._peak_usd = equity_usd
        self._sure_equity_usd = surely_normal_equity(equity_usd, self.limits)

    def _state(self, timestamp: str, found: tuple[Finding, ...]) -> AccountState:
        book, balance_usd, peak_usd = self._book, self._balance_usd, self._peak_usd
        open_usd, exposure_usd = book.open_usd, book.exposure_usd
        closed_usd = balance_usd - self._start_balance_usd
        equity_usd = balance_usd + open_usd
        lost = (peak_usd - equity_usd) / peak_usd if peak_usd > 0.0 else drawdown_ratio(equity_usd, peak_usd)
        times = exposure_usd / equity_usd if equity_usd > 0.0 else true_leverage(exposure_usd, equity_usd)
        day = self._days.today
        if lost > day.max_drawdown_ratio or equity_usd < day.lowest_equity_usd or equity_usd > day.peak_equity_usd:
            day.note_equity(equity_usd, peak_usd, lost)
        if times > day.max_leverage:  # noqa: PLR1730 - the call of max() costs more than the comparison
            day.max_leverage = times
        cap = self.limits.reported_leverage_cap
        return AccountState(
            timestamp, balance_usd, open_usd, closed_usd, closed_usd + open_usd, book.positions, exposure_usd,
            times if times < cap else cap, peak_usd - equity_usd, lost * 100.0,
            _NORMAL if not found else max((finding.level for finding in found), key=RANK.__getitem__),
        )  # fmt: skip

    def _distrust(self, error: Exception) -> str:
        """Note that something came that cannot be used; the figures stay, the account is CRITICAL."""
        self._bad_ticks += 1
        self._last = self._last._replace(timestamp=time_or_unknown(self._wall_clock), alert_level=AlertLevel.CRITICAL)
        self._distrusted = self._last
        return str(error) if isinstance(error, BadTick) else f"the monitor failed: {error!r}"

    def _begin_day(self, now: int) -> None:
        """Count the highest equity anew. An equity of nothing is no peak to lose from: the old one stays then."""
        equity = self._balance_usd + self._book.open_usd
        if equity > 0:
            self._raise_peak(equity)
        self._days.turn(now, peak_usd=self._peak_usd, equity_usd=equity)
        day = self._days.today.day
        say("info", "a day of the account began", account=self.account, day=day, peak_usd=self._peak_usd)

    def _count_of(self, level: AlertLevel) -> dict[str, int]:
        return {measure: self._counts[(measure, level.value)] for measure in KINDS}


def _above_zero(value: object, name: str) -> float:
    number = finite_number(value)
    if number is None or number <= 0.0:
        raise ValueError(f"{name} is {value!r}, not a finite number above 0")
    return number

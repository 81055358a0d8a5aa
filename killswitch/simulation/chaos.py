"""The chaos scenarios of the account monitor, each a run with a verdict; equal to the byte for one seed.

Every scenario stands on the real monitor and the real circuit breaker, with a clock that it moves itself: an account of
100,000 USD that holds 2.5 BTC bought at 40,000 USD, so that one per cent of the price is one per cent of the equity.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from killswitch.core.canonical import finite_or_text
from killswitch.risk.account.account_rule import LEVEL_TOLERANCE, true_leverage
from killswitch.risk.account.account_state import AccountState, AlertLevel
from killswitch.risk.account_limits import AccountLimits
from killswitch.risk.breaker.breaker_machine import BreakerMode
from killswitch.risk.breaker.circuit_breaker import ReleaseRefused
from killswitch.simulation.risk_monitor import TIME_VARIABLE
from killswitch.simulation.staged_account import StagedAccount

SCHEMA: Final = "killswitch.scenario/1"
FIXED_START: Final = "2026-01-31T09:30:00.000000Z"
"""When a run begins unless ``MM_FREEZE_UTC_ISO`` says otherwise: not now, so that two runs are equal."""

BALANCE_USD: Final = 100_000.0
SYMBOL: Final = "BTCUSDT"
QUANTITY: Final = 2.5
PRICE_USD: Final = 40_000.0
TICK_SECONDS: Final = 0.1
PRICE_DECIMALS: Final = 2
PERSON: Final = "operator:ann"
HARD_PCT: Final = 2.0
FAT_FINGER_TIMES: Final = 6.4


class NoSuchScenario(ValueError):
    """There is no scenario of that name; the message lists those that exist."""


@dataclass(slots=True)
class ChaosRun:
    """One scenario as it went.

    Attributes:
        name: its name.
        title: what it stages.
        account: the stage that it ran on.
        checks: what must be so, whether it was, and what was seen.
    """

    name: str
    title: str
    account: StagedAccount
    checks: list[tuple[str, bool, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """``OK`` when something was checked and all of it holds, else ``FAILED``."""
        return "OK" if self.checks and all(holds for _, holds, _ in self.checks) else "FAILED"

    def check(self, what: str, holds: bool, seen: Any) -> None:
        """Note one check."""
        self.checks.append((what, holds, seen))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        account = self.account
        days = account.monitor.get_summary()["days"]
        body = {
            "name": self.name,
            "title": self.title,
            "verdict": self.verdict,
            "checks": [{"what": what, "holds": holds, "seen": seen} for what, holds, seen in self.checks],
            "ticks": account.ticks,
            "warnings": account.warnings,
            "kills": account.kills,
            "max_drawdown_pct": max(day["max_drawdown_pct"] for day in days),
            "max_leverage": max(day["max_leverage"] for day in days),
            "events": account.events,
            "engagements": [record.to_json() for record in account.monitor.forensics()],
        }
        return dict(finite_or_text(body))


Play = Callable[[ChaosRun, random.Random], None]


def run_chaos(name: str = "all", *, seed: int = 1, start: str = FIXED_START) -> list[ChaosRun]:
    """Play one scenario, or all in their order.

    Args:
        name: a name of :data:`CHAOS`, or ``all``.
        seed: of the prices. Each scenario draws from its own generator, so that one alone runs as it does among all.
        start: time of day that each begins at, RFC 3339.

    Raises:
        NoSuchScenario: there is none of that name.
        ValueError: ``start`` is no time.
    """
    if name != "all" and name not in CHAOS:
        raise NoSuchScenario(f"there is no chaos scenario {name!r}; there are {', '.join(CHAOS)} and all")
    moment = dt.datetime.fromisoformat(start)
    moment = (moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    runs = []
    for each, (title, play) in CHAOS.items():
        if name in ("all", each):
            run = ChaosRun(each, title, StagedAccount(moment, BALANCE_USD, AccountLimits()))
            try:
                play(run, random.Random(f"{each} {seed}"))
            except Exception as error:  # a run that breaks off is a verdict too
                run.check("the run comes to its end", False, repr(error))
            runs.append(run)
    return runs


def report(runs: Sequence[ChaosRun], *, seed: int, start: str, version: str) -> str:
    """Return the runs as one line of JSON with sorted keys and one trailing newline."""
    body = {
        "schema": SCHEMA,
        "scenario": "chaos",
        "seed": seed,
        "runtime": {"utc": start, "version": version},
        "verdict": verdict(runs),
        "runs": [run.to_json() for run in runs],
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"


def verdict(runs: Sequence[ChaosRun]) -> str:
    """``OK`` when there are runs and each is."""
    return "OK" if runs and all(run.verdict == "OK" for run in runs) else "FAILED"


def start_of_environment() -> str:
    """The time that runs begin at: that of ``MM_FREEZE_UTC_ISO``, else the fixed one."""
    return os.environ.get(TIME_VARIABLE) or FIXED_START


def table(runs: Sequence[ChaosRun]) -> str:
    """Return the runs as a table of at most 80 columns; what does not hold stands below its run."""
    lines = [f"{'scenario':<20}{'verdict':<9}{'checks':>7}{'ticks':>7}{'warnings':>10}{'kills':>7}{'drawdown':>11}"]
    for run in runs:
        body = run.to_json()
        held = f"{sum(holds for _, holds, _ in run.checks)}/{len(run.checks)}"
        lines.append(
            f"{run.name:<20}{run.verdict:<9}{held:>7}{run.account.ticks:>7}{run.account.warnings:>10}"
            f"{run.account.kills:>7}{body['max_drawdown_pct']:>9.2f} %"
        )
        lines.extend(f"  FAILED: {what}; seen: {seen}"[:80] for what, holds, seen in run.checks if not holds)
    return "\n".join(lines)


# ---- the scenarios


def _normal(run: ChaosRun, _rng: random.Random) -> None:
    account = run.account
    account.fill(SYMBOL, "buy", QUANTITY, PRICE_USD)
    profits = []
    for number in range(1, 11):
        before = account.state.total_pnl
        profits.append(_tick(account, PRICE_USD + 4.0 * number).total_pnl - before)
    run.check("each of ten ticks earns 10 USD", profits == [10.0] * 10, profits)
    run.check("no alert", account.warnings == 0 and account.events_total == 0, account.events)
    run.check("no kill", account.kills == 0 and account.freezes == [], account.breaker.state.value)
    run.check("an order passes", account.breaker.allows(), account.breaker.state.value)


def _flash_crash(run: ChaosRun, rng: random.Random) -> None:
    account = run.account
    account.fill(SYMBOL, "buy", QUANTITY, PRICE_USD)
    fall = 0.025
    steps = [rng.uniform(0.5, 1.5) for _ in range(rng.randint(20, 40))]
    states: list[AccountState] = []
    kill: int | None = None
    fallen = 0.0
    for step in steps:
        fallen += step / sum(steps)
        states.append(_tick(account, round(PRICE_USD * (1.0 - fall * fallen), PRICE_DECIMALS)))
        if kill is None and account.breaker.is_engaged():
            kill = len(states) - 1
    run.check("the breaker is engaged once", account.kills == 1, account.kills)
    run.check("the drawdown is above 2 %", account.state.drawdown_pct > HARD_PCT, account.state.drawdown_pct)
    causes = [cause.kind.value for cause in account.breaker.snapshot().causes]
    run.check("the cause is the drawdown", causes == ["drawdown"], causes)
    run.check("a warning came before the kill", account.warnings == 1, account.warnings)
    after = [] if kill is None else states[kill + 1 :]
    run.check(
        "monitoring goes on after the kill",
        bool(after) and after[-1].drawdown_pct > states[kill or 0].drawdown_pct,
        len(after),
    )
    run.check("no order passes", not account.breaker.allows(), account.breaker.state.value)
    run.check("the kill was passed on once", len(account.freezes) == 1, [one.reason for one in account.freezes])
    around = [(one.before.drawdown_pct, one.after.drawdown_pct) for one in account.monitor.forensics()]
    holds = len(around) == 1 and around[0][0] < HARD_PCT <= around[0][1]
    run.check("the account before and after the kill is kept", holds, around)


def _fat_finger(run: ChaosRun, _rng: random.Random) -> None:
    account = run.account
    account.fill(SYMBOL, "buy", QUANTITY, PRICE_USD)
    _tick(account, PRICE_USD)
    run.check("before it nothing is engaged", account.kills == 0, account.breaker.state.value)
    account.wait(TICK_SECONDS)
    state = account.fill(SYMBOL, "buy", 13.5, PRICE_USD)
    run.check("the leverage is 6.4", abs(state.leverage - FAT_FINGER_TIMES) < LEVEL_TOLERANCE, state.leverage)
    run.check("the fill itself kills", account.breaker.is_engaged(), account.breaker.state.value)
    causes = [cause.kind.value for cause in account.breaker.snapshot().causes]
    run.check("the cause is the position", causes == ["position"], causes)
    run.check("nothing is lost", state.drawdown == 0.0, state.drawdown)
    run.check("no order passes", not account.breaker.allows(), account.breaker.state.value)
    state = account.fill(SYMBOL, "buy", 16.0, PRICE_USD)
    true = true_leverage(state.total_exposure, state.equity)
    run.check("12.8 times is reported as 10", (state.leverage, true) == (10.0, 12.8), [state.leverage, true])


def _extreme_volatility(run: ChaosRun, rng: random.Random) -> None:
    """Swings of 1 to 3 per cent of the equity around where it began, down and up in small ticks."""
    account = run.account
    account.fill(SYMBOL, "buy", QUANTITY, PRICE_USD)
    first_warning: int | None = None
    first_kill: int | None = None
    swings = [rng.uniform(0.011, 0.015), *(rng.uniform(0.01, 0.03) for _ in range(6)), rng.uniform(0.025, 0.03)]
    rest = swings[1:]
    rng.shuffle(rest)
    for swing in (swings[0], *rest):
        path = [swing * part / 12 for part in range(1, 13)]
        for fallen in (*path, *reversed(path[:-1]), 0.0):
            state = _tick(account, round(PRICE_USD * (1.0 - fallen), PRICE_DECIMALS))
            if first_warning is None and state.alert_level is AlertLevel.WARNING:
                first_warning = account.ticks
            if first_kill is None and account.breaker.is_engaged():
                first_kill = account.ticks
    run.check("there are warnings", first_warning is not None and account.warnings > 1, account.warnings)
    run.check("there is a kill", first_kill is not None, account.kills)
    holds = first_warning is not None and first_kill is not None and first_warning < first_kill
    run.check("warnings come before kills", holds, [first_warning, first_kill])
    run.check("a kill on a kill is not another one", account.kills == 1 == len(account.freezes), account.kills)
    run.check("prices that came back lift no kill", account.breaker.is_engaged(), account.breaker.state.value)


def _recovery(run: ChaosRun, rng: random.Random) -> None:
    """Once by itself, after a feed that failed, and once by a person, after a drawdown."""
    account, breaker = run.account, run.account.breaker
    seen = [breaker.state]
    account.fill(SYMBOL, "buy", QUANTITY, PRICE_USD)
    rules = breaker.settings
    for _ in range(rules.confirmations.data + 1):
        _tick(account, rng.choice([float("nan"), float("inf"), 0.0, -1.0]))
        _seen(seen, breaker.state)
    _tick(account, PRICE_USD)
    _seen(seen, breaker.state)
    run.check("readings do not count during the cool-down", breaker.is_engaged(), breaker.state.value)
    account.wait(rules.recovery_cooldown_seconds)
    account.look()
    run.check("time alone does not recover", breaker.is_engaged(), breaker.state.value)
    for _ in range(rules.recovery_good_readings):
        _tick(account, PRICE_USD)
    _seen(seen, breaker.state)
    probes = [breaker.allows() for _ in range(rules.half_open_probes + 1)]
    run.check("half-open lets its probes through", probes == [True] * rules.half_open_probes + [False], probes)
    for _ in range(rules.half_open_good_readings):
        _tick(account, PRICE_USD)
    _seen(seen, breaker.state)
    _by_a_person(run, rng, seen)
    path = [mode.value for mode in seen]
    expected = ["SAFE", "ENGAGED", "HALF_OPEN", "SAFE", "ENGAGED", "SAFE"]
    run.check("safe, engaged, half-open, safe; safe, engaged, safe", path == expected, path)
    run.check("an order passes", breaker.allows(), breaker.state.value)


def _by_a_person(run: ChaosRun, rng: random.Random, seen: list[BreakerMode]) -> None:
    account, breaker = run.account, run.account.breaker
    stale = breaker.engagement
    _tick(account, round(PRICE_USD * (1.0 - rng.uniform(0.021, 0.029)), PRICE_DECIMALS))
    _seen(seen, breaker.state)
    account.wait(10 * breaker.settings.max_cooldown_seconds)
    for _ in range(10 * breaker.settings.recovery_good_readings):
        _tick(account, PRICE_USD)
    run.check("a drawdown does not recover by itself", breaker.is_engaged(), breaker.state.value)
    refused = ""
    try:
        breaker.release(PERSON, "seen", engagement=stale)
    except ReleaseRefused as refusal:
        refused = str(refusal)
    run.check("a stale release is refused", bool(refused) and breaker.is_engaged(), refused)
    breaker.release(PERSON, "the price came back", engagement=breaker.engagement)
    account.look()
    _tick(account, PRICE_USD)
    _seen(seen, breaker.state)


def _tick(account: StagedAccount, price_usd: float) -> AccountState:
    account.wait(TICK_SECONDS)
    return account.price(SYMBOL, price_usd)


def _seen(modes: list[BreakerMode], mode: BreakerMode) -> None:
    if modes[-1] is not mode:
        modes.append(mode)


CHAOS: Final[dict[str, tuple[str, Play]]] = {
    "normal": ("Ten ticks of +10 USD: no alert, no kill.", _normal),
    "flash_crash": ("A fall of 2.5 %: a warning, then a kill at 2 %.", _flash_crash),
    "fat_finger": ("A fill that makes 6.4 times the equity: a kill.", _fat_finger),
    "extreme_volatility": ("Swings of 1 to 3 %: warnings before kills.", _extreme_volatility),
    "recovery": ("Safe, engaged, safe: by itself after a feed fault, by a person after a drawdown.", _recovery),
}
"""Name -> what it stages, and how."""

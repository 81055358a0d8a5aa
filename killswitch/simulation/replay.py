"""A real tape through the account monitor: when it would have warned, when killed, and how deep the account went.

The position is held through the whole tape, also after a kill, since the monitor only watches: what the replay shows
is the account of somebody who was killed and did not flatten. A kill for a drawdown waits for a person, so that there
is one kill; the table of days says for every day when its levels were first reached.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from killswitch.core.canonical import finite_or_text
from killswitch.risk.account.account_state import LARGEST, AccountState
from killswitch.risk.account_limits import AccountLimits
from killswitch.simulation.staged_account import StagedAccount
from killswitch.simulation.tape import BARS_SYMBOL, BadTape, Bar, ticks_from_bars

PATH_POINTS: Final = 500
"""Most points of the path in the report; each is the deepest of its stretch of the tape."""

TABLE_POINTS: Final = 24
BAR_CHARACTERS: Final = 24
DEFAULT_BALANCE_USD: Final = 100_000.0
_EVENTS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """Whose account it is.

    Attributes:
        balance_usd: initial balance, greater than 0.
        quantity: signed position that is held, above 0 long; ``None``: long for the whole balance at the first price.
        symbol: what the bars are of.
    """

    balance_usd: float = DEFAULT_BALANCE_USD
    quantity: float | None = None
    symbol: str = BARS_SYMBOL

    def faults(self) -> list[str]:
        """Return one sentence for each thing that is wrong."""
        faults = []
        if not (math.isfinite(self.balance_usd) and self.balance_usd > 0):
            faults.append(f"the balance is {self.balance_usd:g}; it is a finite number greater than 0")
        elif self.balance_usd > LARGEST:
            faults.append(f"the balance is {self.balance_usd:g}; it is at most {LARGEST:g}")
        if self.quantity is not None and (not math.isfinite(self.quantity) or self.quantity == 0):
            faults.append(f"the quantity is {self.quantity:g}; it is a finite number, above 0 long and below 0 short")
        if not self.symbol:
            faults.append("the symbol has no name")
        return faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where the account stood at one moment of the tape."""

    at: str
    price_usd: float
    equity_usd: float
    drawdown_pct: float
    leverage: float
    alert_level: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A replay as it went."""

    options: ReplayOptions
    quantity: float
    account: StagedAccount
    bars: int
    first_bar: str
    last_bar: str
    path: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        summary = self.account.monitor.get_summary()
        body = {
            "bars": self.bars,
            "from": self.first_bar,
            "to": self.last_bar,
            "symbol": self.options.symbol,
            "balance_usd": self.options.balance_usd,
            "quantity": self.quantity,
            "limits": summary["limits"],
            "ticks": self.account.ticks,
            "warnings": self.account.warnings,
            "kills": self.account.kills,
            "max_drawdown_pct": max(day["max_drawdown_pct"] for day in summary["days"]),
            "max_leverage": max(day["max_leverage"] for day in summary["days"]),
            "final": self.account.state.to_json(),
            "circuit_breaker": summary["circuit_breaker"],
            "days": summary["days"],
            "events_total": self.account.events_total,
            "events": self.account.events,
            "engagements": [record.to_json() for record in self.account.monitor.forensics()],
            "path": [{name: getattr(point, name) for name in Point.__slots__} for point in self.path],
        }
        return dict(finite_or_text(body))


def replay(bars: Sequence[Bar], limits: AccountLimits, options: ReplayOptions) -> Replay:
    """Play bars through an account monitor on the clock of the bars.

    The four ticks of a bar carry the time of the bar, for a bar does not say when its prices were traded.

    Raises:
        BadTape: there is no bar, a bar's time cannot be read, or the bars go back in time.
        ValueError: the options are not sound, the position is too large, or the limits do not know the symbol.
    """
    faults = options.faults()
    if limits.known_symbols is not None and options.symbol not in limits.known_symbols:
        faults.append(f"{options.symbol} is not among the known_symbols of the limits")
    if faults:
        raise ValueError("; ".join(faults))
    ticks = ticks_from_bars(bars)
    moments = _moments(bars)
    first_usd = bars[0].open
    quantity = options.quantity if options.quantity is not None else options.balance_usd / first_usd
    if abs(quantity) > LARGEST:
        raise ValueError(f"the position would be {quantity:g}; it is at most {LARGEST:g}")
    account = StagedAccount(moments[0], options.balance_usd, limits)
    account.fill(options.symbol, "buy" if quantity > 0 else "sell", abs(quantity), first_usd)
    per_bar = len(ticks) // len(bars)
    stretch = max(1, math.ceil(len(bars) / PATH_POINTS))
    path: list[Point] = []
    deepest: Point | None = None
    for index, moment in enumerate(moments):
        account.advance_to(moment)
        for tick in ticks[index * per_bar : (index + 1) * per_bar]:
            price_usd = next(iter(tick.prices_usd.values()))
            state = account.price(options.symbol, price_usd)
            if deepest is None or state.drawdown_pct > deepest.drawdown_pct:
                deepest = _point(state, price_usd)
        if deepest is not None and ((index + 1) % stretch == 0 or index + 1 == len(moments)):
            path.append(deepest)
            deepest = None
    return Replay(
        options=options, quantity=quantity, account=account, bars=len(bars), first_bar=bars[0].timestamp,
        last_bar=bars[-1].timestamp, path=tuple(path),
    )  # fmt: skip


def table(played: Replay) -> str:
    """Return the replay for people, at most 80 columns wide."""
    body = played.to_json()
    held = f"{played.quantity:.6g} {played.options.symbol}"
    lines = [
        f"{played.bars} bars, {played.first_bar} to {played.last_bar}",
        f"held: {held}; balance {played.options.balance_usd:,.2f} USD",
        "",
        f"{'when':<20}{'price':>12}{'equity':>14}{'drawdown':>11}{'leverage':>10}  level",
    ]
    shown = _worth_showing(played.account.events)
    for event in shown:
        level = "KILL" if event["killed"] else event["alert_level"]
        lines.append(
            f"{event['at'][:19]:<20}{event['price_usd']:>12,.2f}{event['equity_usd']:>14,.2f}"
            f"{event['drawdown_pct']:>9.2f} %{event['leverage']:>9.2f}x  {level}"
        )
    more = played.account.events_total - len(shown)
    lines += [f"and {more} more changes; -o json has them"] if more > 0 else []
    lines += ["", f"{'day':<12}{'deepest':>10}{'warned at':>12}{'hard at':>12}{'highest':>15}{'lowest':>15}"]
    for day in body["days"]:
        lines.append(
            f"{day['day'][:10]:<12}{day['max_drawdown_pct']:>8.2f} %{_first(day, 'WARNING'):>12}"
            f"{_first(day, 'CRITICAL'):>12}{day['peak_equity_usd']:>15,.2f}{day['lowest_equity_usd']:>15,.2f}"
        )
    lines += ["", "drawdown from the day's highest equity"]
    deepest_pct = max(body["max_drawdown_pct"], 1e-9)
    for point in _thinned(played.path):
        bar = "#" * math.ceil(BAR_CHARACTERS * point.drawdown_pct / deepest_pct)
        lines.append(f"{point.at[:16]:<18}{point.drawdown_pct:>7.2f} %  {bar}".rstrip())
    lines += ["", f"{_counted(played.account.warnings, 'warning')}, {_counted(played.account.kills, 'kill')}"]
    return "\n".join(lines)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _thinned(path: Sequence[Point]) -> list[Point]:
    """At most :data:`TABLE_POINTS` points, the deepest of each stretch."""
    stretch = max(1, math.ceil(len(path) / TABLE_POINTS))
    parts = [path[begin : begin + stretch] for begin in range(0, len(path), stretch)]
    return [max(part, key=lambda point: point.drawdown_pct) for part in parts]


def _worth_showing(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every kill, and the first event of each level of each day: an account that swings about a level has many."""
    shown: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for event in events:
        of_the_day = (event["at"][:10], event["alert_level"])
        if event["killed"] or of_the_day not in seen:
            shown.append(event)
        seen.add(of_the_day)
    return shown[:_EVENTS_SHOWN]


def _first(day: dict[str, Any], level: str) -> str:
    """Time of day when any measure first reached a level, a dash when none did."""
    times = [at for name, at in day["first_at"].items() if name.endswith(level)]
    return min(times)[11:19] if times else "-"


def _point(state: AccountState, price_usd: float) -> Point:
    return Point(
        at=state.timestamp, price_usd=price_usd, equity_usd=state.equity, drawdown_pct=state.drawdown_pct,
        leverage=state.leverage, alert_level=state.alert_level.value,
    )  # fmt: skip


def _moments(bars: Sequence[Bar]) -> list[dt.datetime]:
    moments: list[dt.datetime] = []
    for bar in bars:
        try:
            moment = dt.datetime.fromisoformat(bar.timestamp)
        except ValueError:
            raise BadTape(f"the bar of {bar.timestamp!r} has no time as RFC 3339 writes it") from None
        moment = (moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
        if moments and moment < moments[-1]:
            raise BadTape(f"the bars go back in time at {bar.timestamp}")
        moments.append(moment)
    return moments

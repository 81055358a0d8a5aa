"""What an account monitor shows on /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from killswitch.risk.account.account_rule import true_leverage
from killswitch.risk.account.account_state import AccountState, AlertLevel
from killswitch.risk.metrics import Figure

_RANK: Final = {AlertLevel.NORMAL: 0, AlertLevel.WARNING: 1, AlertLevel.CRITICAL: 2}
_TOTALS: Final = {
    "ticks": "Ticks taken.",
    "fills": "Fills taken.",
    "bad_inputs": "Ticks and fills that made no sense.",
    "engagements": "Engagements of the circuit breaker seen.",
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
        ("alert_level", "0 normal, 1 warning, 2 critical.", _RANK[last.alert_level]),
    )
    found = [Figure(f"killswitch_account_{name}", "gauge", text, labels, value) for name, text, value in gauges]
    for name, text in _TOTALS.items():
        found.append(Figure(f"killswitch_account_{name}", "counter", text, labels, totals[name]))
    text = "Times that a level was reached."
    for measure in ("drawdown", "leverage", "marks"):
        for level in (AlertLevel.WARNING, AlertLevel.CRITICAL):
            told = {**labels, "measure": measure, "level": level.value}
            value = alerts.get((measure, level.value), 0)  # from the start at 0, so that an alert sees the first one
            found.append(Figure("killswitch_account_alerts", "counter", text, told, value))
    return found

"""What the command says of files of risk limits and rules: their faults by path and line, their changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from killswitch.cli.context import EXIT_ERROR, EXIT_USAGE, CommandContext, CommandError, print_table, talk

if TYPE_CHECKING:
    from killswitch.risk.exposure.policy_settings import RiskRules
    from killswitch.risk.process.risk_limits_file import RiskLimitsFile
    from killswitch.settings.config import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class CheckedFile:
    """A file that is sound; ``kind`` is ``risk_limits`` or ``risk_rules``, ``notes`` is what it leaves unwatched."""

    kind: str
    path: Path
    sentence: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"path": str(self.path), "sentence": self.sentence, "notes": list(self.notes)}


def check_risk_files(
    settings: Settings, limits_path: Path | None, rules_path: Path | None, faults: list[str]
) -> list[CheckedFile]:
    """Check the files that were named, else those of the settings.

    Args:
        settings: which files an agent has.
        limits_path: the file of limits.
        rules_path: the file of rules.
        faults: takes one sentence for each thing that is wrong with them.
    """
    from killswitch.risk.exposure.policy_settings import load_risk_rules

    named = settings.agent.in_cluster(settings.cluster)
    if limits_path is None and rules_path is None:
        limits_path, rules_path = (None if one is None else Path(one) for one in (named.risk_limits, named.risk_rules))
    checked = []
    if limits_path is not None:
        limits = _read(lambda: _limits_with_rules(limits_path), faults)
        if limits is not None:
            checked.append(CheckedFile("risk_limits", limits_path, _limits_sentence(limits), _limits_notes(limits)))
            if named.risk_rules is not None and rules_path is not None and limits.initial_balance_usd is None:
                faults.append(f"{limits_path}: initial_balance_usd: is needed by {rules_path}")
    if rules_path is not None:
        rules = _read(lambda: load_risk_rules(rules_path), faults)
        if rules is not None:
            _read(lambda: _calendar(rules), faults, f"{rules_path}: session.calendar: ")
            checked.append(CheckedFile("risk_rules", rules_path, _rules_sentence(rules), _rules_notes(rules)))
    return checked


def _read(read: Callable[[], T], faults: list[str], prefix: str = "") -> T | None:
    try:
        return read()
    except ValueError as error:  # RiskFileError, RuleNotUsable, CalendarError: sentences
        faults += [f"{prefix}{line}" for line in str(error).splitlines()]
        return None


def _limits_with_rules(path: Path) -> RiskLimitsFile:
    """Read a file of limits, and have everything made that it asks for, as an agent or a trading process would.

    Raises:
        ValueError: it cannot be used; the message has one line for each fault.
    """
    from killswitch.risk.process.risk_limits_file import load_risk_limits
    from killswitch.risk.process.rule_loading import RuleNotUsable, load_node_rules, load_order_rules

    limits = load_risk_limits(path)
    faults = []
    makes: tuple[Callable[[], object], ...] = (
        lambda: load_order_rules(limits.rules.orders),
        lambda: load_node_rules(limits.rules.node),
        lambda: _make_figures(limits),
    )
    for make in makes:
        try:
            make()
        except (ImportError, ValueError) as error:  # an extra that is not installed is a sentence too
            faults.append(f"{path}: {error}")
    if faults:
        raise RuleNotUsable("\n".join(faults))
    return limits


def _make_figures(limits: RiskLimitsFile) -> None:
    """Make what needs an extra, where the file has its section.

    Raises:
        ImportError: the extra is not installed; the message says how it is.
    """
    if limits.value_at_risk is not None:
        from killswitch.risk.figures.value_at_risk import ValueAtRiskMonitor

        ValueAtRiskMonitor(limits.value_at_risk)
    if limits.anomaly is not None:
        from killswitch.risk.figures.anomaly import AnomalyDetector

        AnomalyDetector(limits.anomaly)


def _calendar(rules: RiskRules) -> object:
    import time

    from killswitch.clock import now_ns
    from killswitch.risk.exposure.trading_session import session_clock

    return session_clock(rules, wall_ns=time.time_ns, clock=now_ns)


def _limits_sentence(limits: RiskLimitsFile) -> str:
    """Say what is on, in one sentence."""
    from killswitch.risk.pretrade.message_throttle import most_in_a_second

    orders, pretrade = limits.orders, limits.pretrade
    on = [name for name in type(pretrade).model_fields if _is_section_on(pretrade, name)]
    parts = [
        "no account is watched (initial_balance_usd)"
        if limits.initial_balance_usd is None
        else f"drawdown {limits.max_daily_drawdown:.2%} and leverage {limits.max_account_leverage:g}x of "
        f"{limits.initial_balance_usd:,.0f} USD",
        f"inventory in a symbol {_usd(orders.max_inventory_usd_per_symbol)}, over all "
        f"{_usd(orders.max_total_notional_usd)}",
        f"pre-trade controls: {', '.join(on) or 'none'}",
    ]
    if pretrade.throttle is not None:
        most = {what: number for what, number in most_in_a_second(pretrade.throttle).items() if number is not None}
        said = " and ".join(f"{number} {what}" for what, number in most.items())
        parts += [f"in the worst second at most {said}, the rate and the burst"] if most else []
    own = len(limits.rules.orders) + len(limits.rules.node)
    if own:
        parts.append(f"{own} rule{'s' if own > 1 else ''} of your own")
    return "; ".join(parts)


def _limits_notes(limits: RiskLimitsFile) -> tuple[str, ...]:
    """Say which checks of the inputs are off, and which limits know no time of day; one sentence each."""
    inputs, schedule = limits.inputs, limits.orders.schedule
    off = {
        "pretrade.input_health: an order is judged by a price of any age": limits.pretrade.input_health is None,
        "mark_max_age_ms: an account is valued at marks of any age": limits.mark_max_age_ms is None,
        "inputs.router_silent_after_ms: a connected router may be silent for ever": (
            inputs.router_silent_after_ms is None
        ),
        "inputs.mark_frozen_after_ms: a mark may stand still for ever": inputs.mark_frozen_after_ms is None,
    }
    notes = [f"OFF: {what}" for what, is_off in off.items() if is_off]
    if schedule is not None and schedule.sessions and schedule.time_zone is None:
        notes.append(
            "orders.schedule.sessions: without time_zone the tightest of them holds all day, on the node and in every "
            "process that gives no session_clock"
        )
    return tuple(notes)


def _rules_notes(rules: RiskRules) -> tuple[str, ...]:
    off = rules.exposure.mark_max_age_ms is None
    return ("OFF: exposure.mark_max_age_ms: exposure is valued at marks of any age",) if off else ()


def _is_section_on(pretrade: Any, name: str) -> bool:
    from pydantic import BaseModel

    value = getattr(pretrade, name)
    return isinstance(value, BaseModel) or (name == "permitted_symbols" and value is not None)


def _usd(value: float | None) -> str:
    return "not limited" if value is None else f"{value:,.0f} USD"


def _rules_sentence(rules: RiskRules) -> str:
    table = ", ".join(
        f"{name} {getattr(rules.regimes, name).tolerance_pct:g} %" for name in type(rules.regimes).model_fields
    )
    return f"calendar {rules.session.calendar}; tolerance {table}; hard cap {rules.exposure.gross_hard_cap_pct:g} %"


def show_limits_history(context: CommandContext, file: Path) -> None:
    """Print the entries of an audit file; exit 1 when its chain does not hold.

    Raises:
        CommandError: the file cannot be read.
    """
    from rich.table import Table

    from killswitch.risk.process.limits_audit import read_audit

    try:
        entries, faults = read_audit(file)
    except OSError as error:
        raise CommandError(f"{file}: cannot be read ({error.strerror})", EXIT_USAGE) from error
    if context.wants_json:
        context.emit_json("limits.history", {"file": str(file), "entries": entries, "faults": faults})
    else:
        table = Table("at", "by", "what", "setting", "before", "after", box=None, pad_edge=False)
        for entry in entries:
            head = (str(entry.get("at"))[:19] + "Z", str(entry.get("by")), str(entry.get("outcome")))
            rows = [(str(one["setting"]), str(one["before"]), str(one["after"])) for one in entry.get("changes", [])]
            rows += [("", "", str(fault)) for fault in entry.get("faults", [])]
            for number, row in enumerate(rows or [("", "", "")]):
                table.add_row(*(head if number == 0 else ("", "", "")), *row)
        print_table(table)
        if not faults:
            talk(f"verified: {len(entries)} entries, each holding the hash of the one before")
    for fault in faults:
        talk(fault)
    if faults:
        sys.exit(EXIT_ERROR)

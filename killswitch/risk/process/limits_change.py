"""What becomes of limits when their file has changed: pure. Tightening is taken at once, loosening only as a whole.

A file that is sound as a whole is taken as a whole. Of one that is not, the settings are taken that are sound one by
one and tighter than what is in force; nothing of it loosens anything. What is tighter is told setting by setting, in
the tables below, which serve limits and rules alike; a setting that stands in none is only ever taken with the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from killswitch.risk.account_limits import OTHER_NAMES
from killswitch.risk.exposure.policy_settings import RegimeSettings
from killswitch.risk.process.risk_limits_file import ORDER_OTHER_NAMES
from killswitch.settings.settings_file import SettingsReading

ModelT = TypeVar("ModelT", bound=BaseModel)
Place = tuple[str, ...]
Direction = Literal["tighter", "looser", "other"]
ChangeOutcome = Literal["unchanged", "applied", "tightened", "refused"]

REGIMES: Final = tuple(RegimeSettings.model_fields)

LOWER: Final = frozenset(
    [
        "max_daily_drawdown",
        "drawdown_warning",
        "max_account_leverage",
        "leverage_warning",
        "max_symbols",
        "mark_max_age_ms",
        "half_open_probes",
        "confirmations.network",
        "confirmations.data",
        "confirmations.edge",
        "confirmations.position",
        "confirmations.drawdown",
        "escalate_after_engagements",
        "orders.max_inventory_usd_per_symbol",
        "orders.max_total_notional_usd",
        "orders.schedule.symbol_max_inventory_usd.*",
        "orders.schedule.volatility_max_age_ms",
        "pretrade.order_size.max_quantity",
        "pretrade.order_size.max_value_usd",
        "pretrade.price_collar.max_deviation_bps",
        "pretrade.price_collar.over_time_bps",
        "pretrade.throttle.orders_per_s",
        "pretrade.throttle.amends_per_s",
        "pretrade.throttle.symbol_orders_per_s",
        "pretrade.throttle.symbol_amends_per_s",
        "pretrade.throttle.burst_s",
        "pretrade.duplicates.max_same_orders",
        "pretrade.repeated_executions.max_executions",
        "pretrade.working_orders.max_total",
        "pretrade.working_orders.max_per_symbol",
        "pretrade.daily.max_orders",
        "pretrade.daily.max_cancels",
        "pretrade.daily.max_losses",
        "pretrade.daily.max_loss_usd",
        "pretrade.input_health.max_age_ms",
        "pretrade.input_health.frozen_after_ms",
        "pretrade.control_budget_ms",
        "inputs.router_silent_after_ms",
        "inputs.mark_frozen_after_ms",
        "judgement.every_ms",
        "judgement.budget_ms",
        "value_at_risk.warning_usd",
        "value_at_risk.hard_usd",
        "exposure.gross_hard_cap_pct",
        "exposure.mark_max_age_ms",
        "exposure.buckets.LT.target_pct",
        "exposure.buckets.LT.max_pct",
        "exposure.buckets.MM_PURE.target_pct",
        "exposure.buckets.MM_PURE.max_pct",
        *(f"regimes.{name}.tolerance_pct" for name in REGIMES),
        # A regime that begins sooner is stricter sooner, since no regime is looser than the one before it.
        "regimes.EARLY.from_minutes_after_open",
        "regimes.MID.from_minutes_after_open",
    ]
)
"""Settings of which a lower number is tighter; one that was absent is tighter with any number."""

LOWER_ONLY_BELOW: Final = frozenset(
    [
        "pretrade.order_size.symbols.*.max_quantity",
        "pretrade.order_size.symbols.*.max_value_usd",
        "pretrade.price_collar.symbols_max_deviation_bps.*",
    ]
)
"""The same where the setting stands *instead* of a general one: a new one may be looser than that, so it is no
tightening; a lower one is."""

HIGHER: Final = frozenset(
    [
        "recovery_cooldown_seconds",
        "max_cooldown_seconds",
        "backoff_reset_seconds",
        "recovery_good_readings",
        "half_open_good_readings",
        "provisional_hold_seconds",
        "escalate_window_seconds",
        "orders.edge_freeze_threshold_bps",
        "pretrade.price_collar.window_ms",
        "pretrade.duplicates.window_ms",
        "regimes.LATE.from_minutes_to_close",
        "regimes.CLOSE.from_minutes_to_close",
        "regimes.CLOSE.hard_from_minutes_to_close",
    ]
)
"""Settings of which a higher number is tighter; one that was absent is tighter with any number."""

FEWER: Final = frozenset(["known_symbols", "transient_classes", "pretrade.permitted_symbols"])
"""Lists of which a part is tighter than the whole; an absent one is everything."""

MILDEST_FIRST: Final[Mapping[str, Sequence[str]]] = {
    "kill_switch_mode": ("auto", "manual"),
    "mark_missing": ("warning", "engage"),
    "mark_stale": ("warning", "engage"),
    "exposure.mark_missing": ("warning", "unknown"),
    "exposure.mark_stale": ("warning", "unknown"),
    "judgement.on_late": ("pause", "reduce_only", "freeze"),
    "judgement.on_error": ("pause", "reduce_only", "freeze"),
    "inputs.silent": ("warning", "pause", "reduce_only", "freeze"),
    "inputs.frozen": ("warning", "pause", "reduce_only", "freeze"),
    "value_at_risk.hard": ("pause", "reduce_only", "freeze"),
    "value_at_risk.unknown": ("warning", "pause", "reduce_only", "freeze"),
    **{f"regimes.{name}.derisk": ("none", "soft") for name in REGIMES},
    **{
        f"pretrade.{name}": ("refuse", "freeze")
        for name in (
            "clock_stepped",
            "control_error",
            "control_overrun",
            "input_health.missing",
            "input_health.stale",
            "input_health.bad",
            "input_health.crossed",
            "input_health.frozen",
        )
    },
}
"""Settings that are one word of several, the mildest first."""

FIXED: Final = frozenset(
    [
        "state_file",
        "file_lock",
        "initial_balance_usd",
        "orders.max_working_orders",
        # What the history of the figures is made with; a section that comes or goes changes these too.
        *(
            f"value_at_risk.{name}"
            for name in (
                "confidence",
                "sample_every_ms",
                "observations_kept",
                "min_observations",
                "max_age_ms",
                "max_symbols",
                "measure",
            )
        ),
        "anomaly",
        "rules",
        "session",
    ]
)
"""Settings, and whole sections, that need a new start: a file that changes one is not sound for this process."""

_ALIASES: Final[Mapping[Place, Place]] = {
    **{(other,): (name,) for other, name in OTHER_NAMES.items()},
    **{("orders", other): ("orders", name) for other, name in ORDER_OTHER_NAMES.items()},
}


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting that has changed; an absent value is ``None``."""

    setting: str
    before: Any
    after: Any
    direction: Direction

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"setting": self.setting, "before": self.before, "after": self.after, "direction": self.direction}


@dataclass(frozen=True, slots=True)
class LimitsChange(Generic[ModelT]):
    """What becomes of the limits in force.

    Attributes:
        limits: the limits to be in force from now on.
        outcome: ``unchanged``; ``applied``, as a whole; ``tightened``, by what could be taken of a file that is not
            sound; ``refused``, nothing of it.
        changes: what changes.
        faults: one sentence for each thing that is wrong with the file.
    """

    limits: ModelT
    outcome: ChangeOutcome
    changes: tuple[SettingChange, ...]
    faults: tuple[str, ...]

    @property
    def loosens(self) -> bool:
        """Whether something is looser afterwards, or cannot be told not to be."""
        return any(change.direction != "tighter" for change in self.changes)


def decide_change(current: ModelT, reading: SettingsReading[ModelT]) -> LimitsChange[ModelT]:
    """Decide what becomes of the limits in force after their file was read."""
    faults = list(reading.faults)
    if reading.settings is not None:
        changes = changes_between(current, reading.settings)
        faults = [
            f"{reading.place(change.setting)}: {change.setting}: cannot change from {change.before!r} to "
            f"{change.after!r} while this process runs; start it again, or write the old value"
            for change in changes
            if _under(change.setting, FIXED)
        ]
        if not faults:
            return LimitsChange(reading.settings, "applied" if changes else "unchanged", changes, ())
    tightened = _tighter_parts(current, reading.values)
    changes = changes_between(current, tightened)
    return LimitsChange(tightened, "tightened" if changes else "refused", changes, tuple(faults))


def changes_between(before: BaseModel, after: BaseModel) -> tuple[SettingChange, ...]:
    """Return every setting in which two models of one kind differ, in the order of the settings."""
    old, new = dict(_leaves(before.model_dump(mode="json"))), dict(_leaves(after.model_dump(mode="json")))
    names = [*old, *(place for place in new if place not in old)]
    found = []
    for place in names:
        was, now = old.get(place), new.get(place)
        # A section that came or went is told by what is in it, and not once more by itself.
        is_section = (was is None and _has_parts(place, new)) or (now is None and _has_parts(place, old))
        if was != now and not is_section:
            found.append(SettingChange(".".join(place), was, now, direction_of(place, was, now)))
    return tuple(found)


def direction_of(place: Place, before: Any, after: Any) -> Direction:
    """Tell whether one setting became tighter, looser, or neither can be told; ``None`` is absent."""
    if _is_tighter(place, before, after):
        return "tighter"
    return "looser" if _is_tighter(place, after, before) else "other"


def _is_tighter(place: Place, before: Any, after: Any) -> bool:
    if _matches(place, LOWER) or _matches(place, HIGHER):
        if after is None or before is None:
            return after is not None
        return bool(after < before if _matches(place, LOWER) else after > before)
    if _matches(place, LOWER_ONLY_BELOW):
        return before is not None and after is not None and bool(after < before)
    if _matches(place, FEWER):
        return after is not None and (before is None or set(after) < set(before))
    order = MILDEST_FIRST.get(".".join(place))
    # In a section that was absent any word is tighter than none.
    return order is not None and after in order and (before is None or order.index(after) > order.index(before))


def _tighter_parts(current: ModelT, values: Mapping[Any, Any]) -> ModelT:
    """Return the current limits with every setting of the file that is sound by itself and tighter.

    Settings that must fit each other may need one another, so what did not fit is tried again as long as anything did.
    """
    wanted: dict[Place, list[Any]] = {}
    in_force = dict(_leaves(current.model_dump()))
    for place, value in _leaves(values):
        if place in in_force and in_force[place] == value:
            continue  # each of the others costs a validation of all settings
        wanted.setdefault(_ALIASES.get(place, place), []).append(value)
    waiting = [(place, value) for place, several in wanted.items() for value in several if _is_known(place)]
    progress = True
    while waiting and progress:
        progress, left = False, []
        for place, value in waiting:
            taken = _with(current, place, value)
            if taken is None:
                left.append((place, value))
            elif taken is not current:
                current, progress = taken, True
        waiting = left
    return current


def _with(current: ModelT, place: Place, value: Any) -> ModelT | None:
    """Return the limits with one setting changed; the same when it is no tightening, ``None`` when it does not fit."""
    whole = current.model_dump()
    part: Any = whole
    for name in place[:-1]:
        if not isinstance(part.get(name), dict):
            part[name] = {}
        part = part[name]
    part[place[-1]] = value
    try:
        candidate = type(current).model_validate(whole)
    except ValidationError:
        return None
    changes = changes_between(current, candidate)
    if not changes or any(change.direction != "tighter" for change in changes):
        return current
    return candidate


def _leaves(values: Mapping[Any, Any], above: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Name every value that is no section; an empty section has none."""
    for name, value in values.items():
        place = (*above, str(name))
        if isinstance(value, Mapping):
            yield from _leaves(value, place)
        else:
            yield place, value


def _has_parts(place: Place, leaves: Mapping[Place, Any]) -> bool:
    return any(len(other) > len(place) and other[: len(place)] == place for other in leaves)


def _is_known(place: Place) -> bool:
    return any(_matches(place, table) for table in (LOWER, LOWER_ONLY_BELOW, HIGHER, FEWER, MILDEST_FIRST))


def _matches(place: Place, table: frozenset[str] | Mapping[str, Any]) -> bool:
    """Tell whether a table names a place, ``*`` standing for one part of its name."""
    if ".".join(place) in table:
        return True
    # The name of a symbol may hold dots, so it is never joined.
    return any(".".join((*place[:index], "*", *place[index + 1 :])) in table for index in range(1, len(place)))


def _under(setting: str, sections: frozenset[str]) -> bool:
    return any(setting == section or setting.startswith(f"{section}.") for section in sections)

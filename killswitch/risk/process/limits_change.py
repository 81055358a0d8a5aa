"""What becomes of limits when their file has changed: pure. Tightening is taken at once, loosening only as a whole.

A file that is sound as a whole is taken as a whole. Of one that is not, the settings are taken that are sound one by
one and tighter than what is in force; nothing of it loosens anything. What is tighter stands beside each setting
(:class:`~killswitch.settings.section.Tighter`), of limits and rules alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from killswitch.settings.section import Tighter, leaves
from killswitch.settings.settings_diff import Place, SettingChange, changes_between, place_of, way_of
from killswitch.settings.settings_file import SettingsReading

ModelT = TypeVar("ModelT", bound=BaseModel)
ChangeOutcome = Literal["unchanged", "applied", "tightened", "refused"]


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
            if change.way is Tighter.NEW_START
        ]
        if not faults:
            return LimitsChange(reading.settings, "applied" if changes else "unchanged", changes, ())
    tightened = _tighter_parts(current, reading.values)
    changes = changes_between(current, tightened)
    return LimitsChange(tightened, "tightened" if changes else "refused", changes, tuple(faults))


def _tighter_parts(current: ModelT, values: Mapping[Any, Any]) -> ModelT:
    """Return the current limits with every setting of the file that is sound by itself and tighter.

    Settings that must fit each other may need one another, so what did not fit is tried again as long as anything did.
    """
    wanted: dict[Place, list[Any]] = {}
    in_force = dict(leaves(current.model_dump()))
    for place, value in leaves(values):
        if place in in_force and in_force[place] == value:
            continue  # each of the others costs a validation of all settings
        wanted.setdefault(place_of(type(current), place), []).append(value)
    never = (None, Tighter.NEITHER, Tighter.NEW_START)
    waiting = [
        (place, value)
        for place, several in wanted.items()
        for value in several
        if way_of(type(current), place) not in never
    ]
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

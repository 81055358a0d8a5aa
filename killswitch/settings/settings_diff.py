"""What differs between two sets of settings, and which way: every name with its value before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel

from killswitch.safe_log import say
from killswitch.settings.section import Tighter, fields_along, leaves, section_at

CHANGES_SHOWN: Final = 100
VALUE_MAX_CHARACTERS: Final = 200

Place = tuple[str, ...]
Direction = Literal["tighter", "looser", "other"]


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting that has changed; an absent value is ``None``.

    Attributes:
        setting: its dotted name.
        before: its value before.
        after: its value after.
        direction: whether it is tighter now, looser, or neither can be told.
        way: which way it gets tighter, ``None`` where nothing says so.
    """

    setting: str
    before: Any
    after: Any
    direction: Direction
    way: Tighter | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"setting": self.setting, "before": self.before, "after": self.after, "direction": self.direction}


def changes_between(before: BaseModel | None, after: BaseModel | None) -> tuple[SettingChange, ...]:
    """Return every setting in which two models of one kind differ, in the order of the settings.

    A section that came or went is told by what is in it.
    """
    one = after if after is not None else before
    if one is None:
        return ()
    old, new = ({} if some is None else dict(leaves(some.model_dump(mode="json"))) for some in (before, after))
    return tuple(
        _change(type(one), place, old.get(place), new.get(place))
        for place in (*old, *(place for place in new if place not in old))
        if old.get(place) != new.get(place)
    )


def way_of(model: type[BaseModel], place: Place) -> Tighter | None:
    """Return which way the setting at a place gets tighter; ``None`` where nothing says so."""
    ways = [_declared(field.metadata) for field in fields_along(model, place)]
    return Tighter.NEW_START if Tighter.NEW_START in ways else (ways[-1] if ways else None)


def place_of(model: type[BaseModel], named: Place) -> Place:
    """Return the place of a setting, which may be named by the other name that it has."""
    place: Place = ()
    for name in named:
        other_names: Mapping[str, str] = getattr(section_at(model, place), "other_names", {})
        place = (*place, other_names.get(name, name))
    return place


def say_changed(
    event: str, before: BaseModel | None, after: BaseModel | None, *, only: type[BaseModel] | None = None, **fields: Any
) -> None:
    """Log one warning line with what changed: names, before, after. Nothing is logged when nothing did.

    Args:
        event: what the line says.
        before: settings of before; ``None``: there were none.
        after: settings of now.
        only: tell the settings of this model alone, of settings that have more.
        **fields: what else the line says.
    """
    changes = [
        change
        for change in changes_between(before, after)
        if only is None or change.setting.split(".")[0] in only.model_fields
    ]
    if not changes:
        return
    changed = [
        {"name": one.setting, "before": _short(one.before), "after": _short(one.after)}
        for one in islice(changes, CHANGES_SHOWN)
    ]
    # More of them would make a line that no log keeps.
    more = {"more_changes": len(changes) - CHANGES_SHOWN} if len(changes) > CHANGES_SHOWN else {}
    say("warning", event, changed=changed, **more, **fields)


def needs_new_start(names: Sequence[str]) -> str:
    """Return the sentence for settings that cannot change while a process runs."""
    return f"{' and '.join(names)} cannot change while the process runs; start it again. Nothing has changed"


def _change(model: type[BaseModel], place: Place, before: Any, after: Any) -> SettingChange:
    way = way_of(model, place)
    direction: Direction = "other"
    if way is not None:
        words = _words(model, place)
        if _is_tighter(way, words, before, after):
            direction = "tighter"
        elif _is_tighter(way, words, after, before):
            direction = "looser"
    return SettingChange(".".join(place), before, after, direction, way)


def _is_tighter(way: Tighter, words: Sequence[str], before: Any, after: Any) -> bool:
    """Tell whether a value is tighter than the one before; ``None`` is absent."""
    if after is None:
        return False
    match way:
        case Tighter.LOWER:
            return before is None or bool(after < before)
        case Tighter.HIGHER:
            return before is None or bool(after > before)
        case Tighter.LOWER_ONLY_BELOW:
            return before is not None and bool(after < before)
        case Tighter.FEWER:
            return before is None or set(after) < set(before)
        case Tighter.LATER_WORD:
            return before is None or words.index(after) > words.index(before)
        case Tighter.NEITHER | Tighter.NEW_START:
            return False


def _declared(metadata: Sequence[Any]) -> Tighter | None:
    return next((one for one in metadata if isinstance(one, Tighter)), None)


def _words(model: type[BaseModel], place: Place) -> Sequence[str]:
    """Return the words that a setting may be, as its type names them."""
    *_, field = fields_along(model, place)
    return list(_literals(field.annotation))


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for inner in get_args(annotation):
        yield from _literals(inner)


def _short(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= VALUE_MAX_CHARACTERS else f"{text[:VALUE_MAX_CHARACTERS]}... ({len(value)} in all)"

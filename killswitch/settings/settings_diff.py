"""What differs between two sets of settings, for the log: every name with its value before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from pydantic import BaseModel

from killswitch.safe_log import say

CHANGES_SHOWN: Final = 100
VALUE_MAX_CHARACTERS: Final = 200


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
    differences = setting_differences(before, after)
    if only is not None:
        differences = {name: both for name, both in differences.items() if name.split(".")[0] in only.model_fields}
    if not differences:
        return
    changed = [
        {"name": name, "before": was, "after": now} for name, (was, now) in islice(differences.items(), CHANGES_SHOWN)
    ]
    # More of them would make a line that no log keeps.
    more = {"more_changes": len(differences) - CHANGES_SHOWN} if len(differences) > CHANGES_SHOWN else {}
    say("warning", event, changed=changed, **more, **fields)


def needs_new_start(names: Sequence[str]) -> str:
    """Return the sentence for settings that cannot change while a process runs."""
    return f"{' and '.join(names)} cannot change while the process runs; start it again. Nothing has changed"


def setting_differences(before: BaseModel | None, after: BaseModel | None) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ by their dotted names; what is absent is ``None``."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return {
        name: (_short(old.get(name)), _short(new.get(name)))
        for name in (*old, *(name for name in new if name not in old))
        if old.get(name) != new.get(name)
    }


def _leaves(settings: BaseModel | None) -> Iterator[tuple[str, Any]]:
    if settings is not None:
        yield from _named(settings.model_dump(), "")


def _named(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _short(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= VALUE_MAX_CHARACTERS else f"{text[:VALUE_MAX_CHARACTERS]}... ({len(value)} in all)"

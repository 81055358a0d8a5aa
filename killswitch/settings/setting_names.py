"""Settings that have two names: the seed's, and one that says its unit. Either may be written, never both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from killswitch.settings.section import RULE_FAULTS


def one_name_each(values: Any, other_names: Mapping[str, str]) -> Any:
    """Return the values of a section under their names here.

    Args:
        values: as they were read; anything but a mapping is returned as it is.
        other_names: second name of a setting -> the name that it has here.

    Raises:
        PydanticCustomError: a setting is given under both names, so which one is meant cannot be told.
    """
    if not isinstance(values, Mapping):
        return values
    faults = [
        f"{name} and {other} are two names of one setting; write one of them"
        for other, name in other_names.items()
        if other in values and name in values
    ]
    if faults:
        raise PydanticCustomError(RULE_FAULTS, "{text}", {"faults": faults, "text": "; ".join(faults)})
    return {other_names.get(name, name): value for name, value in values.items()}

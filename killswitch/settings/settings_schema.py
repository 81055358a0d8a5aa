"""The JSON schema of a file of settings, with meaning and default at every setting, sections among them.

Pydantic leaves out a default that a function makes, and the meaning of a section where the section itself says the
same. Whoever reads the schema, an editor or a person, would see a setting without either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python


def settings_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model: each property has a description, and a default unless it is required.

    Raises:
        ValueError: two models of it have one name, so which is which could not be told.
    """
    schema = model.model_json_schema()
    seen: dict[str, type[BaseModel]] = {}
    for one in _models(model):
        if seen.setdefault(one.__name__, one) is not one:
            raise ValueError(f"two sections of settings are named {one.__name__}")
    for name, one in seen.items():
        section = schema if one is model else schema["$defs"].get(name, {})
        for setting, field in one.model_fields.items():
            shown = section.get("properties", {}).get(setting)
            if shown is not None:
                _complete(shown, field)
    return schema


def _complete(shown: dict[str, Any], field: FieldInfo) -> None:
    section = next((part for part in _types(field.annotation) if issubclass(part, BaseModel)), None)
    meaning = field.description or (section.__doc__ if section is not None else None)
    if meaning:
        shown.setdefault("description", meaning.partition("\n\n")[0])
    if not field.is_required():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown["default"] = to_jsonable_python(default)


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Every model that a model is made of, itself among them, each once."""
    waiting, seen = [model], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        yield one
        for field in one.model_fields.values():
            waiting += [part for part in _types(field.annotation) if issubclass(part, BaseModel)]


def _types(annotation: Any) -> Iterator[type]:
    inner = get_args(annotation)
    if not inner and isinstance(annotation, type):
        yield annotation
    for one in inner:
        yield from _types(one)

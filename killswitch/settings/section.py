"""One part of a file of settings: every name must be known, every number finite, nothing changes afterwards."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    StrictStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, to_jsonable_python

RULE_FAULTS: Final = "risk_rule_faults"
"""Type of the error by which a section tells faults that are whole sentences already."""

# Strict: neither the text "125" nor the boolean true is a number.
Usd = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
"""An amount in US dollars."""
Bps = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
"""A distance in basis points."""
Count = Annotated[int, Field(strict=True, gt=0)]
CountToMillion = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Ms = Annotated[int, Field(strict=True, gt=0)]
MsOfDay = Annotated[int, Field(strict=True, gt=0, le=86_400_000)]
"""Milliseconds, at most those of a day."""
SymbolName = Annotated[StrictStr, Field(min_length=1, max_length=128)]


class Tighter(enum.Enum):
    """Which way a setting that changes while a process runs gets tighter. It stands outermost around the
    type of its field: ``Lower[Usd | None]``.

    What tightens holds at once, also of a file that is not sound; what loosens only with a file that is sound as a
    whole.
    """

    LOWER = "a lower number is tighter; one that was absent is tighter with any number"
    LOWER_ONLY_BELOW = (
        "the same where it stands instead of a general setting: a new one may be looser than that, so it tightens "
        "nothing; a lower one does"
    )
    HIGHER = "a higher number is tighter; one that was absent is tighter with any number"
    FEWER = "a part of the list is tighter than the whole; an absent list is everything"
    LATER_WORD = "one word of several, the mildest first in its type; any word is tighter than none"
    NEITHER = "neither way, or not told by one number: taken with the whole file alone"
    NEW_START = "it cannot change while a process runs, nor can anything of the section that it is"


_T = TypeVar("_T")
Lower = Annotated[_T, Tighter.LOWER]
LowerOnlyBelow = Annotated[_T, Tighter.LOWER_ONLY_BELOW]
Higher = Annotated[_T, Tighter.HIGHER]
Fewer = Annotated[_T, Tighter.FEWER]
LaterWord = Annotated[_T, Tighter.LATER_WORD]
Neither = Annotated[_T, Tighter.NEITHER]
NewStart = Annotated[_T, Tighter.NEW_START]


class Section(BaseModel):
    """A part of the settings: every name must be known, every number finite, nothing can be changed afterwards.

    Attributes:
        other_names: second name of a setting -> the name that it has here. Either may be written, never both.
    """

    # An infinite limit would be one that is never reached, without saying that it is off.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    other_names: ClassVar[Mapping[str, str]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` where pydantic would read 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("not_a_switch", "Input should be a valid number or a text")
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, values: Any) -> Any:
        if not cls.other_names or not isinstance(values, Mapping):
            return values
        faults = [
            f"{name} and {other} are two names of one setting; write one of them"
            for other, name in cls.other_names.items()
            if other in values and name in values
        ]
        if faults:
            raise sentences_error(faults)
        return {cls.other_names.get(name, name): value for name, value in values.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = self.faults()
        if faults:
            raise sentences_error(faults)
        return self

    def faults(self) -> list[str]:
        """Return one sentence for each thing that is wrong between settings that are sound one by one."""
        return []


class NodeLimits(Section):
    """The three limits of inventory and edge; an absent one is off."""

    max_inventory_usd_per_symbol: Lower[PositiveFloat | None] = Field(
        None, description="USD of notional in one symbol; soft."
    )
    max_total_notional_usd: Lower[PositiveFloat | None] = Field(
        None, description="USD of notional over all symbols; soft."
    )
    edge_freeze_threshold_bps: Higher[FiniteFloat | None] = Field(
        None, description="Basis points. An expected net edge strictly below this freezes."
    )


def sentences_error(faults: Sequence[str]) -> PydanticCustomError:
    """Return the error that tells faults which are whole sentences already."""
    return PydanticCustomError(RULE_FAULTS, "{text}", {"faults": list(faults), "text": "; ".join(faults)})


def fields_along(model: type[BaseModel], place: Sequence[str | int]) -> Iterator[FieldInfo]:
    """Give the field of every part of a place, from the outermost on, as far as the model knows the names.

    What a mapping or a list holds of sections is entered by the name or the number that stands there.
    """
    inner: type[BaseModel] | None = model
    names = iter(place)
    for name in names:
        field = None if inner is None else inner.model_fields.get(str(name))
        if field is None:
            return
        yield field
        inner = section_in(field.annotation)
        if _holds_many(field.annotation) and next(names, None) is None:
            return


def section_at(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the section that stands at a place; ``None`` where none does."""
    if not place:
        return model
    along = list(fields_along(model, place))
    return section_in(along[-1].annotation) if along else None


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a setting is, may be, or holds by name; ``None`` where it is none."""
    return next((part for part in _types(annotation) if issubclass(part, BaseModel)), None)


def leaves(values: Mapping[Any, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every value that is no section, with its place; an empty section has none."""
    for name, value in values.items():
        place = (*above, str(name))
        if isinstance(value, Mapping):
            yield from leaves(value, place)
        else:
            yield place, value


def _holds_many(annotation: Any) -> bool:
    if get_origin(annotation) in (dict, list, tuple):
        return True
    return any(_holds_many(inner) for inner in get_args(annotation))


def _types(annotation: Any) -> Iterator[type]:
    inner = get_args(annotation)
    if not inner and isinstance(annotation, type):
        yield annotation
    for one in inner:
        yield from _types(one)


def settings_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model: each property has a description, and a default unless it is required.

    Pydantic leaves out a default that a function makes, and the meaning of a section where the section itself says the
    same. Whoever reads the schema, an editor or a person, would see a setting without either.

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
    section = section_in(field.annotation)
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

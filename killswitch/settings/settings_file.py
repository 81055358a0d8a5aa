"""A YAML file of risk settings, read strictly; every fault is one sentence with path and line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from killswitch.settings.section import RULE_FAULTS

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_PARTS = 200_000
"""Most names and items in lists of one file, aliases written out."""

ModelT = TypeVar("ModelT", bound=BaseModel)
Where = tuple[str | int, ...]


class RiskFileError(ValueError):
    """A file of risk settings cannot be used; ``faults`` holds one sentence for each thing that is wrong."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class SettingsReading(Generic[ModelT]):
    """What a file holds.

    Attributes:
        values: as they stand there; empty when nothing could be read.
        settings: as one model, ``None`` when something is wrong.
        faults: one sentence for each thing that is wrong.
        path: the file.
        lines: the line of every setting that stands there.
    """

    values: Mapping[Any, Any]
    settings: ModelT | None
    faults: tuple[str, ...]
    path: Path = Path()
    lines: Mapping[Where, int] = field(default_factory=dict)

    def place(self, setting: str) -> str:
        """Return path and line of a setting by its dotted name; of the innermost part of it that the file names."""
        return f"{self.path}:{_line_of(tuple(setting.split('.')), self.lines)}"


def read_settings_file(path: Path, model: type[ModelT]) -> ModelT:
    """Read a YAML file as one model.

    Args:
        path: the file, at most :data:`MAX_FILE_BYTES` bytes.
        model: what it must hold. Names that it does not know are faults.

    Raises:
        RiskFileError: the file cannot be read, is not YAML, gives a name twice, or does not fit the model.
    """
    reading = read_settings(path, model)
    if reading.settings is None:
        raise RiskFileError(list(reading.faults))
    return reading.settings


def read_settings(path: Path, model: type[ModelT]) -> SettingsReading[ModelT]:
    """As :func:`read_settings_file`, for whoever can use a part of a file that is not sound as a whole. Never raises.

    Args:
        path: the file.
        model: what it must hold.
    """
    try:
        values, lines = _read_yaml(path)
    except RiskFileError as error:
        return SettingsReading({}, None, tuple(error.faults), path)
    try:
        return SettingsReading(values, model.model_validate(values), (), path, lines)
    except ValidationError as error:
        faults = [text for fault in error.errors() for text in _sentences(path, lines, model, fault)]
        return SettingsReading(values, None, tuple(faults), path, lines)


def _read_yaml(path: Path) -> tuple[dict[Any, Any], dict[Where, int]]:
    import yaml  # noqa: PLC0415 - who gives settings as objects need not have it

    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            # Opening a pipe or a device would wait for somebody at its other end, perhaps for ever.
            raise RiskFileError([f"{path}: is no regular file"])
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise RiskFileError([f"{path}: is larger than {MAX_FILE_BYTES} bytes"])
        text = raw.decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
        lines: dict[Where, int] = {}
        twice: list[str] = []
        if root is not None:
            # Before anything else walks through it: aliases may make a small file endless.
            _collect(root, (), lines, twice)
    except OSError as error:
        raise RiskFileError([f"{path}: cannot be read ({error.strerror})"]) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, RiskFileError):
            raise
        raise RiskFileError([f"{path}: is not YAML ({' '.join(str(error).split())})"]) from error
    if root is None:
        return {}, {}
    if not isinstance(loaded, dict):
        raise RiskFileError([f"{path}: must hold settings by name, not a {type(loaded).__name__}"])
    if twice:
        raise RiskFileError([f"{path}:{text}" for text in twice])
    return loaded, lines


def _collect(node: Any, where: Where, lines: dict[Where, int], twice: list[str]) -> None:
    """Note the line of every name, and the names that are given twice, which YAML would silently take the last of.

    Raises:
        ValueError: there are more parts than :data:`MAX_PARTS`.
        RecursionError: it is too deep, or holds itself.
    """
    if len(lines) > MAX_PARTS:
        raise ValueError(f"it has more than {MAX_PARTS} parts")
    if node.id == "mapping":
        for key, value in node.value:
            inner = (*where, str(key.value))
            if inner in lines:
                twice.append(f"{key.start_mark.line + 1}: {_dotted(inner)}: is given twice")
            lines[inner] = key.start_mark.line + 1
            _collect(value, inner, lines, twice)
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            lines[(*where, index)] = value.start_mark.line + 1
            _collect(value, (*where, index), lines, twice)


def _sentences(path: Path, lines: Mapping[Where, int], model: type[BaseModel], fault: Any) -> list[str]:
    where: Where = fault["loc"]
    place = f"{path}:{_line_of(where, lines)}"
    dotted = _dotted(where)
    named = f"{dotted}: " if dotted else ""
    if fault["type"] == RULE_FAULTS:
        prefix = f"{dotted}." if dotted else ""
        return [f"{path}:{_line_told(where, text, lines)}: {prefix}{text}" for text in fault["ctx"]["faults"]]
    if fault["type"] == "extra_forbidden":
        meant = difflib.get_close_matches(str(where[-1]), _names_in(model, where[:-1]), n=1, cutoff=0.5)
        hint = f"; did you mean {meant[0]!r}?" if meant else ""
        return [f"{place}: {named}there is no such setting{hint}"]
    message = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"
    return [f"{place}: {named}{message}, and it is {_short(fault['input'])}"]


def _line_of(where: Where, lines: Mapping[Where, int]) -> int:
    """Line of the innermost part of a place that the file names; 1 when it names none."""
    for length in range(len(where), 0, -1):
        if where[:length] in lines:
            return lines[where[:length]]
    return 1


def _line_told(where: Where, text: str, lines: Mapping[Where, int]) -> int:
    """Line of a fault between settings: its sentence begins with the name of the one to look at."""
    named = text.split(" ", 1)[0].rstrip(":").split(".")
    return _line_of((*where, *named), lines)


def _dotted(where: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in where)


def _short(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _names_in(model: type[BaseModel], where: Sequence[str | int]) -> list[str]:
    inner: Any = model
    for part in where:
        field = inner.model_fields.get(part)
        inner = field.annotation if field is not None else None
        if get_origin(inner) is not None:
            inner = next((part for part in get_args(inner) if isinstance(part, type)), None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
    return list(inner.model_fields)

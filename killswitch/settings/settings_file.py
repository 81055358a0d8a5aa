"""A YAML file of settings, read strictly; every fault is one sentence with path and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from killswitch.settings.section import RULE_FAULTS, section_at

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
MAX_PARTS: Final = 200_000
"""Most names and items in lists of one file, aliases written out."""

ModelT = TypeVar("ModelT", bound=BaseModel)
Where = tuple[str | int, ...]


class SettingsFileError(ValueError):
    """Settings cannot be used; ``faults`` holds one sentence for each thing that is wrong."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


RiskFileError = SettingsFileError
"""The name that :mod:`killswitch.risk` has for it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where, and the whole sentence."""

    where: Where
    sentence: str


@dataclass(frozen=True, slots=True)
class Places:
    """Where settings stand: path and line, a variable of the environment, or the command line.

    Attributes:
        whole: what is named for a setting that stands nowhere.
        of: the place of every setting that stands somewhere.
    """

    whole: str
    of: Mapping[Where, str]

    def innermost(self, where: Where) -> str:
        """Return the place of the innermost part of a setting that stands somewhere."""
        return next((self.of[where[:size]] for size in range(len(where), 0, -1) if where[:size] in self.of), self.whole)

    def told(self, where: Where, sentence: str) -> str:
        """Return the place of a fault between settings: of the first that its sentence names and that stands there."""
        named = [(*where, *name.split(".")) for name in re.findall(r"[A-Za-z_][\w.]*", sentence)]
        standing = next((self.of[name] for name in named if name in self.of), None)
        first = (*where, *sentence.split(" ", 1)[0].rstrip(":").split("."))
        return self.innermost(first) if standing is None else standing


@dataclass(frozen=True, slots=True)
class FileValues:
    """What stands in a file.

    Attributes:
        path: the file.
        values: as they stand there; of a name that is given twice the last.
        lines: the line of every setting.
        twice: the names that are given twice, which YAML would silently take the last of.
    """

    path: Path
    values: Mapping[Any, Any]
    lines: Mapping[Where, int]
    twice: tuple[Fault, ...]

    def places(self) -> Places:
        """Return path and line of every setting."""
        return _places(self.path, self.lines)


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
        return _places(self.path, self.lines).innermost(tuple(setting.split(".")))


def read_settings_file(path: Path, model: type[ModelT]) -> ModelT:
    """Read a YAML file as one model.

    Args:
        path: the file, at most :data:`MAX_FILE_BYTES` bytes.
        model: what it must hold. Names that it does not know are faults.

    Raises:
        SettingsFileError: the file cannot be read, is not YAML, gives a name twice, or does not fit the model.
    """
    reading = read_settings(path, model)
    if reading.settings is None:
        raise SettingsFileError(reading.faults)
    return reading.settings


def read_settings(path: Path, model: type[ModelT]) -> SettingsReading[ModelT]:
    """As :func:`read_settings_file`, for whoever can use a part of a file that is not sound as a whole. Never raises.

    Args:
        path: the file.
        model: what it must hold.
    """
    try:
        read = read_values(path)
    except SettingsFileError as error:
        return SettingsReading({}, None, tuple(error.faults), path)
    if read.twice:
        # Which of the two is meant cannot be told, so nothing of it is taken.
        return SettingsReading({}, None, tuple(fault.sentence for fault in read.twice), path)
    try:
        return SettingsReading(read.values, model.model_validate(read.values), (), path, read.lines)
    except ValidationError as error:
        faults = tuple(fault.sentence for fault in faults_of(error, model, read.places()))
        return SettingsReading(read.values, None, faults, path, read.lines)


def read_values(path: Path, *, may_wait: bool = False) -> FileValues:
    """Read what stands in a YAML file, whatever it should hold.

    Args:
        path: the file.
        may_wait: read a pipe too, whose other end may never write. Never for a file that is read again and again.

    Raises:
        SettingsFileError: it cannot be read, is not YAML, or holds no settings by name.
    """
    import yaml  # noqa: PLC0415 - who gives settings as objects need not have it

    lines: dict[Where, int] = {}
    twice: list[Fault] = []
    raw = _bytes_of(path, may_wait=may_wait)
    try:
        loader = yaml.SafeLoader(raw.decode("utf-8"))
        try:
            root = loader.get_single_node()
            if root is not None:
                # Before anything else walks through it: aliases may make a small file endless. And before values are
                # made of it, which writes what a merge key (<<) brings into the sections themselves.
                _collect(path, root, (), lines, twice)
            loaded = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        # Without the line itself, which yaml would show: it may hold the password of a store.
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise SettingsFileError([f"{path}: is not YAML ({line}{error.problem or error.context})"]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingsFileError([f"{path}: is not YAML ({' '.join(str(error).split())})"]) from error
    except (LookupError, AttributeError) as error:
        # What yaml ends with at "!!bool maybe" or "!!timestamp soon".
        raise SettingsFileError([f"{path}: is not YAML (a value is not of the type that its tag says)"]) from error
    if root is None:
        return FileValues(path, {}, {}, ())
    if not isinstance(loaded, dict):
        raise SettingsFileError([f"{path}: must hold settings by name, not a {type(loaded).__name__}"])
    return FileValues(path, loaded, lines, tuple(twice))


def _bytes_of(path: Path, *, may_wait: bool) -> bytes:
    raw = None
    try:
        if may_wait or path.is_file() or path.is_dir() or not path.exists():
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsFileError([f"{path}: cannot be read ({error.strerror})"]) from error
    if raw is None:
        # Opening a pipe or a device would wait for somebody at its other end, perhaps for ever.
        raise SettingsFileError([f"{path}: is no regular file"])
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsFileError([f"{path}: is larger than {MAX_FILE_BYTES} bytes"])
    return raw


def _collect(path: Path, node: Any, where: Where, lines: dict[Where, int], twice: list[Fault]) -> None:
    """Note the line of every name, and the names that are given twice.

    Raises:
        ValueError: there are more parts than :data:`MAX_PARTS`.
        RecursionError: it is too deep, or holds itself.
    """
    if len(lines) > MAX_PARTS:
        raise ValueError(f"it has more than {MAX_PARTS} parts")
    if node.id == "mapping":
        for key, value in node.value:
            inner, line = (*where, str(key.value)), key.start_mark.line + 1
            if inner in lines:
                twice.append(Fault(inner, f"{path}:{line}: {_dotted(inner)}: is given twice"))
            lines[inner] = line
            _collect(path, value, inner, lines, twice)
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            lines[(*where, index)] = value.start_mark.line + 1
            _collect(path, value, (*where, index), lines, twice)


def faults_of(
    error: ValidationError, model: type[BaseModel], places: Places, *, hidden: Collection[str] = ()
) -> list[Fault]:
    """Turn what pydantic found into sentences: where, what, and what may have been meant.

    Args:
        error: what it found.
        model: what the values should have fitted.
        places: where they stand.
        hidden: outermost settings whose value is not shown, since it may hold a password.
    """
    return [told for one in error.errors() for told in _faults(one, model, places, hidden)]


def _faults(found: Any, model: type[BaseModel], places: Places, hidden: Collection[str]) -> list[Fault]:
    where: Where = found["loc"]
    dotted = _dotted(where)
    named = f"{dotted}: " if dotted else ""
    if found["type"] == RULE_FAULTS:
        texts, names = found["ctx"]["faults"], section_names(model, where)
        return [Fault(where, f"{places.told(where, text)}: {_prefix(dotted, text, names)}{text}") for text in texts]
    place = places.innermost(where)
    if found["type"] == "extra_forbidden":
        hint = meant(str(where[-1]), section_names(model, where[:-1]))
        return [Fault(where, f"{place}: {named}there is no such setting{f'; did you mean {hint!r}?' if hint else ''}")]
    shown = "" if where[:1] and where[0] in hidden else f", and it is {_short(found['input'])}"
    return [Fault(where, f"{place}: {named}{found['msg'][:1].lower()}{found['msg'][1:]}{shown}")]


def _prefix(dotted: str, sentence: str, names: Sequence[str]) -> str:
    """Return what stands before the sentence of a section: its name, joined to that of the setting it begins with."""
    begins_with_name = re.split(r"[ .:]", sentence, maxsplit=1)[0] in names
    return f"{dotted}{'.' if begins_with_name else ': '}" if dotted else ""


def meant(written: str, known: Collection[str]) -> str | None:
    """Return the known name that is nearest to what was written; ``None`` when none is near."""
    return next(iter(difflib.get_close_matches(written, known, n=1, cutoff=0.5)), None)


def section_names(model: type[BaseModel], where: Where) -> list[str]:
    """Return the names of the settings that a section knows; none where there is no section."""
    section = section_at(model, where)
    return [] if section is None else list(section.model_fields)


def _places(path: Path, lines: Mapping[Where, int]) -> Places:
    return Places(f"{path}:1", {where: f"{path}:{line}" for where, line in lines.items()})


def _dotted(where: Where) -> str:
    return ".".join(str(part) for part in where)


def _short(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."

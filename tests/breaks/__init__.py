"""Deliberate breaks of the code, one file for each promise or part; ``python -m tests.breaks`` carries them out.

A break is what stands in the code, what the break puts there, and the tests that must turn red. docs/guarantees.md
names each by its words; CONTRIBUTING.md says how one is written.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Break:
    """One deliberate fault.

    Attributes:
        what: the fault in words, as docs/guarantees.md names it.
        path: the file that it is in.
        old: what stands there.
        new: what the break puts there.
        run: test files or folders to run.
        red: tests that must turn red; words to match, as pytest's ``-k`` takes them.
        source: the file that describes the break.
    """

    what: str
    path: str
    old: str
    new: str
    run: tuple[str, ...]
    red: tuple[str, ...]
    source: str


def read_breaks() -> tuple[Break, ...]:
    """Every break of this folder, file by file.

    Raises:
        ValueError: a file holds a key that is unknown, a break without a test, or the words of another break.
    """
    found: dict[str, Break] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["break"]:
            run, red = tuple(entry.pop("run")), tuple(entry.pop("red"))
            broken = Break(**entry, run=run, red=red, source=path.name)
            if not run or not red:
                raise ValueError(f"{path.name}: the break {broken.what!r} names no test")
            if broken.what in found:
                raise ValueError(
                    f"{path.name}: {found[broken.what].source} has a break of the same words: {broken.what!r}"
                )
            found[broken.what] = broken
    return tuple(found.values())


BREAKS = read_breaks()

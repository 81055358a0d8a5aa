"""Limits that follow their file while a process runs: looked at regularly, and at once when somebody asks.

The file is looked at rather than subscribed to: what a look costs is one ``stat``, and it works where notifications do
not come (a mounted ConfigMap, whose files are exchanged behind a link; network and overlay file systems).

* What tightens holds at the first look that sees it.
* What loosens holds when the file is sound as a whole, was the same at two looks in a row (so that no half-written
  file is believed), and is written down.
* A file that is gone or cannot be used changes nothing.
"""

from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from pydantic import BaseModel

from agents.risk.limits_audit import AuditUnwritable, LimitsAudit
from agents.risk.limits_change import LimitsChange, decide_change
from agents.risk.local_freeze import say
from agents.risk.settings_file import read_settings
from killswitch.clock import WallClock, wall_now

LOOK_EVERY_MS: Final = 1_000
"""How often :meth:`LiveLimits.follow` looks."""

ModelT = TypeVar("ModelT", bound=BaseModel)
_counters: dict[CollectorRegistry, Counter] = {}
_counters_lock = threading.Lock()
_Stamp = tuple[int, int, int, int]


class LiveLimits(Generic[ModelT]):
    """The limits of one file as they are now.

    Args:
        path: the file.
        limits: what was read from it at the start, and is in force.
        apply: makes other limits hold; called on the thread that looks. A ``ValueError`` says that they cannot hold in
            this process; they are not in force then.
        audit: where changes are written down; ``None`` writes them to the log alone.
        wall_clock: the time that entries carry.
        registry: where ``killswitch_limits_changes_total`` is counted; the default registry of the process when
            ``None``.

    Attributes:
        limits: the limits in force.
        faults: what was wrong with the file at the last look; empty when it is in force as it stands.
    """

    def __init__(
        self,
        path: Path,
        limits: ModelT,
        *,
        apply: Callable[[ModelT], None],
        audit: LimitsAudit | None = None,
        wall_clock: WallClock = wall_now,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.path = path
        self.limits = limits
        self.faults: tuple[str, ...] = ()
        self._apply = apply
        self._audit = audit
        self._wall_clock = wall_clock
        self._looking = threading.Lock()
        self._asked = threading.Event()
        self._due = False
        self._settled: _Stamp | None = None
        self._seen: _Stamp | None = None
        self._counter = changes_counter(registry)
        for outcome in ("applied", "tightened", "refused"):
            self._counter.labels(file=path.name, outcome=outcome)  # there from the start, at 0

    def note_start(self, who: str) -> None:
        """Write down the limits that a process starts with.

        Raises:
            AuditUnwritable: it cannot be written; a process that could not account for its limits must not start.
        """
        if self._audit is not None:
            self._audit.append(
                {"at": self._wall_clock(), "by": who, "file": str(self.path), "outcome": "started",
                 "limits": self.limits.model_dump(mode="json")}
            )  # fmt: skip

    def look_soon(self) -> None:
        """Have the next look take the file as it stands, and come now."""
        self._due = True
        self._asked.set()

    def wait(self, every_ms: int = LOOK_EVERY_MS) -> None:
        """Wait until it is time to look, or somebody asks."""
        self._asked.wait(every_ms / 1000)
        self._asked.clear()

    def look_when_due(self) -> LimitsChange[ModelT] | None:
        """Look, and take the file as it stands if somebody has asked for that."""
        asked, self._due = self._due, False
        return self.look(asked=asked)

    def follow(self, stopping: threading.Event, *, every_ms: int = LOOK_EVERY_MS) -> None:
        """Look until told to stop; the work of a thread."""
        while not stopping.is_set():
            self.wait(every_ms)
            if not stopping.is_set():
                self.look_when_due()

    def look(self, *, asked: bool = False) -> LimitsChange[ModelT] | None:
        """Look at the file once.

        Args:
            asked: somebody wants it taken now: a loosening does not wait for a second look.

        Returns:
            What became of it; ``None`` when the file is as it was, or only loosens and has to be seen a second time.
        """
        with self._looking:
            stamp = self._stamp()
            seen, self._seen = self._seen, stamp
            if stamp == self._settled and not asked:
                return None
            reading = read_settings(self.path, type(self.limits))
            change = decide_change(self.limits, reading)
            if stamp != self._stamp():
                return None  # it changed while it was read: the next look sees all of it
            if change.outcome == "applied" and change.loosens and not asked and stamp != seen:
                # What tightens holds now; the whole has to be seen a second time.
                tighter = decide_change(self.limits, replace(reading, settings=None))
                return self._take(tighter) if tighter.changes else None
            self._settled = stamp
            return self._take(change)

    def _take(self, change: LimitsChange[ModelT]) -> LimitsChange[ModelT]:
        if change.outcome == "unchanged" or (change.outcome == "refused" and change.faults == self.faults):
            self.faults = change.faults
            return change
        faults = change.faults
        # Before a loosening holds it must be on the disk; a tightening holds first.
        unwritten = self._write_down(change.outcome, change, faults) if change.loosens else None
        cannot_hold = self._put_in_force(change) if unwritten is None else None
        if cannot_hold is not None:
            change = replace(change, limits=self.limits, outcome="refused", changes=())
            faults = (*faults, cannot_hold)
        if not change.loosens:
            unwritten = self._write_down(change.outcome, change, faults)
        if unwritten is not None:
            faults = (*faults, unwritten)
        self.faults = faults
        self._tell(change, faults)
        return change

    def _put_in_force(self, change: LimitsChange[ModelT]) -> str | None:
        """Make the limits hold; a sentence when they cannot."""
        if not change.changes:
            return None
        try:
            self._apply(change.limits)
        except ValueError as error:
            return str(error)
        self.limits = change.limits
        return None

    def _write_down(self, outcome: str, change: LimitsChange[ModelT], faults: tuple[str, ...]) -> str | None:
        """Put the change on the disk; a sentence when it is not there."""
        if self._audit is None:
            return None
        try:
            self._audit.append(
                {
                    "at": self._wall_clock(),
                    "by": _owner(self.path),
                    "file": str(self.path),
                    "outcome": outcome,
                    "changes": [one.to_json() for one in change.changes],
                    "faults": list(faults),
                }
            )
        except AuditUnwritable as error:
            return f"the change could not be written down, and nothing loosens that is not: {error}"
        return None

    def _tell(self, change: LimitsChange[ModelT], faults: tuple[str, ...]) -> None:
        outcome = "refused" if faults and self.limits is not change.limits else change.outcome
        self._counter.labels(file=self.path.name, outcome=outcome).inc()
        changes: list[Mapping[str, Any]] = [one.to_json() for one in change.changes]
        level = "error" if faults else "warning"
        say(level, "limits file changed", file=str(self.path), outcome=outcome, changes=changes, faults=list(faults))

    def _stamp(self) -> _Stamp | None:
        """What tells one content of the file from another, through links; ``None`` when there is no file."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def changes_counter(registry: CollectorRegistry | None) -> Counter:
    """One counter per registry, however many files: a second registration of a name is an error there."""
    place = registry if registry is not None else REGISTRY
    with _counters_lock:
        if place not in _counters:
            _counters[place] = Counter(
                "killswitch_limits_changes_total",
                "Changes of files of limits and rules, by file and by what became of them.",
                ["file", "outcome"],
                registry=place,
            )
        return _counters[place]


def _owner(path: Path) -> str:
    """Who owns the file: the nearest thing to who wrote it that a file system tells."""
    try:
        uid = path.stat().st_uid
    except OSError:
        return f"uid{os.getuid()} (the file is gone)"
    try:
        return f"owner:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"owner:uid{uid}"

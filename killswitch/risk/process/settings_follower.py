"""Limits that follow their file while a process runs: looked at regularly, and at once when somebody asks.

The file is looked at rather than subscribed to: what a look costs is one ``stat``, and it works where notifications do
not come (a mounted ConfigMap, whose files are exchanged behind a link; network and overlay file systems).

* What tightens holds at the first look that sees it.
* What loosens holds when the file is sound as a whole, was the same at two looks in a row (so that no half-written
  file is believed), and is written down.
* What loosens never holds up what tightens: where the whole cannot be written down or made to hold, what tightens of it
  holds alone. What could not be written down is tried again at every look.
* A file that is gone or cannot be used changes nothing.
"""

from __future__ import annotations

import os
import pwd
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from killswitch.clock import WallClock, wall_now
from killswitch.risk.metrics import counter_of
from killswitch.risk.process.limits_audit import AuditUnwritable, LimitsAudit
from killswitch.risk.process.limits_change import LimitsChange, decide_change
from killswitch.safe_log import say
from killswitch.settings.settings_file import SettingsReading, read_settings

LOOK_EVERY_MS: Final = 1_000
"""How often :meth:`SettingsFollower.follow` looks."""
NOT_AUDITED: Final = (
    "what loosens does not hold, since nothing would write down that it did; give this process "
    "audit=LimitsAudit(path), or start it again with the file as it is"
)
"""Said of a file that loosens something in a process that keeps no audit."""
MAX_OWED: Final = 1_000
"""Entries that are kept until the audit file can be written again; the log has all of them."""

ModelT = TypeVar("ModelT", bound=BaseModel)
_Stamp = tuple[int, int, int, int]
_NOTHING_YET: Final[_Stamp] = (-1, -1, -1, -1)


class SettingsFollower(Generic[ModelT]):
    """The limits of one file as they are now.

    Args:
        path: the file.
        limits: what was read from it at the start, and is in force.
        apply: makes other limits hold; called on the thread that looks. A ``ValueError`` says that they cannot hold in
            this process; they are not in force then.
        audit: where changes are written down. With ``None`` the log alone has them, and the file may only tighten:
            nothing loosens that nobody could account for.
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
        self._settled: _Stamp | None = _NOTHING_YET
        self._seen: _Stamp | None = None
        self._owed: deque[Mapping[str, Any]] = deque(maxlen=MAX_OWED)
        self._unwritten: str | None = None
        self._counter = counter_of(
            registry,
            "killswitch_limits_changes_total",
            "Changes of files of limits and rules, by file and by what became of them.",
            ["file", "outcome"],
        )
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
            self._pay_what_is_owed()
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
            taken = self._take(change)
            if not change.loosens or taken.outcome != "refused":
                self._settled = stamp
                return taken
            # What could not be written down may be so a moment later; what cannot hold will not, until the file is
            # another or somebody asks.
            may_be_written = self._unwritten is not None and self._audit is not None
            self._settled = _NOTHING_YET if may_be_written else stamp
            return self._tighten(reading, taken)

    def _tighten(self, reading: SettingsReading[ModelT], refused: LimitsChange[ModelT]) -> LimitsChange[ModelT]:
        """Of a file that cannot be taken as a whole, have what tightens hold: it must not wait for what loosens."""
        # As the settings are, not as they are written: a line that was taken out may tighten too.
        values = reading.values if reading.settings is None else reading.settings.model_dump()
        tighter = decide_change(self.limits, replace(reading, settings=None, values=values, faults=refused.faults))
        return self._take(tighter) if tighter.changes else refused

    def _take(self, change: LimitsChange[ModelT]) -> LimitsChange[ModelT]:
        if change.outcome == "unchanged" or (change.outcome == "refused" and change.faults == self.faults):
            self.faults = change.faults
            return change
        # Before a loosening holds it must be on the disk; a tightening holds first.
        unwritten = self._write_down(change) if change.loosens else None
        cannot_hold = self._put_in_force(change) if unwritten is None else None
        why = unwritten if cannot_hold is None else cannot_hold
        if why is not None:
            change = replace(
                change, limits=self.limits, outcome="refused", changes=(), faults=_with_fault(change.faults, why)
            )
        if unwritten is None and not change.loosens:
            unwritten = self._write_down(change)
        self._unwritten = unwritten
        before, self.faults = self.faults, _with_fault(change.faults, unwritten)
        if change.changes or self.faults != before:
            self._tell(change)
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

    def _write_down(self, change: LimitsChange[ModelT]) -> str | None:
        """Put the change on the disk; a sentence when it is not there. What holds by then is owed to the file."""
        if self._audit is None:
            return NOT_AUDITED if change.loosens else None
        entry = {
            "at": self._wall_clock(),
            "by": _owner(self.path),
            "file": str(self.path),
            "outcome": change.outcome,
            "changes": [one.to_json() for one in change.changes],
            "faults": list(change.faults),
        }
        try:
            self._pay(self._audit)
            self._audit.append(entry)
        except AuditUnwritable as error:
            if not change.loosens:
                self._owed.append(entry)
            return f"the change could not be written down, and nothing loosens that is not: {error}"
        return None

    def _pay(self, audit: LimitsAudit) -> None:
        """Write down what holds already and could not be written down before; the oldest first.

        Raises:
            AuditUnwritable: it still cannot be.
        """
        while self._owed:
            audit.append(self._owed[0])
            self._owed.popleft()

    def _pay_what_is_owed(self) -> None:
        if self._audit is None or not self._owed:
            return
        try:
            self._pay(self._audit)
        except AuditUnwritable:
            return  # said already
        self.faults = tuple(fault for fault in self.faults if fault != self._unwritten)
        say("warning", "limits audit written again", file=str(self.path), audit=str(self._audit.path))

    def _tell(self, change: LimitsChange[ModelT]) -> None:
        self._counter.labels(file=self.path.name, outcome=change.outcome).inc()
        changes: list[Mapping[str, Any]] = [one.to_json() for one in change.changes]
        level, faults = "error" if self.faults else "warning", list(self.faults)
        say(level, "limits file changed", file=str(self.path), outcome=change.outcome, changes=changes, faults=faults)

    def _stamp(self) -> _Stamp | None:
        """What tells one content of the file from another, through links; ``None`` when there is no file."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _with_fault(faults: tuple[str, ...], fault: str | None) -> tuple[str, ...]:
    return faults if fault is None or fault in faults else (*faults, fault)


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


LiveLimits = SettingsFollower
"""The name of before, which programs of users import."""

"""The breaker's state on disk: over a restart, and between the processes of one machine.

The file is replaced as a whole, so a reader needs no lock; who changes it holds the lock of a file beside it, reads
again, and then writes. Its times are on the deadline clock, which starts over when the machine does: the file says
which clock it means, and a state from another one is taken as if everything in it had happened now.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from killswitch.clock import NowNs, WallClock, boot_id, time_or_unknown
from killswitch.cluster.records import first_fault
from killswitch.durable_file import replace_file
from killswitch.risk.breaker.breaker_machine import BreakerMode, BreakerState, Cause, rebased
from killswitch.risk.breaker.breaker_settings import BreakerSettings, ReasonClass

MAX_FILE_BYTES: Final = 65_536
_LOCK_POLL_SECONDS: Final = 0.002

_TIME_NAMESPACE = Path("/proc/self/ns/time")


class StateFileFault(Exception):
    """The state file cannot be read, understood, locked or written; the message is a sentence with its path."""


class StateFile:
    """One state file.

    Args:
        settings: path, lock and its time-out.
        clock: the deadline clock that its times are on.
        wall_clock: the time of writing, for people.
    """

    def __init__(self, settings: BreakerSettings, *, clock: NowNs, wall_clock: WallClock) -> None:
        if settings.state_file is None:
            raise ValueError("the settings name no state_file")
        self.path = Path(settings.state_file)
        self._settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._kept_fd: int | None = None
        self._seen: tuple[int, int, int] | None = None

    def unchanged(self) -> bool:
        """True when the file is the very one that was read or written last; False also when it cannot be told."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - asked before every order, and half the time of Path.stat
        except OSError:
            return False
        return (found.st_ino, found.st_mtime_ns, found.st_size) == self._seen

    def read(self) -> BreakerState:
        """Read the state.

        Raises:
            StateFileFault: it is missing, cannot be read, or is not a state.
        """
        self._seen = None
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StateFileFault(
                f"{self.path}: there is no state file, and whether there was one cannot be told; "
                "create_state_file() writes the first one"
            ) from None
        except OSError as error:
            raise StateFileFault(f"{self.path}: cannot be read ({error.strerror})") from error
        try:
            found = os.fstat(fd)
            raw = b"" if found.st_size > MAX_FILE_BYTES else os.read(fd, MAX_FILE_BYTES)
        except OSError as error:
            os.close(fd)
            raise StateFileFault(f"{self.path}: cannot be read ({error.strerror})") from error
        # Kept open, so that no other file gets its inode number while that number stands for it here.
        self._keep(fd, found)
        try:
            return self._understood(raw)
        except StateFileFault:
            self._seen = None
            raise

    def write(self, state: BreakerState) -> None:
        """Replace the file, on disk when this returns.

        Raises:
            StateFileFault: it cannot be written; what stood there may still stand there.
        """
        try:
            body = _FileRecord(
                v=1, utc=time_or_unknown(self._wall_clock), clock=clock_identity(), state=StateRecord.from_core(state)
            )
            replace_file(self.path, json.dumps(body.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n")
            kept = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._seen = None
            raise StateFileFault(f"{self.path}: cannot be written ({error.strerror})") from error
        except ValidationError as error:
            raise StateFileFault(f"{self.path}: cannot be written ({first_fault(error)})") from error
        self._keep(kept, os.fstat(kept))

    def keep_unreadable(self) -> None:
        """Keep a copy of what cannot be understood beside the file, for people; only the newest is kept."""
        with contextlib.suppress(OSError):
            self.path.with_name(f"{self.path.name}.unreadable").write_bytes(self.path.read_bytes()[:MAX_FILE_BYTES])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock between processes; without ``file_lock`` it is nobody's.

        Raises:
            StateFileFault: somebody else held it for longer than ``lock_timeout_seconds``, or it cannot be made.
        """
        if not self._settings.file_lock:
            yield
            return
        path = self.path.with_name(f"{self.path.name}.lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateFileFault(f"{path}: cannot be opened ({error.strerror})") from error
        try:
            self._take(fd, path)
            yield
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of the file."""
        self._seen = None
        if self._kept_fd is not None:
            os.close(self._kept_fd)
            self._kept_fd = None

    def _take(self, fd: int, path: Path) -> None:
        # Not the injected clock: a wait must end even where that one stands still.
        deadline_s = time.monotonic() + self._settings.lock_timeout_seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() >= deadline_s:
                    seconds = self._settings.lock_timeout_seconds
                    raise StateFileFault(f"{path}: another process has held the lock for {seconds:g} s") from error
                time.sleep(_LOCK_POLL_SECONDS)
            else:
                return

    def _keep(self, fd: int, found: os.stat_result) -> None:
        before, self._kept_fd = self._kept_fd, fd
        self._seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if before is not None:
            os.close(before)

    def _understood(self, raw: bytes) -> BreakerState:
        try:
            record = _FileRecord.model_validate_json(raw)
            state = record.state.to_core()
        except ValidationError as error:
            raise StateFileFault(f"{self.path}: is not a breaker's state ({first_fault(error)})") from error
        except ValueError as error:
            raise StateFileFault(f"{self.path}: is not a breaker's state ({error})") from error
        return state if record.clock == clock_identity() else rebased(state, self._clock(), self._settings)


def clock_identity() -> str:
    """Names the run of the machine and the time namespace that the deadline clock counts in; unlike any other when
    that cannot be told, so that a state from anywhere is taken anew."""
    boot = boot_id()
    try:
        return f"{boot} {os.readlink(_TIME_NAMESPACE)}" if boot else f"unknown {os.getpid()}"  # noqa: PTH115 - no path
    except OSError:
        return f"unknown {os.getpid()}"


_Whole = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Stored(BaseModel):
    """Nothing has a default: what a file does not say is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, from_attributes=True)


class CauseRecord(_Stored):
    """One cause, as :class:`Cause` has it."""

    kind: ReasonClass
    reason: str
    latched: bool
    bad_readings: _Whole
    last_bad_ns: _Whole
    good_readings: _Whole


class StateRecord(_Stored):
    """What the breaker remembers, as :class:`BreakerState` has it."""

    version: _Whole
    mode: BreakerMode
    engagement: _Whole
    causes: tuple[CauseRecord, ...]
    repeats: _Whole
    engagements_ns: tuple[_Whole, ...]
    escalated: bool
    cooldown_until_ns: _Whole
    probes_left: _Whole
    safe_since_ns: _Whole
    last_ns: _Whole

    @classmethod
    def from_core(cls, state: BreakerState) -> StateRecord:
        """Make the record of a state."""
        return cls.model_validate(state)

    def to_core(self) -> BreakerState:
        """Return the state.

        Raises:
            ValueError: it is one that cannot be.
        """
        kinds = [cause.kind.value for cause in self.causes]
        if kinds != sorted(set(kinds)):
            raise ValueError("a class of reason is named twice or out of order")
        if (self.mode is BreakerMode.SAFE) != (not kinds):
            raise ValueError(f"{self.mode} with {len(kinds)} causes cannot be")
        if self.mode is BreakerMode.HALF_OPEN and not all(cause.latched for cause in self.causes):
            raise ValueError("a pause cannot be half-open")
        return BreakerState(**{**dict(self), "causes": tuple(Cause(**dict(cause)) for cause in self.causes)})


class _FileRecord(_Stored):
    """The whole file. Its times are on the clock that ``clock`` names; ``utc`` is for people."""

    v: Literal[1]
    utc: str
    clock: str
    state: StateRecord

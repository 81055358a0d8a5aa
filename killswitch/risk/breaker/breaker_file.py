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
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from killswitch.clock import NowNs, WallClock
from killswitch.risk.breaker.breaker_machine import BreakerMode, BreakerState, Cause, rebased
from killswitch.risk.breaker.breaker_settings import BreakerSettings, ReasonClass

FILE_VERSION: Final = 1
MAX_FILE_BYTES: Final = 65_536
_LOCK_POLL_SECONDS: Final = 0.002
_LARGEST_NS: Final = 2**63 - 1

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
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
        body = {"v": FILE_VERSION, "utc": self._wall_clock(), "clock": clock_identity(), "state": state_to_json(state)}
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(json.dumps(body, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            self._sync_directory()
            kept = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._seen = None
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StateFileFault(f"{self.path}: cannot be written ({error.strerror})") from error
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
            body = json.loads(raw)
            _named(body, {"v", "utc", "clock", "state"}, "file")
            _is_version(body["v"])
            state = state_from_json(body["state"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StateFileFault(f"{self.path}: is not a breaker's state ({error})") from error
        same_clock = body["clock"] == clock_identity()
        return state if same_clock else rebased(state, self._clock(), self._settings)

    def _sync_directory(self) -> None:
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def clock_identity() -> str:
    """Names the run of the machine and the time namespace that the deadline clock counts in; empty when unknown."""
    try:
        return f"{_BOOT_ID.read_text().strip()} {os.readlink(_TIME_NAMESPACE)}"  # noqa: PTH115 - it is not a path
    except OSError:
        # Unlike every other identity, so that a state from anywhere is taken anew.
        return f"unknown {os.getpid()}"


def state_to_json(state: BreakerState) -> dict[str, Any]:
    """Return a state as JSON values."""
    return {
        "version": state.version,
        "mode": state.mode.value,
        "engagement": state.engagement,
        "causes": [
            {field.name: getattr(cause, field.name) for field in fields(Cause)} | {"kind": cause.kind.value}
            for cause in state.causes
        ],
        "repeats": state.repeats,
        "engagements_ns": list(state.engagements_ns),
        "escalated": state.escalated,
        "cooldown_until_ns": state.cooldown_until_ns,
        "probes_left": state.probes_left,
        "safe_since_ns": state.safe_since_ns,
        "last_ns": state.last_ns,
    }


def state_from_json(data: Any) -> BreakerState:
    """Read what :func:`state_to_json` returned.

    Raises:
        ValueError: it is anything else, or a state that cannot be.
    """
    _named(data, {field.name for field in fields(BreakerState)}, "state")
    if not isinstance(data["causes"], list) or not isinstance(data["engagements_ns"], list):
        raise ValueError("causes and engagements_ns are lists")  # noqa: TRY004 - one error for whatever is wrong
    causes = tuple(_cause(raw) for raw in data["causes"])
    state = BreakerState(
        mode=BreakerMode(data["mode"]),
        causes=causes,
        engagements_ns=tuple(_whole(value, "engagements_ns") for value in data["engagements_ns"]),
        escalated=_yes_or_no(data["escalated"], "escalated"),
        **{
            name: _whole(data[name], name)
            for name in (
                "version", "engagement", "repeats", "cooldown_until_ns", "probes_left", "safe_since_ns", "last_ns",
            )
        },
    )  # fmt: skip
    kinds = [cause.kind.value for cause in causes]
    if kinds != sorted(set(kinds)):
        raise ValueError("a class of reason is named twice or out of order")
    if (state.mode is BreakerMode.SAFE) != (not causes):
        raise ValueError(f"{state.mode} with {len(causes)} causes cannot be")
    if state.mode is BreakerMode.HALF_OPEN and not all(cause.latched for cause in causes):
        raise ValueError("a pause cannot be half-open")
    return state


def _cause(raw: Any) -> Cause:
    _named(raw, {field.name for field in fields(Cause)}, "cause")
    if not isinstance(raw["reason"], str):
        raise ValueError("a reason is a text")  # noqa: TRY004 - as above
    return Cause(
        kind=ReasonClass(raw["kind"]),
        reason=raw["reason"],
        latched=_yes_or_no(raw["latched"], "latched"),
        bad_readings=_whole(raw["bad_readings"], "bad_readings"),
        last_bad_ns=_whole(raw["last_bad_ns"], "last_bad_ns"),
        good_readings=_whole(raw["good_readings"], "good_readings"),
    )


def _is_version(value: Any) -> None:
    if value != FILE_VERSION or isinstance(value, bool):
        raise ValueError(f"its version is {value!r}, not {FILE_VERSION}")


def _named(data: Any, names: set[str], what: str) -> None:
    if not isinstance(data, Mapping) or set(data) != names:
        raise ValueError(f"a {what} has exactly the names {', '.join(sorted(names))}")


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_NS:
        raise ValueError(f"{name} is {value!r}, not a whole number from 0 to 2**63 - 1")
    return value


def _yes_or_no(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, neither true nor false")  # noqa: TRY004 - as above
    return value

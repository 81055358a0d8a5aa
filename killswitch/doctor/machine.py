"""Measures this machine: clocks, gate page, directories that an agent needs, installation. Needs no store."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path, PurePath

from killswitch.clock import CLOCK_NAME, CLOCK_NOTE, now_ns
from killswitch.doctor.measurements import DirectorySeen, GateSeen, InstallationSeen, MachineSeen
from killswitch.gate import Gate, GateError

CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
NS_PER_MS = 1_000_000

DISTRIBUTION = "killswitch-cluster"
IMPORT_ROOTS = frozenset({"killswitch", "killswitch_agent", "killswitch_coordinator"})
"""What our distribution puts where Python looks; another that does so too breaks it, or is broken by it."""
COMMAND = "killswitch"

TIMEX_BYTES = 512
"""More than any ``struct timex`` has; all zeros asks for nothing to be changed."""
TIME_ERROR = 5
"""What ``adjtimex`` returns when nobody tells the kernel the right time."""


class ClockPair:
    """How far the wall clock is from the clock of deadlines; :meth:`stepped_ms` says how that has changed."""

    def __init__(self) -> None:
        self._began_ns = now_ns()
        self._apart_ns = _apart_ns()

    @property
    def watched_ms(self) -> float:
        """Time since this was made."""
        return (now_ns() - self._began_ns) / NS_PER_MS

    def stepped_ms(self) -> float:
        """How far the wall clock has moved on its own since then."""
        return (_apart_ns() - self._apart_ns) / NS_PER_MS


def examine_machine(clocks: ClockPair, *, gate: str, gate_asked_for: bool, state_dir: str) -> MachineSeen:
    """Measure this machine.

    Args:
        clocks: made when the examination began.
        gate: path of the gate page.
        gate_asked_for: somebody named it, so that it ought to be there.
        state_dir: directory of the agent's journal.
    """
    return MachineSeen(
        clock_name=CLOCK_NAME,
        clock_note=CLOCK_NOTE,
        clocksource=_first_line(CLOCKSOURCE),
        stepped_ms=clocks.stepped_ms(),
        watched_ms=clocks.watched_ms,
        time_synchronised=_time_synchronised(),
        gate=read_gate(gate, asked_for=gate_asked_for),
        shared_memory=look_at_directory(Path(gate).parent),
        journal=look_at_directory(Path(state_dir)),
        installation=look_at_installation(),
    )


def read_gate(path: str, *, asked_for: bool) -> GateSeen:
    """Read a gate page as a router would."""
    present = os.path.lexists(path)
    try:
        with Gate.open(path) as page:
            state = page.snapshot()
    except GateError as error:
        return GateSeen(path=path, asked_for=asked_for, present=present, error=str(error))
    now = now_ns()
    return GateSeen(
        path=path,
        asked_for=asked_for,
        present=present,
        cluster=state.cluster,
        node=state.node,
        epoch=state.epoch,
        mode=state.mode.name,
        # A writer that keeps a permit withdrawn without having had one writes 1, not 0.
        permit_ms_left=(state.permit_deadline_ns - now) / NS_PER_MS if state.permit_deadline_ns > 1 else None,
        heartbeat_ms_ago=(now - state.heartbeat_ns) / NS_PER_MS,
        writer_pid=state.writer_pid,
        writer_alive=_is_alive(state.writer_pid),
    )


def look_at_directory(path: Path) -> DirectorySeen:
    """Look at a directory, or where it is missing at the nearest one above it."""
    there = next((above for above in (path, *path.parents) if above.is_dir()), Path("/"))
    try:
        system = os.statvfs(there)
    except OSError:
        return DirectorySeen(str(path), there == path, os.access(there, os.W_OK | os.X_OK), False, None)
    return DirectorySeen(
        path=str(path),
        exists=there == path,
        writable=os.access(there, os.W_OK | os.X_OK),
        read_only=bool(system.f_flag & os.ST_RDONLY),
        free_bytes=system.f_bavail * system.f_frsize,
    )


def look_at_installation(path: Sequence[str] | None = None) -> InstallationSeen:
    """Look for other distributions that own what is ours: an import root, a file below one, or the command.

    Args:
        path: directories to look for distributions in, where it is not Python's own search path.
    """
    ours, others = "", {}
    for found in metadata.distributions() if path is None else metadata.distributions(path=list(path)):
        with contextlib.suppress(Exception):  # one that is damaged tells neither its name nor its files
            name = found.metadata["Name"].lower().replace("_", "-")
            if name == DISTRIBUTION:
                ours = ours or f"{name} {found.version}"
            elif claimed := next((str(file) for file in found.files or () if _is_our_name(file)), ""):
                others[f"{name} {found.version}"] = claimed
    return InstallationSeen(ours, str(Path(__file__).parents[1]), others)


def _is_our_name(file: PurePath) -> bool:
    """Whether a file that a distribution installs is a module or package of our name, or our command."""
    root = file.parts[0]
    is_command = file.parts[-2:-1] in (("bin",), ("Scripts",)) and file.stem == COMMAND
    return is_command or root in IMPORT_ROOTS or root.removesuffix(".py") in IMPORT_ROOTS


def _apart_ns() -> int:
    return time.time_ns() - now_ns()


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _is_alive(pid: int) -> bool:
    """Whether a process of that number exists here; a dead one that nobody has waited for does not count."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # it is there, and another user's
    except (OSError, OverflowError):
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return True  # a system without /proc
    return state[:1] not in (["Z"], ["X"])


def _time_synchronised() -> bool | None:
    """Whether the kernel believes its wall clock, as ``adjtimex`` says; ``None`` where it cannot be asked."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR

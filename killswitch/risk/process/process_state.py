"""What a restart of a trading process must not undo, in a file: disabled strategies, the counts of the day, the freeze.

The file is written by a thread of its own, so that neither a fill nor a freeze ever waits for a disk: at once when a
strategy was disabled or enabled and when the process froze, else at most once a second, and when the process ends. So a
crash takes away what was counted in its last second, and a release of that second, which is then made again.

Positions and working orders are not in it: they are the venue's to tell, and a file of a second ago would be wrong.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from killswitch.clock import WallClock, time_or_unknown, wall_now
from killswitch.cluster.records import first_fault
from killswitch.durable_file import replace_file
from killswitch.risk.events import MONITOR_ERROR
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.limits.saved_state import SavedState
from killswitch.risk.pretrade.controls import PreTradeControls
from killswitch.safe_log import say

MAX_STATE_BYTES: Final = 64 * 1024 * 1024
SAVE_EVERY_S: Final = 1.0
CLOSE_WAIT_S: Final = 5.0
FREEZES_SAVED: Final = 20
"""Newest freezes in the file; all of them are in the log."""


class _StateRecord(BaseModel):
    """The whole file; what is in its parts is read by those whose state it is. ``saved_at`` is for people."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1]
    saved_at: str
    monitor: dict[str, Any]
    controls: dict[str, Any]


class StateUnwritable(Exception):
    """The state of a process cannot be written at its start; the message says where and why."""


class ProcessState:
    """The state file of one process. :meth:`restore` first, then :meth:`start`; :meth:`close` at the end.

    A file that is missing is a first start. One that cannot be read, or is of another version, freezes the monitor and
    stays as it is until a person has released the monitor, who has then made sure of what the file would have said.

    Args:
        path: the file, one for each process; its directory is made when it is missing.
        monitor: its freeze is kept.
        controls: their strategies and counts are kept.
        changed: set by whoever has changed what must be written at once.
        wall_clock: the time that the file carries, for people.

    Attributes:
        fault: why the file could not be written last, ``None`` when it could.
    """

    def __init__(
        self,
        path: Path,
        *,
        monitor: RuntimeRiskMonitor,
        controls: PreTradeControls,
        changed: threading.Event,
        wall_clock: WallClock = wall_now,
    ) -> None:
        self.path = path
        self.fault: str | None = None
        self._monitor = monitor
        self._controls = controls
        self._changed = changed
        self._wall_clock = wall_clock
        self._writing = threading.Lock()
        self._written: Mapping[str, Any] | None = None
        self._is_unreadable = False
        self._is_closed = False
        self._thread: threading.Thread | None = None

    # ---- at the start

    def restore(self) -> None:
        """Take over what the file says; freeze the monitor when that is not known. Never raises."""
        try:
            data = self._read()
            if data is None:
                return
            # The monitor first: it may be frozen by what follows, and a restored state does not lift that.
            self._monitor.restore_from_dict(data.monitor)
            self._controls.restore_from_dict(data.controls)
        except Exception as error:  # whatever is wrong with it, what it would have said is not known
            self._is_unreadable = True
            self._monitor.freeze(
                f"{self.path}: the state of this process cannot be read ({_because(error)}), so which strategies are "
                "disabled, what was counted today and whether it was frozen is not known; put a good copy in its place "
                "and start again, or find out and call monitor.unfreeze, which begins a new file",
                trigger="limit_violation",
                metadata={"cause": MONITOR_ERROR},
            )
            return
        disabled = self._controls.disabled_strategies()
        if self._monitor.is_frozen() or disabled:
            say("warning", "state restored", file=str(self.path), frozen=self._monitor.is_frozen(),
                reason=self._monitor.last_freeze_reason, disabled=disabled)  # fmt: skip

    def _read(self) -> _StateRecord | None:
        """What the file holds, ``None`` when there is none."""
        try:
            # Without waiting, as a pipe would have it; what is no file of ours is not read.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("it is no regular file")
            raw = file.read(MAX_STATE_BYTES + 1)
        if len(raw) > MAX_STATE_BYTES:
            raise ValueError(f"it is larger than {MAX_STATE_BYTES} bytes")
        return _StateRecord.model_validate(json.loads(raw))

    def start(self) -> None:
        """Write the file for the first time, and from then on by a thread.

        Raises:
            StateUnwritable: it cannot be written; a process whose restart would forget its locks must not start.
        """
        self.save()
        if self.fault is not None:
            raise StateUnwritable(self.fault)
        self._thread = threading.Thread(target=self._work, name="limits-state", daemon=True)
        self._thread.start()

    # ---- while it runs

    def _work(self) -> None:
        while not self._is_closed:
            self._changed.wait(SAVE_EVERY_S)
            self._changed.clear()
            self.save()

    def save(self) -> None:
        """Write the file if anything has changed, on disk when this returns. Never raises; see :attr:`fault`."""
        with self._writing:
            try:
                self._save()
            except Exception as error:  # it must not end the thread that tries again
                sentence = f"{self.path}: cannot be written ({_because(error)}); a restart would forget what changed"
                if sentence != self.fault:
                    say("error", "state not written", file=str(self.path), error=repr(error))
                self.fault = sentence
            else:
                self.fault = None

    def _save(self) -> None:
        if self._is_unreadable:
            if self._monitor.is_frozen():
                return  # whoever repairs the file must still find it
            self.path.replace(self.path.with_name(f"{self.path.name}.unreadable"))
            self._is_unreadable = False
        state = self._state()
        if state == self._written:
            return
        body = _StateRecord(v=1, saved_at=time_or_unknown(self._wall_clock), **state)
        raw = json.dumps(dict(body), indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, raw)
        self._written = state

    def _state(self) -> dict[str, Any]:
        monitor = self._monitor
        moment = SavedState(
            frozen=monitor.is_frozen(),
            blocks_total=monitor.blocks_total,
            freezes_total=monitor.freezes_total,
            last_freeze_reason=monitor.last_freeze_reason,
            last_freeze_symbol=monitor.last_freeze_symbol,
            positions={},
            freeze_events=monitor.get_freeze_events()[-FREEZES_SAVED:],
            bad_fills=(),
            working_orders={},
        )
        return {"monitor": moment.to_json(monitor.limits), "controls": self._controls.persist_to_dict()}

    def close(self) -> None:
        """Write what has changed, and write nothing from then on. Waits for a disk no longer than a few seconds."""
        self._is_closed = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join(CLOSE_WAIT_S)
            if self._thread.is_alive():
                say("error", "state not written", file=str(self.path), error=f"no answer within {CLOSE_WAIT_S} s")
                return
        self.save()


def _because(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_fault(error)
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error) or repr(error)

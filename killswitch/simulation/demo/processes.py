"""Starts, kills and ends the processes of a demo: its own children only, each by its process id.

Each child has a log file of its own and a process group of its own, so that Ctrl-C reaches the demo alone, which then
ends its children in order: order routers first, so that they cancel while venue and agents are still there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

UNIX_SOCKET_PATH_MAX_BYTES = 107
"""Longest path of a Unix socket on Linux, without the closing zero byte."""

STOP_TIMEOUT_S = 10.0
QUIET_START_S = 1.0
"""How long a process of ours takes to start on a machine that does nothing else, measured on two slow cores."""
HARD_CAP_S = 300.0
"""No limit of time is stretched beyond this."""
POLL_S = 0.02
LOG_TAIL_CHARS = 400
COMPLAINT = re.compile(r'"level": "error"|\[error|^\w*(Error|Exception)\b|^Error: ')
ENVIRONMENT_PREFIX = "KILLSWITCH_"


class ProcessFault(Exception):
    """A child did not start, did not answer or ended with an error; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running child and where it logs."""

    name: str
    module: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        """True while the process has not ended."""
        return self.process.poll() is None


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How one run of the ``killswitch`` command went."""

    exit_code: int
    stdout: str
    stderr: str

    def document(self) -> dict[str, Any]:
        """Return the JSON document that the command printed.

        Raises:
            ProcessFault: it printed no JSON object.
        """
        try:
            body = json.loads(self.stdout)
        except ValueError as error:
            raise ProcessFault(f"the command printed no JSON ({error}); it said: {self.last_words}") from error
        if not isinstance(body, dict):
            raise ProcessFault("the command printed JSON that is not an object")
        return body

    @property
    def last_words(self) -> str:
        """The end of what it said on stderr, in one line."""
        return " ".join(self.stderr.split())[-LOG_TAIL_CHARS:] or "nothing"


class Pace:
    """How much slower than a quiet one this machine is; every limit of time is stretched by it.

    It is measured while the demo runs, by how long processes take to start, so that a limit follows what the machine
    does beside this. A limit is there to end a wait for what will not come; it is no judgement of speed.

    Attributes:
        factor: the slowest start so far, in terms of one on a quiet machine; never below 1.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def saw_start(self, took_s: float) -> None:
        """Learn from a process that took ``took_s`` seconds to start and say something."""
        self.factor = max(self.factor, took_s / QUIET_START_S)

    def stretch(self, within_s: float) -> float:
        """A limit in seconds of a quiet machine, in seconds of this one."""
        return min(within_s * self.factor, max(within_s, HARD_CAP_S))


class Children:
    """The processes of one demo.

    Attributes:
        pace: how slow the machine has been; each child that starts tells.
    """

    def __init__(self, folder: Path) -> None:
        """Keep logs in ``folder/logs``."""
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, Child] = {}
        self._ended_on_purpose: set[str] = set()
        self.pace = Pace()
        self._environment = {
            # The demo says all its settings itself: those of the caller's own cluster must not reach it.
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ENVIRONMENT_PREFIX)
        }

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self._logs

    @property
    def environment(self) -> Mapping[str, str]:
        """What every child has as its environment."""
        return self._environment

    def start(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        """Start ``python -m module``; stdout and stderr go to the log."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            child = Child(name, module, self._open(module, arguments, stdout=file, stderr=file), log)
        self._running[name] = child
        return child

    def start_talking(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        """Start a child whose first line on stdout is for :meth:`hear`; the rest goes to the log."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            child = Child(name, module, self._open(module, arguments, stdout=subprocess.PIPE, stderr=file), log)
        self._running[name] = child
        return child

    def hear(self, child: Child, *, within_s: float) -> dict[str, Any]:
        """Return the JSON object that a child of :meth:`start_talking` says first.

        Raises:
            ProcessFault: it ended, or said nothing or something else, within the time.
        """
        began_s = time.monotonic()
        stdout = child.process.stdout
        if stdout is None or stdout.closed:
            raise ProcessFault(f"{child.name} has said all that it had to say")
        try:
            ready, _, _ = select.select([stdout], [], [], within_s)
            line = stdout.readline() if ready else b""
        finally:
            stdout.close()
        self.pace.saw_start(time.monotonic() - began_s)
        try:
            return dict(json.loads(line))
        except (TypeError, ValueError):
            fault = f"{child.name} did not say its address within {within_s:g} s: {tail(child.log)}"
            raise ProcessFault(fault) from None

    def kill(self, name: str) -> None:
        """Kill a child at once (SIGKILL), as a crash would."""
        child = self._running[name]
        self._ended_on_purpose.add(name)
        child.process.kill()
        child.process.wait(STOP_TIMEOUT_S)

    def exit_code(self, name: str) -> int | None:
        """How a child ended, ``None`` while it runs."""
        return self._running[name].process.poll()

    def unexpectedly_ended(self) -> list[Child]:
        """Children that ended although nobody here ended them."""
        return [
            child for child in self._running.values() if not child.alive and child.name not in self._ended_on_purpose
        ]

    def stop(self, names: Sequence[str]) -> list[str]:
        """Ask children to end (SIGTERM), wait, then kill those that have not; return a sentence for each of those."""
        chosen = [self._running[name] for name in names if name in self._running]
        for child in chosen:
            self._ended_on_purpose.add(child.name)
            if child.alive:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(signal.SIGTERM)
        within_s = self.pace.stretch(STOP_TIMEOUT_S)
        deadline_s = time.monotonic() + within_s
        while any(child.alive for child in chosen) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        stubborn = [child for child in chosen if child.alive]
        for child in stubborn:
            child.process.kill()
            child.process.wait(STOP_TIMEOUT_S)
        return [
            f"{child.name} did not end within {within_s:.0f} s and was killed: {tail(child.log)}" for child in stubborn
        ]

    def names_of(self, module: str) -> list[str]:
        """Names of all children started so far that run ``module``."""
        return [child.name for child in self._running.values() if child.module == module]

    def run(self, module: str, arguments: Sequence[str], *, within_s: float) -> CommandResult:
        """Run ``python -m module`` to its end; ``within_s`` is for a quiet machine, and stretched by :attr:`pace`.

        Raises:
            ProcessFault: it did not end within the time; it was killed.
        """
        began_s = time.monotonic()
        process = self._open(module, arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        within_s = self.pace.stretch(within_s)
        in_time = True
        try:
            stdout, stderr = process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            in_time = False
            process.kill()
            stdout, stderr = process.communicate()
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.pace.saw_start(time.monotonic() - began_s)
        said = CommandResult(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
        words = f"{module} {' '.join(arguments)}"
        with (self._logs / "commands.log").open("a", encoding="utf-8") as file:
            file.write(f"$ {words}\n{said.stdout}{said.stderr}exit {said.exit_code}\n")
        if not in_time:
            fault = f"`{words}` did not end within {within_s:.0f} s and was killed; it said: {said.last_words}"
            raise ProcessFault(f"{fault}; {self.last_logged()}")
        return said

    def last_logged(self) -> str:
        """The line that says most: the newest error of any child, else the newest line; and who is still silent."""
        lines: list[tuple[bool, int, str]] = []
        silent: list[str] = []
        for child in self._running.values():
            text = child.log.read_text(encoding="utf-8", errors="replace").strip() if child.log.exists() else ""
            if not text:
                silent.append(child.name)
                continue
            complaint = [line for line in text.splitlines() if COMPLAINT.search(line)]
            newest = (complaint or text.splitlines())[-1]
            lines.append((bool(complaint), child.log.stat().st_mtime_ns, f"{child.name}: {newest[-LOG_TAIL_CHARS:]}"))
        said = f"last in the logs: {max(lines)[2]}" if lines else "the logs are empty"
        return said + (f"; nothing yet from {', '.join(silent)}" if silent else "")

    def _open(
        self, module: str, arguments: Sequence[str], *, stdout: IO[bytes] | int, stderr: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - this interpreter, our own modules, no shell
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=self._environment,
            process_group=0,
        )


def make_folder() -> Path:
    """Make a folder for one demo whose path is short enough for Unix sockets below it."""
    room = UNIX_SOCKET_PATH_MAX_BYTES - len("/ks-12345678/agent-of-a-node-with-a-name.sock")
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > room:
        base = "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it
    return Path(tempfile.mkdtemp(prefix="ks-", dir=base))


def remove_folder(folder: Path) -> None:
    """Remove a demo's folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Return free TCP ports of the loopback interface; another program may take one before it is used."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in listeners]


def tail(log: Path) -> str:
    """Return the end of a log in one line."""
    with contextlib.suppress(OSError):
        text = " ".join(log.read_text(encoding="utf-8", errors="replace").split())
        if text:
            return text[-LOG_TAIL_CHARS:]
    return "its log is empty"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file that is replaced atomically, empty while there is none."""
    with contextlib.suppress(OSError, ValueError):
        body = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(body, dict):
            return body
    return {}

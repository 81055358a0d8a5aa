"""A small cluster of real processes on loopback: an embedded etcd, agents, coordinators and the command.

Faults are verbs, and each checks that it took hold before the test goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from killswitch import Gate, GateError
from killswitch.cluster.cluster import AlreadyInitialised, Cluster, NotInitialised
from killswitch.cluster.records import UnreadableRecord
from killswitch.core.permit import Timing
from killswitch.stores import StoreError, StoreUnavailable, open_store
from killswitch.stores.etcd.embedded import EmbeddedStore
from tests.support.waiting import wait_until

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
TIMING = Timing(
    request_timeout_ms=250, renew_every_ms=300, permit_ttl_ms=1_200, lease_ttl_ms=3_000, leader_deadline_ms=2_000,
    backoff_cap_ms=300,
)  # fmt: skip
PATIENCE_MS = 2_000
"""How long the test itself waits for an answer of a store: a read that an agent gives up is no failure of a test."""
ENDS_WITHIN_S = 90
"""How long a command or a process that was told to end may take on a busy machine before it is said to hang."""
MEMORY = Path("/dev/shm")
FAULT_FACTOR = 3.0
"""How far past its bound a thing is waited for before a test fails; the machine may be slow, the promise is not."""


@dataclass
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one document on stdout."""
        loaded = json.loads(self.out)
        assert isinstance(loaded, dict)
        return loaded


@dataclass
class Process:
    """A daemon of the lab."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.popen.kill()
        self.popen.wait(timeout=ENDS_WITHIN_S)

    def terminate(self) -> int:
        """SIGTERM, and return its exit code."""
        self.popen.terminate()
        return self.popen.wait(timeout=ENDS_WITHIN_S)

    def pause(self) -> None:
        """SIGSTOP, and wait until the kernel says that it stands."""
        self.popen.send_signal(signal.SIGSTOP)
        wait_until(lambda: self.state() == "T", what=f"{self.name} to be stopped")

    def resume(self) -> None:
        """SIGCONT, and wait until it runs."""
        self.popen.send_signal(signal.SIGCONT)
        wait_until(lambda: self.state() != "T", what=f"{self.name} to run again")

    def state(self) -> str:
        """The kernel's letter for the process's state."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]


@dataclass
class Lab:
    """One cluster; everything that it started ends with :meth:`close`."""

    folder: Path
    rules: Mapping[str, Any] = field(default_factory=dict)
    agent_settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = "lab"
    stores_count: int = 1
    timing: Timing = TIMING

    def __post_init__(self) -> None:
        self.processes: dict[str, Process] = {}
        # In memory where there is a place for it, what the stores keep and what the agents remember: a disk that stalls
        # in a sync is no fault that a test here asks for.
        self.data = Path(tempfile.mkdtemp(prefix="killswitch-lab-", dir=MEMORY if MEMORY.is_dir() else self.folder))
        self.stores = [self._open_store(number) for number in range(self.stores_count)]
        self.clusters = [Cluster(store, self.name, timing=self.timing) for store in self.stores]
        # The first of each is the one that a test with a single store means.
        self.store, self.cluster = self.stores[0], self.clusters[0]
        self.config = self.folder / "killswitch.json"  # JSON is YAML
        self.set_agent_settings(self.agent_settings)

    def set_agent_settings(self, agent_settings: Mapping[str, Any]) -> None:
        """Write the settings; agents that start from now on have these."""
        settings = {
            "timing": {key: getattr(self.timing, key) for key in self.timing.__dataclass_fields__},
            "coordinator": {"rules": dict(self.rules)},
            "agent": dict(agent_settings),
        }
        self.config.write_text(json.dumps(settings))

    def _open_store(self, number: int) -> EmbeddedStore:
        store = open_store(f"embedded://{self.data / str(number)}", request_timeout_ms=PATIENCE_MS)
        assert isinstance(store, EmbeddedStore)
        return store

    # -- the command ---------------------------------------------------------------------------------------------

    def initialise(self) -> None:
        """Write the first flag; a store that has only just started is asked again when its answer is late.

        Not by the command, which other tests show: its start would be a tenth of all the work of these tests.
        """
        wait_until(lambda: all(map(_begun, self.clusters)), within_s=30, what="the cluster to begin")

    def arguments(self, *words: str, only: bool = False) -> list[str]:
        """The command line of a call of the command; with ``only`` the words name the store themselves."""
        stores = [] if only else [word for store in self.stores for word in ("--store", store.client_url)]
        return [
            sys.executable, "-m", "killswitch", "--config", str(self.config), *stores, "--cluster", self.name, *words,
        ]  # fmt: skip

    def run(self, *words: str, timeout_s: float = ENDS_WITHIN_S, expect: int | None = 0, only: bool = False) -> Ran:
        """Call the command and return what it printed."""
        done = subprocess.run(
            self.arguments(*words, only=only), capture_output=True, text=True, timeout=timeout_s, cwd=ROOT, check=False,
            env=clean_environment(),
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        if expect is not None:
            assert done.returncode == expect, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Ran(done.returncode, done.stdout, done.stderr)

    def freeze(self, reason: str = "a test", *more: str, expect: int | None = 0) -> Ran:
        """Freeze by the command."""
        return self.run("-o", "json", "freeze", "--reason", reason, *more, expect=expect)

    def release(self, expect: int | None = 0) -> Ran:
        """Release everything at the current epoch by the command."""
        epochs = [word for c in self.clusters for word in ("--epoch", str(c.read_flag().flag.epoch))]
        return self.run("-o", "json", "release", *epochs, "--reason", "a test", "--yes", expect=expect)

    # -- daemons -------------------------------------------------------------------------------------------------

    def start(self, name: str, *words: str, environment: Mapping[str, str] | None = None) -> Process:
        """Start a daemon of the command in the background."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            popen = subprocess.Popen(
                self.arguments(*words), stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=ROOT,
                env={**clean_environment(), **(environment or {})},
            )  # fmt: skip
        self.processes[name] = Process(name, popen, log)
        return self.processes[name]

    def start_agent(self, node: str, *, wait: bool = True, environment: Mapping[str, str] | None = None) -> Process:
        """Start a node's agent and wait until it holds a permit or has a cause on its gate from the flag."""
        process = self.start(node, *self.agent_words(node), environment=environment)
        if wait:
            # This very process: an earlier one's lease, permit and ack may still be there.
            wait_until(lambda: self.is_live(node, process.pid), within_s=15, what=f"{node} to join")
            wait_until(lambda: self.has_permit(node, process.pid), within_s=15, what=f"{node} to hold a permit")
            # Until it was judged once, a node's gate is closed.
            wait_until(lambda: self.is_open(node) or self.is_frozen(), within_s=15, what=f"{node} to be judged")
        return process

    def agent_words(self, node: str, gate_of: str | None = None) -> list[str]:
        """The words that start a node's agent."""
        gate = self.gate_path(gate_of or node)
        return [
            "agent", "run", "--node", node, "--gate", str(gate), "--link", str(self.folder / f"{gate.stem}.sock"),
            "--state-dir", str(self.state_dir(gate.stem)), "--http-port", "0",
        ]  # fmt: skip

    def state_dir(self, node: str) -> Path:
        """Where a node's agent keeps what it must remember."""
        return self.data / f"{node}.state"

    def start_coordinator(self, name: str) -> Process:
        """Start a coordinator."""
        return self.start(name, "coordinator", "run", "--id", name, "--http-port", "0")

    # -- gates ---------------------------------------------------------------------------------------------------

    def gate_path(self, node: str) -> Path:
        """Where a node's gate page is."""
        return self.folder / f"{node}.gate"

    def is_open(self, node: str) -> bool:
        """As a router would see it."""
        try:
            with Gate.open(self.gate_path(node)) as gate:
                return gate.allows("BTCUSDT")
        except GateError:
            return False

    def ask(self, read: Callable[[Cluster], T]) -> T:
        """Read through the cluster's client; on a busy machine an answer may come too late, and is asked for again."""
        answers: list[T] = []

        def asked() -> bool:
            with contextlib.suppress(StoreUnavailable):
                answers.append(read(self.cluster))
            return bool(answers)

        wait_until(asked, what="an answer of the store")
        return answers[0]

    def is_frozen(self) -> bool:
        """The flag of a store freezes something, or cannot say that it does not."""
        try:
            return any(cluster.read_flag().flag.freezes for cluster in self.clusters)
        except StoreUnavailable:
            return False  # not known: whoever waits asks again
        except (NotInitialised, UnreadableRecord, StoreError):
            return True

    def is_live(self, node: str, pid: int) -> bool:
        """The node's lease is held by this process."""
        record = self.ask(lambda cluster: cluster.membership()).live.get(node)
        return record is not None and record.pid == pid

    def gate_deadline_ns(self, node: str) -> int:
        """Until when the node's permit lasts, as its page says."""
        with Gate.open(self.gate_path(node)) as gate:
            return gate.snapshot().permit_deadline_ns

    def has_permit(self, node: str, pid: int | None = None) -> bool:
        """The gate has a permit that has not run out, frozen or not, written by this process."""
        with contextlib.suppress(GateError), Gate.open(self.gate_path(node)) as gate:
            state = gate.snapshot()
            return state.permit_deadline_ns > self.cluster.clock() and pid in (None, state.writer_pid)
        return False

    # -- faults --------------------------------------------------------------------------------------------------

    def kill_etcd(self) -> int:
        """SIGKILL the store's server and return the pid that died; its guard starts another."""
        pid = self.store.etcd_pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), what="etcd to die")
        return pid

    def pause_etcd(self, number: int = 0) -> int:
        """SIGSTOP a store's server, and wait until the kernel says that it stands."""
        pid = self.stores[number].etcd_pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", what="the pause")
        return pid

    def resume_etcd(self, pid: int) -> None:
        """SIGCONT it."""
        os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End everything that this lab started."""
        for process in self.processes.values():
            if process.popen.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.popen.send_signal(signal.SIGCONT)
                process.popen.kill()
                process.popen.wait(timeout=ENDS_WITHIN_S)
        for store in self.stores:
            store.close()
        shutil.rmtree(self.data, ignore_errors=True)

    def logs(self) -> str:
        """The logs of all daemons, for a failure's message."""
        return "\n".join(f"== {p.name}\n{p.log.read_text()[-3000:]}" for p in self.processes.values())


def clean_environment() -> dict[str, str]:
    """The environment without settings of whoever runs the tests, and without the width of their terminal."""
    return {key: value for key, value in os.environ.items() if not key.startswith("KILLSWITCH_") and key != "COLUMNS"}


def _begun(cluster: Cluster) -> bool:
    try:
        cluster.initialise(actor="operator:test", reason="a test")
    except AlreadyInitialised:
        return True
    except StoreError:
        return False
    return True


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True

"""What can go wrong, as verbs. Each checks that it took hold before it returns, and raises when it did not."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from killswitch.clock import now_ns
from killswitch.stores import open_store
from tests.containers.lab import (
    FAKE_CLOCK_FILE,
    FAKE_CLOCK_NODE,
    SLOW_LINK_FILE,
    SLOW_NODE,
    STATE_DIR,
    TRAPPED_NODE,
    VENUE_PORT,
    Lab,
    run_volume,
)
from tests.containers.pods import PYTHON, DidNotTakeHold, Pod, Process, in_parallel, run_in, took_hold

MEASUREMENTS = 3
CLOCK_OFF_BY_AT_MOST_S = 3.0
"""A report is up to a second old, and this machine may be slow to read it."""


class Faults:
    """The faults of one lab; :meth:`heal_all` takes back what a scenario has left."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._undo: list[Callable[[], object]] = []
        self._twins = itertools.count(1)
        self._disks: dict[str, str] = {}

    def heal_all(self) -> None:
        """Take back every fault that still holds, the newest first."""
        while self._undo:
            self._undo.pop()()

    # -- networks ----------------------------------------------------------------------------------------------------

    def cut(self, name: str) -> None:
        """Cut a node or a coordinator off from the store; nothing is refused, it only goes silent. A node still
        reaches the venue.
        """
        pod = self._lab.engine.pods[name]
        if not self._reaches_store(pod):
            raise DidNotTakeHold(f"{name} was cut off from the store before it was cut")
        self._undo.append(lambda: self.heal(name))
        pod.unplug("control")
        if self._reaches_store(pod):
            raise DidNotTakeHold(f"{name} still reaches the store")
        if name in self._lab.nodes and not pod.reaches(self._lab.venue_ip, VENUE_PORT):
            raise DidNotTakeHold(f"{name} was to be cut off from the store alone, and does not reach the venue either")

    def heal(self, name: str) -> None:
        """Connect it again."""
        pod = self._lab.engine.pods[name]
        pod.plug("control")
        took_hold(lambda: self._reaches_store(pod), f"{name} to reach the store again")

    def slow(self, node: str, ms: int) -> float:
        """Make the line between a node and the store longer by this many milliseconds for a round trip.

        Returns:
            the time of a read by that line, in milliseconds.

        Raises:
            ValueError: the node's line cannot be made slow.
            DidNotTakeHold: reads by that line are not slower.
        """
        must_be(node, SLOW_NODE, "a line to the store that can be made slow")
        self._undo.append(lambda: self.hurry(node))
        self._set_delay(ms)
        measured_ms = self._read_by_slow_line_ms()
        if measured_ms < ms:
            raise DidNotTakeHold(f"a read by the slow line takes {measured_ms:.0f} ms and should take {ms} ms and more")
        return measured_ms

    def hurry(self, node: str) -> None:
        """Make the slow line a quick one again.

        Raises:
            ValueError: the node's line is never slow.
            DidNotTakeHold: reads by that line take as long as before.
        """
        must_be(node, SLOW_NODE, "a line to the store that can be made slow")
        before_ms = float(self._lab.engine.pods["line"].exec("cat", SLOW_LINK_FILE))
        self._set_delay(0)
        if before_ms:
            took_hold(lambda: self._read_by_slow_line_ms() < before_ms, f"a read in less than {before_ms:.0f} ms")

    def _set_delay(self, ms: int) -> None:
        self._lab.engine.pods["line"].write(SLOW_LINK_FILE, str(ms))

    def _read_by_slow_line_ms(self) -> float:
        times = []
        with open_store(self._lab.servers.url(self._lab.slow_ports), request_timeout_ms=5_000) as store:
            for _ in range(MEASUREMENTS):
                began_ns = now_ns()
                store.read(self._lab.cluster.keys.flag)
                times.append((now_ns() - began_ns) / 1e6)
        return min(times)

    def _reaches_store(self, pod: Pod) -> bool:
        """Any server of it, all asked at the same time."""
        ports = self._lab.servers.ports if pod.name != SLOW_NODE else self._lab.slow_ports
        code = f"""
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def answers(port):
    try:
        socket.create_connection(port, 0.4).close()
    except OSError:
        return False
    return True
with ThreadPoolExecutor() as pool:
    sys.exit(0 if any(pool.map(answers, {ports!r})) else 3)
"""
        return run_in(pod.holder, (PYTHON, "-c", code)).code == 0

    # -- processes ---------------------------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """SIGKILL."""
        self._undo.append(process.start)
        process.kill()

    def restart(self, process: Process) -> None:
        """Start a process that was killed."""
        process.start()

    def pause(self, *processes: Process) -> None:
        """Freeze processes where they stand, sockets and shared memory included."""
        for process in processes:
            self._undo.append(process.resume)
            process.pause()

    def resume(self, *processes: Process) -> None:
        """Let them go on."""
        for process in processes:
            process.resume()

    def stop(self, *processes: Process) -> None:
        """SIGSTOP, as a person or a debugger would."""
        for process in processes:
            self._undo.append(process.go_on)
            process.stop()

    def wake(self, *processes: Process) -> None:
        """SIGCONT."""
        for process in processes:
            process.go_on()

    # -- whole nodes -------------------------------------------------------------------------------------------------

    def pause_node(self, node: str) -> None:
        """Freeze a node as a machine that is suspended: agent and routers stand where they are, its memory is kept."""
        self._undo.append(lambda: self.resume_node(node))
        in_parallel([process.pause for process in self._lab.processes_of(node)])

    def resume_node(self, node: str) -> None:
        """Let every process of a node go on."""
        in_parallel([process.resume for process in self._lab.processes_of(node)])

    def power_off(self, node: str) -> None:
        """Take the power from a node: its processes, shared memory, sockets and interfaces are gone, its disk is kept.

        Raises:
            DidNotTakeHold: the machine is still there, or its agent had no journal that could be kept.
        """
        engine, pod = self._lab.engine, self._lab.engine.pods[node]
        self._undo.append(lambda: self.power_on(node))
        in_parallel([process.kill for process in pod.processes.values() if process.runs])
        self._disks[node] = journals_of(pod)
        if not self._disks[node]:
            raise DidNotTakeHold(f"{node} has no journal in {STATE_DIR}, by which its disk could be told again")
        holder = Process(f"{node}/its machine", pod.holder)
        pids = holder.pids()
        engine.remove_pod(node, forget=[run_volume(node)])
        took_hold(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), f"{holder.name}: off, pids {pids} gone"
        )

    def power_on(self, node: str) -> None:
        """Start a node that has no power, on the disk that it had. No error when it has some.

        Raises:
            DidNotTakeHold: its disk is not what it was, or its shared memory has outlived it.
        """
        if node not in self._lab.engine.pods:
            pod = self._lab.make_node(node)
            if journals_of(pod) != self._disks[node]:
                raise DidNotTakeHold(f"{node} has come back without the journal that it had")
            if left := pod.exec("find", "/dev/shm", "/run/killswitch", "-type", "f", "-o", "-type", "s"):
                raise DidNotTakeHold(f"{node} was off, and still has {left}")
        if not self._lab.processes_of(node):
            self._lab.start_node(node)

    def restart_node(self, node: str) -> None:
        """Take a node's power and give it back: a machine that reboots."""
        self.power_off(node)
        self.power_on(node)

    @contextlib.contextmanager
    def twin_of(self, node: str) -> Iterator[Process]:
        """Start a second pod on this machine whose agent has the name of a node."""
        pod = self._lab.engine.pod(f"{node}-twin-{next(self._twins)}", ["control"])
        twin = pod.start("agent", ["agent", "run", "--node", node], environment=self._lab.environment())
        try:
            yield twin
        finally:
            if twin.runs:
                twin.kill()

    def stop_router_at(self, node: str, point: str) -> Process:
        """Stop a node's router by SIGSTOP at a point of its next order: ``before-second-look`` or
        ``after-second-look``. Returns once the kernel says that it stands.

        Raises:
            ValueError: no trap can be set on the node.
            DidNotTakeHold: the router did not stop.
        """
        must_be(node, TRAPPED_NODE, "a router that can be stopped at a point of its next order")
        router = self._lab.router(self._lab.routers(node)[0])
        self._undo.append(lambda: self._take_trap_away(router))
        self._lab.engine.pods[TRAPPED_NODE].write("/dev/shm/trap", point)
        took_hold(lambda: router.states("T"), f"{router.name} to stop {point}")
        return router

    def _take_trap_away(self, router: Process) -> None:
        self._lab.engine.pods[TRAPPED_NODE].exec("rm", "-f", "/dev/shm/trap")
        router.go_on()

    # -- the store ---------------------------------------------------------------------------------------------------

    def stop_store_leader(self) -> str:
        """Kill the member of the store that leads; return its name."""
        name, member = self._store_leader()
        self.kill(member)
        return name

    def pause_store_leader(self) -> str:
        """Freeze the member of the store that leads; return its name."""
        name, member = self._store_leader()
        self.pause(member)
        return name

    def stop_store_majority(self) -> None:
        """Kill two of three members."""
        for member in list(self._servers.members.values())[:2]:
            self.kill(member)

    def lose_store_data(self) -> None:
        """Empty disks."""
        self._servers.lose_data()

    def restore_store(self) -> None:
        """Set the store back to the snapshot that was saved."""
        self._servers.restore_snapshot()

    def stop_replicating(self) -> None:
        """From now on the replica misses what is written."""
        self._servers.stop_replicating()

    def fail_over(self, *, forgets: str = "", keeps: str = "") -> None:
        """Lose the primary, and have the replica promoted, which never heard of one freeze, or which has another."""
        self._servers.fail_over(forgets=forgets, keeps=keeps)

    @property
    def _servers(self) -> Any:
        return self._lab.servers

    def _store_leader(self) -> tuple[str, Process]:
        name = self._servers.leader()
        if name is None:
            raise DidNotTakeHold("the store has no leader that could be stopped")
        return name, self._servers.members[name]

    # -- clocks ------------------------------------------------------------------------------------------------------

    def step_wall_clock(self, node: str, seconds: int) -> None:
        """Step a node's wall clock, for its agent and its routers.

        Returns once the running agent has written a time that is off by so much, and its routers read the same clock.

        Raises:
            ValueError: the node has the clock of this machine.
            DidNotTakeHold: the agent's own time is not off by so much, or a router does not look at the stepped clock.
        """
        must_be(node, FAKE_CLOCK_NODE, "a wall clock of its own")
        self._undo.append(lambda: self._set_clock(node, 0))
        self._set_clock(node, seconds)

    def _set_clock(self, node: str, seconds: int) -> None:
        self._lab.engine.pods[node].write(FAKE_CLOCK_FILE, f"{seconds:+d}")
        took_hold(
            lambda: abs(self._report_is_off_by_s(node) - seconds) < CLOCK_OFF_BY_AT_MOST_S,
            f"{node}'s agent to report with a wall clock that is {seconds} s off",
        )
        # A router writes no wall-clock time anywhere; that its process reads the file at every look is libfaketime's.
        for router in map(self._lab.router, self._lab.routers(node)):
            if not router.has_loaded("libfaketime"):
                raise DidNotTakeHold(f"{router.name} runs without libfaketime, so its wall clock is this machine's")

    def _report_is_off_by_s(self, node: str) -> float:
        at = self._lab.cluster.membership().reports[node].at
        return dt.datetime.fromisoformat(at).timestamp() - time.time()


def must_be(node: str, only: str, lever: str) -> None:
    """Refuse a fault on a node that was not built for it.

    Raises:
        ValueError: says which node has what is asked for.
    """
    if node != only:
        raise ValueError(
            f"{node} does not have {lever}; {only} does: name that one, or give {node} one in tests/containers/lab.py"
        )


def journals_of(pod: Pod) -> str:
    """Names and hashes of the journals on a node's disk; empty when there are none."""
    return pod.exec("find", STATE_DIR, "-name", "*.journal", "-exec", "sha256sum", "{}", "+")

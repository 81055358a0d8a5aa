"""What can go wrong, as verbs. Each checks that it took hold before it returns, and raises when it did not."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from killswitch.clock import now_ns
from killswitch.stores import open_store
from tests.containers.lab import (
    FAKE_CLOCK_FILE,
    FAKE_CLOCK_NODE,
    SLOW_LINK_FILE,
    SLOW_NODE,
    TRAPPED_NODE,
    VENUE_PORT,
    Lab,
)
from tests.containers.pods import PYTHON, DidNotTakeHold, Pod, Process, run_in, took_hold

MEASUREMENTS = 3


class Faults:
    """The faults of one lab; :meth:`heal_all` takes back what a scenario has left."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._undo: list[Callable[[], object]] = []
        self._twins = itertools.count(1)

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

    def slow(self, ms: int) -> float:
        """Make the line between the slow node and the store longer by this many milliseconds for a round trip.

        Returns:
            the time of a read by that line, in milliseconds.

        Raises:
            DidNotTakeHold: reads by that line are not slower.
        """
        self._undo.append(self.hurry)
        self._set_delay(ms)
        measured_ms = self._read_by_slow_line_ms()
        if measured_ms < ms:
            raise DidNotTakeHold(f"a read by the slow line takes {measured_ms:.0f} ms and should take {ms} ms and more")
        return measured_ms

    def hurry(self) -> None:
        """Make the slow line a quick one again."""
        self._set_delay(0)

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

    def stop_router_at(self, point: str) -> Process:
        """Stop the trapped node's router by SIGSTOP at a point of its next order: ``before-second-look`` or
        ``after-second-look``. Returns once the kernel says that it stands.
        """
        router = self._lab.router(self._lab.routers(TRAPPED_NODE)[0])
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

    def fail_over(self, *, forgets: str) -> None:
        """Lose the primary, and have the replica promoted, which never heard of this freeze."""
        self._servers.fail_over(forgets=forgets)

    @property
    def _servers(self) -> Any:
        return self._lab.servers

    def _store_leader(self) -> tuple[str, Process]:
        name = self._servers.leader()
        if name is None:
            raise DidNotTakeHold("the store has no leader that could be stopped")
        return name, self._servers.members[name]

    # -- clocks ------------------------------------------------------------------------------------------------------

    def step_wall_clock(self, seconds: int) -> None:
        """Step the wall clock of the node that has one of its own, for its agent and its routers."""
        node = FAKE_CLOCK_NODE
        self._undo.append(lambda: self._lab.engine.pods[node].write(FAKE_CLOCK_FILE, "+0"))
        self._lab.engine.pods[node].write(FAKE_CLOCK_FILE, f"{seconds:+d}")
        for process in (self._lab.agent(node), *(self._lab.router(name) for name in self._lab.routers(node))):
            off_s = int(process.exec("date", "+%s")) - time.time()
            if abs(off_s - seconds) > 2:
                raise DidNotTakeHold(f"{process.name}: the wall clock is off by {off_s:.0f} s, not by {seconds} s")

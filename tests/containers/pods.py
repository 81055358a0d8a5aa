"""Containers as a firm runs them: pods whose processes share network, shared memory and volumes; and their networks.

A pod's holder keeps its addresses and its shared memory while processes in it are killed and started again. The tests
look at the kernel and at the containers' addresses directly, so the Docker daemon must run on this machine.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, NotFound
from docker.models.containers import Container

from killswitch.clock import now_ns
from tests.containers.leftovers import labels, remove_network
from tests.images.choose import give_up
from tests.support.waiting import wait_until

HOLD = ["sleep", "infinity"]
PYTHON = "/opt/killswitch/bin/python"
START_THREADS = 4
TAKES_HOLD_WITHIN_S = 10.0
LOG_LINES = 25


class DidNotTakeHold(AssertionError):
    """A fault was asked for and did not happen; the scenario that follows would prove nothing."""


@dataclass(frozen=True)
class Ran:
    """A command that has ended in a container."""

    code: int
    out: str
    err: str
    returned_ns: int


class Engine:
    """The Docker daemon, with everything that one lab has made in it.

    Args:
        client: of the daemon.
        image: the lab's image.
    """

    def __init__(self, client: docker.DockerClient, image: str) -> None:
        self.client = client
        self.image = image
        self.run_id = f"killswitch-lab-{secrets.token_hex(3)}"
        self._networks: dict[str, Any] = {}
        self._containers: list[Container] = []
        self._volumes: list[Any] = []
        self.pods: dict[str, Pod] = {}
        self._switch: Container | None = None

    def network(self, name: str) -> Any:
        """A private network, made when it is first asked for."""
        if name not in self._networks:
            self._networks[name] = self.client.networks.create(
                f"{self.run_id}-{name}", driver="bridge", internal=True, labels=labels()
            )
        return self._networks[name]

    def pod(self, name: str, networks: Sequence[str], *, volumes: Mapping[str, str] | None = None) -> Pod:
        """Start a pod: its holder, its volumes by mount point, its interfaces.

        Args:
            name: unique in the lab.
            networks: where it is reachable.
            volumes: name of each volume by where it is mounted in every process of the pod.
        """
        mounts = {}
        for mount, volume in (volumes or {}).items():
            full = f"{self.run_id}-{volume}"
            self._volumes.append(self.client.volumes.create(full, labels=labels()))
            mounts[full] = {"bind": mount, "mode": "rw"}
        first, *others = (self.network(network) for network in networks)
        holder = self.run(
            name, self.image, entrypoint=HOLD, network=first.name, ipc_mode="shareable", shm_size="512m", volumes=mounts
        )
        for other in others:
            other.connect(holder)
        self.pods[name] = Pod(self, name, holder, mounts)
        return self.pods[name]

    def run(self, name: str, image: str, **options: Any) -> Container:
        """Start a container that goes with the lab."""
        container = self.client.containers.create(image, name=f"{self.run_id}-{name}", labels=labels(), **options)
        self._containers.append(container)
        container.start()
        return container

    def remove_pod(self, name: str, *, forget: Iterable[str] = ()) -> None:
        """Kill and remove everything of a pod, its holder and with it its shared memory and its interfaces included.

        Args:
            name: of the pod.
            forget: volumes that go with it; the others are kept, as disks are.
        """
        pod = self.pods[name]
        gone = [*(process.container for process in pod.processes.values()), pod.holder]
        for container in gone:
            container.remove(force=True, v=True)
            self._containers.remove(container)
        for volume in forget:
            self.client.volumes.get(f"{self.run_id}-{volume}").remove()
        del self.pods[name]

    @property
    def switch(self) -> Container:
        """A container in the host's network that plugs and unplugs interfaces of pods."""
        if self._switch is None:
            self._switch = self.run(
                "switch", self.image, entrypoint=HOLD, network_mode="host", cap_add=["NET_ADMIN"], user="root"
            )
        return self._switch

    def close(self) -> None:
        """Remove everything that was made, whatever state it is in."""

        def remove(container: Container) -> None:
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)

        in_parallel([lambda container=container: remove(container) for container in reversed(self._containers)])
        for network in self._networks.values():
            remove_network(network)
        for volume in self._volumes:
            with contextlib.suppress(NotFound):
                volume.remove()

    def logs(self) -> str:
        """The last lines of every process of every pod."""
        return "\n".join(process.last_lines() for pod in self.pods.values() for process in pod.processes.values())


class Pod:
    """One machine of the cluster, as far as its processes can tell."""

    def __init__(self, engine: Engine, name: str, holder: Container, mounts: Mapping[str, Any]) -> None:
        self._engine = engine
        self._mounts = mounts
        self.name = name
        self.holder = holder
        self.processes: dict[str, Process] = {}
        self._ports: dict[str, str] = {}

    def ip(self, network: str) -> str:
        """Its address in a network."""
        self.holder.reload()
        return str(self._attachment(network)["IPAddress"])

    def start(
        self, name: str, words: Sequence[str], *, environment: Mapping[str, str] | None = None, **options: Any
    ) -> Process:
        """Start a process in the pod, in a container of its own that shares what the pod has.

        Args:
            name: unique in the pod.
            words: arguments of the image's entry point.
            environment: its environment.
            options: further ones of the container, such as another ``image`` or ``entrypoint``.
        """
        shared = f"container:{self.holder.id}"
        container = self._engine.run(
            f"{self.name}-{name}", options.pop("image", self._engine.image), command=list(words),
            environment=dict(environment or {}), network_mode=shared, ipc_mode=shared, volumes=dict(self._mounts),
            **options,
        )  # fmt: skip
        self.processes[name] = Process(f"{self.name}/{name}", container)
        return self.processes[name]

    def exec(self, *words: str, user: str = "") -> str:
        """Run a command in the pod's holder and return what it printed; it must succeed."""
        return must(run_in(self.holder, words, user=user), f"{self.name}: {shlex.join(words)}")

    def write(self, path: str, text: str) -> None:
        """Replace a file in the pod, so that a reader never sees half of it."""
        self.exec("sh", "-c", f"printf %s {shlex.quote(text)} >{path}.new && mv {path}.new {path}")

    def reaches(self, host: str, port: int, *, within_s: float = 0.7) -> bool:
        """Tell whether a TCP connection from inside the pod is accepted."""
        code = f"import socket; socket.create_connection(({host!r}, {port}), {within_s}).close()"
        return run_in(self.holder, (PYTHON, "-c", code)).code == 0

    def unplug(self, network: str) -> None:
        """Take the cable out at the far end: the interface stays up, and nothing comes or goes, nor is refused."""
        port = self._port(network)
        must(run_in(self._engine.switch, ("ip", "link", "set", port, "nomaster")), f"unplugging {self.name}")

    def plug(self, network: str) -> None:
        """Put the cable back."""
        port, bridge = self._port(network), f"br-{self._engine.network(network).id[:12]}"
        must(run_in(self._engine.switch, ("ip", "link", "set", port, "master", bridge)), f"plugging {self.name}")

    def _attachment(self, network: str) -> dict[str, Any]:
        attached: dict[str, Any] = self.holder.attrs["NetworkSettings"]["Networks"]
        return dict(attached[self._engine.network(network).name])

    def _port(self, network: str) -> str:
        """Name of the far end of the pod's cable, in the host's network."""
        if network not in self._ports:
            self.holder.reload()
            mac = self._attachment(network)["MacAddress"]
            inside = self.exec("sh", "-c", "for i in /sys/class/net/*; do echo $(cat $i/address $i/iflink); done")
            index = next(line.split()[1] for line in inside.splitlines() if line.startswith(mac))
            words = ("sh", "-c", "for i in /sys/class/net/*; do echo $(cat $i/ifindex) ${i##*/}; done")
            outside = must(run_in(self._engine.switch, words), "listing the host's interfaces")
            self._ports[network] = next(line.split()[1] for line in outside.splitlines() if line.split()[0] == index)
        return self._ports[network]


class Process:
    """One process of a pod. Its faults return when the kernel says that they have happened."""

    def __init__(self, name: str, container: Container) -> None:
        self.name = name
        self.container = container

    @property
    def runs(self) -> bool:
        """True while it has not ended; a paused one runs."""
        return self._state()["Running"] is True

    @property
    def exit_code(self) -> int | None:
        """How it ended, ``None`` while it runs."""
        state = self._state()
        return None if state["Running"] else int(state["ExitCode"])

    def kill(self) -> None:
        """SIGKILL.

        Raises:
            DidNotTakeHold: the process is still there.
        """
        pid = self._pid()
        self.container.kill()
        took_hold(lambda: not self.runs and not Path(f"/proc/{pid}").exists(), f"{self.name}: killed, pid {pid} gone")

    def start(self) -> None:
        """Start it again with what its container holds. No error when it runs."""
        if not self.runs:
            self.container.start()
        took_hold(lambda: self.runs, f"{self.name}: runs")

    def terminate(self) -> int:
        """SIGTERM, as an orchestrator would; return the exit code."""
        self.container.stop(timeout=15)
        code = self.exit_code
        if code is None:
            raise DidNotTakeHold(f"{self.name} still runs")
        return code

    def pause(self) -> None:
        """Freeze it where it stands.

        Raises:
            DidNotTakeHold: the kernel does not call its control group frozen.
        """
        self.container.pause()
        took_hold(self._is_frozen, f"{self.name}: frozen by the kernel")

    def resume(self) -> None:
        """Let it go on. No error when it is not paused, or dead."""
        if not self.runs:
            return
        if self._state()["Paused"]:
            self.container.unpause()
        took_hold(lambda: not self._state()["Paused"] and not self._is_frozen(), f"{self.name}: goes on")

    def stop(self) -> None:
        """SIGSTOP: its sockets and its shared memory stay as they are.

        Raises:
            DidNotTakeHold: the kernel does not say that it is stopped.
        """
        self.signal("STOP")
        took_hold(lambda: self.states("T"), f"{self.name}: stopped by a signal")

    def go_on(self) -> None:
        """SIGCONT. No error when it is not stopped, or dead."""
        if self.runs and self.states("T"):
            self.signal("CONT")
            took_hold(lambda: not self.states("T"), f"{self.name}: goes on after a signal")

    def signal(self, name: str) -> None:
        """Send a signal that is not to be handled, such as ``STOP``."""
        # Number 1 of a container hears it only from outside; below an init of its own, it is to be found only inside.
        if self.container.attrs["HostConfig"].get("Init"):
            self.exec("sh", "-c", f"kill -s {name} -- -1")
        else:
            self.container.kill(signal=f"SIG{name}")

    def last_lines(self) -> str:
        """The end of its log."""
        try:
            text = self.container.logs(tail=LOG_LINES).decode(errors="replace")
        except DockerException as error:
            text = f"its log cannot be had: {error}"
        return f"== {self.name}\n{text}"

    def log(self) -> str:
        """All that it has said."""
        return str(self.container.logs().decode(errors="replace"))

    def exec(self, *words: str, user: str = "") -> str:
        """Run a command beside it, with its environment; it must succeed."""
        return must(run_in(self.container, words, user=user), f"{self.name}: {shlex.join(words)}")

    def pids(self) -> list[int]:
        """Of the process and its children, as this machine numbers them; empty when it has ended."""
        pid = self._pid()
        return [pid, *children_of(pid)] if pid else []

    def is_here(self, words: Sequence[str]) -> bool:
        """Tell whether this machine's kernel says that the process runs these words, as Docker says that it does."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self._pid()}/cmdline").read_bytes().decode().split("\0")[:-1] == list(words)
        return False

    def has_loaded(self, library: str) -> bool:
        """Tell whether the process or a child of it has a library in its memory, by the kernel's word."""
        maps = (Path(f"/proc/{pid}/maps") for pid in self.pids())
        return any(library in path.read_text(errors="replace") for path in maps if path.exists())

    def states(self, letter: str) -> bool:
        """Tell whether the kernel gives the process this letter: ``T`` is stopped by a signal."""
        return any(letter == state for state in self._kernel_states())

    def _kernel_states(self) -> Iterable[str]:
        """Letters of the process and its children: a process below an init of its own is one of those."""
        for entry in self.pids():
            with contextlib.suppress(OSError):
                yield Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]

    def _is_frozen(self) -> bool:
        for line in Path(f"/proc/{self._pid()}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "freezer":
                return (Path("/sys/fs/cgroup/freezer" + path) / "freezer.state").read_text().strip() == "FROZEN"
            if not controllers:
                with contextlib.suppress(OSError):
                    return "frozen 1" in (Path("/sys/fs/cgroup" + path) / "cgroup.events").read_text()
        return False

    def _pid(self) -> int:
        return int(self._state()["Pid"])

    def _state(self) -> dict[str, Any]:
        self.container.reload()
        return dict(self.container.attrs["State"])


def require_near_daemon(engine: Engine) -> None:
    """Skip, or fail where Docker is required, when the daemon's processes are not to be seen from here."""
    started = Process("a first container", engine.run("near", engine.image, entrypoint=HOLD))
    try:
        took_hold(lambda: started.is_here(HOLD), "the process of a container to be seen by this one")
    except DidNotTakeHold:
        give_up(
            "the Docker daemon runs on another machine or in another process namespace, and the scenarios look at the "
            "kernel and at the containers' own addresses: unset DOCKER_HOST and the Docker context, or run the tests "
            "on the machine of the daemon"
        )


def children_of(pid: int) -> list[int]:
    """Direct children of a process."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def took_hold(check: Callable[[], bool], what: str, *, within_s: float | None = None) -> None:
    """Wait until a fault has happened.

    Raises:
        DidNotTakeHold: it has not, within the time.
    """
    try:
        wait_until(check, within_s=within_s or TAKES_HOLD_WITHIN_S, what=what)
    except AssertionError as error:
        raise DidNotTakeHold(str(error)) from error


def run_in(container: Container, words: Sequence[str], *, user: str = "", environment: Any = None) -> Ran:
    """Run a command in a container."""
    code, (out, err) = container.exec_run(list(words), demux=True, user=user, environment=environment)
    said, complained = ((text or b"").decode(errors="replace") for text in (out, err))
    return Ran(code, said, complained, now_ns())


def must(ran: Ran, what: str) -> str:
    """What a command printed.

    Raises:
        AssertionError: it failed.
    """
    assert ran.code == 0, f"{what}: exit {ran.code}\n{ran.out}\n{ran.err}"
    return ran.out


def in_parallel(jobs: Iterable[Callable[[], object]]) -> None:
    """Do all of it, a few at a time, and raise the first error afterwards."""
    with ThreadPoolExecutor(START_THREADS) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()

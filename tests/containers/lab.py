"""A whole cluster in containers: a store, two coordinators, five nodes with their order routers, a venue, an operator.

Two private networks, as at a firm. ``control``: the store, agents, coordinators, the operator's command. ``market``:
order routers and the venue. A node that is cut off from the store still reaches the venue, which is the point.

The timing is the product's default one, so the bounds are those that users have. All containers share this machine's
``CLOCK_BOOTTIME``: their times can be compared.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from killswitch.clock import now_ns
from killswitch.cluster.cluster import Cluster, NotInitialised
from killswitch.core.flag import Flag
from killswitch.stores import StoreError, open_store
from tests.containers.judge import Judge, boot_ns
from tests.containers.pods import PYTHON, Engine, Pod, Process, Ran, in_parallel, run_in
from tests.support.waiting import wait_until

CLUSTER = "lab"
GATE, LINK = f"/dev/shm/killswitch/{CLUSTER}/gate", f"/run/killswitch/{CLUSTER}/agent.sock"
STATE_DIR = "/var/lib/killswitch"
ROUTERS = {"n1": ("n1-r1", "n1-r2"), "n2": ("n2-r1",), "n3": ("n3-r1",), "n4": ("n4-r1",), "n5": ("n5-r1",)}
COORDINATORS = ("c1", "c2")
SLOW_NODE, FAKE_CLOCK_NODE, TRAPPED_NODE = "n4", "n5", "n3"
VENUE_PORT, LINK_PORT = 7000, 12379
GROSS_HARD_USD = 5_000_000
"""Far above what the routers hold: the rule trips when a scenario asks for it."""

READY_WITHIN_S = 45.0
SLOW_LINK_FILE = "/dev/shm/delay_ms"
FAKE_CLOCK_FILE = "/dev/shm/faketime"
FAKE_CLOCK = {
    "LD_PRELOAD": "/usr/local/lib/libfaketime.so.1",
    "FAKETIME_TIMESTAMP_FILE": FAKE_CLOCK_FILE,
    "FAKETIME_NO_CACHE": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    # Its own shared memory is named by process id, and every process here is number 1 of its container.
    "FAKETIME_DISABLE_SHM": "1",
    "PYTHONPATH": "/opt/inside/fake_clock",
}


class StoreServers(Protocol):
    """The servers of one kind of store."""

    kind: str

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Where clients connect to."""

    def url(self, ports: list[tuple[str, int]] | None = None) -> str:
        """The store's URL, by way of other addresses where some are given; those of several, with spaces between."""

    def heal(self) -> None:
        """Let every server run and go on."""

    def lose_data(self) -> None:
        """Take all data away, and have it serve again."""


@dataclass(frozen=True)
class Frozen:
    """A freeze by the operator's command.

    Attributes:
        document: what the command printed.
        said_ns: just before the command sent it.
        in_force_ns: by then it was in the store.
    """

    document: dict[str, Any]
    said_ns: int
    in_force_ns: int

    @property
    def certificate(self) -> dict[str, Any]:
        """The proof."""
        return dict(self.document["certificate"])

    @property
    def id(self) -> str:
        """Of the cause."""
        return str(self.document["freeze"]["id"])

    def line(self, node: str) -> dict[str, Any]:
        """What the certificate says of one node."""
        return next(dict(line) for line in self.certificate["nodes"] if line["node"] == node)

    def states(self) -> dict[str, str]:
        """Proof of each node."""
        return {line["node"]: line["state"] for line in self.certificate["nodes"]}


class Lab:
    """One cluster. Everything that it started ends with :meth:`close`.

    Args:
        engine: where it runs.
        servers: starts the store.
        nodes: names of the nodes, of :data:`ROUTERS`.
    """

    def __init__(
        self, engine: Engine, servers: Callable[[Engine], StoreServers], *, nodes: Iterable[str] = tuple(ROUTERS)
    ) -> None:
        self.engine = engine
        self.nodes = tuple(nodes)
        self.servers = servers(engine)
        self.operator = engine.pod("operator", ["control"])
        self.venue = engine.pod("venue", ["market"])
        self._holders: dict[str, Process] = {}
        self.urls = tuple(self.servers.url().split())
        self.clusters = [Cluster(open_store(url, request_timeout_ms=2_000), CLUSTER) for url in self.urls]
        self.cluster = self.clusters[0]
        self._judge: Judge | None = None
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def _start_all(self) -> None:
        self._start_venue()
        self.killswitch("init")
        self._start_slow_link()
        in_parallel(
            [lambda node=node: self._start_node(node) for node in self.nodes]
            + [lambda name=name: self._start_coordinator(name) for name in COORDINATORS]
        )
        self.bounds = self._bounds()
        self.wait_until_ready()

    # -- who is there ------------------------------------------------------------------------------------------------

    @property
    def judge(self) -> Judge:
        """The venue's record."""
        assert self._judge is not None, "the venue has not been started"
        return self._judge

    def agent(self, node: str) -> Process:
        """A node's agent."""
        return self.engine.pods[node].processes["agent"]

    def router(self, router: str) -> Process:
        """An order router by its name, such as ``n1-r1``."""
        return self.engine.pods[router.partition("-")[0]].processes[router]

    def coordinator(self, name: str) -> Process:
        """A coordinator."""
        return self.engine.pods[name].processes["coordinator"]

    def refused(self, router: str) -> int:
        """Orders that a router's gate has refused, by its own count, written a few times a second."""
        counts = json.loads(self.router(router).exec("cat", stats_file(router)))
        return int(counts["refused"].get("gate", 0))

    def routers(self, *nodes: str) -> tuple[str, ...]:
        """Names of the order routers of some nodes, or of all."""
        return tuple(router for node in nodes or self.nodes for router in ROUTERS[node])

    def others(self, *nodes: str) -> tuple[str, ...]:
        """Names of all nodes but these."""
        return tuple(node for node in self.nodes if node not in nodes)

    def processes_of(self, node: str) -> list[Process]:
        """Agent and routers of a node."""
        return list(self.engine.pods[node].processes.values())

    def processes(self) -> list[Process]:
        """Everything of the product that should run."""
        pods = [self.engine.pods[name] for name in (*self.nodes, *COORDINATORS)]
        return [process for pod in pods for process in pod.processes.values()]

    # -- the command -------------------------------------------------------------------------------------------------

    def killswitch(self, *words: str, expect: int | None = 0) -> Ran:
        """Run the command as an operator, in a container of the operator's own."""
        ran = run_in(self.operator.holder, ("timeout", "60", "killswitch", *words), environment=self.environment())
        assert "Traceback" not in ran.err, ran.err
        if expect is not None:
            assert ran.code == expect, f"killswitch {' '.join(words)}: exit {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    def ask(self, *words: str, expect: int | None = 0) -> dict[str, Any]:
        """What the command prints as JSON."""
        return dict(json.loads(self.killswitch("-o", "json", *words, expect=expect).out))

    def freeze(self, reason: str, *more: str, expect: int | None = 0, store: str = "") -> Frozen:
        """Freeze by the command, and wait for the certificate; in all stores, or in the one whose URL is given."""
        where = ("--store", store) if store else ()
        ran = self.killswitch(*where, "-o", "json", "freeze", "--reason", reason, *more, expect=expect)
        assert ran.out, f"killswitch freeze printed no document: exit {ran.code}\n{ran.err}"
        document = json.loads(ran.out)
        certificate = document["certificate"] or {"elapsed_ms": document["committed_ms"]}
        since_commit_ms = certificate["elapsed_ms"] - document["committed_ms"]
        return Frozen(document, boot_ns(document["freeze"]["at"]), ran.returned_ns - int(since_commit_ms * 1e6))

    def release(self, expect: int | None = 0, *, stores: Sequence[int] = ()) -> int:
        """Release everything at the current epochs by the command; return an instant just before it was sent.

        Args:
            expect: exit code of the command.
            stores: by their places; all when none is named.
        """
        places = tuple(stores) or tuple(range(len(self.urls)))
        epochs = [self.flag(place).epoch for place in places]
        where = [word for place in places for word in ("--store", self.urls[place])]
        words = [word for epoch in epochs for word in ("--epoch", str(epoch))]
        said_ns = now_ns()
        self.killswitch(
            *where, "-o", "json", "release", *words, "--reason", "the scenario goes on", "--yes", expect=expect
        )
        # Of several stores, those that held nothing have no entry of it; and the command may have failed.
        released = [
            entry.at
            for place, before in zip(places, epochs, strict=True)
            for epoch, entry in self.clusters[place].history()
            if epoch == before + 1
        ]
        return min(map(boot_ns, released), default=said_ns)

    # -- what can be seen --------------------------------------------------------------------------------------------

    def flag(self, place: int = 0) -> Flag:
        """The flag in the store, or in the one of several that has this place."""
        return self.clusters[place].read_flag().flag

    def find_flag(self, place: int = 0) -> Flag | None:
        """The flag, ``None`` while the store does not answer or holds none."""
        with contextlib.suppress(StoreError, NotInitialised):
            return self.flag(place)
        return None

    def is_open(self, node: str) -> bool:
        """Tell whether a node's gate passes an order, as a router there sees it."""
        return run_in(self.engine.pods[node].holder, (PYTHON, "-c", LOOK_AT_GATE)).code == 0

    def leader(self) -> str | None:
        """Which coordinator leads."""
        record = self.cluster.leader()
        return record.id if record else None

    def term(self) -> int:
        """Term of whoever leads, 0 while nobody does."""
        record = self.cluster.leader()
        return record.term if record else 0

    def certificate(self, epoch: int) -> dict[str, Any] | None:
        """The leader's final certificate of an epoch, ``None`` before there is one."""
        entry = self.cluster.store.read(self.cluster.keys.certificate(epoch))
        record: dict[str, Any] = json.loads(entry.value) if entry and entry.value else {}
        return record if record.get("final") else None

    def is_joined(self, node: str) -> bool:
        """The node has its lease, and its present run has reported; in every store."""
        for cluster in self.clusters:
            membership = cluster.membership()
            report, live = membership.reports.get(node), membership.live.get(node)
            if live is None or report is None or report.instance != live.instance:
                return False
        return True

    def wait_until_ready(self) -> None:
        """Wait until somebody leads, every node has joined, nothing is frozen and every router trades."""
        wait_until(lambda: self.find_flag() is not None, within_s=READY_WITHIN_S, what="a flag")
        ended = [process.name for process in self.processes() if not process.runs]
        assert not ended, f"these ended instead of running: {', '.join(ended)}"
        wait_until(lambda: self.leader() is not None, within_s=READY_WITHIN_S, what="a leader")
        for node in self.nodes:
            wait_until(lambda node=node: self.is_joined(node), within_s=READY_WITHIN_S, what=f"{node} to join")
        self.judge.wait_until_trading(self.routers(), within_s=READY_WITHIN_S)

    def hold(self, node: str, usd: float) -> None:
        """Have a node hold a position of this size, by a router of its own that never orders anything."""
        pod = self.engine.pods[node]
        pod.write("/dev/shm/hold", f"{usd}")
        if node not in self._holders:
            name = f"{node}-holder"
            words = ["/opt/inside/holder.py", GATE, LINK, name, "/dev/shm/hold"]
            self._holders[node] = pod.start(name, words, entrypoint=[PYTHON], init=True)
        # The routers' own positions come on top.
        wait_until(
            lambda: self.cluster.membership().reports[node].gross_usd >= usd, what=f"{node} to report {usd:.0f} USD"
        )

    # -- between scenarios and at the end ----------------------------------------------------------------------------

    def reset(self) -> None:
        """Bring everything back to a cluster that trades. The faults are healed by whoever made them."""
        self.servers.heal()
        for node, holder in self._holders.items():
            if holder.runs:
                self.engine.pods[node].write("/dev/shm/hold", "0")
        for process in self.processes():
            process.resume()
            process.go_on()
            process.start()
        wait_until(lambda: self.find_flag() is not None, within_s=READY_WITHIN_S, what="the store to answer")
        if self._holders:
            wait_until(self._holds_little, within_s=READY_WITHIN_S, what="the position to go")
        for _ in range(3):
            if any(self.flag(place).freezes for place in range(len(self.urls))):
                self.release(expect=None)
        self.wait_until_ready()

    def _holds_little(self) -> bool:
        return self.cluster.membership().exposure().gross_usd < GROSS_HARD_USD

    def close(self) -> None:
        """End the connections of the tests themselves; the engine removes the containers."""
        if self._judge is not None:
            self._judge.close()
        for cluster in self.clusters:
            cluster.store.close()

    # -- starting ----------------------------------------------------------------------------------------------------

    def environment(self, url: str | None = None) -> dict[str, str]:
        """The settings of every process of the product here."""
        return {
            "KILLSWITCH_STORE": url or self.servers.url(),
            "KILLSWITCH_CLUSTER": CLUSTER,
            "KILLSWITCH_COORDINATOR__RULES__GROSS_NOTIONAL__HARD_USD": str(GROSS_HARD_USD),
        }

    def _start_venue(self) -> None:
        words = ["--record", "/tmp/venue.jsonl", "--host", "0.0.0.0", "--port", str(VENUE_PORT)]
        self.venue.start("venue", words, entrypoint=[PYTHON, "-m", "killswitch.simulation.venue"])
        self.venue_ip = self.venue.ip("market")
        wait_until(lambda: self.venue.reaches(self.venue_ip, VENUE_PORT), within_s=20, what="the venue to listen")
        self._judge = Judge(self.venue_ip, VENUE_PORT)

    def _start_slow_link(self) -> None:
        """The line of one node to the store runs through a forwarder that can be made slow."""
        if SLOW_NODE not in self.nodes:
            return
        pod = self.engine.pod("line", ["control"])
        pod.write(SLOW_LINK_FILE, "0")
        lines = [f"{LINK_PORT + n}={host}:{port}" for n, (host, port) in enumerate(self.servers.ports)]
        pod.start("line", ["/opt/inside/slow_link.py", SLOW_LINK_FILE, *lines], entrypoint=[PYTHON])
        host = pod.ip("control")
        self.slow_ports = [(host, LINK_PORT + n) for n in range(len(lines))]
        wait_until(lambda: pod.reaches(*self.slow_ports[0]), within_s=20, what="the slow line to listen")

    def _start_coordinator(self, name: str) -> None:
        pod = self.engine.pod(name, ["control"])
        # A coordinator serves one store, and of several each has one of its own here.
        url = self.urls[COORDINATORS.index(name) % len(self.urls)]
        pod.start("coordinator", ["coordinator", "run", "--id", name], environment=self.environment(url))

    def _start_node(self, node: str) -> None:
        self.make_node(node)
        self.start_node(node)

    def make_node(self, node: str) -> Pod:
        """A node's machine, on which nothing of the product runs yet."""
        volumes = {"/run/killswitch": run_volume(node), STATE_DIR: f"state-{node}"}
        return self.engine.pod(node, ["control", "market"], volumes=volumes)

    def start_node(self, node: str) -> None:
        """Start a node's agent and its routers on its machine."""
        pod = self.engine.pods[node]
        self._holders.pop(node, None)
        extra: Mapping[str, str] = {}
        if node == FAKE_CLOCK_NODE:
            pod.write(FAKE_CLOCK_FILE, "+0")
            extra = FAKE_CLOCK
        url = self.servers.url(self.slow_ports) if node == SLOW_NODE else None
        pod.start("agent", ["agent", "run", "--node", node], environment={**self.environment(url), **extra})
        for router in ROUTERS[node]:
            self._start_router(pod, router, extra)

    def _start_router(self, pod: Pod, router: str, extra: Mapping[str, str]) -> None:
        trap = {"PYTHONPATH": "/opt/inside/trap"} if pod.name == TRAPPED_NODE else {}
        words = ["--router", router, "--gate", GATE, "--link", LINK, "--venue", f"{self.venue_ip}:{VENUE_PORT}"]
        # So that each of them orders something many times a second: its quotes follow the venue's small noise.
        words += ["--symbols", "BTCUSDT", "--tolerance-bps", "0.4", "--stats", stats_file(router)]
        # Below an init: a process that is number 1 of its container cannot stop itself.
        pod.start(
            router, words, entrypoint=[PYTHON, "-m", "killswitch.simulation.trader"], init=True,
            environment={**extra, **trap},
        )  # fmt: skip

    def _bounds(self) -> dict[str, float]:
        """What ``killswitch config check`` promises with these settings, in milliseconds."""
        return {name: float(ms) for name, ms in self.ask("config", "check")["worst_case"].items()}


def run_volume(node: str) -> str:
    """What a node's processes share below ``/run``; as there, it does not outlive the machine."""
    return f"run-{node}"


def stats_file(router: str) -> str:
    """Where a router keeps its counters, in its pod."""
    return f"/dev/shm/{router}.stats"


LOOK_AT_GATE = f"""
import sys
from killswitch import Gate, GateError
try:
    with Gate.open({GATE!r}) as gate:
        sys.exit(0 if gate.allows("BTCUSDT", venue="simulated") else 3)
except GateError:
    sys.exit(3)
"""

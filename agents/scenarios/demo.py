"""The demo: a whole trading cluster on one machine is stopped by its own rules, with proof, and released again.

Nothing in it is staged but the market. It starts the same processes as production (a real etcd, coordinators, agents,
order routers), lets a price tape fall, and watches. It freezes nothing itself: a rule of the coordinator must trip. It
changes the flag only as an operator would, by the ``killswitch`` command. What happened is judged from the store and
from the simulated venue's own record of arrivals, not from what the routers say of themselves.

Every phase has a deadline and ends with a sentence. What did not happen is said, and the exit code is then 1.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from agents.scenarios.demo_processes import (
    Children,
    CommandResult,
    ProcessFault,
    free_ports,
    make_folder,
    read_json,
    remove_folder,
    tail,
)
from agents.scenarios.demo_view import NodePicture, Picture, Verdict, View, make_view
from agents.scenarios.tape import BARS_SYMBOL, DEFAULT_PRICES_USD, BadTape, bars_from_csv
from agents.scenarios.venue import VenueFault, VenueOperator
from killswitch.clock import now_ns
from killswitch.cluster import Cluster, NotInitialised
from killswitch.core.flag import Flag
from killswitch.core.permit import Timing, expiry_bound_ms
from killswitch.records import CertificateRecord, ClusterViewRecord, HistoryRecord, UnreadableRecord
from killswitch.stores import StoreError, StoreUnavailable, open_store
from killswitch.stores.embedded import EmbeddedStore

T = TypeVar("T")

SCHEMA = "killswitch.demo/1"
CLUSTER = "demo"
COORDINATORS = ("c1", "c2")
NODES_MAX = 20
ROUTERS_MAX = 50
SPEED_MIN, SPEED_MAX = 0.1, 5.0
"""Faster than this the fall is over before routers that quote ten times a second have lost enough for a rule."""

INVENTORY_MAX_USD = 24_000.0
"""Most that a router holds in one symbol; with it the rules' levels are worked out."""

DRAWDOWN_HARD_USD_PER_ROUTER = 500.0
DRAWDOWN_WARNING_SHARE = 0.5
GROSS_WARNING_SHARE = 0.9
GROSS_HARD_SHARE = 1.2
"""Above what all routers together may hold: a backstop, so that one rule trips and not two at the same instant."""

START_WITHIN_S = 40.0
TRADING_WITHIN_S = 15.0
CRASH_WITHIN_S = 30.0
CERTIFICATE_WITHIN_S = 15.0
REFUSALS_FOR_S = 2.0
RESUME_WITHIN_S = 10.0
COMMAND_WITHIN_S = 20.0
KILL_SLACK_S = 5.0
POLL_S = 0.05
PICTURE_EVERY_S = 0.3

EXIT_OK, EXIT_DID_NOT_HAPPEN, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
NOT_CONFIRMED = 3
"""Exit code of the command when a change is written but not every node has confirmed it."""


class DidNotHappen(Exception):  # noqa: N818 - what is said of the demo
    """Something that should have happened did not; the message says what, in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to show.

    Attributes:
        nodes: trading nodes, each with an agent.
        routers: order routers on each node.
        bars: one-minute bars to play instead of the synthetic flash crash.
        seed: of tape, noise and quotes.
        speed: how much faster than normal the tape plays.
        kill_agent: node whose agent is killed before the crash.
        output: ``json`` prints one document, ``table`` is for people.
    """

    nodes: int = 3
    routers: int = 2
    bars: Path | None = None
    seed: int = 1
    speed: float = 1.0
    kill_agent: str | None = None
    output: Literal["table", "json"] = "table"


def option_faults(options: DemoOptions) -> list[str]:
    """Return one sentence for each option that cannot be; an empty list when all can."""
    faults = []
    if not 1 <= options.nodes <= NODES_MAX:
        faults.append(f"--nodes is {options.nodes}; it must be between 1 and {NODES_MAX}")
    if not 1 <= options.routers <= ROUTERS_MAX:
        faults.append(f"--routers is {options.routers}; it must be between 1 and {ROUTERS_MAX}")
    if not SPEED_MIN <= options.speed <= SPEED_MAX:
        faults.append(f"--speed is {options.speed}; it must be between {SPEED_MIN:g} and {SPEED_MAX:g}")
    if options.kill_agent is not None:
        named = re.fullmatch(r"n([1-9][0-9]*)", options.kill_agent)
        if named is None or int(named[1]) > options.nodes:
            faults.append(f"--kill-agent is {options.kill_agent!r}; the nodes are n1 to n{options.nodes}")
        elif options.nodes == 1:
            faults.append("--kill-agent needs a second node: with no other one nobody trades into the crash")
    if options.bars is not None:
        try:
            bars_from_csv(options.bars)
        except OSError as error:
            faults.append(f"--bars: {options.bars} cannot be read: {error.strerror or error}")
        except BadTape as error:
            faults.append(f"--bars: {error}")
    return faults


def certificate_faults(certificate: Mapping[str, Any], nodes: Sequence[str], killed: str | None) -> list[str]:
    """Return what a certificate does not say that it should.

    Every node with a living agent has acked with nothing left working. The node whose agent was killed is stopped by
    its permit and not proven flat: its orders are gone, but nobody is there to say so.
    """
    lines = {line["node"]: line for line in certificate["nodes"]}
    faults = [f"node {node} is not in the certificate" for node in nodes if node not in lines]
    for node in (node for node in nodes if node in lines):
        state, flat = lines[node]["state"], lines[node]["flat"]
        if node == killed:
            if state != "PERMIT_EXPIRED" or flat:
                faults.append(f"node {node} should be PERMIT_EXPIRED and not proven flat; it is {state}, flat {flat}")
        elif state != "ACKED" or not flat:
            faults.append(f"node {node} should be ACKED and flat; it is {state}, flat {flat}")
    if not certificate["stopped"]:
        faults.append("the certificate does not say that every node has stopped")
    return faults


class Demo:
    """One run, phase by phase. What it learns is kept in attributes, and :meth:`document` puts it together."""

    def __init__(self, options: DemoOptions, folder: Path, view: View) -> None:
        self._options = options
        self._folder = folder
        self._view = view
        self._children = Children(folder)
        self._began_s = time.monotonic()
        self._picture_due_s = 0.0
        self._nodes = [f"n{number}" for number in range(1, options.nodes + 1)]
        self._store: EmbeddedStore | None = None
        self._cluster: Cluster | None = None
        self._venue: VenueOperator | None = None
        self._symbols = (BARS_SYMBOL,) if options.bars else tuple(DEFAULT_PRICES_USD)
        self._limits = self._rule_levels()
        self._killed_ns: int | None = None
        self._stats_at_certificate: dict[str, int] = {}
        self.verdicts: list[Verdict] = []
        self.faults: list[str] = []
        self.freeze: dict[str, Any] | None = None
        self.certificate: dict[str, Any] | None = None
        self.figures: dict[str, Any] = {"gross": None, "net": None, "pnl": None, "drawdown": None}
        self.open_after_freeze: int | None = None
        self.accepted_after_certificate: int | None = None
        self.released_at: str | None = None
        self.history_verified = False
        self.judge: dict[str, Any] = {}

    # -- the story -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go through the phases; the first that fails ends it, and :attr:`faults` says why."""
        phases: list[tuple[str, str, Callable[[], str]]] = [
            ("start", "etcd, two coordinators, an agent per node, routers, a venue", self._start),
            ("trading", "the tape plays, every router quotes", self._trade),
        ]
        if self._options.kill_agent is not None:
            phases.append(("kill", f"the agent of {self._options.kill_agent} is killed (SIGKILL)", self._kill))
        phases += [
            ("crash", "the price falls until a rule of the coordinator trips", self._crash),
            ("certificate", "every gate closes, every router cancels, every node answers", self._certify),
            ("refusals", f"routers keep trying for {REFUSALS_FOR_S:g} s", self._watch_refusals),
            ("release", "the operator releases by the command", self._release),
            ("resume", "routers trade again", self._resume),
            ("history", "the history of the flag is verified", self._verify_history),
        ]
        for name, doing, play in phases:
            self._view.phase(name, doing)
            began_s = time.monotonic()
            before = len(self.faults)
            try:
                sentence = play()
            except (DidNotHappen, ProcessFault, StoreError, UnreadableRecord, VenueFault) as error:
                self.faults.append(f"{name}: {error}")
                self._say(Verdict(name, False, str(error), time.monotonic() - began_s))
                return
            ok = len(self.faults) == before
            told = sentence if ok else "; ".join(self.faults[before:])
            self._say(Verdict(name, ok, told, time.monotonic() - began_s))

    def _say(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self._view.verdict(verdict)

    def _start(self) -> str:
        options = self._options
        venue_arguments = ["--record", str(self._folder / "venue.jsonl"), "--seed", str(options.seed)]
        venue_arguments += ["--speed", str(options.speed)]
        if options.bars is not None:
            venue_arguments += ["--bars", str(options.bars.resolve())]
        venue = self._children.start_talking("venue", "agents.scenarios.venue", venue_arguments)
        store = open_store(f"embedded://{self._folder / 'etcd'}")
        if not isinstance(store, EmbeddedStore):
            raise DidNotHappen("the embedded store is not an embedded store")
        self._store, self._cluster = store, Cluster(store, CLUSTER)
        self._write_config()
        address = self._children.hear(venue, within_s=START_WITHIN_S)
        self._venue = VenueOperator(address["host"], int(address["port"]))
        ports = free_ports(len(COORDINATORS) + len(self._nodes))
        self._start_routers(f"{address['host']}:{address['port']}")
        for coordinator in COORDINATORS:
            arguments = ["coordinator", "run", "--id", coordinator, "--http-port", str(ports.pop())]
            self._children.start(coordinator, "killswitch", self._command(*arguments))
        for node in self._nodes:
            self._children.start(_agent(node), "killswitch", self._agent_command(node, ports.pop()))
        self._succeed(self._run("init", "--reason", "a demo begins"), "init")
        self._until(self._everybody_is_there, START_WITHIN_S, "leader, agents and routers together")
        routers = options.routers * options.nodes
        leader = self._require_cluster().leader()
        return (
            f"{options.nodes} nodes with {routers} routers hold permits, coordinator {leader.id if leader else '?'} "
            f"leads, etcd at {store.client_url}"
        )

    def _trade(self) -> str:
        venue = self._require_venue()
        venue.start()

        names = self._router_names()

        def everybody_trades() -> dict[str, Any] | None:
            summary = venue.summary()
            owners = [summary["owners"][name] for name in names]
            working = all(owner["accepted"] and owner["open"] for owner in owners)
            return summary if working and summary["filled"] >= len(names) else None

        seen = self._until(
            everybody_trades, TRADING_WITHIN_S, "fills, and working orders of every router, at the venue"
        )
        if self._flag().freezes:
            raise DidNotHappen("the cluster froze before the fall began")
        return (
            f"the venue accepted {seen['accepted']} orders, {seen['filled']} are filled, {seen['open_orders']} working"
        )

    def _kill(self) -> str:
        """Kill an agent while its routers have orders working, and wait until these routers stopped by themselves."""
        node, venue = str(self._options.kill_agent), self._require_venue()
        mine = self._router_names(node)

        def working() -> int:
            owners = venue.summary()["owners"]
            return sum(int(owners[name]["open"]) for name in mine) if all(owners[name]["open"] for name in mine) else 0

        found = self._until(working, TRADING_WITHIN_S, f"working orders of every router of {node}")
        self._children.kill(_agent(node))
        self._killed_ns = killed_ns = now_ns()
        timing = Timing()
        # The last permit was granted before the kill, so nobody there may trade later than this.
        bound_ns = killed_ns + int(expiry_bound_ms(timing.permit_ttl_ms, timing.clock_rate_ratio) * 1e6)

        def nothing_is_open() -> bool:
            owners = venue.summary()["owners"]
            return now_ns() > bound_ns and not any(owners[name]["open"] for name in mine)

        within_s = (bound_ns - killed_ns) / 1e9 + KILL_SLACK_S
        self._until(nothing_is_open, within_s, f"an empty book of {node} at the venue after its permit ran out")
        late = sum(int(venue.summary(since_ns=bound_ns)["owners"][name]["accepted"]) for name in mine)
        if late:
            self.faults.append(f"the venue accepted {late} orders of {node} after its permit had run out")
        newest_ns = self._newest_arrival_ns(mine, killed_ns)
        traded_on_ms = max(0.0, (newest_ns - killed_ns) / 1e6)
        return (
            f"{node} had {found} orders working; its last order arrived {traded_on_ms:,.0f} ms after the kill, then "
            "its permit ran out and its routers cancelled by themselves: the venue shows nothing of them open"
        )

    def _crash(self) -> str:
        self._require_venue().go_on()
        within_s = CRASH_WITHIN_S / min(1.0, self._options.speed)
        flag = self._until(self._frozen_flag, within_s, "a freeze by a rule")
        freeze = flag.freezes[0]
        self.freeze = {**freeze.to_json(), "epoch": flag.epoch}
        if not freeze.actor.startswith("coordinator:"):
            self.faults.append(f"the freeze came from {freeze.actor}, not from a coordinator")
        if freeze.trigger not in ("drawdown", "gross_notional"):
            self.faults.append(f"the freeze has the trigger {freeze.trigger}, not drawdown or gross_notional")
        return f"{freeze.actor} froze the cluster, epoch {flag.epoch}: {freeze.reason}"

    def _certify(self) -> str:
        try:
            record = self._until(self._final_certificate, CERTIFICATE_WITHIN_S, "a final certificate in the store")
        except DidNotHappen as error:
            if self.certificate is None:
                raise
            self._view.certificate(self.certificate)
            said = "; ".join(f"{line['node']}: {line['note']}" for line in self.certificate["nodes"] if line["note"])
            raise DidNotHappen(f"{error}; the last one says: {said or 'nothing is missing'}") from error
        certificate = record.model_dump(mode="json")
        seen = self._require_venue().summary()
        self.open_after_freeze = int(seen["open_orders"])
        self._stats_at_certificate = {name: _refused(self._stats(name)) for name in self._router_names()}
        self._view.certificate(certificate)
        self.faults += certificate_faults(certificate, self._nodes, self._options.kill_agent)
        if self.open_after_freeze:
            self.faults.append(f"the venue shows {self.open_after_freeze} orders open after the certificate")
        self.faults += self._sequence_faults(certificate, seen["owners"])
        after_ms = certificate["stopped_after_ms"]
        return (
            f"every node has stopped, the last gate {after_ms:,.0f} ms after the freeze began; the venue's record "
            f"agrees: nothing is open"
        )

    def _watch_refusals(self) -> str:
        enough_s = time.monotonic() + REFUSALS_FOR_S
        self._read_figures()
        # Counters reach their file a few times a second: the last ones are given time to arrive.
        give_up_s = max(enough_s, time.monotonic()) + REFUSALS_FOR_S

        def seen_enough() -> bool:
            now_s = time.monotonic()
            return now_s >= give_up_s or (now_s >= enough_s and not self._idle_routers())

        self._until(seen_enough, give_up_s - time.monotonic() + 1.0, "the end of the wait for refusals")
        for name in self._idle_routers():
            self.faults.append(f"router {name} counted no refused attempt while the cluster was frozen")
        tried = sum(self._refusals_since_certificate(name) for name in self._router_names())
        return f"{tried} attempts of {len(self._router_names())} routers were refused before anything was sent"

    def _release(self) -> str:
        venue, flag = self._require_venue(), self._flag()
        epoch = str(flag.epoch)
        done = self._run("release", "--epoch", epoch, "--reason", "the demo's operator has looked", "--yes")
        # With a dead agent not every node can confirm that it is open again.
        if done.exit_code != NOT_CONFIRMED or self._options.kill_agent is None:
            self._succeed(done, "release")
        entry = self._history_entry(flag.epoch + 1)
        if entry.kind != "release" or entry.in_force:
            raise DidNotHappen(f"the entry of epoch {entry.epoch} is no release of everything but a {entry.kind}")
        self.released_at = entry.at
        certified_at = self.certificate["at"] if self.certificate else entry.at
        between = venue.summary(since_wall=certified_at, until_wall=entry.at)
        self.accepted_after_certificate = int(between["accepted"])
        if self.accepted_after_certificate:
            self.faults.append(f"the venue accepted {between['accepted']} orders between certificate and release")
        return f"{entry.actor} lifted {', '.join(entry.lifted)}; until then the venue had accepted nothing"

    def _resume(self) -> str:
        venue, killed = self._require_venue(), self._options.kill_agent
        alive = [name for node in self._nodes if node != killed for name in self._router_names(node)]

        def accepted() -> int:
            owners = venue.summary(since_wall=self.released_at)["owners"]
            counts = [int(owners[name]["accepted"]) for name in alive]
            return sum(counts) if all(counts) else 0

        count = self._until(accepted, RESUME_WITHIN_S, "new orders of every router of a living node at the venue")
        if killed is None:
            return f"the venue has accepted {count} new orders"
        dead = sum(
            int(venue.summary(since_wall=self.released_at)["owners"][name]["accepted"])
            for name in self._router_names(killed)
        )
        if dead:
            self.faults.append(f"the venue accepted {dead} orders of {killed}, which has no agent")
        return f"the venue has accepted {count} new orders, none of {killed}, which has no agent"

    def _verify_history(self) -> str:
        self._succeed(self._run("history", "--verify"), "history --verify")
        self.history_verified = True
        return f"the chain of {self._flag().epoch} entries holds"

    # -- what it looks at ----------------------------------------------------------------------------------------

    def _until(self, condition: Callable[[], T | None], within_s: float, what: str) -> T:
        """Poll until ``condition`` returns something true, and show the picture meanwhile.

        Raises:
            DidNotHappen: not within the time, or a process ended that should not have.
        """
        deadline_s = time.monotonic() + within_s
        while True:
            trouble = ""
            try:
                value = condition()
                if value:
                    return value
                self._show_picture()
            except StoreUnavailable as error:
                # A store that is slow for a moment is no verdict; the deadline is.
                trouble = f" ({error})"
            ended = self._children.unexpectedly_ended()
            if ended:
                raise DidNotHappen(f"process {ended[0].name} ended by itself: {tail(ended[0].log)}")
            if time.monotonic() >= deadline_s:
                raise DidNotHappen(f"{what} did not come within {within_s:.1f} s{trouble}")
            time.sleep(POLL_S)

    def _everybody_is_there(self) -> bool:
        cluster, venue = self._require_cluster(), self._require_venue()
        if cluster.leader() is None:
            return False
        membership = cluster.membership()
        for node in self._nodes:
            report = membership.reports.get(node)
            if node not in membership.live or report is None or report.mode != "ACTIVE":
                return False
            if sum(router.state == "live" for router in report.routers) < self._options.routers:
                return False
        owners = venue.summary()["owners"]
        return all(owners.get(name, {}).get("connected") for name in self._router_names())

    def _flag(self) -> Flag:
        try:
            return self._require_cluster().read_flag().flag
        except NotInitialised as error:
            raise DidNotHappen(str(error)) from error

    def _frozen_flag(self) -> Flag | None:
        flag = self._flag()
        return flag if flag.freezes else None

    def _final_certificate(self) -> CertificateRecord | None:
        """The leader's certificate for the flag as it stands, once nothing more will be added to it.

        One that is not final yet is kept in :attr:`certificate`, to be shown if no better one comes.
        """
        cluster = self._require_cluster()
        entry = cluster.store.read(cluster.keys.certificate(self._flag().epoch))
        if entry is None:
            return None
        record = CertificateRecord.from_bytes(entry.value, key=entry.key)
        self.certificate = record.model_dump(mode="json")
        return record if record.final else None

    def _history_entry(self, epoch: int) -> HistoryRecord:
        cluster = self._require_cluster()
        entry = cluster.store.read(cluster.keys.history(epoch))
        if entry is None:
            raise DidNotHappen(f"the history has no entry for epoch {epoch}")
        return HistoryRecord.from_bytes(entry.value, key=entry.key)

    def _sequence_faults(self, certificate: Mapping[str, Any], owners: Mapping[str, Any]) -> list[str]:
        """Compare the last sequence numbers that nodes stated with those that arrived at the venue."""
        faults = []
        for line in certificate["nodes"]:
            arrived = [owners[name]["last_sequence"] for name in self._router_names(line["node"]) if name in owners]
            newest = max((sequence for sequence in arrived if sequence is not None), default=None)
            if line["state"] == "ACKED" and line["last_sequence"] != newest:
                faults.append(
                    f"node {line['node']} says that its last sequence number is {line['last_sequence']}, the venue's "
                    f"record says {newest}"
                )
        return faults

    def _read_figures(self) -> None:
        """Read what the cluster holds while it is frozen: by the command, and the drawdown as the leader wrote it."""
        result = self._run("exposure", output="json")
        self._succeed(result, "exposure")
        exposure = result.document()
        self.figures.update({name: exposure.get(f"{name}_usd") for name in ("gross", "net", "pnl")})
        cluster = self._require_cluster()
        entry = cluster.store.read(cluster.keys.view)
        if entry is not None:
            self.figures["drawdown"] = ClusterViewRecord.from_bytes(entry.value, key=entry.key).drawdown_usd

    def _newest_arrival_ns(self, owners: Sequence[str], since_ns: int) -> int:
        """When the last order of some owners was accepted, by the venue's clock; ``since_ns`` when none was since."""
        seen = self._require_venue().summary()["owners"]
        return max([since_ns, *(int(seen[name]["last_accepted_at_ns"] or 0) for name in owners)])

    def _router_names(self, node: str | None = None) -> list[str]:
        nodes = self._nodes if node is None else [node]
        return [f"{name}-r{number}" for name in nodes for number in range(1, self._options.routers + 1)]

    def _stats(self, router: str) -> dict[str, Any]:
        return read_json(self._folder / f"{router}.json")

    def _refusals_since_certificate(self, router: str) -> int:
        return _refused(self._stats(router)) - self._stats_at_certificate.get(router, 0)

    def _idle_routers(self) -> list[str]:
        return [name for name in self._router_names() if self._refusals_since_certificate(name) <= 0]

    def _show_picture(self) -> None:
        """Give the view new figures, a few times a second."""
        if self._venue is None or self._cluster is None or time.monotonic() < self._picture_due_s:
            return
        self._picture_due_s = time.monotonic() + PICTURE_EVERY_S
        seen = self._venue.summary()
        reports = self._cluster.membership().reports
        pictures = []
        for node in self._nodes:
            routers, report = self._router_names(node), reports.get(node)
            stats = [self._stats(name) for name in routers]
            killed = node == self._options.kill_agent and self._killed_ns is not None
            pictures.append(
                NodePicture(
                    node,
                    "killed" if killed else "running",
                    "no permit" if killed else (report.mode if report else ""),
                    sum(int(seen["owners"].get(name, {}).get("open", 0)) for name in routers),
                    report.gross_usd if report else 0.0,
                    report.pnl_usd if report else 0.0,
                    sum(int(body.get("sent", 0)) for body in stats),
                    sum(_refused(body) for body in stats),
                )
            )
        tape = seen["tape"]
        where = f"{tape['label'] or 'not begun'}{' (holding)' if tape['holding'] else ''}"
        share = tape["played"] / max(1, tape["length"])
        self._view.picture(Picture(where, share, tape["prices_usd"], pictures, self._limits))

    # -- what it starts ------------------------------------------------------------------------------------------

    def _rule_levels(self) -> dict[str, float]:
        """Hard levels of the rules in USD: a loss that only a crash brings, and more than all may hold together."""
        routers = self._options.nodes * self._options.routers
        room_usd = routers * INVENTORY_MAX_USD * len(self._symbols)
        return {"drawdown": routers * DRAWDOWN_HARD_USD_PER_ROUTER, "gross_notional": room_usd * GROSS_HARD_SHARE}

    def _write_config(self) -> None:
        drawdown, gross = self._limits["drawdown"], self._limits["gross_notional"]
        rules = {
            "drawdown": {"warning_usd": drawdown * DRAWDOWN_WARNING_SHARE, "hard_usd": drawdown},
            "gross_notional": {"warning_usd": gross / GROSS_HARD_SHARE * GROSS_WARNING_SHARE, "hard_usd": gross},
        }
        text = yaml.safe_dump({"coordinator": {"rules": rules}}, sort_keys=False)
        self._config.write_text(text, encoding="utf-8")

    @property
    def _config(self) -> Path:
        return self._folder / "killswitch.yaml"

    def _start_routers(self, venue_address: str) -> None:
        for node in self._nodes:
            for router in self._router_names(node):
                arguments = ["--router", router, "--node", node, "--venue", venue_address]
                arguments += ["--gate", str(self._gate(node)), "--link", str(self._link(node))]
                arguments += ["--symbols", ",".join(self._symbols), "--seed", str(self._options.seed)]
                arguments += ["--inventory-max-usd", str(INVENTORY_MAX_USD)]
                arguments += ["--stats", str(self._folder / f"{router}.json")]
                self._children.start(router, "agents.scenarios.trader", arguments)

    def _agent_command(self, node: str, http_port: int) -> list[str]:
        return self._command(
            *("agent", "run", "--node", node, "--gate", str(self._gate(node)), "--link", str(self._link(node))),
            *("--state-dir", str(self._folder / f"{node}-state"), "--http-port", str(http_port)),
        )

    def _gate(self, node: str) -> Path:
        return self._folder / f"{node}.gate"

    def _link(self, node: str) -> Path:
        return self._folder / f"{node}.sock"

    def _command(self, *arguments: str, output: str = "table") -> list[str]:
        store = self._require_store()
        connection = ["--config", str(self._config), "--store", store.client_url, "--cluster", CLUSTER]
        return [*connection, "-o", output, *arguments]

    def _run(self, *arguments: str, output: str = "table") -> CommandResult:
        return self._children.run("killswitch", self._command(*arguments, output=output), within_s=COMMAND_WITHIN_S)

    def _succeed(self, result: CommandResult, what: str) -> None:
        if result.exit_code != 0:
            raise DidNotHappen(f"`killswitch {what}` ended with exit code {result.exit_code}: {result.last_words}")

    def _require_store(self) -> EmbeddedStore:
        if self._store is None:
            raise DidNotHappen("there is no store")
        return self._store

    def _require_cluster(self) -> Cluster:
        if self._cluster is None:
            raise DidNotHappen("there is no cluster")
        return self._cluster

    def _require_venue(self) -> VenueOperator:
        if self._venue is None:
            raise DidNotHappen("there is no venue")
        return self._venue

    # -- the end -------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """End every process, order routers first. What does not end as it should is a fault."""
        routers = self._children.names_of("agents.scenarios.trader")
        running = [name for name in routers if self._children.exit_code(name) is None]
        self.faults += self._children.stop(routers)
        for name in running:
            code = self._children.exit_code(name)
            if code:
                self.faults.append(f"router {name} ended with exit code {code}: orders of it may be left at the venue")
        if self._venue is not None:
            with contextlib.suppress(VenueFault):
                self.judge = self._venue.summary()
            self._venue.close()
        if self.released_at is not None:
            self.faults += self._closing_faults()
        self.faults += self._children.stop(self._children.names_of("killswitch"))
        self.faults += self._children.stop(self._children.names_of("agents.scenarios.venue"))
        if self._store is not None:
            self._store.close()

    def _closing_faults(self) -> list[str]:
        """Compare the venue's record of the whole run with what the order routers counted, after they have ended."""
        if not self.judge:
            return ["the venue did not answer at the end, so nothing confirms what the routers counted"]
        faults = [
            f"the venue counted {self.judge[name]} {name.replace('_', ' ')}"
            for name in ("sequence_faults", "duplicates", "open_orders")
            if self.judge[name]
        ]
        for name in self._router_names():
            counted, arrived = self._stats(name).get("last_sequence"), self.judge["owners"][name]["last_sequence"]
            if counted != arrived:
                faults.append(f"router {name} counted to sequence number {counted}, the venue's record to {arrived}")
        return faults

    def document(self) -> dict[str, Any]:
        """Put together what happened: schema ``killswitch.demo/1``. Money is in USD."""
        stats = {name: self._stats(name) for name in self._router_names()}
        return {
            "schema": SCHEMA,
            "ok": not self.faults,
            "seed": self._options.seed,
            "tape": str(self._options.bars) if self._options.bars else "synthetic",
            "killed_agent": self._options.kill_agent,
            "nodes": [self._node_document(node, stats) for node in self._nodes],
            "freeze": self.freeze,
            "certificate": self.certificate,
            "orders": {
                "sent": sum(int(body.get("sent", 0)) for body in stats.values()),
                "refused": sum(_refused(body) for body in stats.values()),
                "cancelled": sum(int(line["orders_cancelled"]) for line in (self.certificate or {}).get("nodes", ())),
                "open_after_freeze": self.open_after_freeze,
                "accepted_by_venue_after_certificate": self.accepted_after_certificate,
            },
            "cluster": self.figures,
            "released": self.released_at is not None,
            "history_verified": self.history_verified,
            "phases": [verdict.to_json() for verdict in self.verdicts],
            "faults": list(self.faults),
            "seconds": round(time.monotonic() - self._began_s, 3),
            "logs": str(self._children.logs) if self.faults else None,
        }

    def _node_document(self, node: str, stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        lines = (self.certificate or {}).get("nodes", ())
        proof: Mapping[str, Any] = next((line for line in lines if line["node"] == node), {})
        return {
            "node": node,
            "agent": "killed" if node == self._options.kill_agent and self._killed_ns else "running",
            **{
                name: proof.get(name)
                for name in ("state", "gated_ms", "orders_cancelled", "orders_open", "last_sequence", "flat")
            },
            "routers": [
                {
                    "router": name,
                    "sent": stats[name].get("sent"),
                    "refused": stats[name].get("refused"),
                    "cancelled": stats[name].get("cancelled"),
                    "fills": stats[name].get("fills"),
                    "last_sequence": stats[name].get("last_sequence"),
                    "last_sequence_at_venue": self.judge.get("owners", {}).get(name, {}).get("last_sequence"),
                }
                for name in self._router_names(node)
            ],
        }


def run_demo(options: DemoOptions) -> int:
    """Run the demo and return its exit code: 0 when everything happened, 1 when not, 2 for options that cannot be.

    The folder with the logs of all processes is removed when everything happened, and kept otherwise.
    """
    faults = option_faults(options)
    if faults:
        sys.stderr.write("".join(f"demo: {fault}\n" for fault in faults))
        return EXIT_USAGE
    folder = make_folder()
    view = make_view(options.output)
    demo = Demo(options, folder, view)
    exit_code = EXIT_DID_NOT_HAPPEN
    try:
        with _interruptible() as no_more:
            try:
                demo.run()
            finally:
                no_more()
                demo.end()
                view.close()
        view.finish(demo.document())
        exit_code = EXIT_DID_NOT_HAPPEN if demo.faults else EXIT_OK
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; all its processes have ended\n")
        exit_code = EXIT_INTERRUPTED
    finally:
        if exit_code != EXIT_DID_NOT_HAPPEN:
            remove_folder(folder)
    return exit_code


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Make SIGTERM end the demo as Ctrl-C does; the function given out makes both wait until the block is left."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def no_more() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield no_more
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _agent(node: str) -> str:
    """Name of a node's agent among the processes."""
    return f"agent-{node}"


def _refused(stats: Mapping[str, Any]) -> int:
    """Attempts that were refused before anything was sent."""
    return sum(int(count) for cause, count in stats.get("refused", {}).items() if cause != "venue")

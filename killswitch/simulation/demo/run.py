"""The demo: a whole trading cluster on one machine is stopped by its own rules, with proof, and released again.

Nothing in it is staged but the market. It starts the same processes as production (a real etcd, coordinators, agents,
order routers), lets a price tape fall, and watches. It freezes nothing itself: a rule of the coordinator must trip. It
changes the flag only as an operator would, by the ``killswitch`` command. What happened is judged from the store and
from the simulated venue's own record of arrivals, not from what the routers say of themselves.

Every phase has a deadline and ends with a sentence. What did not happen is said, and the exit code is then 1.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from killswitch.clock import now_ns
from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import CertificateRecord, UnreadableRecord
from killswitch.core.flag import Flag
from killswitch.core.permit import Timing, expiry_bound_ms
from killswitch.simulation.demo.cluster import CLUSTER, COORDINATORS, DemoCluster, DemoOptions, option_faults
from killswitch.simulation.demo.evidence import (
    DidNotHappen,
    certificate_faults,
    closing_faults,
    everybody_is_there,
    freeze_faults,
    newest_arrival_ns,
    read_certificate,
    read_flag,
    read_history_entry,
    read_stats,
    read_view,
    refused_by_gate,
    sequence_faults,
    take_picture,
)
from killswitch.simulation.demo.processes import (
    Children,
    CommandResult,
    ProcessFault,
    free_ports,
    make_folder,
    remove_folder,
    tail,
)
from killswitch.simulation.demo.result import DemoResult
from killswitch.simulation.demo.view import Verdict, View, make_view
from killswitch.simulation.venue_client import VenueFault, VenueOperator
from killswitch.stores import StoreError, StoreUnavailable, open_store
from killswitch.stores.etcd.embedded import EmbeddedStore

__all__ = ["DemoOptions", "option_faults", "run_demo", "certificate_faults"]

T = TypeVar("T")

# Seconds of a quiet machine: what waits stretches them by the pace of this one.
START_WITHIN_S = 40.0
TRADING_WITHIN_S = 20.0
CRASH_WITHIN_S = 30.0
CERTIFICATE_WITHIN_S = 15.0
REFUSALS_FOR_S = 2.0
RESUME_WITHIN_S = 15.0
COMMAND_WITHIN_S = 60.0
KILL_SLACK_S = 5.0
POLL_S = 0.05
PICTURE_EVERY_S = 0.3

EXIT_OK, EXIT_DID_NOT_HAPPEN, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
NOT_CONFIRMED = 3
"""Exit code of the command when a change is written but not every node has confirmed it."""


class Demo:
    """One run, phase by phase. What it learns is kept in :attr:`result`."""

    def __init__(self, options: DemoOptions, folder: Path, view: View) -> None:
        self._options = options
        self._view = view
        self._children = Children(folder)
        self._began_s = time.monotonic()
        self._picture_due_s = 0.0
        self._setup = DemoCluster(options, folder)
        self._store: EmbeddedStore | None = None
        self._cluster: Cluster | None = None
        self._venue: VenueOperator | None = None
        self._refused_at_certificate: dict[str, int] = {}
        self.result = DemoResult()

    # -- the story -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go through the phases; the first that fails ends it, and the faults of :attr:`result` say why."""
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
            before = len(self.result.faults)
            try:
                sentence = play()
            except (DidNotHappen, ProcessFault, StoreError, UnreadableRecord, VenueFault) as error:
                self.result.faults.append(f"{name}: {error}")
                self._say(Verdict(name, False, str(error), time.monotonic() - began_s))
                return
            ok = len(self.result.faults) == before
            told = sentence if ok else "; ".join(self.result.faults[before:])
            self._say(Verdict(name, ok, told, time.monotonic() - began_s))

    def _say(self, verdict: Verdict) -> None:
        self.result.verdicts.append(verdict)
        self._view.verdict(verdict)

    def _start(self) -> str:
        setup, options = self._setup, self._options
        venue = self._children.start_talking("venue", "killswitch.simulation.venue", setup.venue_arguments())
        store = open_store(f"embedded://{setup.store_folder}")
        if not isinstance(store, EmbeddedStore):
            raise DidNotHappen("the embedded store is not an embedded store")
        self._store, self._cluster = store, Cluster(store, CLUSTER)
        setup.write_config()
        # Before the crowd: a dozen processes that start at once leave a busy machine nothing for a command.
        self._succeed(self._run("init", "--reason", "a demo begins"), "init")
        address = self._children.hear(venue, within_s=COMMAND_WITHIN_S)
        self._venue = VenueOperator(address["host"], int(address["port"]))
        ports = free_ports(len(COORDINATORS) + len(setup.nodes))
        for router, arguments in setup.router_arguments(f"{address['host']}:{address['port']}"):
            self._children.start(router, "killswitch.simulation.trader", arguments)
        for coordinator in COORDINATORS:
            command = setup.coordinator_command(store.client_url, coordinator, ports.pop())
            self._children.start(coordinator, "killswitch", command)
        for node in setup.nodes:
            self._children.start(
                setup.agent(node), "killswitch", setup.agent_command(store.client_url, node, ports.pop())
            )

        def everybody_there() -> bool:
            return everybody_is_there(self._require_cluster(), self._require_venue(), setup)

        self._until(everybody_there, START_WITHIN_S, "leader, agents and routers together")
        routers = options.routers * options.nodes
        leader = self._require_cluster().leader()
        return (
            f"{options.nodes} nodes with {routers} routers hold permits, coordinator {leader.id if leader else '?'} "
            f"leads, etcd at {store.client_url}"
        )

    def _trade(self) -> str:
        venue = self._require_venue()
        venue.start()

        names = self._setup.routers()

        def everybody_trades() -> dict[str, Any] | None:
            summary = venue.summary()
            owners = [summary["owners"][name] for name in names]
            working = all(owner["accepted"] and owner["open"] for owner in owners)
            return summary if working and summary["filled"] >= len(names) else None

        seen = self._until(
            everybody_trades, TRADING_WITHIN_S, "fills, and working orders of every router, at the venue"
        )
        if read_flag(self._require_cluster()).freezes:
            raise DidNotHappen("the cluster froze before the fall began")
        return (
            f"the venue accepted {seen['accepted']} orders, {seen['filled']} are filled, {seen['open_orders']} working"
        )

    def _kill(self) -> str:
        """Kill an agent while its routers have orders working, and wait until these routers stopped by themselves."""
        node, venue = str(self._options.kill_agent), self._require_venue()
        mine = self._setup.routers(node)

        def working() -> int:
            owners = venue.summary()["owners"]
            return sum(int(owners[name]["open"]) for name in mine) if all(owners[name]["open"] for name in mine) else 0

        found = self._until(working, TRADING_WITHIN_S, f"working orders of every router of {node}")
        self._children.kill(self._setup.agent(node))
        killed_ns = now_ns()
        self.result.agent_killed = True
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
            self.result.faults.append(f"the venue accepted {late} orders of {node} after its permit had run out")
        newest_ns = newest_arrival_ns(venue.summary()["owners"], mine, killed_ns)
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
        self.result.freeze = {**freeze.to_json(), "epoch": flag.epoch}
        self.result.faults += freeze_faults(freeze)
        return f"{freeze.actor} froze the cluster, epoch {flag.epoch}: {freeze.reason}"

    def _certify(self) -> str:
        result = self.result
        try:
            record = self._until(self._final_certificate, CERTIFICATE_WITHIN_S, "a final certificate in the store")
        except DidNotHappen as error:
            if result.certificate is None:
                raise
            self._view.certificate(result.certificate)
            said = "; ".join(f"{line['node']}: {line['note']}" for line in result.certificate["nodes"] if line["note"])
            raise DidNotHappen(f"{error}; the last one says: {said or 'nothing is missing'}") from error
        certificate = record.model_dump(mode="json")
        seen = self._require_venue().summary()
        result.open_after_freeze = int(seen["open_orders"])
        self._refused_at_certificate = {name: refused_by_gate(body) for name, body in read_stats(self._setup).items()}
        self._view.certificate(certificate)
        result.faults += certificate_faults(certificate, self._setup.nodes, self._options.kill_agent)
        if result.open_after_freeze:
            result.faults.append(f"the venue shows {result.open_after_freeze} orders open after the certificate")
        result.faults += sequence_faults(
            certificate, seen["owners"], {node: self._setup.routers(node) for node in self._setup.nodes}
        )
        after_ms = certificate["stopped_after_ms"]
        return (
            f"every node has stopped, the last gate {after_ms:,.0f} ms after the freeze began; the venue's record "
            f"agrees: nothing is open"
        )

    def _watch_refusals(self) -> str:
        enough_s = time.monotonic() + REFUSALS_FOR_S
        self._read_figures()
        # Counters reach their file a few times a second: the last ones are given time to arrive.
        give_up_s = max(enough_s, time.monotonic()) + self._children.pace.stretch(REFUSALS_FOR_S)

        def seen_enough() -> bool:
            now_s = time.monotonic()
            return now_s >= give_up_s or (now_s >= enough_s and not self._idle_routers())

        self._until(seen_enough, give_up_s - time.monotonic() + 1.0, "the end of the wait for refusals")
        for name in self._idle_routers():
            self.result.faults.append(f"router {name} counted no refused attempt while the cluster was frozen")
        tried = self._refusals_since_certificate()
        return f"{sum(tried.values())} attempts of {len(tried)} routers were refused before anything was sent"

    def _release(self) -> str:
        result = self.result
        venue, flag = self._require_venue(), read_flag(self._require_cluster())
        epoch = str(flag.epoch)
        done = self._run("release", "--epoch", epoch, "--reason", "the demo's operator has looked", "--yes")
        # With a dead agent not every node can confirm that it is open again.
        if done.exit_code != NOT_CONFIRMED or self._options.kill_agent is None:
            self._succeed(done, "release")
        entry = read_history_entry(self._require_cluster(), flag.epoch + 1)
        if entry.kind != "release" or entry.in_force:
            raise DidNotHappen(f"the entry of epoch {entry.epoch} is no release of everything but a {entry.kind}")
        result.released_at = entry.at
        certified_at = result.certificate["at"] if result.certificate else entry.at
        between = venue.summary(since_wall=certified_at, until_wall=entry.at)
        result.accepted_after_certificate = int(between["accepted"])
        if result.accepted_after_certificate:
            result.faults.append(f"the venue accepted {between['accepted']} orders between certificate and release")
        return f"{entry.actor} lifted {', '.join(entry.lifted)}; until then the venue had accepted nothing"

    def _resume(self) -> str:
        venue, killed = self._require_venue(), self._options.kill_agent
        alive = [name for node in self._setup.nodes if node != killed for name in self._setup.routers(node)]

        def accepted() -> int:
            owners = venue.summary(since_wall=self.result.released_at)["owners"]
            counts = [int(owners[name]["accepted"]) for name in alive]
            return sum(counts) if all(counts) else 0

        count = self._until(accepted, RESUME_WITHIN_S, "new orders of every router of a living node at the venue")
        if killed is None:
            return f"the venue has accepted {count} new orders"
        dead = sum(
            int(venue.summary(since_wall=self.result.released_at)["owners"][name]["accepted"])
            for name in self._setup.routers(killed)
        )
        if dead:
            self.result.faults.append(f"the venue accepted {dead} orders of {killed}, which has no agent")
        return f"the venue has accepted {count} new orders, none of {killed}, which has no agent"

    def _verify_history(self) -> str:
        self._succeed(self._run("history", "--verify"), "history --verify")
        self.result.history_verified = True
        return f"the chain of {read_flag(self._require_cluster()).epoch} entries holds"

    # -- what it looks at ----------------------------------------------------------------------------------------

    def _until(self, condition: Callable[[], T | None], within_s: float, what: str) -> T:
        """Poll until ``condition`` returns something true, and show the picture meanwhile.

        Args:
            condition: what is waited for.
            within_s: how long, on a quiet machine.
            what: its name, for the fault.

        Raises:
            DidNotHappen: not within the time, or a process ended that should not have.
        """
        within_s = self._children.pace.stretch(within_s)
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
                raise DidNotHappen(
                    f"{what} did not come within {within_s:.1f} s{trouble}; {self._children.last_logged()}"
                )
            time.sleep(POLL_S)

    def _frozen_flag(self) -> Flag | None:
        flag = read_flag(self._require_cluster())
        return flag if flag.freezes else None

    def _final_certificate(self) -> CertificateRecord | None:
        """The leader's certificate for the flag as it stands, once nothing more will be added to it.

        One that is not final yet is kept in :attr:`result`, to be shown if no better one comes.
        """
        record = read_certificate(self._require_cluster())
        if record is None:
            return None
        self.result.certificate = record.model_dump(mode="json")
        return record if record.final else None

    def _read_figures(self) -> None:
        """Read what the cluster holds while it is frozen: by the command, and the drawdown as the leader wrote it."""
        result = self._run("exposure", output="json")
        self._succeed(result, "exposure")
        exposure = result.document()
        self.result.figures.update({name: exposure.get(f"{name}_usd") for name in ("gross", "net", "pnl")})
        view = read_view(self._require_cluster())
        if view is not None:
            self.result.figures["drawdown"] = view.drawdown_usd

    def _refusals_since_certificate(self) -> dict[str, int]:
        stats = read_stats(self._setup)
        return {name: refused_by_gate(body) - self._refused_at_certificate.get(name, 0) for name, body in stats.items()}

    def _idle_routers(self) -> list[str]:
        return [name for name, refusals in self._refusals_since_certificate().items() if refusals <= 0]

    def _show_picture(self) -> None:
        """Give the view new figures, a few times a second."""
        if self._venue is None or self._cluster is None or time.monotonic() < self._picture_due_s:
            return
        self._picture_due_s = time.monotonic() + PICTURE_EVERY_S
        killed = self._options.kill_agent if self.result.agent_killed else None
        self._view.picture(take_picture(self._cluster, self._venue, self._setup, killed))

    # -- what it starts ------------------------------------------------------------------------------------------

    def _run(self, *arguments: str, output: str = "table") -> CommandResult:
        command = self._setup.command(self._require_store().client_url, *arguments, output=output)
        return self._children.run("killswitch", command, within_s=COMMAND_WITHIN_S)

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
        result = self.result
        routers = self._children.names_of("killswitch.simulation.trader")
        running = [name for name in routers if self._children.exit_code(name) is None]
        result.faults += self._children.stop(routers)
        for name in running:
            code = self._children.exit_code(name)
            if code:
                result.faults.append(
                    f"router {name} ended with exit code {code}: orders of it may be left at the venue"
                )
        if self._venue is not None:
            with contextlib.suppress(VenueFault):
                result.venue_record = self._venue.summary()
            self._venue.close()
        if result.released_at is not None:
            result.faults += closing_faults(result.venue_record, read_stats(self._setup))
        result.faults += self._children.stop(self._children.names_of("killswitch"))
        result.faults += self._children.stop(self._children.names_of("killswitch.simulation.venue"))
        if self._store is not None:
            self._store.close()

    def document(self) -> dict[str, Any]:
        """Put together what happened: schema ``killswitch.demo/1``."""
        return self.result.document(
            self._options,
            self._setup,
            read_stats(self._setup),
            seconds=time.monotonic() - self._began_s,
            logs=self._children.logs,
        )


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
        exit_code = EXIT_DID_NOT_HAPPEN if demo.result.faults else EXIT_OK
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

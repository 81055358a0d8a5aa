"""Acks: whose word they are, and when. A real store in memory, a real gate page, the agent's own membership."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killswitch_agent.acknowledger import Acknowledger
from killswitch_agent.gatekeeper import GateKeeper
from killswitch_agent.journal import Journal
from killswitch_agent.membership import REPORT_UNREADABLE, Identity, NameInUse, NodeRegistration
from killswitch_agent.router_stops import RouterStops
from killswitch_agent.routers import RouterRegistry

from killswitch.cluster.cluster import Cluster, new_freeze_id
from killswitch.cluster.records import AckRecord
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.permit import Timing
from killswitch.core.scopes import GLOBAL, Scope
from killswitch.gate import GateWriter
from killswitch.link import Exposure, Holding
from killswitch.stores import Entry, StoreUnavailable
from killswitch.stores.memory import MemoryStore
from tests.support.faulty_store import FaultyStore

TIMING = Timing()


class AgentAtStore:
    """An agent's dealings with one store, without its threads: each step is the test's."""

    def __init__(self, folder: Path, store: FaultyStore, instance: str) -> None:
        self.cluster = Cluster(store, "c", timing=TIMING)
        self.instance = instance
        self.unreadable: list[str] = []
        self.routers = RouterRegistry()
        self.stops = RouterStops()
        page = folder / f"{instance}.gate"
        self.gate = GateWriter(page, cluster="c", node="n1")
        self.keeper = GateKeeper(
            self.gate, Journal(folder / f"{instance}.journal", cluster="c"), self.cluster, "n1", on_change=lambda: None
        )
        self.membership = NodeRegistration(
            self.cluster,
            Identity("n1", instance, "build", str(page)),
            self.keeper,
            self.routers,
            utilization_pct=lambda: None,
            risk=dict,
            limits_hash=lambda: "h",
            report_unreadable=self.freeze_the_node,
            report_min_interval_ms=0,
            report_max_interval_ms=0,
        )
        self.acknowledger = Acknowledger(
            self.cluster,
            node="n1",
            instance=instance,
            keeper=self.keeper,
            stops=self.stops,
            routers=self.routers,
            fence=lambda: self.membership.fence,
        )

    def follow_the_flag(self) -> None:
        """As the threads *permit* and *acks* do at each turn."""
        self.keeper.renew()
        self.stops.sync(lambda *_: None, lambda *_: None)

    def freeze(self) -> None:
        freeze = Freeze(new_freeze_id(), GLOBAL, Mode.FROZEN, "manual", "a test", "operator:test", "now")
        self.cluster.freeze(freeze, timeout_ms=1_000)

    def freeze_the_node(self, why: str) -> None:
        """As the agent does when nobody can read what it held."""
        self.unreadable.append(why)
        scope = Scope.parse("node:n1")
        self.keeper.raise_local(
            Freeze(f"unknown-{self.instance}", scope, Mode.FROZEN, REPORT_UNREADABLE, why, "agent:n1", "now")
        )

    @property
    def ack(self) -> AckRecord | None:
        """What stands in the store."""
        return self.cluster.acks().get("n1")


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[FaultyStore]:
    """A store of this test alone."""
    with FaultyStore(MemoryStore(request.node.nodeid)) as faulty:
        yield faulty


@pytest.fixture
def make_agent(tmp_path: Path, store: FaultyStore) -> Iterator[Callable[[str], AgentAtStore]]:
    """Make agents of one node at one store, initialised, each with a gate of its own as in another pod."""
    Cluster(store, "c", timing=TIMING).initialise(actor="operator:test", reason="test")
    made: list[AgentAtStore] = []

    def make(instance: str) -> AgentAtStore:
        made.append(AgentAtStore(tmp_path, store, instance))
        return made[-1]

    yield make
    for agent in made:
        agent.keeper.close()


def test_an_agent_that_waits_for_the_name_acknowledges_nothing(make_agent: Callable[[str], AgentAtStore]) -> None:
    """PROOF, NOT HOPE: a second pod of a node knows nothing of the gate that it would speak of."""
    real, twin = make_agent("real"), make_agent("twin")
    real.membership.join()
    real.freeze()
    with pytest.raises(NameInUse):
        twin.membership.join()
    twin.follow_the_flag()
    assert not twin.acknowledger.write_ack(), "it is due for as long as the name is somebody else's"
    assert real.ack is None
    real.follow_the_flag()
    assert real.acknowledger.write_ack()
    assert real.ack is not None
    assert (real.ack.instance, real.ack.epoch) == ("real", 2)


def test_no_ack_is_written_before_the_routers_of_an_earlier_run_are_known(
    make_agent: Callable[[str], AgentAtStore],
) -> None:
    """PROOF, NOT HOPE: restarted during a freeze, a node is not flat while orders of before are unproven."""
    earlier = make_agent("earlier")
    earlier.membership.join()
    earlier.routers.hello("r1", "run-1", reconciled=True)
    earlier.routers.exposure("r1", "run-1", Exposure(holdings={"BTC": Holding(1.0, 10.0)}, working_orders=3))
    earlier.membership.report_if_due()
    earlier.freeze()
    earlier.membership.leave()
    later = make_agent("later")
    later.follow_the_flag()
    assert not later.acknowledger.write_ack()
    assert later.ack is None
    later.membership.join()
    assert later.acknowledger.write_ack()
    assert later.ack is not None
    assert (later.ack.complete, later.ack.orders_open) == (True, 3)


def test_a_node_that_could_not_read_its_own_report_says_nothing_yet(
    make_agent: Callable[[str], AgentAtStore], store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PROOF, NOT HOPE: lease and record are there; the report that names the routers is still to come."""
    agent = make_agent("only")
    agent.freeze()
    agent.follow_the_flag()
    report_key, read = agent.cluster.keys.under("reports", "n1"), store.read

    def read_all_but_the_report(key: str) -> Entry | None:
        if key == report_key:
            raise StoreUnavailable("no answer in time")
        return read(key)

    with monkeypatch.context() as patched:
        patched.setattr(store, "read", read_all_but_the_report)
        with pytest.raises(StoreUnavailable):
            agent.membership.join()
        assert set(agent.cluster.membership().live) == {"n1"}
        assert not agent.acknowledger.write_ack()
        assert agent.ack is None
    agent.membership.join()
    assert agent.acknowledger.write_ack()


@pytest.mark.parametrize("what", ["the report", "one router"])
def test_a_node_whose_earlier_report_cannot_be_read_is_frozen_and_never_flat(
    make_agent: Callable[[str], AgentAtStore], what: str
) -> None:
    """UNKNOWN IS FROZEN, PROOF NOT HOPE: its next report writes over what it held, so the node is frozen before that;
    it is not flat until a person has released that freeze.
    """
    earlier = make_agent("earlier")
    earlier.membership.join()
    earlier.routers.hello("r1", "run-1", reconciled=True)
    earlier.routers.exposure("r1", "run-1", Exposure(working_orders=3))
    earlier.membership.report_if_due()
    earlier.membership.leave()
    key = earlier.cluster.keys.under("reports", "n1")
    entry = earlier.cluster.store.read(key)
    assert entry is not None
    report = json.loads(entry.value or b"")
    if what == "the report":
        report["v"] = 99
    else:
        report["routers"][0]["exposure"] = {"holdings": "?"}
    earlier.cluster.store.commit({}, {key: json.dumps(report).encode()})
    earlier.freeze()
    later = make_agent("later")
    later.membership.join()
    assert [why.partition(" held before is unknown")[0] for why in later.unreadable] == [
        "what the node" if what == "the report" else "what router r1"
    ]
    later.follow_the_flag()
    assert later.acknowledger.write_ack()
    assert later.ack is not None
    assert not later.ack.complete
    later.keeper.lift_local("unknown-later")
    assert later.acknowledger.write_ack()
    assert later.ack.complete


def test_the_ack_of_a_lease_that_is_gone_is_refused_by_the_store(make_agent: Callable[[str], AgentAtStore]) -> None:
    """PROOF, NOT HOPE: an agent that slept while its lease ran out does not write over the word of its successor."""
    sleeper, successor = make_agent("sleeper"), make_agent("successor")
    sleeper.membership.join()
    live = sleeper.cluster.keys.under("live", "n1")
    sleeper.cluster.store.commit({}, {}, [live])  # as the store does when a lease runs out
    successor.membership.join()
    successor.freeze()
    successor.follow_the_flag()
    assert successor.acknowledger.write_ack()
    sleeper.follow_the_flag()
    assert not sleeper.acknowledger.write_ack()
    assert sleeper.ack is not None
    assert sleeper.ack.instance == "successor"


def test_a_node_that_joins_again_says_again_what_it_said(make_agent: Callable[[str], AgentAtStore]) -> None:
    """PROOF, NOT HOPE: what was said under an earlier lease may be gone, as when a person forgot the sleeping node."""
    agent = make_agent("only")
    agent.membership.join()
    agent.freeze()
    agent.follow_the_flag()
    assert agent.acknowledger.write_ack()
    keys = [agent.cluster.keys.under(family, "n1") for family in ("live", "nodes", "acks")]
    agent.cluster.store.commit({}, {}, keys)
    agent.membership.join()
    assert agent.acknowledger.write_ack()
    assert agent.ack is not None
    assert agent.ack.epoch == 2

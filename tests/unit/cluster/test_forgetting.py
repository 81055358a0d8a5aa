"""Taking a node out of the books: when it is refused, what it leaves on record, and that nobody else notices."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from killswitch_agent.gatekeeper import GateKeeper
from killswitch_agent.journal import Journal

from killswitch import Gate
from killswitch.cluster.certificates import CertificateCollector
from killswitch.cluster.cluster import Cluster, NotInitialised
from killswitch.cluster.forgetting import (
    ATTEMPTS,
    LostNode,
    NotForgotten,
    PartlyForgotten,
    UnknownNode,
    forget,
    forget_in_all,
    look,
    look_in_all,
    wait_left_ms,
)
from killswitch.cluster.records import LiveRecord, UnreadableRecord
from killswitch.core.flag import FORGOTTEN_MAX_BYTES
from killswitch.core.modes import Mode
from killswitch.gate import GateWriter
from killswitch.stores.memory import MemoryStore
from killswitch.stores.port import Conflict, OutcomeUnknown, StoreUnavailable
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import wait_until
from tests.unit.cluster.test_cluster import (
    HandClock,
    a_node,
    a_report,
    an_ack,
    certificate_of,
    everything,
    freeze_now,
    lose_the_reply_and_all_that_follows,
    put,
)
from tests.unit.core.test_core_flag import AT, a_freeze

PERMIT_TTL_MS = 2_000
BOUND_MS = PERMIT_TTL_MS * 1.05


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    """A store that misbehaves when told to."""
    with FaultyStore(MemoryStore(uuid.uuid4().hex)) as made:
        yield made


@pytest.fixture
def clock() -> HandClock:
    """Moved by hand."""
    return HandClock()


@pytest.fixture
def cluster(store: FaultyStore, clock: HandClock) -> Cluster:
    """A cluster at epoch 2, frozen, with a lost node n2 that holds something."""
    made = Cluster(store, "c", clock=clock, wall_clock=lambda: AT, sleep=clock.sleep)
    made.initialise(actor="operator:ann", reason="set up")
    freeze_now(made)
    lose_a_node(made)
    return made


def lose_a_node(cluster: Cluster, node: str = "n2") -> None:
    """A registered node without a live agent, with a position and working orders."""
    put(cluster, cluster.keys.under("nodes", node), a_node(node, PERMIT_TTL_MS))
    put(cluster, cluster.keys.under("reports", node), a_report(node, working_orders=3, pnl_usd=-7.5, BTC=-1250.0))
    put(cluster, cluster.keys.under("acks", node), an_ack(node))


def go_live(cluster: Cluster, node: str = "n2") -> None:
    """The node's agent takes its lease."""
    record = LiveRecord(node=node, instance="i", pid=7, boot_id="b", gate="/g", started_at=AT)
    cluster.store.hold(cluster.keys.under("live", node), record.to_bytes(), 60_000)


def proven(cluster: Cluster, node: str = "n2") -> LostNode:
    """A look at the node after which its permit bound has passed."""
    remains = look(cluster, node)
    assert isinstance(cluster.clock, HandClock)
    cluster.clock.sleep(remains.wait_ms / 1000 + 0.001)
    return remains


def forget_it(cluster: Cluster, remains: LostNode | None = None) -> Any:
    """Forget n2, with its bound passed."""
    return forget(cluster, remains or proven(cluster), actor="operator:ann", reason="its machine is sold")


def test_a_forgotten_node_leaves_the_books_and_its_figures_stay_on_record(cluster: Cluster) -> None:
    """NOTHING IS LOST: its exposure counts no more; the history says who forgot what, why, and what it held."""
    assert cluster.membership().exposure().gross_usd == 1250.0
    before = cluster.read_flag().flag
    committed = forget_it(cluster)
    membership = cluster.membership()
    assert (dict(membership.nodes), dict(membership.reports), cluster.acks()) == ({}, {}, {})
    assert membership.exposure().gross_usd == 0.0
    assert committed.flag == cluster.read_flag().flag
    assert (committed.flag.epoch, committed.flag.freezes) == (before.epoch + 1, before.freezes)
    _, entry = cluster.history()[-1]
    assert (entry.kind, entry.actor, entry.reason) == ("forget", "operator:ann", "its machine is sold")
    said = entry.forgotten
    assert said is not None
    assert (said["node"], said["permit_ttl_ms"], said["record"]["address"]) == ("n2", PERMIT_TTL_MS, "h")
    assert (said["report"]["pnl_usd"], said["report"]["working_orders"]) == (-7.5, 3)
    assert said["report"]["holdings"]["BTC"]["notional_usd"] == -1250.0
    assert said["ack"]["last_sequence"] == 9
    assert cluster.verify_history() == []


def test_all_of_it_is_one_commit(cluster: Cluster, store: FaultyStore) -> None:
    """NOTHING IS LOST: there is no moment at which the records are gone and the history does not say so."""
    remains = proven(cluster)
    calls: list[tuple[Any, ...]] = []
    real = store.commit

    def recorded(*args: Any, **named: Any) -> int:
        calls.append((args, named))
        return real(*args, **named)

    store.commit = recorded  # type: ignore[method-assign]
    forget_it(cluster, remains)
    ((_, named),) = calls
    families = ("nodes", "reports", "acks")
    assert sorted(named["deletes"]) == sorted(cluster.keys.under(family, "n2") for family in families)
    assert set(named["puts"]) == {cluster.keys.flag, cluster.keys.history(3)}
    assert named["expect"][cluster.keys.under("live", "n2")] is None


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_live_node_is_not_forgotten(cluster: Cluster) -> None:
    """PROOF, NOT HOPE: whoever holds a lease may hold a permit."""
    go_live(cluster)
    before = everything(cluster)
    with pytest.raises(
        NotForgotten, match=r"node 'n2' is alive: an agent \(pid 7, since .*, gate /g\) holds its lease"
    ):
        look(cluster, "n2")
    assert everything(cluster) == before


def test_a_lease_that_cannot_be_read_is_a_lease(cluster: Cluster) -> None:
    """UNKNOWN IS FROZEN: somebody holds it, whoever that is."""
    put(cluster, cluster.keys.under("live", "n2"), b"?")
    with pytest.raises(NotForgotten, match="node 'n2' is alive: somebody"):
        look(cluster, "n2")


@pytest.mark.parametrize("node", ["n3", "", "n", "a/b"])
def test_an_unknown_node_is_not_forgotten(cluster: Cluster, node: str) -> None:
    """A mistyped name is told, and nothing happens."""
    before = everything(cluster)
    with pytest.raises(NotForgotten, match="cluster 'c' knows no node"):
        look(cluster, node)
    assert everything(cluster) == before


@pytest.mark.parametrize("early_ms", [BOUND_MS, 1.0])
def test_a_node_is_not_forgotten_while_a_permit_of_it_may_be_left(
    cluster: Cluster, clock: HandClock, early_ms: float
) -> None:
    """PROOF, NOT HOPE: no certificate leaves a node out that may still trade."""
    remains = look(cluster, "n2")
    assert wait_left_ms(cluster, remains) == BOUND_MS
    clock.sleep((BOUND_MS - early_ms) / 1000)
    before = everything(cluster)
    with pytest.raises(NotForgotten, match=f"may hold a permit for another {early_ms:.0f} ms"):
        forget_it(cluster, remains)
    assert everything(cluster) == before
    clock.sleep(early_ms / 1000 + 0.001)
    assert wait_left_ms(cluster, remains) == 0
    forget_it(cluster, remains)


def test_the_bound_is_that_of_the_nodes_own_permit(cluster: Cluster) -> None:
    """PROOF, NOT HOPE: a node with longer permits than the rest is waited for longer."""
    put(cluster, cluster.keys.under("nodes", "n2"), a_node("n2", 9_000))
    assert look(cluster, "n2").wait_ms == 9_000 * 1.05


@pytest.mark.parametrize("sign", ["lease", "record", "report", "ack", "report gone"])
@pytest.mark.parametrize("when", ["while it was waited", "between the reads and the commit"])
def test_a_node_that_shows_itself_meanwhile_is_not_forgotten(
    cluster: Cluster, store: FaultyStore, sign: str, when: str
) -> None:
    """PROOF, NOT HOPE: whatever of the node changes in the store since the look, it is there."""
    remains = proven(cluster)
    shows: dict[str, Callable[[], object]] = {
        "lease": lambda: go_live(cluster),
        "record": lambda: put(cluster, cluster.keys.under("nodes", "n2"), a_node("n2", PERMIT_TTL_MS)),
        "report": lambda: put(cluster, cluster.keys.under("reports", "n2"), a_report("n2", BTC=-1250.0)),
        "ack": lambda: put(cluster, cluster.keys.under("acks", "n2"), an_ack("n2")),
        "report gone": lambda: store.commit({}, {}, [cluster.keys.under("reports", "n2")]),
    }
    after: list[Any] = []
    if when == "while it was waited":
        shows[sign]()
        after.append(everything(cluster))
    else:
        real = store.commit

        def shown_first(*args: Any, **named: Any) -> int:
            store.commit = real  # type: ignore[method-assign]
            shows[sign]()
            after.append(everything(cluster))
            return real(*args, **named)

        store.commit = shown_first  # type: ignore[method-assign]
    with pytest.raises(NotForgotten, match=r"is alive|has shown itself: its (nodes|reports|acks) changed"):
        forget_it(cluster, remains)
    assert after == [everything(cluster)]


@pytest.mark.parametrize("value", [None, b"unreadable"])
def test_without_a_flag_that_can_be_read_nothing_happens(cluster: Cluster, store: FaultyStore, value: Any) -> None:
    """UNKNOWN IS FROZEN: what cannot be read is not built upon."""
    remains = proven(cluster)
    if value is None:
        store.commit({}, {}, [cluster.keys.flag])
    else:
        put(cluster, cluster.keys.flag, value)
    before = everything(cluster)
    with pytest.raises((NotInitialised, UnreadableRecord)):
        forget_it(cluster, remains)
    assert everything(cluster) == before


# -- several stores --------------------------------------------------------------------------------------------------


@pytest.fixture
def second_store() -> Iterator[FaultyStore]:
    """Another store, which knows nothing of the first."""
    with FaultyStore(MemoryStore(uuid.uuid4().hex)) as made:
        yield made


@pytest.fixture
def second(second_store: FaultyStore, clock: HandClock) -> Cluster:
    """The same cluster in it, at epoch 1, with the lost node n2."""
    made = Cluster(second_store, "c", clock=clock, wall_clock=lambda: AT, sleep=clock.sleep)
    made.initialise(actor="operator:ann", reason="set up")
    lose_a_node(made)
    return made


def proven_in_all(*clusters: Cluster) -> list[tuple[Cluster, LostNode]]:
    """A look at n2 in every store after which its permit bound has passed."""
    found = look_in_all(clusters, "n2")
    assert isinstance(clusters[0].clock, HandClock)
    clusters[0].clock.sleep(max(remains.wait_ms for _, remains in found) / 1000 + 0.001)
    return found


def forget_everywhere(found: list[tuple[Cluster, LostNode]]) -> list[Any]:
    """Forget n2 in all of them."""
    return list(forget_in_all(found, actor="operator:ann", reason="its machine is sold"))


def test_a_node_is_forgotten_in_every_store_that_knows_it(cluster: Cluster, second: Cluster) -> None:
    """PROOF, NOT HOPE: a certificate joins what all stores know, so one store alone would name it for ever."""
    done = forget_everywhere(proven_in_all(cluster, second))
    assert [one.flag.epoch for one in done] == [3, 2]
    for one in (cluster, second):
        assert dict(one.membership().nodes) == {}
        assert one.history()[-1][1].kind == "forget"
        assert one.verify_history() == []


def test_a_store_that_never_knew_the_node_keeps_nobody_from_forgetting_it(cluster: Cluster, second: Cluster) -> None:
    """It is asked all the same, for the node may be alive there."""
    forget_everywhere(proven_in_all(second))
    before = everything(second)
    forget_everywhere(proven_in_all(second, cluster))
    assert (dict(cluster.membership().nodes), everything(second)) == ({}, before)
    with pytest.raises(UnknownNode, match="knows no node 'n2'"):
        look_in_all([cluster, second], "n2")


@pytest.mark.parametrize("recorded", [True, False])
def test_a_node_that_is_alive_in_any_store_is_not_forgotten(cluster: Cluster, second: Cluster, recorded: bool) -> None:
    """PROOF, NOT HOPE: whoever holds a lease anywhere may come back everywhere."""
    if not recorded:
        second.store.commit({}, {}, [second.keys.under(family, "n2") for family in ("nodes", "reports", "acks")])
    go_live(second)
    before = [everything(cluster), everything(second)]
    with pytest.raises(NotForgotten, match="node 'n2' is alive"):
        look_in_all([cluster, second], "n2")
    assert [everything(cluster), everything(second)] == before


def test_a_node_that_shows_itself_in_one_store_meanwhile_is_forgotten_in_none(
    cluster: Cluster, second: Cluster
) -> None:
    """All are looked at once more before the first of them forgets."""
    found = proven_in_all(cluster, second)
    put(second, second.keys.under("reports", "n2"), a_report("n2", BTC=-1250.0))
    before = everything(cluster)
    with pytest.raises(NotForgotten, match="has shown itself: its reports changed"):
        forget_everywhere(found)
    assert everything(cluster) == before


def test_a_store_that_fails_after_another_has_forgotten_is_told_with_what_to_run(
    cluster: Cluster, second: Cluster, second_store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NOTHING IS LOST: the person hears where the node still counts, and the same command brings it to an end."""
    found = proven_in_all(cluster, second)

    def away(*_: Any, **__: Any) -> int:
        raise StoreUnavailable("it is down")

    monkeypatch.setattr(second_store, "commit", away)
    with pytest.raises(PartlyForgotten) as told:
        forget_everywhere(found)
    said = str(told.value)
    first, other = cluster.store.address, second.store.address
    assert f"was forgotten in {first}, but NOT in {other} (it is down), and stays in every certificate" in said
    assert said.endswith(f"then run `killswitch --store {other} --cluster c nodes forget n2`")
    assert (dict(cluster.membership().nodes), list(second.membership().nodes)) == ({}, ["n2"])
    monkeypatch.undo()
    forget_everywhere(proven_in_all(cluster, second))
    assert dict(second.membership().nodes) == {}


# -- other changes, and a store that fails ---------------------------------------------------------------------------


def test_a_freeze_that_comes_between_stays_and_the_node_is_forgotten(cluster: Cluster, store: FaultyStore) -> None:
    """ONE VOICE FREEZES: forgetting is built on the flag that it meets, and never loses a cause."""
    remains = proven(cluster)
    real = store.commit

    def freeze_first(*args: Any, **named: Any) -> int:
        store.commit = real  # type: ignore[method-assign]
        freeze_now(Cluster(store, "c", wall_clock=lambda: AT), a_freeze("newer"))
        return real(*args, **named)

    store.commit = freeze_first  # type: ignore[method-assign]
    committed = forget_it(cluster, remains)
    assert committed.flag.freeze_ids() == {"f1", "newer"}
    assert [entry.kind for _, entry in cluster.history()] == ["init", "freeze", "freeze", "forget"]
    assert cluster.verify_history() == []


def test_a_flag_that_never_stands_still_ends_in_a_conflict(cluster: Cluster, store: FaultyStore) -> None:
    """A limit on everything: after so many attempts it says that nothing was forgotten."""
    remains = proven(cluster)
    real, attempts = store.commit, []

    def conflict(*args: Any, **named: Any) -> int:
        attempts.append(1)
        raise Conflict("the test")

    store.commit = conflict  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="nothing was forgotten, try again"):
        forget_it(cluster, remains)
    store.commit = real  # type: ignore[method-assign]
    assert len(attempts) == ATTEMPTS
    assert "n2" in cluster.membership().nodes


def test_a_lost_reply_is_settled_by_the_history(cluster: Cluster, store: FaultyStore) -> None:
    """NOTHING IS LOST: the entry of the next epoch is ours, so it happened, once."""
    remains = proven(cluster)
    store.lose_next_reply()
    committed = forget_it(cluster, remains)
    assert store.failed_calls == 1
    assert committed.flag == cluster.read_flag().flag
    assert [entry.kind for _, entry in cluster.history()] == ["init", "freeze", "forget"]


def test_a_lost_reply_of_a_store_that_is_gone_is_said_to_be_unknown(cluster: Cluster, store: FaultyStore) -> None:
    """PROOF, NOT HOPE: the books may be without the node already, and the error says so."""
    remains = proven(cluster)
    lose_the_reply_and_all_that_follows(store)
    with pytest.raises(OutcomeUnknown, match="node 'n2' may or may not be forgotten"):
        forget_it(cluster, remains)


@pytest.mark.parametrize("fault", ["time out", "somebody else"])
def test_what_is_not_known_to_have_happened_is_not_said_to_have(
    cluster: Cluster, store: FaultyStore, fault: str
) -> None:
    """PROOF, NOT HOPE: without our entry in the history the outcome stays unknown."""
    remains = proven(cluster)
    real = store.commit

    def unanswered(*args: Any, **named: Any) -> int:
        store.commit = real  # type: ignore[method-assign]
        if fault == "somebody else":
            freeze_now(Cluster(store, "c", wall_clock=lambda: AT), a_freeze("newer"))
        raise OutcomeUnknown("the test")

    store.commit = unanswered  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        forget_it(cluster, remains)
    assert "n2" in cluster.membership().nodes


def test_a_store_that_is_cut_off_forgets_nothing(cluster: Cluster, store: FaultyStore) -> None:
    """A store that does not answer is told, and nothing happens."""
    remains = proven(cluster)
    store.cut()
    with pytest.raises(StoreUnavailable):
        forget_it(cluster, remains)
    store.heal()
    assert "n2" in cluster.membership().nodes


# -- records that cannot be read, and large ones ---------------------------------------------------------------------


def test_records_that_cannot_be_read_are_kept_as_text(cluster: Cluster) -> None:
    """NOTHING IS LOST: a node of which nothing can be read can be forgotten, and what stood there is on record."""
    put(cluster, cluster.keys.under("nodes", "n2"), b'{"v": 2, "node": "n2"}')
    put(cluster, cluster.keys.under("reports", "n2"), b"\xff" * 100_000)
    remains = look(cluster, "n2")
    assert (remains.permit_ttl_ms, remains.wait_ms) == (None, BOUND_MS)
    forget_it(cluster)
    said = cluster.history()[-1][1].forgotten
    assert said is not None
    assert (said["permit_ttl_ms"], said["record"]["text"]) == (None, '{"v": 2, "node": "n2"}')
    assert "cannot be read" in said["record"]["unreadable"]
    assert (said["report"]["bytes"], len(said["report"]["sha256"])) == (100_000, 64)
    assert cluster.verify_history() == []


@pytest.mark.parametrize("left", ["nodes", "reports", "acks"])
def test_whatever_is_left_of_a_node_can_be_forgotten(cluster: Cluster, store: FaultyStore, left: str) -> None:
    """A report without a record still counts in the exposure, so it can be taken out too."""
    gone = [cluster.keys.under(family, "n2") for family in ("nodes", "reports", "acks") if family != left]
    store.commit({}, {}, gone)
    forget_it(cluster)
    assert [entry.key for entry in everything(cluster) if "n2" in entry.key] == []


def _report_with(**changed: Any) -> bytes:
    return json.dumps({**json.loads(a_report("n2", BTC=-1250.0)), **changed}).encode()


def _router(exposure: dict[str, Any]) -> dict[str, Any]:
    return {"router": "r", "instance": "i", "state": "lost", "orphaned_orders": 0, "exposure": exposure}


@pytest.mark.parametrize("what", ["routers", "holdings", "nesting"])
def test_a_report_too_large_for_the_history_is_kept_in_short(cluster: Cluster, what: str) -> None:
    """NOTHING IS LOST: the sums always fit; what is left out is named with its size, and the history can be read."""
    deep: dict[str, Any] = {}
    for _ in range(190):
        deep = {"a": deep}
    held = {"quantity": 1.0, "mark_price_usd": 1.0, "notional_usd": 1.0}
    changed: dict[str, Any] = {
        "routers": {"routers": [_router({"text": "x" * FORGOTTEN_MAX_BYTES})]},
        "holdings": {"holdings": {f"SYMBOL{number}": held for number in range(2_000)}},
        "nesting": {"routers": [_router(deep)]},
    }[what]
    put(cluster, cluster.keys.under("reports", "n2"), _report_with(**changed))
    assert cluster.membership().unreadable_reports() == ()
    forget_it(cluster)
    said = cluster.history()[-1][1].forgotten
    assert said is not None
    if what != "nesting":  # how deep a reader goes is its own affair; the history can be read either way
        assert what in said["left_out_bytes"]
    assert (said["report"]["working_orders"], said["report"]["gross_usd"]) == (2, 0.0)
    assert ("BTC" in said["report"].get("holdings", {})) is (what != "holdings")
    assert cluster.verify_history() == []


# -- nobody else notices ---------------------------------------------------------------------------------------------


def test_a_certificate_names_the_node_until_it_is_forgotten(cluster: Cluster) -> None:
    """PROOF, NOT HOPE: a lost node is in each certificate, a forgotten one is in none that begins later."""
    with CertificateCollector(cluster) as collector:
        first = certificate_of(collector, freeze_now(cluster, a_freeze("f2")))
        assert [line.node for line in first.nodes] == ["n2"]
    forget_it(cluster)
    with CertificateCollector(cluster) as collector:
        assert certificate_of(collector, freeze_now(cluster, a_freeze("f3"))).nodes == ()


@pytest.fixture
def node(tmp_path: Path, store: FaultyStore) -> Iterator[tuple[Cluster, GateKeeper, Gate]]:
    """Another node of the same cluster, on the real clock, with a gate of its own that is open."""
    cluster = Cluster(store, "c", wall_clock=lambda: AT)
    writer = GateWriter(tmp_path / "gate", cluster="c", node="n1")
    keeper = GateKeeper(writer, Journal(tmp_path / "j", cluster="c"), cluster, "n1", on_change=lambda: None)
    keeper.set_registered(True)
    keeper.lease_confirmed(cluster.clock())
    cluster.initialise(actor="a", reason="r")
    assert keeper.renew()
    with Gate.open(tmp_path / "gate") as gate:
        yield cluster, keeper, gate
    keeper.close()


def _forget_n2_now(cluster: Cluster) -> None:
    lose_a_node(cluster)
    remains = look(cluster, "n2")
    later = Cluster(cluster.store, "c", clock=lambda: remains.looked_ns + 3_000_000_000, wall_clock=lambda: AT)
    forget(later, remains, actor="a", reason="r")


def test_other_nodes_go_on_trading_while_a_node_is_forgotten(node: tuple[Cluster, GateKeeper, Gate]) -> None:
    """Forgetting closes nobody's gate, not for a moment: the epoch is adopted and orders pass all the while."""
    cluster, keeper, gate = node
    refused: list[int] = []
    asked, done = threading.Event(), threading.Event()

    def trade() -> None:
        while not done.is_set():
            if not gate.allows("BTC"):
                refused.append(keeper.view().epoch)
            asked.set()

    router = threading.Thread(target=trade)
    router.start()
    try:
        for _ in range(5):
            _forget_n2_now(cluster)
            keeper.heard(cluster.store.read(cluster.keys.flag))  # type: ignore[arg-type]
            asked.clear()
            wait_until(asked.is_set, what="a question to the gate")
            assert keeper.renew()
    finally:
        done.set()
        router.join(timeout=10)
    assert refused == []
    assert (keeper.view().epoch, keeper.last_finding) == (6, "adopt")


def test_several_nodes_forgotten_while_a_node_was_cut_off_are_followed(node: tuple[Cluster, GateKeeper, Gate]) -> None:
    """A node that missed them takes the newest epoch over by its lineage, and tells the store of no loss."""
    cluster, keeper, gate = node
    for _ in range(3):
        _forget_n2_now(cluster)
    assert keeper.renew()
    assert (keeper.view().epoch, keeper.reassertion) == (4, None)
    assert gate.allows("BTC")


def test_forgetting_a_node_opens_no_frozen_gate(node: tuple[Cluster, GateKeeper, Gate]) -> None:
    """RELEASE IS FENCED: freezes in force stay in force through it."""
    cluster, keeper, gate = node
    freeze_now(cluster, a_freeze("f1", "symbol:BTC"))
    assert keeper.renew()
    _forget_n2_now(cluster)
    assert keeper.renew()
    assert (gate.mode("BTC"), gate.mode("ETH")) == (Mode.FROZEN, Mode.ACTIVE)

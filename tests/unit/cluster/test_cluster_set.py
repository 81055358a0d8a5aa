"""One cluster in several stores, as the command sees it: what counts as frozen, and what as released."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from killswitch.cluster.cluster import AlreadyInitialised, Cluster, FreezeNotCommitted, NotInitialised
from killswitch.cluster.cluster_set import ClusterSet, PartlyReleased
from killswitch.core.certificate import Certificate, NodeProof, Proof, combine
from killswitch.core.flag import StaleEpoch, UnknownFreeze
from killswitch.core.permit import Timing
from killswitch.stores.memory import MemoryStore
from killswitch.stores.port import StoreUnavailable
from tests.support.faulty_store import FaultyStore
from tests.unit.cluster.test_cluster import lose_the_reply_and_all_that_follows
from tests.unit.core.test_core_flag import a_freeze

TIMEOUT_MS = 300


class Both:
    """A cluster in two stores that fail when told to."""

    def __init__(self) -> None:
        self.stores = [FaultyStore(MemoryStore(uuid.uuid4().hex)) for _ in range(2)]
        timing = Timing(backoff_cap_ms=20)
        self.set = ClusterSet([Cluster(store, "c", timing=timing) for store in self.stores])

    def epochs(self) -> list[int]:
        return [flag.epoch for flag in self.set.read_flags()]

    def ids(self) -> list[set[str]]:
        return [set(flag.freeze_ids()) for flag in self.set.read_flags()]

    def release(self, *ids: str, epochs: list[int] | None = None) -> list[int | None]:
        flags = self.set.read_flags()
        done = self.set.release(flags, epochs=epochs or self.epochs(), ids=ids, actor="operator:test", reason="a test")
        return [None if one is None else one.flag.epoch for one in done]


@pytest.fixture
def both() -> Iterator[Both]:
    made = Both()
    made.set.initialise(actor="operator:test", reason="a test")
    yield made
    for store in made.stores:
        store.heal()
        store.close()


def test_a_set_without_a_store_makes_no_sense() -> None:
    """No store would mean no freeze and no permit: refused."""
    with pytest.raises(ValueError, match="at least one"):
        ClusterSet([])


def test_a_freeze_goes_into_every_store(both: Both) -> None:
    """The same cause, with the same id, in each."""
    done = both.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    assert sorted(done.commits) == [0, 1]
    assert done.failures == {}
    assert both.ids() == [{"x"}, {"x"}]


@pytest.mark.parametrize("down", [0, 1])
def test_one_store_is_enough_to_freeze(both: Both, down: int) -> None:
    """ONE VOICE FREEZES: a store that is down is told of, and keeps nobody from freezing."""
    both.stores[down].cut()
    done = both.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    assert sorted(done.commits) == [1 - down]
    assert isinstance(done.failures[down], FreezeNotCommitted)


def test_the_proof_does_not_wait_for_a_store_that_is_down(both: Both) -> None:
    """PROOF, NOT HOPE: once one store has the freeze the other is left behind, long before the time is up."""
    both.stores[0].cut()
    done = both.set.freeze(a_freeze("x"), timeout_ms=60_000)
    assert sorted(done.commits) == [1]
    assert both.stores[0].failed_calls > 1, "it was given another chance"


def test_a_store_without_a_flag_keeps_nobody_from_freezing() -> None:
    """ONE VOICE FREEZES: an empty store says so, and the other one freezes."""
    made = Both()
    made.set.clusters[1].initialise(actor="operator:test", reason="a test")
    done = made.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    assert sorted(done.commits) == [1]
    assert isinstance(done.failures[0], NotInitialised)


def test_a_freeze_that_no_store_took_is_an_error_that_names_them_all(both: Both) -> None:
    """It is never said to be in force when it is not; nor not to be, when it may be."""
    for store in both.stores:
        store.cut()
    with pytest.raises(FreezeNotCommitted, match=r"is NOT in force.*; .*is NOT in force") as caught:
        both.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    assert not caught.value.may_have_happened
    for store in both.stores:
        store.heal()
    both.stores[0].cut()
    lose_the_reply_and_all_that_follows(both.stores[1])
    with pytest.raises(FreezeNotCommitted) as caught:
        both.set.freeze(a_freeze("y"), timeout_ms=TIMEOUT_MS)
    assert caught.value.may_have_happened


def test_a_release_lifts_in_every_store_what_it_holds(both: Both) -> None:
    """RELEASE IS FENCED: what only one store has is lifted there, and the other is left alone."""
    both.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    both.set.clusters[1].freeze(a_freeze("y"), timeout_ms=TIMEOUT_MS)
    assert both.release("y") == [None, 4]
    assert both.ids() == [{"x"}, {"x"}]
    assert both.release("x") == [3, 5]
    assert both.ids() == [set(), set()]


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_stale_epoch_of_any_store_releases_nothing(both: Both, wrong: int) -> None:
    """RELEASE IS FENCED: everything is checked before anything is written."""
    both.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    epochs = both.epochs()
    epochs[wrong] -= 1
    with pytest.raises(StaleEpoch):
        both.release("x", epochs=epochs)
    with pytest.raises(UnknownFreeze, match="not in force in any store: nobody"):
        both.release("x", "nobody")
    with pytest.raises(UnknownFreeze, match="none was named"):
        both.release()
    assert both.ids() == [{"x"}, {"x"}]


def test_a_store_that_is_down_keeps_everything_frozen(both: Both) -> None:
    """A release must be in all: with one store away nothing is released anywhere."""
    both.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    both.stores[1].cut()
    with pytest.raises(StoreUnavailable):
        both.release("x")
    both.stores[1].heal()
    assert both.ids() == [{"x"}, {"x"}]


def test_a_store_that_goes_away_in_mid_release_is_told_of(both: Both) -> None:
    """Half a release opens nothing, says where it stands, and can be finished."""
    both.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    flags, epochs = both.set.read_flags(), both.epochs()
    both.stores[1].cut()
    with pytest.raises(PartlyReleased, match=r"released in memory://.*, but NOT in memory://.*stays closed"):
        both.set.release(flags, epochs=epochs, ids=["x"], actor="operator:test", reason="a test")
    both.stores[1].heal()
    assert both.ids() == [set(), {"x"}]
    assert both.release("x") == [None, 3]
    assert both.ids() == [set(), set()]


def test_a_store_that_goes_away_with_its_answer_to_a_release_may_have_it(both: Both) -> None:
    """A reply that was lost is no "no": the sentence says that the second store may have taken the release."""
    both.set.freeze(a_freeze("x"), timeout_ms=TIMEOUT_MS)
    flags, epochs = both.set.read_flags(), both.epochs()
    lose_the_reply_and_all_that_follows(both.stores[1])
    with pytest.raises(PartlyReleased, match=r"released in .*, but may or may not be released in memory://"):
        both.set.release(flags, epochs=epochs, ids=["x"], actor="operator:test", reason="a test")
    both.stores[1].heal()
    assert both.ids() == [set(), set()]


def test_init_fills_in_what_is_missing(both: Both) -> None:
    """A flag that is there is left alone; only when all are there is it an error."""
    with pytest.raises(AlreadyInitialised):
        both.set.initialise(actor="operator:test", reason="again")
    added = Both()
    joined = ClusterSet([both.set.clusters[0], added.set.clusters[1]])
    flags = joined.initialise(actor="operator:test", reason="one more")
    assert [flag and flag.epoch for flag in flags] == [None, 1]


def line(node: str, state: Proof, *, flat: bool) -> NodeProof:
    return NodeProof(node, state, None if state is Proof.UNPROVEN else 1.0, 0, 0, None, flat, "")


def certificate(*lines: NodeProof) -> Certificate:
    stopped = all(one.state is not Proof.UNPROVEN for one in lines)
    return Certificate(7, ("x",), stopped, all(one.flat for one in lines), 5.0, lines)


def test_what_one_store_proves_is_proven_and_every_node_of_any_store_is_named() -> None:
    """PROOF, NOT HOPE: the best proof of each node counts, and a node that only one store knows of is not left out."""
    first = certificate(line("a", Proof.UNPROVEN, flat=False), line("b", Proof.ACKED, flat=False))
    second = certificate(line("a", Proof.ACKED, flat=True), line("b", Proof.PERMIT_EXPIRED, flat=False))
    joined = combine([first, second])
    assert [(one.node, one.state) for one in joined.nodes] == [("a", Proof.ACKED), ("b", Proof.ACKED)]
    assert (joined.stopped, joined.flat) == (True, False)
    alone = combine([second, certificate(line("c", Proof.UNPROVEN, flat=False))])
    assert [one.node for one in alone.nodes] == ["a", "b", "c"]
    assert not alone.stopped

"""What an agent knows of its node's routers, in whichever order it hears of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from killswitch_agent.routers import RouterPresence, RouterRegistry, RouterState, answer_of, exposure_of

from killswitch.link import CancelResult, Exposure, Holding

OLD, NEW = "run-1", "run-2"
BEFORE = Exposure(holdings={"BTC": Holding(2.0, 100.0)}, working_orders=3, working_notional_usd=30.0)
SINCE = Exposure(holdings={"BTC": Holding(5.0, 100.0)}, working_orders=1)
ORPHANED = 4
"""Orders of runs before the remembered one, for which nobody has accounted."""


def remember(routers: RouterRegistry) -> None:
    routers.remember_lost("r1", OLD, BEFORE, ORPHANED)


def the_router(routers: RouterRegistry) -> RouterState:
    (state,) = routers.states()
    return state


def test_a_router_of_an_earlier_run_is_lost_until_it_says_hello() -> None:
    routers = RouterRegistry(lambda: 0)
    remember(routers)
    assert the_router(routers).presence is RouterPresence.LOST
    assert exposure_of(routers.states()).working_orders == 7


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("reconciled", [False, True])
@pytest.mark.parametrize("instance", [OLD, NEW])
@pytest.mark.parametrize("then", ["stays", "vanishes", "says goodbye"])
def test_it_does_not_matter_when_an_earlier_run_is_remembered(
    instance: str, reconciled: bool, reports: bool, then: str
) -> None:
    """NOTHING IS LOST: the socket listens before the node has joined, and a router may connect at any time of it."""

    def says_hello(routers: RouterRegistry) -> None:
        routers.hello("r1", instance, reconciled=reconciled)

    def reports_itself(routers: RouterRegistry) -> None:
        if reports:
            routers.exposure("r1", instance, SINCE)

    def may_end(routers: RouterRegistry) -> None:
        if then != "stays":
            routers.gone("r1", instance, said_goodbye=then == "says goodbye")

    heard: list[Callable[[RouterRegistry], None]] = [says_hello, reports_itself, may_end]
    left = []
    for place in range(len(heard) + 1):
        routers = RouterRegistry(lambda: 0)
        for step in (*heard[:place], remember, *heard[place:]):
            step(routers)
        state = the_router(routers)
        left.append((state.presence, state.instance, state.exposure, state.orphaned_orders))
    assert left == [left[0]] * len(left)


def test_a_run_that_has_not_asked_the_venue_leaves_the_orders_of_before_unproven() -> None:
    """PROOF, NOT HOPE: a router that was restarted with its agent, and that answers a stop, is not flat for that."""
    routers = RouterRegistry(lambda: 0)
    routers.hello("r1", NEW, reconciled=False)
    routers.stopped("r1", NEW, 7, CancelResult(cancelled=0, failed=0, open=0, last_sequence=None))
    remember(routers)
    assert answer_of(routers.states(), 7).open == ORPHANED + BEFORE.working_orders


def test_what_a_run_of_before_has_accounted_for_stays_so_for_the_next() -> None:
    routers = RouterRegistry(lambda: 0)
    routers.hello("r1", NEW, reconciled=True)
    routers.exposure("r1", NEW, SINCE)
    routers.gone("r1", NEW, said_goodbye=False)
    routers.hello("r1", "run-3", reconciled=False)
    remember(routers)
    state = the_router(routers)
    assert (state.orphaned_orders, state.exposure.holdings) == (SINCE.working_orders, SINCE.holdings)


@pytest.mark.parametrize("order", list(itertools.permutations(["hello", "first store", "second store"])))
def test_what_two_stores_remember_counts_once(order: tuple[str, ...]) -> None:
    """With several stores each tells what it knows of the same routers."""
    routers = RouterRegistry(lambda: 0)
    for step in order:
        if step == "hello":
            routers.hello("r1", NEW, reconciled=False)
        else:
            remember(routers)
    state = the_router(routers)
    assert state.orphaned_orders == ORPHANED + BEFORE.working_orders
    assert state.exposure.holdings == BEFORE.holdings

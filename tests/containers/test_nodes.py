"""One node at a time is cut off, killed, paused, restarted, slowed down, or given a wrong wall clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from killswitch.clock import now_ns
from tests.containers.faults import Faults
from tests.containers.lab import FAKE_CLOCK_NODE, SLOW_NODE, TRAPPED_NODE, Lab
from tests.containers.times import BUSY_FACTOR, PROOF_WAITS, STARTS_PYTHON, STOP_FACTOR
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

NS_PER_MS = 1_000_000
NS_PER_S = 1_000 * NS_PER_MS
ON_THE_WIRE_MS = 200
"""How late the venue may stamp an order that was sent."""
LOOK_AFTER_WAKING_MS = 1_500
"""How long the venue is watched after something was woken: a router that meant to order would have done so by then."""


def assert_stopped_by_permit(lab: Lab, times: Callable[..., None], node: str, since_ns: int, what: str) -> None:
    """BOUNDED STOP, by the venue's record: the node's last order arrived within the permit's bound."""
    last_ms = (lab.judge.last_accepted_ns(lab.routers(node)) - since_ns) / NS_PER_MS
    bound_ms = lab.bounds["unreachable_ms"]
    times(what, last_ms, bound_ms, STOP_FACTOR)


def assert_silent(lab: Lab, node: str, *, since_ns: int) -> None:
    """The venue has accepted nothing of the node since then."""
    assert set(lab.judge.accepted(lab.routers(node), since_ns=since_ns).values()) == {0}


def acks_in_time(lab: Lab, times: Callable[..., None], node: str, epoch: int, since_ns: int) -> None:
    """The node's ack of this epoch or a later one comes soon after it can speak again: the longest pause before a
    reconnect and a renewal fit into the time of a permit.
    """
    bound_ms = lab.bounds["unreachable_ms"]
    within_s = bound_ms * BUSY_FACTOR / 1000
    wait_until(lambda: lab.cluster.acks()[node].epoch >= epoch, within_s=within_s, what=f"{node}'s ack of {epoch}")
    times(f"{node} acknowledges after it can speak again", (now_ns() - since_ns) / NS_PER_MS, bound_ms, BUSY_FACTOR)


def test_bounded_stop_of_a_node_that_is_cut_off(lab: Lab, faults: Faults, times: Callable[..., None]) -> None:
    """BOUNDED STOP, PROOF NOT HOPE: cut off from the store, with the venue in reach, a node stops by its permit. The
    certificate says PERMIT_EXPIRED of it and ACKED of the others. Healed, it acknowledges and stays frozen.
    """
    faults.cut("n2")
    cut_ns = now_ns()
    frozen = lab.freeze("one node hears nothing", expect=3)
    assert_stopped_by_permit(lab, times, "n2", cut_ns, "last order of a node that is cut off, after the cut")
    assert lab.judge.last_accepted_ns(lab.routers("n2")) <= frozen.in_force_ns + int(
        lab.bounds["unreachable_ms"] * STOP_FACTOR * NS_PER_MS
    )
    assert frozen.states() == {node: "PERMIT_EXPIRED" if node == "n2" else "ACKED" for node in lab.nodes}
    assert frozen.certificate["stopped"]
    assert not frozen.certificate["flat"]
    times("certificate with one node cut off", frozen.certificate["elapsed_ms"], no_bound=PROOF_WAITS)
    healing_ns = now_ns()
    faults.heal("n2")
    acks_in_time(lab, times, "n2", frozen.document["epoch"], healing_ns)
    assert_silent(lab, "n2", since_ns=healing_ns)
    assert lab.judge.working(lab.routers()) == 0


def test_bounded_stop_of_a_node_whose_agent_is_killed(lab: Lab, faults: Faults, times: Callable[..., None]) -> None:
    """BOUNDED STOP, A CANCEL ALWAYS PASSES: the routers of a dead agent stop by the page alone, and cancel."""
    faults.kill(lab.agent("n1"))
    killed_ns = now_ns()
    frozen = lab.freeze("an agent is dead", expect=3)
    assert_stopped_by_permit(lab, times, "n1", killed_ns, "last order of a node whose agent was killed")
    assert frozen.line("n1")["state"] == "PERMIT_EXPIRED"
    assert not frozen.certificate["flat"]
    wait_until(lambda: lab.judge.working(lab.routers("n1")) == 0, what="the routers to cancel without their agent")


@pytest.mark.parametrize("what", ["agent", "node"])
def test_unknown_is_frozen_for_what_is_restarted_while_frozen(
    lab: Lab, faults: Faults, times: Callable[..., None], what: str
) -> None:
    """UNKNOWN IS FROZEN: an agent that is killed and started again while frozen opens nothing, before or after; nor
    does a node that loses its power and comes back with its journal, its page gone and its routers new.
    """
    frozen = lab.freeze("stay down")
    certified_ns = now_ns()
    before = lab.cluster.membership().reports["n1"].instance
    if what == "agent":
        faults.kill(lab.agent("n1"))
        restarted_ns = now_ns()
        faults.restart(lab.agent("n1"))
    else:
        faults.power_off("n1")
        restarted_ns = now_ns()
        faults.power_on("n1")
    wait_until(lambda: lab.cluster.acks()["n1"].instance != before, within_s=20, what="the new run's ack")
    times(f"ack of a restarted {what}", (now_ns() - restarted_ns) / NS_PER_MS, no_bound=STARTS_PYTHON)
    assert lab.cluster.acks()["n1"].epoch == frozen.document["epoch"]
    assert not lab.is_open("n1")
    assert_silent(lab, "n1", since_ns=certified_ns)
    released_ns = lab.release()
    lab.judge.wait_until_trading(lab.routers("n1"))
    assert set(lab.judge.accepted(lab.routers("n1"), since_ns=certified_ns, until_ns=released_ns).values()) == {0}


def test_bounded_stop_of_a_machine_that_is_suspended(lab: Lab, faults: Faults, times: Callable[..., None]) -> None:
    """BOUNDED STOP, PROOF NOT HOPE: a node is suspended as a whole, across a freeze and beyond its permit. Resumed, it
    sends at most the one order of each router that had passed its second look, acknowledges, and cancels.
    """
    faults.pause_node("n2")
    paused_ns = once_all_has_come(lab)
    frozen = lab.freeze("while a machine is suspended", expect=3)
    assert frozen.line("n2")["state"] == "PERMIT_EXPIRED"
    resumed_ns = now_ns()
    faults.resume_node("n2")
    acks_in_time(lab, times, "n2", frozen.document["epoch"], resumed_ns)
    wait_until(lambda: lab.judge.working(lab.routers("n2")) == 0, what="the resumed router to cancel")
    look_on(lab, resumed_ns)
    assert sum(lab.judge.accepted(lab.routers("n2"), since_ns=paused_ns).values()) <= len(lab.routers("n2"))
    assert lab.judge.working(lab.routers()) == 0


def test_bounded_stop_of_a_whole_node_that_is_stopped_and_woken(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """BOUNDED STOP: router and agent are stopped (SIGSTOP) beyond the permit, across a freeze. The router is woken
    first, with no agent to tell it anything: the order that it was about to send, and the next ones, are refused by its
    gate before anything goes out. Then the agent acknowledges.
    """
    node, (name,) = TRAPPED_NODE, lab.routers(TRAPPED_NODE)
    # Between its looks, and not just anywhere: stopped after the second one it would send that order when woken.
    router = faults.stop_router_at(TRAPPED_NODE, "before-second-look")
    faults.stop(lab.agent(node))
    stopped_ns = once_all_has_come(lab)
    frozen = lab.freeze("while a node sleeps", expect=3)
    assert frozen.line(node)["state"] == "PERMIT_EXPIRED"
    refused = lab.refused(name)
    waking_ns = now_ns()
    faults.wake(router)
    wait_until(lambda: lab.refused(name) > refused + 3, what="the woken router's next orders to be refused by its gate")
    assert lab.judge.arrived(since_ns=waking_ns) == 0
    waking_ns = now_ns()
    faults.wake(lab.agent(node))
    acks_in_time(lab, times, node, frozen.document["epoch"], waking_ns)
    look_on(lab, waking_ns)
    assert lab.judge.arrived(since_ns=waking_ns) == 0
    assert_silent(lab, node, since_ns=stopped_ns)
    assert lab.judge.working(lab.routers(node)) == 0


def test_bounded_stop_of_an_agent_that_is_stopped_and_woken(
    lab: Lab, faults: Faults, times: Callable[..., None]
) -> None:
    """BOUNDED STOP, UNKNOWN IS FROZEN: while only the agent is stopped (SIGSTOP) its routers stop and cancel by
    themselves; woken with nothing frozen it renews by a read, and trading resumes.
    """
    faults.stop(lab.agent("n2"))
    stopped_ns = now_ns()
    look_on(lab, stopped_ns, lab.bounds["unreachable_ms"] * STOP_FACTOR + ON_THE_WIRE_MS)
    assert_stopped_by_permit(lab, times, "n2", stopped_ns, "last order of a node whose agent was stopped")
    # Not before: a router that moves its quotes has none for a moment.
    wait_until(lambda: lab.judge.working(lab.routers("n2")) == 0, what="the router to cancel")
    faults.wake(lab.agent("n2"))
    lab.judge.wait_until_trading(lab.routers("n2"))


def test_a_router_stopped_before_its_second_look_sends_nothing_when_woken(lab: Lab, faults: Faults) -> None:
    """BOUNDED STOP: a router is stopped between its check and its send; a freeze is made; woken, it sends nothing."""
    router = faults.stop_router_at(TRAPPED_NODE, "before-second-look")
    stopped_ns = once_all_has_come(lab)
    frozen = lab.freeze("while a router stands between its looks", expect=3)
    assert frozen.line(TRAPPED_NODE)["state"] == "ACKED"
    assert frozen.line(TRAPPED_NODE)["note"] == "cancelling"
    waking_ns = now_ns()
    faults.wake(router)
    wait_until(lambda: lab.judge.working(lab.routers(TRAPPED_NODE)) == 0, what="the woken router to cancel")
    look_on(lab, waking_ns)
    assert_silent(lab, TRAPPED_NODE, since_ns=stopped_ns)


def test_a_router_stopped_after_its_second_look_is_never_called_flat_before_it_has_cancelled(
    lab: Lab, faults: Faults
) -> None:
    """PROOF NOT HOPE, A CANCEL ALWAYS PASSES: what docs/guarantees.md does not promise, and what it does. The one order
    that had passed both looks goes out when its router is woken, and is cancelled; no certificate said flat before.
    """
    router = faults.stop_router_at(TRAPPED_NODE, "after-second-look")
    stopped_ns = once_all_has_come(lab)
    frozen = lab.freeze("while a router stands before the wire", expect=3)
    assert not frozen.certificate["flat"]
    assert not frozen.line(TRAPPED_NODE)["flat"]
    waking_ns = now_ns()
    faults.wake(router)
    look_on(lab, waking_ns)
    assert sum(lab.judge.accepted(lab.routers(TRAPPED_NODE), since_ns=stopped_ns).values()) <= 1
    wait_until(lambda: lab.judge.working(lab.routers(TRAPPED_NODE)) == 0, what="the late order to be cancelled")


def test_a_router_killed_with_working_orders_keeps_the_certificate_from_saying_flat(lab: Lab, faults: Faults) -> None:
    """PROOF NOT HOPE: orders of a dead router work on at the venue, and the certificate does not call that flat."""
    left = kill_with_working_orders(lab, faults, "n1-r2")
    frozen = lab.freeze("a router is dead", expect=3)
    assert frozen.certificate["stopped"]
    assert not frozen.certificate["flat"]
    line = frozen.line("n1")
    assert (line["state"], line["note"]) == ("ACKED", "working orders not proven cancelled")
    assert line["orders_open"] >= left
    assert lab.judge.working(["n1-r2"]) == left
    faults.restart(lab.router("n1-r2"))
    wait_until(lambda: lab.judge.working(["n1-r2"]) == 0, within_s=20, what="the next run to cancel what was left")


def kill_with_working_orders(lab: Lab, faults: Faults, name: str) -> int:
    """Kill a router of n1 while orders of it work, and return how many do; one that moves its quotes has none then."""
    for _ in range(5):
        faults.kill(lab.router(name))
        wait_until(lambda: lost_routers(lab, "n1") == [name], what="the loss to be reported")
        left = lab.judge.working([name])
        if left:
            return left
        faults.restart(lab.router(name))
        lab.judge.wait_until_trading([name])
    raise AssertionError(f"{name} had no working orders at any of five kills")


def test_a_stepped_wall_clock_changes_nothing(lab: Lab, faults: Faults, times: Callable[..., None]) -> None:
    """Time: the wall clock of agent and router an hour ahead and an hour behind. The permit goes on; a freeze works."""
    for hours in (1, -1):
        faults.step_wall_clock(FAKE_CLOCK_NODE, hours * 3600)
        stepped_ns = now_ns()
        look_on(lab, stepped_ns, 1.5 * lab.bounds["unreachable_ms"])
        assert longest_silence_ms(lab, FAKE_CLOCK_NODE, stepped_ns) < lab.bounds["reachable_ms"]
        frozen = lab.freeze(f"with a clock that is {hours} h off")
        last_ms = (lab.judge.last_accepted_ns(lab.routers(FAKE_CLOCK_NODE)) - frozen.said_ns) / NS_PER_MS
        times(f"last order with the wall clock {hours:+d} h", last_ms, lab.bounds["reachable_ms"], BUSY_FACTOR)
        assert frozen.states()[FAKE_CLOCK_NODE] == "ACKED"
        lab.release()
        lab.judge.wait_until_trading(lab.routers(FAKE_CLOCK_NODE))


@pytest.mark.parametrize("ms", [50, 150])
def test_a_slow_line_to_the_store_keeps_permits_and_bounds(
    lab: Lab, faults: Faults, times: Callable[..., None], ms: int
) -> None:
    """BOUNDED STOP: with 50 and 150 ms more for each round trip the permit goes on, and a freeze arrives in time. The
    node keeps its lease and goes on reporting, so nobody takes it for lost while it trades.
    """
    measured_ms = faults.slow(SLOW_NODE, ms)
    slowed_ns = now_ns()
    look_on(lab, slowed_ns, lab.bounds["unreachable_ms"])
    before = lab.cluster.membership().reports[SLOW_NODE].report
    look_on(lab, slowed_ns, 2 * lab.bounds["unreachable_ms"])
    assert lab.cluster.membership().reports[SLOW_NODE].report > before
    assert longest_silence_ms(lab, SLOW_NODE, slowed_ns) < lab.bounds["reachable_ms"]
    frozen = lab.freeze("by a slow line")
    last_ms = (lab.judge.last_accepted_ns(lab.routers(SLOW_NODE)) - frozen.said_ns) / NS_PER_MS
    times(f"last order by a line with reads of {measured_ms:.0f} ms", last_ms, lab.bounds["reachable_ms"], BUSY_FACTOR)
    assert frozen.states()[SLOW_NODE] == "ACKED"


def look_on(lab: Lab, since_ns: int, ms: float = LOOK_AFTER_WAKING_MS) -> None:
    """Let the venue's clock go on to this long after ``since_ns``: what had not come by then is judged not to come."""
    until_ns = since_ns + int(ms * NS_PER_MS)
    wait_until(lambda: lab.judge.now_ns() >= until_ns, within_s=ms / 1000 + 10, what="the time of looking on to pass")


def once_all_has_come(lab: Lab) -> int:
    """Wait until what was on the wire has been stamped by the venue, which may be late; return the time after that."""
    look_on(lab, now_ns(), ON_THE_WIRE_MS)
    return now_ns()


def longest_silence_ms(lab: Lab, node: str, since_ns: int) -> float:
    """Longest time in which the venue accepted nothing of the node, since then and until now."""
    return lab.judge.longest_silence_ms(lab.routers(node), since_ns=since_ns)


def lost_routers(lab: Lab, node: str) -> list[str]:
    """Routers of a node that went without goodbye."""
    return [router.router for router in lab.cluster.membership().reports[node].routers if router.state == "lost"]

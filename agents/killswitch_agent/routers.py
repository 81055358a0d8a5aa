"""What the agent knows of the routers of its node, and what follows from it for reports and acks."""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from killswitch.clock import NowNs, now_ns
from killswitch.link.messages import CancelResult, Exposure, Holding

ROUTERS_MAX = 64
"""Routers that one node may have; the next one is refused with a sentence."""


class RouterRefused(Exception):
    """A router may not register; the message says why."""


class RouterPresence(enum.Enum):
    """Where a router is."""

    LIVE = "live"
    """Its connection stands."""
    LOST = "lost"
    """Its connection broke without goodbye: what it had working may still be working."""
    ENDED = "ended"
    """It said goodbye."""


@dataclass(frozen=True, slots=True)
class RouterState:
    """One router as last heard.

    Attributes:
        router: its name.
        instance: which run of it.
        presence: where it is.
        exposure: what it last reported.
        result: its last answer to a stop, and ``result_epoch`` the epoch that it answered.
        orphaned_orders: working orders of earlier runs that no run has accounted for.
        reported_ns: when it last reported, or said hello, on the deadline clock.
        reported: ``exposure`` is what a run of it has told this agent, and not what an earlier agent knew, nor empty
            for want of a report.
        reconciled: a run of it that this agent has heard had asked the venue for what earlier runs left working.
    """

    router: str
    instance: str
    presence: RouterPresence
    exposure: Exposure = field(default_factory=Exposure)
    result: CancelResult | None = None
    result_epoch: int = 0
    orphaned_orders: int = 0
    reported_ns: int = 0
    reported: bool = False
    reconciled: bool = False

    def open_orders(self, stop_epoch: int) -> int:
        """Working orders not proven cancelled, given the epoch whose stop must be answered."""
        if self.result is not None and self.result_epoch >= stop_epoch:
            return self.result.open + self.orphaned_orders
        return self.exposure.working_orders + self.orphaned_orders

    def answered(self, stop_epoch: int) -> bool:
        """True when no more is to be expected: it answered this stop, or it is gone."""
        return self.presence is not RouterPresence.LIVE or (self.result is not None and self.result_epoch >= stop_epoch)

    @property
    def last_sequence(self) -> int | None:
        """Highest sequence number that it is known to have sent."""
        known = [self.exposure.last_sequence, self.result.last_sequence if self.result else None]
        return max((number for number in known if number is not None), default=None)


@dataclass(frozen=True, slots=True)
class StopAnswer:
    """How a stop went over all routers of the node."""

    complete: bool
    cancelled: int
    failed: int
    open: int
    last_sequence: int | None


@dataclass(frozen=True, slots=True)
class NodeExposure:
    """What the node holds over all its routers, lost and ended ones with what they held last.

    Money in USD. ``gross_usd`` is the sum over symbols of the absolute *net* position of the node in that symbol.
    """

    holdings: Mapping[str, Holding]
    gross_usd: float
    net_usd: float
    pnl_usd: float
    working_orders: int
    working_notional_usd: float
    last_sequence: int | None
    edges_bps: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RoutersSeen:
    """How many routers are where, and how old the reports of those that are connected are, in milliseconds."""

    live: int
    lost: int
    report_ages_ms: Mapping[str, float] = field(default_factory=dict)


def routers_seen(states: Iterable[RouterState], now_ns: int) -> RoutersSeen:
    """Count the routers of a node, and tell how old their reports are."""
    states = tuple(states)
    live = [state for state in states if state.presence is RouterPresence.LIVE]
    return RoutersSeen(
        live=len(live),
        lost=sum(state.presence is RouterPresence.LOST for state in states),
        report_ages_ms={state.router: (now_ns - state.reported_ns) / 1e6 for state in live},
    )


def answer_of(states: Iterable[RouterState], stop_epoch: int | None) -> StopAnswer:
    """Add up how the stop of ``stop_epoch`` went; ``None`` means that nothing on this node had to stop."""
    states = tuple(states)
    sequences = [state.last_sequence for state in states if state.last_sequence is not None]
    last_sequence = max(sequences, default=None)
    if stop_epoch is None:
        return StopAnswer(complete=True, cancelled=0, failed=0, open=0, last_sequence=last_sequence)
    results = [state.result for state in states if state.result is not None and state.result_epoch >= stop_epoch]
    return StopAnswer(
        complete=all(state.answered(stop_epoch) for state in states),
        cancelled=sum(result.cancelled for result in results),
        failed=sum(result.failed for result in results),
        open=sum(state.open_orders(stop_epoch) for state in states),
        last_sequence=last_sequence,
    )


def exposure_of(states: Iterable[RouterState]) -> NodeExposure:
    """Add up what the routers of a node hold."""
    states = tuple(states)
    quantities: dict[str, float] = {}
    marks: dict[str, float] = {}
    edges: dict[str, float] = {}
    for state in states:
        for symbol, holding in state.exposure.holdings.items():
            quantities[symbol] = quantities.get(symbol, 0.0) + holding.quantity
            if state.presence is RouterPresence.LIVE or symbol not in marks:
                marks[symbol] = holding.mark_price_usd
        for symbol, edge in state.exposure.edges_bps.items():
            edges[symbol] = min(edge, edges.get(symbol, edge))
    holdings = {symbol: Holding(quantity, marks[symbol]) for symbol, quantity in quantities.items()}
    notionals = [holding.notional_usd for holding in holdings.values()]
    sequences = [state.last_sequence for state in states if state.last_sequence is not None]
    return NodeExposure(
        holdings=holdings,
        gross_usd=sum(abs(notional) for notional in notionals),
        net_usd=sum(notionals),
        pnl_usd=sum(state.exposure.pnl_usd for state in states),
        working_orders=sum(state.exposure.working_orders + state.orphaned_orders for state in states),
        working_notional_usd=sum(state.exposure.working_notional_usd for state in states),
        last_sequence=max(sequences, default=None),
        edges_bps=edges,
    )


def _succeeding(before: RouterState, fresh: RouterState) -> RouterState:
    """Return what is known of a run that has just said hello, after an earlier run of its router.

    Positions of the earlier run stand until this one reports its own; its working orders are nobody's until some run
    has asked the venue for them.
    """
    return replace(
        fresh,
        exposure=replace(before.exposure, working_orders=0),
        orphaned_orders=0 if fresh.reconciled else before.orphaned_orders + before.exposure.working_orders,
        reported=before.reported,
        reconciled=fresh.reconciled or before.reconciled,
    )


def _as_if_before(remembered: RouterState, known: RouterState) -> RouterState:
    """Return what is known of a router that said hello before it was remembered, as if it had said so after."""
    if known.instance == remembered.instance:
        exposure = known.exposure if known.reported else remembered.exposure
        return replace(known, exposure=exposure, orphaned_orders=known.orphaned_orders + remembered.orphaned_orders)
    left = _succeeding(remembered, known)
    return replace(
        known,
        exposure=known.exposure if known.reported else left.exposure,
        orphaned_orders=known.orphaned_orders + left.orphaned_orders,
    )


class RouterRegistry:
    """The routers of one node; every method may be called from any thread.

    Args:
        clock: deadline clock, for the age of reports.
    """

    def __init__(self, clock: NowNs = now_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, RouterState] = {}
        self._remembered: set[str] = set()

    def states(self) -> tuple[RouterState, ...]:
        """All routers ever heard of, sorted by name."""
        with self._lock:
            return tuple(self._states[name] for name in sorted(self._states))

    def remember_lost(self, router: str, instance: str, exposure: Exposure, orphaned_orders: int) -> None:
        """Take over a router from the report of an earlier run of this agent: lost until it says hello.

        A router that has said hello already is given what it would have found here, had it come later. Of the reports
        in several stores the first that names a router counts.
        """
        remembered = RouterState(router, instance, RouterPresence.LOST, exposure, orphaned_orders=orphaned_orders)
        with self._lock:
            if router not in self._remembered:
                self._remembered.add(router)
                known = self._states.get(router)
                self._states[router] = remembered if known is None else _as_if_before(remembered, known)

    def hello(self, router: str, instance: str, *, reconciled: bool) -> None:
        """Register a router, or register it again after it was lost.

        Raises:
            RouterRefused: the name is in use by another process, or there are too many routers.
        """
        with self._lock:
            before = self._states.get(router)
            if before is None and len(self._states) >= ROUTERS_MAX:
                raise RouterRefused(f"this node has {ROUTERS_MAX} routers already; one agent takes no more")
            if before is not None and before.presence is RouterPresence.LIVE and before.instance != instance:
                raise RouterRefused(f"a router named {router!r} is connected already; give each router its own name")
            if before is not None and before.instance == instance:
                self._states[router] = replace(before, presence=RouterPresence.LIVE, reported_ns=self._clock())
                return
            fresh = RouterState(router, instance, RouterPresence.LIVE, reported_ns=self._clock(), reconciled=reconciled)
            self._states[router] = fresh if before is None else _succeeding(before, fresh)

    def exposure(self, router: str, instance: str, exposure: Exposure) -> None:
        """Keep what a router reports."""
        with self._lock:
            state = self._states[router]
            if state.instance == instance:
                self._states[router] = replace(state, exposure=exposure, reported_ns=self._clock(), reported=True)

    def stopped(self, router: str, instance: str, epoch: int, result: CancelResult) -> None:
        """Keep how a router's cancelling went."""
        with self._lock:
            state = self._states[router]
            if state.instance == instance and epoch >= state.result_epoch:
                self._states[router] = replace(state, result=result, result_epoch=epoch)

    def gone(self, router: str, instance: str, *, said_goodbye: bool) -> None:
        """Note that a router's connection ended."""
        with self._lock:
            state = self._states.get(router)
            if state is not None and state.instance == instance:
                presence = RouterPresence.ENDED if said_goodbye else RouterPresence.LOST
                self._states[router] = replace(state, presence=presence)

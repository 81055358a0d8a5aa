"""A trading program: one order router as one process, making a market on a simulated venue around its price tape.

It uses what any trading firm's program would use and nothing more: the gate, the link to the agent, the order router
and the limits of a file, which it follows while it trades. It knows nothing of the scenario that it is part of. It
quotes a few bids below the price and offers what it holds above it; it never sells short. When prices fall its bids are
filled, so its inventory grows to its limit and it loses money, as market makers do in a crash.

It keeps quoting through a freeze: every attempt is refused by the gate before anything is sent, and counted by cause.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from killswitch import Gate, GateUnavailable
from killswitch.clock import now_ns
from killswitch.link import CancelResult, Exposure, Holding, RouterLink, Stop
from killswitch.risk.events import FreezeEvent
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.process.limits_audit import AuditUnwritable, LimitsAudit
from killswitch.risk.process.process_limits import ProcessLimits
from killswitch.risk.process.process_state import StateUnwritable
from killswitch.risk.process.risk_limits_file import OrderLimitSettings, RiskLimitsFile
from killswitch.risk.process.rule_loading import RuleNotUsable
from killswitch.routing.order_router import OrderRouter
from killswitch.routing.order_types import Refused, VenueEvent, VenueEventKind
from killswitch.settings.settings_file import RiskFileError
from killswitch.simulation.quoting import DEFAULT_PLAN, Ledger, Working, requote
from killswitch.simulation.venue_client import SimulatedVenueClient, VenueDisconnected

VENUE_NAME = "simulated"
VENUE_WAIT_S = 20.0
VENUE_COST_BPS = 2.0
GATE_WAIT_S = 0.5
QUOTE_EVERY_S = 0.1
STATS_EVERY_S = 0.25
LIMIT_HEADROOM = 2.0
EDGE_FREEZE_BPS = 1.0
AUDIT_FILE = "limits-audit-{router}.jsonl"
STATE_FILE = "limits-state-{router}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraderOptions:
    """Who a trading program is and whom it talks to; see the command line for each field."""

    router: str
    node: str
    gate: Path
    link: str
    venue_host: str
    venue_port: int
    symbols: tuple[str, ...]
    inventory_max_usd: float
    seed: int
    stats: Path | None
    risk_limits: Path | None = None
    state_dir: Path | None = None
    tolerance_bps: float = DEFAULT_PLAN.tolerance_bps


class Trader:
    """One order router with its strategy: :meth:`run` trades until :meth:`stop`, then cancels and says goodbye.

    Args:
        options: who it is and whom it talks to.

    Raises:
        RiskFileError, RuleNotUsable: the file of limits cannot be used.
        AuditUnwritable, StateUnwritable: nothing can be written into the state directory.
    """

    def __init__(self, options: TraderOptions) -> None:
        self._options = options
        rng = random.Random(f"{options.seed}:{options.router}")
        # Routers that all quote alike would all be filled at the same tick.
        self._plan = replace(
            DEFAULT_PLAN,
            spacing_bps=DEFAULT_PLAN.spacing_bps * rng.uniform(0.9, 1.1),
            quote_usd=DEFAULT_PLAN.quote_usd * rng.uniform(0.9, 1.1),
            inventory_max_usd=options.inventory_max_usd,
            tolerance_bps=options.tolerance_bps,
        )
        self._stop_asked = False
        self._lock = threading.Lock()
        self._prices_usd: Mapping[str, float] = {}
        self._ledger = Ledger({}, {})
        self._symbols_by_id: dict[str, tuple[str, str]] = {}
        self._cancel_asked: set[str] = set()
        self._stops: Counter[str] = Counter()
        self._fills = 0
        self._orders = 0
        self._id_prefix = f"{options.router}-{now_ns():x}"
        self._router: OrderRouter | None = None
        self._link: RouterLink | None = None
        self._limits = self._make_limits()
        self._client = SimulatedVenueClient(
            options.venue_host,
            options.venue_port,
            owner=options.router,
            on_event=self._on_venue_event,
            on_prices=self._on_prices,
        )

    def stop(self) -> None:
        """Ask :meth:`run` to end; from any thread or a signal handler."""
        # A plain name and no Event: the handler runs inside the main thread's own wait, whose lock it would wait for.
        self._stop_asked = True

    def run(self) -> int:
        """Trade until stopped.

        Returns:
            0 when it was stopped and has nothing working left, 1 when the venue was lost or orders are left.
        """
        self._client.connect(within_s=VENUE_WAIT_S)
        # An earlier process of this name may have left orders; they are nobody's now.
        self._client.cancel_all()
        left_behind = len(self._client.open_orders())
        gate = self._wait_for_gate()
        if gate is None:
            self._client.close()
            return 0
        router = self._router = OrderRouter(
            gate=gate,
            venue_client=self._client,
            controls=self._limits.controls,
            venue=VENUE_NAME,
            node=self._options.node,
        )
        link = self._link = RouterLink(
            self._options.link,
            router=self._options.router,
            gate=gate,
            on_stop=self._on_stop,
            reconciled=left_behind == 0,
        )
        link.start()
        ended = threading.Event()
        threading.Thread(target=self._limits.follow, args=(ended,), name="limits", daemon=True).start()
        try:
            self._trade(gate, router, link, self._limits.monitor)
        finally:
            ended.set()
            exit_code = self._finish(router, link)
            self._limits.close()
            gate.close()
        return exit_code

    def _wait_for_gate(self) -> Gate | None:
        """Return the gate once the agent has made it, ``None`` when stopped before."""
        while not self._stop_asked:
            with contextlib.suppress(GateUnavailable):
                return Gate.open(self._options.gate, wait_s=GATE_WAIT_S)
        return None

    def _make_limits(self) -> ProcessLimits:
        """Limits of this program alone: those of the file, else ones that the cluster's rules speak before."""
        state_dir, router = self._options.state_dir, self._options.router
        state_path = None if state_dir is None else state_dir / STATE_FILE.format(router=router)
        if self._options.risk_limits is not None:
            return ProcessLimits.of_file(
                self._options.risk_limits,
                audit=None if state_dir is None else LimitsAudit(state_dir / AUDIT_FILE.format(router=router)),
                state_path=state_path,
                on_freeze=self._on_monitor_freeze,
            )
        symbol_usd = self._plan.inventory_max_usd * LIMIT_HEADROOM
        orders = OrderLimitSettings(
            max_inventory_usd_per_symbol=symbol_usd,
            max_total_notional_usd=symbol_usd * len(self._options.symbols),
            edge_freeze_threshold_bps=EDGE_FREEZE_BPS,
        )
        limits = RiskLimitsFile(orders=orders, pretrade=PreTradeSettings(throttle=None))
        return ProcessLimits(limits, state_path=state_path, on_freeze=self._on_monitor_freeze)

    def _trade(self, gate: Gate, router: OrderRouter, link: RouterLink, monitor: RuntimeRiskMonitor) -> None:
        edge_bps = self._plan.spacing_bps - VENUE_COST_BPS
        stats_due_s = 0.0
        while not self._stop_asked and not self._client.lost:
            time.sleep(QUOTE_EVERY_S)
            with self._lock:
                prices = dict(self._prices_usd)
            for symbol in self._options.symbols:
                if symbol in prices:
                    monitor.on_edge_update(symbol, edge_bps)
                    self._requote(gate, router, symbol, prices[symbol])
            link.report(self._exposure(router, edge_bps))
            if time.monotonic() >= stats_due_s:
                self._write_stats(router)
                stats_due_s = time.monotonic() + STATS_EVERY_S

    def _requote(self, gate: Gate, router: OrderRouter, symbol: str, price: float) -> None:
        """Bring the quotes of one symbol to where they are wanted. Refusals are counted by the order router.

        While the gate is closed nothing is withdrawn here: cancelling is then the business of the stop alone, so that
        an empty book shows that the stop was carried out, and not that the strategy happened to move its quotes.
        """
        open_orders = [order for order in router.open_orders() if order.symbol == symbol]
        with self._lock:
            position = self._ledger.quantities.get(symbol, 0.0)
            asked = set(self._cancel_asked)
        working = [
            Working(order.client_order_id, order.side, order.remaining, order.price)
            for order in open_orders
            if order.client_order_id not in asked
        ]
        change = requote(price, position, working, self._plan)
        for client_order_id in change.cancel if gate.allows(symbol, venue=VENUE_NAME) else ():
            with self._lock:
                self._cancel_asked.add(client_order_id)
            with contextlib.suppress(VenueDisconnected):
                self._client.cancel(client_order_id)
        for quote in change.place:
            self._orders += 1
            client_order_id = f"{self._id_prefix}-{self._orders}"
            with self._lock:
                # Known before it is sent: its fill may come before place_order returns.
                self._symbols_by_id[client_order_id] = (symbol, quote.side)
            placed = router.place_order(client_order_id, symbol, quote.side, quote.qty, quote.price)
            if isinstance(placed, Refused):
                with self._lock:
                    self._symbols_by_id.pop(client_order_id, None)

    def _finish(self, router: OrderRouter, link: RouterLink) -> int:
        """Cancel everything, report what is left, say goodbye."""
        result = router.cancel_all_orders("the trading program ends")
        left = result.open
        try:
            self._client.cancel_all()
            left = len(self._client.open_orders())
        except VenueDisconnected as error:
            sys.stderr.write(f"{self._options.router}: {error}; what is working there is not known\n")
        link.report(self._exposure(router, self._plan.spacing_bps - VENUE_COST_BPS))
        link.close()
        self._write_stats(router)
        lost = self._client.lost
        self._client.close()
        return 1 if left or lost else 0

    # -- what others say, each on a thread of theirs -------------------------------------------------------------

    def _on_stop(self, stop: Stop) -> CancelResult:
        """The agent or the gate itself says stop: cancel what it covers."""
        with self._lock:
            self._stops["permit_expired" if stop.permit_expired else "freeze"] += 1
        if self._router is None:
            return CancelResult(cancelled=0, failed=0, open=0, last_sequence=None)
        return self._router.cancel_all_orders(stop.reason, covers=stop.covers)

    def _on_monitor_freeze(self, event: FreezeEvent) -> None:
        """A freeze of this program's own monitor asks for one of the cluster."""
        if self._link is not None:
            self._link.request_freeze(event.trigger, event.reason, metadata=event.metadata)

    def _on_prices(self, prices_usd: Mapping[str, float]) -> None:
        for symbol, price in prices_usd.items():
            self._limits.controls.on_price(symbol, price)
        with self._lock:
            self._prices_usd = prices_usd

    def _on_venue_event(self, event: VenueEvent) -> None:
        if self._router is not None:
            self._router.on_venue_event(event)
        with self._lock:
            if event.kind is VenueEventKind.ACK:
                return
            # Whatever else the venue says, the order is over; fills are always whole, and only what is over cannot
            # be cancelled.
            self._cancel_asked.discard(event.client_order_id)
            known = self._symbols_by_id.pop(event.client_order_id, None)
            if event.kind is VenueEventKind.FILL and known is not None:
                self._fills += 1
                self._ledger.fill(*known, event.qty, event.price)

    # -- what it tells others ------------------------------------------------------------------------------------

    def _exposure(self, router: OrderRouter, edge_bps: float) -> Exposure:
        working = list(router.open_orders())
        with self._lock:
            prices = dict(self._prices_usd)
            holdings = {
                symbol: Holding(quantity, prices[symbol])
                for symbol, quantity in self._ledger.quantities.items()
                if symbol in prices
            }
            pnl_usd = self._ledger.pnl_usd(prices)
        return Exposure(
            holdings=holdings,
            working_orders=len(working),
            working_notional_usd=sum(order.remaining * order.price for order in working),
            pnl_usd=pnl_usd,
            last_sequence=router.last_sequence,
            edges_bps={symbol: edge_bps for symbol in self._options.symbols if symbol in prices},
        )

    def _write_stats(self, router: OrderRouter) -> None:
        """Replace the file of counters, so that a reader never sees half of it."""
        if self._options.stats is None:
            return
        refused = router.refused
        with self._lock:
            body = {
                "router": self._options.router,
                "pid": os.getpid(),
                "sent": router.sent,
                "refused": refused,
                "refused_total": sum(refused.values()),
                "cancelled": router.cancelled,
                "fills": self._fills,
                "contradictions": router.contradictions,
                "last_sequence": router.last_sequence,
                "pnl_usd": self._ledger.pnl_usd(self._prices_usd),
                "stops": dict(self._stops),
            }
        scratch = self._options.stats.with_suffix(".new")
        scratch.write_text(json.dumps(body), encoding="utf-8")
        scratch.replace(self._options.stats)


def _parse(arguments: Sequence[str] | None) -> TraderOptions:
    parser = argparse.ArgumentParser(prog="python -m killswitch.simulation.trader", description=main.__doc__)
    parser.add_argument("--router", required=True, help="name of this router, such as n1-r1")
    parser.add_argument("--node", help="name of its node, by default what the router's name has before the last '-'")
    parser.add_argument("--gate", type=Path, required=True, help="the node's gate page")
    parser.add_argument("--link", required=True, help="Unix socket of the node's agent")
    parser.add_argument("--venue", required=True, metavar="HOST:PORT", help="the simulated venue")
    parser.add_argument("--symbols", default="BTCUSDT,ETHUSDT", help="what to quote, joined by commas")
    parser.add_argument("--risk-limits", type=Path, help="file of limits like config/risk_limits.yaml, followed")
    parser.add_argument(
        "--state-dir", type=Path, help="where it keeps the audit of its limits, without which their file can only "
        "tighten, and what a restart must not undo: the freeze of this program, its counts of the day, disabled "
        "strategies; delete its limits-state-ROUTER.json to begin anew",
    )  # fmt: skip
    parser.add_argument("--inventory-max-usd", type=float, default=DEFAULT_PLAN.inventory_max_usd, help="per symbol")
    parser.add_argument(
        "--tolerance-bps", type=float, default=DEFAULT_PLAN.tolerance_bps, help="smaller: quotes move more often"
    )
    parser.add_argument("--seed", type=int, default=1, help="varies the quotes between routers")
    parser.add_argument("--stats", type=Path, help="file of counters, replaced a few times a second")
    told = parser.parse_args(arguments)
    host, _, port = told.venue.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--venue is {told.venue!r}; write HOST:PORT")
    if not (math.isfinite(told.inventory_max_usd) and told.inventory_max_usd > 0):
        parser.error(f"--inventory-max-usd is {told.inventory_max_usd}; it must be a finite number greater than 0")
    if not (math.isfinite(told.tolerance_bps) and told.tolerance_bps >= 0):
        parser.error(f"--tolerance-bps is {told.tolerance_bps}; it must be a finite number of at least 0")
    return TraderOptions(
        router=told.router,
        node=told.node or told.router.rpartition("-")[0] or told.router,
        gate=told.gate,
        link=told.link,
        venue_host=host,
        venue_port=int(port),
        symbols=tuple(symbol.strip() for symbol in told.symbols.split(",") if symbol.strip()),
        inventory_max_usd=told.inventory_max_usd,
        seed=told.seed,
        stats=told.stats,
        risk_limits=told.risk_limits,
        state_dir=told.state_dir,
        tolerance_bps=told.tolerance_bps,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Trade on the simulated venue until SIGTERM; then cancel everything, say goodbye to the agent and end with 0."""
    try:
        trader = Trader(_parse(arguments))
    except (RiskFileError, RuleNotUsable, AuditUnwritable, StateUnwritable) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: trader.stop())
    try:
        return trader.run()
    except VenueDisconnected as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The reference order router: every order passes the gate twice, every order is numbered, every order can be cancelled.

Why no order slips past a stop
    Sending happens under one lock, and in this order: number the order and put it among the open orders, look at the
    gate, hand it to the venue. :meth:`OrderRouter.cancel_all_orders` takes the list of open orders *without* that
    lock. So of an order that the list does not hold, the second look at the gate is still to come; whoever closes the
    gate first and cancels then has, in the list, every order that can ever reach the venue. An order in the list that
    is just being handed over is waited for, and the thread that hands it over cancels it as soon as it has.

Why a cancel always passes
    Cancelling looks at no gate, no monitor and no limit, and waits for no lock that is held while a venue is being
    talked to. The cancels are sent by threads of their own, so that neither a venue that hangs in one cancel nor one
    that hangs in an order keeps the others waiting, and the caller waits no longer than ``cancel_timeout_s``.

What it does not promise: an order of which the venue's answer is lost counts as open until the venue speaks of it; and
a process that is paused between the second look and the hand-over sends when it wakes up, however late that is.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import structlog

from killswitch.clock import NowNs, now_ns
from killswitch.link.messages import CancelResult
from killswitch.risk.exact import EXACT, exact
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.order_inputs import ReadOrder, finite_number, read_order
from killswitch.routing.order_checks import OrderChecks, duplicate, sound_order
from killswitch.routing.order_state import NumberedOrder, OpenOrder, OrderEvent, OrderState, next_state
from killswitch.routing.order_types import (
    Order,
    OrderRejected,
    Placed,
    Refused,
    RouterGate,
    VenueClient,
    VenueEvent,
    VenueEventKind,
)

if TYPE_CHECKING:
    from killswitch.risk.pretrade import PreTradeControls

MAX_OPEN_ORDERS = 10_000
FINISHED_ORDERS_KEPT = 100_000
"""How many finished orders are remembered, so that their ids are not used again and late fills find them."""

CANCEL_THREADS = 4
DEFAULT_CANCEL_TIMEOUT_S = 1.0

_NANOSECONDS_PER_S = 1_000_000_000

_log = structlog.get_logger("killswitch.router")


class OrderRouter:
    """Sends orders of one process to one venue. All methods may be called from any thread.

    Args:
        gate: asked before an order is built and again just before it is handed over.
        venue_client: the venue.
        monitor: pre-trade limits; also keeps the positions that fills add up to, and the reservations of what works.
            Without one, no limit is checked and no order counts as reducing. Ids must be unique among all routers that
            share one.
        controls: the pre-trade controls of the field, asked before the limits of their own monitor.
        venue, account, desk, trader, client, strategy, node: what every order of this router is, for scopes. What is
            ``None`` matches every scope.
        cancel_timeout_s: longest wait of :meth:`cancel_all_orders`, in seconds, greater than 0.
        clock: nanoseconds, for that wait.
        max_open_orders: orders open at once; the next one is refused.

    Raises:
        ValueError: a limit is not positive, or the controls have another monitor.
    """

    def __init__(
        self,
        *,
        gate: RouterGate,
        venue_client: VenueClient,
        monitor: RuntimeRiskMonitor | None = None,
        controls: PreTradeControls | None = None,
        venue: str | None = None,
        account: str | None = None,
        desk: str | None = None,
        trader: str | None = None,
        client: str | None = None,
        strategy: str | None = None,
        node: str | None = None,
        cancel_timeout_s: float = DEFAULT_CANCEL_TIMEOUT_S,
        clock: NowNs = now_ns,
        max_open_orders: int = MAX_OPEN_ORDERS,
    ) -> None:
        if not cancel_timeout_s > 0 or max_open_orders < 1:
            raise ValueError(
                "cancel_timeout_s must be greater than 0 and max_open_orders at least 1; "
                f"they are {cancel_timeout_s} and {max_open_orders}"
            )
        self._venue_client = venue_client
        self._scope: dict[str, str | None] = {
            "venue": venue,
            "account": account,
            "desk": desk,
            "trader": trader,
            "client": client,
            "strategy": strategy,
        }
        self._checks = OrderChecks(gate=gate, monitor=monitor, controls=controls, scope=self._scope)
        self._monitor = self._checks.monitor
        self._node = node
        self._cancel_timeout_ns = int(cancel_timeout_s * _NANOSECONDS_PER_S)
        self._clock = clock
        self._max_open_orders = max_open_orders
        self._sending = threading.Lock()
        # Guards everything below, and is never held while a venue, a gate or a monitor is being talked to.
        self._changed = threading.Condition()
        self._open: dict[str, NumberedOrder] = {}
        self._finished: dict[str, NumberedOrder] = {}
        self._last_sequence = 0
        self._sent = 0
        self._cancelled = 0
        self._contradictions = 0
        self._refused: Counter[str] = Counter()

    # ---- placing

    def place_order(self, client_order_id: str, symbol: str, side: str, qty: float, price: float) -> Placed | Refused:
        """Check and send one order.

        The gate is asked first, before anything is built; then the id, the numbers, the pre-trade controls and the
        monitor's limits, which reserve the order; then, with its number assigned, the gate and the monitor's freeze
        once more, and the next thing is the venue. A number that the second look refuses is given to the next order,
        so that the venue sees no gap. The order counts in the limits until the venue has confirmed that it is over: a
        cancel that is on its way, and an order that is in doubt, still count.

        Returns:
            :class:`Placed` when it was handed over, also when whether it arrived is in doubt: it then counts as open.
        """
        outcome = self._place(client_order_id, symbol, side, qty, price)
        if isinstance(outcome, Refused):
            with self._changed:
                self._refused[outcome.cause] += 1
        return outcome

    def _place(self, client_order_id: str, symbol: str, side: str, qty: float, price: float) -> Placed | Refused:
        checks = self._checks
        # Read once, here; everybody behind is handed what was read.
        read = read_order(symbol, side, qty, price)
        closed = checks.gate_refusal(client_order_id, symbol, read, reserved=False)
        if closed is not None:
            return closed
        order = sound_order(client_order_id, read)
        if isinstance(order, Refused):
            return order
        # From here on the order counts in the limits: before it is sent, so that there is no gap.
        refusal = self._known_refusal(client_order_id) or checks.reserve(client_order_id, order)
        if refusal is not None:
            return refusal
        placed = None
        try:
            placed = self._send(client_order_id, order)
        finally:
            if not isinstance(placed, Placed) and not self._may_be_working(client_order_id):
                checks.release(client_order_id)
        return placed

    def _known_refusal(self, client_order_id: str) -> Refused | None:
        with self._changed:
            known = client_order_id in self._open or client_order_id in self._finished
        return duplicate(client_order_id) if known else None

    def _may_be_working(self, client_order_id: str) -> bool:
        with self._changed:
            return client_order_id in self._open

    def _send(self, client_order_id: str, read: ReadOrder) -> Placed | Refused:
        with self._sending:
            registered = self._register(client_order_id, read)
            if isinstance(registered, Refused):
                return registered
            cleared = False
            try:
                refusal = self._second_refusal(client_order_id, read)
                cleared = refusal is None
            finally:
                if not cleared:
                    self._withdraw(registered)
            if refusal is not None:
                return refusal
            self._last_sequence = registered.order.sequence
            return self._hand_over(registered)

    def _second_refusal(self, client_order_id: str, read: ReadOrder) -> Refused | None:
        """Look at the gate and the freeze once more; when both are open the next thing is the venue."""
        checks = self._checks
        return checks.freeze_refusal(client_order_id) or checks.gate_refusal(
            client_order_id, read.symbol, read, reserved=True
        )

    def _register(self, client_order_id: str, read: ReadOrder) -> NumberedOrder | Refused:
        """Number the order and put it among the open ones. The sending lock is held."""
        assert read.price is not None, "an order without a price was refused before"
        order = Order(client_order_id, read.symbol, read.side, read.qty, read.price, self._last_sequence + 1)
        entry = NumberedOrder(order)
        with self._changed:
            if client_order_id in self._open or client_order_id in self._finished:
                return duplicate(client_order_id)
            if len(self._open) >= self._max_open_orders:
                sentence = f"{len(self._open)} orders are open, and no more than that may be"
                return Refused(client_order_id, "too_many_open", sentence)
            self._open[client_order_id] = entry
        return entry

    def _withdraw(self, entry: NumberedOrder) -> None:
        """Take an order back that was never handed over; its number and its id are free again."""
        with self._changed:
            entry.withdrawn = True
            del self._open[entry.order.client_order_id]
            self._changed.notify_all()

    def _hand_over(self, entry: NumberedOrder) -> Placed | Refused:
        order = entry.order
        rejected: str | None = None
        in_doubt = "the hand-over was interrupted"
        try:
            self._venue_client.place(order)
            in_doubt = ""
        except OrderRejected as error:
            rejected, in_doubt = str(error) or "rejected", ""
        except Exception as error:  # anything else leaves open whether the order arrived
            in_doubt = f"whether the order arrived is not known: {error!r}"
            _log.error("an order is in doubt", order=order.client_order_id, sequence=order.sequence, error=repr(error))
        finally:
            with self._changed:
                self._sent += 1
                entry.handed_over = True
                if rejected is not None:
                    self._step(entry, OrderEvent.REJECTED)
                late_cancel = entry.cancel_when_handed_over and not entry.is_over
                self._changed.notify_all()
            if late_cancel:
                self._send_cancel(entry)
        if rejected is not None:
            return Refused(order.client_order_id, "venue", rejected)
        return Placed(order.client_order_id, order.sequence, in_doubt)

    # ---- cancelling

    def cancel_all_orders(
        self, reason: str, covers: Callable[[Mapping[str, str | None]], bool] | None = None
    ) -> CancelResult:
        """Cancel every open order, or those that ``covers``, and wait until the venue has confirmed each.

        A CANCEL ALWAYS PASSES: nothing is asked first. Close the gate before, or new orders follow these. Returns as
        soon as every cancel is answered and after ``cancel_timeout_s`` at the latest; what is not proven over then
        counts as open, and calling again tries again. An order that filled meanwhile is neither cancelled nor open.

        Args:
            reason: for the log.
            covers: told the attributes of an order (see :mod:`killswitch.core.scopes`), True to cancel it. If it
                raises, the order counts as covered.
        """
        deadline_ns = self._clock() + self._cancel_timeout_ns
        with self._changed:
            candidates = list(self._open.values())
        targets = [entry for entry in candidates if covers is None or _is_covered(covers, self._attributes(entry))]
        with self._changed:
            failures_before = [entry.cancel_failures for entry in targets]
            ready = deque(entry for entry in targets if entry.handed_over and not entry.is_over)
            for entry in targets:
                # The thread that is handing it over looks at this when it is done.
                entry.cancel_when_handed_over = not entry.handed_over
        self._start_cancels(ready)
        with self._changed:
            self._wait_for_answers(targets, failures_before, deadline_ns)
            result = CancelResult(
                cancelled=sum(entry.state is OrderState.CANCELED for entry in targets),
                failed=sum(
                    entry.cancel_failures > before for entry, before in zip(targets, failures_before, strict=True)
                ),
                open=sum(not entry.is_over for entry in targets),
                last_sequence=self._last_sequence or None,
            )
            self._cancelled += result.cancelled
        _log.warning(
            "orders cancelled", reason=reason, cancelled=result.cancelled, failed=result.failed, open=result.open
        )
        return result

    def _wait_for_answers(self, targets: list[NumberedOrder], failures_before: list[int], deadline_ns: int) -> None:
        """Wait until every order is over or its cancel has failed, or the deadline. The registry's lock is held."""
        waiting = list(zip(targets, failures_before, strict=True))
        while True:
            # From the end, so that however many answers come, every order is looked at about once.
            while waiting and (waiting[-1][0].is_over or waiting[-1][0].cancel_failures > waiting[-1][1]):
                waiting.pop()
            left_ns = deadline_ns - self._clock()
            if not waiting or left_ns <= 0:
                return
            self._changed.wait(left_ns / _NANOSECONDS_PER_S)

    def _start_cancels(self, ready: deque[NumberedOrder]) -> None:
        """Send cancels from a few threads. One that hangs in the venue is left behind; the next round starts others."""

        def work() -> None:
            while True:
                try:
                    entry = ready.popleft()
                except IndexError:
                    return
                self._send_cancel(entry)

        for number in range(min(CANCEL_THREADS, len(ready))):
            try:
                threading.Thread(target=work, name=f"cancel-{number}", daemon=True).start()
            except RuntimeError as error:  # no thread to be had: better slowly than not at all
                _log.error("no thread for cancels; this one sends them", error=repr(error))
                work()
                return

    def _send_cancel(self, entry: NumberedOrder) -> None:
        with self._changed:
            # A request that still hangs in the venue client is not sent twice; threads stay bounded by open orders.
            if entry.is_over or entry.cancelling:
                return
            entry.cancelling = True
        failed = False
        try:
            self._venue_client.cancel(entry.order.client_order_id)
            self._checks.on_cancel()
        except Exception as error:  # counted, and the other cancels go on
            failed = True
            _log.error("a cancel could not be sent", order=entry.order.client_order_id, error=repr(error))
        finally:
            with self._changed:
                entry.cancelling = False
                if failed:
                    entry.cancel_failures += 1
                    self._changed.notify_all()

    def _attributes(self, entry: NumberedOrder) -> dict[str, str | None]:
        return {"node": self._node, **self._scope, "symbol": entry.order.symbol}

    # ---- what the venue says

    def on_venue_event(self, event: VenueEvent) -> None:
        """Take in one message of the venue. Never raises for what a venue may say.

        A fill reaches the position first, whatever state the order is in: a fill is a fact. A message that contradicts
        the order's state changes nothing else and counts in ``contradictions``; a fill of an order that this router
        does not know freezes the monitor, since the position is no longer known.
        """
        with self._changed:
            entry = self._open.get(event.client_order_id) or self._finished.get(event.client_order_id)
        if entry is None:
            self._on_unknown(event)
        elif event.kind is VenueEventKind.FILL:
            self._on_fill(entry, event)
        elif event.kind is VenueEventKind.CANCEL_REJECTED:
            with self._changed:
                entry.cancel_failures += 1
                self._changed.notify_all()
        else:
            with self._changed:
                self._step(entry, OrderEvent(event.kind.value))
                self._changed.notify_all()
            self._release_if_over(entry)

    def _on_fill(self, entry: NumberedOrder, event: VenueEvent) -> None:
        order = entry.order
        self._checks.on_fill(order, event)
        with self._changed:
            filled = finite_number(event.qty)
            if filled is None or filled <= 0:
                self._contradict(entry, "a fill without a quantity")
                return
            entry.filled = EXACT.add(entry.filled, exact(filled))
            if entry.filled > exact(order.qty):
                self._contradict(entry, "more was filled than was ordered")
            done = entry.filled >= exact(order.qty)
            self._step(entry, OrderEvent.FULL_FILL if done else OrderEvent.PARTIAL_FILL)
            self._changed.notify_all()
        self._release_if_over(entry)

    def _release_if_over(self, entry: NumberedOrder) -> None:
        """Stop counting what the venue can fill no more; with no lock held, as everything that asks the monitor."""
        if entry.is_over:
            self._checks.release(entry.order.client_order_id)

    def _on_unknown(self, event: VenueEvent) -> None:
        with self._changed:
            self._contradictions += 1
        _log.error("the venue speaks of an unknown order", order=event.client_order_id, kind=event.kind.value)
        if event.kind is VenueEventKind.FILL:
            self._checks.on_unknown_fill(event)

    def _step(self, entry: NumberedOrder, event: OrderEvent) -> None:
        """Move one order along the table. The registry's lock is held."""
        state = next_state(entry.state, event)
        if state is None:
            self._contradict(entry, f"{event.value} in state {entry.state.value}")
            return
        entry.state = state
        if state.is_final and self._open.pop(entry.order.client_order_id, None) is not None:
            self._finished[entry.order.client_order_id] = entry
            if len(self._finished) > FINISHED_ORDERS_KEPT:
                del self._finished[next(iter(self._finished))]

    def _contradict(self, entry: NumberedOrder, what: str) -> None:
        self._contradictions += 1
        _log.error("the venue contradicts what is known of an order", order=entry.order.client_order_id, what=what)

    # ---- what is known

    @property
    def last_sequence(self) -> int | None:
        """Highest sequence number ever handed to the venue, ``None`` before the first order."""
        return self._last_sequence or None

    @property
    def sent(self) -> int:
        """Orders handed to the venue, those that it rejected included."""
        return self._sent

    @property
    def cancelled(self) -> int:
        """Orders that rounds of :meth:`cancel_all_orders` saw confirmed as cancelled."""
        return self._cancelled

    @property
    def contradictions(self) -> int:
        """Messages of the venue that did not fit what is known."""
        return self._contradictions

    @property
    def refused(self) -> dict[str, int]:
        """Orders refused, by cause."""
        with self._changed:
            return dict(self._refused)

    @property
    def positions(self) -> Mapping[str, float]:
        """Signed quantity per symbol from fills, as the monitor keeps it; empty without a monitor."""
        return {} if self._monitor is None else self._monitor.get_positions()

    def state_of(self, client_order_id: str) -> OrderState | None:
        """State of an order, ``None`` when this router does not know it (any more)."""
        with self._changed:
            entry = self._open.get(client_order_id) or self._finished.get(client_order_id)
            return entry.state if entry else None

    def open_orders(self) -> Iterable[OpenOrder]:
        """Every order that the venue may still fill, in the order in which they were sent."""
        with self._changed:
            return [entry.report() for entry in self._open.values()]


def _is_covered(covers: Callable[[Mapping[str, str | None]], bool], attributes: Mapping[str, str | None]) -> bool:
    try:
        return covers(attributes) is not False
    except Exception as error:  # whether it is covered is unknown, so it is
        _log.error("a cancel predicate failed; the order counts as covered", error=repr(error))
        return True

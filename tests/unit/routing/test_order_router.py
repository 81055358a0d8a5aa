"""The reference order router against a venue that answers late, refuses, hangs or never answers, and a real gate."""

from __future__ import annotations

import datetime as dt
import runpy
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from killswitch.clock import now_ns
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL, Scope
from killswitch.gate import Gate, GateWriter
from killswitch.link.messages import CancelResult
from killswitch.risk import order_inputs
from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.pretrade import PreTradeControls
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.refusal import OrderRefused
from killswitch.routing.order_router import OrderRouter
from killswitch.routing.order_state import TRANSITIONS, OrderEvent, OrderState, next_state
from killswitch.routing.order_types import Order, OrderRejected, Placed, Refused, VenueEvent, VenueEventKind
from tests.support.waiting import wait_until

TRAP = Path(__file__).parents[2] / "containers" / "inside" / "trap" / "sitecustomize.py"
SHORT_S = 0.3
LONG_S = 20.0

ACK, FILL, CANCELED = VenueEventKind.ACK, VenueEventKind.FILL, VenueEventKind.CANCELED
REJECTED, CANCEL_REJECTED = VenueEventKind.REJECTED, VenueEventKind.CANCEL_REJECTED


class Venue:
    """A venue with a book of its own. Answers come on threads of their own; every behaviour is a hook."""

    def __init__(self) -> None:
        self.router: OrderRouter | None = None
        self.book: dict[str, Order] = {}
        self.placed: list[Order] = []
        self.cancels: list[str] = []
        self.in_place: Callable[[Order], None] = lambda _order: None
        self.in_cancel: Callable[[str], None] = lambda _id: None
        self.answers_cancels: Callable[[str], VenueEventKind | None] = lambda _id: CANCELED
        self._lock = threading.Lock()

    def place(self, order: Order) -> None:
        self.in_place(order)
        with self._lock:
            self.book[order.client_order_id] = order
            self.placed.append(order)
        self.say(ACK, order.client_order_id)

    def cancel(self, client_order_id: str) -> None:
        self.in_cancel(client_order_id)
        with self._lock:
            self.cancels.append(client_order_id)
            answer = self.answers_cancels(client_order_id)
            if answer is CANCELED:
                self.book.pop(client_order_id, None)
        if answer is not None:
            self.say(answer, client_order_id)

    def say(self, kind: VenueEventKind, client_order_id: str, **fields: Any) -> None:
        event = VenueEvent(kind=kind, client_order_id=client_order_id, **fields)
        assert self.router is not None
        threading.Thread(target=self.router.on_venue_event, args=(event,), daemon=True).start()

    def tell(self, kind: VenueEventKind, client_order_id: str, **fields: Any) -> None:
        """As :meth:`say`, and wait until the router has taken it in."""
        assert self.router is not None
        self.router.on_venue_event(VenueEvent(kind=kind, client_order_id=client_order_id, **fields))


class Rig:
    """A router with its venue, its monitor and a real gate page."""

    def __init__(self, path: Path) -> None:
        self.writer = GateWriter(path, cluster="c", node="n1")
        self.gate = Gate.open(path)
        self.venue = Venue()
        self.monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=1e6,
            max_total_notional_usd=1e7,
            edge_freeze_threshold_bps=1.5,
            registry=CollectorRegistry(),
        )
        self.router = self.make()
        self.open()

    def make(self, **changes: Any) -> OrderRouter:
        settings: dict[str, Any] = {
            "gate": self.gate,
            "venue_client": self.venue,
            "monitor": self.monitor,
            "venue": "bybit",
            "strategy": "mm",
            "cancel_timeout_s": LONG_S,
        }
        self.router = self.venue.router = OrderRouter(**{**settings, **changes})
        return self.router

    def open(self, *freezes: Freeze) -> None:
        self._epoch = getattr(self, "_epoch", 0) + 1
        self.writer.update(freezes, epoch=self._epoch, permit_deadline_ns=now_ns() + 60_000_000_000)

    def close_gate(self) -> None:
        self.writer.close_now(freeze_of(GLOBAL))

    def place(self, *ids: str, symbol: str = "BTCUSDT", side: str = "buy", qty: float = 1.0) -> None:
        for client_order_id in ids:
            outcome = self.router.place_order(client_order_id, symbol, side, qty, 100.0)
            assert isinstance(outcome, Placed), outcome


def freeze_of(scope: Scope, mode: Mode = Mode.FROZEN) -> Freeze:
    return Freeze(f"f-{scope}-{mode.name}", scope, mode, "manual", "test", "operator:ann", "2026-01-31T09:30:00Z")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "gate")
    yield made
    made.gate.close()
    made.writer.close()


# ---- a cancel always passes


def test_a_cancel_always_passes__gate_closed_monitor_frozen_and_limits_used_up(rig: Rig) -> None:
    rig.place("a", "b", "c")
    rig.close_gate()
    rig.monitor.freeze("stop")
    assert rig.router.cancel_all_orders("stop") == CancelResult(cancelled=3, failed=0, open=0, last_sequence=3)
    assert rig.venue.book == {}
    assert {rig.router.state_of(name) for name in "abc"} == {OrderState.CANCELED}
    assert rig.router.cancelled == 3


def test_a_cancel_always_passes__a_gate_that_raises_and_a_monitor_that_raises_are_not_even_asked(rig: Rig) -> None:
    rig.place("a")
    rig.gate.close()
    rig.writer.close()
    rig.monitor.is_frozen = rig.monitor.reserve = rig.monitor.reserve_read = None  # type: ignore[method-assign,assignment]
    assert rig.router.cancel_all_orders("stop").open == 0


def test_a_cancel_always_passes__while_the_venue_hangs_in_an_order(rig: Rig) -> None:
    rig.make(cancel_timeout_s=SHORT_S)
    rig.place("a")
    go_on, inside = threading.Event(), threading.Event()

    def hang(_order: Order) -> None:
        inside.set()
        assert go_on.wait(LONG_S)

    rig.venue.in_place = hang
    placing = threading.Thread(target=rig.router.place_order, args=("b", "BTCUSDT", "buy", 1.0, 100.0))
    placing.start()
    assert inside.wait(LONG_S)
    rig.close_gate()
    result = rig.router.cancel_all_orders("stop")
    assert result == CancelResult(cancelled=1, failed=0, open=1, last_sequence=2)
    # The order that was on its way is cancelled by the thread that sent it, as soon as it can.
    go_on.set()
    placing.join(LONG_S)
    wait_until(lambda: rig.router.state_of("b") is OrderState.CANCELED, what="the cancel of the order on its way")
    assert rig.venue.book == {}


def test_a_cancel_always_passes__while_the_venue_hangs_in_another_cancel(rig: Rig) -> None:
    rig.make(cancel_timeout_s=1.0)
    go_on = threading.Event()
    rig.venue.in_cancel = lambda name: None if name != "b" else [go_on.wait(LONG_S), None][1]
    rig.place("a", "b", "c", "d", "e", "f")
    assert rig.router.cancel_all_orders("stop") == CancelResult(cancelled=5, failed=0, open=1, last_sequence=6)
    # The request that hangs is not sent a second time.
    assert rig.router.cancel_all_orders("stop").open == 1
    go_on.set()
    wait_until(lambda: rig.router.state_of("b") is OrderState.CANCELED, what="the cancel that hung")
    assert rig.venue.cancels.count("b") == 1


def test_a_cancel_always_passes__also_when_no_thread_can_be_started(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.venue.say = rig.venue.tell  # type: ignore[method-assign]
    rig.place("a", "b")

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert rig.router.cancel_all_orders("stop").cancelled == 2


def test_an_order_that_is_never_confirmed_is_open_and_the_wait_is_bounded(rig: Rig) -> None:
    rig.make(cancel_timeout_s=SHORT_S)
    rig.place("a", "b")
    rig.venue.answers_cancels = lambda name: None if name == "b" else CANCELED
    assert rig.router.cancel_all_orders("stop") == CancelResult(cancelled=1, failed=0, open=1, last_sequence=2)
    rig.venue.answers_cancels = lambda _name: CANCELED
    assert rig.router.cancel_all_orders("again") == CancelResult(cancelled=1, failed=0, open=0, last_sequence=2)


def test_a_cancel_that_the_venue_refuses_or_that_cannot_be_sent_failed_and_the_order_is_open(rig: Rig) -> None:
    def broken(name: str) -> None:
        if name == "c":
            raise ConnectionError("no route")

    rig.place("a", "b", "c")
    rig.venue.answers_cancels = lambda name: CANCEL_REJECTED if name == "b" else CANCELED
    rig.venue.in_cancel = broken
    assert rig.router.cancel_all_orders("stop") == CancelResult(cancelled=1, failed=2, open=2, last_sequence=3)


def test_an_order_that_fills_instead_is_neither_cancelled_nor_open(rig: Rig) -> None:
    def fill_first(name: str) -> None:
        rig.venue.tell(FILL, name, qty=1.0, price=100.0)

    rig.place("a")
    rig.venue.in_cancel = fill_first
    rig.venue.answers_cancels = lambda _name: CANCEL_REJECTED
    result = rig.router.cancel_all_orders("stop")
    assert (result.cancelled, result.open) == (0, 0)
    assert rig.router.positions == {"BTCUSDT": 1.0}


def test_only_what_is_covered_is_cancelled_and_what_cannot_be_judged_is_covered(rig: Rig) -> None:
    rig.place("btc")
    rig.place("eth", symbol="ETHUSDT")
    assert rig.router.cancel_all_orders("x", Scope.parse("venue:okx").covers).cancelled == 0
    assert rig.router.cancel_all_orders("x", Scope.parse("venue:bybit,symbol:ETHUSDT").covers).cancelled == 1
    assert set(rig.venue.book) == {"btc"}

    def fails(_attributes: Mapping[str, str | None]) -> bool:
        raise KeyError("desk")

    assert rig.router.cancel_all_orders("x", fails).cancelled == 1


def test_nothing_to_cancel_returns_at_once(rig: Rig) -> None:
    assert rig.router.cancel_all_orders("stop") == CancelResult(cancelled=0, failed=0, open=0, last_sequence=None)


# ---- bounded stop


class TurningGate:
    """A real gate after whose first or second answer something happens, before the router hears that answer."""

    def __init__(self, gate: Gate, happens: Callable[[], None], *, after: int = 1) -> None:
        self._gate, self._happens, self._after, self._asked = gate, happens, after, 0

    def allows(self, symbol: str, **attributes: Any) -> bool:
        answer = self._gate.allows(symbol, **attributes)
        self._asked += 1
        if self._asked == self._after:
            self._happens()
        return answer

    def check(self, symbol: str, **attributes: Any) -> None:
        self._gate.check(symbol, **attributes)


def test_bounded_stop__a_gate_that_closes_between_the_two_looks_sends_nothing_and_burns_no_number(rig: Rig) -> None:
    rig.place("before")
    rig.make(gate=TurningGate(rig.gate, rig.close_gate))
    rig.venue.placed.clear()
    outcome = rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0)
    assert isinstance(outcome, Refused)
    assert outcome.cause == "gate"
    assert "FROZEN" in outcome.sentence
    assert rig.venue.placed == []
    assert (rig.router.sent, rig.router.last_sequence, rig.router.refused) == (0, None, {"gate": 1})
    assert list(rig.router.open_orders()) == []
    rig.writer.lift_local(freeze_of(GLOBAL).id)
    assert rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0) == Placed("a", 1)


def test_bounded_stop__a_monitor_that_freezes_between_the_two_looks_sends_nothing(rig: Rig) -> None:
    rig.make(gate=TurningGate(rig.gate, lambda: None))
    original = rig.monitor.reserve_read

    def pass_then_freeze(*args: Any) -> OrderRefused | None:
        refusal = original(*args)
        rig.monitor.freeze("meanwhile")
        return refusal

    rig.monitor.reserve_read = pass_then_freeze  # type: ignore[method-assign,assignment]
    outcome = rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0)
    assert isinstance(outcome, Refused)
    assert (outcome.cause, outcome.sentence) == ("monitor", "trading is frozen: meanwhile")
    assert rig.venue.placed == []
    assert rig.monitor.working_orders() == 0


def test_bounded_stop__the_gate_is_asked_before_anything_is_built(rig: Rig) -> None:
    rig.close_gate()
    outcome = rig.router.place_order("", "", "hold", float("nan"), -1.0)
    assert isinstance(outcome, Refused)
    assert outcome.cause == "gate"


def test_bounded_stop__an_order_between_its_second_look_and_the_venue_is_waited_for_and_cancelled(rig: Rig) -> None:
    listed, results = threading.Event(), []

    def covers(_attributes: Mapping[str, str | None]) -> bool:
        listed.set()
        return True

    def stop() -> None:
        rig.close_gate()
        results.append(rig.router.cancel_all_orders("stop", covers))

    stopping = threading.Thread(target=stop)

    def second_answer() -> None:
        # The gate has just said yes for the last time; the whole stop begins before the router hears it.
        stopping.start()
        wait_until(lambda: listed.is_set() or results, what="the stop to have looked at the open orders")

    rig.make(gate=TurningGate(rig.gate, second_answer, after=2))
    assert rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0) == Placed("a", 1)
    stopping.join(LONG_S)
    assert results == [CancelResult(cancelled=1, failed=0, open=0, last_sequence=1)]
    assert rig.venue.book == {}


def test_bounded_stop__no_order_of_many_threads_slips_past_a_stop(rig: Rig) -> None:
    for turn in range(10):
        rig.open()
        running = threading.Event()
        running.set()

        def trade(thread: int, running: threading.Event = running, turn: int = turn) -> None:
            number = 0
            while running.is_set():
                number += 1
                rig.router.place_order(f"{turn}-{thread}-{number}", "BTCUSDT", "buy", 0.001, 100.0)

        threads = [threading.Thread(target=trade, args=(thread,)) for thread in range(3)]
        sent_before = rig.router.sent
        for thread in threads:
            thread.start()
        wait_until(lambda before=sent_before: rig.router.sent > before + 20, what="orders on their way")
        rig.close_gate()
        result = rig.router.cancel_all_orders("stop")
        placed = len(rig.venue.placed)
        assert result.open == 0
        assert rig.venue.book == {}
        assert result.last_sequence == rig.venue.placed[-1].sequence
        running.clear()
        for thread in threads:
            thread.join(LONG_S)
        assert len(rig.venue.placed) == placed
        assert rig.venue.book == {}
        rig.writer.lift_local(freeze_of(GLOBAL).id)


@pytest.mark.parametrize("error", [RuntimeError("torn page"), OSError("gone")])
def test_unknown_is_frozen__a_gate_that_raises_refuses(rig: Rig, error: Exception) -> None:
    class Broken:
        def allows(self, symbol: str, **attributes: Any) -> bool:
            raise error

        def check(self, symbol: str, **attributes: Any) -> None:
            raise error

    rig.make(gate=Broken())
    outcome = rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0)
    assert isinstance(outcome, Refused)
    assert (outcome.cause, outcome.sentence) == ("gate", str(error))
    assert rig.venue.placed == []


# ---- reduce-only


def test_reduce_only_passes_what_reduces_and_counts_what_is_working(rig: Rig) -> None:
    rig.place("open", qty=1.0)
    rig.venue.tell(FILL, "open", qty=1.0, price=100.0)
    rig.open(freeze_of(GLOBAL, Mode.REDUCE_ONLY))
    outcomes = [
        rig.router.place_order(name, "BTCUSDT", side, qty, 100.0)
        for name, side, qty in [
            ("grow", "buy", 0.1),
            ("half", "sell", 0.6),
            ("too-much", "sell", 0.6),
            ("rest", "sell", 0.4),
            ("dust", "sell", 0.001),
        ]
    ]
    assert [isinstance(outcome, Placed) for outcome in outcomes] == [False, True, False, True, False]
    assert isinstance(rig.router.place_order("flat", "ETHUSDT", "sell", 0.1, 100.0), Refused)


def test_reduce_only_without_a_monitor_passes_nothing(rig: Rig) -> None:
    rig.make(monitor=None)
    rig.open(freeze_of(GLOBAL, Mode.REDUCE_ONLY))
    assert isinstance(rig.router.place_order("a", "BTCUSDT", "sell", 0.1, 100.0), Refused)
    assert rig.router.positions == {}


# ---- numbers, ids, limits


def test_numbers_start_at_one_and_have_no_gaps_whatever_is_refused(rig: Rig) -> None:
    # A venue that takes its time: without one lock around numbering and sending, two orders would share a number.
    rig.venue.in_place = lambda _order: time.sleep(0.0002)

    def trade(thread: int) -> None:
        for number in range(50):
            rig.router.place_order(f"{thread}-{number}", "BTCUSDT", "buy", 0.001, 100.0)
            rig.router.place_order(f"{thread}-{number}", "BTCUSDT", "buy", 0.001, 100.0)
            rig.router.place_order(f"{thread}-{number}-big", "BTCUSDT", "buy", 1e9, 100.0)

    threads = [threading.Thread(target=trade, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert [order.sequence for order in rig.venue.placed] == list(range(1, 201))
    assert rig.router.last_sequence == rig.router.sent == 200
    assert rig.router.refused == {"duplicate": 200, "monitor": 200}


def test_the_same_id_from_many_threads_is_sent_once(rig: Rig) -> None:
    outcomes: list[Placed | Refused] = []
    start = threading.Barrier(8)

    def trade() -> None:
        start.wait()
        outcomes.append(rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0))

    threads = [threading.Thread(target=trade) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert sum(isinstance(outcome, Placed) for outcome in outcomes) == 1
    assert len(rig.venue.placed) == 1
    rig.router.cancel_all_orders("done")
    again = rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0)
    assert isinstance(again, Refused)
    assert again.cause == "duplicate"


def test_the_monitor_says_why(rig: Rig) -> None:
    outcome = rig.router.place_order("a", "BTCUSDT", "buy", 1e6, 100.0)
    assert isinstance(outcome, Refused)
    assert outcome.cause == "monitor"
    assert "above the limit" in outcome.sentence
    assert rig.monitor.blocks_total == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "A", "buy", 1.0, 1.0),
        ("a", "", "buy", 1.0, 1.0),
        ("a", "A", "hold", 1.0, 1.0),
        ("a", "A", "buy", float("nan"), 1.0),
        ("a", "A", "buy", 1.0, float("inf")),
        ("a", "A", "buy", 0.0, 1.0),
        ("a", "A", "buy", 1.0, -1.0),
        ("a", "A", "buy", "1", 1.0),
        ("a", "A", "buy", 1.0, 10**400),
        ("a", "A", "buy", 1e16, 1.0),
        ("a", "A", "buy", 1.0, None),
    ],
)
def test_unknown_is_frozen__a_bad_order_is_refused_also_without_a_monitor(rig: Rig, arguments: Any) -> None:
    for monitor in (rig.monitor, None):
        rig.make(monitor=monitor)
        outcome = rig.router.place_order(*arguments)
        assert isinstance(outcome, Refused)
        assert outcome.cause == "bad_input"


def test_an_order_is_read_once_and_what_was_read_is_what_is_counted_and_sent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []

    def reads(*arguments: Any) -> Any:
        read.append(order_inputs.read_order(*arguments))
        return read[-1]

    def again(*_arguments: Any) -> None:
        raise AssertionError("the order was read again")

    monkeypatch.setattr("killswitch.routing.order_router.read_order", reads)
    for module in ("limits.runtime_monitor", "limits.limit_check", "pretrade.order"):
        monkeypatch.setattr(f"killswitch.risk.{module}.read_order", again)
    for module in ("limits.runtime_monitor", "pretrade.order"):
        monkeypatch.setattr(f"killswitch.risk.{module}.plain_sign", again)
    rig.make(
        monitor=None, controls=PreTradeControls(PreTradeSettings(), monitor=rig.monitor, registry=CollectorRegistry())
    )
    assert rig.router.place_order("a", "BTCUSDT", "Buy", Decimal("1.5"), 100) == Placed("a", 1)  # type: ignore[arg-type]
    (order,) = rig.venue.placed
    assert (order.symbol, order.side, order.qty, order.price) == ("BTCUSDT", "buy", 1.5, 100.0)
    assert rig.monitor.reserved("a") == ("BTCUSDT", "buy", 100.0)
    assert len(read) == 1


def test_open_orders_are_limited(rig: Rig) -> None:
    rig.make(max_open_orders=2)
    rig.place("a", "b")
    outcome = rig.router.place_order("c", "BTCUSDT", "buy", 1.0, 100.0)
    assert isinstance(outcome, Refused)
    assert outcome.cause == "too_many_open"
    rig.router.cancel_all_orders("room")
    assert rig.router.place_order("c", "BTCUSDT", "buy", 1.0, 100.0) == Placed("c", 3)


def test_construction_refuses_limits_that_are_none(rig: Rig) -> None:
    for wrong in ({"cancel_timeout_s": 0.0}, {"cancel_timeout_s": float("nan")}, {"max_open_orders": 0}):
        with pytest.raises(ValueError, match="cancel_timeout_s"):
            rig.make(**wrong)


# ---- what the venue says


def test_an_order_that_the_venue_refuses_is_over(rig: Rig) -> None:
    def reject(_order: Order) -> None:
        raise OrderRejected("price band")

    rig.venue.in_place = reject
    assert rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0) == Refused("a", "venue", "price band")
    assert rig.router.state_of("a") is OrderState.REJECTED
    assert rig.router.last_sequence == 1
    assert rig.router.cancel_all_orders("stop") == CancelResult(cancelled=0, failed=0, open=0, last_sequence=1)


def test_unknown_is_frozen__an_order_whose_hand_over_failed_counts_as_open_and_is_cancelled(rig: Rig) -> None:
    def time_out(_order: Order) -> None:
        raise TimeoutError("no answer")

    rig.venue.in_place = time_out
    outcome = rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0)
    assert isinstance(outcome, Placed)
    assert "no answer" in outcome.in_doubt
    assert [order.state for order in rig.router.open_orders()] == [OrderState.PENDING]
    assert rig.router.cancel_all_orders("stop").cancelled == 1


def test_fills_move_the_order_and_the_position(rig: Rig) -> None:
    rig.place("a", qty=0.3)
    rig.venue.tell(FILL, "a", qty=0.1, price=100.0)
    assert rig.router.state_of("a") is OrderState.PARTIALLY_FILLED
    (open_order,) = rig.router.open_orders()
    assert (open_order.remaining, open_order.side, open_order.sequence) == (0.2, "buy", 1)
    rig.venue.tell(FILL, "a", qty=0.2, price=100.0)
    assert rig.router.state_of("a") is OrderState.FILLED
    assert rig.router.positions == {"BTCUSDT": 0.3}
    assert rig.router.contradictions == 0


def test_a_fill_after_the_cancel_still_counts_in_the_position(rig: Rig) -> None:
    rig.place("a")
    rig.router.cancel_all_orders("stop")
    rig.venue.tell(FILL, "a", qty=0.4, price=100.0)
    assert rig.router.positions == {"BTCUSDT": 0.4}
    assert rig.router.state_of("a") is OrderState.CANCELED
    assert rig.router.contradictions == 1


def test_more_than_was_ordered_counts_and_is_told(rig: Rig) -> None:
    rig.place("a")
    rig.venue.tell(FILL, "a", qty=1.5, price=100.0)
    assert rig.router.positions == {"BTCUSDT": 1.5}
    assert rig.router.state_of("a") is OrderState.FILLED
    assert rig.router.contradictions == 1


def test_unknown_is_frozen__a_fill_that_makes_no_sense_or_of_an_unknown_order_freezes_the_monitor(rig: Rig) -> None:
    rig.place("a")
    rig.venue.tell(FILL, "a", qty=float("nan"), price=100.0)
    assert rig.monitor.is_frozen()
    rig.monitor.unfreeze("looked at")
    rig.venue.tell(FILL, "nobody", qty=1.0, price=100.0)
    assert rig.monitor.is_frozen()
    assert rig.monitor.get_freeze_events()[-1].metadata["cause"] == "monitor_error"
    rig.monitor.unfreeze("looked at")
    rig.venue.tell(ACK, "nobody")
    assert not rig.monitor.is_frozen()
    assert rig.router.contradictions == 3


def test_a_rejection_after_the_hand_over_ends_the_order(rig: Rig) -> None:
    rig.venue.say = rig.venue.tell  # type: ignore[method-assign]
    rig.place("a")
    rig.venue.tell(REJECTED, "a")
    assert rig.router.state_of("a") is OrderState.REJECTED
    assert rig.router.state_of("b") is None


def test_finished_orders_are_forgotten_at_last(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("killswitch.routing.order_router.FINISHED_ORDERS_KEPT", 2)
    rig.place("a", "b", "c")
    for name in "abc":
        rig.venue.tell(FILL, name, qty=1.0, price=100.0)
    assert [rig.router.state_of(name) for name in "abc"] == [None, OrderState.FILLED, OrderState.FILLED]


# ---- what works counts in the limits


def small(rig: Rig) -> RuntimeRiskMonitor:
    """A monitor whose limit of a symbol is three of the rig's orders."""
    rig.monitor = RuntimeRiskMonitor(
        max_inventory_usd_per_symbol=300.0,
        max_total_notional_usd=500.0,
        edge_freeze_threshold_bps=1.5,
        registry=CollectorRegistry(),
    )
    rig.make()
    return rig.monitor


def refused(outcome: Placed | Refused) -> Refused:
    assert isinstance(outcome, Refused), outcome
    return outcome


def test_an_order_counts_from_the_moment_it_is_sent_until_it_is_over(rig: Rig) -> None:
    monitor = small(rig)
    rig.place("a", "b", "c")
    outcome = refused(rig.router.place_order("d", "BTCUSDT", "buy", 1.0, 100.0))
    assert outcome.cause == "monitor"
    assert outcome.why is not None
    assert (outcome.why.kind, outcome.why.limit, outcome.why.value) == ("symbol_limit", 300.0, 400.0)
    assert monitor.working_orders() == 3
    # A cancel that is asked for and not confirmed still counts.
    rig.venue.answers_cancels = lambda _name: None
    rig.router._send_cancel(rig.router._open["a"])
    assert refused(rig.router.place_order("d", "BTCUSDT", "buy", 1.0, 100.0)).cause == "monitor"
    rig.venue.tell(CANCELED, "a")
    rig.place("d")
    # A fill moves from what works to what is held, and changes nothing of the worst case.
    rig.venue.tell(FILL, "b", qty=0.4, price=100.0)
    assert monitor.get_potential_notional() == 300.0
    rig.venue.tell(FILL, "b", qty=0.6, price=100.0)
    assert monitor.get_potential_notional("BTCUSDT") == 300.0
    assert (monitor.get_total_notional(), monitor.working_orders()) == (100.0, 2)
    refused(rig.router.place_order("e", "BTCUSDT", "buy", 0.01, 100.0))


def test_what_was_refused_rejected_or_withdrawn_counts_no_more(rig: Rig) -> None:
    monitor = small(rig)

    def reject(_order: Order) -> None:
        raise OrderRejected("price band")

    rig.venue.in_place = reject
    assert refused(rig.router.place_order("a", "BTCUSDT", "buy", 1.0, 100.0)).cause == "venue"
    rig.venue.in_place = lambda _order: None
    rig.router._max_open_orders = 0
    assert refused(rig.router.place_order("b", "BTCUSDT", "buy", 1.0, 100.0)).cause == "too_many_open"
    rig.make(gate=TurningGate(rig.gate, rig.close_gate))
    assert refused(rig.router.place_order("c", "BTCUSDT", "buy", 1.0, 100.0)).cause == "gate"
    assert (monitor.working_orders(), monitor.get_potential_notional()) == (0, 0.0)


def test_unknown_is_frozen__an_order_in_doubt_counts_until_the_venue_speaks_of_it(rig: Rig) -> None:
    monitor = small(rig)

    def time_out(_order: Order) -> None:
        raise TimeoutError("no answer")

    rig.venue.in_place = time_out
    rig.place("a")
    assert monitor.get_potential_notional() == 100.0
    rig.venue.tell(REJECTED, "a")
    assert monitor.get_potential_notional() == 0.0


def test_no_two_threads_slip_past_a_limit_together(rig: Rig) -> None:
    small(rig)
    for turn in range(20):
        start = threading.Barrier(8)
        outcomes: list[Placed | Refused] = []

        def trade(thread: int, turn: int = turn, start: threading.Barrier = start, out: Any = outcomes) -> None:
            start.wait()
            out.append(rig.router.place_order(f"{turn}-{thread}", "BTCUSDT", "buy", 1.0, 100.0))

        threads = [threading.Thread(target=trade, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        assert sum(isinstance(outcome, Placed) for outcome in outcomes) == 3
        assert rig.router.cancel_all_orders("next turn").open == 0
        wait_until(lambda: rig.monitor.working_orders() == 0, what="the reservations to be released")


def test_an_order_in_reduce_only_mode_does_not_count_against_itself(rig: Rig) -> None:
    rig.monitor.on_fill("BTCUSDT", "buy", 1.0, 100.0)
    rig.make(gate=TurningGate(rig.gate, lambda: rig.open(freeze_of(GLOBAL, Mode.REDUCE_ONLY))))
    # The first look finds the gate open; the second one, with the order reserved, finds it reduce-only.
    assert isinstance(rig.router.place_order("all", "BTCUSDT", "sell", 1.0, 100.0), Placed)
    refused(rig.router.place_order("more", "BTCUSDT", "sell", 0.1, 100.0))


def test_the_controls_are_asked_before_the_limits_and_fills_reach_them(rig: Rig) -> None:
    settings = PreTradeSettings.model_validate(
        {"repeated_executions": {"max_executions": 2}, "daily": {"max_cancels": 1}, "order_size": {"max_quantity": 5.0}}
    )
    controls = PreTradeControls(
        settings, monitor=rig.monitor, day=lambda: dt.date(2026, 1, 31), registry=CollectorRegistry()
    )
    with pytest.raises(ValueError, match="another monitor"):
        rig.make(monitor=small(rig), controls=controls)
    rig.make(monitor=None, controls=controls)
    outcome = refused(rig.router.place_order("big", "BTCUSDT", "buy", 6.0, 100.0))
    assert outcome.why is not None
    assert (outcome.cause, outcome.why.kind) == ("monitor", "order_quantity")
    rig.place("a", "b")
    for name in "ab":
        rig.venue.tell(FILL, name, qty=1.0, price=100.0)
    assert rig.router.positions == {"BTCUSDT": 2.0}
    assert controls.disabled_strategies() == ["mm"]
    outcome = refused(rig.router.place_order("c", "BTCUSDT", "buy", 1.0, 100.0))
    assert outcome.why is not None
    assert outcome.why.kind == "repeated_execution"
    controls.enable("mm", "ann", "looked at it")
    rig.place("c", "d")
    # Both cancels go, although one is the limit of the day; then no order does.
    assert rig.router.cancel_all_orders("stop").cancelled == 2
    # A cancel is counted after it was sent, so its answer may come first.
    wait_until(lambda: controls.persist_to_dict()["daily"]["cancels"] == 2, what="the cancels to be counted")
    outcome = refused(rig.router.place_order("e", "BTCUSDT", "buy", 1.0, 100.0))
    assert outcome.why is not None
    assert outcome.why.kind == "daily_cancels"


def test_a_cancel_always_passes__controls_that_raise_are_not_in_its_way(rig: Rig) -> None:
    def fails() -> dt.date:
        raise OSError("no calendar")

    settings = PreTradeSettings.model_validate({"daily": {"max_cancels": 1}})
    days = [dt.date(2026, 1, 31)]
    controls = PreTradeControls(settings, monitor=rig.monitor, day=lambda: days[0], registry=CollectorRegistry())
    rig.make(monitor=None, controls=controls)
    rig.place("a")
    days.clear()
    controls.on_cancel = fails  # type: ignore[method-assign,assignment]
    assert rig.router.cancel_all_orders("stop").cancelled == 1
    assert refused(rig.router.place_order("b", "BTCUSDT", "buy", 1.0, 100.0)).cause == "monitor"
    assert rig.monitor.is_frozen()


# ---- the acceptance scenario of the runtime monitor, with the real router


def test_acceptance__edge_collapse_cancels_three_working_orders(rig: Rig) -> None:
    rig.place("btc", "btc-2")
    rig.place("eth", symbol="ETHUSDT", side="Sell")
    assert rig.monitor.auto_freeze_on_edge_drop(1.2, rig.router) is True
    assert rig.venue.book == {}
    notes = rig.monitor.get_freeze_events()[0].metadata
    assert (notes["orders_cancelled"], notes["orders_open"], notes["cancels_failed"]) == (3, 0, 0)
    outcome = rig.router.place_order("late", "BTCUSDT", "buy", 1.0, 100.0)
    assert isinstance(outcome, Refused)
    assert "Edge degradation: 1.20 BPS < 1.50 BPS" in outcome.sentence


# ---- the table of states


def test_no_final_state_is_ever_left() -> None:
    for (state, _event), after in TRANSITIONS.items():
        assert not state.is_final or after is state


@given(events=st.lists(st.sampled_from(OrderEvent), max_size=12))
def test_an_order_ends_once_and_an_impossible_event_changes_nothing(events: list[OrderEvent]) -> None:
    state, ended = OrderState.PENDING, None
    for event in events:
        state = next_state(state, event) or state
        ended = ended or (state if state.is_final else None)
        assert ended is None or state is ended
        assert not (state is OrderState.PENDING and event is OrderEvent.ACK)


def test_every_state_but_the_final_ones_can_be_cancelled_and_filled() -> None:
    for state in OrderState:
        assert (next_state(state, OrderEvent.CANCELED) is OrderState.CANCELED) is not state.is_final
        assert (next_state(state, OrderEvent.FULL_FILL) is OrderState.FILLED) is not state.is_final


def test_the_trap_of_the_containers_stands_between_the_steps_of_the_router(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenarios in containers stop a router between its looks: a step that is named otherwise would spring none."""
    for step in ("_second_refusal", "_hand_over"):
        monkeypatch.setattr(OrderRouter, step, getattr(OrderRouter, step))  # the trap is taken away afterwards
    names = runpy.run_path(str(TRAP))
    sprung: list[str] = []
    names["set_traps"].__globals__["spring"] = sprung.append
    names["set_traps"]()
    rig.place("a")
    assert sprung == ["before-second-look", "after-second-look"]
    assert [order.client_order_id for order in rig.venue.placed] == ["a"]

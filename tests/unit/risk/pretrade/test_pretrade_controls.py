"""All pre-trade controls together: the stated order, what-if, counts, faults of input, a restart, threads."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import json
import math
import threading
from decimal import Decimal
from typing import Any

import pytest

from killswitch import risk
from killswitch.risk.pretrade import PreTradeControls, PretradeOrder, PretradeRule
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.refusal import OrderRefused
from tests.support.pretrade_rig import DAY, HEALTHY, MS, Rig


def test_the_package_names_the_controls() -> None:
    assert {"PreTradeControls", "PreTradeSettings", "PretradeRule", "PretradeOrder", "LimitSchedule"} <= set(
        risk.__all__
    )
    assert risk.PreTradeControls is PreTradeControls


# ---- what must always hold


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0, 1.1e15, 1e-19, "1", True, 10**400])
def test_unknown_is_frozen__an_order_that_makes_no_sense_is_refused_with_every_control_off(bad: Any) -> None:
    rig = Rig()
    assert rig.admit(qty=bad) == "bad_input"
    assert rig.admit(price=bad) == "bad_input"
    assert rig.admit(symbol=bad) == "bad_input" if not isinstance(bad, str) else rig.admit(side=bad) == "bad_input"
    assert rig.admit(side=[bad]) == "bad_input"
    assert rig.refused_total("bad_input") == 4
    assert rig.admit() is None
    assert rig.admit(qty=Decimal("1.5"), price=Decimal("100")) is None
    assert not rig.monitor.is_frozen()


def test_a_symbol_that_is_a_kind_of_text_is_one_symbol_to_controls_and_limits_alike() -> None:
    """``str()`` of an Enum is its name, a look-up goes by its text: permitted, watched and booked is the text."""

    class Symbol(str, enum.Enum):  # noqa: UP042 - the older kind, of which str() is another word
        BTC = "A"

    rig = Rig(permitted_symbols=("A",))
    assert rig.admit(symbol=Symbol.BTC) is None
    assert rig.monitor.reserved("o1") == ("A", "buy", 100.0)
    assert rig.monitor.working_orders("A") == 1


def test_everything_but_the_throttle_is_off_unless_it_is_configured() -> None:
    settings = PreTradeSettings()
    assert settings.throttle is not None
    assert (settings.throttle.orders_per_s, settings.throttle.amends_per_s) == (100, 100)
    off = {"permitted_symbols", "order_size", "price_collar", "duplicates", "repeated_executions", "working_orders"}
    off |= {"daily", "input_health"}
    assert {name for name in off if getattr(settings, name) is not None} == set()
    rig = Rig()
    for _ in range(300):
        rig.orders += 1
        assert rig.controls.admit(f"o{rig.orders}", "A", "buy", 1.0, 100.0) is None


# ---- all together


ALL = {
    "permitted_symbols": ("A", "B"),
    "order_size": {"max_quantity": 10.0},
    "repeated_executions": {"max_executions": 1},
    "daily": {"max_orders": 1},
    "input_health": HEALTHY,
    "price_collar": {"max_deviation_bps": 100.0},
    "throttle": {"orders_per_s": 1},
    "duplicates": {"max_same_orders": 1, "window_ms": 60_000},
    "working_orders": {"max_total": 1},
}
FAULTS = (
    ("symbol_not_permitted", "symbol"),
    ("order_quantity", "qty"),
    ("repeated_execution", "strategy"),
    ("daily_orders", "day"),
    ("price_stale", "age"),
    ("price_collar", "price"),
    ("order_throttle", "rate"),
    ("duplicate_order", "same"),
    ("rule", "rule"),
    ("working_orders", "working"),
)


class Moody(PretradeRule):
    """A rule of the user's own."""

    name = "moody"

    def __init__(self) -> None:
        self.answer: Any = None

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        return self.answer  # type: ignore[no-any-return]


class Meddler(PretradeRule):
    """A rule that writes into the order what it works out for itself."""

    name = "meddler"

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        order.qty, order.price, order.sign, order.symbol = order.qty / 1_000, 0.01, -order.sign, "B"
        return None


def test_the_limits_are_asked_about_the_order_that_is_sent_whatever_a_rule_makes_of_it() -> None:
    rig = Rig(rules=(Meddler(),))
    assert rig.admit(symbol="A", qty=3.0, price=100.0) is None
    assert rig.monitor.reserved("o1") == ("A", "buy", 100.0)
    assert rig.monitor.reserved_quantity("o1") == 3.0
    too_large = rig.monitor.max_inventory_usd_per_symbol
    assert rig.admit(symbol="A", qty=too_large, price=100.0) == "symbol_limit"
    told = rig.controls.explain_order("A", "buy", too_large, 100.0)
    assert told is not None
    assert told.kind == "symbol_limit"


def test_the_first_that_refuses_is_told_in_the_stated_order_and_what_if_tells_all() -> None:
    """Everything is wrong with the order; then the faults are mended one by one, and the next one speaks."""
    moody = Moody()
    rig = Rig(rules=(moody,), **ALL)
    moody.answer = None
    for symbol in ("A", "B"):
        rig.controls.on_price(symbol, 100.0)
    assert rig.controls.admit("first", "A", "buy", 1.0, 200.0) is not None  # outside the collar: not counted
    assert rig.controls.admit("first", "A", "buy", 20.0, 100.0) is not None
    assert rig.controls.admit("first", "A", "buy", 1.0, 100.0) is None
    rig.controls.on_fill("B", "buy", 1.0, 100.0, strategy="tired")
    moody.answer = OrderRefused("rule", None, None, "A", "not today")
    rig.ns += 501 * MS
    order: dict[str, Any] = {"symbol": "Z", "qty": 20.0, "price": 300.0, "strategy": "tired"}
    told = []
    for kind, mend in FAULTS:
        refusal = rig.controls.admit("next", side="buy", **order)
        assert refusal is not None, kind
        told.append(refusal.kind)
        if mend == "symbol":
            order["symbol"] = "A"
            rig.ns += 600 * MS
        elif mend == "qty":
            order["qty"] = 1.0
        elif mend == "strategy":
            order["strategy"] = "fresh"
        elif mend == "day":
            rig.day = DAY + dt.timedelta(days=1)
        elif mend == "age":
            rig.controls.on_price("A", 100.0)
        elif mend == "price":
            order["price"] = 100.0
            _use_up(rig)
        elif mend == "rate":
            rig.ns += 1_000 * MS
            rig.controls.on_price("A", 100.0)
        elif mend == "same":
            order["qty"] = 2.0
        elif mend == "rule":
            moody.answer = None
    assert told == [kind for kind, _ in FAULTS]
    rig.controls.release("first")
    assert rig.controls.admit("next", side="buy", **order) is None


def _use_up(rig: Rig) -> None:
    """Take the throttle's only token."""
    throttle = rig.controls._chain._counting[1]
    order = PretradeOrder("A", 1, 9.0, 100.0, "", False)
    order.now_ns = rig.ns
    throttle.count(order)


def test_simulating_tells_every_refusal_of_every_control() -> None:
    moody = Moody()
    rig = Rig(rules=(moody,), monitor={}, **ALL)
    rig.controls.on_price("A", 100.0)
    assert rig.controls.admit("first", "A", "buy", 1.0, 100.0) is None
    rig.controls.on_fill("A", "buy", 0.5, 100.0, strategy="tired")
    rig.ns += 999 * MS
    moody.answer = OrderRefused("rule", None, None, "A", "not today")
    told = rig.controls.simulate_order("A", "buy", 1.0, 100.0, strategy="tired")
    kinds = [refusal.kind for refusal in told.refusals]
    assert kinds == [
        "repeated_execution",
        "daily_orders",
        "order_throttle",
        "duplicate_order",
        "rule",
        "working_orders",
    ]
    assert told.symbol_usd == 250.0
    assert [refusal.kind for refusal in rig.controls.simulate_order("A", "buy", math.nan).refusals] == ["bad_input"]
    assert rig.controls.refused == {}


def test_refusals_are_counted_by_kind() -> None:
    rig = Rig(permitted_symbols=("A",))
    rig.admit("B")
    rig.admit("C")
    rig.admit("A", qty=1e14)
    assert rig.controls.refused == {"symbol_not_permitted": 2, "symbol_limit": 1}
    assert (rig.refused_total("symbol_not_permitted"), rig.refused_total("symbol_limit")) == (2, 1)
    assert rig.refused_total("price_collar") == 0  # from the start, so that an alert on its rate sees the first one


def test_amendments_meet_the_controls_and_the_limits() -> None:
    rig = Rig(order_size={"max_quantity": 10.0}, input_health=HEALTHY, price_collar={"max_deviation_bps": 100.0})
    rig.controls.on_price("A", 100.0)
    assert rig.admit() is None
    amend = rig.controls.admit_amend
    refusals = [amend("o1", 11.0), amend("o1", 2.0, 150.0), amend("o9", 1.0), amend("o1", math.nan)]
    assert [refusal and refusal.kind for refusal in refusals] == [
        "order_quantity",
        "price_collar",
        "unknown_order",
        "bad_input",
    ]
    assert amend("o1", 2.0, 100.5) is None
    assert rig.monitor.get_potential_notional() == 201.0
    refusal = amend("o1", 3.0)
    assert refusal is not None
    assert "on its way already" in refusal.sentence


def test_a_restart_enables_nothing_and_starts_no_day() -> None:
    rig = Rig(repeated_executions={"max_executions": 1}, daily={"max_orders": 2, "max_loss_usd": 10.0})
    assert rig.admit(strategy="a") is None
    rig.controls.on_fill("A", "buy", 1.0, 100.0, strategy="b")
    rig.controls.on_result(-4.0)
    saved = json.loads(json.dumps(rig.controls.persist_to_dict(), allow_nan=False))
    rig.make().restore_from_dict(saved)
    assert rig.controls.persist_to_dict() == saved
    assert rig.admit(strategy="b") == "repeated_execution"
    assert [rig.admit(strategy="a"), rig.admit(strategy="a")] == [None, "daily_orders"]
    older = {**saved, "daily": {**saved["daily"], "day": "2020-01-01", "orders": 0}}
    rig.controls.restore_from_dict(older)  # of a day that is over
    assert rig.admit(strategy="a") == "daily_orders"
    Rig().controls.restore_from_dict(saved)  # controls that are off take nothing over


@pytest.mark.parametrize(
    "damage",
    [
        {"v": 2},
        {"executions": {"a": -1}},
        {"executions": {"a": True}},
        {"executions": {"a": "1"}},
        {"daily": {}},
        {"daily": {"day": "x", "orders": 0, "cancels": 0, "losses": 0, "result_usd": "0", "result_known": True}},
        {
            "daily": {
                "day": "2026-01-31",
                "orders": -1,
                "cancels": 0,
                "losses": 0,
                "result_usd": "0",
                "result_known": True,
            }
        },
        {
            "daily": {
                "day": "2026-01-31",
                "orders": 0,
                "cancels": 0,
                "losses": 0,
                "result_usd": "NaN",
                "result_known": True,
            }
        },
    ],
)
def test_unknown_is_frozen__saved_counts_that_cannot_be_read_freeze(damage: dict[str, Any]) -> None:
    rig = Rig(repeated_executions={"max_executions": 1}, daily={"max_orders": 2})
    with pytest.raises(ValueError, match="saved state"):
        rig.controls.restore_from_dict({**rig.controls.persist_to_dict(), **damage})
    assert rig.monitor.is_frozen()


def test_threads_never_pass_a_control_together_and_lose_no_count() -> None:
    rig = Rig(
        daily={"max_orders": 100},
        throttle={"orders_per_s": 150},
        working_orders={"max_total": 90},
        duplicates={"max_same_orders": 95},
    )
    start = threading.Barrier(8)
    passed: list[bool] = []

    def hammer(number: int) -> None:
        start.wait()
        for turn in range(50):
            passed.append(rig.controls.admit(f"{number}-{turn}", "A", "buy", 1.0, 1.0) is None)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(passed) == rig.monitor.working_orders() == 90
    assert sum(rig.controls.refused.values()) == 400 - 90
    assert set(rig.controls.refused) <= {"working_orders", "duplicate_order", "daily_orders"}


def test_no_order_is_looked_at_between_the_look_at_another_and_its_count() -> None:
    rig = Rig(daily={"max_orders": 1})
    both_inside = threading.Barrier(2)

    def clock() -> int:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_inside.wait(0.2)
        return rig.ns

    rig.controls._chain._clock = clock  # read before the look and between the look and the count
    refusals: list[OrderRefused | None] = []
    threads = [
        threading.Thread(target=lambda name=name: refusals.append(rig.controls.admit(name, "A", "buy", 1.0, 1.0)))
        for name in ("1", "2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(str(refusal and refusal.kind) for refusal in refusals) == ["None", "daily_orders"]


# ---- the time that the limits take


class SlowMarks:
    """A source of mark prices that takes its time on the clock of the rig."""

    def __init__(self) -> None:
        self.rig: Rig | None = None
        self.takes_ns = 0

    def __call__(self, symbol: str) -> float:
        if self.rig is not None:
            self.rig.ns += self.takes_ns
        return 100.0


def slow_rig(**sections: Any) -> tuple[Rig, SlowMarks]:
    marks = SlowMarks()
    rig = Rig(monitor={"get_mark_price": marks}, **sections)
    rig.monitor.update_position("B", 1.0, 100.0)  # valued at its mark, which is asked for with every order
    marks.rig = rig
    return rig, marks


def test_limits_that_take_too_long_refuse_the_order_and_reserve_nothing() -> None:
    rig, marks = slow_rig(daily={"max_orders": 2}, control_budget_ms=100.0)
    marks.takes_ns = 300 * MS
    refusal = rig.controls.admit("1", "A", "buy", 1.0, None)
    assert refusal is not None
    assert (refusal.kind, refusal.limit, refusal.unit) == ("control_overrun", 100.0, "ms")
    assert refusal.sentence.startswith("A: the limits took ")
    assert rig.monitor.working_orders() == 0
    marks.takes_ns = 0
    assert rig.controls.admit("1", "A", "buy", 1.0) is None, "its id is free and nothing was counted"
    assert rig.controls.admit("2", "A", "buy", 1.0) is None
    assert not rig.monitor.is_frozen()


def test_an_amendment_that_the_limits_are_slow_to_pass_leaves_the_order_as_it_is() -> None:
    rig, marks = slow_rig(control_overrun="freeze")
    assert rig.controls.admit("1", "A", "buy", 1.0, 100.0) is None
    marks.takes_ns = 300 * MS
    refusal = rig.controls.admit_amend("1", 2.0)
    assert refusal is not None
    assert refusal.kind == "control_overrun"
    assert rig.monitor.get_potential_notional("A") == 100.0
    assert rig.monitor.is_frozen(), "as the settings say of an overrun"


def test_an_id_that_works_already_keeps_its_reservation_when_it_comes_again() -> None:
    rig, marks = slow_rig()
    assert rig.controls.admit("1", "A", "buy", 1.0, 100.0) is None
    marks.takes_ns = 300 * MS
    refusal = rig.controls.admit("1", "A", "buy", 1.0, 100.0)
    assert refusal is not None
    assert refusal.kind == "duplicate_id"
    assert rig.monitor.working_orders() == 1


def test_a_clock_that_fails_after_the_limits_have_passed_an_order_refuses_it() -> None:
    rig = Rig()
    reads: list[int] = []

    def clock() -> int:
        reads.append(1)
        if len(reads) == 3:
            raise OSError("no clock")
        return rig.ns

    rig.controls._chain._clock = clock
    refusal = rig.controls.admit("1", "A", "buy", 1.0, 100.0)
    assert refusal is not None
    assert refusal.kind == "control_error"
    assert rig.monitor.working_orders() == 0

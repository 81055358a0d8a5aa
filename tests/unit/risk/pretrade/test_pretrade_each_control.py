"""The pre-trade controls of the field, each by its rule: RTS 6 Art. 15, SEC 15c3-5, the guides of the FIA."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from killswitch.risk.pretrade import PreTradeControls
from killswitch.risk.pretrade.message_throttle import most_in_a_second
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from tests.support.pretrade_rig import DAY, HEALTHY, MS, Rig, S

# ---- permitted symbols


def test_only_permitted_symbols_are_traded() -> None:
    rig = Rig(permitted_symbols=("A",))
    assert rig.admit("A") is None
    assert rig.admit("B") == "symbol_not_permitted"
    assert Rig(permitted_symbols=()).admit("A") == "symbol_not_permitted"


# ---- size and value


def test_quantity_and_value_of_one_order() -> None:
    rig = Rig(order_size={"max_quantity": 10.0, "max_value_usd": 300.0, "symbols": {"B": {"max_quantity": 2.0}}})
    assert rig.admit(qty=10.0, price=30.0) is None
    assert rig.admit(qty=10.1, price=1.0) == "order_quantity"
    assert (rig.last.limit, rig.last.value, rig.last.unit) == (10.0, 10.1, "units")
    assert rig.admit(qty=3.0, price=100.01) == "order_value"
    assert (rig.last.limit, rig.last.value, rig.last.unit) == (300.0, 300.03, "usd")
    assert rig.admit("B", qty=2.1, price=1.0) == "order_quantity"
    assert rig.admit("B", qty=2.0, price=150.1) == "order_value"


def test_the_value_limit_is_inclusive_in_decimals() -> None:
    rig = Rig(order_size={"max_value_usd": 0.3})
    assert 0.1 * 3.0 > 0.3
    assert rig.admit(qty=0.1, price=3.0) is None
    assert rig.admit(qty=0.1, price=3.000000001) == "order_value"


def test_a_market_order_is_worth_the_newest_price_and_unknown_without_one() -> None:
    rig = Rig(order_size={"max_value_usd": 300.0}, input_health=HEALTHY)
    assert rig.admit(price=None) == "price_missing"
    rig.controls.on_price("A", 299.0)
    assert rig.admit(price=None) is None
    rig.controls.on_price("A", 301.0)
    assert rig.admit(price=None) == "order_value"
    assert Rig(order_size={"max_value_usd": 300.0}).admit(price=None) == "price_missing"


@pytest.mark.parametrize("health", [None, HEALTHY])
def test_a_sell_is_worth_the_newest_price_however_low_its_own_is(health: Any) -> None:
    rig = Rig(order_size={"max_value_usd": 50_000.0}, input_health=health)
    rig.controls.on_price("A", 60_000.0)
    assert rig.admit(side="sell", qty=10.0, price=1.0) == "order_value"
    assert rig.last.value == 600_000.0
    assert rig.admit(side="sell", qty=0.5, price=100_000.1) == "order_value"
    assert rig.last.value == 50_000.05
    assert rig.admit(side="sell", qty=0.83, price=1.0) is None
    assert rig.admit(side="buy", qty=10.0, price=1.0) is None  # the most that it can cost
    assert rig.admit(side="sell", qty=10.0, price=None) == "order_value"
    if health is None:
        assert rig.admit("B", side="sell", qty=10.0, price=1.0) is None  # nothing is known of it
        assert rig.admit("B", side="sell", qty=10.0, price=None) == "price_missing"


# ---- price collar


def test_the_collar_order_by_order() -> None:
    rig = Rig(price_collar={"max_deviation_bps": 100.0, "symbols_max_deviation_bps": {"B": 10.0}}, input_health=HEALTHY)
    for symbol in "AB":
        rig.controls.on_quote(symbol, 99.0, 101.0)
    for price in (99.0, 101.0, 100.0):
        assert rig.admit("A", price=price) is None
    for price in (98.99, 101.01):
        assert rig.admit("A", price=price) == "price_collar"
    assert (rig.last.limit, rig.last.unit) == (100.0, "bps")
    assert rig.last.value == pytest.approx(101.0)
    assert rig.admit("B", price=100.1) is None
    assert rig.admit("B", price=100.2) == "price_collar"
    assert rig.admit("A", price=None) is None  # a market order has no price to hold against it


def test_the_collar_over_time_remembers_every_reference_of_the_window() -> None:
    rig = Rig(
        price_collar={"max_deviation_bps": 100.0, "over_time_bps": 300.0, "window_ms": 1_000}, input_health=HEALTHY
    )
    for price in (100.0, 101.0, 102.0, 103.0):
        rig.controls.on_price("A", price)
        assert rig.admit(price=price) is None
    rig.controls.on_price("A", 104.0)
    assert rig.admit(price=104.0) == "price_collar_over_time"  # each step was small, all together were not
    assert rig.last.limit == 300.0
    assert rig.last.value == pytest.approx(400.0)
    rig.ns += 1_000 * MS
    rig.controls.on_price("A", 104.0)
    assert rig.admit(price=104.0) == "price_collar_over_time"  # the window before still counts
    rig.ns += 1_000 * MS
    rig.controls.on_price("A", 104.0)
    assert rig.admit(price=104.0) is None
    rig.controls.on_price("A", 100.5)
    assert rig.admit(price=100.5) == "price_collar_over_time"  # and downwards


@pytest.mark.parametrize(
    "first",
    [
        lambda controls: controls.on_price("A", math.nan),
        lambda controls: controls.on_price("A", -1.0),
        lambda controls: controls.on_quote("A", 5_000.0, 4_000.0),
        lambda controls: controls.on_quote("A", math.inf, 1.0),
    ],
)
def test_the_range_starts_at_the_first_good_price(first: Any) -> None:
    """What was no price, or the middle of a crossed quote, is nothing that an order could be held against."""
    collar = {"max_deviation_bps": 200.0, "over_time_bps": 500.0}
    rig = Rig(price_collar=collar, input_health={**HEALTHY, "bad": "refuse"})
    first(rig.controls)
    told = rig.controls.simulate_order("A", "buy", 1.0, 60.0).refusals
    assert [refusal.kind for refusal in told] in (
        ["price_bad", "price_missing"],
        ["quote_crossed", "price_missing"],
    )
    first(rig.controls)
    rig.controls.on_price("A", 60.0)
    assert rig.admit(price=60.0) is None
    assert rig.admit(price=61.5) == "price_collar"
    first(rig.controls)  # and later it does not widen the range either
    rig.controls.on_price("A", 63.5)
    assert rig.admit(price=63.5) == "price_collar_over_time"
    assert "a reference of the window, 60," in rig.last.sentence


@given(prices=st.lists(st.tuples(st.integers(90, 110), st.integers(0, 700)), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_the_range_of_the_window_is_that_of_every_price_of_the_last_window_at_least(
    prices: list[tuple[int, int]],
) -> None:
    rig = Rig(
        price_collar={"max_deviation_bps": 9_999.0, "over_time_bps": 500.0, "window_ms": 1_000}, input_health=HEALTHY
    )
    seen: list[tuple[int, float]] = []
    for price, wait_ms in prices:
        rig.ns += wait_ms * MS
        rig.controls.on_price("A", float(price))
        seen.append((rig.ns, float(price)))
    watched = rig.controls._chain._watched["A"]
    low, high = min(watched.low, watched.past_low), max(watched.high, watched.past_high)
    young = [price for at, price in seen if rig.ns - at < 1_000 * MS]
    not_old = [price for at, price in seen if rig.ns - at <= 2_700 * MS]
    assert low <= min(young) <= max(young) <= high
    assert low >= min(not_old)
    assert high <= max(not_old)


# ---- message throttle


def test_a_hundred_orders_and_a_hundred_amendments_a_second() -> None:
    rig = Rig(throttle={})
    assert [rig.admit(qty=0.001 * (number + 1)) for number in range(100)] == [None] * 100
    assert rig.admit() == "order_throttle"
    assert (rig.last.limit, rig.last.unit) == (100.0, "messages")
    assert rig.controls.admit_amend("o1", 0.5) is None  # which has a bucket of its own
    rig.monitor.settle_amend("o1", accepted=True)
    rig.ns += 10 * MS - 1
    assert rig.admit() == "order_throttle"
    rig.ns += 1
    assert rig.admit() is None  # one token every ten milliseconds
    assert rig.admit() == "order_throttle"
    rig.ns += 3_600 * S
    assert [rig.admit(qty=0.01) for _ in range(101)] == [None] * 100 + ["order_throttle"]  # never more than the burst


def test_amendments_have_buckets_of_their_own() -> None:
    rig = Rig(throttle={"amends_per_s": 2, "symbol_amends_per_s": 1})
    for symbol in "ABC":
        assert rig.admit(symbol) is None
    amend = rig.controls.admit_amend
    assert amend("o1", 2.0) is None
    rig.monitor.settle_amend("o1", accepted=True)
    assert (amend("o1", 3.0) or rig.last).kind == "amend_throttle_symbol"
    assert amend("o2", 2.0) is None
    refusal = amend("o3", 2.0)
    assert refusal is not None
    assert refusal.kind == "amend_throttle"
    assert rig.admit("A") is None


def test_symbols_have_buckets_of_their_own_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(throttle={"symbol_orders_per_s": 2, "orders_per_s": None})
    assert [rig.admit("A"), rig.admit("A"), rig.admit("A"), rig.admit("B")] == [
        None,
        None,
        "order_throttle_symbol",
        None,
    ]
    monkeypatch.setattr("killswitch.risk.pretrade.message_throttle.MAX_THROTTLED_SYMBOLS", 2)
    assert rig.admit("C") == "table_full"


@given(
    waits=st.lists(st.integers(0, 400), min_size=1, max_size=80),
    per_s=st.integers(1, 12),
    burst=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
)
@settings(max_examples=200, deadline=None)
def test_no_second_ever_sees_more_than_the_limit_and_the_burst(waits: list[int], per_s: int, burst: float) -> None:
    rig = Rig(throttle={"orders_per_s": per_s, "burst_s": burst})
    sent: list[int] = []
    for number, wait_ms in enumerate(waits):
        rig.ns += wait_ms * MS
        if rig.controls.admit(f"{number}", "A", "buy", 1.0, 1.0) is None:
            sent.append(rig.ns)
    at_once = max(1, math.floor(per_s * burst))
    for at in sent:
        assert sum(at <= other < at + S for other in sent) <= at_once + per_s
    # A token bucket written the usual way says the same.
    tokens, last, expected, now = float(at_once), 10**15, [], 10**15
    interval = -(-S // per_s)
    for wait_ms in waits:
        now += wait_ms * MS
        tokens = min(float(at_once), tokens + (now - last) / interval)
        last = now
        if tokens >= 1.0 - 1e-6:
            tokens -= 1.0
            expected.append(now)
    assert sent == expected


@pytest.mark.parametrize(
    ("throttle", "orders", "amendments"),
    [({}, 200, 200), ({"orders_per_s": 50, "burst_s": 0.1}, 55, 110), ({"orders_per_s": 3, "burst_s": 0.1}, 4, 110),
     ({"orders_per_s": None, "amends_per_s": 1, "burst_s": 3.0}, None, 4)],
)  # fmt: skip
def test_the_worst_second_is_the_rate_and_the_burst(
    throttle: dict[str, Any], orders: int | None, amendments: int | None
) -> None:
    section = PreTradeSettings.model_validate({"throttle": throttle}).throttle
    assert section is not None
    assert most_in_a_second(section) == {"orders": orders, "amendments": amendments}
    if orders is None:
        return
    rig, sent = Rig(throttle=throttle), 0
    for _ in range(1_001):  # one second, both ends included
        while rig.controls.admit(f"s{sent}", "A", "buy", 1.0, 1.0) is None:
            sent += 1
        rig.ns += MS
    assert sent in (orders, orders - 1)


def test_an_order_that_the_monitor_refuses_gives_its_token_back() -> None:
    rig = Rig(
        throttle={"orders_per_s": 1, "symbol_orders_per_s": 1},
        duplicates={"max_same_orders": 1},
        daily={"max_orders": 1},
    )
    assert rig.admit(qty=1e14, price=100.0) == "symbol_limit"
    assert rig.admit() is None
    assert rig.admit() == "daily_orders"


# ---- duplicates


def test_one_same_order_too_many_within_the_window_is_a_duplicate() -> None:
    rig = Rig(duplicates={"max_same_orders": 2, "window_ms": 1_000})
    assert [rig.admit(), rig.admit(), rig.admit()] == [None, None, "duplicate_order"]
    assert (rig.last.limit, rig.last.value, rig.last.unit) == (2.0, 3.0, "orders")
    for other in ({"symbol": "B"}, {"side": "sell"}, {"qty": 2.0}, {"price": 99.0}, {"price": None}):
        assert rig.admit(**other) is None
    assert rig.controls.admit_amend("o1", 1.0) is None  # an amendment is no duplicate
    rig.ns += 1_000 * MS - 1
    assert rig.admit() == "duplicate_order"
    rig.ns += 1
    assert [rig.admit(), rig.admit(), rig.admit()] == [None, None, "duplicate_order"]


def test_what_is_remembered_of_duplicates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("killswitch.risk.pretrade.duplicate_orders.MAX_REMEMBERED", 300)
    rig = Rig(duplicates={"window_ms": 1_000})
    for number in range(300):
        assert rig.controls.admit(f"d{number}", "A", "buy", 1.0 + number, 1.0) is None
    assert rig.admit() == "table_full"
    rig.ns += 1_000 * MS
    for number in range(600):
        rig.ns += 100 * MS
        assert rig.controls.admit(f"e{number}", "A", "buy", 1000.0 + number, 1.0) is None
    # The newest second, and those that are kept because so few cost nothing.
    sizes = [len(control._sent) for control in rig.controls._chain._counting]  # type: ignore[attr-defined]
    assert sizes[0] <= 257


# ---- repeated automated executions


def test_a_strategy_is_disabled_after_so_many_fills_until_a_named_person_enables_it(logs: Any) -> None:
    rig = Rig(repeated_executions={"max_executions": 2, "designated_staff": ("ann",)})
    for number in range(2):
        assert rig.admit(strategy="mm") is None
        rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id=f"o{number + 1}", strategy="mm")
    assert rig.controls.disabled_strategies() == ["mm"]
    assert rig.admit(strategy="mm") == "repeated_execution"
    assert rig.admit(strategy="mm", side="sell") == "repeated_execution"
    assert (rig.last.limit, rig.last.value, rig.last.unit) == (2.0, 2.0, "executions")
    assert rig.admit(strategy="other") is None
    rig.ns += 10**18  # time alone enables nothing, nor does a new day
    rig.day += dt.timedelta(days=1)
    assert rig.admit(strategy="mm") == "repeated_execution"
    for person, reason in (("", "x"), (" ", "x"), ("ann", " "), ("bob", "looked at it")):
        with pytest.raises(ValueError, match=r"named person|designated"):
            rig.controls.enable("mm", person, reason)
    assert rig.admit(strategy="mm") == "repeated_execution"
    assert rig.controls.enable("mm", "ann", "looked at it") is True
    assert rig.controls.enable("mm", "ann", "looked at it") is False
    assert rig.admit(strategy="mm") is None
    assert [line["log_level"] for line in logs if line["event"] == "strategy disabled"] == ["critical"]
    assert rig.monitor.get_position("A") == 2.0


def test_fills_that_name_no_strategy_are_one_strategy_and_strategies_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("killswitch.risk.pretrade.repeated_executions.MAX_STRATEGIES", 1)
    rig = Rig(repeated_executions={"max_executions": 1})
    rig.controls.on_fill("A", "buy", 1.0, 1.0)
    assert rig.admit() == "repeated_execution"
    rig.controls.on_fill("A", "buy", 1.0, 1.0, strategy="b")
    assert rig.admit(strategy="b") == "table_full"
    assert not Rig().controls.enable("x", "ann", "nothing to enable")
    assert Rig().controls.disabled_strategies() == []


# ---- working orders


def test_the_number_of_working_orders_is_limited() -> None:
    rig = Rig(working_orders={"max_total": 3, "max_per_symbol": 2})
    assert [rig.admit("A"), rig.admit("A")] == [None, None]
    refusal = rig.controls.admit("x", "A", "buy", 1.0, 1.0)
    assert refusal is not None
    assert (refusal.kind, refusal.limit, refusal.value) == ("working_orders_symbol", 2.0, 3.0)
    assert rig.admit("B") is None
    refusal = rig.controls.admit("x", "C", "buy", 1.0, 1.0)
    assert refusal is not None
    assert (refusal.kind, refusal.limit, refusal.value) == ("working_orders", 3.0, 4.0)
    rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id="o1")
    assert rig.controls.admit("x", "C", "buy", 1.0, 1.0) is None
    assert rig.controls.release("o2")
    assert rig.controls.admit("y", "A", "buy", 1.0, 1.0) is None
    assert not rig.controls.release("o2")


@pytest.mark.parametrize("full", ["total", "symbol", "capacity"])
@pytest.mark.parametrize("known", [False, True])
def test_a_what_if_says_no_where_one_more_order_may_not_work(full: str, known: bool) -> None:
    """The rig asks both what-ifs before every order: they must say what the order is then told."""
    kind = "working_orders_symbol" if full == "symbol" else "working_orders"
    monitor: dict[str, Any] = {"get_mark_price": lambda _symbol: 100.0} if known else {}
    if full == "capacity":
        rig = Rig(monitor={**monitor, "max_working_orders": 1})
    else:
        rig = Rig(monitor=monitor, working_orders={f"max_{'per_symbol' if full == 'symbol' else 'total'}": 1})
    assert rig.admit() is None
    assert not known or rig.admit(price=None) == kind
    for side in ("buy", "sell"):
        assert rig.admit(side=side) == kind
        assert [one.kind for one in rig.controls.simulate_order("A", side, 1.0, 100.0).refusals] == [kind]
        assert not rig.monitor.check_before_order("A", side, 1.0, 100.0)
    told = rig.controls.simulate_order("A", "buy", 1e12, 100.0)
    assert [one.kind for one in told.refusals] == ["symbol_limit", "total_limit", kind]
    assert rig.controls.explain_order("B", "buy", 1.0, 100.0) is None or full != "symbol"
    assert rig.controls.release("o1")
    assert rig.admit() is None


# ---- counts of the day


def test_orders_and_cancels_of_a_day() -> None:
    rig = Rig(daily={"max_orders": 2, "max_cancels": 2})
    assert [rig.admit(), rig.admit(), rig.admit()] == [None, None, "daily_orders"]
    assert (rig.last.limit, rig.last.value, rig.last.unit) == (2.0, 3.0, "orders")
    assert rig.controls.admit_amend("o1", 0.5) is None
    rig.day = DAY - dt.timedelta(days=1)
    assert rig.admit() == "daily_orders"  # a calendar that steps back starts no day
    rig.day = DAY + dt.timedelta(days=1)
    assert rig.admit() is None
    for _ in range(5):
        rig.controls.on_cancel()  # a cancel always passes: there is nothing that could refuse it
    assert rig.admit() == "daily_cancels"
    assert (rig.last.limit, rig.last.value) == (2.0, 5.0)


def test_an_amendment_that_grows_an_order_is_an_order_of_the_day() -> None:
    rig = Rig(daily={"max_orders": 3})
    assert rig.admit(qty=2.0) is None
    for qty, price in ((1.0, None), (1.0, 120.0), (1.0, 80.0)):
        assert rig.controls.admit_amend("o1", qty, price) is None
        rig.monitor.settle_amend("o1", accepted=True)
    for qty in (1.5, 2.0):
        assert rig.controls.admit_amend("o1", qty) is None
        rig.monitor.settle_amend("o1", accepted=True)
    refusal = rig.controls.admit_amend("o1", 2.1)
    assert refusal is not None
    assert (refusal.kind, refusal.value) == ("daily_orders", 4.0)
    assert rig.admit() == "daily_orders"
    assert rig.controls.admit_amend("o1", 1.0) is None, "one that does not grow is no order"


def test_a_growing_amendment_that_the_limits_refuse_is_taken_back() -> None:
    rig = Rig(daily={"max_orders": 2})
    assert rig.admit() is None
    refusal = rig.controls.admit_amend("o1", 1e14, 1e14)
    assert refusal is not None
    assert refusal.kind == "symbol_limit"
    assert [rig.admit(), rig.admit()] == [None, "daily_orders"]


@pytest.mark.parametrize("used_up", [{"max_orders": 1}, {"max_cancels": 1}])
def test_one_can_get_out_when_the_counts_of_the_day_are_used_up(used_up: dict[str, int]) -> None:
    rig = Rig(daily=used_up)
    rig.monitor.update_position("A", 5.0, 100.0)
    assert rig.admit("B") is None
    rig.controls.on_cancel()
    (kind,) = {"daily_orders", "daily_cancels"} & {rig.admit("A")}
    assert rig.admit("A", side="sell", qty=3.0) is None
    assert rig.admit("A", side="sell", qty=3.0) == kind, "both together would cross zero"
    assert rig.controls.admit_amend(f"o{rig.orders - 1}", 5.0) is None, "it does not count against itself"
    rig.monitor.settle_amend(f"o{rig.orders - 1}", accepted=True)
    refusal = rig.controls.admit_amend(f"o{rig.orders - 1}", 6.0)
    assert refusal is not None
    assert refusal.kind == kind


def test_cancels_around_midnight_count_in_the_new_day() -> None:
    rig = Rig(daily={"max_cancels": 2})
    assert rig.admit() is None
    for _ in range(2):
        rig.controls.on_cancel()
    rig.day = DAY + dt.timedelta(days=1)
    assert rig.admit() is None
    assert rig.admit() == "daily_cancels"


def test_after_losses_only_what_reduces_passes() -> None:
    rig = Rig(daily={"max_losses": 3, "max_loss_usd": 100.0})
    rig.monitor.update_position("A", 5.0, 100.0)
    for pnl in (-30.0, -20.0, 10.0, -49.99):
        assert rig.admit() is None
        rig.controls.on_result(pnl)
    assert rig.admit() == "daily_losses"
    assert rig.admit(side="sell", qty=5.0) is None
    assert rig.admit(side="sell", qty=0.1) == "daily_losses"  # the one before promised the whole position
    rig.day = DAY + dt.timedelta(days=1)
    assert rig.admit() is None
    rig.controls.on_result(-99.99)
    assert rig.admit() is None
    rig.controls.on_result(-0.01)
    assert rig.admit() == "daily_loss"
    assert (rig.last.limit, rig.last.value) == (100.0, 100.0)
    rig.controls.on_result(0.02)
    assert rig.admit() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "1"])
def test_unknown_is_frozen__a_result_that_is_no_number_is_a_loss_too_large_until_the_day_ends(bad: Any) -> None:
    rig = Rig(daily={"max_loss_usd": 100.0})
    rig.controls.on_result(bad)
    assert rig.admit() == "daily_loss"
    assert rig.last.value is None
    rig.controls.on_result(1e6)
    assert rig.admit() == "daily_loss"
    rig.day = DAY + dt.timedelta(days=1)
    assert rig.admit() is None


def test_losses_are_added_up_exactly() -> None:
    rig = Rig(daily={"max_loss_usd": 0.3})
    for _ in range(2):
        rig.controls.on_result(-0.1)
    assert rig.admit() is None
    rig.controls.on_result(-0.1)
    assert rig.admit() == "daily_loss"


def test_counts_of_the_day_need_a_calendar() -> None:
    settings = PreTradeSettings.model_validate({"daily": {"max_orders": 1}})
    with pytest.raises(ValueError, match="calendar"):
        PreTradeControls(settings, monitor=Rig().monitor, registry=CollectorRegistry())


@pytest.mark.parametrize("bad", [None, "2026-01-31", 7])
def test_unknown_is_frozen__a_calendar_that_fails_refuses_and_freezes(bad: Any) -> None:
    rig = Rig(daily={"max_orders": 1})
    rig.day = bad
    refusal = rig.controls.admit("1", "A", "buy", 1.0, 1.0)
    assert refusal is not None
    assert refusal.kind == "control_error"
    assert "daily_counts raised" in refusal.sentence
    assert rig.monitor.is_frozen()
    rig.controls.on_cancel()

"""The message throttle over changes of its settings: a lower rate holds at once, and no change gives a message away.

The bound that is shown: in any time, changes included, at most ``C + floor(W / T)`` messages pass, where ``W`` is the
time from the first to the last of them, ``C`` the largest bucket (``max(1, floor(per_s * burst_s))``) and ``T`` the
shortest interval (``ceil(1e9 / per_s)`` ns) of the settings that were in force at any moment of it.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st

from killswitch.risk.pretrade.message_throttle import MessageThrottle
from killswitch.risk.pretrade.order import PretradeOrder
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings, ThrottleSettings
from tests.support.pretrade_rig import MS, Rig, S


def put(rig: Rig, **throttle: Any) -> None:
    rig.controls.set_settings(PreTradeSettings.model_validate({"throttle": throttle or None}))


def burst(rig: Rig, most: int = 1_000, **more: Any) -> int:
    """How many orders pass at once."""
    for passed in range(most):
        rig.orders += 1
        if rig.controls.admit(f"o{rig.orders}", "A", "buy", 1.0, 100.0, **more) is not None:
            return passed
    return most


def test_a_lower_rate_holds_at_once_for_what_was_sent_already() -> None:
    rig = Rig(throttle={"orders_per_s": 100, "symbol_orders_per_s": 100, "amends_per_s": None})
    for _ in range(100):  # evenly, so that the bucket of 100/s is nearly full all the time
        assert rig.admit() is None
        rig.ns += 10 * MS
    put(rig, orders_per_s=10, symbol_orders_per_s=100)
    assert rig.admit() == "order_throttle"
    rig.ns += 90 * MS  # 100 ms since the last one
    assert [rig.admit(), rig.admit()] == [None, "order_throttle"]
    put(rig, orders_per_s=100, symbol_orders_per_s=10)
    assert rig.admit() == "order_throttle"  # nothing was left, and nothing is given
    rig.ns += 20 * MS
    assert rig.admit() == "order_throttle_symbol"
    assert rig.admit("B") is None


def test_a_smaller_burst_counts_what_is_out_of_the_larger_one() -> None:
    rig = Rig(throttle={"orders_per_s": 10, "burst_s": 10.0})
    assert burst(rig, 50) == 50
    put(rig, orders_per_s=10, burst_s=5.0)
    assert burst(rig) == 0
    put(rig, orders_per_s=10, burst_s=6.0)
    assert burst(rig) == 0  # what was not left is not given back
    rig.ns += S
    assert burst(rig) == 10


def test_a_higher_rate_begins_with_what_was_left() -> None:
    rig = Rig(throttle={"orders_per_s": 10})
    assert burst(rig, 7) == 7
    put(rig, orders_per_s=1_000)
    assert burst(rig) == 3
    rig.ns += 10 * MS
    assert burst(rig) == 10
    rig.ns += 10 * S
    assert burst(rig) == 1_000


@pytest.mark.parametrize("limit", ["orders_per_s", "symbol_orders_per_s"])
@pytest.mark.parametrize("between", [{}, {"amends_per_s": 5}, {"orders_per_s": 1_000}, {"orders_per_s": 1}])
def test_there_and_back_again_gives_nothing(limit: str, between: dict[str, Any]) -> None:
    mine = {"orders_per_s": None, limit: 10}
    rig = Rig(throttle=mine)
    assert burst(rig) == 10
    for _ in range(100):
        put(rig, **({"orders_per_s": None, **between} if between else {}))
        put(rig, **mine)
    assert burst(rig) == 0


def test_a_limit_that_was_never_used_is_full_by_any_settings() -> None:
    rig = Rig(throttle={"orders_per_s": None})
    assert burst(rig, 20) == 20
    put(rig, orders_per_s=5)
    put(rig, orders_per_s=8)
    assert burst(rig) == 8


@pytest.mark.parametrize("broken", [lambda: 1 / 0, lambda: None, lambda: 0])
def test_a_clock_that_fails_or_goes_back_holds_up_no_change_and_gives_nothing(broken: Any) -> None:
    rig = Rig(throttle={"orders_per_s": 100})
    assert burst(rig) == 100
    good, rig.controls._chain._clock = rig.controls._chain._clock, broken
    put(rig, orders_per_s=10)
    put(rig, orders_per_s=50)
    rig.controls._chain._clock = good
    assert rig.controls.settings.throttle is not None
    assert rig.controls.settings.throttle.orders_per_s == 50
    assert burst(rig) == 0


# ---- the laws

RATES = st.sampled_from([1, 2, 3, 7, 10, 30])
BURSTS = st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(0, 700)),
        st.tuples(st.just("send"), st.integers(1, 40)),
        st.tuples(st.just("back"), st.integers(1, 3)),
        st.tuples(st.just("set"), st.builds(ThrottleSettings, orders_per_s=RATES, burst_s=BURSTS)),
    ),
    min_size=2,
    max_size=30,
)


class Line:
    """A throttle with a clock, what has passed, and which settings were in force when."""

    def __init__(self, settings: ThrottleSettings) -> None:
        self.ns = 10**15
        self.last_ns = -(2**63)
        self.settings = settings
        self.throttle = MessageThrottle(settings)
        self.in_force = [(0, settings)]
        self.sent: list[int] = []

    def order(self) -> PretradeOrder:
        order = PretradeOrder("A", 1, 1.0, 100.0, "", False)
        order.now_ns = self.ns
        return order

    def passes(self) -> bool:
        return self.throttle.refuses(self.order()) is None

    def send(self) -> None:
        self.throttle.count(self.order())
        self.last_ns = self.ns

    def put(self, settings: ThrottleSettings) -> None:
        self.settings = settings
        self.throttle = self.throttle.followed_by(settings, now_ns=self.ns, last_ns=self.last_ns)
        self.in_force.append((self.ns, settings))

    def play(self, what: str, value: Any) -> None:
        if what == "wait":
            self.ns += value * MS
        elif what == "set":
            self.put(value)
        elif what == "back" and self.passes():
            order = self.order()
            self.throttle.count(order)
            self.last_ns = self.ns
            self.throttle.take_back(order)
        elif what == "send":
            for _ in range(value):
                if not self.passes():
                    break
                self.send()
                self.sent.append(self.ns)


def bucket(settings: ThrottleSettings) -> tuple[int, int]:
    """Capacity and interval in nanoseconds, worked out anew."""
    assert settings.orders_per_s is not None
    return max(1, int(settings.orders_per_s * settings.burst_s)), -(-S // settings.orders_per_s)


@given(first=st.builds(ThrottleSettings, orders_per_s=RATES, burst_s=BURSTS), steps=STEPS)
@runs(max_examples=400, deadline=None)
def test_over_any_time_no_more_pass_than_the_loosest_settings_in_force_let_through(
    first: ThrottleSettings, steps: list[tuple[str, Any]]
) -> None:
    line = Line(first)
    for what, value in steps:
        line.play(what, value)
    ends = [at for at, _ in line.in_force[1:]] + [line.ns + 1]
    spans = [(since, until, *bucket(one)) for (since, one), until in zip(line.in_force, ends, strict=True)]
    for i, began in enumerate(line.sent):
        for j in range(len(line.sent) - 1, i, -1):
            ended = line.sent[j]
            mine = [(most, each) for since, until, most, each in spans if since <= ended and until >= began]
            most, each = max(one[0] for one in mine), min(one[1] for one in mine)
            assert j - i + 1 <= most + (ended - began) // each


@given(first=st.builds(ThrottleSettings, orders_per_s=RATES, burst_s=BURSTS), steps=STEPS)
@runs(max_examples=400, deadline=None)
def test_what_the_settings_in_force_would_have_refused_after_all_that_was_sent_is_refused(
    first: ThrottleSettings, steps: list[tuple[str, Any]]
) -> None:
    line = Line(first)
    for what, value in steps:
        line.play(what, value)
        # As if these settings had been in force all along; messages that went although they would have refused them
        # leave the bucket empty, not less than empty.
        most, each = bucket(line.settings)
        full_ns = 0
        for at in line.sent:
            full_ns = min(max(full_ns, at) + each, at + most * each)
        if full_ns - line.ns > (most - 1) * each:
            assert not line.passes()

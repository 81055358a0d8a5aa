"""The limits as those who trade use them: fed by the router, tightened by time, simulated, warned of; and the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from killswitch import cli
from killswitch.clock import now_ns
from killswitch.gate import Gate, GateWriter
from killswitch.risk import BreakerSettings, CircuitBreaker, ReasonClass
from killswitch.risk.limits.limit_schedule import LimitSchedule, LimitScheduleSettings
from killswitch.risk.limits.warning_ladder import STEPS_PCT, LimitWarning, WarningLadder
from killswitch.routing.order_router import OrderRouter
from killswitch.routing.order_types import Order, Placed, Refused, VenueEvent, VenueEventKind
from tests.support.risk_doors import runtime_monitor as monitor

NS = 1_000_000_000
MINUTE_NS = 60 * NS


# ---- positions fed by the tracker, not by hand


class Venue:
    """A venue that takes everything; the test says what becomes of it."""

    def place(self, order: Order) -> None:
        """Taken."""

    def cancel(self, client_order_id: str) -> None:
        """Taken."""


def test_positions_are_fed_by_the_order_router_from_what_the_venue_says(tmp_path: Path) -> None:
    m = monitor()
    path = tmp_path / "gate"
    with GateWriter(path, cluster="c", node="n1") as writer, Gate.open(path) as gate:
        writer.update((), epoch=1, permit_deadline_ns=now_ns() + MINUTE_NS)
        router = OrderRouter(gate=gate, venue_client=Venue(), monitor=m, venue="bybit")
        for name, qty in (("o1", 0.1), ("o2", 0.05)):
            assert isinstance(router.place_order(name, "BTCUSDT", "buy", qty, 50_000.0), Placed)
        assert m.get_positions() == {}
        assert m.get_potential_notional() == 7_500.0  # both count from the moment they are sent

        def tell(kind: VenueEventKind, name: str, **fields: Any) -> None:
            router.on_venue_event(VenueEvent(kind=kind, client_order_id=name, **fields))

        tell(VenueEventKind.ACK, "o1")
        tell(VenueEventKind.FILL, "o1", qty=0.06, price=50_000.0)
        tell(VenueEventKind.FILL, "o1", qty=0.04, price=50_000.0)
        tell(VenueEventKind.ACK, "o2")
        tell(VenueEventKind.CANCELED, "o2")
        assert m.get_positions() == {"BTCUSDT": 0.1}
        assert (m.get_potential_notional(), m.working_orders()) == (5_000.0, 0)
        refused = router.place_order("o3", "BTCUSDT", "buy", 0.11, 50_000.0)
        assert isinstance(refused, Refused)
        assert refused.why is not None
        assert (refused.why.kind, refused.why.limit, refused.why.value) == ("symbol_limit", 10_000.0, 10_500.0)


# ---- a time-based circuit breaker: freeze for N minutes, back-off doubling on repeats


def test_a_freeze_for_so_many_minutes_doubles_on_repeats_up_to_a_cap() -> None:
    now = [0]
    rules = BreakerSettings(recovery_cooldown_seconds=300.0, max_cooldown_seconds=1_000.0)
    breaker = CircuitBreaker(rules, clock=lambda: now[0], registry=CollectorRegistry())
    seen = []
    for _ in range(3):
        began = now[0]
        breaker.engage("the feed is gone", kind="data")
        while breaker.is_engaged():
            now[0] += MINUTE_NS
            for _ in range(rules.recovery_good_readings):
                breaker.good_reading("data")
        seen.append((now[0] - began) // MINUTE_NS)
        for _ in range(rules.half_open_good_readings):
            breaker.good_reading("data")
        assert breaker.allows()
    assert seen == [5, 10, 17]  # 300 s, 600 s, and 1,000 s instead of 1,200 s, in whole minutes


# ---- limits by volatility, time of day and symbol


def test_limits_by_volatility_by_time_of_day_and_by_symbol() -> None:
    minute = [600.0]
    schedule = LimitSchedule(
        LimitScheduleSettings.model_validate(
            {
                "symbol_max_inventory_usd": {"DOGEUSDT": 1_000.0},
                "sessions": [{"from_minute": 0, "limit_pct": 100}, {"from_minute": 960, "limit_pct": 50}],
                "volatility": [{"up_to_ratio": 0.02, "limit_pct": 100}, {"up_to_ratio": 0.05, "limit_pct": 20}],
            }
        ),
        session_clock=lambda: minute[0],
        clock=lambda: int(minute[0] * MINUTE_NS),
    )
    m = monitor(schedule=schedule)

    def most(symbol: str) -> float | None:
        refusal = m.explain_order(symbol, "buy", 1e9, 1.0)
        return refusal.limit if refusal is not None else None

    for symbol in ("BTCUSDT", "DOGEUSDT"):
        schedule.on_volatility(symbol, 0.01)
    assert (most("BTCUSDT"), most("DOGEUSDT")) == (10_000.0, 1_000.0)
    schedule.on_volatility("BTCUSDT", 0.04)
    assert (most("BTCUSDT"), most("NEVER_SEEN")) == (2_000.0, 2_000.0)
    minute[0] = 960.0
    schedule.on_volatility("BTCUSDT", 0.01)
    schedule.on_volatility("DOGEUSDT", 0.01)
    assert (most("BTCUSDT"), most("DOGEUSDT")) == (5_000.0, 500.0)


# ---- simulate_order(): what if


def test_simulate_order_tells_what_would_be_refused_and_why_and_changes_nothing() -> None:
    m = monitor()
    m.on_fill("BTCUSDT", "buy", 0.1, 50_000.0)
    before = m.persist_to_dict()
    told = m.simulate_order("BTCUSDT", "buy", 1.0, 50_000.0)
    assert [(one.kind, one.limit, one.value) for one in told.refusals] == [
        ("symbol_limit", 10_000.0, 55_000.0),
        ("total_limit", 50_000.0, 55_000.0),
    ]
    assert m.simulate_order("BTCUSDT", "buy", 0.1, 50_000.0).passes
    assert m.persist_to_dict() == before


# ---- warnings on the way to a limit


@pytest.mark.parametrize("limit_usd", [*range(1, 400), 0.1, 0.7, 12_345.67, 1e6 + 1, 1e12 + 7])
def test_the_ladder_is_50_75_85_90_95_per_cent_and_a_figure_at_a_step_has_reached_it(limit_usd: float) -> None:
    assert STEPS_PCT == (50, 75, 85, 90, 95)
    for number, step in enumerate(STEPS_PCT, start=1):
        at = limit_usd * step / 100
        told: list[LimitWarning] = list(WarningLadder().see("A", at, limit_usd))
        assert [one.step_pct for one in told] == list(STEPS_PCT[:number])
        below = list(WarningLadder().see("A", at * (1 - 1e-12), limit_usd))
        assert [one.step_pct for one in below] == list(STEPS_PCT[: number - 1])


def test_both_limits_have_the_ladder() -> None:
    heard: list[LimitWarning] = []
    m = monitor(max_inventory_usd_per_symbol=57.0, max_total_notional_usd=57.0, on_warning=heard.append)
    m.on_fill("A", "buy", 51.3, 1.0)  # 90 per cent of 57; as floats 57 * 0.9 is a rounding more
    for name in ("symbol_limit", "total_limit"):
        assert [one.step_pct for one in heard if one.limit_name == name] == [50, 75, 85, 90]


# ---- classes of freeze reason: transient ones recover, lasting ones escalate to a person


def test_transient_reasons_recover_by_themselves_and_lasting_ones_wait_for_a_person() -> None:
    for kind in ReasonClass:
        now = [0]
        breaker = CircuitBreaker(clock=lambda now=now: now[0], registry=CollectorRegistry())
        breaker.engage("stop", kind=kind)
        for _ in range(50):
            now[0] += MINUTE_NS
            breaker.good_reading(kind)
        assert breaker.allows() is (kind in {ReasonClass.NETWORK, ReasonClass.DATA}), kind


def test_a_transient_reason_that_comes_again_and_again_escalates_to_a_person() -> None:
    now = [0]
    rules = BreakerSettings(escalate_after_engagements=3, recovery_cooldown_seconds=1.0, max_cooldown_seconds=1.0)
    breaker = CircuitBreaker(rules, clock=lambda: now[0], registry=CollectorRegistry())
    for engagement in range(1, 4):
        breaker.engage("the feed is gone", kind="data")
        assert breaker.snapshot().escalated is (engagement == 3)
        for _ in range(20):
            now[0] += 2 * NS
            breaker.good_reading("data")
    assert breaker.is_engaged()
    breaker.release("ann", "the feed has been changed", engagement=breaker.engagement)
    assert breaker.allows()


# ---- the demonstration, by the command, in processes of its own


@pytest.mark.parametrize("hash_seed", ["0", "1", "4711"])
def test_the_demo_is_equal_to_the_byte_in_every_process(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "MM_FREEZE_UTC_ISO": "2025-01-01T00:00:00Z"}
    ran = subprocess.run(
        [sys.executable, "-c", f"from {cli.__name__} import main; main()", "scenario", "risk-monitor"],
        env=environment, capture_output=True, timeout=50, check=True,
    )  # fmt: skip
    version = ran.stdout.partition(b'"version":"')[2].partition(b'"')[0]
    assert ran.stdout == (
        b'{"frozen":true,"metrics":{"blocks_total":2,"freezes_total":1,"last_freeze_reason":"Edge degradation: '
        b'1.20 BPS < 1.50 BPS","last_freeze_symbol":"BTCUSDT"},"positions":{"BTCUSDT":0.1,"ETHUSDT":1.0},'
        b'"runtime":{"utc":"2025-01-01T00:00:00Z","version":"' + version + b'"},"status":"OK"}\n'
    )

"""Health of the inputs is a risk: what is not known to be healthy is a breach, as severe as the settings name it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.pretrade import PreTradeControls, PretradeOrder, PretradeRule
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from killswitch.risk.refusal import OrderRefused
from killswitch.settings.settings_file import RiskFileError, read_settings_file

MS = 1_000_000


class Own(PretradeRule):
    """A rule of the user's own that does what the test says."""

    name = "own_rule"

    def __init__(self, does: Callable[[PretradeOrder], Any]) -> None:
        self.does = does

    def refuses(self, order: PretradeOrder) -> OrderRefused | None:
        return self.does(order)  # type: ignore[no-any-return]


class Rig:
    """Controls with a clock that stands still; in ``refused`` what an order met."""

    def __init__(self, *rules: PretradeRule, **sections: Any) -> None:
        self.ns: Any = 10**15
        self.monitor = RuntimeRiskMonitor(
            max_inventory_usd_per_symbol=1e9,
            max_total_notional_usd=1e9,
            edge_freeze_threshold_bps=0.0,
            registry=CollectorRegistry(),
        )
        self.controls = PreTradeControls(
            PreTradeSettings.model_validate(sections),
            monitor=self.monitor,
            rules=rules,
            clock=self.clock,
            registry=CollectorRegistry(),
        )

    def clock(self) -> int:
        if isinstance(self.ns, Exception):
            raise self.ns
        return self.ns  # type: ignore[no-any-return]

    def order(self) -> str | None:
        refusal = self.refused = self.controls.admit("1", "A", "buy", 1.0, 100.0)
        if refusal is None:
            self.controls.release("1")
        else:
            assert self.monitor.working_orders() == 0
        return None if refusal is None else refusal.kind


def test_a_price_that_never_came_is_missing() -> None:
    rig = Rig(input_health={})
    assert rig.order() == "price_missing"
    rig.controls.on_price("B", 100.0)
    assert rig.order() == "price_missing"
    rig.controls.on_price("A", 100.0)
    assert rig.order() is None


def test_a_price_is_stale_by_the_clock_alone() -> None:
    rig = Rig(input_health={"max_age_ms": 1_000})
    rig.controls.on_price("A", 100.0)
    rig.ns += 1_000 * MS
    assert rig.order() is None
    rig.ns += 1
    assert rig.order() == "price_stale"
    refusal = rig.refused
    assert refusal is not None
    assert (refusal.limit, refusal.unit) == (1_000.0, "ms")
    assert "1000 ms old, and 1000 ms are allowed" in refusal.sentence
    rig.controls.on_price("A", 100.0)
    assert rig.order() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0, None, "100", True, 1e16, 10**400])
def test_unknown_is_frozen__a_price_that_is_no_number_is_bad_until_a_good_one_comes(bad: Any) -> None:
    for feed in (
        lambda rig: rig.controls.on_price("A", bad),
        lambda rig: rig.controls.on_quote("A", bad, 100.0),
        lambda rig: rig.controls.on_quote("A", 100.0, bad),
    ):
        rig = Rig(input_health={"bad": "refuse"})
        feed(rig)  # as the very first
        assert rig.order() == "price_bad"
        rig.controls.on_price("A", 100.0)
        assert rig.order() is None
        feed(rig)
        assert rig.order() == "price_bad"
        assert not rig.monitor.is_frozen()


def test_a_crossed_quote_is_a_fault_and_a_locked_one_is_not() -> None:
    rig = Rig(input_health={})
    rig.controls.on_quote("A", 100.0, 100.0)
    assert rig.order() is None
    rig.controls.on_quote("A", 100.1, 100.0)
    assert rig.order() == "quote_crossed"
    assert not rig.monitor.is_frozen()
    rig.controls.on_quote("A", 99.9, 100.1)
    assert rig.order() is None


def test_prices_that_come_and_never_change_are_frozen() -> None:
    rig = Rig(input_health={"max_age_ms": 1_000, "frozen_after_ms": 3_000})
    for _ in range(4):
        rig.controls.on_price("A", 100.0)
        assert rig.order() is None
        rig.ns += 1_000 * MS
    rig.controls.on_price("A", 100.0)
    assert rig.order() == "quote_frozen"
    rig.controls.on_price("A", 100.01)
    assert rig.order() is None


@pytest.mark.parametrize(
    ("setting", "kind", "feed"),
    [
        ("missing", "price_missing", lambda rig: None),
        ("bad", "price_bad", lambda rig: rig.controls.on_price("A", math.nan)),
        ("crossed", "quote_crossed", lambda rig: rig.controls.on_quote("A", 2.0, 1.0)),
        ("stale", "price_stale", lambda rig: (rig.controls.on_price("A", 1.0), setattr(rig, "ns", rig.ns + 10**13))),
        ("frozen", "quote_frozen", lambda rig: (rig.controls.on_price("A", 1.0), setattr(rig, "ns", rig.ns + 2 * MS))),
    ],
)
@pytest.mark.parametrize("severity", ["refuse", "freeze"])
def test_each_fault_does_what_the_settings_name(setting: str, kind: str, feed: Any, severity: str) -> None:
    rig = Rig(input_health={setting: severity, "frozen_after_ms": 1})
    feed(rig)
    assert rig.order() == kind
    assert rig.monitor.is_frozen() is (severity == "freeze")
    if severity == "freeze":
        (event,) = rig.monitor.get_freeze_events()
        assert (event.trigger, event.metadata["cause"], event.metadata["kind"]) == (
            "limit_violation",
            "monitor_error",
            kind,
        )
        assert event.metadata["symbol"] == "A"


def test_asking_what_if_freezes_nothing() -> None:
    rig = Rig(input_health={"missing": "freeze"})
    assert rig.controls.explain_order("A", "buy", 1.0, 1.0) is not None
    assert not rig.controls.simulate_order("A", "buy", 1.0, 1.0).passes
    assert not rig.monitor.is_frozen()


def test_prices_are_not_asked_for_where_health_is_off() -> None:
    rig = Rig()
    rig.controls.on_price("A", math.nan)
    rig.controls.on_quote("A", 2.0, 1.0)
    assert rig.order() is None


def test_the_symbols_that_are_watched_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("killswitch.risk.pretrade.input_health.MAX_WATCHED_SYMBOLS", 1)
    rig = Rig(input_health={})
    for symbol in ("B", "A", "", None):
        rig.controls.on_price(symbol, 100.0)
    assert rig.order() == "price_missing"


# ---- clocks


@pytest.mark.parametrize("severity", ["refuse", "freeze"])
def test_unknown_is_frozen__a_clock_that_goes_back(severity: str) -> None:
    rig = Rig(clock_stepped=severity)
    assert rig.order() is None
    rig.ns -= 1
    assert rig.order() == "clock_stepped"
    assert rig.controls.simulate_order("A", "buy", 1.0, 1.0).refusals[0].kind == "clock_stepped"
    assert rig.monitor.is_frozen() is (severity == "freeze")
    if severity == "refuse":
        rig.ns += 1
        assert rig.order() is None


def test_unknown_is_frozen__a_price_from_before_the_clock_went_forward_is_stale() -> None:
    rig = Rig(input_health={"max_age_ms": 1_000})
    rig.controls.on_price("A", 100.0)
    rig.ns += 10**12
    assert rig.order() == "price_stale"


@pytest.mark.parametrize("bad", [OSError("no clock"), None, "now", math.nan])
def test_unknown_is_frozen__a_clock_that_fails_refuses_and_freezes(bad: Any) -> None:
    rig = Rig(input_health={})
    rig.controls.on_price("A", 100.0)
    rig.ns = bad
    told = rig.controls.simulate_order("A", "buy", 1.0, 100.0).refusals
    assert told[0].kind == "control_error"
    assert rig.order() in ("control_error", "control_overrun")
    assert rig.monitor.is_frozen() is not isinstance(bad, float)


def test_unknown_is_frozen__a_price_that_came_while_the_clock_failed_is_bad() -> None:
    for bad in (OSError("no clock"), None, math.nan):
        rig = Rig(input_health={"bad": "refuse"})
        rig.controls.on_price("A", 100.0)
        at, rig.ns = rig.ns, bad
        rig.controls.on_price("A", 100.0)
        rig.ns = at
        assert rig.order() == "price_bad"


# ---- controls and rules


@pytest.mark.parametrize("severity", ["refuse", "freeze"])
@pytest.mark.parametrize("answer", [KeyError("x"), True, False, "no", 0])
def test_unknown_is_frozen__a_rule_that_raises_or_answers_nonsense_is_a_breach(answer: Any, severity: str) -> None:
    def does(_order: PretradeOrder) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    rig = Rig(Own(does), control_error=severity)
    assert rig.order() == "control_error"
    assert rig.refused is not None
    assert "own_rule" in rig.refused.sentence
    assert rig.monitor.is_frozen() is (severity == "freeze")


@pytest.mark.parametrize("severity", ["refuse", "freeze"])
def test_unknown_is_frozen__a_rule_that_overruns_its_time_is_a_breach(severity: str) -> None:
    def slow(_order: PretradeOrder) -> None:
        rig.ns += 6 * MS

    rig = Rig(Own(slow), control_budget_ms=5.0, control_overrun=severity)
    assert rig.order() == "control_overrun"
    assert rig.refused is not None
    assert (rig.refused.limit, rig.refused.value, rig.refused.unit) == (5.0, 6.0, "ms")
    assert "the rule own_rule took 6.000 ms" in rig.refused.sentence
    assert rig.monitor.is_frozen() is (severity == "freeze")


def test_unknown_is_frozen__a_rule_that_makes_the_clock_go_back_overran_its_time() -> None:
    def steps(_order: PretradeOrder) -> None:
        rig.ns -= 1

    rig = Rig(Own(steps))
    assert rig.order() == "control_overrun"


def test_unknown_is_frozen__controls_that_took_too_long_together_refuse() -> None:
    times = iter([10**15, 10**15 + 6 * MS])
    rig = Rig(control_budget_ms=5.0)
    rig.controls._chain._clock = lambda: next(times)
    assert rig.order() == "control_overrun"


def test_unknown_is_frozen__a_control_that_raises_is_named_and_freezes() -> None:
    rig = Rig(order_size={"max_quantity": 1.0}, duplicates={})
    size = rig.controls._chain._looks[1].__self__  # type: ignore[attr-defined]
    size._symbols = None
    assert rig.order() == "control_error"
    assert rig.refused is not None
    assert "order_size raised AttributeError" in rig.refused.sentence
    assert rig.monitor.is_frozen()
    assert [one.kind for one in rig.controls.simulate_order("A", "buy", 1.0, 1.0).refusals] == [
        "control_error",
        "frozen",
    ]


def test_a_rule_refuses_is_told_the_order_and_its_order_is_not_counted() -> None:
    seen: list[tuple[Any, ...]] = []

    def does(order: PretradeOrder) -> OrderRefused | None:
        seen.append((order.symbol, order.sign, order.qty, order.price, order.strategy, order.amends))
        return OrderRefused("rule", 1.0, 2.0, order.symbol, "two is more than one")

    rig = Rig(Own(does), throttle={"orders_per_s": 1}, duplicates={"max_same_orders": 1})
    assert rig.order() == "rule"
    assert seen == [("A", 1, 1.0, 100.0, "", False)]
    rig.controls._chain._rules = ()
    assert rig.order() is None  # the throttle's only token and the only same order were given back


def test_a_rule_that_hangs_holds_up_neither_others_nor_what_is_not_an_order() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hang(order: PretradeOrder) -> None:
        if order.strategy == "slow":
            inside.set()
            assert go_on.wait(20)

    rig = Rig(Own(hang), input_health={})
    rig.controls.on_price("A", 100.0)
    slow = threading.Thread(target=rig.controls.admit, args=("s", "A", "buy", 1.0, 100.0), kwargs={"strategy": "slow"})
    slow.start()
    assert inside.wait(20)
    assert rig.order() is None
    rig.controls.on_cancel()
    rig.controls.on_fill("A", "buy", 1.0, 100.0)
    rig.controls.on_price("A", 101.0)
    go_on.set()
    slow.join(20)
    assert rig.monitor.working_orders() == 1


# ---- settings


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"price_collar": {"max_deviation_bps": 1.0}}, "price_collar: needs input_health"),
        ({"order_size": {}}, "sets no limit"),
        ({"throttle": {"orders_per_s": 0}}, "greater than 0"),
        ({"throttle": {"orders_per_s": 1.5}}, "valid integer"),
        ({"throttle": {"burst_s": math.nan}}, "finite"),
        ({"order_size": {"max_value_usd": math.inf}}, "finite"),
        ({"order_size": {"max_value_usd": True}}, "valid number"),
        ({"input_health": {"bad": "ignore"}}, "'refuse' or 'freeze'"),
        ({"control_error": "skip"}, "'refuse' or 'freeze'"),
        ({"repeated_executions": {}}, "Field required"),
        ({"collar": {}}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        PreTradeSettings.model_validate(wrong)


def test_settings_are_read_from_yaml_with_faults_by_line(tmp_path: Any) -> None:
    path = tmp_path / "risk_limits.yaml"
    path.write_text("throttle:\n  orders_per_s: 50\ninput_health: {}\nprice_collar:\n  max_deviation_bps: 25.0\n")
    settings = read_settings_file(path, PreTradeSettings)
    assert settings.throttle is not None
    assert settings.throttle.orders_per_s == 50
    path.write_text("throttle:\n  order_per_s: 50\n")
    with pytest.raises(RiskFileError, match=r"risk_limits.yaml:2: throttle.order_per_s: there is no such setting"):
        read_settings_file(path, PreTradeSettings)


def test_every_setting_says_what_it_means() -> None:
    def walk(schema: dict[str, Any]) -> None:
        for model in [schema, *schema.get("$defs", {}).values()]:
            for name, field in model.get("properties", {}).items():
                assert field.get("description"), f"{model['title']}.{name} has no description"

    walk(PreTradeSettings.model_json_schema())

"""Pre-trade settings change while orders go: in one step, nothing that is known is lost, nothing opens in between."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from killswitch.risk.limits.runtime_monitor import RuntimeRiskMonitor
from killswitch.risk.pretrade import PreTradeControls
from killswitch.risk.pretrade.pretrade_settings import PreTradeSettings
from tests.support.pretrade_rig import HEALTHY, MS, Rig, S


def put(rig: Rig, **sections: Any) -> PreTradeSettings:
    """Change the settings of a rig; what is not named here is off."""
    settings = PreTradeSettings.model_validate({"throttle": None, **sections})
    rig.controls.set_settings(settings)
    assert rig.controls.settings == settings
    return settings


# ---- what is new holds, and is told


def test_every_section_that_appears_holds_from_the_next_order_on() -> None:
    for section, kind in (
        ({"permitted_symbols": ("B",)}, "symbol_not_permitted"),
        ({"order_size": {"max_quantity": 0.5}}, "order_quantity"),
        ({"order_size": {"max_value_usd": 50.0}}, "order_value"),
        ({"input_health": HEALTHY}, "price_missing"),
        ({"input_health": HEALTHY, "price_collar": {"max_deviation_bps": 1.0}}, "price_missing"),
    ):
        rig = Rig()
        assert rig.admit() is None
        put(rig, **section)
        assert rig.admit() == kind
        put(rig)
        assert rig.admit() is None


def test_a_section_that_appears_starts_from_nothing_known() -> None:
    rig = Rig()
    for _ in range(5):
        assert rig.admit() is None
    put(rig, duplicates={"max_same_orders": 2}, daily={"max_orders": 3}, repeated_executions={"max_executions": 2})
    assert [rig.admit(), rig.admit(), rig.admit()] == [None, None, "duplicate_order"]
    assert [rig.admit(qty=2.0), rig.admit(qty=3.0)] == [None, "daily_orders"]


def test_one_warning_line_names_what_changed_with_before_and_after(logs: Any) -> None:
    rig = Rig(throttle={"orders_per_s": 10})
    put(rig, throttle={"orders_per_s": 5}, permitted_symbols=tuple(f"S{number}" for number in range(500)))
    put(rig, throttle={"orders_per_s": 5}, permitted_symbols=tuple(f"S{number}" for number in range(500)))
    lines = [line for line in logs if line["event"] == "pre-trade settings changed"]
    assert [line["log_level"] for line in lines] == ["warning"]  # settings that are the same change nothing
    changed = {one["name"]: (one["before"], one["after"]) for one in lines[0]["changed"]}
    assert changed["throttle.orders_per_s"] == (10, 5)
    before, after = changed["permitted_symbols"]
    assert before is None
    assert len(after) < 300
    assert after.endswith("(500 in all)")


def test_counts_of_the_day_without_a_calendar_are_refused_and_nothing_changes(logs: Any) -> None:
    registry = CollectorRegistry()
    monitor = RuntimeRiskMonitor(
        max_inventory_usd_per_symbol=1e9, max_total_notional_usd=1e9, edge_freeze_threshold_bps=0.0, registry=registry
    )
    controls = PreTradeControls(PreTradeSettings(), monitor=monitor, registry=registry)
    bad = PreTradeSettings.model_validate({"daily": {"max_orders": 1}, "permitted_symbols": ()})
    with pytest.raises(ValueError, match=r"need a calendar; pass day="):
        controls.set_settings(bad)
    assert controls.settings == PreTradeSettings()
    assert controls.admit("o", "A", "buy", 1.0, 1.0) is None
    assert not [line for line in logs if "changed" in line["event"]]


# ---- what is known stays


def test_counts_of_the_day_stay_over_a_change_and_over_an_absence() -> None:
    rig = Rig(daily={"max_orders": 3})
    assert [rig.admit(), rig.admit()] == [None, None]
    rig.controls.on_result(-40.0)
    put(rig, daily={"max_orders": 2})
    assert rig.admit() == "daily_orders"
    put(rig, daily={"max_losses": 1})
    assert rig.admit() == "daily_losses"
    put(rig)
    assert rig.admit() is None
    put(rig, daily={"max_orders": 2})
    assert rig.admit() == "daily_orders"
    put(rig, daily={"max_loss_usd": 40.0})
    assert rig.admit() == "daily_loss"


def test_orders_that_were_the_same_are_remembered_over_a_change_and_over_an_absence() -> None:
    rig = Rig(duplicates={"max_same_orders": 4, "window_ms": 1_000})
    for _ in range(3):
        assert rig.admit() is None
        rig.ns += 10 * MS
    put(rig, duplicates={"max_same_orders": 2, "window_ms": 1_000})
    assert rig.admit() == "duplicate_order"
    rig.ns = 10**15 + 1_000 * MS  # the first has left the window, the second and third have not
    assert rig.admit() == "duplicate_order"
    put(rig)
    assert rig.admit(qty=2.0) is None
    put(rig, duplicates={"max_same_orders": 2, "window_ms": 1_000})
    assert rig.admit() == "duplicate_order"
    rig.ns += 10 * MS  # the second leaves
    assert [rig.admit(), rig.admit()] == [None, "duplicate_order"]
    put(rig, duplicates={"max_same_orders": 4, "window_ms": 1_000})
    assert [rig.admit(), rig.admit(), rig.admit()] == [None, None, "duplicate_order"]


def test_a_higher_number_of_same_orders_is_reached_by_orders_that_were_sent_before() -> None:
    rig = Rig(duplicates={"max_same_orders": 1})
    assert [rig.admit(), rig.admit()] == [None, "duplicate_order"]
    put(rig, duplicates={"max_same_orders": 3})
    assert [rig.admit(), rig.admit(), rig.admit()] == [None, None, "duplicate_order"]


def test_prices_stay_with_their_ranges_over_a_change_and_over_an_absence() -> None:
    collar = {"max_deviation_bps": 9_999.0, "over_time_bps": 500.0, "window_ms": 1_000}
    rig = Rig(price_collar=collar, input_health=HEALTHY)
    rig.controls.on_price("A", 200.0)
    rig.controls.on_price("A", 100.0)
    assert rig.admit() == "price_collar_over_time"
    put(rig, price_collar={**collar, "over_time_bps": 400.0, "window_ms": 5_000}, input_health={"max_age_ms": 900})
    assert rig.admit() == "price_collar_over_time"
    put(rig)
    rig.controls.on_price("A", 150.0)  # seen by nobody
    put(rig, price_collar=collar, input_health=HEALTHY)
    assert rig.admit() == "price_collar_over_time"
    assert rig.controls._chain._watched["A"].price == 100.0
    rig.ns += 950 * MS
    put(rig, price_collar=collar, input_health={"max_age_ms": 900})
    assert rig.admit() == "price_stale"
    put(rig, input_health={"max_age_ms": 900, "stale": "freeze"})
    assert rig.admit() == "price_stale"
    assert rig.monitor.is_frozen()
    put(rig)
    assert rig.monitor.is_frozen()  # settings release nothing
    assert rig.admit() == "frozen"


def test_a_strategy_that_is_disabled_stays_so_until_a_person_enables_it(logs: Any) -> None:
    rig = Rig(repeated_executions={"max_executions": 2, "designated_staff": ("ada",)})
    for strategy in ("mm", "mm", "arb"):
        rig.controls.on_fill("A", "buy", 1.0, 100.0, strategy=strategy)
    assert rig.admit(strategy="mm") == "repeated_execution"
    loosened = {"max_executions": 1_000, "designated_staff": ("ada",)}
    for sections in ({"repeated_executions": loosened}, {}, {"repeated_executions": loosened}):
        put(rig, **sections)
        assert rig.admit(strategy="mm") == "repeated_execution"
        assert (rig.last.limit, rig.last.value) == (2.0, 2.0)
        assert rig.admit(strategy="arb") is None
        assert rig.controls.disabled_strategies() == ["mm"]
    put(rig)
    with pytest.raises(ValueError, match="not designated"):
        rig.controls.enable("mm", "bob", "looks fine")
    assert rig.controls.enable("mm", "ada", "looked at it")
    assert rig.admit(strategy="mm") is None
    put(rig, repeated_executions={"max_executions": 1})  # arb has had one: lower limits hold at once
    assert rig.controls.disabled_strategies() == ["arb"]
    assert [line["strategy"] for line in logs if line["event"] == "strategy disabled"] == ["mm", "arb"]
    assert rig.admit(strategy="arb") == "repeated_execution"


def test_a_restart_with_a_higher_limit_or_none_enables_no_strategy() -> None:
    rig = Rig(repeated_executions={"max_executions": 1})
    rig.controls.on_fill("A", "buy", 1.0, 100.0, strategy="mm")
    put(rig, repeated_executions={"max_executions": 9})
    saved = rig.controls.persist_to_dict()
    assert saved["disabled"] == {"mm": 1}
    for sections in ({}, {"repeated_executions": {"max_executions": 9}}):
        other = Rig(**sections)
        other.controls.restore_from_dict(saved)
        assert other.admit(strategy="mm") == "repeated_execution"
        assert other.controls.persist_to_dict()["disabled"] == {"mm": 1}
        assert other.controls.enable("mm", "ada", "looked at it")
        assert other.admit(strategy="mm") is None
    for bad in ({"mm": 0}, {"mm": True}, {"mm": "1"}, ["mm"]):
        other = Rig()
        with pytest.raises(ValueError, match="cannot be read"):
            other.controls.restore_from_dict({**saved, "disabled": bad})
        assert other.monitor.is_frozen()


def test_working_orders_follow_and_another_ones_rule_is_left_alone() -> None:
    rig = Rig(working_orders={"max_total": 5})

    def kind(name: str) -> Any:
        refusal = rig.controls.admit(name, "A", "buy", 1.0, 100.0)
        return refusal and refusal.kind

    assert [kind("a"), kind("b")] == [None, None]
    put(rig, working_orders={"max_total": 2})
    assert kind("c") == "working_orders"
    put(rig)
    assert kind("c") is None
    refusal = rig.controls.admit("c", "A", "buy", 1.0, 100.0)
    rig.monitor.limit_working_orders(lambda *_: refusal)
    put(rig, clock_stepped="refuse")
    assert kind("d") == "duplicate_id"


def test_the_controls_and_rules_of_the_users_own_get_the_new_budget() -> None:
    class Slow:
        name = "slow"

        def refuses(self, _order: Any) -> None:
            rig.ns += 5 * MS

    rig = Rig(rules=(Slow(),))
    assert rig.admit() is None
    put(rig, control_budget_ms=4.0)
    assert rig.admit() == "control_overrun"
    rig = Rig()
    rig.step_ns = 5 * MS
    assert rig.admit() is None
    put(rig, control_budget_ms=4.0)
    assert rig.admit() == "control_overrun"


# ---- threads


def test_four_threads_of_orders_while_the_settings_flip_lose_no_count() -> None:
    each, many = 1_500, 10**6
    rig = Rig(daily={"max_orders": many}, repeated_executions={"max_executions": many})
    rig.ns = 10**15
    done = threading.Event()
    faults: list[BaseException] = []
    flips = 0
    full = {
        "throttle": {"orders_per_s": 10**9, "symbol_orders_per_s": 10**9},
        "duplicates": {"max_same_orders": many},
        "order_size": {"max_quantity": 10.0},
        "input_health": {"max_age_ms": 10**6},
        "working_orders": {"max_total": many},
    }
    always = {"daily": {"max_orders": many}, "repeated_executions": {"max_executions": many}}

    def send(thread: int) -> None:
        try:
            for number in range(each):
                name = f"{thread}-{number}"
                rig.controls.on_quote("A", 99.0, 101.0)
                assert rig.controls.admit(name, "A", "buy", 1.0, 100.0, strategy=f"s{thread}") is None
                rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id=name, strategy=f"s{thread}")
                rig.controls.on_cancel()
        except BaseException as error:
            faults.append(error)

    def flip() -> None:
        nonlocal flips
        try:
            while not done.is_set():
                for sections in ({**full, **always}, always, {**full, **always, "control_budget_ms": 50.0}):
                    put(rig, **sections)
                    flips += 1
        except BaseException as error:
            faults.append(error)

    rig.controls.on_quote("A", 99.0, 101.0)
    put(rig, **full, **always)
    rig.controls.on_quote("A", 99.0, 101.0)
    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    flipping = threading.Thread(target=flip)
    for thread in (flipping, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    flipping.join()
    assert faults == []
    assert flips > 20
    saved = rig.controls.persist_to_dict()
    assert saved["daily"] | {"day": ""} == {
        "day": "", "orders": 4 * each, "cancels": 4 * each, "losses": 0, "result_usd": "0", "result_known": True,
    }  # fmt: skip
    assert saved["executions"] == {f"s{thread}": each for thread in range(4)}
    assert rig.controls.refused == {}
    assert rig.monitor.get_position("A") == 4.0 * each
    assert rig.monitor.working_orders() == 0


def test_an_order_that_was_counted_before_a_change_is_taken_back_only_where_it_was_counted() -> None:
    class Changing:
        name = "changing"
        asked = 0

        def refuses(self, order: Any) -> Any:
            # Between counting and taking back: the settings change, and another order passes.
            self.asked += 1
            if self.asked == 1:
                put(rig, duplicates={"max_same_orders": 1}, throttle={"orders_per_s": 1}, daily={"max_orders": 1})
                assert rig.controls.admit("other", "A", "buy", 1.0, 100.0) is None
                raise RuntimeError
            return None

    rig = Rig(rules=(Changing(),), control_error="refuse")
    rule = rig.rules[0]
    assert rig.controls.admit("first", "A", "buy", 1.0, 100.0).kind == "control_error"
    assert rule.asked == 2
    rig.ns += S // 2
    assert rig.admit(qty=5.0) == "daily_orders"
    put(rig, throttle={"orders_per_s": 1})
    assert rig.admit(qty=5.0) == "order_throttle"
    put(rig, duplicates={"max_same_orders": 1})
    assert rig.admit() == "duplicate_order"

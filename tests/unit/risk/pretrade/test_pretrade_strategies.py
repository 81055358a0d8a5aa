"""A strategy that is disabled places nothing and grows nothing, however its orders and fills are told."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import pytest

from killswitch.risk.pretrade.repeated_executions import OrderStrategies
from tests.support.pretrade_rig import Rig


class Desk(enum.StrEnum):
    MAKER = "maker"


def limited(most: int = 2, **sections: Any) -> Rig:
    return Rig(repeated_executions={"max_executions": most}, **sections)


@pytest.mark.parametrize("strategy", [7, 7.0, b"7", ["7"], True, 0, math.nan, object()])
def test_a_strategy_that_is_no_text_is_no_order(strategy: Any) -> None:
    rig = limited()
    for price in (100.0, None):
        assert rig.admit(strategy=strategy, price=price) == "bad_input"
    assert "is no text" in rig.last.sentence
    assert rig.monitor.working_orders() == 0
    rig.admit(strategy="7")
    amended = rig.controls.admit_amend(f"o{rig.orders}", 2.0, strategy=strategy)
    assert amended is not None
    assert amended.kind == "bad_input"


def test_text_of_a_kind_of_its_own_is_that_text() -> None:
    rig = limited(1)
    assert rig.admit(strategy=Desk.MAKER) is None
    rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id="o1")
    assert rig.controls.disabled_strategies() == ["maker"]
    assert rig.admit(strategy=Desk.MAKER) == rig.admit(strategy="maker") == "repeated_execution"


def test_fills_that_a_venue_tells_by_the_order_alone_count_for_its_strategy() -> None:
    rig = limited(3)
    assert rig.admit(strategy="maker", qty=2.0) is None
    assert rig.admit(strategy="maker", qty=2.0) is None
    rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id="o1")
    rig.controls.release("o2")
    rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id="o2")  # comes after the cancel
    assert rig.controls.disabled_strategies() == []
    rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id="o1")  # its last
    assert rig.controls.disabled_strategies() == ["maker"]
    assert rig.admit(strategy="maker") == "repeated_execution"
    assert rig.admit() is None, "no execution was counted for nobody"


def test_a_fill_that_names_another_strategy_counts_for_both() -> None:
    rig = limited(1)
    assert rig.admit(strategy="maker") is None
    rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id="o1", strategy="taker")
    assert rig.controls.disabled_strategies() == ["maker", "taker"]


def test_a_disabled_strategy_amends_nothing_whoever_it_says_it_is() -> None:
    rig = limited(1)
    assert rig.admit(strategy="maker", qty=2.0) is None
    rig.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id="o1")
    amend = rig.controls.admit_amend
    for told, kind in ((None, "repeated_execution"), ("maker", "repeated_execution"), ("fresh", "bad_input")):
        refusal = amend("o1", 5.0, 11.0, strategy=told)
        assert refusal is not None
        assert refusal.kind == kind
    assert "is of the strategy 'maker', not of 'fresh'" in refusal.sentence
    assert rig.monitor.reserved_quantity("o1") == 2.0
    assert rig.controls.enable("maker", "ann", "looked at it")
    assert amend("o1", 5.0, 11.0) is None


def test_an_order_of_nobody_is_amended_by_nobody_else() -> None:
    rig = limited(1)
    assert rig.admit() is None
    refusal = rig.controls.admit_amend("o1", 2.0, strategy="fresh")
    assert refusal is not None
    assert "is of no strategy, not of 'fresh'" in refusal.sentence
    assert rig.controls.admit_amend("o1", 2.0) is None


def test_a_restart_knows_whose_the_orders_are_that_work() -> None:
    rig = limited(1)
    assert rig.admit(strategy="maker") is None
    saved = json.loads(json.dumps([rig.controls.persist_to_dict(), rig.monitor.persist_to_dict()]))
    again = limited(1)
    again.controls.restore_from_dict(saved[0])
    again.monitor.restore_from_dict(saved[1])
    again.controls.on_fill("A", "buy", 1.0, 100.0, client_order_id="o1")
    assert again.controls.disabled_strategies() == ["maker"]
    saved[1]["working_orders"]["o1"]["strategy"] = 7
    with pytest.raises(ValueError, match="a working order is"):
        again.monitor.restore_from_dict(saved[1])
    del saved[1]["working_orders"]["o1"]["strategy"]  # a state from before it was kept
    again.monitor.restore_from_dict(saved[1])
    assert again.monitor.strategy_of("o1") is None


def test_what_is_remembered_of_orders_that_are_over_is_bounded() -> None:
    rig = limited(10_000)
    strategies = OrderStrategies(rig.monitor, most=3)
    for number in range(10):
        assert rig.controls.admit(f"{number}", "A", "buy", 1.0, 100.0, strategy="maker") is None
        strategies.remember(f"{number}")
    for number in range(1, 10):
        rig.monitor.release(f"{number}")
    assert [number for number in range(10) if strategies.of(f"{number}")] == [0, 7, 8, 9]
    assert strategies.of(None) is strategies.of(["0"]) is None

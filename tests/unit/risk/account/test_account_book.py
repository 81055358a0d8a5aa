"""What an account holds: totals and snapshots that cost the same however many symbols there are."""

from __future__ import annotations

import math
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.risk.account import account_book
from killswitch.risk.account.account_book import MARKS_BETWEEN_SUMS, PARTS, AccountBook, QuantitySnapshot

NAMES = [f"S{number}" for number in range(1_000)]


def held(names: list[str]) -> AccountBook:
    book = AccountBook()
    for name in names:
        book.fill(name, Decimal(1), Decimal("10.1"))
    return book


def test_a_fill_neither_adds_up_nor_copies_every_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    book = held(NAMES)
    sums: list[int] = []

    def counted(values: Any) -> float:
        found = list(values)
        sums.append(len(found))
        return real(found)

    real = math.fsum
    monkeypatch.setattr(account_book.math, "fsum", counted)
    for number in range(3 * len(NAMES)):
        before = book.positions
        book.fill(NAMES[number % 7], Decimal("0.1"), Decimal("10.1"))
        shared = [one is other for one, other in zip(before._parts, book.positions._parts, strict=True)]
        assert shared.count(False) == 1
    assert len(sums) <= 2 * 4  # two totals, every thousand fills


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES[:12]), st.integers(-50, 50).filter(bool), st.integers(1, 10**6)), max_size=60
    )
)
def test_totals_and_quantities_are_those_of_what_is_held(fills: list[tuple[str, int, int]]) -> None:
    book = AccountBook()
    exact: dict[str, Decimal] = {}
    for name, tenths, cents in fills:
        seen, before = book.positions, dict(book.positions)
        book.fill(name, Decimal(tenths) / 10, Decimal(cents) / 100)
        exact[name] = exact.get(name, Decimal(0)) + Decimal(tenths) / 10
        assert seen == before  # a snapshot stays what it was
    assert book.positions == {name: float(quantity) for name, quantity in exact.items() if quantity}
    assert len(book.positions) == len(list(book.positions)) == len(book.lines)
    exposure = math.fsum(line.value_usd for line in book.lines.values())
    open_usd = math.fsum(line.open_usd for line in book.lines.values())
    assert book.exposure_usd == pytest.approx(exposure, rel=1e-12, abs=1e-6)
    assert book.open_usd == pytest.approx(open_usd, rel=1e-9, abs=1e-6)


def test_what_rounding_left_is_gone_after_a_few_hundred_fills_and_when_flat() -> None:
    book = held(["A", "B"])
    book.fill("C", Decimal("1e10"), Decimal("33333.3"))
    book.fill("C", Decimal("-1e10"), Decimal("33333.3"))
    for _ in range(MARKS_BETWEEN_SUMS):
        book.fill("A", Decimal("0.1"), Decimal("10.1"))
    assert book.exposure_usd == pytest.approx(27.6 * 10.1, rel=1e-14)
    for name in ("A", "B"):
        book.fill(name, -book.lines[name].exact_quantity, Decimal("10.1"))
    assert (book.exposure_usd, book.open_usd, book.closed, len(book.positions)) == (0.0, 0.0, 0, 0)


def test_a_snapshot_is_a_mapping_that_nobody_can_change() -> None:
    one = QuantitySnapshot({"A": 1.0, "\udcff": 2.0})
    assert (one["A"], one.get("B"), "\udcff" in one, len(one), repr(one)) == (1.0, None, True, 2, repr(dict(one)))
    assert one.changed("A", None) == {"\udcff": 2.0}
    assert one.changed("B", None) == one == {"\udcff": 2.0, "A": 1.0}
    assert 7 not in one
    assert QuantitySnapshot() == {}
    with pytest.raises(TypeError):
        one["A"] = 2.0  # type: ignore[index]
    assert len(one._parts) == PARTS


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_order_of_symbols_is_the_same_in_every_process(hash_seed: str) -> None:
    program = (
        "from killswitch.risk.account.account_book import QuantitySnapshot as Q;"
        "print(*Q({f'S{number}': 1.0 for number in range(99)}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == list(QuantitySnapshot({f"S{number}": 1.0 for number in range(99)}))

"""Scopes and modes: what is written is what is read, and what a scope covers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from killswitch.core.modes import Mode, strictest
from killswitch.core.scopes import GLOBAL, PART_NAMES, SCOPE_MAX_BYTES, Scope

LAW = settings(deadline=None, max_examples=100)

VALUES = st.text(min_size=1, max_size=8).filter(
    lambda text: "," not in text and all(ch.isprintable() and not ch.isspace() for ch in text)
)
PARTS = st.dictionaries(st.sampled_from(PART_NAMES), VALUES, max_size=4)


def written(parts: dict[str, str]) -> str:
    """Parts as a person may write them, in any order."""
    return ",".join(f"{name}:{value}" for name, value in parts.items()) or "global"


@LAW
@given(PARTS)
def test_a_scope_is_read_as_it_is_written(parts: dict[str, str]) -> None:
    """A scope goes through its text unchanged: parse(str(scope)) is the scope, whatever the order it was typed in."""
    scope = Scope.parse(written(parts))
    assert dict(scope.parts) == parts
    assert Scope.parse(str(scope)) == scope
    assert [name for name, _ in scope.parts] == [name for name in PART_NAMES if name in parts]


@LAW
@given(PARTS)
def test_the_order_of_parts_makes_no_difference(parts: dict[str, str]) -> None:
    """Two scopes with the same parts are one scope, so that a release by scope finds what a freeze has made."""
    for order in itertools.islice(itertools.permutations(parts.items()), 6):
        assert Scope.parse(written(dict(order))) == Scope.parse(written(parts))


@LAW
@given(PARTS, PARTS)
def test_a_scope_covers_exactly_the_orders_whose_stated_parts_all_match(
    parts: dict[str, str], order: dict[str, str]
) -> None:
    """UNKNOWN IS FROZEN: an order escapes a scope only by stating another value for one of its parts."""
    scope = Scope.parse(written(parts))
    escapes = any(name in order and order[name] != value for name, value in parts.items())
    assert scope.covers(order) is not escapes


def test_an_order_that_does_not_state_a_part_is_covered() -> None:
    """UNKNOWN IS FROZEN: whether an order without a desk belongs to the frozen desk is unknown, so it is covered."""
    scope = Scope.parse("desk:rates,symbol:BTC")
    assert scope.covers({})
    assert scope.covers({"desk": None, "symbol": None})
    assert scope.covers({"symbol": "BTC"})
    assert not scope.covers({"symbol": "ETH"})
    assert not scope.covers({"desk": "fx", "symbol": "BTC"})


def test_joined_parts_must_all_match() -> None:
    """Parts joined by commas narrow a scope: one part that does not match lets the order pass."""
    scope = Scope.parse("venue:bybit,symbol:BTCUSDT")
    assert scope.covers({"venue": "bybit", "symbol": "BTCUSDT"})
    assert not scope.covers({"venue": "bybit", "symbol": "ETHUSDT"})
    assert not scope.covers({"venue": "kraken", "symbol": "BTCUSDT"})


def test_values_are_compared_as_they_are() -> None:
    """A scope compares whole values by their case: BTC is neither btc nor BTCUSDT."""
    scope = Scope.parse("symbol:BTC")
    assert not scope.covers({"symbol": "btc"})
    assert not scope.covers({"symbol": "BTCUSDT"})


@LAW
@given(PARTS)
def test_global_covers_every_order(order: dict[str, str]) -> None:
    """The global scope covers every order, whatever it states."""
    assert GLOBAL.covers(order)
    assert GLOBAL.is_global
    assert Scope.parse(" global ") == GLOBAL
    assert str(GLOBAL) == "global"


def test_only_the_first_colon_separates() -> None:
    """Symbols of derivatives hold colons: only the first one separates name from value."""
    scope = Scope.parse("symbol:BTC/USDT:USDT")
    assert scope.parts == (("symbol", "BTC/USDT:USDT"),)
    assert scope.covers({"symbol": "BTC/USDT:USDT"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"scope '': '' is not a part; write 'global' or NAME:VALUE with NAME one of node, venue, account"),
        ("galaxy", "'galaxy' is not a part"),
        ("venue", "'venue' is not a part"),
        ("Venue:bybit", "'Venue:bybit' is not a part"),
        ("exchange:bybit", "'exchange:bybit' is not a part"),
        ("venue:", "part 'venue' needs a value without spaces or control characters"),
        ("venue: ", "part 'venue' needs a value without spaces or control characters"),
        ("venue:by bit", "part 'venue' needs a value without spaces or control characters"),
        ("venue:by\x07bit", "part 'venue' needs a value without spaces or control characters"),
        ("venue:\udcff", "part 'venue' needs a value without spaces or control characters"),
        ("venue:a,venue:b", "part 'venue' stands twice; freeze twice to cover two values"),
        ("global,venue:a", "'global' stands alone and is not joined with other parts"),
        ("venue:a,", "'' is not a part"),
        ("symbol:" + "x" * 240, f"scope is longer than {SCOPE_MAX_BYTES} bytes; shorten its values"),
    ],
)
def test_a_scope_that_makes_no_sense_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    """An error says what is wrong with the scope, and never freezes something else instead."""
    with pytest.raises(ValueError, match=sentence):
        Scope.parse(text)


@pytest.mark.parametrize("letter", ["x", "ü", "\N{SKULL}"])
def test_the_longest_scope_is_counted_in_bytes(letter: str) -> None:
    """A limit is reached when it is passed: 240 bytes of UTF-8 fit, one letter more does not."""
    room = SCOPE_MAX_BYTES - len("symbol:")
    fits = letter * (room // len(letter.encode()))
    assert Scope.parse(f"symbol:{fits}").parts == (("symbol", fits),)
    with pytest.raises(ValueError, match="longer than 240 bytes"):
        Scope.parse(f"symbol:{fits}{letter}")


# -- modes -----------------------------------------------------------------------------------------------------------


@LAW
@given(st.lists(st.sampled_from(Mode)))
def test_the_strictest_of_modes_is_none_looser(modes: list[Mode]) -> None:
    """The strictest wins: no mode of the set is stricter than the result, and ACTIVE is the result of none."""
    result = strictest(modes)
    assert all(mode <= result for mode in modes)
    assert result in {*modes, Mode.ACTIVE}
    assert modes or result is Mode.ACTIVE


def test_modes_are_ordered_by_strictness() -> None:
    """The order of modes is their strictness: ACTIVE < REDUCE_ONLY < FROZEN."""
    assert Mode.ACTIVE < Mode.REDUCE_ONLY < Mode.FROZEN


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("FROZEN", Mode.FROZEN),
        ("frozen", Mode.FROZEN),
        (" reduce-only ", Mode.REDUCE_ONLY),
        ("REDUCE_ONLY", Mode.REDUCE_ONLY),
        ("Active", Mode.ACTIVE),
    ],
)
def test_a_mode_is_read_as_people_and_records_write_it(text: str, mode: Mode) -> None:
    """A mode is read in either spelling."""
    assert Mode.parse(text) is mode


@pytest.mark.parametrize("text", ["", "halted", "reduce only", "2", "FROZEN!"])
def test_a_mode_that_does_not_exist_is_refused_with_a_sentence(text: str) -> None:
    """An error names the modes that exist."""
    with pytest.raises(ValueError, match="the modes are ACTIVE, REDUCE_ONLY, FROZEN"):
        Mode.parse(text)

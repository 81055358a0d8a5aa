"""Budgets and turns: who is asked, how long each may take, and how long a pause is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.stores.timing import Deadline, backoff_ms, in_turn


class Hands:
    """A clock that is moved by hand."""

    now = 0

    def __call__(self) -> int:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000_000)


@given(count=st.integers(1, 7), first=st.integers(0, 6), budget_ms=st.integers(1, 10_000))
def test_each_server_is_asked_once_and_all_together_stay_within_the_budget(
    count: int, first: int, budget_ms: int
) -> None:
    """However they hang: a server that takes all the time it is given leaves half of the rest to those after it."""
    clock = Hands()
    servers, first = list(range(count)), first % count
    asked = []
    for server, within in in_turn(servers, Deadline(budget_ms, clock), first=first):
        asked.append(server)
        clock.pass_s(within.remaining_s())
    assert asked == [*servers[first:], *servers[:first]]
    assert clock() == budget_ms * 1_000_000


@pytest.mark.parametrize(("servers", "asked"), [(["a"], ["a", "a"]), (["a", "b"], ["a", "b"])])
def test_a_single_server_may_be_asked_twice_with_all_the_time_there_is(servers: list[str], asked: list[str]) -> None:
    """Its connection may have died unseen, which the first attempt finds out at once."""
    clock = Hands()
    turns = list(in_turn(servers, Deadline(100, clock), single_twice=True))
    assert [server for server, _ in turns] == asked
    assert turns[-1][1].remaining_s() == 0.1
    assert turns[0][1].remaining_s() == (0.1 if len(servers) == 1 else 0.05)


def test_nobody_is_asked_when_no_time_is_left() -> None:
    """An attempt without time would say nothing of the server."""
    clock = Hands()
    turns = in_turn(["a", "b", "c"], Deadline(100, clock))
    assert next(turns)[0] == "a"
    clock.pass_s(0.1)
    assert list(turns) == []


@given(attempt=st.integers(0, 10_000), cap_ms=st.integers(1, 60_000), chance=st.floats(0, 1))
def test_pauses_grow_and_are_bounded(attempt: int, cap_ms: int, chance: float) -> None:
    """However long a server stays away."""
    assert 0 < backoff_ms(attempt, cap_ms=cap_ms, chance=chance) <= cap_ms
    assert backoff_ms(0, cap_ms=60_000, chance=1.0) < backoff_ms(1, cap_ms=60_000, chance=1.0)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_backoff_doubles_up_to_its_cap_and_never_falls_below_half(chance: float) -> None:
    """Whatever chance says a pause is between half of the doubled first one and the cap."""
    for attempt in [*range(20), 10_000]:
        pause_ms = backoff_ms(attempt, cap_ms=1_000, chance=chance)
        longest_ms = min(1_000, 50 * 2 ** min(attempt, 20))
        assert longest_ms / 2 <= pause_ms <= longest_ms

"""Budgets of calls, whose turn it is, and pauses between attempts, the same for every store that has a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from killswitch import clock

S = TypeVar("S")

NANOSECONDS_PER_MS = 1_000_000
NANOSECONDS_PER_S = 1_000_000_000
MILLISECONDS_PER_S = 1_000

FIRST_BACKOFF_MS = 50
# Of what is left, so that a server that hangs leaves time to ask another.
SHARE_OF_ONE_SERVER = 0.5


class Deadline:
    """The time that is left of one call's budget.

    Args:
        budget_ms: from now.
        now_ns: the clock.
    """

    def __init__(self, budget_ms: float, now_ns: clock.NowNs) -> None:
        self._now_ns = now_ns
        self._end_ns = now_ns() + round(budget_ms * NANOSECONDS_PER_MS)

    def remaining_s(self) -> float:
        """Seconds left, 0 when there are none."""
        return max(0, self._end_ns - self._now_ns()) / NANOSECONDS_PER_S

    def required_s(self) -> float:
        """Seconds left; raises ``TimeoutError`` when there are none, because 0 would mean "do not wait" to a socket."""
        remaining_s = self.remaining_s()
        if remaining_s <= 0:
            raise TimeoutError("no time was left")
        return remaining_s

    def share(self, part: float) -> Deadline:
        """An earlier deadline: after this part of what is left."""
        return Deadline(self.remaining_s() * MILLISECONDS_PER_S * part, self._now_ns)


def in_turn(
    servers: Sequence[S], deadline: Deadline, *, first: int = 0, single_twice: bool = False
) -> Iterator[tuple[S, Deadline]]:
    """The servers to try one after the other and the time for each, as long as any is left.

    Args:
        servers: each is tried once; the last has all the time that is left then, the others half of it.
        deadline: of all attempts together.
        first: number of the server to begin with.
        single_twice: try one that has no others beside it again: its connection may have died unseen, which the first
            attempt finds out at once.
    """
    ordered = [*servers[first:], *servers[:first]]
    alone = len(ordered) == 1
    if alone and single_twice:
        ordered *= 2
    for position, server in enumerate(ordered, start=1):
        if deadline.remaining_s() <= 0:
            return
        yield server, deadline if alone or position == len(ordered) else deadline.share(SHARE_OF_ONE_SERVER)


def backoff_ms(attempt: int, *, cap_ms: float, chance: float) -> float:
    """Pause before reconnect number ``attempt`` (from 0): doubling, at most ``cap_ms``, at least half of that drawn.

    Args:
        attempt: how many attempts in a row have failed.
        cap_ms: the longest pause.
        chance: a random number from 0 to 1; it spreads the clients of a server that comes back.
    """
    # The exponent is bounded, because 2 ** 10_000 is no float.
    longest_ms = min(cap_ms, FIRST_BACKOFF_MS * 2.0 ** min(attempt, 32))
    return longest_ms * (0.5 + 0.5 * chance)

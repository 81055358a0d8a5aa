"""The loop of every watch that has a server: subscribe, and when that ends subscribe again, for ever.

One server after the other is tried, with a bounded backoff. What a subscription raises is logged and ends only that
subscription: without the thread of the watch no freeze would be heard of until the permit runs out.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

import structlog

from killswitch import clock
from killswitch.stores._saying import say
from killswitch.stores._timing import MILLISECONDS_PER_S, NANOSECONDS_PER_MS, backoff_ms

_log = structlog.get_logger(__name__)


def subscribe_for_ever(
    subscribe: Callable[[str], str],
    *,
    servers: Sequence[str],
    stop: threading.Event,
    prefix: str,
    backoff_cap_ms: float,
    now_ns: clock.NowNs,
    chance: Callable[[], float],
) -> None:
    """Run ``subscribe`` again and again until ``stop`` is set.

    Args:
        subscribe: watches through one server until that ends, and returns why it did.
        servers: tried in turn, at least one.
        stop: looked at after each subscription and during each pause.
        prefix: for the log.
        backoff_cap_ms: longest pause between two attempts.
        now_ns: clock that tells how long a subscription lasted.
        chance: random numbers from 0 to 1.
    """
    failures_in_a_row = 0
    for server in itertools.cycle(servers):
        started_ns = now_ns()
        try:
            why = subscribe(server)
        except Exception as error:  # everything: the next event may be the freeze, and it has to arrive
            say(_log.exception, "watch failed", prefix=prefix, address=server)
            why = f"a fault of ours: {error!r}"
        if stop.is_set():
            return
        lasted_ms = (now_ns() - started_ns) / NANOSECONDS_PER_MS
        # A server that accepts and drops at once must not be asked without end, so short lives count as failures.
        failures_in_a_row = 0 if lasted_ms > backoff_cap_ms else failures_in_a_row + 1
        pause_ms = backoff_ms(max(0, failures_in_a_row - 1), cap_ms=backoff_cap_ms, chance=chance())
        # Said once at the level that wakes people; a server that stays away does not fill the log.
        log = _log.warning if failures_in_a_row <= 1 else _log.debug
        say(log, "watch interrupted", prefix=prefix, address=server, why=why, reconnect_in_ms=round(pause_ms))
        if stop.wait(pause_ms / MILLISECONDS_PER_S):
            return

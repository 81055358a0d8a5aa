"""The loop of every watch: whatever ends a subscription, another one follows."""

from __future__ import annotations

import threading

from structlog.testing import capture_logs

from killswitch.clock import now_ns
from killswitch.stores._reconnecting import subscribe_for_ever


def run_through(*ends: str | Exception) -> tuple[list[str], list[str]]:
    """Let one subscription after the other end so; returns the servers asked and the events logged."""
    stop, asked, coming = threading.Event(), [], list(ends)

    def subscribe(server: str) -> str:
        asked.append(server)
        end = coming.pop(0)
        if not coming:
            stop.set()
        if isinstance(end, Exception):
            raise end
        return end

    with capture_logs() as logs:
        subscribe_for_ever(
            subscribe, servers=["a", "b"], stop=stop, prefix="/k", backoff_cap_ms=1, now_ns=now_ns, chance=lambda: 0.0
        )
    return asked, [f"{line['log_level']}: {line['event']}" for line in logs]


def test_a_fault_of_ours_ends_a_subscription_and_not_the_watch() -> None:
    """BOUNDED STOP by the watch: a fault is logged with its traceback, and the next server is asked."""
    asked, said = run_through(KeyError("a fault"), "gone", "closed")
    assert asked == ["a", "b", "a"]
    assert said[:2] == ["error: watch failed", "warning: watch interrupted"]


def test_a_server_that_stays_away_does_not_fill_the_log() -> None:
    """The first failure is a warning; what follows in a row is for whoever looks."""
    _, said = run_through("gone", "gone", "gone", "closed")
    assert said == ["warning: watch interrupted", *["debug: watch interrupted"] * 2]


def test_nothing_is_said_of_a_watch_that_was_closed() -> None:
    """A closed watch ends without a word, whatever its last subscription said."""
    assert run_through("closed") == (["a"], [])

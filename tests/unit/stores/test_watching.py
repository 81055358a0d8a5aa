"""The loop of every watch: whatever ends a subscription, another one follows."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
import structlog
from structlog.testing import capture_logs

from killswitch.clock import now_ns
from killswitch.stores import Entry
from killswitch.stores.etcd.store import EtcdStore
from killswitch.stores.memory import MemoryStore
from killswitch.stores.watching import subscribe_for_ever
from tests.support.waiting import wait_until


def run_through(*ends: str | Exception) -> tuple[list[str], list[str]]:
    """Let one subscription after the other end so; returns the servers asked and the events logged."""
    with capture_logs() as logs:
        asked = servers_asked(*ends)
    return asked, [f"{line['log_level']}: {line['event']}" for line in logs]


def servers_asked(*ends: str | Exception) -> list[str]:
    """Let one subscription after the other end so."""
    stop, asked, coming = threading.Event(), [], list(ends)

    def subscribe(server: str) -> str:
        asked.append(server)
        end = coming.pop(0)
        if not coming:
            stop.set()
        if isinstance(end, Exception):
            raise end
        return end

    subscribe_for_ever(
        subscribe, servers=["a", "b"], stop=stop, prefix="/k", backoff_cap_ms=1, now_ns=now_ns, chance=lambda: 0.0
    )
    return asked


@contextmanager
def a_log_on_a_full_disk() -> Iterator[list[str]]:
    """Nothing can be logged; gives the events that somebody tried to log."""
    tried: list[str] = []

    def fail(_: object, __: str, line: structlog.typing.EventDict) -> NoReturn:
        tried.append(line["event"])
        raise OSError(28, "No space left on device")

    # In place, as capture_logs does it, because loggers that were used before keep this very list.
    processors = structlog.get_config()["processors"]
    usual = processors.copy()
    processors[:] = [fail]
    structlog.configure(processors=processors)
    try:
        yield tried
    finally:
        processors[:] = usual
        structlog.configure(processors=processors)


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


def test_a_log_that_cannot_be_written_ends_no_watch() -> None:
    """BOUNDED STOP by the watch: a full disk under the log takes no next subscription away."""
    with a_log_on_a_full_disk() as tried:
        assert servers_asked("gone", KeyError("a fault"), "gone", "closed") == ["a", "b", "a", "b"]
    assert tried == ["watch interrupted", "watch failed", *["watch interrupted"] * 2]


def test_a_callback_that_fails_under_a_log_that_cannot_be_written_ends_no_watch(request: pytest.FixtureRequest) -> None:
    """BOUNDED STOP by the watch: the next event may be the freeze, and it arrives."""
    heard: list[Entry] = []

    def fail_first(entry: Entry) -> None:
        heard.append(entry)
        if len(heard) == 1:
            raise KeyError("a fault of the callback")

    with a_log_on_a_full_disk() as tried, MemoryStore(request.node.nodeid) as store:
        store.watch("", fail_first, lambda: None)
        store.commit({}, {"k": b"first"})
        wait_until(lambda: tried, what="the failure of the callback")
        store.commit({}, {"k": b"second"})
        wait_until(lambda: len(heard) == 2, what="the next change")
    assert heard[-1].value == b"second"


def test_a_silent_server_is_left_under_a_log_that_cannot_be_written() -> None:
    """BOUNDED STOP by the watch: silence that cannot be logged is still no health, again and again."""
    with socket.create_server(("127.0.0.1", 0)) as hanging, a_log_on_a_full_disk() as tried:
        address = f"127.0.0.1:{hanging.getsockname()[1]}"
        with EtcdStore([address], request_timeout_ms=5_000, backoff_cap_ms=5_000, progress_every_ms=20) as store:
            store.watch("/k", lambda _: None, lambda: None)
            wait_until(
                lambda: tried.count("watch silent") >= 2, what="the second connection being left for its silence"
            )

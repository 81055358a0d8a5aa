"""What the store on ZooKeeper refuses before it connects, and the arithmetic of its leases."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.clock import now_ns
from killswitch.stores import StoreForbidden, StoreUnavailable, open_store
from killswitch.stores.timing import Deadline
from killswitch.stores.urls import TlsFiles
from killswitch.stores.zookeeper.commit import TRANSACTION_MAX_BYTES, Commit
from killswitch.stores.zookeeper.connection import Connection, ConnectionSettings, Reply
from killswitch.stores.zookeeper.dial import command, reason
from killswitch.stores.zookeeper.lease import LATE_BY_TICKS, LEASE_SLACK_MS, check_granted
from killswitch.stores.zookeeper.store import GUARANTEES, ZooKeeperStore

DEFAULT_TICK_MS = 2_000


@pytest.mark.parametrize("path", ["//a", "/a//b", "/./a", "/a/..", "/zookeeper", "/a%20b/%00", "/%C3%A9"])
def test_a_chroot_that_zookeeper_has_not_is_refused(path: str) -> None:
    """With a sentence, when the store is opened."""
    with pytest.raises(ValueError, match="is no path of a ZooKeeper node; write /NAME"):
        open_store(f"zookeeper://127.0.0.1:2181{path}")


def test_a_user_name_that_would_be_another_is_refused() -> None:
    """ZooKeeper ends the user's name at the first colon."""
    with pytest.raises(ValueError, match="has no ':'") as caught:
        open_store("zookeeper://a%3Ab:secret@127.0.0.1:2181")
    assert "secret" not in str(caught.value)


def test_an_authority_that_is_none_is_refused(tmp_path: Path) -> None:
    """Before anybody relies on it."""
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("nonsense")
    with pytest.raises(ValueError, match=f"ca_file {nonsense} cannot be used"):
        open_store(f"zookeeper+tls://127.0.0.1:2281?ca_file={nonsense}")


def test_a_file_that_is_gone_is_told_as_it_is_written(tmp_path: Path) -> None:
    """A path in small letters is another one."""
    files = TlsFiles(ca_file=tmp_path / "CA-Prod" / "Root.PEM")
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match="cannot be read") as caught:
            command(where, "srvr", files, Deadline(5_000, now_ns))
    assert f"ca_file {files.ca_file} cannot be read" in reason(caught.value)


def test_opening_sends_nothing_and_closing_needs_no_server() -> None:
    """And a closed store says so, whatever is asked of it."""
    store = open_store("zookeeper://127.0.0.1:1/chroot")
    assert isinstance(store, ZooKeeperStore)
    assert store.address == "zookeeper://127.0.0.1:1/chroot"
    store.close()
    with pytest.raises(StoreUnavailable, match="has been closed"):
        store.read("/k")


def test_a_name_that_nobody_knows_is_unavailable_and_says_why() -> None:
    """Rather than that no answer came."""
    with (
        open_store("zookeeper://no.such.host.invalid:2181", request_timeout_ms=5_000) as store,
        pytest.raises(StoreUnavailable, match="its name is not known here"),
    ):
        store.read("/k")


@given(
    ttl_ms=st.integers(1, 60_000),
    tick_ms=st.integers(100, 10_000),
    asked_more=st.booleans(),
)
def test_a_lease_that_is_granted_goes_within_its_slack(ttl_ms: int, tick_ms: int, asked_more: bool) -> None:
    """The server ends it at most one and a half ticks late, and never before its time."""
    shortest_ms, longest_ms = 2 * tick_ms, 20 * tick_ms
    granted_ms = min(max(ttl_ms, shortest_ms), longest_ms)
    if granted_ms == ttl_ms and tick_ms > DEFAULT_TICK_MS:
        return  # such a tick cannot be seen from here; the note of the guarantees says so
    try:
        check_granted("h", granted_ms, ttl_ms)
    except StoreForbidden:
        late_ms = granted_ms + LATE_BY_TICKS * tick_ms - ttl_ms
        assert granted_ms < ttl_ms or late_ms > LEASE_SLACK_MS
        return
    assert granted_ms >= ttl_ms
    assert granted_ms + LATE_BY_TICKS * tick_ms <= ttl_ms + LEASE_SLACK_MS


def test_a_default_server_refuses_leases_below_its_shortest_session() -> None:
    """4,000 ms it grants, 3,999 ms it would end too late."""
    assert GUARANTEES.lease_slack_ms == LEASE_SLACK_MS
    check_granted("h", 4_000, 4_000)
    with pytest.raises(StoreForbidden, match="no session shorter than 4000 ms, and 3999 ms were asked for"):
        check_granted("h", 4_000, 3_999)
    with pytest.raises(StoreForbidden, match=r"no session longer than 40000 ms.*raise its maxSessionTimeout"):
        check_granted("h", 40_000, 40_001)


def test_a_commit_is_measured_with_its_paths() -> None:
    """Many small keys are as large as few large ones."""
    Commit({}, {"/k": b"x" * (TRANSACTION_MAX_BYTES - 1_000)}).check_size("h")
    with pytest.raises(StoreForbidden, match="at most 1000000 bytes in one commit"):
        Commit({}, {f"/{'k' * 900}{number}": b"" for number in range(1_000)}).check_size("h")


def test_a_connection_that_another_thread_has_just_closed_can_be_given_up() -> None:
    """Its own thread may take a while to end; a call that fails meanwhile is unavailable, and no bare OSError."""
    connection = Connection("127.0.0.1:1", ConnectionSettings(), timeout_ms=1_000)
    may_end = threading.Event()

    def take_a_while() -> None:
        may_end.wait(30.0)

    connection.run(take_a_while)
    # As if a server had answered, so that closing is more than giving up.
    connection._hello = Reply(connection.client.handler)
    connection.close()
    connection.abandon()
    connection.end_soon()
    may_end.set()
    connection.join()

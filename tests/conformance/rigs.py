"""The stores under test, and what a test may do to their servers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import uuid
from pathlib import Path
from typing import Any, Protocol

from testcontainers.core.container import DockerContainer

from killswitch.stores import Entry, Store, StoreError, open_store
from killswitch.stores.embedded import EmbeddedStore
from killswitch.stores.etcd import EtcdStore
from tests.waiting import wait_until

# Tests of meaning get time, because a busy machine is no fault; tests of time-outs ask for short ones.
PATIENT_MS = 10_000
BACKOFF_CAP_MS = 300
SERVES_AGAIN_WITHIN_S = 30.0


class Rig(Protocol):
    """One kind of store, with as many independent clients of the same data as a test likes."""

    kind: str

    def open(self) -> Store:
        """A new client."""

    def close(self) -> None:
        """End the server."""


class ServerRig(Rig, Protocol):
    """A store with a server that can be made to suffer. All of these return when it has happened."""

    @property
    def server(self) -> str:
        """Its ``host:port``."""

    def pause(self) -> None:
        """It hangs: connections stay, nothing is answered."""

    def resume(self) -> None:
        """It goes on. No error when it was not paused."""

    def kill(self) -> None:
        """It dies by SIGKILL, and comes back with :meth:`revive` at the latest."""

    def revive(self) -> None:
        """It is started again where nobody does that by itself."""


class MemoryRig:
    """Stores of one name."""

    kind = "memory"

    def __init__(self) -> None:
        self._name = uuid.uuid4().hex

    def open(self) -> Store:
        return open_store(f"memory://{self._name}")

    def close(self) -> None:
        return


class EmbeddedRig:
    """An owner that this rig keeps, and clients that attach to its directory."""

    kind = "embedded"

    def __init__(self, directory: Path) -> None:
        self._owner = EmbeddedStore(directory, request_timeout_ms=PATIENT_MS)
        self._url = f"embedded://{directory}"
        self._paused_pid: int | None = None

    @property
    def server(self) -> str:
        return self._owner.client_url.removeprefix("etcd://")

    def open(self) -> Store:
        return open_store(self._url, request_timeout_ms=PATIENT_MS, backoff_cap_ms=BACKOFF_CAP_MS)

    def pause(self) -> None:
        self._paused_pid = self._owner.etcd_pid
        os.kill(self._paused_pid, signal.SIGSTOP)
        stopped_state = f"/proc/{self._paused_pid}/stat"
        wait_until(lambda: ") T " in Path(stopped_state).read_text(encoding="utf-8"), what="etcd being stopped")

    def resume(self) -> None:
        if self._paused_pid is not None:
            os.kill(self._paused_pid, signal.SIGCONT)
        self._paused_pid = None

    def kill(self) -> None:
        pid = self._owner.etcd_pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self._owner.etcd_pid != pid, what="another etcd in place of the killed one")

    def revive(self) -> None:
        return

    def close(self) -> None:
        self._owner.close()


class ContainerRig:
    """etcd in a container, on a port of the host that it keeps when it is started again."""

    kind = "etcd"

    def __init__(self, image: str) -> None:
        self._port = free_port()
        client = "http://0.0.0.0:2379"
        self._container = (
            DockerContainer(image)
            .with_bind_ports(2379, self._port)
            .with_command(
                f"etcd --data-dir=/tmp/etcd-test --listen-client-urls={client} --advertise-client-urls={client}"
            )
        )
        self._container.start()
        try:
            wait_until_serving(self.server)
        except BaseException:
            self.close()
            raise

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self._port}"

    def open(self) -> Store:
        return open_store(f"etcd://{self.server}", request_timeout_ms=PATIENT_MS, backoff_cap_ms=BACKOFF_CAP_MS)

    def pause(self) -> None:
        self._docker.pause()
        wait_until(lambda: self._state() == "paused", what="the container being paused")

    def resume(self) -> None:
        if self._state() == "paused":
            self._docker.unpause()

    def kill(self) -> None:
        self._docker.kill()
        wait_until(lambda: self._state() == "exited", what="the container having ended")

    def revive(self) -> None:
        if self._state() == "exited":
            self._docker.start()

    def close(self) -> None:
        self.resume()
        self._container.stop()

    @property
    def _docker(self) -> Any:
        return self._container.get_wrapped_container()

    def _state(self) -> str:
        self._docker.reload()
        return str(self._docker.status)


class UrlRig:
    """A server that runs already and is not ours to harm."""

    kind = "etcd by URL"

    def __init__(self, url: str) -> None:
        self._url = url
        self.server = url.removeprefix("etcd://")

    def open(self) -> Store:
        return open_store(self._url, request_timeout_ms=PATIENT_MS, backoff_cap_ms=BACKOFF_CAP_MS)

    def close(self) -> None:
        return


def open_impatient(*servers: str, request_timeout_ms: int = 400, progress_every_ms: int = 100) -> EtcdStore:
    """A client with short time-outs, for tests of what happens when they pass."""
    return EtcdStore(
        servers,
        request_timeout_ms=request_timeout_ms,
        backoff_cap_ms=BACKOFF_CAP_MS,
        progress_every_ms=progress_every_ms,
    )


def wait_until_serving(server: str) -> None:
    """Wait until a fresh client gets a read through."""

    def serves() -> bool:
        with EtcdStore([server], request_timeout_ms=1_000) as store, contextlib.suppress(StoreError):
            store.read("serving?")
            return True
        return False

    wait_until(serves, within_s=SERVES_AGAIN_WITHIN_S, what=f"etcd at {server} serving")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connections_to(server: str) -> int:
    """How many established TCP connections of this process lead to ``server``."""
    port = int(server.rpartition(":")[2])
    established, remote_column, state_column, inode_column = "01", 2, 3, 9
    ours: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(str(descriptor.readlink()))
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            columns = line.split()
            if columns[state_column] == established and f"socket:[{columns[inode_column]}]" in ours:
                count += int(columns[remote_column].rpartition(":")[2], 16) == port
    return count


class Observer:
    """Keeps what a watch says, for the test to look at. Thread-safe.

    Attributes:
        said: everything in order; ``None`` stands for ``on_gap``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.said: list[Entry | None] = []
        self.threads: set[int] = set()

    def on_change(self, entry: Entry) -> None:
        self._keep(entry)

    def on_gap(self) -> None:
        self._keep(None)

    def _keep(self, said: Entry | None) -> None:
        with self._lock:
            self.said.append(said)
            self.threads.add(threading.get_ident())

    @property
    def gaps(self) -> int:
        with self._lock:
            return self.said.count(None)

    @property
    def changes(self) -> list[Entry]:
        with self._lock:
            return [entry for entry in self.said if entry is not None]

    def newest(self, key: str) -> Entry | None:
        """The last thing said about ``key``."""
        return next((entry for entry in reversed(self.changes) if entry.key == key), None)

    def wait_for_gap(self, *, after: int = 0, within_s: float = 20.0) -> None:
        """Wait until ``on_gap`` has been called more than ``after`` times."""
        wait_until(lambda: self.gaps > after, within_s=within_s, what=f"gap number {after + 1}")

    def wait_for(self, key: str, value: bytes | None, *, within_s: float = 20.0) -> Entry:
        """Wait until the newest that was said about ``key`` is ``value``."""

        def arrived() -> Entry | None:
            entry = self.newest(key)
            return entry if entry is not None and entry.value == value else None

        entry = wait_until(arrived, within_s=within_s, what=f"the watch saying that {key} is {value!r}")
        assert entry is not None
        return entry

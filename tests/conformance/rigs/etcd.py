"""etcd: embedded, in a container, or one that runs already."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from testcontainers.core.container import DockerContainer

from killswitch.stores import Store, open_store
from killswitch.stores.etcd.embedded import EmbeddedStore
from killswitch.stores.etcd.store import EtcdStore
from tests.conformance.rigs.base import (
    BACKOFF_CAP_MS,
    PATIENT_BACKOFF_CAP_MS,
    PATIENT_MS,
    ContainerServer,
    owned_by_us,
    wait_until_serving,
)
from tests.conformance.rigs.in_memory import data_directory
from tests.conformance.rigs.network import free_port
from tests.support.waiting import wait_until

DATA_DIRECTORY = "/tmp/etcd-test"


def open_impatient_etcd(*servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> EtcdStore:
    """A client with short time-outs; as :meth:`ServerRig.open_impatient`."""
    return EtcdStore(
        servers,
        request_timeout_ms=request_timeout_ms,
        backoff_cap_ms=BACKOFF_CAP_MS,
        progress_every_ms=alive_every_ms,
    )


class EmbeddedRig:
    """An owner that this rig keeps, and clients that attach to its directory.

    Args:
        directory: for its data where it cannot be kept in memory.
    """

    kind = "embedded"

    def __init__(self, directory: Path) -> None:
        self._data = data_directory()
        if self._data is not None:
            directory = Path(self._data.name) / "embedded"
        self._owner = EmbeddedStore(directory, request_timeout_ms=PATIENT_MS)
        self._url = f"embedded://{directory}"
        self._paused_pid: int | None = None

    @property
    def server(self) -> str:
        return self._owner.client_url.removeprefix("etcd://")

    def open(self) -> Store:
        return open_store(self._url, request_timeout_ms=PATIENT_MS, backoff_cap_ms=PATIENT_BACKOFF_CAP_MS)

    def open_impatient(self, *servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> Store:
        return open_impatient_etcd(
            *(servers or (self.server,)), request_timeout_ms=request_timeout_ms, alive_every_ms=alive_every_ms
        )

    def wait_until_serving(self) -> None:
        wait_until_serving(lambda: EtcdStore([self.server], request_timeout_ms=1_000), f"etcd at {self.server}")

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
        if self._data is not None:
            self._data.cleanup()


class EtcdContainerRig(ContainerServer):
    """etcd in a container."""

    kind = "etcd"

    def __init__(self, image: str) -> None:
        self._port = free_port()
        client = "http://0.0.0.0:2379"
        super().__init__(
            DockerContainer(image)
            .with_bind_ports(2379, self._port)
            .with_kwargs(**owned_by_us())
            .with_command(
                f"etcd --data-dir={DATA_DIRECTORY} --listen-client-urls={client} --advertise-client-urls={client}"
            ),
            data=DATA_DIRECTORY,
        )
        try:
            self.wait_until_serving()
        except BaseException:
            self.close()
            raise

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self._port}"

    def open(self) -> Store:
        return open_store(f"etcd://{self.server}", request_timeout_ms=PATIENT_MS, backoff_cap_ms=PATIENT_BACKOFF_CAP_MS)

    def open_impatient(self, *servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> Store:
        return open_impatient_etcd(
            *(servers or (self.server,)), request_timeout_ms=request_timeout_ms, alive_every_ms=alive_every_ms
        )

    def wait_until_serving(self) -> None:
        wait_until_serving(lambda: EtcdStore([self.server], request_timeout_ms=1_000), f"etcd at {self.server}")


class EtcdUrlRig:
    """A server that runs already and is not ours to harm."""

    kind = "etcd by URL"

    def __init__(self, url: str) -> None:
        self._url = url
        self.server = url.removeprefix("etcd://")

    def open(self) -> Store:
        return open_store(self._url, request_timeout_ms=PATIENT_MS, backoff_cap_ms=PATIENT_BACKOFF_CAP_MS)

    def open_impatient(self, *servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> Store:
        return open_impatient_etcd(
            *(servers or (self.server,)), request_timeout_ms=request_timeout_ms, alive_every_ms=alive_every_ms
        )

    def wait_until_serving(self) -> None:
        wait_until_serving(lambda: EtcdStore([self.server], request_timeout_ms=1_000), f"etcd at {self.server}")

    def close(self) -> None:
        return

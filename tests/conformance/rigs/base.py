"""What a test may ask of a store under test and of its server, whichever it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Protocol

from testcontainers.core.container import DockerContainer

from killswitch.stores import Store, StoreError
from tests.conformance.rigs.in_memory import data_directory
from tests.support.waiting import wait_until

# Tests of meaning get time, because a busy machine is no fault; tests of time-outs ask for short ones.
PATIENT_MS = 20_000
# An attempt to connect to etcd lasts no longer than this, and on a machine that does twenty things at once 300 ms may
# never be enough.
PATIENT_BACKOFF_CAP_MS = 1_000
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

    def open_impatient(self, *servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> Store:
        """A client with short time-outs, for tests of what happens when they pass.

        Args:
            servers: ``host:port`` of each; the rig's own server when none is named.
            request_timeout_ms: time of a call.
            alive_every_ms: how often a watch asks for a sign of life.
        """

    def wait_until_serving(self) -> None:
        """Wait until a fresh client gets a read through."""

    def pause(self) -> None:
        """It hangs: connections stay, nothing is answered."""

    def resume(self) -> None:
        """It goes on. No error when it was not paused."""

    def kill(self) -> None:
        """It dies by SIGKILL, and comes back with :meth:`revive` at the latest."""

    def revive(self) -> None:
        """It is started again where nobody does that by itself."""


class ContainerServer:
    """A server in a container, on a port of the host that it keeps when it is started again.

    Args:
        container: not yet started.
        data: where the server keeps what it does not forget when it is killed; ``None`` when it keeps nothing.
    """

    def __init__(self, container: DockerContainer, *, data: str | None = None) -> None:
        self._data = data_directory() if data is not None else None
        if data is not None and self._data is not None:
            container = container.with_volume_mapping(self._data.name, data, "rw")
        self._container = container
        try:
            self._container.start()
        except BaseException:
            self._remove_data()
            raise

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
        self._remove_data()

    def exec(self, *words: str) -> str:
        """Run a command in the container and return what it printed; it must succeed."""
        code, output = self._docker.exec_run(list(words))
        text = output.decode(errors="replace")
        assert code == 0, f"{words}: exit {code}: {text}"
        return str(text)

    def logs(self) -> str:
        """What the server has said so far."""
        return str(self._docker.logs().decode(errors="replace"))

    def _remove_data(self) -> None:
        if self._data is not None:
            self._data.cleanup()

    @property
    def _docker(self) -> Any:
        return self._container.get_wrapped_container()

    def _state(self) -> str:
        self._docker.reload()
        return str(self._docker.status)


def owned_by_us() -> dict[str, str]:
    """What has a container run as the user of the tests, who then can remove what it leaves."""
    return {"user": f"{os.getuid()}:{os.getgid()}"}


def wait_until_serving(open_client: Callable[[], Store], what: str) -> None:
    """Wait until a fresh client gets a read through."""

    def serves() -> bool:
        with open_client() as store, contextlib.suppress(StoreError):
            store.read("serving?")
            return True
        return False

    wait_until(serves, within_s=SERVES_AGAIN_WITHIN_S, what=f"{what} serving")

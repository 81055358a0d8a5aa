"""One ZooKeeper, whose data is in its pod's shared memory."""

from __future__ import annotations

import contextlib

from killswitch.stores import StoreError, open_store
from tests.conformance.rigs.zookeeper import SETTINGS, start_command
from tests.containers.pods import DidNotTakeHold, Engine
from tests.support.waiting import wait_until

PORT = 2181
DATA = "/dev/shm/zookeeper"
SERVES_WITHIN_S = 60.0


class ZooKeeperServer:
    """The store of a lab."""

    kind = "zookeeper"

    def __init__(self, engine: Engine, image: str) -> None:
        self._pod = engine.pod("zookeeper1", ["control"])
        settings = [line for line in SETTINGS if not line.startswith("dataDir")]
        words = start_command([*settings, f"clientPort={PORT}", f"dataDir={DATA}"])
        self._server = self._pod.start("zookeeper", words, image=image, user="root")
        self._host = self._pod.ip("control")
        self._wait_until_serving()

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Where clients connect to."""
        return [(self._host, PORT)]

    def url(self, ports: list[tuple[str, int]] | None = None) -> str:
        """The store's URL, by way of another address where one is given."""
        host, port = (ports or self.ports)[0]
        return f"zookeeper://{host}:{port}/killswitch-lab"

    def heal(self) -> None:
        """Let it run and go on."""
        self._server.resume()
        self._server.start()
        self._wait_until_serving()

    def lose_data(self) -> None:
        """Start it on an empty disk."""
        self._server.resume()
        self._server.kill()
        self._pod.exec("rm", "-rf", DATA, user="root")
        if self._pod.exec("sh", "-c", f"ls {DATA} 2>/dev/null || true", user="root"):
            raise DidNotTakeHold("ZooKeeper still has its data")
        self._server.start()
        self._wait_until_serving()

    def _wait_until_serving(self) -> None:
        # It accepts connections before it serves.
        wait_until(self._answers, within_s=SERVES_WITHIN_S, what="ZooKeeper to answer")

    def _answers(self) -> bool:
        with contextlib.suppress(StoreError), open_store(self.url(), request_timeout_ms=2_000) as store:
            store.read("/served")
            return True
        return False

"""ZooKeeper with three members, each of which can be made to suffer."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

import docker

from killswitch.stores import StoreError
from killswitch.stores.zookeeper.store import ZooKeeperStore
from tests.conformance.rigs.base import SERVES_AGAIN_WITHIN_S
from tests.conformance.rigs.zookeeper import PLAIN_PORT, SERVES_WITHIN_MS, ZooKeeperServer, open_zookeeper
from tests.support.waiting import wait_until

MEMBERS = 3
# In ticks. A leader that has not heard of a majority for SYNC_TICKS steps down.
INIT_TICKS = 20
SYNC_TICKS = 4


class ZooKeeperEnsemble:
    """Three members that talk to each other over a network of their own, so that it can be cut and they stay in reach.

    Args:
        image: of ZooKeeper.
    """

    kind = "zookeeper with three members"

    def __init__(self, image: str) -> None:
        self._docker = docker.from_env()
        label = f"killswitch-zookeeper-{uuid.uuid4().hex[:8]}"
        # Internal: without a gateway, so the published ports stay with the default network when this one is cut.
        self._network: Any = self._docker.networks.create(label, internal=True)
        self.members: list[ZooKeeperServer] = []
        self._names = [f"{label}-{number}" for number in range(1, MEMBERS + 1)]
        self._cut_off: set[int] = set()
        peers = [f"server.{number}={name}:2888:3888" for number, name in enumerate(self._names, start=1)]
        try:
            for number, name in enumerate(self._names, start=1):
                member = ZooKeeperServer(
                    image,
                    PLAIN_PORT,
                    f"initLimit={INIT_TICKS}",
                    f"syncLimit={SYNC_TICKS}",
                    # The name leads to the address in the network that may be cut, and that comes after the start.
                    "quorumListenOnAllIPs=true",
                    *peers,
                    number=number,
                    name=name,
                )
                self.members.append(member)
                self._network.connect(name, aliases=[name])
            self.wait_until_whole()
        except BaseException:
            self.close()
            raise

    @property
    def servers(self) -> list[str]:
        """``host:port`` of each member."""
        return [member.server for member in self.members]

    def servers_from(self, first: int) -> list[str]:
        """The same, beginning with one of them."""
        return [*self.servers[first:], *self.servers[:first]]

    def open(self, *servers: str, request_timeout_ms: int = 2_000, alive_every_ms: int = 500) -> ZooKeeperStore:
        """A client of these members, or of all."""
        return open_zookeeper(
            *(servers or self.servers), request_timeout_ms=request_timeout_ms, alive_every_ms=alive_every_ms
        )

    def mode(self, number: int) -> str:
        """``leader``, ``follower``, or what else a member says; empty when it serves nobody."""
        with open_zookeeper(self.servers[number], request_timeout_ms=SERVES_WITHIN_MS) as store:
            return store.server_settings().get("mode", "")

    def leader(self) -> int:
        """Which member leads; waits for that."""

        def leading() -> list[int]:
            return [number for number in range(MEMBERS) if self.mode(number) == "leader"]

        return wait_until(leading, within_s=SERVES_AGAIN_WITHIN_S, what="a leader")[0]

    def cut_off(self, number: int) -> None:
        """Take a member from the others; clients still reach it."""
        self._network.disconnect(self.members[number].container_id)
        self._cut_off.add(number)

    def mend(self, number: int) -> None:
        """The opposite. No error when it was not cut off."""
        if number in self._cut_off:
            self._network.connect(self.members[number].container_id, aliases=[self._names[number]])
            self._cut_off.discard(number)

    def heal(self) -> None:
        """Undo whatever was done, and wait until all serve."""
        for number, member in enumerate(self.members):
            member.resume()
            member.revive()
            self.mend(number)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until each member answers a linearizable read by itself."""
        for number in range(MEMBERS):
            wait_until(
                lambda number=number: self.reads(number),  # type: ignore[misc]
                within_s=2 * SERVES_AGAIN_WITHIN_S,
                what=f"member {number} serving",
            )

    def reads(self, number: int) -> bool:
        """Whether a member answers a read."""
        with (
            open_zookeeper(self.servers[number], request_timeout_ms=SERVES_WITHIN_MS) as store,
            contextlib.suppress(StoreError),
        ):
            store.read("serving?")
            return True
        return False

    def close(self) -> None:
        """Remove the members and their network."""
        for member in self.members:
            member.close()
        self._network.remove()
        self._docker.close()

"""etcd with three members, each of which can be made to suffer, and one member with little room for its data."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import grpc
from pyetcd import etcdrpc
from testcontainers.core.container import DockerContainer

from killswitch.stores.etcd.store import EtcdStore
from tests.conformance.rigs.base import SERVES_AGAIN_WITHIN_S, ContainerServer, owned_by_us
from tests.conformance.rigs.etcd import DATA_DIRECTORY, open_impatient_etcd
from tests.conformance.rigs.network import free_port
from tests.support.waiting import wait_until

MEMBERS = 3
HEARTBEAT_MS = 50
ELECTION_TIMEOUT_MS = 500
ANSWERS_WITHIN_S = 1.0
ALIVE_EVERY_MS = 500


@contextlib.contextmanager
def open_plain_channel(server: str) -> Iterator[Any]:
    """A channel that is not the product's, to look at a server from aside."""
    channel = grpc.insecure_channel(server, options=[("grpc.use_local_subchannel_pool", 1)])
    try:
        yield channel
    finally:
        channel.close()


class EtcdMember(ContainerServer):
    """One etcd in a container, on a port of the host that it keeps.

    Args:
        image: of etcd.
        flags: of etcd, besides where it serves clients and keeps its data.
        name: of the container and the member.
        scheme: ``http`` or ``https``.
        mount: a directory that the container sees, read-only, as ``/mounted``.
    """

    def __init__(
        self, image: str, *flags: str, name: str = "alone", scheme: str = "http", mount: Path | None = None
    ) -> None:
        self.name = name
        self._port = free_port()
        container = DockerContainer(image).with_bind_ports(2379, self._port).with_kwargs(**owned_by_us())
        if name != "alone":
            container = container.with_name(name)
        if mount is not None:
            container = container.with_volume_mapping(str(mount), "/mounted", "ro")
        command = [
            "etcd",
            f"--name={name}",
            f"--data-dir={DATA_DIRECTORY}",
            f"--listen-client-urls={scheme}://0.0.0.0:2379",
            f"--advertise-client-urls={scheme}://{name}:2379",
            *flags,
        ]
        super().__init__(container.with_command(command), data=DATA_DIRECTORY)

    @property
    def server(self) -> str:
        """Its ``host:port``."""
        return f"127.0.0.1:{self._port}"

    @property
    def container_id(self) -> str:
        """Docker's name of it."""
        return str(self._docker.id)


class EtcdCluster:
    """Three members that talk to each other over a network of their own, so that it can be cut and they stay in reach.

    Args:
        image: of etcd.
    """

    kind = "etcd with three members"

    def __init__(self, image: str) -> None:
        self._docker = docker.from_env()
        label = f"killswitch-etcd-{uuid.uuid4().hex[:8]}"
        # Internal: without a gateway, so the published ports stay with the default network when this one is cut.
        self._network: Any = self._docker.networks.create(label, internal=True)
        self._cut_off: set[int] = set()
        self.members: list[EtcdMember] = []
        names = [f"{label}-{number}" for number in range(MEMBERS)]
        try:
            for name in names:
                self.members.append(
                    EtcdMember(
                        image,
                        "--listen-peer-urls=http://0.0.0.0:2380",
                        f"--initial-advertise-peer-urls=http://{name}:2380",
                        f"--initial-cluster={','.join(f'{one}=http://{one}:2380' for one in names)}",
                        f"--heartbeat-interval={HEARTBEAT_MS}",
                        f"--election-timeout={ELECTION_TIMEOUT_MS}",
                        name=name,
                    )
                )
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

    def open(self, *servers: str, request_timeout_ms: int = 2_000) -> EtcdStore:
        """A client of these members, or of all."""
        return open_impatient_etcd(
            *(servers or self.servers), request_timeout_ms=request_timeout_ms, alive_every_ms=ALIVE_EVERY_MS
        )

    def status(self, number: int) -> Any:
        """What a member says of itself, ``None`` when it says nothing."""
        with open_plain_channel(self.members[number].server) as channel, contextlib.suppress(grpc.RpcError):
            return etcdrpc.MaintenanceStub(channel).Status(etcdrpc.StatusRequest(), timeout=ANSWERS_WITHIN_S)
        return None

    def leader(self) -> int:
        """Which member leads, as at least two of them see it; waits for that."""

        def agreed() -> list[int]:
            said = [self.status(number) for number in range(MEMBERS)]
            seen = [status.leader for status in said if status is not None and status.leader]
            return [
                number
                for number, status in enumerate(said)
                if status is not None and seen.count(status.header.member_id) >= MEMBERS - 1
            ]

        return wait_until(agreed, within_s=SERVES_AGAIN_WITHIN_S, what="a leader that two members see")[0]

    def follower(self) -> int:
        """A member that does not lead."""
        return (self.leader() + 1) % MEMBERS

    def cut_off(self, number: int) -> None:
        """Take a member from the others, and return when it knows; clients still reach it."""
        self._network.disconnect(self.members[number].container_id)
        self._cut_off.add(number)
        wait_until(
            lambda: self._sees_no_leader(number), within_s=SERVES_AGAIN_WITHIN_S, what="a member without a leader"
        )

    def mend(self, number: int) -> None:
        """The opposite. No error when it was not cut off."""
        if number in self._cut_off:
            self._network.connect(self.members[number].container_id, aliases=[self.members[number].name])
            self._cut_off.discard(number)

    def heal(self) -> None:
        """Undo whatever was done, and wait until all serve."""
        for number, member in enumerate(self.members):
            member.resume()
            member.revive()
            self.mend(number)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Wait until each member answers a linearizable read by itself, and all see the same leader."""
        for number in range(MEMBERS):
            wait_until(
                lambda number=number: self._reads(number),  # type: ignore[misc]
                within_s=SERVES_AGAIN_WITHIN_S,
                what=f"member {number} serving",
            )
        self.leader()

    def close(self) -> None:
        """Remove the members and their network."""
        for member in self.members:
            member.close()
        self._network.remove()
        self._docker.close()

    def _sees_no_leader(self, number: int) -> bool:
        status = self.status(number)
        return status is not None and not status.leader

    def _reads(self, number: int) -> bool:
        with open_plain_channel(self.members[number].server) as channel, contextlib.suppress(grpc.RpcError):
            etcdrpc.KVStub(channel).Range(etcdrpc.RangeRequest(key=b"serving?"), timeout=ANSWERS_WITHIN_S)
            return True
        return False

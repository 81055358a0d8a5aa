"""Two stores at once, as docs/operations.md tells of them: etcd with three members, and one Redis."""

from __future__ import annotations

from tests.containers.etcd_servers import EtcdServers
from tests.containers.pods import Engine
from tests.containers.redis_servers import RedisServer


class TwoStores:
    """The stores of a lab; etcd is the first in everybody's list.

    Args:
        engine: where they run.
        etcd_image: of etcd.
        redis_image: of Redis.
    """

    kind = "etcd and redis"

    def __init__(self, engine: Engine, etcd_image: str, redis_image: str) -> None:
        self.etcd = EtcdServers(engine, etcd_image)
        self.redis = RedisServer(engine, redis_image)

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Where clients connect to."""
        return [*self.etcd.ports, *self.redis.ports]

    def url(self, ports: list[tuple[str, int]] | None = None) -> str:
        """Both URLs, as ``KILLSWITCH_STORE`` names them; by way of other addresses where some are given."""
        etcd, redis = (None, None) if ports is None else (ports[:-1], ports[-1:])
        return f"{self.etcd.url(etcd)} {self.redis.url(redis)}"

    def heal(self) -> None:
        """Let every server run and go on."""
        self.etcd.heal()
        self.redis.heal()

    def lose_data(self) -> None:
        """Empty Redis; etcd keeps what it has."""
        self.redis.lose_data()

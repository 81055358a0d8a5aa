"""Redis: in a container, or one that runs already."""

from __future__ import annotations

from urllib.parse import urlsplit

from testcontainers.core.container import DockerContainer

from killswitch.stores import Store, open_store
from killswitch.stores.redis.store import RedisStore
from killswitch.stores.urls import parse_store_url
from tests.conformance.rigs.base import BACKOFF_CAP_MS, PATIENT_MS, ContainerServer, owned_by_us, wait_until_serving
from tests.conformance.rigs.network import free_port
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, require_docker

SERVES_WITHIN_MS = 1_000
DATA_DIRECTORY = "/tmp/redis-test"
# As docs/decisions/0014-redis.md lists them.
MINIMAL_RIGHTS = [
    "resetchannels", "resetkeys", "nocommands", "~killswitch:*", "&killswitch:*",
    "+eval", "+evalsha", "+role", "+subscribe", "+ping", "+publish", "+time",
    "+del", "+hget", "+hset", "+hdel", "+hincrby", "+pexpire", "+persist", "+pttl",
    "+zadd", "+zcard", "+zpopmin", "+zrangebylex", "+zrangebyscore", "+zrem", "+zscore",
]  # fmt: skip


def image_of_redis() -> str:
    """The image to run; skips where there is no Docker."""
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        return choose_image(client, "redis")
    finally:
        client.close()


def open_impatient_redis(url: str, *, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> RedisStore:
    """A client with short time-outs; as :meth:`ServerRig.open_impatient`."""
    return RedisStore(
        parse_store_url(url),
        request_timeout_ms=request_timeout_ms,
        backoff_cap_ms=BACKOFF_CAP_MS,
        look_every_ms=alive_every_ms,
    )


class RedisContainerRig(ContainerServer):
    """Redis in a container."""

    kind = "redis"

    def __init__(self, image: str) -> None:
        self._port = free_port()
        super().__init__(
            DockerContainer(image)
            .with_bind_ports(6379, self._port)
            .with_kwargs(**owned_by_us())
            .with_command(
                "redis-server --port 6379 --appendonly yes --appendfsync always --save '' --protected-mode no "
                f"--daemonize no --dir {DATA_DIRECTORY}"
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
        return open_store(f"redis://{self.server}", request_timeout_ms=PATIENT_MS, backoff_cap_ms=BACKOFF_CAP_MS)

    def open_impatient(self, *servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> Store:
        (server,) = servers or (self.server,)
        return open_impatient_redis(
            f"redis://{server}", request_timeout_ms=request_timeout_ms, alive_every_ms=alive_every_ms
        )

    def open_with(self, *, path: str = "", login: str = "", options: str = "") -> RedisStore:
        """A patient client by a URL with more in it."""
        url = f"redis://{login}{self.server}{path}{options}"
        return open_impatient_redis(url, request_timeout_ms=PATIENT_MS, alive_every_ms=500)

    def wait_until_serving(self) -> None:
        _wait_until_serving(f"redis://{self.server}")


class RedisUrlRig:
    """A server that runs already and is not ours to harm."""

    kind = "redis by URL"

    def __init__(self, url: str) -> None:
        self._url = url
        (self.server,) = parse_store_url(url).servers

    def open(self) -> Store:
        return open_store(self._url, request_timeout_ms=PATIENT_MS, backoff_cap_ms=BACKOFF_CAP_MS)

    def open_impatient(self, *servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> Store:
        url = self._url
        if servers:
            (named,) = servers
            written = urlsplit(url)
            credentials, at_sign, _ = written.netloc.rpartition("@")
            url = written._replace(netloc=credentials + at_sign + named).geturl()
        return open_impatient_redis(url, request_timeout_ms=request_timeout_ms, alive_every_ms=alive_every_ms)

    def wait_until_serving(self) -> None:
        _wait_until_serving(self._url)

    def close(self) -> None:
        return


def _wait_until_serving(url: str) -> None:
    wait_until_serving(lambda: open_store(url, request_timeout_ms=SERVES_WITHIN_MS), parse_store_url(url).address)

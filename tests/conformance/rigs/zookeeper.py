"""ZooKeeper: in a container, or one that runs already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from testcontainers.core.container import DockerContainer

from killswitch.stores import Store, open_store
from killswitch.stores.urls import Login, StoreUrl, TlsFiles, parse_store_url
from killswitch.stores.zookeeper.store import ZooKeeperStore
from tests.conformance.rigs.base import BACKOFF_CAP_MS, PATIENT_MS, ContainerServer, wait_until_serving
from tests.conformance.rigs.network import free_port

CLIENT_PORT = 2181
# The shortest session is two of these: a lease of 1,000 ms can be had.
TICK_MS = 500
DATA_DIRECTORY = "/tmp/zookeeper-test"
SERVES_WITHIN_MS = 1_000
# Debian's class path lacks what TLS needs. Of two class paths Java takes the later.
NETTY_CODEC = "/usr/share/java/netty-codec.jar"
DEBIAN_CLASSPATH = f"/etc/zookeeper/conf:/usr/share/java/zookeeper.jar:{NETTY_CODEC}"
PLAIN_PORT = f"clientPort={CLIENT_PORT}"
SECURE_PORT = f"secureClientPort={CLIENT_PORT}"

SETTINGS = (
    f"tickTime={TICK_MS}",
    "maxSessionTimeout=120000",
    f"dataDir={DATA_DIRECTORY}",
    "admin.enableServer=false",
    "4lw.commands.whitelist=srvr,ruok",
    # All clients of a test come from one address.
    "maxClientCnxns=0",
)


def open_zookeeper(
    *servers: str,
    request_timeout_ms: int = 400,
    alive_every_ms: int = 100,
    chroot: str = "",
    login: Login | None = None,
    tls: TlsFiles | None = None,
) -> ZooKeeperStore:
    """A client, by default with short time-outs; as :meth:`ServerRig.open_impatient`."""
    scheme = "zookeeper" if tls is None else "zookeeper+tls"
    return ZooKeeperStore(
        StoreUrl(scheme=scheme, servers=servers, path=chroot, login=login, tls=tls),
        request_timeout_ms=request_timeout_ms,
        backoff_cap_ms=BACKOFF_CAP_MS,
        alive_every_ms=alive_every_ms,
    )


def start_command(settings: Sequence[str], number: int = 1) -> list[str]:
    """Start a server in the public image or in that of Debian's package.

    Args:
        settings: lines of ``zoo.cfg``.
        number: of the member, for an ensemble.
    """
    lines = " ".join(f"'{line}'" for line in settings)
    script = (
        # Whoever runs the tests can then remove what the user of the image has written.
        f"umask 0 && mkdir -p {DATA_DIRECTORY} && echo {number} > {DATA_DIRECTORY}/myid"
        f" && printf '%s\\n' {lines} > {DATA_DIRECTORY}/zoo.cfg"
        ' && for bin in /usr/share/zookeeper/bin /apache-zookeeper-*/bin; do [ -x "$bin/zkServer.sh" ] && break; done'
        f' && flags=-Xmx128m && if [ -f {NETTY_CODEC} ]; then flags="$flags -cp {DEBIAN_CLASSPATH}"; fi'
        f' && exec env JVMFLAGS="$flags" "$bin/zkServer.sh" start-foreground {DATA_DIRECTORY}/zoo.cfg'
    )
    return ["sh", "-c", script]


class ZooKeeperServer(ContainerServer):
    """ZooKeeper in a container, on a port of the host that it keeps. Nobody has waited for it to serve yet.

    Args:
        image: of ZooKeeper.
        settings: lines of ``zoo.cfg`` beyond the usual ones; they name the port.
        number: of the member, for an ensemble.
        name: of the container.
        mount: a directory that the container sees, read-only, as ``/mounted``.
    """

    def __init__(
        self,
        image: str,
        *settings: str,
        number: int = 1,
        name: str | None = None,
        mount: Path | None = None,
    ) -> None:
        self._port = free_port()
        container = DockerContainer(image).with_bind_ports(CLIENT_PORT, self._port)
        if name is not None:
            container = container.with_name(name)
        if mount is not None:
            container = container.with_volume_mapping(str(mount), "/mounted", "ro")
        command = start_command([*SETTINGS, *settings], number)
        super().__init__(container.with_command(command), data=DATA_DIRECTORY)

    @property
    def server(self) -> str:
        """Its ``host:port``."""
        return f"127.0.0.1:{self._port}"

    @property
    def container_id(self) -> str:
        """Docker's name of it."""
        return str(self._docker.id)

    def wipe(self) -> None:
        """It dies and loses all its data."""
        self.exec("rm", "-rf", f"{DATA_DIRECTORY}/version-2")
        self.kill()


class ZooKeeperContainerRig(ZooKeeperServer):
    """One that stands alone and serves whoever comes."""

    kind = "zookeeper"

    def __init__(self, image: str) -> None:
        super().__init__(image, PLAIN_PORT)
        try:
            self.wait_until_serving()
        except BaseException:
            self.close()
            raise

    def open(self) -> Store:
        return open_store(f"zookeeper://{self.server}", request_timeout_ms=PATIENT_MS, backoff_cap_ms=BACKOFF_CAP_MS)

    def open_impatient(self, *servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> Store:
        return open_zookeeper(
            *(servers or (self.server,)), request_timeout_ms=request_timeout_ms, alive_every_ms=alive_every_ms
        )

    def wait_until_serving(self) -> None:
        wait_until_serving(
            lambda: open_zookeeper(self.server, request_timeout_ms=SERVES_WITHIN_MS), f"ZooKeeper at {self.server}"
        )


class ZooKeeperUrlRig:
    """A server that runs already and is not ours to harm. Its ``tickTime`` must grant sessions of 1,000 ms."""

    kind = "zookeeper by URL"

    def __init__(self, url: str) -> None:
        self._url = url
        self._parsed = parse_store_url(url)
        self.server = self._parsed.servers[0]

    def open(self) -> Store:
        return open_store(self._url, request_timeout_ms=PATIENT_MS, backoff_cap_ms=BACKOFF_CAP_MS)

    def open_impatient(self, *servers: str, request_timeout_ms: int = 400, alive_every_ms: int = 100) -> Store:
        return open_zookeeper(
            *(servers or (self.server,)),
            request_timeout_ms=request_timeout_ms,
            alive_every_ms=alive_every_ms,
            chroot=self._parsed.path,
            login=self._parsed.login,
            tls=self._parsed.tls,
        )

    def wait_until_serving(self) -> None:
        wait_until_serving(
            lambda: open_zookeeper(self.server, request_timeout_ms=SERVES_WITHIN_MS), f"ZooKeeper at {self.server}"
        )

    def close(self) -> None:
        return

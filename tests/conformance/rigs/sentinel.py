"""One Redis primary, two replicas and three Sentinels, as processes in one container: their own talk goes over its
loopback interface and can be cut there, while the tests reach every one of them from outside.
"""

from __future__ import annotations

import contextlib
from typing import Any

import redis
from testcontainers.core.container import DockerContainer

from killswitch.stores import Store, open_store
from tests.conformance.rigs.base import BACKOFF_CAP_MS, PATIENT_MS, ContainerServer
from tests.conformance.rigs.network import free_port
from tests.support.waiting import wait_until

NAME = "trading"
SETTLES_WITHIN_S = 60.0
# Before the kernel's own look into its table of local addresses, which comes first otherwise.
CUT_PREFERENCE, LOCAL_PREFERENCE = 50, 100

SENTINEL_CONFIGURATION = """
port {port}
sentinel announce-ip 127.0.0.1
sentinel announce-port {port}
sentinel monitor {name} 127.0.0.1 {primary} 2
sentinel down-after-milliseconds {name} 500
sentinel failover-timeout {name} 4000
protected-mode no
"""


class SentinelRig(ContainerServer):
    """The servers; ``servers[0]`` is primary at first."""

    kind = "redis+sentinel"

    def __init__(self, image: str) -> None:
        self.servers = [free_port() for _ in range(3)]
        self.sentinels = [free_port() for _ in range(3)]
        container = DockerContainer(image).with_command("sleep infinity").with_kwargs(cap_add=["NET_ADMIN"])
        for port in (*self.servers, *self.sentinels):
            container = container.with_bind_ports(port, port)
        super().__init__(container, data="/tmp")
        try:
            self.exec("ip", "rule", "add", "pref", str(LOCAL_PREFERENCE), "lookup", "local")
            self.exec("ip", "rule", "del", "pref", "0")
            for port in self.servers:
                self.start(port)
            for port in self.sentinels:
                self._start_sentinel(port)
            self.make_whole()
        except BaseException:
            self.close()
            raise

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.primary()}"

    @property
    def address(self) -> str:
        """The URL, without options."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinels)}/{NAME}"

    def open(self, options: str = "", *, request_timeout_ms: int = PATIENT_MS) -> Store:
        return open_store(self.address + options, request_timeout_ms=request_timeout_ms, backoff_cap_ms=BACKOFF_CAP_MS)

    def ask(self, port: int, *command: str) -> Any:
        """Send a command to one of them."""
        with redis.Redis(port=port, decode_responses=True, socket_timeout=2.0) as client:
            return client.execute_command(*command)

    def primary(self) -> int:
        """The port of the one that the Sentinels name."""
        named = {self.ask(port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1] for port in self.sentinels}
        return int(named.pop()) if len(named) == 1 else 0

    def is_replica(self, port: int) -> bool:
        """Whether a server says so now; one that just drops its clients has not said it."""
        with contextlib.suppress(redis.ConnectionError):
            return str(self.ask(port, "ROLE")[0]) == "slave"
        return False

    def switch(self) -> None:
        """Have a Sentinel begin to make another server primary."""

        def begun() -> bool:
            with contextlib.suppress(redis.ResponseError):
                # It refuses while it knows of no good replica, or has just done so.
                return bool(self.ask(self.sentinels[0], "SENTINEL", "FAILOVER", NAME))
            return False

        wait_until(begun, within_s=SETTLES_WITHIN_S, what="a Sentinel that begins a switch")

    def start(self, port: int) -> None:
        """Start a server, as a replica of whom the Sentinels name."""
        # While there is no Sentinel the first is primary.
        named = self.servers[0]
        with contextlib.suppress(redis.ConnectionError):
            named = int(self.ask(self.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])
        follow = () if named == port else ("--replicaof", "127.0.0.1", str(named))
        self.exec(
            "redis-server", "--port", str(port), *follow, "--dir", "/tmp", "--dbfilename", f"{port}.rdb",
            "--appendonly", "no", "--save", "", "--protected-mode", "no", "--replica-announce-ip", "127.0.0.1",
            "--repl-diskless-sync-delay", "0", "--pidfile", f"/tmp/{port}.pid", "--daemonize", "yes",
        )  # fmt: skip
        wait_until(lambda: self._answers(port), what=f"redis at {port} answering")

    def signal(self, name: str, *ports: int) -> None:
        """Send a signal to servers."""
        for port in ports:
            self.exec("sh", "-c", f"kill -{name} $(cat /tmp/{port}.pid)")
        if name == "KILL":
            wait_until(lambda: not any(self._answers(port) for port in ports), what="the killed ones being gone")

    def cut(self, port: int) -> None:
        """Cut a server off from all the others, and from no client."""
        for side in ("sport", "dport"):
            self.exec(
                "ip", "rule", "add", "pref", str(CUT_PREFERENCE), "to", "127.0.0.0/8", side, str(port), "blackhole"
            )

    def heal(self) -> None:
        """Undo every cut."""
        while str(CUT_PREFERENCE) + ":" in self.exec("ip", "rule"):
            self.exec("ip", "rule", "del", "pref", str(CUT_PREFERENCE))

    def make_whole(self) -> None:
        """Everybody runs, and the Sentinels and the primary see both replicas."""
        self.heal()
        for port in self.servers:
            self.exec("sh", "-c", f"kill -CONT $(cat /tmp/{port}.pid) 2>/dev/null || true")
            if not self._answers(port):
                self.start(port)
        wait_until(self._whole, within_s=SETTLES_WITHIN_S, what="one primary with two replicas that follow it")

    def _whole(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            primary = self.primary()
            role = self.ask(primary, "ROLE") if primary else [""]
            return (
                role[0] == "master"
                and len(role[2]) == 2
                and all(self.ask(port, "ROLE")[3] == "connected" for port in self.servers if port != primary)
                and all(self._sentinel_content(port) for port in self.sentinels)
            )
        return False

    def _sentinel_content(self, sentinel: int) -> bool:
        """Whether a Sentinel could begin a failover: it sees its peers, two good replicas, and a healthy primary."""
        master = self.ask(sentinel, "SENTINEL", "MASTER", NAME)
        replicas = self.ask(sentinel, "SENTINEL", "REPLICAS", NAME)
        told = master if isinstance(master, dict) else dict(zip(master[::2], master[1::2], strict=True))
        flags = [entry["flags"] if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))["flags"]
                 for entry in replicas]  # fmt: skip
        return (
            told["flags"] in ("master", {"master"})
            and int(told["num-other-sentinels"]) == 2
            and len(flags) == 2
            and all(entry in ("slave", {"slave"}) for entry in flags)
        )

    def _start_sentinel(self, port: int) -> None:
        text = SENTINEL_CONFIGURATION.format(port=port, name=NAME, primary=self.servers[0])
        self.exec("sh", "-c", f"cat > /tmp/{port}.conf <<'END'\n{text}\nEND")
        self.exec("redis-sentinel", f"/tmp/{port}.conf", "--daemonize", "yes")

    def _answers(self, port: int) -> bool:
        try:
            return bool(self.ask(port, "PING"))
        except redis.RedisError:
            return False

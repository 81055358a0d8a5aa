"""Redis: one server, or a primary and a replica that three Sentinels look after. Data is in the pod's shared memory."""

from __future__ import annotations

import shlex

from killswitch.cluster.records import Keys
from tests.containers.lab import CLUSTER
from tests.containers.pods import DidNotTakeHold, Engine, Pod, Process, run_in, took_hold
from tests.support.waiting import wait_until

PORT, SENTINEL_PORT = 6379, 26379
NAME = "lab"
DATA = "/dev/shm/redis"
MARK = "lab:before-flushall"
SERVES_WITHIN_S = 30.0
SENTINEL = f"""port {SENTINEL_PORT}
sentinel monitor {NAME} {{primary}} {PORT} 2
sentinel down-after-milliseconds {NAME} 500
sentinel failover-timeout {NAME} 2000
protected-mode no
"""


def start_redis(pod: Pod, image: str, *more: str) -> Process:
    """Start a server whose every write is on its disk before it is acknowledged."""
    words = [
        "redis-server", "--port", str(PORT), "--dir", DATA, "--appendonly", "yes", "--appendfsync", "always",
        "--save", "''", "--protected-mode", "no", "--repl-diskless-sync-delay", "0", *more,
    ]  # fmt: skip
    return pod.start("redis", ["sh", "-c", f"mkdir -p {DATA} && exec {' '.join(words)}"], image=image, user="root")


def ask(server: Process, *words: str, port: int = PORT) -> str:
    """What ``redis-cli`` says; empty when nobody answers."""
    ran = run_in(server.container, ("timeout", "2", "redis-cli", "-p", str(port), *words))
    return ran.out.strip() if ran.code == 0 else ""


def flush(server: Process) -> None:
    """FLUSHALL.

    Raises:
        DidNotTakeHold: what was there before is still there.
    """
    # Agents write again at once, so an empty server is not to be seen; a key of nobody's is.
    if ask(server, "SET", MARK, "before") != "OK":
        raise DidNotTakeHold("redis takes no mark, so that nobody could tell whether it was emptied")
    ask(server, "FLUSHALL")
    if ask(server, "EXISTS", MARK) != "0":
        raise DidNotTakeHold("redis was not emptied")


class RedisServer:
    """One Redis."""

    kind = "redis"

    def __init__(self, engine: Engine, image: str) -> None:
        pod = engine.pod("redis1", ["control"])
        self._server = start_redis(pod, image)
        self._host = pod.ip("control")
        self._wait_until_serving()

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Where clients connect to."""
        return [(self._host, PORT)]

    def url(self, ports: list[tuple[str, int]] | None = None) -> str:
        """The store's URL, by way of another address where one is given."""
        host, port = (ports or self.ports)[0]
        return f"redis://{host}:{port}"

    def heal(self) -> None:
        """Let it run and go on."""
        self._server.resume()
        self._server.start()
        self._wait_until_serving()

    def lose_data(self) -> None:
        """FLUSHALL."""
        flush(self._server)

    def _wait_until_serving(self) -> None:
        wait_until(lambda: ask(self._server, "PING") == "PONG", within_s=SERVES_WITHIN_S, what="redis to answer")


class SentinelServers:
    """A primary and a replica that three Sentinels look after.

    Args:
        engine: where they run.
        image: of Redis.
        wait_replicas: as in the URL; with 0 nobody waits for the replica, and what such a store may forget, the agents
            must remember. ``None`` leaves it to the product's default.
    """

    kind = "redis-sentinel"

    def __init__(self, engine: Engine, image: str, *, wait_replicas: int | None = None) -> None:
        self._options = "" if wait_replicas is None else f"?wait_replicas={wait_replicas}"
        self.pods = [engine.pod(name, ["control"]) for name in ("redis1", "redis2")]
        self.hosts = [pod.ip("control") for pod in self.pods]
        self.servers = [
            start_redis(self.pods[0], image),
            start_redis(self.pods[1], image, "--replicaof", self.hosts[0], str(PORT)),
        ]
        # As docs/operations.md tells a person to look at it.
        self._flag = f"killswitch:key:{Keys(CLUSTER).flag}"
        self._sentinels: list[Process] = []
        self._ports: list[tuple[str, int]] = []
        for number in (1, 2, 3):
            pod = engine.pod(f"sentinel{number}", ["control"])
            file, text = "/dev/shm/sentinel.conf", SENTINEL.format(primary=self.hosts[0])
            script = f"printf %s {shlex.quote(text)} >{file} && exec redis-sentinel {file}"
            self._sentinels.append(pod.start("sentinel", ["sh", "-c", script], image=image, user="root"))
            self._ports.append((pod.ip("control"), SENTINEL_PORT))
        self.wait_until_whole()

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Of the Sentinels."""
        return self._ports

    def url(self, ports: list[tuple[str, int]] | None = None) -> str:
        """The store's URL."""
        hosts = ",".join(f"{host}:{port}" for host, port in ports or self.ports)
        return f"redis+sentinel://{hosts}/{NAME}{self._options}"

    def primary(self) -> str:
        """Address of the one that the Sentinels name."""
        words = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        named = {ask(sentinel, *words, port=SENTINEL_PORT).split("\n")[0] for sentinel in self._sentinels}
        return named.pop() if len(named) == 1 else ""

    def wait_until_whole(self) -> None:
        """Wait until the Sentinels know each other, the primary and the replica, and the replica follows."""

        def whole() -> bool:
            seen = [ask(one, "SENTINEL", "MASTER", NAME, port=SENTINEL_PORT).split("\n") for one in self._sentinels]
            known = [dict(zip(words[::2], words[1::2], strict=False)) for words in seen]
            follows = "master_link_status:up" in ask(self.servers[1], "INFO", "replication")
            return follows and all(
                (one.get("num-slaves"), one.get("num-other-sentinels")) == ("1", "2") for one in known
            )

        wait_until(whole, within_s=SERVES_WITHIN_S, what="the Sentinels to know everybody")

    def heal(self) -> None:
        """Let every server run and go on."""
        for server in (*self.servers, *self._sentinels):
            server.resume()
            server.start()
        for pod in self.pods:
            pod.plug("control")
        wait_until(lambda: self.primary() != "", within_s=SERVES_WITHIN_S, what="the Sentinels to name a primary")

    def lose_data(self) -> None:
        """FLUSHALL at the primary, which the replica follows."""
        flush(self.servers[self.hosts.index(self.primary())])

    def stop_replicating(self) -> None:
        """Take the replica's cable out: from now on it misses what is written."""
        self.pods[1].unplug("control")
        took_hold(
            lambda: (
                "connected_slaves:0" in ask(self.servers[0], "INFO", "replication")
                or not self.pods[1].reaches(self.hosts[0], PORT, within_s=0.3)
            ),
            "the replica to be out of reach",
        )

    def fail_over(self, *, forgets: str = "", keeps: str = "") -> None:
        """Lose the primary's whole machine, plug the replica in again, and wait until it has been made primary.

        Args:
            forgets: id or reason of a freeze of which the replica must not have heard.
            keeps: id or reason of a freeze of which it must.

        Raises:
            DidNotTakeHold: the replica knows of what it should have missed, or not of what it should know.
        """
        # Off the network first: the kernel would go on sending what a killed process had written.
        self.pods[0].unplug("control")
        self.servers[0].kill()
        flag = ask(self.servers[1], "HGET", self._flag, "value")
        if '"freezes"' not in flag or (forgets and forgets in flag) or keeps not in flag:
            wanted = f"no word of {forgets}" if forgets else f"the freeze {keeps}"
            raise DidNotTakeHold(f"the replica was to hold {wanted}, and holds {flag!r}")
        self.pods[1].plug("control")
        took_hold(lambda: self.primary() == self.hosts[1], "the failover", within_s=SERVES_WITHIN_S)
        took_hold(lambda: "role:master" in ask(self.servers[1], "INFO", "replication"), "the new primary's role")

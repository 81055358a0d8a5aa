"""Three members of etcd, each in a pod whose shared memory holds its data: a disk that stalls is no fault here."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from tests.containers.pods import DidNotTakeHold, Engine, Pod, Process, must, run_in, took_hold
from tests.support.waiting import wait_until

MEMBERS = ("etcd1", "etcd2", "etcd3")
DATA = "/dev/shm/etcd"
SNAPSHOT = "/snapshots/snapshot.db"
CLIENT_PORT, PEER_PORT = 2379, 2380
ELECTS_WITHIN_S = 30.0


class EtcdServers:
    """The store of a lab.

    Args:
        engine: where it runs.
        image: of etcd and etcdctl.
    """

    kind = "etcd"

    def __init__(self, engine: Engine, image: str) -> None:
        self._engine = engine
        self._image = image
        self._generation = 1
        self._saved_revision = 0
        self.pods = {name: engine.pod(name, ["control"], volumes={"/snapshots": "snapshots"}) for name in MEMBERS}
        self.addresses = {name: pod.ip("control") for name, pod in self.pods.items()}
        self.members: dict[str, Process] = {}
        for name, pod in self.pods.items():
            self.members[name] = self._start(name, pod)
        self.wait_until_serving()

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Where clients connect to."""
        return [(address, CLIENT_PORT) for address in self.addresses.values()]

    def url(self, ports: list[tuple[str, int]] | None = None) -> str:
        """The store's URL, by way of other addresses where some are given."""
        return "etcd://" + ",".join(f"{host}:{port}" for host, port in ports or self.ports)

    def leader(self) -> str | None:
        """Name of the member that leads, ``None`` while nobody does."""
        for status in self._statuses():
            body = status["Status"]
            if body.get("leader") and body["leader"] == body["header"]["member_id"]:
                return next(name for name, host in self.addresses.items() if host in status["Endpoint"])
        return None

    def wait_until_serving(self) -> None:
        """Wait until one leads and most have answered."""

        def serves() -> bool:
            return self.leader() is not None and len(self._statuses()) * 2 > len(MEMBERS)

        wait_until(serves, within_s=ELECTS_WITHIN_S, what="a leader of etcd")

    def heal(self) -> None:
        """Let every member run and go on."""
        for member in self.members.values():
            member.resume()
            member.start()
        self.wait_until_serving()

    def revision(self) -> int:
        """Newest revision of the store."""
        return max(int(status["Status"]["header"]["revision"]) for status in self._statuses())

    # -- losing data -----------------------------------------------------------------------------------------------

    def save_snapshot(self) -> None:
        """Keep what the store holds now."""
        self._saved_revision = self.revision()
        self._ctl(MEMBERS[0], "snapshot", "save", SNAPSHOT)

    def restore_snapshot(self) -> None:
        """Set the store back to the snapshot, as an operator would after a disaster: a new cluster from old data."""
        before = self.revision()
        self._replace_data(lambda name: ("etcdctl", "snapshot", "restore", SNAPSHOT, *self._restore_words(name)))
        # Agents may have written since it came back, but not as much as the snapshot holds, nor as was lost.
        if not self._saved_revision <= self.revision() < before:
            what = f"{self.revision()}, was at {before} before and at {self._saved_revision} in the snapshot"
            raise DidNotTakeHold(f"etcd is at revision {what}")

    def lose_data(self) -> None:
        """Start all members on empty disks."""
        self._replace_data(None)

    def _replace_data(self, refill: Any) -> None:
        for member in self.members.values():
            member.resume()
            if member.runs:
                member.kill()
        self._generation += 1
        for name, pod in self.pods.items():
            pod.exec("rm", "-rf", DATA, user="root")
            if refill is not None:
                done = pod.start(f"restore-{self._generation}", refill(name), image=self._image, user="root")
                took_hold(lambda done=done: done.exit_code == 0, f"{name}: restored")
            if "member" in pod.exec("sh", "-c", f"ls {DATA} 2>/dev/null || true", user="root") and refill is None:
                raise DidNotTakeHold(f"{name} still has its data")
        for member in self.members.values():
            member.start()
        self.wait_until_serving()

    # -- how it is run ---------------------------------------------------------------------------------------------

    def _start(self, name: str, pod: Pod) -> Process:
        host = self.addresses[name]
        words = [
            "etcd", "--name", name, "--data-dir", DATA,
            "--listen-client-urls", f"http://0.0.0.0:{CLIENT_PORT}",
            "--advertise-client-urls", f"http://{host}:{CLIENT_PORT}",
            "--listen-peer-urls", f"http://0.0.0.0:{PEER_PORT}", "--initial-cluster-state", "new",
            *self._peer_words(name),
        ]  # fmt: skip
        return pod.start("etcd", words, image=self._image, user="root")

    def _peer_words(self, name: str) -> list[str]:
        peers = ",".join(f"{member}=http://{host}:{PEER_PORT}" for member, host in self.addresses.items())
        own = f"http://{self.addresses[name]}:{PEER_PORT}"
        return ["--initial-cluster", peers, "--initial-cluster-token", self._engine.run_id,
                "--initial-advertise-peer-urls", own]  # fmt: skip

    def _restore_words(self, name: str) -> list[str]:
        return ["--name", name, "--data-dir", DATA, *self._peer_words(name)]

    def _ctl(self, member: str, *words: str) -> str:
        ran = run_in(self.members[member].container, ("etcdctl", *words), environment={"ETCDCTL_API": "3"})
        return must(ran, f"etcdctl {' '.join(words)}")

    def _statuses(self) -> list[dict[str, Any]]:
        """What each member that answers says of itself."""
        endpoints = ",".join(f"{host}:{port}" for host, port in self.ports)
        words = ("etcdctl", "--endpoints", endpoints, "--command-timeout=1s", "--dial-timeout=1s", "-w", "json",
                 "endpoint", "status")  # fmt: skip
        # Whichever member can be talked to asks all of them; one that is paused or dead cannot.
        for member in self.members.values():
            member.container.reload()
            if member.container.status == "running":
                # It exits with 1 when a member did not answer, and prints those that did.
                ran = run_in(member.container, words, environment={"ETCDCTL_API": "3"})
                with contextlib.suppress(ValueError):
                    return list(json.loads(ran.out or "[]"))
        return []

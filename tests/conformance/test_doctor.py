"""The doctor at each kind of store, on real servers: a healthy one is called so, and what is wrong with one is told."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from killswitch.cluster.cluster import Cluster
from killswitch.cluster.records import LeaderRecord
from killswitch.stores import open_store
from tests.conformance.rigs.etcd_cluster import EtcdCluster
from tests.conformance.rigs.redis import RedisContainerRig
from tests.conformance.rigs.sentinel import SentinelRig
from tests.conformance.rigs.zookeeper import ZooKeeperContainerRig
from tests.conformance.rigs.zookeeper_ensemble import ZooKeeperEnsemble
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, require_docker
from tests.support.waiting import wait_until
from tests.unit.cluster.test_cluster import put
from tests.unit.core.test_core_flag import AT

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

RIGS: dict[str, tuple[str, Any]] = {
    "etcd": ("etcd", EtcdCluster),
    "redis": ("redis", RedisContainerRig),
    "redis+sentinel": ("redis", SentinelRig),
    "zookeeper": ("zookeeper", ZooKeeperEnsemble),
    "zookeeper alone": ("zookeeper", ZooKeeperContainerRig),
}
"""Kind -> image and servers."""


@pytest.fixture(scope="module", params=RIGS)
def rig(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The servers of one kind, in place of those of the shared suite."""
    image, kind = RIGS[request.param]
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        made = kind(choose_image(client, image))
    finally:
        client.close()
    if isinstance(made, SentinelRig):
        # As docs/operations.md says; what the other tests do without is for speed.
        for port in made.servers:
            made.ask(port, "CONFIG", "SET", "appendfsync", "always")
            made.ask(port, "CONFIG", "SET", "appendonly", "yes")
    yield made
    made.close()


@pytest.fixture
def url(rig: Any) -> str:
    """Where an initialised cluster is that somebody leads."""
    made = url_of(rig)
    with open_store(made, request_timeout_ms=5_000) as store:
        cluster = Cluster(store, "doctor")
        if store.read(cluster.keys.flag) is None:
            cluster.initialise(actor="operator:ann", reason="set up")
            put(cluster, cluster.keys.leader, LeaderRecord(id="c1", instance="i", term=4, since=AT).to_bytes())
    return made


def url_of(rig: Any) -> str:
    """The URL that an operator would write."""
    if isinstance(rig, SentinelRig):
        return rig.address
    scheme = {EtcdCluster: "etcd", RedisContainerRig: "redis"}.get(type(rig), "zookeeper")
    return f"{scheme}://{','.join(rig.servers if hasattr(rig, 'servers') else [rig.server])}"


def examined(url: str, directory: Path, exit_code: int) -> tuple[dict[str, str], list[tuple[str, str]], str]:
    """What the doctor exits with and says: settings of the server, severity and topic above a note, every sentence."""
    settings = directory / "settings.json"
    # Patient: on a busy machine a slow answer is no finding about the store.
    timing = {"request_timeout_ms": 4_000, "renew_every_ms": 5_000, "permit_ttl_ms": 20_000, "lease_ttl_ms": 30_000,
              "leader_deadline_ms": 20_000}  # fmt: skip
    agent = {"gate": str(directory / "gate"), "state_dir": str(directory)}
    settings.write_text(json.dumps({"agent": agent, "timing": timing}))
    words = ["--config", str(settings), "--store", url, "--cluster", "doctor", "-o", "json", "doctor"]
    run = [sys.executable, "-m", "killswitch", *words]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == exit_code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    body = json.loads(done.stdout)
    (one,) = body["stores"]
    found = body["findings"]
    bad = [(finding["severity"], finding["topic"]) for finding in found if finding["severity"] in ("warning", "fault")]
    return one["settings"], bad, " | ".join(finding["sentence"] for finding in found)


def test_a_healthy_store_is_called_healthy_and_what_is_wrong_with_one_is_told(
    rig: Any, url: str, tmp_path: Path
) -> None:
    """Exit 0 says that nothing has to be done; a store that is sound must reach it, and one that is not must not."""
    if isinstance(rig, ZooKeeperContainerRig):
        told, bad, said = examined(url, tmp_path, 1)
        assert (told["mode"], bad) == ("standalone", [("warning", "server")])
        assert "ZooKeeper has one member only" in said
        return
    told, bad, said = examined(url, tmp_path, 0)
    assert bad == []
    if isinstance(rig, EtcdCluster):
        assert (told["member_count"], told["voting_members"]) == ("3", "3")
        assert "etcd asks for no password" in said
        assert "linearizable reads, atomic commits, survives a failover" in said
        add_a_learner(rig)
        told, _, _ = examined(url, tmp_path, 0)
        assert (told["member_count"], told["voting_members"]) == ("4", "3")
        assert told["members"].count(", learner)") == 1
    elif isinstance(rig, ZooKeeperEnsemble):
        assert (told["mode"] in ("leader", "follower"), told["read_only"]) == (True, "false")
    else:
        assert (told["appendonly"], told["appendfsync"]) == ("yes", "always")
        assert "can forget a confirmed freeze" in said
    if isinstance(rig, SentinelRig):
        assert (told["known_replicas"], told["connected_replicas"], told["wait_replicas"]) == ("2", "2", "1")
        assert "an old primary that is cut off answers nobody" in said
        what_is_wrong_with_sentinels(rig, url, tmp_path)


def add_a_learner(rig: EtcdCluster) -> None:
    """A fourth member without a vote, that never starts."""

    def added() -> bool:
        # It refuses while its members have not known each other for some seconds.
        with contextlib.suppress(AssertionError):
            rig.members[0].exec("etcdctl", "member", "add", "n4", "--learner", "--peer-urls=http://192.0.2.1:2380")
            return True
        return False

    wait_until(added, within_s=60, what="a learner beside the three members")


def what_is_wrong_with_sentinels(rig: SentinelRig, url: str, directory: Path) -> None:
    """No fence, no replica to spare, a replica that is away, and a primary that is named without its Sentinels."""
    _, bad, said = examined(f"{url}?wait_replicas=0", directory, 1)
    assert bad == [("warning", "promises")]
    assert "cut off goes on answering those who still reach it" in said
    _, bad, said = examined(f"{url}?wait_replicas=2", directory, 1)
    assert bad == [("warning", "replicas")]
    assert "2 replicas follow the primary, and so many must confirm" in said
    primary = rig.primary()
    _, bad, said = examined(f"redis://127.0.0.1:{primary}", directory, 1)
    assert bad[0] == ("warning", "replicas")
    assert "2 replicas follow this Redis, and wait_replicas is 0" in said
    away = next(port for port in rig.servers if port != primary)
    rig.signal("KILL", away)
    wait_until(lambda: len(rig.ask(primary, "ROLE")[2]) == 1, within_s=30, what="a primary with one replica")
    _, bad, said = examined(url, directory, 1)
    assert bad == [("warning", "replicas")] * 2
    assert "1 of the 2 replicas that the Sentinels know follow the primary" in said

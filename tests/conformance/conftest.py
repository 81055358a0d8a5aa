"""Fixtures of the conformance suite: each test runs on every store."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import cast

import pytest

from killswitch.stores import Store
from tests.conformance.rigs.base import Rig, ServerRig
from tests.conformance.rigs.etcd import EmbeddedRig, EtcdContainerRig, EtcdUrlRig
from tests.conformance.rigs.memory import MemoryRig
from tests.conformance.rigs.network import connections_to
from tests.conformance.rigs.observer import Observer
from tests.conformance.rigs.redis import RedisContainerRig, RedisUrlRig
from tests.conformance.rigs.zookeeper import ZooKeeperContainerRig, ZooKeeperUrlRig
from tests.images.choose import choose_image, do_without_ryuk_where_it_cannot_be_had, give_up, require_docker
from tests.support.waiting import wait_until

DOCKER = [pytest.mark.docker, pytest.mark.timeout(900)]
KINDS = ["memory", "embedded", *(pytest.param(kind, marks=DOCKER) for kind in ("etcd", "redis", "zookeeper"))]
IN_CONTAINERS: dict[str, Callable[[str], ServerRig]] = {
    "etcd": EtcdContainerRig,
    "redis": RedisContainerRig,
    "zookeeper": ZooKeeperContainerRig,
}
BY_URL: dict[str, Callable[[str], Rig]] = {"etcd": EtcdUrlRig, "redis": RedisUrlRig, "zookeeper": ZooKeeperUrlRig}


@pytest.fixture(scope="session", params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One server of each kind for the whole session; tests keep apart by their keys.

    ``KILLSWITCH_TEST_ETCD_URL`` (or ``_REDIS_``, ``_ZOOKEEPER_``) names a server that runs already.
    """
    made: Rig
    if request.param == "memory":
        made = MemoryRig()
    elif request.param == "embedded":
        made = EmbeddedRig(tmp_path_factory.mktemp("embedded"))
    elif url := os.environ.get(f"KILLSWITCH_TEST_{request.param.upper()}_URL"):
        made = BY_URL[request.param](url)
    else:
        made = start_in_container(request.param)
    yield made
    made.close()


def start_in_container(kind: str) -> ServerRig:
    """A server of its own, in a container."""
    client = require_docker()
    try:
        do_without_ryuk_where_it_cannot_be_had(client)
        image = choose_image(client, kind)
    finally:
        client.close()
    try:
        return IN_CONTAINERS[kind](image)
    except Exception as error:
        give_up(f"a container of {image} cannot be run: {error}")
        raise


@pytest.fixture(autouse=True)
def nothing_skipped_unseen(request: pytest.FixtureRequest, rig: Rig) -> None:
    """Skip only what the test file's own list says, with its reason; a file without a list skips nothing."""
    skips: dict[str, dict[str, str]] = getattr(request.module, "SKIPS", {})
    reason = skips.get(rig.kind, {}).get(request.node.originalname)
    if reason is not None:
        pytest.skip(f"{rig.kind}: {reason}")


@pytest.fixture(autouse=True)
def nothing_left_behind(rig: Rig, nothing_skipped_unseen: None) -> Iterator[None]:
    """Every thread and every connection that a test has made, through a store or by itself, has ended after it."""
    server = getattr(rig, "server", None)
    threads_before = set(threading.enumerate())
    connections_before = connections_to(server) if server else 0
    yield
    wait_until(
        lambda: set(threading.enumerate()) <= threads_before, within_s=5.0, what="the end of the threads of this test"
    )
    if server:
        wait_until(
            lambda: connections_to(server) <= connections_before,
            within_s=5.0,
            what="the end of the connections of this test",
        )


@pytest.fixture
def open_client(rig: Rig, nothing_left_behind: None) -> Iterator[Callable[[], Store]]:
    """Opens independent clients of the store under test, and closes them."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(rig.open())


@pytest.fixture
def store(open_client: Callable[[], Store]) -> Store:
    """A client."""
    return open_client()


@pytest.fixture
def other(open_client: Callable[[], Store]) -> Store:
    """A second client, independent of the first."""
    return open_client()


@pytest.fixture
def at(rig: Rig) -> str:
    """A prefix that no other test uses, ending in a slash."""
    return f"/test/{uuid.uuid4().hex}/"


@pytest.fixture
def observer() -> Observer:
    """Keeps what a watch says."""
    return Observer()


@pytest.fixture
def server(rig: Rig) -> Iterator[ServerRig]:
    """The server, to be harmed; whole again afterwards."""
    assert hasattr(rig, "pause"), "a test that harms a server is skipped by name where there is none of ours"
    harmed = cast("ServerRig", rig)
    yield harmed
    harmed.resume()
    harmed.revive()
    harmed.wait_until_serving()

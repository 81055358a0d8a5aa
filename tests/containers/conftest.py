"""One cluster at a time, kept between scenarios while it can be healed; measured times at the end of the run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.etcd_servers import EtcdServers
from tests.containers.faults import Faults
from tests.containers.lab import ROUTERS, Lab, StoreServers
from tests.containers.leftovers import removed_on_sigterm, sweep
from tests.containers.pods import Engine, require_near_daemon
from tests.containers.redis_servers import RedisServer, SentinelServers
from tests.containers.times import Times
from tests.containers.two_stores import TwoStores
from tests.containers.zookeeper_servers import ZooKeeperServer
from tests.images.choose import choose_image, require_docker
from tests.images.project import build_project_images

STORES: dict[str, tuple[tuple[str, ...], Callable[..., StoreServers]]] = {
    "etcd": (("etcd",), EtcdServers),
    "redis": (("redis",), RedisServer),
    "redis-sentinel": (("redis",), SentinelServers),
    "redis-sentinel without its fence": (("redis",), functools.partial(SentinelServers, wait_replicas=0)),
    "zookeeper": (("zookeeper",), ZooKeeperServer),
    "etcd and redis": (("etcd", "redis"), TwoStores),
}
"""By its name: the images that it takes, and what starts it."""
NODES = {"etcd": tuple(ROUTERS)}
"""The faults of nodes are tried on etcd; three nodes show what another store does."""

TIMES = pytest.StashKey[Times]()
FAILED = pytest.StashKey[bool]()
TIMES_FILE = Path(__file__).resolve().parents[2] / "build" / "cluster-times.json"


class Keeper:
    """Makes clusters, one at a time: two processors carry no more."""

    def __init__(self) -> None:
        self._client = require_docker()
        if left := sweep(self._client):
            print(f"removed what a run that is gone had left: {', '.join(left)}")
        self._image = build_project_images(self._client)
        engine = Engine(self._client, self._image)
        try:
            require_near_daemon(engine)
        finally:
            engine.close()
        self._kind = ""
        self._engine: Engine | None = None
        self._cannot: set[str] = set()
        self.lab: Lab | None = None

    def lab_of(self, kind: str) -> Lab:
        """The cluster on this kind of store: the one that runs, or a fresh one."""
        if kind in self._cannot:
            pytest.fail(f"a cluster on {kind} could not be started before; see the first failure")
        if self.lab is None or self._kind != kind:
            self.close()
            self._engine, self._kind = Engine(self._client, self._image), kind
            try:
                self.lab = Lab(self._engine, self._servers(kind), nodes=NODES.get(kind, ("n1", "n2", "n3")))
            except BaseException:
                self._cannot.add(kind)
                print(self._engine.logs())
                self.close()
                raise
        return self.lab

    def _servers(self, kind: str) -> Callable[[Engine], StoreServers]:
        image_names, servers = STORES[kind]
        images = [choose_image(self._client, name) for name in image_names]
        return lambda engine: servers(engine, *images)

    def logs(self) -> str:
        """The last words of everybody."""
        return self._engine.logs() if self._engine else ""

    def close(self) -> None:
        """Remove the cluster."""
        lab, self.lab = self.lab, None
        engine, self._engine = self._engine, None
        try:
            if lab is not None:
                lab.close()
        finally:
            if engine is not None:
                engine.close()


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    """Of the session's cluster."""
    keeper = Keeper()
    with removed_on_sigterm():
        yield keeper
        keeper.close()


@pytest.fixture
def lab(keeper: Keeper, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A cluster that trades, brought back after the scenario; one that stays broken costs the next a fresh one."""
    marker = request.node.get_closest_marker("store")
    lab = keeper.lab_of(marker.args[0] if marker else "etcd")
    yield lab
    if request.node.stash.get(FAILED, False):
        print(keeper.logs())
    if request.node.get_closest_marker("fresh_after"):
        keeper.close()
        return
    try:
        lab.reset()
    except BaseException:
        print(keeper.logs())
        keeper.close()
        raise


@pytest.fixture
def faults(lab: Lab) -> Iterator[Faults]:
    """What can go wrong in it; taken back before it is brought back."""
    faults = Faults(lab)
    yield faults
    faults.heal_all()


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note a measured time of this scenario and judge it by its bound, or say why it has none: :meth:`Times.note`."""
    kept = request.config.stash.setdefault(TIMES, Times())
    return functools.partial(kept.note, request.node.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remember that a scenario failed, so that its cluster's logs are shown."""
    report = yield
    if call.when == "call" and report.failed:
        item.stash[FAILED] = True
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of times."""
    times = config.stash.get(TIMES, None)
    if times is None:
        return
    terminalreporter.section("how long things took")
    for line in times.table():
        terminalreporter.write_line(line)
    times.write(TIMES_FILE)

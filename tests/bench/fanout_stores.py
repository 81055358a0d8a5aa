"""The servers of the fan-out bench, and for each the barest watcher that its own client can be.

etcd runs as the embedded store does; Redis and ZooKeeper in a container, as in the conformance suite, so that the
figures of a store and of its baseline have the same way to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from killswitch.stores import open_store
from killswitch.stores.etcd.embedded import EmbeddedStore

KINDS = ("etcd", "redis", "zookeeper")
KEY = "/bench/baseline"

_STAMPS = """
import mmap, sys, time
address, page, slot, clock_id = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
file = open(page, "r+b")
words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
"""

ETCD_WATCHER = f"""{_STAMPS}
import grpc
from pyetcd import etcdrpc
create = etcdrpc.WatchCreateRequest(key=b"{KEY}")
def requests():
    yield etcdrpc.WatchRequest(create_request=create)
    time.sleep(3600)
for response in etcdrpc.WatchStub(grpc.insecure_channel(address)).Watch(requests()):
    words[slot] = time.clock_gettime_ns(clock_id)
"""

REDIS_WATCHER = f"""{_STAMPS}
import redis
host, _, port = address.rpartition(":")
subscription = redis.Redis(host, int(port)).pubsub()
subscription.subscribe("{KEY}")
for message in subscription.listen():
    words[slot] = time.clock_gettime_ns(clock_id)
"""

ZOOKEEPER_WATCHER = f"""{_STAMPS}
from kazoo.client import KazooClient
client = KazooClient(address, timeout=30)
client.start(30)
def changed(event):
    words[slot] = time.clock_gettime_ns(clock_id)
    client.get_async("{KEY}", watch=changed)
client.get("{KEY}", watch=changed)
time.sleep(3600)
"""


class NotHere(Exception):
    """The server cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class StoreUnderBench:
    """A server that runs.

    Attributes:
        url: what agents are given.
        address: ``host:port``, what a bare watcher is given.
        watcher: program of a bare watcher; its words are the address, the page of stamps, its slot and the clock.
        put: makes every bare watcher see a change.
    """

    url: str
    address: str
    watcher: str
    put: Callable[[bytes], object]


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[StoreUnderBench]:
    """Run a server of this kind.

    Raises:
        NotHere: it cannot be had.
    """
    with ExitStack() as stack:
        yield {"etcd": _etcd, "redis": _redis, "zookeeper": _zookeeper}[kind](folder, stack)


def _etcd(folder: Path, stack: ExitStack) -> StoreUnderBench:
    import grpc
    from pyetcd import etcdrpc

    owner = stack.enter_context(open_store(f"embedded://{folder / 'etcd'}", request_timeout_ms=1_000))
    assert isinstance(owner, EmbeddedStore)
    address = owner.client_url.removeprefix("etcd://")
    channel = grpc.insecure_channel(address)
    stack.callback(channel.close)
    stub = etcdrpc.KVStub(channel)

    def put(value: bytes) -> object:
        return stub.Put(etcdrpc.PutRequest(key=KEY.encode(), value=value), timeout=2)

    return StoreUnderBench(owner.client_url, address, ETCD_WATCHER, put)


def _redis(folder: Path, stack: ExitStack) -> StoreUnderBench:
    import redis

    address = _in_container("redis", stack)
    host, _, port = address.rpartition(":")
    client = stack.enter_context(redis.Redis(host, int(port), socket_timeout=2))

    def put(value: bytes) -> object:
        return client.pipeline(transaction=True).set(KEY, value).publish(KEY, b"changed").execute()

    return StoreUnderBench(f"redis://{address}", address, REDIS_WATCHER, put)


def _zookeeper(folder: Path, stack: ExitStack) -> StoreUnderBench:
    from kazoo.client import KazooClient

    address = _in_container("zookeeper", stack)
    client = KazooClient(address)
    client.start(30)
    stack.callback(client.close)
    stack.callback(client.stop)
    client.ensure_path(KEY)
    return StoreUnderBench(f"zookeeper://{address}", address, ZOOKEEPER_WATCHER, lambda value: client.set(KEY, value))


def _in_container(kind: str, stack: ExitStack) -> str:
    """Start a server of the conformance suite's kind and return its ``host:port``."""
    from tests.conformance.conftest import start_in_container

    try:
        rig = start_in_container(kind)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        raise NotHere(str(error)) from error
    stack.callback(rig.close)
    return rig.server

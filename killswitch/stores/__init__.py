"""Stores: where the freeze flag lives. The contract is in :mod:`killswitch.stores.port`; a URL chooses who keeps it.

Importing this imports no store's client library: ``open_store`` does, for the one that is asked for.
"""

from __future__ import annotations

from killswitch.stores.port import (
    VALUE_MAX_BYTES,
    Conflict,
    Entry,
    Guarantees,
    Lease,
    LeaseLost,
    OnChange,
    OnGap,
    OutcomeUnknown,
    Store,
    StoreError,
    StoreForbidden,
    StoreUnavailable,
    Watch,
)
from killswitch.stores.urls import parse_store_url

__all__ = [
    "open_store", "lease_slack_ms",
    "Store", "Lease", "Watch", "Entry", "Guarantees", "OnChange", "OnGap", "VALUE_MAX_BYTES",
    "StoreError", "Conflict", "LeaseLost", "StoreUnavailable", "OutcomeUnknown", "StoreForbidden",
]  # fmt: skip


def open_store(url: str, *, request_timeout_ms: int = 400, backoff_cap_ms: int = 1_000) -> Store:
    """Open the store that ``url`` names; :mod:`killswitch.stores.urls` says what may be written.

    Opening sends nothing yet, so servers that are down are found by the first call; only ``embedded://`` starts a
    server and returns when it serves.

    Args:
        url: such as ``etcd://h1:2379,h2:2379``.
        request_timeout_ms: time that one call may take, rotation to a second server included.
        backoff_cap_ms: longest pause between two attempts to reconnect.

    Raises:
        ValueError: the URL is not understood or a file that it names cannot be read; the sentence says what to write.
        StoreUnavailable: an embedded server did not start.
    """
    if request_timeout_ms <= 0 or backoff_cap_ms <= 0:
        raise ValueError(
            f"request_timeout_ms and backoff_cap_ms must be greater than 0, and they are {request_timeout_ms} and "
            f"{backoff_cap_ms}"
        )
    parsed = parse_store_url(url)
    if parsed.scheme in {"etcd", "etcds"}:
        from killswitch.stores.etcd.store import EtcdStore

        if parsed.path:
            raise ValueError(f"an etcd URL has no path, and this one has {parsed.path!r}; write {parsed.scheme}://HOST")
        return EtcdStore(
            parsed.servers,
            request_timeout_ms=request_timeout_ms,
            backoff_cap_ms=backoff_cap_ms,
            login=parsed.login,
            tls=parsed.tls,
        )
    if parsed.scheme in {"redis", "rediss", "redis+sentinel", "rediss+sentinel"}:
        from killswitch.stores.redis.store import RedisStore

        return RedisStore(parsed, request_timeout_ms=request_timeout_ms, backoff_cap_ms=backoff_cap_ms)
    if parsed.scheme in {"zookeeper", "zookeeper+tls"}:
        from killswitch.stores.zookeeper.store import ZooKeeperStore

        return ZooKeeperStore(parsed, request_timeout_ms=request_timeout_ms, backoff_cap_ms=backoff_cap_ms)
    if parsed.scheme == "embedded":
        from killswitch.stores.etcd.embedded import EmbeddedStore

        return EmbeddedStore(
            _directory(parsed.path), request_timeout_ms=request_timeout_ms, backoff_cap_ms=backoff_cap_ms
        )
    from killswitch.stores.memory import MemoryStore

    return MemoryStore(parsed.path)


def lease_slack_ms(url: str) -> int:
    """How long after its time to live a lease may still be there in the store that ``url`` names; connects to nothing.

    Raises:
        ValueError: the URL is not understood.
    """
    scheme = parse_store_url(url).scheme
    if scheme in {"etcd", "etcds", "embedded"}:
        from killswitch.stores.etcd.store import LEASE_SLACK_MS as OF_ETCD

        return OF_ETCD
    if scheme in {"redis", "rediss", "redis+sentinel", "rediss+sentinel"}:
        from killswitch.stores.redis.store import LEASE_SLACK_MS as OF_REDIS

        return OF_REDIS
    if scheme in {"zookeeper", "zookeeper+tls"}:
        from killswitch.stores.zookeeper.lease import LEASE_SLACK_MS as OF_ZOOKEEPER

        return OF_ZOOKEEPER
    from killswitch.stores.memory import LEASE_SLACK_MS as OF_MEMORY

    return OF_MEMORY


def _directory(path: str) -> str:
    """The absolute directory that an embedded URL names."""
    if not path.startswith("/") or path == "/":
        raise ValueError(
            f"embedded://{path} names no directory; write embedded:///absolute/directory, with three slashes"
        )
    return path

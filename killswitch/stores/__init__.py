"""Stores: where the freeze flag lives. The contract is in :mod:`killswitch.stores.port`; a URL chooses who keeps it.

Importing this imports no store's client library: ``open_store`` does, for the one that is asked for.
"""

from __future__ import annotations

from urllib.parse import SplitResult, unquote, urlsplit

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

__all__ = [
    "open_store",
    "Store", "Lease", "Watch", "Entry", "Guarantees", "OnChange", "OnGap", "VALUE_MAX_BYTES",
    "StoreError", "Conflict", "LeaseLost", "StoreUnavailable", "OutcomeUnknown", "StoreForbidden",
]  # fmt: skip

ETCD_DEFAULT_PORT = 2379
PORT_MAX = 65_535

_SUPPORTED = "etcd://HOST:PORT,HOST:PORT, embedded:///DIRECTORY or memory://NAME"
_NOT_YET = frozenset({"etcds", "redis", "rediss", "redis+sentinel", "zookeeper"})


def open_store(url: str, *, request_timeout_ms: int = 400, backoff_cap_ms: int = 1_000) -> Store:
    """Open the store that ``url`` names: an etcd cluster, an embedded etcd, or the memory of this process.

    Opening ``etcd://`` sends nothing yet, so a cluster that is down is found by the first call; ``embedded://``
    starts a server and returns when it serves.

    Args:
        url: ``etcd://h1:2379,h2:2379``, ``embedded:///path`` or ``memory://NAME``.
        request_timeout_ms: time that one call may take, rotation to a second server included.
        backoff_cap_ms: longest pause between two attempts to reconnect.

    Raises:
        ValueError: the URL is not understood; the sentence says what to write.
        StoreUnavailable: an embedded server did not start.
    """
    if request_timeout_ms <= 0 or backoff_cap_ms <= 0:
        raise ValueError(
            f"request_timeout_ms and backoff_cap_ms must be greater than 0, and they are {request_timeout_ms} and "
            f"{backoff_cap_ms}"
        )
    if "://" not in url:
        raise ValueError(f"{url!r} is not the URL of a store; write {_SUPPORTED}")
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ValueError(f"the {parts.scheme} store takes no options after '?' or '#'; write {_SUPPORTED}")
    if parts.scheme == "etcd":
        from killswitch.stores.etcd import EtcdStore  # noqa: PLC0415 - imports grpc

        return EtcdStore(_etcd_addresses(parts), request_timeout_ms=request_timeout_ms, backoff_cap_ms=backoff_cap_ms)
    if parts.scheme == "embedded":
        from killswitch.stores.embedded import EmbeddedStore  # noqa: PLC0415 - imports grpc

        return EmbeddedStore(_directory(parts), request_timeout_ms=request_timeout_ms, backoff_cap_ms=backoff_cap_ms)
    if parts.scheme == "memory":
        from killswitch.stores.memory import MemoryStore  # noqa: PLC0415 - keeps this package import-light

        return MemoryStore(unquote(parts.netloc + parts.path))
    if parts.scheme in _NOT_YET:
        raise ValueError(f"{parts.scheme}:// is not supported yet; write {_SUPPORTED}")
    raise ValueError(f"{parts.scheme}:// is no store that is known here; write {_SUPPORTED}")


def _etcd_addresses(parts: SplitResult) -> list[str]:
    """The ``host:port`` of every server that an etcd URL names."""
    example = "write etcd://HOST:PORT, or several as etcd://HOST:PORT,HOST:PORT"
    if "@" in parts.netloc:
        # Not echoed: what stands before the @ is a secret.
        raise ValueError(f"a user and password in the URL of etcd are not supported yet; {example}")
    if parts.path not in {"", "/"}:
        raise ValueError(f"an etcd URL has no path, and this one has {parts.path!r}; {example}")
    addresses: list[str] = []
    for server in parts.netloc.split(","):
        try:
            split = urlsplit(f"//{server}")
            host, port = split.hostname, split.port
        except ValueError:
            host, port = None, None
        if not host or (port is not None and not 0 < port <= PORT_MAX):
            raise ValueError(f"{server!r} is not the address of an etcd server; {example}")
        shown_host = f"[{host}]" if ":" in host else host
        addresses.append(f"{shown_host}:{port or ETCD_DEFAULT_PORT}")
    return addresses


def _directory(parts: SplitResult) -> str:
    """The absolute directory that an embedded URL names."""
    path = unquote(parts.path)
    if parts.netloc or path in {"", "/"}:
        raise ValueError(
            f"embedded://{parts.netloc}{parts.path} names no directory; write embedded:///absolute/directory, with "
            "three slashes"
        )
    return path

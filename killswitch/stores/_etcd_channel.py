"""Connections to the servers of an etcd cluster: deadlines, rotation, and what a failure says about a write.

A failed read did not happen, whatever the failure. A failed write may have happened, unless it was never sent, and
that must be *known*. gRPC says it outright when no connection could be made. It does not when a connection hangs, so
a write goes out only over a link that has answered since its last failure; over any other, a linearizable read goes
first, and when that fails the write was not sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
from pyetcd import etcdrpc

from killswitch import clock
from killswitch.stores.port import OutcomeUnknown, StoreForbidden, StoreUnavailable

R = TypeVar("R")

RPC_ERROR = grpc.RpcError

NANOSECONDS_PER_MS = 1_000_000
NANOSECONDS_PER_S = 1_000_000_000
# Servers of etcd drop clients that ping more often than every 5 s; watches notice silence by themselves.
CHANNEL_KEEPALIVE_EVERY_MS = 10_000
# Also the time after which the kernel gives up a connection with unacknowledged data: after a cut of the network a
# new connection is found sooner than the old one would resend.
CHANNEL_KEEPALIVE_TIMEOUT_MS = 1_500
FIRST_RECONNECT_AFTER_MS = 50
SHOWN_DETAILS_MAX_CHARS = 200

# A member that has lost its leader refuses at once, instead of letting the request wait until it times out.
REQUIRE_LEADER = (("hasleader", "true"),)
NO_LEADER_DETAILS = "etcdserver: no leader"

# gRPC's own words for "there was no connection to send it on". Should they change, writes report OutcomeUnknown
# where StoreUnavailable would have been true: the safe side.
NEVER_SENT_DETAILS = ("failed to connect to all addresses", "DNS resolution failed")
# Answers of etcd from before it proposes anything.
REFUSED_UNDONE_DETAILS = (NO_LEADER_DETAILS, "etcdserver: too many requests")
TOO_LARGE_DETAILS = "larger than max"

FORBIDDEN_CODES = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        # etcd: too large, too many operations, no user name where one is needed. It checks these before it acts.
        grpc.StatusCode.INVALID_ARGUMENT,
        # Something answers there that is not etcd.
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def open_channel(address: str, *, request_timeout_ms: int, backoff_cap_ms: int) -> Any:
    """Open a gRPC channel to one server. It connects when first used, and again by itself within the cap."""
    options = {
        # A retry inside gRPC would send a write twice without telling.
        "grpc.enable_retries": 0,
        "grpc.initial_reconnect_backoff_ms": min(FIRST_RECONNECT_AFTER_MS, backoff_cap_ms),
        # gRPC's name for the time that one attempt to connect may take; 20 s by default.
        "grpc.min_reconnect_backoff_ms": min(request_timeout_ms, backoff_cap_ms),
        "grpc.max_reconnect_backoff_ms": backoff_cap_ms,
        "grpc.dns_min_time_between_resolutions_ms": backoff_cap_ms,
        "grpc.keepalive_time_ms": CHANNEL_KEEPALIVE_EVERY_MS,
        "grpc.keepalive_timeout_ms": CHANNEL_KEEPALIVE_TIMEOUT_MS,
        # Channels to the same server would share one connection, and with it its death.
        "grpc.use_local_subchannel_pool": 1,
        # The store is reached directly, whatever http_proxy says.
        "grpc.enable_http_proxy": 0,
        # A scan may be larger than gRPC's default of 4 MiB; the port bounds each value.
        "grpc.max_receive_message_length": -1,
    }
    return grpc.insecure_channel(address, options=list(options.items()))


class Link:
    """One server: its channel, its stubs, and whether it has answered since its last failure.

    Attributes:
        proven: it has. Read and written without a lock: a stale ``True`` can only turn "did not happen" into
            "may have happened", never the other way round.
    """

    def __init__(self, address: str, channel: Any) -> None:
        self.address = address
        self.channel = channel
        self.kv = etcdrpc.KVStub(channel)
        self.lease = etcdrpc.LeaseStub(channel)
        self.maintenance = etcdrpc.MaintenanceStub(channel)
        # A keep-alive is a stream of requests. A stream of one is a unary call on the wire, and as such needs no
        # thread to feed it.
        self.keep_lease_alive = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=etcdrpc.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=etcdrpc.LeaseKeepAliveResponse.FromString,
        )
        self.proven = False


class Deadline:
    """The time that is left of one call's budget."""

    def __init__(self, budget_ms: int, now_ns: clock.NowNs) -> None:
        self._now_ns = now_ns
        self._end_ns = now_ns() + budget_ms * NANOSECONDS_PER_MS

    def remaining_s(self) -> float:
        """Seconds left, 0 when there are none."""
        return max(0, self._end_ns - self._now_ns()) / NANOSECONDS_PER_S


class EtcdTransport:
    """Calls to whichever server answers. Thread-safe.

    Args:
        addresses: ``host:port`` of each server; the first is asked first.
        request_timeout_ms: budget of a call, rotation included.
        backoff_cap_ms: longest pause between two attempts to connect.
        now_ns: the clock of the budgets.
    """

    def __init__(
        self, addresses: Sequence[str], *, request_timeout_ms: int, backoff_cap_ms: int, now_ns: clock.NowNs
    ) -> None:
        self.address = ",".join(addresses)
        self.request_timeout_ms = request_timeout_ms
        self._now_ns = now_ns
        self._links = [
            Link(
                address,
                open_channel(address, request_timeout_ms=request_timeout_ms, backoff_cap_ms=backoff_cap_ms),
            )
            for address in addresses
        ]
        self._lock = threading.Lock()
        self._current = 0
        self._closed = False

    def deadline(self) -> Deadline:
        """A fresh budget."""
        return Deadline(self.request_timeout_ms, self._now_ns)

    def ask(self, call: Callable[[Link, float], R], what: str, deadline: Deadline | None = None) -> R:
        """Make a call that may be made twice: on the current server, and when that fails on the next.

        Args:
            call: gets a link and the seconds that it may take.
            what: for the error, such as ``reading '/k'``.
            deadline: the budget, when this is part of a larger call.

        Raises:
            StoreUnavailable: no server answered.
            StoreForbidden: one refused for good.
        """
        deadline = deadline or self.deadline()
        failure: grpc.RpcError | None = None
        for link, share in self._attempts(repeat_only=True):
            if failure is not None and len(self._links) == 1 and _never_sent(failure):
                break  # nobody listens there, and asking again at once would not change it
            remaining_s = deadline.remaining_s()
            if remaining_s <= 0:
                break
            try:
                answer = call(link, remaining_s * share)
            except grpc.RpcError as error:
                failure = error
                self._failed(link, error, what)
                continue
            except ValueError as error:
                raise self._closed_or(error) from error
            link.proven = True
            return answer
        raise StoreUnavailable(self._sentence(what, failure))

    def write_once(self, call: Callable[[Link, float], R], what: str, deadline: Deadline | None = None) -> R:
        """Make a call that must not be made twice: it is sent to one server at most.

        Raises:
            StoreUnavailable: it was not sent, or was refused undone.
            OutcomeUnknown: it was sent, and no answer came.
            StoreForbidden: refused for good.
        """
        deadline = deadline or self.deadline()
        failure: grpc.RpcError | None = None
        for link, share in self._attempts(repeat_only=False):
            try:
                if not link.proven:
                    probe(link, deadline.remaining_s() * share)
                    link.proven = True
            except grpc.RpcError as error:
                failure = error
                self._failed(link, error, what)
                continue
            except ValueError as error:
                raise self._closed_or(error) from error
            remaining_s = deadline.remaining_s()
            if remaining_s <= 0:
                break
            try:
                return call(link, remaining_s)
            except grpc.RpcError as error:
                failure = error
                self._failed(link, error, what)
                if _never_sent(error) or _refused_undone(error):
                    continue
                raise OutcomeUnknown(
                    f"{self._sentence(what, error)}; it may have happened, and only a read can tell"
                ) from error
            except ValueError as error:
                raise self._closed_or(error) from error
        raise StoreUnavailable(self._sentence(what, failure))

    def close(self) -> None:
        """Close every channel. Calls in flight fail."""
        self._closed = True
        for link in self._links:
            link.channel.close()

    def _attempts(self, *, repeat_only: bool) -> Iterator[tuple[Link, float]]:
        """The links to try and the share of the remaining time for each, beginning with the current one.

        With ``repeat_only`` a single server is tried twice: its connection may have died unseen, which the first
        attempt finds out at once.
        """
        with self._lock:
            start = self._current
        ordered = [*self._links[start:], *self._links[:start]]
        if len(ordered) == 1:
            yield ordered[0], 1.0
            if repeat_only:
                yield ordered[0], 1.0
            return
        for position, link in enumerate(ordered):
            # Half of what is left, so that a server that hangs leaves time to ask another.
            yield link, 1.0 if position == len(ordered) - 1 else 0.5

    def _failed(self, link: Link, error: grpc.RpcError, what: str) -> None:
        """Note a failure and move on to the next server; raises :class:`StoreForbidden` when that is pointless."""
        link.proven = False
        code, details = _code(error), _details(error)
        if code in FORBIDDEN_CODES or (code == grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE_DETAILS in details):
            link.proven = True
            raise StoreForbidden(f"etcd at {link.address} refuses {what} for good: {_shown(error)}") from error
        with self._lock:
            if self._links[self._current] is link:
                self._current = (self._current + 1) % len(self._links)

    def _sentence(self, what: str, failure: grpc.RpcError | None) -> str:
        if self._closed:
            return f"the store at {self.address} has been closed, so {what} cannot be done"
        why = "no time was left" if failure is None else _shown(failure)
        return f"etcd at {self.address} did not answer {what} within {self.request_timeout_ms} ms: {why}"

    def _closed_or(self, error: ValueError) -> Exception:
        """gRPC raises ``ValueError`` for a call on a closed channel, and for nothing else that we do."""
        return StoreUnavailable(self._sentence("a request", None)) if self._closed else error


def probe(link: Link, timeout_s: float) -> None:
    """Do the cheapest linearizable read; raises ``grpc.RpcError`` when it fails."""
    request = etcdrpc.RangeRequest(key=b"\0", limit=1, keys_only=True, serializable=False)
    link.kv.Range(request, timeout=timeout_s, metadata=REQUIRE_LEADER)


def describe_failure(error: grpc.RpcError) -> str:
    """The failure in a few words, for the log."""
    return _shown(error)


def is_not_found(error: grpc.RpcError) -> bool:
    """Whether the server answered that there is no such thing."""
    return bool(_code(error) == grpc.StatusCode.NOT_FOUND)


def _never_sent(error: grpc.RpcError) -> bool:
    return _code(error) == grpc.StatusCode.UNAVAILABLE and _details(error).startswith(NEVER_SENT_DETAILS)


def _refused_undone(error: grpc.RpcError) -> bool:
    return _details(error) in REFUSED_UNDONE_DETAILS


def _code(error: grpc.RpcError) -> Any:
    # Errors of calls are grpc.Call objects, too; the stubs of the package do not say so.
    return error.code() if isinstance(error, grpc.Call) else None


def _details(error: grpc.RpcError) -> str:
    return str(error.details() or "") if isinstance(error, grpc.Call) else str(error)


def _shown(error: grpc.RpcError) -> str:
    code = _code(error)
    name = code.name.lower().replace("_", " ") if code is not None else "failed"
    details = " ".join(_details(error).split())[:SHOWN_DETAILS_MAX_CHARS]
    return f"{name} ({details})" if details else name

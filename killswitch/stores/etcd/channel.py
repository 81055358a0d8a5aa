"""Connections to the servers of an etcd cluster: deadlines, rotation, and what a failure says about a write.

A failed read did not happen, whatever the failure. A failed write may have happened, unless it was never sent, and
that must be *known*. gRPC says it outright when no connection could be made. It does not when a connection hangs, so
a write goes out only over a link that has answered since its last failure; over any other, a linearizable read goes
first, and when that fails the write was not sent.

A call whose token is refused did not happen either, so it is made once more with a new one, writes included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar

import grpc
import structlog
from pyetcd import etcdrpc

from killswitch import clock
from killswitch.safe_log import say
from killswitch.stores.etcd import failures
from killswitch.stores.etcd.credentials import (
    REQUIRE_LEADER,
    Metadata,
    TokenKeeper,
    channel_credentials,
    channel_options,
    fingerprint,
)
from killswitch.stores.front import closed_sentence, unknown
from killswitch.stores.port import OutcomeUnknown, StoreForbidden, StoreUnavailable
from killswitch.stores.timing import Deadline, in_turn
from killswitch.stores.tls import TlsFilesUnusable
from killswitch.stores.urls import TlsFiles

R = TypeVar("R")

RPC_ERROR = grpc.RpcError

# Servers of etcd drop clients that ping more often than every 5 s; watches notice silence by themselves.
CHANNEL_KEEPALIVE_EVERY_MS = 10_000
# Also the time after which the kernel gives up a connection with unacknowledged data: after a cut of the network a
# new connection is found sooner than the old one would resend.
CHANNEL_KEEPALIVE_TIMEOUT_MS = 1_500
FIRST_RECONNECT_AFTER_MS = 50

_log = structlog.get_logger(__name__)


class How(TypedDict):
    """How a call is to be made: gRPC's keyword arguments."""

    timeout: float
    metadata: Metadata


Call = Callable[["Link", How], R]


class DatabaseFull(OutcomeUnknown):
    """The database is full, and this write may have been the one that filled it. See :func:`full_sentence`."""


def open_channel(address: str, *, request_timeout_ms: int, backoff_cap_ms: int, tls: TlsFiles | None = None) -> Any:
    """Open a gRPC channel to one server. It connects when first used, and again by itself within the cap.

    Raises:
        TlsFilesUnusable: a file of ``tls`` cannot be used.
    """
    options: dict[str, int | str] = {
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
    if tls is None:
        return grpc.insecure_channel(address, options=list(options.items()))
    options.update(channel_options(tls))
    return grpc.secure_channel(address, channel_credentials(tls), options=list(options.items()))


class Link:
    """One server: its channel, its stubs, and whether it has answered since its last failure.

    Args:
        address: ``host:port``.
        dial: makes a channel to an address, and raises ``TlsFilesUnusable``.
        tls: the files that ``dial`` reads, if any.

    Attributes:
        proven: it has. Read and written without a lock: a stale ``True`` can only turn "did not happen" into
            "may have happened", never the other way round.
        tls_fault: why renewed files have not been taken up; empty when there is nothing to say.
    """

    def __init__(self, address: str, dial: Callable[[str], Any], tls: TlsFiles | None) -> None:
        self.address = address
        self.proven = False
        self.tls_fault = ""
        self._dial = dial
        self._tls = tls
        self._lock = threading.Lock()
        self._closed = False
        self._files_as_read = fingerprint(tls) if tls else ()
        self._connect(dial(address))

    def _connect(self, channel: Any) -> None:
        self.channel = channel
        self.kv = etcdrpc.KVStub(channel)
        self.lease = etcdrpc.LeaseStub(channel)
        self.maintenance = etcdrpc.MaintenanceStub(channel)
        self.cluster = etcdrpc.ClusterStub(channel)
        self.auth = etcdrpc.AuthStub(channel)
        # A keep-alive is a stream of requests. A stream of one is a unary call on the wire, and as such needs no
        # thread to feed it.
        self.keep_lease_alive = channel.unary_unary(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=etcdrpc.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=etcdrpc.LeaseKeepAliveResponse.FromString,
        )

    def take_up_renewed_files(self) -> bool:
        """Connect anew when the TLS files have changed since they were read; returns whether it did.

        For a link that has failed: one that works needs no new certificate, because TLS looks at them only when it
        connects. Calls of other threads on the old channel fail, as they were about to.
        """
        if self._tls is None:
            return False
        with self._lock:
            found = fingerprint(self._tls)
            if self._closed or found == self._files_as_read:
                return False
            try:
                channel = self._dial(self.address)
            except TlsFilesUnusable as error:
                # Perhaps only half of them are written yet; the old ones may still be good.
                self.tls_fault = str(error)
                return False
            old, self._files_as_read, self.tls_fault = self.channel, found, ""
            self._connect(channel)
        old.close()
        say("info", "tls files renewed", by=_log, address=self.address)
        return True

    def close(self) -> None:
        """Close the channel. Calls in flight fail."""
        with self._lock:
            self._closed = True
            self.channel.close()


class _NotSent(Exception):
    """A write was not sent, or refused undone."""

    def __init__(self, cause: grpc.RpcError) -> None:
        super().__init__(cause)
        self.cause = cause


class EtcdTransport:
    """Calls to whichever server answers. Thread-safe.

    Args:
        addresses: ``host:port`` of each server; the first is asked first.
        request_timeout_ms: budget of a call, rotation and logging in included.
        dial: makes a channel to an address.
        tls: the files that ``dial`` reads, if any; read again when a connection fails and they have changed.
        tokens: who we are, when the servers want a password.
        now_ns: the clock of the budgets.

    Raises:
        TlsFilesUnusable: a file of ``tls`` cannot be used.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        request_timeout_ms: int,
        dial: Callable[[str], Any],
        tls: TlsFiles | None,
        tokens: TokenKeeper | None,
        now_ns: clock.NowNs,
    ) -> None:
        self.address = ",".join(addresses)
        self.request_timeout_ms = request_timeout_ms
        self._tls = tls
        self._tokens = tokens
        self._now_ns = now_ns
        self._links = [Link(address, dial, tls) for address in addresses]
        self._lock = threading.Lock()
        self._current = 0
        self._closed = False

    def deadline(self) -> Deadline:
        """A fresh budget."""
        return Deadline(self.request_timeout_ms, self._now_ns)

    def ask(self, call: Call[R], what: str, deadline: Deadline | None = None) -> R:
        """Make a call that may be made twice: on the current server, and when that fails on the next.

        Args:
            call: gets a link, and how to make the call.
            what: for the error, such as ``reading '/k'``.
            deadline: the budget, when this is part of a larger call.

        Raises:
            StoreUnavailable: no server answered.
            StoreForbidden: one refused for good.
        """
        deadline = deadline or self.deadline()
        failure: grpc.RpcError | None = None
        for link, within in in_turn(self._links, deadline, first=self._current, single_twice=True):
            alone = len(self._links) == 1
            if failure is not None and alone and failures.never_sent(failure) and not link.take_up_renewed_files():
                break  # nobody listens there, and asking again at once would not change it
            try:
                answer = self._call(link, call, within)
            except grpc.RpcError as error:
                failure = error
                self._failed(link, error, what)
                continue
            except ValueError as error:
                self._check_open(error)
                continue
            link.proven = True
            return answer
        raise StoreUnavailable(self._sentence(what, failure))

    def write_once(self, call: Call[R], what: str, deadline: Deadline | None = None) -> R:
        """Make a call that must not be made twice: one server at most may act on it.

        Raises:
            StoreUnavailable: it was not sent, or was refused undone.
            OutcomeUnknown: it was sent, and no answer came.
            DatabaseFull: an OutcomeUnknown: it was refused for want of space, or was the last that found some.
            StoreForbidden: refused for good.
        """
        deadline = deadline or self.deadline()
        failure: grpc.RpcError | None = None
        for link, within in in_turn(self._links, deadline, first=self._current):
            try:
                return self._write_over(link, call, within, deadline)
            except _NotSent as not_sent:
                failure = not_sent.cause
                self._failed(link, failure, what)
            except grpc.RpcError as error:
                if failures.is_out_of_space(error):
                    raise DatabaseFull(
                        f"{full_sentence(link.address, what)}; it may have happened, as the last that found room, and "
                        "only a read can tell"
                    ) from error
                self._failed(link, error, what)
                raise unknown(self._sentence(what, error)) from error
            except ValueError as error:
                self._check_open(error)
        raise StoreUnavailable(self._sentence(what, failure))

    def close(self) -> None:
        """Close every channel. Calls in flight fail."""
        self._closed = True
        for link in self._links:
            link.close()

    def _call(self, link: Link, call: Call[R], deadline: Deadline) -> R:
        """One call over one link, and once more with a new token where the first was refused."""
        if not link.proven:
            link.take_up_renewed_files()
        how = self._how(link, deadline)
        try:
            return call(link, how)
        except grpc.RpcError as error:
            if not self._token_was_refused(error, how):
                raise
        return call(link, self._how(link, deadline))

    def _write_over(self, link: Link, call: Call[R], within: Deadline, deadline: Deadline) -> R:
        """One write over one link; raises :class:`_NotSent` when it certainly did not happen.

        Args:
            link: the server.
            call: the write.
            within: time to find out whether the server answers; another may be asked after it.
            deadline: of the write itself, after which nobody else is asked.
        """
        try:
            if not link.proven:
                self._call(link, probe, within)
                link.proven = True
            token = self._token(link, within)
        except grpc.RpcError as error:
            raise _NotSent(error) from error
        for last_try in (False, True):
            how = How(timeout=deadline.remaining_s(), metadata=(*REQUIRE_LEADER, *token))
            try:
                return call(link, how)
            except grpc.RpcError as error:
                if failures.never_sent(error) or failures.refused_undone(error):
                    raise _NotSent(error) from error
                if not self._token_was_refused(error, how):
                    raise
                if last_try:
                    raise _NotSent(error) from error
            try:
                token = self._token(link, deadline)
            except grpc.RpcError as error:
                raise _NotSent(error) from error
        raise AssertionError("the second try returns or raises")

    def _how(self, link: Link, deadline: Deadline) -> How:
        """Log in where that is due, which counts into the budget; raises ``grpc.RpcError`` when it fails."""
        token = self._token(link, deadline)
        return How(timeout=deadline.remaining_s(), metadata=(*REQUIRE_LEADER, *token))

    def _token(self, link: Link, deadline: Deadline) -> Metadata:
        return self._tokens.metadata(link.channel, deadline.remaining_s()) if self._tokens else ()

    def _token_was_refused(self, error: grpc.RpcError, how: How) -> bool:
        """Whether a new token may help; the old one is forgotten then."""
        if self._tokens is None or not failures.refuses_token(error):
            return False
        self._tokens.reject(how["metadata"][len(REQUIRE_LEADER) :])
        return True

    def _failed(self, link: Link, error: grpc.RpcError, what: str) -> None:
        """Note a failure and move on to the next server; raises :class:`StoreForbidden` when that is pointless."""
        link.proven = False
        # A new token that is refused as well, as by a server that restarted in between, is no judgement on the user.
        stale = self._tokens is not None and failures.refuses_token(error)
        if failures.is_forbidden(error) and not stale:
            link.proven = True
            raise StoreForbidden(f"etcd at {link.address} refuses {what} for good: {self._shown(error)}") from error
        with self._lock:
            if self._links[self._current] is link:
                self._current = (self._current + 1) % len(self._links)

    def _shown(self, error: grpc.RpcError) -> str:
        return failures.shown(error, tls=self._tls is not None)

    def _sentence(self, what: str, failure: grpc.RpcError | None) -> str:
        if self._closed:
            return closed_sentence(self.address, what)
        if failure is not None and failures.is_out_of_space(failure):
            return f"{full_sentence(self.address, what)}; it was not done"
        why = "no time was left" if failure is None else self._shown(failure)
        fault = next(
            (f"; the TLS files have changed, but {link.tls_fault}" for link in self._links if link.tls_fault), ""
        )
        return f"etcd at {self.address} did not answer {what} within {self.request_timeout_ms} ms: {why}{fault}"

    def _check_open(self, error: ValueError) -> None:
        """gRPC raises ``ValueError`` for a call on a closed channel, and for nothing else that we do.

        Either the store was closed, or another thread has just replaced that channel: nothing was sent.
        """
        if self._closed:
            raise StoreUnavailable(self._sentence("a request", None)) from error


def without_leader(how: How) -> How:
    """The same for what a member knows by itself, and can tell while there is no leader."""
    return How(timeout=how["timeout"], metadata=how["metadata"][len(REQUIRE_LEADER) :])


def probe(link: Link, how: How) -> None:
    """Do the cheapest linearizable read; raises ``grpc.RpcError`` when it fails."""
    request = etcdrpc.RangeRequest(key=b"\0", limit=1, keys_only=True, serializable=False)
    try:
        link.kv.Range(request, **how)
    except grpc.RpcError as error:
        # etcd looks at permissions after it has asked the quorum, and few users may read that key.
        if not failures.is_permission_denied(error):
            raise


def full_sentence(address: str, what: str) -> str:
    """What to tell a person whose database is full."""
    return (
        f"etcd at {address} is out of space and takes no writes, so not {what}: compact it, defragment every member "
        "and 'etcdctl alarm disarm', or raise --quota-backend-bytes"
    )

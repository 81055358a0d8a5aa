"""A watch on etcd: a stream that is opened again for ever, and silence that is never taken for health.

Three threads while it runs: ours that iterates the stream and calls back (no queue between the two, because this is
the path of a freeze), gRPC's that sends requests, and a pulse. The pulse asks the server for a sign of life every
second and cancels a stream on which nothing has come for three: a member that is cut off, or a firewall that forgot
the connection, says nothing, and neither does gRPC.

Each subscription has a channel of its own, thrown away with it, so that a reconnect never goes out over the
connection that just failed, and takes up renewed certificates.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from pyetcd import etcdrpc

from killswitch.stores.etcd import failures
from killswitch.stores.etcd.credentials import REQUIRE_LEADER, Metadata, TokenKeeper
from killswitch.stores.front import end_of_prefix, key_bytes, key_text
from killswitch.stores.port import Entry
from killswitch.stores.timing import MILLISECONDS_PER_S, NANOSECONDS_PER_MS
from killswitch.stores.tls import TlsFilesUnusable
from killswitch.stores.watching import ServerWatch, WatchSettings

PROGRESS_EVERY_MS = 1_000


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """First key and end (exclusive) of the range of all keys that begin with ``prefix``, in etcd's terms."""
    # "\0" is etcd's word for the first key of all, and for "to the end".
    first = key_bytes(prefix)
    return first or b"\0", end_of_prefix(first) or b"\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdWatchSettings(WatchSettings):
    """How a watch on etcd connects.

    Attributes:
        open_channel: makes a channel to one of the servers; raises ``TlsFilesUnusable`` when a file has gone bad.
        tokens: who we are, when the servers want a password.
        tls: whether the channels are over TLS, for the words of the log.
    """

    open_channel: Callable[[str], Any]
    tokens: TokenKeeper | None = None
    tls: bool = False


class _Subscription:
    """One stream, from its opening to its end."""

    def __init__(self, settings: EtcdWatchSettings, prefix: str) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._now_ns = settings.now_ns
        self._heard_ns = settings.now_ns()
        self._listening = True
        first, end = prefix_range(prefix)
        # No start_revision: the newest state is what counts and on_gap makes the caller read it. A revision from
        # before would silence the watch on a store that was restored from a backup.
        self._requests.put(
            etcdrpc.WatchRequest(
                create_request=etcdrpc.WatchCreateRequest(key=first, range_end=end, progress_notify=True)
            )
        )
        self.call: Any = None

    def open(self, channel: Any, token: Metadata) -> None:
        """Send the request that creates the watch."""
        metadata = (*REQUIRE_LEADER, *token)
        self.call = etcdrpc.WatchStub(channel).Watch(iter(self._requests.get, None), metadata=metadata)

    def responses(self) -> Iterator[Any]:
        """What the server says, as it says it; raises ``grpc.RpcError`` when the stream fails."""
        for response in self.call:
            # While a callback runs nothing is read, so nothing heard is no silence then.
            self._listening = False
            yield response
            self._heard_ns = self._now_ns()
            self._listening = True

    def ask_progress(self) -> None:
        """Ask for a sign of life, unless a callback runs: nobody would hear the answer, and requests would pile up."""
        if self._listening:
            self._requests.put(etcdrpc.WatchRequest(progress_request=etcdrpc.WatchProgressRequest()))

    def silent_for_ms(self) -> float:
        """How long nothing has come although somebody listens."""
        return (self._now_ns() - self._heard_ns) / NANOSECONDS_PER_MS if self._listening else 0.0

    def end(self) -> None:
        """Cancel the stream and release gRPC's sending thread. May be called twice, and from any thread."""
        self.call.cancel()
        self._requests.put(None)


class EtcdWatch(ServerWatch[EtcdWatchSettings]):
    """A running subscription; see the module docstring. Made by :meth:`EtcdStore.watch`."""

    _subscription: _Subscription | None = None

    def start(self) -> None:
        """Begin."""
        self._pulse = threading.Thread(target=self._watch_over, name=f"watch pulse {self._prefix}", daemon=True)
        self._pulse.start()
        super().start()

    def close(self) -> None:
        """End it; when this returns no callback is running or will be called, unless called from a callback."""
        super().close()
        self._pulse.join()

    def _interrupt(self) -> None:
        if self._subscription is not None:
            self._subscription.end()

    def _subscribe(self, address: str) -> str:
        """Watch through one server until that ends; returns why it did."""
        try:
            channel = self._settings.open_channel(address)
        except TlsFilesUnusable as error:
            return str(error)
        token: Metadata = ()
        try:
            token = self._token(channel)
            return self._follow(channel, token)
        except grpc.RpcError as error:
            if failures.refuses_token(error):
                self._forget_token(token)
            return failures.shown(error, tls=self._settings.tls)
        finally:
            channel.close()

    def _follow(self, channel: Any, token: Metadata) -> str:
        """One subscription over an open channel, to its end; returns why it ended, or raises ``grpc.RpcError``."""
        subscription = _Subscription(self._settings, self._prefix)
        try:
            with self._lock:
                if self._stop.is_set():
                    return "closed"
                subscription.open(channel, token)
                self._subscription = subscription
            for response in subscription.responses():
                if self._stop.is_set():
                    return "closed"
                if response.canceled:
                    if failures.may_refuse_token(str(response.cancel_reason)):
                        self._forget_token(token)
                    return _cancel_reason(response)
                self._deliver(response)
        finally:
            with self._lock:
                self._subscription = None
            if subscription.call is not None:
                subscription.end()
        return "the server ended the stream"

    def _token(self, channel: Any) -> Metadata:
        tokens = self._settings.tokens
        return tokens.metadata(channel, self._settings.request_timeout_ms / MILLISECONDS_PER_S) if tokens else ()

    def _forget_token(self, token: Metadata) -> None:
        """So that the next attempt logs in anew. The server does not always say whether the token was at fault."""
        if self._settings.tokens is not None:
            self._settings.tokens.reject(token)

    def _deliver(self, response: Any) -> None:
        if response.created:
            self._tell_gap()
        self._tell(
            Entry(
                key_text(event.kv.key),
                None if event.type == event.DELETE else bytes(event.kv.value),
                int(event.kv.mod_revision),
            )
            for event in response.events
        )

    def _watch_over(self) -> None:
        """The pulse. Independent of gRPC's threads, because those are what may hang."""
        while not self._stop.wait(self._settings.alive_every_ms / MILLISECONDS_PER_S):
            with self._lock:
                subscription = self._subscription
                if subscription is None:
                    continue
                if subscription.silent_for_ms() > self._settings.silence_limit_ms:
                    self._say_silent(silent_ms=round(subscription.silent_for_ms()))
                    subscription.end()
                else:
                    subscription.ask_progress()


def _cancel_reason(response: Any) -> str:
    if response.compact_revision:
        return f"the server has compacted what this watch had still to send, up to {response.compact_revision}"
    return str(response.cancel_reason) or "the server cancelled the watch"

"""One connection to one ZooKeeper server, over kazoo, thrown away when it fails.

kazoo reconnects by itself, keeps what could not be sent and sends it later, and tells of a lost session only after it
has reconnected. A write that arrives when its sender has given it up is what a kill switch must not have. So here a
client of kazoo makes one connection in its life, through a handler of our own; the next connection is a new client.

The handler also bounds every wait of kazoo's thread by a call to :meth:`Connection.abandon`, runs completions on that
thread (one thread a connection), keeps the zxid of each reply, and makes TLS connections, for kazoo trusts the system's
authorities beside those of ``ca_file`` and knows no ``server_name``.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from kazoo.client import KazooClient
from kazoo.exceptions import (
    ConnectionClosedError,
    ConnectionLoss,
    SessionExpiredError,
    SessionMovedError,
    ZookeeperError,
)
from kazoo.handlers.threading import AsyncResult, KazooTimeoutError, SequentialThreadingHandler
from kazoo.retry import KazooRetry
from kazoo.security import CREATOR_ALL_ACL, OPEN_ACL_UNSAFE

from killswitch import clock
from killswitch.stores.timing import MILLISECONDS_PER_S, NANOSECONDS_PER_MS, NANOSECONDS_PER_S, Deadline
from killswitch.stores.urls import Login, TlsFiles
from killswitch.stores.zookeeper.dial import dial, reason

GOODBYE_WITHIN_MS = 200
JOIN_WITHIN_S = 0.5
# Long enough that the calls' own time-outs find a server that hangs, before kazoo's ping does.
SESSION_TIMEOUT_MS = 10_000

_log = structlog.get_logger(__name__)

# Out of reach of the logging configuration: kazoo's messages at DEBUG hold passwords and values. What it warns of is
# reported by who asked.
_kazoo_log = logging.Logger("killswitch.kazoo", logging.CRITICAL)


class Unanswered(Exception):
    """No answer came: the connection could not be made, broke, or was silent too long."""


class SessionGone(Exception):
    """A server says that it knows no such session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as another connection can take it over."""

    session_id: int
    password: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """What all connections of a store have in common.

    Attributes:
        login: sent as ZooKeeper's ``digest``; znodes are then made for that identity only.
        tls: files for TLS, ``None`` for connections in the clear.
        now_ns: clock of the time-outs.
    """

    login: Login | None = None
    tls: TlsFiles | None = None
    now_ns: clock.NowNs = clock.now_ns

    @property
    def acl(self) -> list[Any]:
        """Who may touch what we create."""
        return list(CREATOR_ALL_ACL if self.login else OPEN_ACL_UNSAFE)


class Reply(AsyncResult):  # type: ignore[misc] # kazoo has no types
    """The reply to one request.

    Attributes:
        zxid: of the server's state that it shows: all changes up to this one, and none after it.
    """

    zxid = 0

    def set(self, value: Any = None) -> None:
        """Keep the reply; called by kazoo on the thread that reads replies in their order."""
        self.zxid = self._handler.newest_zxid()
        super().set(value)

    def set_exception(self, exception: Exception) -> None:
        """Keep what was answered in place of a value."""
        self.zxid = self._handler.newest_zxid()
        super().set_exception(exception)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc] # kazoo has no types
    """What kazoo's client waits, connects and calls back with."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def start(self) -> None:
        """No threads of callbacks: with ``running`` false kazoo runs them on the connection's own."""

    def stop(self) -> None:
        """Nothing was started."""

    def newest_zxid(self) -> int:
        return int(self._connection.client.last_zxid)

    def async_result(self) -> Reply:
        return Reply(self)

    def dispatch_callback(self, callback: Any) -> None:
        callback.func(*callback.args)

    def create_socket_pair(self) -> Any:
        self._connection.bell, ringer = super().create_socket_pair()
        return self._connection.bell, ringer

    def create_connection(self, *_: Any, address: tuple[str, int], timeout: float, **__: Any) -> socket.socket:
        return self._connection.connect(address, timeout)

    def select(self, readers: Any, writers: Any, _: Any, timeout: float | None = None) -> Any:
        return self._connection.wait(readers, writers, timeout)

    def spawn(self, function: Callable[[], None], *_: Any, **__: Any) -> threading.Thread:
        return self._connection.run(function)


class Connection:
    """One connection. Make it, :meth:`open` it, use it from any thread, :meth:`close` or :meth:`abandon` it.

    Args:
        server: ``host:port``.
        settings: of the store.
        timeout_ms: the session's time-out to ask for.
        session: one to take over; a new one otherwise.
        pings: whether the session is kept alive while nothing is asked. Without, it lives by requests alone.

    Raises:
        Unanswered: this process can open nothing more.
    """

    def __init__(
        self,
        server: str,
        settings: ConnectionSettings,
        *,
        timeout_ms: int,
        session: Session | None = None,
        pings: bool = True,
    ) -> None:
        self.server = server
        self.granted_ms = 0
        self.failure = ""
        self.bell: Any = None
        self._settings = settings
        self._session = session
        self._pings = pings
        self._hello: Reply | None = None
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._end_ns: int | None = None
        self._ended = self._closing = False
        try:
            self._wake, self._waker = socket.socketpair()
        except OSError as error:
            raise _exhausted(error) from None
        login, handler = settings.login, _Handler(self)
        # No pause and no second attempt, in the counting of kazoo 2.10 and of 2.11.
        once = KazooRetry(max_tries=1, delay=0, deadline=0, sleep_func=handler.sleep_func)
        self.client = KazooClient(
            hosts=server,
            timeout=timeout_ms / MILLISECONDS_PER_S,
            client_id=(session.session_id, session.password) if session else None,
            handler=handler,
            auth_data=[("digest", f"{login.username}:{login.password}")] if login else None,
            connection_retry=once,
            command_retry=once,
            logger=_kazoo_log,
        )

    def open(self, deadline: Deadline) -> None:
        """Connect, log in, and wait until a first request has been answered.

        Raises:
            Unanswered: not within the time; the connection is abandoned.
            SessionGone: the session to be taken over has ended.
            AuthFailedError: the server refuses the login.
        """
        try:
            self._start()
            answered = self._settled.wait(deadline.remaining_s())
            self._check_hello(answered, deadline)
        except BaseException:
            self.abandon()
            raise

    def _start(self) -> None:
        try:
            self.client.start_async()
        except (OSError, RuntimeError) as error:
            with self._lock:
                self._ended = True
            self._release()
            raise _exhausted(error) from None

    def _check_hello(self, answered: bool, deadline: Deadline) -> None:
        if self._hello is None or not answered:
            raise Unanswered(self.failure or "no answer in time")
        self.outcome(self._hello, deadline)

    @property
    def connected(self) -> bool:
        """Whether it stands, as far as is known."""
        return bool(self.client.connected) and self._end_ns is None

    @property
    def session(self) -> Session | None:
        """The session, for another connection to take over; ``None`` when there is none."""
        identity = self.client.client_id
        return Session(session_id=identity[0], password=identity[1]) if identity else None

    def outcome(self, reply: Reply, deadline: Deadline) -> Any:
        """The reply's value, waited for.

        Raises:
            Unanswered: it did not come.
            SessionGone: the session has ended.
            ZookeeperError: what the server answered instead.
        """
        try:
            return reply.get(timeout=deadline.remaining_s())
        except KazooTimeoutError:
            raise Unanswered("no answer in time") from None
        except (ConnectionLoss, ConnectionClosedError, SessionMovedError):
            raise Unanswered(self.failure or "the connection was lost") from None
        except SessionExpiredError:
            raise SessionGone("the session has ended") from None
        except ZookeeperError:
            raise
        except Exception as error:  # an answer that kazoo could not read is none
            raise Unanswered(f"kazoo could not read the answer: {error!r}") from None

    @property
    def tls(self) -> TlsFiles | None:
        """Files for TLS."""
        return self._settings.tls

    @property
    def now_ns(self) -> clock.NowNs:
        """The clock of its time-outs."""
        return self._settings.now_ns

    def barrier(self) -> Reply:
        """A change of nothing that a majority of the servers agrees on: what is read after it is not stale.

        ZooKeeper's own ``sync`` asks the leader, and a leader that was deposed while it slept answers, too.
        """
        nothing = self.client.transaction()
        nothing.check("/", -1)
        return self._reply(nothing.commit_async())

    def sync(self, path: str) -> Reply:
        """Have the server catch up with its leader."""
        return self._reply(self.client.sync_async(path))

    def get(self, path: str, on_event: Callable[[Any], None] | None = None) -> Reply:
        """Data and stat of a znode."""
        return self._reply(self.client.get_async(path, watch=on_event))

    def children(self, path: str, on_event: Callable[[Any], None] | None = None) -> Reply:
        """Names of a znode's children, and its stat."""
        return self._reply(self.client.get_children_async(path, watch=on_event, include_data=True))

    def exists(self, path: str, on_event: Callable[[Any], None] | None = None) -> Reply:
        """Stat of a znode, ``None`` when it is not there."""
        return self._reply(self.client.exists_async(path, watch=on_event))

    def create(self, path: str, data: bytes) -> Reply:
        """Create a lasting znode."""
        return self._reply(self.client.create_async(path, data, acl=self._settings.acl))

    def transact(self, add_operations: Callable[[Any, list[Any]], None]) -> Reply:
        """All or nothing: ``add_operations`` gets kazoo's transaction to fill, and the ACL for what it creates."""
        transaction = self.client.transaction()
        add_operations(transaction, self._settings.acl)
        return self._reply(transaction.commit_async())

    def abandon(self) -> None:
        """Give it up at once, without a word to the server. The session runs out by itself."""
        self._end_at(self._settings.now_ns())
        self._settled.set()

    def end_soon(self) -> None:
        """Bound what :meth:`close` may take from now on."""
        self._end_at(self._settings.now_ns() + GOODBYE_WITHIN_MS * NANOSECONDS_PER_MS)

    def close(self) -> None:
        """End the session, if the server answers within 200 ms, and the connection in any case."""
        self.end_soon()
        if self._hello is None:
            # It may wait for the name of the server to be found, which nobody can cut short.
            self.abandon()
            return
        with self._lock:
            if self._ended or self._closing:
                return
            self._closing = True
        try:
            self.client.stop()
        finally:
            with self._lock:
                # Before what wakes the thread is gone, so that whoever gives this connection up now wakes nobody.
                self._ended = True
            self._release()

    def join(self) -> None:
        """Wait for the end of the connection's thread, after it was abandoned or closed, at most 500 ms."""
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(JOIN_WITHIN_S)

    # What follows is called by kazoo's client, on the connection's own thread.

    def connect(self, address: tuple[str, int], timeout_s: float) -> socket.socket:
        """Make the one connection, and put the first request in its queue."""
        if self._hello is not None:
            raise OSError("a connection is made once")
        deadline = Deadline(timeout_s * MILLISECONDS_PER_S, self._settings.now_ns)
        try:
            connected = dial(address, self.server, self._settings.tls, deadline, self._ready)
        except OSError as error:
            self.failure = reason(error)
            raise
        self.failure = ""
        # Asked before the session is there: kazoo fails it with the reason if the session cannot be had.
        self._hello = self.exists("/")
        self._hello.rawlink(lambda _: self._settled.set())
        return connected

    def wait(
        self, readers: list[Any], writers: list[Any], timeout_s: float | None
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """``select`` that ends when the connection is given up, and sees what a TLS socket holds already."""
        if writers and timeout_s is not None:
            # kazoo keeps the time-out that was granted to itself, but waits no longer than that to send a request.
            self.granted_ms = round(timeout_s * MILLISECONDS_PER_S)
        if not self._pings and self.bell in readers:
            timeout_s = None  # kazoo pings when an idle wait ends without news
        now_ns = self._settings.now_ns
        until_ns = None if timeout_s is None else now_ns() + round(timeout_s * NANOSECONDS_PER_S)
        held = [reader for reader in readers if isinstance(reader, ssl.SSLSocket) and reader.pending()]
        poll = select.poll()
        for reader in (*readers, self._wake):
            poll.register(reader, select.POLLIN)
        for writer in writers:
            poll.register(writer, select.POLLOUT)
        while True:
            if self._end_ns is not None and self._end_ns <= now_ns():
                raise OSError("the connection was given up")
            limits_ns = [limit for limit in (until_ns, self._end_ns) if limit is not None]
            longest_ms = max(0, min(limits_ns) - now_ns()) / NANOSECONDS_PER_MS if limits_ns else None
            ready = {descriptor for descriptor, _ in poll.poll(0 if held else longest_ms)}
            if self._wake.fileno() in ready:
                self._wake.recv(1)
            can_read = [reader for reader in readers if reader.fileno() in ready or reader in held]
            can_write = [writer for writer in writers if writer.fileno() in ready]
            if can_read or can_write or (until_ns is not None and until_ns <= now_ns()):
                return can_read, can_write, []

    def run(self, function: Callable[[], None]) -> threading.Thread:
        """Start the connection's thread."""

        def work() -> None:
            try:
                function()
            except Exception as error:  # kazoo raises what a server's odd answer made it trip over
                self.failure = f"kazoo failed: {error!r}"
                _log.warning("zookeeper connection failed", server=self.server, why=self.failure)
            finally:
                self._end()

        thread = threading.Thread(target=work, name=f"zookeeper {self.server}", daemon=True)
        thread.start()
        self._thread = thread
        return thread

    def _ready(self, readers: list[Any], writers: list[Any], deadline: Deadline) -> bool:
        return any(self.client.handler.select(readers, writers, [], deadline.remaining_s()))

    def _end_at(self, end_ns: int) -> None:
        with self._lock:
            if self._ended:
                return
            self._end_ns = end_ns if self._end_ns is None else min(end_ns, self._end_ns)
            self._waker.send(b"\0")

    def _end(self) -> None:
        """The last act of the connection's thread."""
        if self._hello is None and not self.failure:
            self.failure = "its name is not known here"
        with self._lock:
            self._ended = True
            closed_by_another = self._closing
        if not closed_by_another:
            self._release()
        self._settled.set()

    def _release(self) -> None:
        self.client.close()
        self._wake.close()
        self._waker.close()

    @staticmethod
    def _reply(result: Any) -> Reply:
        # kazoo takes its results from our handler, so all of them are ours.
        assert isinstance(result, Reply)
        return result


def first_failure(results: Sequence[Any]) -> Exception | None:
    """What undid a transaction; ``None`` when it was done."""
    failures = [result for result in results if isinstance(result, Exception)]
    # The others of its operations say only that they were undone, or not tried.
    telling = [error for error in failures if getattr(error, "code", 0) not in {0, -2}]
    return next(iter(telling or failures), None)


def _exhausted(error: Exception) -> Unanswered:
    """This process has no descriptor, or this machine no thread left."""
    return Unanswered(f"no connection can be made here: {error}")

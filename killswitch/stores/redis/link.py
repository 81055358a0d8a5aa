"""One connection to one server of Redis or Sentinel, and what its refusals say: whether the request can have happened
all the same. redis-py speaks the protocol; when to give up is decided here.

A link is never mended: after a failure it is thrown away, so that nothing is ever sent twice. Every retry that
redis-py knows is off, and its connection cannot connect a second time.
"""

from __future__ import annotations

import re
import select
from dataclasses import dataclass, field
from typing import Any

from redis import exceptions
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.retry import Retry

from killswitch import clock
from killswitch.stores.redis.sockets import DeadlineSocket, Dialler, Resolver
from killswitch.stores.timing import Deadline
from killswitch.stores.urls import Login, TlsFiles

Command = tuple[bytes | int, ...]

SHOWN_MAX_CHARS = 200
# Answers that redis-py takes for a broken connection.
_ANSWERS = (exceptions.ResponseError, exceptions.AuthenticationError, exceptions.AuthorizationError,
            exceptions.BusyLoadingError)  # fmt: skip
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR

# redis-py takes the code off the text where it has a class for it.
_CODES_BY_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "NOAUTH"),
    (exceptions.AuthorizationError, "NOPERM"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (exceptions.AskError, "MOVED"),
)
# Within a script Redis 7 says so in words, and Redis 6 puts the code in the middle of a sentence.
_NOT_ALLOWED_IN_SCRIPT = re.compile(r"executing the script can't|user .* has no permissions|can't run this command")
_CODE_IN_SCRIPT = re.compile(r"running script.*?-([A-Z]{2,})\b")
_NEVER_HERE = re.compile(r"unknown command|DB index is out of range|invalid DB index", re.IGNORECASE)

FORBIDDEN_CODES = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "CROSSSLOT", "MOVED", "WRONGTYPE"})
"""Trying again will not help. All are found before a script writes; see ``scripts``."""

UNDONE_CODES = frozenset(
    {
        "READONLY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "BUSY", "TRYAGAIN", "CLUSTERDOWN",
        "NOSCRIPT", "UNKILLABLE", "DAMAGED",
    }
)  # fmt: skip
"""It did not happen, and may succeed later. Redis says these before a script begins, or at its first write; the last
one is our scripts' own."""

ELSEWHERE_CODES = frozenset({"READONLY", "MASTERDOWN", "LOADING"})
"""This server is not, or not yet, the one to ask."""

_HINTS = {
    "WRONGTYPE": "something else is kept under a name that begins with 'killswitch:'; give this store a database of "
    "its own",
    "CROSSSLOT": "this is a Redis Cluster, which cannot write several keys at once; use one server, or Sentinel",
    "MOVED": "this is a Redis Cluster, which cannot write several keys at once; use one server, or Sentinel",
    "NOPERM": "docs/decisions/0014-redis.md lists the rights that are needed",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that the server answered with.

    Attributes:
        code: its first word, such as ``NOPERM``; ``ERR`` where it has none of its own.
        text: the rest.
    """

    code: str
    text: str

    @property
    def forbidden(self) -> bool:
        """Trying again will not help."""
        return self.code in FORBIDDEN_CODES or (self.code == "ERR" and bool(_NEVER_HERE.match(self.text)))

    @property
    def undone(self) -> bool:
        """The request certainly had no effect."""
        return self.code in UNDONE_CODES or self.forbidden

    def __str__(self) -> str:
        hint = f"; {_HINTS[self.code]}" if self.code in _HINTS else ""
        return f"{self.code} {' '.join(self.text.split())[:SHOWN_MAX_CHARS]}{hint}"


def refusal_from(error: Exception) -> Refusal:
    """Understand an error of redis-py that stands for an answer of the server."""
    text = str(error)
    for kind, code in _CODES_BY_CLASS:
        if isinstance(error, kind):
            return Refusal(code, text)
    within_script = _CODE_IN_SCRIPT.search(text)
    if within_script:
        return Refusal(within_script[1], text)
    if _NOT_ALLOWED_IN_SCRIPT.search(text):
        return Refusal("NOPERM", text)
    first, _, rest = text.partition(" ")
    # Newer ones take "ERR" off as well, and then any word may come first.
    return (
        Refusal(first, rest) if first in FORBIDDEN_CODES | UNDONE_CODES else Refusal("ERR", text.removeprefix("ERR "))
    )


class LinkFailed(Exception):
    """No answer came.

    Attributes:
        sent: some of the request may have reached the server.
        silent: nothing came in time, where other failures are noticed at once.
    """

    def __init__(self, why: str, *, sent: bool, silent: bool = False) -> None:
        super().__init__(why)
        self.sent = sent
        self.silent = silent


class LinkRefused(Exception):
    """The server answered, and will not have us, or not now."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """What all links of a store have in common.

    Attributes:
        login: who we are, ``None`` for nobody.
        database: number of the database; 0 asks for none.
        tls: files for TLS, ``None`` for connections in the clear.
        now_ns: clock of the deadlines.
    """

    login: Login | None = None
    database: int = 0
    tls: TlsFiles | None = None
    resolver: Resolver = field(default_factory=Resolver)
    now_ns: clock.NowNs = clock.now_ns


class _OneConnection(Connection):
    """redis-py's connection over a socket of ours, which it gets once."""

    def __init__(self, host: str, port: int, connected: DeadlineSocket) -> None:
        super().__init__(host=host, port=port, protocol=2, retry=Retry(NoBackoff(), 0))  # type: ignore[no-untyped-call]  # redis-py
        # Telling the server the name of the library would cost two more round trips, and a right.
        self.driver_info = self.lib_name = self.lib_version = None
        self._connected: DeadlineSocket | None = connected

    def _connect(self) -> Any:
        connected, self._connected = self._connected, None
        if connected is None:
            raise ConnectionAbortedError("a link is not made twice")
        return connected


class Link:
    """One connection. Made by one thread and used by one at a time; :meth:`break_off` is for the others.

    Attributes:
        server: ``host:port``.
        generation: for the pool that keeps it.
        used: it has carried a request since it was greeted.
        scripts: those that it has carried, by their names.
    """

    def __init__(self, server: str, settings: LinkSettings) -> None:
        self.server = server
        self.generation = 0
        self.used = False
        self.scripts: set[str] = set()
        self._settings = settings
        self._dialler = Dialler(server, settings.resolver, settings.tls)
        self._socket: DeadlineSocket | None = None
        self._connection: Any = None
        self._broken = False

    @property
    def closed(self) -> bool:
        """It has been closed, or has failed."""
        return self._broken

    def connect(self, deadline: Deadline) -> None:
        """Connect, and no more: whether somebody answers there is not known yet. Raises :class:`LinkFailed`."""

        try:
            self._socket = self._dialler.dial(deadline)
            self._connection = _OneConnection(self._dialler.host, self._dialler.port, self._socket)
            self._connection.connect()
        except (exceptions.RedisError, OSError, ValueError) as error:
            raise self._failed(error, sent=False) from error

    def request(self, deadline: Deadline, *commands: Command) -> list[Any]:
        """Send commands together and return their answers, a :class:`Refusal` for each that was refused.

        Raises:
            LinkFailed: not all answers came; the link is of no more use.
        """
        wire = self._open_socket()
        wire.deadline, wire.sent_bytes = deadline, 0
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
            return self._answers(len(commands))
        except (exceptions.RedisError, OSError, ValueError) as error:
            raise self._failed(error, sent=wire.sent_bytes > 0) from error

    def receive(self, deadline: Deadline) -> Any | None:
        """The next thing that the server says by itself, ``None`` when the time is up; raises :class:`LinkFailed`."""
        wire = self._open_socket()
        wire.deadline = deadline
        try:
            return self._connection.read_response(disconnect_on_error=False)
        except exceptions.TimeoutError:
            return None
        except (exceptions.RedisError, OSError, ValueError) as error:
            raise self._failed(error, sent=True) from error

    def quiet(self) -> bool:
        """Nothing waits to be read. On a link between two requests anything that does is its end."""
        if self._broken or self._socket is None:
            return False
        looking = select.poll()
        looking.register(self._socket.fileno(), _READABLE)
        return not looking.poll(0)

    def break_off(self) -> None:
        """Make whoever uses it fail at once; from any thread."""
        self._dialler.break_off()

    def close(self) -> None:
        """End it; for the thread that uses it."""
        self._broken = True
        if self._connection is not None:
            self._connection.disconnect()
        self._dialler.hang_up()

    def _answers(self, count: int) -> list[Any]:
        answers: list[Any] = []
        while len(answers) < count:
            try:
                answers.append(self._connection.read_response(disconnect_on_error=False))
            except _ANSWERS as error:
                refusal = refusal_from(error)
                answers.append(refusal)
                if isinstance(error, exceptions.ConnectionError):
                    # redis-py would read the same answer again.
                    self._broken = True
                    answers += [refusal] * (count - len(answers))
        return answers

    def _open_socket(self) -> DeadlineSocket:
        if self._broken or self._socket is None:
            raise LinkFailed("the connection is gone", sent=False)
        return self._socket

    def _failed(self, error: Exception, *, sent: bool) -> LinkFailed:
        self._broken = True
        silent = isinstance(error, exceptions.TimeoutError | TimeoutError)
        return LinkFailed(_shown(error), sent=sent, silent=silent)


def introduce(settings: LinkSettings) -> list[Command]:
    """The commands that say who we are and which database we mean."""
    commands: list[Command] = []
    if settings.login is not None:
        who = [settings.login.username.encode()] if settings.login.username else []
        commands.append((b"AUTH", *who, settings.login.password.encode()))
    if settings.database:
        commands.append((b"SELECT", settings.database))
    return commands


def greet(link: Link, settings: LinkSettings, deadline: Deadline, *commands: Command) -> list[Any]:
    """Introduce ourselves, and send the first commands with it; returns their answers.

    Raises:
        LinkFailed: no answer.
        LinkRefused: the user, the password, the database or one of the commands was refused.
    """
    introduction = introduce(settings)
    answers = link.request(deadline, *introduction, *commands)
    if settings.login is not None and isinstance(answers[0], Refusal):
        # Not repeated: an error about AUTH may quote its arguments. What follows it is refused for the same reason.
        raise LinkRefused(_login_refusal(answers[0], settings.login))
    for answer in answers:
        if isinstance(answer, Refusal):
            raise LinkRefused(answer)
    return answers[len(introduction) :]


def _login_refusal(refusal: Refusal, login: Login) -> Refusal:
    if refusal.code == "LOADING":
        return refusal
    named = f"user {login.username!r}" if login.username else "the default user"
    return Refusal("WRONGPASS", f"the password of {named} is not accepted")


def _shown(error: BaseException) -> str:
    """A failure in a few words."""
    text = " ".join(str(error).split())[:SHOWN_MAX_CHARS]
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return "timed out"
    return text or type(error).__name__

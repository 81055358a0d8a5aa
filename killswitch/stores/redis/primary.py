"""Where writes go: to the one server that was named, or to the one that a Sentinel names.

Both give out links that have answered, to a write, since they were made: it cannot be a replica that does, and a
server that accepts connections and hangs is found out before a request is sent over one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from killswitch.stores.redis.link import Command, Link, LinkFailed, LinkRefused, LinkSettings, Refusal, greet
from killswitch.stores.redis.scripts import PROBE, PROBE_KEY, ScriptCall
from killswitch.stores.timing import Deadline, in_turn

R = TypeVar("R")

OnMade = Callable[[Link], None]
"""Told of each link before it connects, so that somebody else can break it off."""


class Primary(Protocol):
    """Knows the way to the server that takes writes. Thread-safe."""

    @property
    def address(self) -> str:
        """As a person would type it, without scheme and credentials."""

    def open(self, deadline: Deadline, on_made: OnMade) -> Link:
        """A link to the server that takes writes.

        Raises:
            LinkFailed: nobody answered.
            LinkRefused: it is no primary, or refuses us.
        """

    def locate(self, deadline: Deadline, on_made: OnMade) -> str:
        """``host:port`` of the server that should take writes now; raises as ``open`` does."""

    def doubt(self) -> None:
        """What it said last turned out wrong: next time somebody else is asked first."""


class NamedPrimary:
    """A single server.

    Args:
        server: ``host:port``.
        confirmed: whether requests will ask replicas to confirm, which needs a right of its own.
    """

    def __init__(self, server: str, settings: LinkSettings, *, confirmed: bool) -> None:
        self.address = server
        self._settings = settings
        self._confirmed = confirmed

    def open(self, deadline: Deadline, on_made: OnMade) -> Link:
        return open_link(self.address, self._settings, deadline, on_made, confirmed=self._confirmed)

    def locate(self, deadline: Deadline, on_made: OnMade) -> str:
        del deadline, on_made
        return self.address

    def doubt(self) -> None:
        """There is nobody else to ask."""


class SentinelPrimary:
    """The server that Sentinels name.

    ``redis.sentinel`` finds it too, but each of its questions has a time-out of its own, and together they take longer
    than a request may. Here they share one budget.

    Args:
        sentinels: ``host:port`` of each, at least one.
        name: of the primary, in their configuration.
        settings: of links to the primary.
        sentinel_settings: of links to the Sentinels.
        confirmed: as for :class:`NamedPrimary`.
    """

    def __init__(
        self,
        sentinels: Sequence[str],
        name: str,
        settings: LinkSettings,
        sentinel_settings: LinkSettings,
        *,
        confirmed: bool,
    ) -> None:
        self.address = f"{','.join(sentinels)}/{name}"
        self._sentinels = tuple(sentinels)
        self._name = name
        self._settings = settings
        self._sentinel_settings = sentinel_settings
        self._confirmed = confirmed
        self._lock = threading.Lock()
        self._first = 0

    def open(self, deadline: Deadline, on_made: OnMade) -> Link:
        # A server that failed is not tried again because a second Sentinel names it, too.
        failed: dict[str, Exception] = {}

        def open_what_it_names(sentinel: str, share: Deadline) -> Link:
            server = self._ask(sentinel, share, on_made)
            if server in failed:
                raise failed[server]
            try:
                return open_link(server, self._settings, share, on_made, confirmed=self._confirmed)
            except (LinkFailed, LinkRefused) as error:
                failed[server] = error
                raise

        return self._from_any(open_what_it_names, deadline)

    def locate(self, deadline: Deadline, on_made: OnMade) -> str:
        return self._from_any(lambda sentinel, share: self._ask(sentinel, share, on_made), deadline)

    def known_replicas(self, deadline: Deadline, on_made: OnMade) -> int:
        """How many replicas a Sentinel knows of, there or away; raises as :meth:`open` does."""
        question: Command = (b"SENTINEL", b"MASTER", self._name.encode())

        def count(sentinel: str, share: Deadline) -> int:
            told = self._put(question, sentinel, share, on_made)
            return int(dict(zip(told[::2], told[1::2], strict=True))[b"num-slaves"])

        return self._from_any(count, deadline)

    def doubt(self) -> None:
        with self._lock:
            self._first = (self._first + 1) % len(self._sentinels)

    def _from_any(self, attempt: Callable[[str, Deadline], R], deadline: Deadline) -> R:
        """What the first attempt that succeeds returns; each gets half of what is left, the last one all."""
        failure: Exception = LinkFailed("no time was left", sent=False)
        for sentinel, within in in_turn(self._sentinels, deadline, first=self._first):
            try:
                return attempt(sentinel, within)
            except LinkRefused as error:
                if error.refusal.forbidden:
                    raise
                failure = error
            except LinkFailed as error:
                failure = error
            self.doubt()
        raise failure

    def _ask(self, sentinel: str, deadline: Deadline, on_made: OnMade) -> str:
        """Which server one Sentinel names."""
        question: Command = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._name.encode())
        answer = self._put(question, sentinel, deadline, on_made)
        if answer is None:
            raise LinkFailed(f"Sentinel {sentinel} knows no primary named {self._name!r}", sent=False)
        host, port = (part.decode() for part in answer)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _put(self, question: Command, sentinel: str, deadline: Deadline, on_made: OnMade) -> Any:
        """What one Sentinel answers."""
        link = Link(sentinel, self._sentinel_settings)
        on_made(link)
        try:
            link.connect(deadline)
            (answer,) = greet(link, self._sentinel_settings, deadline, question)
        except LinkFailed as error:
            raise LinkFailed(f"Sentinel {sentinel}: {error}", sent=False, silent=error.silent) from error
        finally:
            link.close()
        return answer


def open_link(server: str, settings: LinkSettings, deadline: Deadline, on_made: OnMade, *, confirmed: bool) -> Link:
    """A link to ``server``, which has said that it is a primary and taken a write. Raises as :meth:`Primary.open`."""
    link = Link(server, settings)
    on_made(link)
    probe = ScriptCall(PROBE, (PROBE_KEY.encode(),), ())
    questions: list[Command] = [(b"ROLE",), probe.in_full(), probe.by_name()]
    if confirmed:
        questions.append((b"WAIT", 0, 1))
    try:
        link.connect(deadline)
        role = greet(link, settings, deadline, *questions)[0]
    except LinkFailed as error:
        link.close()
        raise LinkFailed(f"{server}: {error}", sent=False, silent=error.silent) from error
    except BaseException:
        link.close()
        raise
    # A replica that is set to take writes would take the probe, and forget it.
    if role[0] != b"master":
        link.close()
        raise LinkRefused(Refusal("READONLY", f"{server} is a replica"))
    return link

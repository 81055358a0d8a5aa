"""A watch on Redis: messages that say that something has changed, and a script that says what.

One thread, which also calls back, and two links. Over the first come messages, each with the versions before and after
a change and the keys that it touched. Over the second the thread asks what has changed since the version that it knows:
when a message names a key of its prefix, when messages do not join on, and every half second in any case. That question
also turns leases that have run out into deletions, and is the sign of life: both links have to answer it in time, for
silence is never health. Messages may be lost; nothing depends on them but how soon a change is heard of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from killswitch.stores.front import key_bytes, key_text
from killswitch.stores.port import Entry
from killswitch.stores.redis.link import Link, LinkFailed, LinkRefused
from killswitch.stores.redis.primary import Primary
from killswitch.stores.redis.scripts import Calls
from killswitch.stores.redis.transport import TooFewReplicas, run
from killswitch.stores.timing import Deadline
from killswitch.stores.watching import ServerWatch, WatchSettings

LOOK_EVERY_MS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisWatchSettings(WatchSettings):
    """How a watch on Redis connects; ``alive_every_ms`` is how often it asks without a message.

    Attributes:
        primary: knows the way.
        calls: makes the question.
        wait_replicas: how many replicas confirm that question; with too few the Sentinels are asked who is primary.
    """

    primary: Primary
    calls: Calls
    wait_replicas: int = 0

    def deadline(self, budget_ms: float) -> Deadline:
        """A fresh budget."""
        return Deadline(budget_ms, self.now_ns)


class _Interrupted(Exception):
    """The subscription is over; says why."""


class _Subscription:
    """One life of a watch, from connecting to the failure that ends it.

    Args:
        on_made: told of each link before it connects.
    """

    def __init__(self, settings: RedisWatchSettings, prefix: str, on_made: Callable[[Link], None]) -> None:
        self._settings = settings
        self._prefix = prefix
        self._prefix_bytes = key_bytes(prefix)
        self._on_made = on_made
        deadline = settings.deadline(settings.request_timeout_ms)
        self._news = settings.primary.open(deadline, on_made)
        try:
            self._answers = settings.primary.open(deadline, on_made)
        except BaseException:
            self._news.close()
            raise
        self._birth, self._known = b"", 0

    def begin(self) -> None:
        """Subscribe, and from here on miss nothing."""
        if self._news.server != self._answers.server:
            raise _Interrupted(f"the primary has moved from {self._news.server} to {self._answers.server}")
        deadline = self._settings.deadline(self._settings.request_timeout_ms)
        channel = self._settings.calls.channel.encode()
        (confirmed,) = self._news.request(deadline, (b"SUBSCRIBE", channel))
        if not isinstance(confirmed, list):
            raise _Interrupted(f"subscribing was refused: {confirmed}")
        call = self._settings.calls.follow(b"", None, self._prefix, counted=False)
        answer = run(self._answers, call, deadline, wait_replicas=0)
        self._birth, self._known = answer[1], int(answer[2])

    def wait_for_news(self, until: Deadline) -> bool:
        """Whether something may have changed below the prefix; false when the time is up."""
        while True:
            said = self._news.receive(until)
            if said is None:
                return False
            if said[0] == b"message" and self._concerns(said[2]):
                return True

    def look(self, *, for_life: bool) -> tuple[bool, list[Entry], bool]:
        """Ask what has changed: whether all may have, the entries, and whether there is more.

        Args:
            for_life: both links must answer, and replicas confirm; else only the question counts.
        """
        deadline = self._settings.deadline(self._settings.silence_limit_ms)
        wait_replicas = self._settings.wait_replicas if for_life else 0
        call = self._settings.calls.follow(self._birth, self._known, self._prefix, counted=wait_replicas > 0)
        if for_life:
            self._ping(deadline)
        try:
            # News waits meanwhile, so the replicas have less time than the links.
            answer = run(
                self._answers,
                call,
                deadline,
                wait_replicas=wait_replicas,
                wait_at_most_ms=self._settings.alive_every_ms,
            )
        except TooFewReplicas as error:
            self._check_primary(error)
            # What it says is believed, because news only ever closes a gate.
            answer = run(self._answers, call, self._settings.deadline(self._settings.silence_limit_ms), wait_replicas=0)
        _, self._birth, upto, gap, more, *changed = answer
        self._known = int(upto)
        entries = [
            Entry(key_text(changed[at]), changed[at + 1], int(changed[at + 2])) for at in range(0, len(changed), 3)
        ]
        return bool(gap), entries, bool(more)

    def close(self) -> None:
        self._news.close()
        self._answers.close()

    def _concerns(self, message: bytes) -> bool:
        """Whether a message is about this prefix, or cannot be placed. Keeps count of those that are not."""
        before, version, *names = json.loads(key_text(message))
        if int(version) <= self._known:
            return False  # told already
        if (
            int(before) == self._known
            and names
            and not any(key_bytes(name).startswith(self._prefix_bytes) for name in names[0])
        ):
            self._known = int(version)
            return False
        return True

    def _ping(self, deadline: Deadline) -> None:
        """Have the link of messages answer. Messages that come first are covered by the question that follows."""
        (said,) = self._news.request(deadline, (b"PING",))
        while said[0] != b"pong":
            said = self._news.receive(deadline)
            if said is None:
                raise LinkFailed("no message and no answer came", sent=True, silent=True)

    def _check_primary(self, why: TooFewReplicas) -> None:
        """Whether the Sentinels name another server by now; when they cannot be asked we stay where we are."""
        deadline = self._settings.deadline(self._settings.alive_every_ms)
        self._settings.primary.doubt()
        try:
            server = self._settings.primary.locate(deadline, self._on_made)
        except (LinkFailed, LinkRefused):
            return
        if server != self._news.server:
            raise _Interrupted(f"{why} and the primary has moved to {server}")


class RedisWatch(ServerWatch[RedisWatchSettings]):
    """A running subscription; see the module docstring. Made by :meth:`RedisStore.watch`."""

    _links: tuple[Link, ...] = ()

    def _interrupt(self) -> None:
        for link in self._links:
            link.break_off()

    def _subscribe(self, server: str) -> str:
        """Watch through the primary, wherever it is, until that ends; returns why it did."""
        del server
        subscription: _Subscription | None = None
        begun = False
        try:
            subscription = _Subscription(self._settings, self._prefix, self._keep)
            subscription.begin()
            begun = True
            self._tell_gap()
            self._follow(subscription)
        except LinkFailed as error:
            if error.silent and begun:
                self._say_silent(why=str(error))
            return str(error)
        except (LinkRefused, _Interrupted) as error:
            return str(error)
        finally:
            self._settings.primary.doubt()
            with self._lock:
                self._links = ()
            if subscription is not None:
                subscription.close()
        return "closed"

    def _follow(self, subscription: _Subscription) -> None:
        """Call back until the watch is closed; raises when the subscription fails."""
        until = self._settings.deadline(self._settings.alive_every_ms)
        while not self._stop.is_set():
            news = subscription.wait_for_news(until)
            if self._stop.is_set():
                return
            more = True
            while more and not self._stop.is_set():
                gap, entries, more = subscription.look(for_life=not news)
                if gap:
                    self._tell_gap()
                self._tell(entries)
            if not news:
                until = self._settings.deadline(self._settings.alive_every_ms)

    def _keep(self, link: Link) -> None:
        with self._lock:
            self._links = (*(kept for kept in self._links if not kept.closed), link)
            if self._stop.is_set():
                link.break_off()

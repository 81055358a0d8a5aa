"""Requests to the primary: a few links that are used again, one budget for each call, and what a failure says.

A failed read did not happen, whatever the failure. A failed write may have happened unless it was never sent, or was
refused before it did anything. So a write goes out once, over a link that has answered since its last failure, and
after any failure all links are thrown away: the next request finds out first whether somebody answers.

With ``wait_replicas`` every request, reads included, writes something and has that many replicas confirm it. A primary
that was deposed without knowing it has no replicas that would, so it is not believed.
"""

from __future__ import annotations

import math
import threading
from typing import Any

from killswitch import clock
from killswitch.stores.front import closed_sentence, key_text, unknown
from killswitch.stores.port import StoreForbidden, StoreUnavailable
from killswitch.stores.redis.link import ELSEWHERE_CODES, Command, Link, LinkFailed, LinkRefused, Refusal
from killswitch.stores.redis.primary import Primary, SentinelPrimary
from killswitch.stores.redis.scripts import DAMAGED, DONE, ScriptCall
from killswitch.stores.timing import MILLISECONDS_PER_S, Deadline

LINKS_MAX = 8
# Of what is left: Redis should say how many have confirmed while we still listen, and it looks only every 100 ms whose
# time is up.
WAIT_SHARE = 0.5


class TooFewReplicas(Exception):
    """Done at the primary, and not confirmed by enough replicas.

    Attributes:
        wrote: whether more was written than the mark that replicas confirm.
    """

    def __init__(self, confirmed: int, wanted: int, *, wrote: bool) -> None:
        super().__init__(f"{confirmed} of the {wanted} replicas asked for have confirmed in time")
        self.wrote = wrote


def run(
    link: Link, call: ScriptCall, deadline: Deadline, *, wait_replicas: int, wait_at_most_ms: float = math.inf
) -> list[Any]:
    """Run a script over a link.

    Args:
        link: the link.
        call: the script.
        deadline: for all of it.
        wait_replicas: how many replicas confirm what the script wrote; 0 asks none.
        wait_at_most_ms: how long they have for it.

    Raises:
        LinkFailed: no answer.
        LinkRefused: an error for an answer.
        TooFewReplicas: see there.
    """
    waiting = _waiting(deadline, wait_replicas, wait_at_most_ms)
    # The first time in full: a server that does not know it would have us wait for replicas before it said so.
    command = call.by_name() if call.script.sha in link.scripts else call.in_full()
    answers = link.request(deadline, command, *waiting)
    if isinstance(answers[0], Refusal) and answers[0].code == "NOSCRIPT":
        answers = link.request(deadline, call.in_full(), *_waiting(deadline, wait_replicas, wait_at_most_ms))
    link.used = True
    link.scripts.add(call.script.sha)
    answer = answers[0]
    if isinstance(answer, Refusal):
        raise LinkRefused(answer)
    if not isinstance(answer, list):
        raise LinkRefused(Refusal("ERR", "what answers there does not run our scripts"))
    if answer[0] == DAMAGED:
        raise LinkRefused(Refusal("DAMAGED", _damage(key_text(answer[1]))))
    if waiting:
        confirmed = answers[1]
        if isinstance(confirmed, Refusal) or confirmed < wait_replicas:
            count = 0 if isinstance(confirmed, Refusal) else confirmed
            raise TooFewReplicas(count, wait_replicas, wrote=answer[0] == DONE)
    return answer


class RedisTransport:
    """Calls to the primary. Thread-safe.

    Args:
        primary: knows the way.
        request_timeout_ms: budget of a call.
        wait_replicas: how many replicas confirm each call.
        now_ns: clock of the budgets.
    """

    def __init__(
        self, primary: Primary, *, request_timeout_ms: int, wait_replicas: int, now_ns: clock.NowNs = clock.now_ns
    ) -> None:
        self.primary = primary
        self.request_timeout_ms = request_timeout_ms
        self.wait_replicas = wait_replicas
        self._now_ns = now_ns
        self._slots = threading.BoundedSemaphore(LINKS_MAX)
        self._lock = threading.Lock()
        self._idle: list[Link] = []
        self._busy: set[Link] = set()
        self._generation = 0
        self._server = ""
        self._closed = False

    def ask(self, call: ScriptCall, what: str) -> list[Any]:
        """Make a call that may be made twice; returns the script's answer.

        Args:
            call: the script.
            what: for the error, such as ``reading '/k'``.

        Raises:
            StoreUnavailable: no answer, or none that can be believed.
            StoreForbidden: refused for good.
        """
        return self._make(call, what, once=False)

    def write_once(self, call: ScriptCall, what: str) -> list[Any]:
        """Make a call that must not be made twice: it is sent a second time only when the first was certainly undone.

        Raises:
            StoreUnavailable: it was not sent, or refused undone.
            OutcomeUnknown: it was sent and no answer came, or too few replicas have it.
            StoreForbidden: refused for good.
        """
        return self._make(call, what, once=True)

    def query(self, what: str, *commands: Command) -> list[Any]:
        """Send commands that change nothing; returns their answers, a :class:`Refusal` for each that was refused.

        Raises:
            StoreUnavailable: no answer.
            StoreForbidden: nothing at all is allowed.
        """
        deadline = self._deadline()
        link = self._take(deadline, what)
        try:
            return link.request(deadline, *commands)
        except LinkFailed as error:
            self._distrust()
            raise StoreUnavailable(self._sentence(what, error)) from error
        finally:
            self._give_back(link)

    def known_replicas(self) -> int | None:
        """How many replicas the Sentinels know of, there or away; ``None`` without Sentinel, and where none tells."""
        if not isinstance(self.primary, SentinelPrimary):
            return None
        try:
            return self.primary.known_replicas(self._deadline(), on_made=lambda _: None)
        except (LinkFailed, LinkRefused):
            return None

    def close(self) -> None:
        """Close every link. Calls in flight fail."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for link in self._busy:
                link.break_off()
        for link in idle:
            link.close()

    def _make(self, call: ScriptCall, what: str, *, once: bool) -> list[Any]:
        """Make a call, over a second link when the first was of no use; ``once`` only if that certainly did nothing."""
        deadline = self._deadline()
        first = True
        while True:
            link = self._take(deadline, what)
            # A link that was used before may have died unseen, or lead to a server that was primary then.
            again, first = first and link.used, False
            try:
                return run(link, call, deadline, wait_replicas=self.wait_replicas)
            except LinkFailed as error:
                self._distrust()
                if once and error.sent:
                    raise unknown(self._sentence(what, error)) from error
                if not again:
                    raise StoreUnavailable(self._sentence(what, error)) from error
            except LinkRefused as error:
                if once and not error.refusal.undone:
                    raise unknown(self._sentence(what, error)) from error
                self._judge(error, what, again=again)
            except TooFewReplicas as error:
                self._distrust()
                if once and error.wrote:
                    raise unknown(self._unconfirmed(what, error)) from error
                raise StoreUnavailable(self._unconfirmed(what, error)) from error
            finally:
                self._give_back(link)

    def _deadline(self) -> Deadline:
        return Deadline(self.request_timeout_ms, self._now_ns)

    def _take(self, deadline: Deadline, what: str) -> Link:
        """A link that has answered since the last failure of any; raises the port's errors when there is none."""
        if not self._slots.acquire(timeout=deadline.remaining_s()):
            raise StoreUnavailable(
                f"all {LINKS_MAX} connections to redis at {self.primary.address} were busy for "
                f"{self.request_timeout_ms} ms, so {what} was not sent"
            )
        try:
            return self._idle_link() or self._new_link(deadline)
        except BaseException as error:
            self._slots.release()
            if isinstance(error, LinkRefused):
                raise self._refused(error.refusal, what) from error
            if isinstance(error, LinkFailed):
                raise StoreUnavailable(self._sentence(what, error)) from error
            raise

    def _idle_link(self) -> Link | None:
        while True:
            with self._lock:
                if self._closed:
                    raise LinkFailed("closed", sent=False)
                if not self._idle:
                    return None
                link = self._idle.pop()
                self._busy.add(link)
                current = link.generation == self._generation
            if current and link.quiet():
                return link
            self._drop(link)

    def _new_link(self, deadline: Deadline) -> Link:
        made: list[Link] = []

        def keep(link: Link) -> None:
            with self._lock:
                made.append(link)
                self._busy.add(link)
                if self._closed:
                    link.break_off()

        with self._lock:
            generation = self._generation
        opened: Link | None = None
        try:
            link = opened = self.primary.open(deadline, keep)
        finally:
            with self._lock:
                self._busy.difference_update(other for other in made if other is not opened)
        with self._lock:
            if self._server not in ("", link.server):
                # Another is primary now: links to the old one would go on reading there.
                self._generation += 1
                generation = self._generation
            self._server = link.server
            link.generation = generation
        return link

    def _give_back(self, link: Link) -> None:
        with self._lock:
            reusable = not self._closed and link.generation == self._generation
            if reusable:
                self._busy.discard(link)
                self._idle.append(link)
        if not reusable:
            self._drop(link)
        self._slots.release()

    def _drop(self, link: Link) -> None:
        link.close()
        with self._lock:
            self._busy.discard(link)

    def _distrust(self) -> None:
        """After a failure: no link that was made before it is used again."""
        self.primary.doubt()
        with self._lock:
            self._generation += 1
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def _judge(self, error: LinkRefused, what: str, *, again: bool) -> None:
        """Raise what a refusal means, or return when another attempt over a new link may find another server."""
        elsewhere = error.refusal.code in ELSEWHERE_CODES
        if elsewhere:
            self._distrust()
        if not (elsewhere and again):
            raise self._refused(error.refusal, what) from error

    def _refused(self, refusal: Refusal, what: str) -> StoreForbidden | StoreUnavailable:
        if refusal.forbidden:
            return StoreForbidden(f"redis at {self.primary.address} refuses {what} for good: {refusal}")
        return StoreUnavailable(f"redis at {self.primary.address} refuses {what}: {refusal}")

    def _sentence(self, what: str, why: Exception) -> str:
        if self._closed:
            return closed_sentence(self.primary.address, what)
        return f"redis at {self.primary.address} did not answer {what} within {self.request_timeout_ms} ms: {why}"

    def _unconfirmed(self, what: str, why: TooFewReplicas) -> str:
        return (
            f"redis at {self.primary.address} did {what}, and only {why}; it may have been deposed without knowing, or "
            "its replicas are away"
        )


def _waiting(deadline: Deadline, wait_replicas: int, at_most_ms: float) -> list[Command]:
    """The command that has replicas confirm what came before it."""
    if not wait_replicas:
        return []
    wait_ms = min(at_most_ms, deadline.remaining_s() * MILLISECONDS_PER_S * WAIT_SHARE)
    # 0 would mean for ever.
    return [(b"WAIT", wait_replicas, max(1, int(wait_ms)))]


def _damage(lost: str) -> str:
    return (
        f"{lost!r} has been removed from the database, and not by this store; look for other users of names that begin "
        "with 'killswitch:' and for a maxmemory-policy other than noeviction, then write or delete it again"
    )

"""The cluster as one object, over any store: the flag and its history, and who is in it (``cluster/roster.py``).

Everybody who changes the flag does it through here: the command, agents and coordinators. No leader is asked and no
approval is needed to freeze (ONE VOICE FREEZES); a release is a compare-and-set on the epoch that it names (RELEASE IS
FENCED); the flag and its history entry are one commit (NOTHING IS LOST).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import tenacity

from killswitch.clock import NowNs, WallClock, now_ns, wall_now
from killswitch.cluster.records import (
    AckRecord,
    FlagRecord,
    FreezeRecord,
    HistoryRecord,
    Keys,
    LeaderRecord,
    UnreadableRecord,
    read_flag,
)
from killswitch.cluster.roster import NodeRoster, read_family, read_roster
from killswitch.core.flag import Change, Flag, Freeze, add, fitting_freeze, initial, lift, reassert
from killswitch.core.history import HistoryEntry, HistoryFault, verify
from killswitch.core.modes import Mode
from killswitch.core.permit import NANOSECONDS_PER_MS, Timing
from killswitch.core.scopes import GLOBAL
from killswitch.stores.port import Conflict, Entry, OutcomeUnknown, Store, StoreError, StoreUnavailable

NANOSECONDS_PER_S = 1_000_000_000

VERIFY_ATTEMPTS = 20
"""How often the history is read again because the flag changed meanwhile."""


class NotInitialised(Exception):
    """The store holds no flag for this cluster: every gate is closed until ``killswitch init``."""


class AlreadyInitialised(Exception):
    """The cluster has a flag; ``init`` never overwrites one."""


class FreezeNotCommitted(Exception):
    """The store did not take the freeze in time. ``may_have_happened`` says whether it could be in force."""

    def __init__(self, sentence: str, *, may_have_happened: bool) -> None:
        super().__init__(sentence)
        self.may_have_happened = may_have_happened


@dataclass(frozen=True, slots=True)
class StoredFlag:
    """The flag and the version under which the store holds it."""

    flag: Flag
    version: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A change of the flag that is in the store.

    Attributes:
        flag: the flag after the change (or after another change that holds this one already).
        changed: False when exactly this freeze was in force before.
        started_ns: when the first attempt began; a certificate's times count from here.
        returned_ns: when it was known to be in; permits that do not know of it began before this.
    """

    flag: Flag
    changed: bool
    started_ns: int
    returned_ns: int

    @property
    def committed_ms(self) -> float:
        """Time from the first attempt until it was known to be in."""
        return (self.returned_ns - self.started_ns) / NANOSECONDS_PER_MS


def new_freeze_id() -> str:
    """A name for a new freeze that nobody else uses: 48 random bits."""
    return "fz-" + secrets.token_hex(6)


class Cluster:
    """One cluster in one store.

    Args:
        store: where it lives.
        name: the cluster's name.
        timing: bounds of time-outs and backoff.
        clock: for deadlines.
        wall_clock: for people.
        sleep: how a retry waits, in seconds.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        timing: Timing | None = None,
        clock: NowNs = now_ns,
        wall_clock: WallClock = wall_now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.store = store
        self.name = name
        self.keys = Keys(name)
        self.timing = timing or Timing()
        self.clock = clock
        self.wall_clock = wall_clock
        self.pause = sleep

    # -- the flag ------------------------------------------------------------------------------------------------

    def initialise(self, *, actor: str, reason: str) -> Flag:
        """Write the first flag: epoch 1, nothing frozen.

        Where only the flag is gone it is made anew from its history, and frozen.

        Raises:
            AlreadyInitialised: there is a flag, readable or not; it is left alone.
            StoreError: the store did not answer or refuses.
        """
        change = initial(self.name, actor=actor, at=self.wall_clock(), reason=reason)
        try:
            self.commit_change(change, flag_version=None)
        except Conflict:
            restored = self._restore_lost_flag(actor=actor)
            if restored is not None:
                return restored
            raise AlreadyInitialised(
                f"cluster {self.name!r} exists already in {self.store.address}; `killswitch status` shows its flag"
            ) from None
        return change.flag

    def _restore_lost_flag(self, *, actor: str) -> Flag | None:
        """Make the flag anew from the newest history entry where the flag alone is gone; ``None`` where it is not."""
        if self.store.read(self.keys.flag) is not None:
            return None
        entries = self.history()
        if not entries:
            return None
        last = entries[-1][1]
        freezes = tuple(FreezeRecord.model_validate(dict(freeze)).to_core() for freeze in last.in_force)
        known = Flag(self.name, last.epoch, freezes, head=last.hash, parent=last.previous_hash)
        cause = fitting_freeze(
            id=new_freeze_id(),
            scope=GLOBAL,
            mode=Mode.FROZEN,
            trigger="store_lost_data",
            reason=f"the flag was gone and was made anew from its history (epoch {last.epoch})",
            actor=actor,
            at=self.wall_clock(),
            metadata={"known_epoch": last.epoch, "known_head": last.hash},
        )
        return self.reassert(known, cause)

    def read_flag(self) -> StoredFlag:
        """Read the flag, linearizably.

        Raises:
            NotInitialised: there is none.
            UnreadableRecord: there is one that this version cannot read.
            StoreUnavailable: no answer.
        """
        return self.parse_flag(self.store.read(self.keys.flag))

    def parse_flag(self, entry: Entry | None) -> StoredFlag:
        """Turn what the store holds under the flag's key into a flag. Raises as :meth:`read_flag` does."""
        if entry is None or entry.value is None:
            raise NotInitialised(
                f"cluster {self.name!r} has no flag in {self.store.address}; every gate stays closed until "
                f"`killswitch --cluster {self.name} init`"
            )
        return StoredFlag(read_flag(entry.value, key=self.keys.flag, cluster=self.name), entry.version)

    def freeze(
        self,
        freeze: Freeze,
        *,
        timeout_ms: int,
        fence: Mapping[str, int | None] | None = None,
        skip: Callable[[Flag], bool] | None = None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Committed:
        """Add one cause by compare-and-set, again on every conflict, until it is in.

        Sending the same freeze twice leaves one: the id and content tell. After a lost reply the flag is read, so
        the answer is the truth and not a guess.

        Args:
            freeze: the cause.
            timeout_ms: give up after this long.
            fence: further expectations of the commit, such as the version of the leader's key.
            skip: looked at with the flag of each attempt; True leaves the flag as it is (``changed=False``).
            give_up: asked after each attempt in vain; True ends them before the time is up.

        Raises:
            FreezeNotCommitted: not in time; says whether it may be in force all the same.
            NotInitialised, UnreadableRecord: there is no flag to add to. Every gate is closed by that itself.
            Conflict: the ``fence`` no longer holds.
        """
        started_ns = self.clock()
        deadline_ns = started_ns + timeout_ms * NANOSECONDS_PER_MS
        sent_without_answer = conflicted = False

        def attempt() -> Committed:
            nonlocal sent_without_answer, conflicted
            stored = self._not_behind_history(self.read_flag(), after_conflict=conflicted)
            change = None if skip is not None and skip(stored.flag) else add(stored.flag, freeze)
            if change is None:
                return Committed(
                    stored.flag, changed=sent_without_answer, started_ns=started_ns, returned_ns=self.clock()
                )
            try:
                self.commit_change(change, flag_version=stored.version, fence=fence)
            except OutcomeUnknown:
                sent_without_answer = True
                raise
            except Conflict:
                conflicted = True
                self._raise_if_fenced_off(fence)
                raise
            return Committed(change.flag, changed=True, started_ns=started_ns, returned_ns=self.clock())

        try:
            return self._retrying(deadline_ns, Conflict, OutcomeUnknown, StoreUnavailable, give_up=give_up)(attempt)
        except (Conflict, OutcomeUnknown, StoreUnavailable) as error:
            if fence and isinstance(error, _FencedOff):
                raise Conflict(str(error)) from error
            word = "may or may not be in force" if sent_without_answer else "is NOT in force"
            tried_ms = min(timeout_ms, (self.clock() - started_ns) // NANOSECONDS_PER_MS)
            raise FreezeNotCommitted(
                f"the freeze {word}: {self.store.address} did not take it within {tried_ms} ms ({error})",
                may_have_happened=sent_without_answer,
            ) from error

    def release(self, *, epoch: int, ids: Sequence[str], actor: str, reason: str) -> Committed:
        """Lift exactly the named causes, if the flag is at exactly the named epoch.

        A lost reply is settled by reading the history: the entry of the next epoch is ours or it is not.

        Raises:
            StaleEpoch, UnknownFreeze: nothing was released.
            NotInitialised, UnreadableRecord: there is no flag to release from.
            OutcomeUnknown: the release may or may not be in force.
            StoreError: the store did not answer or refuses; nothing was released.
        """
        started_ns = self.clock()
        stored = self.read_flag()
        change = lift(stored.flag, epoch=epoch, ids=ids, actor=actor, at=self.wall_clock(), reason=reason)
        try:
            self.commit_change(change, flag_version=stored.version)
        except Conflict:
            # Somebody was faster. Ask again, so that the operator hears the epoch that now holds.
            lift(self.read_flag().flag, epoch=epoch, ids=ids, actor=actor, at="-", reason=reason)
            raise
        except OutcomeUnknown as unknown:
            if not self.settle(change, unknown, doubt="the release may or may not be in force"):
                raise
        return Committed(change.flag, changed=True, started_ns=started_ns, returned_ns=self.clock())

    def reassert(self, known: Flag, cause: Freeze) -> Flag:
        """Tell a store that lost or rewrote its data what is known here. One attempt; the caller comes again.

        Raises:
            UnreadableRecord: the store holds a flag that cannot be read; it is never overwritten.
            Conflict: somebody else changed it meanwhile.
            StoreError: the store did not answer or refuses.
        """
        entry = self.store.read(self.keys.flag)
        found = self.parse_flag(entry) if entry is not None else None
        if found is not None and cause.id in found.flag.freeze_ids() and _holds_all(found.flag, known):
            return found.flag
        change = reassert(found.flag if found else None, known, cause, history_epoch=self._history_epoch())
        self.commit_change(change, flag_version=found.version if found else None)
        return change.flag

    def _not_behind_history(self, stored: StoredFlag, *, after_conflict: bool) -> StoredFlag:
        """Return the flag at an epoch above all of the history, where the flag alone was set back by hand.

        Its next epoch is in the history already, so that every change of it would conflict for ever: a stop button
        that refuses to stop. The chain then shows the break, as it should.
        """
        if not after_conflict or self.store.read(self.keys.history(stored.flag.epoch + 1)) is None:
            return stored
        again = self.read_flag()
        if again.version != stored.version:
            return again
        return StoredFlag(replace(stored.flag, epoch=self._history_epoch()), stored.version)

    def _history_epoch(self) -> int:
        """Newest epoch in the history's keys, 0 for none: a flag may be gone while its history is there."""
        prefix = self.keys.under("history")
        names = [entry.key.removeprefix(prefix) for entry in self.store.scan(prefix)]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def holds_change(self, change: Change) -> bool:
        """Tell whether a change whose reply was lost is in: the history entry of its epoch is ours or it is not.

        Raises:
            UnreadableRecord: there is an entry that cannot be read.
            StoreUnavailable: no answer.
        """
        entry = self.store.read(self.keys.history(change.flag.epoch))
        return entry is not None and HistoryRecord.from_bytes(entry.value, key=entry.key).hash == change.entry.hash

    def settle(self, change: Change, unknown: OutcomeUnknown, *, doubt: str) -> bool:
        """Tell whether a change whose reply was lost is in, or say that nobody knows: a read that failed is no "no".

        Raises:
            OutcomeUnknown: the store does not answer this question either.
            UnreadableRecord: there is an entry that cannot be read.
        """
        try:
            return self.holds_change(change)
        except StoreError as error:
            raise OutcomeUnknown(f"{doubt}: {unknown}; {error}") from error

    def commit_change(
        self,
        change: Change,
        *,
        flag_version: int | None,
        fence: Mapping[str, int | None] | None = None,
        deletes: Sequence[str] = (),
    ) -> None:
        """Write a flag and its history entry, and delete keys, all in one commit or not at all.

        Args:
            change: the next flag and its entry.
            flag_version: version of the flag that the change was made from, ``None`` where there is none.
            fence: further expectations of the commit, by key.
            deletes: keys that go with it.

        Raises:
            Conflict: an expectation does not hold; nothing was written.
            StoreError: the store did not answer or refuses.
        """
        history_key = self.keys.history(change.flag.epoch)
        self.store.commit(
            expect={self.keys.flag: flag_version, history_key: None, **(fence or {})},
            puts={
                self.keys.flag: FlagRecord.from_core(change.flag).to_bytes(),
                history_key: HistoryRecord.from_core(change.entry).to_bytes(),
            },
            deletes=deletes,
        )

    def _raise_if_fenced_off(self, fence: Mapping[str, int | None] | None) -> None:
        for key, version in (fence or {}).items():
            entry = self.store.read(key)
            if (entry.version if entry else None) != version:
                raise _FencedOff(f"{key} is no longer at version {version}: whoever held it must not act any more")

    def _retrying(
        self, deadline_ns: int, *errors: type[Exception], give_up: Callable[[], bool] = lambda: False
    ) -> tenacity.Retrying:
        backoff = tenacity.wait_random_exponential(multiplier=0.005, max=self.timing.backoff_cap_ms / 1000)
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, errors) and type(error) is not _FencedOff
            ),
            stop=lambda _: self.clock() >= deadline_ns or give_up(),
            wait=lambda state: min(backoff(state), max(0, deadline_ns - self.clock()) / NANOSECONDS_PER_S),
            sleep=self.pause,
            reraise=True,
        )

    # -- nodes, reports, acks ------------------------------------------------------------------------------------

    def membership(self) -> NodeRoster:
        """Read who is known, who is live and what each holds.

        Raises:
            StoreError: the store did not answer or refuses.
        """
        return read_roster(self.store, self.keys)

    def acks(self) -> dict[str, AckRecord]:
        """Newest readable ack of each node."""
        acks = read_family(self.store, self.keys, "acks", AckRecord)
        return {name: ack for name, (ack, _) in acks.items() if ack is not None}

    def leader(self) -> LeaderRecord | None:
        """Who leads, ``None`` when nobody holds the key."""
        entry = self.store.read(self.keys.leader)
        return LeaderRecord.from_bytes(entry.value, key=entry.key) if entry else None

    # -- history -------------------------------------------------------------------------------------------------

    def history(self) -> list[tuple[int, HistoryEntry]]:
        """Every entry with the epoch in its key, oldest first.

        Raises:
            UnreadableRecord: an entry cannot be read.
        """
        prefix = self.keys.under("history")
        entries = []
        for entry in self.store.scan(prefix):
            name = entry.key.removeprefix(prefix)
            if not name.isdecimal() or entry.key != self.keys.history(int(name)):
                raise UnreadableRecord(f"key {entry.key} is not the key of a history entry")
            entries.append((int(name), HistoryRecord.from_bytes(entry.value, key=entry.key).to_core()))
        return entries

    def verify_history(self) -> list[HistoryFault]:
        """Check the whole chain against the flag; an empty list means that nothing was changed, lost or reordered.

        The flag is read before and after, so that a change made meanwhile is not taken for a fault.
        """
        for _ in range(VERIFY_ATTEMPTS):
            before = self.read_flag()
            entries = self.history()
            if self.read_flag().version == before.version:
                flag = before.flag
                in_force = [freeze.to_json() for freeze in flag.freezes]
                return verify(
                    entries,
                    flag_epoch=flag.epoch,
                    flag_head=flag.head,
                    flag_freezes=in_force,
                    flag_parent=flag.parent,
                )
        raise Conflict(f"the flag changed during each of {VERIFY_ATTEMPTS} readings of the history; verify again later")


class _FencedOff(Conflict):
    """The fence of a commit no longer holds; trying again cannot help."""


def _holds_all(flag: Flag, known: Flag) -> bool:
    return {freeze.canonical() for freeze in known.freezes} <= {freeze.canonical() for freeze in flag.freezes}

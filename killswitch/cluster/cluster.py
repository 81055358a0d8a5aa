"""The cluster as one object, over any store: the flag, its history, the nodes, their reports and their acks.

Everybody who changes the flag does it through here: the command, agents and coordinators. No leader is asked and no
approval is needed to freeze (ONE VOICE FREEZES); a release is a compare-and-set on the epoch that it names (RELEASE IS
FENCED); the flag and its history entry are one commit (NOTHING IS LOST).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog
import tenacity

from killswitch.clock import NowNs, WallClock, now_ns, wall_now
from killswitch.cluster.records import (
    AckRecord,
    FlagRecord,
    FreezeRecord,
    HistoryRecord,
    LeaderRecord,
    LiveRecord,
    NodeRecord,
    Record,
    ReportRecord,
    UnreadableRecord,
    read_flag,
)
from killswitch.core.certificate import KnownNode
from killswitch.core.exposure import ClusterExposure, NodeExposure, add_up
from killswitch.core.flag import Change, Flag, Freeze, add, fitting_freeze, initial, lift, reassert
from killswitch.core.history import HistoryEntry, HistoryFault, verify
from killswitch.core.modes import Mode
from killswitch.core.permit import NANOSECONDS_PER_MS, Timing
from killswitch.core.scopes import GLOBAL
from killswitch.stores.port import Conflict, Entry, OutcomeUnknown, Store, StoreError, StoreUnavailable

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Record)

NANOSECONDS_PER_S = 1_000_000_000

EPOCH_DIGITS = 12
"""Epochs in keys are padded with zeros, so that keys sort in the order of time."""

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
class Keys:
    """Names of a cluster's keys in the store."""

    cluster: str

    @property
    def root(self) -> str:
        """Prefix of all of them."""
        return f"/killswitch/{self.cluster}/"

    @property
    def flag(self) -> str:
        """The freeze flag."""
        return self.root + "flag"

    @property
    def leader(self) -> str:
        """The leased leader key."""
        return self.root + "leader"

    @property
    def term(self) -> str:
        """The newest term of any leader."""
        return self.root + "term"

    @property
    def view(self) -> str:
        """What the leader last added up."""
        return self.root + "view"

    def under(self, family: str, name: str = "") -> str:
        """A key of a family (``nodes``, ``live``, ``reports``, ``acks``, ...), or its prefix."""
        return f"{self.root}{family}/{name}"

    def history(self, epoch: int) -> str:
        """The history entry of an epoch."""
        return self.under("history", f"{epoch:0{EPOCH_DIGITS}d}")

    def certificate(self, epoch: int) -> str:
        """The leader's certificate for the freeze of an epoch."""
        return self.under("certificates", f"{epoch:0{EPOCH_DIGITS}d}")


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


@dataclass(frozen=True, slots=True)
class NodeRoster:
    """Every node ever registered and not forgotten, as the store knows it at one reading.

    Attributes:
        nodes: lasting records; ``None`` for one that cannot be read.
        live: leased records of the nodes whose agent keeps them alive.
        reports: last report of each node that ever made one and whose report can be read.
        report_versions: store version of each report; *that it changed* is the only trusted sign of freshness.
    """

    nodes: Mapping[str, NodeRecord | None]
    live: Mapping[str, LiveRecord | None]
    reports: Mapping[str, ReportRecord]
    report_versions: Mapping[str, int]

    def known(self) -> list[KnownNode]:
        """What a certificate needs to know of each."""
        known = []
        for name, record in self.nodes.items():
            report = self.reports.get(name)
            working = report.working_orders if report else None
            known.append(record.to_known(working) if record else KnownNode(name, None, working))
        return known

    def lost(self) -> tuple[str, ...]:
        """Registered nodes whose agent keeps no lease alive."""
        return tuple(sorted(set(self.nodes) - set(self.live)))

    def unreadable_reports(self) -> tuple[str, ...]:
        """Nodes that made a report which this version cannot read: what they hold is unknown."""
        return tuple(sorted(set(self.report_versions) - set(self.reports)))

    def exposure(self) -> ClusterExposure:
        """What the cluster holds, lost nodes with what they held last."""
        reports = [
            NodeExposure(
                node=name,
                live=name in self.live,
                notional_by_symbol={symbol: held.notional_usd for symbol, held in report.holdings.items()},
                pnl_usd=report.pnl_usd,
                working_orders=report.working_orders,
            )
            for name, report in self.reports.items()
        ]
        return add_up(reports, self.nodes)


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
        """Read who is known, who is live and what each holds: one scan each, nodes last.

        Nodes are read last so that a node registered while this runs is in the result rather than forgotten.
        """
        reports = self._family("reports", ReportRecord)
        live = self._family("live", LiveRecord)
        nodes = self._family("nodes", NodeRecord)
        return NodeRoster(
            nodes={name: record for name, (record, _) in nodes.items()},
            live={name: record for name, (record, _) in live.items()},
            reports={name: record for name, (record, _) in reports.items() if record is not None},
            report_versions={name: version for name, (_, version) in reports.items()},
        )

    def acks(self) -> dict[str, AckRecord]:
        """Newest readable ack of each node."""
        return {name: ack for name, (ack, _) in self._family("acks", AckRecord).items() if ack is not None}

    def leader(self) -> LeaderRecord | None:
        """Who leads, ``None`` when nobody holds the key."""
        entry = self.store.read(self.keys.leader)
        return LeaderRecord.from_bytes(entry.value, key=entry.key) if entry else None

    def _family(self, family: str, model: type[R]) -> dict[str, tuple[R | None, int]]:
        prefix = self.keys.under(family)
        found: dict[str, tuple[R | None, int]] = {}
        for entry in self.store.scan(prefix):
            try:
                record: R | None = read_of_node(model, entry)
            except UnreadableRecord as error:
                log.error("record_unreadable", key=entry.key, error=str(error))
                record = None
            found[entry.key.removeprefix(prefix)] = (record, entry.version)
        return found

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


def read_of_node(model: type[R], entry: Entry) -> R:
    """Read a record that stands under its node's name; one that speaks of another node proves nothing of either.

    Raises:
        UnreadableRecord: it cannot be read, or names another node than its key does.
    """
    record = model.from_bytes(entry.value, key=entry.key)
    named, own = getattr(record, "node", None), entry.key.rpartition("/")[2]
    if named != own:
        raise UnreadableRecord(f"key {entry.key} cannot be read (node: it speaks of {named!r}, not of {own!r})")
    return record


class _FencedOff(Conflict):
    """The fence of a commit no longer holds; trying again cannot help."""


def _holds_all(flag: Flag, known: Flag) -> bool:
    return {freeze.canonical() for freeze in known.freezes} <= {freeze.canonical() for freeze in flag.freezes}

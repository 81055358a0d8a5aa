"""Keeps the node's gate true: what is read from the store goes to the page, closing first and opening last.

Paths that lead to a closed gate, each with a test in ``tests/unit/agent/test_gatekeeper.py``:

=========================  ====================================================================================
no permit yet              the agent has started and no read has succeeded
not registered             the node's record is not in the store: a certificate could not know of the node
permit ran out             no linearizable read came back in time, for whatever reason; no code has to run
freeze in the flag         seen by the watch or by the next renewal, whichever is first
flag missing or older      the store lost its data: a cause of this node stands until the store has been told
flag rewritten             the same, when the history in the store does not hold what was known
flag unreadable            a cause of this node stands until the flag can be read
journal not writable       a cause of this node stands until a flag has been synced to the disk
monitor or router          a cause of this node stands until the flag carries it or the store has told its fate
=========================  ====================================================================================
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from killswitch.cluster.cluster import Cluster, NotInitialised
from killswitch.cluster.records import HistoryRecord, UnreadableRecord
from killswitch.core.flag import ESCALATION_ID, Flag, Freeze, fitting_freeze, merge
from killswitch.core.modes import Mode
from killswitch.core.permit import NANOSECONDS_PER_MS, permit_deadline_ns
from killswitch.core.scopes import GLOBAL
from killswitch.stores.port import Entry, StoreError
from killswitch_agent.flag_lineage import (
    FAULT_SENTENCES,
    MUST_REASSERT,
    STORE_LOST_DATA,
    Finding,
    judge,
    judge_lineage,
    touching,
)
from killswitch_agent.flag_lineage import store_fault_cause as make_store_fault_cause
from killswitch_agent.gate_per_store import GatePage
from killswitch_agent.journal import Journal, JournalUnwritable

log = structlog.get_logger(__name__)

FLAG_UNREADABLE = "flag-unreadable"
NOT_INITIALISED = "not-initialised"
STORE_FAULT = "store-fault"
JOURNAL_FAULT = "journal-fault"

GLOBAL_FREEZE = b'"scope":"global"'
"""Stands in every flag that freezes everything. A figure of a freeze that happens to read like it makes the orders of
other scopes wait for the head start, and no more."""

HEAD_START_S = 0.0015
"""How long a flag that freezes everything waits to be understood, once the gate has closed for it.

Every agent of a crowded machine is woken by the same change. Closing is one store, understanding a hundred times that;
who closes first lets the others close before it goes on.
"""


class ReadAgain(enum.Enum):
    """Whether and when a linearizable read should follow what the watch said, rather than at the next renewal."""

    NO = "no"
    """It was not about the flag."""

    SOON = "soon"
    """The gate holds it already: the read only remembers, acknowledges and opens."""

    NOW = "now"
    """Only the read can tell what to do, and that may be to close."""


@dataclass(frozen=True, slots=True)
class View:
    """What the gate holds closed, for those who push stops and write acks.

    Attributes:
        epoch: newest epoch whose freezes the gate holds.
        flag_causes: freezes of the flag that can cover an order of this node.
        local_causes: causes of this node alone that no flag carries yet.
        adopted: the newest flag that came by a linearizable read and is in the journal; acks speak of it.
    """

    epoch: int
    flag_causes: tuple[Freeze, ...]
    local_causes: tuple[Freeze, ...]
    adopted: Flag | None


@dataclass(frozen=True, slots=True)
class Reassertion:
    """What the store must be told because it lost or rewrote its data."""

    known: Flag
    cause: Freeze


class GateKeeper:
    """Owns the gate, the journal, and what is known of the flag. Every method may be called from any thread.

    Args:
        gate: the page, closed.
        journal: what earlier runs have seen.
        cluster: the cluster in its store.
        node: name of this node.
        on_change: called after every change of what the gate holds, on the thread that made it; must be quick.
    """

    def __init__(
        self, gate: GatePage, journal: Journal, cluster: Cluster, node: str, *, on_change: Callable[[], None]
    ) -> None:
        self._gate = gate
        self._journal = journal
        self._cluster = cluster
        self._node = node
        self._on_change = on_change
        self._lock = threading.RLock()
        self._known = journal.last
        self._adopted: Flag | None = None
        self._ahead: Flag | None = None
        self._heard: tuple[Freeze, ...] = ()
        self._local: dict[str, Freeze] = {}
        self._settled_at_epoch: dict[str, int] = {}
        self._permit_until_ns = 0
        self._registered = False
        self._lease_until_ns = 0
        self._parsed: tuple[bytes, Flag] | None = None
        self.reassertion: Reassertion | None = None
        self.last_finding = "no read yet"

    # -- what others ask -----------------------------------------------------------------------------------------

    @property
    def known(self) -> Flag | None:
        """The newest flag that this node acts on."""
        with self._lock:
            return self._known

    @property
    def permit_until_ns(self) -> int:
        """Deadline of the newest permit on the gate's clock; 0 before the first."""
        with self._lock:
            return self._permit_until_ns

    @property
    def mode(self) -> Mode:
        """The strictest mode that holds for any order of this node; FROZEN without a permit."""
        with self._lock:
            return Mode.FROZEN if self._permit_until_ns <= self._cluster.clock() else self._gate.state.mode

    @property
    def is_registered(self) -> bool:
        """The node's record is in the store; without it no permit is taken, for no certificate would name the node."""
        with self._lock:
            return self._registered

    def set_registered(self, registered: bool) -> None:
        """Note that the node's record was written, or that it is gone."""
        with self._lock:
            self._registered = registered

    def lease_confirmed(self, sent_ns: int) -> None:
        """Note that the node's lease and record were found in the store, after a keep-alive sent at ``sent_ns``.

        No permit outlasts the shortest time that the store keeps such a lease. So a node whose lease the store has
        let go has no permit left, and a person may take it out of the books (``killswitch nodes forget``).
        """
        timing = self._cluster.timing
        until_ns = sent_ns + int(timing.lease_ttl_ms / timing.clock_rate_ratio * NANOSECONDS_PER_MS)
        with self._lock:
            self._lease_until_ns = max(self._lease_until_ns, until_ns)

    def view(self) -> View:
        """What the gate holds closed now."""
        with self._lock:
            flags = [flag for flag in (self._known, self._ahead) if flag is not None]
            causes = merge(*(touching(flag.freezes, self._node) for flag in flags), touching(self._heard, self._node))
            carried = {cause.id for cause in causes}
            local = tuple(cause for cause in self._local.values() if cause.id not in carried)
            return View(max((flag.epoch for flag in flags), default=0), causes, local, self._adopted)

    def holds(self, freeze_id: str) -> bool:
        """Tell whether a cause is on the gate, by this node's own finding or by the flag."""
        view = self.view()
        # A full flag holds what comes on top of it in its escalation cause.
        return any(cause.id in (freeze_id, ESCALATION_ID) for cause in (*view.flag_causes, *view.local_causes))

    # -- what closes ---------------------------------------------------------------------------------------------

    def raise_local(self, freeze: Freeze) -> None:
        """Close for a cause that this node found, before any store knows of it."""
        with self._lock:
            self._gate.close_now(freeze)
            news = freeze.id not in self._local
            self._local[freeze.id] = freeze
        if news:
            log.critical("gate_closed", cause=freeze.id, trigger=freeze.trigger, reason=freeze.reason)
            self._on_change()

    def settle_local(self, freeze_id: str, epoch: int) -> None:
        """Note that the flag carries a cause since ``epoch``: from then on the flag alone decides about it."""
        with self._lock:
            if freeze_id in self._local:
                self._settled_at_epoch[freeze_id] = epoch
                self._drop_settled()
        self._on_change()

    def lift_local(self, freeze_id: str) -> None:
        """Take back a cause of this node that no longer holds and that no flag carries."""
        with self._lock:
            if self._local.pop(freeze_id, None) is None:
                return
            self._settled_at_epoch.pop(freeze_id, None)
            self._gate.lift_local(freeze_id)
        log.warning("local_cause_lifted", cause=freeze_id)
        self._on_change()

    def heard(self, entry: Entry) -> ReadAgain:
        """Take a change of the flag from the watch: it can close at once, and it never opens."""
        if entry.key != self._cluster.keys.flag:
            return ReadAgain.NO
        if entry.value is not None and GLOBAL_FREEZE in entry.value and self._gate.state.open_until_ns:
            self._gate.close_early()
            time.sleep(HEAD_START_S)
        try:
            found = self._parse(entry)
        except (NotInitialised, UnreadableRecord):
            return ReadAgain.NOW
        return ReadAgain.SOON if self._close_for(found) else ReadAgain.NOW

    def _parse(self, entry: Entry) -> Flag:
        """Return the flag in an entry; the same bytes, which every renewal of a quiet cluster reads, are parsed once.

        Raises:
            NotInitialised, UnreadableRecord: as :meth:`Cluster.parse_flag`.
        """
        parsed = self._parsed
        if parsed is not None and parsed[0] == entry.value:
            return parsed[1]
        flag = self._cluster.parse_flag(entry).flag
        if entry.value is not None:
            self._parsed = (entry.value, flag)
        return flag

    def _close_for(self, found: Flag) -> bool:
        """Close for the freezes of a newer flag before anything else is done or asked; lift nothing.

        Returns whether it was newer than all that is known.
        """
        with self._lock:
            newest = max(self._known.epoch if self._known else 0, self._ahead.epoch if self._ahead else 0)
            if found.epoch <= newest:
                return False
            # What was heard before stays too: a release that is only heard lifts nothing.
            held = self._known.freezes if self._known else ()
            self._heard = merge(held, self._heard, found.freezes) if held or self._heard else found.freezes
            self._gate.update(self._heard, epoch=found.epoch, permit_deadline_ns=self._kept_permit_ns())
            self._ahead = found
        self._on_change()
        return True

    # -- what renews ---------------------------------------------------------------------------------------------

    def renew(self) -> bool:
        """Read the flag and act on it; True when the permit was renewed.

        Raises:
            StoreError: no answer. Nothing changed, and the permit goes on running out.
        """
        with self._lock:
            known, ahead = self._known, self._ahead
            # Only a read that is *sent* after the record was written may give a permit: a certificate reads the
            # records after its freeze, so whoever it does not find there has no permit from before.
            registered = self._registered and self._cluster.clock() < self._lease_until_ns
        sent_ns = self._cluster.clock()
        entry = self._cluster.store.read(self._cluster.keys.flag)
        try:
            found = self._parse(entry) if entry is not None else None
        except UnreadableRecord as error:
            self.last_finding = "unreadable"
            self._fault(FLAG_UNREADABLE, "flag_unreadable", f"{error}; nothing was overwritten")
            return False
        if found is not None:
            self._close_for(found)
        finding = judge(known, found)
        if ahead is not None and judge(ahead, found) in MUST_REASSERT:
            # The watch had shown more than the store holds now, before this read was even sent.
            known, finding = ahead, judge(ahead, found)
        if finding is Finding.CHECK_LINEAGE and known is not None:
            finding = judge_lineage(known, self._stored_hash(known.epoch))
        self.last_finding = finding.value
        if finding is Finding.ADOPT and found is not None:
            return self._adopt(found, sent_ns, permitted=registered)
        if finding in MUST_REASSERT and known is not None:
            self._store_fault(finding, known)
        else:
            self._fault(NOT_INITIALISED, "not_initialised", FAULT_SENTENCES[Finding.ABSENT])
        return False

    def _adopt(self, flag: Flag, sent_ns: int, *, permitted: bool) -> bool:
        with self._lock:
            if self._known is not None and flag.epoch < self._known.epoch:
                return False  # a slower thread's older read; the newer one has been acted on
            news = self._adopted is None or flag.head != self._adopted.head
            if news or JOURNAL_FAULT in self._local:
                self._take(flag)
            self._clear_faults()
            self._drop_settled()
            if self._ahead is not None and self._ahead.epoch <= flag.epoch:
                self._ahead, self._heard = None, ()
            permitted = permitted and self._registered
            if permitted:
                deadline_ns = permit_deadline_ns(sent_ns, self._cluster.timing)
                self._permit_until_ns = max(self._permit_until_ns, min(deadline_ns, self._lease_until_ns))
            if self._ahead is None and not news:
                self._gate.extend(self._kept_permit_ns())
            else:
                epoch = max(flag.epoch, self._ahead.epoch if self._ahead else 0)
                self._gate.update(
                    merge(flag.freezes, self._heard), epoch=epoch, permit_deadline_ns=self._kept_permit_ns()
                )
        if news:
            self._on_change()
        return permitted

    def _take(self, flag: Flag) -> None:
        """Make a flag the known one: close for its freezes, then remember it on disk. Opening is the caller's."""
        held = self._known.freezes if self._known else ()
        known_ids = {freeze.id for freeze in held}
        if any(freeze.trigger == STORE_LOST_DATA and freeze.id not in known_ids for freeze in flag.freezes):
            # Somebody found the store without its data; this node's record may have gone with it.
            self._registered = False
        self._gate.update(merge(held, flag.freezes), epoch=flag.epoch, permit_deadline_ns=self._kept_permit_ns())
        try:
            self._journal.append(flag)
        except JournalUnwritable as error:
            self._fault(JOURNAL_FAULT, "journal_unwritable", str(error))
        else:
            if JOURNAL_FAULT in self._local:
                self.lift_local(JOURNAL_FAULT)
        self._known = self._adopted = flag

    def _kept_permit_ns(self) -> int:
        """The permit as it is, for an update that renews nothing; 0 would withdraw it."""
        return max(self._permit_until_ns, 1)

    def _clear_faults(self) -> None:
        self.reassertion = None
        for cause in (FLAG_UNREADABLE, NOT_INITIALISED, STORE_FAULT):
            if cause in self._local:
                self.lift_local(cause)

    def _drop_settled(self) -> None:
        epoch = self._adopted.epoch if self._adopted else 0
        for freeze_id in [name for name, since in self._settled_at_epoch.items() if since <= epoch]:
            del self._settled_at_epoch[freeze_id]
            self._local.pop(freeze_id, None)
            self._gate.lift_local(freeze_id)

    def _store_fault(self, finding: Finding, known: Flag) -> None:
        cause = make_store_fault_cause(finding, known, actor=f"agent:{self._node}", at=self._cluster.wall_clock())
        self._fault(STORE_FAULT, cause.trigger, cause.reason)
        with self._lock:
            self._registered = False
            if self.reassertion is None or self.reassertion.cause.id != cause.id:
                self.reassertion = Reassertion(known, cause)

    def _fault(self, cause_id: str, trigger: str, reason: str) -> None:
        if cause_id not in self._local:
            self.raise_local(
                fitting_freeze(
                    id=cause_id,
                    scope=GLOBAL,
                    mode=Mode.FROZEN,
                    trigger=trigger,
                    reason=reason,
                    actor=f"agent:{self._node}",
                    at=self._cluster.wall_clock(),
                    metadata={},
                )
            )

    def _stored_hash(self, epoch: int) -> str | None:
        entry = self._cluster.store.read(self._cluster.keys.history(epoch))
        if entry is None:
            return None
        try:
            return HistoryRecord.from_bytes(entry.value, key=entry.key).hash
        except UnreadableRecord as error:
            log.error("history_unreadable", error=str(error))
            return None

    def permit_ms_left(self) -> int:
        """How long the permit still lasts."""
        left_ns = self.permit_until_ns - self._cluster.clock()
        return max(0, left_ns // 1_000_000)

    def close(self) -> None:
        """Close the gate for good."""
        self._gate.close()


__all__ = ["GateKeeper", "View", "Reassertion", "StoreError"]

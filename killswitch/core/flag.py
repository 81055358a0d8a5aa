"""The distributed freeze flag: the set of freezes in force, and an epoch that grows by one at every change.

Every change is a pure function from one flag to the next flag *and* its history entry; the caller writes both in one
atomic commit. Freezes form a set (two equal freezes are one, two different ones with the same id are two), so merging
is a plain union: it commutes, and it can never lose a cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from killswitch.core.canonical import canonical_json, finite_or_text, sha256_hex, writable_text
from killswitch.core.history import FORGET, GENESIS_HASH, HistoryEntry, seal
from killswitch.core.modes import Mode, strictest
from killswitch.core.scopes import GLOBAL, Scope

MAX_FREEZES = 63
"""Causes that a flag holds one by one. With the escalation cause they fill the 64 rows of a gate page."""

ESCALATION_ID = "cause-limit"
"""Id of the global freeze that stands for every cause beyond :data:`MAX_FREEZES`."""

IN_FORCE_MAX_BYTES = 128 * 1024
"""Size of all causes in a flag; beyond it the flag escalates too, for a store takes values of 256 KiB at most."""

REASON_MAX_CHARS = 1000
ID_MAX_CHARS = 64
TRIGGER_MAX_CHARS = 32

FREEZE_MAX_BYTES = 32 * 1024
"""Largest freeze as JSON. A full flag and the history entry of one more freeze stay below what a store takes: a flag
that could not be written any more would be a stop button that refuses to stop."""

FORGOTTEN_MAX_BYTES = 64 * 1024
"""Largest account of a forgotten node as JSON. With a full flag its history entry stays below what a store takes."""

METADATA_MAX_BYTES = 16 * 1024
"""Largest metadata of an automatic freeze; beyond it only its size is kept."""


class FlagError(Exception):
    """A change of the flag that must not be made; the message is a sentence for the operator."""


class StaleEpoch(FlagError):
    """A release names an epoch that is not the current one: somebody changed the flag in between."""

    def __init__(self, named_epoch: int, current_epoch: int) -> None:
        super().__init__(
            f"the release names epoch {named_epoch}, but the current epoch is {current_epoch}: "
            "look at `killswitch status` again and release what you see there"
        )
        self.named_epoch = named_epoch
        self.current_epoch = current_epoch


class UnknownFreeze(FlagError):
    """A release names a freeze that is not in force."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """One cause for which trading is restricted.

    Attributes:
        id: unique name of this cause, at most 64 characters.
        scope: the orders that it covers.
        mode: how far they are restricted.
        trigger: the kind of cause in one word: ``manual``, ``edge_collapse``, ``drawdown``, ``gross_notional``, ...
        reason: the sentence for people.
        actor: who or what raised it: ``operator:ann``, ``agent:n1``, ``coordinator:c1``.
        at: wall-clock time for people, RFC 3339 in UTC. Nothing is ever decided from it.
        metadata: the figures that led to it, JSON values only; NaN and infinities become words.

    Text that UTF-8 cannot hold is replaced, not refused: no freeze may fail for how its reason is spelt.
    """

    id: str
    scope: Scope
    mode: Mode
    trigger: str
    reason: str
    actor: str
    at: str
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name in ("id", "trigger", "reason", "actor", "at"):
            object.__setattr__(self, name, writable_text(getattr(self, name)))
        for name, limit in (("id", ID_MAX_CHARS), ("trigger", TRIGGER_MAX_CHARS), ("reason", REASON_MAX_CHARS)):
            text = getattr(self, name)
            if not text or len(text) > limit:
                raise ValueError(f"a freeze needs a {name} of 1 to {limit} characters; this one has {len(text)}")
        if self.mode is Mode.ACTIVE:
            raise ValueError("a freeze must restrict something: its mode is REDUCE_ONLY or FROZEN, not ACTIVE")
        object.__setattr__(self, "metadata", MappingProxyType(finite_or_text(self.metadata)))
        size = len(self.canonical().encode())
        if size > FREEZE_MAX_BYTES:
            raise ValueError(
                f"a freeze may take {FREEZE_MAX_BYTES} bytes as JSON, and this one takes {size}; shorten its metadata"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the freeze as JSON values, the form that is stored, hashed and printed."""
        return {
            "id": self.id,
            "scope": str(self.scope),
            "mode": self.mode.name,
            "trigger": self.trigger,
            "reason": self.reason,
            "actor": self.actor,
            "at": self.at,
            "metadata": dict(self.metadata),
        }

    def canonical(self) -> str:
        """Return the one text that identifies this cause with all its content."""
        return canonical_json(self.to_json())


def fitting_freeze(
    *,
    id: str,
    scope: Scope,
    mode: Mode,
    trigger: str,
    reason: str,
    actor: str,
    at: str,
    metadata: Mapping[str, Any],
) -> Freeze:
    """Make a freeze of whatever an automatic cause brings along: nothing that it says can keep it from freezing.

    Texts are cut, figures that are not finite become words, metadata that is too large is replaced by its size.
    """
    figures = finite_or_text(metadata)
    try:
        size = len(canonical_json(figures).encode())
    except TypeError:
        figures, size = {"unreadable_metadata": repr(metadata)[:200]}, 0
    if size > METADATA_MAX_BYTES:
        figures = {"metadata_too_large_bytes": size}
    return Freeze(
        id=id,
        scope=scope,
        mode=mode,
        trigger=(trigger or "unknown")[:TRIGGER_MAX_CHARS],
        reason=(reason or "no reason given")[:REASON_MAX_CHARS],
        actor=actor[:ID_MAX_CHARS],
        at=at,
        metadata=figures,
    )


@dataclass(frozen=True, slots=True)
class Flag:
    """The flag at one epoch.

    Attributes:
        cluster: whose flag it is.
        epoch: fencing number, 1 for the first flag of a cluster.
        freezes: the causes in force, sorted by id.
        head: hash of the history entry that made this epoch.
        parent: hash of the entry before; lets a reader see that nothing was rewritten since the epoch it knows.
    """

    cluster: str
    epoch: int
    freezes: tuple[Freeze, ...] = ()
    head: str = GENESIS_HASH
    parent: str = GENESIS_HASH

    @property
    def mode(self) -> Mode:
        """The strictest mode that holds anywhere in the cluster."""
        return strictest(freeze.mode for freeze in self.freezes)

    def mode_for(self, attributes: Mapping[str, str | None]) -> Mode:
        """The strictest mode over the scopes that an order with these attributes falls in."""
        return strictest(freeze.mode for freeze in self.freezes if freeze.scope.covers(attributes))

    def freeze_ids(self) -> frozenset[str]:
        """Ids of the causes in force."""
        return frozenset(freeze.id for freeze in self.freezes)

    def standing_for(self, freeze_id: str) -> str:
        """Id of the cause that stands for a freeze: its own, or the escalation's when the flag was full."""
        return freeze_id if freeze_id in self.freeze_ids() else ESCALATION_ID


@dataclass(frozen=True, slots=True)
class Change:
    """The next flag and its history entry, to be committed together or not at all."""

    flag: Flag
    entry: HistoryEntry


def merge(*groups: Iterable[Freeze]) -> tuple[Freeze, ...]:
    """Return the union of several sets of freezes, sorted by id, then by content.

    The law: commutative, associative, idempotent, and every freeze of every group is in the result.
    """
    union = {freeze.canonical(): freeze for group in groups for freeze in group}
    return tuple(sorted(union.values(), key=lambda freeze: (freeze.id, freeze.canonical())))


def initial(cluster: str, *, actor: str, at: str, reason: str) -> Change:
    """Return the first flag of a cluster: epoch 1, nothing frozen."""
    return _change(Flag(cluster, 0), (), kind="init", actor=actor, at=at, reason=reason, added=(), lifted=())


def add(flag: Flag, freeze: Freeze) -> Change | None:
    """Add one cause; ``None`` when exactly this cause is in force already (a freeze that was sent twice).

    A flag that holds :data:`MAX_FREEZES` causes, or :data:`IN_FORCE_MAX_BYTES` of them, escalates: the cause is told in
    the history in full, and a global freeze stands for it and for all that follow. Fewer orders pass than were asked
    for, never more.
    """
    if any(existing.canonical() == freeze.canonical() or _folded_last(existing, freeze) for existing in flag.freezes):
        return None
    single = [existing for existing in flag.freezes if existing.id != ESCALATION_ID]
    freezes = merge(flag.freezes, (freeze,))
    if len(single) >= MAX_FREEZES or _bytes_in_force(freezes) > IN_FORCE_MAX_BYTES:
        freezes = _escalate(flag, freeze)
    return _change(
        flag, freezes, kind="freeze", actor=freeze.actor, at=freeze.at, reason=freeze.reason, added=(freeze,), lifted=()
    )


def lift(flag: Flag, *, epoch: int, ids: Sequence[str], actor: str, at: str, reason: str) -> Change:
    """Lift exactly the named causes from exactly the named epoch.

    Raises:
        StaleEpoch: the flag is at another epoch; nothing changes.
        UnknownFreeze: an id is not in force, or none is named; nothing changes.
    """
    if epoch != flag.epoch:
        raise StaleEpoch(epoch, flag.epoch)
    if not ids:
        raise UnknownFreeze("a release must name at least one freeze that is in force; none was named")
    missing = sorted(set(ids) - flag.freeze_ids())
    if missing:
        raise UnknownFreeze(f"no freeze {', '.join(missing)} is in force at epoch {flag.epoch}; nothing was released")
    kept = tuple(freeze for freeze in flag.freezes if freeze.id not in ids)
    return _change(
        flag, kept, kind="release", actor=actor, at=at, reason=reason, added=(), lifted=tuple(sorted(set(ids)))
    )


def forget(flag: Flag, *, forgotten: Mapping[str, Any], actor: str, at: str, reason: str) -> Change:
    """Take a node out of the books: every freeze stays as it is, the epoch grows, the history says what was forgotten.

    Args:
        flag: the flag as it stands.
        forgotten: what was known of the node, JSON values, at most :data:`FORGOTTEN_MAX_BYTES` of them.
        actor: who decided it.
        at: wall-clock time for people.
        reason: why.

    Raises:
        ValueError: the account of the node is too large.
    """
    figures = finite_or_text(forgotten)
    size = len(canonical_json(figures).encode())
    if size > FORGOTTEN_MAX_BYTES:
        raise ValueError(f"what is known of a node may take {FORGOTTEN_MAX_BYTES} bytes as JSON, and this takes {size}")
    return _change(
        flag, flag.freezes, kind=FORGET, actor=actor, at=at, reason=reason, added=(), lifted=(), forgotten=figures
    )


def reassert(found: Flag | None, known: Flag, cause: Freeze, *, history_epoch: int = 0) -> Change:
    """Tell a store that lost or rewrote its data what an agent remembers, and freeze for it.

    Args:
        found: what the store holds now, ``None`` when it holds nothing.
        known: the newest flag that the agent has seen and kept.
        cause: the freeze that says what happened; it stays until a person lifts it.
        history_epoch: newest epoch that the history in the store holds, 0 for none.

    The new epoch is above all of them. The entry follows the one that the store holds, or, where the store holds no
    flag, the one that the agent knows.
    """
    freezes = merge(found.freezes if found else (), known.freezes, (cause,))
    newest = max(known.epoch, found.epoch if found else 0, history_epoch)
    base = replace(found or known, epoch=newest)
    already = {freeze.canonical() for freeze in (found.freezes if found else ())}
    added = tuple(freeze for freeze in freezes if freeze.canonical() not in already)
    return _change(
        base, freezes, kind="reassert", actor=cause.actor, at=cause.at, reason=cause.reason, added=added, lifted=()
    )


def _bytes_in_force(freezes: Iterable[Freeze]) -> int:
    return sum(len(freeze.canonical().encode()) for freeze in freezes)


def _folded_last(existing: Freeze, freeze: Freeze) -> bool:
    """Tell whether ``existing`` is the escalation cause and ``freeze`` went into it last: it was sent twice."""
    said = existing.metadata.get("last_folded_sha256")
    return existing.id == ESCALATION_ID and said == sha256_hex(freeze.canonical())


def _escalate(flag: Flag, freeze: Freeze) -> tuple[Freeze, ...]:
    """Return the causes of a full flag with one more folded into the escalation cause."""
    before = next((existing for existing in flag.freezes if existing.id == ESCALATION_ID), None)
    counted = before.metadata.get("folded", 0) if before else 0
    folded = counted if isinstance(counted, int) else 0
    stands_for_all = Freeze(
        id=ESCALATION_ID,
        scope=GLOBAL,
        mode=Mode.FROZEN,
        trigger="cause_limit",
        reason="more causes are in force than a flag can hold; everything is frozen until an operator has looked",
        actor=freeze.actor,
        at=freeze.at,
        metadata={"folded": folded + 1, "last_folded": freeze.id, "last_folded_sha256": sha256_hex(freeze.canonical())},
    )
    return merge((existing for existing in flag.freezes if existing.id != ESCALATION_ID), (stands_for_all,))


def _change(
    flag: Flag,
    freezes: tuple[Freeze, ...],
    *,
    kind: str,
    actor: str,
    at: str,
    reason: str,
    added: tuple[Freeze, ...],
    lifted: tuple[str, ...],
    forgotten: Mapping[str, Any] | None = None,
) -> Change:
    entry = seal(
        cluster=flag.cluster,
        epoch=flag.epoch + 1,
        kind=kind,
        actor=writable_text(actor),
        at=writable_text(at),
        reason=writable_text(reason),
        added=tuple(freeze.to_json() for freeze in added),
        lifted=lifted,
        in_force=tuple(freeze.to_json() for freeze in freezes),
        previous_hash=flag.head,
        forgotten=forgotten,
    )
    return Change(Flag(flag.cluster, flag.epoch + 1, freezes, head=entry.hash, parent=flag.head), entry)

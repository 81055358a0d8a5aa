"""The hash-chained history: one entry per change of the flag, each holding the hash of the one before.

The flag carries the hash of the newest entry, so that cutting off the end is as visible as changing the middle.
What the chain does not show is a rewrite of *everything*, flag included, by somebody who may write to the store; for
that, keep a hash outside (``killswitch history -o json`` prints it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from killswitch.core.canonical import canonical_json, sha256_hex

GENESIS_HASH = "0" * 64
"""What the first entry names as the one before it."""

KINDS = ("init", "freeze", "release", "reassert", "forget")

FORGET = "forget"
"""The kind of entry by which a node is taken out of the books; the only one that changes no freeze."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of the flag.

    Attributes:
        cluster: whose history it is.
        epoch: the epoch that this change made.
        kind: ``init``, ``freeze``, ``release``, ``reassert`` or ``forget``.
        actor: who changed it.
        at: wall-clock time for people, RFC 3339 in UTC.
        reason: why.
        added: the freezes that came in, in full, with the figures that led to them.
        lifted: ids of the freezes that went.
        in_force: every freeze in force after the change, in full.
        previous_hash: hash of the entry before.
        hash: SHA-256 over the canonical JSON of all the above, and of ``forgotten`` where there is any.
        forgotten: what was known of the node that a ``forget`` took out of the books; ``None`` for every other kind.
    """

    cluster: str
    epoch: int
    kind: str
    actor: str
    at: str
    reason: str
    added: tuple[Mapping[str, Any], ...]
    lifted: tuple[str, ...]
    in_force: tuple[Mapping[str, Any], ...]
    previous_hash: str
    hash: str
    forgotten: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON values."""
        body = asdict(self)
        body["added"] = [dict(item) for item in self.added]
        body["in_force"] = [dict(item) for item in self.in_force]
        body["lifted"] = list(self.lifted)
        if self.forgotten is None:
            # Left out rather than null: entries from before there was such a thing keep their hashes.
            del body["forgotten"]
        return body


@dataclass(frozen=True, slots=True)
class HistoryFault:
    """One thing that is wrong with a history.

    Attributes:
        epoch: where.
        kind: ``changed``, ``missing``, ``reordered`` or ``head`` (the flag does not fit the last entry).
        sentence: what was found, for people.
    """

    epoch: int
    kind: str
    sentence: str


def entry_hash(entry: Mapping[str, Any]) -> str:
    """Return the hash that an entry with this content must carry (its own ``hash`` field is left out)."""
    return sha256_hex(canonical_json({key: value for key, value in entry.items() if key != "hash"}))


def seal(
    *,
    cluster: str,
    epoch: int,
    kind: str,
    actor: str,
    at: str,
    reason: str,
    added: tuple[Mapping[str, Any], ...],
    lifted: tuple[str, ...],
    in_force: tuple[Mapping[str, Any], ...],
    previous_hash: str,
    forgotten: Mapping[str, Any] | None = None,
) -> HistoryEntry:
    """Make an entry and give it its hash.

    Raises:
        ValueError: an unknown kind, or a ``forget`` that does not say what was forgotten.
    """
    if kind not in KINDS:
        raise ValueError(f"a history entry cannot be of kind {kind!r}; the kinds are {', '.join(KINDS)}")
    if (kind == FORGET) != (forgotten is not None):
        raise ValueError(f"an entry of kind {kind!r} says what was forgotten exactly when it is a {FORGET!r}")
    entry = HistoryEntry(
        cluster, epoch, kind, actor, at, reason, added, lifted, in_force, previous_hash, hash="", forgotten=forgotten
    )
    return HistoryEntry(**{**_fields(entry), "hash": entry_hash(entry.to_json())})


def verify(
    entries: Sequence[tuple[int, HistoryEntry]],
    *,
    flag_epoch: int,
    flag_head: str,
    flag_freezes: Sequence[Any],
    flag_parent: str | None = None,
) -> list[HistoryFault]:
    """Return everything that is wrong with a history, an empty list when nothing is.

    Args:
        entries: pairs of the epoch in the entry's key and the entry itself, in the order of the keys.
        flag_epoch: epoch of the flag in the store.
        flag_head: hash that the flag names as its newest entry.
        flag_freezes: JSON form of the freezes that the flag holds.
        flag_parent: hash that the flag names as the entry before its newest, ``None`` to leave it unchecked.
    """
    faults: list[HistoryFault] = []
    expected_epoch, previous = 1, GENESIS_HASH
    for key_epoch, entry in entries:
        if key_epoch > expected_epoch:
            last = key_epoch - 1
            span = f"entry {expected_epoch} is" if last == expected_epoch else f"entries {expected_epoch} to {last} are"
            faults.append(HistoryFault(expected_epoch, "missing", f"{span} missing from the history"))
        elif key_epoch < expected_epoch:
            sentence = f"entry {key_epoch} stands after entry {expected_epoch - 1}: it is there twice or out of order"
            faults.append(HistoryFault(key_epoch, "reordered", sentence))
        faults.extend(_entry_faults(key_epoch, entry, previous if key_epoch == expected_epoch else None))
        expected_epoch, previous = key_epoch + 1, entry.hash
    faults.extend(_head_faults(entries, flag_epoch, flag_head, flag_freezes))
    if entries and not faults and flag_parent is not None and entries[-1][1].previous_hash != flag_parent:
        sentence = "the flag names another entry before its newest than the history holds"
        faults.append(HistoryFault(flag_epoch, "head", sentence))
    return faults


def _entry_faults(key_epoch: int, entry: HistoryEntry, previous: str | None) -> list[HistoryFault]:
    faults = []
    if entry.epoch != key_epoch:
        sentence = f"the entry stored as epoch {key_epoch} says that it is epoch {entry.epoch}"
        faults.append(HistoryFault(key_epoch, "reordered", sentence))
    if entry_hash(entry.to_json()) != entry.hash:
        sentence = f"the content of entry {key_epoch} does not give the hash that it carries: it was changed"
        faults.append(HistoryFault(key_epoch, "changed", sentence))
    if previous is not None and entry.previous_hash != previous:
        sentence = f"entry {key_epoch} does not follow the entry before it: one of the two was replaced"
        faults.append(HistoryFault(key_epoch, "changed", sentence))
    return faults


def _head_faults(
    entries: Sequence[tuple[int, HistoryEntry]], flag_epoch: int, flag_head: str, flag_freezes: Sequence[Any]
) -> list[HistoryFault]:
    if not entries:
        return [HistoryFault(flag_epoch, "missing", f"the flag is at epoch {flag_epoch}, but the history is empty")]
    last_key, last = entries[-1]
    if last_key < flag_epoch:
        sentence = f"the flag is at epoch {flag_epoch}, but the history ends at {last_key}: its end is missing"
        return [HistoryFault(last_key + 1, "missing", sentence)]
    if last_key > flag_epoch:
        sentence = f"the history goes to epoch {last_key}, but the flag is at {flag_epoch}: the flag was set back"
        return [HistoryFault(flag_epoch, "head", sentence)]
    if last.hash != flag_head:
        return [HistoryFault(flag_epoch, "head", "the flag names another newest entry than the history holds")]
    if canonical_json(list(last.in_force)) != canonical_json(list(flag_freezes)):
        return [HistoryFault(flag_epoch, "head", "the freezes in the flag are not those that the history ends with")]
    return []


def _fields(entry: HistoryEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__dataclass_fields__}

"""The gate page as bytes: where each word stands, how it is encoded, and in which order it may be written.

Pure: no I/O, no clock. ``docs/gate.md`` shows the same offsets to people and ``deploy/gate/killswitch_gate.h`` to C; a
test compares all three.

The page has one word that decides almost every check, ``open_until_ns``: the permit's deadline while nothing at all is
frozen on the node, and 0 otherwise. One aligned 64-bit load sees one store of it, so no reader can ever combine the
mode of one moment with the deadline of another. Everything else is read only when that word says no. It stands under a
sequence number (odd while it is being written) and a checksum.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from killswitch.core.modes import Mode, strictest
from killswitch.core.scopes import GLOBAL, SCOPE_MAX_BYTES, Scope

MAGIC: Final = b"KSGATE01"
LAYOUT_VERSION: Final = 1
WORD_BYTES: Final = 8
MAX_WORD: Final = 2**64 - 1
HEADER_BYTES: Final = 4096
ROW_BYTES: Final = 512
MAX_ROWS: Final = 64
TOTAL_BYTES: Final = HEADER_BYTES + MAX_ROWS * ROW_BYTES
NAME_MAX_BYTES: Final = 64
BOOT_ID_BYTES: Final = 16


class Field(NamedTuple):
    """One field: its name, its offset in bytes from the start of the page (or of its row), and its size in bytes."""

    name: str
    offset: int
    size: int


HEADER_FIELDS: Final = (
    # The first nine stand still in every layout version, so that any writer can close the page of any other.
    Field("magic", 0, 8),
    Field("layout_version", 8, 8),
    Field("total_bytes", 16, 8),
    Field("clock_id", 24, 8),
    Field("boot_id", 32, BOOT_ID_BYTES),
    # On a cache line of its own: routers read it all the time, and no other write may take the line from them.
    Field("open_until_ns", 64, 8),
    Field("permit_deadline_ns", 128, 8),
    Field("heartbeat_ns", 136, 8),
    Field("sequence", 192, 8),
    Field("check", 200, 8),
    Field("mode", 208, 8),
    Field("epoch", 216, 8),
    Field("row_count", 224, 8),
    Field("changed_at_ns", 232, 8),
    Field("writer_pid", 240, 8),
    Field("writer_instance", 248, 8),
    Field("node_bytes", 256, 8),
    Field("node", 264, NAME_MAX_BYTES),
    Field("cluster_bytes", 328, 8),
    Field("cluster", 336, NAME_MAX_BYTES),
)

ROW_FIELDS: Final = (
    Field("row_mode", 0, 8),
    Field("scope_bytes", 8, 2),
    Field("id_bytes", 10, 2),
    Field("trigger_bytes", 12, 2),
    Field("reason_bytes", 14, 2),
    Field("scope", 16, SCOPE_MAX_BYTES),
    Field("id", 256, 64),
    Field("trigger", 320, 32),
    Field("reason", 352, 160),
)

OFFSET: Final = {field.name: field.offset for field in HEADER_FIELDS}
OPEN_UNTIL_OFFSET: Final = OFFSET["open_until_ns"]
PERMIT_OFFSET: Final = OFFSET["permit_deadline_ns"]
HEARTBEAT_OFFSET: Final = OFFSET["heartbeat_ns"]
SEQUENCE_OFFSET: Final = OFFSET["sequence"]
CHECK_OFFSET: Final = OFFSET["check"]
GUARDED_START: Final = OFFSET["mode"]
GUARDED_END: Final = OFFSET["cluster"] + NAME_MAX_BYTES

_WORD: Final = struct.Struct("<Q")
_PREFIX: Final = struct.Struct(f"<8sQQQ{BOOT_ID_BYTES}s")
_GUARDED: Final = struct.Struct(f"<6QQ{NAME_MAX_BYTES}sQ{NAME_MAX_BYTES}s")
_ROW_HEAD: Final = struct.Struct("<QHHHH")
_TEXTS: Final = ROW_FIELDS[5:]
_ELLIPSIS: Final = "…".encode()

STAND_IN_ID: Final = "gate-limit"
"""Id of the global freeze that stands for causes that the page cannot hold."""

UNREADABLE: Final = "gate_unreadable"
"""Trigger of the global freeze that stands for a row or a page that cannot be read."""


class PageError(Exception):
    """The bytes are not a gate page that this code can read; the message says what is wrong with them."""


class TornPage(PageError):
    """The page is being written, or its writer died while writing it."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One row of the page: why orders are restricted, and which.

    Attributes:
        id: id of the freeze.
        scope: the orders that it covers.
        mode: how far they are restricted.
        trigger: the kind of cause in one word.
        reason: the sentence for people, cut to what the row holds.
    """

    id: str
    scope: Scope
    mode: Mode
    trigger: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateState:
    """Everything that a page says at one moment.

    Attributes:
        cluster: name of the cluster, at most 64 bytes in UTF-8.
        node: name of this node, at most 64 bytes in UTF-8.
        epoch: epoch of the flag that the causes come from.
        causes: the rows, those only that can touch an order of this node.
        permit_deadline_ns: when the node's permit runs out, on the clock of the page; 0 for no permit.
        open_until_ns: the fast word: the permit's deadline while there are no causes, 0 otherwise.
        sequence: grows by two at every change of the rows; odd while they are being written.
        changed_at_ns: when epoch or causes changed last, taken after the gate had closed.
        heartbeat_ns: when the writer wrote anything last.
        writer_pid: process id of the writer, in the writer's own PID namespace.
        writer_instance: a random number that tells one run of a writer from the next.
    """

    cluster: str
    node: str
    epoch: int = 0
    causes: tuple[Cause, ...] = ()
    permit_deadline_ns: int = 0
    open_until_ns: int = 0
    sequence: int = 0
    changed_at_ns: int = 0
    heartbeat_ns: int = 0
    writer_pid: int = 0
    writer_instance: int = 0

    @property
    def mode(self) -> Mode:
        """The strictest mode that holds for any order of this node."""
        return strictest(cause.mode for cause in self.causes)

    @property
    def deadline_ns(self) -> int:
        """Until when orders that no cause covers may pass.

        With nothing frozen this is the fast word itself and not the permit: a writer that closes writes that word
        first, and from then on the slow path must not admit either.
        """
        return self.permit_deadline_ns if self.causes else self.open_until_ns

    @property
    def is_moving(self) -> bool:
        """True between the first and the second store of closing, and before the last one of opening.

        Nothing passes meanwhile; a reader waits a moment so that it can tell the cause, and so that a freeze of one
        symbol does not turn the orders of all others away.
        """
        return not self.causes and self.open_until_ns == 0 and self.permit_deadline_ns != 0

    def mode_for(self, attributes: Mapping[str, str | None]) -> Mode:
        """The strictest mode over the causes that cover an order of this node with these attributes.

        Says nothing about the permit; :func:`judge` does.
        """
        own = {**attributes, "node": self.node}
        return strictest(cause.mode for cause in self.causes if cause.scope.covers(own))


class Verdict(NamedTuple):
    """What a page says about one order: the mode that it meets, and the cause when that is not ``ACTIVE``."""

    mode: Mode
    cause: Cause | None


class Write(NamedTuple):
    """One store: at ``offset``, an aligned 64-bit word (``int``) or a run of bytes that no reader trusts yet."""

    offset: int
    value: int | bytes


def require_little_endian(byteorder: str = sys.byteorder) -> None:
    """Refuse a host on which one native store would not give the documented bytes.

    Raises:
        PageError: the host is big-endian.
    """
    if byteorder != "little":
        raise PageError(
            f"this machine is {byteorder}-endian, and a gate page is little-endian words that are read with one native "
            "load; run the agent and its routers on a little-endian machine"
        )


def judge(state: GateState, now_ns: int, attributes: Mapping[str, str | None]) -> Verdict:
    """Say which mode an order with these attributes meets at ``now_ns``; the node is filled in from the state."""
    own = {**attributes, "node": state.node}
    cause: Cause | None = None
    for candidate in state.causes:
        if (cause is None or candidate.mode > cause.mode) and candidate.scope.covers(own):
            cause = candidate
    if now_ns < state.deadline_ns:
        return Verdict(cause.mode if cause else Mode.ACTIVE, cause)
    if cause is None or cause.mode is not Mode.FROZEN:
        cause = _no_permit(state, now_ns)
    return Verdict(Mode.FROZEN, cause)


def _no_permit(state: GateState, now_ns: int) -> Cause:
    if now_ns < state.permit_deadline_ns:
        trigger, reason = "gate_moving", "the agent is closing or opening the gate at this very moment"
    elif state.permit_deadline_ns:
        trigger, reason = "permit_expired", "the agent has not renewed the node's permit to trade"
    else:
        trigger, reason = "no_permit", "the node has no permit to trade"
    return Cause("permit", GLOBAL, Mode.FROZEN, trigger, reason)


def fit_causes(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Return causes that the page can hold, never looser than those given.

    A reason that is too long is cut. Too many causes, or one whose id, trigger or scope does not fit or does not read
    back as the same scope, make place for one global freeze that says so: a cause left out would let orders pass.
    """
    wanted = tuple(causes)
    if len(wanted) > MAX_ROWS:
        return (_stand_in(f"{len(wanted)} causes are in force and the gate page holds {MAX_ROWS}; all is frozen"),)
    try:
        return tuple(_decode_row(encode_row(cause)) for cause in wanted)
    except ValueError as error:
        return (_stand_in(f"a cause cannot be written to the gate page, so all is frozen: {error}"),)


def _stand_in(reason: str) -> Cause:
    return Cause(STAND_IN_ID, GLOBAL, Mode.FROZEN, "gate_limit", _cut(reason).decode())


def _cut(reason: str) -> bytes:
    """Encode a reason into the bytes that a row has for it, on a character's boundary, with a mark when it was cut."""
    raw = reason.encode(errors="replace")
    limit = _TEXTS[-1].size
    if len(raw) <= limit:
        return raw
    return raw[: limit - len(_ELLIPSIS)].decode(errors="ignore").encode() + _ELLIPSIS


def encode_row(cause: Cause) -> bytes:
    """Return the bytes of one row.

    Raises:
        ValueError: id, trigger or scope is longer than its field or cannot be encoded, the scope does not read back as
            it was, or the mode restricts nothing.
    """
    scope = str(cause.scope)
    if Scope.parse(scope) != cause.scope:
        raise ValueError(f"scope {scope!r} does not read back as the scope that it was written from")
    if cause.mode is Mode.ACTIVE:
        raise ValueError(f"cause {cause.id!r} restricts nothing")
    texts = (scope.encode(), cause.id.encode(), cause.trigger.encode(), _cut(cause.reason))
    row = bytearray(ROW_BYTES)
    _ROW_HEAD.pack_into(row, 0, int(cause.mode), *(len(text) for text in texts))
    for field, text in zip(_TEXTS, texts, strict=True):
        if len(text) > field.size:
            raise ValueError(f"{field.name} {text.decode()[:40]!r}... has {len(text)} bytes, more than {field.size}")
        row[field.offset : field.offset + len(text)] = text
    return bytes(row)


def _decode_row(row: bytes) -> Cause:
    """Read one row; one that says something unknown reads as a global freeze, because what it restricts is unknown."""
    try:
        return _read_row(row)
    except ValueError as error:
        return Cause("unreadable", GLOBAL, Mode.FROZEN, UNREADABLE, f"a row of the gate page: {error}")


def _read_row(row: bytes) -> Cause:
    mode, *lengths = _ROW_HEAD.unpack_from(row)
    texts = []
    for field, length in zip(_TEXTS, lengths, strict=True):
        if length > field.size:
            raise ValueError(f"{field.name} claims {length} bytes of {field.size}")
        texts.append(row[field.offset : field.offset + length].decode())
    scope, cause_id, trigger, reason = texts
    if mode not in (Mode.REDUCE_ONLY, Mode.FROZEN):
        raise ValueError(f"mode {mode} is unknown")
    return Cause(cause_id, Scope.parse(scope), Mode(mode), trigger, reason)


def checksum(sequence: int, guarded: bytes, rows: bytes) -> int:
    """CRC-32 over the sequence number, the guarded part of the header and the rows in use.

    The sequence alone proves a whole copy only where loads and stores keep their order. Pure Python has no fences for
    machines on which they do not; the checksum needs none.
    """
    return zlib.crc32(rows, zlib.crc32(guarded, zlib.crc32(_WORD.pack(sequence))))


def encode_prefix(clock_id: int, boot_id: bytes) -> bytes:
    """Return the fields before the fast word: what this file is, and which clock and boot its deadlines belong to."""
    return _PREFIX.pack(MAGIC, LAYOUT_VERSION, TOTAL_BYTES, clock_id, boot_id)


def encode_name(name: str, what: str) -> bytes:
    """Return a cluster's or node's name in UTF-8.

    Raises:
        ValueError: it is empty or longer than its field.
    """
    raw = name.encode()
    if not 0 < len(raw) <= NAME_MAX_BYTES:
        raise ValueError(f"a {what} name needs 1 to {NAME_MAX_BYTES} bytes in UTF-8, and {name!r} has {len(raw)}")
    return raw


def _encode_guarded(state: GateState) -> bytes:
    node, cluster = encode_name(state.node, "node"), encode_name(state.cluster, "cluster")
    return _GUARDED.pack(
        int(state.mode),
        state.epoch,
        len(state.causes),
        state.changed_at_ns,
        state.writer_pid,
        state.writer_instance,
        len(node),
        node,
        len(cluster),
        cluster,
    )


def check_prefix(header: bytes, *, clock_id: int, boot_id: bytes) -> None:
    """Tell whether a reader with this clock, since this boot, may trust the page.

    Raises:
        PageError: other magic, layout version, size, clock or boot.
    """
    magic, version, total, page_clock, page_boot = _PREFIX.unpack_from(header)
    if magic != MAGIC:
        raise PageError(f"it begins with {magic!r} and not with {MAGIC!r}, so it is not a gate page")
    if version != LAYOUT_VERSION:
        raise PageError(f"it has layout version {version}, and this program reads version {LAYOUT_VERSION}")
    if total != TOTAL_BYTES:
        raise PageError(f"it says that it has {total} bytes, and version {LAYOUT_VERSION} has {TOTAL_BYTES}")
    if page_clock != clock_id:
        raise PageError(f"its deadlines are on clock {page_clock}, and this program reads clock {clock_id}")
    if page_boot != boot_id:
        raise PageError("it was written before this machine started, so its deadlines mean nothing now")


def decode(page: bytes) -> GateState:
    """Read a copy of a page.

    Raises:
        TornPage: the copy was taken, or the writer died, in the middle of a change.
        PageError: the copy is whole, but it is no gate page of this layout version.
    """
    if len(page) < HEADER_BYTES:
        raise PageError(f"it has {len(page)} bytes, fewer than a page header")
    magic, version, total, *_ = _PREFIX.unpack_from(page)
    if (magic, version, total) != (MAGIC, LAYOUT_VERSION, TOTAL_BYTES):
        raise PageError(f"it is no gate page of layout version {LAYOUT_VERSION}")
    sequence, check = struct.unpack_from("<2Q", page, SEQUENCE_OFFSET)
    if sequence & 1:
        raise TornPage(f"sequence {sequence} is odd: the rows are being written, or their writer died meanwhile")
    mode, epoch, row_count, changed_at, pid, instance, node_n, node, cluster_n, cluster = _GUARDED.unpack_from(
        page, GUARDED_START
    )
    rows_end = HEADER_BYTES + min(row_count, MAX_ROWS) * ROW_BYTES
    if checksum(sequence, page[GUARDED_START:GUARDED_END], page[HEADER_BYTES:rows_end]) != check:
        raise TornPage(f"the checksum does not belong to sequence {sequence}: the page is half written or damaged")
    if row_count > MAX_ROWS or node_n > NAME_MAX_BYTES or cluster_n > NAME_MAX_BYTES:
        raise PageError("it claims more rows or longer names than a page holds")
    causes = tuple(_decode_row(page[at : at + ROW_BYTES]) for at in range(HEADER_BYTES, rows_end, ROW_BYTES))
    state = GateState(
        cluster=cluster[:cluster_n].decode(errors="replace"),
        node=node[:node_n].decode(errors="replace"),
        epoch=epoch,
        causes=causes,
        permit_deadline_ns=word_at(page, PERMIT_OFFSET),
        open_until_ns=word_at(page, OPEN_UNTIL_OFFSET),
        sequence=sequence,
        changed_at_ns=changed_at,
        heartbeat_ns=word_at(page, HEARTBEAT_OFFSET),
        writer_pid=pid,
        writer_instance=instance,
    )
    # A row that cannot be read counts as FROZEN, whatever the writer of a later layout meant by it.
    if mode != state.mode and not any(cause.trigger == UNREADABLE for cause in causes):
        raise PageError(f"its mode word says {mode} and its rows say {int(state.mode)}")
    return state


def word_at(page: bytes, offset: int) -> int:
    """Return the 64-bit word at an offset."""
    word: int = _WORD.unpack_from(page, offset)[0]
    return word


def same_content(old: GateState, new: GateState) -> bool:
    """Tell whether two states differ in their deadlines at most."""
    return (
        old.epoch == new.epoch
        and old.causes == new.causes
        and old.writer_instance == new.writer_instance
        and (old.node, old.cluster, old.writer_pid) == (new.node, new.cluster, new.writer_pid)
    )


def next_sequence(sequence: int) -> int:
    """The even number that ends the change that begins at ``sequence``, also when that one is odd already."""
    return sequence + 2 - (sequence & 1)


def plan_close(old: GateState, new: GateState) -> tuple[Write, ...]:
    """Return the stores that end what ``new`` no longer grants, the fast word first.

    After the first of them (and after the first of :func:`plan_content` when there are none) no reader admits an order
    that ``new`` refuses: the slow path takes its deadline from the fast word while nothing is frozen, and otherwise the
    odd sequence stops it.
    """
    writes = []
    if new.open_until_ns < old.open_until_ns:
        writes.append(Write(OPEN_UNTIL_OFFSET, new.open_until_ns))
    if not same_content(old, new) and not old.sequence & 1:
        writes.append(Write(SEQUENCE_OFFSET, old.sequence + 1))
    return tuple(writes)


def plan_content(old: GateState, new: GateState) -> tuple[Write, ...]:
    """Return the stores that follow :func:`plan_close`: the rows, then the deadlines, and the fast word last."""
    writes: list[Write] = []
    changed = not same_content(old, new)
    sequence = next_sequence(old.sequence) if changed else old.sequence
    if changed:
        writes += _content(new, sequence, known=old.causes if not old.sequence & 1 else ())
    if new.permit_deadline_ns != old.permit_deadline_ns:
        writes.append(Write(PERMIT_OFFSET, new.permit_deadline_ns))
    if new.heartbeat_ns != old.heartbeat_ns:
        writes.append(Write(HEARTBEAT_OFFSET, new.heartbeat_ns))
    if changed:
        writes.append(Write(SEQUENCE_OFFSET, sequence))
    if new.open_until_ns > old.open_until_ns:
        writes.append(Write(OPEN_UNTIL_OFFSET, new.open_until_ns))
    return tuple(writes)


def plan_update(old: GateState, new: GateState) -> tuple[Write, ...]:
    """Return the stores that turn a page that says ``old`` into one that says ``new``, in the order to make them.

    The law, tested from every interrupted prefix: an order that passes after the first store would pass under ``new``;
    an order that passes before it passes under ``old``. A writer that dies on the way leaves the old state, a state no
    looser than the new one, or an odd sequence, which blocks until :func:`plan_takeover` repairs it.

    ``new.sequence`` is not used; the page gets :func:`next_sequence` of the old one when epoch or causes change.
    """
    return plan_close(old, new) + plan_content(old, new)


def plan_takeover(page: bytes, new: GateState, prefix: bytes) -> tuple[Write, ...]:
    """Return the stores that give a page, whatever it holds, to a new writer.

    Nothing on the page is believed but its sequence number, which must go on growing for readers that have the page
    mapped. ``new`` must be closed. The magic comes last, so that a new file is no gate before it is a whole one.
    """
    sequence = word_at(page, SEQUENCE_OFFSET)
    closing = [Write(OPEN_UNTIL_OFFSET, 0), Write(SEQUENCE_OFFSET, sequence | 1)]
    return (
        *closing,
        Write(PERMIT_OFFSET, 0),
        Write(HEARTBEAT_OFFSET, new.heartbeat_ns),
        *_content(new, next_sequence(sequence), known=()),
        Write(WORD_BYTES, prefix[WORD_BYTES:]),
        Write(SEQUENCE_OFFSET, next_sequence(sequence)),
        Write(0, int.from_bytes(prefix[:WORD_BYTES], "little")),
    )


def _content(new: GateState, sequence: int, known: tuple[Cause, ...]) -> list[Write]:
    """Stores of the rows, the guarded header and their checksum; rows that stand there already are left alone."""
    rows = [encode_row(cause) for cause in new.causes]
    guarded = _encode_guarded(new)
    writes = [
        Write(HEADER_BYTES + index * ROW_BYTES, row)
        for index, row in enumerate(rows)
        if index >= len(known) or known[index] != new.causes[index]
    ]
    writes.append(Write(GUARDED_START, guarded))
    writes.append(Write(CHECK_OFFSET, checksum(sequence, guarded, b"".join(rows))))
    return writes

"""What goes into the store, and under which key: one pydantic model per key, JSON with a version field ``v``.

Reading is strict: an unknown version, an unknown field or a wrong type is :class:`UnreadableRecord`, never an empty
default. For the flag that means *frozen*, and that it is never overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from killswitch.core.canonical import canonical_json
from killswitch.core.certificate import KnownNode, SeenAck
from killswitch.core.flag import Flag, Freeze
from killswitch.core.history import HistoryEntry
from killswitch.core.modes import Mode
from killswitch.core.scopes import Scope

ModeName = Literal["ACTIVE", "REDUCE_ONLY", "FROZEN"]


EPOCH_DIGITS = 12
"""Epochs in keys are padded with zeros, so that keys sort in the order of time."""


class UnreadableRecord(Exception):
    """A key holds something that this version cannot read; the message says the key and what is wrong."""


def first_fault(error: ValidationError) -> str:
    """Return the first thing that is wrong with what was read, and where."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole value"
    return f"{where}: {first['msg']}"


def _only_json(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse what could be read but never be hashed or written again: NaN and infinities, at any depth."""
    if values:  # none is the usual case, and this is on the path of a freeze
        canonical_json(values)
    return values


JsonObject = Annotated[dict[str, Any], AfterValidator(_only_json)]
"""Values of any shape that JSON has."""


def mode_name(mode: Mode) -> ModeName:
    """Return the name under which a mode is stored."""
    names: dict[Mode, ModeName] = {Mode.ACTIVE: "ACTIVE", Mode.REDUCE_ONLY: "REDUCE_ONLY", Mode.FROZEN: "FROZEN"}
    return names[mode]


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of a cluster's keys in the store; each record says which one is its."""

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


class Record(BaseModel):
    """Base of everything that is stored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    v: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """Write the record as one line of JSON, so that a person can read it with the store's own tools."""
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, value: bytes | None, *, key: str) -> Self:
        """Read a record.

        Raises:
            UnreadableRecord: with the key and the first thing that is wrong.
        """
        try:
            record = cls.model_validate_json(value if value is not None else b"")
        except ValidationError as error:
            raise UnreadableRecord(f"key {key} cannot be read ({first_fault(error)})") from error
        if "v" not in record.model_fields_set:
            raise UnreadableRecord(f"key {key} cannot be read (v: it does not say of which version it is)")
        return record


class FreezeRecord(BaseModel):
    """One freeze inside the flag or the history."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    id: str
    scope: str
    mode: Literal["REDUCE_ONLY", "FROZEN"]
    trigger: str
    reason: str
    actor: str
    at: str
    metadata: JsonObject = Field(default_factory=dict)

    def to_core(self) -> Freeze:
        """Return the freeze as the core knows it.

        Raises:
            ValueError: a scope that does not exist, or a text that is too long.
        """
        return Freeze(
            id=self.id,
            scope=Scope.parse(self.scope),
            mode=Mode.parse(self.mode),
            trigger=self.trigger,
            reason=self.reason,
            actor=self.actor,
            at=self.at,
            metadata=self.metadata,
        )


class FlagRecord(Record):
    """Key ``flag``: the freezes in force and the epoch."""

    cluster: str
    epoch: PositiveInt
    mode: ModeName
    freezes: list[FreezeRecord]
    head: str
    parent: str

    @classmethod
    def from_core(cls, flag: Flag) -> FlagRecord:
        """Make the record of a flag."""
        return cls(
            cluster=flag.cluster,
            epoch=flag.epoch,
            mode=mode_name(flag.mode),
            freezes=[FreezeRecord.model_validate(freeze.to_json()) for freeze in flag.freezes],
            head=flag.head,
            parent=flag.parent,
        )


def read_flag(value: bytes | None, *, key: str, cluster: str) -> Flag:
    """Read the flag.

    Raises:
        UnreadableRecord: it does not parse, is of an unknown version, contradicts itself or is another cluster's.
    """
    record = FlagRecord.from_bytes(value, key=key)
    if record.cluster != cluster:
        raise UnreadableRecord(f"key {key} holds the flag of cluster {record.cluster!r}, not of {cluster!r}")
    try:
        freezes = tuple(freeze.to_core() for freeze in record.freezes)
    except ValueError as error:
        raise UnreadableRecord(f"key {key} cannot be read ({error})") from error
    flag = Flag(record.cluster, record.epoch, freezes, head=record.head, parent=record.parent)
    if flag.mode.name != record.mode:
        raise UnreadableRecord(f"key {key} says mode {record.mode}, but its freezes add up to {flag.mode.name}")
    return flag


class HistoryRecord(Record):
    """Key ``history/{epoch}``: one change of the flag."""

    cluster: str
    epoch: PositiveInt
    kind: Literal["init", "freeze", "release", "reassert", "forget"]
    actor: str
    at: str
    reason: str
    added: list[FreezeRecord]
    lifted: list[str]
    in_force: list[FreezeRecord]
    previous_hash: str
    hash: str
    forgotten: JsonObject | None = None

    @model_serializer(mode="wrap")
    def _without_what_only_a_forget_has(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write every other entry as it was written before a node could be forgotten."""
        body: dict[str, Any] = write(self)
        if self.forgotten is None:
            del body["forgotten"]
        return body

    @classmethod
    def from_core(cls, entry: HistoryEntry) -> HistoryRecord:
        """Make the record of an entry."""
        return cls.model_validate(entry.to_json())

    def to_core(self) -> HistoryEntry:
        """Return the entry as the core knows it."""
        body = self.model_dump(exclude={"v"})
        for name in ("added", "lifted", "in_force"):
            body[name] = tuple(body[name])
        return HistoryEntry(**body)


class NodeRecord(Record):
    """Key ``nodes/{node}``: lasting; every node that may hold a permit is here *before* its first permit."""

    node: str
    permit_ttl_ms: PositiveInt
    build: str
    limits_hash: str
    address: str
    registered_at: str

    def to_known(self, working_orders: int | None) -> KnownNode:
        """Return what a certificate needs to know of the node."""
        return KnownNode(self.node, self.permit_ttl_ms, working_orders)


class LiveRecord(Record):
    """Key ``live/{node}``: leased; there as long as the agent keeps it alive.

    ``boot_id`` says which boot of which machine, and after a slash which file there the gate page is: pods on one
    machine differ in that alone.
    """

    node: str
    instance: str
    pid: PositiveInt
    boot_id: str
    gate: str
    started_at: str


class HoldingRecord(BaseModel):
    """A position of a node in one symbol, over all its routers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    quantity: FiniteFloat
    mark_price_usd: FiniteFloat
    notional_usd: FiniteFloat


class RouterReport(BaseModel):
    """A router inside its node's report, with what it holds, so that a restarted agent can take it over."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    router: str
    instance: str
    state: Literal["live", "lost", "ended"]
    orphaned_orders: NonNegativeInt
    exposure: JsonObject


class RouterAnswer(BaseModel):
    """A router inside its node's ack."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    router: str
    state: Literal["live", "lost", "ended"]
    working_orders: NonNegativeInt
    last_sequence: NonNegativeInt | None
    cancelled: NonNegativeInt = 0
    failed: NonNegativeInt = 0
    answered: bool = True


class ReportRecord(Record):
    """Key ``reports/{node}``: lasting, so that a dead node's exposure is still counted."""

    node: str
    instance: str
    report: PositiveInt
    at: str
    mode: ModeName
    epoch: NonNegativeInt
    permit_ms_left: NonNegativeInt
    holdings: dict[str, HoldingRecord]
    gross_usd: FiniteFloat
    net_usd: FiniteFloat
    pnl_usd: FiniteFloat
    working_orders: NonNegativeInt
    working_notional_usd: FiniteFloat
    utilization_pct: FiniteFloat | None
    last_sequence: NonNegativeInt | None
    routers: list[RouterReport]
    risk: JsonObject = Field(default_factory=dict)
    """What the node's rules find, the most severe first; empty from an agent that judges nothing."""


class AckRecord(Record):
    """Key ``acks/{node}``: what the node's gate holds closed, and how the cancelling went."""

    node: str
    instance: str
    epoch: PositiveInt
    freezes: list[str]
    mode: ModeName
    complete: bool
    orders_cancelled: NonNegativeInt
    orders_failed: NonNegativeInt
    orders_open: NonNegativeInt
    last_sequence: NonNegativeInt | None
    routers: list[RouterAnswer]
    at: str

    def to_seen(self, seen_after_ms: float) -> SeenAck:
        """Return the ack with the time at which it was seen here."""
        return SeenAck(
            epoch=self.epoch,
            freeze_ids=frozenset(self.freezes),
            seen_after_ms=seen_after_ms,
            complete=self.complete,
            orders_cancelled=self.orders_cancelled,
            orders_open=self.orders_open,
            last_sequence=self.last_sequence,
        )


class LeaderRecord(Record):
    """Key ``leader``: leased; who leads, in which term."""

    id: str
    instance: str
    term: PositiveInt
    since: str


class TermRecord(Record):
    """Key ``term``: lasting; the newest term that any leader has had."""

    term: NonNegativeInt


class CertificateRecord(Record):
    """Key ``certificates/{epoch}``: the proof that the leader collected for a freeze."""

    epoch: PositiveInt
    freezes: list[str]
    stopped: bool
    flat: bool
    elapsed_ms: FiniteFloat
    stopped_after_ms: FiniteFloat | None
    nodes: list[JsonObject]
    freeze: FreezeRecord
    collected_by: str
    term: PositiveInt
    at: str
    final: bool


class ClusterViewRecord(Record):
    """Key ``view``: what the leader last added up, and the marks that its rules measure from."""

    term: PositiveInt
    at: str
    gross_usd: FiniteFloat
    net_usd: FiniteFloat
    pnl_usd: FiniteFloat
    pnl_peak_usd: FiniteFloat
    drawdown_usd: FiniteFloat
    lost_nodes: list[str]
    accepted: dict[str, FiniteFloat]


def json_values(record: BaseModel) -> Mapping[str, Any]:
    """Return a record as JSON values, for output."""
    return record.model_dump(mode="json")

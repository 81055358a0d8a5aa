"""What routers and their agent say to each other: versioned JSON lines over a Unix socket. Standard library only.

Router to agent::

    hello      router, instance, pid, reconciled      who I am; reconciled: I asked the venue which orders are mine
    exposure   holdings, working orders, P&L, edges   what I hold
    stopped    epoch, cancelled, failed, open, ...    how the cancelling for that epoch went
    freeze     trigger, reason, scope, metadata       a monitor in the trading process wants the cluster frozen
    bye                                               I end on purpose; what I reported last is what I leave behind

Agent to router::

    welcome    node, cluster, epoch                   you are registered
    refused    reason                                 you are not, and why
    stop       epoch, causes                          cancel what these scopes cover, then say `stopped`
    resume     epoch, causes                          what is in force after a release (may be nothing)

Numbers that are not finite never pass: a line with NaN or an infinity is a :class:`BadLine`, and the agent takes a bad
line from a registered router as a fault of its inputs, which freezes (UNKNOWN IS FROZEN).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from killswitch.core.modes import Mode, strictest
from killswitch.core.scopes import Scope

PROTOCOL_VERSION = 1
LINE_MAX_BYTES = 256 * 1024
NAME_MAX_CHARS = 64


class BadLine(Exception):
    """A line that this end cannot accept; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class CancelResult:
    """How a round of cancelling went.

    Attributes:
        cancelled: orders that the venue confirmed as no longer working.
        failed: cancels that the venue refused or that could not be sent.
        open: orders not proven cancelled; 0 means that nothing covered by the stop is left.
        last_sequence: highest sequence number ever sent by this router, ``None`` when it never sent an order.
    """

    cancelled: int
    failed: int
    open: int
    last_sequence: int | None


@dataclass(frozen=True, slots=True)
class Holding:
    """A position in one symbol, of a router or a whole node: signed quantity, and the mark price of a unit in USD."""

    quantity: float
    mark_price_usd: float

    @property
    def notional_usd(self) -> float:
        """Signed value of the position in USD."""
        return self.quantity * self.mark_price_usd

    @property
    def value_usd(self) -> float:
        """The same, under the name that the rules of a node know."""
        return self.notional_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What a router holds.

    Attributes:
        holdings: position per symbol.
        working_orders: orders that the venue may still fill.
        working_notional_usd: their remaining value.
        pnl_usd: realised and unrealised profit since the router's book began.
        last_sequence: highest sequence number sent, ``None`` before the first order.
        edges_bps: expected net edge per symbol in basis points, for the node's edge monitor.
    """

    holdings: Mapping[str, Holding] = field(default_factory=dict)
    working_orders: int = 0
    working_notional_usd: float = 0.0
    pnl_usd: float = 0.0
    last_sequence: int | None = None
    edges_bps: Mapping[str, float] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form that travels in an ``exposure`` line."""
        return {
            "holdings": {
                symbol: {"quantity": holding.quantity, "mark_price_usd": holding.mark_price_usd}
                for symbol, holding in self.holdings.items()
            },
            "working_orders": self.working_orders,
            "working_notional_usd": self.working_notional_usd,
            "pnl_usd": self.pnl_usd,
            "last_sequence": self.last_sequence,
            "edges_bps": dict(self.edges_bps),
        }

    @classmethod
    def from_wire(cls, body: Mapping[str, Any]) -> Exposure:
        """Read an ``exposure`` line.

        Raises:
            BadLine: a field is missing or of the wrong kind, a price is not positive, a count is negative.
        """
        holdings = {}
        for symbol, raw in _mapping(body, "holdings").items():
            if not isinstance(raw, Mapping):
                raise BadLine(f"holding {symbol!r} is not an object")
            price = _number(raw, "mark_price_usd", f"holding {symbol!r}")
            if price <= 0:
                raise BadLine(f"holding {symbol!r} has mark_price_usd {price:g}; a price is greater than 0")
            holdings[_name(symbol, "symbol")] = Holding(_number(raw, "quantity", f"holding {symbol!r}"), price)
        edges = {
            _name(symbol, "symbol"): _finite(value, f"edges_bps[{symbol!r}]")
            for symbol, value in _mapping(body, "edges_bps").items()
        }
        return cls(
            holdings=holdings,
            working_orders=_count(body, "working_orders"),
            working_notional_usd=_number(body, "working_notional_usd", "exposure"),
            pnl_usd=_number(body, "pnl_usd", "exposure"),
            last_sequence=_optional_count(body, "last_sequence"),
            edges_bps=edges,
        )


@dataclass(frozen=True, slots=True)
class StopCause:
    """One cause of a stop as a router hears it."""

    id: str
    scope: Scope
    mode: Mode
    trigger: str
    reason: str

    @classmethod
    def from_wire(cls, body: Mapping[str, Any]) -> StopCause:
        """Read one cause.

        Raises:
            BadLine: it is not readable; the router then treats everything as frozen.
        """
        try:
            return cls(
                id=str(body["id"]),
                scope=Scope.parse(str(body["scope"])),
                mode=Mode.parse(str(body["mode"])),
                trigger=str(body["trigger"]),
                reason=str(body["reason"]),
            )
        except (KeyError, ValueError) as error:
            raise BadLine(f"a cause of the stop is not readable: {error}") from error

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "id": self.id,
            "scope": str(self.scope),
            "mode": self.mode.name,
            "trigger": self.trigger,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Stop:
    """What a router must stop: cancel every working order that a cause covers.

    Attributes:
        epoch: epoch of the flag that asks for it; the epoch last known when the permit ran out.
        causes: the freezes in force on this node; empty when the stop comes from an expired permit.
        permit_expired: the node's right to trade ran out without word from the store: everything is covered.
    """

    epoch: int
    causes: tuple[StopCause, ...] = ()
    permit_expired: bool = False

    def covers(self, attributes: Mapping[str, str | None]) -> bool:
        """Tell whether an order with these attributes must be cancelled."""
        return self.permit_expired or any(cause.scope.covers(attributes) for cause in self.causes)

    @property
    def mode(self) -> Mode:
        """The strictest mode among the causes."""
        return Mode.FROZEN if self.permit_expired else strictest(cause.mode for cause in self.causes)

    @property
    def reason(self) -> str:
        """One sentence for logs and cancel messages."""
        if self.causes:
            return "; ".join(f"{cause.trigger}: {cause.reason}" for cause in self.causes)
        return "the node's permit to trade ran out"


def encode(kind: str, **body: Any) -> bytes:
    """Write one line.

    Raises:
        BadLine: a number is not finite, or the line is longer than :data:`LINE_MAX_BYTES`.
    """
    try:
        text = json.dumps({"v": PROTOCOL_VERSION, "type": kind, **body}, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise BadLine(f"a {kind} line holds a number that is not finite: {error}") from error
    line = text.encode() + b"\n"
    if len(line) > LINE_MAX_BYTES:
        raise BadLine(f"a {kind} line of {len(line)} bytes is longer than {LINE_MAX_BYTES}")
    return line


def decode(line: bytes) -> tuple[str, dict[str, Any]]:
    """Read one line and return its type and body.

    Raises:
        BadLine: not JSON, not an object, another protocol version, or a number that is not finite.
    """
    try:
        body = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"a line is not readable as JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadLine("a line is not a JSON object")
    if body.get("v") != PROTOCOL_VERSION:
        raise BadLine(f"a line has protocol version {body.get('v')!r}; this end speaks {PROTOCOL_VERSION}")
    kind = body.get("type")
    if not isinstance(kind, str):
        raise BadLine("a line has no type")
    return kind, body


def cancel_result_from_wire(body: Mapping[str, Any]) -> CancelResult:
    """Read the result in a ``stopped`` line.

    Raises:
        BadLine: a count is missing or negative.
    """
    return CancelResult(
        cancelled=_count(body, "cancelled"),
        failed=_count(body, "failed"),
        open=_count(body, "open"),
        last_sequence=_optional_count(body, "last_sequence"),
    )


def read_count(body: Mapping[str, Any], name: str) -> int:
    """Return a whole number of at least 0 from a line, or raise :class:`BadLine`."""
    return _count(body, name)


def read_name(body: Mapping[str, Any], name: str) -> str:
    """Return a short non-empty text from a line, or raise :class:`BadLine`."""
    return _name(body.get(name), name)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"it holds the number {constant}")


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name, {})
    if not isinstance(value, Mapping):
        raise BadLine(f"{name} is not an object")
    return value


def _finite(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine(f"{what} is {value!r}, not a number")
    if not math.isfinite(value):
        raise BadLine(f"{what} is {value}; it must be finite")
    return float(value)


def _number(body: Mapping[str, Any], name: str, where: str) -> float:
    if name not in body:
        raise BadLine(f"{where} has no {name}")
    return _finite(body[name], f"{name} of {where}")


def _count(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadLine(f"{name} is {value!r}; it must be a whole number of at least 0")
    return value


def _optional_count(body: Mapping[str, Any], name: str) -> int | None:
    return None if body.get(name) is None else _count(body, name)


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or len(value) > NAME_MAX_CHARS:
        raise BadLine(f"{what} is {value!r}; it must be a text of 1 to {NAME_MAX_CHARS} characters")
    return value

"""What passes between an order router and those around it: its gate, its venue, and whoever sends orders through it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, Protocol

from killswitch.risk.refusal import OrderRefused

RefusalCause = Literal["gate", "monitor", "bad_input", "duplicate", "too_many_open", "venue"]


class OrderRejected(Exception):
    """Raised by a venue client's ``place``: this order did not and will not reach the book. Definite."""


class RouterGate(Protocol):
    """The gate as the router asks it; :class:`killswitch.gate.Gate` is one."""

    def allows(
        self,
        symbol: str,
        *,
        venue: str | None,
        account: str | None,
        desk: str | None,
        trader: str | None,
        client: str | None,
        strategy: str | None,
        reduces: bool,
    ) -> bool:
        """Tell whether an order may be sent now."""

    def check(
        self,
        symbol: str,
        *,
        venue: str | None,
        account: str | None,
        desk: str | None,
        trader: str | None,
        client: str | None,
        strategy: str | None,
        reduces: bool,
    ) -> None:
        """Raise :class:`killswitch.gate.Blocked` with a sentence when the order may not be sent."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it goes to the venue: quantity in units of the symbol, price in USD, ``sequence`` from 1 up."""

    client_order_id: str
    symbol: str
    side: Literal["buy", "sell"]
    qty: float
    price: float
    sequence: int


class VenueClient(Protocol):
    """A venue. Answers come later through :meth:`.OrderRouter.on_venue_event`, from any thread, also from within."""

    def place(self, order: Order) -> None:
        """Hand an order over.

        Raises:
            OrderRejected: it will not be in the book. Any other exception means that this is not known.
        """

    def cancel(self, client_order_id: str) -> None:
        """Ask for an order to be cancelled. An exception means that the request could not be sent."""


class VenueEventKind(enum.Enum):
    """What a venue says of an order."""

    ACK = "ACK"
    FILL = "FILL"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"
    CANCEL_REJECTED = "CANCEL_REJECTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueEvent:
    """One message of a venue.

    Attributes:
        kind: what happened.
        client_order_id: to which order.
        qty: quantity of this fill alone, for ``FILL``.
        price: USD, for ``FILL``.
        reason: what the venue says of it.
    """

    kind: VenueEventKind
    client_order_id: str
    qty: float = 0.0
    price: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """The order was handed to the venue. ``in_doubt`` says why it may not have arrived, and is empty otherwise."""

    client_order_id: str
    sequence: int
    in_doubt: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The order was not sent (cause ``venue``: sent and definitely rejected), and why in one sentence.

    ``why`` has the figures, where a limit of the monitor or a pre-trade control is the cause.
    """

    client_order_id: str
    cause: RefusalCause
    sentence: str
    why: OrderRefused | None = None

"""What a freeze covers: everything, or the orders that match every part of a scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PART_NAMES = ("node", "venue", "account", "desk", "trader", "client", "strategy", "symbol")
"""The parts that a scope may be made of, in the order in which they are written."""

SCOPE_MAX_BYTES = 240
"""Longest canonical scope text; it must fit a row of the gate page (docs/gate.md)."""

GLOBAL_TEXT = "global"


@dataclass(frozen=True, slots=True)
class Scope:
    """A set of orders: all of them, or those whose attributes equal every part.

    Attributes:
        parts: pairs of part name and value in the order of :data:`PART_NAMES`; empty means global.
    """

    parts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Read ``global`` or parts joined by commas, such as ``venue:bybit,symbol:BTCUSDT``.

        Only the first colon of a part separates name from value, so ``symbol:BTC/USDT:USDT`` works.

        Raises:
            ValueError: an unknown, empty, repeated or over-long part; the sentence says which.
        """
        text = text.strip()
        if text == GLOBAL_TEXT:
            return GLOBAL
        found: dict[str, str] = {}
        for piece in text.split(","):
            name, colon, value = piece.partition(":")
            name, value = name.strip(), value.strip()
            if name == GLOBAL_TEXT:
                raise ValueError(f"scope {text!r}: 'global' stands alone and is not joined with other parts")
            if name not in PART_NAMES or not colon:
                raise ValueError(
                    f"scope {text!r}: {piece.strip()!r} is not a part; write 'global' or NAME:VALUE with NAME one of "
                    + ", ".join(PART_NAMES)
                )
            if not value or any(ch.isspace() or not ch.isprintable() for ch in value):
                raise ValueError(f"scope {text!r}: part {name!r} needs a value without spaces or control characters")
            if name in found:
                raise ValueError(f"scope {text!r}: part {name!r} stands twice; freeze twice to cover two values")
            found[name] = value
        scope = cls(tuple((name, found[name]) for name in PART_NAMES if name in found))
        if len(str(scope).encode()) > SCOPE_MAX_BYTES:
            raise ValueError(f"scope is longer than {SCOPE_MAX_BYTES} bytes; shorten its values")
        return scope

    @classmethod
    def of_symbol(cls, symbol: str) -> Scope:
        """The scope of one symbol; everything, when its name cannot be one (``BTC,venue:x`` reads as two)."""
        try:
            scope = cls.parse(f"symbol:{symbol}")
        except ValueError:
            return cls()
        return scope if scope.parts == (("symbol", symbol),) else cls()

    @property
    def is_global(self) -> bool:
        """True when the scope covers every order."""
        return not self.parts

    def covers(self, attributes: Mapping[str, str | None]) -> bool:
        """Tell whether an order with these attributes falls in the scope.

        A part that the order does not state counts as matching: whether a freeze of ``desk:rates`` covers an order
        without a desk is unknown, and what is unknown is frozen.
        """
        for name, value in self.parts:
            stated = attributes.get(name)
            if stated is not None and stated != value:
                return False
        return True

    def __str__(self) -> str:
        return ",".join(f"{name}:{value}" for name, value in self.parts) or GLOBAL_TEXT


GLOBAL = Scope()

"""Quantities by symbol that nobody can change, of which a changed one is made without copying the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from zlib import crc32

PARTS: Final = 128
"""A change copies one part: some eighty of 10,000 symbols. The parts do not depend on the hashes of the process."""

_NONE: Final[dict[str, float]] = {}


class QuantitySnapshot(Mapping[str, float]):
    """A mapping of symbol to quantity; in no order that means anything, but in the same one in every process."""

    __slots__ = ("_length", "_parts")

    def __init__(self, quantities: Mapping[str, float] | None = None) -> None:
        parts: list[dict[str, float]] = [_NONE] * PARTS
        for symbol, quantity in (quantities or {}).items():
            index = _part_of(symbol)
            if parts[index] is _NONE:
                parts[index] = {}
            parts[index][symbol] = quantity
        self._parts = tuple(parts)
        self._length = sum(map(len, parts))

    def changed(self, symbol: str, quantity: float | None) -> QuantitySnapshot:
        """Return these with one symbol at another quantity, or without it for ``None``."""
        index = _part_of(symbol)
        part = dict(self._parts[index])
        if quantity is None:
            part.pop(symbol, None)
        else:
            part[symbol] = quantity
        made = QuantitySnapshot.__new__(QuantitySnapshot)
        made._parts = (*self._parts[:index], part, *self._parts[index + 1 :])
        made._length = self._length + len(part) - len(self._parts[index])
        return made

    def __getitem__(self, symbol: str) -> float:
        """Return the quantity of a symbol that is held."""
        return self._parts[_part_of(symbol)][symbol]

    def __iter__(self) -> Iterator[str]:
        """Yield the symbols."""
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        """Return how many symbols are held."""
        return self._length

    def __repr__(self) -> str:
        """Show it as a dict."""
        return repr(dict(self))


def _part_of(symbol: object) -> int:
    if not isinstance(symbol, str):
        raise KeyError(symbol)
    return crc32(symbol.encode("utf-8", "surrogatepass")) % PARTS

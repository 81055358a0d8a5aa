"""What a node may do, from loosest to strictest."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Mode(enum.IntEnum):
    """How far trading is restricted. The order is the strictness, so that ``max`` picks the strictest.

    ``ACTIVE`` lets every order pass. ``REDUCE_ONLY`` lets an order pass when the worst-case signed position over all
    working orders neither grows nor crosses zero. ``FROZEN`` lets no order pass. Cancels pass in every mode.
    """

    ACTIVE = 0
    REDUCE_ONLY = 1
    FROZEN = 2

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Read a mode as people and records write it: ``FROZEN``, ``frozen``, ``reduce-only``, ``REDUCE_ONLY``.

        Raises:
            ValueError: the text names no mode; the message lists those that exist.
        """
        name = text.strip().upper().replace("-", "_")
        try:
            return cls[name]
        except KeyError:
            known = ", ".join(mode.name for mode in cls)
            raise ValueError(f"there is no mode {text!r}; the modes are {known}") from None


def strictest(modes: Iterable[Mode]) -> Mode:
    """Return the strictest of ``modes``, ``ACTIVE`` for none."""
    return max(modes, default=Mode.ACTIVE)

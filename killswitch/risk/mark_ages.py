"""Which marks of what is held are too old: asked at every event, looked through only when one may have become so.

A mark can only become too old by time, so the moment at which the oldest one does is kept, and nothing is looked
through before it. A mark of which it is not known when it came is too old.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

AT_UNKNOWN_NS: Final = -(2**62)
"""When a mark came that no clock has seen coming."""
LOOKED_AT_EACH: Final = 256
"""Up to so many symbols the age is exact; of more of them a mark may be older by a 64th before it is found."""

_NEVER_NS: Final = 2**63
_SPACING: Final = 64
_NANOSECONDS_PER_MS: Final = 1_000_000


class MarkAges:
    """The marks of one book that are too old. It has no lock: its owner's lock guards it.

    Args:
        max_age_ms: milliseconds that a mark may be old; ``None``: none is ever too old.

    Attributes:
        max_age_ms: the same.
        looked_ns: when it was looked last.
        due_ns: when it must be looked next. Outside of these two a look is due.
        too_old: symbols whose mark was too old at the last look, and when it came.
    """

    __slots__ = ("due_ns", "looked_ns", "max_age_ms", "too_old")

    def __init__(self, max_age_ms: int | None) -> None:
        self.too_old: dict[str, int] = {}
        self.set_max_age(max_age_ms)

    def set_max_age(self, max_age_ms: int | None) -> None:
        """Hold the marks to another age; a look is due at once."""
        self.max_age_ms = max_age_ms
        self.look_again()

    def look_again(self) -> None:
        """Forget what was found; a look is due at once."""
        self.too_old.clear()
        self.looked_ns, self.due_ns = -_NEVER_NS, -_NEVER_NS if self.max_age_ms is not None else _NEVER_NS

    def held(self, symbol: str, at_ns: int) -> None:
        """A symbol is held whose mark came then, perhaps long before it was."""
        if self.max_age_ms is not None and symbol not in self.too_old:
            self.due_ns = min(self.due_ns, at_ns + self.max_age_ms * _NANOSECONDS_PER_MS + 1)

    def all_came(self, now_ns: int) -> None:
        """Every mark of what is held came just now."""
        self.look(now_ns, ())

    def is_due(self, now_ns: int) -> bool:
        """Whether one may have become too old, or the clock went back, which leaves every age unknown."""
        return not self.looked_ns <= now_ns < self.due_ns

    def look(self, now_ns: int, marks: Iterable[tuple[str, int]]) -> None:
        """Find what is too old.

        Args:
            now_ns: nanoseconds.
            marks: every symbol that is held, with when its mark came, on the same clock.
        """
        if self.max_age_ms is None:
            return
        max_age_ns = self.max_age_ms * _NANOSECONDS_PER_MS
        self.too_old = too_old = {}
        oldest_ns, count = now_ns, 0
        for symbol, at_ns in marks:
            count += 1
            if not 0 <= now_ns - at_ns <= max_age_ns:
                too_old[symbol] = at_ns
            elif at_ns < oldest_ns:
                oldest_ns = at_ns
        # One nanosecond more: exactly the age is allowed.
        due_ns = oldest_ns + max_age_ns + 1
        if count > LOOKED_AT_EACH:
            due_ns = max(due_ns, now_ns + max_age_ns // _SPACING)
        self.looked_ns, self.due_ns = now_ns, due_ns


def age_sentence(symbol: str, *, at_ns: int, now_ns: int, max_age_ms: int, marked: bool) -> str:
    """Say of one mark that it is too old; ``marked`` is false where none has ever come and a fill stands for it."""
    if at_ns == AT_UNKNOWN_NS or now_ns < at_ns:
        return f"{symbol}: when its newest {'mark' if marked else 'fill'} came is not known, so neither is its age"
    age_ms = (now_ns - at_ns) / _NANOSECONDS_PER_MS
    what = "its newest mark is" if marked else "no mark of it has ever come, and the last fill is"
    return f"{symbol}: {what} {age_ms:.0f} ms old, and {max_age_ms} ms are allowed"

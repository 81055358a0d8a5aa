"""A clock that a test moves."""

from __future__ import annotations

START_NS = 10**12


class HandClock:
    """Stands until it is moved, in nanoseconds as the clock of deadlines; its sleep moves it.

    Attributes:
        time_ns: what it says.
        slept_s: every sleep that was asked of it, in seconds.
    """

    def __init__(self, time_ns: int = START_NS) -> None:
        self.time_ns = time_ns
        self.slept_s: list[float] = []

    def __call__(self) -> int:
        return self.time_ns

    def wait(self, seconds: float) -> None:
        """Move it."""
        self.time_ns += int(seconds * 1_000_000_000)

    def sleep(self, seconds: float) -> None:
        """Move it, and remember that it was slept."""
        self.slept_s.append(seconds)
        self.wait(seconds)

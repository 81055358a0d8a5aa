"""Keeps what a watch says, for a test to look at."""

from __future__ import annotations

import threading

from killswitch.stores import Entry, OutcomeUnknown, Store, StoreUnavailable
from tests.support.waiting import wait_until


class Observer:
    """Keeps what a watch says, for the test to look at. Thread-safe.

    Attributes:
        said: everything in order; ``None`` stands for ``on_gap``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.said: list[Entry | None] = []
        self.threads: set[int] = set()

    def on_change(self, entry: Entry) -> None:
        self._keep(entry)

    def on_gap(self) -> None:
        self._keep(None)

    def _keep(self, said: Entry | None) -> None:
        with self._lock:
            self.said.append(said)
            self.threads.add(threading.get_ident())

    @property
    def gaps(self) -> int:
        with self._lock:
            return self.said.count(None)

    @property
    def changes(self) -> list[Entry]:
        with self._lock:
            return [entry for entry in self.said if entry is not None]

    def newest(self, key: str) -> Entry | None:
        """The last thing said about ``key``."""
        return next((entry for entry in reversed(self.changes) if entry.key == key), None)

    def wait_for_gap(self, *, after: int = 0, within_s: float = 20.0) -> None:
        """Wait until ``on_gap`` has been called more than ``after`` times."""
        wait_until(lambda: self.gaps > after, within_s=within_s, what=f"gap number {after + 1}")

    def wait_for(self, key: str, value: bytes | None, *, within_s: float = 20.0) -> Entry:
        """Wait until the newest that was said about ``key`` is ``value``."""

        def arrived() -> Entry | None:
            entry = self.newest(key)
            return entry if entry is not None and entry.value == value else None

        entry = wait_until(arrived, within_s=within_s, what=f"the watch saying that {key} is {value!r}")
        assert entry is not None
        return entry

    def hears(self, store: Store, key: str, value: bytes, *, within_s: float = 20.0) -> Entry:
        """Have ``store`` write a key, and wait until the watch tells it.

        A watch that changes over, be it for a stall of this machine, tells of a gap in place of what was written
        meanwhile. So after a gap the key is written again; without one it has to be told.
        """

        def told() -> Entry | None:
            gaps_before = self.gaps
            try:
                written = Entry(key, value, store.commit({}, {key: value}))
            except (StoreUnavailable, OutcomeUnknown):
                return None
            wait_until(
                lambda: self.newest(key) == written or self.gaps > gaps_before,
                within_s=within_s,
                what=f"the watch saying {written}, or a gap",
            )
            return written if self.newest(key) == written else None

        heard = wait_until(told, within_s=within_s, what=f"the watch saying {key}, written again after each gap")
        assert heard is not None
        return heard

    def wait_for_entry(self, entry: Entry, *, within_s: float = 20.0) -> None:
        """Wait until the newest that was said about a key is this very entry: a value may come twice, a version not."""
        try:
            wait_until(lambda: self.newest(entry.key) == entry, within_s=within_s, what=f"the watch saying {entry}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the newest of the key is {self.newest(entry.key)}") from None

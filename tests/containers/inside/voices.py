"""Many voices: threads that freeze and release, each its own causes, by the code that the command runs.

    python voices.py NAME THREADS ROUNDS

Prints as JSON the ids of every freeze that was made and lifted, and how many calls of the store failed meanwhile: reads
that had no answer, commits that did not happen, and commits of which nobody can tell.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from typing import Any

from killswitch.clock import wall_now
from killswitch.cluster.cluster import Cluster, new_freeze_id
from killswitch.core.flag import Freeze, StaleEpoch
from killswitch.core.modes import Mode
from killswitch.core.scopes import Scope
from killswitch.settings.config import load_settings
from killswitch.stores import Conflict, OutcomeUnknown, Store, StoreUnavailable, open_store

PATIENCE_MS = 60_000


class Counting:
    """A store that counts the calls that failed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.failed: Counter[str] = Counter()

    def read(self, key: str) -> Any:
        """As the store's."""
        try:
            return self._store.read(key)
        except StoreUnavailable:
            self.failed["read"] += 1
            raise

    def commit(self, *args: Any, **kwargs: Any) -> Any:
        """As the store's."""
        try:
            return self._store.commit(*args, **kwargs)
        except (StoreUnavailable, OutcomeUnknown) as error:
            self.failed[type(error).__name__] += 1
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def speak(cluster: Cluster, voice: str, rounds: int, said: list[str]) -> None:
    """Freeze something that nobody trades, and release it, again and again."""
    for _ in range(rounds):
        cause = Freeze(
            id=new_freeze_id(), scope=Scope.parse(f"symbol:{voice}"), mode=Mode.FROZEN, trigger="manual",
            reason="one of a thousand", actor=f"operator:{voice}", at=wall_now(),
        )  # fmt: skip
        cluster.freeze(cause, timeout_ms=PATIENCE_MS)
        said.append(cause.id)
        while not released(cluster, cause.id, voice):
            cluster.pause(0.002)


def released(cluster: Cluster, freeze_id: str, voice: str) -> bool:
    """Try once; somebody else's change makes the epoch stale, as it should."""
    try:
        flag = cluster.read_flag().flag
        if freeze_id not in flag.freeze_ids():
            return True
        cluster.release(epoch=flag.epoch, ids=[freeze_id], actor=f"operator:{voice}", reason="one of a thousand")
    except (StaleEpoch, Conflict, OutcomeUnknown, StoreUnavailable):
        return False
    return True


def main() -> None:
    """Speak in as many threads as asked."""
    name, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = load_settings(None)
    said: list[list[str]] = [[] for _ in range(threads)]
    # The time-out that agents and the command have: shorter than an election of the store.
    with open_store(settings.store, request_timeout_ms=settings.timing.request_timeout_ms) as store:
        counting = Counting(store)
        cluster = Cluster(counting, settings.cluster)  # type: ignore[arg-type] # the rest of the port is passed on
        voices = [
            threading.Thread(target=speak, args=(cluster, f"{name}{number}", rounds, said[number]))
            for number in range(threads)
        ]
        for voice in voices:
            voice.start()
        for voice in voices:
            voice.join()
    print(json.dumps({"said": [freeze_id for ids in said for freeze_id in ids], "failed": counting.failed}))


if __name__ == "__main__":
    main()

"""Calls of an impatient client that have to succeed before a test harms its server, made as often as it takes.

Such a client has little time on purpose, and a machine that stands still for as long makes any of its calls fail.
"""

from __future__ import annotations

import contextlib
import itertools

from killswitch.stores import Lease, OutcomeUnknown, Store, StoreUnavailable
from tests.support.waiting import wait_until

WARM_WITHIN_S = 30.0


def reads(store: Store, key: str) -> bool:
    """Whether a read gets through now; its connection is then in use."""
    with contextlib.suppress(StoreUnavailable):
        store.read(key)
        return True
    return False


def wait_until_reading(store: Store, key: str) -> None:
    """Wait until a read gets through."""
    wait_until(lambda: reads(store, key), within_s=WARM_WITHIN_S, what=f"a read of {key}")


def commit_in_the_end(store: Store, key: str, value: bytes) -> int:
    """Commit as often as it takes; right for a key that nobody else writes."""

    def done() -> int:
        with contextlib.suppress(StoreUnavailable, OutcomeUnknown):
            return store.commit({}, {key: value})
        return 0

    return wait_until(done, within_s=WARM_WITHIN_S, what=f"a commit to {key}")


def hold_in_the_end(store: Store, prefix: str, ttl_ms: int) -> Lease:
    """Hold a key below ``prefix`` that nobody has tried to hold: one whose hold is unknown may be held already."""
    numbers = itertools.count()

    def held() -> Lease | None:
        with contextlib.suppress(StoreUnavailable, OutcomeUnknown):
            return store.hold(f"{prefix}{next(numbers)}", b"v", ttl_ms)
        return None

    lease = wait_until(held, within_s=WARM_WITHIN_S, what=f"a lease below {prefix}")
    assert lease is not None
    return lease

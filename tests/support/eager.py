"""Threads that take turns as often as they can, so that a race which can happen does."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

JOIN_S = 30.0


@contextlib.contextmanager
def eager_threads() -> Iterator[None]:
    """Within it, Python offers every thread's turn to the others after a microsecond instead of five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def together(*work: Callable[[], object]) -> None:
    """Run each on a thread of its own, all from the same moment, and wait for all."""
    start = threading.Barrier(len(work))

    def run(one: Callable[[], object]) -> None:
        start.wait()
        one()

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    with eager_threads():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
    assert not any(thread.is_alive() for thread in threads), "a thread did not come to its end"

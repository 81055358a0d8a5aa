"""Stops this order router (SIGSTOP) at a chosen point of its next order, once, when a file asks for it.

``/dev/shm/trap`` holds ``before-second-look`` (the order is built and numbered, the gate is about to be asked again) or
``after-second-look`` (the gate has said yes, the order is about to go out). The file goes when the trap has sprung.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

TRAP = Path("/dev/shm/trap")


def spring(point: str) -> None:
    """Stop this process when the file names this point."""
    try:
        asked = TRAP.read_text()
    except FileNotFoundError:
        return
    if asked == point:
        TRAP.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)


def set_traps() -> None:
    """Wrap the two steps of the order router that come before its second look and after it."""
    from killswitch.routing.order_router import OrderRouter  # noqa: PLC0415 - only where traps are wanted

    looks, hands_over = OrderRouter._second_refusal, OrderRouter._hand_over

    def second_refusal(self: OrderRouter, *order: Any) -> Any:
        spring("before-second-look")
        return looks(self, *order)

    def hand_over(self: OrderRouter, *order: Any) -> Any:
        spring("after-second-look")
        return hands_over(self, *order)

    OrderRouter._second_refusal = second_refusal  # type: ignore[method-assign]
    OrderRouter._hand_over = hand_over  # type: ignore[method-assign]


if "killswitch.simulation.trader" in sys.orig_argv:
    set_traps()

"""An order router that only holds: it tells the agent a position of as many US dollars as a file says.

    python holder.py GATE LINK NAME FILE

SIGTERM ends it with nothing held, so that nothing of it goes on counting.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from killswitch import Gate
from killswitch.link import CancelResult, Exposure, Holding, RouterLink, Stop

PRICE_USD = 40_000.0


def nothing_to_cancel(stop: Stop) -> CancelResult:
    """It never has an order working."""
    del stop
    return CancelResult(cancelled=0, failed=0, open=0, last_sequence=None)


def main() -> None:
    """Report until SIGTERM."""
    gate_path, link_path, name, file = sys.argv[1:]
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ending.append(number))
    gate = Gate.open(gate_path, wait_s=10)
    link = RouterLink(link_path, router=name, gate=gate, on_stop=nothing_to_cancel, reconciled=True)
    link.start()
    while not ending:
        quantity = float(Path(file).read_text() or 0) / PRICE_USD
        link.report(Exposure(holdings={"BTCUSDT": Holding(quantity, PRICE_USD)}))
        time.sleep(0.05)
    link.report(Exposure())
    link.close()


if __name__ == "__main__":
    main()

"""An order router's half of the link, with orders that are only counted."""

from __future__ import annotations

from killswitch import Gate
from killswitch.link import CancelResult, Exposure, Holding, RouterLink, Stop
from tests.cluster.lab import Lab


class Router:
    """An order router's half of the link with a few orders working."""

    def __init__(self, lab: Lab, node: str, name: str, working: int) -> None:
        self.working = working
        self.gate = Gate.open(lab.gate_path(node), wait_s=5)
        self.link = RouterLink(lab.folder / f"{node}.sock", router=name, gate=self.gate, on_stop=self.cancel)
        self.link.start()
        self.report()

    def report(self, quantity: float = 1.0) -> None:
        holdings = {"BTCUSDT": Holding(quantity, 40_000.0)}
        self.link.report(Exposure(holdings=holdings, working_orders=self.working, last_sequence=9))

    def cancel(self, stop: Stop) -> CancelResult:
        del stop
        cancelled, self.working = self.working, 0
        return CancelResult(cancelled=cancelled, failed=0, open=0, last_sequence=9)

    def close(self) -> None:
        self.link.close()
        self.gate.close()

"""The trading program of the demo: how it quotes, how it books, and that its process stops when its gate says so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.clock import now_ns
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import Scope
from killswitch.gate import GateWriter
from killswitch.risk.process.limits_audit import read_audit
from killswitch.simulation.quoting import Ledger, QuotingPlan, Working, requote
from killswitch.simulation.tape import synthetic_tape
from killswitch.simulation.venue import VenueServer
from killswitch.simulation.venue_client import VenueOperator
from tests.support.waiting import wait_until

PLAN = QuotingPlan(levels=3, spacing_bps=10.0, tolerance_bps=4.0, quote_usd=1_000.0, inventory_max_usd=5_000.0)
FAR_AHEAD_NS = 60_000_000_000
READ_LATE_NS = 1_000_000_000
"""How late the venue's thread may read an order in a process that does other things as well."""


def test_a_flat_book_is_bid_for_and_nothing_is_offered() -> None:
    change = requote(1_000.0, 0.0, [], PLAN)
    assert [(quote.side, quote.price) for quote in change.place] == [("buy", 999.0), ("buy", 998.0), ("buy", 997.0)]
    assert change.cancel == ()


def test_what_is_held_is_offered_and_never_more() -> None:
    asks = [quote for quote in requote(1_000.0, 2.5, [], PLAN).place if quote.side == "sell"]
    assert [quote.price for quote in asks] == [1_002.0, 1_003.0]
    assert sum(quote.qty for quote in asks) <= 2.5


def test_quotes_that_are_near_enough_stay_and_others_are_replaced() -> None:
    near, far = Working("near", "buy", 1.0, 999.2), Working("far", "buy", 1.0, 990.0)
    change = requote(1_000.0, 0.0, [near, far], PLAN)
    assert change.cancel == ("far",)
    assert [quote.price for quote in change.place] == [998.0, 997.0]


@given(price=st.floats(1.0, 1e5), held_usd=st.floats(0.0, 20_000.0))
def test_bids_never_bring_the_position_above_its_limit(price: float, held_usd: float) -> None:
    bids = [quote for quote in requote(price, held_usd / price, [], PLAN).place if quote.side == "buy"]
    assert held_usd + PLAN.quote_usd * len(bids) <= max(held_usd, PLAN.inventory_max_usd) * 1.000001


def test_profit_is_realised_at_average_cost() -> None:
    ledger = Ledger({}, {})
    ledger.fill("X", "buy", 1.0, 100.0)
    ledger.fill("X", "buy", 1.0, 200.0)
    assert ledger.pnl_usd({"X": 100.0}) == pytest.approx(-100.0)
    ledger.fill("X", "sell", 1.0, 160.0)
    assert ledger.realised_usd == pytest.approx(10.0)
    ledger.fill("X", "sell", 1.0, 140.0)
    assert ledger.quantities["X"] == 0.0
    assert ledger.pnl_usd({"X": 1.0}) == pytest.approx(0.0)


@given(
    fills=st.lists(
        st.tuples(st.sampled_from(["buy", "sell"]), st.integers(1, 50), st.integers(1, 500)), min_size=1, max_size=30
    ),
    mark=st.integers(1, 500),
)
def test_the_ledger_agrees_with_cash_plus_position(fills: list[tuple[str, int, int]], mark: int) -> None:
    ledger, cash, held = Ledger({}, {}), 0.0, 0.0
    for side, qty, price in fills:
        sign = 1 if side == "buy" else -1
        cash, held = cash - sign * qty * price, held + sign * qty
        ledger.fill("X", side, float(qty), float(price))
    assert ledger.quantities["X"] == pytest.approx(held, abs=1e-6)
    assert ledger.pnl_usd({"X": float(mark)}) == pytest.approx(cash + held * mark, abs=1e-3)


# -- the process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[VenueServer]:
    venue = VenueServer(synthetic_tape(5), seed=5, record_path=tmp_path / "venue.jsonl", ticks_per_second=250)
    thread = threading.Thread(target=venue.serve)
    thread.start()
    yield venue
    venue.stop()
    thread.join(5)


@pytest.fixture
def operator(server: VenueServer) -> Iterator[VenueOperator]:
    with closing(VenueOperator("127.0.0.1", server.port)) as connection:
        connection.start()
        yield connection


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[GateWriter]:
    with GateWriter(tmp_path / "gate", cluster="demo", node="n1") as writer:
        writer.update([], epoch=1, permit_deadline_ns=0)
        yield writer


class TraderProcess:
    """The program as the demo runs it, without an agent: only its gate speaks to it."""

    def __init__(self, folder: Path, port: int, *more: str) -> None:
        self.stats_path = folder / "stats.json"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "killswitch.simulation.trader", "--router", "n1-r1"),
                *("--gate", str(folder / "gate"), "--link", str(folder / "nobody.sock")),
                *("--venue", f"127.0.0.1:{port}", "--seed", "5", "--stats", str(self.stats_path)),
                *more,
            ],
            stdout=subprocess.DEVNULL,
        )

    def stats(self) -> dict[str, Any]:
        return dict(json.loads(self.stats_path.read_text())) if self.stats_path.exists() else {}

    def listens_to_sigterm(self) -> bool:
        """Tell whether the program has begun far enough to be asked to end."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def end(self) -> int:
        wait_until(self.listens_to_sigterm, what="the program to listen to signals")
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture
def trader(tmp_path: Path, server: VenueServer, gate: GateWriter) -> Iterator[TraderProcess]:
    program = TraderProcess(tmp_path, server.port)
    yield program
    program.process.kill()
    program.process.wait(5)


def working(operator: VenueOperator) -> int:
    return int(operator.summary()["open_orders"])


def drawdown_freeze() -> Freeze:
    return Freeze(
        id="fz-1",
        scope=Scope.parse("global"),
        mode=Mode.FROZEN,
        trigger="drawdown",
        reason="the cluster has lost too much",
        actor="coordinator:c1",
        at="2026-01-31T09:30:00.000000Z",
    )


def test_the_program_stops_at_a_freeze_keeps_trying_and_trades_again_after_a_release(
    trader: TraderProcess, operator: VenueOperator, gate: GateWriter
) -> None:
    gate.extend(now_ns() + FAR_AHEAD_NS)
    wait_until(lambda: working(operator) > 0, what="working orders")
    gate.update([drawdown_freeze()], epoch=2, permit_deadline_ns=now_ns() + FAR_AHEAD_NS)
    wait_until(lambda: working(operator) == 0, what="an empty book")
    frozen_ns = now_ns()
    before = trader.stats()["refused"].get("gate", 0)
    wait_until(lambda: trader.stats()["refused"].get("gate", 0) > before + 10, what="refused attempts")
    assert operator.summary(since_ns=frozen_ns)["accepted"] == 0
    gate.update([], epoch=3, permit_deadline_ns=now_ns() + FAR_AHEAD_NS)
    wait_until(lambda: operator.summary(since_ns=frozen_ns)["accepted"] > 0, what="new orders")
    assert trader.end() == 0
    summary = operator.summary()
    assert (summary["open_orders"], summary["sequence_faults"], summary["duplicates"]) == (0, 0, 0)
    assert trader.stats()["last_sequence"] == summary["owners"]["n1-r1"]["last_sequence"] == summary["placed"]


def test_the_program_stops_by_itself_when_its_permit_runs_out(
    trader: TraderProcess, operator: VenueOperator, gate: GateWriter
) -> None:
    """BOUNDED STOP: from the permit's end on every attempt is refused, and nothing more is sent.

    The venue notes when it has read an order, here on a thread of a process that is busy asking it, so its times alone
    would judge the venue: what was sent is counted by both, and the times may be late by what such a thread may be.
    """

    def renewed_and_working() -> bool:
        gate.extend(now_ns() + 300_000_000)
        return working(operator) > 0

    wait_until(renewed_and_working, what="working orders")
    deadline_ns = now_ns() + 300_000_000
    wait_until(lambda: now_ns() > deadline_ns, what="the end of the permit")
    # Counters that differ from these were written later, by the thread that sends, so after the permit's end.
    before = trader.stats()["refused"].get("gate", 0)
    wait_until(lambda: trader.stats()["refused"].get("gate", 0) > before, what="a refused attempt")
    stopped = trader.stats()
    wait_until(lambda: trader.stats()["refused"]["gate"] > stopped["refused"]["gate"] + 10, what="refused attempts")
    assert trader.stats()["sent"] == stopped["sent"]
    wait_until(lambda: operator.summary()["placed"] == stopped["sent"], what="everything sent to be read by the venue")
    assert operator.summary(since_ns=deadline_ns + READ_LATE_NS)["placed"] == 0
    wait_until(lambda: working(operator) == 0, what="an empty book")
    wait_until(lambda: trader.stats()["stops"].get("permit_expired", 0) > 0, what="the stop in the counters")
    assert trader.end() == 0


def test_what_a_killed_program_left_working_is_cancelled_by_the_next_one(
    trader: TraderProcess, operator: VenueOperator, gate: GateWriter, server: VenueServer, tmp_path: Path
) -> None:
    gate.extend(now_ns() + FAR_AHEAD_NS)
    wait_until(lambda: working(operator) > 0, what="working orders")
    trader.process.kill()
    trader.process.wait(5)
    assert working(operator) > 0
    gate.update([], epoch=1, permit_deadline_ns=0)
    successor = TraderProcess(tmp_path, server.port)
    try:
        wait_until(lambda: working(operator) == 0, what="an empty book")
        assert successor.end() == 0
    finally:
        successor.process.kill()
        successor.process.wait(5)


def test_a_program_that_is_killed_goes_on_counting_its_day_and_writes_its_limits_down(
    operator: VenueOperator, gate: GateWriter, server: VenueServer, tmp_path: Path
) -> None:
    assert operator.summary()["placed"] == 0
    limits, state_dir = tmp_path / "limits.yaml", tmp_path / "state"
    limits.write_text("pretrade: {daily: {max_orders: 3}}")
    state = state_dir / "limits-state-n1-r1.json"

    def counted() -> int:
        return int(json.loads(state.read_text())["controls"]["daily"]["orders"]) if state.exists() else 0

    gate.extend(now_ns() + FAR_AHEAD_NS)
    words = ("--risk-limits", str(limits), "--state-dir", str(state_dir))
    for starts in (1, 2):
        program = TraderProcess(tmp_path, server.port, *words)
        try:
            # Three, and those that only reduce what these have bought.
            wait_until(lambda: counted() >= 3, within_s=25, what="the orders of the day in the state file")
            wait_until(lambda: program.stats().get("refused", {}).get("monitor"), within_s=25, what="an order too many")  # noqa: B023
            sent = program.stats()["sent"]
        finally:
            program.process.kill()
            program.process.wait(5)
        program.stats_path.unlink()
        assert (sent == 0) is (starts == 2), "the next one holds nothing, so nothing of it reduces"
        entries, faults = read_audit(state_dir / "limits-audit-n1-r1.jsonl")
        assert ([entry["outcome"] for entry in entries], faults) == (["started"] * starts, [])

"""From the commit of a freeze until every gate of a cluster is closed, beside bare watchers of the same store.

Ours: real agents (``killswitch agent run``, a process and a gate page each) on one real server. The time begins
just before the transaction that carries the freeze is sent, inside ``Cluster.freeze``, and ends with the last gate's
``changed_at_ns``, which a gate's writer takes on ``CLOCK_BOOTTIME`` after the page has closed. A second row begins when
``Cluster.freeze`` is called and so holds the read of the flag that precedes the transaction. A third, without a
baseline, is the proof: until the collector of the certificate has seen the ack of every node; it is measured in rounds
of its own, because the collector's watch costs time too.

Baseline: as many processes with nothing but a watch on one key of the same server, in the terms of that store
(``fanout_stores.py``). The time begins just before a put of as many bytes as the flag has is sent, and ends with the
last of the stamps that the watchers write into a shared page, on the same clock.

Both sets of processes live all the time and rounds alternate. The watchers are idle in a round of ours. The agents are
not quite idle in a round of the baseline: each renews its permit and keeps its lease alive every 500 ms, and reports
once a second, so both kinds of round carry that load. Nobody polls while a round is on: the pages are read when it is
over.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killswitch.clock import CLOCK_ID, now_ns, wall_now
from killswitch.cluster.certificates import CertificateCollector
from killswitch.cluster.cluster import Cluster, Committed, new_freeze_id
from killswitch.core.certificate import Certificate, Proof
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL
from killswitch.gate import Gate, GateState, GateUnavailable
from killswitch.stores import open_store
from killswitch.stores.port import Store
from tests.bench.fanout_stores import KINDS, NotHere, StoreUnderBench, serving

ROOT = Path(__file__).resolve().parents[2]
GATES = 32
ROUNDS = 21
PROOF_ROUNDS = 7
WARM_UP_ROUNDS = 2
TARGET_RATIO = 1.5
CLUSTER = "bench"
START_WITHIN_S = 60.0
ROUND_WITHIN_S = 8.0
END_AFTER_S = 85.0
"""No round begins later than this after the start; the rows say how many there were."""
QUIET_S = 0.15
"""How long nobody looks at anything after a freeze or a put; many times what it takes."""
SETTLE_S = 0.2
"""Pause after all gates have opened, so that no ack of one round is written in the next."""

TRAMPOLINE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no process outlives a bench that is killed
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start_process(stack: ExitStack, log: Path, *words: object) -> subprocess.Popen[bytes]:
    """Start Python with these words; it is killed, by its pid, when the stack ends or this process does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KILLSWITCH_")}
    with log.open("wb") as file:
        popen = subprocess.Popen(
            [sys.executable, "-c", TRAMPOLINE, *(str(word) for word in words)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=ROOT, env=environment,
        )  # fmt: skip

    def end() -> None:
        popen.kill()
        popen.wait(timeout=10)

    stack.callback(end)
    return popen


class TimedStore:
    """A store that notes when its last commit was sent; all else is the store's own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.commit_sent_ns = 0

    def commit(self, *args: Any, **kwargs: Any) -> int:
        """Note the time, and commit."""
        self.commit_sent_ns = now_ns()
        return self._store.commit(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@dataclass(frozen=True)
class Round:
    """Milliseconds from the beginning of a round until the first, the middle and the last process had done its part."""

    first_ms: float
    middle_ms: float
    last_ms: float
    before_ms: float = 0.0
    """What went before the beginning: in a round of ours, the reading of the flag."""

    @classmethod
    def of(cls, began_ns: int, stamps_ns: Sequence[int], *, called_ns: int | None = None) -> Round:
        """Make a round of the stamps of all processes."""
        took = sorted((stamp - began_ns) / 1e6 for stamp in stamps_ns)
        before = 0.0 if called_ns is None else (began_ns - called_ns) / 1e6
        return cls(took[0], statistics.median(took), took[-1], before)


class Fanout:
    """One server, so many agents and so many bare watchers. Made by :func:`started`, which also ends them."""

    def __init__(self, folder: Path, server: StoreUnderBench, store: Store, stack: ExitStack, gates: int) -> None:
        self._folder = folder
        self._stack = stack
        self.timed = TimedStore(store)
        self.cluster = Cluster(self.timed, CLUSTER)
        self.cluster.initialise(actor="bench", reason="bench")
        self._server = server
        self._nodes = [f"n{number:02d}" for number in range(gates)]
        page = folder / "stamps"
        page.write_bytes(bytes(8 * gates))
        with page.open("r+b") as file:
            self._stamps = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        for node in self._nodes:
            self._spawn_agent(node, server.url)
        for slot in range(gates):
            self._spawn(f"watcher-{slot}", "-c", server.watcher, server.address, page, slot, CLOCK_ID)
        self._gates = [self._open_gate(node) for node in self._nodes]
        self._until(self._all_open, START_WITHIN_S, "all gates to open")
        self._until(self._all_watch, START_WITHIN_S, "all bare watchers to answer")

    # -- rounds --------------------------------------------------------------------------------------------------

    def ours(self) -> Round:
        """Freeze, and read from the gates when each closed."""
        freeze = self._freeze()
        committed = self.cluster.freeze(freeze, timeout_ms=2_000)
        sent_ns = self.timed.commit_sent_ns
        time.sleep(QUIET_S)
        self._until(lambda: self._all_show(freeze.id, committed), ROUND_WITHIN_S, "all gates to close")
        took = Round.of(sent_ns, [state.changed_at_ns for state in self._states()], called_ns=committed.started_ns)
        self.release()
        return took

    def baseline(self) -> Round:
        """Put, and read when each bare watcher saw it."""
        began_ns = self._put()
        time.sleep(QUIET_S)
        self._until(lambda: all(stamp > began_ns for stamp in self._stamps), ROUND_WITHIN_S, "all watchers to see it")
        return Round.of(began_ns, list(self._stamps))

    def proof(self) -> float:
        """Freeze, and return the milliseconds from the call until the ack of every node has been seen here."""
        freeze = self._freeze()
        with CertificateCollector(self.cluster) as collector:
            time.sleep(SETTLE_S)
            committed = self.cluster.freeze(freeze, timeout_ms=2_000)
            certificate = collector.wait(committed, frozenset({freeze.id}), timeout_ms=6_000, until=_all_acked)
        if not _all_acked(certificate):
            raise RuntimeError(f"not every node acked: {certificate.to_json()}")
        self.release()
        return max(line.gated_ms or 0.0 for line in certificate.nodes)

    def release(self) -> None:
        """Release everything and wait until all gates are open and the acks of it are written."""
        flag = self.cluster.read_flag().flag
        self.cluster.release(epoch=flag.epoch, ids=sorted(flag.freeze_ids()), actor="bench", reason="bench")
        self._until(self._all_open, ROUND_WITHIN_S, "all gates to open")
        time.sleep(SETTLE_S)

    def _freeze(self) -> Freeze:
        return Freeze(new_freeze_id(), GLOBAL, Mode.FROZEN, "manual", "a bench", "operator:bench", wall_now())

    def _put(self) -> int:
        flag_bytes = 350
        began_ns = now_ns()
        self._server.put(b"x" * flag_bytes)
        return began_ns

    # -- what the gates and the watchers say ---------------------------------------------------------------------

    def _states(self) -> list[GateState]:
        return [gate.snapshot() for gate in self._gates]

    def _all_show(self, freeze_id: str, committed: Committed) -> bool:
        return all(
            state.epoch == committed.flag.epoch
            and state.open_until_ns == 0
            and [cause.id for cause in state.causes] == [freeze_id]
            for state in self._states()
        )

    def _all_open(self) -> bool:
        return all(gate.is_open for gate in self._gates)

    def _all_watch(self) -> bool:
        """A watch that has been created says so, but a put is what shows that it works."""
        began_ns = self._put()
        time.sleep(0.1)
        return all(stamp > began_ns for stamp in self._stamps)

    # -- processes -----------------------------------------------------------------------------------------------

    def _spawn_agent(self, node: str, url: str) -> None:
        at = self._folder / node
        self._spawn(
            node, "-m", "killswitch", "--store", url, "--cluster", CLUSTER, "agent", "run", "--node", node,
            "--gate", f"{at}.gate", "--link", f"{at}.sock", "--state-dir", f"{at}.state", "--http-port", "0",
        )  # fmt: skip

    def _spawn(self, name: str, *words: object) -> None:
        start_process(self._stack, self._folder / f"{name}.log", *words)

    def _open_gate(self, node: str) -> Gate:
        def mapped() -> Gate | None:
            try:
                return Gate.open(self._folder / f"{node}.gate")
            except GateUnavailable:
                return None

        gate = self._until(mapped, START_WITHIN_S, f"the agent of {node} to start")
        assert gate is not None
        self._stack.callback(gate.close)
        return gate

    def _until(self, condition: Callable[[], Any], within_s: float, what: str) -> Any:
        give_up_s = time.monotonic() + within_s
        while not (value := condition()):
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"waited {within_s:g} s for {what}; {self._last_words()}")
            time.sleep(0.02)
        return value

    def _last_words(self) -> str:
        logs = [path.read_text(errors="replace")[-300:] for path in sorted(self._folder.glob("*.log"))[:2]]
        return "the first logs end with: " + " | ".join(logs)


def _all_acked(certificate: Certificate) -> bool:
    return all(line.state is Proof.ACKED for line in certificate.nodes)


@contextmanager
def started(kind: str, gates: int) -> Iterator[Fanout]:
    """Start everything, and end it all by its pid, whatever happens."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ks-fanout-")))
        server = stack.enter_context(serving(kind, folder))
        store = stack.enter_context(open_store(server.url, request_timeout_ms=1_000))
        yield Fanout(folder, server, store, stack, gates)


def measure(kind: str, gates: int, rounds: int, proof_rounds: int) -> tuple[list[Round], list[Round], list[float]]:
    """Return the rounds of ours, those of the baseline, and the milliseconds of the proofs."""
    ours: list[Round] = []
    baseline: list[Round] = []
    proofs: list[float] = []
    began_s = time.monotonic()
    with started(kind, gates) as fanout:
        for index in range(rounds + WARM_UP_ROUNDS):
            if time.monotonic() - began_s > END_AFTER_S:
                break
            for side in ("ours", "baseline") if index % 2 else ("baseline", "ours"):
                if side == "ours":
                    ours.append(fanout.ours())
                else:
                    baseline.append(fanout.baseline())
        while len(proofs) < proof_rounds and time.monotonic() - began_s < END_AFTER_S:
            proofs.append(fanout.proof())
    return ours[WARM_UP_ROUNDS:], baseline[WARM_UP_ROUNDS:], proofs


def run(
    gates: int = GATES, rounds: int = ROUNDS, proof_rounds: int = PROOF_ROUNDS, kinds: Sequence[str] = KINDS
) -> list[dict[str, Any]]:
    """Measure each store, and return for each a row from the commit, one from the call, one until the proof, in ms.

    A store whose server cannot be had here has one row without figures, whose ``left_out`` says why.
    """
    rows = []
    for kind in kinds:
        try:
            ours, baseline, proofs = measure(kind, gates, rounds, proof_rounds)
        except NotHere as error:
            print(f"freeze_fanout: {kind} is left out: {error}", file=sys.stderr)
            rows.append(_left_out(kind, str(error)))
            continue
        base = [round_.last_ms for round_ in baseline]
        target = TARGET_RATIO if kind == "etcd" else None
        called = [r.before_ms + r.last_ms for r in ours]
        timed = [
            _row(f"{kind}: freeze commit sent -> {gates} gates closed", [r.last_ms for r in ours], base, target),
            _row(f"{kind}: freeze called (read too) -> {gates} gates closed", called, base, None),
        ]
        for row in timed:
            row["spread_ms"] = {"ours": _spread(ours), "baseline": _spread(baseline)}
        rows += timed
        if proofs:
            rows.append(_row(f"{kind}: freeze called -> {gates} acks seen", proofs, None, None))
    return rows


def _left_out(kind: str, why: str) -> dict[str, Any]:
    """In the place of a store's rows: a reader of the table must not take what is missing for what was never asked."""
    nothing = dict.fromkeys([*FIGURES, *(f"{what}_{figure}" for what in ("baseline", "ratio") for figure in FIGURES)])
    row = {"name": f"{kind}: LEFT OUT, not measured", "unit": "ms", "rounds": 0, "target_ratio": None}
    return row | nothing | {"baseline_name": None, "left_out": why}


def _row(name: str, took: list[float], base: list[float] | None, target: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "unit": "ms", "rounds": len(took), "target_ratio": target}
    row |= {name: round(_percentile(took, share), 2) for name, share in FIGURES.items()}
    row["baseline_name"] = "bare watchers see a put" if base else None
    for figure, share in FIGURES.items():
        row[f"baseline_{figure}"] = round(_percentile(base, share), 2) if base else None
        row[f"ratio_{figure}"] = round(_percentile(took, share) / _percentile(base, share), 3) if base else None
    return row


FIGURES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
"""With some twenty rounds the p99 is the maximum; it is there because every row of a bench has one."""


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return statistics.median(ordered) if share == 0.5 else ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _spread(rounds: Sequence[Round]) -> dict[str, float]:
    """Medians over the rounds of when the first, the middle and the last process had done its part."""
    return {
        "first": round(statistics.median(r.first_ms for r in rounds), 2),
        "middle": round(statistics.median(r.middle_ms for r in rounds), 2),
        "last": round(statistics.median(r.last_ms for r in rounds), 2),
    }


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=GATES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--store", choices=KINDS, action="append", help="only this one; may be given again")
    parser.add_argument("--proof-rounds", type=int, default=PROOF_ROUNDS)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args()
    began_s = time.monotonic()
    rows = run(given.gates, given.rounds, given.proof_rounds, given.store or KINDS)
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        if "left_out" in row:
            print(f"{row['name']}: {row['left_out']}")
            continue
        print(f"{row['name']}: " + ", ".join(f"{figure} {row[figure]} ms" for figure in FIGURES))
        if row["baseline_name"]:
            print(f"  {row['baseline_name']}: " + ", ".join(f"{f} {row[f'baseline_{f}']} ms" for f in FIGURES))
            ratios = ", ".join(f"{figure} {row[f'ratio_{figure}']}" for figure in FIGURES)
            print(f"  ratio: {ratios} (target {row['target_ratio']})")
            print(f"  first/middle/last process: {row['spread_ms']}")
    print(f"{time.monotonic() - began_s:.0f} s in all")


if __name__ == "__main__":
    main()

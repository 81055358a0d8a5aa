"""What an idle agent costs: memory and processor, beside the least that such a process could cost.

One real agent (``killswitch agent run``) on a real embedded etcd, with no router connected, an open gate, and nothing
to do but renew its permit and keep its lease alive. In the same run, over the same time:

- memory: a Python process that imports grpc, pydantic and prometheus_client and sleeps;
- processor: a bare loop over ``pyetcd``'s stubs with one linearizable read each 500 ms and one put a second. An agent
  does more by design: each 500 ms it renews its permit (a read), keeps its lease alive, and reads its lease and its
  record; each second it reports; and a watch asks for a sign of life each second.

RSS counts the pages of shared libraries in full, PSS its share of them (``/proc/PID/smaps_rollup``). Processor time is
user and system time of all threads (``/proc/PID/stat``, in ticks of 10 ms), as a share of one core.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killswitch.cluster.cluster import Cluster
from killswitch.gate import Gate
from killswitch.stores import open_store
from killswitch.stores.etcd.embedded import EmbeddedStore
from tests.bench.freeze_fanout import CLUSTER, start_process

SECONDS = 60
SAMPLES = 6
OPEN_WITHIN_S = 30.0
WARM_UP_S = 3.0

MEMORY_BASELINE = "imports grpc, pydantic, prometheus_client and sleeps"
CPU_BASELINE = "bare loop: 2 linearizable reads and 1 put a second"

SLEEPER = """
import time
import grpc, prometheus_client, pydantic
time.sleep(3600)
"""

BARE_LOOP = """
import itertools, sys, time
import grpc
from pyetcd import etcdrpc
kv = etcdrpc.KVStub(grpc.insecure_channel(sys.argv[1]))
for turn in itertools.count():
    kv.Range(etcdrpc.RangeRequest(key=b"/bench/idle"), timeout=1)
    if turn % 2:
        kv.Put(etcdrpc.PutRequest(key=b"/bench/idle", value=b"x" * 350), timeout=1)
    time.sleep(0.5)
"""


@dataclass(frozen=True)
class Memory:
    """Mebibytes of one process."""

    rss_mib: float
    pss_mib: float

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Read what the kernel says."""
        fields = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            fields[name] = float(rest.split()[0]) / 1024
        return cls(fields["Rss"], fields["Pss"])


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(seconds: float = SECONDS) -> list[dict[str, Any]]:
    """Measure for so long, and return rows for RSS, PSS (MiB) and processor share (per cent of one core)."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ks-idle-")))
        store = stack.enter_context(open_store(f"embedded://{folder / 'etcd'}", request_timeout_ms=1_000))
        assert isinstance(store, EmbeddedStore)
        Cluster(store, CLUSTER).initialise(actor="bench", reason="bench")
        gate = folder / "n1.gate"
        agent = start_process(
            stack, folder / "agent.log", "-m", "killswitch", "--store", store.client_url, "--cluster", CLUSTER, "agent",
            "run", "--node", "n1", "--gate", gate, "--link", folder / "n1.sock", "--state-dir", folder / "state",
            "--http-port", "0",
        )  # fmt: skip
        sleeper = start_process(stack, folder / "sleeper.log", "-c", SLEEPER)
        address = store.client_url.removeprefix("etcd://")
        loop = start_process(stack, folder / "loop.log", "-c", BARE_LOOP, address)
        with Gate.open(gate, wait_s=OPEN_WITHIN_S) as opened:
            _wait_until_open(opened)
            time.sleep(WARM_UP_S)
            processes = {"agent": agent, "sleeper": sleeper, "loop": loop}
            samples = [_over(seconds / SAMPLES, processes) for _ in range(SAMPLES)]
            if not opened.is_open:
                raise RuntimeError("the agent did not keep its gate open, so it was not idle but in trouble")
        memory = {name: Memory.of(processes[name].pid) for name in ("agent", "sleeper")}
    return _rows(memory, samples)


def _wait_until_open(gate: Gate) -> None:
    give_up_s = time.monotonic() + OPEN_WITHIN_S
    while not gate.is_open:
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"the agent did not open its gate within {OPEN_WITHIN_S:g} s")
        time.sleep(0.05)


def _over(seconds: float, processes: dict[str, subprocess.Popen[bytes]]) -> dict[str, float]:
    """Per cent of a core that each process uses in the next seconds."""
    before = {name: cpu_seconds(process.pid) for name, process in processes.items()}
    began_s = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    return {name: 100 * (cpu_seconds(process.pid) - before[name]) / took_s for name, process in processes.items()}


def _rows(memory: dict[str, Memory], samples: list[dict[str, float]]) -> list[dict[str, Any]]:
    ours, base = memory["agent"], memory["sleeper"]
    rows = [
        _row("idle agent, memory RSS", "MiB", (ours.rss_mib,) * 2, MEMORY_BASELINE, (base.rss_mib,) * 2),
        _row("idle agent, memory PSS", "MiB", (ours.pss_mib,) * 2, MEMORY_BASELINE, (base.pss_mib,) * 2),
    ]
    agent, loop = (_mean_and_most([sample[name] for sample in samples]) for name in ("agent", "loop"))
    rows.append(_row("idle agent, share of one core", "%", agent, CPU_BASELINE, loop))
    return rows


def _mean_and_most(shares: list[float]) -> tuple[float, float]:
    """The mean over the whole time stands as p50, the busiest sixth of it as p99: ticks are too coarse for more."""
    return sum(shares) / len(shares), max(shares)


def _row(
    name: str, unit: str, took: tuple[float, float], baseline_name: str, base: tuple[float, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "unit": unit, "baseline_name": baseline_name, "target_ratio": None}
    for figure, ours, theirs in zip(("p50", "p99"), took, base, strict=True):
        row[figure], row[f"baseline_{figure}"] = round(ours, 2), round(theirs, 2)
        row[f"ratio_{figure}"] = round(ours / theirs, 2) if theirs else None
    return row


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long to watch the processor")
    for row in run(parser.parse_args().seconds):
        print(
            f"{row['name']}: {row['p50']} {row['unit']} (most {row['p99']}); {row['baseline_name']}: "
            f"{row['baseline_p50']} (most {row['baseline_p99']}); ratio {row['ratio_p50']}"
        )


if __name__ == "__main__":
    sys.exit(main())

"""The C reader against live pages: it is compiled as a user compiles it, and must agree with the Python reader."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from killswitch.clock import now_ns
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import PART_NAMES, Scope
from killswitch.gate import Gate, GateWriter, layout
from tests.support.waiting import wait_until

SOURCE = Path(__file__).parents[3] / "deploy" / "gate" / "example.c"
SECOND_NS = 1_000_000_000
ATTRIBUTES = ("symbol", "venue", "account", "desk", "trader", "client", "strategy")

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the C reader needs gcc to be compiled")


def compile_c(target: Path, *options: str) -> Path:
    command = ["gcc", *options, "-Wall", "-Wextra", "-Werror", "-O2", "-o", str(target), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("c") / "gate_state", "-std=c11")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "gate"


class Asker:
    """The C program in batch mode: one order in, one answer out."""

    def __init__(self, program: Path, page: Path) -> None:
        self.process = subprocess.Popen(
            [str(program), "--batch", str(page)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, order: dict[str, str]) -> tuple[bool, Mode, int, str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\t".join(order.get(name, "") for name in ATTRIBUTES) + "\n")
        self.process.stdin.flush()
        fast, mode, epoch, trigger, cause = self.process.stdout.readline().split()
        return fast == "1", Mode(int(mode)), int(epoch), trigger, cause

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()


@pytest.fixture
def writer(page: Path) -> Iterator[GateWriter]:
    with GateWriter(page, cluster="prod", node="n1") as made:
        yield made


@pytest.fixture
def asker(program: Path, page: Path, writer: GateWriter) -> Iterator[Asker]:
    made = Asker(program, page)
    yield made
    made.close()


def freeze(freeze_id: str, scope: str = "global", mode: Mode = Mode.FROZEN, reason: str = "why") -> Freeze:
    return Freeze(freeze_id, Scope.parse(scope), mode, "manual", reason, "operator:ann", "2026-01-31T09:30:00Z")


@pytest.mark.parametrize("standard", ["c99", "c11", "c17"])
def test_it_compiles_without_a_warning(standard: str, tmp_path: Path) -> None:
    compile_c(tmp_path / "out", f"-std={standard}")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_it_compiles_as_cpp(tmp_path: Path) -> None:
    source = tmp_path / "router.cc"
    source.write_text(
        '#include "killswitch_gate.h"\nint main() { ks_gate g; return ks_gate_open(&g, "x", nullptr, 0); }'
    )
    command = ["g++", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE.parent}", "-o", str(tmp_path / "out"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([str(tmp_path / "out")], check=False, timeout=10).returncode != 0


def test_it_prints_a_live_page_as_a_line_of_json(program: Path, page: Path, writer: GateWriter) -> None:
    deadline = now_ns() + 30 * SECOND_NS
    writer.update(
        [freeze("f-1", "symbol:BTC/USDT:USDT", reason='a "quoted" \\ é\n')], epoch=9, permit_deadline_ns=deadline
    )
    done = subprocess.run([str(program), str(page)], capture_output=True, text=True, timeout=10, check=True)
    told = json.loads(done.stdout)
    state = writer.state
    assert done.stdout.count("\n") == 1
    assert told["schema"] == "killswitch.gate/1"
    assert told["open"] is False
    for name in ("cluster", "node", "epoch", "mode", "open_until_ns", "permit_deadline_ns", "sequence", "writer_pid"):
        assert told[name] == getattr(state, name), name
    assert told["writer_instance"] == state.writer_instance
    assert told["changed_at_ns"] == state.changed_at_ns
    (cause,) = told["causes"]
    assert cause == {
        "mode": 2,
        "scope": "symbol:BTC/USDT:USDT",
        "id": "f-1",
        "trigger": "manual",
        "reason": 'a "quoted" \\ é\n',
    }


def test_it_agrees_with_python_on_many_random_states(asker: Asker, page: Path, writer: GateWriter) -> None:
    """Same mode, same cause, same fast path, for 150 states of random causes and 6 random orders each."""
    rng = random.Random(20260131)
    values = {name: [f"{name}{i}" for i in range(2)] + ["é:1"] for name in PART_NAMES} | {"node": ["n1", "n2"]}
    seen: set[tuple[bool, Mode]] = set()
    with Gate.open(page) as gate:
        for epoch in range(1, 151):
            freezes = []
            for index in range(rng.choice([0, 1, 2, 3, 64, 65] if epoch % 10 == 0 else [0, 1, 2, 3])):
                names = rng.sample(PART_NAMES, rng.randint(0, 3))
                scope = ",".join(f"{name}:{rng.choice(values[name])}" for name in names) or "global"
                freezes.append(freeze(f"f{index}", scope, rng.choice([Mode.REDUCE_ONLY, Mode.FROZEN])))
            writer.update(freezes, epoch=epoch, permit_deadline_ns=rng.choice([0, now_ns() + 60 * SECOND_NS]))
            state = gate.snapshot()
            for _ in range(6):
                stated = rng.sample(ATTRIBUTES, rng.randint(0, len(ATTRIBUTES)))
                order = {name: rng.choice(values[name]) for name in stated}
                fast, mode, told_epoch, trigger, cause = asker.ask(order)
                verdict = layout.judge(state, now_ns(), order)
                assert (fast, mode) == (gate.is_open, gate.mode(**order)), (freezes, order)
                assert mode is verdict.mode
                assert told_epoch == epoch
                expected = (verdict.cause.trigger, verdict.cause.id) if verdict.cause else ("-", "-")
                assert (trigger, cause) == expected, (freezes, order)
                seen.add((fast, mode))
    assert seen == {(True, Mode.ACTIVE), *((False, mode) for mode in Mode)}


def test_bounded_stop_the_deadline_passes_by_itself_in_c(asker: Asker, writer: GateWriter) -> None:
    """BOUNDED STOP: nobody renews, and the C reader stops at the deadline with nothing running."""
    deadline = now_ns() + SECOND_NS // 5
    writer.update([], epoch=1, permit_deadline_ns=deadline)
    while now_ns() < deadline:
        asker.ask({})
        time.sleep(0.01)
    fast, mode, _, trigger, _ = asker.ask({})
    assert (fast, mode, trigger) == (False, Mode.FROZEN, "permit_expired")


def test_unknown_is_frozen_half_written_replaced_and_deleted_pages_in_c(
    asker: Asker, page: Path, writer: GateWriter, program: Path
) -> None:
    """UNKNOWN IS FROZEN: an odd sequence, damage, another file at the path and no file at all block in C too."""
    writer.update([freeze("f", "symbol:A")], epoch=1, permit_deadline_ns=now_ns() + 60 * SECOND_NS)
    order = {"symbol": "B"}
    assert asker.ask(order)[1] is Mode.ACTIVE
    with page.open("r+b", buffering=0) as file:
        for at in (layout.SEQUENCE_OFFSET, layout.OFFSET["epoch"], layout.HEADER_BYTES + 20):
            file.seek(at)
            was = file.read(1)
            file.seek(at)
            file.write(bytes([was[0] ^ 1]))
            assert asker.ask(order)[:2] == (False, Mode.FROZEN)
            assert asker.ask(order)[3] == "gate_unreadable"
            file.seek(at)
            file.write(was)
            assert asker.ask(order)[1] is Mode.ACTIVE
    writer.close()
    page.unlink()
    assert asker.ask(order)[1:4:2] == (Mode.FROZEN, "gate_replaced")
    done = subprocess.run([str(program), str(page)], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert "start the agent" in done.stderr
    with GateWriter(page, cluster="prod", node="n1") as second:
        second.update([], epoch=2, permit_deadline_ns=now_ns() + 60 * SECOND_NS)
        assert asker.ask(order)[1:4:2] == (Mode.FROZEN, "gate_replaced")


@pytest.mark.parametrize(
    ("at", "value", "sentence"),
    [
        (0, b"X", "not a gate page"),
        (layout.OFFSET["layout_version"], b"\x02", "another layout version"),
        (layout.OFFSET["clock_id"], b"\x01", "another clock"),
        (layout.OFFSET["boot_id"], b"\xff\xfe\xfd", "before this machine started"),
    ],
)
def test_unknown_is_frozen_c_refuses_a_page_that_it_cannot_trust(
    program: Path, page: Path, at: int, value: bytes, sentence: str
) -> None:
    """UNKNOWN IS FROZEN: foreign files, layouts, clocks and boots are refused with a sentence."""
    GateWriter(page, cluster="prod", node="n1").close()
    with page.open("r+b") as file:
        file.seek(at)
        file.write(value)
    done = subprocess.run([str(program), str(page)], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_c_never_sees_a_mix_of_two_states(asker: Asker, writer: GateWriter) -> None:
    """Even epochs carry cause ``even`` in reduce-only, odd ones ``odd`` frozen; no answer may pair them otherwise."""
    stop = threading.Event()

    def hammer() -> None:
        epoch = 1
        while not stop.is_set():
            epoch += 1
            one = freeze("even", mode=Mode.REDUCE_ONLY) if epoch % 2 == 0 else freeze("odd")
            writer.update([one], epoch=epoch, permit_deadline_ns=now_ns() + 60 * SECOND_NS)

    thread = threading.Thread(target=hammer, daemon=True)
    thread.start()
    seen: set[str] = set()
    try:
        until = time.monotonic() + 1.0

        def both_seen_for_a_second() -> bool:
            _, mode, epoch, trigger, cause = asker.ask({})
            if trigger == "manual":
                assert (mode, cause) == ((Mode.REDUCE_ONLY, "even") if epoch % 2 == 0 else (Mode.FROZEN, "odd"))
                seen.add(cause)
            else:
                assert (mode, trigger) in {(Mode.FROZEN, "gate_unreadable"), (Mode.FROZEN, "agent_start")}
            return seen == {"even", "odd"} and time.monotonic() >= until

        while time.monotonic() < until:
            both_seen_for_a_second()
        wait_until(both_seen_for_a_second, what="answers from both states")
    finally:
        stop.set()
        thread.join()

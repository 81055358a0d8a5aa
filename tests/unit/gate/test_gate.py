"""The gate, live: one writer, readers in this process and in others, and everything that can happen to either."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import killswitch
from killswitch.clock import now_ns
from killswitch.core.flag import MAX_FREEZES, Flag, Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL, PART_NAMES, Scope
from killswitch.gate import Blocked, Gate, GateError, GateOwned, GateUnavailable, GateWriter, layout, reader
from killswitch.gate.writer import LOCAL_LIMIT_ID, MAX_PERMIT_AHEAD_NS
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS


def freeze(freeze_id: str = "f-1", scope: str = "global", mode: Mode = Mode.FROZEN, **other: str) -> Freeze:
    reason = other.get("reason", "the edge collapsed")
    return Freeze(freeze_id, Scope.parse(scope), mode, "manual", reason, "operator:ann", "2026-01-31T09:30:00Z")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prod" / "gate"


@pytest.fixture
def writer(path: Path) -> Iterator[GateWriter]:
    with GateWriter(path, cluster="prod", node="n1") as made:
        yield made


@pytest.fixture
def gate(path: Path, writer: GateWriter) -> Iterator[Gate]:
    with Gate.open(path) as made:
        yield made


def open_up(writer: GateWriter, epoch: int = 1, for_ns: int = MINUTE_NS) -> int:
    deadline = now_ns() + for_ns
    writer.update([], epoch=epoch, permit_deadline_ns=deadline)
    return deadline


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process: subprocess.Popen[str]) -> None:
    """End a process that this test started, and wait for it."""
    process.kill()
    process.communicate(timeout=10)


WRITER_PROCESS = """
import sys, time
from killswitch.gate import GateWriter
from killswitch.clock import now_ns
writer = GateWriter(sys.argv[1], cluster="prod", node="n1")
writer.update([], epoch=1, permit_deadline_ns=now_ns() + int(sys.argv[2]))
print("ready", flush=True)
while True:
    time.sleep(0.02)
    if len(sys.argv) > 3:
        writer.extend(now_ns() + int(sys.argv[2]))
"""


def start_writer(path: Path, permit_ns: int, *, renews: bool) -> subprocess.Popen[str]:
    process = run_python(WRITER_PROCESS, path, permit_ns, *(["renews"] if renews else []))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


# ---- what a router sees


def test_unknown_is_frozen_from_the_first_moment(writer: GateWriter, gate: Gate) -> None:
    """UNKNOWN IS FROZEN: an agent that has just started has a closed gate that says so."""
    with pytest.raises(Blocked, match="the agent has started and has no permit yet") as no:
        gate.check("BTCUSDT")
    assert (no.value.mode, no.value.cause.trigger, no.value.cause.scope) == (Mode.FROZEN, "agent_start", GLOBAL)
    assert not gate.is_open
    assert not gate.allows("BTCUSDT", reduces=True)


def test_an_open_gate_passes_everything(writer: GateWriter, gate: Gate) -> None:
    deadline = open_up(writer)
    assert gate.is_open
    assert gate.allows()
    assert gate.allows("BTCUSDT", venue="bybit", account="a", desk="d", trader="t", client="c", strategy="s")
    gate.check("BTCUSDT", venue="bybit")
    state = gate.snapshot()
    assert (state.open_until_ns, state.permit_deadline_ns, state.epoch, state.causes) == (deadline, deadline, 1, ())
    assert (state.cluster, state.node, state.writer_pid) == ("prod", "n1", os.getpid())


def test_a_freeze_blocks_and_says_why(writer: GateWriter, gate: Gate) -> None:
    open_up(writer)
    writer.update([freeze()], epoch=2, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert not gate.allows("BTCUSDT", reduces=True)
    with pytest.raises(
        Blocked, match=r"manual: the edge collapsed \(freeze f-1.*epoch 2; its permit runs out in"
    ) as no:
        gate.check("BTCUSDT")
    assert (no.value.mode, no.value.epoch, no.value.cause.id) == (Mode.FROZEN, 2, "f-1")
    assert isinstance(no.value, GateError)
    open_up(writer, epoch=3)
    assert gate.allows("BTCUSDT")


def test_a_scope_blocks_only_its_orders_and_unstated_attributes_match(writer: GateWriter, gate: Gate) -> None:
    writer.update([freeze(scope="venue:bybit,symbol:BTCUSDT")], epoch=1, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert not gate.is_open
    assert gate.allows("ETHUSDT", venue="bybit")
    assert gate.allows("BTCUSDT", venue="okx")
    assert not gate.allows("BTCUSDT", venue="bybit")
    assert not gate.allows("BTCUSDT")
    assert not gate.allows(venue="bybit")
    assert not gate.allows()
    assert not gate.allows("", venue="bybit")
    assert not gate.allows(7, venue="bybit")  # type: ignore[arg-type]
    assert gate.mode("ETHUSDT") is Mode.ACTIVE
    assert gate.mode("BTCUSDT") is Mode.FROZEN


def test_reduce_only_takes_the_callers_word(writer: GateWriter, gate: Gate) -> None:
    writer.update([freeze(mode=Mode.REDUCE_ONLY)], epoch=1, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert not gate.allows("BTCUSDT")
    assert gate.allows("BTCUSDT", reduces=True)
    assert not gate.allows("BTCUSDT", reduces="no")  # type: ignore[arg-type]
    gate.check("BTCUSDT", reduces=True)
    with pytest.raises(Blocked) as no:
        gate.check("BTCUSDT")
    assert no.value.mode is Mode.REDUCE_ONLY


def test_a_freeze_of_another_node_leaves_the_fast_path_open(writer: GateWriter, gate: Gate) -> None:
    writer.update([freeze(scope="node:n2")], epoch=4, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert gate.is_open
    assert gate.snapshot().epoch == 4
    writer.update([freeze(scope="node:n1,symbol:A")], epoch=5, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert not gate.is_open
    assert not gate.allows("A")
    assert gate.allows("B")


VALUES = {name: ["n1", "n2"] if name == "node" else [f"{name}1", f"{name}2"] for name in PART_NAMES}
FREEZES = st.lists(
    st.tuples(
        st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}),
        st.sampled_from([Mode.REDUCE_ONLY, Mode.FROZEN]),
    ),
    max_size=5,
)
ORDERS = st.fixed_dictionaries({}, optional={n: st.sampled_from(v) for n, v in VALUES.items() if n != "node"})


def test_the_reader_agrees_with_the_flag(writer: GateWriter, gate: Gate) -> None:
    """For random freezes and orders the gate gives the mode that the flag gives for an order of this node."""

    @settings(max_examples=300, deadline=None)
    @given(FREEZES, st.lists(ORDERS, min_size=1, max_size=4))
    def agrees(specs: list[tuple[dict[str, str], Mode]], orders: list[dict[str, str]]) -> None:
        freezes = tuple(
            freeze(f"f{i}", ",".join(f"{n}:{v}" for n, v in parts.items()) or "global", mode)
            for i, (parts, mode) in enumerate(specs)
        )
        epoch = writer.state.epoch + 1
        writer.update(freezes, epoch=epoch, permit_deadline_ns=now_ns() + MINUTE_NS)
        flag = Flag("prod", epoch, freezes)
        for order in orders:
            expected = flag.mode_for({**order, "node": "n1"})
            assert gate.mode(**order) is expected
            assert gate.snapshot().mode_for(order) is expected
            assert gate.allows(**order) is (expected is Mode.ACTIVE)
            assert gate.allows(**order, reduces=True) is (expected is not Mode.FROZEN)

    agrees()


# ---- time


def test_bounded_stop_the_deadline_passes_by_itself(
    writer: GateWriter, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BOUNDED STOP: at the deadline, to the nanosecond, the fast and the slow path say no with nothing running."""
    deadline = open_up(writer)
    fast = ("B", deadline)
    scoped_until = deadline + 5
    for step, until in (fast, ("scoped", scoped_until)):
        if step == "scoped":
            writer.update([freeze(scope="symbol:A")], epoch=2, permit_deadline_ns=until)
        monkeypatch.setattr(reader, "clock_gettime_ns", lambda _clock, now=until - 1: now)
        assert gate.allows("B")
        monkeypatch.setattr(reader, "clock_gettime_ns", lambda _clock, now=until: now)
        assert not gate.allows("B", reduces=True)
        with pytest.raises(Blocked, match="has not renewed the node's permit") as no:
            gate.check("B")
        assert no.value.cause.trigger == "permit_expired"


def test_bounded_stop_a_killed_writer_leaves_a_gate_that_runs_out(path: Path) -> None:
    """BOUNDED STOP: the agent is SIGKILLed; no order passes after the last permit, though nothing of it runs."""
    process = start_writer(path, SECOND_NS // 2, renews=True)
    try:
        with Gate.open(path) as gate:
            assert wait_until(lambda: gate.is_open, what="an open gate")
            process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=10) == -signal.SIGKILL
            deadline = gate.snapshot().permit_deadline_ns
            wait_until(lambda: not gate.allows("A"), what="the permit running out")
            assert now_ns() >= deadline
            with pytest.raises(Blocked, match=r"its permit ran out \d+ ms ago"):
                gate.check("A")
    finally:
        finish(process)


def test_the_deadline_only_grows_except_to_zero(writer: GateWriter, gate: Gate) -> None:
    deadline = open_up(writer)
    writer.extend(deadline - SECOND_NS)
    writer.update([], epoch=2, permit_deadline_ns=deadline - SECOND_NS)
    assert gate.snapshot().open_until_ns == deadline
    writer.extend(deadline + SECOND_NS)
    assert gate.snapshot().open_until_ns == gate.snapshot().permit_deadline_ns == deadline + SECOND_NS
    writer.extend(0)
    assert not gate.allows("A")
    with pytest.raises(Blocked, match="it has no permit"):
        gate.check("A")


@pytest.mark.parametrize("nonsense", [float("nan"), 1e18, float("inf"), True, "soon", None])
def test_unknown_is_frozen_a_deadline_that_cannot_be_meant_closes(
    writer: GateWriter, gate: Gate, nonsense: object
) -> None:
    """UNKNOWN IS FROZEN: NaN is no deadline; the gate closes, the causes are on the page, and the caller is told."""
    open_up(writer)
    with pytest.raises(ValueError, match="the gate is closed"):
        writer.extend(nonsense)  # type: ignore[arg-type]
    assert not gate.allows("A")
    open_up(writer, epoch=2)
    with pytest.raises(ValueError, match="the gate is closed"):
        writer.update([freeze()], epoch=3, permit_deadline_ns=nonsense)  # type: ignore[arg-type]
    assert [cause.id for cause in gate.snapshot().causes] == ["f-1"]
    writer.extend(now_ns() + MINUTE_NS)
    assert not gate.allows("A")


def test_a_permit_more_than_an_hour_ahead_is_refused(writer: GateWriter, gate: Gate) -> None:
    with pytest.raises(ValueError, match="at most an hour ahead"):
        writer.update([], epoch=1, permit_deadline_ns=now_ns() + 2 * MAX_PERMIT_AHEAD_NS)
    assert not gate.is_open


def test_closed_early_stays_closed_until_the_next_change_and_counts_from_there(path: Path) -> None:
    """BOUNDED STOP: a freeze that is not understood yet lets nothing pass; what follows says what it was."""
    with GateWriter(path, cluster="prod", node="n1") as writer, Gate.open(path) as gate:
        deadline_ns = now_ns() + MINUTE_NS
        writer.update([], epoch=1, permit_deadline_ns=deadline_ns)
        before_ns = now_ns()
        writer.close_early()
        closed_ns = now_ns()
        assert not gate.allows("A")
        writer.update([freeze()], epoch=2, permit_deadline_ns=deadline_ns)
        assert before_ns <= writer.changed_at_ns <= closed_ns
        writer.update([], epoch=3, permit_deadline_ns=deadline_ns)
        assert gate.allows("A")
        assert writer.changed_at_ns > closed_ns, "the early moment belongs to one change only"
        writer.close_early()
        writer.extend(deadline_ns)
        assert gate.allows("A"), "what turned out to be nothing is lifted by the next renewal"


def test_changed_at_is_taken_after_the_gate_closed(path: Path) -> None:
    """How fast gates close is measured with this figure, so it may not be flattering."""
    passed_at: dict[int, bool] = {}
    gates: list[Gate] = []

    def clock() -> int:
        passes = bool(gates) and gates[0].allows("A")
        now = now_ns()
        passed_at[now] = passes
        return now

    with GateWriter(path, cluster="prod", node="n1", clock=clock) as writer, Gate.open(path) as gate:
        gates.append(gate)
        elsewhere = freeze("f-0", "symbol:Z")
        for epoch, before in ((2, []), (4, [elsewhere])):
            writer.update(before, epoch=epoch, permit_deadline_ns=now_ns() + MINUTE_NS)
            assert gate.allows("A")
            writer.update([*before, freeze()], epoch=epoch + 1, permit_deadline_ns=now_ns() + MINUTE_NS)
            assert passed_at[writer.changed_at_ns] is False
            assert gate.snapshot().changed_at_ns == writer.changed_at_ns <= now_ns()
        gates.clear()
        was = writer.changed_at_ns
        writer.extend(now_ns() + 2 * MINUTE_NS)
        assert writer.changed_at_ns == was


# ---- the writer's rules


def test_a_local_cause_closes_at_once_and_stays_until_the_flag_carries_it(writer: GateWriter, gate: Gate) -> None:
    open_up(writer)
    mine = freeze("local-1", "symbol:A")
    writer.close_now(mine)
    assert not gate.allows("A")
    assert gate.allows("B")
    open_up(writer, epoch=2)  # a flag that does not know of it yet
    assert not gate.allows("A")
    writer.update([freeze("local-1", "symbol:A", Mode.REDUCE_ONLY)], epoch=3, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert not gate.allows("A", reduces=True)  # a looser freeze of the same name does not take it over
    writer.update([mine], epoch=4, permit_deadline_ns=now_ns() + MINUTE_NS)
    open_up(writer, epoch=5)
    assert gate.is_open
    writer.close_now(mine)
    writer.lift_local("local-1")
    assert gate.is_open
    writer.close_now(freeze("elsewhere", "node:n2"))
    assert gate.is_open


def test_local_causes_are_limited_and_the_limit_freezes(writer: GateWriter, gate: Gate) -> None:
    for index in range(70):
        writer.close_now(freeze(f"l{index}", f"symbol:S{index}"))
    assert not gate.allows("other")
    for index in range(70):
        writer.lift_local(f"l{index}")
    open_up(writer, epoch=1)
    assert not gate.allows("other")
    writer.lift_local(LOCAL_LIMIT_ID)
    assert gate.is_open


def test_more_causes_than_rows_freeze_everything(writer: GateWriter, gate: Gate) -> None:
    many = [freeze(f"f{index}", f"symbol:S{index}", Mode.REDUCE_ONLY) for index in range(layout.MAX_ROWS + 1)]
    assert len(many) > MAX_FREEZES
    writer.update(many[:-1], epoch=1, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert gate.allows("other")
    writer.update(many, epoch=2, permit_deadline_ns=now_ns() + MINUTE_NS)
    with pytest.raises(Blocked, match="65 causes are in force and the gate page holds 64") as no:
        gate.check("other", reduces=True)
    assert no.value.cause.id == layout.STAND_IN_ID


def test_an_older_epoch_adds_causes_but_takes_none_away(writer: GateWriter, gate: Gate) -> None:
    writer.update([freeze("new", "symbol:A")], epoch=7, permit_deadline_ns=now_ns() + MINUTE_NS)
    deadline = gate.snapshot().permit_deadline_ns
    writer.update([freeze("old", "symbol:B")], epoch=6, permit_deadline_ns=now_ns() + 2 * MINUTE_NS)
    state = gate.snapshot()
    assert [cause.id for cause in state.causes] == ["new", "old"]
    assert (state.epoch, state.permit_deadline_ns) == (7, deadline)
    writer.update([], epoch=7, permit_deadline_ns=deadline)
    assert gate.is_open


def test_unknown_is_frozen_an_update_that_fails_freezes_until_one_succeeds(writer: GateWriter, gate: Gate) -> None:
    """UNKNOWN IS FROZEN: what could not be understood may have been a freeze."""
    open_up(writer)
    for broken in ([None], [freeze(), object()]):
        with pytest.raises(AttributeError):
            writer.update(broken, epoch=2, permit_deadline_ns=now_ns() + MINUTE_NS)  # type: ignore[arg-type]
        assert not gate.allows("A")
        writer.extend(now_ns() + MINUTE_NS)
        with pytest.raises(Blocked, match="gate_fault"):
            gate.check("A")
        open_up(writer, epoch=2)
        assert gate.is_open
    with pytest.raises(AttributeError):
        writer.close_now(None)  # type: ignore[arg-type]
    assert not gate.allows("A")
    with pytest.raises(ValueError, match="is no epoch"):
        writer.update([], epoch=-1, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert not gate.allows("A")


def test_an_interrupted_change_is_repaired_by_the_next_call(
    writer: GateWriter, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception between two stores leaves the gate blocking; the next call writes everything anew."""
    open_up(writer)
    whole = GateWriter._store
    left = [4]

    def failing(self: GateWriter, writes: tuple[layout.Write, ...]) -> None:
        for write in writes:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            whole(self, (write,))

    monkeypatch.setattr(GateWriter, "_store", failing)
    with pytest.raises(KeyboardInterrupt):
        writer.close_now(freeze("f-2", "symbol:A"))
    assert not gate.allows("B")
    monkeypatch.setattr(GateWriter, "_store", whole)
    writer.extend(now_ns() + MINUTE_NS)
    assert not gate.allows("A")
    open_up(writer, epoch=2)
    assert not gate.allows("A")
    assert gate.allows("B")


def test_bounded_stop_rows_that_an_interrupted_change_left_are_not_taken_for_known(
    writer: GateWriter, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BOUNDED STOP: a row of an interrupted change is overwritten when the old one comes back."""
    first, other = freeze("first", "symbol:A"), freeze("other", "symbol:B")
    writer.update([first], epoch=1, permit_deadline_ns=now_ns() + MINUTE_NS)
    whole = GateWriter._store

    def failing(self: GateWriter, writes: tuple[layout.Write, ...]) -> None:
        for write in writes:
            whole(self, (write,))
            if write.offset == layout.HEADER_BYTES:
                raise KeyboardInterrupt

    monkeypatch.setattr(GateWriter, "_store", failing)
    monkeypatch.setattr(GateWriter, "_fail", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        writer.update([other], epoch=2, permit_deadline_ns=now_ns() + MINUTE_NS)
    monkeypatch.undo()
    assert not gate.allows("C")
    writer.update([first], epoch=3, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert [cause.id for cause in gate.snapshot().causes] == ["first"]
    assert not gate.allows("A")
    assert gate.allows("B")


class Hooked:
    """The words of a page, with something that happens just before one of them is read for the first time."""

    def __init__(self, words: memoryview, word: int, happens: Callable[[], None]) -> None:
        self.words, self.word, self.happens, self.done = words, word, happens, False

    def __getitem__(self, word: int) -> int:
        if word == self.word and not self.done:
            self.done = True
            self.happens()
        return self.words[word]


@pytest.mark.parametrize("offset", [layout.SEQUENCE_OFFSET, layout.OPEN_UNTIL_OFFSET, layout.PERMIT_OFFSET])
def test_bounded_stop_a_change_in_the_middle_of_a_check_is_noticed(writer: GateWriter, gate: Gate, offset: int) -> None:
    """BOUNDED STOP: old rows are never judged with a deadline that came with new ones."""
    writer.update([freeze("f", "symbol:A")], epoch=1, permit_deadline_ns=now_ns() + MINUTE_NS)
    assert gate.allows("B")  # the rows of this epoch are decoded and kept now

    def change() -> None:
        writer.update([freeze("g", "symbol:B")], epoch=2, permit_deadline_ns=now_ns() + 2 * MINUTE_NS)

    page = gate._page
    assert page is not None
    hooked = Hooked(page.words, offset // layout.WORD_BYTES, change)
    page.words = hooked  # type: ignore[assignment]
    assert not gate.allows("B")
    assert hooked.done


def test_a_gate_that_is_moving_is_waited_for(writer: GateWriter, gate: Gate) -> None:
    """Between the first two stores of closing nothing passes, and a check waits so that it can tell the cause."""
    deadline = open_up(writer)
    writer._close_fast_word()
    began = time.perf_counter()
    with pytest.raises(Blocked) as no:
        gate.check("B")
    assert no.value.cause.trigger == "gate_moving"
    assert time.perf_counter() - began >= (reader.READ_TRIES - 1) * reader.RETRY_S
    timer = threading.Timer(0.0, lambda: writer.update([freeze("f", "symbol:A")], epoch=2, permit_deadline_ns=deadline))
    timer.start()
    wait_until(lambda: gate.allows("B"), what="the writer going on")
    timer.join()


def test_a_second_writer_is_refused_and_told_who_owns_the_gate(path: Path, writer: GateWriter, gate: Gate) -> None:
    open_up(writer)
    with pytest.raises(GateOwned, match=f"process {os.getpid()} writes the gate") as owned:
        GateWriter(path, cluster="prod", node="n1")
    assert owned.value.owner_pid == os.getpid()
    assert gate.is_open  # the refused one did not touch the page
    other = run_python(
        "import sys\nfrom killswitch.gate import GateWriter, GateOwned\n"
        "try: GateWriter(sys.argv[1], cluster='prod', node='n1')\nexcept GateOwned as no: print(no.owner_pid)",
        path,
    )
    assert other.communicate(timeout=20)[0] == f"{os.getpid()}\n"


def test_a_closed_writer_leaves_a_closed_gate_and_lets_go(path: Path, writer: GateWriter, gate: Gate) -> None:
    open_up(writer)
    writer.close()
    writer.close()
    with pytest.raises(Blocked, match="the agent has stopped") as no:
        gate.check("A")
    assert no.value.cause.trigger == "agent_stopped"
    for call in (
        lambda: writer.extend(now_ns() + MINUTE_NS),
        lambda: writer.update([], epoch=2, permit_deadline_ns=now_ns() + MINUTE_NS),
        lambda: writer.close_now(freeze()),
    ):
        with pytest.raises(GateError, match="is closed"):
            call()
    assert not writer.is_published
    with GateWriter(path, cluster="prod", node="n1") as second:
        open_up(second)
        assert gate.is_open  # the same inode: the reader needs no new mapping


def test_file_and_directory_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        page = tmp_path / "a" / "b" / "gate"
        GateWriter(page, cluster="prod", node="n1").close()
    finally:
        os.umask(before)
    assert page.stat().st_mode & 0o777 == 0o644
    assert page.parent.stat().st_mode & 0o777 == page.parent.parent.stat().st_mode & 0o777 == 0o755
    assert page.stat().st_size == layout.TOTAL_BYTES


def test_names_that_do_not_fit_are_refused(path: Path) -> None:
    for bad in ("", "é" * 33):
        with pytest.raises(ValueError, match="1 to 64 bytes"):
            GateWriter(path, cluster="prod", node=bad)
        with pytest.raises(ValueError, match="1 to 64 bytes"):
            GateWriter(path, cluster=bad, node="n1")
    assert not path.exists()


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    page = tmp_path / "gate"
    page.write_text("do not lose me")
    with pytest.raises(GateUnavailable, match="not a gate page"):
        GateWriter(page, cluster="prod", node="n1")
    assert page.read_text() == "do not lose me"


def test_a_page_of_another_layout_is_closed_before_it_is_replaced(path: Path, writer: GateWriter) -> None:
    """The words up to the permit stand still in all versions, so its readers stop, look, and find the new page."""
    open_up(writer)
    with Gate.open(path) as old_reader, path.open("r+b") as file:
        old_map = mmap.mmap(file.fileno(), layout.TOTAL_BYTES)
        writer._words.release()  # the old agent dies without closing
        writer._map.close()
        os.close(writer._fd)
        writer._closed = True
        old_map[8:16] = (2).to_bytes(8, "little")
        assert old_reader.is_open
        with GateWriter(path, cluster="prod", node="n1") as newer:
            assert not old_reader.allows("A")
            assert old_map[layout.OPEN_UNTIL_OFFSET :][:8] == old_map[layout.PERMIT_OFFSET :][:8] == bytes(8)
            open_up(newer)
            assert old_reader.allows("A")
            assert old_reader.is_open


# ---- the file, and other processes


def test_the_reader_sees_closing_from_another_process(path: Path, writer: GateWriter) -> None:
    open_up(writer)
    code = """
import sys, time
from killswitch import Blocked, Gate
gate = Gate.open(sys.argv[1], wait_s=5)
assert gate.allows("A")
print("open", flush=True)
give_up = time.monotonic() + 20
while gate.allows("A") and time.monotonic() < give_up:
    pass
while time.monotonic() < give_up:
    try:
        gate.check("A")
    except Blocked as no:
        if no.cause.id == "stop":
            print(no.cause.id, no.epoch, flush=True)
            break
        # A writer that is preempted in the middle of closing blocks before it can say why.
        assert no.cause.trigger in ("gate_moving", "gate_unreadable"), no
    else:
        print("passed after it was blocked", flush=True)
        break
"""
    process = run_python(code, path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        writer.update([freeze("stop")], epoch=2, permit_deadline_ns=now_ns() + MINUTE_NS)
        assert process.communicate(timeout=30)[0] == "stop 2\n"
    finally:
        finish(process)


def test_unknown_is_frozen_a_writer_killed_in_the_middle_blocks_until_the_next_repairs(path: Path) -> None:
    """UNKNOWN IS FROZEN: every prefix of a change of a dead writer, on a live page; the next writer repairs it."""
    with GateWriter(path, cluster="prod", node="n1") as first:
        first.update([freeze(scope="symbol:A")], epoch=1, permit_deadline_ns=now_ns() + MINUTE_NS)
        writer_state = first.state
        new = layout.GateState(
            cluster="prod",
            node="n1",
            epoch=2,
            causes=layout.fit_causes([layout.Cause("g", GLOBAL, Mode.FROZEN, "manual", "why")]),
            permit_deadline_ns=writer_state.permit_deadline_ns,
        )
        writes = layout.plan_update(writer_state, new)
        whole = path.read_bytes()
    for count in range(1, len(writes) + 1):
        torn = bytearray(whole)
        for offset, value in writes[:count]:
            raw = value.to_bytes(8, "little") if isinstance(value, int) else value
            torn[offset : offset + len(raw)] = raw
        with path.open("r+b") as file:
            file.write(torn)
        with Gate.open(path) as gate:
            assert not gate.allows("B", reduces=True), count
            with GateWriter(path, cluster="prod", node="n1") as second:
                assert not gate.allows("B", reduces=True)
                open_up(second)
                assert gate.is_open
                assert gate.snapshot().epoch == 1


def test_a_dead_writers_page_is_taken_over_in_place(path: Path) -> None:
    process = start_writer(path, MINUTE_NS, renews=False)
    try:
        inode = path.stat().st_ino
        with Gate.open(path) as gate:
            assert gate.is_open
            with pytest.raises(GateOwned, match=f"process {process.pid} "):
                GateWriter(path, cluster="prod", node="n1")
            process.kill()
            process.wait(timeout=10)
            assert gate.is_open  # its permit is still good
            with GateWriter(path, cluster="prod", node="n1") as second:
                assert path.stat().st_ino == inode
                assert not gate.allows("A")
                open_up(second)
                assert gate.is_open
    finally:
        finish(process)


def test_unknown_is_frozen_a_deleted_page_blocks_and_a_new_one_is_found(
    path: Path, writer: GateWriter, gate: Gate
) -> None:
    """UNKNOWN IS FROZEN: no file, no order; when another file stands there the reader moves over by itself."""
    open_up(writer)
    path.unlink()
    assert not writer.is_published
    assert gate.allows("A")  # its writer lives and renews
    writer.close()
    with pytest.raises(Blocked, match=r"there is no gate page at .*start the agent") as no:
        gate.check("A")
    assert no.value.cause.trigger == "gate_missing"
    with pytest.raises(Blocked):
        gate.snapshot()
    with GateWriter(path, cluster="prod", node="n1") as second:
        with pytest.raises(Blocked, match="agent_start"):
            gate.check("A")
        open_up(second)
        assert gate.is_open
        assert gate.allows("A")
        assert gate.snapshot().writer_instance == second.state.writer_instance


def test_unknown_is_frozen_a_page_replaced_by_rubbish_blocks(path: Path, writer: GateWriter, gate: Gate) -> None:
    """UNKNOWN IS FROZEN: the file at the path is no page; the reader stays closed and says what is wrong."""
    writer.close()
    rubbish = path.with_name("rubbish")
    rubbish.write_bytes(b"x" * layout.TOTAL_BYTES)
    rubbish.replace(path)
    with pytest.raises(Blocked, match="not a gate page"):
        gate.check("A")


def test_unknown_is_frozen_no_order_passes_on_a_truncated_page(path: Path, writer: GateWriter) -> None:
    """UNKNOWN IS FROZEN: a live page that is truncated kills its reader with SIGBUS; a dead router sends nothing."""
    open_up(writer)
    code = """
import sys
from killswitch import Gate
gate = Gate.open(sys.argv[1])
assert gate.allows("A")
print("open", flush=True)
sys.stdin.readline()
print("passed" if gate.allows("A") else "blocked", flush=True)
"""
    process = run_python(code, path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        os.truncate(path, 0)
        said, _ = process.communicate("go\n", timeout=20)
        assert (said, process.returncode) in {("", -signal.SIGBUS), ("blocked\n", 0)}
    finally:
        os.truncate(path, layout.TOTAL_BYTES)  # or the writer of this test would die of it, too
        finish(process)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda p: p.unlink(), "there is no gate page at .*start the agent"),
        (lambda p: os.truncate(p, 100), "100 bytes.*start the agent"),
        (lambda p: _patch(p, 0, b"NOTAGATE"), "not a gate page"),
        (lambda p: _patch(p, layout.OFFSET["layout_version"], b"\x09"), "layout version 9, and this program reads"),
        (lambda p: _patch(p, layout.OFFSET["clock_id"], b"\x00"), "deadlines are on clock 0"),
        (lambda p: _patch(p, layout.OFFSET["boot_id"], b"\x01\x02\x03"), "before this machine started"),
    ],
)
def test_unknown_is_frozen_a_page_that_cannot_be_trusted_is_unavailable(
    path: Path, spoil: object, sentence: str
) -> None:
    """UNKNOWN IS FROZEN: missing, short, foreign, of another layout, clock or boot: a sentence, no gate."""
    GateWriter(path, cluster="prod", node="n1").close()
    spoil(path)  # type: ignore[operator]
    with pytest.raises(GateUnavailable, match=sentence):
        Gate.open(path)


def _patch(path: Path, at: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value)


def test_a_router_can_wait_for_its_agent(path: Path) -> None:
    made: list[GateWriter] = []
    timer = threading.Timer(0.1, lambda: made.append(GateWriter(path, cluster="prod", node="n1")))
    timer.start()
    with Gate.open(path, wait_s=20) as gate:
        assert not gate.allows("A")
    timer.join()
    made[0].close()


def test_a_closed_reader_blocks_and_never_crashes(writer: GateWriter, gate: Gate) -> None:
    open_up(writer)
    answers: list[bool] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(gate.allows("A"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) > 100, what="answers")
    gate.close()
    gate.close()
    count = len(answers)
    wait_until(lambda: len(answers) > count + 100, what="answers after the close")
    stop.set()
    for thread in threads:
        thread.join()
    assert answers[0] is True
    assert not gate.allows("A")
    assert not gate.is_open
    assert gate.mode() is Mode.FROZEN
    with pytest.raises(Blocked, match="was closed"):
        gate.check()
    with pytest.raises(Blocked, match="was closed"):
        gate.snapshot()


HAMMER = """
import sys
from killswitch.clock import now_ns
from killswitch.core.flag import Freeze
from killswitch.core.modes import Mode
from killswitch.core.scopes import Scope
from killswitch.gate import GateWriter
def freezes(name, count, mode):
    scope = Scope.parse(f"symbol:{name}")
    return [Freeze(f"{name}{i}", scope, mode, name, name * 100, name, name) for i in range(count)]
states = freezes("A", 9, Mode.FROZEN), freezes("B", 5, Mode.REDUCE_ONLY)
writer = GateWriter(sys.argv[1], cluster="prod", node="n1")
epoch = 0
while True:
    for state in states:
        epoch += 1
        writer.update(state, epoch=epoch, permit_deadline_ns=now_ns() + 60 * 10**9)
        if epoch == 2:
            print("ready", flush=True)
"""


def test_a_reader_never_sees_a_mix_of_two_states(path: Path) -> None:
    """A writer process changes the page as fast as it can; for a second no snapshot and no verdict mixes two states."""
    process = run_python(HAMMER, path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        seen = {"A": 0, "B": 0}
        epochs: list[int] = []
        with Gate.open(path) as gate:

            def look() -> bool:
                assert not gate.allows(), "nothing unstated may pass in either state"
                try:
                    state = gate.snapshot()
                except Blocked:  # allowed: no whole copy within the tries
                    return False
                name = "A" if state.epoch % 2 else "B"
                assert {cause.trigger for cause in state.causes} == {name}
                assert [cause.id for cause in state.causes] == [f"{name}{i}" for i in range(9 if name == "A" else 5)]
                assert state.mode is (Mode.FROZEN if name == "A" else Mode.REDUCE_ONLY)
                assert state.open_until_ns == 0
                seen[name] += 1
                epochs.append(state.epoch)
                return True

            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                look()
            wait_until(lambda: look() and min(seen.values()) > 0, what="both states")
            wait_until(lambda: look() and epochs[-1] > epochs[0] + 10, what="a page that goes on changing")
    finally:
        finish(process)


def test_many_threads_may_write_and_read(writer: GateWriter, gate: Gate) -> None:
    """Renewals and updates from several threads: a global freeze of the newest epoch is never lost."""
    open_up(writer)
    stop = threading.Event()

    def renew() -> None:
        while not stop.is_set():
            writer.extend(now_ns() + MINUTE_NS)

    def stale() -> None:
        while not stop.is_set():
            writer.update([], epoch=1, permit_deadline_ns=now_ns() + MINUTE_NS)

    threads = [threading.Thread(target=target) for target in (renew, renew, stale)]
    for thread in threads:
        thread.start()
    try:
        writer.update([freeze()], epoch=2, permit_deadline_ns=now_ns() + MINUTE_NS)
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            assert not gate.allows("A", reduces=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_router_imports_the_standard_library_only() -> None:
    code = """
import sys
before = set(sys.modules)
from killswitch import Gate
import killswitch.gate
foreign = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"killswitch"}
print(sorted(foreign))
"""
    process = run_python(code)
    assert process.communicate(timeout=20)[0] == "[]\n"
    assert killswitch.Gate is Gate

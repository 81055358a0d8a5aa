"""The gate page as bytes: every interrupted prefix of every change is safe, and the documents agree with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from killswitch.core.modes import Mode
from killswitch.core.scopes import GLOBAL, PART_NAMES, Scope
from killswitch.gate import layout
from killswitch.gate.layout import Cause, GateState, PageError, TornPage, Write

ROOT = Path(__file__).parents[3]
NODE = "n1"
PREFIX = layout.encode_prefix(7, b"b" * 16)
NOW = 1_000

VALUES = {name: (NODE, "n2") if name == "node" else (f"{name}1", f"{name}2", "é:x") for name in PART_NAMES}
PARTS = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()})
SCOPES = PARTS.map(lambda parts: Scope(tuple((name, parts[name]) for name in PART_NAMES if name in parts)))
ORDERS = st.fixed_dictionaries({}, optional={n: st.sampled_from(v) for n, v in VALUES.items() if n != "node"})
CAUSES = st.builds(
    Cause,
    id=st.text(min_size=1, max_size=16),
    scope=SCOPES,
    mode=st.sampled_from([Mode.REDUCE_ONLY, Mode.FROZEN]),
    trigger=st.sampled_from(["manual", "drawdown"]),
    reason=st.text(max_size=200),
)
# Few figures, close together, so that states collide in every way: before, at and after the moment of the order.
DEADLINES = st.sampled_from([0, NOW - 1, NOW, NOW + 1, NOW + 2, NOW + 50])
STATES = st.builds(
    lambda causes, epoch, deadline, instance: GateState(
        cluster="c",
        node=NODE,
        epoch=epoch,
        causes=layout.fit_causes(causes),
        permit_deadline_ns=deadline,
        open_until_ns=0 if causes else deadline,
        writer_pid=1,
        writer_instance=instance,
    ),
    st.one_of(st.just([]), st.lists(CAUSES, max_size=3)),
    st.integers(1, 3),
    DEADLINES,
    st.sampled_from([7, 7, 8]),
)
TIMES = (NOW - 2, NOW - 1, NOW, NOW + 1, NOW + 2, NOW + 49, NOW + 50)


def apply(page: bytearray, write: Write) -> None:
    raw = write.value.to_bytes(8, "little") if isinstance(write.value, int) else write.value
    page[write.offset : write.offset + len(raw)] = raw


def page_of(state: GateState) -> bytearray:
    """A page that says ``state``, made the way in which a writer makes it."""
    page = bytearray(layout.TOTAL_BYTES)
    closed = replace(state, permit_deadline_ns=0, open_until_ns=0)
    for write in layout.plan_takeover(bytes(page), closed, PREFIX):
        apply(page, write)
    for write in layout.plan_update(layout.decode(bytes(page)), state):
        apply(page, write)
    return page


def prefixes(page: bytearray, writes: Sequence[Write]) -> Iterator[tuple[int, bytes]]:
    """Every page that a writer can leave when it dies, with the number of whole stores; runs of bytes tear in half."""
    torn = bytearray(page)
    yield 0, bytes(torn)
    for count, write in enumerate(writes, 1):
        if isinstance(write.value, bytes):
            apply(torn, Write(write.offset, write.value[: len(write.value) // 2]))
            yield count - 1, bytes(torn)
        apply(torn, write)
        yield count, bytes(torn)


def admits(page: bytes, now_ns: int, order: Mapping[str, str | None], reduces: bool) -> bool:
    """What a reader does, fast path and slow path, on a page that stands still."""
    if now_ns < layout.word_at(page, layout.OPEN_UNTIL_OFFSET):
        return True
    try:
        mode = layout.judge(layout.decode(page), now_ns, order).mode
    except PageError:
        return False
    return mode is Mode.ACTIVE or (mode is Mode.REDUCE_ONLY and reduces)


@settings(max_examples=400, deadline=None)
@given(STATES, STATES, st.lists(ORDERS, min_size=1, max_size=3), st.booleans())
def test_bounded_stop_no_interrupted_prefix_of_an_update_is_looser(
    old: GateState, new: GateState, orders: list[dict[str, str | None]], reduces: bool
) -> None:
    """BOUNDED STOP: before the first store an order passes as under old, after it only as under new."""
    page, target = page_of(old), page_of(new)
    writes = layout.plan_update(layout.decode(bytes(page)), new)
    for done, torn in prefixes(page, writes):
        for order in orders:
            for now_ns in TIMES:
                if admits(torn, now_ns, order, reduces):
                    reference = bytes(page if done == 0 else target)
                    assert admits(reference, now_ns, order, reduces), (done, writes, order, now_ns)
    finished = bytearray(page)
    for write in writes:
        apply(finished, write)
    state = layout.decode(bytes(finished))
    assert replace(state, sequence=0, changed_at_ns=0) == replace(new, sequence=0, changed_at_ns=0)


@settings(max_examples=200, deadline=None)
@given(STATES, STATES, STATES, st.data())
def test_unknown_is_frozen_a_writer_that_died_in_the_middle_is_repaired_without_opening(
    old: GateState, new: GateState, next_one: GateState, data: st.DataObject
) -> None:
    """UNKNOWN IS FROZEN: after the two closing stores of a takeover nothing passes, whatever the page held."""
    page = page_of(old)
    dead = data.draw(st.sampled_from(list(prefixes(page, layout.plan_update(layout.decode(bytes(page)), new)))))[1]
    closed = replace(next_one, permit_deadline_ns=0, open_until_ns=0)
    for done, torn in prefixes(bytearray(dead), layout.plan_takeover(dead, closed, PREFIX)):
        for now_ns in TIMES:
            if admits(torn, now_ns, {}, True):
                assert done < 2
                assert admits(dead, now_ns, {}, True)
    assert layout.decode(torn) == replace(closed, sequence=layout.decode(torn).sequence)
    assert layout.decode(torn).sequence > layout.word_at(dead, layout.SEQUENCE_OFFSET)


def test_closing_is_one_store_of_the_fast_word_and_it_is_the_first() -> None:
    """BOUNDED STOP: a change that closes stores 0 in the fast word first; one that opens fills it last."""
    is_open = GateState(cluster="c", node=NODE, epoch=1, permit_deadline_ns=NOW, open_until_ns=NOW)
    cause = Cause("f", GLOBAL, Mode.FROZEN, "manual", "why")
    shut = replace(is_open, epoch=2, causes=(cause,), open_until_ns=0)
    assert layout.plan_update(is_open, shut)[0] == Write(layout.OPEN_UNTIL_OFFSET, 0)
    assert layout.plan_update(shut, is_open)[-1] == Write(layout.OPEN_UNTIL_OFFSET, NOW)


def test_a_renewal_is_words_only_and_leaves_the_sequence_alone() -> None:
    old = GateState(cluster="c", node=NODE, epoch=1, permit_deadline_ns=NOW, open_until_ns=NOW, heartbeat_ns=1)
    new = replace(old, permit_deadline_ns=NOW + 5, open_until_ns=NOW + 5, heartbeat_ns=2)
    assert [write.offset for write in layout.plan_update(old, new)] == [
        layout.PERMIT_OFFSET,
        layout.HEARTBEAT_OFFSET,
        layout.OPEN_UNTIL_OFFSET,
    ]


@settings(max_examples=200, deadline=None)
@given(STATES)
def test_a_page_reads_back_as_it_was_written(state: GateState) -> None:
    decoded = layout.decode(bytes(page_of(state)))
    assert replace(decoded, sequence=0, changed_at_ns=0) == state


@settings(max_examples=200, deadline=None)
@given(CAUSES)
def test_a_row_reads_back_and_only_the_reason_may_be_cut(cause: Cause) -> None:
    (fitted,) = layout.fit_causes([cause])
    assert replace(fitted, reason="") == replace(cause, reason="")
    assert fitted.reason == cause.reason or (
        fitted.reason.endswith("…") and cause.reason.startswith(fitted.reason[:-1])
    )
    assert len(fitted.reason.encode()) <= 160


@pytest.mark.parametrize(
    "causes",
    [
        pytest.param([Cause(f"f{i}", Scope.parse("symbol:A"), Mode.REDUCE_ONLY, "t", "r") for i in range(65)], id="65"),
        pytest.param([Cause("é" * 40, Scope.parse("symbol:A"), Mode.REDUCE_ONLY, "t", "r")], id="long id"),
        pytest.param([Cause("f", Scope.parse("symbol:A"), Mode.REDUCE_ONLY, "é" * 20, "r")], id="long trigger"),
        pytest.param([Cause("f", Scope((("symbol", "A" * 300),)), Mode.REDUCE_ONLY, "t", "r")], id="long scope"),
        pytest.param(
            [Cause("f", Scope((("symbol", "A,venue:B"),)), Mode.FROZEN, "t", "r")], id="scope of two readings"
        ),
        pytest.param([Cause("\ud800", Scope.parse("symbol:A"), Mode.FROZEN, "t", "r")], id="id is no text"),
    ],
)
def test_unknown_is_frozen_what_does_not_fit_the_page_freezes_everything(causes: list[Cause]) -> None:
    """UNKNOWN IS FROZEN: a cause is never left out; one global freeze that says so stands for all."""
    (stand_in,) = layout.fit_causes(causes)
    assert (stand_in.id, stand_in.scope, stand_in.mode) == (layout.STAND_IN_ID, GLOBAL, Mode.FROZEN)
    assert "frozen" in stand_in.reason


def test_unknown_is_frozen_a_page_with_a_flipped_bit_is_never_looser() -> None:
    """UNKNOWN IS FROZEN: no flipped bit of the guarded bytes or of the rows in use lets an order pass."""
    cause = Cause("f", Scope.parse("symbol:A"), Mode.FROZEN, "manual", "why")
    state = GateState(cluster="c", node=NODE, epoch=1, causes=(cause,), permit_deadline_ns=NOW)
    page = page_of(state)
    guarded = range(layout.SEQUENCE_OFFSET, layout.GUARDED_END)
    row = range(layout.HEADER_BYTES, layout.HEADER_BYTES + layout.ROW_BYTES, 3)
    for at in (*guarded, *row):
        damaged = bytearray(page)
        damaged[at] ^= 1 << at % 8
        assert not admits(bytes(damaged), NOW - 1, {"symbol": "A"}, True), at
        with pytest.raises(PageError):
            layout.decode(bytes(damaged))


def test_unknown_is_frozen_a_row_of_an_unknown_kind_counts_as_a_global_freeze() -> None:
    """UNKNOWN IS FROZEN: a later version's scope part or mode restricts something, so it freezes."""
    cause = Cause("f", Scope.parse("symbol:A"), Mode.REDUCE_ONLY, "manual", "why")
    for damage in (lambda row: row.replace(b"symbol:A", b"bookie:A"), lambda row: b"\x09" + row[1:]):
        page = page_of(GateState(cluster="c", node=NODE, epoch=1, causes=(cause,), permit_deadline_ns=NOW))
        row = damage(bytes(page[layout.HEADER_BYTES : layout.HEADER_BYTES + layout.ROW_BYTES]))
        page[layout.HEADER_BYTES : layout.HEADER_BYTES + layout.ROW_BYTES] = row
        guarded = bytes(page[layout.GUARDED_START : layout.GUARDED_END])
        sequence = layout.word_at(bytes(page), layout.SEQUENCE_OFFSET)
        apply(page, Write(layout.CHECK_OFFSET, layout.checksum(sequence, guarded, row)))
        assert layout.judge(layout.decode(bytes(page)), NOW - 1, {"symbol": "B"}).mode is Mode.FROZEN


def test_an_odd_sequence_is_torn_and_a_foreign_page_is_named() -> None:
    page = page_of(GateState(cluster="c", node=NODE))
    apply(page, Write(layout.SEQUENCE_OFFSET, layout.word_at(bytes(page), layout.SEQUENCE_OFFSET) + 1))
    with pytest.raises(TornPage, match="odd"):
        layout.decode(bytes(page))
    with pytest.raises(PageError, match="no gate page"):
        layout.decode(bytes(layout.TOTAL_BYTES))
    with pytest.raises(PageError, match="clock 7"):
        layout.check_prefix(bytes(page), clock_id=1, boot_id=b"b" * 16)
    with pytest.raises(PageError, match="before this machine started"):
        layout.check_prefix(bytes(page), clock_id=7, boot_id=b"x" * 16)


def test_a_big_endian_host_is_refused_with_a_sentence() -> None:
    with pytest.raises(PageError, match="big-endian"):
        layout.require_little_endian("big")


@pytest.mark.parametrize("fields", [layout.HEADER_FIELDS, layout.ROW_FIELDS], ids=["header", "row"])
def test_fields_are_aligned_do_not_overlap_and_end_inside(fields: tuple[layout.Field, ...]) -> None:
    room = layout.ROW_BYTES if fields is layout.ROW_FIELDS else layout.HEADER_BYTES
    for field, following in zip(fields, (*fields[1:], layout.Field("end", room, 0)), strict=True):
        assert field.offset + field.size <= following.offset, field
        assert field.offset % min(field.size, 8) == 0, field


def test_the_fast_word_has_a_cache_line_of_its_own() -> None:
    assert layout.OPEN_UNTIL_OFFSET % 64 == 0
    line = range(layout.OPEN_UNTIL_OFFSET, layout.OPEN_UNTIL_OFFSET + 64)
    assert [field.name for field in layout.HEADER_FIELDS if field.offset in line] == ["open_until_ns"]
    assert all(f.offset + f.size <= line.start for f in layout.HEADER_FIELDS if f.offset < line.start)


def test_the_structs_pack_to_the_offsets_of_the_table() -> None:
    """The words that are packed in one go stand where the table says, one by one."""
    state = GateState(
        cluster="cl", node="nd", epoch=11, changed_at_ns=13, writer_pid=14, writer_instance=15, heartbeat_ns=16
    )
    page = bytes(page_of(state))
    expected = {"layout_version": 1, "total_bytes": 36864, "clock_id": 7, "epoch": 11, "row_count": 0}
    expected |= {"changed_at_ns": 13, "writer_pid": 14, "writer_instance": 15, "node_bytes": 2, "cluster_bytes": 2}
    expected |= {"heartbeat_ns": 16, "mode": 0}
    for name, value in expected.items():
        assert layout.word_at(page, layout.OFFSET[name]) == value, name
    assert page[layout.OFFSET["boot_id"] :][:16] == b"b" * 16
    assert page[layout.OFFSET["node"] :][:2] == b"nd"
    assert page[layout.OFFSET["cluster"] :][:2] == b"cl"
    assert page[:8] == b"KSGATE01"


def test_the_tables_in_docs_gate_md_are_the_layout() -> None:
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", text, flags=re.MULTILINE)
    documented = [layout.Field(name, int(offset), int(size)) for name, offset, size in rows]
    assert documented == [*layout.HEADER_FIELDS, *layout.ROW_FIELDS]


def test_the_offsets_in_the_c_header_are_the_layout() -> None:
    text = (ROOT / "deploy" / "gate" / "killswitch_gate.h").read_text(encoding="utf-8")
    defined = {name: int(at) for name, at in re.findall(r"^#define KS_AT_(\w+) (\d+)u$", text, flags=re.MULTILINE)}
    assert defined == {field.name: field.offset for field in (*layout.HEADER_FIELDS, *layout.ROW_FIELDS)}
    assert f"#define KS_GUARDED_END {layout.GUARDED_END}u" in text
    assert f"#define KS_MAGIC 0x{int.from_bytes(layout.MAGIC, 'little'):x}ULL" in text

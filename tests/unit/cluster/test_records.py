"""What is stored: every record comes back as it went in, and what cannot be read is said so, with its key."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from killswitch.cluster.records import (
    AckRecord,
    CertificateRecord,
    ClusterViewRecord,
    FlagRecord,
    FreezeRecord,
    HistoryRecord,
    LeaderRecord,
    LiveRecord,
    NodeRecord,
    Record,
    ReportRecord,
    TermRecord,
    UnreadableRecord,
    json_values,
    mode_name,
    read_flag,
)
from killswitch.core.certificate import KnownNode
from killswitch.core.flag import Flag, Freeze, add, forget, initial, lift
from killswitch.core.history import verify
from killswitch.core.modes import Mode
from tests.unit.core.test_core_flag import AT, FREEZES, GROUPS, a_freeze, flag_of

LAW = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
KEY = "/killswitch/c/flag"

A_FREEZE = {
    "id": "f1",
    "scope": "global",
    "mode": "FROZEN",
    "trigger": "manual",
    "reason": "why",
    "actor": "operator:ann",
    "at": AT,
    "metadata": {"figure": 12.5},
}
RECORDS: list[Record] = [
    FlagRecord(cluster="c", epoch=2, mode="FROZEN", freezes=[FreezeRecord(**A_FREEZE)], head="a" * 64, parent="b" * 64),
    HistoryRecord(
        cluster="c", epoch=2, kind="freeze", actor="a", at=AT, reason="r", added=[FreezeRecord(**A_FREEZE)], lifted=[],
        in_force=[FreezeRecord(**A_FREEZE)], previous_hash="b" * 64, hash="a" * 64,
    ),
    HistoryRecord(
        cluster="c", epoch=3, kind="forget", actor="a", at=AT, reason="r", added=[], lifted=[], in_force=[],
        previous_hash="b" * 64, hash="a" * 64, forgotten={"node": "n2", "report": None},
    ),
    NodeRecord(node="n1", permit_ttl_ms=2000, build="1", limits_hash="x", address="h", registered_at=AT),
    LiveRecord(node="n1", instance="i", pid=7, boot_id="b", gate="/g", started_at=AT),
    ReportRecord.model_validate(
        {
            "node": "n1", "instance": "i", "report": 3, "at": AT, "mode": "ACTIVE", "epoch": 0, "permit_ms_left": 900,
            "holdings": {"BTC": {"quantity": -1.5, "mark_price_usd": 2.0, "notional_usd": -3.0}},
            "gross_usd": 3.0, "net_usd": -3.0, "pnl_usd": 0.1, "working_orders": 2, "working_notional_usd": 4.0,
            "utilization_pct": None, "last_sequence": None,
            "routers": [
                {"router": "r", "instance": "x", "state": "live", "orphaned_orders": 0, "exposure": {"BTC": [1, 2.5]}}
            ],
        }
    ),
    AckRecord.model_validate(
        {
            "node": "n1", "instance": "i", "epoch": 2, "freezes": ["f1"], "mode": "FROZEN", "complete": True,
            "orders_cancelled": 1, "orders_failed": 0, "orders_open": 0, "last_sequence": 9, "at": AT,
            "routers": [{"router": "r", "state": "ended", "working_orders": 0, "last_sequence": None}],
        }
    ),
    LeaderRecord(id="c1", instance="i", term=1, since=AT),
    TermRecord(term=0),
    CertificateRecord(
        epoch=2, freezes=["f1"], stopped=True, flat=False, elapsed_ms=3.5, stopped_after_ms=None,
        nodes=[{"node": "n1", "state": "ACKED", "gated_ms": 1.5}], freeze=FreezeRecord(**A_FREEZE), collected_by="c1",
        term=1, at=AT, final=True,
    ),
    ClusterViewRecord(
        term=1, at=AT, gross_usd=1.0, net_usd=-1.0, pnl_usd=0.0, pnl_peak_usd=5.0, drawdown_usd=5.0, lost_nodes=["n1"],
        accepted={"gross_notional": 1.5},
    ),
]  # fmt: skip
BY_NAME = pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)


def test_every_kind_of_record_is_tried_here() -> None:
    """No record escapes these tests: each class that can be stored has an example above."""
    assert {type(record) for record in RECORDS} == set(Record.__subclasses__())


@BY_NAME
def test_every_record_comes_back_as_it_went_in(record: Record) -> None:
    """A record goes through its bytes unchanged, on one line that a person can read."""
    value = record.to_bytes()
    assert type(record).from_bytes(value, key="k") == record
    assert b"\n" not in value
    assert json.loads(value)["v"] == 1
    assert json_values(record) == json.loads(value)


def _edited(record: Record, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    body = json.loads(record.to_bytes())
    edit(body)
    return json.dumps(body).encode()


@BY_NAME
@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda body: body.update(v=2), id="unknown version"),
        pytest.param(lambda body: body.update(v="1"), id="version of another type"),
        pytest.param(lambda body: body.pop("v"), id="no version"),
        pytest.param(lambda body: body.update(surprise=1), id="unknown field"),
        pytest.param(lambda body: body.pop(next(name for name in body if name != "v")), id="missing field"),
    ],
)
def test_a_record_of_another_shape_is_unreadable(record: Record, edit: Callable[[dict[str, Any]], Any]) -> None:
    """UNKNOWN IS FROZEN: another version, an unknown or a missing field is never read as an empty default."""
    with pytest.raises(UnreadableRecord, match=r"^key /some/key cannot be read \("):
        type(record).from_bytes(_edited(record, edit), key="/some/key")


@BY_NAME
def test_every_field_has_a_type_that_is_kept_to(record: Record) -> None:
    """UNKNOWN IS FROZEN: no field takes a value of another type, not even a number as text or a truth as 1."""
    for name, value in json.loads(record.to_bytes()).items():
        wrong: Any = "1" if not isinstance(value, str) else 1
        with pytest.raises(UnreadableRecord, match=rf"cannot be read \({name}"):
            type(record).from_bytes(_edited(record, lambda body, n=name, w=wrong: body.update({n: w})), key="k")


@BY_NAME
@pytest.mark.parametrize(
    "value",
    [None, b"", b"null", b"[]", b"{}", b'"FROZEN"', b"\x00\xff\xfe", b"\x80abc", b"{" * 5000, b'{"v": 1', b"{} {}"],
)
def test_what_is_no_record_is_unreadable(record: Record, value: bytes | None) -> None:
    """UNKNOWN IS FROZEN: nothing, another JSON value, binary data and cut JSON are all said to be unreadable."""
    with pytest.raises(UnreadableRecord, match="key /some/key cannot be read"):
        type(record).from_bytes(value, key="/some/key")


@BY_NAME
def test_a_record_cut_anywhere_is_unreadable(record: Record) -> None:
    """UNKNOWN IS FROZEN: no prefix of a record is taken for the record."""
    value = record.to_bytes()
    for length in range(len(value)):
        with pytest.raises(UnreadableRecord):
            type(record).from_bytes(value[:length], key="k")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_unreadable_at_any_depth(word: str) -> None:
    """UNKNOWN IS FROZEN: NaN and infinity, which could be read but never be hashed or written again, are refused."""
    flag = RECORDS[0].to_bytes()
    for spoilt in (flag.replace(b"12.5", word.encode()), flag.replace(b"12.5", f'[{{"x": {word}}}]'.encode())):
        assert spoilt != flag
        with pytest.raises(UnreadableRecord, match=r"cannot be read \(freezes.0.metadata"):
            read_flag(spoilt, key=KEY, cluster="c")
    report = next(record for record in RECORDS if isinstance(record, ReportRecord))
    for number in (b":0.1", b":-3.0", b"2.5"):
        spoilt = report.to_bytes().replace(number, number[:1].strip(b"2") + word.encode())
        assert spoilt != report.to_bytes()
        with pytest.raises(UnreadableRecord):
            ReportRecord.from_bytes(spoilt, key="k")


# -- the flag --------------------------------------------------------------------------------------------------------


@LAW
@given(GROUPS)
def test_a_flag_comes_back_from_the_store_as_it_was(group: list[Freeze]) -> None:
    """NOTHING IS LOST: a flag with any causes goes through its bytes unchanged, in the order that hashing saw."""
    flag = flag_of(group)
    found = read_flag(FlagRecord.from_core(flag).to_bytes(), key=KEY, cluster="c")
    assert found == flag
    assert [cause.canonical() for cause in found.freezes] == [cause.canonical() for cause in flag.freezes]


@LAW
@given(st.lists(FREEZES, min_size=1, max_size=5))
def test_a_history_comes_back_from_the_store_and_verifies(group: list[Freeze]) -> None:
    """NOTHING IS LOST: entries go through their bytes unchanged, so that their hashes still hold."""
    changes = [initial("c", actor="a", at=AT, reason="größer \N{SKULL}")]
    for freeze in group:
        change = add(changes[-1].flag, freeze)
        changes += [change] if change else []
    last = changes[-1].flag
    changes.append(lift(last, epoch=last.epoch, ids=[last.freezes[0].id], actor="a", at=AT, reason="over"))
    gone = {"node": "n2", "report": {"pnl_usd": -0.1, "last_sequence": None}}
    changes.append(forget(changes[-1].flag, forgotten=gone, actor="a", at=AT, reason="sold"))
    flag = changes[-1].flag
    stored = [HistoryRecord.from_core(change.entry).to_bytes() for change in changes]
    entries = [HistoryRecord.from_bytes(value, key="k").to_core() for value in stored]
    assert entries == [change.entry for change in changes]
    # What an earlier version wrote and reads has no such field.
    assert [b"forgotten" in value for value in stored] == [False] * (len(stored) - 1) + [True]
    in_force = [freeze.to_json() for freeze in flag.freezes]
    pairs = [(entry.epoch, entry) for entry in entries]
    assert verify(pairs, flag_epoch=flag.epoch, flag_head=flag.head, flag_freezes=in_force) == []


def test_a_flag_of_another_cluster_is_unreadable() -> None:
    """UNKNOWN IS FROZEN: another cluster's flag under this cluster's key is not believed."""
    value = FlagRecord.from_core(Flag("other", 1)).to_bytes()
    with pytest.raises(UnreadableRecord, match="key /killswitch/c/flag holds the flag of cluster 'other', not of 'c'"):
        read_flag(value, key=KEY, cluster="c")


@pytest.mark.parametrize("said", ["ACTIVE", "REDUCE_ONLY"])
def test_a_flag_whose_mode_contradicts_its_freezes_is_unreadable(said: str) -> None:
    """UNKNOWN IS FROZEN: a mode that does not follow from the causes means that somebody edited one of the two."""
    value = _edited(RECORDS[0], lambda body: body.update(mode=said))
    with pytest.raises(UnreadableRecord, match=f"says mode {said}, but its freezes add up to FROZEN"):
        read_flag(value, key=KEY, cluster="c")
    emptied = _edited(RECORDS[0], lambda body: body.update(freezes=[]))
    with pytest.raises(UnreadableRecord, match="says mode FROZEN, but its freezes add up to ACTIVE"):
        read_flag(emptied, key=KEY, cluster="c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", ""),
        ("id", "x" * 65),
        ("scope", "galaxy"),
        ("scope", ""),
        ("mode", "ACTIVE"),
        ("mode", "frozen"),
        ("mode", 2),
        ("trigger", "x" * 33),
        ("reason", ""),
        ("metadata", []),
        ("surprise", 1),
    ],
)
def test_a_flag_with_one_bad_freeze_is_unreadable_as_a_whole(name: str, value: Any) -> None:
    """UNKNOWN IS FROZEN: a cause that cannot be understood is never left out of the flag; nothing of it is read."""
    spoilt = _edited(RECORDS[0], lambda body: body["freezes"][0].update({name: value}))
    with pytest.raises(UnreadableRecord, match="key /killswitch/c/flag cannot be read"):
        read_flag(spoilt, key=KEY, cluster="c")


@pytest.mark.parametrize("epoch", [0, -1, 1.5, "2", True, None])
def test_a_flag_with_an_epoch_that_is_none_is_unreadable(epoch: Any) -> None:
    """UNKNOWN IS FROZEN: epochs are whole numbers from 1."""
    with pytest.raises(UnreadableRecord, match=r"cannot be read \(epoch"):
        read_flag(_edited(RECORDS[0], lambda body: body.update(epoch=epoch)), key=KEY, cluster="c")


@LAW
@given(st.binary(max_size=200))
def test_no_bytes_make_reading_a_flag_fail_in_another_way(value: bytes) -> None:
    """UNKNOWN IS FROZEN: whatever bytes are in the store, reading them raises UnreadableRecord and nothing else."""
    with pytest.raises(UnreadableRecord):
        read_flag(value, key=KEY, cluster="c")


@LAW
@given(st.data())
def test_no_edited_flag_makes_reading_fail_in_another_way(data: st.DataObject) -> None:
    """UNKNOWN IS FROZEN: any edit of any value gives a flag as restricted as it says, or UnreadableRecord."""
    junk = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.none(), max_size=1)
    )
    body = json.loads(FlagRecord.from_core(flag_of([a_freeze("f1"), a_freeze("f2", "venue:x")])).to_bytes())
    target = data.draw(st.sampled_from([body, body["freezes"][0]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(junk)
    with contextlib.suppress(UnreadableRecord):
        flag = read_flag(json.dumps(body).encode(), key=KEY, cluster="c")
        assert flag.mode is Mode.FROZEN
        assert mode_name(flag.mode) == body["mode"]


# -- what a certificate needs ----------------------------------------------------------------------------------------


def test_a_node_record_gives_what_a_certificate_needs() -> None:
    """PROOF, NOT HOPE: the permit time comes from the node's lasting record."""
    record = next(record for record in RECORDS if isinstance(record, NodeRecord))
    assert record.to_known(5) == KnownNode("n1", 2000, 5)
    assert record.to_known(None) == KnownNode("n1", 2000, None)


def test_an_ack_record_gives_what_a_certificate_needs() -> None:
    """PROOF, NOT HOPE: the ack's own time is left out; the time at which it was seen here goes in."""
    record = next(record for record in RECORDS if isinstance(record, AckRecord))
    seen = record.to_seen(12.5)
    assert (seen.epoch, seen.freeze_ids, seen.seen_after_ms, seen.complete) == (2, frozenset({"f1"}), 12.5, True)
    assert (seen.orders_cancelled, seen.orders_open, seen.last_sequence) == (1, 0, 9)

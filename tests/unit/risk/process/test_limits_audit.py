"""NOTHING IS LOST, for limits: what was changed is on the disk, in a chain in which every tampering shows."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from killswitch.risk.process.limits_audit import FIRST_HASH, AuditUnwritable, LimitsAudit, read_audit


def written(path: Path, count: int = 3) -> list[str]:
    audit = LimitsAudit(path)
    for number in range(count):
        audit.append({"at": "t", "outcome": "applied", "number": number})
    return path.read_text().splitlines()


def test_entries_are_read_back_in_order_and_the_chain_holds_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "audit.jsonl"
    written(path, 2)
    LimitsAudit(path).append({"number": 2})
    entries, faults = read_audit(path)
    assert [entry["number"] for entry in entries] == [0, 1, 2]
    assert faults == []
    assert entries[0]["previous_hash"] == FIRST_HASH
    assert path.stat().st_mode & 0o077 == 0


def test_a_changed_a_missing_and_a_reordered_line_are_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    lines = written(path)
    for tampered, told in (
        ([lines[0], lines[1].replace('"number":1', '"number":7'), lines[2]], ":2: was changed"),
        ([lines[0], lines[2]], ":2: does not follow"),
        ([lines[1], lines[0], lines[2]], ":1: does not follow"),
        ([lines[0], "{}", lines[1], lines[2]], ":2: is no entry"),
    ):
        path.write_text("\n".join(tampered) + "\n")
        faults = read_audit(path)[1]
        assert any(told in fault for fault in faults), (told, faults)


def test_figures_that_are_no_numbers_are_kept_as_words(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    LimitsAudit(path).append({"value": float("nan")})
    assert read_audit(path)[0][0]["value"] == "nan"


# Two lines as the first version wrote them; they are never made anew by the code under test.
AS_WRITTEN_BEFORE = (
    '{"at":"2026-01-31T09:30:00.123456Z","changes":[{"after":"nan","before":1.5,"name":"max"}],'
    '"hash":"6953088bf1d8eaf59c26274487161b664998aa90251f726204e58c6c3c6493e9","outcome":"applied",'
    '"previous_hash":"0000000000000000000000000000000000000000000000000000000000000000","v":1}\n'
    '{"at":"2026-01-31T09:31:00.123456Z",'
    '"hash":"644bfdc3102cbf840a46c8019931f26e5c8250b49d107eb59a280bdb707d8673","outcome":"refused",'
    '"previous_hash":"6953088bf1d8eaf59c26274487161b664998aa90251f726204e58c6c3c6493e9","v":1}\n'
)


def test_a_file_of_the_first_version_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(AS_WRITTEN_BEFORE)
    LimitsAudit(path).append({"number": 2})
    entries, faults = read_audit(path)
    assert faults == []
    assert [entry.get("outcome") for entry in entries] == ["applied", "refused", None]


def test_an_entry_that_could_not_be_written_whole_spoils_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = LimitsAudit(tmp_path / "audit.jsonl")
    audit.append({"number": 0})
    real, left = os.write, [1, 0]

    def filling_up(fd: int, data: bytes) -> int:
        if not left.pop(0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:7])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", filling_up)
        with pytest.raises(AuditUnwritable, match="No space left"):
            audit.append({"number": 1})
    audit.append({"number": 2})
    entries, faults = read_audit(audit.path)
    assert faults == []
    assert [entry["number"] for entry in entries] == [0, 2]


@pytest.mark.parametrize("last", ['{"no": "hash"}', '{"hash": null}', '{"v": 2, "previous_hash": "", "hash": ""}'])
def test_a_last_line_whose_place_in_the_chain_is_not_known_is_no_entry(tmp_path: Path, last: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(last + "\n")
    with pytest.raises(AuditUnwritable, match="its last line is no entry"):
        LimitsAudit(path)


def test_a_file_that_cannot_be_written_or_ends_in_nonsense_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = LimitsAudit(path)
    path.mkdir()
    with pytest.raises(AuditUnwritable, match="cannot be written"):
        audit.append({})
    with pytest.raises(AuditUnwritable, match="cannot be read"):
        LimitsAudit(path)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"no": "hash"}) + "\n")
    with pytest.raises(AuditUnwritable, match="its last line is no entry; move the file away"):
        LimitsAudit(other)

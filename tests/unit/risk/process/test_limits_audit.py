"""NOTHING IS LOST, for limits: what was changed is on the disk, in a chain in which every tampering shows."""

from __future__ import annotations

import json
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

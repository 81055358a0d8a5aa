"""A file that remembers every change of limits: one JSON object a line, each with the hash of the one before.

NOTHING IS LOST: a line is on the disk before a loosening holds. A changed, missing or reordered line shows when the
chain is verified; whoever may write the file may of course write all of it anew, so ship it somewhere else as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from killswitch.core.canonical import canonical_json, finite_or_text, sha256_hex

AUDIT_VERSION: Final = 1
FIRST_HASH: Final = "0" * 64
MAX_LINE_BYTES: Final = 1024 * 1024


class AuditUnwritable(Exception):
    """A change could not be written down; the message says where and why."""


class LimitsAudit:
    """Appends to the audit file of one process. Used from one thread at a time.

    Args:
        path: the file; it and its directory are made when they are missing, readable by their owner alone.

    Raises:
        AuditUnwritable: it cannot be read or made, or its last line is no entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            last = _last_line(path)
        except OSError as error:
            raise AuditUnwritable(f"{path}: cannot be read ({error.strerror})") from error
        self._head = FIRST_HASH
        if last:
            try:
                self._head = str(json.loads(last)["hash"])
            except (ValueError, KeyError, TypeError) as error:
                raise AuditUnwritable(
                    f"{path}: its last line is no entry; move the file away, a new one is started then"
                ) from error

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry and wait until the disk has it.

        Raises:
            AuditUnwritable: it could not be written.
        """
        body = {"v": AUDIT_VERSION, **dict(finite_or_text(dict(entry))), "previous_hash": self._head}
        body["hash"] = sha256_hex(canonical_json(body))
        line = canonical_json(body).encode() + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                written = os.write(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise AuditUnwritable(f"{self.path}: cannot be written ({error.strerror})") from error
        if written != len(line):
            raise AuditUnwritable(f"{self.path}: only {written} of {len(line)} bytes could be written")
        self._head = body["hash"]


def read_audit(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read an audit file.

    Returns:
        Its entries, oldest first, and one sentence for each line where the chain does not hold.

    Raises:
        OSError: it cannot be read.
    """
    entries: list[dict[str, Any]] = []
    faults: list[str] = []
    head = FIRST_HASH
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line)
            said = entry.pop("hash")
            computed = sha256_hex(canonical_json(entry))
        except (ValueError, KeyError, TypeError, AttributeError):
            faults.append(f"{path}:{number}: is no entry")
            continue
        if said != computed:
            faults.append(f"{path}:{number}: was changed, its hash is another")
        if entry.get("previous_hash") != head:
            faults.append(f"{path}:{number}: does not follow the line before; something is missing or stands elsewhere")
        head = str(said)
        entries.append({**entry, "hash": said})
    return entries, faults


def _last_line(path: Path) -> bytes:
    """Return the last line of a file, empty when there is no file or nothing in it."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE_BYTES))
        lines = file.read().splitlines()
    return lines[-1] if lines else b""

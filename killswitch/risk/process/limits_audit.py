"""A file that remembers every change of limits: one JSON object a line, each with the hash of the one before.

NOTHING IS LOST: a line is on the disk before a loosening holds. A changed, missing or reordered line shows when the
chain is verified; whoever may write the file may of course write all of it anew, so ship it somewhere else as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from killswitch.core.canonical import canonical_json, finite_or_text
from killswitch.core.history import GENESIS_HASH, entry_hash
from killswitch.durable_file import append_to_file

AUDIT_VERSION: Final = 1
FIRST_HASH: Final = GENESIS_HASH
MAX_LINE_BYTES: Final = 1024 * 1024


_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Link(BaseModel):
    """What every entry has beside what it tells: which version it is, and its place in the chain."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    v: Literal[1]
    previous_hash: _Hash
    hash: _Hash


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
                self._head = _Link.model_validate_json(last).hash
            except ValidationError as error:
                raise AuditUnwritable(
                    f"{path}: its last line is no entry; move the file away, a new one is started then"
                ) from error

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry and wait until the disk has it.

        Raises:
            AuditUnwritable: it could not be written.
        """
        body = {"v": AUDIT_VERSION, **dict(finite_or_text(dict(entry))), "previous_hash": self._head}
        body["hash"] = entry_hash(body)
        try:
            append_to_file(self.path, canonical_json(body).encode() + b"\n")
        except OSError as error:
            raise AuditUnwritable(f"{self.path}: cannot be written ({error.strerror})") from error
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
            link, entry = _Link.model_validate_json(line), json.loads(line)
            computed = entry_hash(entry)
        except ValueError:
            faults.append(f"{path}:{number}: is no entry")
            continue
        if link.hash != computed:
            faults.append(f"{path}:{number}: was changed, its hash is another")
        if link.previous_hash != head:
            faults.append(f"{path}:{number}: does not follow the line before; something is missing or stands elsewhere")
        head = link.hash
        entries.append(entry)
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

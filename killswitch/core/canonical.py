"""One byte sequence per value: the JSON that hashes and comparisons are made of."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """Write ``value`` as JSON with sorted keys, no blanks and no NaN or infinity.

    Raises:
        ValueError: a number is NaN or infinite (pass it through :func:`finite_or_text` first).
        TypeError: a value that JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def sha256_hex(text: str) -> str:
    """Return the SHA-256 of the text's UTF-8 bytes as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def writable_text(text: str) -> str:
    """Replace what UTF-8 cannot hold (a byte of the command line that was not UTF-8) by question marks."""
    return text.encode("utf-8", "replace").decode()


def finite_or_text(value: Any) -> Any:
    """Replace NaN and infinities, at any depth, by the words ``nan``, ``inf`` and ``-inf``; make texts writable.

    The figures that led to a freeze must reach the history even when they are the fault themselves.
    """
    if isinstance(value, str):
        return writable_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {writable_text(str(key)): finite_or_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_text(item) for item in value]
    return value

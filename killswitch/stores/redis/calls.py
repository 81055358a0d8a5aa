"""Requests of the port as calls of the scripts, and keys as Redis has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from killswitch.stores.redis.scripts import (
    COMMIT,
    DATA_PREFIX,
    FOLLOW,
    HOLD,
    KEEP_ALIVE,
    PREFIX,
    READ,
    RELEASE,
    SCAN,
    TABLES,
    Script,
)


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A script with what it works on."""

    script: Script
    keys: tuple[bytes, ...]
    arguments: tuple[bytes, ...]

    def by_name(self) -> tuple[bytes | int, ...]:
        """The command for a Redis that has seen the script."""
        return (b"EVALSHA", self.script.sha.encode(), len(self.keys), *self.keys, *self.arguments)

    def in_full(self) -> tuple[bytes | int, ...]:
        """The command for one that has not."""
        return (b"EVAL", self.script.source.encode(), len(self.keys), *self.keys, *self.arguments)


class Calls:
    """Makes the calls of one store.

    Args:
        database: number of the database; channels are common to all of a server, keys are not.
        counted: whether every call writes something that replicas can confirm.
    """

    def __init__(self, database: int, *, counted: bool) -> None:
        self.channel = f"{PREFIX}{database}:changes"
        self._counted = counted

    def read(self, key: str) -> ScriptCall:
        return self._call(READ, [key])

    def scan(self, prefix: str) -> ScriptCall:
        first, end = lexical_range(prefix)
        return self._call(SCAN, [], first, end)

    def commit(self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str]) -> ScriptCall:
        distinct = list(dict.fromkeys(deletes))
        return self._call(
            COMMIT,
            [*expect, *puts, *distinct],
            b"%d" % len(expect),
            b"%d" % len(puts),
            b"%d" % len(distinct),
            *(b"" if version is None else b"%d" % version for version in expect.values()),
            *puts.values(),
        )

    def hold(self, key: str, value: bytes, ttl_ms: int) -> ScriptCall:
        return self._call(HOLD, [key], value, b"%d" % ttl_ms)

    def keep_alive(self, key: str, version: int, ttl_ms: int) -> ScriptCall:
        return self._call(KEEP_ALIVE, [key], b"%d" % version, b"%d" % ttl_ms)

    def release(self, key: str, version: int) -> ScriptCall:
        return self._call(RELEASE, [key], b"%d" % version)

    def follow(self, birth: bytes, known: int | None, prefix: str, *, counted: bool) -> ScriptCall:
        return self._call(
            FOLLOW, [], birth, b"" if known is None else b"%d" % known, key_bytes(prefix), counted=counted
        )

    def _call(self, script: Script, keys: Sequence[str], *arguments: bytes, counted: bool | None = None) -> ScriptCall:
        mark = self._counted if counted is None else counted
        return ScriptCall(
            script,
            (*(table.encode() for table in TABLES), *(DATA_PREFIX.encode() + key_bytes(key) for key in keys)),
            (self.channel.encode(), b"1" if mark else b"0", *arguments),
        )


def key_bytes(key: str) -> bytes:
    """The key as Redis has it. Keys of others that are not UTF-8 survive the way there and back."""
    return key.encode("utf-8", "surrogateescape")


def key_text(key: bytes) -> str:
    """The inverse of :func:`key_bytes`."""
    return key.decode("utf-8", "surrogateescape")


def lexical_range(prefix: str) -> tuple[bytes, bytes]:
    """Both ends of the range of all keys that begin with ``prefix``, as ``ZRANGEBYLEX`` wants them."""
    first = key_bytes(prefix)
    stem = first.rstrip(b"\xff")
    # No key is greater than all that begin so: "+" is Redis's word for the end.
    end = b"(" + stem[:-1] + bytes([stem[-1] + 1]) if stem else b"+"
    return b"[" + first, end

"""How keys and values look in ZooKeeper: nothing here connects.

A key's segments are znodes, so that ``zkCli get /killswitch/prod/flag`` shows the flag. The znode of a key, its
*guard*, is never removed: deleting the key writes a mark into it. So its data version only grows, and a check of it in
a transaction cannot be fooled by a key that went and came back. The value of a leased key is in an ephemeral child of
the guard, which says so by another mark.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

ABSENT = b"%absent"
LEASED = b"%leased"
LITERAL = b"%="
MARK = b"%"

# '%' is followed by two hexadecimal digits in what is encoded, so none of these is the name of a key's segment.
LEASE_NAME = "%lease"
RELATIVE_NAME = "%relative"
EMPTY_NAME = "%empty"

PLAIN = "".join(set(string.ascii_letters + string.digits + string.punctuation) - set("%/"))
# ZooKeeper refuses the first two anywhere, and keeps its own settings below the third.
REFUSED_NAMES = {".": "%2E", "..": "%2E%2E", "zookeeper": "%7Aookeeper"}


@dataclass(frozen=True, slots=True)
class Root:
    """A znode whose children are to be read for a prefix.

    Attributes:
        path: of the znode.
        text: what the keys of its children begin with, a slash at its end unless it is empty.
        beginning: what the names of the children, as text, must begin with.
    """

    path: str
    text: str
    beginning: str


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key as its guard and its ephemeral child show it.

    Attributes:
        value: ``None`` when the key is absent, and when it was not asked for.
        present: whether there is a value.
        version: of the value or of its deletion, 0 for a key that was never written.
        data_version: of the guard, ``None`` when there is no guard.
        leased: the value is in the ephemeral child.
        child: there is an ephemeral child, of this lease or left over from one that was written over.
    """

    value: bytes | None
    present: bool
    version: int
    data_version: int | None
    leased: bool = False
    child: bool = False

    @property
    def expected(self) -> int | None:
        """The version that a commit has to expect."""
        return self.version if self.present else None


NO_NODE = KeyState(None, False, 0, None)


def state_of(data: bytes | None, stat: Any, child_czxid: int | None, child_value: bytes | None = None) -> KeyState:
    """What a guard says of its key.

    Args:
        data: of the guard.
        stat: kazoo's ``ZnodeStat`` of the guard.
        child_czxid: zxid at which the ephemeral child was created, ``None`` when there is none.
        child_value: its data.
    """
    child = child_czxid is not None
    # An empty znode was made by somebody else as a directory; an empty value is stored as a literal.
    if not data or data == ABSENT:
        return KeyState(None, False, stat.mzxid if stat.version else 0, stat.version, child=child)
    if data != LEASED:
        return KeyState(value_of(data), True, stat.mzxid, stat.version, child=child)
    if child_czxid == stat.mzxid:
        return KeyState(child_value, True, stat.mzxid, stat.version, leased=True, child=True)
    # Nobody wrote the deletion, the session ended: that changed the list of the guard's children.
    return KeyState(None, False, max(stat.mzxid, stat.pzxid), stat.version, child=child)


def data_of(value: bytes) -> bytes:
    """A value as it is stored: as it is, unless it could be taken for a mark or for a directory."""
    return LITERAL + value if not value or value.startswith(MARK) else value


def value_of(data: bytes) -> bytes:
    """The inverse of :func:`data_of`. What somebody wrote by hand comes as it is."""
    return data.removeprefix(LITERAL)


def path_of(base: str, key: str) -> str:
    """The path of a key's guard below ``base``, which is ``""`` or begins with a slash and does not end in one."""
    if key.startswith("/"):
        return f"{base}/{'/'.join(map(_name_of, key[1:].split('/')))}"
    return f"{base}/{RELATIVE_NAME}/{'/'.join(map(_name_of, key.split('/')))}"


def lease_path(path: str) -> str:
    """The path of the ephemeral child of a guard."""
    return f"{path}/{LEASE_NAME}"


def ancestors(path: str) -> list[str]:
    """All znodes above ``path``, the topmost first, without the root of the tree, which is always there."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(2, len(parts))]


def roots_of(base: str, prefix: str) -> list[Root]:
    """Where the keys that begin with ``prefix`` are."""
    if not prefix:
        return [Root(base or "/", "/", ""), Root(f"{base}/{RELATIVE_NAME}", "", "")]
    text, slash, beginning = prefix.rpartition("/")
    text += slash
    if prefix.startswith("/"):
        return [Root(path_of(base, text[:-1]) if len(text) > 1 else base or "/", text, beginning)]
    relative = f"{base}/{RELATIVE_NAME}"
    return [Root(path_of(base, text[:-1]) if text else relative, text, beginning)]


def text_of(name: str) -> str | None:
    """The segment that a znode's name stands for; ``None`` for a name that no key of ours has."""
    if name == EMPTY_NAME:
        return ""
    try:
        text = unquote(name, errors="surrogatepass")
    except UnicodeDecodeError:
        return None
    return text if _name_of(text) == name else None


def child_path(path: str, name: str) -> str:
    """The path of a child."""
    return f"{path}/{name}" if path != "/" else f"/{name}"


def _name_of(segment: str) -> str:
    if not segment:
        return EMPTY_NAME
    return REFUSED_NAMES.get(segment) or quote(segment, safe=PLAIN, errors="surrogatepass")

"""What Redis answers instead of what was asked for, and whether the request can have happened all the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

from redis import exceptions

SHOWN_MAX_CHARS = 200

# redis-py takes the code off the text where it has a class for it.
_CODES_BY_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "NOAUTH"),
    (exceptions.AuthorizationError, "NOPERM"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (exceptions.AskError, "MOVED"),
)
# Within a script Redis 7 says so in words, and Redis 6 puts the code in the middle of a sentence.
_NOT_ALLOWED_IN_SCRIPT = re.compile(r"executing the script can't|user .* has no permissions|can't run this command")
_CODE_IN_SCRIPT = re.compile(r"running script.*?-([A-Z]{2,})\b")
_NEVER_HERE = re.compile(r"unknown command|DB index is out of range|invalid DB index", re.IGNORECASE)

FORBIDDEN_CODES = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "CROSSSLOT", "MOVED", "WRONGTYPE"})
"""Trying again will not help. All are found before a script writes; see ``_redis_scripts``."""

UNDONE_CODES = frozenset(
    {
        "READONLY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "BUSY", "TRYAGAIN", "CLUSTERDOWN",
        "NOSCRIPT", "UNKILLABLE", "DAMAGED",
    }
)  # fmt: skip
"""It did not happen, and may succeed later. Redis says these before a script begins, or at its first write; the last
one is our scripts' own."""

ELSEWHERE_CODES = frozenset({"READONLY", "MASTERDOWN", "LOADING"})
"""This server is not, or not yet, the one to ask."""

_HINTS = {
    "WRONGTYPE": "something else is kept under a name that begins with 'killswitch:'; give this store a database of "
    "its own",
    "CROSSSLOT": "this is a Redis Cluster, which cannot write several keys at once; use one server, or Sentinel",
    "MOVED": "this is a Redis Cluster, which cannot write several keys at once; use one server, or Sentinel",
    "NOPERM": "docs/decisions/0014-redis.md lists the rights that are needed",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that the server answered with.

    Attributes:
        code: its first word, such as ``NOPERM``; ``ERR`` where it has none of its own.
        text: the rest.
    """

    code: str
    text: str

    @property
    def forbidden(self) -> bool:
        """Trying again will not help."""
        return self.code in FORBIDDEN_CODES or (self.code == "ERR" and bool(_NEVER_HERE.match(self.text)))

    @property
    def undone(self) -> bool:
        """The request certainly had no effect."""
        return self.code in UNDONE_CODES or self.forbidden

    def __str__(self) -> str:
        hint = f"; {_HINTS[self.code]}" if self.code in _HINTS else ""
        return f"{self.code} {' '.join(self.text.split())[:SHOWN_MAX_CHARS]}{hint}"


def refusal_from(error: Exception) -> Refusal:
    """Understand an error of redis-py that stands for an answer of the server."""
    text = str(error)
    for kind, code in _CODES_BY_CLASS:
        if isinstance(error, kind):
            return Refusal(code, text)
    within_script = _CODE_IN_SCRIPT.search(text)
    if within_script:
        return Refusal(within_script[1], text)
    if _NOT_ALLOWED_IN_SCRIPT.search(text):
        return Refusal("NOPERM", text)
    first, _, rest = text.partition(" ")
    # Newer ones take "ERR" off as well, and then any word may come first.
    return (
        Refusal(first, rest) if first in FORBIDDEN_CODES | UNDONE_CODES else Refusal("ERR", text.removeprefix("ERR "))
    )

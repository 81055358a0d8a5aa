"""What every store checks before it sends anything, so that all refuse the same requests with the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from killswitch.stores.port import VALUE_MAX_BYTES, Conflict, StoreForbidden


def check_key(key: str) -> None:
    """Raise ``ValueError`` for the empty key, which no store can keep."""
    if not key:
        raise ValueError("a key must not be empty")


def check_value(key: str, value: bytes, address: str) -> None:
    """Raise :class:`StoreForbidden` for a value over the limit, before it is sent."""
    if len(value) > VALUE_MAX_BYTES:
        raise StoreForbidden(
            f"the store at {address} takes values of at most {VALUE_MAX_BYTES} bytes, and that of {key!r} has "
            f"{len(value)}"
        )


def check_commit(
    expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str], address: str
) -> None:
    """Check a whole commit.

    Raises:
        ValueError: an empty key, a key that is both put and deleted, or an expected version that no store gives out.
        StoreForbidden: a value over the limit.
    """
    for key in (*expect, *puts, *deletes):
        check_key(key)
    for key, version in expect.items():
        # 0 would mean "absent" to one store and "never" to another; absence is None.
        if version is not None and version < 1:
            raise ValueError(f"version {version} was expected of {key!r}; versions begin at 1, and absence is None")
    both = sorted(puts.keys() & set(deletes))
    if both:
        raise ValueError(f"{both[0]!r} is both put and deleted in one commit")
    for key, value in puts.items():
        check_value(key, value, address)


def check_ttl(ttl_ms: int) -> None:
    """Raise ``ValueError`` for a time to live that is not positive."""
    if ttl_ms <= 0:
        raise ValueError(f"ttl_ms must be greater than 0, and it is {ttl_ms}")


def conflict(address: str, expect: Mapping[str, int | None], found: Mapping[str, int | None]) -> Conflict:
    """The error for expectations that do not hold, naming each key whose version differs."""
    different = [
        f"{key!r} ({_said(expected)} expected, {_said(found.get(key))} found)"
        for key, expected in sorted(expect.items())
        if found.get(key) != expected
    ]
    return Conflict(f"the store at {address} wrote nothing, because of {', '.join(different)}")


def named(keys: Iterable[str]) -> str:
    """The keys of a commit for an error: the first, and how many more."""
    distinct = list(dict.fromkeys(keys))
    if not distinct:
        return "no key"
    more = f" and {len(distinct) - 1} more" if len(distinct) > 1 else ""
    return f"{distinct[0]!r}{more}"


def _said(version: int | None) -> str:
    return "absent" if version is None else f"version {version}"

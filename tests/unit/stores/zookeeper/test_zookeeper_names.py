"""How keys and values look in ZooKeeper: any text is a key, any bytes are a value, and nothing is taken for another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from killswitch.stores.zookeeper.names import (
    ABSENT,
    LEASED,
    KeyState,
    ancestors,
    child_path,
    data_of,
    lease_path,
    path_of,
    roots_of,
    state_of,
    text_of,
    value_of,
)

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), min_size=1, max_size=30)
ODD_SEGMENTS = ["", ".", "..", "zookeeper", "%", "%lease", "%empty", "%2F", "a", "é", "\0"]
KEYS = st.one_of(
    ANY_TEXT,
    st.lists(st.sampled_from(ODD_SEGMENTS), min_size=1, max_size=5).map("/".join),
).filter(bool)


def stat(mzxid: int = 7, version: int = 1, pzxid: int = 0) -> SimpleNamespace:
    """What kazoo says of a guard."""
    return SimpleNamespace(mzxid=mzxid, version=version, pzxid=pzxid)


def is_taken_by_zookeeper(path: str) -> bool:
    """The rules of ZooKeeper's ``PathUtils.validatePath``, narrowed to printable ASCII."""
    names = path[1:].split("/")
    return (
        path.startswith("/")
        and all(name not in {"", ".", ".."} for name in names)
        and all(" " < character < "\x7f" for character in path)
        and names[0] != "zookeeper"
    )


@given(KEYS)
def test_any_text_has_a_path_that_zookeeper_takes(key: str) -> None:
    """With and without a chroot."""
    assert is_taken_by_zookeeper(path_of("", key))
    assert path_of("/chroot", key) == f"/chroot{path_of('', key)}"


@given(KEYS, KEYS)
def test_two_keys_never_have_one_path(one: str, other: str) -> None:
    """Nor does a key have the path of a lease."""
    assert (path_of("", one) == path_of("", other)) == (one == other)
    assert path_of("", one) != lease_path(path_of("", other))


@given(KEYS)
def test_a_walk_down_from_the_roots_finds_the_key(key: str) -> None:
    """By the names of the znodes alone, as a scan and a watch walk."""
    path = path_of("", key)
    found = []
    for root in roots_of("", ""):
        # Down from this root along the path of the key, if it leads there.
        at, text = root.path, root.text
        if not path.startswith(at.rstrip("/") + "/"):
            continue
        for name in path.removeprefix(at).strip("/").split("/"):
            segment = text_of(name)
            if segment is None:
                break
            at, text = child_path(at, name), text + segment + "/"
        else:
            found.append(text[:-1])
    assert found == [key]


@given(KEYS, st.integers(0, 30))
def test_the_root_of_a_prefix_is_above_its_keys(key: str, cut: int) -> None:
    """Wherever the prefix ends, within a segment or not."""
    prefix = key[:cut]
    path = path_of("", key)
    assert any(
        path.startswith(root.path.rstrip("/") + "/") and (root.text + root.beginning == prefix or not prefix)
        for root in roots_of("", prefix)
    )


@pytest.mark.parametrize("name", ["%lease", "%relative", "zookeeper", "%zz", "é", "%ff", "a%2", "%2f", "%41"])
def test_names_that_are_none_of_ours_are_no_keys(name: str) -> None:
    """What ZooKeeper and other programs keep there, and what is written in another way than ours."""
    assert text_of(name) is None


@given(st.binary(max_size=20))
def test_any_bytes_come_back_and_are_never_a_mark(value: bytes) -> None:
    """The empty value included, which would be a directory."""
    stored = data_of(value)
    assert value_of(stored) == value
    assert stored not in {ABSENT, LEASED, b""}


@pytest.mark.parametrize("value", [b'{"v": 1}', b"v", b"\0"])
def test_json_is_stored_as_it_is(value: bytes) -> None:
    """So that a person and a router in another language can read it."""
    assert data_of(value) == value


def test_ancestors_are_all_above_and_the_topmost_comes_first() -> None:
    """Without the root, which is always there."""
    assert ancestors("/a/b/c") == ["/a", "/a/b"]
    assert ancestors("/a") == []


@pytest.mark.parametrize(
    ("data", "node", "child_czxid", "expected"),
    [
        (b"v", stat(), None, KeyState(b"v", True, 7, 1)),
        (b"%=", stat(), None, KeyState(b"", True, 7, 1)),
        (b"", stat(version=0), None, KeyState(None, False, 0, 0)),
        (None, stat(version=0), None, KeyState(None, False, 0, 0)),
        (ABSENT, stat(version=0), None, KeyState(None, False, 0, 0)),
        (ABSENT, stat(version=2), None, KeyState(None, False, 7, 2)),
        (LEASED, stat(), 7, KeyState(b"child", True, 7, 1, leased=True, child=True)),
        # The session ended: the deletion is the newest change of the children.
        (LEASED, stat(pzxid=9), None, KeyState(None, False, 9, 1)),
        # Left over from a lease that was written over.
        (b"v", stat(), 5, KeyState(b"v", True, 7, 1, child=True)),
        (ABSENT, stat(version=2), 5, KeyState(None, False, 7, 2, child=True)),
        (LEASED, stat(pzxid=8), 5, KeyState(None, False, 8, 1, child=True)),
    ],
)
def test_a_guard_and_its_child_say_how_the_key_stands(
    data: bytes | None, node: SimpleNamespace, child_czxid: int | None, expected: KeyState
) -> None:
    """The guard decides; a child counts only when the guard says so and is of the same transaction."""
    assert state_of(data, node, child_czxid, b"child") == expected
    assert expected.expected == (expected.version if expected.present else None)

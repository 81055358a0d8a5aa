"""What a file holds after a write that succeeded, and after one that did not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from killswitch.durable_file import append_to_file, replace_file

CONTENT = b"0123456789" * 10


def test_a_file_is_replaced_and_appended_to_and_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"old")
    replace_file(path, b"one\n")
    append_to_file(path, b"two\n")
    append_to_file(tmp_path / "new.jsonl", b"first\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "new.jsonl").read_bytes() == b"first\n"
    assert all(found.stat().st_mode & 0o077 == 0 for found in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("write", [replace_file, append_to_file])
def test_a_write_in_pieces_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    write(tmp_path / "f", CONTENT)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("write", [replace_file, append_to_file])
def test_a_disk_that_fills_up_on_the_way_leaves_what_was_there_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before\n")
    real, left = os.write, [1, 0]

    def filling_up(fd: int, data: bytes) -> int:
        if not left.pop(0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:7])

    monkeypatch.setattr(os, "write", filling_up)
    with pytest.raises(OSError, match="No space left"):
        write(path, CONTENT)
    assert left == [], "the disk has filled up on the way"
    assert [found.read_bytes() for found in tmp_path.iterdir()] == [b"before\n"]


@pytest.mark.parametrize("write", [replace_file, append_to_file])
def test_a_file_that_may_be_new_is_on_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    synced: list[str] = []
    real = os.fsync

    def noting(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").resolve().name)
        real(fd)

    monkeypatch.setattr(os, "fsync", noting)
    write(tmp_path / "f", CONTENT)
    assert [name.split(".")[0] for name in synced] == ["f", tmp_path.name]


def test_a_line_that_is_refused_because_of_its_folder_is_not_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told that a line was not written writes it again: two of them break a chain."""
    real = os.fsync

    def no_folder(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").resolve() == tmp_path.resolve():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", no_folder)
        with pytest.raises(OSError, match="Input/output error"):
            append_to_file(tmp_path / "f", b"one\n")
    append_to_file(tmp_path / "f", b"one\n")
    assert (tmp_path / "f").read_bytes() == b"one\n"

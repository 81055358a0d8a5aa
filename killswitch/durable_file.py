"""Files whose content is on the disk when the call returns. Standard library only.

What this does not do: it locks nothing. Whoever may write a file at the same time as others excludes them itself.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Put a file with this content in place of the one there, readable by its owner alone.

    A reader sees the old file or the new one, never half of one, also when the power fails on the way.

    Raises:
        OSError: it is not safely on the disk; what stood there may still stand there.
    """
    fresh = _beside(path)
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    _sync_directory(path.parent)


def append_to_file(path: Path, content: bytes) -> None:
    """Add to the end of a file, which is made, readable by its owner alone, when there is none.

    Raises:
        OSError: it is not safely on the disk. What was written of it is taken away again where that is possible.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        try:
            _write_all(fd, content)
            os.fsync(fd)
            if size == 0:
                _sync_directory(path.parent)  # the file may be new
        except OSError:
            # Half a line that stays would make the next one unreadable, and a whole one would stand there twice.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.new")


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

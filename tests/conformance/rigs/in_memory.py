"""Where a server under test keeps its data: in memory, so that no test waits for what a shared disk takes to sync."""

from __future__ import annotations

import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")


def data_directory() -> tempfile.TemporaryDirectory[str] | None:
    """A new directory in memory that any user may write to; ``None`` where there is no such place.

    It outlives its server, which may be killed and started again, as a container's own ``tmpfs`` does not. Call its
    ``cleanup`` afterwards.
    """
    if not MEMORY.is_dir():
        return None
    # A leftover of a server that ran as somebody else is no reason to fail a test.
    made = tempfile.TemporaryDirectory(prefix="killswitch-test-", dir=MEMORY, ignore_cleanup_errors=True)
    # Images change to a user of their own.
    Path(made.name).chmod(0o777)
    return made

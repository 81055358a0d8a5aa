"""What a test sees of the connections of its own process."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connections_to(server: str) -> int:
    """How many established TCP connections of this process lead to ``server``."""
    port = int(server.rpartition(":")[2])
    established, remote_column, state_column, inode_column = "01", 2, 3, 9
    ours: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(str(descriptor.readlink()))
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            columns = line.split()
            if columns[state_column] == established and f"socket:[{columns[inode_column]}]" in ours:
                count += int(columns[remote_column].rpartition(":")[2], 16) == port
    return count

"""A slow line: forwards TCP connections, each chunk late by what a file says, half of it in each direction.

    python slow_link.py FILE LISTEN_PORT=HOST:PORT ...

FILE holds the extra time of one round trip in milliseconds and may change at any time. For kernels without netem.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

CHUNK_BYTES = 64 * 1024


def half_delay_s(file: Path) -> float:
    """Seconds by which a chunk is late."""
    return float(file.read_text() or 0) / 2000


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, file: Path) -> None:
    """Carry one direction; chunks overlap in time, as on a long line, and keep their order."""
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def write_when_due() -> None:
        while True:
            due_s, chunk = await waiting.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            if not chunk:
                return
            writer.write(chunk)
            await writer.drain()

    writing = asyncio.create_task(write_when_due())
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            waiting.put_nowait((loop.time() + half_delay_s(file), chunk))
    waiting.put_nowait((loop.time(), b""))
    with contextlib.suppress(OSError):
        await writing
    writer.close()


async def serve(file: Path, lines: list[str]) -> None:
    """Listen on every port named."""

    async def connected(near: asyncio.StreamReader, back: asyncio.StreamWriter, host: str, port: int) -> None:
        try:
            far, there = await asyncio.open_connection(host, port)
        except OSError:
            back.close()
            return
        await asyncio.gather(carry(near, there, file), carry(far, back, file))

    servers = []
    for line in lines:
        listen, _, target = line.partition("=")
        host, _, port = target.rpartition(":")
        servers.append(
            await asyncio.start_server(
                lambda near, back, host=host, port=int(port): connected(near, back, host, port), "0.0.0.0", int(listen)
            )
        )
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2:]))

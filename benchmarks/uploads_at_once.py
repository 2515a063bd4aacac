"""Uploads that begin together, each over a connection of its own.

    python -m benchmarks.uploads_at_once PORT NUMBER LENGTH

Prints a JSON list: the seconds that each took.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import trio

import blockproto

from .processes import HOST


async def upload(port: int, path: Path, name: str, ready: trio.Event, taken_s: list[float]) -> None:
    """Connect, wait for the word, upload."""
    async with blockproto.connect(f"bp://{HOST}:{port}") as client:
        connection = await client.connection()
        await connection.greeted.wait()
        await ready.wait()
        begun = time.monotonic()
        await client.upload(path, name=name)
        taken_s.append(time.monotonic() - begun)


async def main(port: int, number: int, length: int) -> None:
    """All of them."""
    taken_s: list[float] = []
    ready = trio.Event()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.bin"
        path.write_bytes(os.urandom(length))
        async with trio.open_nursery() as nursery:
            for index in range(number):
                nursery.start_soon(upload, port, path, f"at once {index}", ready, taken_s)
            await trio.sleep(2.0)
            ready.set()
    print(json.dumps(taken_s))


if __name__ == "__main__":
    trio.run(main, *map(int, sys.argv[1:]))

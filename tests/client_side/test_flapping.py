"""A line that is there for five seconds and away for three, now and then without telling: everything arrives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from peers import MIB, Served, bytes_of, content_of, run, serving

from blockproto.client import Client, connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.client_side.connections import LineEvent, Reconnecting
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.errors import ConnectionLost
from blockproto.testing.chaos import Conditions, How, Line

quick = pytest.mark.trio(run=run)

UP_S, DOWN_S = 5.0, 3.0
RATE_BYTES_S = 4e5
PRIORITIES = ("interactive", "normal", "bulk")


class Flapping:
    """A line to a server that comes and goes.

    Args:
        served: the server.
        nursery: where lines run.
        seed: of what is drawn by lot.
    """

    def __init__(self, served: Served, nursery: trio.Nursery, seed: int) -> None:
        self.dialled = 0
        self._served = served
        self._nursery = nursery
        self._rng = random.Random(seed)
        self._up = True
        self._connections: list[Line] = []

    async def dial(self) -> Endpoint:
        """A connection, while the line is there."""
        self.dialled += 1
        await trio.lowlevel.checkpoint()
        if not self._up:
            raise ConnectionLost("no network")
        line = Line(Conditions(RATE_BYTES_S, RATE_BYTES_S, round_trip_s=0.1), self._rng)
        near, far = line.streams()
        self._connections.append(line)
        self._nursery.start_soon(line.run)
        self._nursery.start_soon(self._served.server.serve_stream, far)
        return StreamEndpoint(near, "flapping")

    async def run(self) -> None:
        """Come and go until cancelled; one time in four nobody is told."""
        up_until = trio.current_time()
        while True:
            up_until += UP_S
            await trio.sleep_until(up_until)
            self._up = False
            how = How.BLACK_HOLE if self._rng.random() < 0.25 else How.RESET
            for line in self._connections:
                if line.ended is None:
                    line.end(how)
            up_until += DOWN_S
            await trio.sleep_until(up_until)
            self._up = True


@pytest.mark.clause("BP1-RES-024", "BP1-END-017")
@quick
async def test_everything_arrives_over_a_line_that_comes_and_goes(tmp_path: Path) -> None:
    sizes = [0, 1, 70_000, MIB, MIB + 1, 2 * MIB + 5, 70_001, 2]
    told: list[LineEvent] = []
    async with serving() as served:
        async with served.client() as before:
            for index, size in enumerate(sizes):
                await before.upload(_file(tmp_path, f"down {index}", size))
        served.lines.clear()
        async with trio.open_nursery() as nursery:
            flapping = Flapping(served, nursery, seed=1)
            nursery.start_soon(flapping.run)
            async with (
                connect_with(
                    flapping.dial,
                    "flapping",
                    served.open_part_file,
                    ClientConfig(retry_for_s=600.0, on_line=told.append),
                ) as client,
                trio.open_nursery() as transfers,
            ):
                for index, size in enumerate(sizes):
                    priority = PRIORITIES[index % 3]
                    path = _file(tmp_path, f"up {index}", size)
                    transfers.start_soon(_upload, client, path, priority)
                    transfers.start_soon(_download, client, tmp_path, f"down {index}", priority)
            nursery.cancel_scope.cancel()
        for index, size in enumerate(sizes):
            assert content_of(served.store, f"up {index}") == bytes_of(size, size)
            assert served.downloaded(tmp_path / f"got down {index}") == bytes_of(size, size)
    assert sum(isinstance(event, Reconnecting) for event in told) >= 3
    assert flapping.dialled < 60


async def _upload(client: Client, path: Path, priority: str) -> None:
    await client.upload(path, priority=priority)


async def _download(client: Client, folder: Path, name: str, priority: str) -> None:
    await client.download(name, folder / f"got {name}", priority=priority)


def _file(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    path.write_bytes(bytes_of(size, size))
    return path

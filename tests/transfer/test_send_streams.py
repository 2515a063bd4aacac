"""Uploads over several connections whose lines have length: what is said to a stream that was given up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from peers import MIB, bytes_of, content_of, run, serving

from blockproto.client import connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.testing.chaos import Conditions, How, Line

quick = pytest.mark.trio(run=run)
FAR = Conditions(up_bytes_s=1_000_000, down_bytes_s=1_000_000, round_trip_s=1.0)


async def pass_by(seconds: float) -> None:
    """Let simulated time pass."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


@quick
@pytest.mark.parametrize("joining_s", [0.1, 0.4, 0.6, 0.9, 1.2])
async def test_a_lane_given_up_while_it_joins_is_not_heard_in_the_next_attempt(
    tmp_path: Path, joining_s: float
) -> None:
    """The next attempt takes over from it: the SUPERSEDED that it is told must not be taken for an answer to that one."""
    path = tmp_path / "file"
    path.write_bytes(bytes_of(6 * MIB))
    lines: list[Line] = []
    async with serving() as served:

        async def dial() -> Endpoint:
            lines.append(Line(FAR, random.Random(1)))
            near, far = lines[-1].streams()
            served.nursery.start_soon(served.server.serve_stream, far)
            return StreamEndpoint(near, "far away")

        async with (
            connect_with(dial, "memory", served.open_part_file, ClientConfig(connections=2)) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(client.upload, path)
            await pass_by(4.0)
            lines[1].end(How.RESET)
            await pass_by(joining_s)
            lines[0].end(How.RESET)
        assert content_of(served.store, "file") == path.read_bytes()

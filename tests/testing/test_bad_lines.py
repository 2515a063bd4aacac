"""Transfers over lines that are slow, far away and breaking: what a reset costs, who waits for whom, counted round trips.

The lines are models on a clock that jumps, so times are exact: a figure here is a number of round trips or of line times.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from peers import MIB, Served, bytes_of, content_of, run, serving
from slow_lines import SlowLines, wait_out

from blockproto.client import Client
from blockproto.results import Receipt, UploadJob
from blockproto.testing.chaos import Amount, Conditions, Ending, How

quick = pytest.mark.trio(run=run)

RATE = 1_000_000


def _line(
    round_trip_s: float, *, rate_bytes_s: float | None = RATE, reset_after: int | None = None
) -> Conditions:
    ending = None if reset_after is None else Ending(How.RESET, after_bytes=Amount.of(reset_after))
    return Conditions(
        up_bytes_s=rate_bytes_s, down_bytes_s=rate_bytes_s, round_trip_s=round_trip_s, ending=ending
    )


def _file(folder: Path, size: int, name: str = "file.bin") -> Path:
    path = folder / name
    path.write_bytes(bytes_of(size, size))
    return path


@asynccontextmanager
async def _over(conditions: Conditions) -> AsyncIterator[tuple[Served, SlowLines]]:
    async with serving() as served:
        lines = SlowLines(served, conditions)
        yield served, lines
        lines.end()


# ---- resets ---------------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-RES-024", "BP1-RES-014")
@quick
@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_reset_costs_what_was_under_way_and_the_way_back(tmp_path: Path, way: str) -> None:
    """Nothing that arrived travels twice, and each new connection is full after the round trips that it takes to ask."""
    path = _file(tmp_path, 6 * MIB)
    async with _over(_line(0.1, reset_after=2_000_000)) as (served, lines):
        if way == "down":
            async with served.client() as client:
                await client.upload(path)
        begun = trio.current_time()
        async with lines.client() as client:
            if way == "up":
                await client.upload(path)
                assert content_of(served.store, "file.bin") == path.read_bytes()
            else:
                await client.download("file.bin", tmp_path / "copy")
                assert served.downloaded(tmp_path / "copy") == path.read_bytes()
        took_s = trio.current_time() - begun
    resets = sum(line.broken for line in lines.lines)
    delivered = sum((line.up if way == "up" else line.down).handed_on for line in lines.lines)
    assert resets == 3
    assert delivered < 1.01 * path.stat().st_size
    assert took_s < path.stat().st_size / RATE + 0.4 + resets * 0.15


@pytest.mark.clause("BP1-RES-012")
@quick
async def test_a_sender_that_comes_back_sends_what_was_never_begun_before_it_is_answered(
    tmp_path: Path,
) -> None:
    path = _file(tmp_path, 5 * MIB)
    async with _over(_line(1.0, reset_after=1_500_000)) as (served, lines), lines.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.upload, path)
            while len(lines.lines) < 2:
                await wait_out(0.01)
            await wait_out(0.9)  # the answer to OPEN is still on its way back
            assert len(lines.lines) == 2
            assert lines.lines[1].up.handed_on > 200_000
        assert content_of(served.store, "file.bin") == path.read_bytes()
        assert sum(line.up.handed_on for line in lines.lines) < 1.01 * path.stat().st_size


@pytest.mark.clause("BP1-RES-012")
@quick
async def test_what_was_sent_ahead_is_not_sent_again_while_its_acknowledgement_is_under_way(
    tmp_path: Path,
) -> None:
    """The first block is cut: when the rest of it was sent, nothing is heard of the second one yet."""
    path = _file(tmp_path, MIB + 300_000)
    async with _over(_line(1.0, reset_after=300_000)) as (served, lines), lines.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.upload, path)
            await wait_out(0.5)
            lines.conditions = _line(1.0)
        assert len(lines.lines) == 2
        assert content_of(served.store, "file.bin") == path.read_bytes()
        assert sum(line.up.handed_on for line in lines.lines) < 1.01 * path.stat().st_size


@pytest.mark.clause("BP1-STR-017")
@quick
async def test_who_comes_back_knows_the_line_unless_the_network_is_another(tmp_path: Path) -> None:
    """It was slow a moment ago: nothing is handed over too early again on the next connection."""
    async with _over(_line(0.1, reset_after=2_600_000)) as (_, lines), lines.client() as client:
        await client.upload(_file(tmp_path, 3 * MIB))
        assert len(lines.lines) == 2
        connection = await client._connections.connection()
        assert connection.pace.slow
        client.network_changed()
        await client.upload(_file(tmp_path, 5, "small"))
        connection = await client._connections.connection()
        assert len(lines.lines) == 3
        assert not connection.pace.slow


@pytest.mark.clause("BP1-RES-024")
@quick
@pytest.mark.parametrize("many", [False, True])
async def test_a_small_file_arrives_over_a_line_that_never_carries_the_whole(
    tmp_path: Path, many: bool
) -> None:
    """Without OPEN it would begin anew each time; after the first loss it is opened, and goes on where it was."""
    path = _file(tmp_path, 900_000)
    async with _over(_line(0.1, reset_after=250_000)) as (served, lines), lines.client() as client:
        if many:
            jobs = [UploadJob(path, "file.bin"), UploadJob(_file(tmp_path, 10, "other"), "other")]
            outcomes = [outcome async for _, outcome in client.upload_all(jobs)]
            assert all(isinstance(one, Receipt) for one in outcomes)
        else:
            await client.upload(path)
        assert content_of(served.store, "file.bin") == path.read_bytes()
        assert sum(line.up.handed_on for line in lines.lines) < 900_000 + 300_000


# ---- a picture beside a bulk transfer -------------------------------------------------------------------------


async def _pictures(client: Client, folder: Path, way: str, names: list[str]) -> float:
    """The longest time that one of the pictures took, each after the other."""
    longest_s = 0.0
    for name in names:
        begun = trio.current_time()
        if way == "up":
            await client.upload(_file(folder, 100_000, name), priority="interactive")
        else:
            await client.download(name, folder / name, priority="interactive")
        longest_s = max(longest_s, trio.current_time() - begun)
        await wait_out(0.37)
    return longest_s


@pytest.mark.clause("BP1-STR-012", "BP1-STR-017")
@quick
@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_picture_beside_a_bulk_transfer_takes_less_than_twice_its_time(
    tmp_path: Path, way: str
) -> None:
    """At 5 Mbit/s, on one connection; and the line is full all the while."""
    rate = 625_000
    bulk = _file(tmp_path, 10 * MIB, "bulk.bin")
    alone, beside = [f"a{no}.jpg" for no in range(3)], [f"b{no}.jpg" for no in range(5)]
    async with _over(_line(0.05, rate_bytes_s=rate)) as (served, lines):
        if way == "down":
            async with served.client() as client:
                for path in (bulk, *(_file(tmp_path, 100_000, name) for name in alone + beside)):
                    await client.upload(path)
        async with lines.client() as client, trio.open_nursery() as nursery:
            alone_s = await _pictures(client, tmp_path, way, alone)
            if way == "up":
                nursery.start_soon(lambda: client.upload(bulk, priority="bulk"))
            else:
                nursery.start_soon(
                    lambda: client.download("bulk.bin", tmp_path / "bulk copy", priority="bulk")
                )
            await wait_out(4)
            pipe = lines.lines[0].up if way == "up" else lines.lines[0].down
            before, begun = pipe.handed_on, trio.current_time()
            beside_s = await _pictures(client, tmp_path, way, beside)
            filled = (pipe.handed_on - before) / (trio.current_time() - begun) / rate
            nursery.cancel_scope.cancel()
    assert beside_s < 1.6 * alone_s
    assert filled > (0.93 if way == "up" else 0.97)  # the bulk transfer holds back while each picture asks


@pytest.mark.clause("BP1-STR-017", "BP1-CRD-007")
@quick
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("after_s", [0.2, 0.4, 0.8, 1.2])
async def test_a_picture_passes_what_a_lone_transfer_has_begun_on_a_new_connection(
    tmp_path: Path, way: str, after_s: float
) -> None:
    """Whatever lies between the two ends would take all of the bulk transfer at once: seconds of line time."""
    rate = 625_000
    bulk, picture = _file(tmp_path, 10 * MIB, "bulk.bin"), _file(tmp_path, 100_000, "0.jpg")
    line = replace(_line(0.06, rate_bytes_s=rate), buffer_bytes=16 * MIB)
    async with _over(line) as (served, lines):
        if way == "down":
            async with served.client() as client:
                for path in (bulk, picture):
                    await client.upload(path)
        async with lines.client() as client, trio.open_nursery() as nursery:
            if way == "up":
                nursery.start_soon(lambda: client.upload(bulk, priority="bulk"))
            else:
                nursery.start_soon(
                    lambda: client.download("bulk.bin", tmp_path / "bulk copy", priority="bulk")
                )
            await wait_out(after_s)
            assert await _pictures(client, tmp_path, way, ["0.jpg"]) < 0.9
            nursery.cancel_scope.cancel()


# ---- round trips ----------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-HEL-001", "BP1-HEL-013")
@quick
@pytest.mark.parametrize("size", [0, 14, 4096, 65_536])
async def test_a_small_upload_takes_one_round_trip_on_a_fresh_and_on_an_open_connection(
    tmp_path: Path, size: int
) -> None:
    """A fresh one has to be connected first, which no model of a line shows."""
    async with _over(_line(1.0, rate_bytes_s=None)) as (_, lines), lines.client() as client:
        for name in ("first", "second", "third"):
            begun = trio.current_time()
            await client.upload(_file(tmp_path, size, name))
            assert trio.current_time() - begun == pytest.approx(1.0, abs=0.01)
        assert len(lines.lines) == 1

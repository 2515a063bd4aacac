"""Coming back: connections that are lost, replaced, waited for, and told of."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from peers import MIB, Gate, bytes_of, content_of, frames_of, names_in, run, serving
from trio.testing import wait_all_tasks_blocked

from blockproto.client import connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.client_side.connections import (
    AFTER_MOST_S,
    BOUNDS_S,
    JOIN_S,
    RETRY_FOR_S,
    LineEvent,
    Reconnected,
    Reconnecting,
    Resumed,
    Retries,
)
from blockproto.connection.endpoint import Endpoint
from blockproto.connection.keepalive import ACTIVE_S
from blockproto.connection.liveness import ANSWER_S
from blockproto.errors import Code, ConnectionLost, Refused, Superseded
from blockproto.store import UploadStore
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.live_uploads import LiveUploads
from blockproto.transfer.send_source import Progress
from blockproto.wire import Block, Commit, List, Open

quick = pytest.mark.trio(run=run)


def _file(folder: Path, size: int = 3 * MIB + 17, name: str = "file.bin") -> Path:
    path = folder / name
    path.write_bytes(bytes_of(size, size))
    return path


def _no_sidecar(dest: Path, first: int) -> UploadStore:
    raise AssertionError


async def wait_for(condition: Callable[[], bool], deadline: float = 1000.0) -> None:
    """Look again and again until it holds; time passes on a clock that jumps."""
    while not condition():
        assert trio.current_time() < deadline
        await trio.sleep(0.01)


# ---- one of several ------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-RES-025")
@quick
@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("cut", [700_000, 2 * MIB + 5])
async def test_a_lost_connection_of_several_is_replaced_and_the_others_go_on(
    tmp_path: Path, lost: int, cut: int
) -> None:
    """It joins with the same attempt, and what arrived over the lost one does not travel again."""
    path = _file(tmp_path, 12 * MIB)
    async with serving() as served:
        served.line_options = [{}, {}, {}]
        served.line_options[lost] = {"cut_sent": cut}
        async with served.client(connections=3) as client:
            receipt = await client.upload(path)
            assert [line.broken for line in served.lines] == [index == lost for index in range(4)]
        opened = [
            one for line in served.lines for one in frames_of(line.sent) if isinstance(one.message, Open)
        ]
        assert len(opened) == 4
        assert len({one.message.attempt for one in opened if isinstance(one.message, Open)}) == 1
        assert receipt.connections == 3
        assert served.payload_sent == 12 * MIB
        assert content_of(served.store, "file.bin") == path.read_bytes()


@pytest.mark.clause("BP1-RES-025")
@quick
async def test_a_connection_lost_while_the_commit_waits_is_replaced_and_the_commit_said_again(
    tmp_path: Path,
) -> None:
    path = _file(tmp_path, 4 * MIB)
    async with serving() as served, served.client(connections=2) as client, trio.open_nursery() as nursery:
        gate = Gate(served.server)
        nursery.start_soon(client.upload, path)
        await gate.waits.wait()
        await wait_all_tasks_blocked()
        assert any(isinstance(one.message, Commit) for one in frames_of(served.lines[0].sent))
        await served.lines[0].cut()
        await wait_all_tasks_blocked()
        gate.open()
        await wait_for(lambda: names_in(served.store) == ["file.bin"])
        said = [
            [one for one in frames_of(line.sent) if isinstance(one.message, Commit)] for line in served.lines
        ]
    assert [len(one) for one in said] == [1, 0, 1]
    assert content_of(served.store, "file.bin") == path.read_bytes()


@pytest.mark.clause("BP1-RES-025")
@quick
async def test_where_no_new_connection_can_be_had_the_others_carry_on(tmp_path: Path) -> None:
    path = _file(tmp_path, 6 * MIB)
    async with serving() as served:

        async def dial() -> Endpoint:
            if len(served.lines) >= 2:
                raise ConnectionLost("no more than two")
            return await served.dial()

        served.line_options = [{}, {"cut_sent": 1_400_000}]
        async with connect_with(dial, "memory", _no_sidecar, ClientConfig(connections=2)) as client:
            await client.upload(path)
        assert trio.current_time() < 1.0
        assert content_of(served.store, "file.bin") == path.read_bytes()
        assert served.payload_sent == path.stat().st_size


# ---- coming back ----------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-END-017", "BP1-RES-024")
@quick
async def test_whoever_shows_it_hears_of_the_loss_and_where_it_goes_on(tmp_path: Path) -> None:
    path = _file(tmp_path, 3 * MIB)
    told: list[LineEvent] = []
    async with serving() as served:
        served.line_options = [{"cut_sent": 2_500_000}]
        async with connect_with(
            served.dial, "memory", _no_sidecar, ClientConfig(on_line=told.append)
        ) as client:
            receipt = await client.upload(path)
        assert trio.current_time() < 0.1  # at once
        assert [type(event) for event in told] == [Reconnecting, Reconnected, Resumed]
        assert isinstance(told[0], Reconnecting)
        assert told[0].after_s == 0.0
        assert isinstance(told[2], Resumed)
        assert 2_400_000 < told[2].position < 2_500_000
        assert (receipt.payload_bytes_sent, served.payload_sent) == (
            pytest.approx(3 * MIB, abs=MIB),  # but for the piece that was cut
            3 * MIB,
        )


@pytest.mark.clause("BP1-END-017")
@quick
@pytest.mark.parametrize("carries", [60, 200, 300])
async def test_a_line_that_accepts_everybody_and_carries_nothing_is_not_dialled_in_a_circle(
    tmp_path: Path, carries: int
) -> None:
    """Nor one that carries a few bytes each time, however often it does."""
    dialled: list[float] = []
    async with serving() as served:

        async def dial() -> Endpoint:
            dialled.append(trio.current_time())
            assert len(dialled) < 30 + trio.current_time() / 5  # about one in 15 s
            if len(dialled) > 300:
                raise ConnectionLost("enough")
            served.line_options = [{"cut_sent": carries}]
            return await served.dial()

        async with connect_with(dial, "memory", _no_sidecar, ClientConfig(retry_for_s=3600.0)) as client:
            with pytest.raises(ConnectionLost):
                await client.upload(_file(tmp_path))
        assert trio.current_time() >= 3600
        assert len(dialled) > 100


@pytest.mark.clause("BP1-END-017")
@quick
@pytest.mark.parametrize("way", ["cut_sent", "cut_received"])
async def test_a_connection_that_carried_half_a_block_has_worked(tmp_path: Path, way: str) -> None:
    """No block was whole and nothing acknowledged; what was carried is known when the next connection stands."""
    told: list[LineEvent] = []
    async with serving() as served:
        async with served.client() as client:
            await client.upload(_file(tmp_path, 3 * MIB, "there"))
        served.lines.clear()
        served.line_options = [{way: 500_000} for _ in range(5)]
        async with connect_with(
            served.dial, "memory", served.open_part_file, ClientConfig(on_line=told.append)
        ) as client:
            if way == "cut_sent":
                await client.upload(_file(tmp_path, 3 * MIB))
            else:
                await client.download("there", tmp_path / "here")
        assert [event.after_s for event in told if isinstance(event, Reconnecting)] == [0.0] * 5


@pytest.mark.clause("BP1-END-017")
@quick
async def test_a_line_that_breaks_where_nothing_gets_further_is_not_dialled_in_a_circle(
    tmp_path: Path,
) -> None:
    """It carries much each time, and nothing of that is kept."""
    dialled: list[float] = []
    async with serving() as served:
        async with served.client() as client:
            await client.upload(_file(tmp_path))
        served.lines.clear()

        async def dial() -> Endpoint:
            dialled.append(trio.current_time())
            served.line_options = [{"cut_received": 100_000}]
            return await served.dial()

        async with connect_with(
            dial, "memory", lambda *_: MemoryStore(), ClientConfig(retry_for_s=300.0)
        ) as client:
            with pytest.raises(ConnectionLost):
                await client.download("file.bin", tmp_path / "here")
    assert 10 < len(dialled) < 50


@pytest.mark.clause("BP1-END-017")
@quick
async def test_many_transfers_that_lost_one_server_dial_it_together(tmp_path: Path) -> None:
    dialled: list[float] = []
    async with serving() as served:

        async def dial() -> Endpoint:
            if 5.0 < trio.current_time() < 65.0:
                dialled.append(trio.current_time())
                raise ConnectionLost("away")
            return await served.dial()

        async with connect_with(dial, "memory", _no_sidecar) as client, trio.open_nursery() as nursery:
            assert [entry async for entry in client.listing()] == []
            await trio.sleep_until(6.0)
            await served.lines[0].cut()
            await wait_all_tasks_blocked()
            for number in range(20):
                nursery.start_soon(client.upload, _file(tmp_path, 3 * MIB, f"file {number}"))
        assert len(names_in(served.store)) == 20
        assert 4 < len(dialled) < 40
        assert len(served.lines) == 2


@quick
async def test_who_is_slow_to_leave_a_lost_connection_joins_the_new_one_at_once() -> None:
    """However often that went wrong before: another transfer dialled meanwhile, and need not be raced."""
    async with serving() as served, served.client(tries=99) as client:
        assert [entry async for entry in client.listing()] == []
        retries = Retries(client._connections)
        for _ in range(8):
            await retries.wait(ConnectionLost("the one before"))
        assert trio.current_time() <= 8 * JOIN_S


@quick
async def test_no_wait_goes_beyond_the_time_that_there_is() -> None:
    """A server that is there and busy is asked again and again, for ten seconds and no longer."""
    config = ClientConfig(retry_for_s=10.0)
    async with serving() as served, connect_with(served.dial, "memory", _no_sidecar, config) as client:
        assert [entry async for entry in client.listing()] == []
        retries, begun = Retries(client._connections), trio.current_time()
        with suppress(Refused):
            while trio.current_time() - begun < 60.0:
                await retries.wait(Refused("later", code=Code.BUSY, retryable=True))
        assert trio.current_time() - begun == pytest.approx(10.0)


@quick
async def test_a_changed_network_is_not_waited_for(tmp_path: Path) -> None:
    """The old address carries nothing any more and nobody says so; the app knows."""
    path = _file(tmp_path, 3 * MIB)
    async with serving() as served, served.client() as client, trio.open_nursery() as nursery:
        gate = Gate(served.server)
        nursery.start_soon(client.upload, path)
        await gate.waits.wait()
        served.lines[0].fall_silent()
        client.network_changed()
        gate.open()
        await wait_for(lambda: names_in(served.store) == ["file.bin"])
        assert trio.current_time() < 0.1
    assert content_of(served.store, "file.bin") == path.read_bytes()


@pytest.mark.clause("BP1-END-016", "BP1-RES-024")
@quick
@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_line_that_swallows_everything_is_noticed_and_left(tmp_path: Path, way: str) -> None:
    """Only the old connection is a black hole, as when an address is gone; the next one works."""
    path = _file(tmp_path, 8 * MIB)
    async with serving() as served:
        if way == "down":
            async with served.client() as client:
                await client.upload(path)
            served.lines.clear()

        def swallow(progress: Progress) -> None:
            if progress.position_bytes_done >= 2 * MIB:
                served.lines[0].fall_silent()

        async with served.client() as client:
            if way == "up":
                await client.upload(path, progress=swallow)
            else:
                await client.download(path.name, tmp_path / "here", progress=swallow)
        assert len(served.lines) == 2
        assert ACTIVE_S <= trio.current_time() <= ACTIVE_S + ANSWER_S + 1
        sender = served.lines[1].sent if way == "up" else served.lines[1].received
        begun_again = [one.message.blockno for one in frames_of(sender) if isinstance(one.message, Block)]
        assert begun_again
        assert min(begun_again) >= 2  # what was acknowledged stays


@pytest.mark.clause("BP1-RES-027")
@quick
async def test_a_clock_that_was_set_back_a_day_does_not_hinder_who_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        served.line_options = [{"cut_sent": 2_500_000}]
        async with served.client(tries=1) as client:
            with pytest.raises(ConnectionLost):
                await client.upload(path)
        now = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: now - 86_400_000_000_000)
        async with served.client() as client:
            receipt = await client.upload(path)
        assert receipt.blocks_skipped == 2


@pytest.mark.clause("BP1-RES-027")
@quick
async def test_who_takes_over_and_is_refused_again_leaves_it_to_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, by one more than the other's attempt: two that went on would take it from each other for ever."""
    attempts: list[int] = []
    real = LiveUploads.open

    async def others_are_ahead(uploads: LiveUploads, key: Any, facts: Any, attempt: int, *rest: Any) -> Any:
        attempts.append(attempt)
        if len(attempts) <= 5:
            raise Superseded(current=attempt + 1000)
        return await real(uploads, key, facts, attempt, *rest)

    monkeypatch.setattr(LiveUploads, "open", others_are_ahead)
    async with serving() as served, served.client() as client:
        with suppress(Superseded):
            await client.upload(_file(tmp_path))
    assert attempts == [attempts[0], attempts[0] + 1001]


@quick
async def test_a_clock_that_was_set_back_a_day_does_not_hinder_a_download_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        served.line_options = [{"cut_received": 2_500_000}]
        async with served.client(tries=1) as client:
            with pytest.raises(ConnectionLost):
                await client.download("file.bin", tmp_path / "here")
        now = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: now - 86_400_000_000_000)
        async with served.client() as client:
            receipt = await client.download("file.bin", tmp_path / "here")
        assert receipt.blocks_skipped == 2
        assert served.downloaded(tmp_path / "here") == path.read_bytes()


@quick
async def test_a_client_that_keeps_connected_comes_back_by_itself(tmp_path: Path) -> None:
    async with serving() as served, served.client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.keep_connected)
        for number in range(1, 4):
            await wait_for(lambda number=number: len(served.lines) == number)  # type: ignore[misc]
            await trio.sleep_until(trio.current_time() + 60.0)
            await served.lines[-1].cut()
        await wait_for(lambda: len(served.lines) == 4)
        assert trio.current_time() < 180.1
        nursery.cancel_scope.cancel()


@pytest.mark.clause("BP1-END-017")
@quick
async def test_a_server_that_is_gone_is_tried_at_once_then_at_random_below_growing_bounds(
    tmp_path: Path,
) -> None:
    tried: list[float] = []
    told: list[LineEvent] = []
    async with serving() as served:

        async def dial() -> Endpoint:
            if not served.lines:
                return await served.dial()
            tried.append(trio.current_time())
            raise ConnectionLost("no way")

        async with connect_with(dial, "memory", _no_sidecar, ClientConfig(on_line=told.append)) as client:
            assert [entry async for entry in client.listing()] == []
            await served.lines[0].cut()
            await wait_all_tasks_blocked()
            lost_at = trio.current_time()
            with pytest.raises(ConnectionLost, match="no way"):
                await client.upload(_file(tmp_path))
    assert tried[0] == lost_at
    pauses = [after - before for before, after in pairwise(tried)]
    bounds = [*BOUNDS_S[1:], *[BOUNDS_S[-1]] * len(pauses)]
    assert all(pause <= bound for pause, bound in zip(pauses, bounds, strict=False))
    assert len(set(pauses)) == len(pauses) > 3
    assert tried[-1] == pytest.approx(lost_at + RETRY_FOR_S)
    assert [type(event) for event in told] == [Reconnecting] * (len(tried) - 1)
    assert [event.after_s for event in told if isinstance(event, Reconnecting)] == pytest.approx(pauses)


@pytest.mark.clause("BP1-END-017")
@quick
async def test_what_is_asked_for_meanwhile_dials_at_once_and_makes_nobody_wait_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _least, most: most)
    told: list[LineEvent] = []
    dialled: list[float] = []

    async def dial() -> Endpoint:
        dialled.append(trio.current_time())
        raise ConnectionLost("no way")

    async with (
        connect_with(
            dial, "memory", _no_sidecar, ClientConfig(on_line=told.append, retry_for_s=60.0)
        ) as client,
        trio.open_nursery() as nursery,
    ):
        for number in range(10):
            nursery.start_soon(client.upload, _file(tmp_path, name=str(number)))
        await wait_all_tasks_blocked()
        assert dialled == [trio.current_time()] * 10
        await trio.sleep_until(dialled[0] + 59)
        nursery.cancel_scope.cancel()
    assert [event.after_s for event in told if isinstance(event, Reconnecting)] == [*BOUNDS_S[1:]]


@pytest.mark.clause("BP1-END-017", "BP1-ERR-006")
@quick
async def test_who_was_told_when_to_come_back_waits_so_long_and_a_little_more(tmp_path: Path) -> None:
    dialled: list[float] = []

    async def dial() -> Endpoint:
        dialled.append(trio.current_time())
        raise ConnectionLost("busy", retry_after_ms=5000)

    async with connect_with(dial, "away", _no_sidecar, ClientConfig(retry_for_s=60.0)) as client:
        with pytest.raises(ConnectionLost):
            await client.upload(_file(tmp_path))
    pauses = [after - before for before, after in pairwise(dialled)][:-1]  # the last one ends with the time
    assert len(pauses) > 5
    assert all(5.0 <= pause <= 5.0 + AFTER_MOST_S for pause in pauses)
    assert len(set(pauses)) == len(pauses)


@quick
async def test_a_download_that_comes_back_asks_for_the_bytes_at_once(tmp_path: Path) -> None:
    """What the file is was asked before; FETCH names the version."""
    path = _file(tmp_path)
    async with serving() as served:
        async with served.client() as client:
            await client.upload(path)
        served.lines.clear()
        served.line_options = [{"cut_received": 1_500_000}, {"cut_received": 1_000_000}]
        async with served.client() as client:
            receipt = await client.download("file.bin", tmp_path / "copy.bin")
        said = [[one.message for one in frames_of(line.sent) if one.stream] for line in served.lines]
        assert [isinstance(messages[0], List) for messages in said] == [True, False, False]
        assert served.downloaded(tmp_path / "copy.bin") == path.read_bytes()
        assert receipt.payload_bytes_sent == path.stat().st_size
        assert receipt.blocks_sent == receipt.blocknum

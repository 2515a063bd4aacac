"""The transfer queue: what it does with what is wanted, on a clock that jumps and over lines whose rate is known."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from peers import MIB, Served, bytes_of, content_of, frames_of, names_in, run, serving, uploads_in
from slow_lines import SlowLines

from blockproto import QueuedTransfer, TransferQueue, TransferState
from blockproto.client import Client, connect_with
from blockproto.connection.endpoint import Endpoint
from blockproto.errors import Code, NameRefused, NotPermitted, StoreInUse
from blockproto.queue import journal, transfer_queue
from blockproto.queue.entry import Direction
from blockproto.queue.journal import Journal
from blockproto.queue.transfer_queue import wanted
from blockproto.results import FileInfo
from blockproto.testing.chaos import Conditions
from blockproto.wire import List

quick = pytest.mark.trio(run=run)
SERVER = "bp://localhost:7878"
WAITING, RUNNING, PAUSED = TransferState.WAITING, TransferState.RUNNING, TransferState.PAUSED
DONE, FAILED, CANCELLED = TransferState.DONE, TransferState.FAILED, TransferState.CANCELLED


@asynccontextmanager
async def queue_over(
    served: Served, path: Path, conditions: Conditions | None = None
) -> AsyncIterator[TransferQueue]:
    """A queue whose clients reach ``served``, over slow lines if there are conditions."""
    lines = None if conditions is None else SlowLines(served, conditions)

    def connect(_server: str, **_options: object):  # type: ignore[no-untyped-def]
        return served.client() if lines is None else lines.client()

    async with TransferQueue.open(path / "queue.sqlite3", connect=connect) as queue:
        yield queue


def file_of(folder: Path, name: str, length: int, seed: int = 1) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes_of(length, seed))
    return path


def states(queue: TransferQueue) -> list[tuple[str, TransferState]]:
    return [(one.name, one.state) for one in queue.transfers()]


async def wait_state(queue: TransferQueue, id_: int, state: TransferState) -> QueuedTransfer:
    async with aclosing(queue.events()) as events:
        async for one in events:
            if one.id == id_ and one.state is state:
                return one
    raise AssertionError("events never end")


@quick
async def test_what_is_added_is_done_and_stays_to_be_seen(tmp_path: Path) -> None:
    async with serving() as served, queue_over(served, tmp_path) as queue:
        big = await queue.add_upload(file_of(tmp_path, "电影 one.bin", 3 * MIB + 7), SERVER, folder="in/a b")
        small = await queue.add_upload(file_of(tmp_path, "b", 9, 2), SERVER, name="c", priority="interactive")
        await queue.run(until_empty=True)
        assert states(queue) == [("c", DONE), ("in/a b/电影 one.bin", DONE)]
        found = {one.id: one for one in queue.transfers()}
        assert found[big].stored_as == "in/a b/电影 one.bin"
        assert found[big].position == found[big].filesize == 3 * MIB + 7
        assert found[big].sourceid is not None
        assert content_of(served.store, "c") == bytes_of(9, 2)
        assert small == 2


@quick
async def test_what_is_there_already_is_not_added_again(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a", 5)
    async with serving() as served, queue_over(served, tmp_path) as queue:
        first = await queue.add_upload(path, SERVER)
        assert await queue.add_upload(path, SERVER) == first
        assert await queue.add_upload(path, SERVER, name="b") != first
        await queue.run(until_empty=True)
        assert await queue.add_upload(path, SERVER) not in (first, first + 1)


@quick
async def test_added_again_with_another_word_the_last_word_counts(tmp_path: Path) -> None:
    """``queue add --if-exists replace`` of what waits with ``keep`` must replace."""
    path = file_of(tmp_path, "one", 10)
    async with TransferQueue.open(tmp_path / "queue") as queue:
        first = await queue.add_upload(path, SERVER)
        assert await queue.add_upload(path, SERVER, if_exists="replace") == first
        assert [one.if_exists for one in queue.transfers()] == ["replace"]
        await queue.pause(first)
        assert await queue.add_upload(path, SERVER, if_exists="refuse") == first
        assert [(one.if_exists, one.state) for one in queue.transfers()] == [("refuse", TransferState.PAUSED)]


@quick
async def test_a_folder_becomes_its_files_when_its_turn_comes(tmp_path: Path) -> None:
    file_of(tmp_path, "photos/1.jpg", 10)
    file_of(tmp_path, "photos/sub/2.jpg", 20, 2)
    (tmp_path / "photos" / "empty").mkdir()
    (tmp_path / "photos" / "link").symlink_to("1.jpg")
    async with serving() as served, queue_over(served, tmp_path) as queue:
        folder = await queue.add_upload(tmp_path / "photos", SERVER)
        await queue.run(until_empty=True)
        found = queue.transfers()
        assert found[0].id == folder
        assert found[0].became == 3
        assert {one.folder_id for one in found[1:]} == {folder}
        assert {one.state for one in found} == {DONE}
        names = names_in(served.store)
        assert names == ["photos", "photos/1.jpg", "photos/empty", "photos/sub", "photos/sub/2.jpg"]


@quick
@pytest.mark.parametrize("replaced", [False, True])
async def test_what_a_file_is_is_asked_once_and_again_if_it_was_replaced_since(
    tmp_path: Path, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as served, queue_over(served, tmp_path) as queue:
        async with served.client() as other:
            await other.upload(file_of(tmp_path, "a", MIB + 1), name="film")
            stat = Client.stat

            async def stat_before_it_is_replaced(client: Client, name: str) -> FileInfo:
                entry = await stat(client, name)
                if replaced:
                    newer = file_of(tmp_path, "b", 2 * MIB, 2)
                    await other.upload(newer, name="film", if_exists="replace")
                return entry

            monkeypatch.setattr(Client, "stat", stat_before_it_is_replaced)
            await queue.add_download(SERVER, "film", tmp_path / "got")
            await queue.run(until_empty=True)
        assert served.downloaded(tmp_path / "got") == (
            bytes_of(2 * MIB, 2) if replaced else bytes_of(MIB + 1)
        )
        asked = [one.message for one in frames_of(served.lines[-1].sent) if isinstance(one.message, List)]
        assert len(asked) == (2 if replaced else 1)


@quick
async def test_what_is_done_to_a_folder_is_done_to_its_files(tmp_path: Path) -> None:
    for number in range(4):
        file_of(tmp_path, f"many/{number}", 2 * MIB, number)
    slow = Conditions(up_bytes_s=MIB, down_bytes_s=MIB)
    async with serving() as served, queue_over(served, tmp_path, slow) as queue:
        folder = await queue.add_upload(tmp_path / "many", SERVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.run)
            await wait_state(queue, folder + 1, RUNNING)
            assert len(await queue.pause(folder)) == 4
            assert [state for _, state in states(queue)] == [DONE, PAUSED, PAUSED, PAUSED, PAUSED]
            assert len(await queue.cancel(folder)) == 4
            nursery.cancel_scope.cancel()


@quick
async def test_a_small_interactive_one_passes_big_bulk_ones(tmp_path: Path) -> None:
    slow = Conditions(up_bytes_s=MIB, down_bytes_s=MIB, round_trip_s=0.1)
    async with serving() as served, queue_over(served, tmp_path, slow) as queue:
        bulk = [
            await queue.add_upload(file_of(tmp_path, f"{n}.iso", 6 * MIB, n), SERVER, priority="bulk")
            for n in (1, 2, 3)
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: queue.run(at_once=2))
            await wait_state(queue, bulk[1], RUNNING)
            path = file_of(tmp_path, "voice.ogg", 200_000)
            begun = trio.current_time()
            voice = await queue.add_upload(path, SERVER, priority="interactive")
            await wait_state(queue, voice, DONE)
            assert trio.current_time() - begun < 2.0  # alone on the line it takes 0.2 s
            assert [state for _, state in states(queue)] == [DONE, RUNNING, RUNNING, WAITING]
            nursery.cancel_scope.cancel()


@quick
async def test_a_server_that_cannot_be_reached_holds_up_no_other(tmp_path: Path) -> None:
    async with serving() as served:

        def connect(server: str, **_options: object):  # type: ignore[no-untyped-def]
            return (
                served.client() if server == SERVER else connect_with(_nobody, server, served.open_part_file)
            )

        async with TransferQueue.open(tmp_path / "q", connect=connect) as queue:
            for number in range(5):
                await queue.add_upload(file_of(tmp_path, f"away {number}", 9), "bp://away:7878")
            there = await queue.add_upload(file_of(tmp_path, "there", 9), SERVER)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queue.run)
                await wait_state(queue, there, DONE)
                nursery.cancel_scope.cancel()
        assert names_in(served.store) == ["there"]


async def _nobody() -> Endpoint:
    await trio.sleep_forever()
    raise AssertionError


@quick
@pytest.mark.parametrize("up", [True, False])
async def test_another_priority_reaches_what_runs(up: bool, tmp_path: Path) -> None:
    """It goes on with what was acknowledged, and gets its new share of the line."""
    names = ["a", "b"]
    async with serving() as served:
        lines = SlowLines(served, Conditions(up_bytes_s=MIB, down_bytes_s=MIB))
        if not up:
            async with served.client() as client:
                for name in names:
                    await client.upload(file_of(tmp_path, name, 6 * MIB))
        async with TransferQueue.open(tmp_path / "q", connect=lambda *_, **__: lines.client()) as queue:
            for name in names:
                if up:
                    await queue.add_upload(file_of(tmp_path, name, 6 * MIB), SERVER, priority="bulk")
                else:
                    await queue.add_download(SERVER, name, tmp_path / f"got {name}", priority="bulk")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queue.run)
                async with aclosing(queue.events()) as events:
                    async for one in events:
                        if one.position >= MIB:
                            break
                await queue.set_priority(one.id, priority="interactive")
                await wait_state(queue, one.id, DONE)
                (other,) = (other for other in queue.transfers() if other.id != one.id)
                assert other.state is RUNNING
                assert other.position <= 2 * MIB
                await wait_state(queue, other.id, DONE)
                nursery.cancel_scope.cancel()
        passed = sum((line.up if up else line.down).handed_on for line in lines.lines)
        assert 12 * MIB < passed < 12.5 * MIB  # a piece or two were under way when it stopped


@quick
async def test_paused_and_resumed_it_goes_on_where_it_was(tmp_path: Path) -> None:
    slow = Conditions(up_bytes_s=MIB, down_bytes_s=MIB)
    path = file_of(tmp_path, "film", 5 * MIB)
    async with serving() as served, queue_over(served, tmp_path, slow) as queue:
        id_ = await queue.add_upload(path, SERVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.run)
            async with aclosing(queue.events()) as events:
                async for one in events:
                    if one.position >= 2 * MIB:
                        break
            assert await queue.pause(id_) == [id_]
            assert await queue.pause(id_) == []
            (upload,) = uploads_in(served.store)
            assert 2 <= upload.held_count < 5
            assert (await queue.resume(), await queue.resume()) == ([id_], [])
            done = await wait_state(queue, id_, DONE)
            assert done.position == 5 * MIB
            nursery.cancel_scope.cancel()
        assert content_of(served.store, "film") == path.read_bytes()


@quick
async def test_paused_and_resumed_at_once_it_is_not_lost(tmp_path: Path) -> None:
    slow = Conditions(up_bytes_s=MIB, down_bytes_s=MIB)
    async with serving() as served, queue_over(served, tmp_path, slow) as queue:
        id_ = await queue.add_upload(file_of(tmp_path, "film", 3 * MIB), SERVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.run)
            await wait_state(queue, id_, RUNNING)
            other = Journal(tmp_path / "queue.sqlite3")
            assert other.change([id_], [RUNNING], PAUSED) == other.change([id_], [PAUSED], WAITING) == [id_]
            other.close()
            await wait_state(queue, id_, DONE)
            nursery.cancel_scope.cancel()


@quick
async def test_a_cancelled_upload_leaves_nothing_on_the_server(tmp_path: Path) -> None:
    slow = Conditions(up_bytes_s=MIB, down_bytes_s=MIB)
    async with serving() as served, queue_over(served, tmp_path, slow) as queue:
        id_ = await queue.add_upload(file_of(tmp_path, "film", 4 * MIB), SERVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.run)
            async with aclosing(queue.events()) as events:
                async for one in events:
                    if one.position >= MIB:
                        break
            nursery.cancel_scope.cancel()
        assert states(queue) == [("film", WAITING)]
        assert len(uploads_in(served.store)) == 1
        assert await queue.cancel(id_) == [id_]  # nothing runs now: the next run tidies
        await queue.run(until_empty=True)
        assert uploads_in(served.store) == []
        assert states(queue) == [("film", CANCELLED)]
        assert (await queue.retry(), await queue.retry(id_)) == ([], [id_])
        await queue.run(until_empty=True)
        assert states(queue) == [("film", DONE)]


@quick
async def test_what_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    async with serving() as served, queue_over(served, tmp_path) as queue:
        gone = await queue.add_upload(tmp_path / "gone", SERVER)
        refused = await queue.add_upload(file_of(tmp_path, "a", 3), SERVER, name="x", if_exists="refuse")
        async with served.client() as client:
            await client.upload(file_of(tmp_path, "other", 4), name="x")
        fine = await queue.add_upload(file_of(tmp_path, "b", 3), SERVER)
        await queue.run(until_empty=True)
        found = {one.id: one for one in queue.transfers()}
        assert found[fine].state is DONE
        assert (found[gone].state, found[gone].code, found[gone].retryable) == (FAILED, None, False)
        assert "No such file" in (found[gone].error or "")
        assert found[refused].code == Code.FILE_EXISTS
        file_of(tmp_path, "gone", 5)
        assert await queue.retry() == [gone, refused]
        await queue.run(until_empty=True)
        after = {one.id: one for one in queue.transfers()}
        assert (after[gone].state, after[gone].error) == (DONE, None)
        assert after[refused].state is FAILED


@quick
async def test_what_was_committed_before_the_program_died_is_not_sent_again(tmp_path: Path) -> None:
    """The server has it all, and the journal could not be told: also a file so small that it goes without a question."""
    async with serving() as served, queue_over(served, tmp_path) as queue:
        ids = [
            await queue.add_upload(file_of(tmp_path, "small", 9), SERVER),
            await queue.add_upload(file_of(tmp_path, "big", 3 * MIB), SERVER),
        ]
        await queue.run(until_empty=True)
        before = served.payload_sent
        with sqlite3.connect(tmp_path / "queue.sqlite3") as database:
            database.execute("UPDATE transfers SET state = 'running', untidy = 1, stored_as = NULL")
        database.close()
        await queue.run(until_empty=True)
        assert [one.state for one in queue.transfers()] == [DONE, DONE]
        assert served.payload_sent == before == 9 + 3 * MIB
        assert len(ids) == 2


@quick
async def test_order_is_priority_then_place_and_can_be_changed(tmp_path: Path) -> None:
    async with serving() as served, queue_over(served, tmp_path) as queue:
        a, b, c, d = [await queue.add_upload(tmp_path / name, SERVER) for name in "abcd"]

        def order() -> str:
            return "".join(one.name for one in queue.transfers())

        await queue.move(d, c, first=True)
        assert order() == "dcab"
        await queue.move(a, before=d)
        assert order() == "adcb"
        await queue.move(d, after=b)
        assert order() == "acbd"
        await queue.move(a)
        assert order() == "cbda"
        await queue.set_priority(a, b, priority="interactive")
        assert order() == "bacd"
        with pytest.raises(ValueError, match="beside itself"):
            await queue.move(a, before=a)
        with pytest.raises(ValueError, match="no transfer 99"):
            await queue.pause(99)
        assert order() == "bacd"


@quick
@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (lambda queue: queue.add_upload("a", "http://x"), ValueError, "not a server"),
        (lambda queue: queue.add_upload("a", "bp://h/folder/"), ValueError, "names a folder or file"),
        (lambda queue: queue.add_download("bps://h:x", "a", "b"), ValueError, "not an address"),
        (lambda queue: queue.add_upload("a", SERVER, name="../b"), NameRefused, "dot-component"),
        (lambda queue: queue.add_upload("a", SERVER, priority="high"), ValueError, "interactive, normal"),
        (lambda queue: queue.add_upload("a", SERVER, if_exists="ask"), ValueError, "keep, refuse"),
        (lambda queue: queue.run(at_once=0), ValueError, "1 or more"),
    ],
)
async def test_what_can_never_work_is_refused_at_once(
    change: Callable[..., object], error: type[Exception], what: str, tmp_path: Path
) -> None:
    async with serving() as served, queue_over(served, tmp_path) as queue:
        with pytest.raises(error, match=what):
            await change(queue)  # type: ignore[misc]
        assert queue.transfers() == []


@quick
async def test_one_runs_it_at_a_time(tmp_path: Path) -> None:
    async with (
        serving() as served,
        queue_over(served, tmp_path) as queue,
        queue_over(served, tmp_path) as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(queue.run)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await other.is_running()
        with pytest.raises(StoreInUse, match="runs the queue"):
            await other.run()
        id_ = await other.add_upload(file_of(tmp_path, "a", 3), SERVER)
        await wait_state(other, id_, DONE)
        nursery.cancel_scope.cancel()
    assert sorted(os.listdir(tmp_path)) == ["a", "queue.sqlite3", "queue.sqlite3.lock"]


async def test_a_file_that_is_no_queue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, and long enough to be taken for one" * 9)
    later = tmp_path / "later"
    with sqlite3.connect(later) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    for path in (tmp_path / "text", later, tmp_path):
        with pytest.raises(NotPermitted, match="cannot be opened"):
            async with TransferQueue.open(path):
                raise AssertionError("it was opened")


def test_of_what_has_ended_the_newest_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockproto.queue.journal.ENDED_MAX", 2)
    journal = Journal(tmp_path / "deep" / "er" / "q")
    assert (tmp_path / "deep" / "er" / "q").stat().st_mode & 0o777 == 0o600
    wanted = [
        transfer_queue.wanted(transfer_queue.Direction.UPLOAD, SERVER, name, tmp_path, "keep", "normal")
        for name in "abcde"
    ]
    ids = journal.add(wanted)
    for id_ in ids[:4]:
        journal.done(id_, "x", 1)
    journal.failed(ids[4], "not running: stays", 1, True)
    journal.recover()
    assert [one.id for one in journal.all()] == ids[2:]
    assert journal.all()[-1].state is WAITING
    journal.close()


def test_what_begins_is_told_while_another_thread_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reader sees stands still while it reads: who begins a transfer must not be told of that state."""
    with closing(Journal(tmp_path / "queue.sqlite3")) as queue:
        ids = queue.add(
            [wanted(Direction.UPLOAD, SERVER, name, tmp_path / name, "keep", "normal") for name in "ab"]
        )
        reads, goes_on = threading.Event(), threading.Event()
        really_transfer = journal._transfer

        def transfer_slowly(row: sqlite3.Row) -> QueuedTransfer:
            if threading.current_thread() is not threading.main_thread():
                reads.set()
                assert goes_on.wait(60)
            return really_transfer(row)

        monkeypatch.setattr(journal, "_transfer", transfer_slowly)
        reader = threading.Thread(target=queue.all)
        reader.start()
        try:
            assert reads.wait(60)
            begun = queue.begin(ids)
        finally:
            goes_on.set()
            reader.join()
        assert [(one.id, one.state) for one in begun] == [(id_, RUNNING) for id_ in ids]


@quick
async def test_until_empty_leaves_nothing_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read of the queue at the same time."""
    really_begin = Journal.begin

    def begin(self: Journal, ids: Sequence[int]) -> list[QueuedTransfer]:
        with closing(self._reader.execute("SELECT * FROM transfers")) as rows:
            rows.fetchone()
            return really_begin(self, ids)

    monkeypatch.setattr(Journal, "begin", begin)
    async with serving() as served, queue_over(served, tmp_path) as queue:
        for seed in range(6):
            await queue.add_upload(file_of(tmp_path, str(seed), 9, seed), SERVER)
        await queue.run(until_empty=True)
        assert {state for _, state in states(queue)} == {DONE}

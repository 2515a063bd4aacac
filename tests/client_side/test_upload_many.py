"""Many files at once: pipelined, skipped when they are there, and no failure stops the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from peers import (
    MIB,
    Gate,
    Served,
    WatchedStore,
    bytes_of,
    content_of,
    frames_of,
    names_in,
    run,
    serving,
)
from trio.testing import wait_all_tasks_blocked

from blockproto.client import Client, connect_with
from blockproto.client_side.connections import BOUNDS_S
from blockproto.client_side.context import Context
from blockproto.client_side.upload_brief import BriefSendStream
from blockproto.client_side.upload_decision import Asked, Prepared, UploadDecisions
from blockproto.common.names import SafeName
from blockproto.connection.endpoint import Endpoint
from blockproto.errors import (
    BlockprotoError,
    ConnectionLost,
    FileExists,
    HookRefused,
    NameRefused,
    Refused,
    SourceChanged,
    UnexpectedMessage,
)
from blockproto.protocol.session import Limits
from blockproto.results import Receipt, UploadJob
from blockproto.store import Facts, UploadStore
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.hooks import CommitHooks, FileToCommit
from blockproto.transfer.send_source import Progress
from blockproto.wire import Block, Committed, List, Open, Piece

quick = pytest.mark.trio(run=run)

Outcomes = dict[str, Receipt | BlockprotoError]


def _tree(folder: Path, number: int, size: int = 100) -> list[UploadJob]:
    """Small files with content of their own, as jobs."""
    folder.mkdir(exist_ok=True)
    jobs = []
    for at in range(number):
        path = folder / f"file {at:04}"
        path.write_bytes(bytes_of(size, at))
        jobs.append(UploadJob(path, f"up/{path.name}"))
    return jobs


async def _upload(client: Client, jobs: Iterable[UploadJob], **options: Any) -> Outcomes:
    """All outcomes by the jobs' names; a job that ends twice fails the test."""
    outcomes: Outcomes = {}
    async for job, outcome in client.upload_all(jobs, **options):
        assert job.name not in outcomes
        outcomes[job.name] = outcome
    return outcomes


def _errors(outcomes: Outcomes) -> dict[str, type[BlockprotoError]]:
    return {name: type(outcome) for name, outcome in outcomes.items() if isinstance(outcome, BlockprotoError)}


def _assert_all_there(store: MemoryStore, jobs: Iterable[UploadJob]) -> None:
    for job in jobs:
        assert content_of(store, job.name) == job.path.read_bytes()


# ---- the ordinary course --------------------------------------------------------------------------------------


@quick
async def test_many_small_files_arrive(tmp_path: Path) -> None:
    jobs = _tree(tmp_path / "tree", 300)
    async with serving() as served, served.client() as client:
        outcomes = await _upload(client, jobs)
        assert list(outcomes) == [job.name for job in jobs]
        assert _errors(outcomes) == {}
        _assert_all_there(served.store, jobs)
        assert len(served.lines) == 1
        first = outcomes["up/file 0000"]
        assert isinstance(first, Receipt)
        assert (first.filesize, first.blocks_sent, first.payload_bytes_sent) == (100, 1, 100)
        assert first.b3sum == first.root
        assert first.stored_as == "up/file 0000"


@quick
async def test_a_second_run_sends_no_content_and_asks_for_hundreds_at_once(tmp_path: Path) -> None:
    jobs = _tree(tmp_path / "tree", 300)
    async with serving() as served:
        async with served.client() as client:
            before = await _upload(client, jobs)
        served.lines.clear()
        async with served.client() as client:
            after = await _upload(client, jobs)
        assert served.payload_sent == 0
        frames = [frame.message for frame in frames_of(served.lines[0].sent)]
        assert sum(isinstance(frame, List) for frame in frames) <= 2
        assert not any(isinstance(frame, Block) for frame in frames)
        for name, receipt in after.items():
            assert isinstance(receipt, Receipt)
            assert (receipt.resumed, receipt.blocks_sent, receipt.payload_bytes_sent) == (True, 0, 0)
            other = before[name]
            assert isinstance(other, Receipt)
            assert (receipt.root, receipt.b3sum, receipt.sourceid) == (
                other.root,
                other.b3sum,
                other.sourceid,
            )


@quick
async def test_no_file_waits_for_the_answer_to_another(tmp_path: Path) -> None:
    """While the server makes nothing durable and so answers nothing, everything is sent all the same."""
    jobs = _tree(tmp_path / "tree", 1000)
    async with serving() as served, served.client() as client, trio.open_nursery() as nursery:
        gate = Gate(served.server)
        nursery.start_soon(_upload, client, jobs)
        await wait_all_tasks_blocked()
        assert served.payload_sent == 1000 * 100
        gate.open()


@quick
async def test_no_more_streams_are_open_than_the_server_allows(tmp_path: Path) -> None:
    jobs = _tree(tmp_path / "tree", 600)
    async with serving(limits=Limits(streams_max=256), files=False) as served, served.client() as client:
        gate = Gate(served.server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_upload, client, jobs)
            await wait_all_tasks_blocked()
            assert served.payload_sent == 256 * 100
            gate.open()
        _assert_all_there(served.store, jobs)


@quick
@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MIB - 1, MIB])
async def test_files_of_at_most_one_block_go_without_open(tmp_path: Path, size: int) -> None:
    jobs = _tree(tmp_path / "tree", 3, size)
    async with serving() as served, served.client() as client:
        assert _errors(await _upload(client, jobs)) == {}
        _assert_all_there(served.store, jobs)
        sent = [frame.message for frame in frames_of(served.lines[0].sent)]
        assert not any(isinstance(message, Open) for message in sent)
        assert any(isinstance(message, Piece) for message in sent) or size < 65_536


@quick
async def test_big_files_go_with_open_and_resume(tmp_path: Path) -> None:
    jobs = [*_tree(tmp_path / "small", 3), *_tree(tmp_path / "big", 2, MIB + 5)]
    jobs[3:] = [UploadJob(job.path, job.name.replace("up", "big")) for job in jobs[3:]]
    async with serving() as served:
        served.line_options = [{"cut_sent": MIB + 100_000}]
        async with served.client() as client:
            assert _errors(await _upload(client, jobs)) == {}
        _assert_all_there(served.store, jobs)
        assert served.payload_sent == 300 + 2 * (MIB + 5)


@quick
async def test_folders_facts_and_policies_go_along(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o750)
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"content")
    path.chmod(0o604)
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    jobs = [UploadJob(tmp_path / "empty", "a/empty"), UploadJob(path, "a/photo.jpg")]
    async with serving() as served, served.client() as client:
        outcomes = await _upload(client, jobs)
        assert _errors(outcomes) == {}
        folder, photo = await client.stat("a/empty"), await client.stat("a/photo.jpg")
        assert (folder.folder, photo.folder) == (True, False)
        assert (photo.mode, photo.mtime_ns, photo.filetype) == (
            0o604,
            1_234_567_890_123_456_789,
            "image/jpeg",
        )
        path.write_bytes(b"CONTENT")
        again = [UploadJob(path, "a/photo.jpg", policy) for policy in ("refuse", "replace")]
        async for job, outcome in client.upload_all(again):
            if job.if_exists == "refuse":
                assert isinstance(outcome, FileExists)
            else:
                assert isinstance(outcome, Receipt)
                assert outcome.stored_as == "a/photo.jpg"
        assert content_of(served.store, "a/photo.jpg") == b"CONTENT"


@quick
async def test_jobs_are_looked_at_a_page_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockproto.client_side.upload_many.PAGE_JOBS", 5)
    jobs = _tree(tmp_path / "tree", 73)
    given: list[UploadJob] = []

    def giving() -> Iterator[UploadJob]:
        for job in jobs:
            given.append(job)
            yield job

    async with serving() as served, served.client() as client:
        taken = 0
        async for _ in client.upload_all(giving()):
            taken += 1
            assert len(given) <= taken + 9 * 5, (
                "four streams, one waits, one compared, asked about, prepared, delivered"
            )
        assert taken == 73
        _assert_all_there(served.store, jobs)


@quick
async def test_nothing_to_upload(tmp_path: Path) -> None:
    async with serving() as served, served.client() as client:
        assert await _upload(client, []) == {}
        assert served.lines == []


@quick
@pytest.mark.parametrize("page", [1000, 1])
async def test_the_same_job_twice_ends_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr("blockproto.client_side.upload_many.PAGE_JOBS", page)
    (job,) = _tree(tmp_path / "tree", 1)
    async with serving() as served, served.client() as client:
        ended = [outcome async for _, outcome in client.upload_all([job, job])]
        assert [type(outcome) for outcome in ended] == [Receipt, Receipt]
        assert names_in(served.store) == ["up", "up/file 0000"]


@quick
async def test_progress_is_told_for_every_file(tmp_path: Path) -> None:
    jobs = _tree(tmp_path / "tree", 10)
    seen: list[Progress] = []
    async with serving() as served, served.client() as client:
        await _upload(client, jobs, progress=seen.append)
    assert {progress.filename for progress in seen} == {job.name for job in jobs}
    assert {progress.position_bytes_done for progress in seen} == {100}


# ---- what fails -----------------------------------------------------------------------------------------------


@quick
async def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    good = _tree(tmp_path / "tree", 5)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    bad = [
        UploadJob(tmp_path / "absent", "up/absent"),
        UploadJob(pipe, "up/pipe"),
        UploadJob(good[0].path, "../up"),
        UploadJob(good[0].path, "x" * 300),
    ]
    jobs = [bad[0], good[0], bad[1], good[1], good[2], bad[2], bad[3], good[3], good[4]]
    async with serving() as served, served.client() as client:
        outcomes = await _upload(client, jobs)
        assert len(outcomes) == 9
        assert _errors(outcomes) == {
            "up/absent": Refused,
            "up/pipe": Refused,
            "../up": NameRefused,
            "x" * 300: NameRefused,
        }
        assert "No such file" in str(outcomes["up/absent"])
        _assert_all_there(served.store, good)


@quick
async def test_a_file_that_changes_after_it_was_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By size or by time: it would get the other one's facts and sourceid."""
    jobs = _tree(tmp_path / "tree", 3)

    async def receipts(context: Context, sourceids: object) -> dict[bytes, object]:
        jobs[0].path.write_bytes(b"longer than it was before" * 10)
        os.utime(jobs[1].path, ns=(1, 1))
        await trio.lowlevel.checkpoint()
        return {}

    monkeypatch.setattr(Context, "receipts", receipts)
    async with serving() as served, served.client() as client:
        outcomes = await _upload(client, jobs)
        assert _errors(outcomes) == {jobs[0].name: SourceChanged, jobs[1].name: SourceChanged}
        assert names_in(served.store) == ["up", "up/file 0002"]


@quick
async def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _tree(tmp_path / "tree", 3, MIB + 5)
    reads = os.preadv

    def failing(fd: int, buffers: Any, position: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") == str(jobs[1].path):
            raise OSError(5, "Input/output error")
        return reads(fd, buffers, position)

    monkeypatch.setattr(os, "preadv", failing)
    async with serving() as served, served.client() as client:
        outcomes = await _upload(client, jobs)
        assert _errors(outcomes) == {jobs[1].name: Refused}
        assert "Input/output error" in str(outcomes[jobs[1].name])
        _assert_all_there(served.store, [jobs[0], jobs[2]])


@quick
async def test_a_big_file_that_is_gone_when_its_turn_comes_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _tree(tmp_path / "tree", 3, MIB + 5)

    async def receipts(context: Context, sourceids: object) -> dict[bytes, object]:
        jobs[1].path.unlink()
        await trio.lowlevel.checkpoint()
        return {}

    monkeypatch.setattr(Context, "receipts", receipts)
    async with serving() as served, served.client() as client:
        assert _errors(await _upload(client, jobs)) == {jobs[1].name: Refused}
        _assert_all_there(served.store, [jobs[0], jobs[2]])


@quick
async def test_a_big_file_whose_connection_stays_lost_is_told_with_the_rest(tmp_path: Path) -> None:
    jobs = [*_tree(tmp_path / "small", 3), *_tree(tmp_path / "big", 2, 2 * MIB)]
    jobs[3:] = [UploadJob(job.path, job.name.replace("up", "big")) for job in jobs[3:]]
    async with serving() as served:
        served.line_options = [{"cut_sent": MIB}]
        async with served.client(tries=1) as client:
            outcomes = await _upload(client, jobs)
        assert set(outcomes) == {job.name for job in jobs}
        assert _errors(outcomes) == {job.name: ConnectionLost for job in jobs[3:]}


@quick
@pytest.mark.parametrize("cut", [5, 5000, 50_000, 100_000])
async def test_after_a_lost_connection_the_rest_is_sent_and_every_job_ends_once(
    tmp_path: Path, cut: int
) -> None:
    jobs = _tree(tmp_path / "tree", 500)
    async with serving() as served:
        served.line_options = [{"cut_sent": cut}, {"cut_received": 3000}]
        async with served.client() as client:
            assert _errors(await _upload(client, iter(jobs))) == {}
        _assert_all_there(served.store, jobs)
        assert len(names_in(served.store)) == 501


@quick
async def test_what_stays_lost_is_told_for_every_job(tmp_path: Path) -> None:
    jobs = _tree(tmp_path / "tree", 20)

    async def dial() -> Endpoint:
        raise ConnectionLost("no way")

    async with connect_with(dial, "nowhere", _no_sidecar) as client:
        outcomes = await _upload(client, jobs)
        assert set(outcomes) == {job.name for job in jobs}
        assert set(_errors(outcomes).values()) == {ConnectionLost}


def _no_sidecar(dest: Path, first: int) -> UploadStore:
    raise AssertionError


@quick
async def test_small_files_that_come_too_late_for_a_stopping_server_go_to_the_next(tmp_path: Path) -> None:
    jobs = _tree(tmp_path / "tree", 400)
    store = WatchedStore()
    current: list[Served] = []
    outcomes: Outcomes = {}

    async def dial() -> Endpoint:
        return await current[-1].dial()

    async def upload() -> None:
        async with connect_with(dial, "memory", _no_sidecar) as client:
            outcomes.update(await _upload(client, jobs))

    async with trio.open_nursery() as nursery:
        async with serving(store, limits=Limits(streams_max=256)) as served:
            current.append(served)
            store.before_commit = lambda batch: served.server.stop()
            nursery.start_soon(upload)
            await wait_all_tasks_blocked()
        after = store.survivor()
        async with serving(after) as served:
            current.append(served)
            while not outcomes:
                await trio.sleep_until(trio.current_time() + 0.5)
                await wait_all_tasks_blocked()
    assert _errors(outcomes) == {}
    _assert_all_there(after, jobs)


@quick
async def test_who_stops_listening_early_stops_the_upload_and_nothing_else(tmp_path: Path) -> None:
    jobs = _tree(tmp_path / "tree", 2500)
    async with serving() as served, served.client() as client:
        async with aclosing(client.upload_all(jobs)) as outcomes:
            async for _ in outcomes:
                break
        await wait_all_tasks_blocked()
        assert await client.stat("up/file 0000")
        assert len(served.lines) <= 2


@quick
async def test_a_cancelled_upload_of_many_stops(tmp_path: Path) -> None:
    jobs = _tree(tmp_path / "tree", 300)
    async with serving() as served, served.client() as client:
        gate = Gate(served.server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_upload, client, jobs)
            await gate.waits.wait()
            nursery.cancel_scope.cancel()
        gate.open()
        await wait_all_tasks_blocked()
        assert _errors(await _upload(client, jobs)) == {}
        _assert_all_there(served.store, jobs)


@quick
async def test_a_receiver_that_sends_payload_ends_the_connection(tmp_path: Path) -> None:
    ended: list[Committed | BlockprotoError] = []
    send_stream = BriefSendStream(Facts(SafeName.parse("a"), "text/plain", 0, None, None), None, ended.append)
    with pytest.raises(UnexpectedMessage):
        await send_stream.payload(0, memoryview(b"x"), True)
    send_stream.ended(ConnectionLost("gone"))
    send_stream.ended(ConnectionLost("again"))
    assert [str(error) for error in ended] == ["gone"]


# ---- what is refused for now ----------------------------------------------------------------------------------


class Busy:
    """A hook that refuses the files of some names for now, ``times`` each.

    Attributes:
        asked: when each file was asked about (s).
    """

    def __init__(self, *names: str, times: int = 2, **facts: Any) -> None:
        self.asked: dict[str, list[float]] = {}
        self._names = names
        self._times = times
        self._facts = {"retryable": True, **facts}

    async def __call__(self, file: FileToCommit) -> None:
        await trio.lowlevel.checkpoint()
        asked = self.asked.setdefault(file.filename, [])
        asked.append(trio.current_time())
        if file.filename in self._names and len(asked) <= self._times:
            raise HookRefused(f"{file.filename}: not now", **self._facts)


SMALL, BIG = 100, 2 * MIB


@quick
@pytest.mark.clause("BP1-COM-031", "BP1-ERR-006")
@pytest.mark.parametrize("files", [True, False])
@pytest.mark.parametrize("size", [SMALL, BIG])
async def test_what_is_refused_for_now_is_sent_again(tmp_path: Path, size: int, files: bool) -> None:
    """Small files in frames, small ones of an older server, and big ones: all the same."""
    jobs = _tree(tmp_path / "tree", 3, size)
    busy = Busy("up/file 0001", retry_after_ms=700)
    async with serving(hooks=CommitHooks(before=[busy]), files=files) as served, served.client() as client:
        outcomes = await _upload(client, jobs)
        assert _errors(outcomes) == {}
        _assert_all_there(served.store, jobs)
    asked = busy.asked["up/file 0001"]
    assert [len(times) for _, times in sorted(busy.asked.items())] == [1, 3, 1]
    assert all(later - earlier >= 0.7 for earlier, later in pairwise(asked))


@quick
@pytest.mark.parametrize("size", [SMALL, BIG])
async def test_what_stays_refused_fails_in_the_end_with_its_own_reason(tmp_path: Path, size: int) -> None:
    jobs = _tree(tmp_path / "tree", 4, size)
    busy = Busy("up/file 0001", "up/file 0003", times=1000)
    async with (
        serving(hooks=CommitHooks(before=[busy])) as served,
        served.client(tries=1000, retry_for_s=40) as client,
    ):
        outcomes = await _upload(client, jobs)
    assert {name: str(one) for name, one in outcomes.items() if isinstance(one, HookRefused)} == {
        "up/file 0001": "up/file 0001: not now",
        "up/file 0003": "up/file 0003: not now",
    }
    for name in _errors(outcomes):
        assert len(busy.asked[name]) > 3
        assert 20 < busy.asked[name][-1] - busy.asked[name][0] <= 40 + BOUNDS_S[-1]


@quick
async def test_a_job_waits_for_another_of_its_name_that_is_refused_for_now(tmp_path: Path) -> None:
    (job,) = _tree(tmp_path / "tree", 1)
    busy = Busy(job.name, retry_after_ms=700)
    async with serving(hooks=CommitHooks(before=[busy])) as served, served.client() as client:
        with trio.fail_after(30):
            ended = [outcome async for _, outcome in client.upload_all([job, job])]
        assert [type(outcome) for outcome in ended] == [Receipt] * 2
    assert len(busy.asked[job.name]) == 3, "the second was there already"


@quick
async def test_the_next_page_is_looked_at_while_the_last_one_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.client_side.upload_many.PAGE_JOBS", 3)
    jobs = _tree(tmp_path / "tree", 9)
    held = trio.Event()

    async def hold(_file: FileToCommit) -> None:
        await held.wait()

    def giving() -> Iterator[UploadJob]:
        yield from jobs
        held.set()  # nothing is answered until the last job was asked for

    async with serving(hooks=CommitHooks(before=[hold])) as served, served.client() as client:
        with trio.fail_after(30):
            ended = [outcome async for _, outcome in client.upload_all(giving())]
        assert [type(outcome) for outcome in ended] == [Receipt] * 9


@quick
async def test_the_next_page_is_prepared_while_the_server_is_asked_about_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.client_side.upload_many.PAGE_JOBS", 3)
    jobs = _tree(tmp_path / "tree", 9)
    ask, all_given = UploadDecisions.ask, trio.Event()

    async def ask_late(self: UploadDecisions, ones: Sequence[Prepared]) -> Any:
        if ones[0].job is jobs[3]:
            await all_given.wait()
        return await ask(self, ones)

    def giving() -> Iterator[UploadJob]:
        yield from jobs[:8]
        all_given.set()
        yield jobs[8]

    monkeypatch.setattr(UploadDecisions, "ask", ask_late)
    async with serving() as served, served.client() as client:
        with trio.fail_after(30):
            ended = [outcome async for _, outcome in client.upload_all(giving())]
        assert [type(outcome) for outcome in ended] == [Receipt] * 9


@quick
async def test_the_server_is_asked_about_the_next_page_while_the_last_one_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.client_side.upload_many.PAGE_JOBS", 3)
    jobs = _tree(tmp_path / "tree", 9)
    ask, judge, last_asked = UploadDecisions.ask, UploadDecisions.judge, trio.Event()

    async def asking(self: UploadDecisions, ones: Sequence[Prepared]) -> Asked:
        asked = await ask(self, ones)
        if ones[0].job is jobs[6]:
            last_asked.set()
        return asked

    async def judge_late(self: UploadDecisions, asked: Asked) -> Any:
        if asked.ones[0].job is jobs[3]:
            await last_asked.wait()
        return await judge(self, asked)

    monkeypatch.setattr(UploadDecisions, "ask", asking)
    monkeypatch.setattr(UploadDecisions, "judge", judge_late)
    async with serving() as served, served.client() as client:
        with trio.fail_after(30):
            assert len([outcome async for _, outcome in client.upload_all(jobs)]) == 9


@quick
async def test_files_behind_one_that_stays_refused_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockproto.client_side.upload_many.PAGE_JOBS", 2)
    jobs = _tree(tmp_path / "tree", 6)
    busy = Busy("up/file 0001", times=1000)
    async with (
        serving(hooks=CommitHooks(before=[busy])) as served,
        served.client(retry_for_s=0) as client,
    ):
        outcomes = await _upload(client, jobs)
        assert _errors(outcomes) == {"up/file 0001": HookRefused}
        assert len(names_in(served.store)) == 1 + 5
    assert len(busy.asked["up/file 0001"]) == 1


@quick
async def test_what_is_refused_for_good_is_not_sent_again(tmp_path: Path) -> None:
    busy = Busy("up/file 0001", times=1000, retryable=False)
    async with serving(hooks=CommitHooks(before=[busy])) as served, served.client() as client:
        assert _errors(await _upload(client, _tree(tmp_path / "tree", 3))) == {"up/file 0001": HookRefused}
    assert len(busy.asked["up/file 0001"]) == 1

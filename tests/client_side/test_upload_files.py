"""Many small files in frames, from the client's side: what goes, what is said of each, and what is left after a cut."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers import Served, bytes_of, content_of, frames_of, names_in, run, serving

from blockproto.client import Client
from blockproto.client_side import file_frames
from blockproto.client_side.connections import Retries
from blockproto.client_side.file_frames import FramePacker
from blockproto.client_side.receipts import Arrived
from blockproto.client_side.upload_decision import Prepared, prepare
from blockproto.common.blocks import digest_of
from blockproto.errors import BlockprotoError, FileExists, Refused, SourceChanged
from blockproto.results import Receipt, UploadJob
from blockproto.wire import Block, Files, encode_frame

quick = pytest.mark.trio(run=run)
KIB = 1 << 10


def tree(folder: Path, number: int, size: int = 100, **options: Any) -> list[UploadJob]:
    """Small files with content of their own, in two folders, as jobs."""
    jobs = []
    for at in range(number):
        path = folder / f"{at % 2}" / f"file {at:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes_of(size, at))
        jobs.append(UploadJob(path, f"up/{path.parent.name}/{path.name}", **options))
    return jobs


async def upload(client: Client, jobs: Iterable[UploadJob]) -> dict[str, Receipt | BlockprotoError]:
    """All outcomes by the jobs' names; a job that ends twice fails the test."""
    outcomes: dict[str, Receipt | BlockprotoError] = {}
    async for job, outcome in client.upload_all(jobs):
        assert job.name not in outcomes
        outcomes[job.name] = outcome
    return outcomes


def said(served: Served, line: int = 0) -> list[Files]:
    """The FILES of one connection."""
    messages = [frame.message for frame in frames_of(served.lines[line].sent)]
    assert not any(isinstance(message, Block) for message in messages)
    return [message for message in messages if isinstance(message, Files)]


def all_there(served: Served, jobs: Iterable[UploadJob]) -> bool:
    return all(content_of(served.store, job.name) == job.path.read_bytes() for job in jobs)


@quick
async def test_small_files_go_in_frames_and_each_has_its_receipt(tmp_path: Path) -> None:
    jobs = tree(tmp_path, 600)
    async with serving() as served, served.client() as client:
        outcomes = await upload(client, jobs)
        assert all_there(served, jobs)
        frames = said(served)
        assert (sum(frame.last for frame in frames), frames[-1].last) == (2, True)
        assert len(frames) < 20
        receipt = outcomes["up/1/file 0001"]
        assert isinstance(receipt, Receipt)
        content = bytes_of(100, 1)
        assert (receipt.root, receipt.b3sum) == (digest_of(content).hex(),) * 2
        assert (receipt.stored_as, receipt.filesize, receipt.outcome) == ("up/1/file 0001", 100, "sent")
        assert (receipt.blocks_sent, receipt.payload_bytes_sent, receipt.resumed) == (1, 100, False)
        again = await upload(client, jobs)
        assert {one.outcome for one in again.values() if isinstance(one, Receipt)} == {"there"}
        assert len(said(served)) == len(frames)


@quick
async def test_a_command_gets_outcomes_many_at_a_time_and_makes_the_receipts_it_shows(tmp_path: Path) -> None:
    jobs = tree(tmp_path, 300)
    told: list[str] = []
    async with serving() as served, served.client() as client:
        for outcome, payload in (("sent", 100), ("there", 0)):
            sending = client.upload_batches(jobs, progress=lambda progress: told.append(progress.filename))
            async with aclosing(sending) as batches:
                found = [batch async for batch in batches]
            arrived = {job.name: one for batch in found for job, one in batch}
            assert len(found) < 30
            assert arrived.keys() == {job.name for job in jobs}
            one = arrived["up/1/file 0001"]
            assert isinstance(one, Arrived)
            receipt = one.receipt()
            root = digest_of(bytes_of(100, 1)).hex()
            assert (receipt.root, receipt.b3sum, receipt.outcome) == (root, root, outcome)
            assert (receipt.filename, receipt.stored_as, receipt.filesize) == ("up/1/file 0001",) * 2 + (100,)
            assert (receipt.payload_bytes_sent, receipt.blocks_sent) == (payload, int(outcome == "sent"))
            assert receipt.resumed == (outcome == "there")
    assert told == [], "what has ended is in the batches"


@quick
async def test_times_modes_empty_files_and_folders_arrive(tmp_path: Path) -> None:
    empty, folder = tmp_path / "empty", tmp_path / "folder"
    empty.write_bytes(b"")
    folder.mkdir(mode=0o750)
    os.utime(empty, ns=(5, 1_234_567_890_123_456_789))
    jobs = [UploadJob(empty, "e"), UploadJob(folder, "f")]
    async with serving() as served, served.client() as client:
        outcomes = await upload(client, jobs)
        assert all(isinstance(one, Receipt) for one in outcomes.values())
        assert len(said(served)) == 1
        entries = {entry.filename.text: entry for entry in served.store.files("", True, "", 9)[0]}
        assert entries["e"].mtime_ns == 1_234_567_890_123_456_789
        assert (entries["f"].folder, entries["f"].mode & 0o777) == (True, 0o750)


@quick
async def test_an_older_server_gets_each_file_by_itself(tmp_path: Path) -> None:
    jobs = tree(tmp_path, 20)
    async with serving(files=False) as served, served.client() as client:
        await upload(client, jobs)
        assert all_there(served, jobs)
        messages = [frame.message for frame in frames_of(served.lines[0].sent)]
        assert sum(isinstance(message, Block) for message in messages) == 20
        assert not any(isinstance(message, Files) for message in messages)


@quick
async def test_a_file_that_cannot_go_fails_alone(tmp_path: Path) -> None:
    jobs = tree(tmp_path, 10)
    async with serving() as served, served.client() as client:
        await upload(client, [UploadJob(jobs[0].path, jobs[1].name)])  # its name is taken
        jobs[2].path.unlink()
        jobs = [UploadJob(one.path, one.name, "refuse") for one in jobs]
        outcomes = await upload(client, jobs)
        errors = {name: type(one) for name, one in outcomes.items() if isinstance(one, BlockprotoError)}
        assert errors == {jobs[1].name: FileExists, jobs[2].name: Refused}
        assert all_there(served, [*jobs[:1], *jobs[3:]])


@quick
async def test_another_name_is_said(tmp_path: Path) -> None:
    jobs = tree(tmp_path, 3)
    async with serving() as served, served.client() as client:
        stranger = tmp_path / "stranger"
        stranger.write_bytes(b"other bytes")
        await upload(client, [UploadJob(stranger, "up/0/file 0000")])
        names = UploadJob(jobs[0].path, "up/0/file 0000")
        outcomes = await upload(client, [names, *jobs[1:]])
        receipt = outcomes["up/0/file 0000"]
        assert isinstance(receipt, Receipt)
        assert receipt.stored_as == "up/0/file 0000 (1)"


@quick
async def test_a_file_that_arrives_damaged_is_sent_again(tmp_path: Path) -> None:
    jobs = tree(tmp_path, 10, 1000)
    async with serving() as served:
        async with served.client() as client:
            await upload(client, jobs)
        (frame,) = said(served)
        at = served.lines[0].sent.index(bytes_of(1000, 4))
    async with serving() as served:
        served.line_options = [{"damage_sent": at + 500}]
        async with served.client() as client:
            outcomes = await upload(client, jobs)
        assert all(isinstance(one, Receipt) for one in outcomes.values())
        assert all_there(served, jobs)
        assert [len(one.table.records) for one in said(served)] == [len(frame.table.records), 1]


@pytest.mark.clause("BP1-FIL-014")
@pytest.mark.parametrize("cut", [5_000, 40_000, 70_000])
@quick
async def test_after_a_cut_only_what_was_not_answered_goes_again(tmp_path: Path, cut: int) -> None:
    jobs = tree(tmp_path, 100, 1000)
    async with serving() as served:
        served.line_options = [{"cut_sent": cut}]
        async with served.client() as client:
            outcomes = await upload(client, jobs)
        assert all(isinstance(one, Receipt) for one in outcomes.values())
        assert len(served.lines) == 2
        assert sorted(names_in(served.store)) == sorted(["up", "up/0", "up/1", *(job.name for job in jobs)])
        assert all_there(served, jobs)
        ids = [record[0] for line in (0, 1) for frame in said(served, line) for record in frame.table.records]
        assert len(set(ids)) == 100
        assert served.payload_sent <= 100_000 + cut


# ---- frames


def prepared(jobs: Iterable[UploadJob]) -> list[Prepared]:
    ids = iter(range(10_000))
    return [prepare(job, lambda *_: next(ids).to_bytes(16, "big")) for job in jobs]


def test_a_frame_is_full_by_files_bytes_or_head(tmp_path: Path) -> None:
    ones = prepared(tree(tmp_path, 300))
    packer = FramePacker(1 << 20, 65_535)
    assert packer.pack(ones, 0, 1 << 20).taken == 256
    assert packer.pack(ones, 256, 1 << 20).taken == 44
    assert packer.pack(ones, 0, 1050).taken == 10
    small = FramePacker(1 << 20, 4096)
    frame = small.pack(ones, 0, 1 << 20)
    assert 20 < frame.taken < 60
    assert len(encode_frame(1, frame.message, len(frame.payload))) <= 4096 + 16


def test_a_frame_has_one_rule(tmp_path: Path) -> None:
    jobs = [*tree(tmp_path, 3), *tree(tmp_path, 3, if_exists="replace")]
    packer = FramePacker(1 << 20, 65_535)
    frame = packer.pack(prepared(jobs), 0, 1 << 20)
    assert (frame.taken, frame.message.if_exists) == (3, 0)
    frame = packer.pack(prepared(jobs), 3, 1 << 20)
    assert (frame.taken, frame.message.if_exists) == (3, 2)


def test_a_file_is_not_looked_at_again_before_it_is_opened(tmp_path: Path) -> None:
    (job,) = tree(tmp_path, 1)
    found = job.path.stat()
    job.path.unlink()
    one = prepare(replace(job, looked=found), lambda *_: bytes(16))
    assert (one.stat, one.facts.filesize) == (found, 100)
    with pytest.raises(FileNotFoundError):
        prepare(replace(job, looked=found), lambda *_: bytes(16), look=True)


@quick
async def test_after_a_cut_a_file_goes_as_it_is_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [replace(job, looked=job.path.stat()) for job in tree(tmp_path, 100, 1000)]
    wait = Retries.wait

    async def change_and_wait(self: Retries, error: BlockprotoError) -> None:
        jobs[99].path.write_bytes(b"other bytes")
        await wait(self, error)

    monkeypatch.setattr(Retries, "wait", change_and_wait)
    async with serving() as served:
        served.line_options = [{"cut_sent": 5000}]
        async with served.client() as client:
            outcomes = await upload(client, jobs)
        assert all(isinstance(one, Receipt) for one in outcomes.values())
        assert len(served.lines) == 2
        assert content_of(served.store, jobs[99].name) == b"other bytes"


@pytest.mark.parametrize("change", [b"", b"x" * 50, b"x" * 200])
def test_a_file_that_changed_is_left_out(tmp_path: Path, change: bytes) -> None:
    ones = prepared(tree(tmp_path, 3))
    path = Path(ones[1].job.path)
    path.write_bytes(change)
    os.utime(path, ns=(1, 1))
    frame = FramePacker(1 << 20, 65_535).pack(ones, 0, 1 << 20)
    assert [one for one, _ in frame.failed] == [ones[1]]
    assert isinstance(frame.failed[0][1], SourceChanged)
    assert (frame.taken, frame.ones) == (3, [ones[0], ones[2]])
    assert bytes(frame.payload) == bytes_of(100, 0) + bytes_of(100, 2)


def test_where_there_is_no_readv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(file_frames.os, "readv")
    frame = FramePacker(1 << 20, 65_535).pack(prepared(tree(tmp_path, 3)), 0, 1 << 20)
    assert bytes(frame.payload) == b"".join(bytes_of(100, at) for at in range(3))

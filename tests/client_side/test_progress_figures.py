"""What a transfer says of itself: progress ends at the whole file, and the figures of a receipt add up."""

from __future__ import annotations

import io
import os
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from peers import MIB, Sample, Served, bytes_of, run, serving
from test_follow_upload import FILM, LIVE, begun, finish, listed
from trio.testing import wait_all_tasks_blocked

from blockproto.common.blocks import BRIEF_LENGTH_MAX, blocknum_of
from blockproto.errors import ConnectionLost
from blockproto.results import Receipt, UploadJob
from blockproto.transfer.send_source import Progress

quick = pytest.mark.trio(run=run)
BIG = 4 * MIB + 17


class Followed:
    """Follows the progress of some files; called as the engine's callback."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, int | None]]] = {}
        self.payload = 0

    def __call__(self, progress: Progress) -> None:
        position, filesize = progress.position_bytes_done, progress.filesize
        assert position >= 0
        assert filesize is None or position <= filesize
        self.seen.setdefault(progress.filename, []).append((position, filesize))
        self.payload = progress.payload_bytes_sent

    def check(self, receipt: Receipt, total: int, *, repaired: bool = False) -> None:
        """Whether all that was said fits ``receipt`` of a file of ``total`` bytes."""
        said = self.seen.pop(receipt.filename)
        positions = [position for position, _ in said]
        assert said[-1] == (total, total)
        assert max(positions) == total
        assert repaired or positions == sorted(positions)
        assert receipt.blocknum == blocknum_of(receipt.filesize)
        assert receipt.blocks_sent + receipt.blocks_skipped == receipt.blocknum
        if receipt.outcome != "left":
            assert (receipt.payload_bytes_sent == 0) is (receipt.blocks_sent == 0)
        if not receipt.blocks_skipped:
            assert receipt.payload_bytes_sent >= receipt.filesize


def _file(folder: Path, size: int = BIG, name: str = "file.bin", seed: int = 1) -> Path:
    path = folder / name
    path.write_bytes(bytes_of(size, seed))
    return path


@quick
@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("size", [0, 1, BRIEF_LENGTH_MAX + 1, MIB, MIB + 1, BIG])
async def test_one_file_up_and_down_and_again(tmp_path: Path, size: int, connections: int) -> None:
    path, told = _file(tmp_path, size), Followed()
    async with serving() as served:
        for _ in range(2):
            async with served.client(connections=connections) as client:
                told.check(await client.upload(path, progress=told), size)
        async with served.client(connections=connections) as client:
            receipt = await client.download("file.bin", tmp_path / "copy", progress=told)
            told.check(receipt, size)
            again = await client.download("file.bin", tmp_path / "copy", progress=told)
            told.check(again, size)
            assert again.payload_bytes_sent == 0
            if size > MIB:
                span = (MIB - 5, MIB)
                part = await client.download("file.bin", tmp_path / "part", span=span, progress=told)
                assert told.seen.pop("file.bin")[-1] == (6, 6)
                assert part.blocks_sent + part.blocks_skipped == part.blocknum == 2


@quick
@pytest.mark.parametrize("size", [100, MIB + 5, BIG])
async def test_a_file_that_is_left_is_done(tmp_path: Path, size: int) -> None:
    theirs, ours, told = _file(tmp_path, 70_000, "theirs"), _file(tmp_path, size, "ours", 2), Followed()
    async with serving() as served, served.client() as client:
        await client.upload(theirs, name="name")
        receipt = await client.upload(ours, name="name", if_exists="skip", progress=told)
        assert receipt.outcome == "left"
        told.check(receipt, size)
        jobs = [UploadJob(ours, "name", "skip")]
        async with aclosing(client.upload_all(jobs, progress=told)) as ended:
            async for _, outcome in ended:
                assert isinstance(outcome, Receipt)
                assert outcome.outcome == "left"
                told.check(outcome, size)


@quick
async def test_folders_up_and_down_and_again(tmp_path: Path) -> None:
    sizes = {"empty": 0, "one": 1, "block": MIB, "more": MIB + 1, "big": BIG}
    jobs = [UploadJob(_file(tmp_path, size, name), f"d/{name}") for name, size in sizes.items()]
    told = Followed()
    async with serving() as served:
        for _ in range(2):
            async with served.client() as client, aclosing(client.upload_all(jobs, progress=told)) as ended:
                async for job, outcome in ended:
                    assert isinstance(outcome, Receipt)
                    told.check(outcome, sizes[job.path.name])
        async with served.client() as client:
            entries = [entry async for entry in client.listing("d")]
            wanted = [(entry, tmp_path / "down" / entry.filename) for entry in entries]
            async with aclosing(client.download_all(wanted, progress=told)) as came:
                async for fetched, result in came:
                    assert isinstance(result, Receipt)
                    told.check(result, fetched.entry.filesize)
    assert not told.seen


@quick
@pytest.mark.parametrize("size", [0, 5, MIB - 1, MIB, MIB + 5, BIG])
async def test_a_stream_whose_size_nobody_knew(size: int) -> None:
    """The last block is short, and may be acknowledged before the sender has seen the end."""
    told = Followed()
    async with serving() as served, served.client() as client:
        receipt = await client.upload(io.BytesIO(bytes_of(size)), name="stream", progress=told)
        assert receipt.filesize == size
        told.check(receipt, size)


class Late:
    """A stream whose end is seen only when all that was read before has been acknowledged."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    async def receive_some(self, most: int) -> bytes:
        """See Trio's ReceiveStream."""
        if not self._rest:
            await wait_all_tasks_blocked(0.1)
        some, self._rest = self._rest[:most], self._rest[most:]
        return some


@quick
async def test_a_stream_that_ends_late() -> None:
    told = Followed()
    async with serving() as served, served.client() as client:
        for size in (5, MIB + 5, BIG):
            receipt = await client.upload(Late(bytes_of(size)), name=f"stream {size}", progress=told)
            told.check(receipt, size)


@quick
@pytest.mark.parametrize("connections", [1, 3])
async def test_an_upload_and_a_download_that_come_back(tmp_path: Path, connections: int) -> None:
    path, told = _file(tmp_path), Followed()
    async with serving() as served:
        served.line_options = [{"cut_sent": 2_500_000}, {"cut_sent": 1_200_000}]
        async with served.client(connections=connections) as client:
            receipt = await client.upload(path, progress=told)
            told.check(receipt, BIG)
            assert receipt.blocks_sent == receipt.blocknum
        served.line_options = [{"cut_received": 2_500_000}, {"cut_received": 1_200_000}]
        async with served.client() as client:
            receipt = await client.download("file.bin", tmp_path / "copy", progress=told)
            told.check(receipt, BIG)
            assert receipt.blocks_sent == receipt.blocknum


@quick
async def test_another_run_goes_on_with_what_is_held(tmp_path: Path) -> None:
    path, told = _file(tmp_path), Followed()
    async with serving() as served:
        await _leave_unfinished(served, path)
        async with served.client() as client:
            receipt = await client.upload(path, progress=told)
        told.check(receipt, BIG)
        assert (receipt.blocks_sent, receipt.blocks_skipped) == (2, 3)
        served.line_options = [{"cut_received": 2_500_000}]
        async with served.client(tries=1) as client:
            with pytest.raises(ConnectionLost):
                await client.download("file.bin", tmp_path / "copy")
        async with served.client() as client:
            receipt = await client.download("file.bin", tmp_path / "copy", progress=told)
        told.check(receipt, BIG)
        assert (receipt.blocks_sent, receipt.blocks_skipped) == (3, 2)


@quick
@pytest.mark.parametrize("connections", [1, 3])
async def test_held_blocks_that_changed_count_as_sent(tmp_path: Path, connections: int) -> None:
    path, told = _file(tmp_path), Followed()
    async with serving() as served:
        await _leave_unfinished(served, path)
        facts = path.stat()
        with path.open("r+b") as file:
            file.seek(MIB + 5)
            file.write(b"?")
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        async with served.client(connections=connections) as client:
            receipt = await client.upload(path, progress=told)
        told.check(receipt, BIG, repaired=True)
        assert (receipt.blocks_sent, receipt.blocks_skipped) == (3, 2)
        assert MIB + 17 < receipt.payload_bytes_sent <= 2 * MIB + 17  # the beginning of the fourth was there


@quick
async def test_a_block_that_was_damaged_counts_once(tmp_path: Path) -> None:
    path, told = _file(tmp_path), Followed()
    async with serving() as served:
        served.line_options = [{"damage_sent": 1_500_000}]
        async with served.client() as client:
            receipt = await client.upload(path, progress=told)
        told.check(receipt, BIG)
        assert (receipt.blocks_sent, receipt.blocks_skipped) == (5, 0)
        assert receipt.payload_bytes_sent == BIG + MIB


@quick
@pytest.mark.parametrize("sample", [FILM, LIVE], ids=["known", "unknown"])
@pytest.mark.parametrize("all_there", [False, True])
async def test_an_upload_that_is_read_along(sample: Sample, all_there: bool) -> None:
    told, blocks = Followed(), sample.blocknum if all_there else 2
    async with serving() as served:
        uploader, _ = await begun(served, sample, blocks=blocks)
        async with served.client() as client, trio.open_nursery() as nursery:
            upload = await listed(client)

            async def read() -> None:
                receipt = await client.download_upload(upload, "copy", progress=told)
                told.check(receipt, len(sample.content))

            nursery.start_soon(read)
            await wait_all_tasks_blocked(0.1)
            await finish(uploader, sample, first=blocks)


async def _leave_unfinished(served: Served, path: Path, blocks: int = 3) -> None:
    """Upload the first blocks of a file and lose the connection."""
    served.line_options = [{"cut_sent": blocks * (MIB + 5000) + 2000}]
    async with served.client(tries=1) as client:
        with pytest.raises(ConnectionLost):
            await client.upload(path)
    await wait_all_tasks_blocked()

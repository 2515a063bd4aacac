"""A stream that fetches a file of one block: the guards that every receiver has, on the client's side too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from peers import Sample, bytes_of, run
from trio.testing import wait_all_tasks_blocked

from blockproto.client_side.brief_download import BriefFetch, SmallDownload
from blockproto.common.blocks import digest_of
from blockproto.common.names import SafeName
from blockproto.errors import BadFacts, Cancelled
from blockproto.results import DownloadJob, FileInfo
from blockproto.store import Facts, Finish, Upload, UploadKey
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.slow_disk import Disk
from blockproto.wire import Message, Piece

quick = pytest.mark.trio(run=run)

CONTENT = memoryview(bytes_of(1000))
DIGEST = digest_of(CONTENT)
SAMPLE = Sample(bytes(CONTENT), "name")
VERSION = b"v" * 16


class SlowDisk(Disk):
    """A disk whose writes wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.released = trio.Event()

    @property
    def slow(self) -> bool:
        return True

    async def write(self, upload: Upload, position: int, piece: memoryview) -> None:
        await self.released.wait()
        upload.write(position, piece)


class Submitted:
    """A connection and a committer that remember what they hear."""

    def __init__(self) -> None:
        self.finishes: list[Finish] = []

    def open(self, handler: object) -> int:
        return 1

    def post(self, stream: int, message: Message) -> None:
        pass

    def submit(self, work: Finish, done: object, **_: object) -> None:
        self.finishes.append(work)


class Fetched:
    """A fetch that has heard OPEN and the beginning of its BLOCK, and what came of it."""

    def __init__(self, disk: Disk) -> None:
        facts = Facts(SafeName.parse("name"), "", len(CONTENT))
        self.upload: Upload = MemoryStore().begin_brief(UploadKey(bytes(16), VERSION), facts, 0)
        self.closed: list[bool] = []
        self.upload.close = lambda: self.closed.append(True)  # type: ignore[method-assign]
        self.heard = Submitted()
        self.outcomes: list[object] = []
        entry = SimpleNamespace(filename="name", filesize=len(CONTENT))
        small = SmallDownload(DownloadJob(cast(FileInfo, entry), Path("name")), VERSION, self.upload)
        there: Any = self.heard
        self.fetch = BriefFetch(there, small, there, disk, self.outcomes.append)
        self.fetch.begin()

    async def begin(self, payload_length: int) -> None:
        """Let it hear OPEN, and a BLOCK whose digest comes later."""
        await self.fetch.received(replace(SAMPLE.open(1), version=VERSION), 0)
        await self.fetch.received(replace(SAMPLE.block(0)[0], digest=None), payload_length)


@quick
async def test_an_end_without_payload_ends_the_block() -> None:
    fetched = Fetched(Disk())
    await fetched.begin(len(CONTENT))
    await fetched.fetch.payload(0, CONTENT, last=True)
    await fetched.fetch.received(Piece(len(CONTENT), digest=DIGEST), 0)
    await fetched.fetch.received(SAMPLE.commit(), 0)
    [finish] = fetched.heard.finishes
    assert (finish.root, finish.filesize) == (DIGEST, len(CONTENT))


@quick
async def test_a_slow_disk_does_not_hold_the_connection() -> None:
    assert not Fetched(Disk()).fetch.waits
    assert Fetched(SlowDisk()).fetch.waits


@quick
async def test_a_fetch_that_ends_while_its_write_runs_verifies_nothing_and_closes_after_it() -> None:
    disk = SlowDisk()
    fetched = Fetched(disk)
    await fetched.begin(len(CONTENT))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetched.fetch.payload, 0, CONTENT, True)
        await wait_all_tasks_blocked()
        stopped = Cancelled("stopped")
        fetched.fetch.ended(stopped)
        assert fetched.outcomes == [stopped]
        assert fetched.closed == []
        disk.released.set()
    assert fetched.closed == [True]
    with pytest.raises(BadFacts):
        await fetched.fetch.received(Piece(len(CONTENT), digest=DIGEST), 0)

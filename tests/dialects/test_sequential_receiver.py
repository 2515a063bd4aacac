"""Raw bytes in order: who may write a block, and what comes of a write whose connection lost the upload meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from peers import MIB, bytes_of, run
from trio.testing import wait_all_tasks_blocked

from blockproto.common.names import SafeName
from blockproto.dialects.sequential_receiver import SequentialReceiver
from blockproto.errors import BlockprotoError, Superseded
from blockproto.store import Facts, Upload, UploadKey
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.committer import Committer
from blockproto.transfer.live_uploads import LiveUploads
from blockproto.transfer.slow_disk import Disk

quick = pytest.mark.trio(run=run)

CONTENT = memoryview(bytes_of(MIB + 5))
HALF = MIB // 2
KEY = UploadKey(bytes(16), b"s" * 16)
FACTS = Facts(SafeName.parse("name"), "", len(CONTENT))


class HeldDisk(Disk):
    """A disk whose writes wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.released = trio.Event()
        self.released.set()

    @property
    def slow(self) -> bool:
        return not self.released.is_set()

    async def write(self, upload: Upload, position: int, piece: memoryview) -> None:
        await self.released.wait()
        upload.write(position, piece)


@quick
async def test_a_write_whose_upload_is_taken_over_meanwhile_counts_for_the_newer_connection_only() -> None:
    store, disk = MemoryStore(), HeldDisk()
    committer = Committer(store, _inline)
    uploads = LiveUploads(store, committer, disk)
    stopped: list[BlockprotoError] = []
    raised: list[BlockprotoError] = []
    older, newer = SequentialReceiver(uploads, stopped.append), SequentialReceiver(uploads, stopped.append)

    async def take() -> None:
        try:
            await older.take(CONTENT[HALF : MIB + 5])
        except BlockprotoError as exc:
            raised.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        older.seek(await older.open(KEY, FACTS))
        await older.take(CONTENT[:HALF])
        disk.released = trio.Event()
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        positions: list[int] = []

        async def come() -> None:
            positions.append(await newer.open(KEY, FACTS))

        nursery.start_soon(come)
        await wait_all_tasks_blocked()
        assert [type(error) for error in stopped] == [Superseded]
        assert positions == []  # a write of the former owner still runs
        disk.released.set()
        await wait_all_tasks_blocked()
        assert [type(error) for error in raised] == [Superseded]
        assert positions == [HALF]
        newer.seek(HALF)
        await newer.take(CONTENT[HALF:])
        await newer.commit()
        assert newer.stored is not None
        assert newer.stored.filesize == len(CONTENT)
        nursery.cancel_scope.cancel()


async def _inline(work: Callable[[], None]) -> None:
    work()

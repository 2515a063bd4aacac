"""Raw bytes in order: who may write a block, and what comes of a write whose connection lost the upload meanwhile."""

from __future__ import annotations

import pytest
import trio
from peers import MIB, bytes_of, run, serving
from trio.testing import wait_all_tasks_blocked

from blockproto.common.names import SafeName
from blockproto.dialects.sequential_receiver import SequentialReceiver
from blockproto.errors import BlockprotoError, Superseded
from blockproto.identity.realm import ANONYMOUS
from blockproto.store import Facts, Upload
from blockproto.transfer.file_service import FileService
from blockproto.transfer.slow_disk import Disk

quick = pytest.mark.trio(run=run)

CONTENT = memoryview(bytes_of(MIB + 5))
HALF = MIB // 2
SOURCEID = b"s" * 16
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
    disk = HeldDisk()
    stopped: list[BlockprotoError] = []
    raised: list[BlockprotoError] = []
    older, newer = SequentialReceiver(stopped.append), SequentialReceiver(stopped.append)

    async def take() -> None:
        try:
            await older.take(CONTENT[HALF : MIB + 5])
        except BlockprotoError as exc:
            raised.append(exc)

    async with serving() as served, trio.open_nursery() as nursery:
        engine = served.server.engine
        engine.uploads.disk = disk
        writer = FileService(engine, ANONYMOUS).writer()
        older.seek(await older.open(writer, SOURCEID, FACTS))
        await older.take(CONTENT[:HALF])
        disk.released = trio.Event()
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        positions: list[int] = []

        async def come() -> None:
            positions.append(await newer.open(writer, SOURCEID, FACTS))

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

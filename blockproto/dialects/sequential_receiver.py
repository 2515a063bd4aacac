"""SequentialReceiver: raw bytes of a file, in order, cut into blocks of an upload.

    open → resume → (seek) → take, take, … → commit
                                   ↘ leave: what is there of the unfinished block is recorded

Its dialect has no digests, so they and the root are computed from the bytes as they come. Bytes that are durable already and
come again are compared with those on the disk.

Invariant: bytes received − bytes durable ≤ ``UNDURABLE_MAX`` blocks and the one that is unfinished.

Spec: BP1-DIA-008 to 014.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ..common.blocks import BLOCK_LENGTH, Run, blocknum_of, root_of
from ..errors import BlockprotoError, DigestsDiffer, SourceChanged
from ..store import Facts, StoredFile
from ..transfer.block_receiver import BlockInProgress, BlockReceiver, Ended
from ..transfer.file_service import FileWriter
from ..transfer.live_upload import LiveUpload

UNDURABLE_MAX = 63
"""Whole blocks that may be received and not durable yet (BP1-DIA-014)."""


class SequentialReceiver:
    """Receives an upload over one connection, from its first missing byte to its end; the ``Feed`` of the upload.

    Args:
        on_stopped: called once if the upload stops after ``seek``: a newer connection has taken it over, it was cancelled,
            or a block could not be stored. Before ``seek``, ``open`` raises that, so that the client can be told.

    Attributes:
        stored: the receipt, once the file is complete.
    """

    def __init__(self, on_stopped: Callable[[BlockprotoError], None]) -> None:
        self.stored: StoredFile | None = None
        self._writer: FileWriter | None = None
        self._on_stopped = on_stopped
        self._upload: LiveUpload | None = None
        self._stopped: BlockprotoError | None = None
        self._begun = False
        self._blocks: BlockReceiver | None = None
        self._filesize = 0
        self._durable = 0
        self._next = 0
        self._news = trio.lowlevel.ParkingLot()

    # ---- for the dialect --------------------------------------------------------------------------------------

    async def open(self, writer: FileWriter, sourceid: bytes, facts: Facts) -> int:
        """Take the upload over, or begin it; returns the position up to which everything is durable.

        That is the filesize if and only if the file is committed.

        Raises:
            NameRefused, StoreFull, NotPermitted, QuotaExceeded, SourceChanged, HookRefused: it is refused.
            Superseded, Cancelled: it was taken over or cancelled meanwhile.
            StoreFailed: the medium reported an error.

        Cancellation: call ``leave``.
        """
        assert facts.filesize is not None
        self._filesize = facts.filesize
        self._writer = writer
        found = await writer.open(sourceid, facts, None, self)
        if isinstance(found, StoredFile):
            self.stored = found
            self._durable = self._next = found.filesize
            return found.filesize
        self._upload, self._blocks = found, BlockReceiver(found, self)
        await found.settle()
        if self.stored is None:  # else an older connection has just been committed
            self._next = self._alive().position
            if self._next < self._filesize:
                await self._begin_block(go_on=True)
            else:
                await self.commit()
        if self.stored is None:
            self._alive()
        else:
            self._next = self._filesize
        self._durable = self._next
        return self._durable

    def seek(self, position: int) -> None:
        """Let the next bytes begin at ``position``, at most what ``open`` returned; raises as ``open``."""
        assert position <= self._durable
        if self.stored is None:
            self._alive()
        self._begun = True
        self._next = position

    async def take(self, view: memoryview) -> None:
        """Store the next bytes; drop them if the file is complete.

        Args:
            view: within the file; may be used again when this returns.

        Raises:
            SourceChanged: they differ from those that are here already.
            StoreFull, NotPermitted: they cannot be stored; what was stored stays.
            Superseded, Cancelled: the upload was taken over or cancelled.
            StoreFailed: the medium reported an error.

        Cancellation: a write that runs in a thread is waited for.
        """
        if self.stored is None and self._next < self._durable:
            again = view[: self._durable - self._next]
            await self._compare(again)
            view = view[len(again) :]
        while view and self.stored is None:
            blocks = self._alive_blocks()
            block = blocks.block or await self._begin_block()
            if block is None:
                continue  # it is committed, or has stopped
            assert block.end is not None
            part = view[: block.end - block.next]
            if await blocks.take(block.next, part) is None:
                continue
            self._next = block.next
            view = view[len(part) :]
            if block.next == block.end:
                await self._end_block(block)

    async def commit(self) -> None:
        """Commit the file, of which all bytes have come.

        Raises: as ``take``; FileExists, DigestsDiffer, HookRefused: it is refused.

        Cancellation: it may be committed all the same.
        """
        upload = self._alive()
        if not upload.finishing:
            digests = await upload.digests(blocknum_of(self._filesize))
            root = root_of(digests, len(digests))
            assert self._writer is not None
            self._alive().commit(self, root, self._filesize, upload.facts, self._writer.may_read)
        while self.stored is None:
            self._alive()
            await self._news.park()

    def leave(self) -> None:
        """Leave the upload and record the prefix of an unfinished block. Harmless when repeated."""
        blocks, self._blocks = self._blocks, None
        upload, self._upload = self._upload, None
        if upload is None or blocks is None:
            return
        blocks.leave()
        upload.leave(self)

    # ---- blocks -----------------------------------------------------------------------------------------------

    def _alive(self) -> LiveUpload:
        if self._upload is None:
            assert self._stopped is not None
            raise self._stopped
        return self._upload

    def _alive_blocks(self) -> BlockReceiver:
        self._alive()
        assert self._blocks is not None
        return self._blocks

    async def _begin_block(self, *, go_on: bool = False) -> BlockInProgress | None:
        """Begin the block at ``_next``; with ``go_on``, before the client was told where, continue its prefix.

        Returns:
            None if the upload was committed or has stopped meanwhile.
        """
        upload, blocks = self._alive(), self._alive_blocks()
        blockno = self._next // BLOCK_LENGTH
        begin = blockno * BLOCK_LENGTH
        end = min(begin + BLOCK_LENGTH, self._filesize)
        prefix = upload.prefixes.get(blockno) if go_on else None
        block = BlockInProgress(blockno, begin, begin + (prefix.length if prefix else 0), end)
        if not await blocks.begin(block):
            return None
        if block.dropped:
            block.begin_anew()
        self._next = block.next
        return block

    async def _end_block(self, block: BlockInProgress) -> None:
        if self._alive_blocks().end() is Ended.DIFFERS:
            raise SourceChanged(f"block {block.blockno} came before with other bytes")
        while self.stored is None and len(self._alive().pending) > UNDURABLE_MAX:
            await self._news.park()

    async def _compare(self, again: memoryview) -> None:
        upload = self._alive()
        there = memoryview(bytearray(len(again)))
        assert self._writer is not None
        read = await self._writer.disk.read(upload.stored.read_into, self._next, there)
        if there[:read] != again:
            raise SourceChanged(f"bytes from position {self._next} on came before as others")
        self._next += len(again)

    # ---- what the upload tells (Feed) -------------------------------------------------------------------------

    def say_durable(self, position: int, runs: list[Run]) -> None:
        """See live_upload.Feed."""
        self._news.unpark_all()

    def say_committed(self, stored: StoredFile) -> None:
        """See live_upload.Feed."""
        self.stored = stored
        self.leave()
        self._news.unpark_all()

    def say_differ(self, error: DigestsDiffer) -> None:
        """See live_upload.Feed. Stop: the root was computed here, and no sender can repair it."""
        self.say_stopped(error)

    def say_stopped(self, error: BlockprotoError) -> None:
        """See live_upload.Feed."""
        self._stopped = error
        self.leave()
        self._news.unpark_all()
        if self._begun:
            self._on_stopped(error)

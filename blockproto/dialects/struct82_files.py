"""One file of the dialect ``struct82``, for all connections that bring blocks of it.

Whether its blocks are numbered from 0 or from 1 is often unknown when the first ones come: number 0 or blocknum settles it,
and until then a number can mean two positions. So a file has two sides, one for each numbering, and each side is an upload:

    numbering settled      every block goes to that side
    not settled            the block goes to the side that counts from 1: a sender that counts from 0 begins with 0
    settled from 0 later   the blocks of the other side are copied over, one by one, and the other side is discarded

So an acknowledged block is durable on one of the sides at every moment, no held block is written again, and after a restart
the held blocks show how far it was. A file whose numbering stays open until its last block is complete on the side that
counts from 1: only blocknum was missing.

A complete file may be sent again, and nothing says whether it is the same. While its blocks have the same bytes they are
compared with it and not stored. The first block with other bytes begins the next version of the file, an upload of its own
(its key has the version's number), into which the blocks that have come again before are copied.

Invariant: one operation on a file at a time (``_turn``), so that no blocks are counted while others are moved.

Spec: BP1-S82.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio
from blake3 import blake3

from ..common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, Run, block_span, blocknum_of, root_of
from ..errors import (
    BadFacts,
    BlockprotoError,
    Cancelled,
    DigestsDiffer,
    StoreFailed,
    UnknownFile,
)
from ..store import StoredFile
from ..transfer.block_receiver import BlockReceiver
from ..transfer.file_service import FileWriter
from ..transfer.live_upload import LiveUpload
from ..transfer.threads import run_in_thread
from .struct82_wire import Header, Reply, facts_of

UNDURABLE_MAX = 60
"""Blocks of an upload that may have been received and not be durable yet (BP1-DIA-014)."""

_VERSIONS_AT_ONCE = 64
"""Versions whose receipts are looked up at once."""

Answered = Callable[[Reply | BlockprotoError], None]
"""Called once with the outcome of a block, when it is durable or will not be."""


class Side:
    """A file under one numbering: its upload, and what waits for its blocks; the ``Feed`` of that upload."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.upload: LiveUpload | None = None
        self.stored: StoredFile | None = None
        self.stopped: BlockprotoError | None = None
        self._waiting: dict[int, list[Callable[[], None]]] = {}
        self._changed = trio.Event()

    @property
    def held(self) -> int:
        """How many blocks are durable."""
        return len(self.upload.held) if self.upload is not None else 0

    def holds(self, index: int) -> bool:
        """Whether a block is durable."""
        return self.upload is not None and index in self.upload.held

    async def open(self, writer: FileWriter, sourceid: bytes, header: Header) -> None:
        """Find or begin the upload; raises as ``FileWriter.open``."""
        found = await writer.open(sourceid, facts_of(header), 0, self)
        if isinstance(found, StoredFile):
            self.stored = found
        else:
            self.upload = found

    def leave(self) -> None:
        """Let go of the upload."""
        upload, self.upload = self.upload, None
        if upload is not None:
            upload.leave(self)

    def when_durable(self, index: int, told: Callable[[], None]) -> None:
        """Call ``told`` when block ``index`` is durable, or the upload has ended otherwise."""
        if self.upload is None or index in self.upload.held:
            told()
        else:
            self._waiting.setdefault(index, []).append(told)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until ``reached()``; it is called when a block is durable or the upload has ended."""
        while not reached():
            await self._changed.wait()

    # ---- what the upload tells (Feed) -------------------------------------------------------------------------

    def say_durable(self, position: int, runs: list[Run]) -> None:
        """See live_upload.Feed."""
        for first, count in runs:
            for index in range(first, first + count):
                for told in self._waiting.pop(index, ()):
                    told()
        self._wake()

    def say_committed(self, stored: StoredFile) -> None:
        """See live_upload.Feed."""
        self.stored = stored
        self._end()

    def say_differ(self, error: DigestsDiffer) -> None:
        """See live_upload.Feed. The root was computed here, so another stream has repaired a block: it will come again."""
        self._wake()

    def say_stopped(self, error: BlockprotoError) -> None:
        """See live_upload.Feed."""
        self.stopped = error
        self._end()

    def _end(self) -> None:
        self.leave()
        waiting, self._waiting = self._waiting, {}
        for all_told in waiting.values():
            for told in all_told:
                told()
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


@dataclass(frozen=True, slots=True)
class Holding:
    """What is held of a file: the blocknos, those without bytes included, and the fields of the reply."""

    blocknos: tuple[int, ...]
    held: int
    digest: bytes
    stored: StoredFile | None


class Struct82File:
    """A file, from the first connection that names it to the last.

    Args:
        writer: what its sender may do.
        sourceid_of: returns the upload's sourceid for a numbering and a version, counted from 0.
        header: any header of it.
        first: the number of its first block if the operator has set it, else None.
        again: the blocks of the complete file that have come again with the same bytes; owned by the caller.
    """

    def __init__(
        self,
        writer: FileWriter,
        sourceid_of: Callable[[int, int], bytes],
        header: Header,
        first: int | None,
        again: set[int],
    ) -> None:
        if not header.filesize:
            first = 0  # an empty file is the same in both numberings
        self.users = 0
        self.first = first
        self.settled = trio.Event()
        self._writer = writer
        self._sourceid_of = sourceid_of
        self._version = 0
        self._again = again
        self._header = header
        self._blocks = blocknum_of(header.filesize)
        self._sides = (Side(0), Side(1))
        self._told = first
        self._opened = False
        self._gone: BlockprotoError | None = None
        self._turn = trio.Lock()

    @property
    def stopped(self) -> BlockprotoError | None:
        """Why this object cannot be used any more, or None; the next header needs a new one."""
        sides = [side for side in self._sides if self.first in (None, side.first)]
        return self._gone or next((side.stopped for side in sides if side.stopped is not None), None)

    def leave(self) -> None:
        """Let go of the uploads: the last connection has left."""
        for side in self._sides:
            side.leave()
        self._writer.count_apart(self._sourceid_of(1, 0))

    async def open(self) -> None:
        """Find what is held of it. Harmless when repeated.

        Raises:
            NameRefused, BadFacts, StoreFull, SourceChanged: no block of it can be taken.

        Cancellation: call it again.
        """
        async with self._turn:
            if self._opened:
                return
            if self._told is None:
                self._writer.count_as_one(self._sourceid_of(0, 0), self._sourceid_of(1, 0))
            for side in self._sides:
                if self._told in (None, side.first) and side.upload is None:
                    await side.open(self._writer, self._sourceid_of(side.first, 0), self._header)
            self._opened = True
            zero, one = self._sides
            if self.first is None and (zero.stored is not None or zero.held):
                await self._settle(0)
            elif self.first is None and (one.stored is not None or one.holds(self._blocks - 1)):
                await self._settle(1)  # the last block is not kept before its numbering is known
            elif self.first is not None:
                await self._settled()
            if self.first is not None:
                await self._find_newest(self._sides[self.first])

    async def settle(self, first: int) -> None:
        """Set the number of the file's first block, which is known now.

        Raises:
            BadFacts: it was settled otherwise before.
        """
        async with self._turn:
            await self._settle(first)

    async def take(self, header: Header, block: memoryview, answered: Answered) -> None:
        """Store a whole block; ``answered`` is called when it is durable, perhaps before this returns.

        Raises:
            StoreFull, NotPermitted: it cannot be stored; what was held stays.
            Cancelled: the upload was cancelled.
            StoreFailed: the medium reported an error.
        """
        async with self._turn:
            if not block and self._blocks:
                answered(self._reply(header.blockno, EMPTY_DIGEST))
                return
            side = self._side()
            index = header.blockno - side.first
            digest = blake3(block).digest()
            if side.upload is not None and side.upload.finishing:
                await side.until(lambda: side.upload is None or not side.upload.finishing)
            if block and side.stored is not None:
                if await self._is_there(side.stored, index, block):
                    answered(self._reply(header.blockno, digest))
                    return
                await self._begin_version(side, side.stored, index)
            if block:
                await self._put(side, index, block, digest)
            completes = await self._commit_if_whole(side)
            if not completes:
                side.when_durable(index, lambda: answered(self._outcome(header.blockno, index, digest)))
                return
        await side.until(lambda: side.upload is None or not side.upload.finishing)
        answered(self._outcome(header.blockno, index, digest))

    async def holding(self, header: Header) -> Holding:
        """What is held, in the numbering of ``header``; a file of which every block is held is committed before."""
        async with self._turn:
            side = self._side()
            if side.upload is not None and side.held == self._blocks:  # of an empty file that is at once
                await self._commit_if_whole(side)
            await side.until(lambda: side.upload is None or not side.upload.finishing)
            return await self._holding(side, header.blocknum)

    # ---- numbering --------------------------------------------------------------------------------------------

    def _side(self) -> Side:
        """The side to which blocks go now (see the module)."""
        return self._sides[1 if self.first is None else self.first]

    async def _settle(self, first: int) -> None:
        if self.first is not None:
            if self.first != first:
                raise BadFacts(f"the blocks of this file are numbered from {self.first}, not from {first}")
            return
        self.first = first
        await self._settled()

    async def _settled(self) -> None:
        self.settled.set()
        try:
            if self.first == 0:
                await self._move_over()
        except BlockprotoError as exc:
            self._gone = exc  # both sides may hold blocks: the next object goes on from there
            raise
        self._sides[1 - (self.first or 0)].leave()

    async def _move_over(self) -> None:
        """Copy what the side that counts from 1 holds to the one that counts from 0, durably, and discard it there."""
        zero, one = self._sides
        await one.until(lambda: one.upload is None or not one.upload.pending)
        if one.upload is None or not one.held:
            return
        block = memoryview(bytearray(BLOCK_LENGTH))
        held = list(one.upload.held) if zero.stored is None else []
        digests = await run_in_thread(partial(one.upload.stored.digests, held))
        for index in held:
            old, blockno = one.upload, index + one.first
            if old is None or zero.upload is None:
                raise Cancelled("the upload was cancelled")
            read = await run_in_thread(partial(old.stored.read_into, index * BLOCK_LENGTH, block))
            digest = blake3(block[:read]).digest()
            if digest != digests.get(index):
                raise StoreFailed("a held block cannot be read as it was written: check the store")
            if not zero.upload.has(blockno):
                await self._put(zero, blockno, block[:read], digest)
        await zero.until(lambda: zero.upload is None or not zero.upload.pending)
        if zero.stopped is not None:
            raise zero.stopped
        if one.upload is not None:
            await one.upload.discard(Cancelled("its blocks are numbered from 0")).wait()

    # ---- blocks -----------------------------------------------------------------------------------------------

    async def _put(self, side: Side, index: int, block: memoryview, digest: bytes) -> None:
        """Write a block unless it is held; if it is held with other bytes, forget those first (BP1-S82-033)."""
        upload = side.upload
        if upload is None or upload.discarded is not None:
            raise side.stopped or Cancelled("the upload was cancelled")
        known = await upload.digest_of(index)
        if known is not None and known != digest:
            await upload.repair(((index, digest),))
        elif known is not None:
            return
        await side.until(lambda: side.upload is None or len(upload.pending) < UNDURABLE_MAX)
        if not await BlockReceiver(upload, side).put(index, block, digest):
            await self._put(side, index, block, digest)  # another stream took it over: look again

    async def _commit_if_whole(self, side: Side) -> bool:
        """Begin the commit if every block is here; returns whether it did."""
        upload = side.upload
        if upload is None or upload.finishing or len(upload.held) + len(upload.pending) < self._blocks:
            return False
        digests = await upload.digests(self._blocks)
        if side.upload is None:
            return False
        root = root_of(digests, self._blocks)
        upload.commit(side, root, self._header.filesize, upload.facts, self._writer.may_read)
        return True

    # ---- versions ---------------------------------------------------------------------------------------------

    async def _find_newest(self, side: Side) -> None:
        """Turn from a complete first version to the newest one, an unfinished one if there is one."""
        complete = side.stored
        if complete is None:
            return
        later = await self._later_versions(side.first)
        self._version += len(later)
        side.stored = complete = later[-1] if later else complete
        sourceid = self._sourceid_of(side.first, self._version + 1)
        try:
            live = await self._writer.wake(sourceid, facts_of(self._header))
            if live is None or not (live.held or live.pending):
                if live is not None:
                    live.rest()
                return
            side.stored = None
            await side.open(self._writer, sourceid, self._header)
            self._version += 1
        except StoreFailed:
            raise
        except BlockprotoError:  # no room for another version: the complete one can still be asked for
            side.stored = complete

    async def _later_versions(self, first: int) -> list[StoredFile]:
        """The receipts of the versions that were completed after the present one, without a gap."""
        later: list[StoredFile] = []
        while True:
            begin = self._version + len(later) + 1
            ids = [self._sourceid_of(first, begin + at) for at in range(_VERSIONS_AT_ONCE)]
            receipts = await run_in_thread(partial(self._writer.receipts, ids))
            known = {receipt.sourceid: receipt for receipt in receipts}
            for id_ in ids:
                if id_ not in known:
                    return later
                later.append(known[id_])

    async def _is_there(self, stored: StoredFile, index: int, block: memoryview) -> bool:
        """Whether a block that is sent again is in the finished file; remember it then."""
        if self._blocks == 1:
            return blake3(block).digest() == stored.root
        there = memoryview(bytearray(len(block)))
        try:
            read = await run_in_thread(lambda: _read(self._writer, stored, index * BLOCK_LENGTH, there))
        except UnknownFile as exc:
            self._gone = exc
            raise
        if read != len(block) or there != block:
            return False
        self._again.add(index)
        if len(self._again) == self._blocks:
            self._again.clear()
        return True

    async def _begin_version(self, side: Side, complete: StoredFile, index: int) -> None:
        """Begin a new version beside the complete one: block ``index`` has other bytes.

        Raises: as ``open``; then nothing has changed.
        """
        before = self._version
        came = (
            set() if index in self._again else set(self._again)
        )  # a block that came again twice is of another pass
        try:
            while side.upload is None:  # skip versions that are complete already
                self._version += 1
                side.stored = None
                await side.open(self._writer, self._sourceid_of(side.first, self._version), self._header)
        except BlockprotoError:
            self._version, side.stored = before, complete
            raise
        self._again.clear()
        block = memoryview(bytearray(BLOCK_LENGTH))
        for one in sorted(came):
            position, length = block_span(one, 0, self._header.filesize)
            part = block[:length]
            if await run_in_thread(partial(_read, self._writer, complete, position, part)) == length:
                await self._put(side, one, part, blake3(part).digest())

    # ---- what is said -----------------------------------------------------------------------------------------

    def _outcome(self, blockno: int, index: int, digest: bytes) -> Reply | BlockprotoError:
        """The outcome of a block that was put."""
        side = self._side()
        if side.stored is None and side.stopped is not None:
            return side.stopped
        return self._reply(blockno, digest)

    def _reply(self, blockno: int, digest: bytes) -> Reply:
        side = self._side()
        complete = side.stored is not None
        return Reply(0, blockno, self._blocks if complete else side.held, complete, digest)

    async def _holding(self, side: Side, blocknum: int) -> Holding:
        if side.stored is not None:
            return Holding(tuple(range(blocknum + 1)), self._blocks, side.stored.root, side.stored)
        upload = side.upload
        if upload is None:
            raise side.stopped or Cancelled("the upload was cancelled")
        held = list(upload.held)
        digests = await run_in_thread(lambda: upload.stored.digests(held))
        known = [digests[index] for index in held if index in digests]
        firsts = (0, 1) if self.first is None else (self.first,)
        at_the_ends = {0, *range(self._blocks, blocknum + 1)}
        empty = [no for no in at_the_ends if all(self._is_empty(no, first) for first in firsts)]
        blocknos = [index + side.first for index in held] + empty
        return Holding(tuple(blocknos), len(held), root_of(known, len(known)), None)

    def _is_empty(self, blockno: int, first: int) -> bool:
        return block_span(blockno - first, 0, self._header.filesize)[1] == 0


def _read(writer: FileWriter, stored: StoredFile, position: int, view: memoryview) -> int:
    """Fill ``view`` from a finished file; returns how many bytes there were. Raises UnknownFile."""
    reader = writer.open_receipt(stored)
    try:
        return reader.read_into(position, view)
    finally:
        reader.close()

"""The one place that takes the bytes of a block: check, write, hash, verify.

    begin → take, take, … → end        the block is verified, known, damaged, or another stream's
                ↘ abandon, leave       how far it got is remembered

Native uploads and downloads, brief files and the dialects all receive through a ``BlockReceiver``, so the same guards hold
on every path:
    1. A stream writes only while the block is its own: another stream of the upload may have taken it over.
    2. A stream that has ended while one of its writes ran does not go on with the block afterwards.
    3. Writes go through the disk's rule (``slow_disk``); the next owner of a block waits for a write that still runs.

Spec: BP1-BLK, BP1-RES-013.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from blake3 import blake3

from ..common.blocks import BLOCK_LENGTH
from ..errors import BadFacts
from ..store import BlockDone, Facts, Finish, Prefix, Upload
from .block_prefix import PrefixHolder, continue_prefix
from .slow_disk import Disk


class BlockInProgress:
    """The block a stream is sending: where the next byte goes and the digest so far.

    Args:
        blockno: which one.
        begin: position of the block's first byte that is wanted.
        position: position of the first byte that is sent now; behind ``begin`` when a prefix is here.
        end: position after the block's last byte, or None if only a short or full block will tell.

    Attributes:
        known: the digest of the block that is here already, or None.
        dropped: its bytes are neither written nor hashed, because what they would be built upon is not here.
        digest: what its last frame said, or None.
    """

    def __init__(self, blockno: int, begin: int, position: int, end: int | None) -> None:
        self.blockno = blockno
        self.begin = begin
        self.next = position
        self.end = end
        self.known: bytes | None = None
        self.dropped = False
        self.digest: bytes | None = None
        self.hasher = blake3()

    @property
    def writes(self) -> bool:
        """Whether its bytes are to be written."""
        return not self.dropped and self.known is None

    def continue_with(self, position: int, payload_length: int, digest: bytes | None) -> None:
        """Check the next frame of the block.

        Raises:
            BadFacts: the bytes are not the next ones, lie outside the block, or end too early.
        """
        if position != self.next:
            raise BadFacts(f"block {self.blockno}: bytes at {position} where {self.next} is next")
        after = position + payload_length
        limit = self.end if self.end is not None else self.begin - self.begin % BLOCK_LENGTH + BLOCK_LENGTH
        if after > limit:
            raise BadFacts(f"block {self.blockno}: bytes up to {after}, but it ends at {limit}")
        if digest is not None and self.end is not None and after != self.end:
            raise BadFacts(f"block {self.blockno}: ended at {after} instead of {self.end}")
        self.digest = digest

    def prefix(self) -> Prefix:
        """How far it got."""
        return Prefix(self.next - self.begin, self.hasher.digest())

    def begin_anew(self) -> None:
        """Take it from its first byte on: nothing before ``next`` can be built upon."""
        self.next, self.dropped, self.hasher = self.begin, False, blake3()


class BlockTarget(PrefixHolder, Protocol):
    """Where the bytes of blocks go; a ``LiveUpload`` is one, a ``BriefTarget`` another."""

    def digest_of(self, blockno: int) -> bytes | None:
        """The digest of a block that is here, or None."""

    async def take_block(self, blockno: int, owner: object) -> None:
        """Make ``owner`` the one that writes a block, once a write of the former owner has returned.

        Raises:
            QuotaExceeded: the block does not fit.
        """

    def owns(self, blockno: int, owner: object) -> bool:
        """Whether ``owner`` still is the one that writes a block."""

    def release_block(self, blockno: int) -> None:
        """End the ownership of a block, whoever has it."""

    async def write(self, blockno: int, position: int, view: memoryview) -> None:
        """Write bytes of an unfinished block. Raises what ``store.Upload.write`` raises."""

    def block_verified(self, blockno: int, length: int, digest: bytes) -> None:
        """A block is whole and has its digest."""

    def keep_prefix(self, blockno: int, prefix: Prefix) -> None:
        """Remember how far an abandoned block got."""


class Ended(Enum):
    """How a block ended."""

    VERIFIED = "verified"
    """It has its digest, and the target was told."""
    KNOWN = "known"
    """It was here before, with the same digest."""
    DIFFERS = "differs"
    """It was here before, with another digest."""
    DAMAGED = "damaged"
    """It does not have the digest that was stated; the target has forgotten what had come of it."""
    TAKEN_AWAY = "taken away"
    """Another stream writes it now: what came here proves nothing."""


class BlockReceiver:
    """What one stream has of its unfinished block.

    Args:
        target: where the bytes go.
        owner: the stream, as ``target`` knows it.

    Attributes:
        block: the unfinished block, or None.
    """

    __slots__ = ("_left", "_owner", "_target", "block")

    def __init__(self, target: BlockTarget, owner: object) -> None:
        self.block: BlockInProgress | None = None
        self._target = target
        self._owner = owner
        self._left = False

    async def begin(self, block: BlockInProgress) -> bool:
        """Begin ``block``; the one before is abandoned. False if the stream left meanwhile.

        A block that is here is compared only. Of another the stream becomes the owner, and what is here of it before
        ``block.next`` is hashed again; if it cannot be built upon, ``block.dropped`` is set.

        Raises:
            QuotaExceeded: the block does not fit.
            NoThread, StoreError: what is here of it cannot be read.

        Cancellation: no block is begun; the stream may own it until it leaves.
        """
        self.abandon()
        target = self._target
        block.known = target.digest_of(block.blockno)
        length = block.next - block.begin
        if block.known is not None:
            block.dropped = length != 0
        else:
            await target.take_block(block.blockno, self._owner)
            block.dropped = not await continue_prefix(
                target, block.blockno, block.begin, length, block.hasher
            )
        if self._left:
            return False
        self.block = block
        return True

    async def take(self, position: int, view: memoryview) -> BlockInProgress | None:
        """Write and hash the next bytes of the block; returns it, or None if the stream has none, or left meanwhile.

        Raises:
            StoreError: they cannot be written; the block is where it was.

        Cancellation: a write begun in a thread is waited for; the block is where it was.
        """
        block = self.block
        if block is None:
            return None
        if block.writes and self._target.owns(block.blockno, self._owner):
            await self._target.write(block.blockno, position, view)
            if self.block is not block:
                return None
        if not block.dropped:
            block.hasher.update(view)
        block.next = position + len(view)
        return block

    def end(self) -> Ended:
        """End the block with the digest that its sender stated, or, where none is stated, with that of what came.

        Raises:
            BadFacts: it has no bytes, but should.
        """
        block, self.block = self.block, None
        assert block is not None
        target, blockno = self._target, block.blockno
        if block.writes and not target.owns(blockno, self._owner):
            return Ended.TAKEN_AWAY
        if block.next == block.begin != block.end:
            raise BadFacts(f"block {blockno} has no bytes")
        digest = block.hasher.digest() if block.digest is None else block.digest
        if block.known is not None:
            return Ended.KNOWN if digest == block.known else Ended.DIFFERS
        if block.dropped or block.hasher.digest() != digest:
            if target.owns(blockno, self._owner):
                target.release_block(blockno)
                target.drop_prefix(blockno)
            return Ended.DAMAGED
        target.block_verified(blockno, block.next - block.begin, digest)
        return Ended.VERIFIED

    async def put(self, blockno: int, view: memoryview, digest: bytes) -> bool:
        """Take a whole block that is in memory, with its digest; False if it was taken away meanwhile.

        Raises:
            QuotaExceeded: the block does not fit.
            StoreError: it cannot be written.

        Cancellation: a write begun in a thread is waited for; the block is not here.
        """
        target = self._target
        await target.take_block(blockno, self._owner)
        if target.owns(blockno, self._owner):
            await target.write(blockno, blockno * BLOCK_LENGTH, view)
        if not target.owns(blockno, self._owner):
            return False
        target.block_verified(blockno, len(view), digest)
        return True

    def abandon(self) -> None:
        """Give up the block; how far it got is remembered. Harmless when there is none."""
        block, self.block = self.block, None
        if block is not None and block.known is None and self._target.owns(block.blockno, self._owner):
            self._target.release_block(block.blockno)
            if block.writes:
                self._target.keep_prefix(block.blockno, block.prefix())

    def leave(self) -> None:
        """As ``abandon``, and begin no more: the stream has ended. Harmless when repeated."""
        self._left = True
        self.abandon()


class BriefTarget:
    """A brief file that one stream brings: a ``BlockTarget`` that no other stream takes over, without prefixes.

    Args:
        stored: the store's side of it; owned from now on.
        disk: where writes go.

    Attributes:
        done: the block, once it is verified.
    """

    __slots__ = ("_closed", "_disk", "_writes", "done", "prefixes", "stored")

    def __init__(self, stored: Upload, disk: Disk) -> None:
        self.stored = stored
        self.prefixes: dict[int, Prefix] = {}
        self.done: BlockDone | None = None
        self._disk = disk
        self._writes = False
        self._closed = False

    @property
    def waits(self) -> bool:
        """See connection.StreamHandler: whether the next bytes wait for a slow disk."""
        return self._disk.slow and not self.stored.in_memory

    def digest_of(self, blockno: int) -> bytes | None:
        """See BlockTarget."""
        return None

    async def take_block(self, blockno: int, owner: object) -> None:
        """See BlockTarget: it is the stream's from the beginning."""

    def owns(self, blockno: int, owner: object) -> bool:
        """See BlockTarget."""
        return True

    def release_block(self, blockno: int) -> None:
        """See BlockTarget."""

    async def write(self, blockno: int, position: int, view: memoryview) -> None:
        """See BlockTarget."""
        self._writes = True
        try:
            await self._disk.write(self.stored, position, view)
        finally:
            self._writes = False
            if self._closed:
                self.stored.close()

    def block_verified(self, blockno: int, length: int, digest: bytes) -> None:
        """See BlockTarget: it becomes durable with its file."""
        self.done = BlockDone(self.stored, 0, blockno, length, digest)

    def finish(self, facts: Facts, *, reader: bool = False) -> Finish:
        """The work that gives the verified file its name.

        Args:
            facts: as its sender stated them.
            reader: whether the file may be there already (BP1-COM-021).
        """
        done = self.done
        assert done is not None
        blocks = (done,) if done.length else ()
        return Finish(self.stored, 0, done.digest, done.length, facts, blocks, reader)

    def keep_prefix(self, blockno: int, prefix: Prefix) -> None:
        """See BlockTarget: a brief file is sent again as a whole."""

    def drop_prefix(self, blockno: int) -> None:
        """See BlockTarget."""

    def close(self) -> None:
        """Let go of the store's side, once a write that still runs has returned. Harmless when repeated."""
        self._closed = True
        if not self._writes:
            self.stored.close()

"""Receive the bytes of a block: check, write, hash, verify; the only place that does.

    begin → take, take, … → end        the block is verified, known, damaged, or owned by another stream
                ↘ abandon, leave       its prefix is kept

Native uploads and downloads, brief files and the dialects all receive through a ``BlockReceiver``, so the same guards hold
on every path:
    1. A stream writes only while it owns the block: another stream of the upload may have taken it over.
    2. A stream that has ended during one of its writes does not continue the block afterwards.
    3. Writes go through ``slow_disk``; the next owner of a block waits for a write that is still running.

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
    """The block that a stream is sending: the position of the next byte and the digest so far.

    Args:
        blockno: which one.
        begin: position of the block's first byte that is wanted.
        position: position of the first byte that is sent now; behind ``begin`` if a prefix is here.
        end: position after the block's last byte; None if the size of the file is unknown.

    Attributes:
        known: the digest of the block if it is here already, or None.
        dropped: whether its bytes are neither written nor hashed, because its prefix is not here.
        digest: the digest in its last frame, or None.
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
        """The bytes that came so far, as a prefix."""
        return Prefix(self.next - self.begin, self.hasher.digest())

    def begin_anew(self) -> None:
        """Start again at its first byte: there is no prefix."""
        self.next, self.dropped, self.hasher = self.begin, False, blake3()


class BlockTarget(PrefixHolder, Protocol):
    """Where the bytes of blocks go: a ``LiveUpload`` or a ``BriefTarget``."""

    async def digest_of(self, blockno: int) -> bytes | None:
        """The digest of a block that is here; None, without waiting, if it is not. Cancellation: no effect."""

    async def take_block(self, blockno: int, owner: object) -> None:
        """Make ``owner`` the owner of a block, once a write of the former owner has returned.

        Raises:
            QuotaExceeded: the block does not fit.

        Cancellation: ``owner`` may own the block.
        """

    def owns(self, blockno: int, owner: object) -> bool:
        """Whether ``owner`` still owns a block."""

    def release_block(self, blockno: int) -> None:
        """Let a block have no owner."""

    async def write(self, blockno: int, position: int, view: memoryview) -> None:
        """Write bytes of an unfinished block. Raises what ``store.Upload.write`` raises."""

    def block_verified(self, blockno: int, length: int, digest: bytes) -> None:
        """Hear that a block is complete and has its digest."""

    def keep_prefix(self, blockno: int, prefix: Prefix) -> None:
        """Keep the prefix of an abandoned block."""


class Ended(Enum):
    """How a block ended."""

    VERIFIED = "verified"
    """It has its digest; the target was told."""
    KNOWN = "known"
    """It was here before with the same digest."""
    DIFFERS = "differs"
    """It was here before with another digest."""
    DAMAGED = "damaged"
    """It does not have the stated digest; the target has forgotten its bytes."""
    TAKEN_AWAY = "taken away"
    """Another stream owns it now."""


class BlockReceiver:
    """Receives the blocks of one stream, one at a time.

    Args:
        target: where the bytes go.
        owner: the stream, as an owner of blocks.

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
        """Begin ``block`` and abandon the one before; False if the stream left meanwhile.

        A block that is here already is only compared. Otherwise the stream becomes its owner, and its prefix, before
        ``block.next``, is hashed again; ``block.dropped`` is set if it is not here.

        Raises:
            QuotaExceeded: the block does not fit.
            NoThread, StoreError: the prefix cannot be read.

        Cancellation: no block is begun; the stream may own it until it leaves.
        """
        self.abandon()
        target = self._target
        block.known = await target.digest_of(block.blockno)
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
        """Write and hash the next bytes of the block; returns it, or None if there is none or the stream left meanwhile.

        Raises:
            StoreError: the bytes cannot be written; the block has not advanced.

        Cancellation: a write that runs in a thread is waited for; the block has not advanced.
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
        """End the block with the stated digest or, if there is none, with the computed one.

        Raises:
            BadFacts: no byte of it came.
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
        """Write a whole block from memory, with its digest; False if another stream took it over meanwhile.

        Raises:
            QuotaExceeded: the block does not fit.
            StoreError: it cannot be written.

        Cancellation: a write that runs in a thread is waited for; the block does not count.
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
        """Give up the block and keep its prefix. Harmless if there is none."""
        block, self.block = self.block, None
        if block is not None and block.known is None and self._target.owns(block.blockno, self._owner):
            self._target.release_block(block.blockno)
            if block.writes:
                self._target.keep_prefix(block.blockno, block.prefix())

    def leave(self) -> None:
        """As ``abandon``, for good: the stream has ended. Harmless when repeated."""
        self._left = True
        self.abandon()


class BriefTarget:
    """A file without OPEN as a ``BlockTarget``: one stream sends it, and there are no prefixes.

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

    async def digest_of(self, blockno: int) -> bytes | None:
        """See BlockTarget."""
        return None

    async def take_block(self, blockno: int, owner: object) -> None:
        """See BlockTarget: the stream owns it from the beginning."""

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
        """See BlockTarget: the block becomes durable with its file."""
        self.done = BlockDone(self.stored, 0, blockno, length, digest)

    def finish(self, facts: Facts, *, reader: bool = False) -> Finish:
        """The work that commits the verified file.

        Args:
            facts: as its sender stated them.
            reader: whether its principal may read, so that the file may be there already (BP1-COM-021).
        """
        done = self.done
        assert done is not None
        blocks = (done,) if done.length else ()
        return Finish(self.stored, 0, done.digest, done.length, facts, blocks, reader)

    def keep_prefix(self, blockno: int, prefix: Prefix) -> None:
        """See BlockTarget: nothing is kept, the file is sent again as a whole."""

    def drop_prefix(self, blockno: int) -> None:
        """See BlockTarget."""

    def close(self) -> None:
        """Close the store's side, after a running write. Harmless when repeated."""
        self._closed = True
        if not self._writes:
            self.stored.close()

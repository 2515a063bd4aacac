"""The receiver of one block: how a block ends, who may write it, and what comes too late."""

from __future__ import annotations

import pytest
import trio
from peers import MIB, bytes_of, run
from trio.testing import wait_all_tasks_blocked

from blockproto.common.blocks import digest_of
from blockproto.common.names import SafeName
from blockproto.errors import BadFacts
from blockproto.store import Facts, Prefix, Upload, UploadKey
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.block_receiver import BlockInProgress, BlockReceiver, Ended

quick = pytest.mark.trio(run=run)

BLOCK = memoryview(bytes_of(MIB))
DIGEST = digest_of(BLOCK)
HALF = MIB // 2
KEY = UploadKey(bytes(16), b"s" * 16)


class Target:
    """A target whose writes and ownership wait while they are told to, and which remembers what it hears."""

    def __init__(self, known: bytes | None = None) -> None:
        self.stored: Upload = MemoryStore().begin_brief(KEY, Facts(SafeName.parse("name"), "", MIB), 0)
        self.prefixes: dict[int, Prefix] = {}
        self.known = known
        self.owner: object = None
        self.verified: list[tuple[int, int, bytes]] = []
        self.may_write, self.may_take = trio.Event(), trio.Event()
        self.may_write.set()
        self.may_take.set()

    async def digest_of(self, blockno: int) -> bytes | None:
        return self.known

    async def take_block(self, blockno: int, owner: object) -> None:
        self.owner = owner
        await self.may_take.wait()

    def owns(self, blockno: int, owner: object) -> bool:
        return self.owner is owner

    def release_block(self, blockno: int) -> None:
        self.owner = None

    async def write(self, blockno: int, position: int, view: memoryview) -> None:
        await self.may_write.wait()
        self.stored.write(position, view)

    def block_verified(self, blockno: int, length: int, digest: bytes) -> None:
        self.verified.append((blockno, length, digest))

    def keep_prefix(self, blockno: int, prefix: Prefix) -> None:
        self.prefixes[blockno] = prefix

    def drop_prefix(self, blockno: int) -> None:
        self.prefixes.pop(blockno, None)


async def _begun(target: Target, digest: bytes | None = DIGEST, position: int = 0) -> BlockReceiver:
    receiver = BlockReceiver(target, "me")
    block = BlockInProgress(0, 0, position, MIB)
    block.digest = digest
    assert await receiver.begin(block)
    return receiver


@quick
@pytest.mark.parametrize("digest", [DIGEST, None])
async def test_a_whole_block_is_verified_also_where_no_digest_is_stated(digest: bytes | None) -> None:
    target = Target()
    receiver = await _begun(target, digest)
    for position in (0, HALF):
        await receiver.take(position, BLOCK[position : position + HALF])
    assert receiver.end() is Ended.VERIFIED
    assert target.verified == [(0, MIB, DIGEST)]
    assert receiver.block is None


@quick
async def test_other_bytes_than_stated_are_damage() -> None:
    target = Target()
    target.prefixes[0] = Prefix(5, bytes(32))
    receiver = await _begun(target, bytes(32))
    await receiver.take(0, BLOCK)
    assert receiver.end() is Ended.DAMAGED
    assert (target.verified, target.prefixes, target.owner) == ([], {}, None)


@quick
@pytest.mark.parametrize(("known", "ended"), [(DIGEST, Ended.KNOWN), (bytes(32), Ended.DIFFERS)])
async def test_a_block_that_is_here_is_compared_and_not_written(known: bytes, ended: Ended) -> None:
    target = Target(known)
    receiver = await _begun(target)
    await receiver.take(0, BLOCK)
    assert receiver.end() is ended
    assert (target.verified, target.owner) == ([], None)
    assert target.stored.read_into(0, memoryview(bytearray(MIB))) == 0


@quick
async def test_nothing_is_no_block() -> None:
    receiver = await _begun(Target())
    with pytest.raises(BadFacts, match="block 0 has no bytes"):
        receiver.end()


@quick
async def test_an_abandoned_block_goes_on_where_it_was() -> None:
    target = Target()
    receiver = await _begun(target, None)
    await receiver.take(0, BLOCK[:HALF])
    receiver.abandon()
    assert target.prefixes == {0: Prefix(HALF, digest_of(BLOCK[:HALF]))}
    receiver = await _begun(target, position=HALF)
    await receiver.take(HALF, BLOCK[HALF:])
    assert receiver.end() is Ended.VERIFIED


@quick
async def test_behind_nothing_that_is_here_bytes_are_dropped() -> None:
    target = Target()
    receiver = await _begun(target, position=HALF)
    await receiver.take(HALF, BLOCK[HALF:])
    assert receiver.end() is Ended.DAMAGED
    receiver = await _begun(target, position=HALF)
    receiver.abandon()
    assert (target.prefixes, target.owner) == ({}, None)


@quick
async def test_what_another_stream_took_over_is_neither_written_nor_verified() -> None:
    target = Target()
    receiver = await _begun(target)
    target.owner = "another"
    await receiver.take(0, BLOCK)
    assert receiver.end() is Ended.TAKEN_AWAY
    assert (target.verified, target.owner) == ([], "another")
    assert target.stored.read_into(0, memoryview(bytearray(MIB))) == 0


@quick
async def test_a_stream_that_ends_while_its_write_runs_does_not_go_on_with_the_block() -> None:
    target = Target()
    receiver = await _begun(target)
    await receiver.take(0, BLOCK[:HALF])
    target.may_write = trio.Event()
    taken: list[BlockInProgress | None] = []

    async def take() -> None:
        taken.append(await receiver.take(HALF, BLOCK[HALF:]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        receiver.leave()
        target.may_write.set()
    assert taken == [None]
    assert target.verified == []
    assert target.prefixes == {0: Prefix(HALF, digest_of(BLOCK[:HALF]))}


@quick
async def test_a_stream_that_ends_while_it_waits_for_a_block_begins_none() -> None:
    target = Target()
    target.may_take = trio.Event()
    receiver = BlockReceiver(target, "me")
    begun: list[bool] = []

    async def begin() -> None:
        begun.append(await receiver.begin(BlockInProgress(0, 0, 0, MIB)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        await wait_all_tasks_blocked()
        receiver.leave()
        target.may_take.set()
    assert begun == [False]
    assert receiver.block is None


@quick
@pytest.mark.parametrize("taken_away", [False, True])
async def test_a_whole_block_from_memory_counts_unless_it_is_taken_away_meanwhile(taken_away: bool) -> None:
    target = Target()
    target.may_write = trio.Event()
    put: list[bool] = []

    async def take() -> None:
        put.append(await BlockReceiver(target, "me").put(0, BLOCK, DIGEST))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        target.owner = "another" if taken_away else target.owner
        target.may_write.set()
    assert put == [not taken_away]
    assert target.verified == ([] if taken_away else [(0, MIB, DIGEST)])

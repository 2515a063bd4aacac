"""The sender: what it sends, in which bounds, what it sends again, and when it gives up. The receiver is a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trio
from peers import MIB, EndOfStream, Heard, RawPeer, Sample, bytes_of, run
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from blockproto.common.blocks import EMPTY_DIGEST, BlockSet, block_span, digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.connection.connection import Connection
from blockproto.connection.endpoint import StreamEndpoint
from blockproto.errors import (
    BlockprotoError,
    Cancelled,
    Code,
    ConnectionLost,
    DigestMismatch,
    DigestsDiffer,
    GoingAway,
    Scope,
    SourceChanged,
    Superseded,
    UnexpectedMessage,
)
from blockproto.protocol.session import Session, Side
from blockproto.store import Facts
from blockproto.transfer import sender
from blockproto.transfer.send_plan import AGAIN_MAX, REPAIRS_MAX
from blockproto.transfer.send_source import Progress
from blockproto.transfer.send_stream import SendStream
from blockproto.transfer.sender import Sender
from blockproto.wire import (
    PREFACE,
    Ack,
    Block,
    Cancel,
    Commit,
    Committed,
    Credit,
    Error,
    GoAway,
    Have,
    Hello,
    Open,
    Opened,
    Piece,
    encode_frame,
)

quick = pytest.mark.trio(run=run)

THREE = Sample(bytes_of(2 * MIB + 5))


class Memory:
    """A source in memory: the bytes from ``first`` to ``end`` of a content, or a stream if ``end`` is None."""

    def __init__(
        self, sample: Sample, first: int = 0, end: int | None = None, window_bytes: int | None = None
    ) -> None:
        self.content = sample.content
        self.facts = Facts(SafeName.parse(sample.filename), sample.filetype, sample.filesize)
        self.first = first
        self.end = len(sample.content) if sample.known and end is None else end
        self.window_bytes = window_bytes
        self.read: list[int] = []
        self.made_durable: list[int] = []
        self.changed = False
        self.fails: Exception | None = None

    async def read_block(self, blockno: int, memory: memoryview) -> memoryview:
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        self.read.append(blockno)
        position, length = block_span(blockno, self.first, self.end or len(self.content))
        memory[:length] = self.content[position : position + length]
        return memory[:length]

    def read_into(self, position: int, view: memoryview) -> int:
        part = self.content[position : position + len(view)]
        view[: len(part)] = part
        return len(part)

    def durable(self, blockno: int) -> None:
        self.made_durable.append(blockno)

    def unchanged(self) -> bool:
        return not self.changed


ROOMY = Hello(connection_allowance=32 * MIB, stream_allowance=16 * MIB)
"""Of a receiver that lives without CREDIT."""


@dataclass
class Line:
    """A connection of ours, and the receiver at its other end."""

    connection: Connection
    peer: RawPeer


@asynccontextmanager
async def lines(number: int = 1, hello: Hello | None = None) -> AsyncIterator[list[Line]]:
    """Connections that have greeted each other."""
    made: list[Line] = []
    async with trio.open_nursery() as nursery:
        for _ in range(number):
            here, there = memory_stream_pair()
            line = Line(Connection(StreamEndpoint(here), Session(Side.CLIENT)), RawPeer(there))
            nursery.start_soon(line.connection.run)
            await line.peer.hear_greeting()
            await line.peer.send_bytes(PREFACE + encode_frame(0, hello or ROOMY))
            await line.connection.greeted.wait()
            line.connection.pace.unknown = False  # nobody says CREDIT here, which would hold up the beginning
            made.append(line)
        yield made
        for line in made:
            line.connection.close()


def _open(source: Memory, sample: Sample) -> Open:
    return sample.open(1)


@dataclass
class Receiver:
    """Answers like a receiver, in memory; its habits are switches.

    Attributes:
        held: blocks it says that it has.
        damage: blocknos to refuse, each entry once.
        acks: whether it acknowledges.
        answer: what it says to COMMIT, if anything (None: COMMITTED with that root).
    """

    peer: RawPeer
    stream: int = 1
    held: dict[int, bytes] = field(default_factory=dict)
    damage: list[int] = field(default_factory=list)
    acks: bool = True
    heard: list[Heard] = field(default_factory=list)
    answer: Callable[[Commit], Error | Committed | None] | None = None
    blocks: dict[int, bytearray] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    haves: list[Have] = field(default_factory=list)
    _blockno: int = 0
    _damaged: set[int] = field(default_factory=set)

    async def run(self) -> None:
        """Until the sender's stream or connection ends."""
        while True:
            heard = await self.peer.hear()
            self.heard.append(heard)
            message = heard.message
            if isinstance(message, Block | Piece):
                await self._take(message, heard.payload)
            elif isinstance(message, Commit):
                self.commits.append(message)
                await self._answer()
            elif isinstance(message, Have):
                self.haves.append(message)
                if not message.more:
                    await self.peer.say(self.stream, self.opened())

    def committed(self, commit: Commit) -> Committed:
        return Committed(commit.sourceid, bytes(16), commit.root, commit.filesize, "stored")

    def opened(self) -> Opened:
        runs = tuple(BlockSet((no, 1) for no in self.held).runs())
        return Opened(THREE.sourceid, bytes(16), 1, 0, 1, None, held=runs)

    @property
    def order(self) -> list[int]:
        """The blocknos in the order in which they were begun."""
        return [heard.message.blockno for heard in self.heard if isinstance(heard.message, Block)]

    async def _take(self, message: Block | Piece, payload: bytes) -> None:
        if isinstance(message, Block):
            self._blockno = message.blockno
            self.blocks[message.blockno] = bytearray()
        block = self.blocks[self._blockno]
        block += payload
        if message.digest is None:
            return
        if self._blockno in self.damage:
            self.damage.remove(self._blockno)
            self._damaged.add(self._blockno)
            await self.peer.say(
                self.stream, Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True, blockno=self._blockno)
            )
            return
        self.held[self._blockno] = message.digest
        if self.acks:
            await self.peer.say(self.stream, Ack(0, ((self._blockno, 1),)))
        if self._damaged:
            self._damaged.discard(self._blockno)
            await self._answer()

    async def _answer(self) -> None:
        """Answer COMMIT once no damaged block is left."""
        if self._damaged or not self.commits:
            return
        commit = self.commits[-1]
        answer = self.answer(commit) if self.answer else self.committed(commit)
        if answer is not None:
            await self.peer.say(self.stream, answer)


@asynccontextmanager
async def sending(
    source: Memory, sample: Sample = THREE, *, number: int = 1, hello: Hello | None = None
) -> AsyncIterator[tuple[Sender, list[SendStream], list[Receiver]]]:
    """A Sending with its streams opened, and receivers that run."""
    async with lines(number, hello) as made, trio.open_nursery() as nursery:
        task = Sender(source, sample.sourceid)
        send_streams = [SendStream(line.connection, task) for line in made]
        receivers = [Receiver(line.peer) for line in made]
        for send_stream, receiver in zip(send_streams, receivers, strict=True):
            send_stream.connection.post(send_stream.stream, sample.open())
            assert isinstance((await receiver.peer.hear()).message, Open)
            nursery.start_soon(_run, receiver)
        yield task, send_streams, receivers
        nursery.cancel_scope.cancel()


async def _run(receiver: Receiver) -> None:
    with suppress(EndOfStream, trio.BrokenResourceError, trio.ClosedResourceError):
        await receiver.run()


def _joined(receivers: list[Receiver]) -> bytes:
    blocks = {no: bytes(block) for receiver in receivers for no, block in receiver.blocks.items()}
    return b"".join(blocks[no] for no in sorted(blocks))


# ---- what is sent ---------------------------------------------------------------------------------------------


@quick
async def test_every_block_then_commit_with_the_root() -> None:
    source = Memory(THREE)
    async with sending(source) as (task, send_streams, (receiver,)):
        committed = await task.run(send_streams)
        assert committed.stored_as == "stored"
        assert receiver.order == [0, 1, 2]
        assert _joined([receiver]) == THREE.content
        assert receiver.commits == [THREE.commit()]
        assert len(task.plan.travelled) == 3
        assert task.progress.payload_bytes_sent == len(THREE.content)


@quick
async def test_every_block_says_in_full_what_it_is() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        await task.run(send_streams)
        blocks = [heard.message for heard in receiver.heard if isinstance(heard.message, Block)]
        for block in blocks:
            assert block.sourceid == THREE.sourceid
            assert (block.filename, block.filetype) == (THREE.filename, THREE.filetype)
            assert (block.filesize, block.blocknum) == (len(THREE.content), 3)


@quick
async def test_what_is_held_is_hashed_and_not_sent() -> None:
    source = Memory(THREE)
    async with sending(source) as (task, send_streams, (receiver,)):
        task.receiver_holds(BlockSet([(0, 1), (2, 1)]), {})
        await task.run(send_streams)
        assert source.read == [1]
        assert receiver.order == [1]
        assert receiver.commits == [THREE.commit()]
        assert task.plan.held_before == BlockSet([(0, 1), (2, 1)])


@quick
async def test_a_block_goes_on_behind_its_prefix() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        task.receiver_holds(BlockSet([(0, 1)]), {1: 300_000})
        await task.run(send_streams)
        (first, *_) = [heard.message for heard in receiver.heard if isinstance(heard.message, Block)]
        assert first.position == MIB + 300_000
        assert receiver.blocks[1] == THREE.bytes_of(1)[300_000:]
        assert task.progress.payload_bytes_sent == MIB - 300_000 + 5


@quick
@pytest.mark.parametrize("length", [5, 6, 1000])
async def test_a_prefix_as_long_as_its_block_is_not_believed(length: int) -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        task.receiver_holds(BlockSet([(0, 2)]), {2: length})
        await task.run(send_streams)
        assert receiver.blocks[2] == THREE.bytes_of(2)


@quick
async def test_an_empty_file_is_only_a_commit() -> None:
    empty = Sample(b"", sourceid=THREE.sourceid)
    async with sending(Memory(empty), empty) as (task, send_streams, (receiver,)):
        await task.run(send_streams)
        assert receiver.order == []
        assert receiver.commits == [Commit(empty.sourceid, EMPTY_DIGEST, 0, 0)]


@quick
@pytest.mark.parametrize("size", [0, 5, MIB, MIB + 5, 2 * MIB])
async def test_a_source_whose_size_shows_at_its_end(size: int) -> None:
    sample = Sample(bytes_of(size), known=False, sourceid=THREE.sourceid)
    async with sending(Memory(sample), sample) as (task, send_streams, (receiver,)):
        await task.run(send_streams)
        assert _joined([receiver]) == sample.content
        assert receiver.commits == [sample.commit()]
        assert task.progress.filesize == size


@quick
async def test_two_lanes_share_the_blocks() -> None:
    sample = Sample(bytes_of(8 * MIB), sourceid=THREE.sourceid)
    async with sending(Memory(sample), sample, number=2) as (task, send_streams, receivers):
        await task.run(send_streams)
        assert sorted(receivers[0].order + receivers[1].order) == list(range(8))
        assert receivers[0].order
        assert receivers[1].order
        assert _joined(receivers) == sample.content
        assert [len(receiver.commits) for receiver in receivers] == [1, 0]


@quick
async def test_a_lane_without_credit_carries_fewer_blocks() -> None:
    sample = Sample(bytes_of(8 * MIB), sourceid=THREE.sourceid)
    hello = Hello(connection_allowance=MIB, stream_allowance=16 * MIB)
    async with sending(Memory(sample), sample, number=2, hello=hello) as (task, send_streams, receivers):
        await receivers[0].peer.say(0, Credit(100 * MIB, 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run, send_streams)
            await wait_all_tasks_blocked()
            assert len(receivers[1].order) <= 2
            assert len(receivers[0].order) >= 6
            await receivers[1].peer.say(0, Credit(100 * MIB, 0))


@quick
@pytest.mark.parametrize(
    ("first", "end"), [(0, 5), (10, 11), (MIB - 10, MIB + 10), (MIB, 2 * MIB), (5, 2 * MIB + 5)]
)
async def test_a_range_is_the_blocks_cut_to_it(first: int, end: int) -> None:
    async with sending(Memory(THREE, first, end)) as (task, send_streams, (receiver,)):
        await task.run(send_streams)
        assert _joined([receiver]) == THREE.content[first:end]
        parts = [receiver.blocks[no] for no in sorted(receiver.blocks)]
        root = root_of((digest_of(part) for part in parts), len(parts))
        assert receiver.commits == [Commit(THREE.sourceid, root, len(THREE.content), 3)]
        blocks = [heard.message for heard in receiver.heard if isinstance(heard.message, Block)]
        assert blocks[0].position == first


@quick
@pytest.mark.parametrize("at", [0, 5, MIB, 2 * MIB + 5])
async def test_an_empty_range_is_only_a_commit(at: int) -> None:
    source = Memory(THREE, at, at)
    async with sending(source) as (task, send_streams, (receiver,)):
        await task.run(send_streams)
        assert receiver.order == []
        assert receiver.commits == [Commit(THREE.sourceid, EMPTY_DIGEST, len(THREE.content), 3)]


# ---- bounds ---------------------------------------------------------------------------------------------------


async def _begun_without_acks(
    hello: Hello | None = None, window_bytes: int | None = None
) -> tuple[list[int], list[int]]:
    """The blocks begun while nothing is acknowledged, and after the first was."""
    sample = Sample(bytes_of(8 * MIB), sourceid=THREE.sourceid)
    source = Memory(sample, window_bytes=window_bytes)
    async with sending(source, sample, hello=hello) as (task, send_streams, (receiver,)):
        receiver.acks = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run, send_streams)
            await wait_all_tasks_blocked()
            before = receiver.order
            await receiver.peer.say(1, Ack(MIB, ((0, 1),)))
            await wait_all_tasks_blocked()
            after = receiver.order
            assert source.made_durable == [0]
            nursery.cancel_scope.cancel()
    return before, after


@quick
async def test_no_more_is_sent_than_may_be_undurable() -> None:
    before, after = await _begun_without_acks(Hello(undurable_max=3 * MIB))
    assert (before, after) == ([0, 1, 2], [0, 1, 2, 3])


@pytest.mark.clause("BP1-LIM-002")
@quick
async def test_a_source_that_keeps_little_bounds_it_too() -> None:
    before, after = await _begun_without_acks(window_bytes=2 * MIB)
    assert (before, after) == ([0, 1], [0, 1, 2])


@quick
async def test_one_block_may_always_be_under_way() -> None:
    before, after = await _begun_without_acks(Hello(undurable_max=0))
    assert (before, after) == ([0], [0, 1])


@quick
async def test_blocks_on_all_lanes_count_together() -> None:
    sample = Sample(bytes_of(8 * MIB), sourceid=THREE.sourceid)
    hello = Hello(undurable_max=3 * MIB)
    async with sending(Memory(sample), sample, number=2, hello=hello) as (task, send_streams, receivers):
        for receiver in receivers:
            receiver.acks = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run, send_streams)
            await wait_all_tasks_blocked()
            assert len(receivers[0].order) + len(receivers[1].order) == 3
            nursery.cancel_scope.cancel()


@quick
async def test_a_receiver_is_believed_only_about_blocks_that_there_are() -> None:
    """Four billion held blocks are claimed in eight bytes: they must not be counted one by one."""
    source = Memory(THREE, MIB, 2 * MIB)
    async with sending(source) as (task, send_streams, (receiver,)):
        task.receiver_holds(BlockSet([(0, 0xFFFFFFFE)]), {})
        assert task.plan.held == BlockSet([(1, 1)])
        receiver.acks = False
        await receiver.peer.say(1, Ack((1 << 62), ((0, 0xFFFFFFFE),)))
        await task.run(send_streams)
        assert source.read == []
        assert receiver.commits[0].root == digest_of(THREE.bytes_of(1))


# ---- sent again -----------------------------------------------------------------------------------------------


@quick
async def test_a_damaged_block_is_sent_again_from_its_start() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        task.receiver_holds(BlockSet(), {1: 1000})
        receiver.damage = [1]
        await task.run(send_streams)
        assert sorted(receiver.order) == [0, 1, 1, 2]
        assert receiver.blocks[1] == THREE.bytes_of(1)
        assert len(task.plan.travelled) == 3


@pytest.mark.clause("BP1-RES-020")
@quick
async def test_the_last_block_can_be_damaged_after_commit_was_said() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        said: list[bool] = []

        def answer(commit: Commit) -> Error | Committed:
            if not said:
                said.append(True)
                return Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True, blockno=2)
            return receiver.committed(commit)

        receiver.answer = answer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run, send_streams)
            await wait_all_tasks_blocked()
            assert receiver.order == [0, 1, 2, 2]
            await receiver.peer.say(1, receiver.committed(receiver.commits[0]))


@pytest.mark.clause("BP1-ERR-006")
@quick
async def test_a_block_that_is_always_damaged_ends_the_transfer() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        receiver.damage = [1] * 20
        receiver.answer = lambda commit: None
        with pytest.raises(DigestMismatch) as caught:
            await task.run(send_streams)
        assert caught.value.blockno == 1
        assert receiver.order.count(1) <= 1 + AGAIN_MAX


@quick
async def test_an_unknown_error_about_a_block_sends_it_again() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        await receiver.peer.say(1, Error(999, Scope.BLOCK, True))  # about no block: nothing to do
        await wait_all_tasks_blocked()
        task.plan.remember_digest(0, bytes(32))
        await receiver.peer.say(1, Error(999, Scope.BLOCK, True, blockno=0))
        await wait_all_tasks_blocked()
        await task.run(send_streams)
        assert receiver.commits == [THREE.commit()]


@quick
async def test_a_block_that_was_never_sent_is_not_sent_again() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        await receiver.peer.say(1, Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True, blockno=77))
        await wait_all_tasks_blocked()
        with pytest.raises(DigestMismatch):
            await task.run(send_streams)


# ---- repair ---------------------------------------------------------------------------------------------------


@quick
async def test_a_root_that_differs_is_repaired() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        task.receiver_holds(BlockSet([(0, 2)]), {})
        receiver.held = {0: bytes(32), 1: digest_of(THREE.bytes_of(1))}

        def answer(commit: Commit) -> Error | Committed:
            if not receiver.haves:
                del receiver.held[0]
                return Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True)
            return receiver.committed(commit)

        receiver.answer = answer
        await task.run(send_streams)
        assert [have.digests for have in receiver.haves] == [
            tuple((no, digest_of(THREE.bytes_of(no))) for no in range(3))
        ]
        assert receiver.order == [2, 0]
        assert len(receiver.commits) == 2


@quick
async def test_digests_go_in_pages_that_the_peers_head_takes() -> None:
    sample = Sample(bytes(300 * MIB), sourceid=THREE.sourceid)
    async with sending(Memory(sample), sample, hello=Hello(head_length_max=4096)) as (
        task,
        send_streams,
        (receiver,),
    ):
        task.receiver_holds(BlockSet([(0, 300)]), {})
        receiver.held = dict.fromkeys(range(300), b"")
        answers: list[Callable[[Commit], Error | Committed]] = [
            lambda commit: Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True),
            receiver.committed,
        ]
        receiver.answer = lambda commit: answers.pop(0)(commit)
        await task.run(send_streams)
        assert len(receiver.haves) > 1
        assert [have.more for have in receiver.haves] == [True] * (len(receiver.haves) - 1) + [False]
        assert [no for have in receiver.haves for no, _ in have.digests] == list(range(300))


@quick
async def test_a_file_whose_roots_never_agree_is_given_up() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        receiver.answer = lambda commit: Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True)
        with pytest.raises(DigestsDiffer):
            await task.run(send_streams)
        assert len(receiver.commits) == 1 + REPAIRS_MAX
        for send_stream in send_streams:
            send_stream.release()
        await wait_all_tasks_blocked()
        assert isinstance(receiver.heard[-1].message, Cancel)


# ---- the end --------------------------------------------------------------------------------------------------


@quick
async def test_an_error_of_the_receiver_ends_it_with_its_reason() -> None:
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        receiver.answer = lambda commit: Error(Code.SUPERSEDED, Scope.STREAM, False, "newer", current=9)
        with pytest.raises(Superseded) as caught:
            await task.run(send_streams)
        assert caught.value.current == 9


@quick
async def test_a_damaged_brief_like_refusal_of_the_stream_is_final() -> None:
    """DIGEST_MISMATCH of scope stream ends the stream: there is nothing left to send again on."""
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        receiver.answer = lambda commit: Error(Code.DIGEST_MISMATCH, Scope.STREAM, True, blockno=0)
        with pytest.raises(DigestMismatch):
            await task.run(send_streams)


@quick
@pytest.mark.parametrize("what", ["root", "filesize"])
async def test_committed_with_another_root_or_size_is_no_success(what: str) -> None:
    def answer(commit: Commit) -> Committed:
        root, size = (bytes(32), commit.filesize) if what == "root" else (commit.root, 1)
        return Committed(commit.sourceid, bytes(16), root, size, "other")

    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        receiver.answer = answer
        with pytest.raises(SourceChanged):
            await task.run(send_streams)


@quick
async def test_committed_may_come_before_everything_was_sent() -> None:
    """Somebody else finished the same upload."""
    async with sending(Memory(THREE)) as (task, send_streams, (receiver,)):
        await receiver.peer.say(1, receiver.committed(THREE.commit()))
        await wait_all_tasks_blocked()
        assert (await task.run(send_streams)).root == THREE.root
        assert receiver.order == []


@pytest.mark.clause("BP1-FET-011")
@quick
async def test_a_file_that_changed_is_never_committed() -> None:
    source = Memory(THREE)
    async with sending(source) as (task, send_streams, (receiver,)):
        source.changed = True
        with pytest.raises(SourceChanged):
            await task.run(send_streams)
        await wait_all_tasks_blocked()
        assert receiver.commits == []


@quick
async def test_a_source_that_cannot_be_read_raises_its_own_error() -> None:
    source = Memory(THREE)
    async with sending(source, number=2) as (task, send_streams, _):
        source.fails = OSError(5, "Input/output error")
        with pytest.raises(OSError, match="Input/output"):
            await task.run(send_streams)


@quick
async def test_a_held_block_that_is_missing_in_the_source_is_a_changed_source() -> None:
    source = Memory(THREE)
    async with sending(source) as (task, send_streams, _):
        task.receiver_holds(BlockSet([(1, 1)]), {})
        source.content = source.content[:MIB]
        with pytest.raises(SourceChanged, match="shorter"):
            await task.run(send_streams)


@quick
async def test_a_stream_that_is_refused_in_the_middle_of_a_block_tells_why() -> None:
    hello = Hello(connection_allowance=100 * MIB, stream_allowance=MIB // 2)
    async with (
        sending(Memory(THREE), hello=hello) as (task, send_streams, (receiver,)),
        trio.open_nursery() as nursery,
    ):

        async def sends() -> None:
            with pytest.raises(BlockprotoError) as caught:
                await task.run(send_streams)
            assert caught.value.code == Code.BUSY

        nursery.start_soon(sends)
        await wait_all_tasks_blocked()
        await receiver.peer.say(1, Error(Code.BUSY, Scope.STREAM, True))


@quick
async def test_a_changed_source_is_told_though_a_send_was_cut_off_by_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A send that is cancelled half-way ends its connection, which is not the reason."""
    begun = trio.Event()

    async def hash_meanwhile(work: Callable[[], object], _: object) -> object:
        await begun.wait()
        return work()

    source = Memory(THREE)
    async with sending(source) as (task, send_streams, _):
        connection = send_streams[0].connection

        async def cut_off(*_: object) -> None:
            source.content = b""
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                connection.close(ConnectionLost("a send was cancelled half-way"))
                with trio.CancelScope(shield=True):
                    await connection.finished.wait()

        monkeypatch.setattr(Connection, "send", cut_off)
        monkeypatch.setattr(sender, "run_in_thread", hash_meanwhile)
        task.receiver_holds(BlockSet([(1, 1)]), {})
        with pytest.raises(SourceChanged, match="shorter"):
            await task.run(send_streams)


@quick
async def test_a_lost_connection_can_be_followed_by_another() -> None:
    source = Memory(THREE)
    async with lines(2) as made:
        task = Sender(source, THREE.sourceid)
        send_stream = SendStream(made[0].connection, task)
        send_stream.connection.post(send_stream.stream, THREE.open())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run_until_lost, task, send_stream)
            receiver = Receiver(made[0].peer, acks=False, answer=lambda commit: None)
            nursery.start_soon(_run, receiver)
            await wait_all_tasks_blocked()
            await made[0].peer.stream.aclose()
        again = SendStream(made[1].connection, task)
        task.begin_again([again])
        again.connection.post(again.stream, THREE.open(2))
        receiver = Receiver(made[1].peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run, receiver)
            task.receiver_holds(BlockSet([(0, 2)]), {})
            assert source.made_durable == [0, 1]  # their acknowledgements were lost
            await task.run([again])
            nursery.cancel_scope.cancel()
        assert receiver.order == [2]
        assert receiver.commits == [THREE.commit()]


async def _run_until_lost(task: Sender, send_stream: SendStream) -> None:
    with pytest.raises(ConnectionLost):
        await task.run([send_stream])


@pytest.mark.clause("BP1-RES-027")
@quick
@pytest.mark.parametrize("before", ["it broke", "the server leaves", "the server is busy"])
async def test_a_sender_that_was_taken_over_hears_so_whatever_ended_another_connection(before: str) -> None:
    """Else it would come back with a greater attempt, and two devices take one upload from each other for ever."""
    async with lines(2) as (first, second):
        task = Sender(Memory(THREE), THREE.sourceid)
        lost = SendStream(first.connection, task)
        task.begin_again([lost])
        first.connection.post(lost.stream, THREE.open())
        if before == "the server is busy":
            await first.peer.say(lost.stream, Error(Code.BUSY, Scope.STREAM, True))
            await wait_all_tasks_blocked()
        if before == "the server leaves":
            first.connection.close(GoingAway())
        await first.peer.stream.aclose()
        await first.connection.finished.wait()
        send_stream = SendStream(second.connection, task)
        async with trio.open_nursery() as nursery:
            superseded = Error(Code.SUPERSEDED, Scope.STREAM, False, current=9)
            nursery.start_soon(second.peer.say, send_stream.stream, superseded)
            with pytest.raises(Superseded):
                await send_stream.open(THREE.open())


@pytest.mark.clause("BP1-RES-027")
@quick
async def test_a_sender_that_was_taken_over_hears_so_though_the_line_breaks_in_what_it_sends_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OPEN was refused while a block that the receiver has nothing of was already being written."""
    async with lines() as (line,):
        task = Sender(Memory(THREE), THREE.sourceid)
        task.receiver_holds(BlockSet(), {})
        send_stream = SendStream(line.connection, task)
        task.begin_again([send_stream])

        async def break_when_it_was_refused(*_: object) -> None:
            await send_stream.opened.wait()
            line.connection.close(ConnectionLost("it broke"))
            raise ConnectionLost("it broke")

        monkeypatch.setattr(Connection, "send", break_when_it_was_refused)
        async with trio.open_nursery() as nursery:
            superseded = Error(Code.SUPERSEDED, Scope.STREAM, False, current=9)
            nursery.start_soon(line.peer.say, send_stream.stream, superseded)
            with pytest.raises(Superseded):
                await send_stream.open(THREE.open(), ahead=True)


@quick
async def test_what_a_lost_lane_carried_is_not_sent_again_once_it_is_acknowledged_after_all() -> None:
    """It waits for a free stream, and its acknowledgement comes in between (BP1-RES-025)."""
    sample = Sample(bytes_of(8 * MIB), sourceid=THREE.sourceid)
    hello = Hello(undurable_max=3 * MIB, connection_allowance=100 * MIB, stream_allowance=MIB // 2)
    async with sending(Memory(sample), sample, number=3, hello=hello) as (task, send_streams, receivers):
        carries, waits, joins = send_streams
        for receiver in receivers[:2]:
            receiver.acks = False

        async def replace(lost: SendStream) -> SendStream:
            joins.joined = Opened(THREE.sourceid, bytes(16), 1, 0, 1, None)
            return joins

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run, [carries, waits], replace)
            await receivers[0].peer.say(1, Credit(100 * MIB, 0))
            await wait_all_tasks_blocked()
            first, second = receivers[0].order
            await receivers[0].peer.stream.aclose()
            await wait_all_tasks_blocked()
            assert receivers[2].order == [first]  # in the middle of it: there is no credit for the rest
            receivers[1].acks = True
            await receivers[1].peer.say(1, Ack(0, ((second, 1),)))
            for receiver in receivers[1:]:
                await receiver.peer.say(1, Credit(100 * MIB, 0))
        assert sorted(receivers[1].order + receivers[2].order) == sorted({*range(8)} - {second})


@quick
async def test_a_released_lane_says_cancel_and_is_not_listened_to_any_more() -> None:
    async with sending(Memory(THREE)) as (task, (send_stream,), (receiver,)):
        send_stream.release()
        await wait_all_tasks_blocked()
        assert isinstance(receiver.heard[-1].message, Cancel)
        await receiver.peer.say(1, Error(Code.CANCELLED, Scope.STREAM, False))
        await wait_all_tasks_blocked()
        send_stream.ended(Cancelled("late"))
        assert task._failed is None
        send_stream.release()  # harmless: the stream is closed


@quick
async def test_no_block_is_begun_after_goaway() -> None:
    sample = Sample(bytes_of(8 * MIB), sourceid=THREE.sourceid)
    async with sending(Memory(sample), sample, hello=Hello(undurable_max=2 * MIB)) as (
        task,
        send_streams,
        (receiver,),
    ):
        receiver.acks = False
        async with trio.open_nursery() as nursery:

            async def sends() -> None:
                with pytest.raises(GoingAway) as caught:
                    await task.run(send_streams)
                assert caught.value.retry_after_ms == 500

            nursery.start_soon(sends)
            await wait_all_tasks_blocked()
            await receiver.peer.say(0, GoAway(Code.GOING_AWAY, 2000, 500))
            await receiver.peer.say(1, Ack(2 * MIB, ((0, 2),)))
        assert receiver.order == [0, 1]


@quick
async def test_a_refused_open_raises_its_reason() -> None:
    async with lines() as (line,):
        send_stream = SendStream(line.connection, Sender(Memory(THREE), THREE.sourceid))

        async def opens() -> None:
            with pytest.raises(Superseded):
                await send_stream.open(THREE.open())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens)
            await line.peer.hear()
            await line.peer.say(1, Error(Code.SUPERSEDED, Scope.STREAM, False))


@quick
async def test_payload_from_a_receiver_ends_the_connection() -> None:
    async with sending(Memory(THREE)) as (task, (send_stream,), (receiver,)):
        await receiver.peer.say(1, *THREE.block(0))
        await send_stream.connection.finished.wait()
        with pytest.raises(UnexpectedMessage):
            await task.run([send_stream])


@quick
async def test_progress_rises_to_the_end() -> None:
    seen: list[int] = []

    def look(progress: Progress) -> None:
        assert progress.filename == "sample.bin"
        assert progress.filesize == len(THREE.content)
        seen.append(progress.position_bytes_done)

    async with sending(Memory(THREE)) as (task, send_streams, _):
        task._on_progress = look
        await task.run(send_streams)
    assert seen == sorted(seen)
    assert seen[-1] in {2 * MIB, len(THREE.content)}  # the last acknowledgement may be overtaken by COMMITTED

"""The sender: one file over one or several streams. Uploads and downloads use the same one.

``Sender`` is the file as its sender sees it: what the receiver holds, what is under way, the digests. A ``SendStream`` is
one stream that carries some of its blocks; streams take the next missing block when they are free, so a slow connection
carries fewer. Whatever the receiver held before is read and hashed beside (not sent), because the root is over all.
Others join when they are there. One that does not come is one fewer, and one that is lost while others go on is replaced by
one that joins: its OPENED tells what of the lost one arrived.

    missing blocks → streams → COMMIT → COMMITTED
                        ↑ DIGESTS_DIFFER → HAVE → OPENED ┘

Invariant: bytes sent − bytes durable ≤ ``undurable_max`` of the receiver, but for blocks already begun.

Spec: BP1-BLK, BP1-COM, BP1-DIG.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import count

import trio

from ..common.blocks import (
    BLOCK_LENGTH,
    DIGEST_LENGTH,
    BlockSet,
    Run,
    block_span,
    blocknum_of,
    digest_of,
    root_of,
)
from ..connection.connection import error_of
from ..errors import (
    BlockprotoError,
    Code,
    ConnectionLost,
    DigestMismatch,
    DigestsDiffer,
    GoingAway,
    Scope,
    SourceChanged,
    UnexpectedMessage,
)
from ..store import Facts, IfExists
from ..wire import (
    Ack,
    Commit,
    Committed,
    Error,
    Have,
    Message,
    Opened,
    Priority,
    digests_max,
)
from .send_source import OnProgress, Progress, Source
from .send_stream import SendStream
from .threads import Kind, run_in_thread

HAVE_DIGESTS_MAX = 1024
AGAIN_MAX = 3
"""How often in a row a block is sent again because it arrived damaged (BP1-ERR)."""
REPAIRS_MAX = 3
"""Rounds of HAVE after which a sender gives up: its file is changing (BP1-DIG)."""
_HASH_BATCH_BLOCKS = 32
_BLOCKNUM_MAX = 1 << 63


Join = Callable[[], Awaitable[SendStream]]
"""Makes one more stream that has joined; raises BlockprotoError."""
Replace = Callable[[SendStream], Awaitable[SendStream]]
"""Makes a stream that has joined in the place of one that was lost; raises ConnectionLost."""


class Sender:
    """One file on its way.

    Args:
        source: its bytes.
        sourceid: 16 bytes.
        priority: of its blocks.
        on_progress: called after each change that a person would want to see.
        root: the file's, if it is known before it is sent.

    Attributes:
        root: the file's, as far as it is known.
        travelled: the blocks that were sent, however often.
        bytes_there: what the receiver said at last that it has, unfinished blocks included.
        reached: the most bytes that the receiver had at once, unfinished blocks included; tells whether trying again helps.
    """

    def __init__(
        self,
        source: Source,
        sourceid: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        on_progress: OnProgress | None = None,
        root: bytes | None = None,
    ) -> None:
        self.source = source
        self.sourceid = sourceid
        self.priority = priority
        self.progress = Progress(source.facts.filename.text, source.end)
        self.travelled = BlockSet()
        self.held_before: BlockSet | None = None
        self.held = BlockSet()
        self.reached = -1
        self.bytes_there = 0
        self.prefixes: dict[int, int] = {}
        self.committed: Committed | None = None
        self.undurable_max = BLOCK_LENGTH
        self._on_progress = on_progress
        self._digests = bytearray()
        self._digested = BlockSet()
        self._in_flight: dict[int, int] = {}
        self._tail: tuple[int, int] | None = None
        self._undurable = 0
        self._missing: Iterator[int] = iter(())
        self._ahead: int | None = None
        self._untouched_from = 0
        self._again: deque[int] = deque()
        self._tries: dict[int, int] = {}
        self._repairs = 0
        self.root = root
        self._first_block = source.first // BLOCK_LENGTH
        self._blocknum: int | None = None if source.end is None else blocknum_of(source.end)
        if source.end is not None and source.end <= source.first:
            self._blocknum = self._first_block
        self._send_streams: list[SendStream] = []
        self._replace: Replace | None = None
        self._carrying: trio.Nursery | None = None
        self._failed: BlockprotoError | None = None
        self._opened = trio.Event()
        self._differs = False
        self._news = trio.Event()

    # ---- the whole of it --------------------------------------------------------------------------------------

    async def run(
        self, send_streams: list[SendStream], replace: Replace | None = None, joins: Sequence[Join] = ()
    ) -> Committed:
        """Send what is missing over ``send_streams`` and commit; the streams were opened with OPEN, and answered.

        Args:
            send_streams: the streams; one that was replaced is taken out and the new one put in.
            replace: replaces one that was lost while others go on; None: any loss ends this.
            joins: make more streams, which are put in when they have joined; nobody waits for them.

        Raises:
            ConnectionLost: the connections ended; call again with new streams to go on.
            SourceChanged: the file changed meanwhile; the receiver was told nothing of it.
            OSError: the source could not be read.
            BlockprotoError: the receiver stopped it, and says why.

        Cancellation: streams are left as they are; end the connection or say CANCEL.
        """
        self._send_streams, self._replace = send_streams, replace
        self._begin_round(send_streams)
        reason: BlockprotoError | OSError | None = None
        try:
            async with trio.open_nursery() as joining:
                for join in joins:
                    joining.start_soon(self._add, join)
                while self.committed is None:
                    await self._send_missing()
                    if not self.source.unchanged():
                        raise SourceChanged(f"{self.progress.filename} changed while it was being sent")
                    await self._commit()
                joining.cancel_scope.cancel()
        except* (BlockprotoError, OSError) as group:
            reason = _decisive(group)
            if self._failed is not None and _weight(self._failed) >= _weight(reason):
                reason = self._failed  # else what was cancelled half-way tells of a lost connection
        if self.committed is None:
            assert reason is not None
            raise reason
        return self.check_committed(self.committed)

    def begin_again(self, send_streams: list[SendStream]) -> None:
        """Forget the streams before, and why they could not go on; ``send_streams`` is filled as they are opened."""
        self._send_streams = send_streams
        self._failed = self._ahead = None
        self._again.clear()

    def take_untouched(self) -> int | None:
        """A block to send before OPENED says what the receiver has, for it has nothing of this one (BP1-RES-012).

        None if that cannot be known: before the first OPENED, and while the size is unknown.
        """
        if self.reached < 0 or self._blocknum is None:
            return None
        missing = self.held.missing(self._blocknum)
        untouched = (no for no in missing if no >= self._untouched_from and no not in self.prefixes)
        self._ahead = next(untouched, None)
        return self._ahead

    def check_committed(self, committed: Committed) -> Committed:
        """``committed``, if it speaks of this file as far as that is known; raises as ``judge_committed``."""
        judge_committed(self.source.facts, self.root, committed)
        return committed

    def receiver_holds(self, held: BlockSet, prefixes: dict[int, int], position: int = 0) -> None:
        """What the receiver said it holds: runs, beginnings, and everything below a position (OPENED, or FETCH)."""
        self.held = held
        self._hold_up_to(position)
        self._clip_held()
        self.prefixes = prefixes
        self.bytes_there = len(self.held) * BLOCK_LENGTH + sum(prefixes.values())
        self.reached = max(self.reached, self.bytes_there)
        if self.held_before is None:
            self.held_before = held.copy()
        for blockno in self._in_flight:
            if blockno in held:
                self.source.durable(blockno)
        self._report()

    def _clip_held(self) -> None:
        """Believe the receiver only about blocks that there are."""
        self.held.discard(0, self._first_block)
        if self._blocknum is not None:
            self.held.discard(self._blocknum, _BLOCKNUM_MAX)

    def _begin_round(self, send_streams: Sequence[SendStream]) -> None:
        self._in_flight = {no: length for no, length in self._in_flight.items() if no == self._ahead}
        self._undurable = sum(self._in_flight.values())
        self._missing = self._blocks_missing()
        greetings = [send_stream.connection.session.peer_hello for send_stream in send_streams]
        self.undurable_max = min(hello.undurable_max if hello else BLOCK_LENGTH for hello in greetings)
        if self.source.window_bytes is not None:
            self.undurable_max = min(self.undurable_max, self.source.window_bytes)

    def _blocks_missing(self) -> Iterator[int]:
        if self._blocknum is None:
            return (blockno for blockno in count() if blockno not in self.held)
        missing, first, ahead = self.held.missing(self._blocknum), self._first_block, self._ahead
        return (blockno for blockno in missing if blockno >= first and blockno != ahead)

    async def _send_missing(self) -> None:
        async with trio.open_nursery() as nursery:
            self._carrying = nursery
            nursery.start_soon(self._digest_held)
            for send_stream in self._send_streams:
                nursery.start_soon(self._carry, send_stream)

    async def _add(self, join: Join) -> None:
        """Let one more stream carry blocks; where it cannot be had, there is one fewer."""
        try:
            send_stream = await join()
        except BlockprotoError:
            return  # what decides over the file is said on the streams that carry it, too
        self._send_streams.append(send_stream)
        if self._carrying is not None and self._carrying.child_tasks:
            self._carrying.start_soon(self._carry, send_stream)

    async def _carry(self, send_stream: SendStream) -> None:
        """Send blocks over ``send_stream``, and over what replaces it."""
        while True:
            try:
                await send_stream.send_blocks()
                return
            except ConnectionLost as exc:
                send_stream = await self._replaced(send_stream, exc)

    async def _replaced(self, lost: SendStream, error: BlockprotoError) -> SendStream:
        """A stream in the place of ``lost``, if others go on meanwhile; what of it did not arrive is missing again."""
        lost.lost = lost.lost or error
        if self._replace is None or all(send_stream.lost for send_stream in self._send_streams):
            raise error
        send_stream = await self._replace(lost)
        self._send_streams[self._send_streams.index(lost)] = send_stream
        if send_stream.joined is not None:
            self._hold_more(send_stream.joined.held, send_stream.joined.position)
            begun = dict(send_stream.joined.prefixes)
            for blockno in sorted(blockno for blockno in lost.carried if blockno not in self.held):
                self.prefixes[blockno] = begun.get(blockno, 0)
                self._again.append(blockno)
            self._tell()
        return send_stream

    async def _commit(self) -> None:
        """Say COMMIT; returns when it was answered, by COMMITTED or by DIGESTS_DIFFER and the repair after it."""
        if self.committed is not None:
            return  # on the COMMIT of the attempt before, while this one was still sending
        self._differs = False
        blocknum = self._blocknum
        assert blocknum is not None
        digests = (bytes(self._digests[at : at + DIGEST_LENGTH]) for at in self._digest_offsets(blocknum))
        root = self.root = root_of(digests, blocknum - self._first_block)
        message = Commit(self.sourceid, root, self._filesize(), blocknum_of(self._filesize()))
        said_on: SendStream | None = None
        while self.committed is None and not self._differs:
            lost = next(
                (send_stream for send_stream in self._send_streams if send_stream.lost is not None), None
            )
            if lost is not None and lost.lost is not None:
                await self._replaced(lost, lost.lost)
            elif said_on is not self._send_streams[0]:
                said_on = self._send_streams[0]
                said_on.connection.post(said_on.stream, message)
            elif self._again:
                await self._carry(said_on)
            else:
                await self._wait()
        if self._differs:
            await self._repair(self._send_streams[0], blocknum)

    async def _repair(self, send_stream: SendStream, blocknum: int) -> None:
        """Tell every digest; the answer says what is still held, the rest is missing again (BP1-DIG)."""
        self._repairs += 1
        if self._repairs > REPAIRS_MAX:
            raise DigestsDiffer(f"the roots differ after {REPAIRS_MAX} repairs: the file is changing")
        await self._digest_held()
        self._opened = trio.Event()
        most = min(HAVE_DIGESTS_MAX, digests_max(send_stream.connection.session.head_length_max))
        for first in range(self._first_block, max(blocknum, self._first_block + 1), most):
            page = range(first, min(first + most, blocknum))
            digests = tuple((blockno, self._digest(blockno)) for blockno in page)
            send_stream.connection.post(send_stream.stream, Have(digests, more=first + most < blocknum))
        while not self._opened.is_set():
            await self._wait()
        self._ahead = None
        self._missing = self._blocks_missing()

    def _filesize(self) -> int:
        size = self.source.facts.filesize if self.source.facts.filesize is not None else self.source.end
        assert size is not None
        return size

    # ---- digests ----------------------------------------------------------------------------------------------

    def remember_digest(self, blockno: int, digest: bytes) -> None:
        """The digest of a block that was read."""
        at = (blockno - self._first_block) * DIGEST_LENGTH
        if len(self._digests) < at + DIGEST_LENGTH:
            self._digests.extend(bytes(at + DIGEST_LENGTH - len(self._digests)))
        self._digests[at : at + DIGEST_LENGTH] = digest
        self._digested.add(blockno)

    def _digest(self, blockno: int) -> bytes:
        at = (blockno - self._first_block) * DIGEST_LENGTH
        return bytes(self._digests[at : at + DIGEST_LENGTH])

    def _digest_offsets(self, blocknum: int) -> range:
        return range(0, (blocknum - self._first_block) * DIGEST_LENGTH, DIGEST_LENGTH)

    async def _digest_held(self) -> None:
        """Read and hash the blocks that were here before and so are not sent."""
        todo = [
            blockno
            for blockno in self.held
            if blockno not in self._digested and blockno not in self._in_flight
        ]
        for at in range(0, len(todo), _HASH_BATCH_BLOCKS):
            batch = todo[at : at + _HASH_BATCH_BLOCKS]
            for blockno, digest in await run_in_thread(partial(self._hash_blocks, batch), Kind.HASH):
                self.remember_digest(blockno, digest)

    def _hash_blocks(self, blocknos: Sequence[int]) -> list[tuple[int, bytes]]:
        memory = memoryview(bytearray(BLOCK_LENGTH))
        digests = []
        for blockno in blocknos:
            position, length = block_span(blockno, self.source.first, self.source.end or 0)
            if self.source.read_into(position, memory[:length]) != length:
                raise SourceChanged(f"{self.progress.filename} is shorter than it was")
            digests.append((blockno, digest_of(memory[:length])))
        return digests

    # ---- what to send next ------------------------------------------------------------------------------------

    async def next_block(self, send_stream: SendStream) -> int | None:
        """The next block for a free stream; None when there is nothing left to send now.

        Raises:
            BlockprotoError: the transfer has failed, or the stream is lost.
        """
        while True:
            self.check_going_on()
            if self.committed is not None:
                return None
            if send_stream.lost is not None:
                raise send_stream.lost
            if self._again:
                return self._again.popleft()
            if self._undurable == 0 or self._undurable + BLOCK_LENGTH <= self.undurable_max:
                blockno = next(self._missing, None)
                if blockno is not None:
                    self._reserve(blockno, BLOCK_LENGTH)  # before it is read: other streams ask meanwhile
                return blockno
            await self._wait()

    def block_begins(self, blockno: int, length: int) -> None:
        """A stream sends this block now."""
        self._reserve(blockno, length)
        self._untouched_from = max(self._untouched_from, blockno + 1)
        self.travelled.add(blockno)
        if self.source.end is None and length < BLOCK_LENGTH:
            self._tail = (blockno, length)

    def _reserve(self, blockno: int, length: int) -> None:
        """Count ``length`` bytes of a block as sent and not durable."""
        self._undurable += length - self._in_flight.get(blockno, 0)
        self._in_flight[blockno] = length

    def ends_at(self, end: int) -> None:
        """A source of unknown size has come to its end."""
        self._undurable -= self._in_flight.pop(blocknum_of(end), 0)
        self.source.end = self.progress.filesize = end
        self._blocknum = blocknum_of(end)
        self._missing = iter(())

    def payload_sent(self, length: int) -> None:
        """``length`` bytes of content were put on the wire."""
        self.progress.payload_bytes_sent += length

    # ---- what the receiver says -------------------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """A message of the receiver on any stream."""
        if isinstance(message, Ack):
            self._on_ack(message)
        elif isinstance(message, Opened):
            self.receiver_holds(BlockSet(message.held), dict(message.prefixes), message.position)
            self._opened.set()
        elif isinstance(message, Committed):
            self.committed = message
        elif isinstance(message, Error):
            self._on_error(message)
        self._tell()

    def send_stream_ended(self, error: BlockprotoError) -> None:
        """A stream carries nothing more: if only its connection was lost and there are others, it can be replaced."""
        if isinstance(error, ConnectionLost) and not all(
            send_stream.lost for send_stream in self._send_streams
        ):
            self._tell()
        else:
            self.fail(error)

    def check_going_on(self) -> None:
        """Raise why the transfer has failed, if it has."""
        if self._failed is not None:
            raise self._failed

    def fail(self, error: BlockprotoError) -> None:
        """The transfer cannot go on over these streams, for this reason unless there is one that decides more."""
        if self._failed is None or _weight(error) > _weight(self._failed):
            self._failed = error
        self._tell()

    def _on_ack(self, message: Ack) -> None:
        self._hold_more(message.held, message.position)
        self.reached = max(self.reached, len(self.held) * BLOCK_LENGTH)
        self._report()

    def _hold_more(self, runs: Sequence[Run], position: int) -> None:
        """The receiver holds this too, for good (BP1-RES-018)."""
        for first, number in runs:
            self.held.add(first, number)
        self._hold_up_to(position)
        self._clip_held()
        for blockno in [blockno for blockno in self._in_flight if blockno in self.held]:
            self._undurable -= self._in_flight.pop(blockno)
            self.source.durable(blockno)
        for blockno in [blockno for blockno in self._again if blockno in self.held]:
            self._again.remove(blockno)  # it came on a stream that was lost, and waits for another in vain

    def _hold_up_to(self, position: int) -> None:
        """Every block that ends at ``position`` or before is durable, whether or not a run says so (BP1-RES-018)."""
        whole = position >= self.source.end if self.source.end is not None else False
        after = blocknum_of(position) if whole else position // BLOCK_LENGTH
        self.held.add(self._first_block, after - self._first_block)

    def _on_error(self, message: Error) -> None:
        error = error_of(message)
        if message.scope != Scope.BLOCK:
            self.fail(error)
        elif error.code == Code.DIGESTS_DIFFER:
            self._differs = True
        elif error.code == Code.DIGEST_MISMATCH:
            self._send_again(error.blockno, error)

    def _send_again(self, blockno: int | None, error: BlockprotoError) -> None:
        if blockno is None or blockno not in self._digested:
            what = "a block without a number" if blockno is None else f"block {blockno}, which was not sent,"
            wrong = DigestMismatch(f"the peer says that {what} arrived damaged", code=Code.BAD_FACTS)
            for send_stream in self._send_streams:
                send_stream.connection.refuse(send_stream.stream, wrong)
            self.fail(wrong)
            return
        self._tries[blockno] = self._tries.get(blockno, 0) + 1
        if self._tries[blockno] > AGAIN_MAX:
            self.fail(DigestMismatch(f"{error}: sent {AGAIN_MAX} times again", blockno=blockno))
            return
        self.prefixes.pop(blockno, None)
        self._again.append(blockno)

    async def _wait(self) -> None:
        self.check_going_on()
        await self._news.wait()
        self.check_going_on()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _report(self) -> None:
        if self._on_progress is None:
            return
        self.progress.position_bytes_done = self._bytes_held()
        self._on_progress(self.progress)

    def _bytes_held(self) -> int:
        """Bytes that are durable on the other side, in whole blocks; the last one may be short."""
        tail, end = self._tail, self.source.end
        if end is not None and end % BLOCK_LENGTH:
            tail = (end // BLOCK_LENGTH, end % BLOCK_LENGTH)
        lacking = BLOCK_LENGTH - tail[1] if tail is not None and tail[0] in self.held else 0
        return len(self.held) * BLOCK_LENGTH - lacking


def judge_committed(facts: Facts, root: bytes | None, committed: Committed) -> None:
    """Compare COMMITTED with what its sender knows of the file; ``root`` None: not known.

    Raises:
        SourceChanged: it is about other bytes (BP1-COM-008).
        UnexpectedMessage: it says that the file was left, which nobody had asked for (BP1-COM-025).
    """
    name = facts.filename.text
    if committed.left:
        if facts.if_exists < IfExists.SKIP:
            raise UnexpectedMessage(f"COMMITTED says that '{name}' was left, and it was not to be left")
        return  # it speaks of what is there
    if facts.filesize not in (None, committed.filesize) or root not in (None, committed.root):
        raise SourceChanged(f"{name} was committed before with other bytes")


def _decisive(group: BaseExceptionGroup[BlockprotoError | OSError]) -> BlockprotoError | OSError:
    """The error to tell: the one that decides most."""
    errors: list[BlockprotoError | OSError] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        elif isinstance(error, BlockprotoError | OSError):
            errors.append(error)
    return max(errors, key=_weight)


def _weight(error: BlockprotoError | OSError) -> int:
    """How much it decides: a connection that ended least, what forbids to come back most (BP1-RES-027)."""
    if isinstance(error, ConnectionLost | GoingAway):
        return 0
    return 1 if isinstance(error, BlockprotoError) and error.retryable else 2

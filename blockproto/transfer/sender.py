"""The sender: one file over one or several streams. Uploads and downloads use the same one.

``Sender`` runs a ``SendPlan``, which knows what the receiver holds, what is under way, and the digests. Each ``SendStream``
takes the next missing block when it is free, so a slow connection sends fewer. Blocks that the receiver held before are read
and hashed, not sent, because the root covers them too. More streams join when their connections are there. A stream that
cannot join is done without; one that is lost while others go on is replaced, and the OPENED of its successor tells which of
its blocks arrived.

    missing blocks → streams → COMMIT → COMMITTED
                        ↑ DIGESTS_DIFFER → HAVE → OPENED ┘

Spec: BP1-BLK, BP1-COM, BP1-DIG.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from ..common.blocks import (
    BLOCK_LENGTH,
    BlockSet,
    block_span,
    blocknum_of,
    digest_of,
)
from ..connection.connection import error_of
from ..errors import (
    BlockprotoError,
    Code,
    ConnectionLost,
    DigestMismatch,
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
from .send_plan import SendPlan, Wait
from .send_source import GrowingSource, OnProgress, Progress, Source
from .send_stream import SendStream
from .threads import Kind, run_in_thread

HAVE_DIGESTS_MAX = 1024
_HASH_BATCH_BLOCKS = 32


Join = Callable[[], Awaitable[SendStream]]
"""Makes one more stream, which has joined; raises BlockprotoError."""
Replace = Callable[[SendStream], Awaitable[SendStream]]
"""Makes a stream, which has joined, in place of a lost one; raises ConnectionLost."""


class Sender:
    """Sends one file.

    Args:
        source: its bytes.
        sourceid: 16 bytes.
        priority: of its blocks.
        on_progress: called when more of it is durable.
        root: of the file, if it is known before it is sent.
        growing: the source again, if it grows while it is sent.
        check_root: called with the root of what was read before COMMIT says it; raises what keeps it from being said.

    Attributes:
        plan: what is left to send, and what the receiver has; its ``reached`` tells whether trying again helps.
        progress: how far it is.
        committed: the receiver's answer to COMMIT, or None.
    """

    def __init__(
        self,
        source: Source,
        sourceid: bytes,
        *,
        priority: Priority = Priority.NORMAL,
        on_progress: OnProgress | None = None,
        root: bytes | None = None,
        growing: GrowingSource | None = None,
        check_root: Callable[[bytes], None] | None = None,
    ) -> None:
        self.source = source
        self.sourceid = sourceid
        self.priority = priority
        self.progress = Progress(source.facts.filename.text, source.end)
        self.plan = SendPlan(source.first, source.end, root)
        self.committed: Committed | None = None
        self._on_progress = on_progress
        self._growing = growing
        self._check_root = check_root
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
        """Send what is missing over ``send_streams``, whose OPEN was answered, and commit.

        Args:
            send_streams: the streams; a replaced one is taken out and the new one put in.
            replace: replaces a stream that is lost while others go on; None: any loss ends this.
            joins: make more streams, which are put in when they have joined, without waiting for them.

        Raises:
            ConnectionLost: the connections ended; call this again with new streams to go on.
            SourceChanged: the file changed meanwhile; the receiver was not told.
            OSError: the source could not be read.
            BlockprotoError: the receiver stopped it, and says why.

        Cancellation: the streams stay open; end the connection or send CANCEL.
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
                    if self._growing is not None:
                        await self._wait_until_complete(self._growing)
                    if not self.source.unchanged():
                        raise SourceChanged(f"{self.progress.filename} changed while it was being sent")
                    await self._commit()
                joining.cancel_scope.cancel()
        except* (BlockprotoError, OSError) as group:
            reason = _decisive(group, self._failed)
        if self.committed is None:
            assert reason is not None
            raise reason
        return self.check_committed(self.committed)

    def begin_again(self, send_streams: list[SendStream]) -> None:
        """Forget the previous streams and their error; ``send_streams``: a list to which new ones will be added."""
        self._send_streams = send_streams
        self._failed = None
        self.plan.begin_again()

    def check_committed(self, committed: Committed) -> Committed:
        """Return ``committed`` if it is about this file, as far as known; raises as ``judge_committed``."""
        judge_committed(self.source.facts, self.plan.root, committed)
        return committed

    def receiver_holds(self, held: BlockSet, prefixes: dict[int, int], position: int = 0) -> None:
        """The receiver said (OPENED, FETCH) what it holds: runs, prefixes, and everything below a position."""
        self._keeps(self.plan.receiver_holds(held, prefixes, position))
        self._report()

    def _keeps(self, blocknos: Sequence[int]) -> None:
        for blockno in blocknos:
            self.source.durable(blockno)

    def _begin_round(self, send_streams: Sequence[SendStream]) -> None:
        greetings = [send_stream.connection.session.peer_hello for send_stream in send_streams]
        undurable_max = min(hello.undurable_max if hello else BLOCK_LENGTH for hello in greetings)
        if self.source.window_bytes is not None:
            undurable_max = min(undurable_max, self.source.window_bytes)
        self.plan.begin_round(undurable_max)

    async def _send_missing(self) -> None:
        async with trio.open_nursery() as nursery:
            self._carrying = nursery
            nursery.start_soon(self._digest_held)
            for send_stream in self._send_streams:
                nursery.start_soon(self._carry, send_stream)

    async def _wait_until_complete(self, source: GrowingSource) -> None:
        while not source.complete:
            if self.plan.again:
                await self._carry(self._send_streams[0])
            else:
                await self._wait()
        await source.settle()

    async def _add(self, join: Join) -> None:
        """Let one more stream send blocks; do without it if it cannot join."""
        try:
            send_stream = await join()
        except BlockprotoError:
            return  # an error that concerns the file comes on the other streams, too
        self._send_streams.append(send_stream)
        if self._carrying is not None and self._carrying.child_tasks:
            self._carrying.start_soon(self._carry, send_stream)

    async def _carry(self, send_stream: SendStream) -> None:
        """Send blocks over ``send_stream``, or over its replacement if it is lost."""
        while True:
            try:
                await send_stream.send_blocks()
                return
            except ConnectionLost as exc:
                send_stream = await self._replaced(send_stream, exc)

    async def _replaced(self, lost: SendStream, error: BlockprotoError) -> SendStream:
        """Replace ``lost`` if others go on; blocks of it that did not arrive are missing again. Raises ``error`` if not."""
        lost.lost = lost.lost or error
        if self._replace is None or all(send_stream.lost for send_stream in self._send_streams):
            raise error
        send_stream = await self._replace(lost)
        self._send_streams[self._send_streams.index(lost)] = send_stream
        joined = send_stream.joined
        if joined is not None:
            self._keeps(self.plan.acknowledged(joined.held, joined.position))
            self.plan.lost(lost.carried, dict(joined.prefixes))
            self.tell()
        return send_stream

    async def _commit(self) -> None:
        """Send COMMIT; return after COMMITTED, or after DIGESTS_DIFFER and the repair that follows."""
        if self.committed is not None:
            return  # for the COMMIT of the previous attempt
        self._differs = False
        root = self.plan.compute_root()
        if self._check_root is not None:
            self._check_root(root)
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
            elif self.plan.again:
                await self._carry(said_on)
            else:
                await self._wait()
        if self._differs:
            await self._repair(self._send_streams[0])

    async def _repair(self, send_stream: SendStream) -> None:
        """Send all digests; the answer says what is still held, the rest is missing again (BP1-DIG)."""
        self.plan.repair_begins()
        await self._digest_held()
        self._opened = trio.Event()
        most = min(HAVE_DIGESTS_MAX, digests_max(send_stream.connection.session.head_length_max))
        for digests, more in self.plan.have_pages(most):
            send_stream.connection.post(send_stream.stream, Have(digests, more=more))
        while not self._opened.is_set():
            await self._wait()
        self.plan.repair_ends()

    def _filesize(self) -> int:
        size = self.source.facts.filesize if self.source.facts.filesize is not None else self.source.end
        assert size is not None
        return size

    async def _digest_held(self) -> None:
        """Read and hash the blocks that the receiver held before, which are not sent."""
        todo = self.plan.undigested()
        if self._growing is not None:
            for blockno in todo:  # one by one, because the source may be completed meanwhile
                self.plan.remember_digest(blockno, await self._growing.digest(blockno))
            return
        for at in range(0, len(todo), _HASH_BATCH_BLOCKS):
            batch = todo[at : at + _HASH_BATCH_BLOCKS]
            for blockno, digest in await run_in_thread(partial(self._hash_blocks, batch), Kind.HASH):
                self.plan.remember_digest(blockno, digest)

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
        """See SendOwner."""
        while True:
            self.check_going_on()
            if self.committed is not None:
                return None
            if send_stream.lost is not None:
                raise send_stream.lost
            blockno = self.plan.next() if self._growing is None else self.plan.next(self._growing.ready)
            if not isinstance(blockno, Wait):
                return blockno
            await self._wait()

    def ends_at(self, end: int) -> None:
        """See SendOwner."""
        self.source.end = self.progress.filesize = end
        self.plan.ends_at(end)

    def payload_sent(self, length: int) -> None:
        """See SendOwner."""
        self.progress.payload_bytes_sent += length

    # ---- what the receiver says -------------------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """See SendOwner."""
        if isinstance(message, Ack):
            self._on_ack(message)
        elif isinstance(message, Opened):
            self.receiver_holds(BlockSet(message.held), dict(message.prefixes), message.position)
            self._opened.set()
        elif isinstance(message, Committed):
            self.committed = message
        elif isinstance(message, Error):
            self._on_error(message)
        self.tell()

    def send_stream_ended(self, error: BlockprotoError) -> None:
        """See SendOwner. If only its connection was lost and there are other streams, it can be replaced."""
        if isinstance(error, ConnectionLost) and not all(
            send_stream.lost for send_stream in self._send_streams
        ):
            self.tell()
        else:
            self.fail(error)

    def check_going_on(self) -> None:
        """See SendOwner."""
        if self._failed is not None:
            raise self._failed

    def fail(self, error: BlockprotoError) -> None:
        """The transfer cannot go on over these streams; the error that decides most is kept."""
        if self._failed is None or _weight(error) > _weight(self._failed):
            self._failed = error
        self.tell()

    def _on_ack(self, message: Ack) -> None:
        self._keeps(self.plan.acknowledged(message.held, message.position))
        self._report()

    def _on_error(self, message: Error) -> None:
        error = error_of(message)
        if message.scope != Scope.BLOCK:
            self.fail(error)
        elif error.code == Code.DIGESTS_DIFFER:
            self._differs = True
        elif error.code == Code.DIGEST_MISMATCH:
            self._send_again(error)

    def _send_again(self, error: BlockprotoError) -> None:
        """Resend a block that arrived damaged; refuse the peer's claim if it was never sent."""
        try:
            self.plan.damaged(error.blockno, str(error))
        except DigestMismatch as wrong:
            if wrong.code == Code.BAD_FACTS:
                for send_stream in self._send_streams:
                    send_stream.connection.refuse(send_stream.stream, wrong)
            self.fail(wrong)

    async def _wait(self) -> None:
        self.check_going_on()
        await self._news.wait()
        self.check_going_on()

    def tell(self) -> None:
        """Wake the tasks that wait for a change."""
        self._news.set()
        self._news = trio.Event()

    def _report(self) -> None:
        if self._on_progress is None:
            return
        self.progress.position_bytes_done = self.plan.bytes_held()
        self._on_progress(self.progress)


def judge_committed(facts: Facts, root: bytes | None, committed: Committed) -> None:
    """Compare COMMITTED with what its sender knows of the file; ``root`` None: unknown.

    Raises:
        SourceChanged: it is about other bytes (BP1-COM-008).
        UnexpectedMessage: it says LEFT although that was not asked for (BP1-COM-025).
    """
    name = facts.filename.text
    if committed.left:
        if facts.if_exists < IfExists.SKIP:
            raise UnexpectedMessage(f"COMMITTED says that '{name}' was left, and it was not to be left")
        return  # root and size are those of another file
    if facts.filesize not in (None, committed.filesize) or root not in (None, committed.root):
        raise SourceChanged(f"{name} was committed before with other bytes")


def _decisive(
    group: BaseExceptionGroup[BlockprotoError | OSError], failed: BlockprotoError | None
) -> BlockprotoError | OSError:
    """The error to raise: the receiver's or the connection's, unless the connection only ended because of our source."""
    errors: list[BlockprotoError | OSError] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        elif isinstance(error, BlockprotoError | OSError):
            errors.append(error)
    ours = [error for error in errors if isinstance(error, SourceChanged | OSError)]
    if failed is not None and (not ours or _weight(failed)):
        return failed
    return max(ours or errors, key=_weight)


def _weight(error: BlockprotoError | OSError) -> int:
    """How much an error decides: the end of a connection least, an error that is not retryable most (BP1-RES-027)."""
    if isinstance(error, ConnectionLost | GoingAway):
        return 0
    return 1 if isinstance(error, BlockprotoError) and error.retryable else 2

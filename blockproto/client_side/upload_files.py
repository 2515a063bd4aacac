"""Many small files going up in frames: one stream, a frame prepared while another is on its way, outcomes as they come.

    files → FramePacker (worker thread) → FILES … → STORED → an outcome for each file
                                               └ damaged on the way → in a later frame, five times at most

A frame that a lost connection left unanswered has not gone: its files are given back with ConnectionLost, and the same
sourceids again store nothing twice.

Spec: BP1-FIL.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import trio

from ..common.tasks import background_tasks
from ..connection.connection import Connection, Opening, error_of
from ..errors import BlockprotoError, DigestMismatch, GoingAway, UnexpectedMessage, error_from_code
from ..transfer.sender import judge_committed
from ..transfer.threads import Kind, run_in_thread
from ..wire import (
    FRAMES_MAX,
    ZERO_ID,
    Committed,
    Error,
    Files,
    Message,
    OutcomeItem,
    Priority,
    RefusalItem,
    Status,
    Stored,
)
from .context import FRAME_STREAMS_MAX
from .file_frames import Frame, FramePacker
from .upload_decision import Prepared

SENT_AGAIN_MAX = 5
"""How often a file that arrives damaged is sent again (BP1-ERR-006)."""

FRAME_LENGTH_MAX = 1 << 20
"""Bytes of payload in one frame at most."""

FRAMES_EACH = FRAMES_MAX // FRAME_STREAMS_MAX
"""Frames of one stream that are not answered at most: as many as a server stores at once."""

Ended = Callable[[Prepared, Committed | BlockprotoError | OSError, float], None]
"""Called once for each file: what became of it, and the ``perf_counter`` (s) when its frame went, 0 if it did not."""

StoredAll = Callable[[Sequence[Prepared], Sequence[bytes], float], None]
"""Called instead for many files that were stored as they were sent: with their digests, and when their frame went."""


@dataclass(slots=True)
class _Sent:
    """A frame that is not answered in full.

    Attributes:
        frame: the frame.
        length: bytes of its payload.
        begun: when it went.
        answered: how many of its files were.
    """

    frame: Frame
    length: int
    begun: float
    answered: int = 0


class FilesSendStream:
    """The stream that carries frames.

    Args:
        ended: hears what becomes of each file.
        stored: hears it instead of ``ended`` where many files were stored as they were sent.
        damaged: how often each file has arrived damaged; added to.

    Attributes:
        error: why the stream carries nothing more, or None.
        again: files that arrived damaged and are to be sent again.
        over: set when nothing is waited for any more.
    """

    waits = False

    def __init__(self, ended: Ended, stored: StoredAll, damaged: Counter[Prepared]) -> None:
        self.error: BlockprotoError | None = None
        self.again: list[Prepared] = []
        self.over = trio.Event()
        self._ended = ended
        self._stored_all = stored
        self._sent: dict[int, _Sent] = {}
        self._damaged = damaged
        self._changed = trio.Event()

    # ---- what the connection tells

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Stored):
            self._stored(message)
        elif isinstance(message, Error):
            self.ended(error_of(message))

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("a receiver sends no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler: what was not answered hears why."""
        self.error = self.error or error
        sent, self._sent = self._sent, {}
        again, self.again = self.again, []
        for one in sent.values():
            for prepared in one.frame.ones[one.answered :]:
                self._ended(prepared, error, one.begun)
        for prepared in again:
            self._ended(prepared, error, 0.0)
        self._note_change()
        self.over.set()

    # ---- what the sender asks

    @property
    def unanswered(self) -> int:
        """Frames that are on their way or being stored."""
        return len(self._sent)

    @property
    def bytes_unanswered(self) -> int:
        """The payload of those."""
        return sum(one.length for one in self._sent.values())

    def goes(self, number: int, frame: Frame) -> None:
        """A frame goes out now."""
        if frame.ones:
            self._sent[number] = _Sent(frame, len(frame.payload), time.perf_counter())

    def fail(self, one: Prepared, error: OSError | BlockprotoError) -> None:
        """A file does not go."""
        self._ended(one, error, 0.0)

    async def change(self) -> None:
        """Wait until something was answered, or the stream has ended."""
        await self._changed.wait()

    # ---- answers

    def _stored(self, message: Stored) -> None:
        """Tell of the files of a frame; the session has seen to it that there are as many."""
        sent = self._sent.get(message.number)
        items = iter(message.outcomes)
        if sent is not None:
            first = sent.answered
            sent.answered += len(message.statuses)
            if sent.answered == len(sent.frame.ones):
                del self._sent[message.number]
            if any(message.statuses):
                for at, status in enumerate(message.statuses, first):
                    self._end_one(sent, at, Status(status), next(items) if status else None)
            else:
                frame, end = sent.frame, sent.answered
                self._stored_all(frame.ones[first:end], frame.roots[first:end], sent.begun)
        if message.last:
            self.over.set()
        self._note_change()

    def _end_one(self, sent: _Sent, at: int, status: Status, item: OutcomeItem | None) -> None:
        one, root = sent.frame.ones[at], sent.frame.roots[at]
        outcome = outcome_of(one, root, status, item)
        if isinstance(outcome, DigestMismatch):
            self._damaged[one] += 1
            if self._damaged[one] < SENT_AGAIN_MAX:
                self.again.append(one)
                return
        self._ended(one, outcome, sent.begun)

    def _note_change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def outcome_of(
    one: Prepared, root: bytes, status: Status, item: OutcomeItem | None
) -> Committed | BlockprotoError:
    """What became of a file, as COMMITTED or ERROR would have said it."""
    if isinstance(item, RefusalItem):
        return error_from_code(
            item.code,
            item.text,
            retryable=item.retryable,
            retry_after_ms=item.retry_after_ms,
            current=item.current,
        )
    if item is None:
        return Committed(one.sourceid, ZERO_ID, root, one.facts.filesize or 0, one.facts.filename.text)
    committed = Committed(
        one.sourceid,
        item.file_id,
        item.root,
        item.filesize,
        item.stored_as,
        item.b3sum,
        status is Status.LEFT,
        status is Status.THERE,
    )
    try:
        judge_committed(one.facts, None if one.is_folder else root, committed)
    except BlockprotoError as exc:
        return exc
    return committed


async def send_files(
    connection: Connection,
    ones: Sequence[Prepared],
    ended: Ended,
    stored: StoredAll,
    priority: Priority,
    all_said: trio.Event,
) -> None:
    """Send small files and folders in frames; returns when all have ended.

    Args:
        connection: one on which both sides know FILES.
        ones: what to send, of at most ``FRAME_LENGTH_MAX`` bytes each.
        ended: hears, once, what becomes of each; ConnectionLost and GoingAway of those that have not gone.
        stored: hears it instead of ``ended`` where many files were stored as they were sent.
        priority: of the streams.
        all_said: set when the last frame is on its way; not necessarily where the connection ends before that.

    Cancellation: what is under way may still be stored; ``ended`` is not called for it.
    """
    damaged: Counter[Prepared] = Counter()
    while ones:
        stream = FilesSendStream(ended, stored, damaged)
        await _FrameSender(connection, stream, priority).send(ones, all_said)
        ones = stream.again


class _FrameSender:
    """Sends files over one stream, frame by frame, and waits until all are answered.

    Args:
        connection: where.
        stream: what hears the answers.
        priority: of the stream.
    """

    def __init__(self, connection: Connection, stream: FilesSendStream, priority: Priority) -> None:
        self._connection = connection
        self._stream = stream
        self._priority = priority
        self._number: int | None = None
        self._frames = 0

    async def send(self, ones: Sequence[Prepared], all_said: trio.Event) -> None:
        """Send all, set ``all_said``, then wait for the answers. What has not gone when the stream ended hears why."""
        left: list[Prepared] = []
        gone = 0
        try:
            async with background_tasks() as nursery:
                give, take = trio.open_memory_channel[Frame](0)
                nursery.start_soon(self._pack_all, ones, give)
                async with take:
                    async for frame in take:
                        gone += frame.taken
                        for one, error in frame.failed:
                            self._stream.fail(one, error)
                        if not await self._may_go():
                            left = frame.ones
                            break
                        await self._say(frame, last=gone == len(ones))
            if self._number is not None:
                if left or gone < len(ones):
                    await self._say(NOTHING, last=True)
                all_said.set()
                await self._stream.over.wait()
        except BlockprotoError as exc:
            self._stream.ended(exc)
        error = self._stream.error or GoingAway()
        for one in (*left, *ones[gone:]):
            self._stream.fail(one, error)

    async def _pack_all(self, ones: Sequence[Prepared], give: trio.MemorySendChannel[Frame]) -> None:
        """Pack one frame after another; while one is on its way the next is made."""
        at = 0
        packer = FramePacker(FRAME_LENGTH_MAX, self._connection.session.head_length_max)
        with suppress(trio.BrokenResourceError):
            async with give:
                while at < len(ones):
                    length = max(self._connection.piece_length(), ones[at].facts.filesize or 0)
                    pack = partial(packer.pack, ones, at, min(length, FRAME_LENGTH_MAX))
                    frame = await run_in_thread(pack, Kind.READ)
                    at += frame.taken
                    await give.send(frame)

    async def _may_go(self) -> bool:
        """Wait until one more frame may be unanswered (BP1-FIL-010); False: no more goes on this stream (BP1-FIL-016)."""
        hello, stream = self._connection.session.peer_hello, self._stream
        assert hello is not None  # else nobody knows that it knows FILES
        while stream.unanswered and (
            stream.unanswered >= FRAMES_EACH or stream.bytes_unanswered >= hello.undurable_max
        ):
            await stream.change()
        return stream.error is None and self._connection.going_away is None

    async def _say(self, frame: Frame, *, last: bool) -> None:
        """Say FILES; one without files only where it ends a stream that was begun."""
        if not frame.ones and not (last and self._number is not None):
            return
        message = replace(frame.message, number=self._frames, last=last)
        self._stream.goes(self._frames, frame)
        self._frames += 1
        if self._number is None:
            opening = Opening(self._stream, message, frame.payload)
            (self._number,) = await self._connection.send_openings([opening], self._priority)
        else:
            await self._connection.send(self._number, message, frame.payload, self._priority)
        frame.payload = memoryview(b"")  # the packer's memory, two megabytes, need not wait for the answers


NOTHING = Frame(Files(0, last=True), memoryview(b""))
"""The frame that says that nothing more comes."""

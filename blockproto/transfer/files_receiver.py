"""The receiver of many small files: frames of whole files come, and each is answered when its files are stored.

    Files → (Payload)* → judged → committer, one work a frame → durable and visible → Stored
    Files with LAST, and every frame answered → Stored with LAST

The bytes of a frame are in memory until it is answered, or until the store has them all. A frame begins only when
``FrameMemory`` has granted it; until then it waits in the backlog of its stream, and keeps its credit.

Spec: BP1-FIL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..common.addresses import neighbourhood
from ..connection.connection import Connection, error_of
from ..connection.stream_handler import NotYet
from ..errors import BlockprotoError, Cancelled
from ..store import FileOutcome, StoredFile, WholeFile
from ..wire import (
    ZERO_ID,
    Cancel,
    Error,
    Files,
    Message,
    OutcomeItem,
    RefusalItem,
    Status,
    Stored,
    StoredItem,
    stored_pages,
)
from .file_frame import Judged, judge_frame
from .file_service import FileWriter


@dataclass(slots=True, eq=False)
class _Frame:
    """A frame of files that was not answered yet.

    Attributes:
        message: its head.
        content: its payload, as far as it has come: a head alone takes no memory.
        length: of the payload, in bytes; so much is counted in ``FrameMemory``.
        held: whether it is still counted there.
    """

    message: Files
    content: bytearray
    length: int
    held: bool = True


class FilesReceiver:
    """A stream that brings frames of whole small files.

    Args:
        connection, stream: where it is.
        writer: what its sender may do.
    """

    def __init__(self, connection: Connection, stream: int, writer: FileWriter) -> None:
        self._connection = connection
        self._stream = stream
        self._writer = writer
        self._memory = writer.frame_memory
        principal = writer.realm.principal
        self._whose = neighbourhood(connection.endpoint.host) if principal == ZERO_ID else principal
        self._granted: int | None = None  # bytes of the frame that comes next, once it may come
        self._coming: _Frame | None = None
        self._under_way = 0
        self._storing: dict[_Frame, Sequence[WholeFile]] = {}
        self._last = False
        self._cancelled = False
        self._ended = False

    @property
    def waits(self) -> bool:
        """See connection.StreamHandler: a quota is looked up in the store."""
        return self._writer.has_quota

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Files):
            await self._begin(message, payload_length)
        elif isinstance(message, Cancel):
            self._cancel()
        elif isinstance(message, Error):
            self.ended(error_of(message))

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        frame = self._coming
        if frame is None:
            return
        frame.content += view
        if last:
            await self._came(frame)

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler. The frames that have come whole are stored all the same."""
        self._ended = True
        frame, self._coming = self._coming, None
        if frame is not None:
            self._let_go(frame)
        self._memory.leave(self._whose, self._on_room)
        granted, self._granted = self._granted, None
        if granted is not None:
            self._memory.give(self._whose, granted)

    def _on_room(self, length: int) -> None:
        self._granted = length
        self._connection.resume(self._stream)

    async def _begin(self, message: Files, payload_length: int) -> None:
        if self._granted is None and not self._memory.take(self._whose, payload_length, self._on_room):
            raise NotYet
        self._granted = None
        self._under_way += 1
        self._last = message.last
        frame = self._coming = _Frame(message, bytearray(), payload_length)
        if not payload_length:
            await self._came(frame)

    async def _came(self, frame: _Frame) -> None:
        """All of a frame has come."""
        self._coming = None
        judged = judge_frame(frame.message, memoryview(frame.content), self._writer.realm)
        files = [one for one in judged if isinstance(one, WholeFile)]

        def stored(outcomes: Sequence[FileOutcome]) -> None:
            self._on_stored(frame, judged, outcomes)

        self._storing[frame] = files
        try:
            await self._writer.store_files(files, stored, lambda: self._give_back(frame))
        except BaseException:
            self._let_go(frame)
            raise

    def _cancel(self) -> None:
        """Take back what only waits for hooks; the rest is stored, and all is answered (BP1-FIL-012, BP1-COM-030)."""
        self._cancelled = True
        for files in tuple(self._storing.values()):
            for file in files:
                self._writer.withdraw_file(file)
        self._end_if_cancelled()

    def _let_go(self, frame: _Frame) -> None:
        self._under_way -= 1
        self._storing.pop(frame, None)
        self._give_back(frame)

    def _give_back(self, frame: _Frame) -> None:
        """Hold the bytes of a frame no more. Harmless when repeated."""
        if frame.held:
            frame.held = False
            frame.content = bytearray()
            self._memory.give(self._whose, frame.length)

    def _on_stored(self, frame: _Frame, judged: Sequence[Judged], outcomes: Sequence[FileOutcome]) -> None:
        self._let_go(frame)
        if self._ended:
            return
        try:
            self._answer(frame.message.number, judged, iter(outcomes))
        except Exception as exc:  # of this stream, not of the store whose work was done (BP1-ERR-010)
            self.ended(self._connection.broke(self._stream, exc))

    def _answer(self, number: int, judged: Sequence[Judged], outcomes: Iterator[FileOutcome]) -> None:
        """Say what became of a frame, in as many STORED as that takes; the last one of all ends the stream."""
        statuses = bytearray()
        items: list[OutcomeItem] = []
        for one in judged:
            status, item = status_of(one, next(outcomes) if isinstance(one, WholeFile) else one, self._writer)
            statuses.append(status)
            if item is not None:
                items.append(item)
        last = self._last and not self._under_way
        stored = Stored(number, bytes(statuses), tuple(items), last)
        if judged or last:
            for page in stored_pages(stored, self._connection.session.head_length_max):
                self._connection.post(self._stream, page)
        if last:
            self._connection.forget(self._stream)
        else:
            self._end_if_cancelled()

    def _end_if_cancelled(self) -> None:
        """Answer CANCEL once every frame before it is answered; behind LAST it came too late (BP1-FIL-012)."""
        if self._cancelled and not self._under_way and not self._last:
            self._connection.refuse(self._stream, Cancelled("cancelled by the sender"))


def status_of(judged: Judged, outcome: FileOutcome, writer: FileWriter) -> tuple[Status, OutcomeItem | None]:
    """The status that says what became of a file, and its item: what COMMITTED or ERROR would have said of it."""
    if isinstance(outcome, StoredFile):
        if outcome.left:
            status = Status.LEFT
        elif outcome.there:
            status = Status.THERE
        elif isinstance(judged, WholeFile) and outcome.stored_as == judged.facts.filename.text:
            return Status.STORED, None
        else:
            status = Status.RENAMED
        shown = writer.shown(outcome.stored_as)
        return status, StoredItem(outcome.file_id, outcome.root, outcome.filesize, shown, outcome.b3sum)
    return Status.REFUSED, RefusalItem(
        outcome.code, outcome.retryable, str(outcome), outcome.retry_after_ms, outcome.current
    )

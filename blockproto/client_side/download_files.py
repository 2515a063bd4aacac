"""Many small files coming down in frames: one stream asks for up to 256 of them, frames bring them, each is answered.

    small files → FILES with WANTED → FILES … → digests compared → committer → Stored, an outcome for each file
                                     └ left out: the server does not send it this way

The bytes of a frame are in memory until the store has them; while a run holds ``HELD_MAX`` of them, the next frame waits in
the backlog of its stream and keeps its credit.

Spec: BP1-FIL-017 to 022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..common.blocks import EMPTY_DIGEST, digest_of
from ..common.file_table import FILES_MAX, HEAD_SPARE, TableBuilder
from ..connection.connection import Connection, error_of
from ..connection.stream_handler import NotYet
from ..errors import BadFacts, BlockprotoError, Cancelled, DigestMismatch
from ..store import BlockDone, Finish, Outcome, StoredFile
from ..transfer.committer import Committer
from ..wire import Error, Files, Message, OutcomeItem, RefusalItem, Status, Stored, stored_pages
from .brief_download import OTHER_SIDE, SmallDownload

HELD_MAX = 8 << 20
"""Bytes of frames that a run holds before the next one has to wait."""

Done = Callable[[SmallDownload, "StoredFile | BlockprotoError | None"], None]
"""Called once for each file: what became of it; None: the server left it out."""


class HeldFrames:
    """What a run of downloads holds of frames."""

    def __init__(self) -> None:
        self._held = 0
        self._waiting: list[Callable[[], None]] = []

    def take(self, length: int, resume: Callable[[], None]) -> bool:
        """Count a frame of ``length`` bytes; False if it has to wait until ``resume`` is called."""
        if self._held >= HELD_MAX:
            self._waiting.append(resume)
            return False
        self._held += length
        return True

    def give(self, length: int) -> None:
        """A frame of ``length`` bytes is held no more."""
        self._held -= length
        waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume()


@dataclass(slots=True, eq=False)
class _Frame:
    """A frame that is not answered.

    Attributes:
        number, length: its number, and the bytes of its payload.
        files: which of the files it brings, with their digests.
        content: its payload, as far as it has come.
        statuses, items: what became of its files so far; a refusal for each file that is not here.
        open: how many of its files have no outcome.
    """

    number: int
    length: int
    files: list[tuple[SmallDownload, bytes]]
    content: bytearray = field(default_factory=bytearray)
    statuses: bytearray = field(default_factory=bytearray)
    items: dict[int, OutcomeItem] = field(default_factory=dict)
    open: int = 0


class FilesFetch:
    """A stream that asks for small files and takes them as they come.

    Args:
        connection: one on which both sides know FILES with WANTED.
        smalls: what to ask for, at most 256; see ``fitting``.
        committer: where complete files go.
        held: what the run holds of frames.
        done: hears what becomes of each file; its upload is the caller's to close then.
        over: called when the stream has ended.
    """

    waits = False

    def __init__(
        self,
        connection: Connection,
        smalls: Sequence[SmallDownload],
        committer: Committer,
        held: HeldFrames,
        done: Done,
        over: Callable[[FilesFetch], None],
    ) -> None:
        self.stream = 0
        self._connection = connection
        self._smalls = list(smalls)
        self._committer = committer
        self._held = held
        self._done = done
        self._over = over
        self._next = 0
        self._coming: _Frame | None = None
        self._storing: set[_Frame] = set()
        self._last = False
        self._ended = False

    def begin(self) -> None:
        """Open the stream and ask; raises what ``Connection.open`` raises."""
        self.stream = self._connection.open(self)
        self._connection.post(self.stream, _asking_for(self._smalls))

    def stop(self, error: BlockprotoError) -> None:
        """Tell the peer that nothing more is wanted. What has come whole is stored all the same."""
        if not self._ended:
            if self.stream:
                self._connection.refuse(self.stream, error)
            self.ended(error)

    def close(self) -> None:
        """Let go of every file; only once nothing of the stream is being made durable."""
        for small in self._smalls:
            small.upload.close()

    # ---- what the connection tells

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Files):
            self._begin(message, payload_length)
        elif isinstance(message, Error):
            self.ended(error_of(message))

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        frame = self._coming
        if frame is not None:
            frame.content += view
            if last:
                self._came(frame)

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler: what has not come hears why; what is being made durable is awaited."""
        if self._ended:
            return
        self._ended = True
        frame, self._coming = self._coming, None
        if frame is not None:
            self._held.give(frame.length)
            for small, _ in frame.files:
                self._done(small, error)
        self._leave_out(len(self._smalls), error)
        self._over(self)

    # ---- frames

    def _begin(self, message: Files, payload_length: int) -> None:
        if not self._held.take(payload_length, lambda: self._connection.resume(self.stream)):
            raise NotYet
        try:
            files = self._find(message)
        except BlockprotoError:
            self._held.give(payload_length)
            raise
        self._last = message.last
        frame = self._coming = _Frame(message.number, payload_length, files)
        if not payload_length:
            self._came(frame)

    def _find(self, message: Files) -> list[tuple[SmallDownload, bytes]]:
        """The files of a frame; those that were passed over are left out (BP1-FIL-019, BP1-FIL-020)."""
        found: list[tuple[SmallDownload, bytes]] = []
        at, smalls = self._next, self._smalls
        for record, name in zip(message.table.records, message.table.names, strict=True):
            folder = message.folders[record[5]]
            filename = f"{folder}/{name}" if folder else name
            while at < len(smalls) and smalls[at].job.entry.filename != filename:
                at += 1
            if at == len(smalls):
                raise BadFacts(f"FILES brings a file that was not asked for, or not there: {filename}")
            small = smalls[at]
            if record[0] != small.version or record[2] != small.job.entry.filesize:
                raise BadFacts(f"FILES brings another version of {filename} than was asked for")
            found.append((small, record[1]))
            at += 1
        came = {id(small) for small, _ in found}
        left_out = [small for small in smalls[self._next : at] if id(small) not in came]
        self._next = at
        for small in left_out:
            self._done(small, None)
        return found

    def _leave_out(self, end: int, why: BlockprotoError | None) -> None:
        rest, self._next = self._smalls[self._next : end], end
        for small in rest:
            self._done(small, why)

    def _came(self, frame: _Frame) -> None:
        """All of a frame has come."""
        self._coming = None
        self._storing.add(frame)
        frame.statuses = bytearray(len(frame.files))
        frame.open = len(frame.files)
        at, content = 0, memoryview(frame.content)
        for index, (small, digest) in enumerate(frame.files):
            view = content[at : at + (small.job.entry.filesize or 0)]
            at += len(view)
            self._store(frame, index, small, digest, view)
        if self._last:
            self._leave_out(len(self._smalls), None)
        self._answer_if_stored(frame)

    def _store(
        self, frame: _Frame, index: int, small: SmallDownload, digest: bytes, view: memoryview
    ) -> None:
        """Give a file to the committer, if it is whole."""
        if digest != (digest_of(view) if view else EMPTY_DIGEST):
            self._end_one(frame, index, small, DigestMismatch("the file did not arrive whole", blockno=0))
            return
        upload, length = small.upload, len(view)
        try:
            if length:
                upload.write(0, view)
            blocks = (BlockDone(upload, 0, 0, length, digest),) if length else ()
            finish = Finish(upload, 0, digest, length, upload.facts, blocks, False)
            self._committer.submit(
                finish,
                lambda outcome: self._on_finished(frame, index, small, outcome),
                principal=OTHER_SIDE,
                small=True,
            )
        except BlockprotoError as exc:
            self._end_one(frame, index, small, exc)

    def _on_finished(self, frame: _Frame, index: int, small: SmallDownload, outcome: Outcome) -> None:
        assert isinstance(outcome, StoredFile | BlockprotoError)
        self._end_one(frame, index, small, outcome)
        self._answer_if_stored(frame)

    def _end_one(
        self, frame: _Frame, index: int, small: SmallDownload, outcome: StoredFile | BlockprotoError
    ) -> None:
        frame.open -= 1
        if isinstance(outcome, BlockprotoError):
            frame.statuses[index] = Status.REFUSED
            frame.items[index] = RefusalItem(outcome.code, outcome.retryable, "")
        self._done(small, outcome)

    def _answer_if_stored(self, frame: _Frame) -> None:
        """Answer a frame once all its files have their outcomes; the last answer of all ends the stream."""
        if frame.open or frame not in self._storing:
            return
        self._storing.discard(frame)
        frame.content = bytearray()
        self._held.give(frame.length)
        if self._ended:
            return
        last = self._last and not self._storing and self._coming is None
        items = tuple(frame.items[index] for index in sorted(frame.items))
        stored = Stored(frame.number, bytes(frame.statuses), items, last)
        if frame.files or last:
            for page in stored_pages(stored, self._connection.session.head_length_max):
                self._connection.post(self.stream, page)
        if last:
            self._connection.forget(self.stream)
            self.ended(Cancelled("all files of the stream have come"))


def fitting(smalls: Sequence[SmallDownload], head_length_max: int) -> int:
    """How many of ``smalls``, from the first on, one FILES with WANTED can ask for: at least one."""
    table = TableBuilder(head_length_max - HEAD_SPARE)
    for at, small in enumerate(smalls[:FILES_MAX]):
        folder, _, name = small.job.entry.filename.rpartition("/")
        if not table.has_room(folder, name, ""):
            return at
        _add(table, small, folder, name)
    return min(len(smalls), FILES_MAX)


def _asking_for(smalls: Sequence[SmallDownload]) -> Files:
    table = TableBuilder(0)
    for small in smalls:
        folder, _, name = small.job.entry.filename.rpartition("/")
        _add(table, small, folder, name)
    return Files(0, *table.parts, last=True, wanted=True)


def _add(table: TableBuilder, small: SmallDownload, folder: str, name: str) -> None:
    filesize = small.job.entry.filesize or 0
    table.add(small.version, bytes(32), filesize, None, None, folder, "", name)

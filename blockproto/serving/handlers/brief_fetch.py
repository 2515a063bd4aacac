"""FETCH of small whole files: one task for each connection reads and sends them, file after file.

So that twenty thousand small files cost little, a FETCH here has no task, thread or open file of its own. It waits in a
queue; when its turn comes the file is opened, read, checked for changes and closed, and its OPEN, BLOCK and COMMIT are sent
together. While the disk is slow, a few threads read the files of a batch in parallel.

    FETCH → queue → read → OPEN BLOCK COMMIT → COMMITTED
                         ← DIGEST_MISMATCH: read, BLOCK
                         ← DIGESTS_DIFFER: read, HAVE ← OPENED: read, BLOCK COMMIT

``fetch.ServedFetch`` answers a FETCH of a longer file, of a rest or by id, or one with another priority.

Spec: BP1-FET, BP1-DIG-006, BP1-DIG-008.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from ...common.blocks import BRIEF_LENGTH_MAX, BlockSet, blocknum_of, digest_of
from ...connection.connection import Connection
from ...connection.unexpected_errors import is_expected, wants_memory
from ...errors import BlockprotoError, Code, DigestMismatch, Scope, SourceChanged, UnexpectedMessage
from ...store import FileEntry
from ...transfer.file_service import FileReader
from ...transfer.send_plan import AGAIN_MAX
from ...transfer.slow_disk import Disk
from ...wire import ZERO_ID, Block, Commit, Error, Fetch, Have, Message, Opened, Piece, Priority
from ..task_guard import TaskGuard
from .stored_source import check_committed, open_message

BATCH_FILES = 16
"""Files that are read before the first of them is sent; bounds memory and the wait of other streams."""
READERS = 4
"""Threads that read a batch while the disk is slow."""

Step = Callable[[], Awaitable[None]]
"""Sends the next messages of a file that was read."""


def is_brief(message: Fetch) -> bool:
    """Whether a FETCH is answered here."""
    return (
        message.length is not None
        and message.length <= BRIEF_LENGTH_MAX
        and message.first == 0
        and message.priority == Priority.NORMAL
        and message.file_id == ZERO_ID
        and not message.held
        and not message.prefixes
    )


class BriefFetches:
    """The small files to send on one connection.

    Args:
        connection: the connection.
        guard: runs the task that reads and sends; it may outlive the connection.
        disk: tells whether it is slow.
    """

    __slots__ = ("_asked", "_disk", "_guard", "_working", "connection")

    def __init__(self, connection: Connection, guard: TaskGuard, disk: Disk) -> None:
        self.connection = connection
        self._guard = guard
        self._disk = disk
        self._asked: deque[tuple[ServedBrief, Step]] = deque()
        self._working = False

    def put(self, brief: ServedBrief, step: Step) -> None:
        """Read a file when its turn comes, then call ``step``."""
        self._asked.append((brief, step))
        if not self._working:
            self._working = True
            self._guard.start_soon(self._work_off)

    async def _work_off(self) -> None:
        try:
            while self._asked and self.connection.lost is None:
                await self.connection.granted()
                batch = self._next_batch()
                await self._read(batch)
                for brief, step in batch:
                    await brief.take(step)
        finally:
            self._working = False

    def _next_batch(self) -> list[tuple[ServedBrief, Step]]:
        """As many files as credit was granted for, at least one."""
        room = self.connection.session.sendable(0)
        batch: list[tuple[ServedBrief, Step]] = []
        while self._asked and len(batch) < BATCH_FILES:
            room -= self._asked[0][0].length_max
            if batch and room < 0:
                break
            batch.append(self._asked.popleft())
        return batch

    async def _read(self, batch: list[tuple[ServedBrief, Step]]) -> None:
        if not self._disk.slow:
            for brief, _ in batch:
                await self._disk.run(brief.read)
            return
        async with trio.open_nursery() as nursery:
            for first in range(min(READERS, len(batch))):
                nursery.start_soon(self._disk.run, partial(_read_all, batch[first::READERS]))


def _read_all(batch: list[tuple[ServedBrief, Step]]) -> None:
    for brief, _ in batch:
        brief.read()


class ServedBrief:
    """Answers one FETCH.

    Args:
        briefs: the queue of its connection.
        stream: the stream of the FETCH.
        reader: the files that its principal may read.
    """

    __slots__ = (
        "_again",
        "_briefs",
        "_content",
        "_digest",
        "_entry",
        "_error",
        "_fetch",
        "_reader",
        "_repairing",
        "_stream",
    )
    waits = False

    def __init__(self, briefs: BriefFetches, stream: int, reader: FileReader) -> None:
        self._briefs = briefs
        self._stream = stream
        self._reader = reader
        self._fetch = Fetch("")
        self._entry: FileEntry | None = None
        self._content = memoryview(b"")
        self._digest = b""
        self._error: Exception | None = None
        self._again = 0
        self._repairing = False

    @property
    def length_max(self) -> int:
        """The most bytes of it that are read."""
        return self._fetch.length or 0

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Fetch):
            self._fetch = message
            self._briefs.put(self, self._answer)
        elif isinstance(message, Error) and message.scope == Scope.BLOCK:
            self._on_damage(message)
        elif isinstance(message, Opened) and self._repairing:
            self._repairing = False
            self._briefs.put(self, self._commit if 0 in BlockSet(message.held) else self._send_and_commit)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("a fetcher sends no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""

    def _on_damage(self, message: Error) -> None:
        self._again += 1
        if self._again > AGAIN_MAX:
            raise DigestMismatch(f"sent {AGAIN_MAX} times again", blockno=0)
        if message.code == Code.DIGESTS_DIFFER:
            self._repairing = True
            self._briefs.put(self, self._repair)
        elif message.code == Code.DIGEST_MISMATCH:
            self._briefs.put(self, self._send)

    # ---- reading ----------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Read the file, in the version that was asked for; an error is kept for ``take``. Blocking."""
        try:
            self._read()
        except MemoryError:
            raise
        except Exception as exc:  # it ends the stream of this file, not its batch
            self._error = exc

    def _read(self) -> None:
        fetch, before = self._fetch, self._entry
        version = fetch.version if before is None else before.version
        reader = self._reader.open_now(fetch.filename)
        try:
            entry = reader.entry
            content = memoryview(bytearray(min(entry.filesize, fetch.length or 0)))
            if version not in (ZERO_ID, entry.version):
                raise SourceChanged(f"{fetch.filename} is not the version that was asked for any more")
            if reader.read_into(0, content) != len(content) or not reader.unchanged():
                raise SourceChanged(f"{fetch.filename} changed while it was being read")
            self._entry, self._content, self._digest = entry, content, digest_of(content)
            if len(content) == entry.filesize:
                check_committed(entry, self._digest)  # of one block, whose digest is the root
        finally:
            reader.close()

    # ---- saying -----------------------------------------------------------------------------------------------

    async def take(self, step: Step) -> None:
        """Send by ``step`` what was read, or say why it cannot be sent."""
        connection = self._briefs.connection
        try:
            if self._error is not None:
                raise self._error
            if connection.session.is_live(self._stream):
                await step()
        except Exception as exc:
            if wants_memory(exc):
                raise
            if isinstance(exc, BlockprotoError) and is_expected(exc):
                connection.refuse(self._stream, exc)
            else:
                connection.broke(self._stream, exc)
        self._content = memoryview(b"")

    async def _answer(self) -> None:
        assert self._entry is not None
        name = self._reader.shown(self._entry.filename.text)
        self._post(open_message(self._entry, name, self._fetch))
        await self._send_and_commit()

    async def _send_and_commit(self) -> None:
        await self._send()
        await self._commit()

    async def _send(self) -> None:
        """Send the block, if there is one, in one piece unless the line is slow."""
        content, at = self._content, 0
        while at < len(content):
            length = min(len(content) - at, self._briefs.connection.piece_length())
            end = self._digest if at + length == len(content) else None
            message = Piece(at, digest=end) if at else self._block_message(end)
            await self._briefs.connection.send(self._stream, message, content[at : at + length])
            at += length

    async def _commit(self) -> None:
        filesize, blocknum = self._facts()
        self._post(Commit(ZERO_ID, self._digest, filesize, blocknum))

    async def _repair(self) -> None:
        self._post(Have(((0, self._digest),) if self._content else ()))

    def _block_message(self, digest: bytes | None) -> Block:
        filesize, blocknum = self._facts()
        assert self._entry is not None
        return Block(
            sourceid=ZERO_ID,
            filesize=filesize,
            blocknum=blocknum,
            blockno=0,
            position=0,
            filename=self._reader.shown(self._entry.filename.text),
            filetype=self._entry.filetype,
            digest=digest,
        )

    def _facts(self) -> tuple[int, int]:
        assert self._entry is not None
        return self._entry.filesize, blocknum_of(self._entry.filesize)

    def _post(self, message: Message) -> None:
        self._briefs.connection.post(self._stream, message)

"""FILES with WANTED: many small files at once to whoever asks for them, read in a worker thread and sent in frames.

    FILES with WANTED → queue → read and packed → FILES … → STORED
                                                FILES with LAST, and all answered → STORED with LAST

What cannot be sent is left out: the receiver asks for it by FETCH, which says why. A connection has one such task, which
holds one frame, and that only while there is credit for it.

Spec: BP1-FIL-017 to 022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import trio

from ...common.blocks import digest_of
from ...common.file_table import FILES_MAX, HEAD_SPARE, TableBuilder
from ...connection.connection import Connection
from ...connection.unexpected_errors import is_expected, wants_memory
from ...errors import BlockprotoError, UnexpectedMessage
from ...transfer.file_service import FileReader
from ...transfer.threads import Kind, run_in_thread
from ...wire import FRAMES_MAX, ZERO_ID, Error, Files, Message, Stored
from ..pending_requests import RequestQueue
from .stored_source import check_committed

FRAME_LENGTH_MAX = 512 << 10
"""Bytes of payload in one frame at most."""


@dataclass(slots=True)
class _Frame:
    """Files that go together.

    Attributes:
        message: their table; its number and LAST are the sender's to set.
        payload: their bytes.
        following: which of the files that were asked for comes next.
    """

    message: Files
    payload: bytearray
    following: int


class ServedFiles:
    """Answers one FILES with WANTED.

    Args:
        connection, stream: where it came.
        queue: runs what answers it when its turn comes.
        reader: the files that its principal may read.
    """

    waits = False

    def __init__(self, connection: Connection, stream: int, queue: RequestQueue, reader: FileReader) -> None:
        self._connection = connection
        self._stream = stream
        self._queue = queue
        self._reader = reader
        self._unanswered: dict[int, tuple[int, int]] = {}  # files and bytes of each frame, by its number
        self._over = False
        self._news = trio.Event()

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Files):
            self._queue.put(partial(self._answer, message))
        elif isinstance(message, Stored):
            self._on_stored(message)
        elif isinstance(message, Error):
            self._end()

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("whoever asks for files sends no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        self._end()

    def _end(self) -> None:
        self._over = True
        self._news.set()

    def _on_stored(self, message: Stored) -> None:
        """Some files of a frame are answered; the session has seen to it that there are as many."""
        files, length = self._unanswered.pop(message.number, (0, 0))
        if files > len(message.statuses):
            self._unanswered[message.number] = files - len(message.statuses), length
        if message.last:
            self._over = True
        self._news.set()
        self._news = trio.Event()

    async def _answer(self, asked: Files) -> None:
        try:
            await self._send_all(asked)
        except Exception as exc:
            if wants_memory(exc):
                raise
            if isinstance(exc, BlockprotoError) and is_expected(exc):
                self._connection.refuse(self._stream, exc)
            else:
                self._connection.broke(self._stream, exc)

    async def _send_all(self, asked: Files) -> None:
        at, number, count = 0, 0, len(asked.table.records)
        while at < count and await self._may_go():
            frame = await run_in_thread(partial(self._pack, asked, at, self._room()), Kind.READ)
            at = frame.following
            if not frame.message.table.records and at < count:
                continue
            if self._over:
                return
            files = len(frame.message.table.records)
            if files:
                self._unanswered[number] = files, len(frame.payload)
            message = Files(
                number, frame.message.folders, frame.message.filetypes, frame.message.table, last=at == count
            )
            await self._connection.send(self._stream, message, memoryview(frame.payload))
            number += 1

    async def _may_go(self) -> bool:
        """Wait for credit, and until one more frame may be unanswered (BP1-FIL-010); False: nothing goes any more."""
        connection, hello = self._connection, self._connection.session.peer_hello
        assert hello is not None  # else nobody knows that it knows FILES
        while not self._over and self._unanswered:
            waiting = sum(length for _, length in self._unanswered.values())
            if connection.session.frames_unanswered < FRAMES_MAX and waiting < hello.undurable_max:
                break
            await self._news.wait()
        await connection.granted()
        return not self._over and connection.lost is None

    def _room(self) -> int:
        """Bytes of payload that the next frame may have."""
        session = self._connection.session
        granted = max(1, session.sendable(self._stream))
        return min(FRAME_LENGTH_MAX, self._connection.piece_length(), granted)

    # ---- reading ----------------------------------------------------------------------------------------------

    def _pack(self, asked: Files, start: int, room: int) -> _Frame:
        """A frame of the files from ``start`` on, as many as fit ``room`` bytes; blocking.

        A file that is longer than ``room`` goes alone, if a frame may be as long as it is.
        """
        session = self._connection.session
        table = TableBuilder(session.head_length_max - HEAD_SPARE)
        longest = min(FRAME_LENGTH_MAX, session.piece_length_max)
        payload = bytearray()
        at, records = start, asked.table.records
        while at < len(records) and at - start < FILES_MAX:
            filesize = records[at][2]
            if payload and len(payload) + filesize > room:
                break
            if filesize <= longest and not self._add(asked, at, table, payload):
                break
            at += 1
        return _Frame(Files(0, *table.parts, last=True), payload, at)

    def _add(self, asked: Files, at: int, table: TableBuilder, payload: bytearray) -> bool:
        """Read a file into a frame; one that cannot be sent is passed over. False: the head has no room for it."""
        version, _, filesize, _, _, index, _, _ = asked.table.records[at]
        folder, name = asked.folders[index], asked.table.names[at]
        try:
            reader = self._reader.open_now(f"{folder}/{name}" if folder else name)
        except BlockprotoError:
            return True
        try:
            entry = reader.entry
            if version not in (ZERO_ID, entry.version) or entry.filesize != filesize:
                return True
            content = memoryview(bytearray(filesize))
            if reader.read_into(0, content) != filesize or not reader.unchanged():
                return True
            digest = digest_of(content)
            check_committed(entry, digest)
            if not table.has_room(folder, name, entry.filetype):
                return False
            table.add(
                entry.version, digest, filesize, entry.mtime_ns, entry.mode, folder, entry.filetype, name
            )
            payload += content
        except BlockprotoError:
            pass
        finally:
            reader.close()
        return True

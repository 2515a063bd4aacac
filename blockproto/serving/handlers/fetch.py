"""FETCH: send a finished file, or an unfinished upload, with ``transfer.sender``; ``brief_fetch`` sends small files.

Spec: BP1-FET.
"""

from __future__ import annotations

from ...common.blocks import BlockSet
from ...connection.connection import Connection
from ...errors import (
    BadFacts,
    BlockprotoError,
    SourceChanged,
    UnexpectedMessage,
    UnknownFile,
)
from ...store import (
    StoredReader,
)
from ...transfer.file_service import FileReader
from ...transfer.follow_upload import FollowedSource, Following
from ...transfer.live_upload import LiveUpload
from ...transfer.send_stream import SendStream
from ...transfer.sender import Sender
from ...transfer.served_send_stream import ServedSendStream
from ...wire import (
    ZERO_ID,
    Fetch,
    Message,
    Priority,
)
from ..task_guard import TaskGuard
from .stored_source import StoredSource, open_message, open_upload_message


class ServedFetch:
    """Answers one FETCH: opens the file, or the upload that will become it, and sends it.

    Args:
        connection, stream: where it came.
        guard: runs the task that sends; it may outlive the connection.
        reader: the files that its principal may read.
    """

    def __init__(
        self,
        connection: Connection,
        stream: int,
        guard: TaskGuard,
        reader: FileReader,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._guard = guard
        self._reader = reader
        self._send_stream: SendStream | None = None

    @property
    def waits(self) -> bool:
        """See connection.StreamHandler: opening the file asks the store."""
        return self._send_stream is None

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Fetch):
            if message.version == ZERO_ID and (message.held or message.prefixes):
                raise BadFacts("FETCH names blocks and no version that they are of")
            await self._begin(message)
        elif self._send_stream is not None:
            await self._send_stream.received(message, payload_length)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("a fetcher sends no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        if self._send_stream is not None:
            self._send_stream.ended(error)

    async def _begin(self, message: Fetch) -> None:
        try:
            reader = await self._reader.open(message.filename, message.file_id)
        except UnknownFile:
            live = await self._reader.unfinished(message.file_id)
            if live is not None:
                self._follow(live, message)
                return
            if message.file_id == ZERO_ID:
                raise
            # it may have been committed just now
            reader = await self._reader.open(message.filename, message.file_id)
        try:
            source = StoredSource(reader, self._reader.disk, message, self._reader.realm)
            priority = Priority(message.priority)
            sending = Sender(source, ZERO_ID, priority=priority, check_root=source.check_root)
            sending.receiver_holds(BlockSet(message.held), dict(message.prefixes))
            self._send_stream = ServedSendStream(self._connection, sending, source, self._stream)
            self._connection.post(
                self._stream, open_message(reader.entry, source.facts.filename.text, message)
            )
        except BaseException:
            reader.close()
            raise
        self._guard.start_soon(self._send, sending, self._send_stream, reader)

    async def _send(self, sending: Sender, send_stream: SendStream, reader: StoredReader) -> None:
        try:
            await sending.run([send_stream])
        except BlockprotoError as exc:
            self._connection.refuse(self._stream, exc)
        finally:
            reader.close()

    # ---- what is still being uploaded -------------------------------------------------------------------------

    def _follow(self, live: LiveUpload, message: Fetch) -> None:
        """Send an upload while it comes in (BP1-FET-015)."""
        file_id = live.stored.file_id
        try:
            if message.version not in (ZERO_ID, file_id):
                raise SourceChanged("the upload of that id is not the version that was asked for")
            source = FollowedSource(
                live,
                lambda: self._reader.open_committed(file_id),
                self._reader.disk,
                message,
                self._reader.realm,
            )
        except BaseException:
            live.rest()
            raise
        following = Following(source, live, message, self._reader.expiry_now_ms)
        try:
            self._send_stream = ServedSendStream(self._connection, following.sender, source, self._stream)
            self._connection.post(self._stream, open_upload_message(live, source, message))
        except BaseException:
            live.unfollow(following)
            raise
        self._guard.start_soon(self._send_following, following, self._send_stream)

    async def _send_following(self, following: Following, send_stream: SendStream) -> None:
        try:
            await following.send(send_stream)
        except BlockprotoError as exc:
            self._connection.refuse(self._stream, exc)

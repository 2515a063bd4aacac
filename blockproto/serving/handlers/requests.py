"""What a server answers besides uploads: FETCH, LIST and REMOVE, each on a stream of its own.

A request is decoded, answered by the store in a worker thread (or by the committer, if it changes anything), and the
stream ends with the answer. A served FETCH is the sender of ``transfer.sender`` with a finished file as its source.

Spec: BP1-FET, BP1-LST.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import trio

from ...common.blocks import BlockSet, block_span, blocknum_of
from ...common.names import ESCAPED_LENGTH_MAX, SafeName, cut_in_the_middle, show_name
from ...connection.connection import Connection
from ...errors import (
    BadFacts,
    BlockprotoError,
    NotPermitted,
    SourceChanged,
    UnexpectedMessage,
    UnknownFile,
    Unsupported,
)
from ...identity.realm import Realm
from ...store import (
    Facts,
    FileEntry,
    IfExists,
    LeftOut,
    StoredFile,
    StoredReader,
    UploadEntry,
)
from ...transfer.file_service import FileReader, FileService
from ...transfer.follow_upload import FollowedSource, Following
from ...transfer.live_upload import LiveUpload
from ...transfer.send_stream import SendStream
from ...transfer.sender import Sender
from ...transfer.served_send_stream import ServedSendStream
from ...transfer.slow_disk import Disk
from ...transfer.threads import Kind, run_in_thread
from ...wire import (
    ZERO_ID,
    EntryKind,
    Error,
    Fetch,
    FileItem,
    Item,
    List,
    ListKind,
    Message,
    Open,
    Priority,
    ReceiptItem,
    RemoveKind,
    Result,
    UploadItem,
    fit_left_out,
    page_items,
)
from ...wire import LeftOut as LeftOutGroup
from ...wire import Remove as RemoveMessage
from ..pending_requests import PendingRequests
from ..task_guard import TaskGuard

PAGE_ITEMS_MAX = 1000
ITEM_LENGTH_LIKELY = 160
"""Bytes of an item in a page, beside the folder's name: a page that turns out too long has to be read twice."""
COUNT_MAX = 2**32 - 1
"""What LEFT_OUT counts at most."""
RECEIPTS_MAX = 4000
_RECEIPT_CURSOR = re.compile(r"[0-9]{0,9}", re.ASCII)
"""What a cursor of ours among receipts can be: how many of the ids were looked at."""


class RequestHandler:
    """Answers one LIST or REMOVE.

    Args:
        connection, stream: where the question came.
        answers: what else is asked on the connection.
        service: what may be asked about.
        message: the question.

    Raises:
        Forbidden: its principal may not ask that.
    """

    waits = False

    def __init__(
        self,
        connection: Connection,
        stream: int,
        answers: PendingRequests,
        service: FileService,
        message: List | RemoveMessage,
    ) -> None:
        if isinstance(message, List) and message.kind == ListKind.FILES:
            service.reader()
        else:
            service.writer()
        self._connection = connection
        self._stream = stream
        self._answers = answers
        self._service = service
        self._nobody_waits = trio.CancelScope()

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, RemoveMessage):
            self._answers.removals.put(partial(self._answer, message))
        elif isinstance(message, List):
            line = self._answers.digests if message.exact and message.b3sum else self._answers.pages
            line.put(partial(self._answer_while_wanted, message))
        elif isinstance(message, Error):
            self._nobody_waits.cancel()

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("a request has no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler. A list that nobody waits for is not made; what was to be removed is."""
        self._nobody_waits.cancel()

    async def _answer_while_wanted(self, message: List) -> None:
        with self._nobody_waits:
            await self._answer(message)

    async def _answer(self, message: List | RemoveMessage) -> None:
        try:
            result = await (self._list(message) if isinstance(message, List) else self._remove(message))
        except BlockprotoError as exc:
            self._connection.refuse(self._stream, exc)
            return
        self._connection.post(self._stream, result)
        self._connection.forget(self._stream)

    async def _remove(self, message: RemoveMessage) -> Result:
        writer = self._service.writer()
        if message.kind == RemoveKind.UPLOAD:
            await writer.cancel(message.id)
        else:
            await writer.remove(message.filename, message.id, recursive=message.recursive)
        return Result(kind=message.kind)

    async def _list(self, message: List) -> Result:
        if message.follow:
            raise Unsupported("FOLLOW is reserved for a later profile")
        if message.kind == ListKind.UPLOADS:
            return await self._list_uploads(message)
        if message.kind == ListKind.RECEIPTS:
            return await run_in_thread(lambda: self._receipts(message), Kind.LIST)
        if message.kind == ListKind.FILES:
            return await (self._stat(message) if message.exact else self._list_files(message))
        raise Unsupported(f"LIST of kind {message.kind} is reserved for a later profile")

    def _receipts(self, message: List) -> Result:
        """The receipts there are, in the order asked for; the cursor counts the ids that were looked at."""
        if not _RECEIPT_CURSOR.fullmatch(message.cursor):
            raise NotPermitted("the cursor is none of ours")
        at = int(message.cursor or 0)
        end = min(at + min(message.limit, RECEIPTS_MAX), len(message.ids))
        rule = None if message.if_exists is None else IfExists(message.if_exists)
        writer = self._service.writer()
        found = writer.receipts(message.ids[at:end], rule)
        items: list[Item] = [_receipt_item(stored, writer.realm) for stored in found]
        fitting = page_items(items, self._connection.session.head_length_max)
        if fitting < len(found):
            end = message.ids.index(found[fitting].sourceid, at)
        return Result(message.kind, tuple(items[:fitting]), str(end) if end < len(message.ids) else "")

    async def _stat(self, message: List) -> Result:
        reader = self._service.reader()
        entry = await reader.stat(message.name, b3sum=message.b3sum)
        return Result(message.kind, (_file_item(entry, reader.realm),))

    async def _list_files(self, message: List) -> Result:
        reader = self._service.reader()

        def page(limit: int) -> Result:
            found = reader.page(message.name, message.cursor, limit, recursive=message.recursive)
            items = tuple(_file_item(entry, reader.realm) for entry in found.entries)
            return Result(message.kind, items, found.cursor, _left_out_groups(found.left_out, reader.realm))

        return await run_in_thread(lambda: self._fit(message, page), Kind.LIST)

    async def _list_uploads(self, message: List) -> Result:
        writer = self._service.writer()

        def page(limit: int) -> Result:
            entries, cursor = writer.unfinished(message.cursor, limit)
            return Result(message.kind, tuple(_upload_item(entry, writer.realm) for entry in entries), cursor)

        return await run_in_thread(lambda: self._fit(message, page), Kind.LIST)

    def _fit(self, message: List, page: Callable[[int], Result]) -> Result:
        """A page of as many items as were asked for and as the peer's head takes."""
        head_length_max = self._connection.session.head_length_max
        likely = head_length_max // (ITEM_LENGTH_LIKELY + len(message.name))
        result = page(max(1, min(message.limit, PAGE_ITEMS_MAX, likely)))
        fitting = page_items(result.items, head_length_max)
        if fitting < len(result.items):
            result = page(fitting)
        return fit_left_out(result, head_length_max) if result.left_out else result


class ServedFetch:
    """Answers one FETCH: opens the file, or an upload that is becoming it, then sends it.

    Args:
        connection, stream: where it was asked.
        guard: where the file is sent; it may outlive the connection.
        reader: what may be read.
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
            # perhaps it was committed in this instant
            reader = await self._reader.open(message.filename, message.file_id)
        try:
            source = StoredSource(reader, self._reader.disk, message, self._reader.realm)
            sending = Sender(source, ZERO_ID, priority=Priority(message.priority))
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
            self._connection.post(self._stream, _open_upload_message(live, source, message))
        except BaseException:
            live.unfollow(following)
            raise
        self._guard.start_soon(self._send_following, following, self._send_stream)

    async def _send_following(self, following: Following, send_stream: SendStream) -> None:
        try:
            await following.send(send_stream)
        except BlockprotoError as exc:
            self._connection.refuse(self._stream, exc)


class StoredSource:
    """A finished file, or the range of it that was asked for, as a ``PieceSource``.

    Args:
        reader: the open file; the caller closes it.
        disk: decides whether reads leave the Trio thread.
        message: the FETCH.
        realm: who gets it: names are said as they are there.

    Raises:
        BadFacts: the range begins behind the file's last byte.
        SourceChanged: the file is not of the version that was asked for.
    """

    def __init__(self, reader: StoredReader, disk: Disk, message: Fetch, realm: Realm) -> None:
        entry = reader.entry
        if message.version not in (ZERO_ID, entry.version) and not _stands_for(message, entry.file_id):
            raise SourceChanged(
                f"{realm.outward(entry.filename.text)} is not the version that was asked for any more"
            )
        name = SafeName.parse(realm.outward(entry.filename.text))
        self.facts = Facts(name, entry.filetype, entry.filesize, entry.mtime_ns, entry.mode)
        if entry.filesize and message.first >= entry.filesize:
            raise BadFacts(f"the range begins at {message.first}, the file has {entry.filesize} bytes")
        self.first = min(message.first, entry.filesize)
        self.end: int | None = entry.filesize
        if message.length is not None:
            self.end = min(entry.filesize, self.first + message.length)
        self.window_bytes: int | None = None
        self._reader = reader
        self._disk = disk

    def span(self, blockno: int) -> tuple[int, int]:
        """See PieceSource."""
        assert self.end is not None
        return block_span(blockno, self.first, self.end)

    async def read_piece(self, position: int, view: memoryview) -> None:
        """See PieceSource."""
        if await self._disk.read(self._reader.read_into, position, view) != len(view):
            raise SourceChanged(f"{self.facts.filename.text} became shorter while it was being sent")

    def read_into(self, position: int, view: memoryview) -> int:
        """See Source."""
        return self._reader.read_into(position, view)

    def durable(self, blockno: int) -> None:
        """See Source."""

    def unchanged(self) -> bool:
        """See Source."""
        return self._reader.unchanged()


def _stands_for(message: Fetch, file_id: bytes) -> bool:
    """Whether FETCH names the file id as the version: whatever the upload of that id became (BP1-FET-017)."""
    return message.version == message.file_id == file_id != ZERO_ID


def open_message(entry: FileEntry, filename: str, message: Fetch) -> Open:
    """The OPEN that answers FETCH of a finished file, which the realm knows as ``filename`` (BP1-FET-003)."""
    return Open(
        sourceid=ZERO_ID,
        attempt=0,
        filesize=entry.filesize,
        blocknum=blocknum_of(entry.filesize),
        filename=filename,
        filetype=entry.filetype,
        priority=message.priority,
        mtime_ns=entry.mtime_ns,
        mode=entry.mode,
        root=entry.root,
        b3sum=entry.b3sum,
        version=message.version if _stands_for(message, entry.file_id) else entry.version,
        file_id=None if entry.file_id == ZERO_ID else entry.file_id,
    )


def _open_upload_message(live: LiveUpload, source: FollowedSource, message: Fetch) -> Open:
    facts = source.facts
    return Open(
        sourceid=ZERO_ID,
        attempt=0,
        filesize=facts.filesize,
        blocknum=None if facts.filesize is None else blocknum_of(facts.filesize),
        filename=facts.filename.text,
        filetype=facts.filetype,
        priority=message.priority,
        mtime_ns=facts.mtime_ns,
        mode=facts.mode,
        version=live.stored.file_id,
        file_id=live.stored.file_id,
    )


def _file_item(entry: FileEntry, realm: Realm) -> FileItem:
    return FileItem(
        kind=EntryKind.FOLDER if entry.folder else EntryKind.FILE,
        filesize=entry.filesize,
        mtime_ns=entry.mtime_ns,
        mode=entry.mode,
        file_id=entry.file_id,
        version=entry.version,
        filename=realm.outward(entry.filename.text),
        filetype=entry.filetype,
        root=entry.root,
        b3sum=entry.b3sum,
    )


def _left_out_groups(left_out: LeftOut, realm: Realm) -> tuple[LeftOutGroup, ...]:
    """What a page passed over as the wire says it: its names as text for people, as they are called in the realm."""
    return tuple(
        LeftOutGroup(
            int(reason),
            min(count, COUNT_MAX),
            tuple(_shown(realm, name.decode("utf-8", "surrogateescape")) for name in left_out.names[reason]),
        )
        for reason, count in sorted(left_out.counts.items())
    )


def _shown(realm: Realm, name: str) -> str:
    inside = "" if name + "/" == realm.above else realm.outward(name)
    return cut_in_the_middle(show_name(inside), ESCAPED_LENGTH_MAX)


def _upload_item(entry: UploadEntry, realm: Realm) -> UploadItem:
    return UploadItem(
        sourceid=entry.key.sourceid,
        file_id=entry.file_id,
        filesize=entry.filesize,
        blocknum=None if entry.filesize is None else blocknum_of(entry.filesize),
        position=entry.position,
        held_count=entry.held_count,
        expires_ms=entry.expires_ms,
        filename=realm.outward(entry.filename.text),
        filetype=entry.filetype,
    )


def _receipt_item(stored: StoredFile, realm: Realm) -> ReceiptItem:
    return ReceiptItem(
        sourceid=stored.sourceid,
        file_id=stored.file_id,
        root=stored.root,
        filesize=stored.filesize,
        stored_as=realm.outward(stored.stored_as),
        b3sum=stored.b3sum,
    )

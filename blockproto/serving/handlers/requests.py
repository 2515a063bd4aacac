"""LIST and REMOVE, each on a stream of its own.

The store answers in a worker thread, or the committer if the request changes anything; the stream ends with the answer.

Spec: BP1-LST.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import trio

from ...connection.connection import Connection
from ...connection.unexpected_errors import is_expected, wants_memory
from ...errors import (
    BlockprotoError,
    NotPermitted,
    UnexpectedMessage,
    Unsupported,
)
from ...store import (
    IfExists,
)
from ...transfer.file_service import FileService
from ...transfer.threads import Kind, run_in_thread
from ...wire import (
    Error,
    Item,
    List,
    ListKind,
    Message,
    RemoveKind,
    Result,
    fit_left_out,
    page_items,
)
from ...wire import Remove as RemoveMessage
from ..pending_requests import PendingRequests
from .items import file_item, left_out_groups, receipt_item, upload_item

PAGE_ITEMS_MAX = 1000
ITEM_LENGTH_LIKELY = 160
"""Bytes of an item in a page, beside the folder's name: a page that turns out too long has to be read again."""
RECEIPTS_MAX = 4000
_RECEIPT_CURSOR = re.compile(r"[0-9]{0,9}", re.ASCII)
"""The form of our cursors among receipts: how many of the ids were looked at."""


class RequestHandler:
    """Answers one LIST or REMOVE.

    Args:
        connection, stream: where the request came.
        answers: the unanswered requests of the connection.
        service: the files of its principal.
        message: the request.

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
        """See connection.StreamHandler. An unanswered LIST is given up; a REMOVE is still done."""
        self._nobody_waits.cancel()

    async def _answer_while_wanted(self, message: List) -> None:
        with self._nobody_waits:
            await self._answer(message)

    async def _answer(self, message: List | RemoveMessage) -> None:
        try:
            result = await (self._list(message) if isinstance(message, List) else self._remove(message))
            self._connection.post(self._stream, result)
            self._connection.forget(self._stream)
        except Exception as exc:
            if is_expected(exc):
                self._connection.refuse(self._stream, exc)
            elif wants_memory(exc):
                raise
            else:  # it ends this stream, not the one whose request started the task (BP1-ERR-010)
                self._connection.broke(self._stream, exc)

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
        """The receipts that exist, in the order asked for; the cursor counts the ids that were looked at."""
        if not _RECEIPT_CURSOR.fullmatch(message.cursor):
            raise NotPermitted("the cursor is none of ours")
        at = int(message.cursor or 0)
        end = min(at + min(message.limit, RECEIPTS_MAX), len(message.ids))
        rule = None if message.if_exists is None else IfExists(message.if_exists)
        writer = self._service.writer()
        found = writer.receipts(message.ids[at:end], rule)
        items: list[Item] = [receipt_item(stored, writer.realm) for stored in found]
        fitting = page_items(items, self._connection.session.head_length_max)
        if fitting < len(found):
            end = message.ids.index(found[fitting].sourceid, at)
        return Result(message.kind, tuple(items[:fitting]), str(end) if end < len(message.ids) else "")

    async def _stat(self, message: List) -> Result:
        reader = self._service.reader()
        entry = await reader.stat(message.name, b3sum=message.b3sum)
        return Result(message.kind, (file_item(entry, reader.realm),))

    async def _list_files(self, message: List) -> Result:
        reader = self._service.reader()

        def page(limit: int) -> Result:
            found = reader.page(message.name, message.cursor, limit, recursive=message.recursive)
            items = tuple(file_item(entry, reader.realm) for entry in found.entries)
            return Result(message.kind, items, found.cursor, left_out_groups(found.left_out, reader.realm))

        return await run_in_thread(lambda: self._fit(message, page), Kind.LIST)

    async def _list_uploads(self, message: List) -> Result:
        writer = self._service.writer()

        def page(limit: int) -> Result:
            entries, cursor = writer.unfinished(message.cursor, limit)
            return Result(message.kind, tuple(upload_item(entry, writer.realm) for entry in entries), cursor)

        return await run_in_thread(lambda: self._fit(message, page), Kind.LIST)

    def _fit(self, message: List, page: Callable[[int], Result]) -> Result:
        """A page of as many items as were asked for and fit into a head that the peer takes."""
        head_length_max = self._connection.session.head_length_max
        likely = head_length_max // (ITEM_LENGTH_LIKELY + len(message.name))
        result = page(max(1, min(message.limit, PAGE_ITEMS_MAX, likely)))
        while (fitting := page_items(result.items, head_length_max)) < len(result.items):
            result = page(fitting)  # may have other, longer items: what is listed changes meanwhile
        return fit_left_out(result, head_length_max) if result.left_out else result

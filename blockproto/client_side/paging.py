"""Listings, asked for page by page and checked, so that no server can make a client ask forever.

Rules:
    1. A page that is not the last has at least one entry, and another cursor than the page before.
    2. The names of files rise in byte order; an upload comes once.
    3. After ``PAGES_MAX`` pages with hardly an entry on each, the listing is refused.

Spec: BP1-LST-002, BP1-LST-004, BP1-LST-016, BP1-LST-018.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from ..errors import RemoteProtocolError
from ..wire import FileItem, Item, LeftOut, List, ListKind, ReceiptItem, UploadItem
from .connections import Connections
from .request import ask, ask_once

PAGES_MAX = 10_000
ITEMS_LEAST = 8
"""How many entries a page must hold on average once ``PAGES_MAX`` pages have come."""
UPLOADS_MAX = 1_000_000
"""Unfinished uploads of one principal that are listed."""


async def list_files(
    connections: Connections,
    folder: str,
    *,
    recursive: bool,
    on_left_out: Callable[[LeftOut], None] | None = None,
) -> AsyncGenerator[FileItem, None]:
    """The entries of a folder in byte order of their names; with ``recursive`` all below it.

    ``on_left_out`` is called with what each page passed over, after the page's entries.

    Raises:
        RemoteProtocolError: the answer cannot be a listing.
        BlockprotoError: the server answered with an error, or the connection is lost.
    """
    last = b""
    question = List(kind=ListKind.FILES, name=folder, recursive=recursive)
    async with aclosing(_items(connections, question, on_left_out)) as items:
        async for item in items:
            assert isinstance(item, FileItem)
            name = item.filename.encode("utf-8", "surrogateescape")
            if name <= last:
                raise RemoteProtocolError("the server's listing does not rise from name to name")
            last = name
            yield item


async def list_uploads(connections: Connections) -> AsyncGenerator[UploadItem, None]:
    """The unfinished uploads; raises as ``list_files``."""
    seen: set[bytes] = set()
    async with aclosing(_items(connections, List(kind=ListKind.UPLOADS))) as items:
        async for item in items:
            assert isinstance(item, UploadItem)
            if item.sourceid in seen or len(seen) >= UPLOADS_MAX:
                raise RemoteProtocolError("the server's list of uploads goes round in a circle or has no end")
            seen.add(item.sourceid)
            yield item


async def list_receipts(
    connections: Connections, ids: tuple[bytes, ...], limit: int, if_exists: int | None = None
) -> AsyncGenerator[ReceiptItem, None]:
    """The receipts there are among ``ids``, asked for once; raises as ``list_files``.

    Here a page may be empty without being the last: it means that its ids have no receipts.
    """
    asked, pages = set(ids), 0
    question = List(kind=ListKind.RECEIPTS, limit=limit, ids=ids, if_exists=if_exists)
    while True:
        page = await ask_once(connections, question)
        for item in page.items:
            if not isinstance(item, ReceiptItem) or item.sourceid not in asked:
                raise RemoteProtocolError(
                    "the server says a receipt that was not asked for, or says it twice"
                )
            asked.discard(item.sourceid)
            yield item
        if not page.cursor:
            return
        pages += 1
        if pages > len(ids) or page.cursor == question.cursor:
            raise RemoteProtocolError("the server's list of receipts goes on and gets no further")
        question = replace(question, cursor=page.cursor)


async def _items(
    connections: Connections, question: List, on_left_out: Callable[[LeftOut], None] | None = None
) -> AsyncGenerator[Item, None]:
    pages = count = 0
    while True:
        page = await ask(connections, question)
        for item in page.items:
            yield item
        reasons = [group.reason for group in page.left_out]
        if reasons != sorted(set(reasons)):
            raise RemoteProtocolError("the server says one reason for what it left out twice")
        if on_left_out is not None:
            for group in page.left_out:
                on_left_out(group)
        if not page.cursor:
            return
        pages += 1
        count += len(page.items)
        if not page.items or page.cursor == question.cursor:
            raise RemoteProtocolError("the server's listing goes on and gets no further")
        if pages >= PAGES_MAX and count < pages * ITEMS_LEAST:
            raise RemoteProtocolError(f"the server's listing has {pages} pages with hardly an entry on each")
        question = replace(question, cursor=page.cursor)

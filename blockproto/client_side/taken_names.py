"""Find out which names are taken on the server, and by what, with few questions for many names.

    folder that is not there       one question answers for everything below it
    many names in one folder       its listing, page by page, as far as the names go
    few names in a full folder     a question for each, all at once

Names are best asked in the order in which folders are walked (byte order within a folder): then each folder is listed once,
however many calls that takes. Other orders cost questions, nothing else.

Spec: BP1-LST.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from ..errors import UnknownFile
from ..wire import FileItem, List, ListKind, Result
from .request import at_once

Ask = Callable[[List], Awaitable[Result]]

AT_ONCE = 32
"""Questions under way at once."""
FEW = 4
"""Up to this many names of one folder are asked for one by one."""
SPARE = 1000
"""How many unrelated entries a listing may have before the rest of the names is asked for one by one."""


@dataclass(slots=True)
class _Listing:
    """How far a folder has been listed.

    Attributes:
        cursor: where the next page begins; None when there is none.
        upto: the last name that was listed, as bytes.
        past: the last name that was asked for; entries before it are forgotten.
        ahead: the entries that were listed after it.
    """

    cursor: str | None = ""
    upto: bytes = b""
    past: bytes = b""
    ahead: dict[str, FileItem] = field(default_factory=dict)


class TakenNames:
    """The entries that have the names that are asked about.

    Args:
        ask: asks the server once, and raises its error.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._absent: set[str] = set()
        self._listings: dict[str, _Listing] = {}
        self._turns = trio.CapacityLimiter(AT_ONCE)

    async def look(self, names: Iterable[str]) -> dict[str, FileItem]:
        """What there is under those of ``names`` that are taken.

        Raises:
            BlockprotoError: the server answered with an error, or the connection was lost.
        """
        folders: dict[str, list[str]] = {}
        for name in dict.fromkeys(names):
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        found: dict[str, FileItem] = {}
        await at_once(partial(self._look_in_all, folders, found))
        return found

    async def _look_in_all(self, folders: dict[str, list[str]], found: dict[str, FileItem]) -> None:
        """The outermost folders first: below one that is not there, nothing is asked for."""
        first = [folder for folder in folders if not any(above in folders for above in _above(folder))]
        below = set(folders).difference(first)
        await self._look_into({folder: folders[folder] for folder in first}, found, list_all=bool(below))
        await self._look_into({folder: folders[folder] for folder in folders if folder in below}, found)

    async def _look_into(
        self, folders: dict[str, list[str]], found: dict[str, FileItem], *, list_all: bool = False
    ) -> None:
        async with trio.open_nursery() as nursery:
            for folder, names in folders.items():
                if not self._is_absent(folder):
                    nursery.start_soon(self._look_in, folder, names, found, list_all)

    def _is_absent(self, folder: str) -> bool:
        return folder in self._absent or any(above in self._absent for above in _above(folder))

    async def _look_in(
        self, folder: str, names: Sequence[str], found: dict[str, FileItem], list_all: bool
    ) -> None:
        listing = self._listings.get(folder)
        if listing is None and len(names) <= FEW and not list_all:
            await self._ask_each(names, found)
            return
        if listing is None:
            listing = self._listings[folder] = _Listing()
        wanted = {name: _key(name) for name in names}
        passed = [name for name, key in wanted.items() if key <= listing.past]
        try:
            left = await self._list_on(folder, listing, max(wanted.values()), len(names))
        except UnknownFile:
            self._absent.add(folder)
            del self._listings[folder]
            return
        found.update((name, listing.ahead.pop(name)) for name in names if name in listing.ahead)
        listing.past = max(listing.past, *wanted.values())
        listing.ahead = {name: item for name, item in listing.ahead.items() if _key(name) > listing.past}
        again = [name for name, key in wanted.items() if left and key > listing.upto]
        await self._ask_each(passed + again, found)

    async def _list_on(self, folder: str, listing: _Listing, last: bytes, count: int) -> bool:
        """Go on listing up to ``last``, or until too much came; returns whether entries before ``last`` are missing."""
        spare = SPARE + 2 * count
        while listing.cursor is not None and listing.upto < last:
            if spare <= 0:
                return True
            question = List(kind=ListKind.FILES, name=folder, cursor=listing.cursor)
            async with self._turns:
                page = await self._ask(question)
            items = [item for item in page.items if isinstance(item, FileItem)]
            listing.ahead.update((item.filename, item) for item in items)
            listing.cursor = page.cursor or None
            if items:
                listing.upto = max(listing.upto, _key(items[-1].filename))
            spare -= max(1, len(items))
        return False

    async def _ask_each(self, names: Sequence[str], found: dict[str, FileItem]) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._ask_for, name, found)

    async def _ask_for(self, name: str, found: dict[str, FileItem]) -> None:
        async with self._turns:
            try:
                page = await self._ask(List(kind=ListKind.FILES, name=name, exact=True))
            except UnknownFile:
                return
        found.update((name, item) for item in page.items if isinstance(item, FileItem))


def _above(folder: str) -> list[str]:
    """The folders in which ``folder`` lies, the served one among them."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:count]) for count in range(len(parts))]


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")

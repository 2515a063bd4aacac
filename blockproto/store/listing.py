"""Listing a served folder in pages, in byte order of the whole names, within bounded memory.

Byte order of paths is not the order of a walk by names: "a.b" stands between the folder "a" and its "a/x", because "."
is less than "/". So a folder appears twice in the order of its parent: as "a", its entry, and as "a/", what is in it.

A folder is read in windows of ``WINDOW`` names, so that a million entries need no million names in memory. A listing that
goes on is kept between its pages (a few at most); without it the cursor alone finds the place again.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from ..errors import NameRefused, UnknownFile
from ..names import SafeName, is_reserved
from .disk import Folders, look
from .refusals import refusal

WINDOW = 32_768
"""Names of one folder kept in memory."""

KEPT_MAX = 8
"""Listings kept between their pages."""

Found = tuple[SafeName, os.stat_result]


class Listings:
    """The listings of a served folder.

    Args:
        root_fd: the served folder; stays the caller's.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._kept: OrderedDict[tuple[str, bool, str], Iterator[Found]] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, folder: str, recursive: bool, cursor: str, limit: int) -> tuple[list[Found], str]:
        """Up to ``limit`` entries after ``cursor``, and the next cursor ("" after the last page).

        Raises:
            UnknownFile: there is no such folder.
        """
        with self._lock:
            walk = self._kept.pop((folder, recursive, cursor), None) if cursor else None
        if walk is None:
            self._check(folder)
            walk = self._walk(folder, cursor.encode("utf-8", "surrogateescape"), recursive)
        page: list[Found] = []
        for found in walk:
            page.append(found)
            if len(page) == limit:
                break
        further = next(walk, None)
        if further is None:
            return page, ""
        following = page[-1][0].text
        with self._lock:
            self._kept[folder, recursive, following] = chain((further,), walk)
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return page, following

    def _check(self, folder: str) -> None:
        with Folders(self._root_fd) as folders:
            try:
                folders.open(folder)
            except OSError as exc:
                error = refusal(exc)
                raise (UnknownFile() if not error.retryable else error) from exc

    def _walk(self, folder: str, cursor: bytes, recursive: bool) -> Iterator[Found]:
        above = folder + "/" if folder else ""
        for name, status in self._in_order(folder, cursor, recursive):
            whole = above.encode() + name
            if name.endswith(b"/"):
                yield from self._walk(whole[:-1].decode(), cursor, recursive)
            elif whole > cursor:
                try:
                    yield SafeName.parse(whole.decode()), status
                except NameRefused:
                    continue

    def _in_order(
        self, folder: str, cursor: bytes, recursive: bool
    ) -> Iterator[tuple[bytes, os.stat_result]]:
        """Names in a folder, of folders also with "/" at the end, rising; only those at or after ``cursor``."""
        above = (folder + "/").encode() if folder else b""
        after = b""
        while True:
            window = heapq.nsmallest(WINDOW, self._names(folder, above, cursor, after, recursive))
            if not window:
                return
            yield from self._with_status(folder, window)
            after = window[-1]

    def _names(
        self, folder: str, above: bytes, cursor: bytes, after: bytes, recursive: bool
    ) -> Iterator[bytes]:
        with Folders(self._root_fd) as folders:
            try:
                entries = os.scandir(folders.open(folder))
            except OSError:
                return
            with entries:
                for entry in entries:
                    name = _served_name(folder, entry)
                    if name is None:
                        continue
                    if name > after and above + name > cursor:
                        yield name
                    inside = name + b"/"
                    if recursive and inside > after and entry.is_dir(follow_symlinks=False):
                        whole = above + inside
                        if whole > cursor or cursor.startswith(whole):
                            yield inside

    def _with_status(self, folder: str, names: list[bytes]) -> Iterator[tuple[bytes, os.stat_result]]:
        nothing = os.stat_result([0] * 10)
        for start in range(0, len(names), 512):
            found = []
            with Folders(self._root_fd) as folders:
                try:
                    fd = folders.open(folder)
                except OSError:
                    return
                for name in names[start : start + 512]:
                    status = nothing if name.endswith(b"/") else look(fd, name)
                    if status is not None:
                        found.append((name, status))
            yield from found


def _served_name(folder: str, entry: os.DirEntry[str]) -> bytes | None:
    try:
        name = entry.name.encode()
    except UnicodeEncodeError:
        return None
    if is_reserved(entry.name):
        return None
    if not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
        return None
    return name

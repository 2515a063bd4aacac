"""Listing a served folder in pages, in byte order of the whole names, within bounded memory.

Byte order of paths is not the order of a walk by names: "a.b" stands between the folder "a" and its "a/x", because "."
is less than "/". So a folder appears twice in the order of its parent: as "a", its entry, and as "a/", what is in it.

    names of a folder, rising, in windows (kept) → from the cursor on → what each is now → page

A page costs what it shows: the names of a folder are read and sorted once and kept as long as the folder is as it was, which
its times tell; of very large folders windows of ``WINDOW`` names are kept. A page that goes on behind a cursor may use names
that are a little older, as if all pages had been taken at once. What an entry is, is looked at anew each time.

Threads: pages of any number of threads at once; one at a time reads names.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import NameRefused, UnknownFile
from ..names import FILENAME_LENGTH_MAX, SafeName, is_reserved
from .disk import Folders, look
from .refusals import refusal

WINDOW = 131_072
"""Names of one folder that are kept together."""

KEPT_NAMES_MAX = 2 * WINDOW
"""Names kept of all folders together, about 80 bytes each; the folder read last is kept in any case."""

GOES_ON_S = 10.0
"""How old the names may be that a page behind a cursor uses, when the folder has changed since."""

_SORTED_AT_ONCE = 8192
"""Sorting keeps every other thread waiting: so many names take a few milliseconds."""

_TICK_NS = 20_000_000
_SECONDS_NS = 2_000_000_000
"""A folder that changed twice within so long may show one time for both: where fractions of a second are kept, or not."""

_OPEN_MAX = 16
"""Folders a page has open at once."""

Found = tuple[SafeName, os.stat_result]


@dataclass(frozen=True, slots=True)
class _Window:
    """Names of a folder, rising, folders also with "/" at the end: all from ``floor`` to the last of them.

    Attributes:
        names: the names.
        floor: the least name that could be among them.
        whole: whether there are none after the last.
        stamp: the folder's times when they were read; None: it had changed so lately that they prove nothing.
        read_s: when that was.
    """

    names: list[bytes]
    floor: bytes
    whole: bool
    stamp: tuple[int, int] | None
    read_s: float

    def covers(self, floor: bytes) -> bool:
        """Whether the first name at or after ``floor`` is here, or there is none."""
        return self.floor <= floor and (self.whole or (bool(self.names) and floor <= self.names[-1]))


class Listings:
    """The listings of a served folder.

    Args:
        root_fd: the served folder; stays the caller's.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._kept: OrderedDict[tuple[int, int], list[_Window]] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    def page(self, folder: str, recursive: bool, cursor: str, limit: int) -> tuple[list[Found], str]:
        """Up to ``limit`` entries after ``cursor``, and the next cursor ("" after the last page).

        Raises:
            UnknownFile: there is no such folder.
            Refused: there are too few descriptors now.
        """
        with Folders(self._root_fd, open_max=_OPEN_MAX) as folders:
            try:
                folders.open(folder)
            except OSError as exc:
                error = refusal(exc)
                raise (UnknownFile() if not error.retryable else error) from exc
            page: list[Found] = []
            for found in self._walk(folders, folder, cursor.encode("utf-8", "surrogateescape"), recursive):
                if len(page) == limit:
                    return page, page[-1][0].text
                page.append(found)
            return page, ""

    def _walk(self, folders: Folders, folder: str, cursor: bytes, recursive: bool) -> Iterator[Found]:
        walks = [self._names_after(folders, folder.encode(), cursor, recursive)]
        while walks:
            whole = next(walks[-1], None)
            if whole is None:
                walks.pop()
            elif whole.endswith(b"/"):
                if len(whole) >= FILENAME_LENGTH_MAX:
                    continue  # nothing in it has a name that can be said
                walks.append(self._names_after(folders, whole[:-1], cursor, recursive))
            else:
                try:
                    name = SafeName.parse(whole.decode())
                except NameRefused:
                    continue
                status = _look(folders, whole)
                if status is not None:
                    yield name, status

    def _names_after(
        self, folders: Folders, folder: bytes, cursor: bytes, recursive: bool
    ) -> Iterator[bytes]:
        """The whole names in a folder after ``cursor``, rising; recursively also those of folders with "/" at the end."""
        above = folder + b"/" if folder else b""
        if above < cursor and not cursor.startswith(above):
            return  # all of it stands before the cursor
        floor = _floor(cursor[len(above) :]) if cursor.startswith(above) else b""
        while True:
            window = self._window(folders, folder.decode(), floor)
            if window is None:
                return
            for at in range(bisect_left(window.names, floor), len(window.names)):
                name = window.names[at]
                if recursive or not name.endswith(b"/"):
                    yield above + name
            if window.whole:
                return
            floor = window.names[-1] + b"\0"

    # -- names that are kept

    def _window(self, folders: Folders, folder: str, floor: bytes) -> _Window | None:
        """Names of a folder from ``floor`` on; None if it is not there any more."""
        found = _status_of(folders, folder)
        if found is None:
            return None
        kept = self._kept_window(found, floor)
        if kept is not None:
            return kept
        with self._reading:
            found = _status_of(folders, folder)
            kept = None if found is None else self._kept_window(found, floor)
            if found is None or kept is not None:
                return kept
            window = _read(folders, folder, floor, found)
            if window is not None:
                self._keep((found.st_dev, found.st_ino), window)
            return window

    def _kept_window(self, found: os.stat_result, floor: bytes) -> _Window | None:
        key, stamp, now_s = (found.st_dev, found.st_ino), _stamp(found), time.monotonic()
        with self._lock:
            for window in self._kept.get(key, ()):
                fresh = window.stamp == stamp or (bool(floor) and now_s - window.read_s < GOES_ON_S)
                if fresh and window.covers(floor):
                    self._kept.move_to_end(key)
                    return window
        return None

    def _keep(self, key: tuple[int, int], window: _Window) -> None:
        with self._lock:
            others = [other for other in self._kept.get(key, ()) if other.stamp == window.stamp is not None]
            self._kept[key] = [*others, window]
            self._kept.move_to_end(key)
            while self._names_kept() > KEPT_NAMES_MAX:
                windows = next(iter(self._kept.values()))
                if len(self._kept) == 1 and len(windows) == 1:
                    return
                del windows[0]
                if not windows:
                    self._kept.popitem(last=False)

    def _names_kept(self) -> int:
        return sum(len(window.names) for windows in self._kept.values() for window in windows)


def _floor(rest: bytes) -> bytes:
    """The least name in a folder that can stand behind the cursor ``rest``, or lead to what does."""
    inside, slash, _ = rest.partition(b"/")
    if slash:
        return inside + slash
    return rest + b"\0" if rest else b""


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_mtime_ns, found.st_ctime_ns


def _status_of(folders: Folders, folder: str) -> os.stat_result | None:
    try:
        return os.fstat(folders.open(folder))
    except OSError as exc:
        error = refusal(exc)
        if error.retryable:
            raise error from exc
        return None


def _look(folders: Folders, whole: bytes) -> os.stat_result | None:
    folder, _, name = whole.rpartition(b"/")
    try:
        return look(folders.open(folder.decode()), name)
    except OSError as exc:
        error = refusal(exc)
        if error.retryable:
            raise error from exc
        return None


def _read(folders: Folders, folder: str, floor: bytes, found: os.stat_result) -> _Window | None:
    """Read and sort the names of a folder: all of them if they fit a window, else those from ``floor`` on that do."""
    read_s, now_ns = time.monotonic(), time.time_ns()
    names: list[bytes] = []
    cut = False
    try:
        with os.scandir(folders.open(folder)) as entries:
            for entry in entries:
                name = _served_name(folder, entry)
                if name is None:
                    continue
                names.append(name)
                if entry.is_dir(follow_symlinks=False):
                    names.append(name + b"/")
                if len(names) >= 2 * WINDOW:
                    names = _least(names, floor)
                    cut = True
    except OSError as exc:
        error = refusal(exc)
        if error.retryable:
            raise error from exc
        return None
    cut = cut or len(names) > WINDOW
    names = _least(names, floor) if cut else _sorted(names)
    more = cut and len(names) == WINDOW
    latest_ns = max(_stamp(found))
    settled = now_ns - latest_ns > (_TICK_NS if latest_ns % 1_000_000_000 else _SECONDS_NS)
    return _Window(names, floor if cut else b"", not more, _stamp(found) if settled else None, read_s)


def _least(names: list[bytes], floor: bytes) -> list[bytes]:
    """The first names from ``floor`` on that fit a window, rising."""
    return _sorted([name for name in names if name >= floor])[:WINDOW]


def _sorted(names: list[bytes]) -> list[bytes]:
    """Sort in runs first, which lets other threads go on between them; what is sorted already takes little time."""
    for at in range(0, len(names), _SORTED_AT_ONCE):
        names[at : at + _SORTED_AT_ONCE] = sorted(names[at : at + _SORTED_AT_ONCE])
    names.sort()
    return names


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

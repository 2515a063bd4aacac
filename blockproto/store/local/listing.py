"""Listing a served folder in pages, in byte order of the whole names, within bounded memory.

Byte order of paths is not the order of a walk by names: "a.b" stands between the folder "a" and its "a/x", because "."
is less than "/". So a folder appears twice in the order of its parent: as "a", its entry, and as "a/", what is in it.

    names of a folder, rising, in windows (kept) → from the cursor on → what each is now → page

What is there and not listed is told to a ``LeftOut``: on the page in whose range of names it lies, so each once over all
pages (BP1-LST-017). What a store keeps for itself is not told.

A page costs what it shows: the names of a folder are read and sorted once and kept as long as the folder is as it was, which
its times tell; of very large folders windows of ``WINDOW`` names are kept. A page that goes on behind a cursor may use names
that are a little older, as if all pages had been taken at once. What an entry is, is looked at anew each time.

Threads: pages of any number of threads at once; one at a time reads names.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from ...common.names import FILENAME_LENGTH_MAX, SafeName, is_reserved
from ...errors import NameRefused, UnknownFile
from .. import LeftOut, Reason
from ..folder_io import Folders, look
from ..os_errors import refusal
from .left_out import NONE_LEFT_OUT, LeftOutNames

WINDOW = 131_072
"""Names of one folder that are kept together."""

KEPT_NAMES_MAX = 2 * WINDOW
"""Names kept of all folders together, about 80 bytes each; the folder read last is kept in any case."""

_WINDOW_COST = 8
"""A window takes as much memory as so many names, even if it is empty."""

GOES_ON_S = 10.0
"""How old the names may be that a page behind a cursor uses, when the folder has changed since."""

_SORTED_AT_ONCE = 8192
"""Sorting keeps every other thread waiting: so many names take a few milliseconds."""

_TICK_NS = 20_000_000
_SECONDS_NS = 2_000_000_000
"""A folder that changed twice within so long may show one time for both: where fractions of a second are kept, or not."""

_OPEN_MAX = 16
"""Folders a page has open at once."""

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""What the system says of a folder that has gone since its name was read, or is none any more."""

Found = tuple[SafeName, os.stat_result]


@dataclass(frozen=True, slots=True)
class _Window:
    """Names of a folder, rising, folders also with "/" at the end: all from ``floor`` to ``last``.

    Tens of thousands are kept. So they hold tuples, which the garbage collector passes over when they hold bytes only.

    Attributes:
        names: the names that are listed.
        left_out: those that are not.
        floor: the least name that could be among them.
        last: the greatest of all, listed or not; empty if there is none.
        whole: whether there are none after the last.
        stamp: the folder's times when they were read; None: it had changed so lately that they prove nothing.
        read_s: when that was.
    """

    names: tuple[bytes, ...]
    left_out: LeftOutNames
    floor: bytes
    last: bytes
    whole: bool
    stamp: tuple[int, int] | None
    read_s: float

    def covers(self, floor: bytes) -> bool:
        """Whether the first name at or after ``floor`` is here, or there is none."""
        return self.floor <= floor and (self.whole or floor <= self.last)

    @property
    def count(self) -> int:
        """How many names there are, listed or not."""
        return len(self.names) + self.left_out.count

    @property
    def cost(self) -> int:
        """What keeping it takes, in names."""
        return self.count + _WINDOW_COST


class Listings:
    """The listings of a served folder.

    Args:
        root_fd: the served folder; stays the caller's.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._kept: OrderedDict[tuple[int, int], tuple[_Window, ...]] = OrderedDict()
        self._cost = 0  # of all that is kept: a sum over all windows for each new one would be quadratic
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    def page(
        self, folder: str, recursive: bool, cursor: str, limit: int, left_out: LeftOut | None = None
    ) -> tuple[list[Found], str]:
        """Up to ``limit`` entries after ``cursor``, and the next cursor ("" after the last page).

        ``left_out`` is told what the page passed over.

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
            after = cursor.encode("utf-8", "surrogateescape")
            walk = _Walk(self, folders, LeftOut() if left_out is None else left_out, after, recursive)
            for found in walk.entries(folder.encode()):
                if len(page) == limit:
                    walk.left_out.drop()
                    return page, page[-1][0].text
                page.append(found)
                if walk.left_out.waiting:
                    walk.left_out.keep()
            walk.left_out.keep()
            return page, ""

    # -- names that are kept

    def window(self, folders: Folders, folder: str, floor: bytes) -> _Window:
        """Names of a folder from ``floor`` on.

        Raises:
            OSError: it cannot be read, or is not there any more.
            Refused: there are too few descriptors now.
        """
        found = _status_of(folders, folder)
        kept = self._kept_window(found, floor)
        if kept is not None:
            return kept
        with self._reading:
            found = _status_of(folders, folder)
            kept = self._kept_window(found, floor)
            if kept is not None:
                return kept
            window = _read(folders, folder, floor, found)
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
            before = self._kept.get(key, ())
            after = (*(other for other in before if other.stamp == window.stamp is not None), window)
            self._kept[key] = after
            self._kept.move_to_end(key)
            self._cost += sum(one.cost for one in after) - sum(one.cost for one in before)
            while self._cost > KEPT_NAMES_MAX:
                first, windows = next(iter(self._kept.items()))
                if len(self._kept) == 1 and len(windows) == 1:
                    return
                self._cost -= windows[0].cost
                if len(windows) > 1:
                    self._kept[first] = windows[1:]
                else:
                    del self._kept[first]


class _Walk:
    """One page's way through a folder.

    Args:
        listings: where names are kept.
        folders: those that are open.
        left_out: told what is passed over.
        cursor: nothing up to it counts.
        recursive: into folders too.
    """

    def __init__(
        self, listings: Listings, folders: Folders, left_out: LeftOut, cursor: bytes, recursive: bool
    ) -> None:
        self.left_out = left_out
        self._listings = listings
        self._folders = folders
        self._cursor = cursor
        self._recursive = recursive

    def entries(self, folder: bytes) -> Iterator[Found]:
        """What is listed, in the order of names; what is passed over between two entries has been told before the second."""
        walks = [self._names_after(folder)]
        while walks:
            whole = next(walks[-1], None)
            if whole is None:
                walks.pop()
            elif not whole.endswith(b"/"):
                found = self._entry(whole)
                if found is not None:
                    yield found
            elif _name_of(whole[:-1]) is None:
                continue  # the folder was told of, with all that is in it
            elif len(whole) < FILENAME_LENGTH_MAX:
                walks.append(self._names_after(whole[:-1]))
            else:
                self._too_deep(whole)

    def _too_deep(self, whole: bytes) -> None:
        """A folder whose own name leaves no room for another below it: it matters if there is anything in it."""
        try:
            window = self._listings.window(self._folders, whole[:-1].decode(), b"")
        except OSError as exc:
            self._unreadable(whole[:-1], exc)
        else:
            if window.count:
                self.left_out.add(Reason.NAME, 1, [whole])

    def _entry(self, whole: bytes) -> Found | None:
        name = _name_of(whole)
        if name is None:
            self.left_out.add(Reason.NAME, 1, [whole])
            return None
        folder, _, last = whole.rpartition(b"/")
        try:
            status = look(self._folders.open(folder.decode()), last)
        except OSError as exc:
            self._unreadable(whole, exc)
            return None
        if status is None:
            return None
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            return name, status
        reason = Reason.LINK if stat.S_ISLNK(status.st_mode) else Reason.SPECIAL
        self.left_out.add(reason, 1, [whole])  # it was something else when the names were read
        return None

    def _unreadable(self, whole: bytes, exc: OSError) -> None:
        """An entry that the system does not show is left out; raises Refused if that may change at once."""
        error = refusal(exc)
        if error.retryable:
            raise error from exc
        if exc.errno not in _GONE:
            self.left_out.add(Reason.UNREADABLE, 1, [whole])

    def _names_after(self, folder: bytes) -> Iterator[bytes]:
        """The whole names in a folder after the cursor, rising; recursively also those of folders with "/" at the end."""
        cursor = self._cursor
        above = folder + b"/" if folder else b""
        if above < cursor and not cursor.startswith(above):
            return  # all of it stands before the cursor
        floor = _floor(cursor[len(above) :]) if cursor.startswith(above) else b""
        while True:
            try:
                window = self._listings.window(self._folders, folder.decode(), floor)
            except OSError as exc:
                self._unreadable(folder, exc)
                return
            for at in range(bisect_left(window.names, floor), len(window.names)):
                name = window.names[at]
                if self._recursive or not name.endswith(b"/"):
                    if window.left_out.count:
                        window.left_out.tell(self.left_out, above, floor, name)
                        floor = name
                    yield above + name
            window.left_out.tell(self.left_out, above, floor, None)
            if window.whole:
                return
            floor = window.last + b"\0"


def _floor(rest: bytes) -> bytes:
    """The least name in a folder that can stand behind the cursor ``rest``, or lead to what does."""
    inside, slash, _ = rest.partition(b"/")
    if slash:
        return inside + slash
    return rest + b"\0" if rest else b""


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_mtime_ns, found.st_ctime_ns


def _status_of(folders: Folders, folder: str) -> os.stat_result:
    return os.fstat(folders.open(folder))


def _name_of(whole: bytes) -> SafeName | None:
    try:
        return SafeName.parse(whole.decode())
    except NameRefused:
        return None


def _read(folders: Folders, folder: str, floor: bytes, found: os.stat_result) -> _Window:
    """Read and sort the names of a folder: all of them if they fit a window, else those from ``floor`` on that do."""
    read_s, now_ns = time.monotonic(), time.time_ns()
    names: list[bytes] = []
    reasons: dict[bytes, Reason] = {}
    cut = False
    with os.scandir(folders.open(folder)) as entries:
        for entry in entries:
            if is_reserved(entry.name):
                continue
            name = entry.name.encode("utf-8", "surrogateescape")
            names.append(name)
            reason, is_folder = _judge(entry)
            if reason is not None:
                reasons[name] = reason
            elif is_folder:
                names.append(name + b"/")
            if len(names) >= 2 * WINDOW:
                names = _least(names, floor)
                reasons = {name: reasons[name] for name in names if name in reasons}
                cut = True
    cut = cut or len(names) > WINDOW
    names = _least(names, floor) if cut else _sorted(names)
    more, last = cut and len(names) == WINDOW, names[-1] if names else b""
    left_out = NONE_LEFT_OUT
    if reasons:
        left_out = LeftOutNames([(name, reasons[name]) for name in names if name in reasons])
        names = [name for name in names if name not in reasons]
    latest_ns = max(_stamp(found))
    settled = now_ns - latest_ns > (_TICK_NS if latest_ns % 1_000_000_000 else _SECONDS_NS)
    stamp = _stamp(found) if settled else None
    return _Window(tuple(names), left_out, floor if cut else b"", last, not more, stamp, read_s)


def _least(names: list[bytes], floor: bytes) -> list[bytes]:
    """The first names from ``floor`` on that fit a window, rising."""
    return _sorted([name for name in names if name >= floor])[:WINDOW]


def _sorted(names: list[bytes]) -> list[bytes]:
    """Sort in runs first, which lets other threads go on between them; what is sorted already takes little time."""
    for at in range(0, len(names), _SORTED_AT_ONCE):
        names[at : at + _SORTED_AT_ONCE] = sorted(names[at : at + _SORTED_AT_ONCE])
    names.sort()
    return names


def _judge(entry: os.DirEntry[str]) -> tuple[Reason | None, bool]:
    """Why an entry is not listed, or None; and whether it is a folder."""
    try:
        is_folder = entry.is_dir(follow_symlinks=False)
        if not is_folder and not entry.is_file(follow_symlinks=False):
            return Reason.LINK if entry.is_symlink() else Reason.SPECIAL, False
    except OSError:
        return Reason.UNREADABLE, False
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return Reason.NAME, is_folder
    return None, is_folder

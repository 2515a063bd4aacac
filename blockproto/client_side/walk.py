"""Walk a folder in an order that can be repeated: files, and folders after their entries.

Rules:
    1. Symbolic links and special files (sockets, pipes, devices) inside a folder are named and left out. A link that is an
       argument of the command is followed.
    2. A folder comes after its entries, so that its times and mode can be set when nothing in it changes any more.
    3. Memory holds the entries of one folder for each level, not the tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from ..common.names import (
    FILENAME_LENGTH_MAX,
    holds_in_progress,
    is_in_progress,
    is_reserved,
    may_hold_ours,
)


@dataclass(slots=True)
class Found:
    """A file or folder that is to be sent.

    Attributes:
        path: where it is here.
        name: its name on the server.
        filesize: bytes; 0 for a folder.
        folder: whether it is one.
        empty: whether it is a folder without entries that are sent.
        looked: of a file its ``os.stat``, as it was met.
    """

    path: str
    name: str
    filesize: int
    folder: bool = False
    empty: bool = False
    looked: os.stat_result | None = field(default=None, repr=False, compare=False)


LeaveOut = Callable[[str, str], None]
"""Called with a path and the reason why it is left out (a link, a socket …)."""

_IN_PROGRESS = "a download in progress, or what is left of one"

Fail = Callable[[str, OSError], None]
"""Called with a path that could not be read, and the error."""


def walk(path: str | os.PathLike[str], name: str, leave_out: LeaveOut, fail: Fail) -> Iterator[Found]:
    """Everything at ``path``, which may be a file or a folder, under the name ``name``.

    Args:
        path: a file or folder; a link is followed here and only here.
        name: what ``path`` itself is called on the server.
        leave_out: called for every link and special file.
        fail: called for everything that cannot be read; the rest still comes.
    """
    path = os.fspath(path)
    if holds_in_progress(name):
        leave_out(path, _IN_PROGRESS)
        return
    try:
        facts = os.stat(path)
    except OSError as error:
        fail(path, error)
        return
    if stat.S_ISDIR(facts.st_mode):
        yield from _walk_folder(path, name, leave_out, fail)
    elif stat.S_ISREG(facts.st_mode):
        yield Found(path, name, facts.st_size, looked=facts)
    else:
        leave_out(path, kind_of(facts.st_mode))


@dataclass(slots=True)
class _Level:
    """One folder on the way down, with the entries that are still to come.

    Attributes:
        path: where it is here.
        name: its name on the server.
        under: what the paths of its entries begin with.
        above: what their names on the server begin with.
        entries: those that are still to come.
        plain: whether no entry's name can be one of ours.
        empty: whether nothing in it is sent, so far.
    """

    path: str
    name: str
    under: str
    above: str
    entries: Iterator[os.DirEntry[str]]
    plain: bool
    empty: bool = True


def _walk_folder(path: str, name: str, leave_out: LeaveOut, fail: Fail) -> Iterator[Found]:
    way = _enter(path, name, fail)
    while way:
        level = way[-1]
        below: Found | None = None
        for entry in level.entries:
            found = _look_at(entry, level, leave_out, fail)
            if found is None:
                continue
            level.empty = False
            if found.folder:
                below = found
                break
            yield found
        if below is None:
            way.pop()
            yield Found(level.path, level.name, 0, folder=True, empty=level.empty)
        elif len(os.fsencode(below.name)) >= FILENAME_LENGTH_MAX:
            fail(below.path, OSError(errno.ENAMETOOLONG, "no name in it is short enough to travel"))
        else:
            way += _enter(below.path, below.name, fail)


def _enter(path: str, name: str, fail: Fail) -> list[_Level]:
    try:
        with os.scandir(path) as listing:
            entries = list(listing)
    except OSError as error:
        fail(path, error)
        return []
    names = "/".join([entry.name for entry in entries])
    # In ASCII the order of characters is that of bytes.
    entries.sort(key=attrgetter("name") if names.isascii() else lambda entry: os.fsencode(entry.name))
    under = "" if path == os.curdir else os.path.join(path, "")
    above = f"{name}/" if name else ""
    return [_Level(path, name, under, above, iter(entries), not may_hold_ours(names))]


def _look_at(entry: os.DirEntry[str], level: _Level, leave_out: LeaveOut, fail: Fail) -> Found | None:
    path = level.under + entry.name
    if not level.plain:
        if is_reserved(entry.name):
            leave_out(path, "what a server keeps of a folder it serves")
            return None
        if is_in_progress(entry.name):
            leave_out(path, _IN_PROGRESS)
            return None
    try:
        if entry.is_dir(follow_symlinks=False):
            return Found(path, level.above + entry.name, 0, folder=True)
        facts = entry.stat(follow_symlinks=False)
    except OSError as error:
        fail(path, error)
        return None
    if stat.S_ISREG(facts.st_mode):
        return Found(path, level.above + entry.name, facts.st_size, looked=facts)
    leave_out(path, kind_of(facts.st_mode))
    return None


def kind_of(mode: int) -> str:
    """What kind of thing ``st_mode`` says it is, in words."""
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISCHR, "a device"),
    )
    return next((words for test, words in kinds if test(mode)), "a special file")


def total_of(paths: Iterator[Found]) -> int:
    """The sum of the sizes, in bytes."""
    return sum(found.filesize for found in paths)

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
from dataclasses import dataclass
from pathlib import Path

from ..common.names import FILENAME_LENGTH_MAX, holds_in_progress, is_in_progress, is_reserved


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder that is to be sent.

    Attributes:
        path: where it is here.
        name: its name on the server.
        filesize: bytes; 0 for a folder.
        folder: whether it is one.
        empty: whether it is a folder without entries that are sent.
    """

    path: Path
    name: str
    filesize: int
    folder: bool = False
    empty: bool = False


LeaveOut = Callable[[Path, str], None]
"""Called with a path and the reason why it is left out (a link, a socket …)."""

_IN_PROGRESS = "a download in progress, or what is left of one"

Fail = Callable[[Path, OSError], None]
"""Called with a path that could not be read, and the error."""


def walk(path: Path, name: str, leave_out: LeaveOut, fail: Fail) -> Iterator[Found]:
    """Everything at ``path``, which may be a file or a folder, under the name ``name``.

    Args:
        path: a file or folder; a link is followed here and only here.
        name: what ``path`` itself is called on the server.
        leave_out: called for every link and special file.
        fail: called for everything that cannot be read; the rest still comes.
    """
    if holds_in_progress(name):
        leave_out(path, _IN_PROGRESS)
        return
    try:
        facts = path.stat()
    except OSError as error:
        fail(path, error)
        return
    if stat.S_ISDIR(facts.st_mode):
        yield from _walk_folder(path, name, leave_out, fail)
    elif stat.S_ISREG(facts.st_mode):
        yield Found(path, name, facts.st_size)
    else:
        leave_out(path, kind_of(facts.st_mode))


@dataclass(slots=True)
class _Level:
    """One folder on the way down, with the entries that are still to come."""

    path: Path
    name: str
    entries: Iterator[os.DirEntry[str]]
    empty: bool = True


def _walk_folder(path: Path, name: str, leave_out: LeaveOut, fail: Fail) -> Iterator[Found]:
    way = _enter(path, name, fail)
    while way:
        level = way[-1]
        entry = next(level.entries, None)
        if entry is None:
            way.pop()
            yield Found(level.path, level.name, 0, folder=True, empty=level.empty)
            continue
        found = _look_at(entry, level.name, leave_out, fail)
        if found is None:
            continue
        level.empty = False
        if found.folder and len(os.fsencode(found.name)) >= FILENAME_LENGTH_MAX:
            fail(found.path, OSError(errno.ENAMETOOLONG, "no name in it is short enough to travel"))
        elif found.folder:
            way += _enter(found.path, found.name, fail)
        else:
            yield found


def _enter(path: Path, name: str, fail: Fail) -> list[_Level]:
    try:
        with os.scandir(path) as listing:
            entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        fail(path, error)
        return []
    return [_Level(path, name, iter(entries))]


def _look_at(entry: os.DirEntry[str], above: str, leave_out: LeaveOut, fail: Fail) -> Found | None:
    path = Path(entry.path)
    name = f"{above}/{entry.name}" if above else entry.name
    if is_reserved(entry.name):
        leave_out(path, "what a server keeps of a folder it serves")
        return None
    if is_in_progress(entry.name):
        leave_out(path, _IN_PROGRESS)
        return None
    try:
        if entry.is_dir(follow_symlinks=False):
            return Found(path, name, 0, folder=True)
        facts = entry.stat(follow_symlinks=False)
    except OSError as error:
        fail(path, error)
        return None
    if stat.S_ISREG(facts.st_mode):
        return Found(path, name, facts.st_size)
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

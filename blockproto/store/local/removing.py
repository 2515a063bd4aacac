"""Removing finished files and folders: the files first, then what the ledger knows of them.

In that order a crash leaves at worst a receipt whose file is gone, which does not count. Of a folder one batch removes at
most ``REMOVED_MAX`` entries, and begins none after ``REMOVING_S``: whoever waits for the same batch does not wait for a
hundred thousand of them, nor for a file system that is slow.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...common.names import FILENAME_LENGTH_MAX, is_reserved
from ...errors import UnknownFile
from .. import Remove, Unfinished
from ..folder_io import Folders, open_folder, remove_file
from .finished_files import FinishedFiles
from .ledger_view import View

REMOVED_MAX = 128
"""How many entries of a folder go in one batch."""
REMOVING_S = 0.02
"""For how long one batch removes them: 128 take 4 ms on an idle machine, and a quarter of a second on a busy one."""


def remove_entry(view: View, folders: Folders, finished: FinishedFiles, work: Remove) -> None:
    """Remove a file, or a folder.

    Args:
        view: the batch's transaction.
        folders: what is to be synced is added to its ``changed``.
        finished: the store's files.
        work: what to remove.

    Raises:
        UnknownFile: there is no such file or folder.
        Unfinished: some of the folder was removed, and more is there.
        OSError: as the system reports it; ENOTEMPTY for a folder with entries.
    """
    name = _name(view, finished, work)
    found = finished.look(name, folders)
    if found is None:
        if work.begun:
            return  # somebody else removed the rest
        raise UnknownFile
    above, _, last = name.rpartition("/")
    try:
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(last.encode(), dir_fd=folders.open(above))
        elif not work.recursive:
            os.rmdir(last.encode(), dir_fd=folders.open(above))
        else:
            for gone in _Tree(folders.open(above), last, name).remove(REMOVED_MAX):
                view.drop_name(gone)
    finally:
        folders.forget(name)  # also when some of it is left: what the batch has open of it may be gone
    folders.changed.add(above)
    view.drop_name(name)


def _name(view: View, finished: FinishedFiles, work: Remove) -> str:
    if work.filename is not None:
        return work.filename.text
    receipt = None if work.file_id is None else view.receipt(work.file_id)
    if receipt is None or not finished.is_true(receipt):
        raise UnknownFile
    return receipt.stored_as


class _Tree:
    """A folder that goes with all in it, links and special files themselves too.

    It may be deeper than the stack, than any path and than there are descriptors: one folder is open at a time, and the way
    back up is "..", which must lead to the folder that it led down from.

    What is a store's own stays, and with it the folders it is in.

    Args:
        above_fd: the folder it is in; stays the caller's.
        last: its name there.
        name: its whole name.
    """

    def __init__(self, above_fd: int, last: str, name: str) -> None:
        self._above_fd = above_fd
        self._fd = open_folder(above_fd, last.encode())
        self._way = [_Level(last.encode(), name, _identity(self._fd))]
        self._left = 0
        self._until_s = time.monotonic() + REMOVING_S

    def remove(self, most: int) -> Iterator[str]:
        """Remove it, or ``most`` entries of it, or what the time suffices for; yields the names of what is gone.

        Raises:
            Unfinished: more is there.
            OSError: as the system reports it; ENOTEMPTY if something of a store's own is in it, when all else is gone.
        """
        self._left = most
        try:
            while self._way:
                level = self._way[-1]
                if level.folders:
                    self._go_down(level, level.folders.pop())
                elif level.read:
                    yield from self._go_up(self._way.pop())
                else:
                    yield from self._remove_files(level)
        finally:
            os.close(self._fd)

    def _remove_files(self, level: _Level) -> Iterator[str]:
        """Remove the files of the present folder, and note the folders in it; of a big one only a part at a time."""
        files: list[str] = []
        level.read = True
        with os.scandir(self._fd) as entries:
            for entry in entries:
                if len(files) + len(level.folders) > self._left:
                    level.read = False
                    break
                if is_reserved(entry.name):
                    level.stays = True
                elif not entry.is_dir(follow_symlinks=False):
                    files.append(entry.name)
                elif os.fsencode(entry.name) not in level.staying:
                    level.folders.append(os.fsencode(entry.name))
        for name in files:
            if remove_file(self._fd, os.fsencode(name)):
                yield from self._count(_below(level.name, name))

    def _count(self, name: str | None) -> Iterator[str]:
        """An entry was removed, of that name if the ledger can know it."""
        yield from () if name is None else (name,)
        self._left -= 1
        if self._way and (self._left <= 0 or time.monotonic() >= self._until_s):
            raise Unfinished

    def _go_down(self, level: _Level, last: bytes) -> None:
        try:
            fd = open_folder(self._fd, last)
        except FileNotFoundError:
            return  # somebody else removed it
        os.close(self._fd)
        self._fd = fd
        self._way.append(_Level(last, _below(level.name, os.fsdecode(last)), _identity(fd)))

    def _go_up(self, level: _Level) -> Iterator[str]:
        if not self._way:
            if level.stays:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            os.rmdir(level.last, dir_fd=self._above_fd)
        else:
            fd = open_folder(self._fd, b"..")
            os.close(self._fd)
            self._fd = fd
            if _identity(fd) != self._way[-1].identity:
                raise OSError(errno.EBUSY, "somebody moved the folder meanwhile")
            if level.stays:
                self._way[-1].stays = True
                self._way[-1].staying.add(level.last)
                return
            os.rmdir(level.last, dir_fd=fd)
        yield from self._count(level.name)


@dataclass(slots=True)
class _Level:
    """A folder on the way down.

    Attributes:
        last: its name in the folder above.
        name: its whole name; None if nobody can have been told of it.
        identity: what it is, to know it again.
        folders: folders in it that are to be removed next.
        read: whether those are all there are, and no file is left.
        stays: whether it holds something that stays.
        staying: folders in it that stay for that reason.
    """

    last: bytes
    name: str | None
    identity: tuple[int, int]
    folders: list[bytes] = field(default_factory=list)
    read: bool = False
    stays: bool = False
    staying: set[bytes] = field(default_factory=set)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _below(above: str | None, name: str) -> str | None:
    """The whole name of an entry, as the ledger can know it: UTF-8, and not too long."""
    if above is None or len(above) + len(name) >= FILENAME_LENGTH_MAX or not _is_utf8(name):
        return None
    return f"{above}/{name}"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

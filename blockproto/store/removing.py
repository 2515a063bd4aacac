"""Removing finished files and folders: the files first, then what the ledger knows of them.

In that order a crash leaves at worst a receipt whose file is gone, which does not count.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from ..errors import UnknownFile
from ..names import is_reserved
from . import Remove
from .disk import Folders, open_folder
from .finished import FinishedFiles
from .ledger import View

FORGET_MAX = 100_000
"""How many names one transaction forgets; receipts beyond that go with the sweep."""


def remove_entry(view: View, folders: Folders, finished: FinishedFiles, work: Remove) -> None:
    """Remove a file, or a folder.

    Args:
        view: the batch's transaction.
        folders: what is to be synced is added to its ``changed``.
        finished: the store's files.
        work: what to remove.

    Raises:
        UnknownFile: there is no such file or folder.
        OSError: as the system reports it; ENOTEMPTY for a folder with entries.
    """
    name = _name(view, finished, work)
    found = finished.look(name, folders)
    if found is None:
        raise UnknownFile
    above, _, last = name.rpartition("/")
    gone = [name]
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(last.encode(), dir_fd=folders.open(above))
    elif not work.recursive:
        os.rmdir(last.encode(), dir_fd=folders.open(above))
    else:
        for inside in _remove_tree(folders.open(above), last, name):
            if len(gone) < FORGET_MAX:
                gone.append(inside)
    folders.forget(name)
    folders.changed.add(above)
    for one in gone:
        view.drop_name(one)


def _name(view: View, finished: FinishedFiles, work: Remove) -> str:
    if work.filename is not None:
        return work.filename.text
    receipt = None if work.file_id is None else view.receipt(work.file_id)
    if receipt is None or not finished.is_true(receipt):
        raise UnknownFile
    return receipt.stored_as


def _remove_tree(above_fd: int, last: str, name: str) -> Iterator[str]:
    """Remove a folder and all in it, links and special files themselves too; yields the names that were files.

    What is a store's own stays, and with it the folders it is in: those raise OSError with ENOTEMPTY, when all else is gone.
    """
    fd = open_folder(above_fd, last.encode())
    try:
        for entry in list(os.scandir(fd)):
            whole = f"{name}/{entry.name}"
            if is_reserved(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                try:
                    yield from _remove_tree(fd, entry.name, whole)
                except OSError as exc:
                    if exc.errno != errno.ENOTEMPTY:
                        raise
            else:
                os.unlink(os.fsencode(entry.name), dir_fd=fd)
                yield whole
    finally:
        os.close(fd)
    os.rmdir(last.encode(), dir_fd=above_fd)
    yield name

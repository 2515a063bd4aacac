"""Partials beside a state's own that are not its: of other states, or of nobody.

A start never touches them: they may be bytes that a server with another state acknowledged. ``blockproto check`` lists them,
with what is there and how old it is, and removes them when it is told to.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from dataclasses import dataclass

from ..names import show_name
from .disk import look, open_folder

_STATE_ID = re.compile(rb"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something in the folder of partials.

    Attributes:
        name: what it is called there.
        what: whose it is, as far as that can be told.
        count: files in it.
        size: bytes in them.
        changed_s: when it was changed last, Unix time.
    """

    name: bytes
    what: str
    count: int
    size: int
    changed_s: float

    def __str__(self) -> str:
        days = max(0.0, time.time() - self.changed_s) / 86_400
        shown = show_name(os.fsdecode(self.name))
        files = "1 file" if self.count == 1 else f"{self.count} files"
        return f"partials/{shown}: {self.what}: {files}, {self.size} bytes, last changed {days:.1f} days ago"


def foreign_in(above_fd: int, own: bytes | None, known: set[bytes]) -> list[Foreign]:
    """What is foreign in the folder ``above_fd``, in order of the names.

    Args:
        above_fd: the folder that holds the states' folders of partials.
        own: the name of the state's own, or None.
        known: names of partials of its ledger, which may lie there before an upgrade.
    """
    with os.scandir(above_fd) as entries:
        names = sorted(os.fsencode(entry.name) for entry in entries)
    found = (_look_into(above_fd, name) for name in names if name != own and name not in known)
    return [one for one in found if one is not None]


def _look_into(above_fd: int, name: bytes) -> Foreign | None:
    found = look(above_fd, name)
    if found is None:
        return None
    if not stat.S_ISDIR(found.st_mode):
        what = "an unknown file" if stat.S_ISREG(found.st_mode) else "something that is no file"
        return Foreign(name, what, 1, found.st_size, found.st_ctime)
    what = "of another state" if _STATE_ID.match(name) else "an unknown folder"
    count, size, changed_s = 0, 0, found.st_ctime
    fd = open_folder(above_fd, name)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                inside = look(fd, os.fsencode(entry.name))
                if inside is not None:
                    count, size = count + 1, size + inside.st_size
                    changed_s = max(changed_s, inside.st_ctime)
    finally:
        os.close(fd)
    return Foreign(name, what, count, size, changed_s)


def remove_foreign(above_fd: int, foreign: list[Foreign]) -> None:
    """Remove what ``foreign_in`` found, durably. Raises OSError where that fails."""
    for one in foreign:
        found = look(above_fd, one.name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            shutil.rmtree(one.name, dir_fd=above_fd)
        elif found is not None:
            os.unlink(one.name, dir_fd=above_fd)
    if foreign:
        os.fsync(above_fd)

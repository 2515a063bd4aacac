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

from ...common.names import show_name
from ..folder_io import look, open_folder

_ID = re.compile(rb"[0-9a-f]{32}\Z")
"""What a state or a partial is called."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something in the folder of partials.

    Attributes:
        name: where it is in that folder.
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
        shown = show_name(os.fsdecode(self.name))
        files = "1 file" if self.count == 1 else f"{self.count} files"
        age = _show_age(time.time() - self.changed_s)
        return f"partials/{shown}: {self.what}: {files}, {self.size} bytes, last changed {age} ago"


def foreign_in(above_fd: int, own: bytes | None, known: set[bytes]) -> list[Foreign]:
    """What is foreign in the folder ``above_fd``, in order of the names.

    Args:
        above_fd: the folder that holds the states' folders of partials.
        own: the name of the state's own, or None.
        known: names of partials of its ledger, which may lie there before an upgrade.
    """
    found = [_look_into(above_fd, name) for name in _names(above_fd) if name != own and name not in known]
    if own is not None and look(above_fd, own) is not None:
        fd = open_folder(above_fd, own)
        try:
            odd = [_look_into(fd, name, own + b"/") for name in _names(fd) if not is_partial(fd, name)]
        finally:
            os.close(fd)
        found += odd
    return [one for one in found if one is not None]


def is_partial(folder_fd: int, name: bytes) -> bool:
    """Whether a store can have made what has that name in a state's folder of partials."""
    found = look(folder_fd, name) if _ID.match(name) else None
    return found is not None and stat.S_ISREG(found.st_mode)


def _names(folder_fd: int) -> list[bytes]:
    with os.scandir(folder_fd) as entries:
        return sorted(os.fsencode(entry.name) for entry in entries)


def _show_age(age_s: float) -> str:
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if age_s >= unit:
            return f"{age_s / unit:.1f} {name}"
    return f"{max(0.0, age_s):.0f} seconds"


def _look_into(above_fd: int, name: bytes, within: bytes = b"") -> Foreign | None:
    found = look(above_fd, name)
    if found is None:
        return None
    if not stat.S_ISDIR(found.st_mode):
        what = "an unknown file" if stat.S_ISREG(found.st_mode) else "something that is no file"
        return Foreign(within + name, what, 1, found.st_size, found.st_ctime)
    what = "of another state" if _ID.match(name) and not within else "an unknown folder"
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
    return Foreign(within + name, what, count, size, changed_s)


def remove_foreign(above_fd: int, foreign: list[Foreign]) -> None:
    """Remove what ``foreign_in`` found, durably. Raises OSError where that fails."""
    for one in foreign:
        folder, _, name = one.name.rpartition(b"/")
        fd = open_folder(above_fd, folder) if folder else os.dup(above_fd)
        try:
            found = look(fd, name)
            if found is not None and stat.S_ISDIR(found.st_mode):
                shutil.rmtree(name, dir_fd=fd)
            elif found is not None:
                os.unlink(name, dir_fd=fd)
            os.fsync(fd)
        finally:
            os.close(fd)

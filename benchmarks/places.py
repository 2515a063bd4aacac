"""Places: where a run works, on the disk or in a tmpfs, in a folder that is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from .sources import warm

TMPFS = Path("/dev/shm")
"""Where Linux has a tmpfs."""


class Place(NamedTuple):
    """A folder to work in.

    Attributes:
        name: ``disk`` or ``tmpfs``.
        folder: ours alone.
        file_system: its type, such as ext4.
    """

    name: str
    folder: Path
    file_system: str

    def room(self) -> int:
        """Free bytes."""
        return shutil.disk_usage(self.folder).free


@contextmanager
def work_in(name: str, disk: Path) -> Iterator[Place]:
    """A place to work in, removed at the end.

    Args:
        name: ``disk`` or ``tmpfs``.
        disk: the folder on the disk in which it is made.

    Raises:
        ValueError: there is no tmpfs on this machine.
    """
    parent = disk if name == "disk" else TMPFS
    if name == "tmpfs" and (not parent.is_dir() or file_system_of(parent) != "tmpfs"):
        raise ValueError(f"there is no tmpfs at {TMPFS}")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="blockproto-bench-", dir=parent))
    try:
        yield Place(name, folder, file_system_of(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run may be in it
            disk.rmdir()


def file_system_of(path: Path) -> str:
    """The type of the file system ``path`` lies on."""
    where = path.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if where.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def settler(source: Path) -> Callable[[], None]:
    """What is done before every run: everything written is on the medium, the source is in the page cache."""

    def settle() -> None:
        os.sync()
        warm(source)

    return settle


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

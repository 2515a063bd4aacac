"""File operations that work on Linux, macOS and Windows alike, for the client's download store.

Where a system lacks something, the next best is done and said: Windows has no folder fsync (its journal orders a
rename after what was flushed before), no ``pwrite`` and no permission bits.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from .. import times

_BINARY = getattr(os, "O_BINARY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
_FLAGS = os.O_RDWR | _BINARY | _NOFOLLOW | _CLOEXEC

_seek_lock = threading.Lock()


def open_new(path: Path | str) -> int:
    """Make a file that was not there."""
    return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)


def open_existing(path: Path | str) -> int:
    """Open a file of ours for reading and writing, not through a symlink."""
    return os.open(path, _FLAGS)


def write_at(fd: int, position: int, piece: memoryview) -> None:
    """Write all of ``piece`` at ``position``."""
    while piece:
        if hasattr(os, "pwrite"):
            written = os.pwrite(fd, piece, position)
        else:
            with _seek_lock:
                os.lseek(fd, position, os.SEEK_SET)
                written = os.write(fd, piece)
        piece = piece[written:]
        position += written


def read_at(fd: int, position: int, view: memoryview) -> int:
    """Fill ``view`` from ``position`` on; returns how many bytes there were."""
    filled = 0
    while filled < len(view):
        wanted = len(view) - filled
        if hasattr(os, "pread"):
            part = os.pread(fd, wanted, position + filled)
        else:
            with _seek_lock:
                os.lseek(fd, position + filled, os.SEEK_SET)
                part = os.read(fd, wanted)
        if not part:
            break
        view[filled : filled + len(part)] = part
        filled += len(part)
    return filled


def sync_file(fd: int) -> None:
    """Make a file's bytes and size durable."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_folder(path: Path | str) -> None:
    """Make a folder's entries durable, where the system can."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def set_mode(fd: int, mode: int) -> None:
    """Set permission bits, where the system has them."""
    if hasattr(os, "fchmod"):
        with suppress(PermissionError):
            os.fchmod(fd, mode)


def set_mtime(at: Path | int, mtime_ns: int) -> None:
    """Set the modification time of a path or an open file, never of a symlink's target where the system can tell."""
    follow = isinstance(at, int) or os.utime not in os.supports_follow_symlinks
    times.set_mtime(at, mtime_ns, follow_symlinks=follow)


def move_new(source: Path, target: Path) -> None:
    """Give a file another name that is not taken.

    Raises:
        FileExistsError: it is taken; nothing changed.

    A file system without hard links (FAT) cannot do both at once: there the name is looked up first.
    """
    if os.name == "nt":
        source.rename(target)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        source.rename(target)
        return
    source.unlink()

"""File operations that work on Linux, macOS and Windows alike, for the client's download store.

Where a system lacks something, the next best is done and said: Windows has no folder fsync (its journal orders a
rename after what was flushed before), no ``pwrite`` and no permission bits.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

from ...common import times
from .. import MODE_BITS

_FILE_MODE = 0o666
_UTIME_BY_FD = os.utime in os.supports_fd

_seek_lock = threading.Lock()


def files_allowed() -> int:
    """How many files this process may have open; where the system does not say, a number that every system allows."""
    try:
        import resource
    except ImportError:
        return 512
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


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


def set_facts(fd: int, folder: Path, name: str, mode: int | None, mtime_ns: int | None) -> None:
    """Give an open file its permission bits and modification time, as far as the system has them.

    Args:
        fd: the file, made for its owner only.
        folder: where it is, for systems that set times by path only.
        name: its name there.
        mode: nine bits are applied; None: those that a new file gets here.
        mtime_ns: nanoseconds since 1970, or None.
    """
    if hasattr(os, "fchmod"):
        with suppress(PermissionError):
            os.fchmod(fd, _usual_mode() if mode is None else mode & MODE_BITS)
    if mtime_ns is not None:
        times.set_mtime(fd if _UTIME_BY_FD else folder / name, mtime_ns)


@cache
def _usual_mode() -> int:
    """The permission bits of a file whose sender stated none."""
    umask = os.umask(
        0o077
    )  # it can be read only by setting it; what is made meanwhile is stricter, not laxer
    os.umask(umask)
    return _FILE_MODE & ~umask


def move_new(source: Path | str, target: Path | str, folder_fd: int | None = None) -> None:
    """Give a file another name that is not taken.

    Args:
        source: a path; or a name in the folder ``folder_fd``.
        target: likewise.
        folder_fd: an open folder, or None.

    Raises:
        FileExistsError: it is taken; nothing changed.

    A file system without hard links (FAT) cannot do both at once: there the name is looked up first.
    """
    if os.name == "nt":
        os.rename(source, target)
        return
    in_folder = {"src_dir_fd": folder_fd, "dst_dir_fd": folder_fd}
    try:
        os.link(source, target, follow_symlinks=False, **in_folder)
    except FileExistsError:
        raise
    except OSError:
        with suppress(FileNotFoundError):
            os.stat(target, dir_fd=folder_fd, follow_symlinks=False)
            raise FileExistsError(target) from None
        os.rename(source, target, **in_folder)
        return
    os.unlink(source, dir_fd=folder_fd)

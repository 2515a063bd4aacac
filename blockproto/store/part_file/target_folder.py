"""TargetFolder: a folder of this machine that downloads go to, held open, so that no name and no link leads out of it.

Who asked for the download named a folder: links on the way to that are followed. Below it the server's names lead, and a
link there is not followed: neither one that stood there nor one that is put there meanwhile. Files are looked at, made,
named and removed relative to the open folder; where a system cannot do that (Windows), by their paths.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from ...common.times import set_mtime
from ...errors import InTheWay
from .. import MODE_BITS
from ..open_file import OpenFile, Pool
from .portable_io import move_new

Identity = tuple[int, int]
"""Device and inode number of a file."""

_BY_FD = {os.open, os.stat, os.mkdir, os.unlink} <= os.supports_dir_fd and os.scandir in os.supports_fd
_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FILE_FLAGS = os.O_RDWR | getattr(os, "O_BINARY", 0) | _NOFOLLOW | _CLOEXEC
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | _CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CLOEXEC
_PRIVATE = 0o600


def identity_of(facts: os.stat_result) -> Identity:
    """Which file it is."""
    return facts.st_dev, facts.st_ino


class TargetFolder:
    """A folder, opened when it is first used.

    Args:
        path: of the folder.
        below: the folder behind which no component of ``path`` may be a link; None: all are followed.
        make: make what is missing.
        pool: bounds how many folders are open while nobody uses them; None: nothing does.

    Raises:
        OSError: there is no such folder, or a link stands in the way.

    Threads: everything may be called at any time.
    """

    def __init__(
        self, path: Path, below: Path | None = None, *, make: bool = False, pool: Pool | None = None
    ) -> None:
        self.path = path
        self._below = below
        self._make = make
        self._file = OpenFile(self._open, pool)
        self._identity: Identity | None = None
        if make and (below is None or not _BY_FD):
            _check_no_links(path, below)
            os.makedirs(path, exist_ok=True)
        if _BY_FD:
            with self._file as fd:
                facts = os.fstat(fd)
        else:
            _check_no_links(path, below)
            facts = os.stat(path)
            if not stat.S_ISDIR(facts.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        self._identity = identity_of(facts)
        self.device = facts.st_dev

    def is_there(self) -> bool:
        """Whether its path still leads to it."""
        try:
            return identity_of(os.stat(self.path)) == self._identity
        except OSError:
            return False

    def rest(self) -> None:
        """Hold nothing open for now; the next use opens the same folder again, or fails."""
        self._file.rest()

    def close(self) -> None:
        """Let go of it. Harmless when repeated."""
        self._file.shut()

    def _open(self) -> int:
        fd = _walk(self.path, self._below, self._make and self._identity is None)
        if self._identity not in (None, identity_of(os.fstat(fd))):
            os.close(fd)
            raise InTheWay("another folder stands in the place of the one that files were going to")
        return fd

    def _use(self) -> AbstractContextManager[int | None]:
        return self._file if _BY_FD else nullcontext()

    def _at(self, fd: int | None, name: str) -> str:
        return name if fd is not None else os.path.join(self.path, name)

    def open_folder(self) -> int:
        """A descriptor of the folder, the caller's to close."""
        with self._use() as fd:
            return os.open(self.path, _FOLDER_FLAGS) if fd is None else os.dup(fd)

    # -- files

    def open_new(self, name: str) -> int:
        """Make a file that was not there, for its owner only."""
        with self._use() as fd:
            return os.open(self._at(fd, name), _FILE_FLAGS | os.O_CREAT | os.O_EXCL, _PRIVATE, dir_fd=fd)

    def open_lock(self, name: str) -> int:
        """Open a file for its owner only, made where it is missing."""
        with self._use() as fd:
            return os.open(self._at(fd, name), _FILE_FLAGS | os.O_CREAT, _PRIVATE, dir_fd=fd)

    def open_existing(self, name: str) -> int:
        """Open a file for reading and writing, not through a link."""
        with self._use() as fd:
            return os.open(self._at(fd, name), _FILE_FLAGS, dir_fd=fd)

    def open_to_read(self, name: str) -> int:
        """Open a file for reading; never through a link, and never waiting for a pipe."""
        with self._use() as fd:
            return os.open(self._at(fd, name), _READ_FLAGS, dir_fd=fd)

    def look(self, name: str) -> os.stat_result | None:
        """What stands under a name, a link itself included; None if nothing does."""
        with self._use() as fd:
            try:
                return os.stat(self._at(fd, name), dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._use() as fd, suppress(FileNotFoundError):
            os.unlink(self._at(fd, name), dir_fd=fd)

    def move_new(self, source: str, target: str) -> None:
        """Give a file another name that is not taken; raises FileExistsError. Durable when the folder is synced."""
        with self._use() as fd:
            if fd is None:
                move_new(self.path / source, self.path / target)
            elif sys.platform == "linux":
                from .. import folder_io

                folder_io.move_new(fd, os.fsencode(source), fd, os.fsencode(target))
            else:
                move_new(source, target, fd)

    def move_over(self, source: str, target: str) -> None:
        """Give a file another name in place of what has it. Durable when the folder is synced."""
        with self._use() as fd:
            os.replace(self._at(fd, source), self._at(fd, target), src_dir_fd=fd, dst_dir_fd=fd)

    def set_facts(self, mode: int | None, mtime_ns: int | None) -> None:
        """Set mode and mtime of the folder itself."""
        with self._use() as fd:
            target = self.path if fd is None else fd
            if mode is not None:
                os.chmod(target, mode & MODE_BITS)
            if mtime_ns is not None:
                set_mtime(target, mtime_ns)

    @contextmanager
    def entries(self) -> Iterator[Iterator[os.DirEntry[str]]]:
        """What lies in the folder."""
        with self._use() as fd, os.scandir(self.path if fd is None else fd) as found:
            yield found

    def sync(self) -> None:
        """Make the names in it durable, where the system can."""
        with self._use() as fd:
            if fd is not None:
                os.fsync(fd)


def _walk(path: Path, below: Path | None, make: bool) -> int:
    """Open a folder, not through a link behind ``below``."""
    if below is None:
        return os.open(path, _FOLDER_FLAGS)
    fd = os.open(below, _FOLDER_FLAGS)
    for name in path.relative_to(below).parts:
        above = fd
        try:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=above)
            fd = os.open(name, _FOLDER_FLAGS | _NOFOLLOW, dir_fd=above)
        except OSError as exc:
            raise _say_link(exc, above, name) from exc
        finally:
            os.close(above)
    return fd


def _say_link(error: OSError, above: int, name: str) -> OSError | InTheWay:
    with suppress(OSError):
        if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
            return _link_in_the_way(name)
    return error


def _link_in_the_way(name: str) -> InTheWay:
    return InTheWay(f"'{name}' is a symbolic link here, and is not followed unless you say --keep-dirlinks")


def _check_no_links(path: Path, below: Path | None) -> None:
    """The same by paths, where folders cannot be held open."""
    if below is None:
        return
    at = below
    for name in path.relative_to(below).parts:
        at = at / name
        if at.is_symlink():
            raise _link_in_the_way(name)

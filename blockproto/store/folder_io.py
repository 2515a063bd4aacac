"""File operations relative to directory fds, which no name and no symlink can lead out of a folder.

Every path is walked component by component with ``O_NOFOLLOW | O_DIRECTORY``; nothing here takes a path with
a slash. What Python's ``os`` lacks comes from libc: ``syncfs``, ``fallocate`` (never glibc's emulation, which
writes), and ``renameat2``. Linux only; the client's store of part files does without this module.

Foreign errors are translated here and in ``ledger``: ``refusal`` tells an ``OSError`` that concerns one file
from one that means the medium can no longer be trusted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from ..common.names import show_name
from ..errors import NotPermitted, StoreFailed, UnknownFile
from .os_errors import refusal, refusal_of_one

_FALLOC_FL_KEEP_SIZE = 1
_RENAME_NOREPLACE = 1
_AT_EMPTY_PATH = 0x1000

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_UNNAMED_FLAGS = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

SYNC_EACH_MAX = 8
"""How many files or folders are synced one by one; for more, one ``syncfs`` is cheaper."""

_TMPFS_MAGIC = 0x01021994
_SYNCED_UNNAMED = {_TMPFS_MAGIC, 0xEF53, 0x58465342}
"""tmpfs, ext2 to ext4, XFS: fsync(2) of a file without a name makes it durable for when it gets one. Not so on btrfs."""

_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS}
"""What is reported where a file system makes no files without a name."""

_NO_LINK_BY_DESCRIPTOR = {errno.ENOENT, errno.EINVAL, errno.ENOSYS}
"""What linkat(2) of a descriptor reports where the system wants its path, which is slower (before 6.10, of all but root)."""

_WORD_LENGTH = ctypes.sizeof(ctypes.c_long)
_STATFS_LENGTH = 512
"""More than any ``struct statfs``, whose first word is the file system's magic."""

_libc = ctypes.CDLL(None, use_errno=True)


def _libc_function(name: str, *argtypes: type) -> Callable[..., int] | None:
    try:
        function = getattr(_libc, name)
    except AttributeError:
        return None
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_syncfs = _libc_function("syncfs", ctypes.c_int)
_fallocate = _libc_function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fstatfs = _libc_function("fstatfs", ctypes.c_int, ctypes.c_char_p)
_linkat = _libc_function("linkat", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_renameat2 = _libc_function(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def syncfs(fd: int) -> None:
    """Write everything of the file system of ``fd`` to its medium.

    Durability: reports write errors since ``fd`` was opened (Linux >= 5.8), so keep one fd open from the
        start.
    """
    if _syncfs is None:
        os.sync()
    elif _syncfs(fd) != 0:
        _raise_errno()


def _kind_of_file_system(fd: int) -> int:
    """The magic number of the file system of ``fd``; 0 where the system does not tell."""
    facts = ctypes.create_string_buffer(_STATFS_LENGTH)
    if _fstatfs is None or _fstatfs(fd, facts) != 0:
        return 0
    return int.from_bytes(facts.raw[:_WORD_LENGTH], sys.byteorder)


def reserve(fd: int, position: int, length: int, *, in_memory: bool = False) -> bool:
    """Reserve room without changing the file's size; False where the file system cannot or has none left.

    Nothing is reserved in a tmpfs unless ``in_memory``: a write there says at once that there is no room, while reserving
    clears every page before it is written (a third of an upload's time).
    """
    if _fallocate is None or (not in_memory and _kind_of_file_system(fd) == _TMPFS_MAGIC):
        return False
    while _fallocate(fd, _FALLOC_FL_KEEP_SIZE, position, length) != 0:
        number = ctypes.get_errno()
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.ENOSYS, errno.EFBIG):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def move_new(from_fd: int, from_name: bytes, to_fd: int, to_name: bytes) -> None:
    """Give a file another name that is not taken.

    Raises:
        FileExistsError: the name is taken; nothing changed.

    Durability: not durable before ``to_fd`` is synced.
    """
    if _renameat2 is not None:
        if _renameat2(from_fd, from_name, to_fd, to_name, _RENAME_NOREPLACE) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            _raise_errno()
    os.link(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
    os.unlink(from_name, dir_fd=from_fd)


def move_over(from_fd: int, from_name: bytes, to_fd: int, to_name: bytes) -> None:
    """Give a file another name, atomically in place of what has it. Durable when ``to_fd`` is synced."""
    os.rename(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)


def open_root(path: str | bytes) -> int:
    """Open a folder the operator named; symlinks in its path are the operator's business."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_folder(above_fd: int, name: bytes) -> int:
    """Open one folder in another, never through a symlink."""
    return os.open(name, _FOLDER_FLAGS, dir_fd=above_fd)


def make_folder(above_fd: int, name: bytes, mode: int = 0o777) -> int:
    """Make a folder unless it is there, and open it."""
    with suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=above_fd)
    return open_folder(above_fd, name)


def create_file(folder_fd: int, name: bytes, mode: int) -> int:
    """Create a file that was not there; ``mode`` is narrowed by the umask."""
    return os.open(name, _CREATE_FLAGS, mode, dir_fd=folder_fd)


def create_unnamed(folder_fd: int, mode: int) -> int | None:
    """Create a file in a folder that has no name yet, and goes when it is closed before ``give_name``.

    Returns None where the file system makes no such files. ``mode`` is narrowed by the umask.
    """
    try:
        return os.open(b".", _UNNAMED_FLAGS, mode, dir_fd=folder_fd)
    except OSError as exc:
        if exc.errno in _NO_UNNAMED:
            return None
        raise


def give_name(own_fds: int, fd: int, folder_fd: int, name: bytes) -> None:
    """Give a file without a name one that is not taken, in the folder that it was created in, or another of that mount.

    Args:
        own_fds: /proc/self/fd, opened by this process (``open_own_fds``).
        fd: the file.
        folder_fd: where it goes.
        name: the name there.

    Raises:
        FileExistsError: the name is taken; nothing changed.

    Durability: not durable before ``folder_fd`` is synced.
    """
    global _linkat
    if _linkat is not None:
        if _linkat(fd, b"", folder_fd, name, _AT_EMPTY_PATH) == 0:
            return
        if ctypes.get_errno() not in _NO_LINK_BY_DESCRIPTOR:
            _raise_errno()
    os.link(b"%d" % fd, name, src_dir_fd=own_fds, dst_dir_fd=folder_fd, follow_symlinks=True)
    _linkat = None  # it is the system that takes no descriptor, not this folder


def open_own_fds() -> int | None:
    """Open the folder in which the descriptors of this process are, for ``give_name``; None where there is none.

    Not kept across a fork: then it is another process's.
    """
    try:
        return os.open("/proc/self/fd", _FOLDER_FLAGS)
    except OSError:
        return None


def syncs_unnamed(fd: int) -> bool:
    """Whether fsync(2) of a file that has no name yet is enough on the file system of ``fd``."""
    return _kind_of_file_system(fd) in _SYNCED_UNNAMED


def open_file(folder_fd: int, name: bytes) -> int:
    """Open a file of ours for reading and writing."""
    return os.open(name, _OPEN_FLAGS, dir_fd=folder_fd)


def open_to_read(folder_fd: int, name: bytes) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; never waits for a fifo, never opens a device. Returns its fd and what it is.

    Raises:
        UnknownFile: it is a symlink or something special.
        NotPermitted: it is a folder.
    """
    try:
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            raise NotPermitted("it is a folder")
        if not stat.S_ISREG(found.st_mode):
            raise UnknownFile
        fd = os.open(name, _READ_FLAGS, dir_fd=folder_fd)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise UnknownFile
        except BaseException:
            os.close(fd)
            raise
    except OSError as exc:
        raise refusal_of_one(exc) from exc
    return fd, found


def look(folder_fd: int, name: bytes) -> os.stat_result | None:
    """What stands under a name, a symlink itself included; None if nothing does."""
    try:
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def remove_file(folder_fd: int, name: bytes) -> bool:
    """Remove a file; False if it was not there."""
    try:
        os.unlink(name, dir_fd=folder_fd)
    except FileNotFoundError:
        return False
    return True


def write_all(fd: int, position: int, piece: bytes | memoryview) -> None:
    """``pwrite`` until all is written."""
    written = os.pwrite(fd, piece, position)
    while written < len(piece):
        written += os.pwrite(fd, piece[written:], position + written)


def read_into(fd: int, position: int, view: memoryview) -> int:
    """``pread`` into ``view`` until it is full or the file ends; returns how many bytes there were."""
    filled = 0
    while filled < len(view):
        count = os.preadv(fd, [view[filled:]], position + filled)
        if count == 0:
            break
        filled += count
    return filled


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """Something that has to stay where it is while a store is open.

    Attributes:
        what: what it is, for people.
        path: where it is, absolute.
        version: its (device, inode).
    """

    what: str
    path: str
    version: tuple[int, int]

    def is_there(self) -> bool:
        """Whether it is; what cannot be looked at is taken to be there.

        Raises:
            OSError: the medium reported an error.
        """
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as exc:
            if isinstance(refusal(exc), StoreFailed):
                raise
            return True
        return (found.st_dev, found.st_ino) == self.version

    def __str__(self) -> str:
        return f"{self.what} {show_name(self.path)}"


class Folders:
    """The folders under a root that one batch or one request needs, opened once each.

    Args:
        root_fd: the root; stays the caller's.
        open_max: how many are open at once (None: ``OPEN_MAX``); of more, those opened before are closed.

    Not kept between batches: an fd follows a folder that somebody moves elsewhere.
    """

    OPEN_MAX = 128

    def __init__(self, root_fd: int, *, open_max: int | None = None) -> None:
        self._root_fd = root_fd
        self._open_max = open_max or self.OPEN_MAX
        self._fds: dict[str, int] = {}
        self.changed: set[str] = set()

    def __enter__(self) -> Folders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close them all; harmless when repeated."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def open(self, folder: str) -> int:
        """The fd of a folder ("" is the root). It stays ours, and valid until the next call.

        Raises:
            OSError: there is none, or a symlink or a file stands in its path.
        """
        return self._walk(folder, make=False)

    def nearest(self, folder: str) -> int:
        """As ``open``; of a folder that is not there, the one in which it or what is above it will be made."""
        while True:
            try:
                return self._walk(folder, make=False)
            except FileNotFoundError:
                folder = folder.rpartition("/")[0]

    def make(self, folder: str) -> int:
        """As ``open``, making what is missing; what was changed by that is added to ``changed``."""
        return self._walk(folder, make=True)

    def _walk(self, folder: str, make: bool) -> int:
        known = self._fds.get(folder)
        if known is not None:  # as good as always, and asked twice for each of many small files
            return known
        opened = folder
        while opened and opened not in self._fds:
            opened = opened.rpartition("/")[0]
        fd = self._fds[opened] if opened else self._root_fd
        for name in folder[len(opened) :].lstrip("/").split("/") if opened != folder else ():
            above, above_fd = opened, fd
            try:
                fd = open_folder(above_fd, name.encode())
            except FileNotFoundError:
                if not make:
                    raise
                fd = make_folder(above_fd, name.encode())
                self.changed.add(above)
            if len(self._fds) >= self._open_max:
                self.close()
            opened = f"{above}/{name}" if above else name
            self._fds[opened] = fd
        return fd

    def forget(self, folder: str) -> None:
        """A folder was removed: it and what was in it are not open any more, and need no sync."""
        inside = folder + "/"
        for name in [name for name in self._fds if name == folder or name.startswith(inside)]:
            os.close(self._fds.pop(name))
        self.changed = {name for name in self.changed if name != folder and not name.startswith(inside)}

    def sync(self) -> None:
        """Make the changes durable: few folders one by one, many or those that do not open by one ``syncfs``."""
        changed, self.changed = self.changed, set()
        if len(changed) > SYNC_EACH_MAX or not all(map(self._sync_one, changed)):
            syncfs(self._root_fd)

    def _sync_one(self, folder: str) -> bool:
        """Make the names in a folder durable; False if it does not open. Synced before the next is opened (see ``open``)."""
        try:
            fd = self.open(folder)
        except OSError:
            return False
        os.fsync(fd)
        return True

"""Partial: the bytes of one unfinished upload, in a file under a random name.

The file is created on the first byte, in the folder of partials and nowhere else; it gets its final name by a rename
when it is complete and durable. Room is reserved ahead of the write position, never more than has come: what a hundred OPENs
of a tebibyte say, or a byte here and there, reserves nothing.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...common.blocks import BLOCK_LENGTH
from ...common.times import set_mtime
from ...errors import StoreFailed, UnknownUpload
from .. import Facts
from ..folder_io import create_file, look, open_file, read_into, remove_file, reserve, write_all
from ..os_errors import refusal
from .descriptors import Descriptor, Descriptors
from .free_space import FreeSpace

RESERVE_LENGTH = 64 << 20
"""Bytes reserved at once ahead of the write position, at the most."""

NEAR = 16 << 20
"""Bytes that come so close behind what came last go on with it: several connections send blocks of one file."""

FILE_MODE = 0o666
"""Permission bits of a file whose sender states none; narrowed by the umask."""


class Partial:
    """One partial file, shared by everybody who has its upload open.

    Args:
        folder_fd: the folder of partials; stays the caller's.
        descriptors: the open files of the store.
        room: the disk's.
        storage_id: 16 bytes; the name in hex.
        filesize: bytes it will have, or None while unknown.
        exists: whether the file was created before.
        recorded: whether the ledger knows it; if not, its bytes go when the last user lets go.
        mode: permission bits to create it with.

    Threads: ``write`` and ``read_into`` may run at once; so may ``release`` of another user.
    """

    __slots__ = (
        "_came",
        "_file",
        "_filesize",
        "_folder_fd",
        "_free_space",
        "_from",
        "_lock",
        "_mode",
        "_reserved_to",
        "_settled",
        "_to",
        "_unseen",
        "_unsynced",
        "_users",
        "exists",
        "gone",
        "name",
        "new",
        "recorded",
        "storage_id",
    )

    def __init__(
        self,
        folder_fd: int,
        descriptors: Descriptors,
        room: FreeSpace,
        storage_id: bytes,
        filesize: int | None,
        *,
        exists: bool = False,
        recorded: bool = False,
        mode: int | None = None,
    ) -> None:
        self.storage_id = storage_id
        self.name = storage_id.hex().encode()
        self.exists = exists
        self.recorded = recorded
        self.gone = False
        self.new = False
        self._folder_fd = folder_fd
        self._filesize = filesize
        self._mode = FILE_MODE if mode is None else mode | 0o600
        self._file = Descriptor(descriptors, self._open, self._has_rested)
        self._unsynced = self._unseen = False
        self._users = 0
        self._free_space = room
        self._came = self._from = self._to = 0
        self._reserved_to = 1 if exists else 0  # the process before may have reserved
        self._settled: tuple[tuple[int | None, int | None, int], os.stat_result] | None = None
        self._lock = threading.Lock()

    # -- who has it

    def take(self) -> None:
        """Another user."""
        with self._lock:
            self._users += 1

    def release(self) -> bool:
        """One user less; the last one closes the file and returns True."""
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return False
            self._unreserve()
            self._file.close()
            if not self.recorded and self.exists and not self.gone:
                self.gone = True
                with suppress(OSError):
                    remove_file(self._folder_fd, self.name)
            return True

    def leave(self) -> None:
        """The file is no partial any more: it got its final name, or was removed."""
        with self._lock:
            self.gone = True
            self._file.close()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The open file; it is not closed before the block has ended, or its number would be another file's."""
        fd = self._take()
        try:
            yield fd
        finally:
            self._file.give()

    def _take(self) -> int:
        if self.gone:
            raise UnknownUpload("the upload has ended")
        return self._file.take()

    def _has_rested(self) -> None:
        """It was closed before it was synced: what the medium reports meanwhile only a sync of everything hears."""
        self._unseen |= self._unsynced

    def hold(self) -> bool:
        """Keep it open for its sync, until ``let_go``; False if it cannot be, or if a sync of everything is needed."""
        unseen, self._unseen = self._unseen, False
        if unseen:
            return False
        try:
            self._take()
        except (OSError, UnknownUpload):
            return False
        self._unsynced = False
        return True

    def let_go(self) -> None:
        """It is synced."""
        self._file.give()

    def _open(self) -> int:
        if self.gone:
            raise UnknownUpload("the upload has ended")
        if self.exists:
            return open_file(self._folder_fd, self.name)
        fd = create_file(self._folder_fd, self.name, self._mode)
        self.exists = self.new = True
        return fd

    # -- its bytes

    def write(self, position: int, piece: memoryview) -> None:
        """Write ``piece`` at ``position``; the errors are those of the port's ``Upload.write``."""
        try:
            fd = self._take()
            try:  # not the context manager: it costs as much as a small write, on the path of every byte
                self._settled = None
                self._unsynced = True
                end = position + len(piece)
                self._free_space.take(len(piece))
                self._goes_on(position, end)
                if end > self._reserved_to and self._came >= BLOCK_LENGTH:
                    self._reserve(fd, end)
                write_all(fd, position, piece)
            finally:
                self._file.give()
        except OSError as exc:
            raise refusal(exc) from exc

    def _goes_on(self, position: int, end: int) -> None:
        """Count the bytes of one run: those that come near each other."""
        if self._from <= position <= self._to + NEAR:
            self._came += end - position
            self._to = max(self._to, end)
        else:
            self._from, self._to, self._came = position, end, end - position
            self._reserved_to = min(self._reserved_to, position)

    def _reserve(self, fd: int, position: int) -> None:
        """Reserve as much behind ``position`` as has come, and as is free."""
        length = min(RESERVE_LENGTH, self._came, self._free_space.free())
        end = position + length
        if self._filesize is not None:
            end = min(end, self._filesize)
        self._reserved_to = max(end, position)
        if end > position:
            reserve(fd, position, end - position)

    def _unreserve(self) -> None:
        """Give back what is reserved behind the end: nobody knows when the rest comes."""
        if not self._reserved_to or not self.exists or self.gone:
            return
        with suppress(OSError, UnknownUpload), self._opened() as fd:
            os.ftruncate(fd, os.fstat(fd).st_size)
        self._reserved_to = 1

    def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from ``position`` on; 0 if nothing was written yet."""
        if not self.exists:
            return 0
        try:
            with self._opened() as fd:
                return read_into(fd, position, view)
        except OSError as exc:
            raise refusal(exc) from exc

    # -- on the way to its final name

    def settle(self, facts: Facts, size: int) -> os.stat_result:
        """Give the file its final size, mode and mtime; repeated without effect.

        Returns:
            What it is then, for the receipt.

        Raises:
            OSError: as the system reports it.
            UnknownUpload: bytes are missing.
        """
        wanted = facts.mtime_ns, facts.mode, size
        if self._settled is not None and self._settled[0] == wanted:
            return self._settled[1]
        with self._opened() as fd:
            found = settle_file(fd, facts, size, cut=bool(self._reserved_to))
        self._settled = wanted, found
        return found

    def is_openable(self) -> bool:
        """Open it; False where that fails for want of files or rights, which need not stop a sync of everything.

        Raises:
            UnknownUpload: there is no such file.
        """
        try:
            if self.exists:
                with self._opened():
                    return True
        except FileNotFoundError:
            pass
        except OSError:
            return False
        if self.recorded:
            self.check_there()
        raise UnknownUpload("nothing was written, or it is gone")

    def check_there(self) -> None:
        """Raise StoreFailed if the file is not there: what of it was acknowledged would be gone at the next start.

        For whoever gives it its name: nobody else knows whether it may have one by now.
        """
        if not self.gone and look(self._folder_fd, self.name) is None:
            raise StoreFailed(f"the partial {self.name.decode()} was removed under the running server")

    def sync(self) -> None:
        """Make bytes, mode and mtime durable.

        Raises:
            OSError: the medium reported an error; nothing may be acknowledged any more.
        """
        with self._opened() as fd:
            os.fsync(fd)

    def datasync(self) -> None:
        """Make the bytes durable; as ``sync`` else."""
        with self._opened() as fd:
            os.fdatasync(fd)


def settle_file(fd: int, facts: Facts, size: int, *, cut: bool) -> os.stat_result:
    """Give an open file its final size, mode and mtime.

    Args:
        fd: the file.
        facts: mode and mtime, where stated.
        size: bytes.
        cut: whether room was reserved that may lie behind its end.

    Returns:
        What it is then.

    Raises:
        OSError: as the system reports it.
        UnknownUpload: bytes are missing.
    """
    mtime_ns, mode = facts.mtime_ns, facts.mode
    if mtime_ns is not None:
        set_mtime(fd, mtime_ns)
    found = os.fstat(fd)
    mode_differs = mode is not None and stat.S_IMODE(found.st_mode) != mode
    if found.st_size == size and not mode_differs and not cut:
        return found
    if found.st_size < size:
        raise UnknownUpload("bytes of the partial are missing")
    os.ftruncate(fd, size)
    if mode is not None and mode_differs:
        with suppress(PermissionError):
            os.fchmod(fd, mode)
    if mtime_ns is not None:
        set_mtime(fd, mtime_ns)
    return os.fstat(fd)

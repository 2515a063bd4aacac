"""Partial: the bytes of one unfinished upload, in a file under a random name.

The file is created on the first byte, in the folder of partials and nowhere else; it gets its final name by a rename
when it is complete and durable. Room is reserved ahead of the write position, never more than has come: what a hundred OPENs
of a tebibyte say, or a byte here and there, reserves nothing.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from ...common.blocks import BLOCK_LENGTH
from ...errors import StoreFailed, UnknownUpload
from ..folder_io import look, remove_file, reserve, write_all
from ..open_file import Descriptors
from ..os_errors import refusal
from .free_space import FreeSpace
from .partial_file import PartialFile

RESERVE_LENGTH = 64 << 20
"""Bytes reserved at once ahead of the write position, at the most."""

NEAR = 16 << 20
"""Bytes that come so close behind what came last go on with it: several connections send blocks of one file."""


class Partial(PartialFile):
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
        "_filesize",
        "_free_space",
        "_from",
        "_lock",
        "_to",
        "_users",
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
        super().__init__(folder_fd, descriptors, storage_id, mode, exists=exists)
        self.storage_id = storage_id
        self.recorded = recorded
        self._filesize = filesize
        self._users = 0
        self._free_space = room
        self._came = self._from = self._to = 0
        self._reserved_to = 1 if exists else 0  # the process before may have reserved
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
            self._file.rest()
            if not self.recorded and self.exists and not self.gone:
                self.gone = True
                with suppress(OSError):
                    remove_file(self._folder_fd, self.name)
            return True

    def leave(self) -> None:
        """See ``PartialFile``; nobody releases it meanwhile."""
        with self._lock:
            super().leave()

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
        except UnknownUpload:
            if self.recorded:  # nobody gives it its name before the write returns
                self.check_there()
            raise

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

    # -- on the way to its final name

    def is_openable(self) -> bool:
        """Open it; False where that fails for want of files or rights, which need not stop a sync of everything.

        Raises:
            UnknownUpload: there is no such file.
        """
        try:
            if self.exists:
                with self._opened():
                    return True
        except UnknownUpload:
            pass
        except OSError:
            return False
        if self.recorded:
            self.check_there()
        raise UnknownUpload("nothing was written, or it is gone")

    def check_there(self) -> None:
        """Raise StoreFailed if the file is not there: what of it was acknowledged would be gone at the next start.

        For whoever gives it its name, or writes to it: nobody else knows whether it may have one by now.
        """
        if not self.gone and look(self._folder_fd, self.name) is None:
            raise StoreFailed(f"the partial {self.name.decode()} was removed under the running server")

    def datasync(self) -> None:
        """Make the bytes durable, but not mode and mtime; raises what ``sync`` raises."""
        with self._opened() as fd:
            os.fdatasync(fd)

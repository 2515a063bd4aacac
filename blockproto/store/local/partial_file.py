"""PartialFile: a file under a random name in the folder of partials, on the way to its final name.

It is created when it is first opened, opened when it is used, and held open for its sync: an error that the medium reports
while nobody has it open is heard by a sync of everything only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...common.times import set_mtime
from ...errors import UnknownUpload
from .. import Facts
from ..folder_io import create_file, open_file, read_into
from ..open_file import Descriptors, OpenFile
from ..os_errors import refusal

FILE_MODE = 0o666
"""Permission bits of a file whose sender states none; narrowed by the umask."""


class PartialFile:
    """What partials of all uploads have in common.

    Args:
        folder_fd: the folder of partials; stays the caller's.
        descriptors: the open files of the store.
        storage_id: 16 bytes; the name in hex.
        mode: permission bits to create it with; None: the default.
        exists: whether the file was created before.

    Attributes:
        name: its name in the folder of partials.
        exists: whether it was created.
        gone: whether it got its final name or was removed: then nobody opens it any more.
        new: whether its entry in the folder of partials is not synced yet.
    """

    __slots__ = (
        "_file",
        "_folder_fd",
        "_mode",
        "_reserved_to",
        "_settled",
        "_unseen",
        "_unsynced",
        "exists",
        "gone",
        "name",
        "new",
    )

    def __init__(
        self,
        folder_fd: int,
        descriptors: Descriptors,
        storage_id: bytes,
        mode: int | None,
        *,
        exists: bool = False,
    ) -> None:
        self.name = storage_id.hex().encode()
        self.exists = exists
        self.gone = False
        self.new = False
        self._folder_fd = folder_fd
        self._mode = FILE_MODE if mode is None else mode | 0o600
        self._file = OpenFile(self._open, descriptors, self._has_rested)
        self._unsynced = self._unseen = False
        self._reserved_to = 0
        self._settled: tuple[tuple[int | None, int | None, int], os.stat_result] | None = None

    def leave(self) -> None:
        """Let nobody use it any more: it got its final name, or was removed."""
        self.gone = True
        self._file.rest()

    # -- open

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

    def _open(self) -> int:
        if self.gone:
            raise UnknownUpload("the upload has ended")
        if self.exists:
            try:
                return open_file(self._folder_fd, self.name)
            except FileNotFoundError as exc:  # of ours: no file that anybody asked for by name
                raise UnknownUpload("its bytes are gone from the server's folder of partials") from exc
        fd = create_file(self._folder_fd, self.name, self._mode)
        self.exists = self.new = True
        return fd

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

    # -- its bytes

    def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from ``position`` on; 0 if nothing was written yet."""
        if not self.exists:
            return 0
        try:
            with self._opened() as fd:
                return read_into(fd, position, view)
        except OSError as exc:
            raise refusal(exc) from exc

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
            return self._settle(fd, facts, size)

    def _settle(self, fd: int, facts: Facts, size: int) -> os.stat_result:
        found = settle_file(fd, facts, size, cut=bool(self._reserved_to))
        self._settled = (facts.mtime_ns, facts.mode, size), found
        return found

    def sync(self) -> None:
        """Make bytes, mode and mtime durable.

        Raises:
            OSError: the medium reported an error; nothing may be acknowledged any more.
        """
        with self._opened() as fd:
            os.fsync(fd)


def settle_file(fd: int, facts: Facts, size: int, *, cut: bool) -> os.stat_result:
    """Give an open file its final size, mode and mtime.

    Args:
        fd: the file.
        facts: mode and mtime, where stated.
        size: bytes.
        cut: whether room was reserved that may lie behind its end.

    Returns:
        What it is then, for the receipt: its mode may still be the one of before.

    Raises:
        OSError: as the system reports it.
        UnknownUpload: bytes are missing.
    """
    mtime_ns, mode = facts.mtime_ns, facts.mode
    if mtime_ns is not None:
        set_mtime(fd, mtime_ns)
    found = os.fstat(fd)
    if mode is not None and stat.S_IMODE(found.st_mode) != mode:
        with suppress(PermissionError):
            os.fchmod(fd, mode)
    if found.st_size == size and not cut:
        return found
    if found.st_size < size:
        raise UnknownUpload("bytes of the partial are missing")
    os.ftruncate(fd, size)
    if mtime_ns is not None:
        set_mtime(fd, mtime_ns)
    return os.fstat(fd)

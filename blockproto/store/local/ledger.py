"""The ledger: what is durable, in LMDB.

Rules:
    1. Default flags only: LMDB then syncs data and meta page before a commit returns. 2. A transaction begins
       and ends in one function on one thread; a read transaction is never kept. 3. One process has it open
       (``store.py`` holds the lock). 4. Blocks are reserved behind the file's end (the ballast), so that
       refusals and deletes still commit on a full disk. LMDB grows its file by writing there.

An error of LMDB becomes StoreFull where the disk or the map is full (the transaction is undone, the store
lives on) and StoreFailed everywhere else: after a failed sync nothing that "succeeds" later proves anything.
LMDB reports a write that a full disk cut short as EIO, the same as a broken medium: so that is StoreFull
while the disk has hardly any room. A sync that failed in truth fails again then, or LMDB refuses to go on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from ...errors import StoreFailed, StoreFull
from ..folder_io import reserve
from ..os_errors import NO_ROOM
from .ledger_view import View
from .records import STATE_KEY

MAP_SIZE = 16 << 30
"""Bytes of address space, and the most the ledger can grow to; the file itself is as long as its content."""

MAP_USED_MAX = 0.8
"""New uploads are refused above this share of the map: a full map would make deletes fail too."""

READERS_MAX = 512
"""Read transactions at once, of all threads."""

BALLAST_LENGTH = 8 << 20
"""Bytes reserved behind the ledger's end."""

SCARCE_BYTES = 64 << 20
"""A disk with less free than this may have been full a moment before: files that did not fit are given up meanwhile."""

_ENGINE: dict[str, Any] = {"lib_version": 0} if int(lmdb.__version__.partition(".")[0]) >= 3 else {}
"""LMDB 0.9, whichever engines the binding has."""


class Ledger:
    """An open ledger; build it with ``open``."""

    def __init__(self, env: lmdb.Environment, file_fd: int) -> None:
        self._env = env
        self._file_fd = file_fd
        self._ballast_end = 0
        self._reserves = False

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """Open the ledger in ``folder``, which exists; make an empty one if it is not there.

        Raises:
            StoreFailed: it is damaged, or of a format that is not understood.
            StoreFull: no room for it.

        Durability: what it shows is on the medium, also when the process before was killed inside a commit.
        """
        with translated():
            env = lmdb.open(
                os.fsencode(folder),
                map_size=MAP_SIZE,
                max_readers=READERS_MAX,
                max_spare_txns=0,
                mode=0o600,
                **_ENGINE,
            )
        file_fd = os.open(folder / "data.mdb", os.O_RDWR | os.O_CLOEXEC)
        ledger = cls(env, file_fd)
        try:
            with translated():
                env.reader_check()
                env.sync(True)
            ledger._renew_ballast()
            with ledger.read() as view:
                if any(view.items(STATE_KEY)):
                    view.state()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def version(self) -> tuple[int, int]:
        """(device, inode) of its file, to see whether it is still the one in its folder."""
        found = os.fstat(self._file_fd)
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Let go of it; harmless when repeated."""
        if self._file_fd >= 0:
            self._env.close()
            os.close(self._file_fd)
            self._file_fd = -1

    @contextmanager
    def read(self) -> Iterator[View]:
        """A short read transaction.

        LMDB has ``READERS_MAX`` places for those, and takes one back only when the object is gone: an exception that is
        kept somewhere must not keep it, or as many refusals would end the store.
        """
        with translated():
            view = View(self._env.begin())
            try:
                yield view
            finally:
                view.end()

    @contextmanager
    def write(self) -> Iterator[View]:
        """The write transaction; commits when the block ends without an exception.

        Raises:
            StoreFull: the disk or the map is full; nothing of the transaction is kept.
            StoreFailed: anything else LMDB reports.

        Durability: durable when the block has ended.
        """
        with translated(self._short_of_room), self._env.begin(write=True) as txn:
            yield View(txn)
        self._renew_ballast()

    def crowded(self) -> bool:
        """Whether new uploads are to be refused because the map runs full."""
        info = self._env.info()
        return bool(info["last_pgno"] * 4096 > info["map_size"] * MAP_USED_MAX)

    def _renew_ballast(self) -> None:
        end = os.fstat(self._file_fd).st_size
        if self._ballast_end - end < BALLAST_LENGTH // 2:
            self._reserves |= self._reserve(end)
            self._ballast_end = end + BALLAST_LENGTH

    def _short_of_room(self) -> bool:
        """Whether a write may have been cut short for want of room on the disk, or in a quota on it."""
        disk = os.fstatvfs(self._file_fd)
        if disk.f_bavail * disk.f_frsize < SCARCE_BYTES:
            return True
        try:
            return self._reserves and not self._reserve(os.fstat(self._file_fd).st_size)
        except OSError:
            return False

    def _reserve(self, end: int) -> bool:
        return reserve(self._file_fd, end, BALLAST_LENGTH, in_memory=True)


@contextmanager
def translated(short_of_room: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """The border where LMDB's errors become ours; ``short_of_room`` tells what EIO means."""
    try:
        yield
    except lmdb.Error as exc:
        full = isinstance(exc, lmdb.DiskError | lmdb.MapFullError | lmdb.TxnFullError)
        number = getattr(exc, "code", None)
        if full or number in NO_ROOM or (number == errno.EIO and short_of_room()):
            raise StoreFull("the ledger has no room") from exc
        raise StoreFailed(f"the ledger reported: {exc}") from exc

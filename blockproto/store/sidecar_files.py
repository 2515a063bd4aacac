"""The files beside a destination: its partial, its ledger and its lock, with the order in which they are written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3
from filelock import FileLock, Timeout

from ..errors import NotPermitted, StoreFailed, StoreInUse
from ..times import mtime_of
from . import Facts, Finish, IfExists
from .portable import (
    move_new,
    open_existing,
    open_new,
    read_at,
    set_mode,
    set_mtime,
    sync_file,
    sync_folder,
    write_at,
)
from .refusals import refusal
from .rules import free_entries
from .sidecar_ledger import BEGIN, Begun, Final, SidecarLedger, record

_ENTRY_LENGTH_MAX = 255
PARTIAL_ENDING = ".blockproto-part"
_SUFFIXES = (PARTIAL_ENDING, ".blockproto-ledger", ".blockproto-lock")
_U64 = (1 << 64) - 1


class SidecarFiles:
    """The three files of one destination, locked.

    Args:
        dest: the destination. Its folder exists.
        first: position in the whole file of its first byte.

    Raises:
        StoreInUse: another process has them.
        NotPermitted: the folder cannot be written, or ``dest`` is a folder.

    Threads: ``write`` and ``read_into`` may run beside everything else.
    """

    def __init__(self, dest: Path, first: int) -> None:
        if not dest.parent.is_dir():
            raise NotPermitted("the folder of the destination is not there")
        if dest.is_dir():
            raise NotPermitted("the destination is a folder")
        self.partial, ledger_path, self._lock_path = paths_beside(dest)
        self.ledger = SidecarLedger(ledger_path)
        self._dest = dest
        self._first = first
        self._fd = -1
        self._mutex = threading.Lock()
        self._lock = FileLock(self._lock_path, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as exc:
            raise StoreInUse("another process is downloading to the same file") from exc
        except OSError as exc:
            raise refusal(exc) from exc

    def close(self) -> None:
        """Let go of them; a partial without a ledger is removed. Harmless when repeated."""
        if not self._lock.is_locked:
            return
        recorded = self.ledger.exists
        self._close_partial()
        self.ledger.close()
        with suppress(OSError):
            if not recorded:
                self.partial.unlink(missing_ok=True)
            if os.name != "nt":
                self._lock_path.unlink(missing_ok=True)
        self._lock.release()
        if os.name == "nt":
            with suppress(OSError):
                self._lock_path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove partial and ledger, if they are there."""
        with self._mutex:
            self._close_partial()
            self.partial.unlink(missing_ok=True)
        self.ledger.remove()

    def partial_size(self) -> int:
        """Bytes of the partial; -1 if there is none."""
        try:
            return self.partial.lstat().st_size
        except FileNotFoundError:
            return -1

    # -- the partial

    def write(self, position: int, piece: memoryview) -> None:
        """Write at a position of the whole file; the partial is made by that."""
        with self._mutex:
            write_at(self._open_partial(), position - self._first, piece)

    def read_into(self, position: int, view: memoryview) -> int:
        """Read from a position of the whole file; 0 where nothing was written."""
        with self._mutex:
            if self._fd < 0 and not self.partial.exists():
                return 0
            return read_at(self._open_partial(), position - self._first, view)

    def settle(self, finish: Finish) -> None:
        """Give the partial its final size, mode and mtime."""
        with self._mutex:
            fd = self._open_partial()
            os.ftruncate(fd, finish.filesize - self._first)
            _set_facts(fd, self.partial, finish.facts)

    def sync(self, *, metadata: bool) -> None:
        """Make the partial's bytes durable, with ``metadata`` its mode and mtime too.

        Raises:
            StoreFailed: the medium reported an error.
        """
        if self._fd < 0:
            return
        try:
            (os.fsync if metadata else sync_file)(self._fd)
        except OSError as exc:
            raise StoreFailed(f"the medium reported: {exc.strerror}") from exc

    def _open_partial(self) -> int:
        if self._fd < 0:
            try:
                self._fd = open_new(self.partial)
            except FileExistsError:
                self._fd = open_existing(self.partial)
        return self._fd

    def _close_partial(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- the ledger

    def append(self, begun: Begun, records: bytes) -> None:
        """Append to the ledger; the first records are preceded by what was begun.

        Durability: durable when this returns; the bytes it speaks of were synced before.
        """
        if not self.ledger.exists:
            records = record(BEGIN, begun.pack()) + records
        if self.ledger.append(records):
            self.sync_folder()

    # -- the final name

    def final(self, work: Finish, target: str) -> Final:
        """What the partial is, on its way to a name."""
        found = self.partial.lstat()
        return Final(work.root, work.filesize, found.st_ino & _U64, found.st_size, mtime_of(found), target)

    def is_final(self, final: Final) -> bool:
        """Whether a commit's file is there, as it was committed."""
        try:
            found = (self._dest.parent / final.target).lstat()
        except OSError:
            return False
        there = found.st_ino & _U64, found.st_size, mtime_of(found)
        return there == (final.ino, final.size, final.mtime_ns)

    @property
    def taken(self) -> bool:
        """Whether something has the final name."""
        return os.path.lexists(self._dest)

    def targets(self, if_exists: IfExists) -> Iterator[str]:
        """The names to try in turn."""
        yield self._dest.name
        if if_exists is IfExists.KEEP:
            yield from free_entries(self._dest.name)

    def give_name(self, target: str, if_exists: IfExists) -> None:
        """Give the partial its final name.

        Raises:
            FileExistsError: it is taken.

        Durability: durable when this returns.
        """
        path = self._dest.parent / target
        with self._mutex:
            self._close_partial()
            if if_exists is IfExists.REPLACE:
                os.replace(self.partial, path)
            else:
                move_new(self.partial, path)
        self.sync_folder()

    def sync_folder(self) -> None:
        """Make the names in the folder durable; raises StoreFailed when the medium reported an error."""
        try:
            sync_folder(self._dest.parent)
        except OSError as exc:
            raise StoreFailed(f"the medium reported: {exc.strerror}") from exc


def _set_facts(fd: int, path: Path, facts: Facts) -> None:
    if facts.mode is not None:
        set_mode(fd, facts.mode)
    if facts.mtime_ns is not None:
        set_mtime(path, facts.mtime_ns)


def paths_beside(dest: Path) -> tuple[Path, Path, Path]:
    """Partial, ledger and lock."""
    stem = stem_beside(dest.name)
    part, ledger, lock = (dest.with_name(stem + suffix) for suffix in _SUFFIXES)
    return part, ledger, lock


def stem_beside(name: str) -> str:
    """What the names beside a file begin with: a name too long for their endings is cut and told apart by its BLAKE3."""
    encoded = os.fsencode(name)
    room = _ENTRY_LENGTH_MAX - max(len(suffix) for suffix in _SUFFIXES)
    if len(encoded) <= room:
        return name
    return f"{encoded[: room - 17].decode(errors='ignore')}-{blake3(encoded).hexdigest()[:16]}"

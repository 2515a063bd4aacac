"""The files beside a destination: its partial, its ledger and its lock, with the order in which they are written."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from blake3 import blake3

from ...common.names import show_name
from ...common.times import mtime_of
from ...errors import NotPermitted
from .. import Destination, Finish, UploadKey
from ..open_file import OpenFile
from ..os_errors import refusal_here, refusal_of_sync
from .final_name import CompleteFile, check_regular
from .ledger import BEGIN, Begun, Final, PartFileLedger, Record, read_ledger
from .part_names import OLD_LEDGER, OLD_LOCK, OLD_PARTIAL, PartFileLock, check_ours, is_ours, names_of
from .portable_io import read_at, set_facts, sync_file, write_at
from .target_folder import TargetFolder

_ENTRY_LENGTH_MAX = 255
_U64 = (1 << 64) - 1


class PartFiles:
    """The three files of one destination, locked.

    Args:
        dest: the destination. Its folder exists.
        first: position in the whole file of its first byte.

    Raises:
        StoreInUse: another process has them.
        NotPermitted: the folder cannot be written, or something that is no regular file stands under the destination's name.

    Threads: ``write`` and ``read_into`` may run beside everything else; ``close`` and ``remove`` wait for them.
    """

    def __init__(self, dest: Destination, first: int) -> None:
        self._dest = dest
        self._first = first
        self._names = names_of(dest.label)
        self._file = OpenFile(self._open_partial)
        self._mutex = threading.Lock()
        self._there = False
        self._closed = False
        try:
            self._place = TargetFolder(dest.path.parent, dest.below)
        except FileNotFoundError as exc:
            raise NotPermitted(f"the folder {show_name(str(dest.path.parent))} does not exist") from exc
        except OSError as exc:
            raise refusal_here(exc) from exc
        try:
            check_regular(self._place.look(dest.path.name))
            self._lock = PartFileLock(self._place, self._names.lock)
        except OSError as exc:
            self._place.close()
            raise refusal_here(exc) from exc
        except BaseException:
            self._place.close()
            raise
        self.ledger = PartFileLedger(self._place, self._names.ledger)

    def close(self) -> None:
        """Let go of them, when no write runs any more; a partial without a ledger is removed. Harmless when repeated."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            recorded = self.ledger.exists
            self._file.shut()
            self.ledger.close()
            with suppress(OSError):
                if not recorded and self._there:
                    self._place.remove(self._names.partial)
            self._lock.release()
            self._place.close()

    def remove(self) -> None:
        """Remove partial and ledger, if they are there."""
        with self._mutex:
            self._file.rest()
            check_ours(self._place.look(self._names.partial), self._names.partial)
            self._place.remove(self._names.partial)
            self._there = False
        self.ledger.remove()

    def partial_size(self) -> int:
        """Bytes of the partial; -1 if there is none that can be gone on with.

        Raises:
            NotPermitted: what has its name is not ours.
        """
        found = self._place.look(self._names.partial)
        check_ours(found, self._names.partial)
        self._there = (
            found is not None and found.st_nlink == 1
        )  # else it has another name: it is a finished file
        return -1 if found is None or not self._there else found.st_size

    def adopt(self, key: UploadKey) -> bool:
        """Take over what an earlier version left beside the destination, if it is the beginning of the same file.

        It kept a download as ``NAME.blockproto-part`` and a ledger beside it. Without a ledger that speaks of this very
        file, such a file is the user's own and stays.

        Raises:
            StoreInUse: a program of that version is downloading it.
        """
        stem = old_stem(self._dest.path.name)
        begun = read_ledger(self._place, stem + OLD_LEDGER)
        if begun is None or (begun.key, begun.first) != (key, self._first):
            return False
        partial = self._place.look(stem + OLD_PARTIAL)
        if begun.facts.filename.text != self._dest.path.name or partial is None or not is_ours(partial):
            return False
        lock = PartFileLock(self._place, stem + OLD_LOCK)
        try:
            self.remove()
            self._place.move_new(stem + OLD_PARTIAL, self._names.partial)
            self._place.move_new(stem + OLD_LEDGER, self._names.ledger)
            self.sync_folder()
        finally:
            lock.release()
        return True

    # -- the partial

    def write(self, position: int, piece: memoryview) -> None:
        """Write at a position of the whole file; the partial is made by that."""
        with self._mutex, self._file as fd:
            write_at(fd, position - self._first, piece)

    def read_into(self, position: int, view: memoryview) -> int:
        """Read from a position of the whole file; 0 where nothing was written."""
        with self._mutex:
            if not self._there:
                return 0
            with self._file as fd:
                return read_at(fd, position - self._first, view)

    def settle(self, finish: Finish) -> None:
        """Give the partial its final size, mode and mtime."""
        with self._mutex, self._file as fd:
            os.ftruncate(fd, finish.filesize - self._first)
            set_facts(fd, self._place.path, self._names.partial, finish.facts.mode, finish.facts.mtime_ns)

    def sync(self, *, metadata: bool) -> None:
        """Make the partial's bytes durable, with ``metadata`` its mode and mtime too.

        Raises:
            StoreFailed: the medium reported an error.
            TooFewFiles: it could not be opened for that.
        """
        if not self._file.is_open:
            return
        try:
            with self._file as fd:
                (os.fsync if metadata else sync_file)(fd)
        except OSError as exc:
            raise refusal_of_sync(exc) from exc

    def _open_partial(self) -> int:
        if self._there:
            return self._place.open_existing(self._names.partial)
        fd = self._place.open_new(self._names.partial)
        self._there = True
        return fd

    # -- the ledger

    def append(self, begun: Begun, records: Sequence[Record]) -> None:
        """Append to the ledger; the first records are preceded by what was begun.

        Durability: durable when this returns; the bytes it speaks of were synced before.
        """
        if not self.ledger.exists:
            records = [(BEGIN, begun.pack()), *records]
        if self.ledger.append(records):
            self.sync_folder()

    # -- the final name

    def final(self, work: Finish, target: str) -> Final:
        """What the partial is, on its way to a name."""
        with self._file as fd:
            found = os.fstat(fd)
        return Final(work.root, work.filesize, found.st_ino & _U64, found.st_size, mtime_of(found), target)

    def found(self, work: Finish, target: str) -> Final:
        """What a file is that had the name, and the same content, already."""
        found = self._place.look(target)
        if found is None:
            raise FileNotFoundError(target)
        return Final(work.root, work.filesize, found.st_ino & _U64, found.st_size, mtime_of(found), target)

    def is_final(self, final: Final) -> bool:
        """Whether a commit's file is there, as it was committed."""
        try:
            found = self._place.look(final.target)
        except OSError:
            return False
        if found is None:
            return False
        there = found.st_ino & _U64, found.st_size, mtime_of(found)
        return there == (final.ino, final.size, final.mtime_ns)

    def taken_by_other(self, filesize: int | None) -> bool:
        """Whether something has the final name that cannot be the file of ``filesize`` bytes."""
        found = self._place.look(self._dest.path.name)
        return found is not None and (filesize is None or found.st_size != filesize)

    def give_name(self, finish: Finish, announce: Callable[[str], None]) -> tuple[str, bool]:
        """Give the partial its final name; see ``CompleteFile.give_name``.

        Durability: durable when this returns.
        """
        partial = self._names.partial
        with self._file as fd:
            found = os.fstat(fd)
        complete = CompleteFile(self._place, partial, found, self._file, self._dest, finish.facts, announce)
        target, there = complete.give_name()
        with self._mutex:
            self._file.rest()
            if there:
                self._place.remove(partial)
            self._there = False
        self.sync_folder()
        return target, there

    def sync_folder(self) -> None:
        """Make the names in the folder durable; raises StoreFailed when the medium reported an error."""
        try:
            self._place.sync()
        except OSError as exc:
            raise refusal_of_sync(exc) from exc


def old_stem(name: str) -> str:
    """What the names beside a file began with in the version before: one too long was cut and told apart by its BLAKE3."""
    encoded = os.fsencode(name)
    room = _ENTRY_LENGTH_MAX - len(OLD_LEDGER)
    if len(encoded) <= room:
        return name
    return f"{encoded[: room - 17].decode(errors='ignore')}-{blake3(encoded).hexdigest()[:16]}"

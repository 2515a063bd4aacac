"""Prepared files: whole files that are made before their batch, in the time in which another one waits for the disk.

    prepare → PreparedFiles.make, in a thread of its own → FileBatch takes a file with all its bytes, and names it

Such a file has no name yet (``new_file.py``), so nothing of it stays that no batch takes. What cannot be prepared is made
in the batch, which then says why it cannot be; what nobody has begun to prepare when its batch comes is made there, too.

A batch and what is prepared meanwhile take turns (``Turns``): beside each other they would be slower than one after another,
because each of their system calls would hand the interpreter over to the other thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from weakref import WeakSet

from ...errors import StoreFailed
from .. import FOLDER_FILETYPE, WholeFile
from ..folder_io import Folders, open_own_fds
from ..os_errors import refusal
from .new_file import make_unnamed

PREPARED_LEAST = 16
"""Of fewer files it takes longer to wake the thread."""

PREPARED_LENGTH_MAX = 16 << 20
"""Bytes of all files that are prepared at once: whoever waits for a sync of everything waits for them, too."""

Made = tuple[int, os.stat_result]
"""A file without a name: its descriptor, and what it is."""


class Turns:
    """Lets a batch work, or what prepares files, never both; a batch goes before.

    Threads: one for batches, one for what is prepared.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deciding = self._preparing = False

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """A batch works, and does not wait for the disk."""
        with self._changed:
            self._deciding = True
            while self._preparing:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._deciding = False
                self._changed.notify_all()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Some files are prepared, for a few milliseconds."""
        with self._changed:
            while self._deciding:
                self._changed.wait()
            self._preparing = True
        try:
            yield
        finally:
            with self._changed:
                self._preparing = False
                self._changed.notify_all()


class PreparedFiles:
    """The files of one work. Everything is called in turns (``Turns``).

    Args:
        files: of the work, in their order.
        written: called when all of them are made, and their contents released.
        ended: called once with how many they were and their bytes, when no more of them can be prepared.

    Attributes:
        released: whether the bytes of the files are in what was made only.
    """

    def __init__(
        self, files: Sequence[WholeFile], written: Callable[[], None], ended: Callable[[int, int], None]
    ) -> None:
        self._files = files
        self._room = len(files), sum(file.length for file in files)
        self._written = written
        self._ended = ended
        self._made: dict[tuple[int, int], Made] = {}
        self._failed: StoreFailed | None = None
        self.released = False

    def make(self, root_fd: int) -> None:
        """Make the files, unless their batch has come already; what goes wrong is left to ``begin`` and to the batch."""
        files, self._files = self._files, ()
        try:
            with Folders(root_fd) as folders:
                self._make(files, folders)
        except OSError as exc:
            error = refusal(exc)
            self._failed = error if isinstance(error, StoreFailed) else None
            return
        if files and len(self._made) == sum(file.facts.filetype != FOLDER_FILETYPE for file in files):
            self.released = True
            for file in files:
                if isinstance(file.content, memoryview):
                    file.content.release()
            self._written()

    def _make(self, files: Sequence[WholeFile], folders: Folders) -> None:
        made, last, folder_fd = self._made, None, -1
        for file in files:
            facts = file.facts
            if facts.filetype == FOLDER_FILETYPE or _key(file) in made:
                continue
            folder = facts.filename.text.rpartition("/")[0]
            if folder != last:
                last, folder_fd = folder, folders.nearest(folder)
            one = make_unnamed(folder_fd, facts, file.content)
            if one is None:
                return
            made[_key(file)] = one

    def begin(self) -> None:
        """Their batch has come: nothing more is prepared.

        Raises:
            StoreFailed: the medium reported an error while they were.
        """
        self._end()
        if self._failed is not None:
            raise self._failed

    def take(self, file: WholeFile) -> Made | None:
        """The file, if it was made; the descriptor is the caller's then."""
        return self._made.pop(_key(file), None)

    def put(self, file: WholeFile, made: Made) -> None:
        """Keep a file for a later batch that was taken, or made instead; nobody else closes it."""
        self._made[_key(file)] = made

    @property
    def left(self) -> bool:
        """Whether there are files that nobody took or dropped."""
        return bool(self._made)

    def drop(self, file: WholeFile) -> None:
        """Close a file, if it was made and nobody took it."""
        made = self.take(file)
        if made is not None:
            os.close(made[0])

    def close(self) -> None:
        """Close all that nobody took. Harmless when repeated, and done when no work refers to them any more."""
        self._end()
        while self._made:
            _, (fd, _) = self._made.popitem()
            os.close(fd)

    __del__ = close

    def _end(self) -> None:
        self._files = ()
        room, self._room = self._room, (0, 0)
        if room[0]:
            self._ended(*room)


def _key(file: WholeFile) -> tuple[int, int]:
    """What tells the files of a work apart while it is there: two with the same facts and bytes are one."""
    return id(file.facts), id(file.content)


class Preparer:
    """Prepares the whole files of one store.

    Args:
        root_fd: the served folder; stays the caller's.
        open_max: how many prepared files may be open at once.
        free: how many bytes uploads may still take of the disk.

    Attributes:
        turns: the batches' and its own.
    """

    def __init__(self, root_fd: int, open_max: int, free: Callable[[], int]) -> None:
        self.turns = Turns()
        self._root_fd = root_fd
        self._free = free
        self._room = open_max
        self._length_room = PREPARED_LENGTH_MAX
        self._lock = threading.RLock()  # what is collected as garbage may end while it is held
        self._known: WeakSet[PreparedFiles] = WeakSet()
        self._thread: ThreadPoolExecutor | None = None
        own_fds = open_own_fds()
        self._closed = own_fds is None  # no such file could get its name
        if own_fds is not None:
            os.close(own_fds)

    def prepare(self, files: Sequence[WholeFile], written: Callable[[], None]) -> PreparedFiles | None:
        """See the port."""
        count, length = len(files), sum(file.length for file in files)
        if count < PREPARED_LEAST or self._closed:
            return None
        with self._lock:
            if self._room < count or self._length_room < length:
                return None
            self._room -= count
            self._length_room -= length
            prepared = PreparedFiles(files, written, self._ended)
            self._known.add(prepared)
        try:
            self._thread = self._thread or ThreadPoolExecutor(1, "blockproto-prepare")
            self._thread.submit(self._make, prepared)
        except (RuntimeError, MemoryError, OSError):  # no thread: the batch makes them
            prepared.close()
            return None
        return prepared

    def _make(self, prepared: PreparedFiles) -> None:
        with self.turns.preparing():
            if self._free() >= PREPARED_LENGTH_MAX:  # else the batch looks how much each file may still take
                prepared.make(self._root_fd)

    def _ended(self, count: int, length: int) -> None:
        with self._lock:
            self._room += count
            self._length_room += length

    def close(self) -> None:
        """Close what was prepared and never decided. Harmless when repeated."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(cancel_futures=True)
        for prepared in tuple(self._known):
            prepared.close()

"""The sources of a client's uploads: a file, or a stream of unknown length; both are a ``transfer.send_source.Source``.

Nothing here needs more than portable Python: where there is no ``os.pread``, a lock keeps seek and read together.
"""

from __future__ import annotations

import errno
import inspect
import logging
import mimetypes
import os
import stat
import threading
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path

import trio

from ..common.blocks import BLOCK_LENGTH, FILESIZE_MAX, block_span
from ..common.names import SafeName, show_name
from ..common.times import SaidOnce
from ..errors import Refused, SourceChanged
from ..store import FOLDER_FILETYPE, Facts, IfExists
from ..transfer.slow_disk import local_disk
from .regular_file import open_regular

ENDING_LENGTH_MAX = 32
"""How many characters at the end of a name decide its MIME type."""

LOOKS_MAX = 5
"""How often a file is read again because its inode changed while it was being sent."""

STREAM_WINDOW_BYTES = 16 << 20
"""Bytes of a stream that are kept until they are durable on the server, so that they can be sent again."""


TIMES = SaidOnce(logging.getLogger(__name__).warning)
"""Logs once in a process that a file's time cannot be sent as it is."""


def filetype_of(name: str) -> str:
    """The MIME type that a name suggests."""
    return _filetype_of_ending(name.rpartition("/")[2].partition(".")[2][-ENDING_LENGTH_MAX:].lower())


@lru_cache(maxsize=1024)
def _filetype_of_ending(ending: str) -> str:
    return mimetypes.guess_type(f"x.{ending}")[0] or "application/octet-stream"


class FileSource:
    """A file of this machine, opened for reading.

    Args:
        path: of the file.
        name: its name on the server.
        if_exists: what to do when that name is taken there.
        filetype: MIME type; None guesses from the name.

    Raises:
        OSError: it cannot be opened.
        Refused: it is not a regular file.
        NameRefused: the name breaks a rule.
    """

    first = 0
    window_bytes: int | None = None

    def __init__(self, path: Path, name: str, if_exists: IfExists, filetype: str | None = None) -> None:
        filename = SafeName.parse(name)
        self.path = os.path.realpath(path)
        if os.path.isdir(path):
            raise Refused(f"{show_name(str(path))} is not a regular file: upload_all sends folders")
        self._file = os.fdopen(open_regular(path), "rb", buffering=0)
        self.stat = os.fstat(self._file.fileno())
        if self.stat.st_size > FILESIZE_MAX:
            self._file.close()
            raise Refused(f"{show_name(str(path))} is larger than what travels: {FILESIZE_MAX} bytes")
        self.facts = Facts(
            filename=filename,
            filetype=filetype or filetype_of(name),
            filesize=self.stat.st_size,
            mtime_ns=TIMES.look(self.stat, os.fspath(path)),
            mode=stat.S_IMODE(self.stat.st_mode) & 0o777,
            if_exists=if_exists,
        )
        self.end: int | None = self.stat.st_size
        self._lock = threading.Lock()
        self._looks = 0

    async def read_block(self, blockno: int, memory: memoryview) -> memoryview:
        """See Source."""
        assert self.end is not None
        position, length = block_span(blockno, 0, self.end)
        view = memory[:length]
        if await local_disk().read(self.read_into, position, view) != length:
            raise SourceChanged(f"{self.facts.filename.text} became shorter while it was being sent")
        return view

    def read_into(self, position: int, view: memoryview) -> int:
        """See Source."""
        done = 0
        while done < len(view):
            read = self._read_some(position + done, view[done:])
            if read == 0:
                break
            done += read
        return done

    def durable(self, blockno: int) -> None:
        """See Source."""

    def unchanged(self) -> bool:
        """See Source. The inode's change time shows a write whose modification time was set back; also a mere chmod."""
        return not self.is_another() and os.fstat(self._file.fileno()).st_ctime_ns == self.stat.st_ctime_ns

    def is_another(self) -> bool:
        """Whether the file has another size or time now, and so another sourceid (``derive_sourceid``)."""
        now = os.fstat(self._file.fileno())
        return (now.st_size, now.st_mtime_ns) != (self.stat.st_size, self.stat.st_mtime_ns)

    def look_again(self) -> bool:
        """Take the file as it is now; returns False if it did not change, or changed ``LOOKS_MAX`` times."""
        changed = not self.unchanged()
        self.stat = os.fstat(self._file.fileno())
        self._looks += 1
        return changed and self._looks < LOOKS_MAX

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_some(self, position: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], position)
        with self._lock:
            self._file.seek(position)
            return self._file.readinto(view) or 0


ReadSome = Callable[[memoryview], Awaitable[int]]


class StreamSource:
    """Bytes that can be read once, from a pipe or a program, and whose end is not known before.

    Blocks are kept until they are durable on the server, at most ``STREAM_WINDOW_BYTES``.

    Args:
        read_some: fills a view with at least one byte and returns how many; 0 at the end.
        facts: with ``filesize`` None.

    Attributes:
        durable_length: how many of its bytes are durable on the other side.
    """

    first = 0
    window_bytes: int | None = STREAM_WINDOW_BYTES

    def __init__(self, read_some: ReadSome, facts: Facts) -> None:
        self.facts = facts
        self.end: int | None = None
        self._read_some = read_some
        self.durable_length = 0
        self._kept: dict[int, memoryview] = {}
        self._next = 0

    async def read_block(self, blockno: int, memory: memoryview) -> memoryview:
        """See Source."""
        if blockno in self._kept:
            return self._kept[blockno]
        if blockno != self._next:
            raise SourceChanged(
                f"{self.facts.filename.text}: block {blockno} has gone by and cannot be read again"
            )
        block = memoryview(bytearray(BLOCK_LENGTH))
        filled = 0
        while filled < BLOCK_LENGTH:
            read = await self._read_some(block[filled:])
            if read == 0:
                break
            filled += read
        self._next += 1
        if filled:
            self._kept[blockno] = block[:filled]
        return block[:filled]

    def read_into(self, position: int, view: memoryview) -> int:
        """See Source; only what is kept can be read again."""
        block = self._kept.get(position // BLOCK_LENGTH)
        if block is None:
            return 0
        view[:] = block[: len(view)]
        return len(view)

    def durable(self, blockno: int) -> None:
        """See Source."""
        self.durable_length += len(self._kept.pop(blockno, b""))

    def unchanged(self) -> bool:
        """See Source."""
        return True

    def close(self) -> None:
        """Let go of what is kept."""
        self._kept.clear()


def reader_of(source: object) -> ReadSome:
    """Read from ``source``: a Trio stream (``receive_some``) or a binary file (``readinto``), Trio's own included.

    Raises:
        TypeError: it is neither.

    The returned function raises BlockingIOError for a file that is non-blocking and has nothing now: that is not its end.
    """
    receive_some = getattr(source, "receive_some", None)
    if receive_some is not None:

        async def receive(view: memoryview) -> int:
            received = await receive_some(len(view))
            view[: len(received)] = received
            return len(received)

        return receive
    readinto = getattr(source, "readinto1", None) or getattr(source, "readinto", None)
    if readinto is None:
        raise TypeError(f"{type(source).__name__} is neither a path, nor a binary file, nor a Trio stream")

    async def read(view: memoryview) -> int:
        if inspect.iscoroutinefunction(readinto):
            count = await readinto(view)
        else:
            # A read from a pipe or terminal may never return: a cancelled upload leaves its thread behind.
            count = await trio.to_thread.run_sync(readinto, view, abandon_on_cancel=True)
        if count is None:
            raise BlockingIOError(errno.EAGAIN, "the source is non-blocking and has nothing to read now")
        return int(count)

    return read


def folder_facts(name: str, facts: os.stat_result) -> Facts:
    """The facts of a folder entry."""
    return Facts(
        filename=SafeName.parse(name),
        filetype=FOLDER_FILETYPE,
        filesize=0,
        mtime_ns=TIMES.look(facts, name),
        mode=stat.S_IMODE(facts.st_mode) & 0o777,
    )

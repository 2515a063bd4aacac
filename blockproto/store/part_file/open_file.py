"""OpenFile: a descriptor that several threads use and one of them closes.

A descriptor that is closed while a write runs is given to the next file that is opened, and the write goes into that one. So
``rest`` and ``shut`` never close under somebody's hands: the last who gives the descriptor back does it then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ...errors import UnknownUpload


class OpenFile:
    """A file that is opened when it is first used.

    Threads: everything may be called at any time.
    """

    __slots__ = ("_busy", "_closing", "_fd", "_lock", "_shut")

    def __init__(self) -> None:
        self._fd = -1
        self._busy = 0
        self._closing = False
        self._shut = False
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether there is a descriptor now."""
        return self._fd >= 0

    def take(self, open_it: Callable[[], int]) -> int:
        """The descriptor, opened with ``open_it`` where it is not open; ``give`` follows.

        Raises:
            UnknownUpload: it was shut.
            OSError: what ``open_it`` raises.
        """
        with self._lock:
            if self._shut:
                raise UnknownUpload("the transfer has ended")
            if self._fd < 0:
                self._fd = open_it()
            self._busy += 1
            return self._fd

    def give(self) -> None:
        """The use that ``take`` began has ended."""
        with self._lock:
            self._busy -= 1
            if self._closing:
                self._close()

    def use(self, open_it: Callable[[], int]) -> Use:
        """``take`` and ``give``, as a context."""
        return Use(self, open_it)

    def rest(self) -> None:
        """Close it as soon as nobody uses it; the next use opens it again."""
        with self._lock:
            self._close()

    def shut(self) -> None:
        """The same, and it is never opened again. Harmless when repeated."""
        with self._lock:
            self._shut = True
            self._close()

    def _close(self) -> None:
        self._closing = self._fd >= 0 and self._busy > 0
        if self._fd >= 0 and not self._closing:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Use:
    """One use of an open file; a class, for a generator would take as long as what it is used for.

    Args:
        file, open_it: as for ``OpenFile.take``.
    """

    __slots__ = ("_file", "_open_it")

    def __init__(self, file: OpenFile, open_it: Callable[[], int]) -> None:
        self._file = file
        self._open_it = open_it

    def __enter__(self) -> int:
        return self._file.take(self._open_it)

    def __exit__(self, *_: object) -> None:
        self._file.give()

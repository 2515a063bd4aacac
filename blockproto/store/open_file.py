"""OpenFile: a file that is open when it is used, and that several threads use while one of them closes it.

A descriptor that is closed while a write runs is given to the next file that is opened, and the write goes into that one. So
nothing here closes under somebody's hands: the last who gives the descriptor back does it then.

    take ── opened, if it was not ──→ in use ── give ──→ resting ── rest, try_rest or shut ──→ closed
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ..errors import UnknownUpload


class Pool(Protocol):
    """What hears of files that are opened and closed, and closes some of them (``OpenFile.try_rest``)."""

    def opened(self, one: OpenFile) -> None:
        """A file was opened; called without its lock."""

    def closed(self, one: OpenFile) -> None:
        """A file was closed, and not by the pool; called without its lock."""


class OpenFile:
    """A file that is opened when it is first used, and again where it was closed meanwhile.

    As a context it is ``take`` and ``give``; a class, for a generator would take as long as what it is used for.

    Args:
        open_file: opens it and returns the descriptor; raises what ``take`` raises.
        pool: bounds how many files are open while nobody uses them; None: nothing does.
        on_rest: called when the pool closed it; it can be opened again.

    Threads: everything may be called at any time.
    """

    __slots__ = (
        "_busy",
        "_closing",
        "_fd",
        "_lock",
        "_on_rest",
        "_open_file",
        "_pool",
        "_shut",
        "lately_used",
    )

    def __init__(
        self,
        open_file: Callable[[], int],
        pool: Pool | None = None,
        on_rest: Callable[[], None] | None = None,
    ) -> None:
        self.lately_used = False
        self._open_file = open_file
        self._pool = pool
        self._on_rest = on_rest
        self._fd = -1
        self._busy = 0
        self._closing = False
        self._shut = False
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether there is a descriptor now."""
        return self._fd >= 0

    def take(self) -> int:
        """Return the descriptor, opened where it is not open; ``give`` follows.

        Raises:
            UnknownUpload: it was shut.
            OSError: as opening it raises.
        """
        opened = False
        with self._lock:
            if self._shut:
                raise UnknownUpload("the transfer has ended")
            if self._fd < 0:
                self._fd = self._open_file()
                opened = True
            self._busy += 1
            self.lately_used = True
            fd = self._fd
        if opened and self._pool is not None:
            self._pool.opened(self)
        return fd

    def give(self) -> None:
        """End the use that ``take`` began."""
        with self._lock:
            self._busy -= 1
            closed = self._closing and self._close_soon()
        if closed and self._pool is not None:
            self._pool.closed(self)

    def __enter__(self) -> int:
        return self.take()

    def __exit__(self, *_: object) -> None:
        self.give()

    def adopt(self, fd: int) -> None:
        """Take over a descriptor that the caller opened."""
        self._fd = fd
        self.lately_used = True
        if self._pool is not None:
            self._pool.opened(self)

    def rest(self) -> None:
        """Close it as soon as nobody uses it; the next use opens it again. Harmless when repeated."""
        with self._lock:
            closed = self._close_soon()
        if closed and self._pool is not None:
            self._pool.closed(self)

    def shut(self) -> None:
        """The same, and it is never opened again."""
        self._shut = True
        self.rest()

    def try_rest(self) -> bool:
        """Close it unless it is in use, and return whether it is closed; for the pool: it never waits for its lock."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._busy:
                return False
            if self._fd >= 0:
                self._close()
                if self._on_rest is not None:
                    self._on_rest()
            return True
        finally:
            self._lock.release()

    def _close_soon(self) -> bool:
        if self._fd < 0:
            return False
        if self._busy:
            self._closing = True
            return False
        self._close()
        return True

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        self._closing = False
        os.close(fd)


class Descriptors:
    """The open files of one store, and how many of them may rest; the ``Pool`` that each of them has.

    Args:
        most: how many stay open while nobody uses them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: deque[OpenFile] = deque()
        self._lock = threading.Lock()

    def opened(self, one: OpenFile) -> None:
        """One more is open: close others that rest, those first that were not used lately."""
        with self._lock:
            self._open.append(one)
            for _ in range(2 * len(self._open)):
                if len(self._open) <= self._most:
                    return
                other = self._open.popleft()
                if other is one or other.lately_used or not other.try_rest():
                    other.lately_used = False
                    self._open.append(other)

    def closed(self, one: OpenFile) -> None:
        """It was closed for good."""
        with self._lock:
            if one in self._open:
                self._open.remove(one)

    def rest(self) -> None:
        """Close all that nobody uses."""
        with self._lock:
            self._open = deque(one for one in self._open if not one.try_rest())

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

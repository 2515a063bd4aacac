"""Descriptors: files that are open because somebody may read or write them again, and how many of those there are at most.

A transfer that stands still needs no open file: what was closed here is opened again when the transfer goes on. So a peer
with thousands of streams takes as many descriptors as are in use at one moment, and ``RESTING_MAX`` for all together.

    take ── opened, if it was not ──→ in use ── give ──→ resting ── too many rest ──→ closed

Threads: ``take`` and ``give`` of any files may run at once. A file is never closed while it is in use: its number would be
another file's.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import deque
from collections.abc import Callable

RESTING_MAX = 128
"""Open files that nobody uses at this moment, where the system lets us open many."""
RESTING_SHARE = 8
"""Otherwise this fraction (one in N) of them."""


def resting_max() -> int:
    """How many files a store keeps open while nobody uses them."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(RESTING_MAX, files // RESTING_SHARE))


class Descriptors:
    """The open files of one store.

    Args:
        most: how many stay open while nobody uses them.
    """

    def __init__(self, most: int = RESTING_MAX) -> None:
        self._most = most
        self._open: deque[Descriptor] = deque()
        self._lock = threading.Lock()

    def opened(self, one: Descriptor) -> None:
        """One more is open: close others that rest, those first that were not used lately."""
        with self._lock:
            self._open.append(one)
            for _ in range(2 * len(self._open)):
                if len(self._open) <= self._most:
                    return
                other = self._open.popleft()
                if other is one or other.lately_used or not other.rest():
                    other.lately_used = False
                    self._open.append(other)

    def closed(self, one: Descriptor) -> None:
        """It was closed for good."""
        with self._lock:
            if one in self._open:
                self._open.remove(one)

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)


class Descriptor:
    """One file that is open when it is used.

    Args:
        pool: all those of the store.
        open_file: opens it; raises what ``take`` raises.
        on_rest: called when it is closed because others need its descriptor; it can be opened again.
    """

    __slots__ = ("_busy", "_closing", "_fd", "_lock", "_on_rest", "_open_file", "_pool", "lately_used")

    def __init__(
        self, pool: Descriptors, open_file: Callable[[], int], on_rest: Callable[[], None] = lambda: None
    ) -> None:
        self.lately_used = False
        self._pool = pool
        self._open_file = open_file
        self._on_rest = on_rest
        self._fd = -1
        self._busy = 0
        self._closing = False
        self._lock = threading.Lock()

    def take(self) -> int:
        """The open file, until ``give``; raises what opening it raises."""
        opened = False
        with self._lock:
            if self._fd < 0:
                self._fd = self._open_file()
                opened = True
            self._busy += 1
            self.lately_used = True
            fd = self._fd
        if opened:
            self._pool.opened(self)
        return fd

    def give(self) -> None:
        """It is not in use any more."""
        with self._lock:
            self._busy -= 1
            if self._closing and not self._busy:
                self._close()

    def adopt(self, fd: int) -> None:
        """It was opened by the caller."""
        self._fd = fd
        self.lately_used = True
        self._pool.opened(self)

    def close(self) -> None:
        """Close it, as soon as it is not in use. Harmless when repeated."""
        with self._lock:
            if self._fd < 0:
                return
            if self._busy:
                self._closing = True
                return
            self._close()
        self._pool.closed(self)

    def rest(self) -> bool:
        """Close it unless it is in use; whether it is closed now. Called with the pool's lock, never waits for its own."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._busy:
                return False
            if self._fd >= 0:
                self._close()
                self._on_rest()
            return True
        finally:
            self._lock.release()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._closing = False

"""Descriptors: files that are open because somebody may read or write them again, and how many of those there are at most.

A transfer that stands still needs no open file: what was closed here is opened again when the transfer goes on. So a peer
with thousands of streams takes as many descriptors as are in use at one moment, and ``RESTING_MAX`` for all together.

Threads: everything may be called at any time. A file that is in use is never closed (``OpenFile``).
"""

from __future__ import annotations

import resource
import threading
from collections import deque

from ..open_file import OpenFile

RESTING_MAX = 128
"""Open files that nobody uses at this moment, where the system lets us open many."""
RESTING_SHARE = 8
"""Otherwise this fraction (one in N) of them."""


def resting_max() -> int:
    """How many files a store keeps open while nobody uses them."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(RESTING_MAX, files // RESTING_SHARE))


class Descriptors:
    """The open files of one store; the ``Pool`` that each of them has.

    Args:
        most: how many stay open while nobody uses them.
    """

    def __init__(self, most: int = RESTING_MAX) -> None:
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

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open)

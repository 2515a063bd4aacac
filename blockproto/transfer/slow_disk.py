"""The disk: the only place that notices a slow disk."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import trio

from ..store import Upload
from .threads import Kind, run_in_thread

QUICK_S = 0.005
"""A call that takes longer than this is slow; after two of the last ones, calls leave the Trio thread."""
HANGING_S = 0.2
"""After one call that takes longer than this they do so, too: a busy machine does not delay a call that much."""
_LAST_CALLS = 16
_SLOW_AT = 2

T = TypeVar("T")


class Disk:
    """Runs short writes and reads: inline while the disk is quick, in a worker thread while it is slow.

    Going to a thread costs as much as writing a block to the page cache, but a write that waits for a slow disk would hold
    up everything. So the durations of the last calls decide.
    """

    def __init__(self) -> None:
        self._slow = False
        self._last: deque[int] = deque([0] * _LAST_CALLS, maxlen=_LAST_CALLS)

    @property
    def slow(self) -> bool:
        """Whether store calls leave the Trio thread now."""
        return self._slow

    async def write(self, upload: Upload, position: int, piece: memoryview) -> None:
        """Call ``upload.write``; raises as that. Cancellation: a write that runs in a thread is waited for."""
        if upload.in_memory:
            upload.write(position, piece)  # its duration says nothing about the disk
        elif self.slow:
            await run_in_thread(lambda: self._timed(lambda: upload.write(position, piece)), Kind.WRITE)
        else:
            self._timed(lambda: upload.write(position, piece))

    async def read(self, reader: Callable[[int, memoryview], int], position: int, view: memoryview) -> int:
        """Call ``reader(position, view)``; raises as that. Cancellation: a read that runs in a thread is waited for."""
        return await self.run(lambda: reader(position, view))

    async def run(self, work: Callable[[], T]) -> T:
        """Call ``work``, which reads for a short time; raises as that. Cancellation: if it runs in a thread, wait for it."""
        return await run_in_thread(lambda: self._timed(work), Kind.READ) if self.slow else self._timed(work)

    def _timed(self, work: Callable[[], T]) -> T:
        begun = time.perf_counter()
        try:
            return work()
        finally:
            self.took(time.perf_counter() - begun)

    def took(self, duration_s: float) -> None:
        """Count a call of ``duration_s`` seconds: it decides whether the next ones leave the Trio thread."""
        points = _SLOW_AT if duration_s > HANGING_S else int(duration_s > QUICK_S)
        self._last.append(points)
        if points or self._slow:
            self._slow = sum(self._last) >= _SLOW_AT


_local_disk: trio.lowlevel.RunVar[Disk] = trio.lowlevel.RunVar("local_disk")


def local_disk() -> Disk:
    """The disk that all downloads of this program share, so that one learns from the other."""
    try:
        return _local_disk.get()
    except LookupError:
        _local_disk.set(Disk())
        return _local_disk.get()

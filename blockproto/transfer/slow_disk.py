"""The disk: the one place where a slow disk is noticed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import trio

from ..store import Upload
from .threads import Kind, run_in_thread

QUICK_S = 0.005
"""A write that takes longer than this is slow (store calls leave the Trio thread while any of the last ones was)."""
HANGING_S = 0.2
"""A write that takes longer than this is not the scheduler's doing: one is enough."""
_LAST_CALLS = 16
_SLOW_AT = 2

T = TypeVar("T")


class Disk:
    """Writes and reads of the Trio thread: inline while they are quick, in a worker thread while they are not.

    A hop to a thread costs as much as writing a block to the page cache; a write that waits for a slow disk would hold
    everybody. So the durations of the last writes decide.
    """

    def __init__(self) -> None:
        self._slow = False
        self._last: deque[int] = deque([0] * _LAST_CALLS, maxlen=_LAST_CALLS)

    @property
    def slow(self) -> bool:
        """Whether store calls leave the Trio thread now: one slow call can be the scheduler's doing, two are the disk's."""
        return self._slow

    async def write(self, upload: Upload, position: int, piece: memoryview) -> None:
        """``upload.write``; raises what it raises. Cancellation: a write begun in a thread is waited for."""
        if upload.in_memory:
            upload.write(position, piece)  # how quick that was tells nothing of the disk
        elif self.slow:
            await run_in_thread(lambda: self._timed(lambda: upload.write(position, piece)), Kind.WRITE)
        else:
            self._timed(lambda: upload.write(position, piece))

    async def read(self, reader: Callable[[int, memoryview], int], position: int, view: memoryview) -> int:
        """``reader(position, view)``; raises what it raises. Cancellation: a read begun in a thread is waited for."""
        return await self.run(lambda: reader(position, view))

    async def run(self, work: Callable[[], T]) -> T:
        """Any short ``work`` that reads files; raises what it raises. Cancellation: work begun in a thread is waited for."""
        return await run_in_thread(lambda: self._timed(work), Kind.READ) if self.slow else self._timed(work)

    def _timed(self, work: Callable[[], T]) -> T:
        begun = time.perf_counter()
        try:
            return work()
        finally:
            self.took(time.perf_counter() - begun)

    def took(self, duration_s: float) -> None:
        """Count a call that took ``duration_s``: what follows stays on the Trio thread or leaves it."""
        points = _SLOW_AT if duration_s > HANGING_S else int(duration_s > QUICK_S)
        self._last.append(points)
        if points or self._slow:
            self._slow = sum(self._last) >= _SLOW_AT


_local_disk: trio.lowlevel.RunVar[Disk] = trio.lowlevel.RunVar("local_disk")


def local_disk() -> Disk:
    """The disk of this machine, as a client knows it: what one file has shown counts for the next."""
    try:
        return _local_disk.get()
    except LookupError:
        _local_disk.set(Disk())
        return _local_disk.get()

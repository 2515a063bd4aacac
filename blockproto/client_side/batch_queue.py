"""A queue whose consumer takes all items at once.

A memory channel wakes its consumer for each item; with thousands of small results a second the waking costs more than the
work. Putting never waits; a producer that must not get too far ahead waits for ``emptied`` now and then.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class BatchQueue(Generic[T]):
    """A queue of one consumer."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._closed = False
        self._filled = trio.Event()
        self._emptied = trio.Event()
        self._emptied.set()

    def put(self, item: T) -> None:
        """Add an item."""
        self.put_all([item])

    def put_all(self, items: Sequence[T]) -> None:
        """Add items."""
        self._items += items
        if self._items:
            self._filled.set()
            if self._emptied.is_set():
                self._emptied = trio.Event()

    def close(self) -> None:
        """Add nothing more."""
        self._closed = True
        self._filled.set()

    async def take(self) -> list[T]:
        """Wait for items and take all; an empty list when it is closed and empty. Cancellation: nothing is taken."""
        await self._filled.wait()
        items, self._items = self._items, []
        if not self._closed:
            self._filled = trio.Event()
        self._emptied.set()
        return items

    async def emptied(self) -> None:
        """Wait until the consumer has taken everything."""
        await self._emptied.wait()


async def taken_from(
    nursery: trio.Nursery, run: Callable[[BatchQueue[T]], Awaitable[None]], *, to_the_end: bool = False
) -> AsyncGenerator[list[T], None]:
    """Start ``run`` in ``nursery`` and yield what it puts, many things at once, until it returns.

    Closing the generator cancels it.

    Args:
        nursery: where it runs.
        run: puts things into the queue that it is given.
        to_the_end: wait until it has ended, also when it was cancelled.
    """
    queue: BatchQueue[T] = BatchQueue()
    scope = trio.CancelScope()
    over = trio.Event()

    async def running() -> None:
        try:
            with scope:
                await run(queue)
        finally:
            queue.close()
            over.set()

    nursery.start_soon(running)
    try:
        while some := await queue.take():
            yield some
    finally:
        scope.cancel()
        if to_the_end:
            with trio.CancelScope(shield=True):
                await over.wait()

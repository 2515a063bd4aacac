"""Results on their way to a consumer, handed over many at a time.

A memory channel wakes its consumer for each item; with thousands of small results a second the waking costs more than the
work. Here the consumer takes everything there is. Putting never waits; a producer that must not run away waits for
``emptied`` now and then.
"""

from __future__ import annotations

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
        self._items.append(item)
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

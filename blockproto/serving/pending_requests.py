"""The unanswered requests of one connection, and how many of them are worked on at once.

A connection may ask on thousands of streams at once. A request that waits here takes no task, no thread and no memory for
its answer. Requests of different kinds do not wait for each other.

Spec: BP1-LIM-007.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from .task_guard import TaskGuard

PAGES_AT_ONCE = 2
"""Pages of a list; more would only wait for each other and for threads that other connections need."""
DIGESTS_AT_ONCE = 16
"""Requests that wait for the digest of a file."""
REMOVALS_AT_ONCE = 256
"""Removals, which are made durable together."""

Question = Callable[[], Awaitable[None]]


class PendingRequests:
    """The requests of one connection.

    Args:
        guard: runs the tasks that answer them; they may outlive the connection.
    """

    __slots__ = ("digests", "files", "pages", "removals")

    def __init__(self, guard: TaskGuard) -> None:
        self.files = RequestQueue(guard, 1)
        self.pages = RequestQueue(guard, PAGES_AT_ONCE)
        self.digests = RequestQueue(guard, DIGESTS_AT_ONCE)
        self.removals = RequestQueue(guard, REMOVALS_AT_ONCE)


class RequestQueue:
    """Requests of one kind, first come, first served.

    Args:
        guard: runs the tasks that answer them.
        at_once: how many tasks there are at most.
    """

    __slots__ = ("_at_once", "_guard", "_waiting", "_working")

    def __init__(self, guard: TaskGuard, at_once: int) -> None:
        self._guard = guard
        self._at_once = at_once
        self._waiting: deque[Question] = deque()
        self._working = 0

    @property
    def count(self) -> int:
        """How many wait or are worked on."""
        return len(self._waiting) + self._working

    def put(self, question: Question) -> None:
        """Call ``question`` when its turn comes."""
        self._waiting.append(question)
        if self._working < self._at_once:
            self._working += 1
            self._guard.start_soon(self._work_off)

    async def _work_off(self) -> None:
        try:
            while self._waiting:
                await self._waiting.popleft()()
        finally:
            self._working -= 1

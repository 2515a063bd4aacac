"""The questions of one connection that were asked and are not answered yet, and how many are worked out at once.

A connection may ask on thousands of streams at once. What waits here is a question and nothing else: no task, no thread, no
memory for its answer. Questions of different kinds do not wait for each other.

Spec: BP1-LIM-007.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from .task_guard import TaskGuard

PAGES_AT_ONCE = 2
"""Pages of a list; more would only wait for each other, and for the threads that others want too."""
DIGESTS_AT_ONCE = 16
"""Those who wait for the digest of a file."""
REMOVALS_AT_ONCE = 256
"""They are made durable together."""

Question = Callable[[], Awaitable[None]]


class PendingRequests:
    """What was asked on one connection.

    Args:
        guard: where it is worked out; it may outlive the connection.
    """

    __slots__ = ("digests", "pages", "removals")

    def __init__(self, guard: TaskGuard) -> None:
        self.pages = RequestQueue(guard, PAGES_AT_ONCE)
        self.digests = RequestQueue(guard, DIGESTS_AT_ONCE)
        self.removals = RequestQueue(guard, REMOVALS_AT_ONCE)


class RequestQueue:
    """Questions that wait for their turn, the first first.

    Args:
        guard: where they are worked out.
        at_once: how many at once.
    """

    __slots__ = ("_at_once", "_guard", "_waiting", "_working")

    def __init__(self, guard: TaskGuard, at_once: int) -> None:
        self._guard = guard
        self._at_once = at_once
        self._waiting: deque[Question] = deque()
        self._working = 0

    def put(self, question: Question) -> None:
        """Work it out when its turn comes."""
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

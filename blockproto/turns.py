"""Who may write to a connection next: one writer at a time, the waiting ones served fairly.

Control frames go before every payload. Among payloads the priorities interactive, normal
and bulk weigh 16 : 4 : 1 by bytes; within a priority the streams take turns; none starves. Each priority has a virtual
time that advances by bytes / weight when it is served; the lowest goes next. A priority that was idle starts from the
lowest virtual time in use, so it cannot save up a claim.

Spec: BP1-STR (fair sending).
"""

from __future__ import annotations

from collections import deque

import trio

WEIGHTS = (16, 4, 1)
"""Bytes by priority: interactive, normal, bulk."""

CONTROL = len(WEIGHTS)
"""The turn of frames without payload: it comes before every priority and costs nothing."""


class Turns:
    """A lock whose waiters are woken by weight."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: tuple[deque[trio.lowlevel.Task], ...] = tuple(deque() for _ in (*WEIGHTS, CONTROL))
        self._served = [0.0] * len(WEIGHTS)

    @property
    def held(self) -> bool:
        """Whether somebody has the turn."""
        return self._held

    async def take(self, priority: int) -> None:
        """Wait for the turn. Cancellation: the turn is not held."""
        if not self._held:
            self._held = True
            return
        queue = self._waiting[priority]
        if not queue and priority != CONTROL:
            self._served[priority] = max(self._served[priority], self._least_in_use())
        task = trio.lowlevel.current_task()
        queue.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            queue.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def give(self, priority: int, length: int) -> None:
        """Pass the turn on after having written ``length`` bytes at ``priority``."""
        if priority != CONTROL:
            self._served[priority] += length / WEIGHTS[priority]
        ready = [index for index, queue in enumerate(self._waiting) if queue]
        if not ready:
            self._held = False
            return
        best = CONTROL if CONTROL in ready else min(ready, key=lambda index: self._served[index])
        trio.lowlevel.reschedule(self._waiting[best].popleft())

    def _least_in_use(self) -> float:
        in_use = [self._served[index] for index, queue in enumerate(self._waiting[:CONTROL]) if queue]
        return min(in_use, default=min(self._served))

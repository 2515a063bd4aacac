"""Scheduler: which task may write to a connection next; one at a time, and fairly.

Control frames go before all payload. Among payloads the priorities interactive, normal and bulk weigh 16 : 4 : 1 by bytes;
within a priority the streams take turns; none starves. Each priority has a virtual time that advances by bytes / weight
when it is served; the lowest goes next. A priority that was idle starts from the virtual time of the one served last, so it
cannot save up a claim.

A stream that has just written usually comes back at once with its next piece. So the next writer is chosen a moment after
the turn was given back, when all who want it have asked; otherwise two streams would simply alternate, whatever their
weights.

Spec: BP1-STR (fair sending).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

WEIGHTS = (16, 4, 1)
"""Bytes by priority: interactive, normal, bulk."""

CONTROL = len(WEIGHTS)
"""The priority of frames without payload: before all others, and without cost."""

MayGo = Callable[[], bool]


@dataclass(slots=True, eq=False)
class _Waiter:
    """A task that waits for the turn, and whether it could use it now."""

    task: trio.lowlevel.Task
    may_go: MayGo


_NOBODY: dict[_Waiter, None] = {}
"""Shared by all priorities without waiters; never modified."""


class Scheduler:
    """A lock whose waiters are woken by weight."""

    __slots__ = ("_choosing", "_held", "_now", "_served", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._choosing = False
        self._waiting = [_NOBODY] * (len(WEIGHTS) + 1)
        self._served = [0.0] * len(WEIGHTS)
        self._now = 0.0

    @property
    def held(self) -> bool:
        """Whether a task has the turn."""
        return self._held

    async def take(self, priority: int, may_go: MayGo = lambda: True) -> None:
        """Wait for the turn.

        Args:
            priority: an index of ``WEIGHTS``, or ``CONTROL``.
            may_go: asked before the turn is given; the task is passed over until ``wake`` if it returns False.

        Cancellation: the turn is not held.
        """
        queue = self._waiting[priority]
        if not queue and priority != CONTROL:
            self._served[priority] = max(self._served[priority], self._now)
        first = priority == CONTROL or not any(self._waiting)
        if first and not self._held and may_go():
            self._serve(priority)
            return
        waiter = _Waiter(trio.lowlevel.current_task(), may_go)
        if not queue:
            queue = self._waiting[priority] = {}
        queue[waiter] = None
        self.wake()

        def abort(_: object) -> trio.lowlevel.Abort:
            del queue[waiter]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def give(self, priority: int, length: int) -> None:
        """Give the turn back after writing ``length`` bytes at ``priority``."""
        if priority != CONTROL:
            self._served[priority] += length / WEIGHTS[priority]
        self._held = False
        if self._waiting[CONTROL]:
            self._choose()
        else:
            self.wake()

    def wake(self) -> None:
        """Ask the waiting tasks again whether they may go: credit came, or a stream ended."""
        if not self._held and not self._choosing and any(self._waiting):
            self._choosing = True
            trio.lowlevel.current_trio_token().run_sync_soon(self._choose_now)

    def _choose_now(self) -> None:
        self._choosing = False
        if not self._held:
            self._choose()

    def _choose(self) -> None:
        for priority in (CONTROL, *sorted(range(CONTROL), key=lambda index: self._served[index])):
            for waiter in self._waiting[priority]:
                if waiter.may_go():
                    del self._waiting[priority][waiter]
                    self._serve(priority)
                    trio.lowlevel.reschedule(waiter.task)
                    return

    def _serve(self, priority: int) -> None:
        self._held = True
        if priority != CONTROL:
            self._now = self._served[priority]

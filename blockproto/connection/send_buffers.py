"""Send buffers: where the bytes lie that a connection is about to send, and who of its streams may put some there.

A stream that could send nothing now reads nothing: it waits here, without memory, until the other side has granted enough
credit for its next piece. There are few places for each priority, so that a connection with thousands of streams has a few
pieces in memory, and a stream that is not read holds back no other.

    stream ── credit for a piece, and a place ──→ read ──→ its turn (``turns``) ──→ written: the place is free

Spec: BP1-LIM-003.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from .scheduler import WEIGHTS

BUFFERS_MAX = 2
"""For each priority: while one piece is being sent the next can be read."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """A task that wants a place, and whether it could use it now."""

    task: trio.lowlevel.Task
    may_go: Callable[[], bool]


class SendBuffers:
    """The places of one connection."""

    __slots__ = ("_choosing", "_free", "_memories", "_waiting")

    def __init__(self) -> None:
        self._free = [BUFFERS_MAX] * len(WEIGHTS)
        self._waiting: tuple[dict[_Waiter, None], ...] = tuple({} for _ in WEIGHTS)
        self._memories: list[memoryview] = []
        self._choosing = False

    @property
    def idle(self) -> bool:
        """Whether nobody has a place or wants one."""
        return not any(self._waiting) and all(free == BUFFERS_MAX for free in self._free)

    async def take(self, priority: int, may_go: Callable[[], bool]) -> None:
        """Wait for a place.

        Args:
            priority: an index of ``WEIGHTS``.
            may_go: asked before a place is handed over; who answers no is passed over until ``wake``.

        Cancellation: there is no place to give back.
        """
        waiting = self._waiting[priority]
        if not waiting and self._free[priority] and may_go():
            self._free[priority] -= 1
            return
        waiter = _Waiter(trio.lowlevel.current_task(), may_go)
        waiting[waiter] = None
        self.wake()

        def abort(_: object) -> trio.lowlevel.Abort:
            del waiting[waiter]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def give(self, priority: int) -> None:
        """Give a place back."""
        self._free[priority] += 1
        self.wake()

    def memory(self, length: int) -> memoryview:
        """Memory of ``length`` bytes at least; ``put_back`` when nothing of it is needed any more."""
        while self._memories:
            memory = self._memories.pop()
            if len(memory) >= length:
                return memory
        return memoryview(bytearray(length))

    def put_back(self, memory: memoryview) -> None:
        """The memory can be used for other bytes."""
        if len(self._memories) < BUFFERS_MAX:
            self._memories.append(memory)

    def wake(self) -> None:
        """Look again who may go: credit came, or a stream ended."""
        if not self._choosing and any(self._waiting):
            self._choosing = True
            trio.lowlevel.current_trio_token().run_sync_soon(self._choose)

    def _choose(self) -> None:
        self._choosing = False
        for priority, waiting in enumerate(self._waiting):
            for waiter in tuple(waiting) if self._free[priority] else ():
                if waiter.may_go():
                    del waiting[waiter]
                    self._free[priority] -= 1
                    trio.lowlevel.reschedule(waiter.task)
                    if not self._free[priority]:
                        break

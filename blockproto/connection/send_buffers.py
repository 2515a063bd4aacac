"""Send buffers: memory for the pieces that a connection is about to send, and which of its streams may use it.

A stream that cannot send now does not read either: it waits here, without memory, until the peer has granted enough credit
for its next piece. There are few buffers for each priority, so a connection with thousands of streams has a few pieces in
memory, and a stream without credit holds up no other.

    stream ── credit for a piece, a buffer ──→ read ──→ its turn (``scheduler``) ──→ written: the buffer is free

Spec: BP1-LIM-003.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from .scheduler import WEIGHTS

BUFFERS_MAX = 2
"""Buffers of each priority: while one piece is being sent the next can be read."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """A task that waits for a buffer, and whether it could use it now."""

    task: trio.lowlevel.Task
    may_go: Callable[[], bool]


class SendBuffers:
    """The buffers of one connection."""

    __slots__ = ("_choosing", "_free", "_memories", "_waiting")

    def __init__(self) -> None:
        self._free = [BUFFERS_MAX] * len(WEIGHTS)
        self._waiting: tuple[dict[_Waiter, None], ...] = tuple({} for _ in WEIGHTS)
        self._memories: list[memoryview] = []
        self._choosing = False

    @property
    def idle(self) -> bool:
        """Whether no buffer is in use or waited for."""
        return not any(self._waiting) and all(free == BUFFERS_MAX for free in self._free)

    async def take(self, priority: int, may_go: Callable[[], bool]) -> None:
        """Wait for a buffer.

        Args:
            priority: an index of ``WEIGHTS``.
            may_go: asked before a buffer is given; the task is passed over until ``wake`` if it returns False.

        Cancellation: no buffer is held.
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
        """Give a buffer back."""
        self._free[priority] += 1
        self.wake()

    def memory(self, length: int) -> memoryview:
        """Memory of at least ``length`` bytes; ``put_back`` when it is not needed any more."""
        while self._memories:
            memory = self._memories.pop()
            if len(memory) >= length:
                return memory
        return memoryview(bytearray(length))

    def put_back(self, memory: memoryview) -> None:
        """Let the memory be used again."""
        if len(self._memories) < BUFFERS_MAX:
            self._memories.append(memory)

    def wake(self) -> None:
        """Ask the waiting tasks again whether they may go: credit came, or a stream ended."""
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

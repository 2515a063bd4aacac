"""The memory that frames of files take: who waits for room, and who wakes them."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from blockproto.transfer.frame_memory import HELD_MAX, FrameMemory


async def test_all_who_wait_go_on_once_there_is_room() -> None:
    memory = FrameMemory()
    memory.take(HELD_MAX + 1)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(memory.room)
        await wait_all_tasks_blocked()
        memory.give(1)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 3  # still full
        memory.give(1)


async def test_who_comes_when_there_is_room_does_not_wait() -> None:
    memory = FrameMemory()
    memory.take(HELD_MAX - 1)
    with trio.fail_after(1):
        await memory.room()

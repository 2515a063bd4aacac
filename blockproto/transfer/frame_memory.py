"""How many bytes of whole small files a server holds in memory at once, whoever sends them.

    held = the payload of every frame of files that is coming or was not answered yet

A stream may always have one frame; another it begins only while less than ``HELD_MAX`` is held. So a server whose disk is
slow holds a bounded amount and one frame a stream, and what it does not take keeps its senders' credit (BP1-FIL-011).
"""

from __future__ import annotations

import trio

HELD_MAX = 16 << 20
"""Bytes from which on no stream begins a second frame: about what one batch of the committer takes."""


class FrameMemory:
    """What is held of one server."""

    def __init__(self) -> None:
        self.held = 0
        self._room: trio.Event | None = None

    @property
    def full(self) -> bool:
        """Whether a stream that has a frame under way has to wait with the next."""
        return self.held >= HELD_MAX

    async def room(self) -> None:
        """Wait until there is room. Cancellation: nothing happened."""
        while self.full:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def take(self, length: int) -> None:
        """Hold ``length`` bytes more."""
        self.held += length

    def give(self, length: int) -> None:
        """Hold ``length`` bytes less."""
        self.held -= length
        if self._room is not None and not self.full:
            self._room.set()
            self._room = None

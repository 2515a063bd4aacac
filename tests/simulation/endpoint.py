"""One end of a simulated line, which is used as a socket is: what is there is taken at once, what has room goes at once."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from blockproto.connection.endpoint import BYTES_PER_CHECKPOINT, Deadline, Part, StreamEndpoint, never
from blockproto.errors import ConnectionLost
from blockproto.testing.chaos import LineStream


class LineEndpoint(StreamEndpoint):
    """Like ``SocketEndpoint``: others get their turn when this one has to wait, or after ``BYTES_PER_CHECKPOINT``."""

    def __init__(self, line: LineStream) -> None:
        super().__init__(line, "simulated")
        self._line = line
        self._unyielded = 0

    async def receive_into(self, view: memoryview, deadline: Deadline = never) -> int | None:
        """See Endpoint."""
        await self._yield_after(0)
        received: bytes | None = None
        try:
            if self._line.arrived:
                received = await self._line.take(len(view))
            else:
                self._unyielded = 0
                with trio.move_on_at(deadline()):
                    received = await self._line.take(len(view))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLost("the line broke") from exc
        if received is None:
            return None
        self._unyielded += len(received)
        view[: len(received)] = received
        return len(received)

    async def send(self, parts: Sequence[Part]) -> None:
        """See Endpoint; what is written together goes out together."""
        content = b"".join(parts)
        try:
            await self._line.put(content)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLost("the line broke") from exc
        await self._yield_after(len(content))

    async def _yield_after(self, length: int) -> None:
        self._unyielded += length
        if self._unyielded >= BYTES_PER_CHECKPOINT:
            self._unyielded = 0
            await trio.lowlevel.checkpoint()

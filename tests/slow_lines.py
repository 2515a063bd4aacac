"""Clients whose lines to a server are lines of ``testing.chaos``: slow, far away or breaking, on a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from peers import Served

from blockproto.client import Client, connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.testing.chaos import Conditions, How, Line


async def wait_out(timeout_s: float) -> None:
    """Let time pass on a clock that jumps."""
    await trio.sleep(timeout_s)


class SlowLines:
    """Dials ``served`` over lines and remembers them; ``conditions`` are those of the next one."""

    def __init__(self, served: Served, conditions: Conditions) -> None:
        self.lines: list[Line] = []
        self.conditions = conditions
        self._served = served

    async def dial(self) -> Endpoint:
        """A new connection over a new line."""
        line = Line(self.conditions, random.Random(len(self.lines)))
        self.lines.append(line)
        near, far = line.streams()
        self._served.nursery.start_soon(line.run)
        self._served.nursery.start_soon(self._served.server.serve_stream, far)
        return StreamEndpoint(near, "a slow line")

    def end(self) -> None:
        """Close every line, so that none waits for its end any more."""
        for line in self.lines:
            line.end(How.CLOSED)

    @asynccontextmanager
    async def client(self, server: str = "memory", **options: Any) -> AsyncIterator[Client]:
        """A client; ``options`` as for ``ClientConfig``."""
        async with connect_with(
            self.dial, server, self._served.open_part_file, ClientConfig(**options)
        ) as client:
            yield client

"""Task guard: keep an error in a task that works for one connection, or one stream, from ending the server.

An unexpected error ends the stream that the task works for, or its connection if it works for all of it. A MemoryError ends
the connection, which frees its memory; the client comes back and resumes, as after any lost connection.

Spec: BP1-ERR-010, BP1-LIM-006.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ..connection.connection import Connection
from ..connection.unexpected_errors import unexpected
from ..errors import ConnectionLost

log = logging.getLogger(__name__)


class TaskGuard:
    """Starts tasks for one connection; they may outlive it.

    Args:
        nursery: where they run.
        connection: for which.
        stream: for which of its streams; None: for all of it.
    """

    __slots__ = ("_connection", "_nursery", "_stream")

    def __init__(self, nursery: trio.Nursery, connection: Connection, stream: int | None = None) -> None:
        self._nursery = nursery
        self._connection = connection
        self._stream = stream

    def start_soon(self, work: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start ``work(*args)``."""
        self._nursery.start_soon(self._run, work, args)

    async def _run(self, work: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        try:
            await work(*args)
        except* MemoryError:
            self._connection.close(out_of_memory(self._connection.endpoint.peer))
        except* Exception as group:
            if self._stream is not None:
                self._connection.broke(self._stream, group)
            else:
                self._connection.end_with(
                    unexpected(f"the connection to {self._connection.endpoint.peer}", group)
                )


def out_of_memory(peer: str) -> ConnectionLost:
    """Say it, look for memory that nobody uses, and why the connection to ``peer`` ends."""
    gc.collect()
    extra: dict[str, object] = {"event": "out of memory", "facts": {}}
    log.error("no memory was left for the connection to %s: it ends, the others go on", peer, extra=extra)
    return ConnectionLost(f"no memory was left for the connection to {peer}")

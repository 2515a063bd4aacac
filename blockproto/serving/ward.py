"""A ward: the tasks that work for one connection, of which none can harm another.

Memory can be wanting anywhere, and an error in any task would end the server. Here it ends the connection whose task met it,
which frees what that one had; its client comes back and goes on, as after any lost connection.

Spec: BP1-LIM-006.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ..errors import ConnectionLost
from ..link.connection import Connection

log = logging.getLogger(__name__)


class Ward:
    """Starts tasks for one connection; they may outlive it.

    Args:
        nursery: where they run.
        connection: for which.
    """

    __slots__ = ("_connection", "_nursery")

    def __init__(self, nursery: trio.Nursery, connection: Connection) -> None:
        self._nursery = nursery
        self._connection = connection

    def start_soon(self, work: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start ``work(*args)``."""
        self._nursery.start_soon(self._run, work, args)

    async def _run(self, work: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        try:
            await work(*args)
        except* MemoryError:
            self._connection.close(out_of_memory(self._connection.endpoint.peer))


def out_of_memory(peer: str) -> ConnectionLost:
    """Say it, look for memory that nobody uses, and why the connection to ``peer`` ends."""
    gc.collect()
    log.error("no memory was left for the connection to %s: it ends, the others go on", peer)
    return ConnectionLost(f"no memory was left for the connection to {peer}")

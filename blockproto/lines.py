"""The connections of one client to its server: made when they are first needed, made again when they are gone.

Spec: BP1-END (coming back), BP1-ERR (retryable).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from .dialling import Dial
from .errors import BlockprotoError, Code, ConnectionLost, GoingAway
from .link.connection import Connection
from .link.keepalive import KeepAlive
from .protocol.session import Limits, Session, Side

TRIES_MAX = 5
RETRY_FIRST_S = 0.2
RETRY_MOST_S = 5.0
_COMING_BACK = {Code.BUSY, Code.BAD_CHECK, Code.TIMEOUT}
"""Errors after which the same request can succeed, perhaps on a new connection."""

Answer = TypeVar("Answer")


class Lines:
    """What a client speaks over.

    Args:
        dial: makes a byte stream to the server.
        nursery: where connections live.
        count: how many connections a big file may use.
        tries: how often in a row to come back without any progress.
    """

    def __init__(self, dial: Dial, nursery: trio.Nursery, count: int, tries: int) -> None:
        self._dial = dial
        self._nursery = nursery
        self._connections: list[Connection | None] = [None] * count
        self._dialling = [trio.Lock() for _ in range(count)]
        self._tries = tries
        self._reached = False
        self._keep_alive = KeepAlive()

    @property
    def count(self) -> int:
        """How many connections there may be."""
        return len(self._connections)

    async def connection(self, index: int = 0) -> Connection:
        """A live connection, made now if there is none.

        Raises:
            ConnectionLost: the server cannot be reached.
        """
        async with self._dialling[index]:
            current = self._connections[index]
            if current is not None and current.lost is None and current.going_away is None:
                return current
            if current is not None:
                current.close(GoingAway())
            endpoint = await self._dial()
            self._reached = True
            session = Session(Side.CLIENT, Limits(agent="blockproto"))
            connection = Connection(endpoint, session, keep_alive=self._keep_alive)
            self._nursery.start_soon(connection.run)
            self._connections[index] = connection
            return connection

    async def retrying(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """What ``request`` gives, asked again after a lost connection; raises what it raises in the end."""
        tries = 0
        while True:
            try:
                return await request()
            except BlockprotoError as exc:
                tries = await self.wait_to_retry(exc, tries)

    async def wait_to_retry(self, error: BlockprotoError, tries: int) -> int:
        """Wait a little longer each time; raises ``error`` when waiting cannot help or was tried often enough.

        A server that was never reached is not waited for: the address is wrong more often than the server is late.
        """
        comes_back = isinstance(error, ConnectionLost | GoingAway) or error.code in _COMING_BACK
        if not comes_back or not error.retryable or tries + 1 >= self._tries or not self._reached:
            raise error
        pause_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2**tries)
        await trio.sleep(max(pause_s, error.retry_after_ms / 1000))
        return tries + 1

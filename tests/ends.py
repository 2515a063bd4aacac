"""A connection that runs, and at the other end of the line a peer that says what a test tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from peers import Line, RawPeer
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from blockproto.connection.connection import Connection, StreamHandler
from blockproto.connection.endpoint import StreamEndpoint
from blockproto.connection.keepalive import KeepAlive
from blockproto.errors import BlockprotoError
from blockproto.protocol.session import Limits, Session, Side
from blockproto.wire import PREFACE, Hello, Message, encode_frame


@dataclass
class Recorder:
    """A handler that remembers what it is told."""

    messages: list[Message] = field(default_factory=list)
    payload_bytes: bytearray = field(default_factory=bytearray)
    ends: list[BlockprotoError] = field(default_factory=list)
    on_message: Callable[[Message], None] = lambda message: None
    takes_s: float = 0.0
    waits: int = False

    async def received(self, message: Message, payload_length: int) -> None:
        self.messages.append(message)
        self.on_message(message)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        if self.takes_s:
            await trio.sleep_until(trio.current_time() + self.takes_s)
        self.payload_bytes += view

    def ended(self, error: BlockprotoError) -> None:
        self.ends.append(error)


@dataclass
class Ends:
    """Both ends of a line: a Connection here, a scripted peer there."""

    connection: Connection
    peer: RawPeer
    line: Line
    handlers: list[Recorder] = field(default_factory=list)
    reason: BlockprotoError | None = None

    async def ended(self) -> BlockprotoError:
        """Wait until the connection has ended; returns why."""
        await self.connection.finished.wait()
        await wait_all_tasks_blocked()
        assert self.reason is not None
        return self.reason


@asynccontextmanager
async def connected(
    side: Side = Side.SERVER,
    *,
    limits: Limits | None = None,
    greet: bool = True,
    hello: Hello | None = None,
    handler: Callable[[], Recorder] = Recorder,
) -> AsyncIterator[Ends]:
    """A connection that runs, as ``side``, and a peer that has greeted it."""
    here, there = memory_stream_pair()
    line = Line(here)
    handlers: list[Recorder] = []

    def accept(connection: Connection, stream: int, message: Message) -> StreamHandler:
        handlers.append(handler())
        return handlers[-1]

    connection = Connection(
        StreamEndpoint(line, "the peer"),
        Session(side, limits),
        accept=accept if side is Side.SERVER else None,
        keep_alive=KeepAlive() if side is Side.CLIENT else None,
    )
    ends = Ends(connection, RawPeer(there), line, handlers)

    async def live() -> None:
        ends.reason = await connection.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        if greet and side is Side.SERVER:
            await ends.peer.greet(hello)
        elif greet:
            await ends.peer.hear_greeting()
            await ends.peer.send_bytes(PREFACE + encode_frame(0, hello or Hello(agent="raw")))
            await connection.greeted.wait()
        yield ends
        connection.close()

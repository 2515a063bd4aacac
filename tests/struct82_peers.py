"""Senders of the dialect ``struct82`` for tests, written from the dialect's text: ``struct`` and bytes.

``Layout`` is one of the four ways in which a C program lays the header out; ``DialectSender`` puts blocks on a stream of
Trio's.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import trio
from blake3 import blake3
from peers import WatchedStore
from trio.testing import memory_stream_pair

from blockproto.connection.endpoint import StreamEndpoint
from blockproto.dialects.struct82 import Struct82
from blockproto.serving.server import Server
from blockproto.store import FileStore, Work

MIB = 1 << 20


@dataclass(frozen=True)
class Layout:
    """Byte order ``<`` or ``>``, and how many bytes a compiler leaves before the integers (0 packed, 2 aligned)."""

    order: str
    padding: int

    @property
    def length(self) -> int:
        return 82 + self.padding

    def header(self, name: bytes, kind: bytes, filesize: int, blocknum: int, blockno: int) -> bytes:
        return struct.pack(f"{self.order}50s20s{self.padding}xiii", name, kind, filesize, blocknum, blockno)

    def reply(self, raw: bytes) -> Reply:
        return Reply(*struct.unpack(f"{self.order}iiii32s", raw))


LAYOUTS = {
    "packed little": Layout("<", 0),
    "packed big": Layout(">", 0),
    "aligned little": Layout("<", 2),
    "aligned big": Layout(">", 2),
}


class Reply(NamedTuple):
    """The 48 bytes after a header."""

    code: int
    blockno: int
    held: int
    complete: int
    digest: bytes


class Answer(NamedTuple):
    """What comes after a question; ``bits`` are those of the numbers that the sender uses."""

    reply: Reply
    bits: set[int]
    stored_as: str


@dataclass(frozen=True)
class Sent:
    """A file as its sender sees it.

    Attributes:
        first: what the sender calls its first block.
        one_more: whether it takes filesize / 1 MiB + 1 for the number of blocks, whatever the filesize.
    """

    content: bytes
    name: bytes = b"film.bin"
    kind: bytes = b"video"
    layout: Layout = LAYOUTS["packed little"]
    first: int = 0
    one_more: bool = False

    @property
    def blocknum(self) -> int:
        return len(self.content) // MIB + 1 if self.one_more else -(-len(self.content) // MIB)

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.blocknum)

    def header(self, number: int) -> bytes:
        return self.layout.header(self.name, self.kind, len(self.content), self.blocknum, number)

    def payload(self, number: int) -> bytes:
        index = number - self.first
        return self.content[index * MIB : (index + 1) * MIB]

    def block(self, number: int) -> bytes:
        return self.header(number) + self.payload(number)

    def digest(self, number: int) -> bytes:
        return blake3(self.payload(number)).digest()

    @property
    def root(self) -> bytes:
        digests = [blake3(self.content[at : at + MIB]).digest() for at in range(0, len(self.content), MIB)]
        return digests[0] if len(digests) == 1 else blake3(b"".join(digests)).digest()


class Sender:
    """One connection of a sender."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._received = bytearray()

    async def send(self, raw: bytes) -> None:
        await self.stream.send_all(raw)

    async def receive(self, length: int) -> bytes:
        while len(self._received) < length:
            some = await self.stream.receive_some()
            assert some, f"{len(self._received)} bytes came where {length} were expected"
            self._received += some
        raw = bytes(self._received[:length])
        del self._received[:length]
        return raw

    async def rest(self) -> bytes:
        """What comes until the other side ends."""
        while some := await self.stream.receive_some():
            self._received += some
        return bytes(self._received)

    async def ask(self, file: Sent) -> Answer:
        await self.send(file.header(-1))
        return await self.answer(file)

    async def answer(self, file: Sent) -> Answer:
        reply = await self.reply(file)
        if reply.code:
            return Answer(reply, set(), "")
        bitmap = await self.receive(file.blocknum // 8 + 1)
        name = (await self.receive(256)).rstrip(b"\0").decode() if reply.complete else ""
        return Answer(reply, {no for no in file.numbers if bitmap[no // 8] & (1 << no % 8)}, name)

    async def reply(self, file: Sent) -> Reply:
        return file.layout.reply(await self.receive(48))

    async def put(self, file: Sent, number: int) -> Reply:
        """Send a block and wait for its reply; the connection has asked before."""
        await self.send(file.block(number))
        return await self.reply(file)


Dial = Callable[..., Awaitable[Sender]]


class Answering:
    """A server in this process, and connections to it over memory."""

    def __init__(self, server: Server, store: FileStore, nursery: trio.Nursery) -> None:
        self.server = server
        self.store = store
        self._nursery = nursery

    async def dial(self, host: str = "10.0.0.1") -> Sender:
        """A connection from ``host``."""
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self.server.serve_endpoint, StreamEndpoint(theirs, host))
        return Sender(ours)

    @property
    def works(self) -> list[Work]:
        """What was committed, in order."""
        assert isinstance(self.store, WatchedStore)
        return self.store.works

    @asynccontextmanager
    async def listening(
        self,
    ) -> AsyncIterator[tuple[trio.SocketListener, Callable[[], Awaitable[trio.SocketStream]]]]:
        """The server on a real socket, and how to dial it."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        host, port = listener.socket.getsockname()[:2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self.server.serve_stream, [listener])
            yield listener, partial(trio.open_tcp_stream, host, port)
            nursery.cancel_scope.cancel()

    async def settle(self) -> None:
        """Wait until nothing more happens by itself."""
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def answering(store: FileStore | None = None, first: int | None = None) -> AsyncIterator[Answering]:
    """A running server that speaks the dialect; stopped at the end, and then nothing of it is left."""
    store = WatchedStore() if store is None else store
    dialect = Struct82(first)
    server = Server(store, dialects=[dialect])
    async with trio.open_nursery() as running:
        await running.start(server.run)
        async with trio.open_nursery() as nursery:
            yield Answering(server, store, nursery)
            server.stop()
    assert not server._connections
    assert not server.engine.uploads._live
    assert not dialect._files


def permutations_of(numbers: range, seeds: range) -> Iterator[list[int]]:
    """Some orders of ``numbers``, among them forwards and backwards."""
    import random

    yield list(numbers)
    yield list(reversed(numbers))
    for seed in seeds:
        order = list(numbers)
        random.Random(seed).shuffle(order)
        yield order

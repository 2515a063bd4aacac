"""Helpers of the engine's tests: a scripted peer, lines that cut and slice, a gate before the disk, and a clock that jumps.

``run`` is the runner of almost every test here: time jumps ahead when everybody waits, and what would go to a worker
thread is done inline, so that nothing depends on how fast the machine is. A test that would wait for ever fails after a
day that takes no time.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from blockproto.client import Client, connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.common.blocks import BLOCK_LENGTH, blocknum_of, digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.connection.endpoint import Endpoint, StreamEndpoint
from blockproto.dialects import Dialect
from blockproto.errors import BlockprotoError, Code, Scope
from blockproto.identity.auth_policy import AuthPolicy
from blockproto.protocol.session import Limits
from blockproto.serving.server import Server
from blockproto.store import BlockDone, Destination, Outcome, UploadEntry, UploadStore, Work
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.hooks import CommitHooks
from blockproto.wire import (
    HEADER_LENGTH,
    PAYLOAD_TYPES,
    PREFACE,
    Ack,
    Block,
    Commit,
    Credit,
    Error,
    Hello,
    Message,
    Open,
    Piece,
    decode_head,
    decode_header,
    encode_frame,
)

DAY_S = 86_400.0
STUCK_S = 5_000.0
"""How long what is stuck stays so at most, so that a test that fails ends; longer than any timeout of the engine."""
MIB = 1 << 20
T = TypeVar("T")
M = TypeVar("M", bound=Message)


# ---- time and threads -----------------------------------------------------------------------------------------


async def run_inline(work: Callable[..., T], *args: Any, **_: Any) -> T:
    """Stand in for ``trio.to_thread.run_sync``."""
    await trio.lowlevel.checkpoint()
    return work(*args)


def run(test: Callable[..., Awaitable[T]], *args: Any, clock: Any = None, **options: Any) -> T:
    """``trio.run`` on a clock that jumps, without threads; use it as ``quick = pytest.mark.trio(run=run)``, ``@quick``."""

    async def main() -> T:
        with trio.fail_after(DAY_S):
            return await test(*args)

    with mock.patch.object(trio.to_thread, "run_sync", run_inline):
        return trio.run(main, clock=clock or MockClock(autojump_threshold=0), **options)


def bytes_of(length: int, seed: int = 1) -> bytes:
    """Content that repeats nowhere and is the same in every run."""
    return random.Random(seed).randbytes(length)


# ---- what is sent ---------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """A file and the messages that send it.

    Attributes:
        content: its bytes.
        known: whether its size is said at OPEN.
    """

    content: bytes
    filename: str = "sample.bin"
    filetype: str = "application/octet-stream"
    sourceid: bytes = b"sixteen byte id."
    known: bool = True

    @property
    def filesize(self) -> int | None:
        return len(self.content) if self.known else None

    @property
    def blocknum(self) -> int:
        return blocknum_of(len(self.content))

    @property
    def root(self) -> bytes:
        return root_of((digest_of(self.bytes_of(no)) for no in range(self.blocknum)), self.blocknum)

    def bytes_of(self, blockno: int) -> bytes:
        return self.content[blockno * BLOCK_LENGTH : (blockno + 1) * BLOCK_LENGTH]

    def open(self, attempt: int = 1, **changes: Any) -> Open:
        """OPEN of this file."""
        message = Open(
            sourceid=self.sourceid,
            attempt=attempt,
            filesize=self.filesize,
            blocknum=self.blocknum if self.known else None,
            filename=self.filename,
            filetype=self.filetype,
        )
        return replace(message, **changes)

    def block(
        self, blockno: int, first: int = 0, last: int | None = None, *, end: bool = True, **changes: Any
    ) -> tuple[Block, bytes]:
        """BLOCK with the bytes ``first`` to ``last`` of a block, and with END unless told otherwise."""
        block = self.bytes_of(blockno)
        message = Block(
            sourceid=self.sourceid,
            filesize=self.filesize,
            blocknum=self.blocknum if self.known else None,
            blockno=blockno,
            position=blockno * BLOCK_LENGTH + first,
            filename=self.filename,
            filetype=self.filetype,
            digest=digest_of(block) if end else None,
        )
        return replace(message, **changes), block[first:last]

    def piece(
        self, blockno: int, first: int, last: int | None = None, *, end: bool = True, **changes: Any
    ) -> tuple[Piece, bytes]:
        """PIECE that goes on with a block at its byte ``first``."""
        block = self.bytes_of(blockno)
        message = Piece(blockno * BLOCK_LENGTH + first, digest_of(block) if end else None)
        return replace(message, **changes), block[first:last]

    def commit(self, **changes: Any) -> Commit:
        """COMMIT of this file."""
        return replace(Commit(self.sourceid, self.root, len(self.content), self.blocknum), **changes)


# ---- a peer that is a script ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A frame that came."""

    stream: int
    message: Message
    payload: bytes


class RawPeer:
    """Says and hears frames over a Trio stream, and keeps no rule by itself."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.acked: set[int] = set()
        self.credits: list[tuple[int, Credit]] = []
        self._buffer = b""

    async def greet(self, hello: Hello | None = None) -> Hello:
        """Preface and HELLO, and the server's; returns the latter."""
        await self.send_bytes(PREFACE + encode_frame(0, hello or Hello(agent="raw")))
        return await self.hear_greeting()

    async def hear_greeting(self) -> Hello:
        """The other side's preface and HELLO."""
        assert await self._take(len(PREFACE)) == PREFACE
        return await self.expect(Hello)

    async def send_bytes(self, raw: bytes) -> None:
        await self.stream.send_all(raw)

    async def say(self, stream: int, message: Message, payload: bytes = b"") -> None:
        await self.send_bytes(encode_frame(stream, message, len(payload)) + payload)

    async def hear(self) -> Heard:
        """The next frame; remembers what is acknowledged and credited. Raises EndOfStream at the end."""
        header = decode_header(await self._take(HEADER_LENGTH))
        message = decode_head(header, await self._take(header.head_length))
        assert message is not None
        payload = await self._take(header.payload_length)
        if isinstance(message, Ack):
            self.acked.update(no for first, count in message.held for no in range(first, first + count))
        if isinstance(message, Credit):
            self.credits.append((header.stream, message))
        return Heard(header.stream, message, payload)

    async def expect(self, kind: type[M], stream: int | None = None) -> M:
        """The next frame but for CREDIT (and ACK, unless that is wanted), which must be of this kind and stream."""
        while True:
            heard = await self.hear()
            if isinstance(heard.message, kind) and stream in {None, heard.stream}:
                return heard.message
            assert isinstance(heard.message, Credit | Ack), f"{heard.message} on stream {heard.stream}"

    async def expect_error(self, code: Code, scope: Scope, stream: int | None = None) -> Error:
        """An ERROR with this code and scope."""
        error = await self.expect(Error, stream)
        assert (error.code, error.scope) == (code, scope), error
        return error

    async def wait_acked(self, *blocknos: int) -> None:
        """Hear ACKs until these blocks were acknowledged."""
        while not self.acked.issuperset(blocknos):
            await self.expect(Ack)

    async def wait_credited(self, received: int, stream: int = 0) -> None:
        """Hear CREDIT until so many bytes of the stream (0: of the connection) were received."""
        while not any(at == stream and credit.received >= received for at, credit in self.credits):
            heard = await self.hear()
            assert isinstance(heard.message, Credit | Ack), heard

    async def rest(self) -> list[Heard]:
        """Everything but CREDIT until the other side closes."""
        heard = []
        try:
            while True:
                heard.append(await self.hear())
        except EndOfStream:
            return [one for one in heard if not isinstance(one.message, Credit)]

    async def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            more = await self.stream.receive_some(65_536)
            if not more:
                raise EndOfStream(f"{len(self._buffer)} bytes were left")
            self._buffer += bytes(more)
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken


class EndOfStream(Exception):
    """The other side closed the stream."""


def frames_of(raw: bytes | bytearray) -> Iterator[Heard]:
    """The frames in what one side sent, preface first; the payload of the last may be cut short."""
    at = len(PREFACE)
    while at + HEADER_LENGTH <= len(raw):
        header = decode_header(raw, at)
        head = at + HEADER_LENGTH
        start = head + header.head_length
        if start > len(raw):
            return
        message = decode_head(header, bytes(raw[head:start]))
        assert message is not None
        at = start + header.payload_length
        yield Heard(header.stream, message, bytes(raw[start:at]))


def payload_length_of(raw: bytes | bytearray) -> int:
    """How many bytes of file content there are in what one side sent."""
    return sum(len(frame.payload) for frame in frames_of(raw) if frame.message.TYPE in PAYLOAD_TYPES)


# ---- lines ----------------------------------------------------------------------------------------------------


class Line(trio.abc.Stream):
    """One end of a stream: remembers what passes, hands it on in slices, and can be cut or become a black hole.

    Args:
        inner: the stream.
        cut_sent, cut_received: how many bytes pass before the line breaks, or None.
        damage_sent: which byte of what is sent is changed on the way, or None.
        slices: greatest lengths of what is handed on, one after another and again from the first.
    """

    def __init__(
        self,
        inner: trio.abc.Stream,
        *,
        cut_sent: int | None = None,
        cut_received: int | None = None,
        damage_sent: int | None = None,
        slices: Sequence[int] = (),
    ) -> None:
        self.sent = bytearray()
        self.received = bytearray()
        self.broken = False
        self._inner = inner
        self._cut_sent = cut_sent
        self._cut_received = cut_received
        self._damage_sent = damage_sent
        self._slices = slices
        self._sliced = 0
        self._hole = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        data = bytes(data)
        while data and not self.broken:
            most = min(len(data), self._next_slice())
            if self._cut_sent is not None:
                most = min(most, self._cut_sent - len(self.sent))
            part, data = data[:most], data[most:]
            at = len(self.sent)
            self.sent += part
            if not self._hole.is_set():
                await self._inner.send_all(self._damaged(part, at))
            if self._cut_sent is not None and len(self.sent) >= self._cut_sent:
                await wait_all_tasks_blocked()  # what has passed arrives
                await self.cut()
        if self.broken:
            raise trio.BrokenResourceError

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._hole.is_set():
            await trio.sleep_forever()
        most = min(max_bytes or 65_536, self._next_slice())
        if self._cut_received is not None:
            most = min(most, self._cut_received - len(self.received))
        if self.broken or most == 0:
            await self.cut()
            raise trio.BrokenResourceError
        received = await self._inner.receive_some(most)
        if self._hole.is_set():
            await trio.sleep_forever()
        self.received += received
        return received

    def fall_silent(self) -> None:
        """From now on nothing passes in either direction, and nobody is told."""
        self._hole.set()

    async def cut(self) -> None:
        """Break the line; the other side hears the end of the stream."""
        self.broken = True
        await trio.aclose_forcefully(self._inner)

    async def aclose(self) -> None:
        if not self._hole.is_set():
            await trio.aclose_forcefully(self._inner)
        else:
            await trio.lowlevel.checkpoint()

    def _damaged(self, part: bytes, at: int) -> bytes:
        if self._damage_sent is None or not at <= self._damage_sent < at + len(part):
            return part
        changed = bytearray(part)
        changed[self._damage_sent - at] ^= 0xFF
        return bytes(changed)

    def _next_slice(self) -> int:
        self._sliced += 1
        return self._slices[self._sliced % len(self._slices)] if self._slices else 1 << 62


# ---- stores ---------------------------------------------------------------------------------------------------


class Gate:
    """Holds the committer's batches back until it is opened; stands in for a disk whose sync takes long.

    Attributes:
        waits: set while a batch is held back.
    """

    def __init__(self, server: Server) -> None:
        self.waits = trio.Event()
        self.batches: list[list[Work]] = []
        self._opened = trio.Event()
        self._store = server.engine.store
        server.engine.committer._run_blocking = self._run

    def open(self) -> None:
        """Let everything through from now on."""
        self._opened.set()

    async def _run(self, decide: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
        self.waits.set()
        with trio.move_on_after(STUCK_S):
            await self._opened.wait()
        return await run_inline(decide)


class WatchedStore(MemoryStore):
    """A MemoryStore that remembers the blocks it made durable, and can fail a write or a commit.

    Attributes:
        durable: (filename, blockno) of every block, in order.
        fail_write: what the next writes raise, or None.
        before_write, before_commit: called first.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.durable: list[tuple[str, int]] = []
        self.works: list[Work] = []
        self.before_commit: Callable[[Sequence[Work]], None] = lambda batch: None

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        self.before_commit(works)
        outcomes = super().decide(works)
        self.works.extend(works)
        self.durable.extend(
            (work.upload.facts.filename.text, work.blockno)
            for work, outcome in zip(works, outcomes, strict=True)
            if isinstance(work, BlockDone) and outcome is None
        )
        return outcomes


def content_of(store: MemoryStore, name: str) -> bytes:
    """The bytes of a finished file; raises UnknownFile."""
    reader = store.open_file(SafeName.parse(name), None)
    content = bytearray(reader.entry.filesize)
    assert reader.read_into(0, memoryview(content)) == len(content)
    return bytes(content)


def names_in(store: MemoryStore) -> list[str]:
    """The names of all finished files and folders."""
    return [entry.filename.text for entry in store.files("", True, "", 1 << 30)[0]]


def uploads_in(store: MemoryStore) -> list[UploadEntry]:
    """The unfinished uploads of which something is recorded."""
    return store.uploads(bytes(16), "", 1 << 30)[0]


def assert_untouched(store: MemoryStore) -> None:
    """Nothing is in the store: no file, no upload, no byte."""
    assert names_in(store) == []
    assert uploads_in(store) == []
    assert not any(store._written.values())


# ---- a server and its clients ---------------------------------------------------------------------------------


@dataclass
class Served:
    """A running server.

    Attributes:
        nursery: where its connections are served.
        lines: the client's ends of all connections made with ``dial``, in order.
        sidecars: the stores that downloads went to, by destination and first position.
    """

    server: Server
    store: MemoryStore
    nursery: trio.Nursery
    lines: list[Line] = field(default_factory=list)
    sidecars: dict[tuple[str, int], MemoryStore] = field(default_factory=dict)
    line_options: list[dict[str, Any]] = field(default_factory=list)

    def connect(self) -> trio.abc.Stream:
        """A new connection: the client's end of a memory stream."""
        here, there = memory_stream_pair()
        self.nursery.start_soon(self.server.serve_stream, there)
        return here

    async def dial(self) -> Endpoint:
        """A new connection for a client; ``line_options`` are used up by one after another."""
        options = self.line_options.pop(0) if self.line_options else {}
        line = Line(self.connect(), **options)
        self.lines.append(line)
        return StreamEndpoint(line, "memory")

    async def peer(self, hello: Hello | None = None) -> RawPeer:
        """A scripted peer that has greeted."""
        peer = RawPeer(self.connect())
        await peer.greet(hello)
        return peer

    @asynccontextmanager
    async def client(
        self, *, connections: int = 1, tries: int = 5, retry_for_s: float | None = None
    ) -> AsyncIterator[Client]:
        """A client of this server."""
        async with connect_with(
            self.dial,
            "memory",
            self.open_part_file,
            ClientConfig(connections=connections, tries=tries, retry_for_s=retry_for_s),
        ) as client:
            yield client

    def open_part_file(self, place: Destination | Path, first: int) -> UploadStore:
        """The memory store that stands beside ``place``; what was durable is there when it is opened again."""
        dest = place if isinstance(place, Path) else place.path
        before = self.sidecars.get((str(dest), first))
        if before is None:
            before = MemoryStore(first=first)
        elif before._closed:
            before = before.survivor()
        self.sidecars[str(dest), first] = before
        return before

    def downloaded(self, dest: Path | str, first: int = 0) -> bytes:
        """The content of a finished download."""
        return content_of(self.sidecars[str(dest), first], Path(dest).name)

    @property
    def payload_sent(self) -> int:
        """Bytes of file content that clients put on their lines, over all connections."""
        return sum(payload_length_of(line.sent) for line in self.lines)


@asynccontextmanager
async def serving(
    store: MemoryStore | None = None,
    *,
    limits: Limits | None = None,
    policy: AuthPolicy | None = None,
    dialects: Sequence[Dialect] = (),
    files: bool = True,
    fails: type[BlockprotoError] | None = None,
    hooks: CommitHooks | None = None,
) -> AsyncIterator[Served]:
    """A running server on ``store``; at the end it is stopped, and nothing of it may be left.

    Args:
        store: None for a new MemoryStore.
        limits: what it takes.
        policy: who may come in; None: everybody.
        dialects: what else it speaks.
        files: whether it says that it takes FILES.
        fails: the error that ``Server.run`` is expected to raise, or None.
        hooks: of its commits.
    """
    store = WatchedStore() if store is None else store
    server = Server(store, limits=limits, policy=policy, dialects=dialects, hooks=hooks, files=files)
    failures: list[BlockprotoError] = []

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await server.run(task_status=task_status)
        except BlockprotoError as error:
            failures.append(error)

    async with trio.open_nursery() as running:
        await running.start(serve)
        async with trio.open_nursery() as nursery:
            yield Served(server, store, nursery)
            server.stop()
    assert [type(error) for error in failures] == ([fails] if fails else [])
    assert not server._connections
    assert fails or not server.engine.uploads._live

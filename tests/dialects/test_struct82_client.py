"""The sender of the dialect ``struct82``: against the server, against a server that lies, and over lines that break."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import trio
from blake3 import blake3
from peers import bytes_of, content_of, names_in, run
from struct82_peers import MIB, Answering, Sent, answering
from trio.testing import memory_stream_pair

from blockproto.connection.endpoint import Endpoint, Part, StreamEndpoint
from blockproto.dialects.sending import Ending, Outgoing
from blockproto.dialects.struct82_client import Struct82Sender, header_of
from blockproto.dialects.struct82_wire import PACKED_LITTLE, Reply
from blockproto.errors import (
    BlockprotoError,
    ConnectionLost,
    DigestMismatch,
    NameRefused,
    Refused,
    SourceChanged,
)
from blockproto.store import BlockDone
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.send_source import Progress

quick = pytest.mark.trio(run=run)
Dial = Callable[[], Awaitable[Endpoint]]


@contextmanager
def opened(
    folder: Path, content: bytes, on_progress: Callable[[Progress], None] | None = None
) -> Iterator[Outgoing]:
    """A file that is called film.bin on the server."""
    path = folder / "source"
    path.write_bytes(content)
    file = Outgoing(path, "film.bin", "server", on_progress)
    try:
        yield file
    finally:
        file.close()


def dial_to(answers: Answering, through: Callable[[Endpoint], Endpoint] = lambda endpoint: endpoint) -> Dial:
    async def dial() -> Endpoint:
        return through(StreamEndpoint((await answers.dial()).stream))

    return dial


def stored(answers: Answering, name: str = "film.bin") -> bytes:
    assert isinstance(answers.store, MemoryStore)
    return content_of(answers.store, name)


class Cut(StreamEndpoint):
    """A line that breaks after so many bytes were sent."""

    def __init__(self, endpoint: Endpoint, length: int) -> None:
        assert isinstance(endpoint, StreamEndpoint)
        super().__init__(endpoint._stream)
        self._left = length

    async def send(self, parts: object) -> None:
        assert isinstance(parts, list)
        for part in parts:
            view = memoryview(part)
            await super().send([view[: self._left]])
            self._left -= len(view)
            if self._left <= 0:
                await self.aclose()
                raise ConnectionLost("cut")


async def send_until_done(dial: Dial, file: Outgoing, connections: int = 5) -> Ending:
    """Like ``sending.send_file``: again and again."""
    sender = Struct82Sender(connections)
    while True:
        try:
            return await sender.send(dial, file)
        except ConnectionLost:
            await trio.lowlevel.checkpoint()


def kind_of(file: Outgoing) -> bytes:
    return header_of(file.filename, file.filesize).filetype


# ---- whole files ----------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("connections", [1, 5])
@pytest.mark.parametrize("filesize", [1, MIB, MIB + 1, 7 * MIB + 3])
async def test_a_file_arrives_and_the_same_again_sends_nothing(
    tmp_path: Path, filesize: int, connections: int
) -> None:
    content = bytes_of(filesize)
    seen: list[int] = []
    async with answering() as answers:
        with opened(tmp_path, content, lambda progress: seen.append(progress.position_bytes_done)) as file:
            ending = await Struct82Sender(connections).send(dial_to(answers), file)
        assert ending == Ending(sourceid=None, confirmed=True, stored_as="film.bin")
        assert (file.payload_bytes_sent, file.resumed, seen[-1]) == (filesize, False, filesize)
        assert stored(answers) == content
        with opened(tmp_path, content) as again:
            assert await Struct82Sender(connections).send(dial_to(answers), again) == ending
        assert (again.payload_bytes_sent, again.resumed, again.position) == (0, True, filesize)


@pytest.mark.clause("BP1-S82-014", "BP1-S82-019")
@quick
async def test_the_first_block_goes_first(tmp_path: Path) -> None:
    async with answering() as answers:
        with opened(tmp_path, bytes_of(3 * MIB)) as file:
            await Struct82Sender().send(dial_to(answers), file)
        blocknos = [work.blockno for work in answers.works if isinstance(work, BlockDone)]
        assert (blocknos[0], sorted(blocknos)) == (0, [0, 1, 2])


@quick
async def test_the_name_that_the_file_got_is_told(tmp_path: Path) -> None:
    async with answering() as answers:
        other = await answers.dial("10.0.0.9")
        await other.send(Sent(b"other").block(0))
        await other.stream.send_eof()
        await answers.settle()
        with opened(tmp_path, b"mine") as file:
            ending = await Struct82Sender().send(dial_to(answers), file)
        assert (file.filename, ending.stored_as) == ("film.bin", "film (1).bin")


@quick
async def test_what_is_held_is_not_sent_again(tmp_path: Path) -> None:
    async with answering() as answers:
        with opened(tmp_path, bytes_of(5 * MIB + 9)) as file:
            old = Sent((tmp_path / "source").read_bytes(), kind=kind_of(file))
            sender = await answers.dial()
            await sender.ask(old)
            for number in (4, 0, 2):
                await sender.put(old, number)
            await sender.stream.send_eof()
            await Struct82Sender().send(dial_to(answers), file)
        assert (file.payload_bytes_sent, file.resumed) == (2 * MIB + 9, True)
        assert stored(answers) == old.content


# ---- lines that break -----------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-S82-034")
@quick
async def test_lines_that_break_are_dialled_again_and_nothing_durable_is_sent_twice(tmp_path: Path) -> None:
    content = bytes_of(12 * MIB + 5)
    cuts = iter([3 * MIB, 2 * MIB + 7, 82, MIB, 5 * MIB])
    async with answering() as answers:

        def through(endpoint: Endpoint) -> Endpoint:
            length = next(cuts, None)
            return endpoint if length is None else Cut(endpoint, length)

        with opened(tmp_path, content) as file:
            await send_until_done(dial_to(answers, through), file, connections=2)
        assert stored(answers) == content
        blocks = [work for work in answers.works if isinstance(work, BlockDone)]
        assert sorted(work.blockno for work in blocks) == list(range(13))
        assert file.payload_bytes_sent >= len(content)


@quick
async def test_a_server_that_closes_at_once_may_not_speak_the_dialect(tmp_path: Path) -> None:
    async def dial() -> Endpoint:
        ours, theirs = memory_stream_pair()
        await theirs.send_eof()
        return StreamEndpoint(ours)

    with opened(tmp_path, b"x") as file, pytest.raises(ConnectionLost, match="--dialect struct82"):
        await Struct82Sender().send(dial, file)


# ---- what it refuses, and what it does not believe ------------------------------------------------------------


@pytest.mark.clause("BP1-S82-002")
@pytest.mark.parametrize(
    ("name", "filesize", "error"),
    [("a", 0, Refused), ("a", 2**31, Refused), ("a" * 51, 1, NameRefused), ("影" * 17, 1, NameRefused)],
)
def test_what_the_dialect_cannot_carry_is_refused(
    name: str, filesize: int, error: type[BlockprotoError]
) -> None:
    with pytest.raises(error, match="struct82"):
        header_of(name, filesize)


def test_the_greatest_file_and_the_longest_name_go() -> None:
    header = header_of("a" * 46 + ".bin", 2**31 - 1)
    assert (len(header.filename), header.filetype, header.blocknum) == (50, b"", 2048)


@quick
@pytest.mark.clause("BP1-S82-027")
@pytest.mark.parametrize("numbers", [(1, 0), (0,)])
async def test_a_part_of_another_file_of_the_same_name_and_size_is_noticed_before_anything_is_sent(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    async with answering() as answers:
        with opened(tmp_path, bytes_of(2 * MIB + 9, 8)) as file:
            other = Sent(bytes_of(2 * MIB + 9, 7), kind=kind_of(file))
            sender = await answers.dial()
            await sender.ask(other)
            for number in numbers:
                await sender.put(other, number)
            await sender.stream.send_eof()
            with pytest.raises(SourceChanged, match="--as"):
                await Struct82Sender().send(dial_to(answers), file)
        assert file.payload_bytes_sent == 0


@quick
async def test_a_refusal_says_what_the_error_table_says(tmp_path: Path) -> None:
    async with answering() as answers:
        assert isinstance(answers.store, MemoryStore)
        answers.store.room = 10
        with opened(tmp_path, bytes_of(1000)) as file:
            with pytest.raises(BlockprotoError, match="no room") as caught:
                await Struct82Sender().send(dial_to(answers), file)
            assert caught.value.retryable


class Liar:
    """A server that damages a block of 1,000 bytes so often before it takes it."""

    def __init__(self, content: bytes, damage: int) -> None:
        self.came = 0
        self._file = Sent(content)
        self._damage = damage
        self._ours, self._theirs = memory_stream_pair()

    async def dial(self) -> Endpoint:
        return StreamEndpoint(self._ours)

    async def run(self) -> None:
        received = bytearray()
        while some := await self._theirs.receive_some():
            received += some
            while len(received) >= 82 and (taken := self._answered(bytes(received))):
                del received[: taken[0]]
                await self._theirs.send_all(taken[1])

    def _answered(self, received: bytes) -> tuple[int, bytes] | None:
        """How many bytes are done with, and what is said to them."""
        header = PACKED_LITTLE.read(received)
        assert header is not None
        complete = self.came > self._damage
        if header.blockno == -1:
            root = self._file.root if complete else blake3(b"").digest()
            reply = PACKED_LITTLE.write_reply(Reply(0, -1, int(complete), complete, root))
            return 82, reply + (b"\x03" + bytes(256) if complete else b"\0")
        if len(received) < 1082:
            return None
        self.came += 1
        complete = self.came > self._damage
        digest = self._file.digest(0) if complete else bytes(32)
        return 1082, PACKED_LITTLE.write_reply(Reply(0, 0, 1, complete, digest))


@quick
@pytest.mark.clause("BP1-S82-027")
@pytest.mark.parametrize(("damage", "came"), [(2, 3), (99, 5)])
async def test_a_block_that_arrived_damaged_is_sent_again_and_given_up_in_the_end(
    tmp_path: Path, damage: int, came: int
) -> None:
    content = bytes_of(1000)
    liar = Liar(content, damage)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(liar.run)
        with opened(tmp_path, content) as file:
            if damage < 5:
                assert (await Struct82Sender().send(liar.dial, file)).confirmed
            else:
                with pytest.raises(DigestMismatch):
                    await Struct82Sender().send(liar.dial, file)
        nursery.cancel_scope.cancel()
    assert liar.came == came


@quick
async def test_a_file_that_changes_while_it_is_sent_is_no_success(tmp_path: Path) -> None:
    async with answering() as answers:

        def change(progress: Progress) -> None:
            if progress.payload_bytes_sent == MIB:
                os.truncate(tmp_path / "source", 2 * MIB)

        with opened(tmp_path, bytes_of(3 * MIB), change) as file, pytest.raises(SourceChanged):
            await Struct82Sender(1).send(dial_to(answers), file)
        assert isinstance(answers.store, MemoryStore)
        assert names_in(answers.store) == []


class _LostTogether(StreamEndpoint):
    """A connection that is lost with its first block, at the same moment as ``count`` others."""

    waiting: ClassVar[list[trio.Event]] = []

    def __init__(self, endpoint: Endpoint, count: int) -> None:
        assert isinstance(endpoint, StreamEndpoint)
        super().__init__(endpoint._stream)
        self._count = count

    async def send(self, parts: Sequence[Part]) -> None:
        if not len(parts[1]):
            await super().send(parts)
            return
        event = trio.Event()
        self.waiting.append(event)
        if len(self.waiting) == self._count:
            for one in self.waiting:
                one.set()
        await event.wait()
        raise ConnectionLost("gone")


@quick
async def test_several_connections_lost_at_once_are_one_loss(tmp_path: Path) -> None:
    _LostTogether.waiting = []
    async with answering() as answers:
        dial = dial_to(answers, lambda endpoint: _LostTogether(endpoint, 3))
        with opened(tmp_path, bytes_of(6 * MIB)) as file, pytest.raises(ConnectionLost, match="gone"):
            await Struct82Sender(3).send(dial, file)
    assert len(_LostTogether.waiting) == 3

"""The sender of the dialect ``struct82``: against the server, against a server that lies, and over lines that break."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from peers import bytes_of, content_of, names_in, run
from struct82_peers import MIB, Answering, Sent, answering
from trio.testing import memory_stream_pair

from blockproto.blocks import BLOCK_LENGTH
from blockproto.dialects.struct82_client import header_of, send_file
from blockproto.dialects.struct82_wire import PACKED_LITTLE, Reply
from blockproto.errors import (
    BlockprotoError,
    ConnectionLost,
    DigestMismatch,
    NameRefused,
    Refused,
    SourceChanged,
)
from blockproto.link.endpoint import Endpoint, StreamEndpoint
from blockproto.names import SafeName
from blockproto.sources import FileSource
from blockproto.store import Facts, IfExists
from blockproto.store.memory import MemoryStore
from blockproto.transfer.sending import Progress

quick = pytest.mark.trio(run=run)
Dial = Callable[[], Awaitable[Endpoint]]


def source_of(folder: Path, content: bytes, name: str = "film.bin") -> FileSource:
    path = folder / "source"
    path.write_bytes(content)
    return FileSource(path, name, IfExists.KEEP)


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


# ---- whole files ----------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("connections", [1, 5])
@pytest.mark.parametrize("filesize", [1, MIB, MIB + 1, 7 * MIB + 3])
async def test_a_file_arrives_and_the_same_again_sends_nothing(
    tmp_path: Path, filesize: int, connections: int
) -> None:
    content = bytes_of(filesize)
    blocknum = -(-filesize // MIB)
    seen: list[int] = []

    def note(progress: Progress) -> None:
        seen.append(progress.position_bytes_done)

    async with answering() as answers:
        source = source_of(tmp_path, content)
        first = await send_file(dial_to(answers), source, connections=connections, on_progress=note)
        again = await send_file(dial_to(answers), source, connections=connections)
        source.close()
        assert stored(answers) == content
    assert (first.blocks_sent, first.blocks_skipped, first.resumed) == (blocknum, 0, False)
    assert (first.stored_as, first.root) == ("film.bin", Sent(content).root.hex())
    assert first.payload_bytes_sent == filesize == seen[-1]
    assert first.connections == min(connections, blocknum)
    assert (again.blocks_sent, again.blocks_skipped, again.resumed) == (0, blocknum, True)
    assert again.root == first.root


@quick
async def test_the_name_that_the_file_got_is_told(tmp_path: Path) -> None:
    async with answering() as answers:
        other = await answers.dial("10.0.0.9")
        await other.send(Sent(b"other").block(0))
        await other.stream.send_eof()
        await answers.settle()
        source = source_of(tmp_path, b"mine")
        receipt = await send_file(dial_to(answers), source)
        source.close()
        assert (receipt.filename, receipt.stored_as) == ("film.bin", "film (1).bin")


@quick
async def test_what_is_held_is_not_sent_again(tmp_path: Path) -> None:
    file = Sent(bytes_of(5 * MIB + 9), kind=b"application/x", name=b"film.bin")
    async with answering() as answers:
        source = source_of(tmp_path, file.content)
        question = header_of(source.facts)
        file = replace(file, kind=question.filetype)
        sender = await answers.dial("stream")
        await sender.ask(file)
        for number in (4, 0, 2):
            await sender.put(file, number)
        await sender.stream.send_eof()
        receipt = await send_file(dial_to_host(answers, "stream"), source)
        source.close()
        assert (receipt.blocks_sent, receipt.blocks_skipped, receipt.resumed) == (3, 3, True)
        assert stored(answers) == file.content


def dial_to_host(answers: Answering, host: str) -> Dial:
    async def dial() -> Endpoint:
        return StreamEndpoint((await answers.dial(host)).stream)

    return dial


# ---- lines that break -----------------------------------------------------------------------------------------


@quick
async def test_lines_that_break_are_dialled_again_and_nothing_durable_is_sent_twice(tmp_path: Path) -> None:
    content = bytes_of(12 * MIB + 5)
    cuts = iter([3 * MIB, 2 * MIB + 7, 82, MIB, 5 * MIB])
    async with answering() as answers:
        source = source_of(tmp_path, content)

        def through(endpoint: Endpoint) -> Endpoint:
            length = next(cuts, None)
            return endpoint if length is None else Cut(endpoint, length)

        receipt = await send_file(dial_to(answers, through), source, connections=2)
        source.close()
        assert stored(answers) == content
    assert receipt.blocks_skipped == 0
    assert receipt.blocks_sent >= 13


@quick
async def test_a_server_that_cannot_be_reached_is_told_at_once(tmp_path: Path) -> None:
    source = source_of(tmp_path, b"x")

    async def dial() -> Endpoint:
        raise ConnectionLost("nobody is there")

    with pytest.raises(ConnectionLost, match="nobody is there"):
        await send_file(dial, source)
    source.close()


@quick
async def test_a_server_that_closes_at_once_may_not_speak_the_dialect(tmp_path: Path) -> None:
    source = source_of(tmp_path, b"x")

    async def dial() -> Endpoint:
        ours, theirs = memory_stream_pair()
        await theirs.send_eof()
        return StreamEndpoint(ours)

    with pytest.raises(ConnectionLost, match="--dialect struct82"):
        await send_file(dial, source)
    source.close()


# ---- what it refuses, and what it does not believe ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "filesize", "if_exists", "error"),
    [
        ("a", 0, IfExists.KEEP, Refused),
        ("a", 2**31, IfExists.KEEP, Refused),
        ("a", 1, IfExists.REPLACE, Refused),
        ("a" * 51, 1, IfExists.KEEP, NameRefused),
        ("影" * 17, 1, IfExists.KEEP, NameRefused),
        ("folder/a", 1, IfExists.KEEP, NameRefused),
    ],
)
def test_what_the_dialect_cannot_carry_is_refused(
    name: str, filesize: int, if_exists: IfExists, error: type[BlockprotoError]
) -> None:
    with pytest.raises(error, match="struct82"):
        header_of(Facts(SafeName.parse(name), "", filesize, if_exists=if_exists))


def test_the_greatest_file_and_the_longest_name_go() -> None:
    header = header_of(Facts(SafeName.parse("a" * 50), "application/octet-stream", 2**31 - 1))
    assert (len(header.filename), header.filetype, header.blocknum) == (50, b"", 2048)


@quick
@pytest.mark.clause("BP1-S82-027")
@pytest.mark.parametrize("numbers", [(1, 0), (1, 0, 2)])
async def test_another_file_of_the_same_name_and_size_is_noticed_before_anything_is_sent(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    other = Sent(bytes_of(2 * MIB + 9, 7))
    async with answering() as answers:
        source = source_of(tmp_path, bytes_of(2 * MIB + 9, 8))
        other = replace(other, kind=header_of(source.facts).filetype)
        sender = await answers.dial("stream")
        await sender.ask(other)
        for number in numbers:
            await sender.put(other, number)
        await sender.stream.send_eof()
        with pytest.raises(SourceChanged, match="--as"):
            await send_file(dial_to_host(answers, "stream"), source)
        source.close()
        assert isinstance(answers.store, MemoryStore)
        assert len(names_in(answers.store)) == (len(numbers) == 3)


@quick
async def test_a_refusal_says_what_the_error_table_says(tmp_path: Path) -> None:
    async with answering() as answers:
        assert isinstance(answers.store, MemoryStore)
        answers.store.room = 10
        source = source_of(tmp_path, bytes_of(1000))
        with pytest.raises(BlockprotoError, match="no room") as caught:
            await send_file(dial_to(answers), source)
        source.close()
        assert caught.value.retryable


async def _lying(damage: int, tmp_path: Path) -> int:
    """Send one block to a server that damages it so often; how many times it came."""
    content = bytes_of(1000)
    file = Sent(content)
    source = source_of(tmp_path, content)
    came = 0
    ours, theirs = memory_stream_pair()

    async def dial() -> Endpoint:
        return StreamEndpoint(ours)

    async def lie() -> None:
        nonlocal came
        received = bytearray()
        complete = False
        while some := await theirs.receive_some():
            received += some
            while len(received) >= 82:
                header = PACKED_LITTLE.read(received)
                assert header is not None
                if header.blockno == -1:
                    del received[:82]
                    root = (
                        file.root
                        if complete
                        else bytes.fromhex("af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262")
                    )
                    await theirs.send_all(PACKED_LITTLE.write_reply(Reply(0, -1, complete, complete, root)))
                    await theirs.send_all((b"\x03" + bytes(256)) if complete else b"\0")
                elif len(received) < 1082:
                    break
                else:
                    del received[:1082]
                    came += 1
                    complete = came > damage
                    digest = file.digest(0) if complete else bytes(32)
                    await theirs.send_all(PACKED_LITTLE.write_reply(Reply(0, 0, 1, complete, digest)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lie)
        try:
            await send_file(dial, source)
        finally:
            source.close()
            nursery.cancel_scope.cancel()
    return came


@quick
@pytest.mark.clause("BP1-S82-027")
async def test_a_block_that_arrived_damaged_is_sent_again(tmp_path: Path) -> None:
    assert await _lying(2, tmp_path) == 3


@quick
async def test_who_damages_every_block_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await _lying(99, tmp_path)
    assert caught.group_contains(DigestMismatch)


@quick
async def test_a_file_that_changes_while_it_is_sent_is_no_success(tmp_path: Path) -> None:
    content = bytes_of(3 * MIB)
    async with answering() as answers:
        source = source_of(tmp_path, content)

        def change(progress: Progress) -> None:
            if progress.payload_bytes_sent == 3 * MIB:
                with open(tmp_path / "source", "r+b") as file:
                    file.truncate(2 * BLOCK_LENGTH)
                os.utime(tmp_path / "source")

        receipt = await send_file(dial_to(answers), source, connections=1, on_progress=change)
        assert receipt.root == Sent(content).root.hex()  # every byte was read before it changed
        with pytest.raises(SourceChanged):
            await send_file(dial_to(answers), source)
        source.close()

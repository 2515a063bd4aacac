"""Files with the same name, type and size and other bytes, in the dialect ``struct82``: each of them is kept."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from peers import bytes_of, content_of, names_in, run, uploads_in
from processes import Ran, Server
from struct82_peers import MIB, Answering, Sender, Sent, answering

from blockproto.common.names import SafeName
from blockproto.dialects import struct82
from blockproto.dialects.dialect_connection import SILENCE_S
from blockproto.dialects.struct82 import Again
from blockproto.store import Remove
from blockproto.testing.memory_store import MemoryStore

quick = pytest.mark.trio(run=run)


def memory(answers: Answering) -> MemoryStore:
    assert isinstance(answers.store, MemoryStore)
    return answers.store


def contents(answers: Answering) -> dict[str, bytes]:
    store = memory(answers)
    return {name: content_of(store, name) for name in names_in(store)}


async def end(sender: Sender) -> None:
    await sender.stream.send_eof()
    assert await sender.rest() == b""
    await sender.stream.aclose()


async def send_blindly(answers: Answering, file: Sent, numbers: list[int], *, each: bool) -> None:
    """A program that never reads; ``each`` block over a connection of its own, or all over one."""
    groups = [[number] for number in numbers] if each else [numbers]
    for group in groups:
        sender = await answers.dial()
        for number in group:
            await sender.send(file.block(number))
        await end(sender)
        await answers.settle()


def changed(file: Sent, *indices: int) -> Sent:
    """The same file with other bytes in some blocks."""
    content = bytearray(file.content)
    for index in indices:
        content[index * MIB] ^= 0xFF
    return Sent(bytes(content), file.name, file.kind, file.layout, file.first, file.one_more)


@quick
@pytest.mark.clause("BP1-S82-032")
@pytest.mark.parametrize("filesize", [1, 100, MIB, MIB + 100])
async def test_another_file_of_the_same_name_and_size_is_kept_beside_the_first(filesize: int) -> None:
    one, two = Sent(bytes_of(filesize, 1)), Sent(bytes_of(filesize, 2))
    async with answering() as answers:
        sender = await answers.dial()
        await sender.ask(one)
        for file, name in ((one, "film.bin"), (two, "film (1).bin")):
            replies = [await sender.put(file, number) for number in file.numbers]
            assert [reply.code for reply in replies] == [0] * len(replies)
            assert replies[-1].complete == 1
            answer = await sender.ask(file)
            assert (answer.stored_as, answer.reply.digest) == (name, file.root)
        assert (await sender.put(two, 0)).complete == 1  # which is the newest
        await end(sender)
        assert contents(answers) == {"film.bin": one.content, "film (1).bin": two.content}


@quick
@pytest.mark.clause("BP1-S82-032")
@pytest.mark.parametrize("each", [False, True], ids=["one connection", "one for each block"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "differs", [index for n in (1, 2, 3) for index in itertools.combinations(range(3), n)]
)
async def test_whatever_blocks_differ_and_however_they_come(
    differs: tuple[int, ...], first: int, each: bool
) -> None:
    """Blocks that are the same in both files came before it was known that there are two."""
    one = Sent(bytes_of(2 * MIB + 100), first=first)
    two = changed(one, *differs)
    orders = [list(one.numbers), list(reversed(one.numbers))]
    orders.append(random.Random(str(differs)).sample(orders[0], 3))
    for order in orders:
        async with answering() as answers:
            await send_blindly(answers, one, list(one.numbers), each=False)
            await send_blindly(answers, two, order, each=each)
            assert contents(answers) == {"film.bin": one.content, "film (1).bin": two.content}
            assert not uploads_in(memory(answers))


@quick
async def test_a_third_and_a_fourth_are_kept_too_and_each_is_found_again_after_a_restart() -> None:
    store = MemoryStore()
    files = [Sent(bytes_of(MIB + 5, seed)) for seed in range(4)]
    for file in files:
        async with answering(store) as answers:
            await send_blindly(answers, file, [0, 1], each=True)
        store = store.survivor()
    async with answering(store) as answers:
        assert sorted(contents(answers).values()) == sorted(file.content for file in files)
        sender = await answers.dial()
        assert (await sender.ask(files[-1])).reply.digest == files[
            -1
        ].root  # the newest is what is asked about
        await end(sender)


@quick
async def test_many_versions_are_found_again() -> None:
    store = MemoryStore()
    async with answering(store) as answers:
        sender = await answers.dial()
        for seed in range(150):
            await sender.send(Sent(bytes_of(9, seed)).block(0))
        await end(sender)
        await answers.settle()
        assert len(names_in(memory(answers))) == 150
    async with answering(store.survivor()) as answers:
        sender = await answers.dial()
        answer = await sender.ask(Sent(bytes_of(9, 149)))
        assert answer.reply.digest == Sent(bytes_of(9, 149)).root
        await end(sender)


@quick
async def test_an_unfinished_version_goes_on_after_a_restart() -> None:
    store = MemoryStore()
    one = Sent(bytes_of(2 * MIB + 100))
    two = changed(one, 0, 1, 2)
    async with answering(store) as answers:
        await send_blindly(answers, one, [0, 1, 2], each=False)
        await send_blindly(answers, two, [0], each=False)
    async with answering(store.survivor()) as answers:
        sender = await answers.dial()
        answer = await sender.ask(two)
        assert (answer.reply.complete, answer.bits) == (0, {0})
        await sender.put(two, 2)
        assert (await sender.put(two, 1)).complete == 1
        await end(sender)
        assert contents(answers) == {"film.bin": one.content, "film (1).bin": two.content}


@quick
async def test_a_file_sent_again_and_again_is_stored_once_whatever_came_between() -> None:
    one = Sent(bytes_of(2 * MIB + 100))
    async with answering() as answers:
        for order in ([0, 1, 2], [0, 1], [2, 0, 0, 1], [1], [0, 1, 2]):
            await send_blindly(answers, one, order, each=False)
        assert contents(answers) == {"film.bin": one.content}
        assert not uploads_in(memory(answers))


@quick
async def test_a_block_that_comes_again_a_second_time_begins_another_pass() -> None:
    """Blocks 0 and 1 came again from the old file; then the new one comes, its last block before the others."""
    one = Sent(bytes_of(2 * MIB + 100))
    two = changed(one, 0, 1, 2)
    async with answering() as answers:
        await send_blindly(answers, one, [0, 1, 2, 0, 1], each=False)
        await send_blindly(answers, two, [0, 2, 1], each=False)
        assert contents(answers) == {"film.bin": one.content, "film (1).bin": two.content}


@quick
async def test_when_the_complete_file_was_removed_its_number_is_free_again() -> None:
    one, two = Sent(bytes_of(100, 1)), Sent(bytes_of(100, 2))
    async with answering() as answers:
        for file in (one, two):
            await send_blindly(answers, file, [0], each=False)
        removed = trio.Event()
        work = Remove(SafeName("film.bin"))
        answers.server.engine.uploads.committer.submit(work, lambda _: removed.set(), principal=bytes(16))
        await removed.wait()
        await send_blindly(answers, one, [0], each=False)
        assert one.content in contents(answers).values()


def test_what_came_again_is_forgotten_after_a_while_and_bounded() -> None:
    again = Again()
    identity = ("10.0.0.1", b"a", b"", 5)
    again.of(identity, 0.0).add(1)
    assert again.of(identity, SILENCE_S) == {1}
    assert again.of(identity, 2 * SILENCE_S + 1) == set()
    again.of(identity, 3 * SILENCE_S).add(2)
    for no in range(struct82.AGAIN_FILES_MAX):
        again.of(("10.0.0.1", b"b", b"", no), 3 * SILENCE_S)
    assert again.of(identity, 3 * SILENCE_S) == set()


def test_put_keeps_a_changed_file_beside_the_old_one(
    start_server: Callable[..., Server], run: Callable[..., Ran], tmp_path: Path
) -> None:
    server = start_server(None, "--dialect", "struct82")
    path = tmp_path / "log.bin"
    versions = [bytes_of(3 * MIB + 9, 1)]
    versions.append(versions[0][:-1] + b"x")  # all but the last block are the same
    for content in versions:
        path.write_bytes(content)
        ran = run("put", "--dialect", "struct82", path, f"{server.address}/", "--json")
        assert ran.status == 0, ran.err
    assert ran.objects[0]["stored_as"] == "log (1).bin"
    assert {one.read_bytes() for one in server.folder.glob("*.bin")} == set(versions)
    again = run("put", "--dialect", "struct82", path, f"{server.address}/", "--json")
    assert again.objects[0]["payload_bytes_sent"] == 0


def test_uploads_shows_the_bytes_that_are_there_though_the_first_block_is_missing(
    start_server: Callable[..., Server], run: Callable[..., Ran]
) -> None:
    server = start_server(None, "--dialect", "struct82")
    file = Sent(bytes_of(3 * MIB + 5))
    with socket.create_connection(("127.0.0.1", server.port), 30) as program:
        program.sendall(file.header(-1))
        assert len(program.recv(49, socket.MSG_WAITALL)) == 49
        for number in (2, 1):
            program.sendall(file.block(number))
            assert len(program.recv(48, socket.MSG_WAITALL)) == 48
        shown = run("uploads", server.address)
    assert "2.0 MiB of 3.0 MiB (2 blocks)" in shown.out

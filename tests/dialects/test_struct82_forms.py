"""First headers that can be read in several ways, and files without bytes, in the dialect ``struct82``."""

from __future__ import annotations

import itertools
import logging
import struct

import pytest
import trio
from peers import bytes_of, content_of, names_in, run
from struct82_peers import LAYOUTS, MIB, Answering, Layout, Sent, answering

from blockproto.dialects.struct82_line import FOLLOWS_S
from blockproto.dialects.struct82_wire import (
    ALIGNED_BIG,
    ALIGNED_LITTLE,
    FORMS,
    PACKED_BIG,
    Form,
    Header,
    narrow,
)
from blockproto.testing.memory_store import MemoryStore

quick = pytest.mark.trio(run=run)
LITTLE, BIG = LAYOUTS["aligned little"], LAYOUTS["aligned big"]
PADS = [bytes(pad) for pad in itertools.product(range(256), range(256))]


def memory(answers: Answering) -> MemoryStore:
    assert isinstance(answers.store, MemoryStore)
    return answers.store


def padded(file: Sent, number: int, pad: bytes) -> bytes:
    """An aligned header whose gap holds ``pad``."""
    raw = file.header(number)
    return raw[:70] + pad + raw[72:]


def form_of(stream: bytes, forms: tuple[Form, ...] = FORMS) -> tuple[Form, ...]:
    """What ``narrow`` says when everything in ``stream`` has come and nothing else will."""
    wanted = 82
    while isinstance(found := narrow(forms, stream[:wanted], over=wanted > len(stream)), int):
        assert found > wanted, "it asks for what it has"
        wanted = found
    return found


async def send(answers: Answering, raw: bytes) -> None:
    """A program that sends and closes, and never reads."""
    sender = await answers.dial()
    await sender.send(raw)
    await sender.stream.send_eof()
    assert await sender.rest() == b""
    await sender.stream.aclose()
    await answers.settle()


# ---- what stands in the gap -----------------------------------------------------------------------------------


@pytest.mark.clause("BP1-S82-001", "BP1-S82-003", "BP1-S82-035")
@pytest.mark.parametrize("layout", [LITTLE, BIG], ids=["little", "big"])
@pytest.mark.parametrize("behind", ["nothing", "another"])
def test_the_gap_of_an_aligned_header_may_hold_anything(layout: Layout, behind: str) -> None:
    """All 65,536 values; what follows tells the form."""
    wanted = ALIGNED_LITTLE if layout is LITTLE else ALIGNED_BIG
    file, other = Sent(b"hello, blocks\n", layout=layout), Sent(b"other", name=b"other", layout=layout)
    tail = {"nothing": b"", "another": other.block(0)}[behind]
    for pad in PADS:
        assert form_of(padded(file, 0, pad) + file.content + tail) == (wanted,), pad.hex()


@pytest.mark.clause("BP1-S82-035")
@pytest.mark.parametrize("layout", [LITTLE, BIG], ids=["little", "big"])
@pytest.mark.parametrize("filesize", [1, 255, 60_000, 65_535, 65_536, 70_000, MIB - 1, MIB, MIB + 5])
@pytest.mark.parametrize("first", [0, 1])
def test_files_of_other_sizes_and_numberings_are_read_as_they_were_written(
    layout: Layout, filesize: int, first: int
) -> None:
    wanted = ALIGNED_LITTLE if layout is LITTLE else ALIGNED_BIG
    file = Sent(bytes_of(filesize), layout=layout, first=first)
    block = file.payload(first)
    for pad in [bytes([0x0F, low]) for low in range(0xEE, 0x100)] + PADS[::4001]:
        head = padded(file, first, pad)
        for tail in (b"", padded(file, first, pad) + block, head[:40]):
            assert form_of(head + block + tail) == (wanted,), pad.hex()


@pytest.mark.clause("BP1-S82-035")
def test_a_great_packed_file_that_looks_like_a_little_one_is_not_taken_for_it() -> None:
    """The bytes of a film begin with zeros; read aligned, a file of a few bytes begins."""
    for low in (1, 14, 255, 60_000):
        filesize = 0x0FF00000 | low << 4 & 0xFFFF | 0xE
        head = struct.pack(">50s20siii", b"film", b"video", filesize, 256, 0)
        film = bytes(4) + bytes_of(MIB - 4, 3)
        assert sum(form.read(head + film) is not None for form in FORMS) == 2
        assert form_of(head + film) == (PACKED_BIG,)
        assert form_of(head + film[: MIB // 2]) == (PACKED_BIG,)


@quick
@pytest.mark.parametrize("low", range(0xF0, 0x100))
async def test_a_little_file_arrives_whatever_stands_before_its_size(low: int) -> None:
    one, two = Sent(b"hello, blocks\n", layout=LITTLE), Sent(b"two", name=b"two", layout=LITTLE)
    pad = bytes([0x0F, low])
    async with answering() as answers:
        await send(answers, padded(one, 0, pad) + one.payload(0))
        assert content_of(memory(answers), "film.bin") == one.content
        await send(answers, padded(two, 0, pad) + two.payload(0) + padded(one, 0, pad) + bytes_of(14, 5))
        assert content_of(memory(answers), "two") == b"two"
        assert content_of(memory(answers), "film (1).bin") == bytes_of(14, 5)


@quick
async def test_who_stays_after_such_a_file_has_it_stored_when_nothing_follows() -> None:
    one = Sent(b"hello, blocks\n", layout=LITTLE)
    async with answering() as answers:
        sender = await answers.dial()
        await sender.send(padded(one, 0, b"\x0f\xff") + one.payload(0))
        with trio.move_on_after(FOLLOWS_S + 1):
            await trio.sleep_forever()
        assert content_of(memory(answers), "film.bin") == one.content
        await sender.send(one.header(-1))  # and the form is known now
        reply = await sender.reply(one)
        assert (reply.code, reply.complete) == (0, 1)
        await sender.stream.aclose()


@quick
async def test_a_great_packed_file_arrives_though_it_looks_like_a_little_one() -> None:
    """Only its first block, which is acknowledged as such to who asks."""
    filesize = 0x0FF0000E
    film = bytes(4) + bytes_of(MIB - 4, 3)
    head = struct.pack(">50s20siii", b"film", b"video", filesize, 256, 0)
    question = struct.pack(">50s20siii", b"film", b"video", filesize, 256, -1)
    async with answering() as answers:
        sender = await answers.dial()
        await sender.send(head + film + question)
        code, blockno, held, complete = struct.unpack(">iiii", (await sender.receive(48))[:16])
        assert (code, blockno, held, complete) == (0, -1, 1, 0)
        await sender.stream.aclose()
        await answers.settle()
        assert names_in(memory(answers)) == []


@quick
async def test_a_block_that_is_cut_off_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "blockproto")
    file = Sent(bytes_of(100))
    async with answering() as answers:
        await send(answers, file.block(0)[:-1])
        assert names_in(memory(answers)) == []
    assert "ended in the middle of block 0 of film.bin" in caplog.text


@pytest.mark.clause("BP1-S82-018")
@quick
async def test_the_header_of_another_file_tells_the_numbering_too() -> None:
    """The last block came first, then a file of another name: the short reading was right."""
    one, two = Sent(bytes_of(MIB + 7)), Sent(b"two", name=b"two")
    async with answering() as answers:
        await send(answers, one.block(1) + two.block(0) + one.block(0))
        assert content_of(memory(answers), "two") == b"two"
        assert content_of(memory(answers), "film.bin") == one.content


# ---- files without bytes --------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-S82-036")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("blocknum", "blockno"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("place", ["first", "middle", "last", "alone", "twice"])
@quick
async def test_an_empty_file_is_stored_and_costs_the_others_nothing(
    layout: Layout, blocknum: int, blockno: int, place: str
) -> None:
    empty = layout.header(b"empty", b"text", 0, blocknum, blockno)
    one = Sent(bytes_of(MIB + 3), layout=layout)
    two = Sent(b"two", name=b"two", layout=layout)
    files = one.block(0) + one.block(1)
    raw = {
        "first": empty + files + two.block(0),
        "middle": files + empty + two.block(0),
        "last": files + two.block(0) + empty,
        "alone": empty,
        "twice": empty + empty + files + empty + two.block(0),
    }[place]
    async with answering() as answers:
        await send(answers, raw)
        expected = {"empty": b""}
        if place != "alone":
            expected |= {"film.bin": one.content, "two": b"two"}
        stored = memory(answers)
        assert {name: content_of(stored, name) for name in names_in(stored)} == expected


@pytest.mark.clause("BP1-S82-036")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@quick
async def test_who_asks_about_an_empty_file_is_answered(layout: Layout) -> None:
    async with answering() as answers:
        for blocknum, name in ((1, b"one"), (0, b"none")):
            file = Sent(b"", name=name, layout=layout, one_more=bool(blocknum))
            before = Sent(b"before" + name, name=b"b" + name, layout=layout)
            sender = await answers.dial()
            await sender.send(before.block(0))
            answer = await sender.ask(file)
            assert (answer.reply.complete, answer.reply.held, answer.stored_as) == (1, 0, name.decode())
            await sender.send(file.header(0))
            reply = await sender.reply(file)
            assert (reply.code, reply.complete) == (0, 1)
            await sender.stream.send_eof()
            await sender.stream.aclose()
        assert names_in(memory(answers)) == ["bnone", "bone", "none", "one"]


@quick
async def test_many_files_without_bytes_over_one_connection() -> None:
    names = [f"empty{no}" for no in range(30)]
    async with answering() as answers:
        await send(answers, b"".join(LITTLE.header(name.encode(), b"", 0, 0, 0) for name in names))
        assert names_in(memory(answers)) == sorted(names)


@pytest.mark.parametrize(
    ("filesize", "blocknum"), [(-1, 1), (-(2**31), 0), (0, 2), (0, -1), (5, 0), (MIB, 3)]
)
def test_what_no_file_can_say_is_no_header(filesize: int, blocknum: int) -> None:
    for layout in LAYOUTS.values():
        raw = layout.header(b"a", b"", filesize, blocknum, 0) + b"xx"
        assert form_of(raw + bytes_of(200)) == ()


def test_a_header_says_how_much_may_follow() -> None:
    assert Header(b"a", b"", 14, 1, -1).lengths() == {0}
    assert Header(b"a", b"", 14, 1, 0).lengths() == {14}
    assert Header(b"a", b"", 14, 1, 1).lengths() == {14}
    assert Header(b"a", b"", 2 * MIB + 5, 3, 2).lengths() == {5, MIB}
    assert Header(b"a", b"", 0, 1, 1).lengths() == {0}

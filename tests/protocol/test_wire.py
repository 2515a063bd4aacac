from __future__ import annotations

import random
import struct
import sys
import time
import tracemalloc
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from fuzz import message as random_message
from hypothesis import given
from hypothesis import strategies as st

from blockproto import wire
from blockproto.common import file_table, head_layout
from blockproto.common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, blocknum_of
from blockproto.errors import BadFacts, LocalProtocolError, MalformedFrame, Unsupported
from blockproto.store import IfExists
from blockproto.wire import (
    Ack,
    Auth,
    Block,
    Cancel,
    Commit,
    Committed,
    Credit,
    Error,
    Fetch,
    FileItem,
    Files,
    GoAway,
    Have,
    Header,
    Hello,
    List,
    Message,
    Open,
    Opened,
    Piece,
    Ping,
    PrincipalItem,
    ReceiptItem,
    RefusalItem,
    Remove,
    Result,
    Stored,
    StoredItem,
    Type,
    UploadItem,
    check_frame,
    decode_head,
    decode_header,
    encode_frame,
    frame_bytes,
)

ID, DIGEST = bytes(range(16)), bytes(range(32))
U63 = 2**63 - 1


def there_and_back(message: Message, stream: int = 1, payload_length: int = 0) -> Message | None:
    frame = encode_frame(stream, message, payload_length)
    header = decode_header(frame)
    assert header.stream == stream
    assert header.payload_length == payload_length
    assert check_frame(frame[:16], frame[16:], header.check)
    return decode_head(header, memoryview(frame)[16:])


def head_of(message: Message) -> tuple[Header, bytes]:
    frame = encode_frame(1, message)
    return decode_header(frame), frame[16:]


def decode(number: int, head: bytes, flags: int = 0) -> Message | None:
    return decode_head(Header(len(head), number, flags, len(head), 1, 0), head)


def tlv(number: int, value: bytes = b"") -> bytes:
    return struct.pack(">HH", number, len(value)) + value


# Round trips

u16, u32, u63 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, U63)
known_u32 = st.integers(0, 0xFFFFFFFE)
i64 = st.integers(-(2**63), U63)
ids, digests = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
any_text = st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "surrogateescape")) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=60
)
filetypes = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=255)
people_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
modes = st.integers(0, 0o777)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    found, at = [], -1
    for gap, count in draw(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), max_size=8)):
        found.append((at + gap, count))
        at += gap + count
    return tuple(found)


prefixes = st.dictionaries(u32, st.integers(1, BLOCK_LENGTH), max_size=5).map(
    lambda d: tuple(sorted(d.items()))
)
pages = st.dictionaries(u32, digests, max_size=5).map(lambda d: tuple(sorted(d.items())))
sizes = st.integers(0, 2**40)
facts = st.just((None, None)) | sizes.map(lambda size: (size, blocknum_of(size)))


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    filesize, blocknum = draw(facts)
    blockno = draw(st.integers(0, 2**32 - 2 if blocknum is None else max(0, blocknum - 1)))
    start = blockno * BLOCK_LENGTH
    end = start + BLOCK_LENGTH if filesize is None else min(start + BLOCK_LENGTH, filesize)
    digest = draw(maybe(digests))
    return Block(
        draw(ids), filesize, blocknum, blockno, draw(st.integers(start, end)), draw(any_text), draw(filetypes), digest,
        digest is not None and draw(st.booleans()), draw(maybe(i64)), draw(maybe(modes)),
        draw(maybe(st.integers(0, 2))), draw(maybe(st.integers(0, 2))),
    )  # fmt: skip


@st.composite
def opens(draw: st.DrawFn) -> Open:
    filesize, blocknum = draw(facts)
    return Open(
        draw(ids), draw(u63), filesize, blocknum, draw(any_text), draw(filetypes), draw(st.integers(0, 2)),
        draw(st.integers(0, 2)), draw(maybe(i64)), draw(maybe(modes)), *(draw(maybe(digests)) for _ in range(2)),
        *(draw(maybe(ids)) for _ in range(2)),
    )  # fmt: skip


@st.composite
def pieces(draw: st.DrawFn) -> Piece:
    digest = draw(maybe(digests))
    return Piece(draw(u63), digest, digest is not None and draw(st.booleans()))


file_items = st.builds(
    FileItem, st.integers(0, 255), u63, i64, u32, ids, ids, any_text, any_text, maybe(digests), maybe(digests)
)
upload_items = st.builds(
    UploadItem, ids, ids, maybe(u63), maybe(known_u32), u63, u32, maybe(u63), any_text, any_text
)
receipt_items = st.builds(ReceiptItem, ids, ids, digests, u63, any_text, maybe(digests))
principal_items = st.builds(PrincipalItem, ids, maybe(u63), u63, maybe(u63), maybe(u63), u32, any_text)
names_of_files = st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "surrogateescape"))


@st.composite
def files(draw: st.DrawFn) -> Files:
    names = tuple(draw(st.lists(names_of_files, max_size=5)))
    folders = tuple(draw(st.lists(any_text, min_size=1, max_size=4)))
    filetypes_ = tuple(draw(st.lists(any_text, min_size=1, max_size=4)))
    records = tuple(
        (
            draw(ids), draw(digests), draw(u32), draw(i64), draw(u16), draw(st.integers(0, len(folders) - 1)),
            draw(st.integers(0, len(filetypes_) - 1)), len(name.encode("utf-8", "surrogateescape")),
        )
        for name in names
    )  # fmt: skip
    table = file_table.FileTable(records, names)
    return Files(
        draw(u32), folders, filetypes_, table, draw(st.integers(0, 4)), not names or draw(st.booleans())
    )


stored_items = st.builds(StoredItem, ids, digests, u63, any_text, maybe(digests))
refusal_items = st.builds(RefusalItem, u16, st.booleans(), people_text, u32, maybe(u63))


@st.composite
def stored(draw: st.DrawFn) -> Stored:
    statuses = draw(st.lists(st.integers(0, 4), max_size=8))
    outcomes = tuple(draw(refusal_items if one == 4 else stored_items) for one in statuses if one)
    return Stored(draw(u32), bytes(statuses), outcomes, draw(st.booleans()))


results = st.one_of(
    st.builds(Result, st.just(kind), st.lists(items, max_size=4).map(tuple), any_text)
    for kind, items in ((1, file_items), (2, upload_items), (3, receipt_items), (0, principal_items))
)
messages = st.one_of(
    st.builds(
        Hello, st.just(1), st.integers(1, 0xFFFF), st.integers(4096, 0xFFFF), st.integers(65536, 1 << 20),
        st.integers(256, 2**32 - 1), st.integers(1 << 20, U63), st.integers(1 << 18, U63), u63, u63, people_text,
    ),
    opens(),
    st.builds(Auth, any_text, st.integers(0, 255), ids),
    st.builds(Opened, ids, ids, u63, u63, u63, maybe(u63), runs(), prefixes, maybe(digests)),
    blocks(),
    pieces(),
    st.builds(Ack, u63, runs()),
    st.builds(Credit, u63, u63, maybe(st.integers(0, 2))),
    st.builds(Have, pages, st.booleans()),
    sizes.flatmap(
        lambda size: st.builds(
            Commit, ids, digests, st.just(size), st.just(blocknum_of(size)), maybe(i64), maybe(modes), maybe(digests)
        )
    ),
    st.builds(Committed, ids, ids, digests, u63, any_text, maybe(digests)),
    st.builds(Fetch, any_text, ids, u63, maybe(u63), ids, st.integers(0, 2), runs(), prefixes),
    st.builds(
        List, st.integers(1, 3), any_text, any_text, st.integers(1, 0xFFFF), *(st.booleans() for _ in range(4)),
        st.lists(ids, max_size=4).map(tuple),
    ),
    st.builds(Remove, st.integers(1, 2), ids, any_text, st.booleans()),
    results,
    st.builds(Cancel, u16, people_text, st.booleans()),
    st.builds(Ping, st.binary(min_size=8, max_size=8), u32, st.booleans()),
    st.builds(Error, u16, st.integers(1, 3), st.booleans(), people_text, u32, maybe(known_u32), maybe(u63)),
    st.builds(GoAway, u16, u32, u32, people_text),
    files(),
    stored(),
)  # fmt: skip


@given(messages, st.integers(0, 2**32 - 1))
def test_every_message_survives_the_wire(message, stream):
    assert there_and_back(message, stream) == message


@given(messages, st.randoms(use_true_random=False))
def test_reserved_values_are_skipped(message, rng):
    plain, greased = encode_frame(5, message), encode_frame(5, message, grease=rng)
    assert len(greased) > len(plain)
    assert decode_header(greased).flags & wire.GREASE_FLAG
    assert decode_head(decode_header(greased), greased[16:]) == message


@given(messages, st.randoms(use_true_random=False))
def test_a_flipped_bit_is_seen(message, rng):
    frame = bytearray(encode_frame(5, message))
    at = rng.randrange(len(frame))
    frame[at] ^= 1 << rng.randrange(8)
    assert not check_frame(bytes(frame[:16]), bytes(frame[16:]), decode_header(frame).check)


@given(messages)
def test_a_head_cut_short_is_malformed_or_another_message(message):
    header, head = head_of(message)
    for length in range(len(head)):
        try:
            shorter = decode_head(header, head[:length])
        except MalformedFrame:
            continue
        assert shorter != message


def test_every_kind_of_message_is_covered():
    rng = random.Random(1)
    for cls in wire.MESSAGES.values():
        message = random_message(rng, cls)
        assert type(message) is cls
        assert type(there_and_back(message)) is cls
    assert set(Type) == set(wire.MESSAGES)
    assert len(wire.MESSAGES) == 21


@pytest.mark.parametrize("cls", wire.MESSAGES.values())
def test_messages_cannot_be_changed(cls):
    message = random_message(random.Random(1), cls)
    with pytest.raises(FrozenInstanceError):
        setattr(message, fields(message)[0].name, 1)
    assert not hasattr(message, "__dict__")


# Bytes, field by field

VECTORS = {
    "PING": (
        Ping(b"abcdefgh", 15, answer=True),
        0,
        "00000c 91 0001 000c 00000000",
        "6162636465666768 0000000f",
    ),
    "BLOCK that ends": (
        Block(ID, 5, 1, 0, 0, "a", "t/x", DIGEST, commit=True, mode=0o644, if_exists=1),
        7,
        # length = 93 of head and 5 of payload; END and COMMIT
        "000062 85 0003 005d 00000007",
        # sourceid, filesize, blocknum, blockno, position; filename, filetype; digest; TLVs MODE and IF_EXISTS
        f"{ID.hex()} {5:016x} 00000001 {bytes(12).hex()} 0001 61 0003 742f78 {DIGEST.hex()} 00020004000001a4 000a000101",
    ),
    "BLOCK of unknown size": (
        Block(ID, None, None, 2, 2 << 20, "a", ""),
        1,
        "00002d 85 0000 002d 00000001",
        "000102030405060708090a0b0c0d0e0f ffffffffffffffff ffffffff 00000002 0000000000200000 0001 61 0000",
    ),
    "ACK": (
        Ack(1 << 20, ((0, 1), (3, 2))),
        1,
        "00001a 87 0000 001a 00000001",
        "0000000000100000 0002 00000000 00000001 00000003 00000002",
    ),
    "HAVE": (Have(((7, DIGEST),), more=True), 1, "000026 89 0001 0026 00000001", "0001 00000007" + DIGEST.hex()),
    "ERROR": (
        Error(24, 2, False, "no", current=9),
        3,
        "000018 92 0000 0018 00000003",
        "0018 02 00 00000000 ffffffff 0000000000000009 0002 6e6f",
    ),
    "GOAWAY": (GoAway(34, 2000, 500), 0, "00000c 13 0000 000c 00000000", "0022 000007d0 000001f4 0000"),
}  # fmt: skip


@pytest.mark.clause("BP1-EXT-007")
@pytest.mark.parametrize("name", VECTORS)
def test_bytes_are_as_written_down(name):
    message, stream, start, head = VECTORS[name]
    frame = encode_frame(stream, message, 5 if name == "BLOCK that ends" else 0)
    assert frame[:12].hex() == start.replace(" ", "")
    assert frame[16:].hex() == head.replace(" ", "")


def test_the_check_is_crc32_iso_hdlc():
    assert check_frame(b"123456789", b"", 0xCBF43926)
    assert check_frame(b"1234567", b"89", 0xCBF43926)
    assert not check_frame(b"1234567", b"98", 0xCBF43926)


FIXED_PARTS = {cls.__name__: cls.LAYOUT.fixed for cls in (*wire.MESSAGES.values(), FileItem, UploadItem)}
FIXED_PARTS["Header"] = wire.HEADER


@pytest.mark.parametrize("name", FIXED_PARTS)
@given(rng=st.randoms(use_true_random=False))
def test_struct_reads_what_construct_reads(name, rng):
    fixed = FIXED_PARTS[name]
    by_struct, by_construct = head_layout.struct_of(fixed), head_layout.construct_of(fixed)
    raw = rng.randbytes(by_construct.sizeof())
    read = by_construct.parse(raw)
    assert [read[field] for field in fixed] == list(by_struct.unpack(raw))
    assert by_construct.build(read) == raw == by_struct.pack(*by_struct.unpack(raw))


def test_the_constants_are_those_of_the_design():
    assert wire.PREFACE.hex(" ") == "ff 42 4b 50 0d 0a 1a 0a"
    assert wire.GREASE_TLVS[:2] == (27, 58)
    assert max(wire.GREASE_TLVS) < 0x8000
    assert set(wire.GREASE_TYPES) == {n for n in range(128) if n % 31 == 27}
    assert not set(wire.GREASE_TYPES) & set(Type)
    assert [int(value) for value in IfExists] == [0, 1, 2, 3, 4]


# Facts of a file

BLOCK = Block(ID, 3 * BLOCK_LENGTH + 1, 4, 0, 0, "a", "")


@pytest.mark.parametrize(
    "change",
    [
        {"blocknum": 3},
        {"blocknum": 5},
        {"filesize": None},
        {"blocknum": None},
        {"filesize": 0},
        {"blockno": 4},
        {"blockno": 1},
        {"position": BLOCK_LENGTH + 1},
        {"position": 5 * BLOCK_LENGTH},
        {"blockno": 3, "position": 3 * BLOCK_LENGTH + 2},
        {"filesize": 0, "blocknum": 0, "blockno": 1},
        {"filesize": 0, "blocknum": 0, "position": 1},
        {"filesize": None, "blocknum": None, "position": BLOCK_LENGTH + 1},
        {"filetype": "x" * 256},
        {"filetype": "ä"},
        {"filetype": "a\nb"},
        {"filetype": "\x7f"},
    ],
)
def test_facts_that_do_not_fit_are_refused(change):
    with pytest.raises(BadFacts):
        replace(BLOCK, **change)
    good = object.__new__(Block)
    for field in fields(Block):
        object.__setattr__(good, field.name, change.get(field.name, getattr(BLOCK, field.name)))
    header, head = head_of(good)
    with pytest.raises(BadFacts):
        decode_head(header, head)


@pytest.mark.parametrize(
    ("block", "end"),
    [
        (BLOCK, BLOCK_LENGTH),
        (replace(BLOCK, position=BLOCK_LENGTH), BLOCK_LENGTH),
        (replace(BLOCK, blockno=3, position=3 * BLOCK_LENGTH), 3 * BLOCK_LENGTH + 1),
        (Block(ID, 0, 0, 0, 0, "empty", "", EMPTY_DIGEST, True), 0),
        (Block(ID, None, None, 9, 9 * BLOCK_LENGTH, "stdin", ""), 10 * BLOCK_LENGTH),
        (Block(ID, BLOCK_LENGTH, 1, 0, 0, "one", ""), BLOCK_LENGTH),
    ],
)
def test_a_block_ends_where_it_must(block, end):
    assert block.end == end


def test_open_and_commit_hold_facts_that_fit():
    with pytest.raises(BadFacts):
        Open(ID, 1, BLOCK_LENGTH + 1, 1, "a", "")
    with pytest.raises(BadFacts):
        Open(ID, 1, None, 1, "a", "")
    with pytest.raises(BadFacts):
        Open(ID, 1, None, None, "a", "image/jp\x00g")
    assert Open(ID, 1, None, None, "a", "x" * 255)
    with pytest.raises(BadFacts):
        Commit(ID, DIGEST, 1, 0)
    header, head = head_of(Commit(ID, DIGEST, 0, 0))
    with pytest.raises(MalformedFrame):
        decode_head(header, head[:48] + b"\xff" * 12)


# What must be understood, and what is skipped


def test_unknown_messages():
    for number in range(256):
        if number in wire.MESSAGES:
            continue
        if number >= 0x80:
            with pytest.raises(Unsupported):
                decode(number, b"\xff" * 9)
        else:
            assert decode(number, b"\xff" * 9, 0xFFFF) is None


@pytest.mark.parametrize("cls", wire.MESSAGES.values())
def test_unknown_flags(cls):
    message = random_message(random.Random(3), cls)
    header, head = head_of(message)
    for bit in range(12):
        known = 1 << bit & message.LAYOUT.flags_known
        if not known:
            assert decode_head(header._replace(flags=header.flags | 1 << bit), head) == message
    for bit in range(12, 16):
        with pytest.raises(Unsupported):
            decode_head(header._replace(flags=header.flags | 1 << bit), head)


@pytest.mark.parametrize("cls", wire.MESSAGES.values())
def test_unknown_tlvs(cls):
    message = random_message(random.Random(4), cls)
    header, head = head_of(message)
    assert decode_head(header, head + tlv(0x7FF0, b"x" * 100) + tlv(0x7FFF)) == message
    with pytest.raises(Unsupported):
        decode_head(header, head + tlv(0x8000))
    with pytest.raises(Unsupported):
        decode_head(header, head + tlv(0x7FF0) + tlv(0xFFFF, b"x"))


def test_a_known_tlv_where_it_does_not_belong_is_skipped():
    header, head = head_of(Ack(3))
    assert decode_head(header, head + tlv(1, b"not a time")) == Ack(3)


@pytest.mark.parametrize(
    "tail",
    [
        tlv(2, b"\0\0\1\xa4") * 2,
        tlv(2, b"\0\0\1\xa4") + tlv(1, bytes(8)),
        tlv(100) + tlv(100),
        tlv(1, bytes(7)),
        tlv(1, bytes(9)),
        tlv(1),
        tlv(1, bytes(8))[:-1],
        b"\0",
        b"\0\1\0",
        b"\0\x64\xff\xff",
        tlv(9, b"\3"),
    ],
)
def test_tlvs_out_of_order_or_of_wrong_length_are_malformed(tail):
    header, head = head_of(BLOCK)
    with pytest.raises(MalformedFrame):
        decode_head(header, head + tail)


def test_mode_is_masked_and_ids_are_whole():
    header, head = head_of(BLOCK)
    assert decode_head(header, head + tlv(2, b"\xff\xff\xff\xff")) == replace(BLOCK, mode=0o777)
    header, head = head_of(List(3))
    assert decode_head(header, head + tlv(6, ID + ID)) == List(3, ids=(ID, ID))
    assert decode_head(header, head + tlv(6)) == List(3)
    with pytest.raises(MalformedFrame):
        decode_head(header, head + tlv(6, ID + b"x"))


def test_choices_of_a_later_version_are_unsupported():
    for make in (
        lambda: Open(ID, 1, 0, 0, "a", "", if_exists=5),
        lambda: replace(BLOCK, if_exists=5),
        lambda: List(4),
        lambda: List(0),
        lambda: Remove(3),
        lambda: Result(4),
    ):
        with pytest.raises(Unsupported):
            make()
    for kind in (0, 4, 255):
        with pytest.raises(Unsupported):
            decode(Type.LIST, bytes([kind]) + b"\0\1\0\0\0\0")
    for kind in (4, 255):
        with pytest.raises(Unsupported):
            decode(Type.RESULT, bytes([kind]) + b"\0\0\0\0")


# Bytes that are wrong


def test_numbers_beyond_2_to_63_are_malformed():
    for raw in (2**63, 2**64 - 2):
        with pytest.raises(MalformedFrame):
            decode(Type.PIECE, struct.pack(">Q", raw))
    with pytest.raises(MalformedFrame):
        decode(Type.PIECE, b"\xff" * 8)
    assert decode(Type.PIECE, struct.pack(">Q", U63)) == Piece(U63)
    with pytest.raises(MalformedFrame):
        decode(Type.FETCH, ID + struct.pack(">QQ", 0, 2**63) + ID + b"\1" + bytes(6))
    assert decode(Type.FETCH, ID + struct.pack(">QQ", 0, 2**64 - 1) + bytes(16) + b"\1" + bytes(6)) == Fetch(
        "", ID
    )


@pytest.mark.parametrize(
    "found",
    [
        [(0, 0)],
        [(0, 2), (2, 1)],
        [(0, 2), (1, 1)],
        [(5, 1), (1, 1)],
        [(0xFFFFFFFF, 1)],
        [(0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)],
    ],
)
def test_runs_rise_and_do_not_touch(found):
    raw = b"".join(struct.pack(">II", *run) for run in found)
    with pytest.raises(MalformedFrame):
        decode(Type.ACK, bytes(8) + struct.pack(">H", len(found)) + raw)
    with pytest.raises(LocalProtocolError):
        encode_frame(1, Ack(0, tuple(found)))


def test_lists_of_more_than_255():
    for message in (
        Ack(0, tuple((2 * i, 1) for i in range(600))),
        Result(3, tuple(ReceiptItem(ID, ID, DIGEST, i, "") for i in range(600))),
    ):
        assert there_and_back(message) == message


def test_prefixes_of_one_byte_and_of_a_whole_block():
    opened = Opened(ID, ID, 0, 0, 0, None, (), ((0, 1), (1, BLOCK_LENGTH)))
    assert there_and_back(opened) == opened


def test_the_last_blocknos_can_be_held():
    assert there_and_back(Ack(0, ((0, 5), (7, 0xFFFFFFF8)))) == Ack(0, ((0, 5), (7, 0xFFFFFFF8)))


@pytest.mark.parametrize("found", [((1, 0),), ((1, BLOCK_LENGTH + 1),), ((2, 1), (2, 1)), ((2, 1), (1, 1))])
def test_prefixes_rise_and_lie_within_blocks(found):
    raw = b"".join(struct.pack(">II", *prefix) for prefix in found)
    with pytest.raises(MalformedFrame):
        decode(Type.OPENED, bytes(64) + b"\0\0" + struct.pack(">H", len(found)) + raw)
    with pytest.raises(LocalProtocolError):
        encode_frame(1, Opened(ID, ID, 0, 0, 0, None, (), found))


def test_digests_rise():
    with pytest.raises(MalformedFrame):
        decode(Type.HAVE, b"\0\2" + (b"\0\0\0\1" + DIGEST) * 2)
    with pytest.raises(LocalProtocolError):
        encode_frame(1, Have(((1, DIGEST), (0, DIGEST))))


@pytest.mark.parametrize(
    ("number", "flags", "head"),
    [
        (Type.PIECE, 2, bytes(8)),  # COMMIT without END
        (Type.BLOCK, 2, head_of(BLOCK)[1]),
        (Type.PIECE, 1, bytes(8 + 31)),
        (Type.ERROR, 0, b"\0\1\0\0" + bytes(18)),  # scope 0
        (Type.ERROR, 0, b"\0\1\4\0" + bytes(18)),  # scope 4
        (Type.LIST, 0, b"\1\0\0\0\0\0\0"),  # limit 0
        (Type.CREDIT, 0, bytes(16) + tlv(9, b"\3")),  # priority 3
        (Type.COMMITTED, 0, bytes(72) + b"\0"),
        (Type.COMMITTED, 0, bytes(72) + b"\0\2a"),
        (Type.ACK, 0, bytes(9)),
        (Type.ACK, 0, bytes(8) + b"\0\1" + bytes(7)),
        (Type.RESULT, 0, b"\1"),
        (Type.RESULT, 0, b"\1\0\1"),
        (Type.RESULT, 0, b"\1\0\1\0"),
        (Type.RESULT, 0, b"\1\0\1\0\1"),
        (Type.RESULT, 0, b"\1\0\1\0\1a\0\0"),
        (Type.PING, 0, b""),
    ],
)
def test_heads_that_do_not_follow_their_layout(number, flags, head):
    with pytest.raises(MalformedFrame):
        decode(number, head, flags)


@pytest.mark.parametrize(
    "change",
    [
        {"head_length_max": 4095},
        {"piece_length_max": 65535},
        {"piece_length_max": (1 << 20) + 1},
        {"streams_max": 255},
        {"connection_allowance": (1 << 20) - 1},
        {"stream_allowance": (1 << 18) - 1},
        {"version_lowest": 2, "version_highest": 1},
    ],
)
def test_hello_never_names_less_than_the_early_limits(change):
    with pytest.raises(LocalProtocolError):
        Hello(**change)


def test_the_hello_of_another_version_is_readable_whatever_its_limits():
    later = Hello(version_lowest=2, version_highest=3, piece_length_max=1 << 30, streams_max=1)
    assert there_and_back(later) == later


@pytest.mark.clause("BP1-FRM-009")
@pytest.mark.parametrize("number", list(wire.MESSAGES))
def test_counts_that_lie_allocate_nothing(number):
    """Every two bytes of a head in turn say 65,535: what is not there is not allocated for."""
    message = random_message(random.Random(5), wire.MESSAGES[number])
    header, head = head_of(message)
    for at in range(len(head) - 1):
        tracemalloc.start()
        try:
            decode_head(header, head[:at] + b"\xff\xff" + head[at + 2 :])
        except (MalformedFrame, Unsupported, BadFacts):
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 32_768


# What our own caller may not say


@pytest.mark.parametrize(
    "message",
    [
        Piece(2**63),
        Piece(-1),
        Piece(0, bytes(31)),
        Ack(None),  # type: ignore[arg-type]
        Commit(bytes(15), DIGEST, 0, 0),
        Committed(ID, ID, DIGEST, 0, "\ud800"),
        Committed(ID, ID, DIGEST, 0, "x" * 65_536),
        Committed(ID, ID, DIGEST, 0, "x", b3sum=bytes(31)),
        Committed(ID, ID, DIGEST, 0, "x" * 65_500),
        List(3, ids=(bytes(15),)),
        List(3, ids=(ID,) * 4096),
        Cancel(0x10000),
        Error(1, 2, True, blockno=0xFFFFFFFF),
        Ping(bytes(9), 0),
        replace(BLOCK, mode=0o1777),
        replace(BLOCK, mtime_ns=2**63),
        Have(((0, DIGEST),) * 2),
    ],
    ids=repr,
)
def test_what_cannot_be_written_is_our_own_fault(message):
    with pytest.raises(LocalProtocolError):
        encode_frame(1, message)


def test_relations_are_checked_when_a_message_is_made():
    for make in (
        lambda: Piece(0, None, True),
        lambda: replace(BLOCK, commit=True),
        lambda: replace(BLOCK, priority=3),
        lambda: replace(BLOCK, priority=-1),
        lambda: Credit(0, 0, 3),
        lambda: Fetch("a", priority=3),
        lambda: Open(ID, 1, 0, 0, "a", "", priority=3),
        lambda: List(1, limit=0),
        lambda: Error(1, 0, False),
        lambda: Result(1, (ReceiptItem(ID, ID, DIGEST, 0, ""),)),
    ):
        with pytest.raises(LocalProtocolError):
            make()


def test_only_blocks_and_pieces_have_a_payload():
    assert decode_header(encode_frame(1, Piece(0), 1 << 20)).payload_length == 1 << 20
    for message, length in ((Piece(0), (1 << 20) + 1), (Piece(0), -1), (Ack(0), 1)):
        with pytest.raises(LocalProtocolError):
            encode_frame(1, message, length)
    with pytest.raises(LocalProtocolError):
        frame_bytes(1, 27, 0, bytes(65_536))
    with pytest.raises(struct.error):
        frame_bytes(1 << 32, 27, 0, b"")


@pytest.mark.clause("BP1-HEL-011", "BP1-ERR-003")
def test_texts_are_cut_and_names_are_not():
    assert there_and_back(Cancel(1, "é" * 1000)) == Cancel(1, "é" * 512)
    assert there_and_back(Cancel(1, "xé" * 1000)) == Cancel(1, "xé" * 341 + "x")
    assert there_and_back(Cancel(1, "\udcff" * 2000)) == Cancel(1, "")
    assert there_and_back(Hello(agent="x" * 999)) == Hello(agent="x" * 255)
    long = Committed(ID, ID, DIGEST, 0, "x" * 5000)
    assert there_and_back(long) == long


def test_the_greatest_number_beside_unknown():
    greatest = Error(1, 2, False, blockno=0xFFFFFFFE, current=U63)
    assert there_and_back(greatest) == greatest


def test_retryable_is_a_bool():
    assert there_and_back(Error(1, 2, 1)) == Error(1, 2, True)  # type: ignore[arg-type]
    assert decode(Type.ERROR, b"\0\1\2\x07" + bytes(18)).retryable is True  # type: ignore[union-attr]


# Pages

ITEM = FileItem(1, 5, 0, 0o644, ID, ID, "f" * 1024, "t" * 100, DIGEST, DIGEST)


@pytest.mark.parametrize("head_length_max", [4096, 65_535])
def test_a_page_fits_with_the_longest_cursor(head_length_max):
    items = [ITEM] * 100
    count = wire.page_items(items, head_length_max)
    page = Result(1, tuple(items[:count]), "c" * wire.CURSOR_LENGTH_MAX)
    assert len(encode_frame(1, page)) - 16 <= head_length_max
    assert head_length_max - len(encode_frame(1, page)) + 16 < len(encode_frame(1, Result(1, (ITEM,))))
    assert wire.page_items([], head_length_max) == 0
    assert wire.page_items([ITEM], head_length_max) == 1
    assert wire.page_items([replace(ITEM, filename="f" * 4000)] * 2, 4096) == 1


@pytest.mark.parametrize("head_length_max", [4096, 65_535])
def test_lists_of_the_greatest_count_fit(head_length_max):
    count = wire.runs_max(head_length_max)
    held = tuple((3 * i, 1) for i in range(count))
    longest = Fetch("f" * 1024, ID, 0, None, ID, 0, held)
    for message in (Ack(0, held), Opened(ID, ID, 0, 0, 0, 0, held, held_root=DIGEST), longest):
        assert len(encode_frame(1, message)) - 16 <= head_length_max
    page = tuple((i, DIGEST) for i in range(wire.digests_max(head_length_max)))
    assert len(encode_frame(1, Have(page))) - 16 <= head_length_max


def test_grease_frames_are_well_formed():
    rng = random.Random(6)
    for _ in range(100):
        frame = wire.grease_frame(rng)
        header = decode_header(frame)
        head = frame[16 : 16 + header.head_length]
        assert len(frame) == 16 + header.length
        assert check_frame(frame[:16], head, header.check)
        assert decode_head(header, head) is None


# Speed

FRAMES = {
    "BLOCK": (
        Block(ID, 4096, 1, 0, 0, "folder/photo.jpg", "image/jpeg", DIGEST, True, mtime_ns=1, mode=0o644),
        4096,
    ),
    "PIECE": (Piece(5, DIGEST), 4096),
    "ACK": (Ack(5, ((0, 10), (12, 5))), 0),
}


@pytest.mark.parametrize("name", FRAMES)
def test_encode_and_decode_take_30_us_at_most(name):
    if sys.gettrace() is not None:
        pytest.skip("a tracer (coverage, a debugger) takes the time that is measured")
    message, length = FRAMES[name]
    frame = memoryview(encode_frame(1, message, length))
    tasks = {
        "encode": lambda: encode_frame(1, message, length),
        "decode": lambda: decode_head(decode_header(frame), frame[16:]),
    }
    for what, task in tasks.items():
        best = min(_time(task) for _ in range(5))
        assert best <= 30e-6, f"{what} {name} takes {best * 1e6:.1f} µs"


def _time(task: Any, count: int = 300) -> float:
    begun = time.thread_time()
    for _ in range(count):
        task()
    return (time.thread_time() - begun) / count

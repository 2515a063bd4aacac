"""Refusals that take nothing but bytes: greeting, lengths, check, layout, must-understand values."""

from __future__ import annotations

from collections.abc import Iterator

from encode import BLOCK_LENGTH, PREFACE, TYPES, Frame, frame, raw_frame
from frames import FILE_ID, SOURCEID, ZERO, hello
from refusals import (
    Refusal,
    Wrong,
    ack,
    brief,
    head_of,
    list_files,
    patched,
    photo_block,
    photo_open,
    ping,
    place_of,
    remade,
    stop,
    with_tlvs,
)

HEAD = 16
LEAST = {
    "head_length_max": 4_095,
    "piece_length_max": 65_535,
    "streams_max": 255,
    "connection_allowance": (1 << 20) - 1,
    "stream_allowance": (256 << 10) - 1,
}


def _greeting(name: str, clause: str, code: str, raw: bytes, wrong: Wrong, judge: str = "server") -> Refusal:
    return Refusal(f"greeting/{name}", clause, code, "connection", raw, wrong, "greeting", (), judge)


def _hello(name: str, clause: str, code: str, said: Frame, field: str, why: str) -> Refusal:
    offset, length, _ = place_of(said, field, why)
    return _greeting(name, clause, code, PREFACE + said.raw, (len(PREFACE) + offset, length, why))


def _prefaces() -> Iterator[Refusal]:
    http = b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"
    text = PREFACE.replace(b"\r\n", b"\n") + hello().raw
    tls = bytes.fromhex("1603010005") + bytes(5)
    ssh = b"SSH-2.0-OpenSSH_9.9\r\n"
    yield _greeting("http", "BP1-HEL-003", "NOT_BLOCKPROTO", http, (0, 1, "G is not 0xFF"))
    yield _greeting("text-mode", "BP1-HEL-003", "NOT_BLOCKPROTO", text, (4, 1, "CR LF became LF"))
    yield _greeting("tls", "BP1-HEL-003", "NOT_BLOCKPROTO", tls, (0, 2, "a TLS record"))
    yield _greeting(
        "server-speaks-ssh", "BP1-HEL-004", "NOT_BLOCKPROTO", ssh, (0, 1, "S is not 0xFF"), "client"
    )
    first = PREFACE + ping().raw
    unknown = PREFACE + raw_frame(27, 0, b"")
    elsewhere = PREFACE + raw_frame(TYPES["HELLO"], 1, head_of(hello()))
    twice = PREFACE + hello().raw * 2
    yield _greeting("ping-first", "BP1-HEL-005", "UNEXPECTED", first, (11, 1, "PING before HELLO"))
    yield _greeting(
        "unknown-type-first", "BP1-HEL-005", "UNEXPECTED", unknown, (11, 1, "GREASE before HELLO")
    )
    yield _greeting("hello-on-a-stream", "BP1-HEL-005", "UNEXPECTED", elsewhere, (16, 4, "stream 1"))
    second = 8 + len(hello().raw)
    yield _greeting("hello-twice", "BP1-HEL-005", "UNEXPECTED", twice, (second, len(twice) - second, "again"))


def _hellos() -> Iterator[Refusal]:
    swapped, other = hello(version_lowest=2, version_highest=1), hello(version_lowest=2, version_highest=3)
    yield _hello("versions-swapped", "BP1-HEL-008", "MALFORMED", swapped, "version_lowest", "2, highest is 1")
    yield _hello(
        "no-version-in-common", "BP1-HEL-006", "UNSUPPORTED_VERSION", other, "version_lowest", "2 to 3"
    )
    for field, value in LEAST.items():
        name = f"{field.replace('_', '-')}-too-low"
        said = hello(**{field: value})
        yield _hello(name, "BP1-HEL-009", "MALFORMED", said, field, "one less than the least")
    said = hello(piece_length_max=BLOCK_LENGTH + 1)
    yield _hello(
        "piece-length-max-too-high", "BP1-HEL-009", "MALFORMED", said, "piece_length_max", "over a block"
    )
    said = hello(features=1 << 63)
    yield _hello("features-bit-63", "BP1-FRM-015", "MALFORMED", said, "features", "2^63")
    raw = PREFACE + with_tlvs(hello(), {str(0x8000): b""})
    wrong = (len(raw) - 4, 2, "TLV 0x8000")
    yield _greeting("must-understand-tlv", "BP1-EXT-003", "UNSUPPORTED", raw, wrong)


def _lengths() -> Iterator[Refusal]:
    def bad(name: str, clause: str, code: str, raw: bytes, wrong: Wrong, limits: str = "usual") -> Refusal:
        return Refusal(f"length/{name}", clause, code, "connection", raw, wrong, limits=limits)

    longer = raw_frame(TYPES["PING"], 0, bytes(12), head_length=13)
    yield bad("head-longer-than-frame", "BP1-FRM-005", "MALFORMED", longer, (6, 2, "13, length is 12"))
    over = raw_frame(TYPES["OPEN"], 1, b"", length=4_097, head_length=4_097)
    yield bad("head-over-the-limit", "BP1-FRM-006", "TOO_LARGE", over, (6, 2, "4,097 of 4,096"), "least")
    payload = raw_frame(TYPES["PING"], 0, bytes(12), b"\0")
    yield bad("payload-of-ping", "BP1-FRM-007", "MALFORMED", payload, (0, 3, "one byte more than the head"))
    over = raw_frame(TYPES["BLOCK"], 1, bytes(44), length=44 + 65_537)
    yield bad("piece-over-the-limit", "BP1-FRM-007", "TOO_LARGE", over, (0, 3, "payload of 65,537"), "least")
    over = raw_frame(TYPES["PIECE"], 1, bytes(8), length=8 + BLOCK_LENGTH + 1)
    yield bad("piece-over-a-block", "BP1-FRM-007", "TOO_LARGE", over, (0, 3, "payload of 1,048,577"))
    over = raw_frame(27, 0, b"", length=65_537)
    yield bad("unknown-type-over-the-limit", "BP1-FRM-008", "TOO_LARGE", over, (0, 3, "65,537"))
    over = raw_frame(0x9F, 1, b"", length=65_537)
    yield bad("critical-type-over-the-limit", "BP1-FRM-008", "TOO_LARGE", over, (0, 3, "65,537"))


def _checks() -> Iterator[Refusal]:
    flips = {"type": 3, "flags": 5, "stream": 11, "check": 15, "blockno": HEAD + 31}
    for name, offset in flips.items():
        raw = bytearray(photo_block(0, 0).raw)
        raw[offset] ^= 1
        wrong = (offset, 1, f"the lowest bit of {name}")
        yield Refusal(f"check/flipped-{name}", "BP1-FRM-010", "BAD_CHECK", "connection", bytes(raw), wrong)


def _bad(name: str, clause: str, raw: bytes, wrong: Wrong) -> Refusal:
    return Refusal(f"layout/{name}", clause, "MALFORMED", "connection", raw, wrong)


def _ends() -> Iterator[Refusal]:
    clause = "BP1-FRM-012"
    result = frame("RESULT", 1, kind=1, items=[], cursor="")
    yield _bad("head-too-short", clause, remade(ping(), bytes(11)), (6, 2, "11 bytes, PING has 12"))
    yield _bad("empty-head", clause, remade(photo_open(), b""), (6, 2, "OPEN without a head"))
    yield _bad("three-bytes-left", clause, remade(ping(), bytes(15)), (28, 3, "too short for a TLV"))
    yield _bad("string-past-the-head", clause, patched(photo_open(), 38, b"\0\xff"), (54, 2, "length 255"))
    tlv = bytes(12) + b"\x00\x1b\x00\x05abcd"
    yield _bad("tlv-past-the-head", clause, remade(ping(), tlv), (30, 2, "length 5, 4 are there"))
    yield _bad("count-past-the-head", clause, patched(ack(), 8, b"\xff\xff"), (24, 2, "65,535 runs"))
    end = remade(frame("PIECE", 1, position=0), bytes(8), flags=1)
    yield _bad("digest-missing", clause, end, (4, 2, "END, but no digest"))
    past = remade(result, b"\x01\x00\x01\x00\xff\x00\x00")
    yield _bad("item-past-the-head", "BP1-FRM-018", past, (19, 2, "an item of 255 bytes"))
    short = remade(result, b"\x01\x00\x01\x00\x02\x01\x00\x00\x00")
    yield _bad("item-too-short", "BP1-FRM-018", short, (19, 2, "an item of 2 bytes"))


def _tlvs() -> Iterator[Refusal]:
    clause = "BP1-FRM-014"
    twice = remade(ping(), bytes(12) + b"\x00\x1b\x00\x00" * 2)
    fall = with_tlvs(ping(), {"58": b"", "27": b""})
    yield _bad("tlv-twice", clause, twice, (32, 2, "27 again"))
    yield _bad("tlvs-fall", clause, fall, (32, 2, "27 after 58"))
    end = len(photo_open().raw)
    mode = remade(photo_open(), head_of(photo_open()) + b"\x00\x02\x00\x03abc")
    yield _bad("tlv-of-wrong-length", clause, mode, (end + 2, 2, "MODE has 4 bytes"))
    ids = remade(list_files(kind=3), head_of(list_files(kind=3)) + b"\x00\x06\x00\x11" + bytes(17))
    yield _bad("ids-of-wrong-length", clause, ids, (25, 2, "17 is no multiple of 16"))


def _numbers() -> Iterator[Refusal]:
    clause = "BP1-FRM-015"
    attempt = patched(photo_open(), 16, b"\x80" + bytes(7))
    yield _bad("attempt-2-to-63", clause, attempt, (32, 8, "2^63"))
    yield _bad("position-all-ones", clause, patched(ack(), 0, b"\xff" * 8), (16, 8, "no unknown here"))
    filesize = patched(photo_open(), 24, b"\xff" * 7 + b"\xfe")
    yield _bad("filesize-almost-all-ones", clause, filesize, (40, 8, "2^64 - 2"))
    clause = "BP1-FRM-019"
    priority = photo_open(priority=3)
    limit = list_files(limit=0)
    yield _bad("priority-3", clause, priority.raw, place_of(priority, "priority", "3"))
    yield _bad("limit-0", clause, limit.raw, place_of(limit, "limit", "0"))
    for scope in (0, 4):
        said = stop(0, scope)
        yield _bad(f"scope-{scope}", clause, said.raw, place_of(said, "scope", str(scope)))
    alone = remade(brief(), head_of(brief(flags=())), flags=2)
    yield _bad("commit-without-end", "BP1-BLK-017", alone, (4, 2, "COMMIT alone"))


def _lists() -> Iterator[Refusal]:
    clause = "BP1-FRM-016"
    for name, pair in {"of-none": (0, 0), "past-the-last-block": (1, 0xFFFFFFFF)}.items():
        yield _bad(f"run-{name}", clause, ack(pair).raw, (26, 8, str(pair)))
    for name, pair in {"touch": (2, 1), "overlap": (1, 2), "fall": (0, 1)}.items():
        yield _bad(f"runs-{name}", clause, ack((1, 1), pair).raw, (34, 4, str(pair)))
    clause = "BP1-FRM-017"
    prefixes = {"empty": [(0, 0)], "longer-than-a-block": [(0, BLOCK_LENGTH + 1)], "twice": [(4, 1), (4, 1)]}
    for name, pairs in prefixes.items():
        raw = frame(
            "OPENED", 1, sourceid=SOURCEID, file_id=FILE_ID, attempt=1, position=0, incarnation=1,
            expires_ms=None, held=[], prefixes=pairs,
        ).raw  # fmt: skip
        wrong = (len(raw) - 8, 8, str(pairs[-1]))
        yield Refusal(f"layout/prefix-{name}", clause, "MALFORMED", "connection", raw, wrong)
    fall = frame("HAVE", 1, digests=[(1, bytes(32)), (0, bytes(32))]).raw
    yield _bad("digests-fall", clause, fall, (54, 4, "block 0 after 1"))


def _must_understand() -> Iterator[Refusal]:
    def bad(name: str, clause: str, raw: bytes, wrong: Wrong, scope: str = "stream") -> Refusal:
        return Refusal(f"must-understand/{name}", clause, "UNSUPPORTED", scope, raw, wrong)

    for type_, name in ((0x80, "type-80"), (0x9F, "type-9f"), (0xFF, "type-ff")):
        yield bad(name, "BP1-EXT-001", raw_frame(type_, 1, b"abc"), (3, 1, "unknown"))
    on_connection = raw_frame(0x9F, 0, b"")
    yield bad("type-on-the-connection", "BP1-EXT-001", on_connection, (3, 1, "unknown"), "connection")
    for number in (0x8000, 0xFFFF):
        raw = with_tlvs(photo_open(), {str(number): b"x"})
        yield bad(f"tlv-{number:x}", "BP1-EXT-003", raw, (len(raw) - 5, 2, "unknown"))
    raw = with_tlvs(ping(), {str(0x8000): b""})
    yield bad("tlv-on-the-connection", "BP1-EXT-003", raw, (len(raw) - 4, 2, "unknown"), "connection")
    for bit in range(12, 16):
        raw = remade(photo_open(), head_of(photo_open()), flags=1 << bit)
        yield bad(f"flag-bit-{bit}", "BP1-EXT-004", raw, (4, 2, f"bit {bit}"))
    raw = remade(ping(), bytes(12), flags=0x8000)
    yield bad("flag-on-the-connection", "BP1-EXT-004", raw, (4, 2, "bit 15"), "connection")
    if_exists, inbox = photo_open(if_exists=5), list_files(kind=4)
    remove = frame("REMOVE", 1, kind=3, id=ZERO, filename="")
    yield bad("if-exists-5", "BP1-FRM-019", if_exists.raw, place_of(if_exists, "if_exists", "5"))
    yield bad("list-kind-4", "BP1-LST-009", inbox.raw, place_of(inbox, "kind", "reserved"))
    yield bad("remove-kind-3", "BP1-FRM-019", remove.raw, place_of(remove, "kind", "3"))


def refusals_of_frames() -> Iterator[Refusal]:
    """All of them, in the order of judging."""
    for part in (_prefaces, _hellos, _lengths, _checks, _ends, _tlvs, _numbers, _lists, _must_understand):
        yield from part()

"""FRM: the frame. Lengths, checks, layout, and in which order they are judged."""

from __future__ import annotations

import struct

from ... import wire
from ...errors import Code, Scope
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..verdicts import Unsupported, require

cases = Chapter("frm", Side.SERVER)
HEADER = wire.HEADER_LENGTH


def ping() -> bytes:
    """A PING as it should be, to be spoilt."""
    return forge.frame(0, wire.Ping(b"conform!", 0))


def refused(trial: Trial, raw: bytes, *codes: Code) -> None:
    """Send bytes that break a rule of the connection."""
    peer = trial.dial()
    peer.opened(1)
    peer.send(raw)
    peer.expect_refusal(*codes)


# ---- numbers and borders


@cases.add(
    "integers/every-byte-of-an-attempt",
    "FRM-001 RES-009",
    why="Integers read in the machine's own order work until two machines differ.",
)
def every_byte_of_an_attempt(trial: Trial) -> None:
    """An attempt of eight different bytes comes back in OPENED, and one that is 2^63 − 1."""
    peer = trial.dial()
    for stream, attempt in ((1, 0x0102030405060708), (3, 2**63 - 1), (5, 0)):
        opened = moves.begin(peer, trial.sample(attempt=attempt), stream)
        require(opened.attempt == attempt, "OPENED has another attempt than OPEN", got=f"{opened.attempt:#x}")


@cases.add(
    "integers/time-before-1970",
    "FRM-001 LST-006",
    why="i64 is the only signed number there is; read as unsigned, old photos come from the year 2554.",
)
def time_before_1970(trial: Trial) -> None:
    """A modification time below zero is kept."""
    peer, sample = trial.dial(), trial.sample()
    mtime_ns = -1_500_000_000
    moves.brief(peer, sample, mtime_ns=mtime_ns)
    item = moves.stat(peer, sample.filename, 3)
    require(item is not None and item.mtime_ns == mtime_ns, "a time before 1970 is not kept", got=str(item))


@cases.add(
    "borders/three-frames-in-one-segment",
    "FRM-002",
    why="A reader that takes one frame from each receive loses the others.",
)
def three_in_one(trial: Trial) -> None:
    """PINGs in one segment; the last one must be answered (of several only the last needs an answer)."""
    peer = trial.dial()
    peer.send(b"".join(forge.frame(0, wire.Ping(bytes([no]) * 8, 0)) for no in (1, 2, 3)))
    while True:
        answer = peer.expect(wire.Ping, 0, answer=True)
        if answer.opaque == bytes([3]) * 8:
            return


@cases.table(
    "borders/split-{}",
    "FRM-002",
    {
        "inside-the-length": 2,
        "inside-the-check": 14,
        "before-the-head": HEADER,
        "inside-the-head": HEADER + 5,
    },
    why="TCP cuts anywhere; a reader that expects a header in one receive breaks on real lines.",
)
def split(trial: Trial, at: int) -> None:
    """A PING in two segments; what comes between them are other bytes' answers, so that they are really two."""
    peer = trial.dial()
    raw = forge.frame(0, wire.Ping(b"in two  ", 0))
    peer.ping()
    peer.send(forge.frame(0, wire.Ping(b"before  ", 0)) + raw[:at])
    peer.wait_answer(b"before  ")
    peer.send(raw[at:])
    peer.wait_answer(b"in two  ")


@cases.add(
    "check/payload-is-not-covered",
    "FRM-003 BLK-011",
    why="A check over the payload too would disagree with every other implementation on the first file.",
)
def payload_is_not_covered(trial: Trial) -> None:
    """A payload that was changed is a matter of the digest, not of the check."""
    peer, sample = trial.dial(), trial.sample()
    moves.begin(peer, sample)
    moves.send_block(peer, sample, 0, damaged=True)
    peer.expect_error(Code.DIGEST_MISMATCH, stream=1, scope=Scope.BLOCK, blockno=0)
    moves.send_block(peer, sample, 0)
    moves.commit(peer, sample)


@cases.table(
    "check/flipped-{}",
    "FRM-010 FRM-003",
    {"type": 3, "flags": 5, "stream": 11, "check": 15, "head": 20, "last-byte": HEADER + 11},
    why="A receiver that does not compare the check acts on bytes that a broken line has changed.",
)
def flipped(trial: Trial, offset: int) -> None:
    """One bit of header or head is not what it was when the check was computed."""
    raw = bytearray(ping())
    raw[offset] ^= 0x01
    refused(trial, bytes(raw) + ping(), Code.BAD_CHECK)


@cases.add(
    "check/nothing-of-the-frame-has-an-effect",
    "FRM-010",
    why="A server that acts first and checks later has stored a file whose name was damaged on the way.",
)
def no_effect(trial: Trial) -> None:
    """A brief file in a frame with a wrong check is not stored."""
    peer, sample = trial.dial(), trial.sample(50)
    raw = forge.frame(1, sample.brief(), sample.content)
    peer.opened(1)
    peer.send(forge.rebuilt(raw, check=wire.decode_header(raw).check ^ 0x8000_0000))
    peer.expect_refusal(Code.BAD_CHECK)
    moves.require_absent(trial, sample.filename, "a frame with a wrong check was acted upon")


# ---- lengths, and the order of judging


@cases.add(
    "order/lengths-before-the-check",
    "FRM-004 FRM-005",
    why="Who reads the check of a head that cannot be there reads something else.",
)
def lengths_before_check(trial: Trial) -> None:
    """head_length is greater than length, and the check is wrong too."""
    refused(trial, forge.rebuilt(ping(), length=11, check=0), Code.MALFORMED)


@cases.add(
    "order/check-before-layout",
    "FRM-004 FRM-010 FRM-012",
    why="A damaged frame is the line's fault and can be tried again; a malformed one is the peer's and cannot.",
)
def check_before_layout(trial: Trial) -> None:
    """A head that is too short, and a check that is wrong."""
    refused(trial, forge.rebuilt(ping(), head=b"\0" * 5, check=0x12345678), Code.BAD_CHECK)


@cases.add(
    "order/limit-before-the-head-is-there",
    "FRM-004 FRM-008",
    why="Who waits for the rest before judging the length can be made to wait for 16 MiB.",
)
def limit_before_head(trial: Trial) -> None:
    """The header of an unknown frame of 65,537 bytes, and not one byte more."""
    raw = forge.unknown_frame(27, head=bytes(4))
    refused(trial, forge.rebuilt(raw, length=65_537)[:HEADER], Code.TOO_LARGE)


@cases.add(
    "length/head-longer-than-frame",
    "FRM-005",
    why="length − head_length is then a huge number in a language without negative ones.",
)
def head_longer_than_frame(trial: Trial) -> None:
    """head_length is one more than length; the check is right."""
    refused(trial, forge.rebuilt(ping(), length=11), Code.MALFORMED)


@cases.add(
    "length/head-at-the-limit",
    "FRM-006 HEL-010",
    why="A limit that is off by one refuses what HELLO has promised to take.",
    layer=4,
)
def head_at_the_limit(trial: Trial) -> None:
    """LIST with as many sourceids as the greatest head has room for is answered."""
    peer = trial.dial()
    peer.opened(1)
    peer.send(list_of_length(greatest_head(peer)))
    peer.expect(wire.Result, 1, kind=3, items=())


@cases.add(
    "length/head-over-the-limit",
    "FRM-006",
    why="A limit that is not kept is a way to fill memory.",
    layer=4,
)
def head_over_the_limit(trial: Trial) -> None:
    """A head that is one byte longer than HELLO allows."""
    peer = trial.dial()
    most = greatest_head(peer)
    if most == wire.HEAD_LENGTH_MAX:
        raise Unsupported("the server takes the longest head that a header can name")
    peer.opened(1)
    peer.send(list_of_length(most + 1)[:HEADER])
    peer.expect_refusal(Code.TOO_LARGE)


def greatest_head(peer: Peer) -> int:
    """The head_length_max of the server's HELLO."""
    assert peer.hello is not None
    return peer.hello.head_length_max


def list_of_length(length: int) -> bytes:
    """LIST of receipts whose head has exactly that length: sourceids that nobody has, and an unknown TLV."""
    raw = forge.frame(1, wire.List(wire.ListKind.RECEIPTS))
    room = length - wire.decode_header(raw).head_length - 8
    count = room // 16
    ids = forge.tlv(6, b"".join(struct.pack(">QQ", 0xC0FFEE, no) for no in range(count)))
    return forge.rebuilt(raw, tail=ids + forge.tlv(27, bytes(room - count * 16)))


@cases.table(
    "length/payload-in-{}",
    "FRM-007",
    {
        "ping": (0, wire.Ping(bytes(8), 0)),
        "list": (1, wire.List(1)),
        "open": (1, wire.Open(b"\1" * 16, 1, 0, 0, "conform", "")),
        "error": (0, wire.Error(31, 3, False)),
    },
    why="Only BLOCK and PIECE have a payload; in anything else it would be skipped by some and read as a frame by others.",
)
def payload_elsewhere(trial: Trial, what: tuple[int, wire.Message]) -> None:
    """One byte of payload behind a message that has none."""
    refused(trial, forge.rebuilt(forge.frame(*what), payload=b"x"), Code.MALFORMED)


@cases.add(
    "length/piece-at-the-limit",
    "FRM-007 HEL-010",
    why="A limit that is off by one makes every large file fail at its first block.",
    layer=4,
)
def piece_at_the_limit(trial: Trial) -> None:
    """A piece of exactly piece_length_max bytes."""
    peer = trial.dial()
    assert peer.hello is not None
    sample = trial.sample(peer.hello.piece_length_max)
    moves.begin(peer, sample)
    while peer.room(1) < sample.filesize:
        peer.wait_room(1)
    peer.say(1, sample.head(0), sample.content)
    peer.expect_acked(1, 0)


@cases.add(
    "length/piece-over-the-limit",
    "FRM-007",
    why="The one limit that keeps a server from taking 16 MiB in one frame.",
    layer=4,
)
def piece_over_the_limit(trial: Trial) -> None:
    """The header and head of a BLOCK whose payload is one byte too long; the payload is not sent."""
    peer = trial.dial()
    assert peer.hello is not None
    sample = trial.sample(4 << 20)
    moves.begin(peer, sample)
    whole = forge.frame(1, sample.head(0, ends=False), b"x")
    head_length = wire.decode_header(whole).head_length
    peer.send(forge.rebuilt(whole, payload=b"", length=head_length + peer.hello.piece_length_max + 1))
    peer.expect_refusal(Code.TOO_LARGE)


@cases.table(
    "length/unknown-type-{}",
    "FRM-008 EXT-002",
    {"at-65536": 27, "private-at-65536": 0x70},
    why="What is skipped must be skipped whole, or the next header is read out of its middle.",
    layer=4,
)
def unknown_at_the_limit(trial: Trial, type_: int) -> None:
    """An unknown frame of 65,536 bytes is skipped."""
    peer = trial.dial()
    peer.send(forge.unknown_frame(type_, head=bytes(1_000), payload=bytes(64_536)))
    peer.ping()


@cases.table(
    "length/over-65536-of-{}",
    "FRM-008",
    {"a-skippable-type": 27, "a-must-understand-type": 0xFE},
    why="A limit for unknown frames that is missing lets anybody send 16 MiB of anything.",
    layer=4,
)
def unknown_over_the_limit(trial: Trial, type_: int) -> None:
    """The header of a frame of 65,537 bytes; the check is right for what there is."""
    raw = forge.unknown_frame(type_, stream=1, head=bytes(4))
    refused(trial, forge.rebuilt(raw, length=65_537), Code.TOO_LARGE)


# ---- heads


@cases.table(
    "head/{}",
    "FRM-012",
    {
        "empty": forge.rebuilt(ping(), head=b""),
        "one-byte-short": forge.rebuilt(ping(), head=bytes(11)),
        "one-byte-left": forge.rebuilt(ping(), tail=b"\0"),
        "three-bytes-left": forge.rebuilt(ping(), tail=bytes(3)),
        "tlv-past-the-head": forge.rebuilt(ping(), tail=struct.pack(">HH", 27, 5) + bytes(4)),
        "string-past-the-head": forge.rebuilt(
            forge.frame(1, wire.Remove(1, filename="conform")), head=struct.pack(">B16xH", 1, 8) + b"conform"
        ),
        "string-length-past-the-head": forge.rebuilt(
            forge.frame(1, wire.Remove(1, filename="x")), head=struct.pack(">B16xB", 1, 0)
        ),
        "count-past-the-head": forge.rebuilt(
            forge.frame(1, wire.Have(())), head=struct.pack(">HI", 2, 0) + bytes(32)
        ),
        "huge-count": forge.rebuilt(forge.frame(1, wire.Have(())), head=b"\xff\xff"),
        "digest-missing": forge.rebuilt(forge.frame(1, wire.Piece(0)), flags=wire.END),
    },
    why="A parser that reads past the end of a head reads another frame, or another user's memory.",
)
def head(trial: Trial, raw: bytes) -> None:
    """A head that its fields, strings, lists and TLVs do not consume exactly."""
    peer, sample = trial.dial(), trial.sample(2_000_000)
    stream = wire.decode_header(raw).stream
    if wire.decode_header(raw).type in {wire.Type.HAVE, wire.Type.PIECE}:
        moves.begin(peer, sample)
    peer.opened(stream)
    peer.send(raw)
    peer.expect_refusal(Code.MALFORMED)


@cases.add(
    "head/text-that-is-no-utf-8",
    "FRM-013 HEL-011",
    why="A decoder that throws on bad text ends a connection for words that decide nothing.",
)
def text_that_is_no_utf8(trial: Trial) -> None:
    """The agent in HELLO, the text of CANCEL and the cursor's bytes may be anything."""
    hello = wire.Hello(agent="caf\udce9 \udcff")
    peer, sample = trial.dial(hello=hello), trial.sample()
    moves.begin(peer, sample)
    peer.say(1, wire.Cancel(31, "\udcff\udcfe"))
    peer.expect_error(Code.CANCELLED, stream=1)
    peer.ping()


@cases.table(
    "tlv/{}",
    "FRM-014",
    {
        "twice": forge.tlv(27, b"a") + forge.tlv(27, b"a"),
        "falling": forge.tlv(58) + forge.tlv(27),
        "known-one-twice": forge.tlv(2, bytes(4)) + forge.tlv(2, bytes(4)),
        "known-ones-falling": forge.tlv(2, bytes(4)) + forge.tlv(1, bytes(8)),
        "mtime-of-seven-bytes": forge.tlv(1, bytes(7)),
        "mode-of-eight-bytes": forge.tlv(2, bytes(8)),
        "empty-b3sum": forge.tlv(3),
        "b3sum-of-33-bytes": forge.tlv(3, bytes(33)),
    },
    why="Two values for one thing mean one to this side and the other to that.",
)
def tlvs(trial: Trial, tail: bytes) -> None:
    """OPEN with TLVs that do not rise strictly, or a known one of a wrong length."""
    refused(trial, forge.rebuilt(forge.frame(1, trial.sample().open()), tail=tail), Code.MALFORMED)


@cases.add(
    "tlv/ids-of-17-bytes",
    "FRM-014",
    why="A list of ids that is cut at 16 bytes answers for an id that nobody asked about.",
)
def ids_of_17_bytes(trial: Trial) -> None:
    """IDS whose length is no multiple of 16."""
    raw = forge.frame(1, wire.List(wire.ListKind.RECEIPTS))
    refused(trial, forge.rebuilt(raw, tail=forge.tlv(6, bytes(17))), Code.MALFORMED)


ALL_ONES = b"\xff" * 8


@cases.table(
    "u64/{}",
    "FRM-015",
    {
        "attempt-2-to-63": ("open", "attempt", struct.pack(">Q", 1 << 63)),
        "attempt-all-ones": ("open", "attempt", ALL_ONES),
        "filesize-2-to-63": ("open", "filesize", struct.pack(">Q", 1 << 63)),
        "filesize-almost-all-ones": ("open", "filesize", ALL_ONES[:7] + b"\xfe"),
        "position-all-ones": ("block", "position", ALL_ONES),
        "commit-filesize-all-ones": ("commit", "filesize", ALL_ONES),
        "fetch-first-all-ones": ("fetch", "first", ALL_ONES),
        "fetch-length-2-to-63": ("fetch", "length", struct.pack(">Q", 1 << 63)),
    },
    why="Signed in one language and unsigned in the other, a number of 2^63 is two different ones.",
)
def u64(trial: Trial, what: tuple[str, str, bytes]) -> None:
    """A u64 of 2^63 or more that does not stand for "unknown"."""
    name, field, value = what
    peer, sample = trial.dial(), trial.sample()
    message: wire.Message = sample.open()
    if name != "open":
        others: dict[str, wire.Message] = {
            "block": sample.head(0, ends=False),
            "commit": sample.commit(),
            "fetch": wire.Fetch("x"),
        }
        message = others[name]
        if name != "fetch":
            moves.begin(peer, sample)
    peer.opened(1)
    peer.send(forge.patched(forge.frame(1, message), forge.offset_of(type(message), field), value))
    peer.expect_refusal(Code.MALFORMED)


def _fetch_with(held: bytes, prefixes: bytes = b"\0\0") -> bytes:
    """FETCH with lists as bytes."""
    fixed = wire.Fetch("conform").LAYOUT.encode(wire.Fetch(""))[1][: 16 + 8 + 8 + 16 + 1]
    return wire.frame_bytes(1, wire.Type.FETCH, 0, fixed + held + prefixes + b"\0\x07conform")


def _pairs(*pairs: tuple[int, int]) -> bytes:
    return struct.pack(">H", len(pairs)) + b"".join(struct.pack(">II", *pair) for pair in pairs)


@cases.table(
    "runs/{}",
    "FRM-016",
    {
        "empty-run": _pairs((3, 0)),
        "touching": _pairs((0, 2), (2, 1)),
        "overlapping": _pairs((0, 3), (2, 2)),
        "falling": _pairs((5, 1), (1, 1)),
        "past-the-last-blockno": _pairs((0xFFFF_FFFE, 2)),
        "of-2-to-32-blocks": _pairs((0, 0xFFFF_FFFF), (0xFFFF_FFFF, 1)),
    },
    why="A run whose end wraps around names every block of the file.",
)
def runs(trial: Trial, held: bytes) -> None:
    """FETCH with runs that break a rule."""
    refused(trial, _fetch_with(held), Code.MALFORMED)


@cases.table(
    "prefixes/{}",
    "FRM-017",
    {
        "empty": _pairs((0, 0)),
        "longer-than-a-block": _pairs((0, 1_048_577)),
        "same-block-twice": _pairs((0, 5), (0, 6)),
        "falling": _pairs((2, 5), (1, 5)),
    },
    why="A prefix longer than its block is a write into the next one.",
)
def prefixes(trial: Trial, pairs: bytes) -> None:
    """FETCH with prefixes that break a rule."""
    refused(trial, _fetch_with(b"\0\0", pairs), Code.MALFORMED)


@cases.table(
    "digests/{}",
    "FRM-017",
    {"falling": (1, 0), "same-block-twice": (1, 1)},
    why="Two digests for one block: which one decides what is forgotten?",
)
def digests(trial: Trial, blocknos: tuple[int, int]) -> None:
    """HAVE whose blocknos do not rise."""
    peer, sample = trial.dial(), trial.sample(1_500_000)
    moves.begin(peer, sample)
    pairs = b"".join(struct.pack(">I", blockno) + bytes(32) for blockno in blocknos)
    peer.send(wire.frame_bytes(1, wire.Type.HAVE, 0, b"\0\2" + pairs))
    peer.expect_refusal(Code.MALFORMED)


@cases.add(
    "items/consumed-exactly",
    "FRM-018",
    why="An item that is read past its end takes its neighbour's bytes for its own.",
)
def items(trial: Trial) -> None:
    """What the server lists can be read item by item; a client sends no items, so the server's own are looked at."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.brief(peer, sample)
    raw = peer_result(peer, sample.filename)
    (length,) = struct.unpack_from(">H", raw, HEADER + 3)
    expected = 3 + 2 + length + 2
    require(
        wire.decode_header(raw).head_length == expected,
        "RESULT with one item and no cursor has bytes left or missing",
    )


def peer_result(peer: Peer, name: str) -> bytes:
    """The header and head of RESULT for one entry."""
    peer.say(3, wire.List(1, name, exact=True))
    return peer.expect_heard(wire.Result, 3).raw


@cases.table(
    "choices/{}",
    "FRM-019",
    {
        "open-priority-3": ("open", "priority", 3),
        "fetch-priority-3": ("fetch", "priority", 3),
        "error-scope-0": ("error", "scope", 0),
        "error-scope-4": ("error", "scope", 4),
        "list-limit-0": ("list", "limit", 0),
    },
    why="A number without a meaning must not be given one by accident.",
)
def malformed_choices(trial: Trial, what: tuple[str, str, int]) -> None:
    """A number that chooses among a few meanings and has none of them: the connection ends."""
    name, field, value = what
    messages: dict[str, wire.Message] = {
        "open": trial.sample().open(),
        "fetch": wire.Fetch("conform"),
        "error": wire.Error(31, 2, False),
        "list": wire.List(1),
    }
    refused(
        trial,
        forge.frame(1, forge.unjudged(messages[name], **{field: value})),
        Code.MALFORMED,
        *_or_unopened(name),
    )


def _or_unopened(name: str) -> tuple[Code, ...]:
    """ERROR on a stream that nobody opened breaks another rule of the same step."""
    return (Code.UNEXPECTED,) if name == "error" else ()


@cases.table(
    "choices/{}",
    "FRM-019 LST-009",
    {
        "if-exists-5": ("open", "if_exists", 5),
        "list-kind-0": ("list", "kind", 0),
        "list-kind-200": ("list", "kind", 200),
        "remove-kind-0": ("remove", "kind", 0),
        "remove-kind-3": ("remove", "kind", 3),
    },
    why="What a later version may define is refused for its stream only, so that old and new can talk about the rest.",
)
def unsupported_choices(trial: Trial, what: tuple[str, str, int]) -> None:
    """A choice that a later version may have: the stream ends, the connection goes on."""
    name, field, value = what
    messages: dict[str, wire.Message] = {
        "open": trial.sample().open(),
        "list": wire.List(1),
        "remove": wire.Remove(1, filename="conform"),
    }
    peer = trial.dial()
    peer.opened(1)
    peer.send(forge.frame(1, forge.unjudged(messages[name], **{field: value})))
    peer.expect_error(Code.UNSUPPORTED, stream=1)
    peer.ping()


@cases.table(
    "stream/{}",
    "FRM-020",
    {
        "ping-on-a-stream": (1, wire.Ping(bytes(8), 0)),
        "goaway-on-a-stream": (1, wire.GoAway(34, 1_000, 0)),
        "error-connection-on-a-stream": (1, wire.Error(31, 3, False)),
        "error-stream-on-the-connection": (0, wire.Error(31, 2, False)),
        "error-block-on-the-connection": (0, wire.Error(26, 1, True, blockno=0)),
        "open-on-the-connection": (0, wire.Open(b"\2" * 16, 1, 0, 0, "conform", "")),
        "list-on-the-connection": (0, wire.List(1)),
        "fetch-on-the-connection": (0, wire.Fetch("conform")),
        "piece-on-the-connection": (0, wire.Piece(0)),
    },
    why="A message on the wrong stream ends the wrong thing.",
)
def stream(trial: Trial, what: tuple[int, wire.Message]) -> None:
    """A message where it does not belong, on a connection that has an upload on stream 1."""
    peer = trial.dial()
    moves.begin(peer, trial.sample())
    peer.send(forge.frame(*what))
    peer.expect_refusal(Code.UNEXPECTED)

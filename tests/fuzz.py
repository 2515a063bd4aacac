"""Random and mutated inputs through decode and both sides of Session: `python tests/fuzz.py COUNT SEED`.

Every input is one of: a mutated head under a right check or random bytes through decode, bytes before any HELLO, or a
conversation of two sessions, which talk legally across each other for a while (both must find it legal and agree on
every state) until one of them, server or client, hears mutated frames and bytes, cut into random pieces. What may come
out: messages, events and the declared exceptions. What may be allocated meanwhile: twice what HELLO declares that one
frame can hold. COUNT 1,000,000 takes about four minutes on one core.
"""

from __future__ import annotations

import random
import struct
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from zlib import crc32

from blockproto import wire
from blockproto.common.file_table import FileTable
from blockproto.errors import BadFacts, Code, MalformedFrame, RemoteProtocolError, Scope, Unsupported
from blockproto.protocol.session import (
    TABLE,
    Kind,
    Limits,
    Payload,
    Received,
    Rejected,
    Role,
    Session,
    Side,
    State,
    connection_error,
    stream_error,
)
from blockproto.protocol.streams import FIRST
from blockproto.wire import Type

DECLARED = wire.HEAD_LENGTH_MAX + wire.PIECE_LENGTH_MAX
"""What the greatest frame may hold."""

DECLARED_EARLY = wire.HEAD_LENGTH_EARLY + wire.PIECE_LENGTH_EARLY
"""The same before HELLO."""

_KINDS = list(wire.MESSAGES.values())
_EDGES = (
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    256,
    1 << 15,
    (1 << 16) - 1,
    1 << 16,
    1 << 20,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
)


def _number(rng: random.Random, most: int) -> int:
    """A number up to ``most``, often at an edge."""
    return min(rng.choice(_EDGES), most) if rng.random() < 0.5 else rng.randint(0, most)


def _text(rng: random.Random) -> str:
    return rng.choice(("", "a", "a/b.txt", "文件/照片 1.jpg", "\udcff", "../x", "x" * 300))


def _filetype(rng: random.Random) -> str:
    return rng.choice(("", "text/plain", "x" * 255))


def _runs(rng: random.Random) -> tuple[tuple[int, int], ...]:
    runs, at = [], 0
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        first = at + rng.randint(1, 9)
        runs.append((first, rng.randint(1, 9)))
        at = sum(runs[-1])
    return tuple(runs)


def _facts(rng: random.Random) -> tuple[int | None, int | None]:
    if rng.random() < 0.2:
        return None, None
    filesize = rng.choice((0, 1, 4096, 1 << 20, (1 << 20) + 1, 5 << 20))
    return filesize, -(-filesize >> 20)


def message(rng: random.Random, cls: type[wire.Message] | None = None) -> wire.Message:
    """A valid message of any kind (or of ``cls``)."""
    cls = cls or rng.choice(_KINDS)
    u16, u32, u63 = (_number(rng, most) for most in ((1 << 16) - 1, (1 << 32) - 2, (1 << 63) - 1))
    id16, digest, maybe = rng.randbytes(16), rng.randbytes(32), rng.random() < 0.3
    filesize, blocknum = _facts(rng)
    if cls is wire.Hello:
        return wire.Hello(features=u63, agent=_text(rng))
    if cls is wire.Auth:
        return wire.Auth(_text(rng), rng.randrange(256), id16)
    if cls is wire.Open:
        return wire.Open(
            id16, u63, filesize, blocknum, _text(rng), _filetype(rng), rng.randrange(3), rng.randrange(3)
        )
    if cls is wire.Opened:
        prefixes = tuple((i * 2, 1 + u16) for i in range(rng.randrange(3)))
        return wire.Opened(id16, id16, u63, u63, u63, u63 if maybe else None, _runs(rng), prefixes)
    if cls is wire.Block:
        blockno = rng.randrange(max(1, blocknum or 1))
        position = min(blockno << 20, filesize if filesize is not None else 1 << 60)
        end = rng.random() < 0.5
        return wire.Block(
            id16, filesize, blocknum, blockno, position, _text(rng), _filetype(rng), digest if end else None, end and maybe,
            mode=0o644 if maybe else None,
        )  # fmt: skip
    if cls is wire.Piece:
        return wire.Piece(u63, digest if maybe else None)
    if cls is wire.Ack:
        return wire.Ack(u63, _runs(rng))
    if cls is wire.Credit:
        return wire.Credit(u63, 0, rng.randrange(3) if maybe else None)
    if cls is wire.Have:
        return wire.Have(tuple((i, digest) for i in range(rng.randrange(4))), maybe)
    if cls is wire.Commit:
        return wire.Commit(
            id16, digest, filesize or 0, -(-(filesize or 0) >> 20), b3sum=digest if maybe else None
        )
    if cls is wire.Committed:
        return wire.Committed(id16, id16, digest, u63, _text(rng))
    if cls is wire.Fetch:
        return wire.Fetch(_text(rng), id16, u63, u63 if maybe else None, id16, rng.randrange(3), _runs(rng))
    if cls is wire.List:
        return wire.List(
            rng.randint(1, 3), _text(rng), _text(rng), 1 + u16 % 9, maybe, ids=(id16,) * rng.randrange(3)
        )
    if cls is wire.Remove:
        return wire.Remove(rng.randint(1, 2), id16, _text(rng), maybe)
    if cls is wire.Result:
        item = wire.FileItem(1, u63, -5, 0o644, id16, id16, _text(rng), _text(rng), digest if maybe else None)
        return wire.Result(1, (item,) * rng.randrange(3), _text(rng))
    if cls is wire.Cancel:
        return wire.Cancel(u16, _text(rng), maybe)
    if cls is wire.Ping:
        return wire.Ping(id16[:8], u32, maybe)
    if cls is wire.Error:
        return wire.Error(
            u16, rng.randint(1, 3), maybe, _text(rng), u32, u32 if maybe else None, u63 if maybe else None
        )
    if cls is wire.Files:
        names = tuple(_text(rng)[:60] for _ in range(rng.randrange(4)))
        lengths = [len(name.encode("utf-8", "surrogateescape")) for name in names]
        records = tuple((id16, digest, 0, -5, 0o644, 0, 0, length) for length in lengths)
        return wire.Files(
            u32, (_text(rng),), ("", "text/plain"), FileTable(records, names), 0, maybe or not names
        )
    if cls is wire.Stored:
        stored = wire.StoredItem(id16, digest, u63, _text(rng), digest if maybe else None)
        refusal = wire.RefusalItem(u16, maybe, _text(rng), u32, u63 if maybe else None)
        return wire.Stored(u32, bytes((0, 1, 0, 4, 2)), (stored, refusal, stored), maybe)
    return wire.GoAway(u16, u32, u32, _text(rng))


def sealed(length_and_type: int, flags: int, head: bytes, stream: int) -> bytes:
    """Header and head under a right check, whatever the fields say."""
    start = struct.pack(
        ">IHHI", length_and_type & 0xFFFFFFFF, flags & 0xFFFF, len(head) & 0xFFFF, stream & 0xFFFFFFFF
    )
    return start + struct.pack(">I", crc32(head, crc32(start))) + head


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """``raw`` with some bytes changed, removed, doubled or put in."""
    changed = bytearray(raw)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                del changed[at : at + rng.randrange(9)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(9))
            case 3:
                changed[at : at + 2] = struct.pack(">H", _number(rng, 0xFFFF))
            case 4:
                changed[at : at + 8] = struct.pack(">Q", _number(rng, (1 << 63) - 1))
            case _:
                changed[at : at + 1] = b"\xff" if rng.random() < 0.5 else b"\x00"
    return bytes(changed)


def mutated_frame(rng: random.Random, stream: int) -> bytes:
    """A frame whose head or header fields were changed under a right check."""
    frame = wire.encode_frame(stream, message(rng), grease=rng if rng.random() < 0.1 else None)
    header, head = wire.decode_header(frame), mutated(rng, frame[16:])
    number = rng.randrange(256) if rng.random() < 0.1 else header.type
    flags = rng.choice((header.flags, 1, 2, 3, 0x0800, 1 << rng.randrange(16), rng.randrange(1 << 16)))
    payload = rng.choice((0, 0, 1, 5, 100)) if number in wire.PAYLOAD_TYPES or rng.random() < 0.1 else 0
    length = len(head) + payload if rng.random() < 0.95 else _number(rng, (1 << 24) - 1)
    return sealed(length << 8 | number, flags, head, stream) + bytes(payload)


_LEGAL = {
    (state, role): [kind for (at, speaker, kind) in TABLE if (at, speaker) == (state, role)]
    for state in State
    for role in Role
}


class Voice:
    """A session that says random things that are legal."""

    def __init__(self, rng: random.Random, session: Session) -> None:
        self.rng = rng
        self.session = session
        self.streams: list[int] = []
        self._next: dict[int, tuple[int, int]] = {}
        self._frames = 0

    def speak(self) -> bytes:
        """Some legal message and its payload; empty if nothing may be said."""
        rng, session = self.rng, self.session
        self.streams = [stream for stream in self.streams if session.is_open(stream)]
        if rng.random() < 0.1:
            return session.send(0, message(rng, rng.choice((wire.Ping, wire.Credit, wire.GoAway))))
        if not self.streams or rng.random() < 0.2:
            self.streams.append(session.open_stream())
            first = [kind for kind in FIRST if session.files or kind & 0xFF != Type.FILES]
            return self._say(self.streams[-1], rng.choice(first))
        stream = rng.choice(self.streams)
        role = session.role(stream)
        legal = [] if role is None else _LEGAL[session.state(stream), role]
        return self._say(stream, rng.choice(legal)) if legal else b""

    def _say(self, stream: int, kind: int) -> bytes:
        rng = self.rng
        what = message(rng, wire.MESSAGES[kind & 0xFF])
        length = 0
        if isinstance(what, wire.Block):
            digest = bytes(32) if kind == Kind.BLOCK_COMMIT else what.digest
            what = replace(what, digest=digest, commit=kind == Kind.BLOCK_COMMIT)
            length = min(rng.choice((0, 1, 100, 3000)), what.end - what.position)
            self._next[stream] = (what.position + length, what.end)
        elif isinstance(what, wire.Piece):
            if stream not in self._next:
                return b""
            position, end = self._next[stream]
            length = min(rng.choice((0, 1, 100, 3000)), end - position)
            what = wire.Piece(
                position, bytes(32) if kind == Kind.PIECE_COMMIT else None, kind == Kind.PIECE_COMMIT
            )
            self._next[stream] = (position + length, end)
        elif isinstance(what, wire.Files | wire.Stored) and not self.session.files:
            return b""
        elif isinstance(what, wire.Files):
            if session_is_full(self.session):
                return b""
            self._frames += rng.choice((1, 1, 50))
            what, length = some_files(rng, self._frames, last=kind == Kind.FILES_LAST)
        elif isinstance(what, wire.Stored):
            unanswered = self.session._streams[stream].unanswered or {}
            if len(unanswered) > 1 and kind == Kind.STORED_LAST:
                return b""
            number, left = rng.choice(list(unanswered.items()) or [(0, 0)])
            count = left if kind == Kind.STORED_LAST else rng.randint(0, left)
            what = wire.Stored(number, bytes(count), (), kind == Kind.STORED_LAST)
        elif isinstance(what, wire.Error):
            scope = Scope.STREAM if kind == Kind.ERROR_STREAM else Scope.BLOCK
            code = Code.DIGESTS_DIFFER if kind == Kind.ERROR_DIFFER else Code.BUSY
            what = replace(what, scope=scope, code=code)
        if getattr(what, "digest", None):
            self._next.pop(stream, None)
        return self.session.send(stream, what, length) + bytes(length)


def session_is_full(session: Session) -> bool:
    """Whether no more frames of files may be said."""
    return session.frames_unanswered >= wire.FRAMES_MAX


def some_files(rng: random.Random, number: int, *, last: bool) -> tuple[wire.Files, int]:
    """FILES with a few files, and the bytes of them together."""
    sizes = [rng.choice((0, 1, 100)) for _ in range(rng.randint(0 if last else 1, 3))]
    records = tuple((bytes(16), bytes(32), size, 0, 0o644, 0, 0, 1) for size in sizes)
    return wire.Files(number, ("",), ("",), FileTable(records, ("a",) * len(sizes)), 0, last), sum(sizes)


def fuzz_decode(rng: random.Random) -> None:
    """One head through ``decode_head``; what it says must be sayable again."""
    if rng.random() < 0.7:
        raw = mutated_frame(rng, 1)
        header, head = wire.decode_header(raw), raw[16 : 16 + wire.decode_header(raw).head_length]
    else:
        head = rng.randbytes(rng.randrange(120))
        if rng.random() < 0.02:
            head = rng.randbytes(8) + struct.pack(">H", rng.randrange(8000)) + bytes(rng.randrange(65_000))
        header = wire.Header(len(head), rng.choice(list(Type)), rng.randrange(1 << 16), len(head), 1, 0)
    try:
        with measured(DECLARED):
            said = wire.decode_head(header, memoryview(head))
    except (MalformedFrame, Unsupported, BadFacts):
        return
    if said is not None:
        again = wire.encode_frame(1, said)
        assert wire.decode_head(wire.decode_header(again), again[16:]) == said


def hear(rng: random.Random, session: Session, raw: bytes, voice: Voice) -> bool:
    """Feed ``raw`` in pieces; returns whether the session ended the conversation."""
    view = memoryview(raw)
    while view:
        space = session.receive_buffer()
        assert space
        count = min(len(space), len(view), rng.choice((1, 7, 16, 100, 1 << 20, 1 << 20)))
        space[:count] = view[:count]
        session.bytes_received(count)
        view = view[count:]
        try:
            while (event := session.next_event()) is not None:
                react(session, event, voice)
        except RemoteProtocolError as error:
            assert session.next_event() is None
            assert not session.clean
            if session.peer_hello:
                session.send(0, connection_error(error))
                assert session.credits_due(1) == []
            return True
    return False


def react(session: Session, event: object, voice: Voice) -> None:
    """Do what the connection must do."""
    if isinstance(event, Payload):
        assert event.view
        session.consumed(event.stream, len(event.view))
        session.credits_due(1)
    elif isinstance(event, Rejected):
        session.send(event.stream, stream_error(event.error))
        assert not session.is_open(event.stream)
    elif isinstance(event, Received) and event.stream and event.stream not in voice.streams:
        voice.streams.append(event.stream)


def fuzz_session(rng: random.Random, side: Side) -> None:
    """Two sessions talk legally for a while, crossing each other; then ``side`` hears mutated things."""
    grease = rng if rng.random() < 0.1 else None
    limits = Limits(features=wire.FEATURE_FILES if rng.random() < 0.9 else 0)
    other = Side.SERVER if side is Side.CLIENT else Side.CLIENT
    peer = Voice(rng, Session(other, Limits(features=wire.FEATURE_FILES), grease=grease))
    first = peer.session.greeting()
    if rng.random() < 0.2:
        first = mutated(rng, first) if rng.random() < 0.5 else first + last_words(rng, peer)
        with measured(DECLARED):
            target = Voice(rng, Session(side))
            target.session.greeting()
            hear(rng, target.session, first, target)
        return
    target = Voice(rng, Session(side, limits))
    assert not hear(rng, peer.session, target.session.greeting(), peer)
    assert not hear(rng, target.session, first, target)
    for _ in range(rng.randrange(4)):
        said = [(peer.speak(), target.speak()) for _ in range(rng.randrange(3))]
        assert not hear(rng, target.session, b"".join(one for one, _ in said), target)
        assert not hear(rng, peer.session, b"".join(other for _, other in said), peer)
    assert target.session.clean
    assert peer.session.clean
    assert {s: peer.session.state(s) for s in peer.streams} == {
        s: target.session.state(s) for s in peer.streams
    }
    words = last_words(rng, peer)
    with measured(DECLARED):
        if hear(rng, target.session, words, target):
            hear(rng, target.session, words, target)
        target.session.idle()


def last_words(rng: random.Random, peer: Voice) -> bytes:
    """What is not legal, in one of several ways."""
    stream = rng.choice((0, 1, 2, 3, 5, 1 << 31, *peer.streams, *peer.streams))
    said = [peer.speak(), mutated_frame(rng, stream), peer.speak(), mutated_frame(rng, stream)]
    raw = b"".join(rng.sample(said, rng.randint(1, 4)))
    match rng.randrange(4):
        case 0:
            return raw[: rng.randrange(len(raw) + 1)]
        case 1:
            return mutated(rng, raw)
        case 2:
            return raw + rng.randbytes(rng.randrange(40))
        case _:
            return raw


@contextmanager
def measured(declared: int) -> Iterator[None]:
    """What happens inside may allocate twice ``declared`` bytes at most."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * declared, f"{peak} bytes were allocated"


def one(rng: random.Random) -> None:
    """One input."""
    choice = rng.random()
    if choice < 0.1:
        fuzz_early(rng)
    elif choice < 0.4:
        fuzz_decode(rng)
    else:
        fuzz_session(rng, Side.SERVER if choice < 0.75 else Side.CLIENT)


def fuzz_early(rng: random.Random) -> None:
    """Bytes before any HELLO: a server has declared next to nothing yet."""
    raw = wire.PREFACE + mutated_frame(rng, 0) if rng.random() < 0.8 else rng.randbytes(50)
    with measured(DECLARED_EARLY):
        session = Session(Side.SERVER)
        hear(rng, session, raw, Voice(rng, session))


def campaign(count: int, seed: int) -> None:
    """``count`` inputs; an input that fails is named by its own seed, `fuzz.py 1 THAT`."""
    for number in range(seed, seed + count):
        try:
            one(random.Random(number))
        except Exception as error:
            raise AssertionError(f"input {number}: {type(error).__name__}: {error}") from error


def main() -> None:
    """Run the campaign of the command line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    begun = time.perf_counter()
    campaign(count, seed)
    took = time.perf_counter() - begun
    print(
        f"{count} inputs from seed {seed}: nothing but what is declared, {took:.1f} s, {took / count * 1e6:.0f} µs each"
    )


if __name__ == "__main__":
    main()

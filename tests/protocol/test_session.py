from __future__ import annotations

import random
import re
import struct
from dataclasses import replace
from itertools import product
from pathlib import Path

import fuzz
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockproto import wire
from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.common.file_table import RECORD, FileTable
from blockproto.errors import (
    BadCheck,
    BadFacts,
    Cancelled,
    Code,
    CreditExceeded,
    DigestMismatch,
    DigestsDiffer,
    FrameTooLarge,
    LocalProtocolError,
    MalformedFrame,
    NotBlockproto,
    RemoteProtocolError,
    Scope,
    Superseded,
    TooManyStreams,
    UnexpectedMessage,
    Unsupported,
    UnsupportedVersion,
)
from blockproto.observability.observed import ObservedSession
from blockproto.protocol.framing import IDLE_BUFFER_LENGTH, RECEIVE_BUFFER_LENGTH, START_BUFFER_LENGTH
from blockproto.protocol.session import (
    TABLE,
    Event,
    Greeted,
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
from blockproto.protocol.streams import FIRST, Flow, Stream, kind_of
from blockproto.wire import (
    Ack,
    Block,
    Cancel,
    Commit,
    Committed,
    Credit,
    Error,
    Fetch,
    Files,
    GoAway,
    Have,
    Hello,
    List,
    Open,
    Opened,
    Piece,
    Ping,
    Remove,
    Result,
    Stored,
    encode_frame,
)

ID, DIGEST = bytes(range(16)), bytes(range(32))
SENDER, RECEIVER = Role
OPEN = Open(ID, 1, 3 * BLOCK_LENGTH, 3, "a", "")
BLOCK = Block(ID, 3 * BLOCK_LENGTH, 3, 0, 0, "a", "")
SMALL = Block(ID, 5, 1, 0, 0, "a", "", DIGEST, commit=True)
COMMIT = Commit(ID, DIGEST, 3 * BLOCK_LENGTH, 3)
COMMITTED = Committed(ID, ID, DIGEST, 5, "a")
OPENED = Opened(ID, ID, 1, 0, 0, None)
CRITICAL_TLV = struct.pack(">HH", 0x8000, 0)


FILES = Limits(features=wire.FEATURE_FILES)


def files_of(number: int, *sizes: int, last: bool = False) -> Files:
    """FILES with a file of each of these sizes; without any, with one that is empty."""
    records = tuple((ID, DIGEST, size, 0, 0o644, 0, 0, 1) for size in sizes or (0,))
    return Files(number, ("",), ("",), FileTable(records, ("a",) * len(records)), 0, last)


def feed(session: Session, raw: bytes, piece: int = 1 << 30) -> list[Event]:
    """Give ``raw`` to the session, ``piece`` bytes at a time at most; payload views are kept as bytes."""
    events: list[Event] = []
    view = memoryview(raw)
    while view:
        space = session.receive_buffer()
        count = min(len(space), len(view), piece)
        space[:count] = view[:count]
        session.bytes_received(count)
        view = view[count:]
        while (event := session.next_event()) is not None:
            events.append(replace(event, view=bytes(event.view)) if isinstance(event, Payload) else event)
    return events


def pair(limits: Limits | None = None) -> tuple[Session, Session]:
    """A client and a server that have greeted each other."""
    client, server = Session(Side.CLIENT, limits), Session(Side.SERVER, limits)
    assert feed(server, client.greeting()) == [Greeted(client.limits.hello())]
    assert feed(client, server.greeting()) == [Greeted(server.limits.hello())]
    return client, server


def sealed(number: int, head: bytes, *, flags: int = 0, stream: int = 1, payload: int = 0) -> bytes:
    return wire.frame_bytes(stream, number, flags, head, payload)


def refusal(session: Session, raw: bytes) -> RemoteProtocolError:
    """What the session has against ``raw``; afterwards it is deaf."""
    with pytest.raises(RemoteProtocolError) as caught:
        feed(session, raw)
    assert not session.clean
    assert feed(session, bytes(3 * RECEIVE_BUFFER_LENGTH)) == []
    return caught.value


# Greeting


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_greeting_in_pieces(piece):
    client, server = Session(Side.CLIENT, Limits(agent="us/1")), Session(Side.SERVER)
    raw = client.greeting()
    assert raw.startswith(bytes.fromhex("ff424b500d0a1a0a"))
    assert not server.recognised
    assert feed(server, raw[:8], piece) == []
    assert server.recognised
    [event] = feed(server, raw[8:], piece)
    assert isinstance(event, Greeted)
    assert event.hello.agent == "us/1"
    assert server.peer_hello == event.hello == client.limits.hello()
    assert (client.side, server.side) == (Side.CLIENT, Side.SERVER)
    assert server.clean


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"\xffBKP\n\x1a\n\0", b"\xffBKP\r\n\x1a\r"]
)
def test_other_first_bytes_are_not_blockproto(raw):
    error = refusal(Session(Side.SERVER), raw)
    assert isinstance(error, NotBlockproto)
    assert error.code is Code.NOT_BLOCKPROTO


def test_one_wrong_byte_is_enough():
    server = Session(Side.SERVER)
    server.receive_buffer()[:1] = b"G"
    server.bytes_received(1)
    with pytest.raises(NotBlockproto):
        server.next_event()


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(0, Ping(bytes(8), 1)),
        encode_frame(1, OPEN),
        encode_frame(1, Hello()),
        sealed(27, b"", stream=0),
    ],
)
def test_the_first_frame_is_hello(frame):
    assert isinstance(refusal(Session(Side.SERVER), wire.PREFACE + frame), UnexpectedMessage)


def test_hello_comes_once():
    client, server = pair()
    assert isinstance(refusal(server, encode_frame(0, Hello())), UnexpectedMessage)
    assert isinstance(refusal(client, encode_frame(2, Hello())), UnexpectedMessage)


@pytest.mark.parametrize("versions", [(2, 9), (0, 0)])
def test_no_version_in_common(versions):
    hello = Hello(*versions, piece_length_max=1 << 30)
    error = refusal(Session(Side.SERVER), wire.PREFACE + encode_frame(0, hello))
    assert isinstance(error, UnsupportedVersion)


@pytest.mark.clause("BP1-HEL-011")
def test_nobody_looks_at_the_agent():
    package = Path(wire.__file__).parent
    reading = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "conformance" not in path.parts and re.search(r"\.agent\b", path.read_text(encoding="utf-8"))
    }
    assert reading <= {"protocol/events.py"}, "only Limits may look at its own, to say it in HELLO"


def test_a_version_between_is_taken():
    assert feed(Session(Side.SERVER), wire.PREFACE + encode_frame(0, Hello(0, 9))) == [Greeted(Hello(0, 9))]


def test_a_hello_that_needs_more_than_we_understand_ends_the_connection():
    head = encode_frame(0, Hello())[16:] + CRITICAL_TLV
    assert (
        refusal(Session(Side.SERVER), wire.PREFACE + sealed(wire.Type.HELLO, head, stream=0)).code
        is Code.UNSUPPORTED
    )


def test_a_hello_below_the_early_limits_is_malformed():
    head = bytearray(encode_frame(0, Hello())[16:])
    head[4:6] = (4095).to_bytes(2, "big")
    error = refusal(Session(Side.SERVER), wire.PREFACE + sealed(wire.Type.HELLO, bytes(head), stream=0))
    assert isinstance(error, MalformedFrame)


def test_limits_are_judged_when_they_are_set():
    with pytest.raises(LocalProtocolError):
        Session(Side.SERVER, Limits(streams_max=1))


def test_greeting_comes_first_and_once():
    client = Session(Side.CLIENT)
    with pytest.raises(LocalProtocolError):
        client.send(0, Ping(bytes(8), 1))
    client.greeting()
    with pytest.raises(LocalProtocolError):
        client.greeting()
    client.send(0, Ping(bytes(8), 1))


def test_a_client_goes_on_at_once_within_the_early_limits():
    client, server = Session(Side.CLIENT), Session(Side.SERVER)
    raw = client.greeting()
    stream = client.open_stream()
    assert (client.piece_length_max, client.head_length_max) == (65_536, 4096)
    assert client.sendable(stream) == 1 << 18
    with pytest.raises(LocalProtocolError):
        client.send(stream, BLOCK, 65_537)
    raw += client.send(stream, SMALL, 5) + b"hello"
    assert feed(server, raw)[1:] == [Received(1, SMALL, 5), Payload(1, 0, b"hello", True)]
    feed(client, server.greeting() + server.send(stream, COMMITTED))
    assert (client.piece_length_max, client.head_length_max) == (1 << 20, 65_535)
    assert not client.is_open(stream)


# Frames


@pytest.mark.clause("BP1-FRM-009")
def test_limits_are_judged_from_sixteen_bytes():
    """Nothing of the frame but its header came, and it is refused."""

    def judged(session: Session, length: int, number: int, head_length: int) -> RemoteProtocolError:
        return refusal(session, struct.pack(">IHHII", length << 8 | number, 0, head_length, 1, 0))

    early = [Session(Side.SERVER) for _ in range(6)]
    for session in early:
        feed(session, wire.PREFACE + encode_frame(0, Hello()))
    assert isinstance(judged(early[0], 4097, 0x83, 4097), FrameTooLarge)
    assert isinstance(judged(early[1], 65_537 + 44, 0x85, 44), FrameTooLarge)
    assert isinstance(judged(early[2], 10, 0x83, 11), MalformedFrame)
    assert isinstance(judged(early[3], 11, 0x83, 10), MalformedFrame)
    assert isinstance(judged(early[4], 65_537, 0x33, 10), FrameTooLarge)
    assert isinstance(judged(early[5], 65_537, 0xB3, 10), FrameTooLarge)

    limits = Limits(head_length_max=5000, piece_length_max=100_000)
    servers = [pair(limits)[1] for _ in range(3)]
    assert isinstance(judged(servers[0], 5001, 0x83, 5001), FrameTooLarge)
    assert isinstance(judged(servers[1], 100_001 + 44, 0x85, 44), FrameTooLarge)
    assert feed(servers[2], struct.pack(">IHHII", 100_044 << 8 | 0x85, 0, 44, 1, 0)) == []
    assert servers[2].head_begun


def test_what_is_exactly_at_a_limit_is_taken():
    early = Session(Side.SERVER)
    feed(early, wire.PREFACE + encode_frame(0, Hello()))
    for session, most in ((early, 4096), (pair(Limits(head_length_max=5000))[1], 5000)):
        longest = replace(OPEN, filename="x" * (most - 42))
        frame = encode_frame(1, longest)
        assert len(frame) == 16 + most
        assert feed(session, frame) == [Received(1, longest, 0)]
        for payload in (0, 65_536 - most):
            assert feed(session, sealed(27, bytes(most), payload=payload) + bytes(payload)) == []
        assert isinstance(refusal(session, sealed(27, bytes(most), payload=65_537 - most)), FrameTooLarge)


def test_before_the_greeting_a_piece_of_the_early_limit_is_taken():
    server = Session(Side.SERVER)
    feed(server, wire.PREFACE + encode_frame(0, Hello()))
    events = feed(server, encode_frame(1, BLOCK, 65_536) + bytes(65_536))
    assert events[0] == Received(1, BLOCK, 65_536)
    assert sum(len(event.view) for event in events[1:] if isinstance(event, Payload)) == 65_536


@pytest.mark.parametrize("at", range(16 + 43))
def test_a_wrong_byte_ends_the_connection(at):
    _, server = pair()
    frame = bytearray(encode_frame(1, OPEN))
    assert len(frame) == 16 + 43
    frame[at] ^= 1
    error = refusal(server, bytes(frame) + bytes(1 << 17))
    if at in {0, 1, 2, 6, 7}:  # lengths are judged before the check
        assert isinstance(error, FrameTooLarge | MalformedFrame)
    else:
        assert isinstance(error, BadCheck)


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_conversation_in_pieces(piece):
    client, server = pair()
    upload, other = client.open_stream(), client.open_stream()
    payload = random.Random(1).randbytes(3000)
    raw = client.send(upload, OPEN) + client.send(upload, BLOCK, 1000) + payload[:1000]
    raw += client.send(other, SMALL, 5) + b"hello"
    raw += client.send(upload, Piece(1000, DIGEST), 2000) + payload[1000:]
    events = feed(server, raw, piece)
    heads = [event for event in events if isinstance(event, Received)]
    assert heads == [
        Received(upload, OPEN, 0),
        Received(upload, BLOCK, 1000),
        Received(other, SMALL, 5),
        Received(upload, Piece(1000, DIGEST), 2000),
    ]
    fragments = [event for event in events if isinstance(event, Payload) and event.stream == upload]
    assert b"".join(bytes(event.view) for event in fragments) == payload
    assert [event.position for event in fragments] == [
        sum(len(before.view) for before in fragments[:i]) for i in range(len(fragments))
    ]
    assert [event.position + len(event.view) for event in fragments if event.last] == [1000, 3000]
    assert server.clean


def test_clean_and_head_begun_say_where_the_bytes_stop():
    client, server = pair()
    stream = client.open_stream()
    raw = client.send(stream, SMALL, 5) + b"hello"
    head_end = len(raw) - 5
    for at in range(len(raw) + 1):
        _, server = pair()
        feed(server, raw[:at])
        assert server.clean == (at in {0, len(raw)})
        assert server.head_begun == (0 < at < head_end)


def test_empty_payload_makes_no_event():
    client, server = pair()
    empty = Block(ID, 0, 0, 0, 0, "empty", "", DIGEST, commit=True)
    assert feed(server, client.send(client.open_stream(), empty)) == [Received(1, empty, 0)]


# The buffer


def test_payload_is_a_view_of_the_buffer_and_the_buffer_is_offered_whole():
    client, server = pair(Limits(connection_allowance=1 << 30, stream_allowance=1 << 30))
    stream = client.open_stream()
    block = replace(BLOCK, digest=DIGEST)
    feed(server, client.send(stream, OPEN))
    raw = memoryview(
        client.send(stream, block, BLOCK_LENGTH) + bytes(BLOCK_LENGTH) + client.send(stream, COMMIT)
    )
    offered = []
    while raw:
        space = server.receive_buffer()
        offered.append(len(space))
        count = min(len(space), len(raw))
        space[:count] = raw[:count]
        server.bytes_received(count)
        raw = raw[count:]
        while (event := server.next_event()) is not None:
            if isinstance(event, Payload):
                assert event.view.obj is space.obj
                server.consumed(stream, len(event.view))
    assert offered == [IDLE_BUFFER_LENGTH, START_BUFFER_LENGTH] + [RECEIVE_BUFFER_LENGTH] * 4


def test_what_is_left_over_moves_to_the_front():
    client, server = pair()
    frame = client.send(client.open_stream(), OPEN)
    for at in range(1, len(frame)):
        _, server = pair()
        assert feed(server, encode_frame(1, OPEN) + encode_frame(3, OPEN)[:at]) == [Received(1, OPEN, 0)]
        assert len(server.receive_buffer()) + at in {IDLE_BUFFER_LENGTH, START_BUFFER_LENGTH}
        assert feed(server, encode_frame(3, OPEN)[at:]) == [Received(3, OPEN, 0)]


def test_the_great_buffer_comes_when_the_small_one_was_full_and_goes_when_idle():
    client, server = pair()
    have = Have(tuple((i, DIGEST) for i in range(1000)))
    stream = client.open_stream()
    raw = client.send(stream, OPEN) + client.send(stream, have)
    events = feed(server, raw)
    assert events[-1] == Received(stream, have, 0)
    assert len(server.receive_buffer()) == RECEIVE_BUFFER_LENGTH
    server.idle()
    assert len(server.receive_buffer()) == IDLE_BUFFER_LENGTH
    feed(server, client.send(stream, have) + client.send(stream, COMMIT)[:20])
    assert len(server.receive_buffer()) == RECEIVE_BUFFER_LENGTH - 20
    server.idle()
    assert len(server.receive_buffer()) == IDLE_BUFFER_LENGTH - 20
    frame = encode_frame(stream, COMMIT)
    assert feed(server, frame[20:]) == [Received(stream, COMMIT, 0)]


def test_idle_keeps_a_great_head_that_has_begun():
    client, server = pair()
    have = Have(tuple((i, DIGEST) for i in range(1000)))
    stream = client.open_stream()
    raw = client.send(stream, OPEN) + client.send(stream, have)
    feed(server, raw[:20_000])
    server.idle()
    assert feed(server, raw[20_000:]) == [Received(stream, have, 0)]


def test_a_buffer_full_of_what_nobody_asked_for_is_a_bug_of_ours():
    _, server = pair()
    for _ in range(3):
        space = server.receive_buffer()
        server.bytes_received(len(space))
    with pytest.raises(LocalProtocolError):
        server.receive_buffer()


# The table

GOLDEN = """
sender   OPEN                       new wanted -> OPEN
sender   BLOCK                      new -> BRIEF
sender   BLOCK_COMMIT               new brief -> COMMITTING
sender   PIECE_COMMIT               brief -> COMMITTING
sender   BLOCK PIECE                brief -> BRIEF
sender   BLOCK PIECE HAVE           open -> OPEN
sender   BLOCK PIECE HAVE           committing -> COMMITTING
sender   COMMIT                     open -> COMMITTING
sender   CANCEL                     open brief committing files filed -> CANCELLING
sender   FILES                      new files listed -> FILES
sender   FILES_LAST                 new files listed -> FILED
sender   RESULT                     asked -> CLOSED
receiver FETCH                      new -> WANTED
receiver FILES_WANTED               new -> LISTED
receiver AUTH LIST REMOVE           new -> ASKED
receiver CREDIT                     wanted -> WANTED
receiver CREDIT                     listed -> LISTED
receiver OPENED ACK CREDIT ERROR_BLOCK   open -> OPEN
receiver OPENED ACK CREDIT ERROR_BLOCK   brief -> BRIEF
receiver OPENED ACK CREDIT ERROR_BLOCK   committing -> COMMITTING
receiver OPENED ACK CREDIT ERROR_BLOCK ERROR_DIFFER STORED   cancelling -> CANCELLING
receiver CREDIT STORED              files -> FILES
receiver CREDIT STORED              filed -> FILED
receiver STORED_LAST                filed cancelling -> CLOSED
receiver ERROR_DIFFER               committing -> OPEN
receiver COMMITTED                  open brief committing cancelling -> CLOSED
sender   ERROR_STREAM               asked wanted open brief committing cancelling files filed listed -> CLOSED
receiver ERROR_STREAM               asked wanted open brief committing cancelling files filed listed -> CLOSED
"""


def test_the_table_is_the_one_of_the_spec():
    golden = {}
    for line in GOLDEN.strip().splitlines():
        left, _, to = line.partition("->")
        speaker, *words = left.split()
        kinds = [Kind[word] for word in words if word.isupper()]
        states = [State[word.upper()] for word in words if word.islower()]
        golden |= {
            (state, Role[speaker.upper()], kind): State[to.strip()] for state in states for kind in kinds
        }
    assert golden == TABLE


@pytest.mark.clause("BP1-STR-015")
def test_the_diamond():
    """Where a message of each side is legal at once, both orders are legal and meet in the same state."""

    def after(state: State, speaker: Role, kind: int) -> State | None:
        return State.CLOSED if state is State.CLOSED else TABLE.get((state, speaker, kind))

    for state in set(State) - {State.NEW, State.CLOSED}:  # in NEW only the id's owner may speak
        ours = [kind for at, speaker, kind in TABLE if (at, speaker) == (state, SENDER)]
        theirs = [kind for at, speaker, kind in TABLE if (at, speaker) == (state, RECEIVER)]
        for one, other in product(ours, theirs):
            first = after(TABLE[state, SENDER, one], RECEIVER, other)
            second = after(TABLE[state, RECEIVER, other], SENDER, one)
            assert first == second, f"{state.name}: {Kind(one).name} and {Kind(other).name}"
            assert first is not None


def test_every_state_is_reached_and_left():
    assert {state for state, _, _ in TABLE} | {State.CLOSED} == set(State)
    assert set(TABLE.values()) | {State.NEW} == set(State)
    assert {(Kind(kind).name, role) for kind, role in FIRST.items()} == {
        ("OPEN", SENDER), ("BLOCK", SENDER), ("BLOCK_COMMIT", SENDER), ("FETCH", RECEIVER), ("LIST", RECEIVER),
        ("REMOVE", RECEIVER), ("AUTH", RECEIVER), ("FILES", SENDER), ("FILES_LAST", SENDER), ("FILES_WANTED", RECEIVER),
    }  # fmt: skip


@pytest.mark.parametrize("state", set(State) - {State.NEW, State.CLOSED})
@pytest.mark.parametrize("role", Role)
def test_what_is_not_in_the_table_may_not_be_said(state, role):
    rng = random.Random(7)
    for cls in wire.MESSAGES.values():
        for _ in range(4):
            message = fuzz.message(rng, cls)
            stream = Stream(1, 0, 0)
            stream.state, stream.role = state, role
            expected = TABLE.get((state, role, kind_of(message)))
            assert stream.next_state(True, message) == (None if expected is None else (role, expected))
            other = Role(1 - role)
            expected = TABLE.get((state, other, kind_of(message)))
            assert stream.next_state(False, message) == (None if expected is None else (role, expected))


def test_kinds():
    assert kind_of(SMALL) == Kind.BLOCK_COMMIT
    assert kind_of(BLOCK) == Kind.BLOCK
    assert kind_of(Piece(0, DIGEST, True)) == Kind.PIECE_COMMIT
    assert kind_of(Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True)) == Kind.ERROR_DIFFER
    assert kind_of(Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True)) == Kind.ERROR_BLOCK
    assert kind_of(Error(Code.DIGESTS_DIFFER, Scope.STREAM, True)) == Kind.ERROR_STREAM
    assert kind_of(files_of(1)) == Kind.FILES
    assert kind_of(files_of(1, last=True)) == Kind.FILES_LAST
    assert kind_of(replace(files_of(1), wanted=True, last=True)) == Kind.FILES_WANTED
    assert kind_of(Stored(1, b"")) == Kind.STORED
    assert kind_of(Stored(1, b"", last=True)) == Kind.STORED_LAST
    assert kind_of(Error(Code.TIMEOUT, Scope.CONNECTION, True)) not in set(Kind)


LIVES = {
    "upload": [(0, OPEN), (1, OPENED), (0, BLOCK), (0, Have(((0, DIGEST),))), (1, Ack(0)), (0, COMMIT), (1, COMMITTED)],
    "repair": [
        (0, OPEN),
        (0, COMMIT),
        (1, Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True)),
        (0, Have(())),
        (1, OPENED),
        (0, BLOCK),
        (0, COMMIT),
        (1, COMMITTED),
    ],
    "brief": [
        (0, SMALL),
        (1, Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True)),
        (0, replace(SMALL, commit=False)),
        (1, COMMITTED),
    ],
    "brief in pieces": [(0, BLOCK), (0, Piece(0)), (0, Piece(0, DIGEST, True)), (1, COMMITTED)],
    "download": [(1, Fetch("a")), (0, OPEN), (1, Credit(1, 0)), (0, BLOCK), (0, COMMIT), (1, COMMITTED)],
    "download that fails": [(1, Fetch("a")), (0, Error(Code.UNKNOWN_FILE, Scope.STREAM, False))],
    "download given up": [(1, Fetch("a")), (0, OPEN), (1, Error(Code.CANCELLED, Scope.STREAM, False))],
    "list": [(1, List(1)), (0, Result(1))],
    "remove": [(1, Remove(1)), (0, Result(1))],
    "cancel": [(0, OPEN), (0, Cancel(0)), (1, Ack(0)), (1, Error(Code.CANCELLED, Scope.STREAM, False))],
    "cancel too late": [(0, OPEN), (0, COMMIT), (0, Cancel(0)), (1, COMMITTED)],
    "joined": [(0, OPEN), (1, COMMITTED)],
    "files": [(0, files_of(1)), (1, Stored(1, bytes(1))), (0, files_of(2)), (0, files_of(3, last=True)),
              (1, Stored(3, bytes(1))), (1, Stored(2, bytes(1), last=True))],
    "files, and nothing more": [(0, files_of(1)), (1, Stored(1, bytes(1))), (0, Files(2, last=True)),
                                (1, Stored(2, b"", last=True))],
    "files, cancelled": [(0, files_of(1)), (0, Cancel(0)), (1, Stored(1, bytes(1))),
                         (1, Error(Code.CANCELLED, Scope.STREAM, False))],
    "files, cancelled too late": [(0, files_of(1, last=True)), (0, Cancel(0)), (1, Stored(1, bytes(1), last=True))],
}  # fmt: skip


@pytest.mark.parametrize("opener", Side)
@pytest.mark.parametrize("name", LIVES)
def test_the_life_of_a_stream_on_both_ends(name, opener):
    """Each life, opened by a client and by a server; both ends agree on every state."""
    client, server = pair(FILES)
    mine, theirs = (client, server) if opener is Side.CLIENT else (server, client)
    stream = mine.open_stream()
    assert stream == (1 if opener is Side.CLIENT else 2)
    assert mine.role(stream) is None
    first = LIVES[name][0][0]
    for speaker, message in LIVES[name]:
        speaks, hears = (mine, theirs) if speaker == first else (theirs, mine)
        assert feed(hears, speaks.send(stream, message)) == [Received(stream, message, 0)]
        assert mine.state(stream) == theirs.state(stream)
        if mine.is_open(stream):
            assert {mine.role(stream), theirs.role(stream)} == set(Role)
    assert mine.state(stream) is State.CLOSED
    assert mine.role(stream) is None
    assert mine.open_streams == theirs.open_streams == 0


def test_a_message_that_is_not_legal_ends_the_connection():
    client, server = pair()
    feed(server, client.send(client.open_stream(), OPEN))
    with pytest.raises(LocalProtocolError):
        client.send(1, replace(SMALL, filesize=5))
    assert client.state(1) is State.OPEN
    error = refusal(server, encode_frame(1, SMALL, 5) + b"hello")
    assert isinstance(error, UnexpectedMessage)
    assert "BLOCK" in str(error)
    assert "OPEN" in str(error)


@pytest.mark.parametrize(
    "message", [Ack(0), COMMIT, Piece(0), OPENED, COMMITTED, Result(1), Ping(bytes(8), 0), GoAway(1, 1, 1)]
)
def test_what_may_not_open_a_stream(message):
    client, server = pair()
    with pytest.raises(LocalProtocolError):
        client.send(client.open_stream(), message)
    assert isinstance(refusal(server, encode_frame(3, message)), UnexpectedMessage)


def test_errors_of_a_connection_stay_on_it():
    client, server = pair()
    feed(server, client.send(client.open_stream(), OPEN))
    with pytest.raises(LocalProtocolError):
        client.send(1, Error(1, Scope.CONNECTION, False))
    with pytest.raises(LocalProtocolError):
        client.send(0, Error(1, Scope.STREAM, False))
    _, other = pair()
    assert isinstance(refusal(server, encode_frame(1, Error(1, Scope.CONNECTION, False))), UnexpectedMessage)
    assert isinstance(refusal(other, encode_frame(0, Error(1, Scope.STREAM, False))), UnexpectedMessage)


@pytest.mark.parametrize("message", [OPEN, Ack(0), List(1), Hello()])
def test_what_may_not_be_said_on_the_connection(message):
    client, server = pair()
    with pytest.raises(LocalProtocolError):
        client.send(0, message)
    assert isinstance(refusal(server, encode_frame(0, message)), UnexpectedMessage)


def test_what_may_be_said_on_the_connection():
    client, server = pair()
    for message in (Ping(bytes(8), 5), Credit(1 << 40, 0), GoAway(Code.GOING_AWAY, 1, 2)):
        assert feed(server, client.send(0, message)) == [Received(0, message, 0)]


def test_what_must_be_understood_on_the_connection_and_is_not_ends_it():
    for frame in (
        sealed(0x9F, b"", stream=0),
        sealed(wire.Type.PING, encode_frame(0, Ping(bytes(8), 1))[16:] + CRITICAL_TLV, stream=0),
        sealed(wire.Type.BLOCK, encode_frame(0, BLOCK)[16:32] + bytes(32), stream=0),
    ):
        assert refusal(pair()[1], frame).code in {
            Code.UNSUPPORTED,
            Code.BAD_FACTS,
            Code.MALFORMED,
            Code.UNEXPECTED,
        }
    bad = bytearray(encode_frame(0, BLOCK)[16:])
    bad[24:28] = (9).to_bytes(4, "big")
    assert refusal(pair()[1], sealed(wire.Type.BLOCK, bytes(bad), stream=0)).code is Code.BAD_FACTS


# Ids


def test_ids_rise_and_are_never_used_again():
    client, server = pair()
    assert [client.open_stream() for _ in range(3)] == [1, 3, 5]
    assert [server.open_stream() for _ in range(2)] == [2, 4]
    assert client.is_open(3)
    feed(server, client.send(3, SMALL))
    with pytest.raises(LocalProtocolError):
        client.send(1, SMALL)
    assert (
        feed(server, encode_frame(1, SMALL, 5) + b"hello") == []
    )  # used and closed, as far as the server knows
    feed(client, server.send(3, COMMITTED))
    with pytest.raises(LocalProtocolError):
        client.send(3, SMALL)
    with pytest.raises(LocalProtocolError):
        client.send(99, SMALL)
    feed(server, client.send(5, SMALL))


def test_ids_that_are_ours_are_ours_to_open():
    client, server = pair()
    assert isinstance(refusal(server, encode_frame(2, OPEN)), UnexpectedMessage)
    client.open_stream()
    assert isinstance(refusal(client, encode_frame(1, OPEN)), UnexpectedMessage)


def test_an_id_of_ours_that_was_passed_over_counts_as_closed():
    client, server = pair()
    client.open_stream()
    feed(server, client.send(client.open_stream(), OPEN))
    assert feed(client, encode_frame(1, OPENED)) == []


@pytest.mark.parametrize(
    "frame", [encode_frame(1, Ack(9)), encode_frame(1, BLOCK, 7) + bytes(7), sealed(0x85, b"\xff" * 99)]
)
def test_frames_for_closed_streams_are_checked_and_dropped(frame):
    client, server = pair()
    feed(server, client.send(client.open_stream(), SMALL))
    feed(client, server.send(1, COMMITTED))
    assert feed(server, frame) == []
    broken = bytearray(frame)
    broken[20] ^= 1
    assert isinstance(refusal(server, bytes(broken)), BadCheck)


def test_a_server_takes_as_many_streams_as_it_said():
    limits = Limits(streams_max=300)
    client, server = pair(limits)
    for _ in range(300):
        feed(server, client.send(client.open_stream(), OPEN))
    assert not client.may_open
    with pytest.raises(LocalProtocolError) as caught:
        client.open_stream()
    assert caught.value.code is Code.TOO_MANY_STREAMS
    assert isinstance(refusal(server, encode_frame(601, OPEN)), TooManyStreams)
    assert server.open_streams == 300


def test_a_stream_that_closed_makes_room():
    client, server = pair(Limits(streams_max=256))
    for _ in range(256):
        feed(server, client.send(client.open_stream(), SMALL))
    feed(client, server.send(7, COMMITTED))
    assert client.may_open
    feed(server, client.send(client.open_stream(), SMALL))
    assert server.open_streams == client.open_streams == 256
    assert not client.may_open
    assert isinstance(refusal(server, encode_frame(901, SMALL)), TooManyStreams)


def test_before_hello_256_streams():
    client, server = Session(Side.CLIENT), Session(Side.SERVER)
    raw = client.greeting()
    for _ in range(256):
        raw += client.send(client.open_stream(), OPEN)
    assert not client.may_open
    feed(server, raw)
    assert isinstance(refusal(server, encode_frame(513, OPEN)), TooManyStreams)


def test_nothing_is_kept_of_closed_streams():
    client, server = pair()
    for _ in range(3000):
        stream = client.open_stream()
        feed(server, client.send(stream, SMALL, 5) + b"hello")
        server.consumed(stream, 5)
        feed(client, server.send(stream, COMMITTED))
    for session in (client, server):
        kept = [value for value in vars(session).values() if isinstance(value, set | dict | list)]
        assert kept == [{}, {}, {}, {}]


def test_no_credit_is_owed_to_closed_streams():
    client, server = pair(Limits(stream_allowance=1 << 18))
    feed(server, client.send(client.open_stream(), OPEN) + client.send(1, BLOCK, 1 << 16) + bytes(1 << 16))
    server.consumed(1, 1 << 16)
    server.send(1, COMMITTED)
    [frame] = server.credits_due(1)
    assert wire.decode_header(frame).stream == 0
    assert not server._owing


# Credit


def test_more_than_the_stream_allows_is_refused():
    client, server = pair(Limits(stream_allowance=1 << 18))
    client.send(client.open_stream(), OPEN)
    raw = encode_frame(1, OPEN)
    for _ in range(4):
        raw += encode_frame(1, BLOCK, 1 << 16) + bytes(1 << 16)
    feed(server, raw)
    assert client.sendable(1) == 1 << 18
    with pytest.raises(LocalProtocolError):
        client.send(1, BLOCK, (1 << 18) + 1)
    assert client.sendable(1) == 1 << 18
    assert isinstance(refusal(server, encode_frame(1, BLOCK, 1)), CreditExceeded)


@pytest.mark.parametrize("number", [1, 3])
def test_more_than_the_connection_allows_is_refused_also_on_closed_streams(number):
    _client, server = pair(Limits(connection_allowance=1 << 20, stream_allowance=1 << 20))
    feed(server, encode_frame(1, SMALL))
    server.send(1, COMMITTED)
    feed(server, encode_frame(3, OPEN))
    block = encode_frame(3, BLOCK, 1 << 20) + bytes(1 << 20)
    feed(server, block)
    assert isinstance(refusal(server, encode_frame(number, BLOCK, 1)), CreditExceeded)


def test_credit_of_dropped_payload_is_returned():
    """On a closed stream, on one closed in the middle of a payload, and with a rejected message."""
    _client, server = pair()
    feed(server, encode_frame(1, SMALL))
    server.send(1, COMMITTED)
    feed(server, encode_frame(1, BLOCK, 1000) + bytes(1000))
    assert _granted(server) == (16 << 20) + 1000
    feed(server, encode_frame(3, OPEN) + encode_frame(3, BLOCK, 1000) + bytes(400))
    server.send(3, Error(Code.SUPERSEDED, Scope.STREAM, False))
    assert feed(server, bytes(600)) == []
    server.consumed(3, 400)
    assert _granted(server) == (16 << 20) + 2000
    bad = bytearray(encode_frame(5, BLOCK)[16:])
    bad[24:28] = (9).to_bytes(4, "big")
    [event] = feed(server, sealed(wire.Type.BLOCK, bytes(bad), stream=5, payload=1000) + bytes(1000))
    assert isinstance(event, Rejected)
    assert _granted(server) == (16 << 20) + 3000
    assert server.clean


def _granted(session: Session) -> int:
    [frame] = session.credits_due(1)
    credit = wire.decode_head(wire.decode_header(frame), frame[16:])
    assert isinstance(credit, Credit)
    return credit.allowance


def test_payload_of_unknown_messages_needs_no_credit():
    _, server = pair(Limits(connection_allowance=1 << 20, stream_allowance=1 << 20))
    feed(server, encode_frame(1, OPEN) + encode_frame(1, BLOCK, 1 << 20) + bytes(1 << 20))
    assert feed(server, sealed(27, b"", payload=9) + bytes(9)) == []
    [event] = feed(server, sealed(0xF0, b"", payload=9) + bytes(9))
    assert isinstance(event, Rejected)
    assert server.clean
    server.consumed(1, 1 << 20)
    assert _granted(server) == 2 << 20


def test_credit_is_returned_as_totals():
    client, server = pair(Limits(connection_allowance=1 << 20, stream_allowance=1 << 20))
    stream = client.open_stream()
    feed(server, client.send(stream, OPEN))
    feed(server, client.send(stream, BLOCK, 1 << 18) + bytes(1 << 18))
    assert client.sent(stream) == client.sent(0) == 1 << 18
    assert client.sendable(stream) == 3 << 18
    assert server.credits_due(1) == []
    server.consumed(stream, 1000)
    assert server.credits_due(1001) == []
    [frame] = server.credits_due(1000)
    assert feed(client, frame) == [Received(0, Credit((1 << 20) + 1000, 1 << 18), 0)]
    assert server.credits_due(1) == []
    server.consumed(stream, (1 << 18) - 1000)
    frames = server.credits_due(1)
    assert len(frames) == 2
    assert not server._owing
    feed(client, b"".join(frames))
    assert client.sendable(stream) == 1 << 20
    assert client.received_by_peer(stream) == client.received_by_peer(0) == 1 << 18
    assert client.sent(99) == client.received_by_peer(99) == client.sendable(99) == 0


def test_a_stream_is_granted_more_after_an_eighth_of_its_window():
    client, server = pair(Limits(stream_allowance=1 << 20))
    feed(server, client.send(client.open_stream(), OPEN))
    feed(server, client.send(1, BLOCK, 1 << 17) + bytes(1 << 17))
    server.consumed(1, (1 << 17) - 1)
    assert len(server.credits_due(1)) == 1
    server.consumed(1, 1)
    assert len(server.credits_due((1 << 17) + 1)) == 0
    assert len(server.credits_due(1)) == 2


def test_a_small_file_makes_no_credit_of_its_own():
    client, server = pair()
    feed(server, client.send(client.open_stream(), SMALL, 5) + b"hello")
    server.consumed(1, 5)
    assert len(server.credits_due(1)) == 1


def test_old_and_repeated_credit_changes_nothing():
    client, _server = pair()
    stream = client.open_stream()
    client.send(stream, BLOCK, 500)
    new, old = server_credit(stream, 1 << 30, 500), server_credit(stream, 1 << 20, 100)
    for frame in (new, old, new):
        feed(client, frame)
        assert client.received_by_peer(stream) == 500
        assert client.sendable(stream) == (16 << 20) - 500
    feed(client, server_credit(0, 1 << 31, 0))
    assert client.sendable(stream) == (1 << 30) - 500
    assert isinstance(refusal(client, server_credit(stream, 1 << 30, 501)), MalformedFrame)


def server_credit(stream: int, allowance: int, received: int) -> bytes:
    return encode_frame(stream, Credit(allowance, received))


def test_credit_that_is_sent_counts():
    client, server = pair(Limits(connection_allowance=1 << 20, stream_allowance=1 << 18))
    feed(server, client.send(client.open_stream(), Fetch("a")))
    feed(server, client.send(1, Credit(1 << 19, 0, priority=2)) + client.send(0, Credit(1 << 21, 0)))
    assert server.sendable(1) == 1 << 19
    raw = server.send(1, OPEN) + server.send(1, BLOCK, 1 << 19) + bytes(1 << 19)
    assert sum(len(e.view) for e in feed(client, raw) if isinstance(e, Payload)) == 1 << 19


def test_credit_of_the_connection_that_is_sent_counts():
    client, server = pair(Limits(connection_allowance=1 << 20, stream_allowance=1 << 20))
    feed(
        server, client.send(client.open_stream(), Fetch("a")) + client.send(client.open_stream(), Fetch("b"))
    )
    feed(server, client.send(0, Credit(2 << 20, 0)))
    for stream in (1, 3):
        feed(client, server.send(stream, OPEN) + server.send(stream, BLOCK, 1 << 20) + bytes(1 << 20))
    assert server.sendable(0) == 0


def test_only_what_came_can_be_consumed():
    client, server = pair()
    feed(server, client.send(client.open_stream(), SMALL, 5) + b"hel")
    with pytest.raises(LocalProtocolError):
        server.consumed(1, 4)
    server.consumed(1, 3)


def test_our_greeting_widens_what_is_open_already():
    server = Session(Side.SERVER)
    feed(server, wire.PREFACE + encode_frame(0, Hello()) + encode_frame(1, OPEN))
    server.greeting()
    feed(server, encode_frame(1, BLOCK, 1 << 20) + bytes(1 << 20))


def test_hello_widens_what_is_open_already():
    client, server = Session(Side.CLIENT), Session(Side.SERVER)
    raw = client.greeting() + client.send(client.open_stream(), Fetch("a"))
    feed(server, raw)
    assert client.sendable(1) == 1 << 18
    feed(client, server.greeting())
    assert client.sendable(1) == 4 << 20
    assert server.sendable(1) == 4 << 20
    server.send(1, OPEN)
    feed(client, encode_frame(1, OPEN) + encode_frame(1, BLOCK, 1 << 20) + bytes(1 << 20))


@given(st.randoms(use_true_random=False))
def test_the_inequalities_hold_at_every_step(rng):
    """consumed ≤ received ≤ granted ≤ consumed + window and received by the peer ≤ sent ≤ allowance, both ends."""
    limits = Limits(connection_allowance=1 << 20, stream_allowance=1 << 18, streams_max=256)
    client, server = pair(limits)
    streams = [client.open_stream() for _ in range(3)]
    line = b"".join(client.send(stream, OPEN) for stream in streams)
    back, arrived = b"", dict.fromkeys(streams, 0)
    for _ in range(40):
        stream = rng.choice(streams)
        match rng.randrange(4):
            case 0:
                length = min(client.sendable(stream), rng.choice((1, 1000, 1 << 16, 1 << 20)))
                line += client.send(stream, BLOCK, length) + bytes(length)
            case 1:
                for event in feed(server, line):
                    if isinstance(event, Payload):
                        arrived[event.stream] += len(event.view)
                line = b""
            case 2:
                count = rng.randint(0, arrived[stream])
                server.consumed(stream, count)
                arrived[stream] -= count
            case _:
                back += b"".join(server.credits_due(rng.choice((1, 1000, 1 << 17))))
                if rng.random() < 0.5:
                    feed(client, back)
                    back = b""
        for session in (client, server):
            for flow in (session._connection, *session._streams.values()):
                check_flow(flow)


def check_flow(flow: Flow) -> None:
    assert 0 <= flow.consumed <= flow.received <= flow.granted <= flow.consumed + flow.window
    assert 0 <= flow.received_by_peer <= flow.sent <= flow.allowance


@pytest.mark.clause("BP1-CRD-006")
def test_credit_always_comes_back():
    """A sender that uses every byte it may, against a receiver that consumes at once, never stalls."""
    client, server = pair(Limits(connection_allowance=1 << 20, stream_allowance=1 << 18))
    stream = client.open_stream()
    feed(server, client.send(stream, OPEN))
    sent = 0
    while sent < 8 << 20:
        length = min(client.sendable(stream), 1 << 16)
        assert length
        sent += length
        for event in feed(server, client.send(stream, BLOCK, length) + bytes(length)):
            if isinstance(event, Payload):
                server.consumed(stream, len(event.view))
        feed(client, b"".join(server.credits_due(1 << 17)))


# Blocks and pieces


def test_a_piece_continues_its_block():
    client, _server = pair()
    stream = client.open_stream()
    client.send(stream, OPEN)
    for message, length in ((Piece(0), 1), (Piece(0), 0)):
        with pytest.raises(LocalProtocolError):
            client.send(stream, message, length)
    client.send(stream, BLOCK, 100)
    for position in (99, 101, 0):
        with pytest.raises(LocalProtocolError):
            client.send(stream, Piece(position), 1)
    client.send(stream, Piece(100), 10)
    with pytest.raises(LocalProtocolError):
        client.send(stream, Piece(110), BLOCK_LENGTH - 109)
    client.send(stream, Piece(110, DIGEST), BLOCK_LENGTH - 110)
    with pytest.raises(LocalProtocolError):
        client.send(stream, Piece(BLOCK_LENGTH), 1)
    with pytest.raises(LocalProtocolError):
        client.send(stream, replace(BLOCK, position=5), BLOCK_LENGTH - 4)


@pytest.mark.parametrize(
    ("message", "length"),
    [
        (Piece(99), 1),
        (Piece(101), 1),
        (replace(BLOCK, position=9), BLOCK_LENGTH - 8),
        (Piece(100), BLOCK_LENGTH - 99),
    ],
)
def test_bytes_outside_their_block_are_rejected(message, length):
    _client, server = pair()
    feed(server, encode_frame(1, OPEN) + encode_frame(1, BLOCK, 100) + bytes(100))
    [event] = feed(server, encode_frame(1, message, length) + bytes(length))
    assert isinstance(event, Rejected)
    assert isinstance(event.error, BadFacts)
    answer = server.send(1, stream_error(event.error))
    assert wire.decode_header(answer).type == wire.Type.ERROR
    assert server.clean


def test_a_block_that_has_ended_is_not_continued():
    unknown = Block(ID, None, None, 0, 0, "a", "", DIGEST)
    for ending in ((unknown, 100), (replace(BLOCK, digest=DIGEST), 100)):
        client, server = pair()
        feed(server, client.send(client.open_stream(), replace(OPEN, filesize=None, blocknum=None)))
        feed(server, client.send(1, *ending) + bytes(100))
        with pytest.raises(LocalProtocolError):
            client.send(1, Piece(100), 1)
        [event] = feed(server, encode_frame(1, Piece(100), 1) + b"x")
        assert isinstance(event, Rejected)
        assert isinstance(event.error, BadFacts)


def test_a_new_block_abandons_the_one_before():
    client, server = pair()
    stream = client.open_stream()
    second = replace(BLOCK, blockno=1, position=BLOCK_LENGTH)
    raw = (
        client.send(stream, OPEN)
        + client.send(stream, BLOCK, 3)
        + b"abc"
        + client.send(stream, second, 3)
        + b"def"
    )
    raw += client.send(stream, Piece(BLOCK_LENGTH + 3, DIGEST), 1) + b"g"
    assert [e.position for e in feed(server, raw) if isinstance(e, Payload)] == [
        0,
        BLOCK_LENGTH,
        BLOCK_LENGTH + 3,
    ]


# Refusals of a stream


def rejected_frames() -> dict[str, bytes]:
    head = encode_frame(1, OPEN)[16:]
    facts = bytearray(encode_frame(1, BLOCK)[16:])
    facts[24:28] = (9).to_bytes(4, "big")
    return {
        "critical message": sealed(0x80, b"what"),
        "critical message with payload": sealed(0xF0, b"what", payload=5) + b"hello",
        "critical TLV": sealed(wire.Type.OPEN, head + CRITICAL_TLV),
        "critical flag": sealed(wire.Type.OPEN, head, flags=0x1000),
        "facts": sealed(wire.Type.BLOCK, bytes(facts), payload=5) + b"hello",
        "LIST of a later profile": sealed(wire.Type.LIST, b"\x05\0\1\0\0\0\0"),
    }


@pytest.mark.parametrize("name", rejected_frames())
def test_a_refused_stream_wants_one_error(name):
    client, server = pair()
    frame = rejected_frames()[name]
    [event] = feed(server, frame)
    assert isinstance(event, Rejected)
    assert event.stream == 1
    assert isinstance(event.error, BadFacts if name == "facts" else Unsupported)
    assert server.clean
    assert server.is_open(1)
    assert server.state(1) is State.CLOSED
    assert server.sendable(1) == 0
    assert server.open_streams == 0
    assert feed(server, encode_frame(1, BLOCK, 9) + bytes(9)) == []
    for message in (OPENED, Error(1, Scope.BLOCK, False)):
        with pytest.raises(LocalProtocolError):
            server.send(1, message)
    client.send(client.open_stream(), OPEN)
    feed(client, server.send(1, stream_error(event.error)))
    assert client.state(1) is State.CLOSED
    assert not server.is_open(1)
    with pytest.raises(LocalProtocolError):
        server.send(1, stream_error(event.error))
    assert feed(server, encode_frame(3, OPEN)) == [Received(3, OPEN, 0)]


# Frames of files


def rejected_on(session: Session, raw: bytes) -> Exception:
    """Why the last frame of ``raw`` is refused, with the scope of its stream."""
    event = feed(session, raw)[-1]
    assert isinstance(event, Rejected), event
    return event.error


@pytest.mark.parametrize("limits", [(FILES, None), (None, FILES), (None, None)])
def test_files_are_unknown_where_not_both_sides_have_said_so(limits):
    ours, theirs = limits
    client, server = Session(Side.CLIENT, ours), Session(Side.SERVER, theirs)
    feed(server, client.greeting())
    feed(client, server.greeting())
    assert not client.files
    assert not server.files
    with pytest.raises(LocalProtocolError):
        client.send(client.open_stream(), files_of(1))
    before = server.payload_received
    assert isinstance(rejected_on(server, encode_frame(1, files_of(1, 5), 5) + b"bytes"), Unsupported)
    assert server.payload_received == before
    assert server.clean
    with pytest.raises(FrameTooLarge):
        feed(server, encode_frame(3, files_of(1, 70_000), 70_000))


def test_the_payload_of_files_is_that_of_all_its_files():
    client, server = pair(FILES)
    frame = client.send(client.open_stream(), files_of(1, 3, 0, 2), 5)
    assert feed(server, frame + b"bytes")[-1] == Payload(1, 0, b"bytes", True)
    assert isinstance(rejected_on(server, encode_frame(3, files_of(1, 3, 0, 2), 4) + b"byte"), BadFacts)
    with pytest.raises(LocalProtocolError):
        client.send(1, files_of(2, 3), 4)


@pytest.mark.parametrize("number", [5, 4])
def test_the_numbers_of_files_rise(number):
    client, server = pair(FILES)
    feed(server, client.send(client.open_stream(), files_of(5)))
    with pytest.raises(LocalProtocolError):
        client.send(1, files_of(number))
    assert isinstance(rejected_on(server, encode_frame(1, files_of(number))), BadFacts)


STRAY = {
    "of no frame": (Stored(9, bytes(1)), BadFacts),
    "more than there are": (Stored(1, bytes(2)), BadFacts),
    "the last while others wait": (Stored(1, bytes(1), last=True), BadFacts),
    "a status of a later version": (b"\0\0\0\1\0\1\5\0\0", Unsupported),
}


@pytest.mark.parametrize("name", STRAY)
def test_an_answer_to_what_was_not_asked_is_refused(name):
    said, error = STRAY[name]
    client, _ = pair(FILES)
    client.send(client.open_stream(), files_of(1))
    client.send(1, files_of(2, last=True))
    raw = sealed(wire.Type.STORED, said) if isinstance(said, bytes) else encode_frame(1, said)
    assert isinstance(rejected_on(client, raw), error)


def test_as_many_files_wait_for_their_answers_as_may():
    client, server = pair(FILES)
    first, second = client.open_stream(), client.open_stream()
    for number in range(wire.FRAMES_MAX):
        feed(server, client.send(second if number % 2 else first, files_of(number)))
    assert client.frames_unanswered == wire.FRAMES_MAX
    assert isinstance(rejected_on(server, encode_frame(first, files_of(99))), BadFacts)
    client, server = pair(FILES)
    stream = client.open_stream()
    for number in range(3 * wire.FRAMES_MAX):
        feed(server, client.send(stream, files_of(number)))
        feed(client, server.send(stream, Stored(number, bytes(1))))
    assert client.frames_unanswered == 0


@pytest.mark.parametrize(
    ("at", "raw"), [(77, b"\1"), (78, b"\1"), (79, b"\2"), (14, b"\2"), (13, b"\1")],
    ids=["folder", "filetype", "name_length", "one file more", "256 files more"],
)  # fmt: skip
def test_a_table_that_does_not_hold_together_ends_the_connection(at, raw):
    """An index of a folder or filetype that is not there, a name or a record that runs past the head."""
    head = bytearray(encode_frame(1, files_of(1))[16:])
    head[at : at + len(raw)] = raw
    _, server = pair(FILES)
    assert refusal(server, sealed(wire.Type.FILES, bytes(head))).code == Code.MALFORMED


@pytest.mark.parametrize(("count", "last"), [(257, True), (0, False)])
def test_too_many_files_or_none_end_the_connection(count, last):
    head = struct.pack(">IBHHHHH", 1, 0, 1, 0, 1, 0, count) + b"".join(
        [RECORD.pack(ID, DIGEST, 0, 0, 0, 0, 0, 1)] * count + [b"a"] * count
    )
    _, server = pair(FILES)
    assert refusal(server, sealed(wire.Type.FILES, head, flags=last)).code == Code.MALFORMED


def test_a_refusal_in_the_middle_of_a_life():
    client, server = pair()
    feed(server, client.send(client.open_stream(), OPEN))
    [event] = feed(client, sealed(wire.Type.OPENED, encode_frame(1, OPENED)[16:] + CRITICAL_TLV))
    assert isinstance(event, Rejected)
    assert feed(server, client.send(1, stream_error(event.error)))
    assert server.state(1) is State.CLOSED
    assert client.may_open


def test_unknown_messages_are_skipped_with_their_payload():
    client, server = pair()
    for stream in (0, 1, 2, 77):
        assert (
            feed(
                server,
                sealed(27, b"\xff" * 40, flags=0xFFFF, stream=stream, payload=9000) + bytes(9000),
                1000,
            )
            == []
        )
    assert server.clean
    assert server.credits_due(1) == []
    assert feed(server, client.send(client.open_stream(), OPEN)) == [Received(1, OPEN, 0)]


@given(st.randoms(use_true_random=False))
def test_reserved_values_disturb_nobody(rng):
    client, server = Session(Side.CLIENT, grease=rng), Session(Side.SERVER, grease=rng)
    assert isinstance(feed(server, client.greeting())[0], Greeted)
    assert isinstance(feed(client, server.greeting())[0], Greeted)
    for _ in range(20):
        stream = client.open_stream()
        events = feed(server, client.send(stream, SMALL, 5) + b"hello")
        assert events == [Received(stream, SMALL, 5), Payload(stream, 0, b"hello", True)]
        server.consumed(stream, 5)
        assert len(feed(client, b"".join(server.credits_due(1)))) == 1
        assert feed(client, server.send(stream, COMMITTED)) == [Received(stream, COMMITTED, 0)]


# The end


def test_the_last_word():
    client, server = pair()
    feed(server, client.send(client.open_stream(), SMALL, 5) + b"hello")
    server.consumed(1, 5)
    error = connection_error(CreditExceeded("too much"))
    assert error.scope == Scope.CONNECTION
    raw = server.send(0, error)
    for message in (Ping(bytes(8), 1), error):
        with pytest.raises(LocalProtocolError):
            server.send(0, message)
    assert server.credits_due(1) == []
    assert feed(client, raw + b"whatever comes after the last word") == [Received(0, error, 0)]
    assert not client.clean


def test_a_head_longer_than_the_peer_takes_is_not_sent():
    client, server = Session(Side.CLIENT), Session(Side.SERVER)
    client.greeting()
    stream = client.open_stream()
    long = replace(OPEN, filename="x" * 4096)
    with pytest.raises(LocalProtocolError):
        client.send(stream, long)
    feed(client, server.greeting())
    client.send(stream, long)


def test_errors_become_messages():
    cases = [
        (
            Superseded("a newer one", current=9),
            None,
            Error(24, Scope.STREAM, False, "a newer one", current=9),
        ),
        (DigestMismatch("block 3", blockno=3), None, Error(26, Scope.BLOCK, True, "block 3", blockno=3)),
        (DigestMismatch("block 3"), Scope.STREAM, Error(26, Scope.STREAM, True, "block 3")),
        (DigestsDiffer("root"), None, Error(27, Scope.BLOCK, True, "root")),
        (MalformedFrame("odd"), None, Error(1, Scope.STREAM, False, "odd")),
        (Cancelled("enough", retry_after_ms=7), None, Error(31, Scope.STREAM, False, "enough", 7)),
    ]
    for error, scope, message in cases:
        assert stream_error(error, scope=scope) == message
    assert connection_error(Cancelled("x")) == Error(31, Scope.CONNECTION, False, "x")


# Anything


@pytest.mark.fuzz
@pytest.mark.long
def test_a_slice_of_the_fuzz_campaign():
    fuzz.campaign(20_000, 0)


def test_each_input_has_its_own_seed(monkeypatch):
    """So the one that failed can be made again by itself."""
    made = []
    monkeypatch.setattr(fuzz, "one", lambda rng: made.append(rng.random()))
    fuzz.campaign(3, 11)
    together, made[:] = made[:], []
    fuzz.campaign(1, 12)
    assert made == together[1:2]
    assert len(set(together)) == 3


def test_the_campaign_names_the_input_that_fails(monkeypatch):
    monkeypatch.setattr(fuzz, "DECLARED", 0)
    monkeypatch.setattr(fuzz, "DECLARED_EARLY", 0)
    with pytest.raises(AssertionError, match=r"input 0: AssertionError: .* bytes were allocated"):
        fuzz.campaign(1, 0)


def test_a_session_that_tells_hooks_has_no_more_attributes_in_its_dictionary() -> None:
    """Instances share the keys of fewer than 30; with more, each idle connection takes over a KiB more."""
    plain, telling = Session(Side.SERVER), ObservedSession(Side.SERVER, Limits(), ())
    assert vars(telling).keys() == vars(plain).keys()
    assert len(vars(plain)) < 30

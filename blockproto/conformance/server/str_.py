"""STR: streams. Ids, states, what ends what."""

from __future__ import annotations

from collections.abc import Callable

from ... import wire
from ...errors import Code, Scope
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import require

cases = Chapter("str", Side.SERVER)
SIZE = 2_000_000


# ---- ids


@cases.table(
    "ids/client-on-an-even-stream-with-{}",
    "STR-001 STR-003",
    {"open": "open", "list": "list", "fetch": "fetch", "piece": "piece"},
    why="Two sides that choose ids from one pot mean two different streams by one id.",
)
def even_stream(trial: Trial, kind: str) -> None:
    """A client uses an id of the server's parity."""
    messages: dict[str, wire.Message] = {
        "open": trial.sample().open(),
        "list": wire.List(1),
        "fetch": wire.Fetch("conform"),
        "piece": wire.Piece(0),
    }
    peer = trial.dial()
    peer.send(forge.frame(2, messages[kind]))
    peer.expect_refusal(Code.UNEXPECTED)


@cases.add(
    "ids/far-apart",
    "STR-001 STR-002",
    why="Ids rise strictly; they need not be counted without gaps, and the last one is 2^32 − 1.",
)
def far_apart(trial: Trial) -> None:
    """Streams 7, 1,000,001 and 4,294,967,295."""
    peer = trial.dial()
    for stream in (7, 1_000_001, 0xFFFF_FFFF):
        moves.brief(peer, trial.sample(10), stream)


@cases.table(
    "first-frame/{}",
    "STR-002",
    {
        "piece": wire.Piece(0),
        "opened": wire.Opened(b"\1" * 16, b"\2" * 16, 1, 0, 1, None),
        "ack": wire.Ack(0),
        "credit": wire.Credit(1 << 20, 0),
        "have": wire.Have(()),
        "commit": wire.Commit(b"\1" * 16, bytes(32), 0, 0),
        "committed": wire.Committed(b"\1" * 16, b"\2" * 16, bytes(32), 0, "x"),
        "cancel": wire.Cancel(31),
        "result": wire.Result(1),
        "error-stream": wire.Error(31, 2, False),
    },
    why="A stream begins with what says what it is; anything else on a new id is for a stream that never was.",
)
def first_frame(trial: Trial, message: wire.Message) -> None:
    """A message that opens no stream is the first on an id."""
    peer = trial.dial()
    peer.opened(1)
    peer.send(forge.frame(1, message))
    peer.expect_refusal(Code.UNEXPECTED)


@cases.add(
    "ids/unknown-type-opens-nothing",
    "STR-004 EXT-002",
    why="If a skipped frame used the id up, grease on a new id would make the next upload disappear.",
)
def unknown_opens_nothing(trial: Trial) -> None:
    """An unknown frame on stream 1, then a file on stream 1."""
    peer, sample = trial.dial(), trial.sample(10)
    peer.send(forge.unknown_frame(89, stream=1, head=b"x" * 9))
    moves.brief(peer, sample, 1)


@cases.table(
    "ids/used-by-a-refused-{}",
    "STR-004 STR-008",
    {"name": "name", "must-understand-type": "type", "facts": "facts"},
    why="Two sides that disagree whether an id is used disagree about every frame on it.",
)
def used_by_a_refused_frame(trial: Trial, what: str) -> None:
    """A first frame that is refused has used the id: what comes on it is dropped, and a new id works."""
    peer, sample = trial.dial(), trial.sample(10)
    peer.opened(1)
    peer.send(
        {
            "name": forge.frame(1, sample.open(filename="../up")),
            "type": forge.unknown_frame(0xFE, stream=1),
            "facts": forge.frame(1, forge.unjudged(sample.open(), blocknum=7)),
        }[what]
    )
    codes = {"name": Code.NAME_REFUSED, "type": Code.UNSUPPORTED, "facts": Code.BAD_FACTS}
    peer.expect_error(codes[what], stream=1)
    peer.say(1, sample.brief(), sample.content)
    peer.ping()
    moves.require_absent(trial, sample.filename, "a file on an id that was used up is stored")
    moves.brief(peer, sample, 5)


@cases.add(
    "ids/passed-over-is-closed",
    "STR-008 STR-001",
    why="An id below the greatest used one will never be opened; a server that opens it reorders the client's ids.",
)
def passed_over(trial: Trial) -> None:
    """After stream 5, what comes on streams 1 and 3 is dropped."""
    peer, first, second = trial.dial(), trial.sample(10), trial.sample(10)
    moves.brief(peer, first, 5)
    moves.say_brief(peer, second, 3)
    peer.say(1, trial.sample().open())
    moves.brief(peer, trial.sample(10), 7)
    peer.ping()
    moves.require_absent(trial, second.filename, "a file on an id that was passed over is stored")


@cases.add(
    "ids/never-again",
    "STR-001 STR-008",
    why="A late frame of the old stream would belong to the new one.",
)
def never_again(trial: Trial) -> None:
    """A file on the id of a stream that has ended is dropped."""
    peer, first, second = trial.dial(), trial.sample(10), trial.sample(10)
    moves.brief(peer, first, 1)
    moves.say_brief(peer, second, 1)
    moves.brief(peer, trial.sample(10), 3)
    peer.ping()
    moves.require_absent(trial, second.filename, "a file on an id that was used before is stored")


# ---- closed streams


@cases.table(
    "closed/{}",
    "STR-008 FRM-011",
    {
        "malformed-head": lambda sample: forge.rebuilt(forge.frame(1, sample.commit()), head=b"\xff"),
        "must-understand-tlv": lambda sample: forge.rebuilt(
            forge.frame(1, sample.commit()), tail=forge.tlv(0xFFFF)
        ),
        "must-understand-flag": lambda sample: forge.rebuilt(forge.frame(1, sample.commit()), flags=0x8000),
        "must-understand-type": lambda sample: forge.unknown_frame(0xFE, stream=1),
        "illegal-message": lambda sample: forge.frame(1, wire.Ack(0)),
        "error": lambda sample: forge.frame(1, wire.Error(31, 2, False)),
        "credit": lambda sample: forge.frame(1, wire.Credit(1 << 62, 0)),
    },
    why="What was under way when a stream ended must not end the connection with all other streams.",
)
def closed(trial: Trial, make: Callable[[Sample], bytes]) -> None:
    """A frame on a closed stream is dropped, whatever is in its head."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.brief(peer, sample, 1)
    peer.send(make(sample))
    peer.ping()


@cases.add(
    "closed/payload-is-counted-and-returned",
    "STR-008 CRD-001 CRD-006",
    why="Payload that is dropped without being given back as credit starves the connection, a little each time.",
    layer=4,
)
def closed_payload(trial: Trial) -> None:
    """Pieces on a closed stream, more than the connection's whole allowance: credit comes back for them."""
    peer, sample = trial.dial(), trial.sample(60_000)
    assert peer.hello is not None
    moves.brief(peer, sample, 1)
    total = min(peer.hello.connection_allowance, 64 << 20) + (1 << 20)
    late = peer.hello.stream_allowance
    stream, sent = 1, 0
    while sent < total:
        peer.wait_room(0)
        if sent // (late // 2) > stream // 2:  # a closed stream has an allowance, too
            stream += 2
            moves.brief(peer, trial.sample(10), stream)
        peer.say(stream, wire.Piece(0), sample.content)
        sent += sample.filesize
    peer.ping()


@cases.add(
    "closed/bad-check-still-ends-the-connection",
    "STR-008 FRM-010",
    why="A frame whose check is wrong may be for any stream; its stream id cannot be believed.",
)
def closed_bad_check(trial: Trial) -> None:
    """A wrong check on a closed stream."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.brief(peer, sample, 1)
    peer.send(forge.rebuilt(forge.frame(1, sample.commit()), check=1))
    peer.expect_refusal(Code.BAD_CHECK)


# ---- states

SENDER_MESSAGES: dict[str, Callable[[Sample], bytes]] = {
    "OPEN": lambda sample: forge.frame(1, sample.open()),
    "HAVE": lambda sample: forge.frame(1, sample.have(0)),
    "COMMIT": lambda sample: forge.frame(1, sample.commit()),
    "BLOCK with COMMIT": lambda sample: forge.frame(1, sample.head(1, commit=True), sample.block(1)[:60_000]),
    "PIECE with COMMIT": lambda sample: forge.frame(1, sample.piece(0, 100, commit=True), b"x"),
    "RESULT": lambda sample: forge.frame(1, wire.Result(1)),
    "FETCH": lambda sample: forge.frame(1, wire.Fetch(sample.filename)),
    "LIST": lambda sample: forge.frame(1, wire.List(1)),
    "REMOVE": lambda sample: forge.frame(1, wire.Remove(1, filename=sample.filename)),
    "CREDIT": lambda sample: forge.frame(1, wire.Credit(1 << 30, 0)),
    "OPENED": lambda sample: forge.frame(1, wire.Opened(sample.sourceid, bytes(16), 1, 0, 1, None)),
    "ACK": lambda sample: forge.frame(1, wire.Ack(0)),
    "ERROR (block)": lambda sample: forge.frame(1, wire.Error(26, 1, True, blockno=0)),
    "ERROR (differ)": lambda sample: forge.frame(1, wire.Error(27, 1, True)),
    "COMMITTED": lambda sample: forge.frame(
        1, wire.Committed(sample.sourceid, bytes(16), sample.root, sample.filesize, "x")
    ),
}
"""What a client could say on stream 1 of an upload of its own; BLOCK and PIECE are legal in all of its states."""


def _open(peer: Peer, sample: Sample) -> None:
    moves.begin(peer, sample)


def _brief(peer: Peer, sample: Sample) -> None:
    small = sample.with_(filesize=50_000)
    peer.say(1, small.head(0, ends=False), small.content[:100])


def _committing(peer: Peer, sample: Sample) -> None:
    moves.begin(peer, sample)
    peer.say(1, sample.commit())


UPLOAD_STATES: dict[str, Callable[[Peer, Sample], None]] = {
    "open": _open,
    "brief": _brief,
    "committing": _committing,
}


def _slug(text: str) -> str:
    return text.lower().replace(" (", "-").replace(")", "").replace(" ", "-")


def _legal() -> set[tuple[str, str]]:
    """(state, message) of everything that a sender may say, from the table in the package's data."""
    from ..clauses import document

    return {
        (state, message)
        for row in document("transitions")["vectors"]
        if row["speaker"] == "sender"
        for message in row["messages"]
        for state in row["in"]
    }


@cases.table(
    "state/upload-{}",
    "STR-005",
    {
        f"{state}/{_slug(message)}": (state, message)
        for state in UPLOAD_STATES
        for message in SENDER_MESSAGES
        if (state, message) not in _legal()
    },
    why="A message that is legal in no state of the table means that one side has lost count of the other.",
)
def illegal_in_upload(trial: Trial, what: tuple[str, str]) -> None:
    """A message that the table does not have in this state of an upload."""
    state, message = what
    peer, sample = trial.dial(), trial.sample(SIZE)
    UPLOAD_STATES[state](peer, sample)
    codes = [Code.UNEXPECTED]
    peer.send(SENDER_MESSAGES[message](sample))
    peer.expect_refusal(*codes)


FETCH_MESSAGES: dict[str, Callable[[Sample], bytes]] = {
    "open": lambda sample: forge.frame(3, sample.open()),
    "block": lambda sample: forge.frame(3, sample.head(0, ends=False), b"x"),
    "piece": lambda sample: forge.frame(3, sample.piece(0, 0, ends=False), b"x"),
    "have": lambda sample: forge.frame(3, sample.have(0)),
    "commit": lambda sample: forge.frame(3, sample.commit()),
    "cancel": lambda sample: forge.frame(3, wire.Cancel(31)),
    "fetch": lambda sample: forge.frame(3, wire.Fetch(sample.filename)),
    "list": lambda sample: forge.frame(3, wire.List(1)),
    "result": lambda sample: forge.frame(3, wire.Result(1)),
    "differ": lambda sample: forge.frame(3, wire.Error(27, 1, True)),
}


@cases.table(
    "state/download-open/{}",
    "STR-005 STR-002",
    FETCH_MESSAGES,
    why="Who asked for a file is its receiver; what only a sender says means that the roles were mixed up.",
)
def illegal_in_download(trial: Trial, make: Callable[[Sample], bytes]) -> None:
    """A message of the sender's, from the fetcher, while the server waits for credit."""
    peer = trial.dial(hello=wire.Hello(stream_allowance=1 << 18))
    peer.grants = False
    sample = trial.sample(SIZE)
    moves.upload(peer, sample)
    peer.say(3, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 3)
    peer.send(make(sample))
    peer.expect_refusal(Code.UNEXPECTED)


# ---- what ends what


@cases.add(
    "ends/one-answer-for-one-question",
    "STR-006 LST-001",
    why="A second answer would be taken for the answer to something else.",
)
def one_answer(trial: Trial) -> None:
    """Two questions, two answers, and nothing more before the answer to PING."""
    peer = trial.dial()
    for stream in (1, 3):
        peer.say(stream, wire.List(wire.ListKind.FILES))
    for _ in range(2):
        peer.expect(wire.Result)
    require(peer.ping() == [], "something came after both questions were answered")


@cases.add(
    "ends/a-sender-gives-up",
    "STR-006 STR-007 ERR-005",
    why="Giving up one file must cost neither the upload nor the connection.",
    layer=2,
)
def sender_gives_up(trial: Trial) -> None:
    """ERROR of scope stream from the sender: the stream ends, the upload stays, the connection goes on."""
    peer, sample = trial.dial(), trial.sample(SIZE)
    moves.begin_one(peer, sample)
    peer.say(1, wire.Error(int(Code.CANCELLED), int(Scope.STREAM), False))
    peer.ping()
    opened = moves.begin(peer, sample, 3)
    require(
        opened.position == 1 << 20, "what was acknowledged is gone after the sender gave up", got=str(opened)
    )
    moves.send_block(peer, sample, 1, 3)
    moves.commit(peer, sample, 3)


@cases.add(
    "ends/a-refused-stream-ends-no-other",
    "STR-007",
    why="On one connection for everything, one bad file name would stop all transfers.",
    layer=2,
)
def refused_ends_no_other(trial: Trial) -> None:
    """Between two halves of a block, three other streams are refused."""
    peer, sample = trial.dial(), trial.sample(60_000)
    moves.begin(peer, sample)
    moves.send_block(peer, sample, 0, stop=30_000)
    peer.say(3, trial.sample().open(filename="a/../b"))
    peer.say(5, wire.Fetch("no such file"))
    peer.say(7, wire.List(1, "no such folder"))
    for code, stream in ((Code.NAME_REFUSED, 3), (Code.UNKNOWN_FILE, 5), (Code.UNKNOWN_FILE, 7)):
        peer.expect_error(code, stream=stream)
    peer.say(1, sample.piece(0, 30_000), sample.content[30_000:])
    peer.expect_acked(1, 0)
    moves.commit(peer, sample)


@cases.add(
    "limits/as-many-streams-as-allowed",
    "STR-009 HEL-010",
    why="HELLO promises so many streams; a client that counts on them must not be sent away.",
    layer=4,
)
def as_many_as_allowed(trial: Trial) -> None:
    """streams_max uploads open at the same time, and the one that is too many."""
    peer = trial.dial()
    assert peer.hello is not None
    most = min(peer.hello.streams_max, 4_096)
    sample = trial.sample(100)
    for no in range(most):
        peer.say(2 * no + 1, sample.with_(sourceid=trial.sourceid()).open())
    for _ in range(most):
        peer.expect(wire.Opened)
    peer.ping()
    if most < peer.hello.streams_max:
        return
    peer.say(2 * most + 1, sample.with_(sourceid=trial.sourceid()).open())
    peer.expect_refusal(Code.TOO_MANY_STREAMS)


@cases.add(
    "limits/closed-streams-do-not-count",
    "STR-009 STR-007",
    why="A count that never goes down ends every long-lived connection after so many files.",
    layer=4,
)
def closed_do_not_count(trial: Trial) -> None:
    """More questions on one connection than streams may be open at once, answered a few at a time."""
    peer = trial.dial()
    assert peer.hello is not None
    total = min(peer.hello.streams_max, 4_096) + 8
    for start in range(0, total, 64):
        for no in range(start, start + 64):
            peer.say(2 * no + 1, wire.List(wire.ListKind.RECEIPTS))
        for _ in range(64):
            peer.expect(wire.Result)


@cases.add(
    "order/everything-at-once",
    "STR-010 RES-012 COM-004",
    why="A client with a long line says all it has to say; a server that handles frames beside each other mixes them up.",
    layer=2,
)
def everything_at_once(trial: Trial) -> None:
    """OPEN, two blocks and COMMIT without waiting for anything; a question in between."""
    peer, sample = trial.dial(), trial.sample(1_048_576 + 70_000)
    peer.say(1, sample.open())
    moves.send_block(peer, sample, 0)
    peer.say(3, wire.List(wire.ListKind.RECEIPTS))
    moves.send_block(peer, sample, 1)
    peer.say(1, sample.commit())
    peer.expect(wire.Opened, 1, among=True)
    moves.expect_committed(peer, sample, among=True)


@cases.add(
    "server/opens-no-stream",
    "STR-011 STR-001",
    why="In CORE a client need not know what a stream of the server's would mean.",
)
def server_opens_no_stream(trial: Trial) -> None:
    """An upload, a download and a listing: every frame that comes is on a stream of ours (watched in all cases)."""
    peer, sample = trial.dial(), trial.sample(3_000)
    moves.upload(peer, sample)
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)
    moves.list_(peer, 5)
    peer.ping()


@cases.add(
    "deadlock/two-full-lines",
    "STR-014",
    why="Two sides that each finish sending before they receive wait for each other for ever.",
    layer=3,
)
def two_full_lines(trial: Trial) -> None:
    """A large download that nobody reads, and an upload in the other direction: its bytes are taken all the same."""
    big = trial.sample(12 << 20)
    moves.upload(trial.dial(), big)
    peer, sample = trial.dial(), trial.sample(12 << 20)
    assert peer.hello is not None
    room = min(peer.hello.connection_allowance, peer.hello.stream_allowance)
    peer.say(1, wire.Fetch(big.filename))
    peer.say(3, sample.open())
    blocks = min(sample.blocknum, room >> 20)
    most = peer.hello.piece_length_max
    raw = b""
    for blockno in range(blocks):
        content = sample.block(blockno)
        for at in range(0, len(content), most):
            ends = at + most >= len(content)
            message = sample.piece(blockno, at, ends=ends) if at else sample.head(blockno, ends=ends)
            raw += peer.frame(3, message, content[at : at + most])
    peer.send(raw, deaf=True)
    opened = peer.expect(wire.Open, 1)
    moves.hear_blocks(peer, 1, opened, wire.Fetch(big.filename))
    peer.expect(wire.Opened, 3)
    if blocks:
        peer.expect_acked(3, blocks - 1)

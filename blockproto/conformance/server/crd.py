"""CRD: credit and allowances."""

from __future__ import annotations

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import Closed, Unsupported, require

cases = Chapter("crd", Side.SERVER)

QUIET_S = 0.3
"""How long payload may still come behind the answer to a PING that was said after it; more with ``--slow``."""

LEAST = wire.Hello(connection_allowance=1 << 20, stream_allowance=1 << 18, piece_length_max=65_536)
"""A client that takes little at once, so that credit matters."""

MUCH = 64 << 20
"""More than this is not sent to find a limit."""


def stored(trial: Trial, filesize: int) -> Sample:
    """A file that lies on the server."""
    sample = trial.sample(filesize)
    moves.upload(trial.dial(), sample)
    return sample


def stingy(trial: Trial) -> Peer:
    """A client that takes little and grants nothing by itself."""
    peer = trial.dial(hello=LEAST)
    peer.grants = False
    return peer


def hear_payload(peer: Peer, stream: int, total: int) -> None:
    """Hear BLOCKs and PIECEs until so many bytes of payload came on a stream."""
    while peer.came(stream) < total:
        heard = peer.hear("BLOCK or PIECE")
        if not isinstance(heard.message, (wire.Block, wire.Piece, wire.Open)):
            raise peer.unexpected("BLOCK or PIECE", heard)


def hear_until_it_stops(peer: Peer, stream: int = 0) -> int:
    """Hear what comes until two PINGs in a row bring no payload and none comes for a moment; returns how much came.

    The answer to PING may overtake payload that waits (STR-012), so that it alone proves nothing.

    A sender need not use the last bytes of an allowance, so nothing is concluded from where it stops: that it never
    sends more is judged with every frame, and that it goes on when it may is judged by what comes then. What was received
    is said each time, also where nothing more is granted: senders that measure the line wait for that.
    """
    quiet = 0
    while quiet < 2:
        before = peer.came()
        peer.ping(among=(wire.Open, wire.Block, wire.Piece, wire.Commit))
        waits = quiet and peer.readable(QUIET_S * max(1.0, peer.patience.slow))
        quiet = 0 if waits or peer.came() > before else quiet + 1
        peer.grant(0, 0)
    return peer.came(stream)


# ---- what the server sends


@cases.add(
    "download/stops-at-the-stream-allowance",
    "CRD-002 FET-006",
    why="A server that sends more than was allowed fills the memory of a phone.",
    layer=4,
)
def stops_at_the_stream_allowance(trial: Trial) -> None:
    """A fetcher that grants nothing gets no more than its stream's allowance, more when it grants more, and then all."""
    sample = stored(trial, 700_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    for allowance in (1 << 18, 1 << 19):
        peer.grant(1, allowance)
        hear_until_it_stops(peer, 1)
    peer.grant(1, 700_000)
    hear_payload(peer, 1, 700_000)


@cases.add(
    "download/stops-at-the-connection-allowance",
    "CRD-002 CRD-005",
    why="The connection's allowance is what bounds memory when many files are asked for at once.",
    layer=4,
)
def stops_at_the_connection_allowance(trial: Trial) -> None:
    """Six downloads of 262,144 bytes each: no more than a MiB comes, the rest when the connection is granted more."""
    sample = stored(trial, 1 << 18)
    peer = stingy(trial)
    for no in range(6):
        peer.say(2 * no + 1, wire.Fetch(sample.filename))
    hear_until_it_stops(peer)
    while peer.came() < 6 << 18:
        peer.grant(0, 6 << 18)
        peer.hear("BLOCK or PIECE")


@cases.add(
    "download/lower-credit-changes-nothing",
    "CRD-004",
    why="CREDITs may come late; one that took allowance back would make both sides count differently.",
)
def lower_credit(trial: Trial) -> None:
    """A greater allowance, then a smaller one: the greater one counts."""
    sample = stored(trial, 700_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    hear_until_it_stops(peer, 1)
    peer.grant(1, 700_000)
    peer.say(1, wire.Credit(1, 0))
    peer.say(0, wire.Credit(0, 0))
    hear_payload(peer, 1, 700_000)
    peer.ping(among=(wire.Commit,))


@cases.add(
    "download/credit-before-the-file",
    "CRD-005 STR-005",
    why="CREDIT is legal from the moment FETCH was said; its speaker need not wait for OPEN.",
)
def credit_before_the_file(trial: Trial) -> None:
    """CREDIT right behind FETCH, with a priority."""
    sample = stored(trial, 700_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    peer.grant(1, 700_000)
    hear_payload(peer, 1, 700_000)
    peer.expect(wire.Commit, 1)


@cases.table(
    "download/priority-{}",
    "CRD-010",
    {"interactive": 0, "normal": 1, "bulk": 2},
    why="A priority that comes with CREDIT is the only way to bring the picture forward that somebody looks at now.",
)
def priority(trial: Trial, value: int) -> None:
    """CREDIT with PRIORITY is taken, and the download goes on."""
    sample = stored(trial, 700_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    hear_payload(peer, 1, 1)
    peer.say(1, wire.Credit(1 << 18, peer.came(1), value))
    peer.grant(1, 700_000)
    hear_payload(peer, 1, 700_000)
    peer.expect(wire.Commit, 1)


@cases.add(
    "download/received-more-than-was-sent",
    "CRD-008",
    why="A peer that confirms what was never sent has counted something else.",
)
def received_more(trial: Trial) -> None:
    """CREDIT whose `received` is more than the server has sent."""
    sample = stored(trial, 300_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    hear_payload(peer, 1, 1)
    peer.say(1, wire.Credit(1 << 19, 300_001))
    peer.expect_refusal(Code.MALFORMED)


@cases.table(
    "download/undurable-max-{}",
    "CRD-009 LIM-001",
    {"0": 0, "1": 1, "one-block": BLOCK_LENGTH},
    why="What a receiver has not made durable must be sent again; it says how much that may be.",
    layer=4,
)
def undurable(trial: Trial, most: int) -> None:
    """A fetcher that acknowledges nothing gets one block; each acknowledgement brings the next. Zero is not "no limit"."""
    sample = stored(trial, 3 * BLOCK_LENGTH + 5)
    peer = trial.dial(hello=wire.Hello(undurable_max=most))
    peer.say(1, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 1)
    for blockno in range(sample.blocknum):
        hear_payload(peer, 1, min((blockno + 1) * BLOCK_LENGTH, sample.filesize))
        more = [heard for heard in peer.ping(among=(wire.Block, wire.Piece, wire.Commit)) if heard.payload]
        require(not more, "a block was begun while undurable_max was reached", got=str(more[:1]))
        peer.say(1, wire.Ack(min((blockno + 1) * BLOCK_LENGTH, sample.filesize)))


@cases.add(
    "download/a-late-ack-takes-nothing-back",
    "RES-018 CRD-009",
    why="Acknowledgements cross and merge; a sender that believes only the last one sends held blocks again, or stops.",
)
def late_ack(trial: Trial) -> None:
    """An ACK that names less than one before it: the sender goes on as if it had not come."""
    sample = stored(trial, 2 * BLOCK_LENGTH + 5)
    peer = trial.dial(hello=wire.Hello(undurable_max=1))
    peer.say(1, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 1)
    hear_payload(peer, 1, BLOCK_LENGTH)
    peer.say(1, wire.Ack(0, ((0, 1),)))
    peer.say(1, wire.Ack(0))
    hear_payload(peer, 1, 2 * BLOCK_LENGTH)
    peer.say(1, wire.Ack(2 * BLOCK_LENGTH))
    peer.say(1, wire.Ack(BLOCK_LENGTH))
    hear_payload(peer, 1, sample.filesize)
    peer.say(1, wire.Ack(sample.filesize))
    peer.expect(wire.Commit, 1, root=sample.root)


# ---- what the server receives


@cases.add(
    "upload/more-than-the-allowance",
    "CRD-003",
    why="The allowance is a bound of memory only if somebody looks at it.",
    layer=4,
)
def more_than_the_allowance(trial: Trial) -> None:
    """As much as can be sent at once, far beyond what was granted: refused, unless the server grants as fast as it comes.

    What was granted meanwhile cannot be known when the bytes leave. So the burst is many times the window, and the case
    can prove nothing about a server that took all of it within what it granted.
    """
    peer, sample = trial.dial(), trial.sample(BLOCK_LENGTH)
    assert peer.hello is not None
    window = peer.hello.stream_allowance
    if window > MUCH:
        raise Unsupported("the server's stream allowance is greater than what is sent to find a limit")
    moves.begin(peer, sample)
    most = peer.hello.piece_length_max
    one = b""
    for at in range(0, BLOCK_LENGTH, most):
        end = min(at + most, BLOCK_LENGTH)
        message = sample.piece(0, at, ends=False) if at else sample.head(0, ends=False)
        one += forge.frame(1, message, sample.content[at:end])
    total = 0
    while total <= 4 * window and not peer.broken:
        peer.count(1, BLOCK_LENGTH)
        total += BLOCK_LENGTH
        peer.send(one, deaf=True)
    peer.say(0, wire.Ping(b"enough? ", 0))
    while True:
        try:
            heard = peer.hear("ERROR CREDIT_EXCEEDED (connection)")
        except Closed:
            trial.lenient("the connection is closed without ERROR CREDIT_EXCEEDED")
            return
        if isinstance(heard.message, wire.Error):
            peer.judge_error(heard, Code.CREDIT_EXCEEDED, scope=Scope.CONNECTION)
            return
        if isinstance(heard.message, wire.Ping):
            break
    require(peer.allowed(1) >= total, "payload beyond every allowance was taken", got=f"{total} bytes")
    raise Unsupported("the server grants as fast as a burst comes: nothing was sent beyond its credit")


@cases.add(
    "upload/duplicates-count",
    "CRD-001 CRD-006",
    why="Who counts only new bytes grants less and less to a sender that repeats itself, until nothing moves.",
    layer=4,
)
def duplicates_count(trial: Trial) -> None:
    """The same block again and again, more than the window of its stream: credit comes for every byte."""
    peer, sample = trial.dial(), trial.sample(BLOCK_LENGTH)
    assert peer.hello is not None
    window = peer.hello.stream_allowance
    moves.begin(peer, sample)
    for _ in range(min(window, MUCH) // BLOCK_LENGTH + 2):
        moves.send_block(peer, sample, 0)
    moves.commit(peer, sample)


@cases.add(
    "upload/unfinished-blocks-get-credit",
    "CRD-006",
    why="Credit that waits for the end of a block stops senders that cannot end theirs, and so stops for ever.",
    layer=4,
)
def unfinished_blocks(trial: Trial) -> None:
    """So many uploads with an unfinished block each that together they are more than the connection's allowance."""
    peer = trial.dial()
    assert peer.hello is not None
    window = peer.hello.connection_allowance
    if window > MUCH:
        raise Unsupported("the server's connection allowance is greater than what is sent to find a limit")
    stop = min(BLOCK_LENGTH - 1, peer.hello.stream_allowance)
    sample = trial.sample(BLOCK_LENGTH)
    for no in range(window // stop + 2):
        one = sample.with_(sourceid=trial.sourceid(), filename=trial.name())
        one.__dict__["content"] = sample.content
        moves.begin(peer, one, 2 * no + 1)
        moves.send_block(peer, one, 0, 2 * no + 1, stop=stop)
    peer.ping()


@cases.add(
    "upload/repeated-credit-is-not-for-each-piece",
    "CRD-007",
    why="A CREDIT for each small piece costs as many packets as the pieces do.",
)
def not_for_each_piece(trial: Trial) -> None:
    """128 pieces of 4,096 bytes: fewer CREDITs than pieces."""
    peer, sample = trial.dial(), trial.sample(512 << 10)
    moves.begin(peer, sample)
    moves.send_block(peer, sample, 0, piece_length=4_096)
    moves.commit(peer, sample)
    peer.ping()
    count = sum(stream == 1 for stream, _ in peer.credits)
    require(count < 64, "CREDIT comes for more than every second piece", got=f"{count} for 128 pieces")


@cases.add(
    "upload/received-tells-what-came",
    "CRD-008 CRD-007 CRD-005",
    why="A sender that learns its pace from `received` would stop at a server that always says zero.",
    layer=4,
)
def received_tells(trial: Trial) -> None:
    """After half a window, a CREDIT has come for the stream and one for the connection, with true counts."""
    peer = trial.dial()
    assert peer.hello is not None
    window = max(peer.hello.stream_allowance, peer.hello.connection_allowance)
    if window > MUCH:
        raise Unsupported("the server's allowances are greater than what is sent to find a limit")
    sample = trial.sample(min(window, MUCH))
    moves.begin(peer, sample)
    moves.send_blocks(peer, sample)
    moves.commit(peer, sample)
    for stream, name in ((1, "the stream"), (0, "the connection")):
        told = [credit for at, credit in peer.credits if at == stream]
        require(told, f"no CREDIT came for {name}, though its window was used up")
        received = [credit.received for credit in told]
        require(received == sorted(received), "`received` goes down", got=str(received))
        require(
            received[-1] >= sample.filesize // 2, "`received` stays behind what came", got=str(received[-1])
        )
        allowed = [credit.allowance for credit in told]
        require(allowed == sorted(allowed), "an allowance goes down", got=str(allowed))


@cases.add(
    "upload/received-is-what-came",
    "CRD-008",
    why="A sender measures the line by it; one that is told too much sends too much.",
    layer=4,
)
def received_is_what_came(trial: Trial) -> None:
    """A block of 64 pieces, each after the answer to a PING behind the one before: no CREDIT says more than was sent."""
    peer, sample = trial.dial(), trial.sample(BLOCK_LENGTH)
    moves.begin(peer, sample)
    for at in range(0, BLOCK_LENGTH, 16_384):
        last = at + 16_384 == BLOCK_LENGTH
        message = sample.piece(0, at, ends=last) if at else sample.head(0, at, ends=False)
        peer.say(1, message, sample.content[at : at + 16_384])
        peer.ping()
    moves.commit(peer, sample)
    require(bool(peer.credits), "no CREDIT came at all")


@cases.add(
    "upload/whole-blocks-need-no-further-byte",
    "CRD-011 RES-019",
    why="A receiver that makes durable only when more comes waits for a sender that waits for its acknowledgement.",
)
def no_further_byte(trial: Trial) -> None:
    """One block of three, then silence: it is acknowledged."""
    peer, sample = trial.dial(), trial.sample(2 * BLOCK_LENGTH + 1)
    moves.begin(peer, sample)
    moves.send_block(peer, sample, 1)
    peer.expect_acked(1, 1)

"""END: life, death, GOAWAY, the end of a connection."""

from __future__ import annotations

import time

from ... import wire
from ...errors import Code, Scope
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..verdicts import Closed, Failed, Hung, require
from .blk import TWO_AND_A_BIT, begun
from .err import closed_without_a_word

cases = Chapter("end", Side.SERVER)
HEAD_S = 10.0
"""How long a head that was begun may take (BP1-END-007)."""
DISCARD_S = 5.0
"""How long who said ERROR (connection) reads on (BP1-END-011)."""


# ---- life


@cases.table(
    "ping/{}",
    "END-002",
    {"zeros": bytes(8), "ones": b"\xff" * 8, "anything": b"\x01\x80\x00\xfe\x7f\x0a\x0d\x1a"},
    why="The answer tells which question it answers; a server that makes up its own breaks every measurement.",
)
def ping(trial: Trial, opaque: bytes) -> None:
    """The opaque bytes come back; the flag ANSWER is set."""
    peer = trial.dial()
    peer.say(0, wire.Ping(opaque, 15))
    peer.expect(wire.Ping, 0, answer=True, opaque=opaque)


@cases.add(
    "ping/an-answer-that-nobody-asked-for",
    "END-002",
    why="Two sides that answer answers never stop.",
)
def answer_to_nothing(trial: Trial) -> None:
    """A PING with ANSWER is not answered."""
    peer = trial.dial()
    peer.say(0, wire.Ping(b"unasked!", 0, answer=True))
    require(peer.ping() == [], "something came after an answer that nobody asked for")


@cases.add(
    "ping/many-unanswered",
    "STR-013 END-002",
    why="Answers that queue up are memory that a stranger can fill.",
    layer=4,
)
def many_pings(trial: Trial) -> None:
    """20,000 PINGs; the last one must be answered."""
    peer = trial.dial()
    peer.send(b"".join(forge.frame(0, wire.Ping(no.to_bytes(8, "big"), 0)) for no in range(20_000)))
    last = (19_999).to_bytes(8, "big")
    while peer.expect(wire.Ping, 0, answer=True).opaque != last:
        pass


@cases.add(
    "ping/in-the-middle-of-a-block",
    "END-002 STR-010",
    why="A sign of life that waits for a block is none on a slow line.",
)
def ping_between_pieces(trial: Trial) -> None:
    """PING between two pieces is answered while the block is unfinished."""
    peer, sample = begun(trial, 50_000)
    moves.send_block(peer, sample, 0, stop=20_000)
    peer.ping()
    peer.say(1, sample.piece(0, 20_000), sample.content[20_000:])
    moves.commit(peer, sample)


@cases.add(
    "silence/kept-promise",
    "END-003 END-001",
    why="Who says when it will be heard again must not be sent away before.",
    layer=3,
    slow=True,
)
def kept_promise(trial: Trial) -> None:
    """next_s 2, and a byte of a frame now and then: the connection stays."""
    peer = trial.dial()
    peer.say(0, wire.Ping(b"promise!", 2))
    peer.expect(wire.Ping, 0)
    raw = forge.frame(0, wire.Ping(b"by bytes", 2))
    for byte in raw[:3]:
        _quiet(peer, 1.5)
        peer.send(bytes([byte]))
    peer.send(raw[3:])
    peer.wait_answer(b"by bytes")


def _quiet(peer: Peer, seconds: float) -> None:
    """Wait; nothing but signs of life may come meanwhile, and the connection may not end."""
    try:
        peer.raw(1 << 20, "the end", time.monotonic() + seconds)
    except Hung:
        return


@cases.add(
    "silence/broken-promise",
    "END-004",
    why="A phone that is out of reach holds its streams and its memory until somebody notices.",
    layer=3,
    slow=True,
)
def broken_promise(trial: Trial) -> None:
    """next_s 2, then silence: after twice as long the server ends the connection."""
    peer = trial.dial()
    peer.say(0, wire.Ping(b"promise!", 2))
    peer.expect(wire.Ping, 0)
    began = time.monotonic()
    ended_within(trial, peer, 4.0, Code.TIMEOUT)
    require(time.monotonic() - began > 3.5, "the connection ended before twice next_s")


@cases.add(
    "silence/promise-taken-back",
    "END-003",
    why="A client that sleeps says so first; it must not be cut off for an older promise.",
    layer=3,
    slow=True,
)
def taken_back(trial: Trial) -> None:
    """next_s 1, then next_s 0: the silence that follows is no broken promise."""
    peer = trial.dial()
    peer.say(0, wire.Ping(b"promise!", 1))
    peer.expect(wire.Ping, 0)
    peer.say(0, wire.Ping(b"no more!", 0))
    peer.expect(wire.Ping, 0)
    _quiet(peer, 4.0)
    peer.ping()


@cases.table(
    "deadline/{}",
    "END-007",
    {
        "half-a-header": forge.frame(0, wire.Ping(bytes(8), 0))[:9],
        "half-a-head": forge.frame(0, wire.Ping(bytes(8), 0))[:20],
    },
    why="A head that never ends is a connection that can do nothing and costs as much as any.",
    layer=5,
    slow=True,
)
def deadline(trial: Trial, raw: bytes) -> None:
    """A head that was begun and does not end."""
    peer = trial.dial()
    peer.send(raw)
    began = time.monotonic()
    ended_within(trial, peer, HEAD_S, Code.TIMEOUT)
    require(time.monotonic() - began > HEAD_S * 0.8, "the connection ended long before 10 seconds")


@cases.add(
    "deadline/a-head-that-trickles",
    "END-007",
    why="A byte a second is a sign of life and not a frame.",
    layer=5,
    slow=True,
)
def trickles(trial: Trial) -> None:
    """A head whose bytes come one by one, a second apart: they do not extend the time."""
    peer = trial.dial()
    peer.send(forge.frame(0, wire.Ping(bytes(8), 0))[:4])
    until = time.monotonic() + HEAD_S + trial.patience.answer_s
    while time.monotonic() < until:
        peer.send(b"\0")
        try:
            peer.raw(1 << 20, "the end", time.monotonic() + 1.0)
        except Hung:
            continue
        except Closed:
            return
    raise Failed("a head that trickles keeps the connection open beyond 10 seconds")


@cases.add(
    "deadline/a-slow-payload-is-no-head",
    "END-007 END-001",
    why="On a slow line a block takes minutes; only heads have a deadline.",
    layer=3,
    slow=True,
)
def slow_payload(trial: Trial) -> None:
    """A payload that takes 12 seconds."""
    peer, sample = begun(trial, 12_000)
    raw = peer.frame(1, sample.head(0), sample.content)
    start = len(raw) - sample.filesize
    peer.send(raw[:start])
    for at in range(start, len(raw), 1_000):
        _quiet(peer, 1.0)
        peer.send(raw[at : at + 1_000])
    peer.expect_acked(1, 0)
    moves.commit(peer, sample)


def ended_within(trial: Trial, peer: Peer, seconds: float, code: Code) -> None:
    """The connection ends in so many seconds and what an answer may take; ERROR need not come, another one may not."""
    until = time.monotonic() + seconds + trial.patience.answer_s
    try:
        first = peer.raw(wire.HEADER_LENGTH, "the end of the connection", until)
    except Closed:
        return
    peer.push_back(first)
    heard = peer.hear("ERROR")
    peer.judge_error(heard, code, scope=Scope.CONNECTION)
    peer.give_up()
    peer.expect_closed()


# ---- GOAWAY


@cases.add(
    "goaway/from-the-client",
    "END-008 END-010",
    why="A client that goes finishes what it has begun; a server that hangs up at once throws that away.",
    layer=2,
)
def goaway_from_the_client(trial: Trial) -> None:
    """GOAWAY, then the rest of a block that was begun: it is acknowledged."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 2, stop=2)
    peer.say(0, wire.GoAway(int(Code.GOING_AWAY), 2_000, 0, "bye"))
    peer.say(1, sample.piece(2, 2), sample.block(2)[2:])
    peer.expect_acked(1, 2)


@cases.add(
    "goaway/from-the-server",
    "END-008 END-009 END-010 COM-015",
    why="A server that restarts tells its clients when to come back, and keeps what it got.",
    layer=3,
    needs="stop start",
    alone=True,
)
def goaway_from_the_server(trial: Trial) -> None:
    """The server is told to stop: GOAWAY; a new stream is refused, a complete upload is committed, then it closes."""
    peer, sample = begun(trial)
    moves.send_blocks(peer, sample, 1, 0, 1)
    peer.expect_acked(1, 0, 1)
    moves.send_block(peer, sample, 2, stop=2)
    trial.adapter.ask("stop")
    try:
        peer.expect(wire.GoAway, 0)
        peer.say(3, wire.Fetch("anything"))
        peer.expect_error(Code.GOING_AWAY, stream=3)
        peer.say(1, sample.piece(2, 2), sample.block(2)[2:])
        peer.expect_acked(1, 2)
        peer.say(1, sample.commit())
        moves.expect_committed(peer, sample)
        peer.expect_closed()
    finally:
        trial.adapter.ask("start")
    again = trial.dial()
    moves.fetch(again, 1, wire.Fetch(sample.filename), sample)


@cases.add(
    "kill/what-was-acknowledged-is-kept",
    "RES-015 RES-017 END-012",
    why="This is the promise behind an acknowledgement.",
    layer=3,
    needs="kill start",
    alone=True,
)
def killed(trial: Trial) -> None:
    """Two blocks of three are acknowledged, the server is killed: both are held, the position does not go down."""
    peer, sample = begun(trial)
    moves.send_blocks(peer, sample, 1, 0, 1)
    peer.expect_acked(1, 0, 1)
    incarnation = moves.begin(peer, sample, 3).incarnation
    trial.adapter.ask("kill")
    trial.adapter.ask("start")
    again = trial.dial()
    newer = sample.with_(attempt=sample.attempt + 1)
    opened = moves.begin(again, newer)
    require(opened.incarnation == incarnation, "another incarnation after a kill", got=str(opened))
    require(opened.position >= 2 << 20, "an acknowledged block is gone after a kill", got=str(opened))
    moves.send_block(again, newer, 2)
    moves.commit(again, newer)
    moves.fetch(again, 3, wire.Fetch(sample.filename), sample)


@cases.table(
    "kill/{}",
    "COM-006 COM-011 COM-005",
    {"what-was-committed-is-there": False, "brief-file-is-there": True},
    why="COMMITTED is the last word; after it nothing may be lost.",
    layer=3,
    needs="kill start",
    alone=True,
)
def killed_after_commit(trial: Trial, is_brief: bool) -> None:
    """COMMITTED, then a kill: the file is there, and the receipt."""
    peer, sample = trial.dial(), trial.sample(5_000 if is_brief else TWO_AND_A_BIT)
    committed = moves.brief(peer, sample) if is_brief else moves.upload(peer, sample)
    trial.adapter.ask("kill")
    trial.adapter.ask("start")
    again = trial.dial()
    moves.fetch(again, 1, wire.Fetch(committed.stored_as), sample)
    again.say(3, sample.open())
    moves.expect_committed(again, sample, 3)


# ---- the end of a connection


@cases.add(
    "error/closes-by-itself",
    "END-011",
    why="A connection that was refused and is never closed is one that can be held open for nothing.",
    layer=5,
    slow=True,
)
def closes_by_itself(trial: Trial) -> None:
    """After its ERROR (connection) the server reads on for 5 seconds at most, and closes, though the client does not."""
    peer = trial.dial()
    peer.say(0, wire.Ping(bytes(8), 0))
    peer.opened(1)
    peer.send(forge.frame(1, wire.Ack(0)))
    while not isinstance(peer.hear("ERROR").message, wire.Error):
        pass
    began = time.monotonic()
    until = began + DISCARD_S + trial.patience.answer_s
    try:
        peer.raw(1, "the end of the connection", until)
    except Closed:
        return
    raise Failed("something came after ERROR (connection)")


@cases.add(
    "error/arrives-though-much-is-under-way",
    "END-011 ERR-001",
    why="A server that closes at once makes the client's system throw the ERROR away with a reset.",
    layer=3,
)
def arrives(trial: Trial) -> None:
    """A malformed frame in front of a block: the ERROR can be read although the block was not."""
    peer, sample = begun(trial, 1 << 20)
    assert peer.hello is not None
    block = peer.frame(1, sample.head(0, ends=False), sample.content[: peer.hello.piece_length_max])
    peer.send(forge.rebuilt(forge.frame(0, wire.Ping(bytes(8), 0)), head=b"") + block)
    peer.expect_refusal(Code.MALFORMED)


@cases.add(
    "error/reads-on-after-it",
    "END-011",
    why="A socket that is closed with unread bytes is reset, and the ERROR that explains everything is thrown away.",
    layer=3,
)
def reads_on(trial: Trial) -> None:
    """After its ERROR (connection) the server takes what was still under way, and does not reset the connection."""
    peer, sample = begun(trial, 1 << 20)
    peer.send(forge.rebuilt(forge.frame(0, wire.Ping(bytes(8), 0)), head=b""))
    peer.judge_error(peer.hear("ERROR MALFORMED"), Code.MALFORMED, scope=Scope.CONNECTION)
    for _ in range(3):
        peer.say(1, sample.head(0, ends=False), sample.content[:30_000])
        try:
            peer.raw(1, "nothing", time.monotonic() + 0.1)
        except Hung:
            continue
        except Closed:
            break
        raise Failed("something came after ERROR (connection)")
    else:
        return
    raise Failed("the connection is closed while the client may still be sending")


@cases.add(
    "error/from-the-client",
    "END-011 ERR-002",
    why="Who is told that the connection is over says nothing more.",
)
def from_the_client(trial: Trial) -> None:
    """ERROR (connection) from the client in the middle of an upload: no frame comes any more, and the server closes."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 2)
    peer.expect_acked(1, 2)
    peer.ping()
    peer.say(0, wire.Error(int(Code.MALFORMED), int(Scope.CONNECTION), False))
    closed_without_a_word(peer)
    opened = moves.begin(trial.dial(), sample.with_(attempt=sample.attempt + 1))
    require((2, 1) in opened.held, "what was acknowledged is gone", got=str(opened))


@cases.table(
    "cut/{}",
    "END-012 RES-021 END-013",
    {"inside-a-header": 7, "inside-a-head": 40, "inside-a-payload": 200},
    why="The end of the bytes, wherever it comes, is never the end of a file.",
    layer=3,
)
def cut(trial: Trial, at: int) -> None:
    """The connection ends inside a brief file's frame: nothing is stored, the server lives."""
    peer, sample = trial.dial(), trial.sample(5_000)
    raw = forge.frame(1, sample.brief(), sample.content)
    peer.send(raw[:at])
    peer.close()
    other = trial.dial()
    moves.require_absent(trial, sample.filename, "a file appeared whose frame was cut")
    moves.brief(other, sample, 3)

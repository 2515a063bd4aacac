"""LIM: limits and defaults. Chapters that a limit belongs to have their own cases; here is what holds for all."""

from __future__ import annotations

from ... import wire
from .. import moves
from ..case import Chapter, Side
from ..target import Trial
from ..verdicts import require

cases = Chapter("lim", Side.SERVER)


@cases.add(
    "zero/is-zero",
    "LIM-001 FET-005",
    why='Programs that read 0 as "no limit" meet programs that read it as nothing.',
)
def zero(trial: Trial) -> None:
    """FETCH of length 0 is an empty range, not the whole file; next_s 0 and retry_after_ms 0 promise nothing."""
    peer, sample = trial.dial(), trial.sample(1_000)
    moves.brief(peer, sample)
    peer.say(3, wire.Fetch(sample.filename, length=0))
    peer.expect(wire.Open, 3)
    peer.expect(wire.Commit, 3)


@cases.add(
    "many-connections/two-hundred",
    "LIM-003 HEL-002",
    why="Phones keep connections open all day; each must cost little.",
    layer=4,
)
def many_connections(trial: Trial) -> None:
    """200 connections at once, each greeted; the first and the last one store a file."""
    peers = [trial.dial() for _ in range(200)]
    for peer in (peers[0], peers[-1]):
        moves.brief(peer, trial.sample(10))
    for peer in peers:
        peer.ping()


@cases.add(
    "many-uploads/five-hundred-on-one-connection",
    "LIM-003 STR-009",
    why="A sync client that opens everything at once must not make the server forget any of it.",
    layer=4,
)
def many_uploads(trial: Trial) -> None:
    """500 uploads opened and finished, all open at the same time as far as the server's HELLO allows."""
    peer = trial.dial()
    assert peer.hello is not None
    count = min(500, peer.hello.streams_max)
    samples = {2 * no + 1: trial.sample(20) for no in range(count)}
    for stream, sample in samples.items():
        peer.say(stream, sample.open())
    for stream in samples:
        peer.expect(wire.Opened, stream)
    for stream, sample in samples.items():
        peer.say(stream, sample.head(0), sample.content)
        peer.say(stream, sample.commit())
    for stream, sample in samples.items():
        moves.expect_committed(peer, sample, stream)
    require(peer.ping() == [], "something came after the last COMMITTED")

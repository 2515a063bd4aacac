"""RES, prefixes: what is there of blocks that are not whole, and how a sender goes on behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ... import wire
from ...errors import Code, Scope
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import Failed, require
from .blk import begun

cases = Chapter("res/prefix", Side.SERVER)


LOST_CONNECTIONS = 5
"""Connections that break in the middle of a block before a server counts as one that keeps no prefixes."""


def opened_when(
    trial: Trial,
    sample: Sample,
    holds: Callable[[wire.Opened], bool],
    what: str,
    within_s: float | None = None,
    **changes: Any,
) -> tuple[Peer, wire.Opened, int]:
    """Join an upload until what OPENED says ``holds``: a server hears of an ended connection a moment later.

    Returns the connection, OPENED and its stream. Each look opens a stream and gives it up again. Without ``within_s`` it
    has to hold as soon as an answer has to come.
    """
    peer = trial.dial()
    deadline = time.monotonic() + (trial.patience.answer_s if within_s is None else within_s)
    stream = 1
    while True:
        opened = moves.begin(peer, sample, stream, **changes)
        if holds(opened):
            return peer, opened, stream
        if time.monotonic() > deadline:
            raise Failed(what, got=str(opened))
        peer.say(stream, wire.Error(int(Code.CANCELLED), int(Scope.STREAM), False))
        peer.ping()
        stream += 2


def _lost(trial: Trial, sample: Sample, blockno: int, stop: int) -> None:
    """A connection that breaks in the middle of a block."""
    peer = trial.dial()
    moves.begin(peer, sample)
    moves.send_block(peer, sample, blockno, stop=stop)
    peer.ping()
    peer.reset()


def prefixed(trial: Trial, sample: Sample, blockno: int = 0, stop: int = 60_000) -> tuple[Peer, int, int]:
    """Take an upload up whose connection broke in a block: the connection, the stream, and how long the prefix is.

    A prefix is no promise: the server may have read all bytes and not have written them when the connection breaks. So
    another connection breaks then, and only a server that never lists one fails.
    """
    for loss in range(LOST_CONNECTIONS):
        attempt = sample.attempt + 2 * loss
        _lost(trial, sample.with_(attempt=attempt), blockno, stop)
        try:
            peer, opened, stream = opened_when(
                trial,
                sample.with_(attempt=attempt + 1),
                lambda one: dict(one.prefixes).get(blockno, 0) > 0,
                f"no prefix is listed after {LOST_CONNECTIONS} lost connections",
                trial.patience.answer_s / LOST_CONNECTIONS,
            )
            break
        except Failed:
            if loss + 1 == LOST_CONNECTIONS:
                raise
    length = dict(opened.prefixes)[blockno]
    require(length <= stop, "a prefix is longer than what was sent", got=str(opened.prefixes))
    return peer, stream, length


@cases.add(
    "goes-on-behind-it",
    "RES-013 RES-014 RES-016",
    why="On a bad line whole blocks may never arrive; who loses the begun one moves nothing.",
    layer=2,
)
def goes_on_behind(trial: Trial) -> None:
    """After a reset OPENED lists the prefix, position does not count it, and the rest of the block is enough."""
    sample = trial.sample(100_000)
    peer, stream, length = prefixed(trial, sample)
    require(peer.held[stream].position == 0, "position counts bytes of a block that is not whole")
    moves.send_block(peer, sample, 0, stream, start=length)
    moves.commit(peer, sample, stream)
    moves.fetch(peer, stream + 2, wire.Fetch(sample.filename), sample)


@cases.add(
    "block-from-its-beginning",
    "RES-013 BLK-008",
    why="A sender that does not trust the prefix begins again.",
    layer=2,
)
def gives_the_prefix_up(trial: Trial) -> None:
    """A BLOCK at the beginning of the block gives the prefix up."""
    sample = trial.sample(100_000)
    peer, stream, _ = prefixed(trial, sample)
    moves.send_block(peer, sample, 0, stream)
    moves.commit(peer, sample, stream)


@cases.table(
    "block-{}",
    "RES-013",
    {"before-its-end": -1_000, "behind-its-end": 1_000},
    why="Bytes that do not join leave a hole or a seam in the file; only the digest would tell.",
    layer=2,
)
def beside_the_prefix(trial: Trial, by: int) -> None:
    """A BLOCK that begins elsewhere inside the block: DIGEST_MISMATCH, the prefix is gone, the stream goes on."""
    sample = trial.sample(100_000)
    peer, stream, length = prefixed(trial, sample)
    moves.send_block(peer, sample, 0, stream, start=length + by)
    peer.expect_error(Code.DIGEST_MISMATCH, stream=stream, scope=Scope.BLOCK, blockno=0)
    moves.send_block(peer, sample, 0, stream)
    moves.commit(peer, sample, stream)


@cases.add(
    "other-bytes-behind-it",
    "RES-013 BLK-009 BLK-011",
    why="The digest covers the prefix too; else the seam of two versions would be invisible.",
    layer=2,
)
def other_bytes_behind(trial: Trial) -> None:
    """The file changed: behind the prefix come bytes of another version, with their digest."""
    sample = trial.sample(100_000)
    peer, stream, length = prefixed(trial, sample)
    other = sample.with_(seed=sample.seed + 1)
    moves.send_block(peer, other, 0, stream, start=length)
    peer.expect_error(Code.DIGEST_MISMATCH, stream=stream, scope=Scope.BLOCK, blockno=0)
    moves.send_block(peer, sample, 0, stream)
    moves.commit(peer, sample, stream)


@cases.add(
    "no-prefix-there",
    "RES-013",
    why="A sender that remembers more than the receiver must be told, not believed.",
)
def no_prefix(trial: Trial) -> None:
    """BLOCK in the middle of a block of which nothing is there."""
    peer, sample = begun(trial, 100_000)
    moves.send_block(peer, sample, 0, start=50_000)
    peer.expect_error(Code.DIGEST_MISMATCH, stream=1, scope=Scope.BLOCK, blockno=0)
    moves.send_block(peer, sample, 0)
    moves.commit(peer, sample)


@cases.add(
    "not-while-a-stream-sends-the-block",
    "RES-013",
    why="Two streams that go on behind one prefix write over each other.",
    layer=2,
)
def not_while_sending(trial: Trial) -> None:
    """A second connection that joins is not offered the block that the first one is sending."""
    first, sample = begun(trial, 100_000)
    moves.send_block(first, sample, 0, stop=60_000)
    first.ping()
    opened = moves.begin(trial.dial(), sample)
    require(
        opened.prefixes == (),
        "a block that a stream is sending is listed as a prefix",
        got=str(opened.prefixes),
    )
    first.say(1, sample.piece(0, 60_000), sample.content[60_000:])
    moves.commit(first, sample)

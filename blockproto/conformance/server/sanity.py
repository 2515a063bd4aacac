"""The sanity check: a small upload, fetched again. What fails it is not worth asking anything else."""

from __future__ import annotations

from ... import wire
from .. import moves
from ..case import Chapter, Side
from ..target import Trial

cases = Chapter("sanity", Side.SERVER)


@cases.add(
    "upload-and-fetch",
    "COM-009 BLK-014 RES-009 FET-006",
    why="Where a small upload does not arrive, what else a case sees means nothing.",
    layer=2,
)
def upload_and_fetch(trial: Trial) -> None:
    """A brief file, an upload with OPEN, and both of them back."""
    peer = trial.comes_in()
    small, usual = trial.sample(100), trial.sample(3_000)
    moves.brief(peer, small, 3)
    moves.upload(peer, usual, 5)
    for stream, sample in ((7, small), (9, usual)):
        moves.fetch(peer, stream, wire.Fetch(sample.filename), sample)
    peer.ping()


(check,) = cases.cases

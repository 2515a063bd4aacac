"""RES for clients: open, resume, attempt."""

from __future__ import annotations

import time

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from ..case import Chapter, Side
from ..verdicts import require
from . import giving, taking
from .trial import Trial

cases = Chapter("client/res", Side.CLIENT)

ATTEMPT_APART_MS = 3_600_000
"""How far an attempt may be from the Unix time: clocks of two machines differ."""


@cases.add(
    "again/same-sourceid-and-a-greater-attempt",
    "RES-011 RES-001",
    why="With another sourceid nothing resumes; with the same attempt the older connection is not ended.",
)
def same_job(trial: Trial) -> None:
    """The connection breaks before OPENED: whoever comes back names the same upload, with a greater attempt."""
    sample = trial.sample(2 * BLOCK_LENGTH)
    trial.upload(sample)
    visit = trial.visit()
    first = taking.begun(visit, trial.shelf, sample)
    visit.reset()
    again = taking.take_upload(trial.visit(), trial.shelf, sample)
    require(
        again.sample.sourceid == first.sample.sourceid,
        "the upload has another sourceid when it is taken up again",
    )
    attempts = f"{again.sample.attempt} after {first.sample.attempt}"
    require(
        again.sample.attempt > first.sample.attempt,
        "the attempt is not greater than the one before",
        got=attempts,
    )
    trial.stored(sample)


@cases.add("attempt/is-the-time", "RES-011", why="Attempts of two machines are compared with each other.")
def attempt_is_time(trial: Trial) -> None:
    """The attempt is the Unix time in milliseconds, or one more than the last: never far from it."""
    visit, upload = trial.uploading()
    apart = abs(upload.sample.attempt - time.time_ns() // 1_000_000)
    require(apart < ATTEMPT_APART_MS, "the attempt is not the time in milliseconds", got=f"{apart} ms apart")
    visit.say(upload.stream, upload.opened())
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(upload.sample)


@cases.table(
    "superseded/{}",
    "RES-011 ERR-002",
    {"at-open": False, "in-the-middle": True},
    why="Two devices that take over from each other fence each other for ever.",
)
def superseded(trial: Trial, opened: bool) -> None:
    """SUPERSEDED ends it: no greater attempt, but the one that CONNECTION allows at the first OPEN."""
    sample = trial.sample(3 * BLOCK_LENGTH)
    trial.upload(sample)
    visit = trial.visit()
    upload = taking.begun(visit, trial.shelf, sample)
    if opened:
        visit.say(upload.stream, upload.opened())
        taking.take_blocks(visit, trial.shelf, upload, until=1)
    current = upload.sample.attempt + 1_000
    told = wire.Error(Code.SUPERSEDED, Scope.STREAM, False, "a newer attempt", current=current)
    visit.say(upload.stream, told)
    if not opened:
        second = taking.begun_again(visit, trial.shelf, sample)
        if second is not None:
            visit.say(
                second.stream, wire.Error(Code.SUPERSEDED, Scope.STREAM, False, current=current + 9_999_999)
            )
    trial.repeats = opened
    trial.refused("SUPERSEDED")


@cases.add(
    "held/position-and-runs-together",
    "RES-018",
    why="A sender that reads one of the two sends what is there already.",
)
def union(trial: Trial) -> None:
    """OPENED names block 0 by position and block 2 by a run: blocks 1 and 3 are sent, no other."""
    visit, upload = trial.uploading(3 * BLOCK_LENGTH + 9)
    upload.opened(0, 2)
    visit.say(upload.stream, upload.opened(2, position=BLOCK_LENGTH))
    taking.go_on(visit, trial.shelf, upload)
    require(
        sorted(upload.ended) == [1, 3], "other blocks come than those that are missing", got=str(upload.ended)
    )
    trial.stored(upload.sample)


@cases.add(
    "held/a-later-ack-need-not-repeat",
    "RES-018",
    why="ACKs are lower bounds: one that names less does not take back what was said.",
)
def lower_bound(trial: Trial) -> None:
    """Block 0 is acknowledged by a run, then block 1 by an ACK that names it alone: neither comes again."""
    visit, upload = trial.uploading(2 * BLOCK_LENGTH, hello=wire.Hello(undurable_max=0))
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload, until=1, acknowledge=False)
    visit.say(upload.stream, wire.Ack(0, ((0, 1),)))
    taking.take_blocks(visit, trial.shelf, upload, until=2, acknowledge=False)
    visit.say(upload.stream, wire.Ack(0, ((1, 1),)))
    taking.go_on(visit, trial.shelf, upload)
    require(upload.ended == [0, 1], "a block comes again that was acknowledged", got=str(upload.ended))
    trial.stored(upload.sample)


@cases.add(
    "resume/no-acknowledged-byte-comes-again",
    "RES-018 RES-011",
    why="That is what resuming is.",
)
def resume(trial: Trial) -> None:
    """The connection breaks when block 0 is acknowledged and 300,000 bytes of block 1 have come: it goes on from there."""
    sample = trial.sample(3 * BLOCK_LENGTH)
    trial.upload(sample)
    visit = trial.visit()
    first = taking.open_upload(visit, trial.shelf, sample)
    taking.take_blocks(visit, trial.shelf, first, until=1)
    visit.reset()
    visit = trial.visit()
    upload = taking.begun(visit, trial.shelf, sample)
    require(upload.sample.attempt > first.sample.attempt, "the attempt is not greater than the one before")
    visit.say(upload.stream, upload.opened(0, position=BLOCK_LENGTH, prefixes=((1, 300_000),)))
    taking.go_on(visit, trial.shelf, upload)
    require(0 not in upload.ended, "a held block comes again", got=str(upload.ended))
    require(upload.starts[1] in (0, 300_000), "a block begins neither at its beginning nor behind its prefix")
    trial.stored(sample)


@cases.add(
    "resume/another-incarnation-holds-nothing",
    "RES-018",
    why="A server whose store was lost says so; a sender that trusts old ACKs commits a file with holes.",
)
def incarnation(trial: Trial) -> None:
    """Block 0 was acknowledged; the OPENED after the break has another incarnation and holds nothing: all is sent."""
    sample = trial.sample(2 * BLOCK_LENGTH)
    trial.upload(sample)
    visit = trial.visit()
    taking.take_blocks(visit, trial.shelf, taking.open_upload(visit, trial.shelf, sample), until=1)
    visit.reset()
    visit = trial.visit()
    upload = taking.open_upload(visit, trial.shelf, sample, incarnation=2)
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(sample)


@cases.add(
    "committed-at-once",
    "COM-009 RES-018",
    why="When only the answer was lost, the file is there: nothing travels again.",
)
def committed_at_once(trial: Trial) -> None:
    """OPEN is answered by COMMITTED: done, without a block."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.committed())
    trial.stored(upload.sample)


@cases.add(
    "receiver/position-counts-whole-blocks-only",
    "RES-016 RES-019 FET-008",
    why="A sender lets go of what position says: bytes of a block that is not whole would be lost.",
)
def whole_blocks_only(trial: Trial) -> None:
    """Blocks 0 and 2 are whole, half of block 1 has come: position stops behind block 0."""
    visit, download = trial.downloading(3 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    giving.send_block(visit, download, 0)
    giving.send_block(visit, download, 2)
    visit.say(download.stream, download.head(1, ends=False), download.block(1)[: BLOCK_LENGTH // 2])
    visit.expect_acked(download.stream, 0, 2)
    visit.alive()
    position = visit.held[download.stream].position
    require(
        position in (0, BLOCK_LENGTH), "position counts bytes of a block that is not whole", got=str(position)
    )
    giving.send_block(visit, download, 1)
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)

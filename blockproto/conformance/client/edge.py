"""EDGE for clients: what readers of the spec had to ask, one case for each answer."""

from __future__ import annotations

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from ..case import Chapter, Side
from ..peer import Heard
from ..timing import Patience
from ..verdicts import Closed, require
from . import giving, taking
from .dig import DIFFER, hear_have
from .trial import Trial
from .visit import Visit

cases = Chapter("client/edge", Side.CLIENT)

EARLY_HEAD = 4_096

READING = 10
"""So many times as patient with a client that has to read 120 MiB before it can answer."""


@cases.table(
    "err/damaged-{}",
    "ERR-011 ERR-002",
    {"block-that-is-not-in-the-file": 77, "block-without-a-number": None},
    why="A client that takes any number for one of its blocks sends what nobody asked for, or falls.",
)
def damaged_out_of_range(trial: Trial, blockno: int | None) -> None:
    """DIGEST_MISMATCH about a block that was not sent: the stream is refused with BAD_FACTS, the connection lives."""
    visit, upload = trial.uploading(2 * BLOCK_LENGTH)
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload, until=1)
    visit.say(upload.stream, wire.Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True, "damaged", blockno=blockno))
    try:
        while True:
            heard = trial.shelf.wanted(visit, "ERROR BAD_FACTS")
            if isinstance(heard.message, wire.Error):
                break
    except Closed:
        trial.lenient("the connection is closed without a word")
    else:
        visit.judge_error(heard, Code.BAD_FACTS)
    trial.not_done()


@cases.add(
    "err/a-warning-about-a-block-asks-for-nothing",
    "ERR-002 ERR-011",
    why="A newer server may warn about a block; that is no reason to send it again.",
)
def warning(trial: Trial) -> None:
    """ERROR of scope block with an unknown code and a blockno: the transfer goes on, no block comes twice."""
    visit, upload = trial.uploading(2 * BLOCK_LENGTH)
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload, until=1)
    visit.say(upload.stream, wire.Error(999, Scope.BLOCK, True, "take care", blockno=0))
    taking.go_on(visit, trial.shelf, upload)
    require(upload.ended == [0, 1], "a block comes again that nobody asked for", got=str(upload.ended))
    trial.stored(upload.sample)


@cases.add(
    "dig/have-keeps-to-the-head-limit",
    "DIG-006 HEL-010 FRM-006",
    why="A receiver with little memory says so; a HAVE of more bytes ends the connection.",
    slow=True,
)
def have_in_pages(trial: Trial) -> None:
    """120 blocks are held, heads of 4,096 bytes at most: HAVE comes in pages that fit."""
    hello = wire.Hello(head_length_max=EARLY_HEAD)
    trial.patience = Patience(READING * trial.patience.slow)
    visit, upload = trial.uploading(120 * BLOCK_LENGTH, hello=hello)
    held = range(120)
    visit.say(upload.stream, upload.opened(*held, position=120 * BLOCK_LENGTH))
    taking.take_blocks(visit, trial.shelf, upload)
    visit.say(upload.stream, DIFFER)
    hear_have(visit, upload)
    visit.say(upload.stream, upload.opened(*held, position=120 * BLOCK_LENGTH))
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(upload.sample)


@cases.add(
    "crd/received-is-what-came",
    "CRD-008",
    why="A sender measures the line by it; one that is told too much sends too much.",
)
def received(trial: Trial) -> None:
    """Each CREDIT of a download of three blocks says no more than was sent; it is exact where everything has come."""
    visit, download = trial.downloading(3 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    for blockno in download.blocknos:
        giving.send_block(visit, download, blockno, piece_length=16_384)
        visit.expect_acked(download.stream, blockno)
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    require(bool(visit.credits), "no CREDIT came at all")
    trial.fetched(download.sample)


@cases.add(
    "end/goaway-with-nothing-open",
    "END-008",
    why="A server that stops waits for its clients as long as they stay.",
)
def goaway_with_nothing_open(trial: Trial) -> None:
    """GOAWAY before the client has opened a stream: it opens none here, and comes back elsewhere."""
    sample = trial.sample(2 * BLOCK_LENGTH)
    trial.upload(sample, tries=5)
    visit = trial.visit(welcome=False)
    visit.expect_greeting()
    visit.introduce(behind=wire.encode_frame(0, wire.GoAway(Code.GOING_AWAY, 3_600_000, 0, "stopping")))
    for heard in _rest(visit):
        if isinstance(heard.message, (wire.Open, wire.Block)):
            visit.say(heard.stream, wire.Error(Code.GOING_AWAY, Scope.STREAM, True, "stopping"))
    visit.close()
    taking.take_upload(trial.visit(), trial.shelf, sample)
    trial.stored(sample)


def _rest(visit: Visit) -> list[Heard]:
    try:
        return visit.settled()
    except Closed:
        return []

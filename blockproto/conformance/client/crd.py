"""CRD for clients: credit and allowances, of a client that sends and of one that receives."""

from __future__ import annotations

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from .. import forge
from ..case import Chapter, Side
from ..verdicts import require
from . import giving, taking
from .hel import EARLY
from .trial import Trial

cases = Chapter("client/crd", Side.CLIENT)


def stopped_at(trial: Trial, hello: wire.Hello, filesize: int, most: int, stream_grant: int = 0) -> None:
    """A client whose allowance is ``most`` bytes sends some of them, and not one more until CREDIT comes."""
    sample = trial.sample(filesize)
    trial.upload(sample)
    visit = trial.visit(hello=hello)
    visit.grants = False
    upload = taking.open_upload(visit, trial.shelf, sample)
    if stream_grant:
        visit.grant(upload.stream, stream_grant)
    heard = visit.settled(wanted=True, tells=True)
    require(visit.came() > 0, "the client sends nothing although it may")
    require(visit.came() <= most, "payload beyond the allowance", expected=str(most), got=str(visit.came()))
    visit.alive()
    visit.grants = True
    for stream in (upload.stream, 0):
        visit.grant(stream, visit.came() + hello.stream_allowance)
    visit.put_back(heard)
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(sample)


@cases.add(
    "sender/stops-at-the-streams-allowance",
    "CRD-002 CRD-001",
    why="A server that is slow has no other way to hold a stream back.",
)
def streams_allowance(trial: Trial) -> None:
    """A stream may carry 262,144 bytes; the connection far more."""
    hello = wire.Hello(stream_allowance=wire.STREAM_ALLOWANCE_EARLY)
    stopped_at(trial, hello, BLOCK_LENGTH + 5, wire.STREAM_ALLOWANCE_EARLY)


@cases.add(
    "sender/stops-at-the-connections-allowance",
    "CRD-002 CRD-005",
    why="The memory of a connection is bounded, however many streams it has.",
)
def connections_allowance(trial: Trial) -> None:
    """The connection may carry 1,048,576 bytes; CREDIT for the stream raises the stream's allowance only."""
    hello = wire.Hello(connection_allowance=wire.CONNECTION_ALLOWANCE_EARLY)
    stopped_at(
        trial, hello, 3 * BLOCK_LENGTH, wire.CONNECTION_ALLOWANCE_EARLY, stream_grant=16 * BLOCK_LENGTH
    )


@cases.add(
    "sender/a-lower-total-changes-nothing",
    "CRD-004",
    why="CREDITs may be late; one that takes allowance back would stop a sender for ever.",
)
def lower_total(trial: Trial) -> None:
    """A great CREDIT, then one with a lower total: the file goes on to its end without another."""
    sample = trial.sample(2 * BLOCK_LENGTH)
    trial.upload(sample)
    visit = trial.visit(hello=EARLY)
    visit.grants = False
    upload = taking.open_upload(visit, trial.shelf, sample)
    for stream in (0, upload.stream):
        visit.grant(stream, 8 * BLOCK_LENGTH)
        visit.say(stream, wire.Credit(wire.STREAM_ALLOWANCE_EARLY, 0))
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(sample)


@cases.add(
    "receiver/more-than-one-window",
    "CRD-008 CRD-001",
    why="A receiver that grants nothing anew stops every file that is longer than its window.",
)
def more_than_a_window(trial: Trial) -> None:
    """A download longer than what the client's HELLO allows: it goes on as credit comes back."""
    sample = trial.sample(BLOCK_LENGTH)
    trial.download(sample)
    visit = trial.visit()
    download = giving.fetched(visit, trial.shelf, sample)
    assert visit.hello is not None
    longer = (
        min(visit.hello.stream_allowance, visit.hello.connection_allowance, 16 * BLOCK_LENGTH) + BLOCK_LENGTH
    )
    sample = sample.with_(filesize=longer)
    visit.reset()
    trial.end()
    version = trial.shelf.offer(sample)
    trial.download(sample)
    visit = trial.visit()
    download = giving.open_download(visit, trial.shelf, sample)
    require(download.version == version, "the client fetches a version that is gone")
    giving.give(visit, download)
    trial.fetched(sample)


@cases.add(
    "receiver/only-payload-of-blocks-counts",
    "CRD-001 CRD-008 EXT-002",
    why="Two sides that count differently stop, or exceed what was granted.",
)
def only_payload_counts(trial: Trial) -> None:
    """Unknown frames with payload between pieces: CREDIT never says that more came than BLOCK and PIECE carried."""
    visit, download = trial.downloading(2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    for blockno in download.blocknos:
        for _ in range(8):
            visit.force(forge.unknown_frame(27, stream=download.stream, payload=bytes(60_000)))
        giving.send_block(visit, download, blockno, piece_length=64 * 1024)
    visit.put_back(visit.settled())  # the last CREDIT, too, which may come a moment later
    visit.alive()
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)


@cases.add(
    "receiver/not-for-every-piece",
    "CRD-007",
    why="On a slow line a CREDIT for every piece takes the way back from everybody else.",
)
def not_every_piece(trial: Trial) -> None:
    """Two blocks in 512 pieces: fewer than a quarter as many CREDITs."""
    visit, download = trial.downloading(2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    giving.give(visit, download, piece_length=4_096)
    for stream in (0, download.stream):
        count = sum(at == stream for at, _ in visit.credits)
        require(count <= 128, "CREDIT comes for nearly every piece", expected="at most 128", got=str(count))
    trial.fetched(download.sample)


@cases.table(
    "undurable/{}",
    "CRD-009 LIM-001",
    {"of-one-block": BLOCK_LENGTH, "of-0-is-0": 0},
    why="What is not durable yet must be sent again after a crash: the receiver says how much that may be.",
)
def undurable(trial: Trial, most: int) -> None:
    """Nothing is acknowledged: the client begins no second block."""
    visit, upload = trial.uploading(3 * BLOCK_LENGTH, hello=wire.Hello(undurable_max=most))
    visit.say(upload.stream, upload.opened())
    for blockno in range(3):
        taking.take_blocks(visit, trial.shelf, upload, until=blockno + 1, acknowledge=False)
        more = visit.settled() if blockno < 2 else []
        require(not more, "a block begins while nothing more may be sent", got=", ".join(map(str, more[:3])))
        visit.alive()
        visit.say(upload.stream, upload.acknowledged(*upload.ended))
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(upload.sample)


@cases.add(
    "receiver/acknowledges-without-any-further-byte",
    "CRD-011 RES-019 FET-008",
    why="A sender whose window is full says nothing more until it hears what is durable.",
)
def acknowledges(trial: Trial) -> None:
    """After a whole block the server waits: its ACK comes."""
    visit, download = trial.downloading(3 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    for blockno in download.blocknos:
        giving.send_block(visit, download, blockno)
        visit.expect_acked(download.stream, blockno)
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)

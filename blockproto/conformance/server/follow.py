"""FET of what is still being uploaded (profile CONNECTION). A server may do it; one that does, does it like this."""

from __future__ import annotations

from ... import wire
from ...common.blocks import BLOCK_LENGTH, digest_of
from ...errors import Code
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import Failed, Unsupported, require

cases = Chapter("fet", Side.SERVER)
TAIL = 10


def begun(trial: Trial, **facts: object) -> tuple[Peer, Sample, bytes]:
    """An uploader on stream 1 whose first block of three is acknowledged, and the file id."""
    uploader, sample = trial.dial(), trial.sample(2 * BLOCK_LENGTH + TAIL, **facts)
    opened = moves.begin_one(uploader, sample, mtime_ns=1_700_000_000_000_000_000, mode=0o640)
    return uploader, sample, opened.file_id


def reader_of(trial: Trial, file_id: bytes, **fields: object) -> tuple[Peer, wire.Open]:
    """Somebody who fetches it on stream 1, and OPEN; Unsupported if the server does not do that."""
    peer = trial.dial()
    peer.say(1, wire.Fetch("", file_id=file_id, version=file_id, **fields))  # type: ignore[arg-type]
    heard = peer.expect_any(1)
    message = heard.message
    if isinstance(message, wire.Error) and message.code == Code.UNKNOWN_FILE:
        raise Unsupported("the server does not give away what is still being uploaded")
    if not isinstance(message, wire.Open):
        raise peer.unexpected("OPEN", heard)
    return peer, message


def hear_block(peer: Peer, sample: Sample, blockno: int) -> None:
    """The whole block that comes next, which must be this one; it is acknowledged."""
    came = bytearray()
    while True:
        heard = peer.expect_any(1)
        message = heard.message
        if not isinstance(message, (wire.Block, wire.Piece)):
            raise peer.unexpected(f"block {blockno}", heard)
        if isinstance(message, wire.Block):
            peer.compare(heard, blockno=blockno)
        came += heard.payload
        if message.digest is not None:
            break
    require(bytes(came) == sample.block(blockno), f"block {blockno} has other bytes")
    require(digest_of(came) == message.digest, f"block {blockno} has another digest")
    peer.say(1, wire.Ack(0, ((blockno, 1),)))


def require_silent(peer: Peer) -> None:
    """Fail if a block comes before the answer to PING."""
    try:
        before = peer.ping()
    except Failed as failure:
        raise Failed("a block came that is not durable yet, or out of order", got=failure.got) from failure
    require(before == [], "something came before there was anything to say")


def finish(uploader: Peer, sample: Sample, *blocknos: int) -> None:
    """The blocks that are missing, and COMMIT."""
    for blockno in blocknos:
        moves.send_block(uploader, sample, blockno)
    moves.commit(uploader, sample)


@cases.add(
    "unfinished/facts",
    "FET-016 FET-017",
    why="Who listens to a message that is still being spoken has to know what it is, and that its root is not known.",
    layer=2,
)
def facts(trial: Trial) -> None:
    """OPEN has the facts the upload was begun with, no ROOT and no B3SUM, and the file id as VERSION."""
    _, sample, file_id = begun(trial)
    _, opened = reader_of(trial, file_id)
    told = opened.filename, opened.filetype, opened.filesize, opened.blocknum, opened.mtime_ns, opened.mode
    expected = (sample.filename, sample.filetype, sample.filesize, 3, 1_700_000_000_000_000_000, 0o640)
    require(told == expected, f"OPEN says {told} instead of {expected}")
    require(opened.root is None and opened.b3sum is None, "a root is claimed of what is not complete")
    require(opened.version == file_id, "VERSION is not the file id")


@cases.add(
    "unfinished/range-of-unknown-size",
    "FET-016",
    why="Where nobody knows the end, no range can be promised.",
)
def range_of_unknown_size(trial: Trial) -> None:
    """Where the filesize is unknown, FETCH from the second byte on, or of some bytes, is BAD_FACTS; the whole is given."""
    _, sample, file_id = begun(trial, unknown=True)
    peer, opened = reader_of(trial, file_id)
    require(opened.filesize is None and opened.blocknum is None, "a filesize is told that nobody has said")
    hear_block(peer, sample, 0)
    for stream, part in (
        (3, wire.Fetch("", file_id=file_id, first=1)),
        (5, wire.Fetch("", file_id=file_id, length=10)),
    ):
        peer.say(stream, part)
        peer.expect_error(Code.BAD_FACTS, stream=stream)


@cases.add(
    "unfinished/in-order-when-durable",
    "FET-018",
    why="A block that is given away before it is durable may never have been.",
    layer=2,
)
def in_order(trial: Trial) -> None:
    """Block 2 is acknowledged before block 1: the reader gets block 0, then nothing, then 1 and 2."""
    uploader, sample, file_id = begun(trial)
    peer, _ = reader_of(trial, file_id)
    hear_block(peer, sample, 0)
    moves.send_block(uploader, sample, 2)
    uploader.expect_acked(1, 2)
    require_silent(peer)
    moves.send_block(uploader, sample, 1)
    hear_block(peer, sample, 1)
    hear_block(peer, sample, 2)


@cases.add(
    "unfinished/takeover-is-not-seen",
    "FET-018 FET-017",
    why="The speaker walks from Wi-Fi into the street; the listener hears on.",
    layer=2,
)
def takeover(trial: Trial) -> None:
    """Another connection takes the upload over in the middle and finishes it: the reader gets every block and COMMIT."""
    uploader, sample, file_id = begun(trial)
    peer, _ = reader_of(trial, file_id)
    hear_block(peer, sample, 0)
    uploader.close()
    newer = sample.with_(attempt=sample.attempt + 1)
    other = trial.dial()
    moves.begin(other, newer)
    finish(other, newer, 1, 2)
    hear_block(peer, sample, 1)
    hear_block(peer, sample, 2)
    peer.expect(wire.Commit, 1, root=sample.root, filesize=sample.filesize)


@cases.add(
    "unfinished/no-commit-before-the-upload-s",
    "FET-019",
    why="What looks complete and is then given up was never a file.",
    layer=2,
)
def no_commit_before(trial: Trial) -> None:
    """All blocks have come, and COMMIT comes only when the upload has been committed."""
    uploader, sample, file_id = begun(trial)
    peer, _ = reader_of(trial, file_id)
    moves.send_block(uploader, sample, 1)
    moves.send_block(uploader, sample, 2)
    for blockno in range(3):
        hear_block(peer, sample, blockno)
    require_silent(peer)
    moves.commit(uploader, sample)
    peer.expect(wire.Commit, 1, root=sample.root, filesize=sample.filesize)


@cases.add(
    "unfinished/goes-on-after-commit",
    "FET-017",
    why="A listener who was cut off goes on where it was, though the file is finished meanwhile.",
    layer=2,
)
def goes_on_after_commit(trial: Trial) -> None:
    """The file id names the same version before and after the commit: what is held of it is not sent again."""
    uploader, sample, file_id = begun(trial)
    first, _ = reader_of(trial, file_id)
    hear_block(first, sample, 0)
    first.close()
    finish(uploader, sample, 1, 2)
    peer, opened = reader_of(trial, file_id, held=((0, 1),))
    require(opened.version == file_id, "the version has changed with the commit")
    hear_block(peer, sample, 1)
    hear_block(peer, sample, 2)
    peer.expect(wire.Commit, 1, root=sample.root, filesize=sample.filesize)


@cases.add(
    "unfinished/discarded",
    "FET-019",
    why="Who waits for the rest of what is gone waits for ever.",
    layer=2,
)
def discarded(trial: Trial) -> None:
    """The upload is removed: the reader hears CANCELLED."""
    _, sample, file_id = begun(trial)
    peer, _ = reader_of(trial, file_id)
    hear_block(peer, sample, 0)
    other = trial.dial()
    other.say(1, wire.Remove(wire.RemoveKind.UPLOAD, sample.sourceid))
    other.expect(wire.Result, 1)
    peer.expect_error(Code.CANCELLED, stream=1)


@cases.add(
    "unfinished/withdrawn",
    "FET-019 DIG-007",
    why="A block that its sender takes back has to be asked for again.",
    layer=2,
)
def withdrawn(trial: Trial) -> None:
    """HAVE names the block with another digest: the reader hears BUSY, and can fetch what comes in its place."""
    uploader, sample, file_id = begun(trial)
    peer, _ = reader_of(trial, file_id)
    hear_block(peer, sample, 0)
    changed = sample.with_(seed=sample.seed + 1)
    uploader.say(1, changed.have(0))
    peer.expect_error(Code.BUSY, stream=1)
    uploader.expect(wire.Opened, 1)
    for blockno in range(3):
        moves.send_block(uploader, changed, blockno)
    moves.commit(uploader, changed)
    again, _ = reader_of(trial, file_id)
    for blockno in range(3):
        hear_block(again, changed, blockno)

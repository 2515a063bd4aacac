"""BLK for clients: blocks and pieces, of a client that sends and of one that receives."""

from __future__ import annotations

from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH, digest_of
from ...errors import Code, Scope
from .. import forge
from ..case import Chapter, Side
from ..verdicts import require
from . import giving, taking
from .hel import EARLY
from .trial import Trial

cases = Chapter("client/blk", Side.CLIENT)

SIZES = {
    "empty": 0,
    "one-byte": 1,
    "one-byte-less-than-a-block": BLOCK_LENGTH - 1,
    "one-block": BLOCK_LENGTH,
    "one-byte-more-than-a-block": BLOCK_LENGTH + 1,
    "three-blocks-and-a-rest": 3 * BLOCK_LENGTH + 777,
}


@cases.table(
    "sends/{}",
    "BLK-001 BLK-002 BLK-004 BLK-009 BLK-014 BLK-020 BLK-021 DIG-001 COM-001 COM-002",
    SIZES,
    why="The sizes around the edges of a block are where an implementation that is wrong shows it.",
)
def sends(trial: Trial, filesize: int) -> None:
    """A whole upload, with or without OPEN."""
    sample = trial.sample(filesize, filename="fo lder/ünïcode.jpg")
    trial.upload(sample)
    visit = trial.visit()
    upload = taking.take_upload(visit, trial.shelf, sample)
    filetype = upload.opening.filetype
    require(
        (len(filetype) <= 255 and filetype.isascii() and filetype.isprintable()) or not filetype,
        "the filetype is not printable ASCII of at most 255 bytes",
        got=filetype,
    )
    if upload.brief:
        judge_brief(upload)
    trial.stored(sample)


def judge_brief(upload: taking.Upload) -> None:
    """The frames of a file that came without OPEN."""
    first, last = upload.frames[0].message, upload.frames[-1].message
    assert isinstance(first, wire.Block)
    begins = (first.blockno, first.position) == (0, 0) and upload.sample.filesize <= BLOCK_LENGTH
    require(begins, "a file without OPEN begins elsewhere, or is too long", got=str(upload.frames[0]))
    blocks = sum(isinstance(heard.message, wire.Block) for heard in upload.frames)
    require(blocks == 1, "a file without OPEN has several BLOCKs", got=str(blocks))
    require(getattr(last, "commit", False), "the frame with END has no COMMIT", got=str(upload.frames[-1]))


@cases.table(
    "sends/of-unknown-size/{}",
    "BLK-003 BLK-001 COM-001",
    {key: SIZES[key] for key in ("empty", "one-byte", "one-block", "one-byte-more-than-a-block")},
    why="The end of a pipe is known when it has come, not before.",
)
def sends_unknown(trial: Trial, filesize: int) -> None:
    """filesize and blocknum are unknown in OPEN and BLOCK, and known in COMMIT."""
    sample = trial.sample(filesize)
    trial.upload(sample, "upload-stream")
    visit = trial.visit()
    upload = taking.open_upload(visit, trial.shelf, sample)
    known = (upload.opening.filesize, upload.opening.blocknum)
    require(known == (None, None), "a size is told that nobody can know", got=str(known))
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(sample)


@cases.add(
    "sends/pieces-that-are-worth-it",
    "BLK-010 BLK-005",
    why="A frame for a few bytes costs more than the bytes.",
)
def worth_it(trial: Trial) -> None:
    """Small limits force pieces: none is shorter than 4,096 bytes, but the end of a block."""
    sample = trial.sample(2 * BLOCK_LENGTH + 5)
    trial.upload(sample)
    visit = trial.visit(hello=EARLY)
    upload = taking.take_upload(visit, trial.shelf, sample)
    for heard in upload.frames:
        ends = heard.message.digest is not None  # type: ignore[union-attr]
        require(ends or len(heard.payload) >= 4_096, "a piece is shorter than 4,096 bytes", got=str(heard))
    trial.stored(sample)


# ---- a client that receives


@cases.table(
    "receives/{}",
    "BLK-001 BLK-004 BLK-006 BLK-009 DIG-001 FET-008",
    SIZES,
    why="The sizes around the edges of a block are where an implementation that is wrong shows it.",
)
def receives(trial: Trial, filesize: int) -> None:
    """A whole download, in pieces of 64 KiB."""
    sample = trial.sample(filesize)
    trial.download(sample)
    giving.give_download(trial.visit(), trial.shelf, sample, piece_length=64 * 1024)
    trial.fetched(sample)


@cases.add(
    "receives/end-without-payload",
    "BLK-009",
    why="A sender that hashes while it sends knows the digest after the last byte.",
)
def end_without_payload(trial: Trial) -> None:
    """A block whose last byte came without END is ended by a PIECE without payload."""
    visit, download = trial.downloading(BLOCK_LENGTH + 5)
    visit.say(download.stream, download.open())
    for blockno in download.blocknos:
        block = download.block(blockno)
        visit.say(download.stream, download.head(blockno, ends=False), block)
        visit.say(download.stream, download.piece(blockno, len(block)))
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)


OPENS: dict[str, tuple[str, dict[str, Any]]] = {
    "blocknum-that-does-not-fit": ("BLK-002", {"blocknum": 7}),
    "blocknum-unknown-alone": ("BLK-003", {"blocknum": None}),
    "filesize-unknown-alone": ("BLK-003", {"filesize": None}),
    "filetype-with-a-control-character": ("BLK-021", {"filetype": "text/\x07plain"}),
    "filetype-of-256-bytes": ("BLK-021", {"filetype": "x" * 256}),
    "folder-with-bytes": ("BLK-016", {"filetype": "inode/directory"}),
}


def bad_open(trial: Trial, changes: dict[str, Any]) -> None:
    """OPEN that answers FETCH has facts that cannot be: BAD_FACTS, scope stream."""
    visit, download = trial.downloading()
    visit.force(forge.frame(download.stream, forge.unjudged(download.open(), **changes)))
    visit.opened(download.stream)
    visit.expect_error(Code.BAD_FACTS, stream=download.stream)
    trial.absent(download.sample)
    trial.not_done()


for _name, (_clause, _changes) in OPENS.items():
    cases.table(
        f"open/{_name}{{}}",
        _clause,
        {"": _changes},
        why="Facts that disagree are those of two different files.",
    )(bad_open)


BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "another-filename": ("BLK-020", {"filename": "another"}),
    "another-filetype": ("BLK-020", {"filetype": "text/another"}),
    "another-sourceid": ("BLK-020", {"sourceid": bytes(15) + b"!"}),
    "another-filesize": ("BLK-020", {"filesize": BLOCK_LENGTH + 6}),
    "blocknum-that-does-not-fit": ("BLK-002", {"blocknum": 3}),
    "blockno-past-the-end": ("BLK-002", {"blockno": 2, "position": 2 * BLOCK_LENGTH}),
    "position-before-its-block": ("BLK-008", {"blockno": 1}),
    "position-behind-its-block": ("BLK-008", {"position": BLOCK_LENGTH + 1}),
}


def bad_block(trial: Trial, changes: dict[str, Any]) -> None:
    """BLOCK does not agree with OPEN, or with itself: BAD_FACTS, scope stream."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    head = forge.unjudged(download.head(0, ends=False), **changes)
    visit.force(forge.frame(download.stream, head, b"x" * 10))
    visit.expect_error(Code.BAD_FACTS, stream=download.stream)
    trial.absent(download.sample)
    trial.not_done()


for _name, (_clause, _changes) in BLOCKS.items():
    cases.table(
        f"block/{_name}{{}}",
        _clause,
        {"": _changes},
        why="A block of another file must not get into this one.",
    )(bad_block)


@cases.add(
    "block/payload-past-its-end", "BLK-008", why="The bytes would be those of the next block, unverified."
)
def past_its_end(trial: Trial) -> None:
    """A payload that runs past the end of the file's last block."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    visit.force(forge.frame(download.stream, download.head(1), download.block(1) + b"!"))
    visit.expect_error(Code.BAD_FACTS, stream=download.stream)
    trial.not_done()


@cases.add(
    "block/end-before-its-end", "BLK-009", why="A block that is short without being the last leaves a hole."
)
def end_too_early(trial: Trial) -> None:
    """END before the block's end, with the digest of what came."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    part = download.block(0)[:1000]
    visit.force(forge.frame(download.stream, download.head(0, digest=digest_of(part)), part))
    visit.expect_error(Code.BAD_FACTS, stream=download.stream)
    trial.not_done()


@cases.table(
    "piece/{}",
    "BLK-006",
    {"one-byte-too-far": 1001, "again-from-the-beginning": 0, "without-a-block": None},
    why="Pieces have no blockno: their position is all that says where they belong.",
)
def piece_elsewhere(trial: Trial, position: int | None) -> None:
    """PIECE that does not go on where the block stands."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    if position is not None:
        visit.say(download.stream, download.head(0, ends=False), download.block(0)[:1000])
    visit.force(forge.frame(download.stream, wire.Piece(position or 0), b"x"))
    visit.expect_error(Code.BAD_FACTS, stream=download.stream)
    trial.not_done()


@cases.add(
    "block/begun-while-another-is-unfinished",
    "BLK-007 BLK-006",
    why="A sender turns to another block when somebody else needs the line, or when it was told to.",
)
def abandoned(trial: Trial) -> None:
    """Block 0 is begun and abandoned for block 1; then it comes from its beginning."""
    visit, download = trial.downloading(2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    visit.say(download.stream, download.head(0, ends=False), b"?" * 5000)
    giving.send_block(visit, download, 1)
    visit.expect_acked(download.stream, 1)
    giving.send_block(visit, download, 0)
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)


@cases.add(
    "block/damaged-and-sent-again",
    "BLK-011 FET-008",
    why="A damaged block costs a block, not the file; and never gets into it.",
)
def damaged(trial: Trial) -> None:
    """A block whose bytes are not those of its digest is refused by number, and taken when it comes again."""
    visit, download = trial.downloading(2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    giving.send_block(visit, download, 0)
    giving.send_block(visit, download, 1, damaged=True)
    visit.expect_error(Code.DIGEST_MISMATCH, stream=download.stream, scope=Scope.BLOCK, blockno=1)
    require(not visit.acknowledges(download.stream, 1), "a damaged block is acknowledged")
    giving.send_block(visit, download, 1)
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)


@cases.add(
    "block/that-is-held-comes-again",
    "BLK-012",
    why="After a lost ACK a sender sends again what is held: it must hear so.",
)
def held_again(trial: Trial) -> None:
    """A held block comes again with the same digest: acknowledged again, and the file is right."""
    visit, download = trial.downloading(2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    giving.send_block(visit, download, 0)
    visit.expect_acked(download.stream, 0)
    visit.held.clear()
    giving.send_block(visit, download, 0)
    visit.expect_acked(download.stream, 0)
    giving.send_block(visit, download, 1)
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)


@cases.add(
    "block/that-is-held-comes-with-other-bytes",
    "BLK-012 DIG-009",
    why="It is a block of another version of the file.",
)
def held_differs(trial: Trial) -> None:
    """A held block comes again with another digest: SOURCE_CHANGED, and no file."""
    visit, download = trial.downloading(2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    giving.send_block(visit, download, 0)
    visit.expect_acked(download.stream, 0)
    other = bytes(BLOCK_LENGTH)
    visit.say(download.stream, download.head(0, digest=digest_of(other)), other)
    visit.expect_error(Code.SOURCE_CHANGED, stream=download.stream)
    trial.absent(download.sample)
    trial.not_done()


@cases.table(
    "commit-flag/{}",
    "BLK-017 STR-005",
    {"without-end": (Code.MALFORMED, False), "on-a-stream-with-open": (Code.UNEXPECTED, True)},
    why="On a stream with OPEN the end of the file is a message of its own, with the root.",
)
def commit_flag(trial: Trial, row: tuple[Code, bool]) -> None:
    """The flag COMMIT on a BLOCK of a download."""
    code, ends = row
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    part = download.block(0) if ends else b"x"
    visit.force(
        forge.rebuilt(forge.frame(download.stream, download.head(0, ends=ends), part), flags=wire.COMMIT)
    )
    visit.expect_refusal(code)
    trial.not_done()

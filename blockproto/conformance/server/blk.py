"""BLK: blocks and pieces, files without OPEN, agreement."""

from __future__ import annotations

from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, digest_of
from ...errors import Code, Scope
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import require

cases = Chapter("blk", Side.SERVER)
TWO_AND_A_BIT = 2 * BLOCK_LENGTH + 5


def begun(trial: Trial, filesize: int = TWO_AND_A_BIT, **facts: Any) -> tuple[Peer, Sample]:
    """A connection with an upload on stream 1."""
    peer, sample = trial.dial(), trial.sample(filesize, **facts)
    moves.begin(peer, sample)
    return peer, sample


def refused_stream(peer: Peer, code: Code = Code.BAD_FACTS, stream: int = 1) -> None:
    """The stream is refused, and the connection goes on."""
    peer.expect_error(code, stream=stream)
    peer.ping()


# ---- sizes


@cases.table(
    "sizes/{}",
    "BLK-001 BLK-009 FET-006 DIG-001",
    {
        "0": 0,
        "1": 1,
        "one-byte-less-than-a-block": BLOCK_LENGTH - 1,
        "one-block": BLOCK_LENGTH,
        "one-byte-more-than-a-block": BLOCK_LENGTH + 1,
        "one-byte-less-than-two-blocks": 2 * BLOCK_LENGTH - 1,
        "two-blocks": 2 * BLOCK_LENGTH,
        "three-blocks-and-a-bit": 3 * BLOCK_LENGTH + 17,
    },
    why="Most files end inside a block, and off-by-one errors live where they do not.",
    layer=2,
)
def sizes(trial: Trial, filesize: int) -> None:
    """Upload with OPEN and fetch again."""
    peer, sample = trial.dial(), trial.sample(filesize)
    moves.upload(peer, sample)
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)


@cases.table(
    "facts/open-{}",
    "BLK-002",
    {
        "blocknum-one-too-many": {"blocknum": 4},
        "blocknum-one-too-few": {"blocknum": 2},
        "blocknum-0": {"blocknum": 0},
        "empty-file-of-one-block": {"filesize": 0, "blocknum": 1},
        "whole-blocks-rounded-up": {"filesize": 2 * BLOCK_LENGTH, "blocknum": 3},
    },
    why="filesize and blocknum say the same thing twice, so that a sender that counts wrongly is found at once.",
)
def facts_of_open(trial: Trial, changes: dict[str, int]) -> None:
    """OPEN whose filesize and blocknum do not fit each other."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    peer.opened(1)
    peer.send(forge.frame(1, forge.unjudged(sample.open(), **changes)))
    refused_stream(peer)


@cases.table(
    "facts/{}-unknown-alone",
    "BLK-003",
    {"filesize": {"filesize": None}, "blocknum": {"blocknum": None}},
    why="Half a fact is none; which half is believed would differ between implementations.",
)
def one_unknown(trial: Trial, changes: dict[str, None]) -> None:
    """Only one of filesize and blocknum is unknown."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    peer.opened(1)
    peer.send(forge.frame(1, forge.unjudged(sample.open(), **changes)))
    refused_stream(peer)


@cases.table(
    "facts/blockno-{}",
    "BLK-002",
    {"is-blocknum": 3, "2-to-32-minus-1": 0xFFFF_FFFF},
    why="A block behind the end of the file is a write outside of it.",
)
def blockno_too_great(trial: Trial, blockno: int) -> None:
    """BLOCK with a blockno that the file does not have."""
    peer, sample = begun(trial)
    head = forge.unjudged(sample.head(0, ends=False), blockno=blockno, position=blockno * BLOCK_LENGTH)
    peer.send(forge.frame(1, head, b"x"))
    peer.count(1, 1)
    refused_stream(peer)


@cases.table(
    "facts/position-{}",
    "BLK-008",
    {
        "before-its-block": (1, BLOCK_LENGTH - 1),
        "at-the-file-s-beginning": (1, 0),
        "behind-its-block": (0, BLOCK_LENGTH + 1),
        "behind-the-file": (2, TWO_AND_A_BIT + 1),
        "2-to-63-minus-1": (2, 2**63 - 1),
    },
    why="A position outside its block is a write into somebody else's.",
)
def position_outside(trial: Trial, where: tuple[int, int]) -> None:
    """BLOCK whose position does not lie in its block."""
    peer, sample = begun(trial)
    blockno, position = where
    peer.send(forge.frame(1, forge.unjudged(sample.head(blockno, ends=False), position=position), b"x"))
    peer.count(1, 1)
    refused_stream(peer)


@cases.table(
    "facts/payload-past-{}",
    "BLK-008",
    {"the-file": (2, 0, 6), "its-block": (0, BLOCK_LENGTH - 5, 6)},
    why="A payload that runs over is a write into the next block, or behind the end of the file.",
)
def payload_past(trial: Trial, what: tuple[int, int, int]) -> None:
    """A payload that is longer than the rest of its block."""
    peer, sample = begun(trial)
    blockno, start, length = what
    if start:
        moves.send_block(peer, sample, blockno, stop=start)
        message: wire.Message = sample.piece(blockno, start, ends=False)
    else:
        message = sample.head(blockno, start, ends=False)
    peer.say(1, message, bytes(length))
    refused_stream(peer)


# ---- unknown size


@cases.add(
    "unknown-size/told-at-commit",
    "BLK-003 BLK-009 COM-003",
    why="What comes from a pipe or a camera has no size before its end.",
    layer=2,
)
def unknown_size(trial: Trial) -> None:
    """Three blocks, the last one short; COMMIT says how many they were."""
    peer, sample = begun(trial, unknown=True)
    moves.send_blocks(peer, sample)
    moves.commit(peer, sample)
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)


@cases.table(
    "unknown-size/{}",
    "BLK-003 BLK-004",
    {"empty": 0, "one-short-block": 10, "whole-blocks": 2 * BLOCK_LENGTH},
    why="A stream of unknown size may end anywhere, also at a block's border or at once.",
)
def unknown_size_of(trial: Trial, filesize: int) -> None:
    """An upload of unknown size that ends at an unusual place."""
    peer, sample = begun(trial, filesize, unknown=True)
    moves.send_blocks(peer, sample)
    moves.commit(peer, sample)


@cases.table(
    "unknown-size/{}",
    "BLK-003",
    {"block-behind-the-short-one": (0, 1), "second-short-block": (1, 0), "short-block-before": (2, 0)},
    why="A file has one end; a second one is a hole that the sender did not notice.",
)
def behind_the_short_block(trial: Trial, blocknos: tuple[int, int]) -> None:
    """A short block ends the file; another one behind it, or a second end, is refused, at the latest at COMMIT."""
    peer, sample = begun(trial, 100, unknown=True)
    content = sample.content
    for blockno in blocknos:
        head = forge.unjudged(
            sample.head(0), blockno=blockno, position=blockno * BLOCK_LENGTH, digest=sample.digest(0)
        )
        peer.say(1, head, content)
    peer.say(1, wire.Commit(sample.sourceid, sample.root, BLOCK_LENGTH + 100, 2))
    peer.expect_error(Code.BAD_FACTS, stream=1)
    peer.ping()


# ---- nothing


@cases.table(
    "empty/{}",
    "BLK-004 DIG-001",
    {"with-open-and-no-block": 0, "with-open-and-its-block": 1, "brief": 2},
    why="An empty file is a file; the only one whose block has no bytes.",
)
def empty(trial: Trial, how: int) -> None:
    """An empty file, in each of its forms; its root is the digest of nothing."""
    peer, sample = trial.dial(), trial.sample(0)
    require(sample.root == EMPTY_DIGEST, "the harness has another digest of nothing")
    if how == 2:
        moves.brief(peer, sample)
    else:
        moves.begin(peer, sample)
        if how:
            moves.send_block(peer, sample, 0)
        moves.commit(peer, sample)
    item = moves.stat(peer, sample.filename, 3)
    require(item is not None and item.filesize == 0, "the empty file is not there", got=str(item))


@cases.add(
    "empty/brief-with-another-digest",
    "BLK-011 BLK-004",
    why="Even nothing has a digest, and a sender that says another one has something else in mind.",
)
def empty_with_another_digest(trial: Trial) -> None:
    """A brief empty file whose digest is not that of nothing."""
    peer, sample = trial.dial(), trial.sample(0)
    peer.say(1, sample.brief(digest=bytes(32)))
    refused_stream(peer, Code.DIGEST_MISMATCH)
    moves.require_absent(trial, sample.filename, "a file with a wrong digest is stored")


# ---- pieces


@cases.table(
    "pieces/of-{}-bytes",
    "BLK-006 BLK-005",
    {"4096": 4_096, "1000": 1_000, "65536": 65_536},
    why="A slow line sends small pieces, so that something urgent can go in between.",
)
def pieces(trial: Trial, length: int) -> None:
    """One block in pieces."""
    peer, sample = begun(trial, 200_000)
    moves.send_block(peer, sample, 0, piece_length=length)
    moves.commit(peer, sample)


@cases.add(
    "pieces/empty-ones",
    "BLK-006 BLK-010",
    why="A piece without bytes is not useful and not forbidden; a receiver that divides by its length is.",
)
def empty_pieces(trial: Trial) -> None:
    """BLOCK without payload, pieces without payload, then the block."""
    peer, sample = begun(trial, 100)
    peer.say(1, sample.head(0, ends=False))
    for _ in range(3):
        peer.say(1, sample.piece(0, 0, ends=False))
    peer.say(1, sample.piece(0, 0), sample.content)
    moves.commit(peer, sample)


@cases.add(
    "pieces/end-without-payload",
    "BLK-009",
    why="A sender that learns only afterwards that it was at the end says so in a piece without bytes.",
)
def end_without_payload(trial: Trial) -> None:
    """All bytes without END, then a PIECE that only ends the block."""
    peer, sample = begun(trial, 5_000)
    peer.say(1, sample.head(0, ends=False), sample.content)
    peer.say(1, sample.piece(0, 5_000))
    peer.expect_acked(1, 0)
    moves.commit(peer, sample)


@cases.table(
    "pieces/{}",
    "BLK-006",
    {
        "without-a-block": (None, 0),
        "after-a-gap": (100, 101),
        "overlapping": (100, 99),
        "of-another-block": (100, BLOCK_LENGTH),
    },
    why="PIECE does not say what it is a piece of; only its position shows that the two sides mean the same.",
)
def misplaced_piece(trial: Trial, where: tuple[int | None, int]) -> None:
    """A PIECE that does not continue the stream's block."""
    sent, position = where
    peer, sample = begun(trial)
    if sent is not None:
        moves.send_block(peer, sample, 0, stop=sent)
    peer.say(1, sample.piece(0, position, ends=False), b"x")
    refused_stream(peer)


@cases.add(
    "pieces/after-end",
    "BLK-006",
    why="The block has ended; a further piece belongs to nothing.",
)
def piece_after_end(trial: Trial) -> None:
    """A PIECE behind the frame with END."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 2)
    peer.say(1, sample.piece(2, 5, ends=False))
    refused_stream(peer)


@cases.table(
    "end/{}",
    "BLK-009",
    {"before-the-block-s-end": (0, 1_000), "before-the-last-block-s-end": (2, 4)},
    why="A block that ends early is a file with a hole.",
)
def end_too_early(trial: Trial, what: tuple[int, int]) -> None:
    """END on a frame that does not reach the end of its block; the digest is that of what came."""
    blockno, length = what
    peer, sample = begun(trial)
    content = sample.block(blockno)[:length]
    peer.say(1, sample.head(blockno, digest=digest_of(content)), content)
    refused_stream(peer)


@cases.add(
    "unfinished/another-block-abandons-it",
    "BLK-007 RES-013",
    why="A sender may turn to another block; what it sent of the first must not be lost, nor be taken for the second.",
)
def another_block(trial: Trial) -> None:
    """1,000 bytes of block 0, then block 1, then the rest of block 0."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0, stop=1_000)
    moves.send_block(peer, sample, 1)
    moves.send_block(peer, sample, 0, start=1_000)
    peer.expect_acked(1, 0, 1)
    moves.send_block(peer, sample, 2)
    moves.commit(peer, sample)


@cases.add(
    "unfinished/begun-again",
    "BLK-007 BLK-008",
    why="A sender that is not sure begins the block again, and must not be punished for it.",
)
def begun_again(trial: Trial) -> None:
    """Half a block, then the same block from its beginning."""
    peer, sample = begun(trial, 100_000)
    moves.send_block(peer, sample, 0, stop=50_000)
    moves.send_block(peer, sample, 0)
    moves.commit(peer, sample)


@cases.add(
    "order/last-block-first",
    "BLK-001 RES-016",
    why="Blocks may come in any order; a server that appends builds another file.",
)
def last_block_first(trial: Trial) -> None:
    """Blocks 2, 0, 1."""
    peer, sample = begun(trial)
    moves.send_blocks(peer, sample, 1, 2, 0, 1)
    moves.commit(peer, sample)
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)


# ---- digests of blocks


@cases.add(
    "digest/wrong-on-one-block",
    "BLK-011 ERR-005",
    why="The one check that finds a bit that changed on its way; the others go on.",
    layer=2,
)
def wrong_digest(trial: Trial) -> None:
    """A damaged block is named and dropped, the others are held, and the block can be sent again."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0)
    moves.send_block(peer, sample, 1, damaged=True)
    peer.expect_error(Code.DIGEST_MISMATCH, stream=1, scope=Scope.BLOCK, blockno=1)
    moves.send_block(peer, sample, 2)
    peer.expect_acked(1, 0, 2)
    require(not peer.acknowledges(1, 1), "a damaged block is acknowledged")
    moves.send_block(peer, sample, 1)
    moves.commit(peer, sample)


@cases.add(
    "digest/prefix-is-dropped-with-it",
    "BLK-011 RES-013",
    why="What came of a damaged block must not be built upon: nobody knows which byte is wrong.",
)
def prefix_dropped(trial: Trial) -> None:
    """After DIGEST_MISMATCH the middle of the block is not known any more."""
    peer, sample = begun(trial, 100_000)
    moves.send_block(peer, sample, 0, piece_length=50_000, damaged=True)
    peer.expect_error(Code.DIGEST_MISMATCH, stream=1, scope=Scope.BLOCK, blockno=0)
    moves.send_block(peer, sample, 0, start=50_000)
    peer.expect_error(Code.DIGEST_MISMATCH, stream=1, scope=Scope.BLOCK, blockno=0)
    moves.send_block(peer, sample, 0)
    moves.commit(peer, sample)


@cases.add(
    "digest/brief",
    "BLK-011",
    why="A brief file has no second try on its stream; its refusal ends it.",
)
def wrong_digest_of_brief(trial: Trial) -> None:
    """A brief file with a wrong digest: scope stream, nothing stored."""
    peer, sample = trial.dial(), trial.sample(1_000)
    moves.say_brief(peer, sample, digest=bytes(31) + b"\1")
    refused_stream(peer, Code.DIGEST_MISMATCH)
    moves.require_absent(trial, sample.filename, "a file with a wrong digest is stored")
    moves.brief(peer, sample, 5)


@cases.add(
    "duplicate/same-block-again",
    "BLK-012",
    why="A sender that lost the acknowledgement sends again, and waits for one.",
)
def same_block_again(trial: Trial) -> None:
    """A held block comes again: acknowledged again."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 1)
    peer.expect_acked(1, 1)
    peer.held[1].blocknos.clear()
    moves.send_block(peer, sample, 1)
    peer.expect_acked(1, 1)
    moves.send_blocks(peer, sample, 1, 0, 2)
    moves.commit(peer, sample)
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)


@cases.add(
    "duplicate/with-another-digest",
    "BLK-012",
    why="Whoever writes over what was acknowledged has broken the one promise there is.",
    layer=2,
)
def another_digest(trial: Trial) -> None:
    """Other bytes for a held block: the stream is refused, and the file is made of the first ones."""
    peer, sample = begun(trial)
    other = sample.with_(seed=sample.seed + 1)
    moves.send_blocks(peer, sample)
    peer.expect_acked(1, 0, 1, 2)
    moves.send_block(peer, other, 1)
    refused_stream(peer, Code.SOURCE_CHANGED)
    opened = moves.begin(peer, sample, 3)
    require(
        opened.position == sample.filesize, "a held block is gone after another one was sent", got=str(opened)
    )
    moves.commit(peer, sample, 3)
    moves.fetch(peer, 5, wire.Fetch(sample.filename), sample)


@cases.add(
    "owner/the-last-one-who-began",
    "BLK-013 RES-006",
    why="Two streams that write one block beside each other make a block that neither of them sent.",
    layer=2,
)
def owner(trial: Trial) -> None:
    """Two connections of one attempt begin the same block; the first one's pieces are dropped without an error."""
    first, second, sample = trial.dial(), trial.dial(), trial.sample(200_000)
    other = sample.with_(seed=sample.seed + 1)
    moves.begin(first, sample)
    moves.send_block(first, other, 0, stop=100_000, piece_length=50_000)
    first.ping()
    moves.begin(second, sample)
    moves.send_block(second, sample, 0, stop=50_000)
    second.ping()
    first.say(1, other.piece(0, 100_000, ends=False), other.content[100_000:150_000])
    first.say(1, other.piece(0, 150_000), other.content[150_000:])
    first.ping()
    require(not first.acknowledges(1, 0), "the END of a former owner proved the block")
    second.say(1, sample.piece(0, 50_000, ends=False), sample.content[50_000:110_000])
    second.say(1, sample.piece(0, 110_000), sample.content[110_000:])
    second.expect_acked(1, 0)
    second.say(1, sample.commit())
    moves.expect_committed(second, sample)
    moves.fetch(second, 3, wire.Fetch(sample.filename), sample)


# ---- agreement


@cases.table(
    "agreement/{}",
    "BLK-020",
    {
        "sourceid": {"sourceid": b"\x77" * 16},
        "filename": {"filename": "another name"},
        "filetype": {"filetype": "text/plain"},
        "filesize": {"filesize": TWO_AND_A_BIT + 1},
        "filesize-and-blocknum": {"filesize": 4 * BLOCK_LENGTH, "blocknum": 4},
        "unknown-size": {"filesize": None, "blocknum": None},
    },
    why="BLOCK says in full what it is a block of, so that a mix-up in the sender is found before it is stored.",
)
def agreement(trial: Trial, changes: dict[str, Any]) -> None:
    """BLOCK that says something else than its OPEN."""
    peer, sample = begun(trial)
    peer.say(1, forge.unjudged(sample.head(0, ends=False), **changes), b"x")
    refused_stream(peer)


@cases.table(
    "filetype/{}",
    "BLK-021",
    {"not-ascii": "image/jpég", "control": "text/plain\n", "delete": "text/\x7f", "256-bytes": "a" * 256},
    why="A filetype ends in headers of other protocols, where a line break is somebody else's command.",
)
def bad_filetype(trial: Trial, filetype: str) -> None:
    """OPEN with a filetype that is not printable ASCII, or too long."""
    peer, sample = trial.dial(), trial.sample()
    peer.opened(1)
    peer.send(forge.frame(1, forge.unjudged(sample.open(), filetype=filetype)))
    refused_stream(peer)


@cases.table(
    "filetype/{}",
    "BLK-021 LST-006",
    {"empty": "", "255-bytes": "a/" + "b" * 253, "odd": "  not; a type ~"},
    why="A filetype decides nothing, so nothing else is demanded of it.",
)
def good_filetype(trial: Trial, filetype: str) -> None:
    """An unusual filetype is kept; an empty one may be answered by anything."""
    peer, sample = trial.dial(), trial.sample(10, filetype=filetype)
    moves.brief(peer, sample)
    item = moves.stat(peer, sample.filename, 3)
    require(
        item is not None and (not filetype or item.filetype == filetype),
        "the filetype is not kept",
        got=str(item),
    )

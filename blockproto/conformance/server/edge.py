"""EDGE: what readers of the spec had to ask, one case for each answer, and what happens when messages cross."""

from __future__ import annotations

import struct

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import Closed, Failed, require
from .blk import TWO_AND_A_BIT, begun, refused_stream
from .crd import LEAST

cases = Chapter("edge", Side.SERVER)

ONES = 2**32 - 1
ROUNDS = 20


# ---- numbers and positions


@cases.add(
    "frm/all-ones-of-a-u32-is-a-number",
    "FRM-015 BLK-002",
    why="Only the layout tables say where a number stands for nothing.",
)
def all_ones(trial: Trial) -> None:
    """next_s 2^32 − 1 is a promise; a blockno of 2^32 − 1 is a block that the file has not."""
    peer, sample = begun(trial)
    peer.say(0, wire.Ping(b"all ones", ONES))
    peer.wait_answer(b"all ones")
    peer.say(1, forge.unjudged(sample.head(0), blockno=ONES, position=ONES * BLOCK_LENGTH), b"")
    refused_stream(peer, Code.BAD_FACTS)


@cases.add(
    "res/position-of-a-pipe-that-has-ended",
    "RES-016 BLK-003 LST-005",
    why="A client shows how many bytes are safe; a MiB of a file of five bytes is a lie.",
)
def position_of_a_pipe(trial: Trial) -> None:
    """Unknown size, one block of five bytes held: position is 5 in ACK, in OPENED, and in the list of uploads."""
    peer, sample = begun(trial, 5, unknown=True)
    moves.send_block(peer, sample, 0)
    peer.expect_acked(1, 0)
    require(
        peer.held[1].position in (0, 5), "ACK counts bytes that nobody sent", got=str(peer.held[1].position)
    )
    again = sample.with_(attempt=sample.attempt + 1)
    opened = moves.begin(peer, again, 3)
    require(opened.position == 5, "OPENED counts bytes that nobody sent", got=str(opened))
    item = _upload_item(peer, sample, 5)
    require(item.position == 5, "the list counts bytes that nobody sent", got=str(item))
    moves.commit(peer, again, 3)


def _upload_item(peer: Peer, sample: Sample, stream: int) -> wire.UploadItem:
    found = _upload_items(peer, stream)
    for item in found:
        if item.sourceid == sample.sourceid:
            return item
    raise Failed("an unfinished upload with a held block is not listed", clause="BP1-LST-005")


def _upload_items(peer: Peer, stream: int) -> list[wire.UploadItem]:
    """Every unfinished upload, page after page."""
    items: list[wire.UploadItem] = []
    cursor = ""
    while True:
        peer.say(stream, wire.List(wire.ListKind.UPLOADS, "", cursor=cursor))
        result = peer.expect(wire.Result, stream)
        items += [item for item in result.items if isinstance(item, wire.UploadItem)]
        cursor = result.cursor
        stream += 2
        if not cursor:
            return items


@cases.add(
    "lst/an-upload-without-a-byte-is-not-listed",
    "LST-005 RES-004",
    why="OPEN creates nothing; a list full of uploads that nobody began hides the others.",
)
def nothing_is_listed(trial: Trial) -> None:
    """OPEN and OPENED, no byte: the list of uploads does not name it, while the stream is open and after."""
    peer, sample = begun(trial)
    other = trial.dial()
    for stream in (1, 101):
        named = [item for item in _upload_items(other, stream) if item.sourceid == sample.sourceid]
        require(not named, "an upload of which nothing is there is listed", got=str(named))
        peer.close()


@cases.add(
    "blk/behind-bytes-that-another-stream-owns",
    "RES-013 BLK-008 BLK-013",
    why="Bytes under way on another stream are no prefix: they may end anywhere.",
    layer=2,
)
def behind_others_bytes(trial: Trial) -> None:
    """Stream 1 has sent 1,000 bytes of block 0; stream 3 goes on behind them: DIGEST_MISMATCH; from the start it works."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0, stop=1_000)
    moves.begin(peer, sample, 3)
    moves.send_block(peer, sample, 0, 3, start=1_000)
    peer.expect_error(Code.DIGEST_MISMATCH, stream=3, scope=Scope.BLOCK)
    moves.send_block(peer, sample, 0, 3)
    peer.expect_acked(3, 0)
    moves.send_blocks(peer, sample, 3, 1, 2)
    peer.say(3, sample.commit())
    moves.expect_committed(peer, sample, 3)


@cases.add(
    "blk/the-former-owner-s-end-proves-nothing",
    "BLK-013",
    why="Its bytes were dropped when the block got another owner; it is neither at fault nor proved.",
    layer=2,
)
def former_owners_end(trial: Trial) -> None:
    """Stream 3 begins the block that stream 1 is in the middle of; stream 1 goes on to its END: no error, no ACK by it."""
    peer, sample = begun(trial, 300_000)
    moves.send_block(peer, sample, 0, stop=100_000)
    moves.begin(peer, sample, 3)
    moves.send_block(peer, sample, 0, 3, stop=50_000)
    peer.ping()
    peer.say(1, sample.piece(0, 100_000, ends=True), sample.block(0)[100_000:])
    for heard in peer.ping():
        raise peer.unexpected("nothing but the answer to PING", heard)
    peer.say(3, sample.piece(0, 50_000, ends=True), sample.block(0)[50_000:])
    peer.expect_acked(3, 0)
    moves.commit(peer, sample, 3)


# ---- names and requests


@cases.add(
    "com/a-parent-that-is-a-file-at-open",
    "COM-028 COM-012",
    why="A gigabyte sent for nothing: whether the name can be is known before the first byte.",
)
def parent_is_a_file(trial: Trial) -> None:
    """OPEN of a name below a file: NOT_PERMITTED now, or at the latest when it is committed."""
    peer, file = trial.dial(), trial.sample(10)
    moves.brief(peer, file)
    below = trial.sample(TWO_AND_A_BIT, filename=f"{file.filename}/below.bin")
    peer.say(3, below.open())
    heard = peer.expect_any(3)
    if isinstance(heard.message, wire.Opened):
        trial.lenient("NOT_PERMITTED comes only after all bytes")
        moves.send_blocks(peer, below, 3)
        peer.say(3, below.commit())
        heard = peer.expect_any(3)
    peer.judge_error(heard, Code.NOT_PERMITTED)
    peer.ping()


@cases.table(
    "fet/{}-without-a-version",
    "FET-009",
    {"held": {"held": ((0, 1),)}, "prefixes": {"prefixes": ((1, 5),)}},
    why="Blocks of nobody knows which version, joined with those of this one, are two files in one.",
)
def held_of_no_version(trial: Trial, names: dict[str, object]) -> None:
    """FETCH with version zeros that names what it has: refused."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    moves.upload(peer, sample)
    peer.say(3, forge.unjudged(wire.Fetch(sample.filename), **names))
    refused_stream(peer, Code.BAD_FACTS, 3)


@cases.add(
    "fet/closed-right-behind-committed",
    "END-012 FET-012",
    why="Nothing answers the fetcher's COMMITTED: whoever waited for something would wait for ever.",
)
def closed_behind_committed(trial: Trial) -> None:
    """A fetcher says COMMITTED and closes at once; nothing of it is seen by others."""
    peer, sample = trial.dial(), trial.sample(3_000)
    moves.upload(peer, sample)
    other = trial.dial()
    moves.fetch(other, 1, wire.Fetch(sample.filename), sample)
    other.close()
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)


@cases.add(
    "lst/exact-without-a-name",
    "LST-006 NAM-002 NAM-004",
    why="The served folder is no entry of itself.",
)
def exact_without_a_name(trial: Trial) -> None:
    """LIST of the entry without a name: NAME_REFUSED; without EXACT it is the served folder."""
    peer = trial.dial()
    peer.say(1, wire.List(wire.ListKind.FILES, "", exact=True))
    refused_stream(peer, Code.NAME_REFUSED)
    peer.say(3, wire.List(wire.ListKind.FILES, "", limit=1))
    peer.expect(wire.Result, 3)


@cases.add(
    "blk/folder-that-is-there-already",
    "BLK-016 FET-001",
    why="A client sends its folders again at each run, to give them their times.",
)
def folder_again(trial: Trial) -> None:
    """The same folder twice, from two uploads: COMMITTED each time, and it has no file id in the list."""
    peer, folder = trial.dial(), trial.sample(0, filetype=moves.FILETYPE_FOLDER)
    moves.brief(peer, folder)
    again = folder.with_(sourceid=trial.sourceid())
    peer.say(3, again.brief())
    committed = moves.expect_committed(peer, again, 3)
    require(committed.stored_as == folder.filename, "the folder got another name", got=str(committed))
    peer.say(5, wire.Fetch("", file_id=committed.file_id))
    peer.expect_error(Code.NOT_PERMITTED, Code.UNKNOWN_FILE, stream=5)
    item = moves.stat(peer, folder.filename, 7)
    require(item is not None and item.kind == wire.EntryKind.FOLDER, "the folder is not there", got=str(item))


@cases.table(
    "blk/mode-has-nine-bits-{}",
    "BLK-015 FRM-014",
    {"set-user-id": 0o4755, "everything": 0xFFFFFFFF},
    why="A bit too many and somebody's upload runs as somebody else.",
    layer=5,
)
def nine_bits(trial: Trial, mode: int) -> None:
    """MODE with bits above the low nine: they are ignored, in the list and in a download."""
    peer, sample = trial.dial(), trial.sample(100)
    raw = peer.frame(1, sample.brief(), sample.content)
    peer.send(forge.rebuilt(raw, tail=forge.tlv(2, mode.to_bytes(4, "big"))))
    moves.expect_committed(peer, sample)
    peer.say(3, wire.List(wire.ListKind.FILES, sample.filename, exact=True))
    said = peer.expect_heard(wire.Result, 3).raw
    at = said.index(struct.pack(">BQ", int(wire.EntryKind.FILE), sample.filesize)) + 17  # behind mtime_ns
    listed = int.from_bytes(said[at : at + 4], "big")
    require(listed <= 0o777, "the list says more than nine bits", got=oct(listed))
    require(listed & 0o700 == mode & 0o700, "the low nine bits are not those of MODE", got=oct(listed))


# ---- what crosses


@cases.add(
    "res/takeover-with-the-first-bytes",
    "RES-006 RES-010",
    why="The first bytes of an upload make its files; the next attempt may meet them when they are half made.",
    layer=2,
)
def takeover_with_the_first_bytes(trial: Trial) -> None:
    """The first bytes of an attempt, and at once a greater one on another connection: OPENED, SUPERSEDED. 20 times."""
    first, second = trial.dial(), trial.dial()
    for stream in range(1, 1 + 2 * ROUNDS, 2):
        sample = trial.sample(TWO_AND_A_BIT)
        newer = sample.with_(attempt=sample.attempt + 1)
        moves.begin(first, sample, stream)
        first.say(stream, sample.head(0, ends=False), sample.content[:100])
        moves.begin(second, newer, stream)
        first.expect_error(Code.SUPERSEDED, stream=stream, current=newer.attempt)
        second.say(stream, wire.Cancel(int(Code.CANCELLED), discard=True))
        second.expect_error(Code.CANCELLED, stream=stream)


@cases.add(
    "res/open-beside-the-commit",
    "RES-008 COM-007 COM-010",
    why="A client that lost its connection after COMMIT opens the upload again while it is being committed.",
    layer=2,
)
def open_beside_the_commit(trial: Trial) -> None:
    """COMMIT, and at once OPEN with the same attempt on another connection: both hear of the same one file. 20 times."""
    first, second = trial.dial(), trial.dial()
    for stream in range(1, 1 + 2 * ROUNDS, 2):
        sample = trial.sample(5)
        moves.begin_one(first, sample, stream)
        first.say(stream, sample.commit())
        second.say(stream, sample.open())
        answer = second.expect_heard(object, stream).message
        if isinstance(answer, wire.Opened):
            answer = second.expect(wire.Committed, stream)
        committed = moves.expect_committed(first, sample, stream)
        require(answer == committed, "one upload became two files", got=f"{committed} and {answer}")


@cases.add(
    "blk/the-same-brief-file-twice-at-once",
    "COM-010 BLK-019",
    why="A client that lost its connection sends a small file again while the first one is being stored.",
    layer=2,
)
def brief_twice_at_once(trial: Trial) -> None:
    """The same brief file on two connections at once: the same COMMITTED on both. 20 times."""
    first, second = trial.dial(), trial.dial()
    for stream in range(1, 1 + 2 * ROUNDS, 2):
        sample = trial.sample(5)
        moves.say_brief(first, sample, stream)
        moves.say_brief(second, sample, stream)
        committed = moves.expect_committed(first, sample, stream)
        again = moves.expect_committed(second, sample, stream)
        require(again == committed, "one upload became two files", got=f"{committed} and {again}")


@cases.table(
    "str/refused-behind-{}",
    "STR-015 FET-014 RES-012 STR-008",
    {"fetch": "fetch", "open": "open", "open-and-a-bad-block": "block"},
    why="A client may change its mind before it was answered; a server that is in the middle of answering must not fall.",
    layer=2,
)
def crossing(trial: Trial, what: str) -> None:
    """The request and what ends it in one segment: the server answers, or drops its answer, and lives."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    moves.upload(peer, sample)
    new = trial.sample(TWO_AND_A_BIT)
    cancelled = wire.Error(int(Code.CANCELLED), int(Scope.STREAM), False)
    bad = forge.unjudged(new.head(0), blockno=7, position=7 * BLOCK_LENGTH)
    pairs: dict[str, tuple[wire.Message, wire.Message]] = {
        "fetch": (wire.Fetch(sample.filename), cancelled),
        "open": (new.open(), cancelled),
        "block": (new.open(), bad),
    }
    for stream in range(3, 33, 2):
        peer.send(b"".join(peer.frame(stream, message) for message in pairs[what]))
    peer.say(0, wire.Ping(b"crossing", 0))
    peer.wait_answer(b"crossing", (wire.Open, wire.Opened, wire.Block, wire.Piece, wire.Commit, wire.Error))
    other = trial.dial()
    moves.fetch(other, 1, wire.Fetch(sample.filename), sample)
    moves.upload(other, new.with_(attempt=new.attempt + 1), 3)


@cases.add(
    "end/goaway-with-nothing-open",
    "END-008",
    why="A client that goes and has nothing under way need not be waited for.",
)
def goaway_with_nothing_open(trial: Trial) -> None:
    """GOAWAY on a connection without streams: the server closes, before grace_ms."""
    peer = trial.dial()
    peer.say(0, wire.GoAway(int(Code.GOING_AWAY), 3_600_000, 0, "bye"))
    peer.expect_closed()


@cases.add(
    "end/no-block-is-begun-after-goaway",
    "END-008",
    why="A client that goes waits for the block that is under way, not for the rest of the film.",
    layer=2,
)
def no_block_after_goaway(trial: Trial) -> None:
    """GOAWAY in the middle of a download: the block that is being sent may end, none begins."""
    peer, sample = trial.dial(hello=LEAST), trial.sample(3 * BLOCK_LENGTH)
    uploader = trial.dial()
    moves.upload(uploader, sample)
    peer.grants = False
    peer.say(1, wire.Fetch(sample.filename))
    while peer.came(1) < 100_000:
        peer.hear("BLOCK or PIECE")
        peer.grant(0, 0)
    peer.say(0, wire.GoAway(int(Code.GOING_AWAY), 3_600_000, 0, "bye"))
    peer.ping(among=(wire.Open, wire.Block, wire.Piece))
    peer.grant(0, 4 * BLOCK_LENGTH)
    peer.grant(1, 4 * BLOCK_LENGTH)
    try:
        while True:
            heard = peer.hear("the end of the block, and of the connection")
            if isinstance(heard.message, wire.Block):
                raise Failed("a block begins after GOAWAY", got=str(heard), clause="BP1-END-008")
            if isinstance(heard.message, wire.Error):
                return
    except Closed:
        return


@cases.table(
    "err/damaged-{}",
    "ERR-011 ERR-002",
    {"block-that-is-not-in-the-file": 77, "block-without-a-number": None},
    why="A server that takes any number for one of its blocks sends what nobody asked for, or falls.",
)
def damaged_out_of_range(trial: Trial, blockno: int | None) -> None:
    """DIGEST_MISMATCH of a fetcher about a block that was not sent: BAD_FACTS ends the stream, and nothing else."""
    uploader, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    moves.upload(uploader, sample)
    peer = trial.dial(hello=LEAST)
    peer.grants = False
    peer.say(1, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 1)
    peer.say(1, wire.Error(int(Code.DIGEST_MISMATCH), int(Scope.BLOCK), True, "damaged", blockno=blockno))
    while isinstance((heard := peer.expect_any(1)).message, (wire.Block, wire.Piece)):
        peer.grant(0, 0)
    peer.judge_error(heard, Code.BAD_FACTS)
    peer.ping()
    moves.fetch(uploader, 3, wire.Fetch(sample.filename), sample)

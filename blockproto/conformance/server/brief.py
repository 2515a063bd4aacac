"""BLK, files without OPEN: brief streams and folders."""

from __future__ import annotations

from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code
from .. import forge, moves
from ..case import Chapter, Side
from ..target import Trial
from ..verdicts import require
from .blk import begun, refused_stream

cases = Chapter("blk/brief", Side.SERVER)
FOLDER = moves.FILETYPE_FOLDER


@cases.table(
    "{}",
    "BLK-014",
    {
        "one-byte": (1, None),
        "65536-bytes": (65_536, None),
        "a-whole-block-in-pieces": (BLOCK_LENGTH, 65_536),
        "in-small-pieces": (20_000, 4_096),
    },
    why="Most files are small: one frame, one round trip.",
    layer=2,
)
def brief(trial: Trial, what: tuple[int, int | None]) -> None:
    """A file without OPEN, in one frame or in pieces; the answer is COMMITTED."""
    filesize, piece_length = what
    peer, sample = trial.dial(), trial.sample(filesize)
    most = piece_length or filesize
    for at in range(0, filesize, most):
        payload = sample.content[at : at + most]
        last = at + len(payload) == filesize
        message = (
            sample.piece(0, at, ends=last, commit=last) if at else sample.head(0, ends=last, commit=last)
        )
        while peer.room(1) < len(payload):
            peer.wait_room(1)
        peer.say(1, message, payload)
    moves.expect_committed(peer, sample)
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)


@cases.table(
    "refused/{}",
    "BLK-014",
    {
        "unknown-size": {"filesize": None, "blocknum": None},
        "two-blocks": {"filesize": BLOCK_LENGTH + 1, "blocknum": 2},
        "blockno-1": {"filesize": 2 * BLOCK_LENGTH, "blocknum": 2, "blockno": 1, "position": BLOCK_LENGTH},
        "position-in-the-middle": {"position": 1},
    },
    why="A brief stream is for one block; what is longer needs OPEN, or it could not be resumed.",
)
def refused(trial: Trial, changes: dict[str, Any]) -> None:
    """The first BLOCK of a stream is not that of a brief file."""
    peer, sample = trial.dial(), trial.sample(100)
    peer.say(1, forge.unjudged(sample.head(0, ends=False), **changes), b"x")
    refused_stream(peer)


@cases.add(
    "refused/end-without-commit",
    "BLK-014",
    why="A block that is complete in an upload that nobody opened could never be asked for.",
)
def end_without_commit(trial: Trial) -> None:
    """END without COMMIT on a brief stream."""
    peer, sample = trial.dial(), trial.sample(100)
    peer.say(1, sample.head(0), sample.content)
    refused_stream(peer)
    moves.require_absent(trial, sample.filename, "a brief file without COMMIT is stored")


@cases.add(
    "refused/second-block",
    "BLK-014",
    why="There is exactly one BLOCK; a second one would begin the file again.",
)
def second_block(trial: Trial) -> None:
    """A second BLOCK on a brief stream."""
    peer, sample = trial.dial(), trial.sample(100)
    peer.say(1, sample.head(0, ends=False), sample.content[:10])
    peer.say(1, sample.head(0, ends=False), sample.content[:10])
    refused_stream(peer)


@cases.table(
    "commit-flag/{}",
    "BLK-017",
    {"without-end-on-block": "block", "without-end-on-piece": "piece"},
    why="The file cannot be complete in a frame that does not complete its block.",
)
def commit_without_end(trial: Trial, kind: str) -> None:
    """COMMIT without END."""
    peer, sample = trial.dial(), trial.sample(100)
    head = forge.frame(1, sample.head(0, ends=False), sample.content[:50])
    piece = forge.frame(1, sample.piece(0, 50, ends=False), sample.content[50:])
    peer.opened(1)
    peer.count(1, 100)
    peer.send(
        forge.rebuilt(head, flags=wire.COMMIT)
        if kind == "block"
        else head + forge.rebuilt(piece, flags=wire.COMMIT)
    )
    peer.expect_refusal(Code.MALFORMED)


@cases.add(
    "commit-flag/on-a-stream-with-open",
    "BLK-017 STR-005",
    why="With OPEN, COMMIT is a message: it says root and sizes, which a flag cannot.",
)
def commit_flag_with_open(trial: Trial) -> None:
    """The flag COMMIT with END on a stream that was begun with OPEN."""
    peer, sample = begun(trial, 100)
    peer.say(1, sample.brief(), sample.content)
    peer.expect_refusal(Code.UNEXPECTED)


@cases.add(
    "facts/tlvs-are-kept",
    "BLK-015 FET-003",
    why="A photo whose time is that of its upload is in the wrong year of every album.",
)
def tlvs_are_kept(trial: Trial) -> None:
    """MTIME and MODE of a brief file."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.brief(peer, sample, mtime_ns=1_234_567_890_123_456_789, mode=0o640)
    item = moves.stat(peer, sample.filename, 3)
    require(
        item is not None and item.mtime_ns == 1_234_567_890_123_456_789, "MTIME is not kept", got=str(item)
    )
    require(item is not None and item.mode & 0o777 == 0o640, "MODE is not kept", got=str(item))


@cases.add(
    "facts/tlvs-of-block-are-ignored-with-open",
    "BLK-015 RES-007",
    why="Two places for one fact need an order of precedence, or implementations choose their own.",
)
def tlvs_of_block(trial: Trial) -> None:
    """MTIME in BLOCK on a stream with OPEN says nothing: OPEN said it."""
    peer, sample = trial.dial(), trial.sample(10)
    moves.begin(peer, sample, mtime_ns=1_000_000_000_000_000_000)
    peer.say(1, sample.head(0, mtime_ns=5, mode=0o700), sample.content)
    moves.commit(peer, sample)
    item = moves.stat(peer, sample.filename, 3)
    require(
        item is not None and item.mtime_ns == 10**18, "BLOCK's MTIME replaced that of OPEN", got=str(item)
    )


@cases.table(
    "facts/bad-{}",
    "FRM-019 BLK-015",
    {"priority": (9, b"\3"), "priority-255": (9, b"\xff")},
    why="A number that chooses among three meanings has no fourth one.",
)
def bad_choice(trial: Trial, what: tuple[int, bytes]) -> None:
    """A brief file whose TLV has a number without a meaning."""
    peer, sample = trial.dial(), trial.sample(10)
    raw = forge.frame(1, sample.brief(), sample.content)
    peer.opened(1)
    peer.count(1, 10)
    peer.send(forge.rebuilt(raw, tail=forge.tlv(*what)))
    peer.expect_refusal(Code.MALFORMED)


@cases.table(
    "if-exists/{}",
    "BLK-015 COM-013",
    {"absent": None, "refuse": 1, "replace": 2},
    why="The default keeps both: a file that nobody mentioned is never lost.",
    layer=2,
)
def if_exists(trial: Trial, how: int | None) -> None:
    """A brief file whose name is taken."""
    peer, first = trial.dial(), trial.sample(100)
    second = first.with_(sourceid=trial.sourceid(), seed=first.seed + 1)
    moves.brief(peer, first)
    moves.say_brief(peer, second, 3, if_exists=how)
    if how == 1:
        refused_stream(peer, Code.FILE_EXISTS, 3)
        kept, name = first, first.filename
    else:
        committed = moves.expect_committed(peer, second, 3)
        kept, name = second, committed.stored_as
        require(
            (name == first.filename) is (how == 2), "the file is not stored under the right name", got=name
        )
    moves.fetch(peer, 5, wire.Fetch(name), kept)
    if how != 2:
        moves.fetch(peer, 7, wire.Fetch(first.filename), first)


@cases.table(
    "interrupted/{}",
    "BLK-018",
    {"closed": False, "reset": True},
    why="Half a small file is not worth remembering, and a million of them fill a ledger.",
    layer=2,
)
def interrupted(trial: Trial, reset: bool) -> None:
    """The connection ends in the middle of a brief file: nothing stays of it."""
    peer, sample = trial.dial(), trial.sample(60_000)
    peer.say(1, sample.head(0, ends=False), sample.content[:30_000])
    peer.ping()
    if reset:
        peer.reset()
    else:
        peer.close()
    other = trial.dial()
    moves.require_absent(trial, sample.filename, "half a brief file is stored")
    require(moves.unfinished(other, sample.sourceid, 3) is None, "half a brief file is listed as an upload")


@cases.add(
    "again/same-file",
    "BLK-019 COM-010",
    why="A client that lost the answer sends the same again; a second copy would be its thanks.",
    layer=2,
)
def same_file_again(trial: Trial) -> None:
    """The same brief file on another connection: the same COMMITTED, nothing stored twice."""
    sample = trial.sample(500)
    first = moves.brief(trial.dial(), sample)
    second = moves.brief(trial.dial(), sample)
    require(
        (second.file_id, second.stored_as) == (first.file_id, first.stored_as),
        "the same brief file again got another file",
        expected=str(first),
        got=str(second),
    )


@cases.add(
    "again/other-bytes",
    "COM-010 BLK-019",
    why="One sourceid is one file; other bytes under it are a mistake that must be told.",
)
def other_bytes_again(trial: Trial) -> None:
    """The sourceid of a brief file with other bytes."""
    peer, sample = trial.dial(), trial.sample(500)
    moves.brief(peer, sample)
    moves.say_brief(peer, sample.with_(seed=sample.seed + 1), 3)
    refused_stream(peer, Code.SOURCE_CHANGED, 3)
    moves.fetch(peer, 5, wire.Fetch(sample.filename), sample)


@cases.add(
    "again/ends-an-unfinished-upload",
    "BLK-019 COM-007",
    why="A client that forgot its upload and sends the file briefly has finished it.",
    layer=2,
)
def ends_an_unfinished_upload(trial: Trial) -> None:
    """An upload is open on another connection; the brief file's commit ends it with COMMITTED."""
    first, second, sample = trial.dial(), trial.dial(), trial.sample(60_000)
    moves.begin(first, sample)
    moves.send_block(first, sample, 0, stop=20_000)
    first.ping()
    moves.brief(second, sample)
    moves.expect_committed(first, sample)
    require(moves.unfinished(second, sample.sourceid, 3) is None, "the upload is still listed as unfinished")


@cases.add(
    "same-connection/many-beside-each-other",
    "STR-010 BLK-014",
    why="Thousands of small files go without waiting for one another.",
    layer=2,
)
def many(trial: Trial) -> None:
    """200 brief files at once; each has its answer."""
    peer = trial.dial()
    samples = {2 * no + 1: trial.sample(200) for no in range(200)}
    for stream, sample in samples.items():
        moves.say_brief(peer, sample, stream)
    while samples:
        heard = peer.expect_heard(wire.Committed)
        peer.compare(heard, root=samples.pop(heard.stream).root)


# ---- folders


@cases.table(
    "folder/{}",
    "BLK-016 LST-006",
    {"brief": True, "with-open": False},
    why="An empty folder is part of what people send.",
)
def folder(trial: Trial, is_brief: bool) -> None:
    """A folder is made, and listed as one."""
    peer, sample = trial.dial(), trial.sample(0, filetype=FOLDER)
    if is_brief:
        moves.brief(peer, sample)
    else:
        moves.upload(peer, sample)
    item = moves.stat(peer, sample.filename, 3)
    require(item is not None and item.kind == wire.EntryKind.FOLDER, "the folder is not there", got=str(item))


@cases.table(
    "folder/there-already-and-if-exists-{}",
    "BLK-016",
    {"keep": 0, "refuse": 1, "replace": 2},
    why="Two people who send the same folder mean one folder, with what is in it.",
)
def folder_again(trial: Trial, how: int) -> None:
    """A folder whose name is a folder's: that one, with its files, whatever if_exists says."""
    peer, folder_ = trial.dial(), trial.sample(0, filetype=FOLDER)
    moves.brief(peer, folder_)
    inside = trial.sample(10, filename=f"{folder_.filename}/inside.bin")
    moves.brief(peer, inside, 3)
    again = folder_.with_(sourceid=trial.sourceid())
    committed = moves.brief(peer, again, 5, if_exists=how)
    require(committed.stored_as == folder_.filename, "the folder got another name", got=committed.stored_as)
    moves.fetch(peer, 7, wire.Fetch(inside.filename), inside)


@cases.table(
    "folder/with-{}",
    "BLK-016",
    {"bytes": (10, False), "bytes-and-open": (10, True), "unknown-size": (None, True)},
    why="A folder has no bytes; what is sent as one is a mistake of the sender's.",
)
def folder_with_bytes(trial: Trial, what: tuple[int | None, bool]) -> None:
    """A folder with a size."""
    filesize, with_open = what
    peer, sample = trial.dial(), trial.sample(filesize or 0, filetype=FOLDER, unknown=filesize is None)
    if with_open:
        peer.say(1, sample.open())
    else:
        moves.say_brief(peer, sample)
    refused_stream(peer)

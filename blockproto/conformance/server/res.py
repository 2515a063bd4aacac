"""RES: open, resume, attempt; prefixes and acknowledgement."""

from __future__ import annotations

import time
from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code
from .. import forge, moves
from ..case import Chapter, Side
from ..target import Trial
from ..verdicts import require
from .blk import TWO_AND_A_BIT, begun, refused_stream

cases = Chapter("res", Side.SERVER)


# ---- an upload and its name


@cases.add(
    "sourceid/no-credential",
    "RES-001 RES-006",
    why="In CORE there is one principal; an upload that belongs to its connection could not be resumed.",
    layer=2,
)
def no_credential(trial: Trial) -> None:
    """What one connection began, another finishes."""
    sample = trial.sample(TWO_AND_A_BIT)
    first = trial.dial()
    moves.begin_one(first, sample)
    first.close()
    second = trial.dial()
    opened = moves.begin(second, sample.with_(attempt=sample.attempt + 1))
    require(opened.position == BLOCK_LENGTH, "another connection does not get what is held", got=str(opened))
    moves.send_blocks(second, sample, 1, 1, 2)
    moves.commit(second, sample)


@cases.add(
    "sourceid/zeros",
    "RES-003 BLK-020",
    why="Who has no name for an upload gets one; two such uploads are two.",
    layer=2,
)
def zeros(trial: Trial) -> None:
    """Two uploads with a sourceid of zeros; BLOCK repeats the zeros or the id that was told."""
    peer, first = trial.dial(), trial.sample(1_000, sourceid=bytes(16))
    second = first.with_(filename=trial.name())
    ids = [moves.begin(peer, one, stream).sourceid for stream, one in ((1, first), (3, second))]
    require(
        bytes(16) not in ids and ids[0] != ids[1],
        "sourceids that were chosen are zeros or equal",
        got=str(ids),
    )
    peer.say(1, first.head(0), first.content)
    told = second.with_(sourceid=ids[1])
    peer.say(3, told.head(0), told.content)
    peer.say(1, first.commit(sourceid=ids[0]))
    peer.expect(wire.Committed, 1, among=True, sourceid=ids[0], root=first.root)
    moves.commit(peer, told, 3)


@cases.add(
    "sourceid/zeros-on-a-brief-stream",
    "RES-003 BLK-014",
    why="Two small files without a name of their own must not become one.",
)
def zeros_brief(trial: Trial) -> None:
    """Two brief files with a sourceid of zeros: both are stored."""
    peer, first = trial.dial(), trial.sample(100, sourceid=bytes(16))
    second = first.with_(filename=trial.name(), seed=first.seed + 1)
    ids = set()
    for stream, one in ((1, first), (3, second)):
        moves.say_brief(peer, one, stream)
        ids.add(peer.expect(wire.Committed, stream, root=one.root).sourceid)
    require(
        len(ids) == 2 and bytes(16) not in ids, "sourceids that were chosen are zeros or equal", got=str(ids)
    )


@cases.add(
    "open/creates-nothing-that-stays",
    "RES-004 LST-005",
    why="Whoever opens and goes must not leave anything behind that somebody has to clean up.",
)
def creates_nothing(trial: Trial) -> None:
    """OPEN, then the end of the connection: no upload is listed, and another size may be opened."""
    sample = trial.sample(5_000)
    first = trial.dial()
    moves.begin(first, sample)
    first.close()
    second = trial.dial()
    require(moves.unfinished(second, sample.sourceid, 1) is None, "an upload without a byte is listed")


# ---- what OPEN is judged by


@cases.table(
    "order/{}",
    "RES-005",
    {
        "name-before-facts": ({"filename": "../x", "blocknum": 9}, Code.NAME_REFUSED),
        "facts-before-the-receipt": ({"blocknum": 9}, Code.BAD_FACTS),
    },
    why="One order for all servers, or clients would have to know all orders.",
)
def order(trial: Trial, what: tuple[dict[str, Any], Code]) -> None:
    """OPEN of a committed upload that breaks other rules too: name, then facts, then the receipt."""
    changes, code = what
    peer, sample = trial.dial(), trial.sample(5_000)
    moves.upload(peer, sample)
    peer.opened(3)
    peer.send(forge.frame(3, forge.unjudged(sample.open(), **changes)))
    if (
        code is Code.NAME_REFUSED
    ):  # the facts of a message are judged with its layout, which may come first (FRM-011)
        peer.expect_error(code, Code.BAD_FACTS, stream=3)
    else:
        peer.expect_error(code, stream=3)
    peer.ping()


@cases.add(
    "order/attempt-before-size",
    "RES-005 RES-006 ERR-009",
    why="Who is told SOURCE_CHANGED starts anew; who is told SUPERSEDED leaves it to the newer one.",
)
def attempt_before_size(trial: Trial) -> None:
    """A smaller attempt and another size: SUPERSEDED."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0)
    peer.expect_acked(1, 0)
    other = sample.with_(attempt=sample.attempt - 1, filesize=BLOCK_LENGTH, seed=1)
    peer.say(3, other.open())
    peer.expect_error(Code.SUPERSEDED, stream=3, current=sample.attempt)


@cases.add(
    "order/a-refused-open-changes-nothing",
    "RES-005 RES-007",
    why="An OPEN that is refused and has taken the upload over all the same lets anybody stop it.",
    layer=2,
)
def refused_changes_nothing(trial: Trial) -> None:
    """A greater attempt with another size is refused; the first stream goes on, and its attempt is still the upload's."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0)
    peer.expect_acked(1, 0)
    other = sample.with_(attempt=sample.attempt + 5, filesize=TWO_AND_A_BIT + 1)
    peer.say(3, other.open())
    peer.expect_error(Code.SOURCE_CHANGED, stream=3)
    opened = moves.begin(peer, sample, 5)
    require(opened.attempt == sample.attempt, "a refused OPEN changed the attempt", got=str(opened.attempt))
    moves.send_blocks(peer, sample, 1, 1, 2)
    peer.say(1, sample.commit())
    moves.expect_committed(peer, sample, 1, among=True)


@cases.table(
    "changed/{}",
    "RES-007",
    {"filename": "name", "filesize": "size", "blocknum-too": "blocks", "to-unknown": "unknown"},
    why="Blocks of one file continued under the facts of another are a file that nobody has.",
)
def changed(trial: Trial, what: str) -> None:
    """OPEN of a begun upload with other facts."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0)
    peer.expect_acked(1, 0)
    other = {
        "name": sample.with_(filename=trial.name()),
        "size": sample.with_(filesize=TWO_AND_A_BIT - 1),
        "blocks": sample.with_(filesize=BLOCK_LENGTH),
        "unknown": sample.with_(unknown=True),
    }[what]
    peer.say(3, other.with_(attempt=sample.attempt + 1).open())
    refused_stream(peer, Code.SOURCE_CHANGED, 3)


@cases.add(
    "facts/of-the-last-open",
    "RES-007 COM-001",
    why="The time of a file is what the sender said last, its type what it said first.",
    layer=2,
)
def facts_of_the_last_open(trial: Trial) -> None:
    """MTIME of the second OPEN, filetype of the first."""
    peer, sample = trial.dial(), trial.sample(2_000, filetype="text/x-first")
    moves.begin(peer, sample, mtime_ns=10**18)
    moves.send_block(peer, sample, 0, stop=1_000)
    peer.ping()
    again = sample.with_(attempt=sample.attempt + 1, filetype="text/x-second")
    moves.begin(peer, again, 3, mtime_ns=2 * 10**18)
    peer.say(3, again.head(0), sample.content)
    peer.expect_error(Code.SUPERSEDED, stream=1)
    peer.say(3, sample.commit())
    moves.expect_committed(peer, sample, 3, among=True)
    item = moves.stat(peer, sample.filename, 5)
    require(
        item is not None and item.mtime_ns == 2 * 10**18, "MTIME is not that of the last OPEN", got=str(item)
    )
    require(
        item is not None and item.filetype == "text/x-first",
        "the filetype is not that of the first OPEN",
        got=str(item),
    )


@cases.table(
    "committed/open-with-{}",
    "RES-008 COM-010",
    {"a-smaller-attempt": -1, "the-same-attempt": 0, "a-greater-attempt": 1},
    why="A client that lost the answer opens again, and must hear that it is done.",
    layer=2,
)
def open_after_commit(trial: Trial, more: int) -> None:
    """OPEN of a committed upload is answered by the same COMMITTED at once."""
    sample = trial.sample(TWO_AND_A_BIT)
    first = moves.upload(trial.dial(), sample)
    peer = trial.dial()
    peer.say(1, sample.with_(attempt=sample.attempt + more).open())
    again = moves.expect_committed(peer, sample)
    require(
        (again.file_id, again.stored_as) == (first.file_id, first.stored_as),
        "the receipt names another file",
        expected=str(first),
        got=str(again),
    )


@cases.add(
    "committed/with-another-size",
    "RES-008",
    why="The sourceid of a finished file with another size is another file.",
)
def committed_other_size(trial: Trial) -> None:
    """OPEN of a committed upload with another filesize."""
    peer, sample = trial.dial(), trial.sample(5_000)
    moves.upload(peer, sample)
    peer.say(3, sample.with_(filesize=5_001).open())
    refused_stream(peer, Code.SOURCE_CHANGED, 3)


@cases.add(
    "committed/what-followed-open-is-dropped",
    "RES-008 RES-012 STR-008",
    why="A client that does not wait for OPENED has sent blocks already; they belong to nothing now.",
)
def followed_open(trial: Trial) -> None:
    """OPEN, a block and COMMIT at once, of a committed upload: one COMMITTED, the rest is dropped."""
    peer, sample = trial.dial(), trial.sample(5_000)
    moves.upload(peer, sample)
    peer.say(3, sample.open())
    peer.say(3, sample.head(0), sample.content)
    peer.say(3, sample.commit())
    moves.expect_committed(peer, sample, 3)
    require(not [one for one in peer.ping() if one.stream == 3], "something came on a stream after COMMITTED")


@cases.add(
    "opened/once-and-its-values",
    "RES-009 RES-016",
    why="OPENED is what a sender plans by.",
)
def opened_once(trial: Trial) -> None:
    """Sourceid, attempt, position 0, nothing held; the file_id is the same later and in COMMITTED."""
    peer, sample = trial.dial(), trial.sample(5_000)
    peer.say(1, sample.open())
    first = peer.expect(
        wire.Opened, 1, sourceid=sample.sourceid, attempt=sample.attempt, position=0, held=(), prefixes=()
    )
    require(peer.ping() == [], "something came after OPENED")
    second = moves.begin(peer, sample, 3)
    moves.send_block(peer, sample, 0, 3)
    committed = moves.commit(peer, sample, 3)
    require(first.file_id == second.file_id == committed.file_id, "file_id is not final from OPENED on")


# ---- attempts


@cases.add(
    "takeover/ends-the-older-stream",
    "RES-006 ERR-009",
    why="A phone that comes back over another network must not wait for the old connection to die.",
    layer=2,
)
def takeover(trial: Trial) -> None:
    """A greater attempt on a second connection: the first stream gets SUPERSEDED, its connection lives."""
    first, sample = begun(trial)
    moves.send_block(first, sample, 0)
    first.expect_acked(1, 0)
    second = trial.dial()
    newer = sample.with_(attempt=sample.attempt + 1)
    opened = moves.begin(second, newer)
    require(opened.attempt == newer.attempt, "OPENED names another attempt", got=str(opened.attempt))
    require(opened.position == BLOCK_LENGTH, "what is held got lost in the takeover", got=str(opened))
    first.expect_error(Code.SUPERSEDED, stream=1, current=newer.attempt)
    first.ping()
    moves.send_blocks(second, newer, 1, 1, 2)
    moves.commit(second, newer)


@cases.add(
    "takeover/late-piece-of-a-smaller-attempt",
    "RES-006 STR-008 BLK-013",
    why="A server that still writes what an older attempt sends mixes two versions of a file.",
    layer=2,
)
def late_piece(trial: Trial) -> None:
    """Half a block from the older attempt; after the takeover its other half, with other bytes, has no effect."""
    first, sample = begun(trial, 200_000)
    other = sample.with_(seed=sample.seed + 1)
    moves.send_block(first, sample, 0, stop=100_000, piece_length=50_000)
    first.ping()
    second = trial.dial()
    newer = sample.with_(attempt=sample.attempt + 1)
    moves.begin(second, newer)
    moves.send_block(second, newer, 0, stop=50_000)
    first.expect_error(Code.SUPERSEDED, stream=1)
    first.say(1, other.piece(0, 100_000, ends=False), other.content[100_000:150_000])
    first.say(1, other.piece(0, 150_000), other.content[150_000:])
    first.ping()
    second.say(1, newer.piece(0, 50_000, ends=False), newer.content[50_000:100_000])
    second.say(1, newer.piece(0, 100_000, ends=False), newer.content[100_000:150_000])
    second.say(1, newer.piece(0, 150_000), newer.content[150_000:])
    second.expect_acked(1, 0)
    moves.commit(second, newer)
    moves.fetch(second, 3, wire.Fetch(sample.filename), sample)


@cases.add(
    "takeover/late-commit-of-a-smaller-attempt",
    "RES-006 COM-004",
    why="The older attempt has been told to go; its COMMIT must not finish anything.",
    layer=2,
)
def late_commit(trial: Trial) -> None:
    """COMMIT that waits on the older stream is forgotten with it; the upload can still be finished by the newer."""
    first, sample = begun(trial)
    first.say(1, sample.commit())
    first.ping()
    second = trial.dial()
    newer = sample.with_(attempt=sample.attempt + 1)
    moves.begin(second, newer)
    first.expect_error(Code.SUPERSEDED, stream=1)
    moves.send_blocks(second, newer)
    second.expect_acked(1, 0, 1, 2)
    second.ping()
    moves.require_absent(trial, sample.filename, "the COMMIT of a superseded stream took effect")
    moves.commit(second, newer)


@cases.add(
    "takeover/on-the-same-connection",
    "RES-006",
    why="A client that gave a stream up for dead opens the upload again where it is.",
    layer=2,
)
def takeover_here(trial: Trial) -> None:
    """A greater attempt on another stream of the same connection."""
    peer, sample = begun(trial)
    newer = sample.with_(attempt=sample.attempt + 1)
    peer.say(3, newer.open())
    heard = {(one.stream, type(one.message)) for one in (peer.hear(), peer.hear())}
    require(
        heard == {(1, wire.Error), (3, wire.Opened)}, "SUPERSEDED and OPENED did not come", got=str(heard)
    )
    moves.send_blocks(peer, newer, 3)
    moves.commit(peer, newer, 3)


@cases.add(
    "takeover/does-not-wait-for-the-old-one",
    "RES-010 RES-006",
    why="The old connection is often dead without anybody knowing; who waits for it waits for a timeout.",
    layer=3,
)
def does_not_wait(trial: Trial) -> None:
    """The older stream is in the middle of a piece that never ends; the newer attempt is answered, and finishes."""
    first, sample = begun(trial, 200_000)
    raw = forge.frame(1, sample.head(0, ends=False), sample.content[:60_000])
    first.count(1, 60_000)
    first.send(raw[:30_000])
    second = trial.dial()
    newer = sample.with_(attempt=sample.attempt + 1)
    moves.begin(second, newer)
    moves.send_block(second, newer, 0)
    moves.commit(second, newer)


@cases.table(
    "smaller-attempt/{}",
    "RES-006 ERR-009",
    {"by-one": 1, "zero": 1_000},
    why="An old device that wakes up must not throw the new one out.",
    layer=2,
)
def smaller(trial: Trial, by: int) -> None:
    """A smaller attempt is refused with the upload's own, and changes nothing."""
    first, sample = begun(trial)
    moves.send_block(first, sample, 0)
    first.expect_acked(1, 0)
    second = trial.dial()
    second.say(1, sample.with_(attempt=sample.attempt - by).open())
    second.expect_error(Code.SUPERSEDED, stream=1, current=sample.attempt)
    second.ping()
    moves.send_blocks(first, sample, 1, 1, 2)
    moves.commit(first, sample)


@cases.add(
    "join/two-connections-share-the-blocks",
    "RES-006 RES-019 COM-007",
    why="Several connections make one file quicker only if each hears of all blocks.",
    layer=2,
)
def join(trial: Trial) -> None:
    """An equal attempt joins; every block is acknowledged on both streams, and COMMITTED comes on both."""
    first, sample = begun(trial)
    second = trial.dial()
    opened = moves.begin(second, sample)
    require(
        opened.attempt == sample.attempt, "OPENED of a join names another attempt", got=str(opened.attempt)
    )
    moves.send_block(first, sample, 0)
    moves.send_block(second, sample, 1)
    for peer in (first, second):
        peer.expect_acked(1, 0, 1)
    second.say(1, sample.commit())
    second.ping()
    moves.send_block(first, sample, 2)
    for peer in (first, second):
        moves.expect_committed(peer, sample)


@cases.add(
    "join/one-stream-ends-the-other-goes-on",
    "RES-006 STR-007",
    why="One of several connections breaks; the others have nothing to do with it.",
    layer=2,
)
def join_and_leave(trial: Trial) -> None:
    """The second connection is reset in the middle of a block; the first one finishes."""
    first, sample = begun(trial)
    second = trial.dial()
    moves.begin(second, sample)
    moves.send_block(second, sample, 1, stop=1_000)
    second.ping()
    second.reset()
    moves.send_blocks(first, sample)
    moves.commit(first, sample)
    first.ping()


# ---- acknowledgement


@cases.add(
    "ack/position-counts-whole-blocks",
    "RES-016 RES-019",
    why="A position inside a block would be believed, and the rest of that block never sent.",
)
def position_counts_whole_blocks(trial: Trial) -> None:
    """Block 1, then 0, then the short last one: position is 0, then two blocks, then the file's size."""
    peer, sample = begun(trial)
    for stream, blockno, position in ((3, 1, 0), (5, 0, 2 * BLOCK_LENGTH), (7, 2, TWO_AND_A_BIT)):
        moves.send_block(peer, sample, blockno)
        peer.expect_acked(1, blockno)
        opened = moves.begin(peer, sample, stream)
        require(
            opened.position == position,
            "position is not the first byte of the first block that is missing",
            got=str(opened),
        )
    moves.commit(peer, sample)


@cases.add(
    "ack/runs-name-what-is-held",
    "RES-016 RES-019 FRM-016",
    why="What is held behind a gap can only be named by runs.",
)
def runs_name_what_is_held(trial: Trial) -> None:
    """Blocks 1 and 3 of five: OPENED names both, and no other."""
    peer, sample = begun(trial, 4 * BLOCK_LENGTH + 1)
    moves.send_blocks(peer, sample, 1, 1, 3)
    peer.expect_acked(1, 1, 3)
    opened = moves.begin(peer, sample, 3)
    require(opened.held == ((1, 1), (3, 1)), "OPENED does not name what is held", got=str(opened))
    require(opened.position == 0, "position counts blocks behind a gap", got=str(opened))


@cases.table(
    "end/{}",
    "RES-021 RES-015",
    {"closed": False, "reset": True},
    why="The end of a connection is never the end of a file, and never of an upload.",
    layer=2,
)
def end_keeps_the_upload(trial: Trial, reset: bool) -> None:
    """What was acknowledged is there after the connection has ended, the file is not, and the upload is listed."""
    first, sample = begun(trial)
    moves.send_blocks(first, sample, 1, 0, 1)
    first.expect_acked(1, 0, 1)
    if reset:
        first.reset()
    else:
        first.close()
    second = trial.dial()
    moves.require_absent(trial, sample.filename, "the end of a connection was taken for the end of a file")
    item = moves.unfinished(second, sample.sourceid, 3)
    require(
        item is not None and item.held_count == 2,
        "the unfinished upload is not listed with its blocks",
        got=str(item),
    )
    newer = sample.with_(attempt=sample.attempt + 1)
    opened = moves.begin(second, newer, 1_001)
    require(
        opened.position == 2 * BLOCK_LENGTH, "what was acknowledged is not held any more", got=str(opened)
    )
    moves.send_block(second, newer, 2, 1_001)
    moves.commit(second, newer, 1_001)


@cases.add(
    "end/all-blocks-and-no-commit",
    "RES-021 COM-009",
    why="Only COMMIT says that a file is complete; a sender that dies before it may have had more to say.",
    layer=2,
)
def no_commit(trial: Trial) -> None:
    """Every block is acknowledged, then the connection ends: there is no file."""
    first, sample = begun(trial)
    moves.send_blocks(first, sample)
    first.expect_acked(1, 0, 1, 2)
    first.close()
    moves.require_absent(trial, sample.filename, "a file appeared without COMMIT")


@cases.add(
    "expiry/in-the-future",
    "RES-022",
    why="A client shows people how long they may take; a time in the past would make it give up.",
)
def expiry(trial: Trial) -> None:
    """expires_ms lies more than a day ahead of now, or says never."""
    peer, sample = trial.dial(), trial.sample(5_000)
    opened = moves.begin(peer, sample)
    ahead = opened.expires_ms is None or opened.expires_ms / 1000 - time.time() > 86_400
    require(ahead, "an upload that was just opened expires within a day", got=str(opened.expires_ms))

"""COM: commit, receipts, the name, cancel."""

from __future__ import annotations

from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH, blocknum_of
from ...errors import Code, Scope
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import require
from .blk import TWO_AND_A_BIT, begun, refused_stream

cases = Chapter("com", Side.SERVER)
FOLDER = moves.FILETYPE_FOLDER


# ---- commit


@cases.table(
    "facts/{}",
    "COM-003",
    {
        "another-sourceid": {"sourceid": b"\x66" * 16},
        "another-filesize": {"filesize": TWO_AND_A_BIT - 1},
        "another-filesize-and-blocknum": {"filesize": BLOCK_LENGTH, "blocknum": 1},
    },
    why="COMMIT says once more what the file is; a sender that says two things does not know.",
)
def facts(trial: Trial, changes: dict[str, Any]) -> None:
    """COMMIT that does not agree with OPEN."""
    peer, sample = begun(trial)
    moves.send_blocks(peer, sample)
    peer.say(1, sample.commit(**changes))
    refused_stream(peer)
    moves.require_absent(trial, sample.filename, "a file appeared after a COMMIT that does not fit")


@cases.table(
    "facts/{}-of-unknown-size",
    "COM-003 BLK-003",
    {"a-byte-more": 1, "a-byte-less": -1, "a-block-more": BLOCK_LENGTH},
    why="What was unknown before is held against the bytes that came.",
)
def facts_of_unknown(trial: Trial, more: int) -> None:
    """COMMIT of an upload of unknown size with a size that the blocks do not have."""
    peer, sample = begun(trial, unknown=True)
    moves.send_blocks(peer, sample)
    told = sample.filesize + more
    peer.say(1, sample.commit(filesize=told, blocknum=blocknum_of(told)))
    refused_stream(peer)


@cases.add(
    "facts/fewer-whole-blocks-of-unknown-size",
    "COM-003 DIG-009",
    why="Blocks that are left out of a file are bytes that somebody thinks are stored.",
)
def fewer_blocks(trial: Trial) -> None:
    """Two whole blocks were sent; COMMIT says that the file is the first one."""
    peer, sample = begun(trial, 2 * BLOCK_LENGTH, unknown=True)
    moves.send_blocks(peer, sample)
    peer.expect_acked(1, 0, 1)
    peer.say(1, wire.Commit(sample.sourceid, sample.digest(0), BLOCK_LENGTH, 1))
    refused_stream(peer)
    moves.require_absent(trial, sample.filename, "a file appeared without its last block")


@cases.add(
    "waits/for-blocks-that-come-later",
    "COM-004 STR-005",
    why="COMMIT may overtake blocks on other streams; a server that answers at once refuses a file that is on its way.",
    layer=2,
)
def waits(trial: Trial) -> None:
    """COMMIT first, then the blocks, on the same stream."""
    peer, sample = begun(trial)
    peer.say(1, sample.commit())
    require(peer.ping() == [], "COMMIT was answered before the blocks were there")
    moves.send_blocks(peer, sample, 1, 2, 0, 1)
    moves.expect_committed(peer, sample)


@cases.add(
    "waits/for-a-block-that-was-damaged",
    "COM-004 BLK-011",
    why="A sender that says everything at once has said COMMIT before it hears of the damage.",
    layer=2,
)
def waits_for_damaged(trial: Trial) -> None:
    """COMMIT behind a damaged block: it waits until the block came again."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0)
    moves.send_block(peer, sample, 1, damaged=True)
    moves.send_block(peer, sample, 2)
    peer.say(1, sample.commit())
    peer.expect_error(Code.DIGEST_MISMATCH, stream=1, scope=Scope.BLOCK, blockno=1)
    moves.send_block(peer, sample, 1)
    moves.expect_committed(peer, sample)


@cases.add(
    "waits/forgotten-with-its-stream",
    "COM-004 RES-021",
    why="A commit that outlives its sender finishes a file that nobody asked for any more.",
    layer=2,
)
def forgotten(trial: Trial) -> None:
    """COMMIT waits, its connection ends, the last block comes on another one: no file appears."""
    first, sample = begun(trial)
    moves.send_blocks(first, sample, 1, 0, 1)
    second = trial.dial()
    moves.begin(second, sample)
    first.say(1, sample.commit())
    first.ping()
    first.say(1, wire.Error(int(Code.CANCELLED), int(Scope.STREAM), False))
    first.ping()
    moves.send_block(second, sample, 2)
    second.expect_acked(1, 0, 1, 2)
    second.ping()
    moves.require_absent(trial, sample.filename, "a COMMIT took effect after its stream had ended")
    moves.commit(second, sample)


@cases.add(
    "name/not-before-the-commit",
    "COM-005 LST-006 FET-001",
    why="A program that watches the folder takes every name for a whole file.",
    layer=2,
)
def not_before(trial: Trial) -> None:
    """While an upload is under way nobody can see or fetch its name; every block held changes nothing."""
    peer, sample = begun(trial)
    moves.send_blocks(peer, sample, 1, 0, 1)
    peer.expect_acked(1, 0, 1)
    moves.require_absent(trial, sample.filename, "a file is listed before its commit")
    peer.say(5, wire.Fetch(sample.filename))
    peer.expect_error(Code.UNKNOWN_FILE, stream=5)
    moves.send_block(peer, sample, 2)
    moves.commit(peer, sample)
    require(moves.stat(peer, sample.filename, 7) is not None, "a file is not listed after COMMITTED")


@cases.add(
    "committed/on-every-stream-once",
    "COM-007 RES-019 STR-006",
    why="Each connection of a sender waits for the answer; a second one would be an answer to nothing.",
    layer=2,
)
def every_stream(trial: Trial) -> None:
    """Three streams on two connections: COMMITTED on each, and nothing after it."""
    first, sample = begun(trial)
    moves.begin(first, sample, 3)
    second = trial.dial()
    moves.begin(second, sample)
    moves.send_blocks(second, sample)
    second.say(1, sample.commit())
    moves.expect_committed(second, sample)
    for stream in (1, 3):
        moves.expect_committed(first, sample, stream)
    for peer in (first, second):
        require(peer.ping() == [], "something came after COMMITTED")


@cases.add(
    "committed/facts-of-commit-replace-those-of-open",
    "COM-001 RES-007",
    why="A sender learns the last modification time only when it has read the last byte.",
)
def facts_of_commit(trial: Trial) -> None:
    """MTIME and MODE of COMMIT."""
    peer, sample = trial.dial(), trial.sample(3_000)
    moves.begin(peer, sample, mtime_ns=10**18, mode=0o600)
    moves.send_blocks(peer, sample)
    moves.commit(peer, sample, mtime_ns=3 * 10**18 // 2, mode=0o644)
    item = moves.stat(peer, sample.filename, 3)
    require(
        item is not None and item.mtime_ns == 3 * 10**18 // 2, "MTIME of COMMIT is not kept", got=str(item)
    )
    require(item is not None and item.mode & 0o777 == 0o644, "MODE of COMMIT is not kept", got=str(item))


# ---- receipts


@cases.add(
    "receipt/commit-again-on-another-connection",
    "COM-010 RES-008",
    why="The answer may get lost; the question may be asked again.",
    layer=2,
)
def commit_again(trial: Trial) -> None:
    """The whole upload again, without waiting: the same COMMITTED, nothing stored twice."""
    sample = trial.sample(3_000)
    first = moves.upload(trial.dial(), sample)
    peer = trial.dial()
    peer.say(1, sample.open())
    again = moves.expect_committed(peer, sample)
    require(
        (again.file_id, again.stored_as) == (first.file_id, first.stored_as),
        "the same upload again got another file",
        expected=str(first),
        got=str(again),
    )


@cases.add(
    "receipt/gone-with-its-file",
    "COM-011 LST-010",
    why="Who removed a file and sends it again wants it back, not a receipt for what is gone.",
    layer=2,
)
def gone_with_its_file(trial: Trial) -> None:
    """After REMOVE the same sourceid begins anew, and the file is there again."""
    peer, sample = trial.dial(), trial.sample(3_000)
    moves.upload(peer, sample)
    peer.say(3, wire.Remove(wire.RemoveKind.FILE, filename=sample.filename))
    peer.expect(wire.Result, 3)
    moves.begin(peer, sample, 5)
    moves.send_blocks(peer, sample, 5)
    moves.commit(peer, sample, 5)
    moves.fetch(peer, 7, wire.Fetch(sample.filename), sample)


# ---- the name


@cases.add(
    "name/folders-are-made",
    "COM-012 COM-014",
    why="A sender does not know which folders are there.",
)
def folders_are_made(trial: Trial) -> None:
    """A name four folders deep."""
    peer, sample = trial.dial(), trial.sample(10)
    deep = sample.with_(filename=f"{trial.name('')}/b/c/d/e.bin")
    committed = moves.brief(peer, deep)
    require(
        committed.stored_as == deep.filename,
        "a file with a free name got another one",
        got=committed.stored_as,
    )
    moves.fetch(peer, 3, wire.Fetch(deep.filename), deep)


@cases.table(
    "name/parent-is-a-file-{}",
    "COM-012",
    {"brief": True, "with-open": False},
    why="A file cannot hold files; replacing it by a folder would lose it.",
)
def parent_is_a_file(trial: Trial, is_brief: bool) -> None:
    """A name below a file."""
    peer, parent = trial.dial(), trial.sample(10)
    moves.brief(peer, parent)
    child = trial.sample(10, filename=f"{parent.filename}/child")
    if is_brief:
        moves.say_brief(peer, child, 3)
        refused_stream(peer, Code.NOT_PERMITTED, 3)
    else:
        refused_at_open_or_commit(peer, child, 3, Code.NOT_PERMITTED)
    moves.fetch(peer, 9, wire.Fetch(parent.filename), parent)


def refused_at_open_or_commit(peer: Peer, sample: Sample, stream: int, code: Code, **facts: Any) -> str:
    """An upload whose name cannot be had: refused at OPEN already, or at the latest at COMMIT. Returns which."""
    peer.say(stream, sample.open(**facts))
    heard = peer.expect_any(stream)
    if isinstance(heard.message, wire.Opened):
        moves.send_blocks(peer, sample, stream)
        peer.say(stream, sample.commit())
        peer.expect_error(code, stream=stream)
        return "commit"
    peer.judge_error(heard, code)
    return "open"


@cases.table(
    "name/taken-by-a-file-and-{}",
    "COM-013 COM-014",
    {"keep-both": 0, "refuse": 1, "replace": 2},
    why="What happens to the file that is there is the sender's choice, and never an accident.",
    layer=2,
)
def taken_by_a_file(trial: Trial, how: int) -> None:
    """A second file of the same name."""
    peer, first = trial.dial(), trial.sample(2_000)
    second = first.with_(sourceid=trial.sourceid(), seed=first.seed + 1)
    moves.upload(peer, first)
    if how == 1:
        refused_at_open_or_commit(peer, second, 3, Code.FILE_EXISTS, if_exists=1)
        moves.fetch(peer, 5, wire.Fetch(first.filename), first)
        return
    committed = moves.upload(peer, second, 3, if_exists=how)
    moves.fetch(peer, 5, wire.Fetch(committed.stored_as), second)
    if how == 2:
        require(
            committed.stored_as == first.filename,
            "replace stored under another name",
            got=committed.stored_as,
        )
        return
    folder = first.filename.rpartition("/")[0]
    require(committed.stored_as != first.filename, "keep both stored under the taken name")
    require(
        committed.stored_as.rpartition("/")[0] == folder,
        "the free name is in another folder",
        got=committed.stored_as,
    )
    moves.fetch(peer, 7, wire.Fetch(first.filename), first)
    stem, dot, ending = first.filename.rpartition(".")
    if committed.stored_as != f"{stem} (1){dot}{ending}":
        trial.lenient("the free name is not the wanted one with ' (1)' before its ending")


@cases.table(
    "name/taken-by-a-folder-and-{}",
    "COM-013",
    {"keep-both": 0, "refuse": 1, "replace": 2},
    why="A folder with files in it is never replaced by a file.",
    layer=2,
)
def taken_by_a_folder(trial: Trial, how: int) -> None:
    """A file whose name is a folder's."""
    peer, folder = trial.dial(), trial.sample(0, filetype=FOLDER)
    moves.brief(peer, folder)
    sample = trial.sample(2_000, filename=folder.filename)
    if how == 0:
        committed = moves.upload(peer, sample, 3, if_exists=0)
        require(committed.stored_as != folder.filename, "keep both stored under the taken name")
        moves.fetch(peer, 5, wire.Fetch(committed.stored_as), sample)
        return
    code = {1: Code.FILE_EXISTS, 2: Code.NOT_PERMITTED}[how]
    refused_at_open_or_commit(peer, sample, 3, code, if_exists=how)
    item = moves.stat(peer, folder.filename, 5)
    require(item is not None and item.kind == wire.EntryKind.FOLDER, "the folder is gone", got=str(item))


@cases.table(
    "name/folder-whose-name-a-file-has-and-{}",
    "COM-013 BLK-016",
    {"keep-both": 0, "refuse": 1, "replace": 2},
    why="A file is never lost because somebody makes a folder.",
)
def folder_on_a_file(trial: Trial, how: int) -> None:
    """A folder whose name is a file's is refused, whatever if_exists says."""
    peer, sample = trial.dial(), trial.sample(100)
    moves.brief(peer, sample)
    folder = trial.sample(0, filename=sample.filename, filetype=FOLDER)
    moves.say_brief(peer, folder, 3, if_exists=how)
    refused_stream(peer, Code.FILE_EXISTS, 3)
    moves.fetch(peer, 5, wire.Fetch(sample.filename), sample)


@cases.add(
    "name/refused-at-open",
    "COM-020",
    why="Gigabytes that are sent for nothing are worse than a short answer.",
)
def refused_at_open(trial: Trial) -> None:
    """if_exists 1 and a taken name: refused before any byte."""
    peer, first = trial.dial(), trial.sample(2_000)
    moves.upload(peer, first)
    second = first.with_(sourceid=trial.sourceid(), filesize=2_001)
    when = refused_at_open_or_commit(peer, second, 3, Code.FILE_EXISTS, if_exists=1)
    require(when == "open", "FILE_EXISTS comes only at COMMIT, after all bytes")


@cases.add(
    "name/refused-commit-leaves-the-upload",
    "COM-015 RES-007 COM-013",
    why="A name that was taken meanwhile must not cost the bytes that were sent.",
    layer=2,
)
def refused_commit(trial: Trial) -> None:
    """The name is taken while the upload is under way: refused at COMMIT; with "keep both" nothing travels again."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    moves.begin(peer, sample, if_exists=1)
    moves.send_blocks(peer, sample)
    peer.expect_acked(1, 0, 1, 2)
    other = trial.sample(100, filename=sample.filename)
    moves.brief(peer, other, 3)
    peer.say(1, sample.commit())
    peer.expect_error(Code.FILE_EXISTS, stream=1)
    newer = sample.with_(attempt=sample.attempt + 1)
    opened = moves.begin(peer, newer, 5, if_exists=0)
    require(opened.position == sample.filesize, "a refused commit cost what was held", got=str(opened))
    committed = moves.commit(peer, newer, 5)
    require(committed.stored_as != sample.filename, "keep both stored under the taken name")
    moves.fetch(peer, 7, wire.Fetch(sample.filename), other)


# ---- cancel


@cases.add(
    "cancel/leaves-the-upload",
    "COM-016 RES-021",
    why="Pause is the commonest cancel; what was sent is still wanted.",
    layer=2,
)
def cancel(trial: Trial) -> None:
    """CANCEL without DISCARD: CANCELLED; the upload is there with its blocks."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0)
    peer.expect_acked(1, 0)
    peer.say(1, wire.Cancel(int(Code.CANCELLED), "pause"))
    peer.expect_error(Code.CANCELLED, stream=1)
    opened = moves.begin(peer, sample.with_(attempt=sample.attempt + 1), 3)
    require(opened.position == BLOCK_LENGTH, "CANCEL without DISCARD cost what was held", got=str(opened))


@cases.add(
    "cancel/discard",
    "COM-017 LST-005",
    why="What somebody does not want to have sent must be gone, on all connections, before they are told so.",
    layer=2,
)
def discard(trial: Trial) -> None:
    """CANCEL with DISCARD: CANCELLED on every stream; the upload is not listed, and an OPEN begins anew."""
    first, sample = begun(trial)
    moves.send_block(first, sample, 0)
    first.expect_acked(1, 0)
    second = trial.dial()
    moves.begin(second, sample)
    first.say(1, wire.Cancel(int(Code.CANCELLED), discard=True))
    first.expect_error(Code.CANCELLED, stream=1)
    second.expect_error(Code.CANCELLED, stream=1)
    require(moves.unfinished(first, sample.sourceid, 3) is None, "a discarded upload is listed")
    peer = trial.dial()
    opened = moves.begin(peer, sample.with_(attempt=1))
    require(opened.position == 0 and opened.held == (), "a discarded upload has blocks", got=str(opened))


@cases.add(
    "cancel/discard-of-nothing",
    "COM-016 COM-017",
    why="A user who cancels at once cancels before there is anything.",
)
def discard_of_nothing(trial: Trial) -> None:
    """CANCEL with DISCARD right behind OPEN."""
    peer, sample = trial.dial(), trial.sample(5_000)
    peer.say(1, sample.open())
    peer.say(1, wire.Cancel(int(Code.CANCELLED), discard=True))
    peer.expect(wire.Opened, 1)
    peer.expect_error(Code.CANCELLED, stream=1)
    peer.ping()


@cases.add(
    "cancel/of-a-brief-file",
    "COM-016 BLK-018",
    why="A brief stream can be cancelled like any other, as long as it is not complete.",
)
def cancel_brief(trial: Trial) -> None:
    """CANCEL in the middle of a brief file."""
    peer, sample = trial.dial(), trial.sample(5_000)
    peer.say(1, sample.head(0, ends=False), sample.content[:1_000])
    peer.say(1, wire.Cancel(int(Code.CANCELLED)))
    peer.expect_error(Code.CANCELLED, stream=1)
    moves.require_absent(trial, sample.filename, "a cancelled brief file is stored")


@cases.table(
    "cancel/crosses-the-commit-{}",
    "COM-018 COM-016 COM-019",
    {"keep": False, "discard": True},
    why="Either the file is there and the answer says so, or it is not; anything between is a lie.",
    layer=2,
)
def crosses(trial: Trial, discards: bool) -> None:
    """COMMIT and CANCEL at once: COMMITTED and the file, or CANCELLED and no file."""
    peer, sample = begun(trial, 5_000)
    moves.send_block(peer, sample, 0)
    peer.send(
        peer.frame(1, sample.commit()) + peer.frame(1, wire.Cancel(int(Code.CANCELLED), discard=discards))
    )
    heard = peer.expect_any(1)
    if isinstance(heard.message, wire.Committed):
        moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)
        return
    peer.judge_error(heard, Code.CANCELLED)
    moves.require_absent(trial, sample.filename, "a file appeared after CANCELLED")


@cases.add(
    "cancel/after-the-end",
    "STR-008 COM-018",
    why="CANCEL that comes behind COMMITTED is for a stream that is closed.",
)
def cancel_after_the_end(trial: Trial) -> None:
    """CANCEL on a stream that COMMITTED has closed is dropped."""
    peer, sample = trial.dial(), trial.sample(100)
    moves.brief(peer, sample)
    peer.say(1, wire.Cancel(int(Code.CANCELLED), discard=True))
    peer.ping()
    moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)

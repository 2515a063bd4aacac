"""COM for clients: commit and cancel."""

from __future__ import annotations

from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from ..case import Chapter, Side
from ..verdicts import require
from . import giving, taking
from .trial import Trial

cases = Chapter("client/com", Side.CLIENT)


@cases.table(
    "committed/{}",
    "COM-008",
    {"another-root": {"root": bytes(32)}, "another-filesize": {"filesize": 7}},
    why="The sourceid was used for another file: this one is not there.",
)
def other_committed(trial: Trial, changes: dict[str, Any]) -> None:
    """COMMITTED names another file than the one that was sent: SOURCE_CHANGED, not success."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload)
    visit.say(upload.stream, upload.committed(**changes))
    trial.refused("SOURCE_CHANGED")


@cases.add("committed/another-filesize-at-open", "COM-008", why="So is a receipt that answers OPEN.")
def other_receipt(trial: Trial) -> None:
    """OPEN is answered by COMMITTED of a file with another size."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.committed(filesize=7))
    trial.refused("SOURCE_CHANGED")


@cases.table(
    "only-committed-is-success/{}",
    "COM-009",
    {
        "connection-closed": "close",
        "connection-reset": "reset",
        "error": "error",
        "everything-acknowledged": "ack",
    },
    why="A client that reports success without COMMITTED lets people delete the only copy.",
)
def only_committed(trial: Trial, end: str) -> None:
    """Every block is acknowledged and COMMIT has come; then something else than COMMITTED."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload)
    visit.say(upload.stream, wire.Ack(upload.sample.filesize, taking.runs(range(upload.sample.blocknum))))
    if end == "error":
        visit.say(upload.stream, wire.Error(Code.NOT_PERMITTED, Scope.STREAM, False))
        trial.refused("NOT_PERMITTED")
        return
    visit.alive()
    if end == "reset":
        visit.reset()
    elif end == "close":
        visit.close()
    else:
        visit.say(0, wire.Error(Code.STORE_FAILED, Scope.CONNECTION, False))
    trial.repeats = True
    trial.not_done()


@cases.add(
    "hook-refused",
    "COM-031",
    why="Whoever runs the server may change their mind: what has come need not be sent again.",
)
def hook_refused(trial: Trial) -> None:
    """COMMIT is answered by HOOK_REFUSED, retryable 0: the client reports it, does not come again, and removes nothing."""
    visit, upload = trial.uploading(tries=5)
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload)
    visit.say(upload.stream, wire.Error(Code.HOOK_REFUSED, Scope.STREAM, False, "not on a Sunday"))
    trial.refused("HOOK_REFUSED")
    require(not trial.shelf.removed, "the client removes the upload", got=str(trial.shelf.removed))
    more = [heard for heard in visit.rest() if isinstance(heard.message, wire.Cancel)]
    require(not more, "the client cancels the upload", got=", ".join(map(str, more)))


COMMITS: dict[str, dict[str, Any]] = {
    "another-sourceid": {"sourceid": bytes(15) + b"!"},
    "another-filesize": {"filesize": BLOCK_LENGTH + 6},
    "another-file": {"filesize": 3 * BLOCK_LENGTH, "blocknum": 3},
}


@cases.table(
    "commit/{}",
    "COM-003",
    COMMITS,
    why="A COMMIT of another file would give this one's bytes its name.",
)
def bad_commit(trial: Trial, changes: dict[str, Any]) -> None:
    """COMMIT of a download does not agree with OPEN: BAD_FACTS, scope stream, and no file."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    for blockno in download.blocknos:
        giving.send_block(visit, download, blockno)
    visit.say(download.stream, download.commit(**changes))
    visit.expect_error(Code.BAD_FACTS, stream=download.stream)
    trial.absent(download.sample)
    trial.not_done()


@cases.add(
    "commit/before-a-block-that-comes-again",
    "COM-004 BLK-011",
    why="A sender says COMMIT right behind its last block; that one may have arrived damaged.",
)
def commit_waits(trial: Trial) -> None:
    """A damaged block, COMMIT, and the block again: the COMMIT that was said takes effect."""
    visit, download = trial.downloading(2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    giving.send_block(visit, download, 0)
    giving.send_block(visit, download, 1, damaged=True)
    visit.say(download.stream, download.commit())
    visit.expect_error(Code.DIGEST_MISMATCH, stream=download.stream, scope=Scope.BLOCK, blockno=1)
    trial.absent(download.sample)
    giving.send_block(visit, download, 1)
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)


@cases.add(
    "cancel/of-the-sender",
    "COM-016",
    why="A server that stops sending says CANCEL, and must hear that it was heard.",
)
def cancel_of_sender(trial: Trial) -> None:
    """CANCEL in the middle of a download: ERROR with CANCELLED (stream), and no file."""
    visit, download = trial.downloading(3 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    giving.send_block(visit, download, 0)
    visit.say(download.stream, wire.Cancel(Code.CANCELLED, "stopped"))
    visit.expect_error(Code.CANCELLED, stream=download.stream)
    trial.absent(download.sample)
    trial.not_done()


@cases.table(
    "give-up/answered-by-{}",
    "COM-019",
    {"cancelled": False, "committed": True},
    why="What comes after CANCEL is the answer to nothing.",
)
def gives_up(trial: Trial, committed: bool) -> None:
    """An upload that is given up says CANCEL, and nothing more on its stream, whichever answer comes."""
    hello = wire.Hello(undurable_max=BLOCK_LENGTH)
    visit, upload = trial.uploading(8 * BLOCK_LENGTH, give_up_after=BLOCK_LENGTH, hello=hello)
    visit.say(upload.stream, upload.opened())
    while True:
        heard = trial.shelf.wanted(visit, "BLOCK, PIECE or CANCEL")
        if isinstance(heard.message, wire.Cancel):
            break
        if not isinstance(heard.message, (wire.Block, wire.Piece)):
            raise visit.unexpected("BLOCK, PIECE or CANCEL", heard)
        blockno = upload.take(visit, heard)
        if blockno is not None:
            visit.say(upload.stream, upload.acknowledged(blockno))
    answer = upload.committed() if committed else wire.Error(Code.CANCELLED, Scope.STREAM, False)
    visit.say(upload.stream, answer)
    trial.refused()
    more = [heard for heard in visit.rest() if heard.stream == upload.stream]
    require(not more, "something comes on the stream behind CANCEL", got=", ".join(map(str, more)))

"""ERR for clients: errors that it says, and errors that it hears."""

from __future__ import annotations

from ... import wire
from ...errors import Code, Scope
from .. import forge
from ..case import Chapter, Side
from ..verdicts import require
from . import taking
from .trial import Trial

cases = Chapter("client/err", Side.CLIENT)

UNKNOWN_CODE = 999


@cases.table(
    "says/retryable-of-{}",
    "ERR-001",
    {
        "bad-check": (Code.BAD_CHECK, True),
        "malformed": (Code.MALFORMED, False),
        "unexpected": (Code.UNEXPECTED, False),
    },
    why="Who hears it decides by it whether to come again.",
)
def says(trial: Trial, row: tuple[Code, bool]) -> None:
    """The ERROR of the client has the retryable of the error table."""
    code, retryable = row
    visit, upload = trial.uploading()
    raw = forge.frame(upload.stream, wire.Ack(0))
    wrong = {
        Code.BAD_CHECK: forge.rebuilt(raw, check=1),
        Code.MALFORMED: forge.rebuilt(raw, tail=b"\0"),
        Code.UNEXPECTED: forge.frame(upload.stream, wire.Result(1)),
    }
    visit.force(wrong[code])
    error = visit.expect_refusal(code)
    said = error is None or error.retryable is retryable
    require(said, "ERROR has another retryable than its row", expected=str(retryable), got=str(error))
    trial.not_done()


@cases.table(
    "hears/scope-stream-of-{}",
    "ERR-002 ERR-004",
    {
        "a-code-of-a-block": int(Code.DIGEST_MISMATCH),
        "a-code-of-the-connection": int(Code.MALFORMED),
        "an-unknown-code": UNKNOWN_CODE,
    },
    why="The scope of the message says what ends, not the row of its code.",
)
def scope_stream(trial: Trial, code: int) -> None:
    """ERROR of scope stream, whatever its code: the transfer has failed, and the connection has not ended."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, wire.Error(code, Scope.STREAM, False, "this stream"))
    trial.refused()


@cases.table(
    "hears/scope-block-of-{}",
    "ERR-002 ERR-004",
    {"a-code-of-a-stream": int(Code.STORE_FULL), "an-unknown-code": UNKNOWN_CODE},
    why="An ERROR about a block ends nothing: the block comes again.",
)
def scope_block(trial: Trial, code: int) -> None:
    """ERROR of scope block with another code than DIGEST_MISMATCH: the transfer goes on to its end."""
    visit, upload = trial.uploading(hello=wire.Hello(undurable_max=0))
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload, until=1, acknowledge=False)
    visit.say(upload.stream, wire.Error(code, Scope.BLOCK, True, "again, please", blockno=0))
    visit.alive()
    visit.say(upload.stream, upload.acknowledged(0))
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(upload.sample)


@cases.add(
    "hears/a-damaged-block",
    "BLK-011 ERR-002 DIG-008",
    why="A damaged block costs a block, not the file.",
)
def damaged_block(trial: Trial) -> None:
    """DIGEST_MISMATCH for block 0, which was whole: it comes again from its beginning."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.opened())
    taking.take_blocks(visit, trial.shelf, upload, until=1, acknowledge=False)
    visit.say(upload.stream, wire.Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True, blockno=0))
    while upload.ended.count(0) < 2:
        heard = trial.shelf.wanted(visit, "block 0 again")
        if isinstance(heard.message, wire.Commit):
            taking.judge_commit(visit, upload, heard)
            continue
        upload.take(visit, heard)
    require(upload.starts[0] == 0, "a damaged block begins behind a prefix that was dropped")
    visit.say(upload.stream, upload.acknowledged(0, 1))
    visit.say(upload.stream, upload.committed())
    trial.stored(upload.sample)


@cases.add(
    "hears/not-retryable", "ERR-002", why="A code that is usually worth another try may not be this time."
)
def not_retryable(trial: Trial) -> None:
    """BUSY with retryable 0: the client does not try again."""
    sample = trial.sample(3_000_000)
    trial.start("upload", path=str(trial.write(sample)), filename=sample.filename, tries=5)
    visit = trial.visit()
    upload = taking.begun(visit, trial.shelf, sample)
    visit.say(upload.stream, wire.Error(Code.BUSY, Scope.STREAM, False, "for good"))
    trial.refused("BUSY")


@cases.add(
    "hears/an-unknown-code-of-the-connection",
    "ERR-004 END-011",
    why="A later server ends connections for reasons of its own.",
)
def unknown_of_connection(trial: Trial) -> None:
    """ERROR of scope connection with an unknown code: the client says nothing more and closes."""
    visit, _ = trial.uploading()
    visit.say(0, wire.Error(UNKNOWN_CODE, Scope.CONNECTION, False, "a later reason"))
    more = visit.rest()
    require(not more, "the client says something after ERROR (connection)", got=", ".join(map(str, more)))
    trial.not_done()

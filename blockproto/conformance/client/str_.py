"""STR for clients: streams, and who may say what on them."""

from __future__ import annotations

from collections.abc import Callable

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from .. import forge
from ..case import Chapter, Side
from ..peer import Heard
from ..sample import Sample
from ..verdicts import require
from . import giving, taking
from .trial import Trial

cases = Chapter("client/str", Side.CLIENT)


def several(trial: Trial, count: int, filesize: int = 100, **members: object) -> list[Sample]:
    """Give the client that many files to send."""
    samples = [trial.sample(filesize, filename=f"many/{number:04}.bin") for number in range(count)]
    files = [{"path": str(trial.write(sample)), "filename": sample.filename} for sample in samples]
    trial.start("upload-many", files=files, **members)
    return samples


def open_on_2(sample: Sample) -> wire.Open:
    """An OPEN that a server has no right to say in CORE."""
    return sample.with_(sourceid=bytes(range(16))).open()


@cases.add(
    "ids/rise-and-are-odd",
    "STR-001 STR-002",
    why="Two sides that number streams in the same way open the same one.",
)
def ids_rise(trial: Trial) -> None:
    """Twenty files: every stream that the client opens has an odd id, greater than those before."""
    samples = several(trial, 20)
    visit = trial.visit()
    for _ in samples:
        heard = trial.shelf.wanted(visit, "BLOCK or OPEN")
        sample = next(one for one in samples if one.filename == heard.message.filename)  # type: ignore[union-attr]
        taking.take_begun(visit, trial.shelf, sample, heard)
    require(len(visit.begun) >= len(samples), "several files came on one stream", got=str(visit.begun))
    trial.done()


@cases.add("first/ack-on-an-id-of-the-server", "STR-002", why="A stream begins with what says what it is.")
def first_is_ack(trial: Trial) -> None:
    """A new stream of the server begins with ACK."""
    visit, _ = trial.uploading()
    visit.force(forge.frame(2, wire.Ack(0)))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


@cases.add("ids/of-the-client-that-it-has-not-opened", "STR-003", why="An id is opened by its own side only.")
def not_opened(trial: Trial) -> None:
    """ACK on an odd id that the client has not used."""
    visit, upload = trial.uploading()
    visit.force(forge.frame(upload.stream + 1000, wire.Ack(0)))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


@cases.add(
    "first/an-unknown-type-opens-nothing",
    "STR-004 EXT-002",
    why="What is skipped cannot have opened anything.",
)
def unknown_opens_nothing(trial: Trial) -> None:
    """A frame of an unknown type on stream 2, then ACK there: the stream is not open, and so it is not closed either."""
    visit, _ = trial.uploading()
    visit.force(forge.unknown_frame(0x40, stream=2, payload=b"x"))
    visit.alive()
    visit.force(forge.frame(2, wire.Ack(0)))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


@cases.table(
    "server-opens/{}",
    "STR-011 STR-004 STR-008",
    {"open": open_on_2, "list": lambda _: wire.List(1), "fetch": lambda _: wire.Fetch("a")},
    why="In CORE a server opens no streams; a client of CORE must survive one of a later profile.",
)
def server_opens(trial: Trial, first: Callable[[Sample], wire.Message]) -> None:
    """The server opens stream 2: refused with scope stream. What comes on it then is dropped, and the upload goes on."""
    visit, upload = trial.uploading()
    visit.say(2, first(upload.sample))
    visit.expect_error(Code.UNSUPPORTED, stream=2, among=True)
    visit.force(forge.rebuilt(forge.frame(2, wire.Ack(0)), head=b"\0"))
    visit.say(2, wire.Piece(5), b"dropped")
    visit.alive()
    visit.say(upload.stream, upload.opened())
    taking.go_on(visit, trial.shelf, upload)
    trial.stored(upload.sample)


ON_AN_UPLOAD: dict[str, wire.Message] = {
    "result": wire.Result(1),
    "piece": wire.Piece(0),
    "commit": wire.Commit(bytes(16), bytes(32), 0, 0),
    "cancel": wire.Cancel(Code.CANCELLED),
    "have": wire.Have(()),
    "differ-before-commit": wire.Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True),
}
ON_A_DOWNLOAD: dict[str, wire.Message] = {
    "ack": wire.Ack(0),
    "credit": wire.Credit(1 << 20, 0),
    "committed": wire.Committed(bytes(16), bytes(16), bytes(32), 0, "a"),
    "result": wire.Result(1),
    "error-of-a-block": wire.Error(Code.DIGEST_MISMATCH, Scope.BLOCK, True, blockno=0),
}


@cases.table(
    "table/{}-of-a-receiver",
    "STR-005",
    ON_AN_UPLOAD,
    why="A message that is not in the table comes from somebody who is in another state.",
)
def not_for_a_receiver(trial: Trial, message: wire.Message) -> None:
    """A receiver of an upload says what only a sender says, or what it may not say now."""
    visit, upload = trial.uploading()
    visit.say(upload.stream, upload.opened())
    visit.force(forge.frame(upload.stream, message))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


@cases.table(
    "table/{}-of-a-sender",
    "STR-005 CRD-005 ERR-005",
    ON_A_DOWNLOAD,
    why="A sender that acknowledges, grants or refuses blocks has mistaken its role.",
)
def not_for_a_sender(trial: Trial, message: wire.Message) -> None:
    """A sender of a download says what only a receiver says."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    visit.force(forge.frame(download.stream, message))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


@cases.add("table/open-twice", "STR-005", why="A second OPEN would change the facts under the blocks.")
def open_twice(trial: Trial) -> None:
    """The answer to FETCH comes twice."""
    visit, download = trial.downloading()
    visit.say(download.stream, download.open())
    visit.force(forge.frame(download.stream, download.open()))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


@cases.add("table/block-before-open", "STR-005", why="A block of a file that nobody has named.")
def block_before_open(trial: Trial) -> None:
    """FETCH is answered by BLOCK."""
    visit, download = trial.downloading()
    visit.force(forge.frame(download.stream, download.head(0, ends=False), b"x"))
    visit.expect_refusal(Code.UNEXPECTED)
    trial.not_done()


@cases.add(
    "end/exactly-one-committed",
    "STR-006 COM-007",
    why="A stream that ends twice or never holds memory on the other side.",
)
def one_committed(trial: Trial) -> None:
    """A fetcher ends its stream with one COMMITTED and says nothing more on it."""
    sample = trial.sample(BLOCK_LENGTH + 5)
    trial.download(sample)
    visit = trial.visit()
    download = giving.give_download(visit, trial.shelf, sample)
    trial.fetched(sample)
    more = [heard for heard in visit.rest() if heard.stream == download.stream]
    require(
        not more, "the fetcher says something on a stream that it has ended", got=", ".join(map(str, more))
    )


@cases.add(
    "end/of-one-stream-ends-no-other",
    "STR-007 ERR-002",
    why="One file that is refused must not cost the others their connection.",
)
def ends_no_other(trial: Trial) -> None:
    """One of three files is refused: the others are stored over the same connection."""
    samples = several(trial, 3)
    visit = trial.visit()
    refused, stored = samples[1].filename, 0
    for _ in samples:
        heard = trial.shelf.wanted(visit, "BLOCK or OPEN")
        sample = next(one for one in samples if one.filename == heard.message.filename)  # type: ignore[union-attr]
        if sample.filename == refused:
            visit.say(heard.stream, wire.Error(Code.NOT_PERMITTED, Scope.STREAM, False, "not this one"))
            continue
        taking.take_begun(visit, trial.shelf, sample, heard)
        stored += 1
    require(
        stored == len(samples) - 1, "the other files did not come over the same connection", got=str(stored)
    )
    trial.refused("NOT_PERMITTED")


@cases.add(
    "limit/256-streams",
    "STR-009",
    why="A client that opens more than the server takes loses the connection with everything on it.",
)
def streams_max(trial: Trial) -> None:
    """Three hundred files and a server that takes 256 streams: nobody is answered until the client can open no more."""
    samples = {sample.filename: sample for sample in several(trial, 300, 10)}
    visit = trial.visit(hello=wire.Hello(streams_max=wire.STREAMS_EARLY))
    while samples:
        waiting: list[Heard] = []
        while more := visit.settled(wanted=not waiting):
            waiting += [heard for heard in more if not trial.shelf.answer(visit, heard)]
        require(waiting, "the client says nothing although it may open streams")
        for heard in waiting:
            sample = samples.pop(heard.message.filename)  # type: ignore[union-attr]
            taking.take_begun(visit, trial.shelf, sample, heard)
    trial.done()


@cases.add(
    "order/everything-at-once",
    "STR-010 BLK-006",
    why="A client that acts on frames of one stream in another order writes bytes where they do not belong.",
)
def in_order(trial: Trial) -> None:
    """A download whose frames are all there at once, in pieces of 4 KiB."""
    sample = trial.sample(BLOCK_LENGTH + 50_000)
    trial.download(sample)
    visit = trial.visit()
    download = giving.open_download(visit, trial.shelf, sample)
    giving.give(visit, download, piece_length=4_096)
    trial.fetched(sample)

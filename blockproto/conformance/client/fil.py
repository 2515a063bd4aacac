"""FIL for clients: small files in frames. Clients whose HELLO has not the feature FILES are examined by one case only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ... import wire
from ...common.blocks import digest_of
from ...errors import Code, Scope
from .. import forge
from ..case import Chapter, Side
from ..peer import Heard
from ..sample import Sample
from ..verdicts import Closed, Failed, Unsupported, require
from . import taking
from .str_ import several
from .trial import Trial
from .visit import Visit

cases = Chapter("client/fil", Side.CLIENT)
HELLO = wire.Hello(features=wire.FEATURE_FILES, agent="blockproto-conform")
RENAMED, THERE, LEFT, REFUSED = list(wire.Status)[1:]


@dataclass
class Frames:
    """The frames of one stream, as an honest server takes them.

    Attributes:
        samples: the files that may come, by name.
        stream: on which they come.
        came: the files of each frame, by its number.
        last: whether LAST has come.
        sourceids: that of each file that came.
    """

    samples: dict[str, Sample]
    stream: int = 0
    came: dict[int, list[Sample]] = field(default_factory=dict)
    last: bool = False
    sourceids: dict[str, bytes] = field(default_factory=dict)

    def take(self, visit: Visit, heard: Heard) -> list[Sample]:
        """Take one FILES in, and hold it against the files; returns its files."""
        message = heard.message
        if not isinstance(message, wire.Files):
            raise visit.unexpected("FILES", heard)
        self.stream = self.stream or heard.stream
        require(heard.stream == self.stream, "FILES comes on another stream", got=str(heard))
        require(not self.last, "FILES comes behind the one with LAST", got=str(heard))
        require(
            message.number > max(self.came, default=-1), "the numbers of FILES do not rise", got=str(heard)
        )
        require(
            message.payload_length == len(heard.payload), "the payload has another length", got=str(heard)
        )
        taken, at = [], 0
        for record, name in zip(message.table.records, message.table.names, strict=True):
            sourceid, digest, filesize, _, _, folder, _, _ = record
            filename = f"{message.folders[folder]}/{name}" if message.folders[folder] else name
            if filename not in self.samples:
                raise Failed("a file comes that was not to be sent", got=filename, clause="BP1-FIL-004")
            sample = self.samples[filename]
            content = heard.payload[at : at + filesize]
            at += filesize
            require(content == sample.content, "a file comes with other bytes", got=filename)
            require(digest == digest_of(content), "a digest is not that of the file's bytes", got=filename)
            self.sourceids[filename] = sourceid
            taken.append(sample)
        self.came[message.number] = taken
        self.last = message.last
        return taken

    def all_came(self) -> bool:
        """Whether every file has come."""
        return len(self.sourceids) == len(self.samples)


def begun(trial: Trial, count: int, filesize: int = 20, hello: wire.Hello = HELLO) -> tuple[Visit, Frames]:
    """The client has so many files to send, and has connected."""
    samples = several(trial, count, filesize)
    visit = trial.visit(hello=hello)
    require_feature(visit)
    return visit, Frames({sample.filename: sample for sample in samples})


def require_feature(visit: Visit) -> None:
    """The client knows FILES."""
    assert visit.hello is not None
    if not visit.hello.features & wire.FEATURE_FILES:
        raise Unsupported("the client does not have the feature FILES")


def next_frame(trial: Trial, visit: Visit, frames: Frames) -> tuple[int, list[Sample]]:
    """The next FILES: its number and its files."""
    heard = trial.shelf.wanted(visit, "FILES")
    taken = frames.take(visit, heard)
    assert isinstance(heard.message, wire.Files)
    return heard.message.number, taken


def answer(visit: Visit, frames: Frames, number: int, *, last: bool = False, **changes: Any) -> None:
    """STORED for a frame: all as asked, unless told otherwise."""
    fields: dict[str, Any] = {"statuses": bytes(len(frames.came[number])), "outcomes": (), **changes}
    visit.say(frames.stream, wire.Stored(number, last=last, **fields))


def finish(trial: Trial, visit: Visit, frames: Frames) -> None:
    """Take and answer whatever still comes, up to LAST."""
    while not frames.last:
        number, _ = next_frame(trial, visit, frames)
        answer(visit, frames, number, last=frames.last)


def finish_streams(trial: Trial, visit: Visit, samples: dict[str, Sample]) -> dict[str, bytes]:
    """Take and answer all files, on as many streams as the client likes; returns their sourceids by name."""
    streams: dict[int, Frames] = {}
    sourceids: dict[str, bytes] = {}
    while len(sourceids) < len(samples) or not all(frames.last for frames in streams.values()):
        heard = trial.shelf.wanted(visit, "FILES")
        frames = streams.setdefault(heard.stream, Frames(samples, sourceids=sourceids))
        frames.take(visit, heard)
        assert isinstance(heard.message, wire.Files)
        answer(visit, frames, heard.message.number, last=frames.last)
    return sourceids


def only_frame(trial: Trial, visit: Visit, frames: Frames) -> tuple[int, list[Sample], bool]:
    """The frame that has all files, and whether it has LAST; a LAST of its own is taken, too."""
    number, taken = next_frame(trial, visit, frames)
    require(frames.all_came(), "three small files come in more than one frame", got=str(len(taken)))
    return number, taken, frames.last


def told(
    trial: Trial, visit: Visit, frames: Frames, statuses: list[int], *outcomes: wire.OutcomeItem
) -> None:
    """Three files, and what became of them."""
    number, _, last = only_frame(trial, visit, frames)
    answer(visit, frames, number, last=last, statuses=bytes(statuses), outcomes=outcomes)
    finish(trial, visit, frames)


def item_of(sample: Sample, **changes: Any) -> wire.StoredItem:
    """What became of a file under another name."""
    fields = {
        "file_id": bytes(16),
        "root": sample.root,
        "filesize": sample.filesize,
        "stored_as": "another.bin",
    }
    return wire.StoredItem(**{**fields, **changes})


# ---- frames


@cases.table(
    "frames/{}-files",
    "FIL-002 FIL-003 FIL-004",
    {"3": 3, "300": 300},
    why="A tree of small files is sent in the time that its bytes take, or in that of its files.",
    layer=2,
)
def frames_of(trial: Trial, count: int) -> None:
    """Files that are small: they come in frames, each with its own name, bytes and digest, and are answered."""
    visit, frames = begun(trial, count)
    sourceids = finish_streams(trial, visit, frames.samples)
    require(len(set(sourceids.values())) == count, "two files have one sourceid", got=str(count))
    require(trial.done().get("files") == count, "another number of files is reported", got=str(trial.answer))


@cases.add(
    "feature/not-said-by-the-server",
    "FIL-001",
    why="To an older server FILES is a type that it refuses.",
)
def no_feature(trial: Trial) -> None:
    """A server without the feature: the files come one by one."""
    samples = several(trial, 3)
    visit = trial.visit()
    by_name = {sample.filename: sample for sample in samples}
    while by_name:
        heard = trial.shelf.wanted(visit, "BLOCK or OPEN")
        if isinstance(heard.message, wire.Files):
            raise Failed("FILES comes to a server that does not know it", got=str(heard))
        sample = by_name.pop(heard.message.filename)  # type: ignore[union-attr]
        taking.take_begun(visit, trial.shelf, sample, heard)
    trial.done()


# ---- answers


@cases.table(
    "answers/{}",
    "FIL-013",
    {"another-name": RENAMED, "there": THERE},
    why="What was stored under another name, or was there, is no failure.",
)
def stored_otherwise(trial: Trial, status: int) -> None:
    """One of three files is stored under another name, or was there: the job is done."""
    visit, frames = begun(trial, 3)
    second = list(frames.samples.values())[1]
    told(trial, visit, frames, [0, status, 0], item_of(second))
    require(trial.done().get("files") == 3, "another number of files is reported", got=str(trial.answer))


@cases.add(
    "answers/refused", "FIL-013 FIL-005", why="A file that is not there must not be reported as stored."
)
def refused(trial: Trial) -> None:
    """One of three files is refused."""
    visit, frames = begun(trial, 3)
    told(trial, visit, frames, [0, REFUSED, 0], wire.RefusalItem(Code.NOT_PERMITTED, False))
    trial.refused("NOT_PERMITTED")


@cases.add(
    "answers/left-unasked",
    "FIL-013 COM-025",
    why="Nobody said skip: what is there is not this file, and people delete their copy.",
)
def left(trial: Trial) -> None:
    """One of three files is said to have been left, with if_exists keep."""
    visit, frames = begun(trial, 3)
    second = list(frames.samples.values())[1]
    told(trial, visit, frames, [0, LEFT, 0], item_of(second))
    trial.not_done()


@cases.table(
    "answers/{}",
    "FIL-013 COM-008",
    {"another-root": {"root": bytes(32)}, "another-filesize": {"filesize": 7}},
    why="The sourceid was used for another file: this one is not there.",
)
def another_file(trial: Trial, changes: dict[str, Any]) -> None:
    """The outcome of a file names other bytes: SOURCE_CHANGED, not success."""
    visit, frames = begun(trial, 3)
    second = list(frames.samples.values())[1]
    told(trial, visit, frames, [0, THERE, 0], item_of(second, **changes))
    trial.refused("SOURCE_CHANGED")


@cases.add(
    "damaged/sent-again",
    "FIL-005 ERR-006",
    why="A flipped bit on the way costs one file one more try.",
    layer=2,
)
def damaged(trial: Trial) -> None:
    """One of three files arrives damaged: it alone comes again, in a later frame, and the job is done."""
    visit, frames = begun(trial, 3)
    number, taken, last = only_frame(trial, visit, frames)
    refusal = wire.RefusalItem(Code.DIGEST_MISMATCH, True)
    answer(visit, frames, number, last=last, statuses=bytes([0, REFUSED, 0]), outcomes=(refusal,))
    if not last:
        finish(trial, visit, frames)
    again = Frames(frames.samples)
    number, other = next_frame(trial, visit, again)
    require(other == taken[1:2], "other files come again", got=str([one.filename for one in other]))
    answer(visit, again, number, last=again.last)
    finish(trial, visit, again)
    require(trial.done().get("files") == 3, "another number of files is reported", got=str(trial.answer))


@cases.add(
    "damaged/again-and-again",
    "FIL-005 ERR-006",
    why="A disk or a machine that damages what it reads would be asked for ever.",
    layer=2,
)
def damaged_for_ever(trial: Trial) -> None:
    """One file arrives damaged each time: it comes six times at most, and the job fails."""
    visit, frames = begun(trial, 1)
    refusal = wire.RefusalItem(Code.DIGEST_MISMATCH, True)
    came = 0
    try:
        while True:
            number, taken = next_frame(trial, visit, frames)
            came += len(taken)
            require(came <= 6, "a file that arrives damaged comes more often than it may", got=str(came))
            if taken:
                answer(
                    visit, frames, number, last=frames.last, statuses=bytes([REFUSED]), outcomes=(refusal,)
                )
            else:
                answer(visit, frames, number, last=True)
            frames = Frames(frames.samples) if frames.last else frames
    except Closed:
        pass
    trial.not_done("DIGEST_MISMATCH")


@cases.table(
    "answers/refused/{}",
    "FIL-006",
    {"of-no-frame": (99, 1), "more-than-there-are": (0, 100)},
    why="Who takes an answer to nothing for one has lost count of its files.",
)
def stray(trial: Trial, what: tuple[int, int]) -> None:
    """STORED that answers what was not asked: BAD_FACTS, and the job is not done."""
    visit, frames = begun(trial, 3)
    number, _, _ = only_frame(trial, visit, frames)
    offset, count = what
    visit.say(frames.stream, wire.Stored(number + offset, bytes(count)))
    visit.expect_error(Code.BAD_FACTS, stream=frames.stream, among=True)
    trial.not_done()


@cases.add(
    "answers/refused/last-too-early", "FIL-006 FIL-009", why="What LAST leaves out would be taken for stored."
)
def last_too_early(trial: Trial) -> None:
    """STORED with LAST, and two of three files are not answered."""
    visit, frames = begun(trial, 3)
    number, _, _ = only_frame(trial, visit, frames)
    if not frames.last:
        next_frame(trial, visit, frames)
    visit.say(frames.stream, wire.Stored(number, bytes(1), last=True))
    visit.expect_error(Code.BAD_FACTS, stream=frames.stream, among=True)
    trial.not_done()


@cases.add(
    "answers/refused/an-outcome-is-missing",
    "FIL-006",
    why="The next outcome would be taken for that of another file.",
)
def outcome_missing(trial: Trial) -> None:
    """A status that wants an outcome, and none is there."""
    visit, frames = begun(trial, 3)
    number, _, _ = only_frame(trial, visit, frames)
    visit.force(
        forge.frame(
            frames.stream, forge.unjudged(wire.Stored(number, bytes(3)), statuses=bytes([0, RENAMED, 0]))
        )
    )
    visit.expect_refusal(Code.MALFORMED)
    trial.not_done()


# ---- limits


@cases.add(
    "limits/frames-that-are-not-answered",
    "FIL-010",
    why="What is not answered is in the memory of the server.",
    layer=4,
)
def unanswered(trial: Trial) -> None:
    """200 files and no answer: 64 frames come at most. Then all is answered."""
    hello = wire.Hello(features=wire.FEATURE_FILES, piece_length_max=65_536, agent="blockproto-conform")
    visit, frames = begun(trial, 200, 10_000, hello)
    while not frames.last:
        waiting = [next_frame(trial, visit, frames)[0]]
        for heard in visit.settled(tells=True):
            if not trial.shelf.answer(visit, heard):
                frames.take(visit, heard)
                waiting.append(heard.message.number)  # type: ignore[union-attr]
        require(
            len(waiting) <= wire.FRAMES_MAX, "more frames come than may be unanswered", got=str(len(waiting))
        )
        for at, number in enumerate(waiting):
            answer(visit, frames, number, last=at == len(waiting) - 1 and frames.last)
    require(frames.all_came(), "not all files have come", got=str(len(frames.sourceids)))
    trial.done()


@cases.add(
    "limits/undurable-max",
    "FIL-010 CRD-009",
    why="So is what the server has said that it takes without having stored it.",
    layer=4,
)
def undurable(trial: Trial) -> None:
    """undurable_max of 15,000 bytes: a frame comes only while fewer are not answered."""
    most = 15_000
    hello = wire.Hello(
        features=wire.FEATURE_FILES, piece_length_max=65_536, undurable_max=most, agent="blockproto-conform"
    )
    visit, frames = begun(trial, 20, 10_000, hello)
    while not frames.last:
        waiting = [next_frame(trial, visit, frames)]
        for heard in visit.settled(tells=True):
            if not trial.shelf.answer(visit, heard):
                before = sum(one.filesize for _, taken in waiting for one in taken)
                require(before < most, "FILES comes while more is unanswered than may be", got=str(before))
                waiting.append((heard.message.number, frames.take(visit, heard)))  # type: ignore[union-attr]
        for at, (number, _) in enumerate(waiting):
            answer(visit, frames, number, last=at == len(waiting) - 1 and frames.last)
    trial.done()


# ---- the end


@cases.add(
    "lost/what-was-not-answered-comes-again",
    "FIL-014 FIL-008",
    why="After a tunnel only what has not arrived is sent, and nothing is stored twice.",
    layer=3,
)
def lost(trial: Trial) -> None:
    """The line breaks when some frames were answered: the other files come again, with the same sourceids."""
    hello = wire.Hello(features=wire.FEATURE_FILES, piece_length_max=65_536, agent="blockproto-conform")
    visit, frames = begun(trial, 12, 10_000, hello)
    number, stored = next_frame(trial, visit, frames)
    answer(visit, frames, number)
    visit.alive()
    visit.reset()
    trial.shelf.receipts |= {
        frames.sourceids[one.filename]: wire.ReceiptItem(
            frames.sourceids[one.filename], bytes(16), one.root, one.filesize, one.filename
        )
        for one in stored
    }
    visit = trial.visit(hello=hello)
    again = Frames(frames.samples)
    finish(trial, visit, again)
    twice = [one.filename for one in stored if one.filename in again.sourceids]
    require(not twice, "files come again that were answered", got=str(twice))
    other = [name for name, id_ in again.sourceids.items() if frames.sourceids.get(name, id_) != id_]
    require(not other, "files come again under other sourceids", got=str(other))
    require(trial.done().get("files") == 12, "another number of files is reported", got=str(trial.answer))


@cases.add(
    "goaway/says-last",
    "FIL-016 END-008",
    why="A server that is told to stop waits for what is under way, and for nothing that begins now.",
    layer=2,
)
def goaway(trial: Trial) -> None:
    """GOAWAY in the middle: no more files come on that connection, but LAST; the rest comes on the next."""
    hello = wire.Hello(
        features=wire.FEATURE_FILES, piece_length_max=65_536, undurable_max=1, agent="blockproto-conform"
    )
    visit, frames = begun(trial, 12, 10_000, hello)
    number, _ = next_frame(trial, visit, frames)
    visit.say(0, wire.GoAway(Code.GOING_AWAY, 60_000, 0))
    visit.alive()
    answer(visit, frames, number)
    heard = trial.shelf.wanted(visit, "FILES with LAST")
    require(not frames.take(visit, heard), "files come behind GOAWAY", got=str(heard))
    require(frames.last, "FILES without files has no LAST", got=str(heard))
    visit.say(frames.stream, wire.Stored(heard.message.number, b"", last=True))  # type: ignore[union-attr]
    again = Frames(frames.samples)
    finish(trial, trial.visit(hello=hello), again)
    require(trial.done().get("files") == 12, "another number of files is reported", got=str(trial.answer))


@cases.add(
    "error/of-the-stream",
    "FIL-013 ERR-002",
    why="A refusal of the stream is one of every file that was not answered.",
)
def stream_refused(trial: Trial) -> None:
    """ERROR of scope stream instead of an answer: the job is not done."""
    visit, frames = begun(trial, 3)
    only_frame(trial, visit, frames)
    visit.say(frames.stream, wire.Error(Code.NOT_PERMITTED, Scope.STREAM, False))
    trial.not_done("NOT_PERMITTED")

"""FIL, the second half: what became of each file, the same again, and the end of a stream."""

from __future__ import annotations

from ... import wire
from ...errors import Code, Scope
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..verdicts import Unsupported, require
from .fil import (
    KEEP,
    LEFT,
    REFUSE,
    RENAMED,
    REPLACE,
    SKIP,
    STORED,
    THERE,
    answers,
    dialled,
    frame_of,
    refused_alone,
    require_statuses,
    require_there,
    sent,
)

cases = Chapter("fil", Side.SERVER)


# ---- what becomes of a file


@cases.add(
    "damaged/one-of-three",
    "FIL-005 BLK-011",
    why="A frame is as good as its worst file, if one damaged byte refuses all of them.",
)
def damaged(trial: Trial) -> None:
    """A byte of the second file is changed on the way: it is refused, and stored when it comes again."""
    peer, samples = dialled(trial), [trial.sample(10) for _ in range(3)]
    statuses, outcomes = sent(peer, samples, damaged=1)
    refused_alone(statuses, outcomes, 1, Code.DIGEST_MISMATCH)
    require(outcomes[0].retryable, "damage is said not to be worth another try", got=str(outcomes[0]))
    require(moves.stat(peer, samples[1].filename, 3) is None, "a damaged file is stored")
    statuses, _ = sent(peer, samples[1:2], 2)
    require_statuses(statuses, STORED)
    require_there(peer, samples, 5)


@cases.table(
    "taken/{}",
    "FIL-006 COM-013 COM-014",
    {"keep": KEEP, "refuse": REFUSE, "replace": REPLACE},
    why="What the answer does not say is lost: the client tells its user another name than the file has.",
    layer=2,
)
def taken(trial: Trial, rule: int) -> None:
    """A name that is taken by other bytes, beside one that is free."""
    peer, first, beside = dialled(trial), trial.sample(100), trial.sample(50)
    second = first.with_(sourceid=trial.sourceid(), seed=first.seed + 1)
    sent(peer, [first])
    statuses, outcomes = sent(peer, [second, beside], 2, if_exists=rule)
    if rule == REPLACE:
        require_statuses(statuses, STORED, STORED)
        require_there(peer, [second, beside])
    elif rule == REFUSE:
        refused_alone(statuses, outcomes, 0, Code.FILE_EXISTS)
        require_there(peer, [first, beside])
    else:
        require_statuses(statuses, RENAMED, STORED)
        (item,) = outcomes
        said = (item.root, item.filesize)
        require(said == (second.root, second.filesize), "the outcome is of another file", got=str(item))
        require(any(item.file_id), "the outcome has no file id", got=str(item))
        require_there(peer, [first, beside])
        moves.fetch(peer, 7, wire.Fetch(item.stored_as), second)


def with_if_exists(peer: Peer) -> Peer:
    """The same connection, if the server compares with what is there."""
    assert peer.hello is not None
    if not peer.hello.features & wire.FEATURE_IF_EXISTS:
        raise Unsupported("the server does not have the feature IF_EXISTS")
    return peer


@cases.add(
    "there/same-bytes-of-another-upload",
    "FIL-006 COM-021 FIL-005",
    why="The same tree from two machines must not become two trees.",
    layer=2,
)
def there(trial: Trial) -> None:
    """The name is taken by the very same bytes: THERE."""
    peer, sample = with_if_exists(dialled(trial)), trial.sample(100)
    sent(peer, [sample])
    statuses, (item,) = sent(peer, [sample.with_(sourceid=trial.sourceid())], 2)
    require_statuses(statuses, THERE)
    said = (item.root, item.filesize, item.stored_as)
    require(
        said == (sample.root, sample.filesize, sample.filename),
        "the outcome is of another file",
        got=str(item),
    )


@cases.add(
    "left/skip",
    "FIL-006 COM-025 FIL-005",
    why="A client that takes it for stored believes that its own bytes are there.",
    layer=2,
)
def left(trial: Trial) -> None:
    """The name is taken and was to be left: LEFT, and what is there stays."""
    peer, sample = with_if_exists(dialled(trial)), trial.sample(100)
    sent(peer, [sample])
    other = sample.with_(sourceid=trial.sourceid(), seed=sample.seed + 1)
    statuses, (item,) = sent(peer, [other], 2, if_exists=SKIP)
    require_statuses(statuses, LEFT)
    require(item.stored_as == sample.filename, "the outcome has another name", got=str(item))
    require_there(peer, [sample])


@cases.add(
    "rules/if-exists-5",
    "FRM-019 FIL-005",
    why="What is done with a file of somebody else's must not be guessed.",
)
def unknown_rule(trial: Trial) -> None:
    """An if_exists that nobody knows."""
    peer, sample = dialled(trial), trial.sample(10)
    raw = forge.frame(1, *frame_of([sample]))
    peer.opened(1)
    peer.count(1, 10)
    peer.send(forge.patched(raw, 4, b"\5"))
    peer.expect_error(Code.UNSUPPORTED, stream=1)
    peer.ping()


@cases.add(
    "answers/in-small-heads",
    "FIL-006 FRM-006 HEL-010",
    why="A phone that takes heads of 4 KiB must be able to send a full frame and to understand its answer.",
    layer=2,
)
def small_heads(trial: Trial) -> None:
    """100 names that are taken, to a client that takes small heads: several STORED, in the order of the files."""
    folder = trial.name("")
    hello = wire.Hello(features=wire.FEATURE_FILES, head_length_max=4096, agent="blockproto-conform")
    peer = dialled(trial, hello)
    samples = [trial.sample(3, filename=f"{folder}/{'n' * 100}{at}") for at in range(100)]
    sent(peer, samples)
    again = [sample.with_(sourceid=trial.sourceid(), seed=sample.seed + 1) for sample in samples]
    statuses, outcomes = sent(peer, again, 2, if_exists=KEEP)
    require_statuses(statuses, *[RENAMED] * 100)
    said = [item.root for item in outcomes]
    require(said == [sample.root for sample in again], "the outcomes are not in the order of the files")


# ---- the same again


@cases.table(
    "again/{}",
    "FIL-008 COM-010",
    {
        "in-one-frame": "frame",
        "on-one-connection": "stream",
        "on-another": "connection",
        "as-a-brief-file": "brief",
    },
    why="Who lost the answer sends the same again; a second copy would be its thanks.",
    layer=2,
)
def again(trial: Trial, how: str) -> None:
    """The same file of the same upload again, while the first is being stored or later: one file, the same answer."""
    peer, sample = dialled(trial), trial.sample(500)
    if how == "frame":
        statuses, _ = sent(peer, [sample, sample])
        require_statuses(statuses, STORED, STORED)
    else:
        peer.say(1, *frame_of([sample]))
        other = dialled(trial) if how == "connection" else peer
        if how == "brief":
            moves.brief(peer, sample, 3)
        else:
            other.say(3, *frame_of([sample], 9))
        require_statuses(answers(peer, 1)[0], STORED)
        if how != "brief":
            require_statuses(answers(other, 1, 9, 3)[0], STORED)
    require_there(peer, [sample], 5)
    twin = sample.filename.removesuffix(".bin") + " (1).bin"
    require(moves.stat(peer, twin, 7) is None, "the same upload is stored twice")


@cases.table(
    "again/other-bytes/{}",
    "FIL-008 COM-010",
    {"in-one-frame": True, "later": False},
    why="One sourceid is one file; other bytes under it are a mistake that must be told.",
)
def other_bytes(trial: Trial, together: bool) -> None:
    """The sourceid with other bytes: that file is refused, the first stays."""
    peer, sample = dialled(trial), trial.sample(500)
    other = sample.with_(seed=sample.seed + 1)
    if together:
        statuses, outcomes = sent(peer, [sample, other])
        refused_alone(statuses, outcomes, 1, Code.SOURCE_CHANGED)
    else:
        sent(peer, [sample])
        statuses, outcomes = sent(peer, [other, trial.sample(10)], 2)
        refused_alone(statuses, outcomes, 0, Code.SOURCE_CHANGED)
    require_there(peer, [sample])


@cases.add(
    "again/ends-an-unfinished-upload",
    "FIL-008 BLK-019",
    why="A client that forgot its upload and sends the file among others has finished it.",
    layer=2,
)
def ends_upload(trial: Trial) -> None:
    """An upload is open on another connection; its file comes in FILES: the stream gets COMMITTED."""
    first, peer, sample = trial.dial(), dialled(trial), trial.sample(60_000)
    moves.begin(first, sample)
    moves.send_block(first, sample, 0, stop=20_000)
    first.ping()
    statuses, _ = sent(peer, [sample])
    require_statuses(statuses, STORED)
    moves.expect_committed(first, sample)


# ---- the end of a stream


@cases.table(
    "last/{}",
    "FIL-009 STR-006",
    {"with-files": "with", "alone": "alone", "after-the-answers": "after", "nothing-else": "nothing"},
    why="A stream that is not ended counts against streams_max for ever.",
    layer=2,
)
def last(trial: Trial, how: str) -> None:
    """LAST, with files or without: STORED with LAST ends the stream, once everything is answered."""
    peer, samples = dialled(trial), [trial.sample(10), trial.sample(10)]
    nothing = wire.Files(9, last=True)
    if how == "with":
        sent(peer, samples, last=True)
    elif how == "nothing":
        peer.say(1, nothing)
        peer.expect(wire.Stored, 1, statuses=b"", last=True)
    elif how == "after":
        sent(peer, samples)
        peer.say(1, nothing)
        peer.expect(wire.Stored, 1, statuses=b"", last=True)
    else:
        peer.say(1, *frame_of(samples))
        peer.say(1, nothing)
        statuses, _, ended = answers(peer, 2)
        require_statuses(statuses, STORED, STORED)
        if not ended:
            peer.expect(wire.Stored, 1, statuses=b"", last=True)
    peer.say(1, *frame_of([trial.sample(10)], 99))  # on a closed stream: dropped
    peer.ping()


@cases.add(
    "last/files-behind-it",
    "FIL-009 STR-005",
    why="What comes behind the last belongs to nothing that is waited for.",
)
def behind_last(trial: Trial) -> None:
    """FILES behind the one with LAST, before that is answered."""
    peer = dialled(trial)
    samples = [trial.sample(10) for _ in range(200)]
    first, payload = frame_of(samples, last=True)
    second, more = frame_of([trial.sample(10)], 2)
    peer.opened(1)
    peer.count(1, len(payload) + len(more))
    peer.send(forge.frame(1, first, payload) + forge.frame(1, second, more))
    while True:
        heard = peer.hear("ERROR UNEXPECTED, or STORED with LAST")
        if isinstance(heard.message, wire.Error):
            peer.judge_error(heard, Code.UNEXPECTED, scope=Scope.CONNECTION)
            return
        if isinstance(heard.message, wire.Stored) and heard.message.last:
            raise Unsupported("the server had answered before what was behind LAST came")


@cases.add(
    "cancel/before-last",
    "FIL-012 COM-016",
    why="A client that gives up must know which of its files are there.",
    layer=2,
)
def cancelled(trial: Trial) -> None:
    """Frames, then CANCEL: each frame is answered, then comes CANCELLED."""
    peer = dialled(trial)
    frames_ = [[trial.sample(10) for _ in range(5)] for _ in range(4)]
    for number, samples in enumerate(frames_):
        peer.say(1, *frame_of(samples, number))
    peer.say(1, wire.Cancel(Code.CANCELLED))
    for number in range(4):
        require_statuses(answers(peer, 5, number)[0], *[STORED] * 5)
    peer.expect_error(Code.CANCELLED, stream=1)
    require_there(peer, [samples[0] for samples in frames_])


@cases.add(
    "cancel/after-last",
    "FIL-012 COM-018",
    why="It was too late, and the client must hear what was stored.",
    layer=2,
)
def cancelled_too_late(trial: Trial) -> None:
    """LAST, then CANCEL: the answers, and no error."""
    peer, samples = dialled(trial), [trial.sample(10) for _ in range(5)]
    message, payload = frame_of(samples, last=True)
    peer.opened(1)
    peer.count(1, len(payload))
    peer.send(forge.frame(1, message, payload) + forge.frame(1, wire.Cancel(Code.CANCELLED, discard=True)))
    statuses, _, ended = answers(peer, 5)
    require_statuses(statuses, *[STORED] * 5)
    require(ended, "STORED with LAST does not come")
    peer.ping()

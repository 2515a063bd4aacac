"""FIL: many small files in one frame. Servers whose HELLO has not the feature FILES are examined by one case only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import wire
from ...common.file_table import MODE_UNSAID, MTIME_UNSAID, RECORD, FileTable
from ...errors import Code
from .. import forge, moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import Unsupported, require

cases = Chapter("fil", Side.SERVER)
KEEP, REFUSE, REPLACE, SKIP = range(4)
STORED, RENAMED, THERE, LEFT, REFUSED = wire.Status
FOLDER = moves.FILETYPE_FOLDER
MTIME_NS = 1_700_000_000 * 10**9
HELLO = wire.Hello(features=wire.FEATURE_FILES, agent="blockproto-conform")


def dialled(trial: Trial, hello: wire.Hello = HELLO) -> Peer:
    """A connection to a server that has the feature, and has heard that we have it."""
    peer = trial.dial(hello=hello)
    assert peer.hello is not None
    if not peer.hello.features & wire.FEATURE_FILES:
        raise Unsupported("the server does not have the feature FILES")
    return peer


def frame_of(
    samples: Sequence[Sample], number: int = 1, *, damaged: int | None = None, **changes: Any
) -> tuple[wire.Files, bytes]:
    """FILES with these files, and its payload; ``damaged``: whose first byte is changed on the way."""
    facts = {"mtime_ns": MTIME_NS, "mode": 0o644}
    facts |= {name: changes.pop(name) for name in facts if name in changes}
    parts = [sample.filename.rpartition("/") for sample in samples]
    folders = tuple(dict.fromkeys(folder for folder, _, _ in parts))
    filetypes = tuple(dict.fromkeys(sample.filetype for sample in samples))
    records = tuple(
        (
            sample.sourceid, sample.root, sample.filesize, facts["mtime_ns"], facts["mode"], folders.index(folder),
            filetypes.index(sample.filetype), len(name.encode("utf-8", "surrogateescape")),
        )
        for sample, (folder, _, name) in zip(samples, parts, strict=True)
    )  # fmt: skip
    table = FileTable(records, tuple(name for _, _, name in parts))
    contents = [sample.content for sample in samples]
    if damaged is not None:
        contents[damaged] = bytes([contents[damaged][0] ^ 1]) + contents[damaged][1:]
    return wire.Files(number, folders, filetypes, table, **changes), b"".join(contents)


def answers(peer: Peer, count: int, number: int = 1, stream: int = 1) -> tuple[bytes, list[Any], bool]:
    """The statuses and outcomes of a frame with ``count`` files, however many STORED have them, and whether LAST came."""
    statuses, outcomes = b"", list[Any]()
    while True:
        message = peer.expect(wire.Stored, stream, number=number)
        statuses += message.statuses
        outcomes += message.outcomes
        require(len(statuses) <= count, "STORED has more statuses than the frame had files", got=str(message))
        if len(statuses) == count:
            return statuses, outcomes, message.last


def sent(
    peer: Peer, samples: Sequence[Sample], number: int = 1, stream: int = 1, **changes: Any
) -> tuple[bytes, list[Any]]:
    """One frame and what became of its files, which is all that is said of them."""
    peer.say(stream, *frame_of(samples, number, **changes))
    statuses, outcomes, last = answers(peer, len(samples), number, stream)
    require(
        last is changes.get("last", False), "LAST is said where FILES had none, or is not said", got=str(last)
    )
    return statuses, outcomes


def require_statuses(statuses: bytes, *wanted: int) -> None:
    """These and no others."""
    require(
        list(statuses) == list(wanted),
        "the files have other statuses",
        expected=str([int(one) for one in wanted]),
        got=str(list(statuses)),
    )


def require_there(peer: Peer, samples: Sequence[Sample], stream: int = 3) -> None:
    """The files have their names and bytes."""
    for at, sample in enumerate(samples):
        moves.fetch(peer, stream + 2 * at, wire.Fetch(sample.filename), sample)


def refused_alone(statuses: bytes, outcomes: Sequence[Any], at: int, code: Code) -> None:
    """The file at that place is refused with that code, all others are stored."""
    wanted = [REFUSED if place == at else STORED for place in range(len(statuses))]
    require_statuses(statuses, *wanted)
    (item,) = outcomes
    require(item.code == code, "a file is refused with another code", expected=code.name, got=str(item))


# ---- the feature


@cases.add(
    "feature/not-said-by-the-client",
    "FIL-001 EXT-001 CRD-001",
    why="Where nobody has said that the number means this, a later version may have given it another meaning.",
)
def feature_not_said(trial: Trial) -> None:
    """FILES from a client whose HELLO does not have the feature: a type that nobody knows and that must be understood."""
    peer, sample = trial.dial(), trial.sample(1_000)
    peer.opened(1)
    peer.send(forge.frame(1, *frame_of([sample], last=True)))
    peer.expect_error(Code.UNSUPPORTED, stream=1)
    peer.ping()
    moves.require_absent(
        trial, sample.filename, "a file is stored that came in a message nobody had agreed on"
    )


# ---- frames


@cases.table(
    "frames/{}",
    "FIL-002 FIL-006",
    {
        "one-byte": [1],
        "an-empty-file-among-others": [3, 0, 2],
        "nothing-but-empty-files": [0, 0],
        "65536-bytes": [30_000, 35_536],
        "100-files": [10] * 100,
    },
    why="Most trees are small files: what a frame of them costs is what a tree costs.",
    layer=2,
)
def frames(trial: Trial, sizes: list[int]) -> None:
    """Files in one frame; each is there with its own bytes."""
    peer, samples = dialled(trial), [trial.sample(size) for size in sizes]
    statuses, _ = sent(peer, samples)
    require_statuses(statuses, *[STORED] * len(samples))
    require_there(peer, samples[:8])


@cases.add(
    "frames/256-files-in-16-folders",
    "FIL-002 FIL-004",
    why="The most there can be in one frame is taken.",
    layer=2,
)
def most_files(trial: Trial) -> None:
    """256 files; a few of them are fetched."""
    peer, folder = dialled(trial), trial.name("")
    samples = [trial.sample(5, filename=f"{folder}/{at % 16}/{at}") for at in range(256)]
    statuses, _ = sent(peer, samples)
    require_statuses(statuses, *[STORED] * 256)
    require_there(peer, samples[::50])


@cases.add(
    "frames/several-on-one-stream",
    "FIL-003 FIL-006 STR-010",
    why="Who waits for each answer before the next frame pays a round trip for each.",
    layer=2,
)
def several(trial: Trial) -> None:
    """Ten frames one after another, whose numbers rise by more than one; each is answered."""
    peer = dialled(trial)
    samples = [[trial.sample(20) for _ in range(3)] for _ in range(10)]
    for at, some in enumerate(samples):
        peer.say(1, *frame_of(some, 7 * at, last=at == 9))
    left = {7 * at: 3 for at in range(10)}
    while left:
        message = peer.expect(wire.Stored, 1)
        require(message.number in left, "STORED has a number that is not waiting", got=str(message))
        left[message.number] -= len(message.statuses)
        require_statuses(message.statuses, *[STORED] * len(message.statuses))
        if not left[message.number]:
            del left[message.number]
        require(message.last is (not left), "LAST does not come with the last answer", got=str(message))
    require_there(peer, [some[0] for some in samples])


@cases.table(
    "payload/{}",
    "FIL-002",
    {"too-short": -1, "too-long": 1},
    why="One byte more or less, and every file behind it has the bytes of another.",
)
def payload_length(trial: Trial, more: int) -> None:
    """A payload that is not as long as the files together."""
    peer, samples = dialled(trial), [trial.sample(10), trial.sample(10)]
    message, payload = frame_of(samples)
    payload = payload[:more] if more < 0 else payload + bytes(more)
    peer.say(1, message, payload)
    peer.expect_error(Code.BAD_FACTS, stream=1)
    peer.ping()
    moves.require_absent(trial, samples[0].filename, "a file of a refused frame is stored")


def _table_of(trial: Trial, head: bytes) -> bytes:
    """The place where the records of a head begin: behind number, if_exists, and the two lists of one string each."""
    at = 5
    for _ in range(2):
        at += 4 + int.from_bytes(head[at + 2 : at + 4], "big")
    return head[:at]


@cases.table(
    "malformed/{}",
    "FIL-002",
    {
        "a-folder-that-is-not-named": (5, 1),
        "a-filetype-that-is-not-named": (6, 1),
        "a-name-past-the-head": (7, 200),
    },
    why="An index that points nowhere gives a file the name or the bytes of something else.",
)
def malformed(trial: Trial, what: tuple[int, int]) -> None:
    """A record that points past what is there."""
    field, value = what
    peer, sample = dialled(trial), trial.sample(10)
    message, payload = frame_of([sample])
    raw = forge.frame(1, message, payload)
    (record,) = message.table.records
    wrong = RECORD.pack(*record[:field], value, *record[field + 1 :])
    start = _table_of(trial, raw[wire.HEADER_LENGTH :])
    name = message.table.names[0].encode()
    peer.opened(1)
    peer.count(1, len(payload))
    peer.send(forge.rebuilt(raw, head=start + b"\0\1" + wrong + name))
    peer.expect_refusal(Code.MALFORMED)


@cases.table(
    "malformed/{}-files",
    "FIL-002",
    {"257": 257, "no": 0},
    why="A receiver sets memory aside for what a frame may hold; and a frame that says nothing is never answered.",
)
def malformed_count(trial: Trial, count: int) -> None:
    """More files than there may be, or none without LAST."""
    peer, sample = dialled(trial), trial.sample(0)
    message, _ = frame_of([sample])
    raw = forge.frame(1, message)
    (record,), name = message.table.records, message.table.names[0].encode()
    table = count.to_bytes(2, "big") + RECORD.pack(*record) * count + name * count
    peer.opened(1)
    peer.send(forge.rebuilt(raw, head=_table_of(trial, raw[wire.HEADER_LENGTH :]) + table))
    peer.expect_refusal(Code.MALFORMED)


@cases.table(
    "number/{}",
    "FIL-003",
    {"the-same-again": 5, "lower": 4},
    why="STORED says only the number: two frames of one number could not be told apart.",
)
def number_does_not_rise(trial: Trial, number: int) -> None:
    """A frame whose number does not rise."""
    peer = dialled(trial)
    sent(peer, [trial.sample(10)], 5)
    peer.say(1, *frame_of([trial.sample(10)], number))
    peer.expect_error(Code.BAD_FACTS, stream=1)
    peer.ping()


# ---- names and facts


@cases.table(
    "names/{}",
    "FIL-004 NAM-001",
    {
        "plain": "a b.txt",
        "not-ascii": "語.txt",
        "hidden": ".hidden",
        "255-bytes": "x" * 255,
        "punctuation": "100%'&#.txt",
    },
    why="A name is the same bytes for everybody, however it travels.",
)
def names(trial: Trial, last: str) -> None:
    """A file under its folder and last component, beside one with a plain name."""
    peer, folder = dialled(trial), trial.name("")
    samples = [trial.sample(10, filename=f"{folder}/{name}") for name in (last, "beside.txt")]
    statuses, _ = sent(peer, samples)
    require_statuses(statuses, STORED, STORED)
    require_there(peer, samples)


@cases.table(
    "names/refused/{}",
    "FIL-005 NAM-004 NAM-002",
    {
        "dot-dot": "..",
        "dot-dot-in-the-folder": "../x",
        "empty": "",
        "control-character": "a\nb",
        "not-utf-8": "\udcff.txt",
        "reserved": ".blockproto",
    },
    why="One bad name must cost one file, and must not lead out of the folder.",
)
def bad_names(trial: Trial, last: str) -> None:
    """A bad name in the middle of a frame: that file alone is refused."""
    peer, folder = dialled(trial), trial.name("")
    samples = [trial.sample(10, filename=f"{folder}/{name}") for name in ("a", last, "b")]
    statuses, outcomes = sent(peer, samples)
    refused_alone(statuses, outcomes, 1, Code.NAME_REFUSED)
    require_there(peer, [samples[0], samples[2]])


@cases.add(
    "facts/are-kept",
    "FIL-005 BLK-015",
    why="A tree whose times are those of its upload is sent again by every tool that compares them.",
)
def facts(trial: Trial) -> None:
    """Time, mode and type of a file, and those that were not said of another."""
    peer = dialled(trial)
    said = trial.sample(10, filetype="text/plain")
    sent(peer, [said], mtime_ns=1_234_567_890_123_456_789, mode=0o7640)
    item = moves.stat(peer, said.filename, 3)
    require(
        item is not None and item.mtime_ns == 1_234_567_890_123_456_789, "the time is not kept", got=str(item)
    )
    require(item is not None and item.mode & 0o7777 == 0o640, "the mode is not kept", got=str(item))
    require(item is not None and item.filetype == "text/plain", "the filetype is not kept", got=str(item))
    unsaid = trial.sample(10)
    statuses, _ = sent(peer, [unsaid], 2, mtime_ns=MTIME_UNSAID, mode=MODE_UNSAID)
    require_statuses(statuses, STORED)
    item = moves.stat(peer, unsaid.filename, 5)
    require(
        item is not None and item.mtime_ns > 10**18, "a time that was not said is one long ago", got=str(item)
    )


@cases.add(
    "facts/a-filetype-that-is-none",
    "FIL-005 BLK-021",
    why="What ends up in a header line of somebody's web server must be one line of ASCII.",
)
def bad_filetype(trial: Trial) -> None:
    """A filetype with a line feed: its file alone is refused."""
    peer = dialled(trial)
    samples = [trial.sample(10), trial.sample(10, filetype="text/plain\nx: y")]
    statuses, outcomes = sent(peer, samples)
    refused_alone(statuses, outcomes, 1, Code.BAD_FACTS)


@cases.add(
    "folders/made-after-what-is-in-them",
    "FIL-005 BLK-016",
    why="A folder comes behind its files, so that its time is not changed by them.",
    layer=2,
)
def folders(trial: Trial) -> None:
    """Files, their folder with its facts, and an empty folder; then the same folder again."""
    peer, name = dialled(trial), trial.name("")
    inside = trial.sample(10, filename=f"{name}/inside.txt")
    made = trial.sample(0, filename=name, filetype=FOLDER)
    empty = trial.sample(0, filename=f"{name}/empty", filetype=FOLDER)
    statuses, _ = sent(peer, [inside, empty, made], mode=0o750)
    require_statuses(statuses, STORED, STORED, STORED)
    for stream, folder in ((3, made), (5, empty)):
        item = moves.stat(peer, folder.filename, stream)
        require(item is not None and item.kind == wire.EntryKind.FOLDER, "there is no folder", got=str(item))
        require(item is not None and item.mode & 0o777 == 0o750, "the folder has another mode", got=str(item))
    statuses, _ = sent(peer, [made.with_(sourceid=trial.sourceid())], 2, if_exists=REFUSE)
    require_statuses(statuses, STORED)


@cases.add(
    "folders/with-bytes",
    "FIL-005 BLK-016",
    why="A folder has no bytes; what is sent as one is a mistake of the sender's.",
)
def folder_with_bytes(trial: Trial) -> None:
    """A folder with a size: it alone is refused."""
    peer, samples = dialled(trial), [trial.sample(10), trial.sample(10, filetype=FOLDER)]
    statuses, outcomes = sent(peer, samples)
    refused_alone(statuses, outcomes, 1, Code.BAD_FACTS)


# ---- limits


@cases.add(
    "limits/300-frames-at-once",
    "FIL-010",
    why="Frames of empty files need no credit: without a limit, whoever sends them fills the memory of the server.",
    layer=4,
)
def many_frames(trial: Trial) -> None:
    """300 frames that nobody waits for: refused where more than 64 are not answered, unless the server is so quick."""
    peer = dialled(trial)
    folder = trial.name("")
    raw = b""
    for number in range(300):
        samples = [trial.sample(0, filename=f"{folder}/{number}-{at}") for at in range(40)]
        raw += forge.frame(1, *frame_of(samples, number))
    peer.opened(1)
    peer.send(raw)
    answered = 0
    while answered < 300 * 40:
        heard = peer.hear("STORED, or ERROR BAD_FACTS")
        if isinstance(heard.message, wire.Error):
            peer.judge_error(heard, Code.BAD_FACTS)
            peer.ping()
            return
        require(isinstance(heard.message, wire.Stored), "something else than STORED comes", got=str(heard))
        answered += len(heard.message.statuses)  # type: ignore[union-attr]
    raise Unsupported("the server answers as fast as frames come")

"""FIL, the other way round: many files at once to a receiver. Without the feature WANTED one case examines a server."""

from __future__ import annotations

from collections.abc import Sequence

from ... import wire
from ...common.blocks import digest_of
from ...common.file_table import MODE_UNSAID, MTIME_UNSAID, FileTable
from ...errors import Code, Scope
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import Unsupported, require
from .fil import dialled, sent

cases = Chapter("fil-wanted", Side.SERVER)
BOTH = wire.FEATURE_FILES | wire.FEATURE_WANTED
HELLO = wire.Hello(features=BOTH, agent="blockproto-conform")
ANY = bytes(16)
FILES_EACH = 4
"""Files in each frame that brings them to the server."""


def asking(trial: Trial, hello: wire.Hello = HELLO) -> Peer:
    """A connection to a server that gives many files at once."""
    peer = dialled(trial, hello)
    assert peer.hello is not None
    if not peer.hello.features & wire.FEATURE_WANTED:
        raise Unsupported("the server does not have the feature WANTED")
    return peer


def wanted(samples: Sequence[Sample], versions: Sequence[bytes] = ()) -> wire.Files:
    """FILES with WANTED for these files; any version of those for which none is given."""
    parts = [sample.filename.rpartition("/") for sample in samples]
    folders = tuple(dict.fromkeys(folder for folder, _, _ in parts))
    of = [*versions, *[ANY] * len(samples)]
    records = tuple(
        (
            version, bytes(32), sample.filesize, MTIME_UNSAID, MODE_UNSAID, folders.index(folder), 0,
            len(name.encode("utf-8", "surrogateescape")),
        )
        for sample, version, (folder, _, name) in zip(samples, of, parts, strict=False)
    )  # fmt: skip
    return wire.Files(
        0, folders, ("",), FileTable(records, tuple(name for _, _, name in parts)), last=True, wanted=True
    )


def stored(trial: Trial, sizes: Sequence[int]) -> list[Sample]:
    """Files of these sizes that the server has, in one folder."""
    peer, folder = dialled(trial), trial.name("")
    samples = [trial.sample(size, filename=f"{folder}/{at}.bin") for at, size in enumerate(sizes)]
    for number, at in enumerate(range(0, len(samples), FILES_EACH)):
        sent(peer, samples[at : at + FILES_EACH], number)
    return samples


def fetched(peer: Peer, samples: Sequence[Sample], stream: int, asked: wire.Files) -> list[tuple[str, bytes]]:
    """Ask, take every frame and answer it; the names and versions of what came, whose bytes are held against ``samples``."""
    by_name = {sample.filename: sample for sample in samples}
    peer.say(stream, asked)
    came: list[tuple[str, bytes]] = []
    while True:
        heard = peer.expect_heard(wire.Files, stream)
        message = heard.message
        assert isinstance(message, wire.Files)
        at = 0
        for record, name in zip(message.table.records, message.table.names, strict=True):
            folder = message.folders[record[5]]
            filename = f"{folder}/{name}" if folder else name
            content = heard.payload[at : at + record[2]]
            at += record[2]
            require(filename in by_name, "a file comes that was not asked for", got=filename)
            require(content == by_name[filename].content, "a file comes with other bytes", got=filename)
            require(record[1] == digest_of(content), "a digest is not that of the file's bytes", got=filename)
            came.append((filename, record[0]))
        require(at == len(heard.payload), "the payload has another length than its files", got=str(heard))
        statuses = bytes(len(message.table.records))
        peer.say(stream, wire.Stored(message.number, statuses, last=message.last))
        if message.last:
            return came


def names(samples: Sequence[Sample]) -> list[str]:
    """What they are called."""
    return [sample.filename for sample in samples]


@cases.table(
    "came/{}",
    "FIL-018 FIL-019 FIL-021",
    {"3-files": [20, 0, 3_000], "200-files": [1_000] * 200, "more-than-a-frame": [50_000] * 40},
    why="Twenty thousand small files come in the time of their bytes, not of their questions.",
    layer=2,
)
def came(trial: Trial, sizes: list[int]) -> None:
    """All files that were asked for come, in their order, each with its bytes, digest and version."""
    peer = asking(trial)
    samples = stored(trial, sizes)
    got = fetched(peer, samples, 1, wanted(samples))
    require(
        [name for name, _ in got] == names(samples), "other files come, or in another order", got=str(got)
    )
    item = moves.stat(peer, samples[0].filename, 3)
    require(item is not None and got[0][1] == item.version, "the version is not that of LIST", got=str(item))
    peer.ping()


@cases.add(
    "left-out/another-version-and-none",
    "FIL-020 FIL-018",
    why="A file that changed since it was listed would be taken for the one that was listed.",
    layer=2,
)
def left_out(trial: Trial) -> None:
    """Another version than is there, a file that is not there, a folder, and one that is: only that one comes."""
    peer = asking(trial)
    (there,) = stored(trial, [2_000])
    folder = there.filename.rpartition("/")[0]
    gone = there.with_(filename=f"{folder}/gone")
    above = there.with_(filename=folder)
    asked = wanted([there, gone, above, there], [b"another version!"])
    got = fetched(peer, [there], 1, asked)
    require([name for name, _ in got] == [there.filename], "other files come", got=str(got))
    peer.ping()


@cases.add("left-out/all", "FIL-019 FIL-020", why="A receiver waits for LAST whatever happens.")
def nothing(trial: Trial) -> None:
    """Nothing of what was asked for is there: FILES with LAST, and no file."""
    peer = asking(trial)
    samples = [trial.sample(10), trial.sample(10)]
    got = fetched(peer, samples, 1, wanted(samples))
    require(not got, "files come that are not there", got=str(got))
    peer.ping()


@cases.table(
    "left-out/{}",
    "FIL-020 NAM-002",
    {"dot-dot": "..", "reserved": ".blockproto", "above": "../../etc/hostname"},
    why="A name must not lead out of the folder, whoever asks and however.",
)
def bad_names(trial: Trial, name: str) -> None:
    """A name that FETCH would refuse: nothing comes of it, and the others do."""
    peer = asking(trial)
    (there,) = stored(trial, [100])
    got = fetched(peer, [there], 1, wanted([there.with_(filename=name), there]))
    require([one for one, _ in got] == [there.filename], "other files come", got=str(got))


@cases.add(
    "limits/credit",
    "FIL-019 CRD-002 FIL-010",
    why="What a receiver has not allowed fills its memory.",
    layer=4,
)
def credit(trial: Trial) -> None:
    """With the least allowances, more bytes than those are asked for: they come as they are allowed."""
    hello = wire.Hello(
        features=BOTH, piece_length_max=65_536, connection_allowance=1 << 20, stream_allowance=256 << 10,
        head_length_max=4_096, agent="blockproto-conform",
    )  # fmt: skip
    peer = asking(trial, hello)
    samples = stored(trial, [30_000] * 60)
    got = fetched(peer, samples, 1, wanted(samples))
    require(
        [name for name, _ in got] == names(samples), "other files come, or in another order", got=str(got)
    )


@cases.add(
    "given-up",
    "FIL-019 STR-006 STR-007",
    why="Whoever stops a download goes on using the connection.",
)
def given_up(trial: Trial) -> None:
    """The receiver gives up in the middle: the connection goes on."""
    peer = asking(trial)
    samples = stored(trial, [60_000] * 30)
    peer.say(1, wanted(samples))
    peer.expect(wire.Files, 1)
    peer.say(1, wire.Error(int(Code.CANCELLED), int(Scope.STREAM), False))
    peer.ping(among=(wire.Files,))
    got = fetched(peer, samples[:2], 3, wanted(samples[:2]))
    require(len(got) == 2, "files do not come any more", got=str(got))


@cases.add(
    "refused/without-the-feature",
    "FIL-017",
    why="To whoever has not agreed on it, the flag says nothing, and the files seem to be sent.",
)
def without_the_feature(trial: Trial) -> None:
    """WANTED from a client whose HELLO has FILES only: BAD_FACTS, and the connection goes on."""
    peer = dialled(trial)
    peer.opened(1)
    peer.say(1, wanted([trial.sample(10)]))
    peer.expect_error(Code.BAD_FACTS, stream=1)
    peer.ping()

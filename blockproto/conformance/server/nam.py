"""NAM: names. Every rule of the table, for every message that carries a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ... import wire
from ...errors import Code
from .. import moves
from ..case import Chapter, Side
from ..clauses import document
from ..peer import Peer
from ..target import Trial
from ..verdicts import require
from .blk import refused_stream

cases = Chapter("nam", Side.SERVER)


@cache
def vectors() -> list[dict[str, Any]]:
    """The names of the spec's vectors: name, profile, and the rule that refuses it or None."""
    return [
        {"name": bytes.fromhex(row["hex"]).decode("utf-8", "surrogateescape"), **row}
        for row in document("names")["vectors"]
    ]


def rules() -> dict[str, list[str]]:
    """The names that the profile wire refuses, by rule."""
    found: dict[str, list[str]] = {}
    for row in vectors():
        if row["refused"] and row["profile"] == "wire":
            found.setdefault(row["refused"], []).append(row["name"])
    return found


def _say_open(peer: Peer, trial: Trial, name: str, stream: int) -> None:
    peer.say(stream, trial.sample(10).open(filename=name))


def _say_block(peer: Peer, trial: Trial, name: str, stream: int) -> None:
    sample = trial.sample(10)
    peer.say(stream, sample.brief(filename=name), sample.content)


def _say_fetch(peer: Peer, trial: Trial, name: str, stream: int) -> None:
    del trial
    peer.say(stream, wire.Fetch(name))


def _say_remove(peer: Peer, trial: Trial, name: str, stream: int) -> None:
    del trial
    peer.say(stream, wire.Remove(wire.RemoveKind.FILE, filename=name, recursive=True))


def _say_list(peer: Peer, trial: Trial, name: str, stream: int) -> None:
    del trial
    peer.say(stream, wire.List(wire.ListKind.FILES, name, exact=bool(name)))


SAYERS: dict[str, Callable[[Peer, Trial, str, int], None]] = {
    "open": _say_open,
    "block": _say_block,
    "fetch": _say_fetch,
    "remove": _say_remove,
    "list": _say_list,
}


@cases.table(
    "refused/{}",
    "NAM-004 NAM-002 NAM-003",
    {
        f"{rule}/{kind}": (names, kind)
        for rule, names in rules().items()
        for kind in SAYERS
        if (rule, kind) != ("empty", "list")
    },
    why="A name becomes a path; whichever rule is missing somewhere is the way out of the served folder.",
    layer=5,
)
def refused(trial: Trial, what: tuple[list[str], str]) -> None:
    """Each name that breaks the rule is refused, on its stream only."""
    names, kind = what
    peer = trial.dial()
    for no, name in enumerate(names):
        SAYERS[kind](peer, trial, name, 2 * no + 1)
        peer.expect_error(Code.NAME_REFUSED, stream=2 * no + 1)
    peer.ping()


@cases.add(
    "refused/creates-nothing",
    "NAM-004",
    why="A folder that is made before the whole name was judged is already outside.",
    layer=5,
)
def creates_nothing(trial: Trial) -> None:
    """A name whose last component is refused: its folders are not made."""
    peer = trial.dial()
    folder = trial.name("")
    sample = trial.sample(10)
    peer.say(1, sample.brief(filename=f"{folder}/x/.."), sample.content)
    refused_stream(peer, Code.NAME_REFUSED)
    moves.require_absent(trial, folder, "a refused name made a folder")


def allowed(profile: str) -> dict[str, str]:
    """Names that a profile allows and that fit below a folder, by what they look like."""
    return {
        f"{no:02}-{row['text'][:12].encode('ascii', 'backslashreplace').decode()}": row["name"]
        for no, row in enumerate(vectors())
        if row["profile"] == profile and not row["refused"] and len(row["name"].encode()) < 200
    }


@cases.add(
    "kept/byte-for-byte",
    "NAM-001 LST-004",
    why="A name that is normalised, folded or repaired on the way is another file for the next one who asks.",
    layer=2,
)
def kept(trial: Trial) -> None:
    """Every name that the profile wire allows is stored, listed and fetched as it is; a portable server may refuse some."""
    peer = trial.dial()
    folder = trial.name("")
    stored: dict[str, wire.Committed] = {}
    stream = 1
    for name in allowed("wire").values():
        sample = trial.sample(20, filename=f"{folder}/{stream}/{name}")
        peer.say(stream, sample.brief(), sample.content)
        heard = peer.expect_any(stream)
        stream += 2
        if isinstance(heard.message, wire.Error):
            peer.judge_error(heard, Code.NAME_REFUSED)
            continue
        require(
            getattr(heard.message, "stored_as", None) == sample.filename,
            "a free name was changed",
            expected=ascii(sample.filename),
            got=str(heard),
        )
        moves.fetch(peer, stream, wire.Fetch(sample.filename), sample)
        stored[sample.filename] = heard.message  # type: ignore[assignment]
        stream += 2
    require(stored, "not one name is allowed")
    peer.ping()


@cases.add(
    "kept/case-and-normalisation-are-two-files",
    "NAM-001",
    why="Two people's files must not become one because their names look alike.",
    layer=2,
)
def two_files(trial: Trial) -> None:
    """Names that differ only in case or in normalisation are two files; a portable server refuses the second one."""
    peer = trial.dial()
    folder = trial.name("")
    pairs = (("Photo.jpg", "photo.jpg"), ("na\u00efve", "nai\u0308ve"))
    stream = 1
    for first, second in pairs:
        samples = [trial.sample(20, filename=f"{folder}/{name}") for name in (first, second)]
        moves.brief(peer, samples[0], stream)
        moves.say_brief(peer, samples[1], stream + 2)
        heard = peer.expect_any(stream + 2)
        if isinstance(heard.message, wire.Error):
            peer.judge_error(heard, Code.NAME_REFUSED)
        else:
            peer.compare(heard, stored_as=samples[1].filename)
            for no, sample in enumerate(samples):
                moves.fetch(peer, stream + 4 + 2 * no, wire.Fetch(sample.filename), sample)
        stream += 8


@cases.table(
    "length/{}",
    "NAM-003",
    {"component-of-255-bytes": (255, 1), "name-of-1024-bytes": (0, 0), "as-many-components-as-fit": (1, 0)},
    why="Limits that are off by one refuse what others may send.",
    layer=4,
)
def at_the_limit(trial: Trial, what: tuple[int, int]) -> None:
    """The longest component, the longest name, the most components."""
    peer = trial.dial()
    folder = trial.target.folder
    if what[0] == 1:
        name = folder + "/a" * ((1_024 - len(folder)) // 2)
    elif what[0]:
        name = f"{folder}/{'x' * 251}.bin"
    else:
        parts, room = [folder], 1_024 - len(folder)
        while room:
            length = min(room - 1, 200) if room - 1 - 200 != 1 else 199
            parts.append("y" * length)
            room -= length + 1
        name = "/".join(parts)
        require(len(name) == 1_024, "the harness made a name of another length", got=str(len(name)))
    sample = trial.sample(10, filename=name)
    committed = moves.brief(peer, sample)
    require(committed.stored_as == name, "a name of the greatest length was changed", got=committed.stored_as)


@cases.add(
    "links/not-followed",
    "NAM-006",
    why="A link in the served folder is the oldest way out of it.",
    layer=5,
    needs="link files",
    alone=True,
)
def links(trial: Trial) -> None:
    """A symbolic link to a folder outside: nothing is read, written, listed or removed through it."""
    peer = trial.dial()
    sample = trial.sample(10)
    moves.brief(peer, sample)
    link = f"{trial.target.folder}/link"
    trial.adapter.ask("link", name=link, to="/tmp")
    listed = moves.list_(peer, 3, name=trial.target.folder, recursive=True)
    names = [item.filename for item in listed.items if isinstance(item, wire.FileItem)]
    require(
        not any(name.startswith(link) for name in names),
        "a symbolic link is listed or followed",
        got=str(names),
    )
    inside = trial.sample(10, filename=f"{link}/conform.bin")
    moves.say_brief(peer, inside, 5)
    peer.expect_error(Code.NOT_PERMITTED, Code.NAME_REFUSED, Code.FILE_EXISTS, stream=5)
    peer.say(7, wire.Fetch(f"{link}/conform.bin"))
    peer.expect_error(Code.UNKNOWN_FILE, Code.NOT_PERMITTED, stream=7)
    peer.say(9, wire.Remove(wire.RemoveKind.FILE, filename=f"{link}/conform.bin"))
    peer.expect_error(Code.UNKNOWN_FILE, Code.NOT_PERMITTED, stream=9)

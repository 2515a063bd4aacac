"""COM, the second half: what is there already. Servers whose HELLO does not have IF_EXISTS are not examined."""

from __future__ import annotations

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import Unsupported, require

cases = Chapter("same", Side.SERVER)
KEEP, REFUSE, REPLACE, SKIP, UPDATE = range(5)
MTIME_NS = 1_700_000_000 * 10**9


def dialled(trial: Trial) -> Peer:
    """A connection to a server that has the feature."""
    peer = trial.dial()
    assert peer.hello is not None
    if not peer.hello.features & wire.FEATURE_IF_EXISTS:
        raise Unsupported("the server does not have the feature IF_EXISTS")
    return peer


def again(trial: Trial, sample: Sample, **changes: object) -> Sample:
    """The same file of somebody else: another sourceid."""
    return sample.with_(**{"sourceid": trial.sourceid(), **changes})


def sent(peer: Peer, sample: Sample, stream: int, how: str, rule: int, **facts: object) -> wire.Committed:
    """The file, brief or with OPEN, and the COMMITTED that answers it; LEFT may come at OPEN."""
    if how == "brief":
        moves.say_brief(peer, sample, stream, if_exists=rule, **facts)
        return peer.expect(wire.Committed, stream, sourceid=sample.sourceid)
    peer.say(stream, sample.open(if_exists=rule, **facts))
    first = peer.expect_any(stream)
    if isinstance(first.message, wire.Committed):
        return first.message
    moves.send_blocks(peer, sample, stream)
    peer.say(stream, sample.commit())
    return peer.expect(wire.Committed, stream, sourceid=sample.sourceid)


def require_there(committed: wire.Committed, sample: Sample, stored_as: str | None = None) -> None:
    """COMMITTED names the file that was there."""
    require(
        committed.there and not committed.left,
        "a file that was there already was stored again",
        got=str(committed),
    )
    said = (committed.root, committed.filesize, committed.stored_as)
    wanted = (sample.root, sample.filesize, stored_as or sample.filename)
    require(
        said == wanted, "COMMITTED does not name the file that is there", expected=str(wanted), got=str(said)
    )


def require_content(peer: Peer, sample: Sample, stream: int) -> None:
    """The file of that name has the sample's bytes."""
    moves.fetch(peer, stream, wire.Fetch(sample.filename), sample)


def twin_name(sample: Sample) -> str:
    """The name that is tried next, as COM-014 recommends it."""
    return sample.filename.removesuffix(".bin") + " (1).bin"


# ---- the same bytes


@cases.table(
    "there/{}",
    "COM-021",
    {
        "keep-brief": ("brief", KEEP, 500),
        "keep-with-open": ("open", KEEP, 70_000),
        "keep-two-blocks": ("open", KEEP, BLOCK_LENGTH + 5),
        "keep-empty": ("brief", KEEP, 0),
        "refuse-brief": ("brief", REFUSE, 500),
        "refuse-with-open": ("open", REFUSE, 70_000),
    },
    why="Every device and every container that sends the same folder makes one more copy of it.",
    layer=2,
)
def there(trial: Trial, what: tuple[str, int, int]) -> None:
    """The same file under another sourceid: COMMITTED names what is there; mtime and mode stay, nothing is stored."""
    how, rule, filesize = what
    peer, sample = dialled(trial), trial.sample(filesize)
    sent(peer, sample, 1, how, KEEP, mtime_ns=MTIME_NS, mode=0o640)
    committed = sent(peer, again(trial, sample), 3, how, rule, mtime_ns=MTIME_NS + 10**9, mode=0o600)
    require_there(committed, sample)
    item = moves.stat(peer, sample.filename, 5)
    require(
        item is not None and (item.mtime_ns, item.mode & 0o777) == (MTIME_NS, 0o640),
        "the file that was there got other facts",
        got=str(item),
    )
    require(moves.stat(peer, twin_name(sample), 7) is None, "a second file was stored")


@cases.add(
    "there/under-the-next-name",
    "COM-021",
    why="A second version under a taken name would double every night, with only the first name compared.",
    layer=2,
)
def under_the_next_name(trial: Trial) -> None:
    """Two versions keep both; each sent again is the one that is there."""
    peer, first = dialled(trial), trial.sample(600)
    second = again(trial, first, seed=first.seed + 1)
    moves.brief(peer, first, 1)
    kept = moves.brief(peer, second, 3)
    require(
        kept.stored_as != first.filename and not kept.there, "another version took the name", got=str(kept)
    )
    for stream, sample, name in ((5, first, first.filename), (7, second, kept.stored_as)):
        require_there(sent(peer, again(trial, sample), stream, "brief", KEEP), sample, name)


@cases.add(
    "there/not-with-other-bytes",
    "COM-021 COM-013",
    why="Who takes name and size for the file loses the other one's bytes.",
    layer=2,
)
def not_with_other_bytes(trial: Trial) -> None:
    """The same name and size with other bytes: both are kept, or it is refused."""
    peer, first = dialled(trial), trial.sample(600)
    moves.brief(peer, first, 1)
    other = again(trial, first, seed=first.seed + 1)
    kept = moves.brief(peer, other, 3)
    require(
        not kept.there and kept.stored_as != first.filename, "other bytes are the same file", got=str(kept)
    )
    moves.say_brief(peer, again(trial, first, seed=first.seed + 2), 5, if_exists=REFUSE)
    peer.expect_error(Code.FILE_EXISTS, stream=5)
    require_content(peer, first, 7)


@cases.table(
    "replace/same-bytes-{}",
    "COM-022",
    {"brief": ("brief", REPLACE), "with-open": ("open", REPLACE), "by-update": ("brief", UPDATE)},
    why="Who touches a file of a terabyte waits for a terabyte to be written, and readers lose it under their hands.",
    layer=2,
)
def replace_by_the_same(trial: Trial, what: tuple[str, int]) -> None:
    """if_exists 2 with the same bytes: THERE, with the new mtime and mode."""
    how, rule = what
    peer, sample = dialled(trial), trial.sample(5_000)
    first = sent(peer, sample, 1, how, KEEP, mtime_ns=MTIME_NS, mode=0o644)
    committed = sent(peer, again(trial, sample), 3, how, rule, mtime_ns=MTIME_NS + 10**9, mode=0o600)
    require_there(committed, sample)
    item = moves.stat(peer, sample.filename, 5)
    require(
        item is not None and (item.mtime_ns, item.mode & 0o777) == (MTIME_NS + 10**9, 0o600),
        "mtime and mode were not set",
        got=str(item),
    )
    moves.fetch(peer, 7, wire.Fetch("", first.file_id), sample)


@cases.table(
    "ids/remove-by-{}",
    "COM-023",
    {"the-first-id": 0, "the-second-id": 1, "the-third-id": 2, "name": None},
    why="A receipt that outlives its file tells a phone that its picture is safe.",
    layer=2,
)
def ids(trial: Trial, by: int | None) -> None:
    """Three uploads are one file: each id names it, and with it all receipts go."""
    peer, sample = dialled(trial), trial.sample(700)
    samples = [sample, again(trial, sample), again(trial, sample)]
    found = [moves.brief(peer, one, 1 + 2 * number).file_id for number, one in enumerate(samples)]
    require(len(set(found)) == 3, "two uploads have the same file id")
    for number, file_id in enumerate(found):
        moves.fetch(peer, 7 + 2 * number, wire.Fetch("", file_id), sample)
    sourceids = tuple(one.sourceid for one in samples)
    receipts = moves.list_(peer, 13, kind=wire.ListKind.RECEIPTS, ids=sourceids)
    require(len(receipts.items) == 3, "not every upload has a receipt", got=str(receipts))
    name, file_id = (sample.filename, bytes(16)) if by is None else ("", found[by])
    peer.say(15, wire.Remove(wire.RemoveKind.FILE, file_id, name))
    peer.expect(wire.Result, 15)
    receipts = moves.list_(peer, 17, kind=wire.ListKind.RECEIPTS, ids=sourceids)
    require(not receipts.items, "a receipt is left of a file that was removed", got=str(receipts))
    for number, gone in enumerate(found):
        peer.say(19 + 2 * number, wire.Fetch("", gone))
        peer.expect_error(Code.UNKNOWN_FILE, stream=19 + 2 * number)


# ---- skip and update


@cases.table(
    "skip/{}",
    "COM-025",
    {"brief": "brief", "with-open": "open"},
    why="Skip means that what is there stays, and that nobody is told of a failure.",
    layer=2,
)
def skip(trial: Trial, how: str) -> None:
    """if_exists 3: a free name is taken, a taken one is left; and it is not remembered."""
    peer, sample = dialled(trial), trial.sample(900)
    first = sent(peer, sample, 1, how, SKIP)
    require(not first.left, "a free name was left", got=str(first))
    other = again(trial, sample, seed=sample.seed + 1, filesize=901)
    for stream in (3, 5):
        left = sent(peer, other, stream, how, SKIP)
        require(
            left.left and left.stored_as == sample.filename, "what has the name was not left", got=str(left)
        )
        told = (left.file_id, left.root, left.filesize)
        require(
            told in ((first.file_id, sample.root, 900), (first.file_id, bytes(32), 900)),
            "COMMITTED with LEFT does not tell of what is there",
            got=str(left),
        )
    require_content(peer, sample, 7)
    receipts = moves.list_(peer, 9, kind=wire.ListKind.RECEIPTS, ids=(other.sourceid,))
    require(not receipts.items, "what was left has a receipt", got=str(receipts))
    require(moves.unfinished(peer, other.sourceid, 11) is None, "an upload is left of what was left")
    peer.say(51, wire.Remove(wire.RemoveKind.FILE, filename=sample.filename))
    peer.expect(wire.Result, 51)
    require(not sent(peer, other, 53, how, SKIP).left, "a free name was left")
    require_content(peer, other, 55)


@cases.table(
    "update/{}",
    "COM-025",
    {
        "older": ("brief", -(10**9), True),
        "of-the-same-time": ("open", 0, True),
        "without-a-time": ("brief", None, True),
        "later": ("brief", 10**9, False),
        "later-with-open": ("open", 10**9, False),
    },
    why="Update that replaces what is newer destroys the only copy of today's work.",
    layer=2,
)
def update(trial: Trial, what: tuple[str, int | None, bool]) -> None:
    """if_exists 4: only a file that is strictly older is replaced."""
    how, later, stays = what
    peer, sample = dialled(trial), trial.sample(900)
    sent(peer, sample, 1, how, UPDATE, mtime_ns=MTIME_NS)
    other = again(trial, sample, seed=sample.seed + 1, filesize=901)
    facts = {} if later is None else {"mtime_ns": MTIME_NS + later}
    committed = sent(peer, other, 3, how, UPDATE, **facts)
    require(committed.left == stays, "LEFT is said wrongly", expected=str(stays), got=str(committed))
    require_content(peer, sample if stays else other, 5)
    require(moves.stat(peer, twin_name(sample), 7) is None, "a second file was stored")


@cases.add(
    "update/over-a-folder",
    "COM-025",
    why="A folder is not older or newer than a file.",
)
def update_over_a_folder(trial: Trial) -> None:
    """if_exists 4 where a folder has the name: NOT_PERMITTED, as for 2. A folder leaves a folder as it is."""
    peer, sample = dialled(trial), trial.sample(10)
    moves.make_folder(peer, sample.filename, trial.sourceid(), 1)
    moves.say_brief(peer, sample, 3, if_exists=UPDATE, mtime_ns=2**62)
    peer.expect_error(Code.NOT_PERMITTED, stream=3)
    folder = sample.with_(filesize=0, filetype=moves.FILETYPE_FOLDER)
    for stream, rule in ((5, SKIP), (7, UPDATE)):
        committed = sent(peer, again(trial, folder), stream, "brief", rule, mode=0o700)
        require(committed.left, "a folder that is there was changed", got=str(committed))


@cases.table(
    "at-open/{}",
    "COM-026",
    {"skip": (SKIP, {}), "update": (UPDATE, {"mtime_ns": MTIME_NS})},
    why="Gigabytes that are sent to be dropped are worse than a short answer.",
)
def left_at_open(trial: Trial, what: tuple[int, dict[str, int]]) -> None:
    """What can be known at OPEN is said there."""
    rule, facts = what
    peer, sample = dialled(trial), trial.sample(900)
    moves.brief(peer, sample, mtime_ns=MTIME_NS)
    peer.say(3, again(trial, sample, filesize=2_000).open(if_exists=rule, **facts))
    heard = peer.expect_any(3)
    require(
        isinstance(heard.message, wire.Committed) and heard.message.left,
        "LEFT does not come at OPEN",
        got=str(heard),
    )


@cases.table(
    "at-open/root-{}",
    "RES-029 COM-021",
    {
        "keep": (KEEP, 2 * BLOCK_LENGTH + 9),
        "refuse": (REFUSE, 700),
        "replace": (REPLACE, 700),
        "keep-under-the-next-name": (KEEP, 701),
    },
    why="A new phone sends a terabyte again that is there, though 32 bytes would do.",
    layer=2,
)
def root_at_open(trial: Trial, what: tuple[int, int]) -> None:
    """OPEN with ROOT of what is there: COMMITTED at once, without a byte."""
    rule, filesize = what
    peer, sample = dialled(trial), trial.sample(filesize)
    if filesize == 701:
        moves.brief(peer, again(trial, sample, seed=sample.seed + 1), 1)
    first = moves.upload(peer, sample, 3)
    same = again(trial, sample)
    peer.say(5, same.open(if_exists=rule, root=same.root))
    heard = peer.expect_any(5)
    require(isinstance(heard.message, wire.Committed), "bytes are asked for that are there", got=str(heard))
    assert isinstance(heard.message, wire.Committed)
    require_there(heard.message, sample, first.stored_as)


@cases.add(
    "at-open/root-of-other-bytes",
    "COM-020 RES-029",
    why="A root that is believed gives a name to bytes that nobody has sent.",
)
def root_of_others(trial: Trial) -> None:
    """OPEN with another root than what is there has: refused with 1, opened with 0."""
    peer, sample = dialled(trial), trial.sample(700)
    moves.brief(peer, sample)
    other = again(trial, sample, seed=sample.seed + 1)
    peer.say(3, other.open(if_exists=REFUSE, root=other.root))
    peer.expect_error(Code.FILE_EXISTS, stream=3)
    peer.say(5, other.open(if_exists=KEEP, root=other.root))
    peer.expect(wire.Opened, 5)
    require_content(peer, sample, 7)


@cases.add(
    "at-open/another-root-than-the-receipt",
    "RES-008",
    why="A sender that sees its file change under the same sourceid would be told that all is well.",
)
def another_root_than_the_receipt(trial: Trial) -> None:
    """OPEN of a sourceid that was committed, with the same size and another root."""
    peer, sample = dialled(trial), trial.sample(700)
    moves.brief(peer, sample)
    peer.say(3, sample.open(root=bytes(32)))
    peer.expect_error(Code.SOURCE_CHANGED, stream=3)


# ---- receipts are of a rule


@cases.table(
    "receipts/replace-after-keep-{}",
    "COM-027 COM-013",
    {"brief": "brief", "with-open": "open"},
    why="Who kept both once could never replace: the answer would be the old receipt for ever.",
    layer=2,
)
def replace_after_keep(trial: Trial, how: str) -> None:
    """A file that was kept beside another one is sent with if_exists 2, under the same sourceid."""
    peer, first = dialled(trial), trial.sample(700)
    second = again(trial, first, seed=first.seed + 1)
    moves.brief(peer, first, 1)
    kept = sent(peer, second, 3, how, KEEP)
    require(kept.stored_as != first.filename, "a taken name was taken", got=str(kept))
    replaced = sent(peer, second, 5, how, REPLACE)
    require(replaced.stored_as == first.filename, "it did not replace", got=str(replaced))
    require(replaced.file_id == kept.file_id, "the same sourceid has two file ids", got=str(replaced))
    require_content(peer, second, 7)
    require(sent(peer, second, 9, how, REPLACE) == replaced, "the same again is answered otherwise")


@cases.add(
    "receipts/listed-by-rule",
    "LST-015 COM-027",
    why="A client that lists its receipts before it replaces would leave everything as it is.",
)
def listed_by_rule(trial: Trial) -> None:
    """LIST of receipts with and without IF_EXISTS."""
    peer = dialled(trial)
    samples = {rule: trial.sample(10) for rule in range(5)}
    for rule, sample in samples.items():
        moves.brief(peer, sample, 1 + 2 * rule, if_exists=rule)
    sourceids = tuple(sample.sourceid for sample in samples.values())
    for stream, asked in enumerate((None, *samples)):
        result = moves.list_(
            peer, 21 + 2 * stream, kind=wire.ListKind.RECEIPTS, ids=sourceids, if_exists=asked
        )
        found = {item.sourceid for item in result.items if isinstance(item, wire.ReceiptItem)}
        wanted = set(sourceids) if asked is None else {samples[asked].sourceid}
        require(found == wanted, "LIST names other receipts", expected=str(asked), got=str(result))


@cases.add(
    "without-the-feature/skip",
    "FRM-019",
    why="A server that does not know skip must not take it for something else.",
)
def without_the_feature(trial: Trial) -> None:
    """A server that has not set IF_EXISTS refuses if_exists 3 and 4 for their streams."""
    peer = trial.dial()
    assert peer.hello is not None
    if peer.hello.features & wire.FEATURE_IF_EXISTS:
        raise Unsupported("the server has the feature IF_EXISTS")
    for stream, rule in ((1, SKIP), (3, UPDATE)):
        peer.say(stream, trial.sample(10).open(if_exists=rule))
        peer.expect_error(Code.UNSUPPORTED, stream=stream)

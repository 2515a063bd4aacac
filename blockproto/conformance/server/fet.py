"""FET: fetch and ranges. The server is the sender."""

from __future__ import annotations

from ... import wire
from ...common.blocks import BLOCK_LENGTH, digest_of
from ...errors import Code, Scope
from .. import moves
from ..case import Chapter, Side
from ..sample import Sample
from ..target import Trial
from ..verdicts import require
from .blk import TWO_AND_A_BIT, refused_stream
from .crd import stingy, stored

cases = Chapter("fet", Side.SERVER)


# ---- which file


@cases.table(
    "refused/{}",
    "FET-001",
    {
        "no-such-file": ("conform no such file", Code.UNKNOWN_FILE),
        "no-such-folder": ("conform no such folder/x", Code.UNKNOWN_FILE),
        "dot-dot": ("../etc/passwd", Code.NAME_REFUSED),
        "empty-name": ("", Code.NAME_REFUSED),
        "the-server-s-own-folder": (".blockproto/ledger", Code.NAME_REFUSED),
    },
    why="A client must be able to tell a file that is not there from a name that cannot be.",
)
def refused(trial: Trial, what: tuple[str, Code]) -> None:
    """FETCH of what cannot be fetched."""
    name, code = what
    peer = trial.dial()
    peer.say(1, wire.Fetch(name))
    refused_stream(peer, code)


@cases.add("refused/folder", "FET-001", why="A folder has no bytes; a client must walk it.")
def folder(trial: Trial) -> None:
    """FETCH of a folder."""
    peer, folder_ = trial.dial(), trial.sample(0, filetype=moves.FILETYPE_FOLDER)
    moves.brief(peer, folder_)
    peer.say(3, wire.Fetch(folder_.filename))
    refused_stream(peer, Code.NOT_PERMITTED, 3)


@cases.add(
    "refused/unknown-file-id",
    "FET-001 NAM-002",
    why="With a file_id the filename is not looked at, not even where the id is wrong.",
)
def unknown_file_id(trial: Trial) -> None:
    """A file_id that nobody has, with the name of a file that is there."""
    sample = stored(trial, 100)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename, file_id=b"\x5a" * 16))
    refused_stream(peer, Code.UNKNOWN_FILE)


@cases.add(
    "by-file-id/filename-is-not-looked-at",
    "FET-001 NAM-002",
    why="A file that was renamed is still the same file.",
)
def by_file_id(trial: Trial) -> None:
    """FETCH by file_id; the filename is one that would be refused."""
    peer, sample = trial.dial(), trial.sample(3_000)
    committed = moves.upload(peer, sample)
    moves.fetch(peer, 3, wire.Fetch("../not/looked/at", file_id=committed.file_id), sample)


# ---- facts and versions


@cases.add(
    "open/facts",
    "FET-003 DIG-003",
    why="The fetcher makes the file from these facts, and resumes by its version.",
)
def facts(trial: Trial) -> None:
    """OPEN of a download: the facts of the file, attempt 0, if_exists 0, the priority of FETCH, VERSION always."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT, filetype="image/jpeg")
    committed = moves.upload(peer, sample, mtime_ns=10**18, mode=0o600)
    opened, _ = moves.fetch(peer, 3, wire.Fetch(sample.filename, priority=2), sample)
    expected = {
        "filesize": sample.filesize,
        "blocknum": 3,
        "filename": sample.filename,
        "filetype": "image/jpeg",
        "attempt": 0,
        "priority": 2,
        "if_exists": 0,
        "mtime_ns": 10**18,
    }
    for name, value in expected.items():
        require(getattr(opened, name) == value, f"OPEN of a download has another {name}", got=str(opened))
    require(opened.version not in {None, bytes(16)}, "OPEN of a download has no VERSION", got=str(opened))
    require(opened.file_id == committed.file_id, "FILE_ID is not that of COMMITTED", got=str(opened))
    require(opened.root in {None, sample.root}, "ROOT is not the file's", got=str(opened))
    require(opened.b3sum in {None, sample.b3sum}, "B3SUM is not the file's", got=str(opened))


@cases.add(
    "version/the-same-until-the-file-changes",
    "FET-004 FET-002 LST-004",
    why="A version that changes by itself makes every resume begin anew; one that stays splices two files.",
    layer=2,
)
def version(trial: Trial) -> None:
    """Twice the same version; after a replacement another one, and the old one is refused."""
    peer, sample = trial.dial(), trial.sample(3_000)
    moves.upload(peer, sample)
    first, _ = moves.fetch(peer, 3, wire.Fetch(sample.filename), sample)
    again, _ = moves.fetch(peer, 5, wire.Fetch(sample.filename, version=first.version or bytes(16)), sample)
    require(first.version == again.version, "the version of a file that did not change is another one")
    item = moves.stat(peer, sample.filename, 7)
    require(
        item is not None and item.version == first.version, "the listing names another version", got=str(item)
    )
    newer = sample.with_(sourceid=trial.sourceid(), seed=sample.seed + 1)
    moves.upload(peer, newer, 9, if_exists=2)
    peer.say(11, wire.Fetch(sample.filename, version=first.version or bytes(16)))
    refused_stream(peer, Code.SOURCE_CHANGED, 11)
    second, _ = moves.fetch(peer, 13, wire.Fetch(sample.filename), newer)
    require(second.version != first.version, "a file that was replaced has the same version")


@cases.add(
    "version/replaced-while-it-is-sent",
    "FET-011 COM-013",
    why="Half of one file and half of another is what this protocol is there to prevent.",
    layer=3,
)
def replaced_while_sent(trial: Trial) -> None:
    """The file is replaced in the middle of a download: the old bytes go on, or SOURCE_CHANGED; never a mixture."""
    sample = stored(trial, 700_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 1)
    content = b""
    while not content:
        content += peer.expect_any(1).payload
    newer = sample.with_(sourceid=trial.sourceid(), seed=sample.seed + 1)
    moves.upload(trial.dial(), newer, if_exists=2)
    peer.grant(1, 700_000)
    while True:
        heard = peer.expect_any(1)
        if isinstance(heard.message, wire.Error):
            peer.judge_error(heard, Code.SOURCE_CHANGED)
            break
        if isinstance(heard.message, wire.Commit):
            require(content == sample.content, "a download is a mixture of two versions")
            require(heard.message.root == sample.root, "COMMIT names the root of another version")
            break
        content += heard.payload
    peer.ping()


# ---- ranges

RANGES = {
    "first-byte": (0, 1),
    "last-byte": (TWO_AND_A_BIT - 1, 1),
    "across-a-block-border": (BLOCK_LENGTH - 10, 20),
    "one-whole-block": (BLOCK_LENGTH, BLOCK_LENGTH),
    "to-the-end": (BLOCK_LENGTH + 100, None),
    "cut-at-the-end": (TWO_AND_A_BIT - 3, 1_000),
    "all-of-it": (0, TWO_AND_A_BIT),
    "length-2-to-62": (5, 1 << 62),
}


@cases.table(
    "range/{}",
    "FET-005 FET-006 FET-010 DIG-001",
    RANGES,
    why="Seeking in a film is many ranges; each block of one is an intersection with a digest of its own.",
    layer=2,
)
def ranges(trial: Trial, span: tuple[int, int | None]) -> None:
    """A range: positions, digests and root are of the intersections, COMMIT's sizes of the whole file."""
    sample = stored(trial, TWO_AND_A_BIT)
    peer = trial.dial()
    moves.fetch(peer, 1, wire.Fetch(sample.filename, first=span[0], length=span[1]), sample)
    peer.ping()


@cases.table(
    "range/empty-{}",
    "FET-005",
    {
        "length-0": (100, 5, 0),
        "length-0-at-the-last-byte": (100, 99, 0),
        "of-an-empty-file": (0, 0, None),
        "of-an-empty-file-further-on": (0, 7, 3),
    },
    why="An empty range is complete at once; a server that waits for its first block waits for ever.",
)
def empty_range(trial: Trial, what: tuple[int, int, int | None]) -> None:
    """A range without bytes: OPEN, and COMMIT with the root of nothing."""
    filesize, first, length = what
    sample = stored(trial, filesize)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename, first=first, length=length))
    opened = peer.expect(wire.Open, 1, filesize=filesize)
    peer.expect(wire.Commit, 1, root=digest_of(b""), filesize=filesize)
    peer.say(1, wire.Committed(opened.sourceid, bytes(16), digest_of(b""), filesize, ""))
    peer.ping()


@cases.table(
    "range/{}",
    "FET-005",
    {"behind-the-end": 100, "far-behind-the-end": 2**63 - 1},
    why="A client that asks behind the end believes in another file.",
)
def behind_the_end(trial: Trial, first: int) -> None:
    """`first` is beyond the last byte."""
    sample = stored(trial, 100)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename, first=first))
    refused_stream(peer)


@cases.add(
    "range/damaged-block-comes-again",
    "FET-005 FET-008",
    why="In a range the beginning of a block is the beginning of the intersection.",
    layer=2,
)
def damaged_in_range(trial: Trial) -> None:
    """DIGEST_MISMATCH about the second block of a range."""
    sample = stored(trial, TWO_AND_A_BIT)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename, first=BLOCK_LENGTH - 10, length=20))
    peer.expect(wire.Open, 1)
    while not isinstance(peer.expect_any(1).message, wire.Commit):
        pass
    peer.say(1, wire.Error(int(Code.DIGEST_MISMATCH), int(Scope.BLOCK), True, blockno=0))
    again = peer.expect_heard(wire.Block, 1)
    peer.compare(again, blockno=0, position=BLOCK_LENGTH - 10)
    require(
        again.payload == sample.content[BLOCK_LENGTH - 10 : BLOCK_LENGTH], "other bytes of the block came"
    )


# ---- resuming a download


def versioned(trial: Trial, filesize: int) -> tuple[Sample, bytes]:
    """A file on the server, and its version."""
    sample = stored(trial, filesize)
    item = moves.stat(trial.dial(), sample.filename, 1)
    assert item is not None
    return sample, item.version


@cases.table(
    "resume/held-{}",
    "FET-006 FET-008 FET-009",
    {
        "first-block": ((0, 1),),
        "middle-block": ((1, 1),),
        "first-and-last": ((0, 1), (2, 1)),
        "everything": ((0, 3),),
        "more-than-there-is": ((0, 1), (2, 90)),
    },
    why="What the fetcher has does not travel again; the root is over the whole range all the same.",
    layer=2,
)
def held(trial: Trial, runs: tuple[tuple[int, int], ...]) -> None:
    """Blocks that `held` names do not come."""
    sample, version_ = versioned(trial, TWO_AND_A_BIT)
    peer = trial.dial()
    fetch = wire.Fetch(sample.filename, version=version_, held=runs)
    peer.say(1, fetch)
    opened = peer.expect(wire.Open, 1)
    _, commit = moves.hear_blocks(peer, 1, opened, fetch)
    require(
        commit.root == sample.root, "the root of a resumed download is not the file's", got=commit.root.hex()
    )
    peer.say(1, wire.Committed(opened.sourceid, bytes(16), sample.root, sample.filesize, ""))
    peer.ping()


@cases.table(
    "resume/prefix-of-{}",
    "FET-006 BLK-009",
    {"1000-bytes": 1_000, "all-but-one-byte": BLOCK_LENGTH - 1},
    why="The digest covers the prefix too, so that fetcher and file agree on all of the block.",
    layer=2,
)
def prefix(trial: Trial, length: int) -> None:
    """A block in `prefixes`: it begins behind the prefix or at its beginning; its digest is of the whole block."""
    sample, version_ = versioned(trial, BLOCK_LENGTH + 7)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename, version=version_, prefixes=((0, length),)))
    peer.expect(wire.Open, 1)
    first = peer.expect_heard(wire.Block, 1, blockno=0)
    assert isinstance(first.message, wire.Block)
    position = first.message.position
    require(
        position in {0, length},
        "the block begins neither at its beginning nor behind the prefix",
        got=str(first),
    )
    content, digest = first.payload, first.message.digest
    while digest is None:
        heard = peer.expect_heard(wire.Piece, 1)
        assert isinstance(heard.message, wire.Piece)
        content, digest = content + heard.payload, heard.message.digest
    require(content == sample.block(0)[position:], "the rest of the block has other bytes")
    require(digest == sample.digest(0), "the digest does not cover the prefix")


# ---- how it is sent


@cases.add(
    "order/rising",
    "FET-007",
    why="Who plays while loading needs the beginning first.",
)
def rising(trial: Trial) -> None:
    """Blocks come in rising order."""
    sample = stored(trial, 4 * BLOCK_LENGTH)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 1)
    order = []
    while not isinstance(message := peer.expect_any(1).message, wire.Commit):
        if isinstance(message, wire.Block):
            order.append(message.blockno)
    require(order == sorted(order), "blocks come in another order", got=str(order))


@cases.add(
    "pieces/not-tiny",
    "BLK-010 BLK-005",
    why="A head for every few bytes is most of what travels.",
)
def not_tiny(trial: Trial) -> None:
    """No piece without bytes but at the end of a block, none shorter than 4,096 bytes but the last of a block."""
    sample = stored(trial, 300_000)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 1)
    while not isinstance((heard := peer.expect_any(1)).message, wire.Commit):
        ends = getattr(heard.message, "digest", None) is not None
        require(
            ends or len(heard.payload) >= 4_096,
            "a piece in the middle of a block is shorter than 4,096 bytes",
            got=str(heard),
        )


@cases.add(
    "ends/committed-by-the-fetcher",
    "FET-012 STR-006",
    why="The fetcher's COMMITTED ends the stream; a server that waits for more keeps the file open for ever.",
)
def committed(trial: Trial) -> None:
    """After COMMITTED the stream is closed: what comes on it is dropped."""
    sample = stored(trial, 100)
    peer = trial.dial()
    moves.fetch(peer, 1, wire.Fetch(sample.filename), sample)
    peer.say(1, wire.Ack(100))
    peer.ping()


@cases.table(
    "ends/fetcher-gives-up-{}",
    "FET-014 STR-007",
    {"before-the-file": 0, "in-the-middle": 1},
    why="Who closes a film in the middle must not get the rest of it.",
    layer=2,
)
def gives_up(trial: Trial, after: int) -> None:
    """ERROR CANCELLED from the fetcher ends the stream only."""
    sample = stored(trial, 700_000)
    peer = stingy(trial)
    peer.say(1, wire.Fetch(sample.filename))
    while peer.came(1) < after:
        peer.expect_any(1)
    peer.say(1, wire.Error(int(Code.CANCELLED), int(Scope.STREAM), False))
    peer.ping(among=(wire.Open, wire.Block, wire.Piece))
    moves.brief(peer, trial.sample(10), 3)


@cases.add(
    "many/beside-each-other",
    "STR-010 CRD-002 FET-006",
    why="A folder is fetched file by file, beside each other.",
    layer=2,
)
def many(trial: Trial) -> None:
    """Twenty files at once on one connection; each arrives whole."""
    peer = trial.dial()
    samples = {2 * no + 1: trial.sample(30_000) for no in range(20)}
    for stream, sample in samples.items():
        moves.brief(peer, sample, stream)
    other = trial.dial()
    for stream, sample in samples.items():
        other.say(stream, wire.Fetch(sample.filename))
    for stream, sample in samples.items():
        other.expect(wire.Open, stream)
        content = b""
        while not isinstance((heard := other.expect_any(stream)).message, wire.Commit):
            content += heard.payload
        require(content == sample.content, "a file that was fetched beside others has other bytes")

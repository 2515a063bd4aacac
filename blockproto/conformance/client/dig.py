"""DIG for clients: digests, root, repair."""

from __future__ import annotations

from blake3 import blake3

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from ..case import Chapter, Side
from ..verdicts import require
from . import giving, taking
from .taking import Upload
from .trial import Trial
from .visit import Visit

cases = Chapter("client/dig", Side.CLIENT)

DIFFER = wire.Error(Code.DIGESTS_DIFFER, Scope.BLOCK, True, "another root")


@cases.add(
    "b3sum/is-not-the-root",
    "DIG-002",
    why="Both are 32 bytes of BLAKE3; a file of several blocks has two different ones.",
)
def b3sum(trial: Trial) -> None:
    """The entry of a file of three blocks: what is printed as b3sum is the b3sum, whatever the root is."""
    sample = trial.sample(2 * BLOCK_LENGTH + 5)
    trial.shelf.offer(sample)
    trial.start("stat", filename=sample.filename)
    visit = trial.visit()
    heard = visit.expect_heard(wire.List, exact=True, b3sum=True, name=sample.filename)
    item = trial.shelf.item(sample.filename, b3sum=True)
    visit.say(heard.stream, wire.Result(1, (wire_with_root(item, sample.root),)))
    said = trial.done().get("b3sum")
    wanted = blake3(sample.content).hexdigest()
    require(said == wanted, "another b3sum is printed", expected=wanted, got=str(said))


def wire_with_root(item: wire.FileItem, root: bytes) -> wire.FileItem:
    """The same entry, with its root."""
    fields = {name: getattr(item, name) for name in item.__slots__}
    return wire.FileItem(**{**fields, "root": root})


@cases.table(
    "root/{}",
    "DIG-005 DIG-009 DIG-002 FET-008",
    {"of-another-file": False, "is-the-b3sum": True},
    why="A fetcher that does not compare the root keeps a file that nobody has verified as a whole.",
)
def other_root(trial: Trial, is_b3sum: bool) -> None:
    """COMMIT of a download has another root: DIGESTS_DIFFER, the file stays away; with the right one it is there."""
    visit, download = trial.downloading(2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    for blockno in download.blocknos:
        giving.send_block(visit, download, blockno)
    root = download.sample.b3sum if is_b3sum else bytes(32)
    visit.say(download.stream, download.commit(root=root))
    visit.expect_error(Code.DIGESTS_DIFFER, stream=download.stream, scope=Scope.BLOCK)
    trial.absent(download.sample)
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample)


@cases.add(
    "repair/of-a-download",
    "DIG-009 FET-008 STR-005",
    why="A fetcher that resumes may hold a block of another version: HAVE makes it forget that one.",
)
def repair_download(trial: Trial) -> None:
    """HAVE names another digest for block 1: OPENED holds the others, block 1 comes, COMMIT, done."""
    visit, download = trial.downloading(3 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    for blockno in download.blocknos:
        giving.send_block(visit, download, blockno)
    visit.say(download.stream, download.commit(root=bytes(32)))
    visit.expect_error(Code.DIGESTS_DIFFER, stream=download.stream, scope=Scope.BLOCK)
    sample = download.sample
    pairs = tuple((no, sample.digest(no) if no != 1 else bytes(32)) for no in download.blocknos)
    visit.say(download.stream, wire.Have(pairs[:2], more=True))
    visit.say(download.stream, wire.Have(pairs[2:]))
    visit.expect(wire.Opened, download.stream)
    for blockno in (0, 2):
        require(visit.acknowledges(download.stream, blockno), "a block is forgotten whose digest was right")
    require(not visit.acknowledges(download.stream, 1), "a block is still held whose digest was another")
    giving.send_block(visit, download, 1)
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(sample)


def hear_have(visit: Visit, upload: Upload) -> None:
    """HAVE: the digests of all blocks, in rising order, all pages but the last with MORE."""
    digests: list[tuple[int, bytes]] = []
    while True:
        heard = visit.expect_heard(wire.Have, upload.stream)
        assert isinstance(heard.message, wire.Have)
        digests += heard.message.digests
        if not heard.message.more:
            break
    wanted = list(enumerate(upload.sample.digests))
    require(
        digests == wanted,
        "HAVE does not name every block with its digest, rising",
        got=f"{len(digests)} digests",
    )


@cases.add(
    "repair/of-an-upload",
    "DIG-006 DIG-008 DIG-001",
    why="A root that differs costs the blocks that differ, not the file.",
)
def repair_upload(trial: Trial) -> None:
    """All is held, the root differs: HAVE of all blocks, OPENED without block 1, block 1, COMMIT again."""
    visit, upload = trial.uploading(3 * BLOCK_LENGTH)
    visit.say(upload.stream, upload.opened(0, 1, 2))
    taking.take_blocks(visit, trial.shelf, upload)
    visit.say(upload.stream, DIFFER)
    hear_have(visit, upload)
    visit.alive()
    visit.say(upload.stream, upload.opened(0, 2))
    upload.blocks.pop(1)
    taking.go_on(visit, trial.shelf, upload)
    require(upload.ended == [1], "other blocks come than the one that was forgotten", got=str(upload.ended))
    trial.stored(upload.sample)


@cases.add(
    "repair/given-up-after-three-rounds",
    "DIG-008",
    why="A file that changes all the time would be sent for ever.",
)
def given_up(trial: Trial) -> None:
    """The roots differ again and again: after three rounds the client says CANCEL and reports a failure."""
    visit, upload = trial.uploading(2 * BLOCK_LENGTH)
    visit.say(upload.stream, upload.opened(0, 1))
    rounds = 0
    while rounds < 6:
        heard = trial.shelf.wanted(visit, "COMMIT or CANCEL")
        if isinstance(heard.message, wire.Cancel):
            break
        if not isinstance(heard.message, wire.Commit):
            raise visit.unexpected("COMMIT or CANCEL", heard)
        visit.say(upload.stream, DIFFER)
        heard = trial.shelf.wanted(visit, "HAVE or CANCEL")
        if isinstance(heard.message, wire.Cancel):
            break
        rounds += 1
        visit.put_back([heard])
        hear_have(visit, upload)
        visit.say(upload.stream, upload.opened(0, 1))
    require(rounds == 3, "the client gives up after another number of rounds than three", got=str(rounds))
    visit.say(upload.stream, wire.Error(Code.CANCELLED, Scope.STREAM, False))
    trial.refused()

"""DIG: digests, root, repair."""

from __future__ import annotations

from blake3 import blake3

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..sample import Sample
from ..target import Trial
from ..verdicts import require
from .blk import TWO_AND_A_BIT, begun

cases = Chapter("dig", Side.SERVER)


@cases.table(
    "root/of-{}",
    "DIG-001 COM-004",
    {
        "one-block": 1_000,
        "a-whole-block": BLOCK_LENGTH,
        "two-blocks": BLOCK_LENGTH + 1,
        "three-blocks": TWO_AND_A_BIT,
    },
    why="The root is the one number both sides must compute alike.",
)
def root(trial: Trial, filesize: int) -> None:
    """COMMITTED names the root that the spec computes, and so does the listing where it knows one."""
    peer, sample = trial.dial(), trial.sample(filesize)
    moves.upload(peer, sample)
    item = moves.stat(peer, sample.filename, 3)
    require(
        item is not None and item.root in {None, sample.root}, "the listing names another root", got=str(item)
    )


@cases.add(
    "root/is-not-b3sum",
    "DIG-002 LST-007 DIG-003",
    why="People compare b3sum with a tool; a root in its place looks like a damaged file.",
)
def root_is_not_b3sum(trial: Trial) -> None:
    """The b3sum of a file of three blocks is BLAKE3 of its bytes, and not its root."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    moves.upload(peer, sample)
    item = moves.stat(peer, sample.filename, 3, b3sum=True)
    require(
        item is not None and item.b3sum == sample.b3sum,
        "b3sum is not BLAKE3 of the file's bytes",
        got=str(item),
    )


@cases.add(
    "claims/b3sum-is-not-handed-out",
    "DIG-003",
    why="What a sender claims is not known; handed on, it is a lie in the receiver's name.",
)
def claimed_b3sum(trial: Trial) -> None:
    """A wrong B3SUM in OPEN: it is refused, or forgotten, and never told to others."""
    peer, sample = trial.dial(), trial.sample(5_000)
    claimed = bytes(range(32))
    moves.begin(peer, sample, b3sum=claimed)
    moves.send_block(peer, sample, 0)
    peer.say(1, sample.commit())
    heard = peer.hear("COMMITTED or ERROR")
    while isinstance(heard.message, wire.Ack):
        heard = peer.hear("COMMITTED or ERROR")
    if isinstance(heard.message, wire.Error):
        require(heard.message.scope != Scope.CONNECTION, "a wrong B3SUM ends the connection", got=str(heard))
        peer.ping()
        return
    require(isinstance(heard.message, wire.Committed), "COMMITTED did not come", got=str(heard))
    require(
        getattr(heard.message, "b3sum", None) != claimed, "COMMITTED hands out a B3SUM that was only claimed"
    )
    item = moves.stat(peer, sample.filename, 3, b3sum=True)
    require(
        item is not None and item.b3sum == sample.b3sum,
        "the listing hands out a B3SUM that was only claimed",
        got=str(item),
    )


@cases.add(
    "held-root/of-what-opened-names",
    "DIG-004",
    why="HELD_ROOT lets a sender see at once whether the receiver has the same blocks; a wrong one is worse than none.",
)
def held_root(trial: Trial) -> None:
    """Where OPENED carries HELD_ROOT, it is over exactly the blocks that are named, and absent when there are none."""
    peer, sample = trial.dial(), trial.sample(TWO_AND_A_BIT)
    opened = moves.begin(peer, sample)
    require(opened.held_root is None, "HELD_ROOT though nothing is held")
    moves.send_blocks(peer, sample, 1, 0, 2)
    peer.expect_acked(1, 0, 2)
    opened = moves.begin(peer, sample, 3)
    expected = blake3(sample.digest(0) + sample.digest(2)).digest()
    require(opened.held_root in {None, expected}, "HELD_ROOT is not that of the held blocks", got=str(opened))


def spoilt(trial: Trial, blockno: int = 1) -> tuple[Peer, Sample]:
    """An upload whose every block is held, one of them with other bytes than the file has now."""
    peer, sample = begun(trial)
    other = sample.with_(seed=sample.seed + 1)
    for no in range(sample.blocknum):
        moves.send_block(peer, other if no == blockno else sample, no)
    peer.expect_acked(1, *range(sample.blocknum))
    return peer, sample


def differ(peer: Peer, sample: Sample, stream: int = 1) -> None:
    """COMMIT, and DIGESTS_DIFFER as its answer."""
    peer.say(stream, sample.commit())
    peer.expect_error(Code.DIGESTS_DIFFER, stream=stream, scope=Scope.BLOCK)


@cases.add(
    "repair/one-block-travels-again",
    "DIG-005 DIG-007 DIG-009",
    why="A file that changed in one block costs one block, not the file.",
    layer=2,
)
def repair(trial: Trial) -> None:
    """COMMIT, DIGESTS_DIFFER, HAVE in two pages, one OPENED without the block, the block, COMMIT, COMMITTED."""
    peer, sample = spoilt(trial)
    differ(peer, sample)
    moves.require_absent(trial, sample.filename, "a file appeared though its root differs")
    peer.say(1, sample.have(0, 1, more=True))
    peer.say(1, sample.have(2))
    opened = peer.expect(wire.Opened, 1, position=BLOCK_LENGTH)
    require(
        opened.held in {((2, 1),), ((0, 1), (2, 1))},
        "OPENED after HAVE does not name what is held now",
        got=str(opened),
    )
    require(peer.ping() == [], "more than one OPENED came for one HAVE")
    moves.send_block(peer, sample, 1)
    moves.commit(peer, sample)
    moves.fetch(peer, 5, wire.Fetch(sample.filename), sample)


@cases.add(
    "repair/stream-is-open-again",
    "DIG-005 STR-005",
    why="After DIGESTS_DIFFER COMMIT is legal again; a server that stays in committing ends the connection at the repair.",
)
def open_again(trial: Trial) -> None:
    """A second COMMIT with the same root is answered by a second DIGESTS_DIFFER."""
    peer, sample = spoilt(trial)
    differ(peer, sample)
    differ(peer, sample)
    peer.ping()


@cases.add(
    "repair/only-on-committing-streams",
    "DIG-005 COM-007",
    why="A stream that did not ask has no state for that answer.",
    layer=2,
)
def only_committing(trial: Trial) -> None:
    """Two streams of an upload: DIGESTS_DIFFER on the one that said COMMIT, nothing on the other."""
    first, sample = spoilt(trial)
    second = trial.dial()
    moves.begin(second, sample)
    differ(first, sample)
    require(second.ping() == [], "something came on a stream that did not say COMMIT")


@cases.add(
    "have/blocks-that-no-page-names-stay",
    "DIG-007",
    why="HAVE doubts what it names; what it leaves out is not in doubt.",
    layer=2,
)
def unnamed_stay(trial: Trial) -> None:
    """HAVE of one block with another digest: that one is forgotten, the others are held."""
    peer, sample = begun(trial)
    moves.send_blocks(peer, sample)
    peer.expect_acked(1, 0, 1, 2)
    peer.say(1, wire.Have(((2, bytes(32)),)))
    peer.expect(wire.Opened, 1, position=2 * BLOCK_LENGTH)
    moves.send_block(peer, sample, 2)
    moves.commit(peer, sample)


@cases.add(
    "have/the-same-digests",
    "DIG-007 DIG-006",
    why="A sender may ask because it doubts; when all agree nothing is forgotten.",
)
def same_digests(trial: Trial) -> None:
    """HAVE before COMMIT with the right digests."""
    peer, sample = begun(trial)
    moves.send_blocks(peer, sample)
    peer.expect_acked(1, 0, 1, 2)
    peer.say(1, sample.have())
    peer.expect(wire.Opened, 1, position=sample.filesize)
    moves.commit(peer, sample)


@cases.add(
    "have/empty-page",
    "DIG-007",
    why="A page without digests forgets nothing, and is answered like any other.",
)
def empty_page(trial: Trial) -> None:
    """HAVE without digests."""
    peer, sample = begun(trial)
    moves.send_block(peer, sample, 0)
    peer.expect_acked(1, 0)
    peer.say(1, wire.Have(()))
    peer.expect(wire.Opened, 1, position=BLOCK_LENGTH)


@cases.add(
    "commit/never-of-two-versions",
    "DIG-009 COM-005",
    why="This is what the root is for: no file is ever made of two versions.",
    layer=2,
)
def never_of_two_versions(trial: Trial) -> None:
    """One block of another version, and a COMMIT with each version's root: both are refused, nothing appears."""
    peer, sample = spoilt(trial)
    other = sample.with_(seed=sample.seed + 1)
    differ(peer, sample)
    differ(peer, other)
    moves.require_absent(trial, sample.filename, "a file of two versions appeared")


# ---- the server as sender


@cases.add(
    "download/damaged-block-is-sent-again",
    "ERR-005 FET-008 BLK-011",
    why="A fetcher whose line damages a block asks for that block, not for the file.",
    layer=2,
)
def sent_again(trial: Trial) -> None:
    """DIGEST_MISMATCH about block 1: it comes again from its beginning, and COMMIT still ends the download."""
    sample = trial.sample(TWO_AND_A_BIT)
    moves.upload(trial.dial(), sample)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename))
    peer.expect(wire.Open, 1)
    hear_up_to_commit(peer, 1)
    peer.say(1, wire.Error(int(Code.DIGEST_MISMATCH), int(Scope.BLOCK), True, blockno=1))
    again = peer.expect_heard(wire.Block, 1)
    peer.compare(again, blockno=1, position=BLOCK_LENGTH)
    content = again.payload
    while len(content) < BLOCK_LENGTH:
        content += peer.expect_heard(wire.Piece, 1).payload
    require(content == sample.block(1), "the block that was asked for again has other bytes")
    peer.ping()


def hear_up_to_commit(peer: Peer, stream: int) -> wire.Commit:
    """Everything of a download up to its COMMIT."""
    while True:
        heard = peer.hear("COMMIT")
        if isinstance(heard.message, wire.Commit):
            return heard.message
        if not isinstance(heard.message, (wire.Block, wire.Piece)) or heard.stream != stream:
            raise peer.unexpected("COMMIT", heard)


@cases.add(
    "download/repair-of-what-the-fetcher-held",
    "DIG-006 DIG-008 FET-008",
    why="A fetcher that held wrong blocks finds out at COMMIT; the sender's digests tell it which.",
    layer=2,
)
def repair_of_a_download(trial: Trial) -> None:
    """DIGESTS_DIFFER: HAVE with every digest comes, rising; after OPENED the blocks that are missing, and COMMIT again."""
    sample = trial.sample(TWO_AND_A_BIT)
    moves.upload(trial.dial(), sample)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename))
    opened = peer.expect(wire.Open, 1)
    hear_up_to_commit(peer, 1)
    peer.say(1, wire.Error(int(Code.DIGESTS_DIFFER), int(Scope.BLOCK), True))
    digests = hear_have(peer, 1)
    expected = tuple(enumerate(sample.digests))
    require(
        digests == expected, "HAVE does not name every block with its digest", got=f"{len(digests)} blocks"
    )
    peer.say(1, wire.Opened(opened.sourceid, bytes(16), 0, BLOCK_LENGTH, 1, None, ((2, 1),)))
    peer.expect_heard(wire.Block, 1, blockno=1, position=BLOCK_LENGTH)
    again = hear_up_to_commit(peer, 1)
    require(
        (again.root, again.filesize) == (sample.root, sample.filesize),
        "COMMIT after the repair names another file",
    )
    peer.say(1, wire.Ack(sample.filesize))
    peer.say(1, wire.Committed(opened.sourceid, bytes(16), sample.root, sample.filesize, ""))
    peer.ping()


def hear_have(peer: Peer, stream: int) -> tuple[tuple[int, bytes], ...]:
    """All pages of HAVE."""
    digests: tuple[tuple[int, bytes], ...] = ()
    while True:
        page = peer.expect(wire.Have, stream)
        digests += page.digests
        if not page.more:
            return digests


@cases.add(
    "download/gives-up-after-three-rounds",
    "DIG-008 COM-016",
    why="A file that changes all the time would be repaired for ever.",
    layer=2,
)
def three_rounds(trial: Trial) -> None:
    """DIGESTS_DIFFER again and again: after three rounds the sender says CANCEL, or ends the stream with ERROR."""
    sample = trial.sample(2_000)
    moves.upload(trial.dial(), sample)
    peer = trial.dial()
    peer.say(1, wire.Fetch(sample.filename))
    opened = peer.expect(wire.Open, 1)
    hear_up_to_commit(peer, 1)
    for _ in range(3):
        peer.say(1, wire.Error(int(Code.DIGESTS_DIFFER), int(Scope.BLOCK), True))
        hear_have(peer, 1)
        peer.say(1, wire.Opened(opened.sourceid, bytes(16), 0, sample.filesize, 1, None))
        hear_up_to_commit(peer, 1)
    peer.say(1, wire.Error(int(Code.DIGESTS_DIFFER), int(Scope.BLOCK), True))
    heard = peer.hear("CANCEL")
    if isinstance(heard.message, wire.Cancel):
        peer.say(1, wire.Error(int(Code.CANCELLED), int(Scope.STREAM), False))
    elif not (isinstance(heard.message, wire.Error) and heard.message.scope == Scope.STREAM):
        raise peer.unexpected("CANCEL", heard)
    peer.ping()

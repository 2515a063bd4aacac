"""FET for clients: fetch and ranges."""

from __future__ import annotations

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code
from ..case import Chapter, Side
from ..verdicts import require
from . import giving
from .trial import Trial

cases = Chapter("client/fet", Side.CLIENT)

FILESIZE = 3 * BLOCK_LENGTH + 100

RANGES = {
    "within-a-block": (5, 20),
    "around-the-end-of-a-block": (BLOCK_LENGTH - 10, 20),
    "from-the-middle-of-one-to-that-of-another": (1_000, 2 * BLOCK_LENGTH),
    "exactly-one-block": (BLOCK_LENGTH, BLOCK_LENGTH),
    "the-last-byte": (FILESIZE - 1, 1),
    "past-the-end": (FILESIZE - 50, 5_000),
}


@cases.table(
    "range/{}",
    "FET-005 FET-008 BLK-001",
    RANGES,
    why="Blocks of a range are cut; positions, digests and the root are about what is left of them.",
)
def ranged(trial: Trial, row: tuple[int, int]) -> None:
    """A download of a range: the file here has just these bytes."""
    first, length = row
    sample = trial.sample(FILESIZE)
    trial.download(sample, first=first, length=length)
    visit = trial.visit()
    download = giving.open_download(visit, trial.shelf, sample)
    end = min(first + length, FILESIZE)
    asked = (download.first, download.end)
    require(
        asked == (first, end), "FETCH asks for another range", expected=f"{first} to {end}", got=str(asked)
    )
    giving.give(visit, download)
    trial.fetched(sample, first, length)


@cases.add(
    "range/position-counts-from-its-first-byte",
    "FET-010 RES-016",
    why="A position that counts from the file's beginning says that bytes are held which nobody asked for.",
)
def ranged_position(trial: Trial) -> None:
    """Blocks of a range arrive out of order: position is the range's first byte, then the first gap, then its end."""
    first, length = BLOCK_LENGTH + 1_000, BLOCK_LENGTH + 5_000
    visit, download = trial.downloading(FILESIZE, first=first, length=length)
    visit.say(download.stream, download.open())
    giving.send_block(visit, download, 2)
    visit.expect_acked(download.stream, 2)
    position = visit.held[download.stream].position
    require(
        position == first, "position is not the range's first byte", expected=str(first), got=str(position)
    )
    giving.send_block(visit, download, 1)
    position = visit.expect(wire.Ack, download.stream).position
    require(
        position == download.end,
        "position is not the range's end",
        expected=str(download.end),
        got=str(position),
    )
    visit.say(download.stream, download.commit())
    giving.hear_committed(visit, download)
    trial.fetched(download.sample, first, length)


@cases.add(
    "resume/goes-on-with-what-is-held",
    "FET-009 FET-008",
    why="That is what resuming is; and what is named must come from the version that is named.",
)
def resumes(trial: Trial) -> None:
    """The connection breaks behind two blocks and a half: what FETCH names then need not come again."""
    sample = trial.sample(4 * BLOCK_LENGTH)
    trial.download(sample)
    visit = trial.visit()
    download = giving.open_download(visit, trial.shelf, sample)
    for blockno in (0, 1):
        giving.send_block(visit, download, blockno)
    visit.expect_acked(download.stream, 0, 1)
    visit.say(download.stream, download.head(2, ends=False), download.block(2)[: BLOCK_LENGTH // 2])
    visit.alive()
    visit.reset()
    trial.absent(sample)
    visit = trial.visit()
    again = giving.open_download(visit, trial.shelf, sample)
    named = {no for first, count in again.message.held for no in range(first, first + count)}
    require(named <= {0, 1}, "FETCH names a block as held that was never whole", got=str(named))
    if named != {0, 1}:
        trial.lenient("blocks that were acknowledged are fetched again")
    prefixes = dict(again.message.prefixes)
    require(
        set(prefixes) <= {2} and prefixes.get(2, 0) <= BLOCK_LENGTH // 2,
        "FETCH names a prefix that never came",
    )
    giving.give(visit, again)
    trial.fetched(sample)


@cases.add(
    "resume/behind-a-prefix",
    "FET-008 BLK-009",
    why="A prefix saves bytes on a slow line: the digest covers it too.",
)
def behind_a_prefix(trial: Trial) -> None:
    """A block goes on behind the prefix that FETCH names."""
    sample = trial.sample(BLOCK_LENGTH)
    trial.download(sample)
    visit = trial.visit()
    download = giving.open_download(visit, trial.shelf, sample)
    visit.say(download.stream, download.head(0, ends=False), download.block(0)[:500_000])
    visit.alive()
    visit.reset()
    visit = trial.visit()
    again = giving.open_download(visit, trial.shelf, sample)
    start = dict(again.message.prefixes).get(0, 0)
    visit.say(again.stream, again.head(0, start), again.block(0)[start:])
    visit.say(again.stream, again.commit())
    giving.hear_committed(visit, again)
    trial.fetched(sample)


@cases.add(
    "resume/of-another-version-begins-anew",
    "FET-009 DIG-009",
    why="Blocks of two versions under one name are a file that never was.",
)
def another_version(trial: Trial) -> None:
    """The file is replaced while the connection is gone: FETCH names nothing of the old one as held."""
    sample = trial.sample(3 * BLOCK_LENGTH)
    trial.download(sample)
    visit = trial.visit()
    download = giving.open_download(visit, trial.shelf, sample)
    giving.send_block(visit, download, 0)
    visit.expect_acked(download.stream, 0)
    visit.reset()
    other = sample.with_(seed=sample.seed + 1)
    version = trial.shelf.offer(other)
    visit = trial.visit()
    again = giving.newest_download(visit, trial.shelf, other)
    while again is None:
        visit = trial.visit()
        again = giving.newest_download(visit, trial.shelf, other)
    named = again.message.held or again.message.prefixes
    require(again.version == version, "FETCH names a version that is gone")
    require(not named, "FETCH names blocks of another version as held", got=str(again.message.held))
    visit.say(again.stream, again.open())
    giving.give(visit, again)
    trial.fetched(other)


@cases.add(
    "give-up/says-cancelled",
    "FET-014",
    why="A server that hears nothing goes on sending to nobody.",
)
def gives_up(trial: Trial) -> None:
    """A download that is given up in the middle: ERROR with CANCELLED (stream), and no file under its name."""
    visit, download = trial.downloading(8 * BLOCK_LENGTH, give_up_after=2 * BLOCK_LENGTH)
    visit.say(download.stream, download.open())
    for blockno in (0, 1, 2):
        giving.send_block(visit, download, blockno)
    visit.expect_error(Code.CANCELLED, stream=download.stream)
    trial.absent(download.sample)
    trial.refused()


@cases.add(
    "another-version-in-the-answer",
    "FET-009 DIG-009",
    why="A client that knows which version it has must not take another one's blocks to it.",
)
def other_version_in_open(trial: Trial) -> None:
    """FETCH names a version, OPEN another: the client does not end with a file of two versions."""
    visit, download = trial.downloading()
    if download.message.version == wire.ZERO_ID:
        giving.give_opened(visit, download)
        trial.fetched(download.sample)
        return
    visit.say(download.stream, download.open(version=bytes(15) + b"!"))
    visit.expect_error(Code.SOURCE_CHANGED, stream=download.stream)
    trial.absent(download.sample)
    trial.not_done()

"""PRN: principals. What is one's is not there for another. Needs the tokens of two with folders of their own."""

from __future__ import annotations

from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH
from ...errors import Code, Scope
from .. import moves
from ..case import Chapter, Side
from ..peer import Peer
from ..target import Trial
from ..verdicts import Unsupported, require

cases = Chapter("prn", Side.SERVER)
QUOTA_MOST = 16 << 20
CONNECTIONS_MOST = 64
"""So many connections of one principal are tried."""


def two(trial: Trial) -> tuple[Peer, Peer]:
    """Connections of two principals; stream 1 is used up on both."""
    one, other = trial.owners(2)
    return trial.come_in(one), trial.come_in(other)


def refusal(peer: Peer, stream: int, message: wire.Message) -> wire.Error:
    """The ERROR that answers a request about something that is not there."""
    peer.say(stream, message)
    return peer.expect_error(Code.UNKNOWN_FILE, Code.UNKNOWN_UPLOAD, stream=stream)


def require_alike(foreign: wire.Error, nothing: wire.Error) -> None:
    """Fail if what is somebody else's is told from what is nobody's."""
    require(foreign == nothing, "what is somebody else's is answered otherwise than what is not there")


@cases.add(
    "uploads/same-sourceid",
    "PRN-001",
    why="Two phones that choose the same sourceid would write into one file.",
    layer=2,
)
def uploads_same_sourceid(trial: Trial) -> None:
    """Another principal opens the sourceid of an upload, with other facts: nothing is held, and the first goes on."""
    mine, theirs = two(trial)
    sample = trial.sample(BLOCK_LENGTH + 10)
    moves.begin_one(mine, sample, 3)
    other = trial.sample(500, sourceid=sample.sourceid, attempt=sample.attempt + 5)
    opened = moves.begin(theirs, other, 3)
    require(not opened.held and not opened.prefixes, "another's blocks are named as held")
    moves.send_blocks(theirs, other, 3)
    moves.commit(theirs, other, 3)
    moves.send_block(mine, sample, 1, 3)
    moves.commit(mine, sample, 3)


@cases.add(
    "receipts/same-sourceid",
    "PRN-001 LST-008",
    why="A receipt for somebody else's file says that ours is safe.",
    layer=2,
)
def receipts_same_sourceid(trial: Trial) -> None:
    """The sourceid of another principal's finished file is new: its bytes are taken and the receipt is of them."""
    mine, theirs = two(trial)
    sample = trial.sample(200)
    moves.brief(mine, sample, 3)
    other = trial.sample(300, sourceid=sample.sourceid)
    result = moves.list_(theirs, 3, kind=wire.ListKind.RECEIPTS, ids=(sample.sourceid,))
    require(not result.items, "another's receipt is shown")
    moves.brief(theirs, other, 5)
    moves.fetch(theirs, 7, wire.Fetch(other.filename), other)
    moves.fetch(mine, 5, wire.Fetch(sample.filename), sample)


@cases.add(
    "names/relative",
    "PRN-002",
    why="Names that begin with the server's folders cannot be used to ask again.",
    layer=2,
)
def relative(trial: Trial) -> None:
    """A file is called the same in COMMITTED, LIST, a cursor and OPEN as in BLOCK; for another principal it is not there."""
    mine, theirs = two(trial)
    sample = trial.sample(200)
    committed = moves.brief(mine, sample, 3)
    require(committed.stored_as == sample.filename, "COMMITTED has another name")
    item = moves.stat(mine, sample.filename, 5)
    require(item is not None and item.filename == sample.filename, "LIST has another name")
    folder = sample.filename.rpartition("/")[0]
    names = [
        one.filename for one in moves.list_(mine, 7, name=folder).items if isinstance(one, wire.FileItem)
    ]
    require(sample.filename in names, "LIST of the folder does not name it")
    moves.brief(mine, trial.sample(10, filename=f"{folder}/zz-the-last"), 9)
    cursor = moves.list_(mine, 11, name=folder, limit=1).cursor
    require(f"/{folder}/" not in f"{cursor}/", "the cursor says where the principal's folder lies")
    opened, _ = moves.fetch(mine, 13, wire.Fetch(sample.filename), sample)
    require(opened.filename == sample.filename, "OPEN has another name")
    require(moves.stat(theirs, sample.filename, 3) is None, "another principal sees it")
    moves.brief(theirs, trial.sample(100, filename=sample.filename), 5)
    moves.fetch(mine, 15, wire.Fetch(sample.filename), sample)


@cases.add(
    "names/uploads-of-others",
    "PRN-002",
    why="What somebody is sending, and what it is called, is theirs.",
    layer=2,
)
def uploads_of_others(trial: Trial) -> None:
    """An unfinished upload is listed to its principal under its name, and to nobody else."""
    mine, theirs = two(trial)
    sample = trial.sample(BLOCK_LENGTH + 10)
    moves.begin_one(mine, sample, 3)
    item = moves.unfinished(mine, sample.sourceid, 5)
    require(item is not None and item.filename == sample.filename, "it is not listed under its name")
    require(moves.unfinished(theirs, sample.sourceid, 3) is None, "another principal sees it")


@cases.add(
    "foreign/fetch-by-id",
    "PRN-003",
    why="Ids travel in links; who has one must not get the file, nor learn that there is one.",
    layer=5,
)
def fetch_by_id(trial: Trial) -> None:
    """FETCH of another's file id gets the same ERROR as one of an id that nobody has."""
    mine, theirs = two(trial)
    committed = moves.brief(mine, trial.sample(200), 3)
    require_alike(
        refusal(theirs, 3, wire.Fetch("", file_id=committed.file_id)),
        refusal(theirs, 5, wire.Fetch("", file_id=trial.sourceid())),
    )


@cases.add(
    "foreign/fetch-unfinished",
    "PRN-003 FET-015",
    why="What somebody is still sending is theirs alone, also where others may read along.",
    layer=5,
)
def fetch_unfinished(trial: Trial) -> None:
    """FETCH of the file id of another's unfinished upload gets the same ERROR as one of an id that nobody has."""
    mine, theirs = two(trial)
    sample = trial.sample(BLOCK_LENGTH + 10)
    opened = moves.begin_one(mine, sample, 3)
    require_alike(
        refusal(theirs, 3, wire.Fetch("", file_id=opened.file_id)),
        refusal(theirs, 5, wire.Fetch("", file_id=trial.sourceid())),
    )


@cases.add(
    "foreign/remove-by-id",
    "PRN-003",
    why="Who can remove what they cannot see needs to see nothing.",
    layer=5,
)
def remove_by_id(trial: Trial) -> None:
    """REMOVE of another's file id gets the same ERROR as one of an id that nobody has, and the file stays."""
    mine, theirs = two(trial)
    sample = trial.sample(200)
    committed = moves.brief(mine, sample, 3)
    require_alike(
        refusal(theirs, 3, wire.Remove(wire.RemoveKind.FILE, committed.file_id)),
        refusal(theirs, 5, wire.Remove(wire.RemoveKind.FILE, trial.sourceid())),
    )
    moves.fetch(mine, 5, wire.Fetch(sample.filename), sample)


@cases.add(
    "foreign/cancel-by-sourceid",
    "PRN-003",
    why="An upload that anybody can cancel never ends.",
    layer=5,
)
def cancel_by_sourceid(trial: Trial) -> None:
    """REMOVE of another's upload gets the same ERROR as one that nobody began, and the upload goes on."""
    mine, theirs = two(trial)
    sample = trial.sample(3_000)
    moves.begin(mine, sample, 3)
    require_alike(
        refusal(theirs, 3, wire.Remove(wire.RemoveKind.UPLOAD, sample.sourceid)),
        refusal(theirs, 5, wire.Remove(wire.RemoveKind.UPLOAD, trial.sourceid())),
    )
    moves.send_blocks(mine, sample, 3)
    moves.commit(mine, sample, 3)


READ = {
    "fetch": lambda sample: wire.Fetch(sample.filename),
    "list-files": lambda sample: wire.List(wire.ListKind.FILES, limit=1),
}
WRITE = {
    "open": lambda sample: sample.open(),
    "block": lambda sample: sample.brief(),
    "remove": lambda sample: wire.Remove(wire.RemoveKind.FILE, filename=sample.filename),
    "list-uploads": lambda sample: wire.List(wire.ListKind.UPLOADS, limit=1),
    "list-receipts": lambda sample: wire.List(wire.ListKind.RECEIPTS, ids=(sample.sourceid,)),
}


def forbidden(trial: Trial, scope: wire.Scopes, request: Any) -> None:
    """A request of somebody who has the other scope only is FORBIDDEN, and the connection goes on."""
    other = (wire.Scopes.READ | wire.Scopes.WRITE) & ~scope
    what = f"that may {(other.name or '').lower()} only"
    player = trial.target.cast.one(trial.dial, lambda item: item.scopes & 3 == other, what)
    peer, sample = trial.come_in(player), trial.sample(100)
    message = request(sample)
    peer.say(3, message, sample.content if isinstance(message, wire.Block) else b"")
    peer.expect_error(Code.FORBIDDEN, stream=3)
    peer.ping()


@cases.table(
    "scopes/{}-needs-read", "PRN-004", READ, why="A token to drop files in must not read them.", layer=5
)
def needs_read(trial: Trial, request: Any) -> None:
    """With the scope write alone it is FORBIDDEN."""
    forbidden(trial, wire.Scopes.READ, request)


@cases.table(
    "scopes/{}-needs-write", "PRN-004", WRITE, why="A token to look at files must not change them.", layer=5
)
def needs_write(trial: Trial, request: Any) -> None:
    """With the scope read alone it is FORBIDDEN."""
    forbidden(trial, wire.Scopes.WRITE, request)


def bounded(trial: Trial, most: int) -> tuple[Peer, int]:
    """A connection of somebody with a quota of at most ``most`` bytes, and the quota."""
    player = trial.target.cast.one(
        trial.dial,
        lambda item: item.quota is not None and item.quota <= most and item.scopes & wire.Scopes.WRITE != 0,
        f"with a quota of at most {most} bytes" if most < 1 << 62 else "with a quota",
    )
    assert player.item is not None
    assert player.item.quota is not None
    return trial.come_in(player), player.item.quota


@cases.add(
    "quota/known-filesize",
    "PRN-005",
    why="What does not fit is better said before a gigabyte has come.",
)
def known_filesize(trial: Trial) -> None:
    """OPEN of a file one byte larger than the quota is QUOTA, with how much is left; a small file is taken."""
    peer, quota = bounded(trial, 1 << 62)
    sample = trial.sample(0, filename=trial.name()).with_(filesize=quota + 1)
    number = -(-sample.filesize // BLOCK_LENGTH)
    opening = wire.Open(sample.sourceid, 1, sample.filesize, number, sample.filename, "")
    peer.say(3, opening)
    error = peer.expect_error(Code.QUOTA, stream=3)
    require(error.current is not None and error.current <= quota, "it is not said how many bytes are left")
    if error.current:
        moves.brief(peer, trial.sample(1), 5)


@cases.add(
    "quota/unknown-filesize",
    "PRN-005",
    why="A stream that does not say its size must not be the way around.",
    layer=4,
)
def unknown_filesize(trial: Trial) -> None:
    """An upload of unknown size is QUOTA when the bytes that have come do not fit; what was acknowledged stays."""
    peer, quota = bounded(trial, QUOTA_MOST)
    sample = trial.sample(quota + 2 * BLOCK_LENGTH, unknown=True)
    moves.begin(peer, sample, 3)
    for blockno in range(sample.blocknum):
        moves.send_block(peer, sample, blockno, 3)
    peer.expect_error(Code.QUOTA, stream=3)
    held = peer.held[3].blocknos
    item = moves.unfinished(peer, sample.sourceid, 5)
    require(item is not None or not held, "the upload is gone")
    require(item is None or item.held_count >= len(held), "acknowledged blocks are gone")


@cases.add(
    "scopes/nothing-is-compared-for-who-may-not-read",
    "PRN-010 PRN-006",
    why="Who may only drop files in would learn by the answer whether somebody has a file with these bytes.",
    layer=5,
)
def nothing_is_compared(trial: Trial) -> None:
    """A principal that may only write sends the same file again: it is stored again; LEFT says nothing of what is there."""
    player = trial.target.cast.one(
        trial.dial, lambda item: item.scopes & 3 == wire.Scopes.WRITE, "may only write"
    )
    peer, sample = trial.come_in(player), trial.sample(600)
    assert peer.hello is not None
    if not peer.hello.features & wire.FEATURE_IF_EXISTS:
        raise Unsupported("the server does not have the feature IF_EXISTS")
    moves.brief(peer, sample, 3)
    same = sample.with_(sourceid=trial.sourceid())
    peer.say(5, same.open(root=same.root))
    peer.expect(wire.Opened, 5)
    moves.send_blocks(peer, same, 5)
    committed = moves.commit(peer, same, 5)
    require(
        not committed.there and committed.stored_as != sample.filename, "it was compared", got=str(committed)
    )
    peer.say(7, sample.with_(sourceid=trial.sourceid()).open(if_exists=3))
    left = peer.expect(wire.Committed, 7)
    told = (left.file_id, left.root, left.filesize)
    require(left.left and told == (bytes(16), bytes(32), 0), "LEFT tells of what is there", got=str(left))


@cases.add(
    "anonymous/without-auth",
    "PRN-008 AUT-001",
    why="A server that asks nobody must not wait for a word that old clients do not know.",
)
def without_auth(trial: Trial) -> None:
    """Where AUTH is not required, a file is stored and listed without it."""
    peer, sample = trial.dial(), trial.sample(100)
    assert peer.hello is not None
    if peer.hello.features & wire.FEATURE_AUTH_REQUIRED:
        raise Unsupported("the server requires AUTH")
    moves.brief(peer, sample)
    require(moves.stat(peer, sample.filename, 3) is not None, "it is not there")


@cases.add(
    "connections/one-more-than-there-may-be",
    "PRN-009",
    why="One token in a loop that connects would take every descriptor, and nobody else would come in.",
    layer=4,
    alone=True,
)
def one_connection_more(trial: Trial) -> None:
    """Connections of one principal, until one of them ends: the one that was silent longest, not the newest one.

    Nothing of another principal ends.
    """
    one, other = trial.owners(2)
    theirs = trial.come_in(other)
    silent = trial.come_in(one)
    spoken: list[Peer] = []
    while not silent.readable(0):
        if len(spoken) == CONNECTIONS_MOST:
            raise Unsupported(f"the server takes {CONNECTIONS_MOST} connections of one principal, and more")
        spoken.append(trial.come_in(one))
        for peer in (theirs, *spoken):
            peer.ping()
    silent.expect_error(Code.TIMEOUT, stream=0, scope=Scope.CONNECTION)

"""What an honest client does, in steps that cases are made of: begin an upload, send a block, commit, fetch, ask.

They keep to credit and to the limits of the server's HELLO, so that they work with any server. Each raises what ``Peer``
raises when the server does something else.
"""

from __future__ import annotations

from .. import wire
from ..common.blocks import BLOCK_LENGTH, block_span, digest_of, root_of
from ..errors import Code, Scope
from .peer import Heard, Peer
from .sample import Sample
from .target import Trial
from .verdicts import Failed, first_difference, require

FILETYPE_FOLDER = "inode/directory"


def begin(peer: Peer, sample: Sample, stream: int = 1, **changes: object) -> wire.Opened:
    """OPEN, and the OPENED that answers it."""
    peer.say(stream, sample.open(**changes))
    return peer.expect(wire.Opened, stream)


def begin_one(peer: Peer, sample: Sample, stream: int = 1, **changes: object) -> wire.Opened:
    """OPEN and its answer; then block 0, which is acknowledged."""
    opened = begin(peer, sample, stream, **changes)
    send_block(peer, sample, 0, stream)
    peer.expect_acked(stream, 0)
    return opened


def send_block(
    peer: Peer,
    sample: Sample,
    blockno: int,
    stream: int = 1,
    *,
    start: int = 0,
    stop: int | None = None,
    piece_length: int | None = None,
    damaged: bool = False,
    digest: bytes | None = None,
) -> None:
    """Send bytes ``start`` to ``stop`` of a block (to its end, with END, by default), in as many pieces as are allowed.

    Args:
        peer: the connection.
        sample: the file.
        blockno: which block.
        stream: the upload's stream.
        start: offset in the block.
        stop: offset in the block; None for its end, and END.
        piece_length: greatest piece.
        damaged: change the last byte that is sent.
        digest: to say instead of the right one.
    """
    content = sample.block(blockno)
    end = len(content) if stop is None else stop
    ends = stop is None
    content = content[: end - 1] + bytes([content[end - 1] ^ 1]) + content[end:] if damaged else content
    most = min(
        piece_length or BLOCK_LENGTH, peer.hello.piece_length_max if peer.hello else wire.PIECE_LENGTH_EARLY
    )
    at, first = start, True
    while first or at < end:
        length = min(most, end - at, peer.wait_room(stream)) if at < end else 0
        if at < end and length <= 0:
            return  # the server has said ERROR instead of granting more; the case will hear it
        last = ends and at + length == end
        changes = {"digest": digest} if last and digest is not None else {}
        message = (
            sample.head(blockno, at, ends=last, **changes)
            if first
            else sample.piece(blockno, at, ends=last, **changes)
        )
        peer.say(stream, message, content[at : at + length])
        at, first = at + length, False


def send_blocks(peer: Peer, sample: Sample, stream: int = 1, *blocknos: int) -> None:
    """Send whole blocks, all of them if none is named."""
    for blockno in blocknos or range(sample.blocknum):
        send_block(peer, sample, blockno, stream)


def commit(peer: Peer, sample: Sample, stream: int = 1, **changes: object) -> wire.Committed:
    """COMMIT, and the COMMITTED that answers it, which must name what was sent."""
    peer.say(stream, sample.commit(**changes))
    return expect_committed(peer, sample, stream)


def expect_committed(peer: Peer, sample: Sample, stream: int = 1, among: bool = False) -> wire.Committed:
    """COMMITTED with sourceid, root and filesize of the sample."""
    return peer.expect(
        wire.Committed,
        stream,
        among=among,
        sourceid=sample.sourceid,
        root=sample.root,
        filesize=sample.filesize,
    )


def upload(peer: Peer, sample: Sample, stream: int = 1, **changes: object) -> wire.Committed:
    """A whole upload with OPEN."""
    begin(peer, sample, stream, **changes)
    send_blocks(peer, sample, stream)
    return commit(peer, sample, stream)


def say_brief(peer: Peer, sample: Sample, stream: int = 1, **changes: object) -> None:
    """The one BLOCK of a brief file; the sample has at most 65,536 bytes, which every server takes at once."""
    peer.say(stream, sample.brief(**changes), sample.content)


def brief(peer: Peer, sample: Sample, stream: int = 1, **changes: object) -> wire.Committed:
    """A whole brief file."""
    say_brief(peer, sample, stream, **changes)
    return expect_committed(peer, sample, stream)


def make_folder(peer: Peer, name: str, sourceid: bytes, stream: int = 1) -> wire.Committed:
    """A folder."""
    return brief(peer, Sample(name, 0, sourceid, filetype=FILETYPE_FOLDER), stream)


def list_(peer: Peer, stream: int, **fields: object) -> wire.Result:
    """LIST and its RESULT."""
    peer.say(stream, wire.List(**{"kind": wire.ListKind.FILES, **fields}))  # type: ignore[arg-type]
    return peer.expect(wire.Result, stream)


def stat(peer: Peer, name: str, stream: int, b3sum: bool = False) -> wire.FileItem | None:
    """The entry called ``name``, or None if there is none."""
    peer.say(stream, wire.List(wire.ListKind.FILES, name, exact=True, b3sum=b3sum))
    heard = peer.hear("RESULT")
    while isinstance(heard.message, wire.Ack):
        heard = peer.hear("RESULT")
    message = heard.message
    if (
        isinstance(message, wire.Error)
        and message.code == Code.UNKNOWN_FILE
        and message.scope == Scope.STREAM
    ):
        return None
    if not isinstance(message, wire.Result) or len(message.items) != 1:
        raise peer.unexpected("RESULT with one entry", heard)
    (item,) = message.items
    assert isinstance(item, wire.FileItem)
    return item


def require_absent(trial: Trial, name: str, reason: str) -> None:
    """Fail with ``reason`` if there is an entry called ``name``.

    What is being stored takes its time, and silence proves nothing: so another file is stored first, on a connection of
    its own, and what was on its way before that one has arrived.
    """
    peer = trial.dial()
    brief(peer, trial.sample(10))
    require(stat(peer, name, 3) is None, reason)


def unfinished(peer: Peer, sourceid: bytes, stream: int) -> wire.UploadItem | None:
    """The unfinished upload of that sourceid, looked for page by page; ``stream`` and those after it are used."""
    cursor = ""
    while True:
        result = list_(peer, stream, kind=wire.ListKind.UPLOADS, cursor=cursor)
        for item in result.items:
            if isinstance(item, wire.UploadItem) and item.sourceid == sourceid:
                return item
        if not result.cursor:
            return None
        cursor = result.cursor
        stream += 2


def fetch(
    peer: Peer, stream: int, fetch_: wire.Fetch, sample: Sample | None = None
) -> tuple[wire.Open, bytes]:
    """FETCH everything of a range, hold it against ``sample``, and say COMMITTED; returns OPEN and the range's bytes."""
    peer.say(stream, fetch_)
    opened = peer.expect(wire.Open, stream)
    content, committed = hear_blocks(peer, stream, opened, fetch_)
    if sample is not None:
        expected = sample.content[fetch_.first :][: fetch_.length]
        if fetch_.held or fetch_.prefixes:
            expected = content
        divergence = first_difference("the file", expected, content)
        if divergence is not None:
            raise Failed("the bytes that were fetched are not those that were stored", divergence=divergence)
    length = len(content)
    peer.say(stream, wire.Ack(fetch_.first + length))
    peer.say(
        stream,
        wire.Committed(opened.sourceid, opened.file_id or bytes(16), committed.root, committed.filesize, ""),
    )
    return opened, content


def hear_blocks(peer: Peer, stream: int, opened: wire.Open, fetch_: wire.Fetch) -> tuple[bytes, wire.Commit]:
    """The blocks of a whole range up to COMMIT, each held against its digest and acknowledged, and the root of them all.

    Blocks that ``held`` names must not come; ``prefixes`` must be empty (cases about them
    look at frames themselves).
    """
    assert opened.filesize is not None
    end = opened.filesize if fetch_.length is None else min(opened.filesize, fetch_.first + fetch_.length)
    blocks: dict[int, bytearray] = {}
    digests: dict[int, bytes] = {}
    current = -1
    while True:
        heard = peer.expect_any(stream)
        message = heard.message
        if isinstance(message, wire.Commit):
            break
        current = _take_block(peer, heard, stream, current, blocks, (fetch_.first, end))
        if message.digest is not None:  # type: ignore[union-attr]
            digests[current] = message.digest  # type: ignore[union-attr]
            peer.say(stream, wire.Ack(fetch_.first, ((current, 1),)))
            require(
                digest_of(blocks[current]) == digests[current],
                "a block does not have the digest that came with it",
            )
    require(set(digests) == set(blocks), "a block came without END before COMMIT")
    named = {no for first, count in fetch_.held for no in range(first, first + count)}
    require(not named & set(blocks), "a block came that FETCH names as held")
    first, last = fetch_.first // BLOCK_LENGTH, -(-end // BLOCK_LENGTH)
    wanted = [no for no in range(first, last) if block_span(no, fetch_.first, end)[1] > 0]
    require(set(blocks) | named == set(wanted) | named, "blocks of the range did not come")
    if not named:
        root = root_of([digests[no] for no in wanted], len(wanted))
        peer.compare(
            heard, clause="BP1-FET-006", root=root, filesize=opened.filesize, blocknum=opened.blocknum
        )
    return b"".join(bytes(blocks[no]) for no in sorted(blocks)), message


def _take_block(
    peer: Peer, heard: Heard, stream: int, current: int, blocks: dict[int, bytearray], span: tuple[int, int]
) -> int:
    """Add a BLOCK's or PIECE's bytes; returns the blockno they belong to."""
    message = heard.message
    if heard.stream != stream or not isinstance(message, (wire.Block, wire.Piece)):
        raise peer.unexpected("BLOCK, PIECE or COMMIT", heard)
    if isinstance(message, wire.Block):
        current = message.blockno
        blocks[current] = bytearray()
    require(current >= 0, "PIECE came before any BLOCK")
    start, length = block_span(current, *span)
    peer.compare(heard, clause="BP1-FET-005", position=start + len(blocks[current]))
    blocks[current] += heard.payload
    require(len(blocks[current]) <= length, "a payload runs past the end of its block in the range")
    return current


def clean(peer: Peer, folder: str) -> None:
    """Remove a folder and everything in it, and discard the unfinished uploads of names below it."""
    peer.say(3, wire.Remove(wire.RemoveKind.FILE, filename=folder, recursive=True))
    if isinstance(error := peer.hear("RESULT").message, wire.Error) and error.code == Code.UNAUTHENTICATED:
        return
    stream, cursor = 5, ""
    while True:
        result = list_(peer, stream, kind=wire.ListKind.UPLOADS, cursor=cursor)
        stream += 2
        for item in result.items:
            if isinstance(item, wire.UploadItem) and item.filename.startswith(folder + "/"):
                peer.say(stream, wire.Remove(wire.RemoveKind.UPLOAD, item.sourceid))
                peer.hear("RESULT")
                stream += 2
        cursor = result.cursor
        if not cursor:
            return

"""What an honest server does with a download, in steps that cases are made of; see ``taking``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH, block_span, blocknum_of, digest_of, root_of
from ...errors import Code, Scope
from ..sample import Sample
from ..verdicts import Closed, require
from .shelf import MODE, MTIME_NS, Shelf
from .visit import Visit


@dataclass
class Download:
    """A download on a stream.

    Attributes:
        sample: the file.
        message: the client's FETCH.
        first, end: the range, in positions of the file.
    """

    stream: int
    sample: Sample
    message: wire.Fetch
    version: bytes
    first: int
    end: int

    @property
    def blocknos(self) -> range:
        """The blocks of the range."""
        return range(self.first // BLOCK_LENGTH, blocknum_of(self.end)) if self.end > self.first else range(0)

    def block(self, blockno: int) -> bytes:
        """The bytes of a block that lie in the range."""
        position, length = block_span(blockno, self.first, self.end)
        return self.sample.content[position : position + length]

    @property
    def root(self) -> bytes:
        """The root of the range."""
        return root_of([digest_of(self.block(no)) for no in self.blocknos], len(self.blocknos))

    def open(self, **changes: Any) -> wire.Open:
        """OPEN that answers FETCH."""
        sample = self.sample
        fields = {
            "sourceid": bytes(range(16)),
            "attempt": 0,
            "filesize": sample.filesize,
            "blocknum": sample.blocknum,
            "filename": sample.filename,
            "filetype": sample.filetype,
            "priority": self.message.priority,
            "mtime_ns": MTIME_NS,
            "mode": MODE,
            "version": self.version,
            **changes,
        }
        return wire.Open(**fields)

    def head(self, blockno: int, start: int = 0, *, ends: bool = True, **changes: Any) -> wire.Block:
        """BLOCK of the range from byte ``start`` of its intersection on."""
        position, _ = block_span(blockno, self.first, self.end)
        fields = {
            "sourceid": bytes(range(16)),
            "filesize": self.sample.filesize,
            "blocknum": self.sample.blocknum,
            "blockno": blockno,
            "position": position + start,
            "filename": self.sample.filename,
            "filetype": self.sample.filetype,
            "digest": digest_of(self.block(blockno)) if ends else None,
            **changes,
        }
        return wire.Block(**fields)

    def piece(self, blockno: int, start: int, *, ends: bool = True) -> wire.Piece:
        """PIECE that goes on at byte ``start``."""
        position, _ = block_span(blockno, self.first, self.end)
        return wire.Piece(position + start, digest_of(self.block(blockno)) if ends else None)

    def commit(self, **changes: Any) -> wire.Commit:
        """COMMIT of the range."""
        fields = {
            "sourceid": bytes(range(16)),
            "root": self.root,
            "filesize": self.sample.filesize,
            "blocknum": self.sample.blocknum,
            **changes,
        }
        return wire.Commit(**fields)


def fetched(visit: Visit, shelf: Shelf, sample: Sample) -> Download:
    """The FETCH of ``sample`` that the client says; questions before it are answered."""
    heard = shelf.wanted(visit, "FETCH")
    message = heard.message
    if not isinstance(message, wire.Fetch):
        raise visit.unexpected("FETCH", heard)
    version = shelf.files[sample.filename][1]
    if message.file_id == wire.ZERO_ID:
        visit.compare(heard, "BP1-NAM-001", filename=sample.filename)
    require(
        message.version in (wire.ZERO_ID, version), "FETCH names a version that is not there", got=str(heard)
    )
    if message.version == wire.ZERO_ID:
        visit.compare(heard, "BP1-FET-009", held=(), prefixes=())
    end = sample.filesize if message.length is None else min(sample.filesize, message.first + message.length)
    return Download(heard.stream, sample, message, version, min(message.first, sample.filesize), end)


def newest_download(visit: Visit, shelf: Shelf, sample: Sample) -> Download | None:
    """As ``fetched``, of a file that was replaced: a FETCH of the version before is refused, as it must be.

    Returns None if the client ends the connection then.
    """
    version = shelf.files[sample.filename][1]
    while True:
        try:
            heard = shelf.wanted(visit, "FETCH")
        except Closed:
            return None
        message = heard.message
        if not isinstance(message, wire.Fetch):
            raise visit.unexpected("FETCH", heard)
        if message.version in (wire.ZERO_ID, version):
            visit.put_back([heard])
            return fetched(visit, shelf, sample)
        visit.say(heard.stream, wire.Error(Code.SOURCE_CHANGED, Scope.STREAM, False, "another version"))


def open_download(visit: Visit, shelf: Shelf, sample: Sample, **changes: Any) -> Download:
    """FETCH, and our OPEN."""
    download = fetched(visit, shelf, sample)
    visit.say(download.stream, download.open(**changes))
    return download


def send_block(
    visit: Visit, download: Download, blockno: int, *, piece_length: int = BLOCK_LENGTH, damaged: bool = False
) -> None:
    """Send a block of the range in pieces, all of it, as fast as the client's credit allows."""
    content = download.block(blockno)
    if damaged:
        content = content[:-1] + bytes([content[-1] ^ 1])
    most = min(piece_length, visit.hello.piece_length_max if visit.hello else wire.PIECE_LENGTH_EARLY)
    at = 0
    while at < len(content):
        room = visit.wait_room(download.stream) or most
        part = content[at : at + min(most, room)]
        ends = at + len(part) == len(content)
        message = download.head(blockno, ends=ends) if at == 0 else download.piece(blockno, at, ends=ends)
        visit.say(download.stream, message, part)
        at += len(part)


def missing(download: Download) -> list[int]:
    """The blocks that FETCH does not name as held."""
    held = {no for first, count in download.message.held for no in range(first, first + min(count, 1 << 16))}
    return [no for no in download.blocknos if no not in held]


def give(visit: Visit, download: Download, *, piece_length: int = BLOCK_LENGTH) -> None:
    """The rest of a download: blocks, COMMIT, and the client's COMMITTED."""
    for blockno in missing(download):
        send_block(visit, download, blockno, piece_length=piece_length)
    visit.say(download.stream, download.commit())
    hear_committed(visit, download)


def hear_committed(visit: Visit, download: Download) -> None:
    """ACKs, and COMMITTED with the root of the range."""
    visit.expect(wire.Committed, download.stream, root=download.root)
    judge_acks(visit, download)


def judge_acks(visit: Visit, download: Download) -> None:
    """What was acknowledged lies in the range: positions from its first byte to its end, blocks that it has."""
    held = visit.held[download.stream]
    require(
        held.position == 0 or download.first <= held.position <= download.end,
        "the position of an ACK is outside the range",
        got=str(held.position),
    )
    require(
        held.blocknos <= set(download.blocknos),
        "an ACK names a block outside the range",
        got=str(held.blocknos),
    )


def give_opened(visit: Visit, download: Download) -> None:
    """OPEN and the rest of a download."""
    visit.say(download.stream, download.open())
    give(visit, download)


def give_download(visit: Visit, shelf: Shelf, sample: Sample, **options: int) -> Download:
    """A whole download."""
    download = open_download(visit, shelf, sample)
    give(visit, download, **options)
    return download

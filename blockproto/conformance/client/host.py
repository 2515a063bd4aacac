"""What an honest server does, in steps that cases are made of: answer questions, take an upload, give a download.

A case does the steps up to the one that is odd, does that one itself, and often goes on with the rest. What the client
says is held against the file that it was told to send or fetch, in every case.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ... import wire
from ...blocks import BLOCK_LENGTH, block_span, blocknum_of, digest_of, root_of
from ...errors import Code, Scope
from ..peer import Heard
from ..sample import Sample
from ..verdicts import Closed, Failed, first_difference, require
from .visit import Visit

EXPIRES_MS = 4_000_000_000_000
MTIME_NS = 1_600_000_000_000_000_000
MODE = 0o644


@dataclass
class Shelf:
    """What the served folder holds, and what is known of uploads.

    Attributes:
        files: the finished files by name, with their versions.
        receipts: COMMITTED of finished uploads, by sourceid.
        unfinished: what LIST of kind 2 says.
        removed: every REMOVE that came.
        lists: every LIST that came.
    """

    files: dict[str, tuple[Sample, bytes]] = field(default_factory=dict)
    receipts: dict[bytes, wire.ReceiptItem] = field(default_factory=dict)
    unfinished: list[wire.UploadItem] = field(default_factory=list)
    removed: list[wire.Remove] = field(default_factory=list)
    lists: list[wire.List] = field(default_factory=list)

    def offer(self, sample: Sample) -> bytes:
        """Put a file there; returns its version."""
        version = os.urandom(16)
        self.files[sample.filename] = (sample, version)
        return version

    def answer(self, visit: Visit, heard: Heard) -> bool:
        """Answer a LIST or REMOVE as an honest server does; False if it is neither."""
        message = heard.message
        if isinstance(message, wire.Remove):
            self.removed.append(message)
            visit.say(heard.stream, wire.Result(message.kind))
        elif isinstance(message, wire.List):
            self.lists.append(message)
            visit.say(heard.stream, self._listed(message))
        else:
            return False
        return True

    def _listed(self, message: wire.List) -> wire.Result | wire.Error:
        if message.kind == wire.ListKind.RECEIPTS:
            return wire.Result(
                message.kind, tuple(self.receipts[one] for one in message.ids if one in self.receipts)
            )
        if message.kind == wire.ListKind.UPLOADS:
            return wire.Result(message.kind, tuple(self.unfinished))
        if not message.exact:
            return wire.Result(message.kind, tuple(self.item(name) for name in sorted(self.files)))
        if message.name not in self.files:
            return wire.Error(Code.UNKNOWN_FILE, Scope.STREAM, False, "there is none")
        return wire.Result(message.kind, (self.item(message.name, message.b3sum),))

    def item(self, name: str, b3sum: bool = False) -> wire.FileItem:
        """The entry of a file."""
        sample, version = self.files[name]
        return wire.FileItem(
            kind=wire.EntryKind.FILE,
            filesize=sample.filesize,
            mtime_ns=MTIME_NS,
            mode=MODE,
            file_id=bytes(16),
            version=version,
            filename=name,
            filetype=sample.filetype,
            b3sum=sample.b3sum if b3sum else None,
        )

    def wanted(self, visit: Visit, what: str) -> Heard:
        """The next frame that is no question; questions are answered."""
        while True:
            heard = visit.hear(what)
            if not self.answer(visit, heard):
                return heard


# ---- uploads


@dataclass
class Upload:
    """An upload on a stream: what the client said of it, and what has come.

    Attributes:
        sample: the file, with sourceid and attempt as the client chose them.
        opening: its OPEN, or the BLOCK of a brief file.
        blocks: what has come of each block.
        ended: the blocks whose END has come.
        frames: every BLOCK and PIECE, in order.
    """

    stream: int
    sample: Sample
    opening: wire.Open | wire.Block
    blocks: dict[int, bytearray] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    frames: list[Heard] = field(default_factory=list)
    current: wire.Block | None = None
    starts: dict[int, int] = field(default_factory=dict)

    @property
    def brief(self) -> bool:
        """Whether it came without OPEN."""
        return isinstance(self.opening, wire.Block)

    def opened(self, *held: int, position: int = 0, **changes: Any) -> wire.Opened:
        """OPENED that names these blocks as held."""
        for blockno in held:
            self.blocks.setdefault(blockno, bytearray(self.sample.block(blockno)))
        fields = {
            "sourceid": self.sample.sourceid,
            "file_id": self.sample.sourceid[::-1],
            "attempt": self.sample.attempt,
            "position": position,
            "incarnation": 1,
            "expires_ms": EXPIRES_MS,
            "held": runs(held),
            **changes,
        }
        return wire.Opened(**fields)

    def acknowledged(self, *blocknos: int) -> wire.Ack:
        """ACK of these blocks, and of everything without a gap."""
        return wire.Ack(0, runs(blocknos))

    def committed(self, **changes: Any) -> wire.Committed:
        """COMMITTED of this file."""
        sample = self.sample
        fields = {
            "sourceid": sample.sourceid,
            "file_id": sample.sourceid[::-1],
            "root": sample.root,
            "filesize": sample.filesize,
            "stored_as": sample.filename,
            **changes,
        }
        return wire.Committed(**fields)

    def take(self, visit: Visit, heard: Heard) -> int | None:
        """Take in one BLOCK or PIECE; returns the block that ended with it."""
        message = heard.message
        self.frames.append(heard)
        if isinstance(message, wire.Block):
            self._begin(visit, heard, message)
        block = self.current
        if block is None or not isinstance(message, (wire.Block, wire.Piece)):
            raise Failed("PIECE without a BLOCK that began it", got=str(heard), clause="BP1-BLK-005")
        blockno = block.blockno
        come = self.blocks[blockno]
        visit.compare(heard, "BP1-BLK-005", position=blockno * BLOCK_LENGTH + len(come))
        come += heard.payload
        wanted = self.sample.block(blockno)
        if message.digest is None:
            require(len(come) <= len(wanted), "a payload runs past the end of its block", got=str(heard))
            return None
        divergence = first_difference(f"block {blockno}", wanted, bytes(come))
        if divergence is not None:
            raise Failed(
                "the bytes of a block are not those of the file", divergence=divergence, clause="BP1-BLK-001"
            )
        visit.compare(heard, "BP1-BLK-009", digest=digest_of(wanted))
        self.ended.append(blockno)
        self.current = None
        return blockno

    def _begin(self, visit: Visit, heard: Heard, message: wire.Block) -> None:
        sample, opening = self.sample, self.opening
        if isinstance(opening, wire.Open):
            facts = {
                name: getattr(opening, name) for name in ("filesize", "blocknum", "filename", "filetype")
            }
            visit.compare(heard, "BP1-BLK-020", sourceid=sample.sourceid, **facts)
        require(
            message.blockno < max(1, sample.blocknum),
            "blockno is not less than the number of blocks",
            got=str(heard),
        )
        start = message.position - message.blockno * BLOCK_LENGTH
        self.starts[message.blockno] = start
        come = bytearray(sample.block(message.blockno)[:start]) if start else bytearray()
        self.blocks[message.blockno] = come
        self.current = message


def runs(blocknos: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """The runs of these blocks."""
    found: list[tuple[int, int]] = []
    for blockno in sorted(set(blocknos)):
        if found and found[-1][0] + found[-1][1] == blockno:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((blockno, 1))
    return tuple(found)


def begun(visit: Visit, shelf: Shelf, sample: Sample) -> Upload:
    """The next upload that the client begins, which must be that of ``sample``."""
    return upload_of(visit, sample, shelf.wanted(visit, "OPEN or BLOCK"))


def begun_again(visit: Visit, shelf: Shelf, sample: Sample) -> Upload | None:
    """The upload that the client begins now, or None: it ends, or says nothing more."""
    try:
        for heard in visit.settled():
            if not shelf.answer(visit, heard) and isinstance(heard.message, wire.Open):
                return upload_of(visit, sample, heard)
    except Closed:
        pass
    return None


def upload_of(visit: Visit, sample: Sample, heard: Heard) -> Upload:
    """The upload that begins with this frame."""
    message = heard.message
    if not isinstance(message, (wire.Open, wire.Block)):
        raise visit.unexpected("OPEN or BLOCK", heard)
    visit.compare(heard, "BP1-NAM-001", filename=sample.filename)
    if message.filesize is not None:
        visit.compare(heard, "BP1-BLK-002", filesize=sample.filesize, blocknum=sample.blocknum)
    attempt = message.attempt if isinstance(message, wire.Open) else 0
    sample = sample.with_(sourceid=message.sourceid, attempt=attempt, filetype=message.filetype)
    upload = Upload(heard.stream, sample, message)
    if isinstance(message, wire.Block):
        upload.take(visit, heard)
    return upload


def open_upload(visit: Visit, shelf: Shelf, sample: Sample, *held: int, **changes: Any) -> Upload:
    """OPEN of ``sample``, and our OPENED."""
    upload = begun(visit, shelf, sample)
    require(not upload.brief, "a file of several blocks came without OPEN")
    visit.say(upload.stream, upload.opened(*held, **changes))
    return upload


def take_blocks(
    visit: Visit, shelf: Shelf, upload: Upload, *, until: int | None = None, acknowledge: bool = True
) -> wire.Commit | None:
    """Take blocks until COMMIT (returned), or until so many have ended; each is acknowledged when it has ended."""
    while until is None or len(upload.ended) < until:
        if upload.brief and upload.frames and getattr(upload.frames[-1].message, "commit", False):
            return None
        heard = shelf.wanted(visit, "BLOCK, PIECE or COMMIT")
        if isinstance(heard.message, wire.Commit) and heard.stream == upload.stream:
            judge_commit(visit, upload, heard)
            return heard.message
        if not isinstance(heard.message, (wire.Block, wire.Piece)) or heard.stream != upload.stream:
            raise visit.unexpected("BLOCK, PIECE or COMMIT", heard)
        blockno = upload.take(visit, heard)
        if blockno is not None and acknowledge and not upload.brief:
            visit.say(upload.stream, upload.acknowledged(blockno))
    return None


def judge_commit(visit: Visit, upload: Upload, heard: Heard) -> None:
    """COMMIT must name the file; what has come of it, or was held, must be all of it."""
    sample = upload.sample
    visit.compare(
        heard,
        "BP1-COM-001",
        sourceid=sample.sourceid,
        root=sample.root,
        filesize=sample.filesize,
        blocknum=sample.blocknum,
    )


def take_upload(visit: Visit, shelf: Shelf, sample: Sample, *held: int, **changes: Any) -> Upload:
    """A whole upload, with or without OPEN, up to our COMMITTED."""
    upload = begun(visit, shelf, sample)
    if not upload.brief:
        visit.say(upload.stream, upload.opened(*held, **changes))
    go_on(visit, shelf, upload)
    return upload


def take_begun(visit: Visit, shelf: Shelf, sample: Sample, heard: Heard) -> None:
    """A whole upload of which the first frame was heard, up to our COMMITTED."""
    upload = upload_of(visit, sample, heard)
    if not upload.brief:
        visit.say(upload.stream, upload.opened())
    go_on(visit, shelf, upload)


def go_on(visit: Visit, shelf: Shelf, upload: Upload) -> None:
    """The rest of an upload: blocks, COMMIT, and our COMMITTED."""
    take_blocks(visit, shelf, upload)
    for blockno in range(upload.sample.blocknum):
        come = bytes(upload.blocks.get(blockno, b""))
        if come != upload.sample.block(blockno):
            raise Failed(
                "COMMIT came before every block had come", got=f"block {blockno} has {len(come)} bytes"
            )
    visit.say(upload.stream, upload.committed())


# ---- downloads


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

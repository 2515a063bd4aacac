"""What an honest server does with an upload, in steps that cases are made of.

A case does the steps up to the one that is odd, does that one itself, and often goes on with the rest. What the client
says is held against the file that it was told to send, in every case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ... import wire
from ...common.blocks import BLOCK_LENGTH, digest_of
from ..peer import Heard
from ..sample import Sample
from ..verdicts import Closed, Failed, first_difference, require
from .shelf import Shelf
from .visit import Visit

EXPIRES_MS = 4_000_000_000_000


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

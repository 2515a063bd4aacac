"""A file to send: its bytes, its digests, and the messages that an honest sender would say about it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from blake3 import blake3

from .. import wire
from ..common.blocks import BLOCK_LENGTH, blocknum_of, digest_of, root_of


@dataclass(frozen=True)
class Sample:
    """A file of pseudo-random bytes.

    Attributes:
        filename: where it goes.
        filesize: bytes.
        sourceid: of its upload.
        seed: what its bytes are made from; another seed is another content.
        filetype: as it is told.
        attempt: of its upload.
        unknown: its size is not told before COMMIT.
    """

    filename: str
    filesize: int
    sourceid: bytes
    seed: int = 0
    filetype: str = "application/octet-stream"
    attempt: int = 1_000
    unknown: bool = False

    @cached_property
    def content(self) -> bytes:
        """All bytes of the file."""
        seed = f"{self.seed}/{self.filename}".encode("utf-8", "surrogateescape")
        return random.Random(seed).randbytes(self.filesize)

    @property
    def blocknum(self) -> int:
        """How many blocks it has."""
        return blocknum_of(self.filesize)

    def block(self, blockno: int) -> bytes:
        """The bytes of one block."""
        return self.content[blockno * BLOCK_LENGTH : (blockno + 1) * BLOCK_LENGTH]

    def digest(self, blockno: int) -> bytes:
        """The digest of one block; that of nothing for block 0 of an empty file."""
        return digest_of(self.block(blockno))

    @cached_property
    def digests(self) -> list[bytes]:
        """The digests of all blocks."""
        return [self.digest(blockno) for blockno in range(self.blocknum)]

    @property
    def root(self) -> bytes:
        """The file's root."""
        return root_of(self.digests, self.blocknum)

    @property
    def b3sum(self) -> bytes:
        """BLAKE3 of all bytes."""
        return blake3(self.content).digest()

    def with_(self, **changes: Any) -> Sample:
        """The same file with other facts; another ``seed`` or ``filesize`` gives it other bytes."""
        return replace(self, **changes)

    def open(self, **changes: Any) -> wire.Open:
        """OPEN of its upload."""
        size = None if self.unknown else self.filesize
        number = None if self.unknown else self.blocknum
        message = wire.Open(self.sourceid, self.attempt, size, number, self.filename, self.filetype)
        return replace(message, **changes)

    def head(self, blockno: int, start: int = 0, *, ends: bool = True, **changes: Any) -> wire.Block:
        """BLOCK from byte ``start`` of the block on, with its digest if the frame ``ends`` the block."""
        size = None if self.unknown else self.filesize
        number = None if self.unknown else self.blocknum
        position = blockno * BLOCK_LENGTH + start
        message = wire.Block(self.sourceid, size, number, blockno, position, self.filename, self.filetype)
        return replace(message, **{"digest": self.digest(blockno) if ends else None, **changes})

    def piece(self, blockno: int, start: int, *, ends: bool = True, **changes: Any) -> wire.Piece:
        """PIECE from byte ``start`` of the block on."""
        message = wire.Piece(blockno * BLOCK_LENGTH + start, self.digest(blockno) if ends else None)
        return replace(message, **changes)

    def brief(self, **changes: Any) -> wire.Block:
        """The BLOCK that is the whole file."""
        return self.head(0, **{"commit": True, **changes})

    def have(self, *blocknos: int, more: bool = False) -> wire.Have:
        """HAVE that names these blocks, all of them if none is named."""
        named = blocknos or range(self.blocknum)
        return wire.Have(tuple((blockno, self.digest(blockno)) for blockno in named), more)

    def commit(self, **changes: Any) -> wire.Commit:
        """COMMIT of its upload."""
        return replace(wire.Commit(self.sourceid, self.root, self.filesize, self.blocknum), **changes)

"""A stream that serves FETCH: it reads a piece when there is credit for it, and holds no memory while it waits.

A client's ``SendStream`` reads a whole block when its turn comes. A server may have thousands of such streams and cannot
hold a block for each, so here a block is read and hashed piece by piece, each piece when it can be sent.

Spec: BP1-LIM-003, BP1-BLK.
"""

from __future__ import annotations

from blake3 import blake3

from ..common.blocks import BLOCK_LENGTH
from ..connection.connection import Connection
from ..wire import Piece
from .send_source import PieceSource
from .send_stream import SendOwner, SendStream

PREFIX_READ_LENGTH = 64 * 1024
"""Bytes of a prefix that are read at once, however short the next piece is."""


class ServedSendStream(SendStream):
    """One stream that was opened with FETCH.

    Args:
        connection, sending, stream: as for ``SendStream``.
        source: the source of ``sending``.
    """

    def __init__(self, connection: Connection, sending: SendOwner, source: PieceSource, stream: int) -> None:
        super().__init__(connection, sending, stream)
        self._source = source

    async def send_blocks(self) -> None:
        """See SendStream."""
        with self._sharing_the_line():
            while (blockno := await self.sending.next_block(self)) is not None:
                self._check_staying()
                self.carried.add(blockno)
                await self._send_in_pieces(blockno)

    async def _send_in_pieces(self, blockno: int) -> None:
        sending, source = self.sending, self._source
        begin, length = source.span(blockno)
        if length == 0:
            sending.ends_at(begin)
            return
        sending.plan.block_begins(blockno, length)
        there = sending.plan.take_prefix(blockno, length)
        hasher = blake3()
        at, said = 0, False

        def wanted() -> int:
            return min(length - max(at, there), self.connection.piece_length())

        while at < length:
            least = min(max(0, there - at), PREFIX_READ_LENGTH)
            async with self.connection.buffers(self.stream, wanted, sending.priority, least) as memory:
                while at < there:  # the digest covers the prefix, too
                    view = memory[: min(there - at, len(memory))]
                    await source.read_piece(begin + at, view)
                    hasher.update(view)
                    at += len(view)
                view = memory[: wanted()]
                await source.read_piece(begin + at, view)
                hasher.update(view)
                digest = hasher.digest() if at + len(view) == length else None
                if digest is not None:
                    sending.plan.remember_digest(blockno, digest)
                message = (
                    Piece(begin + at, digest=digest)
                    if said
                    else self._block_message(blockno, begin + at, digest)
                )
                await self.connection.send(self.stream, message, view, sending.priority)
                sending.payload_sent(len(view))
                said = True
                at += len(view)
        if source.end is None and begin + length < (blockno + 1) * BLOCK_LENGTH:
            sending.ends_at(begin + length)

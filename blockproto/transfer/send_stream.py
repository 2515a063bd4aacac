"""SendStream: one stream that sends blocks of a file: OPEN and its answer, then block after block in pieces.

Spec: BP1-BLK, BP1-RES-012, BP1-RES-025, BP1-STR-016.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol, cast

import trio

from ..common.blocks import BLOCK_LENGTH, BRIEF_LENGTH_MAX, blocknum_of, digest_of
from ..connection.connection import Connection, error_of
from ..errors import (
    BlockprotoError,
    Cancelled,
    Code,
    ConnectionLost,
    GoingAway,
    LocalProtocolError,
    UnexpectedMessage,
)
from ..wire import Block, Cancel, Committed, Error, Message, Open, Opened, Piece, Priority
from .send_plan import SendPlan
from .send_source import BlockSource, Source


class SendOwner(Protocol):
    """The transfer to which a stream belongs; ``sender.Sender`` is one."""

    sourceid: bytes
    priority: Priority
    committed: Committed | None
    plan: SendPlan

    @property
    def source(self) -> Source:
        """The source of the file's bytes."""

    async def next_block(self, send_stream: SendStream) -> int | None:
        """Wait for the next block for a free stream; None if there is none left.

        Raises:
            BlockprotoError: the transfer has failed, or the stream is lost.

        Cancellation: no block was taken.
        """

    def payload_sent(self, length: int) -> None:
        """``length`` bytes of content are being sent."""

    def ends_at(self, end: int) -> None:
        """A source of unknown size ends at this position."""

    def on_message(self, message: Message) -> None:
        """Handle a message of the receiver, on any stream."""

    def send_stream_ended(self, error: BlockprotoError) -> None:
        """A stream has ended."""

    def check_going_on(self) -> None:
        """Raise the error of the transfer, if it has failed."""


class SendStream:
    """One stream that sends blocks of a file.

    Args:
        connection: where.
        sending: the transfer.
        stream: an open stream, or None to open one.

    Attributes:
        lost: why it has ended, or None.
        carried: the blocks that were begun on it.
        joined: the answer to ``join``.
    """

    waits = False

    def __init__(self, connection: Connection, sending: SendOwner, stream: int | None = None) -> None:
        self.connection = connection
        self.sending = sending
        self.opened = trio.Event()
        self.released = False
        self.lost: BlockprotoError | None = None
        self.carried: set[int] = set()
        self.joined: Opened | None = None
        self._joins = False
        self.stream = connection.open(self) if stream is None else stream

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if self.released:
            return
        if isinstance(message, Opened | Committed | Error):
            self.opened.set()
        if self._joining and isinstance(message, Opened):
            self.joined = message
        elif self._joining and isinstance(message, Error):
            self.lost = self.lost or error_of(message)
        else:
            self.sending.on_message(message)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("a receiver sends no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        if self.released:
            return
        joining = self._joining
        self.lost = self.lost or error
        self.opened.set()
        if self.sending.committed is None and not joining:
            self.sending.send_stream_ended(error)

    @property
    def _joining(self) -> bool:
        """Whether it waits to join: an error then concerns only the caller of ``join``, not the transfer."""
        return self._joins and self.joined is None

    def release(self) -> None:
        """Send CANCEL and ignore what still comes; the receiver keeps what it has."""
        self.released = True
        if self.connection.lost is not None or not self.connection.session.is_open(self.stream):
            return
        try:
            self.connection.post(self.stream, Cancel(reason=Code.CANCELLED, text="stopped", discard=False))
        except LocalProtocolError as exc:
            self.connection.close(exc)

    async def open(self, message: Open, *, ahead: bool = False) -> None:
        """Send OPEN and wait for its answer.

        Args:
            message: the OPEN.
            ahead: meanwhile send a block, if there is one of which the receiver has nothing.

        Raises:
            OSError: the source could not be read.
            BlockprotoError: it was refused, or the connection ended.

        Cancellation: the stream stays open; ``release`` it.
        """
        self.connection.post(self.stream, message)
        blockno = self.sending.plan.take_untouched() if ahead else None
        if blockno is not None:
            with suppress(Cancelled, ConnectionLost), self._sharing_the_line():  # the reason is raised below
                await self._send_next(blockno, self._memory())
        with self.connection.expecting(self.sending.priority):
            await self.opened.wait()
        self.sending.check_going_on()
        if self.lost is not None:
            raise self.lost

    async def join(self, message: Open) -> None:
        """Send OPEN with the attempt of the streams that send the file already, and wait for the answer (``joined``).

        Raises:
            BlockprotoError: it was refused, or the connection ended.

        Cancellation: as ``open``.
        """
        self._joins = True
        await self.open(message)

    async def send_blocks(self) -> None:
        """Send the file's next blocks until there is none left.

        Raises:
            OSError: the source could not be read.
            BlockprotoError: the transfer has failed, or the stream is lost.

        Cancellation: as ``Connection.send``.
        """
        memory = self._memory()
        with self._sharing_the_line():
            while (blockno := await self.sending.next_block(self)) is not None:
                await self._send_next(blockno, memory)

    def _memory(self) -> memoryview:
        """Memory for a block of the file."""
        end = self.sending.source.end
        return memoryview(bytearray(BLOCK_LENGTH if end is None else min(BLOCK_LENGTH, end)))

    async def _send_next(self, blockno: int, memory: memoryview) -> None:
        """Read a block and send it; tell ``sending`` if that was the end of the source."""
        sending = self.sending
        self._check_staying()
        self.carried.add(blockno)
        source = cast(BlockSource, sending.source)  # a client's; a server's is in ``served_send_stream``
        block = await source.read_block(blockno, memory)
        if not block:
            sending.ends_at(blockno * BLOCK_LENGTH)
            return
        digest = digest_of(block)
        sending.plan.remember_digest(blockno, digest)
        sending.plan.block_begins(blockno, len(block))
        await self._send_block(blockno, block, digest)
        if sending.source.end is None and len(block) < BLOCK_LENGTH:
            sending.ends_at(blockno * BLOCK_LENGTH + len(block))

    def _sharing_the_line(self) -> AbstractContextManager[None]:
        """Share the line with other streams; not for a small file: hundreds of them cannot be paced."""
        source = self.sending.source
        brief = source.end is not None and source.end - source.first <= BRIEF_LENGTH_MAX
        return nullcontext() if brief else self.connection.sending(self.stream)

    def _check_staying(self) -> None:
        """Raise GoingAway if the peer has said that it is stopping (BP1-END)."""
        leaving = self.connection.going_away
        if leaving is not None:
            raise GoingAway(leaving.text, retry_after_ms=leaving.retry_after_ms)

    async def _send_block(self, blockno: int, block: memoryview, digest: bytes) -> None:
        sending = self.sending
        begin = max(blockno * BLOCK_LENGTH, sending.source.first)
        at = sending.plan.take_prefix(blockno, len(block))
        started = False
        while not started or at < len(block):
            length = min(len(block) - at, self.connection.piece_length())
            end = digest if at + length == len(block) else None
            message = (
                Piece(begin + at, digest=end) if started else self._block_message(blockno, begin + at, end)
            )
            if self.connection.lost is None:
                sending.payload_sent(length)  # before: how much of a failed send went out is unknown
            await self.connection.send(self.stream, message, block[at : at + length], sending.priority)
            started = True
            at += length

    def _block_message(self, blockno: int, position: int, digest: bytes | None) -> Block:
        facts = self.sending.source.facts
        return Block(
            sourceid=self.sending.sourceid,
            filesize=facts.filesize,
            blocknum=None if facts.filesize is None else blocknum_of(facts.filesize),
            blockno=blockno,
            position=position,
            filename=facts.filename.text,
            filetype=facts.filetype,
            digest=digest,
        )

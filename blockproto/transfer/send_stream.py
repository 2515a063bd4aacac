"""A stream that carries blocks of a file which is sent: OPEN and its answer, then block after block in pieces.

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
    """The file that a stream carries blocks of; see ``sender.Sender``, which is one."""

    sourceid: bytes
    priority: Priority
    committed: Committed | None
    plan: SendPlan

    @property
    def source(self) -> Source:
        """Its bytes."""

    async def next_block(self, send_stream: SendStream) -> int | None:
        """The next block for a free stream; None when there is nothing left to send now.

        Raises:
            BlockprotoError: the transfer has failed, or the stream is lost.
        """

    def payload_sent(self, length: int) -> None:
        """``length`` bytes of content were put on the wire."""

    def ends_at(self, end: int) -> None:
        """A source of unknown size has come to its end."""

    def on_message(self, message: Message) -> None:
        """A message of the receiver on any stream."""

    def send_stream_ended(self, error: BlockprotoError) -> None:
        """A stream carries nothing more."""

    def check_going_on(self) -> None:
        """Raise why the transfer has failed, if it has."""


class SendStream:
    """One stream that carries blocks of a file.

    Args:
        connection: where.
        sending: the file.
        stream: an open stream, or None to open one.

    Attributes:
        lost: why it carries nothing more, or None.
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
        """Whether it is no stream of the file yet: what goes wrong with it concerns only who asked it to join."""
        return self._joins and self.joined is None

    def release(self) -> None:
        """Carry no more blocks; the receiver keeps what it has, and what it still says here is not listened to."""
        self.released = True
        if self.connection.lost is not None or not self.connection.session.is_open(self.stream):
            return
        try:
            self.connection.post(self.stream, Cancel(reason=Code.CANCELLED, text="stopped", discard=False))
        except LocalProtocolError as exc:
            self.connection.close(exc)

    async def open(self, message: Open, *, ahead: bool = False) -> None:
        """Say OPEN and wait for its answer.

        Args:
            message: what is said.
            ahead: send a block meanwhile, if there is one of which the receiver has nothing.

        Raises:
            OSError: the source could not be read.
            BlockprotoError: it was refused, or the connection ended.
        """
        self.connection.post(self.stream, message)
        blockno = self.sending.plan.take_untouched() if ahead else None
        if blockno is not None:
            with suppress(Cancelled, ConnectionLost), self._sharing_the_line():  # what ended it says why
                await self._send_next(blockno, self._memory())
        with self.connection.expecting(self.sending.priority):
            await self.opened.wait()
        self.sending.check_going_on()
        if self.lost is not None:
            raise self.lost

    async def join(self, message: Open) -> None:
        """Say OPEN with the attempt of the streams that carry the file already, and wait for its answer (``joined``).

        Raises:
            BlockprotoError: it was refused, or the connection ended.
        """
        self._joins = True
        await self.open(message)

    async def send_blocks(self) -> None:
        """Send the file's next blocks until there is none left."""
        memory = self._memory()
        with self._sharing_the_line():
            while (blockno := await self.sending.next_block(self)) is not None:
                await self._send_next(blockno, memory)

    def _memory(self) -> memoryview:
        """Room for a block of the file."""
        end = self.sending.source.end
        return memoryview(bytearray(BLOCK_LENGTH if end is None else min(BLOCK_LENGTH, end)))

    async def _send_next(self, blockno: int, memory: memoryview) -> None:
        """Read a block and send it; where the source has come to its end, that is told to ``sending``."""
        sending = self.sending
        self._check_staying()
        self.carried.add(blockno)
        source = cast(BlockSource, sending.source)  # what a client sends; see ``served_send_stream``
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
        """Be one of those that share the line, unless it is over at once: hundreds of small files cannot be paced."""
        source = self.sending.source
        brief = source.end is not None and source.end - source.first <= BRIEF_LENGTH_MAX
        return nullcontext() if brief else self.connection.sending(self.stream)

    def _check_staying(self) -> None:
        """Start no block once the peer has said that it is stopping (BP1-END)."""
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
                sending.payload_sent(length)  # before: of what is cut short nobody knows how much went out
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

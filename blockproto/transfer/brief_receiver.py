"""The receiver of a file without OPEN, which has at most one block: one frame or a few, one work, one answer.

    Block → (Piece)* … END and COMMIT → verified → committer → durable → COMMITTED

Spec: BP1-BLK, BP1-COM.
"""

from __future__ import annotations

import secrets

from ..common.blocks import is_one_block
from ..connection.connection import Connection, error_of
from ..errors import BadFacts, BlockprotoError, Cancelled, DigestMismatch
from ..store import Facts, Outcome, StoredFile
from ..wire import Block, Cancel, Error, Message, Piece
from .block_receiver import BlockInProgress, BlockReceiver, BriefTarget
from .file_service import FileWriter
from .receiver import committed_message, facts_of


class BriefReceiver:
    """A stream that receives a whole file of at most one block, without OPEN.

    Args:
        connection, stream: where it is.
        writer: what its sender may do.
    """

    def __init__(self, connection: Connection, stream: int, writer: FileWriter) -> None:
        self._connection = connection
        self._stream = stream
        self._writer = writer
        self._finishing = False
        self._target: BriefTarget | None = None
        self._blocks: BlockReceiver | None = None
        self._facts: Facts | None = None
        self._counted: bytes | None = None

    @property
    def waits(self) -> bool:
        """See connection.StreamHandler: a quota is looked up in the store, and a disk may be slow."""
        return self._writer.has_quota if self._target is None else self._target.waits

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Block):
            await self._begin(message, payload_length)
        elif isinstance(message, Piece) and self._block is not None:
            self._continue(self._block, message, payload_length)
        elif isinstance(message, Cancel):
            self._cancel()
        elif isinstance(message, Error):
            self.ended(error_of(message))
        block = self._block
        if block is not None and payload_length == 0 and block.digest is not None:
            self._end(block)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        if self._blocks is None:
            return
        block = await self._blocks.take(position, view)
        if block is not None and last and block.digest is not None:
            self._end(block)

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        if self._finishing:
            return
        if self._blocks is not None and self._target is not None:
            self._blocks.leave()
            self._target.close()
        self._count_no_more()

    @property
    def _block(self) -> BlockInProgress | None:
        return None if self._blocks is None else self._blocks.block

    def _continue(self, block: BlockInProgress, message: Block | Piece, payload_length: int) -> None:
        if message.digest is not None and not message.commit:
            raise BadFacts("a file without OPEN ends with the COMMIT flag")
        block.continue_with(message.position, payload_length, message.digest)

    async def _begin(self, message: Block, payload_length: int) -> None:
        if self._facts is not None:
            raise BadFacts("a file without OPEN is one block")
        facts = self._facts = facts_of(message)
        if not is_one_block(facts.filesize) or message.blockno != 0 or message.position != 0:
            raise BadFacts("only a whole file of at most one block may come without OPEN")
        block = BlockInProgress(0, 0, 0, facts.filesize)
        self._continue(block, message, payload_length)
        sourceid = secrets.token_bytes(16) if message.sourceid == bytes(16) else message.sourceid
        upload = await self._writer.begin_brief(sourceid, facts)
        if not self._connection.session.is_open(self._stream):
            upload.close()
            self._writer.end_brief(sourceid)
            return
        self._counted = sourceid
        self._target = BriefTarget(upload, self._writer.disk)
        self._blocks = BlockReceiver(self._target, self)
        await self._blocks.begin(block)

    def _end(self, block: BlockInProgress) -> None:
        target, blocks = self._target, self._blocks
        assert target is not None
        assert blocks is not None
        blocks.end()
        if target.done is None:
            raise DigestMismatch("the file did not arrive whole", blockno=0)
        self._finishing = True
        finish = target.finish(target.stored.facts, reader=self._writer.may_read)
        self._writer.commit_brief(finish, self._on_finished)

    def _cancel(self) -> None:
        if not self._finishing:
            raise Cancelled("cancelled by the sender")
        assert self._target is not None
        self._writer.withdraw_brief(self._target.stored)

    def _on_finished(self, outcome: Outcome) -> None:
        try:
            self._answer(outcome)
        except Exception as exc:  # it ends this stream, not the store (BP1-ERR-010)
            self._connection.broke(self._stream, exc)

    def _answer(self, outcome: Outcome) -> None:
        assert self._target is not None
        self._target.close()
        if isinstance(outcome, StoredFile):
            self._writer.tell_stored(self._target.stored.key.sourceid, outcome)
            self._connection.post(self._stream, committed_message(outcome, self._writer))
            self._connection.forget(self._stream)
        elif isinstance(outcome, BlockprotoError):
            self._connection.refuse(self._stream, outcome)
        self._count_no_more()

    def _count_no_more(self) -> None:
        sourceid, self._counted = self._counted, None
        if sourceid is not None:
            self._writer.end_brief(sourceid)

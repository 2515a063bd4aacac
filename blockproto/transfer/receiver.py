"""The receiver of an upload: handles the messages of one stream and answers them.

A stream has at most one unfinished block (``BlockReceiver``). Its bytes are written in place and hashed as they come; the
block counts once the frame that ends it has brought its digest. So memory is bounded by a fragment of a frame, and a lost
connection costs only the bytes in flight.

    Block → (Payload)* → Piece → (Payload)* … END → verified → committer → durable → ACK
    Commit, when every block is durable and the root agrees → COMMITTED

Spec: BP1-BLK, BP1-RES, BP1-COM, BP1-DIG.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from ..common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, Run, blocknum_of
from ..common.names import SafeName
from ..connection.connection import Connection
from ..connection.stream_handler import Wait
from ..errors import (
    BadFacts,
    BlockprotoError,
    Cancelled,
    DigestMismatch,
    DigestsDiffer,
    Scope,
    SourceChanged,
)
from ..store import (
    Facts,
    IfExists,
    StoredFile,
)
from ..wire import Block, Cancel, Commit, Committed, Error, Have, Message, Open, Opened, Piece
from .block_receiver import BlockInProgress, BlockReceiver, Ended
from .engine import Engine
from .file_service import FileWriter
from .live_upload import LiveUpload

OPENED_RUNS_MAX = 400
OPENED_PREFIXES_MAX = 64


def facts_of(message: Open | Block) -> Facts:
    """The facts that a sender stated, with the name as it is in its realm.

    Raises:
        NameRefused: the name breaks a rule.
    """
    return Facts(
        filename=SafeName.parse(message.filename),
        filetype=message.filetype,
        filesize=message.filesize,
        mtime_ns=message.mtime_ns,
        mode=message.mode,
        if_exists=IfExists(message.if_exists or 0),
    )


class UploadReceiver:
    """A stream that receives blocks of an upload.

    Args:
        connection: where the stream is.
        stream: its id.
        target: where the blocks go: on a server the sender's ``FileWriter``, for a download its engine.
        asks: whether OPEN asks for a file that is there: then files are compared, and hooks are asked.
    """

    def __init__(
        self, connection: Connection, stream: int, target: FileWriter | Engine, *, asks: bool = False
    ) -> None:
        self._asks = asks
        self.upload: LiveUpload | None = None
        self._connection = connection
        self._stream = stream
        self._target = target
        self._sourceid = b""
        self._chosen_here = False
        self._said: tuple[int | None, str, str] | None = None
        self._cancelled: Cancelled | None = None
        self._blocks: BlockReceiver | None = None

    @property
    def _writer(self) -> FileWriter:
        """What the sender may do."""
        assert isinstance(self._target, FileWriter)
        return self._target

    # ---- what the connection tells ----------------------------------------------------------------------------

    @property
    def waits(self) -> int:
        """See connection.StreamHandler: opening asks the store, and perhaps more, and a disk may be slow."""
        if self.upload is None:
            return Wait.LONG if self._asks else Wait.SHORT
        return self._target.disk.slow

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Block):
            await self._begin_block(message, payload_length)
        elif isinstance(message, Piece):
            await self._continue_block(message, payload_length)
        elif isinstance(message, Open):
            await self._open(message)
        elif isinstance(message, Commit):
            self._commit(message)
        elif isinstance(message, Have):
            await self._repair(message)
        elif isinstance(message, Cancel):
            self._cancel(message)
        elif isinstance(message, Error):
            self._leave()

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        if self._blocks is None:
            return
        block = await self._blocks.take(position, view)
        if block is not None and last and block.digest is not None:
            self._end_block(block)

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        self._leave()

    # ---- what the upload tells --------------------------------------------------------------------------------

    def say_durable(self, position: int, runs: list[Run]) -> None:
        """See live_upload.Feed."""
        self._connection.post_ack(self._stream, position, runs)

    def say_committed(self, stored: StoredFile) -> None:
        """See live_upload.Feed."""
        self._connection.post(self._stream, committed_message(stored, self._writer))
        self._connection.forget(self._stream)
        self._leave()

    def say_differ(self, error: DigestsDiffer) -> None:
        """See live_upload.Feed."""
        if self._cancelled is not None:
            self.say_stopped(self._cancelled)
        elif self._connection.commits(self._stream):
            self._connection.refuse(self._stream, error, Scope.BLOCK)

    def say_stopped(self, error: BlockprotoError) -> None:
        """See live_upload.Feed."""
        self._connection.refuse(self._stream, self._cancelled or error)
        self._leave()

    # ---- requests ---------------------------------------------------------------------------------------------

    async def _open(self, message: Open) -> None:
        self._chosen_here = message.sourceid == bytes(16)
        self._sourceid = secrets.token_bytes(16) if self._chosen_here else message.sourceid
        self._said = said_of(message)
        facts = facts_of(message)
        found = await self._writer.open(self._sourceid, facts, message.attempt, self, message.root)
        if isinstance(found, StoredFile):
            self.say_committed(found)
            return
        self._enter(found)
        if not self._connection.session.is_open(self._stream):
            self._leave()
            return
        self._connection.post(self._stream, self._opened(found))

    def _enter(self, upload: LiveUpload) -> None:
        self.upload = upload
        self._blocks = BlockReceiver(upload, self)

    def _opened(self, upload: LiveUpload) -> Opened:
        unowned = [
            (no, prefix.length) for no, prefix in sorted(upload.prefixes.items()) if no not in upload.owners
        ]
        return Opened(
            sourceid=self._sourceid,
            file_id=upload.stored.file_id,
            attempt=upload.attempt,
            position=upload.position,
            incarnation=self._target.incarnation,
            expires_ms=upload.stored.expires_ms,
            held=tuple(upload.held.runs(OPENED_RUNS_MAX)),
            prefixes=tuple(unowned[:OPENED_PREFIXES_MAX]),
        )

    def _commit(self, message: Commit) -> None:
        upload = self._opened_upload()
        self._check_sourceid(message.sourceid)
        facts = replace(
            upload.facts,
            filesize=message.filesize,
            mtime_ns=upload.facts.mtime_ns if message.mtime_ns is None else message.mtime_ns,
            mode=upload.facts.mode if message.mode is None else message.mode,
        )
        upload.commit(self, message.root, message.filesize, facts, self._writer.may_read)

    async def _repair(self, message: Have) -> None:
        upload = self._opened_upload()
        await upload.repair(message.digests)
        if not message.more and self.upload is upload:
            self._connection.post(self._stream, self._opened(upload))

    def _cancel(self, message: Cancel) -> None:
        upload = self._opened_upload()
        cancelled = Cancelled("cancelled by the sender")
        if message.discard:
            upload.discard(cancelled)
        elif not upload.stop_commit(self):
            self._cancelled = cancelled  # perhaps too late: the commit under way answers (BP1-COM)
        else:
            self.say_stopped(cancelled)

    # ---- blocks -----------------------------------------------------------------------------------------------

    async def _begin_block(self, message: Block, payload_length: int) -> None:
        upload = self._opened_upload()
        self._check_sourceid(message.sourceid)
        if said_of(message) != self._said:
            raise BadFacts("BLOCK and OPEN differ in filesize, filename or filetype")
        blocks = self._opened_blocks()
        blocks.abandon()
        if message.filesize == 0:
            self._take_nothing(message)
            return
        begin = max(message.blockno * BLOCK_LENGTH, upload.first)
        block = BlockInProgress(
            message.blockno, begin, message.position, self._end_of(message.blockno, upload)
        )
        block.continue_with(message.position, payload_length, message.digest)
        if await blocks.begin(block) and payload_length == 0 and block.digest is not None:
            self._end_block(block)

    async def _continue_block(self, message: Piece, payload_length: int) -> None:
        block = self._opened_blocks().block
        if block is None:
            raise BadFacts("PIECE without a BLOCK that began it")
        block.continue_with(message.position, payload_length, message.digest)
        if payload_length == 0 and message.digest is not None:
            self._end_block(block)

    def _take_nothing(self, message: Block) -> None:
        """Handle the BLOCK of an empty file, which has no block (BP1-BLK)."""
        if message.digest is None:
            raise BadFacts("an empty file's BLOCK has the flag END")
        if message.digest != EMPTY_DIGEST:
            mismatch = DigestMismatch("nothing has another digest", blockno=0)
            self._connection.refuse(self._stream, mismatch, Scope.BLOCK)

    def _end_block(self, block: BlockInProgress) -> None:
        upload, ended = self._opened_upload(), self._opened_blocks().end()
        if ended is Ended.DIFFERS:
            raise SourceChanged(f"block {block.blockno} was sent before with other bytes")
        if ended is Ended.KNOWN and block.blockno in upload.held:
            self.say_durable(upload.position, [(block.blockno, 1)])
        elif ended is Ended.DAMAGED:
            mismatch = DigestMismatch(f"block {block.blockno} did not arrive whole", blockno=block.blockno)
            self._connection.refuse(self._stream, mismatch, Scope.BLOCK)

    def _end_of(self, blockno: int, upload: LiveUpload) -> int | None:
        end = upload.facts.filesize
        if end is None:
            return None
        if not 0 <= blockno < blocknum_of(end):
            raise BadFacts(f"blockno {blockno} is not below blocknum {blocknum_of(end)}")
        return min((blockno + 1) * BLOCK_LENGTH, end)

    def _check_sourceid(self, sourceid: bytes) -> None:
        if sourceid != self._sourceid and not (self._chosen_here and sourceid == bytes(16)):
            raise BadFacts("this stream was opened for another sourceid")

    def _opened_upload(self) -> LiveUpload:
        if self.upload is None:
            raise BadFacts("no upload was opened on this stream")
        return self.upload

    def _opened_blocks(self) -> BlockReceiver:
        if self._blocks is None:
            raise BadFacts("no upload was opened on this stream")
        return self._blocks

    def _leave(self) -> None:
        blocks, self._blocks = self._blocks, None
        if blocks is not None:
            blocks.leave()
        upload, self.upload = self.upload, None
        if upload is not None:
            upload.leave(self)


def said_of(message: Open | Block) -> tuple[int | None, str, str]:
    """The fields of OPEN, besides sourceid, that every BLOCK repeats (BP1-BLK)."""
    return message.filesize, message.filename, message.filetype


def committed_message(stored: StoredFile, writer: FileWriter) -> Committed:
    """The COMMITTED that tells the sender of a file that it is stored."""
    return Committed(
        sourceid=stored.sourceid,
        file_id=stored.file_id,
        root=stored.root,
        filesize=stored.filesize,
        stored_as=writer.shown(stored.stored_as),
        b3sum=stored.b3sum,
        left=stored.left,
        there=stored.there,
    )

"""Download a file of at most one block on one stream: FETCH, then OPEN BLOCK COMMIT, and one work of the committer.

Spec: BP1-FET, BP1-BLK, BP1-COM.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..common.blocks import EMPTY_DIGEST
from ..connection.connection import Connection, error_of
from ..errors import BadFacts, BlockprotoError, DigestMismatch, DigestsDiffer, SourceChanged
from ..results import DownloadJob
from ..store import Outcome, StoredFile, Upload
from ..transfer.block_receiver import BlockInProgress, BlockReceiver, BriefTarget
from ..transfer.committer import Committer
from ..transfer.fetch_receiver import require_root
from ..transfer.slow_disk import Disk
from ..wire import Block, Commit, Committed, Error, Fetch, Message, Open, Piece

OTHER_SIDE = bytes(16)
"""The principal of what a client downloads: there is one server."""


@dataclass(slots=True)
class SmallDownload:
    """A job of at most one block, with what FETCH and the store need."""

    job: DownloadJob
    version: bytes
    upload: Upload
    begun: float = field(default_factory=time.perf_counter)


class BriefFetch:
    """A stream that fetches a file of at most one block.

    Args:
        connection: where the stream will be.
        small: what is fetched.
        committer, disk: where its bytes go.
        done: called once with the receipt, or with why there is none.
    """

    __slots__ = (
        "_blocks",
        "_committer",
        "_connection",
        "_done",
        "_finishing",
        "_opened",
        "_target",
        "small",
        "stream",
    )

    def __init__(
        self,
        connection: Connection,
        small: SmallDownload,
        committer: Committer,
        disk: Disk,
        done: Callable[[StoredFile | BlockprotoError], None],
    ) -> None:
        self.small = small
        self.stream = 0
        self._connection = connection
        self._committer = committer
        self._done: Callable[[StoredFile | BlockprotoError], None] | None = done
        self._opened: Open | None = None
        self._target = BriefTarget(small.upload, disk)
        self._blocks = BlockReceiver(self._target, self)
        if small.job.entry.filesize == 0:  # it has no block that could come
            self._target.block_verified(0, 0, EMPTY_DIGEST)
        self._finishing = False

    def begin(self) -> None:
        """Open the stream and ask; raises what ``Connection.open`` raises."""
        entry = self.small.job.entry
        self.stream = self._connection.open(self)
        message = Fetch(filename=entry.filename, version=self.small.version, length=entry.filesize)
        self._connection.post(self.stream, message)

    def stop(self, error: BlockprotoError) -> None:
        """Tell the peer that this file is not wanted any more."""
        if not self._finishing and self._done is not None:
            if self.stream:
                self._connection.refuse(self.stream, error)
            self.ended(error)

    def close(self) -> None:
        """Let go of the file; only once it is not being made durable."""
        self.small.upload.close()

    @property
    def waits(self) -> bool:
        """See connection.StreamHandler: a disk may be slow."""
        return self._target.waits

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Open):
            self._open(message)
        elif isinstance(message, Block):
            await self._begin(message, payload_length)
        elif isinstance(message, Piece):
            self._continue(message, payload_length)
        elif isinstance(message, Commit):
            self._commit(message)
        elif isinstance(message, Error):
            self.ended(error_of(message))

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        block = await self._blocks.take(position, view)
        if block is not None and last and block.digest is not None:
            self._verify()

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler. While the complete file is being made durable, that is awaited."""
        if not self._finishing:
            self._end(error)

    def _open(self, message: Open) -> None:
        entry = self.small.job.entry
        if message.version != self.small.version or message.filesize != entry.filesize:
            raise SourceChanged(f"{entry.filename} changed while it was being fetched")
        self._opened = message

    async def _begin(self, message: Block, payload_length: int) -> None:
        begun = self._blocks.block is not None or self._target.done is not None
        if self._opened is None or begun or message.blockno != 0:
            raise BadFacts("a file of one block has one BLOCK")
        block = BlockInProgress(0, 0, 0, self.small.job.entry.filesize)
        block.continue_with(message.position, payload_length, message.digest)
        await self._blocks.begin(block)

    def _continue(self, message: Piece, payload_length: int) -> None:
        block = self._blocks.block
        if block is None:
            raise BadFacts("PIECE without a BLOCK that began it")
        block.continue_with(message.position, payload_length, message.digest)
        if payload_length == 0 and block.digest is not None:
            self._verify()

    def _verify(self) -> None:
        self._blocks.end()
        if self._target.done is None:
            raise DigestMismatch("the file did not arrive whole", blockno=0)

    def _commit(self, message: Commit) -> None:
        done = self._target.done
        if done is None or message.root != done.digest:
            raise DigestsDiffer("COMMIT came with another root, or before the bytes")
        assert self._opened is not None  # it comes first (BP1-FET-003)
        require_root(self._opened, message.root)
        finish = self._target.finish(self.small.upload.facts)
        self._committer.submit(finish, self._on_finished, principal=OTHER_SIDE, small=True)
        self._finishing = True

    def _on_finished(self, outcome: Outcome) -> None:
        if isinstance(outcome, StoredFile):
            self._say_committed(outcome)
            self._end(outcome)
        elif isinstance(outcome, BlockprotoError):
            self._connection.refuse(self.stream, outcome)
            self._end(outcome)

    def _say_committed(self, stored: StoredFile) -> None:
        opened = self._opened
        assert opened is not None
        file_id = opened.file_id or bytes(16)
        message = Committed(opened.sourceid, file_id, stored.root, stored.filesize, "")
        self._connection.post(self.stream, message)
        self._connection.forget(self.stream)

    def _end(self, outcome: StoredFile | BlockprotoError) -> None:
        done, self._done = self._done, None
        if done is not None:
            self._blocks.leave()
            self._target.close()
            done(outcome)

"""Upload a file of at most one block, or a folder, without OPEN: one BLOCK with all facts, and COMMITTED.

Spec: BP1-BLK (a file without OPEN).
"""

from __future__ import annotations

from collections.abc import Callable

from ..common.blocks import blocknum_of, digest_of
from ..connection.connection import Connection, Opening, error_of
from ..errors import BlockprotoError, UnexpectedMessage
from ..store import FOLDER_FILETYPE, Facts
from ..transfer.sender import judge_committed
from ..wire import Block, Committed, Error, Message, Piece, Priority

PRIORITY = Priority.NORMAL


class BriefSendStream:
    """A stream that carries one file of at most one block, without OPEN.

    Args:
        facts: of the file, as they were sent.
        root: its root; None for a folder.
        done: called once with COMMITTED, or with why there is none.
    """

    __slots__ = ("_done", "_facts", "_root")
    waits = False

    def __init__(
        self, facts: Facts, root: bytes | None, done: Callable[[Committed | BlockprotoError], None]
    ) -> None:
        self._facts = facts
        self._root = root
        self._done: Callable[[Committed | BlockprotoError], None] | None = done

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Committed):
            try:
                judge_committed(self._facts, self._root, message)
            except BlockprotoError as exc:
                self._end(exc)
            else:
                self._end(message)
        elif isinstance(message, Error):
            self._end(error_of(message))

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        raise UnexpectedMessage("a receiver sends no payload")

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        self._end(error)

    def _end(self, outcome: Committed | BlockprotoError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcome)


async def send_brief(
    connection: Connection,
    sourceid: bytes,
    facts: Facts,
    content: bytes,
    done: Callable[[Committed | BlockprotoError], None],
    priority: Priority = PRIORITY,
) -> None:
    """Send a whole file of at most one block; ``done`` is called once with the outcome, now or later.

    Cancellation: ``done`` may not be called.
    """
    length = min(len(content), connection.piece_length())
    opening = opening_of(sourceid, facts, content, length, done, priority)
    try:
        (stream,) = await connection.send_openings([opening], priority)
        view = memoryview(content)
        while length < len(content):
            at, length = length, length + min(len(content) - length, connection.piece_length())
            last = length == len(content)
            message = Piece(at, digest=digest_of(content) if last else None, commit=last)
            await connection.send(stream, message, view[at:length], priority)
    except BlockprotoError as exc:
        opening.handler.ended(exc)


def opening_of(
    sourceid: bytes,
    facts: Facts,
    content: bytes,
    length: int,
    done: Callable[[Committed | BlockprotoError], None],
    priority: Priority = PRIORITY,
) -> Opening:
    """The BLOCK that begins a file of at most one block with its first ``length`` bytes; ``done`` as for ``send_brief``."""
    whole = length == len(content)
    digest = digest_of(content)
    block = Block(
        sourceid=sourceid,
        filesize=len(content),
        blocknum=blocknum_of(len(content)),
        blockno=0,
        position=0,
        filename=facts.filename.text,
        filetype=facts.filetype,
        digest=digest if whole else None,
        commit=whole,
        mtime_ns=facts.mtime_ns,
        mode=facts.mode,
        if_exists=facts.if_exists or None,
        priority=None if priority is PRIORITY else priority,
    )
    send_stream = BriefSendStream(facts, None if facts.filetype == FOLDER_FILETYPE else digest, done)
    return Opening(send_stream, block, content if whole else memoryview(content)[:length])

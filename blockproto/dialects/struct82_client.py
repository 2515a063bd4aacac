"""The client's side of the dialect ``struct82``: one file over several connections, verified block by block.

    ask → which blocks are held, and their root → send what is missing, block 0 first → ask → complete, and its root

Each connection takes the next missing block; all together have at most ``WINDOW_BLOCKS`` without a reply. The digest in each
reply is compared with that of the bytes read, and a damaged block is sent again. The root in the first answer shows whether
the server holds another file of the same name, type and size. If that one is complete, every block is sent and the server
keeps both; if not, nothing is sent, because the two would be mixed.

What this dialect cannot carry is refused before anything is sent (``header_of``).

Spec: BP1-S82.
"""

from __future__ import annotations

from collections import Counter, deque

import trio

from ..client_side.dial import Dial
from ..client_side.sources import filetype_of
from ..common.blocks import BLOCK_LENGTH, blocknum_of, digest_of, root_of
from ..common.tasks import background_tasks, first_error
from ..connection.endpoint import Endpoint
from ..errors import (
    ERRORS,
    Code,
    ConnectionLost,
    DigestMismatch,
    NameRefused,
    NotBlockproto,
    Refused,
    SourceChanged,
    error_from_code,
)
from .dialect import begins_with_key
from .sending import Ending, Outgoing, Unanswered
from .struct82_wire import (
    FILENAME_LENGTH,
    FILESIZE_MAX,
    FILETYPE_LENGTH,
    PACKED_LITTLE,
    QUESTION,
    STORED_AS_LENGTH,
    Header,
    Reply,
    bitmap_length,
    read_bitmap,
    read_stored_as,
)

CONNECTIONS_DEFAULT = 5
WINDOW_BLOCKS = 60
"""Blocks without a reply, over all connections: as many as a server lets wait for its disk (BP1-DIA-014)."""
ANSWER_S = 120.0
"""How long a server may be silent while it owes a reply."""
_HINT = ": is it served with --dialect struct82?"
DAMAGED_MAX = 5
"""How often the same block is sent when it arrives damaged."""


def header_of(filename: str, filesize: int) -> Header:
    """The question about a file.

    Raises:
        Refused, NameRefused: the dialect cannot carry it.

    Spec: BP1-S82-002.
    """
    name, filetype = filename.encode(), filetype_of(filename).encode()
    instead = "in the dialect struct82: send it without --dialect"
    if len(name) > FILENAME_LENGTH:
        raise NameRefused(
            f"the name '{filename}' has {len(name)} bytes, and {FILENAME_LENGTH} fit {instead}",
            rule="name-length",
        )
    if "\\" in filename:
        raise NameRefused(
            f"the name '{filename}' holds a backslash, behind which a new name begins {instead}, or with --as NAME",
            rule="dialect",
        )
    if not 0 < filesize <= FILESIZE_MAX:
        size = "an empty file" if filesize == 0 else f"a file of more than {FILESIZE_MAX:,} bytes"
        raise Refused(f"{size} cannot be sent {instead}")
    full = len(name) == FILENAME_LENGTH and len(filetype) == FILETYPE_LENGTH
    if len(filetype) > FILETYPE_LENGTH or (
        full and begins_with_key(name)
    ):  # else it begins like a line of text
        filetype = b""
    return Header(name, filetype, filesize, blocknum_of(filesize), QUESTION)


def _another(file: Outgoing) -> SourceChanged:
    return SourceChanged(
        f"the server holds a part of another '{file.filename}' of the same size: give it another name with --as, "
        "or have that one cancelled there"
    )


class _Line:
    """One connection: headers and blocks out, replies in, in the same order."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._answered = False

    async def ask(self, header: Header) -> tuple[Reply, set[int], str]:
        """Ask which blocks are held; the reply, their blocknos, and the name of a complete file."""
        await self.send(header, memoryview(b""))
        reply = await self.reply(QUESTION)
        held = read_bitmap(await self._receive(bitmap_length(header.blocknum)))
        name = read_stored_as(await self._receive(STORED_AS_LENGTH)) if reply.complete else ""
        return reply, {blockno for blockno in held if blockno < header.blocknum}, name

    async def send(self, header: Header, block: memoryview) -> None:
        """Send a header and what follows it."""
        await self._endpoint.send([PACKED_LITTLE.write(header), block])

    async def reply(self, blockno: int) -> Reply:
        """The reply to the header of that blockno. Raises ConnectionLost, NotBlockproto, or the error in the reply."""
        reply = PACKED_LITTLE.read_reply(await self._receive(PACKED_LITTLE.reply_length))
        if reply.blockno not in (blockno, QUESTION):
            raise NotBlockproto(f"what {self._endpoint.peer} says is not a reply{_HINT}")
        if reply.code:
            row = ERRORS.get(Code(reply.code)) if reply.code in Code._value2member_map_ else None
            text = row.meaning if row is not None else f"the server refused it with the code {reply.code}"
            raise error_from_code(reply.code, text, retryable=row is not None and row.retryable)
        return reply

    async def close(self) -> None:
        """Close at once."""
        with trio.CancelScope(shield=True):
            await self._endpoint.aclose()

    async def _receive(self, length: int) -> bytearray:
        raw = bytearray(length)
        view = memoryview(raw)
        filled = 0
        while filled < length:
            received = await self._endpoint.receive_into(
                view[filled:], lambda: trio.current_time() + ANSWER_S
            )
            if not received:
                peer = self._endpoint.peer
                why = f"owes a reply and said nothing for {ANSWER_S:.0f} s"
                text = (
                    f"{peer} {why}" if received is None else f"{peer} closed the connection before it replied"
                )
                if self._answered:
                    raise ConnectionLost(text)
                raise Unanswered(text + _HINT, silent=received is None)
            self._answered = True
            filled += received
        return raw


class Struct82Sender:
    """The client's side of the dialect, for one file.

    Args:
        connections: over how many connections at once, at least 1.
    """

    def __init__(self, connections: int = CONNECTIONS_DEFAULT) -> None:
        self._connections = connections
        self._digests: dict[int, bytes] = {}
        self._held: set[int] = set()
        self._missing: deque[int] = deque()
        self._damaged: Counter[int] = Counter()
        self._reading = trio.Lock()

    async def send(self, dial: Dial, file: Outgoing) -> Ending:
        """See DialectSender.

        Raises:
            ConnectionLost: the line broke; trying again resumes.
            SourceChanged: the file changed, or the server holds a part of another of its name, type and size.
            DigestMismatch: a block arrived damaged too often.
            NotBlockproto: the server does not speak the dialect.
            BlockprotoError: the dialect cannot carry the file, or the server refused it.
        """
        question = header_of(file.filename, file.filesize)
        line = _Line(await dial())
        try:
            reply, stored_as, ours = await self._ask(line, question, file)
            if reply.complete and not ours:
                self._held.clear()
            elif not ours:
                raise _another(file)
            file.reached(self._held_length(question))
            if not (reply.complete and ours):
                await self._send_missing(line, dial, question, file)
                reply, stored_as, ours = await self._ask(line, question, file)
                file.reached(self._held_length(question))
                if not ours:
                    raise _another(file)
        finally:
            await line.close()
        if not reply.complete:
            raise Refused(
                "the server holds every block and does not complete the file: look at its log", code=Code.BUSY
            )
        return Ending(sourceid=None, confirmed=True, stored_as=stored_as)

    async def _ask(self, line: _Line, question: Header, file: Outgoing) -> tuple[Reply, str, bool]:
        """Ask what is held; returns the reply, the name of a complete file, and whether it is of this file."""
        reply, self._held, stored_as = await line.ask(question)
        memory = memoryview(bytearray(BLOCK_LENGTH))
        for blockno in sorted(self._held - self._digests.keys()):
            await self._read_block(file, blockno, memory)
        ours = root_of([self._digests[blockno] for blockno in sorted(self._held)], len(self._held))
        return reply, stored_as, reply.digest == ours

    async def _send_missing(self, first_line: _Line, dial: Dial, question: Header, file: Outgoing) -> None:
        """Send the missing blocks; all are durable when this returns."""
        self._missing = deque(blockno for blockno in range(question.blocknum) if blockno not in self._held)
        left = max(1, min(self._connections, len(self._missing)))
        window = max(1, WINDOW_BLOCKS // left)
        others: list[_Line] = []

        async def drive(line: _Line | None) -> None:
            nonlocal left
            if line is None:
                line = _Line(await dial())
                others.append(line)
                await line.ask(question)
            await self._drive(line, question, file, window)
            left -= 1
            if not left:
                done.set()

        try:
            async with background_tasks() as nursery:
                done = trio.Event()
                for number in range(left):
                    nursery.start_soon(drive, None if number else first_line)
                await done.wait()
        except BaseExceptionGroup as group:
            if group.split(ConnectionLost)[1] is not None:
                raise
            raise ConnectionLost(
                str(first_error(group))
            ) from group  # a server that dies ends several connections at once
        finally:
            for line in others:
                await line.close()

    async def _drive(self, line: _Line, question: Header, file: Outgoing, window: int) -> None:
        """Send missing blocks over one connection until there are none."""
        waiting: deque[int] = deque()
        memory = memoryview(bytearray(BLOCK_LENGTH))
        while self._missing or waiting:
            if self._missing and len(waiting) < window:
                blockno = self._missing.popleft()
                waiting.append(blockno)
                block = await self._read_block(file, blockno, memory)
                await line.send(question.about_block(blockno), block)
                file.sent(len(block), self._held_length(question))
            else:
                self._take_reply(await line.reply(waiting[0]), waiting.popleft())
                file.reached(self._held_length(question))

    def _take_reply(self, reply: Reply, blockno: int) -> None:
        if reply.digest == self._digests[blockno]:
            self._held.add(blockno)
            return
        self._damaged[blockno] += 1
        if self._damaged[blockno] == DAMAGED_MAX:
            raise DigestMismatch(f"block {blockno} arrived damaged {DAMAGED_MAX} times", blockno=blockno)
        self._missing.append(blockno)

    async def _read_block(self, file: Outgoing, blockno: int, memory: memoryview) -> memoryview:
        async with self._reading:
            block = memory[: await file.read_into(blockno * BLOCK_LENGTH, memory)]
        self._digests[blockno] = digest_of(block)
        return block

    def _held_length(self, question: Header) -> int:
        """Bytes of the blocks that are durable."""
        last = question.blocknum - 1
        short = question.blocknum * BLOCK_LENGTH - question.filesize if last in self._held else 0
        return len(self._held) * BLOCK_LENGTH - short

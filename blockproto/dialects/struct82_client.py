"""The sender's side of the dialect ``struct82``: one file over several connections, asked for first and verified at the end.

    ask → which blocks are held, and their root → send what is missing, block 0 first → ask → complete, and its root

Each connection takes the next missing block, and has at most ``WINDOW_BLOCKS`` without a reply. The digest in each reply is
compared with that of the bytes that were read: what was damaged on the way is sent again. Bytes that the server holds of a
file that has changed since show themselves in the root of the first answer; then nothing is sent.

What this dialect cannot carry is refused before anything is sent (``header_of``).

Spec: BP1-S82.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable

import trio

from ..blocks import BLOCK_LENGTH, blocknum_of, digest_of, root_of
from ..errors import (
    ERRORS,
    BlockprotoError,
    Code,
    ConnectionLost,
    DigestMismatch,
    NameRefused,
    NotBlockproto,
    Refused,
    SourceChanged,
    error_from_code,
)
from ..link.endpoint import Endpoint
from ..results import Receipt
from ..sources import FileSource
from ..store import Facts, IfExists
from ..tasks import background_tasks
from ..transfer.sending import OnProgress, Progress
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
WINDOW_BLOCKS = 4
"""Blocks of one connection that may wait for their reply."""
ANSWER_S = 120.0
"""So long a server may say nothing while it owes a reply."""
TRIES_MAX = 5
"""How often in a row a lost connection is dialled again without one more durable block, and a damaged block sent."""
_WAITS_S = (0.25, 0.5, 1.0, 2.0, 4.0)

Dial = Callable[[], Awaitable[Endpoint]]


async def send_file(
    dial: Dial,
    source: FileSource,
    *,
    connections: int = CONNECTIONS_DEFAULT,
    on_progress: OnProgress | None = None,
) -> Receipt:
    """Send a file, or what a server does not hold of it yet.

    Args:
        dial: makes a connection to a server that speaks the dialect.
        source: the file; stays the caller's.
        connections: over how many connections at once, at least 1.
        on_progress: called after each change.

    Raises:
        Refused, NameRefused: this dialect cannot carry that file, or the server refused it.
        SourceChanged: the file changed while it was sent, or the server holds another of its name, type and size.
        ConnectionLost: the server could not be reached, or was lost again and again.
        DigestMismatch: a block arrived damaged again and again.
        NotBlockproto: what answered does not speak the dialect.

    Cancellation: what was acknowledged is kept; the same call goes on there.
    """
    return await _Sending(dial, source, connections, on_progress).run()


def header_of(facts: Facts) -> Header:
    """The question about a file.

    Raises:
        Refused, NameRefused: the dialect cannot carry it.

    Spec: BP1-S82-002.
    """
    name = facts.filename.text
    filename, filetype = name.encode(), facts.filetype.encode()
    why = "in the dialect struct82: send it without --dialect"
    if "/" in name:
        raise NameRefused(f"'{name}' names a folder, and there are none {why}", rule="one-component")
    if len(filename) > FILENAME_LENGTH:
        raise NameRefused(
            f"'{name}' has {len(filename)} bytes, and {FILENAME_LENGTH} fit {why}", rule="name-length"
        )
    if facts.if_exists is not IfExists.KEEP:
        raise Refused(f"a taken name is always kept, and the file gets another, {why}")
    if not facts.filesize or facts.filesize > FILESIZE_MAX:
        size = "an empty file" if facts.filesize == 0 else f"a file of more than {FILESIZE_MAX:,} bytes"
        raise Refused(f"{size} cannot be sent {why}")
    if len(filetype) > FILETYPE_LENGTH:
        filetype = b""
    return Header(filename, filetype, facts.filesize, blocknum_of(facts.filesize), QUESTION)


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
        """The reply to the header of that blockno; raises what it says."""
        reply = PACKED_LITTLE.read_reply(await self._receive(PACKED_LITTLE.reply_length))
        if reply.code:
            row = ERRORS.get(Code(reply.code)) if reply.code in Code._value2member_map_ else None
            text = row.meaning if row is not None else f"the server refused it with the code {reply.code}"
            raise error_from_code(reply.code, text, retryable=row is not None and row.retryable)
        if reply.blockno != blockno:
            raise NotBlockproto(f"a reply to block {reply.blockno} came where one to block {blockno} was due")
        return reply

    async def close(self) -> None:
        """Close at once; every reply was read, or does not matter any more."""
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
            if received is None:
                raise ConnectionLost(
                    f"{self._endpoint.peer} owes a reply and said nothing for {ANSWER_S:.0f} s"
                )
            if not received:
                hint = "" if self._answered else ": is it served with --dialect struct82?"
                raise ConnectionLost(f"{self._endpoint.peer} closed the connection before it replied{hint}")
            self._answered = True
            filled += received
        return raw


class _Sending:
    """One file on its way."""

    def __init__(
        self, dial: Dial, source: FileSource, connections: int, on_progress: OnProgress | None
    ) -> None:
        self._dial = dial
        self._source = source
        self._connections = connections
        self._on_progress = on_progress
        self._question = header_of(source.facts)
        self._digests: dict[int, bytes] = {}
        self._held: set[int] = set()
        self._missing: deque[int] = deque()
        self._tries: Counter[int] = Counter()
        self._progress = Progress(source.facts.filename.text, self._question.filesize)
        self._blocks_sent = 0
        self._used = 1

    async def run(self) -> Receipt:
        """See ``send_file``."""
        begun = time.perf_counter()
        skipped: int | None = None
        failures = 0
        while True:
            before = len(self._held)
            try:
                line = _Line(await self._dial())
                try:
                    reply, name = await self._ask(line)
                    skipped = len(self._held) if skipped is None else skipped
                    if not reply.complete:
                        await self._send_missing(line)
                        reply, name = await self._ask(line)
                finally:
                    await line.close()
                break
            except ConnectionLost:
                failures = 0 if len(self._held) > before else failures + 1
                if skipped is None or failures == TRIES_MAX:
                    raise
                await trio.sleep(_WAITS_S[min(failures, len(_WAITS_S) - 1)])
        return self._receipt(reply, name, skipped, time.perf_counter() - begun)

    async def _ask(self, line: _Line) -> tuple[Reply, str]:
        """Ask what is held, and see that it is of this file."""
        reply, self._held, name = await line.ask(self._question)
        self._say_progress()
        if reply.digest != await self._root_of_held():
            raise SourceChanged(
                f"the server holds other bytes of a '{self._progress.filename}' of the same size: give it another name "
                "with --as, or have the other one removed there"
            )
        return reply, name

    async def _root_of_held(self) -> bytes:
        memory = memoryview(bytearray(BLOCK_LENGTH))
        for blockno in sorted(self._held - self._digests.keys()):
            block = await self._source.read_block(blockno, memory)
            self._digests[blockno] = await trio.to_thread.run_sync(digest_of, block)
        return root_of([self._digests[blockno] for blockno in sorted(self._held)], len(self._held))

    async def _send_missing(self, first_line: _Line) -> None:
        """Send what is not held; every block of it is durable when this returns."""
        self._missing = deque(
            blockno for blockno in range(self._question.blocknum) if blockno not in self._held
        )
        lines = [first_line]
        try:
            async with background_tasks() as nursery:
                done = trio.Event()
                left = self._used = max(1, min(self._connections, len(self._missing)))

                async def drive(line: _Line | None) -> None:
                    nonlocal left
                    if line is None:
                        line = _Line(await self._dial())
                        lines.append(line)
                        await line.ask(self._question)
                    await self._drive(line)
                    left -= 1
                    if not left:
                        done.set()

                for number in range(left):
                    nursery.start_soon(drive, first_line if number == 0 else None)
                await done.wait()
        finally:
            for line in lines[1:]:
                await line.close()

    async def _drive(self, line: _Line) -> None:
        """Send missing blocks over one connection until there are none."""
        waiting: deque[int] = deque()
        memory = memoryview(bytearray(BLOCK_LENGTH))
        while self._missing or waiting:
            if self._missing and len(waiting) < WINDOW_BLOCKS:
                waiting.append(await self._send_block(line, self._missing.popleft(), memory))
            else:
                await self._take_reply(line, waiting.popleft())

    async def _send_block(self, line: _Line, blockno: int, memory: memoryview) -> int:
        block = await self._source.read_block(blockno, memory)
        self._digests[blockno] = digest_of(block)
        question = self._question
        await line.send(
            Header(question.filename, question.filetype, question.filesize, question.blocknum, blockno), block
        )
        self._blocks_sent += 1
        self._progress.payload_bytes_sent += len(block)
        self._say_progress()
        return blockno

    async def _take_reply(self, line: _Line, blockno: int) -> None:
        reply = await line.reply(blockno)
        if reply.digest == self._digests[blockno]:
            self._held.add(blockno)
            self._say_progress()
            return
        self._tries[blockno] += 1
        if self._tries[blockno] == TRIES_MAX:
            raise DigestMismatch(f"block {blockno} arrived damaged {TRIES_MAX} times", blockno=blockno)
        self._missing.append(blockno)

    def _say_progress(self) -> None:
        if self._on_progress is not None:
            whole = self._question.blocknum - 1
            done = len(self._held) * BLOCK_LENGTH
            if whole in self._held:
                done += self._question.filesize - self._question.blocknum * BLOCK_LENGTH
            self._progress.position_bytes_done = done
            self._on_progress(self._progress)

    def _receipt(self, reply: Reply, name: str, skipped: int, elapsed_s: float) -> Receipt:
        if not reply.complete:
            raise BlockprotoError(
                "the server holds every block and did not complete the file: look at its log", code=Code.BUSY
            )
        blocknum = self._question.blocknum
        return Receipt(
            filename=self._progress.filename,
            filetype=self._question.filetype.decode(),
            filesize=self._question.filesize,
            blocknum=blocknum,
            sourceid="",
            root=reply.digest.hex(),
            b3sum=reply.digest.hex() if blocknum == 1 else None,
            stored_as=name,
            resumed=skipped > 0,
            blocks_sent=self._blocks_sent,
            blocks_skipped=skipped,
            payload_bytes_sent=self._progress.payload_bytes_sent,
            connections=self._used,
            elapsed_s=elapsed_s,
        )

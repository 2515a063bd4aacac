"""The server's side of the dialect ``struct82``: a header, then up to 1 MiB, and again, over any number of connections.

A block is gathered in memory (1 MiB for each connection that is within one) and stored when it is whole: this dialect cannot
resume within a block. The length of a block follows from its blockno; where that depends on the numbering, which may not be
known yet, the bytes that follow decide (``_find_numbering``).

Replies are sent in the order of the headers, and only on connections that have asked which blocks are held: those do read. A
sender that closes with an unread reply in its socket would reset the connection and lose the last bytes it has sent.

Spec: BP1-S82.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from functools import partial

import trio

from ..common.blocks import BLOCK_LENGTH
from ..common.names import show_name
from ..errors import (
    BadFacts,
    BlockprotoError,
    ConnectionLost,
    Forbidden,
    MalformedFrame,
    StoreFailed,
    Unauthenticated,
)
from .dialect import FIRST_LENGTH_MAX, TEXT_LENGTH, DialectPeer, Recognition, begins_with_key
from .dialect_connection import SILENCE_S
from .struct82_files import Struct82File
from .struct82_line import FOLLOWS_S, Received, Replies
from .struct82_wire import (
    FORMS,
    HEADER_LENGTH_MIN,
    QUESTION,
    Form,
    Header,
    Reply,
    may_begin,
    recognise,
    write_bitmap,
    write_stored_as,
)
from .upload_keys import derived_sourceid

AGAIN_FILES_MAX = 1_024
"""Complete files for which to remember which blocks have come again."""

Identity = tuple[str, bytes, bytes, int]
"""What identifies a file: host, filename, filetype, filesize (BP1-S82-012)."""


class Struct82:
    """The dialect ``struct82``; one object for each server.

    Args:
        first: the number of the first block of every file, 0 or 1; None: detect it.
    """

    name = "struct82"

    def __init__(self, first: int | None = None) -> None:
        self._first = first
        self._files: dict[Identity, Struct82File] = {}
        self._again = Again()

    def recognise(self, first: bytes) -> Recognition:
        """See Dialect."""
        head = first[:FIRST_LENGTH_MAX]
        text = head[:TEXT_LENGTH]
        if not may_begin(head) or (len(text) == TEXT_LENGTH and b"\0" not in text and begins_with_key(first)):
            return Recognition.NO
        return Recognition.MORE if recognise(head) is None else Recognition.YES

    async def serve(self, dialect_connection: DialectPeer) -> None:
        """See Dialect."""
        await _Connection(dialect_connection, self).run()

    def enter(self, dialect_connection: DialectPeer, header: Header) -> Struct82File:
        """Give one more connection the file of ``header``; call ``leave`` for it."""
        identity = dialect_connection.endpoint.host, header.filename, header.filetype, header.filesize
        file = self._files.get(identity)
        if file is None or file.stopped is not None:
            again = self._again.of(identity, trio.current_time())
            sourceid_of = partial(_derived, dialect_connection.endpoint.host, header)
            file = self._files[identity] = Struct82File(
                dialect_connection.writer, sourceid_of, header, self._first, again
            )
        file.users += 1
        return file

    def leave(self, file: Struct82File) -> None:
        """Count one connection less; after the last one only the ledger knows the file."""
        file.users -= 1
        if not file.users:
            file.leave()
            for identity in [identity for identity, known in self._files.items() if known is file]:
                del self._files[identity]


def _derived(host: str, header: Header, first: int, version: int) -> bytes:
    """The sourceid of a version of a file, if its blocks are numbered from ``first`` (BP1-S82-012, BP1-S82-032)."""
    fields = [header.filename, header.filetype, str(header.filesize).encode(), str(first).encode()]
    if version:
        fields.append(str(version).encode())
    return derived_sourceid(Struct82.name, host, *fields)


class Again:
    """Remembers for a while which blocks of complete files have come again with the same bytes.

    A sender may use a connection for each block, between which the file is not open.
    """

    def __init__(self) -> None:
        self._blocks: OrderedDict[Identity, tuple[float, set[int]]] = OrderedDict()

    def of(self, identity: Identity, now_s: float) -> set[int]:
        """The blocks of one file, as a set that the caller updates."""
        then_s, blocks = self._blocks.pop(identity, (now_s, set()))
        if now_s - then_s > SILENCE_S:
            blocks = set()
        self._blocks[identity] = now_s, blocks
        if len(self._blocks) > AGAIN_FILES_MAX:
            self._blocks.popitem(last=False)
        return blocks


class _Connection:
    """One connection."""

    def __init__(self, dialect_connection: DialectPeer, dialect: Struct82) -> None:
        self._connection = dialect_connection
        self._dialect = dialect
        self._received = Received(dialect_connection)
        self._replies = Replies(dialect_connection)
        self._forms: tuple[Form, ...] = FORMS
        self._about: Header | None = None
        self._file: Struct82File | None = None
        self._refusal: BlockprotoError | None = None
        self._block = memoryview(b"")
        self._told = ""

    async def run(self) -> None:
        """Serve it to its end.

        Raises:
            ConnectionLost: it broke.
            MalformedFrame, BadFacts: the rest cannot be understood.
            Unauthenticated, Forbidden: it may not upload.
            StoreFailed: the medium reported an error.
        """
        failure: BlockprotoError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._replies.run)
            try:
                await self._read()
            except (ConnectionLost, StoreFailed) as exc:
                failure = exc
                nursery.cancel_scope.cancel()
            except MalformedFrame as exc:
                failure = exc
                self._refuse(self._replies.expect(), QUESTION, exc)
            except (BadFacts, Unauthenticated, Forbidden) as exc:
                failure = exc
            finally:
                if self._file is not None:
                    self._dialect.leave(self._file)
            self._replies.end()
        if self._replies.asked and not isinstance(failure, ConnectionLost):
            await self._connection.endpoint.end_sending()
            await self._connection.drain()
        if failure is not None:
            raise failure

    # ---- headers and blocks -----------------------------------------------------------------------------------

    async def _read(self) -> None:
        while (header := await self._next_header()) is not None:
            if self._connection.refusal is not None:
                if header.blockno == QUESTION:
                    self._replies.ask()
                    told = self._refusal_of(QUESTION, self._connection.refusal)
                    self._replies.know(self._replies.expect(), told)
                raise self._connection.refusal
            await self._turn_to(header)
            assert self._file is not None
            if header.blockno == QUESTION:
                self._replies.ask()
                self._replies.know(self._replies.expect(), await self._answer(self._file, header))
            elif not await self._take_block(self._file, header):
                name = show_name(header.filename.decode(errors="replace"))
                text = f"ended in the middle of block {header.blockno} of {name}"
                self._connection.tell(
                    logging.INFO, "upload broke off", text, name=name, blockno=header.blockno
                )
                return

    async def _next_header(self) -> Header | None:
        """The next header, or None at the end of the byte stream."""
        if len(self._forms) > 1:
            forms = await self._received.narrow(self._forms)
            if not forms and len(await self._received.look(HEADER_LENGTH_MIN)) == HEADER_LENGTH_MIN:
                raise MalformedFrame("no header stands where one was expected (in none of the forms)")
            self._forms = forms or self._forms
        raw = bytearray(self._form.header_length)
        if await self._received.fill(memoryview(raw)) < len(raw):
            return None
        header = self._form.read(raw)
        if header is None:
            raise MalformedFrame(f"no header stands where one was expected ({self._form.name})")
        return header

    @property
    def _form(self) -> Form:
        """The form of the connection; while several are possible they agree on all that has come."""
        return self._forms[0]

    async def _turn_to(self, header: Header) -> None:
        """Turn to the file of ``header``, if it is not the one before."""
        file, about = self._file, self._about
        same = about is not None and about.is_about_the_file_of(header)
        if file is None or not same or file.stopped is not None:
            self._file = self._dialect.enter(self._connection, header)
            self._about = header
            if file is not None:
                self._dialect.leave(file)
            file = self._file
        try:
            await file.open()
            self._refusal = None
        except StoreFailed:
            raise
        except BlockprotoError as exc:
            self._refusal = exc

    async def _take_block(self, file: Struct82File, header: Header) -> bool:
        """Read a block and store it; False if the byte stream ended within it."""
        turn = self._replies.expect()

        def answered(outcome: Reply | BlockprotoError) -> None:
            if isinstance(outcome, Reply):
                self._replies.know(turn, self._form.write_reply(outcome))
            else:
                self._refuse(turn, header.blockno, outcome)

        try:
            length = await self._gather(file, header)
        except BadFacts as exc:
            self._refuse(turn, header.blockno, exc)
            raise
        if length is None:
            self._replies.know(turn, b"")
            return False
        try:
            if self._refusal is not None:
                raise self._refusal
            await file.take(header, self._block[:length], answered)
        except StoreFailed:
            raise
        except BlockprotoError as exc:
            self._refuse(turn, header.blockno, exc)
        return True

    async def _gather(self, file: Struct82File, header: Header) -> int | None:
        """Read the bytes that follow ``header``; returns how many, or None if the byte stream ended before.

        Raises:
            BadFacts: the blockno does not fit the numbering, so the length of the block is unknown.
        """
        if not self._block:
            self._block = memoryview(bytearray(BLOCK_LENGTH))
        if header.blockno == 0 and file.first != 0:
            await file.settle(0)
        elif header.blockno == header.blocknum and file.first is None:
            await file.settle(1)
        if file.first is None:
            short = header.length(0)
            if short == header.length(1):
                return short if await self._received.fill(self._block[:short]) == short else None
            if await self._received.fill(self._block[:short]) < short:
                return None
            await self._find_numbering(file, header)
            filled = short
        else:
            filled = 0
        assert file.first is not None
        length = header.length(file.first)
        return length if await self._received.fill(self._block[filled:length]) == length - filled else None

    async def _find_numbering(self, file: Struct82File, header: Header) -> None:
        """Find out whether a block is short, or longer than what has come of it, which depends on the numbering.

        Another connection may settle it; or a header follows: then the block was short; or other bytes: then it is longer.

        Raises:
            BadFacts: the numbering cannot be found out.
        """
        ahead = b""
        form = self._form
        lost: list[ConnectionLost] = []

        async def look_ahead() -> None:
            nonlocal ahead
            try:
                ahead = await self._received.look(form.header_length)
            except ConnectionLost as exc:
                lost.append(exc)
            if len(ahead) == form.header_length:
                nursery.cancel_scope.cancel()

        with trio.move_on_after(FOLLOWS_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look_ahead)
                await file.settled.wait()
                nursery.cancel_scope.cancel()
        if file.first is None and len(ahead) == form.header_length:
            follows = form.read(ahead)
            await file.settle(0 if follows is not None and follows.named else 1)
        if file.first is None:
            raise BadFacts(
                f"block {header.blockno} of '{show_name(header.filename.decode(errors='replace'))}' came before any block "
                "that tells whether numbers begin with 0 or 1: send the first block first"
            )

    # ---- answers ----------------------------------------------------------------------------------------------

    async def _answer(self, file: Struct82File, header: Header) -> bytes:
        """The answer to a question."""
        try:
            if self._refusal is not None:
                raise self._refusal
            holding = await file.holding(header)
        except StoreFailed:
            raise
        except BlockprotoError as exc:
            return self._refusal_of(QUESTION, exc)
        reply = Reply(0, QUESTION, holding.held, holding.stored is not None, holding.digest)
        raw = self._form.write_reply(reply) + write_bitmap(header.blocknum, holding.blocknos)
        return (
            raw
            if holding.stored is None
            else raw + write_stored_as(self._connection.writer.shown(holding.stored.stored_as))
        )

    def _refuse(self, turn: int, blockno: int, error: BlockprotoError) -> None:
        self._replies.know(turn, self._refusal_of(blockno, error))

    def _refusal_of(self, blockno: int, error: BlockprotoError) -> bytes:
        if str(error) != self._told:
            self._told = str(error)  # a refused file has up to 2,048 blocks
            told, code = show_name(self._told), error.code.name
            text = f"block {blockno} is refused: {told}"
            self._connection.tell(logging.INFO, "refused", text, blockno=blockno, code=code, text=told)
        return self._form.write_reply(Reply(int(error.code), blockno, 0, False))

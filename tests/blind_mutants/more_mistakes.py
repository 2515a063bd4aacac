"""Twenty more mistakes of servers, such as somebody would make who writes one in Go, Swift or Kotlin.

They were chosen and written down as those of ``mistakes.py`` were: from the text, before the conformance kit had been run
against any of them, by somebody who had not seen its cases, and left as they were when it had been. They have a registry
of their own, so that the count of those that were there before stays what it was.

Each leaves a friendly upload and a friendly download as they are. What tempts to it is said in the docstring, mostly
something that the language makes easy: strings that are compared by their canonical form, a map where an order counts, an
enum that knows every code, a walk through folders in the order of the library.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from blockproto.common import head_layout
from blockproto.common.head_layout import Layout, String, Tlv
from blockproto.common.names import SafeName
from blockproto.connection.connection import Connection
from blockproto.errors import (
    BadFacts,
    Cancelled,
    Code,
    LocalProtocolError,
    MalformedFrame,
    TooManyStreams,
    Unsupported,
)
from blockproto.identity.realm import Realm
from blockproto.protocol.events import Rejected
from blockproto.protocol.session import Session
from blockproto.protocol.streams import Stream
from blockproto.serving.handlers import fetch
from blockproto.serving.handlers.stored_source import StoredSource
from blockproto.store import Facts, FileEntry, FileStore
from blockproto.store.local.store import LocalStore
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer import block_receiver
from blockproto.transfer.block_prefix import PrefixHolder
from blockproto.transfer.live_upload import Feed, LiveUpload
from blockproto.transfer.receiver import UploadReceiver
from blockproto.transfer.slow_disk import Disk
from blockproto.wire import (
    HEAD_LENGTH_EARLY,
    MESSAGES,
    Block,
    Cancel,
    Error,
    Fetch,
    Have,
    Header,
    Hello,
    Message,
    Open,
    Piece,
    Priority,
    Type,
    decode_head,
)

from .mistakes import Mutant, Put, mutant

MORE_SERVERS: dict[str, Mutant] = {}
"""Every mistake of this file, by name."""

_ALL = 1 << 20
"""More entries than any folder of a test has."""


def server(clause: str) -> Callable[[Callable[[Put], None]], Callable[[Put], None]]:
    """A mistake of a server."""
    return mutant(MORE_SERVERS, clause)


# ---- the frame and the greeting ---------------------------------------------------------------------------------


@server("BP1-FRM-013")
def strings_must_be_utf8(put: Put) -> None:
    """A string is decoded by the strict decoder of the library, whose exception is a malformed frame."""
    decode = String.decode

    def strict(self: String, head: bytes, offset: int, values: dict[str, Any]) -> tuple[str, int]:
        text, end = decode(self, head, offset, values)
        if any("\udc80" <= character <= "\udcff" for character in text):
            raise MalformedFrame("a string that is not UTF-8")
        return text, end

    put(String, "decode", strict)


@server("BP1-FRM-017")
def digests_go_into_a_map(put: Put) -> None:
    """The pairs of HAVE are read into a map: their order does not matter, and of two of one block the last one counts."""

    def unordered(pairs: object, error: type[Exception]) -> None:
        return

    put(head_layout.DIGESTS, "_judge", unordered)


@server("BP1-HEL-005")
def second_hello_renews_the_limits(put: Put) -> None:
    """HELLO is a message like others: one that comes later changes the limits."""
    act = Session._act_on_connection

    def willing(self: Session, header: Header, head: memoryview) -> Any:
        if header.type != Type.HELLO:
            return act(self, header, head)
        hello = decode_head(header, head)
        assert isinstance(hello, Hello)
        self.peer_hello = hello
        self._use_limits()
        return None

    put(Session, "_act_on_connection", willing)


@server("BP1-HEL-010")
def heads_stay_short(put: Put) -> None:
    """Heads are read into an array of 4,096 bytes, whatever HELLO says: none of those seen was longer."""
    use_limits = Session._use_limits

    def cramped(self: Session) -> None:
        use_limits(self)
        self._reader.head_length_max = HEAD_LENGTH_EARLY

    put(Session, "_use_limits", cramped)


# ---- streams and credit -----------------------------------------------------------------------------------------


@server("BP1-STR-008")
def heads_on_closed_streams_decoded(put: Put) -> None:
    """The codec decodes every frame; whether its stream is still open is asked afterwards, by the layer above."""
    act = Session._act

    def eager(self: Session, header: Header, head: memoryview) -> Any:
        if self.peer_hello is not None and header.stream and header.type in MESSAGES:
            with contextlib.suppress(Unsupported, BadFacts):  # of a smaller scope: the layer above says it
                decode_head(header, head)
        return act(self, header, head)

    put(Session, "_act", eager)


@server("BP1-STR-009")
def too_many_streams_are_busy(put: Put) -> None:
    """A stream above streams_max is refused with BUSY, for itself: why should the others suffer?"""
    act = Session._act

    def mild(self: Session, header: Header, head: memoryview) -> Any:
        try:
            return act(self, header, head)
        except TooManyStreams as error:
            self._peer_said = header.stream
            self._count_dropped(header)
            self._unanswered[header.stream] = None
            return Rejected(header.stream, Cancelled(str(error), code=Code.BUSY))

    put(Session, "_act", mild)


@server("BP1-CRD-001")
def dropped_payload_costs_credit(put: Put) -> None:
    """Payload that is dropped at once, that of closed streams, counts as received and is never granted anew."""

    def stingy(self: Session, header: Header) -> None:
        if header.type in (Type.BLOCK, Type.PIECE):
            self._connection.received += header.payload_length

    put(Session, "_count_dropped", stingy)


# ---- blocks -----------------------------------------------------------------------------------------------------


@server("BP1-BLK-006")
def late_pieces_ignored(put: Put) -> None:
    """A PIECE without an unfinished block is dropped in silence: it belongs to one that was refused, surely."""
    follow, proceed = Stream.follow, UploadReceiver._continue_block

    def lax(self: Stream, message: Message, payload_length: int) -> int:
        if isinstance(message, Piece) and self.end < 0:
            return message.position
        return follow(self, message, payload_length)

    async def deaf(self: UploadReceiver, message: Piece, payload_length: int) -> None:
        if self._blocks is not None and self._blocks.block is not None:
            await proceed(self, message, payload_length)

    put(Stream, "follow", lax)
    put(UploadReceiver, "_continue_block", deaf)


@server("BP1-BLK-015")
def facts_of_the_last_block(put: Put) -> None:
    """MTIME and MODE of a BLOCK replace those of OPEN, as those of COMMIT do."""
    begin = UploadReceiver._begin_block

    async def latest(self: UploadReceiver, message: Block, payload_length: int) -> None:
        if self.upload is not None:
            facts = self.upload.facts
            self.upload.facts = replace(
                facts,
                mtime_ns=facts.mtime_ns if message.mtime_ns is None else message.mtime_ns,
                mode=facts.mode if message.mode is None else message.mode,
            )
        await begin(self, message, payload_length)

    put(UploadReceiver, "_begin_block", latest)


# ---- resume -----------------------------------------------------------------------------------------------------


@server("BP1-RES-007")
def first_open_decides(put: Put) -> None:
    """MTIME, MODE and if_exists are those the upload was begun with, as its name and its size are."""
    enter = LiveUpload.enter

    def faithful(self: LiveUpload, feed: Feed, facts: Facts, attempt: int | None) -> None:
        begun_with = self.facts
        enter(self, feed, facts, attempt)
        self.facts = begun_with

    put(LiveUpload, "enter", faithful)


@server("BP1-RES-013")
def unknown_prefix_ends_the_stream(put: Put) -> None:
    """A BLOCK behind a prefix that is not there is refused with BAD_FACTS, as a position outside of the block is."""
    proceed = block_receiver.continue_prefix

    async def severe(target: PrefixHolder, blockno: int, begin: int, length: int, hasher: Any) -> bool:
        if not await proceed(target, blockno, begin, length, hasher):
            raise BadFacts(f"block {blockno}: nothing is there before {begin + length}")
        return True

    put(block_receiver, "continue_prefix", severe)


# ---- repair and cancel ------------------------------------------------------------------------------------------


@server("BP1-DIG-007")
def opened_for_every_page(put: Put) -> None:
    """Every HAVE is answered by OPENED: a question, an answer."""
    repair = UploadReceiver._repair

    async def polite(self: UploadReceiver, message: Have) -> None:
        await repair(self, replace(message, more=False))

    put(UploadReceiver, "_repair", polite)


@server("BP1-COM-017")
def discard_tells_only_who_asked(put: Put) -> None:
    """CANCEL with DISCARD is answered where it came; the upload's other streams find out when they go on."""
    cancel = UploadReceiver._cancel

    def private(self: UploadReceiver, message: Cancel) -> None:
        if message.discard and self.upload is not None:
            self.upload.feeds = [self]
        cancel(self, message)

    put(UploadReceiver, "_cancel", private)


# ---- fetch and list ---------------------------------------------------------------------------------------------


@server("BP1-FET-003")
def priority_of_fetch_not_repeated(put: Put) -> None:
    """OPEN in answer to FETCH has the priority 1: the fetcher knows which one it asked for."""
    open_message = fetch.open_message

    def usual(entry: FileEntry, filename: str, message: Fetch) -> Open:
        return replace(open_message(entry, filename, message), priority=Priority.NORMAL)

    put(fetch, "open_message", usual)


@server("BP1-FET-005")
def range_may_begin_at_the_end(put: Put) -> None:
    """A range is refused when it begins behind filesize (>); one that begins there (>=) is an empty one."""
    build = StoredSource.__init__

    def inclusive(self: StoredSource, reader: Any, disk: Disk, message: Fetch, realm: Realm) -> None:
        filesize = reader.entry.filesize
        if not filesize or message.first != filesize:
            build(self, reader, disk, message, realm)
            return
        build(self, reader, disk, replace(message, first=filesize - 1, length=0), realm)
        self.first = self.end = filesize

    put(StoredSource, "__init__", inclusive)


@server("BP1-LST-004")
def listed_as_walked(put: Put) -> None:
    """With RECURSIVE a folder is followed by what is in it, as the library walks: ``a``, ``a/x``, ``a-b``."""

    def by_walk(files: Callable[..., tuple[list[FileEntry], str]]) -> Callable[..., Any]:
        def page(
            self: FileStore, folder: str, recursive: bool, cursor: str, limit: int
        ) -> tuple[list[FileEntry], str]:
            entries, _ = files(self, folder, recursive, "", _ALL)
            entries.sort(key=lambda entry: _components(entry.filename.text))
            if cursor:
                entries = [e for e in entries if _components(e.filename.text) > _components(cursor)]
            return entries[:limit], entries[limit - 1].filename.text if len(entries) > limit else ""

        return page

    for store in (LocalStore, MemoryStore):
        put(store, "files", by_walk(store.files))


def _components(name: str) -> list[bytes]:
    """What a walk through folders compares, one after another."""
    return name.encode("utf-8", "surrogateescape").split(b"/")


# ---- errors, the end, names and extension -----------------------------------------------------------------------


@server("BP1-ERR-004")
def unknown_code_is_malformed(put: Put) -> None:
    """The codes are an enum, and a number that is none of its cases is a malformed frame."""
    judge = Error.__post_init__

    def closed(self: Error) -> None:
        if self.code not in Code._value2member_map_:
            raise LocalProtocolError(f"ERROR: code is {self.code}")
        judge(self)

    put(Error, "__post_init__", closed)


@server("BP1-END-011")
def waits_for_the_peer_to_close(put: Put) -> None:
    """After the client's ERROR (connection) the server leaves it to the client to close, and goes on until it does."""
    handle = Connection._handle_own

    def patient(self: Connection, message: Message) -> None:
        if not isinstance(message, Error):
            handle(self, message)

    put(Connection, "_handle_own", patient)


@server("BP1-NAM-001")
def names_are_normalised(put: Put) -> None:
    """Names are brought into the normal form C, since the language's strings are equal when their normal forms are."""
    parse = SafeName.parse

    def canonical(text: str, *, portable: bool = False) -> SafeName:
        return parse(unicodedata.normalize("NFC", text), portable=portable)

    put(SafeName, "parse", staticmethod(canonical))


@server("BP1-EXT-005")
def one_table_of_tlvs(put: Put) -> None:
    """TLVs are decoded by one table, for all messages: one of another message must at least have its own length."""
    decode = Layout._decode_tlvs
    table: dict[int, Tlv] = {}
    for message in MESSAGES.values():
        table |= {number: tlv for number, (_, tlv) in message.LAYOUT._tlv_of.items()}

    def everywhere(self: Layout, head: bytes, offset: int, values: dict[str, Any]) -> None:
        decode(self, head, offset, values)
        while offset < len(head):
            number, length = head_layout._TLV.unpack_from(head, offset)
            raw = head[offset + 4 : offset + 4 + length]
            if number in table and number not in self._tlv_of:
                table[number].decode(raw)
            offset += 4 + length

    put(Layout, "_decode_tlvs", everywhere)

"""The servers' mistakes: twenty misreadings of spec/protocol.md, each a small patch of the live implementation.

Each is what somebody could write who has read the text once and tested against one friendly client: it works, until a
peer does what the clause is about. They were chosen from the text, by somebody who had not seen which cases the
conformance kit has, so that what the kit finds among them says something about what it finds among mistakes to come.

A patch is given ``put(owner, name, replacement)``: ``setattr`` in a process of its own, ``monkeypatch.setattr`` in a test.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from blockproto.common import head_layout, names
from blockproto.common.blocks import BLOCK_LENGTH, blocknum_of
from blockproto.common.names import COMPONENT_LENGTH_MAX
from blockproto.connection.connection import Connection
from blockproto.errors import BadFacts, NameRefused, NotPermitted, Superseded, UnsupportedVersion
from blockproto.protocol import framing
from blockproto.protocol.session import Session, Side
from blockproto.protocol.streams import Flow, Stream
from blockproto.serving.handlers.fetch import ServedFetch
from blockproto.store import Facts, FileEntry, FileStore, Outcome, StoredFile, StoredReader
from blockproto.store.local.store import LocalStore
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer import receiver
from blockproto.transfer.block_receiver import BlockInProgress
from blockproto.transfer.brief_receiver import BriefReceiver
from blockproto.transfer.file_service import FileWriter
from blockproto.transfer.live_upload import Feed, LiveUpload
from blockproto.transfer.receiver import UploadReceiver
from blockproto.transfer.send_stream import SendStream
from blockproto.transfer.sender import Sender
from blockproto.wire import (
    VERSION,
    Block,
    Cancel,
    Commit,
    Credit,
    Have,
    Header,
    Message,
    Scopes,
    Type,
    check_frame,
    decode_header,
)

Put = Callable[[Any, str, Any], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what to call it on the command line.
        clause: the id it violates.
        mistake: what its author took the clause for.
        apply: makes it.
    """

    name: str
    clause: str
    mistake: str
    apply: Callable[[Put], None]


SERVERS: dict[str, Mutant] = {}
"""Every server's mistake, by name."""


def mutant(
    registry: dict[str, Mutant], clause: str
) -> Callable[[Callable[[Put], None]], Callable[[Put], None]]:
    """Register the decorated patch; its docstring is the mistake."""

    def register(apply: Callable[[Put], None]) -> Callable[[Put], None]:
        name = apply.__name__.replace("_", "-")
        registry[name] = Mutant(name, clause, " ".join((apply.__doc__ or "").split()), apply)
        return apply

    return register


def server(clause: str) -> Callable[[Callable[[Put], None]], Callable[[Put], None]]:
    """A mistake of a server."""
    return mutant(SERVERS, clause)


# ---- the frame and the greeting ---------------------------------------------------------------------------------


@server("BP1-FRM-010")
def payload_frames_unchecked(put: Put) -> None:
    """The check of a frame with payload is not compared: the digest covers those bytes, so why twice?"""

    def lenient(header: memoryview, head: memoryview, said: int) -> bool:
        return decode_header(header).payload_length > 0 or check_frame(header, head, said)

    put(framing, "check_frame", lenient)


@server("BP1-EXT-003")
def must_understand_tlv_skipped(put: Put) -> None:
    """An unknown TLV is skipped, whatever its type: the top bit is read for message types only."""
    put(head_layout, "CRITICAL_TLV", 0)


@server("BP1-HEL-002")
def greets_after_hello(put: Put) -> None:
    """The server answers the client's HELLO with its own, instead of greeting as soon as the preface came."""
    greet = Connection._greet

    def late(self: Connection) -> None:
        if self.session.side is Side.CLIENT or self.session.peer_hello is not None or self._last_said:
            greet(self)

    put(Connection, "_greet", late)


@server("BP1-HEL-006")
def version_must_be_equal(put: Put) -> None:
    """A client whose version_highest is not the server's is refused, although 1 is among its versions."""
    greet = Session._greet

    def strict(self: Session, header: Header, head: memoryview) -> Any:
        if header.type == Type.HELLO and header.stream == 0:
            highest = int.from_bytes(head[2:4], "big")
            if highest != VERSION:
                raise UnsupportedVersion(f"the peer speaks version {highest}, we speak {VERSION}")
        return greet(self, header, head)

    put(Session, "_greet", strict)


# ---- streams and credit -----------------------------------------------------------------------------------------


@server("BP1-STR-008")
def passed_over_id_opens(put: Put) -> None:
    """The ids that were used are kept in a set, and any other opens a stream: also a lower one that was passed over."""
    find, begin = Session._stream_of, Connection.accept

    def forgetful(self: Session, number: int) -> Stream | None:
        used: set[int] = vars(self).setdefault("used_ids", set())
        highest = self._peer_said
        if number & 1 != self._parity and number < highest and number not in used:
            self._peer_said = number - 1
            vars(self)["lower_id"] = number
        used.add(number)
        try:
            return find(self, number)
        finally:
            self._peer_said = max(self._peer_said, highest)

    def willing(self: Connection, stream: int, message: Message) -> Any:
        if vars(self.session).pop("lower_id", None) == stream:
            self._begun_by_peer = stream - 1
        return begin(self, stream, message)

    put(Session, "_stream_of", forgetful)
    put(Connection, "accept", willing)


@server("BP1-CRD-006")
def credit_at_the_end_of_the_block(put: Put) -> None:
    """Credit is returned for a block when it has ended, since only then is it sure that the bytes are of use."""
    consumed = Session.consumed

    def thrifty(self: Session, stream: int, count: int) -> None:
        kept: dict[int, int] = vars(self).setdefault("kept_credit", {})
        flow = self._streams.get(stream)
        if isinstance(flow, Stream) and flow.end >= 0:
            kept[stream] = kept.get(stream, 0) + count
        else:
            consumed(self, stream, count + kept.pop(stream, 0))

    put(Session, "consumed", thrifty)


@server("BP1-CRD-004")
def the_last_credit_counts(put: Put) -> None:
    """The allowance is what the last CREDIT said, also when an earlier one said more."""
    credited = Flow.credited

    def obedient(self: Flow, credit: Credit) -> None:
        credited(self, credit)
        self.allowance = credit.allowance

    put(Flow, "credited", obedient)


# ---- blocks -----------------------------------------------------------------------------------------------------


@server("BP1-BLK-012")
def repeated_block_not_compared(put: Put) -> None:
    """A block that is held already is acknowledged again without a look at the digest it came with."""
    end = UploadReceiver._end_block

    def trusting(self: UploadReceiver, block: BlockInProgress) -> None:
        if block.known is not None:
            block.digest = block.known
        end(self, block)

    put(UploadReceiver, "_end_block", trusting)


@server("BP1-BLK-020")
def facts_of_block_unread(put: Put) -> None:
    """On a stream with OPEN the facts of BLOCK are taken for a repetition and not compared (its sourceid is)."""
    begin = UploadReceiver._begin_block

    async def hasty(self: UploadReceiver, message: Block, payload_length: int) -> None:
        if self.upload is not None:
            facts = self.upload.facts
            message = replace(message, filesize=facts.filesize, blocknum=_blocknum(facts.filesize))
        self._said = receiver.said_of(message)
        await begin(self, message, payload_length)

    put(UploadReceiver, "_begin_block", hasty)


def _blocknum(filesize: int | None) -> int | None:
    return None if filesize is None else blocknum_of(filesize)


# ---- resume -----------------------------------------------------------------------------------------------------


@server("BP1-RES-006")
def equal_attempt_takes_over(put: Put) -> None:
    """An attempt that is not smaller takes the upload over: >= where > belongs, so nobody can join."""
    enter = LiveUpload.enter

    def jealous(self: LiveUpload, feed: Feed, facts: Facts, attempt: int) -> None:
        others = tuple(self.feeds) if attempt == self.attempt else ()
        enter(self, feed, facts, attempt)
        for other in others:
            other.say_stopped(Superseded(f"attempt {attempt} took this upload over", current=attempt))

    put(LiveUpload, "enter", jealous)


@server("BP1-RES-016")
def position_counts_held_blocks(put: Put) -> None:
    """position is the number of held blocks times the length of a block, also when there is a gap among them."""

    def position(self: LiveUpload) -> int:
        held = self.first + len(self.held) * BLOCK_LENGTH
        return held if self.facts.filesize is None else min(held, self.facts.filesize)

    put(LiveUpload, "position", property(position))


@server("BP1-RES-019")
def ack_only_where_the_block_came(put: Put) -> None:
    """A durable block is acknowledged on the stream that brought it, and on no other of the upload."""
    verified, durable = LiveUpload.block_verified, LiveUpload._on_durable

    def remember(self: LiveUpload, blockno: int, length: int, digest: bytes) -> None:
        vars(self).setdefault("brought_by", {})[blockno] = self.owners.get(blockno)
        verified(self, blockno, length, digest)

    def tell_one(self: LiveUpload, blockno: int, outcome: Outcome) -> None:
        feeds, bringer = self.feeds, vars(self)["brought_by"].pop(blockno, None)
        if outcome is None:
            self.feeds = [feed for feed in feeds if feed is bringer]
        durable(self, blockno, outcome)
        self.feeds = feeds

    put(LiveUpload, "block_verified", remember)
    put(LiveUpload, "_on_durable", tell_one)


# ---- repair, commit, cancel -------------------------------------------------------------------------------------


@server("BP1-DIG-007")
def have_forgets_what_it_does_not_name(put: Put) -> None:
    """HAVE is taken for the whole truth: held blocks that none of its pages names are forgotten as well."""
    repair = UploadReceiver._repair

    async def literal(self: UploadReceiver, message: Have) -> None:
        named: set[int] = vars(self).setdefault("named_blocks", set())
        named.update(blockno for blockno, _ in message.digests)
        if not message.more and self.upload is not None:
            unnamed = tuple((blockno, bytes(32)) for blockno in self.upload.held if blockno not in named)
            message = replace(message, digests=message.digests + unnamed)
            named.clear()
        await repair(self, message)

    put(UploadReceiver, "_repair", literal)


@server("BP1-COM-004")
def early_commit_refused(put: Put) -> None:
    """A COMMIT that comes before every block is refused, instead of waiting for those that come on other streams."""
    commit = LiveUpload.commit

    def impatient(
        self: LiveUpload, feed: Feed, root: bytes, filesize: int, facts: Facts, reader: bool = False
    ) -> None:
        if len(self.held) + len(self.pending) < blocknum_of(filesize) - self.first // BLOCK_LENGTH:
            raise BadFacts("COMMIT, and blocks are missing")
        commit(self, feed, root, filesize, facts, reader)

    put(LiveUpload, "commit", impatient)


@server("BP1-COM-010")
def brief_file_without_receipt(put: Put) -> None:
    """A file without OPEN is stored and forgotten: no receipt is kept, so the same one again is stored once more.

    (Were it compared with what has its name, the same one again would be that file.)
    """
    begin, end, finished = BriefReceiver._begin, BriefReceiver._end, BriefReceiver._on_finished

    async def begin_anew(self: BriefReceiver, message: Block, payload_length: int) -> None:
        vars(self)["said_sourceid"] = message.sourceid
        await begin(self, replace(message, sourceid=secrets.token_bytes(16)), payload_length)

    def answer(self: BriefReceiver, outcome: Outcome) -> None:
        if isinstance(outcome, StoredFile):
            outcome = replace(outcome, sourceid=vars(self)["said_sourceid"])
        finished(self, outcome)

    def compare_with_nothing(self: BriefReceiver, block: BlockInProgress) -> None:
        writer = self._writer
        realm = replace(writer.realm, scopes=writer.realm.scopes & ~Scopes.READ)
        self._writer = FileWriter(writer._engine, realm)
        end(self, block)
        self._writer = writer

    put(BriefReceiver, "_begin", begin_anew)
    put(BriefReceiver, "_end", compare_with_nothing)
    put(BriefReceiver, "_on_finished", answer)


@server("BP1-COM-016")
def cancel_always_discards(put: Put) -> None:
    """CANCEL removes what is held, with or without the flag DISCARD."""
    cancel = UploadReceiver._cancel

    def thorough(self: UploadReceiver, message: Cancel) -> None:
        cancel(self, replace(message, discard=True))

    put(UploadReceiver, "_cancel", thorough)


# ---- fetch and list ---------------------------------------------------------------------------------------------


@server("BP1-FET-006")
def range_with_the_root_of_the_file(put: Put) -> None:
    """COMMIT of a ranged fetch names the root that is stored with the file, not that of the range."""
    post, send = Connection.post, ServedFetch._send

    async def remembering(
        self: ServedFetch, sending: Sender, send_stream: SendStream, reader: StoredReader
    ) -> None:
        vars(self)["reader"] = reader
        await send(self, sending, send_stream, reader)

    def mistaken(self: Connection, stream: int, message: Message) -> None:
        handler = self._dispatch._handlers.get(stream)
        if isinstance(message, Commit) and isinstance(handler, ServedFetch):
            message = replace(message, root=vars(handler)["reader"].entry.root or message.root)
        post(self, stream, message)

    put(ServedFetch, "_send", remembering)
    put(Connection, "post", mistaken)


@server("BP1-LST-003")
def cursor_is_an_index(put: Put) -> None:
    """The cursor counts the entries that were listed, so that a removal between two pages hides another entry."""

    def by_index(files: Callable[..., tuple[list[FileEntry], str]]) -> Callable[..., Any]:
        def page(
            self: FileStore, folder: str, recursive: bool, cursor: str, limit: int, left_out: Any = None
        ) -> tuple[list[FileEntry], str]:
            if cursor and not cursor.isdecimal():
                raise NotPermitted("the cursor is none of ours")
            at = int(cursor or 0)
            entries, more = files(self, folder, recursive, "", at + limit, left_out)
            return entries[at:], str(len(entries)) if more else ""

        return page

    for store in (LocalStore, MemoryStore):
        put(store, "files", by_index(store.files))


# ---- the end, and names -----------------------------------------------------------------------------------------


@server("BP1-END-011")
def closes_with_its_error(put: Put) -> None:
    """ERROR (connection) is written and the socket closed at once, with what the peer was sending unread."""

    async def leave(self: Connection) -> None:
        return

    put(Connection, "_discard", leave)


@server("BP1-NAM-003")
def component_length_in_characters(put: Put) -> None:
    """A component's length is counted in characters, as the language's own strings do."""
    judge = names._judge

    def by_characters(text: str) -> None:
        try:
            judge(text)
        except NameRefused as error:
            if error.rule != "component-length":
                raise
            judge("/".join(_as_long(component) for component in text.split("/")))

    put(names, "_judge", by_characters)


def _as_long(component: str) -> str:
    """An ASCII stand-in of as many characters for a component of too many bytes."""
    return component if len(component.encode()) <= COMPONENT_LENGTH_MAX else "x" * len(component)

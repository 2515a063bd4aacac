"""The receiver: takes the blocks of one stream and answers for the file. Uploads and downloads use the same one.

A stream has at most one unfinished block. Its bytes are written where they belong as they come and hashed beside; the
frame that ends the block carries its digest, and only then does the block count. So memory is what one frame's fragment
takes, and a connection that drops costs the bytes in flight.

    Block → (Payload)* → Piece → (Payload)* … END → verified → committer → durable → ACK
    Commit, when every block is durable and the root agrees → COMMITTED

``UploadReceiver`` is a stream of an upload that was opened, ``FetchReceiver`` one of a file that we asked for.

Spec: BP1-BLK, BP1-RES, BP1-COM, BP1-DIG.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from blake3 import blake3

from ..common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, BlockSet, Run, blocknum_of
from ..connection.connection import Connection, error_of
from ..errors import (
    BadFacts,
    BlockprotoError,
    Cancelled,
    DigestMismatch,
    DigestsDiffer,
    Scope,
    SourceChanged,
)
from ..identity.realm import ANONYMOUS, Realm
from ..store import (
    FOLDER_FILETYPE,
    Facts,
    IfExists,
    Prefix,
    StoredFile,
    UploadKey,
)
from ..wire import Block, Cancel, Commit, Committed, Error, Fetch, Have, Message, Open, Opened, Piece, Scopes
from .live_upload import LiveUpload
from .live_uploads import LiveUploads
from .threads import Kind, run_in_thread

OPENED_RUNS_MAX = 400
OPENED_PREFIXES_MAX = 64
_HASH_LENGTH = 128 * 1024


def facts_of(message: Open | Block, realm: Realm) -> Facts:
    """The facts a sender of ``realm`` stated; the name as the store knows it.

    Raises:
        NameRefused: the name breaks a rule.
        BadFacts: a folder that has bytes.
    """
    filename = realm.inward(message.filename)
    if message.filetype == FOLDER_FILETYPE and message.filesize != 0:
        raise BadFacts("a folder has no bytes: its filesize is 0")
    return Facts(
        filename=filename,
        filetype=message.filetype,
        filesize=message.filesize,
        mtime_ns=message.mtime_ns,
        mode=message.mode,
        if_exists=IfExists(message.if_exists or 0),
    )


class BlockInProgress:
    """The block a stream is sending: where the next byte goes and the digest so far.

    Args:
        message: the BLOCK that begins it.
        end: position after the block's last byte, or None if only a short or full block will tell.
        drop: why its bytes are not written (it is here already, or its prefix was not), or None.
    """

    def __init__(self, blockno: int, begin: int, position: int, end: int | None) -> None:
        self.blockno = blockno
        self.begin = begin
        self.next = position
        self.end = end
        self.known: bytes | None = None
        self.dropped = False
        self.digest: bytes | None = None
        self.hasher = blake3()

    @property
    def writes(self) -> bool:
        """Whether its bytes are to be written."""
        return not self.dropped and self.known is None

    def continue_with(self, position: int, payload_length: int, digest: bytes | None) -> None:
        """Check the next frame of the block.

        Raises:
            BadFacts: the bytes are not the next ones, lie outside the block, or end too early.
        """
        if position != self.next:
            raise BadFacts(f"block {self.blockno}: bytes at {position} where {self.next} is next")
        after = position + payload_length
        limit = self.end if self.end is not None else self.begin - self.begin % BLOCK_LENGTH + BLOCK_LENGTH
        if after > limit:
            raise BadFacts(f"block {self.blockno}: bytes up to {after}, but it ends at {limit}")
        if digest is not None and self.end is not None and after != self.end:
            raise BadFacts(f"block {self.blockno}: ended at {after} instead of {self.end}")
        self.digest = digest

    def prefix(self) -> Prefix:
        """How far it got."""
        return Prefix(self.next - self.begin, self.hasher.digest())


async def continue_prefix(upload: LiveUpload, block: BlockInProgress) -> bool:
    """Hash what is there of a block before ``block.next`` again; whether it can be built upon."""
    length = block.next - block.begin
    prefix = upload.prefixes.get(block.blockno)
    if length == 0:
        upload.drop_prefix(block.blockno)
        return True
    if prefix is None or prefix.length != length:
        return False
    read = await run_in_thread(lambda: _hash_again(upload, block, length), Kind.READ)
    if read != length or block.hasher.digest() != prefix.digest:
        upload.drop_prefix(block.blockno)
        return False
    return True


def _hash_again(upload: LiveUpload, block: BlockInProgress, length: int) -> int:
    """Hash the first ``length`` bytes of a block that are here; returns how many there were."""
    memory = memoryview(bytearray(min(length, _HASH_LENGTH)))
    for at in range(0, length, _HASH_LENGTH):
        view = memory[: min(_HASH_LENGTH, length - at)]
        read = upload.stored.read_into(block.begin + at, view)
        block.hasher.update(view[:read])
        if read != len(view):
            return at + read
    return length


class UploadReceiver:
    """A stream that brings blocks of an upload.

    Args:
        connection: where the stream is.
        stream: its id.
        uploads: the live uploads it belongs to.
        realm: whose uploads.
    """

    def __init__(self, connection: Connection, stream: int, uploads: LiveUploads, realm: Realm) -> None:
        self.upload: LiveUpload | None = None
        self._connection = connection
        self._stream = stream
        self._uploads = uploads
        self._realm = realm
        self._sourceid = b""
        self._chosen_here = False
        self._said: tuple[int | None, str, str] | None = None
        self._cancelled: Cancelled | None = None
        self._block: BlockInProgress | None = None

    # ---- what the connection tells ----------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """See connection.StreamHandler: opening asks the store, and a disk may be slow."""
        return self.upload is None or self._uploads.disk.slow

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
        block, upload = self._block, self.upload
        if block is None or upload is None:
            return
        if block.writes and upload.owners.get(block.blockno) is self:
            await upload.write(block.blockno, position, view)
        if not block.dropped:
            block.hasher.update(view)
        block.next = position + len(view)
        if last and block.digest is not None:
            self._end_block(block)

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        self._leave()

    # ---- what the upload tells --------------------------------------------------------------------------------

    def say_durable(self, position: int, runs: list[Run]) -> None:
        """See uploads.Feed."""
        self._connection.post_ack(self._stream, position, runs)

    def say_committed(self, stored: StoredFile) -> None:
        """See uploads.Feed."""
        self._connection.post(self._stream, committed_message(stored, self._realm))
        self._connection.forget(self._stream)
        self._leave()

    def say_differ(self, error: DigestsDiffer) -> None:
        """See uploads.Feed."""
        if self._cancelled is not None:
            self.say_stopped(self._cancelled)
        elif self._connection.commits(self._stream):
            self._connection.refuse(self._stream, error, Scope.BLOCK)

    def say_stopped(self, error: BlockprotoError) -> None:
        """See uploads.Feed."""
        self._connection.refuse(self._stream, error)
        self._leave()

    # ---- requests ---------------------------------------------------------------------------------------------

    async def _open(self, message: Open) -> None:
        self._chosen_here = message.sourceid == bytes(16)
        self._sourceid = secrets.token_bytes(16) if self._chosen_here else message.sourceid
        self._said = _said(message)
        key = UploadKey(self._realm.principal, self._sourceid)
        reader = Scopes.READ in self._realm.scopes
        facts = facts_of(message, self._realm)
        found = await self._uploads.open(key, facts, message.attempt, self, 0, reader, message.root)
        if isinstance(found, StoredFile):
            self.say_committed(found)
            return
        self.upload = found
        if not self._connection.session.is_open(self._stream):
            self._leave()
            return
        self._connection.post(self._stream, self._opened(found))

    def _opened(self, upload: LiveUpload) -> Opened:
        unowned = [
            (no, prefix.length) for no, prefix in sorted(upload.prefixes.items()) if no not in upload.owners
        ]
        return Opened(
            sourceid=self._sourceid,
            file_id=upload.stored.file_id,
            attempt=upload.attempt,
            position=upload.position,
            incarnation=self._uploads.store.incarnation,
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
        upload.commit(self, message.root, message.filesize, facts, Scopes.READ in self._realm.scopes)

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
        elif upload.finishing:
            self._cancelled = cancelled  # perhaps too late: the commit under way answers (BP1-COM)
        else:
            self.say_stopped(cancelled)

    # ---- blocks -----------------------------------------------------------------------------------------------

    async def _begin_block(self, message: Block, payload_length: int) -> None:
        upload = self._opened_upload()
        self._check_sourceid(message.sourceid)
        if _said(message) != self._said:
            raise BadFacts("BLOCK and OPEN differ in filesize, filename or filetype")
        self._abandon()
        if message.filesize == 0:
            self._take_nothing(message)
            return
        begin = max(message.blockno * BLOCK_LENGTH, upload.first)
        block = BlockInProgress(
            message.blockno, begin, message.position, self._end_of(message.blockno, upload)
        )
        block.continue_with(message.position, payload_length, message.digest)
        block.known = upload.digest_of(message.blockno)
        if block.known is None:
            await upload.take_block(block.blockno, self)
            block.dropped = not await continue_prefix(upload, block)
        elif block.next != begin:
            block.dropped = True
        self._block = block
        if payload_length == 0 and block.digest is not None:
            self._end_block(block)

    async def _continue_block(self, message: Piece, payload_length: int) -> None:
        self._opened_upload()
        if self._block is None:
            raise BadFacts("PIECE without a BLOCK that began it")
        self._block.continue_with(message.position, payload_length, message.digest)
        if payload_length == 0 and message.digest is not None:
            self._end_block(self._block)

    def _take_nothing(self, message: Block) -> None:
        """The block of an empty file, which has none (BP1-BLK)."""
        if message.digest is None:
            raise BadFacts("an empty file's BLOCK has the flag END")
        if message.digest != EMPTY_DIGEST:
            mismatch = DigestMismatch("nothing has another digest", blockno=0)
            self._connection.refuse(self._stream, mismatch, Scope.BLOCK)

    def _end_block(self, block: BlockInProgress) -> None:
        upload = self._opened_upload()
        self._block = None
        digest = block.digest
        assert digest is not None
        if block.writes and upload.owners.get(block.blockno) is not self:
            return  # another stream sends this block now: what came here proves nothing (BP1-BLK)
        if block.next == block.begin:
            raise BadFacts(f"block {block.blockno} has no bytes")
        if block.known is not None:
            if digest != block.known:
                raise SourceChanged(f"block {block.blockno} was sent before with other bytes")
            if block.blockno in upload.held:
                self.say_durable(upload.position, [(block.blockno, 1)])
        elif block.dropped or block.hasher.digest() != digest:
            upload.owners.pop(block.blockno, None)
            upload.drop_prefix(block.blockno)
            mismatch = DigestMismatch(f"block {block.blockno} did not arrive whole", blockno=block.blockno)
            self._connection.refuse(self._stream, mismatch, Scope.BLOCK)
        else:
            upload.block_verified(block.blockno, block.next - block.begin, digest)

    def _abandon(self) -> None:
        block, self._block = self._block, None
        if block is None or self.upload is None or not block.writes:
            return
        if self.upload.owners.get(block.blockno) is self:
            self.upload.owners.pop(block.blockno)
            self.upload.keep_prefix(block.blockno, block.prefix())

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

    def _leave(self) -> None:
        self._abandon()
        upload, self.upload = self.upload, None
        if upload is not None:
            upload.leave(self)


class FetchReceiver(UploadReceiver):
    """A stream that answers our FETCH: the file comes the same way, but the store was opened before we asked.

    Args:
        version: what the file must still be (16 bytes).
        done: called with the receipt, or with why there is none; the first call counts.
        on_durable: called with the position after each block that became durable.
        arrived: the numbers of the blocks that came whole are added to it.

    The rest is as for ``UploadReceiver``.
    """

    def __init__(
        self,
        connection: Connection,
        uploads: LiveUploads,
        version: bytes,
        done: Callable[[StoredFile | BlockprotoError], None],
        on_durable: Callable[[int], None],
        arrived: BlockSet,
    ) -> None:
        super().__init__(connection, 0, uploads, ANONYMOUS)
        self._arrived = arrived
        self.payload_bytes = 0
        self._opening: Open | None = None
        self._version = version
        self._done = done
        self._on_durable = on_durable

    def fetch(self, upload: LiveUpload, message: Fetch) -> None:
        """Open the stream and ask; raises what ``Connection.open`` raises."""
        self._stream = self._connection.open(self)
        self.upload = upload
        self._connection.post(self._stream, message)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        self.payload_bytes += len(view)
        await super().payload(position, view, last)

    def say_durable(self, position: int, runs: list[Run]) -> None:
        """See uploads.Feed."""
        super().say_durable(position, runs)
        self._on_durable(position)

    def _end_block(self, block: BlockInProgress) -> None:
        self._arrived.add(block.blockno)
        super()._end_block(block)

    async def received(self, message: Message, payload_length: int) -> None:
        """See connection.StreamHandler."""
        if isinstance(message, Error) and message.scope == Scope.STREAM:
            self.ended(error_of(message))
        else:
            await super().received(message, payload_length)

    def ended(self, error: BlockprotoError) -> None:
        """See connection.StreamHandler."""
        super().ended(error)
        self._done(error)

    def say_committed(self, stored: StoredFile) -> None:
        """See uploads.Feed."""
        opening = self._opening
        assert opening is not None
        filesize = stored.filesize if opening.filesize is None else opening.filesize
        message = Committed(opening.sourceid, opening.file_id or bytes(16), stored.root, filesize, "")
        self._connection.post(self._stream, message)
        self._connection.forget(self._stream)
        self._leave()
        self._done(stored)

    def say_stopped(self, error: BlockprotoError) -> None:
        """See uploads.Feed."""
        super().say_stopped(error)
        self._done(error)

    async def _open(self, message: Open) -> None:
        unfinished = message.version == message.file_id  # BP1-FET-017: the size may be unknown
        if message.version != self._version or (message.filesize is None and not unfinished):
            raise SourceChanged(f"{message.filename} changed while it was being fetched")
        if message.filetype == FOLDER_FILETYPE and message.filesize != 0:
            raise BadFacts("a folder has no bytes: its filesize is 0")
        self._opening = message
        self._sourceid = message.sourceid
        self._said = _said(message)

    def _commit(self, message: Commit) -> None:
        upload = self._opened_upload()
        opening, known = self._opening, upload.facts
        assert opening is not None
        self._check_sourceid(message.sourceid)
        if opening.filesize not in (None, message.filesize):
            raise BadFacts(f"COMMIT says {message.filesize} bytes, OPEN said {opening.filesize}")
        facts = replace(
            known,
            mtime_ns=opening.mtime_ns if known.mtime_ns is None else known.mtime_ns,
            mode=opening.mode if known.mode is None else known.mode,
        )
        end = message.filesize if known.filesize is None else known.filesize
        upload.commit(self, message.root, end, facts)


def _said(message: Open | Block) -> tuple[int | None, str, str]:
    """What every BLOCK repeats of its OPEN (BP1-BLK); sourceid aside."""
    return message.filesize, message.filename, message.filetype


def committed_message(stored: StoredFile, realm: Realm) -> Committed:
    """The COMMITTED that says ``stored`` to ``realm``."""
    return Committed(
        sourceid=stored.sourceid,
        file_id=stored.file_id,
        root=stored.root,
        filesize=stored.filesize,
        stored_as=realm.outward(stored.stored_as),
        b3sum=stored.b3sum,
        left=stored.left,
        there=stored.there,
    )

"""Send an upload that is still coming in: a ``Sender`` with an unfinished upload as its source.

    held blocks → send stream → … wait for the next one … → committed → COMMIT
                                                          → discarded, expired, withdrawn → ERROR

The upload tells its followers what happens and waits for none. It stays alive for them even without a stream that sends it;
when it is committed, the rest is read from the finished file.

Spec: BP1-FET-015 to 019.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio
from blake3 import blake3

from ..common.blocks import BLOCK_LENGTH, BlockSet, block_span, blocknum_of
from ..common.names import SafeName
from ..common.tasks import background_tasks
from ..errors import BadFacts, BlockprotoError, Code, Refused, SourceChanged, UnknownUpload
from ..identity.realm import Realm
from ..store import Facts, StoredFile, StoredReader
from ..wire import ZERO_ID, Committed, Fetch, Priority
from .live_upload import LiveUpload
from .send_stream import SendStream
from .sender import Sender
from .slow_disk import Disk
from .threads import Kind, run_in_thread

HASH_LENGTH = 128 * 1024
"""Bytes of a block in memory at once while its digest is computed."""
CLOCK_LOOKED_AT_S = 3600.0
"""The longest time between two looks at the clock by which an upload expires."""
LOOK_AGAIN_S = 60.0
"""When to look again at an upload that would have expired but is being sent."""


class FollowedSource:
    """An unfinished upload, or the range of it that was asked for, as a ``PieceSource`` and a ``GrowingSource``.

    Args:
        live: the upload.
        open_finished: opens the file that it became; called in a thread.
        disk: decides whether reads leave the Trio thread.
        message: the FETCH.
        realm: of the principal that fetches it; translates the name.

    Attributes:
        stored: the receipt of the file it became, or None.
        stopped: why it will not become a file, or None.

    Raises:
        BadFacts: the range begins behind the last byte, or the size of the upload is unknown.
    """

    def __init__(
        self,
        live: LiveUpload,
        open_finished: Callable[[], StoredReader],
        disk: Disk,
        message: Fetch,
        realm: Realm,
    ) -> None:
        filesize = live.facts.filesize
        if filesize is None and (message.first or message.length is not None):
            raise BadFacts("the size of this upload is not known yet: only the whole can be fetched")
        if filesize and message.first >= filesize:
            raise BadFacts(f"the range begins at {message.first}, the file has {filesize} bytes")
        name = SafeName.parse(realm.outward(live.facts.filename.text))
        self.facts = Facts(name, live.facts.filetype, filesize, live.facts.mtime_ns, live.facts.mode)
        self.first = 0 if filesize is None else min(message.first, filesize)
        self.end = filesize
        if filesize is not None and message.length is not None:
            self.end = min(filesize, self.first + message.length)
        self.window_bytes: int | None = None
        self.stored: StoredFile | None = None
        self.stopped: BlockprotoError | None = None
        self._ended = trio.Event()
        self._live = live
        self._open_finished = open_finished
        self._disk = disk
        self._finished: StoredReader | None = None
        self._settling = trio.Lock()

    @property
    def complete(self) -> bool:
        """See GrowingSource: whether it has become a file."""
        return self.stored is not None

    def ready(self, blockno: int) -> bool:
        """See GrowingSource."""
        return self.stored is not None or self._live.length_of(blockno) is not None

    def ends(self, outcome: StoredFile | BlockprotoError) -> None:
        """The upload has become a file, or is gone for that reason."""
        if isinstance(outcome, StoredFile):
            self.stored = outcome
        else:
            self.stopped = outcome
        self._ended.set()

    async def ended(self) -> StoredFile | None:
        """Wait until it has become a file (its receipt) or is gone (None). Cancellation: no effect."""
        await self._ended.wait()
        return self.stored

    async def settle(self) -> None:
        """See GrowingSource: from now on read from the finished file; the upload is not needed any more."""
        async with self._settling:
            if self._finished is None:
                self._finished = await run_in_thread(self._open_finished)

    async def read_piece(self, position: int, view: memoryview) -> None:
        """See PieceSource; of a block that is ``ready``."""
        while await self._read(position, view) != len(view):
            await self._go_over()

    async def digest(self, blockno: int) -> bytes:
        """See GrowingSource; raises as ``read_piece``."""
        while (digest := await run_in_thread(partial(self._hash, blockno), Kind.HASH)) is None:
            await self._go_over()
        return digest

    def check_root(self, root: bytes) -> None:
        """Raise Refused if ``root``, that of the bytes read, is not the committed one; that of a range is not checked."""
        if self.stored is None or self.first or self.end != self.stored.filesize:
            return
        if root != self.stored.root:
            raise Refused("what was read is not what was committed: go on with a new FETCH", code=Code.BUSY)

    def _hash(self, blockno: int) -> bytes | None:
        position, length = self.span(blockno)
        memory = memoryview(bytearray(min(length, HASH_LENGTH)))
        hasher = blake3()
        try:
            for at in range(0, length, HASH_LENGTH):
                view = memory[: min(HASH_LENGTH, length - at)]
                if self.read_into(position + at, view) != len(view):
                    return None
                hasher.update(view)
        except UnknownUpload:
            return None
        return hasher.digest()

    async def _go_over(self) -> None:
        """Go over to the file: bytes are missing because the upload has just become one, or is gone."""
        if self._finished is not None:
            raise SourceChanged(f"{self.facts.filename.text} became shorter while it was being sent")
        await self.ended()  # at this very moment
        if self.stopped is not None:
            raise self.stopped
        await self.settle()

    def span(self, blockno: int) -> tuple[int, int]:
        """See PieceSource."""
        end = self.stored.filesize if self.end is None and self.stored is not None else self.end
        if end is None:
            return blockno * BLOCK_LENGTH, self._live.length_of(blockno) or 0
        return block_span(blockno, self.first, end) if blockno < blocknum_of(end) else (end, 0)

    async def _read(self, position: int, view: memoryview) -> int:
        reader = self._live.stored if self._finished is None else self._finished
        try:
            return await self._disk.read(reader.read_into, position, view)
        except UnknownUpload:
            return 0  # the upload has just become a file, or is gone

    def read_into(self, position: int, view: memoryview) -> int:
        """See Source."""
        reader = self._live.stored if self._finished is None else self._finished
        return reader.read_into(position, view)

    def durable(self, blockno: int) -> None:
        """See Source."""

    def unchanged(self) -> bool:
        """See Source."""
        return self._finished is not None and self._finished.unchanged()

    def close(self) -> None:
        """Close the file. Harmless when repeated."""
        if self._finished is not None:
            self._finished.close()


class Following:
    """Sends one unfinished upload to one reader; the ``Follower`` of that upload.

    Args:
        source: the upload as a source.
        live: the upload.
        message: the FETCH.
        expiry_now_ms: the store's clock by which uploads expire.

    Attributes:
        sender: sends it.
    """

    def __init__(
        self, source: FollowedSource, live: LiveUpload, message: Fetch, expiry_now_ms: Callable[[], int]
    ) -> None:
        priority = Priority(message.priority)
        self.sender = Sender(source, ZERO_ID, priority=priority, growing=source, check_root=source.check_root)
        self._source = source
        self._live = live
        self._expiry_now_ms = expiry_now_ms
        self.sender.receiver_holds(_common(BlockSet(message.held), live.held), dict(message.prefixes))
        live.follow(self)

    async def send(self, send_stream: SendStream) -> Committed:
        """Send it over ``send_stream`` to its end; raises and cancellation as ``Sender.run``."""
        try:
            async with background_tasks() as nursery:
                nursery.start_soon(self._end_when_expired)
                nursery.start_soon(self._settle_when_committed)
                return await self.sender.run([send_stream])
        finally:
            self._live.unfollow(self)
            self._source.close()

    # ---- what the upload tells --------------------------------------------------------------------------------

    def say_durable(self) -> None:
        """See live_uploads.Follower."""
        self.sender.tell()

    def say_committed(self, stored: StoredFile) -> None:
        """See live_uploads.Follower."""
        if self._source.facts.filesize not in (None, stored.filesize):
            self.say_stopped(SourceChanged("another file was committed in the place of this upload"))
            return
        self._source.ends(stored)
        self.sender.tell()

    def say_stopped(self, error: BlockprotoError) -> None:
        """See live_uploads.Follower."""
        self._source.ends(error)
        self.sender.fail(error)

    def say_withdrawn(self) -> None:
        """See live_uploads.Follower. A reader that fetches again finds by the root which of its blocks differ."""
        busy = Refused("blocks of the upload were withdrawn: go on with a new FETCH", code=Code.BUSY)
        self.sender.fail(busy)

    # ---- meanwhile --------------------------------------------------------------------------------------------

    async def _settle_when_committed(self) -> None:
        """Leave the upload as soon as it is a file, however slowly the rest is read."""
        if await self._source.ended() is not None:
            try:
                await self._source.settle()
            except BlockprotoError as exc:
                self.sender.fail(exc)
            self._live.unfollow(self)

    async def _end_when_expired(self) -> None:
        while self._live.stored.expires_ms is not None:
            left_s = (self._live.stored.expires_ms - self._expiry_now_ms()) / 1000
            if left_s <= 0 and not self._live.feeds:
                self.say_stopped(UnknownUpload("the upload has expired"))
                return
            await trio.sleep(min(left_s, CLOCK_LOOKED_AT_S) if left_s > 0 else LOOK_AGAIN_S)


def _common(these: BlockSet, those: BlockSet) -> BlockSet:
    """The blocks that are in both sets; changes ``these``."""
    others = these.copy()
    for first, number in those.runs():
        others.discard(first, number)
    for first, number in others.runs():
        these.discard(first, number)
    return these

"""The receiver of a download: handles what the server sends on the stream of a FETCH.

The file comes as an upload does (``UploadReceiver``), but the store was opened before the FETCH, so OPEN and COMMIT are
checked against what is known of the file.

Spec: BP1-FET, BP1-BLK, BP1-COM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..common.blocks import BlockSet, Run
from ..connection.connection import Connection, error_of
from ..errors import BadFacts, BlockprotoError, Scope, SourceChanged, stored_damaged
from ..store import FOLDER_FILETYPE, StoredFile
from ..wire import Commit, Committed, Error, Fetch, Message, Open
from .block_receiver import BlockInProgress
from .engine import Engine
from .live_upload import LiveUpload
from .receiver import UploadReceiver, said_of


def require_root(opening: Open, root: bytes) -> None:
    """Raise DigestMismatch if a whole file comes with another root than the one its server named in OPEN (BP1-FET-021)."""
    if opening.root not in (None, root):
        raise stored_damaged()


class FetchReceiver(UploadReceiver):
    """The stream of a FETCH.

    Args:
        connection: where to fetch.
        engine: where the blocks go.
        version: the version that the file must have (16 bytes).
        filesize: the size that the server named with that version, in bytes; None if it was not known.
        done: called with the receipt or an error; only the first call counts.
        on_durable: called with the position after each block that became durable.
        arrived: gets the numbers of the blocks that came whole.
    """

    def __init__(
        self,
        connection: Connection,
        engine: Engine,
        version: bytes,
        filesize: int | None,
        done: Callable[[StoredFile | BlockprotoError], None],
        on_durable: Callable[[int], None],
        arrived: BlockSet,
    ) -> None:
        super().__init__(connection, 0, engine)
        self._arrived = arrived
        self.payload_bytes = 0
        self._opening: Open | None = None
        self._version = version
        self._filesize = filesize
        self._done = done
        self._on_durable = on_durable

    def fetch(self, upload: LiveUpload, message: Fetch) -> None:
        """Open the stream and send FETCH; raises what ``Connection.open`` raises."""
        self._stream = self._connection.open(self)
        self._enter(upload)
        self._connection.post(self._stream, message)

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """See connection.StreamHandler."""
        self.payload_bytes += len(view)
        await super().payload(position, view, last)

    def say_durable(self, position: int, runs: list[Run]) -> None:
        """See live_upload.Feed."""
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
        """See connection.StreamHandler. Calls ``done`` with the error."""
        super().ended(error)
        self._done(error)

    def say_committed(self, stored: StoredFile) -> None:
        """See live_upload.Feed. Tells the server, then calls ``done`` with the receipt."""
        opening = self._opening
        assert opening is not None
        filesize = stored.filesize if opening.filesize is None else opening.filesize
        message = Committed(opening.sourceid, opening.file_id or bytes(16), stored.root, filesize, "")
        self._connection.post(self._stream, message)
        self._connection.forget(self._stream)
        self._leave()
        self._done(stored)

    def say_stopped(self, error: BlockprotoError) -> None:
        """See live_upload.Feed. Tells the server, then calls ``done`` with the error."""
        super().say_stopped(error)
        self._done(error)

    async def _open(self, message: Open) -> None:
        unfinished = message.version == message.file_id  # BP1-FET-017: the size may be unknown
        if message.version != self._version or (message.filesize is None and not unfinished):
            raise SourceChanged(f"{message.filename} changed while it was being fetched")
        if message.filetype == FOLDER_FILETYPE and message.filesize != 0:
            raise BadFacts("a folder has no bytes: its filesize is 0")
        if None not in (message.filesize, self._filesize) and message.filesize != self._filesize:
            raise BadFacts(
                f"the server contradicts itself: it named a file of {self._filesize} bytes, and sends one of "
                f"{message.filesize}"
            )
        self._opening = message
        self._sourceid = message.sourceid
        self._said = said_of(message)

    def _commit(self, message: Commit) -> None:
        upload = self._opened_upload()
        opening, known = self._opening, upload.facts
        assert opening is not None
        self._check_sourceid(message.sourceid)
        if opening.filesize not in (None, message.filesize):
            raise BadFacts(f"COMMIT says {message.filesize} bytes, OPEN said {opening.filesize}")
        if upload.first == 0 and known.filesize in (None, opening.filesize):
            require_root(opening, message.root)
        facts = replace(
            known,
            mtime_ns=opening.mtime_ns if known.mtime_ns is None else known.mtime_ns,
            mode=opening.mode if known.mode is None else known.mode,
        )
        end = message.filesize if known.filesize is None else known.filesize
        upload.commit(self, message.root, end, facts)

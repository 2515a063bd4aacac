"""A finished file as the source of a served FETCH, and the OPEN that begins its answer.

Spec: BP1-FET.
"""

from __future__ import annotations

import logging

from ...common.blocks import block_span, blocknum_of
from ...common.names import SafeName, show_name
from ...errors import (
    BadFacts,
    SourceChanged,
    stored_damaged,
)
from ...identity.realm import Realm
from ...store import (
    Facts,
    FileEntry,
    StoredReader,
)
from ...transfer.follow_upload import FollowedSource
from ...transfer.live_upload import LiveUpload
from ...transfer.slow_disk import Disk
from ...wire import (
    ZERO_ID,
    Fetch,
    Open,
)

log = logging.getLogger(__name__)


class StoredSource:
    """A finished file, or the range of it that was asked for, as a ``PieceSource``.

    Args:
        reader: the open file; the caller closes it.
        disk: decides whether reads leave the Trio thread.
        message: the FETCH.
        realm: of the principal that fetches it; translates the name.

    Raises:
        BadFacts: the range begins behind the file's last byte.
        SourceChanged: the file is not of the version that was asked for.
    """

    def __init__(self, reader: StoredReader, disk: Disk, message: Fetch, realm: Realm) -> None:
        entry = reader.entry
        if message.version not in (ZERO_ID, entry.version) and not _stands_for(message, entry.file_id):
            raise SourceChanged(
                f"{realm.outward(entry.filename.text)} is not the version that was asked for any more"
            )
        name = SafeName.parse(realm.outward(entry.filename.text))
        self.facts = Facts(name, entry.filetype, entry.filesize, entry.mtime_ns, entry.mode)
        if entry.filesize and message.first >= entry.filesize:
            raise BadFacts(f"the range begins at {message.first}, the file has {entry.filesize} bytes")
        self.first = min(message.first, entry.filesize)
        self.end: int | None = entry.filesize
        if message.length is not None:
            self.end = min(entry.filesize, self.first + message.length)
        self.window_bytes: int | None = None
        self._reader = reader
        self._disk = disk

    def span(self, blockno: int) -> tuple[int, int]:
        """See PieceSource."""
        assert self.end is not None
        return block_span(blockno, self.first, self.end)

    async def read_piece(self, position: int, view: memoryview) -> None:
        """See PieceSource."""
        if await self._disk.read(self._reader.read_into, position, view) != len(view):
            raise SourceChanged(f"{self.facts.filename.text} became shorter while it was being sent")

    def read_into(self, position: int, view: memoryview) -> int:
        """See Source."""
        return self._reader.read_into(position, view)

    def durable(self, blockno: int) -> None:
        """See Source."""

    def check_root(self, root: bytes) -> None:
        """Raise DigestMismatch if ``root``, that of the bytes read, shows damage; that of a range shows nothing."""
        if self.first == 0 and self.end == self._reader.entry.filesize:
            check_committed(self._reader.entry, root)

    def unchanged(self) -> bool:
        """See Source."""
        return self._reader.unchanged()


def check_committed(entry: FileEntry, root: bytes) -> None:
    """Raise DigestMismatch if a file whose bytes have ``root`` is not what was committed (BP1-FET-020)."""
    if entry.committed_root in (None, root):
        return
    log.error(
        "%s is damaged: its bytes are not those that were committed; restore it, or `touch` it if it is meant to be so",
        show_name(entry.filename.text),
        extra={"event": "file damaged", "facts": {"filename": entry.filename.text}},
    )
    raise stored_damaged()


def _stands_for(message: Fetch, file_id: bytes) -> bool:
    """Whether FETCH gives the file id as the version: it means whatever the upload became (BP1-FET-017)."""
    return message.version == message.file_id == file_id != ZERO_ID


def open_message(entry: FileEntry, filename: str, message: Fetch) -> Open:
    """The OPEN that answers FETCH of a finished file, ``filename`` within the realm (BP1-FET-003)."""
    return Open(
        sourceid=ZERO_ID,
        attempt=0,
        filesize=entry.filesize,
        blocknum=blocknum_of(entry.filesize),
        filename=filename,
        filetype=entry.filetype,
        priority=message.priority,
        mtime_ns=entry.mtime_ns,
        mode=entry.mode,
        root=entry.root,
        b3sum=entry.b3sum,
        version=message.version if _stands_for(message, entry.file_id) else entry.version,
        file_id=None if entry.file_id == ZERO_ID else entry.file_id,
    )


def open_upload_message(live: LiveUpload, source: FollowedSource, message: Fetch) -> Open:
    """The OPEN that answers FETCH of an unfinished upload (BP1-FET-017)."""
    facts = source.facts
    return Open(
        sourceid=ZERO_ID,
        attempt=0,
        filesize=facts.filesize,
        blocknum=None if facts.filesize is None else blocknum_of(facts.filesize),
        filename=facts.filename.text,
        filetype=facts.filetype,
        priority=message.priority,
        mtime_ns=facts.mtime_ns,
        mode=facts.mode,
        version=live.stored.file_id,
        file_id=live.stored.file_id,
    )

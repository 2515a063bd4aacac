"""Facts: what is said and known of files and uploads, as values.

A store, the engine and the handlers speak of files in these; none of them knows how a store keeps anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from ..common.names import SafeName

FOLDER_FILETYPE = "inode/directory"
"""The filetype of a folder entry (BP1-BLK)."""


MODE_BITS = 0o777
"""What of a stated mode is applied to files and folders."""


class IfExists(IntEnum):
    """What to do when the name is taken at commit."""

    KEEP = 0
    REFUSE = 1
    REPLACE = 2
    SKIP = 3
    UPDATE = 4


@dataclass(frozen=True, slots=True)
class UploadKey:
    """What an upload belongs to: the principal (16 bytes, zeros: anonymous) and its sourceid (16 bytes)."""

    principal: bytes
    sourceid: bytes


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sender says of its file.

    Attributes:
        filename: the name it shall get.
        filetype: MIME type; ``inode/directory`` for a folder.
        filesize: bytes, or None while unknown. For a ranged download where the range ends: blocks
            keep their blockno and position in the whole file, and the store was told where the range begins.
        mtime_ns: modification time in nanoseconds since 1970, or None.
        mode: permission bits 0..0o777, or None; of what was stated only these nine are kept, so that no file and no folder
            ever gets a set-user-id, set-group-id or sticky bit.
        if_exists: what to do when the name is taken.
    """

    filename: SafeName
    filetype: str
    filesize: int | None
    mtime_ns: int | None = None
    mode: int | None = None
    if_exists: IfExists = IfExists.KEEP

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode & ~MODE_BITS:
            object.__setattr__(self, "mode", self.mode & MODE_BITS)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of an unfinished block: how many bytes are there, and their digest so far (32 bytes)."""

    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The receipt of a committed upload; repeated verbatim for the same COMMIT for at least a day.

    Attributes:
        there: the file was there already with these bytes; nothing was stored (BP1-COM-021).
        left: what has the name was left as it is (BP1-COM-025): there is no receipt, and ``file_id``, ``root`` and
            ``filesize`` are those of what is there, zeros where they are not known or not to be told.
        new: the receipt was not there before the work that gave it. Receipts that differ in nothing else are equal.
    """

    sourceid: bytes
    file_id: bytes
    root: bytes
    filesize: int
    stored_as: str
    b3sum: bytes | None = None
    there: bool = False
    left: bool = False
    new: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A finished file or folder as it is now.

    Attributes:
        filename: its path in the served folder.
        folder: whether it is a folder.
        filesize: bytes.
        mtime_ns: nanoseconds since 1970.
        mode: permission bits.
        version: 16 bytes that change whenever the file does.
        stamp: the version, and what changes whenever anything about the file does: the key of cached digests.
        file_id: 16 bytes; zeros if it was not uploaded through us.
        filetype: MIME type as uploaded, else guessed from the name.
        root, b3sum: digests where known and still true.
        committed_root: of the upload that the file is by its size and time; another one of its bytes means that they are
            damaged. None: it was not uploaded, or has changed since.
    """

    filename: SafeName
    folder: bool
    filesize: int
    mtime_ns: int
    mode: int
    version: bytes
    file_id: bytes = bytes(16)
    filetype: str = "application/octet-stream"
    root: bytes | None = None
    b3sum: bytes | None = None
    stamp: bytes = b""
    committed_root: bytes | None = None


@dataclass(frozen=True, slots=True)
class UploadEntry:
    """An unfinished upload as the ledger has it.

    ``taken`` is how many bytes of the disk it has, if its size is unknown.
    """

    key: UploadKey
    file_id: bytes
    filename: SafeName
    filetype: str
    filesize: int | None
    position: int
    held_count: int
    expires_ms: int | None
    taken: int = 0

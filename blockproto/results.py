"""Jobs, receipts and entries of the public interface, in plain types.

Ids, versions and digests are lower-case hex here; sizes are bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, get_args

from . import wire
from .wire import EntryKind, FileItem, UploadItem

IfExistsWord = Literal["keep", "refuse", "replace", "skip", "update"]
"""What to do if the name is taken by a file with other content: keep both, refuse, replace it, leave it, or replace it only
if ours was modified later. A file with the same content is that file, whatever the word."""

IF_EXISTS: tuple[IfExistsWord, ...] = get_args(IfExistsWord)

Outcome = Literal["sent", "there", "left"]
"""The outcome for a file: it was sent; the same content was there already; or the existing file was left."""


class Job(Protocol):
    """What is to be sent: an ``UploadJob``, or what a command makes of thousands of them more quickly."""

    @property
    def path(self) -> str | os.PathLike[str]:
        """Of the file or folder here."""

    @property
    def name(self) -> str:
        """Its whole name on the server."""

    @property
    def if_exists(self) -> IfExistsWord:
        """What to do when that is taken."""

    @property
    def looked(self) -> os.stat_result | None:
        """Its ``os.stat``, if somebody has just looked."""


@dataclass(frozen=True, slots=True)
class UploadJob:
    """One file or folder for ``Client.upload_all``.

    Attributes:
        path: of the file or folder here.
        name: its whole name on the server, with "/" between components.
        if_exists: ``keep`` both, ``refuse``, ``replace``, ``skip`` (leave what is there) or ``update`` (replace it if ours
            was modified later).
        looked: its ``os.stat``, if somebody has just looked: then nobody looks again.
    """

    path: Path
    name: str
    if_exists: IfExistsWord = "keep"
    looked: os.stat_result | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of one transfer.

    Attributes:
        filename: the name that was asked for; ``stored_as`` is the one it got (for a download: the local path).
        blocknum: how many blocks the file has.
        root: digest of the block digests, or None of a file that was left; b3sum: BLAKE3 of the file, or None if unknown.
        resumed: whether something was there already.
        blocks_sent, blocks_skipped: blocks that travelled at least once, and the others; together ``blocknum``.
        payload_bytes_sent: bytes of file content that travelled in this call.
        connections: how many were used.
        elapsed_s: seconds from OPEN or the first byte to COMMITTED.
        outcome: ``sent``; ``there`` if the same content was there already; ``left`` if ``skip`` or ``update`` left an
            existing file: then ``stored_as`` and ``filesize`` are those of that.
    """

    filename: str
    filetype: str
    filesize: int
    blocknum: int
    sourceid: str
    root: str | None
    b3sum: str | None
    stored_as: str
    resumed: bool
    blocks_sent: int
    blocks_skipped: int
    payload_bytes_sent: int
    connections: int
    elapsed_s: float
    outcome: Outcome = "sent"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A finished file or folder on the server."""

    filename: str
    folder: bool
    filetype: str
    filesize: int
    mtime_ns: int
    mode: int
    file_id: str
    version: str
    root: str | None
    b3sum: str | None


LeftOutReason = Literal["link", "special", "name", "unreadable", "other"]
"""Why a listing left something out: a symbolic link, a special file, a name that cannot travel, something that the server
cannot read, or a reason of a newer server."""

_WHY_LEFT_OUT: dict[LeftOutReason, str] = {
    "link": "a symbolic link",
    "special": "a special file",
    "name": "its name cannot travel",
    "unreadable": "the server cannot read it",
    "other": "the server left it out, for a reason that this version does not know",
}
_LEFT_OUT_REASONS: dict[int, LeftOutReason] = {1: "link", 2: "special", 3: "name", 4: "unreadable"}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a listing left out for one reason; it may come in several parts.

    Attributes:
        reason: why.
        count: how many there are.
        names: of some of them, as text for people, perhaps with escapes; not to be used as names.
    """

    reason: LeftOutReason
    count: int
    names: tuple[str, ...]

    @property
    def missed(self) -> bool:
        """Whether something is missing that should have come; links and special files never do."""
        return self.reason not in ("link", "special")

    @property
    def why(self) -> str:
        """The reason for people."""
        return _WHY_LEFT_OUT[self.reason]


class DownloadJob(NamedTuple):
    """One file for ``Client.download_all``: its entry in a listing, and its path here."""

    entry: FileInfo
    dest: Path


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """An unfinished upload on the server.

    Attributes:
        position: bytes that are durable without a gap from the file's beginning.
        held_count: blocks that are durable, wherever in the file.
    """

    sourceid: str
    file_id: str
    filename: str
    filetype: str
    filesize: int | None
    blocknum: int | None
    position: int
    held_count: int
    expires_ms: int | None


def file_info(item: FileItem) -> FileInfo:
    """The public form of a file item."""
    return FileInfo(
        filename=item.filename,
        folder=item.kind == EntryKind.FOLDER,
        filetype=item.filetype,
        filesize=item.filesize,
        mtime_ns=item.mtime_ns,
        mode=item.mode & 0o777,
        file_id=item.file_id.hex(),
        version=item.version.hex(),
        root=item.root.hex() if item.root else None,
        b3sum=item.b3sum.hex() if item.b3sum else None,
    )


def file_item(info: FileInfo) -> FileItem:
    """The file item of which ``info`` is the public form."""
    return FileItem(
        kind=EntryKind.FOLDER if info.folder else EntryKind.FILE,
        filesize=info.filesize,
        mtime_ns=info.mtime_ns,
        mode=info.mode,
        file_id=bytes.fromhex(info.file_id),
        version=bytes.fromhex(info.version),
        filename=info.filename,
        filetype=info.filetype,
        root=bytes.fromhex(info.root) if info.root else None,
        b3sum=bytes.fromhex(info.b3sum) if info.b3sum else None,
    )


def left_out(group: wire.LeftOut) -> LeftOut:
    """The public form of a group of LEFT_OUT."""
    return LeftOut(
        _LEFT_OUT_REASONS.get(group.reason, "other"), group.count, group.names[: wire.LEFT_OUT_NAMES_MAX]
    )


def upload_info(item: UploadItem) -> UploadInfo:
    """The public form of an upload item."""
    return UploadInfo(
        sourceid=item.sourceid.hex(),
        file_id=item.file_id.hex(),
        filename=item.filename,
        filetype=item.filetype,
        filesize=item.filesize,
        blocknum=item.blocknum,
        position=item.position,
        held_count=item.held_count,
        expires_ms=item.expires_ms,
    )


def upload_item(info: UploadInfo) -> UploadItem:
    """The upload item of which ``info`` is the public form."""
    return UploadItem(
        sourceid=bytes.fromhex(info.sourceid),
        file_id=bytes.fromhex(info.file_id),
        filename=info.filename,
        filetype=info.filetype,
        filesize=info.filesize,
        blocknum=info.blocknum,
        position=info.position,
        held_count=info.held_count,
        expires_ms=info.expires_ms,
    )


def b3sum_hex(root: bytes, b3sum: bytes | None, blocknum: int) -> str | None:
    """The BLAKE3 of a file, if it is known: for at most one block it is the root."""
    known = root if blocknum <= 1 else b3sum
    return known.hex() if known else None

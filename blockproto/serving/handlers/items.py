"""What the store knows of files, uploads and receipts, as the items of a page of a list.

Spec: BP1-LST.
"""

from __future__ import annotations

from ...common.blocks import blocknum_of
from ...common.names import ESCAPED_LENGTH_MAX, cut_in_the_middle, show_name
from ...identity.realm import Realm
from ...store import (
    FileEntry,
    LeftOut,
    StoredFile,
    UploadEntry,
)
from ...wire import (
    EntryKind,
    FileItem,
    ReceiptItem,
    UploadItem,
)
from ...wire import LeftOut as LeftOutGroup

COUNT_MAX = 2**32 - 1
"""What LEFT_OUT counts at most."""


def file_item(entry: FileEntry, realm: Realm) -> FileItem:
    """A file or folder, as a page of a list says it to ``realm``."""
    return FileItem(
        kind=EntryKind.FOLDER if entry.folder else EntryKind.FILE,
        filesize=entry.filesize,
        mtime_ns=entry.mtime_ns,
        mode=entry.mode,
        file_id=entry.file_id,
        version=entry.version,
        filename=realm.outward(entry.filename.text),
        filetype=entry.filetype,
        root=entry.root,
        b3sum=entry.b3sum,
    )


def left_out_groups(left_out: LeftOut, realm: Realm) -> tuple[LeftOutGroup, ...]:
    """What a page passed over as the wire says it: its names as text for people, as they are called in the realm."""
    return tuple(
        LeftOutGroup(
            int(reason),
            min(count, COUNT_MAX),
            tuple(_shown(realm, name.decode("utf-8", "surrogateescape")) for name in left_out.names[reason]),
        )
        for reason, count in sorted(left_out.counts.items())
    )


def _shown(realm: Realm, name: str) -> str:
    inside = "" if name + "/" == realm.above else realm.outward(name)
    return cut_in_the_middle(show_name(inside), ESCAPED_LENGTH_MAX)


def upload_item(entry: UploadEntry, realm: Realm) -> UploadItem:
    """An unfinished upload, likewise."""
    return UploadItem(
        sourceid=entry.key.sourceid,
        file_id=entry.file_id,
        filesize=entry.filesize,
        blocknum=None if entry.filesize is None else blocknum_of(entry.filesize),
        position=entry.position,
        held_count=entry.held_count,
        expires_ms=entry.expires_ms,
        filename=realm.outward(entry.filename.text),
        filetype=entry.filetype,
    )


def receipt_item(stored: StoredFile, realm: Realm) -> ReceiptItem:
    """A receipt, likewise."""
    return ReceiptItem(
        sourceid=stored.sourceid,
        file_id=stored.file_id,
        root=stored.root,
        filesize=stored.filesize,
        stored_as=realm.outward(stored.stored_as),
        b3sum=stored.b3sum,
    )

"""Finished files of a local store: what they are, what the ledger knows of them, listing and reading.

The folder is the truth, the ledger a memory: a receipt counts only while the file has the device, inode, size and mtime
that were recorded. Symlinks and special files are never followed, listed or served, and ``.blockproto`` is not there.
"""

from __future__ import annotations

import logging
import mimetypes
import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from struct import pack

from blake3 import blake3

from ...common.blocks import FILESIZE_MAX
from ...common.names import SafeName, is_hidden
from ...common.times import SaidOnce, ctime_of, mtime_of
from ...errors import BlockprotoError, NotPermitted, SourceChanged, StoreFailed, UnknownFile
from .. import FOLDER_FILETYPE, FileEntry, IfExists, LeftOut, StoredFile, UploadKey
from ..folder_io import Folders, look, open_to_read, read_into
from ..open_file import Descriptors, OpenFile
from ..os_errors import refusal, refusal_of_one
from ..rules import is_within
from .ledger import Ledger
from .ledger_view import View
from .listing import Listings
from .records import Identity, ReceiptRecord

log = logging.getLogger(__name__)

SEALS_PAID = 16
"""Seals (until when a receipt vouches for its root) that a batch tells the ledger; the sweep and the end tell the others."""

SEALS_SWEPT = 1 << 14
"""Seals that one sweep tells it: some 50 ms."""

SEALS_MAX = 1 << 16
"""Seals that wait for that at most."""

_UNKNOWN_FILETYPE = "application/octet-stream"

_NOBODYS = ReceiptRecord(
    key=UploadKey(bytes(16), bytes(16)),
    file_id=bytes(16),
    root=bytes(32),
    filesize=0,
    identity=Identity(0, 0, 0, 0),
    committed_ms=0,
    stored_as="nobody's",
    filetype=_UNKNOWN_FILETYPE,
)
_NOBODYS_RECORD = _NOBODYS.pack()


class LocalReader:
    """A finished file opened for reading; the port's ``StoredReader``.

    While nobody reads, its descriptor may be given to others; then it is opened again, if it still is the same file.
    """

    def __init__(self, finished: FinishedFiles, entry: FileEntry, fd: int, descriptors: Descriptors) -> None:
        self.entry = entry
        self._finished = finished
        self._file = OpenFile(self._open_again, descriptors)
        self._file.adopt(fd)

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        fd = self._file.take()
        try:
            return read_into(fd, position, view)
        except OSError as exc:
            raise refusal_of_one(exc) from exc
        finally:
            self._file.give()

    def unchanged(self) -> bool:
        """See the port."""
        try:
            fd = self._file.take()
        except (SourceChanged, UnknownFile):
            return False
        try:
            return self._finished.version(os.fstat(fd)) == self.entry.version
        except OSError as exc:
            raise refusal_of_one(exc) from exc
        finally:
            self._file.give()

    def sync(self) -> None:
        """See the port: the file, and every folder above it, which may have been made by somebody else."""
        fd = self._file.take()
        try:
            os.fsync(fd)
            self._finished.sync_folders_of(self.entry.filename)
        except OSError as exc:
            raise refusal(exc) from exc
        finally:
            self._file.give()

    def close(self) -> None:
        """See the port."""
        self._file.rest()

    def _open_again(self) -> int:
        fd, found = self._finished.open_to_read(self.entry.filename)
        if self._finished.version(found) != self.entry.version:
            os.close(fd)
            raise SourceChanged("the file changed while it was being sent")
        return fd


class FinishedFiles:
    """The files of a served folder.

    Args:
        root_fd: the served folder; stays the caller's.
        ledger: what is known of them.
        descriptors: the open files of the store.
    """

    def __init__(self, root_fd: int, ledger: Ledger, descriptors: Descriptors) -> None:
        self._root_fd = root_fd
        self._descriptors = descriptors
        self._ledger = ledger
        self._dev = os.fstat(root_fd).st_dev
        self._hidden: set[bytes] = set()
        self.sealed: dict[bytes, int] = {}
        self._listings = Listings(root_fd)
        self._times = SaidOnce(log.warning)

    # -- what a file is

    def identity(self, found: os.stat_result) -> Identity:
        """What a file is known by."""
        dev = 0 if found.st_dev == self._dev else found.st_dev
        if stat.S_ISDIR(found.st_mode):
            return Identity(dev, found.st_ino, 0, 0)
        return Identity(dev, found.st_ino, found.st_size, mtime_of(found))

    def version(self, found: os.stat_result) -> bytes:
        """16 bytes that change whenever the file does."""
        dev = 0 if found.st_dev == self._dev else found.st_dev
        mtime_ns = mtime_of(found)
        facts = pack(">QQQq", dev, found.st_ino, found.st_size, mtime_ns)
        if (
            mtime_ns != found.st_mtime_ns
        ):  # a change of the time from one that cannot be said to another is one, too
            facts += str(found.st_mtime_ns).encode()
        return blake3(facts).digest(16)

    def stamp(self, found: os.stat_result) -> bytes:
        """The version and the ctime, which nobody can set: 24 bytes, the key of cached digests (BP1-COM-024)."""
        return _stamp(self.version(found), ctime_of(found))

    def look(self, name: str, folders: Folders | None = None) -> os.stat_result | None:
        """What stands under a name if it is a file or a folder, else None; nothing does under one that is hidden."""
        if is_hidden(name):
            return None
        own = Folders(self._root_fd) if folders is None else folders
        try:
            folder, _, last = name.rpartition("/")
            found = look(own.open(folder), last.encode())
        except OSError as exc:
            error = refusal_of_one(exc)
            if error.retryable or isinstance(refusal(exc), StoreFailed):
                raise error from exc
            return None
        finally:
            if folders is None:
                own.close()
        return found if found is not None and _is_served(found) else None

    # -- receipts

    def hide(self, file_ids: Iterable[bytes]) -> None:
        """Their receipts do not count yet: the names are not durable."""
        self._hidden.update(file_ids)

    def show(self, file_ids: Iterable[bytes]) -> None:
        """They count."""
        self._hidden.difference_update(file_ids)

    def is_true(self, receipt: ReceiptRecord, folders: Folders | None = None) -> bool:
        """Whether the file is still what was committed."""
        return self._truth(receipt, folders) is not None

    def true_receipt(
        self, view: View, file_id: bytes, folders: Folders | None = None, if_exists: IfExists | None = None
    ) -> StoredFile | None:
        """The receipt of a file id, if it counts, and is of the rule ``if_exists`` (None: of any)."""
        receipt = view.receipt(file_id)
        if receipt is None or if_exists not in (None, receipt.if_exists):
            return None
        return self.stored(view, receipt, folders)

    def stored(self, view: View, receipt: ReceiptRecord, folders: Folders | None = None) -> StoredFile | None:
        """A receipt as the port has it, if it counts."""
        found = self._truth(receipt, folders)
        if found is None:
            return None
        return receipt.stored(view.digests_of(receipt.stored_as, self.stamp(found))[0])

    def _truth(self, receipt: ReceiptRecord, folders: Folders | None) -> os.stat_result | None:
        if receipt.file_id in self._hidden:
            return None
        found = self.look(receipt.stored_as, folders)
        return found if found is not None and self.identity(found) == receipt.identity else None

    def receipts(self, file_ids: Iterable[bytes], if_exists: IfExists | None = None) -> list[StoredFile]:
        """Those that count, of one rule or of any."""
        with self._ledger.read() as view, Folders(self._root_fd) as folders:
            found = (self._receipt_or_none(view, file_id, folders, if_exists) for file_id in file_ids)
            return [receipt for receipt in found if receipt is not None]

    def _receipt_or_none(
        self, view: View, file_id: bytes, folders: Folders, if_exists: IfExists | None
    ) -> StoredFile | None:
        """``true_receipt``; None for a file that cannot be looked at, which keeps no other one back."""
        try:
            return self.true_receipt(view, file_id, folders, if_exists)
        except BlockprotoError as exc:
            if exc.retryable or isinstance(exc, StoreFailed):
                raise
            return None

    # -- digests

    def seal(self, file_id: bytes, ctime_ns: int) -> None:
        """That receipt's root is the file's as long as its ctime is not later; to be told to the ledger."""
        self.sealed[file_id] = ctime_ns

    def root_of(self, view: View, name: str, found: os.stat_result) -> bytes | None:
        """The root of a file, if it is known of these bytes: recorded, and nothing about the file is later than that."""
        file_id = view.file_id_of(name)
        receipt = None if file_id is None else view.receipt(file_id)
        if receipt is not None and self._vouches(receipt, found):
            return receipt.root
        return view.digests_of(name, self.stamp(found))[1]

    def file_id_of(self, view: View, name: str, found: os.stat_result) -> bytes | None:
        """The file id of what has a name, if it was uploaded."""
        file_id = view.file_id_of(name)
        receipt = None if file_id is None else view.receipt(file_id)
        return file_id if receipt is not None and self.is_of(receipt, found) else None

    def is_of(self, receipt: ReceiptRecord, found: os.stat_result) -> bool:
        """Whether a receipt is that of what was found under its name."""
        return receipt.file_id not in self._hidden and self.identity(found) == receipt.identity

    def _vouches(self, receipt: ReceiptRecord, found: os.stat_result) -> bool:
        return self._is_sealed(receipt, ctime_of(found)) and self.identity(found) == receipt.identity

    def _is_sealed(self, receipt: ReceiptRecord, ctime_ns: int) -> bool:
        """Whether nothing about a file that has this ctime is later than the root of its receipt."""
        return ctime_ns <= (receipt.ctime_bound or self.sealed.get(receipt.file_id, 0))

    def sync_folders_of(self, filename: SafeName) -> None:
        """Make a file's name durable, and those of the folders above it; raises OSError."""
        with Folders(self._root_fd) as folders:
            above = filename.text
            while above:
                above = above.rpartition("/")[0]
                os.fsync(folders.open(above))

    # -- entries

    def stat(self, filename: SafeName) -> FileEntry:
        """One entry; raises UnknownFile."""
        found = self.look(filename.text)
        if found is None:
            raise UnknownFile
        with self._ledger.read() as view:
            return self._entry(view, filename, found)

    def _entry(self, view: View, filename: SafeName, found: os.stat_result) -> FileEntry:
        folder = stat.S_ISDIR(found.st_mode)
        version = self.version(found)
        file_id = view.file_id_of(filename.text)
        receipt = None if file_id is None else view.receipt(file_id)
        if receipt is not None and self.identity(found) != receipt.identity:
            receipt = None
        mtime_ns, ctime_ns = mtime_of(found), ctime_of(found)
        if mtime_ns != found.st_mtime_ns:
            self._times.look(found, filename.text)
        stamp = _stamp(version, ctime_ns)
        b3sum, root = (None, None) if folder else view.digests_of(filename.text, stamp)
        if receipt is not None and (folder or self._is_sealed(receipt, ctime_ns)):
            root = receipt.root
        return FileEntry(
            filename=filename,
            folder=folder,
            filesize=0 if folder else found.st_size,
            mtime_ns=mtime_ns,
            mode=stat.S_IMODE(found.st_mode) & 0o777,
            version=version,
            file_id=bytes(16) if receipt is None else receipt.file_id,
            filetype=_guess(filename.text, folder) if receipt is None else receipt.filetype,
            root=root,
            b3sum=b3sum,
            stamp=stamp,
            committed_root=None if receipt is None or folder else receipt.root,
        )

    def files(
        self, folder: str, recursive: bool, cursor: str, limit: int, left_out: LeftOut | None = None
    ) -> tuple[list[FileEntry], str]:
        """A page of entries; see the port."""
        found, following = self._listings.page(folder, recursive, cursor, limit, left_out)
        with self._ledger.read() as view:
            return [self._entry(view, name, status) for name, status in found], following

    # -- reading

    def open_file(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> LocalReader:
        """Open a file by name or id; see the port."""
        if filename is None:
            filename = self._name_of(file_id, within)
        fd, found = self.open_to_read(filename)
        try:
            if found.st_size > FILESIZE_MAX:
                raise NotPermitted(
                    f"the file has {found.st_size} bytes; {FILESIZE_MAX} are the most that travel"
                )
            with self._ledger.read() as view:
                entry = self._entry(view, filename, found)
            if file_id is not None and entry.file_id != bytes(16):
                entry = replace(entry, file_id=file_id)  # it has several where the same was sent again
            return LocalReader(self, entry, fd, self._descriptors)
        except BaseException:
            os.close(fd)
            raise

    def open_to_read(self, filename: SafeName) -> tuple[int, os.stat_result]:
        """Open a file; returns its descriptor, which is the caller's, and what it is. Raises UnknownFile, Refused."""
        folder, _, last = filename.text.rpartition("/")
        with Folders(self._root_fd) as folders:
            try:
                return open_to_read(folders.open(folder), last.encode())
            except OSError as exc:
                raise _unknown(refusal_of_one(exc)) from exc

    def _name_of(self, file_id: bytes | None, within: SafeName | None) -> SafeName:
        with self._ledger.read() as view:
            found = None if file_id is None else view.receipt(file_id)
        # What is nobody's is judged as what is foreign, so that it takes the same work (BP1-PRN-003).
        receipt = found or ReceiptRecord.unpack(_NOBODYS.file_id, _NOBODYS_RECORD)
        if not is_within(receipt.stored_as, within) or found is None or not self.is_true(found):
            raise UnknownFile
        return SafeName.parse(found.stored_as)


def _stamp(version: bytes, ctime_ns: int) -> bytes:
    return version + ctime_ns.to_bytes(8, "big", signed=True)


def _is_served(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)


def _unknown(error: BlockprotoError) -> BlockprotoError:
    """What stands in the way of a path that is read is nobody's business."""
    return UnknownFile() if isinstance(error, NotPermitted) else error


def _guess(name: str, folder: bool) -> str:
    if folder:
        return FOLDER_FILETYPE
    last = name.rpartition("/")[2]
    return (
        mimetypes.guess_type(f"./{last}")[0] or _UNKNOWN_FILETYPE
    )  # "data:…" alone would be taken for a URL

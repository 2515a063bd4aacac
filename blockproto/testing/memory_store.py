"""MemoryStore: a store in memory for tests, with two layers as a disk has: written, and durable.

What ``write`` writes is volatile until ``commit`` copies it to the durable layer together with its records.
``survivor`` is the store as a power cut would leave it. Faults are switches: ``room`` bytes until the disk is
full, ``broken`` for a medium that reports errors.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import inf

from blake3 import blake3

from ..common.blocks import BLOCK_LENGTH, BlockSet
from ..common.names import SafeName
from ..errors import (
    BlockprotoError,
    FileExists,
    NotEmpty,
    NotPermitted,
    StoreFailed,
    StoreFull,
    UnknownFile,
    UnknownUpload,
)
from ..store import (
    FOLDER_FILETYPE,
    ROUNDS_MAX,
    Adopt,
    BlockDone,
    Capabilities,
    Discard,
    Facts,
    FileEntry,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    LeftOut,
    Outcome,
    Prefix,
    RecordB3sum,
    Remove,
    StoredFile,
    Tidy,
    Undecided,
    UploadEntry,
    UploadKey,
    Work,
)
from ..store.rules import (
    EXPIRY_MS,
    Shape,
    check_attempt,
    check_block,
    check_brief,
    check_finish,
    check_receipt,
    first_free,
    free_names,
    is_within,
    outcome_of,
    sourceid_after,
)


@dataclass(slots=True)
class _Begun:
    """What is durable of an unfinished upload."""

    facts: Facts
    file_id: bytes
    attempt: int
    expires_ms: int
    shape: Shape
    digests: dict[int, bytes] = field(default_factory=dict)
    prefixes: dict[int, Prefix] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _File:
    """A finished file or folder."""

    entry: FileEntry
    content: bytes = b""
    file_ids: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Receipt:
    """A receipt, the version of its file, and the rule it was committed by."""

    stored: StoredFile
    version: bytes
    if_exists: IfExists


def _left_as(key: UploadKey, entry: FileEntry, reader: bool) -> StoredFile:
    """What has the name was left; with what a reader may know of it."""
    known = reader and not entry.folder
    file_id, root = entry.file_id if known else bytes(16), (entry.root if known else None) or bytes(32)
    filesize = entry.filesize if known else 0
    return StoredFile(key.sourceid, file_id, root, filesize, entry.filename.text, left=True)


def _upload_entry(key: UploadKey, begun: _Begun) -> UploadEntry:
    return UploadEntry(
        key=key,
        file_id=begun.file_id,
        filename=begun.facts.filename,
        filetype=begun.facts.filetype,
        filesize=begun.facts.filesize,
        position=BlockSet((blockno, 1) for blockno in begun.digests).position(begun.shape.known_end),
        held_count=len(begun.digests),
        expires_ms=begun.expires_ms,
        taken=len(begun.content),
    )


def _is_same(there: _File, work: Finish | Adopt) -> bool:
    """Whether a file is that of ``work``, by its size and root.

    Raises:
        Undecided: nobody has read it yet.
    """
    filesize = work.filesize if isinstance(work, Finish) else work.facts.filesize
    if not work.reader or there.entry.folder or there.entry.filesize != filesize:
        return False
    if there.entry.root is None and work.rounds < ROUNDS_MAX:
        raise Undecided((there.entry.filename.text,))
    return there.entry.root == work.root


class MemoryUpload:
    """An upload of a MemoryStore; the port's ``Upload``."""

    def __init__(
        self, store: MemoryStore, key: UploadKey, begun: _Begun, written: bytearray, brief: bool = False
    ) -> None:
        self.key = key
        self.facts = begun.facts
        self.file_id = begun.file_id
        self.attempt = begun.attempt
        self.expires_ms: int | None = begun.expires_ms
        self.held = BlockSet((blockno, 1) for blockno in sorted(begun.digests))
        self.short_end = begun.shape.short_end
        self.prefixes = dict(begun.prefixes)
        self.written = written
        self.brief = brief
        self._store = store

    @property
    def in_memory(self) -> bool:
        """See the port."""
        return False

    def write(self, position: int, piece: memoryview) -> None:
        """Write to the volatile layer."""
        if not self.brief and not self._store.is_alive(self):
            raise UnknownUpload("the upload has ended")
        self._store.take_room(max(0, position + len(piece) - len(self.written)))
        put_bytes(self.written, position, piece)

    def read_into(self, position: int, view: memoryview) -> int:
        """Read from the volatile layer."""
        part = self.written[position : position + len(view)]
        view[: len(part)] = part
        return len(part)

    def digest(self, blockno: int) -> bytes | None:
        """The durable digest of a block."""
        return self._store.digest(self.key, blockno)

    def close(self) -> None:
        """Drop the bytes of a brief file; else nothing is open."""
        if self.brief:
            self.written.clear()


class MemoryReader:
    """A finished file of a MemoryStore; the port's ``StoredReader``."""

    def __init__(self, entry: FileEntry, content: bytes) -> None:
        self.entry = entry
        self._content = content

    def read_into(self, position: int, view: memoryview) -> int:
        """Copy from the content the file had when it was opened."""
        part = self._content[position : position + len(view)]
        view[: len(part)] = part
        return len(part)

    def unchanged(self) -> bool:
        """Always: an opened file keeps its bytes."""
        return True

    def sync(self) -> None:
        """What is committed is durable."""

    def close(self) -> None:
        """Nothing is open."""


class MemoryStore:
    """Uploads and files in dictionaries; the port's ``FileStore``.

    Args:
        now_ms: the clock, Unix ms.
        first: position of the first byte wanted, for ranged downloads.

    Attributes:
        room: bytes that still fit, or None for no limit.
        broken: raise StoreFailed from the next commit on.
    """

    capabilities = Capabilities(modes=True, folders=True, replaced_readable_s=inf)

    def __init__(self, *, now_ms: Callable[[], int] = lambda: 1_800_000_000_000, first: int = 0) -> None:
        self.incarnation = 1
        self.room: int | None = None
        self.broken = False
        self._closed = False
        self._now_ms = now_ms
        self._first = first
        self._secret = os.urandom(32)
        self._written: dict[UploadKey, bytearray] = {}
        self._opened: dict[UploadKey, _Begun] = {}
        self._begun: dict[UploadKey, _Begun] = {}
        self._receipts: dict[UploadKey, _Receipt] = {}
        self._files: dict[str, _File] = {}
        self._version = 0

    # -- faults

    def survivor(self) -> MemoryStore:
        """The store as it is after a power cut now: nothing but what was committed."""
        twin = MemoryStore(now_ms=self._now_ms, first=self._first)
        twin.incarnation, twin._secret, twin._version = self.incarnation, self._secret, self._version
        twin._begun = copy.deepcopy(self._begun)
        twin._written = {key: bytearray(begun.content) for key, begun in twin._begun.items()}
        twin._receipts, twin._files = dict(self._receipts), dict(self._files)
        return twin

    def take_room(self, length: int) -> None:
        """Use ``length`` bytes; raises StoreFull if they do not fit."""
        if self.room is not None:
            if length > self.room:
                raise StoreFull
            self.room -= length

    def is_alive(self, upload: MemoryUpload) -> bool:
        """Whether an upload was neither committed nor discarded."""
        return self._written.get(upload.key) is upload.written

    # -- uploads

    def open_upload(
        self, key: UploadKey, facts: Facts, attempt: int, reader: bool = False
    ) -> MemoryUpload | StoredFile:
        """See the port."""
        receipt = self._receipt(key, facts.if_exists)
        if receipt is not None:
            return receipt
        left = self._judge_name(key, facts, reader)
        if left is not None:
            return left
        begun = self._begun.get(key) or self._opened.get(key)
        if begun is None:
            begun = self._opened[key] = self._begin(key, facts)
        written = self._written.setdefault(key, bytearray())
        if self.room is not None and facts.filesize is not None and facts.filesize - len(written) > self.room:
            raise StoreFull
        return MemoryUpload(self, key, begun, written)

    def check_parent(self, name: SafeName) -> None:
        """See the port."""
        above = name.text
        while "/" in above:
            above = above.rpartition("/")[0]
            there = self._files.get(above)
            if there is not None and not there.entry.folder:
                raise NotPermitted("something that is no folder stands in the path")

    def _judge_name(self, key: UploadKey, facts: Facts, reader: bool) -> StoredFile | None:
        there = self._files.get(facts.filename.text)
        if there is None or facts.if_exists in (IfExists.KEEP, IfExists.REPLACE):
            return None
        folder, entry = facts.filetype == FOLDER_FILETYPE, there.entry
        if facts.if_exists is IfExists.REFUSE:
            same_size = reader and not entry.folder and facts.filesize in (None, entry.filesize)
            if same_size or (folder and entry.folder):
                return None
            raise FileExists
        if folder and not entry.folder:
            raise FileExists("a file has the name of the folder")
        if facts.if_exists is IfExists.UPDATE and not folder:
            if entry.folder:
                raise NotPermitted("a folder is not replaced by a file")
            if facts.mtime_ns is not None and facts.mtime_ns > entry.mtime_ns:
                return None
        return _left_as(key, entry, reader)

    def may_be_there(self, facts: Facts) -> bool:
        """See the port."""
        there = self._files.get(facts.filename.text)
        if there is None:
            return False
        return facts.if_exists is IfExists.KEEP or there.entry.filesize == facts.filesize

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> MemoryUpload:
        """See the port."""
        return MemoryUpload(self, key, self._begin(key, facts), bytearray(), brief=True)

    def commit(self, batch: Sequence[Work]) -> None:
        """See the port."""
        if self.broken or self._closed:
            raise StoreFailed("the store is closed, or was told to break")
        for work in batch:
            try:
                work.outcome = self._do(work)
            except BlockprotoError as error:
                work.outcome = outcome_of(error)

    def close(self) -> None:
        """See the port."""
        self._closed = True

    def digest(self, key: UploadKey, blockno: int) -> bytes | None:
        """The durable digest of a block of an unfinished upload."""
        begun = self._begun.get(key)
        return None if begun is None else begun.digests.get(blockno)

    def _begin(self, key: UploadKey, facts: Facts) -> _Begun:
        file_id = blake3(key.principal + key.sourceid, key=self._secret).digest(16)
        return _Begun(facts, file_id, 0, self._now_ms() + EXPIRY_MS, Shape(self._first, facts.filesize))

    def _do(self, work: Work) -> Outcome:
        match work:
            case BlockDone():
                self._keep_block(work)
            case Finish():
                return self._finish(work)
            case Adopt():
                return self._adopt(work)
            case Forget():
                self._forget(work)
            case KeepPrefixes():
                self._keep_prefixes(work)
            case Discard():
                self._discard(work)
            case Remove():
                self._remove(work)
            case RecordB3sum():
                self._record_b3sum(work)
            case Tidy():
                pass
        return None

    def _allowed(self, upload: object, attempt: int) -> _Begun:
        """The upload, if ``attempt`` may do something to it."""
        assert isinstance(upload, MemoryUpload)
        begun = self._begun.get(upload.key) or self._opened.get(upload.key)
        if begun is None:
            raise UnknownUpload
        check_attempt(begun.attempt, attempt)
        return begun

    def _record(self, work: BlockDone | Forget | KeepPrefixes, begun: _Begun) -> None:
        begun.attempt = work.attempt
        self._begun.setdefault(work.upload.key, begun)

    def _keep_block(self, work: BlockDone) -> None:
        begun = self._allowed(work.upload, work.attempt)
        begun.shape = check_block(begun.shape, work)
        self._record(work, begun)
        position = max(work.blockno * BLOCK_LENGTH, self._first)
        written = self._written[work.upload.key]
        put_bytes(begun.content, position, memoryview(bytes(written[position : position + work.length])))
        begun.digests[work.blockno] = work.digest
        begun.prefixes.pop(work.blockno, None)

    def _finish(self, work: Finish) -> StoredFile:
        upload = work.upload
        assert isinstance(upload, MemoryUpload)
        receipt = self._receipt(upload.key, work.facts.if_exists)
        if receipt is not None:
            return check_receipt(receipt, work)
        if upload.brief:
            check_brief(work)
            content = bytes(upload.written)
        else:
            begun = self._allowed(upload, work.attempt)
            check_finish(begun.shape, work, sorted(begun.digests.items()))
            content = bytes(begun.content[self._first : work.filesize])
        decided = self._choose(work, upload.key, upload.file_id)
        if isinstance(decided, SafeName):
            if work.veto is not None:
                raise work.veto
            decided = self._publish(work, upload, content, decided)
        self._end(upload.key)
        return decided

    def _adopt(self, work: Adopt) -> StoredFile | None:
        decided = self._choose(work, work.key, self._begin(work.key, work.facts).file_id)
        if isinstance(decided, SafeName):
            return None
        self._end(work.key)
        return decided

    def _end(self, key: UploadKey) -> None:
        for table in (self._begun, self._opened, self._written):
            table.pop(key, None)

    def _publish(self, work: Finish, upload: MemoryUpload, content: bytes, name: SafeName) -> StoredFile:
        folder = work.facts.filetype == FOLDER_FILETYPE
        for at in range(1, len(name.components)):
            self._make_folder(SafeName.parse("/".join(name.components[:at])))
        self._version += 1
        entry = FileEntry(
            filename=name,
            folder=folder,
            filesize=len(content),
            mtime_ns=work.facts.mtime_ns if work.facts.mtime_ns is not None else self._now_ms() * 1_000_000,
            mode=work.facts.mode if work.facts.mode is not None else 0o644,
            version=self._version.to_bytes(16, "big"),
            file_id=upload.file_id,
            filetype=work.facts.filetype,
            root=work.root,
            stamp=self._version.to_bytes(16, "big"),
        )
        self._files[name.text] = _File(entry, content)
        receipt = StoredFile(upload.key.sourceid, upload.file_id, work.root, work.filesize, name.text)
        self._receipts[upload.key] = _Receipt(receipt, entry.version, work.facts.if_exists)
        return receipt

    def _choose(self, work: Finish | Adopt, key: UploadKey, file_id: bytes) -> SafeName | StoredFile:
        """The name a file gets; or the receipt, if it is there already or what is there is left."""
        facts = work.facts
        there = self._files.get(facts.filename.text)
        folder = facts.filetype == FOLDER_FILETYPE
        if there is None:
            return facts.filename
        if folder and not there.entry.folder:
            raise FileExists("a file has the name of the folder")
        if facts.if_exists is IfExists.SKIP or (facts.if_exists is IfExists.UPDATE and folder):
            return _left_as(key, there.entry, work.reader)
        if folder:
            return facts.filename
        if facts.if_exists in (IfExists.REPLACE, IfExists.UPDATE) and there.entry.folder:
            raise NotPermitted("a folder is not replaced by a file")
        if facts.if_exists is IfExists.UPDATE and (facts.mtime_ns or -(1 << 63)) <= there.entry.mtime_ns:
            return _left_as(key, there.entry, work.reader)
        names = [facts.filename]
        if facts.if_exists is IfExists.KEEP:
            names += takewhile(lambda name: name.text in self._files, free_names(facts.filename))
        same = next(
            (kept for name in names if (kept := self._files[name.text]) and _is_same(kept, work)), None
        )
        if same is not None:
            return self._join(work, key, file_id, same)
        if facts.if_exists is IfExists.REFUSE:
            raise FileExists
        if facts.if_exists is IfExists.KEEP:
            return first_free(facts.filename, lambda name: name.text not in self._files)
        return facts.filename

    def _join(self, work: Finish | Adopt, key: UploadKey, file_id: bytes, there: _File) -> StoredFile:
        """The file has one more receipt; where it was to be replaced it gets mtime and mode."""
        facts, entry = work.facts, there.entry
        if facts.if_exists in (IfExists.REPLACE, IfExists.UPDATE):
            mtime_ns = entry.mtime_ns if facts.mtime_ns is None else facts.mtime_ns
            mode = entry.mode if facts.mode is None else facts.mode
            there.entry = replace(entry, mtime_ns=mtime_ns, mode=mode)
        there.file_ids.add(file_id)
        name = entry.filename.text
        stored = StoredFile(key.sourceid, file_id, work.root, entry.filesize, name, entry.b3sum)
        self._receipts[key] = _Receipt(stored, entry.version, facts.if_exists)
        return replace(stored, there=True)

    def _make_folder(self, name: SafeName) -> None:
        there = self._files.get(name.text)
        if there is None:
            self._version += 1
            version = self._version.to_bytes(16, "big")
            entry = FileEntry(
                name, True, 0, self._now_ms() * 1_000_000, 0o755, version, filetype=FOLDER_FILETYPE
            )
            self._files[name.text] = _File(entry)
        elif not there.entry.folder:
            raise NotPermitted("a file stands where a folder should be")

    def _forget(self, work: Forget) -> None:
        begun = self._allowed(work.upload, work.attempt)
        self._record(work, begun)
        for blockno in work.blocknos:
            begun.digests.pop(blockno, None)

    def _keep_prefixes(self, work: KeepPrefixes) -> None:
        begun = self._allowed(work.upload, work.attempt)
        self._record(work, begun)
        begun.prefixes = dict(work.prefixes)
        written = self._written[work.upload.key]
        for blockno, prefix in work.prefixes.items():
            position = max(blockno * BLOCK_LENGTH, self._first)
            put_bytes(
                begun.content, position, memoryview(bytes(written[position : position + prefix.length]))
            )

    def _discard(self, work: Discard) -> None:
        begun = self._begun.get(work.key) or self._opened.get(work.key)
        if begun is None:
            raise UnknownUpload
        if work.expired_ms is not None and begun.expires_ms > work.expired_ms:
            return
        for table in (self._begun, self._opened, self._written):
            table.pop(work.key, None)

    # -- finished files

    def _receipt(self, key: UploadKey, if_exists: IfExists | None = None) -> StoredFile | None:
        receipt = self._receipts.get(key)
        if receipt is None or if_exists not in (None, receipt.if_exists):
            return None
        there = self._files.get(receipt.stored.stored_as)
        if there is None or there.entry.version != receipt.version:
            return None
        return replace(receipt.stored, b3sum=there.entry.b3sum)

    def receipts(
        self, principal: bytes, sourceids: Iterable[bytes], if_exists: IfExists | None = None
    ) -> list[StoredFile]:
        """See the port."""
        found = (self._receipt(UploadKey(principal, sourceid), if_exists) for sourceid in sourceids)
        return [receipt for receipt in found if receipt is not None]

    def _find(self, filename: SafeName | None, file_id: bytes | None) -> _File:
        for kept in self._files.values():
            if kept.entry.filename == filename or (
                filename is None and file_id != bytes(16) and file_id in (kept.entry.file_id, *kept.file_ids)
            ):
                return kept
        raise UnknownFile

    def stat(self, filename: SafeName) -> FileEntry:
        """See the port."""
        return self._find(filename, None).entry

    def files(
        self, folder: str, recursive: bool, cursor: str, limit: int, left_out: LeftOut | None = None
    ) -> tuple[list[FileEntry], str]:
        """See the port: nothing is ever left out."""
        if folder and not self._find(SafeName.parse(folder), None).entry.folder:
            raise UnknownFile("it is no folder")
        above = folder + "/" if folder else ""
        names = [
            name
            for name in sorted(self._files, key=str.encode)
            if name.startswith(above)
            and (recursive or "/" not in name[len(above) :])
            and name.encode() > cursor.encode("utf-8", "surrogateescape")
        ]
        page = [self._files[name].entry for name in names[:limit]]
        return page, names[limit - 1] if len(names) > limit else ""

    def open_file(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> MemoryReader:
        """See the port."""
        kept = self._find(filename, file_id)
        if filename is None and not is_within(kept.entry.filename.text, within):
            raise UnknownFile
        if kept.entry.folder:
            raise NotPermitted("it is a folder")
        entry = kept.entry if file_id is None else replace(kept.entry, file_id=file_id)
        return MemoryReader(entry, kept.content)

    def uploads(self, principal: bytes, cursor: str, limit: int) -> tuple[list[UploadEntry], str]:
        """See the port."""
        last = sourceid_after(cursor)
        found = sorted(
            (key.sourceid, key, begun) for key, begun in self._begun.items() if key.principal == principal
        )
        page = [(key, begun) for at, key, begun in found if not last or at > last]
        entries = [_upload_entry(key, begun) for key, begun in page[:limit]]
        return entries, entries[-1].key.sourceid.hex() if len(page) > limit else ""

    def upload_of(self, principal: bytes, file_id: bytes) -> UploadEntry | None:
        """See the port."""
        mine = ((key, begun) for key, begun in self._begun.items() if key.principal == principal)
        return next((_upload_entry(key, begun) for key, begun in mine if begun.file_id == file_id), None)

    def sweep(self, now_ms: int) -> Sequence[Work]:
        """See the port."""
        return [Discard(key, now_ms) for key, begun in self._begun.items() if begun.expires_ms <= now_ms]

    def expiry_now_ms(self) -> int:
        """See the port: the wall clock, believed."""
        return time.time_ns() // 1_000_000

    def _remove(self, work: Remove) -> None:
        kept = self._find(work.filename, work.file_id)
        name = kept.entry.filename.text
        inside = [other for other in self._files if other.startswith(name + "/")]
        if inside and not work.recursive:
            raise NotEmpty
        for gone in [name, *inside]:
            del self._files[gone]

    def _record_b3sum(self, work: RecordB3sum) -> None:
        kept = self._find(work.filename, None)
        if kept.entry.version == work.version:
            b3sum, root = work.b3sum or kept.entry.b3sum, work.root or kept.entry.root
            kept.entry = replace(kept.entry, b3sum=b3sum, root=root)


def put_bytes(content: bytearray, position: int, piece: memoryview) -> None:
    """Write ``piece`` at ``position`` of ``content``, which grows with zeros as a sparse file does."""
    if len(content) < position:
        content.extend(bytes(position - len(content)))
    content[position : position + len(piece)] = piece

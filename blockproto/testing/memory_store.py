"""MemoryStore: a store in memory for tests, with two layers as a disk has: written, and durable.

What ``write`` writes is volatile until ``decide`` copies it to the durable layer together with its records.
``survivor`` is the store as a power cut would leave it. Faults are switches: ``room`` bytes until the disk is
full, ``broken`` for a medium that reports errors.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from blake3 import blake3

from ..common.blocks import BLOCK_LENGTH, BlockSet
from ..common.names import SafeName
from ..errors import (
    BlockprotoError,
    StoreFailed,
    StoreFull,
    UnknownUpload,
)
from ..store import (
    Adopt,
    AskFirst,
    BlockDone,
    Capabilities,
    Discard,
    Facts,
    FileEntry,
    FileOutcome,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    LeftOut,
    Outcome,
    RecordB3sum,
    Remove,
    StoredFile,
    StoreFiles,
    Tidy,
    UploadEntry,
    UploadKey,
    WholeFile,
    Work,
)
from ..store.rules import EXPIRY_MS, check_receipt, outcome_of, sourceid_after
from ..store.upload_state import Shape, UploadState, apply, check_brief
from .memory_files import MemoryFile, MemoryFiles, MemoryReader


@dataclass(slots=True)
class _Begun:
    """What is durable of an unfinished upload."""

    facts: Facts
    file_id: bytes
    expires_ms: int
    state: UploadState
    content: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class _Receipt:
    """A receipt, the version of its file, and the rule it was committed by."""

    stored: StoredFile
    version: bytes
    if_exists: IfExists


def _held(begun: _Begun) -> BlockSet:
    return BlockSet((blockno, 1) for blockno in sorted(begun.state.digests))


def _upload_entry(key: UploadKey, begun: _Begun) -> UploadEntry:
    return UploadEntry(
        key=key,
        file_id=begun.file_id,
        filename=begun.facts.filename,
        filetype=begun.facts.filetype,
        filesize=begun.facts.filesize,
        position=_held(begun).position(begun.state.shape.known_end),
        held_count=len(begun.state.digests),
        expires_ms=begun.expires_ms,
        taken=len(begun.content),
    )


class MemoryUpload:
    """An upload of a MemoryStore; the port's ``Upload``."""

    def __init__(
        self, store: MemoryStore, key: UploadKey, begun: _Begun, written: bytearray, brief: bool = False
    ) -> None:
        self.key = key
        self.facts = begun.facts
        self.file_id = begun.file_id
        self.attempt = begun.state.attempt
        self.expires_ms: int | None = begun.expires_ms
        self.held = _held(begun)
        self.short_end = begun.state.shape.short_end
        self.prefixes = dict(begun.state.prefixes or {})
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

    def digests(self, blocknos: Iterable[int]) -> dict[int, bytes]:
        """The durable digests of blocks."""
        return self._store.digests(self.key, blocknos)

    def close(self) -> None:
        """Drop the bytes of a brief file; else nothing is open."""
        if self.brief:
            self.written.clear()


class MemoryStore:
    """Uploads and files in dictionaries; the port's ``FileStore``.

    Args:
        now_ms: the clock, Unix ms.
        first: position of the first byte wanted, for ranged downloads.

    Attributes:
        room: bytes that still fit, or None for no limit.
        broken: raise StoreFailed from the next ``decide`` on.
    """

    capabilities = Capabilities(modes=True, folders=True, replaced_readable_s=inf)
    decisions_at_once = 1

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
        self._files = MemoryFiles(now_ms)

    # -- faults

    def survivor(self) -> MemoryStore:
        """The store as it is after a power cut now: nothing but what was committed."""
        twin = MemoryStore(now_ms=self._now_ms, first=self._first)
        twin.incarnation, twin._secret = self.incarnation, self._secret
        twin._begun = copy.deepcopy(self._begun)
        twin._written = {key: bytearray(begun.content) for key, begun in twin._begun.items()}
        twin._receipts, twin._files = dict(self._receipts), self._files.twin()
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
        left = self._files.judge_early(key, facts, reader)
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
        self._files.check_parent(name)

    def may_be_there(self, facts: Facts) -> bool:
        """See the port."""
        return self._files.may_be_there(facts)

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> MemoryUpload:
        """See the port."""
        return MemoryUpload(self, key, self._begin(key, facts), bytearray(), brief=True)

    def prepare(self, files: Sequence[WholeFile], written: Callable[[], None]) -> None:
        """See the port: there is nothing to begin with."""

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """See the port."""
        if self.broken or self._closed:
            raise StoreFailed("the store is closed, or was told to break")
        return [self._decided(work) for work in works]

    def _decided(self, work: Work) -> Outcome:
        try:
            return self._do(work)
        except BlockprotoError as error:
            return outcome_of(error)

    def close(self) -> None:
        """See the port."""
        self._closed = True

    def digests(self, key: UploadKey, blocknos: Iterable[int]) -> dict[int, bytes]:
        """The durable digests of blocks of an unfinished upload."""
        held = self._begun[key].state.digests if key in self._begun else {}
        return {blockno: held[blockno] for blockno in blocknos if blockno in held}

    def _begin(self, key: UploadKey, facts: Facts) -> _Begun:
        file_id = blake3(key.principal + key.sourceid, key=self._secret).digest(16)
        state = UploadState(Shape(self._first, facts.filesize))
        return _Begun(facts, file_id, self._now_ms() + EXPIRY_MS, state)

    def _do(self, work: Work) -> Outcome:
        match work:
            case BlockDone() | Forget() | KeepPrefixes():
                self._record(work)
            case Finish():
                return self._finish(work)
            case StoreFiles():
                return tuple(self._store_file(work, file) for file in work.files)
            case Adopt():
                return self._adopt(work)
            case Discard():
                self._discard(work)
            case Remove():
                self._files.remove(work)
            case RecordB3sum():
                self._files.record_b3sum(work)
            case Tidy():
                pass
        return None

    def _known(self, key: UploadKey) -> _Begun:
        """An upload of which something may be durable. Raises UnknownUpload."""
        begun = self._begun.get(key) or self._opened.get(key)
        if begun is None:
            raise UnknownUpload
        return begun

    def _record(self, work: BlockDone | Forget | KeepPrefixes) -> None:
        key = work.upload.key
        begun = self._known(key)
        begun.state = apply(begun.state, work)
        self._begun[key] = begun
        written: dict[int, int] = {}
        if isinstance(work, BlockDone):
            written[work.blockno] = work.length
        elif isinstance(work, KeepPrefixes):
            written = {blockno: prefix.length for blockno, prefix in work.prefixes.items()}
        for blockno, length in written.items():
            position = max(blockno * BLOCK_LENGTH, self._first)
            piece = bytes(self._written[key][position : position + length])
            put_bytes(begun.content, position, memoryview(piece))

    def _finish(self, work: Finish) -> StoredFile:
        upload = work.upload
        assert isinstance(upload, MemoryUpload)
        receipt = self._receipt(upload.key, work.facts.if_exists)
        if receipt is not None:
            return check_receipt(receipt, work.root, work.filesize)
        if upload.brief:
            check_brief(work)
            content = bytes(upload.written)
        else:
            begun = self._known(upload.key)
            apply(begun.state, work)
            content = bytes(begun.content[self._first : work.filesize])
        decided = self._choose(work, upload.key, upload.file_id)
        if isinstance(decided, SafeName):
            if work.veto is not None:
                raise work.veto
            _must_be_asked(work, upload.file_id)
            decided = self._publish(work, upload, content, decided)
        self._end(upload.key)
        return replace(decided, new=not decided.left)

    def _store_file(self, work: StoreFiles, file: WholeFile) -> FileOutcome:
        """One of several whole files, as a file without OPEN."""
        length = len(file.content)
        upload = self.begin_brief(file.key, file.facts, 0)
        blocks = (BlockDone(upload, 0, 0, length, file.root),) if length else ()
        finish = Finish(
            upload,
            0,
            file.root,
            length,
            file.facts,
            blocks,
            work.reader,
            work.rounds,
            file.veto,
            work.unasked,
        )
        try:
            upload.write(0, memoryview(file.content))
            return self._finish(finish)
        except BlockprotoError as error:
            return outcome_of(error)

    def _adopt(self, work: Adopt) -> StoredFile | None:
        decided = self._choose(work, work.key, self._begin(work.key, work.facts).file_id)
        if isinstance(decided, SafeName):
            return None
        self._end(work.key)
        return replace(decided, new=not decided.left)

    def _end(self, key: UploadKey) -> None:
        for table in (self._begun, self._opened, self._written):
            table.pop(key, None)

    def _publish(self, work: Finish, upload: MemoryUpload, content: bytes, name: SafeName) -> StoredFile:
        entry = self._files.put(work, upload.file_id, content, name)
        receipt = StoredFile(upload.key.sourceid, upload.file_id, work.root, work.filesize, name.text)
        self._receipts[upload.key] = _Receipt(receipt, entry.version, work.facts.if_exists)
        return receipt

    def _choose(self, work: Finish | Adopt, key: UploadKey, file_id: bytes) -> SafeName | StoredFile:
        """The name a file gets; or the receipt, if it is there already or what is there is left."""
        chosen = self._files.choose(work, key)
        if not isinstance(chosen, MemoryFile):
            return chosen
        _must_be_asked(work, file_id)
        entry = chosen.entry
        self._files.take_facts(work.facts, file_id, chosen)
        name = entry.filename.text
        stored = StoredFile(key.sourceid, file_id, work.root, entry.filesize, name, entry.b3sum)
        self._receipts[key] = _Receipt(stored, entry.version, work.facts.if_exists)
        return replace(stored, there=True)

    def _discard(self, work: Discard) -> None:
        begun = self._known(work.key)
        if work.expired_ms is None or begun.expires_ms <= work.expired_ms:
            self._end(work.key)

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

    def stat(self, filename: SafeName) -> FileEntry:
        """See the port."""
        return self._files.find(filename, None).entry

    def files(
        self, folder: str, recursive: bool, cursor: str, limit: int, left_out: LeftOut | None = None
    ) -> tuple[list[FileEntry], str]:
        """See the port: nothing is ever left out."""
        return self._files.page(folder, recursive, cursor, limit)

    def open_file(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> MemoryReader:
        """See the port."""
        return self._files.open_to_read(filename, file_id, within)

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

    def sweep(self) -> Sequence[Work]:
        """See the port."""
        now_ms = self._now_ms()
        return [Discard(key, now_ms) for key, begun in self._begun.items() if begun.expires_ms <= now_ms]

    def expiry_now_ms(self) -> int:
        """See the port: the clock is believed."""
        return self._now_ms()


def _must_be_asked(work: Finish | Adopt, file_id: bytes) -> None:
    if work.unasked:
        raise AskFirst(file_id)


def put_bytes(content: bytearray, position: int, piece: memoryview) -> None:
    """Write ``piece`` at ``position`` of ``content``, which grows with zeros as a sparse file does."""
    if len(content) < position:
        content.extend(bytes(position - len(content)))
    content[position : position + len(piece)] = piece

"""LocalStore: finished files in a folder, what is unfinished in ``.blockproto`` beside them, and a ledger in LMDB.

    FOLDER/                     the served folder: finished files under their names, and nothing else
        .blockproto/            (or --state) lock, ledger/, partials/STATE/

Partials lie on the served folder's own mount, so that a rename gives them their names; with ``--state`` on
another mount they stay in ``FOLDER/.blockproto``. Each state has a folder of its own for them and sweeps no other. One
process has a store open: it holds a lock on the served folder, and one on its state.

``commit`` is in ``batch.py``, opening in ``opening.py``, finished files in ``finished_files.py``.

Spec: spec/store.md.
"""

from __future__ import annotations

import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ...common.blocks import BLOCK_LENGTH
from ...common.names import SafeName
from ...errors import StoreFailed, StoreFull
from .. import Facts, FileEntry, IfExists, LeftOut, StoredFile, UploadEntry, UploadKey, Work
from ..folder_io import SYNC_EACH_MAX, Folders, look, remove_file
from ..os_errors import of_one_file
from ..rules import EXPIRY_MS, Shape, sourceid_after
from .batch import Batch
from .brief_upload import BriefUpload
from .descriptors import Descriptors, resting_max
from .expiry_clock import ClockRecord, ExpiryClock, boot_ms
from .expiry_sweep import Sweeper
from .finished_files import SEALS_MAX, SEALS_PAID, FinishedFiles, LocalReader
from .free_space import FreeSpace
from .ledger import Ledger, View
from .name_choice import early_choice
from .name_collisions import NameCollisions
from .opening import Opened, open_places
from .partial import Partial
from .publishing import Owed
from .records import UploadRecord
from .recovery import recover, remove_orphans
from .threads import Threads
from .upload import LocalUpload

CARRIED_LENGTH_MAX = 32 << 20
"""Bytes of brief files that are carried in memory at most until they are committed; more are written as they come."""


class Paid(NamedTuple):
    """What a transaction tells the ledger besides its works.

    Attributes:
        owed: how many of the things it was owed.
        seals: the file ids whose seals it was told.
        clock: what it was told of the clock, or None.
    """

    owed: int
    seals: list[bytes]
    clock: ClockRecord | None


def unix_ms() -> int:
    """The time, Unix ms."""
    return time.time_ns() // 1_000_000


class LocalStore:
    """The port's ``FileStore`` on a Linux file system; build it with ``open``.

    Attributes:
        incarnation: rises when a position may go down.
        findings: what the operator is to know of how the store was found, a sentence each, losses first.
    """

    def __init__(
        self,
        opened: Opened,
        now_ms: Callable[[], int],
        portable: bool = False,
        boot_ms: Callable[[], int] = boot_ms,
    ) -> None:
        self.root_fd = opened.root_fd
        self.partials_fd = opened.partials_fd
        self.ledger: Ledger = opened.ledger
        self._now_ms = now_ms
        self.portable = portable
        self.descriptors = Descriptors(resting_max())
        self.room = FreeSpace(opened.partials_fd)
        self.finished = FinishedFiles(opened.root_fd, opened.ledger, self.descriptors)
        self.owed: list[Owed] = []
        self.findings: list[str] = list(opened.findings)
        with self.ledger.read() as view:
            self.state = view.state()
            self.clock = ExpiryClock(view.clock() or ClockRecord(0, 0), now_ms, boot_ms)
        self.clock.look()
        self._opened = opened
        self.recorded: dict[bytes, UploadKey] = {}  # by file id: the unfinished uploads that the ledger knows
        self._brief_ids = secrets.token_bytes(8)
        self._brief_count = 0
        self._carried = 0
        self._unsynced: bool | None = None
        self._failed: StoreFailed | None = None
        self._live: dict[UploadKey, LocalUpload] = {}
        self._mutex = threading.Lock()
        self._sweeper = Sweeper(self.ledger, self.finished, lambda key: key in self._live)
        self._syncers = Threads(SYNC_EACH_MAX + 1, "blockproto-sync")

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        state: Path | None = None,
        now_ms: Callable[[], int] = unix_ms,
        portable: bool = False,
        boot_ms: Callable[[], int] = boot_ms,
    ) -> LocalStore:
        """Open the store of a folder, make it where there is none, and recover what a crash left.

        Args:
            folder: the served folder; exists.
            state: where lock, ledger and partials are; default ``folder/.blockproto``.
            now_ms: the clock, Unix ms.
            portable: take only names of the profile portable (BP1-NAM-005).
            boot_ms: a clock that nobody sets, ms.

        Raises:
            NotPermitted: there is no such folder, or it cannot be written, or it is not the one that the state's partials
                lie in.
            StoreInUse: another process has it open, with whatever state, or has the state.
            StoreFull: no room for a ledger.
            StoreFailed: the ledger is damaged, or the medium reported an error.

        Durability: what the store shows is on the medium, also when the process before was killed at any point.
        """
        opened = open_places(folder, state, now_ms())
        try:
            store = cls(opened, now_ms, portable, boot_ms)
            recover(store)
        except BaseException:
            opened.close()
            raise
        return store

    def close(self) -> None:
        """Write what is owed to the ledger and let go of everything; harmless when repeated."""
        if self._opened.closed:
            return
        try:
            sealed = bool(self.finished.sealed)
            if self._failed is None and (
                self.owed or sealed or self._unsynced is not False or self.clock.at_close() is not None
            ):
                self.pay_now()
        finally:
            self.fail(StoreFailed("the store is closed"))
            self._syncers.close()
            self._opened.close()

    @property
    def incarnation(self) -> int:
        """Rises when a position may go down (u64)."""
        return self.state.incarnation

    def now_ms(self) -> int:
        """The wall time, Unix ms; a clock that is before 1970 is at its beginning."""
        return max(0, self._now_ms())

    # -- trouble

    def check_there(self, *, all_of_it: bool = True) -> None:
        """Raise StoreFailed if what was acknowledged is not where the next start would look for it; see ``Opened``."""
        self._opened.check_there(all_of_it=all_of_it)

    def check_usable(self) -> None:
        """Raise StoreFailed once the medium reported an error."""
        if self._failed is not None:
            raise StoreFailed(str(self._failed))

    def fail(self, error: StoreFailed) -> StoreFailed:
        """Refuse everything from now on; returns ``error``."""
        if self._failed is None:
            self._failed = error
        return error

    # -- uploads

    @of_one_file
    def open_upload(
        self, key: UploadKey, facts: Facts, attempt: int, reader: bool = False
    ) -> LocalUpload | StoredFile:
        """See the port. Reads the ledger and no file data; creates nothing."""
        self.check_usable()
        with self.ledger.read() as view:
            receipt = self.finished.true_receipt(view, self.state.file_id(key), None, facts.if_exists)
            if receipt is not None:
                return receipt
            self._check_portable(facts.filename)
            left = self._judge_name(view, key, facts, reader)
            if left is not None:
                return left
            record = view.upload(key)
            if record is None or key in self._ended_keys():
                upload = self._open_new(key, facts)
            else:
                upload = self._open_recorded(record)
                upload.held = view.held(record.storage_id)
                prefixes = view.prefixes(record.storage_id).items()
                upload.prefixes = {blockno: kept for blockno, kept in prefixes if blockno not in upload.held}
        try:
            self._check_room(upload)
        except BaseException:
            upload.close()
            raise
        return upload

    def _judge_name(self, view: View, key: UploadKey, facts: Facts, reader: bool) -> StoredFile | None:
        """Say at once what ``commit`` would say after all bytes have come (BP1-COM-020, 026)."""
        if facts.if_exists in (IfExists.KEEP, IfExists.REPLACE):
            return None
        with Folders(self.root_fd) as folders:
            return early_choice(self.finished, folders, view, key, facts, reader)

    @of_one_file
    def may_be_there(self, facts: Facts) -> bool:
        """See the port."""
        found = self.finished.look(facts.filename.text)
        if found is None:
            return False
        same_size = stat.S_ISREG(found.st_mode) and found.st_size == facts.filesize
        return same_size or facts.if_exists is IfExists.KEEP

    def _check_portable(self, name: SafeName) -> None:
        """Refuse at once what ``commit`` would refuse after all bytes have come."""
        if self.portable:
            with Folders(self.root_fd) as folders:
                NameCollisions(folders).check(name)

    @of_one_file
    def check_parent(self, name: SafeName) -> None:
        """See the port."""
        parent = name.text.rpartition("/")[0]
        if not parent:
            return
        with Folders(self.root_fd) as folders, suppress(FileNotFoundError):  # it will be made
            folders.open(parent)

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> BriefUpload:
        """See the port. Makes no system call."""
        if self._failed is not None:
            self.check_usable()
        self._brief_count += 1
        return BriefUpload(self, key, facts, self._brief_ids + self._brief_count.to_bytes(8, "big"))

    def carry(self, length: int) -> int:
        """Take ``length`` bytes of memory for a brief file, or give ``-length`` back; returns what was taken, all or 0."""
        with self._mutex:
            if length > 0 and self._carried + length > CARRIED_LENGTH_MAX:
                return 0
            self._carried += length
            return length

    def _new_record(self, key: UploadKey, facts: Facts) -> UploadRecord:
        return UploadRecord(
            key=key,
            facts=facts,
            storage_id=secrets.token_bytes(16),
            file_id=self.state.file_id(key),
            attempt=0,
            expires_ms=self.clock.expires_ms(EXPIRY_MS),
            shape=Shape(0, facts.filesize),
        )

    def _open_new(self, key: UploadKey, facts: Facts) -> LocalUpload:
        with self._mutex:
            live = self._live.get(key)
            if live is not None:
                return LocalUpload(self, live.record, live.partial)
            record = self._new_record(key, facts)
            partial = Partial(
                self.partials_fd,
                self.descriptors,
                self.room,
                record.storage_id,
                facts.filesize,
                mode=facts.mode,
            )
            upload = self._live[key] = LocalUpload(self, record, partial)
            return upload

    def _open_recorded(self, record: UploadRecord) -> LocalUpload:
        with self._mutex:
            live = self._live.get(record.key)
            if live is not None and live.partial.storage_id == record.storage_id:
                return LocalUpload(self, record, live.partial)
            partial = Partial(
                self.partials_fd,
                self.descriptors,
                self.room,
                record.storage_id,
                record.facts.filesize,
                exists=True,
                recorded=True,
            )
            upload = self._live[record.key] = LocalUpload(self, record, partial)
            return upload

    def let_go(self, upload: LocalUpload) -> None:
        """A user of an upload closed it."""
        with self._mutex:
            live = self._live.get(upload.key)
            if upload.partial.release() and live is not None and live.partial is upload.partial:
                del self._live[upload.key]

    def end_partial(self, key: UploadKey, storage_id: bytes) -> None:
        """An upload was discarded: whoever has it open can write no more, and its bytes go.

        What cannot be removed goes as an orphan later.
        """
        with self._mutex:
            live = self._live.get(key)
            if live is not None and live.partial.storage_id == storage_id:
                del self._live[key]
                live.partial.leave()
        with suppress(OSError):
            remove_file(self.partials_fd, storage_id.hex().encode())

    def live(self, key: UploadKey) -> LocalUpload | None:
        """An upload somebody has open."""
        with self._mutex:
            return self._live.get(key)

    def _ended_keys(self) -> set[UploadKey]:
        """The uploads that ended since the ledger was told last."""
        return {owed.upload[0] for owed in list(self.owed) if owed.upload is not None}

    def has_ended(self, upload: LocalUpload) -> None:
        """An upload has its final name: the next one of its key is another."""
        upload.partial.leave()
        with self._mutex:
            live = self._live.get(upload.key)
            if live is not None and live.partial is upload.partial:
                del self._live[upload.key]

    def _check_room(self, upload: LocalUpload) -> None:
        free = self.room.free()
        filesize = upload.facts.filesize
        missing = BLOCK_LENGTH if filesize is None else filesize - len(upload.held) * BLOCK_LENGTH
        if missing > 0 and missing > free:
            raise StoreFull(
                f"there is no room on the server: {missing} more bytes are needed and {max(0, free)} are free"
            )
        if not upload.partial.recorded and self.ledger.crowded():
            raise StoreFull("the ledger is too full for new uploads")

    # -- commit

    def commit(self, batch: Sequence[Work]) -> None:
        """See the port.

        Durability: when this returns, everything with a good outcome survives a power cut.
        """
        self.check_usable()
        try:
            Batch(self, batch).run()
        except StoreFailed as exc:
            raise self.fail(exc) from exc
        except OSError as exc:
            raise self.fail(StoreFailed(f"the medium reported: {exc.strerror}")) from exc

    def pay(self, view: View, seals: int = SEALS_PAID, clock: ClockRecord | None = None) -> Paid:
        """Tell the ledger what it is owed, up to ``seals`` of the seals, and ``clock``, or the time when that is due."""
        clock = clock or self.clock.due()
        if clock is not None:
            view.put_clock(clock)
        for owed in self.owed:
            owed.pay(view)
        sealed = self.finished.sealed
        paid = list(islice(sealed, max(seals, len(sealed) - SEALS_MAX)))
        for file_id in paid:
            view.seal_receipt(file_id, sealed[file_id])
        return Paid(len(self.owed), paid, clock)

    def paid(self, paid: Paid) -> None:
        """The ledger has heard of that, durably."""
        del self.owed[: paid.owed]
        for file_id in paid.seals:
            self.finished.sealed.pop(file_id, None)
        if paid.clock is not None:
            self.clock.noted(paid.clock)

    def mark_unsynced(self, view: View, unsynced: bool) -> None:
        """Note whether this transaction is followed by names whose folders are synced after it only."""
        if unsynced != self._unsynced:
            view.put_unsynced(unsynced)
        self._unsynced = unsynced

    def transaction_undone(self) -> None:
        """What the last transaction was to note was not noted."""
        self._unsynced = None

    def pay_now(self) -> None:
        """Tell the ledger what it is owed, without waiting for the next batch; on a full disk it stays owed."""
        with suppress(StoreFull):
            with self.ledger.write() as view:
                paid = self.pay(view, SEALS_MAX, self.clock.at_close())
                self.mark_unsynced(view, False)
            self.paid(paid)

    def in_threads(self, tasks: Sequence[Callable[[], None]]) -> list[Future[None]]:
        """Run syncs beside each other."""
        return self._syncers.run(tasks)

    # -- finished files

    def receipts(
        self, principal: bytes, sourceids: Iterable[bytes], if_exists: IfExists | None = None
    ) -> list[StoredFile]:
        """See the port."""
        file_ids = (self.state.file_id(UploadKey(principal, sourceid)) for sourceid in sourceids)
        return self.finished.receipts(file_ids, if_exists)

    def stat(self, filename: SafeName) -> FileEntry:
        """See the port."""
        return self.finished.stat(filename)

    def files(
        self, folder: str, recursive: bool, cursor: str, limit: int, left_out: LeftOut | None = None
    ) -> tuple[list[FileEntry], str]:
        """See the port."""
        return self.finished.files(folder, recursive, cursor, limit, left_out)

    def open_file(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> LocalReader:
        """See the port."""
        return self.finished.open_file(filename, file_id, within)

    def uploads(self, principal: bytes, cursor: str, limit: int) -> tuple[list[UploadEntry], str]:
        """See the port."""
        entries: list[UploadEntry] = []
        over = self._ended_keys()
        last = sourceid_after(cursor)
        after = b"u" + principal + (last + b"\0" if last else b"")
        with self.ledger.read() as view:
            for record in view.uploads(principal, after):
                if record.key in over:
                    continue
                if len(entries) == limit:
                    return entries, entries[-1].key.sourceid.hex()
                entries.append(self._upload_entry(view, record))
        return entries, ""

    def upload_of(self, principal: bytes, file_id: bytes) -> UploadEntry | None:
        """See the port."""
        key = self.recorded.get(file_id)
        if key is None or key.principal != principal or key in self._ended_keys():
            return None
        with self.ledger.read() as view:
            record = view.upload(key)
            return None if record is None else self._upload_entry(view, record)

    def _upload_entry(self, view: View, record: UploadRecord) -> UploadEntry:
        held = view.held(record.storage_id)
        return UploadEntry(
            key=record.key,
            file_id=record.file_id,
            filename=record.facts.filename,
            filetype=record.facts.filetype,
            filesize=record.facts.filesize,
            position=held.position(record.shape.known_end),
            held_count=len(held),
            expires_ms=record.expires_ms,
            taken=0 if record.facts.filesize is not None else self._taken(record.storage_id),
        )

    def _taken(self, storage_id: bytes) -> int:
        """How many bytes of the disk a partial has."""
        found = look(self.partials_fd, storage_id.hex().encode())
        return 0 if found is None else found.st_blocks * 512

    def sweep(self, now_ms: int) -> Sequence[Work]:
        """See the port."""
        self.check_usable()
        try:
            self.check_there()
        except OSError as exc:
            raise self.fail(StoreFailed(f"the medium reported: {exc.strerror}")) from exc
        except StoreFailed as exc:
            raise self.fail(exc) from exc
        self.clock.look()
        if self.clock.held:
            now_ms = 0
        owed, due = bool(self.owed or self.finished.sealed), self.clock.due() is not None
        works = self._sweeper.next_works(now_ms, owed=owed, due=due)
        if not works and not self.clock.held:
            self._remove_orphans()
        return works

    def expiry_now_ms(self) -> int:
        """See the port."""
        now_ms = self.clock.look()
        return 0 if self.clock.held else now_ms

    def _remove_orphans(self) -> None:
        """Remove what a kill left of uploads that the ledger never heard of; at the start it may have been too young."""
        with self._mutex:
            known = {upload.partial.storage_id for upload in self._live.values()}
        with self.ledger.read() as view:
            known |= {record.storage_id for record in view.uploads()}
        remove_orphans(self.partials_fd, known)

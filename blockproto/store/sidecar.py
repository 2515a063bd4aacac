"""SidecarStore: one download, in a partial and a small ledger beside its destination.

    DEST.blockproto-part        the bytes, the first one wanted at offset 0
    DEST.blockproto-ledger      what of them is durable (``sidecar_ledger.py``)
    DEST.blockproto-lock        held while the download runs: two of one file exclude each other

The order is the server's: bytes, sync, ledger, sync, acknowledge; FINALISING, rename, folder sync. ``DEST`` gets its
name only when it is complete; then the three are gone. A file that is committed in the same batch as its first block
never gets a ledger. Runs on Linux, macOS and Windows.

Spec: spec/store.md §6.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from blake3 import blake3
from filelock import FileLock, Timeout

from ..blocks import BLOCK_LENGTH, BlockSet
from ..errors import (
    BlockprotoError,
    FileExists,
    NotPermitted,
    StoreFailed,
    StoreFull,
    StoreInUse,
    UnknownUpload,
)
from . import (
    FOLDER_FILETYPE,
    BlockDone,
    Discard,
    Facts,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    Outcome,
    Prefix,
    StoredFile,
    Tidy,
    Upload,
    UploadKey,
    Work,
)
from .portable import (
    move_new,
    open_existing,
    open_new,
    read_at,
    set_mode,
    set_mtime,
    sync_file,
    sync_folder,
    write_at,
)
from .refusals import refusal
from .rules import (
    Shape,
    check_attempt,
    check_block,
    check_brief,
    check_finish,
    check_receipt,
    free_entries,
    outcome_of,
)
from .sidecar_ledger import (
    BEGIN,
    Begun,
    Final,
    SidecarLedger,
    attempt_record,
    blocks_record,
    dropped_record,
    final_record,
    incarnation_record,
    prefixes_record,
    record,
)

_ENTRY_LENGTH_MAX = 255
_U64 = (1 << 64) - 1
_SUFFIXES = (".blockproto-part", ".blockproto-ledger", ".blockproto-lock")


class SidecarUpload:
    """The download of a SidecarStore; the port's ``Upload``."""

    def __init__(self, store: SidecarStore, begun: Begun, *, brief: bool = False) -> None:
        self.key = begun.key
        self.facts = begun.facts
        self.file_id = begun.file_id
        self.attempt = begun.attempt
        self.expires_ms: int | None = None
        self.held = BlockSet((blockno, 1) for blockno in sorted(begun.blocks))
        self.prefixes = dict(begun.prefixes)
        self.brief = brief
        self._store = store

    def write(self, position: int, piece: memoryview) -> None:
        """See the port."""
        self._store.write(self, position, piece)

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        return self._store.read_into(position, view)

    def digest(self, blockno: int) -> bytes | None:
        """See the port."""
        return self._store.digest(blockno)

    def close(self) -> None:
        """See the port; the store itself has the file open."""
        if self.brief:
            self._store.drop_brief(self)


class SidecarStore:
    """The port's ``UploadStore`` for one destination.

    Args:
        dest: the file to make. Its folder exists.
        first: position in the whole file of the first byte wanted; it becomes the first byte of ``dest``.
        now_ms: the clock, Unix ms.

    Raises:
        StoreInUse: another process is downloading to ``dest``.
        NotPermitted: the folder cannot be written, or ``dest`` is a folder.
        StoreFailed: the medium reported an error.
    """

    def __init__(
        self,
        dest: Path,
        *,
        first: int = 0,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._dest = dest
        self._first = first
        self._now_ms = now_ms
        self._partial, ledger_path, lock_path = _paths_beside(dest)
        self._fd = -1
        self._begun: Begun | None = None
        self._shape = Shape(first)
        self._receipts: dict[UploadKey, tuple[StoredFile, Final]] = {}
        self._mutex = threading.Lock()
        self._failed: StoreFailed | None = None
        self._lock_path = lock_path
        self._lock = FileLock(lock_path, timeout=0, thread_local=False)
        self._ledger = SidecarLedger(ledger_path)
        self._acquire(dest)
        try:
            self._load()
        except OSError as exc:
            self.close()
            raise refusal(exc) from exc
        self.incarnation = now_ms() if self._begun is None else self._begun.incarnation

    def _acquire(self, dest: Path) -> None:
        if not dest.parent.is_dir():
            raise NotPermitted("the folder of the destination is not there")
        if dest.is_dir():
            raise NotPermitted("the destination is a folder")
        try:
            self._lock.acquire()
        except Timeout as exc:
            raise StoreInUse("another process is downloading to the same file") from exc
        except OSError as exc:
            raise refusal(exc) from exc

    def close(self) -> None:
        """See the port. What the ledger does not know is removed; harmless when repeated."""
        if not self._lock.is_locked:
            return
        recorded = self._ledger.exists
        self._close_partial()
        self._ledger.close()
        with suppress(OSError):
            if not recorded:
                self._partial.unlink(missing_ok=True)
            if os.name != "nt":
                self._lock_path.unlink(missing_ok=True)
        self._lock.release()
        if os.name == "nt":
            with suppress(OSError):
                self._lock_path.unlink(missing_ok=True)

    def _load(self) -> None:
        """Take up what an earlier run left, as far as ledger and partial agree."""
        begun = self._ledger.load()
        size = self._partial.stat().st_size if self._partial.exists() else -1
        if begun is not None and size < 0 and begun.final is not None and self._is_final(begun.final):
            self._remember(begun.key, begun.file_id, begun.final)
            self._ledger.remove()
            return
        if begun is None or size < 0 or begun.first != self._first:
            self._start_over()
            return
        self._begun = begun
        self._shape = _shape_of(begun)
        short = {blockno for blockno in begun.blocks if self._shape.held_end(blockno) - self._first > size}
        if short:
            incarnation = max(begun.incarnation + 1, self._now_ms())
            self._ledger.append(dropped_record(short) + incarnation_record(incarnation))
            for blockno in short:
                del begun.blocks[blockno]
            begun.incarnation = incarnation
        begun.final = None

    def _start_over(self) -> None:
        self._close_partial()
        self._partial.unlink(missing_ok=True)
        self._ledger.remove()
        self._begun = None

    def _is_final(self, final: Final) -> bool:
        try:
            found = (self._dest.parent / final.target).lstat()
        except OSError:
            return False
        return (found.st_ino & _U64, found.st_size, found.st_mtime_ns) == (
            final.ino,
            final.size,
            final.mtime_ns,
        )

    def _remember(self, key: UploadKey, file_id: bytes, final: Final) -> StoredFile:
        receipt = StoredFile(key.sourceid, file_id, final.root, final.filesize, final.target)
        self._receipts[key] = receipt, final
        return receipt

    def _receipt(self, key: UploadKey) -> StoredFile | None:
        receipt, final = self._receipts.get(key, (None, None))
        return receipt if final is not None and self._is_final(final) else None

    # -- the download

    def begun(self) -> tuple[UploadKey, Facts] | None:
        """What an earlier run left beside the destination: whose it is, and its facts."""
        return None if self._begun is None else (self._begun.key, self._begun.facts)

    def open_upload(self, key: UploadKey, facts: Facts, attempt: int) -> SidecarUpload | StoredFile:
        """See the port. One destination holds one download: what was begun with another key is dropped."""
        self._check_usable()
        receipt = self._receipt(key)
        if receipt is not None:
            return receipt
        try:
            if self._begun is None or self._begun.key != key:
                self._start_over()
                self._begin(key, facts)
            assert self._begun is not None
            self._check_room(self._begun)
        except OSError as exc:
            raise refusal(exc) from exc
        return SidecarUpload(self, self._begun)

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> SidecarUpload:
        """See the port."""
        self._check_usable()
        try:
            self._start_over()
        except OSError as exc:
            raise refusal(exc) from exc
        return SidecarUpload(self, self._begin(key, facts), brief=True)

    def _begin(self, key: UploadKey, facts: Facts) -> Begun:
        self._begun = Begun(key, secrets.token_bytes(16), self._first, facts, self.incarnation)
        self._shape = _shape_of(self._begun)
        return self._begun

    def _check_room(self, begun: Begun) -> None:
        if begun.facts.filesize is None:
            return
        held = sum(length for length, _ in begun.blocks.values())
        missing = begun.facts.filesize - self._first - held
        if missing > shutil.disk_usage(self._dest.parent).free:
            raise StoreFull(f"{missing} bytes are missing")

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise StoreFailed(str(self._failed))

    def _fail(self, error: StoreFailed) -> StoreFailed:
        self._failed = self._failed or error
        return error

    def _current(self, upload: Upload) -> Begun:
        """What the upload is; raises UnknownUpload once it has ended."""
        if self._begun is None or upload.file_id != self._begun.file_id:
            raise UnknownUpload("the download has ended")
        return self._begun

    # -- bytes

    def write(self, upload: SidecarUpload, position: int, piece: memoryview) -> None:
        """Write into the partial; see the port's ``Upload.write``."""
        self._check_usable()
        try:
            with self._mutex:
                self._current(upload)
                write_at(self._open_partial(), position - self._first, piece)
        except OSError as exc:
            error = refusal(exc)
            raise (self._fail(error) if isinstance(error, StoreFailed) else error) from exc

    def read_into(self, position: int, view: memoryview) -> int:
        """Read from the partial; see the port's ``Upload.read_into``."""
        try:
            with self._mutex:
                if self._fd < 0 and not self._partial.exists():
                    return 0
                return read_at(self._open_partial(), position - self._first, view)
        except OSError as exc:
            raise refusal(exc) from exc

    def digest(self, blockno: int) -> bytes | None:
        """The durable digest of a block."""
        held = None if self._begun is None else self._begun.blocks.get(blockno)
        return None if held is None else held[1]

    def drop_brief(self, upload: SidecarUpload) -> None:
        """A brief file was let go: without a commit its bytes go."""
        if self._begun is not None and self._begun.file_id == upload.file_id:
            with self._mutex, suppress(OSError):
                self._start_over()

    def _open_partial(self) -> int:
        if self._fd < 0:
            try:
                self._fd = open_new(self._partial)
            except FileExistsError:
                self._fd = open_existing(self._partial)
        return self._fd

    def _close_partial(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- commit

    def commit(self, batch: Sequence[Work]) -> None:
        """See the port.

        Durability: when this returns, everything with a good outcome survives a power cut.
        """
        self._check_usable()
        plan = _Plan()
        try:
            for work in batch:
                self._plan(plan, work)
            self._record(plan)
        except StoreFull as exc:
            for work in plan.works:
                work.outcome = StoreFull(str(exc))
            return
        except StoreFailed as exc:
            raise self._fail(exc) from exc
        if plan.finish is not None:
            self._finish(plan.finish, plan.twins)

    def _plan(self, plan: _Plan, work: Work) -> None:
        work.outcome = None
        try:
            self._plan_one(plan, work)
        except BlockprotoError as exc:
            work.outcome = outcome_of(exc)

    def _plan_one(self, plan: _Plan, work: Work) -> None:
        match work:
            case BlockDone():
                begun = self._plan_attempt(plan, work.upload, work.attempt)
                self._shape = check_block(self._shape, work)
                plan.blocks[work.blockno] = work.length, work.digest
                begun.prefixes.pop(work.blockno, None)
            case Finish():
                self._plan_finish(plan, work)
            case Forget():
                begun = self._plan_attempt(plan, work.upload, work.attempt)
                for blockno in work.blocknos:
                    plan.blocks.pop(blockno, None)
                    if blockno in begun.blocks:
                        plan.dropped.add(blockno)
            case KeepPrefixes():
                begun = self._plan_attempt(plan, work.upload, work.attempt)
                if work.prefixes or begun.prefixes:
                    plan.prefixes = dict(work.prefixes)
            case Discard():
                self._discard(work)
            case Tidy():
                pass
            case _:
                raise NotPermitted("a download store has no finished files")
        plan.works.append(work)

    def _plan_attempt(self, plan: _Plan, upload: Upload, attempt: int) -> Begun:
        begun = self._current(upload)
        check_attempt(max(begun.attempt, plan.attempt), attempt)
        plan.attempt = attempt
        return begun

    def _plan_finish(self, plan: _Plan, work: Finish) -> None:
        receipt = self._receipt(work.upload.key)
        if receipt is not None:
            work.outcome = check_receipt(receipt, work)
            return
        if work.facts.filetype == FOLDER_FILETYPE:
            raise NotPermitted("a download store makes files only")
        begun = self._plan_attempt(plan, work.upload, work.attempt)
        if work.blocks:
            check_brief(work)
        else:
            blocks = {number: kept for number, kept in begun.blocks.items() if number not in plan.dropped}
            blocks.update(plan.blocks)
            check_finish(self._shape, work, ((number, kept[1]) for number, kept in sorted(blocks.items())))
        if plan.finish is not None:
            plan.twins.append(work)
            return
        plan.finish = work

    def _discard(self, work: Discard) -> None:
        if self._begun is None or self._begun.key != work.key:
            raise UnknownUpload
        if work.expired_ms is not None:
            return
        try:
            with self._mutex:
                self._start_over()
        except OSError as exc:
            raise refusal(exc) from exc

    def _record(self, plan: _Plan) -> None:
        """Sync the bytes, then the ledger: in this order, or a power cut makes the ledger lie."""
        begun = self._begun
        if begun is None or not plan.works:
            return
        self._sync_bytes(plan)
        records = plan.records(begun, self._now_ms())
        if records and (plan.finish is None or self._ledger.exists):
            self._append(begun, records)
        plan.apply(begun)
        self.incarnation = begun.incarnation

    def _sync_bytes(self, plan: _Plan) -> None:
        try:
            with self._mutex:
                finish = plan.finish
                if finish is not None:
                    self._settle(finish)
                fd = self._fd
            if fd >= 0 and (plan.blocks or plan.prefixes or finish is not None):
                (sync_file if finish is None else os.fsync)(fd)
        except OSError as exc:
            raise StoreFailed(f"the medium reported: {exc.strerror}") from exc

    def _settle(self, finish: Finish) -> None:
        fd = self._open_partial()
        os.ftruncate(fd, finish.filesize - self._first)
        if finish.facts.mode is not None:
            set_mode(fd, finish.facts.mode)
        if finish.facts.mtime_ns is not None:
            set_mtime(self._partial, finish.facts.mtime_ns)

    def _append(self, begun: Begun, records: bytes) -> None:
        if not self._ledger.exists:
            records = record(BEGIN, begun.pack()) + records
        try:
            if self._ledger.append(records):
                sync_folder(self._dest.parent)
        except OSError as exc:
            raise refusal(exc) from exc

    # -- the final name

    def _finish(self, work: Finish, twins: list[Finish]) -> None:
        begun = self._begun
        assert begun is not None
        try:
            with self._mutex:
                outcome: Outcome = self._publish(begun, work)
        except BlockprotoError as exc:
            outcome = outcome_of(exc)
        except OSError as exc:
            outcome = refusal(exc)
        if isinstance(outcome, StoreFailed):
            raise self._fail(outcome)
        for one in [work, *twins]:
            one.outcome = outcome

    def _publish(self, begun: Begun, work: Finish) -> StoredFile:
        found = os.fstat(self._open_partial())
        self._close_partial()
        for target in self._targets(work.facts.if_exists):
            final = Final(
                work.root, work.filesize, found.st_ino & _U64, found.st_size, found.st_mtime_ns, target.name
            )
            if self._ledger.exists:
                self._append(begun, final_record(final))
            try:
                self._move(target, work.facts.if_exists)
            except FileExistsError:
                continue
            sync_folder(self._dest.parent)
            self._ledger.remove()
            self._begun = None
            return self._remember(begun.key, begun.file_id, final)
        raise FileExists

    def _targets(self, if_exists: IfExists) -> Iterator[Path]:
        yield self._dest
        if if_exists is IfExists.KEEP:
            for name in free_entries(self._dest.name):
                yield self._dest.with_name(name)

    def _move(self, target: Path, if_exists: IfExists) -> None:
        if if_exists is IfExists.REPLACE:
            os.replace(self._partial, target)
        elif target.is_symlink() or target.exists():
            raise FileExistsError
        else:
            move_new(self._partial, target)


class _Plan:
    """What one commit adds to the ledger."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.blocks: dict[int, tuple[int, bytes]] = {}
        self.dropped: set[int] = set()
        self.prefixes: dict[int, Prefix] | None = None
        self.attempt = 0
        self.incarnation = 0
        self.finish: Finish | None = None
        self.twins: list[Finish] = []

    def records(self, begun: Begun, now_ms: int) -> bytes:
        """The records, in an order in which each is true when it is read."""
        found = b""
        if self.attempt > begun.attempt:
            found += attempt_record(self.attempt)
        if self.dropped:
            self.incarnation = max(begun.incarnation + 1, now_ms)
            found += dropped_record(self.dropped) + incarnation_record(self.incarnation)
        if self.blocks:
            found += blocks_record(self.blocks)
        if self.prefixes is not None:
            found += prefixes_record(self.prefixes)
        return found

    def apply(self, begun: Begun) -> None:
        """The ledger has them now."""
        begun.attempt = max(begun.attempt, self.attempt)
        for blockno in self.dropped:
            begun.blocks.pop(blockno, None)
        if self.dropped:
            begun.incarnation = self.incarnation
        begun.blocks.update(self.blocks)
        if self.prefixes is not None:
            begun.prefixes = dict(self.prefixes)


def _paths_beside(dest: Path) -> tuple[Path, Path, Path]:
    """Partial, ledger and lock; a name too long for their endings is cut and told apart by its BLAKE3."""
    stem = dest.name
    room = _ENTRY_LENGTH_MAX - max(len(suffix) for suffix in _SUFFIXES)
    if len(os.fsencode(stem)) > room:
        short = os.fsencode(stem)[: room - 17].decode(errors="ignore")
        stem = f"{short}-{blake3(os.fsencode(dest.name)).hexdigest()[:16]}"
    part, ledger, lock = (dest.with_name(stem + suffix) for suffix in _SUFFIXES)
    return part, ledger, lock


def _shape_of(begun: Begun) -> Shape:
    end = begun.facts.filesize
    short = [
        blockno * BLOCK_LENGTH + length
        for blockno, (length, _) in begun.blocks.items()
        if end is None and length < BLOCK_LENGTH
    ]
    return Shape(begun.first, end, max(short, default=None))

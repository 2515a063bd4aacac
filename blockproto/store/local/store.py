"""LocalStore: finished files in a folder, what is unfinished in ``.blockproto`` beside them, and a ledger in LMDB.

    FOLDER/                     the served folder: finished files under their names, and nothing else
        .blockproto/            (or --state) lock, ledger/, partials/STATE/

Partials lie on the served folder's own mount, so that a rename gives them their names; with ``--state`` on
another mount they stay in ``FOLDER/.blockproto``. Each state has a folder of its own for them and sweeps no other. One
process has a store open: it holds a lock on the served folder, and one on its state.

``decide`` is in ``batch.py``, opening in ``opening.py``, finished files in ``finished_files.py``.

Spec: spec/store.md.
"""

from __future__ import annotations

import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ...common.blocks import BLOCK_LENGTH
from ...common.names import SafeName
from ...errors import StoreFailed, StoreFull
from .. import (
    Capabilities,
    Facts,
    FileEntry,
    IfExists,
    LeftOut,
    Outcome,
    StoredFile,
    UploadEntry,
    UploadKey,
    WholeFile,
    Work,
)
from ..folder_io import Folders, look
from ..os_errors import of_one_file
from ..rules import EXPIRY_MS, sourceid_after
from ..upload_state import Shape
from .batch import Batch
from .brief_upload import BriefUpload
from .context import LocalContext, unix_ms
from .expiry_clock import boot_ms
from .expiry_sweep import Sweeper
from .file_batch import files_open_max
from .finished_files import LocalReader
from .ledger_view import View
from .name_choice import early_choice
from .name_collisions import NameCollisions
from .opening import open_places
from .parts import decide_in_parts
from .prepared import PreparedFiles, Preparer
from .records import UploadRecord
from .recovery import recover, remove_orphans
from .upload import LocalUpload


class LocalStore:
    """The port's ``FileStore`` on a Linux file system; build it with ``open``.

    Attributes:
        context: what the parts of the store share.
        findings: what the operator is to know of how the store was found, a sentence each, losses first.
    """

    capabilities = Capabilities(modes=True, folders=True, replaced_readable_s=0)
    decisions_at_once = 1

    def __init__(self, context: LocalContext, findings: list[str]) -> None:
        self.context = context
        self.findings = findings
        self._finished = context.finished
        self._brief_ids = secrets.token_bytes(8)
        self._brief_count = 0
        self._preparer = Preparer(context.root_fd, files_open_max(), context.free_space.free)
        self._sweeper = Sweeper(context.ledger, context.finished, context.live.is_open)

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
            context = LocalContext(opened, now_ms, portable, boot_ms)
            recovered = recover(context)
        except BaseException:
            opened.close()
            raise
        context.state = recovered.state
        context.recorded.update(recovered.recorded)
        return cls(context, [*recovered.findings, *opened.findings])

    def close(self) -> None:
        """Write what is owed to the ledger and let go of everything; harmless when repeated."""
        self._preparer.close()
        self.context.close()

    @property
    def incarnation(self) -> int:
        """Rises when a position may go down (u64)."""
        return self.context.state.incarnation

    # -- uploads

    @of_one_file
    def open_upload(
        self, key: UploadKey, facts: Facts, attempt: int, reader: bool = False
    ) -> LocalUpload | StoredFile:
        """See the port. Reads the ledger and no file data; creates nothing."""
        context = self.context
        context.check_usable()
        with context.ledger.read() as view:
            receipt = self._finished.true_receipt(view, context.state.file_id(key), None, facts.if_exists)
            if receipt is not None:
                return receipt
            self._check_portable(facts.filename)
            left = self._judge_name(view, key, facts, reader)
            if left is not None:
                return left
            record = view.upload(key)
            if record is None or key in context.ended_keys():
                live = context.live.open_new(key, lambda: self._new_record(key, facts))
                upload = LocalUpload(context, live.record, live.partial)
            else:
                upload = LocalUpload(context, record, context.live.open_recorded(record))
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
        """Say at once what ``decide`` would say after all bytes have come (BP1-COM-020, 026)."""
        if facts.if_exists in (IfExists.KEEP, IfExists.REPLACE):
            return None
        with Folders(self.context.root_fd) as folders:
            return early_choice(self._finished, folders, view, key, facts, reader)

    @of_one_file
    def may_be_there(self, facts: Facts) -> bool:
        """See the port."""
        found = self._finished.look(facts.filename.text)
        if found is None:
            return False
        same_size = stat.S_ISREG(found.st_mode) and found.st_size == facts.filesize
        return same_size or facts.if_exists is IfExists.KEEP

    def _check_portable(self, name: SafeName) -> None:
        """Refuse at once what ``decide`` would refuse after all bytes have come."""
        if self.context.portable:
            with Folders(self.context.root_fd) as folders:
                NameCollisions(folders).check(name)

    @of_one_file
    def check_parent(self, name: SafeName) -> None:
        """See the port."""
        parent = name.text.rpartition("/")[0]
        if not parent:
            return
        with Folders(self.context.root_fd) as folders, suppress(FileNotFoundError):  # it will be made
            folders.open(parent)

    def begin_brief(self, key: UploadKey, facts: Facts, attempt: int) -> BriefUpload:
        """See the port. Makes no system call."""
        self.context.check_usable()
        self._brief_count += 1
        storage_id = self._brief_ids + self._brief_count.to_bytes(8, "big")
        return BriefUpload(self.context, key, facts, storage_id)

    def _new_record(self, key: UploadKey, facts: Facts) -> UploadRecord:
        return UploadRecord(
            key=key,
            facts=facts,
            storage_id=secrets.token_bytes(16),
            file_id=self.context.state.file_id(key),
            attempt=0,
            expires_ms=self.context.clock.expires_ms(EXPIRY_MS),
            shape=Shape(0, facts.filesize),
        )

    def _check_room(self, upload: LocalUpload) -> None:
        free = self.context.free_space.free()
        filesize = upload.facts.filesize
        missing = BLOCK_LENGTH if filesize is None else filesize - len(upload.held) * BLOCK_LENGTH
        if missing > 0 and missing > free:
            raise StoreFull(
                f"there is no room on the server: {missing} more bytes are needed and {max(0, free)} are free"
            )
        if not upload.partial.recorded and self.context.ledger.crowded():
            raise StoreFull("the ledger is too full for new uploads")

    # -- decisions

    def prepare(self, files: Sequence[WholeFile], written: Callable[[], None]) -> PreparedFiles | None:
        """See the port."""
        return self._preparer.prepare(files, written) if self.context.makes_unnamed else None

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """See the port."""
        self.context.check_usable()
        try:
            return decide_in_parts(works, files_open_max(), self._decide)
        except StoreFailed as exc:
            raise self.context.fail(exc) from exc
        except OSError as exc:
            raise self.context.fail(StoreFailed(f"the medium reported: {exc.strerror}")) from exc

    def _decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        return Batch(self.context, works, self._preparer.turns).run()

    # -- finished files

    def receipts(
        self, principal: bytes, sourceids: Iterable[bytes], if_exists: IfExists | None = None
    ) -> list[StoredFile]:
        """See the port."""
        file_ids = (self.context.state.file_id(UploadKey(principal, sourceid)) for sourceid in sourceids)
        return self._finished.receipts(file_ids, if_exists)

    def stat(self, filename: SafeName) -> FileEntry:
        """See the port."""
        return self._finished.stat(filename)

    def files(
        self, folder: str, recursive: bool, cursor: str, limit: int, left_out: LeftOut | None = None
    ) -> tuple[list[FileEntry], str]:
        """See the port."""
        return self._finished.files(folder, recursive, cursor, limit, left_out)

    def open_file(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> LocalReader:
        """See the port."""
        return self._finished.open_file(filename, file_id, within)

    def uploads(self, principal: bytes, cursor: str, limit: int) -> tuple[list[UploadEntry], str]:
        """See the port."""
        entries: list[UploadEntry] = []
        over = self.context.ended_keys()
        last = sourceid_after(cursor)
        after = b"u" + principal + (last + b"\0" if last else b"")
        with self.context.ledger.read() as view:
            for record in view.uploads(principal, after):
                if record.key in over:
                    continue
                if len(entries) == limit:
                    return entries, entries[-1].key.sourceid.hex()
                entries.append(self._upload_entry(view, record))
        return entries, ""

    def upload_of(self, principal: bytes, file_id: bytes) -> UploadEntry | None:
        """See the port."""
        key = self.context.recorded.get(file_id)
        if key is None or key.principal != principal or key in self.context.ended_keys():
            return None
        with self.context.ledger.read() as view:
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
        found = look(self.context.partials_fd, storage_id.hex().encode())
        return 0 if found is None else found.st_blocks * 512

    def sweep(self) -> Sequence[Work]:
        """See the port."""
        self.context.check_usable()
        try:
            self.context.check_there()
        except OSError as exc:
            raise self.context.fail(StoreFailed(f"the medium reported: {exc.strerror}")) from exc
        except StoreFailed as exc:
            raise self.context.fail(exc) from exc
        now_ms = self.context.expiry_now_ms()
        owed, due = bool(self.context.owed or self._finished.sealed), self.context.clock.due() is not None
        works = self._sweeper.next_works(now_ms, owed=owed, due=due)
        if not works and not self.context.clock.held:
            self._remove_orphans()
        return works

    def expiry_now_ms(self) -> int:
        """See the port."""
        return self.context.expiry_now_ms()

    def _remove_orphans(self) -> None:
        """Remove what a kill left of uploads that the ledger never heard of; at the start it may have been too young."""
        context = self.context
        known = context.live.storage_ids()
        with context.ledger.read() as view:
            known |= {record.storage_id for record in view.uploads()}
        remove_orphans(context.partials_fd, known)

"""Batch: one ``decide`` of the local store, from the plan to the outcomes.

    plan      read the records, check attempts and roots, settle size, mode and mtime, choose names
    sync      the bytes are on the medium
    record    ONE transaction: blocks, prefixes, receipts, FINALISING
    publish   final names by rename (``publishing.py``)
    sync      the folders are on the medium
    outcomes  whoever reads them may acknowledge

The transaction is open from the plan to the record, so attempts are checked inside it. What a crash between record
and publish leaves is finished by recovery; that a commit is done on disk is told to the ledger with the next batch
(``Owed``).

Errors: one work's error is its outcome and stops no other work. A full ledger undoes the transaction and is the
outcome of every work that needed it. Any error of a sync ends the store.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, replace

from ...errors import BadFacts, BlockprotoError, StoreFailed, StoreFull, UnknownFile, UnknownUpload
from .. import (
    FOLDER_FILETYPE,
    Adopt,
    BlockDone,
    Discard,
    Finish,
    Forget,
    KeepPrefixes,
    Outcome,
    RecordB3sum,
    Remove,
    StoreFiles,
    Tidy,
    Undecided,
    Upload,
    UploadKey,
    Work,
)
from ..folder_io import SYNC_EACH_MAX, Folders, syncfs
from ..os_errors import refusal
from ..rules import EXPIRY_MS, outcome_of
from ..upload_state import UploadState, apply, check_brief
from .batch_names import BatchNames
from .brief_upload import BriefUpload
from .context import LocalContext
from .file_batch import FileBatch
from .finished_files import SEALS_PAID, SEALS_SWEPT
from .ledger_view import View
from .partial import Partial
from .prepared import Turns
from .publishing import Publisher
from .records import UploadRecord
from .removing import remove_entry
from .upload import LocalUpload


@dataclass(slots=True)
class _Change:
    """What the batch does to one unfinished upload.

    Attributes:
        upload: one who has it open.
        record: its record before the batch.
        new: whether the ledger does not know it yet.
        state: what the works of the batch have made of it.
    """

    upload: LocalUpload
    record: UploadRecord
    new: bool
    state: UploadState


class Batch:
    """One call of ``decide``.

    Args:
        context: the store's.
        works: what is asked for.
        turns: this batch's, and those of what is prepared for the next while it waits for the disk.
    """

    def __init__(self, context: LocalContext, works: Sequence[Work], turns: Turns) -> None:
        self._context = context
        self._works = works
        self._turns = turns
        self._outcomes: dict[Work, Outcome] = dict.fromkeys(works)
        self._changes: dict[UploadKey, _Change] = {}
        self._discarded: list[tuple[UploadKey, bytes]] = []
        self._dirty: dict[Partial, bool] = {}
        self._briefs: list[BriefUpload] = []
        self._syncing: list[Future[None]] = []
        self._crowded = context.ledger.crowded()
        self._entries = False
        self._openable = True
        self._new: list[_Change] = []
        self._folders = Folders(context.root_fd)
        self._names = BatchNames(context, self._folders)
        self._publisher = Publisher(context, self._folders, self._names, self._outcomes)
        self._give_up = functools.partial(_give_up, context, self._changes, self._discarded)
        self._files = FileBatch(context, self._folders, self._names, self._publisher.has, self._give_up)

    def run(self) -> list[Outcome]:
        """Do it and return the outcomes; raises StoreFailed, or OSError from a sync: nothing may be acknowledged then.

        Durability: every good outcome is durable when this returns.
        """
        self._context.check_there(all_of_it=False)
        with self._folders, closing(self._files):
            try:
                self._record_all()
            except StoreFull as exc:
                self._undone(exc)
            finally:
                wait(self._syncing)
            with self._turns.deciding():
                self._publish()
            self._sync_folders()
            self._context.check_there()
            with self._turns.deciding():
                self._publisher.end()
                self._files.end()
        for key, storage_id in self._discarded:
            self._context.live.discard(key, storage_id)
        return [self._outcome(work) for work in self._works]

    def _outcome(self, work: Work) -> Outcome:
        return self._files.outcomes_of(work) if isinstance(work, StoreFiles) else self._outcomes[work]

    # -- the steps; tests put them in the wrong order to see that others notice

    def _record_all(self) -> None:
        context = self._context
        context.clock.look()
        with context.ledger.write() as view:
            with self._turns.deciding():
                paid = context.pay(view, self._seals())
                self._start_sync()
                for work in self._works:
                    self._plan(view, work)
            self._sync_bytes()
            with self._turns.deciding():
                self._record(view)
                view.trim()
        context.paid(paid)

    def _seals(self) -> int:
        """How many seals this batch tells the ledger: few while others wait, many when it was made for that."""
        return SEALS_SWEPT if any(isinstance(work, Tidy) for work in self._works) else SEALS_PAID

    def _start_sync(self) -> None:
        """Let the system write many brief files while their names are planned; nothing changes them after that."""
        briefs = [
            work
            for work in self._works
            if isinstance(work, Finish) and _is_brief(work.upload) and not work.unasked
        ]
        if len(briefs) <= SYNC_EACH_MAX:
            return
        try:
            for work in briefs:
                work.upload.settle(work.facts, work.filesize)  # type: ignore[attr-defined]
        except (OSError, BlockprotoError):
            return
        self._syncing = self._context.in_threads([lambda: syncfs(self._context.partials_fd)])

    def _sync_bytes(self) -> None:
        """Make durable what the transaction is going to claim."""
        briefs = [] if self._syncing else self._briefs
        files: list[Partial | BriefUpload] = [*self._dirty, *briefs]
        few = len(files) + len(self._files) <= SYNC_EACH_MAX and self._files.syncs_each
        held = _hold(files) if self._openable and few else None
        if held is None:
            self._wait_for_sync()
            syncfs(self._context.partials_fd)
        else:
            try:
                self._sync_each(briefs)
            finally:
                for one in held:
                    one.let_go()
        for partial in self._dirty:
            partial.check_there()
            partial.new = False

    def _sync_each(self, briefs: Sequence[BriefUpload]) -> None:
        tasks: list[Callable[[], None]] = [brief.sync for brief in briefs]
        tasks += self._files.syncs()
        tasks += [partial.sync if metadata else partial.datasync for partial, metadata in self._dirty.items()]
        if self._entries:
            tasks.append(lambda: os.fsync(self._context.partials_fd))
        try:
            if len(tasks) == 1:
                tasks[0]()
            elif tasks:
                self._syncing += self._context.in_threads(tasks)
        finally:
            self._wait_for_sync()

    def _wait_for_sync(self) -> None:
        syncing, self._syncing = self._syncing, []
        wait(syncing)
        for future in syncing:
            future.result()

    def _record(self, view: View) -> None:
        for change in self._changes.values():
            self._record_change(view, change)
        self._publisher.record(view)
        self._files.record(view)
        published = len(self._publisher) + len(self._files)
        self._context.mark_unsynced(view, self._files.unfinished if published else None)

    def _publish(self) -> None:
        self._publisher.publish()
        self._files.publish()
        self._names.settle_folders()

    def _sync_folders(self) -> None:
        self._folders.sync()

    def _record_change(self, view: View, change: _Change) -> None:
        state, storage_id = change.state, change.record.storage_id
        if change.new and not state.digests and not state.prefixes:
            return
        if state.dropped:
            view.drop_blocks(storage_id, state.dropped)
        if state.digests:
            view.add_blocks(storage_id, state.digests)
        if state.prefixes is not None:
            view.put_prefixes(storage_id, state.prefixes)
        change.record.attempt, change.record.shape = state.attempt, state.shape
        change.record.expires_ms = self._context.clock.expires_ms(EXPIRY_MS)
        view.put_upload(change.record)
        if not change.upload.partial.recorded:
            change.upload.partial.recorded = True
            self._new.append(change)
        self._context.recorded[change.record.file_id] = change.record.key

    def _undone(self, error: StoreFull) -> None:
        """The transaction did not happen: nothing that needed it is done."""
        for work, outcome in self._outcomes.items():
            if outcome is None and not isinstance(work, Remove):
                self._outcomes[work] = StoreFull(str(error))
        self._files.undone(self._works, error)
        for change in self._new:
            change.upload.partial.recorded = False
        self._context.transaction_undone()
        self._publisher.forget()
        self._discarded.clear()

    # -- plan

    def _plan(self, view: View, work: Work) -> None:
        try:
            self._plan_one(view, work)
            return
        except OSError as exc:
            error = refusal(exc)
        except BlockprotoError as exc:
            error = exc
        if isinstance(error, StoreFailed):
            raise error
        self._outcomes[work] = outcome_of(error)

    def _plan_one(self, view: View, work: Work) -> None:
        match work:
            case Finish():
                self._plan_finish(view, work)
            case StoreFiles():
                self._files.plan(view, work)
            case Adopt():
                self._plan_adopt(view, work)
            case BlockDone():
                self._plan_block(view, work)
            case Forget():
                change = self._change(view, work.upload)
                change.state = apply(change.state, work)
            case KeepPrefixes():
                self._plan_prefixes(view, work)
            case Discard():
                self._plan_discard(view, work)
            case Remove():
                try:
                    remove_entry(view, self._folders, self._context.finished, work)
                finally:
                    self._names.changed()
            case RecordB3sum():
                self._plan_digests(view, work)
            case Tidy():
                for file_id in work.receipts:
                    receipt = view.receipt(file_id)
                    if receipt is not None and not self._context.finished.is_true(receipt):
                        view.drop_receipt(receipt)

    def _plan_digests(self, view: View, work: RecordB3sum) -> None:
        finished = self._context.finished
        found = finished.look(work.filename.text, self._folders)
        if found is None:
            raise UnknownFile
        stamp = finished.stamp(found)
        if finished.version(found) == work.version and work.stamp in (None, stamp):
            view.put_digests(work.filename.text, stamp, work.b3sum, work.root)
            self._names.changed(work.filename.text)

    def _change(self, view: View, upload: Upload) -> _Change:
        """What the batch does to an upload so far. Raises UnknownUpload: it was committed or discarded."""
        assert isinstance(upload, LocalUpload)
        change = self._changes.get(upload.key)
        if change is None:
            if upload.partial.gone:
                raise UnknownUpload("the upload has ended")
            known = view.upload(upload.key)
            record = replace(upload.record) if known is None else known
            if record.storage_id != upload.partial.storage_id:
                raise UnknownUpload("the upload was begun anew")
            state = UploadState(record.shape, record.attempt)
            change = self._changes[upload.key] = _Change(upload, record, known is None, state)
        return change

    def _touch(self, partial: Partial, *, metadata: bool) -> None:
        self._entries |= partial.new
        self._dirty[partial] = metadata or self._dirty.get(partial, False)

    def _plan_block(self, view: View, work: BlockDone) -> None:
        change = self._change(view, work.upload)
        state = apply(change.state, work)
        self._openable &= change.upload.partial.is_openable()
        change.state = state
        self._touch(change.upload.partial, metadata=False)

    def _plan_prefixes(self, view: View, work: KeepPrefixes) -> None:
        assert isinstance(work.upload, LocalUpload)
        partial = work.upload.partial
        if not work.prefixes and not partial.recorded:
            return
        if work.prefixes:
            self._openable &= partial.is_openable()
        change = self._change(view, work.upload)
        change.state = apply(change.state, work)
        if work.prefixes:
            self._touch(partial, metadata=False)

    def _plan_discard(self, view: View, work: Discard) -> None:
        record = view.upload(work.key)
        live = self._context.live.find(work.key)
        if (record is None and live is None) or self._is_published(self._context.state.file_id(work.key)):
            raise UnknownUpload
        if work.expired_ms is not None and (
            live is not None
            or record is None
            or record.expires_ms > work.expired_ms
            or self._context.clock.held
        ):
            return
        self._changes.pop(work.key, None)
        self._context.recorded.pop(self._context.state.file_id(work.key), None)
        if live is not None:
            live.partial.leave()
            self._dirty.pop(live.partial, None)
            self._discarded.append((work.key, live.partial.storage_id))
        if record is not None:
            view.drop_upload(work.key, record.storage_id)
            self._discarded.append((work.key, record.storage_id))

    def _plan_finish(self, view: View, work: Finish) -> None:
        upload = work.upload
        if self._publisher.join(work):
            return
        if self._files.has(upload.file_id):
            raise Undecided
        receipt = view.receipt(upload.file_id)
        if receipt is not None:
            facts = work.facts
            answer, receipt = self._names.answered(view, receipt, facts.if_exists, work.root, work.filesize)
            if answer is not None:
                self._outcomes[work] = answer
                return
        if isinstance(upload, BriefUpload):
            if self._crowded:
                raise StoreFull("the ledger is too full for new files")
            check_brief(work)
        else:
            change = self._change(view, upload)
            change.state = apply(change.state, work, view.digests(change.record.storage_id))
        if work.facts.filetype == FOLDER_FILETYPE:
            if work.filesize:
                raise BadFacts("a folder has no bytes")
            self._publisher.make_folder(view, work)
            return
        if isinstance(upload, BriefUpload):
            left = view.upload(upload.key) if upload.file_id in self._context.recorded else None
            if self._publisher.plan(view, work, upload, left, receipt):
                self._briefs.append(upload)
            elif left is not None:
                self._give_up(view, upload.key)
        elif self._publisher.plan(view, work, change.upload, change.record, receipt):
            self._touch(change.upload.partial, metadata=True)
        else:
            self._give_up(view, upload.key)

    def _plan_adopt(self, view: View, work: Adopt) -> None:
        if self._is_published(self._context.state.file_id(work.key)):
            return  # its bytes have come meanwhile
        if self._publisher.adopt(view, work):
            self._give_up(view, work.key)

    def _is_published(self, file_id: bytes) -> bool:
        """Whether the batch gives the file of that id its name."""
        return self._publisher.has(file_id) or self._files.has(file_id)


def _give_up(
    context: LocalContext,
    changes: dict[UploadKey, _Change],
    discarded: list[tuple[UploadKey, bytes]],
    view: View,
    key: UploadKey,
) -> None:
    """What was held of an upload is not needed: its file is there, or is not wanted.

    No method: a batch that its own parts refer to would keep the bytes of all its files until garbage is collected.
    """
    changes.pop(key, None)
    context.recorded.pop(context.state.file_id(key), None)
    record, live = view.upload(key), context.live.find(key)
    if record is not None:
        view.drop_upload(key, record.storage_id)
        discarded.append((key, record.storage_id))
    if live is not None:
        discarded.append((key, live.partial.storage_id))


def _hold(files: Sequence[Partial | BriefUpload]) -> list[Partial | BriefUpload] | None:
    """Keep all of them open until they are synced; None where a sync of everything is needed."""
    held: list[Partial | BriefUpload] = []
    for one in files:
        if not one.hold():
            for other in held:
                other.let_go()
            return None
        held.append(one)
    return held


def _is_brief(upload: Upload) -> bool:
    return isinstance(upload, BriefUpload)

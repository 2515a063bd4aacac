"""Stores with one mistake each in their order of writes, made by patching: a test that cannot tell them from the real
one is not working.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from mistakes import Mutants, Patch, nothing

import blockproto.store.folder_io as disk_module
import blockproto.store.local.new_file as new_file_module
import blockproto.store.local.opening as opening_module
import blockproto.store.local.publishing as publishing_module
import blockproto.store.local.recovery as recovery_module
from blockproto.common.blocks import BLOCK_LENGTH, BlockSet
from blockproto.store import StoredFile, upload_state
from blockproto.store.folder_io import Folders
from blockproto.store.local.batch import Batch
from blockproto.store.local.context import LocalContext
from blockproto.store.local.expiry_clock import ExpiryClock
from blockproto.store.local.file_batch import FileBatch
from blockproto.store.local.finished_files import FinishedFiles
from blockproto.store.local.ledger_view import View
from blockproto.store.local.partial import Partial
from blockproto.store.local.publishing import Publication, Publisher
from blockproto.store.local.recovery import Recovery
from blockproto.store.local.store import LocalStore

MUTANTS = mutant = Mutants()


# -- bytes and ledger


@mutant
def ledger_before_sync(patch: Patch) -> None:
    real_sync, real_record_all = Batch._sync_bytes, Batch._record_all

    def record_all(batch: Batch) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Batch, "_sync_bytes", nothing)
            real_record_all(batch)
        real_sync(batch)

    patch.setattr(Batch, "_start_sync", nothing)
    patch.setattr(Batch, "_record_all", record_all)


@mutant
def no_sync(patch: Patch) -> None:
    patch.setattr(Batch, "_start_sync", nothing)
    patch.setattr(Batch, "_sync_bytes", nothing)


@mutant
def sync_not_waited_for(patch: Patch) -> None:
    """The sync that runs beside the plan ends after the ledger was written."""
    real = LocalContext.in_threads
    patch.setattr(Batch, "_wait_for_sync", nothing)
    patch.setattr(LocalContext, "in_threads", lambda context, tasks: [] if tasks else real(context, tasks))


@mutant
def no_sync_of_mode_and_mtime(patch: Patch) -> None:
    patch.setattr(Partial, "sync", Partial.datasync)


@mutant
def no_sync_of_the_partials_folder(patch: Patch) -> None:
    real = Batch._sync_bytes

    def sync_bytes(batch: Batch) -> None:
        batch._entries = False
        real(batch)

    patch.setattr(Batch, "_sync_bytes", sync_bytes)


@mutant
def acknowledged_before_the_ledger(patch: Patch) -> None:
    """Outcomes are given, the records follow with the next batch."""
    late: list[Callable[[View], None]] = []
    real = Batch._record

    def record(batch: Batch, view: View) -> None:
        for one in late:
            one(view)
        late[:] = [lambda view: real(batch, view)]

    patch.setattr(Batch, "_record", record)


@mutant
def resume_by_size(patch: Patch) -> None:
    """What is held is read off the partial's length."""
    real = LocalStore.open_upload

    def open_upload(store: LocalStore, key: Any, facts: Any, attempt: int) -> Any:
        upload = real(store, key, facts, attempt)
        if not isinstance(upload, StoredFile):
            found = disk_module.look(store.context.partials_fd, upload.partial.name)
            upload.held = BlockSet([(0, (found.st_size if found else 0) // BLOCK_LENGTH)])
        return upload

    patch.setattr(LocalStore, "open_upload", open_upload)


@mutant
def bitmap_forgotten(patch: Patch) -> None:
    patch.setattr(View, "_mark", nothing)


@mutant
def no_sync_of_the_ledgers_folder(patch: Patch) -> None:
    patch.setattr(opening_module, "os", _OsWithout(fsync=nothing))


class _OsWithout:
    """The module ``os`` with other functions."""

    def __init__(self, **other: Any) -> None:
        self._other = other

    def __getattr__(self, name: str) -> Any:
        return self._other.get(name) or getattr(os, name)


# -- names


@mutant
def name_before_ledger(patch: Patch) -> None:
    real_record, real_publish = Batch._record, Publisher.publish

    def record(batch: Batch, view: View) -> None:
        real_publish(batch._publisher)
        real_record(batch, view)

    patch.setattr(Batch, "_record", record)
    patch.setattr(Publisher, "publish", nothing)


@mutant
def no_finalising(patch: Patch) -> None:
    patch.setattr(Publication, "finalising", None)


@mutant
def done_before_the_name(patch: Patch) -> None:
    """The upload record goes in the transaction that ought to say FINALISING."""
    real = Publisher.record

    def record(publisher: Publisher, view: View) -> None:
        real(publisher, view)
        for one in publisher._publications.values():
            if one.record is not None:
                view.drop_finalising(one.receipt.file_id)
                view.drop_upload(one.record.key, one.record.storage_id)

    patch.setattr(Publisher, "record", record)


@mutant
def no_folder_sync(patch: Patch) -> None:
    patch.setattr(Folders, "sync", lambda folders: folders.changed.clear())


@mutant
def no_sync_above_new_folders(patch: Patch) -> None:
    real = Folders.make

    def make(folders: Folders, folder: str) -> int:
        before = set(folders.changed)
        fd = real(folders, folder)
        folders.changed = before
        return fd

    patch.setattr(Folders, "make", make)


@mutant
def names_overwritten(patch: Patch) -> None:
    patch.setattr(publishing_module, "move_new", disk_module.move_over)


@mutant
def receipts_before_the_folder_sync(patch: Patch) -> None:
    patch.setattr(FinishedFiles, "hide", nothing)


@mutant
def receipts_without_identity(patch: Patch) -> None:
    def truth(finished: FinishedFiles, receipt: Any, folders: Any) -> os.stat_result:
        return finished.look(receipt.stored_as, folders) or os.stat_result([0] * 10)

    patch.setattr(FinishedFiles, "_truth", truth)


# -- whole files


@mutant
def no_sync_of_whole_files(patch: Patch) -> None:
    """The few files of a small batch are not synced one by one."""
    patch.setattr(FileBatch, "syncs", lambda _: [])


@mutant
def whole_files_named_before_the_sync(patch: Patch) -> None:
    real_sync, real_publish = Batch._sync_bytes, FileBatch.publish

    def sync_bytes(batch: Batch) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(new_file_module.NewFiles, "close", nothing)
            real_publish(batch._files)
        real_sync(batch)

    patch.setattr(Batch, "_sync_bytes", sync_bytes)
    patch.setattr(FileBatch, "publish", FileBatch.close)


@mutant
def whole_files_named_before_the_ledger(patch: Patch) -> None:
    real = FileBatch.record

    def record(files: FileBatch, view: View) -> None:
        real_publish(files)
        real(files, view)

    real_publish = FileBatch.publish
    patch.setattr(FileBatch, "record", record)
    patch.setattr(FileBatch, "publish", nothing)


@mutant
def no_sync_of_the_folders_of_whole_files(patch: Patch) -> None:
    real = FileBatch.publish

    def publish(files: FileBatch) -> None:
        before = set(files._folders.changed)
        real(files)
        files._folders.changed = before

    patch.setattr(FileBatch, "publish", publish)


@mutant
def whole_files_overwrite(patch: Patch) -> None:
    real = new_file_module.give_name

    def give_name(own_fds: int, fd: int, folder_fd: int, name: bytes) -> None:
        disk_module.remove_file(folder_fd, name)
        real(own_fds, fd, folder_fd, name)

    patch.setattr(new_file_module, "give_name", give_name)


@mutant
def the_device_is_not_looked_at(patch: Patch) -> None:
    patch.setattr(FileBatch, "_folder_of", lambda files, name: files._folders.make(name.rpartition("/")[0]))


@mutant
def receipts_of_files_without_a_name_stay(patch: Patch) -> None:
    patch.setattr(Recovery, "_forget_unfinished", nothing)


@mutant
def whole_files_that_come_twice_are_not_joined(patch: Patch) -> None:
    patch.setattr(FileBatch, "has", lambda *_: False)
    real = FileBatch._plan

    def plan(files: FileBatch, *args: Any) -> None:
        files._ids.clear()
        real(files, *args)

    patch.setattr(FileBatch, "_plan", plan)


# -- judgement


@mutant
def no_attempt_check(patch: Patch) -> None:
    patch.setattr(upload_state, "_check_attempt", nothing)


@mutant
def no_root_check(patch: Patch) -> None:
    patch.setattr(upload_state, "_check_finish", nothing)


@mutant
def forgotten_blocks_stay(patch: Patch) -> None:
    patch.setattr(View, "drop_blocks", nothing)


# -- recovery


@mutant
def recovery_does_not_look_at_partials(patch: Patch) -> None:
    patch.setattr(Recovery, "_cut", nothing)


@mutant
def recovery_keeps_the_incarnation(patch: Patch) -> None:
    real = Recovery._lose

    def lose(recovery: Recovery, finding: str) -> None:
        real(recovery, finding)
        recovery._lost = False

    patch.setattr(Recovery, "_lose", lose)


@mutant
def recovery_does_not_sync(patch: Patch) -> None:
    real = Recovery.run

    def run(recovery: Recovery) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(recovery_module, "syncfs", nothing)
            real(recovery)

    patch.setattr(Recovery, "run", run)


@mutant
def recovery_leaves_commits_under_way(patch: Patch) -> None:
    def finish(recovery: Recovery, file_id: bytes, _: Any) -> None:
        recovery._view.drop_finalising(file_id)

    patch.setattr(Recovery, "_finish", finish)


# -- where it is, and when


@mutant
def partials_of_all_states_in_one_folder(patch: Patch) -> None:
    patch.setattr(opening_module, "secrets", SimpleNamespace(token_bytes=bytes))


@mutant
def nobody_looks_whether_it_is_there(patch: Patch) -> None:
    patch.setattr(LocalContext, "check_there", lambda _, all_of_it=True: None)


@mutant
def the_clock_is_believed(patch: Patch) -> None:
    patch.setattr(ExpiryClock, "held", False)

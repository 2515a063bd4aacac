"""Checks of the whole order of writes: true of the store, and false of every mutant of it.

Each is a function of an empty folder that raises AssertionError.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import blockproto.store.folder_io as disk_module
import blockproto.store.local.batch as batch_module
import blockproto.store.local.new_file as new_file_module
import blockproto.store.local.opening as opening_module
import blockproto.store.local.partial_file as partial_module
import blockproto.store.local.publishing as publishing_module
import blockproto.store.local.recovery as recovery_module
from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.errors import StoreFailed
from blockproto.store import StoredFile
from blockproto.store.local.check import check_store
from blockproto.store.local.ledger import Ledger
from blockproto.store.local.ledger_view import View
from blockproto.store.local.store import LocalStore

from .client import Job, Promises, broken_promises, send, send_brief
from .trace import recording, violations

BIG = [Job(f"deep/er/big-1-{2 * BLOCK_LENGTH + 77}"), Job(f"big-2-{BLOCK_LENGTH}"), Job("deep/empty-3-0")]
FEW = [Job(f"few/brief-{n}-{n * 100}") for n in range(1, 4)]
MANY = [Job(f"many{n % 10}/brief-{n}-{n + 1}") for n in range(10, 30)]


def now_ms() -> int:
    return 1_800_000_000_000


def abandon(store: LocalStore) -> None:
    """Let go of a store as a killed process does: nothing more is written."""
    store.context.opened.close()


def check_order(folder: Path) -> None:
    """No power cut at any point of some commits could break a promise."""
    with recording() as trace:
        store = LocalStore.open(folder, now_ms=now_ms)
        try:
            for job in BIG:
                send(store, job, Promises(), 1, lambda works: trace.commit(store, works))
            for jobs in (FEW[:1], FEW[1:], MANY):
                send_brief(store, jobs, Promises(), lambda works: trace.commit(store, works))
        finally:
            store.close()
    assert violations(trace) == []
    synced = {event.path for event in trace.events if event.kind == "sync"}
    own = folder / ".blockproto"
    assert {str(own / "ledger"), str(own), str(folder)} <= synced, "the ledger's own name may be lost"


class Killed(BaseException):
    """The process is gone."""


class Executioner:
    """Kills the process at a certain call.

    Args:
        at: at which call, from 0.
        after: whether it is killed after the call has done its work, else before.
    """

    def __init__(self, at: int, *, after: bool) -> None:
        self._left = at
        self._after = after
        self._lock = threading.Lock()
        self._dead = False
        self.killed = False

    def of(self, name: str) -> bool:
        """Whether a function of that name counts."""
        return True

    def run(self, call: Callable[[], Any]) -> Any:
        with self._lock:
            if self._dead:
                raise Killed
            mine = self._left == 0
            self._left -= 1
            self._dead = mine
        if mine:
            self.killed = True
            if self._after:
                call()
            raise Killed
        return call()


@contextmanager
def killing(executioner: Executioner, *, looking: bool = False) -> Iterator[None]:
    """Every call that touches the disk may be the last; with ``looking`` those that change nothing there, too."""

    def mortal(module: Any, name: str, patch: pytest.MonkeyPatch) -> None:
        real = getattr(module, name)
        if executioner.of(name):
            patch.setattr(module, name, lambda *args, **kw: executioner.run(lambda: real(*args, **kw)))

    real_write = Ledger.write

    @contextmanager
    def write(ledger: Ledger) -> Iterator[View]:
        with real_write(ledger) as view:
            yield view
            if executioner.of("commit"):
                executioner.run(lambda: None)
        if executioner.of("committed"):
            executioner.run(lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("pwrite", "fsync", "fdatasync", "unlink", "utime", "ftruncate", "mkdir", "fchmod"):
            mortal(os, name, patch)
        for name in ("fstat", "stat", "open", "listdir") if looking else ():
            mortal(os, name, patch)
        for module in (batch_module, disk_module, recovery_module):
            mortal(module, "syncfs", patch)
        for module in (publishing_module, recovery_module, new_file_module):
            mortal(module, "move_new", patch)
        for name in ("create_unnamed", "give_name", "move_over", "create_file"):
            mortal(new_file_module, name, patch)
        mortal(partial_module, "create_file", patch)
        patch.setattr(Ledger, "write", write)
        yield


def check_kills(folder: Path) -> None:
    """A process killed at any call loses no promise, and the same client finishes without a second copy."""
    for after in (False, True):
        at = 0
        while _killed_once(folder / f"{after}{at}", Executioner(at, after=after)):
            at += 1
        assert at > 40, "the calls are not caught any more"


def _killed_once(folder: Path, executioner: Executioner) -> bool:
    folder.mkdir()
    promises = Promises()
    store = LocalStore.open(folder, now_ms=now_ms)
    before = store.incarnation
    try:
        with killing(executioner):
            _all_jobs(store, promises)
    except Killed:
        pass
    abandon(store)
    assert check_store(folder, read=True) == []
    store = LocalStore.open(folder, now_ms=now_ms)
    try:
        assert (store.findings, store.incarnation) == ([], before)
        assert broken_promises(store, promises) == []
        _all_jobs(store, promises)
        entries, _ = store.files("", True, "", 1000)
        names = {entry.filename.text for entry in entries if not entry.folder}
        assert names == {job.name for job in [BIG[0], *FEW]}, "a file is there twice, or not at all"
        assert store.uploads(bytes(16), "", 10) == ([], "")
    finally:
        store.close()
    assert check_store(folder, read=True) == []
    return executioner.killed


def _all_jobs(store: LocalStore, promises: Promises) -> None:
    send(store, BIG[0], promises, 1)
    send_brief(store, FEW, promises)


def check_receipts_wait_for_the_folder(folder: Path) -> None:
    """Nobody hears of a receipt before its name is durable."""
    store = LocalStore.open(folder, now_ms=now_ms)
    early: list[object] = []
    real = disk_module.Folders.sync

    def sync(folders: disk_module.Folders) -> None:
        early.extend(store.receipts(bytes(16), [BIG[1].key.sourceid]))
        real(folders)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk_module.Folders, "sync", sync)
        try:
            send(store, BIG[1], Promises(), 1)
        finally:
            store.close()
    assert early == []


def check_recovery_syncs_names(folder: Path) -> None:
    """A name that was given but not synced when the process was killed is synced before anybody hears of it."""
    for brief in (False, True):
        place = folder / f"{brief}"
        place.mkdir()
        store = LocalStore.open(place, now_ms=now_ms)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk_module.Folders, "sync", _die_with_changes)
            with pytest.raises(Killed):
                send_brief(store, FEW, Promises()) if brief else send(store, BIG[1], Promises(), 1)
        abandon(store)
        with recording() as trace:
            store = LocalStore.open(place, now_ms=now_ms)
        job = FEW[0] if brief else BIG[1]
        found = store.open_upload(job.key, job.facts, 2)
        store.close()
        assert isinstance(found, StoredFile)
        assert any(event.kind == "sync" and event.path == "*" for event in trace.events)


def check_names_are_never_overwritten(folder: Path) -> None:
    """Somebody else takes the name between its choice and the rename: both stay."""
    store = LocalStore.open(folder, now_ms=now_ms)
    with pytest.MonkeyPatch.context() as patch:
        real_record = publishing_module.Publisher.record

        def record(publisher: publishing_module.Publisher, view: View) -> None:
            real_record(publisher, view)
            if BIG[1].name in [one.receipt.stored_as for one in publisher._publications.values()]:
                (folder / BIG[1].name).write_bytes(b"somebody else's")

        patch.setattr(publishing_module.Publisher, "record", record)
        stored = send(store, BIG[1], Promises(), 1)
    store.close()
    assert (folder / BIG[1].name).read_bytes() == b"somebody else's"
    assert (folder / stored.stored_as).read_bytes() == BIG[1].content()


def check_lost_bytes_are_noticed(folder: Path) -> None:
    """A partial that lost its end: those blocks are asked for again, in a new incarnation."""
    job = Job(f"lost-1-{3 * BLOCK_LENGTH}")
    for size, held in ((BLOCK_LENGTH, 1), (None, 0)):
        place = folder / f"{size}"
        place.mkdir()
        store = LocalStore.open(place, now_ms=now_ms)
        before = store.incarnation
        _send_some(store, job)
        store.close()
        partial = next((place / ".blockproto/partials").glob("*/*"))
        if size is None:
            partial.unlink()
        else:
            os.truncate(partial, size)
        assert check_store(place) != []
        store = LocalStore.open(place, now_ms=now_ms)
        found = store.open_upload(job.key, job.facts, 2)
        assert not isinstance(found, StoredFile)
        try:
            assert (len(found.held), len(store.findings)) == (held, 1)
            assert store.incarnation > before
            found.close()
            send(store, job, Promises(), 2)
        finally:
            store.close()
        assert check_store(place, read=True) == []


def check_other_states_keep_what_is_theirs(folder: Path) -> None:
    """Another state is opened on the folder, and sweeps, long after: nothing acknowledged under the first one is gone."""
    served = folder / "served"
    served.mkdir()
    job = Job(f"others-1-{3 * BLOCK_LENGTH}")
    store = LocalStore.open(served, now_ms=now_ms)
    _send_some(store, job)
    store.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery_module, "ORPHAN_GRACE_S", -10)
        patch.setattr(opening_module, "_mount_id", id)  # every folder on a mount of its own
        for state in (folder / "state", folder / "another"):
            other = LocalStore.open(served, state=state, now_ms=now_ms)
            other.sweep()
            other.close()
    store = LocalStore.open(served, now_ms=now_ms)
    found = store.open_upload(job.key, job.facts, 2)
    assert not isinstance(found, StoredFile)
    assert (len(found.held), store.findings) == (3, [])
    found.close()
    store.close()


def check_a_removed_store_acknowledges_nothing(folder: Path) -> None:
    """Somebody removes state, ledger or partials under a running store: what it would acknowledge the next start has not."""
    for what in (".blockproto", ".blockproto/ledger", ".blockproto/partials"):
        place = folder / what.replace("/", "-")
        place.mkdir()
        store = LocalStore.open(place, now_ms=now_ms)
        promises = Promises()
        shutil.rmtree(place / what)
        with suppress(StoreFailed):
            send_brief(store, [FEW[0]], promises)
        store.context.opened.close()
        assert not promises.files, what


def check_a_jump_of_the_clock_costs_nothing(folder: Path) -> None:
    """A start forty days later, as the clock has it, and sweeps: the upload is there."""
    job = Job(f"late-1-{3 * BLOCK_LENGTH}")
    store = LocalStore.open(folder, now_ms=now_ms)
    _send_some(store, job)
    store.close()
    late_ms = now_ms() + 40 * 24 * 3600 * 1000
    store = LocalStore.open(folder, now_ms=lambda: late_ms)
    for _ in range(3):
        store.decide(store.sweep())
    found = store.open_upload(job.key, job.facts, 2)
    assert not isinstance(found, StoredFile)
    assert len(found.held) == 3
    found.close()
    store.close()


def _die_with_changes(folders: disk_module.Folders) -> None:
    if folders.changed:
        raise Killed


class _Enough(Exception):
    pass


def _send_some(store: LocalStore, job: Job) -> None:
    """Send all blocks and stop before the commit."""

    def commit(works: Any) -> Any:
        if type(works[0]).__name__ == "Finish":
            raise _Enough
        return store.decide(works)

    with pytest.raises(_Enough):
        send(store, job, Promises(), 1, commit)

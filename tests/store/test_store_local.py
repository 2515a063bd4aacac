"""The local store: the contract, and what only a file system can do to it."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest
from local_faults import DescriptorRules, eio, stop_pwrite
from partials import partials_of

import blockproto.store.folder_io
import blockproto.store.local.batch
import blockproto.store.local.expiry_sweep
import blockproto.store.local.ledger
import blockproto.store.local.ledger_view
import blockproto.store.local.listing
import blockproto.store.local.partial_file
import blockproto.store.local.publishing
import blockproto.store.local.recovery
import blockproto.store.local.store
from blockproto.common.blocks import BLOCK_LENGTH, BRIEF_LENGTH_MAX, EMPTY_DIGEST, BlockSet, digest_of
from blockproto.common.names import SafeName
from blockproto.errors import (
    BadFacts,
    BlockprotoError,
    NameRefused,
    NotPermitted,
    Refused,
    SourceChanged,
    StoreFailed,
    StoreFull,
    StoreInUse,
    UnknownFile,
    UnknownUpload,
)
from blockproto.store import (
    FOLDER_FILETYPE,
    BlockDone,
    Discard,
    Facts,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    Prefix,
    RecordB3sum,
    Remove,
    StoredFile,
    Tidy,
    Upload,
)
from blockproto.store.local.check import check_store
from blockproto.store.local.expiry_clock import JUMP_MS
from blockproto.store.local.ledger import Ledger
from blockproto.store.local.store import LocalStore
from blockproto.store.local.upload import LocalUpload
from blockproto.store.rules import EXPIRY_MS, RECEIPT_GRACE_MS
from blockproto.testing.store_contract import FileStoreContract
from blockproto.testing.store_contract.steps import (
    ANYBODY,
    NAME,
    NOW_MS,
    brief_of,
    facts_of,
    finish_of,
    key_of,
    names_in,
    opened,
    outcome,
    outcomes,
    pattern,
    put,
    read_all,
    refused,
    stored,
    written,
)


class LocalPlace:
    """A served folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: Path | None = None
        self.now_ms = NOW_MS
        self.patch = pytest.MonkeyPatch()
        self.store = self.files = self.open()

    def open(self) -> LocalStore:
        return LocalStore.open(self.folder, state=self.state, now_ms=lambda: self.now_ms)

    def pass_time(self, ms: int) -> None:
        """Let time go by as it does: while the store is open and looks at its clock now and then."""
        while ms > 0:
            step = min(ms, JUMP_MS)
            self.now_ms, ms = self.now_ms + step, ms - step
            self.store.context.clock.look()

    def reopen(self) -> None:
        self.store.close()
        self.store = self.files = self.open()

    def crash(self) -> None:
        self.patch.undo()
        self.store.context.opened.close()
        self.store = self.files = self.open()

    def content(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def put_there(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    @property
    def partials(self) -> Path:
        return partials_of(self.state or self.folder / ".blockproto")

    def leftovers(self) -> int:
        return len(list(self.partials.iterdir()))

    def fill_disk(self) -> None:
        real = os.fstatvfs(self.store.context.root_fd)
        full = os.statvfs_result([*real[:3], 0, 0, *real[5:]])
        self.patch.setattr(os, "fstatvfs", lambda _: full)

    def break_medium(self) -> None:
        self.patch.setattr(os, "fsync", eio)
        self.patch.setattr(os, "fdatasync", eio)
        self.patch.setattr(blockproto.store.local.batch, "syncfs", eio)
        self.patch.setattr(blockproto.store.folder_io, "syncfs", eio)

    def stop_writes(self, entered: threading.Event, go_on: threading.Event) -> None:
        stop_pwrite(self.patch, entered, go_on)

    def done(self) -> None:
        self.patch.undo()
        self.store.close()


class TestLocalStore(FileStoreContract, DescriptorRules):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[LocalPlace]:
        """Every test of the contract ends with a check of the invariants."""
        folder = tmp_path / "served"
        folder.mkdir()
        place = LocalPlace(folder)
        yield place
        place.done()
        assert check_store(folder, read=True) == []

    # -- what only a folder can do

    @pytest.mark.clause("BP1-COM-011")
    def test_a_file_that_somebody_changed_is_sent_again(self, place: LocalPlace) -> None:
        receipt = put(place.store, NAME, b"what was sent")
        os.utime(place.folder / NAME, ns=(1, 1))
        assert place.store.receipts(ANYBODY, [receipt.sourceid]) == []
        assert place.store.stat(SafeName.parse(NAME)).file_id == bytes(16)
        with pytest.raises(UnknownFile):
            place.store.open_file(None, receipt.file_id)
        assert put(place.store, NAME, b"what was sent").stored_as == "file (1).bin"

    def test_files_of_others_are_served(self, place: LocalPlace) -> None:
        (place.folder / "of others.txt").write_bytes(b"hello")
        entry = place.store.stat(SafeName.parse("of others.txt"))
        assert (entry.filesize, entry.filetype, entry.file_id) == (5, "text/plain", bytes(16))
        assert read_all(lambda: place.store.open_file(entry.filename, None), 5) == b"hello"
        version = entry.version
        assert outcome(place.store, RecordB3sum(entry.filename, version, b"z" * 32)) is None
        assert place.store.stat(entry.filename).b3sum == b"z" * 32
        (place.folder / "of others.txt").write_bytes(b"other")
        os.utime(place.folder / "of others.txt", ns=(1, 1))
        assert place.store.stat(entry.filename).version != version
        assert place.store.stat(entry.filename).b3sum is None

    @pytest.mark.clause("BP1-FET-004")
    def test_a_reader_notices_a_change(self, place: LocalPlace) -> None:
        put(place.store, NAME, b"one")
        reader = place.store.open_file(SafeName.parse(NAME), None)
        with (place.folder / NAME).open("ab") as file:
            file.write(b"more")
        assert not reader.unchanged()
        reader.close()

    def test_the_stores_own_folder_is_not_there(self, place: LocalPlace) -> None:
        put(place.store, "a")
        (place.folder / "b/.blockproto").mkdir(parents=True)
        assert names_in(place.store) == ["a", "b"]

    def test_links_and_special_files_are_not_there(self, place: LocalPlace, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        put(place.store, "real/file")
        (place.folder / "link").symlink_to(outside / "secret")
        (place.folder / "folder-link").symlink_to(outside)
        (place.folder / "inside-link").symlink_to("real")
        os.mkfifo(place.folder / "fifo")
        assert names_in(place.store) == ["real", "real/file"]
        for name in ("link", "fifo", "folder-link", "folder-link/secret", "inside-link/file"):
            with pytest.raises(UnknownFile):
                place.store.stat(SafeName.parse(name))
            with pytest.raises(UnknownFile):
                place.store.open_file(SafeName.parse(name), None)
        for folder in ("folder-link", "inside-link"):
            with pytest.raises(UnknownFile):
                place.store.files(folder, True, "", 10)
        refused(place.store, Remove(SafeName.parse("link")), UnknownFile)

    @pytest.mark.clause("BP1-NAM-006")
    @pytest.mark.parametrize("if_exists", list(IfExists))
    def test_nothing_is_written_through_links(
        self, place: LocalPlace, tmp_path: Path, if_exists: IfExists
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_bytes(b"theirs")
        (place.folder / "way").symlink_to(outside)
        (place.folder / "file").symlink_to(outside / "file")
        for name in ("way/file", "way/new", "way/deep/new"):
            upload = opened(place.store, 1, number=2, name=name)
            finish = finish_of(upload, b"x", name=name, if_exists=if_exists)
            assert isinstance(outcomes(place.store, *written(upload, b"x"), finish)[-1], NotPermitted)
            place.store.decide([Discard(upload.key)])
            upload.close()
        upload = opened(place.store, 1, name="file")
        finish = finish_of(upload, b"x", name="file", if_exists=if_exists)
        outcomes(place.store, *written(upload, b"x"), finish)
        upload.close()
        place.store.decide([Discard(upload.key)])
        assert sorted(path.name for path in outside.iterdir()) == ["file"]
        assert (outside / "file").read_bytes() == b"theirs"

    @pytest.mark.clause("BP1-NAM-006")
    def test_a_folder_swapped_for_a_link_leads_nowhere(self, place: LocalPlace, tmp_path: Path) -> None:
        """Somebody swaps a folder for a link to elsewhere again and again, while files are sent into it."""
        outside, folder, link = tmp_path / "outside", place.folder / "way", place.folder / "link"
        outside.mkdir()
        folder.mkdir()
        link.symlink_to(outside)
        stop = threading.Event()
        renameat2 = ctypes.CDLL(None).renameat2

        def swap() -> None:
            here, exchange = -100, 2
            while not stop.is_set():
                renameat2(here, os.fsencode(folder), here, os.fsencode(link), exchange)

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            for number in range(1, 60):
                works = [
                    brief_of(place.store, b"x", number=number * 20 + n, name=f"way/{n}/{number}")
                    for n in range(9)
                ]
                outcomes(place.store, *works)
                names_in(place.store)
                for work in works:
                    work.upload.close()
                place.store.decide([Remove(SafeName.parse("way/0"), recursive=True)])
        finally:
            stop.set()
            swapper.join()
        assert list(outside.iterdir()) == []

    @pytest.mark.clause("BP1-NAM-006")
    def test_removing_a_folder_leaves_what_links_point_to(self, place: LocalPlace, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_bytes(b"theirs")
        put(place.store, "folder/deep/file")
        (place.folder / "folder/way").symlink_to(outside)
        (place.folder / "folder/deep/link").symlink_to(outside / "file")
        assert outcome(place.store, Remove(SafeName.parse("folder"), recursive=True)) is None
        assert (outside / "file").read_bytes() == b"theirs"
        assert not (place.folder / "folder").exists()

    def test_names_that_are_no_names(self, place: LocalPlace) -> None:
        put(place.store, "good")
        os.mkdir(os.fsencode(place.folder) + b"/\xff-folder")
        (place.folder / "line\nbreak").write_bytes(b"")
        assert names_in(place.store) == ["good"]

    def test_a_listing_in_windows(self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blockproto.store.local.listing, "WINDOW", 3)
        wanted = []
        for number in range(10):
            (place.folder / f"d{number}").mkdir()
            wanted.append(f"d{number}")
            for inside in range(5):
                (place.folder / f"d{number}/{inside}").write_bytes(b"")
                wanted.append(f"d{number}/{inside}")
        for limit in (1, 7, 100):
            assert names_in(place.store, limit=limit) == wanted
        monkeypatch.setattr(blockproto.store.local.listing, "KEPT_NAMES_MAX", 0)
        assert names_in(place.store, limit=4) == wanted

    def test_long_names(self, place: LocalPlace) -> None:
        long = "長" * 82 + ".tar.gz"
        assert len(long.encode()) <= 255
        first = put(place.store, long)
        second = put(place.store, long, number=2)
        assert first.stored_as == long
        assert second.stored_as == "長" * 81 + " (1).tar.gz"
        assert len(second.stored_as.encode()) <= 255

    def test_mode_without_the_owners_rights(self, place: LocalPlace) -> None:
        facts = Facts(SafeName.parse(NAME), "a/b", 5, mode=0o000)
        upload = place.store.begin_brief(key_of(1), facts, 0)
        upload.write(0, memoryview(b"hello"))
        block = BlockDone(upload, 0, 0, 5, digest_of(b"hello"))
        stored(place.store, Finish(upload, 0, digest_of(b"hello"), 5, facts, (block,)))
        assert (place.folder / NAME).stat().st_mode & 0o777 == 0
        folder = Facts(SafeName.parse("folder"), FOLDER_FILETYPE, 0, mode=0o500)
        made = place.store.begin_brief(key_of(2), folder, 0)
        stored(place.store, Finish(made, 0, EMPTY_DIGEST, 0, folder))
        assert (place.folder / "folder").stat().st_mode & 0o777 == 0o700

    def test_removing_ends_with_the_receipts_of_all_inside(self, place: LocalPlace) -> None:
        put(place.store, "a/b/c")
        put(place.store, "a/d", number=2)
        place.store.decide([Remove(SafeName.parse("a"), recursive=True)])
        with place.store.context.ledger.read() as view:
            assert list(view.items(b"i")) == list(view.items(b"n")) == []

    @pytest.mark.clause("BP1-COM-011")
    def test_receipts_of_files_that_are_gone_are_swept_after_a_day(self, place: LocalPlace) -> None:
        for number in range(1, 4):
            put(place.store, f"f{number}", number=number)
        (place.folder / "f2").unlink()
        place.store.decide(place.store.sweep())
        with place.store.context.ledger.read() as view:
            assert len(list(view.items(b"i"))) == 3
        place.now_ms += RECEIPT_GRACE_MS
        place.store.decide(place.store.sweep())
        with place.store.context.ledger.read() as view:
            assert [receipt.stored_as for receipt in view.receipts()] in (["f1", "f3"], ["f3", "f1"])

    @pytest.mark.clause("BP1-RES-022")
    def test_an_open_upload_does_not_expire(self, place: LocalPlace) -> None:
        upload = opened(place.store, 2 * BLOCK_LENGTH)
        place.store.decide(written(upload, pattern(2 * BLOCK_LENGTH), [0]))
        place.pass_time(2 * EXPIRY_MS)
        assert [work for work in place.store.sweep() if isinstance(work, Discard)] == []
        place.store.decide([Discard(upload.key, expired_ms=place.now_ms)])
        upload.close()
        assert len(opened(place.store, 2 * BLOCK_LENGTH).held) == 1

    def test_the_sweep_ends(self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sweep that cannot be carried out is not asked for again at once."""
        monkeypatch.setattr(blockproto.store.local.expiry_sweep, "PART", 2)
        for number in range(1, 6):
            upload = opened(place.store, 2 * BLOCK_LENGTH, number=number, name=f"f{number}")
            place.store.decide(written(upload, pattern(2 * BLOCK_LENGTH), [0]))
            upload.close()
        place.pass_time(2 * EXPIRY_MS)
        first = place.store.sweep()
        assert len(first) == 2
        seen: list[Discard] = []
        for _ in range(10):
            works = place.store.sweep()
            place.store.decide(works)
            seen += [work for work in works if isinstance(work, Discard)]
        assert place.store.uploads(ANYBODY, "", 10) == ([], "")
        assert list(place.store.sweep()) == []

    def test_records_of_finished_blocks_go_little_by_little(
        self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blockproto.store.local.ledger_view, "TRIM_MAX", 2)
        put(place.store, NAME, pattern(6 * BLOCK_LENGTH))
        left = []
        for _ in range(8):
            place.store.decide([Tidy()])
            with place.store.context.ledger.read() as view:
                left.append(len(list(view.items(b"d"))))
        assert left == sorted(left, reverse=True)
        assert left[-1] == 0
        with place.store.context.ledger.read() as view:
            assert list(view.items(b"g")) == list(view.items(b"b")) == list(view.items(b"f")) == []

    def test_unknown_partials_go_after_a_while(
        self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (place.partials / ("ab" * 16)).write_bytes(b"left behind")
        place.reopen()
        assert place.leftovers() == 1
        monkeypatch.setattr(blockproto.store.local.recovery, "ORPHAN_GRACE_S", -10)
        place.reopen()
        assert place.leftovers() == 0

    def test_unknown_partials_go_from_a_store_that_runs_on(
        self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live = opened(place.store, 20)
        live.write(0, memoryview(b"not recorded yet"))
        (place.partials / ("ab" * 16)).write_bytes(b"left behind")
        assert not place.store.sweep()
        assert place.leftovers() == 2
        monkeypatch.setattr(blockproto.store.local.recovery, "ORPHAN_GRACE_S", -10)
        assert not place.store.sweep()
        assert place.leftovers() == 1
        live.close()

    def test_files_stay_closed_while_small_ones_wait(self, place: LocalPlace) -> None:
        gc.collect()  # what other tests left is not closed in the middle of this one
        before = len(os.listdir("/proc/self/fd"))
        works = [brief_of(place.store, b"x", number=n, name=f"d{n}/x") for n in range(1, 400)]
        assert len(os.listdir("/proc/self/fd")) == before
        place.store.decide(works)
        for work in works:
            work.upload.close()
        place.store.decide([Tidy()])
        assert len(os.listdir("/proc/self/fd")) <= before + 1

    def test_no_file_is_left_open(self, place: LocalPlace) -> None:
        def round_trip(number: int) -> None:
            put(place.store, f"a/{number}", pattern(2 * BLOCK_LENGTH), number=number)
            place.store.open_file(SafeName.parse(f"a/{number}"), None).close()
            names_in(place.store)
            place.store.decide([Remove(SafeName.parse(f"a/{number}"))])

        round_trip(1)
        gc.collect()  # what other tests left is not closed in the middle of this one
        before = len(os.listdir("/proc/self/fd"))
        for number in range(2, 10):
            round_trip(number)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_late_writer_never_writes_into_another_file(self, place: LocalPlace) -> None:
        """The number of a file is not closed under a write, or it would soon be another file's."""
        upload = opened(place.store, 2 * BLOCK_LENGTH)
        upload.write(0, memoryview(b"first"))
        assert isinstance(upload, LocalUpload)
        with upload.partial._opened() as fd:
            upload.partial.leave()
            assert os.fstat(fd).st_size == 5
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        with pytest.raises(UnknownUpload):
            upload.write(0, memoryview(b"late"))

    # -- trouble

    def test_a_full_disk_in_a_write(self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [0]))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing(errno.ENOSPC))
            with pytest.raises(StoreFull):
                upload.write(BLOCK_LENGTH, memoryview(content[BLOCK_LENGTH:]))
        stored(place.store, *written(upload, content, [1, 2]), finish_of(upload, content))
        assert place.content(NAME) == content

    @pytest.mark.parametrize(
        ("number", "error"),
        [
            (errno.EDQUOT, StoreFull),
            (errno.EROFS, NotPermitted),
            (errno.EACCES, NotPermitted),
            (errno.EMFILE, Refused),
        ],
    )
    def test_a_partial_that_cannot_be_made(
        self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BlockprotoError]
    ) -> None:
        monkeypatch.setattr(blockproto.store.local.partial_file, "create_file", failing(number))
        upload = opened(place.store, 10)
        with pytest.raises(error):
            upload.write(0, memoryview(b"0123456789"))
        monkeypatch.undo()
        stored(place.store, *written(upload, b"0123456789"), finish_of(upload, b"0123456789"))

    def test_a_broken_disk_in_a_write_ends_the_store(
        self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload = opened(place.store, 10)
        brief = place.store.begin_brief(key_of(2), facts_of(5, "brief"), 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing(errno.EIO))
            with pytest.raises(StoreFailed):
                upload.write(0, memoryview(b"0123456789"))
        for call in (
            lambda: upload.write(0, memoryview(b"0123456789")),
            lambda: brief.write(0, memoryview(b"01234")),
            lambda: place.store.decide([]),
            lambda: place.store.open_upload(key_of(3), facts_of(1), 1),
            lambda: place.store.begin_brief(key_of(3), facts_of(1), 1),
            lambda: place.store.sweep(),
        ):
            with pytest.raises(StoreFailed):
                call()

    @pytest.mark.parametrize("step", ["make", "move_new"])
    def test_a_full_disk_while_a_name_is_given(
        self, place: LocalPlace, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        """The upload stays, its receipt does not, and it can be committed when there is room."""
        content = pattern(BLOCK_LENGTH + 1)
        upload = opened(place.store, len(content))
        with monkeypatch.context() as patch:
            if step == "make":
                patch.setattr(blockproto.store.folder_io.Folders, "make", failing(errno.ENOSPC))
            else:
                patch.setattr(blockproto.store.local.publishing, "move_new", failing(errno.ENOSPC))
            found = outcomes(place.store, *written(upload, content), finish_of(upload, content))
        assert isinstance(found[-1], StoreFull)
        assert place.store.receipts(ANYBODY, [upload.key.sourceid]) == []
        upload.close()
        place.crash()
        again = opened(place.store, len(content))
        assert len(again.held) == 2
        stored(place.store, finish_of(again, content))
        assert place.content(NAME) == content

    def test_a_ledger_of_another_format(self, place: LocalPlace) -> None:
        with place.store.context.ledger._env.begin(write=True) as txn:
            txn.put(b"m", b"\0\0\0\x63" + bytes(40))
        place.store.context.opened.close()
        with pytest.raises(StoreFailed, match="format"):
            place.open()
        env = lmdb.open(str(place.folder / ".blockproto/ledger"))
        with env.begin(write=True) as txn:
            txn.delete(b"m")
        env.close()
        place.store = place.files = place.open()


def failing(number: int) -> Callable[..., Any]:
    """A call that fails."""

    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


# -- opening


def test_a_folder_has_one_store(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path)
    with pytest.raises(StoreInUse):
        LocalStore.open(tmp_path)
    with pytest.raises(StoreInUse):
        check_store(tmp_path)
    store.close()
    LocalStore.open(tmp_path).close()


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotPermitted, match="no folder"):
        LocalStore.open(tmp_path / "no")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotPermitted, match="not a folder"):
        LocalStore.open(tmp_path / "file")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", failing(errno.EROFS))
    with pytest.raises(NotPermitted, match="read-only"):
        LocalStore.open(tmp_path)


def test_the_state_may_be_elsewhere(tmp_path: Path) -> None:
    folder, state = tmp_path / "served", tmp_path / "state"
    folder.mkdir()
    store = LocalStore.open(folder, state=state)
    content = pattern(2 * BLOCK_LENGTH)
    upload = opened(store, len(content))
    store.decide(written(upload, content, [0]))
    assert len(list(partials_of(state).iterdir())) == 1
    assert list(folder.iterdir()) == []
    stored(store, *written(upload, content, [1]), finish_of(upload, content))
    store.close()
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert check_store(folder, state, read=True) == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system here")
def test_partials_stay_beside_the_folder_when_the_state_is_on_another_file_system(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    if folder.stat().st_dev == os.stat("/dev/shm").st_dev:
        pytest.skip("temporary files are on /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as state:
        store = LocalStore.open(folder, state=Path(state))
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(store, len(content))
        store.decide(written(upload, content, [0]))
        assert len(list(partials_of(folder / ".blockproto").iterdir())) == 1
        stored(store, *written(upload, content, [1]), finish_of(upload, content))
        store.close()
        assert (folder / NAME).read_bytes() == content
        assert check_store(folder, Path(state), read=True) == []


def test_the_state_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(NotPermitted, match="served"):
        LocalStore.open(tmp_path, state=tmp_path / "state")
    LocalStore.open(tmp_path, state=tmp_path / ".blockproto").close()


@pytest.mark.clause("BP1-RES-017")
def test_a_wiped_store_has_a_greater_incarnation(tmp_path: Path) -> None:
    times = iter(range(NOW_MS, NOW_MS + 1000))
    store = LocalStore.open(tmp_path, now_ms=lambda: next(times))
    before = store.incarnation
    store.close()
    shutil.rmtree(tmp_path / ".blockproto")
    store = LocalStore.open(tmp_path, now_ms=lambda: next(times))
    assert store.incarnation > before
    store.close()


def test_a_damaged_ledger_is_said_so(tmp_path: Path) -> None:
    LocalStore.open(tmp_path).close()
    path = tmp_path / ".blockproto/ledger/data.mdb"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(StoreFailed):
        LocalStore.open(tmp_path)
    assert check_store(tmp_path) != []


# -- the rest of the ledger


def test_an_open_upload_with_a_hundred_thousand_blocks_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 ms is promised; the bound here is wide, for busy machines."""
    store = LocalStore.open(tmp_path)
    count = 100_000
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "_check_room", lambda *_: None)
        upload = opened(store, count * BLOCK_LENGTH)
    assert isinstance(upload, LocalUpload)
    upload.partial.write(0, memoryview(b"x"))
    os.truncate(partials_of(tmp_path / ".blockproto") / upload.partial.name.decode(), count * BLOCK_LENGTH)
    with store.context.ledger.write() as view:
        view.put_upload(upload.record)
        view.add_blocks(upload.partial.storage_id, dict.fromkeys(range(count), bytes(32)))
    upload.partial.recorded = True
    upload.close()
    store.close()
    store = LocalStore.open(tmp_path)
    begun = time.perf_counter()
    again = opened(store, count * BLOCK_LENGTH)
    took_s = time.perf_counter() - begun
    assert len(again.held) == count
    assert took_s < 0.2
    store.close()


@pytest.mark.clause("BP1-RES-023")
@pytest.mark.root
def test_a_full_disk_and_room_again(tmp_path: Path) -> None:
    """On a small file system: what is refused for want of room is taken when there is some, without a restart."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        (mount / "served").mkdir()
        store = LocalStore.open(mount / "served")
        _fill_and_make_room(store, mount)
        store.close()
        assert check_store(mount / "served", read=True) == []
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True, timeout=60)


def _fill_and_make_room(store: LocalStore, mount: Path) -> None:
    content = pattern(9 * BLOCK_LENGTH)
    upload = opened(store, len(content))
    acknowledged: list[int] = []
    free = os.statvfs(mount).f_bavail * os.statvfs(mount).f_bsize
    (mount / "other").write_bytes(bytes(free - 4 * BLOCK_LENGTH))
    with pytest.raises(StoreFull):
        _send_until_refused(store, upload, content, acknowledged)
    assert acknowledged
    with pytest.raises(StoreFull):
        opened(store, len(content), number=2)
    assert outcome(store, KeepPrefixes(upload, 1, {})) is None, "the ledger has its ballast"
    (mount / "other").unlink()
    again = opened(store, len(content))
    assert list(again.held) == acknowledged
    stored(store, *written(again, content, again.held.missing(9)), finish_of(again, content))


def _send_until_refused(store: LocalStore, upload: Upload, content: bytes, acknowledged: list[int]) -> None:
    for blockno in range(9):
        assert outcomes(store, *written(upload, content, [blockno])) == [None]
        acknowledged.append(blockno)


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_ledger_without_room_undoes_its_batch(
    full: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the batch is recorded, nothing gets its name, and the store lives on.

    EIO is what LMDB makes of a write that was cut short.
    """
    monkeypatch.setattr(blockproto.store.local.ledger, "SCARCE_BYTES", 1 << 80)
    store = LocalStore.open(tmp_path)
    content = pattern(2 * BLOCK_LENGTH)
    upload = opened(store, len(content))
    brief = brief_of(store, b"brief", number=2, name="brief")
    works = [*written(upload, content), finish_of(upload, content), brief]
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write", _full_ledger(Ledger.write, full))
        found = outcomes(store, *works)
    assert [type(one) for one in found] == [StoreFull] * 4
    assert names_in(store) == []
    assert store.uploads(ANYBODY, "", 10) == ([], "")
    assert [type(one) for one in outcomes(store, *works)] == [type(None), type(None), StoredFile, StoredFile]
    assert (tmp_path / NAME).read_bytes() == content
    brief.upload.close()
    upload.close()
    store.close()
    assert check_store(tmp_path, read=True) == []


def test_a_broken_medium_of_the_ledger_ends_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO while the disk has room, whether or not blocks can be reserved there."""
    monkeypatch.setattr(blockproto.store.local.ledger, "SCARCE_BYTES", 0)
    for reserves in (lambda *_, **__: True, failing(errno.EIO)):
        store = LocalStore.open(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(blockproto.store.local.ledger, "reserve", reserves)
            patch.setattr(Ledger, "write", _full_ledger(Ledger.write, errno.EIO))
            with pytest.raises(StoreFailed, match="Input/output error"):
                store.decide([brief_of(store, b"content")])
        store.close()


def test_a_quota_that_cuts_a_write_short_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room and nothing can be reserved there any more."""
    monkeypatch.setattr(blockproto.store.local.ledger, "SCARCE_BYTES", 0)
    store = LocalStore.open(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(blockproto.store.local.ledger, "reserve", lambda *_, **__: False)
        patch.setattr(Ledger, "write", _full_ledger(Ledger.write, errno.EIO))
        refused(store, brief_of(store, b"content"), StoreFull)
    stored(store, brief_of(store, b"content"))
    store.close()


def _full_ledger(real: Callable[[Ledger], Any], full: int) -> Callable[[Ledger], Any]:
    error = lmdb.DiskError if full == errno.ENOSPC else lmdb.Error

    @contextmanager
    def write(ledger: Ledger) -> Iterator[Any]:
        with real(ledger) as view:
            yield view
            raised = error(f"mdb_txn_commit: {os.strerror(full)}")
            raised.code = full
            raise raised

    return write


# -- what goes wrong in the middle


def test_too_few_files_for_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A brief file that cannot be opened again is synced with everything else; that is no failure of the medium."""
    store = LocalStore.open(tmp_path)
    work = brief_of(store, b"content")
    with monkeypatch.context() as patch:
        patch.setattr(blockproto.store.local.partial_file, "open_file", failing(errno.EMFILE))
        stored(store, work)
    content = pattern(BLOCK_LENGTH + 1)
    upload = opened(store, len(content), number=2, name="big")
    assert isinstance(upload, LocalUpload)
    works = written(upload, content)
    upload.partial._file.rest()
    with monkeypatch.context() as patch:
        patch.setattr(blockproto.store.local.partial_file, "open_file", failing(errno.EMFILE))
        assert outcomes(store, *works) == [None, None]
    stored(store, finish_of(upload, content, name="big"))
    store.close()
    assert check_store(tmp_path, read=True) == []


def test_a_block_whose_partial_is_gone(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path)
    content = pattern(2 * BLOCK_LENGTH)
    never = opened(store, len(content))
    refused(store, BlockDone(never, 1, 0, BLOCK_LENGTH, EMPTY_DIGEST), UnknownUpload)
    refused(store, KeepPrefixes(never, 1, {0: Prefix(1, EMPTY_DIGEST)}), UnknownUpload)
    works = written(never, content)
    never.close()
    assert [type(one) for one in outcomes(store, *works)] == [UnknownUpload, UnknownUpload]
    assert store.uploads(ANYBODY, "", 10) == ([], "")
    store.close()
    assert check_store(tmp_path) == []


def test_a_folder_that_goes_while_its_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody removes the folder before it is synced: the store lives on."""
    store = LocalStore.open(tmp_path)
    real = blockproto.store.folder_io.Folders.sync

    def sync(folders: blockproto.store.folder_io.Folders) -> None:
        shutil.rmtree(tmp_path / "going", ignore_errors=True)
        folders.close()
        real(folders)

    with monkeypatch.context() as patch:
        patch.setattr(blockproto.store.folder_io.Folders, "sync", sync)
        stored(store, brief_of(store, b"x", name="going/x"))
    assert store.receipts(ANYBODY, [key_of(1).sourceid]) == []
    put(store, "staying", number=2)
    store.close()


def test_many_folders_in_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More folders than are kept open at once."""
    monkeypatch.setattr(blockproto.store.folder_io.Folders, "OPEN_MAX", 3)
    store = LocalStore.open(tmp_path)
    works = [brief_of(store, b"x", number=n, name=f"{n % 7}/{n % 5}/{n}") for n in range(1, 60)]
    assert all(isinstance(one, StoredFile) for one in outcomes(store, *works))
    assert len(names_in(store)) == 59 + 7 + 35
    store.decide([Remove(SafeName.parse(f"{n}"), recursive=True) for n in range(7)])
    assert names_in(store) == []
    store.close()


@pytest.mark.parametrize("trouble", ["no name", "no room", "a file in the way"])
def test_a_taken_name_and_more_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Somebody else takes the name after it was recorded, and another cannot be had: the upload stays."""
    store = LocalStore.open(tmp_path)
    content = pattern(BLOCK_LENGTH + 1)
    upload = opened(store, len(content), name="deep/file")
    works = [*written(upload, content), finish_of(upload, content, name="deep/file")]
    real, writes = blockproto.store.local.publishing.Publisher.record, [0]

    def record(publisher: blockproto.store.local.publishing.Publisher, view: Any) -> None:
        real(publisher, view)
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep/file").write_bytes(b"somebody else's")
        writes[0] += 1

    with monkeypatch.context() as patch:
        patch.setattr(blockproto.store.local.publishing.Publisher, "record", record)
        if trouble == "no name":
            patch.setattr(blockproto.store.local.name_choice, "first_free", lambda *_: _refuse())
        elif trouble == "no room":
            patch.setattr(Ledger, "write", _full_after(Ledger.write, 1))
        else:
            patch.setattr(blockproto.store.local.name_choice, "look", failing(errno.ENOTDIR))
        found = outcomes(store, *works)
    assert isinstance(found[-1], StoreFull if trouble == "no room" else BlockprotoError)
    assert not isinstance(found[-1], StoredFile)
    assert (tmp_path / "deep/file").read_bytes() == b"somebody else's"
    upload.close()
    again = opened(store, len(content))
    assert len(again.held) == 2
    assert stored(store, finish_of(again, content, name="deep/file")).stored_as == "deep/file (1)"
    store.close()
    assert check_store(tmp_path, read=True) == []


def _refuse() -> None:
    raise NameRefused("no room for a number")


def _full_after(real: Callable[[Ledger], Any], good: int) -> Callable[[Ledger], Any]:
    left = [good]

    @contextmanager
    def write(ledger: Ledger) -> Iterator[Any]:
        left[0] -= 1
        with real(ledger) as view:
            yield view
            if left[0] < 0:
                raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    return write


def _killed_before_publish(folder: Path, content: bytes, if_exists: IfExists) -> None:
    store = LocalStore.open(folder)
    upload = opened(store, len(content))
    works = [*written(upload, content), finish_of(upload, content, if_exists=if_exists)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockproto.store.local.publishing.Publisher, "publish", _die)
        with pytest.raises(KeyboardInterrupt):
            store.decide(works)
    store.context.opened.close()


def _die(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("if_exists", [IfExists.KEEP, IfExists.REPLACE])
def test_recovery_gives_the_name(tmp_path: Path, if_exists: IfExists) -> None:
    content = pattern(BLOCK_LENGTH + 1)
    if if_exists is IfExists.REPLACE:
        (tmp_path / NAME).write_bytes(b"old")
    _killed_before_publish(tmp_path, content, if_exists)
    store = LocalStore.open(tmp_path)
    assert (store.findings, (tmp_path / NAME).read_bytes()) == ([], content)
    facts = facts_of(len(content), if_exists=if_exists)
    assert isinstance(store.open_upload(key_of(1), facts, 2), StoredFile)
    store.close()


def test_recovery_leaves_a_name_that_was_taken(tmp_path: Path) -> None:
    content = pattern(BLOCK_LENGTH + 1)
    _killed_before_publish(tmp_path, content, IfExists.KEEP)
    (tmp_path / NAME).write_bytes(b"somebody else's")
    store = LocalStore.open(tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"somebody else's"
    assert store.findings == []
    again = opened(store, len(content))
    assert len(again.held) == 2
    assert stored(store, finish_of(again, content)).stored_as == "file (1).bin"
    store.close()
    assert check_store(tmp_path, read=True) == []


def test_recovery_on_a_broken_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _killed_before_publish(tmp_path, pattern(10), IfExists.KEEP)
    with monkeypatch.context() as patch:
        patch.setattr(blockproto.store.local.recovery, "move_new", failing(errno.EIO))
        with pytest.raises(StoreFailed):
            LocalStore.open(tmp_path)
    store = LocalStore.open(tmp_path)
    assert (tmp_path / NAME).read_bytes() == pattern(10)
    store.close()


def test_a_kernel_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockproto.store.folder_io, "_renameat2", None)
    store = LocalStore.open(tmp_path)
    assert put(store, NAME).stored_as == NAME
    assert put(store, NAME, number=2).stored_as == "file (1).bin"
    assert store.sweep()
    store.close()
    assert check_store(tmp_path, read=True) == []


# -- more of the middle


def test_many_uploads_in_one_batch(tmp_path: Path) -> None:
    """More than are synced one by one, together with brief files and a folder."""
    store = LocalStore.open(tmp_path)
    content = pattern(BLOCK_LENGTH + 1)
    uploads = [opened(store, len(content), number=n, name=f"big{n}") for n in range(1, 12)]
    blocks = [work for upload in uploads for work in written(upload, content)]
    ends = [finish_of(upload, content, name=f"big{n}") for n, upload in enumerate(uploads, 1)]
    briefs = [brief_of(store, b"x", number=100 + n, name=f"brief{n}") for n in range(12)]
    found = outcomes(store, *blocks, *ends, *briefs)
    assert found[: len(blocks)] == [None] * len(blocks)
    assert all(isinstance(one, StoredFile) for one in found[len(blocks) :])
    for upload in uploads:
        upload.close()
    store.close()
    assert check_store(tmp_path, read=True) == []


def test_a_bad_brief_file_among_many(tmp_path: Path) -> None:
    """One whose bytes are missing is refused; the others are stored."""
    store = LocalStore.open(tmp_path)
    works = [brief_of(store, b"content", number=n, name=f"f{n}") for n in range(1, 15)]
    block = BlockDone(works[3].upload, 0, 0, 99, works[3].root)
    works[3] = replace(works[3], filesize=99, blocks=(block,))
    found = outcomes(store, *works)
    assert isinstance(found[3], UnknownUpload)
    assert all(isinstance(one, StoredFile) for one in found[:3] + found[4:])
    for work in works:
        work.upload.close()
    store.close()
    assert check_store(tmp_path, read=True) == []


def test_reading_and_breaking_a_brief_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore.open(tmp_path)
    upload = store.begin_brief(key_of(1), facts_of(BRIEF_LENGTH_MAX + 1), 0)
    view = memoryview(bytearray(10))
    assert upload.read_into(0, view) == 0
    upload.write(0, memoryview(b"hello"))
    assert upload.read_into(0, view) == 5
    assert upload.digests([0]) == {}
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(errno.ENOSPC))
        with pytest.raises(StoreFull):
            upload.write(5, memoryview(b"world"))
        patch.setattr(os, "preadv", failing(errno.EACCES))
        with pytest.raises(NotPermitted):
            upload.read_into(0, view)
        patch.setattr(os, "pwrite", failing(errno.EIO))
        with pytest.raises(StoreFailed):
            upload.write(5, memoryview(b"world"))
    with pytest.raises(StoreFailed):
        store.decide([])
    upload.close()
    with pytest.raises(UnknownUpload):
        upload.read_into(0, view)
    store.close()


def _partials(folder: Path) -> list[str]:
    return os.listdir(partials_of(folder / ".blockproto"))


def test_a_small_brief_file_is_made_with_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then its bytes are in memory, and a full disk is met by the commit; the same commit can be repeated."""
    store = LocalStore.open(tmp_path)
    work = brief_of(store, b"content")
    view = memoryview(bytearray(20))
    assert work.upload.read_into(3, view) == 4
    assert bytes(view[:4]) == b"tent"
    assert _partials(tmp_path) == []
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(errno.ENOSPC))
        refused(store, work, StoreFull)
    stored(store, work)
    work.upload.close()
    assert (tmp_path / NAME).read_bytes() == b"content"
    broken = brief_of(store, b"more", name="more", number=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(errno.EIO))
        with pytest.raises(StoreFailed):
            store.decide([broken])
    store.close()


def test_brief_files_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockproto.store.local.context, "CARRIED_LENGTH_MAX", 10)
    store = LocalStore.open(tmp_path)
    first, second = (brief_of(store, bytes(7), name=f"{n}", number=n) for n in (1, 2))
    assert len(_partials(tmp_path)) == 1
    stored(store, first)
    stored(store, second)
    for work in (first, second, second):
        work.upload.close()
    third = brief_of(store, bytes(10), name="3", number=3)
    assert _partials(tmp_path) == []
    stored(store, third)


def test_an_upload_begun_anew_behind_a_handle(tmp_path: Path) -> None:
    """A handle of an upload that was discarded and begun again cannot touch the new one."""
    store = LocalStore.open(tmp_path)
    content = pattern(2 * BLOCK_LENGTH)
    old = opened(store, len(content))
    late = written(old, content, [0])[0]
    store.decide([Discard(old.key)])
    new = opened(store, len(content))
    assert outcomes(store, *written(new, content, [1])) == [None]
    refused(store, late, UnknownUpload)
    refused(store, Forget(old, 9, (1,)), UnknownUpload)
    assert list(new.digests([1])) == [1]
    new.close()
    old.close()
    assert opened(store, len(content)).held == BlockSet([(1, 1)])


def test_two_commits_of_one_sourceid_with_other_bytes_in_one_batch(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path)
    found = outcomes(store, brief_of(store, b"one"), brief_of(store, b"two"))
    assert isinstance(found[0], StoredFile)
    assert isinstance(found[1], SourceChanged)


def test_a_folder_has_no_bytes(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path)
    facts = Facts(SafeName.parse("folder"), FOLDER_FILETYPE, 5, mtime_ns=7)
    upload = store.begin_brief(key_of(1), facts, 0)
    block = BlockDone(upload, 0, 0, 5, digest_of(b"hello"))
    refused(store, Finish(upload, 0, digest_of(b"hello"), 5, facts, (block,)), BadFacts)
    empty = replace(facts, filesize=0)
    stored(store, Finish(upload, 0, EMPTY_DIGEST, 0, empty))
    assert store.stat(SafeName.parse("folder")).mtime_ns == 7


def test_a_replaced_name_whose_publication_fails_keeps_its_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore.open(tmp_path)
    first = put(store, NAME, b"first")
    upload = opened(store, 6, number=2)
    works = [*written(upload, b"second"), finish_of(upload, b"second", if_exists=IfExists.REPLACE)]
    with monkeypatch.context() as patch:
        patch.setattr(blockproto.store.local.publishing, "move_over", failing(errno.ENOSPC))
        assert isinstance(outcomes(store, *works)[-1], StoreFull)
    assert store.receipts(ANYBODY, [first.sourceid]) == [first]
    assert store.stat(SafeName.parse(NAME)).file_id == first.file_id
    assert isinstance(outcome(store, works[-1]), StoredFile)
    assert (tmp_path / NAME).read_bytes() == b"second"


def test_a_broken_medium_while_a_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore.open(tmp_path)
    work = brief_of(store, b"content")
    with monkeypatch.context() as patch:
        patch.setattr(blockproto.store.local.publishing, "move_new", failing(errno.EIO))
        with pytest.raises(StoreFailed):
            store.decide([work])
    with pytest.raises(StoreFailed):
        store.decide([])


def test_a_broken_medium_while_a_commit_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore.open(tmp_path)
    put(store, NAME)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing(errno.EIO))
        with pytest.raises(StoreFailed):
            store.decide([Remove(SafeName.parse(NAME))])


def test_a_crowded_ledger_takes_no_new_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore.open(tmp_path)
    content = pattern(2 * BLOCK_LENGTH)
    old = opened(store, len(content))
    store.decide(written(old, content, [0]))
    old.close()
    monkeypatch.setattr(blockproto.store.local.ledger, "MAP_USED_MAX", 0.0)
    with pytest.raises(StoreFull):
        opened(store, len(content), number=2)
    refused(store, brief_of(store, b"x", number=3, name="brief"), StoreFull)
    again = opened(store, len(content))
    stored(store, *written(again, content, [1]), finish_of(again, content))


def test_uploads_of_others_are_not_listed(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path)
    for number, principal in enumerate((b"a" * 16, b"b" * 16, b"c" * 16)):
        upload = store.open_upload(key_of(number, principal), facts_of(10), 1)
        assert not isinstance(upload, StoredFile)
        store.decide(written(upload, pattern(10)))
    entries, cursor = store.uploads(b"b" * 16, "", 10)
    assert [entry.key.principal for entry in entries] == [b"b" * 16]
    assert cursor == ""


def test_a_large_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockproto.store.local.expiry_sweep, "PART", 3)
    clock = [NOW_MS]
    store = LocalStore.open(tmp_path, now_ms=lambda: clock[0])
    works = [brief_of(store, b"x", number=n, name=f"f{n}") for n in range(1, 11)]
    store.decide(works)
    for path in tmp_path.glob("f*"):
        path.unlink()
    clock[0] += RECEIPT_GRACE_MS
    for _ in range(8):
        store.decide(store.sweep())
    with store.context.ledger.read() as view:
        assert list(view.items(b"i")) == []
    assert list(store.sweep()) == []

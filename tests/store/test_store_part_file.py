"""The download store: the contract, and what it does beside a destination."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_faults import DescriptorRules, eio, stop_pwrite

from blockproto.common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, BlockSet, block_span, digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.errors import FileExists, NotPermitted, StoreFailed, StoreFull, StoreInUse
from blockproto.store import (
    FOLDER_FILETYPE,
    BlockDone,
    Destination,
    Facts,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    Prefix,
    Remove,
    StoredFile,
    Upload,
    folder_io,
)
from blockproto.store.part_file.ledger import PartFileLedger
from blockproto.store.part_file.part_names import names_of
from blockproto.store.part_file.store import PartFileStore
from blockproto.store.part_file.target_folder import TargetFolder as Folder
from blockproto.testing.store_contract import Place
from blockproto.testing.store_contract.steps import (
    NAME,
    NOW_MS,
    facts_of,
    finish_of,
    key_of,
    opened,
    outcomes,
    pattern,
    refused,
    stored,
    written,
)

LABEL = "0123456789abcdef"
PARTIAL, LEDGER, LOCK = names_of(LABEL)


def destination(path: Path, label: str = LABEL) -> Destination:
    return Destination(path, label)


class SidecarPlace:
    """A folder of downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_ms = NOW_MS
        self.first = 0
        self.patch = pytest.MonkeyPatch()
        self.store = self.open()

    def open(self) -> PartFileStore:
        return PartFileStore(destination(self.folder / NAME), first=self.first, now_ms=lambda: self.now_ms)

    def reopen(self) -> None:
        self.store.close()
        self.store = self.open()

    def crash(self) -> None:
        self.patch.undo()
        files = self.store._files
        files._file.shut()
        files.ledger.close()
        os.close(files._lock._fd)
        files._place.close()
        self.store = self.open()

    def content(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    def put_there(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def leftovers(self) -> int:
        return len([path for path in self.folder.iterdir() if path.name in (PARTIAL, LEDGER)])

    def fill_disk(self) -> None:
        self.patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]

    def break_medium(self) -> None:
        self.patch.setattr(os, "fsync", eio)
        self.patch.setattr(os, "fdatasync", eio)

    def stop_writes(self, entered: threading.Event, go_on: threading.Event) -> None:
        stop_pwrite(self.patch, entered, go_on)

    def done(self) -> None:
        self.patch.undo()
        self.store.close()


class TestSidecarStore(DescriptorRules):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[SidecarPlace]:
        place = SidecarPlace(tmp_path)
        yield place
        place.done()
        assert not (tmp_path / LOCK).exists()

    def take_away(self, place: Place) -> None:
        assert isinstance(place, SidecarPlace)
        (place.folder / NAME).unlink()

    def mode_and_mtime(self, place: Place) -> tuple[int, int]:
        assert isinstance(place, SidecarPlace)
        found = (place.folder / NAME).stat()
        return found.st_mode & 0o777, found.st_mtime_ns

    # -- what is its own

    def test_a_range_lies_at_the_beginning_of_the_file(self, place: SidecarPlace) -> None:
        content = pattern(4 * BLOCK_LENGTH + 100)
        first, end = BLOCK_LENGTH + 1000, 3 * BLOCK_LENGTH + 5
        place.store.close()
        place.first = first
        place.store = place.open()
        upload = opened(place.store, end)
        assert outcomes(place.store, *range_blocks(upload, content, first, end, [2])) == [None]
        place.reopen()
        again = opened(place.store, end)
        assert again.held == BlockSet([(2, 1)])
        works = range_blocks(again, content, first, end, [1, 3])
        root = root_of(
            [digest_of(content[p : p + n]) for p, n in (block_span(b, first, end) for b in (1, 2, 3))], 3
        )
        stored(place.store, *works, Finish(again, 1, root, end, facts_of(end)))
        assert place.content(NAME) == content[first:end]

    def test_an_empty_range(self, place: SidecarPlace) -> None:
        place.store.close()
        place.first = 500
        place.store = place.open()
        upload = opened(place.store, 500)
        stored(place.store, Finish(upload, 1, EMPTY_DIGEST, 500, facts_of(500)))
        assert place.content(NAME) == b""

    def test_another_range_begins_anew(self, place: SidecarPlace) -> None:
        begin(place)
        place.first = 1
        place.reopen()
        assert place.store.begun() is None
        assert place.leftovers() == 0

    def test_what_was_begun_is_known_before_it_is_opened(self, place: SidecarPlace) -> None:
        assert place.store.begun() is None
        begin(place)
        place.reopen()
        assert place.store.begun() == (key_of(1), facts_of(3 * BLOCK_LENGTH))

    def test_another_file_begins_anew(self, place: SidecarPlace) -> None:
        begin(place)
        place.reopen()
        upload = opened(place.store, BLOCK_LENGTH, number=2)
        assert len(upload.held) == 0
        content = pattern(BLOCK_LENGTH, seed=5)
        stored(place.store, *written(upload, content), finish_of(upload, content))
        assert place.content(NAME) == content
        assert place.leftovers() == 0

    def test_nothing_is_left_when_it_is_complete(self, place: SidecarPlace) -> None:
        begin(place)
        upload = opened(place.store, 3 * BLOCK_LENGTH)
        content = pattern(3 * BLOCK_LENGTH)
        stored(place.store, *written(upload, content, [1, 2]), finish_of(upload, content))
        place.store.close()
        assert [path.name for path in place.folder.iterdir()] == [NAME]

    def test_two_of_one_file_exclude_each_other(self, place: SidecarPlace) -> None:
        with pytest.raises(StoreInUse):
            PartFileStore(destination(place.folder / NAME))
        PartFileStore(destination(place.folder / "another", "ab" * 8)).close()
        place.store.close()
        PartFileStore(destination(place.folder / NAME)).close()

    def test_where_no_file_can_be(self, place: SidecarPlace) -> None:
        (place.folder / "folder").mkdir()
        for dest in (place.folder / "folder", place.folder / "no/file"):
            with pytest.raises(NotPermitted):
                PartFileStore(destination(dest))

    def test_long_names(self, place: SidecarPlace) -> None:
        for name in ("長" * 85, "長" * 84 + "ab."):
            store = PartFileStore(destination(place.folder / name, "ab" * 8))
            upload = opened(store, 10)
            content = pattern(10)
            store.decide([*written(upload, content), Forget(upload, 1, ())])
            assert stored(store, finish_of(upload, content)).stored_as == name
            store.close()
        assert len(set(place.folder.iterdir())) == 3

    def test_a_name_refused_keeps_what_was_acknowledged_with_it(self, place: SidecarPlace) -> None:
        place.put_there(NAME, b"old")
        content = pattern(BLOCK_LENGTH + 1)
        upload = opened(place.store, len(content))
        finish = finish_of(upload, content, if_exists=IfExists.REFUSE)
        found = outcomes(place.store, *written(upload, content), finish)
        assert isinstance(found[-1], FileExists)
        place.crash()
        assert len(opened(place.store, len(content)).held) == 2

    def test_a_partial_that_lost_its_end(self, place: SidecarPlace) -> None:
        upload = opened(place.store, 3 * BLOCK_LENGTH)
        place.store.decide(written(upload, pattern(3 * BLOCK_LENGTH)))
        before = place.store.incarnation
        place.store.close()
        os.truncate(place.folder / PARTIAL, 2 * BLOCK_LENGTH - 1)
        place.store = place.open()
        assert opened(place.store, 3 * BLOCK_LENGTH).held == BlockSet([(0, 1)])
        assert place.store.incarnation > before
        place.reopen()
        assert opened(place.store, 3 * BLOCK_LENGTH).held == BlockSet([(0, 1)])
        place.store.close()
        (place.folder / PARTIAL).unlink()
        place.store = place.open()
        assert len(opened(place.store, 3 * BLOCK_LENGTH).held) == 0

    def test_a_ledger_torn_at_any_byte(self, place: SidecarPlace) -> None:
        """What is read is what stood in whole records, in order; never an error, never more."""
        begin(place)
        upload = opened(place.store, 3 * BLOCK_LENGTH)
        content = pattern(3 * BLOCK_LENGTH)
        place.store.decide([KeepPrefixes(upload, 2, {1: Prefix(3, digest_of(b"abc"))})])
        place.store.decide(written(upload, content, [2], attempt=3))
        place.store.decide([Forget(upload, 3, (0,))])
        place.store.close()
        path = place.folder / LEDGER
        whole = path.read_bytes()
        seen = []
        for length in range(len(whole) + 1):
            path.write_bytes(whole[:length])
            ledger = PartFileLedger(Folder(place.folder), LEDGER)
            begun = ledger.load()
            seen.append(None if begun is None else (sorted(begun.blocks), begun.attempt))
            ledger.close()
        firsts = [one for at, one in enumerate(seen) if at == 0 or seen[at - 1] != one]
        assert firsts == [None, ([], 0), ([], 1), ([0], 1), ([0], 2), ([0], 3), ([0, 2], 3), ([2], 3)]
        place.store = place.open()

    def test_a_ledger_with_any_bit_flipped(self, place: SidecarPlace) -> None:
        begin(place)
        place.store.close()
        path = place.folder / LEDGER
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            ledger = PartFileLedger(Folder(place.folder), LEDGER)
            begun = ledger.load()
            assert begun is None or begun.blocks in (
                {},
                {0: (BLOCK_LENGTH, digest_of(pattern(BLOCK_LENGTH)))},
            )
            ledger.close()
        path.write_bytes(whole)
        place.store = place.open()

    def test_a_disk_that_is_too_small_is_said_to_be_this_machines(
        self, place: SidecarPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begin(place)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
            with pytest.raises(
                StoreFull, match=r"on this machine: \d+ more bytes are needed and 5 are free in "
            ):
                opened(place.store, 3 * BLOCK_LENGTH)

    def test_a_full_disk_in_the_ledger(self, place: SidecarPlace, monkeypatch: pytest.MonkeyPatch) -> None:
        begin(place)
        upload = opened(place.store, 3 * BLOCK_LENGTH)
        content = pattern(3 * BLOCK_LENGTH)
        works = written(upload, content, [1, 2])
        real = os.write

        def write(fd: int, piece: memoryview) -> int:
            if len(piece) > 10:
                return real(fd, piece[:10])
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            assert [type(one) for one in outcomes(place.store, *works)] == [StoreFull, StoreFull]
        place.store.decide(works[:1])
        place.reopen()
        assert opened(place.store, 3 * BLOCK_LENGTH).held == BlockSet([(0, 2)])

    def test_a_full_disk_when_only_the_commit_is_left(
        self, place: SidecarPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its attempt is to be recorded, and cannot be."""
        content = pattern(10)
        upload = opened(place.store, len(content))
        assert outcomes(place.store, *written(upload, content)) == [None]

        def write(fd: int, piece: memoryview) -> int:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            refused(place.store, finish_of(upload, content, attempt=2), StoreFull)
        stored(place.store, finish_of(upload, content, attempt=2))

    def test_a_broken_disk_in_a_write(self, place: SidecarPlace, monkeypatch: pytest.MonkeyPatch) -> None:
        upload = opened(place.store, 10)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", eio)
            with pytest.raises(StoreFailed):
                upload.write(0, memoryview(b"x"))
        with pytest.raises(StoreFailed):
            upload.write(0, memoryview(b"x"))
        with pytest.raises(StoreFailed):
            place.store.open_upload(key_of(1), facts_of(10), 1)

    def test_somebody_takes_the_name_at_the_last_moment(
        self, place: SidecarPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = folder_io.move_new

        def move_new(from_fd: int, source: bytes, to_fd: int, target: bytes) -> None:
            if target == NAME.encode():
                place.put_there(NAME, b"somebody else's")
            real(from_fd, source, to_fd, target)

        monkeypatch.setattr(folder_io, "move_new", move_new)
        content = pattern(10)
        upload = opened(place.store, 10)
        assert (
            stored(place.store, *written(upload, content), finish_of(upload, content)).stored_as
            == "file (1).bin"
        )
        assert place.content(NAME) == b"somebody else's"

    @pytest.mark.parametrize("links", [True, False])
    def test_systems_that_cannot_move_without_replacing(
        self, place: SidecarPlace, links: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def link(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(sys, "platform", "another")
        if not links:
            monkeypatch.setattr(os, "link", link)
        place.put_there(NAME, b"old")
        content = pattern(10)
        upload = opened(place.store, 10)
        assert (
            stored(place.store, *written(upload, content), finish_of(upload, content)).stored_as
            == "file (1).bin"
        )
        assert place.content(NAME) == b"old"

    def test_a_system_without_positioned_reads_and_writes(
        self, place: SidecarPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("pwrite", "pread", "fchmod", "fdatasync"):
            monkeypatch.delattr(os, name)
        content = pattern(2 * BLOCK_LENGTH + 3)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [2, 0]))
        view = memoryview(bytearray(20))
        assert upload.read_into(2 * BLOCK_LENGTH, view) == 3
        stored(place.store, *written(upload, content, [1]), finish_of(upload, content))
        assert place.content(NAME) == content

    def test_what_is_not_for_downloads(self, place: SidecarPlace) -> None:
        refused(place.store, Remove(SafeName.parse("x")), NotPermitted)
        folder = Facts(SafeName.parse("x"), FOLDER_FILETYPE, 0)
        upload = place.store.begin_brief(key_of(1), folder, 0)
        refused(place.store, Finish(upload, 0, EMPTY_DIGEST, 0, folder), NotPermitted)


def begin(place: SidecarPlace) -> None:
    """Make one of three blocks durable."""
    upload = opened(place.store, 3 * BLOCK_LENGTH)
    assert outcomes(place.store, *written(upload, pattern(3 * BLOCK_LENGTH), [0])) == [None]


def range_blocks(
    upload: Upload, content: bytes, first: int, end: int, blocknos: list[int]
) -> list[BlockDone]:
    works = []
    for blockno in blocknos:
        position, length = block_span(blockno, first, end)
        piece = content[position : position + length]
        upload.write(position, memoryview(piece))
        works.append(BlockDone(upload, 1, blockno, length, digest_of(piece)))
    return works


def test_it_loads_without_what_only_posix_has() -> None:
    """And without the server's ledger."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['fcntl', 'lmdb', 'pwd', 'grp', 'resource']))"
    program = f"{blocked}; import blockproto.store.part_file.store"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


# -- kills and the order of writes


def test_the_order_of_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are synced before the ledger speaks of them; the ledger before anybody hears; the folder before the end."""
    done: list[str] = []
    store = PartFileStore(destination(tmp_path / NAME))
    record_calls(monkeypatch, done)
    upload = opened(store, 2 * BLOCK_LENGTH)
    content = pattern(2 * BLOCK_LENGTH)
    for blockno in (0, 1):
        store.decide(written(upload, content, [blockno]))
        done.append("acknowledged")
    stored(store, finish_of(upload, content))
    done.append("committed")
    store.close()
    begun = ["write part", "sync part", "write ledger", "sync ledger", "sync folder", "acknowledged"]
    second = ["write part", "sync part", "write ledger", "sync ledger", "acknowledged"]
    end = ["sync part", "write ledger", "sync ledger", "name", "sync folder", "unlink ledger"]
    assert done[: len(begun + second + end) + 1] == [*begun, *second, *end, "committed"]


def record_calls(patch: pytest.MonkeyPatch, done: list[str]) -> None:
    def what(path: str) -> str:
        return {".part": "part", ".ledger": "ledger"}.get(Path(path).suffix, "folder")

    def on_fd(name: str, verb: str) -> None:
        real = getattr(os, name)

        def call(fd: int, *args: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{fd}")
            result = real(fd, *args)
            done.append(f"{verb} {what(path)}")
            return result

        patch.setattr(os, name, call)

    for name, verb in (("pwrite", "write"), ("write", "write"), ("fsync", "sync"), ("fdatasync", "sync")):
        on_fd(name, verb)
    real_move, real_unlink = folder_io.move_new, os.unlink

    def move_new(*args: Any) -> None:
        real_move(*args)
        done.append("name")

    def unlink(path: Any, *args: Any, **kwargs: Any) -> None:
        real_unlink(path, *args, **kwargs)
        done.append(f"unlink {what(str(path))}")

    patch.setattr(folder_io, "move_new", move_new)
    patch.setattr(os, "unlink", unlink)


class Killed(BaseException):
    pass


@pytest.mark.clause("BP1-FET-012")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("if_exists", [IfExists.KEEP, IfExists.REPLACE])
def test_killed_at_any_call(tmp_path: Path, after: bool, if_exists: IfExists) -> None:
    """What was acknowledged is kept, and the same download ends with one whole file."""
    at = 0
    while _killed_once(tmp_path / f"{at}", at, after, if_exists):
        at += 1
    assert at > 12


def _killed_once(folder: Path, at: int, after: bool, if_exists: IfExists) -> bool:
    folder.mkdir()
    acknowledged: set[int] = set()
    place = SidecarPlace(folder)
    with pytest.MonkeyPatch.context() as patch:
        left = [at]
        for name in (
            "pwrite",
            "write",
            "fsync",
            "fdatasync",
            "unlink",
            "replace",
            "ftruncate",
            "utime",
        ):
            patch.setattr(os, name, _mortal(getattr(os, name), left, after))
        patch.setattr(folder_io, "move_new", _mortal(folder_io.move_new, left, after))
        with suppress(Killed):
            _download(place.store, acknowledged, if_exists)
    place.crash()
    if left[0] >= 0:
        place.store.close()
        return False
    found = place.store.open_upload(key_of(1), facts_of(2 * BLOCK_LENGTH + 9), 2)
    complete = place.content(NAME) == pattern(2 * BLOCK_LENGTH + 9)
    assert isinstance(found, StoredFile) or complete or acknowledged <= set(found.held)
    _download(place.store, set(), if_exists)
    place.store.close()
    names = {path.name for path in folder.iterdir()}
    assert names == {NAME}
    assert (folder / NAME).read_bytes() == pattern(2 * BLOCK_LENGTH + 9)
    return True


def _mortal(real: Callable[..., Any], left: list[int], after: bool) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            if left[0] == -1 and after:
                real(*args, **kwargs)
            raise Killed
        return real(*args, **kwargs)

    return call


def _download(store: PartFileStore, acknowledged: set[int], if_exists: IfExists) -> None:
    content = pattern(2 * BLOCK_LENGTH + 9)
    upload = store.open_upload(key_of(1), facts_of(len(content)), 1)
    if isinstance(upload, StoredFile):
        return
    for blockno in list(upload.held.missing(3)):
        assert outcomes(store, *written(upload, content, [blockno])) == [None]
        acknowledged.add(blockno)
    stored(store, finish_of(upload, content, if_exists=if_exists))

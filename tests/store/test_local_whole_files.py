"""Whole files in a folder: descriptors, file systems that cannot do everything, and what others do there meanwhile."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_store_local import LocalPlace, failing

import blockproto.store.local.batch as batch_module
import blockproto.store.local.file_batch as file_batch_module
import blockproto.store.local.new_file as new_file_module
import blockproto.store.local.store as store_module
from blockproto.errors import NameRefused, NotPermitted, StoreFailed, StoreFull, TooFewFiles
from blockproto.store import IfExists, StoreFiles
from blockproto.store.local.check import check_store
from blockproto.store.local.file_batch import FileBatch, files_open_max
from blockproto.store.local.store import LocalStore
from blockproto.testing.store_contract.same_files import names
from blockproto.testing.store_contract.steps import ANYBODY, outcomes
from blockproto.testing.store_contract.whole_files import folder, outcomes_of, stored_as, whole


@pytest.fixture
def place(tmp_path: Path) -> Iterator[LocalPlace]:
    (tmp_path / "served").mkdir()
    there = LocalPlace(tmp_path / "served")
    yield there
    there.done()
    assert check_store(tmp_path / "served", read=True) == []


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a function from now on."""
    calls: list[tuple[Any, ...]] = []
    real = getattr(module, name)

    def call(*args: Any) -> Any:
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(module, name, call)
    return calls


def test_more_files_than_may_be_open_at_once(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "files_open_max", lambda: 5)
    batches = count_calls(monkeypatch, FileBatch, "record")
    works = [
        StoreFiles(ANYBODY, tuple(whole(f"{n}/{m}", number=10 * n + m) for m in range(7))) for n in range(3)
    ]
    before = len(os.listdir("/proc/self/fd"))
    found = outcomes(place.store, *works)
    for number, each in enumerate(found):
        assert isinstance(each, tuple)
        assert [stored_as(one) for one in each] == [f"{number}/{m}" for m in range(7)]
    assert len(batches) == 5
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_bytes_of_files_are_given_back_as_soon_as_they_are_stored(place: LocalPlace) -> None:
    content = memoryview(bytearray(b"content"))
    there = weakref.ref(content)
    file = whole("a")._replace(content=content)
    gc.disable()
    try:
        outcomes_of(place, file)
        del content, file
        assert there() is None
    finally:
        gc.enable()


def test_a_batch_takes_a_share_of_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in ((1024, 256), (1 << 20, 4096), (3, 1)):
        monkeypatch.setattr(file_batch_module.resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert files_open_max() == most


@pytest.mark.parametrize("missing", ["O_TMPFILE", "/proc"])
@pytest.mark.parametrize("count", [1, 12])
def test_where_no_file_can_be_without_a_name(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch, missing: str, count: int
) -> None:
    if missing == "/proc":
        monkeypatch.setattr(new_file_module, "open_own_fds", lambda: None)
    else:
        monkeypatch.setattr(new_file_module, "create_unnamed", lambda *_: None)
    place.put_there("taken", b"theirs")
    files = [whole(f"d/{number}", number=number) for number in range(count)]
    found = outcomes_of(
        place, *files, whole("taken", number=100, rule=IfExists.REPLACE), whole("d/0", b"other", 101)
    )
    assert [stored_as(one) for one in found] == [*(f"d/{n}" for n in range(count)), "taken", "d/0 (1)"]
    assert place.content("taken") == b"content"
    assert place.leftovers() == 0
    place.crash()
    assert place.content("d/0") == b"content"


def test_few_files_are_synced_each_and_many_at_once(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = count_calls(monkeypatch, os, "fsync")
    everything = count_calls(monkeypatch, batch_module, "syncfs")
    outcomes_of(place, whole("a"))
    assert (len(each) >= 2, len(everything)) == (True, 0)
    outcomes_of(place, *(whole(f"many/{number}", number=number) for number in range(2, 20)))
    assert len(everything) == 1


def test_everything_is_synced_where_fsync_of_a_file_without_a_name_does_not_count(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_batch_module, "syncs_unnamed", lambda _: False)
    everything = count_calls(monkeypatch, batch_module, "syncfs")
    outcomes_of(place, whole("a"))
    assert len(everything) == 1


def test_mode_is_as_stated_whatever_the_umask(place: LocalPlace) -> None:
    before = os.umask(0o077)
    try:
        outcomes_of(place, whole("stated", mode=0o664), whole("none", number=2, mode=None))
    finally:
        os.umask(before)
    modes = {name: (place.folder / name).stat().st_mode & 0o777 for name in ("stated", "none")}
    assert modes == {"stated": 0o664, "none": 0o600}


def test_no_descriptors_are_left(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = new_file_module.create_unnamed
    calls: list[int] = []

    def create_unnamed(folder_fd: int, mode: int) -> int | None:
        calls.append(folder_fd)
        if len(calls) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(folder_fd, mode)

    monkeypatch.setattr(new_file_module, "create_unnamed", create_unnamed)
    found = outcomes_of(place, whole("a"), whole("b", number=2), whole("c", number=3))
    assert [stored_as(one) for one in found] == ["a", TooFewFiles, "c"]
    assert names(place) == ["a", "c"]


@pytest.mark.parametrize("call", ["give_name", "move_over"])
def test_no_room_for_a_name(place: LocalPlace, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """What did not get its name has no receipt, neither now nor later; what the name had before stays."""
    place.put_there("a", b"theirs")
    with monkeypatch.context() as patch:
        patch.setattr(new_file_module, call, failing(errno.ENOSPC))
        (found,) = outcomes_of(place, whole("a", rule=IfExists.REPLACE))
    assert isinstance(found, StoreFull)
    assert place.store.receipts(ANYBODY, [whole("a").key.sourceid]) == []
    assert place.content("a") == b"theirs"
    assert place.leftovers() == 0
    place.crash()
    assert stored_as(outcomes_of(place, whole("a", rule=IfExists.REPLACE))[0]) == "a"


def test_a_full_ledger_undoes_the_whole_batch(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes_of(place, whole("before", number=9))
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(FileBatch, "record", lambda *_: _no_room())
        found = outcomes_of(place, whole("before", number=9), whole("a"), folder("f", 2))
    assert [stored_as(one) for one in found] == ["before", StoreFull, StoreFull]
    assert place.content("a") is None
    assert len(os.listdir("/proc/self/fd")) <= before
    assert stored_as(outcomes_of(place, whole("a"))[0]) == "a"


def _no_room() -> None:
    raise StoreFull("the ledger has no room")


def test_a_crowded_ledger_takes_no_new_files(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = outcomes_of(place, whole("a"))
    monkeypatch.setattr(place.store.context.ledger, "crowded", lambda: True)
    again, new = outcomes_of(place, whole("a"), whole("b", number=2))
    assert (again, type(new)) == (first[0], StoreFull)


def test_a_folder_that_becomes_a_link_leads_nowhere(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = place.folder.parent / "outside"
    outside.mkdir()
    real = FileBatch.publish

    def publish(batch: FileBatch) -> None:
        batch._folders.close()  # as where more folders are needed than are kept open
        shutil.rmtree(place.folder / "d")
        (place.folder / "d").symlink_to(outside)
        real(batch)

    monkeypatch.setattr(FileBatch, "publish", publish)
    found = outcomes_of(place, whole("d/a"), whole("b", number=2))
    assert [stored_as(one) for one in found] == [NotPermitted, "b"]
    assert list(outside.iterdir()) == []
    assert place.store.receipts(ANYBODY, [whole("d/a").key.sourceid]) == []


def test_a_folder_that_is_removed_meanwhile_is_made_again(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FileBatch.publish

    def publish(batch: FileBatch) -> None:
        batch._folders.close()
        shutil.rmtree(place.folder / "d")
        real(batch)

    monkeypatch.setattr(FileBatch, "publish", publish)
    assert stored_as(outcomes_of(place, whole("d/a"))[0]) == "d/a"
    assert place.content("d/a") == b"content"


@pytest.mark.parametrize("change", ["edited", "removed", "moved", "linked", "mode"])
def test_what_somebody_does_to_a_stored_file(place: LocalPlace, change: str) -> None:
    """A file that is another one now is stored again beside it; one that only has another name or mode is not."""
    outcomes_of(place, whole("a"))
    path = place.folder / "a"
    if change == "edited":
        path.write_bytes(b"edited!")
    elif change == "removed":
        path.unlink()
    elif change == "moved":
        path.rename(path.with_name("b"))
    elif change == "linked":
        os.link(path, path.with_name("b"))
    else:
        path.chmod(0o600)
    place.crash()
    (found,) = outcomes_of(place, whole("a"))
    assert stored_as(found) == ("a (1)" if change == "edited" else "a")
    kept = {"edited": ["a", "a (1)"], "removed": ["a"], "mode": ["a"]}
    assert names(place) == kept.get(change, ["a", "b"])


def test_a_sync_that_fails_stores_nothing(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, module, call in ((1, os, "fsync"), (20, batch_module, "syncfs")):
        with monkeypatch.context() as patch:
            patch.setattr(module, call, failing(errno.EIO))
            with pytest.raises(StoreFailed):
                outcomes_of(place, *(whole(f"d/{number}", number=number) for number in range(count)))
        assert not any(place.folder.rglob("d/*"))
        place.crash()


def test_names_of_one_batch_are_portable_together(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path, portable=True)
    coming = whole("New"), whole("neW", number=2), whole("Folder/a", number=3), whole("folder/b", number=4)
    (found,) = store.decide([StoreFiles(ANYBODY, coming)])
    store.close()
    assert isinstance(found, tuple)
    assert [stored_as(one) for one in found] == ["New", NameRefused, "Folder/a", NameRefused]


# -- real mounts


@contextmanager
def mounted(at: Path, *options: str) -> Iterator[None]:
    """A tmpfs, where that is allowed here."""
    command = ["mount", "-t", "tmpfs", *options, "blockproto-test", str(at)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, timeout=60).returncode:
        pytest.skip("a mount needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True, timeout=60)


@pytest.mark.root
def test_a_nested_mount_is_refused(place: LocalPlace) -> None:
    inside = place.folder / "mounted"
    inside.mkdir()
    with mounted(inside):
        found = outcomes_of(
            place, whole("mounted/a"), whole("mounted/deep/b", number=2), whole("c", number=3)
        )
        assert [stored_as(one) for one in found] == [NotPermitted, NotPermitted, "c"]
        assert not (inside / "a").exists()


@pytest.mark.root
def test_a_file_system_that_becomes_read_only(tmp_path: Path) -> None:
    served, state = tmp_path / "served", tmp_path / "state"
    served.mkdir()
    with mounted(served):
        store = LocalStore.open(served, state=state)
        try:
            first = whole("a")
            store.decide([StoreFiles(ANYBODY, (first,))])
            subprocess.run(["mount", "-o", "remount,ro", str(served)], check=True, timeout=60)
            (found,) = store.decide([StoreFiles(ANYBODY, (first, whole("b", number=2)))])
            assert isinstance(found, tuple)
            assert [stored_as(one) for one in found] == ["a", NotPermitted]
        finally:
            store.close()

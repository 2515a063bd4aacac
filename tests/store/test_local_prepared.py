"""Whole files that are made before their batch: what is taken, what is dropped, and whose turn it is."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_store_local import LocalPlace

import blockproto.store.local.new_file as new_file_module
import blockproto.store.local.prepared as prepared_module
import blockproto.store.local.store as store_module
from blockproto.errors import FileExists, StoreFailed, TooFewFiles
from blockproto.store import IfExists, StoredFile, StoreFiles, Undecided, WholeFile
from blockproto.store.local.check import check_store
from blockproto.store.local.prepared import PREPARED_LEAST, PreparedFiles, Preparer, Turns
from blockproto.store.local.store import LocalStore
from blockproto.testing.store_contract.same_files import read_named
from blockproto.testing.store_contract.steps import ANYBODY, outcome
from blockproto.testing.store_contract.whole_files import folder, stored_as, whole

MANY = PREPARED_LEAST


@pytest.fixture
def place(tmp_path: Path) -> Iterator[LocalPlace]:
    (tmp_path / "served").mkdir()
    there = LocalPlace(tmp_path / "served")
    yield there
    there.done()
    assert check_store(tmp_path / "served", read=True) == []


def some(count: int = MANY, **facts: Any) -> tuple[WholeFile, ...]:
    return tuple(whole(f"d/e/{n}", b"content %d" % n, n, **facts) for n in range(1, count + 1))


def nothing() -> None:
    """For ``written``."""


def settled(preparer: Preparer, prepared: object) -> PreparedFiles:
    """Wait until the thread has come to what was to be prepared."""
    assert isinstance(prepared, PreparedFiles)
    assert preparer._thread is not None
    preparer._thread.submit(lambda: None).result(10)
    return prepared


def prepare(store: LocalStore, files: tuple[WholeFile, ...]) -> PreparedFiles:
    return settled(store._preparer, store.prepare(files, nothing))


def decide(store: LocalStore, files: tuple[WholeFile, ...], prepared: object) -> tuple[Any, ...]:
    found = outcome(store, StoreFiles(ANYBODY, files, True, prepared=prepared))
    assert isinstance(found, tuple)
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def visible(place: LocalPlace) -> list[str]:
    """What is in the served folder."""
    return [name for name in os.listdir(place.folder) if name != ".blockproto"]


def failing(number: int) -> Any:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def creations(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """In which thread each file is made from now on."""
    made: list[threading.Thread] = []
    real = new_file_module.create_unnamed

    def create_unnamed(folder_fd: int, mode: int) -> int | None:
        made.append(threading.current_thread())
        return real(folder_fd, mode)

    monkeypatch.setattr(new_file_module, "create_unnamed", create_unnamed)
    return made


def test_what_is_prepared_is_made_by_another_thread_and_gets_its_name(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, before, files = creations(monkeypatch), open_files(), (*some(), folder("d/f", 99))
    prepared = prepare(place.store, files)
    assert len(made) == MANY
    assert threading.current_thread() not in made
    assert visible(place) == []
    found = decide(place.store, files, prepared)
    assert [stored_as(one) for one in found] == [file.facts.filename.text for file in files]
    assert len(made) == MANY
    assert all(place.content(f"d/e/{n}") == b"content %d" % n for n in range(1, MANY + 1))
    assert open_files() <= before
    place.crash()
    assert place.content("d/e/1") == b"content 1"


@pytest.mark.parametrize("kept", [True, False], ids=["until the store is closed", "until it is forgotten"])
def test_nothing_stays_of_what_is_never_decided(place: LocalPlace, kept: bool) -> None:
    before = open_files()
    prepared = prepare(place.store, some())
    assert open_files() == before + MANY
    if kept:
        place.store.close()
        assert not prepared.left
        place.reopen()
    del prepared
    assert open_files() == before
    assert visible(place) == []


def test_what_is_refused_is_closed_with_its_batch(place: LocalPlace) -> None:
    (place.folder / "d/e").mkdir(parents=True)
    place.put_there("d/e/1", b"theirs")
    files = some(rule=IfExists.REFUSE)
    prepared = prepare(place.store, files)
    before = open_files()
    first, *others = decide(place.store, files, prepared)
    assert isinstance(first, FileExists)
    assert [stored_as(one) for one in others] == [f"d/e/{n}" for n in range(2, MANY + 1)]
    assert open_files() <= before - MANY
    assert place.content("d/e/1") == b"theirs"


def test_a_batch_makes_what_nobody_has_begun_to_prepare(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, files = creations(monkeypatch), some()
    with place.store._preparer.turns.deciding():
        prepared = place.store.prepare(files, nothing)
        assert isinstance(prepared, PreparedFiles)
        prepared.begin()
    settled(place.store._preparer, prepared)
    assert made == []
    assert len(decide(place.store, files, prepared)) == MANY
    assert made == [threading.current_thread()] * MANY


def test_a_batch_makes_what_could_not_be_prepared(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    files = some()
    with monkeypatch.context() as patch:
        patch.setattr(new_file_module, "write_all", failing(errno.ENOSPC))
        prepared = settled(place.store._preparer, place.store.prepare(files, lambda: pytest.fail("written")))
    made = creations(monkeypatch)
    found = decide(place.store, files, prepared)
    assert [stored_as(one) for one in found] == [file.facts.filename.text for file in files]
    assert len(made) == MANY


def test_an_error_of_the_medium_is_the_end_of_the_store(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(new_file_module, "write_all", failing(errno.EIO))
        prepared = prepare(place.store, some())
    with pytest.raises(StoreFailed):
        place.store.decide([StoreFiles(ANYBODY, some(), prepared=prepared)])
    with pytest.raises(StoreFailed):
        place.store.decide([])


def test_files_are_told_apart_that_have_one_sourceid(place: LocalPlace) -> None:
    """The one that was refused leaves its bytes to nobody."""
    place.put_there("taken", b"theirs")
    first = whole("taken", b"first", 1, rule=IfExists.REFUSE)
    files = (first, whole("free", b"second", 1), *some(MANY + 1)[1:])
    found = decide(place.store, files, prepare(place.store, files))
    assert isinstance(found[0], FileExists)
    assert stored_as(found[1]) == "free"
    assert place.content("free") == b"second"


def test_few_files_are_not_prepared_and_only_so_many_are_open_at_once(tmp_path: Path) -> None:
    root_fd = os.open(tmp_path, os.O_RDONLY)
    preparer = Preparer(root_fd, 2 * MANY, lambda: 1 << 40)
    try:
        assert preparer.prepare(some(MANY - 1), nothing) is None
        first = settled(preparer, preparer.prepare(some(2 * MANY), nothing))
        assert preparer.prepare(some(), nothing) is None
        first.begin()
        assert preparer.prepare(some(), nothing) is not None
    finally:
        preparer.close()
        first.close()
        os.close(root_fd)


def test_nothing_is_prepared_in_a_folder_behind_a_symlink(place: LocalPlace, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (place.folder / "d").symlink_to(tmp_path / "elsewhere")
    files, before = some(), open_files()
    prepared = prepare(place.store, files)
    assert open_files() <= before
    assert not any(isinstance(one, StoredFile) for one in decide(place.store, files, prepared))
    assert list((tmp_path / "elsewhere").glob("**/*")) == []


def test_a_batch_and_what_is_prepared_take_turns() -> None:
    turns, log = Turns(), []
    waiting = threading.Event()

    def prepare_some() -> None:
        waiting.set()
        with turns.preparing():
            log.append("prepared")

    with turns.deciding():
        other = threading.Thread(target=prepare_some)
        other.start()
        assert waiting.wait(10)
        log.append("decided")
    other.join(10)
    assert log == ["decided", "prepared"]


def test_the_bytes_are_released_once_all_are_written(place: LocalPlace) -> None:
    content = bytearray(b"0123456789" * MANY)
    view = memoryview(content)
    files = (
        *(file._replace(content=view[10 * n : 10 * n + 10]) for n, file in enumerate(sized(10))),
        folder("d/f", 99)._replace(content=view[:0]),
    )
    view.release()
    told: list[int] = []
    prepared = settled(place.store._preparer, place.store.prepare(files, lambda: told.append(1)))
    content.clear()  # nobody has a view of it
    assert told == [1]
    found = decide(place.store, files, prepared)
    assert [one.filesize for one in found] == [*[10] * MANY, 0]
    assert {place.content(f"d/e/{n}") for n in range(1, MANY + 1)} == {b"0123456789"}


def sized(length: int) -> tuple[WholeFile, ...]:
    return tuple(whole(f"d/e/{n}", b"0123456789"[:length], n) for n in range(1, MANY + 1))


def test_what_has_to_be_compared_first_keeps_its_bytes_for_a_later_batch(place: LocalPlace) -> None:
    (place.folder / "d/e").mkdir(parents=True)
    place.put_there("d/e/1", b"9876543210")
    files, before = sized(10), open_files()
    prepared = prepare(place.store, files)
    first, *others = decide(place.store, files, prepared)
    assert isinstance(first, Undecided)
    assert all(isinstance(one, StoredFile) for one in others)
    assert prepared.left
    read_named(place, first)
    again = StoreFiles(ANYBODY, files[:1], True, 1, prepared=prepared)
    ((second,),) = place.store.decide([again])  # type: ignore[misc]
    assert stored_as(second) == "d/e/1 (1)"
    assert place.content("d/e/1 (1)") == b"0123456789"
    assert not prepared.left
    assert open_files() <= before


def test_a_work_that_is_decided_in_parts_takes_what_is_prepared_in_each(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "files_open_max", lambda: 5)
    files = some()
    prepared = prepare(place.store, files)
    made = creations(monkeypatch)
    found = decide(place.store, files, prepared)
    assert [stored_as(one) for one in found] == [file.facts.filename.text for file in files]
    assert made == []


def test_prepared_files_that_can_get_no_name_are_refused(
    place: LocalPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, before = some(), open_files()
    prepared = prepare(place.store, files)
    with monkeypatch.context() as patch:
        patch.setattr(new_file_module, "open_own_fds", lambda: None)
        found = decide(place.store, files, prepared)
    assert {type(one) for one in found} == {TooFewFiles}
    assert open_files() <= before


def test_only_so_many_bytes_are_prepared_at_once(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_module, "PREPARED_LENGTH_MAX", 15 * MANY)
    preparer = Preparer(place.store.context.root_fd, 10 * MANY, lambda: 1 << 40)
    try:
        first = settled(preparer, preparer.prepare(sized(10), nothing))
        assert preparer.prepare(sized(10), nothing) is None
        first.close()
        assert preparer.prepare(sized(10), nothing) is not None
    finally:
        preparer.close()


def test_nothing_is_prepared_on_a_disk_that_is_almost_full(place: LocalPlace) -> None:
    place.fill_disk()
    prepared = prepare(place.store, some())
    assert not prepared.left
    assert not prepared.released

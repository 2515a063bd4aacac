"""The local store on a folder full of odd things: lists it, reads it, counts it, removes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from odd_folder import Odd, chain, fill, remove
from store_contract import put

from blockproto.errors import BlockprotoError, NotEmpty
from blockproto.names import FILENAME_LENGTH_MAX, SafeName
from blockproto.store import Remove
from blockproto.store.disk import Folders
from blockproto.store.local import LocalStore

DEEP = "/".join("a" * 512)
"""A name of as many components as a name can have."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "served").mkdir()
    yield tmp_path / "served"
    remove(tmp_path / "served")


@pytest.fixture
def odd(folder: Path) -> Odd:
    return fill(folder)


@pytest.fixture
def store(folder: Path) -> Iterator[LocalStore]:
    store = LocalStore.open(folder)
    yield store
    store.close()


def _remove(store: LocalStore, name: str) -> BlockprotoError | None:
    work = Remove(SafeName(name), None, True)
    store.commit([work])
    assert work.outcome is None or isinstance(work.outcome, BlockprotoError)
    return work.outcome


def test_a_file_of_512_components_is_kept_listed_read_and_removed(store: LocalStore, folder: Path) -> None:
    assert len(DEEP) == FILENAME_LENGTH_MAX - 1
    put(store, DEEP, b"deep")
    entries, _ = store.files("", True, "", 1000)
    assert len(entries) == 512
    assert entries[-1].filename.text == DEEP
    assert store.stat(SafeName(DEEP)).filesize == 4
    store.open_file(SafeName(DEEP), None).close()
    assert _remove(store, "a") is None
    assert os.listdir(folder) == [".blockproto"]


def test_folders_are_opened_at_any_depth_with_few_descriptors(folder: Path) -> None:
    chain(folder, [b"b"] * 3000, b"end")
    fd = os.open(folder, os.O_RDONLY)
    try:
        with Folders(fd) as folders:
            deepest = folders.open("/".join("b" * 3000))
            assert os.listdir(deepest) == ["end"]
            assert len(folders._fds) <= Folders.OPEN_MAX
            assert os.fstat(folders.open("b")).st_ino == (folder / "b").stat().st_ino
            assert os.path.samestat(os.fstat(folders.open("/".join("b" * 3000))), os.fstat(deepest))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "chained",
    [
        [b"top"] + [b"d"] * (2 * sys.getrecursionlimit()),
        [b"top"] + [b"x" * 200] * 100,
        [b"top", b"\xff", b"\xfe\xfe"],
    ],
    ids=["deeper than the stack", "longer than a path", "no UTF-8"],
)
def test_removing_goes_to_the_bottom(store: LocalStore, folder: Path, chained: list[bytes]) -> None:
    for last in (b"end", b"\xff", b"a\nb"):
        chain(folder, chained, last)
    before = len(os.listdir("/proc/self/fd"))
    assert _remove(store, "top") is None
    assert os.listdir(folder) == [".blockproto"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_removing_leaves_what_is_a_stores_own_wherever_it_is(store: LocalStore, folder: Path) -> None:
    (folder / "top" / "a" / ".blockproto" / "ledger").mkdir(parents=True)
    (folder / "top" / "a" / "file").write_bytes(b"x")
    (folder / "top" / "b" / "c").mkdir(parents=True)
    assert isinstance(_remove(store, "top"), NotEmpty)
    assert sorted(path.relative_to(folder / "top").as_posix() for path in (folder / "top").rglob("*")) == [
        "a",
        "a/.blockproto",
        "a/.blockproto/ledger",
    ]


def test_a_folder_that_is_moved_while_it_is_removed_takes_nothing_else_with_it(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "top" / "a" / "b").mkdir(parents=True)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "kept").write_bytes(b"x")
    rmdir = os.rmdir

    def moved(path: bytes, *, dir_fd: int) -> None:
        rmdir(path, dir_fd=dir_fd)
        if path == b"b":
            (folder / "top" / "a").rename(folder / "elsewhere" / "a")

    monkeypatch.setattr(os, "rmdir", moved)
    error = _remove(store, "top")
    assert error is not None
    assert (folder / "elsewhere" / "kept").exists()
    assert (folder / "top").exists()


def test_everything_that_is_listed_can_be_looked_at(store: LocalStore, odd: Odd) -> None:
    entries, cursor = [], ""
    while True:
        page, cursor = store.files("", True, cursor, 50)
        entries += page
        if not cursor:
            break
    names = [entry.filename.text for entry in entries]
    assert names == sorted(names, key=str.encode)
    assert set(odd.good) <= set(names)
    for entry in entries:
        assert store.stat(entry.filename).version == entry.version
        if not entry.folder:
            reader = store.open_file(entry.filename, None)
            reader.read_into(0, memoryview(bytearray(10)))
            assert reader.unchanged()
            reader.close()
    assert [name for name in names if name.startswith("kinds/")] == ["kinds/hard"]


def test_everything_at_the_top_can_be_removed(store: LocalStore, odd: Odd) -> None:
    outcomes = {}
    for entry in store.files("", False, "", 1000)[0]:
        outcomes[entry.filename.text] = _remove(store, entry.filename.text)
    assert {name for name, error in outcomes.items() if error is not None} <= {"names"}
    assert isinstance(outcomes["names"], NotEmpty)  # something like .blockproto is in it
    left = {os.fsencode(name) for name in os.listdir(odd.folder / "names")}
    assert left <= {b".BLOCKPROTO", b".Blockproto ", ".blockproto\u200b".encode(), b".blockproto."} | {
        name for name in left if name.startswith(b"in ")
    }
    assert set(os.listdir(odd.folder)) == {".blockproto", "names"}

"""The local store on a folder full of odd things: lists it, reads it, counts it, removes it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from odd_folder import Odd, chain, fill, remove

from blockproto.common.blocks import FILESIZE_MAX, blocknum_of
from blockproto.common.names import FILENAME_LENGTH_MAX, SafeName
from blockproto.errors import BlockprotoError, NotEmpty, NotPermitted, StoreFailed, UnknownFile
from blockproto.store import Remove, StoredFile, Unfinished
from blockproto.store.folder_io import Folders
from blockproto.store.local import finished_files, removing
from blockproto.store.local.check import check_store
from blockproto.store.local.removing import REMOVED_MAX
from blockproto.store.local.store import LocalStore
from blockproto.testing.store_contract.steps import brief_of, facts_of, key_of, put

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
    while True:
        [outcome] = store.decide([work])
        assert outcome is None or isinstance(outcome, BlockprotoError)
        if not isinstance(outcome, Unfinished):
            return outcome
        work = replace(work, begun=True)


def _left_in(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*"))


@pytest.mark.parametrize("wide", [True, False])
def test_one_batch_removes_a_part_of_a_big_folder(
    store: LocalStore, folder: Path, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "REMOVING_S", 1000)
    for number in range(300):
        inside = folder / "big" / ("" if wide else f"{number}")
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"file {number}").write_bytes(b"x")
    (folder / "big/empty").mkdir()
    work = Remove(SafeName("big"), None, True)
    left = _left_in(folder / "big")
    rounds = 0
    while left:
        [removed, other] = store.decide([work, Remove(SafeName("nothing"))])
        assert isinstance(other, UnknownFile)
        assert removed is None or isinstance(removed, Unfinished)
        before, left = left, _left_in(folder / "big")
        assert before - left <= REMOVED_MAX
        rounds += 1
        assert (removed is None) == (not (folder / "big").exists())
        work = replace(work, begun=True)
    assert rounds == (301 if wide else 601) // REMOVED_MAX + 1
    if not isinstance(removed, Unfinished):
        return
    [removed] = store.decide([work])
    assert removed is None


def test_one_batch_removes_one_entry_where_that_takes_long(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "REMOVING_S", 0)
    (folder / "slow").mkdir()
    for number in range(5):
        (folder / f"slow/{number}").write_bytes(b"x")
    work = Remove(SafeName("slow"), None, True)
    for left in (4, 3, 2, 1, 0):
        [removed] = store.decide([work])
        assert isinstance(removed, Unfinished)
        assert _left_in(folder / "slow") == left
        work = replace(work, begun=True)
    assert store.decide([work]) == [None]
    assert not (folder / "slow").exists()


def test_what_was_removed_in_part_may_be_gone_already(store: LocalStore) -> None:
    [outcome] = store.decide([Remove(SafeName("gone"), None, True, begun=True)])
    assert outcome is None
    assert isinstance(_remove(store, "gone"), UnknownFile)


def test_what_stays_in_a_big_folder_does_not_keep_the_rest(store: LocalStore, folder: Path) -> None:
    for number in range(200):
        (folder / f"big/{number}/.blockproto").mkdir(parents=True)
        (folder / f"big/{number}/.blockproto/ledger").write_bytes(b"theirs")
    for number in range(200):
        (folder / f"big/file {number}").write_bytes(b"x")
    assert isinstance(_remove(store, "big"), NotEmpty)
    assert sorted(entry.name for entry in (folder / "big").iterdir()) == sorted(map(str, range(200)))
    assert sum(1 for _ in (folder / "big").rglob("ledger")) == 200


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
    chain(folder, [b"b"] * 1200, b"end")
    fd = os.open(folder, os.O_RDONLY)
    try:
        with Folders(fd) as folders:
            deepest = folders.open("/".join("b" * 1200))
            assert os.listdir(deepest) == ["end"]
            assert len(folders._fds) <= Folders.OPEN_MAX
            assert os.fstat(folders.open("b")).st_ino == (folder / "b").stat().st_ino
            assert os.path.samestat(os.fstat(folders.open("/".join("b" * 1200))), os.fstat(deepest))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "chained",
    [
        [b"top"] + [b"d"] * (sys.getrecursionlimit() + 100),
        [b"top"] + [b"x" * 200] * 30,
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


# ---- a file system that answers otherwise than it did


STRANGE = [
    errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.ELOOP, errno.ENOTCONN, errno.ETIMEDOUT,
    errno.ENODEV, errno.ENXIO, errno.EOVERFLOW, errno.EINVAL, errno.EBUSY, errno.ENOSYS, errno.EREMOTEIO, errno.EUCLEAN,
    errno.EMFILE, errno.ENOMEM, 9999,
]  # fmt: skip
"""What any call on one file can answer, sensible or not."""


def _after(real: Callable[..., Any], when: Callable[..., bool], error: OSError) -> Callable[..., Any]:
    def answers(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raise error
        return real(*args, **kwargs)

    return answers


@pytest.mark.parametrize("call", ["stat", "open", "fstat", "preadv", "scandir", "listdir", "fstatvfs"])
def test_an_error_of_one_file_is_its_own(
    store: LocalStore, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking, listing, opening and reading: refused or left out, never the store."""
    put(store, "folder/file", b"content")
    (folder / "folder" / "other").write_bytes(b"x")
    name = SafeName("folder/file")
    ledger_fd = store.context.ledger._file_fd
    reader = store.open_file(name, None)
    asked: list[Callable[[], object]] = [
        lambda: store.stat(name),
        lambda: store.files("folder", True, "", 10),
        lambda: store.files("", True, "", 10),
        lambda: store.open_file(name, None).close(),
        lambda: reader.read_into(0, memoryview(bytearray(5))),
        reader.unchanged,
        lambda: store.receipts(bytes(16), [key_of(1).sourceid]),
        lambda: store.open_upload(key_of(7), facts_of(5, "new"), 1).close(),  # type: ignore[union-attr]
        lambda: store.open_upload(key_of(8), facts_of(5, "folder/file"), 1).close(),  # type: ignore[union-attr]
    ]
    for number in STRANGE:
        with monkeypatch.context() as patch:
            error = OSError(number, os.strerror(number))
            patch.setattr(os, call, _after(getattr(os, call), lambda at, *_, **__: at != ledger_fd, error))
            for ask in asked:
                try:
                    ask()
                except StoreFailed:
                    raise
                except BlockprotoError:
                    pass
    reader.close()
    assert store.stat(name).filesize == 7
    put(store, "after", b"good", number=9)


@pytest.mark.parametrize("call", ["open", "mkdir", "stat"])
def test_a_folder_that_answers_no_more_refuses_its_files_only(
    store: LocalStore, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be given a name there is refused; what is committed in the same batch elsewhere is kept."""
    (folder / "there").mkdir()
    medium = {errno.EIO, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EUCLEAN}
    for at, number in enumerate(sorted(set(STRANGE) - medium)):
        there = brief_of(store, b"one", number=3 * at + 1, name=f"there/below/{at}")
        other = brief_of(store, b"two", number=3 * at + 2, name=f"elsewhere/{at}")
        error = OSError(number, os.strerror(number))
        with monkeypatch.context() as patch:
            patch.setattr(
                os, call, _after(getattr(os, call), lambda at, *_, **__: at in (b"there", b"below"), error)
            )
            of_there, of_other = store.decide([there, other])
        assert isinstance(of_other, StoredFile)
        assert not isinstance(of_there, StoreFailed)
        put(store, f"after {at}", b"good", number=3 * at + 3)


def test_a_file_that_is_larger_than_what_travels_is_refused(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert blocknum_of(FILESIZE_MAX) < 2**32 - 1 <= blocknum_of(FILESIZE_MAX + 1)
    monkeypatch.setattr(finished_files, "FILESIZE_MAX", 3)
    (folder / "most").write_bytes(b"123")
    (folder / "more").write_bytes(b"1234")
    assert store.stat(SafeName("more")).filesize == 4
    store.open_file(SafeName("most"), None).close()
    with pytest.raises(NotPermitted):
        store.open_file(SafeName("more"), None)


@pytest.mark.parametrize(
    "name", ["data:x/中文,", "data:a/b\n,c", "data:" + "x" * 240 + "/y,", "http:x.txt", "x.中文"]
)
def test_a_name_that_looks_like_a_url_has_a_filetype_that_can_be_said(
    store: LocalStore, folder: Path, name: str
) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    for entry in store.files("", True, "", 10)[0]:
        assert entry.filetype.isascii()
        assert entry.filetype.isprintable()
        assert len(entry.filetype) <= 255


@pytest.mark.parametrize("name", [b"\xff\xfe", "中文 \u202e".encode(), b"a\nb", b"%00?mode=ro#x"])
def test_a_folder_is_served_whatever_its_own_name(folder: Path, name: bytes) -> None:
    served = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    served.mkdir()
    store = LocalStore.open(served)
    put(store, "file", b"content")
    store.close()
    assert check_store(served, read=True) == []
    store = LocalStore.open(served)
    assert store.stat(SafeName("file")).root is not None
    store.close()

"""The checker: a clean store has no findings, and every kind of damage has one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from partials import partials_of

from blockproto.common.blocks import BLOCK_LENGTH, digest_of
from blockproto.common.names import SafeName
from blockproto.errors import NotPermitted
from blockproto.store import (
    FOLDER_FILETYPE,
    Facts,
    Finish,
    IfExists,
    KeepPrefixes,
    Prefix,
    RecordB3sum,
    Remove,
)
from blockproto.store.local.check import NotCompared, check_store, inspect_store
from blockproto.store.local.ledger_view import View
from blockproto.store.local.records import digest_key, name_hash
from blockproto.store.local.store import LocalStore
from blockproto.testing.store_contract.steps import (
    NAME,
    brief_of,
    finish_of,
    key_of,
    opened,
    pattern,
    put,
    root_of_content,
    stored,
    written,
)

CONTENT = pattern(3 * BLOCK_LENGTH + 7)


def fill(folder: Path) -> None:
    """Finished files, a folder, and an unfinished upload with two blocks and a prefix."""
    store = LocalStore.open(folder)
    put(store, "done/big", CONTENT, number=1)
    stored(store, brief_of(store, b"small", number=2, name="small"))
    made = Facts(SafeName.parse("folder"), FOLDER_FILETYPE, 0)
    empty = store.begin_brief(key_of(3), made, 0)
    stored(store, Finish(empty, 0, digest_of(b""), 0, made))
    upload = opened(store, len(CONTENT), number=4)
    store.decide(written(upload, CONTENT, [0, 3]))
    upload.write(BLOCK_LENGTH, memoryview(CONTENT[BLOCK_LENGTH:][:50]))
    store.decide([KeepPrefixes(upload, 1, {1: Prefix(50, digest_of(CONTENT[BLOCK_LENGTH:][:50]))})])
    upload.close()
    store.close()


def partial_of(folder: Path) -> Path:
    return next(partials_of(folder / ".blockproto").iterdir())


def overwrite(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        times = os.fstat(file.fileno())
        file.seek(position)
        file.write(b"damaged")
        file.flush()
        os.utime(file.fileno(), ns=(times.st_atime_ns, times.st_mtime_ns))


def edit(folder: Path, change: Callable[[View], object]) -> None:
    """Change the ledger behind everybody's back."""
    store = LocalStore.open(folder)
    with store.context.ledger.write() as view:
        change(view)
    store.context.opened.close()


def test_a_clean_store(tmp_path: Path) -> None:
    fill(tmp_path)
    assert check_store(tmp_path) == check_store(tmp_path, read=True) == []


def test_what_is_no_store_is_clean(tmp_path: Path) -> None:
    assert check_store(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_changes_by_others_are_no_findings_and_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "small").unlink()
    (tmp_path / "done/big").write_bytes(b"another file")
    (tmp_path / "new").write_bytes(b"new")
    report = inspect_store(tmp_path, read=True)
    assert report.findings == []
    assert report.not_compared == NotCompared(["done/big"], ["small"], ["new"])
    assert inspect_store(tmp_path).not_compared == NotCompared()


def test_what_was_replaced_or_removed_through_the_store_is_compared_or_forgotten(tmp_path: Path) -> None:
    fill(tmp_path)
    store = LocalStore.open(tmp_path)
    again = brief_of(store, b"other", number=7, name="small")
    stored(store, replace(again, facts=replace(again.facts, if_exists=IfExists.REPLACE)))
    [gone] = store.decide([Remove(SafeName.parse("done"), None, recursive=True)])
    store.close()
    assert not isinstance(gone, Exception)
    report = inspect_store(tmp_path, read=True)
    assert (report.findings, report.not_compared) == ([], NotCompared())


def test_bytes_that_changed_on_the_medium(tmp_path: Path) -> None:
    fill(tmp_path)
    overwrite(tmp_path / "done/big", 2 * BLOCK_LENGTH)
    overwrite(partial_of(tmp_path), 100)
    overwrite(partial_of(tmp_path), BLOCK_LENGTH + 10)
    assert check_store(tmp_path) == []
    findings = check_store(tmp_path, read=True)
    assert sorted(findings) == [
        "done/big: its bytes are not those that were committed",
        f"unfinished {NAME}: block 0 is not what was acknowledged",
        f"unfinished {NAME}: the beginning of block 1 is not what was recorded",
    ]


def test_the_committed_root_of_a_file_holds_until_its_size_or_time_changes(tmp_path: Path) -> None:
    """It is what FETCH compares: the bytes that are there now need not have it."""
    fill(tmp_path)
    big = SafeName.parse("done/big")
    overwrite(tmp_path / "done/big", 1)
    store = LocalStore.open(tmp_path)
    entry = store.stat(big)
    assert (entry.root, entry.committed_root) == (None, root_of_content(CONTENT))
    assert store.stat(SafeName.parse("folder")).committed_root is None
    (tmp_path / "done/big").touch()
    assert store.stat(big).committed_root is None
    store.close()


def test_another_b3sum(tmp_path: Path) -> None:
    fill(tmp_path)
    store = LocalStore.open(tmp_path)
    name = SafeName.parse("small")
    store.decide([RecordB3sum(name, store.stat(name).version, b"x" * 32)])
    store.close()
    assert check_store(tmp_path, read=True) == ["small: its BLAKE3 is not the one recorded"]


def test_a_partial_that_is_gone_or_short(tmp_path: Path) -> None:
    fill(tmp_path)
    os.truncate(partial_of(tmp_path), BLOCK_LENGTH)
    assert check_store(tmp_path) == [f"unfinished {NAME}: 1 held blocks lie behind the end of its partial"]
    partial_of(tmp_path).unlink()
    assert check_store(tmp_path) == [f"unfinished {NAME}: its partial is gone, with 2 held blocks"]


def test_bitmap_and_digests_that_differ(tmp_path: Path) -> None:
    fill(tmp_path)

    def drop_one(view: View) -> None:
        record = next(iter(view.uploads()))
        view._txn.delete(digest_key(record.storage_id, 3))

    edit(tmp_path, drop_one)
    assert check_store(tmp_path) == [
        f"unfinished {NAME}: the bitmap and the digests tell of different blocks"
    ]


def test_a_block_that_cannot_be(tmp_path: Path) -> None:
    fill(tmp_path)
    edit(tmp_path, lambda view: view.add_blocks(next(iter(view.uploads())).storage_id, {9: bytes(32)}))
    assert f"unfinished {NAME}: block 9 is held of a file of {len(CONTENT)} bytes" in check_store(tmp_path)


@pytest.mark.parametrize(("kind", "what"), [(b"d", "digests"), (b"b", "bitmaps"), (b"p", "prefixes")])
def test_records_of_nobody(tmp_path: Path, kind: bytes, what: str) -> None:
    fill(tmp_path)
    edit(tmp_path, lambda view: view._txn.put(kind + b"\1" * 16 + bytes(4 * (kind != b"p")), bytes(32)))
    assert check_store(tmp_path) == [f"{what} of storage id {'01' * 16} belong to no upload"]


def test_a_name_without_receipt(tmp_path: Path) -> None:
    fill(tmp_path)
    edit(tmp_path, lambda view: view._txn.put(b"n" + name_hash("nobody"), b"\2" * 16))
    assert check_store(tmp_path) == [f"a name has the file id {'02' * 16}, of which there is no receipt"]


def test_a_commit_under_way(tmp_path: Path) -> None:
    """Killed before the name was given: no finding. Its bytes gone as well: a finding."""
    store = LocalStore.open(tmp_path)
    upload = opened(store, len(CONTENT))
    works = [*written(upload, CONTENT), finish_of(upload, CONTENT)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockproto.store.local.publishing.Publisher.publish", _die)
        with pytest.raises(KeyboardInterrupt):
            store.decide(works)
    store.context.opened.close()
    assert check_store(tmp_path, read=True) == []
    partial_of(tmp_path).unlink()
    assert check_store(tmp_path) == [f"the commit of {NAME} was under way and its bytes are gone"]
    store = LocalStore.open(tmp_path)
    assert f"the commit of {NAME} was under way and could not be finished" in store.findings
    store.close()
    assert check_store(tmp_path) == []


def _die(_: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_cannot_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise NotPermitted("no")

    monkeypatch.setattr("blockproto.store.local.check.open_places", refuse)
    with pytest.raises(NotPermitted):
        check_store(tmp_path)


def test_the_state_elsewhere(tmp_path: Path) -> None:
    folder, state = tmp_path / "served", tmp_path / "state"
    folder.mkdir()
    store = LocalStore.open(folder, state=state)
    put(store, NAME, CONTENT)
    store.close()
    overwrite(folder / NAME, 5)
    assert check_store(folder, read=True) == []
    assert check_store(folder, state, read=True) == [f"{NAME}: its bytes are not those that were committed"]

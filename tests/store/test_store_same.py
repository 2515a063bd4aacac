"""The same file again, on the store of a folder: what somebody changed underneath, and what its ledger keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_store_local import LocalPlace

from blockproto.common.names import SafeName
from blockproto.store import ROUNDS_MAX, RecordB3sum, Remove, StoredFile, Undecided
from blockproto.store.local.records import Identity, ReceiptRecord, sealed
from blockproto.testing.store_contract.same_files import (
    KEEP,
    MTIME_NS,
    REPLACE,
    SECOND,
    UPDATE,
    decided,
    finishing,
    names,
    send,
)
from blockproto.testing.store_contract.steps import NAME, key_of, outcome, root_of_content

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalPlace]:
    (tmp_path / "served").mkdir()
    there = LocalPlace(tmp_path / "served")
    yield there
    there.done()


def test_no_receipt_comes_back_with_a_file_that_looks_the_same(local: LocalPlace) -> None:
    """An inode is given away again; a receipt that was only untrue would be true then."""
    ids = [send(local, b"content", number, mtime_ns=MTIME_NS).file_id for number in (1, 2, 3)]
    assert outcome(local.store, Remove(None, ids[1])) is None
    with local.store.context.ledger.read() as view:
        assert [view.receipt(file_id) for file_id in ids] == [None, None, None]
        assert [list(view.items(kind)) for kind in (b"i", b"n", b"e", b"c")] == [[], [], [], []]


def test_a_file_that_somebody_put_there_is_read(local: LocalPlace) -> None:
    local.put_there(NAME, b"content")
    work = finishing(local, b"content", 1, KEEP)
    found = outcome(local.store, work)
    assert isinstance(found, Undecided)
    assert found.names == (NAME,)
    again = decided(local, work)
    assert isinstance(again, StoredFile)
    assert (again.there, names(local)) == (True, [NAME])
    reread = outcome(local.store, finishing(local, b"content", 2, KEEP))
    assert isinstance(reread, StoredFile), "what was read once is remembered"


def test_what_changes_while_it_is_read_is_read_again_and_not_for_ever(local: LocalPlace) -> None:
    local.put_there(NAME, b"content")
    work = finishing(local, b"content", 1, KEEP)
    while isinstance(found := outcome(local.store, work), Undecided):
        reader = local.files.open_file(SafeName.parse(NAME), None)
        root, stamp, version = root_of_content(b"content"), reader.entry.stamp, reader.entry.version
        reader.close()
        os.utime(local.folder / NAME, ns=(work.rounds, work.rounds))
        outcome(local.store, RecordB3sum(SafeName.parse(NAME), version, root=root, stamp=stamp))
        work = replace(work, rounds=work.rounds + 1)
    assert work.rounds == ROUNDS_MAX
    assert isinstance(found, StoredFile)
    assert (found.there, found.stored_as) == (False, SECOND)


def change_underneath(path: Path, content: bytes) -> None:
    """Other bytes of the same size in the same file, and the mtime it had."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert path.stat().st_ctime_ns > before.st_ctime_ns


@pytest.mark.clause("BP1-COM-024")
@pytest.mark.parametrize("reopened", [True, False])
def test_no_digest_is_told_of_bytes_that_were_changed_underneath(local: LocalPlace, reopened: bool) -> None:
    first = send(local, b"content", 1)
    name = SafeName.parse(NAME)
    stat = local.files.stat(name)
    assert outcome(local.store, RecordB3sum(name, stat.version, b"x" * 32, stamp=stat.stamp)) is None
    assert (local.files.stat(name).root, local.files.stat(name).b3sum) == (first.root, b"x" * 32)
    change_underneath(local.folder / NAME, b"CONTENT")
    if reopened:
        local.reopen()
    assert local.files.stat(name).version == stat.version
    assert (local.files.stat(name).root, local.files.stat(name).b3sum) == (None, None)
    (receipt,) = local.files.receipts(bytes(16), [key_of(1).sourceid])
    assert receipt.b3sum is None
    again = send(local, b"content", 2)
    assert (again.there, again.stored_as) == (False, SECOND)
    assert send(local, b"CONTENT", 3).there


def test_a_ctime_alone_means_that_it_is_read(local: LocalPlace) -> None:
    send(local, b"content", 1)
    os.chmod(local.folder / NAME, 0o600)
    assert local.files.receipts(bytes(16), [key_of(1).sourceid]), (
        "the receipt counts: the version is the same"
    )
    assert isinstance(outcome(local.store, finishing(local, b"content", 2, KEEP)), Undecided)
    assert send(local, b"content", 2).there
    assert local.files.stat(SafeName.parse(NAME)).root == root_of_content(b"content")


def test_what_is_read_is_made_durable_before(local: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    (local.folder / "a").mkdir()
    local.put_there("a/b", b"content")
    synced: list[str] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(str(local.folder)))
        fsync(fd)

    reader = local.files.open_file(SafeName.parse("a/b"), None)
    monkeypatch.setattr(os, "fsync", noting)
    reader.sync()
    monkeypatch.undo()
    reader.close()
    assert synced == ["/a/b", "/a", ""]


def test_a_receipt_of_an_older_program_counts_as_keep() -> None:
    record = ReceiptRecord(
        key_of(1), b"f" * 16, b"r" * 32, 5, Identity(0, 7, 5, 9), 11, NAME, "text/plain", UPDATE, 13
    )
    assert ReceiptRecord.unpack(record.file_id, record.pack()) == record
    older = ReceiptRecord.unpack(record.file_id, record.pack()[:-9])
    assert older == replace(record, if_exists=KEEP, ctime_bound=0)


def test_a_receipt_is_sealed_once() -> None:
    record = ReceiptRecord(
        key_of(1), b"f" * 16, b"r" * 32, 5, Identity(0, 7, 5, 9), 11, NAME, "text/plain", UPDATE
    )
    assert ReceiptRecord.unpack(b"f" * 16, sealed(record.pack(), 13)) == replace(record, ctime_bound=13)
    assert sealed(sealed(record.pack(), 13), 14) == sealed(record.pack(), 13)
    assert sealed(record.pack()[:-9], 13) == record.pack()[:-9]


def test_receipts_of_the_same_file_do_not_pile_up(local: LocalPlace) -> None:
    """A nightly job with a new sourceid each time leaves those of a day."""
    for night in range(1, 40):
        send(local, b"content", night)
        local.now_ms += DAY_MS
    with local.store.context.ledger.read() as view:
        assert len(list(view.items(b"i"))) <= 4
    assert local.files.receipts(bytes(16), [key_of(39).sourceid])


def test_replacing_by_the_same_bytes_leaves_the_file(local: LocalPlace) -> None:
    send(local, b"content", 1)
    before = (local.folder / NAME).stat().st_ino
    assert send(local, b"content", 2, REPLACE).there
    assert (local.folder / NAME).stat().st_ino == before

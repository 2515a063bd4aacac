"""What uploads reserve and take of the disk: as much as has come, and only while there is room."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import MIB, bytes_of

from blockproto.common.blocks import digest_of, root_of
from blockproto.common.names import SafeName
from blockproto.errors import StoreFull
from blockproto.store import BlockDone, Facts, Finish, StoredFile, UploadKey
from blockproto.store.folder_io import reserve
from blockproto.store.local.free_space import LOOK_EVERY
from blockproto.store.local.store import LocalStore
from blockproto.store.local.upload import LocalUpload

KEY = UploadKey(bytes(16), b"k" * 16)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    opened = LocalStore.open(tmp_path)
    yield opened
    opened.close()


def begin(store: LocalStore, filesize: int | None) -> LocalUpload:
    upload = store.open_upload(KEY, Facts(SafeName.parse("name"), "a/b", filesize), 1)
    assert isinstance(upload, LocalUpload)
    return upload


def taken(store: LocalStore, upload: LocalUpload) -> int:
    """Bytes of the disk that the upload has."""
    found = os.stat(upload.partial_name, dir_fd=store.context.partials_fd)
    return found.st_blocks * 512


@pytest.mark.clause("BP1-LIM-009")
def test_a_byte_here_and_there_reserves_nothing(store: LocalStore) -> None:
    upload = begin(store, None)
    for number in range(1, 40):
        upload.write(64 * number * MIB, memoryview(b"x"))
    assert taken(store, upload) <= MIB
    upload.close()


@pytest.mark.clause("BP1-LIM-009")
def test_no_more_is_reserved_than_has_come(store: LocalStore) -> None:
    upload = begin(store, None)
    piece = memoryview(bytes_of(256 * 1024))
    for at in range(0, 48 * MIB, len(piece)):
        upload.write(at, piece)
        assert taken(store, upload) <= 2 * (at + len(piece)) + MIB
    for number in range(10):
        upload.write((1000 + 64 * number) * MIB, piece)
    assert taken(store, upload) <= 2 * 48 * MIB + 10 * MIB
    upload.close()


def test_what_is_reserved_is_given_back_when_nobody_sends(store: LocalStore) -> None:
    upload = begin(store, None)
    content = bytes_of(3 * MIB)
    for at in range(0, len(content), MIB):
        upload.write(at, memoryview(content)[at : at + MIB])
    assert store.decide([BlockDone(upload, 1, 0, MIB, digest_of(content[:MIB]))]) == [None]
    partial = upload.partial
    upload.close()
    found = os.stat(partial.name, dir_fd=store.context.partials_fd)
    assert (found.st_size, found.st_blocks * 512) == (len(content), pytest.approx(len(content), abs=MIB // 2))


def test_nothing_is_reserved_behind_a_finished_file(store: LocalStore, tmp_path: Path) -> None:
    """Also where a process before had reserved it."""
    upload = begin(store, None)
    content = bytes_of(2 * MIB + 1)
    upload.write(0, memoryview(content))
    spans = [content[at : at + MIB] for at in range(0, len(content), MIB)]
    digests = [digest_of(span) for span in spans]
    store.decide([BlockDone(upload, 1, no, len(span), digests[no]) for no, span in enumerate(spans)])
    name = upload.partial_name
    upload.close()
    fd = os.open(name, os.O_RDWR, dir_fd=store.context.partials_fd)
    reserve(fd, 4 * MIB, 32 * MIB)
    os.close(fd)
    again = begin(store, None)
    finish = Finish(again, 1, root_of(digests, 3), len(content), again.facts)
    assert isinstance(store.decide([finish])[0], StoredFile)
    found = (tmp_path / "name").stat()
    assert found.st_size == len(content)
    assert found.st_blocks * 512 <= len(content) + MIB // 2
    again.close()


@pytest.mark.clause("BP1-LIM-009")
def test_the_disk_is_looked_at_while_it_is_taken(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else fills the disk after OPEN: the upload is stopped before the ledger has no room either."""
    upload = begin(store, None)
    piece = memoryview(bytes_of(256 * 1024))
    upload.write(0, piece)
    full = types.SimpleNamespace(f_bavail=10, f_frsize=4096, f_blocks=1 << 30)
    monkeypatch.setattr(os, "fstatvfs", lambda _: full)
    written = len(piece)

    def go_on() -> None:
        nonlocal written
        for _ in range(100):
            upload.write(written, piece)
            written += len(piece)

    with pytest.raises(StoreFull):
        go_on()
    assert written <= LOOK_EVERY + len(piece)
    brief = store.begin_brief(UploadKey(bytes(16), b"b" * 16), Facts(SafeName.parse("b"), "a/b", 5), 0)
    with pytest.raises(StoreFull):
        brief.write(0, memoryview(b"hello"))
    brief.close()
    monkeypatch.undo()
    go_on()
    upload.close()

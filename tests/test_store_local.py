"""The local store: the contract, and what only a file system can do to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_contract import NOW_MS, FileStoreContract, eio

import blockproto.store.batch
import blockproto.store.disk
from blockproto.store.check import check_store
from blockproto.store.local import LocalStore


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

    def reopen(self) -> None:
        self.store.close()
        self.store = self.files = self.open()

    def crash(self) -> None:
        self.patch.undo()
        self.store._opened.close()
        self.store = self.files = self.open()

    def content(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def put_there(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    @property
    def partials(self) -> Path:
        return (self.state or self.folder / ".blockproto") / "partials"

    def leftovers(self) -> int:
        return len(list(self.partials.iterdir()))

    def fill_disk(self) -> None:
        real = os.fstatvfs(self.store.root_fd)
        full = os.statvfs_result([*real[:3], 0, 0, *real[5:]])
        self.patch.setattr(os, "fstatvfs", lambda _: full)

    def break_medium(self) -> None:
        self.patch.setattr(os, "fsync", eio)
        self.patch.setattr(os, "fdatasync", eio)
        self.patch.setattr(blockproto.store.batch, "syncfs", eio)
        self.patch.setattr(blockproto.store.disk, "syncfs", eio)

    def done(self) -> None:
        self.patch.undo()
        self.store.close()


class TestLocalStore(FileStoreContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[LocalPlace]:
        """Every test of the contract ends with a check of the invariants."""
        folder = tmp_path / "served"
        folder.mkdir()
        place = LocalPlace(folder)
        yield place
        place.done()
        assert check_store(folder, read=True) == []

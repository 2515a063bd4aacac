from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_contract import NAME, NOW_MS, Place, UploadStoreContract, eio

from blockproto.store.sidecar import SidecarStore


class SidecarPlace:
    """A folder of downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_ms = NOW_MS
        self.first = 0
        self.patch = pytest.MonkeyPatch()
        self.store = self.open()

    def open(self) -> SidecarStore:
        return SidecarStore(self.folder / NAME, first=self.first, now_ms=lambda: self.now_ms)

    def reopen(self) -> None:
        self.store.close()
        self.store = self.open()

    def crash(self) -> None:
        self.patch.undo()
        self.store._close_partial()
        self.store._ledger.close()
        self.store._lock.release()
        self.store = self.open()

    def content(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    def put_there(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def leftovers(self) -> int:
        return len(
            [
                path
                for path in self.folder.iterdir()
                if path.suffix in (".blockproto-part", ".blockproto-ledger")
            ]
        )

    def fill_disk(self) -> None:
        self.patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]

    def break_medium(self) -> None:
        self.patch.setattr(os, "fsync", eio)
        self.patch.setattr(os, "fdatasync", eio)

    def done(self) -> None:
        self.patch.undo()
        self.store.close()


class TestSidecarStore(UploadStoreContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[SidecarPlace]:
        place = SidecarPlace(tmp_path)
        yield place
        place.done()
        assert not (tmp_path / f"{NAME}.blockproto-lock").exists()

    def take_away(self, place: Place) -> None:
        assert isinstance(place, SidecarPlace)
        (place.folder / NAME).unlink()

    def mode_and_mtime(self, place: Place) -> tuple[int, int]:
        assert isinstance(place, SidecarPlace)
        found = (place.folder / NAME).stat()
        return found.st_mode & 0o777, found.st_mtime_ns

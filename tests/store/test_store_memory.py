from __future__ import annotations

import threading

import pytest

from blockproto.common.names import SafeName
from blockproto.errors import StoreFull
from blockproto.testing.memory_store import MemoryStore
from blockproto.testing.store_contract import FileStoreContract
from blockproto.testing.store_contract.steps import JOIN_S, NOW_MS, put, read_all


class MemoryPlace:
    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.store = self.files = MemoryStore(now_ms=lambda: self.now_ms)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms

    def reopen(self) -> None:
        self.crash()

    def crash(self) -> None:
        self.store = self.files = self.store.survivor()

    def content(self, name: str) -> bytes | None:
        entries, _ = self.store.files("", True, "", 10_000)
        found = [entry for entry in entries if entry.filename.text == name]
        if not found:
            return None
        return read_all(lambda: self.store.open_file(found[0].filename, None), found[0].filesize)

    def put_there(self, name: str, content: bytes) -> None:
        put(self.store, name, content, number=1_000_000)

    def leftovers(self) -> int:
        return sum(1 for written in self.store._written.values() if written)

    def fill_disk(self) -> None:
        self.store.room = 0

    def break_medium(self) -> None:
        self.store.broken = True

    def stop_writes(self, entered: threading.Event, go_on: threading.Event) -> None:
        real = self.store.take_room

        def take_room(length: int) -> None:
            entered.set()
            assert go_on.wait(JOIN_S)
            real(length)

        self.store.take_room = take_room  # type: ignore[method-assign]


class TestMemoryStore(FileStoreContract):
    @pytest.fixture
    def place(self) -> MemoryPlace:
        return MemoryPlace()

    def test_room_is_used_up(self, place: MemoryPlace) -> None:
        place.store.room = 10
        put(place.store, "a", b"12345")
        with pytest.raises(StoreFull):
            put(place.store, "b", b"123456", number=2)
        assert place.store.stat(SafeName.parse("a")).filesize == 5

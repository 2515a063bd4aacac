"""Disks of the simulation: MemoryStore with faults, and with an eye on what becomes of it.

What was written and not committed is lost when the power goes (``MemoryStore.survivor``). A disk can die in the middle of a
batch: the works before that point are durable, nobody was told, the others never happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from blockproto.common.names import SafeName
from blockproto.errors import StoreFailed
from blockproto.store import (
    BlockDone,
    Decided,
    Destination,
    Discard,
    Facts,
    Finish,
    Forget,
    KeepPrefixes,
    Outcome,
    StoredFile,
    Upload,
    UploadKey,
    Work,
)
from blockproto.testing.memory_store import MemoryStore, MemoryUpload


class Watcher(Protocol):
    """What wants to know what becomes of a store."""

    def on_commit(self, store: SimStore, decided: Sequence[Decided]) -> None:
        """These works are durable."""

    def on_publish(self, store: SimStore, work: Finish, receipt: StoredFile, taken: bool) -> None:
        """A file got its name, which was ``taken`` before."""

    def on_forget(self, work: Forget) -> None:
        """Blocks were withdrawn by their sender."""

    def on_discard(self, key: UploadKey) -> None:
        """An upload was thrown away."""


class SimStore(MemoryStore):
    """A disk that can be slow, full, or dead.

    Args:
        watcher: told of everything that becomes durable; None: nobody is.

    Attributes:
        on_write: called with the length of each write; it may make the disk seem slow.
        dies_after: the power goes after so many works of the next batch; ``on_death`` hears what survives.
    """

    def __init__(self, watcher: Watcher | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.watcher = watcher
        self.on_write: Callable[[int], None] = lambda _: None
        self.dies_after: int | None = None
        self.on_death: Callable[[], None] = lambda: None

    def survivor(self) -> SimStore:
        """See MemoryStore."""
        twin = SimStore(self.watcher, now_ms=self._now_ms, first=self._first)
        vars(twin).update(
            {name: value for name, value in vars(super().survivor()).items() if name not in _OWN}
        )
        return twin

    def die(self) -> None:
        """From now on nothing becomes durable and nobody hears of anything."""
        self.broken = True
        self.watcher = None
        for table in (self._written, self._opened, self._begun, self._receipts, self._files):
            table.clear()  # its survivor has copies, and ghosts should not need memory

    def take_room(self, length: int) -> None:
        """See MemoryStore."""
        self.on_write(length)
        super().take_room(length)

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        """See the port."""
        if self.dies_after is not None and not self.broken:
            self._decide(works[: self.dies_after])
            self.on_death()
            raise StoreFailed("the power has gone")
        return self._decide(works)

    def _decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        outcomes = super().decide(works)
        if self.watcher is not None:
            self.watcher.on_commit(self, list(zip(works, outcomes, strict=True)))
        return outcomes

    def _publish(self, work: Finish, upload: MemoryUpload, content: bytes, name: SafeName) -> StoredFile:
        names = set(self._files)
        receipt = super()._publish(work, upload, content, name)
        if self.watcher is not None:
            self.watcher.on_publish(self, work, receipt, receipt.stored_as in names)
        return receipt

    def _record(self, work: BlockDone | Forget | KeepPrefixes) -> None:
        super()._record(work)
        if self.watcher is not None and isinstance(work, Forget):
            self.watcher.on_forget(work)

    def _discard(self, work: Discard) -> None:
        there = work.key in self._begun or work.key in self._opened
        super()._discard(work)
        if self.watcher is not None and there and work.key not in self._begun:
            self.watcher.on_discard(work.key)


_OWN = {"watcher", "on_write", "dies_after", "on_death"}


class SimDownloads(MemoryStore):
    """Where many small downloads go; the port's ``DownloadStore``. Of what was not finished nothing is kept."""

    def takes(self, dest: Destination) -> bool:
        """See the port."""
        return True

    def begin_at(self, dest: Destination, key: UploadKey, facts: Facts) -> Upload:
        """See the port."""
        return self.begin_brief(key, facts, 0)

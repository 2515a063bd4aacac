"""LivePartials: the partials of the uploads that somebody has open, one for each upload however many have it open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .. import UploadKey
from ..folder_io import remove_file
from ..open_file import Descriptors
from .free_space import FreeSpace
from .partial import Partial
from .records import UploadRecord


class LivePartial(NamedTuple):
    """An upload that somebody has open: its record as the first user saw it, and its bytes."""

    record: UploadRecord
    partial: Partial


class LivePartials:
    """All of them.

    Args:
        folder_fd: the folder of partials; stays the caller's.
        descriptors: the open files of the store.
        free_space: the disk's.

    Threads: everything may be called at any time.
    """

    def __init__(self, folder_fd: int, descriptors: Descriptors, free_space: FreeSpace) -> None:
        self._folder_fd = folder_fd
        self._descriptors = descriptors
        self._free_space = free_space
        self._live: dict[UploadKey, LivePartial] = {}
        self._mutex = threading.Lock()

    def open_new(self, key: UploadKey, new_record: Callable[[], UploadRecord]) -> LivePartial:
        """Add a user to an upload that the ledger does not know; ``release`` follows.

        Args:
            key: the upload's.
            new_record: makes its record where nobody has it open yet.
        """
        with self._mutex:
            live = self._live.get(key)
            if live is None:
                record = new_record()
                partial = self._partial(record, mode=record.facts.mode)
                live = self._live[key] = LivePartial(record, partial)
            live.partial.take()
            return live

    def open_recorded(self, record: UploadRecord) -> Partial:
        """Add a user to an upload that the ledger has; ``release`` follows."""
        with self._mutex:
            live = self._live.get(record.key)
            if live is None or live.partial.storage_id != record.storage_id:
                partial = self._partial(record, exists=True, recorded=True)
                live = self._live[record.key] = LivePartial(record, partial)
            live.partial.take()
            return live.partial

    def _partial(
        self, record: UploadRecord, *, exists: bool = False, recorded: bool = False, mode: int | None = None
    ) -> Partial:
        return Partial(
            self._folder_fd,
            self._descriptors,
            self._free_space,
            record.storage_id,
            record.facts.filesize,
            exists=exists,
            recorded=recorded,
            mode=mode,
        )

    def release(self, key: UploadKey, partial: Partial) -> None:
        """Take a user away from an upload; the last one closes its file."""
        with self._mutex:
            if partial.release():
                self._forget(key, partial)

    def published(self, key: UploadKey, partial: Partial) -> None:
        """Let go of an upload that got its final name: the next one of its key is another."""
        partial.leave()
        with self._mutex:
            self._forget(key, partial)

    def discard(self, key: UploadKey, storage_id: bytes) -> None:
        """Remove the bytes of an upload and let nobody write any more; what cannot be removed goes as an orphan later."""
        with self._mutex:
            live = self._live.get(key)
            if live is not None and live.partial.storage_id == storage_id:
                del self._live[key]
                live.partial.leave()
        with suppress(OSError):
            remove_file(self._folder_fd, storage_id.hex().encode())

    def _forget(self, key: UploadKey, partial: Partial) -> None:
        live = self._live.get(key)
        if live is not None and live.partial is partial:
            del self._live[key]

    def find(self, key: UploadKey) -> LivePartial | None:
        """An upload that somebody has open, or None."""
        with self._mutex:
            return self._live.get(key)

    def is_open(self, key: UploadKey) -> bool:
        """Whether somebody has an upload open."""
        return key in self._live

    def storage_ids(self) -> set[bytes]:
        """The storage ids of all of them."""
        with self._mutex:
            return {live.partial.storage_id for live in self._live.values()}

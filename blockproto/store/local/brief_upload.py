"""BriefUpload: a file of at most one block that came without OPEN, on the way from its bytes to its name.

Twenty thousand small files are twenty thousand times this, so it has no lock, no record and no open file once its bytes
are there. A small one is carried in memory until its batch is committed: create, write, set mode and mtime, look, close,
in one call; making a file while another thread syncs would wait for the file system's journal. The ledger learns of it when
it is committed. A crash before that leaves bytes nobody was promised; they go as orphans.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from ...common.blocks import BRIEF_LENGTH_MAX, BlockSet
from ...errors import StoreFailed
from .. import Facts, Prefix, UploadKey
from ..folder_io import remove_file, write_all
from ..os_errors import refusal
from .context import LocalContext
from .partial_file import PartialFile


class BriefUpload(PartialFile):
    """The port's ``Upload`` for one small file; used by one thread at a time.

    Args:
        context: its store's.
        key, facts: as in the port.
        storage_id: 16 bytes; the partial's name in hex.
    """

    __slots__ = (
        "_carried",
        "_content",
        "_context",
        "attempt",
        "expires_ms",
        "facts",
        "file_id",
        "held",
        "key",
        "prefixes",
        "short_end",
    )

    def __init__(self, context: LocalContext, key: UploadKey, facts: Facts, storage_id: bytes) -> None:
        super().__init__(context.partials_fd, context.descriptors, storage_id, facts.mode)
        self.key = key
        self.facts = facts
        self.file_id = context.state.file_id(key)
        self.attempt = 0
        self.expires_ms: int | None = None
        self.held = BlockSet()
        self.short_end: int | None = None
        self.prefixes: dict[int, Prefix] = {}
        self._context = context
        self._content = b""
        self._carried = 0
        if 0 < (facts.filesize or 0) <= BRIEF_LENGTH_MAX:
            self._carried = context.carry(facts.filesize or 0)

    @property
    def partial_name(self) -> bytes:
        """The partial's name in the folder of partials."""
        return self.name

    @property
    def in_memory(self) -> bool:
        """See the port."""
        return self._carried > 0 and not self.exists

    def write(self, position: int, piece: memoryview) -> None:
        """See the port. The last byte settles the file and closes it, unless it is carried."""
        context = self._context
        context.check_usable()
        context.free_space.take(len(piece))
        if self._carried and not self.exists and position == len(self._content):
            self._content += piece
            return
        try:
            self._settled = None
            with self._opened() as fd:
                self._unsynced = True
                write_all(fd, position, piece)
                if position + len(piece) == self.facts.filesize:
                    self._settle(fd, self.facts, self.facts.filesize)
                    self._file.rest()
        except OSError as exc:
            error = refusal(exc)
            raise (context.fail(error) if isinstance(error, StoreFailed) else error) from exc

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        if not self.exists:
            there = self._content[position : position + len(view)]
            view[: len(there)] = there
            return len(there)
        return super().read_into(position, view)

    def digests(self, blocknos: Iterable[int]) -> dict[int, bytes]:
        """See the port: nothing of it is in the ledger."""
        return {}

    def close(self) -> None:
        """See the port: without a commit its bytes go."""
        self._file.rest()
        carried, self._carried, self._content = self._carried, 0, b""
        if carried:
            self._context.carry(-carried)
        made = self.exists and not self.gone
        self.gone = True  # a write that comes too late makes no file
        if made:
            with suppress(OSError):
                remove_file(self._folder_fd, self.name)

    def settle(self, facts: Facts, size: int) -> os.stat_result:
        """See ``PartialFile``; it is closed after that."""
        found = super().settle(facts, size)
        self._file.rest()
        return found

    def let_go(self) -> None:
        """It is synced, and closed after that."""
        super().let_go()
        self._file.rest()

    def _take(self) -> int:
        """The open file, with the bytes that were carried; ``give`` follows."""
        fd = super()._take()
        if self._content:
            try:
                write_all(fd, 0, memoryview(self._content))
            except BaseException:
                self._file.give()
                raise
            self._content, self._unsynced = b"", True
        return fd

"""BriefUpload: a file of at most one block that came without OPEN, on the way from its bytes to its name.

Twenty thousand small files are twenty thousand times this, so it has no lock, no record and no open file once its bytes
are there. A small one is carried in memory until its batch is committed: create, write, set mode and mtime, look, close,
in one call; making a file while another thread syncs would wait for the file system's journal. The ledger learns of it when
it is committed. A crash before that leaves bytes nobody was promised; they go as orphans.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from ..blocks import BlockSet
from ..errors import StoreFailed, UnknownUpload
from . import Facts, Prefix, UploadKey
from .disk import create_file, open_file, read_into, remove_file, write_all
from .partial import FILE_MODE, settle_file
from .refusals import refusal

if TYPE_CHECKING:
    from .local import LocalStore

CARRIED_MAX = 64 * 1024
"""Files up to this size are carried in memory, as long as the store has room for that."""


class BriefUpload:
    """The port's ``Upload`` for one small file; used by one thread at a time.

    Args:
        store: its store.
        key, facts: as in the port.
        storage_id: 16 bytes; the partial's name in hex.
    """

    __slots__ = (
        "_carried",
        "_content",
        "_fd",
        "_settled",
        "_store",
        "attempt",
        "exists",
        "expires_ms",
        "facts",
        "file_id",
        "gone",
        "held",
        "key",
        "partial_name",
        "prefixes",
    )

    def __init__(self, store: LocalStore, key: UploadKey, facts: Facts, storage_id: bytes) -> None:
        self.key = key
        self.facts = facts
        self.file_id = store.state.file_id(key)
        self.attempt = 0
        self.expires_ms: int | None = None
        self.held = BlockSet()
        self.prefixes: dict[int, Prefix] = {}
        self.partial_name = storage_id.hex().encode()
        self.exists = False
        self.gone = False
        self._store = store
        self._fd = -1
        self._content = b""
        self._carried = 0
        if 0 < (facts.filesize or 0) <= CARRIED_MAX:
            self._carried = store.carry(facts.filesize or 0)
        self._settled: os.stat_result | None = None

    def write(self, position: int, piece: memoryview) -> None:
        """See the port. The last byte settles the file and closes it, unless it is carried."""
        store = self._store
        store.check_usable()
        if self._carried and not self.exists and position == len(self._content):
            self._content += piece
            return
        try:
            fd = self._open()
            self._settled = None
            write_all(fd, position, piece)
            if position + len(piece) == self.facts.filesize:
                self._settled = settle_file(fd, self.facts, self.facts.filesize, cut=False)
                self._rest()
        except OSError as exc:
            error = refusal(exc)
            raise (store.fail(error) if isinstance(error, StoreFailed) else error) from exc

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        if not self.exists:
            there = self._content[position : position + len(view)]
            view[: len(there)] = there
            return len(there)
        try:
            return read_into(self._open(), position, view)
        except OSError as exc:
            raise refusal(exc) from exc

    def digest(self, blockno: int) -> bytes | None:
        """See the port: nothing of it is in the ledger."""
        return None

    def close(self) -> None:
        """See the port: without a commit its bytes go."""
        self._rest()
        carried, self._carried, self._content = self._carried, 0, b""
        if carried:
            self._store.carry(-carried)
        if self.exists and not self.gone:
            self.gone = True
            with suppress(OSError):
                remove_file(self._store.partials_fd, self.partial_name)

    def settle(self, facts: Facts, size: int) -> os.stat_result:
        """Give it its final size, mode and mtime; repeated without effect.

        Returns:
            What it is then.

        Raises:
            OSError: as the system reports it.
            UnknownUpload: bytes are missing.
        """
        same = facts is self.facts or facts == self.facts
        if self._settled is None or not same or self._settled.st_size != size:
            self._settled = settle_file(self._open(), facts, size, cut=False)
            self.facts = facts
            self._rest()
        return self._settled

    def is_openable(self) -> bool:
        """Open it; False where that fails for want of files or rights."""
        try:
            self._open()
        except OSError:
            return False
        return True

    def sync(self) -> None:
        """Make bytes, mode and mtime durable; raises OSError when the medium reports an error."""
        os.fsync(self._open())
        self._rest()

    def leave(self) -> None:
        """It got its final name."""
        self._rest()
        self.gone = True

    def _open(self) -> int:
        if self._fd < 0:
            if self.gone:
                raise UnknownUpload("the upload has ended")
            folder_fd = self._store.partials_fd
            if self.exists:
                self._fd = open_file(folder_fd, self.partial_name)
            else:
                mode = self.facts.mode
                self._fd = create_file(
                    folder_fd, self.partial_name, FILE_MODE if mode is None else mode | 0o600
                )
                self.exists = True
        if self._content:
            write_all(self._fd, 0, memoryview(self._content))
            self._content = b""
        return self._fd

    def _rest(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

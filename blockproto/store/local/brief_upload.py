"""BriefUpload: a file of at most one block that came without OPEN, on the way from its bytes to its name.

Twenty thousand small files are twenty thousand times this, so it has no lock, no record and no open file once its bytes
are there. A small one is carried in memory until its batch is committed: create, write, set mode and mtime, look, close,
in one call; making a file while another thread syncs would wait for the file system's journal. The ledger learns of it when
it is committed. A crash before that leaves bytes nobody was promised; they go as orphans.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...common.blocks import BRIEF_LENGTH_MAX, BlockSet
from ...errors import StoreFailed, UnknownUpload
from .. import Facts, Prefix, UploadKey
from ..folder_io import create_file, open_file, read_into, remove_file, write_all
from ..os_errors import refusal
from .context import LocalContext
from .descriptors import Descriptor
from .partial import FILE_MODE, settle_file


class BriefUpload:
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
        "_file",
        "_settled",
        "_unseen",
        "_unsynced",
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
        "short_end",
    )

    def __init__(self, context: LocalContext, key: UploadKey, facts: Facts, storage_id: bytes) -> None:
        self.key = key
        self.facts = facts
        self.file_id = context.state.file_id(key)
        self.attempt = 0
        self.expires_ms: int | None = None
        self.held = BlockSet()
        self.short_end: int | None = None
        self.prefixes: dict[int, Prefix] = {}
        self.partial_name = storage_id.hex().encode()
        self.exists = False
        self.gone = False
        self._context = context
        self._file: Descriptor | None = None
        self._unsynced = self._unseen = False
        self._content = b""
        self._carried = 0
        if 0 < (facts.filesize or 0) <= BRIEF_LENGTH_MAX:
            self._carried = context.carry(facts.filesize or 0)
        self._settled: os.stat_result | None = None

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
                    self._settled = settle_file(fd, self.facts, self.facts.filesize, cut=False)
                    self._rest()
        except OSError as exc:
            error = refusal(exc)
            raise (context.fail(error) if isinstance(error, StoreFailed) else error) from exc

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        if not self.exists:
            there = self._content[position : position + len(view)]
            view[: len(there)] = there
            return len(there)
        try:
            with self._opened() as fd:
                return read_into(fd, position, view)
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
            self._context.carry(-carried)
        made = self.exists and not self.gone
        self.gone = True  # a write that comes too late makes no file
        if made:
            with suppress(OSError):
                remove_file(self._context.partials_fd, self.partial_name)

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
            with self._opened() as fd:
                self._settled = settle_file(fd, facts, size, cut=False)
            self.facts = facts
            self._rest()
        return self._settled

    def hold(self) -> bool:
        """Keep it open for its sync, until ``let_go``; False if it cannot be, or if a sync of everything is needed."""
        unseen, self._unseen = self._unseen, False
        if unseen:
            return False
        try:
            self._take()
        except (OSError, UnknownUpload):
            return False
        self._unsynced = False
        return True

    def let_go(self) -> None:
        """It is synced."""
        assert self._file is not None
        self._file.give()
        self._rest()

    def sync(self) -> None:
        """Make bytes, mode and mtime durable; raises OSError when the medium reports an error."""
        with self._opened() as fd:
            os.fsync(fd)

    def leave(self) -> None:
        """It got its final name."""
        self._rest()
        self.gone = True

    @contextmanager
    def _opened(self) -> Iterator[int]:
        fd = self._take()
        try:
            yield fd
        finally:
            assert self._file is not None
            self._file.give()

    def _take(self) -> int:
        """The open file, with the bytes that were carried; ``give`` follows."""
        if self._file is None:
            self._file = Descriptor(self._context.descriptors, self._open, self._has_rested)
        fd = self._file.take()
        if self._content:
            try:
                write_all(fd, 0, memoryview(self._content))
            except BaseException:
                self._file.give()
                raise
            self._content, self._unsynced = b"", True
        return fd

    def _open(self) -> int:
        if self.gone:
            raise UnknownUpload("the upload has ended")
        folder_fd = self._context.partials_fd
        if self.exists:
            return open_file(folder_fd, self.partial_name)
        mode = self.facts.mode
        fd = create_file(folder_fd, self.partial_name, FILE_MODE if mode is None else mode | 0o600)
        self.exists = True
        return fd

    def _has_rested(self) -> None:
        """It was closed before it was synced: what the medium reports meanwhile only a sync of everything hears."""
        self._unseen |= self._unsynced

    def _rest(self) -> None:
        if self._file is not None:
            self._file.close()

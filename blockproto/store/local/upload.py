"""LocalUpload: an upload of the local store as the engine holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ...common.blocks import BlockSet
from ...errors import StoreFailed
from .. import Facts, Prefix
from .context import LocalContext
from .partial import Partial
from .records import UploadRecord


class LocalUpload:
    """An upload of a LocalStore; the port's ``Upload``.

    Args:
        context: its store's.
        record: its record.
        partial: its bytes, with this user counted; ``close`` releases it.
    """

    __slots__ = (
        "_context",
        "_open",
        "attempt",
        "expires_ms",
        "facts",
        "file_id",
        "held",
        "key",
        "partial",
        "prefixes",
        "record",
        "short_end",
    )

    def __init__(self, context: LocalContext, record: UploadRecord, partial: Partial) -> None:
        self.key = record.key
        self.facts = record.facts
        self.file_id = record.file_id
        self.attempt = record.attempt
        self.expires_ms: int | None = record.expires_ms
        self.held = BlockSet()
        self.short_end = record.shape.short_end
        self.prefixes: dict[int, Prefix] = {}
        self.record = record
        self.partial = partial
        self._context = context
        self._open = True

    @property
    def in_memory(self) -> bool:
        """See the port."""
        return False

    def write(self, position: int, piece: memoryview) -> None:
        """See the port. Durability: none before ``decide``."""
        self._context.check_usable()
        try:
            self.partial.write(position, piece)
        except StoreFailed as exc:
            raise self._context.fail(exc) from exc

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        return self.partial.read_into(position, view)

    @property
    def partial_name(self) -> bytes:
        """The partial's name in the folder of partials."""
        return self.partial.name

    def settle(self, facts: Facts, size: int) -> os.stat_result:
        """See ``Partial.settle``."""
        return self.partial.settle(facts, size)

    def leave(self) -> None:
        """It got its final name."""
        self._context.live.published(self.key, self.partial)

    def digests(self, blocknos: Iterable[int]) -> dict[int, bytes]:
        """See the port."""
        with self._context.ledger.read() as view:
            found = ((blockno, view.digest(self.partial.storage_id, blockno)) for blockno in blocknos)
            return {blockno: digest for blockno, digest in found if digest is not None}

    def close(self) -> None:
        """See the port; bytes the ledger does not know are removed by the last who lets go."""
        if self._open:
            self._open = False
            self._context.live.release(self.key, self.partial)

"""LocalUpload: an upload of the local store as the engine holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..blocks import BlockSet
from ..errors import StoreFailed
from . import Prefix
from .partial import Partial
from .records import UploadRecord
from .refusals import refusal

if TYPE_CHECKING:
    from .local import LocalStore


class LocalUpload:
    """An upload of a LocalStore; the port's ``Upload``."""

    __slots__ = (
        "_open",
        "_store",
        "attempt",
        "brief",
        "expires_ms",
        "facts",
        "file_id",
        "held",
        "key",
        "partial",
        "prefixes",
        "record",
    )

    def __init__(
        self, store: LocalStore, record: UploadRecord, partial: Partial, *, brief: bool = False
    ) -> None:
        self.key = record.key
        self.facts = record.facts
        self.file_id = record.file_id
        self.attempt = record.attempt
        self.expires_ms: int | None = record.expires_ms
        self.held = BlockSet()
        self.prefixes: dict[int, Prefix] = {}
        self.record = record
        self.partial = partial
        self.brief = brief
        self._store = store
        self._open = True
        partial.take()

    def write(self, position: int, piece: memoryview) -> None:
        """See the port. Durability: none before ``commit``."""
        self._store.check_usable()
        try:
            self.partial.write(position, piece)
            if self.brief and position + len(piece) == self.facts.filesize:
                self._rest()
        except StoreFailed as exc:
            raise self._store.fail(exc) from exc

    def _rest(self) -> None:
        try:
            self.partial.settle(self.facts, self.facts.filesize or 0)
        except OSError as exc:
            raise refusal(exc) from exc
        self.partial.rest()

    def read_into(self, position: int, view: memoryview) -> int:
        """See the port."""
        return self.partial.read_into(position, view)

    def digest(self, blockno: int) -> bytes | None:
        """See the port."""
        with self._store.ledger.read() as view:
            return view.digest(self.partial.storage_id, blockno)

    def close(self) -> None:
        """See the port; bytes the ledger does not know are removed by the last who lets go."""
        if self._open:
            self._open = False
            self._store.let_go(self)

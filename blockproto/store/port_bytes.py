"""The role of bytes: an unfinished upload takes pieces and gives them back to be hashed again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..common.blocks import BlockSet
from .facts import Facts, Prefix, UploadKey


class Upload(Protocol):
    """An unfinished upload the store has opened: its facts, what is durable of it, and its bytes.

    ``held``, ``short_end`` (where a short block of an upload of unknown size says that the file ends), ``prefixes``
    and ``attempt`` are a snapshot for the engine, which keeps them up to date itself from then on; the store decides only
    by its ledger. One thread at a time may call ``write`` or ``read_into`` of one byte range.
    """

    key: UploadKey
    facts: Facts
    file_id: bytes
    attempt: int
    expires_ms: int | None
    held: BlockSet
    short_end: int | None
    prefixes: dict[int, Prefix]

    @property
    def in_memory(self) -> bool:
        """Whether the next bytes go to memory: writing them waits for no disk."""

    def write(self, position: int, piece: memoryview) -> None:
        """Write ``piece`` at byte ``position``; creates the partial on the first byte.

        Raises:
            StoreFull: no room; what was written before stays.
            StoreFailed: the medium reported an error.
            NotPermitted: the folder does not take a file.
        """

    def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from byte ``position`` on, to hash a prefix again.

        Returns how many bytes there were.
        """

    def digests(self, blocknos: Iterable[int]) -> dict[int, bytes]:
        """The digests of those ``blocknos`` that are recorded as held: to judge blocks sent again, and for repair."""

    def close(self) -> None:
        """Let go of what is open; the upload stays in the store. Harmless when repeated.

        Harmless too while ``write`` or ``read_into`` runs in another thread: the descriptor it uses is not closed before it
        has ended. A write that begins later raises UnknownUpload or writes as if nothing were, but never into another file.
        """

"""The interfaces of a sender: sources of a file's bytes, and the progress of the transfer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..store import Facts


class Source(Protocol):
    """Where the bytes of a file come from.

    Attributes:
        facts: the facts to state; ``facts.filesize`` is None while the end is unknown.
        first: position of the first byte to send (not 0 only for a ranged download).
        end: position after the last byte to send, or None while unknown.
        window_bytes: the most bytes that ``read_block`` can give again, and so may be sent and not yet durable; None:
            no limit.
    """

    facts: Facts
    first: int
    end: int | None
    window_bytes: int | None

    def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from ``position`` on; returns how many bytes there were. Called in worker threads, to hash."""

    def durable(self, blockno: int) -> None:
        """Hear that a block is durable at the receiver and will not be read again."""

    def unchanged(self) -> bool:
        """Whether the file has not changed since it was opened."""


class BlockSource(Source, Protocol):
    """A source that is read block by block."""

    async def read_block(self, blockno: int, memory: memoryview) -> memoryview:
        """Read a block, into ``memory`` or elsewhere; empty past the end of a source of unknown size.

        Raises:
            SourceChanged: the file is shorter than it was.
        """


class PieceSource(Source, Protocol):
    """A source that can be read at any position and length."""

    def span(self, blockno: int) -> tuple[int, int]:
        """Position and length of a block; length 0 past the end of a source of unknown size."""

    async def read_piece(self, position: int, view: memoryview) -> None:
        """Fill ``view`` from ``position`` on.

        Raises:
            SourceChanged: the file is shorter than it was.
        """


class GrowingSource(Source, Protocol):
    """A source that grows while it is sent: each block can be read once it is there, until the source is complete."""

    def ready(self, blockno: int) -> bool:
        """Whether a block can be read now, or is known not to exist."""

    @property
    def complete(self) -> bool:
        """Whether nothing more comes. ``Sender.tell`` has to be called when this changes, as for each new block."""

    async def settle(self) -> None:
        """From now on read from the complete file only.

        Raises:
            UnknownFile: it is gone already.
        """

    async def digest(self, blockno: int) -> bytes:
        """The digest of a block that is ``ready``; raises as reading it."""


@dataclass(slots=True)
class Progress:
    """The progress of a transfer; after success the last one says that all of it is done.

    Attributes:
        filename: which file.
        filesize: its size in bytes, or None while unknown.
        position_bytes_done: bytes that are durable on the other side (for a download: here).
        payload_bytes_sent: bytes of file content that this call has sent.
    """

    filename: str
    filesize: int | None
    position_bytes_done: int = 0
    payload_bytes_sent: int = 0


OnProgress = Callable[[Progress], None]


def tell_all_done(on_progress: OnProgress | None, filename: str, filesize: int, payload: int) -> None:
    """Report that a transfer has succeeded: the whole file is on the other side, or was left as it is there."""
    if on_progress is not None:
        on_progress(Progress(filename, filesize, filesize, payload))

"""What a sender is given and what it tells: the sources of a file's bytes, and how far the transfer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..store import Facts


class Source(Protocol):
    """Where the bytes of a file come from.

    Attributes:
        facts: what is said of it; ``facts.filesize`` is None while the end is unknown.
        first: position of the first byte to send (not 0 only for a ranged download).
        end: position after the last byte to send, or None while unknown.
        window_bytes: how much may be sent and not yet durable, because ``read_block`` must be able to give it again;
            None: no limit of its own.
    """

    facts: Facts
    first: int
    end: int | None
    window_bytes: int | None

    def read_into(self, position: int, view: memoryview) -> int:
        """Fill ``view`` from ``position`` on; called in worker threads for what is not sent."""

    def durable(self, blockno: int) -> None:
        """The receiver keeps this block now; it will not be asked for again."""

    def unchanged(self) -> bool:
        """Whether the file is still what it was when it was opened."""


class BlockSource(Source, Protocol):
    """A source that is read block by block."""

    async def read_block(self, blockno: int, memory: memoryview) -> memoryview:
        """The bytes of a block, in ``memory`` or elsewhere; empty past the end of a source of unknown size.

        Raises:
            SourceChanged: the file is shorter than it was.
        """


class PieceSource(Source, Protocol):
    """A source that can be read from anywhere, any number of bytes."""

    def span(self, blockno: int) -> tuple[int, int]:
        """Position and length of a block; no length past the end of a source of unknown size."""

    async def read_piece(self, position: int, view: memoryview) -> None:
        """Fill ``view`` from ``position`` on.

        Raises:
            SourceChanged: the file is shorter than it was.
        """


class GrowingSource(Source, Protocol):
    """A source that grows while it is sent: each block can be read when it is there, and in the end it is complete."""

    def ready(self, blockno: int) -> bool:
        """Whether a block can be read now, or it is known that there is none."""

    @property
    def complete(self) -> bool:
        """Whether nothing more comes; whoever makes it so calls ``Sender.tell``, as for each new block."""

    async def settle(self) -> None:
        """Read only what is complete from now on, and let go of the rest.

        Raises:
            UnknownFile: it is gone already.
        """

    async def digest(self, blockno: int) -> bytes:
        """The digest of a block that is ``ready``."""

    def check_root(self, root: bytes) -> None:
        """Raise Refused if ``root``, that of what was read, is not that of what is complete."""


@dataclass(slots=True)
class Progress:
    """How far a transfer is.

    The last one of a transfer that ended well says that all of it is done.

    Attributes:
        filename: which file.
        filesize: its size in bytes, or None while unknown.
        position_bytes_done: bytes that are durable on the other side (or here, for a download).
        payload_bytes_sent: bytes of file content put on the wire by this call.
    """

    filename: str
    filesize: int | None
    position_bytes_done: int = 0
    payload_bytes_sent: int = 0


OnProgress = Callable[[Progress], None]


def tell_all_done(on_progress: OnProgress | None, filename: str, filesize: int, payload: int) -> None:
    """Tell of a transfer that has ended well: the whole file is on the other side, or left as it is there."""
    if on_progress is not None:
        on_progress(Progress(filename, filesize, filesize, payload))

"""The interface of a dialect to the server that recognises and serves it.

Spec: BP1-DIA.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..connection.endpoint import Endpoint, Part
    from ..errors import BlockprotoError
    from ..transfer.file_service import FileWriter

FIRST_LENGTH_MAX = 84
"""With this many bytes every dialect knows whether it is spoken (BP1-DIA)."""

TEXT_LENGTH = 70
"""The first bytes of a binary header that hold text, padded with NUL: a line of text has no NUL there (BP1-DIA)."""

assert TEXT_LENGTH < FIRST_LENGTH_MAX


_KEY = re.compile(rb"[^\x00-\x08\x0a-\x1f]*?(?:^|;)[ \t]*(?:content-length|filenn?ame|sourceid)[ \t]*=", re.I)


def begins_with_key(first: bytes) -> bool:
    """Whether a line of text with one of the keys of ``sourceid`` begins here (BP1-SID-001)."""
    return _KEY.match(first[:FIRST_LENGTH_MAX]) is not None


class Recognition(Enum):
    """Whether the first bytes are of a dialect."""

    YES = "yes"
    NO = "no"
    MORE = "more"


class DialectPeer(Protocol):
    """One connection that speaks a dialect, as the dialect sees it; see ``DialectConnection``.

    Attributes:
        endpoint: the byte stream.
        begun_at: the Trio time when the connection was established.
        refusal: why it may not upload, or None.
    """

    endpoint: Endpoint
    begun_at: float
    refusal: BlockprotoError | None

    @property
    def writer(self) -> FileWriter:
        """What it may do. Raises ``refusal``, if there is one."""

    async def receive_into(self, view: memoryview, silence_s: float = ...) -> int:
        """Fill ``view`` with at least one byte; returns how many, 0 at the peer's end of stream.

        Raises:
            ConnectionLost: the connection broke, or nothing came for ``silence_s``.
        """

    async def send(self, parts: list[Part]) -> None:
        """Send all of ``parts``. Raises ConnectionLost."""

    async def say_last(self, words: bytes) -> None:
        """Send ``words``, half-close, and drop what still comes, so that the words arrive. Raises ConnectionLost."""

    async def drain(self) -> int:
        """Read and drop until the peer's end of stream; returns how many bytes there were. Raises ConnectionLost."""

    def tell(self, level: int, event: str, text: str, /, **facts: object) -> None:
        """Log a sentence about this connection; ``event`` and ``facts`` are for programs."""

    def close(self, reason: BlockprotoError | None = None) -> None:
        """End the connection now. Harmless when repeated."""


class Dialect(Protocol):
    """An older wire format that a server can answer.

    Attributes:
        name: what ``--dialect`` calls it.
    """

    name: str

    def recognise(self, first: bytes) -> Recognition:
        """Whether a connection that begins with ``first`` speaks it; a pure function.

        Args:
            first: at least one byte, perhaps more than ``FIRST_LENGTH_MAX``; YES stays YES with more bytes.

        Returns:
            MORE only for less than ``FIRST_LENGTH_MAX`` bytes.
        """

    async def serve(self, dialect_connection: DialectPeer) -> None:
        """Answer one connection to its end; the caller closes it.

        Raises:
            ConnectionLost: it broke.
            TransferError, StoreError: the upload cannot go on; the peer was told as far as the dialect can.

        Cancellation: what was received is kept as far as the dialect can resume it.
        """

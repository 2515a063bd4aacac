"""What a dialect is: an older wire format that a server answers on the same port, into the same store.

    first bytes → serving.detect_rules → DialectConnection → dialect.serve → SequentialReceiver → LiveUpload → committer

A dialect brings files and nothing else: it cannot list, fetch or remove, and it can neither encrypt nor say who speaks. What
it brings goes through the same live uploads, ledger, committer and name rules as everything else, under the anonymous
principal and a sourceid that is derived (``keys``) from what identifies an upload in that dialect. So what a dialect began
is seen in listings, resumed after a restart and swept when it expires, with no state of its own.

Rules:
    1. A dialect recognises itself by the first bytes alone, at most ``FIRST_LENGTH_MAX`` of them, and says NO as soon as it
       knows. No two dialects say YES to the same bytes: NUL padding within the first ``TEXT_LENGTH`` bytes tells them apart.
    2. Nothing of a dialect is known to the native protocol: rooms that speak it do not import this one.

Spec: BP1-DIA.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .dialect_connection import DialectConnection

FIRST_LENGTH_MAX = 84
"""With so many bytes every dialect knows whether it is spoken (BP1-DIA)."""

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


class Dialect(Protocol):
    """An older wire format that a server can answer.

    Attributes:
        name: what ``--dialect`` calls it.
    """

    name: str

    def recognise(self, first: bytes) -> Recognition:
        """Whether a connection that begins with ``first`` speaks it; a pure function.

        Args:
            first: at least one byte; perhaps more than ``FIRST_LENGTH_MAX``, and what was YES stays YES with more bytes.

        Returns:
            MORE only for less than ``FIRST_LENGTH_MAX`` bytes.
        """

    async def serve(self, dialect_connection: DialectConnection) -> None:
        """Answer one connection until it has ended; whoever called closes it.

        Raises:
            ConnectionLost: it broke.
            TransferError, StoreError: the upload cannot go on; what can be told to the peer was told.

        Cancellation: what was received is kept as far as the dialect allows; nothing is waited for.
        """

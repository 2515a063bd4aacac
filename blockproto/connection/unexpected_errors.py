"""Unexpected errors: log them once with their traceback, and let them end what they belong to and nothing else.

    in a handler of a stream      its stream hears INTERNAL
    elsewhere in a connection     the connection hears INTERNAL
    in what makes bytes durable   the store has failed: only that ends a server (``transfer.committer``)

The errors of ``errors`` are expected, except ``LocalProtocolError``, which is a bug on this side. MemoryError is neither: it
ends the connection that ran out of memory (BP1-LIM-006). ``KeyboardInterrupt`` and cancellation pass.

Spec: BP1-ERR-010.
"""

from __future__ import annotations

import logging
from typing import TypeGuard

from ..errors import BlockprotoError, InternalError, LocalProtocolError

log = logging.getLogger(__name__)


def is_expected(error: BaseException) -> TypeGuard[BlockprotoError]:
    """Whether the error was raised on purpose, for the peer or the caller."""
    return isinstance(error, BlockprotoError) and not isinstance(error, LocalProtocolError)


def wants_memory(error: BaseException) -> bool:
    """Whether it is, or a group contains, a MemoryError."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(MemoryError) is not None
    return isinstance(error, MemoryError)


def unexpected(what: str, error: BaseException) -> InternalError:
    """Log ``error`` with its traceback; returns the error to tell the peer and the caller.

    Args:
        what: what the error ends, as the subject of a sentence: "stream 3 of 192.0.2.1:4000".
        error: what was raised.
    """
    log.error(
        "%s ends because of an error that nobody expected",
        what,
        exc_info=error,
        extra={"event": "unexpected error", "facts": {"ends": what}},
    )
    told = InternalError("an error that nobody expected; the log of the side that says this has the details")
    told.__cause__ = error
    return told

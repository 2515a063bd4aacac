"""The interface between a connection and its streams: what handles a stream's events, and how a stream begins."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Protocol

from ..errors import BlockprotoError, error_from_code
from ..wire import Error, Message
from .endpoint import Part


class NotYet(Exception):
    """Raised by ``StreamHandler.received``: it has done nothing, and wants the message again after ``Connection.resume``."""


class Wait(IntEnum):
    """How long the next event of a stream may have to wait."""

    NOT = 0
    SHORT = 1
    """For the disk, as long as one access takes."""
    LONG = 2
    """For work that is queued for all principals, or for a hook."""


class StreamHandler(Protocol):
    """Handles the events of one stream.

    ``received`` and ``payload`` may raise TransferError or StoreError: the peer gets ERROR(stream), and ``ended`` is called.
    StoreFailed ends the connection. A handler that would have to wait for what other streams or peers do raises NotYet
    instead: then its stream stands still, and nothing else. ``ended`` may be called while one of them waits.
    """

    @property
    def waits(self) -> int:
        """Whether the next event may have to wait, a ``Wait`` or a bool: the connection then reads on meanwhile."""

    async def received(self, message: Message, payload_length: int) -> None:
        """Handle a message; its payload, if any, follows in calls of ``payload``."""

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """Handle bytes at ``position`` of the file; ``view`` is valid until this returns; ``last``: the frame ends here."""

    def ended(self, error: BlockprotoError) -> None:
        """Hear why the stream cannot go on."""


class Opening(NamedTuple):
    """A stream to begin: its handler, its first message and that message's payload."""

    handler: StreamHandler
    message: Message
    payload: Part


def error_of(message: Error) -> BlockprotoError:
    """The exception that an ERROR message stands for."""
    return error_from_code(
        message.code,
        message.text,
        retryable=message.retryable,
        retry_after_ms=message.retry_after_ms,
        blockno=message.blockno,
        current=message.current,
    )

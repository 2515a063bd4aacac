"""The side, the limits and the events of a session, and the ERROR messages for exceptions.

Spec: BP1-HEL, BP1-ERR.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum

from ..errors import ERRORS, BlockprotoError, Scope, TransferError
from ..wire import HEAD_LENGTH_MAX, PIECE_LENGTH_MAX, Error, Hello, Message


class Side(Enum):
    """The two ends of a connection: the client dials, the server answers."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of this side for its HELLO; see ``Hello``. Lengths in bytes."""

    head_length_max: int = HEAD_LENGTH_MAX
    piece_length_max: int = PIECE_LENGTH_MAX
    streams_max: int = 2048
    connection_allowance: int = 16 << 20
    stream_allowance: int = 4 << 20
    undurable_max: int = 64 << 20
    agent: str = "blockproto"
    features: int = 0

    def hello(self) -> Hello:
        """The HELLO with these limits, the same object each time; raises LocalProtocolError if one is too small."""
        return _hello_of(self)


@functools.lru_cache(8)
def _hello_of(limits: Limits) -> Hello:
    return Hello(
        head_length_max=limits.head_length_max,
        piece_length_max=limits.piece_length_max,
        streams_max=limits.streams_max,
        connection_allowance=limits.connection_allowance,
        stream_allowance=limits.stream_allowance,
        undurable_max=limits.undurable_max,
        agent=limits.agent,
        features=limits.features,
    )


@dataclass(slots=True)
class Greeted:
    """The peer's preface and HELLO were accepted."""

    hello: Hello


@dataclass(slots=True)
class Received:
    """A message that is legal here; ``payload_length`` bytes follow as ``Payload`` events (none if it is 0)."""

    stream: int
    message: Message
    payload_length: int


@dataclass(slots=True)
class Payload:
    """Some bytes of a BLOCK's or PIECE's payload.

    Attributes:
        position: byte offset in the file of ``view[0]``.
        view: part of the receive buffer, valid until the next ``receive_buffer()``.
        last: whether the frame ends with it.
    """

    stream: int
    position: int
    view: memoryview
    last: bool


@dataclass(slots=True)
class Rejected:
    """The peer's message was refused and its stream is closed; answer with ``stream_error(error)``."""

    stream: int
    error: TransferError


Event = Greeted | Received | Payload | Rejected


def connection_error(error: BlockprotoError) -> Error:
    """The ERROR that ends a connection because of ``error``."""
    return _error(error, Scope.CONNECTION)


def stream_error(error: BlockprotoError, *, scope: Scope | None = None) -> Error:
    """The ERROR that answers a stream (or, by its row or ``scope``, one block) because of ``error``."""
    row = ERRORS[error.code].scope
    return _error(error, scope or (Scope.STREAM if row is Scope.CONNECTION else row))


def _error(error: BlockprotoError, scope: Scope) -> Error:
    return Error(
        code=error.code,
        scope=scope,
        retryable=error.retryable,
        text=str(error),
        retry_after_ms=error.retry_after_ms,
        blockno=error.blockno,
        current=error.current,
    )

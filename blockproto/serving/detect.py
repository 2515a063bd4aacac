"""Detection: find out which protocol an accepted connection speaks, with or without TLS, before a deadline.

    first bytes → detect_rules → native or a dialect                      → DetectedConnection
                               → TLS → handshake → first bytes → native   → DetectedConnection

``detect_rules`` looks at the first bytes in the session's own buffer, so that a native connection costs no more. Within TLS
there is only the native protocol. A connection that is not recognised in time is closed.

Spec: BP1-HEL-014, BP1-TLS-001, BP1-DIA.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from ..connection.endpoint import Endpoint
from ..connection.tls import answer_tls
from ..dialects import FIRST_LENGTH_MAX, Dialect
from ..errors import ConnectionLost
from ..protocol.session import Session
from .detect_rules import Detection, detect_from_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DetectedConnection:
    """A connection and its protocol.

    Attributes:
        endpoint: the connection, or the plain-text side of its TLS.
        session: a fresh session; its receive buffer holds what has come.
        received: how many bytes those are, at least one.
        spoken: a dialect, or a ``Detection`` for the native session, which also refuses what is no known protocol.
        secured: whether it is TLS.
    """

    endpoint: Endpoint
    session: Session
    received: int
    spoken: Detection | Dialect
    secured: bool

    @property
    def first(self) -> bytes:
        """The bytes that have come."""
        return bytes(self.session.receive_buffer()[: self.received])


async def detect(
    endpoint: Endpoint,
    new_session: Callable[[], Session],
    dialects: Sequence[Dialect],
    tls: ssl.SSLContext | None,
    until: float,
) -> DetectedConnection | None:
    """Find out the protocol; None if that fails: then the connection is closed.

    Args:
        endpoint: the connection; owned from now on, and given back in the result.
        new_session: makes a session for the native protocol.
        dialects: the enabled ones.
        tls: certificate and key; None: TLS is not answered.
        until: the Trio time by which the protocol has to be known.

    Cancellation: the connection is closed.
    """
    detected: DetectedConnection | None = None
    try:
        heard = await _recognise(endpoint, new_session, dialects, until, secured=False)
        if heard is not None and heard.spoken is Detection.TLS and tls is not None:
            endpoint = await answer_tls(endpoint, heard.first, tls, until)
            heard = await _recognise(endpoint, new_session, (), until, secured=True)
        detected = heard
    except ConnectionLost as exc:
        log.info("%s", exc, extra={"event": "connection lost"})
    finally:
        if detected is None:
            with trio.CancelScope(shield=True):
                await endpoint.aclose()
    return detected


async def _recognise(
    endpoint: Endpoint,
    new_session: Callable[[], Session],
    dialects: Sequence[Dialect],
    until: float,
    *,
    secured: bool,
) -> DetectedConnection | None:
    session = new_session()
    view = session.receive_buffer()
    received = 0
    while True:
        count = await endpoint.receive_into(view[received:], lambda: until)
        if not count:
            return None
        received += count
        spoken = detect_from_bytes(bytes(view[: min(received, FIRST_LENGTH_MAX)]), dialects)
        if spoken is not Detection.MORE:
            return DetectedConnection(endpoint, session, received, spoken, secured)

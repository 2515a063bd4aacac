"""DialectConnection: one connection that speaks a dialect.

The dialect reads through ``receive_into``, which first gives the bytes that were read to detect it. The server ends the
connection with ``close``: the dialect's ``serve`` is cancelled, which records what was received. The peer is not told,
because no dialect has a message for that; it comes back and asks where to go on.

Spec: BP1-DIA.
"""

from __future__ import annotations

import logging

import trio

from ..common.names import show_name
from ..common.tasks import only_error
from ..connection.endpoint import Endpoint, Part
from ..connection.unexpected_errors import is_expected, unexpected, wants_memory
from ..errors import BlockprotoError, Cancelled, Code, ConnectionLost
from ..transfer.file_service import FileWriter
from .dialect import Dialect

SILENCE_S = 600.0
"""How long a peer may be silent within a file (BP1-DIA)."""
DRAIN_S = 5.0
"""How long to read and drop what comes after the file before closing the connection (BP1-DIA)."""
_DRAIN_LENGTH = 64 * 1024

log = logging.getLogger(__name__)


class DialectConnection:
    """One connection that speaks a dialect.

    Args:
        dialect: answers it.
        endpoint: the byte stream; owned from now on.
        first: the bytes that have come already.
        writer: what it may do; or why it may not upload, which the dialect tells the peer.

    Attributes:
        begun_at: the Trio time when the connection was established.
        heard_s: the Trio time when a byte last came.
        refusal: why it may not upload, or None.
        finished: set when it has ended.
    """

    def __init__(
        self,
        dialect: Dialect,
        endpoint: Endpoint,
        first: bytes,
        writer: FileWriter | BlockprotoError,
        begun_at: float,
    ) -> None:
        self.endpoint = endpoint
        self.begun_at = begun_at
        self.heard_s = trio.current_time()
        self.refusal = writer if isinstance(writer, BlockprotoError) else None
        self.finished = trio.Event()
        self._writer = writer
        self._dialect = dialect
        self._first = memoryview(first)
        self._scope = trio.CancelScope()
        self._lost: BlockprotoError | None = None

    # ---- for the server ---------------------------------------------------------------------------------------

    async def run(self) -> BlockprotoError:
        """Serve until the connection ends; returns why it ended.

        Cancellation: what was received is recorded, and the connection is closed.
        """
        try:
            with self._scope:
                await self._dialect.serve(self)
        except Exception as exc:
            if wants_memory(exc):
                raise
            error = only_error(exc)
            if error is None or not is_expected(error):
                error = unexpected(f"the connection to {self.endpoint.peer}", exc)
            self._lost = self._lost or error
        finally:
            with trio.CancelScope(shield=True):
                await self.endpoint.aclose()
            self.finished.set()
        if self._lost is not None:  # the peer has heard little of it or nothing
            why = show_name(str(self._lost))
            self.tell(logging.INFO, "connection ended", f"{self._dialect.name} ended: {why}", why=why)
        return self._lost or ConnectionLost(f"{self.endpoint.peer} has ended")

    def tell(self, level: int, event: str, text: str, /, **facts: object) -> None:
        """Log a sentence about this connection; ``event`` and ``facts`` are for programs."""
        extra = {"event": event, "facts": {"dialect": self._dialect.name, **facts}}
        log.log(level, "%s: %s", self.endpoint.peer, text, extra=extra, stacklevel=2)

    def close(self, reason: BlockprotoError | None = None) -> None:
        """End the connection now. Harmless when repeated."""
        self._lost = self._lost or reason or Cancelled("the connection was closed here")
        self._scope.cancel()

    def end_with(self, error: BlockprotoError) -> None:
        """End the connection now; no dialect can tell the peer why."""
        self.close(error)

    def say_goodbye(self, code: Code, *, grace_ms: int, retry_after_ms: int) -> None:
        """Do nothing: no dialect can be told that the server stops. An upload that does not end in time is resumed later."""

    @property
    def writer(self) -> FileWriter:
        """What it may do. Raises ``refusal``, if there is one."""
        if isinstance(self._writer, BlockprotoError):
            raise self._writer
        return self._writer

    # ---- for the dialect --------------------------------------------------------------------------------------

    async def receive_into(self, view: memoryview, silence_s: float = SILENCE_S) -> int:
        """Fill ``view`` with at least one byte; returns how many, 0 at the peer's end of stream.

        Raises:
            ConnectionLost: the connection broke, or nothing came for ``silence_s``.
        """
        if self._first:
            length = min(len(self._first), len(view))
            view[:length] = self._first[:length]
            self._first = self._first[length:]
            return length
        received = await self.endpoint.receive_into(view, lambda: trio.current_time() + silence_s)
        if received is None:
            raise ConnectionLost(f"nothing was heard from {self.endpoint.peer} for {silence_s:.0f} s")
        self.heard_s = trio.current_time()
        return received

    async def send(self, parts: list[Part]) -> None:
        """Send all of ``parts``; see ``Endpoint.send``."""
        await self.endpoint.send(parts)

    async def say_last(self, words: bytes) -> None:
        """Send ``words``, half-close, and drop what still comes, so that the words arrive."""
        await self.endpoint.send([words])
        await self.endpoint.end_sending()
        await self.drain()

    async def drain(self) -> int:
        """Read and drop until the peer's end of stream, for ``DRAIN_S`` at most; returns how many bytes there were."""
        dropped = len(self._first)
        self._first = self._first[:0]
        view = memoryview(bytearray(_DRAIN_LENGTH))
        deadline = trio.current_time() + DRAIN_S
        while received := await self.endpoint.receive_into(view, lambda: deadline):
            dropped += received
            if trio.current_time() >= deadline:
                break
        return dropped

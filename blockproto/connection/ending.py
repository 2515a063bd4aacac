"""The greeting and the end of one connection: its first and last words, and telling every handler that it is over.

Rules:
    1. ERROR(connection) is the last frame sent; what comes after it is dropped.
    2. A connection that has not greeted yet does so before its last words, so that the peer can read them.

Spec: BP1-END, BP1-HEL.
"""

from __future__ import annotations

import contextlib
import logging

import trio

from ..errors import BlockprotoError, Cancelled, Code, ConnectionLost, GoingAway, NotBlockproto
from ..protocol.session import Session, Side, connection_error
from ..wire import GoAway
from .dispatch import Dispatch
from .endpoint import Endpoint
from .writer import Writer

DISCARD_S = 5.0
"""How long to go on reading after ERROR(connection) was sent, before closing (BP1-END)."""
NOT_BLOCKPROTO_TEXT = b"This port speaks blockproto/1 and what came does not begin like it. Goodbye.\r\n"
"""The answer to a peer that speaks another protocol (BP1-FRM)."""
_DROPPED = memoryview(bytearray(64 * 1024))
"""Shared buffer for bytes that are dropped: thousands of connections may be ending at once."""

log = logging.getLogger(__name__)


class Ending:
    """The part of a ``Connection`` that greets and ends it.

    Args:
        endpoint, session: as for ``Connection``.

    Attributes:
        going_away: the peer's GOAWAY, or None.
        lost: why the connection has ended or is about to end; None while it is alive.
    """

    __slots__ = (
        "_closed",
        "_dispatch",
        "_ended",
        "_finished",
        "_greeted",
        "_greeting_said",
        "_last_said",
        "_nursery",
        "_parting",
        "_writer",
        "endpoint",
        "going_away",
        "lost",
        "session",
    )

    _dispatch: Dispatch
    _writer: Writer

    def __init__(self, endpoint: Endpoint, session: Session) -> None:
        self.endpoint = endpoint
        self.session = session
        self.going_away: GoAway | None = None
        self.lost: BlockprotoError | None = None
        self._greeted: trio.Event | None = None
        self._finished: trio.Event | None = None
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._ended = False
        self._greeting_said = False
        self._last_said = False
        self._parting: BlockprotoError | None = None

    # Made when asked for, and not kept once they have happened: in ten thousand connections these two events take 5 MB.

    @property
    def greeted(self) -> trio.Event:
        """Set when the peer's HELLO has come, or the connection has ended."""
        if self._ended or self.session.peer_hello is not None:
            return _happened()
        if self._greeted is None:
            self._greeted = trio.Event()
        return self._greeted

    @property
    def finished(self) -> trio.Event:
        """Set when the connection has ended."""
        if self._ended:
            return _happened()
        if self._finished is None:
            self._finished = trio.Event()
        return self._finished

    def _greet(self) -> None:
        """Say preface and HELLO, once: a client at once, a server as soon as the client's preface came (BP1-HEL)."""
        if not self._greeting_said and (self.session.side is Side.CLIENT or self.session.recognised):
            self._greeting_said = True
            self._writer.queue(self.session.greeting())

    def _closed_here(self) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self.endpoint.peer} was closed here")

    def close(self, reason: BlockprotoError | None = None) -> None:
        """End the connection now; every handler hears ``reason``. Harmless when repeated."""
        self._closed = True
        self._lose(reason or Cancelled("the connection was closed here"))
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def end_with(self, error: BlockprotoError) -> None:
        """Send ERROR(connection) for ``error`` as the last frame, drop what comes, and end when the peer closes."""
        if self.lost is None and self._nursery is not None:
            self._nursery.start_soon(self._end_with, error)

    async def _end_with(self, error: BlockprotoError) -> None:
        with trio.move_on_after(DISCARD_S), contextlib.suppress(ConnectionLost):
            async with self._writer.control_turn():
                self._parting = error
                self._writer.part_with(error)
                if not self._last_said:
                    await self._writer.write(self._last_words(error))
            await trio.sleep_forever()  # until the reader, which goes on, finds that the peer has closed
        self.close(error)

    @property
    def quiet(self) -> bool:
        """Whether there is no transfer and no unsent control frame."""
        return self._dispatch.idle and self._writer.quiet

    def _leave_if_quiet(self) -> None:
        """Close if the peer is stopping and nothing is under way: it need not wait."""
        if self.going_away is not None and self.quiet:
            self.close(GoingAway(retry_after_ms=self.going_away.retry_after_ms))

    def say_goodbye(self, code: Code, *, grace_ms: int, retry_after_ms: int) -> None:
        """Tell the peer with GOAWAY that this side is stopping."""
        with contextlib.suppress(BlockprotoError):
            self._writer.post(
                0, GoAway(code=code, grace_ms=grace_ms, retry_after_ms=retry_after_ms, text="stopping")
            )

    def takes_nothing(self, reason: ConnectionLost) -> None:
        """See writer.Owner. A client closes at once to come back; a server first keeps what has come (BP1-RES)."""
        if self.session.side is Side.CLIENT or self.lost is not None:
            self.close(reason)
            return
        if self._nursery is not None:
            scope = self._nursery.cancel_scope
            scope.deadline = min(scope.deadline, trio.current_time() + DISCARD_S)
        self._writer.end(reason)

    async def _refuse(self, error: BlockprotoError) -> None:
        """Send ERROR(connection) as the last frame, read on for a moment so that it arrives, then end."""
        facts = {"code": error.code.name, "why": str(error)}
        extra = {"event": "ending the connection", "facts": facts}
        log.info("ending the connection to %s: %s", self.endpoint.peer, error, extra=extra)
        with trio.move_on_after(DISCARD_S):
            async with self._writer.control_turn():
                try:
                    words = [] if self._last_said else self._last_words(error)
                    if words:
                        await self._writer.write(words)
                    if words or not isinstance(error, NotBlockproto):
                        await self._discard()
                except ConnectionLost:
                    pass  # the peer is gone
                finally:
                    # before the turn is given back: the task that gets it next has to see that the connection is lost
                    self._lose(error)
        self._lose(error)

    def _last_words(self, error: BlockprotoError) -> list[bytes]:
        self._last_said = True
        if isinstance(error, NotBlockproto):
            words = [] if self.session.side is Side.CLIENT else [NOT_BLOCKPROTO_TEXT]
        else:
            self._greet()
            words = self._writer.take_control_frames()
            words += [self.session.send(0, connection_error(error))] if self._greeting_said else []
        self._writer.mute = True
        return words

    async def _discard(self) -> None:
        with contextlib.suppress(ConnectionLost):
            while await self.endpoint.receive_into(_DROPPED):
                pass

    def _lose(self, reason: BlockprotoError) -> None:
        # Without its traceback: that holds the frame of the reader, which holds the connection with all its buffers.
        self.lost = self.lost or reason.with_traceback(None)
        self._writer.end(self.lost)

    def _end(self, error: BlockprotoError) -> None:
        self.lost = (self._parting or self.lost or error).with_traceback(None)
        self._writer.end(self.lost)
        self._dispatch.end(self.lost)
        self._ended = True
        for event in (self._greeted, self._finished):
            if event is not None:
                event.set()


def _happened() -> trio.Event:
    event = trio.Event()
    event.set()
    return event

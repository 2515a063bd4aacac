"""One byte stream driven by one Session: reading, streams and their handlers, and keep-alive; see ``Ending`` for its end.

Reading is one loop: fill the session's buffer, hand each event to its stream (``Dispatch``), return credit. The loop never
waits for a write: two peers that both did would wait for each other for ever. The ``Writer`` sends; ``Liveness`` knows what
is due.

Rules:
    1. A frame reaches the wire whole or the connection ends: a send that fails or is cancelled ends it.
    2. When the connection ends, every handler hears ``ended`` exactly once.
    3. An idle connection is one waiting task without a receive buffer.

Spec: BP1-END, BP1-STR, BP1-CRD.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import trio

from ..common.blocks import Run
from ..errors import (
    BlockprotoError,
    Cancelled,
    Code,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    Scope,
    StoreFailed,
)
from ..protocol.session import (
    Event,
    Greeted,
    Payload,
    Received,
    Role,
    Session,
    Side,
    State,
    stream_error,
)
from ..wire import Block, Credit, Error, GoAway, Message, Ping, Priority
from .credit import CreditPolicy
from .dispatch import Dispatch
from .ending import DISCARD_S, NOT_BLOCKPROTO_TEXT, Ending
from .endpoint import Endpoint, Part
from .keepalive import KeepAlive
from .liveness import GREETING_S, HEAD_S, SILENCE_S, Due, Liveness
from .minimum_rate import MinimumRate
from .pace import Pace
from .stream_handler import Opening, StreamHandler, error_of
from .unexpected_errors import is_expected, unexpected, wants_memory
from .writer import CONTROL_LENGTH_MAX, Writer

__all__ = [
    "CONTROL_LENGTH_MAX", "DISCARD_S", "GREETING_S", "HEAD_S", "NOT_BLOCKPROTO_TEXT", "SILENCE_S", "AcceptStream",
    "Connection", "Opening", "StreamHandler", "error_of",
]  # fmt: skip

REST_S = 1.0
"""Give the receive buffer back after this many seconds without a byte."""
_EVENTS_PER_CHECKPOINT = 16
"""Events handled before other tasks run: a buffer may hold many small files or PINGs."""

AcceptStream = Callable[["Connection", int, Message], StreamHandler]
"""Makes the handler of a stream that the peer opened with this message; may raise TransferError to refuse it."""


class Connection(Ending):
    """A conversation with one peer.

    Args:
        endpoint: the byte stream; owned from now on.
        session: a fresh session.
        accept: makes handlers for streams the peer opens; None refuses them.
        keep_alive: how long to be silent before a PING (client), or None (server).
    """

    __slots__ = (
        "_accept",
        "_advanced_s",
        "_advancing",
        "_begun_by_peer",
        "_credit_policy",
        "_handled",
        "_liveness",
        "_minimum_rate",
        "_resting",
        "answered",
        "patient",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        session: Session,
        *,
        accept: AcceptStream | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        super().__init__(endpoint, session)
        self.answered = False
        self._advanced_s = trio.current_time()
        self._advancing = False
        self.patient = 0
        self._accept = accept
        self._handled = 0
        self._dispatch = Dispatch(self)
        self._writer = Writer(endpoint, session, self)
        self._credit_policy = CreditPolicy(session, self._writer)
        self._liveness = Liveness(keep_alive, trio.current_time())
        self._minimum_rate = MinimumRate(session.begun)
        self._begun_by_peer = 0
        self._resting = False
        if session.side is Side.CLIENT:
            self._greet()

    # ---- life -------------------------------------------------------------------------------------------------

    async def run(self, received: int = 0, begun_at: float | None = None) -> BlockprotoError:
        """Greet, then read until the connection ends; returns why it ended.

        Args:
            received: how many bytes the session's receive buffer holds already.
            begun_at: the Trio time when the connection was established; None: now.

        Cancellation: the connection is closed and every handler is told; nothing more is written.
        """
        self._liveness.begin(trio.current_time() if begun_at is None else begun_at)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.lost is not None:  # closed before it began
                    nursery.cancel_scope.cancel()
                self._dispatch.start(nursery)
                self._writer.start(nursery)
                try:
                    await self._read(received)
                    with trio.move_on_after(DISCARD_S):
                        await self._dispatch.caught_up()  # keep what has come, even if the peer is gone
                finally:  # on cancellation too: handlers that stop then must not try to write
                    self._dispatch.stop()
                    self._lose(self._closed_here())
                nursery.cancel_scope.cancel()
        except* MemoryError:
            raise
        except* Exception as group:
            self._lose(unexpected(f"the connection to {self.endpoint.peer}", group))
        finally:
            self._end(self.lost or self._closed_here())
            with trio.CancelScope(shield=True):
                await self.endpoint.aclose()
        assert self.lost is not None
        return self.lost

    @property
    def heard_s(self) -> float:
        """When a byte last came, in Trio's time."""
        return self._liveness.heard_s

    # ---- streams ----------------------------------------------------------------------------------------------

    def open(self, handler: StreamHandler) -> int:
        """Begin a stream of this side; its events go to ``handler``.

        Raises:
            ConnectionLost: the connection has ended.
            GoingAway: the peer is stopping.
            TooManyStreams: more than the peer allows.
        """
        if self.lost is not None:
            raise self.lost
        stream = self.session.open_stream()
        self._dispatch.add(stream, handler)
        self._liveness.busy = True
        self._advanced()
        return stream

    def forget(self, stream: int) -> None:
        """Send no more events of ``stream`` to its handler."""
        self._dispatch.forget(stream)
        self._writer.forget(stream)
        self._liveness.busy = not self._dispatch.idle

    def resume(self, stream: int) -> None:
        """Hand over again what the handler of ``stream`` was not ready for (``NotYet``). Harmless if there is nothing."""
        self._dispatch.resume(stream)

    def _advanced(self) -> None:
        self._advanced_s = trio.current_time()

    @property
    def advanced_s(self) -> float:
        """When a stream last made progress, in Trio's time; now, while an event is being handled."""
        return trio.current_time() if self._advancing else self._advanced_s

    @property
    def awaits_peer(self) -> bool:
        """Whether a stream is open."""
        return not self._dispatch.idle

    @property
    def awaits_commit(self) -> bool:
        """Whether the peer has to answer a COMMIT of ours, or our FILES; not where it said COMMIT to us."""
        waiting, session = {State.COMMITTING, State.FILES, State.FILED}, self.session
        return any(
            session.state(stream) in waiting and session.role(stream) is Role.SENDER
            for stream in self._dispatch.streams
        )

    def commits(self, stream: int) -> bool:
        """Whether the peer said COMMIT on ``stream`` and waits for the answer."""
        return self.session.state(stream) is State.COMMITTING

    # ---- writing ----------------------------------------------------------------------------------------------

    @property
    def pace(self) -> Pace:
        """The estimate of the line's speed."""
        return self._writer.pace

    def post(self, stream: int, message: Message) -> None:
        """Queue a frame without payload; it goes before all payload that is not being written yet.

        Drop it if the stream has ended: the peer may end a stream while its answer is on the way (BP1-STR-015).

        Raises:
            LocalProtocolError: not legal now.
        """
        self._writer.post(stream, message)

    def post_ack(self, stream: int, position: int, runs: list[Run]) -> None:
        """Queue an ACK of ``runs``, merged with a queued one of the same stream."""
        self._writer.post_ack(stream, position, runs)

    async def send(
        self, stream: int, message: Message, payload: Part, priority: Priority = Priority.NORMAL
    ) -> None:
        """Write one frame with ``payload`` when the peer's credit and the other streams allow it.

        The caller may reuse the payload's memory when this returns.

        Raises:
            ConnectionLost: the connection ended.
            Cancelled: the peer ended the stream; its handler was told why.
            LocalProtocolError: not legal now.

        Cancellation: nothing was sent, or, within the frame, the connection ends.
        """
        await self._writer.send(stream, message, payload, priority)
        self._advanced()

    async def granted(self) -> None:
        """Wait until the peer has granted any credit, or the connection ends. Cancellation: no effect."""
        await self._writer.granted()

    def buffers(
        self, stream: int, wanted: Callable[[], int], priority: Priority = Priority.NORMAL, least: int = 0
    ) -> contextlib.AbstractAsyncContextManager[memoryview]:
        """Lend memory for the next piece of ``stream``, once the peer has granted credit for it.

        Args:
            stream: an open stream.
            wanted: returns the length of the piece as it would be now, in bytes.
            priority: as for ``send``.
            least: minimum length of the memory, in bytes.

        Raises: as ``send``, on entering. Cancellation: nothing was sent.
        """
        return self._writer.buffers(stream, wanted, priority, least)

    async def send_openings(self, openings: Sequence[Opening], priority: Priority) -> list[int]:
        """Begin a stream for each of ``openings``, as many as possible in one write; returns their ids.

        Ids are assigned when the turn comes, because they have to rise on the line. Each payload is at most
        ``piece_length`` long. Raises and cancellation: as ``send``; handlers of streams that were not begun hear nothing.
        """
        begun = await self._writer.send_openings(openings, priority)
        self._advanced()
        return begun

    @contextlib.contextmanager
    def sending(self, stream: int) -> Iterator[None]:
        """Count ``stream`` among those that share the line, while inside."""
        with self._writer.sending(stream):
            yield

    @contextlib.contextmanager
    def expecting(self, priority: Priority) -> Iterator[None]:
        """Hold back payload that is less urgent than ``priority``, which is about to be sent, while inside."""
        with self._writer.expecting(priority):
            yield

    def piece_length(self) -> int:
        """The best length of the next piece in bytes, at most a quarter of what the peer allows at once."""
        return self._writer.piece_length()

    def wrote(self) -> None:
        """See writer.Owner."""
        self._liveness.said(trio.current_time())

    def said_all(self) -> None:
        """See writer.Owner."""
        self._writer.wake()
        self._leave_if_quiet()

    # ---- reading ----------------------------------------------------------------------------------------------

    async def _read(self, received: int | None) -> None:
        try:
            if received:
                await self._handle_buffered(received)
            while self.lost is None:
                received = await self.endpoint.receive_into(self.session.receive_buffer(), self._deadline)
                if received is None:
                    self._on_silence(trio.current_time())
                elif received and self._last_said:
                    continue  # dropped: the buffer was lent and is lent again
                elif received:
                    await self._handle_buffered(received)
                else:
                    raise ConnectionLost(f"{self.endpoint.peer} closed the connection")
        except ConnectionLost as exc:
            self._liveness.lost()
            self._lose(exc)
        except (RemoteProtocolError, StoreFailed) as exc:
            await self._refuse(exc)
        except Exception as exc:
            if wants_memory(exc):
                raise
            told = exc if is_expected(exc) else unexpected(f"the connection to {self.endpoint.peer}", exc)
            await self._refuse(told)

    async def _handle_buffered(self, received: int) -> None:
        self._resting = False
        self.session.bytes_received(received)
        while not self._closed and (event := self.session.next_event()) is not None:
            self._liveness.frame_ended()
            await self._handle(event)
            self._handled += 1
            if self._handled % _EVENTS_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
        self._greet()
        # Handling took time on this side: the peer's silence begins now.
        now = trio.current_time()
        self._liveness.heard(now, in_head=self.session.head_begun)
        if self.session.payload_coming and self.session.side is Side.SERVER:
            self._minimum_rate.began(now, self.session.payload_received)
        if self._advancing:
            self._advanced_s, self._advancing = now, False
        self._credit_policy.received(received, now)
        while self._writer.overfull:
            await self._writer.drained()

    async def _handle(self, event: Event) -> None:
        if isinstance(event, Payload):
            self._advancing = True
            await self._dispatch.handle(event)
        elif isinstance(event, Received):
            await self._handle_message(event)
        elif isinstance(event, Greeted):
            self._greet()
            self._liveness.greeted()
            if self._greeted is not None:
                self._greeted.set()
                self._greeted = None
            self._writer.wake()
        else:
            await self._dispatch.handle(event)

    async def _handle_message(self, event: Received) -> None:
        stream, message = event.stream, event.message
        if isinstance(message, Credit):
            if stream == 0:
                self._writer.credited(trio.current_time())
            self._writer.wake()
        elif stream == 0:
            self._handle_own(message)
        else:
            if isinstance(message, Block) and message.digest is None and self.session.side is Side.SERVER:
                self._minimum_rate.began(trio.current_time(), self.session.payload_received)
            self.answered = self._advancing = True
            await self._dispatch.handle(event)

    def _handle_own(self, message: Message) -> None:
        if isinstance(message, Ping):
            if message.answer:
                return
            self._liveness.promised(message.next_s)
            self.post(0, Ping(opaque=message.opaque, next_s=0, answer=True))
        elif isinstance(message, GoAway):
            self.going_away = message
            self._writer.wake()
            self._leave_if_quiet()
        elif isinstance(message, Error):
            raise ConnectionLost(
                f"{self.endpoint.peer} ended the connection: {message.text or message.code}",
                code=Code(message.code) if message.code in Code._value2member_map_ else None,
                retryable=message.retryable,
                retry_after_ms=message.retry_after_ms,
            )

    # ---- streams that the peer uses ---------------------------------------------------------------------------

    def accept(self, stream: int, message: Message) -> StreamHandler | None:
        """See dispatch.Owner. None also for a stream that this side has forgotten before its end: its events are dropped."""
        peers = bool(stream & 1) is (self.session.side is Side.SERVER)
        if not peers or stream <= self._begun_by_peer:
            return None
        self._begun_by_peer = stream
        try:
            if self._accept is None:
                raise Cancelled("this side takes no requests", code=Code.UNSUPPORTED)
            handler = self._accept(self, stream, message)
        except BlockprotoError as exc:
            self.refuse(stream, exc)
            return None
        except Exception as exc:
            if wants_memory(exc):
                raise
            self.broke(stream, exc)
            return None
        self._dispatch.add(stream, handler)
        return handler

    def refuse(self, stream: int, error: BlockprotoError, scope: Scope = Scope.STREAM) -> None:
        """Answer ``stream`` with ERROR; harmless if it is closed. Treat a LocalProtocolError, a bug, as ``broke`` does."""
        if isinstance(error, LocalProtocolError):
            error = self._unexpected_on(stream, error)
        if self.lost is None and self.session.is_open(stream):
            self.post(stream, stream_error(error, scope=scope))
        if scope is Scope.STREAM:
            self.forget(stream)

    def broke(self, stream: int, error: Exception) -> BlockprotoError:
        """Log an unexpected error, refuse ``stream`` with INTERNAL; returns the error for its handler (BP1-ERR-010)."""
        told = self._unexpected_on(stream, error)
        self.refuse(stream, told)
        return told

    def _unexpected_on(self, stream: int, error: Exception) -> BlockprotoError:
        return unexpected(f"stream {stream} of the connection to {self.endpoint.peer}", error)

    def handed_over(self, stream: int) -> None:
        """See dispatch.Owner."""
        if not self.session.is_open(stream):
            self.forget(stream)
            self._writer.wake()
            self._leave_if_quiet()

    def consumed(self, stream: int, count: int) -> None:
        """See dispatch.Owner."""
        self.session.consumed(stream, count)

    def caught_up(self, stream: int) -> None:
        """See dispatch.Owner."""
        self._credit_policy.caught_up(more_waits=self._dispatch.waits(stream))

    # ---- silence, end -----------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        deadline = min(self._liveness.deadline_s(), self._minimum_rate.until_s, self._credit_policy.due_s)
        return deadline if self._resting else min(deadline, self._rests_at)

    @property
    def _rests_at(self) -> float:
        """When to give the receive buffer back, in Trio's time."""
        return self._liveness.heard_s + REST_S if self.session.peer_hello is not None else math.inf

    def _on_silence(self, now: float) -> None:
        if now >= self._credit_policy.due_s:
            self._credit_policy.look(now)
            return
        if not self._resting and now >= self._rests_at:
            self._resting = True
            self.session.idle()
        if self._minimum_rate.too_slow(now, self.session.payload_received):
            raise RemoteProtocolError(
                "a block or FILES was begun and hardly anything of it came", code=Code.TIMEOUT
            )
        due = self._liveness.due(now)
        if due is Due.PING:
            self.post(0, Ping(opaque=bytes(8), next_s=self._liveness.ping_said(now)))
        elif due is Due.HEAD_LATE:
            raise RemoteProtocolError("a frame was begun and not ended", code=Code.TIMEOUT)
        elif due is Due.DEAD:
            silent_s = now - self._liveness.heard_s
            raise ConnectionLost(f"nothing was heard from {self.endpoint.peer} for {silent_s:.0f} s")

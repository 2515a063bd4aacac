"""One byte stream driven by one Session: reading, writing in turn, keep-alive, and the end.

Reading is one loop: fill the session's buffer, hand each event to the sink of its stream, return credit. A sink that takes
its time holds back this connection only, and through TCP its peer. The reading loop never waits for a write: two peers
that both did would wait for each other for ever. So control frames are queued (``post``) and written by whoever has the
turn; payload frames wait for credit and for their turn (``send``).

Rules:
    1. A frame reaches the wire whole or the connection ends: a send that fails or is cancelled ends it.
    2. When the connection ends, every sink hears ``ended`` exactly once.
    3. The queue of control frames is bounded: acknowledgements merge, CREDIT is made when written, and while more than
       ``CONTROL_LENGTH_MAX`` bytes wait, nothing more is read.

Spec: BP1-END, BP1-STR, BP1-CRD.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import trio

from ..blocks import BlockSet, Run
from ..errors import (
    BlockprotoError,
    Cancelled,
    Code,
    ConnectionLost,
    GoingAway,
    NotBlockproto,
    RemoteProtocolError,
    Scope,
    StoreError,
    StoreFailed,
    TransferError,
    error_from_code,
)
from ..protocol.session import (
    Event,
    Greeted,
    Payload,
    Received,
    Rejected,
    Session,
    Side,
    State,
    connection_error,
    stream_error,
)
from ..wire import Ack, Credit, Error, GoAway, Message, Ping, Priority
from .endpoint import Endpoint, Part
from .pace import Pace
from .turns import CONTROL, Turns

GREETING_S = 10.0
"""Preface and HELLO must have come by then (BP1-LIM)."""
HEAD_S = 10.0
"""A head that was begun must have ended by then (BP1-LIM)."""
SILENCE_S = 600.0
"""How long a peer that never said when it will be heard from may be silent."""
DISCARD_S = 5.0
"""How long the speaker of ERROR(connection) goes on reading before it closes (BP1-END)."""
CONTROL_LENGTH_MAX = 1 << 20
"""Bytes of control frames that may wait to be written before reading pauses."""
NOT_BLOCKPROTO_TEXT = b"This port speaks blockproto/1 and what came does not begin like it. Goodbye.\r\n"
"""What somebody who speaks something else is told (BP1-FRM)."""
_CREDIT_EVERY_S = 0.05
_CREDIT_LEAST = 1
_CREDIT_LOOK = 128 * 1024
_ACK_RUNS_MAX = 128

log = logging.getLogger(__name__)


class Sink(Protocol):
    """What takes the events of one stream.

    ``received`` and ``payload`` may raise TransferError or StoreError: the peer gets ERROR(stream), the sink ``ended``.
    StoreFailed ends more than a stream and passes through.
    """

    async def received(self, message: Message, payload_length: int) -> None:
        """A message of the peer; its payload, if any, follows in ``payload`` calls."""

    async def payload(self, position: int, view: memoryview, last: bool) -> None:
        """Bytes at ``position`` of the file; ``view`` is valid until this returns; ``last``: the frame ends here."""

    def ended(self, error: BlockprotoError) -> None:
        """The stream cannot go on, for this reason."""


class Opening(NamedTuple):
    """A stream to begin: its sink, its first message and that message's payload."""

    sink: Sink
    message: Message
    payload: Part


Acceptor = Callable[["Connection", int, Message], Sink]
"""Makes the sink of a stream that the peer opened with this message; may raise TransferError to refuse it."""


class Connection:
    """A conversation with one peer.

    Args:
        endpoint: the byte stream; owned from now on.
        session: a fresh session.
        accept: makes sinks for streams the peer opens; None refuses them.
        ping_every_s: how long to be silent before a PING (a client), or None (a server).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        session: Session,
        *,
        accept: Acceptor | None = None,
        ping_every_s: float | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.session = session
        self.pace = Pace()
        self.going_away: GoAway | None = None
        self.lost: BlockprotoError | None = None
        self.greeted = trio.Event()
        self.finished = trio.Event()
        self._accept = accept
        self._ping_every_s = ping_every_s
        self._sinks: dict[int, Sink] = {}
        self._turns = Turns()
        self._control: list[bytes] = []
        self._control_length = 0
        self._acks: dict[int, tuple[int, BlockSet]] = {}
        self._pumping = False
        self._news = trio.lowlevel.ParkingLot()
        self._sending: set[int] = set()
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._greeting_said = False
        self._last_said = False
        self._unheard: ConnectionLost | None = None
        self._parting: BlockprotoError | None = None
        self._begun_at = 0.0
        self._heard_at = 0.0
        self._head_begun_at: float | None = None
        self._silence_s = 2 * ping_every_s if ping_every_s else SILENCE_S
        self._pinged = False
        self._credited_at = -_CREDIT_EVERY_S
        self._uncredited = 0
        self._credit_waits = False
        if session.side is Side.CLIENT:
            self._greet()

    # ---- life -------------------------------------------------------------------------------------------------

    async def run(self, received: int = 0, begun_at: float | None = None) -> BlockprotoError:
        """Greet, then read until the connection ends; returns why it ended.

        Args:
            received: how many bytes the session's receive buffer was filled with already.
            begun_at: the Trio time when the connection stood; None for now.

        Cancellation: the connection is closed and every sink is told; nothing more is written.
        """
        self._heard_at = trio.current_time()
        self._begun_at = self._heard_at if begun_at is None else begun_at
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._pump_soon()
                    await self._read(received)
                    nursery.cancel_scope.cancel()
        finally:
            self._end(self.lost or ConnectionLost(f"the connection to {self.endpoint.peer} was closed here"))
            with trio.CancelScope(shield=True):
                await self.endpoint.aclose()
        assert self.lost is not None
        return self.lost

    def close(self, reason: BlockprotoError | None = None) -> None:
        """End the connection now; every sink hears ``reason``. Harmless when repeated."""
        self.lost = self.lost or reason or Cancelled("the connection was closed here")
        self._scope.cancel()

    def end_with(self, error: BlockprotoError) -> None:
        """Say ERROR(connection) for ``error`` as the last frame, drop what still comes, and end when the peer does."""
        if self.lost is None and self._nursery is not None:
            self._nursery.start_soon(self._end_with, error)

    async def _end_with(self, error: BlockprotoError) -> None:
        with trio.move_on_after(DISCARD_S), contextlib.suppress(ConnectionLost):
            await self._turns.take(CONTROL)
            self._parting = error
            try:
                if not self._last_said:
                    await self._write(self._last_words(error))
            finally:
                self._turns.give(CONTROL, 0)
            await trio.sleep_forever()  # the reader goes on until the peer has closed, and ends this
        self.close(error)

    def say_goodbye(self, code: Code, *, grace_ms: int, retry_after_ms: int) -> None:
        """Tell the peer that this side is stopping (BP1-END GOAWAY)."""
        with contextlib.suppress(BlockprotoError):
            self.post(0, GoAway(code=code, grace_ms=grace_ms, retry_after_ms=retry_after_ms, text="stopping"))

    # ---- streams ----------------------------------------------------------------------------------------------

    def open(self, sink: Sink) -> int:
        """Begin a stream of our own; its events go to ``sink``.

        Raises:
            ConnectionLost: the connection has ended.
            GoingAway: the peer is stopping.
            TooManyStreams: more than the peer allows.
        """
        if self.lost is not None:
            raise self.lost
        stream = self.session.open_stream()
        self._sinks[stream] = sink
        return stream

    def forget(self, stream: int) -> None:
        """Send no more events of ``stream`` to its sink."""
        self._sinks.pop(stream, None)
        self._acks.pop(stream, None)

    def commits(self, stream: int) -> bool:
        """Whether the peer said COMMIT on ``stream`` and waits for the answer."""
        return self.session.state(stream) is State.COMMITTING

    @property
    def quiet(self) -> bool:
        """Whether no transfer and no unsent control frame is left."""
        return not self._sinks and not self._control and not self._acks and not self._turns.held

    # ---- writing ----------------------------------------------------------------------------------------------

    def post(self, stream: int, message: Message) -> None:
        """Queue a frame without payload; it is written soon, before any payload that is not being written yet.

        Raises:
            LocalProtocolError: not legal now.
        """
        if not self._mute:
            self._queue(self.session.send(stream, message))

    def post_ack(self, stream: int, position: int, runs: list[Run]) -> None:
        """Queue an ACK of ``runs``; it merges with one of the same stream that still waits."""
        if self._mute or not self.session.is_open(stream):
            return
        before = self._acks.get(stream)
        held = before[1] if before else BlockSet()
        for first, count in runs:
            held.add(first, count)
        self._acks[stream] = (position, held)
        self._pump_soon()

    async def send(
        self, stream: int, message: Message, payload: Part, priority: Priority = Priority.NORMAL
    ) -> None:
        """Write one frame with ``payload`` when the peer's credit and the other streams allow it.

        The caller may reuse the payload's memory when this returns.

        Raises:
            ConnectionLost: the connection ended.
            Cancelled: the peer ended the stream; its sink was told why.
            LocalProtocolError: not legal now.

        Cancellation: while waiting, nothing was sent; in the middle of the frame, the connection ends.
        """
        length = len(payload)
        await self._take_turn(stream, length, priority)
        try:
            frame = self.session.send(stream, message, length)
            self.pace.sent(self.session.sent(0), trio.current_time())
            await self._write([*self._control_frames(), frame, payload])
        finally:
            self._turns.give(priority, length)

    async def send_openings(self, openings: Sequence[Opening], priority: Priority) -> list[int]:
        """Begin a stream for each of ``openings``, with as many as possible in one write; returns their ids.

        The ids are taken when the turn has come, because ids rise on the line. Each payload is at most ``piece_length``.
        Raises and cancellation as for ``send``; an opening whose stream was not begun has not heard ``ended``.
        """
        streams: list[int] = []
        while len(streams) < len(openings):
            length = len(openings[len(streams)].payload)
            await self._take_turn(0, length, priority)
            try:
                begun, frames = self._open_all(openings[len(streams) :])
                streams += begun
                length = sum(map(len, frames))
                self.pace.sent(self.session.sent(0), trio.current_time())
                await self._write([b"".join([*self._control_frames(), *frames])])
            finally:
                self._turns.give(priority, length)
        return streams

    def _open_all(self, openings: Sequence[Opening]) -> tuple[list[int], list[Part]]:
        """Open what there is room for, the first in any case; returns the ids and what to write."""
        streams: list[int] = []
        frames: list[Part] = []
        for sink, message, payload in openings:
            if streams and not self._has_room(0, len(payload)):
                break
            stream = self.open(sink)
            frames += (self.session.send(stream, message, len(payload)), payload)
            streams.append(stream)
        return streams, frames

    @contextlib.contextmanager
    def sending(self, stream: int) -> Iterator[None]:
        """While inside, ``stream`` is one of those that share the line."""
        self._sending.add(stream)
        self.endpoint.limit_unsent(len(self._sending) > 1)
        try:
            yield
        finally:
            self._sending.discard(stream)
            self.endpoint.limit_unsent(len(self._sending) > 1)

    def piece_length(self) -> int:
        """How many bytes the next piece should have; never more than a quarter of what the peer allows at once."""
        hello = self.session.peer_hello
        longest = self.session.piece_length_max
        if hello is not None:
            longest = min(longest, hello.stream_allowance // 4, hello.connection_allowance // 4)
        return self.pace.piece_length(longest)

    async def _take_turn(self, stream: int, length: int, priority: Priority) -> None:
        while True:
            await self._turns.take(priority, lambda: self._has_room(stream, length))
            gone = self.lost or self._unheard or self._parting
            if gone is not None:
                self._turns.give(priority, 0)
                raise gone
            if stream and not self.session.is_open(stream):
                self._turns.give(priority, 0)
                raise Cancelled("the peer ended the stream")
            if self._has_room(stream, length):
                return
            self._turns.give(priority, 0)

    def _has_room(self, stream: int, length: int) -> bool:
        """Whether ``length`` bytes may go now on ``stream`` (0: on one that is yet to be opened)."""
        if self._mute or (stream and not self.session.is_open(stream)):
            return True
        if stream == 0 and not self.session.may_open:
            return False
        if self.session.sendable(stream) < length:
            return False
        if len(self._sending) < 2:
            return True
        under_way = self.session.sent(0) - self.session.received_by_peer(0)
        return under_way == 0 or under_way + length <= self.pace.under_way_max(length)

    def _queue(self, frame: bytes) -> None:
        if self._unheard is not None:
            return
        self._control.append(frame)
        self._control_length += len(frame)
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pumping and self._nursery is not None:
            self._pumping = True
            self._nursery.start_soon(self._pump)

    async def _pump(self) -> None:
        try:
            while self._control or self._acks:
                await self._turns.take(CONTROL)
                try:
                    await self._write([b"".join(self._control_frames())])
                finally:
                    self._turns.give(CONTROL, 0)
        except ConnectionLost:
            log.debug("%s takes nothing more", self.endpoint.peer)
        finally:
            self._pumping = False
            self._tell()
            self._leave_if_quiet()

    def _tell(self) -> None:
        """Something changed that somebody may wait for."""
        self._news.unpark_all()
        self._turns.wake()

    def _control_frames(self) -> list[bytes]:
        frames, self._control, self._control_length = self._control, [], 0
        acks, self._acks = self._acks, {}
        for stream, (position, held) in acks.items():
            runs = held.runs() if self.session.is_open(stream) else []
            for at in range(0, len(runs), _ACK_RUNS_MAX):
                page = tuple(runs[at : at + _ACK_RUNS_MAX])
                frames.append(self.session.send(stream, Ack(position=position, held=page)))
        return frames

    async def _write(self, parts: list[Part] | list[bytes]) -> None:
        try:
            await self.endpoint.send(parts)
        except ConnectionLost as exc:
            self._hear_out(exc)
            raise
        except BaseException:
            self.close(ConnectionLost("a send was cancelled half-way"))
            raise

    def _hear_out(self, reason: ConnectionLost) -> None:
        """The peer takes nothing more. A client comes back at once; a server first keeps what it was sent (BP1-RES)."""
        if self.session.side is Side.CLIENT or self.lost is not None:
            self.close(reason)
            return
        self._unheard = self._unheard or reason
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + DISCARD_S)
        self._tell()

    @property
    def _mute(self) -> bool:
        """Whether nothing more is said here."""
        return self.lost is not None or self._last_said or self._unheard is not None

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
            self.lost = self.lost or exc
        except (RemoteProtocolError, StoreFailed) as exc:
            await self._refuse(exc)

    async def _handle_buffered(self, received: int) -> None:
        self.session.bytes_received(received)
        self._pinged = False
        while (event := self.session.next_event()) is not None:
            self._head_begun_at = None
            await self._handle(event)
        self._greet()
        # The time that handling took is ours: the peer's silence begins now.
        self._heard_at = trio.current_time()
        if not self.session.head_begun:
            self._head_begun_at = None
        elif self._head_begun_at is None:
            self._head_begun_at = self._heard_at
        self._uncredited += received
        self._return_credit(self._heard_at)
        while self._control_length > CONTROL_LENGTH_MAX and self.lost is None:
            await self._news.park()

    async def _handle(self, event: Event) -> None:
        if isinstance(event, Payload):
            sink = self._sinks.get(event.stream)
            if sink is not None:
                try:
                    await sink.payload(event.position, event.view, event.last)
                except (TransferError, StoreError) as exc:
                    self._reject(event.stream, exc)
            self.session.consumed(event.stream, len(event.view))
        elif isinstance(event, Received):
            await self._handle_message(event.stream, event.message, event.payload_length)
        elif isinstance(event, Rejected):
            self._reject(event.stream, event.error)
        elif isinstance(event, Greeted):
            self._greet()
            self.greeted.set()
            self._tell()

    def _greet(self) -> None:
        """Say preface and HELLO, once: a client at once, a server as soon as the client's preface came (BP1-HEL)."""
        if not self._greeting_said and (self.session.side is Side.CLIENT or self.session.recognised):
            self._greeting_said = True
            self._queue(self.session.greeting())

    async def _handle_message(self, stream: int, message: Message, payload_length: int) -> None:
        if isinstance(message, Credit):
            self._on_credit(stream)
        elif stream == 0:
            self._handle_own(message)
        else:
            sink = self._sinks.get(stream) or self._accept_stream(stream, message)
            if sink is not None:
                try:
                    await sink.received(message, payload_length)
                except (TransferError, StoreError) as exc:
                    self._reject(stream, exc)
            if not self.session.is_open(stream):
                self.forget(stream)
                self._tell()
                self._leave_if_quiet()

    def _handle_own(self, message: Message) -> None:
        if isinstance(message, Ping):
            if message.answer:
                return
            self._silence_s = max(1.0, 2.0 * message.next_s) if message.next_s else SILENCE_S
            self.post(0, Ping(opaque=message.opaque, next_s=0, answer=True))
        elif isinstance(message, GoAway):
            self.going_away = message
            self._tell()
            self._leave_if_quiet()
        elif isinstance(message, Error):
            raise ConnectionLost(
                f"{self.endpoint.peer} ended the connection: {message.text or message.code}",
                code=Code(message.code) if message.code in Code._value2member_map_ else None,
                retryable=message.retryable,
                retry_after_ms=message.retry_after_ms,
            )

    def _leave_if_quiet(self) -> None:
        """The peer is stopping and nothing is under way any more: it need not wait for us."""
        if self.going_away is not None and self.quiet:
            self.close(GoingAway(retry_after_ms=self.going_away.retry_after_ms))

    def _accept_stream(self, stream: int, message: Message) -> Sink | None:
        try:
            if self._accept is None:
                raise Cancelled("this side takes no requests", code=Code.UNSUPPORTED)
            sink = self._accept(self, stream, message)
        except BlockprotoError as exc:
            self.refuse(stream, exc)
            return None
        self._sinks[stream] = sink
        return sink

    def refuse(self, stream: int, error: BlockprotoError, scope: Scope = Scope.STREAM) -> None:
        """Answer ``stream`` with ERROR; harmless if it is closed."""
        if self.lost is None and self.session.is_open(stream):
            self.post(stream, stream_error(error, scope=scope))
        if scope is Scope.STREAM:
            self.forget(stream)

    def _reject(self, stream: int, error: BlockprotoError) -> None:
        if isinstance(error, StoreFailed):
            raise error
        sink = self._sinks.get(stream)
        self.refuse(stream, error)
        if sink is not None:
            sink.ended(error)

    # ---- credit, silence, end ---------------------------------------------------------------------------------

    def _on_credit(self, stream: int) -> None:
        if stream == 0:
            received = self.session.received_by_peer(0)
            self.pace.received(received, trio.current_time(), self.session.sent(0) - received)
        self._tell()

    def _return_credit(self, now: float) -> None:
        """Grant what is due: at once when it is much, a little later when it is little.

        The little must be granted too: a peer whose streams share the line sends no more until it hears what has come.
        """
        soon = now >= self._credited_at + _CREDIT_EVERY_S
        self._credit_waits = not soon
        if not soon and self._uncredited < _CREDIT_LOOK:
            return
        self._uncredited = 0
        limits = self.session.limits
        much = min(limits.stream_allowance, limits.connection_allowance) // 4
        frames = self.session.credits_due(_CREDIT_LEAST if soon else much)
        if frames:
            self._credited_at = now
            for frame in frames:
                self._queue(frame)

    def _deadline(self) -> float:
        deadline = self._heard_at + self._silence_s
        if self._credit_waits:
            deadline = min(deadline, self._credited_at + _CREDIT_EVERY_S)
        if not self.greeted.is_set():
            deadline = min(deadline, self._begun_at + GREETING_S)
        if self._head_begun_at is not None:
            deadline = min(deadline, self._head_begun_at + HEAD_S)
        if self._ping_every_s is not None and not self._pinged:
            deadline = min(deadline, self._heard_at + self._ping_every_s)
        return deadline

    def _on_silence(self, now: float) -> None:
        late = self._head_begun_at is not None and now >= self._head_begun_at + HEAD_S
        if late and self.greeted.is_set():
            raise RemoteProtocolError("a frame was begun and not ended", code=Code.TIMEOUT)
        if self._credit_waits and now >= self._credited_at + _CREDIT_EVERY_S:
            self._return_credit(now)
            return
        every_s = self._ping_every_s
        if (
            every_s is not None
            and not self._pinged
            and self.greeted.is_set()
            and now >= self._heard_at + every_s
        ):
            self._pinged = True
            self.post(0, Ping(opaque=bytes(8), next_s=round(every_s)))
            return
        if now >= self._deadline():
            raise ConnectionLost(
                f"nothing was heard from {self.endpoint.peer} for {now - self._heard_at:.0f} s"
            )

    async def _refuse(self, error: BlockprotoError) -> None:
        """Say ERROR(connection) as the last frame, read on for a little so that it arrives, then end."""
        log.info("ending the connection to %s: %s", self.endpoint.peer, error)
        with trio.move_on_after(DISCARD_S):
            await self._turns.take(CONTROL)
            try:
                if not self._last_said:
                    await self._write(self._last_words(error))
                await self._discard()
            except ConnectionLost:
                pass  # the peer is gone: nobody is left to be told
            finally:
                self.lost = error  # before the turn goes on: who waits for it must see that it is of no use
                self._turns.give(CONTROL, 0)
        self.lost = error

    def _last_words(self, error: BlockprotoError) -> list[bytes]:
        self._last_said = True
        if isinstance(error, NotBlockproto):
            return [] if self.session.side is Side.CLIENT else [NOT_BLOCKPROTO_TEXT]
        self._greet()
        if not self._greeting_said:
            return []
        return [*self._control_frames(), self.session.send(0, connection_error(error))]

    async def _discard(self) -> None:
        view = memoryview(bytearray(64 * 1024))
        with contextlib.suppress(ConnectionLost):
            while await self.endpoint.receive_into(view):
                pass

    def _end(self, error: BlockprotoError) -> None:
        self.lost = self._parting or self.lost or error
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.ended(self.lost)
        self._tell()
        self.greeted.set()
        self.finished.set()


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

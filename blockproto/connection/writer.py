"""The writing side of a connection: control frames first, then payload as credit, pace and turns allow.

Control frames are queued (``post``) and written by the task that has the turn, or by one that lives while there are any;
payload waits in its own task (``send``). So an idle connection holds nothing here but empty collections.

Rules:
    1. A frame reaches the wire whole or the connection ends: a send that fails or is cancelled tells the owner.
    2. The queue of control frames is bounded: ACKs of a stream merge, CREDIT is made when it is written, and the reader
       waits in ``drained`` while more than ``CONTROL_LENGTH_MAX`` bytes are queued.
    3. While several streams share the line, or it is slow or not known yet, a piece is begun only if the pace allows more
       under way, and little may lie unsent in the kernel: what was handed over cannot be overtaken (BP1-STR-017).

Spec: BP1-STR-012 to 014, BP1-STR-016, BP1-STR-017.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Protocol

import trio

from ..common.blocks import BlockSet, Run
from ..errors import BlockprotoError, Cancelled, ConnectionLost
from ..protocol.session import Session
from ..wire import Ack, Message, Priority
from .endpoint import Endpoint, Part
from .pace import SELDOM_S, Pace
from .scheduler import CONTROL, Scheduler
from .send_buffers import SendBuffers
from .stream_handler import Opening, StreamHandler

PATIENCE_S = 1.0
PATIENCE_TRIPS = 4
"""How long to wait for CREDIT before going on within the allowance, whatever is under way (BP1-STR-017)."""
CONTROL_LENGTH_MAX = 1 << 20
"""Bytes of queued control frames above which reading pauses."""
_ACK_RUNS_MAX = 128

log = logging.getLogger(__name__)


class Owner(Protocol):
    """The connection, as far as writing needs it."""

    def open(self, handler: StreamHandler) -> int:
        """Begin a stream of this side."""

    def takes_nothing(self, reason: ConnectionLost) -> None:
        """Hear that a write failed: the peer takes nothing more."""

    def close(self, reason: BlockprotoError | None = None) -> None:
        """End the connection now."""

    def wrote(self) -> None:
        """Hear that something was written."""

    def said_all(self) -> None:
        """Hear that no control frame is queued any more."""


class Writer:
    """The writing side of one connection.

    Args:
        endpoint: the byte stream.
        session: what may be said.
        owner: the connection.

    Attributes:
        pace: the estimate of the line's speed.
        gone: why no payload can be sent any more, or None.
        mute: whether nothing at all is sent any more.
    """

    __slots__ = (
        "_acks",
        "_beyond_pace",
        "_buffers",
        "_control",
        "_control_length",
        "_drained",
        "_endpoint",
        "_expected",
        "_nursery",
        "_owner",
        "_patient_until",
        "_pumping",
        "_scheduler",
        "_sending",
        "_session",
        "gone",
        "mute",
        "pace",
    )

    def __init__(self, endpoint: Endpoint, session: Session, owner: Owner) -> None:
        self.pace = Pace()
        self.gone: BlockprotoError | None = None
        self.mute = False
        self._endpoint = endpoint
        self._session = session
        self._owner = owner
        self._nursery: trio.Nursery | None = None
        self._scheduler = Scheduler()
        self._buffers: SendBuffers | None = None
        self._control: list[bytes] = []
        self._control_length = 0
        self._acks: dict[int, tuple[int, BlockSet]] = {}
        self._pumping = False
        self._drained: trio.Event | None = None
        self._sending: dict[int, None] = {}
        self._expected: tuple[Priority, ...] = ()
        self._patient_until = -math.inf
        self._beyond_pace = 0

    # ---- life -------------------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to write, with what was queued before."""
        self._nursery = nursery
        self._pump_soon()

    def part_with(self, reason: BlockprotoError) -> None:
        """Send no more payload; tasks that wait to send it raise ``reason``."""
        self.gone = self.gone or reason
        self.wake()

    def end(self, reason: BlockprotoError) -> None:
        """Send nothing more."""
        self.mute = True
        self.part_with(reason)
        self._tell_drained()

    def wake(self) -> None:
        """Let waiting tasks check again whether they may send: credit came, or a stream ended."""
        self._scheduler.wake()
        if self._buffers is not None:
            self._buffers.wake()

    @property
    def quiet(self) -> bool:
        """Whether no control frame is queued and no task is writing."""
        return not self._control and not self._acks and not self._scheduler.held

    @property
    def overfull(self) -> bool:
        """Whether so many bytes are queued that reading should pause."""
        return self._control_length > CONTROL_LENGTH_MAX and not self.mute

    async def drained(self) -> None:
        """Wait until some of the queue was written, or nothing is sent any more. Cancellation: no effect."""
        if self._drained is None:
            self._drained = trio.Event()
        await self._drained.wait()

    def _tell_drained(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set()

    # ---- control frames ---------------------------------------------------------------------------------------

    def post(self, stream: int, message: Message) -> None:
        """Queue a frame without payload; it goes before all payload that is not being written yet.

        Drop it if the stream has ended meanwhile; on a rejected stream only its ERROR is sent.

        Raises:
            LocalProtocolError: not legal now.
        """
        if not self.mute and not self._session.comes_too_late(stream, message):
            self.queue(self._session.send(stream, message))

    def post_ack(self, stream: int, position: int, runs: list[Run]) -> None:
        """Queue an ACK of ``runs``, merged with a queued one of the same stream."""
        if self.mute or not self._session.is_live(stream):
            return
        before = self._acks.get(stream)
        held = before[1] if before else BlockSet()
        for first, count in runs:
            held.add(first, count)
        self._acks[stream] = (position, held)
        self._pump_soon()

    def forget(self, stream: int) -> None:
        """Drop a queued ACK of ``stream``."""
        self._acks.pop(stream, None)

    def queue(self, frame: bytes) -> None:
        """Queue a frame that the session has encoded."""
        if self.mute:
            return
        self._control.append(frame)
        self._control_length += len(frame)
        self._pump_soon()

    def take_control_frames(self) -> list[bytes]:
        """Empty the queue; returns its frames, to be written now."""
        frames, self._control, self._control_length = self._control, [], 0
        acks, self._acks = self._acks, {}
        for stream, (position, held) in acks.items():
            runs = held.runs() if self._session.is_live(stream) else []
            for at in range(0, len(runs), _ACK_RUNS_MAX):
                page = tuple(runs[at : at + _ACK_RUNS_MAX])
                frames.append(self._session.send(stream, Ack(position=position, held=page)))
        return frames

    def _pump_soon(self) -> None:
        if not self._pumping and self._nursery is not None:
            self._pumping = True
            self._nursery.start_soon(self._pump)

    async def _pump(self) -> None:
        try:
            while self._control or self._acks:
                async with self.control_turn():
                    await self.write([b"".join(self.take_control_frames())])
        except ConnectionLost:
            extra: dict[str, object] = {"event": "peer takes nothing more", "facts": {}}
            log.debug("%s takes nothing more", self._endpoint.peer, extra=extra)
        finally:
            self._pumping = False
            self._owner.said_all()

    @contextlib.asynccontextmanager
    async def control_turn(self) -> AsyncIterator[None]:
        """Hold the turn for frames without payload: before all payload that is not being written yet."""
        await self._scheduler.take(CONTROL)
        try:
            yield
        finally:
            self._scheduler.give(CONTROL, 0)

    async def write(self, parts: list[Part] | list[bytes]) -> None:
        """Write whole frames; the caller has the turn.

        Raises:
            ConnectionLost: the connection broke.

        Cancellation: the connection is closed.
        """
        try:
            await self._endpoint.send(parts)
        except ConnectionLost as exc:
            self._owner.takes_nothing(exc)
            raise
        except BaseException:
            self._owner.close(ConnectionLost("a send was cancelled half-way"))
            raise
        self._owner.wrote()
        self._tell_drained()

    # ---- payload ----------------------------------------------------------------------------------------------

    async def granted(self) -> None:
        """See ``Connection.granted``."""
        if self.mute or self.gone is not None or self._session.sendable(0) > 0:
            return
        buffers = self._buffers = self._buffers or SendBuffers()
        await buffers.take(
            Priority.NORMAL, lambda: self.mute or self.gone is not None or self._session.sendable(0) > 0
        )
        buffers.give(Priority.NORMAL)
        if buffers.idle:
            self._buffers = None

    @contextlib.asynccontextmanager
    async def buffers(
        self, stream: int, wanted: Callable[[], int], priority: Priority, least: int
    ) -> AsyncIterator[memoryview]:
        """See ``Connection.buffers``."""
        buffers = self._buffers = self._buffers or SendBuffers()

        def may_go() -> bool:
            over = self.mute or self.gone is not None or not self._session.is_open(stream)
            return over or self._session.sendable(stream) >= wanted()

        await buffers.take(priority, may_go)
        try:
            if self.gone is not None:
                raise self.gone
            if not self._session.is_open(stream):
                raise Cancelled("the peer ended the stream")
            memory = buffers.memory(max(wanted(), least))
            try:
                yield memory
            finally:
                buffers.put_back(memory)
        finally:
            buffers.give(priority)
            if buffers.idle:
                self._buffers = None

    async def send(self, stream: int, message: Message, payload: Part, priority: Priority) -> None:
        """See ``Connection.send``."""
        length = len(payload)
        await self._take_turn(stream, length, priority)
        try:
            self.pace.sent(self._session.sent(0), trio.current_time())
            frame = self._session.send(stream, message, length)
            await self.write([*self.take_control_frames(), frame, payload])
        finally:
            self._scheduler.give(priority, length)

    async def send_openings(self, openings: Sequence[Opening], priority: Priority) -> list[int]:
        """See ``Connection.send_openings``."""
        streams: list[int] = []
        while len(streams) < len(openings):
            length = len(openings[len(streams)].payload)
            await self._take_turn(0, length, priority)
            try:
                self.pace.sent(self._session.sent(0), trio.current_time())
                begun, frames = self._open_all(openings[len(streams) :], priority)
                streams += begun
                length = sum(map(len, frames))
                await self.write([b"".join([*self.take_control_frames(), *frames])])
            finally:
                self._scheduler.give(priority, length)
        return streams

    def _open_all(self, openings: Sequence[Opening], priority: Priority) -> tuple[list[int], list[Part]]:
        """Open as many as there is room for, at least one; returns the ids and what to write."""
        streams: list[int] = []
        frames: list[Part] = []
        for handler, message, payload in openings:
            if streams and not self._has_room(0, len(payload), priority):
                break
            stream = self._owner.open(handler)
            frames += (self._session.send(stream, message, len(payload)), payload)
            streams.append(stream)
        return streams, frames

    @contextlib.contextmanager
    def sending(self, stream: int) -> Iterator[None]:
        """Count ``stream`` among those that share the line, while inside."""
        self._sending[stream] = None
        self._limit_unsent()
        try:
            yield
        finally:
            self._sending.pop(stream, None)
            self._limit_unsent()

    @contextlib.contextmanager
    def expecting(self, priority: Priority) -> Iterator[None]:
        """Hold back payload that is less urgent than ``priority``, which is about to be sent, while inside."""
        self._expected += (priority,)
        try:
            yield
        finally:
            at = self._expected.index(priority)
            self._expected = self._expected[:at] + self._expected[at + 1 :]
            self._scheduler.wake()

    def _limit_unsent(self) -> None:
        """Let the kernel queue much only where nothing has to overtake it: for a single stream on a fast line."""
        self._endpoint.limit_unsent(bool(self._sending) and self._bound)

    @property
    def _bound(self) -> bool:
        """Whether the pace limits what is under way, and not credit alone."""
        return len(self._sending) > 1 or self.pace.binds_one

    def piece_length(self) -> int:
        """The best length of the next piece in bytes, at most a quarter of what the peer allows at once."""
        hello = self._session.peer_hello
        longest = self._session.piece_length_max
        if hello is not None:
            longest = min(longest, hello.stream_allowance // 4, hello.connection_allowance // 4)
        return self.pace.piece_length(longest)

    def credited(self, now_s: float) -> None:
        """CREDIT came: the peer says how many bytes it has received on the connection."""
        self._beyond_pace = 0
        self._be_patient(now_s)
        self.pace.received(self._session.received_by_peer(0), now_s)
        self._limit_unsent()

    async def _take_turn(self, stream: int, length: int, priority: Priority) -> None:
        def may_go() -> bool:
            return self._has_room(stream, length, priority)

        while True:
            if may_go():
                await self._scheduler.take(priority, may_go)
            else:
                with trio.move_on_after(SELDOM_S if self.pace.unknown else PATIENCE_S) as scope:
                    await self._scheduler.take(priority, may_go)
                if scope.cancelled_caught:
                    self._go_on_without_credit(length)
                    continue
            if self.gone is not None:
                self._scheduler.give(priority, 0)
                raise self.gone
            if stream and not self._session.is_live(stream):
                self._scheduler.give(priority, 0)
                raise Cancelled("the peer ended the stream")
            if may_go():
                return
            self._scheduler.give(priority, 0)

    def _be_patient(self, now_s: float) -> None:
        """Begin a new wait for CREDIT before going on without it (BP1-STR-017)."""
        self._patient_until = now_s + max(PATIENCE_S, PATIENCE_TRIPS * (self.pace.round_trip_s or 0.0))

    def _go_on_without_credit(self, length: int) -> None:
        """Double what may be under way beyond the pace, each time CREDIT did not come in time."""
        now_s = trio.current_time()
        self.pace.waited(now_s)
        self._limit_unsent()
        if now_s >= self._patient_until:
            self._beyond_pace = max(length, 2 * self._beyond_pace)
            self._be_patient(now_s)
            self._scheduler.wake()

    def _has_room(self, stream: int, length: int, priority: Priority) -> bool:
        """Whether ``length`` bytes may be sent now on ``stream`` (0: on a new one)."""
        if self.mute or self.gone is not None or (stream and not self._session.is_live(stream)):
            return True
        if stream == 0 and not self._session.may_open:
            return False
        if self._session.sendable(stream) < length:
            return False
        if not self._bound:
            return True
        under_way = self._session.sent(0) - self._session.received_by_peer(0)
        waits_for_none = priority <= min(self._expected, default=priority)
        most = self.pace.under_way_max() if waits_for_none else self.pace.under_way_without_queue()
        return under_way == 0 or under_way < most + self._beyond_pace

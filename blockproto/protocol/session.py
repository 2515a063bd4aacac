"""Session: one end of a connection as a machine. Bytes in, events out, bytes to send; no IO and no clock.

    view = session.receive_buffer(); n = read into view; session.bytes_received(n)
    while (event := session.next_event()) is not None: …          only what keeps to the protocol
    transmit(session.send(stream, message, len(payload)), payload)

Rules:
    1. What ``greeting``, ``send`` and ``credits_due`` return is transmitted in the order of the calls, each before its
       payload: the session has already counted it.
    2. The session checks everything that can be known without a file: layout, limits, the transition table, credit, and
       that payload stays inside its block. Names, digests and what is held are for the transfer.
    3. A ``RemoteProtocolError`` from ``next_event``, or the peer's ERROR(connection), ends the conversation: in the first
       case send ``connection_error(exc)``, then read on until EOF; the session drops what comes.
    4. ``Rejected`` is the refusal of one stream, which is closed already and still needs its one ERROR.
    5. FILES and STORED are known where both HELLOs have the feature, and elsewhere they are unknown types.
    6. Frames for closed streams are checked, counted as consumed, and dropped without an event. Ids only rise, so only the
       highest id seen and the open streams are remembered.

Spec: BP1-HEL, BP1-STR, BP1-CRD, BP1-FIL, BP1-END.
"""

from __future__ import annotations

import random

from ..errors import (
    BadFacts,
    Code,
    LocalProtocolError,
    NotBlockproto,
    RemoteProtocolError,
    Scope,
    SpeaksTls,
    TooManyStreams,
    UnexpectedMessage,
    Unsupported,
    UnsupportedVersion,
)
from ..wire import (
    CONNECTION_ALLOWANCE_EARLY,
    CRITICAL_TYPE,
    FEATURE_AUTH_REQUIRED,
    FEATURE_FILES,
    FEATURE_WANTED,
    FILES_TYPES,
    FRAMES_MAX,
    HEAD_LENGTH_EARLY,
    MESSAGES,
    PAYLOAD_TYPES,
    PIECE_LENGTH_EARLY,
    PREFACE,
    PRINCIPAL_KIND,
    STREAM_ALLOWANCE_EARLY,
    STREAMS_EARLY,
    VERSION,
    Credit,
    Error,
    Files,
    Header,
    Hello,
    Message,
    Result,
    Type,
    decode_head,
    encode_frame,
    grease_frame,
)
from .events import (
    Event,
    Greeted,
    Limits,
    Payload,
    Received,
    Rejected,
    Side,
    connection_error,
    stream_error,
)
from .framing import RECEIVE_BUFFER_LENGTH, FrameReader
from .streams import TABLE, Flow, Kind, Role, State, Stream

__all__ = [
    "RECEIVE_BUFFER_LENGTH", "TABLE", "Event", "Greeted", "Kind", "Limits", "Payload", "Received", "Rejected", "Role",
    "Session", "Side", "State", "connection_error", "stream_error",
]  # fmt: skip

_STREAM_CREDIT_SHIFT = 3
"""A stream is granted more once an eighth of its window was consumed."""

_CONNECTION_TYPES = frozenset({Type.HELLO, Type.CREDIT, Type.PING, Type.ERROR, Type.GOAWAY})


TLS_RECORDS = (b"\x15\x03", b"\x16\x03")
"""The beginning of what a TLS server sends: an alert, or a handshake record."""


class Session:
    """One end of one connection.

    Args:
        side: client or server.
        limits: of this side.
        grease: for tests: add reserved flags, TLVs and messages, which peers must skip, to what is sent.

    Attributes:
        side, limits: as given.
        peer_hello: the peer's HELLO, or None before it came.
        files: whether FILES and STORED may be sent: both HELLOs have the feature.
        gives_files: whether FILES with WANTED may be, too.
    """

    def __init__(
        self, side: Side, limits: Limits | None = None, *, grease: random.Random | None = None
    ) -> None:
        self.side = side
        self.limits = limits or Limits()
        self.peer_hello: Hello | None = None
        self.files = self.gives_files = False
        self._filing: dict[Stream, None] = {}
        self._hello = self.limits.hello()
        self._admitted = not self._hello.features & FEATURE_AUTH_REQUIRED
        self._grease = grease
        self._reader = FrameReader()
        self._connection = Flow(CONNECTION_ALLOWANCE_EARLY, CONNECTION_ALLOWANCE_EARLY)
        self._window = STREAM_ALLOWANCE_EARLY
        self._allowance = STREAM_ALLOWANCE_EARLY
        self._streams: dict[int, Stream] = {}
        self._unanswered: dict[int, None] = {}
        self._owing: dict[Stream, None] = {}  # in the order in which credit became due
        self._parity = 1 if side is Side.CLIENT else 0
        self._own_next = 1 if side is Side.CLIENT else 2
        self._own_said = self._peer_said = 0
        self._own_open = self._peer_open = 0
        self._preface_seen = self._greeting_sent = self._last_word = False
        self._deaf = False
        self._payload_left = 0
        self._payload_of: Stream | None = None
        self._payload_position = 0

    # Receiving

    def receive_buffer(self) -> memoryview:
        """Lend space to fill, never empty; first take all events. Payload views become invalid."""
        return self._reader.receive_buffer()

    def bytes_received(self, count: int) -> None:
        """``count`` bytes, at least 1, were put at the beginning of the buffer last lent."""
        self._reader.bytes_received(count)

    def idle(self) -> None:
        """Give the buffer back while nothing is expected soon. Payload views become invalid."""
        self._reader.idle()

    @property
    def clean(self) -> bool:
        """Whether only whole frames came: at EOF, whether the peer stopped between two of them."""
        return not (self._deaf or self._payload_left or self._reader.buffered)

    @property
    def recognised(self) -> bool:
        """Whether the peer's preface has come, after which a server sends its greeting (BP1-HEL-002)."""
        return self._preface_seen

    @property
    def head_begun(self) -> bool:
        """Whether a header and head have begun and not ended, for which there is a time limit (BP1-END-007)."""
        return not self._payload_left and self._reader.buffered > 0

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed.

        Raises:
            RemoteProtocolError: the peer broke the protocol; see rule 3.
        """
        if self._deaf:
            self._reader.discard()
            return None
        event: Event | None
        try:
            while True:
                if self._payload_left:
                    view = self._reader.take_payload(self._payload_left)
                    if view is None:
                        return None
                    event = self._payload_event(view)
                else:
                    frame = self._reader.next_frame() if self._preface_seen or self._recognise() else None
                    if frame is None:
                        return None
                    event = self._act(*frame)
                if event is not None:
                    return event
        except RemoteProtocolError:
            self._deaf = True
            raise

    def _recognise(self) -> bool:
        """Pass over the preface (BP1-HEL-003, 004); False while it is not all there."""
        seen = self._reader.skip_prefix(PREFACE)
        if seen is False:
            if self.side is Side.CLIENT and self._reader.begins_with(TLS_RECORDS):
                raise SpeaksTls("the server speaks TLS here: use bps:// instead of bp://")
            raise NotBlockproto
        self._preface_seen = bool(seen)
        return self._preface_seen

    def _payload_event(self, view: memoryview) -> Payload | None:
        """Count a fragment; None if its stream has been closed meanwhile and it was dropped."""
        length = len(view)
        self._payload_left -= length
        stream = self._payload_of
        if stream is None:
            return None
        position = self._payload_position
        self._payload_position = position + length
        connection = self._connection
        connection.received += length
        stream.received += length
        if stream.state is State.CLOSED:
            self.consumed(stream.id, length)
            return None
        return Payload(stream.id, position, view, not self._payload_left)

    def _act(self, header: Header, head: memoryview) -> Event | None:
        """Handle one frame with a correct check; None if it is dropped or skipped."""
        number = header.type
        if self.peer_hello is None:
            return self._greet(header, head)
        self._payload_left = payload_length = header.length - header.head_length
        self._payload_of = None
        if number not in MESSAGES and number < CRITICAL_TYPE:
            return None
        if header.stream == 0:
            return self._act_on_connection(header, head)
        stream = self._stream_of(header.stream)
        if payload_length and self._is_payload(number):
            self._connection.judge(payload_length)
            if stream is not None:
                stream.judge(payload_length)
        if stream is None:
            self._count_dropped(header)
            return None
        try:
            self._judge_known(number)
            message = decode_head(header, head)
            assert message is not None
            position = self._step(stream, message, payload_length)
        except (Unsupported, BadFacts) as error:
            self._close(stream)
            self._count_dropped(header)
            self._unanswered[stream.id] = None
            return Rejected(stream.id, error)
        if payload_length:
            self._payload_of = stream
            self._payload_position = position
        return Received(stream.id, message, payload_length)

    def _count_dropped(self, header: Header) -> None:
        """Count payload that will be dropped as received and consumed at once (BP1-STR-008)."""
        if header.payload_length and self._is_payload(header.type):
            self._connection.received += header.payload_length
            self.consumed(0, header.payload_length)

    def _is_payload(self, number: int) -> bool:
        """Whether what follows the head of a message counts for credit (BP1-CRD-001, BP1-EXT-001)."""
        return number in PAYLOAD_TYPES and (self.files or number not in FILES_TYPES)

    def _judge_known(self, number: int) -> None:
        """Raise Unsupported for what only a side may say that has heard that the other understands it (BP1-FIL-001)."""
        if number in FILES_TYPES and not self.files:
            raise Unsupported(f"message type {number:#04x} where not both sides have said FILES in HELLO")

    def _judge_wanted(self, message: Files) -> None:
        """Raise BadFacts for WANTED where not both sides understand it (BP1-FIL-017)."""
        if message.wanted and not self.gives_files:
            raise BadFacts("FILES with WANTED where not both sides have said in HELLO that they know it")

    def _greet(self, header: Header, head: memoryview) -> Greeted:
        """Accept the first frame, which is HELLO (BP1-HEL-005, 006)."""
        if header.type != Type.HELLO or header.stream != 0:
            raise UnexpectedMessage(
                f"the first frame is of type {header.type:#04x} on stream {header.stream}"
            )
        try:
            hello = decode_head(header, head)
        except Unsupported as error:
            raise RemoteProtocolError(str(error), code=error.code) from error
        assert isinstance(hello, Hello)
        if not hello.version_lowest <= VERSION <= hello.version_highest:
            raise UnsupportedVersion(
                f"the peer speaks versions {hello.version_lowest} to {hello.version_highest}, we speak {VERSION}"
            )
        self.peer_hello = hello
        features = self._hello.features & hello.features
        self.files = self._reader.files = bool(features & FEATURE_FILES)
        self.gives_files = self.files and bool(features & FEATURE_WANTED)
        if self.side is Side.CLIENT:
            self._admitted = not hello.features & FEATURE_AUTH_REQUIRED
        self._use_limits()
        return Greeted(hello)

    def _use_limits(self) -> None:
        """Apply the limits of both HELLOs, as far as they have come and AUTH is not outstanding (BP1-AUT-005)."""
        if not self._admitted:
            return
        if self._greeting_sent:
            limits = self.limits
            self._reader.buffer_length_max = RECEIVE_BUFFER_LENGTH
            self._reader.head_length_max = limits.head_length_max
            self._reader.piece_length_max = limits.piece_length_max
            self._connection.widen(limits.connection_allowance, 0)
            self._window = limits.stream_allowance
        if self.peer_hello is not None:
            self._connection.widen(0, self.peer_hello.connection_allowance)
            self._allowance = self.peer_hello.stream_allowance
        for stream in self._streams.values():
            stream.widen(self._window, self._allowance)

    def _judge_admission(self, message: Message) -> None:
        """Lift the early limits with the answer to the first AUTH, on both sides (BP1-AUT-005)."""
        if not self._admitted and isinstance(message, Result) and message.kind == PRINCIPAL_KIND:
            self._admitted = True
            self._use_limits()

    def _act_on_connection(self, header: Header, head: memoryview) -> Received:
        """Handle a message for the connection itself (BP1-FRM-020)."""
        try:
            self._judge_known(header.type)
            message = decode_head(header, head)
        except (Unsupported, BadFacts) as error:
            raise RemoteProtocolError(str(error), code=error.code) from error
        assert message is not None
        if message.TYPE not in _CONNECTION_TYPES or isinstance(message, Hello):
            raise UnexpectedMessage(f"{message.TYPE.name} on stream 0")
        if isinstance(message, Credit):
            self._connection.credited(message)
        elif isinstance(message, Error):
            if message.scope != Scope.CONNECTION:
                raise UnexpectedMessage("an ERROR of less than the connection on stream 0")
            self._deaf = True
        return Received(0, message, 0)

    def _stream_of(self, number: int) -> Stream | None:
        """The stream of that id, made if the peer opens it now; None if it was used and is closed.

        Raises:
            UnexpectedMessage: it is one of our ids that we have not used.
            TooManyStreams: the peer has as many streams open as it may.
        """
        stream = self._streams.get(number)
        if stream is not None and stream.state is not State.NEW:
            return stream
        if number & 1 == self._parity:
            if number > self._own_said:
                raise UnexpectedMessage(f"stream {number} is ours to open")
            return None
        if number <= self._peer_said:
            return None
        if self._peer_open >= (
            self.limits.streams_max if self._greeting_sent and self._admitted else STREAMS_EARLY
        ):
            raise TooManyStreams(f"{self._peer_open} streams are open")
        self._peer_said = number
        self._peer_open += 1
        stream = self._streams[number] = Stream(number, self._window, self._allowance)
        return stream

    def _step(self, stream: Stream, message: Message, payload_length: int) -> int:
        """Take the peer's message through the table; returns the position of its payload."""
        step = stream.next_state(False, message)
        if step is None:
            raise UnexpectedMessage(
                f"{message.TYPE.name} on stream {stream.id}, which is {stream.state.name}"
            )
        stream.role = step[0]
        position = stream.follow(message, payload_length)
        if isinstance(message, Credit):
            stream.credited(message)
        elif isinstance(message, Files):
            self._judge_wanted(message)
            self._filing[stream] = None
            if self._unanswered_by(Role.RECEIVER) > FRAMES_MAX:
                raise BadFacts(f"more than {FRAMES_MAX} FILES that are not answered")
        self._enter(stream, *step)
        self._judge_admission(message)
        return position

    def _enter(self, stream: Stream, role: Role, state: State) -> None:
        stream.role = role
        if state is State.CLOSED:
            self._close(stream)
        else:
            stream.state = state

    def _close(self, stream: Stream) -> None:
        """Forget a stream; its id stays used."""
        stream.state = State.CLOSED
        del self._streams[stream.id]
        self._owing.pop(stream, None)
        self._filing.pop(stream, None)
        if stream.id & 1 == self._parity:
            self._own_open -= 1
        else:
            self._peer_open -= 1

    # Sending

    def greeting(self) -> bytes:
        """Preface and HELLO, to be sent first; from now on the peer may use what our HELLO allows.

        Raises:
            LocalProtocolError: this was called before.
        """
        if self._greeting_sent:
            raise LocalProtocolError("the greeting was sent")
        self._greeting_sent = True
        self._use_limits()
        greeting = PREFACE + encode_frame(0, self._hello, grease=self._grease)
        return greeting if self._grease is None else greeting + grease_frame(self._grease)

    def open_stream(self) -> int:
        """Take our next id. Send its first message before that of a later id: ids must rise on the line.

        Raises:
            LocalProtocolError: as many are open as the peer allows (code TOO_MANY_STREAMS).
        """
        if not self.may_open:
            raise LocalProtocolError(f"{self._own_open} streams are open", code=Code.TOO_MANY_STREAMS)
        number = self._own_next
        self._own_next += 2
        self._own_open += 1
        self._streams[number] = Stream(number, self._window, self._allowance)
        return number

    @property
    def may_open(self) -> bool:
        """Whether the peer allows one more stream of ours."""
        return self._own_open < (
            STREAMS_EARLY if self._peer_limits is None else self._peer_limits.streams_max
        )

    def send(self, stream: int, message: Message, payload_length: int = 0) -> bytes:
        """Send ``message``: returns its header and head, which ``payload_length`` bytes have to follow.

        Args:
            stream: an open id, one from ``open_stream``, a rejected one (for its ERROR), or 0.
            message: the message.
            payload_length: at most ``piece_length_max`` and ``sendable(stream)``.

        Raises:
            LocalProtocolError: it is not legal now, or the payload is too long; nothing has changed.
        """
        frame = encode_frame(stream, message, payload_length, grease=self._grease)
        if not self._greeting_sent or self._last_word:
            raise LocalProtocolError(
                "before the greeting" if not self._greeting_sent else "after the last word"
            )
        if len(frame) > HEAD_LENGTH_EARLY and len(frame) - 16 > self.head_length_max:
            raise LocalProtocolError(
                f"{len(frame) - 16} bytes of head; the peer takes {self.head_length_max}"
            )
        if stream == 0:
            self._say_on_connection(message)
        else:
            self._say(stream, message, payload_length)
        if self._grease is not None and self._grease.random() < 0.1:
            return grease_frame(self._grease) + frame
        return frame

    def _say_on_connection(self, message: Message) -> None:
        if message.TYPE not in _CONNECTION_TYPES or isinstance(message, Hello):
            raise LocalProtocolError(f"{message.TYPE.name} on stream 0")
        if isinstance(message, Error):
            if message.scope != Scope.CONNECTION:
                raise LocalProtocolError("an ERROR of less than the connection on stream 0")
            self._last_word = True
        elif isinstance(message, Credit):
            self._connection.granted = max(self._connection.granted, message.allowance)

    def _say(self, number: int, message: Message, payload_length: int) -> None:
        """Take our message through the table and count it."""
        stream = self._streams.get(number)
        if stream is None:
            if number in self._unanswered and isinstance(message, Error) and message.scope == Scope.STREAM:
                del self._unanswered[number]
                return
            raise LocalProtocolError(f"{message.TYPE.name} on stream {number}, which is not open")
        step = stream.next_state(True, message)
        if step is None:
            raise LocalProtocolError(f"{message.TYPE.name} on stream {number}, which is {stream.state.name}")
        if stream.state is State.NEW and number < self._own_said:
            raise LocalProtocolError(f"stream {number} after stream {self._own_said}")
        if payload_length and payload_length > min(self.sendable(number), self.piece_length_max):
            raise LocalProtocolError(f"{payload_length} bytes; {self.sendable(number)} may be sent")
        if message.TYPE in FILES_TYPES and not self.files:
            raise LocalProtocolError("FILES or STORED, which the peer does not understand")
        if isinstance(message, Files) and message.wanted and not self.gives_files:
            raise LocalProtocolError("FILES with WANTED, which the peer does not understand")
        try:
            stream.follow(message, payload_length)
        except BadFacts as error:
            raise LocalProtocolError(str(error)) from error
        if stream.state is State.NEW:
            self._own_said = number
        if isinstance(message, Files):
            self._filing[stream] = None
        if payload_length:
            stream.sent += payload_length
            self._connection.sent += payload_length
        elif isinstance(message, Credit):
            stream.granted = max(stream.granted, message.allowance)
        self._enter(stream, *step)
        self._judge_admission(message)

    @property
    def frames_unanswered(self) -> int:
        """How many FILES of ours are not answered; no more than ``FRAMES_MAX`` may be (BP1-FIL-010)."""
        return self._unanswered_by(Role.SENDER)

    def _unanswered_by(self, role: Role) -> int:
        """The unanswered FILES on the streams where we have this role."""
        return sum(len(stream.unanswered or ()) for stream in self._filing if stream.role is role)

    # Credit

    def sendable(self, stream: int) -> int:
        """Payload bytes that may be sent on ``stream`` now (0: on the connection as a whole); 0 if it is closed."""
        room = self._connection.allowance - self._connection.sent
        flow = self._flow(stream)
        return 0 if flow is None else min(flow.allowance - flow.sent, room)

    def sent(self, stream: int) -> int:
        """Payload bytes we sent on ``stream`` (0: on the connection); 0 if it is closed."""
        flow = self._flow(stream)
        return 0 if flow is None else flow.sent

    def received_by_peer(self, stream: int) -> int:
        """Payload bytes we sent that the peer says have come, as ``sent``."""
        flow = self._flow(stream)
        return 0 if flow is None else flow.received_by_peer

    def _flow(self, stream: int) -> Flow | None:
        return self._connection if stream == 0 else self._streams.get(stream)

    def consumed(self, stream: int, count: int) -> None:
        """``count`` payload bytes of ``stream`` were written or dropped, so that as many can be granted again.

        Do not wait for the end of a block, or until it is durable: that deadlocks (BP1-CRD-006). Bytes of a stream that was
        closed meanwhile still count for the connection.

        Raises:
            LocalProtocolError: more than has come.
        """
        connection = self._connection
        if connection.consumed + count > connection.received:
            raise LocalProtocolError(f"{count} bytes were consumed, more than have come")
        connection.consumed += count
        flow = self._streams.get(stream)
        if flow is not None:
            flow.consumed += count
            if flow.due >= flow.window >> _STREAM_CREDIT_SHIFT:
                self._owing[flow] = None

    def credits_due(self, least: int) -> list[bytes]:
        """The CREDIT frames for what can be granted.

        For the connection from ``least`` bytes (at least 1) on, for a stream also only from an eighth of its window on: a
        stream with a small file never needs it, and there can be thousands.
        """
        if self._last_word:
            return []
        frames = []
        if self._connection.due >= least:
            frames.append(encode_frame(0, self._connection.grant(), grease=self._grease))
        for stream in [stream for stream in self._owing if stream.due >= least]:
            del self._owing[stream]
            frames.append(encode_frame(stream.id, stream.grant(), grease=self._grease))
        return frames

    # What there is

    @property
    def _peer_limits(self) -> Hello | None:
        """The peer's HELLO; None while the early limits apply."""
        return self.peer_hello if self._admitted else None

    @property
    def piece_length_max(self) -> int:
        """Payload bytes the peer takes in one frame."""
        return PIECE_LENGTH_EARLY if self._peer_limits is None else self._peer_limits.piece_length_max

    @property
    def head_length_max(self) -> int:
        """Head bytes the peer takes."""
        return HEAD_LENGTH_EARLY if self._peer_limits is None else self._peer_limits.head_length_max

    @property
    def payload_received(self) -> int:
        """Payload bytes that have come on the connection."""
        return self._connection.received

    @property
    def payload_coming(self) -> bool:
        """Whether a frame with payload has begun and not ended."""
        return self._payload_left > 0

    def begun(self) -> frozenset[tuple[int, int]]:
        """What the peer has begun, has not ended and may send more of: blocks, and the frame whose payload is coming.

        (stream, position after the last byte) of a block or a frame of it; (stream, -1 - number) of a FILES.
        """
        if self._connection.received >= self._connection.granted:
            return frozenset()
        begun = {
            (stream.id, stream.end)
            for stream in self._streams.values()
            if stream.role is Role.RECEIVER and stream.end >= 0 and stream.received < stream.granted
        }
        coming = self._payload_of if self._payload_left else None
        if coming is not None and coming.state is not State.CLOSED:
            end = self._payload_position + self._payload_left
            begun.add((coming.id, -1 - coming.number if coming.unanswered is not None else end))
        return frozenset(begun)

    @property
    def open_streams(self) -> int:
        """How many streams are open, of both sides."""
        return len(self._streams)

    def is_open(self, stream: int) -> bool:
        """Whether a message may be sent on ``stream``: it is new, open, or rejected and not yet answered."""
        return stream in self._streams or stream in self._unanswered

    def is_live(self, stream: int) -> bool:
        """Whether ``stream`` is new or open: neither ended, nor rejected and only to be answered with ERROR."""
        return stream in self._streams

    def comes_too_late(self, stream: int, message: Message) -> bool:
        """Whether ``stream`` ended before ``message`` could be sent; a rejected one waits only for its ERROR."""
        if stream == 0 or stream in self._streams:
            return False
        if stream in self._unanswered:
            return not (isinstance(message, Error) and message.scope == Scope.STREAM)
        return stream < self._own_next if stream & 1 == self._parity else stream <= self._peer_said

    def state(self, stream: int) -> State:
        """The state of ``stream``; an id that is not open is ``CLOSED``."""
        entry = self._streams.get(stream)
        return State.CLOSED if entry is None else entry.state

    def role(self, stream: int) -> Role | None:
        """Which way bytes flow on ``stream``, seen from here; None if it is new or closed."""
        entry = self._streams.get(stream)
        return None if entry is None else entry.role

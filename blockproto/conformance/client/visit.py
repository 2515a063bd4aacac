"""One connection that the client makes, as the server sees it: ``Peer`` from the other side.

Whatever the client says is judged by the rules that hold for every client in every case: its messages are those of a
client, its streams have odd ids that rise, each begins with a message that may begin one, and it opens no more than the
harness's HELLO allows. PINGs are answered, and not handed out, unless a case asks for them.
"""

from __future__ import annotations

import random
import socket
import time

from ... import wire
from ...errors import Scope
from ..peer import Heard, Peer
from ..verdicts import Closed, Failed, first_difference

BEGINS_STREAM = (wire.Auth, wire.Open, wire.Block, wire.Files, wire.Fetch, wire.List, wire.Remove)
SAID_BY_SERVER_ONLY = (wire.Result,)
QUIET_S = 0.3
"""How long a client that could say more is silent at most; more with ``--slow``."""

_ENDS_STREAM = (wire.Committed, wire.Result)


class Visit(Peer):
    """One connection of the client.

    Attributes:
        answers: whether PINGs are answered by themselves.
        ended: whether the connection has ended.
        farewell: the ERROR of scope connection that either side has said.
        grease: where set, reserved values come with everything that is said.
        pings: every PING that was not an answer.
        streams: the ids that the client has opened and that are not closed.
        begun: all ids that it has opened.
    """

    answers = True

    def welcome(self, hello: wire.Hello | None = None, behind: bytes = b"") -> wire.Hello:
        """Hear the client's preface and HELLO, and say ours; returns the client's."""
        theirs = self.expect_greeting()
        self.introduce(hello, behind)
        return theirs

    def introduce(self, hello: wire.Hello | None = None, behind: bytes = b"") -> None:
        """Say preface and HELLO, and bytes ``behind`` them at once."""
        self.ours = hello or self.ours
        self.send(wire.PREFACE + wire.encode_frame(0, self.ours, grease=self.grease) + behind)

    def expect_greeting(self) -> wire.Hello:
        """The client's preface and HELLO, which come without waiting for ours."""
        deadline = time.monotonic() + self.patience.answer_s
        got = self.raw(len(wire.PREFACE), "the preface", deadline)
        if got != wire.PREFACE:
            raise Failed(
                "the first eight bytes are not the preface",
                expected=wire.PREFACE.hex(" "),
                got=got.hex(" "),
                divergence=first_difference("the preface", wire.PREFACE, got),
                clause="BP1-HEL-001",
            )
        heard = self._read_frame("HELLO", deadline)
        if heard is None or not isinstance(heard.message, wire.Hello):
            raise Failed("the first frame is not HELLO", got=str(heard), clause="BP1-HEL-005")
        return heard.message

    def small_segments(self) -> None:
        """Send everything in segments of one byte from now on."""
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._small = True

    def force(self, raw: bytes) -> None:
        """Send one frame as it is, however wrong; its stream and payload are counted as those of an honest one."""
        header = wire.decode_header(raw)
        if header.type in wire.PAYLOAD_TYPES and header.stream:
            self.opened(header.stream)
            self.count(header.stream, len(raw) - wire.HEADER_LENGTH - header.head_length)
        self.send(raw)

    def reset(self) -> None:
        """End the connection as a line that breaks does."""
        self.ended = True
        super().reset()

    def close(self) -> None:
        """Close the connection; harmless when it is closed."""
        self.ended = True
        super().close()

    def alive(self) -> None:
        """It answers PING: what was odd has harmed nothing. What comes before the answer can still be heard."""
        self.put_back(self.ping(among=tuple(wire.MESSAGES.values())))

    def put_back(self, heard: list[Heard]) -> None:
        """Let frames that were heard be heard again, before all others."""
        self._inbox.extendleft(reversed(heard))

    def rest(self, what: str = "the end of the connection") -> list[Heard]:
        """Everything that comes until the client closes."""
        heard = []
        try:
            while True:
                heard.append(self.hear(what))
        except Closed:
            return heard

    def settled(self, *, wanted: bool = False, tells: bool = False) -> list[Heard]:
        """What comes until nothing came for a moment: the client has said all that it may say now.

        With ``wanted`` the first frame is waited for as long as any answer. With ``tells`` CREDIT says what came, and grants
        nothing: a client that begins with little goes on up to its allowance.
        """
        quiet_s = QUIET_S * max(1.0, self.patience.slow)
        heard: list[Heard] = []
        while self.readable(self.patience.answer_s if wanted and not heard else quiet_s):
            deadline = time.monotonic() + self.patience.answer_s
            one = self._inbox.popleft() if self._inbox else self._read_frame("a frame", deadline)
            heard += [one] if one is not None else []
            if tells and one is not None and one.payload:
                self.grant(0, 0)
        return heard

    @property
    def begun(self) -> list[int]:
        """The ids that the client has opened, in order."""
        return self._begun

    @property
    def streams(self) -> set[int]:
        """Those of them that nobody has ended."""
        return self._open

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.pings: list[wire.Ping] = []
        self.grease: random.Random | None = None
        self.ended = False
        self.farewell: wire.Error | None = None
        self._begun: list[int] = []
        self._open: set[int] = set()

    def say(self, stream: int, message: wire.Message, payload: bytes = b"") -> None:
        """Send one honest frame; with ``grease``, one that has reserved values in it, and a reserved message behind."""
        if self.grease is None:
            super().say(stream, message, payload)
        else:
            self.opened(stream)
            self.count(stream, len(payload))
            frame = wire.encode_frame(stream, message, len(payload), grease=self.grease)
            self.send(frame + payload + wire.grease_frame(self.grease))
        self._note_farewell(message)
        if isinstance(message, _ENDS_STREAM) or (
            isinstance(message, wire.Error) and message.scope == Scope.STREAM
        ):
            self._open.discard(stream)

    def _note_farewell(self, message: wire.Message | None) -> None:
        if isinstance(message, wire.Error) and message.scope == Scope.CONNECTION:
            self.farewell = message

    @property
    def lost(self) -> bool:
        """Whether it is over, and nobody has said that the same again cannot help: a client may come back by itself."""
        if self.farewell is not None:
            return self.farewell.retryable
        return self.ended or self.broken

    def _receive(self, what: str, deadline: float) -> None:
        try:
            super()._receive(what, deadline)
        except Closed:
            self.ended = True
            raise

    def _judge(self, heard: Heard) -> None:
        message, stream = heard.message, heard.stream
        if isinstance(message, SAID_BY_SERVER_ONLY):
            raise Failed("a message that no client says", got=str(heard), clause="BP1-STR-005")
        connection = isinstance(message, (wire.Hello, wire.Ping, wire.GoAway)) or (
            isinstance(message, wire.Error) and message.scope == Scope.CONNECTION
        )
        if not isinstance(message, wire.Credit) and connection is not (stream == 0):
            raise Failed(
                "a message on a stream where it does not belong", got=str(heard), clause="BP1-FRM-020"
            )
        if stream:
            self._judge_stream(heard)
        if isinstance(message, wire.Hello) and self.hello is not None:
            raise Failed("a second HELLO", got=str(heard), clause="BP1-HEL-005")

    def _judge_stream(self, heard: Heard) -> None:
        message, stream = heard.message, heard.stream
        if stream in self._begun or stream in self._opened:
            if isinstance(message, wire.Error) and message.scope == Scope.STREAM:
                self._open.discard(stream)
            return
        if stream % 2 == 0 or (self._begun and stream < self._begun[-1]):
            raise Failed("a stream id that is even or does not rise", got=str(heard), clause="BP1-STR-001")
        if not isinstance(message, BEGINS_STREAM):
            raise Failed(
                "a stream begins with a message that begins none", got=str(heard), clause="BP1-STR-002"
            )
        self._begun.append(stream)
        self._open.add(stream)
        if len(self._open) > self.ours.streams_max:
            raise Failed("more streams are open than our HELLO allows", got=str(heard), clause="BP1-STR-009")

    def _take_in(self, heard: Heard) -> Heard | None:
        self._note_farewell(heard.message)
        taken = super()._take_in(heard)
        if taken is not None and heard.payload and not isinstance(heard.message, wire.Hello):
            return taken
        message = heard.message
        if isinstance(message, wire.Ping) and not message.answer:
            self.pings.append(message)
            if self.answers:
                self.say(0, wire.Ping(message.opaque, 0, answer=True))
                return None
        return taken

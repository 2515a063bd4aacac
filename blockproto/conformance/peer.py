"""The harness's end of a connection: a plain blocking socket that says frames and hears frames.

It keeps what an honest client must keep (credit, and nothing else) only where a case asks for it through ``moves``;
``send`` sends any bytes. What it hears, it judges by the rules that hold for every frame in every case: layout, check,
limits of its own HELLO, credit, streams that it opened. So each case is also a case of those.

Rules:
    1. CREDIT is applied and not handed out. ACK is noted, and handed out only to who waits for it.
    2. Nothing waits longer than ``Patience.answer_s``. What does not come in that time is ``Hung``.
    3. Bytes that cannot be sent because the other side has closed are no error by themselves: its last words may still
       be there to be read.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .. import wire
from ..common.blocks import blocknum_of
from ..common.names import show_name
from ..errors import BlockprotoError, Code, Scope
from . import forge
from .judging import Heard as Heard  # what a peer hears is part of its interface
from .judging import judge_frame, judge_lengths
from .ready import readable, wait_for
from .timing import Patience
from .transcript import Transcript, describe, describe_bytes, describe_frame
from .verdicts import Closed, Failed, Hung, first_difference

TEXT_SHOWN_MAX = 120
"""Characters of an ERROR's text that stand in a message."""

M = TypeVar("M", bound=wire.Message)

SINGLE_BYTES = 256
"""How many bytes of each ``send`` go one by one where segments are made small; the rest goes in odd pieces."""

ODD_PIECE = 1_021

EARLY_LENGTH, EARLY_STEP, EARLY_STEP_MOST = 8 << 20, 16 << 10, 64 << 10
"""Of so many bytes of a connection it is told early what came, after so many at least and at most (BP1-CRD-007)."""


@dataclass
class Held:
    """What was acknowledged on a stream: the greatest position, and the blocknos of all runs."""

    position: int = 0
    blocknos: set[int] = field(default_factory=set)

    def add(self, position: int, runs: tuple[tuple[int, int], ...]) -> None:
        """Take in one ACK or OPENED."""
        self.position = max(self.position, position)
        for first, count in runs:
            self.blocknos.update(range(first, first + min(count, 1 << 16)))


class Peer:
    """One connection.

    Args:
        sock: connected; the peer owns it.
        number: which connection of the case.
        transcript: where everything is noted.
        patience: how long to wait.
        lenient: called with a sentence where the other side does what is allowed, but not what it should.
        small_segments: whether to send in segments of one byte.

    Attributes:
        hello: the other side's HELLO, once it has come.
        ours: the HELLO that was said.
        held: what was acknowledged, by stream.
        credits: every CREDIT that came, (stream, message).
        broken: whether the other side takes nothing any more.
        grants: whether payload that comes is granted anew by itself.
    """

    def __init__(
        self,
        sock: socket.socket,
        number: int,
        transcript: Transcript,
        patience: Patience,
        lenient: Callable[[str], None],
        small_segments: bool = False,
    ) -> None:
        self.hello: wire.Hello | None = None
        self.ours = wire.Hello(agent="blockproto-conform")
        self.held: dict[int, Held] = defaultdict(Held)
        self.credits: list[tuple[int, wire.Credit]] = []
        self.grants = True
        self.broken = False
        self._sock = sock
        self._number = number
        self._transcript = transcript
        self.patience = patience
        self._lenient = lenient
        self._small = small_segments
        self._buffer = bytearray()
        self._inbox: deque[Heard] = deque()
        self._opened: set[int] = set()
        self._sent: dict[int, int] = defaultdict(int)
        self._allowed: dict[int, int] = {}
        self._came: dict[int, int] = defaultdict(int)
        self._granted: dict[int, int] = {}
        self._told = 0
        self._pings = 0
        if small_segments:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # ---- saying

    def send(self, raw: bytes, *, deaf: bool = False) -> None:
        """Send any bytes; ``deaf``: take nothing in meanwhile, though the other side may have much to say."""
        self._transcript.add(self._number, ">", describe_bytes(raw), raw)
        try:
            for part in self._segments(raw):
                self._send_all(part, deaf)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise Hung("the target takes no more bytes", clause="BP1-STR-014") from error
            self.broken = True
            self._transcript.add(self._number, "-", f"cannot send: {error.strerror or error}")

    def say(self, stream: int, message: wire.Message, payload: bytes = b"") -> None:
        """Send one honest frame."""
        self.send(self.frame(stream, message, payload))

    def frame(self, stream: int, message: wire.Message, payload: bytes = b"") -> bytes:
        """The bytes of one honest frame, which the caller is about to send: streams and payload are counted."""
        self.opened(stream)
        self.count(stream, len(payload))
        return forge.frame(stream, message, payload)

    def opened(self, *streams: int) -> None:
        """Remember that these streams were used by us; ``say`` does it by itself, ``send`` cannot."""
        self._opened.update(streams)

    def count(self, stream: int, payload_length: int) -> None:
        """Count payload that is sent past ``say``."""
        self._sent[stream] += payload_length
        self._sent[0] += payload_length

    def room(self, stream: int) -> int:
        """How many bytes of payload may be sent on a stream now (BP1-CRD-002)."""
        return min(self._allowance(at) - self._sent[at] for at in (0, stream))

    def _allowance(self, stream: int) -> int:
        hello = self.hello
        if stream:
            least = hello.stream_allowance if hello else wire.STREAM_ALLOWANCE_EARLY
        else:
            least = hello.connection_allowance if hello else wire.CONNECTION_ALLOWANCE_EARLY
        return max(least, self._allowed.get(stream, 0))

    def wait_room(self, stream: int) -> int:
        """Wait until payload may be sent; returns how many bytes."""
        deadline = time.monotonic() + self.patience.answer_s
        while (room := self.room(stream)) <= 0:
            heard = self._read_frame("CREDIT", deadline)
            if heard is not None:
                self._inbox.append(heard)
                if isinstance(heard.message, wire.Error):
                    return 0
        return room

    def allowed(self, stream: int) -> int:
        """How many bytes of payload were allowed in all, on a stream or on the connection, as far as was heard."""
        return min(self._allowance(0), self._allowance(stream))

    # ---- hearing

    def hear(self, what: str = "a frame") -> Heard:
        """The next frame but CREDIT. ``what`` says for the report what is waited for.

        Raises:
            Closed: the connection ended instead.
            Hung: nothing came in time.
            Failed: what came breaks a rule that holds for every frame.
        """
        if self._inbox:
            return self._inbox.popleft()
        deadline = time.monotonic() + self.patience.answer_s
        while True:
            heard = self._read_frame(what, deadline)
            if heard is not None:
                return heard

    def expect(self, kind: type[M], stream: int | None = None, /, *, among: bool = False, **fields: Any) -> M:
        """The next frame of a stream, which must be of this kind; ACKs are skipped unless they are wanted.

        Between streams there is no promised order: what comes on another stream is kept for who asks for it.

        Args:
            kind: the message.
            stream: on which it must come; None: the next frame of any.
            among: forget what comes on other streams.
            fields: values that it must have.
        """
        message = self.expect_heard(kind, stream, among=among, **fields).message
        assert isinstance(message, kind)
        return message

    def expect_heard(
        self, kind: type[Any], stream: int | None = None, /, *, among: bool = False, **fields: Any
    ) -> Heard:
        """As ``expect``; the whole frame."""
        where = "" if stream is None else f" on stream {stream}"
        what = f"{'a frame' if kind is object else kind.__name__.upper()}{where}"
        aside: list[Heard] = []
        try:
            while True:
                heard = self.hear(what)
                if isinstance(heard.message, kind) and stream in {None, heard.stream}:
                    self.compare(heard, **fields)
                    return heard
                if isinstance(heard.message, wire.Ack):
                    continue
                if stream is None or heard.stream in {0, stream}:
                    raise self.unexpected(what, heard)
                if not among:
                    aside.append(heard)
        finally:
            self._inbox.extendleft(reversed(aside))

    def expect_any(self, stream: int) -> Heard:
        """The next frame of a stream but ACK, whatever it is."""
        while isinstance((heard := self.expect_heard(object, stream)).message, wire.Ack):
            pass
        return heard

    def compare(self, heard: Heard, /, clause: str = "", **fields: Any) -> None:
        """Fail unless the message has these values; the report names the first byte that differs."""
        wrong = {name: value for name, value in fields.items() if getattr(heard.message, name) != value}
        if not wrong:
            return
        wanted = forge.unjudged(heard.message, **wrong)
        try:
            expected = forge.frame(heard.stream, wanted, heard.payload)
            divergence = first_difference("the frame", expected, heard.raw + heard.payload)
        except BlockprotoError:
            divergence = None
        kind = type(heard.message).__name__.upper()
        raise Failed(
            f"{kind} has another {' and '.join(wrong)}",
            expected=describe(wanted, heard.stream),
            got=describe(heard.message, heard.stream),
            divergence=divergence,
            clause=clause,
        )

    def unexpected(self, what: str, heard: Heard) -> Failed:
        """The failure for a frame that came where something else had to come."""
        message = heard.message
        name = (
            f"ERROR {code_name(message.code)}{_objection(message)}"
            if isinstance(message, wire.Error)
            else type(message).__name__.upper()
        )
        return Failed(f"{name} came where {what} had to come", expected=what, got=str(heard))

    def expect_error(
        self, *codes: Code, stream: int, scope: Scope = Scope.STREAM, among: bool = False, **fields: Any
    ) -> wire.Error:
        """An ERROR about a stream with one of these codes, and this scope."""
        heard = self.expect_heard(wire.Error, stream, among=among)
        self.judge_error(heard, *codes, scope=scope)
        self.compare(heard, **fields)
        error = heard.message
        assert isinstance(error, wire.Error)
        return error

    def expect_refusal(self, *codes: Code) -> wire.Error | None:
        """The connection is refused: ERROR with one of these codes, then the end. A bare end is not strict (None).

        What else was under way may come before.
        """
        wanted = " or ".join(code.name for code in codes)
        while True:
            try:
                heard = self.hear(f"ERROR {wanted} (connection)")
            except Closed:
                self._lenient(f"the connection is closed without ERROR {wanted}")
                return None
            error = heard.message
            if isinstance(error, wire.Error):
                break
        self.judge_error(heard, *codes, scope=Scope.CONNECTION)
        self.compare(heard, clause="BP1-FRM-020")
        if heard.stream:
            raise Failed("ERROR of scope connection on a stream", got=str(heard), clause="BP1-FRM-020")
        self._expect_nothing_more()
        return error

    def judge_error(self, heard: Heard, *codes: Code, scope: Scope = Scope.STREAM) -> None:
        """Fail unless the frame is an ERROR with one of these codes and this scope."""
        error = heard.message
        if not isinstance(error, wire.Error):
            raise self.unexpected(f"ERROR {' or '.join(code.name for code in codes)}", heard)
        wanted = " or ".join(code.name for code in codes)
        if error.code not in codes:
            expected = forge.unjudged(error, code=int(codes[0]), scope=int(scope))
            raise Failed(
                f"ERROR {code_name(error.code)} came where ERROR {wanted} had to come",
                expected=describe(expected, heard.stream),
                got=describe(error, heard.stream),
                divergence=first_difference("the frame", forge.frame(heard.stream, expected), heard.raw),
            )
        if error.scope != scope:
            raise Failed(
                f"ERROR {code_name(error.code)} has scope {Scope(error.scope).name.lower()} instead of {scope.name.lower()}",
                expected=scope.name.lower(),
                got=describe(error, heard.stream),
            )

    def _expect_nothing_more(self) -> None:
        """After ERROR (connection) nothing comes any more (BP1-END-011)."""
        self.give_up()
        try:
            heard = self.hear("the end of the connection")
        except Closed:
            return
        except Hung:
            return  # it may read on for five seconds; a case of its own waits for that
        raise Failed("a frame came after ERROR (connection)", got=str(heard), clause="BP1-END-011")

    def ping(self, among: tuple[type[wire.Message], ...] = ()) -> list[Heard]:
        """Say PING and wait for its answer; returns what came before it. ACK may come, and what ``among`` names.

        This is how a case that must be ignored, or must not end the connection, ends.
        """
        self._pings += 1
        opaque = self._pings.to_bytes(8, "big")
        self.say(0, wire.Ping(opaque, 0))
        return self.wait_answer(opaque, among)

    def wait_answer(self, opaque: bytes, among: tuple[type[wire.Message], ...] = ()) -> list[Heard]:
        """Wait for the answer to a PING that was said."""
        before: list[Heard] = []
        while True:
            heard = self.hear("the answer to PING")
            message = heard.message
            if isinstance(message, wire.Ping) and message.answer:
                self.compare(heard, clause="BP1-END-002", opaque=opaque)
                return before
            if not isinstance(message, (wire.Ack, *among)):
                raise self.unexpected("the answer to PING", heard)
            before.append(heard)

    def expect_acked(self, stream: int, *blocknos: int) -> None:
        """Wait until these blocks are acknowledged on a stream."""
        while not self.acknowledges(stream, *blocknos):
            heard = self.hear(f"ACK of block {blocknos[-1]}")
            if not isinstance(heard.message, wire.Ack):
                raise self.unexpected(f"ACK of block {blocknos[-1]}", heard)

    def acknowledges(self, stream: int, *blocknos: int) -> bool:
        """Whether these blocks were named on a stream, by run or by position (whole blocks only)."""
        held = self.held[stream]
        whole = blocknum_of(held.position)
        return all(blockno in held.blocknos or blockno < whole for blockno in blocknos)

    def expect_closed(self) -> list[Heard]:
        """The other side ends the connection; returns the frames that came before, but CREDIT."""
        came = []
        while True:
            try:
                came.append(self.hear("the end of the connection"))
            except Closed:
                return came

    def expect_greeting(self) -> wire.Hello:
        """The server's preface and HELLO."""
        deadline = time.monotonic() + self.patience.answer_s
        got = self.raw(len(wire.PREFACE), "the preface", deadline)
        if got != wire.PREFACE:
            raise Failed(
                "the first eight bytes are not the preface",
                expected=wire.PREFACE.hex(" "),
                got=got.hex(" "),
                divergence=first_difference("the preface", wire.PREFACE, got),
                clause="BP1-HEL-002",
            )
        heard = self._read_frame("HELLO", deadline)
        if heard is None or not isinstance(heard.message, wire.Hello):
            raise Failed("the first frame is not HELLO", got=str(heard), clause="BP1-HEL-005")
        self.hello = heard.message
        return heard.message

    def greet(self, hello: wire.Hello | None = None, behind: bytes = b"") -> wire.Hello:
        """Say preface and HELLO (and bytes ``behind`` them, at once), and hear the server's."""
        self.ours = hello or self.ours
        self.send(wire.PREFACE + forge.frame(0, self.ours) + behind)
        return self.expect_greeting()

    def readable(self, timeout_s: float) -> bool:
        """Whether there is something to hear, or the end, within that time."""
        return bool(self._inbox or self._buffer) or readable(self._sock, timeout_s)

    def raw(self, count: int, what: str, deadline: float | None = None) -> bytes:
        """Exactly so many bytes, whatever they mean."""
        deadline = deadline or time.monotonic() + self.patience.answer_s
        while len(self._buffer) < count:
            self._receive(what, deadline)
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def push_back(self, raw: bytes) -> None:
        """Let bytes that ``raw`` gave come once more."""
        self._buffer[:0] = raw

    # ---- the end

    def give_up(self) -> None:
        """End our direction, as who closes does; what the other side still says can be read."""
        self._transcript.add(self._number, "-", "the harness sends nothing more")
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection; harmless when it is closed."""
        self._sock.close()

    def reset(self) -> None:
        """End the connection as a line that breaks does: with RST where the system allows it."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transcript.add(self._number, "-", "the harness resets the connection")
        self._sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- bytes

    def _segments(self, raw: bytes) -> list[bytes]:
        if not self._small:
            return [raw]
        singles = [raw[at : at + 1] for at in range(min(len(raw), SINGLE_BYTES))]
        return singles + [raw[at : at + ODD_PIECE] for at in range(SINGLE_BYTES, len(raw), ODD_PIECE)]

    def _send_all(self, raw: bytes, deaf: bool) -> None:
        """Send while what comes meanwhile is taken in, so that two sides never wait for each other."""
        view = memoryview(raw)
        deadline = time.monotonic() + self.patience.answer_s
        self._sock.setblocking(False)
        while view:
            try:
                sent = self._sock.send(view)
                view = view[sent:]
                deadline = time.monotonic() + self.patience.answer_s
            except BlockingIOError:
                if wait_for(
                    read=() if deaf else (self._sock,),
                    write=(self._sock,),
                    timeout_s=max(0.0, deadline - time.monotonic()),
                ):
                    more = self._sock.recv(1 << 16)
                    self._buffer += more
                    if not more:
                        raise ConnectionResetError("the other side has closed") from None
                if time.monotonic() >= deadline:
                    raise TimeoutError from None

    def _receive(self, what: str, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise Hung(f"nothing came in the time that {what} may take", expected=what)
        self._sock.settimeout(remaining)
        try:
            more = self._sock.recv(1 << 18)
        except TimeoutError:
            return
        except OSError as error:
            self._transcript.add(self._number, "-", f"the connection broke: {error.strerror or error}")
            more = b""
        if not more:
            self._transcript.add(self._number, "-", "the target closed the connection")
            raise Closed(f"the connection ended where {what} had to come", expected=what, got="the end")
        self._buffer += more

    def _read_frame(self, what: str, deadline: float) -> Heard | None:
        """The next frame, judged; None for CREDIT and for what is skipped."""
        header_bytes = self.raw(wire.HEADER_LENGTH, what, deadline)
        header = wire.decode_header(header_bytes)
        judge_lengths(header, header_bytes, self.ours)
        head = self.raw(header.head_length, "the rest of a head", deadline)
        self._transcript.add(self._number, "<", describe_frame(header, head), header_bytes + head)
        if not wire.check_frame(header_bytes, head, header.check):
            raise Failed("the check of a frame is wrong", got=header_bytes.hex(" "), clause="BP1-FRM-003")
        payload = self.raw(header.payload_length, "the rest of a payload", deadline)
        try:
            message = wire.decode_head(header, head)
        except BlockprotoError as error:
            raise Failed(
                "a frame does not follow its layout",
                got=f"{error}: {(header_bytes + head).hex(' ')}",
                clause="BP1-FRM-012",
            ) from error
        if message is None:
            return None
        heard = Heard(header.stream, message, payload, header_bytes + head)
        self._judge(heard)
        return self._take_in(heard)

    # ---- what was heard

    def _judge(self, heard: Heard) -> None:
        """Hold a frame against the rules of every case; ``client.visit`` has those of clients."""
        judge_frame(heard, self._opened, self.hello is not None)

    def _take_in(self, heard: Heard) -> Heard | None:
        message, stream = heard.message, heard.stream
        if isinstance(message, wire.Credit):
            self._take_credit(heard, message)
            return None
        if isinstance(message, wire.Ack):
            self.held[stream].add(message.position, message.held)
        elif isinstance(message, wire.Opened):
            self.held[stream] = Held()
            self.held[stream].add(message.position, message.held)
        elif heard.payload:
            self._count_payload(heard)
        elif isinstance(message, wire.Hello):
            self.hello = message
        return heard

    def _take_credit(self, heard: Heard, credit: wire.Credit) -> None:
        if credit.received > self._sent[heard.stream]:
            raise Failed(
                "CREDIT says that more was received than was sent", got=str(heard), clause="BP1-CRD-008"
            )
        self.credits.append((heard.stream, credit))
        self._allowed[heard.stream] = max(credit.allowance, self._allowed.get(heard.stream, 0))

    def _count_payload(self, heard: Heard) -> None:
        for stream in (0, heard.stream):
            self._came[stream] += len(heard.payload)
            granted = self._our_allowance(stream)
            if self._came[stream] > granted:
                raise Failed(
                    "payload beyond the credit that was granted", got=str(heard), clause="BP1-CRD-002"
                )
            window = self.ours.stream_allowance if stream else self.ours.connection_allowance
            if self.grants and granted - self._came[stream] < window // 2:
                self.grant(stream, self._came[stream] + window)
            elif self.grants and stream == 0 and self._is_early():
                self.grant(stream, 0)

    def _is_early(self) -> bool:
        """Whether a sender that has begun with little waits to hear what came (BP1-CRD-007)."""
        came = self._came[0]
        return came < EARLY_LENGTH and came - self._told >= min(max(EARLY_STEP, came // 4), EARLY_STEP_MOST)

    def _our_allowance(self, stream: int) -> int:
        least = self.ours.stream_allowance if stream else self.ours.connection_allowance
        return max(least, self._granted.get(stream, 0))

    def grant(self, stream: int, allowance: int) -> None:
        """Say CREDIT; an allowance that is lower than before grants nothing, and tells what was received."""
        self._granted[stream] = max(allowance, self._our_allowance(stream))
        if stream == 0:
            self._told = self._came[0]
        self.say(stream, wire.Credit(self._granted[stream], self._came[stream]))

    def came(self, stream: int = 0) -> int:
        """Payload bytes that came on a stream, or on the connection."""
        return self._came[stream]


def _objection(error: wire.Error) -> str:
    """What the other side says that it objects to."""
    text = error.text if len(error.text) <= TEXT_SHOWN_MAX else f"{error.text[:TEXT_SHOWN_MAX]}…"
    return f" ({show_name(text)})" if text else ""


def code_name(code: int) -> str:
    """The name of a code of the error table, or its number."""
    return Code(code).name if code in Code._value2member_map_ else f"code {code}"

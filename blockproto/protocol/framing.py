"""FrameReader: cuts received bytes into frames, and judges each by its limits before anything is kept for it.

    0 ≤ start ≤ end ≤ len(buffer): bytes before ``start`` are done with, those from ``start`` to ``end`` are not.

Rules:
    1. The reader lends its buffer: ``receive_buffer()`` → fill it → ``bytes_received(n)`` → ``next_frame()`` and
       ``take_payload()`` until they have nothing → again. A view that was handed out is good until the next
       ``receive_buffer()``.
    2. Order of judging (BP1-FRM-004): 16 bytes → head_length and length against the limits of the type → head → check.
       A frame that is refused has cost no memory.
    3. Payload is never gathered: it is handed out as it lies in the buffer, so that what is left over when the buffer is
       lent again is less than one header and head.
    4. A connection begins with a tiny buffer, gets a small one when that was filled to the brim, and then the great one, but
       never while the early limits hold: ten thousand strangers cost 8 KiB each, and one that rests has room for a PING.

Spec: BP1-FRM-002 to 010.
"""

from __future__ import annotations

from collections.abc import Collection

from ..errors import BadCheck, FrameTooLarge, LocalProtocolError, MalformedFrame
from ..wire import (
    HEAD_LENGTH_EARLY,
    HEAD_LENGTH_MAX,
    HEADER_LENGTH,
    MESSAGES,
    PAYLOAD_TYPES,
    PIECE_LENGTH_EARLY,
    UNKNOWN_LENGTH_MAX,
    Header,
    check_frame,
    decode_header,
)

RECEIVE_BUFFER_LENGTH = 256 * 1024
"""Bytes of the buffer of a connection that receives; 64 to 256 KiB measured best."""

START_BUFFER_LENGTH = 8 * 1024
"""Bytes of the buffer of a connection that has said little: any early head fits."""

IDLE_BUFFER_LENGTH = 128
"""Bytes of the buffer of a connection that has said nothing yet, or rests: room for a HELLO or a PING."""

assert RECEIVE_BUFFER_LENGTH > 2 * (HEADER_LENGTH + HEAD_LENGTH_MAX)
assert START_BUFFER_LENGTH > HEADER_LENGTH + HEAD_LENGTH_EARLY

_EMPTY = memoryview(b"")


class FrameReader:
    """One direction of a connection, as bytes come in.

    Attributes:
        buffer_length_max: the greatest buffer, in bytes; the session raises it.
        head_length_max: greatest head that is taken, in bytes; likewise.
        piece_length_max: greatest payload that is taken, in bytes; likewise.
    """

    __slots__ = (
        "_end", "_full", "_start", "_view", "buffer_length_max", "head_length_max", "piece_length_max",
    )  # fmt: skip

    def __init__(self) -> None:
        self.buffer_length_max = START_BUFFER_LENGTH
        self.head_length_max = HEAD_LENGTH_EARLY
        self.piece_length_max = PIECE_LENGTH_EARLY
        self._view = _EMPTY
        self._start = self._end = 0
        self._full = False

    @property
    def buffered(self) -> int:
        """Bytes that have come and were not handed out yet."""
        return self._end - self._start

    def receive_buffer(self) -> memoryview:
        """Free space to fill, never empty; what is not yet handed out moves to the front of the buffer.

        Call it when ``next_frame`` and ``take_payload`` have nothing more to give; views handed out before end here.

        Raises:
            LocalProtocolError: they had more to give, and there is no space.
        """
        if self._full:
            short = len(self._view) < START_BUFFER_LENGTH
            self._replace(START_BUFFER_LENGTH if short else self.buffer_length_max)
        elif not self._view:
            self._replace(IDLE_BUFFER_LENGTH)
        elif self._start:
            left = self._end - self._start
            self._view[:left] = self._view[self._start : self._end]
            self._start, self._end = 0, left
        if self._end == len(self._view):
            raise LocalProtocolError("the receive buffer is full of what nobody asked for with next_event()")
        return self._view[self._end :]

    def _replace(self, length: int) -> None:
        """Go over to a buffer of ``length`` bytes, with what is not yet handed out at its front."""
        left = self._end - self._start
        view = self._view if len(self._view) == length else memoryview(bytearray(length))
        view[:left] = self._view[self._start : self._end]
        self._view, self._start, self._end, self._full = view, 0, left, False

    def bytes_received(self, count: int) -> None:
        """``count`` bytes, at least 1, now stand at the beginning of the space that was lent."""
        self._end += count
        self._full = self._end == len(self._view)

    def idle(self) -> None:
        """Give memory back where it is not needed now; views handed out before end here."""
        if self.buffered < IDLE_BUFFER_LENGTH:
            self._replace(IDLE_BUFFER_LENGTH)
        elif self.buffered < HEADER_LENGTH + HEAD_LENGTH_EARLY:
            self._replace(START_BUFFER_LENGTH)

    def skip_prefix(self, expected: bytes) -> bool | None:
        """Pass over ``expected`` if it comes next: True done, False something else comes, None needs more bytes."""
        there = bytes(self._view[self._start : min(self._end, self._start + len(expected))])
        if not expected.startswith(there):
            return False
        if len(there) < len(expected):
            return None
        self._start += len(expected)
        return True

    def begins_with(self, beginnings: Collection[bytes]) -> bool:
        """Whether what comes next begins with one of ``beginnings``."""
        there = bytes(self._view[self._start : self._end])
        return there.startswith(tuple(beginnings))

    def next_frame(self) -> tuple[Header, memoryview] | None:
        """The next frame's header and head; its payload follows. None: needs more bytes.

        Raises:
            MalformedFrame, FrameTooLarge, BadCheck: in the order of judging.

        Spec: BP1-FRM-004.
        """
        start = self._start
        head_start = start + HEADER_LENGTH
        if head_start > self._end:
            return None
        header = decode_header(self._view, start)
        head_length = header.head_length
        if header.length != head_length or head_length > self.head_length_max:
            self._judge(header)
        head_end = head_start + head_length
        if head_end > self._end:
            return None
        head = self._view[head_start:head_end]
        if not check_frame(self._view[start:head_start], head, header.check):
            raise BadCheck("a frame's check is not that of its bytes")
        self._start = head_end
        return header, head

    def _judge(self, header: Header) -> None:
        """Hold the lengths of a frame that has a payload or a great head against their limits (BP1-FRM-005 to 008)."""
        length, number, _, head_length, _, _ = header
        if head_length > length:
            raise MalformedFrame(f"head_length {head_length} is more than length {length}")
        if head_length > self.head_length_max:
            raise FrameTooLarge(f"a head of {head_length} bytes; {self.head_length_max} are taken")
        if number in PAYLOAD_TYPES:
            if length - head_length > self.piece_length_max:
                raise FrameTooLarge(
                    f"a payload of {length - head_length} bytes; {self.piece_length_max} are taken"
                )
        elif number in MESSAGES:
            raise MalformedFrame(f"message type {number:#04x} with a payload")
        elif length > UNKNOWN_LENGTH_MAX:
            raise FrameTooLarge(f"{length} bytes of unknown message type {number:#04x}")

    def take_payload(self, most: int) -> memoryview | None:
        """What is there of the next ``most`` bytes, as a view of the buffer; None: nothing yet."""
        start = self._start
        end = min(self._end, start + most)
        if end == start:
            return None
        self._start = end
        return self._view[start:end]

    def discard(self) -> None:
        """Forget everything that has come."""
        self._start = self._end

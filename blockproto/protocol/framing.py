"""FrameReader: cut received bytes into frames, and check each against its limits before memory is used for it.

    0 ≤ start ≤ end ≤ len(buffer): bytes before ``start`` are done with, those from ``start`` to ``end`` are not.

Rules:
    1. The reader lends its buffer: ``receive_buffer()`` → fill it → ``bytes_received(n)`` → ``next_frame()`` and
       ``take_payload()`` until they have nothing → again. A view is valid until the next ``receive_buffer()``.
    2. Order of checks (BP1-FRM-004): 16 bytes → head_length and length against the limits of the type → head → check.
       A frame that is refused has cost no memory.
    3. Payload is never gathered: it is handed out in place, so that less than one header and head is left over when the
       buffer is lent again.
    4. A connection begins with a tiny buffer; when that was full it gets a small one, and after the early limits the large
       one. So ten thousand unidentified connections cost 8 KiB each, and an idle one has room for a PING.

Spec: BP1-FRM-002 to 010.
"""

from __future__ import annotations

from collections.abc import Collection

from ..errors import BadCheck, FrameTooLarge, LocalProtocolError, MalformedFrame
from ..wire import (
    FILES_TYPES,
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
"""Bytes of the large buffer; 64 to 256 KiB measured best."""

START_BUFFER_LENGTH = 8 * 1024
"""Bytes of the small buffer, in which every early head fits."""

IDLE_BUFFER_LENGTH = 128
"""Bytes of the tiny buffer, of a new or idle connection: room for a HELLO or a PING."""

assert RECEIVE_BUFFER_LENGTH > 2 * (HEADER_LENGTH + HEAD_LENGTH_MAX)
assert START_BUFFER_LENGTH > HEADER_LENGTH + HEAD_LENGTH_EARLY

_EMPTY = memoryview(b"")


class FrameReader:
    """The received bytes of a connection.

    Attributes:
        buffer_length_max: the largest buffer, in bytes; the session raises it.
        head_length_max: the largest head to accept, in bytes; likewise.
        piece_length_max: the largest payload to accept, in bytes; likewise.
        files: whether FILES and STORED are known on this connection; likewise.
    """

    __slots__ = (
        "_end", "_full", "_start", "_view", "buffer_length_max", "files", "head_length_max", "piece_length_max",
    )  # fmt: skip

    def __init__(self) -> None:
        self.buffer_length_max = START_BUFFER_LENGTH
        self.head_length_max = HEAD_LENGTH_EARLY
        self.piece_length_max = PIECE_LENGTH_EARLY
        self.files = False
        self._view = _EMPTY
        self._start = self._end = 0
        self._full = False

    @property
    def buffered(self) -> int:
        """Received bytes that were not handed out yet."""
        return self._end - self._start

    def receive_buffer(self) -> memoryview:
        """Lend free space to fill, never empty; bytes that were not handed out move to the front of the buffer.

        Call it when ``next_frame`` and ``take_payload`` have nothing more; earlier views become invalid.

        Raises:
            LocalProtocolError: they had more, and there is no space.
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
        return self._view[self._end :] if self._end else self._view

    def _replace(self, length: int) -> None:
        """Replace the buffer by one of ``length`` bytes; bytes that were not handed out move to its front."""
        left = self._end - self._start
        view = self._view if len(self._view) == length else memoryview(bytearray(length))
        view[:left] = self._view[self._start : self._end]
        self._view, self._start, self._end, self._full = view, 0, left, False

    def bytes_received(self, count: int) -> None:
        """``count`` bytes, at least 1, were put at the beginning of the space last lent."""
        self._end += count
        self._full = self._end == len(self._view)

    def idle(self) -> None:
        """Give back memory that is not needed now; earlier views become invalid."""
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
        """Check the lengths of a frame with a payload or a long head against the limits (BP1-FRM-005 to 008)."""
        length, number, _, head_length, _, _ = header
        if head_length > length:
            raise MalformedFrame(f"head_length {head_length} is more than length {length}")
        if head_length > self.head_length_max:
            raise FrameTooLarge(f"a head of {head_length} bytes; {self.head_length_max} are taken")
        known = number in MESSAGES and (self.files or number not in FILES_TYPES)
        if known and number in PAYLOAD_TYPES:
            if length - head_length > self.piece_length_max:
                raise FrameTooLarge(
                    f"a payload of {length - head_length} bytes; {self.piece_length_max} are taken"
                )
        elif known:
            raise MalformedFrame(f"message type {number:#04x} with a payload")
        elif length > UNKNOWN_LENGTH_MAX:
            raise FrameTooLarge(f"{length} bytes of unknown message type {number:#04x}")

    def take_payload(self, most: int) -> memoryview | None:
        """Take up to ``most`` of the next bytes, as a view of the buffer; None if there are none yet."""
        start = self._start
        end = min(self._end, start + most)
        if end == start:
            return None
        self._start = end
        return self._view[start:end]

    def discard(self) -> None:
        """Drop everything received."""
        self._start = self._end

"""One direction of a line: a bounded buffer, a transmitter, a distance.

    send → buffer (``buffer_bytes``) → transmitter (``rate``) → distance (``delay_s``) → receive

Bytes are cut into packets; a packet arrives when its last bit has left the transmitter and the distance has passed.
``send`` waits while the buffer is full, as a socket does; who does not receive fills the line and then stops the sender.
All times are computed, none is measured: who wakes up late changes nothing for what comes after.
"""

from __future__ import annotations

import math
import random
import sys
from collections import deque
from collections.abc import Callable

import trio

PACKET_LENGTH_MIN = 1448
"""Bytes: what an Ethernet frame carries of TCP."""
PACKET_LENGTH_MAX = 64 * 1024
PACKET_S = 0.005
"""Line time of a packet on a fast line: fewer and longer packets, so that the model keeps up."""
BUFFER_S = 0.1
"""Line time of what the buffer holds when nothing else was said."""
BUFFER_LEAST = 8 * 1024
WINDOW_BYTES = 256 * 1024
"""What may lie unread at the far end besides what the line itself holds."""
WINDOW_UNLIMITED_BYTES = 16 << 20
"""What a line without a rate holds."""
ROUNDING_S = 1e-9
"""Sums of times differ by less than this from what they ought to be."""


class LineClock:
    """Trio's clock, which stands still while the line is a black hole; waiting on it can be interrupted."""

    def __init__(self) -> None:
        self.stopped = False
        self._lost_s = 0.0
        self._stopped_at = 0.0
        self._changed = trio.Event()

    def now(self) -> float:
        """The time of the line, in seconds."""
        return (self._stopped_at if self.stopped else trio.current_time()) - self._lost_s

    def stop(self) -> None:
        """Stand still. Harmless when repeated."""
        if not self.stopped:
            self._stopped_at = trio.current_time()
            self.stopped = True
            self.tell()

    def go(self) -> None:
        """Go on from where it stood."""
        if self.stopped:
            self._lost_s += trio.current_time() - self._stopped_at
            self.stopped = False
            self.tell()

    def tell(self) -> None:
        """Something changed: everybody who waits looks again."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, until: float) -> None:
        """Wait until that time of the line, or until something changes."""
        if self.stopped or until == math.inf:
            await self._changed.wait()
            return
        with trio.move_on_at(until + self._lost_s):
            await self._changed.wait()


class Allowance:
    """How many bytes may still be handed on before the line ends; both directions use it."""

    def __init__(self, left: float, spent: Callable[[], None]) -> None:
        self.left = left
        self._spent = spent

    def use(self, length: int) -> None:
        """``length`` bytes were handed on."""
        self.left -= length
        if self.left <= 0:
            self.left = math.inf
            self._spent()


class Pipe:
    """One direction.

    Args:
        clock: the line's; it may stand still.
        rng: says which bits are flipped.
        allowance: how much may still be handed on, shared by both directions.
        rate_bytes_s: bytes per second; None: no limit.
        delay_s: how long a bit travels.
        buffer_bytes: what waits before the transmitter at most; None: ``BUFFER_S`` of line time.
        slice_bytes: no more is handed on at once; None: whatever has arrived.
        flip_every_bytes: one bit is flipped every so many bytes on the average; None: none.

    Attributes:
        taken: bytes that were put into it.
        handed_on: bytes that came out.
        flipped: bits that were changed.
        deserted: whether nobody receives any more.
    """

    def __init__(
        self,
        clock: LineClock,
        rng: random.Random,
        allowance: Allowance,
        *,
        rate_bytes_s: float | None = None,
        delay_s: float = 0.0,
        buffer_bytes: int | None = None,
        slice_bytes: int | None = None,
        flip_every_bytes: float | None = None,
    ) -> None:
        self.delay_s = delay_s
        self.taken = 0
        self.handed_on = 0
        self.flipped = 0
        self.deserted = False
        self._clock = clock
        self._rng = rng
        self._allowance = allowance
        self._rate = rate_bytes_s or math.inf
        self._slice = slice_bytes or sys.maxsize
        self._flip_every = flip_every_bytes
        self._flip_in = self._draw_flip()
        self._packet, self._buffer, self._window = _lengths(self._rate, delay_s, buffer_bytes)
        self._packets: deque[tuple[float, memoryview]] = deque()
        self._held = 0
        self._idle_at = 0.0
        self._reset_at = math.inf
        self._closed = False

    # ---- the near end -----------------------------------------------------------------------------------------

    async def send(self, content: bytes | bytearray | memoryview) -> None:
        """Put bytes into the line; returns when the last of them is in its buffer.

        Raises:
            trio.BrokenResourceError: the line was reset.
            trio.ClosedResourceError: it was closed.

        Cancellation: an unknown part is under way. No checkpoint while there is room.
        """
        view = memoryview(bytes(content))
        while view:
            self._check_open()
            now = self._clock.now()
            room_at = self._room_at(min(len(view), self._packet))
            if room_at > now + ROUNDING_S:
                await self._clock.wait(min(room_at, self._reset_at))
            else:
                self._put(view[: self._packet], now)
                view = view[self._packet :]
        self._check_open()

    def close(self) -> None:
        """Nothing more is sent; what was sent arrives, and then the end."""
        if not self._closed:
            self._closed = True
            self._idle_at = max(self._idle_at, self._clock.now())
            self._clock.tell()

    def reset(self, after_s: float = 0.0) -> None:
        """Break it; what has not been received ``after_s`` from now is lost."""
        self._reset_at = min(self._reset_at, self._clock.now() + after_s)
        self._clock.tell()

    def _check_open(self) -> None:
        self._check_whole()
        if self._closed:
            raise trio.ClosedResourceError("the line was closed")

    def _check_whole(self) -> None:
        if self._clock.now() >= self._reset_at - ROUNDING_S:
            self._packets.clear()
            raise trio.BrokenResourceError("the line was reset")

    def _room_at(self, length: int) -> float:
        """When there is room for ``length`` bytes: never by itself when the far end has to receive first."""
        if self._held + length > self._window:
            return math.inf
        return self._idle_at - (self._buffer - length) / self._rate

    def _put(self, packet: memoryview, now: float) -> None:
        self.taken += len(packet)
        self._idle_at = max(self._idle_at, now) + len(packet) / self._rate
        if not self.deserted:
            self._held += len(packet)
            self._packets.append((self._idle_at + self.delay_s, packet))
            if len(self._packets) == 1:
                self._clock.tell()

    # ---- the far end ------------------------------------------------------------------------------------------

    async def receive(self, length_max: int) -> bytes:
        """What has arrived, at least one byte; none at the end.

        Raises:
            trio.BrokenResourceError: the line was reset.
            trio.ClosedResourceError: this end has left.

        Cancellation: nothing is lost. No checkpoint when something has arrived.
        """
        while True:
            self._check_whole()
            if self.deserted:
                raise trio.ClosedResourceError("this end of the line was closed")
            now = self._clock.now()
            arrives = self._packets[0][0] if self._packets else self._end_arrives()
            if arrives > now + ROUNDING_S or self._clock.stopped:
                await self._clock.wait(min(arrives, self._reset_at))
            elif not self._packets:
                return b""
            else:
                return self._take(int(min(length_max, self._slice, self._allowance.left)), now)

    @property
    def arrived(self) -> bool:
        """Whether there is something to receive now."""
        if self._clock.stopped or not self._packets:
            return False
        return self._packets[0][0] <= self._clock.now() + ROUNDING_S

    def leave(self) -> bool:
        """Receive no more: what still comes is lost. Returns whether anything had arrived and was not read."""
        self.deserted = True
        now = self._clock.now()
        unread = any(arrives <= now for arrives, _ in self._packets)
        self._packets.clear()
        self._held = 0
        self._clock.tell()
        return unread

    def _end_arrives(self) -> float:
        return self._idle_at + self.delay_s if self._closed else math.inf

    def _take(self, most: int, now: float) -> bytes:
        was_full = self._held + self._packet > self._window
        parts: list[memoryview] = []
        while most and self._packets and self._packets[0][0] <= now + ROUNDING_S:
            arrives, packet = self._packets.popleft()
            parts.append(packet[:most])
            if len(packet) > most:
                self._packets.appendleft((arrives, packet[most:]))
            most -= len(parts[-1])
        content = self._damaged(b"".join(parts))
        self._held -= len(content)
        self.handed_on += len(content)
        if was_full:
            self._clock.tell()
        self._allowance.use(len(content))
        return content

    def _damaged(self, content: bytes) -> bytes:
        """``content`` with those bits changed whose turn it is."""
        if self._flip_in >= len(content):
            self._flip_in -= len(content)
            return content
        changed = bytearray(content)
        while self._flip_in < len(changed):
            changed[int(self._flip_in)] ^= 1 << self._rng.randrange(8)
            self.flipped += 1
            self._flip_in += 1 + self._draw_flip()
        self._flip_in -= len(changed)
        return bytes(changed)

    def _draw_flip(self) -> float:
        """How many bytes stay whole before the next flipped bit."""
        return math.inf if self._flip_every is None else int(self._rng.expovariate(1 / self._flip_every))


def _lengths(rate_bytes_s: float, delay_s: float, buffer_bytes: int | None) -> tuple[int, int, int]:
    """The greatest packet, what the buffer holds, and what the direction holds in all, in bytes."""
    if rate_bytes_s == math.inf:
        return PACKET_LENGTH_MAX, WINDOW_UNLIMITED_BYTES, WINDOW_UNLIMITED_BYTES
    packet = min(max(PACKET_LENGTH_MIN, int(rate_bytes_s * PACKET_S)), PACKET_LENGTH_MAX)
    buffer = max(BUFFER_LEAST, int(rate_bytes_s * BUFFER_S)) if buffer_bytes is None else buffer_bytes
    buffer = max(buffer, packet)
    return packet, buffer, buffer + int(rate_bytes_s * delay_s) + WINDOW_BYTES

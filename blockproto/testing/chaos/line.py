"""A line of two directions, and how it may break.

A line ends as connections do (``How``): reset, which loses what is under way; closed in order, which does not; or a black
hole, in which nothing passes and nobody is told, until it heals. What the line draws by lot comes from one seeded
generator, so the same bytes meet the same fate again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import trio

from .pipe import PACKET_LENGTH_MAX, Allowance, LineClock, Pipe


class How(Enum):
    """How a line ends."""

    RESET = "reset"
    CLOSED = "closed"
    BLACK_HOLE = "black hole"


@dataclass(frozen=True, slots=True)
class Amount:
    """A number, or one that each line draws for itself between two bounds, both included."""

    least: float
    most: float

    @classmethod
    def of(cls, number: float) -> Amount:
        """Exactly ``number``."""
        return cls(number, number)

    def draw(self, rng: random.Random) -> float:
        """The number for one line."""
        return self.least if self.least == self.most else rng.uniform(self.least, self.most)


@dataclass(frozen=True, slots=True)
class Ending:
    """When and how a line ends by itself.

    Attributes:
        how: see How.
        after_bytes: so many bytes were handed on, both directions together; the last of them arrives.
        after_s: so long after it was opened. One of the two is given.
        heals_after_s: a black hole ends after so long, and what was under way goes on; None: never.
    """

    how: How
    after_bytes: Amount | None = None
    after_s: Amount | None = None
    heals_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a line is like.

    Attributes:
        up_bytes_s, down_bytes_s: rate of each direction, bytes per second; None: no limit.
        round_trip_s: seconds there and back; each direction takes half of it.
        buffer_bytes: what waits before the transmitter at most; None: ``BUFFER_S`` of line time.
        slice_bytes: no more than so many bytes are handed on at once; None: whatever has arrived.
        flip_every_bytes: one bit is wrong every so many bytes on the average; None: none.
        ending: how it ends by itself; None: it does not.
    """

    up_bytes_s: float | None = None
    down_bytes_s: float | None = None
    round_trip_s: float = 0.0
    buffer_bytes: int | None = None
    slice_bytes: int | None = None
    flip_every_bytes: float | None = None
    ending: Ending | None = None


class Line:
    """Both directions between a near end (who dialled) and a far end.

    Args:
        conditions: what it is like.
        rng: what it draws by lot.

    Attributes:
        up, down: from the near end to the far one, and back.
        ended: how it ended by itself or by ``end``; None while it did not, and after a black hole has healed.
        holes: how often it became a black hole.
        on_change: called with what happens to it: a value of How, or ``healed``.
    """

    def __init__(self, conditions: Conditions, rng: random.Random) -> None:
        self.ended: How | None = None
        self.holes = 0
        self.on_change: Callable[[str], None] = lambda _: None
        self._ending = conditions.ending
        self._clock = LineClock()
        self._trouble = trio.Event()
        after_bytes = self._ending.after_bytes if self._ending is not None else None
        after_s = self._ending.after_s if self._ending is not None else None
        self._ends_after_s = None if after_s is None else after_s.draw(rng)
        left = math.inf if after_bytes is None else max(1, round(after_bytes.draw(rng)))
        allowance = Allowance(left, self._end_by_itself)
        self.up, self.down = (
            Pipe(
                self._clock,
                rng,
                allowance,
                rate_bytes_s=rate_bytes_s,
                delay_s=conditions.round_trip_s / 2,
                buffer_bytes=conditions.buffer_bytes,
                slice_bytes=conditions.slice_bytes,
                flip_every_bytes=conditions.flip_every_bytes,
            )
            for rate_bytes_s in (conditions.up_bytes_s, conditions.down_bytes_s)
        )

    @property
    def broken(self) -> bool:
        """Whether it was reset, and what was under way is lost."""
        return self.ended is How.RESET

    def streams(self) -> tuple[LineStream, LineStream]:
        """The near and the far end as Trio streams."""
        return LineStream(self.up, self.down), LineStream(self.down, self.up)

    async def run(self) -> None:
        """End the line when its time has come, and heal its black hole. Returns when nothing is left to do."""
        if self._ending is None:
            return
        if self._ends_after_s is not None:
            await trio.sleep(self._ends_after_s)
            self._end_by_itself()
        await self._trouble.wait()
        if self.ended is How.BLACK_HOLE and self._ending.heals_after_s is not None:
            await trio.sleep(self._ending.heals_after_s)
            self.heal()

    def end(self, how: How) -> None:
        """End it now. A black hole can be healed; what is reset or closed stays so."""
        if self.broken:
            return
        self.ended = how
        self._trouble.set()
        self.on_change(how.value)
        if how is How.BLACK_HOLE:
            self.holes += 1
            self._clock.stop()
            return
        for pipe in (self.up, self.down):
            if how is How.RESET:
                pipe.reset()
            else:
                pipe.close()

    def heal(self) -> None:
        """Let a black hole pass: what was under way goes on, later by as long as it lasted."""
        if self.ended is How.BLACK_HOLE:
            self.ended = None
            self._clock.go()
            self.on_change("healed")

    def _end_by_itself(self) -> None:
        if self.ended is None and self._ending is not None:
            self.end(self._ending.how)


class LineStream(trio.abc.Stream):
    """One end of a line as a Trio stream, which breaks as TCP breaks.

    Who closes with bytes unread, or is sent more afterwards, resets the line: the other end loses what it has not read.
    """

    def __init__(self, outgoing: Pipe, incoming: Pipe) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See trio.abc.SendStream; returns when the line's buffer has taken it."""
        await trio.lowlevel.checkpoint()
        await self.put(data)

    async def put(self, data: bytes | bytearray | memoryview) -> None:
        """Like ``send_all``, but without a checkpoint while there is room, as a socket would take it."""
        await self._outgoing.send(data)
        if self._outgoing.deserted:
            answered_s = self._outgoing.delay_s + self._incoming.delay_s
            self._incoming.reset(answered_s)
            self._outgoing.reset(answered_s)

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See trio.abc.ReceiveStream."""
        await trio.lowlevel.checkpoint()
        return await self.take(max_bytes or PACKET_LENGTH_MAX)

    @property
    def arrived(self) -> bool:
        """Whether there is something to take at once."""
        return self._incoming.arrived

    async def take(self, length_max: int) -> bytes:
        """Like ``receive_some``, but without a checkpoint when something has arrived."""
        return await self._incoming.receive(length_max)

    async def aclose(self) -> None:
        """See trio.abc.AsyncResource."""
        if not self._closed:
            self._closed = True
            if self._incoming.leave():
                self._outgoing.reset(self._outgoing.delay_s)
            self._outgoing.close()
        await trio.lowlevel.checkpoint()

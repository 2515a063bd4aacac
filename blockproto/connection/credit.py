"""When to send CREDIT: often enough that a sender knows its line, seldom enough that it costs nothing.

    early    within the first megabytes, for every few KiB: a sender begins with little
    soon     ``EVERY_S`` after the last time, however little it is
    at once  for a quarter of the window

Small amounts have to be granted too: a sender whose streams share the line sends no more until it hears what has come.

Spec: BP1-CRD-006, BP1-CRD-007.
"""

from __future__ import annotations

import math

from ..protocol.session import Session
from .writer import Writer

EVERY_S = 0.05
EARLY_LENGTH = 8 * 1024 * 1024
"""Payload bytes from the beginning of a connection that count as early."""
EARLY_STEP = 16 * 1024
EARLY_STEP_MOST = 64 * 1024
"""At most this many bytes between early grants: a sender may not be allowed more under way."""
_LEAST = 1
_LOOK = 128 * 1024
"""Bytes that have to come before the size of a grant is computed."""


class CreditPolicy:
    """Grants credit for the receiving side of one connection.

    Args:
        session: knows what may be granted.
        writer: sends it.
    """

    __slots__ = ("_came", "_said_s", "_session", "_told", "_waits", "_writer")

    def __init__(self, session: Session, writer: Writer) -> None:
        self._session = session
        self._writer = writer
        self._said_s = -EVERY_S
        self._came = 0
        self._told = 0
        self._waits = False

    @property
    def due_s(self) -> float:
        """When to grant what has been too little so far, in Trio's time; infinity if there is nothing."""
        return self._said_s + EVERY_S if self._waits else math.inf

    def received(self, length: int, now_s: float) -> None:
        """Grant what is due after ``length`` bytes came and were handled; the rest a little later."""
        self._came += length
        self.look(now_s)

    def look(self, now_s: float) -> None:
        """Grant what is due now."""
        soon = now_s >= self._said_s + EVERY_S or self._is_early()
        self._waits = not soon
        if not soon and self._came < _LOOK:
            return
        self._came = 0
        if self._grant(_LEAST if soon else self._much):
            self._said_s = now_s

    def caught_up(self, *, more_waits: bool) -> None:
        """Grant what a stream's backlog has freed: at once, or, if more of it waits, when it is much."""
        self._grant(self._much if more_waits else _LEAST)

    def _is_early(self) -> bool:
        total = self._session.payload_received
        step = min(max(EARLY_STEP, total // 4), EARLY_STEP_MOST)
        return total < EARLY_LENGTH and total - self._told >= step

    @property
    def _much(self) -> int:
        """Bytes that are granted at once."""
        limits = self._session.limits
        return min(limits.stream_allowance, limits.connection_allowance) // 4

    def _grant(self, least: int) -> bool:
        """Send CREDIT wherever at least ``least`` more bytes can be granted; returns whether any was sent."""
        frames = self._session.credits_due(least)
        for frame in frames:
            self._writer.queue(frame)
        if frames:
            self._told = self._session.payload_received
        return bool(frames)

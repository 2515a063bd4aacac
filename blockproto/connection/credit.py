"""When CREDIT is said: often enough that a sender knows its line, seldom enough that it costs nothing.

    early    of the first megabytes whenever a little more has come: a sender begins with little
    soon     ``EVERY_S`` after the last time, however little it is
    at once  when it is a quarter of the window

The little must be granted too: a sender whose streams share the line sends no more until it hears what has come.

Spec: BP1-CRD-006, BP1-CRD-007.
"""

from __future__ import annotations

import math

from ..protocol.session import Session
from .writer import Writer

EVERY_S = 0.05
EARLY_LENGTH = 8 * 1024 * 1024
"""Bytes of a connection's payload that are early."""
EARLY_STEP = 16 * 1024
EARLY_STEP_MOST = 64 * 1024
"""A sender that has begun with little must not have to wait for more than it may send."""
_LEAST = 1
_LOOK = 128 * 1024
"""So much has to come before it is looked whether it is a quarter of the window."""


class CreditPolicy:
    """What the receiving side of one connection grants.

    Args:
        session: knows what may be granted.
        writer: what is granted is said there.
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
        """When something is to be granted that was too little until then; infinity if nothing waits."""
        return self._said_s + EVERY_S if self._waits else math.inf

    def received(self, length: int, now_s: float) -> None:
        """``length`` bytes came and were handled: grant what is due, or a little later."""
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
        """A stream's bytes were written: its sender may be waiting for the credit, unless more of it waits here."""
        self._grant(self._much if more_waits else _LEAST)

    def _is_early(self) -> bool:
        total = self._session.payload_received
        step = min(max(EARLY_STEP, total // 4), EARLY_STEP_MOST)
        return total < EARLY_LENGTH and total - self._told >= step

    @property
    def _much(self) -> int:
        """So many bytes that may come anew are granted at once."""
        limits = self._session.limits
        return min(limits.stream_allowance, limits.connection_allowance) // 4

    def _grant(self, least: int) -> bool:
        """Say CREDIT for whatever ``least`` bytes more can be granted for; whether there was something."""
        frames = self._session.credits_due(least)
        for frame in frames:
            self._writer.queue(frame)
        if frames:
            self._told = self._session.payload_received
        return bool(frames)

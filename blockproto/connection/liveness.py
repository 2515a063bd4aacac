"""Liveness: whether the peer of one connection is alive, and when to send PING. Arithmetic on times handed in.

Any byte is a sign of life, not only a whole frame. A client that has heard nothing for as long as ``KeepAlive`` says, or has
sent nothing for as long as it promised, sends PING and gives the peer ``ANSWER_S`` from then on for any byte: a process that
was stopped, or a machine that was suspended, asks before it judges. A server judges by what the client promised.

Spec: BP1-END-001 to 007, BP1-END-014 to 016, BP1-HEL-014.
"""

from __future__ import annotations

import enum
import math

from .keepalive import KeepAlive

GREETING_S = 10.0
"""How long preface and HELLO may take (BP1-LIM)."""
HEAD_S = 10.0
"""How long a head may take once it has begun (BP1-LIM)."""
SILENCE_S = 600.0
"""How long a client may be silent that has not promised when it will next be heard."""
ANSWER_S = 15.0
"""How long after a PING a client waits for a byte."""


class Due(enum.Enum):
    """What is due at a time."""

    NOTHING = enum.auto()
    PING = enum.auto()
    HEAD_LATE = enum.auto()
    DEAD = enum.auto()


class Liveness:
    """The times of one connection, in seconds of one clock.

    Args:
        keep_alive: when to say PING (a client), or None (a server).
        now_s: the time.
    """

    __slots__ = (
        "_asked_s",
        "_begun_s",
        "_greeted",
        "_head_begun_s",
        "_keep_alive",
        "_pinged_s",
        "_promise_s",
        "_said_s",
        "_silence_s",
        "busy",
        "heard_s",
    )

    def __init__(self, keep_alive: KeepAlive | None, now_s: float) -> None:
        self.busy = False
        self._keep_alive = keep_alive
        self._greeted = False
        self._head_begun_s = math.inf
        self._silence_s = SILENCE_S if keep_alive is None else math.inf
        self._pinged_s = math.inf
        self._promise_s = math.inf
        self._asked_s = 0.0
        self._begun_s = self._said_s = self.heard_s = now_s

    def begin(self, now_s: float) -> None:
        """The connection is established."""
        self._begun_s = self._said_s = self.heard_s = now_s

    def said(self, now_s: float) -> None:
        """Something was written."""
        self._said_s = now_s

    def heard(self, now_s: float, *, in_head: bool) -> None:
        """Bytes came; ``in_head``: they end within a header or head."""
        if self._pinged_s != math.inf:
            self._pinged_s = math.inf
            if self._keep_alive is not None:
                self._keep_alive.held(self._asked_s)
        self.heard_s = now_s
        if not in_head:
            self._head_begun_s = math.inf
        elif self._head_begun_s == math.inf:
            self._head_begun_s = now_s

    def frame_ended(self) -> None:
        """A head is complete: the next one has its full time."""
        self._head_begun_s = math.inf

    def greeted(self) -> None:
        """The peer's preface and HELLO have come."""
        self._greeted = True

    def promised(self, next_s: int) -> None:
        """The peer promised to be heard within ``next_s`` seconds; 0 takes that back (BP1-END-003)."""
        default = SILENCE_S if self._keep_alive is None else math.inf
        self._silence_s = max(1.0, 2.0 * next_s) if next_s else default

    def ping_said(self, now_s: float) -> int:
        """A PING is being sent; returns its next_s."""
        assert self._keep_alive is not None
        self._asked_s = now_s - max(self.heard_s, self._said_s)
        self._pinged_s = self._said_s = now_s
        next_s = round(self._keep_alive.every_s(busy=self.busy))
        self._promise_s = float(next_s)
        return next_s

    def lost(self) -> None:
        """The connection broke or fell silent; if a PING was unanswered, learn from that about the network."""
        if self._pinged_s != math.inf and self._keep_alive is not None:
            self._keep_alive.failed(self._asked_s)

    def deadline_s(self) -> float:
        """When to call ``due`` again, unless bytes come before."""
        deadline_s = min(self.heard_s + self._silence_s, self._head_begun_s + HEAD_S)
        if not self._greeted:
            return min(deadline_s, self._begun_s + GREETING_S)
        return min(deadline_s, self._ping_s(), self._pinged_s + ANSWER_S)

    def due(self, now_s: float) -> Due:
        """What is due now."""
        if not self._greeted:
            return Due.DEAD if now_s >= self._begun_s + GREETING_S else Due.NOTHING
        if now_s >= self._head_begun_s + HEAD_S:
            return Due.HEAD_LATE
        if now_s >= min(self.heard_s + self._silence_s, self._pinged_s + ANSWER_S):
            return Due.DEAD
        return Due.PING if now_s >= self._ping_s() else Due.NOTHING

    def _ping_s(self) -> float:
        """When to send PING: to hear from the peer, or to be heard as promised."""
        if self._keep_alive is None or self._pinged_s != math.inf:
            return math.inf
        return min(self.heard_s + self._keep_alive.every_s(busy=self.busy), self._said_s + self._promise_s)

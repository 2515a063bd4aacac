"""The minimum rate of a peer that has begun a block or a frame: arithmetic on times and totals handed in.

    at the beginning of a span    blocks and frames that are not whole, with credit for more of them
    ``SPAN_S`` later              one of them is still not whole, and fewer than ``SPAN_BYTES_LEAST`` bytes of payload came

Then the peer is too slow: it holds a file and memory for nothing. A peer that has begun nothing, or has no credit, may be
silent.

Spec: BP1-LIM-005.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set

SPAN_S = 60.0
SPAN_BYTES_LEAST = 61_440
_LOOKED_LATE_S = 10.0

Begun = tuple[int, int]
"""A block or frame that was begun: its stream, and which of that stream."""

_NOTHING: Set[Begun] = frozenset()
"""One for all connections: an empty set takes 216 bytes."""


class MinimumRate:
    """Measures one connection in spans, one after another while something is unfinished.

    Args:
        begun: returns what is not whole and for which there is credit.
    """

    __slots__ = ("_at_first", "_begun", "_received", "until_s")

    def __init__(self, begun: Callable[[], Set[Begun]]) -> None:
        self._begun = begun
        self._at_first = _NOTHING
        self._received = 0
        self.until_s = math.inf

    def began(self, now_s: float, received: int) -> None:
        """Something was begun; ``received``: the connection's payload so far, in bytes."""
        if self.until_s == math.inf:
            self._start(now_s, received)

    def too_slow(self, now_s: float, received: int) -> bool:
        """Whether the span that ends now was too slow; begins the next one.

        False if it is looked at long after its end: this side was busy or asleep.
        """
        if now_s < self.until_s:
            return False
        late = now_s > self.until_s + _LOOKED_LATE_S
        dawdled = received - self._received < SPAN_BYTES_LEAST and not self._at_first.isdisjoint(
            self._begun()
        )
        self._start(now_s, received)
        return dawdled and not late

    def _start(self, now_s: float, received: int) -> None:
        self._at_first = self._begun()
        self._received = received
        self.until_s = now_s + SPAN_S if self._at_first else math.inf

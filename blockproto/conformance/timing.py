"""How long to wait: a multiple of the measured round trip, at least one second, times one global factor.

No case has a timeout of its own, but for one that gives much to read. What must come, comes within ``answer_s``; a slow
machine or line is met by ``--slow 4``, not by touching cases. Deadlines of the protocol itself (10 seconds for a head) are
the protocol's: a case that waits for one adds it to ``answer_s``.
"""

from __future__ import annotations

from dataclasses import dataclass

ANSWER_LEAST_S = 1.0
"""The least time that anything is given."""

ANSWER_USUAL_S = 5.0
"""The time an answer is given before a round trip was measured, and on any line that is faster."""

ROUND_TRIPS = 50
"""How many measured round trips an answer may take; some answers wait for a disk."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what.

    Args:
        slow: factor on everything; 1 for a machine that has little else to do.
        round_trip_s: the slowest PING and sanity upload that was measured, seconds.
    """

    slow: float = 1.0
    round_trip_s: float = 0.0

    @property
    def answer_s(self) -> float:
        """Seconds that an answer may take."""
        return max(ANSWER_LEAST_S, self.slow * max(ANSWER_USUAL_S, ROUND_TRIPS * self.round_trip_s))

    def measured(self, round_trip_s: float) -> Patience:
        """The same with another measured round trip."""
        return Patience(self.slow, round_trip_s)

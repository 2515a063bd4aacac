"""How fast the line is, from what the peer says it received; and from that, how long a piece should be.

Pure arithmetic on times and totals handed in; no clock, no IO. A sender tells ``sent`` totals, the peer's CREDIT tells
``received`` totals; the difference is what is under way.

Rules (spec BP1-STR):
    1. A piece is about ``PIECE_S`` of line time, at least ``PIECE_LENGTH_MIN``, a whole block when the line is fast.
    2. With more than one stream sending, at most ``rate × (least round trip + PIECE_S)`` is under way, at least a piece.
"""

from __future__ import annotations

PIECE_S = 0.1
PIECE_LENGTH_MIN = 4096
PIECE_LENGTH_FIRST = 64 * 1024
_SAMPLE_S = 0.02
_SMOOTHING = 0.3


class Pace:
    """The estimate for one connection and direction.

    Attributes:
        rate_bytes_s: bytes per second that arrive, or None before the first sample.
        round_trip_s: the least time seen between sending a byte and hearing of its arrival, or None.
    """

    __slots__ = ("_probe", "_sampled_at", "_sampled_total", "rate_bytes_s", "round_trip_s")

    def __init__(self) -> None:
        self.rate_bytes_s: float | None = None
        self.round_trip_s: float | None = None
        self._sampled_at: float | None = None
        self._sampled_total = 0
        self._probe: tuple[int, float] | None = None

    def sent(self, total: int, now_s: float) -> None:
        """``total`` payload bytes have been sent so far."""
        if self._probe is None:
            self._probe = (total, now_s)
        if self._sampled_at is None:
            self._sampled_at = now_s

    def received(self, total: int, now_s: float, under_way: int) -> None:
        """The peer has received ``total`` payload bytes; ``under_way`` are still on the line."""
        if self._probe is not None and total >= self._probe[0]:
            trip = now_s - self._probe[1]
            self.round_trip_s = trip if self.round_trip_s is None else min(self.round_trip_s, trip)
            self._probe = None
        if self._sampled_at is None:
            return
        passed = now_s - self._sampled_at
        if passed < _SAMPLE_S:
            return
        rate = (total - self._sampled_total) / passed
        old = self.rate_bytes_s
        self.rate_bytes_s = rate if old is None else old + _SMOOTHING * (rate - old)
        self._sampled_total = total
        # An idle time is no sample of the line: the next one starts with the next byte sent.
        self._sampled_at = now_s if under_way else None

    def piece_length(self, longest: int) -> int:
        """How many bytes the next piece should have, at most ``longest``."""
        if self.rate_bytes_s is None:
            return min(PIECE_LENGTH_FIRST, longest)
        return min(max(PIECE_LENGTH_MIN, int(self.rate_bytes_s * PIECE_S)), longest)

    def under_way_max(self, piece_length: int) -> int:
        """How many bytes may be under way while several streams send."""
        if self.rate_bytes_s is None:
            return 4 * PIECE_LENGTH_FIRST
        return max(piece_length, int(self.rate_bytes_s * ((self.round_trip_s or 0.0) + PIECE_S)))

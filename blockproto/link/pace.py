"""How fast and how long the line is, from what the peer says it received; what a piece should be, what may be under way.

Pure arithmetic on times and totals handed in; no clock, no IO. A sender tells ``sent`` totals, the peer's CREDIT tells
``received`` totals; the difference is what is under way. What is under way beyond what the line itself holds stands in a
queue somewhere (this kernel, a router), and whatever is more urgent stands behind it.

Rules (spec BP1-STR-016, BP1-STR-017):
    1. A piece is about ``PIECE_S`` of line time, at least ``PIECE_LENGTH_MIN``, a whole block when the line is fast.
    2. Under way is about ``rate × (least round trip + QUEUE_S)``, at least a piece: more as soon as the rate is found to be
       higher, less only when a round trip is clearly longer than that.
    3. A line that became longer looks like a queue, and then rate and round trip would drag each other down for ever. So
       every few round trips a little more is tried (if more arrives, the line was not full), and when no round trip is
       short for a while, the least one is found anew.
"""

from __future__ import annotations

import math

PIECE_S = 0.1
PIECE_LENGTH_MIN = 4096
PIECE_LENGTH_FIRST = 16 * 1024
QUEUE_S = 0.1
"""How much line time may stand in queues."""
SLOW_BYTES_S = 4e6
"""On a line that carries less, a second transfer would feel what the only one has handed over too early."""
SLOW_S = 1.0
"""So long it must have carried less: a busy machine stumbles now and then."""
_UNSURE_S = 0.15
"""CREDIT comes when it comes: a round trip that is longer by so much says nothing yet."""
_TRY_TRIPS = 3
_STEP = 1.25
_GAIN = 1.08
_LONGER_S = 2.0
_LONGER_TRIPS = 8
_SAMPLE_S = 0.02
_SMOOTHING = 0.3


class Pace:
    """The estimate for one connection and direction.

    Attributes:
        rate_bytes_s: bytes per second that arrive, or None before the first sample.
        round_trip_s: the least time between sending a byte and hearing of its arrival, or None.
        slow: whether the line is so slow that a single stream should not fill every buffer either.
    """

    __slots__ = (
        "_good_at",
        "_least_lately",
        "_probe",
        "_received",
        "_sampled_at",
        "_sampled_total",
        "_slow_since",
        "_tried",
        "_trips",
        "_window",
        "rate_bytes_s",
        "round_trip_s",
        "slow",
    )

    def __init__(self) -> None:
        self.rate_bytes_s: float | None = None
        self.round_trip_s: float | None = None
        self.slow = False
        self._slow_since: float | None = None
        self._sampled_at: float | None = None
        self._sampled_total = 0
        self._probe: tuple[int, float, bool] | None = None
        self._received = 0
        self._window = 0.0
        self._trips = 0
        self._tried = 0.0
        self._least_lately = math.inf
        self._good_at = 0.0

    def sent(self, total: int, now_s: float) -> None:
        """``total`` payload bytes have been sent so far."""
        if self._probe is None:
            self._probe = (total, now_s, total - self._received > 1.5 * self._window)
        if self._sampled_at is None:
            self._sampled_at = now_s

    def received(self, total: int, now_s: float, under_way: int) -> None:
        """The peer has received ``total`` payload bytes; ``under_way`` are still on the line."""
        probe, self._received = self._probe, total
        self._sample_rate(total, now_s, under_way)
        if probe is not None and total >= probe[0]:
            self._probe = None
            self._on_round_trip(now_s - probe[1], now_s, behind_much=probe[2])

    def _sample_rate(self, total: int, now_s: float, under_way: int) -> None:
        if self._sampled_at is None:
            return
        passed = now_s - self._sampled_at
        if passed < _SAMPLE_S:
            return
        rate = (total - self._sampled_total) / passed
        old = self.rate_bytes_s
        self.rate_bytes_s = rate if old is None else old + _SMOOTHING * (rate - old)
        if self.rate_bytes_s >= SLOW_BYTES_S:
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = now_s
        self.slow = self._slow_since is not None and now_s - self._slow_since >= SLOW_S
        self._sampled_total = total
        # An idle time is no sample of the line: the next one starts with the next byte sent.
        self._sampled_at = now_s if under_way else None

    def _on_round_trip(self, trip_s: float, now_s: float, *, behind_much: bool) -> None:
        """Judge by one round trip whether more may be under way, or less.

        Args:
            trip_s: how long it was.
            now_s: the time.
            behind_much: whether more than the window was under way before it: then its length tells nothing of the line.
        """
        least_s = self.round_trip_s = trip_s if self.round_trip_s is None else min(self.round_trip_s, trip_s)
        fair = (self.rate_bytes_s or 0.0) * (least_s + QUEUE_S)
        if trip_s <= least_s + QUEUE_S + _UNSURE_S:
            self._good_at, self._least_lately = now_s, math.inf
            self._try_more()
            self._window = max(self._window, fair if trip_s <= least_s + QUEUE_S else 0.0)
            return
        self._tried = 0.0
        self._window = fair if behind_much else max(fair, self._window / _STEP)
        if behind_much:
            self._good_at = now_s
            return
        self._least_lately = min(self._least_lately, trip_s)
        if now_s - self._good_at > max(_LONGER_S, _LONGER_TRIPS * least_s):
            self.round_trip_s = self._least_lately
            self._good_at, self._least_lately = now_s, math.inf

    def _try_more(self) -> None:
        """Every few round trips let a little more be under way: if more arrives then, the line was not full."""
        rate = self.rate_bytes_s or 0.0
        self._trips += 1
        if self._trips < _TRY_TRIPS:
            return
        self._trips = 0
        if self._tried and rate < self._tried * _GAIN:
            self._window /= _STEP
            self._tried = 0.0
        else:
            self._tried = rate
            self._window *= _STEP

    def piece_length(self, longest: int) -> int:
        """How many bytes the next piece should have, at most ``longest``; the very first is short, to measure with."""
        if self.rate_bytes_s is None:
            return min(PIECE_LENGTH_MIN if self._sampled_at is None else PIECE_LENGTH_FIRST, longest)
        return min(max(PIECE_LENGTH_MIN, int(self.rate_bytes_s * PIECE_S)), longest)

    def under_way_max(self, piece_length: int, *, shared: bool) -> int:
        """How many bytes may be under way while the line is ``shared``, or slow."""
        if self.rate_bytes_s is None or self.round_trip_s is None:
            return 4 * PIECE_LENGTH_FIRST
        fair = self.rate_bytes_s * (self.round_trip_s + QUEUE_S)
        return max(piece_length, int(min(self._window, fair) if shared else self._window))

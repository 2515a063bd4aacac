"""How fast and how long the line is, from what the peer says it received; what a piece should be, what may be under way.

Pure arithmetic on times and totals handed in; no clock, no IO. A sender tells what it has ``sent``, the peer's CREDIT tells
what it has ``received``; the difference is under way. What is under way beyond what the line itself holds stands in a queue
somewhere (this kernel, a router), and whatever is more urgent stands behind it; with less the line is idle now and then.

    under way = rate × (least round trip + queue)      queue = ``QUEUE_LEAST_S`` + ``VARYING`` × how much round trips vary

Rules (spec BP1-STR-016, BP1-STR-017):
    1. A piece is about ``PIECE_S`` of line time, at least ``PIECE_LENGTH_MIN``, a whole block when the line is fast. One at
       a time is followed until its first byte has arrived: the round trip tells what stood before it.
    2. The queue keeps the line busy until CREDIT comes, which is now and then, and not evenly. Where less than half of it
       was found the line may have been idle, and then its rate says too little: more is tried.
    3. A round trip that was longer means a queue that is too long, or a line that has become longer. One look cannot tell
       them apart, an experiment can: with less under way a queue becomes shorter, a line does not.
"""

from __future__ import annotations

PIECE_S = 0.02
PIECE_LENGTH_MIN = 4096
PIECE_LENGTH_FIRST = 16 * 1024
QUEUE_LEAST_S = 0.03
"""How much line time stands in the queue where every round trip takes the same."""
QUEUE_MOST_S = 0.15
VARYING = 2.0
"""How much more for each second that round trips differ from the usual one, on the average."""
SLOW_BYTES_S = 4e6
"""On a line that carries less, a second transfer would feel what the only one has handed over too early."""
SLOW_S = 1.0
"""So long it must have carried less: a busy machine stumbles now and then."""
BEGIN_LENGTH = 96 * 1024
"""How many bytes may be under way at first; while so many are, each that comes lets one more go (slow start)."""
PROOF_LENGTH = 256 * 1024
"""So much, when it came fast, is enough to know a fast line; less can be what lay in some buffer."""
UNANSWERED_S = 2.0
"""After so long without the first CREDIT a single stream is not held back any more."""
SELDOM_S = 0.25
SELDOM_TRIPS = 4
"""Nor after so long without the next one, while the line is not known yet."""
_STEP = 1.25
_UNSURE_S = 0.05
"""More than this much too long is not by chance."""
_LONG_TRIPS = 8
"""Nor are so many in a row that are a little too long."""
_TRIALS = 3
_SAMPLE_S = 0.02
_CLOCK_S = 1e-4
_SMOOTHING = 0.3
_SMOOTHING_TRIPS = 0.125


class Pace:
    """The estimate for one connection and direction.

    Attributes:
        rate_bytes_s: bytes per second that arrive, or None before the first sample.
        round_trip_s: the least time between sending a byte and hearing of its arrival, or None.
        slow: whether the line is so slow that a single stream should not fill every buffer either.
        unknown: whether it may yet turn out to be so slow.
    """

    __slots__ = (
        "_beginning",
        "_first_sent_s",
        "_heard_s",
        "_idle",
        "_long_trips",
        "_probe",
        "_received",
        "_sampled_s",
        "_sampled_total",
        "_sent",
        "_slow_since",
        "_starting",
        "_tried_s",
        "_trip_usual_s",
        "_trip_varies_s",
        "_window",
        "_window_before",
        "rate_bytes_s",
        "round_trip_s",
        "slow",
        "unknown",
    )

    def __init__(self) -> None:
        self.rate_bytes_s: float | None = None
        self.round_trip_s: float | None = None
        self.slow = False
        self.unknown = self._starting = True
        self._slow_since: float | None = None
        self._sampled_s = self._heard_s = 0.0
        self._sampled_total = 0
        self._idle = True
        self._first_sent_s: float | None = None
        self._probe: tuple[int, float, int] | None = None
        self._sent = self._received = 0
        self._beginning = BEGIN_LENGTH
        self._window = 0.0
        self._trip_usual_s: float | None = None
        self._trip_varies_s = 0.0
        self._window_before = 0.0
        self._long_trips = 0
        self._tried_s: list[float] = []

    def go_on_from(self, before: Pace) -> None:
        """Begin with what was found out over an earlier connection; how long the line is the first byte will tell."""
        self.rate_bytes_s, self.slow, self._slow_since = before.rate_bytes_s, before.slow, before._slow_since
        self._window, self._trip_varies_s = before._window, before._trip_varies_s
        self.unknown, self._starting = before.unknown, before._starting

    @property
    def binds_one(self) -> bool:
        """Whether it says how much may be under way also while there is a single stream."""
        return self.unknown or self.slow

    def sent(self, before: int, now_s: float) -> None:
        """More payload is being sent, behind the ``before`` bytes that were sent so far."""
        if before <= self._received:
            self._sampled_s, self._sampled_total, self._idle = now_s, before, True
        self._sent = before
        if self._first_sent_s is None:
            self._first_sent_s = now_s
        if self._probe is None:
            self._probe = (before, now_s, before - self._received)

    def waited(self, now_s: float) -> None:
        """A sender has waited for CREDIT: one that comes so seldom tells nothing of the line."""
        if self._first_sent_s is None:
            return
        if self.round_trip_s is None or self._trip_usual_s is None:
            seldom = now_s - self._first_sent_s >= UNANSWERED_S
        else:
            since_s = max(self._heard_s, self._sampled_s)  # nothing is to be heard while nothing is under way
            seldom = now_s - since_s >= max(SELDOM_S, SELDOM_TRIPS * self._trip_usual_s)
        if seldom:
            self.unknown = self._starting = False

    def received(self, total: int, now_s: float) -> None:
        """The peer has received ``total`` payload bytes."""
        probe = self._probe
        if probe is not None and total > probe[0]:
            self._probe = None
            since_s = 0.0 if self._idle else now_s - self._heard_s
            late_s = since_s * (total - probe[0]) / (total - self._received)
            self._on_round_trip(now_s - probe[1], late_s, probe[2])
        if self._starting and self._sent - self._received > self._beginning / 2:
            self._beginning += total - self._received
        self._heard_s, self._received = now_s, total
        self._recognise_a_fast_line(total, now_s)
        passed_s = now_s - self._sampled_s
        if passed_s >= _SAMPLE_S and total > self._sampled_total:
            self._sample_rate((total - self._sampled_total) / passed_s, now_s)
            self._sampled_s, self._sampled_total, self._idle = now_s, total, False

    def _recognise_a_fast_line(self, total: int, now_s: float) -> None:
        """A fast one shows it before there is a sample: all that came since the first byte is what it carried at least."""
        if not self.unknown or self._first_sent_s is None or total < PROOF_LENGTH:
            return
        least = total / max(now_s - self._first_sent_s, _CLOCK_S)
        if least >= SLOW_BYTES_S:
            self.unknown = False
            self.rate_bytes_s = max(least, self.rate_bytes_s or 0.0)

    def _sample_rate(self, rate: float, now_s: float) -> None:
        """Take a sample; where the line was idle for a part of it, that is the least that it carries."""
        old = self.rate_bytes_s
        if self._idle:
            self.rate_bytes_s = rate if old is None else max(rate, old)
        else:
            self.rate_bytes_s = rate if old is None else old + _SMOOTHING * (rate - old)
        if self.rate_bytes_s >= SLOW_BYTES_S:
            self._slow_since = None
            self.unknown = False
        elif self._slow_since is None and not self._idle:
            self._slow_since = now_s
        self.slow = self._slow_since is not None and now_s - self._slow_since >= SLOW_S

    def _on_round_trip(self, trip_s: float, late_s: float, behind: int) -> None:
        """Judge by one round trip whether more may be under way, or less.

        Args:
            trip_s: how long it was.
            late_s: how much of it CREDIT was probably late: it comes now and then.
            behind: bytes that were under way before it; when they were many more than the window, it tells only that.
        """
        least_s = self.round_trip_s = trip_s if self.round_trip_s is None else min(self.round_trip_s, trip_s)
        trip_s = max(least_s, trip_s - late_s)
        behind_much = behind > 1.5 * self._window
        if not behind_much:
            self._vary(trip_s)
        queue_s = min(QUEUE_MOST_S, QUEUE_LEAST_S + VARYING * self._trip_varies_s)
        fair = (self.rate_bytes_s or 0.0) * (least_s + queue_s)
        queued_s = trip_s - least_s
        if queued_s > queue_s:
            self._starting = False
            if behind_much:
                self._window = fair
            else:
                self._on_long_trip(trip_s, fair, much=queued_s > queue_s + _UNSURE_S)
            return
        if queued_s < queue_s / 2:
            filled = behind > self._window / 2  # else the line was idle because there was nothing to send
            self._window = max(self._window * (_STEP if filled else 1.0), fair)
        self._long_trips = 0
        self._tried_s.clear()

    def _vary(self, trip_s: float) -> None:
        """Keep count of how much round trips vary, however long they are."""
        off_s = 0.0 if self._trip_usual_s is None else trip_s - self._trip_usual_s
        self._trip_usual_s = trip_s - (1 - _SMOOTHING_TRIPS) * off_s
        self._trip_varies_s += _SMOOTHING_TRIPS * (abs(off_s) - self._trip_varies_s)

    def _on_long_trip(self, trip_s: float, fair: float, *, much: bool) -> None:
        """Find out, with less under way, whether a queue has made it so long or the line."""
        self._long_trips += 1
        if not much and not self._tried_s and self._long_trips <= _LONG_TRIPS:
            return
        if not self._tried_s:
            self._window_before = self._window
        self._tried_s.append(trip_s)
        self._window = min(fair, self._window / _STEP)
        if len(self._tried_s) > _TRIALS:
            self.round_trip_s = min(self._tried_s)
            self._window = self._window_before
            self._tried_s.clear()

    def piece_length(self, longest: int) -> int:
        """How many bytes the next piece should have, at most ``longest``."""
        if self.rate_bytes_s is None:
            return min(PIECE_LENGTH_FIRST, longest)
        return min(max(PIECE_LENGTH_MIN, int(self.rate_bytes_s * PIECE_S)), longest)

    def under_way_without_queue(self) -> int:
        """What the line itself holds, as far as that is known; with no more under way nothing waits anywhere."""
        if self.rate_bytes_s is None or self.round_trip_s is None:
            return self.under_way_max()
        return min(self.under_way_max(), int(self.rate_bytes_s * self.round_trip_s))

    def under_way_max(self) -> int:
        """How many bytes may be under way when one more piece is begun, while the line is shared, slow or unknown."""
        if self._starting:
            return max(int(self._window), self._beginning)
        return int(self._window) or BEGIN_LENGTH

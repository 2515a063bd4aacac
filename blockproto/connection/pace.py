"""Pace: rate and round trip of the line, from what the peer says it has received; piece length and window from them.

Pure arithmetic on times and totals handed in; no clock, no IO. The sender tells what it has ``sent``, the peer's CREDIT what
it has ``received``; the difference is under way. What is under way beyond the capacity of the line waits in some queue (this
kernel, a router), and what is more urgent waits behind it; with less the line is idle now and then.

    under way = rate × (least round trip + queue)      queue = ``QUEUE_LEAST_S`` + ``VARYING`` × how much round trips vary

Rules (spec BP1-STR-016, BP1-STR-017):
    1. A piece takes about ``PIECE_S`` on the line; it has at least ``PIECE_LENGTH_MIN``, and a whole block on a fast line.
       One piece at a time is timed until its first byte has arrived: the round trip shows how long the queue before it was.
    2. The queue keeps the line busy until the next CREDIT, which does not come evenly. If less than half of the queue was
       found, the line may have been idle and its rate underestimated: try more.
    3. A longer round trip means that the queue is too long, or that the line has become longer. An experiment tells them
       apart: with less under way a queue becomes shorter, a line does not.
"""

from __future__ import annotations

PIECE_S = 0.02
PIECE_LENGTH_MIN = 4096
PIECE_LENGTH_FIRST = 16 * 1024
QUEUE_LEAST_S = 0.03
"""Length of the queue, in line time, where every round trip takes the same."""
QUEUE_MOST_S = 0.15
VARYING = 2.0
"""Extra queue for each second by which round trips differ from the usual one, on average."""
SLOW_BYTES_S = 4e6
"""A line below this rate is slow: there even a single stream limits what is under way, for the sake of the next one."""
SLOW_S = 1.0
"""How long the rate has to stay below that: a busy machine stalls now and then."""
BEGIN_LENGTH = 96 * 1024
"""Bytes that may be under way at first; while that many are, each byte received allows one more (slow start)."""
PROOF_LENGTH = 256 * 1024
"""Bytes that have to arrive fast to prove a fast line; fewer may have fitted into some buffer."""
UNANSWERED_S = 2.0
"""Stop limiting a single stream after this long without the first CREDIT."""
SELDOM_S = 0.25
SELDOM_TRIPS = 4
"""The same for the next CREDIT while the line is not known yet: this many seconds or usual round trips."""
_STEP = 1.25
_UNSURE_S = 0.05
"""A single round trip that exceeds the queue by more than this is not taken for chance."""
_LONG_TRIPS = 8
"""Treat more than this many consecutive slightly long round trips as a queue that is too long."""
_TRIALS = 3
_SAMPLE_S = 0.02
_CLOCK_S = 1e-4
_SMOOTHING = 0.3
_SMOOTHING_TRIPS = 0.125


class Pace:
    """The estimate for one connection and direction.

    Attributes:
        rate_bytes_s: bytes per second that arrive, or None before the first sample.
        round_trip_s: the shortest time from sending a byte to hearing of its arrival, or None.
        slow: whether even a single stream should not fill every buffer.
        unknown: whether the line may still turn out to be slow.
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
        """Begin with what an earlier connection has learned, except the round trip."""
        self.rate_bytes_s, self.slow, self._slow_since = before.rate_bytes_s, before.slow, before._slow_since
        self._window, self._trip_varies_s = before._window, before._trip_varies_s
        self.unknown, self._starting = before.unknown, before._starting

    @property
    def binds_one(self) -> bool:
        """Whether a single stream is limited as well."""
        return self.unknown or self.slow

    def sent(self, before: int, now_s: float) -> None:
        """More payload is being sent; ``before``: payload bytes sent before it."""
        if before <= self._received:
            self._sampled_s, self._sampled_total, self._idle = now_s, before, True
        self._sent = before
        if self._first_sent_s is None:
            self._first_sent_s = now_s
        if self._probe is None:
            self._probe = (before, now_s, before - self._received)

    def waited(self, now_s: float) -> None:
        """A sender has waited for CREDIT in vain: if it comes too seldom to measure the line, stop trying to."""
        if self._first_sent_s is None:
            return
        if self.round_trip_s is None or self._trip_usual_s is None:
            seldom = now_s - self._first_sent_s >= UNANSWERED_S
        else:
            since_s = max(self._heard_s, self._sampled_s)  # while nothing is under way no CREDIT comes
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
        """Recognise a fast line before the first sample: it carried at least what has arrived since the first byte."""
        if not self.unknown or self._first_sent_s is None or total < PROOF_LENGTH:
            return
        least = total / max(now_s - self._first_sent_s, _CLOCK_S)
        if least >= SLOW_BYTES_S:
            self.unknown = False
            self.rate_bytes_s = max(least, self.rate_bytes_s or 0.0)

    def _sample_rate(self, rate: float, now_s: float) -> None:
        """Take a sample of the rate; one during which the line was partly idle is a lower bound."""
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
        """Let a round trip decide whether more or less may be under way.

        Args:
            trip_s: its length in seconds.
            late_s: the part of it that was probably spent waiting for CREDIT to be sent.
            behind: bytes that were under way before it; if many more than the window, the trip shows nothing else.
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
            filled = behind > self._window / 2  # otherwise the sender had nothing to send
            self._window = max(self._window * (_STEP if filled else 1.0), fair)
        self._long_trips = 0
        self._tried_s.clear()

    def _vary(self, trip_s: float) -> None:
        """Average the round trips and how much they vary."""
        off_s = 0.0 if self._trip_usual_s is None else trip_s - self._trip_usual_s
        self._trip_usual_s = trip_s - (1 - _SMOOTHING_TRIPS) * off_s
        self._trip_varies_s += _SMOOTHING_TRIPS * (abs(off_s) - self._trip_varies_s)

    def _on_long_trip(self, trip_s: float, fair: float, *, much: bool) -> None:
        """Find out, with less under way, whether the queue or the line has become longer."""
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
        """The best length of the next piece in bytes, at most ``longest``."""
        if self.rate_bytes_s is None:
            return min(PIECE_LENGTH_FIRST, longest)
        return min(max(PIECE_LENGTH_MIN, int(self.rate_bytes_s * PIECE_S)), longest)

    def under_way_without_queue(self) -> int:
        """Bytes that the line itself holds, as far as known: with no more under way there is no queue."""
        if self.rate_bytes_s is None or self.round_trip_s is None:
            return self.under_way_max()
        return min(self.under_way_max(), int(self.rate_bytes_s * self.round_trip_s))

    def under_way_max(self) -> int:
        """Bytes that may be under way when one more piece is begun, while the line is shared, slow or unknown."""
        if self._starting:
            return max(int(self._window), self._beginning)
        return int(self._window) or BEGIN_LENGTH

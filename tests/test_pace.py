"""Pace: the rate of a line from what the peer says it received, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from blockproto.link.pace import PIECE_LENGTH_FIRST, PIECE_LENGTH_MIN, Pace

MIB = 1 << 20


def _measured(rate_bytes_s: float, round_trip_s: float, seconds: float = 5.0) -> Pace:
    """A pace that watched a steady line for some seconds."""
    pace = Pace()
    step = 0.05
    for tick in range(int(seconds / step)):
        now = tick * step
        pace.sent(int(rate_bytes_s * (now + round_trip_s)), now)
        received = int(rate_bytes_s * max(0.0, now))
        pace.received(received, now, int(rate_bytes_s * round_trip_s))
    return pace


def test_before_the_first_sample_pieces_are_of_medium_length() -> None:
    pace = Pace()
    assert pace.rate_bytes_s is None
    assert pace.piece_length(MIB) == PIECE_LENGTH_MIN  # the very first, to measure with
    assert pace.piece_length(1000) == 1000
    pace.sent(PIECE_LENGTH_MIN, 0.0)
    assert pace.piece_length(MIB) == PIECE_LENGTH_FIRST
    assert pace.under_way_max(PIECE_LENGTH_FIRST, shared=False) == 4 * PIECE_LENGTH_FIRST


@pytest.mark.clause("BP1-STR-016")
def test_a_piece_is_a_tenth_of_a_second_of_line() -> None:
    pace = _measured(rate_bytes_s=1_000_000, round_trip_s=0.05)
    assert pace.rate_bytes_s == pytest.approx(1_000_000, rel=0.05)
    assert pace.piece_length(MIB) == pytest.approx(100_000, rel=0.05)


def test_a_slow_line_gets_the_shortest_piece() -> None:
    assert _measured(rate_bytes_s=2_000, round_trip_s=0.3).piece_length(MIB) == PIECE_LENGTH_MIN


def test_a_fast_line_gets_whole_blocks() -> None:
    assert _measured(rate_bytes_s=500e6, round_trip_s=0.001).piece_length(MIB) == MIB


def test_never_longer_than_the_peer_takes() -> None:
    assert _measured(rate_bytes_s=500e6, round_trip_s=0.001).piece_length(65_536) == 65_536


def test_under_way_is_a_round_trip_and_a_tenth_of_a_second_more() -> None:
    pace = _measured(rate_bytes_s=1_000_000, round_trip_s=0.2)
    assert pace.round_trip_s is not None
    expected = 1_000_000 * (pace.round_trip_s + 0.1)
    assert pace.under_way_max(1, shared=True) == pytest.approx(expected, rel=0.05)


def test_under_way_is_a_piece_at_least() -> None:
    assert (
        _measured(rate_bytes_s=1000, round_trip_s=0.1).under_way_max(PIECE_LENGTH_MIN, shared=False)
        == PIECE_LENGTH_MIN
    )


def test_the_round_trip_is_the_least_that_was_seen() -> None:
    pace = Pace()
    for begun, trip in ((0.0, 0.3), (1.0, 0.1), (2.0, 0.5)):
        pace.sent(int(begun) + 1, begun)
        pace.received(int(begun) + 1, begun + trip, 0)
    assert pace.round_trip_s == pytest.approx(0.1)


def test_an_idle_time_is_no_sample() -> None:
    """A minute in which nothing was sent says nothing about the line."""
    pace = Pace()
    pace.sent(100_000, 0.0)
    pace.received(100_000, 0.1, 0)
    assert pace.rate_bytes_s == pytest.approx(1_000_000)
    pace.sent(200_000, 60.0)
    pace.received(200_000, 60.1, 0)
    assert pace.rate_bytes_s == pytest.approx(1_000_000)


def test_samples_closer_than_a_fiftieth_of_a_second_wait_for_more() -> None:
    pace = Pace()
    pace.sent(100_000, 0.0)
    pace.received(50_000, 0.001, 50_000)
    assert pace.rate_bytes_s is None
    pace.received(100_000, 0.1, 0)
    assert pace.rate_bytes_s == pytest.approx(1_000_000)


def test_the_rate_follows_a_line_that_becomes_slower() -> None:
    pace = _measured(rate_bytes_s=10_000_000, round_trip_s=0.01)
    sent = 100_000_000
    for tick in range(1, 40):
        pace.sent(sent + tick * 10_000, 10 + tick * 0.1)
        pace.received(sent + tick * 10_000 - 5_000, 10 + tick * 0.1, 5_000)
    assert pace.rate_bytes_s == pytest.approx(100_000, rel=0.1)


def test_credit_without_a_byte_sent_is_ignored() -> None:
    pace = Pace()
    pace.received(0, 1.0, 0)
    assert pace.rate_bytes_s is None
    assert pace.round_trip_s is None


# ---- the loop: what may be under way decides what is measured ---------------------------------------------------


@dataclass
class Loop:
    """A sender that always has something to send, a line of a rate and a length, and a peer that credits every 50 ms.

    Attributes:
        delivered: bytes that have arrived.
        queued_s: line time that stood before the transmitter, at each piece.
    """

    pace: Pace = field(default_factory=Pace)
    now: float = 0.0
    sent: int = 0
    delivered: int = 0
    free_at: float = 0.0
    queued_s: list[float] = field(default_factory=list)
    _arriving: list[tuple[float, int]] = field(default_factory=list)
    _credits: list[tuple[float, int]] = field(default_factory=list)
    _credited_at: float = 0.0

    def run(self, seconds: float, rate_bytes_s: float, round_trip_s: float) -> float:
        """Go on for so long on such a line; returns the rate that was reached."""
        before, until = self.delivered, self.now + seconds
        while self.now < until:
            self._step(rate_bytes_s, round_trip_s)
            self.now += 0.005
        return (self.delivered - before) / seconds

    def _step(self, rate_bytes_s: float, round_trip_s: float) -> None:
        while self._credits and self._credits[0][0] <= self.now:
            total = self._credits.pop(0)[1]
            self.pace.received(total, self.now, self.sent - total)
            self._known = total
        length = self.pace.piece_length(MIB)
        while (
            self.sent - self._known + length <= self.pace.under_way_max(length, shared=False)
            or self.sent == self._known
        ):
            self.free_at = max(self.free_at, self.now) + length / rate_bytes_s
            self.queued_s.append(self.free_at - self.now)
            self.sent += length
            self.pace.sent(self.sent, self.now)
            self._arriving.append((self.free_at + round_trip_s / 2, length))
        while self._arriving and self._arriving[0][0] <= self.now:
            self.delivered += self._arriving.pop(0)[1]
        if self.now >= self._credited_at + 0.05:
            self._credited_at = self.now
            self._credits.append((self.now + round_trip_s / 2, self.delivered))

    _known: int = 0


@pytest.mark.clause("BP1-STR-017")
@pytest.mark.parametrize("rate_bytes_s", [32_000, 625_000, 5_000_000])
@pytest.mark.parametrize("round_trip_s", [0.01, 0.1, 0.6])
def test_the_loop_fills_the_line_and_keeps_its_queue_short(rate_bytes_s: float, round_trip_s: float) -> None:
    loop = Loop()
    loop.run(10, rate_bytes_s, round_trip_s)
    loop.queued_s.clear()
    assert loop.run(30, rate_bytes_s, round_trip_s) > 0.85 * rate_bytes_s
    queued = sorted(loop.queued_s)
    assert queued[len(queued) // 2] < 0.35 + 8 * PIECE_LENGTH_MIN / rate_bytes_s


@pytest.mark.clause("BP1-STR-017")
@pytest.mark.parametrize("longer_s", [0.05, 0.09, 0.15, 0.3, 1.0])
def test_the_loop_finds_out_that_the_line_has_become_longer(longer_s: float) -> None:
    """A handover to another network: nothing may drag rate and round trip down together."""
    loop = Loop()
    loop.run(10, 625_000, 0.05)
    loop.run(40, 625_000, 0.05 + longer_s)
    assert (
        loop.run(10, 625_000, 0.05 + longer_s) > 0.65 * 625_000
    )  # about what the old round trip allows, and not less and less


@pytest.mark.parametrize("after", [60_000, 5_000_000])
def test_the_loop_follows_a_line_that_becomes_slower_or_faster(after: float) -> None:
    loop = Loop()
    loop.run(10, 625_000, 0.05)
    loop.run(20, after, 0.05)
    assert loop.run(10, after, 0.05) > 0.9 * after
    loop.run(20, 625_000, 0.05)
    assert loop.run(10, 625_000, 0.05) > 0.9 * 625_000


def test_a_line_is_slow_when_it_was_so_for_a_second() -> None:
    pace = _measured(rate_bytes_s=2_000_000, round_trip_s=0.05, seconds=0.9)
    assert not pace.slow
    assert _measured(rate_bytes_s=2_000_000, round_trip_s=0.05, seconds=2.0).slow
    assert not _measured(rate_bytes_s=20_000_000, round_trip_s=0.05, seconds=2.0).slow

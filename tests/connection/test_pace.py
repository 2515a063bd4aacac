"""Pace: the rate of a line from what the peer says it received, and what follows from it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from blockproto.connection.credit import EARLY_LENGTH, EARLY_STEP, EARLY_STEP_MOST, EVERY_S
from blockproto.connection.pace import (
    BEGIN_LENGTH,
    PIECE_LENGTH_FIRST,
    PIECE_LENGTH_MIN,
    PIECE_S,
    PROOF_LENGTH,
    SELDOM_TRIPS,
    UNANSWERED_S,
    Pace,
)

MIB = 1 << 20
STEP_S = 0.05


def _measured(rate_bytes_s: float, round_trip_s: float, seconds: float = 5.0) -> Pace:
    """A pace that watched a steady line, always filled, for some seconds."""
    pace = Pace()
    for tick in range(int(seconds / STEP_S)):
        now = tick * STEP_S
        pace.sent(int(rate_bytes_s * now), now)
        if now >= round_trip_s:
            pace.received(int(rate_bytes_s * (now - round_trip_s)), now)
    return pace


def test_before_the_first_sample_pieces_are_of_medium_length() -> None:
    pace = Pace()
    assert pace.rate_bytes_s is None
    assert pace.piece_length(MIB) == PIECE_LENGTH_FIRST
    assert pace.piece_length(1000) == 1000
    assert pace.under_way_max() == BEGIN_LENGTH


@pytest.mark.clause("BP1-STR-016")
def test_a_piece_is_less_than_a_tenth_of_a_second_of_line() -> None:
    pace = _measured(rate_bytes_s=1_000_000, round_trip_s=0.05)
    assert pace.rate_bytes_s == pytest.approx(1_000_000, rel=0.05)
    assert pace.piece_length(MIB) == pytest.approx(1_000_000 * PIECE_S, rel=0.05)
    assert PIECE_S <= 0.1


@pytest.mark.clause("BP1-STR-016")
def test_a_slow_line_gets_the_shortest_piece() -> None:
    assert _measured(rate_bytes_s=2_000, round_trip_s=0.3).piece_length(MIB) == PIECE_LENGTH_MIN


@pytest.mark.clause("BP1-STR-016")
def test_a_fast_line_gets_whole_blocks() -> None:
    assert _measured(rate_bytes_s=500e6, round_trip_s=0.001).piece_length(MIB) == MIB


def test_never_longer_than_the_peer_takes() -> None:
    assert _measured(rate_bytes_s=500e6, round_trip_s=0.001).piece_length(65_536) == 65_536


def test_the_round_trip_is_the_least_that_was_seen() -> None:
    pace = Pace()
    for begun, trip in ((0.0, 0.3), (1.0, 0.1), (2.0, 0.5)):
        pace.sent(int(begun), begun)
        pace.received(int(begun) + 1, begun + trip)
    assert pace.round_trip_s == pytest.approx(0.1)


def test_a_round_trip_is_that_of_the_first_byte() -> None:
    """A long piece on a slow line takes its time to arrive; that is no queue."""
    pace = Pace()
    pace.sent(0, 0.0)
    pace.received(1, 0.1)
    pace.received(100_000, 1.1)
    assert pace.round_trip_s == pytest.approx(0.1)


def test_an_idle_time_is_no_sample() -> None:
    """A minute in which nothing was sent says nothing about the line."""
    pace = _measured(rate_bytes_s=1_000_000, round_trip_s=0.05)
    total = 5_000_000
    pace.received(total, 5.05)
    pace.sent(total, 60.0)
    pace.received(total + 100_000, 60.15)
    assert pace.rate_bytes_s == pytest.approx(1_000_000, rel=0.1)


def test_a_burst_tells_the_least_that_the_line_carries() -> None:
    """The line was idle before it, so some of the time was the distance."""
    pace = Pace()
    for burst, length in enumerate((100_000, 10_000, 200_000)):
        pace.sent(pace._received, float(burst))
        pace.received(pace._received + length, burst + 0.1)
    assert pace.rate_bytes_s == pytest.approx(2_000_000)
    assert not pace.slow


def test_a_line_that_had_nothing_to_carry_is_not_slow() -> None:
    """Small files now and then on a fast line: nothing is known of its rate, and nothing is held back."""
    pace = Pace()
    for second in range(10):
        pace.sent(second * 1000, float(second))
        pace.received(second * 1000 + 1000, second + 0.05)
    assert not pace.slow


def test_samples_closer_than_a_fiftieth_of_a_second_wait_for_more() -> None:
    pace = Pace()
    pace.sent(0, 0.0)
    pace.received(50_000, 0.001)
    assert pace.rate_bytes_s is None
    pace.received(100_000, 0.1)
    assert pace.rate_bytes_s == pytest.approx(1_000_000)


def test_the_rate_follows_a_line_that_becomes_slower() -> None:
    pace = _measured(rate_bytes_s=10_000_000, round_trip_s=0.01)
    sent = 100_000_000
    for tick in range(1, 40):
        pace.sent(sent + tick * 10_000, 10 + tick * 0.1)
        pace.received(sent + tick * 10_000 - 5_000, 10 + tick * 0.1)
    assert pace.rate_bytes_s == pytest.approx(100_000, rel=0.1)


def test_credit_without_a_byte_sent_is_ignored() -> None:
    pace = Pace()
    pace.received(0, 1.0)
    assert pace.rate_bytes_s is None
    assert pace.round_trip_s is None


def test_the_next_connection_goes_on_with_what_was_found_out_but_measures_the_distance_anew() -> None:
    loop, pace = Loop(), Pace()
    loop.run(10, 1_000_000, 0.2)
    before = loop.pace
    pace.go_on_from(before)
    assert pace.slow
    assert pace.piece_length(MIB) == before.piece_length(MIB)
    assert pace.under_way_max() == before.under_way_max()
    pace.sent(0, 9.0)
    pace.received(1, 9.05)
    assert pace.round_trip_s == pytest.approx(0.05)


# ---- the loop: what may be under way decides what is measured ---------------------------------------------------


@dataclass
class Loop:
    """A sender that always has something to send, a line of a rate and a length, and a peer that credits as ours does.

    Attributes:
        varies_s: CREDIT is late by up to so much, by lot.
        delivered: bytes that have arrived.
        queued_s: line time that stood before the transmitter, at each piece.
    """

    pace: Pace = field(default_factory=Pace)
    varies_s: float = 0.0
    now: float = 0.0
    sent: int = 0
    delivered: int = 0
    free_at: float = 0.0
    queued_s: list[float] = field(default_factory=list)
    _arriving: list[tuple[float, int]] = field(default_factory=list)
    _credits: list[tuple[float, int]] = field(default_factory=list)
    _credited_at: float = 0.0
    _rng: random.Random = field(default_factory=lambda: random.Random(1))

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
            self.pace.received(total, self.now)
            self._known = total
        length = self.pace.piece_length(MIB)
        while self.sent - self._known < self.pace.under_way_max() or self.sent == self._known:
            self.free_at = max(self.free_at, self.now) + length / rate_bytes_s
            self.queued_s.append(self.free_at - self.now)
            self.pace.sent(self.sent, self.now)
            self.sent += length
            self._arriving.append((self.free_at + round_trip_s / 2, length))
        while self._arriving and self._arriving[0][0] <= self.now:
            self.delivered += self._arriving.pop(0)[1]
        more = self.delivered - self._told
        step = min(max(EARLY_STEP, self.delivered // 4), EARLY_STEP_MOST)
        early = self.delivered < EARLY_LENGTH and more >= step
        if early or self.now >= self._credited_at + EVERY_S:
            self._credited_at, self._told = self.now, self.delivered
            late_s = self._rng.uniform(0, self.varies_s)
            self._credits.append((self.now + round_trip_s / 2 + late_s, self.delivered))

    _known: int = 0
    _told: int = 0


@pytest.mark.clause("BP1-STR-017")
@pytest.mark.parametrize("rate_bytes_s", [32_000, 625_000, 5_000_000])
@pytest.mark.parametrize("round_trip_s", [0.01, 0.1, 0.6])
def test_the_loop_fills_the_line_and_keeps_its_queue_short(rate_bytes_s: float, round_trip_s: float) -> None:
    loop = Loop()
    loop.run(20, rate_bytes_s, round_trip_s)
    loop.queued_s.clear()
    assert loop.run(30, rate_bytes_s, round_trip_s) > 0.97 * rate_bytes_s
    queued = sorted(loop.queued_s)
    assert queued[len(queued) // 2] < 0.25 + 5 * PIECE_LENGTH_MIN / rate_bytes_s


@pytest.mark.clause("BP1-STR-017")
@pytest.mark.parametrize("varies_s", [0.02, 0.1])
def test_the_loop_fills_the_line_although_credit_comes_when_it_comes(varies_s: float) -> None:
    loop = Loop(varies_s=varies_s)
    loop.run(10, 625_000, 0.1)
    loop.queued_s.clear()
    assert loop.run(30, 625_000, 0.1) > 0.97 * 625_000
    queued = sorted(loop.queued_s)
    assert queued[len(queued) // 2] < 0.2 + varies_s


@pytest.mark.clause("BP1-STR-017")
@pytest.mark.parametrize("longer_s", [0.05, 0.09, 0.15, 0.3, 1.0])
def test_the_loop_finds_out_that_the_line_has_become_longer(longer_s: float) -> None:
    """A handover to another network: nothing may drag rate and round trip down together."""
    loop = Loop()
    loop.run(10, 625_000, 0.05)
    loop.run(20, 625_000, 0.05 + longer_s)
    assert loop.run(10, 625_000, 0.05 + longer_s) > 0.9 * 625_000


@pytest.mark.clause("BP1-STR-017")
def test_the_loop_takes_a_queue_for_no_longer_line() -> None:
    """The line becomes ten times slower: what was right before is a queue of a second now, and must not stay one."""
    loop = Loop()
    loop.run(10, 625_000, 0.05)
    loop.run(20, 62_500, 0.05)
    loop.queued_s.clear()
    assert loop.run(10, 62_500, 0.05) > 0.97 * 62_500
    assert sorted(loop.queued_s)[len(loop.queued_s) // 2] < 0.4
    assert loop.pace.round_trip_s is not None
    assert loop.pace.round_trip_s < 0.15


@pytest.mark.parametrize("after", [60_000, 5_000_000])
def test_the_loop_follows_a_line_that_becomes_slower_or_faster(after: float) -> None:
    loop = Loop()
    loop.run(10, 625_000, 0.05)
    loop.run(10, after, 0.05)
    assert loop.run(10, after, 0.05) > 0.95 * after
    loop.run(10, 625_000, 0.05)
    assert loop.run(10, 625_000, 0.05) > 0.95 * 625_000


# ---- the beginning of a line ------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-STR-017")
def test_a_line_begins_with_little_and_as_much_more_as_has_come() -> None:
    pace = Pace()
    assert pace.under_way_max() == BEGIN_LENGTH
    for before in (0, 30_000, 60_000):
        pace.sent(before, 0.0)
    pace.received(90_000, 0.1)
    assert pace.under_way_max() == BEGIN_LENGTH + 90_000


@pytest.mark.clause("BP1-STR-017")
def test_what_comes_while_little_is_under_way_lets_no_more_go() -> None:
    """Small files now and then fill no line: what is let go at once stays little for the big one behind them."""
    pace = Pace()
    for number in range(100):
        pace.sent(number * 20_000, float(number))
        pace.received(number * 20_000 + 20_000, number + 0.1)
    assert pace.under_way_max() == BEGIN_LENGTH


@pytest.mark.clause("BP1-STR-017")
@pytest.mark.parametrize(("rate_bytes_s", "round_trip_s"), [(625_000, 0.06), (3_000_000, 0.05), (5e6, 0.1)])
def test_a_beginning_neither_fills_a_long_queue_nor_leaves_the_line_idle_for_long(
    rate_bytes_s: float, round_trip_s: float
) -> None:
    loop = Loop()
    first = loop.run(1.0, rate_bytes_s, round_trip_s)
    assert max(loop.queued_s) < 0.5
    assert first > 0.5 * rate_bytes_s
    assert loop.run(1.0, rate_bytes_s, round_trip_s) > 0.9 * rate_bytes_s


@pytest.mark.clause("BP1-STR-017")
def test_a_slow_line_binds_one_stream_from_the_beginning() -> None:
    loop = Loop()
    for _ in range(30):
        assert loop.pace.binds_one
        loop.run(0.1, 625_000, 0.06)
    assert loop.pace.slow


@pytest.mark.clause("BP1-STR-017")
def test_a_fast_line_is_known_by_its_first_bytes_and_gets_whole_blocks_at_once() -> None:
    pace = Pace()
    pace.sent(0, 0.0)
    pace.received(PROOF_LENGTH - 1, 0.002)
    assert pace.binds_one  # so much can be what lay in some buffer
    pace.received(PROOF_LENGTH, 0.002)
    assert not pace.binds_one
    assert pace.piece_length(MIB) == MIB


@pytest.mark.clause("BP1-STR-017")
def test_a_peer_that_never_says_credit_early_holds_one_stream_back_once() -> None:
    pace = Pace()
    pace.waited(100.0)
    assert pace.binds_one  # nothing was sent yet: there is nothing to be answered
    pace.sent(0, 100.0)
    pace.waited(100.0 + UNANSWERED_S - 0.1)
    assert pace.binds_one
    pace.waited(100.0 + UNANSWERED_S)
    assert not pace.binds_one
    assert pace.under_way_max() == BEGIN_LENGTH  # with other streams it stays so: one of them may be urgent


@pytest.mark.clause("BP1-STR-017")
def test_one_that_says_credit_now_and_then_is_waited_for_until_it_is_late() -> None:
    pace = Pace()
    pace.sent(0, 0.0)
    pace.received(1, 0.1)
    pace.waited(0.1 + SELDOM_TRIPS * 0.1 - 0.01)
    assert pace.binds_one
    pace.waited(0.1 + SELDOM_TRIPS * 0.1)
    assert not pace.binds_one


@pytest.mark.clause("BP1-STR-017")
def test_credit_is_not_late_because_nothing_was_sent_for_a_while() -> None:
    pace = Pace()
    pace.sent(0, 0.0)
    pace.received(1, 0.6)
    pace.sent(1, 600.0)
    pace.waited(600.5)
    assert pace.binds_one
    pace.waited(600.1 + SELDOM_TRIPS * 0.6)
    assert not pace.binds_one


def test_a_line_is_slow_when_it_was_so_for_a_second() -> None:
    pace = _measured(rate_bytes_s=2_000_000, round_trip_s=0.05, seconds=0.9)
    assert not pace.slow
    assert _measured(rate_bytes_s=2_000_000, round_trip_s=0.05, seconds=2.0).slow
    assert not _measured(rate_bytes_s=20_000_000, round_trip_s=0.05, seconds=2.0).slow

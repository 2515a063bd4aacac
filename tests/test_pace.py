"""Pace: the rate of a line from what the peer says it received, and what follows from it."""

from __future__ import annotations

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
    assert pace.piece_length(MIB) == PIECE_LENGTH_FIRST
    assert pace.piece_length(1000) == 1000
    assert pace.under_way_max(PIECE_LENGTH_FIRST) == 4 * PIECE_LENGTH_FIRST


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
    assert pace.under_way_max(1) == pytest.approx(expected, rel=0.05)


def test_under_way_is_a_piece_at_least() -> None:
    assert _measured(rate_bytes_s=1000, round_trip_s=0.1).under_way_max(PIECE_LENGTH_MIN) == PIECE_LENGTH_MIN


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

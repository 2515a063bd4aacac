"""Liveness and keep-alive: pure times, no clock."""

from __future__ import annotations

import pytest

from blockproto.connection.keepalive import (
    ACTIVE_S,
    MOBILE_BACK_S,
    MOBILE_FIRST_S,
    MOBILE_LEAST_S,
    MOBILE_MOST_S,
    MOBILE_STEP_S,
    KeepAlive,
)
from blockproto.connection.liveness import ANSWER_S, GREETING_S, HEAD_S, SILENCE_S, Due, Liveness

DAY_S = 86_400.0


def _client(keep_alive: KeepAlive | None = None) -> Liveness:
    life = Liveness(keep_alive or KeepAlive(), 0.0)
    life.greeted()
    return life


def _server() -> Liveness:
    life = Liveness(None, 0.0)
    life.greeted()
    return life


# ---- how long a network bears silence ---------------------------------------------------------------------------


def test_a_wired_network_is_pinged_every_fifteen_seconds_and_learns_nothing() -> None:
    keep_alive = KeepAlive()
    keep_alive.held(1000.0)
    keep_alive.failed(1000.0)
    assert [keep_alive.every_s(busy=busy) for busy in (True, False)] == [ACTIVE_S, ACTIVE_S]


@pytest.mark.clause("BP1-END-014")
def test_a_mobile_network_gets_longer_silences_while_they_hold() -> None:
    keep_alive = KeepAlive(mobile=True)
    seen = []
    for _ in range(9):
        seen.append(keep_alive.every_s(busy=False))
        keep_alive.held(seen[-1])
    assert seen == [min(MOBILE_MOST_S, MOBILE_FIRST_S + MOBILE_STEP_S * step) for step in range(9)]
    assert keep_alive.every_s(busy=True) == ACTIVE_S


@pytest.mark.clause("BP1-END-014")
def test_a_silence_that_did_not_hold_is_not_tried_again_on_this_network() -> None:
    keep_alive = KeepAlive(mobile=True)
    keep_alive.held(MOBILE_FIRST_S)
    keep_alive.failed(270.0)
    assert keep_alive.every_s(busy=False) == 270.0 - MOBILE_BACK_S
    keep_alive.held(250.0)
    assert keep_alive.every_s(busy=False) == 250.0
    for _ in range(50):
        keep_alive.failed(1000.0)
    assert keep_alive.every_s(busy=False) == MOBILE_LEAST_S
    keep_alive.network_changed()
    keep_alive.held(MOBILE_FIRST_S)
    assert keep_alive.every_s(busy=False) == MOBILE_FIRST_S + MOBILE_STEP_S


def test_a_shorter_silence_proves_nothing() -> None:
    keep_alive = KeepAlive(mobile=True)
    keep_alive.held(MOBILE_FIRST_S - 1)
    keep_alive.failed(ACTIVE_S)
    assert keep_alive.every_s(busy=False) == MOBILE_FIRST_S


# ---- a client ---------------------------------------------------------------------------------------------------


def test_a_client_pings_after_silence_and_gives_the_peer_a_while() -> None:
    life = _client()
    assert life.deadline_s() == ACTIVE_S
    assert life.due(ACTIVE_S - 0.001) is Due.NOTHING
    assert life.due(ACTIVE_S) is Due.PING
    assert life.ping_said(ACTIVE_S) == round(ACTIVE_S)
    assert life.deadline_s() == ACTIVE_S + ANSWER_S
    assert life.due(ACTIVE_S + ANSWER_S - 0.001) is Due.NOTHING
    assert life.due(ACTIVE_S + ANSWER_S) is Due.DEAD


@pytest.mark.clause("BP1-END-001")
def test_any_byte_is_life_also_one_in_the_middle_of_a_frame() -> None:
    life = _client()
    life.ping_said(ACTIVE_S)
    life.heard(ACTIVE_S + ANSWER_S - 0.001, in_head=True)
    assert life.due(ACTIVE_S + ANSWER_S) is not Due.DEAD


@pytest.mark.clause("BP1-END-016")
@pytest.mark.parametrize("stopped_s", [60.0, 600.0, DAY_S])
def test_who_was_stopped_asks_before_it_judges(stopped_s: float) -> None:
    life = _client()
    life.heard(5.0, in_head=False)
    assert life.due(5.0 + stopped_s) is Due.PING
    life.ping_said(5.0 + stopped_s)
    assert life.due(5.0 + stopped_s + ANSWER_S - 0.001) is Due.NOTHING
    life.heard(5.0 + stopped_s + 1, in_head=False)
    assert life.due(5.0 + stopped_s + ANSWER_S) is not Due.DEAD


@pytest.mark.clause("BP1-END-015")
def test_a_client_that_only_listens_keeps_its_promise() -> None:
    """Before it has promised anything it need not speak."""
    life = _client()
    for second in range(1, 100):
        life.heard(float(second), in_head=False)
        assert life.due(float(second)) is Due.NOTHING
    life.ping_said(100.0)
    life.heard(100.1, in_head=False)
    for second in range(101, 115):
        life.heard(float(second), in_head=False)
        assert life.due(float(second)) is Due.NOTHING
    life.heard(115.0, in_head=False)
    assert life.due(115.0) is Due.PING
    life.said(114.0)
    assert life.due(115.0) is Due.NOTHING


@pytest.mark.clause("BP1-END-014")
def test_what_an_idle_time_shows_is_learned_by_the_next_connection_too() -> None:
    keep_alive = KeepAlive(mobile=True)
    life = _client(keep_alive)
    assert life.ping_said(MOBILE_FIRST_S) == MOBILE_FIRST_S
    life.heard(MOBILE_FIRST_S + 1, in_head=False)
    assert keep_alive.every_s(busy=False) == 270.0
    life = _client(keep_alive)
    life.ping_said(270.0)
    life.lost()
    assert keep_alive.every_s(busy=False) == 250.0
    life = _client(keep_alive)
    life.lost()  # closed in the middle of a silence: tells nothing
    assert keep_alive.every_s(busy=False) == 250.0


def test_a_mobile_client_with_work_under_way_notices_a_dead_peer_soon() -> None:
    life = _client(KeepAlive(mobile=True))
    assert life.deadline_s() == MOBILE_FIRST_S
    life.busy = True
    assert life.deadline_s() == ACTIVE_S


# ---- a server ---------------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-END-004", "BP1-END-006")
def test_a_server_judges_by_what_was_promised() -> None:
    life = _server()
    assert life.deadline_s() == SILENCE_S
    life.promised(15)
    assert (life.due(29.9), life.due(30.0)) == (Due.NOTHING, Due.DEAD)
    life.promised(600)
    assert (life.due(1199.0), life.due(1200.0)) == (Due.NOTHING, Due.DEAD)
    life.promised(0)
    assert life.deadline_s() == SILENCE_S


@pytest.mark.clause("BP1-END-007", "BP1-HEL-014")
def test_a_head_and_a_greeting_have_their_time() -> None:
    life = Liveness(None, 0.0)
    life.heard(GREETING_S - 1, in_head=True)
    assert life.deadline_s() == GREETING_S
    assert life.due(GREETING_S) is Due.DEAD
    life = _server()
    for at in (5.0, 6.0, 14.9):
        life.heard(at, in_head=True)
    assert life.due(5.0 + HEAD_S) is Due.HEAD_LATE
    life.frame_ended()
    life.heard(15.0, in_head=True)
    assert life.due(15.0 + HEAD_S - 0.001) is Due.NOTHING

"""Crediting: when CREDIT is said, of what has come by then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from blockproto.link.crediting import EARLY_LENGTH, EARLY_STEP, EARLY_STEP_MOST, EVERY_S, Crediting
from blockproto.link.outbox import Outbox
from blockproto.protocol.session import Limits, Session

WINDOW = 16 << 20


@dataclass
class Desk:
    """A session that grants all that came, and an outbox that keeps what was said."""

    payload_received: int = 0
    granted: int = 0
    limits: Limits = field(
        default_factory=lambda: Limits(stream_allowance=WINDOW, connection_allowance=WINDOW)
    )
    said: list[int] = field(default_factory=list)

    def credits_due(self, least: int) -> list[bytes]:
        due = self.payload_received - self.granted
        if due < least:
            return []
        self.granted = self.payload_received
        return [b"CREDIT"]

    def queue(self, frame: bytes) -> None:
        assert frame == b"CREDIT"
        self.said.append(self.granted)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def crediting(desk: Desk) -> Crediting:
    return Crediting(cast(Session, desk), cast(Outbox, desk))


def _come(desk: Desk, crediting: Crediting, length: int, now_s: float) -> None:
    desk.payload_received += length
    crediting.received(length, now_s)


@pytest.mark.clause("BP1-CRD-007")
def test_early_it_is_said_whenever_a_little_more_has_come(desk: Desk, crediting: Crediting) -> None:
    """All in one instant, as on a fast line; in pieces of 4 KiB."""
    while desk.payload_received < EARLY_LENGTH:
        before = desk.granted
        _come(desk, crediting, 4096, 0.0)
        step = min(max(EARLY_STEP, desk.payload_received // 4), EARLY_STEP_MOST)
        assert desk.payload_received - before <= step + 4096
    assert 120 < len(desk.said) < 150


@pytest.mark.clause("BP1-CRD-007")
def test_later_a_little_waits_until_it_is_time(desk: Desk, crediting: Crediting) -> None:
    _come(desk, crediting, 2 * EARLY_LENGTH, 0.0)
    said = len(desk.said)
    _come(desk, crediting, 100_000, 0.01)
    assert len(desk.said) == said
    assert crediting.due_s == EVERY_S
    crediting.look(crediting.due_s)
    assert len(desk.said) == said + 1
    crediting.look(2 * EVERY_S)
    assert len(desk.said) == said + 1  # nothing has come since then


@pytest.mark.clause("BP1-CRD-007")
def test_a_quarter_of_the_window_does_not_wait(desk: Desk, crediting: Crediting) -> None:
    _come(desk, crediting, 2 * EARLY_LENGTH, 0.0)
    said = len(desk.said)
    _come(desk, crediting, WINDOW // 4 - 1, 0.01)
    assert len(desk.said) == said
    _come(desk, crediting, 128 * 1024, 0.02)
    assert len(desk.said) == said + 1


@pytest.mark.clause("BP1-CRD-006")
def test_who_waits_for_the_last_of_a_stream_is_granted_it_at_once(desk: Desk, crediting: Crediting) -> None:
    desk.payload_received = 1
    crediting.caught_up(more_waits=True)
    assert desk.said == []
    crediting.caught_up(more_waits=False)
    assert desk.said == [1]

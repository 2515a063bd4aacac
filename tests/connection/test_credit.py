"""Credit: when CREDIT is said, of what has come by then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from blockproto.connection.credit import EARLY_LENGTH, EARLY_STEP, EARLY_STEP_MOST, EVERY_S, CreditPolicy
from blockproto.connection.writer import Writer
from blockproto.protocol.session import Limits, Session

WINDOW = 16 << 20


@dataclass
class Desk:
    """A session that grants all that came, and a writer that keeps what was said."""

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
def buffers() -> Desk:
    return Desk()


@pytest.fixture
def crediting(buffers: Desk) -> CreditPolicy:
    return CreditPolicy(cast(Session, buffers), cast(Writer, buffers))


def _come(buffers: Desk, crediting: CreditPolicy, length: int, now_s: float) -> None:
    buffers.payload_received += length
    crediting.received(length, now_s)


@pytest.mark.clause("BP1-CRD-007")
def test_early_it_is_said_whenever_a_little_more_has_come(buffers: Desk, crediting: CreditPolicy) -> None:
    """All in one instant, as on a fast line; in pieces of 4 KiB."""
    while buffers.payload_received < EARLY_LENGTH:
        before = buffers.granted
        _come(buffers, crediting, 4096, 0.0)
        step = min(max(EARLY_STEP, buffers.payload_received // 4), EARLY_STEP_MOST)
        assert buffers.payload_received - before <= step + 4096
    assert 120 < len(buffers.said) < 150


@pytest.mark.clause("BP1-CRD-007")
def test_later_a_little_waits_until_it_is_time(buffers: Desk, crediting: CreditPolicy) -> None:
    _come(buffers, crediting, 2 * EARLY_LENGTH, 0.0)
    said = len(buffers.said)
    _come(buffers, crediting, 100_000, 0.01)
    assert len(buffers.said) == said
    assert crediting.due_s == EVERY_S
    crediting.look(crediting.due_s)
    assert len(buffers.said) == said + 1
    crediting.look(2 * EVERY_S)
    assert len(buffers.said) == said + 1  # nothing has come since then


@pytest.mark.clause("BP1-CRD-007")
def test_a_quarter_of_the_window_does_not_wait(buffers: Desk, crediting: CreditPolicy) -> None:
    _come(buffers, crediting, 2 * EARLY_LENGTH, 0.0)
    said = len(buffers.said)
    _come(buffers, crediting, WINDOW // 4 - 1, 0.01)
    assert len(buffers.said) == said
    _come(buffers, crediting, 128 * 1024, 0.02)
    assert len(buffers.said) == said + 1


@pytest.mark.clause("BP1-CRD-006")
def test_who_waits_for_the_last_of_a_stream_is_granted_it_at_once(
    buffers: Desk, crediting: CreditPolicy
) -> None:
    buffers.payload_received = 1
    crediting.caught_up(more_waits=True)
    assert buffers.said == []
    crediting.caught_up(more_waits=False)
    assert buffers.said == [1]

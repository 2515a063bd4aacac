"""The memory that frames of files take: of whom and of all, who waits for room, and whose turn it is."""

from __future__ import annotations

import pytest

from blockproto.errors import Code, Refused
from blockproto.transfer import frame_memory
from blockproto.transfer.frame_memory import FrameMemory, Granted


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_memory, "HELD_EACH", 100)
    monkeypatch.setattr(frame_memory, "HELD_MAX", 250)


class Senders:
    """Frames of 60 bytes, and in which order they were granted."""

    def __init__(self) -> None:
        self.memory = FrameMemory()
        self.granted: list[str] = []
        self._waits: dict[str, Granted] = {}

    def send(self, name: str, count: int = 1) -> None:
        """``alice 1`` is a frame of alice's."""
        for _ in range(count):
            waits = self._waits.setdefault(name, self._on_grant(name))
            if self.memory.take(name.split()[0], 60, waits):
                self.granted.append(name)

    def stored(self, name: str) -> None:
        self.memory.give(name.split()[0], 60)

    def leave(self, name: str) -> None:
        self.memory.leave(name.split()[0], self._waits[name])

    def _on_grant(self, name: str) -> Granted:
        def granted(length: int) -> None:
            assert length == 60
            self.granted.append(name)

        return granted


def test_a_principal_has_its_share_and_no_more() -> None:
    senders = Senders()
    senders.send("alice 1")
    senders.send("alice 2")  # less than its share was held
    senders.send("alice 3")
    assert senders.granted == ["alice 1", "alice 2"]
    senders.stored("alice 1")
    assert senders.granted == ["alice 1", "alice 2", "alice 3"]
    assert senders.memory.held == 120


def test_of_what_all_hold_everybody_has_one_frame_all_the_same() -> None:
    senders = Senders()
    senders.send("alice", 2)
    senders.send("bob", 2)
    senders.send("carol", 1)
    assert senders.memory.held == 300  # the last one began when less than the most was held
    senders.send("dave", 2)
    assert senders.granted.count("dave") == 1
    senders.stored("dave")
    assert senders.granted.count("dave") == 2


def test_those_who_wait_are_in_turn_and_each_in_its_order() -> None:
    senders = Senders()
    senders.send("alice", 2)
    senders.send("bob", 2)
    senders.send("carol", 1)
    for name in ("alice 1", "alice 2", "alice 3", "bob 1", "carol 1"):
        senders.send(name)
    del senders.granted[:]
    for name in ("alice", "alice", "bob", "bob", "carol", "alice"):
        senders.stored(name)
    assert senders.granted == ["alice 1", "carol 1", "alice 2", "bob 1", "alice 3"]


def test_nobody_who_comes_later_passes_those_who_wait() -> None:
    senders = Senders()
    senders.send("alice", 2)
    senders.send("alice 3")
    senders.send("alice 4")
    senders.stored("alice")
    senders.stored("alice")
    assert senders.granted[2:] == ["alice 3", "alice 4"]


def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one principal, and of all; whoever has none that waits may have one all the same."""
    monkeypatch.setattr(frame_memory, "WAITING_EACH", 3)
    monkeypatch.setattr(frame_memory, "WAITING_MAX", 4)
    senders = Senders()
    for name in ("alice", "bob"):
        senders.send(name, 2)
    for number in range(3):
        senders.send(f"alice {number}")
    with pytest.raises(Refused) as refused:
        senders.send("alice 3")
    assert (refused.value.code, refused.value.retryable) == (Code.BUSY, True)
    assert refused.value.retry_after_ms
    senders.send("bob 0")
    with pytest.raises(Refused):
        senders.send("bob 1")
    senders.send("carol 0")
    senders.send("carol 1")
    senders.leave("alice 0")
    senders.leave("alice 1")
    senders.send("bob 1")
    for name in ("alice", "alice", "bob", "bob", "carol", "carol", "alice", "bob", "bob"):
        senders.stored(name)
    assert senders.granted.count("alice 2") == senders.granted.count("bob 1") == 1
    assert (senders.memory.held, senders.memory._waiting) == (0, 0)


def test_who_has_left_gets_nothing_and_nothing_is_kept() -> None:
    senders = Senders()
    senders.send("alice", 2)
    senders.send("alice 3")
    senders.send("alice 4")
    senders.leave("alice 3")
    senders.leave("alice 3")
    senders.stored("alice")
    assert senders.granted[2:] == ["alice 4"]
    senders.send("alice 5")
    senders.leave("alice 5")
    senders.stored("alice")
    senders.stored("alice")
    senders.leave("alice 5")
    assert (senders.memory.held, senders.memory._waiting) == (0, 0)
    assert not senders.memory._shares
    assert not senders.memory._turn

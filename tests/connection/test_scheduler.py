"""Turns: one writer at a time, control first, payload by weight, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from peers import run

from blockproto.connection.scheduler import CONTROL, WEIGHTS, Scheduler

quick = pytest.mark.trio(run=run)

PIECE = 1000


async def _share(turns: Scheduler, senders: dict[str, tuple[int, int]], pieces: int) -> Counter[str]:
    """Let every sender (priority, piece length) write without end, and count its bytes in the first ``pieces``."""
    written: Counter[str] = Counter()
    served = 0

    async def sender(name: str, priority: int, length: int, scope: trio.CancelScope) -> None:
        nonlocal served
        while True:
            await turns.take(priority)
            if served == pieces:
                scope.cancel()
            written[name] += length
            served += 1
            await trio.lowlevel.checkpoint()  # the write
            turns.give(priority, length)

    async with trio.open_nursery() as nursery:
        for name, (priority, length) in senders.items():
            nursery.start_soon(sender, name, priority, length, nursery.cancel_scope)
    return written


@pytest.mark.clause("BP1-STR-012")
@quick
async def test_three_priorities_share_16_to_4_to_1_by_bytes() -> None:
    written = await _share(
        Scheduler(), {"interactive": (0, PIECE), "normal": (1, PIECE), "bulk": (2, PIECE)}, 2100
    )
    total = sum(written.values())
    for name, weight in zip(("interactive", "normal", "bulk"), WEIGHTS, strict=True):
        assert written[name] / total == pytest.approx(weight / sum(WEIGHTS), rel=0.05)


@quick
async def test_weights_count_bytes_not_turns() -> None:
    written = await _share(Scheduler(), {"small pieces": (1, 100), "long pieces": (2, 10_000)}, 4000)
    assert written["small pieces"] / written["long pieces"] == pytest.approx(4, rel=0.1)


@pytest.mark.clause("BP1-STR-012")
@quick
async def test_streams_of_one_priority_take_turns() -> None:
    written = await _share(Scheduler(), dict.fromkeys("abc", (1, PIECE)), 300)
    assert max(written.values()) - min(written.values()) <= PIECE


@pytest.mark.clause("BP1-STR-012")
@quick
async def test_no_priority_starves() -> None:
    written = await _share(Scheduler(), {"first": (0, PIECE), "second": (0, PIECE), "bulk": (2, PIECE)}, 100)
    assert written["bulk"] >= 3 * PIECE


@quick
async def test_an_idle_priority_saves_up_no_claim() -> None:
    """After a megabyte of bulk alone, an interactive stream gets its weight from now on, not the past too."""
    turns = Scheduler()
    for _ in range(1000):
        await turns.take(2)
        turns.give(2, PIECE)
    written = await _share(turns, {"interactive": (0, PIECE), "bulk": (2, PIECE)}, 340)
    assert written["interactive"] / written["bulk"] == pytest.approx(16, rel=0.1)


async def _wait_in_line(turns: Scheduler, priority: int, order: list[str], name: str) -> None:
    await turns.take(priority)
    order.append(name)
    turns.give(priority, PIECE)


@quick
async def test_control_goes_before_every_payload() -> None:
    turns, order = Scheduler(), list[str]()
    await turns.take(2)
    async with trio.open_nursery() as nursery:
        for name, priority in (("interactive", 0), ("bulk", 2), ("control", CONTROL)):
            nursery.start_soon(_wait_in_line, turns, priority, order, name)
            await trio.testing.wait_all_tasks_blocked()
        turns.give(2, PIECE)
    assert order[0] == "control"


@quick
async def test_a_small_interactive_file_passes_a_bulk_one() -> None:
    turns, order = Scheduler(), list[str]()
    await turns.take(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_in_line, turns, 2, order, "bulk")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_wait_in_line, turns, 0, order, "interactive")
        await trio.testing.wait_all_tasks_blocked()
        turns.give(2, PIECE)
    assert order == ["interactive", "bulk"]


@quick
async def test_who_may_not_go_is_passed_over_until_woken() -> None:
    turns, order = Scheduler(), list[str]()
    credit = False

    async def waits_for_credit() -> None:
        await turns.take(0, lambda: credit)
        order.append("interactive")
        turns.give(0, PIECE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits_for_credit)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_wait_in_line, turns, 2, order, "bulk")
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["bulk"]
        credit = True
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["bulk"]  # nobody said so yet
        turns.wake()
    assert order == ["bulk", "interactive"]
    assert not turns.held


@quick
async def test_one_stream_without_credit_does_not_hold_its_priority_up() -> None:
    turns, order = Scheduler(), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.take, 1, lambda: False)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_wait_in_line, turns, 1, order, "other")
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["other"]
        nursery.cancel_scope.cancel()


@quick
async def test_a_cancelled_waiter_holds_nothing() -> None:
    turns = Scheduler()
    await turns.take(1)
    with trio.move_on_after(1) as scope:
        await turns.take(1)
    assert scope.cancelled_caught
    turns.give(1, PIECE)
    await turns.take(1)
    assert turns.held
    turns.give(1, PIECE)
    assert not turns.held


@quick
async def test_only_one_holds_the_turn() -> None:
    turns = Scheduler()
    holding = 0

    async def writer(priority: int) -> None:
        nonlocal holding
        for _ in range(20):
            await turns.take(priority)
            assert holding == 0
            holding += 1
            await trio.lowlevel.checkpoint()
            holding -= 1
            turns.give(priority, PIECE)

    async with trio.open_nursery() as nursery:
        for priority in (0, 1, 2, CONTROL, 1, CONTROL):
            nursery.start_soon(writer, priority)
    assert not turns.held

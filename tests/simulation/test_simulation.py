"""A slice of the simulation; ``make simulate`` runs the rest."""

from __future__ import annotations

import pytest
import trio
import trio._core._run as scheduler

from .determinism import Worker, run_repeatable
from .mix import Mix
from .run import simulate

CLIENTS = 8
SEEDS = 60
BATCH = 10


@pytest.mark.parametrize("first", range(1, SEEDS + 1, BATCH))
def test_whatever_goes_wrong_every_promise_is_kept(first: int) -> None:
    for seed in range(first, first + BATCH):
        simulate(seed, CLIENTS)


@pytest.mark.parametrize("seed", [3, 13, 29])
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    one, other = simulate(seed, CLIENTS, keep=True), simulate(seed, CLIENTS, keep=True)
    assert one.trace == other.trace
    assert one.digest == other.digest != simulate(seed + 1, CLIENTS).digest


def test_seeds_draw_different_troubles() -> None:
    import random

    drawn = [Mix.draw(random.Random(seed)) for seed in range(200)]
    for name in ("cut", "black_hole", "kill_client", "kill_server", "die_in_commit", "rivals", "full_disk"):
        there = sum(1 for mix in drawn if getattr(mix, name))
        assert 20 < there < 180, name


def test_something_happens() -> None:
    """Of what can go wrong something does, and it is survived."""
    outcome = simulate(1, CLIENTS, mix=Mix.calm(kill_server=5.0, cut=0.5, black_hole=0.2, rivals=0.5))
    assert outcome.restarts > 0
    assert outcome.acks > 0
    assert outcome.events > 50


def _order(seed: int) -> list[int]:
    """In which order eight tasks run that are all ready."""
    order: list[int] = []

    async def run(number: int) -> None:
        for _ in range(3):
            order.append(number)
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(run, number)

    run_repeatable(seed, Worker(lambda: 0.0), main)
    return order


def test_trios_private_hook_is_still_there_and_decides_the_order() -> None:
    assert isinstance(scheduler._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert _order(1) == _order(1)
    assert len({tuple(_order(seed)) for seed in range(8)}) > 4


def test_time_threads_and_random_bytes_are_simulated() -> None:
    import os
    import secrets
    import threading
    import time

    async def look() -> tuple[object, ...]:
        begun = time.perf_counter()
        await trio.sleep(3600)
        thread = await trio.to_thread.run_sync(threading.get_ident)
        return time.perf_counter() - begun, thread, os.urandom(4), secrets.token_bytes(4), time.time_ns()

    worker = Worker(lambda: 2.0)
    one, other = (run_repeatable(7, Worker(lambda: 2.0), look) for _ in range(2))
    assert one == other
    assert one[:2] == (pytest.approx(3602.0), threading.get_ident())
    assert one[2] != one[3]
    assert worker.stalled_s == 0.0

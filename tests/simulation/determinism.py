"""The one place where a run is made repeatable: clock, scheduler, threads, random bytes.

Trio chooses by lot which of several ready tasks goes first. ``_ALLOW_DETERMINISTIC_SCHEDULING`` and ``_r`` are private
names of Trio, and so is what lets its clock be read quickly; ``test_simulation.py`` says at once when they are gone or
mean something else.
"""

from __future__ import annotations

import gc
import math
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from unittest import mock

import trio
import trio._core._run as scheduler
from trio.testing import MockClock

EPOCH_S = 1_800_000_000
"""When simulated time begins, Unix seconds."""

clock_wrong_s: ContextVar[float] = ContextVar("clock_wrong_s", default=0.0)
"""How far the clock of this device is ahead of the others', seconds."""

T = TypeVar("T")
Delay = Callable[[], float]


class Worker:
    """Stands in for worker threads: work is done in the task that asked for it, after as long as the disk is busy.

    Attributes:
        delay: says how many seconds the next work takes.
        stalled_s: how long work that was done inline has held everybody up; a clock that is read sees it.
    """

    def __init__(self, delay: Delay) -> None:
        self.delay = delay
        self.stalled_s = 0.0

    async def run_sync(self, work: Callable[..., T], *args: Any, **_: Any) -> T:
        """Like ``trio.to_thread.run_sync``: cancelled before it begins, or not at all."""
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            await trio.sleep(self.delay())
        return work(*args)


@contextmanager
def repeatable(seed: int, worker: Worker) -> Iterator[None]:
    """While this lasts, the same run happens again for the same seed."""
    rng = random.Random(f"bytes {seed}")

    def now_s() -> float:
        return trio.current_time() + worker.stalled_s

    def now_ns() -> int:
        return int((EPOCH_S + now_s() + clock_wrong_s.get()) * 1e9)

    everybodys = random.getstate()
    random.seed(f"everybody's {seed}")
    collecting = gc.isenabled()
    gc.disable()  # what is collected, and when, depends on all that ran before
    try:
        with (
            mock.patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            mock.patch.object(scheduler, "_r", random.Random(f"scheduler {seed}")),
            mock.patch.object(trio.to_thread, "run_sync", worker.run_sync),
            mock.patch.object(time, "perf_counter", now_s),
            mock.patch.object(time, "time_ns", now_ns),
            mock.patch.object(os, "urandom", rng.randbytes),
            mock.patch.object(secrets, "token_bytes", lambda length=32: rng.randbytes(length)),
        ):
            yield
    finally:
        random.setstate(everybodys)
        if collecting:
            gc.enable()


def _quick_clock() -> MockClock:
    """A clock that jumps. Nothing ever passes on it by itself, so it can be read without looking at the real one."""
    clock: Any = MockClock(autojump_threshold=0)

    def jump() -> None:
        deadline = scheduler.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        if clock._virtual_base < deadline < math.inf:
            clock._virtual_base = deadline

    clock.current_time = lambda: clock._virtual_base
    clock._autojump = jump  # without a whole report of what Trio does
    return clock  # type: ignore[no-any-return]


def run_repeatable(seed: int, worker: Worker, main: Callable[[], Awaitable[T]]) -> T:
    """``trio.run(main)`` on a clock that jumps, the same every time for the same seed."""
    clock = _quick_clock()
    try:
        with repeatable(seed, worker):
            return trio.run(main, clock=clock)
    finally:
        gc.collect()

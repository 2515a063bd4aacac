"""Worker threads: the only place that runs blocking store code away from the Trio thread.

Each kind of work has threads of its own, and one peer gets only some of them. A store call that has begun is never
abandoned. If the system starts no more threads, a request is refused (``NoThread``), and work that must be done is done on
the Trio thread (``run_anyhow``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

import trio

from ..errors import Code, Refused
from ..observability.observer import CURRENT_CONNECTION

NO_THREAD_MS = 1000
"""How long to ask the client to wait whose request found no thread."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class Kind(Enum):
    """A kind of work: its name, how many threads it has, and how many of them one peer may use.

    With threads of their own, kinds do not wait for each other: many listings delay no commit. A peer can ask on thousands
    of streams at once; what exceeds its threads waits only for its own answers.
    """

    COMMIT = "commit", 2, 2
    WRITE = "write", 16, 16
    READ = "read", 8, 8
    LOOK = "look", 8, 2
    LIST = "list", 2, 2
    HASH = "hash", 1, 1

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return self.value[1]

    @property
    def of_one(self) -> int:
        """How many of them one peer may use."""
        return self.value[2]


class _Threads:
    """The worker threads of each kind."""

    def __init__(self) -> None:
        self._limiters = {kind: trio.CapacityLimiter(kind.threads) for kind in Kind}
        self._shares: dict[tuple[Kind, int], trio.Semaphore] = {}

    async def run(self, kind: Kind, peer: int, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread of its kind, as soon as ``peer`` may use one more."""
        limiter = self._limiters[kind]
        if not peer or kind.of_one == kind.threads:
            return await trio.to_thread.run_sync(work, limiter=limiter)
        key = kind, peer
        share = self._shares.setdefault(key, trio.Semaphore(kind.of_one))
        try:
            share.acquire_nowait()
        except trio.WouldBlock:
            await share.acquire()
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter)
        finally:
            share.release()
            if share.value == kind.of_one:
                del self._shares[key]  # it neither uses nor waits for any


_threads: trio.lowlevel.RunVar[_Threads] = trio.lowlevel.RunVar("threads")


def _all_threads() -> _Threads:
    try:
        return _threads.get()
    except LookupError:
        _threads.set(_Threads())
        return _threads.get()


def present_peer() -> int:
    """The number of the connection for which the present task works; 0: none."""
    connection_label = CURRENT_CONNECTION.get()
    return 0 if connection_label is None else connection_label.number


class NoThread(Refused):
    """The system starts no more threads; the same request can succeed a little later."""

    def __init__(self) -> None:
        super().__init__("the system starts no more threads now", code=Code.BUSY, retry_after_ms=NO_THREAD_MS)


async def run_in_thread(work: Callable[[], T], kind: Kind = Kind.LOOK) -> T:
    """Run blocking store code in a worker thread of its ``kind``.

    Raises:
        NoThread: the system starts no more threads; ``work`` was not begun.

    Cancellation: nothing was done if no thread was free yet; otherwise the call is waited for.
    """
    begun = False
    results: list[T] = []
    errors: list[Exception] = []

    def begin() -> None:
        nonlocal begun
        begun = True
        try:
            results.append(work())  # an error passed through Trio would be in a reference cycle
        except Exception as exc:
            errors.append(exc)

    try:
        await _all_threads().run(kind, present_peer(), begin)
    except (RuntimeError, MemoryError, OSError) as exc:
        if begun:
            raise
        raise NoThread from exc
    if errors:
        raise errors.pop()
    return results.pop()


async def run_anyhow(work: Callable[[], T], kind: Kind = Kind.LOOK) -> T:
    """As ``run_in_thread``, but on the Trio thread if the system starts no more: for work that must be done."""
    try:
        return await run_in_thread(work, kind)
    except NoThread as exc:
        extra = {"event": "no thread"}
        log.debug("on the main thread, and everybody waits meanwhile: %s", exc, extra=extra)
    return work()


async def commit_in_thread(work: Callable[[], T]) -> T:
    """Run a commit, as ``run_anyhow``."""
    return await run_anyhow(work, Kind.COMMIT)

"""Threads that do a few things beside each other, and all the same where the system starts no thread more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor


class Threads:
    """A pool.

    Args:
        most: how many threads at once.
        name: what they are called.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._pool: ThreadPoolExecutor | None = None

    def run(self, tasks: Sequence[Callable[[], None]]) -> list[Future[None]]:
        """Do each of ``tasks`` once: in threads, or before this returns where none can be started."""
        pool = self._pool = self._pool or ThreadPoolExecutor(self._most, self._name)
        return [_Once(task).begin(pool) for task in tasks]

    def close(self) -> None:
        """Wait for what is being done. Harmless when repeated."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()


class _Once:
    """A task that two may come to: a pool that finds no thread keeps it, for a thread that may come to it later."""

    def __init__(self, task: Callable[[], None]) -> None:
        self._task = task
        self._taken = threading.Lock()
        self._done: Future[None] = Future()

    def begin(self, pool: ThreadPoolExecutor) -> Future[None]:
        try:
            pool.submit(self._do)
        except (RuntimeError, MemoryError, OSError):
            self._do()
        return self._done

    def _do(self) -> None:
        if not self._taken.acquire(blocking=False):
            return
        try:
            self._done.set_result(self._task())
        except BaseException as exc:
            self._done.set_exception(exc)

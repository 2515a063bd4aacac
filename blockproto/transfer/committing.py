"""The committer: the one place that makes things durable, and the only one that runs store code in worker threads.

One committer serves all connections. It takes what is queued *now*, syncs it as one batch, and takes again; so an idle
server commits each block at once and a busy one forms batches by itself. There is no timer. A batch holds at most
``BATCH_LENGTH_MAX`` bytes or ``BATCH_WORKS_MAX`` works; principals are served in turn, one with a long queue has a share of
the batches while there are others, and of each principal the small works (files of one block, removals, prefixes) go before
the blocks of big ones.

Rules:
    1. Works of one upload are done in the order in which they were submitted: small and big works never share an upload.
    2. ``done`` is called for every work, on the Trio thread, after the batch is durable; never before.
    3. When the store reports ``StoreFailed``, or anything that nobody expected, the committer stops for good: nothing is
       acknowledged after that.
    4. What a ``done`` raises concerns whoever submitted the work, never the store (BP1-ERR-010).
    5. A batch that finds no thread is committed on the Trio thread: what was taken is kept.

Spec: BP1-RES (ACK is durable); spec/store.md.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Protocol, TypeVar

import trio

from ..blocks import BLOCK_LENGTH
from ..errors import BlockprotoError, Code, Refused, StoreFailed
from ..link.unexpected import unexpected
from ..store import Adopt, BlockDone, Finish, KeepPrefixes, Undecided, Upload, UploadStore, Work
from ..watch import NOBODY, Watch

BATCH_LENGTH_MAX = 64 << 20
BATCH_WORKS_MAX = 512
WORKS_OF_ONE_MAX = 16
"""Of a principal in a batch while there are others: who comes when it has begun waits for the whole of it."""
LAST_BATCHES = 32
"""Whoever was in one of so many is there."""
QUICK_S = 0.005
"""A write that takes longer than this is slow (store calls leave the Trio thread while any of the last ones was)."""
HANGING_S = 0.2
"""A write that takes longer than this is not the scheduler's doing: one is enough."""
NO_THREAD_MS = 1000
"""How long the client of a request that found no thread is asked to wait."""
_LAST_CALLS = 16
_SLOW_AT = 2

log = logging.getLogger(__name__)

T = TypeVar("T")
RunBlocking = Callable[[Callable[[], T]], Awaitable[T]]
Done = Callable[[Work], None]
Compare = Callable[[tuple[str, ...], bytes, Callable[[], None]], None]
"""Reads the files of those names for a principal, then calls."""


class Kind(Enum):
    """What a worker thread is wanted for, and how many threads there are for that.

    Each kind has threads of its own, so that none waits for another: a crowd that lists folders keeps no commit waiting.
    """

    COMMIT = "commit", 2
    WRITE = "write", 16
    READ = "read", 8
    LOOK = "look", 8
    LIST = "list", 2
    HASH = "hash", 1

    @property
    def threads(self) -> int:
        """How many of the kind work at once."""
        return self.value[1]


_limiters: trio.lowlevel.RunVar[dict[Kind, trio.CapacityLimiter]] = trio.lowlevel.RunVar("threads")


def _limiter(kind: Kind) -> trio.CapacityLimiter:
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = {one: trio.CapacityLimiter(one.threads) for one in Kind}
        _limiters.set(limiters)
    return limiters[kind]


class NoThread(Refused):
    """The system starts no more threads: the request that wanted one can be made again a little later."""

    def __init__(self) -> None:
        super().__init__("the system starts no more threads now", code=Code.BUSY, retry_after_ms=NO_THREAD_MS)


async def run_in_thread(work: Callable[[], T], kind: Kind = Kind.LOOK) -> T:
    """Run blocking store code in a worker thread of its ``kind``.

    Raises:
        NoThread: the system starts no more threads; ``work`` was not begun.

    Cancellation: while it waits for a thread, nothing was done; then it is waited for: a store call is never abandoned.
    """
    begun = False

    def begin() -> T:
        nonlocal begun
        begun = True
        return work()

    try:
        return await trio.to_thread.run_sync(begin, limiter=_limiter(kind))
    except (RuntimeError, MemoryError, OSError) as exc:
        if begun:
            raise
        raise NoThread from exc


async def run_anyhow(work: Callable[[], T], kind: Kind = Kind.LOOK) -> T:
    """As ``run_in_thread``; on the Trio thread where the system starts none, for what must not be left undone."""
    try:
        return await run_in_thread(work, kind)
    except NoThread as exc:
        log.debug("on the main thread, and everybody waits meanwhile: %s", exc)
    return work()


async def commit_in_thread(work: Callable[[], T]) -> T:
    """Run a commit, as ``run_anyhow``."""
    return await run_anyhow(work, Kind.COMMIT)


class _Lane:
    """What one principal has queued."""

    def __init__(self) -> None:
        self.small: deque[tuple[Work, Done]] = deque()
        self.big: deque[tuple[Work, Done]] = deque()

    def pop(self) -> tuple[Work, Done] | None:
        queue = self.small or self.big
        return queue.popleft() if queue else None


def _length(work: Work) -> int:
    if isinstance(work, BlockDone):
        return work.length
    if isinstance(work, KeepPrefixes):
        return BLOCK_LENGTH  # it opens a file and syncs it, as a block does
    return sum(block.length for block in work.blocks) if isinstance(work, Finish) else 0


class Accounts(Protocol):
    """Who counts what becomes durable."""

    def admit(self, work: Work) -> BlockprotoError | None:
        """Why the bytes of a work may not become durable, or None; ``settle`` follows."""

    def settle(self, work: Work) -> None:
        """The work has its outcome."""


class Committer:
    """Queues works and commits them in batches.

    Args:
        store: where to commit; ``commit`` is called by this object only.
        run_blocking: how to run blocking code; tests run it inline.
        watch: hears of each batch that is durable.

    Attributes:
        failed: why nothing is taken any more.
        accounts: counts what becomes durable, and may forbid it; None: nobody does.
        compare: reads files that have to be compared first; None: such a work ends as ``Undecided``.
    """

    def __init__(
        self,
        store: UploadStore,
        run_blocking: RunBlocking[None] = commit_in_thread,
        watch: Watch = NOBODY,
    ) -> None:
        self.failed: StoreFailed | None = None
        self.accounts: Accounts | None = None
        self._store = store
        self._run_blocking = run_blocking
        self._watch = watch
        self._lanes: dict[bytes, _Lane] = {}
        self._turn: deque[bytes] = deque()
        self._last: deque[frozenset[bytes]] = deque(maxlen=LAST_BATCHES)
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self.compare: Compare | None = None
        self._compared = 0

    def submit(self, work: Work, done: Done, *, principal: bytes, small: bool = False) -> None:
        """Queue ``work``; ``done(work)`` is called when its outcome is set and durable.

        Raises:
            StoreFailed: the store has failed; nothing is taken any more.
        """
        if self.failed is not None:
            raise self.failed
        lane = self._lanes.get(principal)
        if lane is None:
            lane = self._lanes[principal] = _Lane()
            self._turn.append(principal)
        (lane.small if small else lane.big).append((work, done))
        self._idle = self._idle if not self._idle.is_set() else trio.Event()
        self._wake.set()

    async def run(self) -> None:
        """Commit until cancelled.

        Raises:
            StoreFailed: the medium reported an error.

        Cancellation: the batch under way is finished first; its works are not reported.
        """
        while True:
            await self._wake.wait()
            batch = self._take()
            if not batch:
                self._wake = trio.Event()
                if not self._compared:
                    self._idle.set()
                continue
            await self._commit(batch)

    @property
    def queued(self) -> int:
        """How many works wait for their batch."""
        return sum(len(lane.small) + len(lane.big) for lane in self._lanes.values())

    async def drain(self) -> None:
        """Wait until everything submitted so far is durable; returns at once when the store has failed."""
        if self.failed is None:
            await self._idle.wait()

    async def _commit(self, batch: list[tuple[Work, Done]]) -> None:
        works = [work for work, _ in batch]
        begun = time.perf_counter()
        allowed = self._admit(works)
        try:
            if allowed:
                await self._run_blocking(lambda: self._store.commit(allowed))
        except StoreFailed as exc:
            self._fail(exc)
            raise
        except Exception as exc:
            unexpected("making things durable", exc)
            raise self._fail(
                StoreFailed(f"making things durable met an error that nobody expected: {exc!r}")
            ) from exc
        if self.accounts is not None:
            for work in works:
                self.accounts.settle(work)
        self._told(self._watch.committed, works, time.perf_counter() - begun)
        for work, done in batch:
            if isinstance(work, Finish | Adopt) and isinstance(work.outcome, Undecided) and self.compare:
                self._again(work, work.outcome.names, done, self.compare)
            else:
                self._told(done, work)

    def _admit(self, works: Sequence[Work]) -> list[Work]:
        """The works whose bytes may become durable, and those that store none."""
        allowed = []
        for work in works:
            veto = None if self.accounts is None else self.accounts.admit(work)
            if isinstance(work, BlockDone) and veto is not None:
                work.outcome = work.veto = veto
                continue
            if isinstance(work, Finish):
                work.veto = veto
            allowed.append(work)
        return allowed

    def _again(self, work: Finish | Adopt, names: tuple[str, ...], done: Done, compare: Compare) -> None:
        """Submit a work again once the files of those names were read; others' works are done meanwhile."""
        principal = work.key.principal if isinstance(work, Adopt) else work.upload.key.principal
        work.rounds += 1
        self._compared += 1

        def submit() -> None:
            self._compared -= 1
            if self.failed is None:
                self.submit(work, done, principal=principal, small=True)

        if names:
            compare(names, principal, submit)
        else:
            submit()

    def _fail(self, failure: StoreFailed) -> StoreFailed:
        self.failed = failure
        self._idle.set()
        return failure

    @staticmethod
    def _told(tell: Callable[..., object], *args: object) -> None:
        """Tell whoever wants to know; what goes wrong there is not the store's."""
        try:
            tell(*args)
        except Exception as exc:
            unexpected("what waits for a work", exc)

    def _take(self) -> list[tuple[Work, Done]]:
        batch: list[tuple[Work, Done]] = []
        length = 0
        works: Counter[bytes] = Counter()
        there = frozenset(self._turn).union(*self._last)
        most = WORKS_OF_ONE_MAX if len(there) > 1 else BATCH_WORKS_MAX
        while self._turn and len(batch) < BATCH_WORKS_MAX and length < BATCH_LENGTH_MAX:
            if works[self._turn[0]] >= most:
                break
            principal = self._turn.popleft()
            taken = self._lanes[principal].pop()
            if taken is None:
                del self._lanes[principal]
                continue
            self._turn.append(principal)
            batch.append(taken)
            works[principal] += 1
            length += _length(taken[0])
        if batch:
            self._last.append(frozenset(works))
        return batch


async def commit_and_wait(committer: Committer, work: Work, principal: bytes) -> None:
    """Submit ``work`` and wait for its outcome; raises it if it is an error. Cancellation: it is done all the same."""
    done = trio.Event()
    committer.submit(work, lambda _: done.set(), principal=principal, small=True)
    await done.wait()
    if isinstance(work.outcome, BlockprotoError):
        raise work.outcome


class Disk:
    """Writes and reads of the Trio thread: inline while they are quick, in a worker thread while they are not.

    A hop to a thread costs as much as writing a block to the page cache; a write that waits for a slow disk would hold
    everybody. So the durations of the last writes decide.
    """

    def __init__(self) -> None:
        self._slow = False
        self._last: deque[int] = deque([0] * _LAST_CALLS, maxlen=_LAST_CALLS)

    @property
    def slow(self) -> bool:
        """Whether store calls leave the Trio thread now: one slow call can be the scheduler's doing, two are the disk's."""
        return self._slow

    async def write(self, upload: Upload, position: int, piece: memoryview) -> None:
        """``upload.write``; raises what it raises. Cancellation: a write begun in a thread is waited for."""
        if upload.in_memory:
            upload.write(position, piece)  # how quick that was tells nothing of the disk
        elif self.slow:
            await run_in_thread(lambda: self._timed(lambda: upload.write(position, piece)), Kind.WRITE)
        else:
            self._timed(lambda: upload.write(position, piece))

    async def read(self, reader: Callable[[int, memoryview], int], position: int, view: memoryview) -> int:
        """``reader(position, view)``, likewise."""
        return await self.run(lambda: reader(position, view))

    async def run(self, work: Callable[[], T]) -> T:
        """Any short ``work`` on files that reads, likewise."""
        return await run_in_thread(lambda: self._timed(work), Kind.READ) if self.slow else self._timed(work)

    def _timed(self, work: Callable[[], T]) -> T:
        begun = time.perf_counter()
        try:
            return work()
        finally:
            self.took(time.perf_counter() - begun)

    def took(self, duration_s: float) -> None:
        """A call took so long."""
        points = _SLOW_AT if duration_s > HANGING_S else int(duration_s > QUICK_S)
        self._last.append(points)
        if points or self._slow:
            self._slow = sum(self._last) >= _SLOW_AT


_local_disk: trio.lowlevel.RunVar[Disk] = trio.lowlevel.RunVar("local_disk")


def local_disk() -> Disk:
    """The disk of this machine, as a client knows it: what one file has shown counts for the next."""
    try:
        return _local_disk.get()
    except LookupError:
        _local_disk.set(Disk())
        return _local_disk.get()

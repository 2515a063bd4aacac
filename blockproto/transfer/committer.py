"""The committer: the one place that makes things durable.

One committer serves all connections. It takes what is queued *now*, syncs it as one batch, and takes again; so an idle
server commits each block at once and a busy one forms batches by itself. There is no timer. A batch holds at most
``BATCH_LENGTH_MAX`` bytes or ``BATCH_WORKS_MAX`` works (one with many files counts as several); principals are served in
turn, and so are the peers (connections) of each; one with a long queue has a share of the batches while there are others. Of
each principal the small works (files of one block, removals) go before the blocks of big ones.

Rules:
    1. Works of one upload are done in the order in which they were submitted: small and big works never share an upload,
       those of an upload that is alive are in the queue of one peer, even if others send it too, and while one batch has
       works of an upload no other has.
    2. ``done`` is called with the outcome of every work, on the Trio thread, after the batch is durable; never before.
    3. When the store reports ``StoreFailed``, or anything that nobody expected, the committer stops for good: nothing is
       acknowledged after that.
    4. What a ``done`` raises concerns the submitter of the work, never the store (BP1-ERR-010).
    5. A batch that finds no thread is committed on the Trio thread: what was taken is kept.
    6. No upload becomes a file before the hooks have agreed (BP1-COM-029). Works that wait for them, or for a comparison,
       hold up no others.

Spec: BP1-RES (ACK is durable); spec/store.md.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import trio

from ..common.blocks import BLOCK_LENGTH
from ..connection.unexpected_errors import unexpected
from ..errors import BlockprotoError, StoreFailed
from ..observability.observer import NULL_OBSERVER, Observer
from ..store import (
    Adopt,
    AskFirst,
    BlockDone,
    Decided,
    FileOutcome,
    Finish,
    KeepPrefixes,
    Outcome,
    Remove,
    StoredFile,
    StoreFiles,
    Undecided,
    Unfinished,
    Upload,
    UploadKey,
    UploadStore,
    WholeFile,
    Work,
)
from .commit_queue import Done, PrincipalQueue, Queued, Share, works_of
from .hooks import HookRunner
from .threads import commit_in_thread, present_peer

BATCH_LENGTH_MAX = 64 << 20
BATCH_WORKS_MAX = 512
WORKS_OF_ONE_MAX = 16
"""Of a principal in a batch while there are others: a work that arrives after a batch began waits for all of it."""
WORKS_OF_PEER_MAX = 64
"""Of a peer in a batch while its principal has others, which are mostly one user's; of works that cost more, fewer."""
LAST_BATCHES = 32
"""A principal or peer that was in one of this many last batches counts as present."""
PAUSE_S = 1.0
"""But not after a time in which nobody had any work: who sends many files then has whole batches for them."""

log = logging.getLogger(__name__)

T = TypeVar("T")
RunBlocking = Callable[[Callable[[], T]], Awaitable[T]]
_Storing = Finish | Adopt | StoreFiles
"""What gives files their names: hooks are asked before, and what is there may have to be compared."""
Compare = Callable[[tuple[str, ...], bytes, Callable[[], None]], None]
"""Reads the files of those names for a principal, then calls."""


def _length(work: Work) -> int:
    if isinstance(work, BlockDone):
        return work.length
    if isinstance(work, KeepPrefixes):
        return BLOCK_LENGTH  # it opens a file and syncs it, as a block does
    if isinstance(work, StoreFiles):
        return sum(file.length for file in work.files)
    return sum(block.length for block in work.blocks) if isinstance(work, Finish) else 0


class Accounts(Protocol):
    """What counts the bytes that become durable."""

    def admit(self, work: Work) -> BlockprotoError | None:
        """Why the bytes of a work may not become durable, or None; ``settle`` follows."""

    def admit_files(self, work: StoreFiles) -> StoreFiles:
        """The work with a veto on each file whose bytes may not become durable; ``settle`` follows."""

    def settle(self, work: Work, outcome: Outcome) -> None:
        """The work is decided."""


class Committer:
    """Queues works and commits them in batches.

    Args:
        store: where to commit; ``decide`` is called by this object only.
        run_blocking: how to run blocking code; tests run it inline.
        observer: hears of each batch that is durable.

    Attributes:
        failed: why nothing is taken any more.
        accounts: counts what becomes durable, and may forbid it, or None.
        compare: reads files that have to be compared first; None: such a work ends as ``Undecided``.
        hooks: asked before a file gets its name, and told afterwards, or None.
    """

    def __init__(
        self,
        store: UploadStore,
        run_blocking: RunBlocking[Sequence[Outcome]] = commit_in_thread,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        self.failed: StoreFailed | None = None
        self.accounts: Accounts | None = None
        self._store = store
        self._run_blocking = run_blocking
        self._observer = observer
        self._principal_queues: dict[bytes, PrincipalQueue] = {}
        self._turn: deque[bytes] = deque()
        self._last: deque[frozenset[tuple[bytes, int]]] = deque(maxlen=LAST_BATCHES)
        self._ended_s = -PAUSE_S
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self.compare: Compare | None = None
        self.hooks: HookRunner | None = None
        self._put_off = 0
        self._running = 0
        self._busy: set[UploadKey] = set()

    def submit(
        self, work: Work, done: Done, *, principal: bytes, small: bool = False, peer: int | None = None
    ) -> None:
        """Queue ``work``; ``done(outcome)`` is called when it is decided, and durable.

        Args:
            work: the work.
            done: called on the Trio thread.
            principal: whose it is.
            small: it goes before the big ones of the principal.
            peer: in whose queue; None: of the one for which the present task works.

        Raises:
            StoreFailed: the store has failed; nothing is taken any more.
        """
        if isinstance(work, _Storing) and self.hooks is not None and self.hooks.asks:
            work = replace(work, unasked=True)
        self._queue(Queued(work, done, principal, present_peer() if peer is None else peer), small)

    def _queue(self, queued: Queued, small: bool) -> None:
        if self.failed is not None:
            raise self.failed
        principal_queue = self._principal_queues.get(queued.principal)
        if principal_queue is None:
            principal_queue = self._principal_queues[queued.principal] = PrincipalQueue()
            self._turn.append(queued.principal)
        (principal_queue.small if small else principal_queue.big).put(queued)
        self._idle = self._idle if not self._idle.is_set() else trio.Event()
        self._wake.set()

    async def run(self) -> None:
        """Commit until cancelled, as many batches at a time as the store decides at once.

        Raises:
            StoreFailed: the medium reported an error.

        Cancellation: the batches under way are finished first; their works are not reported.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(self._store.decisions_at_once):
                nursery.start_soon(self._commit_batches)
        assert self.failed is not None
        raise self.failed

    async def _commit_batches(self) -> None:
        while self.failed is None:
            await self._wake.wait()
            if batch := self._take():
                await self._commit(batch)
            elif self._wake.is_set():
                self._wake = trio.Event()
                if not self._put_off and not self._running:
                    self._idle.set()

    @property
    def queued(self) -> int:
        """How many works wait for their batch."""
        return sum(
            len(principal_queue.small) + len(principal_queue.big)
            for principal_queue in self._principal_queues.values()
        )

    async def drain(self) -> None:
        """Wait until everything submitted so far is durable; returns at once when the store has failed."""
        if self.failed is None:
            await self._idle.wait()

    async def _commit(self, batch: list[Queued]) -> None:
        begun = time.perf_counter()
        admitted = [self._admit(queued.work) for queued in batch]
        allowed = [work for work, refusal in admitted if refusal is None]
        outcomes: dict[Work, Outcome] = {}
        keys = (
            {key for queued in batch for key in queued.keys} if self._store.decisions_at_once > 1 else set()
        )
        self._running += 1
        self._busy |= keys
        try:
            if allowed:
                given = await self._run_blocking(lambda: self._store.decide(allowed))
                outcomes = dict(zip(allowed, given, strict=True))
        except StoreFailed as exc:
            self._fail(exc)
        except Exception as exc:
            unexpected("making things durable", exc)
            self._fail(StoreFailed(f"making things durable met an error that nobody expected: {exc!r}"))
        finally:
            self._running -= 1
            self._ended_s = trio.current_time()
            self._busy -= keys
            self._wake.set()  # works of these uploads may wait
        if self.failed is not None:
            return
        decided = [(work, outcomes.get(work, refusal)) for work, refusal in admitted]
        if self.accounts is not None:
            for work, outcome in decided:
                self.accounts.settle(work, outcome)
        self._told(self._observer.committed, decided, time.perf_counter() - begun)
        for queued, (_, outcome) in zip(batch, decided, strict=True):
            work = queued.work
            if isinstance(work, Finish | Adopt) and isinstance(outcome, Undecided) and self.compare:
                self._compare(queued, work, outcome.names, self.compare)
            elif isinstance(work, Finish | Adopt) and isinstance(outcome, AskFirst) and self.hooks:
                self._ask(queued, work, outcome.file_id, self.hooks)
            elif isinstance(work, Remove) and isinstance(outcome, Unfinished):
                self._again(queued, replace(work, begun=True))
            elif isinstance(work, StoreFiles) and isinstance(outcome, tuple):
                self._tell_files(queued, work, outcome)
            else:
                self._told(queued.done, outcome)
                if self.hooks is not None:
                    self._told(self.hooks.tell, work, outcome)

    def _tell_files(self, queued: Queued, work: StoreFiles, outcomes: tuple[FileOutcome, ...]) -> None:
        """Tell what became of the files, once those are decided, too, that wait for hooks or for a comparison."""
        if self.hooks is not None:
            self._told(self.hooks.tell, work, outcomes)
        unread = {at: one for at, one in enumerate(outcomes) if isinstance(one, Undecided) and self.compare}
        unasked = {at: one for at, one in enumerate(outcomes) if isinstance(one, AskFirst) and self.hooks}
        if not unread and not unasked:
            self._told(queued.done, outcomes)
            return
        known, left = list(outcomes), {*unread, *unasked}

        def part(places: Sequence[int]) -> tuple[Queued, StoreFiles]:
            """Those files as a work of their own."""

            def done(found: Outcome) -> None:
                assert isinstance(found, tuple)
                for at, one in zip(places, found, strict=True):
                    known[at] = one
                left.difference_update(places)
                if not left:
                    queued.done(tuple(known))

            those = replace(work, files=tuple(work.files[at] for at in places))
            return Queued(those, done, queued.principal, queued.peer), those

        if unread and self.compare:
            names = tuple(dict.fromkeys(name for one in unread.values() for name in one.names))
            self._compare(*part(list(unread)), names, self.compare)
        for at, one in unasked.items():
            if self.hooks is not None:
                self._ask(*part([at]), one.file_id, self.hooks)

    def _admit(self, work: Work) -> Decided:
        """The work as the store is asked for it; with why it is not even asked, or None."""
        if isinstance(work, StoreFiles):
            return (work if self.accounts is None else self.accounts.admit_files(work)), None
        veto = None if self.accounts is None else self.accounts.admit(work)
        if isinstance(work, Finish) and veto is not None:
            return replace(work, veto=veto), None  # the file may be there already
        return work, veto

    def _compare(self, queued: Queued, work: _Storing, names: tuple[str, ...], compare: Compare) -> None:
        """Submit a work again once the files of those names were read; others' works are done meanwhile."""
        self._put_off += 1

        def again() -> None:
            self._put_off -= 1
            self._again(queued, replace(work, rounds=work.rounds + 1))

        if names:
            compare(names, queued.principal, again)
        else:
            again()

    def _ask(self, queued: Queued, work: _Storing, file_id: bytes, hooks: HookRunner) -> None:
        """Submit a work again once the hooks have agreed, or let their refusal be its outcome."""
        self._put_off += 1

        def answered(refusal: BlockprotoError | None) -> None:
            self._put_off -= 1
            if refusal is None:
                self._again(queued, replace(work, unasked=False))
            else:
                self._told(queued.done, (refusal,) if isinstance(work, StoreFiles) else refusal)
                self._wake.set()  # perhaps that was the last one

        hooks.ask(work, file_id, answered)

    def _again(self, queued: Queued, work: Work) -> None:
        if self.failed is None:
            self._queue(replace(queued, work=work), small=True)

    def awaits_hooks(self, upload: Upload) -> bool:
        """Whether hooks are being asked about the commit of an upload."""
        return self.hooks is not None and self.hooks.is_asking(upload)

    def withdraw(self, file: Upload | WholeFile) -> bool:
        """Take back the commit of a file while it waits for hooks: its outcome is Cancelled before this returns.

        Returns:
            False if it does not wait for them: if there is a commit, it will be decided.
        """
        return self.hooks is not None and self.hooks.withdraw(file)

    def _fail(self, failure: StoreFailed) -> None:
        self.failed = self.failed or failure
        self._idle.set()

    @staticmethod
    def _told(tell: Callable[..., object], *args: object) -> None:
        """Call ``tell`` and log what it raises: an error of a listener is not the store's."""
        try:
            tell(*args)
        except Exception as exc:
            unexpected("what waits for a work", exc)

    def _take(self) -> list[Queued]:
        if not self._running and trio.current_time() - self._ended_s >= PAUSE_S:
            self._last.clear()
        batch: list[Queued] = []
        had: list[bytes] = []
        count = length = 0
        shares = self._shares()
        while self._turn and count < BATCH_WORKS_MAX and length < BATCH_LENGTH_MAX:
            principal = self._turn.popleft()
            queued = shares[principal].pop()
            if queued is None:
                if self._principal_queues[principal].peers:
                    had.append(principal)
                else:
                    del self._principal_queues[principal]
                continue
            self._turn.append(principal)
            batch.append(queued)
            count += works_of(queued.work)
            length += _length(queued.work)
        self._turn.extend(had)
        if batch:
            self._last.append(frozenset((one, peer) for one, share in shares.items() for peer in share.costs))
        return batch

    def _shares(self) -> dict[bytes, Share]:
        """What each principal may have in the next batch; the queue of no peer (0) takes from none."""
        there = {
            (one, peer)
            for one, principal_queue in self._principal_queues.items()
            for peer in principal_queue.peers
        }.union(*self._last)
        most = WORKS_OF_ONE_MAX if len({one for one, _ in there}) > 1 else BATCH_WORKS_MAX
        peers = Counter(one for one, peer in there if peer)
        return {
            one: Share(principal_queue, most, WORKS_OF_PEER_MAX if peers[one] > 1 else math.inf, self._busy)
            for one, principal_queue in self._principal_queues.items()
        }


class AwaitedOutcome:
    """The outcome of one work, for a task that waits for it; it is the ``done`` of ``Committer.submit``."""

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._decided = trio.Event()

    def __call__(self, outcome: Outcome) -> None:
        """The work is decided."""
        self._outcomes.append(outcome)
        self._decided.set()

    async def wait(self) -> StoredFile | None:
        """Wait for the outcome and return it, once; raises it if it is an error. Cancellation: it is done all the same."""
        await self._decided.wait()
        outcome = self._outcomes.pop()
        try:
            if isinstance(outcome, BlockprotoError):
                raise outcome
            assert not isinstance(outcome, tuple), "a work with several files has no outcome of its own"
            return outcome
        finally:
            del outcome  # it and this frame would keep each other, and many more


async def commit_and_wait(committer: Committer, work: Work, principal: bytes) -> StoredFile | None:
    """Submit ``work`` and return its outcome; raises it if it is an error. Cancellation: it is done all the same."""
    outcome = AwaitedOutcome()
    committer.submit(work, outcome, principal=principal, small=True)
    return await outcome.wait()

"""The committer: batches that form by themselves, order, fairness, and the end when the medium fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from peers import MIB, Gate, run, run_inline

from blockproto.common.blocks import digest_of
from blockproto.common.names import SafeName
from blockproto.errors import BadFacts, StoreFailed, StoreFull
from blockproto.observability.observer import CURRENT_CONNECTION, ConnectionLabel
from blockproto.serving.server import Server
from blockproto.store import (
    BlockDone,
    Facts,
    Finish,
    IfExists,
    Outcome,
    RecordB3sum,
    Remove,
    Tidy,
    Unfinished,
    UploadKey,
    Work,
)
from blockproto.testing.memory_store import MemoryStore, MemoryUpload
from blockproto.transfer.commit_queue import REPLACING_COST
from blockproto.transfer.committer import (
    BATCH_LENGTH_MAX,
    BATCH_WORKS_MAX,
    LAST_BATCHES,
    PAUSE_S,
    WORKS_OF_ONE_MAX,
    WORKS_OF_PEER_MAX,
    Committer,
)
from blockproto.transfer.live_upload import LiveUpload
from blockproto.transfer.slow_disk import HANGING_S, QUICK_S, Disk
from blockproto.transfer.threads import run_in_thread

quick = pytest.mark.trio(run=run)
ALICE, BOB = b"alice".ljust(16), b"bob".ljust(16)


class Recorder(MemoryStore):
    """Remembers the batches, as names of their works."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Work]] = []

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        self.batches.append(list(works))
        return [None] * len(works)


class Held:
    """Runs batches when it is told to."""

    def __init__(self) -> None:
        self.go = trio.Event()

    async def __call__(self, decide: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
        await self.go.wait()
        return decide()


def _upload(store: MemoryStore, key: bytes = b"k") -> MemoryUpload:
    upload = store.open_upload(UploadKey(ALICE, key.ljust(16)), Facts(SafeName.parse("f"), "", 1 << 40), 1)
    assert isinstance(upload, MemoryUpload)
    return upload


def _blocks(upload: MemoryUpload, number: int, length: int = MIB) -> list[BlockDone]:
    return [BlockDone(upload, 1, blockno, length, bytes(32)) for blockno in range(number)]


async def _commit_all(store: Recorder, submit: Callable[[Committer], None]) -> list[list[Work]]:
    """Submit while a first batch is under way, then let everything through."""
    held = Held()
    committer = Committer(store, held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        committer.submit(Tidy(), lambda _: None, principal=ALICE)
        await trio.testing.wait_all_tasks_blocked()
        submit(committer)
        held.go.set()
        await committer.drain()
        nursery.cancel_scope.cancel()
    return store.batches[1:]


@quick
async def test_works_that_wait_become_one_batch() -> None:
    store = Recorder()
    works = _blocks(_upload(store), 10)
    batches = await _commit_all(store, lambda committer: _submit_all(committer, works, principal=ALICE))
    assert batches == [works]


@quick
async def test_an_idle_committer_commits_each_work_at_once() -> None:
    store = Recorder()
    committer = Committer(store, run_inline)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        for work in _blocks(_upload(store), 3):
            done = trio.Event()
            committer.submit(work, lambda _, done=done: done.set(), principal=ALICE)  # type: ignore[misc]
            await done.wait()
        nursery.cancel_scope.cancel()
    assert [len(batch) for batch in store.batches] == [1, 1, 1]


def _submit_all(committer: Committer, works: Sequence[Work], **options: Any) -> None:
    for work in works:
        committer.submit(work, lambda _: None, **options)


@quick
async def test_a_batch_is_bounded_in_bytes_and_in_works() -> None:
    store = Recorder()
    upload = _upload(store)
    most = BATCH_LENGTH_MAX // MIB
    batches = await _commit_all(
        store, lambda committer: _submit_all(committer, _blocks(upload, 2 * most + 1), principal=ALICE)
    )
    assert [len(batch) for batch in batches] == [most, most, 1]
    batches = await _commit_all(
        store, lambda committer: _submit_all(committer, [Tidy()] * (BATCH_WORKS_MAX + 1), principal=ALICE)
    )
    assert [len(batch) for batch in batches[-2:]] == [BATCH_WORKS_MAX, 1]


@quick
async def test_brief_files_count_their_bytes() -> None:
    store = Recorder()
    upload = _upload(store)
    brief = [Finish(upload, 0, bytes(32), MIB, upload.facts, (block,)) for block in _blocks(upload, 100)]
    batches = await _commit_all(store, lambda committer: _submit_all(committer, brief, principal=ALICE))
    assert [len(batch) for batch in batches] == [64, 36]


@quick
async def test_works_of_an_upload_keep_their_order() -> None:
    store = Recorder()
    works: list[Work] = [*_blocks(_upload(store), 100)]
    batches = await _commit_all(store, lambda committer: _submit_all(committer, works, principal=ALICE))
    assert [work for batch in batches for work in batch] == works


@quick
async def test_small_works_go_before_big_ones() -> None:
    store = Recorder()
    big = _blocks(_upload(store), 70)
    small = RecordB3sum(SafeName.parse("f"), bytes(16), bytes(32))

    def submit(committer: Committer) -> None:
        _submit_all(committer, big, principal=ALICE)
        committer.submit(small, lambda _: None, principal=ALICE, small=True)

    assert (await _commit_all(store, submit))[0][0] is small


@quick
@pytest.mark.clause("BP1-PRN-007")
async def test_principals_are_served_in_turn() -> None:
    """One with a long queue does not hold up one with a single work."""
    store = Recorder()
    many, one = _blocks(_upload(store), 1000), Tidy()

    def submit(committer: Committer) -> None:
        _submit_all(committer, many, principal=ALICE)
        _submit_all(committer, [one], principal=BOB)

    assert one in (await _commit_all(store, submit))[0][:2]


@quick
@pytest.mark.clause("BP1-PRN-007")
async def test_a_long_queue_has_a_share_of_the_batches_while_there_are_others() -> None:
    """Also of those in which nobody else is: who comes a moment later waits for the end of what was begun."""
    store = Recorder()
    many, one = [Tidy() for _ in range(WORKS_OF_ONE_MAX * (LAST_BATCHES + 3))], Tidy()

    def submit(committer: Committer) -> None:
        _submit_all(committer, many, principal=ALICE)
        _submit_all(committer, [one], principal=BOB)

    first, *shared, alone = [len(batch) for batch in await _commit_all(store, submit)]
    assert first == 1 + WORKS_OF_ONE_MAX
    assert shared == [WORKS_OF_ONE_MAX] * LAST_BATCHES
    assert alone == 2 * WORKS_OF_ONE_MAX


@quick
@pytest.mark.clause("BP1-PRN-007")
async def test_peers_of_one_principal_are_served_in_turn() -> None:
    """A long queue of one connection does not hold up a small file on another, of the same (anonymous) principal."""
    store = Recorder()
    many, one = [Tidy() for _ in range(1000)], Tidy()

    def submit(committer: Committer) -> None:
        _submit_all(committer, many, principal=ALICE, small=True, peer=1)
        committer.submit(one, lambda _: None, principal=ALICE, small=True, peer=2)

    batches = await _commit_all(store, submit)
    assert one in batches[0][:2]
    assert [work for batch in batches for work in batch if work is not one] == many


@quick
async def test_a_small_work_of_any_peer_goes_before_the_big_ones_of_its_principal() -> None:
    store = Recorder()
    big = _blocks(_upload(store), 100)
    small = Tidy()

    def submit(committer: Committer) -> None:
        _submit_all(committer, big, principal=ALICE, peer=1)
        committer.submit(small, lambda _: None, principal=ALICE, small=True, peer=2)

    assert (await _commit_all(store, submit))[0][0] is small


@quick
@pytest.mark.clause("BP1-PRN-007")
async def test_a_peer_has_a_share_of_the_batches_while_its_principal_has_others() -> None:
    """Whatever it queues, small or big; and it has all of a batch again when it is alone."""
    store = Recorder()
    many = [Tidy() for _ in range(WORKS_OF_PEER_MAX * (LAST_BATCHES + 3))]
    half = len(many) // 2

    def submit(committer: Committer) -> None:
        _submit_all(committer, many[:half], principal=ALICE, peer=1)
        _submit_all(committer, many[half:], principal=ALICE, peer=1, small=True)
        committer.submit(Tidy(), lambda _: None, principal=ALICE, peer=2)

    first, *shared, alone = [len(batch) for batch in await _commit_all(store, submit)]
    assert first == 1 + WORKS_OF_PEER_MAX
    assert shared == [WORKS_OF_PEER_MAX] * LAST_BATCHES
    assert alone == 2 * WORKS_OF_PEER_MAX


@quick
async def test_who_comes_after_a_pause_has_whole_batches() -> None:
    store = Recorder()
    committer = Committer(store, run_inline)
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    sizes = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        for peer, passed_s in enumerate((0.0, PAUSE_S / 2, PAUSE_S * 1.1), 1):
            clock.jump(passed_s)
            works = [Tidy() for _ in range(WORKS_OF_PEER_MAX + 1)]
            _submit_all(committer, works, principal=ALICE, peer=peer)
            await committer.drain()
            sizes.append([len(batch) for batch in store.batches])
            store.batches.clear()
        nursery.cancel_scope.cancel()
    assert sizes == [[WORKS_OF_PEER_MAX + 1], [WORKS_OF_PEER_MAX, 1], [WORKS_OF_PEER_MAX + 1]]


@quick
async def test_of_works_that_cost_more_a_peer_has_fewer_in_a_batch() -> None:
    store = Recorder()
    upload = _upload(store)

    def submit(committer: Committer) -> None:
        for peer, rule in ((1, IfExists.REPLACE), (2, IfExists.KEEP)):
            facts = replace(upload.facts, if_exists=rule)
            works = [Finish(upload, 0, bytes(32), 0, facts) for _ in range(100)]
            _submit_all(committer, works, principal=ALICE, peer=peer, small=True)

    rules = [
        work.facts.if_exists for work in (await _commit_all(store, submit))[0] if isinstance(work, Finish)
    ]
    assert rules.count(IfExists.REPLACE) == WORKS_OF_PEER_MAX // REPLACING_COST
    assert rules.count(IfExists.KEEP) == WORKS_OF_PEER_MAX


@quick
@pytest.mark.clause("BP1-PRN-007")
async def test_many_peers_of_a_principal_have_no_more_than_one_against_other_principals() -> None:
    store = Recorder()

    def submit(committer: Committer) -> None:
        for peer in range(1, 11):
            _submit_all(committer, [Tidy()] * 50, principal=ALICE, peer=peer)
        _submit_all(committer, [Tidy()], principal=BOB, peer=11)

    assert len((await _commit_all(store, submit))[0]) == 1 + WORKS_OF_ONE_MAX


@quick
async def test_what_works_for_nobody_in_particular_takes_from_no_peer() -> None:
    """A sweep, say: the batches of a client that is alone stay long."""
    store = Recorder()

    def submit(committer: Committer) -> None:
        _submit_all(committer, [Tidy()], principal=ALICE)
        _submit_all(committer, [Tidy()] * 200, principal=ALICE, peer=1)

    assert [len(batch) for batch in await _commit_all(store, submit)] == [201]


class Mute:
    """A stream of an upload that says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@quick
async def test_works_of_an_upload_keep_their_order_whoever_sends_it() -> None:
    """A connection that joins with an empty queue does not overtake what the first one has queued."""
    store = Recorder()
    upload = _upload(store)

    def submit(committer: Committer) -> None:
        live = LiveUpload(upload, committer, Disk(), lambda _: None)
        for number, blocknos in ((1, (0, 1, 2)), (2, (3,)), (1, (4,))):
            token = CURRENT_CONNECTION.set(ConnectionLabel(number, "somebody"))
            try:
                live.enter(Mute(), upload.facts, 1)
                for blockno in blocknos:
                    live.block_verified(blockno, MIB, bytes(32))
            finally:
                CURRENT_CONNECTION.reset(token)

    works = [work for batch in await _commit_all(store, submit) for work in batch]
    assert [work.blockno for work in works if isinstance(work, BlockDone)] == [0, 1, 2, 3, 4]


class Slices(Recorder):
    """Removes folders in three parts."""

    def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
        super().decide(works)
        removals = [work for batch in self.batches for work in batch if isinstance(work, Remove)]
        return [Unfinished() if isinstance(work, Remove) and len(removals) < 3 else None for work in works]


@quick
async def test_what_waits_beside_the_removal_of_a_big_folder_has_its_turn_between_its_parts() -> None:
    store = Slices()
    committer = Committer(store, run_inline)
    remove, other = Remove(SafeName.parse("big"), recursive=True), Tidy()
    order: list[str] = []

    def removed(outcome: Outcome) -> None:
        assert outcome is None
        order.append("removed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        committer.submit(remove, removed, principal=ALICE, small=True)
        committer.submit(other, lambda _: order.append("other"), principal=BOB)
        await committer.drain()
        nursery.cancel_scope.cancel()
    assert order == ["other", "removed"]
    parts = [work for batch in store.batches for work in batch if isinstance(work, Remove)]
    assert [part.begun for part in parts] == [False, True, True]


@quick
async def test_done_comes_after_the_commit_and_for_every_work() -> None:
    store = MemoryStore()
    server = Server(store)
    gate = Gate(server)
    done: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.engine.committer.run)
        for number in range(3):
            server.engine.committer.submit(Tidy(), lambda _, n=number: done.append(n), principal=ALICE)  # type: ignore[misc]
        await gate.waits.wait()
        assert done == []
        gate.open()
        await server.engine.committer.drain()
        assert done == [0, 1, 2]
        nursery.cancel_scope.cancel()


@quick
async def test_drain_waits_for_what_is_being_committed() -> None:
    held = Held()
    committer = Committer(Recorder(), held)
    await committer.drain()  # nothing to wait for
    drained = trio.Event()

    async def drain() -> None:
        await committer.drain()
        drained.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        committer.submit(Tidy(), lambda _: None, principal=ALICE)
        nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()
        held.go.set()
        await drained.wait()
        nursery.cancel_scope.cancel()


@quick
async def test_after_the_store_failed_nothing_is_reported_or_taken() -> None:
    store = MemoryStore()
    committer = Committer(store, run_inline)
    store.broken = True
    done: list[Outcome] = []
    committer.submit(Tidy(), done.append, principal=ALICE)
    with pytest.raises(StoreFailed):
        await committer.run()
    assert done == []
    assert isinstance(committer.failed, StoreFailed)
    with pytest.raises(StoreFailed):
        committer.submit(Tidy(), done.append, principal=ALICE)
    await committer.drain()  # returns: nothing will become durable any more


class Together(Recorder):
    """Decides two calls at once."""

    decisions_at_once = 2


@quick
async def test_a_decision_that_takes_long_holds_up_its_own_upload_only() -> None:
    store, held = Together(), Held()
    slow, other = _upload(store, b"slow"), _upload(store, b"other")
    committer = Committer(store, held)
    done: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        committer.submit(_blocks(slow, 1)[0], lambda _: done.append("slow 0"), principal=ALICE)
        await trio.testing.wait_all_tasks_blocked()
        held.go, slow_go = trio.Event(), held.go
        held.go.set()
        for work in _blocks(slow, 3)[1:]:
            name = f"slow {work.blockno}"
            committer.submit(work, lambda _, name=name: done.append(name), principal=ALICE)  # type: ignore[misc]
        committer.submit(_blocks(other, 1)[0], lambda _: done.append("other"), principal=ALICE)
        await trio.testing.wait_all_tasks_blocked()
        assert done == ["other"]
        drained = trio.Event()

        async def drain() -> None:
            await committer.drain()
            drained.set()

        nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()
        slow_go.set()
        await drained.wait()
        nursery.cancel_scope.cancel()
    assert done == ["other", "slow 0", "slow 1", "slow 2"]


@quick
async def test_after_one_of_two_decisions_failed_the_other_is_not_reported() -> None:
    store, held = Together(), Held()
    committer = Committer(store, held)
    done: list[Outcome] = []

    async def fail(decide: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
        raise StoreFailed("the medium")

    async def run_failing() -> None:
        with pytest.raises(StoreFailed, match="the medium"):
            await committer.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_failing)
        committer.submit(Tidy(), done.append, principal=ALICE)
        await trio.testing.wait_all_tasks_blocked()
        committer._run_blocking = fail
        committer.submit(Tidy(), done.append, principal=ALICE)
        await committer.drain()  # returns: it has failed
        held.go.set()
    assert done == []


@quick
async def test_a_store_that_forgets_an_outcome_has_failed() -> None:
    class Forgetful(MemoryStore):
        def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
            return super().decide(works)[1:]

    committer = Committer(Forgetful(), run_inline)
    done: list[Outcome] = []
    for _ in range(2):
        committer.submit(Tidy(), done.append, principal=ALICE)
    with pytest.raises(StoreFailed):
        await committer.run()
    assert done == []


@quick
async def test_an_outcome_that_is_an_error_does_not_stop_the_others() -> None:
    store = MemoryStore()
    committer = Committer(store, run_inline)
    outcomes: list[Outcome] = []
    upload = _upload(store)
    upload.write(0, memoryview(bytes(MIB)))
    bad = BlockDone(upload, 1, 0, 5, digest_of(b"12345"))
    good = BlockDone(upload, 1, 0, MIB, digest_of(bytes(MIB)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        for work in (bad, good):
            committer.submit(work, outcomes.append, principal=ALICE)
        await committer.drain()
        nursery.cancel_scope.cancel()
    assert [type(outcome) for outcome in outcomes] == [BadFacts, type(None)]


async def test_cancelling_waits_for_the_batch_under_way() -> None:
    """A commit in its thread is never abandoned."""
    begun, released, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def decide(self, works: Sequence[Work]) -> Sequence[Outcome]:
            begun.set()
            assert released.wait(10)
            ended.set()
            return [None] * len(works)

    committer = Committer(Slow())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        committer.submit(Tidy(), lambda _: None, principal=ALICE)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
        released.set()
    assert ended.is_set()


async def test_store_code_runs_outside_the_trio_thread() -> None:
    assert await run_in_thread(threading.get_ident) != threading.get_ident()


# ---- writes and reads of the Trio thread ----------------------------------------------------------------------


class SlowUpload(MemoryUpload):
    """Remembers which thread wrote; takes as long as ``seconds`` says on a clock that stands still otherwise."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.seconds = 0.0
        self.threads: list[bool] = []

    def write(self, position: int, piece: memoryview) -> None:
        self.threads.append(threading.current_thread() is not threading.main_thread())
        self.clock[0] += self.seconds


@pytest.fixture
def slow_upload(monkeypatch: pytest.MonkeyPatch) -> SlowUpload:
    """An upload whose writes take a known time."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return SlowUpload(clock)


async def test_writes_stay_inline_while_they_are_quick(slow_upload: SlowUpload) -> None:
    disk = Disk()
    for _ in range(20):
        await disk.write(slow_upload, 0, memoryview(b"x"))
    assert slow_upload.threads == [False] * 20
    assert not disk.slow


async def test_two_slow_writes_send_the_next_ones_to_a_thread(slow_upload: SlowUpload) -> None:
    disk = Disk()
    slow_upload.seconds = 2 * QUICK_S
    await disk.write(slow_upload, 0, memoryview(b"x"))
    await disk.write(slow_upload, 0, memoryview(b"x"))  # inline: one can be the scheduler's doing
    slow_upload.seconds = 0.0
    for _ in range(16):
        await disk.write(slow_upload, 0, memoryview(b"x"))
    assert slow_upload.threads == [False, False, *[True] * 15, False]


async def test_one_write_that_hangs_is_enough(slow_upload: SlowUpload) -> None:
    disk = Disk()
    slow_upload.seconds = 2 * HANGING_S
    await disk.write(slow_upload, 0, memoryview(b"x"))
    slow_upload.seconds = 0.0
    for _ in range(17):
        await disk.write(slow_upload, 0, memoryview(b"x"))
    assert slow_upload.threads == [False, *[True] * 16, False]


async def test_reads_count_too(slow_upload: SlowUpload) -> None:
    disk = Disk()

    def read(position: int, view: memoryview) -> int:
        slow_upload.clock[0] += 1.0
        return len(view)

    for _ in range(2):
        assert await disk.read(read, 0, memoryview(bytearray(5))) == 5
    assert disk.slow
    assert await disk.read(read, 0, memoryview(bytearray(6))) == 6


async def test_an_error_passes_and_its_time_counts(slow_upload: SlowUpload) -> None:
    disk = Disk()

    def fail(position: int, view: memoryview) -> int:
        slow_upload.clock[0] += 1.0
        raise StoreFull

    for _ in range(2):
        with pytest.raises(StoreFull):
            await disk.read(fail, 0, memoryview(bytearray(5)))
    assert disk.slow

"""Works with many whole files: what they take of a batch, their quota, and files that have to be compared first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
import trio.testing
from peers import run, run_inline
from test_committer import ALICE, BOB, Held, Recorder, Together, _commit_all, _submit_all

from blockproto.common.blocks import digest_of
from blockproto.common.names import SafeName
from blockproto.errors import HookRefused, QuotaExceeded
from blockproto.identity.realm import EVERYTHING, Realm
from blockproto.observability.metrics import Metrics
from blockproto.store import (
    Facts,
    FileOutcome,
    IfExists,
    Outcome,
    StoredFile,
    StoreFiles,
    Tidy,
    UploadKey,
    WholeFile,
)
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.commit_queue import FILES_A_COST, REPLACING_COST
from blockproto.transfer.committer import BATCH_LENGTH_MAX, WORKS_OF_PEER_MAX, Committer
from blockproto.transfer.compare_files import FileComparer
from blockproto.transfer.hooks import CommitHooks, CommittedFile, FileToCommit, HookRunner
from blockproto.transfer.quota import Quotas

quick = pytest.mark.trio(run=run)
FRAME_FILES = 256
KIB = 1 << 10


def a_file(number: int, content: bytes, name: str | None = None, rule: IfExists = IfExists.KEEP) -> WholeFile:
    facts = Facts(SafeName.parse(name or f"f{number}"), "", len(content), if_exists=rule)
    return WholeFile(UploadKey(ALICE, number.to_bytes(16, "big")), facts, digest_of(content), content)


def frames(
    count: int, files: int = FRAME_FILES, length: int = 1, rule: IfExists = IfExists.KEEP
) -> list[StoreFiles]:
    one = a_file(1, bytes(length), rule=rule)
    return [StoreFiles(ALICE, (one,) * files) for _ in range(count)]


@quick
async def test_sixteen_frames_fill_a_batch() -> None:
    batches = await _commit_all(
        Recorder(), lambda committer: _submit_all(committer, frames(40), principal=ALICE, small=True)
    )
    assert [len(batch) for batch in batches] == [16, 16, 8]


@quick
async def test_frames_count_their_bytes() -> None:
    length = 1 << 20
    works = frames(5, files=BATCH_LENGTH_MAX // length // 2, length=length)
    batches = await _commit_all(
        Recorder(), lambda committer: _submit_all(committer, works, principal=ALICE, small=True)
    )
    assert [len(batch) for batch in batches] == [2, 2, 1]


@quick
@pytest.mark.clause("BP1-PRN-007")
async def test_a_principal_has_one_frame_in_a_batch_while_there_are_others() -> None:
    one = Tidy()

    def submit(committer: Committer) -> None:
        _submit_all(committer, frames(40), principal=ALICE, small=True)
        _submit_all(committer, [one], principal=BOB)

    first, second, *_ = await _commit_all(Recorder(), submit)
    assert one in first
    assert [len(batch) for batch in (first, second)] == [2, 1]


@quick
async def test_of_frames_that_replace_a_peer_has_fewer_in_a_batch() -> None:
    def submit(committer: Committer) -> None:
        for peer, rule in ((1, IfExists.REPLACE), (2, IfExists.KEEP)):
            _submit_all(committer, frames(100, files=16, rule=rule), principal=ALICE, peer=peer, small=True)

    batch = (await _commit_all(Recorder(), submit))[0]
    rules = [work.files[0].facts.if_exists for work in batch if isinstance(work, StoreFiles)]
    each = 16 // FILES_A_COST
    assert rules.count(IfExists.KEEP) == WORKS_OF_PEER_MAX // each
    assert rules.count(IfExists.REPLACE) == WORKS_OF_PEER_MAX // each // REPLACING_COST


@quick
@pytest.mark.clause("BP1-PRN-007")
async def test_a_peer_has_one_big_frame_in_a_batch_while_its_principal_has_other_peers() -> None:
    def submit(committer: Committer) -> None:
        _submit_all(committer, frames(4, files=100), principal=ALICE, peer=1, small=True)
        _submit_all(committer, [Tidy()], principal=ALICE, peer=2)

    assert [len(batch) for batch in await _commit_all(Recorder(), submit)] == [2, 1, 1, 1]


@quick
async def test_a_frame_waits_for_another_batch_that_has_one_of_its_files() -> None:
    store, held = Together(), Held()
    committer = Committer(store, held)
    done: list[str] = []
    first, again, other = (
        StoreFiles(ALICE, (a_file(one, b"x"), a_file(two, b"y"))) for one, two in ((1, 2), (2, 3), (4, 5))
    )

    def submit(work: StoreFiles, name: str) -> None:
        committer.submit(work, lambda _: done.append(name), principal=ALICE, small=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        submit(first, "first")
        await trio.testing.wait_all_tasks_blocked()
        held.go, first_go = trio.Event(), held.go
        held.go.set()
        submit(again, "again")
        submit(other, "other")
        await trio.testing.wait_all_tasks_blocked()
        assert done == ["other"]
        first_go.set()
        await committer.drain()
        nursery.cancel_scope.cancel()
    assert done == ["other", "first", "again"]


async def store_files(
    store: MemoryStore, work: StoreFiles, prepare: Callable[[Committer], None] = lambda _: None
) -> tuple[FileOutcome, ...]:
    """What becomes of the files, with those compared that have to be."""
    committer = Committer(store, run_inline)
    comparer = FileComparer(store, committer)
    prepare(committer)
    found: list[Outcome] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        nursery.start_soon(comparer.run)
        if committer.hooks is not None:
            nursery.start_soon(committer.hooks.run)
        committer.submit(work, found.append, principal=work.principal, small=True)
        await committer.drain()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(found) == 1
    assert isinstance(found[0], tuple)
    return found[0]


@quick
async def test_files_that_have_to_be_compared_keep_no_other_back_and_come_in_their_order() -> None:
    """They are told together, when all are decided."""
    store = MemoryStore()
    there = StoreFiles(ALICE, (a_file(1, b"same", "a"), a_file(2, b"other", "b")))
    store.decide([there])
    for kept in store._files.values():
        kept.entry = replace(kept.entry, root=None)  # nobody has read them
    work = StoreFiles(
        ALICE,
        (a_file(3, b"same", "a"), a_file(4, b"new", "c"), a_file(5, b"OTHER", "b"), a_file(6, b"x", "d")),
        reader=True,
    )
    found = await store_files(store, work)
    stored = [(one.stored_as, one.there) for one in found if isinstance(one, StoredFile)]
    assert stored == [("a", True), ("c", False), ("b (1)", False), ("d", False)]


@quick
@pytest.mark.clause("BP1-COM-029", "BP1-COM-030")
async def test_hooks_are_asked_about_each_file_and_told_of_each_new_one() -> None:
    asked: list[str] = []
    told: list[str] = []

    async def judge(file: FileToCommit) -> None:
        asked.append(file.filename)
        if file.filename == "bad":
            raise HookRefused("it is bad")

    async def hear(file: CommittedFile) -> None:
        told.append(file.filename)

    def prepare(committer: Committer) -> None:
        committer.hooks = HookRunner(CommitHooks(before=(judge,), after=(hear,)))

    store = MemoryStore()
    store.decide([StoreFiles(ALICE, (a_file(1, b"there", "there"),))])
    files = tuple(
        a_file(number, name.encode(), name) for number, name in enumerate(("there", "bad", "good"), 1)
    )
    found = await store_files(store, StoreFiles(ALICE, files), prepare)
    assert [getattr(one, "stored_as", type(one)) for one in found] == ["there", HookRefused, "good"]
    assert sorted(asked) == ["bad", "good"]
    assert told == ["good"]


@quick
@pytest.mark.clause("BP1-PRN-005")
async def test_each_file_is_held_against_the_quota() -> None:
    store = MemoryStore()
    realm = Realm(ALICE, "alice", None, EVERYTHING, 10 * KIB)
    quotas = Quotas(store)
    quotas.hold(realm)
    sizes = (4, 4, 4, 2)
    files = tuple(a_file(number, bytes(size * KIB)) for number, size in enumerate(sizes))
    first = files[0].key
    await quotas.reserve(first, len(files[0].content))

    def prepare(committer: Committer) -> None:
        committer.accounts = quotas

    found = await store_files(store, StoreFiles(ALICE, files), prepare)
    assert [isinstance(one, QuotaExceeded) for one in found] == [False, False, True, False]
    assert quotas.used() == {ALICE: 10 * KIB}
    again = await store_files(store, StoreFiles(ALICE, files), prepare)
    assert again[:2] + again[3:] == found[:2] + found[3:], "what is there needs no room"
    assert isinstance(again[2], QuotaExceeded)
    assert quotas.used() == {ALICE: 10 * KIB}


def test_metrics_count_files_and_bytes() -> None:
    metrics = Metrics()
    store = MemoryStore()
    work = StoreFiles(ALICE, (a_file(1, b"12345"), a_file(2, b""), a_file(3, b"7", "f1", IfExists.REFUSE)))
    (outcome,) = store.decide([work])
    metrics.committed([(work, outcome)], 0.1)
    value = metrics.registry.get_sample_value
    assert value("blockproto_files_committed_total") == 2
    assert value("blockproto_block_bytes_durable_total") == 5

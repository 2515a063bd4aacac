"""Uploads: takeover, join and repeat by attempt; commit, repair, cancel; and who may stop whom."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import trio
from peers import (
    MIB,
    STUCK_S,
    Gate,
    RawPeer,
    Sample,
    Served,
    WatchedStore,
    bytes_of,
    content_of,
    names_in,
    run,
    serving,
    uploads_in,
)
from trio.testing import lockstep_stream_pair, wait_all_tasks_blocked

from blockproto.errors import Code, Scope, StoreFailed
from blockproto.store import Discard, Upload, UploadKey, Work
from blockproto.testing.memory_store import MemoryStore
from blockproto.transfer.quota import Quotas
from blockproto.transfer.slow_disk import Disk
from blockproto.wire import (
    PREFACE,
    Cancel,
    Committed,
    Have,
    Hello,
    Opened,
    Ping,
    Remove,
    RemoveKind,
    Result,
    encode_frame,
)

quick = pytest.mark.trio(run=run)

THREE = Sample(bytes_of(2 * MIB + 5))
KEY = UploadKey(bytes(16), THREE.sourceid)


async def _opened(peer: RawPeer, sample: Sample = THREE, stream: int = 1, attempt: int = 1) -> Opened:
    await peer.say(stream, sample.open(attempt))
    return await peer.expect(Opened, stream)


async def _send(peer: RawPeer, *blocknos: int, sample: Sample = THREE, stream: int = 1) -> None:
    for blockno in blocknos:
        await peer.say(stream, *sample.block(blockno))


async def _alive(peer: RawPeer) -> None:
    """The connection goes on; what was to be acknowledged before has been heard (an ACK may come behind one answer)."""
    for opaque in (b"alive???", b"really??"):
        await peer.say(0, Ping(opaque, 0))
        assert (await peer.expect(Ping)).opaque == opaque


async def _two(served: Served) -> tuple[RawPeer, RawPeer]:
    return await served.peer(), await served.peer()


class StuckDisk(Disk):
    """A disk whose writes hang until they are let go.

    Attributes:
        writing, together: how many writes are under way, and the most that ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.released = trio.Event()
        self.hangs = trio.Event()
        self.writing = self.together = 0

    @property
    def slow(self) -> bool:
        return not self.released.is_set()

    async def write(self, upload: Upload, position: int, piece: memoryview) -> None:
        with trio.move_on_after(STUCK_S, shield=True):  # as a write in a thread, it is always waited for
            self.writing += 1
            self.together = max(self.together, self.writing)
            self.hangs.set()
            await self.released.wait()
        self.writing -= 1
        upload.write(position, piece)


# ---- attempts: takeover, join, repeat -------------------------------------------------------------------------


@quick
async def test_a_greater_attempt_takes_over_and_the_older_stream_is_told() -> None:
    async with serving() as served:
        old, new = await _two(served)
        await _opened(old)
        await _send(old, 0)
        await old.wait_acked(0)
        opened = await _opened(new, attempt=2)
        assert (opened.attempt, opened.held) == (2, ((0, 1),))
        error = await old.expect_error(Code.SUPERSEDED, Scope.STREAM, 1)
        assert error.current == 2
        await _alive(old)


@quick
async def test_every_takeover_tells_the_one_before_it_and_the_upload_stays_open() -> None:
    """Between two streams there is no moment in which the upload rests and is let go of."""
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, attempt=1)
        live = served.server.engine.uploads.find(KEY)
        assert live is not None
        closed: list[bool] = []
        live.stored.close = lambda: closed.append(True)  # type: ignore[method-assign]
        for attempt in (2, 3, 4):
            await peer.say(2 * attempt - 1, THREE.open(attempt))
            error = await peer.expect_error(Code.SUPERSEDED, Scope.STREAM, 2 * attempt - 3)
            assert error.current == attempt
            await peer.expect(Opened, 2 * attempt - 1)
            assert served.server.engine.uploads.find(KEY) is live
        assert closed == []


@quick
async def test_a_stream_that_has_left_owns_no_block() -> None:
    """It may leave while it waits for its quota: its prefix would be told to nobody any more."""
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        live = served.server.engine.uploads.find(KEY)
        assert live is not None
        [feed] = live.feeds
        await live.take_block(0, feed)
        assert live.owns(0, feed)
        live.leave(feed)
        await live.take_block(0, feed)
        assert live.owners == {}


@pytest.mark.clause("BP1-RES-010")
@quick
async def test_a_takeover_does_not_wait_for_a_connection_that_takes_nothing() -> None:
    """The old connection is a black hole: the server's bytes to it go nowhere, and nobody waits for them."""
    async with serving() as served:
        here, there = lockstep_stream_pair()
        served.nursery.start_soon(served.server.serve_stream, there)
        await here.send_all(PREFACE + encode_frame(0, Hello()) + encode_frame(1, THREE.open()))
        new = await served.peer()
        assert (await _opened(new, attempt=2)).attempt == 2
        assert trio.current_time() == 0
        await _send(new, 0, 1, 2)
        await new.say(1, THREE.commit())
        await new.expect(Committed)
        await here.aclose()


@pytest.mark.clause("BP1-RES-010")
@quick
async def test_a_takeover_does_not_wait_for_a_commit_that_hangs() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        old, new = await _two(served)
        await _opened(old)
        await _send(old, 0)
        await gate.waits.wait()
        assert (await _opened(new, attempt=2)).held == ()  # nothing is durable yet
        assert trio.current_time() == 0
        await old.expect_error(Code.SUPERSEDED, Scope.STREAM, 1)
        gate.open()
        await new.wait_acked(0)
        await _send(new, 1, 2)
        await new.say(1, THREE.commit())
        await new.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


@pytest.mark.clause("BP1-RES-010", "BP1-BLK-013")
@quick
async def test_a_takeover_does_not_wait_for_a_write_that_hangs() -> None:
    """Only the block that is being written waits, until the old write has returned."""
    async with serving() as served:
        disk = served.server.engine.uploads.disk = StuckDisk()
        old, new = await _two(served)
        await _opened(old)
        await old.say(1, *THREE.block(0, 0, 1000, end=False))
        await disk.hangs.wait()
        await _opened(new, attempt=2)
        assert trio.current_time() == 0
        live = served.server.engine.uploads.find(KEY)
        assert live is not None
        await _send(new, 0)
        await wait_all_tasks_blocked()
        assert live.pending == {}
        assert disk.together == 1  # the new owner's first write has not begun
        disk.released.set()
        await _send(new, 1, 2)
        await new.say(1, THREE.commit())
        await new.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


@pytest.mark.clause("BP1-RES-010")
async def test_a_takeover_does_not_wait_for_a_sync_in_its_thread() -> None:
    """The same with real threads and the machine's clock: the store's commit hangs, and OPENED comes."""
    begun, released = threading.Event(), threading.Event()
    store = WatchedStore()

    def hang(batch: Sequence[Work]) -> None:
        begun.set()
        assert released.wait(30)

    store.before_commit = hang
    try:
        async with serving(store) as served:
            with trio.fail_after(20):
                old, new = await _two(served)
                await _opened(old)
                await _send(old, 0)
                await trio.to_thread.run_sync(begun.wait)
                assert (await _opened(new, attempt=2)).attempt == 2
                await old.expect_error(Code.SUPERSEDED, Scope.STREAM, 1)
                assert not released.is_set()
                released.set()
                await new.wait_acked(0)
                for peer in (old, new):
                    await peer.stream.aclose()
    finally:
        released.set()


@pytest.mark.clause("BP1-BLK-013")
@quick
async def test_late_pieces_of_the_older_attempt_change_nothing() -> None:
    async with serving() as served:
        old, new = await _two(served)
        await _opened(old)
        await old.say(1, *THREE.block(0, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        opened = await _opened(new, attempt=2)
        assert opened.prefixes == ((0, 1000),)
        await new.say(1, *THREE.block(0, 1000, 2000, end=False))
        head, part = THREE.piece(0, 1000)
        await old.say(1, head, bytes(len(part)))
        await old.say(1, THREE.commit())
        await old.expect_error(Code.SUPERSEDED, Scope.STREAM, 1)
        await _alive(old)
        await new.say(1, *THREE.piece(0, 2000))
        await _send(new, 1, 2)
        await new.say(1, THREE.commit())
        await new.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_a_smaller_attempt_is_told_and_changes_nothing() -> None:
    async with serving() as served:
        first, late = await _two(served)
        await _opened(first, attempt=7)
        await late.say(1, THREE.open(6))
        error = await late.expect_error(Code.SUPERSEDED, Scope.STREAM, 1)
        assert (error.current, error.retryable) == (7, False)
        await _send(first, 0)
        await first.wait_acked(0)


@quick
async def test_the_attempt_is_remembered_without_any_stream_and_across_a_restart() -> None:
    store = WatchedStore()
    async with serving(store) as served:
        peer = await served.peer()
        await _opened(peer, attempt=7)
        await _send(peer, 0)
        await peer.wait_acked(0)
    async with serving(store.survivor()) as served:
        peer = await served.peer()
        await peer.say(1, THREE.open(6))
        assert (await peer.expect_error(Code.SUPERSEDED, Scope.STREAM, 1)).current == 7
        assert (await _opened(peer, stream=3, attempt=7)).held == ((0, 1),)


@quick
async def test_an_equal_attempt_joins() -> None:
    """Two connections send different blocks; both hear of all of them, and both get COMMITTED."""
    async with serving() as served:
        first, second = await _two(served)
        opened = [await _opened(first), await _opened(second)]
        assert opened[0] == opened[1]
        await _send(first, 0, 2)
        await _send(second, 1)
        for peer in (first, second):
            await peer.wait_acked(0, 1, 2)
        await second.say(1, THREE.commit())
        assert await first.expect(Committed, 1) == await second.expect(Committed, 1)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_the_same_open_twice_gets_the_same_answer() -> None:
    async with serving() as served:
        peer = await served.peer()
        assert await _opened(peer, stream=1) == await _opened(peer, stream=3)


@quick
async def test_opens_at_the_same_moment_join_one_upload() -> None:
    async with serving() as served:
        peers = await _two(served)
        for peer in peers:
            await peer.say(1, THREE.open())
        opened = [await peer.expect(Opened, 1) for peer in peers]
        assert opened[0] == opened[1]
        assert len(served.server.engine.uploads._live) == 1


@quick
async def test_the_same_commit_twice_gets_the_same_answer() -> None:
    """Also after the answer was lost: OPEN of a committed sourceid is answered by COMMITTED, whatever the attempt."""
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, attempt=5)
        await _send(peer, 0, 1, 2)
        await peer.say(1, THREE.commit())
        committed = await peer.expect(Committed, 1)
        for stream, attempt in ((3, 6), (5, 1)):
            await peer.say(stream, THREE.open(attempt))
            assert await peer.expect(Committed, stream) == committed


@quick
async def test_a_committed_sourceid_with_another_size_is_a_changed_source() -> None:
    other = Sample(THREE.content + b"more", sourceid=THREE.sourceid)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0, 1, 2)
        await peer.say(1, THREE.commit())
        await peer.expect(Committed, 1)
        await peer.say(3, other.open(9))
        await peer.expect_error(Code.SOURCE_CHANGED, Scope.STREAM, 3)


@quick
async def test_without_a_sourceid_the_server_chooses_one() -> None:
    sample = Sample(THREE.content, sourceid=bytes(16))
    async with serving() as served:
        peer = await served.peer()
        first, second = await _opened(peer, sample, 1), await _opened(peer, sample, 3)
        assert len({first.sourceid, second.sourceid, bytes(16)}) == 3
        await _send(peer, 0, sample=sample)  # zeros go on meaning this stream's upload
        named = Sample(THREE.content, sourceid=first.sourceid)
        await _send(peer, 1, 2, sample=named)
        await peer.say(1, named.commit())
        assert (await peer.expect(Committed, 1)).sourceid == first.sourceid


@quick
@pytest.mark.parametrize("change", ["filename", "filesize"])
async def test_open_with_other_facts_is_a_changed_source(change: str) -> None:
    other = Sample(
        THREE.content + b"more" * (change == "filesize"),
        "other.bin" if change == "filename" else THREE.filename,
    )
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _send(first, 0)
        await first.wait_acked(0)
        for attempt in (1, 2):  # joining or taking over
            await second.say(2 * attempt + 1, other.open(attempt))
            await second.expect_error(Code.SOURCE_CHANGED, Scope.STREAM, 2 * attempt + 1)
        await _send(first, 1, 2)  # which has changed nothing
        await first.say(1, THREE.commit())
        await first.expect(Committed)


@quick
async def test_the_facts_of_the_last_open_count() -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.say(1, THREE.open(1, mtime_ns=1, mode=0o600))
        await peer.expect(Opened)
        await peer.say(3, THREE.open(2, mtime_ns=2, mode=0o640))
        await peer.expect_error(Code.SUPERSEDED, Scope.STREAM, 1)
        await peer.expect(Opened, 3)
        await _send(peer, 0, 1, 2, stream=3)
        await peer.say(3, THREE.commit(mode=0o644))
        await peer.expect(Committed)
        (entry,) = served.store.files("", False, "", 10)[0]
        assert (entry.mtime_ns, entry.mode) == (2, 0o644)


# ---- one owner for a block ------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-BLK-013")
@quick
@pytest.mark.parametrize("finished", [True, False], ids=["other finished", "other in the middle"])
async def test_who_lost_a_block_to_another_stream_writes_no_more_of_it(finished: bool) -> None:
    """Joined streams send the same block: the one that began it last owns it; the other's bytes are dropped."""
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        await first.say(1, *THREE.block(0, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        if finished:
            await _send(second, 0)
            await second.wait_acked(0)
        else:
            await second.say(1, *THREE.block(0, 0, 5000, end=False))
            await wait_all_tasks_blocked()
        head, part = THREE.piece(0, 1000)
        await first.say(1, head, bytes(len(part)))  # damaged, and not its block any more
        await _alive(first)
        if not finished:
            await second.say(1, *THREE.piece(0, 5000))
        await _send(second, 1, 2)
        await second.say(1, THREE.commit())
        await second.expect(Committed)
        await first.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_a_block_that_became_whole_while_another_stream_waited_for_it_is_not_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other waits for its quota, and has damaged bytes of the block."""
    reserve = Quotas.reserve
    waits, go_on = trio.Event(), trio.Event()

    async def slowly(self: Quotas, key: UploadKey, length: int) -> None:
        if waiting:
            waits.set()
            await go_on.wait()
        await reserve(self, key, length)

    monkeypatch.setattr(Quotas, "reserve", slowly)
    waiting = False
    unknown = replace(THREE, known=False)
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first, unknown)
        await _opened(second, unknown)
        waiting = True
        head, content = unknown.block(0)
        await second.say(1, head, bytes(len(content)))
        await waits.wait()
        waiting = False
        await _send(first, 0, sample=unknown)
        await first.wait_acked(0)
        go_on.set()
        await _alive(second)
        await _send(first, 1, 2, sample=unknown)
        await first.say(1, unknown.commit())
        await first.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


@pytest.mark.trio
async def test_a_block_that_comes_again_is_looked_up_where_a_slow_disk_holds_up_nobody() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0)
        await peer.wait_acked(0)
        live = served.server.engine.uploads.find(KEY)
        assert live is not None
        in_main: list[bool] = []
        digests = live.stored.digests

        def remembered(blocknos: Iterable[int]) -> dict[int, bytes]:
            in_main.append(threading.current_thread() is threading.main_thread())
            return digests(blocknos)

        live.stored.digests = remembered  # type: ignore[method-assign]
        for slow in (False, True):
            for _ in range(16):
                served.server.engine.disk.took(1.0 if slow else 0.0)
            peer.acked.clear()
            await _send(peer, 0)
            await peer.wait_acked(0)
        assert in_main == [True, False]
        await peer.stream.aclose()


# ---- commit ---------------------------------------------------------------------------------------------------


@quick
async def test_commit_may_come_before_the_blocks_of_another_connection() -> None:
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        await _send(first, 0)
        await first.say(1, THREE.commit())
        await _alive(first)
        assert names_in(served.store) == []
        await _send(second, 2, 1)
        await first.expect(Committed)
        await second.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_a_commit_whose_stream_ended_is_forgotten() -> None:
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        await _send(first, 0, 1)
        await first.say(1, THREE.commit())
        await second.wait_acked(0, 1)
        await first.stream.aclose()
        await wait_all_tasks_blocked()
        await _send(second, 2)
        await second.wait_acked(2)
        await _alive(second)
        assert names_in(served.store) == []
        await second.say(1, THREE.commit())
        await second.expect(Committed)


@quick
async def test_another_streams_commit_stays_when_one_stream_ends() -> None:
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        await _send(second, 0, 1)
        await second.wait_acked(0, 1)
        await second.say(1, THREE.commit())
        await first.say(1, THREE.commit())
        await wait_all_tasks_blocked()
        await first.stream.aclose()
        await wait_all_tasks_blocked()
        await _send(second, 2)
        await second.expect(Committed)


@quick
async def test_a_taken_over_commit_is_forgotten() -> None:
    """The old attempt had said COMMIT; the new one's blocks must not complete it behind its back."""
    async with serving() as served:
        old, new = await _two(served)
        await _opened(old)
        await _send(old, 0)
        await old.say(1, THREE.commit(root=bytes(32)))
        await wait_all_tasks_blocked()
        await _opened(new, attempt=2)
        await _send(new, 1, 2)
        await new.wait_acked(1, 2)
        await _alive(new)
        await new.say(1, THREE.commit())
        await new.expect(Committed)


@pytest.mark.clause("BP1-COM-015")
@quick
async def test_a_commit_that_is_refused_leaves_the_upload() -> None:
    async with serving() as served:
        peer = await served.peer()
        taken = Sample(b"taken", sourceid=b"another sourceid")
        await peer.say(3, THREE.open(1, if_exists=1))
        await peer.expect(Opened)
        await _send(peer, 0, 1, 2, stream=3)
        await peer.say(5, *taken.block(0, commit=True))
        await peer.expect(Committed, 5)
        await peer.say(3, THREE.commit())
        await peer.expect_error(Code.FILE_EXISTS, Scope.STREAM, 3)
        await peer.say(7, THREE.open(1, if_exists=2))
        assert (await peer.expect(Opened, 7)).held == ((0, 3),)
        await peer.say(7, THREE.commit())
        await peer.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


# ---- repair ---------------------------------------------------------------------------------------------------


def _changed(blockno: int) -> Sample:
    """THREE with another byte in one block."""
    content = bytearray(THREE.content)
    content[blockno * MIB] ^= 1
    return Sample(bytes(content))


def _have(sample: Sample, *blocknos: int, more: bool = False) -> Have:
    from blockproto.common.blocks import digest_of

    return Have(tuple((blockno, digest_of(sample.bytes_of(blockno))) for blockno in blocknos), more=more)


@quick
@pytest.mark.parametrize("pages", [[(0, 1, 2)], [(0,), (1, 2)], [(0, 1), (), (2,)]], ids=str)
async def test_a_root_that_differs_is_repaired_block_by_block(pages: list[tuple[int, ...]]) -> None:
    wanted = _changed(1)
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0, 1, 2)
        await peer.say(1, wanted.commit())
        error = await peer.expect_error(Code.DIGESTS_DIFFER, Scope.BLOCK, 1)
        assert error.retryable
        assert names_in(served.store) == []
        for page in pages:
            await peer.say(1, _have(wanted, *page, more=page is not pages[-1]))
        opened = await peer.expect(Opened, 1)
        assert opened.held == ((0, 1), (2, 1))
        await _send(peer, 1, sample=wanted)
        await peer.say(1, wanted.commit())
        await peer.expect(Committed)
        assert content_of(served.store, "sample.bin") == wanted.content


@pytest.mark.clause("BP1-DIG-007")
@quick
async def test_what_have_forgot_is_forgotten_durably() -> None:
    store = WatchedStore()
    async with serving(store) as served:
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0, 1, 2)
        await peer.wait_acked(0, 1, 2)
        gate = Gate(served.server)
        await peer.say(1, _have(_changed(1), 1))
        await gate.waits.wait()
        with trio.move_on_after(1) as scope:
            await peer.expect(Opened)
        assert scope.cancelled_caught  # not before it is durable
        gate.open()
        assert (await peer.expect(Opened)).held == ((0, 1), (2, 1))
        (entry,) = uploads_in(store.survivor())
        assert entry.held_count == 2


@pytest.mark.clause("BP1-DIG-007")
@quick
async def test_blocks_that_have_does_not_name_stay() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0, 1, 2)
        await peer.wait_acked(0, 1, 2)
        for blocknos in ((0,), ()):
            await peer.say(1, _have(THREE, *blocknos))
            assert (await peer.expect(Opened)).held == ((0, 3),)


@quick
async def test_have_waits_for_blocks_that_are_not_durable_yet() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0, 1)
        await peer.say(1, _have(_changed(1), 0, 1))
        await gate.waits.wait()
        await wait_all_tasks_blocked()
        gate.open()
        assert (await peer.expect(Opened)).held == ((0, 1),)


@quick
async def test_have_does_not_wait_for_other_uploads() -> None:
    """Somebody else's uploads go on and on; the committer is never idle, and the repair comes all the same."""
    other = Sample(bytes_of(MIB), "other.bin", sourceid=b"another sourceid")
    async with serving() as served:
        busy, peer = await _two(served)
        await _opened(peer)
        await _opened(busy, other)
        committer = served.server.engine.committer

        def submit_again(work: Work) -> None:
            if not stop:
                committer.submit(Discard(UploadKey(bytes(16), b"x" * 16)), submit_again, principal=b"b" * 16)

        stop: list[bool] = []
        submit_again(Discard(KEY))
        await _send(peer, 0)
        await peer.say(1, _have(_changed(0), 0))
        assert (await peer.expect(Opened)).held == ()
        assert trio.current_time() == 0
        stop.append(True)


@quick
async def test_only_who_said_commit_hears_that_the_digests_differ() -> None:
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        await _send(first, 0, 1, 2)
        await second.wait_acked(0, 1, 2)
        await first.say(1, THREE.commit(root=bytes(32)))
        await first.expect_error(Code.DIGESTS_DIFFER, Scope.BLOCK, 1)
        await _alive(second)
        await second.say(1, THREE.commit())
        await second.expect(Committed)
        await first.expect(Committed)


@quick
async def test_a_store_that_fails_during_a_repair_ends_the_server() -> None:
    store = WatchedStore()
    async with serving(store, fails=StoreFailed) as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0)
        await gate.waits.wait()
        await peer.say(1, _have(THREE, 0))
        await wait_all_tasks_blocked()
        store.broken = True
        gate.open()
        await peer.rest()


# ---- cancel, discard, remove ----------------------------------------------------------------------------------


@quick
async def test_cancel_keeps_what_is_there() -> None:
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        await _send(first, 0)
        await first.say(1, *THREE.block(1, 0, 500, end=False))
        await first.say(1, Cancel(Code.CANCELLED))
        await first.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        opened = await _opened(first, stream=3)
        assert (opened.held, opened.prefixes) == (((0, 1),), ((1, 500),))
        await _send(second, 1)  # the other stream goes on
        await second.wait_acked(0, 1)


@quick
async def test_cancel_with_discard_removes_it_before_it_is_answered() -> None:
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        await _send(first, 0)
        await second.wait_acked(0)
        gate = Gate(served.server)
        await first.say(1, Cancel(Code.CANCELLED, discard=True))
        await gate.waits.wait()
        await first.say(0, Ping(b"answered", 0))
        assert (await first.expect(Ping)).opaque == b"answered"  # and no ERROR before it
        gate.open()
        for peer in (first, second):
            await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        assert uploads_in(served.store) == []
        assert not any(served.store._written.values())


@quick
async def test_open_right_after_a_discard_begins_anew() -> None:
    """It must not find the blocks that are just being removed."""
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _send(first, 0)
        await first.wait_acked(0)
        gate = Gate(served.server)
        await first.say(1, Cancel(Code.CANCELLED, discard=True))
        await gate.waits.wait()
        await second.say(1, THREE.open(2))
        await wait_all_tasks_blocked()
        gate.open()
        opened = await second.expect(Opened)
        assert (opened.held, opened.position) == ((), 0)
        await _send(second, 0, 1, 2)
        await second.say(1, THREE.commit())
        await second.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_what_comes_while_it_is_being_discarded_is_dropped() -> None:
    async with serving() as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        gate = Gate(served.server)
        await first.say(1, Cancel(Code.CANCELLED, discard=True))
        await gate.waits.wait()
        await _send(second, 0)
        await second.say(1, THREE.commit())
        await wait_all_tasks_blocked()
        gate.open()
        await second.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        assert uploads_in(served.store) == []
        assert not any(served.store._written.values())


@pytest.mark.clause("BP1-COM-018")
@quick
@pytest.mark.parametrize("discard", [True, False])
async def test_a_cancel_that_crosses_committed_is_too_late(discard: bool) -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0, 1, 2)
        await peer.wait_acked(0, 1, 2)
        gate = Gate(served.server)
        await peer.say(1, THREE.commit())
        await gate.waits.wait()
        await peer.say(1, Cancel(Code.CANCELLED, discard=discard))
        await wait_all_tasks_blocked()
        gate.open()
        await peer.expect(Committed, 1)
        await _alive(peer)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_a_cancel_that_crosses_a_commit_that_fails_is_answered_by_cancelled() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0, 1, 2)
        await peer.wait_acked(0, 1, 2)
        gate = Gate(served.server)
        await peer.say(1, THREE.commit(root=bytes(32)))
        await gate.waits.wait()
        await peer.say(1, Cancel(Code.CANCELLED))
        await wait_all_tasks_blocked()
        gate.open()
        await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        assert (await _opened(peer, stream=3)).held == ((0, 3),)


@quick
async def test_a_cancel_before_the_commit_can_begin_stops_it() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0, 1)
        await peer.say(1, THREE.commit())
        await peer.say(1, Cancel(Code.CANCELLED))
        await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        await _opened(peer, stream=3)
        await _send(peer, 2, stream=3)
        await peer.wait_acked(2)
        assert names_in(served.store) == []


@quick
@pytest.mark.parametrize("alive", [True, False])
async def test_remove_of_an_upload_ends_and_discards_it(alive: bool) -> None:
    async with serving() as served:
        uploading, other = await _two(served)
        await _opened(uploading)
        await _send(uploading, 0)
        await uploading.wait_acked(0)
        if not alive:
            await uploading.stream.aclose()
            await wait_all_tasks_blocked()
        await other.say(1, Remove(RemoveKind.UPLOAD, THREE.sourceid))
        await other.expect(Result)
        if alive:
            await uploading.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        assert uploads_in(served.store) == []
        assert (await _opened(other, stream=3)).held == ()
        await other.say(5, Remove(RemoveKind.UPLOAD, b"never heard of!!"))
        await other.expect_error(Code.UNKNOWN_UPLOAD, Scope.STREAM, 5)


@quick
async def test_open_waits_for_a_removal_under_way() -> None:
    async with serving() as served:
        uploading, other = await _two(served)
        await _opened(uploading)
        await _send(uploading, 0)
        await uploading.wait_acked(0)
        await uploading.stream.aclose()
        await wait_all_tasks_blocked()
        gate = Gate(served.server)
        await other.say(1, Remove(RemoveKind.UPLOAD, THREE.sourceid))
        await gate.waits.wait()
        await other.say(3, THREE.open(2))
        await wait_all_tasks_blocked()
        gate.open()
        answers = {type((await other.hear()).message) for _ in range(2)}
        assert answers == {Result, Opened}
        await _send(other, 0, 1, 2, stream=3)
        await other.say(3, THREE.commit())
        await other.expect(Committed, 3)


@quick
async def test_remove_that_comes_too_late_says_that_there_is_none() -> None:
    async with serving() as served:
        uploading, other = await _two(served)
        await _opened(uploading)
        await _send(uploading, 0, 1, 2)
        await uploading.wait_acked(0, 1, 2)
        gate = Gate(served.server)
        await uploading.say(1, THREE.commit())
        await gate.waits.wait()
        await other.say(1, Remove(RemoveKind.UPLOAD, THREE.sourceid))
        await wait_all_tasks_blocked()
        gate.open()
        await uploading.expect(Committed)
        await other.expect_error(Code.UNKNOWN_UPLOAD, Scope.STREAM, 1)
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_an_upload_removed_during_a_write_can_be_begun_anew() -> None:
    """The write outlasts every stream of its upload; when it returns, nothing of the old upload may be in the way."""
    async with serving() as served:
        disk = served.server.engine.uploads.disk = StuckDisk()
        uploading, other = await _two(served)
        await _opened(uploading)
        await uploading.say(1, *THREE.block(0, 0, 1000, end=False))
        await disk.hangs.wait()
        await other.say(1, Remove(RemoveKind.UPLOAD, THREE.sourceid))
        await other.expect(Result)
        disk.released.set()
        await wait_all_tasks_blocked()
        assert served.server.engine.uploads.find(KEY) is None
        await _opened(other, stream=3, attempt=2)
        await _send(other, 0, 1, 2, stream=3)
        await other.say(3, THREE.commit())
        await other.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content


# ---- room and rest --------------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-RES-023")
@quick
async def test_a_full_disk_stops_the_stream_and_keeps_what_is_held() -> None:
    store = WatchedStore()
    async with serving(store) as served:
        peer = await served.peer()
        await _opened(peer)
        store.room = MIB + 1000
        await _send(peer, 0)
        await peer.wait_acked(0)
        await _send(peer, 1)
        error = await peer.expect_error(Code.STORE_FULL, Scope.STREAM, 1)
        assert error.retryable
        await peer.say(3, THREE.open(2))
        await peer.expect_error(Code.STORE_FULL, Scope.STREAM, 3)
        store.room = None
        opened = await _opened(peer, stream=5, attempt=3)
        assert opened.held == ((0, 1),)
        await _send(peer, 1, 2, stream=5)
        await peer.say(5, THREE.commit())
        await peer.expect(Committed)
        assert content_of(store, "sample.bin") == THREE.content


@quick
async def test_a_disk_that_is_full_at_the_commit_stops_every_stream() -> None:
    class FullAtCommit(WatchedStore):
        full = False

        def _record(self, work: object) -> None:
            from blockproto.errors import StoreFull

            if self.full:
                raise StoreFull
            super()._record(work)  # type: ignore[arg-type]

    store = FullAtCommit()
    async with serving(store) as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        store.full = True
        await _send(first, 0)
        for peer in (first, second):
            await peer.expect_error(Code.STORE_FULL, Scope.STREAM, 1)
        store.full = False
        assert (await _opened(first, stream=3, attempt=2)).held == ()
        await _send(first, 0, 1, 2, stream=3)
        await first.say(3, THREE.commit())
        await first.expect(Committed)


@quick
async def test_an_upload_rests_when_nobody_sends_it_and_nothing_is_owed() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await _opened(peer)
        await _send(peer, 0)
        await gate.waits.wait()
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert served.server.engine.uploads.find(KEY) is not None  # its block is not durable yet
        gate.open()
        await wait_all_tasks_blocked()
        assert served.server.engine.uploads.find(KEY) is None
        assert [entry.held_count for entry in uploads_in(served.store)] == [1]


@quick
async def test_a_refused_open_leaves_no_upload_alive() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer, attempt=5)
        await _send(peer, 0)
        await peer.wait_acked(0)
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        late = await served.peer()
        await late.say(1, THREE.open(4))
        await late.expect_error(Code.SUPERSEDED, Scope.STREAM, 1)
        assert served.server.engine.uploads.find(KEY) is None


@pytest.mark.clause("BP1-RES-017")
@quick
async def test_position_and_held_rise_with_the_blocks() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        positions = []
        for blockno, attempt in ((2, 2), (0, 3), (1, 4)):
            await _send(peer, blockno, stream=2 * attempt - 3)
            await peer.wait_acked(blockno)
            await peer.say(2 * attempt - 1, THREE.open(attempt))
            await peer.expect_error(Code.SUPERSEDED, Scope.STREAM)
            opened = await peer.expect(Opened)
            positions.append((opened.position, opened.held))
        assert positions == [
            (0, ((2, 1),)),
            (MIB, ((0, 1), (2, 1))),
            (2 * MIB + 5, ((0, 3),)),
        ]


@quick
async def test_a_long_list_of_held_blocks_is_cut_and_still_fits() -> None:
    """Every second of 2,000 blocks: OPENED names a part of them, which is a lower bound."""
    sample = Sample(bytes(2000))  # its facts below say how big it claims to be
    store = MemoryStore()
    async with serving(store) as served:
        peer = await served.peer()
        claims = sample.open(filesize=2000 * MIB, blocknum=2000)
        await peer.say(1, claims)
        await peer.expect(Opened)
        live = served.server.engine.uploads.find(UploadKey(bytes(16), sample.sourceid))
        assert live is not None
        for blockno in range(0, 2000, 2):
            live.held.add(blockno)
        await peer.say(3, claims)
        opened = await peer.expect(Opened, 3)
        assert 0 < len(opened.held) < 1000
        assert all(count == 1 and first % 2 == 0 for first, count in opened.held)


def _works_of(store: WatchedStore, kind: type[Work]) -> Sequence[Work]:
    return [work for work in store.works if isinstance(work, kind)]


@quick
async def test_a_discard_is_done_once_however_often_it_is_asked() -> None:
    store = WatchedStore()
    async with serving(store) as served:
        first, second = await _two(served)
        await _opened(first)
        await _opened(second)
        gate = Gate(served.server)
        await first.say(1, Cancel(Code.CANCELLED, discard=True))
        await second.say(1, Cancel(Code.CANCELLED, discard=True))
        await gate.waits.wait()
        gate.open()
        for peer in (first, second):
            await peer.expect_error(Code.CANCELLED, Scope.STREAM, 1)
        assert len(_works_of(store, Discard)) == 1

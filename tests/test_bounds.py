"""What one peer can take is bounded: the rules one by one; ``campaigns/attack_bounds.py`` measures them together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from blake3 import blake3
from peers import MIB, RawPeer, Sample, WatchedStore, bytes_of, run, serving
from trio.testing import wait_all_tasks_blocked

from blockproto.names import SafeName
from blockproto.serving import digesting
from blockproto.store import StoredReader
from blockproto.transfer.committing import Kind, run_in_thread
from blockproto.wire import Committed, List, ListKind, Opened, Result

quick = pytest.mark.trio(run=run)

PHOTO = Sample(bytes_of(2 * MIB + 5), "photo.jpg")


async def upload(peer: RawPeer, stream: int, sample: Sample) -> Committed:
    await peer.say(stream, sample.open())
    await peer.expect(Opened, stream)
    for blockno in range(sample.blocknum):
        await peer.say(stream, *sample.block(blockno))
    await peer.say(stream, sample.commit())
    return await peer.expect(Committed, stream)


class CountingStore(WatchedStore):
    """A store that counts what is read of its finished files, and calls ``before_read`` first."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        self.open_now = 0
        self.before_read: Callable[[], None] = lambda: None

    def open_file(
        self, filename: SafeName | None, file_id: bytes | None, within: SafeName | None = None
    ) -> StoredReader:
        reader = super().open_file(filename, file_id, within)
        read_into, close = reader.read_into, reader.close
        self.open_now += 1

        def counted(position: int, view: memoryview) -> int:
            self.before_read()
            read = read_into(position, view)
            self.read += read
            return read

        def closed() -> None:
            self.open_now -= 1
            close()

        reader.read_into, reader.close = counted, closed  # type: ignore[method-assign]
        return reader


# ---- digests of files -------------------------------------------------------------------------------------------


@quick
async def test_a_file_is_read_once_for_all_who_want_its_digest() -> None:
    store = CountingStore()
    async with serving(store) as served:
        peers = [await served.peer() for _ in range(3)]
        await upload(peers[0], 1, PHOTO)
        ask = List(ListKind.FILES, PHOTO.filename, exact=True, b3sum=True)
        for peer in peers:
            for stream in range(3, 43, 2):
                await peer.say(stream, ask)
        for peer in peers:
            for _ in range(20):
                (item,) = (await peer.expect(Result)).items
                assert item.b3sum == blake3(PHOTO.content).digest()
        assert store.read == len(PHOTO.content)
        assert store.open_now == 0


@quick
async def test_who_waits_on_reads_on_when_who_asked_first_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digesting, "STEP_LENGTH", 64 * 1024)
    monkeypatch.setattr(digesting, "READ_LENGTH", 64 * 1024)
    store = CountingStore()
    async with serving(store) as served:
        first, second = await served.peer(), await served.peer()
        await upload(first, 1, PHOTO)
        reads = 0

        def go() -> None:
            nonlocal reads
            reads += 1
            if reads == 1:
                served.nursery.start_soon(first.stream.aclose)

        store.before_read = go
        ask = List(ListKind.FILES, PHOTO.filename, exact=True, b3sum=True)
        await first.say(3, ask)
        await second.say(3, ask)
        (item,) = (await second.expect(Result)).items
        assert item.b3sum == blake3(PHOTO.content).digest()
        assert store.read == len(PHOTO.content)


@quick
async def test_nothing_is_read_any_more_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digesting, "STEP_LENGTH", 64 * 1024)
    monkeypatch.setattr(digesting, "READ_LENGTH", 64 * 1024)
    store = CountingStore()
    async with serving(store) as served:
        peer = await served.peer()
        await upload(peer, 1, PHOTO)
        store.before_read = lambda: served.nursery.start_soon(peer.stream.aclose)
        await peer.say(3, List(ListKind.FILES, PHOTO.filename, exact=True, b3sum=True))
        await wait_all_tasks_blocked()
        assert 0 < store.read < len(PHOTO.content)
        assert served.server._digesting.count == 0
        assert store.open_now == 0


# ---- threads ----------------------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_no_kind_of_work_waits_for_the_threads_of_another() -> None:
    """As many as want to list and read: a commit, a look and a write begin at once."""
    let_go = trio.Event()

    def hold() -> None:
        trio.from_thread.run(let_go.wait)

    async with trio.open_nursery() as nursery:
        for kind in (Kind.LIST, Kind.READ, Kind.HASH):
            for _ in range(3 * kind.threads):
                nursery.start_soon(run_in_thread, hold, kind)
        await wait_all_tasks_blocked()
        with trio.fail_after(20):
            for kind in (Kind.COMMIT, Kind.LOOK, Kind.WRITE):
                assert await run_in_thread(lambda: 7, kind) == 7
        let_go.set()
    assert sum(kind.threads for kind in Kind) < 40

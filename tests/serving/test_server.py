"""The server: many connections, leaving in good order, a disk that fails, expiry, and a real port."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from peers import (
    MIB,
    Gate,
    RawPeer,
    Sample,
    Served,
    WatchedStore,
    assert_untouched,
    bytes_of,
    content_of,
    names_in,
    run,
    serving,
    uploads_in,
)
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from blockproto.client import connect_with
from blockproto.client_side.config import ClientConfig
from blockproto.client_side.dial import tcp_dial
from blockproto.connection.connection import NOT_BLOCKPROTO_TEXT
from blockproto.errors import Code, ConnectionLost, Scope, StoreFailed
from blockproto.protocol.session import Kind, Limits
from blockproto.protocol.streams import FIRST
from blockproto.serving.server import GRACE_S, RETRY_AFTER_MS, Server
from blockproto.store import BlockDone, Destination, Discard, UploadKey, Work
from blockproto.store.rules import EXPIRY_MS
from blockproto.testing.memory_store import MemoryStore, MemoryUpload
from blockproto.transfer.engine import SWEEP_EVERY_S
from blockproto.transfer.receiver import facts_of
from blockproto.wire import Committed, GoAway, List, ListKind, Opened, encode_frame

quick = pytest.mark.trio(run=run)

THREE = Sample(bytes_of(2 * MIB + 5))


async def _opened(peer: RawPeer, sample: Sample = THREE, stream: int = 1, attempt: int = 1) -> Opened:
    await peer.say(stream, sample.open(attempt))
    return await peer.expect(Opened, stream)


# ---- serving --------------------------------------------------------------------------------------------------


@quick
async def test_hello_says_the_limits_of_the_server() -> None:
    limits = Limits(streams_max=300, connection_allowance=3 * MIB, agent="mine")
    async with serving(limits=limits) as served:
        hello = await RawPeer(served.connect()).greet()
        assert (hello.streams_max, hello.connection_allowance, hello.agent) == (300, 3 * MIB, "mine")


@quick
async def test_two_clients_at_once_do_not_disturb_each_other() -> None:
    other = Sample(bytes_of(2 * MIB, 8), "other.bin", sourceid=b"another sourceid")
    async with serving() as served:
        first, second = await served.peer(), await served.peer()
        await _opened(first, THREE)
        await _opened(second, other)
        for blockno in range(2):
            await first.say(1, *THREE.block(blockno))
            await second.say(1, *other.block(blockno))
        await second.say(1, other.commit())
        await second.expect(Committed)
        await first.say(1, *THREE.block(2))
        await first.say(1, THREE.commit())
        await first.expect(Committed)
        assert content_of(served.store, "sample.bin") == THREE.content
        assert content_of(served.store, "other.bin") == other.content


@quick
async def test_a_peer_that_breaks_the_protocol_harms_nobody_else() -> None:
    async with serving() as served:
        good, bad = await served.peer(), await served.peer()
        await _opened(good)
        await bad.send_bytes(bytes(100))
        await bad.expect_error(Code.BAD_CHECK, Scope.CONNECTION, 0)
        await good.say(1, *THREE.block(0))
        await good.wait_acked(0)


@quick
async def test_a_commit_that_ends_after_its_connection_was_refused_harms_nobody() -> None:
    """The answer finds a connection that has had its last word; the file is there all the same."""
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await peer.say(1, *Sample(b"brief").block(0, commit=True))
        await gate.waits.wait()
        await peer.send_bytes(bytes(100))
        await peer.expect_error(Code.BAD_CHECK, Scope.CONNECTION, 0)
        gate.open()
        await wait_all_tasks_blocked()
        assert names_in(served.store) == ["sample.bin"]
        other = replace(THREE, sourceid=b"another sourceid")
        assert (await _opened(await served.peer(), other)).held == ()


@quick
async def test_a_commit_that_ends_after_its_connection_was_closed_harms_nobody() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await _opened(peer)
        for blockno in range(3):
            await peer.say(1, *THREE.block(blockno))
        await peer.say(1, THREE.commit())
        await gate.waits.wait()
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        gate.open()
        await wait_all_tasks_blocked()
        assert await _repeat(served) == len(THREE.content)


async def _repeat(served: Served) -> int:
    """Say OPEN, what is missing and COMMIT again; returns the filesize of the answer."""
    peer = await served.peer()
    await peer.say(1, THREE.open(2))
    answer = (await peer.hear()).message
    if isinstance(answer, Opened):
        await peer.say(1, THREE.commit())
        answer = await peer.expect(Committed)
    assert isinstance(answer, Committed)
    return answer.filesize


def _damaged(frame: bytes, offset: int, value: int) -> bytes:
    raw = bytearray(frame)
    raw[offset] = value
    return bytes(raw)


OPEN = encode_frame(1, THREE.open())
BLOCK = encode_frame(1, THREE.block(0)[0], MIB)


@quick
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (_damaged(OPEN, 20, 0xFF), Code.BAD_CHECK),
        (_damaged(OPEN, 15, OPEN[15] ^ 1), Code.BAD_CHECK),
        (_damaged(BLOCK, 0, 0xFF), Code.TOO_LARGE),
        (_damaged(OPEN, 6, 0xFF), Code.MALFORMED),
        (encode_frame(1, THREE.commit()), Code.UNEXPECTED),
        (encode_frame(2, THREE.open()), Code.UNEXPECTED),
        (encode_frame(1, THREE.piece(0, 0)[0], 0), Code.UNEXPECTED),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else "",
)
async def test_a_frame_that_breaks_the_protocol_leaves_nothing_behind(raw: bytes, code: Code) -> None:
    async with serving() as served:
        peer = await served.peer()
        await peer.send_bytes(raw + bytes(100))
        error = await peer.expect_error(code, Scope.CONNECTION, 0)
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert error.text
        assert not served.server._connections
        assert_untouched(served.store)


# ---- leaving --------------------------------------------------------------------------------------------------


@quick
async def test_stop_says_goaway_and_refuses_new_streams() -> None:
    async with serving() as served:
        peer = await served.peer()
        await _opened(peer)
        await peer.say(1, *THREE.block(0, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        served.server.stop()
        goaway = await peer.expect(GoAway)
        assert (goaway.code, goaway.grace_ms, goaway.retry_after_ms) == (
            Code.GOING_AWAY,
            GRACE_S * 1000,
            RETRY_AFTER_MS,
        )
        await peer.say(3, List(ListKind.FILES))
        error = await peer.expect_error(Code.GOING_AWAY, Scope.STREAM, 3)
        assert (error.retryable, error.retry_after_ms) == (True, RETRY_AFTER_MS)


@quick
async def test_stop_waits_for_what_is_in_flight_and_no_longer_than_the_grace() -> None:
    async with serving() as served:
        peer, idle = await served.peer(), await served.peer()
        await _opened(peer)
        await peer.say(1, *THREE.block(0, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        served.server.stop()
        await peer.expect(GoAway)
        await peer.say(1, *THREE.piece(0, 1000))
        await peer.wait_acked(0)
        assert await peer.rest() == []
        assert [type(heard.message) for heard in await idle.rest()] == [GoAway]
        assert trio.current_time() == GRACE_S


@pytest.mark.clause("BP1-END-010", "BP1-RES-014")
@quick
async def test_stop_records_how_far_unfinished_blocks_got() -> None:
    store = WatchedStore()
    async with serving(store) as served:
        peer = await served.peer()
        await _opened(peer)
        await peer.say(1, *THREE.block(0))
        await peer.say(1, *THREE.block(1, 0, 70_000, end=False))
        await peer.wait_acked(0)
        await wait_all_tasks_blocked()
        served.server.stop()
        await peer.rest()
    async with serving(store.survivor()) as served:
        opened = await _opened(await served.peer(), attempt=2)
        assert (opened.held, opened.prefixes) == (((0, 1),), ((1, 70_000),))


@pytest.mark.clause("BP1-END-010")
@quick
async def test_stop_makes_durable_what_has_come_and_answers_commits_that_are_complete() -> None:
    async with serving() as served:
        gate = Gate(served.server)
        peer = await served.peer()
        await _opened(peer)
        for blockno in range(3):
            await peer.say(1, *THREE.block(blockno))
        await peer.say(1, THREE.commit())
        await gate.waits.wait()
        served.server.stop()
        await wait_all_tasks_blocked()
        gate.open()
        heard = [type(one.message) for one in await peer.rest()]
        assert Committed in heard
        assert content_of(served.store, "sample.bin") == THREE.content


@quick
async def test_an_idle_client_of_ours_does_not_hold_the_server_up() -> None:
    async with serving() as served, served.client() as client:
        assert [entry async for entry in client.listing()] == []
        served.server.stop()
        await wait_all_tasks_blocked()
        assert trio.current_time() < GRACE_S / 2
        assert not served.server._connections


@quick
async def test_a_peer_that_takes_nothing_does_not_hold_the_server_up() -> None:
    async with serving() as served:
        here, there = trio.testing.lockstep_stream_pair()
        served.nursery.start_soon(served.server.serve_stream, there)
        peer = RawPeer(here)
        await peer.greet()
        await peer.say(1, THREE.open())
        await wait_all_tasks_blocked()
        served.server.stop()
        await trio.sleep_until(GRACE_S + 0.5)
        assert not served.server._connections


@quick
async def test_cancelling_run_leaves_in_the_same_good_order() -> None:
    store = WatchedStore()
    closed: list[bool] = []
    store.close = lambda: closed.append(True)  # type: ignore[method-assign]
    server = Server(store)
    here, there = memory_stream_pair()
    peer = RawPeer(here)
    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            clients.start_soon(server.serve_stream, there)
            await peer.greet()
            await _opened(peer)
            await peer.say(1, *THREE.block(0, 0, 1000, end=False))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [type(heard.message) for heard in await peer.rest()] == [GoAway]
    assert closed == [True]
    (entry,) = uploads_in(store.survivor())
    assert entry.filename.text == "sample.bin"


@quick
async def test_who_connects_to_a_server_that_has_left_is_closed() -> None:
    store = MemoryStore()
    server = Server(store)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        server.stop()
    here, there = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, there)
        await RawPeer(here).rest()


# ---- a disk that fails ----------------------------------------------------------------------------------------


@pytest.mark.clause("BP1-ERR-008")
@quick
async def test_after_the_medium_failed_everybody_is_told_and_nothing_acknowledged() -> None:
    store = WatchedStore()
    async with serving(store, fails=StoreFailed) as served:
        gate = Gate(served.server)
        uploading, other = await served.peer(), await served.peer()
        await _opened(uploading)
        await uploading.say(1, *THREE.block(0))
        await uploading.say(1, *THREE.block(1, 0, 1000, end=False))
        await gate.waits.wait()
        store.broken = True
        gate.open()
        for peer in (uploading, other):
            await peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION, 0)
            assert await peer.rest() == []
            assert peer.acked == set()


@pytest.mark.clause("BP1-ERR-008")
@quick
async def test_a_write_that_fails_ends_the_server_too() -> None:
    class Failing(WatchedStore):
        def take_room(self, length: int) -> None:
            raise StoreFailed("Input/output error")

    async with serving(Failing(), fails=StoreFailed) as served:
        uploading, other = await served.peer(), await served.peer()
        await _opened(uploading)
        await uploading.say(1, *THREE.block(0))
        for peer in (uploading, other):
            await peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION, 0)
        await uploading.stream.aclose()


@quick
async def test_a_failure_with_many_unfinished_uploads_still_tells_everybody() -> None:
    """Each of them has something to record when its stream ends, and nothing can be recorded any more."""
    store = WatchedStore()
    samples = [Sample(THREE.content, f"f{n}", sourceid=bytes([n]) * 16) for n in range(1, 6)]
    async with serving(store, fails=StoreFailed) as served:
        peers = [await served.peer() for _ in samples]
        for peer, sample in zip(peers, samples, strict=True):
            for stream in (1, 3):
                await _opened(peer, sample, stream)
            await peer.say(1, *sample.block(0, 0, 1000, end=False))
            await peer.say(3, *sample.block(1, 0, 1000, end=False))
        await wait_all_tasks_blocked()
        store.broken = True
        await peers[0].say(1, *samples[0].piece(0, 1000))
        for peer in peers:
            await peer.expect_error(Code.STORE_FAILED, Scope.CONNECTION, 0)


@quick
async def test_a_sweep_that_fails_ends_the_server_in_order() -> None:
    class Failing(WatchedStore):
        def sweep(self) -> Sequence[Work]:
            raise StoreFailed("the ledger")

    async with serving(Failing(), fails=StoreFailed) as served:
        await RawPeer(served.connect()).rest()


# ---- expiry ---------------------------------------------------------------------------------------------------


def _begun_before(now_ms: Callable[[], int]) -> WatchedStore:
    """A store with one unfinished upload that was begun at 1,000 ms; from then on its time is ``now_ms``."""
    clock: list[Callable[[], int]] = [lambda: 1000]
    store = WatchedStore(now_ms=lambda: clock[0]())
    upload = store.open_upload(UploadKey(bytes(16), THREE.sourceid), facts_of(THREE.open()), 1)
    assert isinstance(upload, MemoryUpload)
    upload.write(0, memoryview(THREE.bytes_of(0)))
    store.decide([BlockDone(upload, 1, 0, MIB, bytes(32))])
    clock[0] = now_ms
    return store


@quick
async def test_what_expired_is_swept_away_at_the_start() -> None:
    store = _begun_before(lambda: 1000 + EXPIRY_MS)
    async with serving(store):
        await wait_all_tasks_blocked()
        assert uploads_in(store) == []


@pytest.mark.clause("BP1-RES-022")
@quick
async def test_what_has_not_expired_stays_and_is_swept_an_hour_after_it_has() -> None:
    store = _begun_before(lambda: int(1000 + EXPIRY_MS - 1 + trio.current_time() * 1000))
    async with serving(store):
        await wait_all_tasks_blocked()
        assert len(uploads_in(store)) == 1
        await trio.sleep_until(SWEEP_EVERY_S + 1)
        assert uploads_in(store) == []
        assert [type(work) for work in store.works if isinstance(work, Discard)] == [Discard]


# ---- a real port ----------------------------------------------------------------------------------------------


async def _free_port(nursery: trio.Nursery, server: Server) -> int:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(server.run, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def test_files_go_up_and_down_over_tcp_and_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Two clients at once, several megabytes, a real socket, real threads, and the machine's clock."""
    contents = [bytes_of(3 * MIB + 7, 1), bytes_of(2 * MIB, 2)]
    paths = [tmp_path / f"file{number}" for number in range(2)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    sidecars: dict[str, MemoryStore] = {}

    def open_part_file(dest: Destination, first: int) -> MemoryStore:
        return sidecars.setdefault(dest.path.name, MemoryStore(first=first))

    async def there_and_back(path: Path, port: int) -> None:
        dial, name = tcp_dial(f"bp://127.0.0.1:{port}")
        async with connect_with(dial, name, open_part_file, ClientConfig(connections=2)) as client:
            await client.upload(path)
            await client.download(path.name, tmp_path / f"copy of {path.name}")

    before = _descriptors()
    store = WatchedStore()
    server = Server(store)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            port = await _free_port(nursery, server)
            async with trio.open_nursery() as clients:
                for path in paths:
                    clients.start_soon(there_and_back, path, port)
            server.stop()
    for path, content in zip(paths, contents, strict=True):
        assert content_of(store, path.name) == content
        assert content_of(sidecars[f"copy of {path.name}"], f"copy of {path.name}") == content
    assert _descriptors() == before


def _descriptors() -> int:
    """Open sockets and files of this process; Trio's own come and go with the run, so count within one."""
    return len(os.listdir("/proc/self/fd"))


async def test_a_browser_on_the_port_is_told_what_it_is() -> None:
    server = Server(MemoryStore())
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            port = await _free_port(nursery, server)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                heard = b""
                while len(heard) < len(NOT_BLOCKPROTO_TEXT):
                    heard += await stream.receive_some(1000)
            assert heard == NOT_BLOCKPROTO_TEXT
            server.stop()


async def test_a_port_where_nobody_listens_is_a_lost_connection() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    dial, name = tcp_dial(f"bp://127.0.0.1:{port}")
    with pytest.raises(ConnectionLost, match=f"cannot reach {name}: Connection refused"):
        await dial()


def test_everything_that_may_begin_a_stream_is_handled() -> None:
    """What the session lets a peer begin a stream with is what the server has an answer for."""
    assert set(FIRST) == {
        Kind.OPEN, Kind.BLOCK, Kind.BLOCK_COMMIT, Kind.FETCH, Kind.LIST, Kind.REMOVE, Kind.AUTH, Kind.FILES, Kind.FILES_LAST,
            Kind.FILES_WANTED,
    }  # fmt: skip

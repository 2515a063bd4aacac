"""Endpoints: bytes over sockets and over Trio streams, deadlines, errors, and closing."""

from __future__ import annotations

import gc
import math
import os
import socket
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import trio
from peers import bytes_of
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from blockproto.connection import endpoint as endpoint_module
from blockproto.connection.endpoint import NOTSENT_LOWAT_BYTES, SocketEndpoint, StreamEndpoint, endpoint_of
from blockproto.errors import ConnectionLost

MIB = 1 << 20


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    return here, there


@pytest.fixture
def pair() -> Iterator[tuple[SocketEndpoint, SocketEndpoint]]:
    """Two ends of a TCP connection on this machine."""
    socks = tcp_pair()
    yield SocketEndpoint(socks[0]), SocketEndpoint(socks[1])
    for sock in socks:
        sock.close()


async def _receive(endpoint: SocketEndpoint | StreamEndpoint, length: int) -> bytes:
    received = bytearray()
    view = memoryview(bytearray(65_536))
    while len(received) < length:
        count = await endpoint.receive_into(view)
        assert count
        received += view[:count]
    return bytes(received)


# ---- sockets --------------------------------------------------------------------------------------------------


async def test_megabytes_in_many_parts_arrive_in_order(pair: tuple[SocketEndpoint, SocketEndpoint]) -> None:
    """More parts than one system call takes, empty ones among them, and more than the kernel's buffers hold."""
    content = bytes_of(5 * MIB)
    cuts = [0, 1, 1, 100, 70_000, *range(100_000, 5 * MIB, 30_011), 5 * MIB]
    parts = [memoryview(content)[first:last] for first, last in pairwise(cuts)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair[0].send, parts)
        assert await _receive(pair[1], len(content)) == content


async def test_without_sendmsg_parts_are_sent_one_by_one(
    pair: tuple[SocketEndpoint, SocketEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain:
        """A socket of a platform without sendmsg."""

        def __init__(self, sock: socket.socket) -> None:
            self.send = sock.send

    monkeypatch.setattr(pair[0], "_socket", Plain(pair[0]._socket))
    await pair[0].send([b"one ", b"", b"two ", bytearray(b"three")])
    assert await _receive(pair[1], 13) == b"one two three"


async def test_nothing_to_send_sends_nothing(pair: tuple[SocketEndpoint, SocketEndpoint]) -> None:
    await pair[0].send([])
    await pair[0].send([b""])
    await pair[0].send([b"x"])
    assert await _receive(pair[1], 1) == b"x"


async def test_the_peers_end_of_stream_is_zero(pair: tuple[SocketEndpoint, SocketEndpoint]) -> None:
    await pair[0].aclose()
    assert await pair[1].receive_into(memoryview(bytearray(10))) == 0


async def test_a_reset_is_a_lost_connection(pair: tuple[SocketEndpoint, SocketEndpoint]) -> None:
    linger = b"\x01\0\0\0\0\0\0\0"  # on, 0 s: close with RST
    pair[0]._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await pair[0].aclose()
    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1"):
        await pair[1].receive_into(memoryview(bytearray(10)))
    with pytest.raises(ConnectionLost):
        await pair[1].send([bytes(MIB)])


async def test_a_deadline_that_passes_gives_none_and_loses_nothing(
    pair: tuple[SocketEndpoint, SocketEndpoint],
) -> None:
    view = memoryview(bytearray(10))
    assert await pair[1].receive_into(view, lambda: trio.current_time() + 0.01) is None
    await pair[0].send([b"late"])
    assert await pair[1].receive_into(view, lambda: -math.inf) in {4, None}  # what is here may still be taken
    await pair[0].send([b"more"])
    assert await _receive(pair[1], 4) == b"more"


async def test_who_waits_for_bytes_keeps_no_error_of_the_kernel(
    pair: tuple[SocketEndpoint, SocketEndpoint],
) -> None:
    """With its traceback it takes half a KiB, of thousands of idle connections."""
    gc.collect()
    before = sum(isinstance(one, BlockingIOError) for one in gc.get_objects())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair[1].receive_into, memoryview(bytearray(10)))
        await wait_all_tasks_blocked()
        waiting = sum(isinstance(one, BlockingIOError) for one in gc.get_objects())
        nursery.cancel_scope.cancel()
    assert waiting == before


async def test_cancelling_a_receive_takes_no_byte(pair: tuple[SocketEndpoint, SocketEndpoint]) -> None:
    view = memoryview(bytearray(10))
    with trio.move_on_after(0.01) as scope:
        await pair[1].receive_into(view)
    assert scope.cancelled_caught
    await pair[0].send([b"whole"])
    assert await _receive(pair[1], 5) == b"whole"


async def test_a_cancelled_receive_takes_no_byte_that_is_here(
    pair: tuple[SocketEndpoint, SocketEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "BYTES_PER_CHECKPOINT", 1)
    view = memoryview(bytearray(1))
    await pair[0].send([b"whole"])
    assert await pair[1].receive_into(view) == 1
    with trio.move_on_after(0) as scope:
        await pair[1].receive_into(view)
    assert scope.cancelled_caught
    assert await _receive(pair[1], 4) == b"hole"


async def test_closing_wakes_who_waits_and_can_be_repeated(
    pair: tuple[SocketEndpoint, SocketEndpoint],
) -> None:
    async def reads() -> None:
        with pytest.raises(ConnectionLost, match="closed here"):
            await pair[0].receive_into(memoryview(bytearray(10)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads)
        await trio.testing.wait_all_tasks_blocked()
        await pair[0].aclose()
        await pair[0].aclose()
    with pytest.raises(ConnectionLost):
        await pair[0].send([b"x"])


async def test_a_fast_peer_does_not_starve_other_tasks(
    pair: tuple[SocketEndpoint, SocketEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in so many bytes everybody else has a turn, although the bytes are always there."""
    monkeypatch.setattr(endpoint_module, "BYTES_PER_CHECKPOINT", 1000)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(10):
            await pair[0].send([bytes(500)])
        view = memoryview(bytearray(500))
        for _ in range(10):
            assert await pair[1].receive_into(view) == 500
        assert 4 <= turns <= 20
        nursery.cancel_scope.cancel()


async def test_little_is_kept_unsent_while_streams_share_the_line(
    pair: tuple[SocketEndpoint, SocketEndpoint],
) -> None:
    def unsent_max() -> int:
        return pair[0]._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)

    pair[0].limit_unsent(True)
    assert unsent_max() == NOTSENT_LOWAT_BYTES
    pair[0].limit_unsent(False)
    assert unsent_max() > MIB


async def test_a_platform_without_the_option_goes_on(
    pair: tuple[SocketEndpoint, SocketEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "TCP_NOTSENT_LOWAT")
    pair[0].limit_unsent(True)
    await pair[0].send([b"x"])
    assert await _receive(pair[1], 1) == b"x"


async def test_the_socket_is_tuned(pair: tuple[SocketEndpoint, SocketEndpoint]) -> None:
    assert pair[0]._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert pair[0]._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_it_says_who_the_peer_is() -> None:
    here, there = tcp_pair()
    port = here.getsockname()[1]
    with here, there:
        assert SocketEndpoint(there).peer == f"127.0.0.1:{port}"
    local, other = socket.socketpair()
    with local, other:
        assert SocketEndpoint(local).peer == "a local socket"
    fresh = socket.socket()
    with fresh:
        assert SocketEndpoint(fresh).peer == "a closed connection"


async def test_an_ipv6_peer_stands_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ipv6(socket.socket):
        def getpeername(self) -> Any:
            return ("::1", 99, 0, 0)

    with Ipv6() as sock:
        assert SocketEndpoint(sock).peer == "[::1]:99"


async def test_endpoint_of_takes_the_socket_out_of_a_trio_stream() -> None:
    here, there = tcp_pair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(here))
    endpoint = endpoint_of(stream)
    assert isinstance(endpoint, SocketEndpoint)
    await endpoint.send([b"x"])
    with there:
        assert there.recv(1) == b"x"
    await endpoint.aclose()


async def test_a_closed_endpoint_leaves_no_file_descriptor() -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for sock in tcp_pair():
        await SocketEndpoint(sock).aclose()
    assert opened() == before


# ---- other streams --------------------------------------------------------------------------------------------


async def test_any_trio_stream_is_an_endpoint() -> None:
    here, there = memory_stream_pair()
    first, second = endpoint_of(here), StreamEndpoint(there)
    assert isinstance(first, StreamEndpoint)
    await first.send([b"one ", b"", memoryview(b"two")])
    assert await _receive(second, 7) == b"one two"
    first.limit_unsent(True)
    await first.aclose()
    await first.aclose()
    assert await second.receive_into(memoryview(bytearray(10))) == 0


async def test_a_stream_never_fills_more_than_the_view() -> None:
    here, there = memory_stream_pair()
    await here.send_all(b"abcdef")
    view = memoryview(bytearray(4))
    endpoint = StreamEndpoint(there)
    assert await endpoint.receive_into(view) == 4
    assert bytes(view) == b"abcd"
    assert await endpoint.receive_into(view) == 2


async def test_a_deadline_on_a_stream_gives_none(autojump_clock: trio.testing.MockClock) -> None:
    _, there = memory_stream_pair()
    assert (
        await StreamEndpoint(there).receive_into(memoryview(bytearray(4)), lambda: trio.current_time() + 5)
        is None
    )
    assert trio.current_time() == 5


async def test_a_broken_stream_is_a_lost_connection() -> None:
    here, there = memory_stream_pair()
    endpoint = StreamEndpoint(here, "the peer's name")
    await there.aclose()
    with pytest.raises(ConnectionLost, match="the peer's name"):
        await endpoint.send([b"x"])
    await endpoint.aclose()
    with pytest.raises(ConnectionLost):
        await endpoint.receive_into(memoryview(bytearray(4)))

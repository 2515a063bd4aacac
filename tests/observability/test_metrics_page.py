"""The port of the metrics: whoever connects to it takes a few descriptors for a few seconds, and no thread."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from blockproto.errors import NotPermitted
from blockproto.observability.metrics_page import (
    CONNECTIONS_MAX,
    DEADLINE_S,
    REQUEST_LENGTH_MAX,
    MetricsPage,
    shown,
)

WAIT_S = 20.0
TEXT = "text/plain; version=0.0.4"


@contextmanager
def connected(port: int, words: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        sock.sendall(words)
        yield sock


def answer_of(sock: socket.socket) -> bytes:
    """Everything until the other side closes; a reset counts as closing."""
    heard = b""
    try:
        while more := sock.recv(65_536):
            heard += more
    except ConnectionError:
        pass
    return heard


def test_it_answers() -> None:
    with shown(lambda: b"a 1\n", TEXT, "127.0.0.1", 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
            assert answer.read() == b"a 1\n"
            assert answer.headers["Content-Type"] == TEXT
        with connected(port, b"HEAD / HTTP/1.0\r\n\r\n") as sock:
            assert answer_of(sock).endswith(b"Content-Length: 4\r\nConnection: close\r\n\r\n")
        with connected(port, b"POST / HTTP/1.1\r\n\r\n") as sock:
            assert answer_of(sock).startswith(b"HTTP/1.1 405 ")
        with pytest.raises(NotPermitted):
            shown(lambda: b"", TEXT, "127.0.0.1", port).__enter__()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def test_who_says_nothing_keeps_nobody_out_and_takes_no_thread() -> None:
    """Many idle ones, half requests and such that read nothing: the last to come is answered, the first were let go."""
    with shown(lambda: bytes(1 << 22), TEXT, "127.0.0.1", 0) as port:
        before = threading.active_count()
        words = (b"", b"GET /met", b"GET / HTTP/1.1\r\n\r\n")
        socks = []
        for number in range(8 * CONNECTIONS_MAX):
            sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
            sock.sendall(words[number % 3])
            socks.append(sock)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=WAIT_S) as answer:
            assert len(answer.read()) == 1 << 22
        assert b"HTTP" not in answer_of(socks[0])
        assert threading.active_count() <= before + 1
        for sock in socks:
            sock.close()


def test_a_request_that_is_too_long_is_not_gathered() -> None:
    with (
        shown(lambda: b"", TEXT, "127.0.0.1", 0) as port,
        connected(port, b"GET / HTTP/1.1\r\nX: " + bytes(2 * REQUEST_LENGTH_MAX)) as sock,
    ):
        assert answer_of(sock) == b""


def test_a_request_that_does_not_end_has_a_deadline() -> None:
    async def main() -> None:
        page = MetricsPage(lambda: b"", TEXT)
        sock = socket.create_server(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(page.serve, sock)
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET / HTTP/1.1\r\n")
            begun = trio.current_time()
            with trio.fail_after(100 * DEADLINE_S):
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
            assert trio.current_time() - begun <= 2 * DEADLINE_S
            await stream.aclose()
            page.stop()

    trio.run(main, clock=MockClock(autojump_threshold=0.5))

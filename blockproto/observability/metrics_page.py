"""The page of metrics: HTTP on a port and in a thread of its own, for a few readers at a time.

No reader is trusted: it has ``DEADLINE_S`` for its request and the answer, and ``REQUEST_LENGTH_MAX`` bytes for the request;
with more than ``CONNECTIONS_MAX`` readers the oldest connection is closed. The server is asked for its metrics in another
thread, for one reader at a time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from ..errors import NotPermitted

CONNECTIONS_MAX = 16
DEADLINE_S = 10.0
REQUEST_LENGTH_MAX = 8192
PAUSE_S = 0.1
"""How long to accept no connection after there was no descriptor for one more."""
_END = (b"\r\n\r\n", b"\n\n")

Show = Callable[[], bytes]
"""Returns the metrics in the text format of Prometheus; called in a worker thread."""


@contextmanager
def shown(show: Show, content_type: str, host: str, port: int) -> Iterator[int]:
    """Answer every HTTP GET on ``host`` and ``port`` (0 picks a free one) while inside; gives the port.

    Raises:
        NotPermitted: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        sock = socket.create_server((host, port), family=family, backlog=CONNECTIONS_MAX)
    except OSError as exc:
        raise NotPermitted(f"metrics cannot be shown on {host}:{port}: {exc.strerror or exc}") from exc
    page = MetricsPage(show, content_type)
    thread = threading.Thread(target=trio.run, args=(page.serve, sock), name="blockproto-metrics")
    thread.start()
    try:
        yield int(sock.getsockname()[1])
    finally:
        page.stop()
        thread.join()


class MetricsPage:
    """Answers readers.

    Args:
        show: returns the page.
        content_type: its type, for HTTP.
    """

    def __init__(self, show: Show, content_type: str) -> None:
        self._show = show
        self._content_type = content_type
        self._readers: dict[trio.CancelScope, None] = {}  # oldest first
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._begun = threading.Event()

    def stop(self) -> None:
        """End ``serve``; called from another thread."""
        self._begun.wait()
        assert self._token is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)

    async def serve(self, sock: socket.socket) -> None:
        """Answer until ``stop``; closes ``sock``."""
        self._token = trio.lowlevel.current_trio_token()
        self._begun.set()
        with self._scope:
            async with trio.open_nursery() as nursery, trio.SocketListener(_listening(sock)) as listener:
                while True:
                    try:
                        stream = await listener.accept()
                    except OSError:
                        await trio.sleep(PAUSE_S)
                        continue
                    scope = trio.CancelScope(deadline=trio.current_time() + DEADLINE_S)
                    while len(self._readers) >= CONNECTIONS_MAX:
                        oldest = next(iter(self._readers))
                        del self._readers[oldest]
                        oldest.cancel()
                    self._readers[scope] = None
                    nursery.start_soon(self._answer, stream, scope)

    async def _answer(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            with scope, contextlib.suppress(trio.BrokenResourceError):
                request = await _request_of(stream)
                if request is not None:
                    await stream.send_all(await self._response(request))
        finally:
            self._readers.pop(scope, None)
            await trio.aclose_forcefully(stream)

    async def _response(self, request: bytes) -> bytes:
        method = request.partition(b" ")[0]
        if method not in (b"GET", b"HEAD"):
            return _head("405 Method Not Allowed", "Allow: GET, HEAD", "Content-Length: 0")
        body = await trio.to_thread.run_sync(self._show, limiter=self._one_at_a_time)
        head = _head("200 OK", f"Content-Type: {self._content_type}", f"Content-Length: {len(body)}")
        return head + (body if method == b"GET" else b"")


def _head(status: str, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "Connection: close", "", ""]).encode()


async def _request_of(stream: trio.SocketStream) -> bytes | None:
    """The head of a request; None if the peer closed before its end, or it is too long."""
    request = b""
    while not any(end in request for end in _END):
        more = await stream.receive_some(REQUEST_LENGTH_MAX)
        request += more
        if not more or len(request) > REQUEST_LENGTH_MAX:
            return None
    return request


def _listening(sock: socket.socket) -> trio.socket.SocketType:
    sock.setblocking(False)
    return trio.socket.from_stdlib_socket(sock)

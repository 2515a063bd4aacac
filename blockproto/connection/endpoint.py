"""Endpoints: one interface to bytes in and out, over a TCP socket or any Trio stream.

A socket fills the caller's own memory and sends several pieces of memory in one call; other streams can do neither, so their
endpoint copies. Trio's own socket calls pass through the scheduler each time, which costs as much as hashing 100 KiB; the
socket endpoint asks the kernel first, waits only when it must, and passes through the scheduler once per
``BYTES_PER_CHECKPOINT``, so that one fast peer cannot starve the others.

A failed or cancelled ``send`` leaves the byte stream in an unknown state: close the connection.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from ..errors import ConnectionLost

BYTES_PER_CHECKPOINT = 1 << 20
NOTSENT_LOWAT_BYTES = 128 * 1024
_SEND_PARTS_MAX = 64
_KEEPALIVE_IDLE_S = 60

Part = bytes | bytearray | memoryview
Deadline = Callable[[], float]


def never() -> float:
    """A deadline that does not come."""
    return math.inf


class Endpoint(Protocol):
    """A byte stream to a peer.

    Attributes:
        peer: the peer in words, for people.
        host: the peer's address without its port; the same for all its connections.
    """

    peer: str
    host: str

    async def receive_into(self, view: memoryview, deadline: Deadline = never) -> int | None:
        """Fill ``view`` with at least one byte; returns how many, 0 at the peer's end of stream, None at the deadline.

        Args:
            view: the caller's memory, not empty; the bytes behind those received are undefined afterwards.
            deadline: returns the Trio time at which to give up; called only if nothing has come yet.

        Raises:
            ConnectionLost: the connection broke.

        Cancellation: nothing is lost; no byte was taken.
        """

    async def send(self, parts: Sequence[Part]) -> None:
        """Send all bytes of ``parts`` in order.

        Raises:
            ConnectionLost: the connection broke.

        Cancellation: an unknown part was sent; the caller has to close the connection.
        """

    def limit_unsent(self, limited: bool) -> None:
        """Keep little in the kernel's queue (so that a scheduler's choice counts), or as much as it likes."""

    async def end_sending(self) -> None:
        """Tell the peer that nothing more comes, where the stream can, and go on receiving.

        Raises:
            ConnectionLost: the connection broke.
        """

    async def aclose(self) -> None:
        """Close at once. Harmless when repeated."""


class SocketEndpoint:
    """A connected TCP socket. Takes ownership of ``sock``."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._unyielded = 0
        self._limited = False
        self.host, self.peer = _describe(sock)
        if sock.family != getattr(socket, "AF_UNIX", None):
            _tune(sock)

    async def receive_into(self, view: memoryview, deadline: Deadline = never) -> int | None:
        """See Endpoint. If bytes are there already, the deadline is not asked for."""
        await self._yield_after(0)  # before bytes are taken, so that a cancellation loses none
        while (received := self._receive_now(view)) is None:
            self._unyielded = 0
            with trio.move_on_at(deadline()) as scope:
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                except trio.ClosedResourceError as exc:
                    raise self._closed_here() from exc
            if scope.cancelled_caught:
                return None
        self._unyielded += received
        return received

    def _receive_now(self, view: memoryview) -> int | None:
        """How many bytes came, or None for nothing yet.

        A function of its own: a wait inside its ``except`` would keep the exception and its traceback alive in every idle
        connection.
        """
        try:
            return self._socket.recv_into(view)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise ConnectionLost(f"the connection to {self.peer} broke: {exc.strerror or exc}") from exc

    async def send(self, parts: Sequence[Part]) -> None:
        """See Endpoint."""
        rest = [memoryview(part) for part in parts if len(part)]
        while rest:
            try:
                sent = self._send_some(rest[:_SEND_PARTS_MAX])
            except BlockingIOError:
                self._unyielded = 0
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except trio.ClosedResourceError as exc:
                    raise self._closed_here() from exc
                continue
            except OSError as exc:
                raise ConnectionLost(f"the connection to {self.peer} broke: {exc.strerror or exc}") from exc
            rest = _after(rest, sent)
            await self._yield_after(sent)

    def limit_unsent(self, limited: bool) -> None:
        """See Endpoint; a platform without TCP_NOTSENT_LOWAT keeps its own choice."""
        option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if option is None or limited is self._limited:
            return
        self._limited = limited
        with contextlib.suppress(OSError):  # an option, not a promise: some stacks refuse it
            self._socket.setsockopt(
                socket.IPPROTO_TCP, option, NOTSENT_LOWAT_BYTES if limited else 0x7FFFFFFF
            )

    async def end_sending(self) -> None:
        """See Endpoint."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise ConnectionLost(f"the connection to {self.peer} broke: {exc.strerror or exc}") from exc
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See Endpoint."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()

    def _send_some(self, parts: list[memoryview]) -> int:
        if hasattr(self._socket, "sendmsg"):
            return self._socket.sendmsg(parts)
        return self._socket.send(parts[0])

    def _closed_here(self) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self.peer} was closed here")

    async def _yield_after(self, length: int) -> None:
        self._unyielded += length
        if self._unyielded >= BYTES_PER_CHECKPOINT:
            self._unyielded = 0
            await trio.lowlevel.checkpoint()


class StreamEndpoint:
    """Any Trio stream: TLS, a memory stream in tests. Takes ownership of ``stream``."""

    def __init__(self, stream: trio.abc.Stream, peer: str = "stream") -> None:
        self._stream = stream
        self.peer = self.host = peer

    async def receive_into(self, view: memoryview, deadline: Deadline = never) -> int | None:
        """See Endpoint."""
        received: bytes | bytearray | None = None
        try:
            with trio.move_on_at(deadline()):
                received = await self._stream.receive_some(len(view))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLost(f"the connection to {self.peer} broke") from exc
        if received is None:
            return None
        view[: len(received)] = received
        return len(received)

    async def send(self, parts: Sequence[Part]) -> None:
        """See Endpoint."""
        try:
            for part in parts:
                if len(part):
                    await self._stream.send_all(part)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLost(f"the connection to {self.peer} broke") from exc

    def limit_unsent(self, limited: bool) -> None:
        """See Endpoint; not possible for a Trio stream, so nothing happens."""

    async def end_sending(self) -> None:
        """See Endpoint."""
        if not isinstance(self._stream, trio.abc.HalfCloseableStream):
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionLost(f"the connection to {self.peer} broke") from exc

    async def aclose(self) -> None:
        """See Endpoint."""
        await trio.aclose_forcefully(self._stream)


def endpoint_of(stream: trio.abc.Stream) -> Endpoint:
    """The best endpoint for ``stream``, which must not be used afterwards."""
    if isinstance(stream, trio.SocketStream):
        family, kind = stream.socket.family, stream.socket.type
        return SocketEndpoint(socket.socket(family, kind, fileno=stream.socket.detach()))
    return StreamEndpoint(stream)


def _describe(sock: socket.socket) -> tuple[str, str]:
    """The peer's host, and the peer in words."""
    try:
        address = sock.getpeername()
    except OSError:
        return "", "a closed connection"
    if isinstance(address, tuple):
        host, port = address[:2]
        return host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "", "a local socket"


def _tune(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # a peer that is already gone shows itself at the first read
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)


def _after(parts: list[memoryview], sent: int) -> list[memoryview]:
    for index, part in enumerate(parts):
        if sent < len(part):
            return [part[sent:], *parts[index + 1 :]]
        sent -= len(part)
    return []

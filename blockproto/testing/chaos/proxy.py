"""A TCP proxy that puts a bad line between its clients and a server.

    client → socket → Line.up → socket → server
    client ← socket ← Line.down ← socket ← server

The kernel's own buffers on both sides are kept small where a rate is given: what waits, waits in the line, where it is
counted. The TCP handshake is the kernel's and takes no time of the line.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import trio

from .line import Conditions, How, Line
from .pipe import PACKET_LENGTH_MIN, Pipe

KERNEL_BUFFER_LEAST = 8 * 1024
KERNEL_BUFFER_MOST = 16 * 1024
"""What the kernel may keep of a line with a rate before the line takes it: 0.1 s of it, within these bounds."""
KERNEL_BUFFER_S = 0.1
RECEIVE_BYTES = 64 * 1024
_LINGER_NOT = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: close() sends a reset."""


class Report(NamedTuple):
    """Something that happened to a connection.

    Attributes:
        at_s: seconds since the proxy began to listen.
        connection: its number, from 1.
        event: ``opened``, ``refused`` (the server could not be reached), ``lost`` (one of the peers broke it), ``ended``;
            or what the line did to it: ``reset``, ``closed``, ``black hole``, ``healed``.
        up_bytes, down_bytes: what has come through, to the server and back.
        flipped_bits: how many bits of it are wrong.
        peer: who dialled.
    """

    at_s: float
    connection: int
    event: str
    up_bytes: int
    down_bytes: int
    flipped_bits: int
    peer: str


@dataclass(slots=True)
class Totals:
    """What all connections came to."""

    connections: int = 0
    refused: int = 0
    resets: int = 0
    closes: int = 0
    black_holes: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    flipped_bits: int = 0


class ChaosProxy:
    """Passes every connection to ``target`` over a line of its own.

    Args:
        target: host and port of the server.
        conditions: what the lines are like.
        seed: connection n draws by lot from (seed, n): the same connections meet the same fate again.
        endings_max: only so many connections, the first ones, end as ``conditions.ending`` says; None: all.
        report: called with each Report.
    """

    def __init__(
        self,
        target: tuple[str, int],
        conditions: Conditions,
        *,
        seed: int = 0,
        endings_max: int | None = None,
        report: Callable[[Report], None] = lambda _: None,
    ) -> None:
        self.totals = Totals()
        self._target = target
        self._conditions = conditions
        self._seed = seed
        self._endings_max = endings_max
        self._report = report
        self._begun_at = 0.0

    async def serve(
        self,
        listen: tuple[str, int],
        *,
        task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen and pass on until cancelled; started with the list of (host, port) it listens on.

        Raises:
            OSError: the address cannot be listened on.

        Cancellation: every connection is reset.
        """
        host, port = listen
        self._begun_at = trio.current_time()
        listeners = await trio.open_tcp_listeners(port, host=host)
        for listener in listeners:
            _narrow(listener.socket, self._conditions.up_bytes_s)
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve_connection, listeners)
            task_status.started([listener.socket.getsockname()[:2] for listener in listeners])

    async def _serve_connection(self, client: trio.SocketStream) -> None:
        self.totals.connections += 1
        number = self.totals.connections
        conditions = self._conditions
        if self._endings_max is not None and number > self._endings_max:
            conditions = replace(conditions, ending=None)
        line = Line(conditions, random.Random(f"{self._seed}/{number}"))
        told = partial(self._tell, number, line, _peer_of(client))
        line.on_change = told
        try:
            server = await self._dial()
        except OSError:
            self.totals.refused += 1
            told("refused")
            await _reset(client)  # nobody is there: that is what the client is to see
            return
        told("opened")
        in_order = False
        try:
            in_order = await self._relay(client, server, line)
        except* trio.BrokenResourceError:
            if not line.broken:
                told("lost")
        finally:
            with trio.CancelScope(shield=True):
                for stream in (client, server):
                    if in_order:
                        await trio.aclose_forcefully(stream)
                    else:
                        await _reset(stream)
            self._count(line)
            told("ended")

    async def _relay(self, client: trio.SocketStream, server: trio.SocketStream, line: Line) -> bool:
        """Pass bytes both ways; returns whether both directions ended in order, raises what broke one of them."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            async with trio.open_nursery() as relaying:
                for source, pipe, dest in ((client, line.up, server), (server, line.down, client)):
                    relaying.start_soon(_take_in, source, pipe)
                    relaying.start_soon(_hand_on, pipe, dest)
            nursery.cancel_scope.cancel()
        return True

    async def _dial(self) -> trio.SocketStream:
        host, port = self._target
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            sock = trio.socket.socket(family, kind, protocol)
            _narrow(sock, self._conditions.down_bytes_s)
            try:
                await sock.connect(address)
            except BaseException as exc:
                sock.close()
                if not isinstance(exc, OSError) or address == found[-1][4]:
                    raise
            else:
                return trio.SocketStream(sock)
        raise OSError(f"{host} has no address")

    def _tell(self, number: int, line: Line, peer: str, event: str) -> None:
        at_s = trio.current_time() - self._begun_at
        flipped = line.up.flipped + line.down.flipped
        self._report(Report(at_s, number, event, line.up.handed_on, line.down.handed_on, flipped, peer))

    def _count(self, line: Line) -> None:
        totals = self.totals
        totals.resets += line.broken
        totals.closes += line.ended is How.CLOSED
        totals.black_holes += line.holes
        totals.up_bytes += line.up.handed_on
        totals.down_bytes += line.down.handed_on
        totals.flipped_bits += line.up.flipped + line.down.flipped


async def _take_in(source: trio.SocketStream, pipe: Pipe) -> None:
    """From a socket into the line, until the socket's end."""
    with contextlib.suppress(trio.ClosedResourceError):  # the line was closed: nothing more goes in
        while content := await source.receive_some(RECEIVE_BYTES):
            await pipe.send(content)
        pipe.close()


async def _hand_on(pipe: Pipe, dest: trio.SocketStream) -> None:
    """Out of the line into a socket, until the line's end."""
    while content := await pipe.receive(RECEIVE_BYTES):
        await dest.send_all(content)
    await dest.send_eof()


def _narrow(sock: trio.socket.SocketType, rate_bytes_s: float | None) -> None:
    """Let the kernel keep little of what waits, before the socket is connected: segments as on an Ethernet, few of them."""
    if rate_bytes_s is None:
        return
    with contextlib.suppress(OSError):  # a system without these options keeps more
        kept = min(max(KERNEL_BUFFER_LEAST, int(rate_bytes_s * KERNEL_BUFFER_S)), KERNEL_BUFFER_MOST)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kept)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PACKET_LENGTH_MIN)


async def _reset(stream: trio.SocketStream) -> None:
    """Close so that the peer hears of a reset."""
    with contextlib.suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    await trio.aclose_forcefully(stream)


def _peer_of(stream: trio.SocketStream) -> str:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return "somebody who left"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

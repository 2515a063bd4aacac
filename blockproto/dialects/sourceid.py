"""The server's side of the dialect ``sourceid``: one line each way, then raw bytes to the end.

After the answer nothing is sent: the client never reads again, and unread bytes at its close would reset the connection and
lose its last bytes. So a later error is only logged, and the client hears of it when it comes back and asks where to go on.

Spec: BP1-SID.
"""

from __future__ import annotations

import logging
import mimetypes
import secrets

import trio

from ..common.names import show_name
from ..connection.connection import GREETING_S
from ..errors import (
    Code,
    ConnectionLost,
    FrameTooLarge,
    RemoteProtocolError,
    StoreError,
    StoreFailed,
    TransferError,
)
from ..store import Facts
from .dialect import DialectPeer, Recognition
from .sequential_receiver import SequentialReceiver
from .sourceid_line import (
    LINE_LENGTH_MAX,
    POSITION_MAX,
    Request,
    end_of_line,
    error_line,
    parse,
    recognise,
    reply,
)
from .upload_keys import derived_sourceid

_RECEIVE_LENGTH = 256 * 1024


class Sourceid:
    """The dialect ``sourceid``."""

    name = "sourceid"

    def recognise(self, first: bytes) -> Recognition:
        """See Dialect."""
        return recognise(first)

    async def serve(self, dialect_connection: DialectPeer) -> None:
        """See Dialect."""
        receiver = SequentialReceiver(dialect_connection.close)
        try:
            request, begin, rest = await _answer(dialect_connection, receiver)
            receiver.seek(begin)
            await _receive(dialect_connection, request, receiver, rest, request.filesize - begin)
        finally:
            receiver.leave()


def new_sourceid() -> str:
    """A random id that every client can store: a positive number of 63 bits (BP1-SID-012)."""
    return str(1 + secrets.randbelow((1 << 63) - 1))


async def _answer(
    dialect_connection: DialectPeer, receiver: SequentialReceiver
) -> tuple[Request, int, bytes]:
    """Read the line and answer it; returns the request, the position to go on at, and the bytes that came with the line."""
    try:
        line, rest = await _read_line(dialect_connection)
        request = parse(line)
        writer = dialect_connection.writer
        sourceid = request.sourceid or new_sourceid()
        derived = _derived(dialect_connection.endpoint.host, request, sourceid)
        position = await receiver.open(writer, derived, _facts(request))
    except StoreFailed:
        raise
    except (RemoteProtocolError, TransferError, StoreError) as exc:
        await dialect_connection.say_last(error_line(exc))
        raise
    name = show_name(request.filename.text)
    text = f"{name} is taken from byte {position} on"
    dialect_connection.tell(logging.INFO, "upload answered", text, name=name, position=position)
    await dialect_connection.send([reply(sourceid, position, durable=request.durable)])
    return request, position if request.durable else min(position, POSITION_MAX), rest


async def _read_line(dialect_connection: DialectPeer) -> tuple[bytes, bytes]:
    """The client's line without its end, and the bytes that came after it."""
    received = bytearray()
    view = memoryview(bytearray(LINE_LENGTH_MAX))
    with trio.move_on_at(dialect_connection.begun_at + GREETING_S):
        while (end := end_of_line(bytes(received[:LINE_LENGTH_MAX]))) is None:
            if len(received) >= LINE_LENGTH_MAX:
                raise FrameTooLarge(f"the line has more than {LINE_LENGTH_MAX} bytes")
            count = await dialect_connection.receive_into(view)
            if not count:
                raise ConnectionLost(f"{dialect_connection.endpoint.peer} closed before its line ended")
            received += view[:count]
        return bytes(received[: end[0]]), bytes(received[end[1] :])
    raise RemoteProtocolError(f"the line did not end within {GREETING_S:.0f} s", code=Code.TIMEOUT)


def _derived(host: str, request: Request, sourceid: str) -> bytes:
    """The sourceid of an upload; another name or size gives another one (BP1-SID-011)."""
    name, filesize = request.filename.text.encode(), request.filesize.to_bytes(8, "big")
    return derived_sourceid(Sourceid.name, host, sourceid.encode(), name, filesize)


def _facts(request: Request) -> Facts:
    filetype = mimetypes.guess_type(request.filename.text)[0] or "application/octet-stream"
    return Facts(request.filename, filetype, request.filesize)


async def _receive(
    dialect_connection: DialectPeer,
    request: Request,
    receiver: SequentialReceiver,
    rest: bytes,
    left: int,
) -> None:
    """Take ``left`` bytes of the file, beginning with ``rest``; then commit, and drop what comes until the close."""
    peer, name = dialect_connection.endpoint.peer, show_name(request.filename.text)
    await receiver.take(memoryview(rest)[:left])
    beyond = max(0, len(rest) - left)
    left -= len(rest) - beyond
    buffer = memoryview(bytearray(min(left, _RECEIVE_LENGTH)))
    while left:
        count = await dialect_connection.receive_into(buffer[:left])
        if not count:
            raise ConnectionLost(f"{peer} closed with {left} bytes of {name} missing")
        await receiver.take(buffer[:count])
        left -= count
    if receiver.stored is None:
        await receiver.commit()
    beyond += await dialect_connection.drain()
    if beyond:
        text = f"more of {name} came than was declared: {beyond} bytes were dropped"
        dialect_connection.tell(logging.WARNING, "bytes dropped", text, name=name, dropped=beyond)

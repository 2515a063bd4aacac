"""The server's side of the dialect ``sourceid``: one line each way, then raw bytes to the end.

After the answer nothing is said until the client has closed: it never reads again, and what it had not read when it closes
would reset the connection and lose its last bytes. So what goes wrong later is logged here, and the client hears of it when
it comes back and asks where to go on.

Spec: BP1-SID.
"""

from __future__ import annotations

import logging
import mimetypes
import secrets

import trio

from ..errors import (
    Code,
    ConnectionLost,
    FrameTooLarge,
    RemoteProtocolError,
    StoreError,
    StoreFailed,
    TransferError,
)
from ..link.connection import GREETING_S
from ..names import show_name
from ..store import Facts, UploadKey
from . import Recognition
from .intake import Intake
from .keys import derived_key
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
from .visit import Visit

_RECEIVE_LENGTH = 256 * 1024


class Sourceid:
    """The dialect ``sourceid``."""

    name = "sourceid"

    def recognise(self, first: bytes) -> Recognition:
        """See Dialect."""
        return recognise(first)

    async def serve(self, visit: Visit) -> None:
        """See Dialect."""
        intake = Intake(visit.uploads, visit.close, visit.reader)
        try:
            request, begin, rest = await _answer(visit, intake)
            intake.seek(begin)
            await _receive(visit, request, intake, rest, request.filesize - begin)
        finally:
            intake.leave()


def new_sourceid() -> str:
    """A random id that every client can keep: a positive number of 63 bits (BP1-SID-012)."""
    return str(1 + secrets.randbelow((1 << 63) - 1))


async def _answer(visit: Visit, intake: Intake) -> tuple[Request, int, bytes]:
    """Read the line and answer it: what is asked for, where its bytes begin, and those that came with the line."""
    try:
        line, rest = await _read_line(visit)
        request = parse(line)
        if visit.refusal is not None:
            raise visit.refusal
        sourceid = request.sourceid or new_sourceid()
        position = await intake.open(_key(visit, request, sourceid), _facts(request))
    except StoreFailed:
        raise
    except (RemoteProtocolError, TransferError, StoreError) as exc:
        await visit.say_last(error_line(exc))
        raise
    name = show_name(request.filename.text)
    text = f"{name} is taken from byte {position} on"
    visit.tell(logging.INFO, "upload answered", text, name=name, position=position)
    await visit.send([reply(sourceid, position, durable=request.durable)])
    return request, position if request.durable else min(position, POSITION_MAX), rest


async def _read_line(visit: Visit) -> tuple[bytes, bytes]:
    """The client's line without its end, and what came behind it."""
    received = bytearray()
    view = memoryview(bytearray(LINE_LENGTH_MAX))
    with trio.move_on_at(visit.begun_at + GREETING_S):
        while (end := end_of_line(bytes(received[:LINE_LENGTH_MAX]))) is None:
            if len(received) >= LINE_LENGTH_MAX:
                raise FrameTooLarge(f"the line has more than {LINE_LENGTH_MAX} bytes")
            count = await visit.receive_into(view)
            if not count:
                raise ConnectionLost(f"{visit.endpoint.peer} closed before its line ended")
            received += view[:count]
        return bytes(received[: end[0]]), bytes(received[end[1] :])
    raise RemoteProtocolError(f"the line did not end within {GREETING_S:.0f} s", code=Code.TIMEOUT)


def _key(visit: Visit, request: Request, sourceid: str) -> UploadKey:
    """An upload is known by all of these, so that another name or size is another upload (BP1-SID-011)."""
    name, filesize = request.filename.text.encode(), request.filesize.to_bytes(8, "big")
    host = visit.endpoint.host
    return derived_key(visit.principal, Sourceid.name, host, sourceid.encode(), name, filesize)


def _facts(request: Request) -> Facts:
    filetype = mimetypes.guess_type(request.filename.text)[0] or "application/octet-stream"
    return Facts(request.filename, filetype, request.filesize)


async def _receive(visit: Visit, request: Request, intake: Intake, rest: bytes, left: int) -> None:
    """Take the ``left`` bytes of the file, those in ``rest`` first; then commit, and drop what comes until the close."""
    peer, name = visit.endpoint.peer, show_name(request.filename.text)
    await intake.take(memoryview(rest)[:left])
    beyond = max(0, len(rest) - left)
    left -= len(rest) - beyond
    buffer = memoryview(bytearray(min(left, _RECEIVE_LENGTH)))
    while left:
        count = await visit.receive_into(buffer[:left])
        if not count:
            raise ConnectionLost(f"{peer} closed with {left} bytes of {name} missing")
        await intake.take(buffer[:count])
        left -= count
    if intake.stored is None:
        await intake.commit()
    beyond += await visit.drain()
    if beyond:
        text = f"more of {name} came than was declared: {beyond} bytes were dropped"
        visit.tell(logging.WARNING, "bytes dropped", text, name=name, dropped=beyond)

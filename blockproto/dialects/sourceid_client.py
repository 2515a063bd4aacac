"""The client's side of the dialect ``sourceid``; it works with the oldest servers, too.

    ask → answer → stream from the position → half-close → wait for the server's close
      ↑                                                     │
      └── only if the server gives ``durable``: until that is the whole file ──┘

The id is derived from the file (BP1-SID-021), so nothing is stored. An old server cannot confirm that a file is safe, and
would begin a second one if it were asked again after the end; a file sent to it is reported as not confirmed.

Spec: BP1-SID-002, BP1-SID-018 to 022.
"""

from __future__ import annotations

import trio

from ..client_side.dial import Dial
from ..connection.endpoint import Endpoint
from ..errors import ConnectionLost
from .dialect_connection import SILENCE_S
from .sending import PIECE_LENGTH, Ending, Outgoing, Unanswered
from .sourceid_line import LINE_LENGTH_MAX, Answer, answer_ended, check_name, parse_answer, request_line

ANSWER_S = 60.0
"""How long a server may take to answer the line: it first makes durable what came before."""
OLD_CLOSE_S = 10.0
"""How long to wait for an old server to read everything before closing the connection."""


class SourceidSender:
    """The dialect ``sourceid`` as a client speaks it."""

    async def send(self, dial: Dial, file: Outgoing) -> Ending:
        """See DialectSender.

        Raises:
            NameRefused: this dialect cannot carry the name; nothing was sent.
        """
        check_name(file.filename)
        sourceid = file.decimal_sourceid()
        answer = await self._once(dial, file, sourceid)
        if answer.durable is not None and answer.durable < file.filesize:
            answer = await self._once(dial, file, sourceid)
        if answer.durable is not None and answer.durable < file.filesize:
            raise ConnectionLost(f"{file.server} took all bytes and has {answer.durable} of them: send again")
        return Ending(answer.sourceid, confirmed=answer.durable is not None)

    async def _once(self, dial: Dial, file: Outgoing, sourceid: str) -> Answer:
        """Send over one connection; returns the answer at its beginning."""
        endpoint = await dial()
        try:
            answer = await _ask(endpoint, file, sourceid)
            position = max(answer.position, answer.durable or 0)
            file.reached(position)
            if position < file.filesize:
                await _stream(endpoint, file, position)
                await _wait_for_close(endpoint, SILENCE_S if answer.durable is not None else OLD_CLOSE_S)
        finally:
            with trio.CancelScope(shield=True):
                await endpoint.aclose()
        return answer


async def _ask(endpoint: Endpoint, file: Outgoing, sourceid: str) -> Answer:
    """Send the line and read the answer, which is all that a server sends."""
    await endpoint.send([request_line(file.filename, file.filesize, sourceid)])
    deadline = trio.current_time() + ANSWER_S
    view = memoryview(bytearray(LINE_LENGTH_MAX))
    received = 0
    while not answer_ended(bytes(view[:received])) and received < LINE_LENGTH_MAX:
        count = await endpoint.receive_into(view[received:], lambda: deadline)
        if not count:
            why = "closed" if count == 0 else f"said nothing for {ANSWER_S:.0f} s"
            text = f"{endpoint.peer} {why} before it had answered: does it speak this dialect?"
            raise Unanswered(text, silent=count is None)
        received += count
    return parse_answer(bytes(view[:received]), file.filesize)


async def _stream(endpoint: Endpoint, file: Outgoing, position: int) -> None:
    """Send everything from ``position`` on, and half-close."""
    view = memoryview(bytearray(min(PIECE_LENGTH, file.filesize - position)))
    while position < file.filesize:
        count = await file.read_into(position, view)
        with trio.move_on_after(SILENCE_S) as scope:
            await endpoint.send([view[:count]])
        if scope.cancelled_caught:
            raise ConnectionLost(f"{endpoint.peer} took nothing for {SILENCE_S:.0f} s")
        position += count
        file.sent(count, position)
    await endpoint.end_sending()


async def _wait_for_close(endpoint: Endpoint, patience_s: float) -> None:
    """Wait until the server closes, which it does when it has read everything."""
    view = memoryview(bytearray(LINE_LENGTH_MAX))
    deadline = trio.current_time() + patience_s
    while await endpoint.receive_into(view, lambda: deadline):
        pass

"""Input and output of one connection of the dialect ``struct82``.

``Received`` can look ahead, because some headers can only be understood by what follows their block. ``Replies`` sends
replies in the order of the headers, whichever block is durable first, without holding up the reader.

Spec: BP1-S82.
"""

from __future__ import annotations

import trio

from ..errors import ConnectionLost
from .dialect import DialectPeer
from .struct82_wire import HEADER_LENGTH_MIN, Form, narrow

FOLLOWS_S = 60.0
"""How long to wait for what follows an ambiguous header (BP1-S82-018, BP1-S82-035)."""
UNREAD_LENGTH_MAX = 1 << 16
"""Bytes of unread replies after which no more are sent (BP1-S82-024)."""
LAST_REPLIES_S = 5.0
"""How long a reply may take to be sent when the sender has ended."""


class Received:
    """Reads a connection, and can look ahead."""

    def __init__(self, dialect_connection: DialectPeer) -> None:
        self._connection = dialect_connection
        self._ahead = bytearray()

    async def fill(self, view: memoryview) -> int:
        """Fill ``view``; returns how many bytes there were, fewer only at the end of stream. Raises ConnectionLost."""
        filled = min(len(self._ahead), len(view))
        view[:filled] = self._ahead[:filled]
        del self._ahead[:filled]
        while filled < len(view):
            received = await self._connection.receive_into(view[filled:])
            if not received:
                break
            filled += received
        return filled

    async def look(self, length: int) -> bytes:
        """The next ``length`` bytes, without taking them; fewer only at the end of stream. Raises ConnectionLost.

        Cancellation: no byte is lost.
        """
        view = memoryview(bytearray(length))
        while len(self._ahead) < length:
            received = await self._connection.receive_into(view[: length - len(self._ahead)])
            if not received:
                break
            self._ahead += view[:received]
        return bytes(self._ahead[:length])

    async def narrow(self, forms: tuple[Form, ...]) -> tuple[Form, ...]:
        """Those of ``forms`` that the next header may have; empty if there is no header.

        Raises:
            ConnectionLost: the connection broke before that could be known.
        """
        wanted, over = HEADER_LENGTH_MIN, False
        while True:
            found: tuple[Form, ...] | int
            with trio.move_on_after(FOLLOWS_S) as waiting:
                over = over or len(await self.look(wanted)) < wanted
            over = over or waiting.cancelled_caught
            found = narrow(forms, bytes(self._ahead), over=over)
            if isinstance(found, tuple):
                return found
            wanted = found


class Replies:
    """Sends the replies of one connection, in the order of its headers, once it has asked for them.

    A sender that does not read holds nothing up: the unread replies are bounded, and then no more are sent.
    """

    def __init__(self, dialect_connection: DialectPeer) -> None:
        self.asked = False
        self._hushed = False
        self._sending = trio.CancelScope()
        self._connection = dialect_connection
        self._known: dict[int, bytes] = {}
        self._expected = 0
        self._sent = 0
        self._unread_length = 0
        self._ending = False
        self._changed = trio.Event()

    def ask(self) -> None:
        """Answer every header from now on, unless too much was left unread before."""
        self.asked = not self._hushed

    def expect(self) -> int:
        """Count one more header; returns its turn."""
        self._expected += self.asked
        return self._expected

    def know(self, turn: int, raw: bytes) -> None:
        """Set the reply of a turn; a header that came before ``ask`` has a turn that is over."""
        if not self.asked or turn <= self._sent:
            return
        self._known[turn] = raw
        self._unread_length += len(raw)
        if self._unread_length > UNREAD_LENGTH_MAX:
            self.hush()
        self._wake()

    def hush(self) -> None:
        """Send no more replies."""
        self._hushed = True
        self.asked = False
        self._known.clear()
        self._sent = self._expected
        self._wake()

    def end(self) -> None:
        """No more headers come: let ``run`` return when all replies are sent, or one takes ``LAST_REPLIES_S``."""
        self._ending = True
        self._sending.deadline = trio.current_time() + LAST_REPLIES_S
        self._wake()

    async def run(self) -> None:
        """Send replies until ``end`` and the last one. Cancellation: the rest is not sent."""
        while not (self._ending and self._sent == self._expected):
            raw = self._known.pop(self._sent + 1, None)
            if raw is None:
                await self._changed.wait()
                continue
            self._sent += 1
            self._unread_length -= len(raw)
            self._sending = trio.CancelScope()
            if self._ending:
                self._sending.deadline = trio.current_time() + LAST_REPLIES_S
            try:
                with self._sending:
                    await self._connection.send([raw])
            except ConnectionLost:  # what the peer has sent before is still read
                self.hush()
            if self._sending.cancelled_caught:
                self.hush()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

"""What comes and what goes on one connection of the dialect ``struct82``.

``Received`` can look at bytes before their time, because some headers are understood by what follows their block only.
``Replies`` keeps what is said in the order of the headers, whatever becomes durable first, and holds nobody up.

Spec: BP1-S82.
"""

from __future__ import annotations

import trio

from ..errors import ConnectionLost
from .dialect import DialectPeer
from .struct82_wire import HEADER_LENGTH_MIN, Form, narrow

FOLLOWS_S = 60.0
"""So long it is waited for what follows a header that can be read in several ways (BP1-S82-018, BP1-S82-035)."""
UNREAD_LENGTH_MAX = 1 << 16
"""Bytes of replies that may wait for their reader; with more, no more are sent (BP1-S82-024)."""
LAST_REPLIES_S = 5.0
"""So long a reply to a sender that has ended may take to be sent."""


class Received:
    """The bytes of a connection, with those that were looked at before their time."""

    def __init__(self, dialect_connection: DialectPeer) -> None:
        self._connection = dialect_connection
        self._ahead = bytearray()

    async def fill(self, view: memoryview) -> int:
        """Fill ``view``; returns how many bytes there were, fewer only at the end. Raises ConnectionLost."""
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
        """The next ``length`` bytes, which stay to be read; fewer only at the end. Raises ConnectionLost.

        Cancellation: nothing is lost.
        """
        view = memoryview(bytearray(length))
        while len(self._ahead) < length:
            received = await self._connection.receive_into(view[: length - len(self._ahead)])
            if not received:
                break
            self._ahead += view[:received]
        return bytes(self._ahead[:length])

    async def narrow(self, forms: tuple[Form, ...]) -> tuple[Form, ...]:
        """Which of ``forms`` the next header is in; none if it is none, or if there is none.

        Raises:
            ConnectionLost: it broke before that could be known.
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
    """What is said on a connection, in the order of its headers; silent until ``asked``.

    A sender that reads nothing holds nobody up: what waits for it is bounded, and then nothing more is said.
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
        """From now on every header is answered, unless too much was left unread before."""
        self.asked = not self._hushed

    def expect(self) -> int:
        """One more header has come; returns its turn."""
        self._expected += self.asked
        return self._expected

    def know(self, turn: int, raw: bytes) -> None:
        """What is said to the header of that turn; headers of a time when nobody had asked share one that is over."""
        if not self.asked or turn <= self._sent:
            return
        self._known[turn] = raw
        self._unread_length += len(raw)
        if self._unread_length > UNREAD_LENGTH_MAX:
            self.hush()
        self._wake()

    def hush(self) -> None:
        """Say nothing any more."""
        self._hushed = True
        self.asked = False
        self._known.clear()
        self._sent = self._expected
        self._wake()

    def end(self) -> None:
        """No more headers come: ``run`` returns when all is said, or when nobody takes it for ``LAST_REPLIES_S``."""
        self._ending = True
        self._sending.deadline = trio.current_time() + LAST_REPLIES_S
        self._wake()

    async def run(self) -> None:
        """Send what is known, until ``end`` and the last of it; returns also when the peer has gone."""
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
            except ConnectionLost:  # what the peer had sent before it left is still to be read
                self.hush()
            if self._sending.cancelled_caught:
                self.hush()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

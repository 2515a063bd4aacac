"""The acceptor: accept connections, and keep them waiting until enough has come to answer them.

    listener → accepted, with a handshake slot → pending: a socket, a slot, a deadline
                                               → ready: enough has come to tell the protocol → the server

A connection with a task, a session and buffers costs many times a pending one, and an attacker could have thousands of them
for one byte each. So the first bytes are only looked at (MSG_PEEK), and the kernel reports the socket again only when enough
of them may be there (SO_RCVLOWAT): a peer that sends a byte a second costs nothing.

Rules:
    1. The work of one pass of the scheduler is bounded, so that a crowd takes little time from established connections.
    2. A connection that is still pending after ``GREETING_S`` is closed without a word (BP1-HEL-014).
    3. While many are ready, none is accepted: when many honest clients come back at once they wait in the kernel's queue,
       where they take no slots from each other.
    4. Without a descriptor or memory for one more, the oldest pending connection of the address that has most of them is
       closed, and none is accepted for ``PAUSE_S``.

Spec: BP1-HEL-014, BP1-LIM-004, BP1-LIM-006.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence

import trio

from ..connection.liveness import GREETING_S
from ..dialects import Dialect
from .detect_rules import ENOUGH_MOST, enough
from .handshake_slots import HandshakeSlots, Slot

ACCEPTED_PER_PASS = 64
LOOKS_PER_PASS = 256
LET_IN_PER_PASS = 8
CLOSED_PER_PASS = 256
PAUSE_S = 0.1
"""How long to accept no connection after there was no descriptor or memory for one more."""
TELL_EVERY_S = 60.0
"""How often to log that."""
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC}
_GONE_BEFORE = {
    errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
}  # fmt: skip
"""Errors of accept(2) that concern one connection: the next one may be fine."""
_LOWAT = getattr(socket, "SO_RCVLOWAT", None)

log = logging.getLogger(__name__)


class PendingSocket:
    """A connection whose protocol is not known yet.

    Attributes:
        sock: its socket.
        until: the Trio time by which its protocol has to be known.
        place: its handshake slot.
        ready: whether enough has come.
    """

    __slots__ = ("_acceptor", "_needed", "place", "ready", "sock", "until")

    def __init__(self, acceptor: Acceptor, sock: socket.socket, until: float) -> None:
        self._acceptor = acceptor
        self._needed = 1
        self.sock = sock
        self.until = until
        self.place: Slot | None = None
        self.ready = False

    def has_said_enough(self, first: memoryview, dialects: Sequence[Dialect]) -> bool:
        """Whether it can be answered, or nothing more will come; else let the kernel report it when that may be so.

        Args:
            first: memory for the first bytes.
            dialects: the enabled ones.

        Raises:
            OSError: the connection broke.
        """
        try:
            came = self.sock.recv_into(first, len(first), socket.MSG_PEEK)
        except BlockingIOError:
            return False
        if came < self._needed:  # the peer has closed, or the kernel is short of memory
            return True
        needed = enough(bytes(first[:came]), dialects)
        if needed <= came or _LOWAT is None:
            return True
        self._needed = needed
        self.sock.setsockopt(socket.SOL_SOCKET, _LOWAT, needed)
        return False

    def hear_everything(self) -> None:
        """Let the kernel report every byte again. Raises OSError: the connection broke."""
        if self._needed > 1 and _LOWAT is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, _LOWAT, 1)

    def go(self) -> None:
        """Close it: another connection gets its slot."""
        self._acceptor.close(self)


class Acceptor:
    """Accepts the connections of one listening socket.

    Args:
        listener: the socket; stays the caller's.
        slots: the handshake slots of the server.
        dialects: the enabled ones.
        let_in: takes a connection that is ready; it owns the socket and the slot from then on.
    """

    def __init__(
        self,
        listener: socket.socket,
        slots: HandshakeSlots,
        dialects: Sequence[Dialect],
        let_in: Callable[[PendingSocket], object],
    ) -> None:
        self._listener = listener
        self._slots = slots
        self._dialects = dialects
        self._let_in = let_in
        self._poll = select.epoll()
        self._first = memoryview(bytearray(ENOUGH_MOST))
        self._here: dict[int, PendingSocket] = {}  # by descriptor, oldest first
        self._ready: deque[PendingSocket] = deque()  # some may be closed already
        self._accepts = max(1, min(ACCEPTED_PER_PASS, slots.each // 4))
        self._lets_in = max(1, min(LET_IN_PER_PASS, slots.each // 16))
        self._paused_until = math.inf
        self._told_at = -math.inf

    async def run(self) -> None:
        """Accept until cancelled; then all pending connections are closed.

        Raises:
            OSError: the listener broke.
        """
        self._listener.setblocking(False)
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        try:
            while True:
                if self._ready:
                    await trio.lowlevel.checkpoint()
                else:
                    with trio.move_on_at(min(self._oldest_until(), self._paused_until)):
                        await trio.lowlevel.wait_readable(self._poll.fileno())
                now = trio.current_time()
                self._look(now)
                self._close_late(now)
                self._let_some_in(now)
        finally:
            for pending in tuple(self._here.values()):
                self.close(pending)
            self._poll.close()

    def _oldest_until(self) -> float:
        oldest = next(iter(self._here.values()), None)
        return math.inf if oldest is None else oldest.until

    # ---- coming ---------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Accept new connections, and look at those that have received something."""
        if now >= self._paused_until:
            self._paused_until = math.inf
            self._poll.modify(self._listener.fileno(), select.EPOLLIN)
        for fd, _ in self._poll.poll(0, LOOKS_PER_PASS):
            pending = self._here.get(fd)
            if fd == self._listener.fileno():
                if len(self._ready) < self._accepts:
                    self._accept_some(now)
            elif pending is not None and not self._look_at(pending) and pending.ready:
                self._poll.unregister(fd)

    def _look_at(self, pending: PendingSocket) -> bool:
        """Whether it is still pending; otherwise it is ready or closed."""
        try:
            pending.ready = pending.has_said_enough(self._first, self._dialects)
        except OSError:
            self.close(pending)
            return False
        if pending.ready:
            self._ready.append(pending)
        return not pending.ready

    def _accept_some(self, now: float) -> None:
        for _ in range(self._accepts):
            try:
                sock, address = self._listener.accept()
                self._take_in(sock, address, now)
            except BlockingIOError:
                return
            except MemoryError:
                self._pause(now, "no memory is left")
                return
            except OSError as exc:
                if exc.errno in _NO_ROOM:
                    self._pause(now, exc.strerror or "")
                    return
                if exc.errno not in _GONE_BEFORE:
                    raise

    def _take_in(self, sock: socket.socket, address: object, now: float) -> None:
        pending = PendingSocket(self, sock, now + GREETING_S)
        try:
            sock.setblocking(False)
            host = str(address[0]) if isinstance(address, tuple) else ""
            self._here[sock.fileno()] = pending
            pending.place = self._slots.take(host, pending.go)
            if self._look_at(pending):
                self._poll.register(sock.fileno(), select.EPOLLIN)
        except BaseException:
            self.close(pending)
            raise

    def _pause(self, now: float, why: str) -> None:
        """Accept none for a while, and close a pending connection to make room."""
        self._slots.make_room()
        self._paused_until = now + PAUSE_S
        self._poll.modify(self._listener.fileno(), 0)
        if now >= self._told_at + TELL_EVERY_S:
            self._told_at = now
            extra = {"event": "no room for connections"}
            log.warning("new connections wait until others end: %s", why, extra=extra)

    # ---- going ----------------------------------------------------------------------------------------------------

    def _let_some_in(self, now: float) -> None:
        for _ in range(min(self._lets_in, len(self._ready))):
            pending = self._ready.popleft()
            if self._here.pop(pending.sock.fileno(), None) is None:
                continue  # closed meanwhile
            try:
                pending.hear_everything()
                self._let_in(pending)
            except OSError:
                self.close(pending)
            except MemoryError:
                self.close(pending)
                self._pause(now, "no memory is left")

    def _close_late(self, now: float) -> None:
        for _ in range(CLOSED_PER_PASS):
            if self._oldest_until() > now:
                return
            self.close(next(iter(self._here.values())))

    def close(self, pending: PendingSocket) -> None:
        """Close a pending connection. Harmless when repeated."""
        self._here.pop(pending.sock.fileno(), None)
        if pending.place is not None:
            pending.place.leave()
        with contextlib.suppress(OSError):
            pending.sock.recv_into(self._first)  # unread bytes would make the kernel send a reset
        pending.sock.close()

"""The acceptor: accepts connections, and lets those wait who have not said enough to be answered.

    listener → accepted, with a slot among strangers → waiting: a socket, a slot, a time
                                                     → ready: enough came that somebody answers it → the server

A connection with a task, a session and buffers costs many times one that waits here, and an attacker has thousands of them
for the price of their first byte. So bytes are looked at here and left where they are (MSG_PEEK), and the kernel is asked
to say something again only when enough of them may be there (SO_RCVLOWAT): a byte a second costs nothing.

Rules:
    1. What is done in one pass of the scheduler is bounded, so that a crowd costs those who are in little of their time.
    2. Who is still here ``GREETING_S`` after it came is closed, without a word (BP1-HEL-014).
    3. While many are ready nobody is accepted: a crowd of good clients that comes back waits in the kernel's queue,
       where it takes no place from one another.
    4. Without a descriptor or memory for one more, a stranger makes room, and nobody is accepted for ``PAUSE_S``.

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
"""How long nobody is accepted after there was no descriptor or memory for one more."""
TELL_EVERY_S = 60.0
"""How often that is said."""
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC}
_GONE_BEFORE = {
    errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP,
}  # fmt: skip
"""What accept(2) may say of a connection instead of giving it: the next one can be fine."""
_LOWAT = getattr(socket, "SO_RCVLOWAT", None)

log = logging.getLogger(__name__)


class PendingSocket:
    """One connection that waits.

    Attributes:
        sock: its socket.
        until: the Trio time at which it must be known who speaks.
        place: its slot among strangers.
        ready: whether it has said enough.
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
        """Whether somebody can answer it, or it will never say more; else the kernel keeps quiet until that may be so.

        Args:
            first: memory to look into.
            dialects: those that are enabled.

        Raises:
            OSError: the connection broke.
        """
        try:
            came = self.sock.recv_into(first, len(first), socket.MSG_PEEK)
        except BlockingIOError:
            return False
        if came < self._needed:  # its end has come, or the kernel itself is short of memory
            return True
        needed = enough(bytes(first[:came]), dialects)
        if needed <= came or _LOWAT is None:
            return True
        self._needed = needed
        self.sock.setsockopt(socket.SOL_SOCKET, _LOWAT, needed)
        return False

    def hear_everything(self) -> None:
        """From now on the kernel tells of every byte again. Raises OSError: the connection broke."""
        if self._needed > 1 and _LOWAT is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, _LOWAT, 1)

    def go(self) -> None:
        """Close it: another has its place."""
        self._acceptor.close(self)


class Acceptor:
    """Who comes to one listening socket.

    Args:
        listener: the socket; stays the caller's.
        slots: the slots.
        dialects: those that are enabled.
        let_in: takes a stranger that has said enough; its socket and place are whose who took it.
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
        self._here: dict[int, PendingSocket] = {}  # by descriptor, in the order in which they came
        self._ready: deque[PendingSocket] = deque()  # perhaps with some who are gone
        self._accepts = max(1, min(ACCEPTED_PER_PASS, slots.each // 4))
        self._lets_in = max(1, min(LET_IN_PER_PASS, slots.each // 16))
        self._paused_until = math.inf
        self._told_at = -math.inf

    async def run(self) -> None:
        """Accept until cancelled; then everybody who is still here is closed."""
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
        """Look at who came and who said something."""
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
        """Whether it waits on; else it is ready now, or gone."""
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
        """Accept nobody for a little, and let a stranger make room."""
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
        """End its connection. Harmless when repeated."""
        self._here.pop(pending.sock.fileno(), None)
        if pending.place is not None:
            pending.place.leave()
        with contextlib.suppress(OSError):
            pending.sock.recv_into(
                self._first
            )  # the kernel makes a reset of an end before which bytes are unread
        pending.sock.close()

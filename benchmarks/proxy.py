"""A counting proxy: passes bytes on later, as a long line would, and counts how often the client waited for an answer.

Every byte is delayed by half a round trip in each direction. Who sends without waiting is not slowed by that; who waits for
an answer is silent for a whole round trip. So:

    wait    the client was silent for (almost) a round trip, an answer reached it, and then it sent again
    turn    bytes to the client, then bytes from it: every wait is one, but so is every answer that comes beside sending
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from .processes import HOST

CHUNK = 256 * 1024
QUEUED_MAX = 4096
_END = b""
_ALMOST = 0.9


class Delivery(NamedTuple):
    """Bytes under way, and when they are due (monotonic seconds)."""

    due_s: float
    content: bytes


@dataclass(slots=True)
class Counter:
    """What is counted of one connection; fed with what happens at the client's end.

    Args:
        round_trip_s: the delay that was added, both directions together.
    """

    round_trip_s: float
    waits: int = 0
    turns: int = 0
    _sent_at: float | None = None
    _answered: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, at: float) -> None:
        """The client sent bytes."""
        with self._lock:
            if self._answered:
                self.turns += 1
                silence_s = at - self._sent_at if self._sent_at is not None else 0.0
                self.waits += silence_s >= _ALMOST * self.round_trip_s
            self._answered = False
            self._sent_at = at

    def answered(self) -> None:
        """Bytes were handed to the client."""
        with self._lock:
            self._answered = True


class CountingProxy:
    """A TCP proxy before a port of this machine, until ``close``.

    Args:
        target: the port it passes everything to.
        round_trip_s: the delay it adds.
    """

    def __init__(self, target: int, round_trip_s: float) -> None:
        self._target = target
        self._round_trip_s = round_trip_s
        self._listener = socket.create_server((HOST, 0))
        self._sockets: list[socket.socket] = []
        self.counters: list[Counter] = []
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def waits(self) -> int:
        """Waits of all connections so far."""
        return sum(counter.waits for counter in self.counters)

    @property
    def turns(self) -> int:
        """Turns of all connections so far."""
        return sum(counter.turns for counter in self.counters)

    def close(self) -> None:
        """Stop listening and cut what is open."""
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self._target))
                self._sockets += [client, server]
                counter = Counter(self._round_trip_s)
                self.counters.append(counter)
                self._pass_on(client, server, counter)

    def _pass_on(self, client: socket.socket, server: socket.socket, counter: Counter) -> None:
        for source, dest, forth in ((client, server, True), (server, client, False)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            under_way: queue.Queue[Delivery] = queue.Queue(QUEUED_MAX)
            for work in (self._take, self._deliver):
                end = source if work == self._take else dest
                threading.Thread(target=work, args=(end, under_way, counter, forth), daemon=True).start()

    def _take(
        self, source: socket.socket, under_way: queue.Queue[Delivery], counter: Counter, forth: bool
    ) -> None:
        """Read what comes, until the end; it is due half a round trip later."""
        content = b"begin"
        while content != _END:
            try:
                content = source.recv(CHUNK)
            except OSError:
                content = _END
            now = time.monotonic()
            if forth and content:
                counter.sent(now)
            under_way.put(Delivery(now + self._round_trip_s / 2, content))

    def _deliver(
        self, dest: socket.socket, under_way: queue.Queue[Delivery], counter: Counter, forth: bool
    ) -> None:
        """Write what is due, until the end."""
        with contextlib.suppress(OSError):
            while True:
                due_s, content = under_way.get()
                time.sleep(max(0.0, due_s - time.monotonic()))
                if content == _END:
                    dest.shutdown(socket.SHUT_WR)
                    return
                dest.sendall(content)
                if not forth:
                    counter.answered()

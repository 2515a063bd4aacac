"""Thousands of clients in one loop that stay connected, each with an upload of its own.

    python -m benchmarks.crowd PORT CLIENTS

Prints ``up`` when each has an upload whose only block is durable, then waits for a line on stdin with the monotonic time at
which the server was killed. When everybody was told its position again it prints one JSON object: the seconds since then
that each took, how often it dialled, and how often it was connected (where nobody listens, it is refused by the kernel).

A client of this crowd is a socket and a few numbers, so that the crowd does not slow down what it measures. It comes back as
BP1-END-017 says, with the same bounds as the library's, from addresses of its own: ``--addresses 1`` puts all behind one.
"""

from __future__ import annotations

import argparse
import errno
import heapq
import itertools
import json
import os
import random
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

from blockproto.client_side.connections import bound_s
from blockproto.common.blocks import digest_of
from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Ack,
    Block,
    Error,
    Hello,
    Message,
    Open,
    Opened,
    decode_head,
    decode_header,
    encode_frame,
)

from .processes import HOST, CommandFailed

CONTENT = b"twenty bytes of file"
AT_ONCE = 50
ANSWER_S = 10.0
"""How long a client waits to be connected and answered before it dials again."""
GIVE_UP_S = 90.0
_GREETING = PREFACE + encode_frame(0, Hello(agent="crowd"))
_DIGEST = digest_of(CONTENT)


@dataclass(slots=True, eq=False)
class Member:
    """One client.

    Attributes:
        number: which of the crowd.
        attempt: of its upload; each connection is a new one.
        dials, connects: how often it dialled, and how often somebody was there.
        failures: dials since it was answered last.
        position: what it was told last on this connection; None: nothing yet.
        back_at: the monotonic time when it was told its position after the word; None: not yet.
    """

    number: int
    sourceid: bytes = field(default_factory=lambda: os.urandom(16))
    attempt: int = 0
    dials: int = 0
    connects: int = 0
    failures: int = 0
    position: int | None = None
    back_at: float | None = None
    sock: socket.socket | None = None
    heard: bytes = b""

    @property
    def name(self) -> str:
        return f"crowd {os.getpid()} {self.number}.bin"

    def words(self) -> bytes:
        """All that it says on a connection: who it is, its upload, and the first time the block too."""
        self.attempt += 1
        length = len(CONTENT)
        words = _GREETING + encode_frame(
            1, Open(self.sourceid, self.attempt, length, 1, self.name, "text/plain")
        )
        if self.attempt == 1:
            block = Block(self.sourceid, length, 1, 0, 0, self.name, "text/plain", digest=_DIGEST)
            words += encode_frame(1, block, length) + CONTENT
        return words

    def hear(self, heard: bytes) -> None:
        """Take note of what the server said.

        Raises:
            CommandFailed: it is no blockproto, or an ERROR.
        """
        self.heard += heard
        while (message := self._next_message()) is not None:
            if isinstance(message, Error):
                raise CommandFailed(f"the server refused: {message.text}")
            if isinstance(message, Opened | Ack):
                self.position = message.position

    def _next_message(self) -> Message | None:
        start = len(PREFACE) if self.heard.startswith(PREFACE) else 0
        if len(self.heard) < start + HEADER_LENGTH:
            return None
        header = decode_header(self.heard, start)
        end = start + HEADER_LENGTH + header.length
        if len(self.heard) < end:
            return None
        message = decode_head(header, memoryview(self.heard)[start + HEADER_LENGTH : end])
        self.heard = self.heard[end:]
        return message


class Crowd:
    """All of them.

    Args:
        port: of the server.
        number: how many.
        addresses: from how many addresses of this machine they come.
    """

    def __init__(self, port: int, number: int, addresses: int) -> None:
        self._port = port
        self._addresses = addresses
        self._members = [Member(index) for index in range(number)]
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Member, int]] = []  # when, a tie-breaker, who, at which dial
        self._ties = itertools.count()
        self._killed_at: float | None = None
        self._missing: set[Member] = set()

    def run(self) -> None:
        """Connect, wait for the word, see everybody come back."""
        for at in range(0, len(self._members), AT_ONCE):
            self._missing.update(self._members[at : at + AT_ONCE])
            for member in tuple(self._missing):
                self._dial(member)
            self._turn_until_all_are_there(time.monotonic() + GIVE_UP_S)
        before = [(member.dials, member.connects) for member in self._members]
        print("up", flush=True)
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while self._killed_at is None:
            self._turn()
        self._missing.update(self._members)
        self._turn_until_all_are_there(self._killed_at + GIVE_UP_S)
        told = {
            "back_s": [one.back_at and one.back_at - self._killed_at for one in self._members],
            "dials": [one.dials - was for one, (was, _) in zip(self._members, before, strict=True)],
            "connects": [one.connects - was for one, (_, was) in zip(self._members, before, strict=True)],
        }
        print(json.dumps(told), flush=True)

    def _turn_until_all_are_there(self, deadline: float) -> None:
        while self._missing and time.monotonic() < deadline:
            self._turn()

    def _turn(self) -> None:
        for key, events in self._selector.select(0.02):
            if key.data is None:
                self._killed_at = float(sys.stdin.readline())
                self._selector.unregister(sys.stdin)
                continue
            member: Member = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    self._speak(member)
                else:
                    self._listen(member)
            except (OSError, CommandFailed):
                self._lose(member)
        while self._timers and self._timers[0][0] <= time.monotonic():
            _, _, member, dial = heapq.heappop(self._timers)
            if member.dials == dial and member.sock is None:
                self._dial(member)
            elif member.dials == dial and member.position is None:
                self._lose(member)

    def _in(self, wait_s: float, member: Member) -> None:
        """Look at ``member`` after a while, unless it has dialled again by then."""
        heapq.heappush(self._timers, (time.monotonic() + wait_s, next(self._ties), member, member.dials))

    # ---- one of them ----------------------------------------------------------------------------------------------

    def _dial(self, member: Member) -> None:
        member.dials += 1
        member.failures += 1
        member.sock = socket.socket()
        member.sock.setblocking(False)
        number = member.number % self._addresses
        member.sock.bind((f"127.0.{1 + number // 250}.{1 + number % 250}", 0))
        if member.sock.connect_ex((HOST, self._port)) not in (0, errno.EINPROGRESS):
            self._lose(member)
            return
        self._selector.register(member.sock, selectors.EVENT_WRITE, member)
        self._in(ANSWER_S, member)

    def _speak(self, member: Member) -> None:
        assert member.sock is not None
        member.sock.send(member.words())
        member.connects += 1
        self._selector.modify(member.sock, selectors.EVENT_READ, member)

    def _listen(self, member: Member) -> None:
        assert member.sock is not None
        heard = member.sock.recv(4096)
        if not heard:
            raise CommandFailed("the server closed the connection")
        member.hear(heard)
        if member.position == len(CONTENT) and member.failures:
            member.failures = 0
            self._missing.discard(member)
            if member.attempt > 1:
                member.back_at = time.monotonic()

    def _lose(self, member: Member) -> None:
        assert member.sock is not None
        if member.sock in self._selector.get_map():
            self._selector.unregister(member.sock)
        member.sock.close()
        member.sock, member.heard, member.position = None, b"", None
        self._in(random.uniform(0, bound_s(member.failures)), member)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("port", type=int)
    options.add_argument("number", type=int)
    options.add_argument("--addresses", type=int, default=2_500)
    given = options.parse_args()
    Crowd(given.port, given.number, given.addresses).run()

"""A server that lies: real sockets, real frames, and whatever answer a test wants to try on a client.

    with HostileServer(lambda asked: [frame(asked.stream, Result(…))]) as server:
        main(["ls", server.address])

It greets as a server does, and gives every message of the client that is not PING, CREDIT or HELLO to ``answer``, which
returns what is sent: bytes (``frame`` makes them of messages, ``forged`` puts into them what no honest side can write),
``Drip`` for one byte after another, ``CLOSE``. PING is answered unless ``dead``. Each connection has a thread; leaving the
``with`` block ends them all.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from zlib import crc32

from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Credit,
    Hello,
    Message,
    Ping,
    decode_head,
    decode_header,
    encode_frame,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A message of the client's.

    Attributes:
        stream: where it came.
        message: the message.
        payload: what came with it.
        number: how many the server has heard before it, on all connections.
    """

    stream: int
    message: Message
    payload: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Drip:
    """Bytes that go out one by one, ``every_s`` apart, until they or the test end."""

    raw: bytes
    every_s: float = 1.0


CLOSE = object()
"""The connection ends here."""

Answer = Callable[[Asked], Iterable[object]]


def frame(stream: int, message: Message, payload: bytes = b"") -> bytes:
    """A frame as an honest side would write it."""
    return encode_frame(stream, message, len(payload)) + payload


def forged(raw: bytes, at: int, value: bytes) -> bytes:
    """A frame with other bytes at ``at`` of its head, and a check that fits them."""
    header = decode_header(raw)
    end = HEADER_LENGTH + header.head_length
    head = bytearray(raw[HEADER_LENGTH:end])
    head[at : at + len(value)] = value
    begin = raw[: HEADER_LENGTH - 4]
    return begin + struct.pack(">I", crc32(begin + bytes(head))) + bytes(head) + raw[end:]


@dataclass
class HostileServer:
    """See the module.

    Attributes:
        answer: what is said to a message.
        hello: what is said first: a message, bytes, or a ``Drip``; None: nothing.
        dead: leave PING unanswered.
        heard: everything that was asked.
    """

    answer: Answer = lambda asked: ()
    hello: object = field(default_factory=lambda: PREFACE + encode_frame(0, Hello(agent="hostile")))
    dead: bool = False
    heard: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def address(self) -> str:
        """``bp://HOST:PORT``."""
        return f"bp://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.hello is not None and not self._say(sock, self.hello):
                return
            _exactly(sock, len(PREFACE))
            while True:
                stream, message, payload = self._hear(sock)
                if isinstance(message, Ping):
                    if not self.dead and not message.answer:
                        self._say(sock, frame(0, Ping(opaque=message.opaque, next_s=0, answer=True)))
                elif message is not None and not isinstance(message, Credit | Hello):
                    asked = Asked(stream, message, payload, len(self.heard))
                    self.heard.append(asked)
                    if not all(self._say(sock, said) for said in self.answer(asked)):
                        return

    def _hear(self, sock: socket.socket) -> tuple[int, Message | None, bytes]:
        raw = _exactly(sock, HEADER_LENGTH)
        header = decode_header(raw)
        head = _exactly(sock, header.head_length)
        payload = _exactly(sock, header.payload_length)
        return header.stream, decode_head(header, head), payload

    def _say(self, sock: socket.socket, said: object) -> bool:
        """Send it; whether the connection goes on."""
        if said is CLOSE:
            return False
        if isinstance(said, Drip):
            for at in range(len(said.raw)):
                if self._over.wait(said.every_s):
                    return False
                sock.sendall(said.raw[at : at + 1])
            return True
        assert isinstance(said, bytes)
        sock.sendall(said)
        return True


def _exactly(sock: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        more = sock.recv(length - len(received))
        if not more:
            raise EOFError
        received += more
    return bytes(received)

"""A client of frames on a plain blocking socket, to time single messages: nothing between the clock and the line.

It sends what it is told and returns what comes; it keeps to the credit it is given and knows no other rule. An upload with
it is OPEN, blocks, COMMIT, each answer timed.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Self

from blockproto.common.blocks import BLOCK_LENGTH, blocknum_of, digest_of, root_of
from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Ack,
    Block,
    Commit,
    Committed,
    Credit,
    Error,
    Hello,
    Message,
    Open,
    Opened,
    check_frame,
    decode_head,
    decode_header,
    encode_frame,
)

from .processes import HOST, CommandFailed

TIMEOUT_S = 60.0
STREAM = 1
FILETYPE = "application/octet-stream"


class RawClient:
    """A greeted connection to a server on this machine.

    Args:
        port: of the server.
        features: of its HELLO.

    Raises:
        CommandFailed: what answers does not speak the protocol.
    """

    def __init__(self, port: int, features: int = 0) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")
        self._sent: dict[int, int] = {0: 0}
        self._allowed: dict[int, int] = {}
        self._socket.sendall(PREFACE + encode_frame(0, Hello(agent="benchmark", features=features)))
        if self._reader.read(len(PREFACE)) != PREFACE:
            raise CommandFailed("the server does not speak blockproto")
        hello = self.receive()
        assert isinstance(hello, Hello)
        self._allowed[0] = hello.connection_allowance
        self._stream_allowance = hello.stream_allowance

    def send(self, stream: int, message: Message, payload: bytes = b"") -> None:
        """Send one frame; waits for credit if it carries payload (what comes meanwhile is lost)."""
        if payload:
            self._wait_for_credit(stream, len(payload))
        self._socket.sendall(encode_frame(stream, message, len(payload)))
        if payload:
            self._socket.sendall(payload)

    def receive(self) -> Message:
        """The next message that is no CREDIT.

        Raises:
            CommandFailed: it is an ERROR, or the server is gone.
        """
        while True:
            message = self._next()
            if message is not None and not isinstance(message, Credit):
                return message

    def _next(self) -> Message | None:
        """One frame; CREDIT is taken note of, ERROR is raised."""
        raw = self._reader.read(HEADER_LENGTH)
        if len(raw) < HEADER_LENGTH:
            raise CommandFailed("the server closed the connection")
        header = decode_header(raw)
        head = self._reader.read(header.head_length)
        assert check_frame(raw, head, header.check)
        assert header.payload_length == 0, "nothing was fetched"
        message = decode_head(header, head)
        if isinstance(message, Credit):
            self._allowed[header.stream] = message.allowance
        if isinstance(message, Error):
            raise CommandFailed(f"the server refused: {message.text}")
        return message

    def _wait_for_credit(self, stream: int, length: int) -> None:
        self._sent.setdefault(stream, 0)
        self._allowed.setdefault(stream, self._stream_allowance)
        while any(self._sent[one] + length > self._allowed[one] for one in (0, stream)):
            self._next()
        for one in (0, stream):
            self._sent[one] += length

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawUpload:
    """One upload of a file whose blocks are all alike.

    Args:
        client: a fresh connection.
        sourceid: 16 bytes.
        filename: its name on the server.
        filesize: whole blocks, bytes.
        block: the content of each block.
    """

    def __init__(
        self, client: RawClient, sourceid: bytes, filename: str, filesize: int, block: bytes
    ) -> None:
        assert filesize % BLOCK_LENGTH == 0
        self._client = client
        self._sourceid = sourceid
        self._filename = filename
        self._filesize = filesize
        self._block = block
        self._digest = digest_of(block)

    @property
    def blocknum(self) -> int:
        """How many blocks."""
        return blocknum_of(self._filesize)

    def open(self) -> tuple[float, Opened]:
        """OPEN with a greater attempt than ever; returns the seconds until OPENED, and OPENED."""
        message = Open(
            sourceid=self._sourceid,
            attempt=time.time_ns() // 1000,
            filesize=self._filesize,
            blocknum=self.blocknum,
            filename=self._filename,
            filetype=FILETYPE,
        )
        elapsed_s, answer = self._ask(message)
        if not isinstance(answer, Opened):
            raise CommandFailed(f"OPEN was answered with {type(answer).__name__}")
        return elapsed_s, answer

    def send_blocks(self, blocknos: range) -> None:
        """Send these blocks and wait until everything is durable."""
        for blockno in blocknos:
            message = Block(
                sourceid=self._sourceid,
                filesize=self._filesize,
                blocknum=self.blocknum,
                blockno=blockno,
                position=blockno * BLOCK_LENGTH,
                filename=self._filename,
                filetype=FILETYPE,
                digest=self._digest,
            )
            self._client.send(STREAM, message, self._block)
        position = 0
        while position < self._filesize:
            answer = self._client.receive()
            position = answer.position if isinstance(answer, Ack) else position

    def commit(self) -> float:
        """COMMIT; returns the seconds until COMMITTED. Every block must be durable."""
        message = Commit(
            sourceid=self._sourceid,
            root=root_of([self._digest] * self.blocknum, self.blocknum),
            filesize=self._filesize,
            blocknum=self.blocknum,
        )
        elapsed_s, answer = self._ask(message)
        if not isinstance(answer, Committed):
            raise CommandFailed(f"COMMIT was answered with {type(answer).__name__}")
        return elapsed_s

    def _ask(self, message: Message) -> tuple[float, Message]:
        begun = time.perf_counter()
        self._client.send(STREAM, message)
        answer = self._client.receive()
        while isinstance(answer, Ack):
            answer = self._client.receive()
        return time.perf_counter() - begun, answer


def fresh_sourceid() -> bytes:
    """A sourceid nobody had before."""
    return os.urandom(16)

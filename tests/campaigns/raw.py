"""A client that says exactly what it is told to, over a real socket: for attempts, late pieces and bytes that are wrong."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from blockproto.common.blocks import BLOCK_LENGTH, blocknum_of, digest_of, root_of
from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Block,
    Commit,
    Error,
    Hello,
    Message,
    Open,
    Piece,
    decode_head,
    decode_header,
    encode_frame,
)

from .tools import Broken, require

M = TypeVar("M", bound=Message)
ANSWER_S = 30.0
"""How long a server may take for an answer before it counts as silent."""
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file that a raw client sends.

    Attributes:
        content: its bytes.
    """

    content: bytes
    filename: str = "raw.bin"
    sourceid: bytes = b"a raw sourceid.."
    filetype: str = "application/octet-stream"

    @property
    def blocknum(self) -> int:
        """How many blocks it has."""
        return blocknum_of(len(self.content))

    @property
    def root(self) -> bytes:
        """Its root."""
        return root_of((digest_of(self.bytes_of(no)) for no in range(self.blocknum)), self.blocknum)

    def bytes_of(self, blockno: int) -> bytes:
        """The bytes of one block."""
        return self.content[blockno * BLOCK_LENGTH : (blockno + 1) * BLOCK_LENGTH]

    def open(self, attempt: int) -> Open:
        """OPEN with this attempt."""
        return Open(self.sourceid, attempt, len(self.content), self.blocknum, self.filename, self.filetype)

    def block(self, blockno: int, *, ends: bool = True) -> Block:
        """BLOCK from the block's beginning; with its digest if it ``ends`` there."""
        return Block(
            sourceid=self.sourceid,
            filesize=len(self.content),
            blocknum=self.blocknum,
            blockno=blockno,
            position=blockno * BLOCK_LENGTH,
            filename=self.filename,
            filetype=self.filetype,
            digest=digest_of(self.bytes_of(blockno)) if ends else None,
        )

    def piece(self, blockno: int, first: int) -> Piece:
        """PIECE from byte ``first`` of a block to its end."""
        return Piece(blockno * BLOCK_LENGTH + first, digest=digest_of(self.bytes_of(blockno)))

    def commit(self) -> Commit:
        """COMMIT."""
        return Commit(self.sourceid, self.root, len(self.content), self.blocknum)


class Raw:
    """One connection; a context manager.

    Args:
        port: of the server on this machine.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((_HOST, port), timeout=ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(PREFACE)
        self.say(0, Hello(agent="campaign"))
        require(self._read(len(PREFACE)) == PREFACE, "the server does not begin with the preface")
        self.hear(Hello)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self, stream: int, message: Message, payload: bytes = b"") -> None:
        """Say a message and its payload."""
        self._socket.sendall(encode_frame(stream, message, len(payload)) + payload)

    def say_bytes(self, frames: bytes) -> None:
        """Say bytes, whatever they are."""
        self._socket.sendall(frames)

    def say_open(self, stream: int, message: Open, wanted: Sequence[type[M]]) -> tuple[M, float]:
        """Say OPEN; returns the answer, which is one of ``wanted``, and after how many seconds it was here."""
        begun = time.perf_counter()
        self.say(stream, message)
        answer = self.hear(*wanted)
        return answer, time.perf_counter() - begun

    def hear(self, *wanted: type[M]) -> M:
        """The next message that is one of ``wanted``; what comes before it is passed over.

        Raises:
            Broken: an ERROR came that is not wanted, or nothing in time, or the connection ended.
        """
        while True:
            header = decode_header(self._read(HEADER_LENGTH))
            message = decode_head(header, self._read(header.head_length))
            self._read(header.payload_length)
            if isinstance(message, wanted):
                return message
            require(not isinstance(message, Error), f"instead of {wanted}: {message}")

    def wait_end(self) -> None:
        """Read until the server closes the connection. Raises Broken when it does not within ``ANSWER_S``."""
        try:
            while self._socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        except OSError as error:
            raise Broken(f"the server does not close the connection: {error}") from error

    def _read(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            try:
                piece = self._socket.recv(length - len(content))
            except OSError as error:
                raise Broken(f"the server says nothing: {error}") from error
            require(piece, "the server closed the connection")
            content += piece
        return bytes(content)

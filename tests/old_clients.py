"""A client of the dialect sourceid as it was written long ago, from the dialect's text: plain sockets, and no second read.

It puts its line on the socket, reads one line, takes the fields by place, the position with a parser of 32 bits, streams
what is left and closes right after its last write. Nothing here knows blockproto.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

TIMEOUT_S = 60.0


@dataclass
class OldClient:
    """A program that sends one file again and again until it is there.

    Attributes:
        port: of the server on this machine.
        name, content: the file.
        sourceid: what it was given; it never takes another.
        end: how it ends its line.
        position: what it heard last.
    """

    port: int
    name: bytes
    content: bytes
    sourceid: str = ""
    end: bytes = b"\r\n"
    position: int = -1

    def send(self, up_to: int | None = None, *, declared: int | None = None) -> None:
        """One connection: everything from the position to ``up_to`` (None: to the end), then close."""
        with self.ask(declared) as connection:
            rest = memoryview(self.content)[self.position : up_to]
            connection.sendall(rest)

    def ask(self, declared: int | None = None) -> socket.socket:
        """Dial and say the line; read the answer's line, byte by byte as the original does."""
        connection = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)
        length = len(self.content) if declared is None else declared
        line = b"Content-Length=%d;filename=%s;sourceid=%s" % (length, self.name, self.sourceid.encode())
        connection.sendall(line + self.end)
        answer = bytearray()
        while not answer.endswith(b"\r\n"):
            byte = connection.recv(1)
            assert byte, bytes(answer)
            answer += byte
        first, second = answer[:-2].decode().split(";")[:2]
        self.sourceid = self.sourceid or first.partition("=")[2]
        (self.position,) = struct.unpack("<i", struct.pack("<i", int(second.partition("=")[2])))
        return connection


def rest_of(connection: socket.socket) -> bytes:
    """What the server still says until it closes."""
    said = b""
    while more := connection.recv(65_536):
        said += more
    return said

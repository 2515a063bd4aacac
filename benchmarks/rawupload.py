"""An upload message by message: OPEN, blocks, COMMIT, each answer timed."""

from __future__ import annotations

import os
import time

from blockproto.common.blocks import BLOCK_LENGTH, blocknum_of, digest_of, root_of
from blockproto.wire import Ack, Block, Commit, Committed, Message, Open, Opened

from .processes import CommandFailed
from .rawclient import RawClient

STREAM = 1
FILETYPE = "application/octet-stream"


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

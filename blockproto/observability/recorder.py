"""Recorder: logs what happens on a client's connections, second by second, as JSON lines for ``explain``.

It hooks into each connection, its session and its endpoint, and samples several times a second what the transfers wait for.
A client without one pays nothing for it.

    {"t": 3.0, "event": "second", "connection": 1, "waits": {"line": 0.9, "credit": 0.1}, "sent": 262144, …}

Events: begin, connected, transfer, second, lost, reconnecting, done, end; ``t`` is seconds since the beginning.

What a transfer can wait for (``waits``, in seconds):
    line             the line takes no more, or what is under way has not arrived or was not read yet
    credit           the other side grants no credit: it reads or writes more slowly than the line
    acknowledgement  bytes have arrived and are not durable yet on the other side
    disk             this machine: reading, hashing or writing the file
    peer             an answer, or bytes, of the other side
    connecting       a connection and its greeting

Rules:
    1. The log contains names and sizes of files, never their contents or credentials.
    2. Every line is written when its second is over, so that a killed program loses only the last one.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, TextIO

import trio

from ..common.blocks import BLOCK_LENGTH
from ..connection.connection import Connection
from ..errors import BlockprotoError
from ..protocol.session import Event, Payload, Received, Session
from ..wire import (
    Ack,
    Block,
    Cancel,
    Commit,
    Committed,
    Error,
    Fetch,
    Files,
    List,
    Message,
    Open,
    Opened,
    Piece,
    Remove,
    Result,
    Stored,
)
from .observer import ConnectionLabel, Hook

FORMAT = 1
LOOK_S = 0.05
"""Interval of the samples."""
WRITE_S = 1.0
"""Interval of the lines."""
_FRESH_S = 1.0
"""If bytes came within this time a download waits for the line; otherwise for the other side."""


@dataclass(slots=True)
class _Transfer:
    """The state of one stream.

    Attributes:
        up: whether it sends a file; None for a request.
        answered: whether the first message was answered.
        committing: whether it waits for the answer to COMMIT.
        blocks: for each unacknowledged block or FILES, the bytes sent and when it was begun.
    """

    up: bool | None
    answered: bool = False
    committing: bool = False
    blocks: dict[int, tuple[int, float]] = field(default_factory=dict)
    last: int = 0

    @property
    def unacknowledged(self) -> int:
        """Bytes sent that are not acknowledged."""
        return sum(length for length, _ in self.blocks.values())


class Recorded(Hook):
    """Counts what is sent and received on one connection of the client.

    Attributes:
        connection: set before anything is sent or received.
        number: of the connection, from 1.
        greeted: whether the server's HELLO has come.
        is_sending: whether a write is under way.
        is_receiving: whether the connection waits for bytes.
        heard_at: when bytes last came.
    """

    counts_bytes = True
    connection: Connection
    number: int

    def __init__(self) -> None:
        self.greeted = self.is_sending = self.is_receiving = False
        self.heard_at = trio.current_time()
        self.bytes_in = self.bytes_out = self.payload_in = self.acknowledged = 0
        self.transfers: dict[int, _Transfer] = {}
        self.begun: deque[tuple[int, Message]] = deque()
        self.errors: deque[tuple[int, Error]] = deque()
        self.frames_out: Counter[str] = Counter()
        self.frames_in: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.before: dict[str, int] = {}

    @property
    def session(self) -> Session:
        """The session of the connection."""
        return self.connection.session

    def said(
        self, connection_label: ConnectionLabel | None, stream: int, message: Message, payload_length: int
    ) -> None:
        """See Hook."""
        self.frames_out[type(message).__name__.upper()] += 1
        if stream:
            self._said(stream, message, payload_length)

    def heard(self, event: Event) -> None:
        """See Hook."""
        if isinstance(event, Received):
            self.frames_in[type(event.message).__name__.upper()] += 1
            if isinstance(event.message, Error):
                self.errors.append((event.stream, event.message))
            if event.stream:
                self._heard(event.stream, event.message)
        elif isinstance(event, Payload):
            self.payload_in += len(event.view)

    def receiving(self) -> None:
        """See Hook."""
        self.is_receiving = True

    def received(self, length: int) -> None:
        """See Hook."""
        self.is_receiving = False
        if length:
            self.bytes_in += length
            self.heard_at = trio.current_time()

    def sending(self) -> None:
        """See Hook."""
        self.is_sending = True

    def sent(self, length: int) -> None:
        """See Hook."""
        self.is_sending = False
        self.bytes_out += length

    def _said(self, stream: int, message: Message, payload_length: int) -> None:
        if stream not in self.transfers and isinstance(message, Open | Block | Fetch | Files | List | Remove):
            up = None if isinstance(message, List | Remove) else not isinstance(message, Fetch)
            self.transfers[stream] = _Transfer(up, answered=isinstance(message, Block | Files))
            self.begun.append((stream, message))
        transfer = self.transfers.get(stream)
        if transfer is None:
            return
        if isinstance(message, Block | Piece):
            if isinstance(message, Block):
                transfer.last = message.blockno
            length, since = transfer.blocks.get(transfer.last, (0, trio.current_time()))
            transfer.blocks[transfer.last] = length + payload_length, since
            transfer.committing = transfer.committing or message.commit
        elif isinstance(message, Files):
            transfer.blocks[message.number] = payload_length, trio.current_time()
            transfer.committing = message.last
        elif isinstance(message, Commit):
            transfer.committing = True
        elif isinstance(message, Committed | Error | Cancel):
            del self.transfers[stream]

    def _heard(self, stream: int, message: Message) -> None:
        transfer = self.transfers.get(stream)
        if transfer is None:
            return
        transfer.answered = True
        if isinstance(message, Ack | Opened):
            self._acknowledge(transfer, message)
        elif isinstance(message, Stored):
            self.acknowledged += transfer.blocks.pop(message.number, (0, 0.0))[0]
        elif isinstance(message, Error):
            transfer.committing = False
        if isinstance(message, Committed):
            self.acknowledged += transfer.unacknowledged
        if not self.session.is_open(stream) or isinstance(message, Committed | Result):
            del self.transfers[stream]

    def _acknowledge(self, transfer: _Transfer, message: Ack | Opened) -> None:
        for blockno in list(transfer.blocks):
            held = any(first <= blockno < first + number for first, number in message.held)
            if held or (blockno + 1) * BLOCK_LENGTH <= message.position:
                self.acknowledged += transfer.blocks.pop(blockno)[0]

    def waits_for(self, now: float) -> str | None:
        """What the transfers on the connection wait for now; None if there are none."""
        transfers = self.transfers.values()
        if not transfers:
            return None
        if self.session.peer_hello is None:
            return "connecting"
        if any(transfer.up for transfer in transfers):
            return self._sending_waits_for()
        if not self.is_receiving:
            return "disk"
        downloads = any(transfer.up is False and transfer.answered for transfer in transfers)
        return "line" if downloads and now - self.heard_at < _FRESH_S else "peer"

    def _sending_waits_for(self) -> str:
        if self.is_sending:
            return "line"
        session, ups = self.session, {no: one for no, one in self.transfers.items() if one.up}
        carrying = {no: one for no, one in ups.items() if not one.committing and one.answered}
        if not carrying:
            return "acknowledgement" if any(one.committing for one in ups.values()) else "peer"
        under_way = session.sent(0) - session.received_by_peer(0)
        if under_way and (self.connection.pace.binds_one or len(carrying) > 1):
            return "line"  # or the other side reads slowly, which looks the same
        piece = self.connection.piece_length()
        if all(session.sendable(stream) < piece for stream in carrying):
            return "credit"
        hello = session.peer_hello
        most = hello.undurable_max if hello is not None else BLOCK_LENGTH
        if all(one.unacknowledged + BLOCK_LENGTH > most for one in carrying.values()):
            return "acknowledgement"
        return "disk"


class Recorder:
    """Writes the log of one client.

    Args:
        file: where to; the caller closes it.
        about: facts for the first line: the command, the version.
    """

    def __init__(self, file: TextIO, **about: Any) -> None:
        self._file = file
        self._begun_at = trio.current_time()
        self._count = 0
        self._lines: dict[Connection, Recorded] = {}
        self._missing_since: float | None = self._begun_at
        self._connecting_s = 0.0
        self._write("begin", format=FORMAT, time=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **about)

    def hook(self) -> Recorded:
        """The hook for a new connection; call ``made`` with it."""
        return Recorded()

    def made(self, connection: Connection, recorded: Recorded) -> None:
        """A connection was made with that hook."""
        self._count += 1
        recorded.connection, recorded.number = connection, self._count
        self._lines[connection] = recorded
        self._write("connected", connection=self._count, peer=connection.endpoint.peer)

    def ended(self, connection: Connection) -> None:
        """A connection has ended."""
        line = self._lines.pop(connection)
        self._write_second(line)
        unanswered = len(line.transfers)
        why = str(connection.lost)
        silent_s = round(trio.current_time() - line.heard_at, 3)
        self._write("lost" if unanswered else "closed", connection=line.number, why=why, silent_s=silent_s)
        if not self._lines:
            self._missing_since = trio.current_time() if unanswered else None

    def reconnecting(self, after_s: float, why: BlockprotoError) -> None:
        """The server will be dialled again after ``after_s`` seconds."""
        if self._missing_since is None:
            self._missing_since = trio.current_time()
        self._write("reconnecting", after_s=round(after_s, 3), why=str(why))

    async def run(self) -> None:
        """Sample and write until cancelled. Cancellation: what is left is written, and the end."""
        try:
            written_at = trio.current_time()
            while True:
                await trio.sleep(LOOK_S)
                now = trio.current_time()
                self._look(now)
                if now - written_at >= WRITE_S:
                    written_at = now
                    self._write_all()
        finally:
            self._write_all()
            self._write("end")

    def _look(self, now: float) -> None:
        for line in self._lines.values():
            if not line.greeted and line.session.peer_hello is not None:
                line.greeted = True
                self._missing_since = None
            reason = line.waits_for(now)
            if reason is not None:
                line.waits[reason] += LOOK_S  # type: ignore[assignment]
        if not self._lines and self._missing_since is not None:
            self._connecting_s += LOOK_S

    def _write_all(self) -> None:
        if self._connecting_s:
            self._write("second", connection=0, waits={"connecting": round(self._connecting_s, 3)})
            self._connecting_s = 0.0
        for line in self._lines.values():
            self._write_second(line)

    def _write_second(self, line: Recorded) -> None:
        session = line.session
        while line.begun:
            stream, message = line.begun.popleft()
            self._write("transfer", connection=line.number, stream=stream, **_facts(message))
        while line.errors:
            stream, error = line.errors.popleft()
            code, scope = int(error.code), int(error.scope)
            self._write(
                "error", connection=line.number, stream=stream, code=code, scope=scope, text=error.text
            )
        after = {
            "bytes_out": line.bytes_out,
            "bytes_in": line.bytes_in,
            "payload_sent": session.sent(0),
            "payload_received_by_peer": session.received_by_peer(0),
            "payload_received": line.payload_in,
            "acknowledged": line.acknowledged,
        }
        grown = {name: value - line.before.get(name, 0) for name, value in after.items()}
        if not line.waits and not any(grown.values()):
            return
        line.before = after
        self._write(
            "second",
            connection=line.number,
            waits={reason: round(seconds, 3) for reason, seconds in line.waits.items()},
            **{name: value for name, value in grown.items() if value},
            **self._standing(line),
            out=dict(line.frames_out),
            into=dict(line.frames_in),
        )
        line.waits.clear()
        line.frames_out.clear()
        line.frames_in.clear()

    def _standing(self, line: Recorded) -> dict[str, Any]:
        """The state at the end of a second: bytes under way and not durable, credit, rate and round trip."""
        session, connection = line.session, line.connection
        blocks = [block for one in line.transfers.values() for block in one.blocks.values()]
        oldest = min((since for _, since in blocks), default=None)
        pace = connection.pace
        return {
            "under_way": session.sent(0) - session.received_by_peer(0),
            "unacknowledged": sum(length for length, _ in blocks),
            "ack_lag_s": 0 if oldest is None else round(trio.current_time() - oldest, 3),
            "credit": session.sendable(0),
            "rate_bytes_s": None if pace.rate_bytes_s is None else round(pace.rate_bytes_s),
            "round_trip_s": None if pace.round_trip_s is None else round(pace.round_trip_s, 4),
        }

    def _write(self, event: str, **fields: Any) -> None:
        t = round(trio.current_time() - self._begun_at, 3)
        print(json.dumps({"t": t, "event": event, **fields}), file=self._file, flush=True)


def _facts(message: Message) -> dict[str, Any]:
    """The facts of the message that begins a stream: names and sizes, nothing else."""
    facts: dict[str, Any] = {"message": type(message).__name__.upper()}
    if isinstance(message, Open | Block):
        facts |= {"filename": message.filename, "filesize": message.filesize}
    elif isinstance(message, Fetch):
        facts |= {"filename": message.filename, "first": message.first, "held": len(message.held)}
    return facts

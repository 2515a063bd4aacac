"""A proxy on the server's side that counts what passes: payload byte by byte, and what was acknowledged.

    client → proxy → server        BLOCK and PIECE: which bytes of which file (``Tally.sent``)
    client ← proxy ← server        ACK, OPENED, COMMITTED: which bytes will never be asked for (``Tally.acked``)

It can say when something passes (``observer``), stop everything exactly there (``hold``), and turn every connection into a
black hole that neither forwards nor closes (``freeze``), with what it swallowed let go again later (``thaw``).

What it judges (``Cut``), whoever was killed: nothing acknowledged travels again, and
re-sent ≤ sent − acknowledged at the kill, and ≤ 72 MiB.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from blockproto.common.blocks import BLOCK_LENGTH, Run
from blockproto.errors import BlockprotoError
from blockproto.wire import (
    HEADER_LENGTH,
    PREFACE,
    Ack,
    Block,
    Committed,
    Credit,
    Fetch,
    Files,
    Header,
    Message,
    Open,
    Opened,
    Piece,
    Status,
    Stored,
    decode_head,
    decode_header,
)

from .tools import MIB, STEP_S, require

CHUNK = 256 * 1024
RESENT_MAX = 72 * MIB
_HOST = "127.0.0.1"


class Ranges:
    """A set of byte positions, as ranges that neither touch nor overlap."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        """Take in the positions from ``start`` to before ``end``."""
        if start >= end:
            return
        ranges = self._ranges
        at = len(ranges)
        while at and ranges[at - 1][1] >= start:
            at -= 1
        last = at
        while last < len(ranges) and ranges[last][0] <= end:
            start, end = min(start, ranges[last][0]), max(end, ranges[last][1])
            last += 1
        ranges[at:last] = [(start, end)]

    def __len__(self) -> int:
        return sum(end - start for start, end in self._ranges)

    def common(self, other: Ranges) -> int:
        """How many positions are in both."""
        total = 0
        mine, theirs = iter(self._ranges), iter(other._ranges)
        one, two = next(mine, None), next(theirs, None)
        while one and two:
            total += max(0, min(one[1], two[1]) - max(one[0], two[0]))
            if one[1] < two[1]:
                one = next(mine, None)
            else:
                two = next(theirs, None)
        return total


@dataclass(slots=True)
class FileTally:
    """What passed of one file.

    Attributes:
        filename: its name on the server.
        sent: payload bytes that were delivered.
        acked: bytes that the receiver said are durable.
        committed: whether the receiver said COMMITTED.
    """

    filename: str = ""
    sent: Ranges = field(default_factory=Ranges)
    acked: Ranges = field(default_factory=Ranges)
    committed: bool = False


@dataclass(slots=True)
class Cut:
    """What had passed when somebody was killed, and what passes after it."""

    before: dict[bytes, FileTally]
    sent: dict[bytes, Ranges] = field(default_factory=dict)

    def judge(self) -> tuple[int, int]:
        """(re-sent, sent − acknowledged at the kill), in bytes.

        Raises:
            Broken: something acknowledged travelled again, or more than was unacknowledged, or more than ``RESENT_MAX``.
        """
        again = allowed = 0
        for sourceid, tally in self.before.items():
            after = self.sent.get(sourceid, Ranges())
            acked = after.common(tally.acked)
            require(not acked, f"{acked} bytes travelled again that were acknowledged")
            again += after.common(tally.sent)
            allowed += len(tally.sent) - tally.sent.common(tally.acked)
        require(again <= allowed, f"{again} bytes re-sent, {allowed} were sent and not acknowledged")
        require(again <= RESENT_MAX, f"{again / MIB:.1f} MiB re-sent")
        return again, allowed


class Said(NamedTuple):
    """A message that carries no payload and no credit, and when it passed (monotonic seconds)."""

    at_s: float
    forth: bool
    stream: int
    message: Message


class Tally:
    """What passed all connections of a proxy, by the file's sourceid; where that says nothing, by its name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: dict[bytes, FileTally] = {}
        self.payload_bytes = 0
        self.block_positions: list[int] = []
        self._cut: Cut | None = None

    def forget(self) -> None:
        """Another file comes: what passed of those before does not count any more."""
        with self.lock:
            self.files.clear()
            self._cut = None
            self.payload_bytes = 0

    def cut(self) -> Cut:
        """Begin anew: what passed so far is ``before``, what passes from now on is ``sent``."""
        with self.lock:
            self._cut = Cut(copy.deepcopy(self.files))
            self.block_positions.clear()
            return self._cut

    def on_file(self, sourceid: bytes, filename: str) -> None:
        """OPEN or BLOCK said what the file is called."""
        with self.lock:
            self._file(sourceid).filename = filename

    def on_committed(self, sourceid: bytes, filesize: int) -> None:
        """The receiver said that the file is complete and durable."""
        self.on_durable(sourceid, filesize, ())
        with self.lock:
            self._file(sourceid).committed = True

    def on_payload(self, sourceid: bytes, position: int, length: int) -> None:
        """Payload bytes are passed on."""
        with self.lock:
            self.payload_bytes += length
            self._file(sourceid).sent.add(position, position + length)
            if self._cut is not None:
                self._cut.sent.setdefault(sourceid, Ranges()).add(position, position + length)

    def on_durable(self, sourceid: bytes, position: int, held: tuple[Run, ...]) -> None:
        """The receiver promised this."""
        with self.lock:
            acked = self._file(sourceid).acked
            acked.add(0, position)
            for first, count in held:
                acked.add(first * BLOCK_LENGTH, (first + count) * BLOCK_LENGTH)

    def acked_bytes(self) -> int:
        """How many bytes were acknowledged so far, of all files."""
        with self.lock:
            return sum(len(tally.acked) for tally in self.files.values())

    def _file(self, sourceid: bytes) -> FileTally:
        return self.files.setdefault(sourceid, FileTally())


class Referee(Tally):
    """A tally that sees every byte that passes again.

    Attributes:
        again: by filename, bytes that passed after their receiver had acknowledged them.
        repeated: bytes that passed more than once, acknowledged or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.again: dict[str, int] = {}
        self.repeated = 0

    def on_payload(self, sourceid: bytes, position: int, length: int) -> None:
        """See Tally."""
        passing = Ranges()
        passing.add(position, position + length)
        with self.lock:
            tally = self._file(sourceid)
            self.repeated += tally.sent.common(passing)
            again = tally.acked.common(passing)
            if again:
                self.again[tally.filename] = self.again.get(tally.filename, 0) + again
        super().on_payload(sourceid, position, length)


class Gate:
    """A moment: so many more payload bytes have passed, or a message of some type comes.

    Attributes:
        reached: set at that moment.
        lines_before: so many of the oldest connections are none of its business.
        holds: whether nothing more passes the connection where it was reached, until ``release``.
    """

    def __init__(
        self, payload_bytes: int | None, message: type[Message] | None, holds: bool, lines_before: int
    ) -> None:
        require(payload_bytes is None or payload_bytes > 0, "a gate after some bytes")
        self.reached = threading.Event()
        self.holds = holds
        self.lines_before = lines_before
        self.message = message
        self.payload_left = payload_bytes
        self.released = threading.Event()
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let everything pass again."""
        self.released.set()

    def wait(self, timeout_s: float = STEP_S) -> None:
        """Wait for the moment; raises Broken when it does not come."""
        require(self.reached.wait(timeout_s), f"what was waited for did not pass in {timeout_s:.0f} s")

    def pass_payload(self, length: int) -> int:
        """How many of ``length`` payload bytes may pass; counts them."""
        if self.payload_left is None:
            return length
        with self._lock:
            taken = min(length, self.payload_left) if self.holds else length
            self.payload_left = max(0, self.payload_left - length)
        if self.payload_left == 0:
            self.reached.set()
        return length if self.released.is_set() else taken

    def pass_message(self, message: Message) -> bool:
        """Whether a message may pass."""
        if self.message is None or not isinstance(message, self.message):
            return True
        self.reached.set()
        return not self.holds or self.released.is_set()


class Proxy:
    """A counting TCP proxy on a free port; a context manager.

    Args:
        target: says the server's port of now: a server may come back on another one.
        tally: counts what passes; None makes one.
        host: where to listen.

    Attributes:
        port: where clients connect.
        tally: what passed.
        lines: every connection there was.
    """

    def __init__(self, target: Callable[[], int], tally: Tally | None = None, host: str = _HOST) -> None:
        self.tally = Tally() if tally is None else tally
        self.lines: list[Line] = []
        self._target = target
        self._gate: Gate | None = None
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._shut(self._listener)
        self._accepting.join(STEP_S)
        self.cut_lines()
        self.wait_idle()

    @property
    def address(self) -> str:
        """``bp://HOST:PORT/``."""
        return f"bp://{_HOST}:{self.port}/"

    def observer(self, *, payload_bytes: int | None = None, message: type[Message] | None = None) -> Gate:
        """Say when so many more payload bytes have passed, or when such a message passes; nothing is held up."""
        return self._set_gate(Gate(payload_bytes, message, holds=False, lines_before=0))

    def hold(
        self,
        *,
        payload_bytes: int | None = None,
        message: type[Message] | None = None,
        new_lines: bool = False,
    ) -> Gate:
        """Likewise, and hold up the connection where it happens exactly there: the message itself does not pass.

        With ``new_lines`` this is about connections that are yet to come.
        """
        return self._set_gate(Gate(payload_bytes, message, True, len(self.lines) if new_lines else 0))

    def release(self) -> None:
        """Forget the gate and let everything pass."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.release()

    def freeze(self) -> None:
        """From now on the connections of now forward nothing, in neither direction, and stay open."""
        for line in self.lines:
            line.flowing.clear()

    def cut_lines(self) -> None:
        """Break the connections of now; what is held up at the gate never passes."""
        for line in self.lines:
            line.cut()
        self.release()

    def thaw(self) -> None:
        """Let go of what was swallowed, and forward again."""
        for line in self.lines:
            line.flowing.set()

    def wait_idle(self) -> None:
        """Wait until every connection has ended, and everything that came of it is counted."""
        for line in self.lines:
            line.join()
            require(line.error is None, f"what passed was no blockproto: {line.error}")

    def _set_gate(self, gate: Gate) -> Gate:
        self.release()
        self._gate = gate
        return gate

    def gate_of(self, line: Line) -> Gate | None:
        """The gate that a connection has to pass now."""
        gate = self._gate
        return gate if gate is not None and line not in self.lines[: gate.lines_before] else None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection((_HOST, self._target()))
                except OSError:
                    client.close()  # nobody is there: that is what the client is to see
                    continue
                line = Line(self, client, server)
                self.lines.append(line)
                line.start()

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


class Line:
    """One connection through the proxy, a thread for each direction.

    Attributes:
        flowing: cleared, it is a black hole.
        broken: whether it was cut here.
        bytes_forth, bytes_back: everything that the client and the server said, in bytes.
        error: why it could not be read as frames, or None.
        said: the messages that passed, without those that only carry payload or credit.
    """

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.flowing = threading.Event()
        self.flowing.set()
        self.said: list[Said] = []
        self.error: BlockprotoError | None = None
        self.broken = False
        self.bytes_forth = self.bytes_back = 0
        self.sourceids: dict[int, bytes] = {}
        self.fetched: dict[int, tuple[Run, ...]] = {}
        self.frames: dict[tuple[int, int], deque[tuple[bytes, int, int]]] = {}
        self._sockets = (client, server)
        self._begun = threading.Event()
        self._threads = [
            threading.Thread(target=self._relay, args=(client, server, True), daemon=True),
            threading.Thread(target=self._relay, args=(server, client, False), daemon=True),
        ]
        for sock in self._sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Begin to forward."""
        for thread in self._threads:
            thread.start()
        self._begun.set()

    def cut(self) -> None:
        """Break the connection; what has not passed yet never does."""
        self.broken = True
        self.flowing.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait until both directions have ended; also when they are only about to begin."""
        require(self._begun.wait(STEP_S), "a connection does not begin")
        for thread in self._threads:
            thread.join(STEP_S)
            require(not thread.is_alive(), "a connection does not end")
        for sock in self._sockets:
            sock.close()

    def _relay(self, source: socket.socket, dest: socket.socket, forth: bool) -> None:
        memory = memoryview(bytearray(CHUNK))
        meter = Meter(self, forth)
        try:
            while count := source.recv_into(memory):
                self._count(count, forth)
                rest = memory[:count]
                while rest and not self.broken:
                    self.flowing.wait()
                    used = meter.take(rest)
                    self._send(dest, rest[:used])
                    rest = rest[used:]
                    if rest and meter.stopped_by is not None:
                        meter.stopped_by.released.wait()
        except OSError:
            pass
        except BlockprotoError as error:
            self.error = None if self.broken else error
            self.cut()
        finally:
            self.flowing.wait()
            with contextlib.suppress(OSError):
                dest.shutdown(socket.SHUT_WR)

    def _count(self, count: int, forth: bool) -> None:
        if forth:
            self.bytes_forth += count
        else:
            self.bytes_back += count

    def _send(self, dest: socket.socket, view: memoryview) -> None:
        """Pass bytes on; what comes for somebody who has gone is still read and counted."""
        try:
            dest.sendall(view)
        except OSError:
            if dest is self._sockets[1]:
                self.cut()
                raise


class Meter:
    """Reads one direction as frames, however the bytes are sliced.

    Args:
        line: the connection.
        forth: whether this is what the client says.

    Attributes:
        stopped_by: the gate that held up what ``take`` did not let pass.
    """

    def __init__(self, line: Line, forth: bool) -> None:
        self._line = line
        self._forth = forth
        self.stopped_by: Gate | None = None
        self._kept = bytearray()
        self._wanted = len(PREFACE)
        self._next: Callable[[], bool] = self._on_preface
        self._header = Header(0, 0, 0, 0, 0, 0)
        self._payload_left = 0
        self._parts: deque[tuple[bytes, int, int]] = (
            deque()
        )  # whose the payload is: sourceid, position, length

    def take(self, view: memoryview) -> int:
        """Read from ``view``; returns how many bytes may pass now: all of them unless a gate holds them up."""
        used = 0
        while used < len(view):
            if self._payload_left:
                wanted = min(self._payload_left, len(view) - used)
                passed = self._pass_payload(wanted)
                self._count(passed)
                used += passed
                if passed < wanted:
                    break
                continue
            wanted = min(self._wanted - len(self._kept), len(view) - used)
            self._kept += view[used : used + wanted]
            if len(self._kept) == self._wanted and not self._next():
                self._kept = self._kept[: len(self._kept) - wanted]
                break
            used += wanted
        return used

    def _pass_payload(self, length: int) -> int:
        gate = self.stopped_by = self._line.proxy.gate_of(self._line)
        return length if gate is None or not self._parts else gate.pass_payload(length)

    def _count(self, length: int) -> None:
        self._payload_left -= length
        while self._parts and length:
            sourceid, position, left = self._parts.popleft()
            passed = min(left, length)
            if passed:
                self._line.proxy.tally.on_payload(sourceid, position, passed)
            if passed < left:
                self._parts.appendleft((sourceid, position + passed, left - passed))
            length -= passed

    def _on_preface(self) -> bool:
        return self._begin_frame(0)

    def _begin_frame(self, payload_length: int) -> bool:
        self._payload_left = payload_length
        self._kept.clear()
        self._wanted = HEADER_LENGTH
        self._next = self._on_header
        return True

    def _on_header(self) -> bool:
        self._header = decode_header(self._kept)
        self._wanted += self._header.head_length
        self._next = self._on_head
        return self._header.head_length > 0 or self._on_head()

    def _on_head(self) -> bool:
        header = self._header
        message = decode_head(header, bytes(self._kept[HEADER_LENGTH:]))
        gate = self.stopped_by = self._line.proxy.gate_of(self._line)
        if message is not None and gate is not None and not gate.pass_message(message):
            return False
        self._parts.clear()
        if message is not None:
            self._on_message(header, message)
        return self._begin_frame(header.payload_length)

    def _on_message(self, header: Header, message: Message) -> None:
        line, tally, stream = self._line, self._line.proxy.tally, header.stream
        if isinstance(message, Open | Block):
            key = message.sourceid if any(message.sourceid) else message.filename.encode()
            line.sourceids[stream] = key
            tally.on_file(key, message.filename)
            tally.on_durable(key, 0, line.fetched.pop(stream, ()))
        sourceid = line.sourceids.get(stream, b"")
        if isinstance(message, Block | Piece):
            self._parts.append((sourceid, message.position, header.payload_length))
            if isinstance(message, Block):
                tally.block_positions.append(message.position)
            return
        if isinstance(message, Files):
            self._on_files(stream, message)
        elif isinstance(message, Stored):
            self._on_stored(stream, message)
        elif isinstance(message, Ack | Opened):
            tally.on_durable(sourceid, message.position, message.held)
        elif isinstance(message, Committed):
            tally.on_committed(sourceid, message.filesize)
        elif isinstance(message, Fetch):
            line.fetched[stream] = message.held
        if not isinstance(message, Ack | Credit):
            line.said.append(Said(time.monotonic(), self._forth, stream, message))

    def _on_files(self, stream: int, message: Files) -> None:
        tally, table = self._line.proxy.tally, message.table
        for record, name in zip(table.records, table.names, strict=True):
            folder = message.folders[record[5]]
            filename = f"{folder}/{name}" if folder else name
            sourceid = record[0] if any(record[0]) else filename.encode()
            tally.on_file(sourceid, filename)
            self._parts.append((sourceid, 0, record[2]))
        self._line.frames[stream, message.number] = deque(self._parts)

    def _on_stored(self, stream: int, message: Stored) -> None:
        waiting = self._line.frames[stream, message.number] if message.statuses else deque()
        for status in message.statuses:
            sourceid, _, filesize = waiting.popleft()
            if status != Status.REFUSED:
                self._line.proxy.tally.on_committed(sourceid, filesize)

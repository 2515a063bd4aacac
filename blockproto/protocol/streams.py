"""Streams: the transition table of both ends, which says what may be sent when, and the state of one stream.

The side that first sends OPEN, BLOCK or FILES is the *sender* of bytes on the stream; the side that first sends FETCH, FILES
with WANTED, AUTH, LIST or REMOVE is the *receiver* (or asker). The table maps (state, speaker, message) to the next state;
all else is illegal.

Rules:
    1. A request never ends a stream. The side that answers ends it, with one COMMITTED, RESULT, STORED with LAST or
       ERROR(stream).
    2. Messages cross on the way. Where a message of each side is legal in one state, both orders are legal and lead to the
       same state (BP1-STR-015; the diamond test). In ``CLOSED`` everything is dropped.
    3. Payload counts once, in order:  consumed ≤ received ≤ granted ≤ consumed + window,  and for the other direction
       received by the peer ≤ sent ≤ allowance.
    4. A frame of files is unanswered until STORED has said what became of each of its files.

Spec: BP1-STR, BP1-CRD, BP1-FIL.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from ..errors import BadFacts, Code, CreditExceeded, MalformedFrame, Scope
from ..wire import Block, Credit, Error, Files, Message, Piece, Stored, Type


class State(IntEnum):
    """The state of a stream."""

    NEW = 0
    ASKED = 1
    WANTED = 2
    OPEN = 3
    BRIEF = 4
    COMMITTING = 5
    CANCELLING = 6
    FILES = 7
    FILED = 8
    LISTED = 9
    CLOSED = 10


class Role(IntEnum):
    """Which way bytes flow, seen from one end."""

    SENDER = 0
    RECEIVER = 1


class Kind(IntEnum):
    """A message as the table sees it: COMMIT and LAST flags and the scopes of ERROR make kinds of their own."""

    OPEN = Type.OPEN
    OPENED = Type.OPENED
    BLOCK = Type.BLOCK
    PIECE = Type.PIECE
    ACK = Type.ACK
    CREDIT = Type.CREDIT
    HAVE = Type.HAVE
    COMMIT = Type.COMMIT
    COMMITTED = Type.COMMITTED
    FETCH = Type.FETCH
    AUTH = Type.AUTH
    LIST = Type.LIST
    REMOVE = Type.REMOVE
    RESULT = Type.RESULT
    CANCEL = Type.CANCEL
    FILES = Type.FILES
    STORED = Type.STORED
    FILES_LAST = 0x100 | Type.FILES
    FILES_WANTED = 0x200 | Type.FILES
    STORED_LAST = 0x100 | Type.STORED
    BLOCK_COMMIT = 0x100 | Type.BLOCK
    PIECE_COMMIT = 0x100 | Type.PIECE
    ERROR_BLOCK = 0x100 | Type.ERROR
    ERROR_DIFFER = 0x200 | Type.ERROR
    ERROR_STREAM = 0x300 | Type.ERROR


def _table() -> dict[tuple[int, int, int], State]:
    """The table, one line for each rule (BP1-STR-005)."""
    new, asked, wanted, opened, brief, committing, cancelling, files, filed, listed, closed = State
    sender, receiver = Role
    live = (asked, wanted, opened, brief, committing, cancelling, files, filed, listed)
    bytes_flow = (opened, brief, committing, cancelling)
    files_flow = (files, filed, cancelling)
    table: dict[tuple[int, int, int], State] = {}

    def rule(
        speaker: Role, kinds: tuple[Kind, ...], states: tuple[State, ...], to: State | None = None
    ) -> None:
        table.update(
            {(state, speaker, kind): state if to is None else to for kind in kinds for state in states}
        )

    rule(sender, (Kind.OPEN,), (new, wanted), opened)
    rule(sender, (Kind.BLOCK,), (new,), brief)
    rule(sender, (Kind.BLOCK, Kind.PIECE), (brief, opened, committing))
    rule(sender, (Kind.BLOCK_COMMIT,), (new,), committing)
    rule(sender, (Kind.BLOCK_COMMIT, Kind.PIECE_COMMIT), (brief,), committing)
    rule(sender, (Kind.HAVE,), (opened, committing))
    rule(sender, (Kind.COMMIT,), (opened,), committing)
    rule(sender, (Kind.FILES,), (new, files, listed), files)
    rule(sender, (Kind.FILES_LAST,), (new, files, listed), filed)
    rule(sender, (Kind.CANCEL,), (opened, brief, committing, files, filed), cancelling)
    rule(sender, (Kind.RESULT,), (asked,), closed)
    rule(receiver, (Kind.FETCH,), (new,), wanted)
    rule(receiver, (Kind.FILES_WANTED,), (new,), listed)
    rule(receiver, (Kind.AUTH, Kind.LIST, Kind.REMOVE), (new,), asked)
    rule(receiver, (Kind.CREDIT,), (wanted, listed, *bytes_flow, files, filed))
    rule(receiver, (Kind.OPENED, Kind.ACK, Kind.ERROR_BLOCK), bytes_flow)
    rule(receiver, (Kind.ERROR_DIFFER,), (committing,), opened)
    rule(receiver, (Kind.ERROR_DIFFER,), (cancelling,))
    rule(receiver, (Kind.COMMITTED,), bytes_flow, closed)
    rule(receiver, (Kind.STORED,), files_flow)
    rule(receiver, (Kind.STORED_LAST,), (filed, cancelling), closed)
    rule(sender, (Kind.ERROR_STREAM,), live, closed)
    rule(receiver, (Kind.ERROR_STREAM,), live, closed)
    return table


TABLE: Mapping[tuple[int, int, int], State] = _table()
"""(state, speaker, message) → next state, for both ends."""

FIRST: Mapping[int, Role] = {kind: Role(speaker) for (state, speaker, kind) in TABLE if state == State.NEW}
"""The messages that may open a stream, and the role of their speaker."""


def kind_of(message: Message) -> int:
    """The message as the table sees it; ERROR(connection) has no place there and gives a kind that is not in it."""
    if isinstance(message, (Block, Piece)):
        return message.TYPE | 0x100 if message.commit else message.TYPE
    if isinstance(message, Files) and message.wanted:
        return Kind.FILES_WANTED
    if isinstance(message, (Files, Stored)):
        return message.TYPE | 0x100 if message.last else message.TYPE
    if isinstance(message, Error):
        if message.scope == Scope.BLOCK:
            return Kind.ERROR_DIFFER if message.code == Code.DIGESTS_DIFFER else Kind.ERROR_BLOCK
        return Kind.ERROR_STREAM if message.scope == Scope.STREAM else message.TYPE
    return message.TYPE


class Flow:
    """Payload totals of a stream or of a connection, both directions, in bytes.

    Attributes:
        granted: what the peer may send. received: what has come. consumed: what of it was written or dropped.
        window: how much may be granted beyond what was consumed.
        allowance: what we may send. sent: what we have sent. received_by_peer: what of it has come, as the peer says.
    """

    __slots__ = ("allowance", "consumed", "granted", "received", "received_by_peer", "sent", "window")

    def __init__(self, window: int, allowance: int) -> None:
        self.granted = self.window = window
        self.allowance = allowance
        self.received = self.consumed = self.sent = self.received_by_peer = 0

    def widen(self, window: int, allowance: int) -> None:
        """Grant and be granted at least that much from now on (HELLO); 0 leaves a side as it is."""
        self.window = max(self.window, window)
        self.granted = max(self.granted, self.window)
        self.allowance = max(self.allowance, allowance)

    def judge(self, length: int) -> None:
        """Check that ``length`` more bytes were granted; raises CreditExceeded (BP1-CRD-003)."""
        if self.received + length > self.granted:
            raise CreditExceeded(f"{self.received + length} bytes of payload; {self.granted} are allowed")

    def credited(self, credit: Credit) -> None:
        """Take a CREDIT of the peer; totals never go down, so that a late or repeated one changes nothing (BP1-CRD-004).

        Raises:
            MalformedFrame: it says that more has come than was sent.
        """
        if credit.received > self.sent:
            raise MalformedFrame(f"CREDIT says that {credit.received} bytes came; {self.sent} were sent")
        self.allowance = max(self.allowance, credit.allowance)
        self.received_by_peer = max(self.received_by_peer, credit.received)

    @property
    def due(self) -> int:
        """Bytes that can be granted in addition."""
        return self.consumed + self.window - self.granted

    def grant(self) -> Credit:
        """The CREDIT that grants everything that is due."""
        self.granted = self.consumed + self.window
        return Credit(self.granted, self.received)


class Stream(Flow):
    """The state of an open stream at one end.

    Attributes:
        role: of this end; None until the first message.
        position, end: the next byte of the unfinished block and where it ends at the latest; -1: there is none.
        number: of the last frame of files; -1: there was none.
        unanswered: frames of files by their number, with how many of their files were not answered yet.
    """

    __slots__ = ("end", "id", "number", "position", "role", "state", "unanswered")

    def __init__(self, number: int, window: int, allowance: int) -> None:
        super().__init__(window, allowance)
        self.id = number
        self.state = State.NEW
        self.role: Role | None = None
        self.position = self.end = -1
        self.unanswered: dict[int, int] | None = None
        self.number = -1

    def next_state(self, speaker_is_us: bool, message: Message) -> tuple[Role, State] | None:
        """Our role and the state after ``message``; None if it is illegal now."""
        kind = kind_of(message)
        role = self.role
        if role is None:
            speaker = FIRST.get(kind)
            if speaker is None:
                return None
            role = speaker if speaker_is_us else _OTHER[speaker]
        else:
            speaker = role if speaker_is_us else _OTHER[role]
        state = TABLE.get((self.state, speaker, kind))
        return None if state is None else (role, state)

    def follow(self, message: Message, payload_length: int) -> int:
        """Keep track of the unfinished block or frames of files; returns the position of the payload's first byte.

        Raises:
            BadFacts: a PIECE that does not continue the block, a payload that runs past its end or is not that of its
                files, a number that does not rise, or an answer to what was not asked.
        """
        if isinstance(message, Block):
            position, end = message.position, message.end
        elif isinstance(message, Piece):
            position, end = message.position, self.end
            if position != self.position or end < 0:
                raise BadFacts(f"PIECE at {position} where {self.position} is the next byte")
        else:
            if isinstance(message, Files):
                self._follow_files(message, payload_length)
            elif isinstance(message, Stored):
                self._follow_stored(message)
            return 0
        if position + payload_length > end:
            raise BadFacts(f"{payload_length} bytes at {position} run past the end of their block at {end}")
        if message.digest is None:
            self.position, self.end = position + payload_length, end
        else:
            self.position = self.end = -1
        return position

    def _follow_files(self, message: Files, payload_length: int) -> None:
        """One more frame of files (BP1-FIL-002, 003)."""
        if message.payload_length != payload_length:
            raise BadFacts(
                f"the files of FILES have {message.payload_length} bytes, and its payload {payload_length}"
            )
        if message.wanted:
            return
        if message.number <= self.number:
            raise BadFacts(f"FILES with the number {message.number} after {self.number}")
        self.number = message.number
        if self.unanswered is None:
            self.unanswered = {}
        if message.table.records:
            self.unanswered[message.number] = len(message.table.records)

    def _follow_stored(self, message: Stored) -> None:
        """Some files of a frame are answered, and with LAST all of the stream's (BP1-FIL-006, 009)."""
        unanswered = {} if self.unanswered is None else self.unanswered
        left = unanswered.get(message.number, 0) - len(message.statuses)
        if left < 0:
            raise BadFacts(
                f"STORED answers {len(message.statuses)} files of frame {message.number}, too many"
            )
        if message.last and (left or len(unanswered) > (message.number in unanswered)):
            raise BadFacts("STORED with LAST, and there are files that were not answered")
        if left:
            unanswered[message.number] = left
        else:
            unanswered.pop(message.number, None)


_OTHER = {Role.SENDER: Role.RECEIVER, Role.RECEIVER: Role.SENDER}

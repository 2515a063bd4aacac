"""The rules that hold for every frame of a server's, in every case: so each case is a case of these, too."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from .. import wire
from ..errors import Scope
from .transcript import describe
from .verdicts import Failed

SAID_BY_SERVER = (
    wire.Hello, wire.Open, wire.Opened, wire.Block, wire.Piece, wire.Ack, wire.Credit, wire.Have, wire.Commit,
    wire.Committed, wire.Cancel, wire.Result, wire.Ping, wire.Error, wire.GoAway, wire.Files, wire.Stored,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Heard:
    """A frame that came: its stream, message and payload, and the bytes of header and head."""

    stream: int
    message: wire.Message
    payload: bytes
    raw: bytes

    def __str__(self) -> str:
        payload = f" + {len(self.payload)} bytes" if self.payload else ""
        return describe(self.message, self.stream) + payload


def judge_lengths(header: wire.Header, raw: bytes, ours: wire.Hello) -> None:
    """Hold a header against the limits of the harness's own HELLO, before anything more is read."""
    most = ours.head_length_max
    if header.head_length > header.length:
        raise Failed("head_length is greater than length", got=raw.hex(" "), clause="BP1-FRM-005")
    if header.head_length > most:
        raise Failed(
            "a head is longer than the HELLO of the harness allows",
            got=raw.hex(" "),
            clause="BP1-HEL-010",
        )
    if header.payload_length and header.type in wire.MESSAGES and header.type not in wire.PAYLOAD_TYPES:
        raise Failed("a payload in a message that has none", got=raw.hex(" "), clause="BP1-FRM-007")
    if header.payload_length > ours.piece_length_max:
        raise Failed(
            "a piece is longer than the HELLO of the harness allows",
            got=raw.hex(" "),
            clause="BP1-HEL-010",
        )


def judge_frame(heard: Heard, opened: Set[int], greeted: bool) -> None:
    """Hold a message against its stream.

    Args:
        heard: the frame.
        opened: the streams that were used by the harness.
        greeted: whether the server's HELLO has come before.
    """
    message, stream = heard.message, heard.stream
    if not isinstance(message, SAID_BY_SERVER):
        raise Failed("a message that no server says", got=str(heard), clause="BP1-STR-005")
    connection = isinstance(message, (wire.Hello, wire.Ping, wire.GoAway)) or (
        isinstance(message, wire.Error) and message.scope == Scope.CONNECTION
    )
    if not isinstance(message, wire.Credit) and connection is not (stream == 0):
        raise Failed("a message on a stream where it does not belong", got=str(heard), clause="BP1-FRM-020")
    if stream and stream not in opened:
        raise Failed("a frame on a stream that was never opened", got=str(heard), clause="BP1-STR-011")
    if isinstance(message, wire.Hello) and greeted:
        raise Failed("a second HELLO", got=str(heard), clause="BP1-HEL-005")

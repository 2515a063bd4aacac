"""FRM: the frame. Lengths, checks, layout, and in which order they are judged."""

from __future__ import annotations

from ... import wire
from ...errors import Code
from .. import forge
from ..case import Chapter, Side
from ..target import Trial

cases = Chapter("frm", Side.SERVER)


def ping(opaque: bytes = b"conform!") -> bytes:
    """A PING as it should be, to be spoilt."""
    return forge.frame(0, wire.Ping(opaque, 0))


@cases.table(
    "check/flipped-{}",
    "FRM-010 FRM-003",
    {"type": 3, "flags": 5, "stream": 11, "check": 15, "head": 20},
    why="A receiver that does not compare the check acts on bytes that a broken line has changed.",
)
def flipped(trial: Trial, offset: int) -> None:
    """One bit of header or head is not what it was when the check was computed."""
    peer = trial.dial()
    raw = bytearray(ping() + ping())
    raw[offset] ^= 0x01
    peer.send(bytes(raw))
    peer.expect_refusal(Code.BAD_CHECK)

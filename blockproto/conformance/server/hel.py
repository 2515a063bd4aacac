"""HEL: preface and HELLO."""

from __future__ import annotations

from ... import wire
from ...errors import Code
from .. import forge
from ..case import Chapter, Side
from ..target import Trial

cases = Chapter("hel", Side.SERVER)


@cases.add(
    "greeting/one-byte-at-a-time",
    "HEL-002",
    why="TCP keeps no borders: a server that reads the preface in one piece works on loopback only.",
)
def one_byte_at_a_time(trial: Trial) -> None:
    """Preface and HELLO come in segments of one byte."""
    peer = trial.dial(greet=False)
    for byte in wire.PREFACE + forge.frame(0, peer.ours):
        peer.send(bytes([byte]))
    peer.expect_greeting()
    peer.ping()


@cases.add(
    "first-frame/ping",
    "HEL-005",
    why="A server that takes messages before HELLO does not know the limits of who speaks.",
)
def ping_first(trial: Trial) -> None:
    """PING instead of HELLO; the server's own HELLO still comes before its ERROR."""
    peer = trial.dial(greet=False)
    peer.send(wire.PREFACE + forge.frame(0, wire.Ping(bytes(8), 0)))
    peer.expect_greeting()
    peer.expect_refusal(Code.UNEXPECTED)

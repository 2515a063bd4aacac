"""Which protocol a connection speaks, from its first bytes: a pure function, without input or output.

    FF …    native: its own session judges the rest of the preface
    16 03   a TLS record
    else    the one enabled dialect that says YES; MORE while one may still say so; else NEITHER

An answer other than MORE never changes with more bytes, so it does not matter how the network cuts what was sent. While the
answer is MORE nothing is said to the peer.

Spec: BP1-DIA.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from ..dialects import FIRST_LENGTH_MAX, Dialect, Recognition
from ..wire import PREFACE

TLS_HANDSHAKE = b"\x16\x03"
"""The beginning of every TLS connection: a handshake record of TLS 1.x."""
_RECORD_HEADER_LENGTH = 5
ENOUGH_MOST = 512
"""With this many bytes the protocol is always known."""


class Detection(Enum):
    """The verdict, where it is not a dialect."""

    NATIVE = "native"
    TLS = "tls"
    NEITHER = "neither"
    MORE = "more"


def detect_from_bytes(first: bytes, dialects: Sequence[Dialect]) -> Detection | Dialect:
    """The protocol of a connection that begins with ``first``.

    Args:
        first: what has come so far, at least one byte.
        dialects: the enabled ones, in any order.
    """
    if first[0] == PREFACE[0]:
        return Detection.NATIVE
    if first.startswith(TLS_HANDSHAKE):
        return Detection.TLS
    answers = {dialect.recognise(first): dialect for dialect in dialects}
    if Recognition.YES in answers:
        return answers[Recognition.YES]
    if first == TLS_HANDSHAKE[:1] or Recognition.MORE in answers:
        return Detection.MORE
    return Detection.NEITHER


def enough(first: bytes, dialects: Sequence[Dialect]) -> int:
    """How many bytes have to come before a connection that begins with ``first`` can be answered.

    Args:
        first: what has come so far; may be empty.
        dialects: the enabled ones, in any order.

    Returns:
        At most ``len(first)`` if there are enough. Otherwise a number, at most ``ENOUGH_MOST``, below which there is no
        answer: ask again when that many have come. A beginning of the preface waits for all of it (BP1-HEL-003).
    """
    if not first:
        return 1
    verdict = detect_from_bytes(first[:FIRST_LENGTH_MAX], dialects)
    if verdict is Detection.MORE:
        return len(first) + 1
    if verdict is Detection.NATIVE and PREFACE.startswith(first):
        return len(PREFACE)
    if verdict is Detection.TLS:
        if len(first) < _RECORD_HEADER_LENGTH:
            return _RECORD_HEADER_LENGTH
        return min(_RECORD_HEADER_LENGTH + int.from_bytes(first[3:5]), ENOUGH_MOST)
    return 1

"""Micro: microseconds to encode and to decode the frames that come by the thousand, as the engine does it."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from functools import partial

from blockproto.common.blocks import BLOCK_LENGTH
from blockproto.wire import (
    HEADER_LENGTH,
    Ack,
    Block,
    Message,
    Piece,
    check_frame,
    decode_head,
    decode_header,
    encode_frame,
)

from .arena import Arena
from .contest import Options
from .figures import Row, Section
from .pairs import summarise
from .targets import CODEC_US

LOOPS = 2000
_BLOCKNUM = 4096
_DIGEST = bytes(range(32))

FRAMES: dict[str, tuple[Message, int]] = {
    "BLOCK": (
        Block(
            sourceid=bytes(range(16)),
            filesize=_BLOCKNUM * BLOCK_LENGTH,
            blocknum=_BLOCKNUM,
            blockno=1234,
            position=1234 * BLOCK_LENGTH,
            filename="a folder/a file of an ordinary name.tar.gz",
            filetype="application/gzip",
            digest=_DIGEST,
        ),
        BLOCK_LENGTH,
    ),
    "PIECE": (Piece(position=1234 * BLOCK_LENGTH + 65_536, digest=_DIGEST), 65_536),
    "ACK": (Ack(position=1234 * BLOCK_LENGTH, held=((1240, 5), (1250, 1))), 0),
}
"""Name → message and payload length."""


def micro(_: Arena, options: Options) -> Iterator[Section]:
    """Encode and decode of each frame, in this process; the payload itself is no part of it."""
    options.tell("encode and decode")
    rows = []
    for name, (message, payload_length) in FRAMES.items():
        frame = encode_frame(1, message, payload_length)
        for what, work in (
            ("encode", partial(encode_frame, 1, message, payload_length)),
            ("decode", partial(_decode, frame)),
        ):
            rows.append(Row(f"{what} {name}", "µs", summarise(_times_us(work, options.pairs)), CODEC_US))
    yield Section("encode and decode", rows)


def _decode(frame: bytes) -> Message | None:
    """From the bytes of header and head to the message: header, check, head."""
    header = decode_header(frame)
    head = frame[HEADER_LENGTH:]
    assert check_frame(frame, head, header.check)
    return decode_head(header, head)


def _times_us(work: Callable[[], object], count: int) -> list[float]:
    return [taken_s / LOOPS * 1e6 for taken_s in timeit.repeat(work, number=LOOPS, repeat=count)]

"""Frames that an honest encoder would not write: messages that nobody judged, and bytes that were changed afterwards.

``frame`` encodes; ``unjudged`` makes a message whose values do not fit each other; ``rebuilt`` changes header, head or
payload of an encoded frame and puts the check right again, unless that is what shall be wrong.
"""

from __future__ import annotations

import copy
import struct
from typing import Any, TypeVar
from zlib import crc32

from .. import wire

M = TypeVar("M", bound=wire.Message)


def frame(stream: int, message: wire.Message, payload: bytes = b"") -> bytes:
    """The whole frame, as it should be."""
    return wire.encode_frame(stream, message, len(payload)) + payload


def unjudged(message: M, **changes: Any) -> M:
    """The same message with other values, which need not fit each other (``replace`` would refuse them)."""
    twin = copy.copy(message)
    for name, value in changes.items():
        object.__setattr__(twin, name, value)
    return twin


def tlv(number: int, value: bytes = b"") -> bytes:
    """One TLV."""
    return struct.pack(">HH", number, len(value)) + value


def rebuilt(
    raw: bytes,
    *,
    type_: int | None = None,
    flags: int = 0,
    stream: int | None = None,
    head: bytes | None = None,
    tail: bytes = b"",
    payload: bytes | None = None,
    length: int | None = None,
    head_length: int | None = None,
    check: int | None = None,
) -> bytes:
    """The frame ``raw`` with other parts; lengths and check follow from them unless they are given.

    Args:
        raw: one whole frame.
        type_: another message type.
        flags: flag bits that are set besides.
        stream: another stream.
        head: another head.
        tail: bytes (TLVs, usually) behind the head's end, inside the head.
        payload: another payload.
        length: what the header claims.
        head_length: what the header claims.
        check: what the header says instead of the right check.
    """
    old = wire.decode_header(raw)
    start = wire.HEADER_LENGTH
    old_head, old_payload = raw[start : start + old.head_length], raw[start + old.head_length :]
    head = (old_head if head is None else head) + tail
    payload = old_payload if payload is None else payload
    made = wire.frame_bytes(
        old.stream if stream is None else stream,
        old.type if type_ is None else type_,
        old.flags | flags,
        head,
        len(payload),
    )
    if length is not None or head_length is not None:
        made = _claiming(made, length, head_length)
    if check is not None:
        made = made[:12] + struct.pack(">I", check) + made[16:]
    return made + payload


def _claiming(made: bytes, length: int | None, head_length: int | None) -> bytes:
    """The same frame whose header claims other lengths; the check covers what it claims."""
    header = wire.decode_header(made)
    word = (header.length if length is None else length) << 8 | header.type
    start = struct.pack(
        ">IHHI",
        word,
        header.flags,
        header.head_length if head_length is None else head_length,
        header.stream,
    )
    head = made[wire.HEADER_LENGTH :]
    return start + struct.pack(">I", crc32(head, crc32(start))) + head


def patched(raw: bytes, offset: int, value: bytes) -> bytes:
    """The frame with other bytes at ``offset`` of its head, and the right check."""
    start = wire.HEADER_LENGTH
    head = raw[start : start + wire.decode_header(raw).head_length]
    return rebuilt(raw, head=head[:offset] + value + head[offset + len(value) :])


def offset_of(kind: type[wire.Message], field: str) -> int:
    """Where a field of the fixed part begins in the head of a message."""
    offset = 0
    for name, code in kind.LAYOUT.fixed.items():
        if name == field:
            return offset
        offset += struct.calcsize(">" + code)
    raise KeyError(f"{kind.__name__} has no fixed field {field}")


def unknown_frame(
    type_: int, stream: int = 0, head: bytes = b"", payload: bytes = b"", flags: int = 0
) -> bytes:
    """A frame of a type that this version does not define."""
    return wire.frame_bytes(stream, type_, flags, head, len(payload)) + payload

"""What a refusal vector is, and good frames to spoil.

Each refusal breaks one rule. ``layer`` says what it takes to notice: ``greeting`` (nothing came before), ``frame`` (both
sides have greeted; the bytes alone decide), ``stream`` (``before`` was sent and accepted first), ``file`` (it takes a
store: names, digests, what is there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from encode import Frame, frame, join, raw_frame, tlv_fields
from frames import ATTEMPT, HELLO_CONTENT, HELLO_DIGEST, PHOTO, SOURCEID, ZERO

Wrong = tuple[int, int, str]
"""Offset and length of the wrong bytes, and why they are wrong."""

PHOTO_FACTS: dict[str, Any] = {
    "sourceid": SOURCEID,
    "filesize": len(PHOTO),
    "blocknum": 3,
    "filename": "p",
    "filetype": "",
}


class Refusal(NamedTuple):
    """Bytes to be refused. ``before``: what the same side sent first; ``judge``: who refuses."""

    name: str
    clause: str
    code: str
    scope: str
    raw: bytes
    wrong: Wrong
    layer: str = "frame"
    before: tuple[bytes, ...] = ()
    judge: str = "server"
    limits: str = "usual"


def place_of(said: Frame, field: str, why: str) -> Wrong:
    """Where a field of a frame stands."""
    offset = 0
    for candidate in said.fields:
        if candidate.name == field:
            return offset, len(candidate.raw), why
        offset += len(candidate.raw)
    assert field == "payload", field
    return offset, len(said.payload), why


def head_of(said: Frame) -> bytes:
    """The head of a good frame."""
    return join(said.fields[6:])


def remade(said: Frame, head: bytes, *, flags: int | None = None) -> bytes:
    """The frame with another head (or flags), its lengths and check made to fit."""
    bits = int.from_bytes(said.fields[2].raw, "big") if flags is None else flags
    return raw_frame(said.fields[1].raw[0], said.stream, head, said.payload, flags=bits)


def patched(said: Frame, offset: int, new: bytes) -> bytes:
    """The frame with ``new`` at ``offset`` of its head, and a check that fits."""
    head = head_of(said)
    return remade(said, head[:offset] + new + head[offset + len(new) :])


def with_tlvs(said: Frame, tlvs: dict[str, Any]) -> bytes:
    """The frame with raw TLVs after its head."""
    return remade(said, head_of(said) + join(tlv_fields(tlvs)))


def photo_open(stream: int = 1, **changed: Any) -> Frame:
    """A good OPEN."""
    values: dict[str, Any] = {**PHOTO_FACTS, "attempt": ATTEMPT, "priority": 1, "if_exists": 0}
    return frame("OPEN", stream, **(values | changed))


def photo_block(
    blockno: int, position: int, payload: bytes = b"", *, flags: Sequence[str] = (), **changed: Any
) -> Frame:
    """A BLOCK of the photo on stream 1."""
    values = PHOTO_FACTS | changed
    return frame("BLOCK", 1, flags=flags, blockno=blockno, position=position, payload=payload, **values)


def brief(
    stream: int = 1,
    *,
    payload: bytes = HELLO_CONTENT,
    flags: Sequence[str] = ("END", "COMMIT"),
    **changed: Any,
) -> Frame:
    """A brief file."""
    values: dict[str, Any] = {
        "sourceid": SOURCEID,
        "filesize": 14,
        "blocknum": 1,
        "blockno": 0,
        "position": 0,
    }
    values |= {"filename": "hello.txt", "filetype": "text/plain", "digest": HELLO_DIGEST}
    return frame("BLOCK", stream, flags=flags, payload=payload, **(values | changed))


def piece(position: int, payload: bytes = b"") -> Frame:
    """A PIECE on stream 1."""
    return frame("PIECE", 1, position=position, payload=payload)


def commit(**changed: Any) -> Frame:
    """A COMMIT of the photo on stream 1, with some root."""
    values: dict[str, Any] = {"sourceid": SOURCEID, "root": bytes(32), "filesize": len(PHOTO), "blocknum": 3}
    return frame("COMMIT", 1, **(values | changed))


def list_files(stream: int = 1, name: str = "", **changed: int) -> Frame:
    """A LIST of one entry."""
    return frame("LIST", stream, **({"kind": 1, "limit": 1} | changed), name=name, cursor="")


def fetch(filename: str, *, stream: int = 1, first: int = 0, version: bytes = ZERO) -> Frame:
    """A FETCH by name, to the end."""
    return frame(
        "FETCH", stream, file_id=ZERO, first=first, length=None, version=version, priority=1, held=[], prefixes=[],
        filename=filename,
    )  # fmt: skip


def stop(stream: int, scope: int) -> Frame:
    """An ERROR."""
    return frame(
        "ERROR", stream, code=31, scope=scope, retryable=0, retry_after_ms=0, blockno=None, current=None, text=""
    )  # fmt: skip


def ack(*held: tuple[int, int]) -> Frame:
    """An ACK on stream 1."""
    return frame("ACK", 1, position=0, held=list(held))


def ping() -> Frame:
    """A good PING."""
    return frame("PING", 0, opaque=bytes(8), next_s=15)

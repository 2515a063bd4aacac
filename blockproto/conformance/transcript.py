"""What was said and heard in a case, kept for the report: bytes of heads, messages decoded, payloads only counted.

One transcript belongs to one case and is shared by its connections, which are numbered in the order of dialling. Credentials
are not in it (BP1-AUT-011).
"""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from dataclasses import dataclass
from typing import Any

from .. import wire

KEPT_BYTES = 400
"""Bytes of an entry that are kept; heads fit, payloads do not."""

ENTRIES_MAX = 300
"""Entries that are kept of one case: the first and the last of them."""


_CREDENTIAL = re.compile(rb"bp1_[a-z2-7]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened: seconds since the case began, which connection, ``>`` said, ``<`` heard, ``-`` noted."""

    at_s: float
    connection: int
    direction: str
    text: str
    raw: bytes = b""

    def __str__(self) -> str:
        return f"{self.at_s:7.3f}  {self.connection} {self.direction} {self.text}"


class Transcript:
    """The entries of one case."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._entries: list[Entry] = []
        self._left_out = 0
        self._lock = threading.Lock()

    def add(self, connection: int, direction: str, text: str, raw: bytes = b"") -> None:
        """Note what happened on a connection."""
        with self._lock:
            if len(self._entries) >= ENTRIES_MAX:
                del self._entries[ENTRIES_MAX // 2]
                self._left_out += 1
            at_s = time.monotonic() - self._began
            kept = _CREDENTIAL.sub(lambda found: b"?" * len(found[0]), bytes(raw[:KEPT_BYTES]))
            self._entries.append(Entry(at_s, connection, direction, text, kept))

    @property
    def entries(self) -> list[Entry]:
        """What happened, in order."""
        return list(self._entries)

    def lines(self) -> list[str]:
        """The same for people."""
        lines = [str(entry) for entry in self._entries]
        if self._left_out:
            lines.insert(ENTRIES_MAX // 2, f"         … {self._left_out} more …")
        return lines


def describe_bytes(raw: bytes) -> str:
    """What somebody sends, for people: the frames in it as far as they can be read."""
    told, at = [], 0
    if raw.startswith(wire.PREFACE):
        told.append("preface")
        at = len(wire.PREFACE)
    while len(raw) - at >= wire.HEADER_LENGTH:
        header = wire.decode_header(raw, at)
        start = at + wire.HEADER_LENGTH
        head = raw[start : start + header.head_length]
        right = len(head) < header.head_length or wire.check_frame(raw[at:start], head, header.check)
        told.append(describe_frame(header, head) + ("" if right else " (wrong check)"))
        at = start + max(header.length, header.head_length)
    if at < len(raw):
        told.append(f"{len(raw) - at} bytes: {raw[at : at + 24].hex(' ')}")
    return " · ".join(told)


def describe_frame(header: wire.Header, head: bytes) -> str:
    """One frame for people: message, stream, fields; or why it cannot be read."""
    payload = f" + {header.payload_length} bytes" if header.payload_length > 0 else ""
    try:
        message = wire.decode_head(header, head)
    except Exception as error:  # a forged frame may break any rule; this only describes it
        name = wire.MESSAGES[header.type].__name__.upper() if header.type in wire.MESSAGES else "?"
        return f"{name} (type {header.type:#04x}, stream {header.stream}: {error}){payload}"
    if message is None:
        return f"unknown type {header.type:#04x} on stream {header.stream}{payload}"
    return f"{describe(message, header.stream)}{payload}"


def describe(message: wire.Message, stream: int | None = None) -> str:
    """A message for people: ``ACK on 1: position 1048576``; fields that say nothing are left out."""
    told = [
        f"{field.name} {_show(getattr(message, field.name)) if field.repr else '(hidden)'}"
        for field in dataclasses.fields(message)
        if not _idle(getattr(message, field.name), field.default)
    ]
    where = f" on {stream}" if stream else ""
    return (
        f"{type(message).__name__.upper()}{where}: {', '.join(told)}"
        if told
        else f"{type(message).__name__.upper()}{where}"
    )


def _idle(value: Any, default: Any) -> bool:
    return value is None or value is False or value == () or (value == default and value == "")


def _show(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 8 else f"{value[:8].hex()}…"
    if isinstance(value, str):
        return ascii(value if len(value) <= 120 else value[:120] + "…")
    if isinstance(value, tuple) and len(value) > 6:
        return f"{len(value)} of them"
    return str(value)

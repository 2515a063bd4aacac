"""How a head is written: a fixed part, then strings and lists, then TLVs.

    head = fixed part · parts in order (a string, a list, a digest) · TLVs in rising order of type, to the head's last byte

Rules:
    1. A fixed part is integers and bytes of fixed length, each declared by name and ``struct`` code: it holds nothing to
       check that its size does not settle. ``construct_of`` gives the same declaration to construct, and a test holds
       the two readings against each other.
    2. Every count and length is held against the bytes that are there before anything is allocated for it.
    3. A u64 is below 2^63, except all ones, which stands for "unknown" (None) where a field allows it.
    4. What the peer may not send is ``MalformedFrame``; what our own caller may not say is ``LocalProtocolError``.

Spec: BP1-FRM-012 to 018, BP1-EXT-003.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

from ..errors import LocalProtocolError, MalformedFrame, Unsupported

U8, U16, U32, U64, I64 = "B", "H", "L", "Q", "q"
ID, DIGEST, OPAQUE = "16s", "32s", "8s"
"""What a field of a fixed part is, as a ``struct`` code."""

U64_MAX = 2**63 - 1
"""The greatest u64 that is a number (BP1-FRM-015)."""

CRITICAL_TLV = 0x8000
"""A TLV type with this bit must be understood (BP1-EXT-003)."""

_COUNT = struct.Struct(">H")
_TLV = struct.Struct(">HH")
_PAIR = struct.Struct(">II")


def struct_of(fixed: Mapping[str, str]) -> struct.Struct:
    """The ``struct`` of a fixed part: field → code, in order."""
    return struct.Struct(">" + "".join(fixed.values()))


def construct_of(fixed: Mapping[str, str]) -> Any:
    """The construct ``Struct`` of a fixed part: the same, declared for a reader that knows nothing of ours."""
    import construct  # type: ignore[import-untyped]

    def kind(code: str) -> Any:
        length = code.removesuffix("s")
        return construct.Bytes(int(length)) if length != code else construct.FormatField(">", code)

    return construct.Struct(*(name / kind(code) for name, code in fixed.items()))


class Part(Protocol):
    """One thing of variable length in a head."""

    def encode(self, value: Any) -> bytes:
        """The bytes of ``value``; raises LocalProtocolError or struct.error if it has none."""

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[Any, int]:
        """The value at ``offset`` and the offset after it, given the ``values`` before it; raises MalformedFrame."""


class String:
    """A length (u16) and that many bytes of UTF-8; bytes that are no UTF-8 become lone surrogates.

    Args:
        clip: longest text in bytes that is written; what is longer is cut (only for texts that decide nothing).
    """

    def __init__(self, clip: int = 0) -> None:
        self._clip = clip

    def encode(self, value: str) -> bytes:
        """Length and bytes of ``value``; struct.error if they are more than 65,535."""
        try:
            raw = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise LocalProtocolError(f"text that is no Unicode: {error.reason}") from error
        if self._clip and len(raw) > self._clip:
            raw = raw[: self._clip].decode("utf-8", "ignore").encode("utf-8")
        return _COUNT.pack(len(raw)) + raw

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[str, int]:
        """The text at ``offset``; it never fails for its bytes, only for its length."""
        start = offset + 2
        if start <= len(head):
            end = start + (head[offset] << 8 | head[offset + 1])
            if end <= len(head):
                return head[start:end].decode("utf-8", "surrogateescape"), end
        raise MalformedFrame("a string runs past its head")


class Raw:
    """Bytes of a fixed length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def encode(self, value: bytes) -> bytes:
        """``value`` itself, if its length is right."""
        if len(value) != self._length:
            raise LocalProtocolError(f"{len(value)} bytes where {self._length} belong")
        return bytes(value)

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[bytes, int]:
        """The bytes at ``offset``."""
        end = offset + self._length
        if end > len(head):
            raise MalformedFrame("a digest runs past its head")
        return head[offset:end], end


def _rising(pairs: Sequence[tuple[int, int]], error: type[Exception]) -> None:
    """Runs rise and neither touch nor overlap (BP1-FRM-016)."""
    end = -1
    for first, count in pairs:
        if first <= end or count < 1:
            raise error("runs must rise and not touch")
        end = first + count
    if end > 0xFFFFFFFF:
        raise error("a run goes past the last blockno")


def _prefixes(pairs: Sequence[tuple[int, int]], error: type[Exception]) -> None:
    """Prefixes rise by blockno, each 1 byte to a whole block long (BP1-FRM-017)."""
    last = -1
    for blockno, length in pairs:
        if blockno <= last or not 1 <= length <= 1 << 20:
            raise error("prefixes must rise and lie within their blocks")
        last = blockno


def _digests(pairs: Sequence[tuple[int, bytes]], error: type[Exception]) -> None:
    """Digests rise by blockno (BP1-FRM-017)."""
    last = -1
    for blockno, _ in pairs:
        if blockno <= last:
            raise error("digests must rise by blockno")
        last = blockno


class Pairs:
    """A count (u16) and that many pairs of fixed length, read only if they are all there.

    Args:
        pair: how one pair is written.
        judge: says what is wrong with all pairs by raising the class it is given.
    """

    def __init__(self, pair: struct.Struct, judge: Callable[[Any, type[Exception]], None]) -> None:
        self._pair = pair
        self._judge = judge

    def encode(self, value: Sequence[tuple[Any, Any]]) -> bytes:
        """Count and pairs, once they have been judged."""
        if not value:
            return b"\0\0"
        self._judge(value, LocalProtocolError)
        pack = self._pair.pack
        return _COUNT.pack(len(value)) + b"".join([pack(*pair) for pair in value])

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[tuple[Any, ...], int]:
        """The pairs at ``offset``, judged."""
        start = offset + 2
        if start > len(head):
            raise MalformedFrame("a list runs past its head")
        count = head[offset] << 8 | head[offset + 1]
        if not count:
            return (), start
        end = start + count * self._pair.size
        if end > len(head):
            raise MalformedFrame("a list runs past its head")
        pairs = tuple(self._pair.iter_unpack(head[start:end]))
        self._judge(pairs, MalformedFrame)
        return pairs, end


RUNS = Pairs(_PAIR, _rising)
PREFIXES = Pairs(_PAIR, _prefixes)
DIGESTS = Pairs(struct.Struct(">I32s"), _digests)


class Tlv:
    """The value of one TLV type: a number or bytes of fixed length, or several ids.

    Args:
        number: the type (u16).
        code: ``struct`` code of the value.
        mask: bits of a number that count; the others are masked away when it is read.
        many: whether the value is a sequence of such items.
    """

    def __init__(self, number: int, code: str, mask: int = 0, many: bool = False) -> None:
        self.number = number
        self._item = struct.Struct(">" + code)
        self._length = self._item.size
        self._mask = mask
        self._many = many
        self._bytes = code.endswith("s")

    def encode(self, value: Any) -> bytes:
        """The whole TLV; raises LocalProtocolError or struct.error."""
        items = value if self._many else (value,)
        for item in items:
            if self._bytes and len(item) != self._length:
                raise LocalProtocolError(f"{len(item)} bytes where {self._length} belong")
            if self._mask and item & ~self._mask:
                raise LocalProtocolError(f"{item} is more than {self._mask}")
        raw = b"".join([self._item.pack(item) for item in items])
        return _TLV.pack(self.number, len(raw)) + raw

    def decode(self, raw: bytes) -> Any:
        """The value; raises MalformedFrame if the length is not its own."""
        if self._many:
            if len(raw) % self._length:
                raise MalformedFrame(f"TLV {self.number} has {len(raw)} bytes")
            return tuple(item for (item,) in self._item.iter_unpack(raw))
        if len(raw) != self._length:
            raise MalformedFrame(f"TLV {self.number} has {len(raw)} bytes")
        (value,) = self._item.unpack(raw)
        return value & self._mask if self._mask else value


class Layout:
    """How one message or item is written.

    Args:
        fixed: the fixed part, attribute of the message → what it is, in order.
        parts: (attribute, how) after the fixed part, in order.
        tlvs: attribute → TLV; None (or an empty sequence) is not written.
        flags: attribute → flag bit; read as bool.
        present: attribute of a part → flag bit that says the part is there.
        unknown: attributes of the fixed part for which all ones means None.
    """

    def __init__(
        self,
        fixed: Mapping[str, str],
        parts: dict[str, Part] | None = None,
        *,
        tlvs: dict[str, Tlv] | None = None,
        flags: dict[str, int] | None = None,
        present: dict[str, int] | None = None,
        unknown: Sequence[str] = (),
    ) -> None:
        self.fixed = fixed
        self._fixed = struct_of(fixed)
        self._names = tuple(fixed)
        self._parts = [(name, part, (present or {}).get(name, 0)) for name, part in (parts or {}).items()]
        ordered = sorted((tlvs or {}).items(), key=lambda item: item[1].number)
        self._tlvs = [tlv for _, tlv in ordered]
        self._tlv_of = {tlv.number: (name, tlv) for name, tlv in ordered}
        self._flags = list((flags or {}).items())
        self.flags_known = sum((flags or {}).values()) | sum((present or {}).values())
        self._judge_fields(unknown)
        part_names = [name for name, _, _ in self._parts]
        everything = [
            *self._names,
            *part_names,
            *(name for name, _ in self._flags),
            *(name for name, _ in ordered),
        ]
        self._get = attrgetter(*everything)

    def _judge_fields(self, unknown: Sequence[str]) -> None:
        """Prepare what is checked of the fixed part: (index, name, greatest number, what None is), and lengths."""
        self._numbers: list[tuple[int, str, int, int | None]] = []
        self._lengths: list[tuple[int, int]] = []
        for index, (name, code) in enumerate(self.fixed.items()):
            length = struct.calcsize(">" + code)
            if code.endswith("s"):
                self._lengths.append((index, length))
            elif name in unknown:
                ones = 2 ** (8 * length) - 1
                self._numbers.append((index, name, U64_MAX if code == U64 else ones - 1, ones))
            elif code == U64:
                self._numbers.append((index, name, U64_MAX, None))

    def encode(self, message: Any) -> tuple[int, bytes]:
        """Flags and head of ``message``; raises LocalProtocolError if it cannot be written."""
        values = list(self._get(message))
        fixed = len(self._names)
        for index, name, most, none in self._numbers:
            value = values[index]
            if value is None and none is not None:
                values[index] = none
            elif value is None or value > most:
                raise LocalProtocolError(f"{name} is {value}")
        for index, length in self._lengths:
            if len(values[index]) != length:
                raise LocalProtocolError(f"{self._names[index]} has {len(values[index])} bytes, not {length}")
        try:
            pieces = [self._fixed.pack(*values[:fixed])]
            flags = self._encode_rest(values, fixed, pieces)
        except struct.error as error:
            raise LocalProtocolError(f"{type(message).__name__}: {error}") from error
        return flags, b"".join(pieces)

    def _encode_rest(self, values: list[Any], at: int, pieces: list[bytes]) -> int:
        """Append parts and TLVs from ``values[at:]`` on; returns the flags."""
        flags = 0
        for _, part, bit in self._parts:
            value = values[at]
            at += 1
            if bit:
                if value is None:
                    continue
                flags |= bit
            pieces.append(part.encode(value))
        for _, bit in self._flags:
            if values[at]:
                flags |= bit
            at += 1
        for tlv in self._tlvs:
            value = values[at]
            at += 1
            if value is not None and value != ():
                pieces.append(tlv.encode(value))
        return flags

    def decode(self, flags: int, head: bytes) -> dict[str, Any]:
        """The attributes of the message; raises MalformedFrame, or Unsupported for a critical TLV we do not know."""
        offset = self._fixed.size
        if len(head) < offset:
            raise MalformedFrame(f"a head of {len(head)} bytes where {offset} are the least")
        fixed = self._fixed.unpack_from(head)
        values = dict(zip(self._names, fixed, strict=True))
        for index, name, most, none in self._numbers:
            value = fixed[index]
            if value > most:
                if value != none:
                    raise MalformedFrame(f"{name} is {value}")
                values[name] = None
        for name, part, bit in self._parts:
            if not bit or flags & bit:
                values[name], offset = part.decode(head, offset, values)
        for name, bit in self._flags:
            values[name] = flags & bit != 0
        if offset != len(head):
            self._decode_tlvs(head, offset, values)
        return values

    def _decode_tlvs(self, head: bytes, offset: int, values: dict[str, Any]) -> None:
        """Read TLVs up to the head's last byte into ``values``; unknown ones are skipped, critical ones refused."""
        last = -1
        end = len(head)
        while offset < end:
            start = offset + 4
            if start > end:
                raise MalformedFrame("a TLV runs past its head")
            number, length = _TLV.unpack_from(head, offset)
            offset = start + length
            if number <= last or offset > end:
                raise MalformedFrame(f"TLV {number} is out of order or runs past its head")
            last = number
            known = self._tlv_of.get(number)
            if known is not None:
                values[known[0]] = known[1].decode(head[start:offset])
            elif number & CRITICAL_TLV:
                raise Unsupported(f"TLV {number:#06x} must be understood and is not")

"""A second, separate encoder of blockproto frames: slow, plain, and written from the text of spec/protocol.md.

It imports nothing of the package, so that a mistake in the package cannot bless itself. ``LAYOUTS`` is the whole of it:
one line for each message, the fields in their order on the wire. A frame is a list of ``Field``; its bytes are the
fields' bytes one after another, so every byte of a vector carries a name and a meaning.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from blake3 import blake3

PREFACE = bytes.fromhex("ff424b500d0a1a0a")
BLOCK_LENGTH = 1 << 20
UNKNOWN_U64 = (1 << 64) - 1
UNKNOWN_U32 = (1 << 32) - 1
EMPTY_DIGEST = blake3(b"").digest()

TYPES = {
    "HELLO": 0x81, "AUTH": 0x82, "OPEN": 0x83, "OPENED": 0x84, "BLOCK": 0x85, "PIECE": 0x86, "ACK": 0x87, "CREDIT": 0x88,
    "HAVE": 0x89, "COMMIT": 0x8A, "COMMITTED": 0x8B, "FETCH": 0x8C, "LIST": 0x8D, "REMOVE": 0x8E, "RESULT": 0x8F,
    "CANCEL": 0x90, "PING": 0x91, "ERROR": 0x92, "FILES": 0x93, "STORED": 0x94, "GOAWAY": 0x13,
}  # fmt: skip

FLAGS = {
    "BLOCK": {"END": 1, "COMMIT": 2},
    "PIECE": {"END": 1, "COMMIT": 2},
    "HAVE": {"MORE": 1},
    "COMMITTED": {"LEFT": 1, "THERE": 2},
    "LIST": {"RECURSIVE": 1, "EXACT": 2, "FOLLOW": 4, "B3SUM": 8},
    "REMOVE": {"RECURSIVE": 1},
    "CANCEL": {"DISCARD": 1},
    "PING": {"ANSWER": 1},
    "FILES": {"LAST": 1, "WANTED": 2},
    "STORED": {"LAST": 1},
}

# field:type. A bare number is that many raw bytes; "str" is length u16 + UTF-8; "digest?" is there iff flag END is set;
# u64? and u32? may be unknown, written as all ones. TLVs may follow every layout.
LAYOUTS = {
    "HELLO": "version_lowest:u16 version_highest:u16 head_length_max:u16 piece_length_max:u32 streams_max:u32 "
    "connection_allowance:u64 stream_allowance:u64 undurable_max:u64 features:u64 agent:str",
    "AUTH": "scheme:u8 device:16 credential:str",
    "OPEN": "sourceid:16 attempt:u64 filesize:u64? blocknum:u32? priority:u8 if_exists:u8 filename:str filetype:str",
    "OPENED": "sourceid:16 file_id:16 attempt:u64 position:u64 incarnation:u64 expires_ms:u64? held:runs "
    "prefixes:prefixes",
    "BLOCK": "sourceid:16 filesize:u64? blocknum:u32? blockno:u32 position:u64 filename:str filetype:str digest:digest?",
    "PIECE": "position:u64 digest:digest?",
    "ACK": "position:u64 held:runs",
    "CREDIT": "allowance:u64 received:u64",
    "HAVE": "digests:digests",
    "COMMIT": "sourceid:16 root:32 filesize:u64 blocknum:u32",
    "COMMITTED": "sourceid:16 file_id:16 root:32 filesize:u64 stored_as:str",
    "FETCH": "file_id:16 first:u64 length:u64? version:16 priority:u8 held:runs prefixes:prefixes filename:str",
    "LIST": "kind:u8 limit:u16 name:str cursor:str",
    "REMOVE": "kind:u8 id:16 filename:str",
    "RESULT": "kind:u8 items:items cursor:str",
    "CANCEL": "reason:u16 text:str",
    "PING": "opaque:8 next_s:u32",
    "ERROR": "code:u16 scope:u8 retryable:u8 retry_after_ms:u32 blockno:u32? current:u64? text:str",
    "GOAWAY": "code:u16 grace_ms:u32 retry_after_ms:u32 text:str",
    "FILES": "number:u32 if_exists:u8 folders:strings filetypes:strings files:records names:names",
    "STORED": "number:u32 statuses:statuses outcomes:outcomes",
}

RECORD_LAYOUT = (
    "sourceid:16 digest:32 filesize:u32 mtime_ns:i64 mode:u16 folder:u8 filetype:u8 name_length:u8"
)
"""A record of FILES; ``name_length`` is that of the name in the same place of ``names``."""

OUTCOME_LAYOUTS = {
    **dict.fromkeys((1, 2, 3), "file_id:16 root:32 filesize:u64 stored_as:str"),
    4: "code:u16 retryable:u8 retry_after_ms:u32 current:u64? text:str",
}
"""An outcome in STORED, by its status."""

ITEM_LAYOUTS = {
    0: "principal:16 expires_ms:u64? server_time_ms:u64 quota:u64? used:u64? scopes:u32 name:str",
    1: "kind:u8 filesize:u64 mtime_ns:i64 mode:u32 file_id:16 version:16 filename:str filetype:str",
    2: "sourceid:16 file_id:16 filesize:u64? blocknum:u32? position:u64 held_count:u32 expires_ms:u64? "
    "filename:str filetype:str",
    3: "sourceid:16 file_id:16 root:32 filesize:u64 stored_as:str",
}

GROUP_LAYOUT = "reason:u8 count:u32 names:strings"
"""A group in the value of LEFT_OUT."""

TLVS = {
    "MTIME": (1, "i64"), "MODE": (2, "u32"), "B3SUM": (3, "32"), "ROOT": (4, "32"), "HELD_ROOT": (5, "32"),
    "IDS": (6, "ids"), "VERSION": (7, "16"), "FILE_ID": (8, "16"), "PRIORITY": (9, "u8"), "IF_EXISTS": (10, "u8"),
    "LEFT_OUT": (12, "left_out"),
}  # fmt: skip

_STRUCT = {"u8": ">B", "u16": ">H", "u32": ">I", "u64": ">Q", "i64": ">q"}


class Field(NamedTuple):
    """Some bytes of a frame, what they are called and what they mean."""

    name: str
    raw: bytes
    meaning: str


class Frame(NamedTuple):
    """A frame with everything a vector says of it."""

    message: str
    stream: int
    flags: list[str]
    values: dict[str, Any]
    tlvs: dict[str, Any]
    fields: list[Field]
    payload: bytes

    @property
    def raw(self) -> bytes:
        """Header, head and payload."""
        return join(self.fields) + self.payload


def join(fields: Iterable[Field]) -> bytes:
    """The bytes of some fields."""
    return b"".join(field.raw for field in fields)


def root_of(digests: Sequence[bytes]) -> bytes:
    """The root: BLAKE3 of nothing, the only digest, or BLAKE3 over all of them."""
    return digests[0] if len(digests) == 1 else blake3(b"".join(digests)).digest()


def pattern(length: int) -> bytes:
    """The file content the vectors use: byte i is i mod 251."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def _number(name: str, kind: str, value: int | None) -> Field:
    if value is None:
        unknown = UNKNOWN_U64 if kind.startswith("u64") else UNKNOWN_U32
        return Field(name, struct.pack(_STRUCT[kind.rstrip("?")], unknown), "all ones: none or unknown")
    return Field(name, struct.pack(_STRUCT[kind.rstrip("?")], value), str(value))


def _string(name: str, value: str | bytes) -> list[Field]:
    raw = value.encode() if isinstance(value, str) else value
    shown = value if isinstance(value, str) else "not UTF-8"
    return [Field(f"{name} length", struct.pack(">H", len(raw)), str(len(raw)))] + (
        [Field(name, raw, shown)] if raw else []
    )


def _pairs(name: str, value: Sequence[tuple[int, int]], second: str) -> list[Field]:
    fields = [Field(f"{name} count", struct.pack(">H", len(value)), str(len(value)))]
    for first, other in value:
        fields.append(Field(name, struct.pack(">II", first, other), f"from block {first}, {second} {other}"))
    return fields


def _digests(name: str, value: Sequence[tuple[int, bytes]]) -> list[Field]:
    fields = [Field(f"{name} count", struct.pack(">H", len(value)), str(len(value)))]
    for blockno, digest in value:
        fields.append(Field("blockno", struct.pack(">I", blockno), str(blockno)))
        fields.append(Field("digest", digest, f"of block {blockno}"))
    return fields


def _items(kind: int, value: Sequence[Mapping[str, Any]]) -> list[Field]:
    fields = [Field("item count", struct.pack(">H", len(value)), str(len(value)))]
    for item in value:
        inner = _layout(ITEM_LAYOUTS[kind], item, False) + tlv_fields(item.get("tlvs", {}))
        fields.append(Field("item length", struct.pack(">H", len(join(inner))), str(len(join(inner)))))
        fields += inner
    return fields


def _field(name: str, kind: str, value: Any, values: Mapping[str, Any], end: bool) -> list[Field]:
    if kind.rstrip("?") in _STRUCT:
        return [_number(name, kind, value)]
    if kind.isdigit():
        assert len(value) == int(kind), (name, value)
        return [Field(name, value, "zeros" if not any(value) else f"{kind} bytes")]
    if kind == "digest?":
        return [Field(name, value, "BLAKE3 of the block")] if end else []
    if kind == "str":
        return _string(name, value)
    if kind == "strings":
        count = Field(f"{name} count", struct.pack(">H", len(value)), str(len(value)))
        return [count, *(part for one in value for part in _string(name, one))]
    if kind == "runs":
        return _pairs(name, value, "count")
    if kind == "prefixes":
        return _pairs(name, value, "bytes")
    if kind == "digests":
        return _digests(name, value)
    if kind == "records":
        return _records(value, values["names"])
    if kind == "names":
        return [Field("name", one.encode() if isinstance(one, str) else one, str(one)) for one in value]
    if kind == "statuses":
        count = Field(f"{name} count", struct.pack(">H", len(value)), str(len(value)))
        return [count] + ([Field(name, bytes(value), " ".join(map(str, value)))] if value else [])
    if kind == "outcomes":
        return _outcomes([status for status in values["statuses"] if status], value)
    assert kind == "items"
    return _items(values["kind"], value)


def _records(value: Sequence[Mapping[str, Any]], names: Sequence[str | bytes]) -> list[Field]:
    fields = [Field("file count", struct.pack(">H", len(value)), str(len(value)))]
    for record, name in zip(value, names, strict=True):
        length = len(name.encode() if isinstance(name, str) else name)
        fields += _layout(RECORD_LAYOUT, {"name_length": length, **record}, False)
    return fields


def _outcomes(statuses: Sequence[int], value: Sequence[Mapping[str, Any]]) -> list[Field]:
    fields = [Field("outcome count", struct.pack(">H", len(value)), str(len(value)))]
    for status, item in zip(statuses, value, strict=True):
        inner = _layout(OUTCOME_LAYOUTS[status], item, False) + tlv_fields(item.get("tlvs", {}))
        fields.append(Field("outcome length", struct.pack(">H", len(join(inner))), str(len(join(inner)))))
        fields += inner
    return fields


def _layout(layout: str, values: Mapping[str, Any], end: bool) -> list[Field]:
    fields: list[Field] = []
    for part in layout.split():
        name, kind = part.split(":")
        fields += _field(name, kind, values.get(name), values, end)
    return fields


def tlv_fields(tlvs: Mapping[str, Any]) -> list[Field]:
    """TLVs in the order given; a name that is a number stands for an unknown type with raw bytes."""
    fields: list[Field] = []
    for name, value in tlvs.items():
        number, kind = TLVS.get(name) or (int(name), "raw")
        if kind == "raw":
            raw, meaning = value, f"{len(value)} bytes nobody knows"
        elif kind == "ids":
            raw, meaning = b"".join(value), f"{len(value)} sourceids"
        elif kind == "left_out":
            raw, meaning = b"".join(map(_group, value)), f"{len(value)} groups"
        else:
            [only] = _field(name, kind, value, {}, False)
            raw, meaning = only.raw, only.meaning
        fields.append(
            Field("TLV type", struct.pack(">H", number), f"{number} {name if kind != 'raw' else ''}".strip())
        )
        fields.append(Field("TLV length", struct.pack(">H", len(raw)), str(len(raw))))
        if raw:
            fields.append(Field(f"TLV {name}", raw, meaning))
    return fields


def _group(group: Mapping[str, Any]) -> bytes:
    """The bytes of one group of LEFT_OUT."""
    return join(_layout(GROUP_LAYOUT, group, False))


def flag_names(message: str, bits: int) -> str:
    """Flag bits in words."""
    known = FLAGS.get(message, {})
    names = [name for name, bit in known.items() if bits & bit]
    rest = bits & ~sum(known.values())
    return " ".join(names + ([f"{rest:#06x}"] if rest else [])) or "none"


def header_fields(
    type_: int, stream: int, head: bytes, payload_length: int = 0, *, flags: int = 0, **wrong: int
) -> list[Field]:
    """The 16 bytes before a head. ``wrong`` overrides length, head_length or check (xor) to make a bad frame."""
    length = wrong.get("length", len(head) + payload_length)
    head_length = wrong.get("head_length", len(head))
    first = struct.pack(">I", length)[1:] + struct.pack(">BHHI", type_, flags, head_length, stream)
    check = zlib.crc32(head, zlib.crc32(first)) ^ wrong.get("check", 0)
    name = {number: name for name, number in TYPES.items()}
    return [
        Field("length", first[0:3], f"{length} = head {head_length} + payload {length - head_length}"),
        Field("type", first[3:4], name.get(type_, "a type nobody knows")),
        Field("flags", first[4:6], flag_names(name.get(type_, ""), flags)),
        Field("head_length", first[6:8], str(head_length)),
        Field("stream", first[8:12], str(stream)),
        Field("check", struct.pack(">I", check), "CRC-32 of the 12 bytes before it and the head"),
    ]


def frame(
    message: str,
    stream: int,
    *,
    flags: Sequence[str] = (),
    extra_flags: int = 0,
    tlvs: Mapping[str, Any] | None = None,
    payload: bytes = b"",
    **values: Any,
) -> Frame:
    """Encode one frame of a known message from its values."""
    bits = extra_flags
    for flag in flags:
        bits |= FLAGS[message][flag]
    head = _layout(LAYOUTS[message], values, "END" in flags) + tlv_fields(tlvs or {})
    fields = header_fields(TYPES[message], stream, join(head), len(payload), flags=bits) + head
    return Frame(message, stream, list(flags), dict(values), dict(tlvs or {}), fields, payload)


def raw_frame(
    type_: int, stream: int, head: bytes, payload: bytes = b"", *, flags: int = 0, **wrong: int
) -> bytes:
    """Encode a frame from parts, with header fields made wrong on purpose; the check fits whatever stands there."""
    return join(header_fields(type_, stream, head, len(payload), flags=flags, **wrong)) + head + payload

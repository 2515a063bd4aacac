"""What the bytes mean: the frame header, the messages as dataclasses, and how each is encoded and decoded.

    preface (8 bytes), then frames:  header (16) · head · payload
    header = length u24 (head and payload) · type u8 · flags u16 · head_length u16 · stream u32 · check u32

Rules:
    1. A message validates itself: relations when it is made, ranges when it is written or read. One that was made
       wrongly by us is ``LocalProtocolError``; bytes that are wrong are ``MalformedFrame`` (the connection ends);
       facts of a file that do not fit each other are ``BadFacts`` and things that must be understood and are not are
       ``Unsupported`` (the stream ends).
    2. Only BLOCK, PIECE and FILES have a payload, and it is never looked at here.
    3. Must-understand is the top bit of a message type or TLV type, and flag bits 12 to 15. Everything else that is
       unknown is skipped; reserved values (GREASE) are sent under test so that nobody forgets to skip.
    4. Text that is no UTF-8 is kept as lone surrogates: names are judged by ``SafeName``, which can say what is wrong.

Spec: BP1-FRM, BP1-EXT, and the chapter of each message.
"""

from __future__ import annotations

import random
import struct
from dataclasses import Field, dataclass, field, fields, replace
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, NamedTuple
from zlib import crc32

from .common import head_layout as lay
from .common.blocks import BLOCK_LENGTH, Run, blocknum_of
from .common.file_table import FILES_MAX, FileTable, Strings, Table
from .common.head_layout import (
    DIGEST,
    I64,
    ID,
    OPAQUE,
    PREFIXES,
    RUNS,
    U8,
    U16,
    U32,
    U64,
    Layout,
    String,
    Tlv,
)
from .errors import BadFacts, LocalProtocolError, MalformedFrame, Scope, Unsupported

PREFACE = b"\xffBKP\r\n\x1a\n"
"""The first bytes of both directions (BP1-HEL-001): 0xFF begins no text, CR LF SUB LF shows text-mode damage."""

VERSION = 1
"""The only version there is (BP1-HEL-006)."""

HEADER_LENGTH = 16
"""Bytes of a frame header (BP1-FRM-002)."""

HEAD_LENGTH_MAX = 0xFFFF
"""Greatest head there can be (u16)."""

HEAD_LENGTH_EARLY = 4096
"""Greatest head before HELLO (BP1-FRM-006)."""

PIECE_LENGTH_EARLY = 65_536
"""Greatest payload of a frame before HELLO, and the least a HELLO may name (BP1-FRM-007)."""

PIECE_LENGTH_MAX = BLOCK_LENGTH
"""Greatest payload of a frame: one block."""

UNKNOWN_LENGTH_MAX = 65_536
"""Greatest length of a frame of a type we do not know (BP1-FRM-008)."""

CONNECTION_ALLOWANCE_EARLY = 1 << 20
"""Payload bytes a connection may carry before HELLO (BP1-CRD-002)."""

STREAM_ALLOWANCE_EARLY = 1 << 18
"""Payload bytes a stream may carry before HELLO (BP1-CRD-002)."""

STREAMS_EARLY = 256
"""Streams a side may have open before HELLO (BP1-STR-009)."""

TEXT_LENGTH_MAX = 1024
"""Bytes of a ``text`` that are written; longer ones are cut, since text decides nothing (BP1-ERR-003)."""

AGENT_LENGTH_MAX = 255
"""Bytes of an ``agent`` that are written (BP1-HEL-011)."""

FILETYPE_LENGTH_MAX = 255
"""Bytes of a filetype (BP1-BLK-021)."""

CURSOR_LENGTH_MAX = 1100
"""Bytes of a cursor (BP1-LST-003): room for the longest name and a little of the server's own."""

CREDENTIAL_LENGTH_MAX = 512
"""Bytes of a credential that are looked at; a longer one is none (BP1-AUT-006)."""

FEATURE_AUTH = 0x1
"""In HELLO.features: the server understands AUTH (BP1-AUT-001)."""

FEATURE_AUTH_REQUIRED = 0x2
"""In HELLO.features: without AUTH nothing is answered, and the early limits hold until it (BP1-AUT-004, 005)."""

FEATURE_IF_EXISTS = 0x4
"""In HELLO.features: the server compares with what is there, and knows skip and update (BP1-COM-021 to 027)."""

FEATURE_FILES = 0x8
"""In HELLO.features: the speaker understands FILES and STORED (BP1-FIL-001)."""

FEATURE_WANTED = 0x10
"""In HELLO.features: the speaker understands FILES with WANTED (BP1-FIL-017)."""

FRAMES_MAX = 64
"""FILES that a sender may have said on a connection and that are not answered (BP1-FIL-010)."""

WANTED_MAX = 8
"""Streams begun by FILES with WANTED that a side may have on a connection (BP1-FIL-023)."""

IF_EXISTS_MAX = 4
"""The greatest ``if_exists`` that has a meaning; 3 and 4 only where the server said ``FEATURE_IF_EXISTS``."""

LIST_LIMIT_DEFAULT = 1000
"""Items a LIST asks for where its caller does not say."""

assert PIECE_LENGTH_EARLY <= STREAM_ALLOWANCE_EARLY <= CONNECTION_ALLOWANCE_EARLY
assert HEAD_LENGTH_EARLY <= HEAD_LENGTH_MAX < UNKNOWN_LENGTH_MAX <= PIECE_LENGTH_MAX
assert HEAD_LENGTH_MAX + PIECE_LENGTH_MAX < 1 << 24

END = 0x0001
COMMIT = 0x0002
CRITICAL_TYPE = 0x80
CRITICAL_FLAGS = 0xF000
GREASE_TYPES = (27, 58, 89, 120)
GREASE_FLAG = 0x0800
GREASE_TLVS = tuple(range(27, lay.CRITICAL_TLV, 31))
"""Values that no version will ever give a meaning to (BP1-EXT-006)."""

ZERO_ID = bytes(16)


class Type(IntEnum):
    """The ``type`` of a frame (u8)."""

    GOAWAY = 0x13
    HELLO = 0x81
    AUTH = 0x82
    OPEN = 0x83
    OPENED = 0x84
    BLOCK = 0x85
    PIECE = 0x86
    ACK = 0x87
    CREDIT = 0x88
    HAVE = 0x89
    COMMIT = 0x8A
    COMMITTED = 0x8B
    FETCH = 0x8C
    LIST = 0x8D
    REMOVE = 0x8E
    RESULT = 0x8F
    CANCEL = 0x90
    PING = 0x91
    ERROR = 0x92
    FILES = 0x93
    STORED = 0x94


class Priority(IntEnum):
    """How much of the line a transfer gets: 16:4:1 by bytes."""

    INTERACTIVE = 0
    NORMAL = 1
    BULK = 2


class ListKind(IntEnum):
    """What LIST lists; ``RESULT.kind`` repeats it."""

    FILES = 1
    UPLOADS = 2
    RECEIPTS = 3


class RemoveKind(IntEnum):
    """What REMOVE removes; the numbers agree with ``ListKind``."""

    FILE = 1
    UPLOAD = 2


class EntryKind(IntEnum):
    """What a ``FileItem`` is."""

    FILE = 1
    FOLDER = 2


TLV_MTIME = Tlv(1, "q")
TLV_MODE = Tlv(2, "I", mask=0o777)
TLV_B3SUM = Tlv(3, "32s")
TLV_ROOT = Tlv(4, "32s")
TLV_HELD_ROOT = Tlv(5, "32s")
TLV_IDS = Tlv(6, "16s", many=True)
TLV_VERSION = Tlv(7, "16s")
TLV_FILE_ID = Tlv(8, "16s")
TLV_PRIORITY = Tlv(9, "B")
TLV_IF_EXISTS = Tlv(10, "B")

_TEXT = String(clip=TEXT_LENGTH_MAX)
_STRING = String()
_DIGEST = lay.Raw(32)


def _fixed(**fields: str) -> dict[str, str]:
    """A fixed part: its fields, in order."""
    return fields


def _judge_facts(filesize: int | None, blocknum: int | None, filetype: str = "") -> None:
    """filesize and blocknum are both unknown or fit each other, and the filetype is ASCII (BP1-BLK-002, 003, 021)."""
    if filesize is None or blocknum is None:
        if filesize is not blocknum:
            raise BadFacts("filesize and blocknum are unknown together or not at all")
    elif blocknum != -(-filesize // BLOCK_LENGTH):
        raise BadFacts(f"a file of {filesize} bytes has {blocknum_of(filesize)} blocks, not {blocknum}")
    judge_filetype(filetype)


def judge_filetype(filetype: str) -> None:
    """Raise BadFacts if it is no filetype (BP1-BLK-021)."""
    if not (filetype.isascii() and filetype.isprintable()) or len(filetype) > FILETYPE_LENGTH_MAX:
        raise BadFacts(f"a filetype is at most {FILETYPE_LENGTH_MAX} characters of printable ASCII")


def _judge_choices(priority: int | None, if_exists: int | None = None) -> None:
    """priority is 0 to 2; an if_exists beyond 4 is a later version's and must be understood."""
    if priority is not None and not 0 <= priority <= Priority.BULK:
        raise LocalProtocolError(f"priority is {priority}")
    if if_exists is not None and not 0 <= if_exists <= IF_EXISTS_MAX:
        raise Unsupported(f"if_exists is {if_exists}")


class Value:
    """What messages and items have in common: two are equal if they are of one class and their fields are equal.

    Generated for each class by ``dataclass``, this took two fifths of the time that importing this module takes.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, field.name) == getattr(other, field.name) for field in fields(self))

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __repr__(self) -> str:
        shown = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr]
        return f"{type(self).__qualname__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Hello(Value):
    """First frame of both directions: what this side takes; HELLO never names less than the early limits.

    Attributes:
        version_lowest, version_highest: versions this side speaks.
        head_length_max: greatest head in bytes, 4,096 to 65,535.
        piece_length_max: greatest payload of a frame in bytes, 65,536 to 1,048,576.
        streams_max: streams the other side may have open at once, at least 256.
        connection_allowance, stream_allowance: payload bytes, totals as in CREDIT.
        undurable_max: bytes of an upload that may be sent and not yet acknowledged.
        features: bits, see ``FEATURE_AUTH``, ``FEATURE_AUTH_REQUIRED``, ``FEATURE_IF_EXISTS`` and ``FEATURE_FILES``.
        agent: name and version of the software, for people.
    """

    TYPE: ClassVar[Type] = Type.HELLO
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(
            version_lowest=U16, version_highest=U16, head_length_max=U16, piece_length_max=U32, streams_max=U32,
            connection_allowance=U64, stream_allowance=U64, undurable_max=U64, features=U64,
        ),
        {"agent": String(clip=AGENT_LENGTH_MAX)},
    )  # fmt: skip

    version_lowest: int = VERSION
    version_highest: int = VERSION
    head_length_max: int = HEAD_LENGTH_MAX
    piece_length_max: int = PIECE_LENGTH_MAX
    streams_max: int = 2048
    connection_allowance: int = 16 << 20
    stream_allowance: int = 4 << 20
    undurable_max: int = 64 << 20
    features: int = 0
    agent: str = ""

    def __post_init__(self) -> None:
        if self.version_lowest > self.version_highest:
            raise LocalProtocolError(f"HELLO: versions {self.version_lowest} to {self.version_highest}")
        if not self.version_lowest <= VERSION <= self.version_highest:
            return  # another version may set other limits; the session refuses it for its version
        for name, least in (
            ("head_length_max", HEAD_LENGTH_EARLY),
            ("piece_length_max", PIECE_LENGTH_EARLY),
            ("streams_max", STREAMS_EARLY),
            ("connection_allowance", CONNECTION_ALLOWANCE_EARLY),
            ("stream_allowance", STREAM_ALLOWANCE_EARLY),
        ):
            if getattr(self, name) < least:
                raise LocalProtocolError(f"HELLO: {name} is {getattr(self, name)}, less than {least}")
        if self.piece_length_max > PIECE_LENGTH_MAX:
            raise LocalProtocolError(f"HELLO: piece_length_max is {self.piece_length_max}")


class Scheme(IntEnum):
    """What kind of credential AUTH carries."""

    TOKEN = 1


class Scopes(IntFlag):
    """What a principal may do."""

    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Auth(Value):
    """Who is asking.

    Attributes:
        credential: for scheme 1 the token as text; kept out of every ``repr``.
        scheme: see ``Scheme``; others are refused, not malformed.
        device: 16 bytes that name the device; zeros: not said.

    Spec: BP1-AUT-002, BP1-AUT-012.
    """

    TYPE: ClassVar[Type] = Type.AUTH
    LAYOUT: ClassVar[Layout] = Layout(_fixed(scheme=U8, device=ID), {"credential": _STRING})

    credential: str = field(repr=False)
    scheme: int = Scheme.TOKEN
    device: bytes = ZERO_ID


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Open(Value):
    """The sender's resume handshake, and the answer to FETCH.

    Attributes:
        sourceid: 16 bytes that name the upload; zeros ask for one.
        attempt: the greater one owns the upload.
        filesize, blocknum: of the whole file; both None while unknown.
        priority: see ``Priority``.
        if_exists: 0 keep both, 1 refuse, 2 replace, 3 skip, 4 update.
        mtime_ns: nanoseconds since 1970. mode: permission bits. b3sum, root: 32 bytes if known already.
        version, file_id: 16 bytes each, in the answer to FETCH.
    """

    TYPE: ClassVar[Type] = Type.OPEN
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(sourceid=ID, attempt=U64, filesize=U64, blocknum=U32, priority=U8, if_exists=U8),
        {"filename": _STRING, "filetype": _STRING},
        unknown=("filesize", "blocknum"),
        tlvs={
            "mtime_ns": TLV_MTIME, "mode": TLV_MODE, "b3sum": TLV_B3SUM, "root": TLV_ROOT, "version": TLV_VERSION,
            "file_id": TLV_FILE_ID,
        },
    )  # fmt: skip

    sourceid: bytes
    attempt: int
    filesize: int | None
    blocknum: int | None
    filename: str
    filetype: str
    priority: int = Priority.NORMAL
    if_exists: int = 0
    mtime_ns: int | None = None
    mode: int | None = None
    b3sum: bytes | None = None
    root: bytes | None = None
    version: bytes | None = None
    file_id: bytes | None = None

    def __post_init__(self) -> None:
        _judge_facts(self.filesize, self.blocknum, self.filetype)
        _judge_choices(self.priority, self.if_exists)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Opened(Value):
    """The receiver's answer to OPEN and HAVE: what it has.

    Attributes:
        file_id: final from now on.
        position: bytes held without a gap from the start.
        incarnation: of the store; the position never goes down within one.
        expires_ms: Unix milliseconds, or None.
        held: runs of blocks that are durable; a lower bound.
        prefixes: (blockno, bytes) of blocks that are held in part.
        held_root: BLAKE3 over the digests of the held blocks in order.
    """

    TYPE: ClassVar[Type] = Type.OPENED
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(sourceid=ID, file_id=ID, attempt=U64, position=U64, incarnation=U64, expires_ms=U64),
        {"held": RUNS, "prefixes": PREFIXES},
        unknown=("expires_ms",),
        tlvs={"held_root": TLV_HELD_ROOT},
    )

    sourceid: bytes
    file_id: bytes
    attempt: int
    position: int
    incarnation: int
    expires_ms: int | None
    held: tuple[Run, ...] = ()
    prefixes: tuple[tuple[int, int], ...] = ()
    held_root: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Block(Value):
    """Starts a block and says what it is; the payload begins at ``position``.

    Attributes:
        position: byte offset in the file, inside the block or at its end.
        digest: BLAKE3 of the block if this frame also ends it (flag END), else None.
        commit: the file is complete with this block (only where the stream had no OPEN, and only with ``digest``).
        The others as in ``Open``.
    """

    TYPE: ClassVar[Type] = Type.BLOCK
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(sourceid=ID, filesize=U64, blocknum=U32, blockno=U32, position=U64),
        {"filename": _STRING, "filetype": _STRING, "digest": _DIGEST},
        unknown=("filesize", "blocknum"),
        present={"digest": END},
        flags={"commit": COMMIT},
        tlvs={"mtime_ns": TLV_MTIME, "mode": TLV_MODE, "priority": TLV_PRIORITY, "if_exists": TLV_IF_EXISTS},
    )

    sourceid: bytes
    filesize: int | None
    blocknum: int | None
    blockno: int
    position: int
    filename: str
    filetype: str
    digest: bytes | None = None
    commit: bool = False
    mtime_ns: int | None = None
    mode: int | None = None
    priority: int | None = None
    if_exists: int | None = None

    def __post_init__(self) -> None:
        filesize, blocknum, blockno = self.filesize, self.blocknum, self.blockno
        _judge_facts(filesize, blocknum, self.filetype)
        if blocknum is not None and blockno >= blocknum and (blockno or blocknum):
            raise BadFacts(f"blockno {blockno} of {blocknum} blocks")
        if not blockno * BLOCK_LENGTH <= self.position <= self.end:
            raise BadFacts(f"position {self.position} is outside block {blockno}")
        if self.commit and self.digest is None:
            raise LocalProtocolError("COMMIT without END")
        if self.priority is not None or self.if_exists is not None:
            _judge_choices(self.priority, self.if_exists)

    @property
    def end(self) -> int:
        """The byte offset where this block ends at the latest."""
        end = (self.blockno + 1) * BLOCK_LENGTH
        return end if self.filesize is None or self.filesize > end else self.filesize


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Piece(Value):
    """Continues the stream's block at ``position``; ``digest`` and ``commit`` as in ``Block``."""

    TYPE: ClassVar[Type] = Type.PIECE
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(position=U64), {"digest": _DIGEST}, present={"digest": END}, flags={"commit": COMMIT}
    )

    position: int
    digest: bytes | None = None
    commit: bool = False

    def __post_init__(self) -> None:
        if self.commit and self.digest is None:
            raise LocalProtocolError("COMMIT without END")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ack(Value):
    """What is durable: bytes without a gap from the start, and runs of blocks."""

    TYPE: ClassVar[Type] = Type.ACK
    LAYOUT: ClassVar[Layout] = Layout(_fixed(position=U64), {"held": RUNS})

    position: int
    held: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Credit(Value):
    """Totals of payload bytes: how many may be sent, and how many have come; stream 0 is the connection."""

    TYPE: ClassVar[Type] = Type.CREDIT
    LAYOUT: ClassVar[Layout] = Layout(_fixed(allowance=U64, received=U64), tlvs={"priority": TLV_PRIORITY})

    allowance: int
    received: int
    priority: int | None = None

    def __post_init__(self) -> None:
        _judge_choices(self.priority)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Have(Value):
    """A page of (blockno, digest) that the sender has; ``more`` pages follow."""

    TYPE: ClassVar[Type] = Type.HAVE
    LAYOUT: ClassVar[Layout] = Layout(_fixed(), {"digests": lay.DIGESTS}, flags={"more": 0x0001})

    digests: tuple[tuple[int, bytes], ...]
    more: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Commit(Value):
    """The sender has nothing more: the file's final facts and its root (32 bytes)."""

    TYPE: ClassVar[Type] = Type.COMMIT
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(sourceid=ID, root=DIGEST, filesize=U64, blocknum=U32),
        tlvs={"mtime_ns": TLV_MTIME, "mode": TLV_MODE, "b3sum": TLV_B3SUM},
    )

    sourceid: bytes
    root: bytes
    filesize: int
    blocknum: int
    mtime_ns: int | None = None
    mode: int | None = None
    b3sum: bytes | None = None

    def __post_init__(self) -> None:
        _judge_facts(self.filesize, self.blocknum)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Committed(Value):
    """The file is there, durable, under ``stored_as``.

    Attributes:
        left: what had the name was left there (skip, update): the other fields are of that, zeros where not known.
        there: the file was there already, with these bytes; nothing was stored.
    """

    TYPE: ClassVar[Type] = Type.COMMITTED
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(sourceid=ID, file_id=ID, root=DIGEST, filesize=U64),
        {"stored_as": _STRING},
        flags={"left": 0x0001, "there": 0x0002},
        tlvs={"b3sum": TLV_B3SUM},
    )

    sourceid: bytes
    file_id: bytes
    root: bytes
    filesize: int
    stored_as: str
    b3sum: bytes | None = None
    left: bool = False
    there: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Fetch(Value):
    """The receiver asks for a file, and says what it has of it.

    Attributes:
        file_id: zeros: by name.
        first, length: the bytes wanted; None: to the end.
        version: zeros: any.
        held, prefixes: as in ``Opened``.
    """

    TYPE: ClassVar[Type] = Type.FETCH
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(file_id=ID, first=U64, length=U64, version=ID, priority=U8),
        {"held": RUNS, "prefixes": PREFIXES, "filename": _STRING},
        unknown=("length",),
    )

    filename: str
    file_id: bytes = ZERO_ID
    first: int = 0
    length: int | None = None
    version: bytes = ZERO_ID
    priority: int = Priority.NORMAL
    held: tuple[Run, ...] = ()
    prefixes: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        _judge_choices(self.priority)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class List(Value):
    """Asks for one page of what there is.

    Attributes:
        kind: see ``ListKind``.
        name: a folder, or with ``exact`` one entry.
        cursor: where the page before ended; empty: from the start.
        limit: greatest number of items, at least 1.
        b3sum: with ``exact``, compute it and wait.
        ids: sourceids, for receipts.
        if_exists: only receipts of uploads with this rule; None: of any.
    """

    TYPE: ClassVar[Type] = Type.LIST
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(kind=U8, limit=U16),
        {"name": _STRING, "cursor": _STRING},
        flags={"recursive": 0x0001, "exact": 0x0002, "follow": 0x0004, "b3sum": 0x0008},
        tlvs={"ids": TLV_IDS, "if_exists": TLV_IF_EXISTS},
    )

    kind: int
    name: str = ""
    cursor: str = ""
    limit: int = LIST_LIMIT_DEFAULT
    recursive: bool = False
    exact: bool = False
    follow: bool = False
    b3sum: bool = False
    ids: tuple[bytes, ...] = ()
    if_exists: int | None = None

    def __post_init__(self) -> None:
        _judge_choices(None, self.if_exists)
        if not 1 <= self.kind <= 3:
            raise Unsupported(f"LIST of kind {self.kind}")
        if self.limit < 1:
            raise LocalProtocolError("LIST: limit is 0")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Remove(Value):
    """Removes a file by name or id, or an unfinished upload by sourceid."""

    TYPE: ClassVar[Type] = Type.REMOVE
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(kind=U8, id=ID), {"filename": _STRING}, flags={"recursive": 0x0001}
    )

    kind: int
    id: bytes = ZERO_ID
    filename: str = ""
    recursive: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.kind <= 2:
            raise Unsupported(f"REMOVE of kind {self.kind}")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FileItem(Value):
    """A finished file or a folder; ``root`` and ``b3sum`` where they are known."""

    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(kind=U8, filesize=U64, mtime_ns=I64, mode=U32, file_id=ID, version=ID),
        {"filename": _STRING, "filetype": _STRING},
        tlvs={"root": TLV_ROOT, "b3sum": TLV_B3SUM},
    )

    kind: int
    filesize: int
    mtime_ns: int
    mode: int
    file_id: bytes
    version: bytes
    filename: str
    filetype: str
    root: bytes | None = None
    b3sum: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class UploadItem(Value):
    """An unfinished upload; ``held_count`` blocks are durable."""

    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(
            sourceid=ID, file_id=ID, filesize=U64, blocknum=U32, position=U64, held_count=U32, expires_ms=U64
        ),
        {"filename": _STRING, "filetype": _STRING},
        unknown=("filesize", "blocknum", "expires_ms"),
    )  # fmt: skip

    sourceid: bytes
    file_id: bytes
    filesize: int | None
    blocknum: int | None
    position: int
    held_count: int
    expires_ms: int | None
    filename: str
    filetype: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ReceiptItem(Value):
    """What COMMITTED said."""

    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(sourceid=ID, file_id=ID, root=DIGEST, filesize=U64),
        {"stored_as": _STRING},
        tlvs={"b3sum": TLV_B3SUM},
    )

    sourceid: bytes
    file_id: bytes
    root: bytes
    filesize: int
    stored_as: str
    b3sum: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PrincipalItem(Value):
    """The answer to AUTH.

    Attributes:
        principal: 16 bytes.
        expires_ms: Unix milliseconds at which the credential ends, or None.
        server_time_ms: what the server's clock said.
        quota, used: bytes, or None where there is none and where it is not known.
        scopes: bits of ``Scopes``; others are ignored.
        name: for people.
    """

    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(principal=ID, expires_ms=U64, server_time_ms=U64, quota=U64, used=U64, scopes=U32),
        {"name": _STRING},
        unknown=("expires_ms", "quota", "used"),
    )

    principal: bytes
    expires_ms: int | None
    server_time_ms: int
    quota: int | None
    used: int | None
    scopes: int
    name: str


Item = FileItem | UploadItem | ReceiptItem | PrincipalItem

PRINCIPAL_KIND = 0
"""``RESULT.kind`` of the answer to AUTH."""

_ITEM_OF: dict[int, type[Item]] = {
    PRINCIPAL_KIND: PrincipalItem,
    ListKind.FILES: FileItem,
    ListKind.UPLOADS: UploadItem,
    ListKind.RECEIPTS: ReceiptItem,
}
_U16 = struct.Struct(">H")


class _Items:
    """A count (u16), then items, each a length (u16) and a head of its own; ``kind`` says which."""

    def encode(self, value: tuple[Item, ...]) -> bytes:
        heads = [item.LAYOUT.encode(item)[1] for item in value]
        return b"".join([_U16.pack(len(heads)), *(_U16.pack(len(head)) + head for head in heads)])

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[tuple[Item, ...], int]:
        if offset + 2 > len(head):
            raise MalformedFrame("a list runs past its head")
        count = head[offset] << 8 | head[offset + 1]
        offset += 2
        cls = _ITEM_OF.get(values["kind"])
        if cls is None:
            raise Unsupported(f"RESULT of kind {values['kind']}")
        items: list[Item] = []
        for _ in range(count):
            start = offset + 2
            offset = start + int.from_bytes(head[offset:start], "big")
            if start > len(head) or offset > len(head):
                raise MalformedFrame("an item runs past its head")
            items.append(cls(**cls.LAYOUT.decode(0, head[start:offset])))
        return tuple(items), offset


class LeftOutReason(IntEnum):
    """Why a listing passes over what is there (BP1-LST-017)."""

    LINK = 1
    SPECIAL = 2
    NAME = 3
    UNREADABLE = 4


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LeftOut(Value):
    """What a page passed over for one reason: how many, and the names of some, as text for people.

    Attributes:
        reason: see ``LeftOutReason``; a later version may have more.
        count: how many, at most 2^32 − 1.
        names: of the first of them.
    """

    LAYOUT: ClassVar[Layout] = Layout(_fixed(reason=U8, count=U32))

    reason: int
    count: int
    names: tuple[str, ...] = ()


class _LeftOutTlv(Tlv):
    """Groups, each a reason, a count and a list of strings, to the last byte of the value."""

    def encode(self, value: Any) -> bytes:
        """The whole TLV; raises LocalProtocolError or struct.error."""
        raw = b"".join(
            LeftOut.LAYOUT.encode(group)[1]
            + _U16.pack(len(group.names))
            + b"".join([_STRING.encode(name) for name in group.names])
            for group in value
        )
        return _U16.pack(self.number) + _U16.pack(len(raw)) + raw

    def decode(self, raw: bytes) -> Any:
        """The groups; raises MalformedFrame if they do not end with the value."""
        groups: list[LeftOut] = []
        offset = 0
        while offset < len(raw):
            head, offset = raw[offset : offset + 5], offset + 7
            if offset > len(raw):
                raise MalformedFrame("a group of LEFT_OUT runs past its TLV")
            names: list[str] = []
            for _ in range(int.from_bytes(raw[offset - 2 : offset], "big")):
                name, offset = _STRING.decode(raw, offset, {})
                names.append(name)
            groups.append(LeftOut(**LeftOut.LAYOUT.decode(0, head), names=tuple(names)))
        return tuple(groups)


TLV_LEFT_OUT = _LeftOutTlv(12, "")

LEFT_OUT_NAMES_MAX = 32
"""Names in one group (BP1-LST-018)."""
_STORED_LENGTH = 32
"""Bytes of STORED besides statuses and outcomes, and room for what is sent to see whether it is skipped."""
_COUNTS_LENGTH = 4 + 7 * len(LeftOutReason)
"""Bytes of LEFT_OUT with a group for each reason and no names."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Result(Value):
    """The answer to AUTH, LIST and REMOVE: one page; an empty cursor says that it is the last.

    Attributes:
        left_out: what the page of a listing of files passed over, a group for each reason.
    """

    TYPE: ClassVar[Type] = Type.RESULT
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(kind=U8), {"items": _Items(), "cursor": _STRING}, tlvs={"left_out": TLV_LEFT_OUT}
    )

    kind: int
    items: tuple[Item, ...] = ()
    cursor: str = ""
    left_out: tuple[LeftOut, ...] = ()

    def __post_init__(self) -> None:
        cls = _ITEM_OF.get(self.kind)
        if cls is None:
            raise Unsupported(f"RESULT of kind {self.kind}")
        if not all(type(item) is cls for item in self.items):
            raise LocalProtocolError(f"RESULT of kind {self.kind} holds another kind of item")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cancel(Value):
    """The sender stops; ``discard``: what was sent need not be kept."""

    TYPE: ClassVar[Type] = Type.CANCEL
    LAYOUT: ClassVar[Layout] = Layout(_fixed(reason=U16), {"text": _TEXT}, flags={"discard": 0x0001})

    reason: int
    text: str = ""
    discard: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ping(Value):
    """A sign of life; ``next_s``: when the next will be heard, in seconds (0: not said). ``answer`` repeats ``opaque``."""

    TYPE: ClassVar[Type] = Type.PING
    LAYOUT: ClassVar[Layout] = Layout(_fixed(opaque=OPAQUE, next_s=U32), flags={"answer": 0x0001})

    opaque: bytes
    next_s: int
    answer: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Error(Value):
    """Something stopped; ``scope`` says what, ``retryable`` whether again can help, even where the code is unknown.

    Attributes:
        code: a row of the error table.
        scope: 1 block, 2 stream, 3 connection.
        retry_after_ms: milliseconds to wait, 0: no hint.
        blockno: the block it is about, or None.
        current: the value the speaker holds, or None.
    """

    TYPE: ClassVar[Type] = Type.ERROR
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(code=U16, scope=U8, retryable=U8, retry_after_ms=U32, blockno=U32, current=U64),
        {"text": _TEXT},
        unknown=("blockno", "current"),
    )

    code: int
    scope: int
    retryable: bool
    text: str = ""
    retry_after_ms: int = 0
    blockno: int | None = None
    current: int | None = None

    def __post_init__(self) -> None:
        if not Scope.BLOCK <= self.scope <= Scope.CONNECTION:
            raise LocalProtocolError(f"ERROR: scope is {self.scope}")
        object.__setattr__(self, "retryable", bool(self.retryable))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GoAway(Value):
    """The speaker ends the connection in ``grace_ms``; nothing new is begun. Come back after ``retry_after_ms``."""

    TYPE: ClassVar[Type] = Type.GOAWAY
    LAYOUT: ClassVar[Layout] = Layout(_fixed(code=U16, grace_ms=U32, retry_after_ms=U32), {"text": _TEXT})

    code: int
    grace_ms: int
    retry_after_ms: int
    text: str = ""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Files(Value):
    """Whole small files and folders, many at once; their bytes are the payload, in the order of the table.

    Attributes:
        number: of the frame; STORED repeats it.
        folders, filetypes: what the records of ``table`` point at; the folder "" is the served one.
        table: a record of each file, and the last component of its name.
        if_exists: as in ``Open``, for all of them.
        last: nothing more comes on the stream.
        wanted: the speaker asks for these files: there is no payload, and a record's sourceid is the file's version.
    """

    TYPE: ClassVar[Type] = Type.FILES
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(number=U32, if_exists=U8),
        {"folders": Strings(), "filetypes": Strings(), "table": Table()},
        flags={"last": 0x0001, "wanted": 0x0002},
    )

    number: int
    folders: tuple[str, ...] = ()
    filetypes: tuple[str, ...] = ()
    table: FileTable = FileTable()  # noqa: RUF009 - it cannot be changed
    if_exists: int = 0
    last: bool = False
    wanted: bool = False

    def __post_init__(self) -> None:
        _judge_choices(None, self.if_exists)
        if len(self.table.records) > FILES_MAX:
            raise LocalProtocolError(f"FILES with {len(self.table.records)} files; {FILES_MAX} are the most")
        if not self.table.records and (self.wanted or not self.last):
            raise LocalProtocolError("FILES without files, and not the last of a stream")
        self.table.judge(len(self.folders), len(self.filetypes))

    @property
    def payload_length(self) -> int:
        """The bytes of all its files; none where they are only asked for."""
        return 0 if self.wanted else sum([record[2] for record in self.table.records])


class Status(IntEnum):
    """What became of a file of FILES."""

    STORED = 0
    RENAMED = 1
    THERE = 2
    LEFT = 3
    REFUSED = 4


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoredItem(Value):
    """What COMMITTED would say of a file of FILES (status 1 to 3)."""

    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(file_id=ID, root=DIGEST, filesize=U64), {"stored_as": _STRING}, tlvs={"b3sum": TLV_B3SUM}
    )

    file_id: bytes
    root: bytes
    filesize: int
    stored_as: str
    b3sum: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RefusalItem(Value):
    """What ERROR would say of a file of FILES (status 4); the other files of the frame are not concerned."""

    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(code=U16, retryable=U8, retry_after_ms=U32, current=U64), {"text": _TEXT}, unknown=("current",)
    )

    code: int
    retryable: bool
    text: str = ""
    retry_after_ms: int = 0
    current: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "retryable", bool(self.retryable))


OutcomeItem = StoredItem | RefusalItem


def _outcome_classes(statuses: bytes) -> list[type[OutcomeItem]]:
    """Which item belongs to each status that has one; raises Unsupported for a status that is none."""
    if statuses and max(statuses) > Status.REFUSED:
        raise Unsupported(f"the status {max(statuses)} of a file")
    return [RefusalItem if status == Status.REFUSED else StoredItem for status in statuses if status]


class _Statuses:
    """A count (u16) and that many statuses of one byte."""

    def encode(self, value: bytes) -> bytes:
        return _U16.pack(len(value)) + value

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[bytes, int]:
        start = offset + 2
        end = start + int.from_bytes(head[offset:start], "big")
        if start > len(head) or end > len(head):
            raise MalformedFrame("the statuses run past their head")
        return head[start:end], end


class _Outcomes:
    """A count (u16), then items, each a length (u16) and a head of its own: one for each status that is not 0."""

    def encode(self, value: tuple[OutcomeItem, ...]) -> bytes:
        heads = [item.LAYOUT.encode(item)[1] for item in value]
        return b"".join([_U16.pack(len(heads)), *(_U16.pack(len(head)) + head for head in heads)])

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[tuple[OutcomeItem, ...], int]:
        classes = _outcome_classes(values["statuses"])
        if offset + 2 > len(head) or int.from_bytes(head[offset : offset + 2], "big") != len(classes):
            raise MalformedFrame("STORED has not one outcome for each status that wants one")
        offset += 2
        items: list[OutcomeItem] = []
        for cls in classes:
            start = offset + 2
            offset = start + int.from_bytes(head[offset:start], "big")
            raw = head[start:offset]
            if start > len(head) or offset > len(head):
                raise MalformedFrame("an outcome runs past its head")
            items.append(cls(**cls.LAYOUT.decode(0, raw)))
        return tuple(items), offset


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stored(Value):
    """What became of files of one FILES, in their order; what did not fit one head follows in others.

    Attributes:
        number: of the FILES.
        statuses: a byte for each file, see ``Status``.
        outcomes: one for each status that is not 0, in the same order.
        last: every file of the stream is answered.
    """

    TYPE: ClassVar[Type] = Type.STORED
    LAYOUT: ClassVar[Layout] = Layout(
        _fixed(number=U32), {"statuses": _Statuses(), "outcomes": _Outcomes()}, flags={"last": 0x0001}
    )

    number: int
    statuses: bytes
    outcomes: tuple[OutcomeItem, ...] = ()
    last: bool = False

    def __post_init__(self) -> None:
        if [type(item) for item in self.outcomes] != _outcome_classes(self.statuses):
            raise LocalProtocolError("STORED has not one outcome for each status that wants one")


Message = (
    Hello | Auth | Open | Opened | Block | Piece | Ack | Credit | Have | Commit | Committed | Fetch | List | Remove | Result
    | Cancel | Ping | Error | GoAway | Files | Stored
)  # fmt: skip

MESSAGES: dict[int, type[Message]] = {
    cls.TYPE: cls
    for cls in (
        Hello, Auth, Open, Opened, Block, Piece, Ack, Credit, Have, Commit, Committed, Fetch, List, Remove, Result,
        Cancel, Ping, Error, GoAway, Files, Stored,
    )
}  # fmt: skip
"""Every message we understand."""

FILES_TYPES = frozenset({Type.FILES, Type.STORED})
"""What both sides have to have said that they understand (BP1-FIL-001)."""

PAYLOAD_TYPES = frozenset({Type.BLOCK, Type.PIECE, Type.FILES})

_CODEC = {
    number: (cls, cls.LAYOUT.decode, ~cls.LAYOUT.flags_known & CRITICAL_FLAGS)
    for number, cls in MESSAGES.items()
}

HEADER = _fixed(length_and_type=U32, flags=U16, head_length=U16, stream=U32, check=U32)
"""The header; the first u32 is length u24, then type u8."""

_HEADER = lay.struct_of(HEADER)
_CHECKED = struct.Struct(">IHHI")
_CHECK = struct.Struct(">I")

assert _HEADER.size == HEADER_LENGTH


class Header(NamedTuple):
    """A frame header as it came, judged by nobody."""

    length: int
    type: int
    flags: int
    head_length: int
    stream: int
    check: int

    @property
    def payload_length(self) -> int:
        """Bytes of payload; negative if head_length is more than length."""
        return self.length - self.head_length


def decode_header(view: bytes | bytearray | memoryview, offset: int = 0) -> Header:
    """Read the 16 bytes at ``offset``; the caller has seen to it that they are there."""
    word, flags, head_length, stream, check = _HEADER.unpack_from(view, offset)
    return Header(word >> 8, word & 0xFF, flags, head_length, stream, check)


def check_frame(header: bytes | memoryview, head: bytes | memoryview, check: int) -> bool:
    """Whether ``check`` is that of the first 12 bytes of ``header`` followed by ``head`` (BP1-FRM-003)."""
    return crc32(head, crc32(header[:12])) == check


def decode_head(header: Header, head: bytes | memoryview) -> Message | None:
    """The message of a frame whose check was right.

    Args:
        header: the frame's header.
        head: its head, ``header.head_length`` bytes; nothing of it is kept.

    Returns:
        The message, or None if its type is unknown and may be skipped.

    Raises:
        MalformedFrame: the head does not follow its layout (connection).
        Unsupported: something that must be understood is not (stream).
        BadFacts: filesize, blocknum, blockno and position do not fit each other (stream).

    Spec: BP1-FRM-011, BP1-EXT-001 to 005.
    """
    known = _CODEC.get(header.type)
    if known is None:
        if header.type & CRITICAL_TYPE:
            raise Unsupported(f"message type {header.type:#04x} must be understood and is not")
        return None
    cls, decode, critical = known
    if header.flags & critical:
        raise Unsupported(
            f"flags {header.flags & critical:#06x} of {cls.__name__} must be understood and are not"
        )
    try:
        return cls(**decode(header.flags, bytes(head)))
    except LocalProtocolError as error:
        raise MalformedFrame(str(error)) from error


def encode_frame(
    stream: int, message: Message, payload_length: int = 0, *, grease: random.Random | None = None
) -> bytes:
    """Header and head of ``message``, to be followed on the line by ``payload_length`` bytes.

    Args:
        stream: 0 for the connection.
        message: what to say.
        payload_length: 0 to 1,048,576 for BLOCK, PIECE and FILES, else 0.
        grease: adds a reserved flag and TLV, which everybody must skip.

    Raises:
        LocalProtocolError: a value does not fit its field, or the payload its message.
    """
    flags, head = message.LAYOUT.encode(message)
    if grease is not None:
        flags |= GREASE_FLAG
        head += _grease_tlv(grease)
    number = message.TYPE
    if payload_length and (number not in PAYLOAD_TYPES or not 0 < payload_length <= PIECE_LENGTH_MAX):
        raise LocalProtocolError(f"{type(message).__name__} with a payload of {payload_length} bytes")
    return frame_bytes(stream, number, flags, head, payload_length)


def frame_bytes(stream: int, number: int, flags: int, head: bytes, payload_length: int = 0) -> bytes:
    """Put a header before ``head``; raises LocalProtocolError if the head is longer than any may be."""
    head_length = len(head)
    if head_length > HEAD_LENGTH_MAX:
        raise LocalProtocolError(f"a head of {head_length} bytes")
    start = _CHECKED.pack((head_length + payload_length) << 8 | number, flags, head_length, stream)
    return start + _CHECK.pack(crc32(head, crc32(start))) + head


def _grease_tlv(rng: random.Random) -> bytes:
    """A TLV that nobody knows, greater than any known type."""
    value = rng.randbytes(rng.randrange(20))
    return struct.pack(">HH", rng.choice(GREASE_TLVS), len(value)) + value


def grease_frame(rng: random.Random) -> bytes:
    """A whole frame that nobody knows and everybody must skip, payload included (BP1-EXT-006)."""
    payload = rng.randbytes(rng.randrange(40))
    head = rng.randbytes(rng.randrange(40))
    frame = frame_bytes(
        rng.randrange(1 << 32), rng.choice(GREASE_TYPES), rng.randrange(1 << 16), head, len(payload)
    )
    return frame + payload


def page_items(items: tuple[Item, ...] | list[Item], head_length_max: int) -> int:
    """How many of ``items``, from the first, fit one RESULT for a peer that takes heads of ``head_length_max`` bytes.

    Room is kept for a cursor of ``CURSOR_LENGTH_MAX`` bytes and for what LEFT_OUT counts. At least 1 if there are any: a
    single item always fits.
    """
    room = head_length_max - 5 - CURSOR_LENGTH_MAX - _COUNTS_LENGTH
    for count, item in enumerate(items):
        room -= 2 + len(item.LAYOUT.encode(item)[1])
        if room < 0:
            return max(count, 1)
    return min(len(items), 0xFFFF)


def fit_left_out(page: Result, head_length_max: int) -> Result:
    """``page`` with as many names in LEFT_OUT, the first of each group, as the head takes; the counts stay."""
    room = head_length_max - len(page.LAYOUT.encode(replace(page, left_out=()))[1]) - _COUNTS_LENGTH
    groups: list[LeftOut] = []
    for group in reversed(page.left_out):  # what should have come is named before links are
        fitting = 0
        for name in group.names[:LEFT_OUT_NAMES_MAX]:
            room -= len(_STRING.encode(name))
            if room < 0:
                break
            fitting += 1
        groups.append(replace(group, names=group.names[:fitting]))
    return replace(page, left_out=tuple(reversed(groups)))


def stored_pages(stored: Stored, head_length_max: int) -> list[Stored]:
    """``stored`` as one STORED or more, each of which fits a head of ``head_length_max`` bytes; the last has its flag.

    One outcome always fits.
    """
    pages: list[Stored] = []
    items = iter(stored.outcomes)
    statuses, outcomes, room = bytearray(), list[OutcomeItem](), head_length_max - _STORED_LENGTH
    for status in stored.statuses:
        item = next(items) if status else None
        length = 1 if item is None else 3 + len(item.LAYOUT.encode(item)[1])
        if length > room and statuses:
            pages.append(Stored(stored.number, bytes(statuses), tuple(outcomes)))
            statuses, outcomes, room = bytearray(), [], head_length_max - _STORED_LENGTH
        statuses.append(status)
        outcomes += [] if item is None else [item]
        room -= length
    pages.append(Stored(stored.number, bytes(statuses), tuple(outcomes), stored.last))
    return pages


def runs_max(head_length_max: int) -> int:
    """How many runs (or prefixes) fit a head of that length beside everything else OPENED, ACK or FETCH may hold."""
    return (head_length_max - 1400) // 8


def digests_max(head_length_max: int) -> int:
    """How many (blockno, digest) fit one HAVE."""
    return (head_length_max - 64) // 36

"""The ledger's records as bytes: fixed big-endian structs, then strings.

Keys are one letter and fixed-size binary values, never names. All of ``spec/store.md`` §2 is here.

    m                                   state of the store
    u principal(16) sourceid(16)        an unfinished upload
    d storage_id(16) blockno(4)         digest of a held block
    b storage_id(16) page(4)            bitmap of 8,192 held blocks, first block in the top bit
    p storage_id(16)                    prefixes of unfinished blocks
    i file_id(16)                       receipt of a committed file
    n name(16)                          file_id of what was committed under that name (BLAKE3 of the name)
    f file_id(16)                       FINALISING: recorded, but the final name may not be there yet
    s                                   the last batch gave names that may not be synced yet; file ids (16 each) of files
                                        that had none before, and are gone if they did not get it, and of folders
    e name(16) file_id(16)              one more file_id of that file: the same was sent again
    c name(16)                          stamp (version and ctime), BLAKE3 and root of a finished file; zeros: not known
    g storage_id(16)                    digests and bitmaps of that upload may go
    o                                   the state's id, by which its folder of partials is called
    t                                   when the wall clock was looked at last (``expiry_clock.py``)
    l number(8)                         a loss that a start found, and when
    v number(8), j number(8)            reserved for events and jobs; none is written yet

What a later format adds to a record of ``u`` or ``i`` stands behind its strings: a record of an earlier one ends there, and
is read as it is (``ledger_upgrade.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from blake3 import blake3

from ...common.blocks import Run
from ...common.names import SafeName
from .. import FOLDER_FILETYPE, Facts, IfExists, Prefix, StoredFile, UploadKey
from ..upload_state import Shape

FORMAT = 2
"""Version of these records. A ledger with an earlier one is upgraded when it is opened, one with a later one is refused."""

FORMAT_FIRST = 1
"""The earliest one that is understood."""

STAMP_LENGTH = 24
"""Bytes of a stamp: a version (16) and a ctime (8)."""

PAGE_BLOCKS = 8192
"""Blocks in one bitmap record."""

_ONES = (1 << 64) - 1
_NO_MTIME = -(1 << 63)
_NO_MODE = (1 << 32) - 1

_STATE = Struct(">IQ32s")
_UPLOAD = Struct(">16s16sQQQQqIBHH")
_RECEIPT = Struct(">16s16s32sQQQQqQHH")
_RULE = Struct(">Bq")
"""Behind the strings of a receipt; one of an older program ends there."""
_FINALISING = Struct(">16sB")
_PREFIX = Struct(">II32s")
_PAGE = Struct(">I")
_LOSS = Struct(">Q")
_ALL_HELD = b"\xff" * (PAGE_BLOCKS // 8)

STATE_KEY = b"m"
STATE_ID_KEY = b"o"
CLOCK_KEY = b"t"
UNSYNCED_KEY = b"s"


def upload_key(key: UploadKey) -> bytes:
    """Key of an unfinished upload."""
    return b"u" + key.principal + key.sourceid


def digest_key(storage_id: bytes, blockno: int) -> bytes:
    """Key of a held block's digest."""
    return b"d" + storage_id + _PAGE.pack(blockno)


def bitmap_key(storage_id: bytes, page: int) -> bytes:
    """Key of a bitmap of held blocks."""
    return b"b" + storage_id + _PAGE.pack(page)


def number_of(key: bytes) -> int:
    """The blockno or page at the end of a key."""
    return int.from_bytes(key[-4:], "big")


@lru_cache(maxsize=8192)
def name_hash(name: str) -> bytes:
    """What stands for a name in keys; a batch asks for each of its names twice."""
    return blake3(name.encode()).digest(16)


@dataclass(slots=True)
class State:
    """What is true of the whole store.

    Attributes:
        incarnation: rises when a position may go down; u64.
        secret: 32 bytes from which file ids are derived.
        format: version of the ledger's records.
    """

    incarnation: int
    secret: bytes
    format: int = FORMAT

    def pack(self) -> bytes:
        """The record. It has this form in every version, so that each can say which one it does not know."""
        return _STATE.pack(self.format, self.incarnation, self.secret)

    @classmethod
    def unpack(cls, record: bytes) -> State:
        """Parse the record; ValueError if its format is not understood."""
        number, incarnation, secret = _STATE.unpack(record)
        if not FORMAT_FIRST <= number <= FORMAT:
            raise ValueError(f"ledger format {number}, not {FORMAT}")
        return cls(incarnation, secret, number)

    @staticmethod
    def is_newer(record: bytes) -> bool:
        """Whether a newer version wrote the record."""
        return len(record) == _STATE.size and _STATE.unpack(record)[0] > FORMAT

    def raised(self, now_ms: int) -> State:
        """The state with a greater incarnation."""
        return State(max(now_ms, self.incarnation + 1), self.secret, self.format)

    def file_id(self, key: UploadKey) -> bytes:
        """The id of an upload's file: final from the first OPEN on, also when nothing of it was recorded."""
        return blake3(key.principal + key.sourceid, key=self.secret).digest(16)


@dataclass(slots=True)
class UploadRecord:
    """An unfinished upload.

    Attributes:
        storage_id: 16 random bytes; the partial's name in hex.
        attempt: the greatest one seen.
        expires_ms: Unix ms.
        shape: what is known of its blocks.
    """

    key: UploadKey
    facts: Facts
    storage_id: bytes
    file_id: bytes
    attempt: int
    expires_ms: int
    shape: Shape

    def pack(self) -> bytes:
        """The record; the key stands in the key."""
        facts = self.facts
        name, filetype = facts.filename.text.encode(), facts.filetype.encode()
        head = _UPLOAD.pack(
            self.storage_id,
            self.file_id,
            self.attempt,
            self.expires_ms,
            _ONES if facts.filesize is None else facts.filesize,
            _ONES if self.shape.short_end is None else self.shape.short_end,
            _NO_MTIME if facts.mtime_ns is None else facts.mtime_ns,
            _NO_MODE if facts.mode is None else facts.mode,
            facts.if_exists,
            len(name),
            len(filetype),
        )
        return head + name + filetype

    @staticmethod
    def storage_id_in(record: bytes) -> bytes:
        """The storage id of a record that cannot be unpacked."""
        storage_id: bytes = _UPLOAD.unpack_from(record)[0]
        return storage_id

    @classmethod
    def unpack(cls, key: bytes, record: bytes) -> UploadRecord:
        """Parse a record and its key."""
        storage_id, file_id, attempt, expires_ms, *facts_of, name_length, filetype_length = (
            _UPLOAD.unpack_from(record)
        )
        filesize, short_end, mtime_ns, mode, if_exists = facts_of
        name, filetype = _strings(record, _UPLOAD.size, [name_length, filetype_length])
        end = None if filesize == _ONES else filesize
        facts = Facts(
            filename=SafeName.parse(name),
            filetype=filetype,
            filesize=end,
            mtime_ns=None if mtime_ns == _NO_MTIME else mtime_ns,
            mode=None if mode == _NO_MODE else mode,
            if_exists=IfExists(if_exists),
        )
        shape = Shape(0, end, None if short_end == _ONES else short_end)
        return cls(UploadKey(key[1:17], key[17:33]), facts, storage_id, file_id, attempt, expires_ms, shape)


class Identity(NamedTuple):
    """What a file is on disk, to know it again.

    Attributes:
        dev: device, 0 for the served folder's own (device numbers change with a restart).
        ino: inode.
        size: bytes; 0 for a folder.
        mtime_ns: nanoseconds since 1970; 0 for a folder, whose mtime changes with its entries.
    """

    dev: int
    ino: int
    size: int
    mtime_ns: int


@dataclass(slots=True)
class ReceiptRecord:
    """A committed file: counts only while what stands under ``stored_as`` has this identity.

    Attributes:
        if_exists: the rule it was committed by (BP1-COM-027). One of an older program has none recorded and counts as
            keep, which was the default: so nothing travels again, and a replace after it replaces.
        ctime_bound: its root is that of the bytes while the file's ctime is not later (ns); 0: not known.
    """

    key: UploadKey
    file_id: bytes
    root: bytes
    filesize: int
    identity: Identity
    committed_ms: int
    stored_as: str
    filetype: str
    if_exists: IfExists = IfExists.KEEP
    ctime_bound: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder's."""
        return self.filetype == FOLDER_FILETYPE

    def pack(self) -> bytes:
        """The record; file_id stands in the key."""
        return pack_receipt(
            self.key,
            self.root,
            self.identity,
            self.committed_ms,
            self.stored_as,
            self.filetype,
            self.if_exists,
            self.ctime_bound,
            self.filesize,
        )

    @classmethod
    def unpack(cls, file_id: bytes, record: bytes) -> ReceiptRecord:
        """Parse a record."""
        principal, sourceid, root, filesize, *identity, committed_ms, name_length, filetype_length = (
            _RECEIPT.unpack_from(record)
        )
        name, filetype = _strings(record, _RECEIPT.size, [name_length, filetype_length])
        key = UploadKey(principal, sourceid)
        end = _RECEIPT.size + name_length + filetype_length
        if_exists, bound = _RULE.unpack_from(record, end) if len(record) > end else (0, 0)
        return cls(
            key,
            file_id,
            root,
            filesize,
            Identity(*identity),
            committed_ms,
            name,
            filetype,
            IfExists(if_exists) if if_exists else IfExists.KEEP,  # an enumeration is slow to look into
            bound,
        )

    def stored(self, b3sum: bytes | None = None, *, there: bool = False) -> StoredFile:
        """The receipt as the port has it; ``there``: with it, nothing was stored."""
        return StoredFile(
            self.key.sourceid, self.file_id, self.root, self.filesize, self.stored_as, b3sum, there
        )


def pack_receipt(
    key: UploadKey,
    root: bytes,
    identity: Identity,
    committed_ms: int,
    stored_as: str,
    filetype: str,
    if_exists: IfExists,
    ctime_bound: int = 0,
    filesize: int | None = None,
) -> bytes:
    """The record of a receipt; ``filesize`` None: that of the identity."""
    name, kind = stored_as.encode(), filetype.encode()
    size = identity.size if filesize is None else filesize
    head = _RECEIPT.pack(
        key.principal, key.sourceid, root, size, *identity, committed_ms, len(name), len(kind)
    )
    return head + name + kind + _RULE.pack(if_exists, ctime_bound)


def sealed(record: bytes, ctime_ns: int) -> bytes:
    """A receipt's record with its ctime bound; as it is where it has one, or has no place for it.

    Thousands are sealed at once, so nothing is taken apart.
    """
    name_length, filetype_length = _RECEIPT.unpack_from(record)[-2:]
    at = _RECEIPT.size + name_length + filetype_length
    if len(record) != at + _RULE.size or _RULE.unpack_from(record, at)[1]:
        return record
    return record[: at + 1] + _RULE.pack(0, ctime_ns)[1:]


class Finalising(NamedTuple):
    """A commit under way: where its bytes are until the final name is there.

    Attributes:
        storage_id: the partial.
        if_exists: what to do when recovery finds the name taken.
    """

    storage_id: bytes
    if_exists: IfExists

    def pack(self) -> bytes:
        """The record."""
        return _FINALISING.pack(*self)

    @classmethod
    def unpack(cls, record: bytes) -> Finalising:
        """Parse a record."""
        storage_id, if_exists = _FINALISING.unpack(record)
        return cls(storage_id, IfExists(if_exists))


class Loss(NamedTuple):
    """Something durable that a start did not find any more.

    Attributes:
        found_ms: when, Unix ms.
        text: what, a sentence in which names are shown safely.
    """

    found_ms: int
    text: str

    def pack(self) -> bytes:
        """The record."""
        return _LOSS.pack(self.found_ms) + self.text.encode()

    @classmethod
    def unpack(cls, record: bytes) -> Loss:
        """Parse a record."""
        (found_ms,) = _LOSS.unpack_from(record)
        return cls(found_ms, record[_LOSS.size :].decode())


def pack_prefixes(prefixes: Mapping[int, Prefix]) -> bytes:
    """The record of an upload's prefixes."""
    return b"".join(_PREFIX.pack(blockno, *_prefix(prefix)) for blockno, prefix in sorted(prefixes.items()))


def _prefix(prefix: Prefix) -> tuple[int, bytes]:
    return prefix.length, prefix.digest


def unpack_prefixes(record: bytes) -> dict[int, Prefix]:
    """Parse it."""
    return {blockno: Prefix(length, digest) for blockno, length, digest in _PREFIX.iter_unpack(record)}


def held_runs(pages: Iterable[tuple[int, bytes]]) -> Iterator[Run]:
    """The runs of held blocks in (page, bitmap) pairs; runs of neighbouring pages may touch."""
    for page, bitmap in pages:
        first = page * PAGE_BLOCKS
        if bitmap == _ALL_HELD:
            yield first, PAGE_BLOCKS
            continue
        short = bitmap.rstrip(b"\0")
        bits = format(int.from_bytes(short, "big"), f"0{len(short) * 8}b") + "0"
        start = bits.find("1")
        while start >= 0:
            end = bits.find("0", start)
            yield first + start, end - start
            start = bits.find("1", end)


def mark(bitmap: bytearray, blockno: int, held: bool) -> None:
    """Set or clear a block's bit in its page."""
    at = blockno % PAGE_BLOCKS
    bit = 0x80 >> (at % 8)
    if held:
        bitmap[at // 8] |= bit
    else:
        bitmap[at // 8] &= ~bit


def _strings(record: bytes, at: int, lengths: list[int]) -> list[str]:
    found = []
    for length in lengths:
        found.append(record[at : at + length].decode())
        at += length
    return found

"""The ledger of a part file: a small append-only file of records, each with its CRC.

    record    type u8 · length u32 · payload · crc u32 (CRC-32 of type, length and payload), big endian

The first record says whose bytes they are; the others add to it in order. A record that was torn by a crash ends the
ledger: what follows it was never acknowledged. It is cut off before anything is appended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from struct import error as struct_error
from zlib import crc32

from ...common.blocks import BLOCK_LENGTH
from ...common.names import SafeName
from ...errors import BlockprotoError, StoreFailed
from .. import Facts, IfExists, Prefix, UploadKey
from ..upload_state import Shape
from .part_names import is_ours
from .portable_io import sync_file
from .target_folder import TargetFolder

MAGIC = b"BPSIDE1\n"

_HEAD = Struct(">BI")
_CRC = Struct(">I")
_BEGIN = Struct(">16s16s16sQQQqIBHH")
_BLOCK = Struct(">II32s")
_U32 = Struct(">I")
_U64 = Struct(">Q")
_FINAL = Struct(">32sQQQq")

_ONES = (1 << 64) - 1
_NO_MTIME = -(1 << 63)
_NO_MODE = (1 << 32) - 1

BEGIN, BLOCKS, DROPPED, PREFIXES, ATTEMPT, INCARNATION, FINALISING = range(1, 8)

Record = tuple[int, bytes]
"""Its type and its payload."""


@dataclass(slots=True)
class Final:
    """A commit under way.

    Attributes:
        root: of the file.
        filesize: as in ``Finish``.
        ino, size, mtime_ns: what the partial was (ino 0 where the system has none).
        target: the name it is given.
    """

    root: bytes
    filesize: int
    ino: int
    size: int
    mtime_ns: int
    target: str


@dataclass(slots=True)
class Begun:
    """What the ledger says.

    Attributes:
        key, file_id, first, facts: as begun.
        attempt: the greatest one seen.
        short_end: where a short block says that a file of unknown size ends, or None.
        blocks: blockno to (length, digest).
        prefixes: of unfinished blocks.
        incarnation: rises when a position may go down.
        final: the commit under way, or None.
    """

    key: UploadKey
    file_id: bytes
    first: int
    facts: Facts
    incarnation: int
    attempt: int = 0
    short_end: int | None = None
    blocks: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    prefixes: dict[int, Prefix] = field(default_factory=dict)
    final: Final | None = None

    @property
    def shape(self) -> Shape:
        """What is known of its blocks."""
        return Shape(self.first, self.facts.filesize, self.short_end)

    def pack(self) -> bytes:
        """The payload of the first record."""
        facts = self.facts
        name, filetype = facts.filename.text.encode(), facts.filetype.encode()
        head = _BEGIN.pack(
            self.key.principal,
            self.key.sourceid,
            self.file_id,
            self.first,
            self.incarnation,
            _ONES if facts.filesize is None else facts.filesize,
            _NO_MTIME if facts.mtime_ns is None else facts.mtime_ns,
            _NO_MODE if facts.mode is None else facts.mode,
            facts.if_exists,
            len(name),
            len(filetype),
        )
        return head + name + filetype

    @classmethod
    def unpack(cls, payload: bytes) -> Begun:
        """Parse the first record."""
        principal, sourceid, file_id, first, incarnation, *rest = _BEGIN.unpack_from(payload)
        filesize, mtime_ns, mode, if_exists, name_length, filetype_length = rest
        at = _BEGIN.size + name_length
        facts = Facts(
            filename=SafeName.parse(payload[_BEGIN.size : at].decode()),
            filetype=payload[at : at + filetype_length].decode(),
            filesize=None if filesize == _ONES else filesize,
            mtime_ns=None if mtime_ns == _NO_MTIME else mtime_ns,
            mode=None if mode == _NO_MODE else mode,
            if_exists=IfExists(if_exists),
        )
        return cls(UploadKey(principal, sourceid), file_id, first, facts, incarnation)

    def apply(self, kind: int, payload: bytes) -> None:
        """Add a later record; unknown kinds are skipped."""
        if kind == BLOCKS:
            for blockno, length, digest in _BLOCK.iter_unpack(payload):
                self.blocks[blockno] = length, digest
                if self.facts.filesize is None and length < BLOCK_LENGTH:
                    self.short_end = blockno * BLOCK_LENGTH + length
                self.prefixes.pop(blockno, None)
        elif kind == DROPPED:
            for (blockno,) in _U32.iter_unpack(payload):
                self.blocks.pop(blockno, None)
        elif kind == PREFIXES:
            self.prefixes = {
                blockno: Prefix(length, digest) for blockno, length, digest in _BLOCK.iter_unpack(payload)
            }
        elif kind == ATTEMPT:
            (self.attempt,) = _U64.unpack(payload)
        elif kind == INCARNATION:
            (self.incarnation,) = _U64.unpack(payload)
        elif kind == FINALISING:
            root, filesize, ino, size, mtime_ns = _FINAL.unpack_from(payload)
            self.final = Final(root, filesize, ino, size, mtime_ns, payload[_FINAL.size :].decode())


def _packed(record: Record) -> bytes:
    kind, payload = record
    head = _HEAD.pack(kind, len(payload))
    return head + payload + _CRC.pack(crc32(payload, crc32(head)))


def blocks_record(blocks: Mapping[int, tuple[int, bytes]]) -> Record:
    """Blocks that are held now."""
    packed = (_BLOCK.pack(blockno, length, digest) for blockno, (length, digest) in sorted(blocks.items()))
    return BLOCKS, b"".join(packed)


def dropped_record(blocknos: Iterable[int]) -> Record:
    """Blocks that are not held any more."""
    return DROPPED, b"".join(_U32.pack(blockno) for blockno in sorted(blocknos))


def prefixes_record(prefixes: Mapping[int, Prefix]) -> Record:
    """Prefixes, in place of those before."""
    packed = (
        _BLOCK.pack(blockno, prefix.length, prefix.digest) for blockno, prefix in sorted(prefixes.items())
    )
    return PREFIXES, b"".join(packed)


def attempt_record(attempt: int) -> Record:
    """A greater attempt."""
    return ATTEMPT, _U64.pack(attempt)


def incarnation_record(incarnation: int) -> Record:
    """A greater incarnation."""
    return INCARNATION, _U64.pack(incarnation)


def final_record(final: Final) -> Record:
    """A commit under way."""
    head = _FINAL.pack(final.root, final.filesize, final.ino, final.size, final.mtime_ns)
    return FINALISING, head + final.target.encode()


class PartFileLedger:
    """The ledger's file.

    Args:
        place: the folder it lies in.
        name: its name there; nothing is made before the first ``append``.
        sync: makes a file durable; tests watch it.
    """

    def __init__(self, place: TargetFolder, name: str, sync: Callable[[int], None] = sync_file) -> None:
        self._place = place
        self._name = name
        self._sync = sync
        self._fd = -1
        self._end = 0

    @property
    def exists(self) -> bool:
        """Whether there is a file."""
        return self._fd >= 0

    def load(self) -> Begun | None:
        """Read what is there; None if nothing is, or nothing that can be used."""
        content = _content(self._place, self._name)
        if content is None:
            return None
        begun, self._end = _parse(content)
        if begun is None:
            self._place.remove(self._name)
            return None
        self._fd = self._place.open_existing(self._name)
        os.ftruncate(self._fd, self._end)
        return begun

    def append(self, records: Sequence[Record]) -> bool:
        """Append records, all or none; True if the file was made by that (its folder is to be synced then).

        Raises:
            OSError: as the system reports it; what was written of them is cut off again.
            StoreFailed: the medium reported an error; nothing may be acknowledged any more.

        Durability: durable when this returns, but for a new file's entry in its folder.
        """
        made = self._fd < 0
        packed = b"".join(map(_packed, records))
        if made:
            self._fd = self._place.open_new(self._name)
            packed = MAGIC + packed
        try:
            os.lseek(self._fd, self._end, os.SEEK_SET)
            view = memoryview(packed)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._end)
            raise
        try:
            self._sync(self._fd)
        except OSError as exc:
            raise StoreFailed(f"the medium reported: {exc.strerror}") from exc
        self._end += len(packed)
        return made

    def close(self) -> None:
        """Let go of the file; harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.close()
        self._end = 0
        self._place.remove(self._name)


def read_ledger(place: TargetFolder, name: str) -> Begun | None:
    """What a ledger of a folder says, which is left as it is; None if there is none, or nothing that can be used."""
    try:
        content = _content(place, name)
    except OSError:
        return None
    return None if content is None else _parse(content)[0]


def _content(place: TargetFolder, name: str) -> bytes | None:
    """The bytes of a ledger; None if it is not there or no file of ours."""
    found = place.look(name)
    if found is None or not is_ours(found):
        return None
    with open(place.open_to_read(name), "rb") as file:
        return file.read()


def _parse(content: bytes) -> tuple[Begun | None, int]:
    """What a ledger says, and where its last good record ends."""
    begun: Begun | None = None
    at = len(MAGIC)
    if not content.startswith(MAGIC):
        return None, 0
    while at + _HEAD.size <= len(content):
        kind, length = _HEAD.unpack_from(content, at)
        end = at + _HEAD.size + length
        if end + _CRC.size > len(content) or _CRC.unpack_from(content, end)[0] != crc32(content[at:end]):
            break
        payload = content[at + _HEAD.size : end]
        try:
            if kind == BEGIN:
                begun = Begun.unpack(payload)
            elif begun is not None:
                begun.apply(kind, payload)
        except (ValueError, BlockprotoError, struct_error):
            break
        at = end + _CRC.size
    return begun, at

"""The table of FILES: what the head of one frame says of many small files, and how it is read and written.

    folders   a list of strings: count u16, then each a length u16 and its bytes
    filetypes likewise
    files     count u16, then so many records of 65 bytes
    names     the last component of each file's name, one after another; its record says how many bytes it has

A record is a plain tuple, because thousands of them are read in a second: ``Record`` says what stands where.

Spec: BP1-FIL-002, BP1-FIL-004.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from ..errors import LocalProtocolError, MalformedFrame
from .head_layout import String

RECORD = struct.Struct(">16s32sIqHBBB")

Record = tuple[bytes, bytes, int, int, int, int, int, int]
"""sourceid, digest, filesize, mtime_ns, mode, index of the folder, index of the filetype, bytes of the name."""

FILES_MAX = 256
"""Files in one frame (BP1-FIL-002): as many as an index of one byte tells apart."""

MTIME_UNSAID = -(1 << 63)
"""The mtime_ns of a file whose modification time is not said."""

HEAD_SPARE = 200
"""Bytes of a head that are kept for its fixed part, its counts, and what is sent to see whether it is skipped."""

MODE_UNSAID = 0xFFFF
"""The mode of a file whose mode is not said."""

_COUNT = struct.Struct(">H")
_STRING = String()


class FileTable(NamedTuple):
    """The files of a frame: a record of each, and the last component of its name."""

    records: tuple[Record, ...] = ()
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.records)} files"

    def judge(self, folders: int, filetypes: int) -> None:
        """Raise LocalProtocolError if a record has an index beyond so many folders or filetypes."""
        if any(record[5] >= folders or record[6] >= filetypes for record in self.records):
            raise LocalProtocolError("a file of FILES has a folder or filetype that the frame does not name")


class TableBuilder:
    """The table of one frame as it grows.

    Args:
        room: bytes of head that there are for it.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._folders: dict[str, int] = {}
        self._filetypes: dict[str, int] = {}
        self._records: list[Record] = []
        self._names: list[str] = []

    def has_room(self, folder: str, name: str, filetype: str) -> bool:
        """Whether one more file fits the head, which counts it; it does if there is none yet."""
        need = RECORD.size + len(name.encode())
        need += 0 if folder in self._folders else 2 + len(folder.encode())
        need += 0 if filetype in self._filetypes else 2 + len(filetype.encode())
        self._room -= need
        return self._room >= 0 or not self._records

    def add(
        self,
        id_: bytes,
        digest: bytes,
        filesize: int,
        mtime_ns: int | None,
        mode: int | None,
        folder: str,
        filetype: str,
        name: str,
    ) -> None:
        """Put a file there; it was asked whether there is room."""
        self._records.append(
            (
                id_,
                digest,
                filesize,
                MTIME_UNSAID if mtime_ns is None else mtime_ns,
                MODE_UNSAID if mode is None else mode,
                self._folders.setdefault(folder, len(self._folders)),
                self._filetypes.setdefault(filetype, len(self._filetypes)),
                len(name.encode()),
            )
        )
        self._names.append(name)

    @property
    def parts(self) -> tuple[tuple[str, ...], tuple[str, ...], FileTable]:
        """The folders, the filetypes and the table."""
        table = FileTable(tuple(self._records), tuple(self._names))
        return tuple(self._folders), tuple(self._filetypes), table


class Strings:
    """A count (u16) and that many strings."""

    def encode(self, value: Sequence[str]) -> bytes:
        """Count and strings; struct.error if there are more than 65,535."""
        return _COUNT.pack(len(value)) + b"".join([_STRING.encode(one) for one in value])

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[tuple[str, ...], int]:
        """The strings at ``offset``."""
        count, offset = _count_at(head, offset)
        found: list[str] = []
        for _ in range(count):
            one, offset = _STRING.decode(head, offset, values)
            found.append(one)
        return tuple(found), offset


class Table:
    """Records and names of a ``FileTable``."""

    def encode(self, value: FileTable) -> bytes:
        """Count, records and names; LocalProtocolError if a record has another length than its name."""
        names = [_STRING.encode(name)[2:] for name in value.names]
        if [record[7] for record in value.records] != [len(name) for name in names]:
            raise LocalProtocolError("a record of FILES does not have the length of its name")
        pack = RECORD.pack
        return b"".join([_COUNT.pack(len(names)), *[pack(*record) for record in value.records], *names])

    def decode(self, head: bytes, offset: int, values: dict[str, Any]) -> tuple[FileTable, int]:
        """The table at ``offset``."""
        count, start = _count_at(head, offset)
        end = start + count * RECORD.size
        if end > len(head):
            raise MalformedFrame("the records of FILES run past their head")
        records = tuple(RECORD.iter_unpack(head[start:end]))
        ends = list(accumulate([record[7] for record in records], initial=end))
        if ends[-1] > len(head):
            raise MalformedFrame("the names of FILES run past their head")
        raw = head[end : ends[-1]]
        if raw.isascii():
            text = raw.decode("ascii")
            names = [text[at - end : to - end] for at, to in pairwise(ends)]
        else:
            names = [head[at:to].decode("utf-8", "surrogateescape") for at, to in pairwise(ends)]
        return FileTable(records, tuple(names)), ends[-1]


def _count_at(head: bytes, offset: int) -> tuple[int, int]:
    """The count (u16) at ``offset``, and the offset after it."""
    start = offset + 2
    if start > len(head):
        raise MalformedFrame("a list runs past its head")
    return head[offset] << 8 | head[offset + 1], start

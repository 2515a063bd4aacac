"""The bytes of the dialect ``struct82``: the header before each block, the reply after it, and the answer to a question.

A header is the C struct ``char filename[50]; char filetype[20]; int filesize; int blocknum; int blockno;``, written as it
lay in the sender's memory: 82 bytes when packed, 84 with a C compiler's default alignment, in either byte order. So there
are four forms, and a header says by its numbers alone which one it is.

Why mostly one form fits: a blocknum is at most 2,048, so of its four bytes two are zero, and read in the other byte order,
or two bytes further on, those zeros stand where a greater number would have to be. Two kinds of header fit several forms:
that of a little file whose unused two bytes are 0F F0 to 0F FF (aligned, little endian) also says in packed, big endian that
a file of 256 MiB begins; and that of an empty file may be all zeros. What follows decides then (``narrow``).

Spec: BP1-S82.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import construct as _construct  # type: ignore[import-untyped]

from ..common.blocks import BLOCK_LENGTH, blocknum_of
from ..common.names import SafeName
from ..errors import BadFacts, NameRefused
from ..store import FOLDER_FILETYPE, Facts

construct: Any = _construct
"""construct has no types."""

FILENAME_LENGTH = 50
FILETYPE_LENGTH = 20
NAMES_LENGTH = FILENAME_LENGTH + FILETYPE_LENGTH
"""Bytes before the first number (or before the padding, when aligned)."""

FILESIZE_MAX = 2**31 - 1
QUESTION = -1
"""The blockno of a header that asks which blocks are held (BP1-S82-020)."""

STORED_AS_LENGTH = 256
BLOCKNUM_MAX = FILESIZE_MAX // BLOCK_LENGTH + 1


@dataclass(frozen=True, slots=True)
class Header:
    """One header; the names without the NUL and what follows it.

    Attributes:
        filename: 1 to 50 bytes, UTF-8 or GB18030.
        filetype: 0 to 20 bytes.
        filesize: bytes, 0 to 2^31 − 1.
        blocknum: blocks of the file as its sender counts them, perhaps with an empty one at the end.
        blockno: counted from 0 or from 1; ``QUESTION`` in a question.
    """

    filename: bytes
    filetype: bytes
    filesize: int
    blocknum: int
    blockno: int

    @property
    def named(self) -> bool:
        """Whether there is a name, and both names are text: so is every header that another may be measured by."""
        return bool(self.filename) and _is_text(self.filename) and _is_text(self.filetype)

    def lengths(self) -> set[int]:
        """How many bytes may follow it, as far as it says that itself."""
        if self.blockno == QUESTION:
            return {0}
        return {
            self.length(first) for first in (0, 1) if self.blockno >= first and self.settles in (None, first)
        }

    @property
    def settles(self) -> int | None:
        """The number of the file's first block, if this header tells (BP1-S82-015)."""
        if self.blockno == 0:
            return 0
        return 1 if self.blockno == self.blocknum else None

    def length(self, first: int) -> int:
        """Bytes of this block if ``first`` is the number of the file's first block; behind the end they are none."""
        left = self.filesize - (self.blockno - first) * BLOCK_LENGTH
        return min(max(left, 0), BLOCK_LENGTH)

    def about_block(self, blockno: int) -> Header:
        """The header of a block of the same file."""
        return replace(self, blockno=blockno)

    def is_about_the_file_of(self, other: Header) -> bool:
        """Whether both name the same file."""
        mine = self.filename, self.filetype, self.filesize, self.blocknum
        return mine == (other.filename, other.filetype, other.filesize, other.blocknum)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server says to one header.

    Attributes:
        code: 0 when the block is durable (or the question answered), else a code of the error table.
        blockno: as in the header.
        held: how many blocks of the file are durable.
        complete: whether the file has its name.
        digest: of the block as it is held; to a question, the root over the digests of the blocks held.
    """

    code: int
    blockno: int
    held: int
    complete: bool
    digest: bytes = bytes(32)


class Form:
    """One way to write headers and replies: a byte order, and how many bytes lie between names and numbers."""

    def __init__(self, name: str, order: Literal["little", "big"], padding: int) -> None:
        integer = construct.Int32sl if order == "little" else construct.Int32sb
        self.name = name
        self._order = order
        self._numbers_at = NAMES_LENGTH + padding
        self._numbers = struct.Struct("<iii" if order == "little" else ">iii")
        self._header = construct.Struct(
            "filename" / construct.Bytes(FILENAME_LENGTH),
            "filetype" / construct.Bytes(FILETYPE_LENGTH),
            construct.Padding(padding),
            "filesize" / integer,
            "blocknum" / integer,
            "blockno" / integer,
        )
        self._reply = construct.Struct(
            "code" / integer,
            "blockno" / integer,
            "held" / integer,
            "complete" / integer,
            "digest" / construct.Bytes(32),
        )
        self.header_length: int = self._header.sizeof()
        self.reply_length: int = self._reply.sizeof()

    def __repr__(self) -> str:
        return f"<Form {self.name}>"

    def read(self, head: bytes | bytearray) -> Header | None:
        """The header in the first bytes of ``head``, or None if they are none of this form (BP1-S82-003)."""
        if len(head) < self.header_length:
            return None
        filesize, blocknum, blockno = self._numbers.unpack_from(head, self._numbers_at)
        if not _fits(filesize, blocknum, blockno):
            return None
        found = self._header.parse(head)
        return Header(_until_nul(found.filename), _until_nul(found.filetype), filesize, blocknum, blockno)

    def may_begin(self, head: bytes) -> bool:
        """Whether ``head``, perhaps less than a header, can be the beginning of one."""
        if not _is_text(head[:FILENAME_LENGTH]) or not _is_text(head[FILENAME_LENGTH:NAMES_LENGTH]):
            return False
        known = [
            int.from_bytes(head[at : at + 4], self._order, signed=True)
            for at in range(self._numbers_at, min(len(head), self.header_length) - 3, 4)
        ]
        filesize, *rest = known or [1]
        blocknum, *last = rest or [blocknum_of(max(filesize, 0))]
        return _fits(filesize, blocknum, *(last or [0]))

    def write(self, header: Header) -> bytes:
        """The bytes of ``header``; names that are too long are a bug of the caller."""
        assert len(header.filename) <= FILENAME_LENGTH
        assert len(header.filetype) <= FILETYPE_LENGTH
        raw: bytes = self._header.build(
            {
                "filename": header.filename.ljust(FILENAME_LENGTH, b"\0"),
                "filetype": header.filetype.ljust(FILETYPE_LENGTH, b"\0"),
                "filesize": header.filesize,
                "blocknum": header.blocknum,
                "blockno": header.blockno,
            }
        )
        return raw

    def read_reply(self, raw: bytes | bytearray) -> Reply:
        """The reply in the first ``reply_length`` bytes."""
        found = self._reply.parse(raw)
        return Reply(found.code, found.blockno, found.held, found.complete != 0, found.digest)

    def write_reply(self, reply: Reply) -> bytes:
        """The bytes of ``reply``."""
        fields = {name: getattr(reply, name) for name in ("code", "blockno", "held", "digest")}
        raw: bytes = self._reply.build(fields | {"complete": int(reply.complete)})
        return raw


PACKED_LITTLE = Form("packed, little endian", "little", 0)
PACKED_BIG = Form("packed, big endian", "big", 0)
ALIGNED_LITTLE = Form("aligned, little endian", "little", 2)
ALIGNED_BIG = Form("aligned, big endian", "big", 2)
FORMS = (PACKED_LITTLE, PACKED_BIG, ALIGNED_LITTLE, ALIGNED_BIG)
"""In the order in which they are tried."""

HEADER_LENGTH_MIN = PACKED_LITTLE.header_length
HEADER_LENGTH_MAX = ALIGNED_LITTLE.header_length
assert (HEADER_LENGTH_MIN, HEADER_LENGTH_MAX) == (82, 84)


def recognise(head: bytes | bytearray) -> Form | None:
    """The form of the header in the first bytes of ``head``; the packed ones need 82 of them, the others 84."""
    return next((form for form in FORMS if form.read(head) is not None), None)


def narrow(forms: tuple[Form, ...], ahead: bytes, *, over: bool) -> tuple[Form, ...] | int:
    """Which of ``forms`` the header at the beginning of ``ahead`` is in.

    What is a header in several forms is followed by another number of bytes in each. So the form is the first, by that
    number, behind whose bytes another header of the same form stands, or not enough for one; if there is none, the last.

    Args:
        forms: those that are possible.
        ahead: what has come from the header's beginning on.
        over: whether no more comes, as far as can be seen.

    Returns:
        The forms in which it is a header: none, one, or several that say the same of what follows. Or how many bytes of
        ``ahead`` are needed to know.

    Spec: BP1-S82-003, BP1-S82-035.
    """
    longer = [
        form.header_length for form in forms if len(ahead) < form.header_length and form.may_begin(ahead)
    ]
    if longer and not over:
        return max(longer)
    fitting = [(form, header) for form in forms if (header := form.read(ahead)) is not None and header.named]
    if len({(form.header_length, header) for form, header in fitting}) <= 1:
        return tuple(form for form, _ in fitting)
    ends = sorted(
        ((form.header_length + length, form) for form, header in fitting for length in header.lengths()),
        key=lambda one: one[0],
    )
    begun: list[tuple[int, int, Form]] = []  # how unlike a header what has come behind it is
    for at, (end, form) in enumerate(ends):
        behind = ahead[end:]
        if len(behind) < form.header_length and not over and any(other is not form for _, other in ends[at:]):
            return end + form.header_length
        follows = form.read(behind)
        if end == len(ahead) or (follows is not None and follows.named):
            alike = (other for length, other in ends if length == end)
            return tuple(other for other in alike if other.header_length == form.header_length)
        if 0 < len(behind) < form.header_length:
            same = (
                behind[:NAMES_LENGTH] == ahead[: min(len(behind), NAMES_LENGTH)]
            )  # the next block of the same file
            begun.append((0 if same else 1 if behind[0] and form.may_begin(behind) else 2, at, form))
    return (min(begun)[2] if begun else ends[-1][1],)


def may_begin(head: bytes) -> bool:
    """Whether ``head``, perhaps less than a header, can be the beginning of one in some form."""
    return bool(head[0]) and any(form.may_begin(head) for form in FORMS)


def _is_text(field: bytes) -> bool:
    """Whether there is no control character before the NUL: the names of a first header are text (BP1-S82-003)."""
    return min(_until_nul(field), default=32) >= 32


def _fits(filesize: int, blocknum: int, blockno: int) -> bool:
    if filesize < 0:
        return False
    counts = blocknum_of(filesize), filesize // BLOCK_LENGTH + 1
    return blocknum in counts and QUESTION <= blockno <= max(blocknum, 1)


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def facts_of(header: Header) -> Facts:
    """The facts of the file that ``header`` is about.

    Raises:
        NameRefused: the name breaks a rule.
        BadFacts: the filetype is that of a folder.

    Spec: BP1-S82-010, 011.
    """
    name = _text_of(header.filename).replace("\\", "/").rpartition("/")[2]
    filetype = header.filetype.decode("ascii", "replace")
    if filetype == FOLDER_FILETYPE:
        raise BadFacts("a folder has no bytes and cannot be sent in this dialect")
    if not filetype.isascii() or not filetype.isprintable():
        filetype = ""
    return Facts(SafeName.parse(name), filetype, header.filesize)


def _text_of(filename: bytes) -> str:
    """UTF-8, else GB18030; of a name that was cut off at 50 bytes, the part of a character at its end is left out."""
    cut_off = len(filename) == FILENAME_LENGTH
    for encoding in ("utf-8", "gb18030"):
        try:
            return codecs.getincrementaldecoder(encoding)().decode(filename, final=not cut_off)
        except UnicodeDecodeError:
            continue
    raise NameRefused("the name is neither UTF-8 nor GB18030 (rule encoding, profile wire)", rule="encoding")


def bitmap_length(blocknum: int) -> int:
    """Bytes of a bitmap that has a bit for each blockno from 0 to ``blocknum`` (BP1-S82-022)."""
    return blocknum // 8 + 1


def write_bitmap(blocknum: int, blocknos: Iterable[int]) -> bytes:
    """The bitmap in which the bits of ``blocknos`` are set: bit n is bit n mod 8, from the lowest, of byte n / 8."""
    bitmap = bytearray(bitmap_length(blocknum))
    for blockno in blocknos:
        bitmap[blockno // 8] |= 1 << blockno % 8
    return bytes(bitmap)


def write_stored_as(name: str) -> bytes:
    """The name under which a complete file is, padded with NUL (BP1-S82-023)."""
    return name.encode("utf-8")[: STORED_AS_LENGTH - 1].ljust(STORED_AS_LENGTH, b"\0")


def read_stored_as(raw: bytes | bytearray) -> str:
    """The reverse of ``write_stored_as``."""
    return _until_nul(bytes(raw)).decode("utf-8", "surrogateescape")


def read_bitmap(bitmap: bytes | bytearray) -> set[int]:
    """The blocknos whose bits are set."""
    return {8 * at + bit for at, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}

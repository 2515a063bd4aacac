"""The bytes of the dialect ``struct82``: the header before each block, the reply after it, and the answer to a question.

A header is the C struct ``char filename[50]; char filetype[20]; int filesize; int blocknum; int blockno;``, written as it
lay in the sender's memory: 82 bytes when packed, 84 with a C compiler's default alignment, in either byte order. So there
are four forms, and a header says by its numbers alone which one it is.

Why at most one form fits (``recognise``): a blocknum is at most 2,048, so of its four bytes two are zero, and read in the
other byte order, or two bytes further on, those zeros stand where a greater number would have to be. The one exception
needs the two bytes that the alignment leaves unused to be other than zero; then the packed form is preferred.

Spec: BP1-S82.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ..blocks import BLOCK_LENGTH, blocknum_of
from ..errors import BadFacts, NameRefused
from ..layout import construct
from ..names import SafeName
from ..store import FOLDER_FILETYPE, Facts

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
        filesize: bytes, 1 to 2^31 − 1.
        blocknum: blocks of the file as its sender counts them, perhaps with an empty one at the end.
        blockno: counted from 0 or from 1; ``QUESTION`` in a question.
    """

    filename: bytes
    filetype: bytes
    filesize: int
    blocknum: int
    blockno: int

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
        found = self._header.parse(head)
        header = Header(
            _until_nul(found.filename),
            _until_nul(found.filetype),
            found.filesize,
            found.blocknum,
            found.blockno,
        )
        return header if _fits(header) else None

    def may_begin(self, head: bytes) -> bool:
        """Whether ``head``, perhaps less than a header, can be the beginning of one."""
        if not _is_text(head[:FILENAME_LENGTH]) or not _is_text(head[FILENAME_LENGTH:NAMES_LENGTH]):
            return False
        known = [
            int.from_bytes(head[at : at + 4], self._order, signed=True)
            for at in range(self._numbers_at, min(len(head), self.header_length) - 3, 4)
        ]
        filesize, *rest = known or [1]
        blocknum, *last = rest or [blocknum_of(filesize)]
        return _fits(Header(b"", b"", filesize, blocknum, *(last or [0])))

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


def may_begin(head: bytes) -> bool:
    """Whether ``head``, perhaps less than a header, can be the beginning of one in some form."""
    return bool(head[0]) and any(form.may_begin(head) for form in FORMS)


def _is_text(field: bytes) -> bool:
    """Whether there is no control character before the NUL: the names of a first header are text (BP1-S82-003)."""
    return min(_until_nul(field), default=32) >= 32


def _fits(header: Header) -> bool:
    counts = blocknum_of(header.filesize), header.filesize // BLOCK_LENGTH + 1
    return header.filesize > 0 and header.blocknum in counts and QUESTION <= header.blockno <= header.blocknum


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

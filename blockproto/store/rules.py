"""What every store must decide alike: attempts, block lengths, roots, and the next free name.

Pure functions over plain values, so that the local store, the part files and the memory store cannot differ.

Spec: spec/store.md §3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..common.blocks import BLOCK_LENGTH, block_span, blocknum_of, root_of
from ..common.names import COMPONENT_LENGTH_MAX, FILENAME_LENGTH_MAX, NUMBERS_MAX, SafeName, numbered
from ..errors import (
    BadFacts,
    BlockprotoError,
    DigestsDiffer,
    NameRefused,
    NotPermitted,
    SourceChanged,
    Superseded,
)
from . import BlockDone, Finish, StoredFile

EXPIRY_MS = 30 * 24 * 3600 * 1000
"""How long an unfinished upload is kept after it was last opened, in milliseconds (BP1-RES-022)."""

TRIED_IN_TURN = 16
"""How many names with a number are asked for one after another before numbers are skipped."""

RECEIPT_GRACE_MS = 24 * 3600 * 1000
"""How long at least a receipt is kept, in milliseconds, also when its file is gone (BP1-COM)."""


def is_within(name: str, folder: SafeName | None) -> bool:
    """Whether a name of the store lies in a folder; in None, which is the root, all do."""
    return folder is None or name.startswith(folder.text + "/")


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of an upload's blocks.

    Attributes:
        first: position of the first byte wanted (0 but for ranged downloads).
        end: position after the last byte, or None while unknown.
        short_end: where the file ends according to a short block of an upload of unknown size, or None.
    """

    first: int = 0
    end: int | None = None
    short_end: int | None = None

    @property
    def known_end(self) -> int | None:
        """Where the file ends, as far as that is known."""
        return self.short_end if self.end is None else self.end

    def blocknos(self, end: int) -> range:
        """The blocks that make up the file when it ends at position ``end``."""
        if end <= self.first:
            return range(0)
        return range(self.first // BLOCK_LENGTH, blocknum_of(end))

    def held_end(self, blockno: int) -> int:
        """The position up to which bytes must be there for ``blockno`` to be held, at the most."""
        end = (blockno + 1) * BLOCK_LENGTH
        limit = self.end if self.end is not None else self.short_end
        return end if limit is None else min(end, limit)


def check_attempt(recorded: int, attempt: int) -> None:
    """Raise Superseded if ``attempt`` is smaller than the upload's."""
    if attempt < recorded:
        raise Superseded(current=recorded)


def check_block(shape: Shape, work: BlockDone) -> Shape:
    """Check that a block's number and length fit the file; returns the shape that is known with it.

    Raises:
        BadFacts: they do not.
    """
    if work.blockno < 0 or not 0 < work.length <= BLOCK_LENGTH:
        raise BadFacts(f"no block {work.blockno} of {work.length} bytes can be", blockno=max(work.blockno, 0))
    if shape.end is not None:
        _, length = block_span(work.blockno, shape.first, shape.end)
        if length == 0 or length != work.length:
            raise BadFacts(
                f"block {work.blockno} has {work.length} bytes where {length} belong", blockno=work.blockno
            )
        return shape
    end = work.blockno * BLOCK_LENGTH + work.length
    if shape.short_end is not None and (
        end > shape.short_end or (work.length < BLOCK_LENGTH and end != shape.short_end)
    ):
        raise BadFacts(f"the file ended at {shape.short_end} before", blockno=work.blockno)
    if work.length < BLOCK_LENGTH:
        return Shape(shape.first, None, end)
    return shape


def check_finish(shape: Shape, work: Finish, held: Iterable[tuple[int, bytes]]) -> None:
    """Check that the blocks held are exactly those of the file, and that the roots agree.

    Args:
        shape: what is known of the upload.
        work: what the sender states.
        held: (blockno, digest) in rising order.

    Raises:
        BadFacts: the sizes disagree.
        DigestsDiffer: a block is missing, or the root is another one.
    """
    known = shape.end if shape.end is not None else shape.short_end
    end = work.filesize
    if known is not None and end != known:
        raise BadFacts(f"the file ends at {known}, not at {end}")
    if known is None and work.filesize % BLOCK_LENGTH:
        raise DigestsDiffer("the last block is missing", blockno=end // BLOCK_LENGTH)
    wanted = shape.blocknos(end)
    found = iter(held)
    digests = []
    for expected in wanted:
        blockno, digest = next(found, (None, b""))
        if blockno != expected:
            raise DigestsDiffer("a block is missing", blockno=expected)
        digests.append(digest)
    for blockno, _ in found:
        raise BadFacts(f"block {blockno} lies behind the end at {end}", blockno=blockno)
    if root_of(digests, len(wanted)) != work.root:
        raise DigestsDiffer


def check_brief(work: Finish) -> None:
    """Check a file that came without OPEN; as ``check_finish`` with the blocks that came with the work."""
    if len(work.blocks) == 1:
        (block,) = work.blocks
        if block.blockno == 0 and 0 < block.length == work.filesize <= BLOCK_LENGTH:
            if block.digest != work.root:
                raise DigestsDiffer
            return
    shape = Shape(0, work.filesize)
    if len(work.blocks) > 1:
        raise BadFacts("a file of more than one block needs OPEN")
    for block in work.blocks:
        check_block(shape, block)
    check_finish(shape, work, [(block.blockno, block.digest) for block in work.blocks])


def sourceid_after(cursor: str) -> bytes:
    """The sourceid that a listing of uploads goes on after; no bytes for the first page.

    Raises:
        NotPermitted: no listing ever gave that cursor (BP1-LST-003).
    """
    if not re.fullmatch(r"([0-9a-f]{32})?", cursor):
        raise NotPermitted("the cursor is none of ours")
    return bytes.fromhex(cursor)


def check_receipt(receipt: StoredFile, work: Finish) -> StoredFile:
    """The receipt of an upload that was committed before, if it answers ``work``.

    Raises:
        SourceChanged: the same sourceid was committed with other bytes.
    """
    if (receipt.root, receipt.filesize) != (work.root, work.filesize):
        raise SourceChanged("this sourceid was committed with other bytes")
    return receipt


def free_names(filename: SafeName) -> Iterator[SafeName]:
    """The names to try in turn when ``filename`` is taken: "name (1).ext", "name (2).ext" and so on."""
    return (free_name(filename, number) for number in range(1, NUMBERS_MAX))


def free_name(filename: SafeName, number: int) -> SafeName:
    """One of them. Raises NameRefused: there is no room for a number."""
    *folders, name = filename.components
    above = sum(len(part.encode()) + 1 for part in folders)
    free = numbered(name, number, min(COMPONENT_LENGTH_MAX, FILENAME_LENGTH_MAX - above))
    return SafeName.parse("/".join([*folders, free]))


def first_free(
    filename: SafeName,
    is_free: Callable[[SafeName], bool],
    name_of: Callable[[SafeName, int], SafeName] = free_name,
) -> SafeName:
    """The first of ``free_names`` that is free; behind many that are taken, one whose predecessor is.

    It asks for ``TRIED_IN_TURN`` names and then for as many as the number of those taken has bits, twice. ``name_of`` makes
    them, as ``free_name`` does.

    Raises:
        NameRefused: there is no room for a number, or no number.
    """
    for number in range(1, TRIED_IN_TURN):
        if is_free(name := name_of(filename, number)):
            return name
    taken, number = TRIED_IN_TURN - 1, TRIED_IN_TURN
    while not is_free(name := name_of(filename, number)):
        taken, number = number, 2 * number
        if number > NUMBERS_MAX:
            raise NameRefused("there are too many files of that name", rule="length")
    while number - taken > 1:
        middle = (taken + number) // 2
        if is_free(between := name_of(filename, middle)):
            number, name = middle, between
        else:
            taken = middle
    return name


def outcome_of(error: BlockprotoError) -> BlockprotoError:
    """An error as the outcome of a work: without its traceback, which would keep a whole batch alive."""
    return error.with_traceback(None)

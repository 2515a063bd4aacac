"""Block arithmetic, sets of blocks, and digests.

A file is cut into blocks of 1 MiB (the last may be shorter); ``blocknum`` is how many, ``blockno`` is which one, from 0,
``position`` is a byte offset in the file. A block is the unit of digest, ledger and repair.

``BlockSet`` keeps runs, not bits: uploads arrive mostly in order, so a set of a million blocks is usually one run, and
the wire speaks in runs too. Invariant: ``starts[i] < ends[i] < starts[i + 1]`` (runs neither touch nor overlap).

Spec: BP1-BLK.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from blake3 import blake3

BLOCK_LENGTH = 1 << 20
"""Bytes in a block (BP1-BLK-001)."""

BRIEF_LENGTH_MAX = 64 * 1024
"""The most bytes of a brief file, which is sent and fetched without a question first, in memory, and not paced."""

DIGEST_LENGTH = 32
"""Bytes in a BLAKE3 digest."""

EMPTY_DIGEST = blake3(b"").digest()

Run = tuple[int, int]
"""(first blockno, how many), the second at least 1."""


BLOCKNUM_MAX = (1 << 32) - 2
"""The most blocks that a file has (BP1-BLK-002)."""

FILESIZE_MAX = BLOCKNUM_MAX * BLOCK_LENGTH
"""The most bytes that a file has; a sparse one can be larger on its disk."""


def blocknum_of(filesize: int) -> int:
    """How many blocks a file of ``filesize`` bytes has (0 for an empty file)."""
    return -(-filesize // BLOCK_LENGTH)


def is_one_block(filesize: int | None) -> bool:
    """Whether a file of ``filesize`` bytes, None if unknown, is known to have one block at most (BP1-BLK-014)."""
    return filesize is not None and filesize <= BLOCK_LENGTH


def block_span(blockno: int, first: int, end: int) -> tuple[int, int]:
    """The bytes of a block that lie in ``[first, end)`` of the file, as (position, length).

    For a whole file ``first`` is 0 and ``end`` its filesize; for a ranged download they are the range, and a block is its
    intersection with the range (BP1-FET).
    """
    start = max(blockno * BLOCK_LENGTH, first)
    return start, max(0, min((blockno + 1) * BLOCK_LENGTH, end) - start)


def digest_of(block: bytes | bytearray | memoryview) -> bytes:
    """The BLAKE3 digest of a block's bytes."""
    return blake3(block).digest()


def root_of(digests: Iterable[bytes], blocknum: int) -> bytes:
    """The root of a file: its only digest for at most one block, else BLAKE3 over all digests in order (BP1-DIG)."""
    if blocknum == 0:
        return EMPTY_DIGEST
    if blocknum == 1:
        return next(iter(digests))
    hasher = blake3()
    for digest in digests:
        hasher.update(digest)
    return hasher.digest()


class BlockSet:
    """A set of blocknos, kept as sorted runs.

    Args:
        runs: (first, count) pairs in any order; they may overlap.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for first, count in runs:
            self.add(first, count)

    def add(self, first: int, count: int = 1) -> None:
        """Add ``count`` blocks from ``first`` on."""
        if count <= 0:
            return
        end = first + count
        if not self._ends or first > self._ends[-1]:  # runs mostly come in rising order
            self._starts.append(first)
            self._ends.append(end)
            return
        left = bisect_left(self._ends, first)
        right = bisect_right(self._starts, end)
        if left < right:
            first = min(first, self._starts[left])
            end = max(end, self._ends[right - 1])
        self._starts[left:right] = [first]
        self._ends[left:right] = [end]

    def discard(self, first: int, count: int = 1) -> None:
        """Remove ``count`` blocks from ``first`` on, whether or not they are in the set."""
        if count <= 0:
            return
        end = first + count
        left = bisect_right(self._ends, first)
        right = bisect_left(self._starts, end)
        before_and_after = [
            run
            for start, stop in zip(self._starts[left:right], self._ends[left:right], strict=True)
            for run in ((start, min(stop, first)), (max(start, end), stop))
        ]
        kept = [(start, stop) for start, stop in before_and_after if start < stop]
        self._starts[left:right] = [start for start, _ in kept]
        self._ends[left:right] = [stop for _, stop in kept]

    def __contains__(self, blockno: object) -> bool:
        if not isinstance(blockno, int):
            return False
        at = bisect_right(self._starts, blockno) - 1
        return at >= 0 and blockno < self._ends[at]

    def __len__(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[int]:
        for start, end in zip(self._starts, self._ends, strict=True):
            yield from range(start, end)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockSet) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"BlockSet({self.runs()!r})"

    def copy(self) -> BlockSet:
        """An independent set with the same blocks."""
        twin = BlockSet()
        twin._starts, twin._ends = self._starts.copy(), self._ends.copy()
        return twin

    def runs(self, limit: int | None = None) -> list[Run]:
        """The runs in rising order, the first ``limit`` of them at most."""
        pairs = zip(self._starts[:limit], self._ends[:limit], strict=True)
        return [(start, end - start) for start, end in pairs]

    def missing(self, blocknum: int) -> Iterator[int]:
        """The blocknos below ``blocknum`` that are not in the set, rising; the set may grow meanwhile."""
        blockno = 0
        while blockno < blocknum:
            at = bisect_right(self._starts, blockno) - 1
            if at >= 0 and blockno < self._ends[at]:
                blockno = self._ends[at]
                continue
            yield blockno
            blockno += 1

    def first_gap(self, start: int = 0) -> int:
        """The lowest blockno from ``start`` on that is not in the set."""
        at = bisect_right(self._starts, start) - 1
        return max(start, self._ends[at]) if at >= 0 else start

    def position(self, filesize: int | None) -> int:
        """The bytes held without a gap from the file's start; at most ``filesize`` where that is known."""
        held = self.first_gap() * BLOCK_LENGTH
        return held if filesize is None else min(held, filesize)

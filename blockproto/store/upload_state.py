"""What a work does to an unfinished upload: one pure function, ``apply``, so that no two stores can differ.

    state ─ apply(BlockDone) → state ─ apply(Forget) → state ─ apply(Finish) → state: the file is complete

A store begins with what it has recorded, applies the works of a call in order, and records what is new. One that keeps the
state itself has recorded nothing beside it.

Spec: spec/store.md §3; BP1-RES, BP1-BLK-003, BP1-COM-003, BP1-DIG-009.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..common.blocks import BLOCK_LENGTH, block_span, blocknum_of, root_of
from ..errors import BadFacts, DigestsDiffer, Superseded
from . import BlockDone, Finish, Forget, KeepPrefixes, Prefix


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

    def length(self, blockno: int) -> int:
        """How many bytes of a block that is held there are."""
        return self.held_end(blockno) - max(self.first, blockno * BLOCK_LENGTH)

    def held_end(self, blockno: int) -> int:
        """The position up to which bytes must be there for ``blockno`` to be held, at the most."""
        end = (blockno + 1) * BLOCK_LENGTH
        limit = self.end if self.end is not None else self.short_end
        return end if limit is None else min(end, limit)


@dataclass(frozen=True, slots=True)
class UploadState:
    """An unfinished upload, as works have made it since it was recorded.

    Attributes:
        shape: what is known of its blocks.
        attempt: the greatest one that did something.
        digests: of the blocks that have come.
        dropped: the recorded blocks that are not held any more, unless they are in ``digests``.
        prefixes: those of unfinished blocks; None: as recorded, but for blocks that have come.
    """

    shape: Shape
    attempt: int = 0
    digests: Mapping[int, bytes] = field(default_factory=dict)
    dropped: frozenset[int] = frozenset()
    prefixes: Mapping[int, Prefix] | None = None

    def held(self, recorded: Iterable[tuple[int, bytes]]) -> Iterable[tuple[int, bytes]]:
        """(blockno, digest) of every block that is held, rising, where those in ``recorded`` were."""
        if not self.digests and not self.dropped:
            return recorded
        digests = {blockno: digest for blockno, digest in recorded if blockno not in self.dropped}
        digests.update(self.digests)
        return sorted(digests.items())


def apply(
    state: UploadState,
    work: BlockDone | Finish | Forget | KeepPrefixes,
    recorded: Iterable[tuple[int, bytes]] = (),
) -> UploadState:
    """The upload once ``work`` is done to it; after a ``Finish`` the file is complete, and may get its name.

    Args:
        state: the upload, which stays as it is.
        work: of this upload.
        recorded: (blockno, digest) of the blocks that are held beside ``state``, rising; a ``Finish`` reads them.

    Raises:
        Superseded: a greater attempt did something to it.
        BadFacts: a number or length does not fit the file.
        DigestsDiffer: a block is missing, or the root is another one.
    """
    _check_attempt(state.attempt, work.attempt)
    state = replace(state, attempt=work.attempt)
    match work:
        case BlockDone():
            shape = _check_block(state.shape, work)
            digests = {**state.digests, work.blockno: work.digest}
            return replace(
                state, shape=shape, digests=digests, prefixes=_without(state.prefixes, work.blockno)
            )
        case Forget():
            digests = {no: digest for no, digest in state.digests.items() if no not in work.blocknos}
            return replace(state, digests=digests, dropped=state.dropped.union(work.blocknos))
        case KeepPrefixes():
            return replace(state, prefixes=dict(work.prefixes))
        case Finish(blocks=()):
            _check_finish(state.shape, work, state.held(recorded))
        case Finish():
            check_brief(work)
    return state


def _check_attempt(recorded: int, attempt: int) -> None:
    if attempt < recorded:
        raise Superseded(current=recorded)


def _without(prefixes: Mapping[int, Prefix] | None, blockno: int) -> Mapping[int, Prefix] | None:
    if prefixes is None or blockno not in prefixes:
        return prefixes
    return {other: prefix for other, prefix in prefixes.items() if other != blockno}


def _check_block(shape: Shape, work: BlockDone) -> Shape:
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


def _check_finish(shape: Shape, work: Finish, held: Iterable[tuple[int, bytes]]) -> None:
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
    """Check a file that came without OPEN; as ``apply`` with the blocks that came with the work."""
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
        _check_block(shape, block)
    _check_finish(shape, work, [(block.blockno, block.digest) for block in work.blocks])

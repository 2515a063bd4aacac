"""What one decision of a download changes."""

from __future__ import annotations

from collections.abc import Sequence

from ...common.blocks import BLOCK_LENGTH
from .. import Finish, Outcome, Prefix, Work
from ..rules import Shape
from .ledger import Begun, attempt_record, blocks_record, dropped_record, prefixes_record


class Plan:
    """What one decision adds to the ledger.

    Args:
        shape: what is known of the file before it.
        works: what is asked for.

    Attributes:
        outcomes: what became of each work.
        changes: the works that change the ledger, but for ``finish``.
    """

    def __init__(self, shape: Shape, works: Sequence[Work]) -> None:
        self.shape = shape
        self.outcomes: dict[Work, Outcome] = dict.fromkeys(works)
        self.changes: list[Work] = []
        self.blocks: dict[int, tuple[int, bytes]] = {}
        self.dropped: set[int] = set()
        self.prefixes: dict[int, Prefix] | None = None
        self.attempt = 0
        self.finish: Finish | None = None
        self.twins: list[Finish] = []

    def finished(self, outcome: Outcome) -> None:
        """What became of ``finish`` and its twins."""
        if self.finish is not None:
            self.outcomes.update(dict.fromkeys((self.finish, *self.twins), outcome))

    def held(self, begun: Begun) -> list[tuple[int, bytes]]:
        """(blockno, digest) of what is held with it, rising."""
        blocks = {blockno: kept for blockno, kept in begun.blocks.items() if blockno not in self.dropped}
        blocks.update(self.blocks)
        return [(blockno, digest) for blockno, (_, digest) in sorted(blocks.items())]

    def records(self, begun: Begun) -> bytes:
        """The records, in an order in which each is true when it is read."""
        found = b""
        if self.attempt > begun.attempt:
            found += attempt_record(self.attempt)
        if self.dropped:
            found += dropped_record(self.dropped)
        if self.blocks:
            found += blocks_record(self.blocks)
        if self.prefixes is not None:
            found += prefixes_record(self.prefixes)
        return found

    def apply(self, begun: Begun) -> None:
        """The ledger has them now."""
        begun.attempt = max(begun.attempt, self.attempt)
        for blockno in self.dropped:
            begun.blocks.pop(blockno, None)
        begun.blocks.update(self.blocks)
        for blockno in self.blocks:
            begun.prefixes.pop(blockno, None)
        if self.prefixes is not None:
            begun.prefixes = dict(self.prefixes)


def shape_of(begun: Begun) -> Shape:
    """What is known of a download's blocks."""
    end = begun.facts.filesize
    short = [
        blockno * BLOCK_LENGTH + length
        for blockno, (length, _) in begun.blocks.items()
        if end is None and length < BLOCK_LENGTH
    ]
    return Shape(begun.first, end, max(short, default=None))

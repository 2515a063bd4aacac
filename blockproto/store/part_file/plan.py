"""What one decision of a download changes."""

from __future__ import annotations

from collections.abc import Sequence

from .. import Finish, Outcome, Work
from ..upload_state import Shape, UploadState
from .ledger import Begun, Record, attempt_record, blocks_record, dropped_record, prefixes_record


class Plan:
    """What one decision adds to the ledger.

    Args:
        begun: the download before it, or None.
        works: what is asked for.

    Attributes:
        state: the download after those works that can be done.
        outcomes: what became of each work.
        changes: the works that need the ledger or a name.
        finish, twins: the work that makes the file complete, and those that repeat it.
    """

    def __init__(self, begun: Begun | None, works: Sequence[Work]) -> None:
        self.state = UploadState(Shape()) if begun is None else UploadState(begun.shape, begun.attempt)
        self.outcomes: dict[Work, Outcome] = dict.fromkeys(works)
        self.changes: list[Work] = []
        self.finish: Finish | None = None
        self.twins: list[Finish] = []

    def finished(self, outcome: Outcome) -> None:
        """What became of ``finish`` and its twins."""
        if self.finish is not None:
            self.outcomes.update(dict.fromkeys((self.finish, *self.twins), outcome))

    def records(self, begun: Begun) -> list[Record]:
        """The records, in an order in which each is true when it is read."""
        state, shape = self.state, self.state.shape
        found = []
        if state.attempt > begun.attempt:
            found.append(attempt_record(state.attempt))
        if dropped := state.dropped & begun.blocks.keys():
            found.append(dropped_record(dropped))
        if state.digests:
            found.append(
                blocks_record({no: (shape.length(no), digest) for no, digest in state.digests.items()})
            )
        if state.prefixes is not None and (state.prefixes or begun.prefixes):
            found.append(prefixes_record(state.prefixes))
        return found

"""The committer's queue: the works that wait for their batch, by principal and by peer.

    principal → PrincipalQueue: small works │ RoundRobin: peer → queue, peer → queue, …
                                big works   │ RoundRobin: peer → queue, …

Within one queue works keep the order in which they were submitted; the queues of one ``RoundRobin`` take turns. What a batch
takes of a peer is limited by cost: replacing a file costs the file system several times as much as a new name.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..store import (
    Adopt,
    BlockDone,
    Discard,
    Finish,
    Forget,
    IfExists,
    KeepPrefixes,
    Outcome,
    StoreFiles,
    UploadKey,
    Work,
)

Done = Callable[[Outcome], None]

REPLACING_COST = 4
"""Cost of a file that replaces another; any other work costs 1 (on ext4: 2 ms instead of 0.02 to 1 ms)."""


FILES_A_WORK = 8
"""So many whole files of one ``StoreFiles`` count as one work: 16 frames of 256 files make a batch full, and one of them is
more than the share of a principal while there are others."""

FILES_A_COST = 2
"""So many whole files cost as much as one work: a peer has one big frame in a batch while its principal has other peers."""

_REPLACING = (IfExists.REPLACE, IfExists.UPDATE)


def works_of(work: Work) -> int:
    """As how many works it counts."""
    return max(1, -(-len(work.files) // FILES_A_WORK)) if isinstance(work, StoreFiles) else 1


def cost_of(work: Work) -> int:
    """The cost of a work in a batch; a plain one costs 1."""
    if isinstance(work, StoreFiles):
        replacing = sum(file.facts.if_exists in _REPLACING for file in work.files)
        return max(1, -(-(len(work.files) + replacing * (REPLACING_COST - 1)) // FILES_A_COST))
    replaces = isinstance(work, Finish) and work.facts.if_exists in _REPLACING
    return REPLACING_COST if replaces else 1


@dataclass(slots=True)
class Queued:
    """A work that waits for its batch.

    Attributes:
        work, done, principal: as submitted.
        peer: in whose queue.
    """

    work: Work
    done: Done
    principal: bytes
    peer: int

    @property
    def keys(self) -> Sequence[UploadKey]:
        """The uploads among whose works order is kept."""
        work = self.work
        if isinstance(work, BlockDone | Finish | Forget | KeepPrefixes):
            return (work.upload.key,)
        if isinstance(work, StoreFiles):
            return [file.key for file in work.files]
        return (work.key,) if isinstance(work, Adopt | Discard) else ()


class RoundRobin:
    """Queues of several peers, served in turn; empty ones are removed."""

    def __init__(self) -> None:
        self.queues: OrderedDict[int, deque[Queued]] = OrderedDict()

    def put(self, queued: Queued) -> None:
        """Append a work to the queue of its peer."""
        self.queues.setdefault(queued.peer, deque()).append(queued)

    def pop(self, costs: Counter[int], most: float, busy: set[UploadKey]) -> Queued | None:
        """Take the next work of a peer whose works in the batch, by ``costs``, cost no more than ``most`` with it.

        A peer's first may cost more. Works of uploads that are ``busy`` in another batch wait in the queue.
        """
        for peer, queue in self.queues.items():
            if costs[peer] >= most:
                continue
            free = (at for at, queued in enumerate(queue) if busy.isdisjoint(queued.keys))
            at = next(free, -1) if busy else 0
            if at >= 0 and (not costs[peer] or costs[peer] + cost_of(queue[at].work) <= most):
                queued = queue[at]
                del queue[at]
                self.queues.move_to_end(peer)
                if not queue:
                    del self.queues[peer]
                return queued
        return None

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))


class PrincipalQueue:
    """The queued works of one principal."""

    def __init__(self) -> None:
        self.small = RoundRobin()
        self.big = RoundRobin()

    @property
    def peers(self) -> set[int]:
        """The peers that have works queued."""
        return {*self.small.queues, *self.big.queues}


class Share:
    """The share of one principal in a batch.

    Args:
        principal_queue: its queued works.
        most: how many of them the batch may have.
        most_of_one: what those of one peer may cost.
        busy: uploads with works in another batch.

    Attributes:
        costs: the cost so far, by peer.
    """

    def __init__(
        self, principal_queue: PrincipalQueue, most: int, most_of_one: float, busy: set[UploadKey]
    ) -> None:
        self._principal_queue = principal_queue
        self._left = most
        self._most_of_one = most_of_one
        self._busy = busy
        self.costs: Counter[int] = Counter()

    def pop(self) -> Queued | None:
        """Take one more work; None if there is none or the share is used up."""
        if self._left <= 0:
            return None
        limits = self.costs, self._most_of_one, self._busy
        queued = self._principal_queue.small.pop(*limits) or self._principal_queue.big.pop(*limits)
        if queued is not None:
            self._left -= works_of(queued.work)
            self.costs[queued.peer] += cost_of(queued.work)
        return queued

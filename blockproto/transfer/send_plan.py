"""SendPlan: what is left to send of a file, as pure state: held, missing and resent blocks, digests, and the window.

No Trio, no input, no output: ``sender.Sender`` asks it what to do and tells it what happened.

    begin_round → next → block_begins → acknowledged …  → commit
                   ↑ damaged, lost: the block comes again   ↓ the roots differ
                   └─────────── repair_ends ←── have_pages ─┘

Invariant: bytes sent − bytes durable ≤ ``undurable_max`` of the receiver, but for one block and what comes again.

Spec: BP1-BLK, BP1-RES, BP1-COM, BP1-DIG.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto
from itertools import count

from ..common.blocks import BLOCK_LENGTH, DIGEST_LENGTH, BlockSet, Run, blocknum_of, root_of
from ..errors import Code, DigestMismatch, DigestsDiffer

AGAIN_MAX = 3
"""How often to resend a block that arrived damaged (BP1-ERR)."""
REPAIRS_MAX = 3
"""Rounds of HAVE after which a sender gives up: its file is changing (BP1-DIG)."""
_BLOCKNUM_MAX = 1 << 63


class Wait(Enum):
    """Something is left to send but cannot be sent now: ask again after the receiver's next message."""

    WAIT = auto()


def _always(blockno: int) -> bool:
    """Every block can be read at any time."""
    return True


class SendPlan:
    """The blocks of one file and the state of each.

    Args:
        first: position of the first byte to send.
        end: position after the last one, or None while unknown.
        root: of the file, if it is known before it is sent.

    Attributes:
        end: as above; ``ends_at`` sets it.
        root: of the file, or None while unknown.
        held: the blocks that are durable at the receiver.
        held_before: those of its first OPENED or FETCH, or None.
        prefixes: bytes that it holds of each unfinished block.
        travelled: the blocks that were sent at least once.
        bytes_there: bytes that the receiver last said it has, unfinished blocks included.
        reached: the most bytes that it ever had, unfinished blocks included; −1: it has said nothing yet.
        undurable_max: bytes that may be sent and not yet durable.
    """

    def __init__(self, first: int, end: int | None, root: bytes | None = None) -> None:
        self.end = end
        self.root = root
        self.held = BlockSet()
        self.held_before: BlockSet | None = None
        self.prefixes: dict[int, int] = {}
        self.travelled = BlockSet()
        self.bytes_there = 0
        self.reached = -1
        self.undurable_max = BLOCK_LENGTH
        self._first_block = first // BLOCK_LENGTH
        self._blocknum: int | None = None if end is None else blocknum_of(end)
        if end is not None and end <= first:
            self._blocknum = self._first_block
        self._tail: tuple[int, int] | None = None
        self._in_flight: dict[int, int] = {}
        self._undurable = 0
        self._missing: Iterator[int] = iter(())
        self._foreseen: int | None = None
        self._ahead: int | None = None
        self._untouched_from = 0
        self._again: deque[int] = deque()
        self._tries: dict[int, int] = {}
        self._digests = bytearray()
        self._digested = BlockSet()
        self._repairs = 0

    # ---- rounds -----------------------------------------------------------------------------------------------

    def begin_again(self) -> None:
        """Forget what the streams of the previous round still had to do."""
        self._ahead = None
        self._again.clear()

    def begin_round(self, undurable_max: int) -> None:
        """Begin to send what is missing over new streams; only the block that was sent ahead is under way."""
        self.undurable_max = undurable_max
        self._in_flight = {no: length for no, length in self._in_flight.items() if no == self._ahead}
        self._undurable = sum(self._in_flight.values())
        self._look_for_missing()

    def take_untouched(self) -> int | None:
        """Take a block that can be sent before OPENED comes, because the receiver has nothing of it (BP1-RES-012).

        None if there is none, and before the first OPENED or while the size is unknown.
        """
        if self.reached < 0 or self._blocknum is None:
            return None
        missing = self.held.missing(self._blocknum)
        untouched = (no for no in missing if no >= self._untouched_from and no not in self.prefixes)
        self._ahead = next(untouched, None)
        return self._ahead

    def _look_for_missing(self) -> None:
        self._foreseen = None
        if self._blocknum is None:
            self._missing = (blockno for blockno in count() if blockno not in self.held)
            return
        missing, first, ahead = self.held.missing(self._blocknum), self._first_block, self._ahead
        self._missing = (blockno for blockno in missing if blockno >= first and blockno != ahead)

    # ---- what the receiver says -------------------------------------------------------------------------------

    def receiver_holds(self, held: BlockSet, prefixes: dict[int, int], position: int = 0) -> list[int]:
        """The receiver said (OPENED, FETCH) what it holds: runs, prefixes, and everything below a position.

        Returns:
            The blocks under way that are durable now.
        """
        self.held = held
        self._hold_up_to(position)
        self._clip_held()
        self.prefixes = prefixes
        self.bytes_there = len(self.held) * BLOCK_LENGTH + sum(prefixes.values())
        self.reached = max(self.reached, self.bytes_there)
        if self.held_before is None:
            self.held_before = held.copy()
        return [blockno for blockno in self._in_flight if blockno in held]

    def acknowledged(self, runs: Sequence[Run], position: int) -> list[int]:
        """ACK came: more blocks are durable (BP1-RES-018).

        Returns:
            The blocks that were under way and are durable now.
        """
        for first, number in runs:
            self.held.add(first, number)
        self._hold_up_to(position)
        self._clip_held()
        durable = [blockno for blockno in self._in_flight if blockno in self.held]
        for blockno in durable:
            self._undurable -= self._in_flight.pop(blockno)
        for blockno in [blockno for blockno in self._again if blockno in self.held]:
            self._again.remove(blockno)  # it did arrive on a stream that was lost
        self.reached = max(self.reached, len(self.held) * BLOCK_LENGTH)
        return durable

    def damaged(self, blockno: int | None, said: str) -> None:
        """Send a block again because it arrived damaged; ``said``: the receiver's text.

        Raises:
            DigestMismatch: it was resent ``AGAIN_MAX`` times; with the code BAD_FACTS: it was never sent.
        """
        if blockno is None or blockno not in self._digested:
            what = "a block without a number" if blockno is None else f"block {blockno}"
            raise DigestMismatch(
                f"the other side says that {what} arrived damaged, and it was not sent on this stream yet",
                code=Code.BAD_FACTS,
            )
        self._tries[blockno] = self._tries.get(blockno, 0) + 1
        if self._tries[blockno] > AGAIN_MAX:
            raise DigestMismatch(f"{said}: sent {AGAIN_MAX} times again", blockno=blockno)
        self.prefixes.pop(blockno, None)
        self._again.append(blockno)

    def lost(self, carried: Iterable[int], begun: dict[int, int]) -> None:
        """Send again the blocks that a lost stream ``carried``, unless held; ``begun``: the receiver's prefixes."""
        for blockno in sorted(blockno for blockno in carried if blockno not in self.held):
            self.prefixes[blockno] = begun.get(blockno, 0)
            self._again.append(blockno)

    def _clip_held(self) -> None:
        """Ignore blocks that do not exist."""
        self.held.discard(0, self._first_block)
        if self._blocknum is not None:
            self.held.discard(self._blocknum, _BLOCKNUM_MAX)

    def _hold_up_to(self, position: int) -> None:
        """Count every block that ends at or before ``position`` as durable, even without a run (BP1-RES-018)."""
        whole = position >= self.end if self.end is not None else False
        after = blocknum_of(position) if whole else position // BLOCK_LENGTH
        self.held.add(self._first_block, after - self._first_block)

    # ---- what to send next ------------------------------------------------------------------------------------

    @property
    def again(self) -> bool:
        """Whether a block waits to be sent again."""
        return bool(self._again)

    def next(self, ready: Callable[[int], bool] = _always) -> int | Wait | None:
        """Take the next block to send; None if there is none left.

        Args:
            ready: whether a block can be read now; if not, wait for it instead of sending a later one.
        """
        if self._again:
            return self._again.popleft()
        if self._undurable and self._undurable + BLOCK_LENGTH > self.undurable_max:
            return Wait.WAIT
        blockno = self._foreseen if self._foreseen is not None else next(self._missing, None)
        if blockno is None:
            return None
        self._foreseen = blockno
        if not ready(blockno):
            return Wait.WAIT
        self._foreseen = None
        self._reserve(blockno, BLOCK_LENGTH)  # before it is read, because other streams may ask meanwhile
        return blockno

    def block_begins(self, blockno: int, length: int) -> None:
        """A stream begins to send this block."""
        self._reserve(blockno, length)
        self._untouched_from = max(self._untouched_from, blockno + 1)
        self.travelled.add(blockno)
        if self.end is None and length < BLOCK_LENGTH:
            self._tail = (blockno, length)

    def take_prefix(self, blockno: int, length: int) -> int:
        """Take the receiver's prefix of a block of ``length`` bytes: the bytes that need not be sent."""
        there = self.prefixes.pop(blockno, 0)
        return there if there < length else 0

    def ends_at(self, end: int) -> None:
        """A source of unknown size ends at this position."""
        self._undurable -= self._in_flight.pop(blocknum_of(end), 0)
        self.end = end
        self._blocknum = blocknum_of(end)
        self._missing, self._foreseen = iter(()), None

    def _reserve(self, blockno: int, length: int) -> None:
        """Count ``length`` bytes of a block as sent and not durable."""
        self._undurable += length - self._in_flight.get(blockno, 0)
        self._in_flight[blockno] = length

    # ---- digests ----------------------------------------------------------------------------------------------

    def remember_digest(self, blockno: int, digest: bytes) -> None:
        """Keep the digest of a block that was read."""
        at = (blockno - self._first_block) * DIGEST_LENGTH
        if len(self._digests) < at + DIGEST_LENGTH:
            self._digests.extend(bytes(at + DIGEST_LENGTH - len(self._digests)))
        self._digests[at : at + DIGEST_LENGTH] = digest
        self._digested.add(blockno)

    def undigested(self) -> list[int]:
        """The held blocks that are not under way and whose digests are not known."""
        return [no for no in self.held if no not in self._digested and no not in self._in_flight]

    def compute_root(self) -> bytes:
        """Compute and set ``root``; the end and all digests have to be known."""
        blocknum = self._ends_with()
        digests = (self._digest(blockno) for blockno in range(self._first_block, blocknum))
        self.root = root_of(digests, blocknum - self._first_block)
        return self.root

    def repair_begins(self) -> None:
        """The receiver says that the roots differ.

        Raises:
            DigestsDiffer: it said so more than ``REPAIRS_MAX`` times.
        """
        self._repairs += 1
        if self._repairs > REPAIRS_MAX:
            raise DigestsDiffer(
                f"the other side says that it holds another content, also after {REPAIRS_MAX} repairs"
            )

    def have_pages(self, most: int) -> Iterator[tuple[tuple[tuple[int, bytes], ...], bool]]:
        """All digests in pages of at most ``most``, each with whether more follow; at least one page (BP1-DIG)."""
        blocknum = self._ends_with()
        for first in range(self._first_block, max(blocknum, self._first_block + 1), most):
            page = range(first, min(first + most, blocknum))
            digests = tuple((blockno, self._digest(blockno)) for blockno in page)
            yield digests, first + most < blocknum

    def repair_ends(self) -> None:
        """The receiver has said what it still holds: the rest is missing."""
        self._ahead = None
        self._look_for_missing()

    def _ends_with(self) -> int:
        """The number of blocks; the end has to be known."""
        assert self._blocknum is not None
        return self._blocknum

    def _digest(self, blockno: int) -> bytes:
        at = (blockno - self._first_block) * DIGEST_LENGTH
        return bytes(self._digests[at : at + DIGEST_LENGTH])

    # ---- figures ----------------------------------------------------------------------------------------------

    def bytes_held(self) -> int:
        """Bytes of the blocks that are durable at the receiver."""
        tail, end = self._tail, self.end
        if end is not None and end % BLOCK_LENGTH:
            tail = (end // BLOCK_LENGTH, end % BLOCK_LENGTH)
        lacking = BLOCK_LENGTH - tail[1] if tail is not None and tail[0] in self.held else 0
        return len(self.held) * BLOCK_LENGTH - lacking

"""The plan of a sender against a model of its receiver, in every order of what can happen; and its edges one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blockproto.common.blocks import BLOCK_LENGTH, DIGEST_LENGTH, BlockSet, blocknum_of, root_of
from blockproto.errors import Code, DigestMismatch, DigestsDiffer
from blockproto.transfer.send_plan import AGAIN_MAX, REPAIRS_MAX, SendPlan, Wait

BLOCKS_MAX = 7
STREAMS = 3


def digest_for(blockno: int) -> bytes:
    return bytes([blockno + 1]) * DIGEST_LENGTH


def some_of(data: st.DataObject, these: Iterable[int]) -> set[int]:
    """Any of them, or none."""
    return {blockno for blockno in sorted(these) if data.draw(st.booleans(), f"{blockno}?")}


class Plan(RuleBasedStateMachine):
    """A file over streams that are lost, to a receiver that damages, forgets and acknowledges as it likes.

    Attributes:
        kept: the blocks that are durable at the receiver.
        told: those of which the sender knows that.
        carried: by stream, the blocks begun on it; ``arriving``: those of them of which nothing was said yet.
        late: what came on a stream that was lost, after the receiver had answered the one in its place.
        begun: the blocks begun since the sender last heard OPENED for all of its streams.
        taken: the block that each stream has asked for and not yet begun.
        owed: how often each block may still be begun.
    """

    @initialize(
        blocks=st.integers(0, BLOCKS_MAX),
        tail=st.sampled_from([1, 5, BLOCK_LENGTH]),
        known=st.booleans(),
        window=st.sampled_from([0, 1, 2 * BLOCK_LENGTH, 3 * BLOCK_LENGTH, 1 << 40]),
    )
    def begin(self, blocks: int, tail: int, known: bool, window: int) -> None:
        self.size = (blocks - 1) * BLOCK_LENGTH + tail if blocks else 0
        self.blocks = range(blocks)
        self.known = known
        self.window = window
        self.plan = SendPlan(0, self.size if known else None)
        self.kept: set[int] = set()
        self.told: set[int] = set()
        self.repairs = 0
        self.damages: Counter[int] = Counter()
        self.new_round()

    def new_round(self) -> None:
        self.under_way: dict[int, int] = {}
        self.taken: dict[int, int] = {}
        self.carried: dict[int, set[int]] = {stream: set() for stream in range(STREAMS if self.known else 1)}
        self.arriving: dict[int, int] = {}
        self.late: set[int] = set()
        self.begun: set[int] = set()
        self.owed = Counter({blockno: 1 for blockno in self.blocks if blockno not in self.told})
        self.again = 0
        self.nothing_left = False
        self.plan.begin_again()
        self.plan.begin_round(self.window)

    def hold(self, durable: Iterable[int]) -> None:
        """The sender was told of these."""
        self.told |= set(durable)
        for blockno in self.told:
            self.under_way.pop(blockno, None)

    def length(self, blockno: int) -> int:
        return max(0, min(BLOCK_LENGTH, self.size - blockno * BLOCK_LENGTH))

    # ---- the sender -------------------------------------------------------------------------------------------

    @rule(stream=st.integers(0, STREAMS - 1), late=st.sets(st.integers(0, BLOCKS_MAX), max_size=2))
    def take(self, stream: int, late: set[int]) -> None:
        """A free stream asks for a block; ``late``: what cannot be read yet."""
        if stream not in self.carried or stream in self.taken:
            return
        waits = self.plan.again
        blockno = self.plan.next(lambda blockno: blockno not in late)
        self.nothing_left = blockno is None
        if isinstance(blockno, int):
            assert blockno not in self.told, "it is durable already"
            assert waits or blockno not in late
            self.taken[stream] = blockno
            if not waits:
                self.under_way[blockno] = BLOCK_LENGTH
                assert sum(self.under_way.values()) <= max(self.window, BLOCK_LENGTH)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        """A stream has read its block and sends it."""
        stream = data.draw(st.sampled_from(sorted(self.taken)), "stream")
        blockno = self.taken.pop(stream)
        length = self.length(blockno)
        if not length:
            assert not self.known
            self.plan.ends_at(blockno * BLOCK_LENGTH)
            del self.under_way[blockno]
            return
        self.plan.remember_digest(blockno, digest_for(blockno))
        self.plan.block_begins(blockno, length)
        there = self.plan.prefixes.get(blockno, 0)
        assert self.plan.take_prefix(blockno, length) == (there if there < length else 0)
        self.carried[stream].add(blockno)
        self.begun.add(blockno)
        self.arriving[blockno] = stream
        if blockno not in self.told:
            self.under_way[blockno] = length
        assert self.owed[blockno], "it was sent again for nothing"
        self.owed[blockno] -= 1
        if length < BLOCK_LENGTH and self.plan.end is None:
            self.plan.ends_at(self.size)

    # ---- the receiver -----------------------------------------------------------------------------------------

    @rule(data=st.data(), by_position=st.booleans())
    def acknowledge(self, data: st.DataObject, by_position: bool) -> None:
        """Some of what arrived is durable; it says so of all it keeps, in runs or below a position."""
        arrived = some_of(data, self.late | set(self.arriving))
        self.kept |= arrived
        self.late -= arrived
        for blockno in arrived & set(self.arriving):
            del self.arriving[blockno]
        said = BlockSet((blockno, 1) for blockno in self.kept)
        gap = said.first_gap()
        runs = [] if by_position else said.runs()
        below = {blockno for blockno in self.kept if blockno < gap}
        position = min(gap * BLOCK_LENGTH, self.size)
        if by_position and self.plan.end is None and position % BLOCK_LENGTH:
            below.discard(gap - 1)  # the last block is short, and the sender does not know its end
        told = below if by_position else set(self.kept)
        under_way = set(self.under_way)
        durable = self.plan.acknowledged(runs, position if by_position else 0)
        assert set(durable) == under_way & told
        self.hold(told)

    @precondition(lambda self: self.arriving)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        blockno = data.draw(st.sampled_from(sorted(self.arriving)), "blockno")
        self.damages[blockno] += 1
        if self.damages[blockno] > AGAIN_MAX:
            with pytest.raises(DigestMismatch, match="sent 3 times again"):
                self.plan.damaged(blockno, "it is damaged")
            return
        self.plan.damaged(blockno, "it is damaged")
        del self.arriving[blockno]
        self.owed[blockno] += 1

    @precondition(lambda self: len(self.carried) > 1)
    @rule(data=st.data())
    def lose_a_stream(self, data: st.DataObject) -> None:
        """Another stream joins in its place; its OPENED says what came, and what came in part."""
        lost = data.draw(st.sampled_from(sorted(self.carried)), "stream")
        if lost in self.taken:
            return  # it reads its block first
        on_it = {blockno for blockno, stream in self.arriving.items() if stream == lost}
        self.kept |= some_of(data, on_it)
        for blockno in on_it:
            del self.arriving[blockno]
        self.late |= some_of(data, on_it - self.kept)
        runs = BlockSet((blockno, 1) for blockno in self.kept).runs()
        self.plan.acknowledged(runs, 0)
        self.hold(self.kept)
        carried = self.carried[lost]
        self.plan.lost(carried, dict.fromkeys(carried, 7))
        self.owed.update(blockno for blockno in carried if blockno not in self.told)
        self.carried[lost] = set()

    @rule(data=st.data())
    def lose_all(self, data: st.DataObject) -> None:
        """Every connection is lost; OPENED on a new one says what the receiver has."""
        if self.plan.end is None:
            return  # a stream without an end is not read twice in this model
        self.kept |= some_of(data, self.arriving)
        begun = {blockno: 3 for blockno in self.arriving if blockno not in self.kept}
        self.plan.receiver_holds(BlockSet((blockno, 1) for blockno in self.kept), begun)
        self.told = set(self.kept)
        self.new_round()

    @precondition(lambda self: self.done())
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """Everything is durable: the root is that of the file, and the receiver may say that it is not."""
        assert self.plan.held == BlockSet((blockno, 1) for blockno in self.blocks)
        for blockno in self.plan.undigested():
            self.plan.remember_digest(blockno, digest_for(blockno))
        digests = [digest_for(blockno) for blockno in self.blocks]
        assert self.plan.compute_root() == self.plan.root == root_of(digests, len(digests))
        self.repairs += 1
        if self.repairs > REPAIRS_MAX:
            with pytest.raises(DigestsDiffer):
                self.plan.repair_begins()
            return
        self.plan.repair_begins()
        pages = list(self.plan.have_pages(data.draw(st.integers(1, 4), "digests in a page")))
        assert [more for _, more in pages] == [True] * (len(pages) - 1) + [False]
        assert [one for page, _ in pages for one in page] == list(enumerate(digests))
        self.kept -= some_of(data, self.kept)
        self.plan.receiver_holds(BlockSet((blockno, 1) for blockno in self.kept), {})
        self.told = set(self.kept)
        self.plan.repair_ends()
        self.owed = Counter({blockno: 1 for blockno in self.blocks if blockno not in self.told})
        self.begun.clear()
        self.nothing_left = False

    def done(self) -> bool:
        return (
            self.nothing_left
            and self.plan.end is not None
            and not (self.plan.again or self.taken or self.arriving)
            and self.told == self.kept
        )

    # ---- always -----------------------------------------------------------------------------------------------

    @invariant()
    def it_believes_what_it_was_told(self) -> None:
        if not hasattr(self, "plan"):
            return
        assert self.plan.held == BlockSet((blockno, 1) for blockno in self.told)
        assert 0 <= self.plan.bytes_held() <= self.size
        if self.plan.end is not None:
            assert self.plan.bytes_held() == sum(map(self.length, self.told))
        assert self.plan.reached <= len(self.blocks) * BLOCK_LENGTH + 7 * len(self.blocks)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """What was begun is durable, on its way, or waits to be sent again; in the end this holds for every block."""
        if not hasattr(self, "plan"):
            return
        accounted = self.kept | set(self.arriving) | set(self.taken.values()) | set(self.plan._again)
        assert accounted >= self.begun
        if self.nothing_left and self.plan.end is not None:
            assert accounted | self.told >= set(self.blocks)


Plan.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestPlan = Plan.TestCase


def held(*blocknos: int) -> BlockSet:
    return BlockSet((blockno, 1) for blockno in blocknos)


def test_one_block_at_a_time_passes_however_small_the_window_is() -> None:
    plan = SendPlan(0, 3 * BLOCK_LENGTH)
    plan.begin_round(0)
    assert [plan.next(), plan.next()] == [0, Wait.WAIT]
    assert plan.acknowledged([(0, 1)], 0) == [0]
    assert plan.next() == 1


def test_a_block_that_is_not_ready_holds_up_those_behind_it_and_none_that_comes_again() -> None:
    plan = SendPlan(0, 3 * BLOCK_LENGTH)
    plan.begin_round(1 << 40)
    assert plan.next(lambda blockno: False) is Wait.WAIT
    assert plan.next() == 0
    plan.block_begins(0, BLOCK_LENGTH)
    plan.remember_digest(0, digest_for(0))
    plan.damaged(0, "damaged")
    assert plan.next(lambda blockno: False) == 0
    assert plan.next(lambda blockno: False) is Wait.WAIT
    assert [plan.next(), plan.next(), plan.next()] == [1, 2, None]


def test_a_range_has_only_its_own_blocks() -> None:
    plan = SendPlan(BLOCK_LENGTH + 1, 3 * BLOCK_LENGTH)
    plan.receiver_holds(held(0, 2, 3, 9), {})
    plan.begin_round(1 << 40)
    assert plan.held == held(2)
    assert [plan.next(), plan.next()] == [1, None]


def test_of_a_lost_stream_comes_again_what_is_not_held_and_is_not_acknowledged_since() -> None:
    plan = SendPlan(0, 4 * BLOCK_LENGTH)
    plan.begin_round(1 << 40)
    for blockno in range(3):
        assert plan.next() == blockno
        plan.block_begins(blockno, BLOCK_LENGTH)
    assert plan.acknowledged([(0, 1)], 0) == [0]
    plan.lost({0, 1, 2}, {2: 5})
    assert plan.acknowledged([(1, 1)], 0) == [1]
    assert [plan.next(), plan.next(), plan.next()] == [2, 3, None]
    assert plan.take_prefix(2, BLOCK_LENGTH) == 5


@pytest.mark.parametrize("blockno", [None, 1])
def test_what_was_never_sent_cannot_have_been_damaged(blockno: int | None) -> None:
    plan = SendPlan(0, 2 * BLOCK_LENGTH)
    plan.begin_round(1 << 40)
    plan.remember_digest(0, digest_for(0))
    with pytest.raises(DigestMismatch) as caught:
        plan.damaged(blockno, "damaged")
    assert caught.value.code == Code.BAD_FACTS
    assert not plan.again


def test_a_block_goes_ahead_only_if_the_receiver_has_nothing_of_it_and_is_not_sent_twice() -> None:
    plan = SendPlan(0, 4 * BLOCK_LENGTH)
    assert plan.take_untouched() is None  # nothing is known yet
    plan.receiver_holds(held(0), {1: 5})
    assert plan.take_untouched() == 2
    plan.block_begins(2, BLOCK_LENGTH)
    plan.receiver_holds(held(0), {1: 5})
    plan.begin_round(1 << 40)
    for blockno in (1, 3):
        assert plan.next() == blockno
        plan.block_begins(blockno, BLOCK_LENGTH)
    assert plan.next() is None
    plan.begin_again()
    assert plan.take_untouched() is None  # every block was begun once


def test_a_position_in_the_last_block_holds_it_only_at_the_end() -> None:
    size = BLOCK_LENGTH + 5
    for position, blocks in ((BLOCK_LENGTH + 4, 1), (size, 2)):
        plan = SendPlan(0, size)
        plan.receiver_holds(BlockSet(), {}, position)
        assert len(plan.held) == blocks
    assert blocknum_of(size) == 2

from __future__ import annotations

from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from blockproto.common.blocks import (
    BLOCK_LENGTH,
    DIGEST_LENGTH,
    EMPTY_DIGEST,
    BlockSet,
    block_span,
    blocknum_of,
    digest_of,
    root_of,
)

MIB = 1 << 20
small = st.integers(0, 30)
changes = st.lists(st.tuples(st.booleans(), small, st.integers(-1, 8)), max_size=30)


def test_constants():
    assert BLOCK_LENGTH == MIB
    assert len(EMPTY_DIGEST) == DIGEST_LENGTH
    assert EMPTY_DIGEST.hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@pytest.mark.parametrize(
    ("filesize", "blocknum"), [(0, 0), (1, 1), (MIB - 1, 1), (MIB, 1), (MIB + 1, 2), (2**63 - 1, 2**43)]
)
def test_blocknum(filesize, blocknum):
    assert blocknum_of(filesize) == blocknum


@given(st.integers(0, 5 * MIB), st.integers(0, 5 * MIB))
def test_spans_are_the_blocks_cut_by_the_range(first, end):
    spans = [block_span(blockno, first, end) for blockno in range(6)]
    assert sum(length for _, length in spans) == max(0, end - first)
    at = first
    for blockno, (position, length) in enumerate(spans):
        if length:
            assert position == at
            assert blockno * MIB <= position < position + length <= (blockno + 1) * MIB
            at += length


@given(st.binary(max_size=100))
def test_digest(block):
    assert (
        digest_of(block)
        == digest_of(memoryview(block))
        == digest_of(bytearray(block))
        == blake3(block).digest()
    )


def test_roots():
    one, two = digest_of(b"one"), digest_of(b"two")
    assert root_of([], 0) == EMPTY_DIGEST
    assert root_of([one], 1) == one
    assert root_of([one, two], 2) == blake3(one + two).digest()
    assert root_of(iter([one, two]), 2) != root_of([two, one], 2)


# BlockSet against Python's own set


def build(steps: list[tuple[bool, int, int]]) -> tuple[BlockSet, set[int]]:
    blocks, model = BlockSet(), set[int]()
    for adds, first, count in steps:
        if adds:
            blocks.add(first, count)
            model |= set(range(first, first + count))
        else:
            blocks.discard(first, count)
            model -= set(range(first, first + count))
        assert_sound(blocks)
    return blocks, model


def assert_sound(blocks: BlockSet) -> None:
    """starts[i] < ends[i] < starts[i + 1]"""
    runs = blocks.runs()
    assert all(count > 0 for _, count in runs)
    assert all(first + count < after for (first, count), (after, _) in pairwise(runs))


@given(changes)
def test_a_block_set_is_a_set(steps):
    blocks, model = build(steps)
    assert list(blocks) == sorted(model)
    assert len(blocks) == len(model)
    assert [blockno for blockno in range(45) if blockno in blocks] == sorted(model)
    assert list(blocks.missing(35)) == sorted(set(range(35)) - model)
    assert BlockSet(blocks.runs()) == blocks
    assert BlockSet((blockno, 1) for blockno in model) == blocks


@given(changes, small)
def test_first_gap_and_position(steps, start):
    blocks, model = build(steps)
    gap = min(set(range(start, 100)) - model)
    assert blocks.first_gap(start) == gap
    assert blocks.position(None) == blocks.first_gap() * MIB
    assert blocks.position(5 * MIB + 1) == min(blocks.first_gap() * MIB, 5 * MIB + 1)


@given(changes, changes)
def test_a_copy_is_independent(steps, more):
    blocks, model = build(steps)
    twin = blocks.copy()
    assert twin == blocks
    for adds, first, count in more:
        (twin.add if adds else twin.discard)(first, count)
    assert list(blocks) == sorted(model)


def test_limits_and_looks():
    blocks = BlockSet([(5, 2), (0, 1), (7, 1), (20, 1)])
    assert blocks.runs() == [(0, 1), (5, 3), (20, 1)]
    assert blocks.runs(2) == [(0, 1), (5, 3)]
    assert blocks.runs(0) == []
    assert repr(blocks) == "BlockSet([(0, 1), (5, 3), (20, 1)])"
    assert "5" not in blocks
    assert blocks != {0, 5, 6, 7, 20}
    with pytest.raises(TypeError):
        hash(blocks)


def test_one_block_is_meant_where_no_count_is_said():
    blocks = BlockSet()
    blocks.add(3)
    assert blocks.runs() == [(3, 1)]
    assert blocks.first_gap() == 0
    blocks.add(2, 5)
    blocks.discard(3)
    assert blocks.runs() == [(2, 1), (4, 3)]


def test_discarding_nothing_changes_nothing():
    blocks = BlockSet([(0, 10)])
    blocks.discard(5, 0)
    assert blocks.runs() == [(0, 10)]


def test_the_set_may_grow_while_what_is_missing_is_read():
    blocks, found = BlockSet(), []
    for blockno in blocks.missing(20):
        found.append(blockno)
        blocks.add(blockno, 3)
    assert found == [0, 3, 6, 9, 12, 15, 18]


def test_a_million_blocks_in_order_are_one_run():
    blocks = BlockSet()
    for blockno in range(100_000):
        blocks.add(blockno)
    blocks.add(100_000, 900_000)
    assert blocks.runs() == [(0, 1_000_000)]
    assert len(blocks) == 1_000_000

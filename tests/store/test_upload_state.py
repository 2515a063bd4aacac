"""What a work does to an unfinished upload: the one pure function that every store uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockproto.common.blocks import BLOCK_LENGTH, root_of
from blockproto.common.names import SafeName
from blockproto.errors import BadFacts, BlockprotoError, DigestsDiffer, Superseded
from blockproto.store import BlockDone, Facts, Finish, Forget, KeepPrefixes, Prefix, Upload
from blockproto.store.upload_state import Shape, UploadState, apply

UPLOAD = cast(Upload, None)
"""``apply`` asks nothing of it."""
FACTS = Facts(SafeName.parse("file.bin"), "application/x-test", None)
Change = BlockDone | Forget | KeepPrefixes


def digest(blockno: int, seed: int = 0) -> bytes:
    return bytes([blockno % 256, seed]) * 16


def done(blockno: int, length: int = BLOCK_LENGTH, attempt: int = 1, seed: int = 0) -> BlockDone:
    return BlockDone(UPLOAD, attempt, blockno, length, digest(blockno, seed))


def finish(filesize: int, digests: Sequence[bytes], attempt: int = 1) -> Finish:
    return Finish(UPLOAD, attempt, root_of(digests, len(digests)), filesize, FACTS)


def applied(state: UploadState, *works: Change) -> UploadState:
    for work in works:
        state = apply(state, work)
    return state


def test_a_shape() -> None:
    assert list(Shape(0, 0).blocknos(0)) == []
    assert list(Shape(BLOCK_LENGTH + 1, None).blocknos(3 * BLOCK_LENGTH)) == [1, 2]
    assert Shape(0, 10).held_end(0) == 10
    assert Shape(0, None, BLOCK_LENGTH + 3).held_end(1) == BLOCK_LENGTH + 3
    assert Shape(0, None).held_end(1) == 2 * BLOCK_LENGTH


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        (Shape(0, 2 * BLOCK_LENGTH + 7), [BLOCK_LENGTH, BLOCK_LENGTH, 7]),
        (Shape(5, BLOCK_LENGTH + 7), [BLOCK_LENGTH - 5, 7]),
        (Shape(0, None, BLOCK_LENGTH + 7), [BLOCK_LENGTH, 7]),
        (Shape(0, None), [BLOCK_LENGTH, BLOCK_LENGTH]),
    ],
)
def test_the_length_of_a_held_block(shape: Shape, lengths: list[int]) -> None:
    assert [shape.length(blockno) for blockno in range(len(lengths))] == lengths


def test_the_state_before_stays_as_it_is() -> None:
    before = UploadState(Shape(0, None), 1, {0: digest(0)}, frozenset(), {1: Prefix(3, digest(1))})
    after = applied(before, done(1, 5, attempt=2), Forget(UPLOAD, 2, (0,)))
    assert before == UploadState(Shape(0, None), 1, {0: digest(0)}, frozenset(), {1: Prefix(3, digest(1))})
    ended = Shape(0, None, BLOCK_LENGTH + 5)
    assert after == UploadState(ended, 2, {1: digest(1)}, frozenset({0}), {})


@pytest.mark.parametrize(
    "work",
    [done(0, attempt=4), Forget(UPLOAD, 4, (0,)), KeepPrefixes(UPLOAD, 4, {}), finish(0, [], attempt=4)],
)
def test_a_smaller_attempt_does_nothing(work: Change | Finish) -> None:
    with pytest.raises(Superseded) as caught:
        apply(UploadState(Shape(0, None), 5), work)
    assert caught.value.current == 5


@pytest.mark.clause("BP1-BLK-003")
@pytest.mark.parametrize(
    ("shape", "blockno", "length"),
    [
        (Shape(0, BLOCK_LENGTH + 1), 0, 5),
        (Shape(0, BLOCK_LENGTH + 1), 1, 2),
        (Shape(0, BLOCK_LENGTH + 1), 2, 1),
        (Shape(5, BLOCK_LENGTH + 1), 0, BLOCK_LENGTH),
        (Shape(0, None, BLOCK_LENGTH + 3), 2, 1),
        (Shape(0, None, BLOCK_LENGTH + 3), 0, 5),
        (Shape(0, None), 0, BLOCK_LENGTH + 1),
        (Shape(0, None), 0, 0),
        (Shape(0, None), -1, BLOCK_LENGTH),
    ],
)
def test_a_block_that_does_not_fit(shape: Shape, blockno: int, length: int) -> None:
    with pytest.raises(BadFacts):
        apply(UploadState(shape), done(blockno, length))


@pytest.mark.parametrize(
    ("shape", "held", "filesize", "error"),
    [
        (Shape(0, BLOCK_LENGTH + 1), [0, 1], BLOCK_LENGTH + 2, BadFacts),
        (Shape(0, BLOCK_LENGTH + 1), [0], BLOCK_LENGTH + 1, DigestsDiffer),
        (Shape(0, None), [0, 1], BLOCK_LENGTH, BadFacts),
        (Shape(0, None), [0], BLOCK_LENGTH + 1, DigestsDiffer),
        (Shape(0, None, 3), [0], BLOCK_LENGTH, BadFacts),
    ],
)
def test_a_file_that_is_not_complete(
    shape: Shape, held: list[int], filesize: int, error: type[BlockprotoError]
) -> None:
    recorded = [(blockno, digest(blockno)) for blockno in held]
    with pytest.raises(error):
        apply(UploadState(shape), finish(filesize, [digest for _, digest in recorded]), recorded)


@pytest.mark.clause("BP1-DIG-009")
def test_another_root_is_refused() -> None:
    with pytest.raises(DigestsDiffer):
        apply(UploadState(Shape(0, 5)), finish(5, [digest(0, 1)]), [(0, digest(0))])


def _works(size: int) -> st.SearchStrategy[list[Any]]:
    """Works on a file of ``size`` full blocks, some of which are refused."""
    blockno, attempt = st.integers(0, size), st.integers(1, 4)
    prefixes = st.dictionaries(blockno, st.builds(Prefix, st.integers(1, 9), st.just(bytes(32))), max_size=3)
    return st.lists(
        st.one_of(
            st.builds(done, blockno, st.sampled_from([BLOCK_LENGTH, 5]), attempt, st.integers(0, 1)),
            st.builds(Forget, st.just(UPLOAD), attempt, st.lists(blockno, max_size=3).map(tuple)),
            st.builds(KeepPrefixes, st.just(UPLOAD), attempt, prefixes),
        ),
        max_size=12,
    )


@given(_works(4), st.sets(st.integers(0, 12)), st.booleans())
def test_recording_after_any_work_changes_nothing(
    works: list[Change], recordings: set[int], known: bool
) -> None:
    """A store that records what is new and goes on from there has the same upload as one that keeps the state."""
    shape = Shape(0, 4 * BLOCK_LENGTH if known else None)
    kept, fresh = UploadState(shape), UploadState(shape)
    recorded: dict[int, bytes] = {}
    prefixes: dict[int, Prefix] = {}
    refused: tuple[list[bool], list[bool]] = [], []
    for at, work in enumerate(works):
        if at in recordings:
            recorded = dict(fresh.held(sorted(recorded.items())))
            prefixes = _prefixes(fresh, prefixes)
            fresh = UploadState(fresh.shape, fresh.attempt)
        kept, fresh = (
            _tried(state, work, noted) for state, noted in zip((kept, fresh), refused, strict=True)
        )
    assert refused[0] == refused[1]
    assert (kept.attempt, kept.shape) == (fresh.attempt, fresh.shape)
    held = dict(kept.held(()))
    assert dict(fresh.held(sorted(recorded.items()))) == held
    assert list(held) == sorted(held)
    forgotten = {blockno for work in works if isinstance(work, Forget) for blockno in work.blocknos}
    if not forgotten:  # a prefix of bytes that were withdrawn is found to be wrong when it is hashed again
        assert _prefixes(fresh, prefixes) == _prefixes(kept, {})
    end = max([shape.end or 0, *(BLOCK_LENGTH * blockno + kept.shape.length(blockno) for blockno in held)])
    complete = list(held) == list(range(-(-end // BLOCK_LENGTH))) and kept.shape.known_end in (None, end)
    assert _finishes(fresh, finish(end, list(held.values()), 9), sorted(recorded.items())) == complete


def _tried(state: UploadState, work: Change, refused: list[bool]) -> UploadState:
    try:
        state = apply(state, work)
    except BlockprotoError:
        refused.append(True)
    else:
        refused.append(False)
    return state


def _prefixes(state: UploadState, recorded: dict[int, Prefix]) -> dict[int, Prefix]:
    if state.prefixes is not None:
        return dict(state.prefixes)
    return {blockno: prefix for blockno, prefix in recorded.items() if blockno not in state.digests}


def _finishes(state: UploadState, work: Finish, recorded: list[tuple[int, bytes]]) -> bool:
    try:
        return apply(state, work, recorded).attempt == work.attempt
    except BlockprotoError:
        return False

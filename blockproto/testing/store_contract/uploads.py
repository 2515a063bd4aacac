"""The rules of bytes and blocks: what is held, what survives, what does not fit, and what is forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ...common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, BlockSet, digest_of
from ...common.names import SafeName
from ...errors import (
    BadFacts,
    DigestsDiffer,
    Superseded,
)
from ...store import (
    BlockDone,
    Facts,
    Finish,
    Forget,
    KeepPrefixes,
    Prefix,
    StoredFile,
)
from .place import Place
from .steps import (
    NAME,
    SIZES,
    clause,
    finish_of,
    key_of,
    opened,
    outcome,
    outcomes,
    pattern,
    refused,
    root_of_content,
    stored,
    written,
)


class UploadRules:
    """For everything that takes uploads."""

    # -- a file goes in

    @pytest.mark.parametrize("filesize", SIZES)
    def test_a_file_goes_in_in_one_batch(self, place: Place, filesize: int) -> None:
        content = pattern(filesize)
        upload = opened(place.store, filesize)
        works = written(upload, content)
        receipt = stored(place.store, *works, finish_of(upload, content))
        assert place.content(NAME) == content
        assert (receipt.sourceid, receipt.filesize, receipt.stored_as) == (
            upload.key.sourceid,
            filesize,
            NAME,
        )
        assert receipt.root == root_of_content(content)
        assert receipt.file_id == upload.file_id
        upload.close()
        assert place.leftovers() == 0

    def test_blocks_in_any_order_and_in_many_batches(self, place: Place) -> None:
        content = pattern(4 * BLOCK_LENGTH + 5)
        upload = opened(place.store, len(content))
        for blockno in (3, 0, 4, 2, 1):
            assert outcomes(place.store, *written(upload, content, [blockno])) == [None]
        stored(place.store, finish_of(upload, content))
        assert place.content(NAME) == content

    @clause("BP1-RES-004")
    def test_nothing_is_made_before_the_first_byte(self, place: Place) -> None:
        before = place.leftovers()
        upload = opened(place.store, 10 * BLOCK_LENGTH)
        assert place.leftovers() == before
        upload.close()
        assert place.leftovers() == before

    @clause("BP1-COM-005")
    def test_the_name_appears_only_at_commit(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        assert outcomes(place.store, *written(upload, content)) == [None, None]
        assert place.content(NAME) is None
        stored(place.store, finish_of(upload, content))
        assert place.content(NAME) == content

    def test_pieces_of_a_block(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 100)
        upload = opened(place.store, len(content))
        for position in range(0, len(content), 65_536):
            upload.write(position, memoryview(content[position : position + 65_536]))
        works = [
            BlockDone(upload, 1, 0, BLOCK_LENGTH, digest_of(content[:BLOCK_LENGTH])),
            BlockDone(upload, 1, 1, 100, digest_of(content[BLOCK_LENGTH:])),
        ]
        stored(place.store, *works, finish_of(upload, content))
        assert place.content(NAME) == content

    def test_two_openings_of_one_upload_share_it(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        first, second = opened(place.store, len(content)), opened(place.store, len(content))
        assert first.file_id == second.file_id
        works = written(first, content, [0, 2]) + written(second, content, [1])
        assert outcomes(place.store, *works) == [None, None, None]
        first.close()
        stored(place.store, finish_of(second, content))
        assert place.content(NAME) == content
        second.close()

    def test_mode_and_mtime(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        facts = Facts(SafeName.parse(NAME), "text/plain", len(content), 1_234_567_890_123_456_789, 0o640)
        upload = place.store.open_upload(key_of(1), facts, 1)
        assert not isinstance(upload, StoredFile)
        finish = Finish(upload, 1, root_of_content(content), len(content), facts)
        stored(place.store, *written(upload, content), finish)
        assert self.mode_and_mtime(place) == (0o640, 1_234_567_890_123_456_789)

    def mode_and_mtime(self, place: Place) -> tuple[int, int]:
        """Permission bits and mtime of the finished file."""
        raise NotImplementedError

    # -- resume

    @clause("BP1-RES-015", "BP1-RES-028")
    def test_held_blocks_survive(self, place: Place) -> None:
        content = pattern(5 * BLOCK_LENGTH + 9)
        upload = opened(place.store, len(content), attempt=7)
        place.store.decide(written(upload, content, [0, 1, 5, 3], attempt=7))
        upload.close()
        place.reopen()
        again = opened(place.store, len(content), attempt=8)
        assert again.held == BlockSet([(0, 2), (3, 1), (5, 1)])
        assert (again.attempt, again.facts.filesize) == (7, len(content))
        digests = {3: digest_of(content[3 * BLOCK_LENGTH : 4 * BLOCK_LENGTH]), 5: digest_of(content[-9:])}
        assert again.digests([5, 2, 3, 9]) == digests
        works = written(again, content, [2, 4], attempt=8)
        stored(place.store, *works, finish_of(again, content, attempt=8))
        assert place.content(NAME) == content

    @clause("BP1-RES-015", "BP1-RES-017")
    def test_a_crash_keeps_what_was_committed_and_no_more(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [1]))
        written(upload, content, [0, 2])
        incarnation = place.store.incarnation
        place.crash()
        assert place.store.incarnation == incarnation
        again = opened(place.store, len(content))
        assert again.held == BlockSet([(1, 1)])
        stored(place.store, *written(again, content, [0, 2]), finish_of(again, content))
        assert place.content(NAME) == content

    def test_a_crash_before_anything_was_committed_leaves_a_fresh_start(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 3)
        written(opened(place.store, len(content)), content)
        place.crash()
        again = opened(place.store, len(content))
        assert len(again.held) == 0
        stored(place.store, *written(again, content), finish_of(again, content))
        assert place.content(NAME) == content

    def test_prefixes_survive_and_can_be_read(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        upload.write(BLOCK_LENGTH, memoryview(content[BLOCK_LENGTH : BLOCK_LENGTH + 1000]))
        upload.write(0, memoryview(content[:10]))
        kept = {
            0: Prefix(10, digest_of(content[:10])),
            1: Prefix(1000, digest_of(content[BLOCK_LENGTH:][:1000])),
        }
        assert outcome(place.store, KeepPrefixes(upload, 1, kept)) is None
        upload.close()
        place.reopen()
        again = opened(place.store, len(content))
        assert again.prefixes == kept
        view = memoryview(bytearray(1000))
        assert again.read_into(BLOCK_LENGTH, view) == 1000
        assert digest_of(view) == kept[1].digest

    def test_prefixes_replace_those_before_and_end_with_their_block(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        upload.write(0, memoryview(content[:10]))
        prefix = Prefix(10, digest_of(content[:10]))
        place.store.decide([KeepPrefixes(upload, 1, {0: prefix, 2: prefix})])
        place.store.decide([KeepPrefixes(upload, 1, {0: prefix})])
        place.store.decide(written(upload, content, [0]))
        upload.close()
        place.reopen()
        assert opened(place.store, len(content)).prefixes == {}

    def test_reading_where_nothing_was_written(self, place: Place) -> None:
        upload = opened(place.store, BLOCK_LENGTH)
        assert upload.read_into(0, memoryview(bytearray(10))) == 0

    # -- the attempt

    def test_a_smaller_attempt_changes_nothing(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content), attempt=5)
        place.store.decide(written(upload, content, [0], attempt=5))
        late = written(upload, content, [1], attempt=4)[0]
        assert refused(place.store, late, Superseded).current == 5
        refused(place.store, Forget(upload, 4, (0,)), Superseded)
        refused(place.store, KeepPrefixes(upload, 4, {1: Prefix(1, EMPTY_DIGEST)}), Superseded)
        refused(place.store, finish_of(upload, content, attempt=4), Superseded)
        upload.close()
        place.reopen()
        again = opened(place.store, len(content), attempt=6)
        assert (again.held, again.attempt, again.prefixes) == (BlockSet([(0, 1)]), 5, {})

    def test_a_greater_attempt_takes_over_within_a_batch_too(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        attempts = zip(written(upload, content), (1, 2, 1), strict=True)
        found = outcomes(place.store, *(replace(work, attempt=attempt) for work, attempt in attempts))
        assert found[:2] == [None, None]
        assert isinstance(found[2], Superseded)

    # -- what does not fit

    @pytest.mark.parametrize(
        ("blockno", "length"), [(0, BLOCK_LENGTH - 1), (1, 8), (1, 6), (2, 1), (0, 0), (-1, BLOCK_LENGTH)]
    )
    def test_a_block_that_does_not_fit(self, place: Place, blockno: int, length: int) -> None:
        upload = opened(place.store, BLOCK_LENGTH + 7)
        upload.write(0, memoryview(pattern(BLOCK_LENGTH + 7)))
        refused(place.store, BlockDone(upload, 1, blockno, length, EMPTY_DIGEST), BadFacts)

    def test_a_refused_block_leaves_no_trace(self, place: Place) -> None:
        upload = opened(place.store, BLOCK_LENGTH)
        before = place.store.incarnation
        refused(place.store, BlockDone(upload, 1, 5, 1, EMPTY_DIGEST), BadFacts)
        place.crash()
        again = opened(place.store, BLOCK_LENGTH)
        assert (again.attempt, len(again.held), place.store.incarnation) == (0, 0, before)

    @clause("BP1-COM-005")
    def test_another_root_commits_nothing_and_drops_nothing(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content))
        other = replace(finish_of(upload, content), root=digest_of(b"another"))
        refused(place.store, other, DigestsDiffer)
        assert place.content(NAME) is None
        stored(place.store, finish_of(upload, content))

    def test_a_missing_block(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        for held in ([], [0], [0, 2]):
            place.store.decide(written(upload, content, held))
            refused(place.store, finish_of(upload, content), DigestsDiffer)
        assert place.content(NAME) is None

    def test_another_size_at_the_end(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content))
        other = finish_of(upload, content[:BLOCK_LENGTH])
        refused(place.store, other, BadFacts)

    def test_an_error_stops_no_other_work(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        first, second = written(upload, content)
        bad = BlockDone(upload, 1, 9, 1, EMPTY_DIGEST)
        found = outcomes(place.store, first, bad, second)
        assert (found[0], found[2]) == (None, None)
        assert isinstance(found[1], BadFacts)

    # -- unknown size

    @pytest.mark.parametrize("filesize", SIZES)
    def test_unknown_size(self, place: Place, filesize: int) -> None:
        content = pattern(filesize)
        upload = opened(place.store, None)
        stored(place.store, *written(upload, content), finish_of(upload, content))
        assert place.content(NAME) == content

    def test_unknown_size_ends_with_the_short_block(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH + 5)
        upload = opened(place.store, None)
        place.store.decide(written(upload, content))
        upload.close()
        place.reopen()
        again = opened(place.store, None)
        refused(place.store, BlockDone(again, 1, 3, BLOCK_LENGTH, EMPTY_DIGEST), BadFacts)
        refused(place.store, BlockDone(again, 1, 1, 4, EMPTY_DIGEST), BadFacts)
        refused(place.store, finish_of(again, content[: BLOCK_LENGTH + 5]), BadFacts)
        stored(place.store, finish_of(again, content))

    def test_unknown_size_needs_the_last_block(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH + 5)
        upload = opened(place.store, None)
        place.store.decide(written(upload, content, [0, 1]))
        refused(place.store, finish_of(upload, content), DigestsDiffer)

    def test_unknown_size_that_leaves_held_blocks_out(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, None)
        place.store.decide(written(upload, content))
        refused(place.store, finish_of(upload, content[:BLOCK_LENGTH]), BadFacts)
        stored(place.store, finish_of(upload, content))

    # -- repair

    @clause("BP1-DIG-007", "BP1-RES-017")
    def test_forgotten_blocks_are_missing_and_the_incarnation_stays(self, place: Place) -> None:
        content, other = pattern(3 * BLOCK_LENGTH), pattern(3 * BLOCK_LENGTH, seed=1)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content))
        before = place.store.incarnation
        assert outcome(place.store, Forget(upload, 1, (1, 2))) is None
        upload.close()
        place.reopen()
        assert place.store.incarnation == before
        again = opened(place.store, len(content))
        assert again.held == BlockSet([(0, 1)])
        mixed = content[:BLOCK_LENGTH] + other[BLOCK_LENGTH:]
        stored(place.store, *written(again, mixed, [1, 2]), finish_of(again, mixed))
        assert place.content(NAME) == mixed

    def test_forgotten_and_sent_again_in_one_batch(self, place: Place) -> None:
        content, other = pattern(2 * BLOCK_LENGTH), pattern(2 * BLOCK_LENGTH, seed=1)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content))
        assert outcome(place.store, Forget(upload, 1, (0, 7))) is None
        mixed = other[:BLOCK_LENGTH] + content[BLOCK_LENGTH:]
        works = written(upload, mixed, [0])
        stored(place.store, Forget(upload, 1, (0,)), *works, finish_of(upload, mixed))
        assert place.content(NAME) == mixed

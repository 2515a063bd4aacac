"""The rules of decisions: receipts, names, files without OPEN, discarding, and what a broken medium means."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ...common.blocks import BLOCK_LENGTH, EMPTY_DIGEST, digest_of
from ...errors import (
    BadFacts,
    DigestsDiffer,
    FileExists,
    SourceChanged,
    StoreFailed,
    StoreFull,
    UnknownUpload,
)
from ...store import (
    BlockDone,
    Discard,
    Finish,
    IfExists,
    StoredFile,
    Tidy,
)
from .place import Place
from .steps import (
    NAME,
    brief_of,
    clause,
    close_while_writing,
    facts_of,
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


class DecisionRules:
    """For everything that takes uploads."""

    def test_one_outcome_for_each_work_in_their_order(self, place: Place) -> None:
        content = pattern(3 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        unfit = replace(works[0], blockno=9)
        finish = finish_of(upload, content)
        found = outcomes(
            place.store, works[0], unfit, works[1], Tidy(), works[2], finish, Discard(key_of(77))
        )
        types = [type(one) for one in found]
        nothing = type(None)
        assert types == [nothing, BadFacts, nothing, nothing, nothing, StoredFile, UnknownUpload]

    def test_as_many_decisions_at_once_as_the_store_states(self, place: Place) -> None:
        """A store with one upload at a time states one decision at a time."""
        count = place.store.decisions_at_once
        content = pattern(2 * BLOCK_LENGTH)
        uploads = [opened(place.store, len(content), number=n, name=f"f{n}") for n in range(1, count + 1)]
        works = [written(upload, content, [1]) for upload in uploads]
        with ThreadPoolExecutor(count) as pool:
            assert list(pool.map(place.store.decide, works)) == [[None]] * count
        for upload in uploads:
            upload.close()
        place.crash()
        for n in range(1, count + 1):
            assert list(opened(place.store, len(content), number=n, name=f"f{n}").held) == [1]

    # -- repeating

    @clause("BP1-COM-011")
    def test_the_same_commit_again(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        upload = opened(place.store, len(content))
        first = finish_of(upload, content)
        twin = finish_of(upload, content)
        found = outcomes(place.store, *written(upload, content), first, twin)
        assert found[2] == found[3]
        assert outcome(place.store, finish_of(upload, content)) == found[2]
        upload.close()
        assert place.store.open_upload(key_of(1), facts_of(len(content)), 9) == found[2]

    def test_the_same_commit_with_other_bytes(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        upload = opened(place.store, len(content))
        stored(place.store, *written(upload, content), finish_of(upload, content))
        refused(place.store, finish_of(upload, pattern(BLOCK_LENGTH + 1, seed=1)), SourceChanged)

    def test_a_finished_upload_takes_no_more_bytes(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        upload = opened(place.store, len(content))
        stored(place.store, *written(upload, content), finish_of(upload, content))
        with pytest.raises(UnknownUpload):
            upload.write(0, memoryview(b"late"))
        refused(place.store, BlockDone(upload, 1, 0, BLOCK_LENGTH, EMPTY_DIGEST), UnknownUpload)
        upload.close()
        upload.close()
        assert place.content(NAME) == content

    @clause("BP1-COM-011")
    def test_a_file_that_is_gone_is_sent_again(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        stored(place.store, *written(upload, content), finish_of(upload, content))
        upload.close()
        self.take_away(place)
        again = opened(place.store, len(content))
        assert len(again.held) == 0
        stored(place.store, *written(again, content), finish_of(again, content))
        assert place.content(NAME) == content

    def take_away(self, place: Place) -> None:
        """Somebody else removes the finished file."""
        raise NotImplementedError

    # -- the name is taken

    def test_keep_both(self, place: Place) -> None:
        place.put_there(NAME, b"old")
        content = pattern(100)
        upload = opened(place.store, len(content))
        receipt = stored(place.store, *written(upload, content), finish_of(upload, content))
        assert receipt.stored_as == "file (1).bin"
        assert (place.content(NAME), place.content("file (1).bin")) == (b"old", content)

    @clause("BP1-COM-020")
    def test_a_name_that_is_taken_is_refused_before_any_byte_where_that_is_wanted(self, place: Place) -> None:
        place.put_there(NAME, b"old")
        with pytest.raises(FileExists):
            place.store.open_upload(key_of(1), facts_of(10, if_exists=IfExists.REFUSE), 1)
        assert not isinstance(place.store.open_upload(key_of(1), facts_of(10), 1), StoredFile)

    @clause("BP1-COM-015")
    def test_refuse_and_then_keep_both(self, place: Place) -> None:
        place.put_there(NAME, b"old")
        content = pattern(100)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        refuse = finish_of(upload, content, if_exists=IfExists.REFUSE)
        found = outcomes(place.store, *works, refuse)
        assert isinstance(found[-1], FileExists)
        assert place.content(NAME) == b"old"
        assert stored(place.store, finish_of(upload, content)).stored_as == "file (1).bin"

    def test_refuse_where_nothing_is(self, place: Place) -> None:
        content = pattern(100)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        stored(place.store, *works, finish_of(upload, content, if_exists=IfExists.REFUSE))
        assert place.content(NAME) == content

    def test_replace(self, place: Place) -> None:
        place.put_there(NAME, b"old")
        content = pattern(100)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        receipt = stored(place.store, *works, finish_of(upload, content, if_exists=IfExists.REPLACE))
        assert receipt.stored_as == NAME
        assert place.content(NAME) == content
        assert place.content("file (1).bin") is None

    # -- without OPEN

    @pytest.mark.parametrize("filesize", [0, 1, 4096, BLOCK_LENGTH])
    def test_a_brief_file(self, place: Place, filesize: int) -> None:
        content = pattern(filesize)
        finish = brief_of(place.store, content)
        receipt = stored(place.store, finish)
        assert place.content(NAME) == content
        finish.upload.close()
        assert place.leftovers() == 0
        again = brief_of(place.store, content)
        assert stored(place.store, again) == receipt
        again.upload.close()
        assert place.leftovers() == 0
        assert place.content("file (1).bin") is None

    def test_a_brief_file_in_pieces(self, place: Place) -> None:
        content = pattern(5000)
        upload = place.store.begin_brief(key_of(1), facts_of(len(content)), 0)
        for position in range(0, len(content), 1000):
            upload.write(position, memoryview(content[position : position + 1000]))
        block = BlockDone(upload, 0, 0, len(content), digest_of(content))
        stored(
            place.store,
            Finish(upload, 0, digest_of(content), len(content), facts_of(len(content)), (block,)),
        )
        assert place.content(NAME) == content

    @clause("BP1-BLK-018")
    def test_a_brief_file_that_is_not_committed_leaves_nothing(self, place: Place) -> None:
        upload = place.store.begin_brief(key_of(1), facts_of(10), 0)
        upload.write(0, memoryview(pattern(5)))
        upload.close()
        assert place.leftovers() == 0

    def test_a_brief_file_with_another_root(self, place: Place) -> None:
        finish = replace(brief_of(place.store, pattern(100)), root=digest_of(b"another"))
        refused(place.store, finish, DigestsDiffer)
        finish.upload.close()
        assert place.content(NAME) is None
        assert place.leftovers() == 0

    def test_a_brief_file_has_one_block(self, place: Place) -> None:
        content = pattern(BLOCK_LENGTH + 1)
        upload = place.store.begin_brief(key_of(1), facts_of(len(content)), 0)
        works = tuple(written(upload, content, attempt=0))
        finish = Finish(upload, 0, root_of_content(content), len(content), facts_of(len(content)), works)
        refused(place.store, finish, BadFacts)

    def test_a_brief_file_survives_a_crash(self, place: Place) -> None:
        content = pattern(4096)
        stored(place.store, brief_of(place.store, content))
        place.crash()
        assert place.content(NAME) == content

    # -- discarding

    def test_discard(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [0]))
        assert outcome(place.store, Discard(upload.key)) is None
        assert place.leftovers() == 0
        with pytest.raises(UnknownUpload):
            upload.write(0, memoryview(b"late"))
        refused(place.store, BlockDone(upload, 1, 0, BLOCK_LENGTH, EMPTY_DIGEST), UnknownUpload)
        refused(place.store, Discard(upload.key), UnknownUpload)
        upload.close()
        again = opened(place.store, len(content))
        assert len(again.held) == 0
        stored(place.store, *written(again, content), finish_of(again, content))

    def test_discard_what_was_never_begun(self, place: Place) -> None:
        refused(place.store, Discard(key_of(99)), UnknownUpload)

    @clause("BP1-RES-022")
    def test_discard_of_what_has_not_expired(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        place.store.decide(written(upload, content, [0]))
        upload.close()
        assert outcome(place.store, Discard(upload.key, expired_ms=place.now_ms)) is None
        assert len(opened(place.store, len(content)).held) == 1

    # -- trouble

    def test_no_room_for_a_new_upload(self, place: Place) -> None:
        place.fill_disk()
        with pytest.raises(StoreFull):
            place.store.open_upload(key_of(1), facts_of(BLOCK_LENGTH), 1)

    def test_after_the_medium_failed_nothing_is_taken(self, place: Place) -> None:
        content = pattern(2 * BLOCK_LENGTH)
        upload = opened(place.store, len(content))
        works = written(upload, content)
        place.break_medium()
        for _ in range(2):
            with pytest.raises(StoreFailed):
                place.store.decide(works)
        with pytest.raises(StoreFailed):
            place.store.decide([])
        place.crash()
        assert len(opened(place.store, len(content)).held) == 0

    def test_an_empty_batch(self, place: Place) -> None:
        place.store.decide([])
        assert outcome(place.store, Tidy()) is None

    def test_a_closed_store_takes_nothing(self, place: Place) -> None:
        place.store.close()
        place.store.close()
        with pytest.raises(StoreFailed):
            place.store.decide([])

    @pytest.mark.parametrize("what", ["upload", "brief file", "store"])
    def test_closing_while_a_write_runs(self, place: Place, what: str) -> None:
        brief = what == "brief file"
        upload = (
            place.store.begin_brief(key_of(1), facts_of(300_000), 0)
            if brief
            else opened(place.store, 300_000)
        )
        upload.write(0, memoryview(b"x" * 100_000))
        close_while_writing(place.stop_writes, upload, place.store.close if what == "store" else upload.close)
        if brief:
            assert place.leftovers() == 0
